"""Turns each fact into the named writes of the books' rows, and rows back into what they were folded to."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import assert_never, cast

from google.protobuf.message import Message

from chassis.envelope import Recorded
from chassis.journal import Write
from chassis.postgres import Record
from fermion.api.scheduler import v1 as api
from fermion.api.workload import v1 as workload
from services.scheduler import aggregate
from services.scheduler.aggregate import Entry, Fact, Volume


def project(record: Recorded) -> Sequence[Write]:
    """Choose the write of one fact."""
    fact, version, at = cast(Fact, record.message), record.version, record.record_time
    match fact:
        case workload.WorkloadQueued():
            reason = _bytes(fact.reason)
            if not fact.HasField("workload"):
                return _write("explain", fact.uid, version, reason, at)
            said = fact.workload
            since = aggregate.since(said, at)
            return _write(
                "enter",
                fact.uid,
                said.project,
                said.owner,
                _bytes(said),
                version,
                reason,
                at,
                since,
            )
        case workload.WorkloadAdmitted(workload=said):
            return _write(
                "hold",
                said.uid,
                _bytes(said),
                version,
                aggregate.wants_more(said, fact.replicas),
                fact.cluster,
                json.dumps(dict(fact.replicas), sort_keys=True),
                list(fact.nodes),
                fact.hold.gpu_type,
                at,
            )
        case workload.WorkloadRevoked() | workload.WorkloadPreempted():
            return _write("let_go", fact.uid, version)
        case workload.WorkloadRefused():
            return _write("leave", fact.uid)
        case workload.HoldReleased():
            return _write("drop_volume" if aggregate.is_volume(fact.uid) else "leave", fact.uid)
        case workload.VolumeQueued(volume=volume):
            return _write("declare_volume", volume.uid, _bytes(volume), version, "")
        case workload.VolumeAdmitted(volume=volume):
            return _write("declare_volume", volume.uid, _bytes(volume), version, fact.cluster)
        case workload.VolumeRevoked():
            return _write("withdraw_volume", fact.uid, version)
        case workload.VolumeRefused():
            return _write("drop_volume", fact.uid)
        case _:
            assert_never(fact)


def entry(row: Record) -> Entry:
    """Read a row of `entry`: what its stream folds to."""
    reason = row["reason"]
    return Entry(
        declared=workload.Workload.FromString(row["workload"]),
        reason=None if reason is None else workload.Reason.FromString(reason),
        said_time=row["said_time"],
        queue_time=row["queue_time"],
        arrive_time=row["arrive_time"],
        cluster=row["cluster"],
        replicas=json.loads(row["replicas"]),
        nodes=tuple(row["nodes"]),
        gpu_type=row["gpu_type"],
        admit_time=row["admit_time"],
        revoked=row["revoked"],
    )


def volume(row: Record) -> Volume:
    """Read a row of `volume`: what its stream folds to."""
    return Volume(
        declared=workload.Volume.FromString(row["volume"]),
        cluster=row["cluster"],
        revoked=row["withdrawn"],
    )


def resource(row: Record) -> api.QueuedWorkload:
    """Show a row that waits as callers see it."""
    return aggregate.view(entry(row))


def _write(statement: str, uid: str, *arguments: object) -> list[Write]:
    return [Write(statement, uid, (uid, *arguments))]


def _bytes(message: Message) -> bytes:
    # Deterministic, because rows that were folded anew are compared byte by byte.
    return message.SerializeToString(deterministic=True)
