"""
All rules of one workload, or one volume, in the scheduler's books: it waits, is admitted, or is not.

What is decided about many at once (who goes first, and where) is decided in `admission`; here it
becomes facts. The end is the same in any order: what waits is refused when it is withdrawn, what
is admitted is revoked, and its hold is free when its cluster has said that nothing of it is left.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Final, TypeAlias, assert_never, cast

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from chassis import envelope
from chassis.envelope import Recorded
from chassis.journal import Place
from chassis.workloads import needed
from fermion.api.scheduler import v1 as api
from fermion.api.workload import v1 as workload

SERVICE: Final = "scheduler"
ARRIVED: Final = "ARRIVED"

WorkFact: TypeAlias = (
    workload.WorkloadQueued
    | workload.WorkloadAdmitted
    | workload.WorkloadRefused
    | workload.WorkloadRevoked
    | workload.HoldReleased
)
VolumeFact: TypeAlias = (
    workload.VolumeQueued
    | workload.VolumeAdmitted
    | workload.VolumeRefused
    | workload.VolumeRevoked
    | workload.HoldReleased
)
Fact: TypeAlias = WorkFact | VolumeFact


@dataclass(frozen=True, slots=True)
class Entry:
    """One workload as the books have it; without `declared` it never came here."""

    declared: workload.Workload | None = None
    reason: workload.Reason | None = None
    queue_time: datetime | None = None
    # Where it was admitted, and with how many replicas of each role; empty: it was not.
    cluster: str = ""
    replicas: Mapping[str, int] = field(default_factory=dict)
    nodes: Sequence[str] = ()
    refused: bool = False
    revoked: bool = False
    released: bool = False

    @property
    def waits(self) -> bool:
        """Whether it stands in the queue now."""
        return self.declared is not None and not self.refused and not self.cluster

    @property
    def held(self) -> bool:
        """Whether something is held for it."""
        return bool(self.cluster) and not self.released


@dataclass(frozen=True, slots=True)
class Volume:
    """One volume as the books have it; without `declared` it never came here."""

    declared: workload.Volume | None = None
    cluster: str = ""
    refused: bool = False
    revoked: bool = False
    released: bool = False


def fold(records: Iterable[Recorded]) -> Entry:
    """Fold a `workload/` stream."""
    return envelope.fold(
        lambda entry, fact, at: evolve(entry, cast(WorkFact, fact), at), Entry(), records
    )


def fold_volume(records: Iterable[Recorded]) -> Volume:
    """Fold a `volume/` stream."""
    return envelope.fold(
        lambda volume, fact, _: evolve_volume(volume, cast(VolumeFact, fact)), Volume(), records
    )


def evolve(entry: Entry, fact: WorkFact, at: datetime) -> Entry:
    """Follow one fact; nothing is refused here."""
    match fact:
        case workload.WorkloadQueued():
            declared = fact.workload if fact.HasField("workload") else entry.declared
            return replace(
                entry,
                declared=declared,
                reason=fact.reason,
                queue_time=entry.queue_time or since(declared, at),
            )
        case workload.WorkloadAdmitted():
            return replace(
                entry,
                declared=fact.workload,
                cluster=fact.cluster,
                replicas=dict(fact.replicas),
                nodes=tuple(fact.nodes),
            )
        case workload.WorkloadRefused():
            return replace(entry, reason=fact.reason, refused=True)
        case workload.WorkloadRevoked():
            return replace(entry, revoked=True)
        case workload.HoldReleased():
            return replace(entry, released=True)
        case _:
            assert_never(fact)


def evolve_volume(volume: Volume, fact: VolumeFact) -> Volume:
    """Follow one fact; nothing is refused here."""
    match fact:
        case workload.VolumeQueued():
            return replace(volume, declared=fact.volume)
        case workload.VolumeAdmitted():
            return replace(volume, declared=fact.volume, cluster=fact.cluster)
        case workload.VolumeRefused():
            return replace(volume, refused=True)
        case workload.VolumeRevoked():
            return replace(volume, revoked=True)
        case workload.HoldReleased():
            return replace(volume, released=True)
        case _:
            assert_never(fact)


def since(declared: workload.Workload | None, at: datetime) -> datetime:
    """From when a workload waits: the age that it keeps over attempts, else from now."""
    if declared is not None and declared.HasField("queued_from_time"):
        return declared.queued_from_time.ToDatetime(tzinfo=UTC)
    return at


def place(fact: Message) -> Place:
    """Tell the stream and project of a fact."""
    match fact:
        case workload.WorkloadQueued() | workload.WorkloadRefused() | workload.WorkloadRevoked():
            return Place(f"workload/{fact.uid}", fact.project)
        case workload.WorkloadAdmitted():
            return Place(f"workload/{fact.workload.uid}", fact.workload.project)
        case workload.VolumeQueued() | workload.VolumeAdmitted():
            return Place(f"volume/{fact.volume.uid}", fact.volume.project)
        case workload.VolumeRefused() | workload.VolumeRevoked():
            return Place(f"volume/{fact.uid}", fact.project)
        case workload.HoldReleased():
            return Place(stream_of(fact.uid), fact.project)
        case _:
            raise TypeError(f"{fact.DESCRIPTOR.full_name} is no fact of {SERVICE}")


def stream_of(uid: str) -> str:
    """The stream of a workload or of a volume."""
    return f"{'volume' if uid.startswith('vol_') else 'workload'}/{uid}"


# What the owners of workloads say. Late or repeated: nothing follows, and nothing raises.


def enqueue(entry: Entry, *, declared: workload.Workload) -> list[Fact]:
    """It shall run: it waits until the next pass has looked at it."""
    if entry.declared is not None or entry.refused:
        return []
    return [_queued(declared, arrived())]


def relabel(entry: Entry, *, labels: Mapping[str, str]) -> list[Fact]:
    """Its labels changed: it is said again with them, and keeps its place or its hold."""
    declared = entry.declared
    if declared is None or entry.refused or entry.released or dict(declared.labels) == dict(labels):
        return []
    relabelled = _copy(declared)
    relabelled.labels.clear()
    relabelled.labels.update(labels)
    if entry.cluster:
        return [_admitted(entry, relabelled)]
    return [_queued(relabelled, entry.reason or arrived())]


def scale(entry: Entry, *, role: str, replicas: int) -> list[Fact]:
    """Another number of replicas is wanted: fewer at once, more as far as there is room."""
    declared = entry.declared
    if declared is None or entry.refused or entry.revoked or entry.released:
        return []
    scaled = _copy(declared)
    for group in scaled.groups:
        if group.role == role:
            group.replicas = replicas
            group.min_replicas = min(group.min_replicas, replicas)
    if scaled == declared:
        return []
    if not entry.cluster:
        return [_queued(scaled, entry.reason or arrived())]
    fewer = {**entry.replicas, role: min(entry.replicas.get(role, 0), replicas)}
    placed = place_by_role(declared, entry.replicas, entry.nodes)
    placed[role] = placed.get(role, ())[: fewer[role]]
    nodes = [node for group in scaled.groups for node in placed.get(group.role, ())]
    return [_admitted(replace(entry, replicas=fewer, nodes=nodes), scaled)]


def place_by_role(
    declared: workload.Workload, replicas: Mapping[str, int], nodes: Sequence[str]
) -> dict[str, tuple[str, ...]]:
    """Which nodes are held for each role: they are told in the order of groups, one a replica."""
    found, left = {}, list(nodes)
    for group in declared.groups:
        count = replicas.get(group.role, 0)
        found[group.role], left = tuple(left[:count]), left[count:]
    return found


def withdraw(
    entry: Entry, *, cause: workload.Cause.ValueType, grace: Duration | None = None
) -> list[Fact]:
    """It shall not run any more: what waits is let go of, what is admitted is taken down."""
    declared = entry.declared
    if declared is None or entry.refused or entry.revoked or entry.released:
        return []
    if entry.cluster:
        return [
            workload.WorkloadRevoked(
                uid=declared.uid,
                cause=cause,
                grace=declared.grace if grace is None else grace,
                project=declared.project,
            )
        ]
    reason = workload.Reason(
        code="WITHDRAWN",
        arguments={"cause": _word(cause)},
        message="It was withdrawn before it was admitted.",
    )
    return refuse(entry, reason=reason)


def refuse(entry: Entry, *, reason: workload.Reason) -> list[Fact]:
    """It will never run."""
    declared = entry.declared
    if declared is None or not entry.waits:
        return []
    return [
        workload.WorkloadRefused(
            uid=declared.uid,
            reason=reason,
            owner_uid=declared.owner_uid,
            attempt=declared.attempt,
            project=declared.project,
        )
    ]


def enqueue_volume(volume: Volume, *, declared: workload.Volume) -> list[Fact]:
    """Storage shall be there: it waits for the first workload that mounts it."""
    if volume.declared is not None or volume.refused:
        return []
    return [workload.VolumeQueued(volume=declared)]


def admit_volume(volume: Volume, *, cluster: str) -> list[Fact]:
    """It is held, and belongs to this cluster, with the first workload that mounts it."""
    if volume.declared is None or volume.cluster or volume.refused:
        return []
    return [workload.VolumeAdmitted(volume=volume.declared, cluster=cluster)]


def withdraw_volume(volume: Volume, *, cause: workload.Cause.ValueType) -> list[Fact]:
    """A volume shall be gone: what was never admitted is refused, the rest is deleted."""
    declared = volume.declared
    if declared is None or volume.refused or volume.revoked or volume.released:
        return []
    if volume.cluster:
        return [workload.VolumeRevoked(uid=declared.uid, cause=cause, project=declared.project)]
    reason = workload.Reason(
        code="WITHDRAWN",
        arguments={"cause": _word(cause)},
        message="It was withdrawn before it was admitted.",
    )
    return [
        workload.VolumeRefused(
            uid=declared.uid,
            reason=reason,
            owner_uid=declared.owner_uid,
            project=declared.project,
        )
    ]


# What a pass decides.


def admit(
    entry: Entry, *, cluster: str, replicas: Mapping[str, int], nodes: Sequence[str], gpu_type: str
) -> list[Fact]:
    """It may run there, with so many replicas in all."""
    declared = entry.declared
    if declared is None or entry.refused or entry.revoked or entry.released:
        return []
    chosen = _copy(declared)
    for group in chosen.groups:
        if gpu_type and group.resources.gpu_milli and not group.resources.gpu_type:
            # Any model would have done; this one is held for it.
            group.resources.gpu_type = gpu_type
    now = replace(entry, cluster=cluster, replicas=dict(replicas), nodes=tuple(nodes))
    return [_admitted(now, chosen)]


def explain(entry: Entry, *, reason: workload.Reason) -> list[Fact]:
    """It waits for another kind of reason than was said."""
    if not entry.waits or entry.declared is None:
        return []
    if entry.reason is not None and entry.reason.code == reason.code:
        return []
    declared = entry.declared
    return [
        workload.WorkloadQueued(
            uid=declared.uid,
            reason=reason,
            owner_uid=declared.owner_uid,
            attempt=declared.attempt,
            project=declared.project,
        )
    ]


def release(entry: Entry) -> list[Fact]:
    """Nothing of it is left in its cluster: nothing is held for it any more."""
    if not entry.held or entry.declared is None:
        return []
    return [workload.HoldReleased(uid=entry.declared.uid, project=entry.declared.project)]


def release_volume(volume: Volume) -> list[Fact]:
    """It is gone from its cluster: nothing is held for it any more."""
    if not volume.cluster or volume.released or volume.declared is None:
        return []
    return [workload.HoldReleased(uid=volume.declared.uid, project=volume.declared.project)]


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


def _admitted(entry: Entry, declared: workload.Workload) -> workload.WorkloadAdmitted:
    return workload.WorkloadAdmitted(
        workload=declared,
        cluster=entry.cluster,
        nodes=entry.nodes,
        replicas=entry.replicas,
        hold=needed(declared, entry.replicas),
    )


def _queued(declared: workload.Workload, reason: workload.Reason) -> workload.WorkloadQueued:
    return workload.WorkloadQueued(
        uid=declared.uid,
        reason=reason,
        owner_uid=declared.owner_uid,
        attempt=declared.attempt,
        project=declared.project,
        workload=declared,
    )


def arrived() -> workload.Reason:
    """Nobody has looked at it yet."""
    return workload.Reason(code="ARRIVED", message="It has just arrived.")


def _copy(declared: workload.Workload) -> workload.Workload:
    found = workload.Workload()
    found.CopyFrom(declared)
    return found


def _word(cause: workload.Cause.ValueType) -> str:
    known = workload.Cause.DESCRIPTOR.values_by_number.get(cause)
    # A module of a later release may give a cause that is not known here.
    return str(cause) if known is None else known.name.removeprefix("CAUSE_")
