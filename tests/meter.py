"""A cluster's journal and the reader that meters it, with nothing else of the platform."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from google.protobuf.message import Message

import chassis
import services.billing
from chassis.commit import execute_writes
from chassis.envelope import Meta, Recorded, Registry
from chassis.feed import Feed
from chassis.journal import Book, Command
from chassis.migrations import migrate
from chassis.postgres import Database
from chassis.process import with_operations
from chassis.queries import Queries
from chassis.readers import Reader
from chassis.remote import LocalLog
from chassis.store import PostgresJournal
from fermion.api.billing.v1 import events_pb2 as billing_events
from fermion.api.journal.v1 import events_pb2 as journal_events
from fermion.api.workload.v1 import events_pb2 as workload_events
from services.billing.consumer import Meter
from services.billing.wiring import TARGET
from services.executor import aggregate as executor
from tests.sample import lease_of, running
from tests.servers import CLUSTER

ROOM: Final = Path(services.billing.__file__).parent
JOURNAL: Final = f"executor/{CLUSTER}"
QUERIES: Final = Queries.load(ROOM / "queries.sql")
SAYS: Final = Registry.of((workload_events.DESCRIPTOR, journal_events.DESCRIPTOR))
OWN: Final = Registry.of((billing_events.DESCRIPTOR, journal_events.DESCRIPTOR))
# Everything that the meter folds into, with what makes the order of its rows certain.
TABLES: Final = {
    "cluster": "uid",
    "unproven": "cluster, replica",
    "replica": "uid",
    "run": "replica, run",
    "gap": "replica, n",
    "change": "replica, resized, n",
    "correction": "replica, n",
    "missed": "replica, from_run",
    "volume": "uid",
    "finished": "workload",
}

Rows = dict[str, list[tuple[object, ...]]]


@dataclass(slots=True)
class Metering:
    """An executor's journal, and billing's tables."""

    executor: PostgresJournal
    database: Database
    billing: PostgresJournal

    async def say(self, facts: Iterable[Message]) -> None:
        """Let the executor state facts, each by itself as far as anybody can tell."""
        await self.executor.append(Command(tuple(facts), Meta("service:executor")))

    async def head(self) -> int:
        """The last position that it has stated."""
        return (await self.executor.head()).position

    async def facts(self) -> Sequence[Recorded]:
        """All that it has stated."""
        return (await self.executor.read(0, 10_000_000)).records

    def reader(self, meter: Meter | None = None, feed: Feed | None = None) -> Reader:
        """A reader of the journal, from its log where nothing else is said, that nothing runs yet."""
        held = lease_of(self.database, "reader")
        feed = feed or Feed(JOURNAL, LocalLog(self.executor), None, SAYS)
        return Reader(meter or Meter(), feed, self.billing, self.database, QUERIES, held, SAYS)

    @asynccontextmanager
    async def reading(self, feed: Feed | None = None) -> AsyncIterator[Reader]:
        """Run a reader beside the body."""
        reader = self.reader(feed=feed)
        async with running(reader._lease.run(), reader.run()):
            yield reader


async def rows_of(database: Database) -> Rows:
    """Everything that was folded."""
    return {
        name: [tuple(row) for row in await database.fetch(f"SELECT * FROM {name} ORDER BY {order}")]
        for name, order in TABLES.items()
    }


async def fold_straight(database: Database, facts: Iterable[Recorded]) -> Rows:
    """What the rows are when every fact is folded once, in order and at one go; leaves nothing."""
    async with database.connection() as connection:
        transaction = connection.transaction()
        await transaction.start()
        try:
            for name in TABLES:
                await connection.execute(f"DELETE FROM {name}")
            await execute_writes(connection, QUERIES, Meter().write(list(facts)))
            return {
                name: [
                    tuple(row)
                    for row in await connection.fetch(f"SELECT * FROM {name} ORDER BY {order}")
                ]
                for name, order in TABLES.items()
            }
        finally:
            await transaction.rollback()


@asynccontextmanager
async def metering(dsn: str) -> AsyncIterator[Metering]:
    """Open both on a database that may have been used before."""
    said, own = Database(dsn, "executor"), Database(dsn, "billing")
    kernel = Path(chassis.__file__).parent / "migrations"
    await migrate(said, kernel, said.schema)
    await migrate(own, kernel, own.schema)
    await migrate(own, ROOM / "migrations" / "state", own.schema)
    await migrate(own, ROOM / "migrations" / "rows", own.rows_schema)
    await said.open()
    await own.open()
    executors = PostgresJournal(
        said,
        registry=SAYS,
        book=Book(executor.place, lambda _: ()),
        queries=Queries({}),
        shard=CLUSTER,
    )
    billings = PostgresJournal(
        own, registry=OWN, book=with_operations(TARGET.book), queries=QUERIES
    )
    await executors.open()
    await billings.open()
    try:
        async with running(executors.run(), billings.run()):
            yield Metering(executors, own, billings)
    finally:
        await said.close()
        await own.close()
