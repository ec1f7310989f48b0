"""What waits for admission."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from fermion.api.scheduler import v1 as api
from fermion.api.scheduler.v1 import service_pb2_grpc as stubs

if TYPE_CHECKING:
    from fermion.client import Line

PAGE_SIZE = 1000


class Queue:
    """What waits, and why."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self._stub = stubs.QueueServiceStub(line.channel)

    def list(self, project: str) -> Iterator[api.QueuedWorkload]:
        """Every workload of a project that waits, longest first."""
        request = api.ListQueuedWorkloadsRequest(parent=f"projects/{project}", page_size=PAGE_SIZE)
        while True:
            page = self._line.ask(self._stub.ListQueuedWorkloads, request)
            yield from page.workloads
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token
