"""The meter's invariants on random lives, and its rules by example."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise

from google.protobuf.message import Message
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fermion.api.billing import v1 as billing
from fermion.api.workload import v1 as api
from services.billing import metering
from services.billing.book import Book, book_of
from services.billing.metering import NO_RUN, History, Said, Segment, Why
from services.billing.rating import DENOMINATOR, exact, quantities
from tests.unit.services.billing import grid
from tests.unit.services.billing.life import (
    LATE_MS,
    NOON_MS,
    START_MS,
    TABLE,
    Life,
    histories,
    occurred_ms,
    price_book,
    stamp,
    witness,
)

RUNNING = billing.BILLABLE_STATE_RUNNING
BY_USER = billing.BILLABLE_STATE_DRAINING_BY_USER
BY_PLATFORM = billing.BILLABLE_STATE_DRAINING_BY_PLATFORM
HELD = billing.BILLABLE_STATE_HELD
BACKOFF = billing.BILLABLE_STATE_BACKOFF
UNREACHABLE = billing.BILLABLE_STATE_UNREACHABLE
STORAGE = billing.BILLABLE_STATE_STORAGE
COMPUTE = (RUNNING, BY_USER, BY_PLATFORM, UNREACHABLE)
BEFORE = START_MS - 100

periods = st.tuples(st.integers(BEFORE, LATE_MS), st.integers(BEFORE, LATE_MS)).map(sorted)


def all_segments(
    life: Life, cap_ms: int = LATE_MS, start_ms: int = BEFORE, end_ms: int = LATE_MS
) -> dict[str, tuple[Segment, ...]]:
    """Segments of everything in a life, by uid."""
    return {
        uid: metering.segments(history, life.books, cap_ms, start_ms, end_ms)
        for uid, history in metering.fold(life.said).items()
    }


def cost(
    said: Iterable[Said], books: Sequence[Book], cap_ms: int, start_ms: int = BEFORE
) -> Fraction:
    """What it costs exactly, in billionths."""
    rows = (
        row
        for history in metering.fold(said).values()
        for row in quantities(history, metering.segments(history, books, cap_ms, start_ms, LATE_MS))
    )
    return Fraction(exact(rows, books), DENOMINATOR)


def bare(segments: Iterable[Segment]) -> list[Segment]:
    """Segments without the facts behind them."""
    return [replace(one, moments=()) for one in segments]


def without_corrections(said: Iterable[Said]) -> tuple[Said, ...]:
    return tuple(one for one in said if not isinstance(one.message, api.ReplicaRunCorrected))


# --- the fold


@given(histories(), st.data())
def test_the_order_of_facts_makes_no_difference(life: Life, data: st.DataObject) -> None:
    shuffled = data.draw(st.permutations(life.said))
    assert metering.fold(shuffled) == metering.fold(life.said)


@given(histories(), st.data())
def test_facts_that_are_told_again_make_no_difference(life: Life, data: st.DataObject) -> None:
    again = data.draw(st.lists(st.sampled_from(life.said), max_size=30))
    everything = data.draw(st.permutations([*life.said, *again]))
    assert metering.fold(everything) == metering.fold(life.said)


@given(histories(), st.data())
def test_late_facts_come_to_the_same_in_any_batches(life: Life, data: st.DataObject) -> None:
    shuffled = data.draw(st.permutations(life.said))
    known: dict[str, History] = {}
    while shuffled:
        size = data.draw(st.integers(1, len(shuffled)))
        batch, shuffled = shuffled[:size], shuffled[size:]
        for one in batch:
            uid = one.message.uid
            known[uid] = metering.evolve(known.get(uid), one)
    assert known == metering.fold(life.said)


@given(histories(), st.integers(0, 60))
def test_as_of_a_position_there_is_what_was_folded_up_to_it(life: Life, position: int) -> None:
    before = metering.fold(one for one in life.said if one.position <= position)
    for uid, history in metering.fold(life.said).items():
        known = metering.asof(history, position)
        cluster = life.of(uid)[0].cluster
        blank = type(history)(uid, cluster)
        assert known == before.get(uid, blank)


# --- segments


@given(histories(), periods)
def test_segments_lie_one_behind_the_other(life: Life, period: list[int]) -> None:
    start, end = period
    for segments in all_segments(life, end, start, end).values():
        for one in segments:
            assert start <= one.start_ms <= one.end_ms <= end
        for one, following in pairwise(segments):
            assert one.end_ms <= following.start_ms


@given(histories(), st.integers(BEFORE, LATE_MS))
def test_every_moment_is_in_the_segment_that_tells_of_it(life: Life, cap: int) -> None:
    for uid, segments in all_segments(life, cap).items():
        subject = grid.Subject(life.of(uid))
        for t in range(START_MS - 20, min(cap, START_MS + 160)):
            covering = [one for one in segments if one.start_ms <= t < one.end_ms]
            book = grid.book_at(life.price_books, t)
            told = subject.state(t, list(book.platform_causes))
            if told is None:
                assert covering == []
                continue
            (one,) = covering
            assert (one.state, one.begin_of_state_ms) == told
            assert one.book == book.number
            assert dict(one.labels) == subject.labels_at(t)
            assert one.sku.cpu_milli == subject.sku(t).cpu_milli or one.state == STORAGE


@given(histories())
def test_the_cost_is_the_integral_of_what_runs_over_time(life: Life) -> None:
    end = START_MS + 160
    assert cost(life.said, life.books, end) == grid.cost(life, START_MS - 20, end)


@given(histories(), periods, st.integers(BEFORE, LATE_MS))
def test_the_parts_of_a_period_sum_to_the_whole(life: Life, period: list[int], cut: int) -> None:
    start, end = period
    cut = min(max(cut, start), end)
    for uid, whole in all_segments(life, LATE_MS, start, end).items():
        first = all_segments(life, LATE_MS, start, cut)[uid]
        second = all_segments(life, LATE_MS, cut, end)[uid]
        assert sum(length(one) for one in whole) == sum(length(one) for one in first + second)
        history = metering.fold(life.said)[uid]
        parts = exact(quantities(history, first + second), life.books)
        assert parts == exact(quantities(history, whole), life.books)


@given(histories(), st.integers(BEFORE, LATE_MS))
def test_a_new_price_book_that_says_the_same_only_cuts(life: Life, at: int) -> None:
    last = life.price_books[-1]
    assume(at > last.effective_time.ToMilliseconds())
    same = billing.PriceBook()
    same.CopyFrom(last)
    same.number, same.version = last.number + 1, "again"
    same.effective_time.CopyFrom(stamp(at))
    books = (*life.books, book_of(same))
    assert cost(life.said, books, LATE_MS) == cost(life.said, life.books, LATE_MS)


@given(histories())
def test_no_compute_is_told_of_outside_a_run(life: Life) -> None:
    for uid, segments in all_segments(life).items():
        subject = grid.Subject(life.of(uid))
        for one in segments:
            if one.state not in COMPUTE:
                assert one.run == NO_RUN
                continue
            assert subject.starts[one.run] <= one.start_ms
            last = max(subject.starts[one.run], subject.ends.get(one.run, LATE_MS))
            assert one.end_ms <= last


@given(histories(), st.data())
def test_what_is_settled_never_falls_while_no_correction_arrives(
    life: Life, data: st.DataObject
) -> None:
    cluster = life.said[0].cluster
    said = [one for one in life.said if one.cluster == cluster]
    known = data.draw(st.integers(0, len(said)))
    first, then = said[:known], without_corrections(said[known:])
    # All that is said later happened later than the first watermark: that is what one says.
    through = min((occurred_ms(one.message) for one in then), default=LATE_MS)
    one = data.draw(st.integers(BEFORE, through))
    other = data.draw(st.integers(one, LATE_MS))
    assert cost(first, life.books, one) <= cost([*first, *then], life.books, other)
    books = [book for book in life.books if book.number == 1 or book.effective_ms < one]
    for uid, history in metering.fold(first).items():
        later = metering.fold([*first, *then])[uid]
        before = metering.segments(history, books, one, BEFORE, LATE_MS)
        assert bare(before) == bare(metering.segments(later, life.books, one, BEFORE, LATE_MS))


@given(histories(), st.data())
def test_a_run_that_is_corrected_to_nothing_costs_what_there_is_without_it(
    life: Life, data: st.DataObject
) -> None:
    started = [one for one in life.said if isinstance(one.message, api.ReplicaStarted)]
    assume(started)
    chosen = data.draw(st.sampled_from(started))
    assert isinstance(chosen.message, api.ReplicaStarted)
    uid, run = chosen.message.uid, chosen.message.run
    said = life.of(uid)
    subject = grid.Subject(said)
    at = subject.starts[run]
    # A start ends what ran before; only what had ended by itself is the same without it.
    assume(
        all(
            at < start or subject.ends.get(other, LATE_MS) <= at
            for other, start in subject.starts.items()
            if other != run
        )
    )
    void = api.ReplicaRunCorrected(
        uid=uid, run=run, n=99, start_time=stamp(at), end_time=stamp(at), witness=witness(at)
    )
    # Time between runs has another name where there is one run less; it has to cost the same.
    books = [book_of(price_book())]
    voided = [*said, Said(void, chosen.cluster, 999)]
    without = [one for one in said if getattr(one.message, "run", None) != run]
    assert cost(voided, books, LATE_MS) == cost(without, books, LATE_MS)


@given(histories())
def test_a_correction_that_is_taken_back_changes_nothing(life: Life) -> None:
    plain = without_corrections(life.said)
    subjects = {
        uid: grid.Subject(one for one in plain if one.message.uid == uid) for uid in life.uids
    }
    said = list(life.said)
    for place, one in enumerate(life.said):
        fact = one.message
        if not isinstance(fact, api.ReplicaRunCorrected):
            continue
        first = subjects[fact.uid]
        assume(fact.run in first.ends)
        back = api.ReplicaRunCorrected(
            uid=fact.uid,
            run=fact.run,
            n=100 + place,
            start_time=stamp(first.starts[fact.run]),
            end_time=stamp(first.ends[fact.run]),
            witness=fact.witness,
        )
        said.append(Said(back, one.cluster, 1000 + place))
    assert cost(said, life.books, LATE_MS) == cost(plain, life.books, LATE_MS)


@given(histories(), periods)
def test_no_time_is_negative_and_none_is_without_facts_behind_it(
    life: Life, period: list[int]
) -> None:
    start, end = period
    for uid, segments in all_segments(life, end, start, end).items():
        told = {one.position for one in life.of(uid)}
        for one in segments:
            assert length(one) >= 0
            assert one.moments
            assert {moment.position for moment in one.moments} <= told
            assert list(one.moments) == sorted(one.moments, key=lambda moment: moment.position)


@given(histories())
def test_a_segment_tells_why_it_costs_or_does_not(life: Life) -> None:
    free = (Why.PLATFORM_WORK, Why.NOT_BILLED, Why.FREE_AT_FIRST, Why.DRAINING_FREE)
    for segments in all_segments(life).values():
        for one in segments:
            if one.billed:
                assert one.why not in free
            elif one.state in (RUNNING, BY_USER, BY_PLATFORM, STORAGE):
                assert one.why in free


def length(segment: Segment) -> int:
    return segment.end_ms - segment.start_ms


# --- what the lives are like


def features(life: Life) -> set[str]:
    """What happens in a life that the meter has a rule for."""
    found = {one.message.DESCRIPTOR.name for one in life.said}
    for uid, segments in all_segments(life).items():
        subject = grid.Subject(life.of(uid))
        found |= {billing.BillableState.Name(one.state) for one in segments}
        found |= {one.why.value for one in segments}
        if any(length(one) == 0 for one in segments):
            found.add("a run of no length")
        if any(one.end_ms == LATE_MS and one.run != NO_RUN for one in segments):
            found.add("an open run")
        if subject.starts.keys() - subject.ends.keys():
            found.add("a run without an end")
        for one, following in pairwise(segments):
            if one.end_ms == following.start_ms and one.run == following.run != NO_RUN:
                if one.book != following.book:
                    found.add("a price change within a run")
                if one.labels != following.labels:
                    found.add("other labels within a run")
                if one.sku != following.sku:
                    found.add("other resources within a run")
                if following.start_ms == NOON_MS:
                    found.add("an hour within a run")
                if one.state == UNREACHABLE and following.state != UNREACHABLE:
                    found.add("found within a run")
                if {one.state, following.state} == {BY_USER, BY_PLATFORM}:
                    found.add("the platform's doing by another price book")
            if one.state == BACKOFF and following.run > 0:
                found.add("a restart")
        spans = sorted(
            (subject.starts[run], subject.ends.get(run, LATE_MS)) for run in subject.starts
        )
        if any(end > start for (_, end), (start, _) in pairwise(spans)):
            found.add("runs that overlap")
        if any(end < start for start, end in spans):
            found.add("an end before its start")
    return found


def test_the_lives_have_in_them_all_that_the_meter_has_a_rule_for() -> None:
    seen: Counter[str] = Counter()

    @settings(max_examples=400, derandomize=True, database=None)
    @given(histories())
    def look(life: Life) -> None:
        seen.update(features(life))

    look()
    wanted = {
        *(billing.BillableState.Name(state) for state in TABLE),
        *(why.value for why in Why),
        *(kind.DESCRIPTOR.name for kind in FACTS),
        "a run of no length",
        "an open run",
        "a run without an end",
        "a price change within a run",
        "other labels within a run",
        "other resources within a run",
        "an hour within a run",
        "found within a run",
        "the platform's doing by another price book",
        "a restart",
        "runs that overlap",
        "an end before its start",
    }
    assert {name: seen[name] for name in wanted if seen[name] < 5} == {}


FACTS: tuple[type[Message], ...] = (
    api.ReplicaScheduled,
    api.ReplicaStarted,
    api.ReplicaEnded,
    api.ReplicaDraining,
    api.ReplicaLost,
    api.ReplicaFound,
    api.ReplicaRunMissed,
    api.ReplicaRunCorrected,
    api.ReplicaResized,
    api.ReplicaRelabelled,
    api.ReplicaReleased,
    api.VolumeBound,
    api.VolumeDeleted,
)
