"""The supervisor: starts all in order, starts again what dies, drains, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from chassis.embedded import Home, free_port
from tests.unit.services.executor.test_ground import replica

SECONDS_MAX = 40.0
PROGRAM = """
import os, sys
from services import supervisor
supervisor.STEADY_SECONDS = float(os.environ.get("STEADY_SECONDS", supervisor.STEADY_SECONDS))
command = (sys.executable, "-m", "tests.integration.embedded_service")
sys.exit(supervisor.up(sys.argv[1:], targets=("projects", "instances"), command=command))
"""


@dataclass(slots=True)
class Start:
    """An embedded start in a folder, over services that stand in for the real ones."""

    home: Path
    process: subprocess.Popen[bytes] | None = None
    children: list[psutil.Process] = field(default_factory=list)

    @property
    def printed(self) -> str:
        """What the present start has printed so far."""
        return (self.home.parent / "printed").read_text()

    def up(self, *arguments: str, environment: Mapping[str, str] | None = None) -> None:
        """Start it; see `ready`."""
        with (self.home.parent / "printed").open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-c", PROGRAM, *arguments],
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(environment or {}), "FERMION_HOME": str(self.home)},
            )

    def ready(self) -> None:
        """Wait until it says how to use it."""
        process = self.process
        assert process is not None
        self.until(lambda: "stops it." in self.printed or process.poll() is not None)
        assert process.poll() is None, self.printed
        self.children = psutil.Process(process.pid).children(recursive=True)

    def until(self, holds: Callable[[], object]) -> None:
        """Wait for a condition; fails with what was printed."""
        deadline = time.monotonic() + SECONDS_MAX
        while not holds():
            assert time.monotonic() < deadline, self.printed
            time.sleep(0.02)

    def printing(self, line: str) -> None:
        """Wait until it has printed a line."""
        self.until(lambda: line in self.printed)

    def services(self) -> list[dict[str, str]]:
        """The environments of the services that run, and their process ids."""
        found = [json.loads(path.read_text()) for path in (self.home / "logs").glob("*.json")]
        return sorted(found, key=lambda one: str(one["FERMION_LISTEN"]))

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Tell it to stop, and wait: its exit code."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(SECONDS_MAX)

    def nothing_left(self) -> bool:
        """Whether all that it had started has ended."""
        return not any(alive(process) for process in self.children)


def alive(process: psutil.Process) -> bool:
    """Whether a process runs; one that ended and whose number is not yet given back does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def answers(address: str) -> bool:
    """Whether somebody listens there."""
    host, port = address.rsplit(":", 1)
    try:
        with socket.create_connection((host, int(port)), 1):
            return True
    except OSError:
        return False


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """One that is ended after the test, however the test went."""
    found = Start(tmp_path / "home")
    yield found
    if found.process is not None and found.process.poll() is None:
        found.process.kill()
        found.process.wait()


def test_all_starts_in_order_and_ctrl_c_drains_it(start: Start) -> None:
    start.up("--port", str(free_port()))
    start.ready()
    places = [start.printed.index(name) for name in ("postgres ", "nats ", "all ", "Fermion is up")]
    assert places == sorted(places)
    holder = Home(start.home).holder()
    assert answers(holder["address"])
    contexts = json.loads((start.home / "cli" / "contexts.json").read_text())
    assert contexts["current"] == "local"
    assert contexts["contexts"]["local"] == {
        "address": holder["address"],
        "token_file": str(start.home / "keys" / "admin.token"),
        "project": None,
    }
    assert (start.home / "cli" / "contexts.json").stat().st_mode & 0o777 == 0o600
    assert start.stop(signal.SIGINT) == 0
    assert "SIGINT: draining" in start.printed
    assert "drained" in (start.home / "logs" / "all.log").read_text()
    assert start.nothing_left()
    assert Home(start.home).holder() == {}


