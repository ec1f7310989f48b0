"""What an operator does about facts that a reader could not use: skip them, or let it go on."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

from google.protobuf.message import Message

from chassis.command import must_be_the_same
from chassis.envelope import Meta
from chassis.journal import Command, Journal, Overtaken, Place, Remembered, Request, Unpark
from chassis.postgres import Database
from chassis.queries import Queries
from chassis.refusals import Missing, Refused
from fermion.api.journal import v1 as api

Found = TypeVar("Found")

_queries = Queries.load(Path(__file__).with_name("queries.sql"))


def stream_of(reader: str, journal: str) -> str:
    """The stream of what operators did about one reader of one journal."""
    name = f"{reader}-{journal}".replace("/", "-")
    return f"reader/{name}"


def lineage_of(journal: str) -> str:
    """The stream of what became of a journal as a whole."""
    return f"journal/{journal.replace('/', '-')}"


def place_operation(fact: Message) -> Place | None:
    """Where an operator's fact stands, in whichever service it is said; None for other facts."""
    if isinstance(fact, api.ParkedFactSkipped | api.ReaderResumed | api.RestoreAccepted):
        return Place(stream_of(fact.reader, fact.journal))
    if isinstance(fact, api.JournalRestored):
        return Place(lineage_of(fact.journal))
    return None


async def parked(database: Database, *, reader: str, source: str, position: int) -> str:
    """The stream of a parked fact; `Missing` (FACT_NOT_PARKED) where it is none."""
    row = await database.fetchrow(_queries["parked_fact"], reader, source, position)
    if row is None:
        raise _not_parked(reader, source, position)
    return str(row["stream"])


async def skip(
    journal: Journal,
    database: Database,
    *,
    reader: str,
    source: str,
    position: int,
    reason: str,
    meta: Meta,
    request: Request | None = None,
) -> int:
    """
    Give one parked fact up for good; a position that holds the fact that says so.

    A request that was answered before is answered again.
    """
    look = partial(parked, database, reader=reader, source=source, position=position)
    try:
        stream = await unless_answered(journal, request, look)
        said = api.ParkedFactSkipped(
            reader=reader, journal=source, position=position, stream=stream, reason=reason
        )
        command = Command(
            (said,),
            meta,
            request=request,
            subject=stream_of(reader, source),
            unpark=Unpark(reader, source, position, skipped=True),
        )
        return (await journal.append(command)).position
    except Overtaken as error:
        raise _not_parked(reader, source, position) from error
    except Remembered as answered:
        return await answer_again(journal, request, answered)


async def halted(database: Database, *, reader: str, source: str) -> str:
    """
    Why a reader stands still; `Missing` (READER_NOT_HALTED) where it does not, `Refused`
    (RESTORE_NOT_ACCEPTED) where that is because of what its journal lost.
    """
    row = await database.fetchrow(_queries["read_checkpoint"], reader, source)
    if row is None or row["halted"] is None:
        raise Missing(
            "READER_NOT_HALTED",
            f"{reader} does not stand still on {source}.",
            next_step="`fermion status` shows which readers do.",
            reader=reader,
            journal=source,
        )
    if row["lost_through"]:
        raise Refused(
            "RESTORE_NOT_ACCEPTED",
            f"{reader} had used facts of {source} up to {row['lost_through']} that {source} has lost.",
            next_step="Look at what it decided on them, then: fermion restore --accept.",
            reader=reader,
            journal=source,
            lost_through=str(row["lost_through"]),
        )
    return str(row["halted"])


async def resume(
    journal: Journal,
    database: Database,
    *,
    reader: str,
    source: str,
    meta: Meta,
    request: Request | None = None,
) -> int:
    """
    Let a halted reader go on; a position that holds the fact that says so.

    A request that was answered before is answered again.
    """

    async def resumed() -> Message:
        why = await halted(database, reader=reader, source=source)
        return api.ReaderResumed(reader=reader, journal=source, halted=why)

    return await go_on(journal, resumed, reader=reader, source=source, meta=meta, request=request)


async def go_on(
    journal: Journal,
    decide: Callable[[], Awaitable[Message]],
    *,
    reader: str,
    source: str,
    meta: Meta,
    request: Request | None,
) -> int:
    """Resume a reader with the fact that says why; a position that holds it, also when asked again."""
    try:
        said = await unless_answered(journal, request, decide)
        command = Command(
            (said,),
            meta,
            request=request,
            subject=stream_of(reader, source),
            resume=(reader, source),
        )
        return (await journal.append(command)).position
    except Remembered as answered:
        return await answer_again(journal, request, answered)


async def unless_answered(
    journal: Journal, request: Request | None, look: Callable[[], Awaitable[Found]]
) -> Found:
    """
    What `look` finds; `Remembered` where the request was answered before.

    Asked again where there is nothing to be found: what the same request, sent twice at once, changed
    meanwhile is just what is not there any more.
    """
    await _not_answered(journal, request)
    try:
        return await look()
    except Refused:
        await _not_answered(journal, request)
        raise


async def _not_answered(journal: Journal, request: Request | None) -> None:
    answered = None if request is None else await journal.remembered(request)
    if answered is not None:
        raise answered


async def answer_again(journal: Journal, request: Request | None, answered: Remembered) -> int:
    """Answer a request that was answered before: a position that holds what it did."""
    assert request is not None
    must_be_the_same(request, answered)
    return (await journal.head()).position


def _not_parked(reader: str, source: str, position: int) -> Missing:
    return Missing(
        "FACT_NOT_PARKED",
        f"{reader} has not parked position {position} of {source}.",
        next_step="`fermion journal parked` lists what is.",
        reader=reader,
        journal=source,
        position=str(position),
    )
