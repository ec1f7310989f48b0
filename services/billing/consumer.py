"""What executors say, folded into one slot a fact; and which executors there are."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp

from chassis.envelope import Recorded
from chassis.journal import Write
from fermion.api.projects import v1 as projects
from fermion.api.workload import v1 as workload

METERED: Final = "billing/executor"
FORGET: Final = (
    *("forget_runs", "forget_gaps", "forget_changes", "forget_corrections", "forget_missed"),
    *("forget_replicas", "forget_volumes", "forget_finished", "forget_unproven", "forget_proof"),
)


class Enrolments:
    """Folds which clusters count: what is settled waits for the slowest of them."""

    name = "billing/projects"
    source = "projects"
    handles = frozenset(
        {
            projects.ClusterEnrolled.DESCRIPTOR.full_name,
            projects.ClusterRetired.DESCRIPTOR.full_name,
        }
    )

    def write(self, fact: Recorded) -> Sequence[Write]:
        """Choose the write of one fact."""
        match fact.message:
            case projects.ClusterEnrolled() as said:
                return [Write("enrol", said.cluster, (said.cluster, False))]
            case projects.ClusterRetired() as said:
                return [Write("enrol", said.cluster, (said.cluster, True))]
            case _:
                return []

    def clear(self, journal: str) -> Sequence[Write]:
        """Forget everything, before it is folded anew."""
        return [Write("unenrol", "unenrol", ())]


class Meter:
    """
    Folds the facts that time is metered by; each fills a slot of its own, whatever came before.

    Slots of one replica are written in the order of their facts only where they share a row.
    """

    name = METERED
    source = "executor"
    handles = frozenset(
        {
            workload.ReplicaScheduled.DESCRIPTOR.full_name,
            workload.ReplicaStarted.DESCRIPTOR.full_name,
            workload.ReplicaEnded.DESCRIPTOR.full_name,
            workload.ReplicaDraining.DESCRIPTOR.full_name,
            workload.ReplicaLost.DESCRIPTOR.full_name,
            workload.ReplicaFound.DESCRIPTOR.full_name,
            workload.ReplicaRunMissed.DESCRIPTOR.full_name,
            workload.ReplicaRunCorrected.DESCRIPTOR.full_name,
            workload.ReplicaResized.DESCRIPTOR.full_name,
            workload.ReplicaRelabelled.DESCRIPTOR.full_name,
            workload.ReplicaReleased.DESCRIPTOR.full_name,
            workload.VolumeBound.DESCRIPTOR.full_name,
            workload.VolumeDeleted.DESCRIPTOR.full_name,
            workload.WorkloadFinished.DESCRIPTOR.full_name,
            workload.ProofOfLife.DESCRIPTOR.full_name,
            workload.Watermark.DESCRIPTOR.full_name,
        }
    )

    def write(self, fact: Recorded) -> Sequence[Write]:
        """Choose the writes of one fact."""
        return writes(fact)

    def clear(self, journal: str) -> Sequence[Write]:
        """Forget what one cluster said, before it is folded anew."""
        cluster = journal.partition("/")[2]
        return [Write(name, "clear", (cluster,)) for name in FORGET]


def writes(fact: Recorded) -> Sequence[Write]:
    """Choose the writes of one fact of an executor's journal."""
    cluster, at = fact.journal.partition("/")[2], fact.position
    row: tuple[object, ...]
    match fact.message:
        case workload.ReplicaScheduled(uid=uid, subject=subject) as said:
            return [_replica(uid, cluster, at, subject, _seen(said.witness, at))]
        case workload.ReplicaStarted(uid=uid, subject=subject) as said:
            return [
                _replica(uid, cluster, at, subject, (None, None, None)),
                Write("start_run", f"{uid} {said.run}", (uid, said.run, *_seen(said.witness, at))),
            ]
        case workload.ReplicaEnded(uid=uid) as said:
            return [
                Write("end_run", f"{uid} {said.run}", (uid, said.run, *_seen(said.witness, at)))
            ]
        case workload.ReplicaDraining(uid=uid) as said:
            when, position, evidence = _seen(said.witness, at)
            row = (uid, cluster, said.project, when, said.cause, position, evidence)
            return [Write("drain_replica", uid, row)]
        case workload.ReplicaReleased(uid=uid) as said:
            row = (uid, cluster, said.project, *_seen(said.witness, at))
            return [Write("release_replica", uid, row)]
        case workload.ReplicaLost(uid=uid, n=n, witness=witness):
            return [Write("lose_replica", f"gap {uid} {n}", (uid, n, *_seen(witness, at)))]
        case workload.ReplicaFound(uid=uid, n=n, witness=witness):
            return [Write("find_replica", f"gap {uid} {n}", (uid, n, *_seen(witness, at)))]
        case workload.ReplicaResized(uid=uid, sku=sku) as said:
            row = (
                *(uid, True, said.n, *_seen(said.witness, at), None),
                *(sku.gpu_type, sku.gpu_milli, sku.cpu_milli, sku.memory_bytes),
            )
            return [Write("change_replica", f"size {uid} {said.n}", row)]
        case workload.ReplicaRelabelled(uid=uid) as said:
            row = (
                *(uid, False, said.n, *_seen(said.witness, at)),
                *(_labels(said.labels), None, None, None, None),
            )
            return [Write("change_replica", f"labels {uid} {said.n}", row)]
        case workload.ReplicaRunCorrected(uid=uid) as said:
            start = milliseconds(said.start_time) if said.HasField("start_time") else None
            end = milliseconds(said.end_time) if said.HasField("end_time") else None
            row = (uid, said.n, said.run, start, end, *_seen(said.witness, at))
            return [Write("correct_run", f"correction {uid} {said.n}", row)]
        case workload.ReplicaRunMissed(uid=uid) as said:
            row = (
                *(uid, said.from_run, said.to_run, milliseconds(said.window_start_time)),
                *(milliseconds(said.window_end_time), at, said.witness.evidence),
            )
            return [Write("miss_runs", f"missed {uid} {said.from_run}", row)]
        case workload.VolumeBound(uid=uid, subject=subject) as said:
            row = (
                *(uid, cluster, subject.project, subject.owner, subject.owner_uid, subject.kind),
                *(subject.user, subject.purchase, _labels(subject.labels)),
                *(subject.sku.storage_bytes, *_seen(said.witness, at)),
            )
            return [Write("bind_volume", uid, row)]
        case workload.VolumeDeleted(uid=uid) as said:
            row = (uid, cluster, said.project, *_seen(said.witness, at))
            return [Write("delete_volume", uid, row)]
        case workload.WorkloadFinished(uid=uid) as said:
            row = (uid, cluster, said.project, milliseconds(said.witness.occurred_time), at)
            return [Write("finish_workload", uid, row)]
        case workload.ProofOfLife() as said:
            row = (cluster, milliseconds(said.until_time), at, sorted(said.except_replicas))
            return [Write("prove", cluster, row)]
        case workload.Watermark() as said:
            return [Write("pass", cluster, (cluster, milliseconds(said.through_time)))]
        case _:
            return []


def milliseconds(time: Timestamp) -> int:
    """Whole milliseconds since 1970."""
    return time.seconds * 1000 + time.nanos // 1_000_000


def _replica(
    uid: str,
    cluster: str,
    position: int,
    subject: workload.Subject,
    scheduled: tuple[int | None, int | None, int | None],
) -> Write:
    limit = subject.max_cost if subject.HasField("max_cost") else None
    row = (
        *(uid, cluster, subject.project, subject.owner, subject.owner_uid, subject.kind),
        *(subject.user, subject.workload, subject.attempt, subject.role, subject.rank),
        *(subject.purchase, _labels(subject.labels), subject.sku.gpu_type, subject.sku.gpu_milli),
        *(subject.sku.cpu_milli, subject.sku.memory_bytes),
        *((limit.nanos, limit.currency) if limit else (None, None)),
        *(position, *scheduled),
    )
    return Write("schedule_replica", uid, row)


def _seen(witness: workload.Witness, position: int) -> tuple[int, int, int]:
    return milliseconds(witness.occurred_time), position, witness.evidence


def _labels(labels: Mapping[str, str]) -> str:
    return json.dumps(dict(labels), sort_keys=True)
