"""The standing audit holds at rest, and sees each fault that is planted."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest

from chassis import audit as audits
from chassis import store
from chassis.audit import audit
from chassis.readers import Reader
from tests.sample import (
    Answers,
    Gate,
    Service,
    asked,
    beside,
    reached,
    reading,
    serving,
    until,
)
from tests.servers import NatsServer

JOURNAL = "other/0"


@dataclass(slots=True)
class Scene:
    """Two services at rest: what was asked is answered, and all of it is published."""

    other: Service
    sample: Service
    reader: Reader

    async def faults(self) -> list[str]:
        """What does not hold, of both services."""
        checks = [
            *await audit(self.other.journal, self.other.database, self.other.bus),
            *await audit(
                self.sample.journal, self.sample.database, self.sample.bus, [self.reader.feed]
            ),
        ]
        assert len(checks) > 20
        return [f"{one.name} ({one.left}, {one.right})" for one in checks if not one.holds]


@asynccontextmanager
async def at_rest(
    database: str, nats_server: NatsServer, *, relayed: bool = True
) -> AsyncIterator[Scene]:
    async with serving(database, nats_server, "other") as other:
        await other.say(*(asked(f"inst_{uid}", attempt) for attempt in (1, 2) for uid in range(30)))
        await other.say(beside("inst_1"), asked("inst_2", 3, "beta"))
        await until(lambda: other.relay.position == 62, "all is published")
    async with (
        serving(database, nats_server, "other", relayed=relayed) as other,
        serving(database, nats_server, "sample") as sample,
        reading(sample, Answers(), Gate(other.journal), sample.bus) as reader,
    ):
        await reached(reader, other)
        assert await other.bus.wait_ready(5)
        yield Scene(other, sample, reader)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audits, "CAUGHT_UP_SECONDS", 0.3)
    monkeypatch.setattr(audits, "WAIT_SECONDS", 0.3)


async def test_all_holds_at_rest(database: str, nats_server: NatsServer) -> None:
    async with at_rest(database, nats_server) as scene:
        await until(lambda: scene.sample.relay.position >= 61, "the answers are published")
        assert await scene.faults() == []


async def test_all_holds_where_facts_are_so_large_that_pages_are_short(
    database: str, nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "PAGE_BYTES_MAX", 100)
    async with at_rest(database, nats_server) as scene:
        assert len((await scene.other.journal.read(0, 100)).records) < 10
        await until(lambda: scene.sample.relay.position >= 61, "the answers are published")
        assert await scene.faults() == []


async def test_all_holds_while_facts_come_in(database: str, nats_server: NatsServer) -> None:
    async with at_rest(database, nats_server) as scene:
        for number in range(20):
            await scene.other.say(*(asked(f"more_{number}", attempt) for attempt in range(1, 60)))
            faults = await scene.faults()
            assert [one for one in faults if "has all that was committed" not in one] == []


async def test_a_journal_without_facts_is_whole(database: str, nats_server: NatsServer) -> None:
    async with serving(database, nats_server, "other") as other:
        assert await other.bus.wait_ready(5)
        await until(lambda: other.relay.position == 0, "there is a stream")
        checks = await audit(other.journal, other.database, other.bus)
        assert checks
        assert [one.name for one in checks if not one.holds] == []


@pytest.mark.parametrize(
    ("fault", "seen"),
    [
        ("DELETE FROM event WHERE position = 17", "head = number of facts"),
        ("DELETE FROM event WHERE position = 62", "head = greatest position"),
        ("UPDATE event SET position = 63 WHERE position = 62", "head = greatest position"),
        ("UPDATE event SET position = 0 WHERE position = 1", "positions begin at 1"),
        ("UPDATE event SET position = 100 WHERE position = 9", "head = greatest position"),
        (
            "DROP INDEX event_stream; UPDATE event SET version = 2 WHERE position = 1",
            "versions of all",
        ),
        ("UPDATE event SET version = 3 WHERE position = 31", "versions of all"),
        ("UPDATE stream_head SET version = 7 WHERE stream = 'instance/inst_4'", "versions of all"),
        ("DELETE FROM stream_head WHERE stream = 'instance/inst_4'", "versions of all"),
        ("INSERT INTO stream_head VALUES ('0', 'instance/none', 1)", "versions of all"),
        (
            "DROP INDEX event_project; UPDATE event SET project_position = 3 WHERE position = 2",
            "positions of all",
        ),
        ("UPDATE project_head SET position = 2 WHERE project = 'beta'", "positions of all"),
        ("UPDATE head SET position = 63", "head = number of facts"),
        (
            "INSERT INTO command VALUES ('0', 'acme', 'm', 'r', '', 'instance/inst_4', 1, 63, now())",
            "requests that point past",
        ),
        (
            "INSERT INTO command VALUES ('0', 'acme', 'm', 'r', '', 'instance/inst_4', 9, 1, now())",
            "requests that point past",
        ),
        ("INSERT INTO statement VALUES ('0', gen_random_uuid())", "facts that state"),
        ("UPDATE event SET statement = gen_random_uuid() WHERE position = 5", "facts that state"),
        ("UPDATE event SET data = '' WHERE position = 5", "unlike the log's"),
        ("UPDATE event SET stream = 'instance/inst_x' WHERE position = 5", "unlike the log's"),
    ],
)
async def test_a_fault_in_the_log_is_seen(
    database: str, nats_server: NatsServer, fault: str, seen: str
) -> None:
    async with at_rest(database, nats_server, relayed=False) as scene:
        await scene.other.database.execute(fault)
        assert [one for one in await scene.faults() if one.startswith("other/0") and seen in one]


@pytest.mark.parametrize(
    ("fault", "seen"),
    [
        ("UPDATE checkpoint SET position = 61", "= checkpoint"),
        ("UPDATE checkpoint SET folded = folded - 1", "= checkpoint"),
        ("UPDATE checkpoint SET position = 63, folded = folded + 1", "not ahead of the log"),
        ("UPDATE checkpoint SET halted = 'why'", "halted"),
        (
            "INSERT INTO parked VALUES"
            " ('sample/other', 'other/0', 4, 'instance/x', '_', 'T', 'R', '', now())",
            "= checkpoint",
        ),
    ],
)
async def test_a_fault_in_a_readers_counts_is_seen(
    database: str, nats_server: NatsServer, fault: str, seen: str
) -> None:
    async with at_rest(database, nats_server) as scene:
        await scene.sample.database.execute(fault)
        assert [one for one in await scene.faults() if one.startswith("sample/") and seen in one]


async def test_a_stream_that_was_deleted_is_seen(database: str, nats_server: NatsServer) -> None:
    async with at_rest(database, nats_server, relayed=False) as scene:
        await scene.other.bus.delete_stream(JOURNAL)
        assert await scene.faults() == ["other/0: there is a stream (False, True)"]


async def test_a_stream_that_was_cut_short_is_seen(database: str, nats_server: NatsServer) -> None:
    async with at_rest(database, nats_server, relayed=False) as scene:
        page = await scene.other.journal.records(0, 40)
        await scene.other.bus.delete_stream(JOURNAL)
        await scene.other.bus.create_stream(JOURNAL, 1)
        await scene.other.bus.publish(page.records, 0)
        assert await scene.faults() == [
            "other/0: the stream has all that was committed (False, True)"
        ]


async def test_a_stream_that_begins_late_and_is_whole_from_there_holds(
    database: str, nats_server: NatsServer
) -> None:
    async with at_rest(database, nats_server, relayed=False) as scene:
        page = await scene.other.journal.records(40, 40)
        await scene.other.bus.delete_stream(JOURNAL)
        await scene.other.bus.create_stream(JOURNAL, 41)
        await scene.other.bus.publish(page.records, 40)
        assert await scene.faults() == []


async def test_a_stream_that_says_something_else_is_seen(
    database: str, nats_server: NatsServer
) -> None:
    async with at_rest(database, nats_server, relayed=False) as scene:
        page = await scene.other.journal.records(0, 100)
        page.records[29].data = asked("inst_else").SerializeToString()
        await scene.other.bus.delete_stream(JOURNAL)
        await scene.other.bus.create_stream(JOURNAL, 1)
        await scene.other.bus.publish(page.records, 0)
        assert await scene.faults() == ["other/0: facts of the stream unlike the log's (1, 0)"]


async def test_a_stream_that_knows_more_than_the_log_is_seen(
    database: str, nats_server: NatsServer
) -> None:
    async with at_rest(database, nats_server, relayed=False) as scene:
        page = await scene.other.journal.records(0, 100)
        page.records[-1].position = 63
        await scene.other.bus.publish(page.records[-1:], 62)
        fault = "other/0: the stream has nothing that the log has not (False, True)"
        assert fault in await scene.faults()


async def test_a_message_that_is_no_fact_is_seen(database: str, nats_server: NatsServer) -> None:
    async with at_rest(database, nats_server, relayed=False) as scene:
        page = await scene.other.journal.records(0, 100)
        await scene.other.bus.delete_stream(JOURNAL)
        await scene.other.bus.create_stream(JOURNAL, 2)
        # Each one stands a place behind its own.
        client = scene.other.bus._client
        for fact in page.records:
            await client.publish("fermion.other.0.acme.Any", fact.data)
        await client.flush()
        faults = [one for one in await scene.faults() if one.startswith("other/0")]
        assert [one for one in faults if "can be read" in one]


async def test_an_owner_that_is_away_is_said(database: str, nats_server: NatsServer) -> None:
    async with at_rest(database, nats_server) as scene:
        log = Gate(scene.other, away=True)
        scene.reader.feed._log = log
        faults = await scene.faults()
        assert [one for one in faults if "its journal can be read" in one]
