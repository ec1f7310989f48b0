"""What operators watch of a cluster: its replicas, what is kept of those that ended, and how old that is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from chassis.clock import Clock
from chassis.postgres import Database
from chassis.queries import Queries
from chassis.telemetry import Figure, Sample
from fermion.api.executor import v1 as api
from services.executor.observation import Replica

# States of what is there, as `fermion replicas` shows them; what has ended is not counted.
STATES: Final = tuple(
    number
    for number in api.ReplicaState.values()
    if number not in (api.REPLICA_STATE_UNSPECIFIED, api.REPLICA_STATE_ENDED)
)

_CLUSTER: Final = ("cluster",)
REPLICAS: Final = Figure(
    "fermion_executor_replicas",
    "Replicas that are there, by state; of those that are lost nobody knows whether they live.",
    ("cluster", "state"),
)
OVERDUE: Final = Figure(
    "fermion_executor_overdue_replicas",
    "Replicas that are there though the time that they were given to end is over.",
    _CLUSTER,
)
HELD: Final = Figure(
    "fermion_executor_held_records",
    "Ended replicas whose record (a shim's, or a finalizer) the cluster still keeps.",
    _CLUSTER,
)
HELD_SECONDS: Final = Figure(
    "fermion_executor_held_seconds", "How long the first of these records has been kept.", _CLUSTER
)
STRANGERS: Final = Figure(
    "fermion_executor_stranger_replicas",
    "Replicas in the cluster that nobody has admitted; they are left alone.",
    _CLUSTER,
)
WATERMARK: Final = Figure(
    "fermion_executor_watermark_age_seconds",
    "Age of the last moment up to which the cluster has said everything.",
    _CLUSTER,
)
USAGE: Final = Figure(
    "fermion_executor_usage_age_seconds",
    "Age of the last measurement of what replicas use; 0 where none runs.",
    _CLUSTER,
)
FIGURES: Final = (REPLICAS, OVERDUE, HELD, HELD_SECONDS, STRANGERS, WATERMARK, USAGE)


@dataclass(frozen=True, slots=True)
class Seen:
    """What a pass over the cluster found that does not go on by itself."""

    overdue: int = 0
    # Ended replicas that the cluster still has, and when that was found first.
    held: Mapping[str, datetime] = field(default_factory=dict)
    strangers: int = 0


def seen(before: Seen | None, replicas: Iterable[Replica], strangers: int, now: datetime) -> Seen:
    """Look at what was stated of everything that the cluster has, after what was found before."""
    held = {} if before is None else before.held
    overdue, still = 0, {}
    for replica in replicas:
        if replica.released:
            still[replica.uid] = held.get(replica.uid, now)
        elif replica.deadline is not None and replica.deadline < now:
            overdue += 1
    return Seen(overdue, still, strangers)


class ClusterFigures:
    """Reads them from the rows; only who reconciles sees the cluster itself."""

    def __init__(
        self,
        cluster: str,
        database: Database,
        queries: Queries,
        clock: Clock,
        seen: Callable[[], Seen | None],
    ) -> None:
        self._cluster = cluster
        self._database = database
        self._queries = queries
        self._clock = clock
        self._seen = seen

    async def measure(self) -> Iterable[Sample]:
        """Read all of them once."""
        now, labels = self._clock.now(), (self._cluster,)
        rows = await self._database.fetch(self._queries["live_replicas"], api.REPLICA_STATE_LOST)
        counts = {row["state"]: row["replicas"] for row in rows}
        samples = [
            Sample(REPLICAS, (self._cluster, word(state)), counts.get(state, 0)) for state in STATES
        ]
        known = await self._database.fetchrow(self._queries["known_cluster"], self._cluster)
        if known is not None and known["through"] is not None:
            samples.append(Sample(WATERMARK, labels, _age(now, known["through"])))
        row = await self._database.fetchrow(self._queries["last_usage"], api.REPLICA_STATE_RUNNING)
        samples.append(Sample(USAGE, labels, _age(now, None if row is None else row["since"])))
        found = self._seen()
        if found is not None:
            samples += _of(found, labels, now)
        return samples


def word(state: api.ReplicaState.ValueType) -> str:
    """A state as a label."""
    return api.ReplicaState.Name(state).removeprefix("REPLICA_STATE_").lower()


def _of(found: Seen, labels: tuple[str, ...], now: datetime) -> Iterator[Sample]:
    yield Sample(OVERDUE, labels, found.overdue)
    yield Sample(HELD, labels, len(found.held))
    yield Sample(HELD_SECONDS, labels, _age(now, min(found.held.values(), default=None)))
    yield Sample(STRANGERS, labels, found.strangers)


def _age(now: datetime, since: datetime | None) -> float:
    return 0.0 if since is None else max(0.0, (now - since).total_seconds())
