"""The embedded start's folder, ports, keys and permissions, without any server."""

from __future__ import annotations

import errno
import json
import os
import re
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from chassis import ids
from chassis.embedded import SUBSCRIBER, Home, Keys, Postgres, free_port, is_free
from chassis.embedded.nats import permissions
from chassis.embedded.postgres import SOCKET_PATH_MAX, read_version
from chassis.keys import Verifier, parse_jwks
from chassis.refusals import Refused
from services.supervisor import Ports

SERVICES = ("projects", "instances")


def mode(path: Path) -> int:
    """The permission bits of a file."""
    return stat.S_IMODE(path.stat().st_mode)


def allowed(name: str, subject: str) -> bool:
    """Whether a user may publish on a subject, by the rules of NATS: `*` is a token, `>` the rest."""
    for rule in permissions(name, SERVICES)["publish"]["allow"]:
        pattern = re.escape(rule).replace(r"\*", r"[^.]+").replace(">", ".+")
        if re.fullmatch(pattern, subject):
            return True
    return False


def test_a_folder_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    home = Home(tmp_path / "deep" / "home")
    home.prepare()
    assert mode(home.root) == 0o700
    assert {mode(Path(folder)) for folder, _, _ in os.walk(home.root)} == {0o700}


def test_an_open_folder_is_closed(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    Home(tmp_path).prepare()
    assert mode(tmp_path) == 0o700


def test_a_file_where_the_folder_should_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("")
    with pytest.raises(Refused) as refusal:
        Home(tmp_path / "home").prepare()
    assert refusal.value.reason == "HOME_UNUSABLE"
    assert str(tmp_path / "home") in refusal.value.message
    assert "FERMION_HOME" in refusal.value.next_step


def test_what_a_folder_lacks_is_told_from_other_faults(tmp_path: Path) -> None:
    home = Home(tmp_path)
    assert home.lacks(OSError(errno.ENOSPC, "No space left on device"))
    assert home.lacks(OSError(errno.EROFS, "Read-only", str(tmp_path / "keys" / "x")))
    assert not home.lacks(OSError(errno.EROFS, "Read-only", "/elsewhere"))
    assert not home.lacks(OSError(errno.EADDRINUSE, "Address already in use"))
    assert home.unusable(OSError(errno.ENOSPC, "No space left")).message.endswith(
        "cannot be used: No space left."
    )


@pytest.mark.skipif(os.getuid() != 0, reason="only root can make a folder of somebody else")
def test_a_folder_of_somebody_else_is_refused_and_stays_as_it_is(tmp_path: Path) -> None:
    os.chown(tmp_path, 12345, 12345)
    before = mode(tmp_path)
    with pytest.raises(Refused) as refusal:
        Home(tmp_path).prepare()
    assert refusal.value.reason == "HOME_OF_ANOTHER"
    assert "12345" in refusal.value.message
    assert (mode(tmp_path), list(tmp_path.iterdir())) == (before, [])


def test_a_second_start_is_refused_with_who_holds_the_folder(tmp_path: Path) -> None:
    first, second = Home(tmp_path), Home(tmp_path)
    first.prepare()
    first.hold("")
    with pytest.raises(Refused) as starting:
        second.hold("")
    assert starting.value.reason == "HOME_HELD"
    assert f"Process {os.getpid()} has held" in starting.value.message
    assert "is starting" in starting.value.message
    first.describe("127.0.0.1:7443")
    with pytest.raises(Refused) as held:
        second.hold("")
    assert "127.0.0.1:7443" in held.value.message
    assert second.holder()["address"] == "127.0.0.1:7443"
    assert held.value.next_step


def test_a_folder_let_go_can_be_held_again(tmp_path: Path) -> None:
    first, second = Home(tmp_path), Home(tmp_path)
    first.prepare()
    first.hold("somewhere")
    first.release()
    assert second.holder() == {}
    second.hold("elsewhere")
    assert first.holder()["address"] == "elsewhere"


def test_nobody_holds_a_folder_that_is_not_there(tmp_path: Path) -> None:
    assert Home(tmp_path / "nowhere").holder() == {}


def test_keys_are_private_and_their_tokens_are_good(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.prepare()
    keys = Keys.prepare(home, SERVICES)
    verifier = Verifier()
    for key in parse_jwks(home.path("keys", "jwks.json").read_text()):
        verifier.add(key)
    now = datetime.now(UTC)
    admin = verifier.verify(home.path("keys", "admin.token").read_text().strip(), now)
    assert (admin.kind, admin.subject) == ("user", keys.admin_uid)
    assert ids.parse(admin.subject)[0] == "user"
    assert admin.expire_time > now + timedelta(days=364)
    for service in SERVICES:
        token = home.path("keys", "tokens", f"{service}.token")
        assert verifier.verify(token.read_text().strip(), now).subject == f"service:{service}"
        assert mode(token) == 0o600
    assert mode(home.path("keys", "signing.jwk")) == 0o600
    assert mode(home.path("keys", "admin.token")) == 0o600


def test_keys_stay_the_same_from_start_to_start(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.prepare()
    first, second = Keys.prepare(home, SERVICES), Keys.prepare(home, SERVICES)
    assert (first.admin_uid, first.signing.kid) == (second.admin_uid, second.signing.kid)


def test_the_public_keys_tell_nothing_private(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.prepare()
    Keys.prepare(home, SERVICES)
    secret = json.loads(home.path("keys", "signing.jwk").read_text())["d"]
    assert secret not in home.path("keys", "jwks.json").read_text()


@pytest.mark.parametrize("user", [*SERVICES, SUBSCRIBER])
@pytest.mark.parametrize("service", SERVICES)
def test_a_stream_is_read_by_all_and_written_by_its_service_alone(user: str, service: str) -> None:
    stream = f"FERMION_{service}_0"
    for reading in (
        f"$JS.API.STREAM.INFO.{stream}",
        f"$JS.API.DIRECT.GET.{stream}",
        f"$JS.API.DIRECT.GET.{stream}.fermion.{service}.0.p.Event",
        f"$JS.API.CONSUMER.CREATE.{stream}.name",
        f"$JS.API.CONSUMER.MSG.NEXT.{stream}.name",
    ):
        assert allowed(user, reading), reading
    for writing in (
        f"fermion.{service}.0.p.Event",
        f"fermion.nudge.{service}.0",
        f"$JS.API.STREAM.CREATE.{stream}",
        f"$JS.API.STREAM.DELETE.{stream}",
    ):
        assert allowed(user, writing) == (user == service), writing
    assert not allowed(user, f"$JS.API.STREAM.PURGE.{stream}")
    assert not allowed(user, "$JS.API.STREAM.CREATE.FERMION_planted_0")
    assert allowed(user, f"$JS.API.CONSUMER.DELETE.{stream}.name") == (user != SUBSCRIBER)


def test_an_inbox_is_heard_by_its_owner_alone() -> None:
    heard = permissions("projects", SERVICES)["subscribe"]["allow"]
    assert heard == ["_INBOX_projects.>", "fermion.nudge.>"]


def test_a_long_path_gets_its_socket_elsewhere_and_keeps_it(tmp_path: Path) -> None:
    home = tmp_path / ("long" * 30)
    first, second = Postgres(home).dsn, Postgres(home).dsn
    assert first == second
    recorded = Path((home / "socket-folder").read_text().strip())
    assert mode(recorded) == 0o700
    assert len(str(recorded / ".s.PGSQL.5432")) <= SOCKET_PATH_MAX
    assert str(recorded) in first
    recorded.rmdir()


def test_a_socket_folder_that_was_opened_to_others_is_not_used_again(tmp_path: Path) -> None:
    home = tmp_path / ("long" * 30)
    first = Postgres(home).dsn
    opened = Path((home / "socket-folder").read_text().strip())
    opened.chmod(0o777)
    assert Postgres(home).dsn != first
    for folder in (opened, Path((home / "socket-folder").read_text().strip())):
        folder.rmdir()


@pytest.mark.parametrize(
    ("said", "reason"),
    [("postgres (PostgreSQL) 14.9", "POSTGRES_TOO_OLD"), ("what?", "POSTGRES_TOO_OLD")],
)
def test_an_old_server_is_refused(tmp_path: Path, said: str, reason: str) -> None:
    program = tmp_path / "postgres"
    program.write_text(f"#!/bin/sh\necho '{said}'\n")
    program.chmod(0o700)
    with pytest.raises(Refused) as refusal:
        read_version(tmp_path)
    assert refusal.value.reason == reason
    assert "FERMION_POSTGRES_DSN" in refusal.value.next_step


def test_a_server_that_does_not_run_here_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused) as refusal:
        read_version(tmp_path)
    assert refusal.value.reason == "POSTGRES_DOES_NOT_RUN"


def test_a_newer_server_is_understood(tmp_path: Path) -> None:
    program = tmp_path / "postgres"
    program.write_text("#!/bin/sh\necho 'postgres (PostgreSQL) 19beta1 (somebody 19.1)'\n")
    program.chmod(0o700)
    assert read_version(tmp_path) == 19


def test_ports_are_kept_where_they_are_free(tmp_path: Path) -> None:
    ports = Ports.load(tmp_path / "ports.json")
    first, second = ports.take("one"), ports.take("two")
    assert first != second
    ports.save()
    again = Ports.load(tmp_path / "ports.json")
    assert (again.take("one"), again.take("two")) == (first, second)


def test_a_port_is_given_to_one_process_only(tmp_path: Path) -> None:
    wanted = free_port()
    (tmp_path / "ports.json").write_text(json.dumps({"one": wanted, "two": wanted}))
    ports = Ports.load(tmp_path / "ports.json")
    assert ports.take("one") == wanted
    assert ports.take("two") != wanted
    assert is_free(ports.take("three", wanted))


def test_a_spoilt_record_of_ports_is_nothing_worse_than_other_ports(tmp_path: Path) -> None:
    (tmp_path / "ports.json").write_text("{")
    assert Ports.load(tmp_path / "ports.json").take("one") > 0
