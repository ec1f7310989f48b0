"""Copies a journal to its stream: in order, without gaps, fenced by the stream itself."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from chassis.bus import BATCH_MAX, Away, Bus, Foreign, OutOfSequence
from chassis.journal import Head
from chassis.lease import Lease
from chassis.queries import Queries
from chassis.refusals import Unavailable
from chassis.store import PostgresJournal
from chassis.tasks import Astray, end, outcome
from chassis.telemetry import linked_span, recording
from fermion.api.journal import v1 as api

# A stream that is gone is filled again with so many facts. The oldest that any reader still needs
# is not known here, for readers' checkpoints lie in their own services; who needs older ones finds
# a hole and reads the log.
REFILL_MAX = 100_000
# What goes out at once: a batch lies whole in the broker's memory until its end is there.
PORTION_BYTES_MAX = 4 * 1024 * 1024
# Portions that are on their way at once: one is sent while the broker writes down the one before.
SENT_MAX = 2
POLL_SECONDS = 1.0
AGAIN_SECONDS = 0.2
HALTED_SECONDS = 5.0
# After so much quiet the stream is looked at: one that was deleted or cut short is filled again.
QUIET_SECONDS = 5.0

NEXT_STEP = "Find out what was lost, then let it go on as it is: fermion restore --accept"

_log = logging.getLogger(__name__)
_queries = Queries.load(Path(__file__).with_name("queries.sql"))

Sized = TypeVar("Sized")


class Halted(Exception):
    """The stream has what the journal has not: a restore or a failover lost the journal's tail."""


