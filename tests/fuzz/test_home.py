"""A state folder that will not do: it is refused in words, nothing in it is damaged, and it goes on after."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from chassis.embedded import Home, Postgres, free_port
from chassis.embedded.postgres import find_binaries
from tests.stage import staged

SECONDS_MAX: Final = 60
SPEC: Final = ("--kind", "custom", "--image", "host", "--cpu", "100m", "--memory", "64MiB")


def refused(home: Path) -> str:
    """What a start on a folder prints that has to be refused; three lines, and no traceback."""
    done = subprocess.run(
        [sys.executable, "-m", "services", "up", "--port", str(free_port())],
        env={**os.environ, "FERMION_HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=SECONDS_MAX,
        check=False,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 1, said
    assert "Traceback" not in said, said
    told = [line for line in done.stdout.splitlines() if line.strip()]
    first, do, reason = told[-3:]
    assert first.startswith("error: "), said
    assert do.startswith("  what to do: "), said
    assert reason.startswith("  reason: "), said
    return said


@contextmanager
def mounted(folder: Path, *options: str) -> Iterator[None]:
    """A small file system on a folder; skipped where nobody may mount one."""
    folder.mkdir(exist_ok=True)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", ",".join(("mode=0700", *options)), "tmpfs", str(folder)],
        capture_output=True,
        check=False,
    )
    if done.returncode != 0:
        pytest.skip("only root may mount a file system")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def remount(folder: Path, option: str) -> None:
    """Change how it is mounted."""
    subprocess.run(["mount", "-o", f"remount,{option}", str(folder)], check=True)


def works(home: Path) -> None:
    """A platform comes up on a folder, and does what it is for."""
    with staged(home) as stage:
        stage.ok("projects", "create", "after")
        stage.ok("instances", "create", "one", "-p", "after", *SPEC, "--", "true")
        stage.audit()


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the state of a platform that was stopped."""
    home = tmp_path_factory.mktemp("used") / "home"
    with staged(home) as stage:
        stage.ok("projects", "create", "before")
    return home


def sql(home: Path, text: str) -> str:
    """Say something to the database of a folder on which no platform runs."""
    postgres = Postgres(home / "postgres")
    Home(home).prepare()
    try:
        postgres.start()
        postgres.wait_ready()
        done = subprocess.run(
            [find_binaries() / "psql", postgres.dsn, "-qAtc", text],
            capture_output=True,
            text=True,
            check=True,
            timeout=SECONDS_MAX,
        )
    finally:
        postgres.stop()
    return done.stdout


def test_the_state_of_a_later_release_is_refused_and_stays_as_it_is(used: Path) -> None:
    facts = "SELECT count(*) FROM projects.event"
    before = sql(used, facts)
    future = "9999_what_comes_later"
    sql(used, f"INSERT INTO instances.schema_migrations VALUES ('{future}', '')")
    said = refused(used)
    assert "HOME_NEWER" in said
    assert f"instances/{future}" in said
    assert sql(used, facts) == before
    sql(used, f"DELETE FROM instances.schema_migrations WHERE version = '{future}'")
    with staged(used) as stage:
        assert "before" in stage.ok("projects", "list").out


def test_a_database_of_a_later_postgresql_is_refused_and_stays_as_it_is(used: Path) -> None:
    version = used / "postgres" / "data" / "PG_VERSION"
    was = version.read_text()
    version.write_text("99\n")
    said = refused(used)
    assert "POSTGRES_VERSION" in said
    assert "PostgreSQL 99" in said
    version.write_text(was)
    with staged(used) as stage:
        assert "before" in stage.ok("projects", "list").out


@pytest.mark.skipif(os.getuid() != 0, reason="only root can make a folder of somebody else")
def test_the_folder_of_somebody_else_is_refused_and_stays_as_it_is(used: Path) -> None:
    os.chown(used, 12345, 12345)
    before = sorted(used.rglob("*"))
    said = refused(used)
    assert "HOME_OF_ANOTHER" in said
    assert "12345" in said
    assert sorted(used.rglob("*")) == before
    os.chown(used, 0, 0)
    with staged(used) as stage:
        assert "before" in stage.ok("projects", "list").out


def test_a_file_system_without_room_is_named_and_serves_once_it_has_some(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with mounted(home, "size=8m"):
        said = refused(home)
        assert "POSTGRES_NOT_INITIALISED" in said
        assert "space" in said
        remount(home, "size=2g")
        works(home)


def test_a_file_system_that_is_full_to_the_last_byte_is_named(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with mounted(home, "size=64k"):
        (home / "filler").write_bytes(b"x" * 60 * 1024)
        said = refused(home)
        assert "No space left on device" in said
        assert str(home) in said


def test_a_file_system_that_cannot_be_written_is_named_and_serves_once_it_can(
    tmp_path: Path,
) -> None:
    home = tmp_path / "home"
    with mounted(home, "size=2g"):
        remount(home, "ro")
        said = refused(home)
        assert "HOME_UNUSABLE" in said
        assert "Read-only file system" in said
        remount(home, "rw")
        works(home)
        remount(home, "ro")
        assert "Read-only file system" in refused(home)
        remount(home, "rw")
        with staged(home) as stage:
            assert "after" in stage.ok("projects", "list").out
