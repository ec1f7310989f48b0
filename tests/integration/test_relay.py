"""The copy of a journal in its stream: whole, in order, once each, whatever happens to either."""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import cast

import pytest

from chassis import relay as relays
from chassis import store
from chassis.bus import Away, Bus, OutOfSequence, Tail
from chassis.embedded import Nats
from chassis.lineage import begin
from chassis.log_service import Hosted, JournalServicer
from chassis.relay import Relay
from chassis.rpc import Context
from chassis.telemetry import Metrics
from fermion.api.journal import v1 as api
from tests.sample import (
    BOOK,
    FOLDER,
    META,
    QUERIES,
    Service,
    asked,
    bus_of,
    lease_of,
    restore,
    running,
    serving,
    until,
)
from tests.servers import NatsServer

JOURNAL = "other/0"
# So many that NATS keeps them in several files.
BLOCKS_FACTS = 20_000


async def say(service: Service, count: int, start: int = 0) -> None:
    await asyncio.gather(*(service.say(asked(f"inst_{start + number}")) for number in range(count)))


async def copied(service: Service, last: int) -> None:
    await until(lambda: service.relay.position >= last, f"{last} facts are published")


async def assert_whole(service: Service, bus: Bus, first: int = 1) -> None:
    """The stream is the journal from a position to its end, in order and once each."""
    log = (await service.journal.read(first - 1, 100_000)).records
    tail = await bus.tail(JOURNAL)
    assert tail == Tail(first, log[-1].position)
    stream: list[api.Record] = []
    async with bus.follow(JOURNAL, first) as following:
        while len(stream) < len(log):
            found = await following(5)
            assert found, f"{len(stream)} of {len(log)}"
            stream += found
    assert [(one.position, one.data) for one in stream] == [(one.position, one.data) for one in log]


async def test_everything_that_is_committed_is_published_once_and_in_order(
    database: str, nats_server: NatsServer
) -> None:
    async with serving(database, nats_server, "other") as other:
        for count in (1, 7, 400, 2500):
            await say(other, count)
        await copied(other, 2908)
        assert other.relay.lag == 0
        await assert_whole(other, other.bus)


