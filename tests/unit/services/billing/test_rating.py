"""From quantities to money: nothing is lost, and lines sum to what is owed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from fermion.api.billing import v1 as billing
from fermion.api.workload import v1 as api
from services.billing import metering, rating
from services.billing.book import book_of
from services.billing.metering import Sku
from services.billing.rating import DENOMINATOR, Key, Line, Quantity, half_even
from tests.unit.services.billing.life import LATE_MS, START_MS, Life, histories, price_book

HOUR = 3_600_000
GIB = 2**30
RUNNING = billing.BILLABLE_STATE_RUNNING
HELD = billing.BILLABLE_STATE_HELD
LAB = Key("projects/acme/instances/lab", "inst_1", 1, api.KIND_INSTANCE, "user_1", ())

# 2.40 for a GPU and hour, 0.04 for a core, 0.005 for a GiB.
book = book_of(
    price_book(gpu={"": 2_000_000_000, "SIM-GPU": 2_400_000_000}, cpu=40_000_000, memory=5_000_000)
)


def quantity(ms: int = HOUR, key: Key = LAB, billed: bool = True, **more: object) -> Quantity:
    """So long in RUNNING, with nothing allocated unless it is said."""
    found = Quantity(key, RUNNING, billed, 1, "", ms, 0, 0, 0, 0, START_MS, START_MS + ms)
    return replace(found, **more)  # type: ignore[arg-type]


def rows_of(life: Life, project: str = "") -> list[Quantity]:
    """Quantities of a life, or of one project in it, piece by piece."""
    return [
        row
        for history in metering.fold(life.said).values()
        if history.subject is not None and project in ("", history.subject.project)
        for row in rating.quantities(
            history, metering.segments(history, life.books, LATE_MS, START_MS - 100, LATE_MS)
        )
    ]


def summed(rows: Iterable[Quantity]) -> list[Quantity]:
    """As SQL sums them: by all that makes a line another one."""
    groups: dict[tuple[object, ...], list[Quantity]] = defaultdict(list)
    for row in rows:
        groups[row.key, row.state, row.billed, row.book, row.gpu_type].append(row)
    return [
        replace(
            group[0],
            ms=sum(row.ms for row in group),
            gpu_milli_ms=sum(row.gpu_milli_ms for row in group),
            cpu_milli_ms=sum(row.cpu_milli_ms for row in group),
            memory_byte_ms=sum(row.memory_byte_ms for row in group),
            storage_byte_ms=sum(row.storage_byte_ms for row in group),
            start_ms=min(row.start_ms for row in group),
            end_ms=max(row.end_ms for row in group),
        )
        for group in groups.values()
    ]


def statement(lines: Sequence[Line]) -> bytes:
    """The bytes of a bill's lines."""
    shown = billing.Statement(lines=[rating.view(line) for line in lines])
    return shown.SerializeToString(deterministic=True)


# --- arithmetic


@given(st.integers(-(10**6), 10**6), st.integers(1, 1000))
def test_a_quotient_is_rounded_to_the_nearest_and_in_the_middle_to_the_even_one(
    numerator: int, denominator: int
) -> None:
    assert half_even(numerator, denominator) == round(Fraction(numerator, denominator))


def test_the_lowest_common_denominator_keeps_every_price_whole() -> None:
    thousandths = Fraction(1, 1000 * HOUR) * DENOMINATOR
    byte = Fraction(1, GIB * HOUR) * DENOMINATOR
    assert thousandths == 2**27
    assert byte == 125


def test_an_hour_costs_what_the_price_book_says() -> None:
    assert rating.rate_per_hour(Sku("SIM-GPU", 1000), book) == 2_400_000_000
    assert rating.rate_per_hour(Sku("", 8000), book) == 16_000_000_000
    assert rating.rate_per_hour(Sku("NEW-GPU", 500), book) == 1_000_000_000
    assert rating.rate_per_hour(Sku("", 0, 16_000, 64 * GIB), book) == 960_000_000
    assert rating.rate_per_hour(Sku(), book) == 0


