"""One cluster under test, in memory or of this machine, with the few things that it does not do itself."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Protocol, TypeVar

from chassis.clock import SystemClock
from fermion.api.workload import v1 as api
from services.executor import folder, gpus, ground, limits, shim
from services.executor.cluster import Cluster
from services.executor.cluster_local import LocalCluster
from services.executor.ground import Ground, Pace
from services.executor.limits import Limits
from services.executor.observation import Phase, ReplicaObservation
from tests.conformance.played import play
from tests.memory_cluster import MemoryCluster, VirtualClock, World

PROGRAM = Path(__file__).with_name("program.py")
GPUS = 2
WAIT_SECONDS_MAX = 60.0
# In memory: turns of the loop that let everything happen which needs no time, and time after them.
TURNS = 30
STEP_SECONDS = 0.05
STEPS_MAX = 20_000
TOKEN = "token-of-"

Found = TypeVar("Found")


class Stand(Protocol):
    """A cluster, and the world around it."""

    cluster: Cluster

    def command(self, *steps: str) -> list[str]:
        """The command that does these steps."""
        ...

    def now(self) -> datetime:
        """The time."""
        ...

    async def until(self, holds: Callable[[], Awaitable[Found | None]]) -> Found:
        """Wait until something holds."""
        ...

    async def renew(self) -> None:
        """Let the cluster's process be another one, which knows only what is written down."""
        ...

    async def lose_witness(self, replica: str) -> None:
        """Kill who watches a replica."""
        ...

    async def processes(self, replica: str) -> int:
        """How many processes of a replica there are."""
        ...

    @property
    def limited(self) -> bool:
        """Whether memory is held down here."""
        ...


@dataclass(slots=True)
class InMemory:
    """The cluster of the executor's tests."""

    world: World
    cluster: Cluster
    limited: bool = True

    def command(self, *steps: str) -> list[str]:
        """The command that does these steps."""
        return ["play", *steps]

    def now(self) -> datetime:
        """The time."""
        return self.world.clock.now()

    async def until(self, holds: Callable[[], Awaitable[Found | None]]) -> Found:
        """Let everything happen, then time pass."""
        for _ in range(STEPS_MAX):
            for _ in range(TURNS):
                await asyncio.sleep(0)
            found = await holds()
            if found:
                return found
            self.world.clock.advance(STEP_SECONDS)
        raise AssertionError("it never held")

    async def renew(self) -> None:
        """Another view of the same world."""
        self.cluster = MemoryCluster(self.world)

    async def lose_witness(self, replica: str) -> None:
        """Lose it."""
        self.world.lose_witness(replica)

    async def processes(self, replica: str) -> int:
        """Its main, if it runs."""
        found = self.world.replicas.get(replica)
        return int(found is not None and found.process is not None)


@dataclass(slots=True)
class OnThisMachine:
    """The local cluster, in a folder of the test's."""

    ground: Ground
    # How long it waits for anything.
    seconds_max: float = WAIT_SECONDS_MAX
    cluster: Cluster = field(init=False)
    _tending: asyncio.Task[None] | None = None

    @property
    def limited(self) -> bool:
        """Whether memory is held down here."""
        return True

    def command(self, *steps: str) -> list[str]:
        """The command that does these steps."""
        return [sys.executable, "-I", "-S", str(PROGRAM), *steps]

    def now(self) -> datetime:
        """The time."""
        return SystemClock().now()

    async def until(self, holds: Callable[[], Awaitable[Found | None]]) -> Found:
        """Look again and again."""
        deadline = time.monotonic() + self.seconds_max
        while True:
            found = await holds()
            if found:
                return found
            assert self._tending is not None
            assert not self._tending.done(), self._tending.exception()
            assert time.monotonic() < deadline, "it does not hold"
            await asyncio.sleep(0.01)

    async def renew(self) -> None:
        """Another process would know no more."""
        await self.close()
        self.cluster = LocalCluster(self.ground, token_of)
        self._tending = asyncio.create_task(self.cluster.run(), name="cluster")

    async def close(self) -> None:
        """Let the process end; what runs runs on."""
        if self._tending is not None:
            self._tending.cancel()
            await asyncio.gather(self._tending, return_exceptions=True)

    def folder(self, replica: str) -> folder.Folder:
        """Where a replica is."""
        names = [name for name in os.listdir(self.ground.replicas) if not name.startswith(".")]
        found = (folder.read(self.ground, self.ground.replicas / name) for name in names)
        return next(one for one in found if one is not None and one.uid == replica)

    async def lose_witness(self, replica: str) -> None:
        """Kill its shim."""
        record = self.folder(replica).record()
        assert record is not None
        shim.kill(record.head.pid, shim.SIGKILL)

    async def processes(self, replica: str) -> int:
        """Every one that carries its mark."""
        return len(list(shim.marked(replica)))


def token_of(replica: str) -> str:
    """The token of a replica."""
    return TOKEN + replica


@asynccontextmanager
async def in_memory() -> AsyncIterator[Stand]:
    """Set a world up and take it down."""
    world = World(VirtualClock(), {"play": play}, gpus=GPUS, strict=True)
    try:
        yield InMemory(world, MemoryCluster(world))
    finally:
        await world.end()


@asynccontextmanager
async def on_this_machine(
    root: Path, held: Callable[[str], Limits] = limits.probe, pace: Pace | None = None
) -> AsyncIterator[OnThisMachine]:
    """Set a local cluster up; when it goes nothing of it runs."""
    uid = ground.cluster_uid(root)
    quick = Pace(look_seconds=0.01, succeed_seconds=0.05, sweep_seconds=0.2)
    made = Ground(root, uid, "here", held(uid), gpus.simulated(GPUS), pace=pace or quick)
    async with standing(OnThisMachine(made)) as stand:
        yield stand


@asynccontextmanager
async def standing(stand: OnThisMachine) -> AsyncIterator[OnThisMachine]:
    """Begin its process; when it goes nothing of the cluster runs."""
    await stand.renew()
    try:
        yield stand
    finally:
        await end_all(stand)
        await stand.close()
        assert marked_below(stand.ground.root) == []
        assert stand.ground.limits.names() == set()


async def end_all(stand: Stand) -> None:
    """Have every replica ended, and wait for it."""
    for replica in (await stand.cluster.list()).replicas:
        await stand.cluster.drain(replica.uid, api.CAUSE_PLATFORM, stand.now())

    async def ended() -> bool:
        replicas = (await stand.cluster.list()).replicas
        return all(replica.phase is Phase.ENDED for replica in replicas)

    await stand.until(ended)


def marked_below(root: Path) -> Sequence[int]:
    """Processes of replicas of a cluster that is in a folder."""
    found = []
    mark = f"FERMION_ROOT={root}/".encode()
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                environment = shim.read_file(f"/proc/{name}/environ")
            except OSError:
                continue
            if any(entry.startswith(mark) for entry in environment.split(b"\0")):
                found.append(int(name))
    return found


async def replica_of(
    stand: Stand, workload: str, role: str = "", rank: int = 0
) -> ReplicaObservation:
    """What the cluster tells of one replica."""
    found = (await stand.cluster.list()).replicas
    return next(
        one for one in found if (one.workload, one.role, one.rank) == (workload, role, rank)
    )


def later(stand: Stand, seconds: float) -> datetime:
    """A moment to come."""
    return stand.now() + timedelta(seconds=seconds)
