"""
A cluster in memory that behaves as every cluster does; one conformance suite holds it to that.

Its time is a `VirtualClock`, which passes only when a test lets it. What a replica runs is a program
of the test's, found by the first word of its command; a replica whose command no program plays is
led by hand: `start`, `exit`, `kill`, `oom`, `ready`, `lose`, `find`, `lose_witness`, `vanish`.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from chassis import ids
from chassis.testing.scenario import NOON
from chassis.workloads import KIND_WORDS, PROBES, RANKS, VOLUMES, unhonoured
from fermion.api.workload import v1 as api
from services.executor import probe
from services.executor.cluster import Bound, Gone, Listing, LogEntry, Unhonoured, Usage
from services.executor.observation import Gap, Instant, Phase, ReplicaObservation, Run, floor

UID = "01kb0000000000000000000000"
NODE = "memory"
TERM, KILL = 15, 9
BACKOFF_SECONDS, BACKOFF_SECONDS_MAX = 1.0, 300.0


class VirtualClock:
    """Time that passes only when it is let; who sleeps is woken in the order of his time."""

    def __init__(self, start: datetime = NOON) -> None:
        self._start = start
        self._passed = 0.0
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._numbers = itertools.count()

    def now(self) -> datetime:
        """Wall time, in UTC."""
        return self._start + timedelta(seconds=self._passed)

    def monotonic(self) -> float:
        """Seconds that never go back."""
        return self._passed

    async def sleep(self, seconds: float) -> None:
        """Wait for time to pass."""
        if seconds > 0:
            woken = asyncio.get_running_loop().create_future()
            heapq.heappush(self._sleepers, (self._passed + seconds, next(self._numbers), woken))
            await woken

    def advance(self, seconds: float) -> None:
        """Let time pass, and wake whoever slept until then."""
        until = self._passed + seconds
        while self._sleepers and self._sleepers[0][0] <= until:
            at, _, woken = heapq.heappop(self._sleepers)
            self._passed = max(self._passed, at)
            if not woken.done():
                woken.set_result(None)
        self._passed = until


class Killed(Exception):
    """A program ends by a signal."""

    def __init__(self, signal: int, reason: api.Reason | None = None) -> None:
        super().__init__(signal)
        self.signal = signal
        self.reason = reason


@dataclass(slots=True)
class Process:
    """What a program has: its words, its environment, its folder, and what it is told."""

    words: Sequence[str]
    env: Mapping[str, str]
    files: dict[str, str]
    clock: VirtualClock
    write: Callable[[int, bytes], None]
    memory_limit: int = 0
    # TERM was sent, and what the notice says.
    told: asyncio.Event = field(default_factory=asyncio.Event)
    notice: str = ""
    report: str = ""
    # Names of ports that it answers at.
    listening: set[str] = field(default_factory=set)
    input: asyncio.Queue[bytes | None] = field(default_factory=asyncio.Queue)
    size: tuple[int, int] = (24, 80)
    resized: asyncio.Event = field(default_factory=asyncio.Event)
    cpu_seconds: float = 0.0
    memory_bytes: int = 1

    def print(self, text: str, stream: int = 1) -> None:
        """Print a line."""
        self.write(stream, f"{text}\n".encode())

    def grow(self, size: int) -> None:
        """Take memory; more than the limit ends it."""
        self.memory_bytes += size
        if self.memory_limit and self.memory_bytes > self.memory_limit:
            raise Killed(KILL, api.Reason(code="OOM_KILLED"))


Program = Callable[[Process], Awaitable[int]]


@dataclass(slots=True)
class Replica:
    """One replica as the world has it."""

    uid: str
    name: str
    workload: api.Workload
    group: api.Group
    rank: int
    scheduled: datetime
    ports: dict[str, str]
    count: int
    gpus: list[str] = field(default_factory=list)
    phase: Phase = Phase.PREPARING
    runs: list[Run] = field(default_factory=list)
    gaps: list[Gap] = field(default_factory=list)
    reason: api.Reason | None = None
    ready: bool | None = None
    stop: tuple[str, datetime] | None = None
    proof: datetime | None = None
    log: list[LogEntry] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)
    process: Process | None = None
    # Ended by whoever sets it: exit code, or an exception that says the signal.
    end: asyncio.Future[int] | None = None
    # By hand: it may begin.
    allowed: bool = False
    sessions: list[MemorySession] = field(default_factory=list)

    @property
    def open(self) -> bool:
        """Whether a run has begun and not ended."""
        return bool(self.runs) and self.runs[-1].end is None

    @property
    def checked(self) -> bool:
        """Whether it is ready only when a check says so."""
        return self.group.probes.HasField("startup") or self.group.probes.HasField("readiness")


class World:
    """What a cluster stands on, and outlives every `MemoryCluster` that looks at it."""

    def __init__(
        self,
        clock: VirtualClock,
        programs: Mapping[str, Program] | None = None,
        *,
        uid: str = UID,
        gpus: int = 0,
        starts: bool = True,
        obedient: bool = True,
        strict: bool = False,
    ) -> None:
        """
        With `starts` mains begin as soon as they can, else when a test lets them; `obedient` ones,
        led by hand, end when they are told to; `strict` knows no command but its programs.
        """
        self.clock = clock
        self.programs = dict(programs or {})
        self.uid = uid
        self.gpus = gpus
        self.starts, self.obedient, self.strict = starts, obedient, strict
        self.replicas: dict[str, Replica] = {}
        self.logs: dict[str, Replica] = {}
        self.closed: set[str] = set()
        self.volumes: dict[str, tuple[datetime, dict[str, str]]] = {}
        self.deleted: dict[str, datetime] = {}
        self.changes = 0
        self._news = asyncio.Event()
        self._numbers = itertools.count(1)
        self._tasks: set[asyncio.Task[None]] = set()

    # By hand.

    def find_replica(self, name: str) -> Replica:
        """The replica of a uid or a name."""
        return next(one for one in self.replicas.values() if name in (one.uid, one.name))

    def start(self, name: str) -> None:
        """Let a main begin."""
        self.find_replica(name).allowed = True
        self.tell()

    def exit(self, name: str, code: int = 0, report: str = "") -> None:
        """Let a main end with a code."""
        replica = self.find_replica(name)
        if replica.process is not None:
            replica.process.report = report
        self._finish(replica, code)

    def kill(self, name: str, signal: int = KILL, reason: api.Reason | None = None) -> None:
        """Let a main end by a signal."""
        self._finish(self.find_replica(name), Killed(signal, reason))

    def oom(self, name: str) -> None:
        """Let a main end because its memory was used up."""
        self.kill(name, KILL, api.Reason(code="OOM_KILLED"))

    def make_ready(self, name: str, ready: bool = True) -> None:
        """Let its readiness check pass, or not."""
        replica = self.find_replica(name)
        replica.ready = ready
        replica.reason = None if ready else api.Reason(code="CHECK_NOT_PASSED")
        self.tell()

    def lose(self, name: str) -> None:
        """Let nobody know whether it lives."""
        replica = self.find_replica(name)
        replica.proof = self.now()
        replica.gaps.append(Gap(Instant(self.now())))
        self.tell()

    def find(self, name: str) -> None:
        """Let it be known again that it lives, and did."""
        replica = self.find_replica(name)
        replica.gaps[-1] = replace(replica.gaps[-1], found=Instant(self.now()))
        replica.proof = None
        self.tell()

    def lose_witness(self, name: str) -> None:
        """Let who watches it die, and its main with him; the end is at the last proof."""
        replica = self.find_replica(name)
        replica.proof = replica.proof or self.now()
        self._finish(replica, Killed(KILL, api.Reason(code="WITNESS_LOST")))

    def vanish(self, name: str) -> None:
        """Let there be no trace of it."""
        replica = self.find_replica(name)
        del self.replicas[replica.uid]
        self.tell()

    def now(self) -> datetime:
        """The cluster's time, in whole milliseconds."""
        return floor(self.clock.now())

    def tell(self) -> None:
        """Something may have changed."""
        self.changes += 1
        self._news.set()
        self._news = asyncio.Event()

    async def end(self) -> None:
        """Let the world end; nothing runs in it any more."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # By themselves.

    def add(self, workload: api.Workload, group: api.Group, rank: int, count: int) -> None:
        """Make a replica, unless there is one of its name."""
        name = name_of(workload, group.role, rank)
        if any(one.name == name for one in self.replicas.values()):
            return
        number = next(self._numbers)
        replica = Replica(
            uid=ids.derived("rep", self.uid, str(number), "main"),
            name=name,
            workload=workload,
            group=group,
            rank=rank,
            scheduled=self.now(),
            ports={port.name: f"127.0.0.1:{20_000 + next(self._numbers)}" for port in group.ports},
            count=count,
        )
        self.replicas[replica.uid] = self.logs[replica.uid] = replica
        task = asyncio.create_task(self._live(replica), name=f"life of {name}")
        self._tasks.add(task)
        self.tell()

    async def _live(self, replica: Replica) -> None:
        while not replica.stop and (missing := self._missing(replica)) is not None:
            if replica.reason is None or replica.reason.code != missing.code:
                replica.reason = missing
                self.tell()
            await self._news.wait()
        while not replica.stop:
            await self._run(replica)
            seconds = self._again(replica)
            if seconds is None:
                break
            replica.phase = Phase.BACKOFF
            replica.reason = api.Reason(code="CRASH_LOOP_BACKOFF")
            self.tell()
            until = self.clock.monotonic() + seconds
            while not replica.stop and self.clock.monotonic() < until:
                await self.wait(until - self.clock.monotonic())
        replica.phase = Phase.ENDED
        replica.gpus = []
        if replica.runs:
            replica.reason = None
        self.tell()

    async def wait(self, seconds: float | None = None) -> None:
        """Return when something was told, or after so long."""
        waiting = [asyncio.ensure_future(self._news.wait())]
        if seconds is not None:
            waiting.append(asyncio.ensure_future(self.clock.sleep(seconds)))
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in waiting:
                one.cancel()

    def _missing(self, replica: Replica) -> api.Reason | None:
        """What a main waits for."""
        for mount in replica.group.mounts:
            if mount.volume.volume_uid not in self.volumes:
                return api.Reason(code="VOLUME_NOT_BOUND")
        wanted = replica.group.resources.gpu_milli // 1000
        if len(replica.gpus) < wanted:
            held = {index for one in self.replicas.values() for index in one.gpus}
            free = [str(index) for index in range(self.gpus) if str(index) not in held]
            if len(free) < wanted:
                return api.Reason(code="GPUS_TAKEN")
            replica.gpus = free[:wanted]
        replica.allowed |= self.starts
        if replica.workload.rendezvous == api.RENDEZVOUS_RANKS:
            peers = self._peers(replica)
            bound = [one for one in peers if self._bound(one)]
            total = sum(group.replicas for group in replica.workload.groups)
            if len(bound) < total:
                return api.Reason(code="RANKS_MISSING")
        return None if replica.allowed else api.Reason(code="HELD_BY_HAND")

    def _bound(self, replica: Replica) -> bool:
        volumes = (mount.volume.volume_uid for mount in replica.group.mounts)
        return all(uid in self.volumes for uid in volumes)

    def _peers(self, replica: Replica) -> list[Replica]:
        return [one for one in self.replicas.values() if one.workload.uid == replica.workload.uid]

    async def _run(self, replica: Replica) -> None:
        run = len(replica.runs)
        replica.end = asyncio.get_running_loop().create_future()
        environment = self.environment(replica)
        words = [*replica.group.command, *replica.group.args]
        process = replica.process = self.process(replica, words, environment, run)
        replica.runs.append(Run(run, Instant(self.now())))
        replica.phase, replica.reason, replica.proof = Phase.RUNNING, None, None
        replica.ready = False if replica.checked else None
        self.tell()
        program = self.programs.get(words[0] if words else "")
        helpers = [asyncio.create_task(self._check(replica, process), name="checks")]
        if program is not None:
            helpers.append(asyncio.create_task(self._play(replica, program(process))))
        elif self.strict:
            self._finish(replica, Killed(0, api.Reason(code="START_FAILED")))
        helpers.append(asyncio.create_task(self._enforce(replica, process), name="orders"))
        code, signal, reason = 0, 0, None
        try:
            code = await replica.end
        except Killed as killed:
            signal, reason = killed.signal, killed.reason
            code = 127 if reason is not None and reason.code == "START_FAILED" else 0
        finally:
            for helper in helpers:
                helper.cancel()
        end = Instant(self.now())
        if reason is not None and reason.code == "WITNESS_LOST" and replica.proof is not None:
            end = Instant(replica.proof, api.EVIDENCE_CLASS_LAST_PROOF)
        replica.runs[-1] = replace(
            replica.runs[-1],
            end=end,
            exit=code,
            signal=signal,
            reason=reason,
            exit_report=process.report,
        )
        replica.ready = False if replica.checked else None
        replica.process = None
        for session in replica.sessions:
            session.kill()
        self.tell()

    async def _play(self, replica: Replica, playing: Awaitable[int]) -> None:
        try:
            self._finish(replica, await playing)
        except Killed as killed:
            self._finish(replica, killed)

    async def _enforce(self, replica: Replica, process: Process) -> None:
        """TERM when it is told to stop, KILL at the deadline."""
        while not replica.stop:
            await self._news.wait()
        cause, deadline = replica.stop
        process.notice = cause
        process.told.set()
        if (
            replica.group.command
            and replica.group.command[0] not in self.programs
            and self.obedient
        ):
            self._finish(replica, Killed(TERM))
        await self.clock.sleep((deadline - self.clock.now()).total_seconds())
        self._finish(replica, Killed(KILL))

    async def _check(self, replica: Replica, process: Process) -> None:
        """Ask its checks, as a node does."""
        probes = replica.group.probes
        if process.words and process.words[0] not in self.programs:
            return

        async def ask(asked: api.Probe) -> AsyncIterator[probe.Tally]:
            rule, tally = probe.rule(asked), probe.Tally()
            await self.clock.sleep(rule.delay)
            while True:
                well = asked.port in process.listening and "sick" not in process.files
                if asked.command:
                    well = await self._inside(replica, asked.command) == 0
                tally = tally.after("" if well else "no answer", rule)
                yield tally
                await self.clock.sleep(rule.period)

        async def until_dead(asked: api.Probe, code: str) -> None:
            async for tally in ask(asked):
                if tally.passes is False:
                    self._finish(replica, Killed(TERM, api.Reason(code=code)))
                    return

        async def readiness() -> None:
            async for tally in ask(probes.readiness):
                if tally.passes is not None and replica.ready != tally.passes:
                    self.make_ready(replica.uid, tally.passes)

        if replica.checked:
            replica.reason = api.Reason(code="CHECK_NOT_PASSED")
        if probes.HasField("startup"):
            async for tally in ask(probes.startup):
                if tally.passes is False:
                    self._finish(replica, Killed(TERM, api.Reason(code="STARTUP_FAILED")))
                if tally.passes is not None:
                    break
            if not probes.HasField("readiness"):
                self.make_ready(replica.uid)
        asking: list[Awaitable[None]] = []
        if probes.HasField("readiness"):
            asking.append(readiness())
        if probes.HasField("liveness"):
            asking.append(until_dead(probes.liveness, "LIVENESS_FAILED"))
        await asyncio.gather(*asking)

    async def _inside(self, replica: Replica, command: Sequence[str]) -> int:
        program = self.programs[command[0]]
        environment = self.environment(replica)
        process = self.process(replica, command, environment, 0, lambda stream, data: None)
        with suppress(Killed):
            return await program(process)
        return 128 + KILL

    def _finish(self, replica: Replica, how: int | Killed) -> None:
        if replica.end is not None and not replica.end.done():
            if isinstance(how, Killed):
                replica.end.set_exception(how)
            else:
                replica.end.set_result(how)

    def _again(self, replica: Replica) -> float | None:
        """Seconds until main is run again; None for never."""
        rule, last = replica.group.restart, replica.runs[-1]
        failed = bool(last.exit or last.signal or last.reason)
        wanted = rule.mode == rule.MODE_ALWAYS or (rule.mode == rule.MODE_ON_FAILURE and failed)
        if replica.stop or not wanted or (rule.restarts_max and last.ordinal >= rule.restarts_max):
            return None
        first = rule.backoff.ToTimedelta().total_seconds() or BACKOFF_SECONDS
        return min(first * 2**last.ordinal, BACKOFF_SECONDS_MAX)

    def process(
        self,
        replica: Replica,
        words: Sequence[str],
        environment: Mapping[str, str],
        run: int,
        write: Callable[[int, bytes], None] | None = None,
    ) -> Process:
        """A process in a replica's folder; what it prints is the replica's log, unless said."""

        def keep(stream: int, data: bytes) -> None:
            place = (replica.log[-1].offset if replica.log else 0) + len(data)
            replica.log.append(LogEntry(self.now(), stream, data, run, place))
            self.tell()

        mounts = [mount.volume.volume_uid for mount in replica.group.mounts]
        files = self.volumes[mounts[0]][1] if mounts else replica.files
        return Process(
            [substituted(word, environment) for word in words],
            environment,
            files,
            self.clock,
            write or keep,
            replica.group.resources.memory_bytes,
        )

    def environment(self, replica: Replica) -> dict[str, str]:
        """What the platform promises to a replica, and what its workload asks for."""
        work, gpus = replica.workload, ",".join(replica.gpus)
        promised = {
            "FERMION_PROJECT": work.project,
            "FERMION_OWNER": work.owner,
            "FERMION_WORKLOAD": work.uid,
            "FERMION_ATTEMPT": str(work.attempt),
            "FERMION_ROLE": replica.group.role,
            "FERMION_RANK": str(replica.rank),
            "FERMION_REPLICAS": str(replica.count),
            "FERMION_REPLICA": replica.uid,
            "FERMION_NOTICE_FILE": "notice",
            "FERMION_EXIT_FILE": "exit",
            "FERMION_ROOT": "/",
            "FERMION_GPUS": gpus,
            "CUDA_VISIBLE_DEVICES": gpus,
        }
        for name, address in replica.ports.items():
            variable = f"FERMION_PORT_{name.replace('-', '_').upper()}"
            promised[variable] = address.rpartition(":")[2]
        if work.rendezvous == api.RENDEZVOUS_RANKS:
            for group in work.groups:
                named = f"FERMION_RANKS_{group.role.upper()}".rstrip("_")
                ranks = [f"{name_of(work, group.role, n)}:1" for n in range(group.replicas)]
                promised[named] = ",".join(ranks)
                promised.setdefault("FERMION_RENDEZVOUS", ranks[0])
        own = {entry.name: substituted(entry.value, promised) for entry in replica.group.env}
        return {"PATH": "/", "HOME": "/", "LANG": "C.UTF-8", **own, **promised}


class MemorySession:
    """See `cluster.Session`."""

    def __init__(self, process: Process, program: Program | None) -> None:
        self._process = process
        self._printed: asyncio.Queue[tuple[int, bytes] | None] = asyncio.Queue()
        process.write = lambda stream, data: self._printed.put_nowait((stream, data))
        self._code = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._play(program), name="session")

    async def output(self) -> AsyncIterator[tuple[int, bytes]]:
        """What it prints, until it ends."""
        while (found := await self._printed.get()) is not None:
            yield found

    async def write(self, data: bytes) -> None:
        """Give it input."""
        self._process.input.put_nowait(data)

    async def close_input(self) -> None:
        """Let its input end."""
        self._process.input.put_nowait(None)

    async def resize(self, rows: int, columns: int) -> None:
        """Give its terminal another size."""
        self._process.size = rows, columns
        self._process.resized.set()

    async def wait(self) -> int:
        """Its exit code."""
        return int(await asyncio.shield(self._code))

    def kill(self) -> None:
        """End it."""
        self._task.cancel()
        self._end(128 + KILL)

    async def _play(self, program: Program | None) -> None:
        code = 127
        try:
            if program is not None:
                code = await program(self._process)
        except Killed as killed:
            code = 128 + killed.signal
        self._end(code)

    def _end(self, code: int) -> None:
        if not self._code.done():
            self._code.set_result(code)
            self._printed.put_nowait(None)


class MemoryCluster:
    """See `cluster.Cluster`; several may look at one world."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._looked = -1

    @property
    def uid(self) -> str:
        """26 characters."""
        return self._world.uid

    async def capabilities(self) -> api.Capabilities:
        """What it can honour now."""
        return api.Capabilities(
            cluster_kind="memory",
            images=[api.Capabilities.Runnable(repository="host", description="programs of a test")],
            limits=api.Capabilities.LIMITS_CGROUP1,
            simulated_gpus=self._world.gpus > 0,
            features=sorted((PROBES, RANKS, VOLUMES)),
        )

    async def nodes(self) -> Sequence[api.Node]:
        """Its one node."""
        gpus = (
            [api.Node.Gpu(gpu_type="SIM-GPU", count=self._world.gpus)] if self._world.gpus else []
        )
        return [
            api.Node(
                node=NODE,
                cpu_milli=64_000,
                memory_bytes=2**40,
                storage_bytes=2**42,
                gpus=gpus,
                architecture="amd64",
            )
        ]

    async def apply(self, wanted: api.Workload, replicas: Mapping[str, int]) -> None:
        """Have ranks 0..n-1 of each role."""
        refused = unhonoured(wanted, await self.capabilities())
        if refused is not None:
            raise Unhonoured(*refused)
        if wanted.uid in self._world.closed:
            return
        for group in wanted.groups:
            for rank in range(replicas.get(group.role, 0)):
                self._world.add(wanted, group, rank, replicas[group.role])

    async def drain(self, replica: str, cause: api.Cause.ValueType, deadline: datetime) -> None:
        """End a replica."""
        found = self._world.replicas.get(replica)
        if found is not None and found.stop is None:
            found.stop = api.Cause.Name(cause).removeprefix("CAUSE_"), deadline
            self._world.tell()

    async def close(self, workload_uid: str) -> None:
        """Make nothing of a workload any more."""
        self._world.closed.add(workload_uid)

    async def forget(self, replica: str) -> None:
        """Let the record of an ended replica go."""
        found = self._world.replicas.get(replica)
        if found is not None and found.phase is Phase.ENDED:
            del self._world.replicas[replica]

    async def list(self) -> Listing:
        """Look at everything."""
        world = self._world
        self._looked = world.changes
        replicas = [self._observe(one) for one in world.replicas.values()]
        return Listing(world.clock.now(), tuple(replicas))

    def _observe(self, replica: Replica) -> ReplicaObservation:
        resources = replica.group.resources
        return ReplicaObservation(
            uid=replica.uid,
            workload=replica.workload.uid,
            role=replica.group.role,
            rank=replica.rank,
            node=NODE,
            scheduled=Instant(replica.scheduled),
            phase=replica.phase,
            runs=tuple(replica.runs),
            gaps=tuple(replica.gaps),
            reason=replica.reason,
            ready=replica.ready,
            proof=(replica.proof or self._world.now()) if replica.open else None,
            addresses=dict(replica.ports),
            image=api.Image(repository=replica.group.image.repository),
            sku=api.Sku(
                gpu_type="SIM-GPU" if resources.gpu_milli else "",
                gpu_milli=resources.gpu_milli,
                cpu_milli=resources.cpu_milli,
                memory_bytes=resources.memory_bytes,
            ),
        )

    async def changed(self, seconds: float) -> None:
        """Return when something may have changed."""
        until = self._world.clock.monotonic() + seconds
        while self._looked == self._world.changes and self._world.clock.monotonic() < until:
            await self._world.wait(until - self._world.clock.monotonic())

    async def bind(self, volume: api.Volume) -> Bound:
        """Have a volume."""
        if volume.uid in self._world.deleted:
            raise Unhonoured("uid", api.Reason(code="VOLUME_DELETED"))
        if volume.uid not in self._world.volumes:
            self._world.volumes[volume.uid] = self._world.now(), {}
            self._world.tell()
        return Bound(Instant(self._world.volumes[volume.uid][0]), NODE)

    async def delete(self, volume_uid: str) -> Instant:
        """Have no such volume."""
        self._world.volumes.pop(volume_uid, None)
        return Instant(self._world.deleted.setdefault(volume_uid, self._world.now()))

    async def logs(
        self, replica: str, *, after: int = 0, run: int | None = None, follow: bool = False
    ) -> AsyncIterator[LogEntry]:
        """What a replica printed."""
        found = self._log_of(replica)
        place = after
        while True:
            ended = found.phase is Phase.ENDED
            for entry in list(found.log):
                if entry.offset > place:
                    cut = max(0, place - (entry.offset - len(entry.data)))
                    place = entry.offset
                    if run in (None, entry.run):
                        yield replace(entry, data=entry.data[cut:])
            if ended or not follow:
                return
            await self._world.wait()

    async def log_tail(self, replica: str, lines: int, run: int | None = None) -> int:
        """The place behind which there are so many last lines."""
        entries = [one for one in self._log_of(replica).log if run in (None, one.run)]
        data = b"".join(one.data for one in entries)
        places = [
            place
            for one in entries
            for place in range(one.offset - len(one.data) + 1, one.offset + 1)
        ]
        ends = [place for place, byte in zip(places, data, strict=True) if byte == ord("\n")]
        if lines <= 0:
            return places[-1] if places else 0
        wanted = lines + data.endswith(b"\n")
        return ends[-wanted] if len(ends) >= wanted else 0

    def _log_of(self, replica: str) -> Replica:
        if replica not in self._world.logs:
            raise Gone(replica)
        return self._world.logs[replica]

    @asynccontextmanager
    async def execute(
        self, replica: str, command: Sequence[str], *, tty: bool, rows: int = 24, columns: int = 80
    ) -> AsyncIterator[MemorySession]:
        """Run a command inside a replica."""
        found = self._world.replicas.get(replica)
        if found is None or found.process is None:
            raise Gone(replica)
        process = self._world.process(found, command, self._world.environment(found), 0)
        process.size = rows, columns
        session = MemorySession(process, self._world.programs.get(command[0]))
        found.sessions.append(session)
        try:
            yield session
        finally:
            session.kill()
            found.sessions.remove(session)

    async def access(self, replica: str) -> Mapping[str, str]:
        """How the ports of a replica that runs are opened."""
        found = self._world.replicas.get(replica)
        if found is None or not found.open:
            raise Gone(replica)
        return {
            port.name: f"http://{found.ports[port.name]}/"
            if port.protocol == api.Port.PROTOCOL_HTTP
            else found.ports[port.name]
            for port in found.group.ports
        }

    async def usage(self) -> Mapping[str, Usage]:
        """What each running replica has used."""
        return {
            uid: Usage(self._world.clock.now(), one.process.cpu_seconds, one.process.memory_bytes)
            for uid, one in self._world.replicas.items()
            if one.process is not None
        }

    async def run(self) -> None:
        """The world does by itself what has to be done."""
        await asyncio.Event().wait()


def name_of(workload: api.Workload, role: str, rank: int) -> str:
    """The fixed name of a replica."""
    parts = [KIND_WORDS.get(workload.kind, "workload"), workload.uid.rpartition("_")[2]]
    if role:
        parts += [role, str(rank)]
    elif rank:
        parts.append(str(rank))
    return "-".join(parts)


def substituted(text: str, values: Mapping[str, str]) -> str:
    """Put in what is promised."""
    for name, value in values.items():
        if name.startswith("FERMION_"):
            text = text.replace(f"$({name})", value)
    return text
