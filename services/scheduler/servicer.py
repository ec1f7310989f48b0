"""Answers callers who ask what waits, and why."""

from __future__ import annotations

from datetime import datetime
from typing import Final

from chassis.listing import PageToken
from chassis.postgres import Database
from chassis.queries import Queries
from chassis.rpc import Context
from fermion.api.scheduler import v1 as api
from fermion.api.scheduler.v1 import service_pb2_grpc
from services.scheduler import projection

PAGE_SIZE: Final = 100


class QueueServicer(service_pb2_grpc.QueueServiceServicer):
    """Every RPC of `QueueService`; who may call has been checked before."""

    def __init__(self, database: Database, queries: Queries) -> None:
        self._database = database
        self._queries = queries

    async def ListQueuedWorkloads(
        self, request: api.ListQueuedWorkloadsRequest, context: Context
    ) -> api.ListQueuedWorkloadsResponse:
        """Read a page of a project's queue; each goes on behind the last row of the one before."""
        since: datetime | None = None
        behind = ""
        if request.page_token:
            since, behind = PageToken.decode_time(request.page_token, request.parent)
        size = request.page_size or PAGE_SIZE
        rows = await self._database.fetch(
            self._queries["list_queue"],
            request.parent.removeprefix("projects/"),
            since,
            behind,
            size + 1,
        )
        response = api.ListQueuedWorkloadsResponse(
            workloads=[projection.resource(row) for row in rows[:size]]
        )
        if len(rows) > size:
            last = rows[size - 1]
            response.next_page_token = PageToken.encode(
                last["queue_time"].isoformat(), last["workload_uid"], request.parent
            )
        return response
