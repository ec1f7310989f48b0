"""How many workloads a second are admitted through PostgreSQL while 15,000 wait and what runs ends."""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections import deque
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

from google.protobuf.duration_pb2 import Duration

import chassis
from chassis.clock import SystemClock
from chassis.commit import execute_writes
from chassis.envelope import Meta, Registry
from chassis.journal import Book, Command, Write
from chassis.lease import Lease
from chassis.migrations import migrate
from chassis.postgres import Database
from chassis.queries import Queries
from chassis.store import PostgresJournal
from fermion.api.workload import v1 as workload
from fermion.api.workload.v1 import events_pb2
from services.scheduler import aggregate, books, projection
from services.scheduler.admitter import Admitter
from services.scheduler.wiring import TARGET
from tests.bench.row import Row

QUEUED: Final = 15_000
NODES: Final = 1000
GPUS: Final = 8
PROJECTS: Final = 20
USERS: Final = 5
SECONDS: Final = 10.0
ROUNDS: Final = 3
# Longer than filling the cluster once should take.
FILL_SECONDS_MAX: Final = 300.0
# The cluster is full, and everybody told, when nothing has been said for so long.
QUIET_SECONDS: Final = 3.0
PAGE: Final = 250
GOAL: Final = 100.0
CLUSTER: Final = "0" * 26
GIB: Final = 2**30
META: Final = Meta("service:scheduler")


async def rounds(dsns: Sequence[str]) -> list[Row]:
    """Measure on fresh, empty databases: all ask for bundles, or three in ten for what they like."""
    rows = []
    for dsn, own, what in zip(
        dsns, (0.0, 0.3), ("bundles", "30 % with CPU and memory of their own"), strict=True
    ):
        rate = await _rate(dsn, own)
        rows.append(
            Row(
                f"P6 {'own' if own else 'bundles'}",
                f"admissions with {QUEUED:,} queued on {NODES:,} nodes, {what}",
                rate,
                "admitted/s",
                f"the goal, {GOAL:.0f}/s",
                rate / GOAL,
                1.0,
            )
        )
    return rows


async def _rate(dsn: str, own: float) -> float:
    database = Database(dsn, "scheduler")
    await migrate(database, Path(chassis.__file__).parent / "migrations", database.schema)
    for kind, schema in (("state", database.schema), ("rows", database.rows_schema)):
        await migrate(database, TARGET.folder / "migrations" / kind, schema)
    await database.open()
    queries = Queries.load(TARGET.folder / "queries.sql")
    journal = PostgresJournal(
        database,
        registry=Registry.of((events_pb2.DESCRIPTOR,)),
        book=Book(aggregate.place, projection.project),
        queries=queries,
    )
    await journal.open()
    world = World(database, journal, queries, random.Random(7), own)
    lease = Lease(database, "admission", "bench", SystemClock())
    told = asyncio.Event()
    admitter = Admitter(journal, database, queries, lease, SystemClock(), told)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(database.close)
        running = [
            asyncio.create_task(loop, name="bench")
            for loop in (journal.run(), lease.run(), admitter.run())
        ]
        stack.push_async_callback(_stop, running)
        await world.prepare()
        await world.fill()
        return statistics.median([await world.measure(told) for _ in range(ROUNDS)])


async def _stop(tasks: Sequence[asyncio.Task[None]]) -> None:
    for task in reversed(tasks):
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


