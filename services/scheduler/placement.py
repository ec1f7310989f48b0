"""
Where replicas fit: exact by node and never in sum, and the same answer for the same nodes.

A node's room is a pure function of what it has and of the sizes that it holds, in whichever order
those came: a successor that reads everything anew chooses the nodes that this process would.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final, NamedTuple, TypeAlias

# The end of work that has none; beyond every time in milliseconds.
FOREVER: Final = 2**62
# A request for GPUs of whichever model.
ANY: Final = "*"
DEVICE: Final = 1000
# So many sizes are followed at once by when there is room for them.
SOON_MAX: Final = 16


class Size(NamedTuple):
    """What one replica takes; `storage_bytes` is its scratch, and volumes that are bound with it."""

    gpu_type: str = ""
    gpu_milli: int = 0
    cpu_milli: int = 0
    memory_bytes: int = 0
    storage_bytes: int = 0


class Gpus(NamedTuple):
    """Devices of one model that nobody has whole, and the shares of devices that are held."""

    gpu_type: str
    devices: int
    shares: tuple[int, ...] = ()

    @property
    def open(self) -> int:
        """Devices that may still be taken whole; below zero where more is held than there is."""
        return self.devices - packed(self.shares)


class Room(NamedTuple):
    """What is left of a node; below zero where it has become smaller than what it holds."""

    cpu_milli: int = 0
    memory_bytes: int = 0
    storage_bytes: int = 0
    gpus: tuple[Gpus, ...] = ()

    def of(self, gpu_type: str) -> Gpus:
        """The devices of one model."""
        for gpus in self.gpus:
            if gpus.gpu_type == gpu_type:
                return gpus
        return Gpus(gpu_type, 0)


# Sizes and how many of each.
Load: TypeAlias = tuple[tuple[Size, int], ...]
# Where a node stands among others: the fullest first, then by name.
Key: TypeAlias = tuple[int, int, int, int, str]


@lru_cache(maxsize=4096)
def packed(shares: tuple[int, ...]) -> int:
    """How many devices shares take, the largest packed first; they are sorted, smallest first."""
    left: list[int] = []
    for share in reversed(shares):
        for place, free in enumerate(left):
            if share <= free:
                left[place] -= share
                break
        else:
            left.append(DEVICE - share)
    return len(left)


def taken(room: Room, size: Size, number: int = 1) -> Room:
    """The room without so many of a size; negative numbers give back."""
    gpus = room.gpus
    if size.gpu_milli:
        gpus = _with_gpus(gpus, size.gpu_type, *divmod(size.gpu_milli, DEVICE), number)
    return Room(
        room.cpu_milli - number * size.cpu_milli,
        room.memory_bytes - number * size.memory_bytes,
        room.storage_bytes - number * size.storage_bytes,
        gpus,
    )


def emptied(room: Room, load: Load) -> Room:
    """The room once all of a load is gone."""
    for size, number in load:
        room = taken(room, size, -number)
    return room


def filled(room: Room, load: Load) -> Room:
    """The room with a load in it."""
    for size, number in load:
        room = taken(room, size, number)
    return room


def count(room: Room, size: Size, most: int) -> int:
    """How many of a size fit, at most so many."""
    if size.cpu_milli:
        most = min(most, room.cpu_milli // size.cpu_milli)
    if size.memory_bytes:
        most = min(most, room.memory_bytes // size.memory_bytes)
    if size.storage_bytes:
        most = min(most, room.storage_bytes // size.storage_bytes)
    if size.gpu_milli and most > 0:
        most = _count_gpus(room.of(size.gpu_type), *divmod(size.gpu_milli, DEVICE), most)
    return max(0, most)


def grew(before: Room, after: Room) -> bool:
    """Whether there is more of anything than before."""
    return (
        after.cpu_milli > before.cpu_milli
        or after.memory_bytes > before.memory_bytes
        or after.storage_bytes > before.storage_bytes
        or (after.gpus != before.gpus and _gpus_grew(before, after))
    )


@dataclass(frozen=True, slots=True)
class Shape:
    """A node as its cluster reports it."""

    name: str
    whole: Room
    architecture: str = ""
    driver: str = ""
    cordoned: bool = False


@dataclass(slots=True)
class Node:
    """One node: what it has, what is left, and what it holds, each with its size and its latest end."""

    shape: Shape
    known: bool
    room: Room
    busy: dict[str, tuple[Load, int]] = field(default_factory=dict)
    # Its place in each index; empty while it takes nothing new.
    keys: dict[str, Key] = field(default_factory=dict)
    # When it has room for sizes that were asked for, or None where it never has.
    soon: dict[Size, int | None] = field(default_factory=dict)

    @property
    def ends(self) -> list[tuple[int, str, Load]]:
        """What it holds, in the order of its ends."""
        return sorted((end, uid, load) for uid, (load, end) in self.busy.items())


def openings(node: Node, size: Size, most: int, kept: Load = ()) -> Iterator[int]:
    """
    Times at which a first, a second, … of a size fits on a node beside what is kept; 0 for now.

    Nothing new comes, and all ends at its latest; what never ends by itself is waited for last.
    """
    room = filled(node.room, kept)
    fit = count(room, size, most)
    yield from [0] * fit
    for end, _, load in node.ends:
        if fit >= most:
            return
        room = emptied(room, load)
        more = count(room, size, most)
        if more > fit:
            yield from [end] * (more - fit)
            fit = more


class Where(NamedTuple):
    """Which nodes a request may take."""

    avoid: frozenset[str] = frozenset()
    architecture: str = ""
    driver: str = ""

    def allows(self, node: Shape) -> bool:
        """Whether this is one."""
        return (
            node.name not in self.avoid
            and (not self.architecture or self.architecture == node.architecture)
            and (not self.driver or _version(node.driver) >= _version(self.driver))
        )


class Part(NamedTuple):
    """Replicas of one size that go together; `pin` names the only node that can hold them."""

    role: str
    size: Size
    number: int
    pin: str = ""


# The nodes of each part, one for each of its replicas.
Placement: TypeAlias = tuple[tuple[str, ...], ...]
ANYWHERE: Final = Where()


class Nodes:
    """
    The nodes of one cluster, and what each holds.

    `grown` names those that have had more room since it was last emptied.
    """

    def __init__(self) -> None:
        self.nodes: dict[str, Node] = {}
        self.grown: set[str] = set()
        # Changes when nodes come, go, or are other than before; not when they are filled.
        self.version = 0
        # By model, and "" for all: nodes that take something new, fullest first.
        self._index: dict[str, list[Key]] = {}
        self._left: Counter[str] = Counter()
        # By size, those asked for last: when each node has room for it, the first one first.
        self._soon: dict[Size, list[tuple[int, str]]] = {}
        self._empty: Nodes | None = None

    @property
    def types(self) -> list[str]:
        """Models of GPUs that nodes have which take something new."""
        return sorted(name for name, index in self.empty()._index.items() if name and index)

    def put(self, shape: Shape) -> None:
        """Have a node as it is reported from now on."""
        node = self.nodes.get(shape.name)
        busy = {} if node is None else node.busy
        before = Room() if node is None else node.room
        if node is not None:
            self._leave(node)
        room = shape.whole
        for load, _ in busy.values():
            room = filled(room, load)
        self.nodes[shape.name] = fresh = Node(shape, True, room, busy)
        self._join(fresh)
        self.version += 1
        self._empty = None
        if grew(before, room) or (node is not None and not shape.cordoned):
            self.grown.add(shape.name)

    def remove(self, name: str) -> None:
        """Have a node no more; what it holds is still counted there until it is gone."""
        node = self.nodes.get(name)
        if node is None or not node.known:
            return
        self._leave(node)
        self.version += 1
        self._empty = None
        if not node.busy:
            del self.nodes[name]
            return
        shape = Shape(name, Room())
        room = Room()
        for load, _ in node.busy.values():
            room = filled(room, load)
        self.nodes[name] = Node(shape, False, room, node.busy)

    def hold(self, name: str, uid: str, load: Load, end: int) -> None:
        """Have a node hold this for a uid, instead of what it held for it before; nothing for ()."""
        node = self.nodes.get(name)
        if node is None:
            if not load:
                return
            node = self.nodes[name] = Node(Shape(name, Room()), False, Room())
        held, until = node.busy.get(uid, ((), 0))
        if (held, until) == (load, end):
            return
        if not load:
            node.busy.pop(uid, None)
        else:
            node.busy[uid] = (load, end)
        room = filled(emptied(node.room, held), load)
        if grew(node.room, room):
            self.grown.add(name)
        self._leave(node)
        node.room = room
        if node.known:
            self._join(node)
        elif not node.busy:
            del self.nodes[name]

    def soonest(self, size: Size) -> Sequence[tuple[int, str]]:
        """
        Nodes by a time before which no replica of a size fits there; 0 where one may fit now.

        Of whole GPUs only these are looked at, since they are what is short.
        """
        devices, share = divmod(size.gpu_milli, DEVICE)
        if devices and not share:
            size = Size(size.gpu_type, size.gpu_milli)
        found = self._soon.pop(size, None)
        if found is None:
            while len(self._soon) >= SOON_MAX:
                # The one that was asked for longest ago is let go of.
                gone = next(iter(self._soon))
                del self._soon[gone]
                for node in self.nodes.values():
                    node.soon.pop(gone, None)
            found = []
            for name, node in self.nodes.items():
                if node.keys:
                    time = node.soon[size] = next(openings(node, size, 1), None)
                    if time is not None:
                        found.append((time, name))
            found.sort()
        self._soon[size] = found
        return found

    def empty(self) -> Nodes:
        """The same nodes with nothing on them."""
        if self._empty is None:
            self._empty = Nodes()
            for node in self.nodes.values():
                if node.known:
                    self._empty.put(node.shape)
        return self._empty

    def fullest(self, size: Size) -> Iterator[Node]:
        """Nodes that may have room for a size, fullest first, then by name; each is still to be asked."""
        if size.gpu_milli:
            yield from self._fullest_with(size)
            return
        index = self._index.get("", [])
        # What needs no GPU goes where there is none, as long as there is room.
        for has_gpus in (0, 1):
            for at in range(bisect_left(index, _from(has_gpus, size.cpu_milli)), len(index)):
                if index[at][0] != has_gpus:
                    break
                yield self.nodes[index[at][-1]]

    def left(self, dimension: str) -> int:
        """How much is left of something on all nodes that take something new."""
        return self._left[dimension]

    def total(self, dimension: str) -> int:
        """How much there is of something on those nodes, held or not."""
        return self.empty().left(dimension)

    def _fullest_with(self, size: Size) -> Iterator[Node]:
        index = self._index.get(size.gpu_type, [])
        devices, share = divmod(size.gpu_milli, DEVICE)
        if not share:
            for at in range(bisect_left(index, _from(devices)), len(index)):
                yield self.nodes[index[at][-1]]
            return
        # A share goes to a device that is shared already, wherever there is one with room for it.
        later: list[Node] = []
        for at in range(bisect_left(index, _from(devices)), len(index)):
            node = self.nodes[index[at][-1]]
            gpus = node.room.of(size.gpu_type)
            shared = packed(_sorted_with(gpus.shares, share)) == packed(gpus.shares)
            if shared:
                yield node
            else:
                later.append(node)
        yield from later

    def _join(self, node: Node) -> None:
        if node.shape.cordoned:
            return
        room, name = node.room, node.shape.name
        rest = (room.cpu_milli, room.memory_bytes, room.storage_bytes, name)
        node.keys[""] = (int(bool(node.shape.whole.gpus)), *rest)
        for gpus in room.gpus:
            node.keys[gpus.gpu_type] = (gpus.open, *rest)
        for index, key in node.keys.items():
            insort(self._index.setdefault(index, []), key)
        self._left.update(amounts(room))
        for size, soon in self._soon.items():
            time = node.soon[size] = next(openings(node, size, 1), None)
            if time is not None:
                insort(soon, (time, name))

    def _leave(self, node: Node) -> None:
        if not node.keys:
            return
        for size, time in node.soon.items():
            if time is not None:
                soon = self._soon[size]
                del soon[bisect_left(soon, (time, node.shape.name))]
        node.soon.clear()
        for index, key in node.keys.items():
            places = self._index[index]
            del places[bisect_left(places, key)]
        node.keys.clear()
        self._left.subtract(amounts(node.room))


def place(
    nodes: Nodes,
    parts: Sequence[Part],
    where: Where = ANYWHERE,
    beside: Sequence[Mapping[str, Room]] = (),
) -> Placement | None:
    """
    Find a node for every replica of every part, all or nothing; the fullest node that fits goes first.

    `beside` are rooms of nodes that must not become less than nothing either: those that are left
    once a reservation has begun. Parts go in the order of their sizes, the largest first: for one
    part the answer is exact, for several a cleverer puzzle is not looked for.
    """
    chosen: list[tuple[str, ...]] = [()] * len(parts)
    rooms: dict[str, list[Room]] = {}
    for index in sorted(range(len(parts)), key=lambda at: _largest(parts[at], at)):
        part = parts[index]
        found: list[str] = []
        for node in _offered(nodes, part, where):
            name = node.shape.name
            left = rooms.get(name)
            if left is None:
                left = [node.room, *(kept[name] for kept in beside if name in kept)]
            number = part.number - len(found)
            for room in left:
                number = count(room, part.size, number)
            if number:
                found += [name] * number
                rooms[name] = [taken(room, part.size, number) for room in left]
            if len(found) == part.number:
                break
        if len(found) < part.number:
            return None
        chosen[index] = tuple(found)
    return tuple(chosen)


def amounts(room: Room) -> dict[str, int]:
    """How much of everything a room has, nothing below zero; of GPUs also what is left of shared ones."""
    found = {
        "cpu_milli": max(0, room.cpu_milli),
        "memory_bytes": max(0, room.memory_bytes),
        "storage_bytes": max(0, room.storage_bytes),
    }
    milli = 0
    for gpus in room.gpus:
        free = max(0, gpus.devices * DEVICE - sum(gpus.shares))
        found[f"gpu_milli/{gpus.gpu_type}"] = free
        milli += free
    found[f"gpu_milli/{ANY}"] = milli
    return found


def typed(parts: Iterable[Part], gpu_type: str) -> tuple[Part, ...]:
    """The parts with one model instead of any."""
    return tuple(
        part._replace(size=part.size._replace(gpu_type=gpu_type))
        if part.size.gpu_type == ANY
        else part
        for part in parts
    )


def _offered(nodes: Nodes, part: Part, where: Where) -> Iterator[Node]:
    if part.number == 0:
        return
    if part.pin:
        node = nodes.nodes.get(part.pin)
        if node is not None and node.keys and where.allows(node.shape):
            yield node
        return
    for node in nodes.fullest(part.size):
        if where.allows(node.shape):
            yield node


def _from(first: int, second: int = -FOREVER) -> Key:
    """The least key that begins so."""
    return (first, second, -FOREVER, -FOREVER, "")


def _largest(part: Part, at: int) -> tuple[bool, int, int, int, int]:
    size = part.size
    return (not part.pin, -size.gpu_milli, -size.cpu_milli, -size.memory_bytes, at)


def _with_gpus(
    gpus: tuple[Gpus, ...], gpu_type: str, devices: int, share: int, number: int
) -> tuple[Gpus, ...]:
    """Take so many devices and shares of a model; a model that is not there is owed."""
    found = []
    owed = True
    for one in gpus:
        if one.gpu_type == gpu_type:
            one, owed = _changed(one, devices, share, number), False
        found.append(one)
    if owed:
        found.append(_changed(Gpus(gpu_type, 0), devices, share, number))
        found.sort()
    return tuple(one for one in found if one.devices or one.shares)


def _changed(gpus: Gpus, devices: int, share: int, number: int) -> Gpus:
    shares = gpus.shares
    if share:
        kept = list(shares)
        for _ in range(abs(number)):
            if number > 0:
                insort(kept, share)
            else:
                kept.remove(share)
        shares = tuple(kept)
    return Gpus(gpus.gpu_type, gpus.devices - devices * number, shares)


def _count_gpus(gpus: Gpus, devices: int, share: int, most: int) -> int:
    if not share:
        return min(most, gpus.open // devices)
    for number in range(most):
        gpus = _changed(gpus, devices, share, 1)
        if gpus.open < 0:
            return number
    return most


def _sorted_with(shares: tuple[int, ...], share: int) -> tuple[int, ...]:
    return tuple(sorted((*shares, share)))


def _gpus_grew(before: Room, after: Room) -> bool:
    return any(
        gpus.open > before.of(gpus.gpu_type).open
        or sum(gpus.shares) < sum(before.of(gpus.gpu_type).shares)
        for gpus in after.gpus
    ) or any(gpus.open < 0 and not after.of(gpus.gpu_type).devices for gpus in before.gpus)


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) if part.isdigit() else 0 for part in text.split(".")) if text else ()
