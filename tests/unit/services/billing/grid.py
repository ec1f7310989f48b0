"""
The bill by brute force: what each millisecond costs, read from the facts themselves.

Nothing of this is the meter's: it folds nothing and cuts nothing. It asks for one moment after the
other what was true then, so what it sums is the integral over time by definition.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import Final, TypeAlias

from fermion.api.billing import v1 as billing
from fermion.api.workload import v1 as api
from services.billing.metering import Said
from tests.unit.services.billing.life import Life, occurred_ms

HOUR_MS: Final = 3_600_000
State: TypeAlias = "billing.BillableState.ValueType"


class Subject:
    """One replica or volume, asked for single moments."""

    def __init__(self, said: Iterable[Said]) -> None:
        facts = [one.message for one in said]
        self.starts: dict[int, int] = {}
        self.ends: dict[int, int] = {}
        self.lost: dict[int, int] = {}
        self.found: dict[int, int] = {}
        self.labels: list[tuple[int, int, dict[str, str]]] = []
        self.skus: list[tuple[int, int, api.Sku]] = []
        self.drain: tuple[int, api.Cause.ValueType] | None = None
        self.scheduled = self.released = self.bound = self.deleted = None
        corrections: list[api.ReplicaRunCorrected] = []
        for fact in facts:
            at = occurred_ms(fact)
            match fact:
                case api.ReplicaScheduled():
                    self.scheduled, self.subject = at, fact.subject
                case api.ReplicaStarted():
                    self.starts[fact.run] = at
                case api.ReplicaEnded():
                    self.ends[fact.run] = at
                case api.ReplicaDraining():
                    self.drain = at, fact.cause
                case api.ReplicaLost():
                    self.lost[fact.n] = at
                case api.ReplicaFound():
                    self.found[fact.n] = at
                case api.ReplicaRunCorrected():
                    corrections.append(fact)
                case api.ReplicaRelabelled():
                    self.labels.append((fact.n, at, dict(fact.labels)))
                case api.ReplicaResized():
                    self.skus.append((fact.n, at, fact.sku))
                case api.ReplicaReleased():
                    self.released = at
                case api.VolumeBound():
                    self.bound, self.subject = at, fact.subject
                case api.VolumeDeleted():
                    self.deleted = at
        for fact in sorted(corrections, key=lambda one: one.n):
            if fact.HasField("start_time"):
                self.starts[fact.run] = fact.start_time.ToMilliseconds()
            if fact.HasField("end_time"):
                self.ends[fact.run] = fact.end_time.ToMilliseconds()

    def state(self, t: int, platform: Iterable[int]) -> tuple[State, int] | None:
        """What it does then, and since when that counts; None where it is not there."""
        if self.bound is not None:
            there = self.bound <= t and (self.deleted is None or t < self.deleted)
            return (billing.BILLABLE_STATE_STORAGE, self.bound) if there else None
        begun = [(start, run) for run, start in self.starts.items() if start <= t]
        if not begun:
            if self.scheduled is None or t < self.scheduled or self._gone(t):
                return None
            return billing.BILLABLE_STATE_HELD, self.scheduled
        # Only the run that started last can be open: none goes into the next.
        start, run = max(begun)
        if run not in self.ends or t < self.ends[run]:
            return self._running(t, start, platform)
        if self._gone(t):
            return None
        return billing.BILLABLE_STATE_BACKOFF, max(start, self.ends[run])

    def _running(self, t: int, start: int, platform: Iterable[int]) -> tuple[State, int]:
        gaps = [
            lost
            for n, lost in self.lost.items()
            if lost <= t
            and not (n in self.found and self.found[n] <= t)
            and not any(lost < began <= t for began in self.starts.values())
        ]
        if gaps:
            return billing.BILLABLE_STATE_UNREACHABLE, min(gaps)
        if self.drain is None or t < self.drain[0]:
            return billing.BILLABLE_STATE_RUNNING, start
        since = max(start, self.drain[0])
        if self.drain[1] in platform:
            return billing.BILLABLE_STATE_DRAINING_BY_PLATFORM, since
        return billing.BILLABLE_STATE_DRAINING_BY_USER, since

    def _gone(self, t: int) -> bool:
        return self.released is not None and self.released <= t

    def sku(self, t: int) -> api.Sku:
        """What is allocated then."""
        made = [(n, sku) for n, at, sku in self.skus if at <= t]
        return max(made, key=lambda one: one[0])[1] if made else self.subject.sku

    def labels_at(self, t: int) -> dict[str, str]:
        """What it is labelled then."""
        made = [(n, labels) for n, at, labels in self.labels if at <= t]
        return max(made, key=lambda one: one[0])[1] if made else dict(self.subject.labels)


def book_at(books: Sequence[billing.PriceBook], t: int) -> billing.PriceBook:
    """The last that has come into force, else the first."""
    found = books[0]
    for book in books:
        if book.effective_time.ToMilliseconds() <= t:
            found = book
    return found


def price(book: billing.PriceBook, dimension: billing.Dimension.ValueType, model: str = "") -> int:
    """Of this model, or of any."""
    named = {one.gpu_type: one.price_nanos for one in book.prices if one.dimension == dimension}
    return named[model] if model in named else named[""]


def cost_of_moment(subject: Subject, books: Sequence[billing.PriceBook], t: int) -> Fraction:
    """What the millisecond that begins then costs, in billionths."""
    book = book_at(books, t)
    told = subject.state(t, list(book.platform_causes))
    if told is None or subject.subject.purchase == api.PURCHASE_PLATFORM:
        return Fraction(0)
    state, since = told
    (rule,) = (one for one in book.states if one.state == state)
    if not rule.billed or t < since + rule.free.ToMilliseconds():
        return Fraction(0)
    sku = subject.sku(t)
    if state == billing.BILLABLE_STATE_STORAGE:
        each = sku.storage_bytes * price(book, billing.DIMENSION_STORAGE)
        return Fraction(each, 2**30 * HOUR_MS)
    thousandths = sku.gpu_milli * price(book, billing.DIMENSION_GPU, sku.gpu_type)
    thousandths += sku.cpu_milli * price(book, billing.DIMENSION_CPU)
    memory = sku.memory_bytes * price(book, billing.DIMENSION_MEMORY)
    return Fraction(thousandths, 1000 * HOUR_MS) + Fraction(memory, 2**30 * HOUR_MS)


def cost(life: Life, start_ms: int, end_ms: int) -> Fraction:
    """What all of them cost in a period, in billionths, exactly."""
    return sum(
        (
            cost_of_moment(subject, life.price_books, t)
            for subject in (Subject(life.of(uid)) for uid in life.uids)
            for t in range(start_ms, end_ms)
        ),
        Fraction(0),
    )
