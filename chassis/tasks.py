"""Ending tasks that run beside others."""

from __future__ import annotations

import asyncio
from typing import Any, Final

# How long a task may take to end before it is told again.
AGAIN_SECONDS: Final = 2.0


async def end(*tasks: asyncio.Future[Any]) -> None:
    """
    Cancel tasks, and return when all of them have ended; what they raised is theirs to tell.

    A task may miss that it was cancelled: before Python 3.12 `asyncio.wait_for`, which libraries
    use, returns what came at the same moment and forgets the cancellation. It is told again then.
    A caller who is cancelled meanwhile hears of it, which a bare `await task` that suppresses
    `CancelledError` would keep from him.
    """
    left = {task for task in tasks if not task.done()}
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=AGAIN_SECONDS)
    for task in tasks:
        if not task.cancelled():
            # Looked at, so that nobody warns of it.
            task.exception()
