"""What a call is, whichever way it is waited for: what goes with it, and whether it is sent again."""

from __future__ import annotations

import os
import random
import time
import uuid
from collections.abc import Iterable
from typing import Final

import grpc
from google.protobuf.message import Message

from fermion.answer import from_call
from fermion.context import Context, Positions
from fermion.errors import Error, Unavailable

# A server that never answered this client is given so long to appear; a restart is shorter.
ABSENT_SECONDS_MAX: Final = 1.5
BACKOFF_SECONDS_FIRST: Final = 0.1
BACKOFF_SECONDS_MAX: Final = 2.0
CHANNEL_OPTIONS: Final = (
    ("grpc.max_receive_message_length", 64 * 1024 * 1024),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # A process that is stopped, or whose machine is gone, says nothing: it is given up for another
    # one, or for a new connection, after both of these.
    ("grpc.keepalive_time_ms", 5_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),
    ("grpc.enable_http_proxy", 0),
)

# What asks without changing anything is always safe to ask again.
_READS: Final = (
    *("Get", "List", "Watch", "Read", "Stream", "WhoAmI", "Audit"),
    *("Explain", "Outlook", "Estimate"),
)
# The call may have happened, or may not; with a request_id, asking again is the same request.
_UNCLEAR: Final = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.CANCELLED,
)
# The platform says that it did nothing, and that the same call may go through in a moment.
_LATER: Final = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED)


class Place:
    """Where one service answers, and as whom it is called."""

    def __init__(
        self, service: str, context: Context, positions: Positions, timeout: float
    ) -> None:
        self.service = service
        self.address = context.address_of(service)
        self.target = context.target_of(service)
        self.timeout = timeout
        self.context = context
        self.positions = positions
        # Whether it ever did; one that did not is not waited for as long.
        self.answered = False


class Attempts:
    """
    One call until it is answered or given up.

    A mutation gets its request_id here, so that each time it is sent it is the same request. It is
    sent again while that is safe and the deadline has not passed, after a capped exponential
    back-off with jitter, or after as long as the platform says.
    """

    def __init__(self, place: Place, request: Message) -> None:
        self._place = place
        self.request_id = str(uuid.uuid4())
        field = request.DESCRIPTOR.fields_by_name.get("request_id")
        if field is not None:
            self.request_id = getattr(request, field.name) or self.request_id
            setattr(request, field.name, self.request_id)
        self._safe = field is not None or request.DESCRIPTOR.name.startswith(_READS)
        self.begin()

    def begin(self) -> None:
        """Count time and back-off from now: at the start, and where a stream has moved on."""
        self._began = time.monotonic()
        self._backoff = BACKOFF_SECONDS_FIRST

    @property
    def seconds(self) -> float:
        """What is left until the deadline."""
        return max(0.05, self._began + self._place.timeout - time.monotonic())

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Who calls, what he has seen already, and what operators find the call by."""
        found = [("x-request-id", self.request_id)]
        bearer = self._place.context.bearer()
        if bearer:
            found.append(("authorization", f"Bearer {bearer}"))
        newest = self._place.positions.newest()
        if newest:
            found.append(("fermion-after", ",".join(f"{name}={at}" for name, at in newest.items())))
        traceparent = os.environ.get("TRACEPARENT")
        if traceparent:
            found.append(("traceparent", traceparent))
        return tuple(found)

    def failed(self, error: grpc.RpcError) -> float:
        """Answer after how many seconds to send it again, or raise what it came to."""
        found = self.failure(error)
        delay = max(found.retry_seconds, self._backoff * random.uniform(0.5, 1.0))
        self._backoff = min(2 * self._backoff, BACKOFF_SECONDS_MAX)
        patience = self._place.timeout
        if found.reason == "SERVER_NOT_THERE" and not self._place.answered:
            patience = min(patience, ABSENT_SECONDS_MAX)
        late = time.monotonic() + delay > self._began + patience
        if late or not self._again(error.code(), found):
            if found.reason in ("READ_BEHIND", "READ_HALTED"):
                # What was seen may be of a platform that was restored or made anew since.
                self._place.positions.forget()
            raise found from error
        return delay

    def failure(self, error: grpc.RpcError) -> Error:
        """What it came to."""
        found = from_call(error, self._place.address, self.request_id)
        self._place.answered |= found.reason != "SERVER_NOT_THERE"
        return found

    def stood(self, since: float, initial: Iterable[tuple[str, str | bytes]] | None) -> None:
        """
        Begin anew where a stream that was asked for at `since` has broken after it had stood.

        It may have been silent for longer than a deadline is; what counts is how long it stays away.
        """
        if let_in(initial):
            self._place.answered = True
            if time.monotonic() - since > BACKOFF_SECONDS_MAX:
                self.begin()

    def _again(self, code: grpc.StatusCode, found: Error) -> bool:
        if found.reason == "TOO_MANY_RACES":
            return True
        if isinstance(found, Unavailable) and found.retry_seconds and code in _LATER:
            return True
        return self._safe and code in _UNCLEAR

    def succeeded(self, trailing: Iterable[tuple[str, str | bytes]]) -> None:
        """Remember the positions that were answered."""
        self._place.answered = True
        answered: dict[str, int] = {}
        for key, value in trailing:
            if key == "fermion-position":
                name, _, position = str(value).partition("=")
                answered[name] = int(position)
        self._place.positions.remember(answered)


def let_in(initial: Iterable[tuple[str, str | bytes]] | None) -> bool:
    """Whether a stream was let in: the platform says so at once, before anything is answered."""
    return any(key == "x-request-id" for key, _ in initial or ())
