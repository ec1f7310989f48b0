"""
A process that holds the embedded servers until it is killed.

    python -m tests.integration.embedded_holder FOLDER STANDING

Prints, as JSON, the process ids of PostgreSQL and NATS and how to reach them.
"""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

from chassis.embedded import Home, Nats, Postgres, Standing


def main() -> None:
    """Start both, say so, and wait for the end."""
    home = Home(Path(sys.argv[1]))
    home.prepare()
    home.hold("here")
    postgres = Postgres(home.path("postgres"), standing=Standing(sys.argv[2]))
    nats = Nats(home.path("nats"), ("sample", "other"))
    for server in (postgres, nats):
        server.start()
        server.wait_ready()
    assert postgres.process is not None
    assert nats.process is not None
    pids = [postgres.process.pid, nats.process.pid]
    print(json.dumps({"pids": pids, "dsn": postgres.dsn, "url": nats.url}), flush=True)
    signal.pause()


if __name__ == "__main__":
    main()
