"""Filters, orders and page tokens are read strictly, and what is wrong is told with what is right."""

from __future__ import annotations

import base64
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chassis.listing import Filter, Order, PageToken
from chassis.refusals import Invalid

STATES = {"PENDING": 1, "RUNNING": 2}
NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)
TICK = timedelta(microseconds=1)


def parse(text: str) -> Filter:
    return Filter.parse(text, states=STATES)


def test_no_text_limits_nothing() -> None:
    assert parse("") == parse("   ") == Filter()


def test_conditions_joined_by_and_all_hold() -> None:
    found = parse(
        'name:exp-* AND labels.team=vision AND labels.app.kubernetes.io/name="a b" '
        'AND state=RUNNING AND create_time>"2026-11-24T12:00:00Z"'
    )
    assert found == Filter(
        name_prefix="exp-",
        labels={"team": "vision", "app.kubernetes.io/name": "a b"},
        states=(2,),
        created_after=NOON,
    )


def test_a_state_may_be_written_with_its_prefix() -> None:
    assert parse("state=STATE_PENDING").states == (1,)


def test_a_name_is_a_whole_one_or_a_prefix() -> None:
    assert parse("name=lab") == Filter(name="lab")
    assert parse("name=lab*") == parse("name:lab*") == Filter(name_prefix="lab")


def test_from_and_until_include_their_moment() -> None:
    assert parse("create_time>=2026-11-24T12:00:00Z").created_after == NOON - TICK
    assert parse("create_time<=2026-11-24T12:00:00Z").created_before == NOON + TICK
    assert parse("create_time<2026-11-24T12:00:00").created_before == NOON


@pytest.mark.parametrize(
    "text",
    [
        "name",
        "name=a name=b",
        "name=a AND",
        "name=a OR name=b",
        "colour=red",
        "state=DANCING",
        "state!=RUNNING",
        "state=RUNNING AND state=PENDING",
        "name=a AND name=b",
        "labels.a=1 AND labels.a=2",
        "create_time>yesterday",
        "create_time>0001-01-01",
        "create_time<9999-12-31T23:59:59Z",
        'name="open',
        "labels.Team=vision",
    ],
)
def test_what_is_not_understood_is_refused(text: str) -> None:
    with pytest.raises(Invalid) as error:
        parse(text)
    assert error.value.reason == "FILTER_INVALID"
    assert [found.field for found in error.value.violations] == ["filter"]
    assert error.value.arguments == {"filter": text}


@given(st.text(max_size=60))
def test_any_text_is_a_filter_or_refused(text: str) -> None:
    with suppress(Invalid):
        parse(text)


def test_an_order_is_one_of_four() -> None:
    assert Order.parse("") == Order.parse("name") == Order("name", False)
    assert Order.parse("create_time desc") == Order("create_time", True)
    for text in ("state", "name asc", "name desc desc", "desc"):
        with pytest.raises(Invalid):
            Order.parse(text)


# Whatever a row may hold: PostgreSQL stores no U+0000.
STORED = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))


@given(STORED, STORED, st.text())
def test_a_page_token_leads_back_to_its_row(key: str, uid: str, scope: str) -> None:
    assert PageToken.decode(PageToken.encode(key, uid, scope), scope) == (key, uid)


def test_a_page_token_whose_key_is_a_moment_leads_back_to_it() -> None:
    moment = datetime(2026, 11, 24, 12, 0, 0, 123456, tzinfo=UTC)
    token = PageToken.encode(moment.isoformat(), "inst_1", "scope")
    assert PageToken.decode_time(token, "scope") == (moment, "inst_1")


@pytest.mark.parametrize(
    "key",
    [
        *("yesterday", "2026-11-24", "2026-11-24T12:00:00", "\0", "\ud800"),
        *("0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59"),
    ],
)
def test_a_page_token_whose_key_should_be_a_moment_is_held_to_that(key: str) -> None:
    with pytest.raises(Invalid) as refusal:
        PageToken.decode_time(PageToken.encode(key, "", "scope"), "scope")
    assert refusal.value.reason == "PAGE_TOKEN_MISMATCH"


@pytest.mark.parametrize(
    "token",
    [
        PageToken.encode("a", "b", "another question"),
        "no token",
        "ä",
        base64.urlsafe_b64encode(b'["x"]').decode(),
        base64.urlsafe_b64encode(b"[" * 1500).decode(),
        base64.urlsafe_b64encode(b"17").decode(),
    ],
)
def test_a_token_of_another_question_is_refused(token: str) -> None:
    with pytest.raises(Invalid) as error:
        PageToken.decode(token, "this question")
    assert error.value.reason == "PAGE_TOKEN_MISMATCH"
    assert error.value.arguments == {"field": "page_token", "value": token}
