"""The door: every call is known, allowed, valid and bounded before a service sees it."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
import uuid
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import aclosing, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias, cast

import grpc
import grpc.aio
from google.protobuf import any_pb2, descriptor_pool
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from grpc_status import rpc_status
from opentelemetry.instrumentation.grpc import aio_server_interceptor
from protovalidate import Validator

from chassis import fields, listening
from chassis.callers import ANONYMOUS, NOBODY, Caller, Callers, rules
from chassis.envelope import Meta
from chassis.journal import Request
from chassis.refusals import (
    Exhausted,
    Exists,
    Invalid,
    Missing,
    Refused,
    Unavailable,
    Violation,
)
from chassis.service import Mount
from chassis.tasks import end
from chassis.telemetry import REQUEST_ID, Metrics, current_traceparent
from fermion.api.projects import v1 as projects

DOMAIN: Final = "fermion"
LISTEN: Final = "FERMION_LISTEN"
SOCKETS: Final = ("unix:", "unix-abstract:")
MESSAGE_BYTES_MAX: Final = 4 * 1024 * 1024
# The transport refuses without a reason, so what is not absurdly larger comes as far as the door.
TRANSPORT_BYTES_MAX: Final = 4 * MESSAGE_BYTES_MAX
# What is smaller cannot have too many parts.
COUNTED_BYTES_MIN: Final = 16 * 1024
# Calls that have come and were not looked at yet.
PENDING_MAX: Final = 20_000
PENDING_SECONDS_MAX: Final = 300
UNARY_SECONDS_MAX: Final = 30.0
BEHIND_SECONDS_MAX: Final = 2.0
# Of a position, which is an int64.
DIGITS_MAX: Final = 18
# A refusal travels in trailing metadata, of which clients take 8 KiB; what is longer is cut.
VIOLATIONS_MAX: Final = 20
ARGUMENTS_BYTES_MAX: Final = 2000
TEXT_BYTES_MAX: Final = 400
DETAILS_BYTES_MAX: Final = 4096
# Answered without a token and without a rule: they tell nothing but that the server lives.
OPEN: Final = ("/grpc.health.", "/grpc.reflection.")

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]
Reached: TypeAlias = Callable[[int, float], Awaitable[bool]]

_log = logging.getLogger(__name__)
_codes: Final = {code.name: code for code in grpc.StatusCode}


@dataclass(slots=True)
class Call:
    """One call as the door let it in: the context that gRPC gave, and what is known of the caller."""

    context: Context
    method: str
    caller: Caller
    request_id: str
    metadata: Mapping[str, str]
    traceparent: str
    trailing: list[tuple[str, str]] = field(default_factory=list)

    def __getattr__(self, name: str) -> object:
        return getattr(self.context, name)


# A request, or why the bytes that came were not read as one.
Read: TypeAlias = Message | Invalid


def _call(context: Context) -> Call:
    return cast(Call, context)


def caller(context: Context) -> Caller:
    """Who calls."""
    return _call(context).caller


def request_of(context: Context, request: Message) -> Request | None:
    """The request's idempotency key; None where the caller gave no request_id."""
    request_id = str(getattr(request, "request_id", ""))
    if not request_id:
        return None
    bare = type(request)()
    bare.CopyFrom(request)
    bare.ClearField("request_id")
    digest = hashlib.sha256(bare.SerializeToString(deterministic=True)).digest()
    call = _call(context)
    return Request(f"caller/{call.caller.uid}", call.method, request_id, digest)


def meta_of(context: Context, request: Message) -> Meta:
    """Who a fact follows from."""
    call = _call(context)
    request_id = str(getattr(request, "request_id", "")) or call.request_id
    return Meta(actor=call.caller.uid, request_id=request_id, traceparent=call.traceparent)


def answer_position(context: Context, journal: str, position: int) -> None:
    """Tell the caller which position holds what it did, so that it can read its own write."""
    _call(context).trailing.append(("fermion-position", f"{journal}={position}"))


