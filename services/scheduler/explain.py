"""Why a workload waits: a code with what is short, where, by how much; and its place in the queue."""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from fermion.api.workload import v1 as workload
from services.scheduler import quota
from services.scheduler.admission import beside, holder, reservations
from services.scheduler.demand import ARRIVED, CLASSES, RESERVED, Said, Work
from services.scheduler.lines import Reserved, Row, Shape
from services.scheduler.placement import ANY, DEVICE, Part, amounts, count, typed
from services.scheduler.quota import Short
from services.scheduler.state import Fit, State

# Of what a reason is short: it is not there now, or never will be as things are.
FREE: Final = "free"
TOTAL: Final = "total"
ROOM: Final = "room"
LIMIT: Final = "limit"

NO_CLUSTER: Final = Said("NO_CLUSTER")
VOLUME_UNKNOWN: Final = Said("VOLUME_UNKNOWN")
QUOTA_UNKNOWN: Final = Said("QUOTA_UNKNOWN")
QUOTA: Final = Said("QUOTA", ROOM)
QUOTA_LIMIT: Final = Said("QUOTA", LIMIT)
OVER_QUOTA: Final = Said("OVER_QUOTA", ROOM)
CAPACITY: Final = Said("CAPACITY", FREE)
CAPACITY_TOTAL: Final = Said("CAPACITY", TOTAL)
FRAGMENTED: Final = Said("FRAGMENTED")
BEHIND: Final = Said("BEHIND")

# What has these waits for somebody to act, and not for its turn.
SET_ASIDE: Final = frozenset(
    {NO_CLUSTER, VOLUME_UNKNOWN, QUOTA_UNKNOWN, QUOTA_LIMIT, CAPACITY_TOTAL}
)
# Another kind of reason is stated at most so often.
AGAIN_MILLISECONDS: Final = 60_000


class Lack(NamedTuple):
    """
    One amount of which there is too little; `where` is a quota's scope, or a cluster.

    `most` is given where there is enough of it in all: what one node has of it.
    """

    where: str
    dimension: str
    need: int
    free: int
    limit: int
    most: int | None = None

    @property
    def short(self) -> int:
        """By how much more than what is free it asks for; than what is on one node, where that is it."""
        return max(0, self.need - (self.free if self.most is None else self.most))


class Verdict(NamedTuple):
    """What is in a workload's way."""

    said: Said
    lacks: tuple[Lack, ...] = ()
    # What is kept for it, or for the one whose nodes it may not take.
    reserved: Reserved | None = None
    # The volume, or the project, that is not known.
    name: str = ""


