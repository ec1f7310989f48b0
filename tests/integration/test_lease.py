"""A lease chooses who works: one holder at a time by the database's clock, and a new epoch for each."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from chassis.clock import SystemClock
from chassis.lease import LASTS, Lease
from chassis.postgres import Database
from tests import diary
from tests.wire import wire


@pytest.fixture
async def sample(database: str) -> AsyncIterator[Database]:
    """The diary's database."""
    opened = await diary.migrated(database)
    yield opened
    await opened.close()


def lease(database: Database, holder: str, name: str = "work") -> Lease:
    return Lease(database, name, holder, SystemClock())


@asynccontextmanager
async def running(one: Lease) -> AsyncIterator[Lease]:
    """Take and renew while the block runs."""
    task = asyncio.create_task(one.run(), name="lease")
    try:
        yield one
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def let_it_pass(database: Database) -> None:
    """As if the time of every lease were over."""
    await database.execute("UPDATE lease SET expires_at = clock_timestamp() - interval '1 ms'")


async def test_one_of_two_holds_it(sample: Database) -> None:
    one, other = lease(sample, "one"), lease(sample, "other")
    await one.renew()
    await other.renew()
    assert (one.held(), other.held()) == (1, None)
    await one.renew()
    assert one.held() == 1


async def test_another_may_hold_another(sample: Database) -> None:
    one, other = lease(sample, "one"), lease(sample, "other", "other work")
    await one.renew()
    await other.renew()
    assert (one.held(), other.held()) == (1, 1)


async def test_one_that_has_passed_is_taken_with_a_new_epoch(sample: Database) -> None:
    one, other = lease(sample, "one"), lease(sample, "other")
    await one.renew()
    await let_it_pass(sample)
    await other.renew()
    assert other.held() == 2
    await one.renew()
    assert one.held() is None


async def test_who_takes_his_own_again_after_it_passed_has_a_new_epoch(sample: Database) -> None:
    one = lease(sample, "one")
    await one.renew()
    await let_it_pass(sample)
    await one.renew()
    assert one.held() == 2


async def test_it_lasts_as_long_as_is_said_by_the_databases_clock(sample: Database) -> None:
    await lease(sample, "one").renew()
    left = await sample.fetchval("SELECT expires_at - clock_timestamp() FROM lease")
    assert LASTS * 0.5 < left <= LASTS  # type: ignore[operator]


async def test_who_leaves_lets_the_next_one_in_at_once(sample: Database) -> None:
    other = lease(sample, "other")
    async with running(lease(sample, "one")) as one:
        async with asyncio.timeout(5):
            assert await one.wait_held() == 1
        await other.renew()
        assert other.held() is None
    assert one.held() is None
    await other.renew()
    assert other.held() == 2


async def test_it_is_renewed_as_long_as_it_runs(sample: Database) -> None:
    async with running(lease(sample, "one")) as one, asyncio.timeout(10):
        await one.wait_held()
        first = await sample.fetchval("SELECT expires_at FROM lease")
        while await sample.fetchval("SELECT expires_at FROM lease") == first:
            assert one.held() == 1
        assert one.held() == 1


async def test_a_holder_that_cannot_renew_knows_before_another_can_take_it(
    sample: Database,
) -> None:
    """Its own time runs from before it asked, so it ends before the database's does."""
    async with wire(sample.dsn) as laid:
        through = Database(laid.dsn, diary.SERVICE)
        await through.open(pool_size=1)
        async with running(lease(through, "one")) as one, asyncio.timeout(20):
            await one.wait_held()
            laid.up = False
            laid.sever()
            other = lease(sample, "other")
            while other.held() is None:
                thought = one.held()
                await other.renew()
                if other.held() is not None:
                    assert one.held() is None, thought
            laid.up = True
        await through.close()


async def test_several_wait_for_one_to_be_held(sample: Database) -> None:
    one = lease(sample, "one")
    waiting = [asyncio.create_task(one.wait_held()) for _ in range(3)]
    async with running(one), asyncio.timeout(5):
        assert await asyncio.gather(*waiting) == [1, 1, 1]
