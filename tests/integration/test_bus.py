"""What the kernel relies on of NATS, asked of a real server."""

from __future__ import annotations

import asyncio
import base64
import json
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import nats
import pytest

from chassis import bus as bus_module
from chassis.bus import Away, Bus, Foreign, OutOfSequence, Tail, headers_of, nudge_subject
from chassis.embedded import Nats, free_port
from chassis.envelope import FACT_BYTES_MAX
from fermion.api.journal import v1 as api
from tests.sample import asked, bus_of, running, until
from tests.servers import SERVICES, NatsServer

JOURNAL = "other/0"
TRACE = f"00-{'a' * 32}-{'b' * 16}-01"


def fact(position: int) -> api.Record:
    said = asked(f"inst_{position}")
    return api.Record(
        journal=JOURNAL,
        epoch=1,
        position=position,
        project="acme",
        project_position=position,
        stream=f"instance/inst_{position}",
        version=1,
        type=said.DESCRIPTOR.full_name,
        data=said.SerializeToString(deterministic=True),
        meta=api.Meta(actor="user_ada", traceparent=TRACE),
    )


def facts(first: int, last: int) -> list[api.Record]:
    return [fact(position) for position in range(first, last + 1)]


@asynccontextmanager
async def connected(server: NatsServer, name: str = "other") -> AsyncIterator[Bus]:
    bus = bus_of(server, name)
    async with running(bus.run()):
        assert await bus.wait_ready(10)
        yield bus


@pytest.fixture
async def bus(nats_server: NatsServer) -> AsyncIterator[Bus]:
    async with connected(nats_server) as bus:
        yield bus


async def positions(bus: Bus, after: int, last: int) -> list[int]:
    """Follow the stream up to a position."""
    found: list[int] = []
    async with bus.follow(JOURNAL, after + 1) as following:
        while not found or found[-1] < last:
            found += [record.position for record in await following(5)]
    return found


async def test_sequences_are_positions_however_facts_are_sent(bus: Bus) -> None:
    await bus.create_stream(JOURNAL, 41)
    assert await bus.tail(JOURNAL) == Tail(41, 40)
    last = 40
    for count in (1, 2, 15, 16, 1000):
        last = await bus.publish(facts(last + 1, last + count), last)
    assert last == 40 + 1034
    assert await bus.tail(JOURNAL) == Tail(41, last)
    assert await positions(bus, 40, last) == list(range(41, last + 1))


async def test_facts_of_the_greatest_size_are_followed_on_one_connection_by_many(bus: Bus) -> None:
    await bus.create_stream(JOURNAL, 1)
    great = facts(1, 400)
    for record in great:
        record.data = b"x" * FACT_BYTES_MAX
    for place in range(0, len(great), 20):
        await bus.publish(great[place : place + 20], place)
    # A server drops whom it has sent 64 MB that were not taken yet.
    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        followers = [group.create_task(positions(bus, 0, len(great))) for _ in range(3)]
    for follower in followers:
        assert follower.result() == list(range(1, len(great) + 1))


async def test_a_stream_that_is_there_is_kept(bus: Bus) -> None:
    await bus.create_stream(JOURNAL, 1)
    await bus.publish(facts(1, 20), 0)
    await bus.create_stream(JOURNAL, 100)
    assert await bus.tail(JOURNAL) == Tail(1, 20)


async def test_a_stream_that_was_emptied_goes_on_where_it_was(
    bus: Bus, nats_server: NatsServer
) -> None:
    await bus.create_stream(JOURNAL, 1)
    await bus.publish(facts(1, 20), 0)
    await bus.delete_stream(JOURNAL)
    assert await bus.tail(JOURNAL) is None
    await bus.create_stream(JOURNAL, 21)
    await bus.publish(facts(21, 40), 20)
    assert await positions(bus, 0, 40) == list(range(21, 41))


@pytest.mark.parametrize("count", [1, 16, 1000])
async def test_who_expects_another_sequence_changes_nothing(bus: Bus, count: int) -> None:
    await bus.create_stream(JOURNAL, 1)
    await bus.publish(facts(1, 30), 0)
    for expected in (0, 29, 31):
        with pytest.raises(OutOfSequence):
            await bus.publish(facts(expected + 1, expected + count), expected)
    assert await bus.tail(JOURNAL) == Tail(1, 30)


