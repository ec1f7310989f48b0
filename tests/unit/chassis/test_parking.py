"""What is looked up for an operator, where the same request may have been answered already."""

from __future__ import annotations

import pytest

from chassis.journal import Command, Remembered
from chassis.parking import unless_answered
from chassis.refusals import Missing
from chassis.testing.memory import MemoryJournal
from tests.diary import BOOK, META, REGISTRY, entry, request


@pytest.fixture
def journal() -> MemoryJournal:
    return MemoryJournal("sample/0", registry=REGISTRY, book=BOOK)


async def nothing() -> str:
    raise Missing("NOTHING", "There is nothing.")


async def test_what_is_there_is_found_and_what_is_not_is_refused(journal: MemoryJournal) -> None:
    async def look() -> str:
        return "it"

    for asking in (None, request("x")):
        assert await unless_answered(journal, asking, look) == "it"
        with pytest.raises(Missing):
            await unless_answered(journal, asking, nothing)


async def test_a_request_that_was_answered_is_not_looked_up_again(journal: MemoryJournal) -> None:
    await journal.append(Command((entry("a", "x"),), META, request=request("x"), subject="a"))
    with pytest.raises(Remembered):
        await unless_answered(journal, request("x"), nothing)


async def test_a_request_that_is_answered_while_it_is_looked_up_has_not_found_nothing(
    journal: MemoryJournal,
) -> None:
    async def look() -> str:
        await journal.append(Command((entry("a", "x"),), META, request=request("x"), subject="a"))
        return await nothing()

    with pytest.raises(Remembered):
        await unless_answered(journal, request("x"), look)
