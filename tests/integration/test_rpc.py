"""The door over real gRPC: what callers hear when they are let in, refused, late or cut off."""

from __future__ import annotations

import asyncio
import json
import logging
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import grpc
import grpc.aio
import pytest
from google.protobuf.message import Message
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status

from chassis import rpc
from chassis.callers import JOURNAL, Callers
from chassis.clock import SystemClock
from chassis.feed import Feed
from chassis.journal import Request
from chassis.refusals import Conflict, Exhausted, Invalid, Refused, Unavailable
from chassis.rpc import Context, Reached, Server, answer_position, caller, meta_of, request_of
from chassis.service import Mount
from chassis.tasks import end
from chassis.telemetry import JsonFormatter, Metrics
from fermion.api.projects import v1 as api
from fermion.api.projects.v1 import service_pb2_grpc as stubs
from tests.people import (
    REGISTRY,
    SECONDS_MAX,
    People,
    RestoredLog,
    created,
    followed,
    member,
    registered,
    uid,
)

SERVICE = "fermion.api.projects.v1.ProjectService"
KEYS = "fermion.api.projects.v1.KeyService"
ACME = api.GetProjectRequest(name="projects/acme")
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Guest(stubs.ProjectServiceServicer):
    """A service behind the door that does what each test needs, by the display name it is sent."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, Request | None, str, str]] = []
        self.reached = asyncio.Event()
        self.ended = asyncio.Event()
        self.go = asyncio.Event()

    async def GetProject(
        self, request: api.GetProjectRequest, context: Context
    ) -> api.GetProjectResponse:
        meta = meta_of(context, request)
        self.seen.append(
            (caller(context).user, request_of(context, request), meta.request_id, meta.traceparent)
        )
        answer_position(context, "projects/0", 7)
        return api.GetProjectResponse(project=api.Project(name=request.name))

    async def UpdateProject(
        self, request: api.UpdateProjectRequest, context: Context
    ) -> api.UpdateProjectResponse:
        match request.project.display_name:
            case "refused":
                raise Refused("STATE_WRONG", "Not now.", next_step="Wait.", state="ARCHIVED")
            case "conflict":
                raise Conflict("ETAG_MISMATCH", "Changed since.")
            case "busy":
                raise Exhausted("TOO_MUCH", "Too much at once.")
            case "broken":
                raise KeyError("the password is hunter2")
            case "slow" | "impatient":
                self.reached.set()
                try:
                    await self.go.wait()
                finally:
                    self.ended.set()
            case "inner":
                raise TimeoutError
        return api.UpdateProjectResponse(project=request.project)

    async def CreateProject(
        self, request: api.CreateProjectRequest, context: Context
    ) -> api.CreateProjectResponse:
        self.seen.append((caller(context).user, request_of(context, request), "", ""))
        return api.CreateProjectResponse()

    async def ListMembers(
        self, request: api.ListMembersRequest, context: Context
    ) -> api.ListMembersResponse:
        return api.ListMembersResponse()

    async def WatchProjects(
        self, request: api.WatchProjectsRequest, context: Context
    ) -> AsyncIterator[api.WatchProjectsResponse]:
        try:
            yield api.WatchProjectsResponse(resume_token="first")
            if request.send_initial:
                raise Refused("STATE_WRONG", "Not now.")
            self.reached.set()
            await self.go.wait()
            yield api.WatchProjectsResponse(resume_token="second")
        finally:
            self.ended.set()


class KeyGuest(stubs.KeyServiceServicer):
    """The one call that needs no token."""

    async def GetKeys(self, request: api.GetKeysRequest, context: Context) -> api.GetKeysResponse:
        return api.GetKeysResponse(jwks=caller(context).kind)


@dataclass(slots=True)
class House:
    """A server with a door, the people it knows, and a way to call it as Ada."""

    people: People
    callers: Callers
    guest: Guest
    server: Server
    metrics: Metrics
    channel: grpc.aio.Channel
    ada: str
    projects: stubs.ProjectServiceAsyncStub = field(init=False)
    keys: stubs.KeyServiceAsyncStub = field(init=False)

    def __post_init__(self) -> None:
        self.projects = stubs.ProjectServiceStub(self.channel)
        self.keys = stubs.KeyServiceStub(self.channel)

    def as_ada(self, **more: str) -> tuple[tuple[str, str], ...]:
        extra = ((name.replace("_", "-"), value) for name, value in more.items())
        return (("authorization", self.ada), *extra)

    async def refused(self, call: Awaitable[object]) -> Heard:
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await call
        return heard(error.value)

    async def update(self, display_name: str, timeout: float | None = None) -> Heard:
        project = api.Project(name="projects/acme", display_name=display_name)
        call = self.projects.UpdateProject(
            api.UpdateProjectRequest(project=project), metadata=self.as_ada(), timeout=timeout
        )
        return await self.refused(call)


@dataclass(frozen=True, slots=True)
class Heard:
    """What a refused caller hears."""

    code: grpc.StatusCode
    reason: str
    message: str
    arguments: dict[str, str]
    fields: tuple[str, ...]
    retry_ms: int
    request_id: str
    trailing: dict[str, str | bytes]


def heard(error: grpc.aio.AioRpcError) -> Heard:
    status = rpc_status.from_call(error)
    details: dict[type[Message], Message] = {}
    for detail in [] if status is None else status.details:
        kind = getattr(error_details_pb2, detail.type_url.rsplit(".", 1)[-1])
        details[kind] = kind.FromString(detail.value)
    info = details.get(error_details_pb2.ErrorInfo, error_details_pb2.ErrorInfo())
    bad = details.get(error_details_pb2.BadRequest, error_details_pb2.BadRequest())
    retry = details.get(error_details_pb2.RetryInfo, error_details_pb2.RetryInfo())
    told = details.get(error_details_pb2.RequestInfo, error_details_pb2.RequestInfo())
    return Heard(
        error.code(),
        info.reason,
        error.details() or "",
        dict(info.metadata),
        tuple(found.field for found in bad.field_violations),
        retry.retry_delay.ToMilliseconds(),
        told.request_id,
        dict(error.trailing_metadata()),
    )


@asynccontextmanager
async def housed(
    people: People, callers: Callers, reads: dict[str, list[Reached]] | None = None
) -> AsyncIterator[House]:
    # What a guest does not answer, its generated class refuses.
    guest, metrics = Guest(), Metrics()  # type: ignore[abstract]
    keys = KeyGuest()  # type: ignore[abstract]
    mounts = (
        Mount(SERVICE, stubs.add_ProjectServiceServicer_to_server, guest),
        Mount(KEYS, stubs.add_KeyServiceServicer_to_server, keys),
    )
    waits = {JOURNAL: [callers.reached]} if reads is None else reads
    door = rpc.door(callers, mounts, {SERVICE: waits, KEYS: waits}, metrics)
    server = Server(door, mounts, "127.0.0.1:0", traced=False)
    await server.start()
    health = asyncio.create_task(server.tell_health(), name="health")
    channel = grpc.aio.insecure_channel(
        f"127.0.0.1:{server.port}",
        options=[("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1)],
    )
    async with channel:
        ada = people.token(uid("ada"))
        yield House(people, callers, guest, server, metrics, channel, ada)
    await end(health)
    await server.stop(0)


@pytest.fixture
async def people() -> People:
    people = People()
    await people.say(
        *registered("ada"),
        created("acme"),
        created("other"),
        member("acme", "ada", api.ROLE_ADMIN),
    )
    return people


@pytest.fixture
async def house(people: People) -> AsyncIterator[House]:
    callers = people.callers()
    async with followed(callers), housed(people, callers) as house:
        yield house


async def test_a_call_that_is_let_in_knows_its_caller_and_its_cause(house: House) -> None:
    call = house.projects.GetProject(
        ACME, metadata=house.as_ada(x_request_id="req-1", traceparent=TRACE)
    )
    assert (await call).project.name == "projects/acme"
    assert house.guest.seen == [("ada", None, "req-1", TRACE)]
    trailing = dict(await call.trailing_metadata())
    assert (trailing["x-request-id"], trailing["fermion-position"]) == ("req-1", "projects/0=7")


async def test_a_call_without_ids_is_given_some(house: House) -> None:
    call = house.projects.GetProject(ACME, metadata=house.as_ada(traceparent="no trace"))
    await call
    ((_, _, request_id, traceparent),) = house.guest.seen
    assert str(uuid.UUID(request_id)) == request_id
    assert dict(await call.trailing_metadata())["x-request-id"] == request_id
    assert traceparent.count("-") == 3


async def test_a_request_id_is_the_callers_and_the_bodys(house: House) -> None:
    request = api.CreateProjectRequest(project_id="new", request_id=str(uuid.uuid4()))
    await house.projects.CreateProject(request, metadata=house.as_ada())
    again = api.CreateProjectRequest(project_id="new", request_id=str(uuid.uuid4()))
    await house.projects.CreateProject(again, metadata=house.as_ada())
    again.project_id = "newer"
    await house.projects.CreateProject(again, metadata=house.as_ada())
    first, second, third = (key for _, key, _, _ in house.guest.seen)
    assert first is not None
    assert second is not None
    assert third is not None
    assert (first.scope, first.method) == (f"caller/{uid('ada')}", f"/{SERVICE}/CreateProject")
    assert first.request_id == request.request_id
    assert first.digest == second.digest != third.digest


async def test_nobody_comes_in_without_a_token_but_for_the_keys(house: House) -> None:
    refusal = await house.refused(house.projects.GetProject(ACME))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAUTHENTICATED, "TOKEN_MISSING")
    assert "Bearer" in refusal.arguments["next_step"]
    assert (await house.keys.GetKeys(api.GetKeysRequest())).jwks == "anonymous"
    # The keys are what a client checks tokens with, so they cannot depend on one.
    metadata = (("authorization", "Bearer rubbish"),)
    assert (await house.keys.GetKeys(api.GetKeysRequest(), metadata=metadata)).jwks == "anonymous"


async def test_whoever_is_not_known_learns_nothing_of_the_rules(house: House) -> None:
    wrong = api.GetProjectRequest(name="no name")
    refusal = await house.refused(house.projects.GetProject(wrong))
    assert refusal.reason == "TOKEN_MISSING"
    refusal = await house.refused(house.projects.GetProject(wrong, metadata=house.as_ada()))
    assert refusal.reason == "FIELD_INVALID"


async def test_a_foreign_project_is_denied(house: House) -> None:
    foreign = api.GetProjectRequest(name="projects/other")
    refusal = await house.refused(house.projects.GetProject(foreign, metadata=house.as_ada()))
    assert (refusal.code, refusal.reason) == (
        grpc.StatusCode.PERMISSION_DENIED,
        "PROJECT_ROLE_MISSING",
    )


async def test_a_wrong_request_is_told_field_by_field(house: House) -> None:
    request = api.CreateProjectRequest(project_id="Bad Name", request_id="no uuid")
    request.project.labels["BAD KEY"] = "x"
    refusal = await house.refused(
        house.projects.CreateProject(request, metadata=house.as_ada(x_request_id="req-2"))
    )
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "FIELD_INVALID")
    assert set(refusal.fields) == {"project_id", "request_id", "project.labels['BAD KEY']"}
    assert refusal.arguments["field"] == refusal.fields[0]
    assert refusal.request_id == refusal.trailing["x-request-id"] == "req-2"
    assert house.guest.seen == []


async def test_a_nul_is_refused_before_a_service_sees_it(house: House) -> None:
    request = api.CreateProjectRequest(project_id="new")
    request.project.description = "a\0b"
    refusal = await house.refused(house.projects.CreateProject(request, metadata=house.as_ada()))
    assert (refusal.reason, refusal.fields) == ("FIELD_INVALID", ("project.description",))


async def test_a_wrong_field_is_told_as_a_sentence(house: House) -> None:
    asked = api.ListMembersRequest(parent="projects/acme", page_size=-1)
    refusal = await house.refused(house.projects.ListMembers(asked, metadata=house.as_ada()))
    assert refusal.message == (
        "page_size is -1; it must be greater than or equal to 0 and less than or equal to 1000."
    )
    member = api.SetMemberRequest(parent="projects/acme", user="users/ada")
    refusal = await house.refused(house.projects.SetMember(member, metadata=house.as_ada()))
    assert refusal.message.startswith("role is ROLE_UNSPECIFIED; it must be one of ROLE_BILLING")
    update = api.UpdateProjectRequest()
    refusal = await house.refused(house.projects.UpdateProject(update, metadata=house.as_ada()))
    assert refusal.message == "project is required."


async def test_a_message_of_more_than_4_mib_is_refused_with_its_size(house: House) -> None:
    request = api.CreateProjectRequest(project_id="new")
    request.project.description = "x" * rpc.MESSAGE_BYTES_MAX
    refusal = await house.refused(house.projects.CreateProject(request, metadata=house.as_ada()))
    assert (refusal.code, refusal.reason) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "MESSAGE_TOO_LARGE",
    )
    assert refusal.arguments["bytes"] == str(request.ByteSize())
    assert refusal.arguments["bytes_max"] == str(4 * 1024 * 1024)
    # Whoever is not known learns nothing of it.
    assert (await house.refused(house.projects.CreateProject(request))).reason == "TOKEN_MISSING"
    # What is absurd is not read at all.
    request.project.description = "x" * rpc.TRANSPORT_BYTES_MAX
    refusal = await house.refused(house.projects.CreateProject(request, metadata=house.as_ada()))
    assert refusal.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert house.guest.seen == []


async def test_a_message_of_very_many_parts_is_refused_before_it_takes_memory(
    house: House,
) -> None:
    body = b"\x12\x00" * (rpc.MESSAGE_BYTES_MAX // 2)
    call = house.channel.unary_unary(f"/{SERVICE}/CreateProject")
    refusal = await house.refused(call(body, metadata=house.as_ada()))
    assert refusal.reason == "MESSAGE_TOO_LARGE"
    assert "at most 10000 messages and entries of maps" in refusal.message


@pytest.mark.parametrize("body", [b"\xff" * 9, b"\x0a\x03\xed\xa0\x80", b"\x0a\x05cut"])
async def test_bytes_that_are_no_request_are_the_callers_mistake_and_not_ours(
    house: House, body: bytes
) -> None:
    for call in (
        house.channel.unary_unary(f"/{SERVICE}/GetProject")(body, metadata=house.as_ada()),
        house.channel.unary_stream(f"/{SERVICE}/WatchProjects")(
            body, metadata=house.as_ada()
        ).read(),
    ):
        refusal = await house.refused(call)
        assert (refusal.code, refusal.reason) == (
            grpc.StatusCode.INVALID_ARGUMENT,
            "MESSAGE_UNREADABLE",
        )
        assert refusal.message.startswith(f"The request is {len(body)} bytes")
    # Whoever is not known learns nothing of it.
    nobody = house.channel.unary_unary(f"/{SERVICE}/GetProject")(body)
    assert (await house.refused(nobody)).reason == "TOKEN_MISSING"


async def test_a_refusal_speaks(house: House) -> None:
    refusal = await house.update("refused")
    assert (refusal.code, refusal.reason, refusal.message) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "STATE_WRONG",
        "Not now.",
    )
    assert refusal.arguments == {"state": "ARCHIVED", "next_step": "Wait."}
    assert refusal.retry_ms == 0
    assert (await house.update("conflict")).code is grpc.StatusCode.ABORTED
    busy = await house.update("busy")
    assert (busy.code, busy.retry_ms) == (grpc.StatusCode.RESOURCE_EXHAUSTED, 500)


async def test_a_fault_of_ours_tells_only_its_request_id(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    refusal = await house.update("broken")
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.INTERNAL, "INTERNAL")
    told = f"{refusal.message} {refusal.arguments} {refusal.trailing}"
    assert "hunter2" not in told
    assert "KeyError" not in told
    (record,) = (found for found in caplog.records if found.name == "chassis.rpc")
    assert record.levelno == logging.ERROR
    assert "hunter2" in json.loads(JsonFormatter().format(record))["exception"]
    assert str(uuid.UUID(refusal.request_id)) == refusal.trailing["x-request-id"]


async def test_a_call_that_says_no_deadline_has_ours(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rpc, "UNARY_SECONDS_MAX", 0.05)
    refusal = await house.update("slow")
    assert (refusal.code, refusal.reason) == (
        grpc.StatusCode.DEADLINE_EXCEEDED,
        "DEADLINE_EXCEEDED",
    )
    assert house.guest.ended.is_set()


async def test_a_callers_own_deadline_ends_the_work(house: House) -> None:
    refusal = await house.update("impatient", timeout=0.2)
    assert refusal.code is grpc.StatusCode.DEADLINE_EXCEEDED
    async with asyncio.timeout(SECONDS_MAX):
        await house.guest.ended.wait()


async def test_a_timeout_of_something_else_is_a_fault(house: House) -> None:
    assert (await house.update("inner")).code is grpc.StatusCode.INTERNAL


async def test_a_caller_who_goes_away_ends_the_work(house: House) -> None:
    project = api.Project(name="projects/acme", display_name="slow")
    call = house.projects.UpdateProject(
        api.UpdateProjectRequest(project=project), metadata=house.as_ada()
    )
    waiting = asyncio.ensure_future(call.code())
    async with asyncio.timeout(SECONDS_MAX):
        await house.guest.reached.wait()
        call.cancel()
        await house.guest.ended.wait()
        assert await waiting is grpc.StatusCode.CANCELLED
    await counted(house, "UpdateProject", "CANCELLED")


async def test_calls_are_counted_by_method_and_code(house: House) -> None:
    await house.projects.GetProject(ACME, metadata=house.as_ada())
    await house.refused(house.projects.GetProject(ACME))
    await counted(house, "GetProject", "OK")
    await counted(house, "GetProject", "UNAUTHENTICATED")


async def counted(house: House, method: str, code: str) -> None:
    """Wait until a call of this outcome has been counted, which comes after its answer."""
    labels = {"method": f"/{SERVICE}/{method}", "code": code}
    await eventually(
        lambda: house.metrics.registry.get_sample_value("fermion_rpc_seconds_count", labels) == 1
    )


async def eventually(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(SECONDS_MAX):
        while not holds():  # noqa: ASYNC110 - what is waited for tells nobody
            await asyncio.sleep(0.01)


async def test_a_stream_begins_at_once_and_can_be_refused_later(house: House) -> None:
    request = api.WatchProjectsRequest(send_initial=True)
    call = house.projects.WatchProjects(request, metadata=house.as_ada(x_request_id="req-3"))
    assert dict(await call.initial_metadata())["x-request-id"] == "req-3"
    assert await call.read() == api.WatchProjectsResponse(resume_token="first")
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call.read()
    refusal = heard(error.value)
    assert (refusal.reason, refusal.request_id) == ("STATE_WRONG", "req-3")


async def test_a_watcher_who_goes_away_ends_the_watch(house: House) -> None:
    call = house.projects.WatchProjects(api.WatchProjectsRequest(), metadata=house.as_ada())
    await call.read()
    async with asyncio.timeout(SECONDS_MAX):
        await house.guest.reached.wait()
        call.cancel()
        await house.guest.ended.wait()


async def test_a_watch_ends_with_the_token_it_came_in_with(house: House) -> None:
    call = house.projects.WatchProjects(api.WatchProjectsRequest(), metadata=house.as_ada())
    await call.read()
    tok = house.callers.authenticate(house.ada).token_uid
    position = await house.people.say(api.TokenRevoked(uid=tok, user_uid=uid("ada")))
    assert await house.callers.reached(position, SECONDS_MAX)
    house.guest.go.set()
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call.read()
    assert heard(error.value).reason == "TOKEN_REVOKED"


async def test_a_process_that_ends_tells_its_watchers_at_once(house: House) -> None:
    call = house.projects.WatchProjects(api.WatchProjectsRequest(), metadata=house.as_ada())
    await call.read()
    async with asyncio.timeout(SECONDS_MAX):
        await house.guest.reached.wait()
        # Far longer than this test may take: the watch is not waited for.
        stopping = asyncio.create_task(house.server.stop(10 * SECONDS_MAX))
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await call.read()
        await stopping
    refusal = heard(error.value)
    assert (refusal.code, refusal.reason, refusal.retry_ms) == (
        grpc.StatusCode.UNAVAILABLE,
        "SHUTTING_DOWN",
        500,
    )
    assert house.guest.ended.is_set()


async def test_a_running_call_ends_in_peace_when_the_process_does(house: House) -> None:
    project = api.Project(name="projects/acme", display_name="slow")
    call = house.projects.UpdateProject(
        api.UpdateProjectRequest(project=project), metadata=house.as_ada()
    )
    answer = asyncio.ensure_future(call.code())
    async with asyncio.timeout(SECONDS_MAX):
        await house.guest.reached.wait()
        stopping = asyncio.create_task(house.server.stop(SECONDS_MAX))
        await asyncio.sleep(0)
        house.guest.go.set()
        assert await answer is grpc.StatusCode.OK
        await stopping


async def test_what_a_caller_saw_elsewhere_is_waited_for(people: People) -> None:
    callers = people.callers()
    async with followed(callers), housed(people, callers) as house:
        # Ada has just joined, and this process has not read it when her call arrives.
        behind = callers.position
        after = house.as_ada(fermion_after=f"other/0=99,{JOURNAL}={behind + 1}")
        foreign = api.ListMembersRequest(parent="projects/other")
        call = asyncio.ensure_future(house.projects.ListMembers(foreign, metadata=after).code())
        await people.say(member("other", "ada", api.ROLE_VIEWER))
        assert await call is grpc.StatusCode.OK


async def test_what_does_not_come_is_told_with_when_to_ask_again(
    people: People, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rpc, "BEHIND_SECONDS_MAX", 0.05)
    callers = people.callers()
    async with followed(callers), housed(people, callers) as house:
        after = house.as_ada(fermion_after=f"{JOURNAL}=99")
        refusal = await house.refused(house.projects.GetProject(ACME, metadata=after))
        assert (refusal.code, refusal.reason, refusal.retry_ms) == (
            grpc.StatusCode.UNAVAILABLE,
            "READ_BEHIND",
            500,
        )
        assert refusal.arguments["journal"] == JOURNAL
        # Who is not known does not make the process wait.
        metadata = (("fermion-after", f"{JOURNAL}=99"),)
        refusal = await house.refused(house.projects.GetProject(ACME, metadata=metadata))
        assert refusal.reason == "TOKEN_MISSING"


@pytest.mark.parametrize(
    "after", ["projects/0", "projects/0=x", "projects/0=-1", "=", "a=" + "9" * 30]
)
async def test_a_position_that_is_none_is_refused(house: House, after: str) -> None:
    call = house.projects.GetProject(ACME, metadata=house.as_ada(fermion_after=after))
    assert (await house.refused(call)).reason == "POSITION_INVALID"


async def test_before_the_callers_are_known_everybody_is_told_to_come_again(
    people: People,
) -> None:
    callers = people.callers()
    async with housed(people, callers) as house:
        for header in (house.ada, people.token("service:instances", "service")):
            metadata = (("authorization", header),)
            refusal = await house.refused(house.projects.GetProject(ACME, metadata=metadata))
            assert (refusal.code, refusal.reason, refusal.retry_ms) == (
                grpc.StatusCode.UNAVAILABLE,
                "CALLERS_BEHIND",
                500,
            )
        assert (await house.keys.GetKeys(api.GetKeysRequest())).jwks == "anonymous"
        async with followed(callers):
            await house.projects.GetProject(ACME, metadata=house.as_ada())


async def test_health_is_told_by_service_without_a_token(house: House) -> None:
    stub = health_pb2_grpc.HealthStub(house.channel)
    for name in ("", SERVICE, KEYS):
        # The first of a watch that says so: it is told as soon as the callers are known.
        async for answer in stub.Watch(health_pb2.HealthCheckRequest(service=name)):
            if answer.status == health_pb2.HealthCheckResponse.SERVING:
                break
        answer = await stub.Check(health_pb2.HealthCheckRequest(service=name))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await stub.Check(health_pb2.HealthCheckRequest(service="nobody"))
    assert error.value.code() is grpc.StatusCode.NOT_FOUND


async def test_it_serves_by_its_health_only_while_it_knows_who_may_do_what(people: People) -> None:
    log, status = RestoredLog(people), health_pb2.HealthCheckResponse
    callers = Callers(Feed(JOURNAL, log, None, REGISTRY), SystemClock(), [people.key.public])
    async with housed(people, callers) as house:
        watch = health_pb2_grpc.HealthStub(house.channel).Watch(health_pb2.HealthCheckRequest())
        async with asyncio.timeout(SECONDS_MAX):
            assert (await watch.read()).status == status.NOT_SERVING
            async with followed(callers):
                assert (await watch.read()).status == status.SERVING
                await house.projects.GetProject(ACME, metadata=house.as_ada())
                # Restored, it is read anew: half a history may hold a role that was taken away.
                await log.restore(5)
                assert (await watch.read()).status == status.NOT_SERVING
                log.back.set()
                assert (await watch.read()).status == status.SERVING


async def test_the_server_tells_what_it_serves(house: House) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(house.channel)
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    call = stub.ServerReflectionInfo(iter([request]))
    found = {
        service.name
        async for response in call
        for service in response.list_services_response.service
    }
    assert {SERVICE, KEYS, "grpc.health.v1.Health"} <= found


async def test_no_task_waits_for_each_call_that_there_is(house: House) -> None:
    await house.projects.GetProject(ACME, metadata=house.as_ada())
    waiting = [task for task in asyncio.all_tasks() if "registered_call" in repr(task.get_coro())]
    assert waiting == []


async def test_a_port_that_is_taken_is_told(house: House, people: People) -> None:
    door = rpc.door(house.callers, (), {}, Metrics())
    with pytest.raises(Refused) as error:
        Server(door, (), f"127.0.0.1:{house.server.port}", traced=False)
    assert isinstance(error.value, Unavailable)
    assert error.value.reason == "LISTEN_FAILED"


@pytest.mark.parametrize("listen", ["here", "127.0.0.1:99999", "300.0.0.1:80", "192.0.2.1:80"])
async def test_an_address_that_nothing_could_listen_on_is_a_wrong_setting(
    house: House, listen: str
) -> None:
    door = rpc.door(house.callers, (), {}, Metrics())
    with pytest.raises(Invalid) as error:
        Server(door, (), listen, traced=False)
    assert error.value.reason == "SETTING_INVALID"
    assert error.value.arguments == {"variable": "FERMION_LISTEN", "value": listen}
