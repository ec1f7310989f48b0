"""What a demonstration stands on: a story that counts its checks, and a platform of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil

FERMION = str(Path(sys.executable).with_name("fermion"))


@dataclass
class Story:
    """Prints what happens, and counts the checks."""

    held: int = 0
    broken: list[str] = field(default_factory=list)
    chapters: int = 0
    began: float = field(default_factory=time.monotonic)

    def chapter(self, title: str) -> None:
        """Begin a part of the story."""
        self.chapters += 1
        print(
            f"\n\033[1m{self.chapters}. {title}\033[0m   ({time.monotonic() - self.began:.1f} s)",
            flush=True,
        )

    def check(self, sentence: str, holds: bool, found: object = "") -> None:
        """Say a sentence, and whether it is so."""
        if holds:
            self.held += 1
        else:
            self.broken.append(sentence)
        mark = "\033[32m✓\033[0m" if holds else "\033[31m✗\033[0m"
        print(f"  {mark} {sentence}" + ("" if holds else f"   found: {found}"), flush=True)


@dataclass(frozen=True)
class Answer:
    """What one command printed."""

    code: int
    out: str
    err: str


class Platform:
    """The embedded start in a folder of its own."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.environment = {**os.environ, "FERMION_HOME": str(home), "NO_COLOR": "1"}
        self.process: subprocess.Popen[str] | None = None

    def cli(self, *words: str, show: bool = True) -> Answer:
        """Run one command as a user would."""
        if show:
            print(f"\n  $ fermion {' '.join(words)}", flush=True)
        done = subprocess.run(
            [FERMION, *words],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        if show:
            for line in (done.stdout + done.stderr).rstrip().splitlines()[:14]:
                print(f"    {line}", flush=True)
        return Answer(done.returncode, done.stdout, done.stderr)

    def up(self) -> None:
        """Start it, and wait until a command is answered."""
        log = (self.home / "demo.log").open("a")
        self.process = subprocess.Popen(
            [FERMION, "up"], env=self.environment, stdout=log, stderr=subprocess.STDOUT, text=True
        )
        self.answered(60)

    def answered(self, seconds: float) -> float:
        """Wait until a command is answered; tell how long it took."""
        began = time.monotonic()
        while time.monotonic() - began < seconds:
            if self.process is not None and self.process.poll() is not None:
                break
            if self.cli("whoami", "-o", "json", show=False).code == 0:
                return time.monotonic() - began
            time.sleep(0.1)
        tail = (self.home / "demo.log").read_text().splitlines()[-20:]
        raise SystemExit("The platform did not answer. Its last lines:\n" + "\n".join(tail))

    def processes(self) -> list[psutil.Process]:
        """Every process below the supervisor."""
        assert self.process is not None
        return psutil.Process(self.process.pid).children(recursive=True)

    @property
    def address(self) -> str:
        """Where it listens, as the command line's context has it."""
        return str(self._context()["address"])

    @property
    def token(self) -> str:
        """The admin's token."""
        return Path(str(self._context()["token_file"])).read_text().strip()

    def _context(self) -> dict[str, object]:
        contexts = json.loads((self.home / "cli" / "contexts.json").read_text())
        found: dict[str, object] = contexts["contexts"]["local"]
        return found


def rows(answer: Answer) -> list[dict[str, object]]:
    """Read a list as `-o json` prints it."""
    found = json.loads(answer.out)
    if isinstance(found, dict):
        found = next((value for value in found.values() if isinstance(value, list)), [])
    return list(found)


def until(seconds: float, holds: Callable[[], bool]) -> bool:
    """Wait for something to be so; False where it was not in time."""
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True
