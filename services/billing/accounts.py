"""What was metered, read from the slots as they stand or as they stood at a cut."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from chassis.postgres import Database, Record
from chassis.queries import Queries
from chassis.refusals import Invalid, Unavailable, Violation
from fermion.api.billing import v1 as api
from fermion.api.workload import v1 as workload
from services.billing import book, metering
from services.billing.book import Book
from services.billing.consumer import METERED
from services.billing.metering import (
    HOUR_MS,
    Change,
    Correction,
    Drain,
    Gap,
    Missed,
    Moment,
    Run,
    Sku,
    Subject,
)
from services.billing.rating import Key, Quantity

# Of the arithmetic: a statement says by which one it was computed.
ALGORITHM: Final = 1
# Where only days are told apart, days are where time is cut.
DAY_MS: Final = 86_400_000
# By workload, beside what the API knows to sum by.
BY_WORKLOAD: Final = 0
ALL_BOOKS: Final = 2**31 - 1
NOBODY: Final = Key("", "", 0, workload.KIND_UNSPECIFIED, "", ())


@dataclass(frozen=True, slots=True)
class Source:
    """How far one cluster has said everything, and how far that was read."""

    cluster: str
    position: int
    # None as long as it has said nothing whole.
    through_ms: int | None
    proved_ms: int | None = None
    retired: bool = False
    # Lineage of its journal: positions of another one say nothing here.
    epoch: int = 1


@dataclass(frozen=True, slots=True)
class Look:
    """Where somebody looks from: everything that is read of it is of the same moment."""

    sources: tuple[Source, ...]
    # Position of the first fact of each that could not be used.
    disputed: Mapping[str, int]
    books: tuple[Book, ...]
    # Projects of the disputed.
    disputing: frozenset[str] = frozenset()

    @property
    def cut(self) -> str:
        """The last position that is looked at, by cluster and by disputed uid."""
        positions = {one.cluster: one.position for one in self.sources}
        positions |= {uid: position - 1 for uid, position in self.disputed.items()}
        return json.dumps(positions)

    @property
    def settled(self) -> Mapping[str, int]:
        """Up to when each cluster has said everything."""
        return {one.cluster: one.through_ms for one in self.sources if one.through_ms is not None}

    @property
    def through_ms(self) -> int | None:
        """Up to when every cluster has said everything; None where one has not yet."""
        times = [one.through_ms for one in self.sources if not one.retired]
        if not times or any(time is None for time in times):
            return None
        return min(time for time in times if time is not None)

    def live(self, now: int, slack: int) -> Mapping[str, int]:
        """Up to when what is open in each cluster is taken to live: a little behind its last proof."""
        return {
            one.cluster: max(one.through_ms or 0, min(now, (one.proved_ms or 0) + slack))
            for one in self.sources
        }

    def in_force(self, at: int) -> Book:
        """The price book of a moment."""
        return book.in_force(self.books, at)

    def as_cut(self) -> api.Cut:
        """The same, as a statement says it."""
        cut = api.Cut(price_book=self.books[-1].number, algorithm=ALGORITHM)
        for one in self.sources:
            source = cut.sources.add(
                journal=f"executor/{one.cluster}", position=one.position, retired=one.retired
            )
            if one.through_ms is not None:
                source.through_time.FromMilliseconds(one.through_ms)
        for uid, position in sorted(self.disputed.items()):
            cut.disputed.add(uid=uid, position=position)
        return cut


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked for: of whom, and of which time; None for all."""

    start_ms: int
    end_ms: int
    project: str | None = None
    owner: str | None = None
    workloads: tuple[str, ...] | None = None


