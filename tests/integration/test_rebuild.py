"""The read model is folded from zero beside the live one, and takes its place while facts come in."""

from __future__ import annotations

import asyncio

import pytest

from chassis.rebuild import rebuild
from chassis.refusals import Conflict
from tests.sample import BOOK, FOLDER, QUERIES, Service, asked, beside, serving

ROWS = FOLDER / "migrations" / "rows"


async def seen(service: Service) -> dict[str, tuple[int, int]]:
    rows = await service.database.fetch(QUERIES["read_seen"])
    return {row["uid"]: (row["facts"], row["attempts"]) for row in rows}


async def say(service: Service, uids: int, attempts: int, start: int = 1) -> None:
    for attempt in range(start, start + attempts):
        await asyncio.gather(*(service.say(asked(f"inst_{uid}", attempt)) for uid in range(uids)))


async def test_what_is_folded_from_zero_equals_what_was_live(database: str) -> None:
    async with serving(database, None, "other") as other:
        await say(other, 30, 5)
        await other.say(beside("inst_1"), asked("inst_1", 2))
        before = await seen(other)
        done = await rebuild(other.database, other.journal, BOOK, QUERIES, ROWS)
        assert done.live_hash == done.rebuilt_hash
        assert done.folded == 152
        assert await seen(other) == before
        assert before["inst_1"] == (7, 5)


async def test_facts_that_come_in_meanwhile_are_in_the_new_rows(database: str) -> None:
    async with serving(database, None, "other") as other:
        await say(other, 30, 5)
        async with asyncio.TaskGroup() as group:
            going_on = group.create_task(say(other, 30, 40, start=6))
            rebuilt = 0
            while not going_on.done():
                done = await rebuild(other.database, other.journal, BOOK, QUERIES, ROWS)
                assert done.live_hash == done.rebuilt_hash
                rebuilt += 1
        assert rebuilt > 0
        await other.say(asked("inst_0", 99))
        assert await seen(other) == {
            f"inst_{uid}": (45, 45) if uid else (46, 99) for uid in range(30)
        }


async def test_a_rebuild_that_is_only_looked_at_sees_a_wrong_row_and_leaves_it(
    database: str,
) -> None:
    async with serving(database, None, "other") as other:
        await say(other, 5, 2)
        await other.database.execute("UPDATE seen SET facts = facts + 1 WHERE uid = 'inst_3'")
        before = await seen(other)
        for _ in range(2):
            done = await rebuild(other.database, other.journal, BOOK, QUERIES, ROWS, swap=False)
            assert done.live_hash != done.rebuilt_hash
            assert await seen(other) == before
        schemas = await other.database.fetch("SELECT nspname FROM pg_namespace")
        assert not {"other_rows_new", "other_rows_old"} & {row["nspname"] for row in schemas}


async def test_a_wrong_row_is_seen_and_put_right(database: str) -> None:
    async with serving(database, None, "other") as other:
        await say(other, 5, 2)
        before = await seen(other)
        await other.database.execute("UPDATE seen SET facts = facts + 1 WHERE uid = 'inst_3'")
        done = await rebuild(other.database, other.journal, BOOK, QUERIES, ROWS)
        assert done.live_hash != done.rebuilt_hash
        assert await seen(other) == before
        again = await rebuild(other.database, other.journal, BOOK, QUERIES, ROWS)
        assert again.live_hash == again.rebuilt_hash == done.rebuilt_hash


async def test_nothing_is_left_behind_and_one_rebuild_runs_at_a_time(database: str) -> None:
    async with serving(database, None, "other") as other:
        await say(other, 20, 5)
        outcomes = await asyncio.gather(
            *(rebuild(other.database, other.journal, BOOK, QUERIES, ROWS) for _ in range(3)),
            return_exceptions=True,
        )
        refused = [outcome for outcome in outcomes if isinstance(outcome, Conflict)]
        assert [one.reason for one in refused] == ["REBUILD_RUNS"] * len(refused)
        assert len(refused) < len(outcomes)
        assert not [one for one in outcomes if isinstance(one, Exception) and one not in refused]
        schemas = await other.database.fetch(
            "SELECT nspname FROM pg_namespace WHERE nspname LIKE 'other%' ORDER BY nspname"
        )
        assert [row["nspname"] for row in schemas] == ["other", "other_rows"]


async def test_what_a_rebuild_that_was_killed_left_behind_does_not_stop_the_next(
    database: str,
) -> None:
    async with serving(database, None, "other") as other:
        await say(other, 3, 3)
        for schema in ("other_rows_new", "other_rows_old"):
            await other.database.execute(f"CREATE SCHEMA {schema}")
            await other.database.execute(f"CREATE TABLE {schema}.seen (uid text)")
        done = await rebuild(other.database, other.journal, BOOK, QUERIES, ROWS)
        assert done.live_hash == done.rebuilt_hash


async def test_a_service_that_starts_after_a_rebuild_finds_its_migrations_applied(
    database: str,
) -> None:
    async with serving(database, None, "other") as other:
        await say(other, 3, 3)
        await rebuild(other.database, other.journal, BOOK, QUERIES, ROWS)
    async with serving(database, None, "other") as other:
        await say(other, 3, 1, start=4)
        assert await seen(other) == {f"inst_{uid}": (4, 4) for uid in range(3)}


async def test_an_empty_journal_has_an_empty_read_model(database: str) -> None:
    async with serving(database, None, "other") as other:
        done = await rebuild(other.database, other.journal, BOOK, QUERIES, ROWS)
        assert done.live_hash == done.rebuilt_hash
        assert done.folded == 0


@pytest.mark.parametrize("stale", [1, 2])
async def test_rows_of_a_reader_that_folds_are_left_alone(database: str, stale: int) -> None:
    async with serving(database, None, "other") as other:
        await other.database.execute("INSERT INTO tally VALUES ('inst_1', $1)", stale)
        await rebuild(other.database, other.journal, BOOK, QUERIES, ROWS)
        assert await other.database.fetchval("SELECT facts FROM tally") == stale
