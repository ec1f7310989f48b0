"""What may be published as a price book, and which one rules."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from chassis.refusals import Exists, Invalid, Refused
from fermion.api.billing import v1 as billing
from fermion.api.workload import v1 as api
from services.billing import book
from services.billing.book import Rule, book_of, in_force
from tests.unit.services.billing.life import NOON_MS, free, price_book

Change = Callable[[billing.PriceBook], object]

first = book_of(price_book(1, NOON_MS - 5000))
second = book_of(price_book(2, NOON_MS + 5000))


def refused(said: billing.PriceBook, *before: book.Book) -> Refused:
    """Why it cannot be published."""
    with pytest.raises(Refused) as found:
        book.validate(said, before, NOON_MS)
    return found.value


def test_a_complete_book_may_be_published() -> None:
    book.validate(price_book(1, NOON_MS), (), NOON_MS)
    book.validate(price_book(2, NOON_MS + 1), (first,), NOON_MS)


def test_a_book_without_a_time_comes_into_force_when_it_is_published() -> None:
    said = price_book(2)
    said.ClearField("effective_time")
    book.validate(said, (first,), NOON_MS)
    assert book.effective_ms(said, NOON_MS) == NOON_MS


def drop_prices(dimension: billing.Dimension.ValueType) -> Change:
    def change(said: billing.PriceBook) -> None:
        kept = [one for one in said.prices if one.dimension != dimension]
        del said.prices[:]
        said.prices.extend(kept)

    return change


WRONG: tuple[tuple[str, str, Change], ...] = (
    ("price_book.prices", "complete", drop_prices(billing.DIMENSION_CPU)),
    ("price_book.prices", "complete", drop_prices(billing.DIMENSION_MEMORY)),
    ("price_book.prices", "complete", drop_prices(billing.DIMENSION_STORAGE)),
    ("price_book.prices", "complete", drop_prices(billing.DIMENSION_GPU)),
    ("price_book.prices", "complete", lambda said: said.prices.pop(0)),
    ("price_book.prices[5]", "unique", lambda said: said.prices.append(said.prices[0])),
    (
        "price_book.prices[2].gpu_type",
        "gpu_only",
        lambda said: setattr(said.prices[2], "gpu_type", "SIM-GPU"),
    ),
    ("price_book.states", "complete", lambda said: said.states.pop(3)),
    ("price_book.states[7]", "unique", lambda said: said.states.append(said.states[0])),
    (
        "price_book.states[0].free",
        "whole_milliseconds",
        lambda said: setattr(said.states[0].free, "nanos", 1),
    ),
    ("price_book.platform_causes[3]", "known", lambda said: said.MergeFromString(b"\x30\x63")),
    (
        "price_book.platform_causes[3]",
        "known",
        lambda said: said.platform_causes.append(api.CAUSE_UNSPECIFIED),
    ),
    (
        "price_book.effective_time",
        "whole_milliseconds",
        lambda said: setattr(said.effective_time, "nanos", 1),
    ),
)


@pytest.mark.parametrize(("field", "rule", "change"), WRONG)
def test_what_is_wrong_with_a_book_is_said_of_its_field(
    field: str, rule: str, change: Change
) -> None:
    said = price_book(1, NOON_MS)
    change(said)
    found = refused(said)
    assert isinstance(found, Invalid)
    assert found.reason == "FIELD_INVALID"
    assert field in [one.field for one in found.violations]
    assert any(one.rule.endswith(rule) for one in found.violations)


def test_all_that_is_wrong_is_said_at_once() -> None:
    found = refused(billing.PriceBook(version="v1", currency="USD"))
    assert len(found.violations) == len(book.DIMENSIONS) + len(book.STATES)


def test_a_version_is_never_used_twice() -> None:
    found = refused(price_book(1, NOON_MS + 1), first)
    assert isinstance(found, Exists)
    assert found.reason == "PRICE_VERSION_EXISTS"


def test_the_currency_stays() -> None:
    said = price_book(2, NOON_MS + 1)
    said.currency = "EUR"
    assert refused(said, first).reason == "CURRENCY_FIXED"


def test_prices_do_not_change_what_has_run() -> None:
    assert refused(price_book(2, NOON_MS - 1), first).reason == "PRICES_IN_THE_PAST"


def test_books_come_into_force_in_the_order_of_their_numbers() -> None:
    assert refused(price_book(3, NOON_MS + 5000), first, second).reason == "PRICES_OUT_OF_ORDER"
    said = price_book(3)
    said.ClearField("effective_time")
    assert refused(said, first, second).reason == "PRICES_OUT_OF_ORDER"
    book.validate(price_book(3, NOON_MS + 5001), (first, second), NOON_MS)


def test_the_last_book_that_has_begun_rules_from_its_first_millisecond() -> None:
    books = (first, second)
    assert in_force(books, NOON_MS + 4999) is first
    assert in_force(books, NOON_MS + 5000) is second


def test_the_first_book_rules_from_the_beginning() -> None:
    assert in_force((first, second), 0) is first


def test_a_book_is_read_as_it_was_published() -> None:
    said = price_book(3, NOON_MS, gpu={"": 5, "SIM-GPU": 7}, cpu=1, memory=2, storage=3)
    said.states[0].free.CopyFrom(free(1500))
    read = book_of(said)
    assert (read.number, read.version, read.currency) == (3, "v3", "USD")
    assert read.effective_ms == NOON_MS
    assert read.price(billing.DIMENSION_GPU, "SIM-GPU") == 7
    assert read.price(billing.DIMENSION_GPU, "H100-80GB") == 5
    assert read.price(billing.DIMENSION_CPU) == 1
    assert read.price(billing.DIMENSION_MEMORY) == 2
    assert read.price(billing.DIMENSION_STORAGE) == 3
    assert read.price(billing.DIMENSION_UNSPECIFIED) == 0
    assert read.rule(billing.BILLABLE_STATE_RUNNING) == Rule(True, 1500)
    assert read.rule(billing.BILLABLE_STATE_HELD) == Rule(False, 0)
    assert api.CAUSE_PREEMPTION in read.platform_causes


def test_a_state_that_a_book_does_not_know_costs_nothing() -> None:
    assert book_of(billing.PriceBook(number=1)).rule(billing.BILLABLE_STATE_RUNNING) == Rule()
