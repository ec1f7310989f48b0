"""Measure everything that is measured, and print a table: `python -m tests.bench`."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path

from chassis.embedded import Nats, Postgres
from chassis.postgres import create_database
from tests.bench import admission, append, call, fold, relay, start
from tests.bench.row import Row
from tests.servers import SERVICES, SHARDS, NatsServer


def main() -> int:
    """Return 1 where a ratio is far below its goal."""
    with tempfile.TemporaryDirectory() as folder:
        server = Postgres(Path(folder) / "postgres")
        broker = Nats(Path(folder) / "nats", SERVICES, shards=SHARDS)
        server.start()
        broker.start()
        try:
            server.wait_ready()
            broker.wait_ready()
            rows = asyncio.run(measure(server, broker, Path(folder) / "home"))
            rows += start.rounds(Path(folder) / "start")
        finally:
            broker.stop()
            server.stop()
    for row in rows:
        print(line(row))
    return 0 if all(row.holds for row in rows) else 1


async def measure(server: Postgres, broker: Nats, home: Path) -> list[Row]:
    """Run every measurement on a database of its own."""
    queues = ("bench_bundles", "bench_own")
    bills = ("bench_fold", "bench_lag", "bench_growth")
    for name in ("bench_append", "bench_call", "bench_relay", *queues, *bills):
        await create_database(server.dsn_of("postgres"), name)
    return [
        *await append.rounds(server.dsn_of("bench_append")),
        *await call.rounds(server.dsn_of("bench_call"), NatsServer(broker.url, broker.keys), home),
        *await relay.rounds(server.dsn_of("bench_relay"), broker.url, broker.keys),
        *await admission.rounds([server.dsn_of(name) for name in queues]),
        *await fold.rounds(
            [server.dsn_of(name) for name in bills],
            NatsServer(broker.url, broker.keys),
            home / "bills",
        ),
    ]


def line(row: Row) -> str:
    """One row as text."""
    text = f"{row.id:<16} {row.value:>12,.0f} {row.unit:<11} {row.what}"
    if row.ratio is not None:
        goal = "" if row.goal is None else f" (goal {row.goal:g})"
        text += f"\n{'':<16} {row.ratio:>12.3f} of {row.against}{goal}"
    return text if row.holds else f"{text}  TOO SLOW"


if __name__ == "__main__":
    sys.exit(main())
