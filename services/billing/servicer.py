"""What prices and costs look like from outside: each call asks the accounts, and rates what they tell."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Final, TypeAlias, cast

from google.protobuf.timestamp_pb2 import Timestamp

from chassis.clock import milliseconds
from chassis.command import rehearse, transact
from chassis.listing import PageToken
from chassis.refusals import Invalid, Unavailable, Violation
from chassis.rpc import Context, answer_position, meta_of, request_of
from chassis.service import Kernel
from fermion.api.billing import v1 as api
from fermion.api.billing.v1 import service_pb2_grpc
from fermion.api.workload import v1 as workload
from services.billing import accounts, aggregate, metering, rating
from services.billing.accounts import Accounts, Look, Question
from services.billing.aggregate import Prices
from services.billing.book import Book
from services.billing.config import Settings
from services.billing.live import Live
from services.billing.metering import HOUR_MS, Segment, Sku

PAGE_SIZE: Final = 100
# A watch that has nothing new to tell tells how old it is all the same.
QUIET_SECONDS: Final = 5.0

# Keys, state, whether it is billed, and model.
Used: TypeAlias = tuple[tuple[str, ...], api.BillableState.ValueType, bool, str]


@dataclass(frozen=True, slots=True)
class Watched:
    """What is watched: a project or all of them, from a moment or from the month's beginning on."""

    project: str | None
    start_ms: int | None


class PriceServicer(service_pb2_grpc.PriceServiceServicer):
    """Every RPC of `PriceService`; who may call has been checked before."""

    def __init__(self, kernel: Kernel[Settings]) -> None:
        self._journal = kernel.journal
        self._database = kernel.database
        self._queries = kernel.queries
        self._clock = kernel.clock

    async def ListPriceBooks(
        self, request: api.ListPriceBooksRequest, context: Context
    ) -> api.ListPriceBooksResponse:
        """Read a page of price books."""
        before, size = 2**31 - 1, request.page_size or PAGE_SIZE
        if request.page_token:
            before = PageToken.decode_number(request.page_token, "prices")
        rows = await self._database.fetch(self._queries["list_price_books"], before, size + 1)
        books = [api.PriceBook.FromString(row["body"]) for row in rows]
        found = await self._database.fetchrow(
            self._queries["in_force"], milliseconds(self._clock.now())
        )
        response = api.ListPriceBooksResponse(
            price_books=books[:size], in_force=0 if found is None else found["number"]
        )
        if len(books) > size:
            response.next_page_token = PageToken.encode(str(books[size - 1].number), "", "prices")
        return response

    async def PublishPriceBook(
        self, request: api.PublishPriceBookRequest, context: Context
    ) -> api.PublishPriceBookResponse:
        """State prices from a moment on."""
        now = self._clock.now()
        decide = partial(aggregate.publish, wanted=request.price_book, now=now)
        version = request.price_book.version
        if request.validate_only:
            state = await rehearse(
                self._journal,
                aggregate.PRICES,
                aggregate.fold_prices,
                decide,
                place=aggregate.place,
                preview=lambda prices, facts: Prices(
                    (
                        *prices.books,
                        *(cast(api.PricesPublished, one).price_book for one in facts),
                    )
                ),
            )
            return api.PublishPriceBookResponse(price_book=_of_version(state, version))
        decided = await transact(
            self._journal,
            aggregate.PRICES,
            aggregate.fold_prices,
            decide,
            meta=meta_of(context, request),
            request=request_of(context, request),
        )
        answer_position(context, self._journal.name, decided.position)
        return api.PublishPriceBookResponse(price_book=_of_version(decided.state, version))


