"""
How much of JetStream's rate of atomic batches the relay leaves over, and of its fetch a reader; and how
long a fact takes from its command to the rows of another service.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import nats
from nats.aio.client import Client
from nats.js.api import AckPolicy, ConsumerConfig

from chassis.bus import BATCH_MAX, headers_of, stream_name, subject_of
from chassis.envelope import Recorded
from chassis.journal import Write
from chassis.relay import Relay
from fermion.api.journal import v1 as api
from tests.bench.row import Row, beside, interleaved, within
from tests.sample import Gate, Service, Tallies, asked, lease_of, reading, running, serving, until
from tests.servers import NatsServer

FACTS = 20_000
ROUNDS = 5
FETCH = 500
RELAY_GOAL = 0.8
READER_GOAL = 0.75
# Commands a second, and for how long; at the most they may take to the rows, at the higher rate.
PACES = (100, 400)
PACE_SECONDS = 10
P50_GOAL_MS, P99_GOAL_MS = 3.0, 15.0
JOURNAL = "other/0"


async def rounds(dsn: str, server: NatsServer) -> list[Row]:
    """Measure on an empty database and a NATS whose keys allow the services `other` and `sample`."""
    async with (
        serving(dsn, server, "other", relayed=False) as other,
        serving(dsn, server, "sample", relayed=False) as sample,
        raw(server, "other") as client,
    ):
        for first in range(0, FACTS, 500):
            await other.say(*(asked(f"inst_{first + number}") for number in range(500)))
        facts = (await other.journal.records(0, FACTS)).records
        assert await other.bus.wait_ready(10)
        assert await sample.bus.wait_ready(10)
        found = await interleaved(
            {
                "raw batches": lambda: _publish(other, client, facts),
                "relay": lambda: _relay(other),
                "raw fetch": lambda: fetch(client, JOURNAL, FACTS),
                "reader": lambda: _read(other, sample),
            },
            ROUNDS,
        )
        taken = {pace: sorted(await _end_to_end(other, sample, pace)) for pace in PACES}
    batches = f"atomic batches of {BATCH_MAX} from memory"
    fetched = "nats-py's fetch without a fold"
    return [
        beside(
            "P2 relay",
            "journal to stream",
            "facts/s",
            found,
            "relay",
            "raw batches",
            batches,
            RELAY_GOAL,
        ),
        beside(
            "P3 reader",
            "stream to rows and checkpoint",
            "facts/s",
            found,
            "reader",
            "raw fetch",
            fetched,
            READER_GOAL,
        ),
        *(
            within(f"rows p{share} {pace}", f"command to another's rows, {pace}/s", one, "ms", goal)
            for pace, found in taken.items()
            for share, goal in ((50, P50_GOAL_MS), (99, P99_GOAL_MS))
            for one in (found[len(found) * share // 100],)
        ),
    ]


@asynccontextmanager
async def raw(server: NatsServer, service: str) -> AsyncIterator[Client]:
    """A client of nats-py's own, with a service's key."""
    client = await nats.connect(
        server.url,
        nkeys_seed=str(server.keys / f"{service}.nk"),
        inbox_prefix=f"_INBOX_{service}".encode(),
    )
    try:
        yield client
    finally:
        await client.close()


async def _publish(other: Service, client: Client, facts: Sequence[api.Record]) -> float:
    """Send what is in memory already, with the same headers, and wait for each batch."""
    await _empty_stream(other)
    ready = [(subject_of(fact), fact.SerializeToString(), headers_of(fact)) for fact in facts]
    inbox = client.new_inbox()
    answers = await client.subscribe(inbox)
    began = time.perf_counter()
    for first in range(0, len(ready), BATCH_MAX):
        token = uuid.uuid4().hex
        batch = ready[first : first + BATCH_MAX]
        for place, (subject, body, headers) in enumerate(batch, start=1):
            more = {**headers, "Nats-Batch-Id": token, "Nats-Batch-Sequence": str(place)}
            if place == len(batch):
                more["Nats-Batch-Commit"] = "1"
            reply = inbox if place == len(batch) else ""
            await client.publish(subject, body, reply=reply, headers=more)
        assert "error" not in json.loads((await answers.next_msg(10)).data)
    rate = len(ready) / (time.perf_counter() - began)
    await answers.unsubscribe()
    return rate


async def _relay(other: Service) -> float:
    """Copy the whole journal, from the first look at the stream to the last acknowledgement."""
    await _empty_stream(other)
    lease = lease_of(other.database, f"relay {uuid.uuid4().hex}")
    await lease.renew()
    relay = Relay(other.journal, other.bus, lease)
    began = time.perf_counter()
    async with running(lease.run(), relay.run()):
        await until(lambda: relay.position >= FACTS, "all is published")
        return FACTS / (time.perf_counter() - began)


async def fetch(client: Client, journal: str, count: int) -> float:
    """Fetch so many facts of a journal's stream and do nothing with them."""
    context = client.jetstream()
    consumer = await context.add_consumer(
        stream_name(journal), ConsumerConfig(ack_policy=AckPolicy.NONE, mem_storage=True)
    )
    subscription = await context.pull_subscribe_bind(consumer.name, stream_name(journal))
    began = time.perf_counter()
    got = 0
    while got < count:
        got += len(await subscription.fetch(FETCH, timeout=5))
    rate = count / (time.perf_counter() - began)
    await subscription.unsubscribe()
    return rate


