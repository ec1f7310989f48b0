"""
The meter: from what executors say happened to time that is paid for; pure, the reference of the fold in SQL.

Each fact fills a slot of its own, and every slot keeps the fact's position, so folding comes to the
same in any order, however often each is told, and a history can be looked at as of a position.
`segments` reads a history's timeline: it is half-open throughout, and within one segment everything
that money depends on is constant.

- A run lasts from its start to its end, each as it was corrected last; an end before the start is the
  start. Runs are in the order of their starts, and none lasts longer than to the start of the next.
- Within a run: RUNNING; DRAINING from when it was told to end; UNREACHABLE within a gap, which wins.
  A gap ends when it was found, or where another run starts: that is a proof of life as well.
- HELD from being scheduled to the first start, BACKOFF from an end to the next start; neither lasts
  beyond the release. A run that never was said to start is none; missed runs are only noted.
- Labels and resources are those of the change with the greatest number that was made by then.
- What is not over lasts for ever; the cap, and the period that is asked for, clip it.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol, TypeAlias, TypeVar, assert_never

from fermion.api.billing.v1 import resources_pb2 as billing
from fermion.api.workload import v1 as api
from services.billing.book import Book, Rule, State, in_force

HOUR_MS: Final = 3_600_000
# The end of what is not over.
FOREVER_MS: Final = 2**63 - 1
# Where no run is open.
NO_RUN: Final = -1

Labels: TypeAlias = tuple[tuple[str, str], ...]

ReplicaFact: TypeAlias = (
    api.ReplicaScheduled
    | api.ReplicaStarted
    | api.ReplicaEnded
    | api.ReplicaDraining
    | api.ReplicaLost
    | api.ReplicaFound
    | api.ReplicaRunMissed
    | api.ReplicaRunCorrected
    | api.ReplicaResized
    | api.ReplicaRelabelled
    | api.ReplicaReleased
)
VolumeFact: TypeAlias = api.VolumeBound | api.VolumeDeleted


class Why(enum.StrEnum):
    """Why time costs, or costs nothing: codes of the API, with their sentences in proto/reasons.md."""

    PLATFORM_WORK = "PLATFORM_WORK"
    NOT_BILLED = "NOT_BILLED"
    FREE_AT_FIRST = "FREE_AT_FIRST"
    DRAINING_FREE = "DRAINING_FREE"
    RUNNING = "RUNNING"
    DRAINING = "DRAINING"
    HELD_NOT_STARTED = "HELD_NOT_STARTED"
    BACKOFF = "BACKOFF"
    UNREACHABLE = "UNREACHABLE"
    STORAGE = "STORAGE"


@dataclass(frozen=True, slots=True)
class Moment:
    """When something happened, and the fact that says so."""

    at_ms: int
    position: int
    evidence: api.EvidenceClass.ValueType
    # Short name of the fact's type.
    type: str


@dataclass(frozen=True, slots=True)
class Sku:
    """What was allocated; storage only of a volume, all else only of a replica."""

    gpu_type: str = ""
    gpu_milli: int = 0
    cpu_milli: int = 0
    memory_bytes: int = 0
    storage_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Subject:
    """Whose time it is, as the first fact that tells has it."""

    position: int
    project: str
    owner: str
    owner_uid: str
    kind: api.Kind.ValueType
    workload: str
    attempt: int
    user: str
    labels: Labels
    purchase: api.Purchase.ValueType
    sku: Sku


@dataclass(frozen=True, slots=True)
class Run:
    """One life of a replica's main, as it was said first."""

    run: int
    start: Moment | None = None
    end: Moment | None = None


@dataclass(frozen=True, slots=True)
class Gap:
    """A time in which nobody knew whether it lived."""

    n: int
    lost: Moment | None = None
    found: Moment | None = None


@dataclass(frozen=True, slots=True)
class Change:
    """From then on it has these labels, or these resources; the other one is None."""

    n: int
    moment: Moment
    labels: Labels | None = None
    sku: Sku | None = None


@dataclass(frozen=True, slots=True)
class Correction:
    """What was said of a run was wrong; None stays as it was."""

    n: int
    run: int
    start_ms: int | None
    end_ms: int | None
    moment: Moment


@dataclass(frozen=True, slots=True)
class Missed:
    """Runs that came and went unseen within a window; they cost nothing."""

    from_run: int
    to_run: int
    start_ms: int
    end_ms: int
    moment: Moment


@dataclass(frozen=True, slots=True)
class Drain:
    """It was told to end, and why."""

    moment: Moment
    cause: api.Cause.ValueType


@dataclass(frozen=True, slots=True)
class Replica:
    """All that was said of one replica, each in its slot."""

    uid: str
    cluster: str
    subject: Subject | None = None
    scheduled: Moment | None = None
    drain: Drain | None = None
    released: Moment | None = None
    runs: tuple[Run, ...] = ()
    gaps: tuple[Gap, ...] = ()
    changes: tuple[Change, ...] = ()
    corrections: tuple[Correction, ...] = ()
    missed: tuple[Missed, ...] = ()


@dataclass(frozen=True, slots=True)
class Volume:
    """All that was said of one volume."""

    uid: str
    cluster: str
    subject: Subject | None = None
    bound: Moment | None = None
    deleted: Moment | None = None


History: TypeAlias = Replica | Volume


@dataclass(frozen=True, slots=True)
class Said:
    """A fact where it stands: in the journal of a cluster's executor, at a position."""

    message: ReplicaFact | VolumeFact
    cluster: str
    position: int


@dataclass(frozen=True, slots=True)
class Segment:
    """A half-open piece of a timeline in which nothing changes; only a run of no length has none."""

    uid: str
    # NO_RUN where none is open.
    run: int
    state: State
    billed: bool
    start_ms: int
    end_ms: int
    # Number of the price book that rules it.
    book: int
    sku: Sku
    labels: Labels
    # From when on the free part of its state is counted.
    begin_of_state_ms: int
    why: Why
    # Facts that say when its state began and ended, and what it was by then; oldest first.
    moments: tuple[Moment, ...]


def fold(facts: Iterable[Said]) -> dict[str, History]:
    """Take facts in, of any replicas and volumes and in any order; histories by uid."""
    raise NotImplementedError


def asof(history: History, position: int) -> History:
    """What was known when the journal had come to a position."""
    raise NotImplementedError


def segments(
    history: History, books: Sequence[Book], cap_ms: int, start_ms: int, end_ms: int
) -> tuple[Segment, ...]:
    """
    The timeline of a history up to a cap and within a period, in the order of time.

    There has to be a price book. What belongs to nobody yet, as no fact has told whose it is, has no
    segments.
    """
    raise NotImplementedError
