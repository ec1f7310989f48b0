"""What is done to a platform: each fault strikes one target, and is healed some time later."""

from __future__ import annotations

import asyncio
import math
import os
import random
import select
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Final

import psutil

from chassis.bus import Away
from chassis.tasks import end
from tests.chaos.load import Ledger
from tests.chaos.stand import DISKS, SERVERS, SERVICES, Stand, Unanswered

# What a round of so many seconds holds; a shorter one holds as much of it as it lasts.
FULL_SECONDS: Final = 600
EACH_MIN: Final = 5
KILLS: Final = {"postgres": 15, "nats": 20, "shim": 45} | dict.fromkeys(SERVICES, 24)
# Facts of these are made all the time, so that some are committed and not yet published.
BUSY: Final = ("instances", "scheduler", "executor")
BACK_SECONDS_MAX: Final = 90.0
FIND_SECONDS_MAX: Final = 10.0
PARTITIONED: Final = ("nats", "postgres", "services")
# A service, and the lease that says which of its processes works.
LEASES: Final = {
    **{f"relay of {name}": (name, "relay") for name in SERVICES},
    "reader of instances": ("instances", "reader"),
    "reader of billing": ("billing", "reader"),
    "executor": ("executor", "reconciler"),
    "scheduler": ("scheduler", "admission"),
    "settler": ("billing", "settlement"),
}


class Missed(Exception):
    """There was nothing to strike just then."""


@dataclass
class Scene:
    """What faults act on, and what they leave to be judged."""

    stand: Stand
    ledger: Ledger
    # Replicas whose shims were struck: how, from when to when, in nanoseconds since 1970.
    hurt: dict[str, list[tuple[str, int, int]]] = field(default_factory=dict)


@dataclass
class Fault:
    """
    One fault. `strike` raises Missed where there was nothing to strike; `heal` takes back what it did.

    What it draws from is drawn with the plan, so that a seed names all of it.
    """

    kind: ClassVar[str]
    target: str
    # Between strike and heal.
    seconds: float
    # What else there is to choose, from 0 to below 1.
    draw: float
    # What it found when it struck.
    flying: int = 0
    unpublished: int = 0
    # How long the target was out of service, where it was.
    recovery: float | None = None

    def needs(self) -> frozenset[str]:
        """What no two faults strike at once."""
        return frozenset({self.target})

    async def strike(self, scene: Scene) -> None:
        """Do it."""
        raise NotImplementedError

    async def heal(self, scene: Scene) -> None:
        """Take it back; where the platform heals itself, wait for that."""

    def label(self) -> str:
        """One process of the target, where that is a service."""
        return self.target if self.draw < 0.5 or self.target in SERVERS else f"{self.target}-2"


class Kill(Fault):
    """SIGKILL, at a moment when calls are in flight and, where that can be, facts unpublished."""

    kind = "kill"

    def needs(self) -> frozenset[str]:
        return frozenset({self.label()} if self.target != "shim" else ())

    async def strike(self, scene: Scene) -> None:
        if self.target == "shim":
            name, victim = await a_shim(scene, self.draw)
            now = time.time_ns()
            scene.hurt.setdefault(name, []).append((self.kind, now, now))
        else:
            victim = await found(scene.stand, self.label())
            if self.target in (*BUSY, "nats"):
                journal = "instances" if self.target == "nats" else self.target
                self.unpublished = await frozen(scene.stand, victim, journal)
        self.flying = await calls(scene)
        self._struck = time.monotonic()
        await killed(victim)

    async def heal(self, scene: Scene) -> None:
        if self.target == "shim":
            return
        deadline = self._struck + BACK_SECONDS_MAX
        while not await asyncio.to_thread(scene.stand.serves, self.label()):
            if time.monotonic() > deadline:
                raise AssertionError(f"{self.label()} does not come back")
            await asyncio.sleep(0.05)
        self.recovery = time.monotonic() - self._struck


class Pause(Fault):
    """SIGSTOP, and SIGCONT some time later."""

    kind = "pause"

    def needs(self) -> frozenset[str]:
        return frozenset({self.label()} if self.target != "shim" else ())

    async def strike(self, scene: Scene) -> None:
        self._name = ""
        if self.target == "shim":
            self._name, self._victim = await a_shim(scene, self.draw)
        else:
            self._victim = await found(scene.stand, self.label())
        self.flying = await calls(scene)
        self._since = time.time_ns()
        with suppress(psutil.NoSuchProcess):
            self._victim.suspend()

    async def heal(self, scene: Scene) -> None:
        with suppress(psutil.NoSuchProcess):
            self._victim.resume()
        if self._name:
            span = (self.kind, self._since, time.time_ns())
            scene.hurt.setdefault(self._name, []).append(span)


