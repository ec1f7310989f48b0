"""A journal that has lost its tail: who stands still, what lets it go on, and what is kept of that."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest

from chassis import readers
from chassis import relay as relays
from chassis.bus import Bus, Tail
from chassis.journal import Head, Request
from chassis.lineage import accept, announce, begin
from chassis.log_service import progress
from chassis.refusals import Missing, Refused
from chassis.relay import Relay
from fermion.api.journal import v1 as journal_api
from tests.integration.test_readers import tally
from tests.integration.test_relay import assert_whole, copied, say
from tests.sample import (
    META,
    Answers,
    Gate,
    Service,
    Tallies,
    answered,
    asked,
    lease_of,
    reached,
    reading,
    restore,
    running,
    serving,
    until,
)
from tests.servers import NatsServer

JOURNAL = "other/0"


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """What stands still looks often whether it may go on."""
    monkeypatch.setattr(readers, "HALTED_SECONDS", 0.05)
    monkeypatch.setattr(relays, "HALTED_SECONDS", 0.05)


async def begun(service: Service, lost_from: int = 0, lost_through: int = 0) -> Head:
    return await begin(
        service.journal, service.bus, lost_from=lost_from, lost_through=lost_through, meta=META
    )


@asynccontextmanager
async def behind(
    database: str, nats: NatsServer, said: int, left: int, *, relayed: bool = True
) -> AsyncIterator[Service]:
    """A service whose stream has more than its journal, which was put back to where it had less."""
    async with serving(database, nats, "other") as other:
        await say(other, said)
        await copied(other, said)
    async with serving(database, nats, "other", relayed=False) as other:
        await restore(other, left, epoch=1)
    async with serving(database, nats, "other", relayed=relayed) as other:
        yield other


async def parted(service: Service) -> bool:
    """Whether every process knows that journal and stream have parted."""
    return bool(await service.database.fetchval("SELECT bool_or(parted) FROM relay"))


class Held(Bus):
    """Gives a message out when it may."""

    asked = 0

    def __init__(self, url: str, name: str, seed_file: Path) -> None:
        super().__init__(url, name, seed_file)
        self.may = asyncio.Semaphore(0)

    async def message(self, journal: str, position: int) -> journal_api.Record | None:
        self.asked += 1
        await self.may.acquire()
        return await super().message(journal, position)


async def restored(service: Service) -> Sequence[journal_api.JournalRestored]:
    """What the journal says of its own lineages."""
    return [one for one in await service.facts() if isinstance(one, journal_api.JournalRestored)]


async def test_a_new_epoch_begins_where_journal_and_stream_part_and_says_what_is_lost(
    database: str, nats_server: NatsServer
) -> None:
    async with behind(database, nats_server, 30, 20) as other:
        # Before anybody has looked it says other things in the place of those that are lost.
        await say(other, 15, start=100)
        await until(lambda: other.relay.halted, "the relay halts")
        assert "fermion restore --accept" in other.relay.halted
        head = await begun(other)
        assert (head.epoch, head.epoch_first) == (2, 21)
        await copied(other, 36)
        await assert_whole(other, other.bus)
        assert await restored(other) == [
            journal_api.JournalRestored(
                journal=JOURNAL, epoch=2, first_position=21, lost_through=30
            )
        ]


async def test_no_epoch_begins_where_nothing_is_lost_and_a_request_begins_one_only_once(
    database: str, nats_server: NatsServer
) -> None:
    async with serving(database, nats_server, "other") as other:
        await say(other, 30)
        await copied(other, 30)
        with pytest.raises(Missing) as refused:
            await begun(other)
        assert refused.value.reason == "JOURNAL_NOT_BEHIND"
        request = Request("caller/user_ada", "BeginEpoch", str(uuid.uuid4()), b"digest")
        heads = [
            await begin(
                other.journal,
                other.bus,
                lost_from=26,
                lost_through=40,
                meta=META,
                request=request,
            )
            for _ in range(2)
        ]
        assert heads[0] == heads[1]
        assert (heads[0].epoch, heads[0].epoch_first) == (2, 26)
        assert len(await restored(other)) == 1


async def test_who_asks_again_before_the_relay_has_looked_is_told_that_nothing_more_is_lost(
    database: str, nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relays, "HALTED_SECONDS", 600)
    async with behind(database, nats_server, 9, 6) as other:
        await until(partial(parted, other), "the relay tells everybody")
        assert (await begun(other)).epoch == 2
        assert other.relay.halted
        assert not await parted(other)
        with pytest.raises(Missing):
            await begun(other)
        assert (await other.journal.head()).epoch == 2


async def test_a_relay_that_has_found_out_too_late_does_not_say_it_of_the_next_epoch(
    database: str, nats_server: NatsServer
) -> None:
    async with behind(database, nats_server, 9, 6, relayed=False) as other:
        # It has said other things since.
        await say(other, 5, start=100)
        held = Held(nats_server.url, "other", nats_server.keys / "other.nk")
        lease = lease_of(other.database, "a former relay")
        relay = Relay(other.journal, held, lease)
        async with running(lease.run(), held.run(), relay.run()):
            await until(lambda: held.asked == 1, "it looks")
            # Nobody but a reader has told of it yet.
            assert (await begun(other, lost_from=7, lost_through=9)).epoch == 2
            for _ in range(2):
                held.may.release()
            await until(lambda: held.asked == 3, "it has told, and looks again")
            assert relay.halted
            assert not await parted(other)
            for _ in range(9):
                held.may.release()
            await until(lambda: relay.position == 12, "it goes on")


async def test_an_epoch_that_nobody_lived_to_state_is_stated_by_the_next_start(
    database: str, nats_server: NatsServer
) -> None:
    async with serving(database, nats_server, "other") as other:
        await say(other, 5)
        await restore(other, 3, epoch=2)
    async with serving(database, nats_server, "other") as other:
        # Also where another process says something first, and several at once.
        await say(other, 1, start=50)
        await asyncio.gather(*(announce(other.journal, META) for _ in range(3)))
        await announce(other.journal, META)
        assert [(one.epoch, one.first_position) for one in await restored(other)] == [(2, 4)]


async def test_a_first_epoch_is_nothing_to_state(database: str, nats_server: NatsServer) -> None:
    async with serving(database, nats_server, "other") as other:
        await say(other, 1)
        await announce(other.journal, META)
        assert await other.head() == 1


async def test_a_reader_that_is_ahead_of_its_journal_stands_still_though_the_journal_grows_past_it(
    database: str, nats_server: NatsServer
) -> None:
    async with (
        serving(database, nats_server, "other") as other,
        serving(database, nats_server, "sample") as sample,
    ):
        await say(other, 10)
        # Stream and journal are both of an older state: nothing but the reader tells of it.
        gate = Gate(other.journal)
        async with reading(sample, Answers(), gate) as reader:
            await reached(reader, other)
    async with serving(database, None, "other", relayed=False) as other:
        await restore(other, 6, epoch=1)
    async with (
        serving(database, None, "other", relayed=False) as other,
        serving(database, nats_server, "sample") as sample,
    ):
        async with reading(sample, Answers(), Gate(other.journal)) as reader:
            await until(lambda: "has lost its tail" in reader.halted, "it stands still")
        await say(other, 8, start=100)
        async with reading(sample, Answers(), Gate(other.journal)) as reader:
            await until(lambda: "has lost its tail" in reader.halted, "it still does")
            (told,) = await progress(sample.database)
            assert (told.position, told.lost_through) == (6, 10)
            with pytest.raises(Refused) as refused:
                await accept(sample.journal, reader.feed, reader=reader.name, meta=META)
            assert refused.value.reason == "LINEAGE_NOT_BEGUN"
            assert len(await sample.facts()) == 10
            head = await begun(other, lost_from=7, lost_through=10)
            assert (head.epoch, head.epoch_first) == (2, 7)

            async def heard() -> bool:
                (told,) = await progress(sample.database)
                return told.epoch == 2

            await until(heard, "it has heard of the new epoch")
            assert reader.halted
            await accept(sample.journal, reader.feed, reader=reader.name, meta=META)
            await reached(reader, other)
        facts = await sample.facts()
        assert facts[10:11] == [
            journal_api.RestoreAccepted(
                reader=reader.name, journal=JOURNAL, epoch=2, position=6, decided_through=10
            )
        ]
        assert sorted(str(one) for one in facts[11:]) == sorted(
            str(answered(f"inst_{100 + number}")) for number in range(8)
        )
        row = await sample.checkpoint(reader)
        assert row["folded"] + row["passed_over"] == row["position"] == 15
        with pytest.raises(Missing) as nothing:
            await accept(sample.journal, reader.feed, reader=reader.name, meta=META)
        assert nothing.value.reason == "RESTORE_NOT_AWAITED"


async def test_a_folder_that_is_ahead_of_its_journal_waits_for_the_new_epoch_and_folds_anew(
    database: str, nats_server: NatsServer
) -> None:
    async with serving(database, nats_server, "sample") as sample:
        async with serving(database, None, "other", relayed=False) as other:
            await other.say(*(asked(f"inst_{number}") for number in range(10)))
            async with reading(sample, Tallies(), Gate(other.journal)) as reader:
                await reached(reader, other)
            await restore(other, 6, epoch=1)
        async with (
            serving(database, None, "other", relayed=False) as other,
            reading(sample, Tallies(), Gate(other.journal)) as reader,
        ):
            await until(lambda: "has lost its tail" in reader.halted, "it stands still")
            await other.say(*(asked(f"new_{number}") for number in range(12)))
            await begun(other, lost_from=7, lost_through=10)
            await until(lambda: reader.position == 19, "it has read the new lineage")
            assert not reader.halted
            assert await tally(sample) == {
                **{f"inst_{number}": 1 for number in range(6)},
                **{f"new_{number}": 1 for number in range(12)},
            }


async def test_facts_of_a_lost_lineage_in_the_stream_are_read_by_nobody_after_the_restore(
    database: str, nats_server: NatsServer
) -> None:
    async with serving(database, nats_server, "sample") as sample:
        async with serving(database, nats_server, "other") as other:
            await other.say(*(asked(f"inst_{number}") for number in range(10)))
            async with reading(sample, Answers(), Gate(other.journal), sample.bus) as reader:
                await reached(reader, other)
            await other.say(*(asked(f"lost_{number}") for number in range(10)))
            await copied(other, 20)
        async with serving(database, nats_server, "other", relayed=False) as other:
            await restore(other, 10, epoch=2)
        async with (
            serving(database, nats_server, "other") as other,
            reading(sample, Answers(), Gate(other.journal), sample.bus) as reader,
        ):
            await other.say(*(asked(f"new_{number}") for number in range(3)))
            await reached(reader, other)
            await copied(other, 13)
            assert await other.bus.tail(JOURNAL) == Tail(1, 13)
        assert (await sample.facts())[10:] == [answered(f"new_{number}") for number in range(3)]


async def test_a_reader_that_was_behind_reads_what_the_journal_has_and_not_what_it_lost(
    database: str, nats_server: NatsServer
) -> None:
    async with (
        serving(database, nats_server, "other") as other,
        serving(database, nats_server, "sample") as sample,
    ):
        await other.say(*(asked(f"inst_{number}") for number in range(4)))
        async with reading(sample, Answers(), Gate(other.journal), sample.bus) as reader:
            await reached(reader, other)
        await other.say(*(asked(f"more_{number}") for number in range(4)))
        await other.say(*(asked(f"lost_{number}") for number in range(4)))
        await copied(other, 12)
    async with serving(database, nats_server, "other", relayed=False) as other:
        await restore(other, 8, epoch=1)
    async with (
        serving(database, nats_server, "other") as other,
        serving(database, nats_server, "sample") as sample,
    ):
        gate = Gate(other.journal)
        async with reading(sample, Answers(), gate, sample.bus) as reader:
            await reached(reader, other)
            asked_before = gate.asked
            await until(lambda: gate.asked > asked_before + 5, "it looks again and again")
            assert await sample.facts() == [
                *(answered(f"inst_{number}") for number in range(4)),
                *(answered(f"more_{number}") for number in range(4)),
            ]
            await begun(other)
            await other.say(*(asked(f"new_{number}") for number in range(4)))
            await reached(reader, other)
            assert not reader.halted
            assert (await sample.facts())[8:] == [answered(f"new_{number}") for number in range(4)]
