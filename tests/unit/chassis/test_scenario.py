"""The words in which aggregates' tests are told mean what they say."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import pytest
from google.protobuf import wrappers_pb2
from google.protobuf.message import Message

from chassis.refusals import Refused
from chassis.testing.scenario import NOON, Scenario


def evolve(total: int, fact: Message, at: datetime) -> int:
    assert at == NOON
    assert isinstance(fact, wrappers_pb2.Int64Value)
    return total + fact.value


def spend(total: int, amount: int, *, most: int = 100) -> Sequence[Message]:
    if amount > min(total, most):
        raise Refused("TOO_LITTLE", "There is not as much.")
    return [coin(-amount)] if amount else []


def coin(value: int) -> Message:
    return wrappers_pb2.Int64Value(value=value)


given = Scenario(0, evolve).given


def test_what_was_said_is_what_is_decided_on() -> None:
    given(coin(3), coin(4)).when(spend, 7).then(coin(-7)).when(spend, 1).refused("TOO_LITTLE")


def test_nothing_is_no_fact_and_no_refusal() -> None:
    given().when(spend, 0).nothing()
    with pytest.raises(AssertionError):
        given(coin(1)).when(spend, 1).nothing()
    with pytest.raises(AssertionError, match="was refused"):
        given().when(spend, 1).nothing()


def test_facts_are_told_by_kind_where_their_content_matters_not() -> None:
    after = given(coin(5)).when(spend, amount=2).says("Int64Value")
    assert after.state == 3
    with pytest.raises(AssertionError):
        given(coin(5)).when(spend, amount=2).says()


def test_a_refusal_is_known_by_its_reason() -> None:
    refusal = given(coin(500)).when(spend, 200, most=100).refused("TOO_LITTLE")
    assert refusal.message == "There is not as much."
    with pytest.raises(AssertionError):
        given().when(spend, 1).refused("ANOTHER")
    with pytest.raises(AssertionError, match="was not refused"):
        given().when(spend, 0).refused("TOO_LITTLE")
