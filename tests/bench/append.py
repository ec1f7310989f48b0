"""How much of PostgreSQL's bare insert rate the journal's append leaves over."""

from __future__ import annotations

import asyncio
import itertools
import os
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import asyncpg
from google.protobuf.message import Message

import chassis
from chassis import ids
from chassis.clock import milliseconds
from chassis.envelope import Meta, Recorded, Registry
from chassis.journal import Book, Claim, Command, Place, Request, Write
from chassis.migrations import migrate
from chassis.postgres import Database
from chassis.queries import Queries
from chassis.refusals import Exists
from chassis.store import PostgresJournal
from chassis.tasks import aside
from fermion.api.journal import v1 as api
from fermion.api.journal.v1 import events_pb2
from tests.bench import peer
from tests.bench.row import Row, beside, interleaved

SECONDS = 1.0
ROUNDS = 6
CALLERS = 64
BARE = 1000
TEXT = "x" * 150
FACTS_GOAL = 0.18
WHOLE_GOAL = 0.065
PEER_GOAL = 6.0

_CREATE = """
CREATE TABLE bare (
    position bigint      NOT NULL PRIMARY KEY,
    stream   text        NOT NULL,
    version  bigint      NOT NULL,
    type     text        NOT NULL,
    data     bytea       NOT NULL,
    at       timestamptz NOT NULL,
    UNIQUE (stream, version)
);
CREATE TABLE note (uid text PRIMARY KEY, name text NOT NULL, position bigint NOT NULL);
"""
_INSERT = """
INSERT INTO bare (position, stream, version, type, data, at)
SELECT *
  FROM unnest($1::bigint[], $2::text[], $3::bigint[], $4::text[], $5::bytea[], $6::timestamptz[])
"""
_ROW = "INSERT INTO note (uid, name, position) VALUES ($1, $2, $3)"


def place(fact: Message) -> Place:
    """A fact that names a journal claims that name for its stream."""
    assert isinstance(fact, api.ParkedFactSkipped)
    stream = fact.stream
    if not fact.journal:
        return Place(stream, "acme")
    return Place(
        stream, "acme", claims=(Claim("name", fact.journal, stream, Exists("TAKEN", "Taken.")),)
    )


def project(record: Recorded) -> list[Write]:
    """A fact that claims becomes a row."""
    fact = record.message
    assert isinstance(fact, api.ParkedFactSkipped)
    if not fact.journal:
        return []
    return [Write("add", record.stream, (record.stream, fact.journal, record.position))]


async def rounds(dsn: str) -> list[Row]:
    """Measure on a fresh, empty database."""
    database = Database(dsn, "bench")
    await migrate(database, Path(chassis.__file__).parent / "migrations", "bench")
    connection = await asyncpg.connect(dsn)
    await connection.execute(f"CREATE SCHEMA bench_rows; SET search_path = bench_rows; {_CREATE}")
    await database.open()
    journal = PostgresJournal(
        database,
        registry=Registry.of((events_pb2.DESCRIPTOR,)),
        book=Book(place, project),
        queries=Queries({"add": _ROW}),
    )
    await journal.open()
    committing = asyncio.create_task(journal.run(), name="committer")
    positions = itertools.count(1)
    saved = peer.application(dsn)
    try:
        found = await interleaved(
            {
                "bare": lambda: _bare(connection, positions),
                "facts": lambda: _callers(journal, _fact),
                "whole": lambda: _callers(journal, _whole),
                "peer": lambda: aside(peer.rate, saved, SECONDS),
            },
            ROUNDS,
        )
    finally:
        saved.close()
        committing.cancel()
        await asyncio.gather(committing, return_exceptions=True)
        await database.close()
        await connection.close()
    bare = f"insert of {BARE} by unnest"
    whole = f"append of 3 facts, request, claim and row, {CALLERS} callers"
    return [
        beside(
            "append facts",
            f"append of one fact, {CALLERS} callers",
            "commands/s",
            found,
            "facts",
            "bare",
            bare,
            FACTS_GOAL,
        ),
        beside("append whole", whole, "commands/s", found, "whole", "bare", bare, WHOLE_GOAL),
        beside("append peer", whole, "commands/s", found, "whole", "peer", peer.WHAT, PEER_GOAL),
    ]


async def _bare(
    connection: asyncpg.Connection[asyncpg.Record], positions: itertools.count[int]
) -> float:
    """Insert as fast as one connection can."""
    data = _whole().facts[0].SerializeToString() + b"x" * 20
    now = datetime.now(UTC)
    insert = await connection.prepare(_INSERT)
    begun, done = time.perf_counter(), 0
    while time.perf_counter() < begun + SECONDS:
        taken = list(itertools.islice(positions, BARE))
        stream = f"stream/{uuid.uuid4()}"
        columns = ([stream] * BARE, list(range(BARE)), ["Said"] * BARE, [data] * BARE, [now] * BARE)
        await insert.fetch(taken, *columns)
        done += BARE
    return done / (time.perf_counter() - begun)


async def _callers(journal: PostgresJournal, make: Callable[[], Command]) -> float:
    """Append from many callers at once, each waiting for its own."""
    end = time.perf_counter() + SECONDS
    done = 0

    async def call() -> None:
        nonlocal done
        while time.perf_counter() < end:
            await journal.append(make())
            done += 1

    begun = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for place in range(CALLERS):
            group.create_task(call(), name=f"caller {place}")
    return done / (time.perf_counter() - begun)


_META = Meta(
    "user_bench", "01jd3k5v-7m2r-8q4w", traceparent="00-" + "a" * 32 + "-" + "b" * 16 + "-01"
)


def _uid() -> str:
    return ids.uuid7(milliseconds(datetime.now(UTC)), os.urandom(10)).hex


def _fact() -> Command:
    stream = f"note/{_uid()}"
    fact = api.ParkedFactSkipped(stream=stream, reason=TEXT)
    return Command((fact,), _META, expected={stream: 0})


def _whole() -> Command:
    uid = _uid()
    stream = f"note/{uid}"
    facts = tuple(
        api.ParkedFactSkipped(stream=stream, reason=TEXT, journal=uid if first else "")
        for first in (True, False, False)
    )
    return Command(
        facts,
        _META,
        expected={stream: 0},
        request=Request("acme", "Note", uid, b"digest of thirty-two bytes......"),
        subject=stream,
    )
