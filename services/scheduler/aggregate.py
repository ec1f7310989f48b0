"""All rules of the queue: what is declared waits until it is admitted, refused or withdrawn."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final, TypeAlias, assert_never, cast

from google.protobuf.message import Message

from chassis import envelope
from chassis.envelope import Recorded
from chassis.journal import Place
from fermion.api.scheduler import v1 as api
from fermion.api.workload import v1 as workload

SERVICE: Final = "scheduler"

Fact: TypeAlias = workload.WorkloadQueued | workload.WorkloadRefused


@dataclass(frozen=True, slots=True)
class Entry:
    """One workload as the queue knows it; without `declared` it never came here."""

    declared: workload.Workload | None = None
    reason: workload.Reason | None = None
    queue_time: datetime | None = None
    refused: bool = False

    @property
    def waits(self) -> bool:
        """Whether it stands in the queue now."""
        return self.declared is not None and not self.refused


def fold(records: Iterable[Recorded]) -> Entry:
    """Fold a `workload/` stream."""
    return envelope.fold(
        lambda entry, fact, at: evolve(entry, cast(Fact, fact), at), Entry(), records
    )


def evolve(entry: Entry, fact: Fact, at: datetime) -> Entry:
    """Follow one fact; nothing is refused here."""
    match fact:
        case workload.WorkloadQueued():
            declared = fact.workload if fact.HasField("workload") else entry.declared
            since = at
            if declared is not None and declared.HasField("queued_from_time"):
                since = declared.queued_from_time.ToDatetime(tzinfo=UTC)
            return replace(
                entry,
                declared=declared,
                reason=fact.reason,
                queue_time=entry.queue_time or since,
            )
        case workload.WorkloadRefused():
            return replace(entry, reason=fact.reason, refused=True)
        case _:
            assert_never(fact)


def place(fact: Message) -> Place:
    """Tell the stream and project of a fact."""
    match fact:
        case workload.WorkloadQueued() | workload.WorkloadRefused():
            return Place(f"workload/{fact.uid}", fact.project)
        case _:
            raise TypeError(f"{fact.DESCRIPTOR.full_name} is no fact of {SERVICE}")


# What the owners of workloads say. Late or repeated: nothing follows, and nothing raises.


def enqueue(entry: Entry, *, declared: workload.Workload) -> list[Fact]:
    """It shall run: it waits, for there is no cluster that it could run on."""
    if entry.declared is not None:
        return []
    return [_queued(declared, no_cluster(declared))]


def relabel(entry: Entry, *, labels: Mapping[str, str]) -> list[Fact]:
    """Its labels changed: it is said again with them, and keeps its place."""
    if entry.declared is None or not entry.waits or dict(entry.declared.labels) == dict(labels):
        return []
    relabelled = workload.Workload()
    relabelled.CopyFrom(entry.declared)
    relabelled.labels.clear()
    relabelled.labels.update(labels)
    return [_queued(relabelled, entry.reason or no_cluster(relabelled))]


def withdraw(entry: Entry, *, cause: workload.Cause.ValueType) -> list[Fact]:
    """It shall not run any more: what waits is let go of, and that is its end."""
    if entry.declared is None or not entry.waits:
        return []
    reason = workload.Reason(
        code="WITHDRAWN",
        arguments={"cause": _word(cause)},
        message="It was withdrawn before it was admitted.",
    )
    return [
        workload.WorkloadRefused(
            uid=entry.declared.uid,
            reason=reason,
            owner_uid=entry.declared.owner_uid,
            attempt=entry.declared.attempt,
            project=entry.declared.project,
        )
    ]


def no_cluster(declared: workload.Workload) -> workload.Reason:
    """Say that it waits for a cluster, and what that cluster would have to hold."""
    groups = [(group.replicas, group.resources) for group in declared.groups]
    return workload.Reason(
        code="NO_CLUSTER",
        arguments={
            "replicas": str(sum(count for count, _ in groups)),
            "gpu_milli": str(sum(count * each.gpu_milli for count, each in groups)),
            "cpu_milli": str(sum(count * each.cpu_milli for count, each in groups)),
            "memory_bytes": str(sum(count * each.memory_bytes for count, each in groups)),
        },
        message="No cluster is enrolled that it could run on; it is admitted when there is one.",
    )


def view(entry: Entry) -> api.QueuedWorkload:
    """Show a waiting workload as callers see it."""
    declared = entry.declared or workload.Workload()
    shown = api.QueuedWorkload(
        workload_uid=declared.uid,
        owner=declared.owner,
        kind=declared.kind,
        attempt=declared.attempt,
        user_uid=declared.user,
        reason=entry.reason,
        labels=declared.labels,
    )
    if entry.queue_time is not None:
        shown.queue_time.FromDatetime(entry.queue_time)
    return shown


def _queued(declared: workload.Workload, reason: workload.Reason) -> workload.WorkloadQueued:
    return workload.WorkloadQueued(
        uid=declared.uid,
        reason=reason,
        owner_uid=declared.owner_uid,
        attempt=declared.attempt,
        project=declared.project,
        workload=declared,
    )


def _word(cause: workload.Cause.ValueType) -> str:
    known = workload.Cause.DESCRIPTOR.values_by_number.get(cause)
    # A module of a later release may give a cause that is not known here.
    return str(cause) if known is None else known.name.removeprefix("CAUSE_")
