"""From CreateInstance to a process that runs, against a bare exec; and what the platform takes of memory."""

from __future__ import annotations

import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import grpc
import psutil

from fermion.api.instances import v1 as instances
from fermion.api.instances.v1 import service_pb2_grpc
from tests.bench.row import Row, within
from tests.stage import FERMION, TINY, Stage, staged, until

ROUNDS = 20
# So long after a start the platform is at rest again: what ran has ended, and is settled.
REST_SECONDS = 1.0
REPLICAS = 200
PROJECT = "bench"
MEBIBYTE = 2**20
# More than a bare exec takes, in the median.
GOAL_MS = 150.0
HELPS = 10
HELP_GOAL_MS = 150.0


def rounds(folder: Path) -> list[Row]:
    """Measure on a platform of its own, one process for all services."""
    helped = [helping() for _ in range(HELPS)]
    began = time.perf_counter()
    with staged(folder / "home", settings=TINY) as stage:
        ready = time.perf_counter() - began
        stage.ok("projects", "create", PROJECT)
        rest = memory(stage)
        with grpc.insecure_channel(stage.address) as channel:
            stub = service_pb2_grpc.InstanceServiceStub(channel)
            started = [rested(stage, stub, folder, number) for number in range(ROUNDS)]
            busy = [start(stage, stub, folder, ROUNDS + number) for number in range(ROUNDS)]
            bare = [execute(folder, number) for number in range(ROUNDS)]
            for number in range(REPLICAS):
                create(
                    stage, stub, f"r{number}", ["sleep", "600"], cpu_milli=1, memory=8 * MEBIBYTE
                )
            until(300, lambda: len(shims(stage)) >= REPLICAS, stage.log)
            loaded = memory(stage)
            each = statistics.median(resident(shim) for shim in shims(stage))
    more = statistics.median(started) - statistics.median(bare)
    more_busy = statistics.median(busy) - statistics.median(bare)
    return [
        within("P9 help", "fermion --help, p50", statistics.median(helped), "ms", HELP_GOAL_MS),
        Row("P9 up", "from nothing to a signed call that is answered", ready, "s"),
        Row("P7", "create to process running, at rest, p50", statistics.median(started), "ms"),
        Row("P7 bare", "a bare exec of the same, p50", statistics.median(bare), "ms"),
        within("P7 more", "what the platform adds", more, "ms", GOAL_MS),
        within("P7 busy", "the same while the one before it ends", more_busy, "ms", GOAL_MS),
        Row("memory rest", "platform at rest, PostgreSQL and NATS with it", rest, "MiB"),
        Row("memory 200", f"the same with {REPLICAS} replicas, shims apart", loaded, "MiB"),
        Row("memory shim", "one shim, p50", each, "MiB"),
    ]


def helping() -> float:
    """Milliseconds that the command line takes to tell what it can do."""
    began = time.perf_counter()
    subprocess.run([FERMION, "--help"], check=True, stdout=subprocess.DEVNULL)
    return (time.perf_counter() - began) * 1000


def create(
    stage: Stage,
    stub: service_pb2_grpc.InstanceServiceStub,
    name: str,
    command: Sequence[str],
    cpu_milli: int = 100,
    memory: int = 64 * MEBIBYTE,
) -> None:
    """Create one instance."""
    stub.CreateInstance(
        instances.CreateInstanceRequest(
            parent=f"projects/{PROJECT}",
            instance_id=name,
            instance=instances.Instance(
                spec=instances.Spec(
                    kind=instances.KIND_CUSTOM,
                    image="host",
                    command=command,
                    resources=instances.Resources(cpu_milli=cpu_milli, memory_bytes=memory),
                )
            ),
        ),
        metadata=(("authorization", f"Bearer {stage.token}"),),
    )


def start(
    stage: Stage, stub: service_pb2_grpc.InstanceServiceStub, folder: Path, number: int
) -> float:
    """Milliseconds from the call to the moment that the program itself writes down."""
    wrote = folder / f"started-{number}"
    began = time.time_ns()
    create(stage, stub, f"s{number}", writes(wrote))
    return waited(wrote, began, stage.log)


def rested(
    stage: Stage, stub: service_pb2_grpc.InstanceServiceStub, folder: Path, number: int
) -> float:
    """The same on a platform that is at rest."""
    time.sleep(REST_SECONDS)
    return start(stage, stub, folder, number)


def execute(folder: Path, number: int) -> float:
    """Milliseconds from a bare exec to the same moment."""
    wrote = folder / f"bare-{number}"
    began = time.time_ns()
    subprocess.run(writes(wrote), check=True)
    return waited(wrote, began, lambda: "a bare exec wrote nothing")


def writes(path: Path) -> list[str]:
    """A program that writes down when it runs."""
    return ["sh", "-c", f"date +%s%N > {path}.part && mv {path}.part {path}"]


def waited(path: Path, began: int, explain: Callable[[], str]) -> float:
    """When it ran, in milliseconds after the beginning."""
    until(30, path.exists, explain)
    return (int(path.read_text()) - began) / 1e6


def shims(stage: Stage) -> list[psutil.Process]:
    """Every shim of the platform's folder."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if any(Path(word).name.startswith("shim-") for word in words) and str(
            stage.home
        ) in " ".join(words):
            found.append(process)
    return found


def memory(stage: Stage) -> float:
    """MiB that the platform's own processes take, shared pages counted once."""
    assert stage.process is not None
    root = psutil.Process(stage.process.pid)
    return sum(resident(one) for one in (root, *root.children(recursive=True)))


def resident(process: psutil.Process) -> float:
    """MiB of one process, shared pages by their share."""
    try:
        return float(process.memory_full_info().pss) / MEBIBYTE
    except psutil.Error:
        return 0.0
