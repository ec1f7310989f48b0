"""Stories of a state that was put back: elsewhere, as of one moment; and of a journal that lost its tail."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

from chassis.embedded import Home, Postgres
from chassis.embedded.bundle import DATABASE, Manifest
from chassis.embedded.postgres import find_binaries
from tests.stage import Stage, staged, until

SMALL = ("--kind", "custom", "--image", "host", "--cpu", "100m", "--memory", "64MiB")
GPUS = ("--simulate-gpus", "4")


def instance(stage: Stage, name: str, *words: str) -> None:
    """Create one that runs, with a GPU to bill."""
    stage.ok(
        *("instances", "create", name, *SMALL, "--gpu", "1", "-p", "acme", *words),
        *("--storage", "1GiB", "--", "sh", "-c", f"echo {name} > note; exec sleep 600"),
    )


def facts(stage: Stage, journal: str) -> list[dict[str, object]]:
    """Every fact of a journal, as a program reads it; without its epoch, which a restore changes."""
    program = (
        "import sys, fermion, json; from google.protobuf import json_format\n"
        "with fermion.Client() as client:\n"
        "    for one in client.journals.read(sys.argv[1]):\n"
        "        one.epoch = 0\n"
        "        print(json.dumps(json_format.MessageToDict(one), sort_keys=True))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, journal],
        env=stage.environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def names(stage: Stage) -> set[str]:
    """The instances that a user sees."""
    return set(stage.ok("instances", "list", "-p", "acme", "-o", "name").out.split())


def test_a_backup_under_load_becomes_the_same_platform_elsewhere_as_of_its_moment(
    tmp_path: Path,
) -> None:
    backup, kept, other = tmp_path / "backup", tmp_path / "statement.json", tmp_path / "other"
    with staged(tmp_path / "home", *GPUS) as stage:
        stage.ok("projects", "create", "acme")
        instance(stage, "lab", "--wait", "running")
        stage.ok("instances", "stop", "lab", "-p", "acme", "--wait", "stopped")
        instance(stage, "runs", "--wait", "running")
        kept.write_text(stage.ok("cost", "statement", "-p", "acme", "-o", "json").out)

        done = threading.Event()
        made: list[str] = []

        def load() -> None:
            while not done.is_set():
                name = f"n{len(made)}"
                stage.ok("instances", "create", name, *SMALL, "-p", "acme", "--", "sleep", "600")
                made.append(name)

        callers = threading.Thread(target=load)
        callers.start()
        try:
            until(60, lambda: len(made) >= 2, stage.log)
            stage.ok("backup", str(backup))
            after = len(made)
            until(60, lambda: len(made) > after, stage.log)
        finally:
            done.set()
            callers.join()
        manifest = Manifest.read(backup)
        heads = {one.journal: one.head for one in manifest.journals}
        then = {name: facts(stage, name)[:head] for name, head in heads.items()}
        assert all(path.stat().st_mode & 0o077 == 0 for path in (backup, *backup.iterdir()))

        # Beside the first one, which goes on: other paths, other ports, and nothing of it is touched.
        stage.ok("restore", str(backup), "--home", str(other))
        with staged(other, *GPUS) as restored:
            until(60, lambda: restored.state("runs", "acme") == "STATE_FAILED", restored.log)
            restored.audit()
            for name, head in heads.items():
                assert facts(restored, name)[:head] == then[name], name
                rebuilt = restored.ok("journal", "rebuild", name)
                assert "the same as before" in rebuilt.out
            created = {
                str(one["stream"])
                for one in then["instances/0"]
                if str(one["type"]).endswith("InstanceCreated")
            }
            listed = restored.ok("instances", "list", "-p", "acme", "-o", "json").json()
            rows = listed["instances"] if isinstance(listed, dict) else listed
            assert isinstance(rows, list)
            assert {f"instance/{one['uid']}" for one in rows} == created
            # What was billed up to then is billed so now, to the byte.
            again = restored.ok(
                "cost", "statement", "-p", "acme", "--cut", str(kept), "-o", "json"
            ).json()
            assert again == json.loads(kept.read_text())
            assert (
                "restored from a backup" in restored.ok("events", "list", "runs", "-p", "acme").out
            )

            restored.ok("instances", "start", "runs", "-p", "acme", "--wait", "running")
            note = restored.ok("instances", "exec", "runs", "-p", "acme", "--", "cat", "note")
            assert note.out == "runs\n"
            assert stage.state("runs", "acme").startswith("STATE_RUNNING")
            restored.audit()
        stage.audit()


def test_a_journal_that_lost_its_tail_stands_still_until_that_is_accepted_and_goes_on(
    tmp_path: Path,
) -> None:
    backup = tmp_path / "backup"
    with staged(tmp_path / "home", *GPUS) as stage:
        stage.ok("projects", "create", "acme")
        instance(stage, "kept", "--wait", "running")
        stage.ok("backup", str(backup))
        instance(stage, "lost", "--wait", "running")
        stage.ok("instances", "stop", "kept", "-p", "acme", "--wait", "stopped")
        assert stage.process is not None
        stage.process.terminate()
        stage.process.wait(40)
        copy_back(stage.home, backup, "instances")
        stage.up()

        def told() -> bool:
            answer = stage.cli("status")
            return answer.code == 1 and answer.out.count("has lost its tail") >= 2

        until(60, told, lambda: stage.ok("status").out)
        doctor = stage.cli("doctor")
        assert doctor.code == 1
        assert doctor.out.count("fermion restore --accept") >= 2
        refused = stage.cli("journal", "resume", "scheduler/instances", "instances/0")
        assert "RESTORE_NOT_ACCEPTED" in refused.err

        first = stage.ok("restore", "--accept").out
        assert "instances/0 goes on as epoch 2" in first
        accepted: list[str] = []

        def whole() -> bool:
            accepted.append(stage.ok("restore", "--accept").out)
            return stage.cli("status").code == 0

        until(60, whole, lambda: stage.cli("status").out)
        assert "scheduler/instances reads instances/0 on" in "".join(accepted)
        assert names(stage) == {"projects/acme/instances/kept"}
        instance(stage, "next", "--wait", "running")
        stage.audit()
        history = stage.ok("events", "list", "--platform").out
        assert "JournalRestored" in history
        assert "RestoreAccepted" in history


def copy_back(folder: Path, backup: Path, service: str) -> None:
    """Put one service's schemas back by hand, as whoever does not know `fermion restore`."""
    home = Home(folder)
    home.hold("")
    postgres = Postgres(folder / "postgres")
    try:
        postgres.start()
        postgres.wait_ready()
        binaries = find_binaries()
        schemas = (service, f"{service}_rows")
        drop = "".join(f"DROP SCHEMA {one} CASCADE; CREATE SCHEMA {one};" for one in schemas)
        for command in (
            ["psql", postgres.dsn, "-qc", drop],
            [
                *("pg_restore", f"--dbname={postgres.dsn}", "--exit-on-error", "--no-owner"),
                *(f"--schema={one}" for one in schemas),
                str(backup / DATABASE),
            ],
        ):
            subprocess.run([binaries / command[0], *command[1:]], check=True, timeout=60)
    finally:
        postgres.stop()
        home.release()
