"""Where replicas fit: exact by node, and when nodes free."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from services.scheduler.placement import (
    FOREVER,
    Gpus,
    Load,
    Nodes,
    Part,
    Room,
    Shape,
    Size,
    Where,
    count,
    emptied,
    filled,
    openings,
    packed,
    place,
)
from services.scheduler.reserve import earliest
from tests.unit.services.scheduler.world import GB, node

SIZES = st.builds(
    Size,
    st.just("A"),
    st.sampled_from([250, 500, 1000, 2000]),
    st.sampled_from([1000, 2000]),
    st.sampled_from([GB, 2 * GB]),
)
PLAIN = st.builds(Size, st.just(""), st.just(0), st.sampled_from([1000, 3000]), st.just(GB))
ROOM = Room(16_000, 32 * GB, 0, (Gpus("A", 4),))


def nodes(*shapes: Shape) -> Nodes:
    found = Nodes()
    for shape in shapes:
        found.put(shape)
    return found


def one(size: Size, number: int = 1) -> tuple[Part, ...]:
    return (Part("", size, number),)


@given(st.lists(st.one_of(SIZES, PLAIN), max_size=12), st.randoms(use_true_random=False))
def test_what_is_left_of_a_node_does_not_depend_on_the_order_of_what_came(
    sizes: list[Size], random: object
) -> None:
    room = filled(ROOM, tuple((size, 1) for size in sizes))
    random.shuffle(sizes)  # type: ignore[attr-defined]
    again = filled(ROOM, tuple((size, 1) for size in sizes))
    assert again == room
    random.shuffle(sizes)  # type: ignore[attr-defined]
    assert emptied(again, tuple((size, 1) for size in sizes)) == ROOM


@given(st.one_of(SIZES, PLAIN), st.lists(st.one_of(SIZES, PLAIN), max_size=6))
def test_so_many_fit_and_not_one_more(size: Size, held: list[Size]) -> None:
    room = filled(ROOM, tuple((other, 1) for other in held))
    fit = count(room, size, 100)
    assert fit == 0 or count(filled(room, ((size, fit - 1),)), size, 1) == 1
    if fit < 100:
        assert count(filled(room, ((size, fit),)), size, 1) == 0


def test_shares_are_packed_the_largest_first() -> None:
    assert packed(()) == 0
    assert packed((300, 300, 400, 500, 500)) == 2
    assert packed((600, 600, 600)) == 3


def test_the_fullest_node_that_fits_is_taken_then_the_first_by_name() -> None:
    found = nodes(node("a", gpus=8), node("b", gpus=4), node("d", gpus=4))
    assert place(found, one(Size("A", 2000), 3)) == (("b", "b", "d"),)
    found.hold("d", "wkl", ((Size("A", 2000), 1),), FOREVER)
    assert place(found, one(Size("A", 2000))) == (("d",),)
    assert place(found, one(Size("A", 8000))) == (("a",),)


def test_what_needs_no_gpu_goes_where_there_is_none_as_long_as_there_is_room() -> None:
    found = nodes(node("gpus", gpus=8), node("plain", gpus=0, cpu=2))
    assert place(found, one(Size("", 0, 1000), 3)) == (("plain", "plain", "gpus"),)


def test_a_sum_that_would_do_does_not_fit_where_no_node_would() -> None:
    found = nodes(node("a", gpus=3), node("b", gpus=3))
    assert place(found, one(Size("A", 4000))) is None
    assert place(found, one(Size("A", 1000), 6)) is not None
    assert place(found, one(Size("A", 1000), 7)) is None


def test_a_node_that_is_to_be_avoided_is_not_taken() -> None:
    found = nodes(node("a"), node("b"))
    assert place(found, one(Size("A", 1000)), Where(frozenset({"a"}))) == (("b",),)


def test_what_is_kept_of_a_node_for_later_is_not_taken() -> None:
    found = nodes(node("a", gpus=4))
    slack = {"a": Room(64_000, 256 * GB, 0, (Gpus("A", 1),))}
    assert place(found, one(Size("A", 2000)), beside=[slack]) is None
    assert place(found, one(Size("A", 1000)), beside=[slack]) == (("a",),)


def test_nodes_know_what_is_left_of_them_and_what_there_is() -> None:
    found = nodes(node("a", gpus=4), node("b", gpus=2, model="B"))
    found.hold("a", "wkl", ((Size("A", 1500, 1000), 2),), FOREVER)
    # Two shares of half a device lie on one.
    assert found.left("gpu_milli/A") == 1000
    assert (found.left("gpu_milli/*"), found.total("gpu_milli/*")) == (3000, 6000)
    assert found.types == ["A", "B"]
    found.put(node("b", gpus=2, model="B", cordoned=True))
    assert (found.total("gpu_milli/*"), found.types) == (4000, ["A"])


def test_a_node_that_is_held_before_it_is_known_is_full_when_it_comes() -> None:
    found = Nodes()
    found.hold("a", "wkl", ((Size("A", 3000), 1),), FOREVER)
    assert place(found, one(Size("A", 1000))) is None
    found.put(node("a", gpus=4))
    assert place(found, one(Size("A", 1000))) == (("a",),)
    assert place(found, one(Size("A", 2000))) is None


@st.composite
def _filled(draw: st.DrawFn) -> Nodes:
    found = Nodes()
    for number in range(draw(st.integers(1, 4))):
        name = f"n{number}"
        found.put(node(name, cpu=16, memory=32, gpus=draw(st.sampled_from([0, 2, 4]))))
        loads = draw(st.lists(st.tuples(st.one_of(SIZES, PLAIN), st.integers(0, 6)), max_size=4))
        for place_, (size, end) in enumerate(loads):
            load: Load = ((size, 1),)
            if count(found.nodes[name].room, size, 1):
                found.hold(name, f"wkl_{place_}", load, FOREVER if end == 6 else 100 + 10 * end)
    return found


def _naive(found: Nodes, size: Size, number: int, now: int) -> list[tuple[int, str]]:
    """Every opening of every node, the first ones first."""
    every = [
        (max(time, now), name)
        for name, there in found.nodes.items()
        for time in openings(there, size, number)
    ]
    return sorted(every)[:number]


@given(_filled(), st.one_of(SIZES, PLAIN), st.integers(1, 6), st.sampled_from([0, 115]))
def test_the_nodes_that_free_first_are_found_without_looking_at_all(
    found: Nodes, size: Size, number: int, now: int
) -> None:
    for _ in range(2):
        plan = earliest(found, one(size, number), now)
        first = _naive(found, size, number, now)
        if len(first) < number:
            assert plan is None
            return
        assert plan is not None
        assert plan.nodes == (tuple(name for _, name in first),)
        assert plan.start == first[-1][0]
        # Once more, what was remembered being changed.
        found.hold("n0", "wkl_0", (), 0)


@given(_filled(), st.one_of(SIZES, PLAIN), st.integers(1, 6))
def test_what_is_kept_fits_once_all_that_ends_by_then_has_ended(
    found: Nodes, size: Size, number: int
) -> None:
    plan = earliest(found, one(size, number), 0)
    if plan is None:
        return
    for name, there in list(found.nodes.items()):
        for uid, (_, end) in list(there.busy.items()):
            if end <= plan.start:
                found.hold(name, uid, (), 0)
    for name in set(plan.nodes[0]):
        fits = count(found.nodes[name].room, size, number)
        assert fits >= plan.nodes[0].count(name)
    assert all(min(_amounts(room)) >= 0 for room in plan.slack.values())


def _amounts(room: Room) -> Sequence[int]:
    return (room.cpu_milli, room.memory_bytes, *(gpus.open for gpus in room.gpus))
