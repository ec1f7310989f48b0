"""The smallest service: entries said in streams, so that tests of the kernel say all that a fact can do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from google.protobuf import struct_pb2
from google.protobuf.message import Message

import chassis
from chassis import ids
from chassis.commit import Observer
from chassis.envelope import NO_PROJECT, Meta, Recorded, Registry
from chassis.journal import Book, Claim, Place, Release, Request, Write
from chassis.migrations import migrate
from chassis.postgres import Database
from chassis.queries import Queries
from chassis.refusals import Exists
from chassis.store import PostgresJournal

SERVICE = "sample"
META = Meta("user_ada", "request-1", "other/0", 7, "00-trace")
REGISTRY = Registry.of((struct_pb2.DESCRIPTOR,))
KERNEL = Path(chassis.__file__).parent / "migrations"

# An entry with one of these texts makes its projection raise, or write a row that the table refuses.
RAISES = "raises"
UNWRITABLE = "unwritable"
MISCOUNTED = "miscounted"

TABLES = """
CREATE TABLE sample_rows.entry (
    stream  text,
    version bigint,
    text    text NOT NULL,
    PRIMARY KEY (stream, version)
);
CREATE TABLE sample_rows.page (
    stream  text   PRIMARY KEY,
    text    text   NOT NULL,
    touched bigint NOT NULL DEFAULT 0
);
"""
QUERIES = Queries(
    {
        "add_entry": "INSERT INTO entry (stream, version, text) VALUES ($1, $2, $3)",
        "open_page": "INSERT INTO page (stream, text) VALUES ($1, $2)",
        "set_page": "UPDATE page SET text = $2, touched = touched + 1 WHERE stream = $1",
        "close_page": "DELETE FROM page WHERE stream = $1",
    }
)


def entry(
    stream: str,
    text: str = "said",
    *,
    project: str = "acme",
    states: str = "",
    claims: Mapping[str, str] | None = None,
    releases: Sequence[str] = (),
) -> Message:
    """Say something; `claims` takes names for uids, `states` is what nobody may say twice."""
    fact = struct_pb2.Struct()
    fact.update(
        {
            "stream": stream,
            "text": text,
            "project": project,
            "states": states,
            "claims": dict(claims or {}),
            "releases": list(releases),
        }
    )
    return fact


def place(fact: Message) -> Place:
    """An entry says itself where it stands."""
    assert isinstance(fact, struct_pb2.Struct)
    claims = fact["claims"]
    releases = fact["releases"]
    assert isinstance(claims, struct_pb2.Struct)
    assert isinstance(releases, struct_pb2.ListValue)
    states = str(fact["states"])
    return Place(
        stream=str(fact["stream"]),
        project=str(fact["project"]) or NO_PROJECT,
        statement=ids.statement("diary", states) if states else None,
        claims=tuple(
            Claim("diary", name, str(uid), Exists("NAME_TAKEN", f"{name} is taken.", name=name))
            for name, uid in claims.items()
        ),
        releases=tuple(Release("diary", str(name)) for name in releases),
    )


def project(record: Recorded) -> list[Write]:
    """An entry becomes a row; some texts open, change and close their stream's page."""
    text, stream = text_of(record), record.stream
    if text == RAISES:
        raise ValueError("this entry cannot be projected")
    if text == MISCOUNTED:
        return [Write("add_entry", stream, (stream,))]
    writes = [
        Write(
            "add_entry",
            f"{stream}@{record.version}",
            (stream, record.version, None if text == UNWRITABLE else text),
        )
    ]
    match text:
        case "open":
            writes.append(Write("open_page", stream, (stream, text)))
        case "close":
            writes.append(Write("close_page", stream, (stream,)))
        case _:
            writes.append(Write("set_page", stream, (stream, text)))
    return writes


BOOK = Book(place, project)


def text_of(record: Recorded) -> str:
    """What an entry says."""
    assert isinstance(record.message, struct_pb2.Struct)
    return str(record.message["text"])


def texts(records: Iterable[Recorded]) -> list[str]:
    """What entries say, in order."""
    return [text_of(record) for record in records]


def request(request_id: str, *, scope: str = "acme", body: bytes = b"body") -> Request:
    """A caller's request."""
    return Request(scope, "Say", request_id, body)


async def migrated(dsn: str) -> Database:
    """The diary's database, with all tables and an open pool."""
    database = Database(dsn, SERVICE)
    await migrate(database, KERNEL, database.schema)
    await database.open(pool_size=4)
    await database.execute(f'CREATE SCHEMA "{database.rows_schema}"')
    await database.execute(TABLES)
    return database


def journal_in(
    database: Database, observer: Observer | None = None, queue_max: int = 1000
) -> PostgresJournal:
    """The diary's journal; several of them are several processes of one service."""
    return PostgresJournal(
        database,
        registry=REGISTRY,
        book=BOOK,
        queries=QUERIES,
        observer=observer,
        queue_max=queue_max,
    )
