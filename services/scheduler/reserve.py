"""Which nodes are kept for the one that has waited longest, and from when: those that free earliest."""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from services.scheduler.placement import (
    ANYWHERE,
    Load,
    Node,
    Nodes,
    Part,
    Placement,
    Room,
    Size,
    Where,
    emptied,
    openings,
    taken,
)


class Plan(NamedTuple):
    """A reservation: it can start then at the latest, on these nodes."""

    start: int
    # The nodes of each part, one for each of its replicas.
    nodes: Placement
    # Of each of those nodes, what others may hold beyond the start.
    slack: dict[str, Room]
    # Of each of those nodes, what is kept there.
    kept: dict[str, Load]

    def binds(self, end: int) -> bool:
        """Whether work that ends then has to fit beside it."""
        return end > self.start


def earliest(
    nodes: Nodes,
    parts: Sequence[Part],
    now: int,
    where: Where = ANYWHERE,
    kept: Mapping[str, Load] | None = None,
) -> Plan | None:
    """
    Find the nodes on which the parts can start first, if nothing new comes and all ends at its latest.

    What never ends by itself is waited for last, and counts as ended at FOREVER. `kept` is what
    earlier reservations keep, which is never given up. None where the nodes could not hold it.
    """
    before = dict(kept or {})
    own: dict[str, Load] = {}
    start = now
    chosen: list[tuple[str, ...]] = [()] * len(parts)
    order = sorted(range(len(parts)), key=lambda at: (*_largest(parts[at].size), at))
    for index in order:
        part = parts[index]
        found = _first(nodes, part, now, where, before)
        if found is None:
            return None
        chosen[index] = tuple(name for _, name in found)
        for time, name in found:
            start = max(start, time)
            before[name] = (*before.get(name, ()), (part.size, 1))
            own[name] = (*own.get(name, ()), (part.size, 1))
    slack = {name: _at(nodes.nodes[name], start, before[name]) for name in own}
    return Plan(start, tuple(chosen), slack, own)


def _first(
    nodes: Nodes, part: Part, now: int, where: Where, kept: Mapping[str, Load]
) -> list[tuple[int, str]] | None:
    """The first openings for a part over all nodes, by time and then by name."""
    if part.number == 0:
        return []
    found: list[tuple[int, str]] = []
    soonest: Iterable[tuple[int, str]] = [(0, part.pin)] if part.pin else nodes.soonest(part.size)
    for least, name in soonest:
        # No node from here on has an opening before this.
        bound = (least, name) if least > now else (now, "")
        if len(found) >= part.number and found[part.number - 1] < bound:
            break
        node = nodes.nodes.get(name)
        if node is None or not node.keys or not where.allows(node.shape):
            continue
        for time in openings(node, part.size, part.number, kept.get(name, ())):
            insort(found, (max(time, now), name))
    return found[: part.number] if len(found) >= part.number else None


def _at(node: Node, start: int, kept: Load) -> Room:
    """What is left of a node at a time, beside what is kept there."""
    room = node.room
    for end, _, load in node.ends:
        if end <= start:
            room = emptied(room, load)
    for size, number in kept:
        room = taken(room, size, number)
    return room


def _largest(size: Size) -> tuple[int, int, int]:
    return (-size.gpu_milli, -size.cpu_milli, -size.memory_bytes)
