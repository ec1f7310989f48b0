"""How fast a cluster's facts become metered time, how soon a cost shows it, and what a bill costs to read."""

from __future__ import annotations

import asyncio
import itertools
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, get_args

from google.protobuf.message import Message

from chassis.bus import Bus
from chassis.clock import SystemClock, milliseconds
from chassis.commit import execute_writes
from chassis.envelope import Meta, Recorded
from chassis.feed import Feed
from chassis.journal import Command
from chassis.lease import Lease
from chassis.relay import Relay
from fermion.api.billing import v1 as api
from fermion.api.billing.v1.service_pb2_grpc import CostServiceStub
from fermion.api.projects import v1 as projects
from fermion.api.projects.v1.service_pb2_grpc import ProjectServiceStub
from fermion.api.workload import v1 as workload
from services.billing import accounts, metering, rating
from services.billing.accounts import Accounts, Question
from services.billing.config import Settings
from services.billing.consumer import METERED, Meter
from services.billing.metering import ReplicaFact, Said, VolumeFact
from services.billing.settler import Settler
from services.billing.wiring import TARGET as BILLING
from services.executor import aggregate as executor
from services.projects.wiring import TARGET as PROJECTS
from tests.bench.relay import fetch, raw
from tests.bench.row import Row, interleaved, ratio
from tests.integration.platform import Platform, running
from tests.integration.voices import Voice, enrol
from tests.lives import HOUR_MS, begun, lives, side_by_side, subject
from tests.meter import JOURNAL, QUERIES, SAYS, TABLES, Metering
from tests.meter import metering as metering_on
from tests.sample import Gate, bus_of, lease_of, until
from tests.sample import running as beside
from tests.servers import CLUSTER, NatsServer
from tests.unit.services.billing.life import NOON_MS, price_book, stamp

FACTS: Final = 20_000
ROUNDS: Final = 3
PROJECTS_MAX: Final = 50
# Facts of one project, however many projects there are.
FACTS_EACH: Final = 500
SIZES: Final = (10_000, 100_000)
REPEATS: Final = 20
RATE: Final = 400
SECONDS: Final = 15.0
GOAL_SECONDS: Final = 1.0
FOLD_GOAL: Final = 0.75
REPLAY_GOAL: Final = 300_000
META: Final = Meta("service:executor")


async def rounds(dsns: Sequence[str], nats: NatsServer, home: Path) -> list[Row]:
    """Measure on three empty databases, and a NATS that knows the cluster of the tests."""
    folding, living, growing = dsns
    return [
        *await folded(folding, nats),
        *await lag(living, nats, home),
        *await growth(growing, SIZES),
    ]


async def folded(dsn: str, nats: NatsServer) -> list[Row]:
    """Fold a journal durably, from its stream and from its log, beside a fetch and no fold."""
    async with metering_on(dsn) as tables, raw(nats, "executor") as client:
        await tables.billing.append(Command((api.PricesPublished(price_book=price_book()),), META))
        said = side_by_side(lives(FACTS, NOON_MS, PROJECTS_MAX))
        for _ in range(0, FACTS, 500):
            await tables.say(itertools.islice(said, 500))
        sender, reader = bus_of(nats, "executor"), bus_of(nats, "billing")
        async with beside(sender.run(), reader.run()):
            assert await sender.wait_ready(10)
            assert await reader.wait_ready(10)
            await _relay(tables, sender)
            stream = Feed(JOURNAL, Gate(tables.executor, away=True), reader, SAYS)
            found = await interleaved(
                {
                    "raw fetch": lambda: fetch(client, JOURNAL, FACTS),
                    "stream": lambda: _meter(tables, stream),
                    "log": lambda: _meter(tables),
                    "bill": lambda: _bill(tables),
                    "pure": lambda: _pure(tables),
                },
                ROUNDS,
            )
    against = (
        f"nats-py's fetch of them without a fold, {statistics.median(found['raw fetch']):,.0f}/s"
    )
    return [
        Row(
            f"P3 {name}",
            f"lives of replicas, {path} to slots and checkpoint",
            statistics.median(found[path]),
            "facts/s",
            against,
            ratio(found[path], found["raw fetch"]),
            FOLD_GOAL,
        )
        for name, path in (("meter", "stream"), ("catch up", "log"))
    ] + [
        Row(
            "P3 replay",
            "the pure fold of the same facts in memory",
            statistics.median(found["pure"]),
            "facts/s",
            f"the goal, {REPLAY_GOAL:,}/s",
            statistics.median(found["pure"]) / REPLAY_GOAL,
        ),
        Row(
            "P3 bill",
            "every line of everybody's bill, from slots",
            statistics.median(found["bill"]),
            "facts/s",
        ),
    ]


