"""What of a batch is decided before the database sees it."""

from __future__ import annotations

from google.protobuf import struct_pb2
from hypothesis import given
from hypothesis import strategies as st

from chassis.batch import collision_keys, layers, nul_path, place_facts
from chassis.journal import Advance, Command, Unpark, Write
from tests.diary import META, entry, place, request

writes = st.lists(
    st.builds(Write, st.sampled_from("abc"), st.sampled_from("xyz"), st.tuples(st.integers()))
)


@given(writes)
def test_layers_hold_every_write_once(said: list[Write]) -> None:
    found = [(name, arguments) for name, rows in layers(said) for arguments in rows]
    assert sorted(found) == sorted((write.statement, write.arguments) for write in said)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("xyz"))))
def test_layers_keep_the_order_of_writes_to_one_row(said: list[tuple[str, str]]) -> None:
    numbered = [Write(name, key, (key, place)) for place, (name, key) in enumerate(said)]
    found = [arguments for _, rows in layers(numbered) for arguments in rows]
    for key in "xyz":
        assert [row for row in found if row[0] == key] == [
            write.arguments for write in numbered if write.key == key
        ]


def test_layers_gather_what_may_run_together() -> None:
    said = [Write("add", key, (key,)) for key in "abc"] + [Write("set", "b", ("b",))]
    assert layers(said) == [("add", [("a",), ("b",), ("c",)]), ("set", [("b",)])]


def keys(command: Command) -> frozenset[tuple[str, ...]]:
    return collision_keys(command, place_facts(command, place))


def test_commands_that_may_not_meet_share_a_key() -> None:
    moved = Advance("r", "o/0", 1, 0, 1, 1, 0)
    pairs = [
        (
            Command((entry("a", claims={"home": "1"}),), META),
            Command((entry("b", releases=["home"]),), META),
        ),
        (Command((entry("a", states="x"),), META), Command((entry("b", states="x"),), META)),
        (
            Command((), META, request=request("1")),
            Command((entry("a"),), META, request=request("1", body=b"another")),
        ),
        (
            Command((), META, advance=moved),
            Command((), META, unpark=Unpark("r", "o/0", 3)),
        ),
        (Command((), META, advance=moved), Command((), META, resume=("r", "o/0"))),
    ]
    for one, other in pairs:
        assert not keys(one).isdisjoint(keys(other))


def test_commands_of_different_things_share_none() -> None:
    one = Command((entry("a", states="x", claims={"m": "1"}),), META, request=request("1"))
    other = Command((entry("a", states="y", claims={"n": "1"}),), META, request=request("2"))
    assert keys(one).isdisjoint(keys(other))


def test_a_nul_is_found_wherever_a_text_may_be() -> None:
    clean = struct_pb2.Struct()
    clean.update({"a": "b", "list": ["c", {"d": "e"}], "number": 0, "nothing": None})
    assert nul_path(clean) == ""
    in_list = struct_pb2.Struct()
    in_list.update({"list": ["c", {"d": "e\0"}]})
    assert nul_path(in_list) == "fields.list.list_value.values.struct_value.fields.d.string_value"
    in_key = struct_pb2.Struct()
    in_key.update({"a\0": "b"})
    assert nul_path(in_key) == "fields.key"


def test_facts_of_one_command_share_the_bytes_of_its_meta() -> None:
    first, second = place_facts(Command((entry("a"), entry("b")), META), place)
    assert first.meta_data is second.meta_data