class Look:
    """One look at everything that waits; what is alike is looked at once."""

    def __init__(self, state: State, now: int) -> None:
        self._state = state
        self._now = now
        self._kept: dict[int, dict[str, Reserved]] = {}
        self._shapes: dict[Shape, Verdict | None] = {}
        self._holders = {
            found[0]: found[1]
            for flavour in state.lines.flavours()
            if (found := holder(state, flavour)) is not None
        }

    def at(self, uid: str) -> Verdict | None:
        """What is in the way of a workload that waits; None where nothing is."""
        state = self._state
        if uid in state.lacking:
            return Verdict(VOLUME_UNKNOWN, name=state.lacking[uid])
        rows = state.lines.of(uid)
        if not rows:
            return None
        row = self._holders.get(uid)
        if row is not None:
            kept = self._reservations(row.line.request.klass).get(row.shape.flavour)
            return Verdict(RESERVED, reserved=kept)
        return self.at_row(rows[0])

    def at_row(self, row: Row) -> Verdict | None:
        """What is in the way of all that wait in a line, but for who has a reservation."""
        state, request = self._state, row.line.request
        if not request.clusters:
            return Verdict(NO_CLUSTER)
        if not state.quotas.knows(row.line.project):
            return Verdict(QUOTA_UNKNOWN, name=row.line.project)
        shorts = [
            state.short(row.line, typed(request.parts, gpu_type))
            for _, _, gpu_type in state.options(request)
        ]
        stopped = [short for short in shorts if short is not None]
        # A quota is in the way only where it is in the way of every model there is.
        stops = stopped and len(stopped) == len(shorts)
        short = min(stopped, key=lambda one: not one.ever) if stops else None
        if short is not None and not short.ever:
            return _quota(short)
        if not state.could(request):
            return Verdict(CAPACITY_TOTAL, self._lacks(row.shape, total=True)[1])
        if short is not None:
            return _quota(short)
        if row.shape not in self._shapes:
            self._shapes[row.shape] = self._capacity(row)
        return self._shapes[row.shape]

    def _capacity(self, row: Row) -> Verdict | None:
        """What is in the way of a shape on the nodes."""
        shape, request = row.shape, row.line.request
        # Passes remember what did not fit; who has none of that memory tries.
        if not shape.dead or shape.behind:
            kept = self._reservations(request.klass)
            rooms = beside(request, kept.values(), self._now)
            if isinstance(self._state.fit(row.line, self._now, rooms), Fit):
                return None
            if rooms and isinstance(self._state.fit(row.line, self._now, {}), Fit):
                end = request.end(self._now)
                binding = [one for one in kept.values() if one.binds(request.klass, end)]
                return Verdict(BEHIND, reserved=binding[0])
        in_sum, lacks = self._lacks(shape, total=False)
        return Verdict(CAPACITY if in_sum else FRAGMENTED, lacks)

    def _reservations(self, klass: int) -> Mapping[str, Reserved]:
        if klass not in self._kept:
            self._kept[klass] = reservations(self._state, klass, self._now)
        return self._kept[klass]

    def _lacks(self, shape: Shape, *, total: bool) -> tuple[bool, tuple[Lack, ...]]:
        """
        What a shape needs and there is too little of, in the cluster that lacks least of it.

        Also whether that is so in all, or only on each node.
        """
        found: list[tuple[int, str, str, tuple[Lack, ...]]] = []
        request = shape.request
        for cluster in request.clusters:
            nodes = self._state.clusters.get(cluster)
            types = request.types(nodes) if nodes is not None else ()
            for gpu_type in types or (ANY,):
                lacks = []
                for dimension, need in _needs(typed(request.parts, gpu_type)).items():
                    there = 0 if nodes is None else nodes.total(dimension)
                    free = 0 if nodes is None else nodes.left(dimension)
                    lacks.append(
                        Lack(
                            f"clusters/{cluster}",
                            dimension,
                            need,
                            there if total else free,
                            there,
                        )
                    )
                missing = tuple(one for one in lacks if one.short)
                kept = missing or self._largest(shape, cluster, gpu_type, total=total)
                found.append((len(missing), cluster, gpu_type, kept))
        if not found:
            return True, ()
        missing_of, _, _, kept = min(found)
        return missing_of > 0, kept

    def _largest(
        self, shape: Shape, cluster: str, gpu_type: str, *, total: bool
    ) -> tuple[Lack, ...]:
        """There is enough in all: what one replica needs, and the most that one node has of it."""
        nodes = self._state.clusters.get(cluster)
        parts = [part for part in typed(shape.request.parts, gpu_type) if part.number]
        if nodes is None or not parts:
            return ()
        part = max(parts, key=lambda one: (one.size.gpu_milli, one.size.cpu_milli))
        rooms = [
            node.shape.whole if total else node.room for node in nodes.nodes.values() if node.keys
        ]
        if any(count(room, part.size, 1) for room in rooms):
            return ()
        found = []
        for dimension, need in _needs([part._replace(number=1)]).items():
            most = max((amounts(room).get(dimension, 0) for room in rooms), default=0)
            if most < need:
                there = nodes.total(dimension)
                free = there if total else nodes.left(dimension)
                found.append(Lack(f"clusters/{cluster}", dimension, need, free, there, most))
        return tuple(found)


