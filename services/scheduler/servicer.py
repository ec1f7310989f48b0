"""Answers callers who ask what waits, why, for how long, and what is held."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Final

from chassis.clock import Clock
from chassis.envelope import Recorded
from chassis.journal import Journal
from chassis.listing import PageToken
from chassis.postgres import Database, Record
from chassis.queries import Queries
from chassis.refusals import Missing
from chassis.rpc import Context
from chassis.tasks import aside
from chassis.watch import Kind, Watching
from fermion.api.scheduler import v1 as api
from fermion.api.scheduler.v1 import service_pb2_grpc
from fermion.api.workload import v1 as workload
from services.scheduler import aggregate, books, explain, outlook, projection, quota
from services.scheduler.aggregate import Entry
from services.scheduler.ledger import Books
from services.scheduler.lines import Reserved
from services.scheduler.placement import FOREVER
from services.scheduler.state import State

PAGE_SIZE: Final = 100
# A line of more than these is not drawn up anew for each that asks, but so often.
LONG_LINE: Final = 1000
LINE_MILLISECONDS: Final = 5000
UNDECLARED: Final = "wkl_undeclared"
CHANGES: Final = {
    Kind.INITIAL: api.WatchQueueResponse.CHANGE_INITIAL,
    Kind.UPDATED: api.WatchQueueResponse.CHANGE_UPDATED,
    Kind.DELETED: api.WatchQueueResponse.CHANGE_LEFT,
    Kind.BOOKMARK: api.WatchQueueResponse.CHANGE_BOOKMARK,
}


class QueueServicer(service_pb2_grpc.QueueServiceServicer):
    """
    Every RPC of `QueueService`; who may call has been checked before.

    It has books of its own: those of who admits hold what is decided and not said yet.
    """

    def __init__(
        self, journal: Journal, database: Database, queries: Queries, clock: Clock
    ) -> None:
        self._journal = journal
        self._database = database
        self._queries = queries
        self._clock = clock
        self.watching: Watching[api.QueuedWorkload] = Watching(journal, clock)
        self._books: Books | None = None
        self._reading = asyncio.Lock()
        self._places: dict[str, int] = {}
        self._placed = (-1, 0)

    async def ListQueuedWorkloads(
        self, request: api.ListQueuedWorkloadsRequest, context: Context
    ) -> api.ListQueuedWorkloadsResponse:
        """Read a page of a project's queue; each goes on behind the last row of the one before."""
        since: datetime | None = None
        behind = ""
        if request.page_token:
            since, behind = PageToken.decode_time(request.page_token, request.parent)
        size = request.page_size or PAGE_SIZE
        async with self._reading:
            state = (await self._read()).state
            places = await aside(self._line, state)
        rows = await self._database.fetch(
            self._queries["list_queue"],
            request.parent.removeprefix("projects/"),
            since,
            behind,
            size + 1,
        )
        response = api.ListQueuedWorkloadsResponse(
            workloads=[projection.resource(row) for row in rows[:size]], waiting=len(places)
        )
        for one in response.workloads:
            one.place = places.get(one.workload_uid, 0)
        if len(rows) > size:
            last = rows[size - 1]
            response.next_page_token = PageToken.encode(
                last["queue_time"].isoformat(), last["uid"], request.parent
            )
        return response

    async def ExplainWorkload(
        self, request: api.ExplainWorkloadRequest, context: Context
    ) -> api.ExplainWorkloadResponse:
        """Look at everything as a pass would, and tell what is in the way of one."""
        rows = await self._database.fetch(self._queries["entries_of"], request.owner)
        row = next((one for one in rows if one["waits"]), None)
        if row is None:
            raise _not_queued(request.owner)
        entry, now = projection.entry(row), books.milliseconds(self._clock.now())
        async with self._reading:
            state = (await self._read()).state
            if row["uid"] not in state.works:
                # It has left meanwhile.
                raise _not_queued(request.owner)
            told = await aside(_explain, state, row["uid"], entry, now)
            ahead = await aside(state.copy)
        await _look_ahead(ahead, row["uid"], told, now)
        return api.ExplainWorkloadResponse(explanation=told)

    async def OutlookWorkload(
        self, request: api.OutlookWorkloadRequest, context: Context
    ) -> api.OutlookWorkloadResponse:
        """Let a pass look at a workload that nobody has declared."""
        now = self._clock.now()
        entry = _undeclared(request, now)
        assert entry.declared is not None
        uid = entry.declared.uid
        async with self._reading:
            found = await self._read()
            work = books.work_of(entry, clusters=found.clusters)
            state = await aside(found.state.copy)
        if work.refusal is not None:
            told = api.Explanation(waiting=state.waiting)
            told.workload.reason.CopyFrom(work.refusal)
            return api.OutlookWorkloadResponse(explanation=told)
        state.put(work)
        at = books.milliseconds(now)
        told = await aside(_explain, state, uid, entry, at)
        await _look_ahead(state, uid, told, at)
        if told.HasField("latest_start_time") and told.latest_start_time.ToMilliseconds() <= at:
            # It would be admitted at once, so that it would wait for nothing.
            told.ClearField("workload")
            told.place = 0
        return api.OutlookWorkloadResponse(explanation=told)

    async def WatchQueue(
        self, request: api.WatchQueueRequest, context: Context
    ) -> AsyncIterator[api.WatchQueueResponse]:
        """Send each workload whose place in the queue changes, and its uid when it leaves."""
        project = request.parent.removeprefix("projects/")
        changes = self.watching.follow(
            token=request.resume_token,
            send_initial=request.send_initial,
            project=project,
            touched=_touched,
            current=self._current,
            initial=partial(self._initial, project),
        )
        async for change in changes:
            response = api.WatchQueueResponse(
                change=CHANGES[change.kind], workload=change.resource, resume_token=change.token
            )
            if change.kind is Kind.DELETED:
                response.workload.workload_uid = change.uid
            yield response

    async def ListHoldings(
        self, request: api.ListHoldingsRequest, context: Context
    ) -> api.ListHoldingsResponse:
        """Sum what is held now, beside what may be."""
        async with self._reading:
            state = (await self._read()).state
            return _holdings(state, request.parent.removeprefix("projects/"))

    def _line(self, state: State) -> Mapping[str, int]:
        """The place of each that waits."""
        now = books.milliseconds(self._clock.now())
        version, at = self._placed
        if version != state.version and (state.waiting <= LONG_LINE or now >= at):
            self._placed = (state.version, now + LINE_MILLISECONDS)
            self._places = {uid: place for place, uid in enumerate(explain.line_up(state, now), 1)}
        return self._places

    async def _read(self) -> Books:
        """Everything as the rows have it now; used by one at a time, who holds `_reading`."""
        found, self._books = self._books, None
        if found is None:
            found = Books(self._journal, self._database, self._queries)
            await found.load()
        else:
            await found.follow()
        self._books = found
        return found

    async def _current(self, uids: Sequence[str]) -> Mapping[str, api.QueuedWorkload]:
        rows = await self._database.fetch(self._queries["find_queued"], list(uids))
        return _shown(rows)

    async def _initial(self, project: str) -> Sequence[tuple[str, api.QueuedWorkload]]:
        rows = await self._database.fetch(self._queries["list_queue"], project, None, "", None)
        return list(_shown(rows).items())


