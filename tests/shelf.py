"""A platform without services that can be backed up and restored, for tests of both."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from chassis.embedded import Home, Keys, Postgres
from chassis.migrations import migrate
from chassis.postgres import Database, create_database
from chassis.process import KERNEL_MIGRATIONS
from services.executor import shim
from services.executor.ground import cluster_uid
from services.serve import TARGETS
from tests.stage import ROOT
from tests.unit.services.executor.test_ground import replica

VOLUME = "vol_" + "0" * 26


@dataclass(frozen=True, slots=True)
class Platform:
    """A state folder that is held, with its database, and no service in it."""

    home: Path
    dsn: str

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command of it."""
        return subprocess.run(
            [sys.executable, "-m", "services", *words],
            env=environment(self.home),
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def killed(self, after: float, *words: str) -> bool:
        """Run a command and kill it after so many seconds; whether it had not ended by then."""
        process = subprocess.Popen(
            [sys.executable, "-m", "services", *words],
            env=environment(self.home),
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            process.wait(after)
        except subprocess.TimeoutExpired:
            process.kill()
        return process.wait() == -signal.SIGKILL


def environment(home: Path) -> Mapping[str, str]:
    return {**os.environ, "FERMION_HOME": str(home)}


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """One that has journals, keys, a volume, and a replica that runs as far as anybody can tell."""
    home = Home(tmp_path_factory.mktemp("platform") / "home")
    home.prepare()
    home.hold("127.0.0.1:1")
    Keys.prepare(home, tuple(TARGETS))
    postgres = Postgres(home.path("postgres"))
    postgres.start()
    postgres.wait_ready()
    root = home.path("cluster")
    cluster_uid(root)
    for part in ("replicas", "kept", "closed", "deleted", "trash"):
        (root / part).mkdir()
    (root / "volumes" / VOLUME / "data").mkdir(parents=True)
    (root / "volumes" / VOLUME / "since").symlink_to("1")
    (root / "volumes" / VOLUME / "data" / "note").write_text("kept")
    (root / "volumes" / VOLUME / "data" / "away").symlink_to("/nowhere")
    (root / "volumes" / VOLUME / "data" / "large").write_bytes(os.urandom(3_000_000))
    replica(root, "runs")
    replica(root, "half-made")
    spec = shim.words([("uid", "rep_1"), ("segment_bytes", "1000"), ("log_bytes_max", "9000")])
    (root / "replicas" / "runs" / "spec").write_bytes(spec)
    (root / "replicas" / "runs" / "logs").mkdir()
    asyncio.run(fill(postgres))
    yield Platform(home.root, postgres.dsn)
    postgres.stop()
    home.release()


async def fill(postgres: Postgres) -> None:
    """Have every schema, and some facts that no service has said."""
    await create_database(postgres.dsn_of("postgres"), "fermion")
    for name, target in TARGETS.items():
        database = Database(postgres.dsn, name)
        await migrate(database, KERNEL_MIGRATIONS, name)
        folder = target.folder / "migrations"
        if (folder / "state").is_dir():
            await migrate(database, folder / "state", name)
        await migrate(database, folder / "rows", f"{name}_rows")
        connection = await database.pinned("test")
        await connection.execute("INSERT INTO head VALUES ('0', 1, 3)")
        await connection.execute(
            "INSERT INTO epoch (log, epoch, first_position) VALUES ('0', 1, 1)"
        )
        if name == "executor":
            await connection.execute(
                "INSERT INTO wanted_volume VALUES ($1, '', false, 1), ($2, '', false, 2)",
                VOLUME,
                VOLUME[:-1] + "1",
            )
        await connection.close()


@pytest.fixture
def backup(platform: Platform, tmp_path: Path) -> Path:
    """A backup of it."""
    done = platform.run("backup", str(tmp_path / "backup"))
    assert done.returncode == 0, done.stdout
    return tmp_path / "backup"


async def heads(home: Path) -> list[tuple[int, int, int, str]]:
    """Heads of a restored folder: lineage, position, first position, and the backup."""
    postgres = Postgres(home / "postgres")
    postgres.start()
    try:
        postgres.wait_ready()
        connection = await Database(postgres.dsn, "projects").pinned("test")
        found = []
        for name in TARGETS:
            rows = await connection.fetch(
                f"SELECT h.epoch, h.position, e.first_position, e.backup FROM {name}.head AS h"
                f" JOIN {name}.epoch AS e USING (log, epoch)"
            )
            found += [tuple(row) for row in rows]
        await connection.close()
        return found
    finally:
        postgres.stop()
