"""
Which clusters work may run on: who was enrolled, who was retired, and since when.

A cluster's uid is the shard of its executor's journal, so that everybody who hears of the cluster
knows which journal to read. Retiring gives it no more work; what ran there is witnessed to its end.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TypeAlias, assert_never, cast

from chassis import envelope
from chassis.envelope import NO_PROJECT, Recorded
from chassis.journal import Place
from chassis.refusals import Missing
from fermion.api.projects import v1 as api

Fact: TypeAlias = api.ClusterEnrolled | api.ClusterRetired


@dataclass(frozen=True, slots=True)
class Cluster:
    """A cluster; without a uid it was never enrolled."""

    uid: str = ""
    enrol_time: datetime | None = None
    # Up to when, where it gets no more work.
    retire_time: datetime | None = None


def fold(records: Iterable[Recorded]) -> Cluster:
    """Fold a `cluster/` stream."""
    return envelope.fold(
        lambda cluster, fact, _: evolve(cluster, cast(Fact, fact)), Cluster(), records
    )


def evolve(cluster: Cluster, fact: Fact) -> Cluster:
    """Take one fact in."""
    match fact:
        case api.ClusterEnrolled():
            return Cluster(fact.cluster, fact.from_time.ToDatetime(tzinfo=UTC))
        case api.ClusterRetired():
            return replace(cluster, retire_time=fact.through_time.ToDatetime(tzinfo=UTC))
        case _:
            assert_never(fact)


def enrol(now: Cluster, *, uid: str, at: datetime) -> list[Fact]:
    """Let work run on a cluster, also on one that was retired; twice is once."""
    if now.uid and now.retire_time is None:
        return []
    fact = api.ClusterEnrolled(cluster=uid, journal=f"executor/{uid}")
    # Its times never go back, whichever clock says them.
    fact.from_time.FromDatetime(max(at, now.retire_time or at))
    return [fact]


def introduce(now: Cluster, *, uid: str, at: datetime) -> list[Fact]:
    """Enrol a cluster that the settings name, unless it was ever known: an operator's word counts."""
    return [] if now.uid else enrol(now, uid=uid, at=at)


def retire(now: Cluster, *, uid: str, at: datetime) -> list[Fact]:
    """Give a cluster no more work; twice is once."""
    if not now.uid:
        raise Missing(
            "CLUSTER_NOT_FOUND",
            f"There is no cluster {uid!r}.",
            next_step="`fermion clusters list` shows those that are there.",
            cluster=uid,
        )
    if now.retire_time is not None:
        return []
    fact = api.ClusterRetired(cluster=uid)
    fact.through_time.FromDatetime(max(at, now.enrol_time or at))
    return [fact]


def place(fact: Fact) -> Place:
    """Where a fact stands; clusters belong to no project."""
    return Place(f"cluster/{fact.cluster}", NO_PROJECT)


def view(cluster: Cluster) -> api.Cluster:
    """Show a cluster as callers see it."""
    shown = api.Cluster(
        name=f"clusters/{cluster.uid}",
        retired=cluster.retire_time is not None,
    )
    if cluster.enrol_time is not None:
        shown.enrol_time.FromDatetime(cluster.enrol_time)
    if cluster.retire_time is not None:
        shown.retire_time.FromDatetime(cluster.retire_time)
    return shown
