"""A feed reads its journal's log no more often than there is something to read."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

from chassis.feed import Feed
from chassis.journal import Command, Journal, Page
from chassis.remote import LocalLog
from chassis.testing.memory import MemoryJournal
from tests.sample import BOOK, META, REGISTRY, asked

JOURNAL = "other/0"


class Counted(LocalLog):
    """A log that counts how often it is read, and says when it is waited for."""

    def __init__(self, journal: Journal) -> None:
        super().__init__(journal)
        self.reads = 0
        self.awaited = asyncio.Event()

    async def read(self, after: int, limit: int) -> Page:
        self.reads += 1
        return await super().read(after, limit)

    async def grown(self, past: int, seconds: float) -> None:
        self.awaited.set()
        await super().grown(past, seconds)


async def said(journal: Journal, *names: str) -> None:
    for name in names:
        await journal.append(Command((asked(name),), META))


async def test_behind_its_end_a_journal_is_not_read_before_it_has_grown() -> None:
    journal = MemoryJournal(JOURNAL, registry=REGISTRY, book=BOOK)
    await said(journal, "inst_1", "inst_2", "inst_3")
    log = Counted(journal)
    async with aclosing(Feed(JOURNAL, log, None, REGISTRY).pages(0, 0, 2)) as pages:
        # A page that is full ends before the journal does; the other one ends with it.
        assert [one.position for one in await anext(pages)] == [1, 2]
        assert [one.position for one in await anext(pages)] == [3]
        more = asyncio.ensure_future(anext(pages))
        await log.awaited.wait()
        assert log.reads == 2
        await said(journal, "inst_4")
        assert [one.position for one in await more] == [4]
        assert log.reads == 3
