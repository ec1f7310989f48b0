"""Every field that a caller may set is honoured, or stands in unhonoured.txt with its reason."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.descriptor import Descriptor, MethodDescriptor

from fermion.api.workload import v1 as workload
from tests.contract.descriptors import ROOT, every_file
from tests.contract.reading import Module, Source

LIST = Path(__file__).with_name("unhonoured.txt")
SOURCE = Source()

# Fields that do something today, and where.
INSTANCES = "fermion.api.instances.v1"
PROJECTS = "fermion.api.projects.v1"
EXECUTOR = "fermion.api.executor.v1"
WORKLOAD = "fermion.api.workload.v1"
HONOURED = {
    f"{INSTANCES}.Spec.kind": "services/instances/spec.py named: chooses the template",
    f"{INSTANCES}.Spec.template": "services/instances/aggregate.py create: is filled from it",
    f"{INSTANCES}.Spec.resources": "services/instances/spec.py faults: its fields are bounded",
    f"{INSTANCES}.Resources.storage_bytes": "services/instances/aggregate.py declared: its volume",
    f"{INSTANCES}.Template.name": "services/instances/aggregate.py place: its stream",
    f"{INSTANCES}.Template.kind": "services/instances/aggregate.py create: must be the spec's",
    f"{INSTANCES}.Template.spec": "services/instances/spec.py fill",
    f"{INSTANCES}.Template.hidden": "services/instances/aggregate.py create: not offered",
    f"{INSTANCES}.TemplateSpec.image": "services/instances/spec.py fill",
    f"{INSTANCES}.TemplateSpec.resources": "services/instances/spec.py fill",
    f"{INSTANCES}.TemplateSpec.ports": "services/instances/spec.py fill",
    f"{INSTANCES}.TemplateSpec.env": "services/instances/spec.py fill",
    f"{INSTANCES}.TemplateSpec.command": "services/instances/spec.py fill",
    f"{INSTANCES}.TemplateSpec.args": "services/instances/spec.py fill",
    f"{INSTANCES}.TemplateSpec.restart_policy": "services/instances/spec.py fill",
    f"{INSTANCES}.TemplateSpec.max_duration": "services/instances/spec.py fill",
    f"{INSTANCES}.TemplateSpec.probes": "services/instances/aggregate.py create",
    f"{INSTANCES}.Instance.name": "services/instances/servicer.py UpdateInstance: which",
    f"{INSTANCES}.Instance.display_name": "services/instances/spec.py CHANGEABLE",
    f"{INSTANCES}.Instance.description": "services/instances/spec.py CHANGEABLE",
    f"{INSTANCES}.Instance.labels": "services/instances/spec.py CHANGEABLE",
    f"{INSTANCES}.Instance.spec": "services/instances/spec.py fill",
    f"{PROJECTS}.User.name": "services/projects/servicer.py UpdateUser: whom",
    f"{PROJECTS}.User.display_name": "services/projects/servicer.py USER_PATHS",
    f"{PROJECTS}.User.email": "services/projects/servicer.py USER_PATHS",
    f"{PROJECTS}.User.platform_role": "services/projects/servicer.py USER_PATHS",
    f"{PROJECTS}.Project.name": "services/projects/servicer.py UpdateProject: which",
    f"{PROJECTS}.Project.display_name": "services/projects/servicer.py PROJECT_PATHS",
    f"{PROJECTS}.Project.description": "services/projects/servicer.py PROJECT_PATHS",
    f"{PROJECTS}.Project.labels": "services/projects/servicer.py PROJECT_PATHS",
    f"{PROJECTS}.SigningKey.kid": "services/projects/servicer.py AddSigningKey",
    f"{PROJECTS}.SigningKey.public_key": "services/projects/servicer.py AddSigningKey",
    f"{PROJECTS}.Quota.name": "services/projects/servicer.py SetQuota: whose",
    f"{PROJECTS}.Quota.limits": "services/projects/servicer.py SetQuota",
    f"{EXECUTOR}.ExecRequest.Start.owner": "services/executor/servicer.py Exec",
    f"{EXECUTOR}.ExecRequest.Start.replica": "services/executor/servicer.py Exec",
    f"{EXECUTOR}.ExecRequest.Start.command": "services/executor/servicer.py Exec",
    f"{EXECUTOR}.ExecRequest.Start.tty": "services/executor/servicer.py Exec",
    f"{EXECUTOR}.ExecRequest.Start.size": "services/executor/servicer.py Exec",
    f"{EXECUTOR}.ExecRequest.Size.rows": "services/executor/servicer.py Exec",
    f"{EXECUTOR}.ExecRequest.Size.columns": "services/executor/servicer.py Exec",
    f"{EXECUTOR}.ReplicaSelector.attempt": "services/executor/servicer.py _replicas",
    f"{EXECUTOR}.ReplicaSelector.role": "services/executor/servicer.py _replicas",
    f"{EXECUTOR}.ReplicaSelector.rank": "services/executor/servicer.py _replicas",
    f"{EXECUTOR}.ReplicaSelector.replica_uid": "services/executor/servicer.py _replicas",
    f"{WORKLOAD}.Workload.uid": "services/scheduler/aggregate.py place: its stream",
    f"{WORKLOAD}.Workload.owner": "services/scheduler/projection.py: shown in the queue",
    f"{WORKLOAD}.Workload.owner_uid": "services/instances/consumer.py: finds the instance",
    f"{WORKLOAD}.Workload.attempt": "services/instances/aggregate.py: others are ignored",
    f"{WORKLOAD}.Workload.project": "services/scheduler/aggregate.py place",
    f"{WORKLOAD}.Workload.user": "services/scheduler/projection.py: shown in the queue",
    f"{WORKLOAD}.Workload.kind": "services/scheduler/projection.py: shown in the queue",
    f"{WORKLOAD}.Workload.labels": "services/scheduler/aggregate.py relabel",
    f"{WORKLOAD}.Workload.groups": "services/scheduler/aggregate.py no_cluster: what it needs",
    f"{WORKLOAD}.Workload.queued_from_time": "services/scheduler/projection.py: its age",
}


# What is only kept and shown again, with the whole of its message, and where.
KEPT = {
    f"{INSTANCES}.Template.display_name": "services/instances/template.py",
    f"{INSTANCES}.Template.description": "services/instances/template.py",
}

# What the platform tells of a resource, and takes from nobody: whoever sends back what was read is
# right, and changes none of it.
GIVEN = {
    *(f"{INSTANCES}.Instance.{name}" for name in ("uid", "status", "owner", "etag", "generation")),
    *(f"{INSTANCES}.Instance.{name}" for name in ("create_time", "update_time")),
    *(f"{INSTANCES}.Template.{name}" for name in ("etag", "generation")),
    *(f"{PROJECTS}.Project.{name}" for name in ("uid", "state", "vacated_by", "etag")),
    *(f"{PROJECTS}.Project.{name}" for name in ("generation", "create_time", "update_time")),
    *(f"{PROJECTS}.User.{name}" for name in ("uid", "etag", "generation", "create_time")),
    *(f"{PROJECTS}.Quota.{name}" for name in ("etag", "inherited")),
    f"{PROJECTS}.SigningKey.create_time",
}


def fields(root: Descriptor, seen: set[str]) -> Iterator[str]:
    """
    Walk a message and all that it holds, each type once; well-known types are values, and what is
    given is not walked into.
    """
    if root.full_name in seen or root.full_name.startswith("google."):
        return
    seen.add(root.full_name)
    for field in root.fields:
        yield field.full_name
        if field.full_name in GIVEN:
            # What it holds is given with it.
            continue
        if field.message_type is not None and not field.message_type.GetOptions().map_entry:
            yield from fields(field.message_type, seen)


def listed() -> dict[str, str]:
    """Read the list: a field, white space, the reason."""
    rows = (line.split(None, 1) for line in LIST.read_text().splitlines())
    return {row[0]: row[1] for row in rows if row and not row[0].startswith("#")}


def answered() -> dict[str, MethodDescriptor]:
    """Every call that something in the tree answers, by its full name."""
    services = {service for _, _, service in SOURCE.servicers()}
    return {
        method.full_name: method
        for file in every_file()
        for service in file.services_by_name.values()
        if service.name in services
        for method in service.methods
    }


def done() -> set[str]:
    """Fields of which something comes today, if only that they are shown again."""
    return {*HONOURED, *KEPT, *GIVEN}


def accepted() -> set[str]:
    """What a request may hold below its own fields, and what a module declares."""
    seen: set[str] = set()
    below = {
        field.message_type.full_name: field.message_type
        for call in answered().values()
        for field in call.input_type.fields
        if field.message_type is not None and not field.message_type.GetOptions().map_entry
    }
    roots = (*below.values(), workload.Workload.DESCRIPTOR)
    return {name for root in roots for name in fields(root, seen)}


def test_every_field_is_honoured_or_listed() -> None:
    assert accepted() - done() - set(listed()) == set()


def test_no_field_is_in_two_places() -> None:
    places = (set(HONOURED), set(KEPT), GIVEN, set(listed()))
    assert sum(map(len, places)) == len(set().union(*places))


def test_no_row_is_stale() -> None:
    assert (done() | set(listed())) - accepted() == set()


def test_every_row_has_a_reason() -> None:
    assert [name for name, why in listed().items() if len(why.split()) < 3] == []


def test_what_honours_a_field_names_it() -> None:
    nameless = []
    for field, where in {**HONOURED, **KEPT}.items():
        room = ROOT / where.split()[0].rstrip(":")
        message, name = field.rsplit(".", 2)[1:]
        wanted = message if field in KEPT else name
        if not re.search(rf"\b{wanted}\b", room.read_text(encoding="utf-8")):
            nameless.append(f"{field} in {where}")
    assert nameless == []


def test_every_service_that_has_calls_is_answered() -> None:
    calls = {service.name for file in every_file() for service in file.services_by_name.values()}
    assert calls == {service for _, _, service in SOURCE.servicers()}


@pytest.mark.parametrize("call", answered())
def test_every_field_of_a_request_is_read_by_whom_it_reaches(call: str) -> None:
    method = answered()[call]
    service = method.containing_service.name
    (place,) = [found for found in SOURCE.servicers() if found[2] == service]
    module, owner, _ = place
    function = module.method(owner, method.name)
    assert function is not None, f"nothing answers {call}"
    read = SOURCE.read(module, owner, function, 1)
    assert {field.name for field in method.input_type.fields} - read == set()


def test_a_field_that_is_only_passed_on_to_whom_nobody_asks_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "servicer.py"
    path.write_text(
        """
class Servicer(base.ThingServiceServicer):
    async def ListThings(self, request, context):
        return await self._page(request, decide=partial(_decide, request))

    async def _page(self, asked, decide):
        return asked.filter, getattr(asked, "order_by"), elsewhere(asked)

    async def Talk(self, requests, context):
        first = await anext(requests)
        async for more in requests:
            yield first.start, more.data

def _decide(asked):
    other = asked.parent
    return other.page_size
"""
    )
    module, source = Module.of(path), Source()
    for call, wanted in {
        "ListThings": {"filter", "order_by", "parent"},
        "Talk": {"start", "data"},
    }.items():
        function = module.method("Servicer", call)
        assert function is not None
        assert source.read(module, "Servicer", function, 1) == wanted
