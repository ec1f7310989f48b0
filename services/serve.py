"""The table of everything that a process of the platform can run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from chassis.service import Target
from services.billing.wiring import TARGET as BILLING
from services.executor.wiring import TARGET as EXECUTOR
from services.instances.wiring import TARGET as INSTANCES
from services.projects.wiring import TARGET as PROJECTS
from services.scheduler.wiring import TARGET as SCHEDULER

# In the order of their starts: who may do what is known first.
TARGETS: Final[Mapping[str, Target]] = {
    target.name: target for target in (PROJECTS, INSTANCES, SCHEDULER, EXECUTOR, BILLING)
}
