"""What the doctor finds, and how to mend it."""

from __future__ import annotations

import base64
import json
import os
import socket
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from fermion.api.journal import v1 as api
from fermion.cli import doctor

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)


def jwt(**claims: object) -> str:
    body = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
    return f"e30.{body}.signature"


def test_a_token_holds_until_it_ends() -> None:
    bearer = jwt(exp=(NOW + timedelta(hours=1)).timestamp())
    assert doctor.token(bearer, "", "local", NOW).well
    late = doctor.token(bearer, "", "local", NOW + timedelta(hours=2))
    assert not late.well
    assert "2026-11-24 13:00:00" in late.found
    assert "fermion tokens create" in late.mend


@pytest.mark.parametrize("bearer", ["x", "a.b.c", jwt(), jwt(exp="never"), jwt(exp=1e300)])
def test_what_is_no_token_is_said_to_be_none(bearer: str) -> None:
    assert doctor.token(bearer, "", "local", NOW).found == "it is no signed token"


def test_a_token_that_others_may_read_is_found(tmp_path: Path) -> None:
    file = tmp_path / "jwt"
    file.touch(0o644)
    found = doctor.token(jwt(exp=NOW.timestamp() + 60), str(file), "local", NOW)
    assert not found.well
    assert found.mend == f"chmod 600 {file}"


def test_a_missing_token_names_its_file() -> None:
    missing = doctor.token("", "/none", "local", NOW)
    assert missing.found == "/none cannot be read, or holds none"
    assert "tokens create" not in missing.mend


def test_a_platform_that_runs_holds_its_lock(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    assert doctor.lock(lock).mend == "Start it: fermion up"
    lock.write_text(json.dumps({"pid": os.getpid(), "since": "now"}))
    assert doctor.lock(lock).well
    # No process has this number: the kernel's largest is below it.
    lock.write_text(json.dumps({"pid": 2**30}))
    assert not doctor.lock(lock).well
    lock.write_text("")
    assert not doctor.lock(lock).well


def test_a_state_folder_that_others_may_see_is_found(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    assert not next(doctor.folder(tmp_path)).well
    tmp_path.chmod(0o700)
    assert next(doctor.folder(tmp_path)).well


def test_a_port_is_open_or_not() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        assert doctor.port(address).well
    assert not doctor.port(address).well


def test_what_stands_still_is_found_with_the_command_that_mends_it() -> None:
    halted = api.ReaderProgress(reader="a/b", journal="b/0", position=5, halted="HOLE")
    parked = api.ReaderProgress(reader="c/b", journal="b/0", position=5, parked=2)
    journals = [
        api.JournalStatus(journal="b/0", head=5, published=5, readers=[halted, parked]),
        api.JournalStatus(journal="a/0", head=5, published=-1),
        api.JournalStatus(journal="c/0", head=5, published=5, relay_halted="FENCED"),
    ]
    found = {finding.what: finding for finding in doctor.facts(journals)}
    assert found["journal b/0"].well
    assert "NATS is away" in found["journal a/0"].found
    assert found["journal c/0"].found == "FENCED"
    assert found["reader a/b of b/0"].mend == "fermion journal resume a/b b/0"
    assert "2 parked" in found["reader c/b of b/0"].found
    assert not found["reader c/b of b/0"].well
