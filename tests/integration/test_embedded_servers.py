"""PostgreSQL and NATS of the embedded start: private, safe as root, and gone with their parent."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import asyncpg
import nats
import psutil
import pytest
from nats.errors import Error as NatsError

from chassis.embedded import Home, Nats, Postgres, Standing, free_port
from chassis.embedded.child import allows
from chassis.postgres import KEEPALIVE, Database
from chassis.refusals import Refused
from tests.servers import NatsServer

SECONDS_MAX = 30.0


def standings() -> list[Standing]:
    """How PostgreSQL can run for who runs these tests; as root only if that is not as root."""
    return [Standing.NAMESPACE, Standing.ACCOUNT] if os.getuid() == 0 else [Standing.DIRECT]


@pytest.fixture(params=standings())
def standing(request: pytest.FixtureRequest) -> Standing:
    """Each of them that this machine allows."""
    found: Standing = request.param
    if not allows(found):
        pytest.skip(f"this machine does not allow {found}")
    return found


@pytest.fixture
def postgres(tmp_path: Path, standing: Standing) -> Iterator[Postgres]:
    """A server of the test's own."""
    server = Postgres(tmp_path / "postgres", standing=standing)
    server.start()
    server.wait_ready()
    yield server
    server.stop()


def until(holds: Callable[[], object], what: str) -> None:
    """Wait for a condition, not for a time."""
    deadline = time.monotonic() + SECONDS_MAX
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def family(pid: int) -> list[psutil.Process]:
    """A process and all that came from it."""
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def gone(process: psutil.Process) -> bool:
    """Whether a process has ended, its number perhaps not yet given back."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


async def ask(dsn: str, statement: str) -> object:
    """Run one statement, and give its one value."""
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetchval(statement)
    finally:
        await connection.close()


async def test_the_server_is_no_root_and_its_folder_stays_closed(
    postgres: Postgres, tmp_path: Path
) -> None:
    assert await ask(postgres.dsn_of("postgres"), "SELECT 'there'") == "there"
    data = tmp_path / "postgres" / "data"
    assert data.stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "postgres").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "postgres" / "passfile").stat().st_mode & 0o777 == 0o600
    assert postgres.process is not None
    # It checks by itself that it is not root; what is left of root's power is counted here.
    status = Path(f"/proc/{postgres.process.pid}/status").read_text()
    effective = int(status.split("CapEff:")[1].split()[0], 16)
    assert effective in (0, 1 << 1)


async def test_text_sorts_alike_on_every_machine(postgres: Postgres) -> None:
    found = await ask(
        postgres.dsn_of("postgres"),
        "SELECT string_agg(t, '' ORDER BY t) FROM unnest(array['b', 'A', 'a', 'ä', '_']) AS t",
    )
    assert found == "A_abä"


async def test_what_was_committed_was_written(postgres: Postgres) -> None:
    dsn = postgres.dsn_of("postgres")
    assert await ask(dsn, "SHOW synchronous_commit") == "on"
    assert await ask(dsn, "SHOW fsync") == "on"
    assert await ask(dsn, "SHOW max_connections") == "200"


async def test_no_one_gets_in_without_the_password(postgres: Postgres, tmp_path: Path) -> None:
    for passfile in ("*:*:*:fermion:guessed\n", ""):
        (tmp_path / "other").write_text(passfile)
        (tmp_path / "other").chmod(0o600)
        dsn = postgres.dsn_of("postgres").split("passfile=")[0] + f"passfile={tmp_path / 'other'}"
        with pytest.raises((asyncpg.InvalidPasswordError, asyncpg.InterfaceError)):
            await ask(dsn, "SELECT 1")


async def test_the_password_is_kept_as_scram_only(postgres: Postgres) -> None:
    stored = await ask(
        postgres.dsn_of("postgres"), "SELECT rolpassword FROM pg_authid WHERE rolname = 'fermion'"
    )
    assert str(stored).startswith("SCRAM-SHA-256$")
    rules = await ask(
        postgres.dsn_of("postgres"),
        "SELECT string_agg(DISTINCT auth_method, ',') FROM pg_hba_file_rules",
    )
    assert rules == "scram-sha-256"


async def test_no_port_is_open_unless_asked_for(postgres: Postgres) -> None:
    assert postgres.process is not None
    listening = []
    for process in family(postgres.process.pid):
        # A worker may end between being listed and being asked.
        with suppress(psutil.NoSuchProcess):
            listening += process.net_connections("tcp")
    assert listening == []


async def test_a_port_of_the_loopback_is_open_if_asked_for_and_sessions_on_it_are_looked_after(
    tmp_path: Path,
) -> None:
    server = Postgres(tmp_path / "postgres", tcp_port=free_port())
    server.start()
    server.wait_ready()
    try:
        assert await ask(server.dsn_of("postgres"), "SELECT 'there'") == "there"
        assert await ask(server.dsn_of("postgres"), "SHOW listen_addresses") == "127.0.0.1"
        # A client that dies behind a partition holds what it has locked until the server asks.
        session = await Database(server.dsn_of("postgres"), "sample").pinned("test")
        for name, value in KEEPALIVE.items():
            assert await session.fetchval(f"SHOW {name}") == value
        await session.close()
    finally:
        server.stop()


async def test_a_server_killed_with_its_sessions_open_is_back_at_once(postgres: Postgres) -> None:
    connection = await asyncpg.connect(postgres.dsn_of("postgres"))
    await connection.execute("CREATE TABLE kept AS SELECT 42 AS value")
    assert postgres.process is not None
    before = family(postgres.process.pid)
    postgres.process.kill()
    postgres.process.wait()
    postgres.start()
    postgres.wait_ready()
    assert await ask(postgres.dsn_of("postgres"), "SELECT value FROM kept") == 42
    assert all(gone(process) for process in before)
    connection.terminate()


async def test_a_child_that_does_not_notice_its_servers_death_does_not_stop_the_next(
    postgres: Postgres,
) -> None:
    assert postgres.process is not None
    stuck = psutil.Process(postgres.process.pid).children()[0]
    stuck.suspend()
    postgres.process.kill()
    postgres.process.wait()
    postgres.start()
    postgres.wait_ready()
    assert gone(stuck)
    assert await ask(postgres.dsn_of("postgres"), "SELECT 1") == 1


async def test_a_pid_file_that_names_another_program_does_not_stop_a_start(
    postgres: Postgres,
) -> None:
    postgres.stop()
    stale = postgres.home / "data" / "postmaster.pid"
    stale.write_text(f"{os.getpid()}\n{postgres.home / 'data'}\n1\n5432\n\n\n\n\n")
    postgres.start()
    postgres.wait_ready(10)
    assert await ask(postgres.dsn_of("postgres"), "SELECT 1") == 1


async def test_a_cluster_that_was_half_made_is_made_anew(tmp_path: Path) -> None:
    (tmp_path / "postgres" / "data.new").mkdir(parents=True)
    (tmp_path / "postgres" / "data.new" / "PG_VERSION").write_text("18\n")
    server = Postgres(tmp_path / "postgres")
    server.start()
    server.wait_ready()
    try:
        assert await ask(server.dsn_of("postgres"), "SELECT 1") == 1
    finally:
        server.stop()


@pytest.mark.skipif(os.getuid() != 0, reason="only root has two ways not to be root")
async def test_a_cluster_goes_from_one_way_of_running_to_another(tmp_path: Path) -> None:
    for turn, way in enumerate((Standing.NAMESPACE, Standing.ACCOUNT, Standing.NAMESPACE)):
        if not allows(way):
            pytest.skip(f"this machine does not allow {way}")
        server = Postgres(tmp_path / "postgres", standing=way)
        server.start()
        server.wait_ready()
        dsn = server.dsn_of("postgres")
        if turn == 0:
            await ask(dsn, "CREATE TABLE kept AS SELECT 42 AS value")
        assert await ask(dsn, "SELECT value FROM kept") == 42
        server.stop()


async def test_a_path_with_odd_letters_or_too_many_is_no_hindrance(tmp_path: Path) -> None:
    server = Postgres(tmp_path / 'a b, "c" + ä & d=%e' / ("long" * 20))
    server.start()
    server.wait_ready()
    try:
        assert await ask(server.dsn_of("postgres"), "SELECT 1") == 1
    finally:
        server.stop()
        shutil.rmtree((server.home / "socket-folder").read_text().strip())


async def test_odd_letters_in_a_path_that_holds_the_socket_are_no_hindrance(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    server = Postgres(tmp_path_factory.mktemp("p") / 'a b"+%')
    server.start()
    server.wait_ready()
    try:
        assert not (server.home / "socket-folder").exists()
        assert await ask(server.dsn_of("postgres"), "SELECT 1") == 1
    finally:
        server.stop()


def test_the_cluster_of_another_version_is_refused_and_kept(tmp_path: Path) -> None:
    data = tmp_path / "postgres" / "data"
    data.mkdir(parents=True)
    (data / "PG_VERSION").write_text("9\n")
    with pytest.raises(Refused) as refusal:
        Postgres(tmp_path / "postgres").start()
    assert refusal.value.reason == "POSTGRES_VERSION"
    assert (data / "PG_VERSION").read_text() == "9\n"


def test_a_server_that_cannot_start_says_why_and_is_given_up(tmp_path: Path) -> None:
    server = Postgres(tmp_path / "postgres")
    server.start()
    server.wait_ready()
    server.stop()
    (tmp_path / "postgres" / "data" / "postgresql.conf").write_text("nonsense = 1\n")
    server.start()
    with pytest.raises(Refused) as refusal:
        server.wait_ready()
    assert refusal.value.reason == "POSTGRES_ENDS"
    assert "nonsense" in refusal.value.message


def test_nothing_is_left_when_the_holder_is_killed(tmp_path: Path, standing: Standing) -> None:
    command = [sys.executable, "-m", "tests.integration.embedded_holder", str(tmp_path), standing]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    told = json.loads(holder.stdout.readline())
    assert Home(tmp_path).holder()["pid"] == str(holder.pid)
    left = [process for pid in told["pids"] for process in family(pid)]
    assert len(left) > len(told["pids"])
    holder.kill()
    holder.wait()
    holder.stdout.close()
    until(lambda: all(gone(process) for process in left), f"still there: {left}")
    assert Home(tmp_path).holder() == {}


async def test_the_next_holder_finds_what_the_killed_one_had_committed(
    tmp_path: Path, standing: Standing
) -> None:
    command = [sys.executable, "-m", "tests.integration.embedded_holder", str(tmp_path), standing]
    urls = []
    for turn in range(2):
        holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert holder.stdout is not None
        told = json.loads(holder.stdout.readline())
        dsn = told["dsn"].replace("/fermion?", "/postgres?")
        seed = str(tmp_path / "nats" / "keys" / "sample.nk")
        client = await nats.connect(told["url"], nkeys_seed=seed, inbox_prefix=b"_INBOX_sample")
        if turn == 0:
            await ask(dsn, "CREATE TABLE kept AS SELECT 42 AS value")
            body = {"name": "FERMION_sample_0", "subjects": ["fermion.sample.0.>"]}
            await client.request(
                "$JS.API.STREAM.CREATE.FERMION_sample_0", json.dumps(body).encode(), timeout=5
            )
            await client.request("fermion.sample.0.project.Happened", b"fact", timeout=5)
        assert await ask(dsn, "SELECT value FROM kept") == 42
        found = await client.request("$JS.API.STREAM.INFO.FERMION_sample_0", b"", timeout=5)
        assert json.loads(found.data)["state"]["messages"] == 1
        await client.close()
        urls.append(told["url"])
        # Killed and at once started again, while what it had started is still going.
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        holder.stdout.close()
    assert urls[0] == urls[1]


async def test_nats_greets_nobody_without_a_key(nats_server: NatsServer) -> None:
    with pytest.raises(NatsError, match="Authorization Violation"):
        await nats.connect(nats_server.url, allow_reconnect=False, max_reconnect_attempts=0)


async def said(server: NatsServer, name: str, subject: str) -> bool:
    """Whether the server lets a user publish on a subject."""
    refused: list[Exception] = []

    async def note(error: Exception) -> None:
        refused.append(error)

    client = await nats.connect(
        server.url,
        nkeys_seed=str(server.keys / f"{name}.nk"),
        inbox_prefix=f"_INBOX_{name}".encode(),
        error_cb=note,
    )
    try:
        await client.publish(subject, b"planted")
        # What it says to the first, it says before it answers the second.
        await client.request("$JS.API.INFO", b"", timeout=5)
    finally:
        await client.close()
    assert all("permissions violation" in str(error).lower() for error in refused)
    return not refused


async def test_a_service_says_nothing_in_the_name_of_another(nats_server: NatsServer) -> None:
    assert await said(nats_server, "sample", "fermion.sample.0.project.Happened")
    assert not await said(nats_server, "sample", "fermion.other.0.project.Happened")
    assert not await said(nats_server, "sample", "fermion.nudge.other.0")
    assert not await said(nats_server, "sample", "$JS.API.STREAM.DELETE.FERMION_other_0")


async def test_a_subscriber_says_nothing_at_all(nats_server: NatsServer) -> None:
    assert not await said(nats_server, "subscriber", "fermion.sample.0.project.Happened")
    assert not await said(nats_server, "subscriber", "fermion.nudge.sample.0")
    assert not await said(nats_server, "subscriber", "$JS.API.STREAM.CREATE.FERMION_planted_0")


async def test_a_subscriber_reads_what_a_service_said(nats_server: NatsServer) -> None:
    service = await nats.connect(
        nats_server.url,
        nkeys_seed=str(nats_server.keys / "sample.nk"),
        inbox_prefix=b"_INBOX_sample",
    )
    reader = await nats.connect(
        nats_server.url,
        nkeys_seed=str(nats_server.keys / "subscriber.nk"),
        inbox_prefix=b"_INBOX_subscriber",
    )
    try:
        body = {
            "name": "FERMION_sample_0",
            "subjects": ["fermion.sample.0.>"],
            "allow_direct": True,
        }
        await service.request(
            "$JS.API.STREAM.CREATE.FERMION_sample_0", json.dumps(body).encode(), timeout=5
        )
        await service.request("fermion.sample.0.project.Happened", b"fact", timeout=5)
        direct = "$JS.API.DIRECT.GET.FERMION_sample_0"
        assert (await reader.request(direct, b'{"seq":1}', timeout=5)).data == b"fact"
        wanted = {
            "stream_name": "FERMION_sample_0",
            "config": {"name": "mine", "ack_policy": "none", "deliver_policy": "all"},
        }
        made = await reader.request(
            "$JS.API.CONSUMER.CREATE.FERMION_sample_0.mine", json.dumps(wanted).encode(), timeout=5
        )
        assert "error" not in json.loads(made.data), made.data
        # What is delivered keeps its own subject, so it is no answer in the sense of the client.
        inbox = reader.new_inbox()
        heard = await reader.subscribe(inbox)
        await reader.publish(
            "$JS.API.CONSUMER.MSG.NEXT.FERMION_sample_0.mine", b'{"batch":1}', reply=inbox
        )
        assert (await heard.next_msg(5)).data == b"fact"
    finally:
        await service.close()
        await reader.close()


def test_nats_that_cannot_start_says_why_and_is_given_up(tmp_path: Path) -> None:
    server = Nats(tmp_path / "nats", ("sample",))
    server.start()
    server.wait_ready()
    rival = Nats(tmp_path / "rival", ("sample",), port=server.port)
    try:
        rival.start()
        # Its port answers, but not by it.
        assert rival.process is not None
        rival.process.wait()
        with pytest.raises(Refused) as refusal:
            rival.wait_ready()
    finally:
        rival.stop()
        server.stop()
    assert refusal.value.reason == "NATS_ENDS"
    assert "address already in use" in refusal.value.message


async def test_programs_are_started_from_the_main_thread_only(tmp_path: Path) -> None:
    server = Nats(tmp_path / "nats", ("sample",))
    with pytest.raises(RuntimeError, match="main thread"):
        await asyncio.to_thread(server.start)
