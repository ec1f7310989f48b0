"""What operators watch of the queue: how much waits for what and how long, and how much is held."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from chassis.clock import Clock
from chassis.postgres import Database, Record
from chassis.queries import Queries
from chassis.telemetry import Figure, Sample
from fermion.api.workload import v1 as workload
from services.scheduler import explain
from services.scheduler.demand import ARRIVED, RESERVED
from services.scheduler.placement import Nodes

# What the books hold is summed up at most so often.
HELD_SECONDS: Final = 5.0
# Shown also where nothing waits for them, so that a line on a screen goes down to zero.
REASONS: Final = (
    *(ARRIVED, explain.NO_CLUSTER, explain.VOLUME_UNKNOWN, explain.QUOTA_UNKNOWN, explain.QUOTA),
    *(explain.OVER_QUOTA, explain.CAPACITY, explain.FRAGMENTED, explain.BEHIND, RESERVED),
)

QUEUED: Final = Figure(
    "fermion_scheduler_queued_workloads", "Workloads that wait, by why.", ("reason",)
)
QUEUED_SECONDS: Final = Figure(
    "fermion_scheduler_queued_seconds", "How long the first of them has waited.", ("reason",)
)
_CLUSTER: Final = ("cluster",)
_MODEL: Final = ("cluster", "gpu_type")
HELD_GPUS: Final = Figure(
    "fermion_scheduler_held_gpus", "GPUs that workloads hold, as parts of whole ones.", _MODEL
)
ALL_GPUS: Final = Figure("fermion_scheduler_capacity_gpus", "GPUs that there are.", _MODEL)
HELD_CORES: Final = Figure(
    "fermion_scheduler_held_cores", "CPU cores that workloads hold.", _CLUSTER
)
ALL_CORES: Final = Figure("fermion_scheduler_capacity_cores", "CPU cores that there are.", _CLUSTER)
HELD_MEMORY: Final = Figure(
    "fermion_scheduler_held_memory_bytes", "Memory that workloads hold.", _CLUSTER
)
ALL_MEMORY: Final = Figure(
    "fermion_scheduler_capacity_memory_bytes", "Memory that there is.", _CLUSTER
)
HELD_STORAGE: Final = Figure(
    "fermion_scheduler_held_storage_bytes", "Disk that workloads and volumes hold.", _CLUSTER
)
ALL_STORAGE: Final = Figure(
    "fermion_scheduler_capacity_storage_bytes", "Disk that there is.", _CLUSTER
)
FIGURES: Final = (
    *(QUEUED, QUEUED_SECONDS, HELD_GPUS, ALL_GPUS, HELD_CORES, ALL_CORES),
    *(HELD_MEMORY, ALL_MEMORY, HELD_STORAGE, ALL_STORAGE),
)


@dataclass(slots=True)
class Amounts:
    """So much of everything, in whole thousandths and bytes; of GPUs by model."""

    cpu_milli: int = 0
    memory_bytes: int = 0
    storage_bytes: int = 0
    gpu_milli: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class Capacity:
    """What is held of a cluster, and what it has; where a node has gone, more may be held than there is."""

    cluster: str
    held: Amounts
    there: Amounts


def capacity(clusters: Mapping[str, Nodes]) -> Sequence[Capacity]:
    """Sum up what there is, and what of it is held."""
    return [_capacity(uid, nodes) for uid, nodes in sorted(clusters.items())]


def _capacity(uid: str, nodes: Nodes) -> Capacity:
    held, there = Amounts(), Amounts()
    for node in nodes.nodes.values():
        whole = node.shape.whole
        there.cpu_milli += whole.cpu_milli
        there.memory_bytes += whole.memory_bytes
        there.storage_bytes += whole.storage_bytes
        for gpus in whole.gpus:
            there.gpu_milli[gpus.gpu_type] += gpus.devices * 1000
        for load, _ in node.busy.values():
            for size, number in load:
                held.cpu_milli += size.cpu_milli * number
                held.memory_bytes += size.memory_bytes * number
                held.storage_bytes += size.storage_bytes * number
                if size.gpu_milli:
                    held.gpu_milli[size.gpu_type] += size.gpu_milli * number
    return Capacity(uid, held, there)


class QueueFigures:
    """Reads them from the rows; only who admits knows what is held."""

    def __init__(
        self,
        database: Database,
        queries: Queries,
        clock: Clock,
        held: Callable[[], Sequence[Capacity]],
    ) -> None:
        self._database = database
        self._queries = queries
        self._clock = clock
        self._held = held

    async def measure(self) -> Iterable[Sample]:
        """Read all of them once."""
        rows = await self._database.fetch(self._queries["queue_by_reason"])
        return [*queued(rows, self._clock.now()), *held(self._held())]


def queued(rows: Iterable[Record], now: datetime) -> Iterator[Sample]:
    """What waits, by the code of why."""
    waiting: Counter[str] = Counter()
    oldest: dict[str, float] = {}
    for row in rows:
        stated = row["reason"]
        code = ARRIVED.code if stated is None else workload.Reason.FromString(stated).code
        waiting[code] += row["waiting"]
        age = max(0.0, (now - row["since"]).total_seconds())
        oldest[code] = max(age, oldest.get(code, 0.0))
    for code in sorted({*(said.code for said in REASONS), *waiting}):
        yield Sample(QUEUED, (code,), waiting[code])
        yield Sample(QUEUED_SECONDS, (code,), oldest.get(code, 0.0))


def held(found: Iterable[Capacity]) -> Iterator[Sample]:
    """What is held and what there is, in whole units."""
    for one in found:
        for amounts, cores, memory, storage, gpus in (
            (one.held, HELD_CORES, HELD_MEMORY, HELD_STORAGE, HELD_GPUS),
            (one.there, ALL_CORES, ALL_MEMORY, ALL_STORAGE, ALL_GPUS),
        ):
            yield Sample(cores, (one.cluster,), amounts.cpu_milli / 1000)
            yield Sample(memory, (one.cluster,), amounts.memory_bytes)
            yield Sample(storage, (one.cluster,), amounts.storage_bytes)
            for model in sorted({*one.held.gpu_milli, *one.there.gpu_milli}):
                yield Sample(gpus, (one.cluster, model), amounts.gpu_milli[model] / 1000)
