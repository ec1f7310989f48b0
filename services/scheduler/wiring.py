"""Tells the chassis what the scheduler is made of."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path

from chassis.journal import Book
from chassis.service import Kernel, Loop, Mount, Target, Wired
from fermion.api.scheduler.v1 import service_pb2_grpc
from fermion.api.workload.v1 import events_pb2
from services.scheduler import aggregate, ledger, projection
from services.scheduler.admitter import Admitter
from services.scheduler.config import Settings
from services.scheduler.consumer import ClusterReports, CostLimits, Declarations, Limits
from services.scheduler.figures import FIGURES, QueueFigures
from services.scheduler.servicer import QueueServicer


def wire(kernel: Kernel[Settings]) -> Wired:
    """Put the rooms together."""
    told = asyncio.Event()
    admitter = Admitter(
        kernel.journal,
        kernel.database,
        kernel.queries,
        kernel.lease("admission"),
        kernel.clock,
        told,
    )
    servicer = QueueServicer(kernel.journal, kernel.database, kernel.queries, kernel.clock)
    figures = QueueFigures(kernel.database, kernel.queries, kernel.clock, lambda: admitter.capacity)
    return Wired(
        servicers=(
            Mount(
                "fermion.api.scheduler.v1.QueueService",
                service_pb2_grpc.add_QueueServiceServicer_to_server,
                servicer,
            ),
        ),
        consumers=(
            *(Declarations(module) for module in kernel.settings.reads),
            CostLimits(),
            Limits(told),
            ClusterReports(told),
        ),
        begin=partial(ledger.take_over, kernel.journal, kernel.database, kernel.queries),
        loops=(Loop("admission", admitter.run), Loop("watching", servicer.watching.run)),
        measure=figures.measure,
    )


TARGET = Target(
    name=aggregate.SERVICE,
    folder=Path(__file__).parent,
    events=(events_pb2.DESCRIPTOR,),
    reads=("projects", "instances", "executor", "billing"),
    settings=Settings,
    book=Book(aggregate.place, projection.project),
    wire=wire,
    figures=FIGURES,
)
