"""What one CreateInstance costs, with everything that it does, against a bare echo and one INSERT."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import grpc.aio

from fermion.api.instances import v1 as instances
from fermion.api.instances.v1 import service_pb2_grpc
from fermion.api.projects import v1 as projects
from fermion.api.projects.v1.service_pb2_grpc import ProjectServiceStub
from tests.bench.row import Row, beside, interleaved
from tests.integration.platform import Platform, running
from tests.servers import NatsServer

ROUNDS = 5
SECONDS = 2.0
PROJECT = "bench"
INSERT = "INSERT INTO bench_call (id, body) VALUES ($1, $2)"
GOAL_INSERT = 0.8
GOAL_ECHO = 0.45

Call = Callable[[], Awaitable[object]]


async def rounds(dsn: str, nats: NatsServer, folder: Path) -> list[Row]:
    """
    Measure on an empty database. Client and servers share this process, and PostgreSQL the machine.

    The owning service alone runs, with the relay that copies its facts and the readers beside it;
    the scheduler would be another process.
    """
    owners = ("projects", "instances")
    async with (
        running(dsn, nats, folder, services=owners) as platform,
        _bare(dsn) as (echo, insert),
    ):
        await platform.call(
            ProjectServiceStub(platform.channel).CreateProject,
            projects.CreateProjectRequest(project_id=PROJECT),
        )
        create = _creator(platform)
        found: list[Row] = []
        for flight in (1, 64):
            rates = await interleaved(
                {
                    "echo": lambda f=flight: _rate(echo, f),
                    "insert": lambda f=flight: _rate(insert, f),
                    "create": lambda f=flight: _rate(create, f),
                },
                ROUNDS,
            )
            for against, described, goal in (
                ("insert", "bare echo plus one INSERT", GOAL_INSERT),
                ("echo", "bare echo", GOAL_ECHO),
            ):
                found.append(
                    beside(
                        f"P1 call {flight}",
                        f"CreateInstance (4 facts, row, name, request), {flight} in flight",
                        "calls/s",
                        rates,
                        "create",
                        against,
                        described,
                        # The goals are for a loaded server; one in flight is shown beside them.
                        goal if flight > 1 else None,
                    )
                )
        return found


def _creator(platform: Platform) -> Call:
    stub = service_pb2_grpc.InstanceServiceStub(platform.channel)
    metadata = platform.metadata
    spec = instances.Spec(
        kind=instances.KIND_CUSTOM,
        image="host",
        command=["true"],
        resources=instances.Resources(
            cpu_milli=4000, memory_bytes=16 * 10**9, storage_bytes=10**11
        ),
    )

    async def create() -> None:
        await stub.CreateInstance(
            instances.CreateInstanceRequest(
                parent=f"projects/{PROJECT}",
                instance_id=f"i{uuid.uuid4().hex}",
                request_id=str(uuid.uuid4()),
                instance=instances.Instance(spec=spec),
            ),
            metadata=metadata,
        )

    return create


async def _rate(call: Call, flight: int) -> float:
    """Calls a second, so many at a time."""
    done = 0
    end = time.monotonic() + SECONDS

    async def caller() -> None:
        nonlocal done
        while time.monotonic() < end:
            await call()
            done += 1

    began = time.monotonic()
    await asyncio.gather(*(caller() for _ in range(flight)))
    return done / (time.monotonic() - began)


@asynccontextmanager
async def _bare(dsn: str) -> AsyncIterator[tuple[Call, Call]]:
    """A server that answers what it gets, and one that inserts a row before it does."""
    pool = await asyncpg.create_pool(dsn, min_size=8, max_size=8)
    await pool.execute("CREATE TABLE bench_call (id uuid PRIMARY KEY, body bytea NOT NULL)")

    async def echo(request: bytes, context: object) -> bytes:
        del context
        return request

    async def insert(request: bytes, context: object) -> bytes:
        del context
        await pool.execute(INSERT, uuid.uuid4(), request)
        return request

    server = grpc.aio.server()
    handlers = {
        "Echo": grpc.unary_unary_rpc_method_handler(echo),
        "Insert": grpc.unary_unary_rpc_method_handler(insert),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    body = b"x" * 200
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            ask_echo = channel.unary_unary("/bench/Echo")
            ask_insert = channel.unary_unary("/bench/Insert")
            yield (lambda: ask_echo(body)), (lambda: ask_insert(body))
    finally:
        await server.stop(0)
        await pool.close()
