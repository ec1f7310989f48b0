"""
All rules of making workloads run: when their replicas are told to end, and when they are finished.

What the scheduler admitted is `Wanted`; what was stated of the workload is `Work`; what was stated
of its replicas is `observation.Replica`. A workload is one-shot: it is accepted or rejected once,
its replicas come and go, and when none lives and none will come it is finished, exactly once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Final, TypeAlias, assert_never, cast

from google.protobuf.message import Message

from chassis import envelope, ids
from chassis.envelope import NO_PROJECT, Recorded
from chassis.journal import Place
from fermion.api.workload import v1 as api
from services.executor import observation
from services.executor.observation import Instant, Replica, ReplicaFact, ReplicaObservation

SERVICE: Final = "executor"

WorkFact: TypeAlias = api.WorkloadAccepted | api.WorkloadRejected | api.WorkloadFinished
VolumeFact: TypeAlias = api.VolumeBound | api.VolumeRejected | api.VolumeDeleted
ClusterFact: TypeAlias = (
    api.ClusterRegistered | api.NodeReported | api.NodeRemoved | api.ProofOfLife | api.Watermark
)
Fact: TypeAlias = ReplicaFact | WorkFact | VolumeFact | ClusterFact


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the scheduler said last of a workload of this cluster."""

    workload: api.Workload
    # Admitted replicas by role.
    replicas: Mapping[str, int]
    # Why it shall end; unspecified while it shall run.
    cause: api.Cause.ValueType = api.CAUSE_UNSPECIFIED
    grace: timedelta = timedelta()
    # Position of the scheduler's last fact about it.
    position: int = 0

    @property
    def revoked(self) -> bool:
        """Whether it shall end."""
        return self.cause != api.CAUSE_UNSPECIFIED

    @property
    def count(self) -> int:
        """Replicas that are admitted, over all roles."""
        return sum(self.replicas.values())

    @property
    def whole(self) -> bool:
        """Whether all of its replicas or none of them are worth anything."""
        groups = self.workload.groups
        return sum(group.replicas for group in groups) > 1 and all(
            group.min_replicas == group.replicas for group in groups
        )


@dataclass(frozen=True, slots=True)
class Work:
    """What was stated of one workload so far."""

    uid: str = ""
    accepted: bool = False
    rejected: bool = False
    finished: bool = False


@dataclass(frozen=True, slots=True)
class Volume:
    """What was stated of one volume so far."""

    uid: str = ""
    node: str = ""
    bound: bool = False
    rejected: api.Reason | None = None
    deleted: bool = False


@dataclass(frozen=True, slots=True)
class Ending:
    """Why the replicas of a workload are told to end now, and how long each may take."""

    cause: api.Cause.ValueType
    grace: timedelta


def fold_work(records: Iterable[Recorded]) -> Work:
    """Fold a `workload/` stream."""
    return envelope.fold(
        lambda work, fact, _: evolve_work(work, cast(WorkFact, fact)), Work(), records
    )


def fold_volume(records: Iterable[Recorded]) -> Volume:
    """Fold a `volume/` stream."""
    return envelope.fold(
        lambda volume, fact, _: evolve_volume(volume, cast(VolumeFact, fact)), Volume(), records
    )


def evolve_work(work: Work, fact: WorkFact) -> Work:
    """Follow one fact; nothing is refused here."""
    work = replace(work, uid=fact.uid)
    match fact:
        case api.WorkloadAccepted():
            return replace(work, accepted=True)
        case api.WorkloadRejected():
            return replace(work, rejected=True)
        case api.WorkloadFinished():
            return replace(work, finished=True)
        case _:
            assert_never(fact)


def evolve_volume(volume: Volume, fact: VolumeFact) -> Volume:
    """Follow one fact; nothing is refused here."""
    match fact:
        case api.VolumeBound():
            return replace(volume, uid=fact.uid, node=fact.node, bound=True)
        case api.VolumeRejected():
            return replace(volume, uid=fact.uid, rejected=fact.reason)
        case api.VolumeDeleted():
            return replace(volume, uid=fact.uid, deleted=True)
        case _:
            assert_never(fact)


