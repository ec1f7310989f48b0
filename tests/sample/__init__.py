"""Two small services for tests of the kernel: `other` asks, `sample` answers each ask once."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from google.protobuf.message import Message

import chassis
from chassis.bus import Bus
from chassis.clock import SystemClock
from chassis.envelope import Meta, Recorded, Registry
from chassis.feed import Feed, LogSource
from chassis.journal import Book, Command, Committed, Journal, Page, Place, Write
from chassis.lease import Lease
from chassis.migrations import migrate
from chassis.postgres import Database
from chassis.process import with_operations
from chassis.queries import Queries
from chassis.readers import Consumer, Folder, Reaction, Reader
from chassis.refusals import Unavailable
from chassis.relay import Relay
from chassis.remote import LocalLog
from chassis.store import PostgresJournal
from chassis.tasks import end
from fermion.api.instances import v1 as api
from fermion.api.instances.v1 import events_pb2 as instances_events
from fermion.api.journal.v1 import events_pb2 as journal_events
from tests.servers import NatsServer

FOLDER = Path(__file__).parent
QUERIES = Queries.load(FOLDER / "queries.sql")
REGISTRY = Registry.of((instances_events.DESCRIPTOR, journal_events.DESCRIPTOR))
META = Meta("user_ada", "req_1", traceparent=f"00-{'a' * 32}-{'b' * 16}-01")
# Longer than anything here should take; a test that gets there has failed.
SECONDS_MAX = 60.0


def asked(uid: str, attempt: int = 1, project: str = "acme") -> api.InstanceQueued:
    """What `other` says."""
    return api.InstanceQueued(uid=uid, attempt=attempt, project=project)


def answered(uid: str, attempt: int = 1, project: str = "acme") -> api.InstanceStopped:
    """What `sample` says to it."""
    return api.InstanceStopped(uid=uid, attempt=attempt, project=project)


def beside(uid: str, project: str = "acme") -> api.InstanceDeleteRequested:
    """What `other` says and nobody handles."""
    return api.InstanceDeleteRequested(uid=uid, project=project)


def place(fact: Message) -> Place:
    """Each thing has a stream."""
    assert isinstance(fact, api.InstanceQueued | api.InstanceStopped | api.InstanceDeleteRequested)
    return Place(f"instance/{fact.uid}", fact.project)


def project(record: Recorded) -> Sequence[Write]:
    """Each thing has a row, which two statements write."""
    match record.message:
        case api.InstanceQueued() | api.InstanceStopped() as said:
            return (
                Write("see_fact", said.uid, (said.uid, said.project)),
                Write("see_attempt", said.uid, (said.uid, said.attempt)),
            )
        case api.InstanceDeleteRequested() as said:
            return (Write("see_fact", said.uid, (said.uid, said.project)),)
        case _:
            return ()


BOOK = with_operations(Book(place, project))


class Answers:
    """A deciding reader; uids in `broken` make its decision raise."""

    name = "sample/other"
    source = "other"
    handles = frozenset({api.InstanceQueued.DESCRIPTOR.full_name})

    def __init__(self, broken: Iterable[str] = ()) -> None:
        self.broken = set(broken)

    async def react(self, fact: Recorded) -> Sequence[Reaction]:
        """Answer on the thing's own stream."""
        said = fact.message
        assert isinstance(said, api.InstanceQueued)
        return [Reaction((f"instance/{said.uid}",), attempts, partial(self._answer, said=said))]

    def _answer(self, done: frozenset[int], said: api.InstanceQueued) -> Sequence[Message]:
        if said.uid in self.broken:
            raise ValueError(f"{said.uid} is broken")
        # Exactly once has to come from the counting, not from here: a repeated ask would show.
        return [answered(said.uid, said.attempt, said.project)]


class Tallies:
    """A folding reader; uids in `broken` make it raise."""

    name = "sample/tally"
    source = "other"
    handles = frozenset({api.InstanceQueued.DESCRIPTOR.full_name})

    def __init__(self, broken: Iterable[str] = ()) -> None:
        self.broken = set(broken)

    def write(self, facts: Sequence[Recorded]) -> Sequence[Write]:
        """Count them."""
        return [self._count(fact) for fact in facts]

    def _count(self, fact: Recorded) -> Write:
        said = fact.message
        assert isinstance(said, api.InstanceQueued)
        if said.uid in self.broken:
            raise ValueError(f"{said.uid} is broken")
        return Write("add_to_tally", said.uid, (said.uid,))

    def written(self) -> None:
        """Nobody waits for it."""

    def clear(self, journal: str) -> Sequence[Write]:
        """Forget all."""
        return (Write("clear_tally", "", ()),)


def attempts(records: Sequence[Recorded]) -> frozenset[int]:
    """The attempts of one thing that were answered."""
    said = (record.message for record in records)
    return frozenset(one.attempt for one in said if isinstance(one, api.InstanceStopped))


