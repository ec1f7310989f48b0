"""Programs that end with the process that started them, and need not run as root."""

from __future__ import annotations

import enum
import os
import pwd
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Final

from chassis.refusals import Refused

LAUNCHER: Final = Path(__file__).with_name("launcher.py")
PROBE_SECONDS_MAX: Final = 20.0
LOG_BYTES_READ: Final = 4096


class Standing(enum.StrEnum):
    """As whom a program runs."""

    DIRECT = "direct"
    """As who we are."""

    NAMESPACE = "namespace"
    """As somebody in a user namespace who is root outside."""

    ACCOUNT = "account"
    """As an ordinary account, which owns what the program writes."""


def spawn(
    command: Sequence[str],
    *,
    output: IO[bytes] | int,
    environment: dict[str, str] | None = None,
    standing: Standing = Standing.DIRECT,
    death: signal.Signals = signal.SIGKILL,
) -> subprocess.Popen[bytes]:
    """
    Start a program that gets the signal `death` when this process dies, however it dies.

    Call it from the main thread (else RuntimeError): the kernel ties the signal to the thread
    that started the program. A `standing` that this machine does not allow ends the program at
    once; ask `ordinary` first.
    """
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("a program that ends with its parent is started from the main thread")
    uid = gid = 0
    if standing is not Standing.DIRECT:
        found = account()
        uid, gid = found.pw_uid, found.pw_gid
    return subprocess.Popen(
        [
            *(sys.executable, "-I", "-S", str(LAUNCHER)),
            *(str(os.getpid()), str(int(death)), standing.value, str(uid), str(gid), "--"),
            *command,
        ],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        env=environment,
        # A Ctrl-C in the terminal is for this process alone, which then stops the others in order.
        start_new_session=True,
    )


def ordinary() -> Standing:
    """Find out how a program can run here as somebody else than root; NO_ORDINARY_USER if it cannot."""
    if os.getuid() != 0:
        return Standing.DIRECT
    for standing in (Standing.NAMESPACE, Standing.ACCOUNT):
        if allows(standing):
            return standing
    raise Refused(
        "NO_ORDINARY_USER",
        "PostgreSQL does not run as root, and this machine allows neither a user namespace nor "
        "to become another user.",
        next_step="Start as another user than root, or name a database in FERMION_POSTGRES_DSN.",
    )


def allows(standing: Standing) -> bool:
    """Tell whether this machine lets a program run so."""
    process = spawn(
        [sys.executable, "-I", "-S", "-c", ""], output=subprocess.DEVNULL, standing=standing
    )
    return process.wait(PROBE_SECONDS_MAX) == 0


def account() -> pwd.struct_passwd:
    """An account other than root that every Linux has; only its number is used."""
    for name in ("nobody", "daemon"):
        with suppress(KeyError):
            return pwd.getpwnam(name)
    raise Refused(
        "NO_ORDINARY_USER",
        "/etc/passwd has neither `nobody` nor `daemon`, and PostgreSQL does not run as root.",
        next_step="Start as another user than root, or name a database in FERMION_POSTGRES_DSN.",
    )


def last_lines(log: Path, lines: int = 3) -> str:
    """What a program's log says last, in one line; empty where there is no log."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - LOG_BYTES_READ))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    return " | ".join(line.strip() for line in text.splitlines()[-lines:])
