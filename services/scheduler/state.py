"""All that admission rests on: what is wanted, what is held, and what there is."""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from services.scheduler import holds, quota
from services.scheduler.demand import (
    RESERVED,
    Line,
    Request,
    Volume,
    Work,
    line_of,
    lines_for_more,
)
from services.scheduler.holds import Holds
from services.scheduler.lines import Lines
from services.scheduler.placement import (
    FOREVER,
    Load,
    Nodes,
    Part,
    Placement,
    Room,
    place,
    typed,
)
from services.scheduler.quota import Short
from services.scheduler.reserve import Plan, earliest


@dataclass(frozen=True, slots=True)
class Fit:
    """Where one of a line fits."""

    cluster: str
    gpu_type: str
    parts: tuple[Part, ...]
    nodes: Placement


@dataclass(frozen=True, slots=True)
class Miss:
    """It does not fit: quotas stop it for every model (`shorts`), or for some (`partly`), or nodes do."""

    shorts: tuple[Short, ...] = ()
    partly: bool = False


def _only_told(before: Work, after: Work) -> bool:
    """Whether nothing but the reason is other than before, and nobody keeps anything by it."""
    if RESERVED in (before.said, after.said):
        return False
    return replace(before, said=after.said, said_time=after.said_time) == after


class State:
    """
    Every change is `put` or `drop`, and repeating one changes nothing.

    What a pass decides is held here at once. The fact that says it puts the same again; where it
    could not be said, the truth is put.
    """

    def __init__(self) -> None:
        self.works: dict[str, Work] = {}
        self.volumes: dict[str, Volume] = {}
        self.holds = Holds()
        self.lines = Lines()
        # Workloads that wait for a volume that nobody has declared: which.
        self.lacking: dict[str, str] = {}
        # Workloads that will never run, and do not know it yet.
        self.refusable: set[str] = set()
        # Workloads and volumes of which nothing is there any more.
        self.done: set[str] = set()
        self.version = 0
        self._mounts: defaultdict[str, set[str]] = defaultdict(set)
        self._expiring: list[tuple[int, str]] = []
        self._could: dict[Request, bool] = {}
        self._could_of: tuple[tuple[str, int], ...] = ()
        self._woken_of: tuple[tuple[str, int], ...] = ()

    @property
    def clusters(self) -> Mapping[str, Nodes]:
        """The nodes of each cluster."""
        return self.holds.clusters

    @property
    def quotas(self) -> quota.Quotas:
        """Limits, and what is held."""
        return self.holds.quotas

    @property
    def waiting(self) -> int:
        """How many workloads wait."""
        return len(self.lines) + len(self.lacking)

    # What is put.

    def put(self, work: Work) -> None:
        """Have a workload as it is now."""
        before = self.works.get(work.uid)
        if before == work:
            return
        if before is not None and _only_told(before, work):
            self.works[work.uid] = work
            return
        self.version += 1
        self._leave(work.uid)
        self.works[work.uid] = work
        self._mount(work.uid, () if before is None else before.volumes, work.volumes)
        self.holds.set(work.uid, holds.of_work(work))
        for uid in work.volumes:
            self._charge(uid)
        if work.waits:
            self._enter(work)
        if work.held is not None and work.done:
            self.done.add(work.uid)
        else:
            self.done.discard(work.uid)

    def drop(self, uid: str) -> None:
        """Have a workload no more."""
        work = self.works.get(uid)
        if work is None:
            return
        self.version += 1
        self._leave(uid)
        self.done.discard(uid)
        del self.works[uid]
        self._mount(uid, work.volumes, ())
        self.holds.set(uid, holds.Hold())
        for volume in work.volumes:
            self._charge(volume)

    def put_volume(self, volume: Volume) -> None:
        """Have a volume as it is now: who mounts it fits elsewhere, or at all, from then on."""
        if self.volumes.get(volume.uid) == volume:
            return
        self.version += 1
        self.volumes[volume.uid] = volume
        self._charge(volume.uid)
        self._enter_mounting(volume.uid)
        if volume.cluster and volume.gone:
            self.done.add(volume.uid)
        else:
            self.done.discard(volume.uid)

    def drop_volume(self, uid: str) -> None:
        """Have a volume no more."""
        if self.volumes.pop(uid, None) is None:
            return
        self.version += 1
        self.done.discard(uid)
        self._charge(uid)
        self._enter_mounting(uid)

    def nodes(self, cluster: str) -> Nodes:
        """The nodes of a cluster, to be changed; none where it is new."""
        self.version += 1
        return self.holds.nodes(cluster)

    def limit(self, projects: Mapping[str, str], limits: Mapping[str, quota.Amounts]) -> None:
        """Have these quotas by scope, and know these projects: names and uids."""
        if self.quotas.set(projects, limits):
            self.version += 1
            self.lines.unblock_all()

    def wake(self, now: int) -> None:
        """Let what may fit by now be tried again."""
        if self._woken_of != self.holds.version:
            # There may be models that no quota stops.
            self._woken_of = self.holds.version
            self.lines.unblock_all()
        self.lines.wake(self.clusters, self.quotas.eased, now)
        self.quotas.eased.clear()

    def copy(self) -> State:
        """The same without memory, to look ahead in."""
        other = State()
        for uid, nodes in self.clusters.items():
            there = other.nodes(uid)
            for node in nodes.nodes.values():
                if node.known:
                    there.put(node.shape)
        other.limit(self.quotas.projects, self.quotas.limits)
        for volume in self.volumes.values():
            other.put_volume(volume)
        for work in self.works.values():
            other.put(work)
        return other

    # What is asked.

    def over(self, now: int) -> Sequence[str]:
        """Workloads that have waited as long as they may."""
        found: set[str] = set()
        while self._expiring and self._expiring[0][0] <= now:
            time, uid = heapq.heappop(self._expiring)
            work = self.works.get(uid)
            if work is not None and work.held is None and work.expire_time == time:
                found.add(uid)
        return sorted(found)

    def next_time(self, now: int) -> int:
        """When something is next over or may fit only because time has passed."""
        expires = self._expiring[0][0] if self._expiring else FOREVER
        return min(expires, self.lines.again_time(now))

    def short(self, line: Line, parts: Sequence[Part]) -> Short | None:
        """What quotas lack for one of a line; None where they have room."""
        need: Counter[str] = Counter()
        for part in parts:
            need.update(quota.amounts(part.size, part.number))
        if not line.more:
            need[f"workloads/{line.kind}"] += 1
        owners = quota.scopes(line.project, line.user)
        stored: Counter[str] = Counter()
        for project, user, size in line.storage:
            stored.update(dict.fromkeys(quota.scopes(project, user), size))
        for scope in dict.fromkeys((*owners, *stored)):
            own: Mapping[str, int] = need if scope in owners else {}
            found = self.quotas.short(scope, {**own, "storage_bytes": stored[scope]})
            if found is not None:
                return found
        return None

    def could(self, request: Request) -> bool:
        """Whether it would fit if nothing were held; what never could is set aside."""
        if self._could_of != self.holds.version:
            self._could_of = self.holds.version
            self._could.clear()
        found = self._could.get(request)
        if found is None:
            where = request.where(FOREVER - 1)
            found = self._could[request] = any(
                place(nodes.empty(), typed(request.parts, gpu_type), where) is not None
                for _, nodes, gpu_type in self.options(request)
            )
        return found

    def fit(
        self, line: Line, now: int, beside: Mapping[str, Sequence[Mapping[str, Room]]]
    ) -> Fit | Miss:
        """Find where one of a line fits, by the names of clusters and models."""
        request, tried = line.request, False
        shorts: list[Short] = []
        if not self.quotas.knows(line.project):
            return Miss((Short(quota.PROJECTS + line.project, "", 0, 0, 0),))
        for cluster, nodes, gpu_type in self.options(request):
            parts = typed(request.parts, gpu_type)
            short = self.short(line, parts)
            if short is not None:
                shorts.append(short)
                continue
            tried = True
            found = place(nodes, parts, request.where(now), beside.get(cluster, ()))
            if found is not None:
                return Fit(cluster, gpu_type, parts, found)
        return Miss(tuple(shorts), tried and bool(shorts))

    def plan(
        self, line: Line, now: int, kept: Mapping[str, Mapping[str, Load]]
    ) -> tuple[str, Plan] | None:
        """Find where and when one of a line can start first, beside what is kept already."""
        request = line.request
        found: list[tuple[int, str, str, Plan]] = []
        for cluster, nodes, gpu_type in self.options(request):
            parts = typed(request.parts, gpu_type)
            if self.short(line, parts) is None:
                plan = earliest(nodes, parts, now, request.where(now), kept.get(cluster))
                if plan is not None:
                    found.append((plan.start, cluster, gpu_type, plan))
        if not found:
            return None
        _, cluster, _, plan = min(found, key=lambda one: one[:3])
        return cluster, plan

    def may_reserve(self, line: Line) -> bool:
        """Whether nodes may be kept for one of a line: it is known, could fit, and no quota stops it."""
        return (
            self.quotas.knows(line.project)
            and self.could(line.request)
            and any(
                self.short(line, typed(line.request.parts, gpu_type)) is None
                for _, _, gpu_type in self.options(line.request)
            )
        )

    def options(self, request: Request) -> Iterator[tuple[str, Nodes, str]]:
        """Clusters that a request may go to, and models there, by name."""
        for cluster in request.clusters:
            nodes = self.clusters.get(cluster)
            if nodes is not None:
                for gpu_type in request.types(nodes):
                    yield cluster, nodes, gpu_type

    # How it hangs together.

    def _mount(self, uid: str, before: Sequence[str], after: Sequence[str]) -> None:
        for volume in set(before) - set(after):
            self._mounts[volume].discard(uid)
            if not self._mounts[volume]:
                del self._mounts[volume]
        for volume in after:
            self._mounts[volume].add(uid)

    def _charge(self, uid: str) -> None:
        volume = self.volumes.get(uid)
        if volume is None:
            self.holds.set(uid, holds.Hold())
            return
        mounting = {one: self.works[one] for one in self._mounts.get(uid, ())}
        self.holds.set(uid, holds.of_volume(volume, mounting))

    def _enter_mounting(self, volume: str) -> None:
        for uid in sorted(self._mounts.get(volume, ())):
            self._leave(uid)
            if self.works[uid].waits:
                self._enter(self.works[uid])

    def _leave(self, uid: str) -> None:
        self.lines.leave(uid)
        self.lacking.pop(uid, None)
        self.refusable.discard(uid)

    def _enter(self, work: Work) -> None:
        if work.held is not None:
            self.lines.enter(work, lines_for_more(work, self.volumes))
            return
        if work.expire_time < FOREVER:
            heapq.heappush(self._expiring, (work.expire_time, work.uid))
        if work.refusal is not None:
            self.refusable.add(work.uid)
            return
        for uid in work.volumes:
            if uid not in self.volumes:
                self.lacking[work.uid] = uid
                return
            if self.volumes[uid].withdrawn or self.volumes[uid].gone:
                self.refusable.add(work.uid)
                return
        if any(self.volumes[uid].size_bytes != size for uid, size in work.sizes):
            self.refusable.add(work.uid)
            return
        self.lines.enter(work, [line_of(work, self.volumes)])
