"""Local clusters of tests: what runs on them outlives the platform, so whoever began it ends it."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

import psutil

from services.executor import keeping, limits

END_SECONDS_MAX = 20.0


def end(root: Path) -> None:
    """Kill everything that runs on the local cluster of a folder, and take its control groups away."""
    deadline = time.monotonic() + END_SECONDS_MAX
    while left := _processes(root):
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=2)
        assert time.monotonic() < deadline, left
    uid = root / "uid"
    if uid.exists():
        held = limits.probe(keeping.group_name(root, uid.read_text()))
        for replica in held.names():
            held.remove(replica)


def _processes(root: Path) -> list[psutil.Process]:
    """Shims of the folder, and whatever carries its mark."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        with suppress(psutil.Error):
            words = process.info["cmdline"] or []
            own = words and words[-1].startswith(f"{root}/")
            if own or process.environ().get("FERMION_ROOT", "").startswith(f"{root}/"):
                found.append(process)
    return found
