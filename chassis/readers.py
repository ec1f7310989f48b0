"""
The read side: facts of one journal in order, each accounted for exactly once, by counting.

A reader's checkpoint moves in the transaction of what it did. The next fact has to be checkpoint
+ 1: less is a duplicate, more is a hole, and a hole is filled from the owner's log. Nothing is
acknowledged to the broker, and nothing is skipped: what cannot be used is parked with its stream.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

from google.protobuf.message import Message

from chassis.bus import Away, Bus
from chassis.commit import execute_writes
from chassis.envelope import Meta, Recorded, Registry, from_record, to_record
from chassis.journal import (
    Advance,
    Command,
    Fenced,
    Journal,
    Overtaken,
    Page,
    Stale,
    Stated,
    Unpark,
    Write,
)
from chassis.lease import Lease
from chassis.postgres import LOST, Connection, Database, unavailable
from chassis.queries import Queries
from chassis.refusals import Exhausted, OutcomeUnknown, Unavailable
from fermion.api.journal import v1 as api

PAGE_MAX = 500
SILENT_SECONDS = 2.0
AGAIN_SECONDS = 0.2
HALTED_SECONDS = 1.0
ATTEMPTS_MAX = 5
# Beyond these the fault is not in a fact but in the reader: it halts instead of parking all.
PARKED_STREAMS_MAX = 100
PARKED_SHARE_MAX = 0.5
PARKED_SHARE_PAGE_MIN = 20
BEHIND = "BEHIND"
UNKNOWN_TYPE = "UNKNOWN_TYPE"

_log = logging.getLogger(__name__)
_queries = Queries.load(Path(__file__).with_name("queries.sql"))


class LogSource(Protocol):
    """Where old facts come from."""

    async def read(self, after: int, limit: int) -> Page:
        """Read facts after a position."""
        ...


class NewLineage(Exception):
    """The journal was restored: what was read at or past `first` is not true any more."""

    def __init__(self, epoch: int, first: int) -> None:
        super().__init__(f"epoch {epoch} begins at {first}")
        self.epoch = epoch
        self.first = first


class Feed:
    """
    The facts of one journal in order from a position, whatever happens to broker and owner.

    It catches up from the log, then follows the stream. A hole, a lost consumer or two seconds of
    silence send it back to the log; while the owner is away it waits, and never skips.
    """

    def __init__(self, journal: str, log: LogSource, bus: Bus | None, registry: Registry) -> None:
        self.journal = journal
        self.head = 0
        # Whether the owner has answered at all.
        self.heard = False
        self._log = log
        self._bus = bus
        self._registry = registry

    async def pages(
        self,
        after: int,
        epoch: int,
        wait: Callable[[int, float], Awaitable[None]] | None = None,
    ) -> AsyncIterator[Sequence[Recorded]]:
        """Give contiguous pages for ever; an empty one after each silence. Raises NewLineage."""
        position = after
        while True:
            try:
                page = await self._log.read(position, PAGE_MAX)
            except Unavailable as error:
                _log.debug("log of %s: %s", self.journal, error)
                page = None
            if page is not None:
                self.head, self.heard = page.head, True
                if epoch and page.epoch != epoch:
                    raise NewLineage(page.epoch, page.epoch_first)
                epoch = page.epoch
                if page.records:
                    _contiguous(self.journal, position, page.records)
                    position = page.records[-1].position
                    yield page.records
                    continue
            yield ()
            if self._bus is None:
                await (wait or _sleep)(position, 1.0)
                continue
            async for records in self._live(position, self._bus):
                if records:
                    position = records[-1].position
                    self.head = max(self.head, position)
                yield records

    async def _live(self, position: int, bus: Bus) -> AsyncIterator[Sequence[Recorded]]:
        """Follow the stream until it is silent, holed or lost."""
        try:
            async with bus.follow(self.journal, position + 1) as following:
                while True:
                    found = [
                        record
                        for record in await following(SILENT_SECONDS)
                        if record.position > position
                    ]
                    if not found:
                        if await self._behind(position):
                            return
                        yield ()
                        continue
                    records = [from_record(record, self._registry) for record in found]
                    places = [record.position for record in records]
                    if places != list(range(position + 1, position + len(places) + 1)):
                        _log.info("hole in the stream of %s after %d", self.journal, position)
                        return
                    position = places[-1]
                    yield records
        except Away as error:
            _log.debug("stream of %s: %s", self.journal, error)
            await asyncio.sleep(AGAIN_SECONDS)

    async def _behind(self, position: int) -> bool:
        """After a silence: does the log know more, or another lineage?"""
        try:
            page = await self._log.read(position, 1)
        except Unavailable:
            return False
        self.head = page.head
        return page.head != position


def _contiguous(journal: str, after: int, records: Sequence[Recorded]) -> None:
    """A log never has a hole; one that does is a fault that must not be read over."""
    places = [record.position for record in records]
    if places != list(range(after + 1, after + len(places) + 1)):
        raise Unavailable(
            "LOG_HAS_A_HOLE",
            f"{journal} gave {places[0]}..{places[-1]} ({len(places)} facts) after {after}.",
            journal=journal,
        )


async def _sleep(position: int, seconds: float) -> None:
    del position
    await asyncio.sleep(seconds)


@dataclass(frozen=True, slots=True)
class Reaction:
    """One decision that follows from one fact; the first stream is the one that it is about."""

    streams: tuple[str, ...]
    # From the records of each stream to the state that `decide` takes.
    fold: Callable[..., object]
    decide: Callable[..., Sequence[Message]]


class Consumer(Protocol):
    """A deciding reader: facts of others in, facts of one's own out."""

    @property
    def name(self) -> str:
        """`<service>/<what it reads>`."""
        ...

    @property
    def source(self) -> str:
        """The service whose journal it reads; its own for its own."""
        ...

    @property
    def handles(self) -> frozenset[str]:
        """Full names of the types it decides on; other registered ones are passed over."""
        ...

    async def react(self, fact: Recorded) -> Sequence[Reaction]:
        """Say what is to be decided; may read own rows, writes nothing."""
        ...


