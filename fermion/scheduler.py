"""What waits for admission."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from fermion.api.scheduler import v1 as api
from fermion.api.scheduler.v1 import service_pb2_grpc as stubs

if TYPE_CHECKING:
    from fermion.client import Client

SERVICE = "scheduler"


class Queue:
    """What waits, and why."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def list(self, project: str) -> Iterator[api.QueuedWorkload]:
        """Every workload of a project that waits, longest first."""
        request = api.ListQueuedWorkloadsRequest(parent=f"projects/{project}")
        while True:
            page = self._client.call(
                SERVICE,
                stubs.QueueServiceStub,
                "ListQueuedWorkloads",
                request,
                api.ListQueuedWorkloadsResponse,
            )
            yield from page.workloads
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token
