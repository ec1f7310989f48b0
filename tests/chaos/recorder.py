"""
Watches the mains of a local cluster from outside, and writes down when each of them ended.

    python -m tests.chaos.recorder REPLICAS_FOLDER OUTPUT

It finds each run in the shims' records and takes a pidfd of its process. Another process waits for
these and does nothing else: where it may, it runs before all that is not as urgent, so that what it
writes down is when they ended and not when it was its turn. The first line says whether: FIRST or
SHARING. Then one line a run: replica folder, replica uid, ordinal, the end in nanoseconds of the
wall clock as this process saw it.
"""

from __future__ import annotations

import os
import select
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path

from services.executor import shim

LOOK_SECONDS = 0.01
WORDS_MAX = 4096
FIRST, SHARING = "first", "sharing"


def main(replicas: Path, output: Path) -> None:
    """Watch until the input ends; the lines are written then, for no disk may hold this up."""
    found, sent = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if os.fork() == 0:
        found.close()
        look(replicas, sent)
        os._exit(0)
    sent.close()
    lines: list[str] = []
    watch(found, lines)
    output.write_text("".join(f"{line}\n" for line in lines))


def look(replicas: Path, sent: socket.socket) -> None:
    """Send a pidfd of each run that is found."""
    seen: set[tuple[str, str, int]] = set()
    poller = select.poll()
    poller.register(sent, select.POLLHUP)
    while not poller.poll(LOOK_SECONDS * 1000):
        for folder in replicas.iterdir() if replicas.exists() else ():
            try:
                record = shim.read_record(str(folder))
                uid = shim.Words(shim.read_file(str(folder / "spec"))).one("uid")
            except (OSError, KeyError, ValueError):
                continue
            for start, end in record.runs[-1:] if record else ():
                key = (folder.name, uid, start.ordinal)
                if end is not None or key in seen or shim.started(start.pid) != start.ticks:
                    continue
                try:
                    descriptor = os.pidfd_open(start.pid)
                except ProcessLookupError:
                    continue
                seen.add(key)
                words = f"{folder.name} {uid} {start.ordinal}"
                socket.send_fds(sent, [words.encode()], [descriptor])
                os.close(descriptor)


def watch(found: socket.socket, lines: list[str]) -> None:
    """Note when each process ends that is sent, until the input ends."""
    turn = SHARING
    with suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
        turn = FIRST
    lines.append(turn)
    poller = select.poll()
    poller.register(found, select.POLLIN)
    poller.register(sys.stdin, select.POLLHUP)
    watched: dict[int, str] = {}
    while True:
        ready = poller.poll()
        at = time.time_ns()
        for descriptor, _ in ready:
            if descriptor == sys.stdin.fileno():
                return
            if descriptor != found.fileno():
                lines.append(f"{watched.pop(descriptor)} {at}")
                poller.unregister(descriptor)
                os.close(descriptor)
                continue
            words, sent, _, _ = socket.recv_fds(found, WORDS_MAX, 1)
            assert words, "nobody looks any more"
            watched[sent[0]] = words.decode()
            poller.register(sent[0], select.POLLIN)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
