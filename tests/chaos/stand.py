"""A platform under test whose processes, connections and disks are all within reach."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import asyncpg
import psutil

from chassis.bus import Bus
from chassis.embedded import Postgres, free_port
from chassis.postgres import LOST
from services.executor import shim
from services.serve import TARGETS
from tests.stage import ROOT, TINY, Stage

MIB: Final = 2**20
REPLICAS: Final = 2
SERVICES: Final = tuple(TARGETS)
LABELS: Final = (*SERVICES, *(f"{name}-2" for name in SERVICES))
SERVERS: Final = ("postgres", "nats")
# Says which namespaces the round has of its own.
APART: Final = "FERMION_CHAOS_APART"
MOUNT, NET = "mount", "net"
# Small disks of their own, where this process may mount: what lies on them, and how large.
DISKS: Final[Mapping[str, tuple[str, int]]] = {
    "postgres": ("postgres", 2048 * MIB),
    "nats": ("nats/store", 512 * MIB),
    "cluster": ("cluster", 512 * MIB),
}


class Unanswered(Exception):
    """PostgreSQL does not answer just now."""


@dataclass
class Stand:
    """The stage, what connects its parts, and where everything of it is."""

    stage: Stage
    ports: dict[str, int]
    wires: subprocess.Popen[bytes]
    # Whether the network lies in namespaces, and loses what is partitioned.
    links: bool
    # Names of those that lie on a small disk of their own.
    disks: list[str] = field(default_factory=list)

    @property
    def home(self) -> Path:
        """The platform's state."""
        return self.stage.home

    @property
    def supervisor(self) -> psutil.Process:
        """What starts again what dies."""
        assert self.stage.process is not None
        return psutil.Process(self.stage.process.pid)

    def process(self, label: str) -> psutil.Process | None:
        """One process of services by its label, or a server; None while it is not there."""
        for process in self.supervisor.children():
            with contextlib.suppress(psutil.Error):
                words = process.cmdline()
                if label in SERVERS:
                    program = "nats-server" if label == "nats" else "postgres"
                    if words and Path(words[0]).name == program:
                        return process
                elif words[-3:] == ["-m", "services", label.removesuffix("-2")] and (
                    process.environ().get("FERMION_LISTEN") == f"127.0.0.1:{self.ports[label]}"
                ):
                    return process
        return None

    def shims(self) -> list[tuple[str, psutil.Process]]:
        """Shims that live, with the names of their folders, in the order of these."""
        found = []
        for process in psutil.process_iter(["cmdline"]):
            folder = (process.info["cmdline"] or [""])[-1]
            if folder.startswith(f"{self.replicas}/"):
                found.append((Path(folder).name, process))
        return sorted(found, key=lambda each: each[0])

    @property
    def replicas(self) -> Path:
        """Folders of what the local cluster runs."""
        return self.home / "cluster" / "replicas"

    def kept(self) -> Iterator[tuple[str, shim.Record]]:
        """The shims' records by replica uid, of what was released."""
        for folder in (self.home / "cluster" / "kept").iterdir():
            record = shim.read_record(str(folder))
            assert record is not None, folder
            yield folder.name, record

    def serves(self, label: str) -> bool:
        """Whether a part is in service: a port that is open, or a server that greets."""
        try:
            with socket.create_connection(("127.0.0.1", self.ports[label]), 1) as connection:
                if label == "nats":
                    return connection.recv(4) == b"INFO"
                if label == "postgres":
                    body = b"\0\3\0\0user\0fermion\0database\0postgres\0\0"
                    connection.sendall((len(body) + 4).to_bytes(4, "big") + body)
                    return connection.recv(1) == b"R"
                return True
        except OSError:
            return False

    def order(self, wire: str, order: str, way: str = "out") -> None:
        """Tell a wire what to do."""
        assert self.wires.stdin is not None
        line = json.dumps({"wire": wire, "order": order, "way": way}) + "\n"
        self.wires.stdin.write(line.encode())
        self.wires.stdin.flush()

    @property
    def dsn(self) -> str:
        """How to reach PostgreSQL, by no wire."""
        return Postgres(self.home / "postgres", tcp_port=self.ports["postgres"]).dsn

    async def ask(self, sql: str, *arguments: object) -> list[asyncpg.Record]:
        """Ask PostgreSQL itself; Unanswered where it cannot say."""
        try:
            connection = await asyncpg.connect(self.dsn, timeout=10, command_timeout=60)
            try:
                return await connection.fetch(sql, *arguments)
            finally:
                connection.terminate()
        except (*LOST, asyncpg.PostgresError) as error:
            raise Unanswered(repr(error)) from error

    def bus(self, service: str) -> Bus:
        """The broker as a service may use it, by no wire."""
        key = self.home / "nats" / "keys" / f"{service}.nk"
        return Bus(f"nats://127.0.0.1:{self.ports['nats']}", service, key)

    def journal(self, service: str) -> str:
        """The one journal of a service."""
        shard = (self.home / "cluster" / "uid").read_text() if service == "executor" else "0"
        return f"{service}/{shard}"


