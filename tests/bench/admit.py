"""How many workloads the scheduler admits in a second, with thousands behind them that wait."""

from __future__ import annotations

import asyncio
import signal
from contextlib import suppress
from datetime import datetime
from pathlib import Path

import asyncpg
import grpc.aio
import psutil

from chassis.embedded import Postgres
from fermion.api.instances import v1 as instances
from fermion.api.instances.v1 import service_pb2_grpc
from tests.bench.row import Row
from tests.stage import TINY, Stage, staged, until

QUEUED = 15_000
ADMITTED = 500
CALLERS = 64
PROJECT = "bench"
GOAL = 100.0


def rounds(folder: Path) -> list[Row]:
    """
    Queue behind a quota of nothing, raise it, and take the times of the facts.

    The executor is stopped meanwhile, so that nothing is started, and only admission is measured.
    """
    with staged(folder / "home", "--split", settings=TINY) as stage:
        stage.ok("projects", "create", PROJECT)
        stage.ok("quotas", "set", "-p", PROJECT, "--instances", "0")
        executor = process_of(stage, "executor")
        executor.send_signal(signal.SIGSTOP)
        try:
            asyncio.run(queue(stage))
            until(300, lambda: count(stage, "WorkloadQueued") >= QUEUED, stage.log)
            stage.ok("quotas", "set", "-p", PROJECT, "--instances", str(ADMITTED))
            until(300, lambda: count(stage, "WorkloadAdmitted") >= ADMITTED, stage.log)
            times = asyncio.run(moments(stage, "WorkloadAdmitted"))
        finally:
            vanish(stage)
    rate = (len(times) - 1) / (times[-1] - times[0]).total_seconds()
    what = f"admissions with {QUEUED} queued, first to last of {len(times)}"
    return [Row("P6", what, rate, "a second", f"{GOAL:.0f} a second", rate / GOAL, 1.0)]


def vanish(stage: Stage) -> None:
    """End the supervisor before its executor, so that what was admitted is started nowhere."""
    assert stage.process is not None
    below = stage.processes()
    stage.process.kill()
    stage.process.wait()
    for process in below:
        with suppress(psutil.NoSuchProcess):
            process.kill()


async def queue(stage: Stage) -> None:
    """Create all that wait, from many callers at once."""
    numbers = iter(range(QUEUED))
    metadata = (("authorization", f"Bearer {stage.token}"),)
    spec = instances.Spec(
        kind=instances.KIND_CUSTOM,
        image="host",
        command=["sleep", "600"],
        resources=instances.Resources(cpu_milli=1, memory_bytes=2**20),
    )
    async with grpc.aio.insecure_channel(stage.address_of("instances")) as channel:
        stub = service_pb2_grpc.InstanceServiceStub(channel)

        async def call() -> None:
            for number in numbers:
                request = instances.CreateInstanceRequest(
                    parent=f"projects/{PROJECT}",
                    instance_id=f"q{number}",
                    instance=instances.Instance(spec=spec),
                )
                await stub.CreateInstance(request, metadata=metadata)

        async with asyncio.TaskGroup() as group:
            for _ in range(CALLERS):
                group.create_task(call())


def count(stage: Stage, fact: str) -> int:
    """How many facts of a kind the scheduler has stated."""
    return len(asyncio.run(moments(stage, fact)))


async def moments(stage: Stage, fact: str) -> list[datetime]:
    """When the scheduler stated each fact of a kind, first of its stream, in order."""
    connection = await asyncpg.connect(Postgres(stage.home / "postgres").dsn, timeout=10)
    try:
        rows = await connection.fetch(
            "SELECT min(at) AS at FROM scheduler.event WHERE type LIKE '%' || $1 "
            "GROUP BY stream ORDER BY 1",
            fact,
        )
    finally:
        await connection.close()
    return [row["at"] for row in rows]


def process_of(stage: Stage, service: str) -> psutil.Process:
    """The process of one service."""
    assert stage.process is not None
    for process in psutil.Process(stage.process.pid).children():
        if process.cmdline()[-3:] == ["-m", "services", service]:
            return process
    raise LookupError(service)
