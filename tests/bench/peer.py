"""What another event store of Python makes of the same PostgreSQL: the `eventsourcing` library."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final
from urllib.parse import parse_qs, urlsplit

from eventsourcing.application import Application
from eventsourcing.domain import Aggregate

THREADS: Final = 16
WHAT: Final = f"one event each by the eventsourcing library, {THREADS} threads"


def application(dsn: str) -> Application:
    """One that stores its events in a schema of its own."""
    there = urlsplit(dsn)
    more = parse_qs(there.query)
    secret = Path(more["passfile"][0]).read_text().strip().rpartition(":")[2]
    return Application(
        {
            "PERSISTENCE_MODULE": "eventsourcing.postgres",
            "POSTGRES_DBNAME": there.path.removeprefix("/"),
            "POSTGRES_HOST": more["host"][0],
            "POSTGRES_PORT": str(there.port or ""),
            "POSTGRES_USER": there.username or "",
            "POSTGRES_PASSWORD": secret,
            "POSTGRES_POOL_SIZE": str(THREADS),
            "POSTGRES_SCHEMA": "public",
        }
    )


def rate(saving: Application, seconds: float) -> float:
    """Aggregates of one event that are saved a second."""
    end = time.perf_counter() + seconds

    def save() -> int:
        done = 0
        while time.perf_counter() < end:
            saving.save(Aggregate())
            done += 1
        return done

    began = time.perf_counter()
    with ThreadPoolExecutor(THREADS) as threads:
        done = sum(one.result() for one in [threads.submit(save) for _ in range(THREADS)])
    return done / (time.perf_counter() - began)
