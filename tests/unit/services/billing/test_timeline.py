"""The meter's rules by example: one replica, told of second by second."""

from __future__ import annotations

from collections.abc import Sequence

from fermion.api.billing import v1 as billing
from fermion.api.workload import v1 as api
from services.billing import metering
from services.billing.book import Book, book_of
from services.billing.metering import NO_RUN, Said, Segment, Why
from services.billing.rating import cost, quantities
from tests.unit.services.billing.life import CLUSTERS, NOON_MS, Fact, price_book, stamp, witness

RUNNING = billing.BILLABLE_STATE_RUNNING
BY_USER = billing.BILLABLE_STATE_DRAINING_BY_USER
BY_PLATFORM = billing.BILLABLE_STATE_DRAINING_BY_PLATFORM
HELD = billing.BILLABLE_STATE_HELD
BACKOFF = billing.BILLABLE_STATE_BACKOFF
UNREACHABLE = billing.BILLABLE_STATE_UNREACHABLE
STORAGE = billing.BILLABLE_STATE_STORAGE

BOOKS = (book_of(price_book()),)
# A GPU of 2.40 an hour.
SUBJECT = api.Subject(
    project="acme",
    owner="projects/acme/instances/lab",
    owner_uid="inst_1",
    attempt=1,
    labels={"team": "a"},
    sku=api.Sku(gpu_type="SIM-GPU", gpu_milli=1000),
)
# The first minute of an hour is far from its end.
TEN_PAST = NOON_MS + 600_000
CAP = 100_000

Told = tuple[billing.BillableState.ValueType, bool, float, float]


def at(seconds: float) -> int:
    return TEN_PAST + int(seconds * 1000)


def scheduled(seconds: float = 0, subject: api.Subject = SUBJECT) -> Fact:
    return api.ReplicaScheduled(uid="rep_1", subject=subject, witness=witness(at(seconds)))


def started(seconds: float, run: int = 0, subject: api.Subject = SUBJECT) -> Fact:
    return api.ReplicaStarted(uid="rep_1", subject=subject, run=run, witness=witness(at(seconds)))


def ended(seconds: float, run: int = 0) -> Fact:
    return api.ReplicaEnded(uid="rep_1", run=run, witness=witness(at(seconds)))


def draining(seconds: float, cause: api.Cause.ValueType = api.CAUSE_USER_STOP) -> Fact:
    return api.ReplicaDraining(uid="rep_1", cause=cause, witness=witness(at(seconds)))


def lost(seconds: float, n: int = 1) -> Fact:
    return api.ReplicaLost(uid="rep_1", n=n, witness=witness(at(seconds)))


def found(seconds: float, n: int = 1) -> Fact:
    return api.ReplicaFound(uid="rep_1", n=n, witness=witness(at(seconds)))


def released(seconds: float) -> Fact:
    return api.ReplicaReleased(uid="rep_1", witness=witness(at(seconds)))


def corrected(
    n: int = 1, run: int = 0, start: float | None = None, end: float | None = None
) -> Fact:
    return api.ReplicaRunCorrected(
        uid="rep_1",
        n=n,
        run=run,
        start_time=None if start is None else stamp(at(start)),
        end_time=None if end is None else stamp(at(end)),
        witness=witness(at(90)),
    )


def resized(seconds: float, sku: api.Sku, n: int = 1) -> Fact:
    return api.ReplicaResized(uid="rep_1", n=n, sku=sku, witness=witness(at(seconds)))


def relabelled(seconds: float, labels: dict[str, str], n: int = 1) -> Fact:
    return api.ReplicaRelabelled(uid="rep_1", n=n, labels=labels, witness=witness(at(seconds)))


def segments_of(
    *facts: Fact, books: Sequence[Book] = BOOKS, cap: float = CAP
) -> tuple[Segment, ...]:
    """The timeline of the one of whom they tell."""
    said = [Said(fact, CLUSTERS[0], place) for place, fact in enumerate(facts, 1)]
    (history,) = metering.fold(said).values()
    return metering.segments(history, books, at(cap), 0, at(CAP))


def told(*facts: Fact, cap: float = CAP) -> list[Told]:
    """States with their seconds, and whether they cost."""
    return [
        (one.state, one.billed, (one.start_ms - TEN_PAST) / 1000, (one.end_ms - TEN_PAST) / 1000)
        for one in segments_of(*facts, cap=cap)
    ]


