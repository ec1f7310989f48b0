"""Too many who wait, who take nothing, and who ask at once: all others are served as before."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final

import asyncpg
import grpc.aio
import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from chassis.embedded import Postgres
from fermion.api.executor import v1 as executor
from fermion.api.executor.v1.service_pb2_grpc import RuntimeServiceStub
from fermion.api.instances import v1 as api
from fermion.api.instances.v1.service_pb2_grpc import InstanceServiceStub
from fermion.api.workload import v1 as workload
from tests.fuzz.conftest import Ground
from tests.fuzz.wire import Answer, Metadata, refusal
from tests.stage import TINY, Stage, staged

WATCHERS: Final = 10_000
# Streams of one connection; each connection has its own.
STREAMS: Final = 200
OPENING_MAX: Final = 100
SECONDS_MAX: Final = 60.0
# What a watch that waits may hold: its call, its tasks and its timer.
WATCHER_BYTES_MAX: Final = 64 * 1024
# Streams that nobody reads, and what a service may take for each of them in a round that tells each a
# hundred megabytes of objects. So many, because what the allocator keeps of everything else is as much as
# some of them would.
UNREAD: Final = 40
SLOW_BYTES_MAX: Final = 12 * 2**20
POOL: Final = (("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0))
CHANGES: Final = 200
# Changes that may wait, and that are asked for.
QUEUED: Final = 64
ASKED: Final = 200
LINES: Final = 400_000
QUIET: Final = "projects/quiet"
BUSY: Final = "projects/busy"
SPEC: Final = ("--kind", "custom", "--image", "host", "--cpu", "50m", "--memory", "64MiB")


@pytest.fixture(scope="module", autouse=True)
def projects(ground: Ground) -> None:
    """Two projects of this module, and something in each."""
    for project in ("quiet", "busy"):
        ground.stage.ok("projects", "create", project)
        ground.stage.ok("instances", "create", "one", "-p", project, *SPEC, "--", "sleep", "600")
        ground.stage.ok("instances", "stop", "one", "-p", project, "--wait", "stopped")


@asynccontextmanager
async def connected(address: str, count: int) -> AsyncIterator[Sequence[grpc.aio.Channel]]:
    """Connections that share nothing."""
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(grpc.aio.insecure_channel(address, options=POOL))
            for _ in range(count)
        ]


async def relabel(ground: Ground, stub: InstanceServiceStub, parent: str, text: str) -> None:
    """Make a change that whoever watches hears of."""
    name = f"{parent}/instances/one"
    asked = api.UpdateInstanceRequest(
        instance=api.Instance(name=name, labels={"text": text}),
        update_mask=FieldMask(paths=["labels"]),
    )
    await stub.UpdateInstance(asked, metadata=ground.metadata("admin"), timeout=SECONDS_MAX)


def test_ten_thousand_who_watch_and_hear_nothing_leave_every_call_as_it_was(
    ground: Ground,
) -> None:
    ground.wire.run(_ten_thousand(ground))


async def _ten_thousand(ground: Ground) -> None:
    metadata = ground.metadata("admin")
    service = ground.service()
    opening, told = asyncio.Semaphore(OPENING_MAX), list[str]()
    opened, moved = list[int](), asyncio.Event()

    async def watch(number: int, channel: grpc.aio.Channel) -> None:
        asked = api.WatchInstancesRequest(parent=QUIET)
        async with opening:
            call = InstanceServiceStub(channel).WatchInstances(asked, metadata=metadata)
            await call.initial_metadata()
        opened.append(number)
        moved.set()
        async for response in call:
            if response.change == api.WatchInstancesResponse.CHANGE_UPDATED:
                told.append(response.instance.labels["text"])
            moved.set()

    async def reached(these: Sequence[object], count: int) -> None:
        async with asyncio.timeout(SECONDS_MAX):
            while len(these) < count:
                moved.clear()
                await moved.wait()

    async with connected(ground.stage.address, 1 + WATCHERS // STREAMS) as (first, *channels):
        stub, before = InstanceServiceStub(first), service.memory_info().rss
        async with asyncio.TaskGroup() as group:
            watching = [
                group.create_task(watch(number, channels[number // STREAMS]))
                for number in range(WATCHERS)
            ]
            await reached(opened, WATCHERS)
            held = (service.memory_info().rss - before) // WATCHERS
            for number in range(50):
                await relabel(ground, stub, BUSY, str(number))
                await stub.ListInstances(
                    api.ListInstancesRequest(parent=BUSY), metadata=metadata, timeout=SECONDS_MAX
                )
            assert told == [], "it is another project's"
            await relabel(ground, stub, QUIET, "heard")
            await reached(told, WATCHERS)
            for one in watching:
                one.cancel()
    assert told == ["heard"] * WATCHERS
    assert held < WATCHER_BYTES_MAX, held


def test_a_watch_that_nobody_reads_holds_little_and_hinders_nobody(ground: Ground) -> None:
    ground.wire.run(_unread_watch(ground))


async def enlarge(stub: InstanceServiceStub, metadata: Metadata, first: int) -> None:
    """Make changes that tell each watch 48 MB, which takes twice as much where it is kept."""
    for number in range(first, first + CHANGES):
        env = [workload.EnvVar(name=f"WORDS_{one}", value="x" * 30_000) for one in range(8)]
        instance = api.Instance(name=f"{BUSY}/instances/one", description=str(number))
        instance.spec.env.extend(env)
        request = api.UpdateInstanceRequest(
            instance=instance, update_mask=FieldMask(paths=["description", "spec.env"])
        )
        await stub.UpdateInstance(request, metadata=metadata, timeout=SECONDS_MAX)


async def _unread_watch(ground: Ground) -> None:
    metadata, service = ground.metadata("admin"), ground.service()
    async with connected(ground.stage.address, 3) as (slow, quick, other):
        stub = InstanceServiceStub(other)
        asked = api.WatchInstancesRequest(parent=BUSY)
        unread = [
            InstanceServiceStub(slow).WatchInstances(asked, metadata=metadata)
            for _ in range(UNREAD)
        ]
        for call in unread:
            await call.initial_metadata()
        reader = InstanceServiceStub(quick).WatchInstances(asked, metadata=metadata)
        await reader.initial_metadata()
        await enlarge(stub, metadata, 0)
        # What commits, copies and folds so much takes its part whoever watches, and each of those that
        # nobody reads has come to where it waits. What is told from now on may be kept by none.
        before = service.memory_info().rss
        await enlarge(stub, metadata, CHANGES)
        async with asyncio.timeout(SECONDS_MAX):
            async for response in reader:
                if response.instance.description == str(2 * CHANGES - 1):
                    break
        held = service.memory_info().rss - before
        async with asyncio.timeout(SECONDS_MAX):
            for call in unread:
                seen = [-1]
                while seen[-1] != 2 * CHANGES - 1:
                    seen.append(int((await call.read()).instance.description))
                assert seen == sorted(seen)
        for call in (reader, *unread):
            call.cancel()
    assert held < UNREAD * SLOW_BYTES_MAX, held


def test_a_log_that_nobody_reads_holds_little_and_hinders_nobody(ground: Ground) -> None:
    stage = ground.stage
    loud = f"seq -f 'line %.0f of a log that goes on and on' 0 {LINES - 1}"
    stage.ok(
        "instances",
        "create",
        "loud",
        "-p",
        "busy",
        *SPEC,
        "--",
        "sh",
        "-c",
        f"{loud}; exec sleep 600",
    )
    try:
        ground.wire.run(_unread_log(ground))
    finally:
        stage.ok("instances", "delete", "loud", "-p", "busy")


async def _unread_log(ground: Ground) -> None:
    metadata, service = ground.metadata("admin"), ground.service()
    asked = executor.StreamLogsRequest(owner=f"{BUSY}/instances/loud", follow=True)
    async with connected(ground.stage.address, 3) as (slow, quick, other):
        unread = [
            RuntimeServiceStub(slow).StreamLogs(asked, metadata=metadata) for _ in range(UNREAD)
        ]
        for call in unread:
            await call.initial_metadata()
        reader = RuntimeServiceStub(quick).StreamLogs(asked, metadata=metadata)
        whole = before = 0
        async with asyncio.timeout(SECONDS_MAX):
            async for response in reader:
                whole += sum(len(chunk.data) for chunk in response.chunks)
                if not before and whole > LINES:
                    # Each of the others has come to where it waits.
                    before = service.memory_info().rss
                if any(b"line %d " % (LINES - 1) in chunk.data for chunk in response.chunks):
                    break
        await relabel(ground, InstanceServiceStub(other), BUSY, "between")
        held = service.memory_info().rss - before
        for call in (reader, *unread):
            call.cancel()
    assert whole > 10 * 2**20
    assert held < UNREAD * SLOW_BYTES_MAX, held


def test_a_full_commit_queue_says_when_to_ask_again_and_loses_nothing(
    ground: Ground, tmp_path: Path
) -> None:
    settings = {**TINY, "FERMION_COMMIT_QUEUE": str(QUEUED)}
    with staged(tmp_path / "home", settings=settings) as stage:
        stage.ok("projects", "create", "many")
        # On the loop of the tier: gRPC keeps to the first one of a process.
        ground.wire.run(_full_queue(stage))
        stage.audit()
        listed = stage.ok("instances", "list", "-p", "many", "-o", "name").out.split()
        assert len(listed) == ASKED


async def _full_queue(stage: Stage) -> None:
    metadata = (("authorization", f"Bearer {stage.token}"),)
    full = asyncio.Event()
    refused: list[Answer] = []

    async def create(number: int, channel: grpc.aio.Channel) -> None:
        """Ask until it is done, as a client does."""
        spec = api.Spec(kind=api.KIND_CUSTOM, image="host", command=["true"])
        spec.resources.cpu_milli, spec.resources.memory_bytes = 10**5, 2**30
        request = api.CreateInstanceRequest(
            parent="projects/many", instance_id=f"q{number}", instance=api.Instance(spec=spec)
        )
        request.request_id = f"00000000-0000-4000-8000-{number:012}"
        while True:
            try:
                await InstanceServiceStub(channel).CreateInstance(request, metadata=metadata)
            except grpc.aio.AioRpcError as error:
                refused.append(refusal(error))
            else:
                return
            if refused[-1].reason == "COMMIT_QUEUE_FULL":
                full.set()
            await asyncio.sleep(refused[-1].retry_ms / 1000)

    dsn = Postgres(stage.home / "postgres").dsn
    async with (
        asyncpg.create_pool(dsn, min_size=1, max_size=1) as pool,
        connected(stage.address, 4) as channels,
        asyncio.TaskGroup() as group,
        pool.acquire() as database,
        database.transaction(),
        asyncio.timeout(SECONDS_MAX),
    ):
        # Whoever commits waits for this row.
        await database.execute("SELECT * FROM instances.head FOR UPDATE")
        for number in range(ASKED):
            group.create_task(create(number, channels[number % len(channels)]))
        await full.wait()
    assert {(one.code, one.reason) for one in refused} == {
        ("RESOURCE_EXHAUSTED", "COMMIT_QUEUE_FULL")
    }
    assert all(one.retry_ms > 0 for one in refused)
