"""What waits for admission, why, for how long, and what is held."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING

from fermion.api.scheduler import v1 as api
from fermion.api.scheduler.v1 import service_pb2_grpc as stubs
from fermion.api.workload import v1 as workload

if TYPE_CHECKING:
    from fermion.aio.client import AsyncLine

PAGE_SIZE = 1000


class Queue:
    """What waits, why, and for how long; and what is held of what may be."""

    def __init__(self, line: AsyncLine) -> None:
        self._line = line
        self._stub = stubs.QueueServiceStub(line.channel)

    async def list(self, project: str) -> AsyncIterator[api.QueuedWorkload]:
        """Every workload of a project that waits, longest first."""
        request = api.ListQueuedWorkloadsRequest(parent=f"projects/{project}", page_size=PAGE_SIZE)
        while True:
            page = await self._line.ask(self._stub.ListQueuedWorkloads, request)
            for queued in page.workloads:
                yield queued
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def explain(self, owner: str) -> api.Explanation:
        """
        Why the newest attempt of an owner waits, its place, and when it starts at the latest.

        `owner` is e.g. `projects/acme/instances/lab`. Raises `NotFound` (NOT_QUEUED) where nothing
        of it waits.
        """
        request = api.ExplainWorkloadRequest(owner=owner)
        return (await self._line.ask(self._stub.ExplainWorkload, request)).explanation

    async def outlook(self, project: str, workload: workload.Workload) -> api.Explanation:
        """Where a workload would stand that nobody has declared; no reason where it would not wait."""
        request = api.OutlookWorkloadRequest(parent=f"projects/{project}", workload=workload)
        return (await self._line.ask(self._stub.OutlookWorkload, request)).explanation

    def watch(
        self, project: str, resume_token: str = "", send_initial: bool = True
    ) -> AsyncIterator[api.WatchQueueResponse]:
        """
        Follow changes, also over restarts of the platform; ends only by an error or by its caller.

        What has left the queue comes with its uid alone. Where the journal was restored meanwhile
        (RESUME_TOKEN_EXPIRED), begin anew.
        """
        request = api.WatchQueueRequest(
            parent=f"projects/{project}", resume_token=resume_token, send_initial=send_initial
        )
        return self._line.follow(self._stub.WatchQueue, request, _go_on)

    async def holdings(self, project: str) -> Sequence[api.Holding]:
        """What the project holds of what it may, then each user who holds something in it."""
        request = api.ListHoldingsRequest(parent=f"projects/{project}")
        return (await self._line.ask(self._stub.ListHoldings, request)).holdings


def _go_on(request: api.WatchQueueRequest, change: api.WatchQueueResponse) -> None:
    if change.resume_token:
        request.resume_token = change.resume_token
