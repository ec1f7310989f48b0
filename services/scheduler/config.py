"""What an operator may set about the scheduler."""

from __future__ import annotations

from dataclasses import dataclass

from chassis.config import setting


@dataclass(frozen=True, slots=True)
class Settings:
    """Whose work is scheduled."""

    reads: tuple[str, ...] = setting(
        "FERMION_SCHEDULER_READS", ("instances",), "Services whose declared workloads are admitted."
    )
