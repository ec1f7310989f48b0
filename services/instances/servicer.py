"""Answers callers: finds the streams, lets the aggregate decide, shows what came of it."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Final, TypeAlias, TypeVar

from chassis import ids
from chassis.clock import Clock, milliseconds
from chassis.command import rehearse, transact
from chassis.envelope import Recorded
from chassis.journal import Journal
from chassis.listing import Filter, Order, PageToken
from chassis.postgres import Database
from chassis.queries import Queries
from chassis.refusals import Unavailable, Violation
from chassis.remote import Peer
from chassis.rpc import Context, answer_position, caller, meta_of, request_of
from chassis.watch import Kind, Watching
from fermion.api.billing import v1 as costs
from fermion.api.billing.v1.service_pb2_grpc import CostServiceStub
from fermion.api.instances import v1 as api
from fermion.api.instances.v1 import service_pb2_grpc
from fermion.api.scheduler import v1 as scheduler
from fermion.api.scheduler.v1.service_pb2_grpc import QueueServiceStub
from services.instances import aggregate, projection
from services.instances import spec as rules
from services.instances import template as templates
from services.instances.aggregate import Fact, Instance, Situation
from services.instances.config import Settings

PAGE_SIZE: Final = 100
# The longest that a plan waits for what others tell.
PLAN_SECONDS: Final = 2.0
# Facts read at once while an instance is folded up to a moment.
STREAM_PAGE: Final = 1000

STATES: Final = {
    name.removeprefix("STATE_"): number for name, number in api.State.items() if number
}
CHANGES: Final = {
    Kind.INITIAL: api.WatchInstancesResponse.CHANGE_INITIAL,
    Kind.UPDATED: api.WatchInstancesResponse.CHANGE_UPDATED,
    Kind.DELETED: api.WatchInstancesResponse.CHANGE_DELETED,
    Kind.BOOKMARK: api.WatchInstancesResponse.CHANGE_BOOKMARK,
}

Part = TypeVar("Part")

_log = logging.getLogger(__name__)

Mutation: TypeAlias = (
    api.CreateInstanceRequest
    | api.UpdateInstanceRequest
    | api.DeleteInstanceRequest
    | api.StartInstanceRequest
    | api.StopInstanceRequest
    | api.RestartInstanceRequest
)


class InstanceServicer(service_pb2_grpc.InstanceServiceServicer):
    """Every RPC of `InstanceService`; who may call has been checked before."""

    def __init__(
        self,
        journal: Journal,
        database: Database,
        queries: Queries,
        clock: Clock,
        policy: Settings,
        billing: Peer,
        scheduler: Peer,
    ) -> None:
        self._journal = journal
        self._database = database
        self._queries = queries
        self._clock = clock
        self.watching: Watching[api.Instance] = Watching(journal, clock)
        self._policy = policy
        self._billing = billing
        self._costs = CostServiceStub(billing.channel)
        self._scheduler = scheduler
        self._queue = QueueServiceStub(scheduler.channel)

    async def CreateInstance(
        self, request: api.CreateInstanceRequest, context: Context
    ) -> api.CreateInstanceResponse:
        """Create an instance under a name that is free, and ask for its start."""
        project = request.parent.removeprefix("projects/")
        uid = ids.fresh("inst", milliseconds(self._clock.now()))
        decide = partial(
            aggregate.create,
            uid=uid,
            project=project,
            instance=request.instance_id,
            owner=caller(context).uid,
            asked=request.instance,
            policy=self._policy,
        )
        filled_from = rules.named(request.instance.spec)
        after = await self._decide(request, context, uid, project, decide, template=filled_from)
        response = api.CreateInstanceResponse(instance=aggregate.view(after.instance))
        if request.validate_only:
            plan = await self._plan(after.instance, after.instance.attempt, context)
            response.plan.CopyFrom(plan)
        return response

    async def GetInstance(
        self, request: api.GetInstanceRequest, context: Context
    ) -> api.GetInstanceResponse:
        """Read one instance as it is, or fold it as it was."""
        project, instance = _parts(request.name)
        if request.HasField("as_of_time"):
            moment = request.as_of_time.ToDatetime(tzinfo=UTC)
            return api.GetInstanceResponse(instance=await self._as_of(request.name, moment))
        row = await self._database.fetchrow(self._queries["find_instance"], project, instance)
        if row is None:
            raise aggregate.unknown(request.name)
        return api.GetInstanceResponse(instance=projection.resource(row))

    async def ListInstances(
        self, request: api.ListInstancesRequest, context: Context
    ) -> api.ListInstancesResponse:
        """Read a page; pages are no snapshot, and each goes on behind the last row of the one before."""
        wanted = Filter.parse(request.filter, states=STATES)
        order = Order.parse(request.order_by)
        scope = json.dumps([request.parent, request.filter, request.order_by])
        size = request.page_size or PAGE_SIZE
        by_name = order.column == "name"
        behind: tuple[object, ...] = (None,) if by_name else (None, "")
        if request.page_token:
            if by_name:
                behind = PageToken.decode(request.page_token, scope)[:1]
            else:
                behind = PageToken.decode_time(request.page_token, scope)
        rows = await self._database.fetch(
            self._queries[f"list_by_{order.column}{'_desc' if order.descending else ''}"],
            request.parent.removeprefix("projects/"),
            wanted.name,
            wanted.name_prefix or "",
            json.dumps(wanted.labels),
            list(wanted.states),
            wanted.created_after,
            wanted.created_before,
            *behind,
            size + 1,
        )
        response = api.ListInstancesResponse(
            instances=[projection.resource(row) for row in rows[:size]]
        )
        if len(rows) > size:
            last = rows[size - 1]
            key = last["instance"] if by_name else last["create_time"].isoformat()
            response.next_page_token = PageToken.encode(key, last["uid"], scope)
        return response

    async def WatchInstances(
        self, request: api.WatchInstancesRequest, context: Context
    ) -> AsyncIterator[api.WatchInstancesResponse]:
        """Send each instance that changes once a change; one that is gone with its name and uid only."""
        project = request.parent.removeprefix("projects/")
        touched = await self._touched(project, request.instance_id)
        changes = self.watching.follow(
            token=request.resume_token,
            send_initial=request.send_initial,
            project=project,
            touched=touched,
            current=self._current,
            initial=partial(self._initial, project, request.instance_id),
            gone=self._gone,
        )
        async for change in changes:
            yield api.WatchInstancesResponse(
                change=CHANGES[change.kind], instance=change.resource, resume_token=change.token
            )

    async def UpdateInstance(
        self, request: api.UpdateInstanceRequest, context: Context
    ) -> api.UpdateInstanceResponse:
        """Change what a caller set, as far as `update_mask` names it."""
        name = request.instance.name
        row = await self._database.fetchrow(self._queries["find_instance"], *_parts(name))
        decide = partial(
            aggregate.change,
            asked=request.instance,
            paths=tuple(request.update_mask.paths),
            policy=self._policy,
            etag=request.etag,
        )
        # The template never changes, so it may be looked up before the decision.
        filled_from = "" if row is None else rules.named(projection.resource(row).spec)
        after = await self._decide_on(request, context, name, decide, template=filled_from)
        response = api.UpdateInstanceResponse(instance=aggregate.view(after.instance))
        if request.validate_only:
            plan = await self._plan(after.instance, after.instance.attempt + 1, context)
            response.plan.CopyFrom(plan)
        return response

    async def DeleteInstance(
        self, request: api.DeleteInstanceRequest, context: Context
    ) -> api.DeleteInstanceResponse:
        """Delete it: it is there until it has stopped and its files are gone."""
        decide = partial(aggregate.delete, etag=request.etag)
        after = await self._decide_on(request, context, request.name, decide)
        return api.DeleteInstanceResponse(instance=aggregate.view(after.instance))

    async def StartInstance(
        self, request: api.StartInstanceRequest, context: Context
    ) -> api.StartInstanceResponse:
        """Ask for a start."""
        decide = partial(aggregate.start, user=caller(context).uid, etag=request.etag)
        after = await self._decide_on(request, context, request.name, decide)
        return api.StartInstanceResponse(instance=aggregate.view(after.instance))

    async def StopInstance(
        self, request: api.StopInstanceRequest, context: Context
    ) -> api.StopInstanceResponse:
        """Ask for a stop."""
        decide = partial(aggregate.stop, etag=request.etag)
        after = await self._decide_on(request, context, request.name, decide)
        return api.StopInstanceResponse(instance=aggregate.view(after.instance))

    async def RestartInstance(
        self, request: api.RestartInstanceRequest, context: Context
    ) -> api.RestartInstanceResponse:
        """Ask for a stop and a start after it."""
        decide = partial(aggregate.restart, user=caller(context).uid, etag=request.etag)
        after = await self._decide_on(request, context, request.name, decide)
        return api.RestartInstanceResponse(instance=aggregate.view(after.instance))

    async def GetTemplate(
        self, request: api.GetTemplateRequest, context: Context
    ) -> api.GetTemplateResponse:
        """Read one template."""
        name = request.name.removeprefix(rules.PREFIX)
        row = await self._database.fetchrow(self._queries["find_template"], name)
        if row is None:
            raise templates.unknown(request.name)
        return api.GetTemplateResponse(template=projection.template(row))

    async def ListTemplates(
        self, request: api.ListTemplatesRequest, context: Context
    ) -> api.ListTemplatesResponse:
        """List what is offered; there are few, so there are no pages."""
        rows = await self._database.fetch(self._queries["list_templates"], request.show_hidden)
        return api.ListTemplatesResponse(templates=[projection.template(row) for row in rows])

    async def UpdateTemplate(
        self, request: api.UpdateTemplateRequest, context: Context
    ) -> api.UpdateTemplateResponse:
        """Replace a template as a whole, or add it."""
        decide = partial(
            templates.change,
            asked=request.template,
            policy=self._policy,
            allow_missing=request.allow_missing,
            etag=request.etag,
        )
        stream = f"template/{request.template.name.removeprefix(rules.PREFIX)}"
        if request.validate_only:
            shown = await rehearse(
                self._journal,
                stream,
                templates.fold,
                decide,
                place=aggregate.place,
                preview=templates.preview,
            )
            return api.UpdateTemplateResponse(template=shown)
        decided = await transact(
            self._journal,
            stream,
            templates.fold,
            decide,
            meta=meta_of(context, request),
            request=request_of(context, request),
        )
        answer_position(context, self._journal.name, decided.position)
        return api.UpdateTemplateResponse(template=decided.state)

    async def _decide_on(
        self,
        request: Mutation,
        context: Context,
        name: str,
        decide: Callable[[Situation], Sequence[Fact]],
        template: str = "",
    ) -> Situation:
        project, instance = _parts(name)
        uid = await self._journal.holder(f"instances/{project}", instance)
        if uid is None:
            # A deletion that is asked for again finds its own answer, not that the name is free.
            asked = request_of(context, request)
            answered = None if asked is None else await self._journal.remembered(asked)
            if answered is None:
                raise aggregate.unknown(name)
            uid = answered.outcome.stream.removeprefix("instance/")
        return await self._decide(request, context, uid, project, decide, template)

    async def _decide(
        self,
        request: Mutation,
        context: Context,
        uid: str,
        project: str,
        decide: Callable[[Situation], Sequence[Fact]],
        template: str = "",
    ) -> Situation:
        streams = [f"instance/{uid}", f"project/{project}"]
        if template:
            streams.append(f"template/{template}")
        if request.validate_only:
            return await rehearse(
                self._journal,
                streams,
                aggregate.fold_situation,
                decide,
                place=aggregate.place,
                preview=partial(aggregate.preview, at=self._clock.now()),
            )
        decided = await transact(
            self._journal,
            streams,
            aggregate.fold_situation,
            decide,
            meta=meta_of(context, request),
            request=request_of(context, request),
        )
        answer_position(context, self._journal.name, decided.position)
        return decided.state

    async def _plan(self, instance: Instance, attempt: int, context: Context) -> api.Plan:
        """What an attempt would mean; others are asked at once, and within the caller's deadline."""
        parent, declared = f"projects/{instance.project}", aggregate.declared(instance, attempt)
        left = context.time_remaining()
        # Half of what is left: the answer has to come before the caller gives up.
        seconds = PLAN_SECONDS if left is None else min(PLAN_SECONDS, left / 2)
        estimate = costs.EstimateCostRequest(
            parent=parent,
            workload=declared,
            storage_bytes=instance.spec.resources.storage_bytes,
        )
        outlook = scheduler.OutlookWorkloadRequest(parent=parent, workload=declared)
        asked = self._billing.ask(self._costs.EstimateCost, estimate, seconds)
        awaited = self._scheduler.ask(self._queue.OutlookWorkload, outlook, seconds)
        price, told = await asyncio.gather(_had(asked), _had(awaited))
        queue = None if told is None else told.explanation
        return aggregate.plan(instance, attempt, price, queue)

    async def _as_of(self, name: str, moment: datetime) -> api.Instance:
        uid = await self._database.fetchval(self._queries["find_bearer"], *_parts(name), moment)
        facts: list[Recorded] = []
        while uid is not None:
            page = await self._journal.read_stream(
                f"instance/{uid}", len(facts), STREAM_PAGE, until=moment
            )
            if not page:
                break
            facts += page
        instance = aggregate.fold(facts)
        if not instance.uid or instance.deleted:
            raise aggregate.unknown(name)
        return aggregate.view(instance)

    async def _touched(self, project: str, instance: str) -> Callable[[Recorded], str | None]:
        """Tell facts about instances of the project from others; of one name, if one is given."""
        rows = await self._database.fetch(self._queries["find_bearers"], project, instance)
        bearers = {row["uid"] for row in rows}

        def touched(fact: Recorded) -> str | None:
            kind, _, uid = fact.stream.partition("/")
            if kind != "instance":
                return None
            created = fact.message
            if isinstance(created, api.InstanceCreated) and created.instance == instance:
                bearers.add(uid)
            return uid if not instance or uid in bearers else None

        return touched

    async def _current(self, uids: Sequence[str]) -> Mapping[str, api.Instance]:
        rows = await self._database.fetch(self._queries["find_instances"], list(uids))
        return {row["uid"]: projection.resource(row) for row in rows}

    async def _initial(self, project: str, instance: str) -> list[tuple[str, api.Instance]]:
        rows = await self._database.fetch(self._queries["find_project"], project)
        return [
            (row["uid"], projection.resource(row))
            for row in rows
            if not instance or row["instance"] == instance
        ]

    async def _gone(self, uids: Sequence[str]) -> Mapping[str, api.Instance]:
        rows = await self._database.fetch(self._queries["find_names"], list(uids))
        named = {
            row["uid"]: f"projects/{row['project']}/instances/{row['instance']}" for row in rows
        }
        return {uid: api.Instance(uid=uid, name=named.get(uid, "")) for uid in uids}


async def _had(part: Awaitable[Part]) -> Part | None:
    """A part of a plan; None where whoever tells it does not."""
    try:
        return await part
    except Unavailable as error:
        _log.info("a plan lacks a part: %s", error)
        return None


def _parts(name: str) -> tuple[str, str]:
    parts = name.split("/")
    if len(parts) != 4 or (parts[0], parts[2]) != ("projects", "instances"):
        # Only UpdateInstance can get here: elsewhere the request's own rule holds names to their form.
        form = f"is {name!r}, and must be projects/{{project}}/instances/{{instance}}"
        raise rules.invalid("instance", [Violation("instance.name", form, "instance.name")])
    return parts[1], parts[3]
