"""Facts of the scheduler become writes of the queue."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from chassis.queries import Queries
from fermion.api.workload import v1 as workload
from services.scheduler import projection
from tests.unit.services.history import History
from tests.unit.services.scheduler.test_aggregate import (
    DECISIONS,
    Decide,
    enqueue,
    relabelled,
    told,
    withdraw,
)
from tests.unit.services.statements import misfits

QUERIES = Queries.load(Path(projection.__file__).with_name("queries.sql"))


def statements(history: History) -> list[str]:
    """Name the writes of a history."""
    return [w.statement for record in history.records for w in projection.project(record)]


def test_a_queued_workload_gets_a_row_and_a_refused_one_loses_it() -> None:
    assert statements(told(enqueue, relabelled("speech"), withdraw)) == [
        *("enqueue", "enter"),
        *("enqueue", "enter"),
        *("dequeue", "leave"),
    ]


def test_another_reason_alone_changes_the_reason_alone() -> None:
    history = told(enqueue)
    reason = workload.Reason(code="QUOTA")
    history.say([workload.WorkloadQueued(uid="wkl_1", project="acme", reason=reason)])
    assert statements(history) == ["enqueue", "enter", "explain", "say"]


@given(st.lists(DECISIONS))
def test_every_history_fits_its_statements(decisions: list[Decide]) -> None:
    records = told(*decisions).records
    assert misfits(QUERIES, [w for record in records for w in projection.project(record)]) == []
