"""The embedded start: owns PostgreSQL, NATS and the services, and starts again what dies."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import select
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from chassis.embedded import (
    Home,
    Keys,
    Nats,
    Postgres,
    default_home,
    free_port,
    is_free,
    last_lines,
    spawn,
)
from chassis.keys import write_private
from chassis.postgres import create_database
from chassis.process import EXIT_REFUSED
from chassis.refusals import Refused
from chassis.telemetry import METRICS
from services.executor.ground import cluster_uid, living
from services.serve import TARGETS
from services.versions import refuse_newer

DEFAULT_PORT: Final = 7443
COMMAND: Final = (sys.executable, "-m", "services")
DRAIN_SECONDS_MAX: Final = 15.0
READY_SECONDS_MAX: Final = 60.0
# Draining, then NATS, then PostgreSQL.
DOWN_SECONDS_MAX: Final = DRAIN_SECONDS_MAX + 25.0
BACKOFF_SECONDS_FIRST: Final = 0.1
BACKOFF_SECONDS_MAX: Final = 5.0
# A service that was ready and has lived so long starts again at once when it dies; a server always.
STEADY_SECONDS: Final = 10.0
# What an executor takes at the most.
GPUS_MAX: Final = 64
LOOK_SECONDS: Final = 0.02
LOOP_SECONDS: Final = 0.1
PROGRAMS: Final = Path(sys.executable).parent
# A laptop has less than the guide's smallest instance; `up` says so.
SHARDED: Final = "executor"
MINIMA: Final = {
    "FERMION_INSTANCES_CPU_MIN": "100",
    "FERMION_INSTANCES_MEMORY_MIN": str(64 * 1024 * 1024),
    "FERMION_INSTANCES_STORAGE_MIN": "0",
}
# What a big message took goes back to the system (mallopt(3)), soon after it was answered: of the calls of
# tests/fuzz 8 MB stay so, 22 with one arena more, and 78 by glibc's own measure.
ALLOCATOR: Final = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": str(256 * 1024)}


class Unit(Protocol):
    """What is kept running: a server, or a process of services."""

    process: subprocess.Popen[bytes] | None

    @property
    def log(self) -> Path:
        """What it prints."""
        ...

    def start(self) -> None:
        """Start it."""
        ...

    def ready(self) -> bool:
        """Tell whether it does its work."""
        ...


@dataclass(slots=True)
class Service:
    """One process of services: what it runs, and where it answers."""

    label: str
    command: tuple[str, ...]
    targets: tuple[str, ...]
    port: int
    environment: dict[str, str]
    log: Path
    process: subprocess.Popen[bytes] | None = None
    # Where it serves its metrics; empty where nobody asked for them.
    metrics: str = ""

    @property
    def address(self) -> str:
        """Where it answers."""
        return f"127.0.0.1:{self.port}"

    @property
    def place(self) -> str:
        """Where it is found, for people."""
        return f"   {self.address}" + (f"   metrics {self.metrics}" if self.metrics else "")

    def start(self) -> None:
        """Start it; its output goes to its log."""
        with self.log.open("ab") as log:
            self.process = spawn(
                [*self.command, *self.targets], output=log, environment=self.environment
            )

    def ready(self) -> bool:
        """Tell whether its port is open; it opens when everything behind it is up."""
        if self.process is None or self.process.poll() is not None:
            return False
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
            return True
        return False


@dataclass(slots=True)
class Kept:
    """Started again where it ends: at once where it had done its work for a while, else ever later."""

    label: str
    unit: Unit
    # It starts again at once where it had been ready for so long.
    steady_seconds: float = 0.0
    # Where it is found, for people.
    place: str = ""
    # Whether its log ends with why it ended.
    quoted: bool = False
    began: float = field(default_factory=time.monotonic)
    greeted: bool = False
    # When it is started; None while it runs.
    again: float | None = None
    backoff: float = BACKOFF_SECONDS_FIRST

    @property
    def ended(self) -> bool:
        """Whether it ran, and does no longer."""
        process = self.unit.process
        return self.again is None and (process is None or process.poll() is not None)

    @property
    def words(self) -> str:
        """What it said last, behind what is said of it."""
        return f"   {last_words(self.unit.log)}".rstrip() if self.quoted else ""

    def look(self) -> None:
        """Start it where it is time; greet it when it is ready."""
        now = time.monotonic()
        if self.ended:
            process = self.unit.process
            self._wait(f"ended ({_how(process)})" if process else "is not there", now)
        if self.again is not None:
            if now >= self.again:
                self._start(now)
        elif not self.greeted and self.unit.ready():
            self.greet(now)

    def greet(self, now: float) -> None:
        """It is ready."""
        self.greeted = True
        say(f"{self.label:<12} ready  {now - self.began:.1f} s{self.place}")

    def _start(self, now: float) -> None:
        self.began, self.greeted, self.again = now, False, None
        try:
            self.unit.start()
        except (OSError, Refused) as error:
            if self.unit.process is None:
                # It never ran: who starts the platform has to mend it.
                raise
            # A disk that is full may have room again in a moment.
            self._wait(f"does not start ({error})", now)

    def _wait(self, why: str, now: float) -> None:
        delay, said = self.backoff, f"again in {self.backoff:.1f} s"
        self.backoff = min(delay * 2, BACKOFF_SECONDS_MAX)
        if self.greeted and now - self.began > self.steady_seconds:
            # All the others miss it, so the first time is now.
            delay, said, self.backoff = 0.0, "starting it again", BACKOFF_SECONDS_FIRST
        say(f"{self.label:<12} {why}; {said}{self.words}")
        self.again, self.greeted = now + delay, False


@dataclass(slots=True)
class Supervisor:
    """One thread, one loop: look after every process until told to drain."""

    home: Home
    postgres: Postgres
    nats: Nats
    services: list[Service]
    # All that runs: the servers as they are brought, then the services.
    kept: list[Kept] = field(default_factory=list)
    told: signal.Signals | None = None
    began: float = field(default_factory=time.monotonic)
    # A process that will not start before somebody has mended what it says.
    refused: Kept | None = None
    welcomed: bool = False

    def run(self) -> int:
        """Start everything in order, keep it, drain it; 0 where it ended because it was told to."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            # What `nohup` has ignored stays ignored.
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._drain)
        try:
            self._bring("postgres", self.postgres)
            if self.told is None:
                asyncio.run(create_database(self.postgres.dsn_of("postgres"), "fermion"))
                asyncio.run(refuse_newer(self.home, self.postgres.dsn))
            self._bring("nats", self.nats)
            self.kept += [
                Kept(one.label, one, STEADY_SECONDS, one.place, quoted=True, again=0.0)
                for one in self.services
            ]
            deadline = time.monotonic() + READY_SECONDS_MAX
            while self.told is None and (waiting := self._waiting()):
                if time.monotonic() > deadline:
                    say(f"error: {waiting.label} is not ready; look at {waiting.unit.log}")
                    return 1
                self._look()
                if self.refused is not None:
                    say(
                        f"error: {self.refused.label} does not start; look at {self.refused.unit.log}"
                    )
                    return 1
                time.sleep(LOOK_SECONDS)
            if self.told is None:
                self._welcome()
            while self.told is None:
                self._look()
                self._rest(LOOP_SECONDS)
            say(f"{self.told.name}: draining")
            return 0
        finally:
            self._stop()

    def _bring(self, label: str, server: Postgres | Nats) -> None:
        """Start a server and wait for it, unless told to drain."""
        if self.told is not None:
            return
        began = time.monotonic()
        server.start()
        while self.told is None and not server.look():
            if time.monotonic() - began > READY_SECONDS_MAX:
                server.wait_ready(0)
            time.sleep(LOOK_SECONDS)
        if self.told is None:
            self.kept.append(Kept(label, server, began=began))
            self.kept[-1].greet(time.monotonic())

    def _waiting(self) -> Kept | None:
        """The first of all that is not ready."""
        return next((kept for kept in self.kept if not kept.greeted), None)

    def _look(self) -> None:
        """Start again what died, with back-off; greet what became ready."""
        for kept in self.kept:
            # One that has run before is mended while the others serve.
            if not self.welcomed and kept.ended and _refuses(kept.unit.process):
                say(f"{kept.label:<12} refuses to start{kept.words}")
                self.refused = kept
                return
            kept.look()

    def _rest(self, seconds: float) -> None:
        """Let some time pass, less where a process ends."""
        poller = select.poll()
        with ExitStack() as until:
            for kept in self.kept:
                process = kept.unit.process
                # One that ended and was not looked after yet keeps its number.
                if process is not None and process.returncode is None:
                    descriptor = os.pidfd_open(process.pid)
                    until.callback(os.close, descriptor)
                    poller.register(descriptor, select.POLLIN)
            poller.poll(seconds * 1000)

    def _welcome(self) -> None:
        self.welcomed = True
        address = self.services[0].address
        self.home.describe(address)
        write_context(self.home, self.services)
        folder, programs = shlex.quote(str(self.home.root)), shlex.quote(str(PROGRAMS))
        say("")
        say(f"Fermion is up at {address}, {time.monotonic() - self.began:.1f} s after the start.")
        say(
            f"Its state lies in {self.home.root}. Instances may be smaller here than in production."
        )
        say("From a second terminal:")
        say(f"    export FERMION_HOME={folder} PATH={programs}:$PATH")
        say("    fermion projects create my-project")
        say("    fermion instances create lab --kind notebook -p my-project")
        say("Ctrl-C here, or `fermion down` there, stops it.")

    def _drain(self, number: int, frame: object) -> None:
        # A handler may run in the middle of a print, so it only notes what the loop then says.
        del frame
        self.told = self.told or signal.Signals(number)

    def _stop(self) -> None:
        """Services first, then what they stand on."""
        running = [one for one in self.services if one.process and one.process.poll() is None]
        for service in running:
            assert service.process is not None
            service.process.terminate()
        deadline = time.monotonic() + DRAIN_SECONDS_MAX
        for service in running:
            assert service.process is not None
            try:
                service.process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                say(f"{service.label} did not drain in time and is killed")
                service.process.kill()
                service.process.wait(5)
        self.nats.stop()
        self.postgres.stop()
        self.home.release()
        say(f"stopped{left_running(self.home)}")


