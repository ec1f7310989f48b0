"""
Nothing is lost and nothing happens twice, whatever is done to a platform: play a round and count.

    python -m tests.chaos --duration 600 --seed 7

Prints each fault with its time, writes `build/chaos.json`, and ends with 1 where something does not
hold. A seed names the order of faults and calls.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
from pathlib import Path
from typing import Final

from tests.chaos.nets import NETWORK, UNSHARE, runs
from tests.chaos.round import play
from tests.chaos.stand import APART, MOUNT, NET
from tests.stage import ROOT

MOUNTS: Final = ("--mount", "--propagation", "private")


def main() -> int:
    """Play it; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--duration", type=float, default=600.0, help="seconds of faults")
    parser.add_argument("--seed", type=int, default=None, help="random unless given")
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "chaos.json")
    parser.add_argument(
        "--only", action="append", default=[], metavar="KIND", help="to narrow down: only this kind"
    )
    parser.add_argument("--keep", type=Path, help="an empty folder whose content is kept")
    asked = parser.parse_args()
    apart()
    seed = random.SystemRandom().randrange(10**6) if asked.seed is None else asked.seed
    print(f"seed {seed}, {asked.duration:.0f} s", flush=True)
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        report = play(asked.keep or Path(folder), asked.duration, seed, asked.only)
    report.write(asked.output)
    print(report.summary())
    return 1 if report.broken else 0


def apart() -> None:
    """Begin again in namespaces of one's own, of mounts and network, where this process may make them."""
    if os.environ.get(APART) or os.getuid() != 0:
        return
    for kinds, words in (
        (f"{MOUNT} {NET}", ("unshare", *MOUNTS, *NETWORK)),
        (NET, UNSHARE),
        (MOUNT, ("unshare", *MOUNTS)),
    ):
        if runs(*words, "true"):
            os.environ[APART] = kinds
            os.execvp("unshare", (*words, sys.executable, "-m", "tests.chaos", *sys.argv[1:]))


if __name__ == "__main__":
    sys.exit(main())
