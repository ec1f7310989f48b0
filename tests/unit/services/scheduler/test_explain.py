"""Why a workload waits, its place, and when it starts at the latest."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import HealthCheck, given, settings

from fermion.api.workload import v1 as workload
from services.scheduler import explain, outlook
from services.scheduler.admission import Admit, admit
from services.scheduler.demand import BATCH, RESERVED, Group, Said
from services.scheduler.placement import FOREVER, Size
from tests.unit.services.scheduler.test_admission import History, mounting
from tests.unit.services.scheduler.world import GB, START, World, histories, node, work, worlds


def why(world: World, uid: str) -> workload.Reason:
    """What is in the way of one after a pass, the same with the memory of passes and without."""
    world.turn()
    found = explain.Look(world.state, world.now).at(uid)
    assert found == explain.Look(world.state.copy(), world.now).at(uid)
    assert found is not None
    return explain.reason(found)


def kind(reason: workload.Reason) -> tuple[str, str]:
    return reason.code, reason.arguments.get("short_of", "")


def test_without_a_cluster_it_waits_for_one() -> None:
    world = World.of()
    world.declare(work("one", clusters=()))
    assert kind(why(world, "one")) == ("NO_CLUSTER", "")


def test_a_quota_that_is_used_up_is_told_with_its_amounts() -> None:
    world = World.of(node("n"))
    world.limit({"projects/-": {"gpu_milli/*": 3000}})
    world.declare(work("runs", gpus=2), work("waits", gpus=2, queue_time=START + 1))
    reason = why(world, "waits")
    assert kind(reason) == ("QUOTA", "room")
    assert dict(reason.arguments) == {
        "short_of": "room",
        "scope": "projects/acme",
        "dimension": "gpu_milli/*",
        "need": "2000",
        "used": "2000",
        "limit": "3000",
        "short": "1000",
    }
    assert reason.message == (
        "The project may hold 3 GPUs; 1 GPU of that is left, and this asks for 2 GPUs."
    )


def test_what_asks_for_more_than_its_limit_is_set_aside() -> None:
    world = World.of(node("n"))
    world.limit({"users/-": {"cpu_milli": 2000}})
    world.declare(work("waits", cpu=4))
    reason = why(world, "waits")
    assert kind(reason) == ("QUOTA", "limit")
    assert reason.message == "The user may hold 2 CPUs, and this asks for 4 CPUs."


def test_a_limit_that_was_lowered_below_what_is_held_is_told_as_that() -> None:
    world = World.of(node("n"))
    world.declare(work("runs", gpus=4))
    world.turn()
    world.limit({"projects/-": {"gpu_milli/*": 1000}})
    world.declare(work("waits", gpus=1))
    assert kind(why(world, "waits")) == ("OVER_QUOTA", "room")


def test_what_asks_for_more_than_there_is_is_set_aside() -> None:
    world = World.of(node("n", gpus=4))
    world.declare(work("huge", gpus=9))
    reason = why(world, "huge")
    assert kind(reason) == ("CAPACITY", "total")
    assert reason.message == "It asks for 9 A GPUs, and there is no more than 4 A GPUs in all."
    assert (reason.arguments["need"], reason.arguments["total"]) == ("9000", "4000")


def test_what_no_single_node_could_ever_hold_is_set_aside() -> None:
    world = World.of(node("a", gpus=4), node("b", gpus=4))
    world.declare(work("large", gpus=6))
    reason = why(world, "large")
    assert kind(reason) == ("CAPACITY", "total")
    assert (reason.arguments["need"], reason.arguments["largest"]) == ("6000", "4000")
    assert reason.message == "It asks for 6 A GPUs on one node, and none has more than 4 A GPUs."


def test_a_model_that_is_nowhere_is_set_aside() -> None:
    world = World.of(node("n", gpus=0))
    world.declare(work("one", gpus=1, model="H100"))
    reason = why(world, "one")
    assert kind(reason) == ("CAPACITY", "total")
    assert reason.arguments["dimension"] == "gpu_milli/H100"


def test_what_is_full_now_is_told_with_what_is_free() -> None:
    world = World.of(node("n", gpus=4))
    world.declare(work("runs", gpus=3))
    world.turn()
    world.declare(work("first", gpus=2), work("second", gpus=2, queue_time=START + 1))
    reason = why(world, "second")
    assert kind(reason) == ("CAPACITY", "free")
    assert reason.message == "It asks for 2 A GPUs, and 1 A GPU is free now."
    assert kind(why(world, "first")) == ("RESERVED", "")


def test_what_is_free_in_all_and_not_on_one_node_is_fragmented() -> None:
    world = World.of(node("a", gpus=2), node("b", gpus=2))
    world.declare(work("one", gpus=1), work("two", gpus=1))
    world.turn()
    world.change("two", held=replace(world.works["two"].held, nodes={"": ("b",)}))  # type: ignore[type-var]
    world.declare(work("first", gpus=2), work("second", gpus=2, queue_time=START + 1))
    reason = why(world, "second")
    assert kind(reason) == ("FRAGMENTED", "")
    amounts = [reason.arguments[name] for name in ("need", "free", "largest", "short")]
    assert amounts == ["2000", "2000", "1000", "1000"]


def test_what_would_fit_on_nodes_that_are_kept_for_another_is_behind() -> None:
    world = World.of(node("n", gpus=4))
    world.declare(work("runs", gpus=2, lasts=100))
    world.turn()
    world.declare(work("gang", gpus=4))
    world.turn()
    world.declare(work("endless", gpus=1, queue_time=START + 1))
    assert kind(why(world, "endless")) == ("BEHIND", "")
    found = explain.Look(world.state, world.now).at("endless")
    assert found is not None
    assert found.reserved is not None
    assert (found.reserved.uid, found.reserved.plan.start) == ("gang", START + 100)


def test_a_volume_that_nobody_has_declared_is_named() -> None:
    world = World.of(node("n"))
    world.declare(mounting("early", "vol_1"))
    reason = why(world, "early")
    assert (reason.code, dict(reason.arguments)) == ("VOLUME_UNKNOWN", {"volume": "vol_1"})


def test_a_project_whose_quota_has_not_been_read_is_told_so() -> None:
    world = World.of(node("n"), projects=())
    world.declare(work("early"))
    assert kind(why(world, "early")) == ("QUOTA_UNKNOWN", "")


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(world=worlds(), history=histories())
def test_after_a_pass_whoever_waits_hears_why_with_memory_and_without(
    world: World, history: History
) -> None:
    for later, happens in history:
        for event in happens:
            event(world)
        world.turn(later)
        # What was decided is put, and another pass finds nothing more.
        while world.turn():
            pass
        look = explain.Look(world.state, world.now)
        without = explain.Look(world.state.copy(), world.now)
        for uid, one in world.works.items():
            found = look.at(uid)
            assert (found is not None) == one.waits
            other = without.at(uid)
            assert (found and found.said) == (other and other.said)
            if found is not None:
                reason = explain.reason(found)
                assert reason.message.endswith(".")
                assert kind(reason) == tuple(found.said)


# Whom to tell.


def test_what_has_arrived_is_told_why_it_waits_at_once_and_later_once_a_minute() -> None:
    world = World.of(node("n", gpus=1))
    world.declare(work("runs", gpus=1), work("waits", gpus=1, queue_time=START + 1))
    world.turn()
    world.change("waits", said=RESERVED)
    world.declare(work("next", gpus=1, queue_time=START + 2))
    world.turn()
    ((uid, reason),) = explain.told(world.state, world.now, 10)
    assert (uid, kind(reason)) == ("next", ("CAPACITY", "free"))
    world.change("next", said=Said("QUOTA", "room"), said_time=world.now)
    assert list(explain.told(world.state, world.now + 59_999, 10)) == []
    assert len(list(explain.told(world.state, world.now + 60_000, 10))) == 1


def test_who_has_a_reservation_no_more_is_told_at_once() -> None:
    world = World.of(node("n", gpus=1))
    world.declare(work("runs", gpus=1))
    world.turn()
    world.declare(work("gang", gpus=1))
    world.turn()
    world.limit({"projects/-": {"gpu_milli/*": 1000}})
    world.change("gang", said_time=world.now)
    world.turn()
    ((uid, reason),) = explain.told(world.state, world.now, 10)
    assert (uid, kind(reason)) == ("gang", ("QUOTA", "room"))


def test_only_so_many_are_told_at_once() -> None:
    world = World.of(node("n", gpus=0))
    world.declare(*(work(f"wkl_{place}", gpus=1) for place in range(9)))
    world.turn()
    assert len(list(explain.told(world.state, world.now, 4))) == 4


# Places.


def test_three_that_wait_stand_first_second_and_third_and_move_up() -> None:
    world = World.of(node("n", gpus=1))
    world.declare(*(work(f"wkl_{place}", gpus=1, queue_time=START + place) for place in range(4)))
    world.turn()
    assert explain.line_up(world.state, world.now) == ["wkl_1", "wkl_2", "wkl_3"]
    world.withdraw("wkl_2")
    assert explain.line_up(world.state, world.now) == ["wkl_1", "wkl_3"]


def test_places_are_those_in_which_they_would_be_admitted_if_there_were_room() -> None:
    world = World.of(node("n", gpus=8), node("m", gpus=8))
    world.declare(
        *(work(f"acme_{at}", gpus=2, queue_time=START + at) for at in range(3)),
        *(
            work(f"other_{at}", gpus=2, project="other", queue_time=START + 5 + at)
            for at in range(3)
        ),
        work("batch", gpus=1, klass=BATCH, kind="training", queue_time=START - 50),
    )
    line = explain.line_up(world.state, world.now)
    assert world.admitted() == line
    assert line[:4] == ["acme_0", "other_0", "acme_1", "other_1"]


def test_what_waits_for_somebody_to_act_comes_last() -> None:
    world = World.of(node("n", gpus=1))
    world.declare(work("runs", gpus=1))
    world.turn()
    world.declare(work("huge", gpus=9, queue_time=START - 9), work("waits", gpus=1))
    assert explain.line_up(world.state, world.now) == ["waits", "huge"]


# The latest start.


def latest(world: World, uid: str) -> int | None:
    return outlook.latest_start(world.state.copy(), uid, world.now)


def test_it_starts_when_what_runs_before_it_has_ended_at_its_latest() -> None:
    world = World.of(node("n", gpus=2))
    world.declare(work("runs", gpus=2, lasts=100))
    world.turn()
    world.declare(
        work("first", gpus=2, lasts=50, queue_time=START + 1),
        work("second", gpus=2, queue_time=START + 2),
        work("third", gpus=1, queue_time=START + 3),
    )
    assert latest(world, "first") == START + 100
    assert latest(world, "second") == START + 150
    # Behind work that has no end nobody can tell.
    assert latest(world, "third") is None


def test_what_fits_starts_now() -> None:
    world = World.of(node("n", gpus=2))
    world.declare(work("one", gpus=1))
    assert latest(world, "one") == START


def test_what_is_given_up_before_never_starts() -> None:
    world = World.of(node("n", gpus=1))
    world.declare(work("runs", gpus=1, lasts=100))
    world.turn()
    world.declare(work("waits", gpus=1, expire_time=START + 50))
    assert latest(world, "waits") is None


def test_a_time_in_which_nodes_are_avoided_is_waited_for() -> None:
    world = World.of(node("n"))
    world.declare(work("shy", avoid=(("n", START + 70),)))
    assert latest(world, "shy") == START + 70


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.too_slow])
@given(world=worlds(), history=histories())
def test_whoever_is_told_a_latest_start_starts_by_then(world: World, history: History) -> None:
    for later, happens in history:
        for event in happens:
            event(world)
        world.turn(later)
    told = {
        uid: found
        for uid, one in world.works.items()
        if one.held is None and (found := latest(world, uid)) is not None
    }
    # Now everything happens at its latest.
    for _ in range(200):
        started = {one.uid for one in admit(world.state, world.now, 1000) if isinstance(one, Admit)}
        for uid in started & set(told):
            assert world.now <= told.pop(uid)
        ends = [one.end for one in world.state.works.values() if one.held and not one.ended]
        due = min([*ends, world.state.next_time(world.now)], default=FOREVER)
        if due >= FOREVER:
            break
        world.now = max(world.now, due)
        for one in list(world.state.works.values()):
            if one.held is not None and one.end <= world.now:
                world.state.put(replace(one, ended=True, replicas=()))
    assert told == {}


def test_amounts_are_said_as_people_say_them() -> None:
    assert explain.words("gpu_milli/*", 1000) == "1 GPU"
    assert explain.words("gpu_milli/A100", 2500) == "2.5 A100 GPUs"
    assert explain.words("cpu_milli", 1500) == "1.5 CPUs"
    assert explain.words("memory_bytes", 3 * 2**30) == "3 GiB of memory"
    assert explain.words("storage_bytes", 100) == "100 bytes of storage"
    assert explain.words("workloads/instance", 2) == "2 instances"


def test_of_a_workload_of_several_groups_all_is_counted() -> None:
    world = World.of(node("n", cpu=4, gpus=0))
    groups = (
        Group("one", Size("", 0, 3000, GB), 1, 1),
        Group("two", Size("", 0, 3000, GB), 1, 1),
    )
    world.declare(work("both", groups=groups))
    reason = why(world, "both")
    assert kind(reason) == ("CAPACITY", "total")
    assert reason.arguments["need"] == "6000"
