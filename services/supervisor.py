"""The embedded start: owns PostgreSQL, NATS and the services, and starts again what dies."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Final

import psutil

from chassis.embedded import Home, Keys, Nats, Postgres, default_home, free_port, spawn
from chassis.keys import write_private
from chassis.postgres import create_database
from chassis.refusals import Refused
from services.serve import TARGETS

DEFAULT_PORT: Final = 7443
DRAIN_SECONDS_MAX: Final = 15.0
READY_SECONDS_MAX: Final = 60.0
BACKOFF_SECONDS_FIRST: Final = 0.1
BACKOFF_SECONDS_MAX: Final = 5.0
# What lived so long starts again at once when it dies.
STEADY_SECONDS: Final = 10.0
LOOP_SECONDS: Final = 0.1
# A laptop has less than the guide's smallest instance; `up` says so.
MINIMA: Final = {
    "FERMION_INSTANCES_CPU_MIN": "100",
    "FERMION_INSTANCES_MEMORY_MIN": str(64 * 1024 * 1024),
    "FERMION_INSTANCES_STORAGE_MIN": "0",
}


@dataclass(slots=True)
class Service:
    """One process of services: what it runs, where it answers, how it fared."""

    label: str
    targets: tuple[str, ...]
    port: int
    environment: dict[str, str]
    log: Path
    process: subprocess.Popen[bytes] | None = None
    began: float = 0.0
    backoff: float = BACKOFF_SECONDS_FIRST
    again: float = 0.0
    greeted: bool = False

    @property
    def address(self) -> str:
        """Where it answers."""
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it; its output goes to its log."""
        with self.log.open("ab") as log:
            self.process = spawn(
                [sys.executable, "-m", "services", *self.targets],
                output=log,
                environment=self.environment,
            )
        self.began, self.greeted = time.monotonic(), False

    def ready(self) -> bool:
        """Tell whether its port is open; it opens when everything behind it is up."""
        if self.process is None or self.process.poll() is not None:
            return False
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
            return True
        return False


@dataclass(slots=True)
class Supervisor:
    """One thread, one loop: look after every process until told to drain."""

    home: Home
    postgres: Postgres
    nats: Nats
    services: list[Service]
    draining: bool = False
    began: float = field(default_factory=time.monotonic)

    def run(self) -> int:
        """Start everything in order, keep it, drain it; 0 where it ended because it was told to."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._drain)
        try:
            self._begin("postgres", self.postgres)
            asyncio.run(create_database(self.postgres.dsn_of("postgres"), "fermion"))
            self._begin("nats", self.nats)
            for service in self.services:
                service.start()
            deadline = time.monotonic() + READY_SECONDS_MAX
            while not self.draining:
                self._look()
                waiting = [service for service in self.services if not service.greeted]
                if not waiting:
                    break
                if time.monotonic() > deadline:
                    say(f"{waiting[0].label} is not ready; look at {waiting[0].log}")
                    return 1
                time.sleep(0.02)
            if not self.draining:
                self._welcome()
            while not self.draining:
                self._look()
                time.sleep(LOOP_SECONDS)
            return 0
        finally:
            self._stop()

    def _begin(self, label: str, server: Postgres | Nats) -> None:
        began = time.monotonic()
        server.start()
        server.wait_ready()
        say(f"{label:<12} ready  {time.monotonic() - began:.1f} s")

    def _look(self) -> None:
        """Start again what died, with back-off; greet what became ready."""
        now = time.monotonic()
        for label, server in (("postgres", self.postgres), ("nats", self.nats)):
            process = server.process
            if process is not None and process.poll() is not None:
                say(f"{label:<12} ended ({_how(process)}); starting it again")
                server.start()
                server.wait_ready()
                say(f"{label:<12} ready  {time.monotonic() - now:.1f} s")
        for service in self.services:
            process = service.process
            if process is None:
                if now >= service.again:
                    service.start()
            elif process.poll() is not None:
                if now - service.began > STEADY_SECONDS:
                    service.backoff = BACKOFF_SECONDS_FIRST
                say(
                    f"{service.label:<12} ended ({_how(process)}); again in {service.backoff:.1f} s"
                )
                service.process, service.again = None, now + service.backoff
                service.backoff = min(service.backoff * 2, BACKOFF_SECONDS_MAX)
            elif not service.greeted and service.ready():
                service.greeted = True
                say(f"{service.label:<12} ready  {now - service.began:.1f} s   {service.address}")

    def _welcome(self) -> None:
        address = self.services[0].address
        self.home.describe(address)
        write_context(self.home, self.services)
        say("")
        say(f"Fermion is up at {address}, {time.monotonic() - self.began:.1f} s after the start.")
        say(
            f"Its state lies in {self.home.root}. Instances may be smaller here than in production."
        )
        say("From a second terminal:")
        say(f"    export FERMION_HOME={self.home.root} PATH={Path(sys.executable).parent}:$PATH")
        say("    fermion projects create my-project")
        say("    fermion instances create lab --kind notebook -p my-project")
        say("Ctrl-C here, or `fermion down` there, stops it.")

    def _drain(self, number: int, frame: object) -> None:
        del frame
        if not self.draining:
            say(f"\n{signal.Signals(number).name}: draining")
        self.draining = True

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
        say("stopped")


def up(arguments: Sequence[str]) -> int:
    """Run the embedded start in the foreground; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m services up", description=up.__doc__)
    parser.add_argument("--split", action="store_true", help="a process per service")
    parser.add_argument("--replicas", type=int, default=1, help="processes of each (default 1)")
    parser.add_argument("--port", type=int, default=None, help=f"default {DEFAULT_PORT}")
    parser.add_argument(
        "--postgres-tcp", action="store_true", help="PostgreSQL on a TCP port of the loopback"
    )
    asked = parser.parse_args(arguments)
    home = Home(default_home())
    try:
        home.prepare()
        home.hold("starting")
        keys = Keys.prepare(home, list(TARGETS))
        postgres = Postgres(
            home.path("postgres"), tcp_port=free_port() if asked.postgres_tcp else None
        )
        nats = Nats(home.path("nats"), list(TARGETS))
        services = plan(home, keys, postgres, nats, asked.split, asked.replicas, asked.port)
        return Supervisor(home, postgres, nats, services).run()
    except Refused as refusal:
        say(f"error: {refusal.message} {refusal.next_step}")
        return 1


