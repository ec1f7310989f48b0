"""Backup and restore with a real database: whole or not at all, and refused by name."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from chassis.embedded.bundle import DATABASE, FILES, MANIFEST, Manifest
from services.executor import keeping, shim
from services.executor.ground import cluster_uid
from services.serve import TARGETS
from tests.shelf import VOLUME, Platform, backup, environment, heads, platform
from tests.stage import ROOT

__all__ = ["backup", "platform"]


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
        error, mend, reason = done.stdout.splitlines()[-3:]
        assert error.startswith("error: "), done
        assert mend.startswith("  what to do: "), done
        assert reason.startswith("  reason: "), done
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
