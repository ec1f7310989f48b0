"""A queue, clusters and quotas for tests of admission, and what happens to them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from hypothesis import strategies as st

from services.scheduler.admission import Admit, Decision, Reserve, admit
from services.scheduler.demand import (
    ARRIVED,
    BATCH,
    INTERACTIVE,
    RESERVED,
    SERVING,
    SPOT,
    Group,
    Volume,
    Work,
)
from services.scheduler.placement import ANY, FOREVER, Gpus, Room, Shape, Size
from services.scheduler.state import State

GB = 10**9
START = 1_000_000
KLASSES = {SERVING: "inference", INTERACTIVE: "instance", BATCH: "training", SPOT: "training"}


def node(
    name: str, *, cpu: int = 64, memory: int = 256, gpus: int = 8, model: str = "A", **more: object
) -> Shape:
    """A node of so many CPUs, gigabytes and GPUs."""
    devices = (Gpus(model, gpus),) if gpus else ()
    room = Room(cpu * 1000, memory * GB, 1000 * GB, devices)
    return Shape(name, room, **more)  # type: ignore[arg-type]


def work(
    uid: str,
    *,
    gpus: float = 0,
    model: str = "A",
    cpu: int = 1,
    memory: int = 1,
    replicas: int = 1,
    least: int | None = None,
    **more: object,
) -> Work:
    """A workload of one group; what is not said is as for an instance that has no end."""
    size = Size(model if gpus else "", int(gpus * 1000), cpu * 1000, memory * GB)
    groups = (Group("", size, replicas, replicas if least is None else least),)
    fields: dict[str, object] = {
        "project": "acme",
        "user": "ada",
        "groups": groups,
        "queue_time": START,
        "clusters": ("c",),
        **more,
    }
    return Work(uid, **fields)  # type: ignore[arg-type]


@dataclass(slots=True)
class World:
    """What is true, and the state that admission has of it."""

    state: State = field(default_factory=State)
    works: dict[str, Work] = field(default_factory=dict)
    volumes: dict[str, Volume] = field(default_factory=dict)
    now: int = START

    @classmethod
    def of(cls, *nodes: Shape, projects: Sequence[str] = ("acme", "other")) -> World:
        """A world of one cluster, and projects without limits."""
        world = cls()
        for shape in nodes:
            world.state.nodes("c").put(shape)
        world.limit({}, projects)
        return world

    def limit(
        self,
        limits: Mapping[str, Mapping[str, int]],
        projects: Sequence[str] = ("acme", "other"),
    ) -> None:
        """Have these limits; the uid of a project is its name in capitals."""
        self.state.limit({name: name.upper() for name in projects}, limits)

    def declare(self, *works: Work) -> None:
        """Let these wait."""
        for one in works:
            self._put(one)

    def store(self, *volumes: Volume) -> None:
        """Have these volumes."""
        for one in volumes:
            self.volumes[one.uid] = one
            self.state.put_volume(one)

    def change(self, uid: str, **fields: object) -> None:
        """Have something happen to a workload."""
        self._put(replace(self.works[uid], **fields))  # type: ignore[arg-type]

    def end(self, *uids: str) -> None:
        """Let these be over, and nothing of them be there."""
        for uid in uids:
            self.change(uid, ended=True, replicas=())

    def withdraw(self, uid: str) -> None:
        """Let one wait no more."""
        del self.works[uid]
        self.state.drop(uid)

    def turn(self, later: int = 0, limit: int = 1000) -> list[Decision]:
        """Decide, and have what was decided be true."""
        self.now += later
        decisions = admit(self.state, self.now, limit)
        for decision in decisions:
            self.say(decision)
        return decisions

    def say(self, decision: Decision) -> None:
        """Put what a decision says as its fact would."""
        match decision:
            case Admit(uid=uid, held=held, volumes=volumes):
                for one in volumes:
                    self.store(replace(self.volumes[one], cluster=held.cluster))
                self.change(uid, held=held, said=ARRIVED)
            case Reserve(uid=uid):
                self.change(uid, said=RESERVED)
            case _:
                self.works.pop(decision.uid, None)
                self.volumes.pop(decision.uid, None)

    def admitted(self, later: int = 0, limit: int = 1000) -> list[str]:
        """Decide, and tell who was admitted, in order."""
        return [one.uid for one in self.turn(later, limit) if isinstance(one, Admit)]

    def nodes_of(self, uid: str) -> list[str]:
        """Where the replicas of a workload are."""
        held = self.works[uid].held
        return [] if held is None else [name for names in held.nodes.values() for name in names]

    def _put(self, one: Work) -> None:
        self.works[one.uid] = one
        self.state.put(one)


def used(works: Mapping[str, Work]) -> dict[str, Counter[str]]:
    """What each project and user holds, counted by nothing but what was admitted."""
    found: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for one in works.values():
        if one.held is None or one.ended:
            continue
        mine = Counter({f"workloads/{one.kind}": 1})
        for group in one.groups:
            replicas = one.held.replicas[group.role]
            model = group.size.gpu_type
            model = one.held.gpu_type if model == ANY else model
            mine["cpu_milli"] += replicas * group.size.cpu_milli
            mine["memory_bytes"] += replicas * group.size.memory_bytes
            if group.size.gpu_milli:
                mine[f"gpu_milli/{model}"] += replicas * group.size.gpu_milli
                mine["gpu_milli/*"] += replicas * group.size.gpu_milli
        for scope in (f"projects/{one.project}", f"users/{one.user}"):
            found[scope].update(mine)
    return {scope: +amounts for scope, amounts in found.items() if +amounts}


# Random histories: what may happen, each as a function of a world.

Event: TypeAlias = Callable[[World], None]


@st.composite
def _declared(draw: st.DrawFn, single: bool) -> Event:
    klass = draw(st.sampled_from(sorted(KLASSES)))
    gpus = draw(st.sampled_from([0, 0, 500, 1000, 1000, 2000, 4000, 8000]))
    model = draw(st.sampled_from(["A", "B", ANY]))
    size = Size(
        model if gpus else "",
        gpus,
        draw(st.sampled_from([1000, 2000, 4000])),
        draw(st.sampled_from([1, 2, 4])) * GB,
    )
    replicas = draw(st.sampled_from([1, 1, 1, 2, 4]))
    least = draw(st.sampled_from([replicas, replicas, 1, 0]))
    groups = [Group("", size, replicas, min(least, replicas))]
    if not single and draw(st.integers(0, 9)) == 0:
        groups.append(Group("beside", Size("", 0, 1000, GB), 2, 2))
    project = draw(st.sampled_from(["acme", "other", "third"]))
    user = draw(st.sampled_from(["ada", "bob"]))
    priority = draw(st.sampled_from([0, 0, 0, 5]))
    lasts = draw(st.sampled_from([FOREVER, 50, 200, 400]))
    gives_up = draw(st.sampled_from([FOREVER, FOREVER, 300]))
    avoids = draw(st.sampled_from(["", "", "", "", "n0", "n1"]))

    def happen(world: World) -> None:
        world.declare(
            Work(
                f"wkl_{len(world.works):03}{world.now}",
                project,
                user,
                kind=KLASSES[klass],
                klass=klass,
                priority=priority,
                groups=tuple(groups),
                lasts=lasts,
                queue_time=world.now,
                expire_time=min(FOREVER, world.now + gives_up),
                clusters=tuple(sorted(world.state.clusters)),
                avoid=((avoids, world.now + 60),) if avoids else (),
            )
        )

    return happen


@st.composite
def _on_one(draw: st.DrawFn, do: Callable[[World, Work, int], None], held: bool) -> Event:
    at, number = draw(st.integers(0, 30)), draw(st.integers(0, 5))

    def happen(world: World) -> None:
        found = [
            one
            for _, one in sorted(world.works.items())
            if (one.held is not None) == held and not one.ended
        ]
        if found:
            do(world, found[at % len(found)], number)

    return happen


def _end(world: World, one: Work, number: int) -> None:
    del number
    world.end(one.uid)


def _begin(world: World, one: Work, number: int) -> None:
    if one.began is None:
        world.change(one.uid, began=world.now - number)


def _withdraw(world: World, one: Work, number: int) -> None:
    del number
    world.withdraw(one.uid)


def _scale(world: World, one: Work, number: int) -> None:
    held, (first, *others) = one.held, one.groups
    assert held is not None
    fewer = min(number, held.replicas[first.role])
    nodes = {**held.nodes, first.role: held.nodes[first.role][:fewer]}
    world.change(
        one.uid,
        groups=(replace(first, wanted=number), *others),
        held=replace(held, replicas={**held.replicas, first.role: fewer}, nodes=nodes),
    )


@st.composite
def _node(draw: st.DrawFn) -> Event:
    cluster = draw(st.sampled_from(["c", "d"]))
    shape = node(
        f"n{draw(st.integers(0, 3))}",
        cpu=draw(st.sampled_from([8, 16])),
        memory=draw(st.sampled_from([16, 32])),
        gpus=draw(st.sampled_from([0, 2, 4, 8])),
        model=draw(st.sampled_from(["A", "B"])),
        cordoned=draw(st.integers(0, 9)) == 0,
    )
    goes = draw(st.integers(0, 4)) == 0

    def happen(world: World) -> None:
        if cluster in world.state.clusters:
            nodes = world.state.nodes(cluster)
            nodes.remove(shape.name) if goes else nodes.put(shape)

    return happen


LIMITS = st.fixed_dictionaries(
    {},
    optional={
        "projects/-": st.sampled_from([{"gpu_milli/*": 4000}, {"gpu_milli/*": 16000}]),
        "projects/ACME": st.sampled_from([{"gpu_milli/A": 2000}, {"cpu_milli": 6000}]),
        "users/-": st.sampled_from([{"cpu_milli": 8000, "workloads/instance": 2}]),
        "users/bob": st.sampled_from([{"memory_bytes": 6 * GB}]),
    },
)


def _limited(limits: Mapping[str, Mapping[str, int]]) -> Event:
    return lambda world: world.limit(limits, ("acme", "other", "third"))


def events(
    *, single: bool = False, nodes: bool = True, limits: bool = True
) -> st.SearchStrategy[Event]:
    """Something that happens between two passes."""
    found = [
        *[_declared(single)] * 4,
        *[_on_one(_end, held=True)] * 2,
        *(_on_one(_begin, held=True), _on_one(_withdraw, held=False), _on_one(_scale, held=True)),
    ]
    if nodes:
        found.append(_node())
    if limits:
        found.append(LIMITS.map(_limited))
    return st.one_of(found)


@st.composite
def worlds(draw: st.DrawFn) -> World:
    """A world with some nodes and limits, and nothing in it."""
    world = World.of(projects=())
    world.limit(draw(LIMITS), ("acme", "other", "third"))
    for cluster in ["c", "d"][: draw(st.integers(1, 2))]:
        for number in range(draw(st.integers(1, 3))):
            shape = node(
                f"n{number}",
                cpu=draw(st.sampled_from([8, 16])),
                memory=draw(st.sampled_from([16, 32])),
                gpus=draw(st.sampled_from([0, 2, 4, 8])),
                model=draw(st.sampled_from(["A", "B"])),
            )
            world.state.nodes(cluster).put(shape)
    return world


# Times between passes, each with what happens before the pass.
def histories(**kinds: bool) -> st.SearchStrategy[list[tuple[int, list[Event]]]]:
    """A history: how long nothing happens, and then what, before each pass."""
    step = st.tuples(st.sampled_from([0, 1, 10, 30]), st.lists(events(**kinds), max_size=5))
    return st.lists(step, min_size=1, max_size=25)
