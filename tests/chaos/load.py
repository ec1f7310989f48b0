"""Callers that create, start, stop, restart, crash and delete, and write down what they were told."""

from __future__ import annotations

import asyncio
import base64
import json
import random
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeAlias, TypeVar

import grpc
import grpc.aio
from google.protobuf import duration_pb2
from google.protobuf.message import Message

from fermion.api.instances import v1 as instances
from fermion.api.instances.v1 import service_pb2_grpc
from fermion.api.workload import v1 as workload
from fermion.call import CHANNEL_OPTIONS
from tests.chaos.stand import Stand

PROJECT: Final = "storm"
# Who asks for what never fits, and who lets programs live.
WAITERS: Final = 8
RUNNERS: Final = 5
# Each waiter deletes its oldest beyond so many.
WAITING_MAX: Final = 8
CPU_MILLI: Final = 20
MEMORY_BYTES: Final = 64 * 2**20
CALL_SECONDS: Final = 10.0
# So long one call is sent again before its caller gives up, and the round with it.
PATIENCE_SECONDS: Final = 120.0
MS: Final = 10**6
FATES: Final = ("ends", "crashes", "stopped", "restarted", "started", "deleted", "stays")
AGAIN: Final = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.CANCELLED,
)

Metadata = tuple[tuple[str, str], ...]
Answer = TypeVar("Answer")
Stub: TypeAlias = "service_pb2_grpc.InstanceServiceAsyncStub"


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """One call that was answered."""

    method: str
    request_id: str
    instance: str


@dataclass
class Ledger:
    """What callers asked and what they were told; nobody else writes it."""

    acknowledged: list[Acknowledged] = field(default_factory=list)
    created: set[str] = field(default_factory=set)
    # What never fits and was ended: each is refused by the scheduler once.
    withdrawn: set[str] = field(default_factory=set)
    in_flight: int = 0
    retries: int = 0
    over: bool = False
    # Callers that still call: also after the last fault each waits for the answer it is owed.
    calling: int = 0
    # What a watcher was sent, over all its resumptions: the place of each message, and the names.
    watched: list[int] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)
    resumed: int = 0

    def all_seen(self) -> bool:
        """Whether nobody creates any more and the watcher was sent what was created."""
        return self.over and not self.calling and self.created <= self.seen


@dataclass
class Caller:
    """One client with dice of its own, so that a seed names the order of its calls."""

    name: str
    stub: Stub
    metadata: Metadata
    ledger: Ledger
    dice: random.Random

    async def create(self, instance: str, spec: instances.Spec) -> None:
        """Have an instance."""
        request = instances.CreateInstanceRequest(
            parent=f"projects/{PROJECT}",
            instance_id=instance,
            instance=instances.Instance(spec=spec),
        )
        await self._insist(self.stub.CreateInstance, request, "CreateInstance", instance)
        self.ledger.created.add(instance)

    async def start(self, instance: str) -> None:
        """Have it run."""
        request = instances.StartInstanceRequest(name=full(instance))
        await self._insist(self.stub.StartInstance, request, "StartInstance", instance)

    async def stop(self, instance: str) -> None:
        """Have it stand."""
        request = instances.StopInstanceRequest(name=full(instance))
        await self._insist(self.stub.StopInstance, request, "StopInstance", instance)

    async def restart(self, instance: str) -> None:
        """Have it stop and run again."""
        request = instances.RestartInstanceRequest(name=full(instance))
        await self._insist(self.stub.RestartInstance, request, "RestartInstance", instance)

    async def delete(self, instance: str) -> None:
        """Have it gone."""
        request = instances.DeleteInstanceRequest(name=full(instance))
        await self._insist(self.stub.DeleteInstance, request, "DeleteInstance", instance)

    async def _insist(
        self,
        call: Callable[..., Awaitable[Answer]],
        request: Message,
        method: str,
        instance: str,
    ) -> None:
        """Make one call until it is acknowledged; always the same request."""
        request_id = str(uuid.UUID(int=self.dice.getrandbits(128), version=4))
        request.request_id = request_id  # type: ignore[attr-defined]  # each of them has one
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            self.ledger.in_flight += 1
            try:
                await call(request, metadata=self.metadata, timeout=CALL_SECONDS)
                self.ledger.acknowledged.append(Acknowledged(method, request_id, instance))
                return
            except grpc.aio.AioRpcError as error:
                if error.code() not in AGAIN or time.monotonic() > deadline:
                    raise AssertionError(f"{method} {instance} came to {error!r}") from error
                self.ledger.retries += 1
            finally:
                self.ledger.in_flight -= 1
            await asyncio.sleep(0.1)


def full(instance: str) -> str:
    """The resource name of an instance of the storm."""
    return f"projects/{PROJECT}/instances/{instance}"


@asynccontextmanager
async def reached(stand: Stand) -> AsyncIterator[tuple[Stub, Metadata]]:
    """The instances service as a client reaches it: the first process that answers."""
    address = f"ipv4:127.0.0.1:{stand.ports['instances']},127.0.0.1:{stand.ports['instances-2']}"
    metadata = await asyncio.to_thread(lambda: stand.stage.metadata)
    async with grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS) as channel:
        yield service_pb2_grpc.InstanceServiceStub(channel), metadata


async def load(
    stub: Stub, metadata: Metadata, ledger: Ledger, dice: random.Random, words: Path
) -> None:
    """Call from all callers until it is over, and every one of them has its answer."""
    ledger.calling = WAITERS + RUNNERS
    async with asyncio.TaskGroup() as group:
        for number in range(WAITERS + RUNNERS):
            name = f"{'w' if number < WAITERS else 'p'}{number}"
            caller = Caller(name, stub, metadata, ledger, random.Random(dice.random()))
            lives = wait(caller) if number < WAITERS else run(caller, words)
            group.create_task(lives, name=f"caller {name}")
        group.create_task(look(stub, metadata, ledger), name="watcher")


