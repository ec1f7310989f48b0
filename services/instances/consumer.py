"""What instances do because of what others said: the scheduler, projects, and this service itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from chassis.envelope import Recorded
from chassis.postgres import Database
from chassis.queries import Queries
from chassis.readers import Reaction
from fermion.api.instances import v1 as api
from fermion.api.projects import v1 as projects
from fermion.api.workload import v1 as workload
from services.instances import aggregate

# Uids of instances; the scheduler's journal is about everybody's workloads.
PREFIX: Final = "inst_"


class SchedulerReports:
    """Follows what becomes of the attempts that this service declared."""

    name = "instances/scheduler"
    source = "scheduler"
    handles = frozenset(
        {
            workload.WorkloadQueued.DESCRIPTOR.full_name,
            workload.WorkloadRefused.DESCRIPTOR.full_name,
        }
    )

    async def react(self, fact: Recorded) -> Sequence[Reaction]:
        """Decide on the instance whose attempt it is; nothing where it is no instance's."""
        match fact.message:
            case workload.WorkloadQueued(owner_uid=uid, project=project) as said if _ours(uid):
                decide = partial(aggregate.queue, attempt=said.attempt, reason=said.reason)
                return [_on_instance(uid, project, decide)]
            case workload.WorkloadRefused(owner_uid=uid, project=project) as said if _ours(uid):
                decide = partial(aggregate.refuse, attempt=said.attempt, reason=said.reason)
                return [_on_instance(uid, project, decide)]
            case _:
                return []


class ProjectReports:
    """Closes a project to new work when it is archived, and clears it away when it is deleted."""

    name = "instances/projects"
    source = "projects"
    handles = frozenset(
        {
            projects.ProjectArchived.DESCRIPTOR.full_name,
            projects.ProjectDeleted.DESCRIPTOR.full_name,
        }
    )

    def __init__(self, database: Database, queries: Queries) -> None:
        self._database = database
        self._queries = queries

    async def react(self, fact: Recorded) -> Sequence[Reaction]:
        """Decide on the project, or on each instance that is left in it."""
        match fact.message:
            case projects.ProjectArchived() as said:
                decide = partial(
                    aggregate.close, uid=said.uid, name=said.project, through=fact.position
                )
                return [_on_project(said.project, decide)]
            case projects.ProjectDeleted() as said:
                rows = await self._database.fetch(self._queries["find_project"], said.project)
                return [
                    _on_instance(row["uid"], said.project, aggregate.clear_away) for row in rows
                ]
            case _:
                return []


class OwnFacts:
    """
    Stops what lives in a closed project, and says when nothing lives there any more.

    It reads this service's own journal: whatever was created or started before the project was
    closed stands before ProjectClosed, and so in the rows by now; whatever would come after is refused.
    """

    name = "instances/instances"
    source = "instances"
    handles = frozenset(
        {
            api.ProjectClosed.DESCRIPTOR.full_name,
            api.InstanceStopped.DESCRIPTOR.full_name,
            api.InstanceFailed.DESCRIPTOR.full_name,
            api.InstanceDeleted.DESCRIPTOR.full_name,
        }
    )

    def __init__(self, database: Database, queries: Queries) -> None:
        self._database = database
        self._queries = queries

    async def react(self, fact: Recorded) -> Sequence[Reaction]:
        """Wind down at the close; after it, ask at each end whether it was the last."""
        if isinstance(fact.message, api.ProjectClosed):
            rows = await self._database.fetch(self._queries["find_project"], fact.project)
            living = [row["uid"] for row in rows if row["state"] in aggregate.LIVING]
            if living:
                return [_on_instance(uid, fact.project, aggregate.wind_down) for uid in living]
        lives = await self._database.fetchval(
            self._queries["any_lives"], fact.project, sorted(aggregate.LIVING)
        )
        # None: the project is not closed, or it is said already.
        return [_on_project(fact.project, aggregate.vacate)] if lives is False else []


def _ours(uid: str) -> bool:
    return uid.startswith(PREFIX)


def _on_instance(
    uid: str, project: str, decide: Callable[[aggregate.Situation], Sequence[aggregate.Fact]]
) -> Reaction:
    return Reaction((f"instance/{uid}", f"project/{project}"), aggregate.fold_situation, decide)


def _on_project(
    project: str, decide: Callable[[aggregate.Project], Sequence[aggregate.Fact]]
) -> Reaction:
    return Reaction((f"project/{project}",), aggregate.fold_project, decide)
