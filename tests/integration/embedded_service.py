"""
Stands in for a process of services where a test is about who starts it.

    python -m tests.integration.embedded_service TARGET ...

Listens at FERMION_LISTEN, writes its environment beside its log, ends at SIGTERM. While the file
`FERMION_HOME/<label>.fails` is there it ends at once with exit code 3, and while
`<label>.refuses` is, as a process does whose start nothing but an operator can mend.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from pathlib import Path

from chassis.process import EXIT_REFUSED


def main() -> int:
    """Be there until told to go."""
    home, name = Path(os.environ["FERMION_HOME"]), "-".join(sys.argv[1:])
    if (home / f"{name}.fails").exists():
        print("this one cannot start", flush=True)
        return 3
    if (home / f"{name}.refuses").exists():
        print(json.dumps({"level": "ERROR", "message": "this one is not set up"}), flush=True)
        return EXIT_REFUSED
    host, port = os.environ["FERMION_LISTEN"].rsplit(":", 1)
    ours = {key: value for key, value in os.environ.items() if key.startswith("FERMION_")}
    told = home / "logs" / f"{port}.json"
    # Whoever looks while it is started again sees the former one, or this one.
    part = told.with_suffix(".part")
    part.write_text(json.dumps({**ours, "pid": os.getpid()}))
    part.replace(told)
    with socket.create_server((host, int(port))):
        signal.sigwait({signal.SIGTERM})
    print("drained", flush=True)
    return 0


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    sys.exit(main())
