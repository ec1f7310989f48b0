"""The write side's one walk: decide on what is read, again where somebody was faster."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import pytest
from google.protobuf.message import Message

from chassis.command import ATTEMPTS_MAX, rehearse, transact
from chassis.envelope import Recorded
from chassis.journal import Advance, Command, Overtaken
from chassis.refusals import Conflict, Exists, Invalid, Refused
from chassis.testing.memory import Checkpoint, MemoryJournal
from tests.diary import BOOK, META, REGISTRY, entry, place, request, texts


@pytest.fixture
def journal() -> MemoryJournal:
    return MemoryJournal("sample/0", registry=REGISTRY, book=BOOK)


def fold(records: Iterable[Recorded]) -> list[str]:
    return texts(records)


def add(text: str) -> Callable[[list[str]], list[Message]]:
    """Say something once."""

    def decide(said: list[str]) -> list[Message]:
        if text in said:
            raise Refused("SAID", "That was said.")
        return [entry("a", text)]

    return decide


@dataclass(slots=True)
class Racing:
    """A decision during which somebody else is faster, so many times."""

    journal: MemoryJournal
    races: int
    tries: list[list[str]] = field(default_factory=list)

    def decide(self, said: list[str]) -> Sequence[Message]:
        self.tries.append(said)
        if len(self.tries) <= self.races:
            said_meanwhile = Command((entry("a", f"race {len(self.tries)}"),), META)
            coroutine = self.journal.append(said_meanwhile)
            with pytest.raises(StopIteration):
                coroutine.send(None)
        return [entry("a", "mine")]


async def test_the_state_after_the_decision_is_returned(journal: MemoryJournal) -> None:
    decided = await transact(journal, "a", fold, add("x"), meta=META)
    assert (decided.state, decided.position, decided.replayed) == (["x"], 1, False)
    decided = await transact(journal, "a", fold, add("y"), meta=META)
    assert (decided.state, decided.position) == (["x", "y"], 2)


async def test_a_decision_that_lost_a_race_is_made_again_on_what_is_there_now(
    journal: MemoryJournal,
) -> None:
    racing = Racing(journal, races=2)
    decided = await transact(journal, "a", fold, racing.decide, meta=META)
    assert racing.tries == [[], ["race 1"], ["race 1", "race 2"]]
    assert decided.state == ["race 1", "race 2", "mine"]


async def test_a_decision_that_loses_every_race_is_told_to_its_caller(
    journal: MemoryJournal,
) -> None:
    racing = Racing(journal, races=ATTEMPTS_MAX)
    with pytest.raises(Conflict) as refused:
        await transact(journal, "a", fold, racing.decide, meta=META)
    assert refused.value.reason == "TOO_MANY_RACES"
    assert len(racing.tries) == ATTEMPTS_MAX


async def test_a_decision_that_says_nothing_appends_nothing(journal: MemoryJournal) -> None:
    decided = await transact(journal, "a", fold, lambda said: [], meta=META)
    assert (decided.state, decided.position) == ([], 0)
    assert journal.log == []


async def test_a_refusal_is_the_callers(journal: MemoryJournal) -> None:
    await transact(journal, "a", fold, add("x"), meta=META)
    with pytest.raises(Refused) as refused:
        await transact(journal, "a", fold, add("x"), meta=META, request=request("1"))
    assert refused.value.reason == "SAID"


async def test_a_request_sent_again_is_answered_as_it_was_then(journal: MemoryJournal) -> None:
    """Its own success is what would refuse it now, and what came later is not in the answer."""
    first = await transact(journal, "a", fold, add("x"), meta=META, request=request("1"))
    await transact(journal, "a", fold, add("y"), meta=META)
    again = await transact(journal, "a", fold, add("x"), meta=META, request=request("1"))
    assert again.state == first.state == ["x"]
    assert again.replayed
    assert again.position == 2
    assert len(journal.log) == 2


async def test_a_request_that_said_nothing_is_answered_again(journal: MemoryJournal) -> None:
    for replayed in (False, True):
        decided = await transact(
            journal, "a", fold, lambda said: [], meta=META, request=request("1")
        )
        assert decided.replayed is replayed


async def test_one_request_id_for_two_bodies_is_refused(journal: MemoryJournal) -> None:
    await transact(journal, "a", fold, add("x"), meta=META, request=request("1"))
    for text in ("x", "y"):
        other = request("1", body=b"another")
        with pytest.raises(Invalid) as refused:
            await transact(journal, "a", fold, add(text), meta=META, request=other)
        assert refused.value.reason == "REQUEST_ID_REUSED"
        assert refused.value.violations[0].field == "request_id"
    assert len(journal.log) == 1


async def test_a_decision_may_read_several_streams(journal: MemoryJournal) -> None:
    await transact(journal, "b", fold, lambda said: [entry("b", "open")], meta=META)

    def fold_both(one: Iterable[Recorded], other: Iterable[Recorded]) -> tuple[int, int]:
        return len(list(one)), len(list(other))

    decided = await transact(
        journal, ("a", "b"), fold_both, lambda counts: [entry("a"), entry("b")], meta=META
    )
    assert decided.state == (1, 2)


async def test_a_readers_decision_moves_its_checkpoint_even_where_it_says_nothing(
    journal: MemoryJournal,
) -> None:
    journal.checkpoints["r", "o/0"] = Checkpoint()
    moved = Advance("r", "o/0", 1, 0, 1, 1, 0)
    await transact(journal, "a", fold, lambda said: [], meta=META, advance=moved)
    assert journal.checkpoints["r", "o/0"].position == 1
    with pytest.raises(Overtaken):
        await transact(journal, "a", fold, add("x"), meta=META, advance=moved)


async def test_a_rehearsal_changes_nothing(journal: MemoryJournal) -> None:
    def preview(said: list[str], facts: Sequence[Message]) -> list[str]:
        return [*said, *(f"{len(facts)} more" for _ in facts)]

    state = await rehearse(journal, "a", fold, add("x"), place=place, preview=preview)
    assert state == ["1 more"]
    assert journal.log == []


async def test_a_rehearsal_is_refused_as_the_real_thing_would_be(journal: MemoryJournal) -> None:
    await journal.append(Command((entry("b", claims={"home": "1"}),), META))

    def claim(said: list[str]) -> list[Message]:
        return [entry("a", claims={"home": "2"})]

    with pytest.raises(Exists):
        await rehearse(journal, "a", fold, claim, place=place, preview=lambda said, facts: said)
    await transact(journal, "a", fold, add("x"), meta=META)
    with pytest.raises(Refused):
        await rehearse(journal, "a", fold, add("x"), place=place, preview=lambda said, facts: said)
