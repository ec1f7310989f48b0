"""Workloads and replicas as tests of the executor speak of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from fermion.api.workload import v1 as api
from services.executor import observation
from services.executor.aggregate import Wanted
from services.executor.observation import (
    Instant,
    Phase,
    Replica,
    ReplicaFact,
    ReplicaObservation,
    Run,
)

NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)


def at(seconds: float) -> datetime:
    """A moment after noon."""
    return NOON + timedelta(seconds=seconds)


def names(facts: Sequence[Message]) -> list[str]:
    """Their types."""
    return [fact.DESCRIPTOR.name for fact in facts]


def work(
    *groups: api.Group,
    ends: api.Ends.Rule.ValueType = api.Ends.RULE_NEVER,
    role: str = "",
    max_duration: int = 0,
) -> api.Workload:
    """A workload of these groups; one replica where none is given."""
    return api.Workload(
        uid="wkl_1",
        owner="projects/acme/instances/lab",
        owner_uid="inst_1",
        attempt=1,
        project="acme",
        user="user_1",
        kind=api.KIND_INSTANCE,
        groups=groups or (api.Group(replicas=1, min_replicas=1),),
        ends=api.Ends(rule=ends, role=role),
        success=api.Success(rule=api.Success.RULE_ALL),
        grace=Duration(seconds=30),
        max_duration=Duration(seconds=max_duration) if max_duration else None,
    )


def wanted(said: api.Workload) -> Wanted:
    """Admitted with all of its replicas."""
    return Wanted(said, {group.role: group.replicas for group in said.groups}, position=1)


def seen(rank: int = 0, role: str = "", **more: object) -> ReplicaObservation:
    """A replica of that rank."""
    found = ReplicaObservation(
        uid=f"rep_{role}{rank}",
        workload="wkl_1",
        role=role,
        rank=rank,
        node="here",
        scheduled=Instant(NOON),
        phase=Phase.PREPARING,
    )
    return replace(found, **more)  # type: ignore[arg-type]


def runs(start: float = 1, end: float | None = None, exit: int = 0) -> tuple[Run, ...]:
    """One run, open where no end is given."""
    closed = None if end is None else Instant(at(end))
    return (Run(0, Instant(at(start)), closed, exit=exit),)


def follow(replica: Replica, facts: Sequence[ReplicaFact]) -> Replica:
    """Follow facts."""
    for fact in facts:
        replica = observation.evolve(replica, fact)
    return replica


def replica(observed: ReplicaObservation, start: Replica = Replica()) -> Replica:
    """What is stated of a replica that was seen like this."""
    subject = api.Subject(project="acme", workload="wkl_1", role=observed.role, rank=observed.rank)
    return follow(start, observation.derive(start, observed, subject, at(1000)))


def alive(rank: int = 0, role: str = "", start: float = 1) -> Replica:
    """One that runs."""
    return replica(seen(rank, role, phase=Phase.RUNNING, runs=runs(start), proof=at(start)))


def ended(rank: int = 0, role: str = "", exit: int = 0, end: float = 9) -> Replica:
    """One that is gone for good."""
    return replica(seen(rank, role, phase=Phase.ENDED, runs=runs(1, end, exit)))


def drained(one: Replica, cause: api.Cause.ValueType) -> Replica:
    """One that was told to end, and did."""
    told = follow(one, observation.drain(one, cause, at(30), at(5)))
    last = seen(told.subject.rank, told.subject.role, phase=Phase.ENDED, runs=runs(1, 9, 143))
    return replica(last, told)
