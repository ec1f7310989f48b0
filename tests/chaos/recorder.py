"""
Watches the mains of a local cluster from outside, and writes down when each of them ended.

    python recorder.py REPLICAS_FOLDER OUTPUT

It finds each run in the shims' records, takes a pidfd of its process and waits for it. One line a
run: replica folder, replica uid, ordinal, the end in nanoseconds of the wall clock as this process
saw it.
"""

from __future__ import annotations

import os
import select
import sys
import time
from pathlib import Path

from services.executor import shim

LOOK_SECONDS = 0.01


def main(replicas: Path, output: Path) -> None:
    """Watch until killed."""
    poller = select.poll()
    watched: dict[int, tuple[str, str, int]] = {}
    seen: set[tuple[str, str, int]] = set()
    looked = 0.0
    with output.open("a", buffering=1) as file:

        def wait(seconds: float) -> None:
            """Write down what ends in so long."""
            for descriptor, _ in poller.poll(seconds * 1000):
                at = time.time_ns()
                name, uid, ordinal = watched.pop(descriptor)
                poller.unregister(descriptor)
                os.close(descriptor)
                file.write(f"{name} {uid} {ordinal} {at}\n")

        while True:
            wait(LOOK_SECONDS)
            if time.monotonic() < looked + LOOK_SECONDS:
                continue
            looked = time.monotonic()
            for folder in replicas.iterdir() if replicas.exists() else ():
                # There may be hundreds, and what ends meanwhile ended now.
                wait(0)
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
                    watched[descriptor] = key
                    poller.register(descriptor, select.POLLIN)


if __name__ == "__main__":
    os.nice(-5) if os.getuid() == 0 else None
    main(Path(sys.argv[1]), Path(sys.argv[2]))
