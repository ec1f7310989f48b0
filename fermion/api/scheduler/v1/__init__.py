"""Messages of `fermion.api.scheduler.v1`; generated, do not edit."""

from fermion.api.scheduler.v1.resources_pb2 import (
    QueuedWorkload,
)
from fermion.api.scheduler.v1.service_pb2 import (
    ListQueuedWorkloadsRequest,
    ListQueuedWorkloadsResponse,
)

__all__ = [
    "ListQueuedWorkloadsRequest",
    "ListQueuedWorkloadsResponse",
    "QueuedWorkload",
]
