"""What operators are told of what does not go on by itself."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from services.executor.figures import Seen, seen
from services.executor.observation import Replica

NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)
SECOND = timedelta(seconds=1)


def ending(uid: str, deadline: datetime | None, *, released: bool = False) -> Replica:
    return Replica(uid=uid, deadline=deadline, released=released)


def test_a_replica_is_overdue_once_its_time_to_end_is_over() -> None:
    replicas = [ending("late", NOON - SECOND), ending("ends", NOON), ending("runs", None)]
    assert seen(None, replicas, 0, NOON) == Seen(overdue=1)
    assert seen(None, replicas, 0, NOON + SECOND).overdue == 2


def test_a_replica_that_is_gone_in_time_is_not_overdue() -> None:
    assert seen(None, [ending("gone", NOON - SECOND, released=True)], 0, NOON).overdue == 0


def test_a_record_is_held_since_it_was_found_first_and_until_it_is_let_go_of() -> None:
    first = seen(None, [ending("a", None, released=True)], 0, NOON)
    both = [ending("a", None, released=True), ending("b", None, released=True)]
    second = seen(first, both, 0, NOON + SECOND)
    assert second.held == {"a": NOON, "b": NOON + SECOND}
    third = seen(second, both[1:], 0, NOON + 2 * SECOND)
    assert third.held == {"b": NOON + SECOND}
    assert seen(third, [], 0, NOON).held == {}


def test_strangers_are_counted() -> None:
    assert seen(None, [], 2, NOON).strangers == 2