class CostServicer(service_pb2_grpc.CostServiceServicer):
    """Every RPC of `CostService`; who may call has been checked before."""

    def __init__(self, kernel: Kernel[Settings], books: Accounts) -> None:
        self._accounts = books
        self._clock = kernel.clock
        self._slack = round(2000 * kernel.settings.proof_seconds)
        self._live = Live(self._total, kernel.settings.look_seconds, kernel.clock)

    async def GetUsage(
        self, request: api.GetUsageRequest, context: Context
    ) -> api.GetUsageResponse:
        """Sum what was used, up to where each cluster has said everything."""
        _must_name_label(request.group_by, request.label)
        project = _project(request.parent)
        start, end = self._period(request.start_time, request.end_time)
        look = await self._accounts.look(project)
        rows = await self._accounts.usage(
            Question(start, end, project),
            look,
            look.settled,
            by=request.group_by,
            label=request.label,
        )
        sums: defaultdict[Used, list[int]] = defaultdict(lambda: [0] * 5)
        for row in rows:
            found = sums[tuple(row["keys"]), row["state"], row["billed"], row["gpu_type"]]
            for place, name in enumerate(
                ("ms", "gpu_milli_ms", "cpu_milli_ms", "memory_byte_ms", "storage_byte_ms")
            ):
                found[place] += int(row[name])
        response = api.GetUsageResponse()
        for (keys, state, billed, gpu_type), found in sorted(sums.items(), key=str):
            ms, gpu, cpu, memory, storage = found
            response.usages.append(
                api.Usage(
                    keys=_words(keys, request.group_by),
                    state=state,
                    gpu_type=gpu_type,
                    replica_milliseconds=ms,
                    gpu_milli_ms=str(gpu),
                    cpu_milli_ms=str(cpu),
                    memory_byte_ms=str(memory),
                    storage_byte_ms=str(storage),
                    billed=billed,
                )
            )
        _set(response.through_time, look.through_ms)
        return response

    async def GetCost(self, request: api.GetCostRequest, context: Context) -> api.GetCostResponse:
        """Sum what it cost: what is settled, and what is accruing behind that."""
        _must_name_label(request.group_by, request.label)
        project = _project(request.parent)
        start, end = self._period(request.start_time, request.end_time)
        if request.owner and not request.owner.startswith(f"{request.parent}/"):
            raise Invalid(
                "FIELD_INVALID",
                f"owner is {request.owner!r}, which is not in {request.parent}.",
                violations=(Violation("owner", f"must begin with {request.parent}/"),),
                next_step="Name an owner of this project, or none.",
                field="owner",
            )
        look = await self._accounts.look(project)
        asked = Question(start, end, project, request.owner or None)
        costs = await self._costs(asked, look, request.group_by, request.label)
        total = _costs_of({(): _merged(costs.values())})[()]
        response = api.GetCostResponse(
            total=total,
            currency=look.in_force(milliseconds(self._clock.now())).currency,
            disputed=sorted(look.disputed),
        )
        for keys, cost in sorted(_costs_of(costs).items()):
            cost.keys.extend(_words(keys, request.group_by))
            response.costs.append(cost)
        _set(response.through_time, look.through_ms)
        return response

    async def WatchCost(
        self, request: api.WatchCostRequest, context: Context
    ) -> AsyncIterator[api.WatchCostResponse]:
        """Tell the total again whenever it has changed, and now and then how old it is."""
        start = milliseconds(request.start_time.ToDatetime(tzinfo=UTC))
        watched = Watched(_project(request.parent), start if _said(request.start_time) else None)
        last, at = api.WatchCostResponse(), float("-inf")
        async with aclosing(self._live.follow(watched)) as totals:
            async for response in totals:
                passed = self._clock.monotonic() - at
                if response.total != last.total or passed >= QUIET_SECONDS:
                    last, at = response, self._clock.monotonic()
                    yield response

    async def _total(self, watched: Watched) -> api.WatchCostResponse:
        """What a project has cost so far, whoever asks."""
        now = self._clock.now()
        began = watched.start_ms
        start, end = _ordered(
            milliseconds(_month_of(now)) if began is None else began, milliseconds(now)
        )
        look = await self._accounts.look(watched.project)
        asked = Question(start, end, watched.project)
        costs = await self._costs(asked, look, (), "")
        response = api.WatchCostResponse(
            total=_costs_of({(): _merged(costs.values())})[()],
            currency=look.in_force(end).currency,
        )
        _set(response.through_time, look.through_ms)
        response.compute_time.FromDatetime(now)
        return response

    async def GetStatement(
        self, request: api.GetStatementRequest, context: Context
    ) -> api.GetStatementResponse:
        """Compute a bill as of now, or the same one again from its cut."""
        project = request.parent.removeprefix("projects/")
        start, end = self._month(request)
        look = await self._look(project, request)
        books = look.books
        rows = await self._accounts.lines(Question(start, end, project), look)
        lines = rating.lines(project, [accounts.quantity(row) for row in rows], books)
        through = look.through_ms
        statement = api.Statement(
            project=request.parent,
            cut=look.as_cut(),
            currency=books[0].currency,
            lines=[rating.view(line) for line in lines],
            total_nanos=rating.payable(sum(line.amount_nanos for line in lines)),
            complete=through is not None and through >= end and not look.disputed,
            disputed=sorted(look.disputed),
        )
        statement.start_time.FromMilliseconds(start)
        statement.end_time.FromMilliseconds(end)
        statement.digest = hashlib.sha256(
            statement.SerializeToString(deterministic=True)
        ).hexdigest()
        return api.GetStatementResponse(statement=statement)

    async def ExplainCharge(
        self, request: api.ExplainChargeRequest, context: Context
    ) -> api.ExplainChargeResponse:
        """Tell every line of an owner with its pieces, and each piece with its facts."""
        project = request.owner.split("/")[1]
        start, end = self._period(request.start_time, request.end_time)
        look = await self._look(project, request)
        settled = look.settled
        pieces: list[tuple[metering.History, Segment]] = [
            (history, segment)
            for history in await self._accounts.histories(request.owner, look)
            if history.cluster in settled
            for segment in metering.segments(
                history, look.books, settled[history.cluster], start, end
            )
        ]
        rows = [
            quantity
            for history, segment in pieces
            for quantity in rating.quantities(history, (segment,))
        ]
        response = api.ExplainChargeResponse(cut=look.as_cut(), disputed=sorted(look.disputed))
        by_line: defaultdict[str, list[api.Segment]] = defaultdict(list)
        for history, segment in pieces:
            piece = _segment(history, segment)
            for quantity in rating.quantities(history, (segment,)):
                for line in rating.lines(project, (quantity,), look.books):
                    by_line[line.id].append(piece)
        # Rounded as in the bill of the whole project, so that a line is the same in both.
        whole = await self._accounts.lines(Question(start, end, project), look)
        amounts = {
            line.id: line.amount_nanos
            for line in rating.lines(project, [accounts.quantity(row) for row in whole], look.books)
        }
        numbers = set()
        for line in rating.lines(project, rows, look.books):
            if request.line in ("", line.id):
                numbers.add(line.book)
                segments = sorted(by_line[line.id], key=lambda one: one.start_time.ToNanoseconds())
                shown = rating.view(replace(line, amount_nanos=amounts[line.id]))
                response.lines.add(line=shown, segments=segments)
        if request.line and not response.lines:
            raise Invalid(
                "LINE_UNKNOWN",
                f"{request.owner} has no line {request.line} in this period.",
                violations=(
                    Violation("line", "must be the id of a line of this owner and period"),
                ),
                next_step="Leave it out to see all lines, or name the statement's period.",
                field="line",
                value=request.line,
            )
        response.price_books.extend(await self._accounts.price_books(sorted(numbers)))
        return response

    async def EstimateCost(
        self, request: api.EstimateCostRequest, context: Context
    ) -> api.EstimateCostResponse:
        """Rate what is not there yet by the prices in force."""
        look = await self._accounts.look(None)
        prices = look.in_force(milliseconds(self._clock.now()))
        asked = request.workload
        if asked.project not in ("", request.parent.removeprefix("projects/")):
            raise Invalid(
                "FIELD_INVALID",
                f"workload.project is {asked.project!r}, which is not that of {request.parent}.",
                violations=(Violation("workload.project", f"must be that of {request.parent}"),),
                next_step="Ask in the project that it would run in.",
                field="workload.project",
            )
        storage = rating.rate_per_hour(Sku(storage_bytes=request.storage_bytes), prices)
        rate = storage + sum(
            group.replicas * _rate(group.resources, prices)
            for group in asked.groups
            if group.purchase != workload.PURCHASE_PLATFORM
        )
        worst = 0
        if asked.HasField("max_duration"):
            # The end by its longest time is its user's doing, and may take all of the grace.
            free = prices.rule(api.BILLABLE_STATE_DRAINING_BY_USER).free_ms
            drains = max(0, asked.grace.ToMilliseconds() - free)
            ms = asked.max_duration.ToMilliseconds() + drains
            worst = rating.half_even(rate * ms, HOUR_MS)
        if asked.HasField("max_cost"):
            worst = min(worst, asked.max_cost.nanos) if worst else asked.max_cost.nanos
        return api.EstimateCostResponse(
            currency=prices.currency,
            rate_nanos=rating.payable(rate),
            stopped_rate_nanos=rating.payable(storage),
            worst_nanos=rating.payable(worst),
            price_version=prices.version,
        )

    async def _look(
        self, project: str, request: api.GetStatementRequest | api.ExplainChargeRequest
    ) -> Look:
        look = (
            await self._accounts.look_again(request.cut)
            if request.HasField("cut")
            else await self._accounts.look(project)
        )
        if not look.books:
            raise Unavailable(
                "PRICES_MISSING",
                "There are no prices yet.",
                next_step="Ask again in a moment: a new platform states its first ones as it starts.",
            )
        return look

    async def _costs(
        self, asked: Question, look: Look, by: Sequence[int], label: str
    ) -> dict[tuple[str, ...], tuple[int, int, int]]:
        """Exact numerators by keys: settled, accruing, and of an hour as it runs now."""
        settled = await self._accounts.usage(asked, look, look.settled, by=by, label=label)
        live = await self._accounts.usage(
            asked,
            look,
            look.live(min(asked.end_ms, milliseconds(self._clock.now())), self._slack),
            by=by,
            label=label,
            slack=self._slack,
            live=True,
        )
        found: defaultdict[tuple[str, ...], list[int]] = defaultdict(lambda: [0, 0, 0])
        for row in settled:
            found[tuple(row["keys"])][0] += rating.exact([accounts.summed(row)], look.books)
        for row in live:
            sums = found[tuple(row["keys"])]
            sums[1] += rating.exact([accounts.summed(row)], look.books)
            if row["open"]:
                sums[2] += rating.exact([accounts.hourly(row)], look.books)
        return {
            keys: (before, max(0, now - before), rate)
            for keys, (before, now, rate) in found.items()
        }

    def _period(self, start: Timestamp, end: Timestamp) -> tuple[int, int]:
        """The period asked for; the month so far, where none is."""
        now = self._clock.now()
        began = _month_of(now) if not _said(start) else start.ToDatetime(tzinfo=UTC)
        ended = now if not _said(end) else end.ToDatetime(tzinfo=UTC)
        return _ordered(milliseconds(began), milliseconds(ended))

    def _month(self, request: api.GetStatementRequest) -> tuple[int, int]:
        """The period of a statement: whole months, where only their beginning or nothing is said."""
        start = request.start_time
        began = start.ToDatetime(tzinfo=UTC) if _said(start) else _month_of(self._clock.now())
        ended = (
            request.end_time.ToDatetime(tzinfo=UTC)
            if _said(request.end_time)
            else _month_of(_month_of(began) + timedelta(days=32))
        )
        return _ordered(milliseconds(began), milliseconds(ended))


