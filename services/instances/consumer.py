"""What instances do because of what others said: scheduler, executors, projects, and this service."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, TypeAlias, assert_never

from chassis.envelope import Recorded
from chassis.postgres import Database
from chassis.queries import Queries
from chassis.readers import Reaction
from fermion.api.instances import v1 as api
from fermion.api.projects import v1 as projects
from fermion.api.workload import v1 as workload
from services.instances import aggregate

# Uids of instances; the journals of scheduler and executors are about everybody's workloads.
PREFIX: Final = "inst_"

Decide: TypeAlias = Callable[[aggregate.Situation], Sequence[aggregate.Fact]]

# What an executor says of one replica, but for its start: the workload is all that it names.
ReplicaReport: TypeAlias = (
    workload.ReplicaPending
    | workload.ReplicaReady
    | workload.ReplicaUnready
    | workload.ReplicaEnded
    | workload.ReplicaDraining
)


class SchedulerReports:
    """Follows what becomes of the attempts and volumes that this service declared."""

    name = "instances/scheduler"
    source = "scheduler"
    handles = frozenset(
        {
            workload.WorkloadQueued.DESCRIPTOR.full_name,
            workload.WorkloadAdmitted.DESCRIPTOR.full_name,
            workload.WorkloadRefused.DESCRIPTOR.full_name,
            workload.VolumeRefused.DESCRIPTOR.full_name,
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
            case workload.WorkloadAdmitted() as said if _ours(said.workload.owner_uid):
                uid, project = said.workload.owner_uid, said.workload.project
                attempt = said.workload.attempt
                decide = partial(aggregate.admit, attempt=attempt, cluster=said.cluster)
                return [_on_instance(uid, project, decide)]
            case workload.VolumeRefused(owner_uid=uid, project=project) as said if _ours(uid):
                decide = partial(aggregate.lose_volume, volume_uid=said.uid, reason=said.reason)
                return [_on_instance(uid, project, decide)]
            case _:
                return []


class ExecutorReports:
    """
    Follows what clusters made of the attempts and volumes: one reader of each executor's journal.

    Most of what is said of a replica names its workload alone. The rows tell whose present attempt
    that is: it was declared, with its row, before any executor could hear of it. A workload that is
    nobody's present attempt is another module's, or late.
    """

    name = "instances/executor"
    source = "executor"
    handles = frozenset(
        {
            workload.WorkloadRejected.DESCRIPTOR.full_name,
            workload.WorkloadFinished.DESCRIPTOR.full_name,
            workload.ReplicaPending.DESCRIPTOR.full_name,
            workload.ReplicaStarted.DESCRIPTOR.full_name,
            workload.ReplicaReady.DESCRIPTOR.full_name,
            workload.ReplicaUnready.DESCRIPTOR.full_name,
            workload.ReplicaEnded.DESCRIPTOR.full_name,
            workload.ReplicaDraining.DESCRIPTOR.full_name,
            workload.VolumeRejected.DESCRIPTOR.full_name,
            workload.VolumeDeleted.DESCRIPTOR.full_name,
        }
    )

    def __init__(self, database: Database, queries: Queries) -> None:
        self._database = database
        self._queries = queries

    async def react(self, fact: Recorded) -> Sequence[Reaction]:
        """Decide on the instance whose attempt or volume it is; nothing where it is no instance's."""
        match fact.message:
            case workload.ReplicaStarted() as said if _ours(said.subject.owner_uid):
                begin = partial(
                    aggregate.begin,
                    workload_uid=said.subject.workload,
                    replica=said.uid,
                    run=said.run,
                    addresses=dict(said.addresses),
                )
                return [_on_instance(said.subject.owner_uid, said.subject.project, begin)]
            case workload.WorkloadFinished(owner_uid=uid, project=project) as said if _ours(uid):
                finish = partial(
                    aggregate.finish,
                    attempt=said.attempt,
                    outcome=said.outcome,
                    cause=said.cause,
                )
                return [_on_instance(uid, project, finish)]
            case workload.VolumeRejected(owner_uid=uid, project=project) as said if _ours(uid):
                lose = partial(aggregate.lose_volume, volume_uid=said.uid, reason=said.reason)
                return [_on_instance(uid, project, lose)]
            case workload.VolumeDeleted(owner_uid=uid, project=project) as said if _ours(uid):
                lose = partial(aggregate.lose_volume, volume_uid=said.uid)
                return [_on_instance(uid, project, lose)]
            case workload.WorkloadRejected() as said:
                reject = partial(
                    aggregate.reject,
                    workload_uid=said.uid,
                    field=said.field,
                    reason=said.reason,
                )
                return await self._on_present(said.uid, reject)
            case (
                workload.ReplicaPending()
                | workload.ReplicaReady()
                | workload.ReplicaUnready()
                | workload.ReplicaEnded()
                | workload.ReplicaDraining()
            ) as said:
                return await self._on_present(said.workload, _replica(said))
            case _:
                return []

    async def _on_present(self, workload_uid: str, decide: Decide) -> Sequence[Reaction]:
        row = await self._database.fetchrow(self._queries["find_workload"], workload_uid)
        return [] if row is None else [_on_instance(row["uid"], row["project"], decide)]


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


def _replica(said: ReplicaReport) -> Decide:
    """Choose the decision on what an executor says of a replica."""
    about, replica = said.workload, said.uid
    match said:
        case workload.ReplicaPending():
            return partial(
                aggregate.prepare,
                workload_uid=about,
                replica=replica,
                n=said.n,
                reason=said.reason,
            )
        case workload.ReplicaReady():
            return partial(aggregate.serve, workload_uid=about, replica=replica, n=said.n)
        case workload.ReplicaUnready():
            return partial(
                aggregate.falter,
                workload_uid=about,
                replica=replica,
                n=said.n,
                reason=said.reason,
            )
        case workload.ReplicaEnded():
            return partial(
                aggregate.end,
                workload_uid=about,
                replica=replica,
                run=said.run,
                exit_code=said.exit,
                signal=said.signal,
                reason=said.reason if said.HasField("reason") else None,
            )
        case workload.ReplicaDraining():
            return partial(aggregate.drain, workload_uid=about, replica=replica, cause=said.cause)
        case _:
            assert_never(said)


def _on_instance(uid: str, project: str, decide: Decide) -> Reaction:
    return Reaction((f"instance/{uid}", f"project/{project}"), aggregate.fold_situation, decide)


def _on_project(
    project: str, decide: Callable[[aggregate.Project], Sequence[aggregate.Fact]]
) -> Reaction:
    return Reaction((f"project/{project}",), aggregate.fold_project, decide)
