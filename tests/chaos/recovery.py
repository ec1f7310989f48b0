"""How soon each part is back when it alone is killed, against a bare start of the same beside it."""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from chassis.embedded import Nats, Postgres, free_port
from tests.chaos.faults import FULL_SECONDS
from tests.chaos.report import Recovery, Report, over
from tests.chaos.stand import SERVERS, SERVICES, Stand
from tests.stage import ROOT

OVER_BARE_SECONDS_MAX: Final = 1.0
BACK_SECONDS_MAX: Final = 60.0
# What starts again at once has lived so long before: the supervisor backs off otherwise.
STEADY_SECONDS: Final = 10.5
FULL_ROUNDS: Final = 5
LOOK_SECONDS: Final = 0.01
# What `python -m services` imports, and a port.
BARE: Final = "import socket, services.__main__; it = socket.create_server(('127.0.0.1', {port}))"


def measure(stand: Stand, report: Report) -> None:
    """
    Kill each part some times, and start the same bare at the same moment: a busy machine slows both.

    One time of each says little, so that only a full round judges.
    """
    rounds = FULL_ROUNDS if report.duration >= FULL_SECONDS else 1
    seconds: dict[str, list[float]] = {part: [] for part in (*SERVICES, *SERVERS)}
    bare: dict[str, list[float]] = {part: [] for part in seconds}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds):
            began = time.monotonic()
            for part in seconds:
                took, took_bare = race(stand, part, Path(folder) / f"{part}{number}")
                seconds[part].append(took)
                bare[part].append(took_bare)
            time.sleep(max(0.0, began + STEADY_SECONDS - time.monotonic()))
    report.recoveries = [Recovery(part, seconds[part], bare[part]) for part in seconds]
    for one in report.recoveries if rounds == FULL_ROUNDS else ():
        report.check(
            max(over(one)) <= OVER_BARE_SECONDS_MAX,
            f"{one.part} is back within {OVER_BARE_SECONDS_MAX} s over a bare start",
            (one.seconds, one.bare),
        )


def race(stand: Stand, part: str, folder: Path) -> tuple[float, float]:
    """Kill a part and start it bare; seconds until the one serves again, and the other could."""
    victim = stand.process(part)
    assert victim is not None, f"{part} is not there"
    start, ready, stop = starter(part, folder)
    descriptor = os.pidfd_open(victim.pid)
    victim.kill()
    # Until then its port may be open.
    select.select([descriptor], [], [], BACK_SECONDS_MAX)
    os.close(descriptor)
    began = time.monotonic()
    start()
    took: dict[str, float] = {}
    try:
        while len(took) < 2:
            if "part" not in took and stand.serves(part):
                took["part"] = time.monotonic() - began
            if "bare" not in took and ready():
                took["bare"] = time.monotonic() - began
            assert time.monotonic() < began + BACK_SECONDS_MAX, f"{part} does not come back"
            time.sleep(LOOK_SECONDS)
    finally:
        stop()
    return took["part"], took["bare"]


def starter(
    part: str, folder: Path
) -> tuple[Callable[[], None], Callable[[], bool], Callable[[], None]]:
    """How the same is started with nothing behind it, when it could serve, and how it is ended."""
    if part in SERVERS:
        server = Postgres(folder) if part == "postgres" else Nats(folder, SERVICES)
        # The first start makes the files; the second is compared.
        server.start()
        server.wait_ready()
        server.stop()
        return server.start, server.ready, server.stop
    port = free_port()
    process: list[subprocess.Popen[bytes]] = []

    def start() -> None:
        code = f"{BARE.format(port=port)}; input()"
        process.append(
            subprocess.Popen(
                [sys.executable, "-c", code],
                stdin=subprocess.PIPE,
                cwd=ROOT,
                # As the supervisor starts its own: a session is given its share of a busy machine.
                start_new_session=True,
            )
        )

    def ready() -> bool:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return True
        return False

    def stop() -> None:
        for one in process:
            one.kill()
            one.wait()

    return start, ready, stop