class Overtaken(Fault):
    """Who holds a lease is stopped until another one holds it, and wakes beside its successor."""

    kind = "overtaken"

    def needs(self) -> frozenset[str]:
        service, _ = LEASES[self.target]
        return frozenset({service, f"{service}-2"})

    async def strike(self, scene: Scene) -> None:
        self.flying = await calls(scene)
        self._holder = await self._held(scene.stand)
        pid = int(self._holder.split("/")[1])
        try:
            self._victim = psutil.Process(pid)
            self._victim.suspend()
        except psutil.NoSuchProcess as error:
            raise Missed(f"{self._holder} is gone") from error

    async def heal(self, scene: Scene) -> None:
        deadline = time.monotonic() + FIND_SECONDS_MAX
        try:
            while time.monotonic() < deadline:
                with suppress(Missed):
                    if await self._held(scene.stand) != self._holder:
                        return
                await asyncio.sleep(0.1)
        finally:
            with suppress(psutil.NoSuchProcess):
                self._victim.resume()

    async def _held(self, stand: Stand) -> str:
        service, lease = LEASES[self.target]
        query = (
            f"SELECT holder FROM {service}.lease"
            " WHERE starts_with(name, $1) AND expires_at > now() ORDER BY name"
        )
        try:
            rows = await stand.ask(query, lease)
        except Unanswered as error:
            raise Missed(f"nobody tells who holds {lease}") from error
        if not rows:
            raise Missed(f"nobody holds {lease}")
        return str(rows[int(self.draw * len(rows))]["holder"])


class StreamDeleted(Fault):
    """The stream of a journal is taken away while it is written and read."""

    kind = "stream deleted"

    def needs(self) -> frozenset[str]:
        return frozenset({"nats"})

    async def strike(self, scene: Scene) -> None:
        bus = scene.stand.bus(self.target)
        running = asyncio.create_task(bus.run(), name="takes a stream away")
        try:
            if not await bus.wait_ready(5):
                raise Missed("NATS is away")
            await bus.delete_stream(scene.stand.journal(self.target))
        except Away as error:
            raise Missed(str(error)) from error
        finally:
            await end(running)


class StreamDamaged(Fault):
    """NATS is killed, and one file of a stream is not what it was when NATS is back."""

    kind = "stream damaged"

    def needs(self) -> frozenset[str]:
        return frozenset({"nats"})

    async def strike(self, scene: Scene) -> None:
        stand = scene.stand
        victim = await found(stand, "nats")
        self.flying = await calls(scene)
        service, _, shard = stand.journal(self.target).partition("/")
        streams = stand.home / "nats" / "store" / "jetstream" / "$G" / "streams"
        folder = streams / f"FERMION_{service}_{shard}" / "msgs"
        # Nobody starts it again before it is done.
        stand.supervisor.suspend()
        try:
            await killed(victim)
            blocks = [path for path in sorted(folder.glob("*.blk")) if path.stat().st_size]
            if not blocks:
                raise Missed(f"{folder} holds nothing")
            self.damage(blocks[int(self.draw * len(blocks))])
            if self.draw * 1000 % 1 < 0.5:
                # Without its index it reads the blocks themselves.
                (folder / "index.db").unlink(missing_ok=True)
        finally:
            stand.supervisor.resume()

    async def heal(self, scene: Scene) -> None:
        deadline = time.monotonic() + BACK_SECONDS_MAX
        while not await asyncio.to_thread(scene.stand.serves, "nats"):
            if time.monotonic() > deadline:
                raise AssertionError(f"NATS does not come back after {self.kind} {self.target}")
            await asyncio.sleep(0.05)

    def damage(self, block: Path) -> None:
        """Do it to a file."""
        raise NotImplementedError


class StreamTruncated(StreamDamaged):
    """The end of a stream's file is gone."""

    kind = "stream truncated"

    def damage(self, block: Path) -> None:
        os.truncate(block, int(block.stat().st_size * self.draw))


