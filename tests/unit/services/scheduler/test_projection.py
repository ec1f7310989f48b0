"""Facts of the scheduler become writes of the books' rows."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from chassis.queries import Queries
from services.scheduler import projection
from tests.unit.services.history import History
from tests.unit.services.scheduler.test_aggregate import (
    DECISIONS,
    VOLUME_DECISIONS,
    Decide,
    DecideVolume,
    admit_volume,
    admitted,
    declare_volume,
    enqueue,
    explained,
    relabelled,
    release,
    release_volume,
    scaled,
    told,
    told_of_volume,
    withdraw,
    withdraw_volume,
)
from tests.unit.services.statements import misfits

QUERIES = Queries.load(Path(projection.__file__).with_name("queries.sql"))


def statements(history: History) -> list[str]:
    """Name the writes of a history."""
    return [w.statement for record in history.records for w in projection.project(record)]


def test_a_queued_workload_gets_a_row_and_a_refused_one_loses_it() -> None:
    assert statements(told(enqueue, relabelled("speech"), withdraw)) == ["enter", "enter", "leave"]


def test_another_reason_alone_changes_the_reason_alone() -> None:
    assert statements(told(enqueue, explained("QUOTA"))) == ["enter", "explain"]


def test_an_admitted_workload_keeps_its_row_until_its_hold_is_free() -> None:
    history = told(enqueue, admitted(2), scaled(1), withdraw, release)
    assert statements(history) == ["enter", "hold", "hold", "let_go", "leave"]


def test_a_volume_keeps_its_row_until_it_is_gone() -> None:
    history = told_of_volume(declare_volume, admit_volume, withdraw_volume, release_volume)
    assert statements(history) == [
        *("declare_volume", "declare_volume"),
        *("withdraw_volume", "drop_volume"),
    ]
    assert statements(told_of_volume(declare_volume, withdraw_volume))[-1] == "drop_volume"


@given(st.lists(DECISIONS))
def test_every_history_fits_its_statements(decisions: list[Decide]) -> None:
    records = told(*decisions).records
    assert misfits(QUERIES, [w for record in records for w in projection.project(record)]) == []


@given(st.lists(VOLUME_DECISIONS))
def test_every_history_of_a_volume_fits_its_statements(decisions: list[DecideVolume]) -> None:
    records = told_of_volume(*decisions).records
    assert misfits(QUERIES, [w for record in records for w in projection.project(record)]) == []
