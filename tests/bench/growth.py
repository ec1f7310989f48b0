"""What folding costs, and what a bill costs to read, as there is more and more."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Final

from google.protobuf.message import Message

from chassis.clock import SystemClock
from chassis.commit import execute_writes
from chassis.envelope import Meta, Recorded
from chassis.journal import Command
from chassis.lease import Lease
from fermion.api.billing import v1 as api
from fermion.api.workload import v1 as workload
from services.billing import accounts, rating
from services.billing.accounts import Accounts, Question
from services.billing.config import Settings
from services.billing.consumer import METERED, Meter
from services.billing.settler import Settler
from tests.bench.row import Row
from tests.lives import HOUR_MS, lives
from tests.meter import JOURNAL, QUERIES, Metering
from tests.meter import metering as metering_on
from tests.unit.services.billing.life import NOON_MS, price_book

# Facts of one project, however many projects there are.
FACTS_EACH: Final = 500
SIZES: Final = (10_000, 100_000, 1_000_000)
REPEATS: Final = 20
META: Final = Meta("service:executor")


async def rounds(dsn: str, sizes: Sequence[int] = SIZES) -> list[Row]:
    """Read the bill of one project, its owners' costs, and what the settler looks at, among ever more."""
    rows: list[Row] = []
    async with metering_on(dsn) as tables:
        await tables.billing.append(Command((api.PricesPublished(price_book=price_book()),), META))
        reads = _reads(tables)
        first: dict[str, float] = {}
        folded, said, before = 0, _spread(), 0
        for size in sizes:
            began = time.perf_counter()
            while folded < size:
                await _fold(tables, folded, list(itertools.islice(said, 2000)))
                folded += 2000
            spent = time.perf_counter() - began
            rows.append(
                Row(
                    "P5 fold", f"facts to slots, up to {size:,}", (size - before) / spent, "facts/s"
                )
            )
            before = size
            await look_from(tables, folded)
            await tables.database.execute("ANALYZE")
            for name, read in reads.items():
                took = await _median(read)
                first.setdefault(name, took)
                against = f"the same with {sizes[0]:,} facts"
                rows.append(
                    Row(
                        f"P5 {name}",
                        f"with {size:,} facts of {size // FACTS_EACH:,} projects",
                        took * 1000,
                        "ms",
                        against if size != sizes[0] else "",
                        took / first[name] if size != sizes[0] else None,
                    )
                )
    return rows


def _spread() -> Iterator[Message]:
    """Lives of project after project, each beginning at noon."""
    for number in itertools.count():
        few = itertools.islice(lives(10**6, NOON_MS), FACTS_EACH)
        yield from (_renamed(fact, number) for fact in few)


def _renamed(fact: Message, number: int) -> Message:
    """The same, of another project and with other uids."""
    match fact:
        case workload.ProofOfLife() | workload.Watermark():
            return fact
        case workload.WorkloadFinished():
            fact.uid = f"{fact.uid}-{number}"
            fact.project = f"x{number}"
        case workload.ReplicaScheduled() | workload.ReplicaStarted() | workload.VolumeBound():
            fact.uid = f"{fact.uid}-{number}"
            whose = fact.subject
            whose.project = f"x{number}"
            whose.workload = f"{whose.workload}-{number}"
            whose.owner = whose.owner.replace("projects/p0/", f"projects/x{number}/")
        case _:
            fact.uid = f"{fact.uid}-{number}"  # type: ignore[attr-defined]
            fact.project = f"x{number}"  # type: ignore[attr-defined]
    return fact


async def _fold(tables: Metering, before: int, facts: Iterable[Message]) -> None:
    """Fold facts as the reader does, without a journal that they would have to be in."""
    now = datetime.now(UTC)
    said = [
        Recorded(
            journal=JOURNAL,
            position=position,
            project_position=position,
            stream="",
            version=1,
            project="",
            type=fact.DESCRIPTOR.full_name,
            statement="",
            data=b"",
            message=fact,
            meta=META,
            record_time=now,
            epoch=1,
        )
        for position, fact in enumerate(facts, start=before + 1)
    ]
    async with tables.database.connection() as connection, connection.transaction():
        await execute_writes(connection, QUERIES, Meter().write(said))


async def look_from(tables: Metering, position: int) -> None:
    """Have read so far, of an enrolled cluster that has said everything; all that is over is settled."""
    database = tables.database
    await database.execute("UPDATE cluster SET enrolled = true, through_ms = $1", NOON_MS + 10**9)
    await database.execute("DELETE FROM checkpoint")
    await database.execute(
        "INSERT INTO checkpoint (reader, journal, epoch, position, folded, passed_over, decides)"
        " VALUES ($1, $2, 1, $3, $3, 0, false)",
        *(METERED, JOURNAL, position),
    )
    await database.execute(
        "INSERT INTO charged SELECT workload, project, false, true, 0 FROM finished"
        " ON CONFLICT DO NOTHING"
    )


def _reads(tables: Metering) -> dict[str, Callable[[], Awaitable[object]]]:
    books = Accounts(tables.database, QUERIES)
    lease = Lease(tables.database, "settlement", "bench", SystemClock())
    settler = Settler(books, tables.billing, lease, SystemClock(), Settings())
    month = Question(NOON_MS - 23 * 24 * HOUR_MS, NOON_MS + 7 * 24 * HOUR_MS, "x7")

    async def statement() -> None:
        look = await books.look("x7")
        rows = await books.lines(month, look)
        lines = rating.lines("x7", [accounts.quantity(row) for row in rows], look.books)
        assert sum(line.amount_nanos for line in lines) > 0

    async def page() -> None:
        look = await books.look("x7")
        assert await books.usage(month, look, look.settled, by=[api.GROUP_BY_OWNER])

    async def settling() -> None:
        assert await settler.look(1) == 0

    return {"statement": statement, "list page": page, "settler": settling}


async def _median(read: Callable[[], Awaitable[object]]) -> float:
    times = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        await read()
        times.append(time.perf_counter() - began)
    return statistics.median(times)
