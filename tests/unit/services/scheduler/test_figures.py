"""What operators are told of a cluster: what there is, and what of it is held."""

from __future__ import annotations

from services.scheduler.figures import ALL_GPUS, HELD_GPUS, Amounts, capacity, held
from services.scheduler.placement import Gpus, Nodes, Room, Shape, Size


def nodes() -> Nodes:
    found = Nodes()
    found.put(Shape("n1", Room(8000, 64, 100, (Gpus("A100", 4),))))
    found.put(Shape("n2", Room(4000, 32, 50), cordoned=True))
    return found


def test_what_there_is_counts_also_where_nothing_new_goes() -> None:
    (found,) = capacity({"k": nodes()})
    assert (found.there.cpu_milli, found.there.memory_bytes, found.there.storage_bytes) == (
        12000,
        96,
        150,
    )
    assert found.there.gpu_milli == {"A100": 4000}
    assert found.held == Amounts()


def test_what_is_held_is_a_sum_of_sizes_and_not_what_they_leave_of_devices() -> None:
    there = nodes()
    half = Size("A100", 500, 1000, 8, 5)
    there.hold("n1", "wkl_a", ((half, 3),), 0)
    there.hold("n2", "vol_b", ((Size(storage_bytes=20), 1),), 0)
    (found,) = capacity({"k": there})
    assert (found.held.cpu_milli, found.held.memory_bytes, found.held.storage_bytes) == (
        3000,
        24,
        35,
    )
    assert found.held.gpu_milli == {"A100": 1500}
    shown = {one.figure: one.value for one in held([found]) if one.labels == ("k", "A100")}
    assert shown == {HELD_GPUS: 1.5, ALL_GPUS: 4.0}


def test_of_a_node_that_has_gone_what_it_holds_is_held_until_it_is_gone() -> None:
    there = nodes()
    there.hold("n1", "wkl_a", ((Size("A100", 1000, 1000, 8), 1),), 0)
    there.remove("n1")
    (found,) = capacity({"k": there})
    assert found.there.gpu_milli == {}
    assert found.held.gpu_milli == {"A100": 1000}
    shown = {one.figure: one.value for one in held([found]) if one.labels == ("k", "A100")}
    assert shown == {HELD_GPUS: 1.0, ALL_GPUS: 0.0}
