"""What an instance serves is opened with the token that it asks for."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from google.rpc import code_pb2

from fermion.api.instances import v1 as instances
from fermion.cli import run
from fermion.context import Contexts
from tests.unit.fermion.keyboard import FERMION
from tests.unit.fermion.platform import Platform, refuse

LAB = "projects/acme/instances/lab"
URL = "http://127.0.0.1:20001/?token=secret"


@pytest.fixture
def lab(platform: Platform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Platform:
    """A platform with an instance that serves a notebook and a database, and no display here."""
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    token = tmp_path / "jwt"
    token.write_text("jwt")
    Contexts().set("local", address=platform.address, token_file=str(token), project="acme")
    status = instances.Status(state=instances.STATE_RUNNING)
    platform.instances[LAB] = instances.Instance(name=LAB, uid="inst_1", status=status)
    platform.running.access[LAB] = {"jupyter": URL, "db": "127.0.0.1:20002"}
    return platform


def test_the_port_that_speaks_http_is_told_with_its_token(
    lab: Platform, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["instances", "open", "lab"]) == 0
    assert capsys.readouterr() == (f"{URL}\n", "")
    assert run(["instances", "open", "lab", "--port", "db", "--print"]) == 0
    assert capsys.readouterr().out == "127.0.0.1:20002\n"


def test_programs_read_all_ports_or_the_one_that_was_said(
    lab: Platform, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["instances", "open", "lab", "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"jupyter": URL, "db": "127.0.0.1:20002"}
    assert run(["instances", "open", "lab", "-o", "yaml", "--port", "db"]) == 0
    assert capsys.readouterr().out == "db: 127.0.0.1:20002\n"


def test_which_of_several_is_asked_for_and_what_is_none_is_refused(
    lab: Platform, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["instances", "open", "lab", "--port", "web"]) == 2
    assert "It has db, jupyter." in capsys.readouterr().err
    lab.running.access[LAB]["board"] = "http://127.0.0.1:20003/"
    assert run(["instances", "open", "lab"]) == 2
    assert "--port: must be one of board, db, jupyter" in capsys.readouterr().err
    lab.running.access.clear()
    assert run(["instances", "open", "lab"]) == 5
    assert "--port web:8080" in capsys.readouterr().err


def test_what_does_not_run_is_told_with_why(
    lab: Platform, capsys: pytest.CaptureFixture[str]
) -> None:
    status = lab.instances[LAB].status
    status.state, status.reason.code = instances.STATE_STARTING, "IMAGE_BUILDING"
    status.reason.arguments["image"] = "jupyterlab"
    lab.turns.append(refuse(code_pb2.FAILED_PRECONDITION, "REPLICA_NOT_RUNNING"))
    assert run(["instances", "open", "lab"]) == 5
    told = "It is STARTING: the image jupyterlab is being built, once for all."
    assert told in capsys.readouterr().err


def opened(folder: Path, *words: str, **environment: str) -> tuple[str, str]:
    """What the command prints, and what a browser was told to open."""
    browser, seen = folder / "browser", folder / "seen"
    browser.write_text(f'#!/bin/sh\nprintf %s "$1" > {seen}\n')
    browser.chmod(0o755)
    told = {**os.environ, "BROWSER": f"{browser} %s", **environment}
    done = subprocess.run(
        [*FERMION, "instances", "open", "lab", *words],
        env=told,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    found = seen.read_text() if seen.exists() else ""
    seen.unlink(missing_ok=True)
    return done.stdout, found


def test_a_browser_is_told_where_there_is_a_display(lab: Platform, tmp_path: Path) -> None:
    assert opened(tmp_path, DISPLAY=":0") == (f"{URL}\n", URL)
    assert opened(tmp_path, "--print", DISPLAY=":0") == (f"{URL}\n", "")
    assert opened(tmp_path) == (f"{URL}\n", "")
    # What is no address of the web is for no browser.
    assert opened(tmp_path, "--port", "db", DISPLAY=":0") == ("127.0.0.1:20002\n", "")
