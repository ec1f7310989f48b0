"""The client of asyncio: calls, sends the same request again, and reads its own writes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Generic, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import Message

from fermion.aio.billing import Costs, Prices
from fermion.aio.executor import Runtime
from fermion.aio.instances import Instances
from fermion.aio.journals import Journals
from fermion.aio.projects import Clusters, Keys, Members, Projects, Quotas, Tokens, Users
from fermion.aio.scheduler import Queue
from fermion.call import CHANNEL_OPTIONS, Attempts, Place, let_in
from fermion.context import TIMEOUT_SECONDS, Positions, checked_timeout, resolve

Asked = TypeVar("Asked", bound=Message)
Answer = TypeVar("Answer", bound=Message)


class AsyncLine:
    """The way to one service."""

    def __init__(self, channel: grpc.aio.Channel, place: Place) -> None:
        self.channel = channel
        self.place = place

    async def ask(
        self, method: grpc.aio.UnaryUnaryMultiCallable[Asked, Answer], request: Asked
    ) -> Answer:
        """Make one call, sent again where that is safe; raises `fermion.errors.Error`."""
        attempts = Attempts(self.place, request)
        while True:
            call = method(request, timeout=attempts.seconds, metadata=attempts.metadata())
            try:
                answer = await call
            except grpc.RpcError as error:
                await self.pause(attempts.failed(error))
                continue
            attempts.succeeded(await call.trailing_metadata() or ())
            return answer

    async def follow(
        self,
        method: grpc.aio.UnaryStreamMultiCallable[Asked, Answer],
        request: Asked,
        go_on: Callable[[Asked, Answer], None],
        seconds: float | None = None,
    ) -> AsyncGenerator[Answer, None]:
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
                async for answer in call:
                    self.place.answered = True
                    attempts.begin()
                    go_on(request, answer)
                    yield answer
                return
            except grpc.RpcError as error:
                attempts.stood(since, await call.initial_metadata())
                delay = attempts.failed(error)
            finally:
                call.cancel()
            await self.pause(delay)

    async def exchange(
        self,
        method: grpc.aio.StreamStreamMultiCallable[Asked, Answer],
        first: Asked,
        more: AsyncIterator[Asked],
    ) -> AsyncGenerator[Answer, None]:
        """
        Send and read at the same time: `first`, and `more` from when the call was let in.

        What was not let in, so that nothing was done, is sent again as long as the platform says so;
        what has begun is never begun anew. Left early, it is cancelled.
        """
        attempts = Attempts(self.place, first)
        while True:
            requests = _Requests(first, more)
            call = method(requests.each(), metadata=attempts.metadata())
            try:
                requests.open = let_in(await call.initial_metadata())
                requests.decided.set()
                async for answer in call:
                    yield answer
                attempts.succeeded(await call.trailing_metadata() or ())
                return
            except grpc.RpcError as error:
                if requests.open:
                    raise attempts.failure(error) from error
                delay = attempts.failed(error)
            finally:
                requests.decided.set()
                call.cancel()
            await self.pause(delay)

    async def pause(self, seconds: float) -> None:
        """Wait."""
        await asyncio.sleep(seconds)


@dataclass
class _Requests(Generic[Asked]):
    """What one call sends: the first at once, and none of the others unless it was let in."""

    first: Asked
    more: AsyncIterator[Asked]
    open: bool = False
    decided: asyncio.Event = field(default_factory=asyncio.Event)

    async def each(self) -> AsyncGenerator[Asked, None]:
        """In order."""
        yield self.first
        await self.decided.wait()
        if self.open:
            async for request in self.more:
                yield request


class AsyncClient:
    """
    Calls one platform as one user, from within one event loop.

    Without arguments it uses the current context of the command line; `FERMION_CONTEXT`,
    `FERMION_ADDRESS` and `FERMION_TOKEN` say otherwise. Mutations carry a request_id, so they are
    sent again where an answer is lost, for `timeout` seconds in all; what this client wrote it
    also reads. Raises `fermion.errors.Error` and its kinds.
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
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._lines: dict[str, AsyncLine] = {}
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

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        for channel in self._channels.values():
            await channel.close()

    def line(self, service: str) -> AsyncLine:
        """The way to a service; services at one address share a connection."""
        if service not in self._lines:
            place = Place(service, self.context, self._positions, self.timeout)
            if place.target not in self._channels:
                self._channels[place.target] = grpc.aio.insecure_channel(
                    place.target, CHANNEL_OPTIONS
                )
            self._lines[service] = AsyncLine(self._channels[place.target], place)
        return self._lines[service]