def _explain(state: State, uid: str, entry: Entry, now: int) -> api.Explanation:
    """What is in the way of one as things are now."""
    places = {name: at for at, name in enumerate(explain.line_up(state, now), 1)}
    told = api.Explanation(
        workload=aggregate.view(entry), place=places.get(uid, 0), waiting=len(places)
    )
    told.workload.place = told.place
    verdict = explain.Look(state, now).at(uid)
    if verdict is None:
        return told
    told.workload.reason.CopyFrom(explain.reason(verdict))
    told.shortages.extend(
        api.Shortage(
            where=lack.where,
            dimension=lack.dimension,
            need=lack.need,
            free=max(0, lack.free if lack.most is None else lack.most),
            limit=lack.limit,
            short=lack.short,
        )
        for lack in verdict.lacks
    )
    if verdict.reserved is not None:
        project = state.works[uid].project
        told.reservation.CopyFrom(_reservation(state, project, verdict.reserved))
    return told


async def _look_ahead(state: State, uid: str, told: api.Explanation, now: int) -> None:
    """Run admission forward, beside the loop that serves others; the state is used up."""
    latest = await aside(outlook.latest_start, state, uid, now)
    if latest is not None:
        told.latest_start_time.FromMilliseconds(latest)


def _undeclared(request: api.OutlookWorkloadRequest, now: datetime) -> Entry:
    """A workload as if it had just been declared; its volumes are taken as bound already."""
    asked = workload.Workload()
    asked.CopyFrom(request.workload)
    asked.uid = asked.uid or UNDECLARED
    asked.project = request.parent.removeprefix("projects/")
    for group in asked.groups:
        kept = [mount for mount in group.mounts if mount.WhichOneof("source") != "volume"]
        del group.mounts[:]
        group.mounts.extend(kept)
    queued = asked.queued_from_time.ToDatetime(tzinfo=UTC)
    return Entry(
        declared=asked,
        queue_time=queued if asked.HasField("queued_from_time") else now,
        arrive_time=now,
    )


def _not_queued(owner: str) -> Missing:
    return Missing(
        "NOT_QUEUED",
        f"Nothing of {owner} waits in the queue.",
        next_step="Its state tells where it stands: fermion instances get.",
        owner=owner,
    )


def _shown(rows: Sequence[Record]) -> dict[str, api.QueuedWorkload]:
    return {row["uid"]: projection.resource(row) for row in rows}


def _touched(fact: Recorded) -> str | None:
    kind, _, uid = fact.stream.partition("/")
    return uid if kind == "workload" else None


def _holdings(state: State, project: str) -> api.ListHoldingsResponse:
    """The project, and each user who holds something in it."""
    held = [one.user for one in state.works.values() if one.project == project and one.held]
    stored = [one.user for one in state.volumes.values() if one.project == project and one.cluster]
    scopes = [
        quota.PROJECTS + project,
        *(quota.USERS + user for user in sorted({*held, *stored})),
    ]
    return api.ListHoldingsResponse(holdings=[_holding(state, scope) for scope in scopes])


def _holding(state: State, scope: str) -> api.Holding:
    limits, inherited = state.quotas.limits_of(scope)
    return api.Holding(
        scope=scope,
        held=books.limits_of(state.quotas.held(scope)),
        limits=books.limits_of(limits),
        inherited=inherited,
    )


def _reservation(state: State, project: str, reserved: Reserved) -> api.Reservation:
    """Show what is kept for one; of another project's no more than that."""
    shown = api.Reservation(nodes=sorted(reserved.plan.slack))
    work = state.works.get(reserved.uid)
    if work is not None and work.project == project:
        shown.workload_uid, shown.owner = work.uid, work.owner
    if reserved.plan.start < FOREVER:
        shown.start_time.FromMilliseconds(reserved.plan.start)
    return shown