class Accounts:
    """Reads the slots; every method may be called at any time, and changes nothing."""

    def __init__(self, database: Database, queries: Queries) -> None:
        self._database = database
        self._queries = queries
        self._books: tuple[Book, ...] = ()

    async def look(self, project: str | None) -> Look:
        """Look at everything there is now."""
        rows = await self._fetch("clusters", METERED)
        disputed = await self._fetch("disputed", METERED, project)
        sources = tuple(
            Source(
                row["uid"],
                row["position"] or 0,
                row["through_ms"],
                row["proved_ms"],
                row["retired"],
                row["epoch"] or 1,
            )
            for row in rows
        )
        return Look(
            sources,
            {row["stream"].partition("/")[2]: row["position"] for row in disputed},
            await self._read_books(ALL_BOOKS),
            frozenset(row["project"] for row in disputed),
        )

    async def look_again(self, cut: api.Cut) -> Look:
        """Look from where somebody has looked before; `Invalid` where nobody can have."""
        now = {one.cluster: one for one in (await self.look(None)).sources}
        sources = []
        for at, said in enumerate(cut.sources):
            service, _, cluster = said.journal.partition("/")
            field = f"cut.sources[{at}]"
            if service != "executor" or cluster not in now:
                raise _unknown_cut(
                    f"{field}.journal", said.journal, "must name an enrolled journal"
                )
            if said.position > now[cluster].position:
                raise Unavailable(
                    "CUT_AHEAD",
                    f"{said.journal} is read up to {now[cluster].position}, and the cut is at "
                    f"{said.position}.",
                    next_step="Ask again in a moment; after a restore, the cut may be gone for ever.",
                    journal=said.journal,
                    position=str(said.position),
                )
            through = said.through_time.ToMilliseconds() if said.HasField("through_time") else None
            sources.append(Source(cluster, said.position, through, retired=said.retired))
        books = await self._read_books(cut.price_book)
        if not books or books[-1].number != cut.price_book:
            raise _unknown_cut(
                "cut.price_book", str(cut.price_book), "must be a price book's number"
            )
        if cut.algorithm != ALGORITHM:
            raise _unknown_cut("cut.algorithm", str(cut.algorithm), f"must be {ALGORITHM}")
        return Look(tuple(sources), {one.uid: one.position for one in cut.disputed}, books)

    async def usage(
        self,
        asked: Question,
        look: Look,
        caps: Mapping[str, int],
        *,
        by: Sequence[int] = (),
        label: str = "",
        slack: int | None = None,
        live: bool = False,
    ) -> Sequence[Record]:
        """Quantities by keys, state, price book and model; with `live`, what is open apart."""
        step = DAY_MS if api.GROUP_BY_DAY in by else None
        return await self._fetch(
            "usage", *_arguments(asked, look, caps, step, slack), list(by), live, label
        )

    async def lines(self, asked: Question, look: Look) -> Sequence[Record]:
        """Quantities by what a line is, up to where each cluster has said everything."""
        return await self._fetch("lines", *_arguments(asked, look, look.settled, None, None))

    async def histories(self, owner: str, look: Look) -> Sequence[metering.History]:
        """All that was said of an owner's replicas and volumes, as of the look."""
        slots = defaultdict(list)
        for name in ("runs", "gaps", "changes", "corrections", "missed"):
            for row in await self._fetch(f"{name}_of", owner):
                slots[name, row["replica"]].append(row)
        found: list[metering.History] = [
            _replica(row, slots) for row in await self._fetch("replicas_of", owner)
        ]
        found += [_volume(row) for row in await self._fetch("volumes_of", owner)]
        positions = {one.cluster: one.position for one in look.sources}
        return [
            metering.asof(one, min(positions[one.cluster], look.disputed.get(one.uid, 2**63) - 1))
            for one in found
            if one.cluster in positions
        ]

    async def limited(self) -> Sequence[Record]:
        """Workloads that may still reach what they may cost."""
        return await self._fetch("limited")

    async def unsettled(self, source: Source, after: int) -> Sequence[Record]:
        """Workloads of a cluster that are over as of the look, from behind a position on, and not settled."""
        # As of the look, or one would be settled by a cost from before its end.
        return await self._fetch("unsettled", source.cluster, after, source.position)

    async def price_books(self, numbers: Sequence[int]) -> Sequence[api.PriceBook]:
        """Whole price books, by number."""
        rows = await self._fetch("price_books", 0, ALL_BOOKS)
        return [api.PriceBook.FromString(row["body"]) for row in rows if row["number"] in numbers]

    async def _read_books(self, last: int) -> tuple[Book, ...]:
        # A book is never changed: what is known is read no more.
        known = self._books
        rows = await self._fetch("price_books", len(known), last)
        more = (book.book_of(api.PriceBook.FromString(row["body"])) for row in rows)
        found = (*known, *more)
        # Others may have read the same ones meanwhile.
        if len(found) > len(self._books):
            self._books = found
        return tuple(one for one in found if one.number <= last)

    async def _fetch(self, statement: str, *arguments: object) -> Sequence[Record]:
        return await self._database.fetch(self._queries[statement], *arguments)


def _arguments(
    asked: Question,
    look: Look,
    caps: Mapping[str, int],
    step: int | None,
    slack: int | None,
) -> tuple[object, ...]:
    return (
        *(asked.project, asked.owner, asked.workloads, asked.start_ms, asked.end_ms),
        *(json.dumps(dict(caps)), look.cut, look.books[-1].number, step, slack),
    )


def _unknown_cut(field: str, value: str, rule: str) -> Invalid:
    return Invalid(
        "CUT_UNKNOWN",
        f"{field} is {value!r}; it {rule}.",
        violations=(Violation(field, rule),),
        next_step="Give back the cut of an earlier statement as it was.",
        field=field,
        value=value,
    )


def quantity(row: Record) -> Quantity:
    """A row of `lines` as it is rated."""
    key = Key(
        row["owner"],
        row["owner_uid"],
        row["attempt"],
        row["kind"],
        row["user_uid"],
        labels_of(row["labels"]),
    )
    return replace(summed(row), key=key, start_ms=row["start_ms"], end_ms=row["end_ms"])