def up(
    arguments: Sequence[str],
    *,
    targets: Sequence[str] = tuple(TARGETS),
    command: Sequence[str] = COMMAND,
) -> int:
    """Run the embedded start in the foreground; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m services up", description=up.__doc__)
    parser.add_argument("--split", action="store_true", help="a process per service")
    parser.add_argument(
        "--replicas", type=_positive, default=1, help="processes of each (default 1)"
    )
    parser.add_argument("--port", type=_port, default=None, help=f"default {DEFAULT_PORT}")
    parser.add_argument(
        "--postgres-tcp", action="store_true", help="PostgreSQL on a TCP port of the loopback"
    )
    parser.add_argument(
        "--simulate-gpus",
        type=_gpus,
        default=0,
        help="GPUs that the local cluster pretends to have",
    )
    asked = parser.parse_args(arguments)
    home = Home(default_home())
    try:
        home.prepare()
        home.hold("")
        home.whole()
        keys = Keys.prepare(home, targets)
        ports = Ports.load(home.path("ports.json"))
        postgres = Postgres(
            home.path("postgres"), tcp_port=ports.take("postgres") if asked.postgres_tcp else None
        )
        cluster = cluster_uid(home.path("cluster"))
        nats = Nats(home.path("nats"), targets, shards={SHARDED: cluster})
        groups = [(name,) for name in targets] if asked.split else [("all",)]
        services = plan(home, groups, asked.replicas, command, ports, asked.port)
        ports.save()
        shared = settings(home, keys, postgres, nats, cluster, asked.simulate_gpus)
        for service in services:
            service.environment = {**shared, **addresses(services), **service.environment}
        return Supervisor(home, postgres, nats, services).run()
    except Refused as refusal:
        tell(refusal)
        return 1
    except OSError as error:
        if not home.lacks(error):
            raise
        tell(home.unusable(error))
        return 1


@dataclass(slots=True)
class Ports:
    """Which process answers at which port; kept over restarts where the port is free then."""

    path: Path
    kept: dict[str, int]
    taken: dict[str, int] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path) -> Ports:
        """Read what was kept; nothing where nothing readable is there."""
        with suppress(OSError, ValueError):
            return cls(
                path, {name: int(port) for name, port in json.loads(path.read_text()).items()}
            )
        return cls(path, {})

    def take(self, name: str, wanted: int | None = None) -> int:
        """A free port for a process: the one it had, else the wanted one, else any."""
        for port in (self.kept.get(name), wanted):
            if port is not None and port not in self.taken.values() and is_free(port):
                return self.taken.setdefault(name, port)
        port = free_port()
        while port in self.taken.values():
            port = free_port()
        return self.taken.setdefault(name, port)

    def save(self) -> None:
        """Keep what was taken, beside what other ways to start have taken before."""
        write_private(self.path, json.dumps({**self.kept, **self.taken}) + "\n")


def plan(
    home: Home,
    groups: Sequence[tuple[str, ...]],
    replicas: int,
    command: Sequence[str],
    ports: Ports,
    port: int | None,
) -> list[Service]:
    """Say which processes there will be, and where each answers; the first at `port` if given."""
    found: list[Service] = []
    for replica in range(replicas):
        for group in groups:
            label = group[0] if replica == 0 else f"{group[0]}-{replica + 1}"
            if port is not None and not found:
                if not is_free(port):
                    raise Refused(
                        "PORT_TAKEN",
                        f"Port {port} is used by another program.",
                        next_step="Say another one with --port, or none to have one chosen.",
                        port=str(port),
                    )
                number = ports.taken.setdefault(label, port)
            else:
                number = ports.take(label, None if found else DEFAULT_PORT)
            log = home.path("logs", f"{label}.log")
            service = Service(label, tuple(command), group, number, {}, log)
            service.environment["FERMION_LISTEN"] = service.address
            service.metrics = os.environ.get(METRICS, "")
            host, colon, _ = service.metrics.rpartition(":")
            if found and colon:
                # The first has the port that was asked for.
                service.metrics = f"{host}:{ports.take(f'{label} metrics')}"
                service.environment[METRICS] = service.metrics
            found.append(service)
    return found


def settings(
    home: Home, keys: Keys, postgres: Postgres, nats: Nats, cluster: str, simulate_gpus: int
) -> dict[str, str]:
    """The environment that all processes of services have alike."""
    return {
        **MINIMA,
        **ALLOCATOR,
        **os.environ,
        "FERMION_HOME": str(home.root),
        "FERMION_POSTGRES_DSN": postgres.dsn,
        "FERMION_NATS_URL": nats.url,
        "FERMION_NATS_KEYS": str(nats.keys),
        "FERMION_PUBLIC_KEYS": str(home.path("keys", "jwks.json")),
        "FERMION_SIGNING_KEY": str(home.path("keys", "signing.jwk")),
        "FERMION_SERVICE_TOKENS": str(home.path("keys", "tokens")),
        "FERMION_ADMIN": keys.admin_uid,
        "FERMION_PROJECTS_CLUSTERS": cluster,
        "FERMION_EXECUTOR_CLUSTER": cluster,
        "FERMION_EXECUTOR_ROOT": str(home.path("cluster")),
        "FERMION_EXECUTOR_KEY": str(home.path("keys", "replicas.key")),
        "FERMION_EXECUTOR_SIMULATE_GPUS": str(simulate_gpus),
        "FERMION_LOG_FORMAT": os.environ.get("FERMION_LOG_FORMAT", "json"),
        "PYTHONUNBUFFERED": "1",
    }


def addresses(services: Sequence[Service]) -> dict[str, str]:
    """Where services find each other: every process of all of them, or of each by itself."""
    found = {"FERMION_ADDRESS": _addresses(services, services[0].targets)}
    for name, several in _split(services).items():
        found[f"FERMION_ADDRESS_{name.upper()}"] = several
    return found


def down(arguments: Sequence[str]) -> int:
    """Stop the embedded start of this folder, and wait until it is gone; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m services down", description=down.__doc__)
    parser.parse_args(arguments)
    home = Home(default_home())
    try:
        holder = home.holder()
        if not holder:
            left = left_running(home)
            say(f"{'Nothing' if left == '.' else 'No platform'} runs on {home.root}{left}")
            return 0
        with suppress(ProcessLookupError):
            os.kill(int(holder["pid"]), signal.SIGTERM)
        deadline = time.monotonic() + DOWN_SECONDS_MAX
        # Free again is what counts: the process may still wait for its own parent to notice.
        while home.holder():
            if time.monotonic() > deadline:
                say(f"error: process {holder['pid']} does not end. Look at {home.path('logs')}.")
                return 1
            time.sleep(LOOP_SECONDS)
    except (ValueError, OSError):
        say(
            f"error: {home.root} is held, and who its lock names ({holder['pid']}) cannot be told "
            "to stop. Stop it where it was started."
        )
        return 1
    except Refused as refusal:
        tell(refusal)
        return 1
    say(f"Fermion on {home.root} has stopped{left_running(home)}")
    return 0


