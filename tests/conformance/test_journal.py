"""What a journal promises, held against the one in memory and the one in PostgreSQL."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta

import pytest
from google.protobuf.message import Message

from chassis.envelope import FACT_BYTES_MAX, Meta, Recorded
from chassis.journal import (
    PAGE_BYTES_MAX,
    Advance,
    Command,
    Committed,
    Fenced,
    Overtaken,
    Remembered,
    Stale,
    Stated,
    Unpark,
)
from chassis.refusals import Exists, Invalid
from chassis.testing.memory import Checkpoint
from chassis.testing.scenario import NOON
from tests.conformance.stand import Stand, stand_in
from tests.diary import META, RAISES, entry, request, texts

READER, SOURCE = "sample/other", "other/0"
SEEDS = 4
COMMANDS = 150


@pytest.fixture(params=["memory", "postgres"])
async def stand(request: pytest.FixtureRequest, database: str) -> AsyncIterator[Stand]:
    """Both journals, one after the other."""
    async with stand_in(request.param, database) as stand:
        yield stand


def say(*facts: Message, **rest: object) -> Command:
    return Command(facts, META, **rest)  # type: ignore[arg-type]


def advance(after: int, position: int, epoch: int = 1, folded: int = 1) -> Advance:
    return Advance(READER, SOURCE, epoch, after, position, folded, position - after - folded)


async def said(stand: Stand) -> list[Recorded]:
    return list((await stand.journal.read(0, 1000)).records)


async def test_facts_get_dense_positions_and_versions(stand: Stand) -> None:
    first = await stand.journal.append(say(entry("a"), entry("b"), entry("a")))
    second = await stand.journal.append(say(entry("b")))
    assert [fact.position for fact in first.records] == [1, 2, 3]
    assert [(fact.stream, fact.version) for fact in first.records] == [("a", 1), ("b", 1), ("a", 2)]
    assert (first.position, second.position) == (3, 4)
    assert second.records[0].version == 2


async def test_each_project_counts_its_own_positions(stand: Stand) -> None:
    await stand.journal.append(say(entry("a"), entry("b", project="other"), entry("a")))
    await stand.journal.append(say(entry("c", project="other"), entry("d", project="")))
    found = [(fact.project, fact.project_position) for fact in await said(stand)]
    assert found == [("acme", 1), ("other", 1), ("acme", 2), ("other", 2), ("_", 1)]


async def test_what_append_returns_is_what_is_read_back(stand: Stand) -> None:
    committed = await stand.journal.append(say(entry("a", "hello"), entry("b", states="x")))
    loaded = await stand.journal.load(["a", "b"])
    assert tuple(await said(stand)) == committed.records
    assert loaded == {"a": committed.records[:1], "b": committed.records[1:]}
    assert committed.records[0].meta == META
    assert committed.records[1].statement != ""


async def test_facts_of_one_command_have_one_time(stand: Stand) -> None:
    first = await stand.journal.append(say(entry("a"), entry("b")))
    second = await stand.journal.append(say(entry("a")))
    assert first.records[0].record_time == first.records[1].record_time
    assert second.records[0].record_time > first.records[0].record_time


async def test_facts_of_several_causes_have_each_its_own_meta(stand: Stand) -> None:
    metas = (replace(META, cause_position=1), replace(META, cause_position=2))
    await stand.journal.append(say(entry("a"), entry("b"), metas=metas))
    assert tuple(fact.meta for fact in await said(stand)) == metas


async def test_metas_that_are_not_as_many_as_the_facts_are_a_fault(stand: Stand) -> None:
    with pytest.raises(ValueError, match="2 facts have 1 metas"):
        await stand.journal.append(say(entry("a"), entry("b"), metas=(META,)))


async def test_a_stream_that_was_never_written_is_empty(stand: Stand) -> None:
    assert await stand.journal.load(["nowhere"]) == {"nowhere": ()}


async def test_a_stream_that_moved_since_it_was_read_is_stale(stand: Stand) -> None:
    await stand.journal.append(say(entry("a"), expected={"a": 0}))
    for version in (0, 2):
        with pytest.raises(Stale):
            await stand.journal.append(say(entry("a"), expected={"a": version}))
    assert len(await said(stand)) == 1
    assert await stand.written() == 1


async def test_a_stream_that_was_only_read_is_guarded_too(stand: Stand) -> None:
    await stand.journal.append(say(entry("a")))
    with pytest.raises(Stale):
        await stand.journal.append(say(entry("b"), expected={"b": 0, "a": 0}))
    await stand.journal.append(say(entry("b"), expected={"b": 0, "a": 1}))


async def test_a_statement_said_already_is_success_without_fact_or_row(stand: Stand) -> None:
    await stand.journal.append(say(entry("a", states="it ran")))
    again = await stand.journal.append(say(entry("a", states="it ran")))
    assert again == Committed((), 1)
    assert len(await said(stand)) == 1
    assert await stand.written() == 1


async def test_statements_of_which_some_are_said_are_decided_again(stand: Stand) -> None:
    await stand.journal.append(say(entry("a", states="it ran")))
    for other in (entry("a", states="it ended"), entry("a")):
        with pytest.raises(Stated):
            await stand.journal.append(say(entry("a", states="it ran"), other))
    assert len(await said(stand)) == 1


async def test_a_command_that_states_one_thing_twice_is_a_fault(stand: Stand) -> None:
    with pytest.raises(ValueError, match="twice"):
        await stand.journal.append(say(entry("a", states="x"), entry("b", states="x")))


async def test_a_request_is_remembered_with_its_outcome(stand: Stand) -> None:
    asked = request("1")
    assert await stand.journal.remembered(asked) is None
    command = say(entry("a"), entry("b"), entry("a"), request=asked, subject="a")
    await stand.journal.append(command)
    with pytest.raises(Remembered) as found:
        await stand.journal.append(command)
    looked_up = await stand.journal.remembered(asked)
    assert looked_up is not None
    for answered in (found.value, looked_up):
        assert (answered.outcome.stream, answered.outcome.version) == ("a", 2)
        assert answered.digest == asked.digest
    assert len(await said(stand)) == 3


async def test_requests_are_told_apart_by_scope_and_method_and_id(stand: Stand) -> None:
    asked = request("1")
    for other in (
        asked,
        replace(asked, scope="other"),
        replace(asked, method="Unsay"),
        replace(asked, request_id="2"),
    ):
        await stand.journal.append(say(entry("a"), request=other, subject="a"))
    assert len(await said(stand)) == 4


async def test_a_request_that_said_nothing_is_remembered_as_of_now(stand: Stand) -> None:
    await stand.journal.append(say(entry("a"), entry("a")))
    committed = await stand.journal.append(say(request=request("1"), subject="a"))
    assert committed == Committed((), 2)
    answered = await stand.journal.remembered(request("1"))
    assert answered is not None
    assert answered.outcome.version == 2


async def test_a_request_about_no_stream_is_remembered(stand: Stand) -> None:
    await stand.journal.append(say(entry("a"), request=request("1")))
    answered = await stand.journal.remembered(request("1"))
    assert answered is not None
    assert (answered.outcome.stream, answered.outcome.version) == ("", 0)


async def test_a_refused_command_is_not_remembered(stand: Stand) -> None:
    await stand.journal.append(say(entry("a", claims={"home": "1"})))
    for facts, expected in (((entry("a", claims={"home": "2"}),), {}), ((entry("a"),), {"a": 7})):
        with pytest.raises((Exists, Stale)):
            await stand.journal.append(
                Command(facts, META, expected, request=request("1"), subject="a")
            )
    assert await stand.journal.remembered(request("1")) is None


async def test_a_name_is_held_until_it_is_released(stand: Stand) -> None:
    journal = stand.journal
    await journal.append(say(entry("a", claims={"home": "1"})))
    assert await journal.holder("diary", "home") == "1"
    with pytest.raises(Exists) as taken:
        await journal.append(say(entry("b", claims={"home": "2"})))
    assert taken.value.reason == "NAME_TAKEN"
    await journal.append(say(entry("a", claims={"home": "1"})))
    await journal.append(say(entry("a", releases=["home", "nobody's"])))
    assert await journal.holder("diary", "home") is None
    await journal.append(say(entry("b", claims={"home": "2"})))
    assert await journal.holder("diary", "home") == "2"


async def test_a_command_frees_names_before_it_takes_any(stand: Stand) -> None:
    await stand.journal.append(say(entry("a", claims={"home": "1"})))
    await stand.journal.append(say(entry("b", claims={"home": "2"}), entry("a", releases=["home"])))
    assert await stand.journal.holder("diary", "home") == "2"


async def test_one_command_takes_a_name_for_one_uid_only(stand: Stand) -> None:
    with pytest.raises(Exists):
        await stand.journal.append(
            say(entry("a", claims={"home": "1"}), entry("b", claims={"home": "2"}))
        )
    assert await stand.journal.holder("diary", "home") is None


async def test_a_name_with_a_newline_is_refused_by_its_own_claim(stand: Stand) -> None:
    await stand.journal.append(say(entry("a", claims={"x\ny": "1"})))
    with pytest.raises(Exists) as taken:
        await stand.journal.append(say(entry("b", claims={"x\ny": "2"})))
    assert taken.value.arguments == {"name": "x\ny"}


async def test_a_readers_checkpoint_moves_with_what_it_decided(stand: Stand) -> None:
    await stand.open_checkpoint(READER, SOURCE, Checkpoint())
    await stand.journal.append(say(entry("a"), advance=advance(0, 5, folded=2)))
    await stand.journal.append(say(advance=advance(5, 6)))
    found = await stand.checkpoint(READER, SOURCE)
    assert found == Checkpoint(epoch=1, position=6, folded=3, passed_over=3)


async def test_a_checkpoint_that_is_elsewhere_refuses_the_decision(stand: Stand) -> None:
    await stand.open_checkpoint(READER, SOURCE, Checkpoint(position=5, folded=5))
    for moved in (advance(4, 6), advance(6, 7), advance(5, 6, epoch=2)):
        with pytest.raises(Overtaken):
            await stand.journal.append(say(entry("a"), advance=moved))
    with pytest.raises(Overtaken):
        await stand.journal.append(say(advance=replace(advance(0, 1), reader="sample/nobody")))
    assert await said(stand) == []
    assert await stand.checkpoint(READER, SOURCE) == Checkpoint(position=5, folded=5)


async def test_a_checkpoint_that_has_read_nothing_takes_any_lineage(stand: Stand) -> None:
    await stand.open_checkpoint(READER, SOURCE, Checkpoint())
    await stand.journal.append(say(advance=advance(0, 1, epoch=3)))
    assert (await stand.checkpoint(READER, SOURCE)).epoch == 3


async def test_a_halted_reader_decides_nothing_until_it_is_resumed(stand: Stand) -> None:
    await stand.open_checkpoint(READER, SOURCE, Checkpoint(halted="why"))
    with pytest.raises(Overtaken):
        await stand.journal.append(say(entry("a"), advance=advance(0, 1)))
    await stand.journal.append(say(entry("a"), resume=(READER, SOURCE)))
    await stand.journal.append(say(entry("a"), advance=advance(0, 1)))
    assert (await stand.checkpoint(READER, SOURCE)).halted is None


async def test_a_reader_that_repeats_statements_advances_all_the_same(stand: Stand) -> None:
    await stand.open_checkpoint(READER, SOURCE, Checkpoint())
    await stand.journal.append(say(entry("a", states="it ran")))
    await stand.journal.append(say(entry("a", states="it ran"), advance=advance(0, 1)))
    assert (await stand.checkpoint(READER, SOURCE)).position == 1
    assert len(await said(stand)) == 1


async def test_a_parked_fact_is_taken_out_once(stand: Stand) -> None:
    await stand.open_checkpoint(READER, SOURCE, Checkpoint(position=9, folded=7))
    for position in (3, 4):
        await stand.park(READER, SOURCE, position)
    await stand.journal.append(say(entry("a"), unpark=Unpark(READER, SOURCE, 3)))
    await stand.journal.append(say(unpark=Unpark(READER, SOURCE, 4, skipped=True)))
    for position in (3, 4):
        with pytest.raises(Overtaken):
            await stand.journal.append(say(entry("a"), unpark=Unpark(READER, SOURCE, position)))
    found = await stand.checkpoint(READER, SOURCE)
    assert found == Checkpoint(position=9, folded=8, skipped=1)
    assert len(await said(stand)) == 1


async def test_a_writer_whose_lease_was_taken_is_fenced(stand: Stand) -> None:
    mine = await stand.take_lease("sample work")
    await stand.journal.append(say(entry("a"), writer=("sample work", mine)))
    theirs = await stand.take_lease("sample work")
    for epoch in (mine, theirs + 1):
        with pytest.raises(Fenced):
            await stand.journal.append(say(entry("a"), writer=("sample work", epoch)))
    with pytest.raises(Fenced):
        await stand.journal.append(say(entry("a"), writer=("nobody's", 1)))
    await stand.journal.append(say(entry("a"), writer=("sample work", theirs)))


async def test_what_is_refused_first_is_what_the_caller_hears(stand: Stand) -> None:
    """The order is: request, checkpoint, lease, versions, statements, names."""
    await stand.open_checkpoint(READER, SOURCE, Checkpoint())
    await stand.journal.append(
        say(entry("a", claims={"home": "1"}), entry("b", states="x"), request=request("1"))
    )
    wrong = Command(
        (entry("a", claims={"home": "2"}), entry("c", states="x"), entry("c", states="y")),
        META,
        {"a": 0},
        request=request("1"),
        advance=advance(7, 8),
        writer=("nobody's", 1),
    )
    with pytest.raises(Remembered):
        await stand.journal.append(wrong)
    wrong = replace(wrong, request=None)
    with pytest.raises(Overtaken):
        await stand.journal.append(wrong)
    wrong = replace(wrong, advance=None)
    with pytest.raises(Fenced):
        await stand.journal.append(wrong)
    wrong = replace(wrong, writer=None)
    with pytest.raises(Stale):
        await stand.journal.append(wrong)
    wrong = replace(wrong, expected={})
    with pytest.raises(Stated):
        await stand.journal.append(wrong)
    wrong = replace(wrong, facts=wrong.facts[:1])
    with pytest.raises(Exists):
        await stand.journal.append(wrong)


async def test_a_fact_too_large_is_refused_with_the_bound(stand: Stand) -> None:
    with pytest.raises(Invalid) as refused:
        await stand.journal.append(say(entry("a", "x" * FACT_BYTES_MAX)))
    assert refused.value.reason == "FACT_TOO_LARGE"
    assert refused.value.arguments["bytes_max"] == str(FACT_BYTES_MAX)
    await stand.journal.append(say(entry("a", "x" * (FACT_BYTES_MAX - 300))))


async def test_a_text_with_a_nul_is_refused_by_its_field(stand: Stand) -> None:
    with pytest.raises(Invalid) as refused:
        await stand.journal.append(say(entry("a"), entry("b", "x\0y")))
    assert refused.value.reason == "TEXT_HAS_NUL"
    assert refused.value.violations[0].field == "fields.text.string_value"
    assert await said(stand) == []


async def test_a_projection_that_raises_refuses_the_whole_command(stand: Stand) -> None:
    await stand.open_checkpoint(READER, SOURCE, Checkpoint())
    with pytest.raises(ValueError, match="cannot be projected"):
        await stand.journal.append(
            say(
                entry("a", claims={"home": "1"}),
                entry("a", RAISES, states="x"),
                request=request("1"),
                advance=advance(0, 1),
            )
        )
    assert await said(stand) == []
    assert await stand.written() == 0
    assert await stand.journal.holder("diary", "home") is None
    assert await stand.journal.remembered(request("1")) is None
    assert (await stand.checkpoint(READER, SOURCE)).position == 0
    await stand.journal.append(say(entry("a", states="x"), advance=advance(0, 1)))


async def test_of_commands_that_race_on_a_stream_one_wins(stand: Stand) -> None:
    race = [stand.journal.append(say(entry("a", str(n)), expected={"a": 0})) for n in range(20)]
    outcomes = await asyncio.gather(*race, return_exceptions=True)
    assert sum(isinstance(outcome, Committed) for outcome in outcomes) == 1
    assert sum(isinstance(outcome, Stale) for outcome in outcomes) == 19
    assert isinstance(outcomes[0], Committed)


async def test_of_commands_that_race_for_a_name_one_wins(stand: Stand) -> None:
    race = [stand.journal.append(say(entry(f"s{n}", claims={"home": str(n)}))) for n in range(20)]
    outcomes = await asyncio.gather(*race, return_exceptions=True)
    assert sum(isinstance(outcome, Exists) for outcome in outcomes) == 19
    assert await stand.journal.holder("diary", "home") == "0"


async def test_a_request_sent_twice_at_once_is_done_once(stand: Stand) -> None:
    command = say(entry("a"), request=request("1"), subject="a")
    race = [stand.journal.append(command) for _ in range(10)]
    outcomes = await asyncio.gather(*race, return_exceptions=True)
    assert sum(isinstance(outcome, Remembered) for outcome in outcomes) == 9
    assert len(await said(stand)) == 1


async def test_a_statement_said_by_many_at_once_is_said_once(stand: Stand) -> None:
    race = [stand.journal.append(say(entry(f"s{n}", states="it ran"))) for n in range(10)]
    outcomes = await asyncio.gather(*race)
    assert sum(len(outcome.records) for outcome in outcomes) == 1
    assert len(await said(stand)) == 1


async def test_a_refused_command_refuses_no_other_of_its_moment(stand: Stand) -> None:
    await stand.journal.append(say(entry("a", claims={"home": "1"})))
    race = [
        stand.journal.append(
            say(entry(f"s{n}", claims={"home": "2"} if n % 3 == 0 else None), expected={f"s{n}": 0})
        )
        for n in range(30)
    ]
    outcomes = await asyncio.gather(*race, return_exceptions=True)
    assert [isinstance(one, Exists) for one in outcomes] == [n % 3 == 0 for n in range(30)]
    assert [fact.position for fact in await said(stand)] == list(range(1, 22))


async def test_commands_on_one_stream_keep_the_order_of_their_calls(stand: Stand) -> None:
    await asyncio.gather(*(stand.journal.append(say(entry("a", str(n)))) for n in range(30)))
    assert texts((await stand.journal.load(["a"]))["a"]) == [str(n) for n in range(30)]


async def test_pages_go_on_after_a_position_and_tell_the_head(stand: Stand) -> None:
    await stand.journal.append(say(*(entry(f"s{n}") for n in range(5))))
    page = await stand.journal.read(1, 2)
    assert [fact.position for fact in page.records] == [2, 3]
    assert (page.head, page.epoch, page.epoch_first) == (5, 1, 1)
    assert (await stand.journal.read(5, 2)).records == ()
    head = await stand.journal.head()
    assert (head.epoch, head.position, head.epoch_first) == (1, 5, 1)


async def test_pages_of_great_facts_are_short_and_leave_none_out(stand: Stand) -> None:
    great, journal = "x" * (FACT_BYTES_MAX - 200), stand.journal
    for _ in range(5):
        await journal.append(say(*(entry("a", great) for _ in range(10))))
    fits = PAGE_BYTES_MAX // len(great) + 1
    read: dict[str, list[int]] = {"all": [], "project": [], "stream": []}
    sizes = set()
    for _ in range(3):
        page = await journal.read(len(read["all"]), 1000)
        assert page.ends == (len(read["all"]) + len(page.records) == 50)
        read["all"] += [fact.position for fact in page.records]
        page = await journal.read(len(read["project"]), 1000, project="acme")
        read["project"] += [fact.project_position for fact in page.records]
        stream = await journal.read_stream("a", len(read["stream"]), 1000)
        read["stream"] += [fact.version for fact in stream]
        sizes |= {len(page.records), len(stream)}
    assert read == {key: list(range(1, 51)) for key in read}
    assert sizes == {fits, 50 - fits, 0}


async def test_pages_of_a_project_count_its_own_positions(stand: Stand) -> None:
    for n in range(6):
        await stand.journal.append(say(entry(f"s{n}", project="odd" if n % 2 else "even")))
    page = await stand.journal.read(1, 10, project="odd")
    assert [fact.project_position for fact in page.records] == [2, 3]
    assert [fact.position for fact in page.records] == [4, 6]
    assert page.head == 3
    assert (await stand.journal.read(0, 10, project="nobody's")).head == 0


async def test_part_of_a_stream_is_read_up_to_a_time(stand: Stand) -> None:
    first = await stand.journal.append(say(entry("a", "1"), entry("a", "2"), entry("a", "3")))
    await stand.journal.append(say(entry("a", "4")))
    then = first.records[0].record_time
    assert texts(await stand.journal.read_stream("a", 1, 2)) == ["2", "3"]
    assert texts(await stand.journal.read_stream("a", 0, 9, until=then)) == ["1", "2", "3"]
    before = then - timedelta(microseconds=1)
    assert await stand.journal.read_stream("a", 0, 9, until=before) == ()


async def test_whoever_waits_for_growth_is_woken_by_a_commit(stand: Stand) -> None:
    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        group.create_task(stand.journal.grown(0, 60))
        group.create_task(stand.journal.append(say(entry("a"))))
    async with asyncio.timeout(5):
        await stand.journal.grown(0, 60)


async def test_whoever_waits_in_vain_gets_his_time_back(stand: Stand) -> None:
    await stand.journal.append(say(entry("a")))
    async with asyncio.timeout(5):
        await stand.journal.grown(1, 0.05)


async def test_an_empty_command_takes_no_position(stand: Stand) -> None:
    await stand.journal.append(say(entry("a")))
    assert await stand.journal.append(say()) == Committed((), 1)
    assert await said(stand) == (await said(stand))[:1]


def any_command(dice: random.Random) -> Command:
    """A command that may be refused for any reason, on few streams, names and statements."""
    facts = tuple(
        entry(
            dice.choice("abc"),
            dice.choice(["x", "y", RAISES] if dice.random() < 0.1 else ["x", "y"]),
            project=dice.choice(["", "acme", "other"]),
            states=dice.choice(["", "", "", "1", "2", "3", "4", "5", "6"]),
            claims={dice.choice("mn"): dice.choice("12")} if dice.random() < 0.2 else None,
            releases=[dice.choice("mn")] if dice.random() < 0.2 else [],
        )
        for _ in range(dice.choice([0, 1, 1, 1, 2, 3]))
    )
    return Command(
        facts,
        Meta("user_any", cause_position=dice.randrange(100)),
        expected={dice.choice("abc"): dice.randrange(8)} if dice.random() < 0.3 else {},
        request=request(str(dice.randrange(30))) if dice.random() < 0.4 else None,
        subject=dice.choice("abc"),
        advance=advance(at, at + 2) if (at := dice.randrange(8)) < 4 else None,
        unpark=Unpark(READER, SOURCE, place, skipped=bool(place % 2))
        if (place := dice.randrange(12)) < 4
        else None,
    )


async def outcome(stand: Stand, command: Command) -> object:
    """What became of a command, without the time, which only the journal knows."""
    try:
        committed = await stand.journal.append(command)
    except Exception as error:
        told = getattr(error, "outcome", getattr(error, "reason", ""))
        return type(error).__name__, told
    return committed.position, [fact._replace(record_time=NOON) for fact in committed.records]


@pytest.mark.parametrize("seed", range(SEEDS))
async def test_any_commands_end_alike_in_memory_and_in_postgres(database: str, seed: int) -> None:
    dice = random.Random(seed)
    commands = [any_command(dice) for _ in range(COMMANDS)]
    found: list[list[object]] = []
    ends: list[object] = []
    for kind in ("memory", "postgres"):
        async with stand_in(kind, database) as stand:
            await stand.open_checkpoint(READER, SOURCE, Checkpoint())
            for position in range(4):
                await stand.park(READER, SOURCE, position)
            found.append([await outcome(stand, command) for command in commands])
            ends.append(
                (
                    [await stand.journal.holder("diary", name) for name in "mn"],
                    await stand.checkpoint(READER, SOURCE),
                    await stand.written(),
                )
            )
    for command, memory, postgres in zip(commands, *found, strict=True):
        assert memory == postgres, command
    assert ends[0] == ends[1]
    kinds = {one[0] for one in found[0] if isinstance(one, tuple) and isinstance(one[0], str)}
    assert {"Remembered", "Overtaken", "Stale", "Stated"} <= kinds