def place(fact: Message) -> Place:
    """Tell the stream, the project and the statement id of a fact."""
    match fact:
        case api.ReplicaScheduled():
            return _replica(fact.uid, fact.subject.project, "scheduled")
        case api.ReplicaStarted():
            return _replica(fact.uid, fact.subject.project, "started", fact.run)
        case api.ReplicaEnded():
            return _replica(fact.uid, fact.project, "ended", fact.run)
        case api.ReplicaPending():
            return _replica(fact.uid, fact.project, f"pending:{fact.n}")
        case api.ReplicaReady():
            return _replica(fact.uid, fact.project, f"ready:{fact.n}")
        case api.ReplicaUnready():
            return _replica(fact.uid, fact.project, f"unready:{fact.n}")
        case api.ReplicaDraining():
            return _replica(fact.uid, fact.project, "draining")
        case api.ReplicaLost():
            return _replica(fact.uid, fact.project, f"lost:{fact.n}")
        case api.ReplicaFound():
            return _replica(fact.uid, fact.project, f"found:{fact.n}")
        case api.ReplicaRunMissed():
            return _replica(fact.uid, fact.project, f"missed:{fact.from_run}-{fact.to_run}")
        case api.ReplicaRunCorrected():
            return _replica(fact.uid, fact.project, f"corrected:{fact.n}", fact.run)
        case api.ReplicaResized():
            return _replica(fact.uid, fact.project, f"resized:{fact.n}")
        case api.ReplicaRelabelled():
            return _replica(fact.uid, fact.project, f"relabelled:{fact.n}")
        case api.ReplicaReleased():
            return _replica(fact.uid, fact.project, "released")
        case api.WorkloadAccepted():
            return _about("workload", fact.uid, fact.project, "accepted")
        case api.WorkloadRejected():
            return _about("workload", fact.uid, fact.project, "rejected")
        case api.WorkloadFinished():
            return _about("workload", fact.uid, fact.project, "finished")
        case api.VolumeBound():
            return _about("volume", fact.uid, fact.subject.project, "bound")
        case api.VolumeRejected():
            return _about("volume", fact.uid, fact.project, "rejected")
        case api.VolumeDeleted():
            return _about("volume", fact.uid, fact.project, "deleted")
        case api.ClusterRegistered():
            return Place(f"cluster/{fact.uid}", NO_PROJECT)
        case api.NodeReported() | api.NodeRemoved() | api.ProofOfLife() | api.Watermark():
            return Place(f"cluster/{fact.cluster}", NO_PROJECT)
        case _:
            raise TypeError(f"{fact.DESCRIPTOR.full_name} is no fact of {SERVICE}")


def _replica(uid: str, project: str, edge: str, run: int | None = None) -> Place:
    return Place(f"replica/{uid}", project, statement=ids.statement(uid, edge, run))


def _about(kind: str, uid: str, project: str, edge: str) -> Place:
    return Place(f"{kind}/{uid}", project, statement=ids.statement(uid, edge))


def subject(wanted: Wanted, seen: ReplicaObservation) -> api.Subject:
    """Say whose time a replica's is, with what was allocated to it."""
    work = wanted.workload
    group = next((one for one in work.groups if one.role == seen.role), api.Group())
    return api.Subject(
        project=work.project,
        owner=work.owner,
        owner_uid=work.owner_uid,
        kind=work.kind,
        workload=work.uid,
        attempt=work.attempt,
        role=seen.role,
        rank=seen.rank,
        user=work.user,
        labels=work.labels,
        purchase=group.purchase,
        sku=seen.sku,
        max_cost=work.max_cost if work.HasField("max_cost") else None,
    )


# Workloads. Told again, or late: nothing follows.


def accept(work: Work, wanted: Wanted, now: datetime) -> list[Fact]:
    """Its objects exist."""
    if work.accepted or work.rejected or work.finished:
        return []
    said = wanted.workload
    return [api.WorkloadAccepted(uid=said.uid, project=said.project, witness=_now(now))]


def reject(work: Work, wanted: Wanted, field: str, reason: api.Reason, now: datetime) -> list[Fact]:
    """The cluster cannot honour a field; that it is finished follows."""
    if work.accepted or work.rejected or work.finished:
        return []
    said = wanted.workload
    return [
        api.WorkloadRejected(
            uid=said.uid, field=field, reason=reason, project=said.project, witness=_now(now)
        )
    ]


