"""Stories of what really runs, through the command line and a terminal."""

from __future__ import annotations

import sys
import time
from datetime import datetime
from pathlib import Path

import pexpect
import psutil

from tests.stage import FERMION, Stage, staged, until

SMALL = ("--kind", "custom", "--image", "host", "--cpu", "100m", "--memory", "128MiB")


def status(stage: Stage, name: str, project: str) -> dict[str, object]:
    """Where an instance stands."""
    found = stage.instance(name, project)["status"]
    assert isinstance(found, dict)
    return found


def test_a_program_prints_is_looked_into_crashes_and_keeps_its_files(
    stage: Stage, project: str
) -> None:
    script = "echo begun; [ -e crashed ] || { touch crashed; exit 3; }; exec sleep 600"
    stage.ok(
        *("instances", "create", "tool", *SMALL, "--storage", "1GiB", "--restart", "on-failure"),
        *("-p", project, "--wait", "running", "--", "sh", "-c", script),
    )
    until(
        60,
        lambda: (
            status(stage, "tool", project).get("restarts") == 1
            and status(stage, "tool", project)["state"] == "STATE_RUNNING"
        ),
        stage.log,
    )
    assert status(stage, "tool", project)["exit_code"] == 3
    assert stage.ok("instances", "logs", "tool", "-p", project).out == "begun\nbegun\n"
    history = stage.ok("events", "list", "tool", "-p", project).out
    assert "InstanceBackedOff" in history

    inside = pexpect.spawn(
        FERMION,
        ["instances", "exec", "-it", "tool", "-p", project, "--", "sh"],
        env={**stage.environment, "TERM": "xterm"},  # type: ignore[arg-type]
        encoding="utf-8",
        timeout=30,
        dimensions=(33, 99),
    )
    inside.expect("[#$] ")
    inside.sendline("stty size; echo kept > note; exit 5")
    inside.expect("33 99")
    inside.expect(pexpect.EOF)
    inside.close()
    assert inside.exitstatus == 5

    stage.ok("instances", "stop", "tool", "-p", project, "--wait", "stopped")
    stage.ok("instances", "start", "tool", "-p", project, "--wait", "running")
    assert stage.ok("instances", "exec", "tool", "-p", project, "--", "cat", "note").out == "kept\n"
    stage.ok("instances", "delete", "tool", "-p", project)
    until(30, lambda: stage.state("tool", project) == "", stage.log)
    assert list((stage.home / "cluster" / "volumes").iterdir()) == []


def test_what_waits_for_a_quota_is_admitted_when_something_stops(
    stage: Stage, project: str
) -> None:
    stage.ok("quotas", "set", "-p", project, "--instances", "1")
    for name in ("one", "two"):
        stage.ok("instances", "create", name, *SMALL, "-p", project, "--", "sleep", "600")
        time.sleep(0.2)
    until(30, lambda: stage.state("one", project) == "STATE_RUNNING", stage.log)
    until(
        30,
        lambda: status(stage, "two", project).get("reason", {}).get("code") == "QUOTA",  # type: ignore[attr-defined]
        stage.log,
    )
    explained = stage.ok("queue", "explain", "two", "-p", project).out
    assert "1 of" in explained
    stage.ok("instances", "stop", "one", "-p", project, "--wait", "stopped")
    until(30, lambda: stage.state("two", project) == "STATE_RUNNING", stage.log)
    stage.ok("instances", "stop", "two", "-p", project, "--wait", "stopped")


def test_what_runs_outlives_the_platform_and_what_ended_meanwhile_has_its_true_end(
    tmp_path: Path,
) -> None:
    wrote = tmp_path / "ended"
    ends = f"import time; time.sleep(3); open({str(wrote)!r}, 'w').write(str(time.time_ns()))"
    with staged(tmp_path / "home") as stage:
        stage.ok("projects", "create", "lives")
        stage.ok("instances", "create", "stays", *SMALL, "-p", "lives", "--", "sleep", "600")
        stage.ok(
            *("instances", "create", "ends", *SMALL, "-p", "lives", "--wait", "running"),
            *("--", sys.executable, "-S", "-c", ends),
        )
        until(30, lambda: stage.state("stays", "lives") == "STATE_RUNNING", stage.log)
        before = stage.ok("replicas", "stays", "-p", "lives", "-o", "name").out
        assert stage.process is not None
        victims = [*stage.processes(), psutil.Process(stage.process.pid)]
        for victim in victims:
            victim.kill()
        stage.process.wait()
        until(30, wrote.exists, lambda: "it does not end")
        stage.up()
        assert stage.ok("replicas", "stays", "-p", "lives", "-o", "name").out == before
        until(30, lambda: stage.state("ends", "lives") == "STATE_STOPPED", stage.log)
        found = stage.ok("replicas", "ends", "-p", "lives", "-o", "json").json()
        rows = found if isinstance(found, list) else found["replicas"]  # type: ignore[index]
        stated = parse(str(rows[0]["end_time"]))
        assert abs(stated - int(wrote.read_text()) / 1e9) < 0.5


def parse(text: str) -> float:
    """Seconds since 1970 of a time as the API writes it."""
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()
