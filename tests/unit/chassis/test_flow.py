"""The pure parts of carrying facts: what is contiguous, what commits together, what goes at once."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import combinations, pairwise

from hypothesis import given
from hypothesis import strategies as st

from chassis.envelope import Meta, Recorded
from chassis.feed import contiguous
from chassis.readers import PARKED_STREAMS_MAX, Group, Parking, Reaction
from chassis.relay import portions
from fermion.api.journal import v1 as api

NAMES = st.sampled_from("abcdef")


def record(position: int, epoch: int = 1) -> api.Record:
    return api.Record(journal="other/0", position=position, epoch=epoch)


def fact(position: int) -> Recorded:
    return Recorded(
        "other/0",
        1,
        position,
        "acme",
        position,
        "instance/x",
        position,
        "T",
        "",
        b"",
        Meta("a"),
        datetime(2026, 1, 1, tzinfo=UTC),
        None,
    )


def reaction(streams: Sequence[str]) -> Reaction:
    return Reaction(tuple(streams), lambda *records: records, lambda state: [])


@given(st.integers(0, 20), st.lists(st.integers(1, 30)))
def test_what_is_taken_follows_one_by_one_whatever_comes(after: int, places: list[int]) -> None:
    taken, whole = contiguous(after, 1, [record(place) for place in places])
    got = [one.position for one in taken]
    assert got == list(range(after + 1, after + 1 + len(got)))
    # It stopped exactly where something further away than the next one came.
    expected, at = True, after
    for place in places:
        if place > at + 1:
            expected = False
            break
        at = max(at, place)
    assert (whole, after + len(got)) == (expected, at)


@given(st.integers(0, 20), st.integers(0, 10), st.integers(1, 10))
def test_what_was_seen_before_is_left_out(after: int, seen: int, fresh: int) -> None:
    places = range(max(1, after - seen), after + fresh + 1)
    taken, whole = contiguous(after, 1, [record(place) for place in places])
    assert whole
    assert [one.position for one in taken] == list(range(after + 1, after + fresh + 1))


@given(st.integers(0, 20), st.integers(0, 5), st.integers(1, 5))
def test_another_epoch_ends_it(after: int, old: int, new: int) -> None:
    records = [record(after + 1 + place, 1) for place in range(old)]
    records += [record(after + 1 + old + place, 2) for place in range(new)]
    taken, whole = contiguous(after, 1, records)
    assert (len(taken), whole) == (old, False)
    # Who has read nothing yet takes the first epoch that he sees, and no second one.
    taken, whole = contiguous(after, 0, records)
    assert (len(taken), whole) == ((old, False) if old else (new, True))


@given(
    st.lists(
        st.one_of(st.none(), st.lists(st.lists(NAMES, min_size=1, max_size=3), max_size=2)),
        max_size=30,
    )
)
def test_what_commits_together_does_not_need_to_see_each_other(
    drawn: list[list[list[str]] | None],
) -> None:
    groups = [Group()]
    for position, streams in enumerate(drawn, start=1):
        if streams is None:
            groups[-1].skip(fact(position))
            continue
        reactions = [reaction(one) for one in streams]
        if not groups[-1].takes(reactions):
            groups.append(Group())
        groups[-1].add(fact(position), reactions)
    order = [one.position for group in groups for one, _ in group.facts]
    assert order == list(range(1, len(drawn) + 1))
    for group in groups:
        for (_, before), (_, behind) in combinations(group.handled, 2):
            for one in before:
                for other in behind:
                    assert one.streams[0] not in other.streams
                    assert other.streams[0] not in one.streams
    filled = [group for group in groups if group.facts]
    for group in filled:
        assert group.last - group.after == len(group.handled) + group.passed_over
    for first, second in pairwise(filled):
        assert first.last == second.after


@given(st.lists(st.integers(0, 50)), st.integers(1, 100))
def test_parts_are_the_whole_in_order_and_none_is_too_large(sizes: list[int], most: int) -> None:
    parts = list(portions(sizes, int, most))
    assert [size for part in parts for size in part] == sizes
    for part in parts:
        assert part
        assert sum(part) <= most or len(part) == 1
    for before, behind in pairwise(parts):
        assert sum(before) + behind[0] > most


@given(st.integers(1, 500), st.integers(0, 500), st.integers(0, 200))
def test_few_failures_are_the_facts_fault_and_many_are_the_readers(
    page: int, failed: int, streams: int
) -> None:
    systemic = Parking(page, failed).systemic(streams)
    assert systemic == (streams > PARKED_STREAMS_MAX or (page >= 20 and 2 * failed > page))