def nanos(*facts: Fact, books: Sequence[Book] = BOOKS) -> int:
    """What it costs."""
    said = [Said(fact, CLUSTERS[0], place) for place, fact in enumerate(facts, 1)]
    (history,) = metering.fold(said).values()
    rows = quantities(history, segments_of(*facts, books=books))
    return cost(rows, books)


def test_a_run_costs_from_its_start_to_its_end_and_what_is_held_before_does_not() -> None:
    facts = scheduled(0), started(4), ended(64), released(64)
    assert told(*facts) == [(HELD, False, 0, 4), (RUNNING, True, 4, 64)]
    assert nanos(*facts) == 40_000_000


def test_ten_seconds_of_a_users_stop_are_free_and_no_more() -> None:
    facts = scheduled(0), started(0), draining(30), ended(60), released(60)
    assert told(*facts) == [
        (RUNNING, True, 0, 30),
        (BY_USER, False, 30, 40),
        (BY_USER, True, 40, 60),
    ]
    assert [one.why for one in segments_of(*facts)] == [
        Why.RUNNING,
        Why.DRAINING_FREE,
        Why.DRAINING,
    ]


def test_two_minutes_of_a_preemption_are_free_and_no_more() -> None:
    facts = scheduled(0), started(0), draining(30, api.CAUSE_PREEMPTION), ended(160), released(160)
    assert told(*facts) == [
        (RUNNING, True, 0, 30),
        (BY_PLATFORM, False, 30, 150),
        (BY_PLATFORM, True, 150, 160),
    ]


def test_a_run_that_starts_while_it_drains_has_its_own_free_time() -> None:
    facts = scheduled(0), draining(5), started(30), ended(45), released(45)
    assert told(*facts) == [
        (HELD, False, 0, 30),
        (BY_USER, False, 30, 40),
        (BY_USER, True, 40, 45),
    ]


def test_a_price_that_changes_cuts_what_runs_at_that_instant() -> None:
    dearer = book_of(price_book(2, at(30), gpu={"": 4_800_000_000}))
    facts = scheduled(0), started(0), ended(60), released(60)
    books = (*BOOKS, dearer)
    assert [(one.book, one.start_ms) for one in segments_of(*facts, books=books)] == [
        (1, at(0)),
        (2, at(30)),
    ]
    assert nanos(*facts, books=books) == 20_000_000 + 40_000_000


def test_whose_doing_a_draining_is_may_change_with_the_prices_but_not_since_when() -> None:
    kinder = book_of(price_book(2, at(35), causes=(api.CAUSE_USER_STOP,)))
    facts = scheduled(0), started(0), draining(20), ended(145), released(145)
    shown = segments_of(*facts, books=(*BOOKS, kinder))
    assert [(one.state, one.billed, one.start_ms - TEN_PAST) for one in shown] == [
        (RUNNING, True, 0),
        (BY_USER, False, 20_000),
        (BY_USER, True, 30_000),
        (BY_PLATFORM, False, 35_000),
        (BY_PLATFORM, True, 140_000),
    ]


def test_an_open_run_lasts_to_the_cap() -> None:
    assert told(scheduled(0), started(0), cap=7) == [(RUNNING, True, 0, 7)]


def test_what_lies_behind_the_cap_is_not_told() -> None:
    assert told(scheduled(0), started(4), ended(64), cap=3) == [(HELD, False, 0, 3)]


def test_between_runs_is_back_off_and_nothing_after_the_release() -> None:
    facts = scheduled(0), started(0), ended(10), started(15, run=1), ended(20, run=1)
    runs = [(RUNNING, True, 0, 10), (BACKOFF, False, 10, 15), (RUNNING, True, 15, 20)]
    assert told(*facts, cap=50) == [*runs, (BACKOFF, False, 20, 50)]
    assert told(*facts, released(30)) == [*runs, (BACKOFF, False, 20, 30)]


def test_what_never_started_was_held_until_it_was_released() -> None:
    assert told(scheduled(0), released(9)) == [(HELD, False, 0, 9)]


def test_a_run_of_no_length_is_shown() -> None:
    facts = scheduled(0), started(4), ended(4), released(4)
    assert told(*facts) == [(HELD, False, 0, 4), (RUNNING, True, 4, 4)]
    assert nanos(*facts) == 0