def left_running(home: Home) -> str:
    """The end of a sentence about the end: what runs on by itself, and how that is ended, too."""
    count = living(home.path("cluster"))
    if not count:
        return "."
    runs = "1 replica runs on" if count == 1 else f"{count} replicas run on"
    return (
        f"; {runs}, and the next `fermion up` finds {'it' if count == 1 else 'them'} again. "
        "`fermion down --stop-all` stops all instances first."
    )


def write_context(home: Home, services: Sequence[Service]) -> None:
    """Tell the command line where this one answers; other contexts stay as they are."""
    path = home.path("cli", "contexts.json")
    known: dict[str, object] = {}
    with suppress(OSError, ValueError):
        known = json.loads(path.read_text())
    contexts = known.get("contexts")
    contexts = dict(contexts) if isinstance(contexts, Mapping) else {}
    before = contexts.get("local")
    local: dict[str, object] = dict(before) if isinstance(before, Mapping) else {"project": None}
    local["address"] = _addresses(services, services[0].targets)
    local["token_file"] = str(home.path("keys", "admin.token"))
    local.pop("addresses", None)
    if split := _split(services):
        local["addresses"] = split
    contexts["local"] = local
    current = known.get("current") or "local"
    write_private(path, json.dumps({"current": current, "contexts": contexts}, indent=2) + "\n")


