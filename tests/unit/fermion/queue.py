"""The queue of the platform of a few lines: what waits and what is held, as it was told."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import grpc
from google.protobuf.message import Message

from fermion.api.scheduler import v1 as api
from fermion.api.scheduler.v1 import service_pb2_grpc as scheduler_grpc

Take = Callable[[str, Message, grpc.ServicerContext], None]


@dataclass
class Waiting:
    """What waits, and what is held."""

    # By owner.
    explanations: dict[str, api.Explanation] = field(default_factory=dict)
    outlook: api.Explanation = field(default_factory=api.Explanation)
    # Streams of WatchQueue, in order; one that is followed by another one breaks.
    watches: deque[list[api.WatchQueueResponse]] = field(default_factory=deque)
    holdings: list[api.Holding] = field(default_factory=list)


class Queue(scheduler_grpc.QueueServiceServicer):
    """Answers what it was told."""

    def __init__(
        self, take: Take, missing: Callable[[grpc.ServicerContext], None], waiting: Waiting
    ) -> None:
        self._take = take
        self._missing = missing
        self._waiting = waiting

    def ListQueuedWorkloads(
        self, request: api.ListQueuedWorkloadsRequest, context: grpc.ServicerContext
    ) -> api.ListQueuedWorkloadsResponse:
        self._take("ListQueuedWorkloads", request, context)
        found = [one.workload for one in self._waiting.explanations.values()]
        return api.ListQueuedWorkloadsResponse(workloads=found)

    def ExplainWorkload(
        self, request: api.ExplainWorkloadRequest, context: grpc.ServicerContext
    ) -> api.ExplainWorkloadResponse:
        self._take("ExplainWorkload", request, context)
        found = self._waiting.explanations.get(request.owner)
        if found is None:
            self._missing(context)
        return api.ExplainWorkloadResponse(explanation=found)

    def OutlookWorkload(
        self, request: api.OutlookWorkloadRequest, context: grpc.ServicerContext
    ) -> api.OutlookWorkloadResponse:
        self._take("OutlookWorkload", request, context)
        return api.OutlookWorkloadResponse(explanation=self._waiting.outlook)

    def WatchQueue(
        self, request: api.WatchQueueRequest, context: grpc.ServicerContext
    ) -> Iterator[api.WatchQueueResponse]:
        self._take("WatchQueue", request, context)
        yield from self._waiting.watches.popleft()
        if self._waiting.watches:
            context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")

    def ListHoldings(
        self, request: api.ListHoldingsRequest, context: grpc.ServicerContext
    ) -> api.ListHoldingsResponse:
        self._take("ListHoldings", request, context)
        return api.ListHoldingsResponse(holdings=self._waiting.holdings)