def test_an_amount_may_be_larger_than_64_bits_on_its_way() -> None:
    month = 31 * 24 * HOUR
    row = quantity(month, gpu_type="SIM-GPU", gpu_milli_ms=8000 * month)
    (line,) = rating.lines("acme", [row], [book])
    assert line.amount_nanos == 31 * 24 * 8 * 2_400_000_000
    assert line.numerator > 2**64


# --- lines


@given(histories())
def test_the_lines_sum_to_the_exact_cost_rounded_once(life: Life) -> None:
    rows = rows_of(life)
    lines = rating.lines("acme", rows, life.books)
    assert sum(line.numerator for line in lines) == rating.exact(rows, life.books)
    assert sum(line.amount_nanos for line in lines) == rating.cost(rows, life.books)
    for line in lines:
        assert line.amount_nanos >= 0
        assert abs(Fraction(line.numerator, DENOMINATOR) - line.amount_nanos) < 1


@given(histories(), st.data())
def test_quantities_that_were_summed_before_make_the_same_lines(
    life: Life, data: st.DataObject
) -> None:
    rows = rows_of(life)
    lines = rating.lines("acme", rows, life.books)
    assert rating.lines("acme", summed(rows), life.books) == lines
    shuffled = data.draw(st.permutations(rows))
    half = len(rows) // 2
    halves = [*summed(shuffled[:half]), *summed(shuffled[half:])]
    assert rating.lines("acme", halves, life.books) == lines


@given(histories(), st.data())
def test_a_bill_is_computed_again_to_the_same_bytes(life: Life, data: st.DataObject) -> None:
    lines = statement(rating.lines("acme", rows_of(life), life.books))
    again = data.draw(st.permutations([*life.said, *life.said[:5]]))
    replayed = Life(tuple(again), life.price_books)
    assert statement(rating.lines("acme", rows_of(replayed), life.books)) == lines


@given(histories(), st.integers(0, 60))
def test_a_bill_of_a_cut_is_that_of_the_facts_up_to_it(life: Life, position: int) -> None:
    before = Life(tuple(one for one in life.said if one.position <= position), life.price_books)
    rows = [
        row
        for history in metering.fold(life.said).values()
        for known in (metering.asof(history, position),)
        for row in rating.quantities(
            known, metering.segments(known, life.books, LATE_MS, START_MS - 100, LATE_MS)
        )
    ]
    expected = rating.lines("acme", rows_of(before), life.books)
    assert rating.lines("acme", rows, life.books) == expected


@given(histories())
def test_what_all_cost_is_what_projects_owners_and_labels_cost_together(life: Life) -> None:
    rows = rows_of(life)
    whole = rating.exact(rows, life.books)
    projects = ("acme", "umbra")
    assert whole == sum(rating.exact(rows_of(life, one), life.books) for one in projects)
    by_line = [
        line for one in projects for line in rating.lines(one, rows_of(life, one), life.books)
    ]
    assert whole == sum(line.numerator for line in by_line)
    for label in ("team", "run"):
        by_value: dict[str, list[Quantity]] = defaultdict(list)
        for row in rows:
            by_value[dict(row.key.labels).get(label, "")].append(row)
        assert whole == sum(rating.exact(some, life.books) for some in by_value.values())


@given(histories())
def test_every_line_is_one_of_its_own(life: Life) -> None:
    lines = [
        *rating.lines("acme", rows_of(life), life.books),
        *rating.lines("umbra", rows_of(life), life.books),
    ]
    assert len({line.id for line in lines}) == len(lines)
    assert all(line.id.startswith("lin_") for line in lines)


@given(histories())
def test_all_time_is_within_some_line_of_its_own(life: Life) -> None:
    lines = rating.lines("acme", rows_of(life), life.books)
    for row in rows_of(life):
        assert any(
            line.start_ms <= row.start_ms
            and row.end_ms <= line.end_ms
            and line.ms >= row.ms
            and (line.key, line.state, line.book) == (row.key, row.state, row.book)
            for line in lines
        )


