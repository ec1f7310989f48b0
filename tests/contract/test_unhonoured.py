"""Every field that a caller may set is honoured or refused by name, or stands in unhonoured.txt."""

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
BILLING = "fermion.api.billing.v1"
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
    f"{INSTANCES}.TemplateSpec.max_cost": "services/instances/spec.py fill",
    f"{INSTANCES}.TemplateSpec.probes": "services/instances/aggregate.py create",
    f"{INSTANCES}.Instance.name": "services/instances/servicer.py UpdateInstance: which",
    f"{INSTANCES}.Instance.display_name": "services/instances/spec.py CHANGEABLE",
    f"{INSTANCES}.Instance.description": "services/instances/spec.py CHANGEABLE",
    f"{INSTANCES}.Instance.labels": "services/instances/spec.py CHANGEABLE",
    f"{INSTANCES}.Instance.spec": "services/instances/spec.py fill",
    f"{INSTANCES}.Spec.image": "services/instances/aggregate.py declared",
    f"{INSTANCES}.Spec.ports": "services/instances/aggregate.py declared",
    f"{INSTANCES}.Spec.env": "services/instances/aggregate.py declared",
    f"{INSTANCES}.Spec.command": "services/instances/aggregate.py declared",
    f"{INSTANCES}.Spec.args": "services/instances/aggregate.py declared",
    f"{INSTANCES}.Spec.max_duration": "services/instances/aggregate.py declared",
    f"{INSTANCES}.Spec.max_cost": "services/instances/aggregate.py declared",
    f"{INSTANCES}.Spec.restart_policy": "services/instances/aggregate.py declared: its group's restart",
    f"{INSTANCES}.Resources.gpu_type": "services/instances/aggregate.py declared",
    f"{INSTANCES}.Resources.gpu_milli": "services/instances/aggregate.py declared",
    f"{INSTANCES}.Resources.cpu_milli": "services/instances/aggregate.py declared",
    f"{INSTANCES}.Resources.memory_bytes": "services/instances/aggregate.py declared",
    f"{INSTANCES}.Resources.shm_bytes": "services/instances/aggregate.py declared",
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
    f"{PROJECTS}.Limits.gpu_milli": "services/scheduler/books.py amounts_of: held to at admission",
    f"{PROJECTS}.Limits.cpu_milli": "services/scheduler/books.py amounts_of: held to at admission",
    f"{PROJECTS}.Limits.memory_bytes": "services/scheduler/books.py amounts_of: held to at admission",
    f"{PROJECTS}.Limits.storage_bytes": "services/scheduler/books.py amounts_of: held to at admission",
    f"{PROJECTS}.Limits.workloads": "services/scheduler/books.py amounts_of: held to at admission",
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
    f"{BILLING}.PriceBook.version": "services/billing/book.py validate: never used twice",
    f"{BILLING}.PriceBook.currency": "services/billing/book.py validate: the same for ever",
    f"{BILLING}.PriceBook.effective_time": "services/billing/aggregate.py publish: in force from then",
    f"{BILLING}.PriceBook.prices": "services/billing/book.py book_of",
    f"{BILLING}.PriceBook.states": "services/billing/book.py book_of",
    f"{BILLING}.PriceBook.platform_causes": "services/billing/book.py book_of",
    f"{BILLING}.PriceBook.number": "services/billing/aggregate.py _published: set by the service",
    f"{BILLING}.PriceBook.publish_time": "services/billing/aggregate.py _published: set by the service",
    f"{BILLING}.Price.dimension": "services/billing/book.py book_of",
    f"{BILLING}.Price.gpu_type": "services/billing/book.py book_of",
    f"{BILLING}.Price.price_nanos": "services/billing/book.py book_of",
    f"{BILLING}.StateRule.state": "services/billing/book.py book_of",
    f"{BILLING}.StateRule.billed": "services/billing/book.py book_of",
    f"{BILLING}.StateRule.free": "services/billing/book.py book_of",
    f"{BILLING}.Cut.sources": "services/billing/accounts.py look_again",
    f"{BILLING}.Cut.price_book": "services/billing/accounts.py look_again",
    f"{BILLING}.Cut.algorithm": "services/billing/accounts.py look_again: only the present one",
    f"{BILLING}.Cut.disputed": "services/billing/accounts.py look_again",
    f"{BILLING}.Cut.Source.journal": "services/billing/accounts.py look_again",
    f"{BILLING}.Cut.Source.position": "services/billing/accounts.py look_again",
    f"{BILLING}.Cut.Source.through_time": "services/billing/accounts.py look_again",
    f"{BILLING}.Cut.Source.retired": "services/billing/accounts.py look_again",
    f"{BILLING}.Cut.Disputed.uid": "services/billing/accounts.py look_again",
    f"{BILLING}.Cut.Disputed.position": "services/billing/accounts.py look_again",
    f"{WORKLOAD}.Workload.uid": "services/scheduler/aggregate.py place: its stream",
    f"{WORKLOAD}.Workload.owner": "services/scheduler/projection.py: shown in the queue",
    f"{WORKLOAD}.Workload.owner_uid": "services/instances/consumer.py: finds the instance",
    f"{WORKLOAD}.Workload.attempt": "services/instances/aggregate.py: others are ignored",
    f"{WORKLOAD}.Workload.project": "services/scheduler/aggregate.py place",
    f"{WORKLOAD}.Workload.user": "services/scheduler/books.py work_of: whose limits",
    f"{WORKLOAD}.Workload.kind": "services/scheduler/books.py work_of: its class",
    f"{WORKLOAD}.Workload.labels": "services/scheduler/aggregate.py relabel",
    f"{WORKLOAD}.Workload.groups": "services/scheduler/books.py work_of",
    f"{WORKLOAD}.Workload.queued_from_time": "services/scheduler/aggregate.py since: its age",
    f"{WORKLOAD}.Workload.ends": "services/executor/aggregate.py ending",
    f"{WORKLOAD}.Ends.rule": "services/executor/aggregate.py ending",
    f"{WORKLOAD}.Ends.role": "services/executor/aggregate.py ending",
    f"{WORKLOAD}.Workload.success": "services/executor/aggregate.py _succeeded",
    f"{WORKLOAD}.Success.rule": "services/executor/aggregate.py _succeeded",
    f"{WORKLOAD}.Success.role": "services/executor/aggregate.py _succeeded",
    f"{WORKLOAD}.Workload.rendezvous": "services/executor/folder.py words: each rank waits for its peers",
    f"{WORKLOAD}.Workload.grace": "services/executor/aggregate.py ending: from TERM to KILL",
    f"{WORKLOAD}.Workload.max_duration": "services/executor/aggregate.py expiry",
    f"{WORKLOAD}.Workload.max_cost": "services/executor/aggregate.py: told to billing in each Subject; "
    "the scheduler ends what has reached it",
    f"{WORKLOAD}.Money.currency": "services/instances/spec.py unpayable: any but the platform's",
    f"{WORKLOAD}.Money.nanos": "services/instances/spec.py unpayable: more than 0; billing tells when "
    "so much is reached",
    f"{WORKLOAD}.Workload.max_queue_time": "services/scheduler/books.py work_of: refused once it is over",
    f"{WORKLOAD}.Workload.placement": "services/scheduler/books.py work_of",
    f"{WORKLOAD}.Placement.cluster": "services/scheduler/books.py work_of",
    f"{WORKLOAD}.Placement.avoid": "services/scheduler/books.py work_of",
    f"{WORKLOAD}.Placement.Avoid.node": "services/scheduler/books.py work_of",
    f"{WORKLOAD}.Placement.Avoid.until_time": "services/scheduler/books.py work_of",
    f"{WORKLOAD}.Workload.requires": "services/scheduler/books.py work_of",
    f"{WORKLOAD}.Requirements.architecture": "services/scheduler/placement.py Where.allows",
    f"{WORKLOAD}.Requirements.driver": "services/scheduler/placement.py Where.allows",
    f"{WORKLOAD}.Group.role": "services/executor/folder.py name_of",
    f"{WORKLOAD}.Group.replicas": "services/scheduler/books.py _group",
    f"{WORKLOAD}.Group.min_replicas": "services/scheduler/books.py _group: fewer are not admitted",
    f"{WORKLOAD}.Group.resources": "services/scheduler/books.py _group",
    f"{WORKLOAD}.Group.image": "services/executor/folder.py _image",
    f"{WORKLOAD}.Group.command": "services/executor/folder.py _image",
    f"{WORKLOAD}.Group.args": "services/executor/folder.py _image",
    f"{WORKLOAD}.Group.env": "services/executor/folder.py words",
    f"{WORKLOAD}.Group.ports": "services/executor/folder.py words",
    f"{WORKLOAD}.Group.probes": "services/executor/checks.py _check",
    f"{WORKLOAD}.Group.mounts": "services/executor/folder.py make",
    f"{WORKLOAD}.Group.restart": "services/executor/folder.py words",
    f"{WORKLOAD}.Group.purchase": "services/scheduler/books.py work_of: its class, where not refused",
    f"{WORKLOAD}.Group.priority": "services/scheduler/books.py work_of",
    f"{WORKLOAD}.Resources.gpu_type": "services/scheduler/books.py _group: its Size",
    f"{WORKLOAD}.Resources.gpu_milli": "services/scheduler/books.py _group: its Size",
    f"{WORKLOAD}.Resources.cpu_milli": "services/scheduler/books.py _group: its Size",
    f"{WORKLOAD}.Resources.memory_bytes": "services/scheduler/books.py _group: its Size",
    f"{WORKLOAD}.Resources.scratch_bytes": "services/scheduler/books.py _group: its Size, of a node",
    f"{WORKLOAD}.Image.repository": "services/executor/folder.py _image",
    f"{WORKLOAD}.EnvVar.name": "services/executor/folder.py words",
    f"{WORKLOAD}.EnvVar.value": "services/executor/folder.py words",
    f"{WORKLOAD}.Port.name": "services/executor/folder.py words: FERMION_PORT_<NAME>",
    f"{WORKLOAD}.Port.number": "services/instances/spec.py repeated: people know it by that, and no "
    "other; the program has one in FERMION_PORT_<NAME>",
    f"{WORKLOAD}.Port.protocol": "services/executor/cluster_local.py access",
    f"{WORKLOAD}.Probes.startup": "services/executor/checks.py _check",
    f"{WORKLOAD}.Probes.readiness": "services/executor/checks.py _check",
    f"{WORKLOAD}.Probes.liveness": "services/executor/checks.py _check",
    f"{WORKLOAD}.Probe.command": "services/executor/probe.py ask",
    f"{WORKLOAD}.Probe.port": "services/executor/probe.py ask",
    f"{WORKLOAD}.Probe.http_path": "services/executor/probe.py ask",
    f"{WORKLOAD}.Probe.initial_delay": "services/executor/probe.py rule",
    f"{WORKLOAD}.Probe.period": "services/executor/probe.py rule",
    f"{WORKLOAD}.Probe.timeout": "services/executor/probe.py rule",
    f"{WORKLOAD}.Probe.failure_threshold": "services/executor/probe.py rule",
    f"{WORKLOAD}.Probe.success_threshold": "services/executor/probe.py rule",
    f"{WORKLOAD}.Mount.path": "services/executor/folder.py make",
    f"{WORKLOAD}.Mount.volume": "services/executor/folder.py make",
    f"{WORKLOAD}.Mount.Volume.volume_uid": "services/executor/folder.py make",
    f"{WORKLOAD}.RestartPolicy.mode": "services/executor/folder.py _restarts",
    f"{WORKLOAD}.RestartPolicy.restarts_max": "services/executor/folder.py _restarts",
    f"{WORKLOAD}.RestartPolicy.backoff": "services/executor/folder.py _restarts",
    f"{WORKLOAD}.Volume.uid": "services/scheduler/aggregate.py stream_of",
    f"{WORKLOAD}.Volume.owner": "services/executor/aggregate.py bind: whose time it is",
    f"{WORKLOAD}.Volume.owner_uid": "services/executor/aggregate.py bind: whose time it is",
    f"{WORKLOAD}.Volume.kind": "services/executor/aggregate.py bind: whose time it is",
    f"{WORKLOAD}.Volume.labels": "services/executor/aggregate.py bind: whose time it is",
    f"{WORKLOAD}.Volume.project": "services/scheduler/books.py volume_of: whose quota",
    f"{WORKLOAD}.Volume.user": "services/scheduler/books.py volume_of: whose quota",
    f"{WORKLOAD}.Volume.size_bytes": "services/scheduler/books.py volume_of: held against the quota",
}

