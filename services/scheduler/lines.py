"""
The queue as lines of workloads that no rule but age tells apart, and what passes remember of them.

A shape that did not fit is tried again when a node that could hold a replica of it has grown, or
less is kept for others; a line that a quota stopped, when that quota has room. What is remembered
of a shape dies with its last line: one that comes back may find other nodes.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple, TypeAlias

from services.scheduler.demand import CLASSES, RESERVED, Item, Line, Request, Work
from services.scheduler.placement import ANY, DEVICE, FOREVER, Nodes, Room, Size, count, grew
from services.scheduler.reserve import Plan

# With more nodes than these there is hope for long, and looking for it costs more than trying.
GROWN_MAX: Final = 64
# A model of GPU, and how many whole devices.
Needs: TypeAlias = tuple[str, int]


class Reserved(NamedTuple):
    """What is kept for one workload."""

    uid: str
    klass: int
    cluster: str
    plan: Plan

    def binds(self, klass: int, end: int) -> bool:
        """Whether one of this class that ends then has to fit beside it."""
        return klass >= self.klass and self.plan.binds(end)

    def eased(self, before: Reserved) -> bool:
        """Whether something may fit beside it that did not before."""
        return (
            (self.klass, self.cluster) != (before.klass, before.cluster)
            or self.plan.start > before.plan.start
            or set(self.plan.slack) != set(before.plan.slack)
            or any(grew(before.plan.slack[node], room) for node, room in self.plan.slack.items())
        )


class Shape:
    """One request, the lines that have it, and why it is not tried; compared by identity."""

    __slots__ = ("again_time", "behind", "dead", "flavour", "hopes", "request", "rows")

    def __init__(self, request: Request) -> None:
        self.request = request
        self.flavour = request.flavour
        self.rows: set[Row] = set()
        # It did not fit; `behind`: it would, were nothing kept for others.
        self.dead = False
        self.behind = False
        self.again_time = FOREVER
        # It did not fit, and may by now on some of the nodes that have grown: (cluster, node) of
        # each, in batches that many shapes share.
        self.hopes: list[Sequence[tuple[str, str]]] = []


class Row:
    """One line as it stands now; compared by identity."""

    __slots__ = ("blocked", "items", "line", "shape")

    def __init__(self, line: Line, shape: Shape) -> None:
        self.line = line
        self.shape = shape
        # Who waits in it, the oldest first.
        self.items: list[Item] = []
        # Scopes that have no room for it; empty where none has stopped it.
        self.blocked: frozenset[str] = frozenset()

    def __lt__(self, other: Row) -> bool:
        return self.line < other.line


class Lines:
    """All lines, by what may be asked of them."""

    def __init__(self) -> None:
        # Of each class, lines that may fit, by project.
        self.alive: tuple[defaultdict[str, set[Row]], ...] = tuple(
            defaultdict(set) for _ in range(CLASSES)
        )
        self._rows: dict[Line, Row] = {}
        self._shapes: dict[Request, Shape] = {}
        self._entries: dict[str, tuple[Item, list[Row]]] = {}
        self._claims: defaultdict[str, set[str]] = defaultdict(set)
        # By flavour and class, the lines by the age of their oldest.
        self._ranks: defaultdict[tuple[str, int], list[tuple[int, str, Row]]] = defaultdict(list)
        self._blocked_by: defaultdict[str, set[Row]] = defaultdict(set)
        # Shapes that did not fit, by models and whole devices that a replica needs.
        self._dead: defaultdict[Needs, dict[Shape, Size]] = defaultdict(dict)
        self._behind: tuple[set[Shape], ...] = tuple(set() for _ in range(CLASSES))
        self._timed: set[Shape] = set()
        # Of each class, those of them that may fit by now.
        self._hoping: tuple[defaultdict[Needs, set[Shape]], ...] = tuple(
            defaultdict(set) for _ in range(CLASSES)
        )
        self._grown: set[tuple[str, str]] = set()
        self._kept: dict[int, Mapping[str, Reserved]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Row]:
        return iter(self._rows.values())

    def enter(self, work: Work, lines: Sequence[Line]) -> None:
        """Let a workload wait in these lines."""
        rows = [self._row(line) for line in lines]
        self._entries[work.uid] = (work.item, rows)
        for row in rows:
            self._change(row, work.item, come=True)
            if work.said == RESERVED:
                self._claims[row.shape.flavour].add(work.uid)

    def leave(self, uid: str) -> None:
        """Let a workload wait no more."""
        item, rows = self._entries.pop(uid, ((0, ""), []))
        for row in rows:
            self._claims[row.shape.flavour].discard(uid)
            self._change(row, item, come=False)
            if not row.items:
                self._forget(row)

    def claim(self, flavour: str, uid: str) -> None:
        """Have a workload be one of those who were told to have the reservation of a flavour."""
        self._claims[flavour].add(uid)

    def of(self, uid: str) -> Sequence[Row]:
        """Where a workload waits: in several lines where several of its roles want more."""
        return self._entries.get(uid, ((0, ""), []))[1]

    def of_flavour(self, uid: str, flavour: str) -> Row | None:
        """Where a workload waits for one flavour; None where it does not."""
        return next((row for row in self.of(uid) if row.shape.flavour == flavour), None)

    def flavours(self) -> list[str]:
        """What is waited for."""
        return sorted({flavour for (flavour, _), rows in self._ranks.items() if rows})

    def ranked(self, flavour: str, klass: int) -> Iterable[tuple[int, str, Row]]:
        """Lines of a flavour and a class, by the age of the oldest of each, with its age and uid."""
        return self._ranks.get((flavour, klass), [])

    def claimants(self, flavour: str) -> list[tuple[int, int, str]]:
        """Who was told to have the reservation of a flavour: class, age and uid, the first one first."""
        found = []
        for uid in self._claims.get(flavour, ()):
            row = self.of_flavour(uid, flavour)
            if row is not None:
                found.append((row.line.request.klass, self._entries[uid][0][0], uid))
        return sorted(found)

    def is_claimed(self, klass: int) -> bool:
        """Whether anybody of a class was told to have a reservation."""
        return any(
            claimed == klass for name in self._claims for claimed, *_ in self.claimants(name)
        )

    # The memory of passes.

    def wake(self, clusters: Mapping[str, Nodes], eased: Iterable[str], now: int) -> None:
        """Let what may fit by now be tried again; `eased` are scopes that have more room."""
        for cluster, nodes in clusters.items():
            grown = sorted(nodes.grown)
            self._grown.update((cluster, name) for name in grown)
            rooms = [(name, nodes.nodes[name].room) for name in grown if name in nodes.nodes]
            if rooms:
                self._hope(cluster, rooms)
            nodes.grown.clear()
        for scope in eased:
            for row in list(self._blocked_by.get(scope, ())):
                self.unblock(row)
        for shape in [one for one in self._timed if one.again_time <= now]:
            self._revive(shape)

    def candidates(self, klass: int) -> Mapping[str, list[Row]]:
        """Lines of a class that may fit, by project."""
        found = defaultdict(list, {name: list(rows) for name, rows in self.alive[klass].items()})
        for shapes in self._hoping[klass].values():
            for shape in shapes:
                for row in shape.rows:
                    if not row.blocked:
                        found[row.line.project].append(row)
        return found

    def give_up(self, clusters: Mapping[str, Nodes]) -> None:
        """Nodes have been filled: let go of hopes for whole devices that none of them has any more."""
        if len(self._grown) > GROWN_MAX:
            return
        open_devices: defaultdict[str, int] = defaultdict(int)
        for cluster, name in self._grown:
            node = clusters[cluster].nodes.get(name)
            for gpus in () if node is None else node.room.gpus:
                for gpu_type in (ANY, gpus.gpu_type):
                    open_devices[gpu_type] = max(open_devices[gpu_type], gpus.open)
        for hoping in self._hoping:
            for needs in [one for one in hoping if one[1] > open_devices[one[0]]]:
                for shape in hoping.pop(needs):
                    shape.hopes.clear()

    def rest(self) -> None:
        """Everything that may fit was tried; what a quota stopped meanwhile is tried when it may."""
        for hoping in self._hoping:
            for shape in [one for shapes in hoping.values() for one in shapes]:
                self._revive(shape)
            hoping.clear()
        self._grown.clear()

    def is_alive(self, row: Row) -> bool:
        """Whether a line may fit."""
        shape = row.shape
        return bool((not shape.dead or shape.hopes) and not row.blocked and row.items)

    def is_idle(self, klass: int) -> bool:
        """Whether nothing of a class may fit, nor would if less were kept for others."""
        hoping = any(self._hoping[klass].values())
        return not self.alive[klass] and not hoping and not self._behind[klass]

    def kill(self, shape: Shape, behind: bool, now: int) -> None:
        """Do not try a shape until something has changed for it."""
        request = shape.request
        shape.dead, shape.behind = True, behind
        self.despair(shape)
        shape.again_time = min(
            (until for _, until in request.avoid if until > now), default=FOREVER
        )
        if shape.again_time < FOREVER:
            self._timed.add(shape)
        for needs, size in _needs(request).items():
            self._dead[needs][shape] = size
        if behind:
            self._behind[request.klass].add(shape)
        else:
            self._behind[request.klass].discard(shape)
        for row in shape.rows:
            self.sleep(row)

    def despair(self, shape: Shape, behind: bool = False) -> None:
        """A shape does not fit on the nodes that have grown; `behind`: it would, but for others."""
        if behind:
            shape.behind = True
            self._behind[shape.request.klass].add(shape)
        if shape.hopes:
            shape.hopes.clear()
            for needs in _needs(shape.request):
                self._hoping[shape.request.klass][needs].discard(shape)

    def block(self, row: Row, scopes: Iterable[str]) -> None:
        """Do not try a line until one of these scopes has more room."""
        self.unblock(row)
        row.blocked = frozenset(scopes)
        for scope in row.blocked:
            self._blocked_by[scope].add(row)
        self.sleep(row)

    def unblock(self, row: Row) -> None:
        """Try a line again that a quota had stopped."""
        scopes, row.blocked = row.blocked, frozenset()
        for scope in scopes:
            self._blocked_by[scope].discard(row)
            if not self._blocked_by[scope]:
                del self._blocked_by[scope]
        if scopes:
            self.again(row)

    def unblock_all(self) -> None:
        """Try every line again that a quota had stopped."""
        for row in {row for rows in self._blocked_by.values() for row in rows}:
            self.unblock(row)

    def again(self, row: Row) -> None:
        """Try a line again, if nothing is known to be in its way."""
        if not row.shape.dead and not row.blocked and row.items:
            self.alive[row.line.request.klass][row.line.project].add(row)

    def sleep(self, row: Row) -> None:
        """Do not try a line."""
        alive, project = self.alive[row.line.request.klass], row.line.project
        if project in alive:
            alive[project].discard(row)
            if not alive[project]:
                del alive[project]

    def keep(self, klass: int, kept: Mapping[str, Reserved]) -> None:
        """Remember what is kept for others of a class; where that is less than before, try again."""
        before = self._kept.get(klass, {})
        self._kept[klass] = kept
        freed = [
            (reserved.cluster, node)
            for flavour, reserved in before.items()
            if flavour not in kept or kept[flavour].eased(reserved)
            for node in reserved.plan.slack
        ]
        if not freed:
            return
        self._grown.update(freed)
        for shape in self._behind[klass]:
            shape.hopes.append(freed)
            for needs in _needs(shape.request):
                self._hoping[klass][needs].add(shape)

    def again_time(self, now: int) -> int:
        """When a shape is next tried again only because time has passed."""
        return min((one.again_time for one in self._timed if one.again_time > now), default=FOREVER)

    def _hope(self, cluster: str, grown: Sequence[tuple[str, Room]]) -> None:
        """
        Try every shape again that may fit on some of the nodes that have grown.

        All nodes at once, and each shape by the most that any of them has: it is looked at node by
        node only when it is its turn.
        """
        for needs, shapes in self._dead.items():
            gpu_type, devices = needs
            able = [(name, room) for name, room in grown if devices <= _open(room, gpu_type)]
            if not able:
                continue
            batch = [(cluster, name) for name, _ in able]
            cpu = max(room.cpu_milli for _, room in able)
            memory = max(room.memory_bytes for _, room in able)
            storage = max(room.storage_bytes for _, room in able)
            for shape, size in shapes.items():
                if (
                    size.cpu_milli <= cpu
                    and size.memory_bytes <= memory
                    and size.storage_bytes <= storage
                    and cluster in shape.request.clusters
                ):
                    shape.hopes.append(batch)
                    self._hoping[shape.request.klass][needs].add(shape)

    def _revive(self, shape: Shape) -> None:
        self._unkill(shape)
        for row in shape.rows:
            self.again(row)

    def _unkill(self, shape: Shape) -> None:
        self.despair(shape)
        shape.dead = False
        self._behind[shape.request.klass].discard(shape)
        self._timed.discard(shape)
        for needs in _needs(shape.request):
            self._dead[needs].pop(shape, None)

    def _row(self, line: Line) -> Row:
        row = self._rows.get(line)
        if row is None:
            shape = self._shapes.get(line.request)
            if shape is None:
                shape = self._shapes[line.request] = Shape(line.request)
            row = self._rows[line] = Row(line, shape)
            shape.rows.add(row)
        return row

    def _change(self, row: Row, item: Item, come: bool) -> None:
        """Let one come into a line or go; a line stands where its oldest does."""
        ranks = self._ranks[row.shape.flavour, row.line.request.klass]
        before = row.items[0] if row.items else None
        if come:
            insort(row.items, item)
        else:
            del row.items[bisect_left(row.items, item)]
        after = row.items[0] if row.items else None
        if before != after:
            if before is not None:
                del ranks[bisect_left(ranks, (*before, row))]
            if after is not None:
                insort(ranks, (*after, row))
        if come and before is None:
            self.again(row)

    def _forget(self, row: Row) -> None:
        shape = row.shape
        self.unblock(row)
        self.sleep(row)
        del self._rows[row.line]
        shape.rows.discard(row)
        if not shape.rows:
            self._unkill(shape)
            del self._shapes[shape.request]


def could_hold(room: Room, request: Request) -> bool:
    """Whether there is room for one replica of a shape."""
    for part in request.parts:
        if not part.number:
            return True
        if _exceeds(part.size, room):
            # Cheaper than counting, and mostly so.
            continue
        types = [gpus.gpu_type for gpus in room.gpus] if part.size.gpu_type == ANY else [""]
        for gpu_type in types:
            size = part.size._replace(gpu_type=gpu_type) if gpu_type else part.size
            if count(room, size, 1):
                return True
    return False


def _exceeds(size: Size, room: Room) -> bool:
    """Whether it asks for more of anything than there is; who asks for none of it does not."""
    if (
        (size.cpu_milli > room.cpu_milli and size.cpu_milli)
        or (size.memory_bytes > room.memory_bytes and size.memory_bytes)
        or (size.storage_bytes > room.storage_bytes and size.storage_bytes)
    ):
        return True
    devices = size.gpu_milli // DEVICE
    return devices > 0 and devices > _open(room, size.gpu_type)


def _open(room: Room, gpu_type: str) -> int:
    """How many whole devices of a model are open on a node, or of that which has most."""
    if gpu_type == ANY:
        return max((gpus.open for gpus in room.gpus), default=0)
    return room.of(gpu_type).open


def _needs(request: Request) -> dict[Needs, Size]:
    """The models and whole devices that replicas of a shape need, each with the least size of these."""
    found: dict[Needs, Size] = {}
    for part in request.parts:
        size = part.size if part.number else Size()
        needs = (size.gpu_type, size.gpu_milli // DEVICE)
        other = found.get(needs, size)
        found[needs] = Size(size.gpu_type, *map(min, size[1:], other[1:]))
    return found
