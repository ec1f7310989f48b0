"""Readers: each fact accounted for exactly once, whatever is away and whoever else reads."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import grpc.aio
import pytest

from chassis import feed, readers, relay
from chassis.embedded import Nats
from chassis.envelope import Recorded, Registry
from chassis.journal import PAGE_BYTES_MAX, Page, Write
from chassis.lineage import accept
from chassis.log_service import Hosted, JournalServicer
from chassis.parking import resume
from chassis.readers import Reaction
from chassis.refusals import Refused
from chassis.remote import LocalLog, RemoteLog
from chassis.telemetry import Metrics
from fermion.api.instances import v1 as api
from fermion.api.journal.v1 import service_pb2_grpc
from tests.sample import (
    BOOK,
    META,
    QUERIES,
    REGISTRY,
    SECONDS_MAX,
    Answers,
    Gate,
    Service,
    Tallies,
    answered,
    asked,
    beside,
    reached,
    reading,
    restore,
    serving,
    until,
)
from tests.servers import NatsServer

JOURNAL = "other/0"


async def ask(service: Service, uids: int, attempts: int = 1, start: int = 1) -> None:
    """Ask of each uid so many times, in order, with something beside that nobody handles."""
    for attempt in range(start, start + attempts):
        await asyncio.gather(*(service.say(asked(f"inst_{uid}", attempt)) for uid in range(uids)))
        await service.say(beside("inst_beside"))


def answers(uids: int, attempts: int) -> list[api.InstanceStopped]:
    return [
        answered(f"inst_{uid}", attempt)
        for uid in range(uids)
        for attempt in range(1, attempts + 1)
    ]


async def assert_answered(sample: Service, uids: int, attempts: int) -> None:
    """Each ask was answered once, and those of one thing in order."""
    said = [one for one in await sample.facts() if isinstance(one, api.InstanceStopped)]
    assert sorted(said, key=lambda one: (one.uid, one.attempt)) == sorted(
        answers(uids, attempts), key=lambda one: (one.uid, one.attempt)
    )
    for uid in range(uids):
        order = [one.attempt for one in said if one.uid == f"inst_{uid}"]
        assert order == sorted(order)


async def test_each_fact_is_decided_on_once_and_all_are_counted(
    database: str, nats_server: NatsServer
) -> None:
    async with (
        serving(database, nats_server, "other") as other,
        serving(database, nats_server, "sample") as sample,
    ):
        await ask(other, 40, 2)
        async with reading(sample, Answers(), Gate(other.journal), sample.bus) as reader:
            await reached(reader, other)
            await ask(other, 40, 3, start=3)
            head = await reached(reader, other)
            assert reader.lag == 0
        await assert_answered(sample, 40, 5)
        row = await sample.checkpoint(reader)
        assert row["position"] == head
        assert (row["folded"], row["passed_over"], row["parked"], row["skipped"]) == (200, 5, 0, 0)


async def test_an_answer_names_its_cause_and_goes_on_with_its_trace(
    database: str, nats_server: NatsServer
) -> None:
    async with (
        serving(database, nats_server, "other") as other,
        serving(database, nats_server, "sample") as sample,
        reading(sample, Answers(), Gate(other.journal), sample.bus) as reader,
    ):
        await other.say(beside("inst_1"), asked("inst_1"), asked("inst_2"))
        await reached(reader, other)
        metas = [record.meta for record in (await sample.journal.read(0, 10)).records]
        assert [(meta.actor, meta.cause_journal, meta.cause_position) for meta in metas] == [
            ("service:sample", JOURNAL, 2),
            ("service:sample", JOURNAL, 3),
        ]
        assert {meta.traceparent for meta in metas} == {META.traceparent}


async def test_facts_that_touch_different_streams_commit_as_one(
    database: str, nats_server: NatsServer
) -> None:
    async with (
        serving(database, nats_server, "other") as other,
        serving(database, nats_server, "sample") as sample,
    ):
        await other.say(*(asked(f"inst_{uid}", attempt) for attempt in (1, 2) for uid in range(50)))
        async with reading(sample, Answers(), Gate(other.journal)) as reader:
            await reached(reader, other)
        batches = await sample.database.fetchval("SELECT count(DISTINCT batch) FROM event")
        assert batches == 2
        await assert_answered(sample, 50, 2)


async def test_facts_travel_by_the_stream_while_the_owners_log_cannot_be_read(
    database: str, nats_server: NatsServer
) -> None:
    async with (
        serving(database, nats_server, "other") as other,
        serving(database, nats_server, "sample") as sample,
    ):
        await ask(other, 10)
        gate = Gate(other.journal, away=True)
        async with reading(sample, Answers(), gate, sample.bus) as reader:
            await reached(reader, other)
            await ask(other, 10, start=2)
            await reached(reader, other)
        assert gate.asked > 0
        await assert_answered(sample, 10, 2)


class Cancels(Gate):
    """A log whose library lets a cancellation of its own out, once."""

    async def read(self, after: int, limit: int) -> Page:
        if self.away:
            self.away = False
            raise asyncio.CancelledError
        return await super().read(after, limit)


async def test_a_reader_goes_on_after_a_cancellation_that_nobody_asked_for(database: str) -> None:
    async with (
        serving(database, None, "other") as other,
        serving(database, None, "sample") as sample,
        reading(sample, Answers(), Cancels(other.journal, away=True)) as reader,
    ):
        await ask(other, 10)
        await reached(reader, other)
        await assert_answered(sample, 10, 1)


async def test_facts_travel_by_the_log_while_there_is_no_stream(database: str) -> None:
    async with (
        serving(database, None, "other") as other,
        serving(database, None, "sample") as sample,
        reading(sample, Answers(), Gate(other.journal), sample.bus) as reader,
    ):
        await ask(other, 10)
        await reached(reader, other)
        await ask(other, 10, start=2)
        await reached(reader, other)
        assert other.relay.position == -1
        await assert_answered(sample, 10, 2)


async def test_facts_travel_by_the_log_while_the_stream_is_silent(
    database: str, nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "SILENT_SECONDS", 0.2)
    async with serving(database, nats_server, "other") as other:
        await ask(other, 10)
        await until(lambda: other.relay.position == 11, "the stream has the first")
    async with (
        serving(database, nats_server, "other", relayed=False) as other,
        serving(database, nats_server, "sample") as sample,
        reading(sample, Answers(), Gate(other.journal), sample.bus) as reader,
    ):
        await reached(reader, other)
        for start in (2, 3, 4):
            await ask(other, 10, start=start)
            await reached(reader, other)
        await assert_answered(sample, 10, 4)


async def test_a_hole_is_waited_for_while_the_owner_is_away_and_never_skipped(
    database: str, nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "REFILL_MAX", 20)
    async with serving(database, None, "other", relayed=False) as other:
        await ask(other, 40)
    async with (
        serving(database, nats_server, "other") as other,
        serving(database, nats_server, "sample") as sample,
    ):
        await until(lambda: other.relay.position == 41, "the stream has the newest")
        gate = Gate(other.journal, away=True)
        async with reading(sample, Answers(), gate, sample.bus) as reader:
            await until(lambda: gate.asked >= 5, "the reader asks again and again")
            assert reader.position == 0
            assert await sample.facts() == []
            gate.away = False
            await reached(reader, other)
        await assert_answered(sample, 40, 1)


async def test_a_log_of_another_service_is_read_by_its_call(
    database: str, nats_server: NatsServer
) -> None:
    async with (
        serving(database, nats_server, "other") as other,
        serving(database, nats_server, "sample") as sample,
    ):
        # More facts than one page has, more bytes than it has, and more than gRPC takes at once.
        await asyncio.gather(
            *(other.say(asked(f"inst_{uid}{'x' * 20_000}")) for uid in range(1200)),
        )
        hosted = Hosted(
            other.journal,
            other.database,
            BOOK,
            QUERIES,
            Path(__file__).parent,
            other.bus,
            (),
        )
        server = grpc.aio.server()
        service_pb2_grpc.add_JournalServiceServicer_to_server(
            JournalServicer({JOURNAL: hosted}, Metrics()), server
        )
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                log = RemoteLog(channel, JOURNAL, lambda: "token", REGISTRY)
                page = await log.read(0, 1000)
                assert sum(len(fact.data) for fact in page.records) < 2 * PAGE_BYTES_MAX
                assert not page.ends
                async with reading(sample, Tallies(), log) as reader:
                    await reached(reader, other)
        finally:
            await server.stop(0)
        assert (await sample.checkpoint(reader))["folded"] == 1200


async def test_a_reader_that_is_stopped_anywhere_goes_on_where_it_was(
    database: str, nats_server: NatsServer
) -> None:
    async with (
        serving(database, nats_server, "other") as other,
        serving(database, nats_server, "sample") as sample,
    ):
        starts = done = 0
        asking = asyncio.create_task(ask(other, 60, 10))
        while not asking.done() or done < 610:
            async with reading(sample, Answers(), Gate(other.journal), sample.bus) as reader:
                starts += 1
                await reader.reached(min(40 * starts, 610), 20)
            done = (await sample.checkpoint(reader))["position"]
        await asking
        assert starts > 5
        await assert_answered(sample, 60, 10)


@pytest.mark.parametrize("consumer", [Answers, Tallies])
async def test_readers_that_all_believe_to_be_the_only_one_do_nothing_twice(
    database: str, nats_server: NatsServer, consumer: type[Answers] | type[Tallies]
) -> None:
    async with (
        serving(database, nats_server, "other") as other,
        serving(database, nats_server, "sample") as sample,
        reading(sample, consumer(), Gate(other.journal), sample.bus, lease="one") as one,
        reading(sample, consumer(), Gate(other.journal), sample.bus, lease="two") as two,
    ):
        for start in range(1, 11):
            await ask(other, 20, start=start)
        for reader in (one, two):
            await reached(reader, other)
        row = await sample.checkpoint(one)
        assert (row["folded"], row["passed_over"]) == (200, 10)
        if consumer is Answers:
            await assert_answered(sample, 20, 10)
        else:
            assert await tally(sample) == {f"inst_{uid}": 10 for uid in range(20)}


class Telling(Tallies):
    """Tells when it hears that its rows are there."""

    def __init__(self) -> None:
        super().__init__()
        self.told = asyncio.Event()

    def written(self) -> None:
        self.told.set()


async def test_who_works_by_folded_rows_is_told_as_soon_as_they_are_there(database: str) -> None:
    folder = Telling()
    async with (
        serving(database, None, "other") as other,
        serving(database, None, "sample") as sample,
        reading(sample, folder, Gate(other.journal)),
    ):
        for number in range(20):
            folder.told.clear()
            await other.say(asked(f"inst_{number}"))
            async with asyncio.timeout(SECONDS_MAX):
                await folder.told.wait()
            assert f"inst_{number}" in await tally(sample)


async def test_what_the_next_facts_write_is_worked_out_while_those_before_them_are_committed(
    database: str,
) -> None:
    asked_to_write: list[int] = []

    class Telling(Tallies):
        def write(self, facts: Sequence[Recorded]) -> Sequence[Write]:
            asked_to_write.extend(fact.position for fact in facts)
            return super().write(facts)

    async with (
        serving(database, None, "other") as other,
        serving(database, None, "sample") as sample,
        reading(sample, Telling(), Gate(other.journal)) as reader,
    ):
        await other.say(asked("a"))
        await reached(reader, other)
        async with sample.database.connection() as connection, connection.transaction():
            await connection.execute("SELECT FROM checkpoint FOR UPDATE")
            await other.say(asked("a"))
            await until(lambda: asked_to_write == [1, 2], "it works on the second")
            await other.say(asked("b"))
            await until(lambda: asked_to_write == [1, 2, 3], "it works on the third as well")
            assert reader.position == 1
        await reached(reader, other)
        rows = await sample.database.fetch(QUERIES["read_tally"])
        assert [tuple(row) for row in rows] == [("a", 2), ("b", 1)]
        assert asked_to_write == [1, 2, 3]


async def test_a_folding_reader_counts_each_fact_once(
    database: str, nats_server: NatsServer
) -> None:
    async with (
        serving(database, nats_server, "other") as other,
        serving(database, nats_server, "sample") as sample,
    ):
        for start in (1, 2, 3):
            async with reading(sample, Tallies(), Gate(other.journal), sample.bus) as reader:
                await ask(other, 30, start=start)
                await reached(reader, other)
        assert await tally(sample) == {f"inst_{uid}": 3 for uid in range(30)}
        row = await sample.checkpoint(reader)
        assert (row["folded"], row["passed_over"]) == (90, 3)


async def test_a_broker_that_is_killed_under_load_doubles_and_loses_nothing(
    database: str, own_server: Nats
) -> None:
    server = NatsServer(own_server.url, own_server.keys)
    async with (
        serving(database, server, "other") as other,
        serving(database, server, "sample") as sample,
        reading(sample, Answers(), Gate(other.journal), sample.bus) as reader,
    ):
        for start in (1, 4, 7):
            async with asyncio.TaskGroup() as group:
                group.create_task(ask(other, 100, 3, start))
                await until(lambda: reader.lag > 0, "something is on its way")
                assert own_server.process is not None
                own_server.process.kill()
                own_server.process.wait()
            own_server.start()
            own_server.wait_ready()
            await reached(reader, other)
        await assert_answered(sample, 100, 9)


async def test_a_service_reads_its_own_journal_without_a_broker(database: str) -> None:
    async with serving(database, None, "other") as other:
        async with reading(other, Echo(), LocalLog(other.journal)) as reader:
            for number in range(20):
                committed = await other.say(beside(f"inst_{number}"))
                assert await reader.reached(committed.position, 5)
            # What it says itself comes back to it, and is passed over.
            await reached(reader, other)
        kinds = Counter(type(fact).__name__ for fact in await other.facts())
        assert kinds == {"InstanceDeleteRequested": 20, "InstanceStopped": 20}


class Echo(Answers):
    """Answers what its own service says."""

    name = "other/other"
    handles = frozenset({api.InstanceDeleteRequested.DESCRIPTOR.full_name})

    async def react(self, fact: Recorded) -> Sequence[Reaction]:
        """Answer each deletion."""
        said = fact.message
        assert isinstance(said, api.InstanceDeleteRequested)
        return [
            Reaction(
                (f"instance/{said.uid}",), lambda records: None, lambda _: [answered(said.uid)]
            )
        ]


async def test_who_waits_for_a_position_is_answered_where_another_process_reads(
    database: str, nats_server: NatsServer
) -> None:
    async with (
        serving(database, nats_server, "other") as other,
        serving(database, nats_server, "sample") as sample,
        reading(sample, Answers(), Gate(other.journal), sample.bus) as holder,
    ):
        await ask(other, 1)
        await reached(holder, other)
        async with reading(sample, Answers(), Gate(other.journal), sample.bus) as idle:
            assert await idle.reached(2, 5)
            assert not await idle.reached(3, 0.1)
            await ask(other, 1, start=2)
            assert await idle.reached(4, 5)
            assert idle.feed.head == 0, "it never read itself"


async def test_a_type_that_is_not_known_parks_its_stream_until_it_is(
    database: str, nats_server: NatsServer
) -> None:
    old = Registry({name: kind for name, kind in REGISTRY.classes.items() if "Delete" not in name})
    async with (
        serving(database, nats_server, "other") as other,
        serving(database, nats_server, "sample") as sample,
    ):
        await other.say(asked("inst_1"), beside("inst_1"), asked("inst_1", 2), asked("inst_2"))
        # This test's log knows all types; the stream brings what the process knows.
        gate = Gate(other.journal, away=True)
        async with reading(sample, Answers(), gate, sample.bus, registry=old) as reader:
            await reached(reader, other)
            row = await sample.checkpoint(reader)
            assert (row["folded"], row["parked"]) == (2, 2)
            assert reader.parked == {"instance/inst_1"}
        async with reading(sample, Answers(), Gate(other.journal), sample.bus) as reader:

            async def handled() -> bool:
                row = await sample.checkpoint(reader)
                return (row["folded"], row["parked"]) == (4, 0)

            await until(handled, "it is handled now")
            assert await sample.facts() == [
                answered("inst_1"),
                answered("inst_2"),
                answered("inst_1", 2),
            ]
            await other.say(asked("inst_1", 3))
            await reached(reader, other)
        assert (await sample.facts())[-1] == answered("inst_1", 3)


async def test_a_lineage_that_begins_past_the_checkpoint_changes_nothing(
    database: str, nats_server: NatsServer
) -> None:
    async with serving(database, nats_server, "sample") as sample:
        async with serving(database, None, "other", relayed=False) as other:
            await ask(other, 9)
            async with reading(sample, Answers(), Gate(other.journal)) as reader:
                await reached(reader, other)
            await restore(other, 10, epoch=2)
        async with serving(database, None, "other", relayed=False) as other:
            await ask(other, 9, start=2)
            async with reading(sample, Answers(), Gate(other.journal)) as reader:
                await reached(reader, other)
                assert not reader.halted
            row = await sample.checkpoint(reader)
            assert (row["epoch"], row["position"]) == (2, 20)
        await assert_answered(sample, 9, 2)


async def test_a_new_reader_of_a_restored_journal_reads_it_from_the_start(
    database: str, nats_server: NatsServer
) -> None:
    async with serving(database, nats_server, "sample") as sample:
        async with serving(database, None, "other", relayed=False) as other:
            await other.say(*(beside(f"inst_{number}") for number in range(10)))
            await restore(other, 10, epoch=2)
        async with serving(database, None, "other", relayed=False) as other:
            await other.say(*(beside(f"inst_{number}") for number in range(10)))
            for _ in range(2):
                async with reading(sample, Answers(), Gate(other.journal)) as reader:
                    await reached(reader, other)
                    assert not reader.halted
            row = await sample.checkpoint(reader)
            assert (row["epoch"], row["passed_over"]) == (2, 20)


async def test_a_stream_that_ends_with_what_is_no_fact_leaves_its_readers_with_the_log(
    database: str, nats_server: NatsServer
) -> None:
    async with (
        serving(database, nats_server, "other", relayed=False) as other,
        serving(database, nats_server, "sample") as sample,
    ):
        await other.say(asked("inst_1"), asked("inst_2"))
        assert await other.bus.wait_ready(5)
        await other.bus.create_stream(JOURNAL, 1)
        for garbage in (b"", b"\xff" * 100, b"{}", bytes(100_000)):
            await other.bus._client.publish("fermion.other.0.acme.Any", garbage)
        await other.bus._client.flush()
        async with reading(sample, Answers(), Gate(other.journal), sample.bus) as reader:
            await reached(reader, other)
            await other.say(asked("inst_3"))
            await reached(reader, other)
        assert len(await sample.facts()) == 3


async def test_who_decided_on_a_lost_tail_halts_until_accepted_and_reads_what_stands_there_now(
    database: str, nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "HALTED_SECONDS", 0.05)
    async with serving(database, nats_server, "sample") as sample:
        async with serving(database, None, "other", relayed=False) as other:
            await other.say(*(asked(f"inst_{number}") for number in range(10)))
            async with reading(sample, Answers(), Gate(other.journal)) as reader:
                await reached(reader, other)
            await restore(other, 6, epoch=2)
        async with serving(database, None, "other", relayed=False) as other:
            await other.say(*(asked(f"new_{number}") for number in range(10)))
            async with reading(sample, Answers(), Gate(other.journal)) as reader:
                await until(lambda: reader.halted, "the reader halts")
            async with reading(sample, Answers(), Gate(other.journal)) as reader:
                await until(lambda: "epoch 2" in reader.halted, "a restart changes nothing")
                assert len(await sample.facts()) == 10
                with pytest.raises(Refused) as refused:
                    await resume(
                        sample.journal,
                        sample.database,
                        reader=reader.name,
                        source=JOURNAL,
                        meta=META,
                    )
                assert refused.value.reason == "RESTORE_NOT_ACCEPTED"
                assert await reader.reached(reader.position, 5)
                with pytest.raises(Refused) as refused:
                    await reader.reached(reader.position + 1, 5)
                assert refused.value.reason == "READ_HALTED"
                assert "epoch 2" in refused.value.message
                await accept(sample.journal, reader.feed, reader=reader.name, meta=META)
                await reached(reader, other)
            said = [one for one in await sample.facts() if isinstance(one, api.InstanceStopped)]
            assert said[10:] == [answered(f"new_{number}") for number in range(10)]
            row = await sample.checkpoint(reader)
            assert (row["position"], row["folded"], row["halted"]) == (16, 16, None)


async def test_rows_folded_from_a_lost_tail_are_folded_anew(
    database: str, nats_server: NatsServer
) -> None:
    async with serving(database, nats_server, "sample") as sample:
        async with serving(database, None, "other", relayed=False) as other:
            await other.say(*(asked(f"inst_{number}") for number in range(10)))
            async with reading(sample, Tallies(), Gate(other.journal)) as reader:
                await reached(reader, other)
            await restore(other, 6, epoch=2)
        async with serving(database, None, "other", relayed=False) as other:
            await other.say(*(asked(f"new_{number}") for number in range(3)))
            async with reading(sample, Tallies(), Gate(other.journal)) as reader:
                await until(lambda: reader.position == 9, "it has read the new lineage")
            assert await tally(sample) == {
                **{f"inst_{number}": 1 for number in range(6)},
                **{f"new_{number}": 1 for number in range(3)},
            }
            row = await sample.checkpoint(reader)
            assert (row["epoch"], row["folded"]) == (2, 9)


async def test_nobody_acts_on_what_the_stream_has_and_the_log_has_lost(
    database: str, nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "HALTED_SECONDS", 0.05)
    async with serving(database, nats_server, "sample") as sample:
        async with serving(database, nats_server, "other") as other:
            await other.say(*(asked(f"inst_{number}") for number in range(10)))
            async with reading(sample, Answers(), Gate(other.journal), sample.bus) as reader:
                await reached(reader, other)
            await other.say(*(asked(f"lost_{number}") for number in range(10)))
            await until(lambda: other.relay.position == 20, "the stream has them")
        async with serving(database, nats_server, "other") as other:
            await restore(other, 6, epoch=1)
            gate = Gate(other.journal)
            async with reading(sample, Answers(), gate, sample.bus) as reader:
                await until(lambda: gate.asked > 5, "it asks again and again")
                assert "has lost its tail" in reader.halted
            assert len(await sample.facts()) == 10


async def tally(service: Service) -> dict[str, int]:
    rows = await service.database.fetch(QUERIES["read_tally"])
    return {row["uid"]: row["facts"] for row in rows}