@dataclass(frozen=True, slots=True)
class Door:
    """What the interceptor asks: who may call, and how far this process has read."""

    callers: Callers
    rules: Mapping[str, projects.Access]
    # Of each gRPC service: the journals that its service reads, and how to wait for a position.
    reads: Mapping[str, Mapping[str, Sequence[Reached]]]
    metrics: Metrics
    validator: Validator = field(default_factory=Validator)

    async def enter(self, method: str, request: Read, context: Context) -> Call:
        """Let a call in, or raise a refusal."""
        pairs = context.invocation_metadata() or ()
        metadata = {
            str(key): value if isinstance(value, str) else bytes(value).decode(errors="replace")
            for key, value in pairs
        }
        request_id = metadata.get("x-request-id", "")[:100] or str(uuid.uuid4())
        REQUEST_ID.set(request_id)
        call = Call(context, method, NOBODY, request_id, metadata, current_traceparent(metadata))
        rule = self.rules.get(method)
        if rule is None:
            raise Missing("METHOD_UNKNOWN", f"There is no call {method}.", method=method)
        # What anybody may call does not depend on a token, not even on a bad one.
        open_to_all = rule.platform == projects.PLATFORM_ROLE_ANONYMOUS
        if not open_to_all:
            call.caller = self.callers.authenticate(metadata.get("authorization"))
        known = call.caller.kind != ANONYMOUS
        if known or open_to_all:
            await self._wait(method, metadata.get("fermion-after", ""))
            call.caller = self.callers.recognise(call.caller)
            # What is not a name cannot be allowed or denied: the shape of the request comes first,
            # but nobody who is not known learns anything from it.
            self.validate(request)
        # Only nobody gets this far with what cannot be read, and only to be turned away.
        said = Empty() if isinstance(request, Invalid) else request
        self.callers.authorise(call.caller, rule, said)
        return call

    def still(self, call: Call, request: Read) -> None:
        """Raise a refusal where a call that was let in would not be let in now."""
        assert isinstance(request, Message)
        rule = self.rules[call.method]
        if rule.platform != projects.PLATFORM_ROLE_ANONYMOUS:
            found = self.callers.authenticate(call.metadata.get("authorization"))
            call.caller = self.callers.recognise(found)
        self.callers.authorise(call.caller, rule, request)

    def validate(self, request: Read) -> None:
        """Raise `Invalid` where a request could not be read or breaks a rule of its fields."""
        if isinstance(request, Invalid):
            raise request
        violations = fields.faults(request, self.validator)
        if violations:
            first = violations[0]
            others = str(len(violations) - 1) if len(violations) < fields.FAULTS_MAX else "many"
            more = f" (and {others} more)" if len(violations) > 1 else ""
            value, shown = fields.shown(request, first.field)
            raise Invalid(
                "FIELD_INVALID",
                f"{first.field or 'The request'}{f' is {shown}; it' if shown else ''} "
                f"{first.description}{more}.",
                violations=tuple(violations),
                next_step="Change the named fields and send it again.",
                field=first.field,
                value=value,
                rule=first.rule,
            )

    async def _wait(self, method: str, after: str) -> None:
        """Wait until this process has read what the caller has seen elsewhere."""
        if not after:
            return
        service = method.split("/")[1]
        deadline = time.monotonic() + BEHIND_SECONDS_MAX
        for part in after.split(","):
            journal, _, text = part.strip().partition("=")
            if not (text.isascii() and text.isdigit() and len(text) <= DIGITS_MAX):
                raise Invalid(
                    "POSITION_INVALID",
                    f"fermion-after is {after!r}.",
                    violations=(Violation("fermion-after", "must be journal=position[,…]"),),
                    next_step="Send back what `fermion-position` said.",
                )
            for reached in self.reads.get(service, {}).get(journal, ()):
                if not await reached(int(text), max(0.0, deadline - time.monotonic())):
                    raise Unavailable(
                        "READ_BEHIND",
                        f"This process has not yet read {journal} up to {text}.",
                        next_step="Send the same request again in a moment.",
                        journal=journal,
                        position=text,
                    )


