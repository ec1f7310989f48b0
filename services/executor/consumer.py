"""What the scheduler says about this cluster, folded into what is wanted of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence

from chassis.envelope import Recorded
from chassis.journal import Write
from fermion.api.workload import v1 as api


class Wants:
    """
    Folds the scheduler's journal into the tables that the reconciler compares with its cluster.

    `told` is set whenever there may be something new; the rows are there a moment later.
    """

    name = "executor/scheduler"
    source = "scheduler"
    handles = frozenset(
        {
            api.WorkloadAdmitted.DESCRIPTOR.full_name,
            api.WorkloadRevoked.DESCRIPTOR.full_name,
            api.WorkloadPreempted.DESCRIPTOR.full_name,
            api.HoldReleased.DESCRIPTOR.full_name,
            api.VolumeAdmitted.DESCRIPTOR.full_name,
            api.VolumeRevoked.DESCRIPTOR.full_name,
        }
    )

    def __init__(self, cluster: str) -> None:
        self.told = asyncio.Event()
        self._cluster = cluster

    def write(self, facts: Sequence[Recorded]) -> Sequence[Write]:
        """Choose a write a fact; what is said of other clusters is none of ours."""
        return [write for fact in facts for write in self._writes(fact)]

    def written(self) -> None:
        """Have the reconciler look."""
        self.told.set()

    def _writes(self, fact: Recorded) -> Sequence[Write]:
        match fact.message:
            case api.WorkloadAdmitted(workload=work) as said if said.cluster == self._cluster:
                replicas = json.dumps(dict(said.replicas), sort_keys=True)
                body = work.SerializeToString(deterministic=True)
                return [Write("want", work.uid, (work.uid, body, replicas, fact.position))]
            case api.WorkloadRevoked() as said:
                return [_revoke(said.uid, said.cause, said.grace.ToMilliseconds(), fact.position)]
            case api.WorkloadPreempted() as said:
                grace = said.grace.ToMilliseconds()
                return [_revoke(said.uid, api.CAUSE_PREEMPTION, grace, fact.position)]
            case api.HoldReleased() as said:
                return [Write("unwant", said.uid, (said.uid,))]
            case api.VolumeAdmitted(volume=volume) as said if said.cluster == self._cluster:
                body = volume.SerializeToString(deterministic=True)
                return [Write("want_volume", volume.uid, (volume.uid, body, fact.position))]
            case api.VolumeRevoked() as said:
                return [Write("revoke_volume", said.uid, (said.uid, fact.position))]
            case _:
                return []

    def clear(self, journal: str) -> Sequence[Write]:
        """Forget everything, before it is folded anew."""
        return [Write("unwant_workloads", "workloads", ()), Write("unwant_volumes", "volumes", ())]


def _revoke(uid: str, cause: int, grace_ms: int, position: int) -> Write:
    return Write("revoke", uid, (uid, cause, grace_ms, position))