def test_each_dimension_and_each_model_has_a_line() -> None:
    rows = [
        quantity(gpu_type="SIM-GPU", gpu_milli_ms=1000 * HOUR, cpu_milli_ms=500 * HOUR),
        quantity(gpu_type="H100-80GB", gpu_milli_ms=2000 * HOUR, memory_byte_ms=GIB * HOUR),
    ]
    lines = rating.lines("acme", rows, [book])
    assert [(line.dimension, line.gpu_type, line.ms, line.amount_nanos) for line in lines] == [
        (billing.DIMENSION_GPU, "H100-80GB", HOUR, 4_000_000_000),
        (billing.DIMENSION_GPU, "SIM-GPU", HOUR, 2_400_000_000),
        (billing.DIMENSION_CPU, "", 2 * HOUR, 20_000_000),
        (billing.DIMENSION_MEMORY, "", 2 * HOUR, 5_000_000),
    ]


def test_free_time_is_one_line_that_costs_nothing() -> None:
    rows = [
        quantity(billed=False, state=HELD, gpu_type="SIM-GPU", gpu_milli_ms=1000 * HOUR),
        quantity(billed=False, state=HELD, cpu_milli_ms=1000 * HOUR),
    ]
    (line,) = rating.lines("acme", rows, [book])
    assert (line.dimension, line.ms, line.quantity, line.amount_nanos) == (0, 2 * HOUR, 0, 0)


def test_a_run_of_no_length_is_a_line_that_costs_nothing() -> None:
    (line,) = rating.lines("acme", [quantity(ms=0, gpu_type="SIM-GPU")], [book])
    assert (line.state, line.dimension, line.ms, line.amount_nanos) == (RUNNING, 0, 0, 0)


def test_the_billionths_that_rounding_leaves_go_to_the_largest_remainders() -> None:
    # A third of a billionth each, over three owners: one of them pays for all.
    third = book_of(price_book(cpu=1200))
    keys = [replace(LAB, owner_uid=f"inst_{n}") for n in range(3)]
    rows = [quantity(1, key, cpu_milli_ms=1000) for key in keys]
    lines = rating.lines("acme", rows, [third])
    assert {Fraction(line.numerator, DENOMINATOR) for line in lines} == {Fraction(1, 3000)}
    rows = [replace(row, cpu_milli_ms=1_000_000) for row in rows]
    lines = rating.lines("acme", rows, [third])
    assert {Fraction(line.numerator, DENOMINATOR) for line in lines} == {Fraction(1, 3)}
    assert sorted(line.amount_nanos for line in lines) == [0, 0, 1]
    # Equal remainders: the least id.
    assert min(lines, key=lambda line: line.id).amount_nanos == 1
    # Two thirds each: rounded up, they would be one too many.
    rows = [replace(row, cpu_milli_ms=2_000_000) for row in rows]
    lines = rating.lines("acme", rows, [third])
    assert sorted(line.amount_nanos for line in lines) == [0, 1, 1]


def test_a_free_line_leaves_the_others_as_they_are() -> None:
    row = quantity(1, gpu_type="SIM-GPU", gpu_milli_ms=1000)
    (alone,) = rating.lines("acme", [row], [book])
    beside = rating.lines("acme", [row, quantity(billed=False, state=HELD)], [book])
    assert alone in beside


def test_a_line_shows_what_it_is_made_of() -> None:
    key = replace(LAB, labels=(("team", "a"),))
    row = quantity(HOUR, key, gpu_type="SIM-GPU", gpu_milli_ms=1000 * HOUR)
    (line,) = rating.lines("acme", [row], [book])
    shown = rating.view(line)
    assert shown.id == line.id
    assert (shown.owner, shown.owner_uid, shown.attempt) == (LAB.owner, "inst_1", 1)
    assert (shown.kind, shown.user) == (api.KIND_INSTANCE, "user_1")
    assert dict(shown.labels) == {"team": "a"}
    assert (shown.state, shown.dimension) == (RUNNING, billing.DIMENSION_GPU)
    assert (shown.gpu_type, shown.price_version) == ("SIM-GPU", "v1")
    assert (shown.price_nanos, shown.quantity) == (2_400_000_000, str(1000 * HOUR))
    assert (shown.replica_milliseconds, shown.amount_nanos) == (HOUR, 2_400_000_000)
    assert shown.end_time.ToMilliseconds() - shown.start_time.ToMilliseconds() == HOUR
