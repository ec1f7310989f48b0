"""
Writes the stored state: the database of a small story as this release leaves it, and what it says.

    python -m tests.contract.state VERSION

Two files are written once, at a release, and never again: later code has to open them as they are.
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import asyncpg
import grpc
from google.protobuf import json_format

from chassis.embedded import Home, Postgres
from chassis.embedded.postgres import find_binaries
from fermion.api.billing import v1 as billing
from fermion.api.billing.v1.service_pb2_grpc import CostServiceStub
from services.serve import TARGETS
from tests.stage import Stage, staged, until

STATES: Final = Path(__file__).with_name("states")
PROJECT: Final = "acme"
SMALL: Final = ("--kind", "custom", "--image", "host", "--cpu", "100m", "--memory", "64MiB")
# Of each table: its columns, how many rows it has, and their hash.
Tables = Mapping[str, Mapping[str, object]]


def story(stage: Stage) -> None:
    """Something of everything: what ran, failed, waits, was deleted; people, quotas, labels."""
    stage.ok("users", "create", "ana", "--display-name", "Ana", "--email", "ana@example.com")
    stage.ok("projects", "create", PROJECT)
    stage.ok("members", "set", "ana", "editor", "-p", PROJECT)
    stage.ok("quotas", "set", "-p", PROJECT, "--gpu", "*=2")
    create(stage, "bills", "--gpu", "1", "--label", "team=vision", "--wait", "running")
    create(stage, "waits", "--gpu", "2")
    create(stage, "fails", command="exit 3")
    create(stage, "gone", "--storage", "1GiB", "--wait", "running")
    time.sleep(2)
    stage.ok("instances", "delete", "gone", "-p", PROJECT)
    until(60, lambda: stage.state("gone", PROJECT) == "", stage.log)
    until(60, lambda: stage.state("fails", PROJECT) == "STATE_FAILED", stage.log)
    stage.ok("instances", "stop", "bills", "-p", PROJECT, "--wait", "stopped")
    stage.ok("instances", "stop", "waits", "-p", PROJECT, "--wait", "stopped")
    stage.ok("instances", "start", "bills", "-p", PROJECT, "--wait", "running")
    time.sleep(2)
    stage.ok("instances", "stop", "bills", "-p", PROJECT, "--wait", "stopped")
    # All of it is read by everybody, and vouched for by the cluster.
    time.sleep(20)
    stage.audit()


def create(stage: Stage, name: str, *words: str, command: str = "exec sleep 600") -> None:
    """Create an instance."""
    line = ("instances", "create", name, *SMALL, "-p", PROJECT, *words, "--", "sh", "-c", command)
    stage.ok(*line)


def statement(stage: Stage) -> billing.Statement:
    """The project's bill of this month."""
    with grpc.insecure_channel(stage.address) as channel:
        answer: billing.GetStatementResponse = CostServiceStub(channel).GetStatement(
            billing.GetStatementRequest(parent=f"projects/{PROJECT}"), metadata=stage.metadata
        )
        return answer.statement


async def tables(
    connection: asyncpg.Connection[asyncpg.Record],
    schema: str,
    columns: Mapping[str, Sequence[str]] | None = None,
) -> Tables:
    """Hash every row of a schema's tables, or of these columns of these tables."""
    if columns is None:
        rows = await connection.fetch(
            "SELECT table_name, column_name FROM information_schema.columns"
            " WHERE table_schema = $1 AND table_name <> 'schema_migrations'"
            " ORDER BY table_name, ordinal_position",
            schema,
        )
        found: dict[str, list[str]] = {}
        for row in rows:
            found.setdefault(row["table_name"], []).append(row["column_name"])
        columns = found
    hashed: dict[str, dict[str, object]] = {}
    for table, names in columns.items():
        listed = ", ".join(f'"{name}"' for name in names)
        lines = await connection.fetch(
            f'SELECT ROW({listed})::text AS line FROM "{schema}"."{table}" ORDER BY 1'
        )
        digest = hashlib.sha256("\n".join(row["line"] for row in lines).encode()).hexdigest()
        hashed[table] = {"columns": list(names), "rows": len(lines), "sha256": digest}
    return hashed


async def look(dsn: str) -> dict[str, object]:
    """What the database says, for whoever opens it later."""
    connection = await asyncpg.connect(dsn, server_settings={"timezone": "UTC"})
    try:
        return {
            "rows": {name: await tables(connection, f"{name}_rows") for name in TARGETS},
            "heads": {
                f"{name}/{row['log']}": row["position"]
                for name in TARGETS
                for row in await connection.fetch(f"SELECT log, position FROM {name}.head")
            },
        }
    finally:
        await connection.close()


def main(version: str) -> None:
    """Live the story, and write down what it leaves."""
    sql, said = STATES / f"{version}.sql.gz", STATES / f"{version}.json"
    if sql.exists():
        sys.exit(f"{sql} is there already: a release is stored once.")
    STATES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        home = Home(Path(folder) / "home")
        with staged(home.root, "--simulate-gpus", "4") as stage:
            story(stage)
            bill = statement(stage)
        home.hold("")
        postgres = Postgres(home.path("postgres"))
        try:
            postgres.start()
            postgres.wait_ready()
            found = asyncio.run(look(postgres.dsn))
            dump = subprocess.run(
                [
                    *(find_binaries() / "pg_dump", f"--dbname={postgres.dsn}"),
                    *("--no-owner", "--no-privileges"),
                ],
                check=True,
                capture_output=True,
            )
        finally:
            postgres.stop()
            home.release()
        found["version"] = version
        found["admin"] = home.path("keys", "admin.uid").read_text().strip()
        found["cluster"] = home.path("cluster", "uid").read_text().strip()
        found["statement"] = json_format.MessageToDict(bill)
    # Without a time in it, so that the same state is the same file.
    sql.write_bytes(gzip.compress(dump.stdout, 9, mtime=0))
    said.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
