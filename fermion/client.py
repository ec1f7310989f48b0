"""The client: one place that calls, sends the same request again, and reads its own writes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Generic, TypeVar

import grpc
from google.protobuf.message import Message

from fermion.billing import Costs, Prices
from fermion.call import CHANNEL_OPTIONS, Attempts, Place, let_in
from fermion.context import TIMEOUT_SECONDS, Positions, checked_timeout, resolve
from fermion.executor import Runtime
from fermion.instances import Instances
from fermion.journals import Journals
from fermion.projects import Clusters, Keys, Members, Projects, Quotas, Tokens, Users
from fermion.scheduler import Queue

Asked = TypeVar("Asked", bound=Message)
Answer = TypeVar("Answer", bound=Message)


class Line:
    """The way to one service."""

    def __init__(self, channel: grpc.Channel, place: Place) -> None:
        self.channel = channel
        self.place = place

    def ask(self, method: grpc.UnaryUnaryMultiCallable[Asked, Answer], request: Asked) -> Answer:
        """Make one call, sent again where that is safe; raises `fermion.errors.Error`."""
        attempts = Attempts(self.place, request)
        while True:
            try:
                answer, call = method.with_call(
                    request, timeout=attempts.seconds, metadata=attempts.metadata()
                )
            except grpc.RpcError as error:
                self.pause(attempts.failed(error))
                continue
            attempts.succeeded(call.trailing_metadata() or ())
            return answer

    def follow(
        self,
        method: grpc.UnaryStreamMultiCallable[Asked, Answer],
        request: Asked,
        go_on: Callable[[Asked, Answer], None],
        seconds: float | None = None,
    ) -> Generator[Answer, None, None]:
        """
        Read a stream until it ends; one that breaks is asked for again from where it was.

        `go_on` writes into the request where that is, after each answer. Where it has not ended
        after `seconds`, that is a `Timeout`.
        """
        attempts = Attempts(self.place, request)
        deadline = None if seconds is None else time.monotonic() + seconds
        while True:
            left = None if deadline is None else max(0.05, deadline - time.monotonic())
            since = time.monotonic()
            call = method(request, timeout=left, metadata=attempts.metadata())
            try:
                for answer in call:
                    self.place.answered = True
                    attempts.begin()
                    go_on(request, answer)
                    yield answer
                return
            except grpc.RpcError as error:
                attempts.stood(since, call.initial_metadata())
                delay = attempts.failed(error)
            finally:
                call.cancel()
            self.pause(delay)

    def exchange(
        self,
        method: grpc.StreamStreamMultiCallable[Asked, Answer],
        first: Asked,
        more: Iterator[Asked],
    ) -> Generator[Answer, None, None]:
        """
        Send and read at the same time: `first`, and `more` from when the call was let in.

        What was not let in, so that nothing was done, is sent again as long as the platform says so;
        what has begun is never begun anew. Left early, it is cancelled. `more` is drawn from in
        another thread.
        """
        attempts = Attempts(self.place, first)
        while True:
            requests = _Requests(first, more)
            call = method(requests.each(), metadata=attempts.metadata())
            try:
                requests.open = let_in(call.initial_metadata())
                requests.decided.set()
                yield from call
                attempts.succeeded(call.trailing_metadata() or ())
                return
            except grpc.RpcError as error:
                if requests.open:
                    raise attempts.failure(error) from error
                delay = attempts.failed(error)
            finally:
                requests.decided.set()
                call.cancel()
            self.pause(delay)

    def pause(self, seconds: float) -> None:
        """Wait."""
        time.sleep(seconds)


@dataclass
class _Requests(Generic[Asked]):
    """What one call sends: the first at once, and none of the others unless it was let in."""

    first: Asked
    more: Iterator[Asked]
    open: bool = False
    decided: threading.Event = field(default_factory=threading.Event)

    def each(self) -> Generator[Asked, None, None]:
        """In order."""
        yield self.first
        self.decided.wait()
        if self.open:
            yield from self.more


class Client:
    """
    Calls one platform as one user.

    Without arguments it uses the current context of the command line; `FERMION_CONTEXT`,
    `FERMION_ADDRESS` and `FERMION_TOKEN` say otherwise. Mutations carry a request_id, so they are
    sent again where an answer is lost, for `timeout` seconds in all; what this client wrote it
    also reads. Raises `fermion.errors.Error` and its kinds. Threads may share it.
    """

    def __init__(
        self,
        *,
        context: str = "",
        address: str = "",
        token: str = "",
        timeout: float = TIMEOUT_SECONDS,
        positions: Positions | None = None,
    ) -> None:
        self.context = resolve(context, address, token)
        self.timeout = checked_timeout("timeout", timeout)
        self._positions = positions or Positions()
        self._channels: dict[str, grpc.Channel] = {}
        self._lines: dict[str, Line] = {}
        self.instances = Instances(self.line("instances"))
        self.projects = Projects(self.line("projects"))
        self.members = Members(self.line("projects"))
        self.users = Users(self.line("projects"))
        self.tokens = Tokens(self.line("projects"))
        self.keys = Keys(self.line("projects"))
        self.quotas = Quotas(self.line("projects"))
        self.clusters = Clusters(self.line("projects"))
        self.queue = Queue(self.line("scheduler"))
        self.costs = Costs(self.line("billing"))
        self.prices = Prices(self.line("billing"))
        self.runtime = Runtime(self.line("executor"))
        self.journals = Journals(self.line)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        for channel in self._channels.values():
            channel.close()

    def line(self, service: str) -> Line:
        """The way to a service; services at one address share a connection."""
        if service not in self._lines:
            place = Place(service, self.context, self._positions, self.timeout)
            if place.target not in self._channels:
                self._channels[place.target] = grpc.insecure_channel(place.target, CHANNEL_OPTIONS)
            self._lines[service] = Line(self._channels[place.target], place)
        return self._lines[service]
