"""Tells the chassis what the instances service is made of."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from chassis.command import transact
from chassis.envelope import Meta
from chassis.journal import Book
from chassis.service import Kernel, Loop, Mount, Target, Wired
from fermion.api.instances.v1 import events_pb2, service_pb2_grpc
from fermion.api.projects.v1 import events_pb2 as projects
from fermion.api.workload.v1 import events_pb2 as workload
from services.instances import aggregate, projection
from services.instances import template as templates
from services.instances.config import Settings
from services.instances.consumer import (
    ExecutorReports,
    OwnFacts,
    ProjectReports,
    SchedulerReports,
)
from services.instances.servicer import InstanceServicer
from services.instances.spec import PREFIX


def wire(kernel: Kernel[Settings]) -> Wired:
    """Put the rooms together."""
    servicer = InstanceServicer(
        kernel.journal,
        kernel.database,
        kernel.queries,
        kernel.clock,
        kernel.settings,
        kernel.peer("billing"),
        kernel.peer("scheduler"),
    )

    async def begin() -> None:
        for template in templates.first(kernel.settings):
            await transact(
                kernel.journal,
                f"template/{template.name.removeprefix(PREFIX)}",
                templates.fold,
                partial(templates.offer, template=template),
                meta=Meta(actor=f"service:{aggregate.SERVICE}"),
            )

    return Wired(
        servicers=(
            Mount(
                "fermion.api.instances.v1.InstanceService",
                service_pb2_grpc.add_InstanceServiceServicer_to_server,
                servicer,
            ),
        ),
        consumers=(
            SchedulerReports(),
            ExecutorReports(kernel.database, kernel.queries),
            ProjectReports(kernel.database, kernel.queries),
            OwnFacts(kernel.database, kernel.queries),
        ),
        begin=begin,
        loops=(Loop("watching", servicer.watching.run),),
    )


TARGET = Target(
    name=aggregate.SERVICE,
    folder=Path(__file__).parent,
    events=(events_pb2.DESCRIPTOR, workload.DESCRIPTOR, projects.DESCRIPTOR),
    reads=("projects", "scheduler", "executor"),
    settings=Settings,
    book=Book(aggregate.place, projection.project),
    wire=wire,
)
