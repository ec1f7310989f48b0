"""What can be told about named statements without a database."""

from __future__ import annotations

import re
from collections.abc import Iterable

from chassis.journal import Write
from chassis.queries import Queries


def misfits(queries: Queries, writes: Iterable[Write]) -> list[str]:
    """Name writes whose statement is not there, or takes another number of arguments."""
    found = []
    for write in writes:
        if write.statement not in queries:
            found.append(f"{write.statement} is no statement")
            continue
        taken = max(int(n) for n in re.findall(r"\$(\d+)", queries[write.statement]))
        if taken != len(write.arguments):
            found.append(f"{write.statement} takes {taken}, and {len(write.arguments)} are given")
    return found