class Gatekeeper(grpc.aio.ServerInterceptor):
    """Puts the door in front of every call, and turns what is raised into statuses that speak."""

    def __init__(self, door: Door) -> None:
        self._door = door
        self._wrapped: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
        self._closed = False
        # One for each stream: thousands that waited for the same one would each look through them all.
        self._closing: set[asyncio.Future[None]] = set()

    def close(self) -> None:
        """End the streams that go on for ever, so that their callers ask another process."""
        self._closed = True
        for closing in self._closing:
            if not closing.done():
                closing.set_result(None)

    async def intercept_service(
        self,
        continuation: Callable[
            [grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]
        ],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Wrap the handler of a call; the same one for all calls of a method."""
        method = str(handler_call_details.method)
        wrapped = self._wrapped.get(method)
        if wrapped is not None:
            return wrapped
        handler = await continuation(handler_call_details)
        if handler is None or method.startswith(OPEN):
            return handler
        wrapped = self._wrapped[method] = self._wrap(method, handler)
        return wrapped

    def _wrap(
        self, method: str, handler: grpc.RpcMethodHandler[Any, Any]
    ) -> grpc.RpcMethodHandler[Any, Any]:
        if handler.unary_unary is not None:
            return grpc.unary_unary_rpc_method_handler(
                self._unary(method, handler.unary_unary),
                request_deserializer=_readable(method, handler.request_deserializer),
                response_serializer=handler.response_serializer,
            )
        if handler.unary_stream is not None:
            return grpc.unary_stream_rpc_method_handler(
                self._stream(method, handler.unary_stream),
                request_deserializer=_readable(method, handler.request_deserializer),
                response_serializer=handler.response_serializer,
            )
        if handler.stream_stream is not None:
            return grpc.stream_stream_rpc_method_handler(
                self._exchange(method, handler.stream_stream),
                request_deserializer=_readable(method, handler.request_deserializer),
                response_serializer=handler.response_serializer,
            )
        raise AssertionError(f"{method} gives one answer to a stream, which `rules` has refused")

    def _unary(self, method: str, behavior: Callable[..., Any]) -> Callable[..., Any]:
        async def answer(request: Read, context: Context) -> Message:
            # A caller who goes away or runs out of time ends the task, and nothing more is known.
            began, code = time.perf_counter(), "CANCELLED"
            bound = asyncio.timeout(_seconds(context))
            try:
                async with bound:
                    call = await self._door.enter(method, request, context)
                    response: Message = await behavior(request, call)
                context.set_trailing_metadata((("x-request-id", call.request_id), *call.trailing))
                code = "OK"
                return response
            except Exception as error:
                status = _status(error, method, bound.expired())
                code = _code_name(status)
                await _abort(context, status)
                raise AssertionError("abort has raised") from error
            finally:
                self._door.metrics.calls.labels(method, code).observe(time.perf_counter() - began)

        return answer

    def _stream(self, method: str, behavior: Callable[..., Any]) -> Callable[..., Any]:
        async def answer(request: Read, context: Context) -> AsyncIterator[Message]:
            async def enter() -> tuple[Call, Read, AsyncGenerator[Message, None]]:
                call = await self._door.enter(method, request, context)
                return call, request, behavior(request, call)

            async with aclosing(self._responses(method, context, enter)) as responses:
                async for response in responses:
                    yield response

        return answer

    def _exchange(self, method: str, behavior: Callable[..., Any]) -> Callable[..., Any]:
        """A stream of requests is let in by its first one, and each of the others is checked."""

        async def answer(requests: AsyncIterator[Read], context: Context) -> AsyncIterator[Message]:
            async def enter() -> tuple[Call, Read, AsyncGenerator[Message, None]]:
                first = await _first(requests)
                call = await self._door.enter(method, first, context)
                return call, first, behavior(self._checked(call, first, requests), call)

            async with aclosing(self._responses(method, context, enter)) as responses:
                async for response in responses:
                    yield response

        return answer

    async def _checked(
        self, call: Call, first: Read, more: AsyncIterator[Read]
    ) -> AsyncGenerator[Read, None]:
        yield first
        async for request in more:
            self._door.validate(request)
            self._door.still(call, first)
            yield request

    async def _responses(
        self,
        method: str,
        context: Context,
        enter: Callable[[], Awaitable[tuple[Call, Read, AsyncGenerator[Message, None]]]],
    ) -> AsyncGenerator[Message, None]:
        """Let a call in, and pass its responses on while it would still be let in."""
        began, code = time.perf_counter(), "CANCELLED"
        try:
            call, first, answers = await enter()
            # Sent at once, so that a watcher knows that it watches before anything changes.
            await context.send_initial_metadata((("x-request-id", call.request_id),))
            async with aclosing(self._until_closed(answers)) as responses:
                async for response in responses:
                    # A watch may go on for days, in which roles and tokens end.
                    self._door.still(call, first)
                    yield response
            context.set_trailing_metadata((("x-request-id", call.request_id), *call.trailing))
            code = "OK"
        except Exception as error:
            status = _status(error, method, False)
            code = _code_name(status)
            await _abort(context, status)
        finally:
            self._door.metrics.calls.labels(method, code).observe(time.perf_counter() - began)

    @contextmanager
    def _closes(self) -> Iterator[asyncio.Future[None]]:
        """What is done once this process drains."""
        closing = asyncio.get_running_loop().create_future()
        if self._closed:
            closing.set_result(None)
        self._closing.add(closing)
        try:
            yield closing
        finally:
            self._closing.discard(closing)

    async def _until_closed(
        self, responses: AsyncGenerator[Message, None]
    ) -> AsyncGenerator[Message, None]:
        """Pass responses on until this process drains; then `Unavailable` (SHUTTING_DOWN)."""
        with self._closes() as closing:
            async with aclosing(responses):
                while True:
                    upcoming = asyncio.ensure_future(anext(responses, None))
                    try:
                        await asyncio.wait((upcoming, closing), return_when=asyncio.FIRST_COMPLETED)
                    finally:
                        # Where it has ended already this looks at what it raised, of which nobody
                        # would hear if the caller went at the same moment.
                        await end(upcoming)
                    if upcoming.cancelled():
                        raise Unavailable(
                            "SHUTTING_DOWN",
                            "This process ends; another one, or its next start, goes on.",
                            next_step="Ask again, a watch with its last resume_token.",
                        )
                    response = upcoming.result()
                    if response is None:
                        return
                    yield response


@dataclass(frozen=True, slots=True)
class _ByName:
    """
    What services are added to: a server that finds each call by its name.

    For calls that are registered with it, too, gRPC begins a task each that waits for the next one,
    and looks through all of them whenever any call comes.
    """

    server: grpc.aio.Server

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        """Take handlers that know their calls' names."""
        self.server.add_generic_rpc_handlers(handlers)

    def add_registered_method_handlers(self, service: str, handlers: object) -> None:
        """Do without: the generic ones are the same."""
        del service, handlers


class Server:
    """One gRPC server for all of a process's services, dispatched by their names."""

    def __init__(self, door: Door, mounts: Iterable[Mount], listen: str, traced: bool) -> None:
        self._callers = door.callers
        self._health = health.aio.HealthServicer()
        self._gatekeeper = Gatekeeper(door)
        interceptors: list[grpc.aio.ServerInterceptor] = [self._gatekeeper]
        if traced:
            interceptors.insert(0, aio_server_interceptor())  # type: ignore[no-untyped-call]
        self._server = grpc.aio.server(
            interceptors=interceptors,
            options=[
                ("grpc.max_receive_message_length", TRANSPORT_BYTES_MAX),
                ("grpc.so_reuseport", 0),
                ("grpc.keepalive_time_ms", 30_000),
                # Beyond its own limits of a thousand calls or half a minute the library drops what nobody
                # has looked at, as CANCELLED and without a word. Callers say themselves how long they
                # wait, and what is full says so.
                ("grpc.server.max_pending_requests", PENDING_MAX),
                ("grpc.server.max_pending_requests_hard_limit", PENDING_MAX),
                ("grpc.server_max_unrequested_time_in_server", PENDING_SECONDS_MAX),
                # Callers ask every five seconds whether we are there; their clocks are not ours.
                ("grpc.http2.min_recv_ping_interval_without_data_ms", 1_000),
            ],
        )
        self.names: list[str] = []
        by_name = cast(grpc.aio.Server, _ByName(self._server))
        for mount in mounts:
            mount.add(mount.servicer, by_name)
            self.names.append(mount.service_name)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, by_name)
        reflection.enable_server_reflection(
            (*self.names, health.SERVICE_NAME, reflection.SERVICE_NAME), by_name
        )
        if not listen.startswith(SOCKETS):
            listening.check(LISTEN, listen)
        try:
            self.port = self._server.add_insecure_port(listen)
        except RuntimeError as error:
            raise listening.taken(LISTEN, listen) from error

    async def start(self) -> None:
        """Open the port; that anything serves is said by `tell_health`."""
        await self._tell(serving=False)
        await self._server.start()

    async def tell_health(self) -> None:
        """
        Say that every service serves while it is known who may do what; until cancelled.

        Before, and while the callers are read anew, all but a few calls are refused.
        """
        while True:
            serving = self._callers.ready.is_set()
            await self._tell(serving)
            while self._callers.ready.is_set() == serving:
                await self._callers.moved()

    async def _tell(self, serving: bool) -> None:
        status = health_pb2.HealthCheckResponse
        for name in ("", *self.names):
            await self._health.set(name, status.SERVING if serving else status.NOT_SERVING)

    async def stop(self, grace: float) -> None:
        """Say that nothing serves, let running calls end, close."""
        await self._health.enter_graceful_shutdown()
        self._gatekeeper.close()
        await self._server.stop(grace)