def test_an_end_before_the_start_is_the_start() -> None:
    facts = scheduled(0), started(4), ended(2), released(4)
    assert told(*facts) == [(HELD, False, 0, 4), (RUNNING, True, 4, 4)]


def test_while_nobody_knew_whether_it_lives_it_costs_nothing() -> None:
    facts = scheduled(0), started(0), lost(10), found(25), ended(30), released(30)
    assert told(*facts) == [
        (RUNNING, True, 0, 10),
        (UNREACHABLE, False, 10, 25),
        (RUNNING, True, 25, 30),
    ]
    assert told(*facts[:3], cap=40) == [(RUNNING, True, 0, 10), (UNREACHABLE, False, 10, 40)]


def test_unreachable_wins_over_draining() -> None:
    facts = scheduled(0), started(0), draining(5), lost(20), found(25), ended(30), released(30)
    assert told(*facts) == [
        (RUNNING, True, 0, 5),
        (BY_USER, False, 5, 15),
        (BY_USER, True, 15, 20),
        (UNREACHABLE, False, 20, 25),
        (BY_USER, True, 25, 30),
    ]


def test_where_gaps_overlap_the_first_says_since_when_nobody_knew() -> None:
    facts = scheduled(0), started(0), lost(10), found(30), lost(20, n=2), found(40, n=2)
    assert [
        (one.state, one.start_ms - TEN_PAST, one.begin_of_state_ms - TEN_PAST)
        for one in segments_of(*facts, cap=45)
    ] == [
        (RUNNING, 0, 0),
        (UNREACHABLE, 10_000, 10_000),
        (UNREACHABLE, 20_000, 10_000),
        (UNREACHABLE, 30_000, 20_000),
        (RUNNING, 40_000, 0),
    ]


def test_another_start_proves_life_as_well() -> None:
    facts = scheduled(0), started(0), lost(10), ended(12), started(15, run=1)
    runs = [
        (RUNNING, True, 0, 10),
        (UNREACHABLE, False, 10, 12),
        (BACKOFF, False, 12, 15),
        (RUNNING, True, 15, 40),
    ]
    assert told(*facts, cap=40) == runs
    # That it was found is told later, and takes nothing back.
    assert told(*facts, found(30), cap=40) == runs


def test_a_correction_of_the_start_leaves_a_corrected_end_as_it_is() -> None:
    facts = scheduled(0), started(5), ended(50), corrected(1, end=40), corrected(2, start=7)
    assert told(*facts, released(50)) == [
        (HELD, False, 0, 7),
        (RUNNING, True, 7, 40),
        (BACKOFF, False, 40, 50),
    ]
    assert told(*facts, corrected(3, end=60), released(50))[1:] == [(RUNNING, True, 7, 60)]


def test_the_correction_with_the_greatest_number_counts() -> None:
    facts = scheduled(0), started(0), ended(50), corrected(2, end=40), corrected(1, end=30)
    assert told(*facts, released(40)) == [(RUNNING, True, 0, 40)]


def test_a_run_lasts_at_most_until_the_next_one_starts() -> None:
    facts = scheduled(0), started(0), ended(10), started(20, run=1), ended(30, run=1), released(30)
    late = corrected(1, run=0, end=25)
    assert told(*facts, late) == [(RUNNING, True, 0, 20), (RUNNING, True, 20, 30)]
    early = corrected(1, run=1, start=4)
    assert told(*facts, early) == [(RUNNING, True, 0, 4), (RUNNING, True, 4, 30)]


def test_missed_runs_are_noted_and_cost_nothing() -> None:
    missed = api.ReplicaRunMissed(
        uid="rep_1",
        from_run=0,
        to_run=2,
        window_start_time=stamp(at(0)),
        window_end_time=stamp(at(20)),
        witness=witness(at(20)),
    )
    facts = scheduled(0), missed, started(20, run=3), ended(30, run=3), released(30)
    assert told(*facts) == [(HELD, False, 0, 20), (RUNNING, True, 20, 30)]


