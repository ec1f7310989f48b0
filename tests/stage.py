"""A whole platform for tests: the embedded start in a folder of its own, and a user's command line."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from chassis.embedded import free_port
from tests.clusters import end

FERMION = str(Path(sys.executable).with_name("fermion"))
ROOT = Path(__file__).resolve().parent.parent
# Many at once on a machine of any size.
TINY = {"FERMION_INSTANCES_CPU_MIN": "1", "FERMION_INSTANCES_MEMORY_MIN": "1048576"}


@dataclass(frozen=True, slots=True)
class Answer:
    """What one command printed, and how it ended."""

    code: int
    out: str
    err: str

    def json(self) -> object:
        """What it printed, as a program reads it."""
        return json.loads(self.out)


class Stage:
    """One platform under test."""

    def __init__(
        self,
        home: Path,
        *arguments: str,
        settings: Mapping[str, str] | None = None,
        program: Sequence[str] = ("services", "up"),
    ) -> None:
        self.home = home
        self.arguments = arguments
        self.program = program
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None
        self.environment = {
            **os.environ,
            "FERMION_HOME": str(home),
            "NO_COLOR": "1",
            "COLUMNS": "200",
            **(settings or {}),
        }

    def up(self) -> None:
        """Start, and wait until a signed call is answered."""
        self.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (self.home / "up.log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", *self.program),
                    *("--port", str(self.port)),
                    *self.arguments,
                ],
                env=self.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
            )
        until(60, self._answers, self.log)

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log()
        return (self.home / "cli" / "contexts.json").exists() and self.cli("whoami").code == 0

    def down(self) -> None:
        """Stop it, however it stands."""
        if self.process is None:
            return
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(40)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.process = None
        end(self.home / "cluster")

    def cli(self, *words: str, environment: Mapping[str, str] | None = None) -> Answer:
        """Run one command as a user would."""
        done = subprocess.run(
            [FERMION, *words],
            env={**self.environment, **(environment or {})},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        return Answer(done.returncode, done.stdout, done.stderr)

    def ok(self, *words: str, environment: Mapping[str, str] | None = None) -> Answer:
        """Run one command that has to succeed."""
        answer = self.cli(*words, environment=environment)
        assert answer.code == 0, (words, answer)
        return answer

    def instance(self, name: str, project: str) -> dict[str, object]:
        """Read one instance as the API's message."""
        found = self.ok("instances", "get", name, "-p", project, "-o", "json").json()
        assert isinstance(found, dict)
        return found

    def state(self, name: str, project: str) -> str:
        """The state that a user sees, with its phase; empty where there is no such instance."""
        answer = self.cli("instances", "get", name, "-p", project, "-o", "json")
        if answer.code != 0:
            return ""
        found = json.loads(answer.out)["status"]
        return f"{found['state']} {found.get('phase', '')}".strip()

    def audit(self) -> None:
        """Every equality has to hold, once what is on its way has arrived."""
        answers: list[Answer] = []

        def holds() -> bool:
            answers.append(self.cli("audit", "-o", "wide"))
            return answers[-1].code == 0

        until(60, holds, lambda: answers[-1].out + answers[-1].err)

    def processes(self) -> list[psutil.Process]:
        """Every process below the supervisor."""
        assert self.process is not None
        return psutil.Process(self.process.pid).children(recursive=True)

    def answering(self, address: str) -> psutil.Process:
        """The process that listens there; others may come and go meanwhile."""
        port = int(address.rsplit(":", 1)[1])
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                for one in process.net_connections("tcp"):
                    if one.status == psutil.CONN_LISTEN and one.laddr.port == port:
                        return process
        raise AssertionError(f"nobody listens at {address}")

    def context(self) -> dict[str, object]:
        """The command line's context of it."""
        found = json.loads((self.home / "cli" / "contexts.json").read_text())
        local: dict[str, object] = found["contexts"]["local"]
        return local

    @property
    def address(self) -> str:
        """Where it answers; its first process, where there are several."""
        return str(self.context()["address"]).split(",")[0]

    def address_of(self, service: str) -> str:
        """Where one service answers; its first process, where it has several."""
        found = self.context().get("addresses")
        return str(found[service]).split(",")[0] if isinstance(found, dict) else self.address

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Calls of the admin that see everything done before: what a client sends, and no less."""
        told = self.ok("status", "-o", "json").json()
        assert isinstance(told, dict)
        seen = ",".join(
            f"{one['journal']}={one['head']}" for one in told["journals"] if "head" in one
        )
        return (("authorization", f"Bearer {self.token}"), ("fermion-after", seen))

    @property
    def token(self) -> str:
        """The admin's token."""
        return Path(str(self.context()["token_file"])).read_text().strip()

    def log(self) -> str:
        """What it printed last, for a failing test."""
        parts = []
        for path in [self.home / "up.log", *sorted((self.home / "logs").glob("*.log"))]:
            if path.exists():
                lines = path.read_text(errors="replace").splitlines()[-15:]
                parts.append(f"== {path.name}\n" + "\n".join(lines))
        return "\n".join(parts)


@contextlib.contextmanager
def staged(
    home: Path, *arguments: str, settings: Mapping[str, str] | None = None
) -> Iterator[Stage]:
    """A platform that is up, and down after it."""
    stage = Stage(home, *arguments, settings=settings)
    try:
        stage.up()
        yield stage
    finally:
        stage.down()


def until(seconds: float, holds: Callable[[], bool], explain: Callable[[], str]) -> None:
    """Wait for a condition; fail with an explanation where it does not come to hold in time."""
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            raise AssertionError(explain())
        time.sleep(0.05)
