"""Ending tasks that run beside others, and threads beside them."""

from __future__ import annotations

import asyncio
import threading

import pytest

from chassis import tasks


async def deaf(times: int, heard: list[int]) -> None:
    """Miss so many cancellations, as a library may."""
    while True:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            heard.append(len(heard))
            if len(heard) > times:
                raise


async def test_a_task_that_misses_its_cancellation_is_told_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tasks, "AGAIN_SECONDS", 0.001)
    heard: list[int] = []
    task = asyncio.create_task(deaf(2, heard))
    await asyncio.sleep(0)
    await tasks.end(task)
    assert task.cancelled()
    assert heard == [0, 1, 2]


async def test_what_a_task_raised_is_not_raised_where_it_is_ended() -> None:
    async def fails() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            raise OSError("the disk is full")

    task = asyncio.create_task(fails())
    await asyncio.sleep(0)
    await tasks.end(task)
    assert isinstance(task.exception(), OSError)


async def test_who_is_cancelled_while_he_ends_others_hears_of_it_when_they_have_ended() -> None:
    heard: list[int] = []
    task = asyncio.create_task(deaf(1, heard))
    await asyncio.sleep(0)
    ending = asyncio.create_task(tasks.end(task))
    await asyncio.sleep(0)
    ending.cancel()
    await asyncio.wait({ending})
    assert ending.cancelled()
    assert task.cancelled()


async def test_who_is_cancelled_goes_on_only_when_his_thread_has_ended() -> None:
    goes_on = threading.Event()
    done: list[str] = []

    def work() -> None:
        goes_on.wait(10)
        done.append("worked")

    async def caller() -> None:
        try:
            await tasks.aside(work)
        finally:
            done.append("went on")

    task = asyncio.create_task(caller())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait({task}, timeout=0.01)
    assert not task.done()
    goes_on.set()
    await asyncio.wait({task})
    assert task.cancelled()
    assert done == ["worked", "went on"]


async def test_a_thread_answers_and_raises_to_its_caller() -> None:
    assert await tasks.aside(divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        await tasks.aside(divmod, 7, 0)


async def test_a_cancellation_that_nobody_asked_for_is_told_from_one_that_was() -> None:
    seen: list[bool] = []

    async def lives(goes: asyncio.Event) -> None:
        try:
            await goes.wait()
            raise asyncio.CancelledError
        except asyncio.CancelledError:
            seen.append(tasks.astray())
            raise

    goes = asyncio.Event()
    asked, lost = (asyncio.create_task(lives(goes)) for _ in range(2))
    await asyncio.sleep(0)
    await tasks.end(asked)
    goes.set()
    await asyncio.wait({lost})
    assert seen == [False, True]
    with pytest.raises(tasks.Astray):
        tasks.outcome(lost)
