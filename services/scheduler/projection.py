"""Turns each fact into the named writes of the queue's rows, and rows back into what callers see."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC
from typing import assert_never, cast

from chassis.envelope import Recorded
from chassis.journal import Write
from chassis.postgres import Record
from fermion.api.scheduler import v1 as api
from fermion.api.workload import v1 as workload
from services.scheduler import aggregate
from services.scheduler.aggregate import Entry, Fact


def project(record: Recorded) -> Sequence[Write]:
    """Choose the write of one fact."""
    fact = cast(Fact, record.message)
    match fact:
        case workload.WorkloadQueued():
            # Deterministic, because rows that were folded anew are compared byte by byte.
            reason = fact.reason.SerializeToString(deterministic=True)
            if not fact.HasField("workload"):
                return [Write("explain", fact.uid, (fact.uid, reason))]
            declared, since = fact.workload, record.record_time
            if declared.HasField("queued_from_time"):
                since = declared.queued_from_time.ToDatetime(tzinfo=UTC)
            return [
                Write(
                    "enqueue",
                    fact.uid,
                    (
                        fact.uid,
                        declared.project,
                        declared.owner,
                        declared.kind,
                        declared.attempt,
                        declared.user,
                        reason,
                        json.dumps(dict(declared.labels), sort_keys=True),
                        since,
                    ),
                )
            ]
        case workload.WorkloadRefused():
            return [Write("dequeue", fact.uid, (fact.uid,))]
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
