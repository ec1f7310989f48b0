"""Uids are ordered by time or derived from what they name, and read back as they were written."""

from __future__ import annotations

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chassis import ids

RANDOM = bytes(range(10))
moments = st.integers(0, 2**48 - 1)


@given(st.uuids(), st.from_regex(r"\A[a-z]{1,20}\Z"))
def test_a_uid_is_read_back_as_it_was_written(value: uuid.UUID, prefix: str) -> None:
    assert ids.parse(ids.typeid(prefix, value)) == (prefix, value)


def test_a_uid_is_written_as_the_typeid_specification_has_it() -> None:
    value = uuid.UUID("01890a5d-ac96-774b-bcce-b302099a8057")
    assert ids.typeid("prefix", value) == "prefix_01h455vb4pex5vsknk084sn02q"


@pytest.mark.parametrize(
    "text",
    [
        "inst",
        "inst_",
        "_01h455vb4pex5vsknk084sn02q",
        "inst_01h455vb4pex5vsknk084sn02",
        "inst_81h455vb4pex5vsknk084sn02q",
        "inst_01h455vb4pex5vsknk084sn02l",
        "INST_01h455vb4pex5vsknk084sn02q",
        "inst_01H455VB4PEX5VSKNK084SN02Q",
        "inst_01h455vb4pex5vsknk084sn02q\n",
    ],
)
def test_what_is_no_uid_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a TypeID"):
        ids.parse(text)


@given(moments, st.binary(min_size=10, max_size=10))
def test_a_fresh_uid_is_a_uuid_of_version_seven(moment: int, random: bytes) -> None:
    value = ids.uuid7(moment, random)
    assert (value.version, value.variant) == (7, uuid.RFC_4122)
    assert value.int >> 80 == moment


@given(moments, moments)
def test_the_order_of_fresh_uids_is_that_of_their_times(one: int, other: int) -> None:
    earlier, later = sorted((one, other))
    assert ids.fresh("inst", earlier, RANDOM) <= ids.fresh("inst", later, RANDOM)


def test_fresh_uids_of_one_moment_differ() -> None:
    assert len({ids.fresh("inst", 1) for _ in range(1000)}) == 1000


def test_a_derived_uid_is_the_same_for_the_same_parts_only() -> None:
    assert ids.derived("inst", "a", "b") == ids.derived("inst", "a", "b")
    assert ids.derived("inst", "a", "b") != ids.derived("inst", "b", "a")
    assert ids.workload("inst_1", "main", 1) != ids.workload("inst_1", "main", 2)


def test_derived_uids_and_statements_are_what_they_were_ever() -> None:
    """They stand in stored facts, so that no release may change how they are derived."""
    assert ids.workload("inst_1", "main", 1) == WORKLOAD
    assert str(ids.statement("wkl_1", "started", 2)) == STATEMENT
    assert ids.statement("wkl_1", "started") != ids.statement("wkl_1", "started", 0)


WORKLOAD = "wkl_6zbgy2wqj9bs9vh8hfhsz6s24s"
STATEMENT = "29ee9086-7cd9-5bd3-a975-be7038d6dce1"
