"""Turns each fact into the named writes of its rows, and rows back into what callers see."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import assert_never, cast

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from chassis.envelope import Recorded
from chassis.journal import Write
from chassis.postgres import Record
from chassis.workloads import CRASH_LOOP_BACKOFF
from fermion.api.executor import v1 as shown
from fermion.api.workload import v1 as api
from services.executor.aggregate import Fact


def project(record: Recorded) -> Sequence[Write]:
    """Choose the writes of one fact."""
    fact = cast(Fact, record.message)
    match fact:
        case api.ReplicaScheduled(uid=uid, subject=subject):
            return _write(
                "add_replica",
                uid,
                subject.workload,
                subject.project,
                subject.owner,
                subject.owner_uid,
                subject.attempt,
                subject.role,
                subject.rank,
                fact.node,
                shown.REPLICA_STATE_PENDING,
                _bytes(subject.sku),
                _time(fact.witness.occurred_time),
            )
        case api.ReplicaPending():
            backoff = fact.reason.code == CRASH_LOOP_BACKOFF
            state = shown.REPLICA_STATE_BACKOFF if backoff else shown.REPLICA_STATE_PENDING
            return _write(
                "hold_replica", fact.uid, state, _bytes(fact.reason), shown.REPLICA_STATE_DRAINING
            )
        case api.ReplicaStarted():
            return _write(
                "start_replica",
                fact.uid,
                shown.REPLICA_STATE_RUNNING,
                fact.run,
                json.dumps(dict(fact.addresses), sort_keys=True),
                _bytes(fact.subject.sku),
                _time(fact.witness.occurred_time),
                shown.REPLICA_STATE_DRAINING,
            )
        case api.ReplicaReady():
            return _write("ready_replica", fact.uid, True, None)
        case api.ReplicaUnready():
            return _write("ready_replica", fact.uid, False, _reason(fact))
        case api.ReplicaEnded():
            return _write(
                "end_run",
                fact.uid,
                fact.exit,
                fact.signal,
                _reason(fact),
                _time(fact.witness.occurred_time),
            )
        case api.ReplicaDraining():
            return _write("drain_replica", fact.uid, shown.REPLICA_STATE_DRAINING)
        case api.ReplicaLost():
            return _write("lose_replica", fact.uid, True)
        case api.ReplicaFound():
            return _write("lose_replica", fact.uid, False)
        case api.ReplicaRunMissed():
            return _write("skip_runs", fact.uid, fact.to_run)
        case api.ReplicaRunCorrected():
            if not fact.HasField("end_time"):
                return []
            return _write("redate_run", fact.uid, fact.run, _time(fact.end_time))
        case api.ReplicaResized():
            return _write("resize_replica", fact.uid, _bytes(fact.sku))
        case api.ReplicaReleased():
            return _write("release_replica", fact.uid, shown.REPLICA_STATE_ENDED, _reason(fact))
        case api.WorkloadAccepted() | api.WorkloadRejected():
            return _write("begin_work", fact.uid)
        case api.WorkloadFinished():
            return _write("finish_work", fact.uid)
        case api.ClusterRegistered():
            return _write("register_cluster", fact.uid, _bytes(fact.capabilities))
        case api.Watermark():
            return _write("advance_cluster", fact.cluster, _time(fact.through_time))
        case api.NodeReported(cluster=cluster, node=node):
            body = _bytes(node)
            return [Write("set_node", f"{cluster} {node.node}", (cluster, node.node, body))]
        case api.NodeRemoved(cluster=cluster, node=name):
            return [Write("remove_node", f"{cluster} {name}", (cluster, name))]
        case (
            api.ReplicaRelabelled()
            | api.ProofOfLife()
            | api.VolumeBound()
            | api.VolumeRejected()
            | api.VolumeDeleted()
        ):
            return []
        case _:
            assert_never(fact)


def replica(row: Record) -> shown.Replica:
    """Show a row of `replica` as callers see it."""
    found = shown.Replica(
        uid=row["uid"],
        owner=row["owner"],
        workload_uid=row["workload_uid"],
        attempt=row["attempt"],
        role=row["role"],
        rank=row["rank"],
        state=shown.REPLICA_STATE_LOST if row["lost"] else row["state"],
        ready=row["ready"],
        reason=None if row["reason"] is None else api.Reason.FromString(row["reason"]),
        node=row["node"],
        run=max(0, row["run"]),
        exit_code=row["exit_code"],
        signal=row["signal"],
        addresses=json.loads(row["addresses"]) if row["end_time"] is None else {},
        sku=api.Sku.FromString(row["sku"]),
    )
    for moment, stamp in (
        (row["schedule_time"], found.schedule_time),
        (row["start_time"], found.start_time),
        (row["end_time"], found.end_time),
    ):
        if moment is not None:
            stamp.FromDatetime(moment)
    return found


def _write(statement: str, key: str, *arguments: object) -> list[Write]:
    return [Write(statement, key, (key, *arguments))]


def _bytes(message: Message) -> bytes:
    # Deterministic, because rows that were folded anew are compared byte by byte.
    return message.SerializeToString(deterministic=True)


def _reason(fact: api.ReplicaUnready | api.ReplicaEnded | api.ReplicaReleased) -> bytes | None:
    return _bytes(fact.reason) if fact.HasField("reason") else None


def _time(at: Timestamp) -> datetime:
    return at.ToDatetime(tzinfo=UTC)
