"""What the scheduler does about the workloads that one module declares, relabels and withdraws."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from chassis.envelope import Recorded
from chassis.readers import Reaction
from fermion.api.workload import v1 as workload
from services.scheduler import aggregate


class Declarations:
    """Reads one module's journal; the modules are named by the settings, and all read alike."""

    handles = frozenset(
        {
            workload.WorkloadDeclared.DESCRIPTOR.full_name,
            workload.WorkloadRelabelled.DESCRIPTOR.full_name,
            workload.WorkloadWithdrawn.DESCRIPTOR.full_name,
        }
    )

    def __init__(self, module: str) -> None:
        self.name = f"scheduler/{module}"
        self.source = module

    async def react(self, fact: Recorded) -> Sequence[Reaction]:
        """Decide on the workload's place in the queue."""
        match fact.message:
            case workload.WorkloadDeclared(workload=declared):
                enqueue = partial(aggregate.enqueue, declared=declared)
                return [Reaction((f"workload/{declared.uid}",), aggregate.fold, enqueue)]
            case workload.WorkloadRelabelled() as said:
                relabel = partial(aggregate.relabel, labels=dict(said.labels))
                return [Reaction((f"workload/{said.uid}",), aggregate.fold, relabel)]
            case workload.WorkloadWithdrawn() as said:
                withdraw = partial(aggregate.withdraw, cause=said.cause)
                return [Reaction((f"workload/{said.uid}",), aggregate.fold, withdraw)]
            case _:
                return []
