"""What a long history costs the platform that has it: memory, and how long it takes to start."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import grpc
from google.protobuf.message import Message

from chassis import ids
from chassis.embedded import Postgres
from chassis.envelope import Meta, Registry
from chassis.journal import Command
from chassis.postgres import Database
from chassis.process import with_operations
from chassis.queries import Queries
from chassis.store import PostgresJournal
from fermion.api.journal.v1.service_pb2 import GetJournalRequest
from fermion.api.journal.v1.service_pb2_grpc import JournalServiceStub
from fermion.api.projects import v1 as api
from fermion.cli.operate import readings
from services.projects.wiring import TARGET
from tests.bench.row import Row
from tests.bench.start import memory
from tests.sample import running
from tests.stage import Stage, staged, until

FACTS: Final = 1_000_000
PROJECTS: Final = 500
AT_ONCE: Final = 100
CALLERS: Final = 16
META: Final = Meta("user_bench")
PAST_SECONDS_MAX: Final = 900


def rounds(folder: Path) -> list[Row]:
    """
    Measure a platform with some projects, and the same when these have a million facts.

    They are of the journal that every process folds to know who may do what.
    """
    with staged(folder / "home") as stage:
        asyncio.run(_say(stage, [*_projects()]))
        _settled(stage)
        rest = memory(stage)
        began = time.perf_counter()
        asyncio.run(_say(stage, _members()))
        _settled(stage)
        spent = time.perf_counter() - began
        # What it is at rest with them, and not what reading them took.
        stage.down()
        began = time.perf_counter()
        stage.up()
        ready = time.perf_counter() - began
        _settled(stage)
        loaded = memory(stage)
    few = f"the same with {PROJECTS:,} facts, {rest:,.0f} MiB"
    return [
        Row("history memory", f"platform with {FACTS:,} facts", loaded, "MiB", few, loaded / rest),
        Row("history up", f"its start with {FACTS:,} facts", ready, "s"),
        Row("history through", "said, relayed, and read by all", FACTS / spent, "facts/s"),
    ]


def _projects() -> Iterator[Message]:
    for number in range(PROJECTS):
        name = f"x{number}"
        yield api.ProjectCreated(
            uid=ids.derived("proj", name), project=name, spec=api.Project(), creator_uid="user_root"
        )


def _members() -> Iterator[Message]:
    """Members come and go, in one project after the other."""
    for number in range(FACTS):
        name = f"x{number // AT_ONCE % PROJECTS}"
        uid, user = ids.derived("proj", name), f"user_{number // 2 % 20}"
        if number % 2 == 0:
            yield api.MemberSet(project_uid=uid, project=name, user_uid=user, role=api.ROLE_VIEWER)
        else:
            yield api.MemberRemoved(project_uid=uid, project=name, user_uid=user)


async def _say(stage: Stage, facts: Iterator[Message] | list[Message]) -> None:
    """Append them to the journal of a platform that runs, as its own service does."""
    database = Database(Postgres(stage.home / "postgres").dsn, TARGET.name)
    await database.open(pool_size=2)
    journal = PostgresJournal(
        database,
        registry=Registry.of(TARGET.events),
        book=with_operations(TARGET.book),
        queries=Queries.load(TARGET.folder / "queries.sql"),
    )
    left = iter(facts)

    async def call() -> None:
        while said := tuple(itertools.islice(left, AT_ONCE)):
            await journal.append(Command(said, META))

    try:
        await journal.open()
        async with running(journal.run()), asyncio.TaskGroup() as group:
            for number in range(CALLERS):
                group.create_task(call(), name=f"caller {number}")
    finally:
        await database.close()


def _settled(stage: Stage) -> None:
    """Wait until every stream and every reader has all that there is."""
    metadata = (("authorization", f"Bearer {stage.token}"),)
    with grpc.insecure_channel(stage.address) as channel:
        stub = JournalServiceStub(channel)

        def late() -> list[str]:
            found = stub.GetJournal(GetJournalRequest(), metadata=metadata).journals
            relays = [one.journal for one in found if one.published < one.head]
            return relays + [one.progress.reader for one in readings(found) if one.behind]

        until(PAST_SECONDS_MAX, lambda: not late(), lambda: f"{late()} did not catch up")
