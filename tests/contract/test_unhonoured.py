"""Every field that a caller may set is honoured, or stands in unhonoured.txt with its reason."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from google.protobuf.descriptor import Descriptor

from fermion.api.instances import v1 as instances
from fermion.api.workload import v1 as workload

LIST = Path(__file__).with_name("unhonoured.txt")

# What a caller hands in, and what a module declares.
ROOTS = (instances.Spec, instances.Template, workload.Workload)

# Fields that do something today, and where.
INSTANCES = "fermion.api.instances.v1"
WORKLOAD = "fermion.api.workload.v1"
HONOURED = {
    f"{INSTANCES}.Spec.kind": "services/instances/spec.py named: chooses the template",
    f"{INSTANCES}.Spec.template": "services/instances/aggregate.py create: is filled from it",
    f"{INSTANCES}.Spec.resources": "services/instances/spec.py faults: its fields are bounded",
    f"{INSTANCES}.Resources.storage_bytes": "services/instances/aggregate.py declared: its volume",
    f"{INSTANCES}.Template.name": "services/instances/aggregate.py place: its stream",
    f"{INSTANCES}.Template.display_name": "services/instances/servicer.py ListTemplates",
    f"{INSTANCES}.Template.description": "services/instances/servicer.py ListTemplates",
    f"{INSTANCES}.Template.kind": "services/instances/aggregate.py create: must be the spec's",
    f"{INSTANCES}.Template.spec": "services/instances/spec.py fill",
    f"{INSTANCES}.Template.hidden": "services/instances/aggregate.py create: not offered",
    f"{INSTANCES}.Template.etag": "services/instances/template.py change: given, never taken",
    f"{INSTANCES}.Template.generation": "services/instances/template.py change: given, never taken",
    f"{INSTANCES}.TemplateSpec.image": "services/instances/spec.py fill",
    f"{INSTANCES}.TemplateSpec.resources": "services/instances/spec.py fill",
    f"{INSTANCES}.TemplateSpec.ports": "services/instances/spec.py fill",
    f"{INSTANCES}.TemplateSpec.env": "services/instances/spec.py fill",
    f"{INSTANCES}.TemplateSpec.command": "services/instances/spec.py fill",
    f"{INSTANCES}.TemplateSpec.args": "services/instances/spec.py fill",
    f"{INSTANCES}.TemplateSpec.restart_policy": "services/instances/spec.py fill",
    f"{INSTANCES}.TemplateSpec.max_duration": "services/instances/spec.py fill",
    f"{INSTANCES}.TemplateSpec.probes": "services/instances/aggregate.py create",
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


def fields(root: Descriptor, seen: set[str]) -> Iterator[str]:
    """Walk a message and all that it holds, each type once; well-known types are values."""
    if root.full_name in seen or root.full_name.startswith("google."):
        return
    seen.add(root.full_name)
    for field in root.fields:
        yield field.full_name
        if field.message_type is not None and not field.message_type.GetOptions().map_entry:
            yield from fields(field.message_type, seen)


def listed() -> dict[str, str]:
    """Read the list: a field, white space, the reason."""
    rows = (line.split(None, 1) for line in LIST.read_text().splitlines())
    return {row[0]: row[1] for row in rows if row and not row[0].startswith("#")}


def accepted() -> set[str]:
    seen: set[str] = set()
    return {name for root in ROOTS for name in fields(root.DESCRIPTOR, seen)}


def test_every_field_is_honoured_or_listed() -> None:
    assert accepted() - set(HONOURED) - set(listed()) == set()


def test_no_field_is_both_honoured_and_listed() -> None:
    assert set(HONOURED) & set(listed()) == set()


def test_no_row_is_stale() -> None:
    assert (set(HONOURED) | set(listed())) - accepted() == set()


def test_every_row_has_a_reason() -> None:
    assert [name for name, why in listed().items() if len(why.split()) < 3] == []


def test_what_honours_a_field_is_there() -> None:
    root = Path(__file__).parents[2]
    rooms = {where.split()[0].rstrip(":") for where in HONOURED.values()}
    assert [room for room in rooms if not (root / room).is_file()] == []