class StreamFlipped(StreamDamaged):
    """One byte of a stream's file is another one."""

    kind = "stream flipped"

    def damage(self, block: Path) -> None:
        with block.open("r+b") as file:
            place = int(block.stat().st_size * self.draw)
            file.seek(place)
            byte = file.read(1)[0]
            file.seek(place)
            file.write(bytes([byte ^ 0x10]))


class Deliveries(Fault):
    """What NATS and a service say to each other arrives otherwise than it was sent."""

    order: ClassVar[str]

    def needs(self) -> frozenset[str]:
        return frozenset({f"{self.target} from nats"})

    async def strike(self, scene: Scene) -> None:
        self._say(scene, self.order)

    async def heal(self, scene: Scene) -> None:
        self._say(scene, "plain")

    def _say(self, scene: Scene, order: str) -> None:
        for label in (self.target, f"{self.target}-2"):
            scene.stand.order(f"{label} nats", order, "in" if self.draw < 0.7 else "out")


class Duplicated(Deliveries):
    """Messages come twice."""

    kind = order = "duplicate"


class Delayed(Deliveries):
    """Messages come late."""

    kind = order = "delay"


class Reordered(Deliveries):
    """Messages come in another order."""

    kind = order = "reorder"


class DiskFull(Fault):
    """The disk under a part is full for a while."""

    kind = "disk full"

    def needs(self) -> frozenset[str]:
        return frozenset({self.target})

    async def strike(self, scene: Scene) -> None:
        self.flying = await calls(scene)
        folder = scene.stand.home / DISKS[self.target][0]
        self._ballast = folder / ".ballast"
        await asyncio.to_thread(fill, self._ballast)

    async def heal(self, scene: Scene) -> None:
        self._ballast.unlink(missing_ok=True)


class Partition(Fault):
    """Nothing passes between a service and what it needs, in either way."""

    kind = "partition"
    ways: ClassVar[tuple[str, ...]] = ("out", "in")

    async def strike(self, scene: Scene) -> None:
        for wire in wires(self.target, self.draw):
            for way in self.ways:
                scene.stand.order(wire, "hold", way)

    async def heal(self, scene: Scene) -> None:
        for wire in wires(self.target, self.draw):
            for way in self.ways:
                scene.stand.order(wire, "free", way)


class PartitionOut(Partition):
    """A service is not heard, and hears."""

    kind = "partition out"
    ways = ("out",)


class PartitionIn(Partition):
    """A service is heard, and hears nothing."""

    kind = "partition in"
    ways = ("in",)


class Cut(Fault):
    """Every connection from a service to what it needs is reset."""

    kind = "cut"

    async def strike(self, scene: Scene) -> None:
        for wire in wires(self.target, self.draw):
            scene.stand.order(wire, "cut")


def wires(target: str, draw: float) -> Iterator[str]:
    """Of `service from what`: the wires of one process of the service, or of both."""
    service, _, what = target.partition(" from ")
    both = (service, f"{service}-2")
    others = [name for name in SERVICES if name != service]
    ends = [what] if what != "services" else [*others, *(f"{name}-2" for name in others)]
    for label in both if draw < 0.5 else both[draw < 0.75 :][:1]:
        for far in ends:
            yield f"{label} {far}"


def kinds(disks: Sequence[str]) -> list[tuple[type[Fault], str, int]]:
    """Every kind and target with how often a full round has it."""
    apart = [f"{service} from {what}" for service in SERVICES for what in PARTITIONED]
    several: list[tuple[type[Fault], Sequence[str]]] = [
        (Pause, (*SERVICES, *SERVERS, "shim")),
        (Overtaken, tuple(LEASES)),
        *((kind, SERVICES) for kind in (StreamDeleted, StreamTruncated, StreamFlipped)),
        *((kind, SERVICES) for kind in (Duplicated, Delayed, Reordered)),
        (DiskFull, disks),
        *((kind, apart) for kind in (Partition, PartitionOut, PartitionIn)),
        (Cut, apart),
    ]
    return [
        *((Kill, target, count) for target, count in KILLS.items()),
        *((kind, target, EACH_MIN) for kind, targets in several for target in targets),
    ]