def plan(
    home: Home,
    keys: Keys,
    postgres: Postgres,
    nats: Nats,
    split: bool,
    replicas: int,
    port: int | None,
) -> list[Service]:
    """Say which processes there will be, with their ports and their environments."""
    groups: list[tuple[str, ...]] = [(name,) for name in TARGETS] if split else [("all",)]
    ports = home.path("ports.json")
    kept: dict[str, int] = json.loads(ports.read_text()) if ports.exists() else {}
    common = {
        **os.environ,
        **MINIMA,
        "FERMION_HOME": str(home.root),
        "FERMION_POSTGRES_DSN": postgres.dsn,
        "FERMION_NATS_URL": nats.url,
        "FERMION_NATS_KEYS": str(nats.keys),
        "FERMION_PUBLIC_KEYS": str(home.path("keys", "jwks.json")),
        "FERMION_SIGNING_KEY": str(home.path("keys", "signing.jwk")),
        "FERMION_SERVICE_TOKENS": str(home.path("keys", "tokens")),
        "FERMION_ADMIN": keys.admin_uid,
        "FERMION_LOG_FORMAT": os.environ.get("FERMION_LOG_FORMAT", "json"),
        "PYTHONUNBUFFERED": "1",
    }
    found: list[Service] = []
    for replica in range(replicas):
        for group in groups:
            label = group[0] if replica == 0 else f"{group[0]}-{replica + 1}"
            wanted = port if port is not None and not found else kept.get(label)
            if wanted is None and not found:
                wanted = DEFAULT_PORT
            number = wanted if wanted is not None and _bindable(wanted) else free_port()
            if port is not None and not found and number != port:
                raise Refused(
                    "PORT_TAKEN",
                    f"Port {port} is used by another program.",
                    next_step="Say another one with --port, or none to have one chosen.",
                    port=str(port),
                )
            found.append(Service(label, group, number, {}, home.path("logs", f"{label}.log")))
    write_private(ports, json.dumps({one.label: one.port for one in found}))
    addresses = _addresses(found)
    for one in found:
        one.environment = {
            **common,
            **addresses,
            "FERMION_LISTEN": one.address,
            "FERMION_ADDRESS": found[0].address,
        }
    return found


def down(arguments: Sequence[str]) -> int:
    """Stop the embedded start of this folder, and wait until it is gone; the exit code."""
    argparse.ArgumentParser(prog="python -m services down", description=down.__doc__).parse_args(
        arguments
    )
    home = Home(default_home())
    holder = home.holder()
    if not holder:
        say(f"Nothing runs on {home.root}.")
        return 0
    try:
        process = psutil.Process(int(holder["pid"]))
    except (ValueError, psutil.NoSuchProcess):
        say(f"error: {home.root} is held, but its lock does not say by whom. Who has it open?")
        return 1
    process.terminate()
    deadline = time.monotonic() + DRAIN_SECONDS_MAX + 15
    # Free again is what counts: the process may still wait for its own parent to notice.
    while home.holder():
        if time.monotonic() > deadline:
            say(f"error: process {process.pid} does not end. Look at {home.path('logs')}.")
            return 1
        time.sleep(LOOP_SECONDS)
    say(f"Fermion on {home.root} has stopped.")
    return 0


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
    local["address"] = services[0].address
    local["token_file"] = str(home.path("keys", "admin.token"))
    local.pop("addresses", None)
    if services[0].targets != ("all",):
        local["addresses"] = {
            one.targets[0]: one.address for one in services if one.label == one.targets[0]
        }
    contexts["local"] = local
    current = known.get("current") or "local"
    write_private(path, json.dumps({"current": current, "contexts": contexts}, indent=2) + "\n")


def say(line: str, out: IO[str] | None = None) -> None:
    """Print a line now."""
    print(line, file=out or sys.stdout, flush=True)


def _addresses(services: Sequence[Service]) -> dict[str, str]:
    if services[0].targets == ("all",):
        return {}
    return {
        f"FERMION_ADDRESS_{one.targets[0].upper()}": one.address
        for one in services
        if one.label == one.targets[0]
    }


def _bindable(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def _how(process: subprocess.Popen[bytes]) -> str:
    code = process.returncode
    return signal.Signals(-code).name if code < 0 else f"exit {code}"
