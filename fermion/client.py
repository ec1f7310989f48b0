"""The thin client: one place that calls, retries the same request, and reads its own writes."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message

from fermion import errors
from fermion.context import Context, Contexts, Positions
from fermion.instances import Instances
from fermion.journals import Journals
from fermion.projects import Keys, Members, Projects, Tokens, Users
from fermion.scheduler import Queue

Answer = TypeVar("Answer", bound=Message)
Stub = TypeVar("Stub")

TIMEOUT_SECONDS = 30.0
ATTEMPTS_MAX = 5
BACKOFF_SECONDS_FIRST = 0.1
MESSAGE_BYTES_MAX = 64 * 1024 * 1024

# The call may not have happened, or may have: with a request_id, asking again is the same request.
_AGAIN = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
)


class Client:
    """
    Calls one platform as one user.

    Without arguments it uses the current context of the command line; `FERMION_CONTEXT`,
    `FERMION_ADDRESS` and `FERMION_TOKEN` say otherwise. Mutations carry a request_id and are
    retried where that is safe. Raises `fermion.errors.Error` and its kinds.
    """

    def __init__(
        self,
        *,
        context: str = "",
        address: str = "",
        token: str = "",
        timeout: float = TIMEOUT_SECONDS,
    ) -> None:
        self.context = _resolve(context, address, token)
        self.timeout = timeout
        self.positions = Positions(f"{self.context.name} {self.context.address}")
        self._channels: dict[str, grpc.Channel] = {}
        self.instances = Instances(self)
        self.projects = Projects(self)
        self.members = Members(self)
        self.users = Users(self)
        self.tokens = Tokens(self)
        self.keys = Keys(self)
        self.journals = Journals(self)
        self.queue = Queue(self)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        for channel in self._channels.values():
            channel.close()
        self._channels.clear()

    def call(
        self,
        service: str,
        stub: Callable[[grpc.Channel], Any],
        method: str,
        request: Message,
        answer: type[Answer],
    ) -> Answer:
        """Make one unary call; a mutation gets its request_id here, so a retry is the same one."""
        field = request.DESCRIPTOR.fields_by_name.get("request_id")
        if field is not None and not getattr(request, field.name):
            setattr(request, field.name, str(uuid.uuid4()))
        address = self.context.address_of(service)
        function = getattr(stub(self._channel(address)), method)
        deadline = time.monotonic() + self.timeout
        delay = BACKOFF_SECONDS_FIRST
        for attempt in range(1, ATTEMPTS_MAX + 1):
            left = deadline - time.monotonic()
            try:
                response, call = function.with_call(
                    request, timeout=max(0.1, left), metadata=self._metadata()
                )
            except grpc.RpcError as error:
                found = errors.from_call(error, address)
                again = error.code() in _AGAIN or found.reason == "TOO_MANY_RACES"
                if not again or attempt == ATTEMPTS_MAX or time.monotonic() + delay > deadline:
                    raise found from error
                time.sleep(delay)
                delay *= 2
                continue
            self._remember(call.trailing_metadata() or ())
            assert isinstance(response, answer)
            return response
        raise AssertionError("the last attempt returns or raises")

    def stream(
        self,
        service: str,
        stub: Callable[[grpc.Channel], Any],
        method: str,
        request: Message,
        answer: type[Answer],
    ) -> Iterator[Answer]:
        """Read a stream of answers until it ends or fails."""
        address = self.context.address_of(service)
        function = getattr(stub(self._channel(address)), method)
        call = function(request, metadata=self._metadata())
        try:
            for response in call:
                assert isinstance(response, answer)
                yield response
        except grpc.RpcError as error:
            raise errors.from_call(error, address) from error
        finally:
            call.cancel()

    def healthy(self, service: str) -> str:
        """Ask the health service; what it says, or why it says nothing."""
        address = self.context.address_of(service)
        ask = self._channel(address).unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=bytes,
            response_deserializer=bytes,
        )
        try:
            # HealthCheckResponse{status: SERVING} is the two bytes of field 1 = 1.
            return "serving" if ask(b"", timeout=2) == b"\x08\x01" else "not serving"
        except grpc.RpcError as error:
            return errors.from_call(error, address).message

    def _channel(self, address: str) -> grpc.Channel:
        channel = self._channels.get(address)
        if channel is None:
            channel = grpc.insecure_channel(
                address,
                options=[
                    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
                    ("grpc.initial_reconnect_backoff_ms", 100),
                    ("grpc.max_reconnect_backoff_ms", 1000),
                    ("grpc.enable_http_proxy", 0),
                ],
            )
            self._channels[address] = channel
        return channel

    def _metadata(self) -> tuple[tuple[str, str], ...]:
        found = []
        bearer = self.context.bearer()
        if bearer:
            found.append(("authorization", f"Bearer {bearer}"))
        after = ",".join(f"{name}={at}" for name, at in self.positions.newest().items())
        if after:
            found.append(("fermion-after", after))
        traceparent = os.environ.get("TRACEPARENT")
        if traceparent:
            found.append(("traceparent", traceparent))
        return tuple(found)

    def _remember(self, trailing: Any) -> None:
        answered: dict[str, int] = {}
        for key, value in trailing:
            if key == "fermion-position":
                name, _, position = str(value).partition("=")
                answered[name] = int(position)
        self.positions.remember(answered)


def _resolve(name: str, address: str, token: str) -> Context:
    address = address or os.environ.get("FERMION_ADDRESS", "")
    token = token or os.environ.get("FERMION_TOKEN", "")
    wanted = name or os.environ.get("FERMION_CONTEXT", "")
    contexts = Contexts()
    found = contexts.find(wanted)
    if found is None:
        known = ", ".join(sorted(contexts.known)) or "none yet"
        raise errors.NotFound(
            f"There is no context {wanted or contexts.current!r}; there are: {known}.",
            reason="CONTEXT_NOT_FOUND",
            arguments={"next_step": "`fermion contexts set NAME --address HOST:PORT` makes one."},
        )
    if not address and not token:
        return found
    return Context(
        name=found.name if not address else f"at {address}",
        address=address or found.address,
        token_file=found.token_file,
        token=token,
        project=found.project,
        addresses={} if address else found.addresses,
    )
