"""Answers callers who ask what waits, why, for how long, and what is held."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Final

from chassis.clock import Clock
from chassis.envelope import Recorded
from chassis.journal import Journal
from chassis.listing import PageToken
from chassis.postgres import Database
from chassis.queries import Queries
from chassis.refusals import Missing
from chassis.rpc import Context
from chassis.watch import Kind, watch
from fermion.api.scheduler import v1 as api
from fermion.api.scheduler.v1 import service_pb2_grpc
from fermion.api.workload import v1 as workload
from services.scheduler import admission, books, explain, projection, quota
from services.scheduler.admission import Admit
from services.scheduler.demand import Work
from services.scheduler.ledger import Books
from services.scheduler.state import State

PAGE_SIZE: Final = 100
CHANGES: Final = {
    Kind.INITIAL: api.WatchQueueResponse.CHANGE_INITIAL,
    Kind.UPDATED: api.WatchQueueResponse.CHANGE_UPDATED,
    Kind.DELETED: api.WatchQueueResponse.CHANGE_LEFT,
    Kind.BOOKMARK: api.WatchQueueResponse.CHANGE_BOOKMARK,
}


class QueueServicer(service_pb2_grpc.QueueServiceServicer):
    """Every RPC of `QueueService`; who may call has been checked before."""

    def __init__(
        self, journal: Journal, database: Database, queries: Queries, clock: Clock
    ) -> None:
        self._journal = journal
        self._database = database
        self._queries = queries
        self._clock = clock

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

    async def ExplainWorkload(
        self, request: api.ExplainWorkloadRequest, context: Context
    ) -> api.ExplainWorkloadResponse:
        """Look at everything as a pass would, and tell what is in the way of one."""
        rows = await self._database.fetch(self._queries["owned_entries"], request.owner)
        waiting = [row for row in rows if not row["cluster"]]
        state = await self._state()
        found = state.works.get(waiting[0]["uid"]) if waiting else None
        if found is None:
            raise Missing(
                "NOT_QUEUED",
                f"Nothing of {request.owner} waits in the queue.",
                next_step="Its state tells where it stands: fermion instances get.",
                owner=request.owner,
            )
        told = self._explain(state, found)
        declared = workload.Workload.FromString(waiting[0]["workload"])
        told.workload.kind = declared.kind
        told.workload.attempt = declared.attempt
        told.workload.labels.update(declared.labels)
        return api.ExplainWorkloadResponse(explanation=told)

    async def OutlookWorkload(
        self, request: api.OutlookWorkloadRequest, context: Context
    ) -> api.OutlookWorkloadResponse:
        """Let a pass look at a workload that nobody has declared."""
        asked = workload.Workload()
        asked.CopyFrom(request.workload)
        asked.project = request.parent.removeprefix("projects/")
        for group in asked.groups:
            kept = [mount for mount in group.mounts if mount.WhichOneof("source") != "volume"]
            del group.mounts[:]
            group.mounts.extend(kept)
        kept_books = await self._books()
        state, now = kept_books.state, self._clock.now()
        work = books.work_of(asked, clusters=kept_books.clusters, queue_time=now)
        if work.refusal is not None:
            told = api.Explanation(waiting=state.waiting)
            told.workload.reason.CopyFrom(work.refusal)
            return api.OutlookWorkloadResponse(explanation=told)
        state.put(work)
        at = books.milliseconds(now)
        decisions = admission.admit(state.copy(), at, state.waiting + 1)
        if any(isinstance(one, Admit) and one.uid == work.uid for one in decisions):
            told = api.Explanation(waiting=state.waiting)
            told.latest_start_time.FromDatetime(now)
            return api.OutlookWorkloadResponse(explanation=told)
        return api.OutlookWorkloadResponse(explanation=self._explain(state, work))

    async def WatchQueue(
        self, request: api.WatchQueueRequest, context: Context
    ) -> AsyncIterator[api.WatchQueueResponse]:
        """Send each workload whose place in the queue changes, and its uid when it leaves."""
        project = request.parent.removeprefix("projects/")
        changes = watch(
            self._journal,
            token=request.resume_token,
            send_initial=request.send_initial,
            project=project,
            touched=_touched,
            current=self._current,
            initial=partial(self._initial, project),
            clock=self._clock,
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
        project = request.parent.removeprefix("projects/")
        state = await self._state()
        users = sorted(
            {work.user for work in state.works.values() if work.project == project and work.held}
        )
        scopes = [quota.PROJECTS + project, *(quota.USERS + user for user in users)]
        return api.ListHoldingsResponse(holdings=[_holding(state, scope) for scope in scopes])

    def _explain(self, state: State, work: Work) -> api.Explanation:
        now = books.milliseconds(self._clock.now())
        state.wake(now)
        place, waiting = explain.place(state, work)
        told = api.Explanation(place=place, waiting=waiting)
        told.workload.workload_uid = work.uid
        told.workload.owner = work.owner
        told.workload.user_uid = work.user
        told.workload.reason.CopyFrom(explain.reason(state, work, now))
        told.workload.queue_time.FromMilliseconds(work.queue_time)
        latest = explain.latest_start(state, work, now)
        if latest is not None:
            told.latest_start_time.FromMilliseconds(latest)
        return told

    async def _state(self) -> State:
        return (await self._books()).state

    async def _books(self) -> Books:
        """Everything as the rows have it now."""
        found = Books(self._journal, self._database, self._queries)
        await found.load()
        return found

    async def _current(self, uids: Sequence[str]) -> Mapping[str, api.QueuedWorkload]:
        rows = await self._database.fetch(self._queries["find_queued"], list(uids))
        return {row["workload_uid"]: projection.resource(row) for row in rows}

    async def _initial(self, project: str) -> Sequence[tuple[str, api.QueuedWorkload]]:
        rows = await self._database.fetch(self._queries["list_queue"], project, None, "", None)
        return [(row["workload_uid"], projection.resource(row)) for row in rows]


def _touched(fact: Recorded) -> str | None:
    kind, _, uid = fact.stream.partition("/")
    return uid if kind == "workload" else None


def _holding(state: State, scope: str) -> api.Holding:
    limits, inherited = state.quotas.limits_of(scope)
    return api.Holding(
        scope=scope,
        held=books.limits_of(state.quotas.held(scope)),
        limits=books.limits_of(limits),
        inherited=inherited,
    )
