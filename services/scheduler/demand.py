"""What wants to run, what it holds already, and the shape by which two wants are alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeAlias

from fermion.api.workload import v1 as api
from services.scheduler.placement import ANY, FOREVER, Nodes, Part, Size, Where

SERVING: Final = 0
INTERACTIVE: Final = 1
BATCH: Final = 2
SPOT: Final = 3
CLASSES: Final = 4


@dataclass(frozen=True, slots=True)
class Group:
    """Replicas of one role: how many are wanted, how few may be admitted, what each takes and mounts."""

    role: str
    size: Size
    wanted: int
    least: int
    volumes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Held:
    """What was admitted of a workload, and where it was put; `gpu_type` is the model that ANY became."""

    cluster: str
    replicas: Mapping[str, int]
    nodes: Mapping[str, tuple[str, ...]]
    gpu_type: str = ""
    since: int = 0
    revoked: bool = False


@dataclass(frozen=True, slots=True)
class Replica:
    """
    One that its cluster has bound and not released.

    One that is not proven was given up with its node, and lives there perhaps.
    """

    uid: str
    role: str
    node: str
    proven: bool = True


class Said(NamedTuple):
    """The kind of reason that was stated last: its code, and whether it is a matter of time."""

    code: str
    short_of: str = ""


ARRIVED: Final = Said("ARRIVED")
RESERVED: Final = Said("RESERVED")


@dataclass(frozen=True, slots=True)
class Work:
    """One workload that waits, or is held, or both. Times are in milliseconds."""

    uid: str
    project: str
    user: str = ""
    owner: str = ""
    kind: str = "instance"
    klass: int = INTERACTIVE
    priority: int = 0
    groups: tuple[Group, ...] = ()
    # From its start to its latest end.
    lasts: int = FOREVER
    # The age that it keeps over attempts, and when it is given up where it waits.
    queue_time: int = 0
    expire_time: int = FOREVER
    # Clusters that can honour it; and why none ever will.
    clusters: tuple[str, ...] = ()
    refusal: api.Reason | None = None
    # Nodes to keep away from, until when.
    avoid: tuple[tuple[str, int], ...] = ()
    architecture: str = ""
    driver: str = ""
    # What its mounts say of the sizes of volumes; what they say nothing of is not there.
    sizes: tuple[tuple[str, int], ...] = ()
    held: Held | None = None
    replicas: tuple[Replica, ...] = ()
    # When the first of its replicas started; None where none has.
    began: int | None = None
    # Its cluster has said that all replicas are gone and none will come.
    ended: bool = False
    said: Said = ARRIVED
    said_time: int = 0

    @property
    def waits(self) -> bool:
        """Whether it wants more than it has."""
        if self.held is None:
            return True
        if self.held.revoked or self.ended:
            return False
        return any(group.wanted > self.admitted(group.role) for group in self.groups)

    @property
    def done(self) -> bool:
        """Whether nothing of it is there any more, nor will be."""
        return self.ended and not self.replicas

    @property
    def end(self) -> int:
        """Its latest end once it is admitted."""
        if self.lasts >= FOREVER or self.held is None:
            return FOREVER
        return (self.held.since if self.began is None else self.began) + self.lasts

    @property
    def volumes(self) -> Sequence[str]:
        """Uids of what it mounts, each once."""
        return list(dict.fromkeys(uid for group in self.groups for uid in group.volumes))

    @property
    def item(self) -> Item:
        """Where it stands in a line."""
        return (self.queue_time, self.uid)

    def admitted(self, role: str) -> int:
        """How many replicas of a role are admitted."""
        return 0 if self.held is None else self.held.replicas.get(role, 0)


@dataclass(frozen=True, slots=True)
class Volume:
    """Storage of a project; without a cluster it was not admitted yet."""

    uid: str
    project: str
    user: str
    size_bytes: int
    cluster: str = ""
    # It is there; `node` holds it, or any can reach it.
    bound: bool = False
    node: str = ""
    # It was told to go, so that nothing new may mount it.
    withdrawn: bool = False
    # Its cluster has said that it is not there, or will never be.
    gone: bool = False


class Request(NamedTuple):
    """The shape of what waits: two with equal requests fit alike, now and later."""

    klass: int
    parts: tuple[Part, ...]
    clusters: tuple[str, ...] = ()
    avoid: tuple[tuple[str, int], ...] = ()
    architecture: str = ""
    driver: str = ""
    lasts: int = FOREVER

    @property
    def flavour(self) -> str:
        """What it waits for: a model of GPU, ANY, or "" for none."""
        sizes = [part.size for part in self.parts if part.number and part.size.gpu_milli]
        return max(sizes, key=lambda size: size.gpu_milli).gpu_type if sizes else ""

    def where(self, now: int) -> Where:
        """The nodes that it may take at a time."""
        avoid = frozenset(node for node, until in self.avoid if until > now)
        return Where(avoid, self.architecture, self.driver)

    def types(self, nodes: Nodes) -> Sequence[str]:
        """Models of a cluster that it may take, one after another."""
        if any(part.number and part.size.gpu_type == ANY for part in self.parts):
            return nodes.types
        return ("",)

    def end(self, now: int) -> int:
        """Its latest end where it starts now."""
        return FOREVER if self.lasts >= FOREVER else now + self.lasts


class Line(NamedTuple):
    """Workloads of one request that also count alike against quotas: only their ages differ."""

    request: Request
    project: str
    user: str
    kind: str
    priority: int = 0
    # The role that wants more replicas of a workload that is admitted; empty: it is not admitted.
    more: tuple[str, ...] = ()
    # New volumes that would be held: (project, user, bytes).
    storage: tuple[tuple[str, str, int], ...] = ()


# In a line: age and uid of each; the oldest goes first.
Item: TypeAlias = tuple[int, str]


def line_of(work: Work, volumes: Mapping[str, Volume]) -> Line:
    """
    Tell in which line a workload waits that is not admitted; its volumes are known.

    A volume that is not bound yet is bound beside the first replica that mounts it.
    """
    clusters = work.clusters
    for uid in work.volumes:
        if volumes[uid].cluster:
            clusters = tuple(one for one in clusters if one == volumes[uid].cluster)
    unbound = {uid: volumes[uid].size_bytes for uid in work.volumes if not volumes[uid].bound}
    parts: list[Part] = []
    for group in work.groups:
        pin, number = _pin(group, volumes), min(group.least, group.wanted)
        extra = sum(unbound.pop(uid, 0) for uid in group.volumes) if number else 0
        if extra:
            first = group.size._replace(storage_bytes=group.size.storage_bytes + extra)
            parts.append(Part(group.role, first, 1, pin))
            number -= 1
        if number or not extra:
            parts.append(Part(group.role, group.size, number, pin))
    storage = tuple(
        (volumes[uid].project, volumes[uid].user, volumes[uid].size_bytes)
        for uid in work.volumes
        if not volumes[uid].cluster
    )
    request = _request(work, work.klass, parts, clusters)
    return Line(request, work.project, work.user, work.kind, work.priority, (), storage)


def lines_for_more(work: Work, volumes: Mapping[str, Volume]) -> list[Line]:
    """Tell where an admitted workload waits for the rest of it: as batch does, a replica at a time."""
    held = work.held
    assert held is not None
    clusters = tuple(one for one in work.clusters if one == held.cluster)
    lines = []
    for group in work.groups:
        if group.wanted > work.admitted(group.role):
            part = Part(group.role, settled(group.size, held.gpu_type), 1, _pin(group, volumes))
            request = _request(work, max(work.klass, BATCH), [part], clusters)
            lines.append(
                Line(request, work.project, work.user, work.kind, work.priority, (group.role,))
            )
    return lines


def settled(size: Size, gpu_type: str) -> Size:
    """A size with the model that was chosen, where any would do."""
    return size._replace(gpu_type=gpu_type) if size.gpu_type == ANY and gpu_type else size


# The name of no node.
_NOWHERE: Final = "/"


def _pin(group: Group, volumes: Mapping[str, Volume]) -> str:
    """The only node that a group may run on, since it holds the group's volumes; "" for any."""
    nodes = {volumes[uid].node for uid in group.volumes if uid in volumes} - {""}
    return next(iter(nodes), "") if len(nodes) < 2 else _NOWHERE


def _request(work: Work, klass: int, parts: Sequence[Part], clusters: Sequence[str]) -> Request:
    return Request(
        klass,
        tuple(parts),
        tuple(clusters),
        work.avoid,
        work.architecture,
        work.driver,
        work.lasts,
    )