def door(
    callers: Callers,
    mounts: Sequence[Mount],
    reads: Mapping[str, Mapping[str, Sequence[Reached]]],
    metrics: Metrics,
) -> Door:
    """Make the door of a process; an RPC without a usable access rule is refused here, at start."""
    return Door(callers, rules(mount.service_name for mount in mounts), reads, metrics)


def to_status(refusal: Refused) -> status_pb2.Status:
    """Write a refusal as canonical code, reason, field violations and what to do next."""
    details: list[Message] = [
        error_details_pb2.ErrorInfo(
            reason=refusal.reason, domain=DOMAIN, metadata=_arguments(refusal)
        ),
        error_details_pb2.RequestInfo(request_id=REQUEST_ID.get()),
    ]
    if isinstance(refusal, Unavailable | Exhausted):
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMilliseconds(int(refusal.retry_seconds * 1000))
        details.append(retry)
    if isinstance(refusal, Missing | Exists) and refusal.arguments:
        # The first argument of these names what is missing, or there already.
        kind, name = next(iter(refusal.arguments.items()))
        details.append(error_details_pb2.ResourceInfo(resource_type=kind, resource_name=_cut(name)))
    if refusal.violations:
        size = sum(detail.ByteSize() for detail in details)
        details.append(_bad_request(refusal.violations, size))
    return status_pb2.Status(
        code=_codes[refusal.code].value[0],
        message=_cut(refusal.message),
        details=[_packed(detail) for detail in details],
    )


