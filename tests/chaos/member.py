"""
Becomes one process of services whose connections go by wires; run by path, to cost nothing.

    python -I -S member.py TARGET…

`$FERMION_HOME/wires.json` has, by where a process listens, which address it takes for which.
"""

import json
import os
import sys

KEPT = ("FERMION_LISTEN", "FERMION_METRICS_LISTEN")


def main() -> None:
    """Become it."""
    with open(f"{os.environ['FERMION_HOME']}/wires.json") as file:
        taken = json.load(file)[os.environ["FERMION_LISTEN"]]
    for name, value in os.environ.items():
        if name.startswith("FERMION_") and name not in KEPT:
            for address, wire in taken.items():
                value = value.replace(address, wire)
            os.environ[name] = value
    os.execv(sys.executable, [sys.executable, "-m", "services", *sys.argv[1:]])


if __name__ == "__main__":
    main()