def plan(dice: random.Random, duration: float, disks: Sequence[str]) -> list[Fault]:
    """Draw the faults of a round, in the order in which they strike."""
    share = min(1.0, duration / FULL_SECONDS)
    made: list[Fault] = []
    others: list[tuple[type[Fault], str]] = []
    for kind, target, count in kinds(disks):
        if kind is Kill:
            made += [drawn(kind, target, dice) for _ in range(math.ceil(count * share))]
        else:
            others += [(kind, target)] * count
    dice.shuffle(others)
    made += [drawn(*each, dice) for each in others[: math.ceil(len(others) * share)]]
    for _ in range(int(duration // FULL_SECONDS) - 1):
        made += plan(dice, FULL_SECONDS, disks)
    dice.shuffle(made)
    return made


def narrowed(
    made: Sequence[Fault], dice: random.Random, only: Sequence[str], disks: Sequence[str]
) -> list[Fault]:
    """A plan as dense, of some kinds alone."""
    known = {kind.kind for kind, _, _ in kinds(disks)}
    if strange := set(only) - known:
        raise SystemExit(
            f"There is no fault {strange.pop()!r} here; there are: {', '.join(sorted(known))}."
        )
    pairs = [(kind, target) for kind, target, _ in kinds(disks) if kind.kind in only]
    return [drawn(*dice.choice(pairs), dice) for _ in made]


def drawn(kind: type[Fault], target: str, dice: random.Random) -> Fault:
    """One fault of a kind; some last longer than what waits for an answer has patience."""
    seconds = dice.uniform(5.0, 8.0) if dice.random() < 0.1 else dice.uniform(0.3, 3.0)
    return kind(target, seconds if kind not in (Kill, Cut) else 0.0, dice.random())


async def found(stand: Stand, label: str) -> psutil.Process:
    """A process of the platform; Missed where it is not there."""
    deadline = time.monotonic() + FIND_SECONDS_MAX
    while (process := stand.process(label)) is None:
        if time.monotonic() > deadline:
            raise Missed(f"{label} is not there")
        await asyncio.sleep(0.05)
    return process


async def a_shim(scene: Scene, draw: float) -> tuple[str, psutil.Process]:
    """Any shim that lives."""
    deadline = time.monotonic() + FIND_SECONDS_MAX
    while not (living := await asyncio.to_thread(scene.stand.shims)):
        if time.monotonic() > deadline:
            raise Missed("nothing runs")
        await asyncio.sleep(0.05)
    return living[int(draw * len(living))]


async def calls(scene: Scene) -> int:
    """Wait until calls are in flight; how many."""
    deadline = time.monotonic() + FIND_SECONDS_MAX
    while not scene.ledger.in_flight:
        if time.monotonic() > deadline:
            raise Missed("nobody calls")
        await asyncio.sleep(0.01)
    return scene.ledger.in_flight


async def frozen(stand: Stand, victim: psutil.Process, service: str) -> int:
    """
    Stop a process at a moment when facts are committed and not published; how many they are.

    While it is stopped, neither a relay nor a broker that is about to die can catch up unseen.
    0 where no such moment was found.
    """
    bus, journal = stand.bus(service), stand.journal(service)
    nats = victim.name() == "nats-server"
    running = asyncio.create_task(bus.run(), name="looks at the stream")
    deadline = time.monotonic() + 3
    try:
        await bus.wait_ready(1)
        while time.monotonic() < deadline and victim.is_running():
            victim.suspend()
            try:
                committed = await head(stand, service)
                if nats:
                    await asyncio.sleep(0.1)
                    missing = await head(stand, service) - committed
                else:
                    tail = await bus.tail(journal)
                    missing = committed - (0 if tail is None else tail.last)
            except (Away, Unanswered):
                missing = 0
            if missing > 0:
                return missing
            victim.resume()
            await asyncio.sleep(0.03)
    except psutil.NoSuchProcess:
        pass
    finally:
        await end(running)
    return 0


async def head(stand: Stand, service: str) -> int:
    """The last position of a journal, asked of PostgreSQL itself."""
    return int((await stand.ask(f"SELECT position FROM {service}.head"))[0]["position"])


async def killed(process: psutil.Process) -> None:
    """Kill a process, and wait until none of its threads holds a port or a file any more."""
    try:
        descriptor = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return
    try:
        process.kill()
        await asyncio.to_thread(select.select, [descriptor], [], [])
    except psutil.NoSuchProcess:
        pass
    finally:
        os.close(descriptor)


def fill(path: Path) -> None:
    """Write a file until there is no room for a byte more."""
    with path.open("wb") as file:
        room = os.statvfs(path.parent)
        for size in (room.f_bavail * room.f_frsize - 2**20, 2**16, 2**12):
            with suppress(OSError, ValueError):
                while size > 0:
                    os.posix_fallocate(file.fileno(), file.seek(0, os.SEEK_END), size)