def test_services_are_told_all_that_they_need(start: Start) -> None:
    start.up("--port", str(free_port()))
    start.ready()
    (told,) = start.services()
    assert told["FERMION_LISTEN"] == told["FERMION_ADDRESS"]
    for name in ("FERMION_PUBLIC_KEYS", "FERMION_SIGNING_KEY"):
        assert Path(told[name]).is_file()
    for folder, file in (
        ("FERMION_NATS_KEYS", "projects.nk"),
        ("FERMION_SERVICE_TOKENS", "projects.token"),
    ):
        assert Path(told[folder], file).is_file()
    assert told["FERMION_ADMIN"].startswith("user_")
    password = (start.home / "postgres" / "password").read_text().strip()
    assert not any(password in str(value) for value in told.values())


def test_split_gives_each_service_a_process_and_tells_the_command_line(start: Start) -> None:
    start.up("--split", "--replicas", "2")
    start.ready()
    told = start.services()
    assert len({one["FERMION_LISTEN"] for one in told}) == 4
    # Whoever asks for a service finds both of its processes, whoever asks; the first one first.
    ports = json.loads((start.home / "ports.json").read_text())
    for service in ("projects", "instances"):
        (several,) = {one[f"FERMION_ADDRESS_{service.upper()}"] for one in told}
        assert several == f"127.0.0.1:{ports[service]},127.0.0.1:{ports[f'{service}-2']}"
        assert all(answers(address) for address in several.split(","))
    local = json.loads((start.home / "cli" / "contexts.json").read_text())["contexts"]["local"]
    assert local["address"] == told[0]["FERMION_ADDRESS_PROJECTS"] == told[0]["FERMION_ADDRESS"]
    assert local["addresses"] == {
        "projects": told[0]["FERMION_ADDRESS_PROJECTS"],
        "instances": told[0]["FERMION_ADDRESS_INSTANCES"],
    }
    for label in ("projects", "instances", "projects-2", "instances-2"):
        assert f"{label:<12} ready" in start.printed


def test_ports_stay_over_a_restart_and_a_context_of_ones_own_too(start: Start) -> None:
    start.up("--split")
    start.ready()
    before = [one["FERMION_LISTEN"] for one in start.services()]
    assert start.stop() == 0
    path = start.home / "cli" / "contexts.json"
    known = json.loads(path.read_text())
    known["current"] = "far"
    known["contexts"]["far"] = {"address": "fermion.example:443"}
    known["contexts"]["local"]["project"] = "mine"
    path.write_text(json.dumps(known))
    start.up("--split")
    start.ready()
    assert [one["FERMION_LISTEN"] for one in start.services()] == before
    assert json.loads(path.read_text()) == known


def test_nothing_is_left_when_the_supervisor_is_killed(start: Start) -> None:
    start.up("--split", "--replicas", "2")
    start.ready()
    assert len(start.children) > 6
    start.stop(signal.SIGKILL)
    start.until(start.nothing_left)
    # The very next start finds nothing in its way.
    start.up("--split", "--replicas", "2")
    start.ready()


def test_what_dies_is_started_again_and_said(start: Start) -> None:
    start.up("--port", str(free_port()))
    start.ready()
    (service,) = start.services()
    os.kill(int(service["pid"]), signal.SIGKILL)
    start.until(lambda: start.services()[0]["pid"] != service["pid"])
    assert "all          ended (SIGKILL); again in 0.1 s" in start.printed
    for name in ("postgres", "nats-server"):
        (server,) = [one for one in psutil.Process(parent(start)).children() if one.name() == name]
        server.kill()
    start.until(lambda: start.printed.count("postgres     ready") == 2)
    start.until(lambda: start.printed.count("nats         ready") == 2)
    assert start.stop() == 0


