"""
A shim on a machine that sleeps, or is busy, when a test says so.

    python -I asleep.py FOLDER

runs the replica of FOLDER with clocks that jump by the seconds in FOLDER/asleep, once it is there;
and that say of each wait that it went on for as many seconds as FOLDER/busy has, until it had its turn.
While there is a FOLDER/hold it stands still before it waits, and FOLDER/held is there.
"""

import importlib.util
import os
import sys
import time
from contextlib import suppress
from pathlib import Path

SHIM = Path(__file__).parents[2] / "services" / "executor" / "shim.py"

spec = importlib.util.spec_from_file_location("shim", SHIM)
assert spec is not None
assert spec.loader is not None
shim = importlib.util.module_from_spec(spec)
spec.loader.exec_module(shim)


class Asleep(shim.Clock):
    """The kernel's clocks, had the machine slept, or been busy."""

    waited = asked = 0

    def boottime(self) -> int:
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME) + said("asleep")

    def turns(self) -> shim.Turns:
        while os.path.lexists(f"{sys.argv[1]}/hold"):
            with suppress(FileExistsError):
                os.symlink("-", f"{sys.argv[1]}/held")
            time.sleep(0.01)
        self.waited += said("busy")
        self.asked += 1
        return shim.Turns(self.waited, self.asked, 0)


def said(name: str) -> int:
    try:
        return int(float(os.readlink(f"{sys.argv[1]}/{name}")) * 10**9)
    except OSError:
        return 0


shim.main(sys.argv[1], Asleep())
