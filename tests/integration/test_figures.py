"""What operators watch of a journal, its relay and its readers: it moves with what happens."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import pytest

from chassis import figures
from chassis.feed import Feed
from chassis.figures import Watch
from chassis.parking import resume
from chassis.readers import PARKED_STREAMS_MAX, Reader
from chassis.refusals import Unavailable
from chassis.telemetry import Figure, Sample
from tests.sample import (
    META,
    QUERIES,
    REGISTRY,
    Answers,
    Gate,
    Service,
    asked,
    lease_of,
    reached,
    reading,
    running,
    serving,
    until,
)
from tests.servers import NatsServer

OTHER, READER = ("other/0",), ("sample/other", "other/0")


class Hand:
    """A clock that goes on when it is told to; it begins at the machine's time."""

    def __init__(self) -> None:
        self.ahead = timedelta()

    def now(self) -> datetime:
        """Wall time."""
        return datetime.now(UTC) + self.ahead

    def monotonic(self) -> float:
        """Only what it was told."""
        return self.ahead.total_seconds()


class Shown:
    """A watch of one service, and what it shows."""

    def __init__(self, service: Service, readers: Sequence[Reader] = ()) -> None:
        self.clock = Hand()
        self.watch = Watch(service.journal, service.database, service.bus, readers, self.clock)

    def of(self, figure: Figure, labels: tuple[str, ...]) -> float | None:
        """What it shows of a figure; None where it shows none."""
        return found_in(self.watch, figure, labels)


def found_in(watch: Watch, figure: Figure, labels: tuple[str, ...]) -> float | None:
    values = [one.value for one in watch.samples() if (one.figure, one.labels) == (figure, labels)]
    assert len(values) <= 1
    return values[0] if values else None


@asynccontextmanager
async def resting(service: Service, log: Gate) -> AsyncIterator[Reader]:
    """A reader whose loop does not run: its process has not got the lease, or hangs."""
    feed = Feed("other/0", log, None, REGISTRY)
    lease = lease_of(service.database, "another one's")
    yield Reader(Answers(), feed, service.journal, service.database, QUERIES, lease, REGISTRY)


async def test_a_reader_that_does_not_read_falls_behind_in_facts_and_in_seconds(
    database: str,
) -> None:
    async with (
        serving(database, None, "other") as other,
        serving(database, None, "sample") as sample,
    ):
        gate = Gate(other.journal)
        async with reading(sample, Answers(), gate) as reader:
            await other.say(asked("a"), asked("b"))
            await reached(reader, other)
        async with resting(sample, gate) as idle:
            shown = Shown(sample, (idle,))
            await shown.watch.read()
            assert shown.of(figures.LAG, READER) == 0
            assert shown.of(figures.LAG_SECONDS, READER) == 0
            await other.say(asked("c"))
            await other.say(asked("d"), asked("e"))
            shown.clock.ahead = timedelta(minutes=2)
            await shown.watch.read()
            assert shown.of(figures.LAG, READER) == 3
            assert 120 <= (shown.of(figures.LAG_SECONDS, READER) or 0) < 140
        async with reading(sample, Answers(), gate) as reader:
            await reached(reader, other)
            await shown.watch.read()
            assert shown.of(figures.LAG, READER) == shown.of(figures.LAG_SECONDS, READER) == 0


async def test_a_stream_that_is_parked_is_counted_until_it_is_taken_out(database: str) -> None:
    broken = Answers({"bad", "worse"})
    async with (
        serving(database, None, "other") as other,
        serving(database, None, "sample") as sample,
        reading(sample, broken, Gate(other.journal)) as reader,
    ):
        shown = Shown(sample, (reader,))
        await other.say(asked("bad"), asked("bad", 2), asked("worse"), asked("good"))
        await reached(reader, other)
        shown.clock.ahead = timedelta(hours=1)
        await shown.watch.read()
        # Streams, and not facts: that is what somebody has to look at.
        assert shown.of(figures.PARKED, READER) == 2
        assert 3600 <= (shown.of(figures.PARKED_SECONDS, READER) or 0) < 3620
        # What is parked is accounted for: the reader is not behind.
        assert shown.of(figures.LAG, READER) == 0
        broken.broken.clear()
        for stream in ("instance/bad", "instance/worse"):
            await reader.retry(stream)
        await shown.watch.read()
        assert shown.of(figures.PARKED, READER) == shown.of(figures.PARKED_SECONDS, READER) == 0