async def wait(caller: Caller) -> None:
    """Create what never fits, so that its place is the queue, and end some of it."""
    dice, ledger, count = caller.dice, caller.ledger, 0
    standing: list[str] = []
    spec = instances.Spec(
        kind=instances.KIND_CUSTOM,
        image="host",
        command=["true"],
        # More than a machine of ours has: what is created waits, and its count stays.
        resources=instances.Resources(gpu_milli=8000, cpu_milli=500, memory_bytes=2**29),
    )
    try:
        while not ledger.over:
            count += 1
            name = f"{caller.name}-{count}"
            await caller.create(name, spec)
            if dice.random() < 0.4:
                await caller.stop(name)
                ledger.withdrawn.add(name)
            standing.append(name)
            if len(standing) > WAITING_MAX:
                oldest = standing.pop(0)
                await caller.delete(oldest)
                ledger.withdrawn.add(oldest)
            await asyncio.sleep(dice.uniform(0.1, 1.5))
    finally:
        ledger.calling -= 1


async def run(caller: Caller, words: Path) -> None:
    """Let program after program live: some end, some crash, some are stopped, restarted, deleted."""
    dice, ledger, count = caller.dice, caller.ledger, 0
    try:
        while not ledger.over:
            count += 1
            name = f"{caller.name}-{count}"
            fate = dice.choice(FATES)
            if fate == "stays" and dice.random() < 0.7:
                # A few live on until the end of the round.
                fate = "stopped"
            seconds = dice.uniform(0.2, 1.5) if fate in ("ends", "crashes") else 3600.0
            await caller.create(name, program(words / name, seconds, 3 * (fate == "crashes")))
            await asyncio.sleep(dice.uniform(0.2, 1.5))
            if fate == "restarted":
                await caller.restart(name)
                await asyncio.sleep(dice.uniform(0.2, 1.5))
            if fate in ("stopped", "restarted", "started"):
                await caller.stop(name)
            if fate == "started":
                await caller.start(name)
                await asyncio.sleep(dice.uniform(0.2, 1.5))
                await caller.stop(name)
            if fate == "deleted":
                await caller.delete(name)
    finally:
        ledger.calling -= 1


async def look(stub: Stub, metadata: Metadata, ledger: Ledger) -> None:
    """Watch, resuming after each break, until everything that was created has been seen."""
    asked = instances.WatchInstancesRequest(parent=f"projects/{PROJECT}", send_initial=True)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not ledger.all_seen():
        if ledger.calling:
            deadline = time.monotonic() + PATIENCE_SECONDS
        assert time.monotonic() < deadline, f"never seen: {ledger.created - ledger.seen}"
        call = stub.WatchInstances(asked, metadata=metadata)
        try:
            while not ledger.all_seen():
                async with asyncio.timeout(2):
                    change = await call.read()
                if not isinstance(change, instances.WatchInstancesResponse):
                    break
                asked.resume_token = change.resume_token
                if change.change in (
                    instances.WatchInstancesResponse.CHANGE_UPDATED,
                    instances.WatchInstancesResponse.CHANGE_DELETED,
                ):
                    _, _, place = json.loads(base64.urlsafe_b64decode(change.resume_token))
                    ledger.watched.append(place)
                    ledger.seen.add(change.instance.name.rsplit("/", 1)[-1])
        except (grpc.aio.AioRpcError, TimeoutError):
            ledger.resumed += 1
            await asyncio.sleep(0.1)
        finally:
            call.cancel()


def program(words: Path, seconds: float, code: int) -> instances.Spec:
    """A program that writes down when it begins and ends, also when it is told to."""
    script = (
        f'say() {{ echo "$1 $(date +%s%N)" >> {words}; }}\n'
        "trap 'say end; exit 0' TERM\n"
        f"say start\nsleep {seconds:.2f} & wait $!\nsay end\nexit {code}\n"
    )
    return instances.Spec(
        kind=instances.KIND_CUSTOM,
        image="host",
        command=["sh", "-c", script],
        resources=instances.Resources(cpu_milli=CPU_MILLI, memory_bytes=MEMORY_BYTES),
        restart_policy=workload.RestartPolicy(
            mode=workload.RestartPolicy.MODE_ON_FAILURE,
            restarts_max=2,
            backoff=duration_pb2.Duration(nanos=200 * MS),
        ),
    )


async def finish(stub: Stub, metadata: Metadata, ledger: Ledger) -> None:
    """Stop all that is wanted to run."""
    caller = Caller("last", stub, metadata, ledger, random.Random())
    for name, state in (await states(stub, metadata)).items():
        if state not in (instances.STATE_STOPPED, instances.STATE_FAILED):
            await caller.stop(name)
            ledger.withdrawn.add(name)


async def states(stub: Stub, metadata: Metadata) -> dict[str, instances.State.ValueType]:
    """Where each instance of the storm stands; nothing where nobody answers."""
    found: dict[str, instances.State.ValueType] = {}
    request = instances.ListInstancesRequest(parent=f"projects/{PROJECT}", page_size=1000)
    with suppress(grpc.aio.AioRpcError):
        while True:
            page = await stub.ListInstances(request, metadata=metadata, timeout=CALL_SECONDS)
            for one in page.instances:
                found[one.name.rsplit("/", 1)[-1]] = one.status.state
            request.page_token = page.next_page_token
            if not page.next_page_token:
                return found
    return {}
