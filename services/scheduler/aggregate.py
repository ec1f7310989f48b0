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
    | workload.WorkloadPreempted
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

    # As it is wanted now: with its labels, and how many replicas.
    declared: workload.Workload | None = None
    # Why it waits, as it was stated last, and when; None where it has just arrived.
    reason: workload.Reason | None = None
    said_time: datetime | None = None
    # The age that it keeps over attempts, and when it came itself.
    queue_time: datetime | None = None
    arrive_time: datetime | None = None
    # Where it was admitted, and with how many replicas of each role; no cluster: it was not.
    cluster: str = ""
    replicas: Mapping[str, int] = field(default_factory=dict)
    nodes: Sequence[str] = ()
    gpu_type: str = ""
    admit_time: datetime | None = None
    refused: bool = False
    revoked: bool = False
    released: bool = False

    @property
    def ends(self) -> bool:
        """Whether it was told to end, or has."""
        return self.refused or self.revoked or self.released

    @property
    def waits(self) -> bool:
        """Whether it stands in the queue now: with all of it, or with what it wants beside what it has."""
        if self.declared is None or self.ends:
            return False
        return not self.cluster or wants_more(self.declared, self.replicas)

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
                said_time=at,
                queue_time=entry.queue_time or since(declared, at),
                arrive_time=entry.arrive_time or at,
            )
        case workload.WorkloadAdmitted():
            return replace(
                entry,
                declared=fact.workload,
                reason=None,
                cluster=fact.cluster,
                replicas=dict(fact.replicas),
                nodes=tuple(fact.nodes),
                gpu_type=fact.hold.gpu_type,
                admit_time=entry.admit_time or at,
            )
        case workload.WorkloadRefused():
            return replace(entry, reason=fact.reason, refused=True)
        case workload.WorkloadRevoked() | workload.WorkloadPreempted():
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


def wants_more(declared: workload.Workload, replicas: Mapping[str, int]) -> bool:
    """Whether more replicas of a workload are wanted than these."""
    return any(group.replicas > replicas.get(group.role, 0) for group in declared.groups)


def place(fact: Message) -> Place:
    """Tell the stream and project of a fact."""
    match fact:
        case (
            workload.WorkloadQueued()
            | workload.WorkloadRefused()
            | workload.WorkloadPreempted()
            | workload.WorkloadRevoked()
        ):
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
    return f"{'volume' if is_volume(uid) else 'workload'}/{uid}"


def is_volume(uid: str) -> bool:
    """Tell a volume from a workload."""
    return uid.startswith("vol_")


# What the owners of workloads say. Late or repeated: nothing follows, and nothing raises.


def enqueue(entry: Entry, *, declared: workload.Workload) -> list[Fact]:
    """It shall run: it waits until the next pass has looked at it."""
    if entry.declared is not None:
        return []
    return [_queued(declared, arrived())]


def relabel(entry: Entry, *, labels: Mapping[str, str]) -> list[Fact]:
    """Its labels changed: it is said again with them, and keeps its place or its hold."""
    declared = entry.declared
    # Said after its end was, an admission could be taken for a new one.
    if declared is None or entry.ends or dict(declared.labels) == dict(labels):
        return []
    relabelled = _copy(declared)
    relabelled.labels.clear()
    relabelled.labels.update(labels)
    return _again(entry, relabelled)


def scale(entry: Entry, *, role: str, replicas: int) -> list[Fact]:
    """Another number of replicas is wanted: fewer at once, more as far as there is room."""
    declared = entry.declared
    if declared is None or entry.ends:
        return []
    scaled = _copy(declared)
    for group in scaled.groups:
        if group.role == role:
            group.replicas = max(0, replicas)
    if scaled == declared:
        return []
    return _again(entry, scaled)


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
    if declared is None or entry.ends:
        return []
    if entry.cluster:
        return [_revoked(declared, cause, declared.grace if grace is None else grace)]
    reason = workload.Reason(
        code="WITHDRAWN",
        arguments={"cause": _word(cause)},
        message="It was withdrawn before it was admitted.",
    )
    return refuse(entry, reason=reason)


def exhaust(entry: Entry) -> list[Fact]:
    """It has cost what it may: what is admitted is taken down, and nothing else costs anything."""
    declared = entry.declared
    if declared is None or entry.ends or not entry.cluster:
        return []
    return [_revoked(declared, workload.CAUSE_BUDGET, declared.grace)]


def refuse(entry: Entry, *, reason: workload.Reason) -> list[Fact]:
    """It will never run; what was admitted is not refused any more."""
    declared = entry.declared
    if declared is None or entry.cluster or not entry.waits:
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
    if declared is None or entry.ends:
        return []
    if (entry.cluster, dict(entry.replicas)) == (cluster, dict(replicas)):
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
    if said(entry.reason) == said(reason):
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


def said(reason: workload.Reason | None) -> tuple[str, str]:
    """The kind of a reason: its code, and whether it is a matter of time; the rest is amounts."""
    if reason is None:
        return (ARRIVED, "")
    return (reason.code, reason.arguments.get("short_of", ""))


def view(entry: Entry) -> api.QueuedWorkload:
    """Show a waiting workload as callers see it."""
    declared = entry.declared or workload.Workload()
    shown = api.QueuedWorkload(
        workload_uid=declared.uid,
        owner=declared.owner,
        kind=declared.kind,
        attempt=declared.attempt,
        user_uid=declared.user,
        reason=entry.reason or arrived(),
        labels=declared.labels,
    )
    if entry.queue_time is not None:
        shown.queue_time.FromDatetime(entry.queue_time)
    return shown


def _again(entry: Entry, wanted: workload.Workload) -> list[Fact]:
    """Say what is wanted now: of what is admitted, no more than that is held from now on."""
    if not entry.cluster:
        return [_queued(wanted, entry.reason or arrived())]
    placed = place_by_role(wanted, entry.replicas, entry.nodes)
    fewer = {
        group.role: min(group.replicas, entry.replicas.get(group.role, 0))
        for group in wanted.groups
    }
    nodes = [node for group in wanted.groups for node in placed[group.role][: fewer[group.role]]]
    return [_admitted(replace(entry, replicas=fewer, nodes=nodes), wanted)]


def _admitted(entry: Entry, declared: workload.Workload) -> workload.WorkloadAdmitted:
    return workload.WorkloadAdmitted(
        workload=declared,
        cluster=entry.cluster,
        nodes=entry.nodes,
        replicas=entry.replicas,
        hold=needed(declared, entry.replicas),
    )


def _revoked(
    declared: workload.Workload, cause: workload.Cause.ValueType, grace: Duration
) -> workload.WorkloadRevoked:
    return workload.WorkloadRevoked(
        uid=declared.uid, cause=cause, grace=grace, project=declared.project
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
