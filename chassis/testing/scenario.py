"""Given, when, then: tests of an aggregate told in its own words, without a journal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Concatenate, Generic, ParamSpec, TypeVar

from google.protobuf.message import Message

from chassis.refusals import Refused

NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)

State = TypeVar("State")
Given = ParamSpec("Given")


@dataclass(frozen=True, slots=True)
class Scenario(Generic[State]):
    """
    One aggregate's life as its tests tell it.

    `given = Scenario(aggregate.Instance(), aggregate.evolve).given`, and then
    `given(created, stopped).when(aggregate.start, user=ADA).nothing()`.
    """

    start: State
    evolve: Callable[[State, Message, datetime], State]
    at: datetime = NOON

    def given(self, *facts: Message) -> Situation[State]:
        """Fold what has been said so far, all of it at one time."""
        return Situation(self.start, self.evolve, self.at, ()).and_then(*facts)


@dataclass(frozen=True, slots=True)
class Situation(Generic[State]):
    """What was said so far, and the state that follows from it."""

    state: State
    evolve: Callable[[State, Message, datetime], State]
    at: datetime
    facts: tuple[Message, ...]

    def and_then(self, *facts: Message) -> Situation[State]:
        """Go on with more facts."""
        state = self.state
        for fact in facts:
            state = self.evolve(state, fact, self.at)
        return Situation(state, self.evolve, self.at, (*self.facts, *facts))

    def when(
        self,
        decide: Callable[Concatenate[State, Given], Sequence[Message]],
        *args: Given.args,
        **kwargs: Given.kwargs,
    ) -> Decision[State]:
        """Decide on that state."""
        try:
            return Decision(self, tuple(decide(self.state, *args, **kwargs)), None)
        except Refused as refusal:
            return Decision(self, (), refusal)


@dataclass(frozen=True, slots=True)
class Decision(Generic[State]):
    """What came of a decision; each check returns it, so that one may go on from there."""

    before: Situation[State]
    facts: tuple[Message, ...]
    refusal: Refused | None

    def then(self, *facts: Message) -> Situation[State]:
        """Exactly these facts, in this order; the situation after them."""
        self._must_not_be_refused()
        assert list(self.facts) == list(facts)
        return self.before.and_then(*facts)

    def says(self, *names: str) -> Situation[State]:
        """Facts of these kinds, in this order, whatever is in them; the situation after them."""
        self._must_not_be_refused()
        assert [fact.DESCRIPTOR.name for fact in self.facts] == list(names)
        return self.before.and_then(*self.facts)

    def nothing(self) -> Situation[State]:
        """No fact, and no refusal."""
        return self.then()

    def refused(self, reason: str) -> Refused:
        """The refusal with this reason; it is returned for a closer look."""
        said = [fact.DESCRIPTOR.name for fact in self.facts]
        assert self.refusal is not None, f"was not refused, but said {said}"
        assert self.refusal.reason == reason
        return self.refusal

    def _must_not_be_refused(self) -> None:
        assert self.refusal is None, f"was refused: {self.refusal!r}"