@contextlib.contextmanager
def standing(home: Path) -> Iterator[Stand]:
    """A platform of two processes a service, up and wired, and down after it."""
    home.mkdir(mode=0o700, parents=True)
    stage = Stage(
        home,
        *("--split", "--replicas", str(REPLICAS), "--postgres-tcp"),
        settings=TINY,
        program=("tests.chaos.up",),
    )
    ports = {label: free_port() for label in (*LABELS, *SERVERS)} | {LABELS[0]: stage.port}
    (home / "ports.json").write_text(json.dumps({**ports, "nats": 0}))
    (home / "nats").mkdir(mode=0o700)
    (home / "nats" / "port").write_text(f"{ports['nats']}\n")
    links = _apart(NET)
    wires = _wire(home, ports, links)
    stand = Stand(stage, ports, wires, links)
    try:
        for name, (folder, size) in DISKS.items():
            if _mounted(home / folder, size):
                stand.disks.append(name)
        stage.up()
        yield stand
    finally:
        stage.down()
        wires.kill()
        wires.wait()
        for name in stand.disks:
            subprocess.run(["umount", "--lazy", str(home / DISKS[name][0])], check=False)


def _wire(home: Path, ports: Mapping[str, int], links: bool) -> subprocess.Popen[bytes]:
    """Lay a wire from each process to each other process and server, and let them carry."""
    pairs = [(source, target) for source in LABELS for target in (*LABELS, *SERVERS)]
    wires = [
        {"name": f"{source} {target}", "to": ports[target], "frames": target == "nats"}
        for source, target in pairs
    ]
    plan = home / "wires.plan.json"
    plan.write_text(json.dumps({"links": links, "wires": wires}))
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.chaos.wires", str(plan)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
        # A Ctrl-C is for the round, which ends what it has started.
        start_new_session=True,
    )
    assert process.stdout is not None
    laid = json.loads(process.stdout.readline())
    taken: dict[str, dict[str, str]] = {}
    for source, target in pairs:
        own = taken.setdefault(f"127.0.0.1:{ports[source]}", {})
        own[f"127.0.0.1:{ports[target]}"] = laid[f"{source} {target}"]
    (home / "wires.json").write_text(json.dumps(taken))
    return process


def _apart(kind: str) -> bool:
    """Whether this process has a namespace of its own: what it makes there is gone with it."""
    return kind in os.environ.get(APART, "").split()


def _mounted(folder: Path, size: int) -> bool:
    """Give a folder a small disk of its own; False where this process may not."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not _apart(MOUNT):
        return False
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size},mode=0700", "fermion-chaos", str(folder)],
        capture_output=True,
        check=False,
    )
    return done.returncode == 0
