"""What becomes of a journal that has lost its tail, and what an operator accepts of that."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from chassis.bus import Away, Bus, Foreign, Tail
from chassis.command import must_be_the_same
from chassis.embedded.bundle import JournalKept
from chassis.embedded.home import FULL
from chassis.envelope import Meta
from chassis.feed import Feed
from chassis.journal import Command, Head, Remembered, Request, Stale
from chassis.parking import go_on, lineage_of, unless_answered
from chassis.postgres import LOST, Connection, Database
from chassis.queries import Queries
from chassis.refusals import Missing, Refused, Unavailable
from chassis.store import PostgresJournal
from fermion.api.journal import v1 as api

_queries = Queries.load(Path(__file__).with_name("queries.sql"))


async def announce(journal: PostgresJournal, meta: Meta, request: Request | None = None) -> None:
    """State the lineage that a journal is in, unless it is the first or stated; two at once do no harm."""
    head = await journal.head()
    stream = lineage_of(journal.name)
    stated = (await journal.load([stream]))[stream]
    epochs = [
        fact.message.epoch for fact in stated if isinstance(fact.message, api.JournalRestored)
    ]
    if head.epoch <= max((1, *epochs)):
        return
    row = await journal.database.fetchrow(_queries["read_epoch"], journal.shard, head.epoch)
    said = api.JournalRestored(
        journal=journal.name, epoch=head.epoch, first_position=head.epoch_first
    )
    if row is not None:
        said.backup, said.lost_through = row["backup"], row["lost_through"]
    expected = {stream: len(stated)}
    with suppress(Stale):
        await journal.append(
            Command((said,), meta, expected=expected, request=request, subject=stream)
        )


async def begin(
    journal: PostgresJournal,
    bus: Bus,
    *,
    lost_from: int,
    lost_through: int,
    meta: Meta,
    request: Request | None = None,
    only_look: bool = False,
) -> Head:
    """
    Begin a new lineage of a journal that has lost its tail, and state it; the head that it has then.

    It begins where journal and stream part, or where a reader says that it does (`lost_from`). A
    process that dies in between has begun it, and the next start states it. `Missing`
    (JOURNAL_NOT_BEHIND) where nothing tells that anything is lost.
    """
    look = partial(_loss, journal, bus, lost_from=lost_from, lost_through=lost_through)
    try:
        loss = await unless_answered(journal, request, look)
    except Remembered as answered:
        assert request is not None
        must_be_the_same(request, answered)
        return await journal.head()
    before, shard = loss.before, journal.shard
    if only_look:
        return Head(loss.epoch, before.position, loss.first)
    async with journal.database.connection() as connection, connection.transaction():
        row = await connection.fetchrow(_queries["lock_head"], shard)
        # Somebody else may have been faster.
        if row is not None and row["epoch"] == before.epoch:
            await connection.execute(
                _queries["begin_epoch"], shard, loss.epoch, loss.first, loss.through
            )
            await connection.execute(_queries["enter_epoch"], shard, loss.epoch)
            # Why the relay stood still is over, though it looks only in a while: who asks before that
            # would begin one more.
            await connection.execute(_queries["resume_relay"], shard)
    await announce(journal, meta, request)
    return await journal.head()


@dataclass(frozen=True, slots=True)
class _Loss:
    """What a journal has lost, from and through which positions, and the epoch that would begin."""

    before: Head
    epoch: int
    first: int
    through: int


async def _loss(journal: PostgresJournal, bus: Bus, *, lost_from: int, lost_through: int) -> _Loss:
    tail = None
    with suppress(Away):
        tail = await bus.tail(journal.name)
    # After the tail: what is published has been committed before.
    before = await journal.head()
    stream_epoch = await _epoch_of(journal, bus, tail)
    ahead = tail is not None and tail.last > before.position and stream_epoch >= before.epoch
    relay = await journal.database.fetchrow(_queries["read_relay"], journal.shard)
    halted = relay is not None and relay["parted"]
    if not (ahead or halted or lost_through):
        raise Missing(
            "JOURNAL_NOT_BEHIND",
            f"Nobody has more of {journal.name} than it has itself.",
            next_step="`fermion status` shows which relays and readers stand still, and why.",
            journal=journal.name,
        )
    return _Loss(
        before,
        epoch=max(before.epoch, stream_epoch) + 1,
        first=min(lost_from or before.position + 1, await _parting(journal, bus, tail, before)),
        through=max(lost_through, 0 if tail is None else tail.last),
    )


async def accept(
    journal: PostgresJournal,
    feed: Feed,
    *,
    reader: str,
    meta: Meta,
    request: Request | None = None,
) -> int:
    """
    Let a reader go on that stands still for what its journal lost; a position that holds that fact.

    `feed` is that of the journal it reads. A request that was answered before is answered again.
    """
    decide = partial(acceptable, journal, feed, reader=reader)
    return await go_on(
        journal, decide, reader=reader, source=feed.journal, meta=meta, request=request
    )


async def acceptable(journal: PostgresJournal, feed: Feed, *, reader: str) -> api.RestoreAccepted:
    """
    What there is to accept of a reader; `Missing` (RESTORE_NOT_AWAITED) where it does not wait for that,
    `Refused` (LINEAGE_NOT_BEGUN) as long as its journal goes on as if nothing had been lost.
    """
    source = feed.journal
    row = await journal.database.fetchrow(_queries["read_checkpoint"], reader, source)
    if row is None or row["halted"] is None or not row["lost_through"]:
        raise Missing(
            "RESTORE_NOT_AWAITED",
            f"{reader} does not wait on {source} for a restore to be accepted.",
            next_step="`fermion status` shows which readers stand still, and why.",
            reader=reader,
            journal=source,
        )
    page = await feed.look()
    if page.epoch == 1 or page.epoch != row["epoch"] or row["position"] >= page.epoch_first:
        raise Refused(
            "LINEAGE_NOT_BEGUN",
            f"{source} goes on as if nothing had been lost, or {reader} has not heard yet that it does not.",
            next_step="Begin its new lineage: fermion restore --accept; where that was done, again in a "
            "moment.",
            reader=reader,
            journal=source,
        )
    return api.RestoreAccepted(
        reader=reader,
        journal=source,
        epoch=page.epoch,
        position=row["position"],
        decided_through=row["lost_through"],
    )


async def _epoch_of(journal: PostgresJournal, bus: Bus, tail: Tail | None) -> int:
    """The lineage of the stream's last message, which may be one that the journal has lost; 0 for none."""
    if tail is None or tail.empty:
        return 0
    try:
        stored = await bus.message(journal.name, tail.last)
    except (Away, Foreign):
        return 0
    return 0 if stored is None else stored.epoch