# Fields that are refused by name wherever they ask for something, and where; what they hold is
# refused with them.
CHASSIS = "chassis/workloads.py needs"
REFUSED = {
    **{
        f"{WORKLOAD}.{name}": CHASSIS
        for name in (
            *("Workload.attach", "Workload.egress", "Workload.isolation", "Workload.drain"),
            *(
                "Workload.purpose",
                "Placement.flavour",
                "Placement.same_rack",
                "Placement.beside_workload_uid",
            ),
            *("Group.companions", "Group.identity", "Group.secret_refs", "Group.preemptible"),
            *("Mount.artifact", "Mount.output", "Mount.checkpoint", "Port.public"),
        )
    },
    f"{WORKLOAD}.Requirements.features": "services/executor/acceptance.py _faults",
    f"{WORKLOAD}.Mount.Volume.size_bytes": "services/scheduler/books.py work_of: any but its volume's",
    f"{WORKLOAD}.Image.digest": "services/executor/acceptance.py _of_image: any but what runs",
    f"{WORKLOAD}.Image.version_uid": "services/executor/acceptance.py _of_image",
    f"{WORKLOAD}.Resources.shm_bytes": "services/executor/acceptance.py _of_resources: too much",
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
    given, or refused, is not walked into.
    """
    if root.full_name in seen or root.full_name.startswith("google."):
        return
    seen.add(root.full_name)
    for field in root.fields:
        yield field.full_name
        if field.full_name in GIVEN or field.full_name in REFUSED:
            # What it holds is given, or refused, with it.
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
    """Fields of which something comes today, if only that they are shown again or refused."""
    return {*HONOURED, *REFUSED, *KEPT, *GIVEN}


def accepted() -> set[str]:
    """What a request may hold below its own fields, and what a module declares."""
    seen: set[str] = set()
    below = {
        field.message_type.full_name: field.message_type
        for call in answered().values()
        for field in call.input_type.fields
        if field.message_type is not None and not field.message_type.GetOptions().map_entry
    }
    roots = (*below.values(), workload.Workload.DESCRIPTOR, workload.Volume.DESCRIPTOR)
    return {name for root in roots for name in fields(root, seen)}


def test_every_field_is_honoured_or_listed() -> None:
    assert accepted() - done() - set(listed()) == set()


def test_no_field_is_in_two_places() -> None:
    places = (set(HONOURED), set(REFUSED), set(KEPT), GIVEN, set(listed()))
    assert sum(map(len, places)) == len(set().union(*places))


def test_no_row_is_stale() -> None:
    assert (done() | set(listed())) - accepted() == set()


def test_every_row_has_a_reason() -> None:
    assert [name for name, why in listed().items() if len(why.split()) < 3] == []


def test_what_honours_or_refuses_a_field_names_it() -> None:
    nameless = []
    for field, where in {**HONOURED, **REFUSED, **KEPT}.items():
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
