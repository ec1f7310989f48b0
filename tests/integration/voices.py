"""Services that say what a test tells them to, in journals of their own, for whoever reads them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from google.protobuf.message import Message

from chassis.envelope import NO_PROJECT, Meta, Registry
from chassis.journal import Book, Command, Journal, Place
from chassis.postgres import Database
from chassis.queries import Queries
from chassis.service import Kernel, Mount, Target, Wired
from chassis.store import PostgresJournal
from fermion.api.billing.v1 import events_pb2 as billing_events
from fermion.api.projects import v1 as projects
from fermion.api.projects.v1 import events_pb2 as project_events
from fermion.api.workload.v1 import events_pb2 as workload_events
from tests.servers import CLUSTER

# Rows that nobody writes; every service has some.
FOLDER = Path(__file__).parents[1] / "sample"


@dataclass(frozen=True, slots=True)
class NoSettings:
    """Nothing may be set."""


class Voice:
    """Stands where a service is, decides nothing, and says what it is told to, also to who asks."""

    def __init__(
        self,
        name: str,
        shard: str | None = None,
        servicers: tuple[Mount, ...] = (),
        placed: Callable[[Message], Place] | None = None,
    ) -> None:
        self.name = name
        self._servicers = servicers
        self._journal: Journal | None = None
        self.target = Target(
            name=name,
            folder=FOLDER,
            events=(workload_events.DESCRIPTOR, billing_events.DESCRIPTOR),
            reads=(),
            settings=NoSettings,
            book=Book(placed or place, lambda _: ()),
            wire=self._wire,
            shard=None if shard is None else lambda _: shard,
        )

    async def say(self, *facts: Message) -> int:
        """Commit facts, each after the one before; the position of the last."""
        position = 0
        for fact in facts:
            command = Command((fact,), Meta(f"service:{self.name}"))
            position = (await self.journal.append(command)).position
        return position

    @property
    def journal(self) -> Journal:
        """What it has said."""
        assert self._journal is not None, f"{self.name} does not run"
        return self._journal

    def _wire(self, kernel: Kernel[NoSettings]) -> Wired:
        self._journal = kernel.journal
        return Wired(servicers=self._servicers)


def place(fact: Message) -> Place:
    """Where a fact stands as far as its readers care: in its project."""
    for holder in ("workload", "subject", "volume"):
        found = getattr(fact, holder, None)
        if isinstance(found, Message):
            return Place(f"said/{fact.DESCRIPTOR.name}", getattr(found, "project", NO_PROJECT))
    return Place(f"said/{fact.DESCRIPTOR.name}", getattr(fact, "project", NO_PROJECT))


async def enrol(dsn: str) -> None:
    """State in the projects journal that the cluster of these tests is enrolled."""
    database = Database(dsn, "projects")
    await database.open(pool_size=1)
    journal = PostgresJournal(
        database,
        registry=Registry.of((project_events.DESCRIPTOR,)),
        book=Book(lambda _: Place(f"cluster/{CLUSTER}"), lambda _: ()),
        queries=Queries({}),
    )
    await journal.open()
    committer = asyncio.create_task(journal.run(), name="enrolment")
    try:
        enrolled = projects.ClusterEnrolled(cluster=CLUSTER, journal=f"executor/{CLUSTER}")
        await journal.append(Command((enrolled,), Meta("test")))
    finally:
        committer.cancel()
        with suppress(asyncio.CancelledError):
            await committer
        await database.close()
