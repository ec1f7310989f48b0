"""What a reader cannot use waits with its stream, is counted, and comes out again in order."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from functools import partial

import pytest

from chassis import readers
from chassis.audit import audit
from chassis.journal import Request
from chassis.parking import resume, skip, stream_of
from chassis.readers import PARKED_STREAMS_MAX, Reader
from chassis.refusals import Conflict, Invalid, Missing
from fermion.api.instances import v1 as api
from fermion.api.journal import v1 as journal_api
from tests.sample import (
    META,
    QUERIES,
    Answers,
    Gate,
    Service,
    Tallies,
    asked,
    beside,
    reached,
    reading,
    serving,
    until,
)

JOURNAL = "other/0"


async def parking(service: Service) -> list[tuple[int, str, str]]:
    """What waits: position, stream, and the reason's first word."""
    rows = await service.database.fetch("SELECT * FROM parked ORDER BY position")
    return [(row["position"], row["stream"], row["reason"].split(":")[0]) for row in rows]


async def assert_counted(service: Service, reader: Reader) -> None:
    row = await service.checkpoint(reader)
    total = row["folded"] + row["passed_over"] + row["parked"] + row["skipped"]
    assert total == row["position"], row


async def stopped(service: Service) -> list[tuple[str, int]]:
    said = [one for one in await service.facts() if isinstance(one, api.InstanceStopped)]
    return [(one.uid, one.attempt) for one in said]


@pytest.mark.parametrize("consumer", [Answers, Tallies])
async def test_a_fact_that_raises_is_parked_with_what_follows_it_and_the_others_go_on(
    database: str, consumer: type[Answers] | type[Tallies]
) -> None:
    async with (
        serving(database, None, "other") as other,
        serving(database, None, "sample") as sample,
        reading(sample, consumer({"bad"}), Gate(other.journal)) as reader,
    ):
        await other.say(asked("good"), asked("bad"), beside("bad"), asked("good", 2))
        await other.say(asked("bad", 2), asked("new"))
        await reached(reader, other)
        assert await parking(sample) == [
            (2, "instance/bad", "ValueError"),
            (3, "instance/bad", "BEHIND"),
            (5, "instance/bad", "BEHIND"),
        ]
        row = await sample.checkpoint(reader)
        assert (row["position"], row["folded"], row["parked"]) == (6, 3, 3)
        if consumer is Answers:
            assert await stopped(sample) == [("good", 1), ("good", 2), ("new", 1)]
        else:
            rows = await sample.database.fetch(QUERIES["read_tally"])
            assert [tuple(row) for row in rows] == [("good", 2), ("new", 1)]


@pytest.mark.parametrize("consumer", [Answers, Tallies])
async def test_a_retry_handles_a_stream_in_order_and_sets_it_free(
    database: str, consumer: type[Answers] | type[Tallies]
) -> None:
    broken = consumer({"bad"})
    async with (
        serving(database, None, "other") as other,
        serving(database, None, "sample") as sample,
        reading(sample, broken, Gate(other.journal)) as reader,
    ):
        await other.say(asked("bad"), beside("bad"), asked("bad", 2), asked("good"))
        await reached(reader, other)
        assert await reader.retry("instance/bad") == (0, 3)
        broken.broken.clear()
        assert await reader.retry("instance/bad") == (3, 0)
        assert await reader.retry("instance/bad") == (0, 0)
        assert await parking(sample) == []
        await assert_counted(sample, reader)
        await other.say(asked("bad", 3))
        await reached(reader, other)
        assert await parking(sample) == []
        if consumer is Answers:
            assert await stopped(sample) == [("good", 1), ("bad", 1), ("bad", 2), ("bad", 3)]
        else:
            rows = await sample.database.fetch(QUERIES["read_tally"])
            assert [tuple(row) for row in rows] == [("bad", 3), ("good", 1)]


