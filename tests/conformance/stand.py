"""One journal under test, in memory or in PostgreSQL, with the few things that it does not do itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Protocol

import chassis.store
from chassis.journal import Journal
from chassis.postgres import Database
from chassis.queries import Queries
from chassis.testing.memory import Checkpoint, MemoryJournal
from tests import diary

_queries = Queries.load(Path(chassis.store.__file__).with_name("queries.sql"))


class Stand(Protocol):
    """A journal, and its readers, parkings and leases as others set them."""

    @property
    def journal(self) -> Journal:
        """The journal under test."""
        ...

    async def open_checkpoint(self, reader: str, source: str, at: Checkpoint) -> None:
        """Let a reader stand somewhere."""
        ...

    async def checkpoint(self, reader: str, source: str) -> Checkpoint:
        """Where a reader stands."""
        ...

    async def park(self, reader: str, source: str, position: int) -> None:
        """Park a fact."""
        ...

    async def take_lease(self, name: str) -> int:
        """Take a lease anew; its writer epoch."""
        ...

    async def written(self) -> int:
        """How many rows the entries have become."""
        ...


@dataclass(slots=True)
class InMemory:
    """The journal of unit tests."""

    journal: MemoryJournal

    async def open_checkpoint(self, reader: str, source: str, at: Checkpoint) -> None:
        """Let a reader stand somewhere."""
        self.journal.checkpoints[reader, source] = at

    async def checkpoint(self, reader: str, source: str) -> Checkpoint:
        """Where a reader stands."""
        return self.journal.checkpoints[reader, source]

    async def park(self, reader: str, source: str, position: int) -> None:
        """Park a fact."""
        self.journal.parked.add((reader, source, position))

    async def take_lease(self, name: str) -> int:
        """Take a lease anew."""
        self.journal.writers[name] = self.journal.writers.get(name, 0) + 1
        return self.journal.writers[name]

    async def written(self) -> int:
        """How many rows the entries have become."""
        return sum(write.statement == "add_entry" for write in self.journal.writes)


@dataclass(slots=True)
class InPostgres:
    """The journal of the platform."""

    journal: Journal
    database: Database

    async def open_checkpoint(self, reader: str, source: str, at: Checkpoint) -> None:
        """Let a reader stand somewhere."""
        await self.database.execute(
            "INSERT INTO checkpoint VALUES ($1, $2, $3, $4, $5, $6, $7, $8, true)",
            *(reader, source, at.epoch, at.position, at.folded, at.passed_over),
            *(at.skipped, at.halted),
        )

    async def checkpoint(self, reader: str, source: str) -> Checkpoint:
        """Where a reader stands."""
        row = await self.database.fetchrow(_queries["read_checkpoint"], reader, source)
        assert row is not None
        return Checkpoint(**{one.name: row[one.name] for one in fields(Checkpoint)})

    async def park(self, reader: str, source: str, position: int) -> None:
        """Park a fact."""
        await self.database.execute(
            _queries["park"], reader, source, position, "s", "acme", "type", "why", b"record"
        )

    async def take_lease(self, name: str) -> int:
        """Take a lease anew."""
        await self.database.execute("UPDATE lease SET expires_at = '-infinity'")
        epoch = await self.database.fetchval(
            "INSERT INTO lease VALUES ($1, 'somebody', 1, 'infinity') ON CONFLICT (name) "
            "DO UPDATE SET writer_epoch = lease.writer_epoch + 1 RETURNING writer_epoch",
            name,
        )
        assert isinstance(epoch, int)
        return epoch

    async def written(self) -> int:
        """How many rows the entries have become."""
        found = await self.database.fetchval("SELECT count(*) FROM entry")
        assert isinstance(found, int)
        return found


@asynccontextmanager
async def stand_in(kind: str, dsn: str) -> AsyncIterator[Stand]:
    """Set a journal up and take it down."""
    if kind == "memory":
        yield InMemory(MemoryJournal("sample/0", registry=diary.REGISTRY, book=diary.BOOK))
        return
    database = await diary.migrated(dsn)
    journal = diary.journal_in(database)
    await journal.open()
    committing = asyncio.create_task(journal.run(), name="committer")
    try:
        yield InPostgres(journal, database)
    finally:
        committing.cancel()
        await asyncio.gather(committing, return_exceptions=True)
        await database.close()
