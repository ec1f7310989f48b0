"""A projects journal in memory with people in it, and a follower that knows them, for tests of the door."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from google.protobuf.message import Message

from chassis import ids
from chassis.callers import JOURNAL, Callers
from chassis.clock import SystemClock
from chassis.envelope import Meta, Recorded, Registry
from chassis.feed import Feed
from chassis.journal import Book, Command, Page, Place
from chassis.keys import SigningKey
from chassis.remote import LocalLog
from chassis.testing.memory import MemoryJournal
from fermion.api.projects import v1 as api
from fermion.api.projects.v1 import events_pb2

SECONDS_MAX = 10.0
REGISTRY = Registry.of((events_pb2.DESCRIPTOR,))
BOOK = Book(lambda fact: Place("test/one"), lambda record: ())


def uid(user: str) -> str:
    """The uid that a test's user of this name has."""
    return ids.derived("user", user)


def registered(user: str, *, admin: bool = False) -> list[Message]:
    """What is said when a user is registered."""
    facts: list[Message] = [api.UserRegistered(uid=uid(user), user=user)]
    if admin:
        facts.append(api.PlatformRoleSet(uid=uid(user), platform_role=api.PLATFORM_ROLE_ADMIN))
    return facts


def created(project: str) -> api.ProjectCreated:
    """What is said when a project is created."""
    return api.ProjectCreated(uid=ids.derived("proj", project), project=project)


def member(project: str, user: str, role: api.Role.ValueType) -> api.MemberSet:
    """What is said when a user gets a role."""
    return api.MemberSet(
        project_uid=ids.derived("proj", project), project=project, user_uid=uid(user), role=role
    )


@dataclass(slots=True)
class People:
    """The journal, the key that signs tokens, and who follows."""

    journal: MemoryJournal = field(
        default_factory=lambda: MemoryJournal(JOURNAL, registry=REGISTRY, book=BOOK)
    )
    key: SigningKey = field(default_factory=SigningKey.create)

    def callers(self) -> Callers:
        """A follower that has read nothing yet."""
        feed = Feed(JOURNAL, LocalLog(self.journal), None, REGISTRY)
        return Callers(feed, SystemClock(), [self.key.public])

    async def say(self, *facts: Message) -> int:
        """Append facts; the position that holds them."""
        return (await self.journal.append(Command(facts, Meta("test")))).position

    def token(
        self,
        subject: str,
        kind: str = "user",
        *,
        token_uid: str = "",
        lasts: timedelta = timedelta(hours=1),
        key: SigningKey | None = None,
    ) -> str:
        """An authorization header."""
        now = datetime.now(UTC)
        signed = (key or self.key).sign(
            subject=subject,
            kind=kind,
            uid=token_uid or ids.derived("tok", subject),
            issued_time=now,
            expire_time=now + lasts,
        )
        return f"Bearer {signed}"


@asynccontextmanager
async def followed(callers: Callers) -> AsyncIterator[None]:
    """Let a follower run, from when it has caught up."""
    task = asyncio.create_task(callers.run(), name="callers")
    try:
        async with asyncio.timeout(SECONDS_MAX):
            await callers.ready.wait()
        yield
    finally:
        task.cancel()
        await asyncio.wait((task,))


class RestoredLog:
    """A log that is restored to an earlier position, in another epoch, and slow to read then."""

    def __init__(self, people: People) -> None:
        self.records: tuple[Recorded, ...] = tuple(people.journal.log)
        self.epoch = 1
        self.back = asyncio.Event()
        self._reread = asyncio.Event()

    async def restore(self, position: int) -> None:
        """Forget what came after a position; returns when it is read anew, which ends with `back`."""
        self.epoch = 2
        self.records = tuple(record._replace(epoch=2) for record in self.records[:position])
        await self._reread.wait()

    async def read(self, after: int, limit: int) -> Page:
        if self.epoch > 1 and after == 0:
            self._reread.set()
            await self.back.wait()
        records = self.records[after : after + limit]
        return Page(records, len(self.records), self.epoch, 2 if self.epoch > 1 else 1)

    async def grown(self, past: int, seconds: float) -> None:
        await asyncio.sleep(0)