def _of_version(prices: Prices, version: str) -> api.PriceBook:
    return next(one for one in reversed(prices.books) if one.version == version)


def _project(parent: str) -> str | None:
    name = parent.removeprefix("projects/")
    return None if name == "-" else name


def _said(time: Timestamp) -> bool:
    return bool(time.seconds or time.nanos)


def _month_of(moment: datetime) -> datetime:
    return moment.replace(day=1, hour=0, minute=0, second=0, microsecond=0)


def _ordered(start: int, end: int) -> tuple[int, int]:
    if end < start:
        raise Invalid(
            "PERIOD_INVALID",
            "end_time is before start_time.",
            violations=(Violation("end_time", "must not be before start_time"),),
            next_step="Name a period that ends after it begins.",
            field="end_time",
        )
    return start, end


def _must_name_label(by: Sequence[int], label: str) -> None:
    if (api.GROUP_BY_LABEL in by) != bool(label):
        raise Invalid(
            "LABEL_NOT_NAMED",
            "label says which label GROUP_BY_LABEL sums by, and one is given without the other.",
            violations=(Violation("label", "must be given with GROUP_BY_LABEL, and only with it"),),
            next_step="Give both, or neither.",
            field="label",
            value=label,
        )


def _words(keys: Sequence[str], by: Sequence[int]) -> list[str]:
    """Keys as callers read them: kinds by name."""
    return [
        workload.Kind.Name(workload.Kind.ValueType(int(key))) if one == api.GROUP_BY_KIND else key
        for key, one in zip(keys, by, strict=True)
    ]


