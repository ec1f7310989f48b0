"""What other services are asked: their old facts, by ReadLog or from here, and what they tell."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import grpc.aio

from chassis import listening
from chassis.config import wrong
from chassis.envelope import Registry, from_record
from chassis.journal import PAGE_BYTES_MAX, Journal, Page
from chassis.refusals import Unavailable
from fermion.api.journal import v1 as api
from fermion.api.journal.v1 import service_pb2_grpc

Asked = TypeVar("Asked")
Answer = TypeVar("Answer")

READ_SECONDS_MAX = 10.0
CHANNEL_OPTIONS = (
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # A process that is stopped says nothing; it is given up for another one after both of these.
    ("grpc.keepalive_time_ms", 5_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),
)


def channel_to(variable: str, addresses: str) -> grpc.aio.Channel:
    """
    Reach the processes of a service: one address, or several that are tried in turn.

    `Invalid` (SETTING_INVALID) where they are no addresses: `host:port`, or several `ip:port` of
    one family, separated by commas.
    """
    hosts = [listening.split(variable, part)[0] for part in addresses.split(",")]
    if len(hosts) == 1:
        return grpc.aio.insecure_channel(addresses, CHANNEL_OPTIONS)
    families = {_family(host) for host in hosts}
    if families not in ({4}, {6}):
        rule = "must be host:port, or several ip:port of one family, separated by commas"
        raise wrong(variable, addresses, rule)
    return grpc.aio.insecure_channel(f"ipv{families.pop()}:{addresses}", CHANNEL_OPTIONS)


def _family(host: str) -> int:
    """4 or 6 for a number, 0 for a name, which gRPC looks up, but only one at a time."""
    try:
        return ipaddress.ip_address(host).version
    except ValueError:
        return 0


@dataclass(frozen=True, slots=True)
class Peer:
    """Another service, asked with a SERVICE token: such a caller reads anywhere and writes nowhere."""

    service: str
    channel: grpc.aio.Channel
    token: Callable[[], str]

    async def ask(
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[Asked, Answer],
        request: Asked,
        seconds: float,
    ) -> Answer:
        """Ask, and wait for so long; `Unavailable` (PEER_UNANSWERED) where nothing can be had."""
        metadata = (("authorization", f"Bearer {self.token()}"),)
        try:
            return await method(request, metadata=metadata, timeout=seconds)
        except grpc.aio.AioRpcError as error:
            raise Unavailable(
                "PEER_UNANSWERED",
                f"{self.service} does not answer: {error.code().name} {error.details()}",
                service=self.service,
            ) from error


class LocalLog:
    """One's own journal."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    async def read(self, after: int, limit: int) -> Page:
        """Read facts after a position."""
        return await self._journal.read(after, limit)

    async def grown(self, past: int, seconds: float) -> None:
        """Return when there is more than up to a position, or after so many seconds."""
        await self._journal.grown(past, seconds)


class RemoteLog:
    """Another service's journal, read with a SERVICE token."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        journal: str,
        token: Callable[[], str],
        registry: Registry,
    ) -> None:
        self._stub = service_pb2_grpc.JournalServiceStub(channel)
        self._journal = journal
        self._token = token
        self._registry = registry

    async def read(self, after: int, limit: int) -> Page:
        """
        Read facts after a position; `Unavailable` (LOG_UNAVAILABLE) where the owner is away.

        The owner sends as many as were asked for; where they are large, no more of them are taken
        than a page holds.
        """
        request = api.ReadLogRequest(journal=self._journal, after=after, limit=limit)
        metadata = (("authorization", f"Bearer {self._token()}"),)
        records: list[api.Record] = []
        head = epoch = size = 0
        first = 1
        call = self._stub.ReadLog(request, metadata=metadata, timeout=READ_SECONDS_MAX)
        try:
            async for page in call:
                records.extend(page.records)
                head, epoch = page.head, page.epoch
                first = page.epoch_first_position or 1
                size += page.ByteSize()
                if size >= PAGE_BYTES_MAX:
                    call.cancel()
                    break
        except grpc.aio.AioRpcError as error:
            raise Unavailable(
                "LOG_UNAVAILABLE",
                f"The owner of {self._journal} does not answer ReadLog: "
                f"{error.code().name} {error.details()}",
                journal=self._journal,
            ) from error
        if epoch == 0:
            # A call that ends without a page has told nothing, least of all that nothing is there.
            raise Unavailable(
                "LOG_UNAVAILABLE",
                f"The owner of {self._journal} answered ReadLog with nothing.",
                journal=self._journal,
            )
        return Page(
            tuple(from_record(record, self._registry) for record in records), head, epoch, first
        )

    async def grown(self, past: int, seconds: float) -> None:
        """Return after so many seconds: the owner tells of growth by JetStream only."""
        del past
        await asyncio.sleep(seconds)