def test_other_resources_and_labels_count_from_when_they_are_said() -> None:
    facts = (
        scheduled(0),
        started(0),
        resized(10, api.Sku(gpu_type="SIM-GPU", gpu_milli=2000)),
        relabelled(20, {"team": "b"}),
        ended(30),
        released(30),
    )
    shown = [
        (one.start_ms - TEN_PAST, one.sku.gpu_milli, one.labels) for one in segments_of(*facts)
    ]
    assert shown == [
        (0, 1000, (("team", "a"),)),
        (10_000, 2000, (("team", "a"),)),
        (20_000, 2000, (("team", "b"),)),
    ]


def test_of_changes_at_one_moment_the_last_counts() -> None:
    facts = scheduled(0), started(0), relabelled(5, {"a": "1"}), relabelled(5, {"a": "2"}, n=2)
    assert [one.labels for one in segments_of(*facts, cap=9)] == [
        (("team", "a"),),
        (("a", "2"),),
    ]


def test_what_a_later_start_says_of_its_subject_is_not_what_was_before() -> None:
    other = api.Subject()
    other.CopyFrom(SUBJECT)
    other.labels["team"] = "b"
    facts = scheduled(0), started(0), ended(5), relabelled(7, {"team": "b"})
    shown = segments_of(*facts, started(9, run=1, subject=other), cap=12)
    assert [(one.state, dict(one.labels)["team"]) for one in shown] == [
        (RUNNING, "a"),
        (BACKOFF, "a"),
        (BACKOFF, "b"),
        (RUNNING, "b"),
    ]


def test_every_hour_is_cut() -> None:
    hours = [one.end_ms - NOON_MS for one in segments_of(scheduled(0), started(0), cap=3 * 3600)]
    assert hours == [3_600_000, 2 * 3_600_000, 3 * 3_600_000, 3 * 3_600_000 + 600_000]


def test_the_platforms_own_work_costs_nothing() -> None:
    own = api.Subject()
    own.CopyFrom(SUBJECT)
    own.purchase = api.PURCHASE_PLATFORM
    (one,) = segments_of(scheduled(0, own), started(0, subject=own), cap=5)
    assert (one.state, one.billed, one.why) == (RUNNING, False, Why.PLATFORM_WORK)


def test_a_volume_is_storage_while_it_is_there() -> None:
    subject = api.Subject(owner="o", sku=api.Sku(storage_bytes=2**30, memory_bytes=7))
    bound = api.VolumeBound(uid="vol_1", subject=subject, witness=witness(at(0)))
    deleted = api.VolumeDeleted(uid="vol_1", witness=witness(at(1800)))
    (one,) = segments_of(bound, deleted)
    assert (one.state, one.billed, one.run) == (STORAGE, True, NO_RUN)
    assert (one.start_ms, one.end_ms) == (at(0), at(1800))
    dear = (book_of(price_book(storage=10_000)),)
    assert nanos(bound, deleted, books=dear) == 5_000


def test_what_belongs_to_nobody_yet_is_not_told() -> None:
    assert told(ended(9)) == []


def test_an_end_that_is_told_before_its_start_waits_for_it() -> None:
    assert told(scheduled(0), ended(9), cap=20) == [(HELD, False, 0, 20)]


def test_a_segment_names_the_facts_that_bound_it() -> None:
    facts = (
        scheduled(0),
        started(5),
        relabelled(7, {}),
        lost(10),
        found(15),
        draining(20),
        ended(25),
        corrected(1, end=24),
        released(25),
    )
    assert [[moment.type for moment in one.moments] for one in segments_of(*facts)] == [
        ["ReplicaScheduled", "ReplicaStarted"],
        ["ReplicaStarted", "ReplicaLost", "ReplicaFound"],
        ["ReplicaStarted", "ReplicaRelabelled", "ReplicaLost", "ReplicaFound"],
        ["ReplicaStarted", "ReplicaRelabelled", "ReplicaLost", "ReplicaFound"],
        [
            "ReplicaStarted",
            "ReplicaRelabelled",
            "ReplicaLost",
            "ReplicaFound",
            "ReplicaDraining",
        ],
        [
            "ReplicaStarted",
            "ReplicaRelabelled",
            "ReplicaDraining",
            "ReplicaEnded",
            "ReplicaRunCorrected",
        ],
        ["ReplicaRelabelled", "ReplicaEnded", "ReplicaRunCorrected", "ReplicaReleased"],
    ]
