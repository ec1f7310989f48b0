"""
How much a project or a user may hold at a time: limits that are stated, and those that are inherited.

A scope is one project (`projects/<uid>`), one user (`users/<uid>`), or each of them that has no
limits of its own (`projects/-`, `users/-`). Limits are stated as a whole and read through: a scope
with limits of its own inherits nothing, and where none are stated anywhere nothing is bounded. The
scheduler holds what runs against them; nothing that runs is ended because they were lowered.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, TypeAlias, assert_never, cast

from chassis import envelope
from chassis.editing import must_be_seen
from chassis.envelope import NO_PROJECT, Recorded
from chassis.journal import Place
from fermion.api.projects import v1 as api

ALL: Final = "-"

Fact: TypeAlias = api.QuotaSet | api.QuotaCleared


@dataclass(frozen=True, slots=True)
class Quota:
    """What one scope may hold; without `limits` it has none of its own."""

    version: int = 0
    limits: api.Limits | None = None


def fold(records: Iterable[Recorded]) -> Quota:
    """Fold a `quota/` stream."""
    return envelope.fold(lambda quota, fact, _: evolve(quota, cast(Fact, fact)), Quota(), records)


def evolve(quota: Quota, fact: Fact) -> Quota:
    """Take one fact in."""
    match fact:
        case api.QuotaSet():
            return Quota(fact.version, fact.limits)
        case api.QuotaCleared():
            return Quota(fact.version)
        case _:
            assert_never(fact)


def state(now: Quota, *, scope: str, project: str, limits: api.Limits, etag: str) -> list[Fact]:
    """State the whole of a scope's limits; the same ones again say nothing."""
    must_be_seen(etag, now.version)
    if now.limits == limits:
        return []
    return [api.QuotaSet(scope=scope, version=now.version + 1, limits=limits, project=project)]


def clear(now: Quota, *, scope: str, project: str, etag: str) -> list[Fact]:
    """Take a scope's own limits away; where there are none, there is nothing to say."""
    must_be_seen(etag, now.version)
    if now.limits is None:
        return []
    return [api.QuotaCleared(scope=scope, version=now.version + 1, project=project)]


def place(fact: Fact) -> Place:
    """Where a fact stands; only a project's own belongs to a project."""
    return Place(f"quota/{fact.scope}", fact.project or NO_PROJECT)


def view(name: str, own: Quota, of_all: Quota) -> api.Quota:
    """Show the limits in force in a scope: its own, else those of all that have none."""
    inherited = own.limits is None and name.split("/")[1] != ALL
    found = of_all if inherited else own
    return api.Quota(
        name=name,
        limits=found.limits or api.Limits(),
        inherited=inherited,
        etag=str(own.version),
    )
