"""Live costs: each is computed once for all who watch it, and no more than half of the time."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

from chassis.clock import Clock

Key = TypeVar("Key", bound=Hashable)
Found = TypeVar("Found")


@dataclass(slots=True, eq=False)
class _Reading(Generic[Found]):
    """One computation: who waits for it has asked before it began."""

    began: float
    result: asyncio.Future[Found]
    ended: float = 0.0


class Live(Generic[Key, Found]):
    """
    What many follow is computed for all of them at once, again and again.

    Between two computations of the same key lie `seconds`, and as long as the last one took: what is
    slow to compute leaves half of the time to everybody else, however many follow it.
    """

    def __init__(
        self, compute: Callable[[Key], Awaitable[Found]], seconds: float, clock: Clock
    ) -> None:
        self._compute = compute
        self._seconds = seconds
        self._clock = clock
        self._readings: dict[Key, _Reading[Found]] = {}
        self._followers: Counter[Key] = Counter()

    async def follow(self, key: Key) -> AsyncGenerator[Found]:
        """Give what there is now, none of it older than this call, and then what there is each time."""
        self._followers[key] += 1
        try:
            came, seen = self._clock.monotonic(), None
            while True:
                seen = await self._next(key, came, seen)
                yield seen.result.result()
        finally:
            self._followers[key] -= 1
            if not self._followers[key]:
                del self._followers[key]
                self._readings.pop(key, None)

    async def _next(self, key: Key, came: float, seen: _Reading[Found] | None) -> _Reading[Found]:
        """The newest reading, once there is a newer one; who comes to it first computes for the others."""
        while True:
            last = self._readings.get(key)
            if last is None or last.result.cancelled():
                await self._read(key)
            elif not last.result.done():
                await asyncio.wait((last.result,))
            elif last is seen:
                due = last.ended + max(self._seconds, last.ended - last.began)
                if (left := due - self._clock.monotonic()) > 0:
                    await asyncio.sleep(left)
                else:
                    await self._read(key)
            elif last.began < came:
                await self._read(key)
            else:
                return last

    async def _read(self, key: Key) -> None:
        result: asyncio.Future[Found] = asyncio.get_running_loop().create_future()
        reading = self._readings[key] = _Reading(self._clock.monotonic(), result)
        try:
            found = await self._compute(key)
        except Exception as error:
            # All who wait hear it, and each of them ends by it.
            result.set_exception(error)
            result.exception()
        except BaseException:
            # Who computed goes away; another one computes.
            result.cancel()
            raise
        else:
            result.set_result(found)
        finally:
            reading.ended = self._clock.monotonic()
