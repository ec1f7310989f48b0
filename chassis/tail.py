"""The end of a journal, read once for all who follow it, however many they are."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import islice
from typing import Final

from chassis.journal import Journal, Page
from chassis.refusals import Refused

# Small: a fact may have a quarter of a megabyte, and each that is behind reads a page of its own.
PAGE_MAX: Final = 20
READERS_MAX: Final = 2
LOOK_SECONDS: Final = 15.0
# What is kept for a follower that takes nothing; what is more it reads again by itself.
HELD_BYTES_MAX: Final = 2 * 2**20
# Of a fact beside its own bytes.
FACT_BYTES: Final = 1024
# So many of a project go on at a time, each at the cost of a message or more; then everybody else has this
# long.
TOLD_AT_ONCE: Final = 8
PAUSE_SECONDS: Final = 0.004


class Follower:
    """Who follows a journal from somewhere: pages of its own until it is at the end, then shared ones."""

    def __init__(self, tail: Tail, project: str | None, epoch: int) -> None:
        self._tail = tail
        self.project, self.epoch = project, epoch
        self.pages: deque[Page] = deque()
        self.failure: Refused | None = None
        self.told = asyncio.Event()
        self._held = 0

    async def next(self, after: int, seconds: float) -> Page:
        """
        What was said after a position, to everybody or to its project alone; nothing where nothing
        was in so many seconds. `head` is how far the page reaches, over what is left out of it.

        `Unavailable` where the journal cannot be read now.
        """
        if not self._tail.joined(self) and not self._tail.join(self, after):
            return await self._tail.read(after, seconds)
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not self.pages and self.failure is None and self._tail.joined(self):
                    self.told.clear()
                    await self.told.wait()
        if self.failure is not None:
            failure, self.failure = self.failure, None
            raise failure
        if self.pages:
            page = self.pages.popleft()
            self._held -= _size(page)
            return page
        if self._tail.joined(self):
            return self._tail.nothing
        return await self._tail.read(after, seconds)

    def push(self, page: Page) -> bool:
        """Keep a page for it; False where it holds too much already."""
        self._held += _size(page)
        if self._held > HELD_BYTES_MAX:
            self.pages.clear()
            self._held = 0
            return False
        self.pages.append(page)
        return True


class Tail:
    """
    Reads a journal as long as somebody follows it, and gives each page to those whose project is in it.

    One that takes its pages too slowly is let go of, and reads for itself until it has caught up: what
    is kept for it is bounded. Where thousands follow one project, those of the others do not wait until
    all of them have heard. Where the journal cannot be read, all who follow it hear why.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._followers: dict[str | None, dict[Follower, None]] = {}
        self._wanted = asyncio.Event()
        # Nothing that was said up to its head is unknown to those who follow.
        self.nothing = Page((), 0, 0)
        # Counts how often it began somewhere else.
        self._beginning = 0
        # However many are behind, no more pages than this are in memory for them.
        self._readers = asyncio.Semaphore(READERS_MAX)
        # Who has something to hear, by project.
        self._due: dict[str | None, dict[Follower, None]] = {}
        self._any_due = asyncio.Event()

    async def run(self) -> None:
        """Read for all who follow, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._read_on(), name="tail reads")
            group.create_task(self._tell(), name="tail tells")

    async def _read_on(self) -> None:
        while True:
            await self._wanted.wait()
            beginning, after = self._beginning, self.nothing.head
            try:
                page = await self.read(after)
            except Refused as error:
                self._let_go(error)
                continue
            if beginning != self._beginning:
                continue
            self._share(page)
            with suppress(Refused):
                # At once where there is more already. Who cannot look hears why when it reads.
                await self._journal.grown(page.head, LOOK_SECONDS)

    async def read(self, after: int, seconds: float = 0.0) -> Page:
        """A page of all that was said after a position; it may wait so long for something to be said."""
        if seconds:
            await self._journal.grown(after, seconds)
        async with self._readers:
            page = await self._journal.read(after, PAGE_MAX)
        last = page.records[-1].position if page.records else after
        return replace(page, head=max(last, page.head) if page.ends else last)

    @contextmanager
    def following(self, project: str | None, epoch: int) -> Iterator[Follower]:
        """Follow what is said to a project, or to all, in an epoch of the journal."""
        follower = Follower(self, project, epoch)
        try:
            yield follower
        finally:
            self._leave(follower)

    def joined(self, follower: Follower) -> bool:
        """Whether pages are given to it."""
        return follower in self._followers.get(follower.project, ())

    def join(self, follower: Follower, after: int) -> bool:
        """Give it pages from now on; False where it has not come as far as they have."""
        known = self.nothing
        if not self._followers and (follower.epoch != known.epoch or after >= known.head):
            self.nothing = Page((), after, follower.epoch)
            self._beginning += 1
            self._wanted.set()
        elif after < known.head:
            return False
        self._followers.setdefault(follower.project, {})[follower] = None
        return True

    def _leave(self, follower: Follower) -> None:
        beside = self._followers.get(follower.project, {})
        beside.pop(follower, None)
        if not beside:
            self._followers.pop(follower.project, None)
        if not self._followers:
            self._wanted.clear()

    def _share(self, page: Page) -> None:
        """Give a page to all whom it is for, at one go."""
        anew = page.epoch != self.nothing.epoch
        self.nothing = replace(page, records=())
        for project, followers in list(self._followers.items()):
            records = page.records
            if project is not None:
                records = tuple(one for one in records if one.project == project)
            if not records and not anew:
                continue
            part = replace(page, records=records)
            for follower in list(followers):
                if not follower.push(part):
                    self._leave(follower)
                self._is_due(follower)

    def _let_go(self, error: Refused) -> None:
        """Let all hear why there is nothing more; they begin anew by themselves."""
        for follower in [one for followers in self._followers.values() for one in followers]:
            follower.failure = error
            self._leave(follower)
            self._is_due(follower)

    def _is_due(self, follower: Follower) -> None:
        self._due.setdefault(follower.project, {})[follower] = None
        self._any_due.set()

    async def _tell(self) -> None:
        """Wake who has something to hear, some of each project in turn."""
        while True:
            await self._any_due.wait()
            for project, followers in list(self._due.items()):
                for follower in list(islice(followers, TOLD_AT_ONCE)):
                    del followers[follower]
                    follower.told.set()
                if not followers:
                    del self._due[project]
            if self._due:
                await asyncio.sleep(PAUSE_SECONDS)
            else:
                self._any_due.clear()


def _size(page: Page) -> int:
    """What a page takes in memory, about."""
    return sum(FACT_BYTES + len(record.data) for record in page.records)
