"""The standing audit: what must be equal between log, stream and readers, counted anew."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from chassis.bus import Away, Bus
from chassis.envelope import Recorded
from chassis.feed import Feed
from chassis.journal import Journal
from chassis.postgres import Database
from chassis.queries import Queries
from chassis.refusals import Unavailable
from chassis.store import PostgresJournal
from fermion.api.journal import v1 as api

WAIT_SECONDS = 2.0
CAUGHT_UP_SECONDS = 2.0

_queries = Queries.load(Path(__file__).with_name("queries.sql"))


async def audit(
    journal: PostgresJournal, database: Database, bus: Bus, feeds: Sequence[Feed] = ()
) -> list[api.AuditCheck]:
    """
    Check every equality of one journal, its stream and its service's readers.

    `feeds` are those of the readers, and tell how far foreign journals go. While calls come in,
    the stream may be behind the log by what is on its way; an audit at rest has to hold in full.
    """
    return [
        *await _log(journal, database),
        *await _stream(journal, bus),
        *await _readers(database, feeds),
    ]


async def _log(journal: PostgresJournal, database: Database) -> list[api.AuditCheck]:
    name, shard = journal.name, journal.shard
    async with (
        database.connection() as connection,
        connection.transaction(isolation="repeatable_read", readonly=True),
    ):
        head = await connection.fetchrow(_queries["read_head"], shard)
        events = await connection.fetchrow(_queries["audit_events"], shard)
        streams = await connection.fetchrow(_queries["audit_streams"], shard)
        projects = await connection.fetchrow(_queries["audit_projects"], shard)
        requests = await connection.fetchval(
            _queries["audit_requests"], shard, 0 if head is None else head["position"]
        )
        statements = await connection.fetchval(_queries["audit_statements"], shard)
    assert head is not None
    assert events is not None
    assert streams is not None
    assert projects is not None
    at = head["position"]
    return [
        check(f"{name}: head = number of facts", at, events["events"]),
        check(f"{name}: head = greatest position", at, events["last"]),
        # A journal that nothing was said in yet is whole; its stream is what shows one that was lost.
        check(f"{name}: positions begin at 1", events["first"], min(at, 1)),
        check(
            f"{name}: versions of all {streams['streams']} streams are 1..N",
            streams["wrong"],
            0,
        ),
        check(
            f"{name}: positions of all {projects['projects']} projects are 1..N",
            projects["wrong"],
            0,
        ),
        check(f"{name}: requests that point past the log", requests, 0),
        check(f"{name}: facts that state = statement ids", events["statements"], statements),
    ]


async def _stream(journal: Journal, bus: Bus) -> list[api.AuditCheck]:
    """Compare the stream with the log fact by fact, from its first message to its last."""
    name = journal.name
    try:
        before = (await journal.head()).position
        await _caught_up(journal, bus, before)
        tail = await bus.tail(name)
        if tail is None:
            return [check(f"{name}: there is a stream", False, True)]
        head = await journal.head()
        unlike = compared = 0
        position = tail.first - 1
        last = min(tail.last, head.position)
        async with bus.follow(name, tail.first) as following:
            while position < last:
                found = await following(WAIT_SECONDS)
                if not found:
                    break
                found = [record for record in found if record.position <= last]
                while found:
                    # Of large facts a page holds fewer than were asked for.
                    page = await journal.read(position, len(found))
                    if not page.records:
                        break
                    pairs = list(zip(found, page.records, strict=False))
                    unlike += sum(not _same(record, fact) for record, fact in pairs)
                    compared += len(pairs)
                    position += len(pairs)
                    found = found[len(pairs) :]
    except Away as error:
        return [check(f"{name}: the stream can be read", str(error), "")]
    expected = max(0, last - tail.first + 1)
    return [
        check(f"{name}: the stream has all that was committed", tail.last >= before, True),
        check(f"{name}: the stream has nothing that the log has not", tail.last <= last, True),
        check(f"{name}: the stream's facts from {tail.first} on, each once", compared, expected),
        check(f"{name}: facts of the stream unlike the log's", unlike, 0),
    ]


def _same(record: api.Record, fact: Recorded) -> bool:
    return (
        record.position,
        record.project,
        record.project_position,
        record.stream,
        record.version,
        record.type,
        record.data,
    ) == (
        fact.position,
        fact.project,
        fact.project_position,
        fact.stream,
        fact.version,
        fact.type,
        fact.data,
    )


async def _caught_up(journal: Journal, bus: Bus, position: int) -> None:
    """Give the relay a moment: what was committed just now may be on its way."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + CAUGHT_UP_SECONDS
    while loop.time() < deadline:
        tail = await bus.tail(journal.name)
        if tail is not None and tail.last >= position:
            return
        await asyncio.sleep(0.05)


async def _readers(database: Database, feeds: Sequence[Feed]) -> list[api.AuditCheck]:
    found = []
    rows = await database.fetch(_queries["list_checkpoints"])
    # After the checkpoints, so that no head is behind one by what was said meanwhile.
    heads = {feed.journal: await _head(feed) for feed in feeds}
    for row in rows:
        reader = f"{row['reader']} on {row['journal']}"
        counted = row["folded"] + row["passed_over"] + row["parked"] + row["skipped"]
        found.append(
            check(
                f"{reader}: folded + passed over + parked + skipped = checkpoint",
                counted,
                row["position"],
            )
        )
        found.append(check(f"{reader}: halted", row["halted"] or "", ""))
        head = heads.get(row["journal"])
        if isinstance(head, str):
            found.append(check(f"{reader}: its journal can be read", head, ""))
        elif head is not None:
            found.append(check(f"{reader}: is not ahead of the log", row["position"] <= head, True))
    return found


async def _head(feed: Feed) -> int | str:
    try:
        return await feed.ask_head()
    except Unavailable as error:
        return str(error)


def check(name: str, left: object, right: object) -> api.AuditCheck:
    """One equality, with both sides as found."""
    return api.AuditCheck(name=name, left=str(left), right=str(right), holds=left == right)
