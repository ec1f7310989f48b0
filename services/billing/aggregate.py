"""
What billing itself decides: which prices are in force from when, and which workloads are at their end.

What anything costs is no decision: it is read from what executors stated, and from these prices.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final, TypeAlias, assert_never, cast

from google.protobuf.message import Message

from chassis import envelope
from chassis.clock import milliseconds
from chassis.envelope import NO_PROJECT, Recorded
from chassis.journal import Place
from fermion.api.billing import v1 as api
from fermion.api.workload import v1 as workload
from services.billing import book

SERVICE: Final = "billing"
PRICES: Final = "prices/book"

WorkFact: TypeAlias = api.CostLimitReached | api.WorkloadSettled
Fact: TypeAlias = api.PricesPublished | WorkFact


@dataclass(frozen=True, slots=True)
class Prices:
    """Every price book that was published, oldest first."""

    books: tuple[api.PriceBook, ...] = ()


@dataclass(frozen=True, slots=True)
class Charged:
    """What was stated of a workload's cost."""

    limited: bool = False
    # In billionths; None as long as it may grow.
    settled: int | None = None


def place(fact: Message) -> Place:
    """Tell the stream and project of a fact."""
    match fact:
        case api.PricesPublished():
            return Place(PRICES, NO_PROJECT)
        case api.CostLimitReached() | api.WorkloadSettled():
            return Place(f"workload/{fact.uid}", fact.project)
        case _:
            raise TypeError(f"{fact.DESCRIPTOR.full_name} is no fact of {SERVICE}")


def fold_prices(records: Iterable[Recorded]) -> Prices:
    """Fold the stream of the price book."""
    return envelope.fold(
        lambda prices, fact, _: evolve_prices(prices, cast(api.PricesPublished, fact)),
        Prices(),
        records,
    )


def evolve_prices(prices: Prices, fact: api.PricesPublished) -> Prices:
    """Take one fact in."""
    return Prices((*prices.books, fact.price_book))


def fold(records: Iterable[Recorded]) -> Charged:
    """Fold a `workload/` stream."""
    return envelope.fold(
        lambda charged, fact, _: evolve(charged, cast(WorkFact, fact)), Charged(), records
    )


def evolve(charged: Charged, fact: WorkFact) -> Charged:
    """Take one fact in."""
    match fact:
        case api.CostLimitReached():
            return replace(charged, limited=True)
        case api.WorkloadSettled():
            return replace(charged, settled=fact.amount.nanos)
        case _:
            assert_never(fact)


def begin(prices: Prices, *, first: api.PriceBook, now: datetime) -> list[Fact]:
    """State the price book that a new platform begins with; it is in force from the beginning."""
    if prices.books:
        return []
    return [_published(prices, first, 0, now)]


def publish(prices: Prices, *, wanted: api.PriceBook, now: datetime) -> list[Fact]:
    """
    State prices from a moment on: those of `wanted`, or now where it names none.

    The same version with the same content again says nothing. `Invalid` and `Refused` as
    `book.validate` has them.
    """
    effective = (
        wanted.effective_time.ToMilliseconds()
        if wanted.HasField("effective_time")
        else milliseconds(now)
    )
    for known in prices.books:
        if known.version == wanted.version and _same(known, wanted):
            return []
    dated = api.PriceBook()
    dated.CopyFrom(wanted)
    dated.effective_time.FromMilliseconds(effective)
    book.validate(dated, [book.book_of(known) for known in prices.books], milliseconds(now))
    return [_published(prices, wanted, effective, now)]


def reach_limit(
    charged: Charged,
    *,
    uid: str,
    project: str,
    amount: workload.Money,
    limit: workload.Money,
    through: datetime,
) -> list[Fact]:
    """State once that a workload has cost what it may."""
    if charged.limited or charged.settled is not None:
        return []
    said = api.CostLimitReached(uid=uid, amount=amount, limit=limit, project=project)
    said.through_time.FromDatetime(through)
    return [said]


def settle(charged: Charged, *, uid: str, project: str, amount: workload.Money) -> list[Fact]:
    """State once what a workload has cost in all."""
    if charged.settled is not None:
        return []
    return [api.WorkloadSettled(uid=uid, amount=amount, project=project)]


def _published(
    prices: Prices, wanted: api.PriceBook, effective: int, now: datetime
) -> api.PricesPublished:
    said = api.PriceBook()
    said.CopyFrom(wanted)
    said.number = len(prices.books) + 1
    said.effective_time.FromMilliseconds(effective)
    said.publish_time.FromDatetime(now)
    return api.PricesPublished(price_book=said)


def _same(known: api.PriceBook, wanted: api.PriceBook) -> bool:
    """Whether one is asked for that is there: with the same content, and from the same moment if any."""
    asked = api.PriceBook()
    asked.CopyFrom(wanted)
    asked.number = known.number
    asked.publish_time.CopyFrom(known.publish_time)
    if not wanted.HasField("effective_time"):
        asked.effective_time.CopyFrom(known.effective_time)
    return asked == known


def view(prices: Prices) -> Sequence[api.PriceBook]:
    """Every price book, newest first."""
    return prices.books[::-1]
