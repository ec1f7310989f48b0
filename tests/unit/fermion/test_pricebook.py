"""A price book as a file: exact, the same again, and what is wrong in it is named."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml
from google.protobuf.duration_pb2 import Duration
from hypothesis import given
from hypothesis import strategies as st

from fermion import pricebook
from fermion.api.billing import v1 as api
from fermion.api.workload import v1 as workload
from fermion.errors import InvalidArgument

FIRST = Path(__file__).parents[3] / "services" / "billing" / "prices.yaml"
GOOD = """
version: "2026-02"
currency: USD
effective: 2026-12-01T00:00:00Z
prices:
  gpu: {A100-80GB: "1.80", default: "2.00"}
  cpu: 0.04
  memory: "0.005"
  storage: 0
states:
  running: {billed: true}
  draining_by_user: {billed: true, free: 10s}
  draining_by_platform: {billed: true, free: 2m}
  held: {billed: false}
  backoff: {billed: false}
  unreachable: {billed: false}
  storage: {billed: true}
platform_causes: [node_lost, preemption]
"""


def refused(text: str) -> InvalidArgument:
    with pytest.raises(InvalidArgument) as caught:
        pricebook.parse(text, "prices.yaml")
    return caught.value


def test_a_file_is_read_as_it_is_written() -> None:
    book = pricebook.parse(GOOD, "prices.yaml")
    assert (book.version, book.currency, book.number) == ("2026-02", "USD", 0)
    assert book.effective_time.ToDatetime(tzinfo=UTC) == datetime(2026, 12, 1, tzinfo=UTC)
    assert [(one.dimension, one.gpu_type, one.price_nanos) for one in book.prices] == [
        (api.DIMENSION_GPU, "", 2_000_000_000),
        (api.DIMENSION_GPU, "A100-80GB", 1_800_000_000),
        (api.DIMENSION_CPU, "", 40_000_000),
        (api.DIMENSION_MEMORY, "", 5_000_000),
        (api.DIMENSION_STORAGE, "", 0),
    ]
    assert [(one.state, one.billed, one.free.ToMilliseconds()) for one in book.states] == [
        (api.BILLABLE_STATE_RUNNING, True, 0),
        (api.BILLABLE_STATE_DRAINING_BY_USER, True, 10_000),
        (api.BILLABLE_STATE_DRAINING_BY_PLATFORM, True, 120_000),
        (api.BILLABLE_STATE_HELD, False, 0),
        (api.BILLABLE_STATE_BACKOFF, False, 0),
        (api.BILLABLE_STATE_UNREACHABLE, False, 0),
        (api.BILLABLE_STATE_STORAGE, True, 0),
    ]
    assert list(book.platform_causes) == [workload.CAUSE_PREEMPTION, workload.CAUSE_NODE_LOST]


def test_the_book_that_billing_begins_with_is_the_one_that_was_decided() -> None:
    book = pricebook.parse(FIRST.read_text(), FIRST.name)
    assert (book.version, book.currency) == ("2026-01", "USD")
    assert not book.HasField("effective_time")
    assert {one.gpu_type: one.price_nanos for one in book.prices if one.dimension == 1} == {
        "": 2_000_000_000,
        "A100-80GB": 1_800_000_000,
        "H100-80GB": 2_950_000_000,
        "L4": 800_000_000,
        "SIM-GPU": 2_400_000_000,
    }
    rest = {one.dimension: one.price_nanos for one in book.prices if one.dimension != 1}
    assert rest == {2: 40_000_000, 3: 5_000_000, 4: 0}
    assert [one.free.ToMilliseconds() for one in book.states] == [0, 10_000, 120_000, 0, 0, 0, 0]
    assert list(book.platform_causes) == [11, 12, 13, 14, 15, 16]


@st.composite
def books(draw: st.DrawFn) -> api.PriceBook:
    """A book as the parser makes them: in the order of dimensions, models, states and causes."""
    nanos = st.integers(0, pricebook.PRICE_NANOS_MAX)
    models = draw(st.sets(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,12}", fullmatch=True)))
    book = api.PriceBook(
        version=draw(st.from_regex(r"[a-z0-9]([a-z0-9._-]{0,10}[a-z0-9])?", fullmatch=True)),
        currency=draw(st.from_regex(r"[A-Z]{3}", fullmatch=True)),
    )
    if draw(st.booleans()):
        book.effective_time.FromMilliseconds(draw(st.integers(0, 4 * 10**12)))
    for model in ("", *sorted(models - {pricebook.DEFAULT})):
        book.prices.add(dimension=api.DIMENSION_GPU, gpu_type=model, price_nanos=draw(nanos))
    for dimension in pricebook.SINGLE.values():
        book.prices.add(dimension=dimension, price_nanos=draw(nanos))
    for state in pricebook.STATES.values():
        rule = book.states.add(state=state, billed=draw(st.booleans()))
        if draw(st.booleans()):
            free = Duration()
            free.FromMilliseconds(draw(st.integers(0, pricebook.FREE_MS_MAX)))
            rule.free.CopyFrom(free)
    book.platform_causes.extend(
        sorted(draw(st.sets(st.sampled_from([*pricebook.CAUSES.values()]))))
    )
    return book


@given(books())
def test_a_book_that_is_written_is_read_as_the_same(book: api.PriceBook) -> None:
    text = pricebook.written(book)
    assert pricebook.parse(text, "x") == book
    assert pricebook.written(pricebook.parse(text, "x")) == text
    assert yaml.safe_load(text)["currency"] is not None


@pytest.mark.parametrize(
    ("before", "after", "field", "value", "step"),
    [
        ('"1.80"', '"1,80"', "prices.gpu.A100-80GB", "1,80", '"2.40"'),
        ("cpu: 0.04", "cpu: -0.04", "prices.cpu", "-0.04", '"2.40"'),
        ("cpu: 0.04", "cpu: 4e-2", "prices.cpu", "4e-2", '"2.40"'),
        ("cpu: 0.04", "cpu: 0.0000000001", "prices.cpu", "0.0000000001", '"2.40"'),
        ("cpu: 0.04", "cpu: 1000000.1", "prices.cpu", "1000000.1", '"2.40"'),
        ("cpu: 0.04", "cpu: [1]", "prices.cpu", "a list", "--as-file"),
        ("cpu: 0.04", "cpus: 0.04", "prices.cpus", "0.04", "Did you mean cpu?"),
        ("  cpu: 0.04\n", "", "prices.cpu", "", "--as-file"),
        (', default: "2.00"', "", "prices.gpu.default", "", "--as-file"),
        ("A100-80GB", '"A 100"', "prices.gpu.A 100", "A 100", "A100-80GB"),
        ("  storage: 0\n", "  storage: {}\n", "prices.storage", "a mapping", "--as-file"),
        ("USD", "usd", "currency", "usd", "USD"),
        ('"2026-02"', '"2026/02"', "version", "2026/02", "2026-01"),
        ("2026-12-01T00:00:00Z", "tomorrow", "effective", "tomorrow", "2026-12-01T"),
        ("00:00:00Z", "00:00:00", "effective", "2026-12-01T00:00:00", "2026-12-01T"),
        ("00:00:00Z", "00:00:00.000001Z", "effective", "2026-12-01T00:00:00.000001Z", "Z"),
        ("2026-12-01T00:00:00Z", "0001-01-01T00:00:00+14:00", "effective", "0001", "Z"),
        ("running: {billed: true}", "running: {billed: yes}", "states.running.billed", "yes", "t"),
        ("running: {billed: true}", "running: true", "states.running", "true", "--as-file"),
        ("running: {billed: true}", "runing: {billed: true}", "states.runing", "a", "running?"),
        ("  held: {billed: false}\n", "", "states.held", "", "--as-file"),
        ("free: 10s", "free: 10", "states.draining_by_user.free", "10", "10s"),
        ("free: 10s", "free: 2h", "states.draining_by_user.free", "2h", "10s"),
        ("free: 10s", "frei: 10s", "states.draining_by_user.frei", "10s", "free?"),
        ("[node_lost, preemption]", "preemption", "platform_causes", "preemption", "[pre"),
        ("preemption]", "preempted]", "platform_causes", "preempted", "preemption?"),
        ("preemption]", "node_lost]", "platform_causes", "node_lost", "away"),
        ("platform_causes", "platform_cause", "platform_cause", "a list", "platform_causes?"),
    ],
)
def test_what_is_wrong_is_named_with_file_field_value_rule_and_what_to_do(
    before: str, after: str, field: str, value: str, step: str
) -> None:
    assert before in GOOD
    error = refused(GOOD.replace(before, after, 1))
    assert error.reason == "PRICE_FILE_INVALID"
    assert error.message.startswith(f"prices.yaml: {field} is '{value}"), error.message
    ((named, rule),) = error.violations
    assert (named, bool(rule)) == (field, True)
    assert step in error.next_step


@pytest.mark.parametrize(
    "text", ["", "[]", "just words", "1", "a: [", "a: *b", "? [a]\n: b", "\x00", "&a [*a]"]
)
def test_what_is_no_book_at_all_is_refused(text: str) -> None:
    assert "prices.yaml" in refused(text).message


def test_a_key_that_stands_twice_is_refused() -> None:
    twice = GOOD.replace("  cpu: 0.04\n", "  cpu: 0.04\n  cpu: 0.05\n")
    assert "'cpu' stands there twice" in refused(twice).message


@given(st.text())
def test_any_text_is_a_book_or_is_refused(text: str) -> None:
    with suppress(InvalidArgument):
        assert pricebook.parse(text, "x").version
