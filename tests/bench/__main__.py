"""
Measure everything that is measured: `make bench`, or `python -m tests.bench PART...` for some of it.

Prints a table, and writes the same to `build/bench.json`.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from chassis.embedded import Nats, Postgres
from chassis.postgres import create_database
from tests.bench import admission, append, call, cost, fold, growth, history, relay, start, watch
from tests.bench.row import Row
from tests.servers import SERVICES, SHARDS, NatsServer

REPORT: Final = Path(__file__).parents[2] / "build" / "bench.json"


def main(asked: Sequence[str]) -> int:
    """Return 1 where a ratio is far below its goal, 2 where a part is asked for that is none."""
    unknown = [name for name in asked if name not in PARTS]
    if unknown:
        print(f"There is no part {', '.join(unknown)}; there are {', '.join(PARTS)}.")
        return 2
    # As in every process of the platform.
    gc.freeze()
    rows: list[Row] = []
    for name in asked or PARTS:
        began = time.monotonic()
        print(f"# {name}", flush=True)
        with tempfile.TemporaryDirectory() as folder, grounded(Path(folder)) as ground:
            for row in PARTS[name](ground):
                rows.append(row)
                print(line(row), flush=True)
        print(f"# {name}: {time.monotonic() - began:.0f} s", flush=True)
    REPORT.parent.mkdir(exist_ok=True)
    REPORT.write_text(json.dumps([entry(row) for row in rows], indent=1) + "\n")
    print(
        f"# written to {REPORT.relative_to(Path.cwd()) if REPORT.is_relative_to(Path.cwd()) else REPORT}"
    )
    return 1 if any(row.fails for row in rows) else 0


@dataclass(frozen=True, slots=True)
class Ground:
    """Servers that a part is measured on, and a folder of its own."""

    server: Postgres
    nats: NatsServer
    home: Path

    def fresh(self, *names: str) -> list[str]:
        """DSNs of empty databases."""
        return [asyncio.run(self._create(name)) for name in names]

    async def _create(self, name: str) -> str:
        await create_database(self.server.dsn_of("postgres"), name)
        return self.server.dsn_of(name)


@contextmanager
def grounded(folder: Path) -> Iterator[Ground]:
    """Start a PostgreSQL and a NATS for a part."""
    server = Postgres(folder / "postgres")
    broker = Nats(folder / "nats", SERVICES, shards=SHARDS)
    server.start()
    broker.start()
    try:
        server.wait_ready()
        broker.wait_ready()
        yield Ground(server, NatsServer(broker.url, broker.keys), folder / "home")
    finally:
        broker.stop()
        server.stop()


Part = Callable[[Ground], Iterable[Row]]

PARTS: Final[Mapping[str, Part]] = {
    "append": lambda on: asyncio.run(append.rounds(*on.fresh("bench"))),
    "call": lambda on: asyncio.run(call.rounds(*on.fresh("bench"), on.nats, on.home)),
    "relay": lambda on: asyncio.run(relay.rounds(*on.fresh("bench"), on.nats)),
    "admission": lambda on: asyncio.run(admission.rounds(on.fresh("bundles", "own"))),
    "fold": lambda on: asyncio.run(fold.rounds(*on.fresh("bench"), on.nats)),
    "cost": lambda on: asyncio.run(cost.rounds(*on.fresh("bench"), on.nats, on.home)),
    "growth": lambda on: asyncio.run(growth.rounds(*on.fresh("bench"))),
    "history": lambda on: history.rounds(on.home),
    "start": lambda on: start.rounds(on.home),
    "watch": lambda on: watch.rounds(on.home),
}


def entry(row: Row) -> dict[str, object]:
    """One row as the report has it."""
    return {**asdict(row), "holds": row.holds}


def line(row: Row) -> str:
    """One row as text."""
    text = f"{row.id:<16} {row.value:>12,.0f} {row.unit:<11} {row.what}"
    if row.ratio is not None:
        goal = "" if row.goal is None else f" (goal {row.goal:g})"
        spread = "" if row.spread is None else " ({:.3f} to {:.3f})".format(*row.spread)
        text += f"\n{'':<16} {row.ratio:>12.3f}{spread} of {row.against}{goal}"
    return text if row.holds else f"{text}  MISSED"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