def _arguments(refusal: Refused) -> dict[str, str]:
    """What to do next, and as many arguments as there is room for."""
    found = {"next_step": _cut(refusal.next_step)} if refusal.next_step else {}
    left = ARGUMENTS_BYTES_MAX - sum(len(text.encode()) for text in found.values())
    for name, value in refusal.arguments.items():
        cut = _cut(value)
        left -= len(name) + len(cut.encode())
        if left < 0:
            break
        found[name] = cut
    return found


def _bad_request(
    violations: Sequence[Violation], bytes_before: int
) -> error_details_pb2.BadRequest:
    """As many violations as there is room for; the first is always there."""
    bad = error_details_pb2.BadRequest()
    for found in violations[:VIOLATIONS_MAX]:
        bad.field_violations.add(
            field=_cut(found.field), description=_cut(found.description), reason=found.rule
        )
        if len(bad.field_violations) > 1 and bytes_before + bad.ByteSize() > DETAILS_BYTES_MAX:
            del bad.field_violations[-1]
            break
    return bad


def _cut(text: str) -> str:
    encoded = text.encode()
    if len(encoded) <= TEXT_BYTES_MAX:
        return text
    return encoded[: TEXT_BYTES_MAX - 3].decode(errors="ignore") + "…"


async def _abort(context: Context, status: status_pb2.Status) -> None:
    told = rpc_status.to_status(status)
    request_id = ("x-request-id", REQUEST_ID.get())
    await context.abort(told.code, told.details, (*told.trailing_metadata, request_id))


