"""Turns each fact into the named writes of the queue's and the holds' rows, and rows back into views."""

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
from services.scheduler.aggregate import Entry, Fact


def project(record: Recorded) -> Sequence[Write]:
    """Choose the writes of one fact."""
    fact, at = cast(Fact, record.message), record.record_time
    match fact:
        case workload.WorkloadQueued():
            reason = _bytes(fact.reason)
            if not fact.HasField("workload"):
                return [
                    Write("explain", fact.uid, (fact.uid, reason)),
                    Write("say", f"entry {fact.uid}", (fact.uid, fact.reason.code, at)),
                ]
            said = fact.workload
            since = aggregate.since(said, at)
            labels = json.dumps(dict(said.labels), sort_keys=True)
            return [
                Write(
                    "enqueue",
                    fact.uid,
                    (
                        fact.uid,
                        said.project,
                        said.owner,
                        said.kind,
                        said.attempt,
                        said.user,
                        reason,
                        labels,
                        since,
                    ),
                ),
                Write(
                    "enter",
                    f"entry {fact.uid}",
                    (fact.uid, said.project, said.owner, _bytes(said), since, fact.reason.code, at),
                ),
            ]
        case workload.WorkloadAdmitted(workload=said):
            placed = aggregate.place_by_role(said, fact.replicas, fact.nodes)
            types = [group.resources.gpu_type for group in said.groups]
            return [
                Write("dequeue", said.uid, (said.uid,)),
                Write(
                    "hold",
                    f"entry {said.uid}",
                    (
                        said.uid,
                        _bytes(said),
                        fact.cluster,
                        json.dumps(dict(fact.replicas), sort_keys=True),
                        json.dumps(placed, sort_keys=True),
                        next(filter(None, types), ""),
                        at,
                    ),
                ),
            ]
        case workload.WorkloadRefused():
            return [
                Write("dequeue", fact.uid, (fact.uid,)),
                Write("leave", f"entry {fact.uid}", (fact.uid,)),
            ]
        case workload.WorkloadRevoked():
            return [Write("let_go", f"entry {fact.uid}", (fact.uid,))]
        case workload.HoldReleased():
            gone = "drop_volume" if fact.uid.startswith("vol_") else "leave"
            return [Write(gone, f"entry {fact.uid}", (fact.uid,))]
        case workload.VolumeQueued(volume=volume):
            return [_volume(volume, "")]
        case workload.VolumeAdmitted(volume=volume):
            return [_volume(volume, fact.cluster)]
        case workload.VolumeRevoked():
            return [Write("withdraw_volume", f"entry {fact.uid}", (fact.uid,))]
        case workload.VolumeRefused():
            return [Write("drop_volume", f"entry {fact.uid}", (fact.uid,))]
        case _:
            assert_never(fact)


def resource(row: Record) -> api.QueuedWorkload:
    """Show a row of `queue` as callers see it."""
    return aggregate.view(
        Entry(
            declared=workload.Workload(
                uid=row["workload_uid"],
                owner=row["owner"],
                kind=row["kind"],
                attempt=row["attempt"],
                user=row["user_uid"],
                labels=json.loads(row["labels"]),
            ),
            reason=workload.Reason.FromString(row["reason"]),
            queue_time=row["queue_time"],
        )
    )


def _volume(volume: workload.Volume, cluster: str) -> Write:
    return Write("declare_volume", f"entry {volume.uid}", (volume.uid, _bytes(volume), cluster))


def _bytes(message: Message) -> bytes:
    # Deterministic, because rows that were folded anew are compared byte by byte.
    return message.SerializeToString(deterministic=True)