def reason(verdict: Verdict) -> workload.Reason:
    """Write what is in the way as it is stated, and shown."""
    first = verdict.lacks[0] if verdict.lacks else None
    arguments = _arguments(verdict.said, first)
    match verdict.said:
        case Said("NO_CLUSTER"):
            return workload.Reason(
                code="NO_CLUSTER",
                message="No cluster is enrolled that it could run on; "
                "it is admitted when there is one.",
            )
        case Said("VOLUME_UNKNOWN"):
            return workload.Reason(
                code="VOLUME_UNKNOWN",
                arguments={"volume": verdict.name},
                message="A volume that it mounts has not been declared yet.",
            )
        case Said("QUOTA_UNKNOWN"):
            return workload.Reason(
                code="QUOTA_UNKNOWN",
                arguments={"project": verdict.name},
                message="The limits of its project have not been read yet.",
            )
        case Said("QUOTA"):
            return workload.Reason(
                code="QUOTA", arguments=arguments, message=_quota_message(verdict.said, first)
            )
        case Said("OVER_QUOTA"):
            return workload.Reason(
                code="OVER_QUOTA", arguments=arguments, message=_quota_message(verdict.said, first)
            )
        case Said("CAPACITY"):
            return workload.Reason(
                code="CAPACITY", arguments=arguments, message=_capacity_message(verdict.said, first)
            )
        case Said("FRAGMENTED"):
            return workload.Reason(
                code="FRAGMENTED",
                arguments=arguments,
                message="There is enough free in all, and not on one node.",
            )
        case Said("BEHIND"):
            return workload.Reason(
                code="BEHIND",
                message="It would fit, on nodes that are kept for one that has waited longer.",
            )
        case Said("RESERVED"):
            return workload.Reason(
                code="RESERVED",
                message="Nodes are kept for it: it starts when what runs on them has ended.",
            )
        case _:
            return workload.Reason(code="ARRIVED", message="It has just arrived.")


def told(state: State, now: int, most: int) -> Iterator[tuple[str, workload.Reason]]:
    """Whom to tell another kind of reason than was stated, at most so many."""
    look = Look(state, now)
    # Whoever was told to have a reservation is told at once when he has it no more.
    for uid, work in _waiting(state):
        hurries = work.said in (ARRIVED, RESERVED)
        if not hurries and now < work.said_time + AGAIN_MILLISECONDS:
            continue
        verdict = look.at(uid)
        if verdict is None or verdict.said == work.said:
            continue
        if most <= 0:
            return
        most -= 1
        yield uid, reason(verdict)


def line_up(state: State, now: int) -> list[str]:
    """
    All that wait, in the order in which they would be admitted if there were room.

    Who has a reservation goes before the others of its class. What waits for somebody to act, and
    not for its turn, comes last.
    """
    look, totals = Look(state, now), state.holds.totals()
    classes: defaultdict[int, defaultdict[str, list[Work]]] = defaultdict(lambda: defaultdict(list))
    for uid, work in _waiting(state):
        rows = state.lines.of(uid)
        verdict = look.at(uid)
        aside = verdict is not None and verdict.said in SET_ASIDE
        klass = rows[0].line.request.klass if rows else work.klass
        reserved = verdict is not None and verdict.said == RESERVED
        # Halves, so that who has a reservation stands before its class.
        classes[2 * (klass + CLASSES * aside) + (not reserved)][work.project].append(work)
    found: list[str] = []
    held = {scope: Counter(used) for scope, used in state.quotas.used.items()}
    for _, projects in sorted(classes.items()):
        queues = {
            name: sorted(works, key=lambda one: (-one.priority, one.item))
            for name, works in projects.items()
        }
        heads = [
            (_share(held, quota.PROJECTS + name, totals), *works[0].item, name, 0)
            for name, works in queues.items()
        ]
        heapq.heapify(heads)
        while heads:
            *_, name, at = heapq.heappop(heads)
            work = queues[name][at]
            found.append(work.uid)
            for group in work.groups:
                more = quota.amounts(group.size, min(group.least, group.wanted))
                held.setdefault(quota.PROJECTS + name, Counter()).update(more)
            if at + 1 < len(queues[name]):
                share = _share(held, quota.PROJECTS + name, totals)
                heapq.heappush(heads, (share, *queues[name][at + 1].item, name, at + 1))
    return found


