"""Ending tasks that run beside others, and working in a thread beside them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final, ParamSpec, TypeVar

# How long a task may take to end before it is told again.
AGAIN_SECONDS: Final = 2.0

Taken = ParamSpec("Taken")
Found = TypeVar("Found")


async def end(*tasks: asyncio.Future[Any]) -> None:
    """
    Cancel tasks, and return when all of them have ended; what they raised is theirs to tell.

    A task may miss that it was cancelled: before Python 3.12 `asyncio.wait_for`, which libraries
    use, returns what came at the same moment and forgets the cancellation. It is told again then.
    A caller who is cancelled meanwhile hears of it when they have ended, which a bare `await task`
    that suppresses `CancelledError` would keep from him.
    """
    left = {task for task in tasks if not task.done()}
    cancelled: asyncio.CancelledError | None = None
    while left:
        for task in left:
            task.cancel()
        try:
            await asyncio.wait(left, timeout=AGAIN_SECONDS)
        except asyncio.CancelledError as error:
            cancelled = error
        left = {task for task in left if not task.done()}
    for task in tasks:
        if not task.cancelled():
            # Looked at, so that nobody warns of it.
            task.exception()
    if cancelled is not None:
        raise cancelled


class Astray(Exception):
    """
    A cancellation that nobody asked for: a library cancels within itself, and lets it out.

    A group of tasks takes one that ends so for one that it ended itself, and goes on without it.
    """


def astray() -> bool:
    """Whether a cancellation that arrives now is none of the task that it arrives in."""
    task = asyncio.current_task()
    return task is not None and not task.cancelling()


def outcome(task: asyncio.Future[Found]) -> Found:
    """What a task has come to that nobody has cancelled; `Astray` where it is cancelled all the same."""
    try:
        return task.result()
    except asyncio.CancelledError as error:
        raise Astray("a task was cancelled, and by nobody here") from error


async def aside(work: Callable[Taken, Found], *args: Taken.args, **kwargs: Taken.kwargs) -> Found:
    """
    Do in a thread what takes long, so that leases are renewed and others served meanwhile.

    Who is cancelled meanwhile goes on only when the thread has ended: whoever comes next has what
    it worked on for himself.
    """
    working = asyncio.ensure_future(asyncio.to_thread(work, *args, **kwargs))
    try:
        return await asyncio.shield(working)
    except asyncio.CancelledError:
        while not working.done():
            await asyncio.wait({working})
        raise