async def _relay(tables: Metering, bus: Bus) -> None:
    """Publish the whole journal."""
    lease = lease_of(tables.executor.database, "relay")
    await bus.delete_stream(JOURNAL)
    await bus.create_stream(JOURNAL, 1)
    relay = Relay(tables.executor, bus, lease)
    async with beside(lease.run(), relay.run()):
        await until(lambda: relay.position >= FACTS, "all is published")


async def _meter(tables: Metering, feed: Feed | None = None) -> float:
    await tables.database.execute(f"TRUNCATE {', '.join(TABLES)}")
    await tables.database.execute("DELETE FROM checkpoint")
    began = time.perf_counter()
    async with tables.reading(feed) as reader:
        assert await reader.reached(FACTS, 120)
        return FACTS / (time.perf_counter() - began)


async def _bill(tables: Metering) -> float:
    """Compute every line of everybody's bill from what was folded before."""
    await _look_from(tables, FACTS)
    books = Accounts(tables.database, QUERIES)
    always = Question(NOON_MS - 24 * HOUR_MS, NOON_MS + 30 * 24 * HOUR_MS)
    began = time.perf_counter()
    look = await books.look(None)
    rows = await books.lines(always, look)
    lines = rating.lines("all", [accounts.quantity(row) for row in rows], look.books)
    took = time.perf_counter() - began
    assert sum(line.amount_nanos for line in lines) > 0
    return FACTS / took


async def _pure(tables: Metering) -> float:
    kinds = (*get_args(ReplicaFact), *get_args(VolumeFact))
    said = [
        Said(fact.message, CLUSTER, fact.position)
        for fact in await tables.facts()
        if isinstance(fact.message, kinds)
    ]
    began = time.perf_counter()
    metering.fold(said)
    return len(said) / (time.perf_counter() - began)


# From a fact to a cost that has it in.


async def lag(dsn: str, nats: NatsServer, folder: Path) -> list[Row]:
    """State facts at a steady rate, and see how long after its commit a watermark shows in a cost."""
    teller = Voice("executor", CLUSTER, placed=executor.place)
    targets = {"projects": PROJECTS, "billing": BILLING, "executor": teller.target}
    async with running(dsn, nats, folder, targets=targets) as platform:
        await platform.call(
            ProjectServiceStub(platform.channel).CreateProject,
            projects.CreateProjectRequest(project_id="acme"),
        )
        await enrol(dsn)
        now = milliseconds(datetime.now(UTC))
        start = now - 24 * HOUR_MS
        await teller.say(
            *begun(subject("lab"), start, start),
            workload.Watermark(cluster=CLUSTER, through_time=stamp(start)),
        )
        polled = _polled(platform, start)
        while await anext(polled) < start:
            pass
        committed: dict[int, float] = {}
        seen: dict[str, dict[int, float]] = {"GetCost": {}, "WatchCost": {}}
        asking = [
            asyncio.create_task(_note(how, seen[name]), name=name)
            for name, how in (
                ("GetCost", polled),
                ("WatchCost", _watched(platform, start)),
            )
        ]
        await _state(teller, start, committed)
        await asyncio.sleep(2)
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
    return [_lag_row(name, committed, found) for name, found in seen.items()]