def _readable(method: str, read: Callable[[bytes], Message] | None) -> Callable[[bytes], Read]:
    """
    Let what is not to be read, or cannot be, come as far as the door, which refuses it.

    MESSAGE_TOO_LARGE: it has more bytes, or more parts, than one may. MESSAGE_UNREADABLE: it is no
    message of this call, of which gRPC would say that it is a fault of ours.
    """
    assert read is not None, "every call of ours takes a message"
    service, _, name = method.removeprefix("/").partition("/")
    kind = descriptor_pool.Default().FindServiceByName(service).methods_by_name[name].input_type

    def readable(data: bytes) -> Read:
        size = len(data)
        if size > MESSAGE_BYTES_MAX:
            return _too_large(
                f"The request is {size} bytes; at most {MESSAGE_BYTES_MAX} are taken.",
                Violation("", f"must be at most {MESSAGE_BYTES_MAX} bytes", "message.max_bytes"),
                bytes=str(size),
                bytes_max=str(MESSAGE_BYTES_MAX),
            )
        if size > COUNTED_BYTES_MIN and not fields.is_bounded(kind, data):
            rule = f"must have at most {fields.PARTS_MAX} messages and entries of maps in it"
            return _too_large(
                f"The request is {size} bytes of very many parts; it {rule}.",
                Violation("", rule, "message.max_parts"),
                bytes=str(size),
                parts_max=str(fields.PARTS_MAX),
            )
        try:
            return read(data)
        except DecodeError:
            return Invalid(
                "MESSAGE_UNREADABLE",
                f"The request is {size} bytes that are not the message of this call.",
                violations=(
                    Violation("", "must be the message that the call takes", "message.readable"),
                ),
                next_step="Write it by the call's proto; text in it must be valid UTF-8.",
                bytes=str(size),
            )

    return readable


def _too_large(message: str, violation: Violation, **arguments: str) -> Invalid:
    return Invalid(
        "MESSAGE_TOO_LARGE",
        message,
        violations=(violation,),
        next_step="Send less at once, or name what is large instead of sending it.",
        **arguments,
    )


async def _first(requests: AsyncIterator[Read]) -> Read:
    """The request that a stream begins with; `Invalid` where none comes in time."""
    with suppress(TimeoutError):
        async with asyncio.timeout(UNARY_SECONDS_MAX):
            async for request in requests:
                return request
    raise Invalid(
        "FIRST_REQUEST_MISSING",
        "The call ended, or waited too long, before its first request.",
        violations=(Violation("", "must begin with a request"),),
        next_step="Send the first request with the call.",
    )


def _seconds(context: Context) -> float | None:
    """How long a unary call may take: as the caller said, else a bound of ours."""
    return UNARY_SECONDS_MAX if context.time_remaining() is None else None


def _status(error: Exception, method: str, timed_out: bool) -> status_pb2.Status:
    if isinstance(error, Refused):
        return to_status(error)
    if timed_out and isinstance(error, TimeoutError):
        refusal = Refused(
            "DEADLINE_EXCEEDED",
            f"The call took longer than {UNARY_SECONDS_MAX:.0f} s.",
            next_step="Send the same request again with the same request_id.",
        )
        status = to_status(refusal)
        status.code = grpc.StatusCode.DEADLINE_EXCEEDED.value[0]
        return status
    _log.error("%s failed", method, exc_info=error)
    status = to_status(
        Refused(
            "INTERNAL",
            "Something went wrong here that should not have.",
            next_step="Tell an operator the request id; the log has it.",
        )
    )
    status.code = grpc.StatusCode.INTERNAL.value[0]
    return status


def _code_name(status: status_pb2.Status) -> str:
    return next(name for name, code in _codes.items() if code.value[0] == status.code)


def _packed(message: Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed
