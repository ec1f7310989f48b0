"""What is known of a fact survives the way through a record, and types are found by name."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from google.protobuf import struct_pb2
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

from chassis.envelope import Meta, Recorded, Registry, fold, from_record, to_record
from tests.diary import META, REGISTRY, entry

NOON = datetime(2026, 11, 24, 12, 0, 0, 123456, tzinfo=UTC)
FACT = entry("a", "hello")
RECORDED = Recorded(
    journal="sample/0",
    epoch=2,
    position=7,
    project="acme",
    project_position=3,
    stream="a",
    version=1,
    type="google.protobuf.Struct",
    statement="5f0a6a52-6c1e-5b57-9d0f-8f2b1b0c7e41",
    data=FACT.SerializeToString(deterministic=True),
    meta=META,
    record_time=NOON,
    message=FACT,
)


@given(
    st.datetimes(datetime(1, 1, 1), datetime(9999, 12, 31, 23, 59, 59), timezones=st.just(UTC)),
    st.builds(
        Meta, st.text(), st.text(), st.text(), st.integers(0, 2**63 - 1), st.text(max_size=55)
    ),
)
def test_a_fact_is_read_as_it_was_written(at: datetime, meta: Meta) -> None:
    fact = RECORDED._replace(record_time=at, meta=meta)
    assert from_record(to_record(fact), REGISTRY) == fact


@given(st.integers(-62135596800, 253402300799), st.integers(0, 999_999_999))
def test_a_moment_is_read_to_the_microsecond(seconds: int, nanos: int) -> None:
    record = to_record(RECORDED)
    record.record_time.seconds, record.record_time.nanos = seconds, nanos
    expected = record.record_time.ToDatetime(tzinfo=UTC)
    assert from_record(record, REGISTRY).record_time == expected


def test_a_fact_of_unknown_type_keeps_its_bytes() -> None:
    unknown = from_record(to_record(RECORDED), Registry())
    assert unknown == RECORDED._replace(message=None)
    assert to_record(unknown) == to_record(RECORDED)


def test_a_registry_knows_the_messages_of_its_files() -> None:
    assert REGISTRY.classes["google.protobuf.Struct"] is struct_pb2.Struct
    assert REGISTRY.decode("google.protobuf.Any", b"") is None


def test_bytes_that_are_no_such_message_are_refused() -> None:
    with pytest.raises(ValueError, match=r"3 bytes are not a google\.protobuf\.Struct"):
        REGISTRY.decode("google.protobuf.Struct", b"\xff\xff\xff")


def test_an_old_type_is_lifted_on_read() -> None:
    def lift(old: Message) -> Message:
        assert isinstance(old, struct_pb2.Struct)
        return struct_pb2.Value(struct_value=old)

    registry = Registry(REGISTRY.classes, {"google.protobuf.Struct": lift})
    assert registry.decode(RECORDED.type, RECORDED.data) == lift(FACT)


def test_a_fold_gives_each_fact_with_the_time_it_was_recorded() -> None:
    def evolve(state: tuple[datetime, ...], fact: Message, at: datetime) -> tuple[datetime, ...]:
        assert fact == FACT
        return (*state, at)

    start: tuple[datetime, ...] = ()
    assert fold(evolve, start, [RECORDED, RECORDED]) == (NOON, NOON)


def test_a_fold_never_passes_over_what_it_does_not_know() -> None:
    with pytest.raises(ValueError, match=r"google\.protobuf\.Struct at sample/0:7"):
        fold(lambda state, fact, at: state, None, [RECORDED._replace(message=None)])


def test_a_meta_says_by_itself_only_who_did_it() -> None:
    assert Meta("user_ada") == Meta("user_ada", "", "", 0, "")