async def test_a_retry_while_facts_of_the_stream_come_in_keeps_their_order(
    database: str,
) -> None:
    broken = Answers({"bad"})
    async with (
        serving(database, None, "other") as other,
        serving(database, None, "sample") as sample,
        reading(sample, broken, Gate(other.journal)) as reader,
    ):
        for attempt in range(1, 31):
            await other.say(asked("bad", attempt))
        await reached(reader, other)
        broken.broken.clear()

        async def go_on() -> None:
            for attempt in range(31, 121):
                await other.say(asked("bad", attempt))

        async with asyncio.TaskGroup() as group:
            group.create_task(go_on())
            await reader.retry("instance/bad")
        # What was parked behind the retry's back comes out by the next one.
        await reached(reader, other)
        await reader.retry("instance/bad")
        assert await stopped(sample) == [("bad", attempt) for attempt in range(1, 121)]
        assert await parking(sample) == []
        await assert_counted(sample, reader)


async def test_two_operators_that_retry_the_same_stream_do_nothing_twice(database: str) -> None:
    broken = Answers({"bad"})
    async with (
        serving(database, None, "other") as other,
        serving(database, None, "sample") as sample,
        reading(sample, broken, Gate(other.journal)) as reader,
    ):
        await other.say(*(asked("bad", attempt) for attempt in range(1, 21)))
        await reached(reader, other)
        broken.broken.clear()
        outcomes = await asyncio.gather(
            *(reader.retry("instance/bad") for _ in range(3)), return_exceptions=True
        )
        for outcome in outcomes:
            assert isinstance(outcome, tuple | Conflict), outcome
        await reader.retry("instance/bad")
        assert await stopped(sample) == [("bad", attempt) for attempt in range(1, 21)]


async def test_a_retry_in_a_process_that_does_not_read_frees_the_stream_for_the_one_that_does(
    database: str,
) -> None:
    broken = Answers({"bad"})
    async with (
        serving(database, None, "other") as other,
        serving(database, None, "sample") as sample,
        reading(sample, broken, Gate(other.journal)) as holder,
    ):
        await other.say(asked("bad"))
        await reached(holder, other)
        async with reading(sample, Answers(), Gate(other.journal)) as idle:
            assert await idle.retry("instance/bad") == (1, 0)
        broken.broken.clear()
        await other.say(asked("bad", 2))
        await reached(holder, other)
        assert await parking(sample) == []
        assert await stopped(sample) == [("bad", 1), ("bad", 2)]


async def test_a_fact_that_is_given_up_is_a_fact_and_what_was_behind_it_comes_out(
    database: str,
) -> None:
    broken = Answers({"bad"})
    async with (
        serving(database, None, "other") as other,
        serving(database, None, "sample") as sample,
        reading(sample, broken, Gate(other.journal)) as reader,
    ):
        await other.say(asked("bad"), asked("bad", 2))
        await reached(reader, other)
        position = await skip(
            sample.journal,
            sample.database,
            reader=reader.name,
            source=JOURNAL,
            position=1,
            reason="it never was",
            meta=META,
        )
        said = (await sample.journal.read(position - 1, 1)).records[0]
        assert said.stream == stream_of(reader.name, JOURNAL) == "reader/sample-other-other-0"
        assert said.meta.actor == "user_ada"
        assert said.message == journal_api.ParkedFactSkipped(
            reader=reader.name,
            journal=JOURNAL,
            position=1,
            stream="instance/bad",
            reason="it never was",
        )
        broken.broken.clear()
        assert await reader.retry("instance/bad") == (1, 0)
        assert await stopped(sample) == [("bad", 2)]
        row = await sample.checkpoint(reader)
        assert (row["folded"], row["skipped"], row["parked"]) == (1, 1, 0)
        with pytest.raises(Missing):
            await skip(
                sample.journal,
                sample.database,
                reader=reader.name,
                source=JOURNAL,
                position=1,
                reason="again",
                meta=META,
            )