async def test_of_facts_sent_one_by_one_each_gets_in_at_its_own_place_only(bus: Bus) -> None:
    await bus.create_stream(JOURNAL, 1)
    await bus.publish(facts(1, 30), 0)
    with pytest.raises(OutOfSequence):
        await bus.publish(facts(32, 40), 31)
    assert await bus.tail(JOURNAL) == Tail(1, 30)
    with pytest.raises(OutOfSequence):
        # The first is there already; those behind it stand where they belong.
        await bus.publish(facts(30, 40), 29)
    assert await positions(bus, 0, 40) == list(range(1, 41))


async def test_what_is_published_while_others_wait_for_their_answers_is_stored_behind_them(
    bus: Bus,
) -> None:
    await bus.create_stream(JOURNAL, 1)
    parts = ((1, 1000), (1001, 1003), (1004, 1500), (1501, 1501), (1502, 2000))
    answers = await asyncio.gather(
        *(bus.publish(facts(first, last), first - 1) for first, last in parts)
    )
    assert answers == [last for _, last in parts]
    assert await positions(bus, 0, 2000) == list(range(1, 2001))


async def test_what_is_sent_behind_a_refused_batch_is_refused_with_it(bus: Bus) -> None:
    await bus.create_stream(JOURNAL, 1)
    await bus.publish(facts(1, 30), 0)
    answers = await asyncio.gather(
        *(bus.publish(facts(first, first + 99), first - 1) for first in (32, 132, 232)),
        return_exceptions=True,
    )
    assert [type(answer) for answer in answers] == [OutOfSequence] * 3
    assert await bus.tail(JOURNAL) == Tail(1, 30)


async def test_two_publishers_of_the_same_facts_store_them_once(
    bus: Bus, nats_server: NatsServer
) -> None:
    await bus.create_stream(JOURNAL, 1)
    async with connected(nats_server) as other:
        answers = await asyncio.gather(
            *(one.publish(facts(1, 500), 0) for one in (bus, other, bus, other)),
            return_exceptions=True,
        )
    assert sorted(str(answer) for answer in answers if isinstance(answer, int)) == ["500"]
    assert await positions(bus, 0, 500) == list(range(1, 501))


async def test_a_fact_travels_with_six_headers_and_its_record(bus: Bus) -> None:
    await bus.create_stream(JOURNAL, 1)
    await bus.publish([fact(1)], 0)
    client = bus._client
    answer = await client.request("$JS.API.STREAM.MSG.GET.FERMION_other_0", b'{"seq": 1}')
    message = json.loads(answer.data)["message"]
    lines = base64.b64decode(message["hdrs"]).decode().strip().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines[1:])
    del headers["Nats-Expected-Last-Sequence"]
    assert headers == {
        "ce-specversion": "1.0",
        "ce-id": "00000000000000000001",
        "ce-source": "other/0/1",
        "ce-type": "fermion.api.instances.v1.InstanceQueued",
        "ce-projectposition": "1",
        "traceparent": TRACE,
    }
    assert message["subject"] == "fermion.other.0.acme.InstanceQueued"
    assert await bus.message(JOURNAL, 1) == fact(1)


async def test_headers_that_are_for_subscribers_are_not_read_by_the_bus(bus: Bus) -> None:
    # By a method that is not nats-py's to promise: where it goes, all works on, and slower.
    subject = nudge_subject(JOURNAL)
    subscription = await bus._client.subscribe(subject)
    await bus._client.publish(subject, b"fact", headers=headers_of(fact(1)))
    message = await subscription.next_msg(timeout=10)
    assert (message.data, message.headers) == (b"fact", None)


async def test_what_comes_later_is_followed_and_silence_is_an_empty_list(bus: Bus) -> None:
    await bus.create_stream(JOURNAL, 1)
    await bus.publish(facts(1, 3), 0)
    async with bus.follow(JOURNAL, 3) as following:
        assert [record.position for record in await following(5)] == [3]
        assert await following(0.1) == []
        await bus.publish(facts(4, 5), 3)
        found = await following(5)
        while len(found) < 2:
            found += await following(5)
        assert [record.position for record in found] == [4, 5]


async def test_who_follows_a_stream_is_told_that_it_was_deleted(bus: Bus) -> None:
    await bus.create_stream(JOURNAL, 1)
    await bus.publish(facts(1, 3), 0)
    async with bus.follow(JOURNAL, 1) as following:
        assert len(await following(5)) == 3
        await bus.delete_stream(JOURNAL)
        with pytest.raises(Away):
            await following(10)
    with pytest.raises(Away):
        async with bus.follow(JOURNAL, 1):
            pass


