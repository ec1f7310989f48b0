"""
From quantities to money: exact until a line is rounded, and then no nano is lost.

A quantity is what SQL sums, or what `quantities` makes of segments: resources x milliseconds. Its
exact cost is a numerator over `DENOMINATOR`, in which every price of a unit and hour is whole. Each
line is rounded once, half to even; where the lines then sum to something else than their exact sum
rounded, those that were rounded furthest give way, one billionth each.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from chassis import ids
from chassis.refusals import Refused
from fermion.api.billing import v1 as api
from fermion.api.workload import v1 as workload
from services.billing.book import DIMENSIONS, Book, Dimension, State
from services.billing.metering import HOUR_MS, History, Labels, Segment, Sku

MILLI: Final = 1000
GIB: Final = 2**30
# Of an hour, and of what both thousandths and bytes go into.
UNIT: Final = 125 * GIB
DENOMINATOR: Final = HOUR_MS * UNIT
# What the API's amounts can hold.
NANOS_MAX: Final = 2**63 - 1
# A thousandth of a GPU or core, and a byte, as parts of `UNIT`.
PARTS: Final[Mapping[Dimension, int]] = {
    api.DIMENSION_GPU: UNIT // MILLI,
    api.DIMENSION_CPU: UNIT // MILLI,
    api.DIMENSION_MEMORY: UNIT // GIB,
    api.DIMENSION_STORAGE: UNIT // GIB,
}


@dataclass(frozen=True, slots=True, order=True)
class Key:
    """Whose a line is: all that a project's bill tells apart beside state, dimension and price."""

    owner: str
    owner_uid: str
    attempt: int
    kind: workload.Kind.ValueType
    user: str
    labels: Labels


