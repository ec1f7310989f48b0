"""The wall around PostgreSQL: what is lost is Unavailable, what is wrong is not."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from urllib.parse import urlsplit

import asyncpg
import pytest

from chassis.postgres import Database, Misfit
from chassis.refusals import Invalid, Unavailable
from tests.diary import SERVICE
from tests.wire import wire


@pytest.fixture
async def sample(database: str) -> AsyncIterator[Database]:
    """A database without anything, and one connection."""
    opened = Database(database, SERVICE)
    await opened.open(pool_size=1)
    yield opened
    await opened.close()


async def test_a_connection_that_was_killed_is_unavailable_once(sample: Database) -> None:
    with pytest.raises(Unavailable) as refused:
        await sample.fetchval("SELECT pg_terminate_backend(pg_backend_pid())")
    assert refused.value.reason == "DATABASE_UNAVAILABLE"
    assert await sample.fetchval("SELECT 1") == 1


async def test_a_database_that_is_away_is_not_ready(sample: Database) -> None:
    async with wire(sample.dsn) as laid:
        through = Database(laid.dsn, SERVICE)
        await through.open(pool_size=1)
        assert await through.ready()
        laid.up = False
        laid.sever()
        assert not await through.ready()
        with pytest.raises(Unavailable):
            await through.pinned("test")
        laid.up = True
        assert await through.ready()
        await through.close()


async def test_a_database_without_us_is_waited_for(sample: Database) -> None:
    there = urlsplit(sample.dsn)
    for wrong in (there._replace(path="/nowhere"), there._replace(netloc="nobody-here@")):
        through = Database(wrong.geturl(), SERVICE)
        with pytest.raises(Unavailable):
            await through.open()
        with pytest.raises(Unavailable):
            await through.pinned("test")


@pytest.mark.parametrize("dsn", ["bogus", "mysql://here/db", "postgresql://here:port/db"])
async def test_a_dsn_that_is_none_is_no_outage(dsn: str) -> None:
    for reach in (Database(dsn, SERVICE).open, partial(Database(dsn, SERVICE).pinned, "test")):
        with pytest.raises(Invalid) as refused:
            await reach()
        assert refused.value.arguments == {"variable": "FERMION_POSTGRES_DSN"}


async def test_a_wrong_number_of_arguments_is_a_fault_and_not_an_outage(sample: Database) -> None:
    with pytest.raises(Misfit):
        await sample.fetchval("SELECT $1::int", 1, 2)
    with pytest.raises(asyncpg.DataError):
        await sample.fetchval("SELECT $1::int", "one")
    assert await sample.ready()


async def test_a_pool_that_is_not_open_is_unavailable(database: str) -> None:
    with pytest.raises(Unavailable):
        await Database(database, SERVICE).fetch("SELECT 1")


async def test_names_are_looked_up_in_the_service_and_its_rows(sample: Database) -> None:
    assert await sample.fetchval("SHOW search_path") == "sample, sample_rows"
    assert await sample.fetchval("SHOW timezone") == "UTC"


async def test_a_transaction_that_was_left_open_is_rolled_back(sample: Database) -> None:
    await sample.execute("CREATE SCHEMA sample")
    await sample.execute("BEGIN; CREATE TABLE sample.a (n int)")
    assert await sample.fetchval("SELECT to_regclass('a')") is None


async def test_a_statement_of_ones_own_connection_may_have_a_limit(sample: Database) -> None:
    connection = await sample.pinned("test", statement_seconds=0.05)
    with pytest.raises(TimeoutError):
        await connection.fetchval("SELECT pg_sleep(5)")
    connection.terminate()
