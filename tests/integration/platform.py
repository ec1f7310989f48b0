"""All services in one process of the test, on a real port, with real PostgreSQL and NATS behind."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import grpc.aio
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from chassis.embedded import Home, Keys, free_port
from chassis.process import Process
from chassis.service import Target
from fermion.api.journal import v1 as journal
from fermion.api.journal.v1.service_pb2_grpc import JournalServiceStub
from fermion.api.projects import v1 as projects
from fermion.api.projects.v1.service_pb2_grpc import UserServiceStub
from services.serve import TARGETS
from tests.servers import NatsServer

# Longer than anything here should take; a test that gets there has failed.
SECONDS_MAX = 60.0

Found = TypeVar("Found")
In = TypeVar("In")
Out = TypeVar("Out")


@dataclass(frozen=True, slots=True)
class Refusal:
    """What a caller hears: code, reason, arguments, and the fields that were wrong."""

    code: str
    reason: str
    arguments: Mapping[str, str]
    fields: tuple[str, ...]


@dataclass(slots=True)
class Platform:
    """A platform that runs, and its first admin's way to call it."""

    process: Process
    channel: grpc.aio.Channel
    token: str
    admin_uid: str
    home: Home
    # What was seen last, by journal: sent back, so that each call reads the writes before it.
    seen: dict[str, str] = field(default_factory=dict)

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Who calls, and what he has seen already."""
        after = ",".join(f"{journal}={position}" for journal, position in self.seen.items())
        token = ("authorization", f"Bearer {self.token}")
        return (token, ("fermion-after", after)) if after else (token,)

    async def call(self, method: grpc.aio.UnaryUnaryMultiCallable[In, Out], request: In) -> Out:
        """Call an RPC as the admin, and remember the position that it answers."""
        call = method(request, metadata=self.metadata, timeout=SECONDS_MAX)
        answer = await call
        for key, value in await call.trailing_metadata():
            if key == "fermion-position":
                journal, _, position = str(value).partition("=")
                self.seen[journal] = position
        return answer

    async def knows_its_admin(self) -> bool:
        """Whether the process has read who may do what."""
        try:
            await self.call(UserServiceStub(self.channel).WhoAmI, projects.WhoAmIRequest())
        except grpc.aio.AioRpcError as error:
            if told(error).reason != "CALLERS_BEHIND":
                raise
            return False
        return True

    async def figure(self, name: str, **labels: str) -> float | None:
        """A figure as the process shows it now; None where it does not."""
        stub = JournalServiceStub(self.channel)
        found = (await self.call(stub.GetJournal, journal.GetJournalRequest())).figures
        values = [
            one.value_milli / 1000 for one in found if (one.name, one.labels) == (name, labels)
        ]
        assert len(values) <= 1, (name, labels, values)
        return values[0] if values else None

    async def figure_is(
        self, holds: Callable[[float], bool], name: str, **labels: str
    ) -> float | None:
        """Wait until a figure is like that."""
        return await until(
            lambda: self.figure(name, **labels),
            lambda value: value is not None and holds(value),
            f"{name} {labels}",
        )

    async def refusal(
        self, method: grpc.aio.UnaryUnaryMultiCallable[In, Out], request: In
    ) -> Refusal:
        """Call an RPC that has to be refused, and read why."""
        try:
            answer = await self.call(method, request)
        except grpc.aio.AioRpcError as error:
            return told(error)
        raise AssertionError(f"was not refused: {answer}")


def told(error: grpc.aio.AioRpcError) -> Refusal:
    """Read the details of a refusal."""
    status = rpc_status.from_call(error)
    assert status is not None, error
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    for detail in status.details:
        detail.Unpack(info)
        detail.Unpack(bad)
    fields = tuple(found.field for found in bad.field_violations)
    return Refusal(error.code().name, info.reason, dict(info.metadata), fields)


async def until(
    read: Callable[[], Awaitable[Found]], holds: Callable[[Found], object], what: str
) -> Found:
    """Read until a condition holds; fails with the last answer where it does not in time."""
    deadline = time.monotonic() + SECONDS_MAX
    while True:
        found = await read()
        if holds(found):
            return found
        assert time.monotonic() < deadline, f"{what}: {found}"
        await asyncio.sleep(0.02)


@asynccontextmanager
async def running(
    dsn: str,
    nats: NatsServer,
    folder: Path,
    *,
    services: Sequence[str] = (),
    targets: Mapping[str, Target] = TARGETS,
    **settings: str,
) -> AsyncIterator[Platform]:
    """Start services, all of them unless some are named, and stop them at the end."""
    home = Home(folder)
    home.prepare()
    keys = Keys.prepare(home, tuple(targets))
    port = free_port()
    environment = {
        "FERMION_POSTGRES_DSN": dsn,
        "FERMION_NATS_URL": nats.url,
        "FERMION_NATS_KEYS": str(nats.keys),
        "FERMION_LISTEN": f"127.0.0.1:{port}",
        "FERMION_ADDRESS": f"127.0.0.1:{port}",
        "FERMION_PUBLIC_KEYS": str(home.path("keys", "jwks.json")),
        "FERMION_SIGNING_KEY": str(home.path("keys", "signing.jwk")),
        "FERMION_SERVICE_TOKENS": str(home.path("keys", "tokens")),
        "FERMION_ADMIN": keys.admin_uid,
        **settings,
    }
    # An executor needs a cluster of its own: who wants one names it, and says where it is.
    whole = targets is not TARGETS
    chosen = services or tuple(name for name, one in targets.items() if whole or one.shard is None)
    process = Process(targets, chosen, environment)
    task = asyncio.create_task(process.run(), name="platform")
    ready = asyncio.create_task(process.ready.wait(), name="platform ready")
    await asyncio.wait({task, ready}, return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        ready.cancel()
        await task
    token = home.path("keys", "admin.token").read_text().strip()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{process.port}") as channel:
            platform = Platform(process, channel, token, keys.admin_uid, home)
            await until(platform.knows_its_admin, bool, "the admin was not known in time")
            yield platform
    finally:
        process.stopping.set()
        await task
