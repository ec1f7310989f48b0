"""The embedded start whose services reach everything by wires: `python -m tests.chaos.up`."""

from __future__ import annotations

import sys
from pathlib import Path

from services import supervisor

MEMBER = Path(__file__).with_name("member.py")

if __name__ == "__main__":
    command = (sys.executable, "-I", "-S", str(MEMBER))
    sys.exit(supervisor.up(sys.argv[1:], command=command))