def say(line: str) -> None:
    """
    Print a line now; whoever closed the terminal does not hear it, and nothing else changes.

    What it quotes may hold anything: no terminal shall obey it.
    """
    shown = "".join(one if one.isprintable() else ascii(one)[1:-1] for one in line)
    with suppress(OSError):
        print(shown, flush=True)


def tell(refusal: Refused) -> None:
    """Print what was refused, what to do, and the reason by which it is looked up."""
    say(f"error: {refusal.message}")
    if refusal.next_step:
        say(f"  what to do: {refusal.next_step}")
    say(f"  reason: {refusal.reason}")


def last_words(log: Path) -> str:
    """What a process said last, whichever way it logs."""
    line = last_lines(log, 1)
    with suppress(ValueError):
        said = json.loads(line)
        if isinstance(said, dict) and "message" in said:
            failure = str(said.get("exception", "")).strip().rpartition("\n")[2]
            return " ".join(filter(None, (str(said["message"]), failure)))
    return line


def _split(services: Sequence[Service]) -> dict[str, str]:
    """The addresses of each service that has processes of its own."""
    return {
        one.targets[0]: _addresses(services, one.targets)
        for one in services
        if one.targets != ("all",)
    }


def _addresses(services: Sequence[Service], targets: tuple[str, ...]) -> str:
    """Of all processes that run the same, in order: each is tried where those before it are not there."""
    return ",".join(one.address for one in services if one.targets == targets)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return number


def _gpus(text: str) -> int:
    number = int(text)
    if not 0 <= number <= GPUS_MAX:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and {GPUS_MAX}")
    return number


def _port(text: str) -> int:
    number = int(text)
    if not 1 <= number <= 65535:
        raise argparse.ArgumentTypeError(f"{text} is no port; say one from 1 to 65535")
    return number


def _refuses(process: subprocess.Popen[bytes] | None) -> bool:
    """Whether it ended since it will not start before somebody has mended what it says."""
    return process is not None and process.returncode == EXIT_REFUSED


def _how(process: subprocess.Popen[bytes]) -> str:
    code = process.returncode
    return signal.Signals(-code).name if code < 0 else f"exit {code}"
