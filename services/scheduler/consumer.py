"""What others say to the scheduler: modules what shall run, projects how much, executors what became."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC
from functools import partial

from google.protobuf.timestamp_pb2 import Timestamp

from chassis.envelope import Recorded
from chassis.journal import Write
from chassis.readers import Reaction
from fermion.api.projects import v1 as projects
from fermion.api.workload import v1 as workload
from services.scheduler import aggregate


class Declarations:
    """Reads one module's journal; the modules are named by the settings, and all read alike."""

    handles = frozenset(
        {
            workload.WorkloadDeclared.DESCRIPTOR.full_name,
            workload.WorkloadScaled.DESCRIPTOR.full_name,
            workload.WorkloadRelabelled.DESCRIPTOR.full_name,
            workload.WorkloadWithdrawn.DESCRIPTOR.full_name,
            workload.VolumeDeclared.DESCRIPTOR.full_name,
            workload.VolumeWithdrawn.DESCRIPTOR.full_name,
        }
    )

    def __init__(self, module: str) -> None:
        self.name = f"scheduler/{module}"
        self.source = module

    async def react(self, fact: Recorded) -> Sequence[Reaction]:
        """Decide on the workload's place in the queue, or on the volume's."""
        match fact.message:
            case workload.WorkloadDeclared(workload=declared):
                enqueue = partial(aggregate.enqueue, declared=declared)
                return [Reaction((f"workload/{declared.uid}",), aggregate.fold, enqueue)]
            case workload.WorkloadScaled() as said:
                scale = partial(aggregate.scale, role=said.role, replicas=said.replicas)
                return [Reaction((f"workload/{said.uid}",), aggregate.fold, scale)]
            case workload.WorkloadRelabelled() as said:
                relabel = partial(aggregate.relabel, labels=dict(said.labels))
                return [Reaction((f"workload/{said.uid}",), aggregate.fold, relabel)]
            case workload.WorkloadWithdrawn() as said:
                grace = said.grace if said.HasField("grace") else None
                withdraw = partial(aggregate.withdraw, cause=said.cause, grace=grace)
                return [Reaction((f"workload/{said.uid}",), aggregate.fold, withdraw)]
            case workload.VolumeDeclared(volume=volume):
                queue = partial(aggregate.enqueue_volume, declared=volume)
                return [Reaction((f"volume/{volume.uid}",), aggregate.fold_volume, queue)]
            case workload.VolumeWithdrawn() as said:
                delete = partial(aggregate.withdraw_volume, cause=said.cause)
                return [Reaction((f"volume/{said.uid}",), aggregate.fold_volume, delete)]
            case _:
                return []


class Limits:
    """Folds projects, their quotas and the clusters that are enrolled."""

    name = "scheduler/projects"
    source = "projects"
    handles = frozenset(
        {
            projects.ProjectCreated.DESCRIPTOR.full_name,
            projects.QuotaSet.DESCRIPTOR.full_name,
            projects.QuotaCleared.DESCRIPTOR.full_name,
            projects.ClusterEnrolled.DESCRIPTOR.full_name,
            projects.ClusterRetired.DESCRIPTOR.full_name,
        }
    )

    def __init__(self, told: asyncio.Event) -> None:
        self._told = told

    def write(self, fact: Recorded) -> Sequence[Write]:
        """Choose the write of one fact."""
        self._told.set()
        at = fact.position
        match fact.message:
            case projects.ProjectCreated() as said:
                return [Write("know_project", said.project, (said.project, said.uid, at))]
            case projects.QuotaSet() as said:
                limits = said.limits.SerializeToString(deterministic=True)
                return [Write("set_quota", said.scope, (said.scope, limits, at))]
            case projects.QuotaCleared() as said:
                return [Write("set_quota", said.scope, (said.scope, None, at))]
            case projects.ClusterEnrolled() as said:
                return [Write("enrol", said.cluster, (said.cluster, False, at))]
            case projects.ClusterRetired() as said:
                return [Write("enrol", said.cluster, (said.cluster, True, at))]
            case _:
                return []

    def clear(self) -> Sequence[Write]:
        """Forget everything, before it is folded anew."""
        names = ("forget_projects", "forget_quotas", "forget_enrolled")
        return [Write(name, name, ()) for name in names]


class ClusterReports:
    """Folds what an executor says of its cluster, and of what was admitted to it."""

    name = "scheduler/executor"
    source = "executor"
    handles = frozenset(
        {
            workload.ClusterRegistered.DESCRIPTOR.full_name,
            workload.NodeReported.DESCRIPTOR.full_name,
            workload.NodeRemoved.DESCRIPTOR.full_name,
            workload.ReplicaScheduled.DESCRIPTOR.full_name,
            workload.ReplicaStarted.DESCRIPTOR.full_name,
            workload.ReplicaReleased.DESCRIPTOR.full_name,
            workload.WorkloadFinished.DESCRIPTOR.full_name,
            workload.VolumeBound.DESCRIPTOR.full_name,
            workload.VolumeRejected.DESCRIPTOR.full_name,
            workload.VolumeDeleted.DESCRIPTOR.full_name,
        }
    )

    def __init__(self, told: asyncio.Event) -> None:
        self._told = told

    def write(self, fact: Recorded) -> Sequence[Write]:
        """Choose the writes of one fact."""
        self._told.set()
        match fact.message:
            case workload.ClusterRegistered() as said:
                can = said.capabilities.SerializeToString(deterministic=True)
                return [Write("register", said.uid, (said.uid, can, fact.position))]
            case workload.NodeReported(cluster=cluster, node=node):
                body = node.SerializeToString(deterministic=True)
                return [_node(cluster, node.node, body, fact.position)]
            case workload.NodeRemoved() as said:
                return [_node(said.cluster, said.node, None, fact.position)]
            case workload.ReplicaScheduled(uid=uid, subject=subject) as said:
                return [
                    Write("bind_replica", uid, (uid, subject.workload, subject.role, said.node)),
                    _progress(fact, subject.workload),
                ]
            case workload.ReplicaStarted(subject=subject) as said:
                return [_progress(fact, subject.workload, began=said.witness.occurred_time)]
            case workload.ReplicaReleased() as said:
                return [
                    Write("release_replica", said.uid, (said.uid,)),
                    _progress(fact, said.workload),
                ]
            case workload.WorkloadFinished() as said:
                return [_progress(fact, said.uid, ended=True)]
            case workload.VolumeBound() as said:
                return [_store(fact, said.uid, said.node, bound=True)]
            case workload.VolumeRejected() | workload.VolumeDeleted() as said:
                return [_store(fact, said.uid, gone=True)]
            case _:
                return []

    def clear(self) -> Sequence[Write]:
        """
        Nothing: another lineage says the same of what is, and what it does not say ends as lost.

        These tables are of several journals, and one of them alone is folded anew.
        """
        return []


def _node(cluster: str, node: str, body: bytes | None, position: int) -> Write:
    return Write("report", f"{cluster} {node}", (cluster, node, body, position))


def _progress(
    fact: Recorded, uid: str, *, began: Timestamp | None = None, ended: bool = False
) -> Write:
    at = None if began is None else began.ToDatetime(tzinfo=UTC)
    return Write("progress", f"progress {uid}", (uid, at, ended, fact.journal, fact.position))


def _store(
    fact: Recorded, uid: str, node: str = "", *, bound: bool = False, gone: bool = False
) -> Write:
    return Write("store", uid, (uid, node, bound, gone, fact.journal, fact.position))
