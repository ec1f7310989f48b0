"""
Kill everything at random moments under load, and count.

The client's own ledger of acknowledged calls is compared with the journal, the readers with their
rebuild from zero, and the audit with itself. `FERMION_CHAOS_SEED` replays a run.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import random
import time
import uuid
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import asyncpg
import grpc
import grpc.aio
import psutil
import pytest

from chassis.bus import Away, Bus
from chassis.embedded import Postgres
from fermion.api.instances import v1 as instances
from fermion.api.instances.v1 import service_pb2_grpc
from tests.stage import Stage, staged, until

CALLERS = 24
KILLS_OF_EACH = 3
PROJECT = "storm"
CALL_SECONDS_MAX = 120.0
AGAIN = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.CANCELLED,
)


Metadata = tuple[tuple[str, str], ...]


@dataclass
class Ledger:
    """What the client asked, and what it was told."""

    created: set[str] = field(default_factory=set)
    stopped: set[str] = field(default_factory=set)
    in_flight: int = 0
    retries: int = 0
    # (what was killed, calls that were in flight then, facts that were committed and not published)
    kills: list[tuple[str, int, int]] = field(default_factory=list)
    over: bool = False
    # Callers that still call: also after the last kill each waits for the answer it is owed.
    calling: int = 0
    # What a watcher was sent, over all its resumptions: the place of each message, and the names.
    watched: list[int] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)
    resumed: int = 0

    def all_seen(self) -> bool:
        """Whether nobody creates any more and the watcher was sent what was created."""
        return self.over and not self.calling and self.created <= self.seen


@pytest.mark.timeout(1200)
def test_nothing_acknowledged_is_lost_or_doubled_whatever_is_killed(tmp_path: Path) -> None:
    seed = int(os.environ.get("FERMION_CHAOS_SEED", str(random.SystemRandom().randrange(10**6))))
    print(f"FERMION_CHAOS_SEED={seed}")
    with staged(tmp_path / "home", "--split") as stage:
        stage.ok("projects", "create", PROJECT)
        ledger = asyncio.run(storm(stage, random.Random(seed)))
        settle(stage)

        killed = Counter(what for what, _, _ in ledger.kills)
        assert min(killed.values()) >= KILLS_OF_EACH, killed
        assert set(killed) == {"projects", "instances", "scheduler", "postgres", "nats"}
        assert all(flying > 0 for _, flying, _ in ledger.kills), ledger.kills
        behind = [unpublished for _, _, unpublished in ledger.kills if unpublished > 0]
        assert len(behind) * 3 >= len(ledger.kills), ledger.kills
        assert ledger.retries > 0
        # Over all its resumptions the watch sent no place twice and left no instance out.
        assert ledger.resumed > 0
        assert ledger.watched == sorted(set(ledger.watched))
        assert ledger.created <= ledger.seen

        history = stage.ok("events", "list", "-p", PROJECT, "-o", "json").json()
        assert isinstance(history, list)
        kinds: dict[str, Counter[str]] = {}
        for fact in history:
            kind = str(fact["type"]).rsplit(".", 1)[-1]
            about = fact["data"].get("instance") or fact["data"].get("uid") or ""
            kinds.setdefault(kind, Counter())[about] += 1
        created = kinds["InstanceCreated"]
        assert set(created) == ledger.created
        assert set(created.values()) == {1}
        # Every attempt was declared once, told once that it has arrived and at most once why it
        # waits, and where it was stopped, refused once.
        assert len(kinds["WorkloadQueued"]) == len(ledger.created)
        assert set(kinds["WorkloadQueued"].values()) <= {1, 2}
        assert kinds["WorkloadRefused"].total() == len(ledger.stopped)
        assert set(kinds["WorkloadRefused"].values()) == {1}

        listed = stage.ok("instances", "list", "-p", PROJECT, "-o", "json").json()
        assert isinstance(listed, list)
        states = {str(one["name"]).rsplit("/", 1)[-1]: one["status"]["state"] for one in listed}
        assert {name for name, state in states.items() if state == "STATE_STOPPED"} == (
            ledger.stopped
        )

        stage.audit()
        for journal in ("projects/0", "instances/0", "scheduler/0"):
            stage.ok("journal", "rebuild", journal)
        print(
            f"{len(ledger.created)} creates, {len(ledger.stopped)} stops, "
            f"{ledger.retries} retries, {dict(killed)} killed, "
            f"{ledger.resumed} resumed watches, "
            f"{len(behind)} times with {sum(behind)} facts committed and not yet published"
        )


def settle(stage: Stage) -> None:
    """Wait until nobody works any more: every reader has read its journal to the head."""

    def quiet() -> bool:
        answer = stage.cli("status", "-o", "json")
        if answer.code != 0:
            return False
        told = answer.json()
        assert isinstance(told, dict)
        journals = told["journals"]
        heads = {one["journal"]: int(one["head"]) for one in journals}
        positions = [
            (reader["journal"], int(reader.get("position", 0)))
            for one in journals
            for reader in one.get("readers", [])
        ]
        return all(position == heads[name] for name, position in positions)

    until(90, quiet, stage.log)


async def storm(stage: Stage, dice: random.Random) -> Ledger:
    """Create and stop from many callers until everything was killed often enough."""
    ledger = Ledger()
    metadata = stage.metadata
    options = [("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 500)]
    address = stage.address_of("instances")
    async with grpc.aio.insecure_channel(address, options=options) as channel:
        stub = service_pb2_grpc.InstanceServiceStub(channel)
        async with asyncio.TaskGroup() as group:
            for number in range(CALLERS):
                # Each caller has its own dice, so that a seed names one order of its calls.
                own = random.Random(dice.random())
                group.create_task(
                    work(stub, metadata, ledger, number, own), name=f"caller {number}"
                )
            group.create_task(kill(stage, ledger, dice), name="killer")
            group.create_task(look(stub, metadata, ledger), name="watcher")
    return ledger


async def look(
    stub: service_pb2_grpc.InstanceServiceAsyncStub, metadata: Metadata, ledger: Ledger
) -> None:
    """Watch, resuming after each break, until everything that was created has been seen."""
    asked = instances.WatchInstancesRequest(parent=f"projects/{PROJECT}", send_initial=True)
    deadline = time.monotonic() + CALL_SECONDS_MAX
    while not ledger.all_seen():
        if ledger.calling:
            deadline = time.monotonic() + CALL_SECONDS_MAX
        assert time.monotonic() < deadline, ledger.created - ledger.seen
        call = stub.WatchInstances(asked, metadata=metadata)
        try:
            while not ledger.all_seen():
                async with asyncio.timeout(2):
                    change = await call.read()
                if not isinstance(change, instances.WatchInstancesResponse):
                    break
                asked.resume_token = change.resume_token
                if change.change == instances.WatchInstancesResponse.CHANGE_UPDATED:
                    _, _, place = json.loads(base64.urlsafe_b64decode(change.resume_token))
                    ledger.watched.append(place)
                    ledger.seen.add(change.instance.name.rsplit("/", 1)[-1])
        except (grpc.aio.AioRpcError, TimeoutError):
            ledger.resumed += 1
            await asyncio.sleep(0.1)
        finally:
            call.cancel()


async def work(
    stub: service_pb2_grpc.InstanceServiceAsyncStub,
    metadata: Metadata,
    ledger: Ledger,
    number: int,
    dice: random.Random,
) -> None:
    """Create instance after instance, and stop some of them."""
    count = 0
    ledger.calling += 1
    while not ledger.over:
        count += 1
        name = f"c{number}-{count}"
        spec = instances.Spec(
            kind=instances.KIND_CUSTOM,
            image="host",
            command=["true"],
            # More than a machine of ours has: what is created waits, and its count stays.
            resources=instances.Resources(gpu_milli=8000, cpu_milli=500, memory_bytes=2**29),
        )
        create = instances.CreateInstanceRequest(
            parent=f"projects/{PROJECT}",
            instance_id=name,
            request_id=str(uuid.uuid4()),
            instance=instances.Instance(spec=spec),
        )
        await insist(lambda r=create: stub.CreateInstance(r, metadata=metadata, timeout=10), ledger)
        ledger.created.add(name)
        if dice.random() < 0.4:
            stop = instances.StopInstanceRequest(
                name=f"projects/{PROJECT}/instances/{name}", request_id=str(uuid.uuid4())
            )
            await insist(lambda r=stop: stub.StopInstance(r, metadata=metadata, timeout=10), ledger)
            ledger.stopped.add(name)
        await asyncio.sleep(dice.random() * 0.1)
    ledger.calling -= 1


async def insist(call: object, ledger: Ledger) -> None:
    """Make one call until it is acknowledged; always the same request."""
    assert callable(call)
    deadline = time.monotonic() + CALL_SECONDS_MAX
    while True:
        ledger.in_flight += 1
        try:
            await call()
            return
        except grpc.aio.AioRpcError as error:
            if error.code() not in AGAIN or time.monotonic() > deadline:
                raise
            ledger.retries += 1
        finally:
            ledger.in_flight -= 1
        await asyncio.sleep(0.1)


async def kill(stage: Stage, ledger: Ledger, dice: random.Random) -> None:
    """Kill each thing often enough, in an order and at moments that the dice say."""
    wanted = ["projects", "instances", "scheduler", "postgres", "nats"] * KILLS_OF_EACH
    dice.shuffle(wanted)
    bus = Bus(f"nats://127.0.0.1:{nats_port(stage)}", "instances", nats_key(stage))
    running = asyncio.create_task(bus.run(), name="looks at the stream")
    try:
        for what in wanted:
            await asyncio.sleep(0.3 + dice.random() * 1.2)
            deadline = time.monotonic() + 30
            while (victim := find(stage, what)) is None or not ledger.in_flight:
                assert time.monotonic() < deadline, f"{what} does not come back\n{stage.log()}"
                await asyncio.sleep(0.02)
            unpublished = 0
            if what in ("instances", "nats"):
                unpublished = await freeze(stage, bus, what, victim)
                # Callers that were just being refused are back in a moment, and wait for the frozen.
                while not ledger.in_flight:
                    assert time.monotonic() < deadline + 30, "nobody calls any more"
                    await asyncio.sleep(0.01)
            ledger.kills.append((what, ledger.in_flight, unpublished))
            victim.kill()
    finally:
        ledger.over = True
        running.cancel()
        await asyncio.wait({running})


async def freeze(stage: Stage, bus: Bus, what: str, victim: psutil.Process) -> int:
    """
    Stop a process at a moment when facts are committed and not published; how many they are.

    While it is stopped, neither a relay nor a broker that is about to die can catch up unseen.
    0 where no such moment was found.
    """
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and victim.is_running():
        victim.suspend()
        try:
            committed = await head(stage)
            if what == "nats":
                await asyncio.sleep(0.1)
                found = await head(stage) - committed
            else:
                tail = await bus.tail("instances/0")
                found = committed - (0 if tail is None else tail.last)
        except (Away, OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            found = 0
        if found > 0:
            return found
        victim.resume()
        await asyncio.sleep(0.03)
    return 0


async def head(stage: Stage) -> int:
    """The last position of the instances journal, asked of PostgreSQL itself."""
    server = Postgres(stage.home / "postgres")
    connection = await asyncpg.connect(server.dsn, timeout=5)
    try:
        found: int = await connection.fetchval("SELECT position FROM instances.head")
        return found
    finally:
        await connection.close()


def nats_port(stage: Stage) -> int:
    """Where the platform's NATS listens."""
    found: int = json.loads((stage.home / "nats" / "nats.conf").read_text())["port"]
    return found


def nats_key(stage: Stage) -> Path:
    """The key of the service whose stream is looked at."""
    return stage.home / "nats" / "keys" / "instances.nk"


def find(stage: Stage, what: str) -> psutil.Process | None:
    """The process of one service, or the first one of a server."""
    assert stage.process is not None
    for process in psutil.Process(stage.process.pid).children():
        try:
            words = process.cmdline()
        except psutil.Error:
            continue
        if words[-3:] == ["-m", "services", what]:
            return process
        name = Path(words[0]).name if words else ""
        if (what, name) in (("postgres", "postgres"), ("nats", "nats-server")):
            return process
    return None
