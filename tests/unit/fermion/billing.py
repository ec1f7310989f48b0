"""The billing of the platform of a few lines: what it has cost and what is in force, as it was told."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import grpc
from google.protobuf.message import Message

from fermion.api.billing import v1 as api
from fermion.api.billing.v1 import service_pb2_grpc as billing_grpc

Take = Callable[[str, Message, grpc.ServicerContext], None]


@dataclass
class Billed:
    """What was used, what it has cost, and what prices there are."""

    usage: api.GetUsageResponse = field(default_factory=api.GetUsageResponse)
    cost: api.GetCostResponse = field(default_factory=api.GetCostResponse)
    # Streams of WatchCost, in order; one that is followed by another one breaks.
    watches: deque[list[api.WatchCostResponse]] = field(default_factory=deque)
    statement: api.Statement = field(default_factory=api.Statement)
    explanation: api.ExplainChargeResponse = field(default_factory=api.ExplainChargeResponse)
    estimate: api.EstimateCostResponse = field(default_factory=api.EstimateCostResponse)
    # Newest first.
    books: list[api.PriceBook] = field(default_factory=list)
    in_force: int = 0


class Costs(billing_grpc.CostServiceServicer):
    """Answers what it was told."""

    def __init__(self, take: Take, billed: Billed) -> None:
        self._take = take
        self._billed = billed

    def GetUsage(
        self, request: api.GetUsageRequest, context: grpc.ServicerContext
    ) -> api.GetUsageResponse:
        self._take("GetUsage", request, context)
        return self._billed.usage

    def GetCost(
        self, request: api.GetCostRequest, context: grpc.ServicerContext
    ) -> api.GetCostResponse:
        self._take("GetCost", request, context)
        return self._billed.cost

    def WatchCost(
        self, request: api.WatchCostRequest, context: grpc.ServicerContext
    ) -> Iterator[api.WatchCostResponse]:
        self._take("WatchCost", request, context)
        yield from self._billed.watches.popleft()
        if self._billed.watches:
            context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")

    def GetStatement(
        self, request: api.GetStatementRequest, context: grpc.ServicerContext
    ) -> api.GetStatementResponse:
        self._take("GetStatement", request, context)
        return api.GetStatementResponse(statement=self._billed.statement)

    def ExplainCharge(
        self, request: api.ExplainChargeRequest, context: grpc.ServicerContext
    ) -> api.ExplainChargeResponse:
        self._take("ExplainCharge", request, context)
        return self._billed.explanation

    def EstimateCost(
        self, request: api.EstimateCostRequest, context: grpc.ServicerContext
    ) -> api.EstimateCostResponse:
        self._take("EstimateCost", request, context)
        return self._billed.estimate


class Prices(billing_grpc.PriceServiceServicer):
    """Price books as they were published."""

    def __init__(self, take: Take, billed: Billed) -> None:
        self._take = take
        self._billed = billed

    def ListPriceBooks(
        self, request: api.ListPriceBooksRequest, context: grpc.ServicerContext
    ) -> api.ListPriceBooksResponse:
        self._take("ListPriceBooks", request, context)
        place = int(request.page_token or 0)
        books = self._billed.books
        # One a page, so that a list has more than one.
        return api.ListPriceBooksResponse(
            price_books=books[place : place + 1],
            next_page_token=str(place + 1) if place + 1 < len(books) else "",
            in_force=self._billed.in_force,
        )

    def PublishPriceBook(
        self, request: api.PublishPriceBookRequest, context: grpc.ServicerContext
    ) -> api.PublishPriceBookResponse:
        self._take("PublishPriceBook", request, context)
        made = api.PriceBook()
        made.CopyFrom(request.price_book)
        made.number = len(self._billed.books) + 1
        if not request.validate_only:
            self._billed.books.insert(0, made)
        return api.PublishPriceBookResponse(price_book=made)