async def test_what_is_no_fact_of_the_journal_is_not_taken_for_one(
    bus: Bus, nats_server: NatsServer
) -> None:
    await bus.create_stream(JOURNAL, 1)
    await bus.publish([fact(1)], 0)
    client = await nats.connect(
        nats_server.url,
        nkeys_seed=str(nats_server.keys / "other.nk"),
        inbox_prefix=b"_INBOX_other",
    )
    subject = "fermion.other.0.acme.InstanceQueued"
    for body in (b"\xff\xff", fact(7).SerializeToString()):
        await client.request(subject, body)
    await client.close()
    for sequence in (2, 3):
        with pytest.raises(Foreign):
            await bus.message(JOURNAL, sequence)
        async with bus.follow(JOURNAL, sequence) as following:
            with pytest.raises(Away):
                await following(5)
    assert await bus.message(JOURNAL, 4) is None


async def test_without_a_server_every_call_says_so_at_once(tmp_path: Path) -> None:
    server = Nats(tmp_path, SERVICES, port=free_port())
    bus = Bus(server.url, "other", server.keys / "other.nk")
    server.keys.mkdir(parents=True)
    async with running(bus.run()):
        began = time.monotonic()
        for call in (bus.tail(JOURNAL), bus.publish(facts(1, 20), 0)):
            with pytest.raises(Away):
                await call
        with pytest.raises(Away):
            async with bus.follow(JOURNAL, 1):
                pass
        assert time.monotonic() - began < 1
        server.start()
        try:
            server.wait_ready()
            assert await bus.wait_ready(10)
            assert await bus.tail(JOURNAL) is None
        finally:
            server.stop()


async def test_a_server_that_says_nothing_is_away_and_cancels_nobody(
    own_server: Nats, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bus_module, "CONSUMER_SECONDS_MAX", 0.1)
    async with connected(NatsServer(own_server.url, own_server.keys)) as bus:
        await bus.create_stream(JOURNAL, 1)
        assert own_server.process is not None
        own_server.process.send_signal(signal.SIGSTOP)
        try:
            with pytest.raises(Away, match="was not answered"):
                async with bus.follow(JOURNAL, 1):
                    pass
        finally:
            own_server.process.send_signal(signal.SIGCONT)


async def test_a_server_that_was_killed_is_noticed_and_found_again(own_server: Nats) -> None:
    server = NatsServer(own_server.url, own_server.keys)
    async with connected(server) as bus:
        await bus.create_stream(JOURNAL, 1)
        await bus.publish(facts(1, 100), 0)
        async with bus.follow(JOURNAL, 1) as following:
            found = await following(5)
            while found[-1].position < 100:
                found += await following(5)
            waits = asyncio.ensure_future(following(10))
            await asyncio.sleep(0)
            assert own_server.process is not None
            own_server.process.kill()
            own_server.process.wait()
            with pytest.raises(Away):
                async with asyncio.timeout(2):
                    await waits
        with pytest.raises(Away):
            async with asyncio.timeout(1):
                await bus.publish(facts(101, 200), 100)
        own_server.start()
        own_server.wait_ready()
        assert await bus.wait_ready(2)
        assert await bus.publish(facts(101, 200), 100) == 200
        assert await positions(bus, 0, 200) == list(range(1, 201))


async def test_a_nudge_reaches_other_processes_also_on_a_later_connection(
    own_server: Nats,
) -> None:
    server = NatsServer(own_server.url, own_server.keys)
    heard = asyncio.Event()
    async with connected(server) as one, connected(server) as other:

        async def nudged() -> bool:
            # One alone may get lost.
            await other.nudge(JOURNAL)
            return heard.is_set()

        await one.on_nudge(JOURNAL, heard.set)
        await until(nudged, "the nudge is heard")
        own_server.stop()
        own_server.start()
        own_server.wait_ready()
        heard.clear()
        await until(nudged, "the nudge is heard again")


async def test_nobody_but_its_service_writes_a_stream(nats_server: NatsServer) -> None:
    async with connected(nats_server) as own, connected(nats_server, "sample") as other:
        await own.create_stream(JOURNAL, 1)
        await own.publish(facts(1, 2), 0)
        for call in (other.publish([fact(3)], 2), other.delete_stream(JOURNAL)):
            with pytest.raises((Away, TimeoutError)):
                async with asyncio.timeout(0.5):
                    await call
        assert await other.tail(JOURNAL) == Tail(1, 2)
        assert await positions(other, 0, 2) == [1, 2]
