"""
The read side: facts of one journal in order, each accounted for exactly once, by counting.

A reader's checkpoint moves in the transaction of what it did. The next fact has to be checkpoint
+ 1: less is a duplicate, more is a hole, and a hole is filled from the owner's log. Nothing is
acknowledged to the broker, and nothing is skipped: what cannot be used is parked with its stream.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from google.protobuf.message import Message

from chassis.commit import execute_writes
from chassis.envelope import Meta, Recorded, Registry, from_record, to_record
from chassis.feed import PAGE_MAX, Feed, LostTail, NewLineage
from chassis.journal import (
    Advance,
    Command,
    Fenced,
    Journal,
    Overtaken,
    Stale,
    Stated,
    Unpark,
    Write,
)
from chassis.lease import Lease
from chassis.postgres import LOST, Connection, Database, unavailable
from chassis.queries import Queries
from chassis.refusals import Conflict, Exhausted, OutcomeUnknown, Refused, Unavailable
from chassis.tasks import Astray, end, outcome
from chassis.telemetry import linked_span, recording
from fermion.api.journal import v1 as api

# How often `reached` looks where the reader runs in another process.
REACHED_POLL_SECONDS = 0.05
# Facts that are folded at one go: a page costs a transaction, and as much for a few as for many.
FOLD_PAGE_MAX = 2000
# So long facts that are only counted wait for more of them.
LINGER_SECONDS = 0.05
# So often an idle reader looks whether its parking was emptied by another process.
LEARN_SECONDS = 1.0
AGAIN_SECONDS = 0.2
HALTED_SECONDS = 1.0
ATTEMPTS_MAX = 5
# Beyond these the fault is not in a fact but in the reader: it halts instead of parking all.
PARKED_STREAMS_MAX = 100
PARKED_SHARE_MAX = 0.5
PARKED_SHARE_PAGE_MIN = 20
BEHIND = "BEHIND"
UNKNOWN_TYPE = "UNKNOWN_TYPE"
UNREADABLE = "UNREADABLE"
ACCEPT = "Look at what it decided on them, then: fermion restore --accept"

_log = logging.getLogger(__name__)
_queries = Queries.load(Path(__file__).with_name("queries.sql"))


class Systemic(Exception):
    """So much cannot be used that the fault is in the reader and not in the facts."""


# Not the fact's fault: it is read again from the checkpoint.
WAITS = (Overtaken, Fenced, Unavailable, Exhausted, OutcomeUnknown, Systemic)


@dataclass(frozen=True, slots=True)
class Reaction:
    """
    One decision that follows from one fact; the first stream is the one that it is about.

    The reactions of one fact are about different streams. What `decide` says on other streams than
    the first may stand only where no reaction of the same reader looks.
    """

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
        """
        Say what is to be decided; may read own rows, writes nothing.

        Rows may lack what this reader decides on the facts just before: they only choose streams,
        and each stream's state decides.
        """
        ...


@runtime_checkable
class Folder(Protocol):
    """
    A folding reader: facts in, rows of its own out.

    Its tables lie among the kept ones (`migrations/state`), where no rebuild of the service's own
    read model replaces them, and no committer writes them.
    """

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

    def write(self, facts: Sequence[Recorded]) -> Sequence[Write]:
        """
        Say what becomes of the rows; all of it is written in one transaction.

        The facts follow each other in the journal, as many as were read at one go. They alone say it:
        the rows of those before them may not be written yet, and it may be asked again.
        """
        ...

    def written(self) -> None:
        """Hear that the rows are durable: who works by them may look."""
        ...

    def clear(self, journal: str) -> Sequence[Write]:
        """Say what empties the rows that come from one journal, before they are folded anew."""
        ...


@dataclass(slots=True)
class Group:
    """Consecutive facts whose decisions touch different streams, and so may commit as one command."""

    # Each fact with what follows from it; None where it is passed over.
    facts: list[tuple[Recorded, Sequence[Reaction] | None]] = field(default_factory=list)
    about: set[str] = field(default_factory=set)
    beside: set[str] = field(default_factory=set)

    @property
    def after(self) -> int:
        """The position before its first fact."""
        return self.facts[0][0].position - 1

    @property
    def last(self) -> int:
        """The position of its last fact."""
        return self.facts[-1][0].position

    @property
    def epoch(self) -> int:
        """The lineage of its last fact."""
        return self.facts[-1][0].epoch

    @property
    def handled(self) -> list[tuple[Recorded, Sequence[Reaction]]]:
        """What is not passed over."""
        return [(fact, reactions) for fact, reactions in self.facts if reactions is not None]

    @property
    def passed_over(self) -> int:
        """How many are passed over."""
        return sum(reactions is None for _, reactions in self.facts)

    def takes(self, reactions: Sequence[Reaction]) -> bool:
        """Whether these can be decided without seeing what the group decides, nor it seeing theirs."""
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

    def skip(self, fact: Recorded) -> None:
        """Count a fact that the reader does not handle."""
        self.facts.append((fact, None))


@dataclass(frozen=True, slots=True)
class Portion:
    """Facts that follow each other, as many as are looked at in one go; none after a silence."""

    facts: Sequence[Recorded]
    # What a folder writes for all of them at one go; None where each has to be looked at.
    writes: Sequence[Write] | None = None
    # How many of them it handles.
    handled: int = 0


class Reader:
    """
    Runs one consumer or folder over one journal, as long as this process holds its lease.

    `position` is how far it is known to have accounted for, in whichever process; `halted` says
    why it stands still; `parked` are the streams that wait in its parking.
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
        # Streams that may wait in the parking: only the loop adds, and asks again before it parks.
        self.parked: set[str] = set()
        # Asked once: asking a protocol costs more than folding a fact.
        self._folder = consumer if isinstance(consumer, Folder) else None
        self._decider = None if isinstance(consumer, Folder) else consumer
        self._handles = consumer.handles
        self._page_max = PAGE_MAX if self._folder is None else FOLD_PAGE_MAX
        self._journal = journal
        self._database = database
        self._queries = queries
        self._lease = lease
        self._registry = registry
        self._moved = asyncio.Event()
        # Somebody waits for what is gathered.
        self._hurried = asyncio.Event()
        self._key = (consumer.name, feed.journal)

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
                await asyncio.sleep(AGAIN_SECONDS)
            except (Unavailable, Exhausted, OutcomeUnknown) as error:
                _log.debug("%s waits: %s", self.name, error)
                await asyncio.sleep(AGAIN_SECONDS)
            except Astray:
                _log.warning("%s begins again", self.name, exc_info=True)
                await asyncio.sleep(AGAIN_SECONDS)

    async def reached(self, position: int, seconds: float) -> bool:
        """
        Wait until a position is accounted for, by whichever process; False where it was not in time.

        `Refused` where this reader stands still before it: until an operator has looked, nobody knows
        whether there is such a position at all.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while True:
            event = self._moved
            if self._lease.held() is None or self.halted:
                found = await self._checkpoint()
                self.position, self.halted = found.position, found.halted
            if self.position >= position:
                return True
            if self.halted:
                raise Refused(
                    "READ_HALTED",
                    f"{self.name} stands still: {self.halted}",
                    next_step="Ask again without `fermion-after` for what is known so far, and an "
                    "operator for what `fermion status` shows.",
                    reader=self.name,
                    journal=self.feed.journal,
                    position=str(position),
                )
            left = deadline - loop.time()
            if left <= 0:
                return False
            self._hurried.set()
            try:
                async with asyncio.timeout(min(left, REACHED_POLL_SECONDS)):
                    await event.wait()
            except TimeoutError:
                continue

    async def retry(self, stream: str) -> tuple[int, int]:
        """
        Handle the parked facts of one stream again, in order, each in the transaction of its effects.

        Returns how many were handled and how many are left; the first that still fails ends it.
        Conflict where somebody else retries or skips the same stream now.
        """
        handled = 0
        while True:
            rows = await self._database.fetch(_queries["parked_of_stream"], *self._key, stream)
            for place, row in enumerate(rows):
                fact = from_record(api.Record.FromString(row["record"]), self._registry)
                try:
                    if fact.message is None:
                        return handled, len(rows) - place
                    await self._retry_one(fact)
                except Overtaken as error:
                    raise _retried_elsewhere(self.name, stream) from error
                except WAITS:
                    raise
                except Exception as error:
                    _log.warning("%s still cannot use %d: %r", self.name, fact.position, error)
                    return handled, len(rows) - place
                handled += 1
            if not rows:
                # The loop learns it from the parking before it parks another fact of the stream.
                return handled, 0

    async def _checkpoint(self) -> Checkpoint:
        row = await self._database.fetchrow(_queries["read_checkpoint"], *self._key)
        if row is None:
            return Checkpoint(0, 0, "")
        return Checkpoint(row["epoch"], row["position"], row["halted"] or "", row["lost_through"])

    async def _read(self) -> None:
        await self._database.execute(_queries["open_checkpoint"], *self._key, self._folder is None)
        at = await self._checkpoint()
        self.position, self.halted = at.position, at.halted
        if at.halted:
            owner = await self.feed.look() if at.lost_through else None
            if owner is not None and owner.epoch != at.epoch:
                await self._new_lineage(NewLineage(owner.epoch, owner.epoch_first))
            else:
                await asyncio.sleep(HALTED_SECONDS)
            return
        await self._learn_parked()
        await self._retry_unknown()
        try:
            loop, again = asyncio.get_running_loop(), 0.0
            feed = self.feed.pages(at.position, at.epoch if at.position else 0, self._page_max)
            async with aclosing(feed) as pages, aclosing(self._gathered(pages)) as gathered:
                async for portion in gathered:
                    if self._lease.held() is None:
                        return
                    if portion.facts:
                        await self._handle(portion)
                    elif loop.time() >= again:
                        # Another process may have emptied the parking meanwhile.
                        again = loop.time() + LEARN_SECONDS
                        await self._learn_parked()
        except NewLineage as new:
            await self._new_lineage(new)
        except LostTail as lost:
            await self._lost_tail(lost)
        except Systemic as error:
            await self._halt(str(error))

    async def _gathered(self, pages: AsyncIterator[Sequence[Recorded]]) -> AsyncGenerator[Portion]:
        """
        Let facts that are only counted wait a moment for more, since each page costs a commit.

        The next page is read, and what a folder writes for it worked out, while one is committed. A
        page with a fact that is handled goes on at once with what waits before it; so does all
        that waits as soon as somebody asks whether this reader has reached it.
        """
        loop = asyncio.get_running_loop()
        waiting: list[Recorded] = []
        until = 0.0
        ahead = asyncio.ensure_future(self._next(pages))
        try:
            while True:
                left = max(0.0, until - loop.time()) if waiting else None
                if not await self._comes(ahead, left):
                    self._hurried.clear()
                    yield Portion(waiting, ())
                    waiting = []
                    continue
                page = outcome(ahead)
                ahead = asyncio.ensure_future(self._next(pages))
                if not waiting:
                    until = loop.time() + LINGER_SECONDS
                waiting += page.facts
                if not waiting:
                    yield page
                elif len(waiting) >= self._page_max or not all(map(self._only_counts, page.facts)):
                    # What waited before it is only counted.
                    yield Portion(waiting, page.writes, page.handled)
                    waiting = []
        finally:
            await end(ahead)

    async def _next(self, pages: AsyncIterator[Sequence[Recorded]]) -> Portion:
        """Read a page, and work out what a folder writes for it."""
        facts = await anext(pages)
        if self._folder is None or any(fact.message is None for fact in facts):
            return Portion(facts)
        handled = [fact for fact in facts if fact.type in self._handles]
        try:
            return Portion(facts, self._folder.write(handled) if handled else (), len(handled))
        except Exception as error:
            # Whatever one fact raises is that fact's: they are looked at one by one, and it is parked.
            _log.warning("%s: a page of %d failed (%r)", self.name, len(facts), error)
            return Portion(facts)

    async def _comes(self, ahead: asyncio.Future[Portion], left: float | None) -> bool:
        """Wait for the next page, so long at most; False where what waits has to go on without it."""
        if left is None:
            await asyncio.wait({ahead})
            return True
        if ahead.done():
            return True
        hurried = asyncio.ensure_future(self._hurried.wait())
        try:
            either: set[asyncio.Future[Any]] = {ahead, hurried}
            await asyncio.wait(either, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            return ahead.done()
        finally:
            await end(hurried)

    def _only_counts(self, fact: Recorded) -> bool:
        return (
            fact.type not in self._handles
            and fact.message is not None
            and fact.stream not in self.parked
        )

    async def _learn_parked(self) -> None:
        rows = await self._database.fetch(_queries["parked_streams"], *self._key)
        self.parked = {row["stream"] for row in rows}

    async def _new_lineage(self, new: NewLineage) -> None:
        """
        Below the restored position nothing changed. What was read at or past it may be untrue:
        rows are folded anew; who has decided on it stands still until an operator has looked, and
        then goes on with what the new lineage has there.
        """
        async with self._transaction() as connection:
            row = await connection.fetchrow(_queries["lock_checkpoint"], *self._key)
            if row is None or (row["halted"] is not None and not row["lost_through"]):
                raise Overtaken(self.name)
            lost = row["lost_through"]
            if row["position"] < new.first and (self._folder is None or not lost):
                # Who stands still for what he had used goes on standing there.
                await connection.execute(_queries["adopt_epoch"], *self._key, new.epoch)
                return
            why, back = None, 0
            if self._folder is not None:
                lost = 0
                _log.warning("%s folds %s anew: %s", self.name, self.feed.journal, new)
                await execute_writes(
                    connection, self._queries, self._folder.clear(self.feed.journal)
                )
            else:
                lost = lost or row["position"]
                why = (
                    f"{self.feed.journal} was restored to before {new.first} (epoch {new.epoch}), "
                    f"and this reader had decided on facts up to {lost}. {ACCEPT}"
                )
                back = new.first - 1
                _log.error("%s halted: %s", self.name, why)
            await self._rewind(connection, new.epoch, back, why, lost)
        self.halted = why or ""

    async def _lost_tail(self, tail: LostTail) -> None:
        """
        The journal ends before what was read of it, and may grow past that with other facts; so this
        is kept. A decider goes back to where the journal ends, and stands still there; a folder stands
        still until the new lineage, and then folds anew.
        """
        async with self._transaction() as connection:
            row = await connection.fetchrow(_queries["lock_checkpoint"], *self._key)
            if row is None or row["halted"] is not None or row["position"] <= tail.head:
                raise Overtaken(self.name)
            read = row["position"]
            why = (
                f"{self.feed.journal} ends at {tail.head}, and this reader had used facts up to "
                f"{read}: the journal has lost its tail. {ACCEPT}"
            )
            _log.error("%s halted: %s", self.name, why)
            if self._folder is None:
                await self._rewind(connection, tail.epoch, tail.head, why, read)
            else:
                await connection.execute(_queries["halt_reader"], *self._key, why, read)
        self.halted = why

    async def _rewind(
        self, connection: Connection, epoch: int, position: int, why: str | None, lost: int
    ) -> None:
        await connection.execute(_queries["unpark_past"], *self._key, position)
        await connection.execute(
            _queries["rewind_checkpoint"], *self._key, epoch, position, why, lost
        )

    async def _halt(self, why: str) -> None:
        _log.error("%s halted: %s", self.name, why)
        await self._database.execute(_queries["halt_reader"], *self._key, why, 0)
        self.halted = why

    async def _handle(self, portion: Portion) -> None:
        """Account for contiguous facts; Systemic where too much of them cannot be used."""
        if not await self._folded(portion):
            await self._look_at_each(portion.facts)

    async def _folded(self, portion: Portion) -> bool:
        """Whether a folder could write all of it at one go."""
        facts, writes = portion.facts, portion.writes
        if self._folder is None or writes is None:
            return False
        if self.parked and any(fact.stream in self.parked for fact in facts):
            return False
        try:
            await self._fold(facts, writes, portion.handled, self._folder)
        except WAITS:
            raise
        except Exception as error:
            # Nothing of it is written, and one fact is why: they are looked at one by one.
            _log.warning("%s: a page of %d failed (%r)", self.name, len(facts), error)
            return False
        return True

    async def _look_at_each(self, page: Sequence[Recorded]) -> None:
        parking = Parking(len(page))
        group = Group()
        for fact in page:
            if fact.stream in self.parked:
                await self._flush(group, parking)
                group = Group()
                if await self._park(fact, BEHIND, parking):
                    continue
            if fact.message is None:
                await self._flush(group, parking)
                group = Group()
                await self._park(fact, self._unusable(fact), parking)
                continue
            if fact.type not in self._handles:
                group.skip(fact)
                continue
            if self._decider is None:
                # A page is folded at one go: no fact of it has to see what another one does.
                group.add(fact, ())
                continue
            try:
                reactions = await self._react(fact, self._decider)
            except WAITS:
                raise
            except Exception as error:
                await self._flush(group, parking)
                group = Group()
                await self._park_raised(fact, error, parking)
                continue
            if not group.takes(reactions):
                await self._flush(group, parking)
                group = Group()
                if fact.stream in self.parked:
                    # An earlier one of its stream was parked in the flush.
                    await self._park(fact, BEHIND, parking)
                    continue
            group.add(fact, reactions)
        await self._flush(group, parking)

    async def _react(self, fact: Recorded, decider: Consumer) -> Sequence[Reaction]:
        try:
            reactions = await decider.react(fact)
        except LOST as error:
            raise unavailable(error) from error
        about = {reaction.streams[0] for reaction in reactions}
        if len(about) != len(reactions):
            raise ValueError(f"{self.name} reacts twice on one stream to one {fact.type}")
        return reactions

    def _unusable(self, fact: Recorded) -> str:
        """Why a fact without a message has none."""
        if fact.type in self._registry.classes:
            return f"{UNREADABLE}: {len(fact.data)} bytes are not a {fact.type}"
        return f"{UNKNOWN_TYPE}: {fact.type} is not known to this process"

    async def _flush(self, group: Group, parking: Parking) -> None:
        """Commit a group; where a decision raises, fact by fact, and park the one that does."""
        if not group.facts:
            return
        try:
            if self._folder is not None:
                handled = [fact for fact, _ in group.handled]
                writes = self._folder.write(handled) if handled else ()
                facts = [fact for fact, _ in group.facts]
                await self._fold(facts, writes, len(handled), self._folder)
            else:
                await self._decide(group)
            return
        except WAITS:
            raise
        except Exception as error:
            failed = error
        if len(group.facts) == 1:
            await self._park_raised(group.facts[0][0], failed, parking)
        else:
            _log.warning("%s: a group of %d failed (%r)", self.name, len(group.facts), failed)
            await self._one_by_one(group, parking)

    async def _one_by_one(self, group: Group, parking: Parking) -> None:
        for fact, reactions in group.facts:
            if fact.stream in self.parked and await self._park(fact, BEHIND, parking):
                continue
            await self._flush(Group([(fact, reactions)]), parking)

    async def _decide(self, group: Group) -> None:
        """Load, fold and decide everything of a group, and commit it with the checkpoint."""
        handled = group.handled
        advance = Advance(
            reader=self.name,
            journal=self.feed.journal,
            epoch=group.epoch,
            after=group.after,
            position=group.last,
            folded=len(handled),
            passed_over=group.passed_over,
        )
        await self._say(handled, advance, None)
        self._advance(group.last)

    async def _say(
        self,
        handled: Sequence[tuple[Recorded, Sequence[Reaction]]],
        advance: Advance | None,
        unpark: Unpark | None,
    ) -> None:
        """Decide and append; Stated where a statement that is said already does not show in the state."""
        names = list(
            dict.fromkeys(
                name for _, reactions in handled for one in reactions for name in one.streams
            )
        )
        spans = [
            linked_span(f"consume {self.name}", fact.meta.traceparent, {"fact.type": fact.type})
            for fact, _ in (handled if recording() else ())
            if fact.meta.traceparent
        ]
        stated: Stated | None = None
        try:
            for _ in range(ATTEMPTS_MAX):
                loaded = await self._journal.load(names) if names else {}
                messages: list[Message] = []
                metas: list[Meta] = []
                for fact, reactions in handled:
                    for reaction in reactions:
                        said = decide(reaction, loaded)
                        messages += said
                        metas += [self._meta(fact)] * len(said)
                command = Command(
                    facts=tuple(messages),
                    meta=Meta(f"service:{self._journal.name.split('/')[0]}"),
                    metas=tuple(metas),
                    expected={name: len(loaded[name]) for name in names},
                    advance=advance,
                    unpark=unpark,
                )
                try:
                    await self._journal.append(command)
                    return
                except Stale:
                    stated = None
                except Stated as error:
                    stated = error
        finally:
            for span in spans:
                span.end()
        if stated is not None:
            raise stated
        raise Exhausted("READER_RACES", f"{self.name} lost {ATTEMPTS_MAX} races in a row.")

    async def _fold(
        self, facts: Sequence[Recorded], writes: Sequence[Write], handled: int, folder: Folder
    ) -> None:
        """Write rows and checkpoint in one transaction."""
        last = facts[-1]
        after, passed_over = facts[0].position - 1, len(facts) - handled
        moved = (after, last.epoch, last.position, handled, passed_over)
        async with self._transaction() as connection:
            # First of all, which takes its lock, too: each statement more is a way there and back.
            if (
                await connection.fetchval(_queries["advance_checkpoint"], *self._key, *moved)
                is None
            ):
                raise Overtaken(self.name)
            await execute_writes(connection, self._queries, writes)
        if handled:
            folder.written()
        self._advance(last.position)

    @asynccontextmanager
    async def _transaction(self) -> AsyncGenerator[Connection, None]:
        async with self._database.connection() as connection, connection.transaction():
            yield connection

    async def _hold(self, connection: Connection, position: int) -> None:
        """Lock the checkpoint; Overtaken where it is elsewhere."""
        row = await connection.fetchrow(_queries["lock_checkpoint"], *self._key)
        if row is None or row["position"] != position or row["halted"] is not None:
            raise Overtaken(self.name)

    async def _park_raised(self, fact: Recorded, error: Exception, parking: Parking) -> None:
        _log.error("%s parks %s at %d", self.name, fact.stream, fact.position, exc_info=error)
        await self._park(fact, f"{type(error).__name__}: {error}", parking)

    async def _park(self, fact: Recorded, reason: str, parking: Parking) -> bool:
        """
        Keep a fact that could not be used, and account for it.

        False where it would be parked BEHIND others of its stream and an operator has taken them
        all out meanwhile: it is to be handled then.
        """
        async with self._transaction() as connection:
            await self._hold(connection, fact.position - 1)
            if reason == BEHIND and not await connection.fetchval(
                _queries["is_parked"], *self._key, fact.stream
            ):
                self.parked.discard(fact.stream)
                return False
            await connection.execute(
                _queries["park"],
                *self._key,
                fact.position,
                fact.stream,
                fact.project,
                fact.type,
                reason,
                to_record(fact).SerializeToString(deterministic=True),
            )
            await connection.execute(
                _queries["move_checkpoint"], *self._key, fact.epoch, fact.position, 0, 0
            )
        self.parked.add(fact.stream)
        self._advance(fact.position)
        if reason != BEHIND:
            parking.failed += 1
            if parking.systemic(len(self.parked)):
                raise Systemic(f"{len(self.parked)} streams are parked, the last for: {reason}")
        return True

    async def _retry_unknown(self) -> None:
        """At each start: what was parked because its type was not known may be known by now."""
        for stream in sorted(self.parked):
            rows = await self._database.fetch(_queries["parked_of_stream"], *self._key, stream)
            if rows and rows[0]["reason"].startswith(UNKNOWN_TYPE):
                if rows[0]["type"] in self._registry.classes:
                    await self.retry(stream)

    async def _retry_one(self, fact: Recorded) -> None:
        unpark = Unpark(self.name, self.feed.journal, fact.position)
        handles = fact.type in self._handles
        if self._folder is not None:
            await self._refold(self._folder.write([fact]) if handles else (), unpark)
            self._folder.written()
        elif self._decider is not None:
            reactions = await self._react(fact, self._decider) if handles else ()
            await self._say([(fact, reactions)], None, unpark)

    async def _refold(self, writes: Sequence[Write], unpark: Unpark) -> None:
        """Write a parked fact's rows and take it out of the parking, in one transaction."""
        async with self._transaction() as connection:
            await connection.fetchrow(_queries["lock_checkpoint"], *self._key)
            await execute_writes(connection, self._queries, writes)
            if not await connection.fetchval(_queries["unpark"], *self._key, unpark.position):
                raise Overtaken(self.name)
            await connection.execute(_queries["count_unparked"], *self._key)

    def _meta(self, fact: Recorded) -> Meta:
        return Meta(
            actor=f"service:{self._journal.name.split('/')[0]}",
            cause_journal=fact.journal,
            cause_position=fact.position,
            traceparent=fact.meta.traceparent,
        )

    def _advance(self, position: int) -> None:
        self.position = position
        self._moved.set()
        self._moved = asyncio.Event()


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """
    How far a reader got, of which lineage, and why it stands still there; `lost_through` only where that
    is because it had used facts up to there that its journal has lost.
    """

    epoch: int
    position: int
    halted: str
    lost_through: int = 0


@dataclass(slots=True)
class Parking:
    """What a page has cost so far, to tell a bad fact from a bad reader."""

    page: int
    failed: int = 0

    def systemic(self, streams: int) -> bool:
        """Whether more streams are parked, or more of a large page has failed, than facts can explain."""
        share = self.page >= PARKED_SHARE_PAGE_MIN and self.failed > self.page * PARKED_SHARE_MAX
        return share or streams > PARKED_STREAMS_MAX


def decide(reaction: Reaction, loaded: Mapping[str, Sequence[Recorded]]) -> Sequence[Message]:
    """Fold the streams of a reaction and decide."""
    state = reaction.fold(*(loaded[name] for name in reaction.streams))
    return reaction.decide(state)


def _retried_elsewhere(reader: str, stream: str) -> Conflict:
    return Conflict(
        "PARKED_RETRIED",
        f"Somebody else handles what {reader} has parked of {stream}.",
        next_step="See what is left: fermion journal parked.",
        reader=reader,
        stream=stream,
    )
