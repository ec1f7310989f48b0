"""Backup and restore, killed at any moment."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from pathlib import Path

from chassis.embedded import Home
from chassis.embedded.bundle import Manifest
from tests.shelf import Platform, backup, heads, platform

__all__ = ["backup", "platform"]

KILLS = 5


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