async def _parting(journal: PostgresJournal, bus: Bus, tail: Tail | None, head: Head) -> int:
    """The first position at which stream and journal are not the same; behind the head where all are."""
    if tail is None or tail.empty:
        return head.position + 1
    same, other = tail.first - 1, min(tail.last, head.position) + 1
    while same + 1 < other:
        middle = (same + other) // 2
        if await _alike(journal, bus, middle):
            same = middle
        else:
            other = middle
    # What lies before a stream that has nothing of the journal cannot be compared with anything.
    return 1 if other == tail.first <= head.position else other


async def _alike(journal: PostgresJournal, bus: Bus, position: int) -> bool:
    page = await journal.records(position - 1, 1)
    try:
        stored = await bus.message(journal.name, position)
    except Foreign:
        return False
    if stored is None or not page.records:
        return False
    own = page.records[0]
    return (stored.stream, stored.version, stored.type, stored.data, stored.record_time) == (
        own.stream,
        own.version,
        own.type,
        own.data,
        own.record_time,
    )


# Of a whole database, as a backup keeps it and a restore puts it back; each in a transaction.


async def snapshot(connection: Connection) -> str:
    """Let another connection see what this one sees, by this name, as long as its transaction lasts."""
    found: str = await connection.fetchval(_queries["export_snapshot"])
    return found


async def kept(
    connection: Connection,
) -> tuple[tuple[JournalKept, ...], dict[str, tuple[str, ...]]]:
    """Every journal as it stands, and by schema every migration that was applied."""
    journals: list[JournalKept] = []
    migrations: dict[str, tuple[str, ...]] = {}
    for row in await connection.fetch(_queries["kept_tables"]):
        schema = row["schemaname"]
        if row["tablename"] == "head":
            journals += await journals_of(connection, schema)
        else:
            await connection.execute(_queries["enter_schema"], schema)
            found = await connection.fetch(_queries["migrations"])
            migrations[schema] = tuple(one["version"] for one in found)
    return tuple(journals), migrations


async def journals_of(connection: Connection, service: str) -> list[JournalKept]:
    """The journals of one service as they stand."""
    await connection.execute(_queries["enter_schema"], service)
    found = await connection.fetch(_queries["heads"])
    return [JournalKept(f"{service}/{row['log']}", row["epoch"], row["position"]) for row in found]


async def begin_restored(connection: Connection, service: str, epoch: int, backup: str) -> None:
    """
    Begin a lineage of every journal of a service behind its head; each states it at its next start.

    Who held a lease, and why a relay stood still, is of the platform that the backup was taken from.
    """
    await connection.execute(_queries["enter_schema"], service)
    await connection.execute(_queries["begin_restored"], epoch, backup)
    await connection.execute(_queries["enter_restored"], epoch)
    await connection.execute(_queries["end_leases"])
    await connection.execute(_queries["forget_relays"])


@asynccontextmanager
async def alone(dsn: str, what: str, failed: Callable[[str], Refused]) -> AsyncIterator[Connection]:
    """
    A command's own connection, closed behind it.

    What `failed` makes where the database goes away; OSError as it is where a disk is full.
    """
    try:
        connection = await Database(dsn, what).pinned(what)
        try:
            yield connection
        finally:
            await connection.close()
    except (Unavailable, *LOST) as error:
        if isinstance(error, OSError) and error.errno in FULL:
            raise
        raise failed(f"the database went away ({error})") from error
