"""How fast a cluster's facts become metered time, beside a fetch of them and no more."""

from __future__ import annotations

import itertools
import statistics
import time
from typing import Final, get_args

from chassis.bus import Bus
from chassis.envelope import Meta
from chassis.feed import Feed
from chassis.journal import Command
from chassis.readers import FOLD_PAGE_MAX
from chassis.relay import Relay
from fermion.api.billing import v1 as api
from services.billing import accounts, metering, rating
from services.billing.accounts import Accounts, Question
from services.billing.consumer import Meter
from services.billing.metering import ReplicaFact, Said, VolumeFact
from tests.bench.growth import look_from
from tests.bench.relay import fetch, raw
from tests.bench.row import Row, beside, interleaved
from tests.lives import HOUR_MS, lives, side_by_side
from tests.meter import JOURNAL, QUERIES, SAYS, TABLES, Metering
from tests.meter import metering as metering_on
from tests.sample import Gate, bus_of, lease_of, until
from tests.sample import running as loops
from tests.servers import CLUSTER, NatsServer
from tests.unit.services.billing.life import NOON_MS, price_book

FACTS: Final = 20_000
ROUNDS: Final = 5
PROJECTS_MAX: Final = 50
FOLD_GOAL: Final = 0.75
DURABLE_GOAL: Final = 25_000
REPLAY_GOAL: Final = 300_000
META: Final = Meta("service:executor")


async def rounds(dsn: str, nats: NatsServer) -> list[Row]:
    """Fold a journal durably, from its stream and from its log, beside a fetch and no fold."""
    async with metering_on(dsn) as tables, raw(nats, "executor") as client:
        await tables.billing.append(Command((api.PricesPublished(price_book=price_book()),), META))
        said = side_by_side(lives(FACTS, NOON_MS, PROJECTS_MAX))
        for _ in range(0, FACTS, 500):
            await tables.say(itertools.islice(said, 500))
        sender, reader = bus_of(nats, "executor"), bus_of(nats, "billing")
        async with loops(sender.run(), reader.run()):
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
                    "replay": lambda: _replay(tables),
                    "pure": lambda: _pure(tables),
                },
                ROUNDS,
            )
    fetched = "nats-py's fetch of them without a fold"
    middle = {name: statistics.median(found[name]) for name in ("log", "replay", "pure", "bill")}
    return [
        *(
            beside(
                f"P3 {name}",
                f"lives of replicas, {path} to slots and checkpoint",
                "facts/s",
                found,
                path,
                "raw fetch",
                fetched,
                FOLD_GOAL,
            )
            for name, path in (("meter", "stream"), ("catch up", "log"))
        ),
        *(
            _absolute(f"P3 {name}", what, middle[path], goal)
            for name, what, path, goal in (
                ("durable", "log to slots and checkpoint, in a second", "log", DURABLE_GOAL),
                ("replay", "PostgreSQL to slots in memory, none written", "replay", REPLAY_GOAL),
            )
        ),
        Row("P3 pure", "the reference fold of the same, from memory", middle["pure"], "facts/s"),
        Row("P3 bill", "every line of everybody's bill, from slots", middle["bill"], "facts/s"),
    ]


def _absolute(id: str, what: str, value: float, goal: int) -> Row:
    return Row(id, what, value, "facts/s", f"the goal, {goal:,}/s", value / goal, 1.0)


async def _relay(tables: Metering, bus: Bus) -> None:
    """Publish the whole journal."""
    lease = lease_of(tables.executor.database, "relay")
    await bus.delete_stream(JOURNAL)
    await bus.create_stream(JOURNAL, 1)
    relay = Relay(tables.executor, bus, lease)
    async with loops(lease.run(), relay.run()):
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
    await look_from(tables, FACTS)
    books = Accounts(tables.database, QUERIES)
    always = Question(NOON_MS - 24 * HOUR_MS, NOON_MS + 30 * 24 * HOUR_MS)
    began = time.perf_counter()
    look = await books.look(None)
    rows = await books.lines(always, look)
    lines = rating.lines("all", [accounts.quantity(row) for row in rows], look.books)
    took = time.perf_counter() - began
    assert sum(line.amount_nanos for line in lines) > 0
    return FACTS / took


async def _replay(tables: Metering) -> float:
    """Read, decode and fold as the reader does, and write nothing."""
    meter, position = Meter(), 0
    began = time.perf_counter()
    while position < FACTS:
        page = await tables.executor.read(position, FOLD_PAGE_MAX)
        meter.write(page.records)
        position = page.records[-1].position
    return FACTS / (time.perf_counter() - began)


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