@runtime_checkable
class Folder(Protocol):
    """A folding reader: facts in, rows of its own out."""

    @property
    def name(self) -> str:
        """`<service>/<what it reads>`."""
        ...

    @property
    def source(self) -> str:
        """The service whose journal it reads."""
        ...

    @property
    def handles(self) -> frozenset[str]:
        """Full names of the types it folds; other registered ones are passed over."""
        ...

    def write(self, fact: Recorded) -> Sequence[Write]:
        """Say what becomes of the rows."""
        ...


@dataclass(slots=True)
class Group:
    """Facts whose decisions touch different streams, and so may commit as one command."""

    facts: list[tuple[Recorded, Sequence[Reaction]]] = field(default_factory=list)
    about: set[str] = field(default_factory=set)
    beside: set[str] = field(default_factory=set)
    passed_over: int = 0
    last: int = 0

    def takes(self, reactions: Sequence[Reaction]) -> bool:
        """Whether these can be decided without seeing what the group decides."""
        for reaction in reactions:
            about, *beside = reaction.streams
            if about in self.about or about in self.beside or not self.about.isdisjoint(beside):
                return False
        return True

    def add(self, fact: Recorded, reactions: Sequence[Reaction]) -> None:
        """Take a fact in."""
        self.facts.append((fact, reactions))
        for reaction in reactions:
            self.about.add(reaction.streams[0])
            self.beside.update(reaction.streams[1:])
        self.last = fact.position

    def skip(self, fact: Recorded) -> None:
        """Count a fact that the reader does not handle."""
        self.passed_over += 1
        self.last = fact.position