async def test_pages_that_go_out_in_portions_are_sent_behind_each_other(
    database: str,
    nats_server: NatsServer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(relays, "PORTION_BYTES_MAX", 20_000)
    async with serving(database, nats_server, "other", relayed=False) as other:
        await say(other, 2500)
        assert await other.bus.wait_ready(10)
        async with copying(other) as relay:
            await until(lambda: relay.position >= 2500, "all of it is published")
        await assert_whole(other, other.bus)
        assert caplog.messages == []


async def test_a_relay_that_ends_with_portions_on_their_way_is_followed_by_one_that_leaves_nothing_out(
    database: str, nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relays, "PORTION_BYTES_MAX", 4_000)
    async with serving(database, nats_server, "other", relayed=False) as other:
        await say(other, 2500)
        assert await other.bus.wait_ready(10)
        for position in range(100, 2500, 240):
            async with copying(other) as relay:
                await until(lambda at=position: relay.position >= at, f"{position} are published")
            # It was ended in the midst of what it had sent.
            tail = await other.bus.tail(JOURNAL)
            assert tail is not None
            assert tail.last >= position
        async with copying(other) as relay:
            await until(lambda: relay.position >= 2500, "all of it is published")
        await assert_whole(other, other.bus)


@asynccontextmanager
async def copying(other: Service) -> AsyncIterator[Relay]:
    """Run one more relay beside the body."""
    lease = lease_of(other.database, f"relay {uuid.uuid4().hex}")
    await lease.renew()
    relay = Relay(other.journal, other.bus, lease)
    async with running(lease.run(), relay.run()):
        yield relay


async def test_relays_that_all_believe_to_be_the_only_one_do_no_harm(
    database: str, nats_server: NatsServer
) -> None:
    async with serving(database, nats_server, "other") as other:
        bus, bus_two = bus_of(nats_server, "other"), bus_of(nats_server, "other")
        leases = [lease_of(other.database, f"relay {number}") for number in range(2)]
        twins = [
            Relay(other.journal, own, lease)
            for own, lease in zip((bus, bus_two), leases, strict=True)
        ]
        loops = [
            bus.run(),
            bus_two.run(),
            *(lease.run() for lease in leases),
            *(twin.run() for twin in twins),
        ]
        async with running(*loops):
            for _ in range(10):
                await say(other, 150)
                await say(other, 3)
            for one in (other.relay, *twins):
                await until(lambda one=one: one.position >= 1530, "each relay is at the end")
        await assert_whole(other, other.bus)


async def test_a_paused_relay_that_wakes_beside_its_successor_changes_nothing(
    database: str, nats_server: NatsServer
) -> None:
    async with serving(database, nats_server, "other") as other:
        await say(other, 100)
        await copied(other, 100)
        # What the paused one had in its hands, and where it believed the stream to be.
        page = (await other.journal.records(50, 40)).records
        await say(other, 50)
        await copied(other, 150)
        for portion in (page, page[:5]):
            with pytest.raises(OutOfSequence):
                await other.bus.publish(portion, 50)
        await assert_whole(other, other.bus)


async def test_a_stream_that_was_deleted_is_filled_again_while_nothing_is_said(
    database: str, nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relays, "QUIET_SECONDS", 0.2)
    async with serving(database, nats_server, "other") as other:
        await say(other, 300)
        await copied(other, 300)
        await other.bus.delete_stream(JOURNAL)

        async def filled() -> bool:
            return await other.bus.tail(JOURNAL) == Tail(1, 300)

        await until(filled, "the stream is filled again")
        await assert_whole(other, other.bus)


async def test_a_stream_that_lost_facts_in_its_midst_is_filled_anew(
    database: str, own_server: Nats, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relays, "QUIET_SECONDS", 0.2)
    server = NatsServer(own_server.url, own_server.keys)
    async with serving(database, server, "other") as other:
        for start in range(0, BLOCKS_FACTS, 500):
            await other.say(*(asked(f"inst_{start + number}") for number in range(500)))
        await copied(other, BLOCKS_FACTS)
        own_server.stop()
        first, *more = sorted(own_server.home.glob("store/**/FERMION_other_0/msgs/*.blk"))
        assert more, "it has but one block"
        os.truncate(first, first.stat().st_size // 2)
        for index in own_server.home.glob("store/**/FERMION_other_0/msgs/index.db"):
            index.unlink()
        own_server.start()
        own_server.wait_ready()
        assert await other.bus.wait_ready(10)

        async def filled() -> bool:
            with suppress(Away):
                return await other.bus.tail(JOURNAL) == Tail(1, BLOCKS_FACTS)
            return False

        await until(filled, "the stream is whole again")
        await assert_whole(other, other.bus)


async def test_a_stream_that_was_deleted_long_ago_gets_the_newest_facts(
    database: str, nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relays, "REFILL_MAX", 40)
    async with serving(database, None, "other", relayed=False) as other:
        await say(other, 300)
    async with serving(database, nats_server, "other") as other:
        await say(other, 10)
        await copied(other, 310)
        await assert_whole(other, other.bus, first=261)


async def test_a_stream_that_was_cut_short_is_continued(
    database: str, nats_server: NatsServer
) -> None:
    async with serving(database, nats_server, "other", relayed=False) as other:
        await say(other, 200)
        assert await other.bus.wait_ready(5)
        await other.bus.create_stream(JOURNAL, 1)
        await other.bus.publish((await other.journal.records(0, 120)).records, 0)
    async with serving(database, nats_server, "other") as other:
        await copied(other, 200)
        await assert_whole(other, other.bus)


async def test_a_stream_that_knows_more_than_the_journal_halts_the_relay(
    database: str, nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relays, "HALTED_SECONDS", 0.05)
    async with serving(database, nats_server, "other") as other:
        await say(other, 30)
        await copied(other, 30)
    async with serving(database, nats_server, "other", relayed=False) as other:
        await restore(other, 20, epoch=1)
    async with serving(database, nats_server, "other") as other:
        await until(lambda: other.relay.halted, "the relay halts")
        assert "30" in other.relay.halted
        assert "20" in other.relay.halted
        # The journal grows past it again, with other facts: they have parted all the same.
        await say(other, 10, start=100)
        await until(lambda: "parted" in other.relay.halted, "the relay still halts")
        assert await other.bus.tail(JOURNAL) == Tail(1, 30)
        await other.bus.delete_stream(JOURNAL)
        await copied(other, 30)
        assert not other.relay.halted
        await assert_whole(other, other.bus)


async def test_a_halt_is_told_by_every_process_until_the_relay_goes_on(
    database: str, nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relays, "HALTED_SECONDS", 0.05)
    async with serving(database, nats_server, "other") as other:
        await say(other, 30)
        await copied(other, 30)
    async with serving(database, nats_server, "other", relayed=False) as other:
        await restore(other, 20, epoch=1)
    async with (
        serving(database, nats_server, "other") as holder,
        # Never gets the lease, so it never looks at the stream.
        serving(database, nats_server, "other", relayed=False) as bystander,
    ):
        for service in (holder, bystander):
            await until(lambda one=service: halted(one), "each process tells of it")
        assert bystander.relay.halted == ""
        assert await halted(bystander) == holder.relay.halted
        await holder.bus.delete_stream(JOURNAL)
        await copied(holder, 20)
        assert await halted(bystander) == ""


async def test_a_halt_that_another_process_mended_is_no_halt_of_the_one_that_stands_by(
    database: str, nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relays, "HALTED_SECONDS", 0.05)
    async with serving(database, nats_server, "other") as other:
        await say(other, 30)
        await copied(other, 30)
    async with serving(database, nats_server, "other", relayed=False) as other:
        await restore(other, 20, epoch=1)
        bus, lease = bus_of(nats_server, "other"), lease_of(other.database, "relay twin")
        relay = Relay(other.journal, bus, lease)
        async with running(bus.run(), relay.run()):
            async with running(lease.run()):
                await until(lambda: relay.halted, "it halts")
            await until(lambda: not relay.halted, "without the lease it knows of no halt")
        assert await halted(other) != ""


async def halted(service: Service) -> str:
    """Why the relay stands still, as the process of this service tells it to callers."""
    hosted = Hosted(service.journal, service.database, BOOK, QUERIES, FOLDER, service.bus, ())
    answer = await JournalServicer({JOURNAL: hosted}, Metrics()).GetJournal(
        api.GetJournalRequest(), cast(Context, None)
    )
    return answer.journals[0].relay_halted


async def test_a_new_epoch_lets_a_halted_relay_go_on_with_a_stream_of_its_own(
    database: str, nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relays, "HALTED_SECONDS", 0.05)
    async with serving(database, nats_server, "other") as other:
        await say(other, 30)
        await copied(other, 30)
        await restore(other, 20, epoch=1)
    async with serving(database, nats_server, "other") as other:
        await until(lambda: other.relay.halted, "the relay halts")
        head = await begin(other.journal, other.bus, lost_from=0, lost_through=0, meta=META)
        assert (head.epoch, head.epoch_first) == (2, 21)
        await until(lambda: not other.relay.halted, "the relay goes on")
        await say(other, 3)
        # One of them says that the journal was restored.
        await copied(other, 24)
        await assert_whole(other, other.bus)
        newest = await other.bus.message(JOURNAL, 24)
        assert newest is not None
        assert newest.epoch == 2


async def test_a_stream_of_a_former_epoch_is_filled_anew_and_one_of_a_later_epoch_halts_the_relay(
    database: str, nats_server: NatsServer
) -> None:
    async with serving(database, nats_server, "other") as other:
        await say(other, 30)
        await copied(other, 30)
    async with serving(database, nats_server, "other", relayed=False) as other:
        await other.database.execute("UPDATE head SET epoch = 2")
        await other.database.execute("INSERT INTO epoch VALUES ('0', 2, 30)")
    async with serving(database, nats_server, "other") as other:
        await copied(other, 30)
        await assert_whole(other, other.bus)
        newest = await other.bus.message(JOURNAL, 30)
        assert newest is not None
        assert newest.epoch == 2
    async with serving(database, nats_server, "other", relayed=False) as other:
        await other.database.execute("UPDATE head SET epoch = 1")
    async with serving(database, nats_server, "other") as other:
        await until(lambda: "epoch 2" in other.relay.halted, "the relay halts")
        assert await other.bus.tail(JOURNAL) == Tail(1, 30)


async def test_a_stream_with_a_message_that_is_no_fact_halts_the_relay(
    database: str, nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relays, "HALTED_SECONDS", 0.05)
    async with serving(database, nats_server, "other") as other:
        await say(other, 3)
        await copied(other, 3)
        await other.bus._client.publish("fermion.other.0.acme.Strange", b"strange")
        await say(other, 1)
        await until(lambda: "no fact" in other.relay.halted, "the relay halts")
        await other.bus.delete_stream(JOURNAL)
        await copied(other, 4)
        await assert_whole(other, other.bus)


async def test_a_broker_that_is_killed_under_load_costs_nothing(
    database: str, own_server: Nats
) -> None:
    server = NatsServer(own_server.url, own_server.keys)
    kills = unpublished = 0
    async with serving(database, server, "other") as other:
        for _ in range(3):
            async with asyncio.TaskGroup() as group:
                group.create_task(say(other, 2000))
                await until(lambda: other.relay.lag > 0, "something is on its way")
                assert own_server.process is not None
                own_server.process.kill()
                own_server.process.wait()
                kills += 1
            head = (await other.journal.head()).position
            unpublished += head > other.relay.position
            own_server.start()
            own_server.wait_ready()
            await copied(other, head)
        assert (kills, unpublished) == (3, 3)
        await assert_whole(other, other.bus)


async def test_a_process_without_the_lease_tells_the_one_that_has_it(
    database: str, nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nobody looks by himself any more.
    monkeypatch.setattr(store, "POLL_SECONDS", 60.0)
    monkeypatch.setattr(relays, "POLL_SECONDS", 60.0)
    monkeypatch.setattr(relays, "QUIET_SECONDS", 120.0)
    async with serving(database, nats_server, "other") as one:
        await say(one, 1)
        await copied(one, 1)
        async with serving(database, nats_server, "other") as two:
            assert await two.bus.wait_ready(5)
            await two.say(asked("inst_of_two"))
            await copied(one, 2)
        await assert_whole(one, one.bus)