def words(dimension: str, amount: int) -> str:
    """An amount as people say it."""
    name, _, key = dimension.partition("/")
    match name:
        case "gpu_milli":
            model = "" if key == ANY else f"{key} "
            return f"{amount / DEVICE:g} {model}GPU{'' if amount == DEVICE else 's'}"
        case "cpu_milli":
            return f"{amount / 1000:g} CPU{'' if amount == 1000 else 's'}"
        case "workloads":
            return f"{amount} {key}{'' if amount == 1 else 's'}"
        case _:
            return f"{_size(amount)} of {name.removesuffix('_bytes')}"


def _waiting(state: State) -> Iterator[tuple[str, Work]]:
    """What waits: in the order in which it came into the state."""
    for uid, work in state.works.items():
        if work.waits and uid not in state.refusable:
            yield uid, work


def _quota(short: Short) -> Verdict:
    lack = Lack(short.scope, short.dimension, short.need, short.limit - short.used, short.limit)
    if not short.ever:
        return Verdict(QUOTA_LIMIT, (lack,))
    return Verdict(OVER_QUOTA if short.used > short.limit else QUOTA, (lack,))


def _needs(parts: Sequence[Part]) -> dict[str, int]:
    """What a shape takes in all; of GPUs by model, or of any."""
    found: Counter[str] = Counter()
    for part in parts:
        for dimension, amount in quota.amounts(part.size, part.number).items():
            if dimension != f"gpu_milli/{ANY}" or part.size.gpu_type == ANY:
                found[dimension] += amount
        if part.size.storage_bytes:
            found["storage_bytes"] += part.number * part.size.storage_bytes
    return dict(sorted(found.items(), key=lambda one: (not one[0].startswith("gpu"), one[0])))


def _arguments(said: Said, lack: Lack | None) -> dict[str, str]:
    """What clients write their own sentence from; of what waiting does not help, `total` and not `free`."""
    found = {"short_of": said.short_of} if said.short_of else {}
    if lack is None:
        return found
    found |= {"dimension": lack.dimension, "need": str(lack.need), "short": str(lack.short)}
    if said.code in (QUOTA.code, OVER_QUOTA.code):
        used = str(lack.limit - lack.free)
        return {**found, "scope": lack.where, "used": used, "limit": str(lack.limit)}
    found["cluster"] = lack.where.removeprefix("clusters/")
    if lack.most is not None:
        found["largest"] = str(lack.most)
        return found if said == CAPACITY_TOTAL else {**found, "free": str(lack.free)}
    return {**found, TOTAL if said == CAPACITY_TOTAL else FREE: str(lack.free)}


def _quota_message(said: Said, lack: Lack | None) -> str:
    if lack is None:
        return "A quota is used up."
    who = "The project" if lack.where.startswith(quota.PROJECTS) else "The user"
    limit = words(lack.dimension, lack.limit)
    need = words(lack.dimension, lack.need)
    match said:
        case Said("QUOTA", "limit"):
            return f"{who} may hold {limit}, and this asks for {need}."
        case Said("OVER_QUOTA"):
            return f"{who} holds more than {limit}, which is the limit by now; nothing new starts."
        case _:
            free = words(lack.dimension, max(0, lack.free))
            return f"{who} may hold {limit}; {free} of that is left, and this asks for {need}."


def _capacity_message(said: Said, lack: Lack | None) -> str:
    if lack is None:
        if said == CAPACITY_TOTAL:
            return "No node is as it asks for."
        return "No node has room for it now."
    need, free = words(lack.dimension, lack.need), words(lack.dimension, lack.free)
    if lack.most is not None:
        return f"It asks for {need} on one node, and none has more than {words(lack.dimension, lack.most)}."
    if said == CAPACITY_TOTAL:
        return f"It asks for {need}, and there is no more than {free} in all."
    return f"It asks for {need}, and {free} is free now."


def _share(held: Mapping[str, Counter[str]], scope: str, totals: quota.Amounts) -> int:
    return quota.part_of(held.get(scope, {}), totals)


def _size(number: int) -> str:
    for unit, length in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if number >= length:
            return f"{number / length:.4g} {unit}"
    return f"{number} bytes"
