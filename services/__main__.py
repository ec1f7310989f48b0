"""
Run the platform, or a part of it.

    python -m services all                     every service in this process
    python -m services instances scheduler     some of them
    python -m services up [--split]            the embedded start: PostgreSQL, NATS and services
    python -m services down                    stop an embedded start
    python -m services backup FOLDER           write a backup of one that runs
    python -m services restore BACKUP          put a backup back, into an empty folder
    python -m services config                  every setting, explained
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence

from chassis import config, process
from chassis.config import Common
from services import supervisor
from services.backup import backup
from services.restore import restore
from services.serve import TARGETS


def main(arguments: Sequence[str]) -> int:
    """Do what the first word says; the exit code."""
    match arguments:
        case [] | ["-h" | "--help", *_]:
            print(__doc__, file=sys.stdout if arguments else sys.stderr)
            return 0 if arguments else 2
        case ["config"]:
            print(config.table({"every process": Common, **_settings()}))
            return 0
        case ["config", *rest]:
            print(f"error: config takes no more words; {' '.join(rest)!r} is one.", file=sys.stderr)
            return 2
        case ["up", *rest]:
            return supervisor.up(rest)
        case ["down", *rest]:
            return supervisor.down(rest)
        case ["backup", *rest]:
            return backup(rest)
        case ["restore", *rest]:
            return restore(rest)
        case ["all"]:
            return process.main(TARGETS, list(TARGETS))
    for name in arguments:
        if name not in TARGETS:
            known = [*TARGETS, "all", "up", "down", "backup", "restore", "config"]
            near = difflib.get_close_matches(name, known, 1)
            hint = f" Did you mean {near[0]}?" if near else ""
            told = f"error: There is no service {name!r}; there are {', '.join(known)}.{hint}"
            print(told, file=sys.stderr)
            return 2
    return process.main(TARGETS, list(dict.fromkeys(arguments)))


def _settings() -> dict[str, type[object]]:
    return {name: target.settings for name, target in TARGETS.items()}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