async def _state(teller: Voice, start: int, committed: dict[int, float]) -> None:
    """State so many facts a second, each tenth of a second's with a watermark behind them."""
    quiet, loop = (workload.ProofOfLife, workload.Watermark), asyncio.get_running_loop()
    said = (fact for fact in lives(10**6, start) if not isinstance(fact, quiet))
    began = loop.time()
    for beat in range(round(SECONDS * 10)):
        facts: list[Message] = list(itertools.islice(said, RATE // 10 - 1))
        through = start + (beat + 1) * 1000
        facts.append(workload.Watermark(cluster=CLUSTER, through_time=stamp(through)))
        await asyncio.gather(
            *(teller.journal.append(Command((fact,), META)) for fact in facts[:-1])
        )
        await teller.journal.append(Command((facts[-1],), META))
        committed[through] = loop.time()
        await asyncio.sleep(max(0.0, began + (beat + 1) / 10 - loop.time()))


async def _polled(platform: Platform, start: int) -> AsyncIterator[int]:
    stub, token = CostServiceStub(platform.channel), platform.metadata[:1]
    request = api.GetCostRequest(parent="projects/acme", start_time=stamp(start))
    while True:
        answer = await stub.GetCost(request, metadata=token)
        yield answer.through_time.ToMilliseconds()
        await asyncio.sleep(0.01)


async def _watched(platform: Platform, start: int) -> AsyncIterator[int]:
    request = api.WatchCostRequest(parent="projects/acme", start_time=stamp(start))
    token = platform.metadata[:1]
    async for answer in CostServiceStub(platform.channel).WatchCost(request, metadata=token):
        yield answer.through_time.ToMilliseconds()


async def _note(answers: AsyncIterator[int], seen: dict[int, float]) -> None:
    async for through in answers:
        seen.setdefault(through, asyncio.get_running_loop().time())


def _lag_row(name: str, committed: dict[int, float], seen: dict[int, float]) -> Row:
    lags = []
    for through, at in committed.items():
        shown = [when for there, when in seen.items() if there >= through]
        if shown:
            lags.append(max(0.0, min(shown) - at))
    assert len(lags) > len(committed) * 0.9, f"{len(lags)} of {len(committed)} were seen"
    lags.sort()
    middle, most = lags[len(lags) // 2], lags[min(len(lags) - 1, round(len(lags) * 0.99))]
    return Row(
        f"P4 {name}",
        f"from commit to cost at {RATE} facts/s, 99 in 100 (half: {middle * 1000:.0f})",
        most * 1000,
        "ms",
        f"the goal, {GOAL_SECONDS * 1000:.0f} ms, in which it fits so often",
        GOAL_SECONDS / most,
        1.0,
    )


# What reading costs as there is more and more.


async def growth(dsn: str, sizes: Sequence[int]) -> list[Row]:
    """Read the bill of one project, its owners' costs, and what the settler looks at, among ever more."""
    rows: list[Row] = []
    async with metering_on(dsn) as tables:
        await tables.billing.append(Command((api.PricesPublished(price_book=price_book()),), META))
        reads = _reads(tables)
        first: dict[str, float] = {}
        folded, said, spent = 0, _spread(), 0.0
        for size in sizes:
            began = time.perf_counter()
            while folded < size:
                await _fold(tables, folded, list(itertools.islice(said, 2000)))
                folded += 2000
            spent = time.perf_counter() - began
            await _look_from(tables, folded)
            await tables.database.execute("ANALYZE")
            for name, read in reads.items():
                took = await _median(read)
                first.setdefault(name, took)
                against = f"the same with {sizes[0]:,} facts"
                rows.append(
                    Row(
                        f"P5 {name}",
                        f"with {size:,} facts of {size // FACTS_EACH:,} projects (folded in {spent:.0f} s)",
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


async def _look_from(tables: Metering, position: int) -> None:
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
