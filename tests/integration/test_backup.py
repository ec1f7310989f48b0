"""Backup and restore with a real database: whole or not at all, refused by name, and killed at any moment."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from chassis.embedded import Home, Keys, Postgres
from chassis.embedded.bundle import DATABASE, FILES, MANIFEST, Manifest
from chassis.migrations import migrate
from chassis.postgres import Database, create_database
from chassis.process import KERNEL_MIGRATIONS
from services.executor import keeping, shim
from services.executor.ground import cluster_uid
from services.serve import TARGETS
from tests.stage import ROOT
from tests.unit.services.executor.test_ground import replica

KILLS = 5
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


def test_a_restored_folder_has_all_that_was_kept_in_a_new_epoch(
    platform: Platform, backup: Path, tmp_path: Path
) -> None:
    manifest = Manifest.read(backup)
    assert {one.journal: (one.epoch, one.head) for one in manifest.journals} == {
        f"{name}/0": (1, 3) for name in TARGETS
    }
    home = tmp_path / "other"
    before = int(time.time())
    done = platform.run("restore", str(backup), "--home", str(home))
    assert done.returncode == 0, done.stdout
    for epoch, position, first, named in asyncio.run(heads(home)):
        assert epoch >= before
        assert (position, first, named) == (3, 4, manifest.uid)
    for name in ("keys/signing.jwk", "keys/admin.uid", "keys/replicas.key", "cluster/uid"):
        assert (home / name).read_bytes() == (platform.home / name).read_bytes()
        assert (home / name).stat().st_mode & 0o077 == 0 or name == "cluster/uid"
    data = home / "cluster" / "volumes" / VOLUME / "data"
    assert (data / "note").read_text() == "kept"
    assert os.readlink(data / "away") == "/nowhere"
    assert (data / "large").read_bytes() == (
        platform.home / "cluster" / "volumes" / VOLUME / "data" / "large"
    ).read_bytes()
    # A volume whose files nobody had is there, and empty.
    assert list((home / "cluster" / "volumes" / f"{VOLUME[:-1]}1" / "data").iterdir()) == []
    assert os.listdir(home / "cluster" / "replicas") == ["runs"]
    record = shim.read_record(str(home / "cluster" / "replicas" / "runs"))
    assert record is not None
    assert (record.head.phase, record.head.reason) == (shim.ENDED, "RESTORED")
    ours = cluster_uid(home / "cluster")
    assert keeping.group_name(home / "cluster", ours) != ours
    assert keeping.group_name(platform.home / "cluster", ours) == ours


def test_a_backup_without_files_makes_volumes_that_are_empty(
    platform: Platform, tmp_path: Path
) -> None:
    target, home = tmp_path / "backup", tmp_path / "home"
    assert platform.run("backup", str(target), "--without-files").returncode == 0
    done = platform.run("restore", str(target), "--home", str(home))
    assert done.returncode == 0, done.stdout
    assert "not in the backup: 2" in done.stdout
    assert list((home / "cluster" / "volumes" / VOLUME / "data").iterdir()) == []


def test_what_cannot_be_backed_up_or_restored_is_refused_and_nothing_is_touched(
    platform: Platform, backup: Path, tmp_path: Path
) -> None:
    home = str(tmp_path / "other")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    (tmp_path / "damaged").mkdir()
    for name in (MANIFEST, DATABASE, FILES):
        shutil.copy(backup / name, tmp_path / "damaged" / name)
    with (tmp_path / "damaged" / DATABASE).open("r+b") as file:
        file.seek(100)
        file.write(b"\0\0\0\0")
    newer = tmp_path / "newer"
    shutil.copytree(backup, newer)
    said = json.loads((newer / MANIFEST).read_text())
    said["migrations"]["billing"].append("9999_of_tomorrow")
    (newer / MANIFEST).write_text(json.dumps(said))
    for words, told in (
        (("backup", str(backup)), "is there already"),
        (("backup", str(tmp_path / "no" / "where")), "cannot be written"),
        (("restore", str(tmp_path / "full"), "--home", home), "is no backup"),
        (("restore", str(tmp_path / "damaged"), "--home", home), "is damaged"),
        (("restore", str(newer), "--home", home), "newer Fermion"),
        (("restore", str(backup)), "is not empty"),
        (("restore", str(backup), "--home", str(tmp_path / "full")), "is not empty"),
    ):
        done = platform.run(*words)
        assert done.returncode == 1, words
        assert done.stdout.splitlines()[-1].startswith("error: "), done
        assert told in done.stdout, done
        assert not done.stderr
    assert not Path(home).exists()
    assert sorted(os.listdir(tmp_path / "full")) == ["mine"]
    nowhere = Platform(tmp_path / "nowhere", "")
    done = nowhere.run("backup", str(tmp_path / "new"))
    assert done.returncode == 1
    assert "No platform runs" in done.stdout
    assert not (tmp_path / "new").exists()


def test_a_backup_for_which_there_is_no_room_leaves_nothing(
    platform: Platform, tmp_path: Path
) -> None:
    # Also root may not write a file past that; the error is that of a disk that is full.
    limited = (
        "import resource, signal, sys; from services.backup import backup;"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000));"
        "sys.exit(backup(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", limited, str(tmp_path / "backup")],
        env=environment(platform.home),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done
    assert "There is no room for" in done.stdout
    assert os.listdir(tmp_path) == []


def test_a_backup_that_is_killed_leaves_none_and_the_next_one_is_whole(
    platform: Platform, tmp_path: Path
) -> None:
    target = tmp_path / "backup"
    began = time.monotonic()
    assert platform.run("backup", str(target)).returncode == 0
    lasts = time.monotonic() - began
    shutil.rmtree(target)
    killed = 0
    for number in range(KILLS):
        if platform.killed(lasts * (number + 4) / (KILLS + 4), "backup", str(target)):
            killed += 1
            assert not target.exists() or Manifest.read(target).check(target) is None
        shutil.rmtree(target, ignore_errors=True)
    assert killed >= KILLS // 2
    done = platform.run("backup", str(target))
    assert done.returncode == 0, done.stdout
    Manifest.read(target).check(target)
    assert os.listdir(tmp_path) == ["backup"]


def test_a_restore_that_is_killed_is_refused_by_name_at_the_start_and_can_be_begun_again(
    platform: Platform, backup: Path, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    began = time.monotonic()
    assert platform.run("restore", str(backup), "--home", str(home)).returncode == 0
    lasts = time.monotonic() - began
    whole = sorted(os.listdir(home))
    shutil.rmtree(home)
    half = 0
    for number in range(KILLS):
        # Over what the one before has left.
        platform.killed(
            lasts * (number + 4) / (KILLS + 4), "restore", str(backup), "--home", str(home)
        )
        if not home.exists() or set(os.listdir(home)) <= {"lock"}:
            continue
        if Home(home).restored_from():
            half += 1
            done = Platform(home, "").run("up")
            assert done.returncode == 1
            assert "has not come to its end" in done.stdout
            assert f"fermion restore {backup} --home {home}" in done.stdout
        else:
            assert sorted(os.listdir(home)) == whole
            shutil.rmtree(home)
    assert half >= 2
    if Home(home).restored_from() or not home.exists():
        done = platform.run("restore", str(backup), "--home", str(home))
        assert done.returncode == 0, done.stdout
    assert sorted(os.listdir(home)) == whole
    assert {row[1:3] for row in asyncio.run(heads(home))} == {(3, 4)}
