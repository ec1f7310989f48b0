"""What operators watch of one service: read every few seconds, and kept until the next reading."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Final

from chassis.bus import Away, Bus
from chassis.clock import Clock
from chassis.postgres import Database
from chassis.queries import Queries
from chassis.readers import Reader
from chassis.refusals import Unavailable
from chassis.store import PostgresJournal
from chassis.telemetry import Figure, Sample

# How long to wait between two readings.
FIGURES_SECONDS: Final = 5.0

_JOURNAL: Final = ("journal",)
_READER: Final = ("reader", "journal")

AGE: Final = Figure(
    "fermion_figures_age_seconds",
    "How old the figures of a service are; they grow older while its database is away.",
    ("service",),
)
WAITING: Final = Figure(
    "fermion_journal_waiting_commands", "Commands that wait for a batch.", _JOURNAL
)
HEAD: Final = Figure("fermion_journal_head", "Last position.", _JOURNAL)
RELAY_POSITION: Final = Figure(
    "fermion_relay_position", "Last position that the stream has.", _JOURNAL
)
RELAY_LAG: Final = Figure(
    "fermion_relay_lag_positions", "Facts that the stream has not yet.", _JOURNAL
)
RELAY_LAG_SECONDS: Final = Figure(
    "fermion_relay_lag_seconds", "Age of the oldest fact that the stream has not yet.", _JOURNAL
)
RELAY_HALTED: Final = Figure(
    "fermion_relay_halted", "1 while the relay stands still until somebody has looked.", _JOURNAL
)
LAG: Final = Figure("fermion_reader_lag_positions", "Facts not yet accounted for.", _READER)
LAG_SECONDS: Final = Figure(
    "fermion_reader_lag_seconds", "Age of the oldest fact not yet accounted for.", _READER
)
PARKED: Final = Figure("fermion_reader_parked_streams", "Streams in the parking.", _READER)
PARKED_SECONDS: Final = Figure(
    "fermion_reader_parked_seconds", "Age of what was parked first of what still is.", _READER
)
HALTED: Final = Figure(
    "fermion_reader_halted", "1 while the reader stands still until it is resumed.", _READER
)
FIGURES: Final = (
    *(AGE, WAITING, HEAD, RELAY_POSITION, RELAY_LAG, RELAY_LAG_SECONDS, RELAY_HALTED),
    *(LAG, LAG_SECONDS, PARKED, PARKED_SECONDS, HALTED),
)

_log = logging.getLogger(__name__)
_queries = Queries.load(Path(__file__).with_name("queries.sql"))


class Watch:
    """
    Reads the figures of one service, whichever process does the work that they tell of.

    What cannot be read is not shown: only its age is then. Nothing that fails here ends the process.
    """

    def __init__(
        self,
        journal: PostgresJournal,
        database: Database,
        bus: Bus,
        readers: Sequence[Reader],
        clock: Clock,
        measure: Callable[[], Awaitable[Iterable[Sample]]] | None = None,
    ) -> None:
        """`measure` reads what the service itself has to show."""
        self._journal = journal
        self._database = database
        self._bus = bus
        self._readers = readers
        self._clock = clock
        self._measure = measure
        # Where the stream ended when it was last asked.
        self._published = 0
        self._found: Sequence[Sample] = ()
        self._read_at = clock.monotonic()
        self._trouble = ""

    async def run(self) -> None:
        """Read again and again until cancelled."""
        while True:
            try:
                await self.read()
                self._trouble = ""
            except Exception as error:
                self._found = ()
                if not isinstance(error, Unavailable) and repr(error) != self._trouble:
                    _log.exception("the figures of %s cannot be read", self._database.service)
                self._trouble = repr(error)
            await asyncio.sleep(FIGURES_SECONDS)

    async def read(self) -> None:
        """Read all of them once; `Unavailable` where they cannot be had now."""
        found = [*await self._of_journal(), *await self._of_readers()]
        if self._measure is not None:
            found += await self._measure()
        self._found, self._read_at = found, self._clock.monotonic()

    def samples(self) -> Iterable[Sample]:
        """What was found last, and what is known without asking."""
        age = self._clock.monotonic() - self._read_at
        yield Sample(AGE, (self._database.service,), age)
        yield Sample(WAITING, (self._journal.name,), self._journal.waiting)
        yield from self._found

    async def _of_journal(self) -> list[Sample]:
        try:
            tail = await self._bus.tail(self._journal.name)
            self._published = 0 if tail is None else tail.last
        except Away:
            # It has at least what it had, and the journal grows on.
            pass
        page = await self._journal.read(self._published, 1)
        halted = await self._database.fetchval(_queries["read_relay"], self._journal.shard)
        first = page.records[0].record_time if page.records else None
        return [
            Sample(figure, (self._journal.name,), value)
            for figure, value in (
                (HEAD, page.head),
                (RELAY_POSITION, self._published),
                (RELAY_LAG, max(0, page.head - self._published)),
                (RELAY_LAG_SECONDS, self._age(first)),
                (RELAY_HALTED, float(halted is not None)),
            )
        ]

    async def _of_readers(self) -> list[Sample]:
        rows = {
            (row["reader"], row["journal"]): row
            for row in await self._database.fetch(_queries["list_checkpoints"])
        }
        known = [reader for reader in self._readers if _key(reader) in rows]
        # All at once: an owner that hangs is waited for once, and not by each that reads it.
        aheads = await asyncio.gather(
            *(_ahead(reader, rows[_key(reader)]["position"]) for reader in known)
        )
        found: list[Sample] = []
        for reader, ahead in zip(known, aheads, strict=True):
            labels = _key(reader)
            row = rows[labels]
            found += [
                Sample(PARKED, labels, row["parked_streams"]),
                Sample(PARKED_SECONDS, labels, self._age(row["parked_since"])),
                Sample(HALTED, labels, float(row["halted"] is not None)),
            ]
            if ahead is not None:
                head, first = ahead
                found += [
                    Sample(LAG, labels, max(0, head - row["position"])),
                    Sample(LAG_SECONDS, labels, self._age(first)),
                ]
        return found

    def _age(self, since: datetime | None) -> float:
        """Seconds since then; the database's clock may be a little before this one."""
        return 0.0 if since is None else max(0.0, (self._clock.now() - since).total_seconds())


def _key(reader: Reader) -> tuple[str, str]:
    return reader.name, reader.feed.journal


async def _ahead(reader: Reader, position: int) -> tuple[int, datetime | None] | None:
    """See `Feed.ahead`; None where the owner is away, and nobody knows how far its readers are."""
    try:
        return await reader.feed.ahead(position)
    except Unavailable:
        return None