@dataclass(frozen=True, slots=True)
class Quantity:
    """Time in a state under one price book, and that time x what was allocated; sums of any segments."""

    key: Key
    state: State
    billed: bool
    book: int
    gpu_type: str
    ms: int
    gpu_milli_ms: int
    cpu_milli_ms: int
    memory_byte_ms: int
    storage_byte_ms: int
    # First and last moment that it sums.
    start_ms: int
    end_ms: int

    def of(self, dimension: Dimension) -> int:
        """So many thousandths or bytes x milliseconds."""
        match dimension:
            case api.DIMENSION_GPU:
                return self.gpu_milli_ms
            case api.DIMENSION_CPU:
                return self.cpu_milli_ms
            case api.DIMENSION_MEMORY:
                return self.memory_byte_ms
            case api.DIMENSION_STORAGE:
                return self.storage_byte_ms
            case _:
                return 0


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a bill; what it costs exactly is `numerator` / `DENOMINATOR`."""

    id: str
    key: Key
    state: State
    # Unspecified where it costs nothing.
    dimension: Dimension
    gpu_type: str
    book: int
    price_version: str
    price_nanos: int
    ms: int
    quantity: int
    numerator: int
    amount_nanos: int
    start_ms: int
    end_ms: int


def payable(nanos: int) -> int:
    """An amount that can be told; `Refused` (AMOUNT_TOO_LARGE) beyond what an int64 of nanos holds."""
    if nanos > NANOS_MAX:
        raise Refused(
            "AMOUNT_TOO_LARGE",
            f"It comes to {nanos // 10**9} of the currency; amounts are told up to {NANOS_MAX // 10**9}.",
            next_step="Ask for less at once: a shorter time, or fewer replicas.",
            nanos=str(nanos),
        )
    return nanos


def half_even(numerator: int, denominator: int) -> int:
    """Divide to the nearest whole number; in the middle, to the even one."""
    quotient, rest = divmod(numerator, denominator)
    above = 2 * rest - denominator
    return quotient + (above > 0 or (above == 0 and quotient % 2))


def rate_per_hour(sku: Sku, book: Book) -> int:
    """What an hour of this costs while it is billed."""
    hour = Quantity(
        key=Key("", "", 0, workload.KIND_UNSPECIFIED, "", ()),
        state=api.BILLABLE_STATE_RUNNING,
        billed=True,
        book=book.number,
        gpu_type=sku.gpu_type,
        ms=HOUR_MS,
        gpu_milli_ms=HOUR_MS * sku.gpu_milli,
        cpu_milli_ms=HOUR_MS * sku.cpu_milli,
        memory_byte_ms=HOUR_MS * sku.memory_bytes,
        storage_byte_ms=HOUR_MS * sku.storage_bytes,
        start_ms=0,
        end_ms=HOUR_MS,
    )
    return cost([hour], [book])


def quantities(history: History, segments: Iterable[Segment]) -> Iterator[Quantity]:
    """What segments of a history sum to, one by one."""
    subject = history.subject
    if subject is None:
        return
    for one in segments:
        ms = one.end_ms - one.start_ms
        yield Quantity(
            key=Key(
                subject.owner,
                subject.owner_uid,
                subject.attempt,
                subject.kind,
                subject.user,
                one.labels,
            ),
            state=one.state,
            billed=one.billed,
            book=one.book,
            gpu_type=one.sku.gpu_type,
            ms=ms,
            gpu_milli_ms=ms * one.sku.gpu_milli,
            cpu_milli_ms=ms * one.sku.cpu_milli,
            memory_byte_ms=ms * one.sku.memory_bytes,
            storage_byte_ms=ms * one.sku.storage_bytes,
            start_ms=one.start_ms,
            end_ms=one.end_ms,
        )


def exact(rows: Iterable[Quantity], books: Sequence[Book]) -> int:
    """What quantities cost, as a numerator over `DENOMINATOR`."""
    by_number = {book.number: book for book in books}
    return sum(
        row.of(dimension) * _each(by_number[row.book], dimension, row.gpu_type)
        for row in rows
        if row.billed
        for dimension in DIMENSIONS
    )


def cost(rows: Iterable[Quantity], books: Sequence[Book]) -> int:
    """What quantities cost all together, rounded once."""
    return half_even(exact(rows, books), DENOMINATOR)


def lines(project: str, rows: Iterable[Quantity], books: Sequence[Book]) -> tuple[Line, ...]:
    """
    The lines of a project's bill, always in the same order; they sum to `cost` of the same quantities.

    How far the quantities were summed before makes no difference. What is billed makes a line for each
    dimension that it has any of, one for each model of GPU; what is free, and what is billed for no
    time at all, one that costs nothing.
    """
    by_number = {book.number: book for book in books}
    groups: dict[tuple[Key, State, int], list[Quantity]] = defaultdict(list)
    for row in rows:
        groups[row.key, row.state, row.book].append(row)
    found = [
        _line(project, by_number[number], dimension, gpu_type, summed)
        for (_, _, number), group in groups.items()
        for dimension, gpu_type, summed in _split(group)
    ]
    return _rounded(sorted(found, key=_order))


def view(line: Line) -> api.Line:
    """Show a line."""
    shown = api.Line(
        id=line.id,
        owner=line.key.owner,
        owner_uid=line.key.owner_uid,
        attempt=line.key.attempt,
        kind=line.key.kind,
        user=line.key.user,
        labels=dict(line.key.labels),
        state=line.state,
        dimension=line.dimension,
        gpu_type=line.gpu_type,
        price_version=line.price_version,
        price_nanos=line.price_nanos,
        replica_milliseconds=line.ms,
        quantity=str(line.quantity),
        amount_nanos=payable(line.amount_nanos),
    )
    shown.start_time.FromMilliseconds(line.start_ms)
    shown.end_time.FromMilliseconds(line.end_ms)
    return shown


def _split(group: Sequence[Quantity]) -> Iterator[tuple[Dimension, str, list[Quantity]]]:
    """Which lines the quantities of one key, state and price book make, and of which of them each."""
    billed = [row for row in group if row.billed]
    models = sorted({row.gpu_type for row in billed})
    parts: list[tuple[Dimension, str, list[Quantity]]] = [
        (api.DIMENSION_GPU, model, [row for row in billed if row.gpu_type == model])
        for model in models
    ]
    parts += [(dimension, "", billed) for dimension in DIMENSIONS if dimension != api.DIMENSION_GPU]
    used = [part for part in parts if any(row.of(part[0]) for row in part[2])]
    yield from used
    rest = [row for row in group if not row.billed or not used]
    if rest:
        yield api.DIMENSION_UNSPECIFIED, "", rest


def _line(
    project: str, book: Book, dimension: Dimension, gpu_type: str, rows: Sequence[Quantity]
) -> Line:
    key, state = rows[0].key, rows[0].state
    price = book.price(dimension, gpu_type)
    quantity = sum(row.of(dimension) for row in rows)
    parts = (
        key.owner_uid,
        key.owner,
        str(key.attempt),
        str(int(key.kind)),
        key.user,
        json.dumps(key.labels),
        str(int(state)),
        str(int(dimension)),
        gpu_type,
        str(book.number),
    )
    return Line(
        id=ids.derived("lin", project, *parts),
        key=key,
        state=state,
        dimension=dimension,
        gpu_type=gpu_type,
        book=book.number,
        price_version=book.version,
        price_nanos=price,
        ms=sum(row.ms for row in rows),
        quantity=quantity,
        numerator=quantity * _each(book, dimension, gpu_type),
        amount_nanos=0,
        start_ms=min(row.start_ms for row in rows),
        end_ms=max(row.end_ms for row in rows),
    )


def shares(numerators: Sequence[int], names: Sequence[str]) -> list[int]:
    """
    Round each, half to even, so that they sum to their exact sum rounded.

    Those that were rounded furthest away from the exact sum give way; of equal ones the first by name.
    """
    each = [half_even(numerator, DENOMINATOR) for numerator in numerators]
    missing = half_even(sum(numerators), DENOMINATOR) - sum(each)
    step = 1 if missing > 0 else -1

    def lacks(place: int) -> tuple[int, str]:
        short = numerators[place] - each[place] * DENOMINATOR
        return -step * short, names[place]

    for place in sorted(range(len(each)), key=lacks)[: abs(missing)]:
        each[place] += step
    return each


def _rounded(exactly: Sequence[Line]) -> tuple[Line, ...]:
    """Round each, so that together they are their exact sum rounded."""
    amounts = shares([line.numerator for line in exactly], [line.id for line in exactly])
    return tuple(
        replace(line, amount_nanos=amount) for line, amount in zip(exactly, amounts, strict=True)
    )


def _each(book: Book, dimension: Dimension, gpu_type: str) -> int:
    """Numerator of what a thousandth, or a byte, costs in a millisecond."""
    return book.price(dimension, gpu_type) * PARTS.get(dimension, 0)


def _order(line: Line) -> tuple[Key, int, int, int, str]:
    return line.key, line.state, line.book, line.dimension, line.gpu_type