def ending(work: Work, wanted: Wanted, replicas: Sequence[Replica], now: datetime) -> Ending | None:
    """
    Say whether all that lives of a workload is told to end now, and why; None while it runs on.

    The scheduler's word comes first, then its longest time (from its first start), then the end of
    a rank that the others cannot do without, then its own rule of when it is at its end.
    """
    work_grace = wanted.workload.grace.ToTimedelta()
    if wanted.revoked:
        return Ending(wanted.cause, wanted.grace)
    if work.rejected:
        return Ending(api.CAUSE_PLATFORM, work_grace)
    deadline = expiry(wanted, replicas)
    if deadline is not None and deadline <= now:
        return Ending(api.CAUSE_MAX_DURATION, work_grace)
    ended = [replica for replica in replicas if replica.released and not replica.scaled_in]
    if wanted.whole and any(not replica.succeeded for replica in ended):
        return Ending(api.CAUSE_PEER_LOST, work_grace)
    ends = wanted.workload.ends
    if ends.rule == api.Ends.RULE_ROLE:
        waited = [replica for replica in ended if replica.subject.role == ends.role]
        if len(waited) >= wanted.replicas.get(ends.role, 0) > 0:
            return Ending(api.CAUSE_PEER_LOST, work_grace)
    return None


def expiry(wanted: Wanted, replicas: Sequence[Replica]) -> datetime | None:
    """When a workload has run as long as it may; None where it may for ever, or has not begun."""
    if not wanted.workload.HasField("max_duration"):
        return None
    starts = [replica.first_start for replica in replicas if replica.first_start is not None]
    return min(starts) + wanted.workload.max_duration.ToTimedelta() if starts else None


def surplus(wanted: Wanted, replicas: Sequence[Replica]) -> list[Replica]:
    """Replicas that are more than admitted: of each role the highest ranks that still live."""
    found = []
    for replica in replicas:
        allowed = wanted.replicas.get(replica.subject.role, 0)
        if not replica.released and replica.subject.rank >= allowed:
            found.append(replica)
    return found


def finish(
    work: Work, wanted: Wanted, replicas: Sequence[Replica], now: datetime, *, closed: bool
) -> list[Fact]:
    """
    State the end of a workload once no replica of it lives and none will come.

    `closed`: its cluster makes nothing of it any more, and was looked at since. Without that, all
    that are admitted have to be known.
    """
    if work.finished or any(not replica.released for replica in replicas):
        return []
    # Those that went because fewer were wanted say nothing about the others.
    stayed = [replica for replica in replicas if not replica.scaled_in]
    if not closed and (not work.accepted or len(stayed) < wanted.count or wanted.count == 0):
        return []
    said = wanted.workload
    outcome, cause = _outcome(work, wanted, replicas)
    failed = sorted(
        (one for one in stayed if one.run >= 0 and not one.succeeded and not one.draining),
        key=lambda one: (one.end or now, one.subject.rank),
    )
    return [
        api.WorkloadFinished(
            uid=said.uid,
            owner_uid=said.owner_uid,
            attempt=said.attempt,
            outcome=outcome,
            cause=cause,
            failed_ranks=[one.subject.rank for one in failed],
            witness=_now(now),
            project=said.project,
        )
    ]


def _outcome(
    work: Work, wanted: Wanted, replicas: Sequence[Replica]
) -> tuple[api.Outcome.ValueType, api.Cause.ValueType]:
    started = any(replica.run >= 0 for replica in replicas)
    if work.rejected:
        return api.OUTCOME_REJECTED, api.CAUSE_UNSPECIFIED
    stayed = [replica for replica in replicas if not replica.scaled_in]
    told = next((one.cause for one in stayed if one.draining), api.CAUSE_UNSPECIFIED)
    if not started:
        return api.OUTCOME_NEVER_STARTED, wanted.cause or told
    if not stayed:
        # Nothing of it ran any more when it was told to end: by the scheduler, or by its time.
        return api.OUTCOME_STOPPED, wanted.cause or api.CAUSE_MAX_DURATION
    if told in (api.CAUSE_UNSPECIFIED, api.CAUSE_PEER_LOST):
        # It ended by itself, whatever was said meanwhile.
        if _succeeded(wanted, stayed):
            return api.OUTCOME_SUCCEEDED, api.CAUSE_UNSPECIFIED
        gone = any(one.reason is not None and one.reason.code == "VANISHED" for one in stayed)
        return (api.OUTCOME_LOST if gone else api.OUTCOME_FAILED), api.CAUSE_UNSPECIFIED
    match told:
        case api.CAUSE_PREEMPTION | api.CAUSE_PLACEMENT:
            return api.OUTCOME_PREEMPTED, told
        case api.CAUSE_NODE_LOST:
            return api.OUTCOME_LOST, told
        case _:
            return api.OUTCOME_STOPPED, told


