"""
Price books: what a unit and hour costs, and which time costs at all, from a moment on.

A book is never changed once it is published. Of all that are known, the one with the greatest number
that has come into force rules; the first one rules from the beginning of time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from chassis.refusals import Exists, Invalid, Refused, Violation
from fermion.api.billing.v1 import resources_pb2 as api
from fermion.api.workload.v1 import resources_pb2 as workload

State = api.BillableState.ValueType
Dimension = api.Dimension.ValueType

# Every state and dimension that there is.
STATES: Final = tuple(state for state in api.BillableState.values() if state)
DIMENSIONS: Final = tuple(dimension for dimension in api.Dimension.values() if dimension)
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


def _number(book: Book) -> int:
    return book.number
