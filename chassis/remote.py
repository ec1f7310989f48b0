"""Old facts of other services: their ReadLog call, and one's own journal read the same way."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import grpc.aio

from chassis.envelope import Registry, from_record
from chassis.journal import Journal, Page
from chassis.refusals import Unavailable
from fermion.api.journal import v1 as api
from fermion.api.journal.v1 import service_pb2_grpc

READ_SECONDS_MAX = 10.0


class LocalLog:
    """One's own journal."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    async def read(self, after: int, limit: int) -> Page:
        """Read facts after a position."""
        return await self._journal.read(after, limit)

    async def grown(self, past: int, seconds: float) -> None:
        """Return when there is more than up to a position, or after so many seconds."""
        await self._journal.grown(past, seconds)


class RemoteLog:
    """Another service's journal, read with a SERVICE token."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        journal: str,
        token: Callable[[], str],
        registry: Registry,
    ) -> None:
        self._stub = service_pb2_grpc.JournalServiceStub(channel)
        self._journal = journal
        self._token = token
        self._registry = registry

    async def read(self, after: int, limit: int) -> Page:
        """Read facts after a position; `Unavailable` (LOG_UNAVAILABLE) where the owner is away."""
        request = api.ReadLogRequest(journal=self._journal, after=after, limit=limit)
        metadata = (("authorization", f"Bearer {self._token()}"),)
        records: list[api.Record] = []
        head = epoch = 0
        first = 1
        try:
            async for page in self._stub.ReadLog(
                request, metadata=metadata, timeout=READ_SECONDS_MAX
            ):
                records.extend(page.records)
                head, epoch = page.head, page.epoch
                first = page.epoch_first_position or 1
        except grpc.aio.AioRpcError as error:
            raise Unavailable(
                "LOG_UNAVAILABLE",
                f"The owner of {self._journal} does not answer ReadLog: "
                f"{error.code().name} {error.details()}",
                journal=self._journal,
            ) from error
        return Page(
            tuple(from_record(record, self._registry) for record in records), head, epoch, first
        )

    async def grown(self, past: int, seconds: float) -> None:
        """Return after so many seconds: the owner tells of growth by JetStream only."""
        del past
        await asyncio.sleep(seconds)
