"""What others say to the scheduler: what shall run, how much may, what became of it, what it costs."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC
from functools import partial
from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp

from chassis.envelope import Recorded
from chassis.journal import Write
from chassis.readers import Reaction
from fermion.api.billing import v1 as billing
from fermion.api.projects import v1 as projects
from fermion.api.workload import v1 as workload
from services.scheduler import aggregate, books

# What one cluster said.
FORGET: Final = (
    *("forget_cluster", "forget_nodes", "forget_bound"),
    *("forget_progress", "forget_stored"),
)


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


class CostLimits:
    """Takes down what has cost what it may, as billing finds."""

    name = "scheduler/billing"
    source = "billing"
    handles = frozenset({billing.CostLimitReached.DESCRIPTOR.full_name})

    async def react(self, fact: Recorded) -> Sequence[Reaction]:
        """Decide on the workload that it is about."""
        match fact.message:
            case billing.CostLimitReached(uid=uid):
                return [Reaction((f"workload/{uid}",), aggregate.fold, aggregate.exhaust)]
            case _:
                return []


class Limits:
    """Folds projects, their quotas, and the clusters that are enrolled; `told` wakes who admits."""

    name = books.LIMITS
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

    def write(self, facts: Sequence[Recorded]) -> Sequence[Write]:
        """Choose the writes of each fact."""
        return [write for fact in facts for write in self._writes(fact)]

    def written(self) -> None:
        """Have the admitter look."""
        self._told.set()

    def _writes(self, fact: Recorded) -> Sequence[Write]:
        match fact.message:
            case projects.ProjectCreated() as said:
                return [Write("know_project", said.project, (said.project, said.uid))]
            case projects.QuotaSet() as said:
                limits = said.limits.SerializeToString(deterministic=True)
                return [Write("set_quota", said.scope, (said.scope, limits))]
            case projects.QuotaCleared() as said:
                return [Write("clear_quota", said.scope, (said.scope,))]
            case projects.ClusterEnrolled() as said:
                return [Write("enrol", said.cluster, (said.cluster, False))]
            case projects.ClusterRetired() as said:
                return [Write("enrol", said.cluster, (said.cluster, True))]
            case _:
                return []

    def clear(self, journal: str) -> Sequence[Write]:
        """Forget everything, before it is folded anew."""
        names = ("forget_projects", "forget_quotas", "forget_enrolled")
        return [Write(name, name, ()) for name in names]


class ClusterReports:
    """
    Folds what executors say of their clusters, and of what was admitted to them.

    A replica is free when its cluster says that it is gone. One that was given up with its node
    lives there perhaps, and counts until the node is gone, or is heard again.
    """

    name = books.REPORTS
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

    def write(self, facts: Sequence[Recorded]) -> Sequence[Write]:
        """Choose the writes of each fact."""
        return [write for fact in facts for write in self._writes(fact)]

    def written(self) -> None:
        """Have the admitter look."""
        self._told.set()

    def _writes(self, fact: Recorded) -> Sequence[Write]:
        cluster = fact.journal.partition("/")[2]
        match fact.message:
            case workload.ClusterRegistered(uid=uid, capabilities=can):
                return [Write("register", uid, (uid, can.SerializeToString(deterministic=True)))]
            case workload.NodeReported(node=node):
                body = node.SerializeToString(deterministic=True)
                return _node(fact, node.node, body)
            case workload.NodeRemoved(node=name):
                return _node(fact, name, None)
            case workload.ReplicaScheduled(uid=uid, subject=subject, node=name):
                bound = (uid, subject.workload, subject.role, cluster, name)
                return [
                    Write("bind_replica", f"replicas {cluster}", bound),
                    _progress(fact, subject.workload),
                ]
            case workload.ReplicaStarted(subject=subject, witness=witness):
                return [_progress(fact, subject.workload, began=witness.occurred_time)]
            case workload.ReplicaReleased(uid=uid) as said:
                unproven = said.witness.evidence == workload.EVIDENCE_CLASS_NODE_LEASE
                return [
                    Write("release_replica", f"replicas {cluster}", (uid, unproven)),
                    _progress(fact, said.workload),
                ]
            case workload.WorkloadFinished(uid=uid):
                return [
                    Write("forget_replicas", f"replicas {cluster}", (uid,)),
                    _progress(fact, uid, ended=True),
                ]
            case workload.VolumeBound(uid=uid, node=name):
                return [_store(fact, uid, name, bound=True)]
            case workload.VolumeRejected(uid=uid) | workload.VolumeDeleted(uid=uid):
                return [_store(fact, uid, gone=True)]
            case _:
                return []

    def clear(self, journal: str) -> Sequence[Write]:
        """Forget what one cluster said, before it is folded anew."""
        cluster = journal.partition("/")[2]
        return [Write(name, "clear", (cluster,)) for name in FORGET]


def _node(fact: Recorded, name: str, body: bytes | None) -> list[Write]:
    cluster = fact.journal.partition("/")[2]
    return [
        Write("report_node", f"{cluster} {name}", (cluster, name, body, fact.position)),
        # Writes to replicas of a cluster keep their order: a node that goes takes many along.
        Write("prove", f"replicas {cluster}", (cluster, name, fact.position)),
    ]


def _progress(
    fact: Recorded, uid: str, *, began: Timestamp | None = None, ended: bool = False
) -> Write:
    cluster = fact.journal.partition("/")[2]
    at = None if began is None else began.ToDatetime(tzinfo=UTC)
    return Write("note_progress", f"progress {uid}", (uid, cluster, at, ended, fact.position))


def _store(
    fact: Recorded, uid: str, node: str = "", *, bound: bool = False, gone: bool = False
) -> Write:
    cluster = fact.journal.partition("/")[2]
    return Write("store", uid, (uid, cluster, node, bound, gone, fact.position))