def _set(time: Timestamp, ms: int | None) -> None:
    if ms is not None:
        time.FromMilliseconds(ms)


def _merged(costs: Iterable[tuple[int, int, int]]) -> tuple[int, int, int]:
    settled = accruing = rate = 0
    for one in costs:
        settled, accruing, rate = settled + one[0], accruing + one[1], rate + one[2]
    return settled, accruing, rate


def _costs_of(
    exact: Mapping[tuple[str, ...], tuple[int, int, int]],
) -> dict[tuple[str, ...], api.Cost]:
    """Round: the parts sum to the whole rounded, for each column by itself."""
    keys = sorted(exact)
    columns = [
        rating.shares([exact[key][column] for key in keys], [str(key) for key in keys])
        for column in range(3)
    ]
    return {
        key: api.Cost(
            settled_nanos=rating.payable(settled),
            accruing_nanos=rating.payable(accruing),
            rate_nanos=rating.payable(rate),
        )
        for key, settled, accruing, rate in zip(keys, *columns, strict=True)
    }


def _segment(history: metering.History, segment: Segment) -> api.Segment:
    sku = segment.sku
    shown = api.Segment(
        uid=segment.uid,
        run=segment.run,
        state=segment.state,
        billed=segment.billed,
        price_book=segment.book,
        sku=workload.Sku(
            gpu_type=sku.gpu_type,
            gpu_milli=sku.gpu_milli,
            cpu_milli=sku.cpu_milli,
            memory_bytes=sku.memory_bytes,
            storage_bytes=sku.storage_bytes,
        ),
        labels=dict(segment.labels),
        why=segment.why,
    )
    shown.start_time.FromMilliseconds(segment.start_ms)
    shown.end_time.FromMilliseconds(segment.end_ms)
    for moment in segment.moments:
        fact = shown.evidence.add(
            type=moment.type,
            journal=f"executor/{history.cluster}",
            position=moment.position,
            evidence=moment.evidence,
        )
        fact.occurred_time.FromMilliseconds(moment.at_ms)
    return shown


def _rate(resources: workload.Resources, prices: Book) -> int:
    """By the hour; any model of GPU is taken for the dearest, for that may be what it gets."""
    models = [resources.gpu_type] if resources.gpu_type else sorted(prices.gpu)
    return max(
        rating.rate_per_hour(
            Sku(model, resources.gpu_milli, resources.cpu_milli, resources.memory_bytes), prices
        )
        for model in models
    )