def _succeeded(wanted: Wanted, replicas: Sequence[Replica]) -> bool:
    rule = wanted.workload.success
    if rule.rule == api.Success.RULE_ROLE:
        return any(
            one.succeeded
            for one in replicas
            if one.subject.role == rule.role and not one.subject.rank
        )
    return all(one.succeeded for one in replicas)


# Volumes.


def bind(volume: Volume, said: api.Volume, since: Instant, node: str, now: datetime) -> list[Fact]:
    """A volume is there."""
    if volume.bound or volume.rejected is not None or volume.deleted:
        return []
    whose = api.Subject(
        project=said.project,
        owner=said.owner,
        owner_uid=said.owner_uid,
        kind=said.kind,
        user=said.user,
        labels=said.labels,
        sku=api.Sku(storage_bytes=said.size_bytes),
    )
    told = observation.witness(since, now)
    return [api.VolumeBound(uid=said.uid, subject=whose, node=node, witness=told)]


def reject_volume(
    volume: Volume, said: api.Volume, reason: api.Reason, now: datetime
) -> list[Fact]:
    """The cluster cannot give a volume."""
    if volume.bound or volume.rejected is not None or volume.deleted:
        return []
    return [
        api.VolumeRejected(
            uid=said.uid,
            owner_uid=said.owner_uid,
            reason=reason,
            project=said.project,
            witness=_now(now),
        )
    ]


def delete_volume(volume: Volume, said: api.Volume, at: Instant, now: datetime) -> list[Fact]:
    """A volume is gone."""
    if volume.deleted:
        return []
    return [
        api.VolumeDeleted(
            uid=said.uid,
            owner_uid=said.owner_uid,
            project=said.project,
            witness=observation.witness(at, now),
        )
    ]


# The cluster.


@dataclass(frozen=True, slots=True)
class Known:
    """What was stated of the cluster itself."""

    capabilities: api.Capabilities | None = None
    nodes: Mapping[str, api.Node] = field(default_factory=dict)
    through: datetime | None = None


def register(
    known: Known, uid: str, can: api.Capabilities, nodes: Sequence[api.Node], now: datetime
) -> list[Fact]:
    """State what has changed of what the cluster has and can honour."""
    said: list[Fact] = []
    if known.capabilities != can:
        said.append(api.ClusterRegistered(uid=uid, capabilities=can, witness=_now(now)))
    said += [
        api.NodeReported(cluster=uid, node=node, witness=_now(now))
        for node in nodes
        if known.nodes.get(node.node) != node
    ]
    there = {node.node for node in nodes}
    said += [
        api.NodeRemoved(cluster=uid, node=name, witness=_now(now))
        for name in known.nodes
        if name not in there
    ]
    return said


def attest(
    known: Known, uid: str, began: datetime, proofs: Mapping[str, datetime], slack: timedelta
) -> list[Fact]:
    """
    State up to when every open run was alive, and up to when everything has been said.

    `proofs` has the last proof of each run that is open after what a look at `began` told was
    committed; those that are older than the slack are named, and hold the watermark back. It never
    goes back, even if the clock does.
    """
    began = observation.floor(began)
    alive = {replica: proof for replica, proof in proofs.items() if proof >= began - slack}
    until = min([began, *alive.values()])
    through = min([began, *proofs.values()])
    said: list[Fact] = [
        api.ProofOfLife(
            cluster=uid,
            until_time=observation.stamp(until),
            except_replicas=sorted(proofs.keys() - alive.keys()),
        )
    ]
    if known.through is None or through > known.through:
        said.append(api.Watermark(cluster=uid, through_time=observation.stamp(through)))
    return said


def _now(now: datetime) -> api.Witness:
    return observation.witness(Instant(observation.floor(now)), now)