async def test_a_halted_reader_is_told_of_by_every_process_and_falls_behind(
    database: str,
) -> None:
    names = [f"i{number}" for number in range(PARKED_STREAMS_MAX + 5)]
    async with (
        serving(database, None, "other") as other,
        serving(database, None, "sample") as sample,
        reading(sample, Answers(names), Gate(other.journal)) as reader,
        resting(sample, Gate(other.journal)) as elsewhere,
    ):
        shown = Shown(sample, (elsewhere,))
        for name in names:
            await other.say(asked(name))
        await until(lambda: bool(reader.halted), "the reader halts")
        await shown.watch.read()
        assert shown.of(figures.HALTED, READER) == 1
        before = shown.of(figures.LAG, READER) or 0
        await other.say(asked("more"))
        await shown.watch.read()
        assert shown.of(figures.LAG, READER) == before + 1
        await resume(
            sample.journal,
            sample.database,
            reader=reader.name,
            source="other/0",
            meta=META,
            request=None,
        )
        await until(lambda: not reader.halted, "the reader goes on")
        await shown.watch.read()
        assert shown.of(figures.HALTED, READER) == 0


async def test_what_is_not_published_is_counted_also_while_the_broker_is_away(
    database: str, nats_server: NatsServer
) -> None:
    async with serving(database, nats_server, "other") as other:
        await other.say(asked("a"), asked("b"))
        await until(lambda: other.relay.position >= 2, "both are published")
        shown = Shown(other)
        await shown.watch.read()
        assert shown.of(figures.HEAD, OTHER) == shown.of(figures.RELAY_POSITION, OTHER) == 2
        assert shown.of(figures.RELAY_LAG, OTHER) == shown.of(figures.RELAY_LAG_SECONDS, OTHER) == 0
        assert shown.of(figures.RELAY_HALTED, OTHER) == 0
    async with serving(database, None, "other") as other:
        shown.watch = Watch(other.journal, other.database, other.bus, (), shown.clock)
        await other.say(asked("c"))
        shown.clock.ahead = timedelta(seconds=90)
        await shown.watch.read()
        # This process has never heard what the stream has, so all of it may be missing.
        assert shown.of(figures.RELAY_LAG, OTHER) == 3
        assert 90 <= (shown.of(figures.RELAY_LAG_SECONDS, OTHER) or 0) < 110


async def test_a_relay_that_was_halted_elsewhere_is_shown(database: str) -> None:
    async with serving(database, None, "other") as other:
        await other.database.execute("INSERT INTO relay (log, halted) VALUES ('0', 'lost')")
        shown = Shown(other)
        await shown.watch.read()
        assert shown.of(figures.RELAY_HALTED, OTHER) == 1


async def test_of_an_owner_that_is_away_nobody_knows_how_far_its_readers_are_behind(
    database: str,
) -> None:
    async with (
        serving(database, None, "other") as other,
        serving(database, None, "sample") as sample,
    ):
        gate = Gate(other.journal)
        async with reading(sample, Answers(), gate) as reader:
            await other.say(asked("a"))
            await reached(reader, other)
        gate.away = True
        async with resting(sample, gate) as idle:
            shown = Shown(sample, (idle,))
            await shown.watch.read()
            assert shown.of(figures.LAG, READER) is None
            assert shown.of(figures.HALTED, READER) == 0


async def test_figures_that_cannot_be_read_are_not_shown_and_their_age_is(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figures, "FIGURES_SECONDS", 0.01)
    one = Figure("fermion_test", "A test.")
    faults: list[Exception | None] = [None]

    async def measure() -> list[Sample]:
        if faults[0] is not None:
            raise faults[0]
        return [Sample(one, (), 7)]

    async with serving(database, None, "sample") as sample:
        clock = Hand()
        watch = Watch(sample.journal, sample.database, sample.bus, (), clock, measure)
        async with running(watch.run()):
            await until(lambda: found_in(watch, one, ()) == 7, "it is shown")
            for fault in (Unavailable("AWAY", "Away."), ValueError("a fault of the program")):
                faults[0] = fault
                await until(lambda: found_in(watch, one, ()) is None, "it is not shown any more")
                clock.ahead += timedelta(seconds=30)
                assert found_in(watch, figures.AGE, ("sample",)) == 30
                assert found_in(watch, figures.HEAD, ("sample/0",)) is None
                faults[0] = None
                await until(lambda: found_in(watch, one, ()) == 7, "it is shown again")
                assert found_in(watch, figures.AGE, ("sample",)) == 0