async def test_what_is_given_up_or_resumed_again_with_one_request_is_one_fact(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "HALTED_SECONDS", 0.05)
    broken = Answers({f"inst_{number}" for number in range(40)})
    async with (
        serving(database, None, "other") as other,
        serving(database, None, "sample") as sample,
        reading(sample, broken, Gate(other.journal)) as reader,
    ):
        await other.say(*(asked(uid) for uid in sorted(broken.broken)))
        await until(lambda: reader.halted, "the reader halts")
        broken.broken.clear()
        (position, *_), *_ = await parking(sample)
        give_up = partial(
            skip,
            sample.journal,
            sample.database,
            reader=reader.name,
            source=JOURNAL,
            position=position,
            reason="it never was",
            meta=META,
        )
        let_go_on = partial(
            resume,
            sample.journal,
            sample.database,
            reader=reader.name,
            source=JOURNAL,
            meta=META,
        )
        for number, act in enumerate((give_up, let_go_on)):
            asking = Request("caller/user_ada", f"/Act{number}", "one", b"body")
            first, *others = await asyncio.gather(*(act(request=asking) for _ in range(5)))
            assert await act(request=asking) >= max(first, *others)
            with pytest.raises(Invalid) as error:
                await act(request=replace(asking, digest=b"another body"))
            assert error.value.reason == "REQUEST_ID_REUSED"
            with pytest.raises(Missing):
                await act(request=replace(asking, request_id="another"))
        said = await sample.journal.read_stream(stream_of(reader.name, JOURNAL), 0, 100)
        assert [type(fact.message) for fact in said] == [
            journal_api.ParkedFactSkipped,
            journal_api.ReaderResumed,
        ]


@pytest.mark.parametrize("consumer", [Answers, Tallies])
async def test_a_reader_that_fails_on_most_of_a_page_halts_until_an_operator_resumes_it(
    database: str,
    consumer: type[Answers] | type[Tallies],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(readers, "HALTED_SECONDS", 0.05)
    bad = {f"inst_{number}" for number in range(40)}
    async with (
        serving(database, None, "other") as other,
        serving(database, None, "sample") as sample,
    ):
        await other.say(*(asked(uid) for uid in sorted(bad)))
        async with reading(sample, consumer(bad), Gate(other.journal)) as reader:
            await until(lambda: reader.halted, "the reader halts")
            assert reader.position == 21
            assert f"{reader.name} halted" in caplog.text
        repaired = consumer()
        async with reading(sample, repaired, Gate(other.journal)) as reader:
            await until(lambda: reader.halted, "a restart changes nothing")
            await resume(
                sample.journal, sample.database, reader=reader.name, source=JOURNAL, meta=META
            )
            await reached(reader, other)
            await until(lambda: not reader.halted, "it goes on")
            with pytest.raises(Missing):
                await resume(
                    sample.journal, sample.database, reader=reader.name, source=JOURNAL, meta=META
                )
            row = await sample.checkpoint(reader)
            assert (row["folded"], row["parked"]) == (19, 21)
            for _, stream, _ in await parking(sample):
                assert await reader.retry(stream) == (1, 0)
            row = await sample.checkpoint(reader)
            assert (row["folded"], row["parked"]) == (40, 0)


async def test_a_reader_with_too_many_parked_streams_halts(database: str) -> None:
    bad = [f"inst_{number}" for number in range(PARKED_STREAMS_MAX + 10)]
    async with (
        serving(database, None, "other") as other,
        serving(database, None, "sample") as sample,
        reading(sample, Answers(bad), Gate(other.journal)) as reader,
    ):
        for uid in bad:
            # One in three fails: no page alone looks systemic.
            await other.say(asked(uid), beside("inst_beside"), beside("inst_beside"))
        await until(lambda: reader.halted, "the reader halts")
        row = await sample.checkpoint(reader)
        assert row["parked"] == PARKED_STREAMS_MAX + 1
        await assert_counted(sample, reader)
        assert str(PARKED_STREAMS_MAX + 1) in row["halted"]


async def test_what_is_parked_and_skipped_is_counted_by_the_audit(database: str) -> None:
    async with (
        serving(database, None, "other") as other,
        serving(database, None, "sample") as sample,
        reading(sample, Answers({"bad"}), Gate(other.journal)) as reader,
    ):
        await other.say(asked("bad"), asked("good"), asked("bad", 2), beside("good"))
        await reached(reader, other)
        await skip(
            sample.journal,
            sample.database,
            reader=reader.name,
            source=JOURNAL,
            position=3,
            reason="x",
            meta=META,
        )
        checks = await audit(sample.journal, sample.database, sample.bus, [reader.feed])
        told = {one.name: (one.left, one.holds) for one in checks}
        name = "sample/other on other/0: folded + passed over + parked + skipped = checkpoint"
        assert told[name] == ("4", True)