def test_what_has_served_for_some_time_is_started_again_at_once(start: Start) -> None:
    start.up("--port", str(free_port()), environment={"STEADY_SECONDS": "0"})
    start.ready()
    for times in (1, 2):
        (service,) = start.services()
        os.kill(int(service["pid"]), signal.SIGKILL)
        start.until(lambda: start.services()[0]["pid"] != service["pid"])  # noqa: B023
        start.until(lambda: start.printed.count("all          ready") == times + 1)  # noqa: B023
    assert start.printed.count("all          ended (SIGKILL); starting it again") == 2
    assert "again in" not in start.printed
    assert start.stop() == 0


def test_a_server_that_ends_is_said_to_without_its_last_words(start: Start) -> None:
    start.up("--port", str(free_port()))
    start.ready()
    found = {one.name(): one for one in psutil.Process(parent(start)).children()}
    found["nats-server"].kill()
    start.until(lambda: start.printed.count("nats         ready") == 2)
    assert "nats         ended (SIGKILL); starting it again\n" in start.printed
    assert start.stop() == 0


def test_what_cannot_even_be_begun_ends_the_start_and_says_what_to_do(start: Start) -> None:
    start.home.mkdir(mode=0o700)
    (start.home / "logs" / "all.log").mkdir(parents=True)
    start.up("--port", str(free_port()))
    assert start.process is not None
    assert start.process.wait(SECONDS_MAX) == 1
    assert "reason: HOME_UNUSABLE" in start.printed
    assert "all.log" in start.printed
    assert Home(start.home).holder() == {}


def parent(start: Start) -> int:
    """The supervisor's process id."""
    assert start.process is not None
    return start.process.pid


def test_what_cannot_start_is_tried_ever_more_seldom_and_quotes_its_last_words(
    start: Start,
) -> None:
    start.home.mkdir(mode=0o700)
    (start.home / "all.fails").touch()
    start.up("--port", str(free_port()))
    for wait in ("0.1", "0.2", "0.4"):
        start.printing(f"all          ended (exit 3); again in {wait} s   this one cannot start")
    (start.home / "all.fails").unlink()
    start.ready()


def test_a_server_that_cannot_start_again_is_waited_for_while_the_others_run(start: Start) -> None:
    start.up("--port", str(free_port()))
    start.ready()
    settings = start.home / "postgres" / "data" / "postgresql.auto.conf"
    kept = settings.read_text()
    settings.write_text("this is no setting\n")
    found = {one.name(): one for one in psutil.Process(parent(start)).children()}
    found["postgres"].kill()
    start.printing("postgres     ended (SIGKILL); starting it again")
    # More often than a start would take.
    for wait in ("0.1", "0.2", "0.4", "0.8"):
        start.printing(f"postgres     ended (exit 1); again in {wait} s")
    settings.write_text(kept)
    start.until(lambda: start.printed.count("postgres     ready") == 2)
    assert alive(found["nats-server"])
    assert start.stop() == 0


def test_what_no_other_start_would_mend_ends_the_start_at_once(start: Start) -> None:
    start.home.mkdir(mode=0o700)
    (start.home / "all.refuses").touch()
    start.up("--port", str(free_port()))
    assert start.process is not None
    assert start.process.wait(SECONDS_MAX) == 1
    assert "all          refuses to start   this one is not set up" in start.printed
    assert f"error: all does not start; look at {start.home}/logs/all.log" in start.printed
    assert "again in" not in start.printed
    assert Home(start.home).holder() == {}


def test_what_ran_before_and_refuses_now_is_waited_for_while_the_others_serve(
    start: Start,
) -> None:
    start.up("--port", str(free_port()))
    start.ready()
    (service,) = start.services()
    (start.home / "all.refuses").touch()
    os.kill(int(service["pid"]), signal.SIGKILL)
    start.printing("all          ended (exit 78); again in 0.2 s   this one is not set up")
    (start.home / "all.refuses").unlink()
    start.until(lambda: start.services()[0]["pid"] != service["pid"])
    assert start.stop() == 0


