"""
The one pass that admits. Pure: integers, one `now` a pass.

**Order.** Classes first (serving, interactive, batch, spot), then the project with the least dominant
share, in it priority, the user with the least share, and age.

**Reservation.** The one of its flavour (model of GPU, or none) that has waited longest, could fit and
does not, keeps the nodes that free earliest. Others of its class or of a later one are admitted only
where they fit beside it, so that no admission of theirs moves its start; an earlier class passes. Who
has it keeps it until it is admitted, withdrawn, stopped by a quota, or followed by an earlier class;
its nodes are found anew in each pass.

**Memory.** The state remembers what did not fit (`lines`). A pass with memory and one without decide
the same, so a successor that reads everything anew goes on as its predecessor would have.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Final, TypeAlias

from services.scheduler import quota
from services.scheduler.demand import ARRIVED, CLASSES, RESERVED, Held, Item, Request, Work
from services.scheduler.lines import Reserved, Row, Shape, could_hold
from services.scheduler.placement import Load, Room, taken
from services.scheduler.state import Fit, State

UNHONOURED: Final = "unhonoured"
EXPIRED: Final = "expired"
VOLUME_GONE: Final = "volume gone"
VOLUME_SIZE: Final = "volume size"


@dataclass(frozen=True, slots=True)
class Admit:
    """So many replicas on these nodes, in all; with it, volumes that it is the first to mount."""

    uid: str
    held: Held
    volumes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Refuse:
    """It will never run: no cluster honours it, its time is over, or its volume is going, or is another."""

    uid: str
    why: str


@dataclass(frozen=True, slots=True)
class Release:
    """Nothing of a workload, or of a volume, is there any more."""

    uid: str


@dataclass(frozen=True, slots=True)
class Reserve:
    """From now on nodes are kept for it."""

    uid: str


# Priority, share, age and uid of the first of a line.
Standing: TypeAlias = tuple[int, int, int, str, Row]
Decision: TypeAlias = Admit | Refuse | Release | Reserve


def admit(state: State, now: int, limit: int) -> list[Decision]:
    """
    Decide what is over and who runs next, at most so many; what is decided is held in the state.

    Time is in milliseconds. The same state and time give the same decisions, whatever the state
    remembers of earlier passes.
    """
    over = list(_over(state, now))
    for decision in over:
        if decision.uid in state.volumes:
            state.drop_volume(decision.uid)
        else:
            state.drop(decision.uid)
    state.wake(now)
    found = _Pass(state, now, limit)
    found.run()
    return [*over, *found.decisions()]


def holder(state: State, flavour: str) -> tuple[str, Row] | None:
    """Who has the reservation of a flavour: the first of those who were told so and may keep it."""
    for _, _, uid in state.lines.claimants(flavour):
        row = state.lines.of_flavour(uid, flavour)
        if row is not None and state.may_reserve(row.line):
            return uid, row
    return None


def holders(state: State, klass: int) -> list[tuple[str, Row]]:
    """Who has a reservation that binds a class: the earlier class, then the longer wait, comes first."""
    found = [holder(state, flavour) for flavour in state.lines.flavours()]
    binding = [one for one in found if one is not None and one[1].line.request.klass <= klass]
    return sorted(
        binding,
        key=lambda one: (one[1].line.request.klass, state.works[one[0]].queue_time, one[0]),
    )


def reservations(state: State, klass: int, now: int) -> dict[str, Reserved]:
    """What is kept for others of a class, by flavour, as the state stands."""
    found: dict[str, Reserved] = {}
    kept: defaultdict[str, dict[str, Load]] = defaultdict(dict)
    for uid, row in holders(state, klass):
        reserved = _reserved(state, uid, row, now, kept)
        if reserved is not None:
            found[row.shape.flavour] = reserved
    return found


def beside(
    request: Request, reserved: Iterable[Reserved], now: int
) -> dict[str, list[Mapping[str, Room]]]:
    """What is left on nodes that are kept for others, where a request could be in their way."""
    end = request.end(now)
    found: defaultdict[str, list[Mapping[str, Room]]] = defaultdict(list)
    for one in reserved:
        if one.binds(request.klass, end):
            found[one.cluster].append(one.plan.slack)
    return found


def _reserved(
    state: State, uid: str, row: Row, now: int, kept: dict[str, dict[str, Load]]
) -> Reserved | None:
    """Keep nodes for one, beside what is kept already; None where it can never start."""
    planned = state.plan(row.line, now, kept)
    if planned is None:
        return None
    cluster, plan = planned
    for node, load in plan.kept.items():
        kept[cluster][node] = (*kept[cluster].get(node, ()), *load)
    return Reserved(uid, row.line.request.klass, cluster, plan)


def _over(state: State, now: int) -> Iterator[Decision]:
    for uid in sorted(state.done):
        yield Release(uid)
    for uid in sorted(state.refusable):
        yield Refuse(uid, _why(state, state.works[uid]))
    for uid in state.over(now):
        if uid not in state.refusable:
            yield Refuse(uid, EXPIRED)


def _why(state: State, work: Work) -> str:
    if work.refusal is not None:
        return UNHONOURED
    volumes = [state.volumes[uid] for uid in work.volumes]
    going = any(volume.withdrawn or volume.gone for volume in volumes)
    return VOLUME_GONE if going else VOLUME_SIZE


class _Pass:
    """One walk through the queue."""

    def __init__(self, state: State, now: int, limit: int) -> None:
        self._state = state
        self._now = now
        self._left = limit
        self._totals = state.holds.totals()
        self._shares: dict[str, dict[str, int]] = {}
        # What was admitted, each with the volumes that it is the first to mount.
        self._admitted: dict[str, list[str]] = {}
        self._reserved: list[str] = []
        # What is kept for others of the class that is walked, by flavour.
        self._kept: dict[str, Reserved] = {}
        # Lines of that class that may fit, by project; of projects that were asked, in their order.
        self._candidates: Mapping[str, list[Row]] = {}
        self._queues: dict[str, list[Standing]] = {}
        # Projects by share, and by the age of their oldest that may fit.
        self._heads: list[tuple[int, int, str, str]] = []
        # Lines that are to be tried again in the next pass.
        self._again: list[Row] = []

    def run(self) -> None:
        """Walk class by class; who has a reservation is asked before all others of its class."""
        for klass in range(CLASSES):
            self._keep(klass)
            self._walk(klass)
            for row in self._again:
                self._state.lines.again(row)
            self._again.clear()
        if self._left > 0:
            self._state.lines.rest()
            for flavour in self._state.lines.flavours():
                self._reserve(flavour)

    def decisions(self) -> Iterator[Decision]:
        """What was decided: one admission a workload, and who has a reservation now."""
        for uid, volumes in self._admitted.items():
            held = self._state.works[uid].held
            assert held is not None
            yield Admit(uid, held, tuple(volumes))
        for uid in self._reserved:
            yield Reserve(uid)

    # Reservations.

    def _keep(self, klass: int) -> None:
        """Admit who has a reservation of this class and fits; keep nodes for who does not."""
        self._kept = {}
        lines = self._state.lines
        if lines.is_idle(klass) and not lines.is_claimed(klass):
            return
        kept: defaultdict[str, dict[str, Load]] = defaultdict(dict)
        for uid, row in holders(self._state, klass):
            if row.line.request.klass == klass and self._left > 0:
                # What is kept for others may be less by now, so that it fits anywhere.
                fit = self._fit(row, anywhere=True)
                if fit is not None:
                    self._admit(row, self._state.works[uid], fit)
                    continue
            reserved = _reserved(self._state, uid, row, self._now, kept)
            if reserved is not None:
                self._kept[row.shape.flavour] = reserved
        lines.keep(klass, self._kept)

    def _reserve(self, flavour: str) -> None:
        """Give the reservation of a flavour to the one of the earliest class that has waited longest."""
        state = self._state
        present = holder(state, flavour)
        for klass in range(CLASSES if present is None else present[1].line.request.klass):
            for _, uid, row in state.lines.ranked(flavour, klass):
                if not row.blocked and state.may_reserve(row.line):
                    state.lines.claim(flavour, uid)
                    if state.works[uid].said != RESERVED:
                        self._reserved.append(uid)
                    return

    # The walk.

    def _walk(self, klass: int) -> None:
        lines = self._state.lines
        self._queues, self._heads = {}, []
        self._candidates = lines.candidates(klass)
        for project, rows in self._candidates.items():
            self._head(project, min([row.items[0] for row in rows]))
        while self._left > 0 and (asked := self._ask()):
            # Several projects may have been asked; the one that goes first is admitted.
            _, uid, row, fit = min(asked.values())
            self._admit(row, self._state.works[uid], fit)
            lines.give_up(self._state.clusters)
            queue = self._queues[row.line.project]
            for more in dict.fromkeys((row, *lines.of(uid))):
                if more.line.request.klass == klass and lines.is_alive(more):
                    heapq.heappush(queue, self._standing(more))
            for project in asked:
                if self._queues[project]:
                    self._head(project, min([one[2:4] for one in self._queues[project]]))

    def _ask(self) -> dict[str, tuple[tuple[int, int], str, Row, Fit]]:
        """
        Ask projects for the first of each that fits, until none that is left could go before them.

        Projects go by their share, then by the age of the one that fits. Who does not fit changes
        nothing: with memory and without, the same one is found.
        """
        asked: dict[str, tuple[tuple[int, int], str, Row, Fit]] = {}
        while self._heads and not any(
            (*found[0], found[1]) <= self._heads[0][:3] for found in asked.values()
        ):
            share, *_, project = heapq.heappop(self._heads)
            first = self._first(project)
            if first is not None:
                time, uid, row, fit = first
                asked[project] = ((share, time), uid, row, fit)
        return asked

    def _first(self, project: str) -> tuple[int, str, Row, Fit] | None:
        """The first of a project that fits: by priority, the share of its user, and age."""
        lines = self._state.lines
        queue = self._queues.get(project)
        if queue is None:
            rows = self._candidates[project]
            queue = [self._standing(row) for row in rows if lines.is_alive(row)]
            heapq.heapify(queue)
            self._queues[project] = queue
        while queue:
            row = queue[0][-1]
            if not lines.is_alive(row) or row in self._again:
                heapq.heappop(queue)
            elif (standing := self._standing(row)) != queue[0]:
                # The share of its user has grown meanwhile, or another of its line is next.
                heapq.heapreplace(queue, standing)
            else:
                found = self._fit(row)
                if found is not None:
                    return (*row.items[0], row, found)
        return None

    def _head(self, project: str, oldest: Item) -> None:
        """Let a project take its place among the others, by the oldest of it that may fit."""
        share = self._state.quotas.share(quota.PROJECTS + project, self._totals)
        heapq.heappush(self._heads, (share, *oldest, project))

    def _standing(self, row: Row) -> Standing:
        line = row.line
        return (-line.priority, self._share(line.project, line.user), *row.items[0], row)

    def _share(self, project: str, user: str) -> int:
        """The share of a user in a project, as long as nothing of it is admitted."""
        shares = self._shares.setdefault(project, {})
        found = shares.get(user)
        if found is None:
            scope = quota.leaf(project, user)
            found = shares[user] = self._state.quotas.share(scope, self._totals)
        return found

    def _fit(self, row: Row, anywhere: bool = False) -> Fit | None:
        """Find where one of a line fits, or remember what is in its way."""
        lines, line, shape = self._state.lines, row.line, row.shape
        rooms = beside(line.request, self._kept.values(), self._now)
        if shape.dead and not anywhere and self._is_hopeless(shape, rooms):
            return None
        found = self._state.fit(line, self._now, rooms)
        if isinstance(found, Fit):
            return found
        if found.partly:
            lines.sleep(row)
            self._again.append(row)
        elif found.shorts:
            lines.block(row, [short.scope for short in found.shorts])
        else:
            behind = bool(rooms) and isinstance(self._state.fit(line, self._now, {}), Fit)
            lines.kill(shape, behind, self._now)
        return None

    def _is_hopeless(self, shape: Shape, rooms: Mapping[str, Sequence[Mapping[str, Room]]]) -> bool:
        """Whether what may fit only on nodes that have grown does not, where that is cheap to tell."""
        if not shape.hopes:
            return False
        request, behind = shape.request, False
        alone = sum(part.number for part in request.parts) == 1
        for cluster, name in chain.from_iterable(shape.hopes):
            node = self._state.clusters[cluster].nodes.get(name)
            if node is None or not could_hold(node.room, request):
                continue
            if not alone or request.avoid or request.architecture or request.driver:
                return False
            slacks = [slack[name] for slack in rooms.get(cluster, ()) if name in slack]
            if all(could_hold(slack, request) for slack in slacks):
                return False
            behind = True
        self._state.lines.despair(shape, behind)
        return True

    def _admit(self, row: Row, work: Work, fit: Fit) -> None:
        line = row.line
        self._left -= 1
        self._shares.pop(line.project, None)
        held = work.held or Held(fit.cluster, {}, {}, fit.gpu_type, self._now)
        replicas, nodes = dict(held.replicas), dict(held.nodes)
        for part, chosen in zip(fit.parts, fit.nodes, strict=True):
            replicas[part.role] = replicas.get(part.role, 0) + len(chosen)
            nodes[part.role] = (*nodes.get(part.role, ()), *chosen)
        volumes = self._admitted.setdefault(work.uid, [])
        for uid in work.volumes if work.held is None else ():
            volume = self._state.volumes[uid]
            if not volume.cluster:
                volumes.append(uid)
                self._state.put_volume(replace(volume, cluster=fit.cluster))
        gpu_type = held.gpu_type or fit.gpu_type
        held = replace(held, replicas=replicas, nodes=nodes, gpu_type=gpu_type)
        # What still wants more has arrived anew: as batch does, and with nothing kept for it.
        self._state.put(replace(work, held=held, said=ARRIVED))
        end = line.request.end(self._now)
        for reserved in self._kept.values():
            if reserved.cluster == fit.cluster and reserved.binds(line.request.klass, end):
                _take(reserved.plan.slack, fit)


def _take(slack: dict[str, Room], fit: Fit) -> None:
    for part, chosen in zip(fit.parts, fit.nodes, strict=True):
        for node in chosen:
            if node in slack:
                slack[node] = taken(slack[node], part.size)