class Reader:
    """
    Runs one consumer or folder over one journal, as long as this process holds its lease.

    `halted` says why it stands still; `position` is how far it has accounted for.
    """

    def __init__(
        self,
        consumer: Consumer | Folder,
        feed: Feed,
        journal: Journal,
        database: Database,
        queries: Queries,
        lease: Lease,
        registry: Registry,
    ) -> None:
        self.name = consumer.name
        self.feed = feed
        self.position = 0
        self.halted = ""
        self.parked: set[str] = set()
        self._consumer = consumer
        self._journal = journal
        self._database = database
        self._queries = queries
        self._lease = lease
        self._registry = registry
        self._moved = asyncio.Event()

    @property
    def lag(self) -> int:
        """Positions that the source has and this reader has not accounted for."""
        return max(0, self.feed.head - self.position)

    async def run(self) -> None:
        """Read until cancelled."""
        while True:
            await self._lease.wait_held()
            try:
                await self._read()
            except (Overtaken, Fenced) as error:
                _log.info("%s: another holder was faster (%r)", self.name, error)
            except (Unavailable, Exhausted, OutcomeUnknown) as error:
                _log.debug("%s waits: %s", self.name, error)
                await asyncio.sleep(AGAIN_SECONDS)

    async def reached(self, position: int, seconds: float) -> bool:
        """Wait until a position is accounted for, by whichever process; False where it was not in time."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while True:
            if self._lease.held() is None:
                row = await self._checkpoint()
                self.position = max(self.position, 0 if row is None else row[1])
            if self.position >= position:
                return True
            left = deadline - loop.time()
            if left <= 0:
                return False
            event = self._moved
            try:
                await asyncio.wait_for(event.wait(), min(left, 0.05))
            except TimeoutError:
                continue

    async def _checkpoint(self) -> tuple[int, int, str] | None:
        row = await self._database.fetchrow(
            _queries["read_checkpoint"], self.name, self.feed.journal
        )
        return None if row is None else (row["epoch"], row["position"], row["halted"] or "")

    async def _read(self) -> None:
        await self._database.execute(
            _queries["open_checkpoint"],
            self.name,
            self.feed.journal,
            not isinstance(self._consumer, Folder),
        )
        found = await self._checkpoint()
        assert found is not None
        epoch, self.position, self.halted = found
        if self.halted:
            await asyncio.sleep(HALTED_SECONDS)
            return
        self.parked = {
            row["stream"]
            for row in await self._database.fetch(
                _queries["parked_streams"], self.name, self.feed.journal
            )
        }
        await self._retry_unknown()
        pages = self.feed.pages(self.position, epoch if self.position else 0, self._journal.grown)
        try:
            async for page in pages:
                if self._lease.held() is None:
                    return
                if page and not await self._handle(page):
                    return
        except NewLineage as new:
            await self._new_lineage(new)

    async def _new_lineage(self, new: NewLineage) -> None:
        """Below the restored position nothing changed; at or past it, what was decided may be untrue."""
        if self.position < new.first:
            await self._database.execute(
                _queries["adopt_epoch"], self.name, self.feed.journal, new.epoch
            )
            return
        await self._halt(
            f"{self.feed.journal} was restored to before {new.first} (epoch {new.epoch}), and this "
            f"reader has read up to {self.position}"
        )

    async def _halt(self, why: str) -> None:
        self.halted = why
        _log.error("%s halted: %s", self.name, why)
        await self._database.execute(_queries["halt_reader"], self.name, self.feed.journal, why)

    async def _handle(self, page: Sequence[Recorded]) -> bool:
        """Account for a contiguous page; False where the reader halted in it."""
        before = len(self.parked)
        group = Group()
        for fact in page:
            reason = self._unusable(fact)
            if reason is not None:
                await self._flush(group)
                group = Group()
                await self._park(fact, reason)
                if self._systemic(len(self.parked) - before, len(page)):
                    await self._halt(f"{len(self.parked)} streams are parked, the last: {reason}")
                    return False
                continue
            if fact.type not in self._consumer.handles:
                group.skip(fact)
                continue
            if isinstance(self._consumer, Folder):
                group.add(fact, ())
                continue
            try:
                reactions = await self._consumer.react(fact)
            except (Unavailable, *LOST):
                raise
            except Exception as error:
                await self._flush(group)
                group = Group()
                await self._park_raised(fact, error)
                if self._systemic(len(self.parked) - before, len(page)):
                    await self._halt(f"{len(self.parked)} streams are parked, the last: {error!r}")
                    return False
                continue
            if not group.takes(reactions):
                await self._flush(group)
                group = Group()
            group.add(fact, reactions)
        await self._flush(group)
        return True

    def _systemic(self, parked: int, page: int) -> bool:
        share = page >= PARKED_SHARE_PAGE_MIN and parked > page * PARKED_SHARE_MAX
        return share or len(self.parked) > PARKED_STREAMS_MAX

    def _unusable(self, fact: Recorded) -> str | None:
        if fact.stream in self.parked:
            return BEHIND
        if fact.message is None:
            return f"{UNKNOWN_TYPE}: {fact.type} is not known to this process"
        return None

    async def _flush(self, group: Group) -> None:
        """Commit a group; where a decision raises, fact by fact, and park the one that does."""
        if not group.last:
            return
        if isinstance(self._consumer, Folder):
            await self._fold(group, self._consumer)
            return
        try:
            await self._decide(group)
        except (Overtaken, Fenced, Unavailable, Exhausted, OutcomeUnknown):
            raise
        except Exception as error:
            if len(group.facts) == 1 and not group.passed_over:
                await self._park_raised(group.facts[0][0], error)
                return
            _log.warning("%s: a group of %d failed (%r)", self.name, len(group.facts), error)
            await self._one_by_one(group)

    async def _one_by_one(self, group: Group) -> None:
        handled = {fact.position: (fact, reactions) for fact, reactions in group.facts}
        first = self.position + 1
        for place in range(first, group.last + 1):
            alone = Group(last=place)
            if place in handled:
                fact, reactions = handled[place]
                if fact.stream in self.parked:
                    await self._park(fact, BEHIND)
                    continue
                alone.add(fact, reactions)
            else:
                alone.passed_over = 1
            await self._flush(alone)

    async def _decide(self, group: Group) -> None:
        """Load, fold and decide everything of a group, and commit it with the checkpoint."""
        for _ in range(ATTEMPTS_MAX):
            names = list(
                dict.fromkeys(
                    name
                    for _, reactions in group.facts
                    for one in reactions
                    for name in one.streams
                )
            )
            loaded = await self._journal.load(names) if names else {}
            messages: list[Message] = []
            metas: list[Meta] = []
            for fact, reactions in group.facts:
                for reaction in reactions:
                    said = decide(reaction, loaded)
                    messages += said
                    metas += [self._meta(fact)] * len(said)
            command = Command(
                facts=tuple(messages),
                meta=Meta(f"service:{self.name.split('/')[0]}"),
                metas=tuple(metas),
                expected={name: len(loaded[name]) for name in names},
                advance=Advance(
                    reader=self.name,
                    journal=self.feed.journal,
                    epoch=await self._epoch(group),
                    after=self.position,
                    position=group.last,
                    folded=len(group.facts),
                    passed_over=group.passed_over,
                ),
            )
            try:
                await self._journal.append(command)
            except (Stale, Stated):
                continue
            self._advance(group.last)
            return
        raise Exhausted("READER_RACES", f"{self.name} lost {ATTEMPTS_MAX} races in a row.")

    async def _fold(self, group: Group, folder: Folder) -> None:
        """Write rows and checkpoint in one transaction."""
        writes = [write for fact, _ in group.facts for write in folder.write(fact)]
        try:
            async with self._database.connection() as connection, connection.transaction():
                await self._hold(connection)
                await execute_writes(connection, self._queries, writes)
                await connection.execute(
                    _queries["move_checkpoint"],
                    self.name,
                    self.feed.journal,
                    await self._epoch(group),
                    group.last,
                    len(group.facts),
                    group.passed_over,
                )
        except LOST as error:
            raise unavailable(error) from error
        self._advance(group.last)

    async def _hold(self, connection: Connection) -> None:
        """Lock the checkpoint; Overtaken where it is not where this reader left it."""
        row = await connection.fetchrow(_queries["lock_checkpoint"], self.name, self.feed.journal)
        if row is None or row["position"] != self.position or row["halted"] is not None:
            raise Overtaken(self.name)

    async def _park_raised(self, fact: Recorded, error: Exception) -> None:
        _log.error("%s parks %s at %d", self.name, fact.stream, fact.position, exc_info=error)
        await self._park(fact, f"{type(error).__name__}: {error}")

    async def _park(self, fact: Recorded, reason: str) -> None:
        """Keep a fact that could not be used, and account for it."""
        try:
            async with self._database.connection() as connection, connection.transaction():
                await self._hold(connection)
                await connection.execute(
                    _queries["park"],
                    self.name,
                    self.feed.journal,
                    fact.position,
                    fact.stream,
                    fact.project,
                    fact.type,
                    reason,
                    to_record(fact).SerializeToString(deterministic=True),
                )
                await connection.execute(
                    _queries["move_checkpoint"],
                    self.name,
                    self.feed.journal,
                    fact.epoch,
                    fact.position,
                    0,
                    0,
                )
        except LOST as error:
            raise unavailable(error) from error
        self.parked.add(fact.stream)
        self._advance(fact.position)

    async def _retry_unknown(self) -> None:
        """At each start: what was parked because its type was not known may be known by now."""
        for stream in sorted(self.parked):
            rows = await self._database.fetch(_queries["parked_of_stream"], self.name, stream)
            first = next((row for row in rows if row["journal"] == self.feed.journal), None)
            if first is not None and first["reason"].startswith(UNKNOWN_TYPE):
                if first["type"] in self._registry.classes:
                    await self.retry(stream)

    async def retry(self, stream: str) -> tuple[int, int]:
        """
        Handle the parked facts of one stream again, in order, each in the transaction of its effects.

        Returns how many were handled and how many are left; the first that still fails ends it.
        """
        rows = [
            row
            for row in await self._database.fetch(_queries["parked_of_stream"], self.name, stream)
            if row["journal"] == self.feed.journal
        ]
        handled = 0
        for row in rows:
            fact = from_record(api.Record.FromString(row["record"]), self._registry)
            if fact.message is None:
                break
            try:
                await self._retry_one(fact)
            except (Unavailable, Exhausted, OutcomeUnknown, Overtaken):
                raise
            except Exception as error:
                _log.warning("%s still cannot use %d: %r", self.name, fact.position, error)
                break
            handled += 1
        if handled == len(rows):
            self.parked.discard(stream)
        return handled, len(rows) - handled

    async def _retry_one(self, fact: Recorded) -> None:
        unpark = Unpark(self.name, self.feed.journal, fact.position)
        if isinstance(self._consumer, Folder):
            await self._refold(fact, self._consumer, unpark)
            return
        handles = fact.type in self._consumer.handles
        reactions = await self._consumer.react(fact) if handles else ()
        for _ in range(ATTEMPTS_MAX):
            names = list(dict.fromkeys(name for one in reactions for name in one.streams))
            loaded = await self._journal.load(names) if names else {}
            messages = [message for one in reactions for message in decide(one, loaded)]
            try:
                await self._journal.append(
                    Command(
                        facts=tuple(messages),
                        meta=self._meta(fact),
                        expected={name: len(loaded[name]) for name in names},
                        unpark=unpark,
                    )
                )
            except (Stale, Stated):
                continue
            return
        raise Exhausted("READER_RACES", f"{self.name} lost {ATTEMPTS_MAX} races in a row.")

    async def _refold(self, fact: Recorded, folder: Folder, unpark: Unpark) -> None:
        """Write a parked fact's rows and take it out of the parking, in one transaction."""
        writes = folder.write(fact) if fact.type in folder.handles else ()
        async with self._database.connection() as connection, connection.transaction():
            await connection.fetchrow(_queries["lock_checkpoint"], self.name, self.feed.journal)
            await execute_writes(connection, self._queries, writes)
            gone = await connection.fetchval(
                _queries["unpark"], unpark.reader, unpark.journal, unpark.position
            )
            if gone is None:
                raise Overtaken(self.name)
            await connection.execute(_queries["count_unparked"], self.name, self.feed.journal)

    async def _epoch(self, group: Group) -> int:
        if group.facts:
            return group.facts[-1][0].epoch
        row = await self._checkpoint()
        return row[0] if row is not None else 1

    def _meta(self, fact: Recorded) -> Meta:
        return Meta(
            actor=f"service:{self.name.split('/')[0]}",
            cause_journal=fact.journal,
            cause_position=fact.position,
            traceparent=fact.meta.traceparent,
        )

    def _advance(self, position: int) -> None:
        self.position = position
        self._moved.set()
        self._moved = asyncio.Event()


def decide(reaction: Reaction, loaded: Mapping[str, Sequence[Recorded]]) -> Sequence[Message]:
    """Fold the streams of a reaction and decide."""
    state = reaction.fold(*(loaded[name] for name in reaction.streams))
    return reaction.decide(state)