@dataclass(slots=True)
class Service:
    """One service of a test, with its journal's loops running."""

    name: str
    database: Database
    journal: PostgresJournal
    bus: Bus
    relay: Relay

    async def say(self, *facts: Message) -> Committed:
        """Commit facts as one command."""
        return await self.journal.append(Command(facts, META))

    async def facts(self) -> list[Message]:
        """All that the journal holds."""
        records = (await self.journal.read(0, 100_000)).records
        return [record.message for record in records if record.message is not None]

    async def head(self) -> int:
        """The journal's last position."""
        return (await self.journal.head()).position

    async def checkpoint(self, reader: Reader) -> dict[str, Any]:
        """A reader's counts as they are stored, with what is parked."""
        row = await self.database.fetchrow(
            "SELECT c.*, (SELECT count(*) FROM parked AS p WHERE p.reader = c.reader"
            " AND p.journal = c.journal) AS parked"
            " FROM checkpoint AS c WHERE c.reader = $1 AND c.journal = $2",
            reader.name,
            reader.feed.journal,
        )
        return {} if row is None else dict(row)


@asynccontextmanager
async def running(*loops: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run loops beside the body; one that fails fails the body."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(loop) for loop in loops]
        try:
            yield
        finally:
            # One may miss that it was cancelled, as a library below it did.
            await end(*tasks)


@asynccontextmanager
async def serving(
    dsn: str, nats: NatsServer | None, name: str, *, relayed: bool = True
) -> AsyncIterator[Service]:
    """Start a service on a database that may have been used by it before."""
    database = Database(dsn, name)
    await migrate(database, Path(chassis.__file__).parent / "migrations", database.schema)
    await migrate(database, FOLDER / "migrations" / "state", database.schema)
    await migrate(database, FOLDER / "migrations" / "rows", database.rows_schema)
    await database.open()
    journal = PostgresJournal(database, registry=REGISTRY, book=BOOK, queries=QUERIES)
    await journal.open()
    bus = bus_of(nats, name)
    lease = lease_of(database, f"relay {name}")
    relay = Relay(journal, bus, lease)
    loops = [journal.run(), lease.run()]
    if nats is not None:
        loops.append(bus.run())
    if relayed:
        loops.append(relay.run())
    try:
        async with running(*loops):
            yield Service(name, database, journal, bus, relay)
    finally:
        await database.close()


@asynccontextmanager
async def reading(
    service: Service,
    consumer: Consumer | Folder,
    log: LogSource,
    bus: Bus | None = None,
    *,
    registry: Registry = REGISTRY,
    lease: str | None = None,
) -> AsyncIterator[Reader]:
    """Run a reader of a service over `other`'s journal."""
    held = lease_of(service.database, lease or f"reader {consumer.name}")
    feed = Feed(f"{consumer.source}/0", log, bus, registry)
    reader = Reader(consumer, feed, service.journal, service.database, QUERIES, held, registry)
    async with running(held.run(), reader.run()):
        yield reader


def bus_of(nats: NatsServer | None, name: str) -> Bus:
    """One service's connection, to nowhere without a server."""
    if nats is None:
        return Bus("nats://127.0.0.1:1", name, None)
    return Bus(nats.url, name, nats.keys / f"{name}.nk")


def lease_of(database: Database, name: str) -> Lease:
    """A lease of a holder of its own."""
    return Lease(database, name, uuid.uuid4().hex, SystemClock())


async def reached(reader: Reader, service: Service) -> int:
    """Wait until a reader has accounted for all that a service has said."""
    head = await service.head()
    assert await reader.reached(head, SECONDS_MAX), f"{reader.position} of {head}: {reader.halted}"
    return head


class Gate:
    """A log whose owner may be away."""

    def __init__(self, journal: Journal, *, away: bool = False) -> None:
        self.away = away
        self.asked = 0
        self._log = LocalLog(journal)

    async def read(self, after: int, limit: int) -> Page:
        """Read, unless the owner is away."""
        self.asked += 1
        if self.away:
            raise Unavailable("LOG_UNAVAILABLE", "The owner is away.")
        return await self._log.read(after, limit)

    async def grown(self, past: int, seconds: float) -> None:
        """Wait as a caller of another service does."""
        await asyncio.sleep(min(seconds, 0.05))


async def restore(service: Service, position: int, epoch: int) -> None:
    """Make the journal what a restored backup holds: a shorter log, maybe of another lineage."""
    async with service.database.connection() as connection, connection.transaction():
        await connection.execute("DELETE FROM event WHERE position > $1", position)
        await connection.execute("UPDATE head SET position = $1, epoch = $2", position, epoch)
        if epoch > 1:
            await connection.execute("INSERT INTO epoch VALUES ('0', $1, $2)", epoch, position + 1)
        for table, key, count in (
            ("stream_head", "stream", "version"),
            ("project_head", "project", "position"),
        ):
            await connection.execute(f"DELETE FROM {table}")
            await connection.execute(
                f"INSERT INTO {table} (log, {key}, {count})"
                f" SELECT log, {key}, count(*) FROM event GROUP BY log, {key}"
            )


async def until(holds: Callable[[], Awaitable[object]] | Callable[[], object], what: str) -> None:
    """Ask until a condition holds; fails where it does not in time."""
    deadline = time.monotonic() + SECONDS_MAX
    while True:
        found = holds()
        if isinstance(found, Awaitable):
            found = await found
        if found:
            return
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.01)
