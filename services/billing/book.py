"""
Price books: what a unit and hour costs, and which time costs at all, from a moment on.

A book is never changed once it is published. Of all that are known, the one with the greatest number
that has come into force rules; the first one rules from the beginning of time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from chassis.refusals import Exists, Invalid, Refused, Violation
from fermion.api.billing import v1 as api
from fermion.api.workload import v1 as workload

State: TypeAlias = "api.BillableState.ValueType"
Dimension: TypeAlias = "api.Dimension.ValueType"

# Every state and dimension that there is.
STATES: Final = tuple(state for state in api.BillableState.values() if state)
DIMENSIONS: Final = tuple(dimension for dimension in api.Dimension.values() if dimension)
# Times are whole milliseconds.
NANOS_OF_MS: Final = 1_000_000
WHOLE: Final = "price_book.whole_milliseconds"
# Model of what has no price of its own.
ANY_MODEL: Final = ""


@dataclass(frozen=True, slots=True)
class Rule:
    """Whether time in a state costs; `free_ms` from its beginning are free all the same."""

    billed: bool = False
    free_ms: int = 0


# What a book says nothing of costs nothing.
UNRULED: Final = Rule()


@dataclass(frozen=True, slots=True)
class Book:
    """One price book; prices in billionths of its currency for a GPU, a core or a GiB, and an hour."""

    number: int
    version: str
    currency: str
    effective_ms: int
    gpu: Mapping[str, int]
    cpu: int
    memory: int
    storage: int
    rules: Mapping[State, Rule]
    platform_causes: frozenset[workload.Cause.ValueType]

    def rule(self, state: State) -> Rule:
        """Whether a state costs."""
        return self.rules.get(state, UNRULED)

    def price(self, dimension: Dimension, gpu_type: str = ANY_MODEL) -> int:
        """Price of a unit and hour; a model without a price of its own costs what any model costs."""
        match dimension:
            case api.DIMENSION_GPU:
                return self.gpu.get(gpu_type, self.gpu.get(ANY_MODEL, 0))
            case api.DIMENSION_CPU:
                return self.cpu
            case api.DIMENSION_MEMORY:
                return self.memory
            case api.DIMENSION_STORAGE:
                return self.storage
            case _:
                return 0


def book_of(said: api.PriceBook) -> Book:
    """Read a published price book."""
    plain = {one.dimension: one.price_nanos for one in said.prices if not one.gpu_type}
    return Book(
        number=said.number,
        version=said.version,
        currency=said.currency,
        effective_ms=said.effective_time.ToMilliseconds(),
        gpu={
            one.gpu_type: one.price_nanos
            for one in said.prices
            if one.dimension == api.DIMENSION_GPU
        },
        cpu=plain.get(api.DIMENSION_CPU, 0),
        memory=plain.get(api.DIMENSION_MEMORY, 0),
        storage=plain.get(api.DIMENSION_STORAGE, 0),
        rules={one.state: Rule(one.billed, one.free.ToMilliseconds()) for one in said.states},
        platform_causes=frozenset(said.platform_causes),
    )


def in_force(books: Sequence[Book], at_ms: int) -> Book:
    """The book that rules at a moment, of at least one."""
    begun = [book for book in books if book.effective_ms <= at_ms]
    return max(begun, key=_number) if begun else min(books, key=_number)


def effective_ms(said: api.PriceBook, now_ms: int) -> int:
    """From when on a book that is published now rules."""
    return said.effective_time.ToMilliseconds() if said.HasField("effective_time") else now_ms


def validate(said: api.PriceBook, before: Sequence[Book], now_ms: int) -> None:
    """
    Refuse a book that cannot be published after those before.

    What is wrong with it alone is FIELD_INVALID, all of it at once; what does not go with the books
    before is PRICE_VERSION_EXISTS, CURRENCY_FIXED, PRICES_IN_THE_PAST or PRICES_OUT_OF_ORDER.
    """
    violations = [*_prices(said), *_states(said), *_causes(said), *_times(said)]
    if violations:
        first = violations[0]
        more = f", and {len(violations) - 1} more" if len(violations) > 1 else ""
        raise Invalid(
            "FIELD_INVALID",
            f"The price book cannot be like that: {first.field} {first.description}{more}.",
            violations=tuple(violations),
            next_step="Change the named fields and send it again.",
            field=first.field,
            rule=first.rule,
        )
    _must_follow(said, before, now_ms)


def _prices(said: api.PriceBook) -> Iterator[Violation]:
    seen: set[tuple[Dimension, str]] = set()
    for place, price in enumerate(said.prices):
        field = f"price_book.prices[{place}]"
        if price.gpu_type and price.dimension != api.DIMENSION_GPU:
            yield Violation(
                f"{field}.gpu_type", "must be empty but for GPUs", "price_book.prices.gpu_only"
            )
        if (price.dimension, price.gpu_type) in seen:
            yield Violation(field, "is the second price of the same", "price_book.prices.unique")
        seen.add((price.dimension, price.gpu_type))
    for dimension in DIMENSIONS:
        if (dimension, ANY_MODEL) not in seen:
            name = api.Dimension.Name(dimension)
            model = " without a model" if dimension == api.DIMENSION_GPU else ""
            yield Violation(
                "price_book.prices",
                f"must have a price of {name}{model}",
                "price_book.prices.complete",
            )


def _states(said: api.PriceBook) -> Iterator[Violation]:
    ruled = [rule.state for rule in said.states]
    for place, rule in enumerate(said.states):
        field = f"price_book.states[{place}]"
        if rule.state in ruled[:place]:
            yield Violation(field, "is the second rule of its state", "price_book.states.unique")
        if rule.free.nanos % NANOS_OF_MS:
            yield Violation(f"{field}.free", "must be whole milliseconds", WHOLE)
    for state in STATES:
        if state not in ruled:
            name = api.BillableState.Name(state)
            yield Violation(
                "price_book.states", f"must have a rule of {name}", "price_book.states.complete"
            )


def _causes(said: api.PriceBook) -> Iterator[Violation]:
    known = workload.Cause.values()
    for place, cause in enumerate(said.platform_causes):
        if cause not in known or cause == workload.CAUSE_UNSPECIFIED:
            yield Violation(
                f"price_book.platform_causes[{place}]",
                "must be a cause that there is",
                "price_book.platform_causes.known",
            )


def _times(said: api.PriceBook) -> Iterator[Violation]:
    if said.effective_time.nanos % NANOS_OF_MS:
        yield Violation("price_book.effective_time", "must be whole milliseconds", WHOLE)


def _must_follow(said: api.PriceBook, before: Sequence[Book], now_ms: int) -> None:
    if said.version in {book.version for book in before}:
        raise Exists(
            "PRICE_VERSION_EXISTS",
            f"There is a price book {said.version!r} already, and none is ever changed.",
            violations=(
                Violation("price_book.version", "was used before", "price_book.version.unique"),
            ),
            next_step="Choose another version.",
            version=said.version,
        )
    last = max(before, key=_number, default=None)
    if last is not None and said.currency != last.currency:
        raise Refused(
            "CURRENCY_FIXED",
            f"All prices are in {last.currency}, not in {said.currency}.",
            violations=(
                Violation(
                    "price_book.currency", f"must be {last.currency}", "price_book.currency.fixed"
                ),
            ),
            next_step=f"Write the prices in {last.currency}.",
            currency=last.currency,
        )
    begins = effective_ms(said, now_ms)
    if begins < now_ms:
        raise Refused(
            "PRICES_IN_THE_PAST",
            "Prices cannot come into force before they are published: what has run has its price.",
            violations=(
                Violation(
                    "price_book.effective_time",
                    "must not lie in the past",
                    "price_book.effective_time.past",
                ),
            ),
            next_step="Leave it out, and they come into force at once.",
        )
    if last is not None and begins <= last.effective_ms:
        raise Refused(
            "PRICES_OUT_OF_ORDER",
            f"The price book {last.version!r} comes into force later, or at the same moment.",
            violations=(
                Violation(
                    "price_book.effective_time",
                    f"must be later than that of {last.version!r}",
                    "price_book.effective_time.order",
                ),
            ),
            next_step="Choose a later time.",
            version=last.version,
        )


def _number(book: Book) -> int:
    return book.number
