"""Money and time in words: exact, and never a float."""

from __future__ import annotations

from datetime import timedelta
from decimal import ROUND_HALF_EVEN, Context, Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fermion.cli import money, read
from fermion.pricebook import NANOS, decimal

NANOS_OF_INT64 = st.integers(-(2**63), 2**63 - 1)
# More digits than any amount here has.
WIDE = Context(prec=80)


@pytest.mark.parametrize(
    ("nanos", "words"),
    [
        (0, "0.00"),
        (2_400_000_000, "2.40"),
        (1_800_000_000, "1.80"),
        (5_000_000, "0.005"),
        (40_000_000, "0.04"),
        (666_666_667, "0.666667"),
        (1_234_567_891, "1.234568"),
        (500, "<0.000001"),
        (501, "0.000001"),
        (1_500, "0.000002"),
        (2_500, "0.000002"),
        (1, "<0.000001"),
        (-1, ">-0.000001"),
        (-2_400_000_000, "-2.40"),
        (2**63 - 1, "9223372036.854776"),
    ],
)
def test_an_amount_has_two_decimals_at_least_and_six_at_most(nanos: int, words: str) -> None:
    assert money.shown(nanos) == words


@given(NANOS_OF_INT64)
def test_an_exact_amount_is_the_amount(nanos: int) -> None:
    assert Decimal(decimal(nanos)) == WIDE.divide(Decimal(nanos), Decimal(NANOS))
    assert len(decimal(nanos).partition(".")[2]) >= 2


@given(NANOS_OF_INT64)
def test_what_is_shown_of_an_amount_is_the_nearest_that_can_be_shown(nanos: int) -> None:
    words = money.shown(nanos)
    exact = WIDE.divide(Decimal(nanos), Decimal(NANOS))
    nearest = exact.quantize(Decimal("0.000001"), ROUND_HALF_EVEN, WIDE)
    if nanos and not nearest:
        assert words == ("<0.000001" if nanos > 0 else ">-0.000001")
    else:
        assert Decimal(words) == nearest


@given(st.integers(0, 10**30), st.sampled_from([money.MILLI, money.GIB]))
def test_hours_of_a_unit_are_as_near_as_can_be_shown(quantity: int, unit: int) -> None:
    exact = Fraction(quantity, unit * 3_600_000)
    words = money.hours(quantity, unit)
    if words.startswith("<"):
        assert 0 < exact <= Fraction(1, 2_000_000)
    else:
        assert abs(Fraction(words) - exact) <= Fraction(1, 2_000_000)


@given(st.integers(0, 10**12))
def test_a_time_span_is_read_as_it_is_written(milliseconds: int) -> None:
    found = read.duration("--for", money.lasted(milliseconds))
    assert abs(found - timedelta(milliseconds=milliseconds)) < timedelta(milliseconds=0.1)


@pytest.mark.parametrize(
    ("milliseconds", "words"),
    [(0, "0s"), (1, "0.001s"), (61_500, "1m1.5s"), (90_061_000, "1d1h1m1s"), (-250, "-0.25s")],
)
def test_a_time_span_has_no_unit_that_is_empty(milliseconds: int, words: str) -> None:
    assert money.lasted(milliseconds) == words


def test_points_stand_below_each_other() -> None:
    assert money.aligned(["1.20", "10.005", "", "-"]) == [" 1.20", "10.005", "", "-"]


@given(st.integers(-5, 10**20), st.integers(-5, 10**20))
def test_a_bar_is_no_wider_than_it_may_be_and_what_is_anything_is_seen(
    value: int, most: int
) -> None:
    found = money.bar(value, most, 10)
    assert len(found) <= 10
    assert bool(found) == (value > 0 and most > 0)
    assert len(money.bar(most, most, 10)) == (10 if most > 0 else 0)
