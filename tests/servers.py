"""Real servers for tests: one PostgreSQL and one NATS a session, a fresh database a test."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import nats
import pytest

from chassis.embedded import Nats, Postgres

SERVICES = ("projects", "instances", "scheduler", "executor", "billing", "sample", "other")
# The one cluster of tests that have any.
CLUSTER = "0" * 25 + "1"
SHARDS = {"executor": CLUSTER}
_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True)
class NatsServer:
    """Where it is, and the keys of its users."""

    url: str
    keys: Path


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    """One PostgreSQL of the session."""
    server = Postgres(tmp_path_factory.mktemp("pg"))
    server.start()
    server.wait_ready()
    yield server
    server.stop()


@pytest.fixture
async def database(postgres_server: Postgres) -> AsyncIterator[str]:
    """The DSN of a fresh, empty database."""
    name = f"test_{next(_numbers)}"
    admin = await asyncpg.connect(postgres_server.dsn_of("postgres"))
    try:
        await admin.execute(f"CREATE DATABASE {name}")
        yield postgres_server.dsn_of(name)
        await admin.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
    finally:
        await admin.close()


@pytest.fixture(scope="session")
def nats_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    """One NATS of the session."""
    server = Nats(tmp_path_factory.mktemp("nats"), SERVICES, shards=SHARDS)
    server.start()
    server.wait_ready()
    yield NatsServer(server.url, server.keys)
    server.stop()


@pytest.fixture
async def nats_server(nats_session: NatsServer) -> AsyncIterator[NatsServer]:
    """The session's NATS; its streams are taken away after the test."""
    yield nats_session
    for service in SERVICES:
        client = await nats.connect(
            nats_session.url,
            nkeys_seed=str(nats_session.keys / f"{service}.nk"),
            inbox_prefix=f"_INBOX_{service}".encode(),
        )
        stream = f"FERMION_{service}_{SHARDS.get(service, '0')}"
        await _taken_away(nats_session, stream)
        await client.request(f"$JS.API.STREAM.DELETE.{stream}", b"", timeout=5)
        await client.close()


async def _taken_away(server: NatsServer, stream: str) -> None:
    """Wait for the files of a stream that was deleted: they keep the next deletion from its own."""
    deadline = time.monotonic() + 60
    while True:
        left = [*server.keys.parent.glob(f"store/jetstream/*/streams/.{stream}")]
        if not left:
            return
        assert time.monotonic() < deadline, left
        await asyncio.sleep(0.01)
