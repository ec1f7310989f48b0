"""Numbered SQL is applied once, in order, whole files or nothing, and never after it was edited."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest

from chassis.migrations import migrate
from chassis.postgres import Database
from chassis.refusals import Refused, Unavailable
from tests.diary import KERNEL, SERVICE
from tests.wire import wire


@pytest.fixture
async def sample(database: str) -> AsyncIterator[Database]:
    """A database without anything."""
    opened = Database(database, SERVICE)
    await opened.open(pool_size=2)
    yield opened
    await opened.close()


def write(folder: Path, **files: str) -> Path:
    """Write `_0001_a="…"` as 0001_a.sql."""
    for name, text in files.items():
        (folder / f"{name[1:]}.sql").write_text(text)
    return folder


async def test_new_files_are_applied_in_order_and_once(sample: Database, tmp_path: Path) -> None:
    write(tmp_path, _0002_b="INSERT INTO a VALUES (2);", _0001_a="CREATE TABLE a (n int);")
    assert await migrate(sample, tmp_path, "sample") == 2
    assert await migrate(sample, tmp_path, "sample") == 0
    write(tmp_path, _0003_c="INSERT INTO a VALUES (3); INSERT INTO a VALUES (4);")
    assert await migrate(sample, tmp_path, "sample") == 1
    assert [row["n"] for row in await sample.fetch("SELECT n FROM a ORDER BY n")] == [2, 3, 4]


async def test_names_in_a_file_are_those_of_its_schema(sample: Database, tmp_path: Path) -> None:
    write(tmp_path, _0001_a="CREATE TABLE a (n int);")
    await migrate(sample, tmp_path, "sample")
    await migrate(sample, tmp_path, "sample_rows")
    found = await sample.fetch("SELECT schemaname FROM pg_tables WHERE tablename = 'a' ORDER BY 1")
    assert [row["schemaname"] for row in found] == ["sample", "sample_rows"]


async def test_a_file_that_was_edited_is_refused(sample: Database, tmp_path: Path) -> None:
    write(tmp_path, _0001_a="CREATE TABLE a (n int);")
    await migrate(sample, tmp_path, "sample")
    write(tmp_path, _0001_a="CREATE TABLE a (n bigint);", _0002_b="CREATE TABLE b (n int);")
    with pytest.raises(Refused) as refused:
        await migrate(sample, tmp_path, "sample")
    assert refused.value.reason == "MIGRATION_EDITED"
    assert refused.value.arguments["file"] == "0001_a.sql"
    assert await sample.fetchval("SELECT to_regclass('b')") is None


async def test_a_file_whose_name_has_no_number_is_refused(sample: Database, tmp_path: Path) -> None:
    (tmp_path / "later.sql").write_text("SELECT 1")
    with pytest.raises(Refused) as refused:
        await migrate(sample, tmp_path, "sample")
    assert refused.value.reason == "MIGRATION_MISNAMED"


async def test_two_files_of_one_number_are_refused(sample: Database, tmp_path: Path) -> None:
    write(tmp_path, _0001_a="SELECT 1;", _0001_b="SELECT 2;")
    with pytest.raises(Refused) as refused:
        await migrate(sample, tmp_path, "sample")
    assert "0001_a.sql and 0001_b.sql" in str(refused.value)


async def test_a_file_that_fails_leaves_nothing_and_keeps_those_before(
    sample: Database, tmp_path: Path
) -> None:
    write(
        tmp_path,
        _0001_a="CREATE TABLE a (n int);",
        _0002_b="CREATE TABLE b (n int); SELECT 1 / 0;",
    )
    with pytest.raises(asyncpg.DivisionByZeroError):
        await migrate(sample, tmp_path, "sample")
    assert await sample.fetchval("SELECT to_regclass('a')") is not None
    assert await sample.fetchval("SELECT to_regclass('b')") is None
    write(tmp_path, _0002_b="CREATE TABLE b (n int);")
    assert await migrate(sample, tmp_path, "sample") == 1


async def test_processes_that_start_at_once_apply_each_file_once(
    sample: Database, tmp_path: Path
) -> None:
    write(tmp_path, _0001_a="CREATE TABLE a (n int);", _0002_b="INSERT INTO a VALUES (1);")
    applied = await asyncio.gather(*(migrate(sample, tmp_path, "sample") for _ in range(6)))
    assert sorted(applied) == [0, 0, 0, 0, 0, 2]
    assert await sample.fetchval("SELECT count(*) FROM a") == 1


async def test_the_kernels_own_files_apply_and_apply_again(sample: Database) -> None:
    assert await migrate(sample, KERNEL, "sample") > 0
    assert await migrate(sample, KERNEL, "sample") == 0


async def test_a_database_that_is_away_is_unavailable(sample: Database, tmp_path: Path) -> None:
    async with wire(sample.dsn) as laid:
        laid.up = False
        with pytest.raises(Unavailable):
            await migrate(
                Database(laid.dsn, SERVICE), write(tmp_path, _0001_a="SELECT 1"), "sample"
            )