def summed(row: Record) -> Quantity:
    """A row of `lines` or `usage` as it is rated, whoever's it is."""
    return Quantity(
        key=NOBODY,
        state=row["state"],
        billed=row["billed"],
        book=row["book"],
        gpu_type=row["gpu_type"],
        ms=row["ms"],
        gpu_milli_ms=int(row["gpu_milli_ms"]),
        cpu_milli_ms=int(row["cpu_milli_ms"]),
        memory_byte_ms=int(row["memory_byte_ms"]),
        storage_byte_ms=int(row["storage_byte_ms"]),
        start_ms=0,
        end_ms=row["ms"],
    )


def hourly(row: Record) -> Quantity:
    """An hour of what a row of `usage` has at once."""
    return replace(
        summed(row),
        ms=HOUR_MS,
        gpu_milli_ms=HOUR_MS * int(row["gpu_milli"]),
        cpu_milli_ms=HOUR_MS * int(row["cpu_milli"]),
        memory_byte_ms=HOUR_MS * int(row["memory_bytes"]),
        storage_byte_ms=HOUR_MS * int(row["storage_bytes"]),
    )


# Rows back into what `metering` folds from facts.


def _replica(row: Record, slots: Mapping[tuple[str, str], Sequence[Record]]) -> metering.Replica:
    def of(name: str) -> Iterable[Record]:
        return slots.get((name, row["uid"]), ())

    drain = _moment(row, "drain", "ReplicaDraining")
    return metering.Replica(
        uid=row["uid"],
        cluster=row["cluster"],
        subject=_subject(row, row["subject_position"]),
        scheduled=_moment(row, "scheduled", "ReplicaScheduled"),
        drain=None if drain is None else Drain(drain, row["drain_cause"]),
        released=_moment(row, "released", "ReplicaReleased"),
        runs=tuple(
            Run(
                one["run"],
                _moment(one, "start", "ReplicaStarted"),
                _moment(one, "end", "ReplicaEnded"),
            )
            for one in of("runs")
        ),
        gaps=tuple(
            Gap(
                one["n"], _moment(one, "lost", "ReplicaLost"), _moment(one, "found", "ReplicaFound")
            )
            for one in of("gaps")
        ),
        changes=tuple(_change(one) for one in of("changes")),
        corrections=tuple(
            Correction(
                one["n"],
                one["run"],
                one["start_ms"],
                one["end_ms"],
                Moment(one["at_ms"], one["position"], one["evidence"], "ReplicaRunCorrected"),
            )
            for one in of("corrections")
        ),
        missed=tuple(
            Missed(
                one["from_run"],
                one["to_run"],
                one["from_ms"],
                one["to_ms"],
                Moment(one["from_ms"], one["position"], one["evidence"], "ReplicaRunMissed"),
            )
            for one in of("missed")
        ),
    )


def _volume(row: Record) -> metering.Volume:
    subject = _subject(row, row["bound_position"])
    sku = Sku(storage_bytes=row["storage_bytes"] or 0)
    return metering.Volume(
        uid=row["uid"],
        cluster=row["cluster"],
        subject=None if subject is None else subject._replace(sku=sku),
        bound=_moment(row, "bound", "VolumeBound"),
        deleted=_moment(row, "deleted", "VolumeDeleted"),
    )


def _change(row: Record) -> Change:
    kind = "ReplicaResized" if row["resized"] else "ReplicaRelabelled"
    moment = Moment(row["at_ms"], row["position"], row["evidence"], kind)
    if row["resized"]:
        return Change(row["n"], moment, sku=_sku(row))
    return Change(row["n"], moment, labels=labels_of(row["labels"]))


def _subject(row: Record, position: int | None) -> Subject | None:
    if position is None:
        return None
    work = row.get("workload")
    return Subject(
        position=position,
        project=row["project"],
        owner=row["owner"],
        owner_uid=row["owner_uid"],
        kind=row["kind"],
        workload=work or "",
        attempt=row.get("attempt") or 0,
        user=row["user_uid"],
        labels=labels_of(row["labels"]),
        purchase=row["purchase"],
        sku=_sku(row) if work is not None else Sku(),
    )


def _sku(row: Record) -> Sku:
    return Sku(row["gpu_type"], row["gpu_milli"], row["cpu_milli"], row["memory_bytes"])


def _moment(row: Record, slot: str, kind: str) -> Moment | None:
    position = row[f"{slot}_position"]
    if position is None:
        return None
    return Moment(row[f"{slot}_ms"], position, row[f"{slot}_evidence"], kind)


def labels_of(text: str) -> tuple[tuple[str, str], ...]:
    """Read labels back."""
    return tuple(sorted(json.loads(text).items()))
