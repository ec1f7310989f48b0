"""What ten thousand watches cost a call beside them: with none, while all wait, and while all hear."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import grpc.aio
from google.protobuf.field_mask_pb2 import FieldMask

from fermion.api.instances import v1 as api
from fermion.api.instances.v1.service_pb2_grpc import InstanceServiceStub
from tests.bench.row import Row
from tests.stage import TINY, Stage, staged

WATCHERS = 10_000
STREAMS = 200
OPENING_MAX = 100
CALLS = 400
PAUSE_SECONDS = 0.01
PARENT = "projects/watched"
NAME = f"{PARENT}/instances/one"
OTHER = "projects/beside"
MEBIBYTE = 2**20


def rounds(folder: Path) -> list[Row]:
    """Measure on a platform of its own, one process for all services; who watches is another process."""
    with staged(folder / "home", settings=TINY) as stage:
        for project in (PARENT, OTHER):
            stage.ok("projects", "create", project.removeprefix("projects/"))
        with grpc.insecure_channel(stage.address) as channel:
            stub = InstanceServiceStub(channel)
            metadata = (("authorization", f"Bearer {stage.token}"),)
            _create(stub, metadata)
            alone = _p95(stub, metadata)
            before = _memory(stage)
            with _watching(stage) as watchers:
                held = (_memory(stage) - before) / WATCHERS
                idle = _p95(stub, metadata)
                began = time.monotonic()
                _relabel(stub, metadata)
                told = _p95(stub, metadata, watchers)
                took = time.monotonic() - began
    most = f"with none, {alone:,.1f} ms"
    return [
        Row("watch idle", f"another call, {WATCHERS:,} idle, p95", idle, "ms", most, idle / alone),
        Row("watch told", "the same while all are told of a fact", told, "ms", most, told / alone),
        Row("watch all", "until the last of them is told", took * 1000, "ms"),
        Row("watch memory", "one of them, in the service", held / 1024, "KiB"),
    ]


def _create(stub: InstanceServiceStub, metadata: tuple[tuple[str, str]]) -> None:
    spec = api.Spec(kind=api.KIND_CUSTOM, image="host", command=["sleep", "600"])
    spec.resources.cpu_milli, spec.resources.memory_bytes = 10, 8 * MEBIBYTE
    request = api.CreateInstanceRequest(
        parent=PARENT, instance_id="one", instance=api.Instance(spec=spec)
    )
    stub.CreateInstance(request, metadata=metadata)


def _relabel(stub: InstanceServiceStub, metadata: tuple[tuple[str, str]]) -> None:
    request = api.UpdateInstanceRequest(
        instance=api.Instance(name=NAME, labels={"told": "yes"}),
        update_mask=FieldMask(paths=["labels"]),
    )
    stub.UpdateInstance(request, metadata=metadata)


def _p95(
    stub: InstanceServiceStub,
    metadata: tuple[tuple[str, str]],
    until: subprocess.Popen[str] | None = None,
) -> float:
    """Milliseconds of a call of another project: so many of them, or as long as a process runs."""
    took = []
    while len(took) < CALLS if until is None else until.poll() is None:
        began = time.perf_counter()
        stub.ListInstances(api.ListInstancesRequest(parent=OTHER), metadata=metadata)
        took.append((time.perf_counter() - began) * 1000)
        time.sleep(PAUSE_SECONDS)
    return sorted(took)[int(len(took) * 0.95)]


def _memory(stage: Stage) -> int:
    """Bytes of the process that answers."""
    return int(stage.answering(stage.address).memory_info().rss)


@contextmanager
def _watching(stage: Stage) -> Iterator[subprocess.Popen[str]]:
    """A process whose watches are all open; it ends when all have heard of one change."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.bench.watch", stage.address],
        env={**stage.environment, "FERMION_TOKEN": stage.token},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        yield process
    finally:
        process.kill()
        process.communicate()


async def watch(address: str, token: str) -> None:
    """Open all watches, say so, and return when each of them has heard of the change."""
    metadata = (("authorization", f"Bearer {token}"),)
    opening = asyncio.Semaphore(OPENING_MAX)
    options = (("grpc.use_local_subchannel_pool", 1),)
    channels = [
        grpc.aio.insecure_channel(address, options=options) for _ in range(WATCHERS // STREAMS)
    ]

    async def opened(number: int) -> grpc.aio.UnaryStreamCall[object, object]:
        stub = InstanceServiceStub(channels[number // STREAMS])
        async with opening:
            call = stub.WatchInstances(api.WatchInstancesRequest(parent=PARENT), metadata=metadata)
            await call.initial_metadata()
        return call

    async def hears(call: grpc.aio.UnaryStreamCall[object, api.WatchInstancesResponse]) -> None:
        async for response in call:
            if response.instance.labels.get("told"):
                return

    calls = await asyncio.gather(*(opened(number) for number in range(WATCHERS)))
    print("open", flush=True)
    await asyncio.gather(*map(hears, calls))


if __name__ == "__main__":
    asyncio.run(watch(sys.argv[1], os.environ["FERMION_TOKEN"]))
