"""What many follow is computed once for all of them, and never older than they may expect."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from chassis.clock import SystemClock
from services.billing.live import Live

SECONDS = 0.02


class Computing:
    """A computation that ends when it is told to, and counts."""

    def __init__(self) -> None:
        self.begun = 0
        self.now = 0
        self.most = 0
        self.goes_on = asyncio.Event()
        self.goes_on.set()
        self.begins = asyncio.Event()

    async def __call__(self, key: str) -> tuple[str, int]:
        self.begun += 1
        self.now += 1
        self.most = max(self.most, self.now)
        mine = self.begun
        self.begins.set()
        try:
            await self.goes_on.wait()
        finally:
            self.now -= 1
        return key, mine


def live(computing: Computing, seconds: float = SECONDS) -> Live[str, tuple[str, int]]:
    return Live(computing, seconds, SystemClock())


async def some(follower: AsyncGenerator[tuple[str, int]], count: int) -> list[tuple[str, int]]:
    """Take so many, and leave."""
    found: list[tuple[str, int]] = []
    async with aclosing(follower):
        async for one in follower:
            found.append(one)
            if len(found) == count:
                break
    return found


async def one_behind_the_other(
    computing: Computing,
) -> tuple[asyncio.Task[list[tuple[str, int]]], asyncio.Task[list[tuple[str, int]]]]:
    """Two followers: one whose computation goes on until it may end, and one who came meanwhile."""
    computing.goes_on.clear()
    shared = live(computing, 3600)
    first = asyncio.create_task(some(shared.follow("acme"), 1))
    await computing.begins.wait()
    second = asyncio.create_task(some(shared.follow("acme"), 1))
    await asyncio.sleep(0)
    return first, second


async def test_a_hundred_followers_share_each_computation() -> None:
    computing = Computing()
    computing.goes_on.clear()
    shared = live(computing)
    every = [asyncio.create_task(some(shared.follow("acme"), 5)) for _ in range(100)]
    await computing.begins.wait()
    await asyncio.sleep(0)
    computing.goes_on.set()
    found = await asyncio.gather(*every)
    # The first one had begun before the others asked; who began with it has seen five by then.
    assert computing.begun == 6
    assert computing.most == 1
    for one in found:
        numbers = [number for _, number in one]
        assert numbers == sorted(set(numbers))


async def test_keys_are_computed_beside_each_other() -> None:
    computing = Computing()
    computing.goes_on.clear()
    shared = live(computing)
    both = [asyncio.create_task(some(shared.follow(key), 1)) for key in ("acme", "other")]
    while computing.now < 2:
        computing.begins.clear()
        await computing.begins.wait()
    computing.goes_on.set()
    assert [one[0][0] for one in await asyncio.gather(*both)] == ["acme", "other"]


async def test_who_comes_while_it_is_computed_gets_what_began_after_he_came() -> None:
    computing = Computing()
    first, second = await one_behind_the_other(computing)
    computing.goes_on.set()
    assert await first == [("acme", 1)]
    assert await second == [("acme", 2)]


async def test_where_who_computes_goes_away_another_one_computes() -> None:
    computing = Computing()
    first, second = await one_behind_the_other(computing)
    first.cancel()
    await asyncio.wait({first})
    computing.goes_on.set()
    assert await second == [("acme", 2)]


async def test_what_cannot_be_computed_ends_all_who_wait_for_it_and_nobody_who_comes_later() -> (
    None
):
    computing = Computing()
    broken = True

    async def compute(key: str) -> tuple[str, int]:
        found = await computing(key)
        if broken:
            raise ValueError("broken")
        return found

    shared = Live(compute, SECONDS, SystemClock())
    for _ in range(2):
        with pytest.raises(ValueError, match="broken"):
            await some(shared.follow("acme"), 1)
    broken = False
    assert await some(shared.follow("acme"), 1) == [("acme", 3)]


class Slow:
    """A clock by which each computation takes ten seconds, and what is waited for has come."""

    def __init__(self) -> None:
        self.at = 0.0
        self.spans: list[tuple[float, float]] = []

    def monotonic(self) -> float:
        return self.at

    async def compute(self, key: str) -> tuple[str, int]:
        began = self.at
        self.at += 10
        self.spans.append((began, self.at))
        return key, len(self.spans)


async def test_what_takes_long_is_left_alone_for_as_long(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = Slow()

    async def pass_by(seconds: float) -> None:
        slow.at += seconds

    monkeypatch.setattr("services.billing.live.asyncio.sleep", pass_by)
    shared: Live[str, tuple[str, int]] = Live(slow.compute, 0.5, slow)  # type: ignore[arg-type]
    await some(shared.follow("acme"), 3)
    assert slow.spans == [(0, 10), (20, 30), (40, 50)]


async def test_nothing_is_kept_of_what_nobody_follows() -> None:
    computing = Computing()
    shared = live(computing)
    await asyncio.gather(*(some(shared.follow(key), 2) for key in ("acme", "other") * 3))
    assert not shared._readings
    assert not shared._followers
