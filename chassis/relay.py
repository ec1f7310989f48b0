"""Copies a journal to its stream: in order, without gaps, fenced by the stream itself."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from chassis.bus import BATCH_MAX, Away, Bus, OutOfSequence
from chassis.envelope import Recorded
from chassis.journal import Journal
from chassis.lease import Lease
from chassis.refusals import Unavailable

# A stream that is gone is filled again with so many facts; older ones come from the log anyway.
REFILL_MAX = 100_000
POLL_SECONDS = 1.0
AGAIN_SECONDS = 0.2
HALTED_SECONDS = 5.0

_log = logging.getLogger(__name__)


class Halted(Exception):
    """The stream has what the journal has not: a restore or a failover lost the journal's tail."""


class Relay:
    """
    One loop per journal. Two at once do no harm: the expected last sequence lets one through.

    The stream is its own checkpoint: on start, and after any doubt, its last message is read and
    the copy goes on behind it. `halted` says why it stands still, and is empty while it does not.
    """

    def __init__(
        self,
        journal: Journal,
        bus: Bus,
        lease: Lease,
        published: Callable[[int], None] | None = None,
    ) -> None:
        self._journal = journal
        self._bus = bus
        self._lease = lease
        self._published = published
        self.position = -1
        self.halted = ""

    async def run(self) -> None:
        """Copy until cancelled."""
        while True:
            await self._lease.wait_held()
            try:
                await self._copy(await self._resume())
            except (Away, OutOfSequence, Unavailable) as error:
                _log.debug("relay of %s: %r; reading the tail again", self._journal.name, error)
                await asyncio.sleep(AGAIN_SECONDS)
            except Halted as error:
                if not self.halted:
                    _log.error("relay of %s halted: %s", self._journal.name, error)
                self.halted = str(error)
                await asyncio.sleep(HALTED_SECONDS)

    async def _resume(self) -> int:
        """Find the position behind which to go on."""
        name = self._journal.name
        head = await self._journal.head()
        tail = await self._bus.tail(name)
        if tail is None:
            await self._bus.create_stream(name, max(1, head.position - REFILL_MAX + 1))
            tail = await self._bus.tail(name)
            if tail is None:
                raise Away(f"the stream of {name} could not be made")
        if tail.last > head.position:
            raise Halted(
                f"the stream ends at {tail.last} and the journal at {head.position}: the journal "
                "has lost its tail. Run `fermion restore --accept` once it is clear what was lost."
            )
        stored = await self._bus.message(name, tail.last) if tail.last >= tail.first else None
        if stored is not None:
            page = await self._journal.read(tail.last - 1, 1)
            own = page.records[0] if page.records else None
            if own is None or (own.type, own.data) != (stored.type, stored.data):
                raise Halted(
                    f"position {tail.last} is {stored.type} in the stream and "
                    f"{'nothing' if own is None else own.type} in the journal: they have parted. "
                    "Run `fermion restore --accept` once it is clear what was lost."
                )
        self.halted = ""
        return tail.last

    async def _copy(self, position: int) -> None:
        """Publish page after page, the next one being read while one is on its way."""
        self._moved(position)
        records = await self._next(position)
        while self._lease.held() is not None:
            if not records:
                await self._journal.grown(position, POLL_SECONDS)
                records = await self._next(position)
                continue
            last = records[-1].position
            async with asyncio.TaskGroup() as group:
                ahead = group.create_task(self._next(last), name="relay reads ahead")
                sent = group.create_task(self._publish(records, position), name="relay publishes")
            for outcome in (sent.result(), ahead.exception()):
                if isinstance(outcome, BaseException):
                    raise outcome
            position, records = last, ahead.result()
            self._moved(position)

    async def _publish(
        self, records: Sequence[Recorded], position: int
    ) -> Away | OutOfSequence | None:
        """Publish, and answer a fault instead of raising it through the group that also reads."""
        try:
            await self._bus.publish(records, position)
        except (Away, OutOfSequence) as error:
            return error
        return None

    async def _next(self, position: int) -> tuple[Recorded, ...]:
        try:
            return (await self._journal.read(position, BATCH_MAX)).records
        except Unavailable:
            return ()

    def _moved(self, position: int) -> None:
        self.position = position
        if self._published is not None:
            self._published(position)
