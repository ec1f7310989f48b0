"""What things cost, what they have cost, and why."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from google.protobuf.timestamp_pb2 import Timestamp

from fermion.api.billing import v1 as api
from fermion.api.billing.v1 import service_pb2_grpc as stubs
from fermion.api.workload import v1 as workload

if TYPE_CHECKING:
    from fermion.aio.client import AsyncLine

PAGE_SIZE = 1000


class Costs:
    """
    What time was used, what it has cost, and the facts behind each amount.

    A project is the last part of its name; `-` is all of them, which takes an admin of the platform.
    Without a start it is this month, as UTC has it, and without an end until now.
    """

    def __init__(self, line: AsyncLine) -> None:
        self._line = line
        self._stub = stubs.CostServiceStub(line.channel)

    async def usage(
        self,
        project: str,
        by: Sequence[api.GroupBy.ValueType] = (),
        *,
        label: str = "",
        start: datetime | None = None,
        end: datetime | None = None,
    ) -> api.GetUsageResponse:
        """Time that was used, by state and by what is asked for; `label` is that of GROUP_BY_LABEL."""
        request = api.GetUsageRequest(
            parent=f"projects/{project}",
            group_by=by,
            label=label,
            start_time=_stamp(start),
            end_time=_stamp(end),
        )
        return await self._line.ask(self._stub.GetUsage, request)

    async def get(
        self,
        project: str,
        by: Sequence[api.GroupBy.ValueType] = (),
        *,
        label: str = "",
        owner: str = "",
        start: datetime | None = None,
        end: datetime | None = None,
    ) -> api.GetCostResponse:
        """What it has cost, settled and accruing apart, and costs by the hour; of one owner alone."""
        request = api.GetCostRequest(
            parent=f"projects/{project}",
            group_by=by,
            label=label,
            owner=owner,
            start_time=_stamp(start),
            end_time=_stamp(end),
        )
        return await self._line.ask(self._stub.GetCost, request)

    def watch(
        self, project: str, start: datetime | None = None
    ) -> AsyncIterator[api.WatchCostResponse]:
        """
        Follow what a project costs, also over restarts of the platform.

        Each answer is all of it as of its `compute_time`, so that one that is missed is not missed.
        """
        request = api.WatchCostRequest(parent=f"projects/{project}", start_time=_stamp(start))
        return self._line.follow(self._stub.WatchCost, request, _go_on)

    async def statement(
        self,
        project: str,
        *,
        start: datetime | None = None,
        end: datetime | None = None,
        cut: api.Cut | None = None,
    ) -> api.Statement:
        """
        The bill of a period: of a month, unless an end is said.

        With the cut of an earlier statement it is that one again, to the byte.
        """
        request = api.GetStatementRequest(
            parent=f"projects/{project}", start_time=_stamp(start), end_time=_stamp(end), cut=cut
        )
        return (await self._line.ask(self._stub.GetStatement, request)).statement

    async def explain(
        self,
        owner: str,
        *,
        line: str = "",
        start: datetime | None = None,
        end: datetime | None = None,
        cut: api.Cut | None = None,
    ) -> api.ExplainChargeResponse:
        """
        What the lines of an owner are made of, down to the facts, and what of its time is free.

        `owner` is e.g. `projects/acme/instances/lab`; `line` is the id of one line alone.
        """
        request = api.ExplainChargeRequest(
            owner=owner, line=line, start_time=_stamp(start), end_time=_stamp(end), cut=cut
        )
        return await self._line.ask(self._stub.ExplainCharge, request)

    async def estimate(
        self, project: str, workload: workload.Workload, storage_bytes: int = 0
    ) -> api.EstimateCostResponse:
        """What a workload would cost that nobody has declared, and volumes beside it."""
        request = api.EstimateCostRequest(
            parent=f"projects/{project}", workload=workload, storage_bytes=storage_bytes
        )
        return await self._line.ask(self._stub.EstimateCost, request)


class Prices:
    """Price books: prices and what costs money, from a moment on."""

    def __init__(self, line: AsyncLine) -> None:
        self._line = line
        self._stub = stubs.PriceServiceStub(line.channel)

    async def list(self) -> api.ListPriceBooksResponse:
        """Every price book, newest first, and the number of the one in force."""
        request = api.ListPriceBooksRequest(page_size=PAGE_SIZE)
        found = await self._line.ask(self._stub.ListPriceBooks, request)
        while found.next_page_token:
            request.page_token = found.next_page_token
            page = await self._line.ask(self._stub.ListPriceBooks, request)
            found.price_books.extend(page.price_books)
            found.next_page_token = page.next_page_token
        return found

    async def publish(self, book: api.PriceBook, *, validate_only: bool = False) -> api.PriceBook:
        """Publish prices; what runs when they come into force is cut at that instant."""
        request = api.PublishPriceBookRequest(price_book=book, validate_only=validate_only)
        return (await self._line.ask(self._stub.PublishPriceBook, request)).price_book


def _stamp(at: datetime | None) -> Timestamp | None:
    if at is None:
        return None
    found = Timestamp()
    found.FromDatetime(at)
    return found


def _go_on(request: api.WatchCostRequest, answer: api.WatchCostResponse) -> None:
    """There is nothing to go on from: the next answer says all."""
    del request, answer