async def _read(other: Service, sample: Service) -> float:
    """Count every fact of the stream into rows, the log being out of reach."""
    await sample.database.execute("DELETE FROM checkpoint")
    began = time.perf_counter()
    async with reading(sample, Tallies(), Gate(other.journal, away=True), sample.bus) as reader:
        assert await reader.reached(FACTS, 60)
        return FACTS / (time.perf_counter() - began)


class Timed(Tallies):
    """Counts facts into rows, and keeps when each was durable there."""

    name = "sample/timed"

    def __init__(self) -> None:
        super().__init__()
        self.at: dict[int, float] = {}
        # What is worked out, and not committed yet: the next facts may be by then.
        self._prepared: deque[list[int]] = deque()

    def write(self, facts: Sequence[Recorded]) -> Sequence[Write]:
        """Count them."""
        self._prepared.append([fact.position for fact in facts])
        return super().write(facts)

    def written(self) -> None:
        """They are committed."""
        now = time.perf_counter()
        self.at.update(dict.fromkeys(self._prepared.popleft(), now))


async def _end_to_end(other: Service, sample: Service, pace: int) -> list[float]:
    """Milliseconds from each command, said at a steady pace, to the commit of another service's row."""
    await _empty_stream(other)
    lease, timed = lease_of(other.database, f"relay {uuid.uuid4().hex}"), Timed()
    await lease.renew()
    relay = Relay(other.journal, other.bus, lease)
    head = await other.head()
    began: dict[int, float] = {}

    async def say(number: int) -> None:
        at = time.perf_counter()
        done = await other.say(asked(f"paced_{head}_{number}"))
        began[done.position] = at

    async with (
        running(lease.run(), relay.run()),
        reading(sample, timed, Gate(other.journal), sample.bus) as reader,
    ):
        await until(lambda: relay.position >= head and reader.position >= head, "it is at the end")
        first = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for number in range(pace * PACE_SECONDS):
                await asyncio.sleep(max(0.0, first + number / pace - time.perf_counter()))
                group.create_task(say(number))
        last = max(began)
        await until(lambda: reader.position >= last, "all is folded")
    return [(timed.at[position] - at) * 1000 for position, at in began.items()]


async def _empty_stream(other: Service) -> None:
    await other.bus.delete_stream(JOURNAL)
    await other.bus.create_stream(JOURNAL, 1)