def test_every_process_says_where_its_metrics_are_and_keeps_the_place(start: Start) -> None:
    asked = f"127.0.0.1:{free_port()}"
    for _ in range(2):
        start.up("--split", environment={"FERMION_METRICS_LISTEN": asked})
        start.ready()
        told = {one["FERMION_LISTEN"]: one["FERMION_METRICS_LISTEN"] for one in start.services()}
        ports = json.loads((start.home / "ports.json").read_text())
        kept = f"127.0.0.1:{ports['instances metrics']}"
        assert told == {
            f"127.0.0.1:{ports['projects']}": asked,
            f"127.0.0.1:{ports['instances']}": kept,
        }
        for listen, metrics in told.items():
            assert f"{listen}   metrics {metrics}" in start.printed
        assert start.stop() == 0


def test_being_told_to_stop_while_starting_is_heard(start: Start) -> None:
    start.home.mkdir(mode=0o700)
    (start.home / "all.fails").touch()
    start.up("--port", str(free_port()))
    start.printing("nats         ready")
    assert start.stop() == 0
    assert "Fermion is up" not in start.printed
    assert Home(start.home).holder() == {}


def test_a_second_start_is_refused_and_the_first_one_stays(start: Start) -> None:
    start.up("--port", str(free_port()))
    start.ready()
    second = Start(start.home.parent / "second" / "home")
    second.home.parent.mkdir()
    second.home.symlink_to(start.home)
    second.up()
    assert second.process is not None
    assert second.process.wait(SECONDS_MAX) == 1
    assert second.printed.startswith(f"error: Process {parent(start)} has held")
    assert Home(start.home).holder()["address"] in second.printed
    assert "fermion down" in second.printed
    assert start.process is not None
    assert start.process.poll() is None


def test_a_port_of_another_program_is_refused(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        start.up("--port", str(port))
        assert start.process is not None
        assert start.process.wait(SECONDS_MAX) == 1
    assert start.printed.startswith(f"error: Port {port} is used by another program.")
    assert Home(start.home).holder() == {}


@pytest.mark.parametrize("arguments", [("--port", "70000"), ("--replicas", "0"), ("--port", "no")])
def test_a_wrong_argument_is_refused_before_anything_starts(
    start: Start, arguments: tuple[str, ...]
) -> None:
    start.up(*arguments)
    assert start.process is not None
    assert start.process.wait(SECONDS_MAX) == 2
    assert arguments[0] in start.printed
    assert not start.home.exists()


def down(home: Path) -> tuple[int, str]:
    """Run `down` on a folder: exit code and what it prints."""
    program = "import sys; from services import supervisor; sys.exit(supervisor.down([]))"
    found = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "FERMION_HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=SECONDS_MAX,
        check=False,
    )
    return found.returncode, found.stdout + found.stderr


def test_down_stops_it_and_says_so(start: Start) -> None:
    start.up("--port", str(free_port()))
    start.ready()
    assert down(start.home) == (0, f"Fermion on {start.home} has stopped.\n")
    assert start.process is not None
    assert start.process.wait(SECONDS_MAX) == 0
    assert start.nothing_left()
    assert down(start.home) == (0, f"Nothing runs on {start.home}.\n")


def test_the_end_says_how_many_replicas_run_on(start: Start) -> None:
    start.up("--port", str(free_port()))
    start.ready()
    # This process stands in for a shim that lives.
    replica(start.home / "cluster", "runs")
    assert "has stopped; 1 replica runs on" in down(start.home)[1]
    assert start.process is not None
    assert start.process.wait(SECONDS_MAX) == 0
    assert "\nstopped; 1 replica runs on" in start.printed
    assert "No platform runs on" in down(start.home)[1]


def test_postgres_has_a_port_if_asked_for(start: Start) -> None:
    start.up("--postgres-tcp", "--port", str(free_port()))
    start.ready()
    (told,) = start.services()
    assert "@127.0.0.1:" in told["FERMION_POSTGRES_DSN"]