class World:
    """Modules that declare, and an executor whose work ends; both write as the scheduler's readers do."""

    def __init__(
        self,
        database: Database,
        journal: PostgresJournal,
        queries: Queries,
        chance: random.Random,
        own: float,
    ) -> None:
        self._database = database
        self._journal = journal
        self._queries = queries
        self._chance = chance
        self._own = own
        self._declared = 0
        self._waiting = 0
        self._running: deque[str] = deque()
        self._position = 0
        self._said = 0

    async def prepare(self) -> None:
        """Know the projects, and a cluster of equal nodes."""
        can = workload.Capabilities(cluster_kind="bench", any_image=True)
        writes = [
            Write("enrol", CLUSTER, (CLUSTER, False)),
            Write("register", CLUSTER, (CLUSTER, can.SerializeToString())),
        ]
        for number in range(PROJECTS):
            name = f"project-{number}"
            writes.append(Write("know_project", name, (name, f"proj_{number}")))
        for number in range(NODES):
            node = workload.Node(
                node=f"node-{number:05}",
                cpu_milli=128_000,
                memory_bytes=1024 * GIB,
                storage_bytes=10_000 * GIB,
                gpus=[workload.Node.Gpu(gpu_type="A100", count=GPUS)],
            )
            body = node.SerializeToString()
            writes.append(Write("report_node", node.node, (CLUSTER, node.node, body, number + 1)))
        self._said = NODES
        await self._say(writes)
        await self._database.execute(
            "INSERT INTO checkpoint (reader, journal, epoch, position, folded, passed_over, decides)"
            " VALUES ($1, 'projects/0', 1, 1, 1, 0, false), ($2, $3, 1, $4, 1, 0, false)",
            books.LIMITS,
            books.REPORTS,
            f"executor/{CLUSTER}",
            NODES,
        )

    async def fill(self) -> None:
        """Declare until the cluster is full, so many wait, and each was told why."""
        end, quiet = time.monotonic() + FILL_SECONDS_MAX, 0.0
        while not self._running or quiet < QUIET_SECONDS:
            await self._declare(QUEUED - self._waiting)
            begun, before = time.monotonic(), self._position
            await asyncio.sleep(0.5)
            await self._follow()
            quiet = 0.0 if self._position > before else quiet + time.monotonic() - begun
            assert time.monotonic() < end, "the cluster is not full yet"

    async def measure(self, told: asyncio.Event) -> float:
        """Admissions a second while for each that was admitted another one ends, and another comes."""
        begun, admitted = time.perf_counter(), 0
        ends = 20
        while (passed := time.perf_counter() - begun) < SECONDS:
            self._chance.shuffle(self._running)
            gone = [self._running.popleft() for _ in range(ends)]
            await self._end(gone)
            told.set()
            await self._journal.grown(self._position, 0.5)
            more = await self._follow()
            admitted += more
            await self._declare(QUEUED - self._waiting)
            ends = max(1, min(len(self._running) // 2, more))
        return admitted / passed

    async def _follow(self) -> int:
        """Read what was admitted."""
        admitted = 0
        while True:
            page = await self._journal.read(self._position, 1000)
            for fact in page.records:
                match fact.message:
                    case workload.WorkloadAdmitted() as said:
                        admitted += 1
                        self._waiting -= 1
                        self._running.append(said.workload.uid)
                    case _:
                        pass
            if page.records:
                self._position = page.records[-1].position
            if len(page.records) < 1000:
                return admitted

    async def _end(self, uids: Sequence[str]) -> None:
        """Let the executor say that these have ended."""
        writes = []
        for uid in uids:
            self._said += 1
            writes.append(Write("note_progress", uid, (uid, CLUSTER, None, True, self._said)))
        await self._say(writes)

    async def _say(self, writes: Sequence[Write]) -> None:
        async with self._database.connection() as connection, connection.transaction():
            await execute_writes(connection, self._queries, writes)
            await connection.execute(
                "UPDATE checkpoint SET position = $2 WHERE reader = $1", books.REPORTS, self._said
            )

    async def _declare(self, number: int) -> None:
        """Let modules declare so many more."""
        facts = [
            fact
            for _ in range(number)
            for fact in aggregate.enqueue(aggregate.Entry(), declared=self._workload())
        ]
        for first in range(0, len(facts), PAGE):
            await self._journal.append(Command(tuple(facts[first : first + PAGE]), META))
        self._waiting += number

    def _workload(self) -> workload.Workload:
        self._declared += 1
        chance, number = self._chance, self._declared
        gpus = chance.choice((1, 1, 1, 2, 4, 8))
        replicas = chance.choice((1, 1, 1, 2, 4)) if gpus == 8 else 1
        cpu, memory = gpus * 16_000, gpus * 128 * GIB
        if chance.random() < self._own:
            cpu = chance.randint(1, gpus * 16) * 1000
            memory = chance.randint(1, gpus * 128) * GIB
        lasts = chance.choice((0, 3600, 4 * 3600, 24 * 3600, 72 * 3600))
        return workload.Workload(
            uid=f"wkl_{number:08}",
            owner=f"projects/project-{number % PROJECTS}/trainingJobs/job-{number}",
            owner_uid=f"job_{number}",
            attempt=1,
            project=f"project-{number % PROJECTS}",
            user=f"user_{chance.randrange(USERS)}",
            kind=workload.KIND_TRAINING,
            groups=[
                workload.Group(
                    replicas=replicas,
                    min_replicas=replicas,
                    resources=workload.Resources(
                        gpu_type="A100", gpu_milli=gpus * 1000, cpu_milli=cpu, memory_bytes=memory
                    ),
                    image=workload.Image(repository="host"),
                )
            ],
            max_duration=Duration(seconds=lasts) if lasts else None,
        )
