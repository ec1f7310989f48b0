"""Tells the chassis what the scheduler is made of."""

from __future__ import annotations

from pathlib import Path

from chassis.journal import Book
from chassis.service import Kernel, Mount, Target, Wired
from fermion.api.scheduler.v1 import service_pb2_grpc
from fermion.api.workload.v1 import events_pb2
from services.scheduler import aggregate, projection
from services.scheduler.config import Settings
from services.scheduler.consumer import Declarations
from services.scheduler.servicer import QueueServicer


def wire(kernel: Kernel[Settings]) -> Wired:
    """Put the rooms together."""
    servicer = QueueServicer(kernel.database, kernel.queries)
    return Wired(
        servicers=(
            Mount(
                "fermion.api.scheduler.v1.QueueService",
                service_pb2_grpc.add_QueueServiceServicer_to_server,
                servicer,
            ),
        ),
        consumers=tuple(Declarations(module) for module in kernel.settings.reads),
    )


TARGET = Target(
    name=aggregate.SERVICE,
    folder=Path(__file__).parent,
    events=(events_pb2.DESCRIPTOR,),
    reads=("instances",),
    settings=Settings,
    book=Book(aggregate.place, projection.project),
    wire=wire,
)
