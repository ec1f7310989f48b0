"""What an operator does about facts that a reader could not use: skip them, or let it go on."""

from __future__ import annotations

from pathlib import Path

from google.protobuf.message import Message

from chassis.envelope import Meta
from chassis.journal import Command, Journal, Overtaken, Place, Unpark
from chassis.postgres import Database
from chassis.queries import Queries
from chassis.refusals import Missing
from fermion.api.journal import v1 as api

_queries = Queries.load(Path(__file__).with_name("queries.sql"))


def stream_of(reader: str, journal: str) -> str:
    """The stream of what operators did about one reader of one journal."""
    name = f"{reader}-{journal}".replace("/", "-")
    return f"reader/{name}"


def place_operation(fact: Message) -> Place | None:
    """Where an operator's fact stands, in whichever service it is said; None for other facts."""
    if isinstance(fact, api.ParkedFactSkipped | api.ReaderResumed):
        return Place(stream_of(fact.reader, fact.journal))
    return None


async def skip(
    journal: Journal,
    database: Database,
    *,
    reader: str,
    source: str,
    position: int,
    reason: str,
    meta: Meta,
) -> int:
    """Give one parked fact up for good; the position of the fact that says so."""
    row = await database.fetchrow(_queries["parked_fact"], reader, source, position)
    if row is None:
        raise _not_parked(reader, source, position)
    said = api.ParkedFactSkipped(
        reader=reader, journal=source, position=position, stream=row["stream"], reason=reason
    )
    try:
        committed = await journal.append(
            Command((said,), meta, unpark=Unpark(reader, source, position, skipped=True))
        )
    except Overtaken as error:
        raise _not_parked(reader, source, position) from error
    return committed.position


async def resume(
    journal: Journal, database: Database, *, reader: str, source: str, meta: Meta
) -> int:
    """Let a halted reader go on; the position of the fact that says so."""
    row = await database.fetchrow(_queries["read_checkpoint"], reader, source)
    if row is None or row["halted"] is None:
        raise Missing(
            "READER_NOT_HALTED",
            f"{reader} does not stand still on {source}.",
            next_step="`fermion status` shows which readers do.",
            reader=reader,
            journal=source,
        )
    said = api.ReaderResumed(reader=reader, journal=source, halted=row["halted"])
    committed = await journal.append(Command((said,), meta, resume=(reader, source)))
    return committed.position


def _not_parked(reader: str, source: str, position: int) -> Missing:
    return Missing(
        "FACT_NOT_PARKED",
        f"{reader} has not parked position {position} of {source}.",
        next_step="`fermion journal parked` lists what is.",
        reader=reader,
        journal=source,
        position=str(position),
    )
