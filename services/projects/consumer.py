"""What projects does because of what others said: services tell when they have left a project."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from chassis.envelope import Recorded
from chassis.readers import Reaction
from fermion.api.projects import v1 as api
from services.projects import aggregate


class Departures:
    """Reads one service's journal for the projects in which nothing of it lives any more."""

    handles = frozenset({api.ProjectVacated.DESCRIPTOR.full_name})

    def __init__(self, service: str) -> None:
        self.name = f"projects/{service}"
        self.source = service

    async def react(self, fact: Recorded) -> Sequence[Reaction]:
        """Decide on the project that was left."""
        match fact.message:
            case api.ProjectVacated() as said:
                decide = partial(aggregate.vacate, service=said.service)
                return [Reaction((f"project/{said.uid}",), aggregate.fold_project, decide)]
            case _:
                return []
