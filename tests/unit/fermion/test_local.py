"""What is handed over to the platform on this machine, and what is stopped before it stops."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from fermion import errors
from fermion.api.instances import v1 as api
from fermion.cli import local, run, stopping
from fermion.context import Contexts
from services import supervisor
from tests.unit.fermion.keyboard import FERMION
from tests.unit.fermion.platform import Platform

ROOT = Path(__file__).parents[3]
LAB, WEB, OLD = (
    "projects/acme/instances/lab",
    "projects/other/instances/web",
    "projects/other/instances/old",
)


@pytest.fixture
def here(platform: Platform, tmp_path: Path) -> Platform:
    """The platform of this state folder, with two instances that live and one that has stopped."""
    token = tmp_path / "keys" / "admin.token"
    token.parent.mkdir()
    token.write_text("jwt")
    Contexts().set("local", address=platform.address, token_file=str(token))
    for name, state in ((LAB, api.STATE_RUNNING), (WEB, api.STATE_PENDING)):
        status = api.Status(state=state, desired_state=api.STATE_RUNNING)
        platform.instances[name] = api.Instance(name=name, status=status)
    platform.instances[OLD] = api.Instance(
        name=OLD, status=api.Status(state=api.STATE_STOPPED, desired_state=api.STATE_STOPPED)
    )
    return platform


def stopped(platform: Platform) -> set[str]:
    """Whom a stop was asked of."""
    return {getattr(call.request, "name", "") for call in platform.sent("StopInstance")}


def changed(name: str, state: api.State.ValueType) -> api.WatchInstancesResponse:
    status = api.Status(state=state, desired_state=api.STATE_STOPPED)
    made = api.Instance(name=name, status=status)
    return api.WatchInstancesResponse(
        change=api.WatchInstancesResponse.CHANGE_UPDATED, instance=made
    )


def handed_over(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a command beside a platform that only says what it was told."""
    program = folder / "beside" / "services"
    program.mkdir(parents=True, exist_ok=True)
    (program / "__init__.py").touch()
    (program / "__main__.py").write_text("import sys; print('services', *sys.argv[1:])")
    told: Mapping[str, str] = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [*FERMION, *words],
        cwd=program.parent,
        env=told,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_all_instances_are_stopped_before_the_platform_is(here: Platform, tmp_path: Path) -> None:
    here.watches.extend([[changed(LAB, api.STATE_STOPPED)], [changed(WEB, api.STATE_STOPPED)]])
    done = handed_over(tmp_path, "down", "--stop-all")
    assert (done.returncode, done.stdout) == (0, "services down\n")
    assert "Stopping 2 instances: acme/instances/lab, other/instances/web" in done.stderr
    assert stopped(here) == {LAB, WEB}


def test_what_runs_is_left_alone_unless_that_is_asked_for(here: Platform, tmp_path: Path) -> None:
    assert handed_over(tmp_path, "down").stdout == "services down\n"
    assert not here.calls


def test_what_does_not_stop_in_time_keeps_the_platform_and_is_named(here: Platform) -> None:
    here.lasting.add(LAB)
    here.watches.append([changed(LAB, api.STATE_STOPPING)])
    with pytest.raises(errors.Timeout) as caught:
        stopping.stop_all(0.2)
    assert "Not stopped after 0.2 s: acme/instances/lab." in caught.value.message
    assert caught.value.arguments == {"instances": LAB}


def test_what_is_another_platforms_is_not_stopped(
    here: Platform, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    token = tmp_path / "production"
    token.write_text("jwt")
    Contexts().set("local", token_file=str(token))
    assert run(["down", "--stop-all"]) == 5
    assert "so nothing was stopped" in capsys.readouterr().err
    assert not here.calls


def test_gpus_that_are_pretended_are_told_to_the_platform(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert handed_over(tmp_path, "up", "--simulate-gpus", "8").stdout == (
        "services up --simulate-gpus 8\n"
    )
    assert handed_over(tmp_path, "up").stdout == "services up\n"
    assert run(["up", "--simulate-gpus", "65"]) == 2
    assert "--simulate-gpus is 65: it must be 0 to 64." in capsys.readouterr().err
    assert local.GPUS_MAX == supervisor.GPUS_MAX


def test_a_backup_and_a_restore_are_handed_over(tmp_path: Path) -> None:
    for words, told in (
        (("backup", "/b"), "backup -- /b"),
        (("backup", "/b", "--without-files"), "backup --without-files -- /b"),
        (("restore", "/b"), "restore -- /b"),
        (("restore", "/b", "--home", "/h"), "restore --home /h -- /b"),
    ):
        assert handed_over(tmp_path, *words).stdout == f"services {told}\n"


def test_a_restore_is_of_a_backup_or_accepts_what_was_lost_and_never_both(
    here: Platform, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, told in (
        (["restore"], "one of both"),
        (["restore", "/b", "--accept"], "one of both"),
        (["restore", "--accept", "--home", "/h"], "--home names where a backup is put"),
    ):
        assert run(words) == 2
        assert told in capsys.readouterr().err
    assert run(["restore", "--accept"]) == 0
    assert capsys.readouterr().out == "Nothing waits for that.\n"