class Relay:
    """
    One loop per journal. Two at once do no harm: the expected last sequence lets one through.

    The stream is its own checkpoint: on start, and after any doubt, its last message is read and
    the copy goes on behind it. `halted` says why it stands still, and is empty while it does not; it
    is kept in the database, too, where a process that does not hold the lease reads it.
    """

    def __init__(
        self,
        journal: PostgresJournal,
        bus: Bus,
        lease: Lease,
        published: Callable[[int], None] | None = None,
    ) -> None:
        self._journal = journal
        self._bus = bus
        self._lease = lease
        self._published = published
        self._trouble = ""
        self.position = -1
        self.head = 0
        self.halted = ""
        # Whether it stands still because of the journal, and not of a message that is no fact.
        self._parted = False
        # The journal's when it was last looked at.
        self._epoch = 0
        # Whether the database is known to tell what `halted` does.
        self._kept = False

    @property
    def lag(self) -> int:
        """Positions that the journal has and the stream, as far as is known, has not."""
        return max(0, self.head - max(0, self.position))

    async def run(self) -> None:
        """Copy until cancelled."""
        await self._bus.on_nudge(self._journal.name, self._journal.wake)
        while True:
            await self._stand_by()
            # Without a connection there is nothing to resume from; with a new one there is at once.
            await self._bus.wait_ready(POLL_SECONDS)
            try:
                await self._copy(await self._resume())
            except (Away, OutOfSequence, Unavailable, Astray) as error:
                self._tell(error)
                await asyncio.sleep(AGAIN_SECONDS)
            except (Halted, Foreign) as error:
                if self.halted != str(error):
                    _log.error("relay of %s halted: %s", self._journal.name, error)
                self.halted, self._parted = str(error), isinstance(error, Halted)
                with suppress(Unavailable):
                    await self._keep()
                await asyncio.sleep(HALTED_SECONDS)

    async def _stand_by(self) -> None:
        """Until the lease is held, tell its holder when the journal grows."""
        if self._lease.held() is not None:
            return
        # Another one copies now, and knows how far it is, or why not.
        self.head = 0
        self.halted, self._kept = "", False
        async with asyncio.TaskGroup() as group:
            nudging = group.create_task(self._nudge(), name="relay nudges")
            await self._lease.wait_held()
            await end(nudging)

    async def _nudge(self) -> None:
        position = 0
        while True:
            try:
                await self._journal.grown(position, POLL_SECONDS)
                head = (await self._journal.head()).position
            except Unavailable:
                await asyncio.sleep(AGAIN_SECONDS)
                continue
            if head > position:
                await self._bus.nudge(self._journal.name)
            position = head

    async def _resume(self) -> int:
        """Find the position behind which to go on."""
        name = self._journal.name
        tail = await self._bus.tail(name)
        if tail is None:
            begin = (await self._journal.head()).position - REFILL_MAX + 1
            await self._bus.create_stream(name, max(1, begin))
            tail = await self._bus.tail(name)
            if tail is None:
                raise Away(f"the stream of {name} could not be made")
        # After the tail, so that the head is never behind it by what another relay publishes now.
        head = await self._journal.head()
        self._epoch = head.epoch
        if not tail.empty and await self._outdated(tail.last, head):
            # A new lineage began on purpose, and this copy is one of what is not true any more.
            _log.warning("the stream of %s is of a former epoch; filling it anew", name)
            await self._bus.delete_stream(name)
            return await self._resume()
        if tail.last > head.position:
            raise Halted(
                f"the stream ends at {tail.last} and the journal at {head.position}: the journal "
                f"has lost its tail. {NEXT_STEP}"
            )
        if not tail.empty:
            await self._compare(tail.last, head.epoch)
        if tail.missing:
            _log.warning(
                "the stream of %s lacks %d facts in its midst; filling it anew", name, tail.missing
            )
            await self._bus.delete_stream(name)
            return await self._resume()
        self.halted = ""
        if not self._kept:
            await self._keep()
        return tail.last

    async def _keep(self) -> None:
        """Let every process know what `halted` says."""
        database, shard = self._journal.database, self._journal.shard
        if self.halted:
            told = (self.halted, self._parted, self._epoch)
            await database.execute(_queries["halt_relay"], shard, *told)
        else:
            await database.execute(_queries["resume_relay"], shard)
        # A halt is said again and again, for another holder may think that it is over.
        self._kept = not self.halted

    async def _outdated(self, last: int, head: Head) -> bool:
        """Whether the stream's last message is of a lineage that had ended before it."""
        stored = await self._bus.message(self._journal.name, last)
        if stored is None:
            raise Away(f"message {last} has just gone")
        return stored.epoch < head.epoch and last >= head.epoch_first

    async def _compare(self, last: int, epoch: int) -> None:
        """Halted where the stream's last message is not what the journal has there."""
        stored = await self._bus.message(self._journal.name, last)
        if stored is None:
            raise Away(f"message {last} has just gone")
        page = await self._journal.records(last - 1, 1)
        own = page.records[0] if page.records else None
        if (
            own is None
            or (own.type, own.data) != (stored.type, stored.data)
            or stored.epoch > epoch
        ):
            raise Halted(
                f"position {last} is {stored.type} of epoch {stored.epoch} in the stream and "
                f"{'nothing' if own is None else own.type} of epoch {epoch} in the journal: they "
                f"have parted. {NEXT_STEP}"
            )

    async def _copy(self, position: int) -> None:
        """Publish all there is, in portions: one is sent while the one before waits for its answer."""
        loop = asyncio.get_running_loop()
        self._moved(position)
        quiet = loop.time()
        ready = await self._next(position)
        sent: deque[tuple[int, asyncio.Task[Away | OutOfSequence | None]]] = deque()
        try:
            while self._lease.held() is not None:
                if ready and len(sent) < SENT_MAX:
                    portion = ready.popleft()
                    publishing = asyncio.create_task(self._publish(portion, position))
                    position = portion[-1].position
                    sent.append((position, publishing))
                    # Where there was no more it is not asked for before there is.
                    if not ready and position < self.head:
                        ready = await self._next(position)
                elif sent:
                    last, publishing = sent[0]
                    await asyncio.wait((publishing,))
                    fault = outcome(publishing)
                    if fault is not None:
                        raise fault
                    sent.popleft()
                    self._moved(last)
                    self._tell(None)
                    quiet = loop.time()
                elif loop.time() > quiet + QUIET_SECONDS:
                    return
                else:
                    await self._journal.grown(position, POLL_SECONDS)
                    ready = await self._next(position)
        finally:
            await end(*(publishing for _, publishing in sent))

    async def _publish(
        self, portion: Sequence[api.Record], position: int
    ) -> Away | OutOfSequence | None:
        """Publish, and answer a fault for who comes to it after those before it."""
        spans = [
            linked_span("publish", fact.meta.traceparent, {"fact.type": fact.type})
            for fact in (portion if recording() else ())
            if fact.meta.traceparent
        ]
        try:
            await self._bus.publish(portion, position)
        except (Away, OutOfSequence) as error:
            return error
        finally:
            for span in spans:
                span.end()
        return None

    async def _next(self, position: int) -> deque[Sequence[api.Record]]:
        """Read what is next, in portions; none where the journal cannot be read."""
        try:
            page = await self._journal.records(position, BATCH_MAX)
        except Unavailable:
            return deque()
        self.head = page.head
        return deque(portions(page.records, api.Record.ByteSize, PORTION_BYTES_MAX))

    def _moved(self, position: int) -> None:
        self.position = position
        if self._published is not None:
            self._published(position)

    def _tell(self, trouble: Exception | None) -> None:
        """Say each new trouble once, not at each attempt."""
        if trouble is not None:
            level = logging.DEBUG if repr(trouble) == self._trouble else logging.WARNING
            _log.log(level, "relay of %s reads the tail again: %r", self._journal.name, trouble)
        self._trouble = repr(trouble) if trouble else ""


def portions(
    items: Sequence[Sized], size: Callable[[Sized], int], bytes_max: int
) -> Iterator[Sequence[Sized]]:
    """Cut a sequence, in order, so that no part but one of a single item is larger than that."""
    first = total = 0
    for place, item in enumerate(items):
        here = size(item)
        if total + here > bytes_max and place > first:
            yield items[first:place]
            first, total = place, 0
        total += here
    if first < len(items):
        yield items[first:]
