"""Messages of `fermion.api.scheduler.v1`; generated, do not edit."""

from fermion.api.scheduler.v1.resources_pb2 import (
    Explanation,
    Holding,
    QueuedWorkload,
    Reservation,
    Shortage,
)
from fermion.api.scheduler.v1.service_pb2 import (
    ExplainWorkloadRequest,
    ExplainWorkloadResponse,
    ListHoldingsRequest,
    ListHoldingsResponse,
    ListQueuedWorkloadsRequest,
    ListQueuedWorkloadsResponse,
    OutlookWorkloadRequest,
    OutlookWorkloadResponse,
    WatchQueueRequest,
    WatchQueueResponse,
)

__all__ = [
    "ExplainWorkloadRequest",
    "ExplainWorkloadResponse",
    "Explanation",
    "Holding",
    "ListHoldingsRequest",
    "ListHoldingsResponse",
    "ListQueuedWorkloadsRequest",
    "ListQueuedWorkloadsResponse",
    "OutlookWorkloadRequest",
    "OutlookWorkloadResponse",
    "QueuedWorkload",
    "Reservation",
    "Shortage",
    "WatchQueueRequest",
    "WatchQueueResponse",
]
