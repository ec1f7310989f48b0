"""Command lines in pseudo-terminals, without a fork: one breaks what serves gRPC in this process."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Mapping, Sequence
from pathlib import Path

from pexpect import EOF, fdpexpect

# Makes its input the terminal of its session, and becomes the command.
LOGIN = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
    "os.execvp(sys.argv[1], sys.argv[1:])"
)
FERMION = (sys.executable, "-m", "fermion.cli")


class Typed:
    """One command in a terminal of its own."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        folder: Path | None = None,
        environment: Mapping[str, str] | None = None,
        rows: int = 30,
        columns: int = 90,
    ) -> None:
        self.ours, theirs = pty.openpty()
        resize(self.ours, rows, columns)
        self.process = subprocess.Popen(
            login(command),
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            cwd=folder,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
        )
        os.close(theirs)
        self.screen = fdpexpect.fdspawn(self.ours, timeout=30)

    def types(self, text: str) -> None:
        """Type it, and press enter."""
        self.screen.send(f"{text}\n")

    def presses(self, key: bytes) -> None:
        """Press one key."""
        self.screen.send(key)

    def shows(self, text: str) -> None:
        """Wait until it is shown."""
        self.screen.expect_exact(text.encode())

    def ends(self) -> int:
        """Wait until it has ended; its exit code."""
        self.screen.expect(EOF)
        return self.process.wait(30)

    def close(self) -> None:
        """End it, if it has not ended."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(30)
        os.close(self.ours)


def terminal_text(columns: int, *words: str) -> str:
    """All that the command line prints on a terminal so wide, without what makes it bold."""
    # Not forked, as pexpect does: the threads of gRPC would tell the terminal what they think of that.
    typed = Typed((*FERMION, *words), rows=24, columns=columns)
    try:
        typed.ends()
        text = (typed.screen.before or b"").decode()
    finally:
        typed.close()
    return text.replace("\x1b[1m", "").replace("\x1b[0m", "")


def login(command: Sequence[str]) -> Sequence[str]:
    """A command that has its input as its terminal."""
    return [sys.executable, "-IS", "-c", LOGIN, *command]


def resize(terminal: int, rows: int, columns: int) -> None:
    """Give a terminal another size."""
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))
