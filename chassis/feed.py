"""The facts of one journal in order and without holes, from its stream or from its owner's log."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from datetime import datetime
from typing import Protocol

from chassis.bus import Away, Bus, Foreign
from chassis.envelope import Recorded, Registry, from_record
from chassis.journal import Page
from chassis.refusals import Unavailable
from fermion.api.journal import v1 as api

# Facts that are read at one go, unless whoever reads takes more.
PAGE_MAX = 500
SILENT_SECONDS = 2.0
AGAIN_SECONDS = 0.2
# So long an own journal is waited for at a time; its growth is told at once.
GROWN_SECONDS = 2.0

_log = logging.getLogger(__name__)


class LogSource(Protocol):
    """Where old facts come from."""

    async def read(self, after: int, limit: int) -> Page:
        """Read facts after a position; `Unavailable` where the owner is away."""
        ...

    async def grown(self, past: int, seconds: float) -> None:
        """Return when there is more than up to a position, or after so many seconds."""
        ...


class NewLineage(Exception):
    """The journal was restored: what was read at or past `first` is not true any more."""

    def __init__(self, epoch: int, first: int) -> None:
        super().__init__(f"epoch {epoch} begins at {first}")
        self.epoch = epoch
        self.first = first


class LostTail(Exception):
    """The journal ends before what was read of it, in one lineage: it has lost its tail."""

    def __init__(self, epoch: int, head: int) -> None:
        super().__init__(f"epoch {epoch} ends at {head}")
        self.epoch = epoch
        self.head = head


class Feed:
    """
    The facts of one journal in order from a position, whatever happens to broker and owner.

    It catches up from the log, then follows the stream. A hole, a lost consumer or two seconds of
    silence send it back to the log; while the owner is away it waits, and never skips. Without a
    bus it reads the log only.
    """

    def __init__(self, journal: str, log: LogSource, bus: Bus | None, registry: Registry) -> None:
        self.journal = journal
        self.head = 0
        # Whether the owner has answered at all.
        self.heard = False
        # Whether the stream was found to have more than the log.
        self._long = False
        self._log = log
        self._bus = bus
        self._registry = registry

    async def ask_head(self) -> int:
        """Ask the owner for the journal's last position; `Unavailable` where it is away."""
        return (await self.look()).head

    async def look(self) -> Page:
        """Ask the owner for the journal's head and lineage, and not for facts; `Unavailable` likewise."""
        page = await self._log.read(0, 1)
        self.head = page.head
        return page

    async def ahead(self, position: int) -> tuple[int, datetime | None]:
        """
        Ask the owner for the journal's last position, and when what follows a position was recorded.

        None where nothing does; `Unavailable` where the owner is away.
        """
        page = await self._log.read(position, 1)
        return page.head, page.records[0].record_time if page.records else None

    async def pages(
        self, after: int, epoch: int, size: int = PAGE_MAX
    ) -> AsyncGenerator[Sequence[Recorded], None]:
        """
        Give contiguous pages for ever, an empty one after each silence; close it when done.

        `epoch` is that of what was read so far, 0 for nothing; `size` is how many facts are read of
        the log at one go. Raises NewLineage, and LostTail where the stream may hold more of what the
        journal has lost: nobody may act on it.
        """
        position = after
        while True:
            start = position
            page = await self._read(position, size)
            if page is not None:
                if epoch and page.epoch != epoch:
                    raise NewLineage(page.epoch, page.epoch_first)
                epoch = page.epoch
            if page is not None and page.records:
                position = page.records[-1].position
                yield page.records
                if position < page.head:
                    continue
                # There was no more: it is not asked for before there is.
            else:
                yield ()
                if page is not None and page.head < position:
                    _log.error("%s ends at %d, and %d was read", self.journal, page.head, position)
                    raise LostTail(page.epoch, page.head)
            if self._bus is not None:
                async with aclosing(self._live(position, epoch, self._bus)) as live:
                    async for records in live:
                        if records:
                            position, epoch = records[-1].position, records[-1].epoch
                        yield records
                if position == start:
                    # Neither the log nor the stream had the next one.
                    await asyncio.sleep(AGAIN_SECONDS)
            else:
                await self._wait(position)

    async def _read(self, position: int, limit: int) -> Page | None:
        """Read the log; None where it cannot be read."""
        try:
            page = await self._log.read(position, limit)
        except Unavailable as error:
            _log.debug("log of %s: %s", self.journal, error)
            return None
        places = [record.position for record in page.records]
        if places != list(range(position + 1, position + 1 + len(places))):
            # A log never has a hole; one that does must not be read over.
            _log.error("the log of %s gave %s after %d", self.journal, places[:3], position)
            return None
        self.head, self.heard = page.head, True
        return page

    async def _wait(self, position: int) -> None:
        try:
            await self._log.grown(position, GROWN_SECONDS)
        except Unavailable:
            await asyncio.sleep(AGAIN_SECONDS)

    async def _live(
        self, position: int, epoch: int, bus: Bus
    ) -> AsyncGenerator[Sequence[Recorded], None]:
        """Follow the stream until it is silent, holed, lost or of another lineage."""
        try:
            if await self._too_long(bus):
                # Nobody may act on what the journal has lost; what it has can be read there.
                level = logging.DEBUG if self._long else logging.ERROR
                _log.log(level, "the stream of %s has more than its log", self.journal)
                self._long = True
                await asyncio.sleep(AGAIN_SECONDS)
                return
            self._long = False
            async with bus.follow(self.journal, position + 1) as following:
                while True:
                    found = await following(SILENT_SECONDS)
                    if not found:
                        if await self._behind(position, epoch):
                            _log.info("the stream of %s is silent; reading its log", self.journal)
                            return
                        yield ()
                        continue
                    records, whole = contiguous(position, epoch, found)
                    if records:
                        position = records[-1].position
                        epoch = records[-1].epoch
                        self.head = max(self.head, position)
                        yield [from_record(record, self._registry) for record in records]
                    if not whole:
                        _log.info("a hole in the stream of %s after %d", self.journal, position)
                        return
        except Away as error:
            _log.debug("stream of %s: %s", self.journal, error)

    async def _too_long(self, bus: Bus) -> bool:
        """Whether the stream ends behind the journal's head, in its lineage; asked before it is followed."""
        tail = await bus.tail(self.journal)
        if tail is None or tail.empty:
            return False
        try:
            # After the tail: what is published has been committed before.
            page = await self._log.read(0, 1)
        except Unavailable:
            return False
        if tail.last <= page.head:
            return False
        try:
            last = await bus.message(self.journal, tail.last)
        except Foreign:
            # What it has more is no fact at all.
            return True
        return last is not None and last.epoch == page.epoch

    async def _behind(self, position: int, epoch: int) -> bool:
        """After a silence: does the log know more, or another lineage?"""
        page = await self._read(position, 1)
        return page is not None and (page.head != position or page.epoch != epoch)


def contiguous(
    after: int, epoch: int, records: Sequence[api.Record]
) -> tuple[list[api.Record], bool]:
    """
    Take what follows a position one by one, and leave out what was seen before.

    Also tells whether that was all: it ends before a hole, and before another epoch than the one
    that is read (0 for any).
    """
    taken: list[api.Record] = []
    for record in records:
        if record.position <= after:
            continue
        epoch = epoch or record.epoch
        if record.position != after + 1 or record.epoch != epoch:
            return taken, False
        taken.append(record)
        after += 1
    return taken, True
