"""Who runs next: what every pass holds to, whatever happened before."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from fermion.api.workload import v1 as workload
from services.scheduler.admission import (
    EXPIRED,
    UNHONOURED,
    VOLUME_GONE,
    VOLUME_SIZE,
    Admit,
    Refuse,
    Release,
    Reserve,
    admit,
    reservations,
)
from services.scheduler.demand import (
    BATCH,
    CLASSES,
    SERVING,
    SPOT,
    Group,
    Replica,
    Volume,
    Work,
)
from services.scheduler.explain import line_up
from services.scheduler.placement import ANY, FOREVER, Size
from services.scheduler.state import State
from tests.unit.services.scheduler.world import (
    GB,
    START,
    Event,
    World,
    histories,
    node,
    used,
    work,
    worlds,
)

History = list[tuple[int, list[Event]]]

whatever_happens = settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow]
)


# Properties.


@whatever_happens
@given(world=worlds(), history=histories(), limits=st.lists(st.sampled_from([1, 3, 1000])))
def test_a_pass_with_memory_and_one_without_decide_the_same(
    world: World, history: History, limits: list[int]
) -> None:
    for place, (later, happens) in enumerate(history):
        for event in happens:
            event(world)
        limit = limits[place % len(limits)] if limits else 1000
        without = world.state.copy()
        decided = world.turn(later, limit)
        assert decided == admit(without, world.now, limit)
        assert world.state.works == world.works


@whatever_happens
@given(world=worlds(), history=histories(), random=st.randoms(use_true_random=False))
def test_in_whichever_order_things_are_put_the_decisions_are_the_same(
    world: World, history: History, random: object
) -> None:
    for later, happens in history:
        for event in happens:
            event(world)
        other = World()
        other.state.limit(world.state.quotas.projects, world.state.quotas.limits)
        for uid, nodes in sorted(world.state.clusters.items(), reverse=True):
            # Also where no node of it is left: what wants nothing fits there.
            there = other.state.nodes(uid)
            for name in sorted(nodes.nodes, reverse=True):
                if nodes.nodes[name].known:
                    there.put(nodes.nodes[name].shape)
        shuffled = list(world.works.values())
        random.shuffle(shuffled)  # type: ignore[attr-defined]
        other.declare(*shuffled)
        decided = world.turn(later)
        assert decided == admit(other.state, world.now, 1000)


@whatever_happens
@given(world=worlds(), history=histories(nodes=False))
def test_no_node_ever_holds_more_than_it_has(world: World, history: History) -> None:
    for later, happens in history:
        for event in happens:
            event(world)
        world.turn(later)
        on: dict[tuple[str, str], list[Size]] = {}
        for one in world.works.values():
            if one.held is None or one.ended:
                continue
            for group in one.groups:
                size = group.size
                if size.gpu_type == ANY:
                    size = size._replace(gpu_type=one.held.gpu_type)
                for name in one.held.nodes[group.role]:
                    on.setdefault((one.held.cluster, name), []).append(size)
        for (cluster, name), sizes in on.items():
            whole = world.state.clusters[cluster].nodes[name].shape.whole
            assert sum(size.cpu_milli for size in sizes) <= whole.cpu_milli
            assert sum(size.memory_bytes for size in sizes) <= whole.memory_bytes
            for model in {size.gpu_type for size in sizes} - {""}:
                mine = [size.gpu_milli for size in sizes if size.gpu_type == model]
                devices = sum(milli // 1000 for milli in mine)
                # Two shares of these tests always fit on one device.
                devices += -(-sum(milli % 1000 for milli in mine) // 1000)
                assert devices <= whole.of(model).devices


@whatever_happens
@given(world=worlds(), history=histories())
def test_no_scope_is_ever_taken_over_its_limit(world: World, history: History) -> None:
    for later, happens in history:
        for event in happens:
            event(world)
        before = used(world.works)
        world.turn(later)
        for scope, amounts in used(world.works).items():
            limits, _ = world.state.quotas.limits_of(scope)
            for dimension, limit in limits.items():
                had = before.get(scope, Counter())[dimension]
                assert amounts[dimension] <= max(limit, had)


@whatever_happens
@given(world=worlds(), history=histories())
def test_what_is_held_is_what_was_admitted_and_is_all_given_back(
    world: World, history: History
) -> None:
    for later, happens in history:
        for event in happens:
            event(world)
        world.turn(later)
        held = world.state.quotas.used
        mine = {
            scope: Counter(amounts) for scope, amounts in held.items() if "/users/" not in scope
        }
        assert mine == used(world.works)
    for uid, one in list(world.works.items()):
        if one.held is None:
            world.withdraw(uid)
        else:
            world.end(uid)
    world.turn()
    assert (world.works, world.state.works, world.state.quotas.used) == ({}, {}, {})
    assert len(world.state.lines) == 0
    for nodes in world.state.clusters.values():
        assert [one for one in nodes.nodes.values() if one.busy] == []
        assert all(one.room == one.shape.whole for one in nodes.nodes.values())


@whatever_happens
@given(world=worlds(), history=histories())
def test_no_admission_moves_a_reservation_later_but_one_of_an_earlier_class(
    world: World, history: History
) -> None:
    for later, happens in history:
        for event in happens:
            event(world)
        world.now += later
        before = reservations(world.state.copy(), CLASSES - 1, world.now)
        classes = {uid: one.klass for uid, one in world.works.items()}
        decided = world.turn()
        after = reservations(world.state.copy(), CLASSES - 1, world.now)
        if not {one.uid for one in after.values()} <= {one.uid for one in before.values()}:
            # Another one has a reservation now, which goes before those of later classes.
            continue
        admitted = {one.uid for one in decided if isinstance(one, Admit)}
        first = min((classes[uid] for uid in admitted), default=SPOT)
        for flavour, reserved in after.items():
            was = before.get(flavour)
            # Who was given some of what he waits for waits for the rest from then on, perhaps
            # among those of another model.
            if was is None or was.uid != reserved.uid or was.uid in admitted:
                continue
            if first >= reserved.klass:
                assert reserved.plan.start <= was.plan.start


@whatever_happens
@given(
    sizes=st.lists(
        st.tuples(
            st.sampled_from([1, 1, 2, 4, 8]), st.sampled_from([10, 40, 100]), st.integers(0, 30)
        ),
        max_size=30,
    ),
    nodes=st.integers(1, 3),
)
def test_nobody_waits_longer_than_those_before_him_and_himself_may_last(
    sizes: list[tuple[int, int, int]], nodes: int
) -> None:
    world = World.of(*(node(f"n{place}") for place in range(nodes)))
    comes, older, arrived, started = [], {}, {}, {}
    at = START
    for place, (gpus, lasts, later) in enumerate(sizes):
        at += later
        # One project has nearly all of it, and the other goes first by its share.
        project = "other" if place % 5 == 0 else "acme"
        uid = f"wkl_{place:02}"
        comes.append((at, work(uid, gpus=gpus, lasts=lasts, queue_time=at, project=project)))
    longest = max((lasts for _, lasts, _ in sizes), default=0)
    while comes or world.works:
        ends = [one.end for one in world.works.values() if one.held is not None]
        world.now = min([moment for moment, _ in comes] + ends)
        world.end(*(uid for uid, one in world.works.items() if one.held and one.end <= world.now))
        while comes and comes[0][0] <= world.now:
            _, one = comes.pop(0)
            older[one.uid] = sum(other.held is None for other in world.works.values())
            arrived[one.uid] = world.now
            world.declare(one)
        for uid in world.admitted():
            started[uid] = world.now
    for uid, moment in started.items():
        assert moment - arrived[uid] <= (older[uid] + 1) * longest


@whatever_happens
@given(world=worlds(), history=histories(single=True), more=st.integers(1, 4))
def test_more_capacity_never_delays_the_first(world: World, history: History, more: int) -> None:
    for later, happens in history:
        for event in happens:
            event(world)
        world.turn(later)
    bare = State()
    bare.limit(world.state.quotas.projects, world.state.quotas.limits)
    for uid, nodes in world.state.clusters.items():
        for one in nodes.nodes.values():
            if one.known:
                bare.nodes(uid).put(one.shape)
    for one in world.works.values():
        bare.put(replace(one, held=None, said=one.said._replace(code="ARRIVED")))
    line = line_up(bare, world.now)
    assume(line)
    larger = bare.copy()
    for place in range(more):
        larger.nodes("c").put(node(f"more{place}", cpu=16, memory=32))
    # Shares are parts of what there is, so that the first of one may not be the first of the other.
    assume(line_up(larger, world.now)[0] == line[0])
    if line[0] in {one.uid for one in admit(bare, world.now, 1000) if isinstance(one, Admit)}:
        again = admit(larger, world.now, 1000)
        assert line[0] in {one.uid for one in again if isinstance(one, Admit)}


# Order.


def test_classes_go_first_then_the_project_that_has_least_then_age() -> None:
    world = World.of(node("n", gpus=4))
    world.declare(work("held", gpus=1, project="acme"))
    world.turn()
    world.declare(
        work("batch", gpus=1, klass=BATCH, kind="training", queue_time=START - 9),
        work("older", gpus=1, project="acme", queue_time=START - 5),
        work("younger", gpus=1, project="other", queue_time=START - 1),
        work("serving", gpus=1, klass=SERVING, kind="inference", project="acme"),
    )
    assert world.admitted() == ["serving", "younger", "older"]


def test_priority_counts_inside_one_project_only() -> None:
    world = World.of(node("n", gpus=2))
    world.declare(
        work("plain", gpus=1, queue_time=START - 5),
        work("urgent", gpus=1, priority=9, queue_time=START - 1),
        work("of-another", gpus=1, project="other", queue_time=START - 4),
    )
    assert set(world.admitted()) == {"urgent", "of-another"}


def test_of_one_project_the_user_who_has_least_goes_first() -> None:
    world = World.of(node("n", gpus=2))
    world.declare(work("held", gpus=1, user="ada"))
    world.turn()
    world.declare(
        work("more", gpus=1, user="ada", queue_time=START - 5),
        work("first", gpus=1, user="bob", queue_time=START - 1),
    )
    assert world.admitted() == ["first"]


def test_a_pass_admits_at_most_so_many_and_the_next_goes_on() -> None:
    world = World.of(node("n"))
    world.declare(*(work(f"wkl_{place}", gpus=1, queue_time=START + place) for place in range(5)))
    assert [world.admitted(limit=2) for _ in range(3)] == [
        ["wkl_0", "wkl_1"],
        ["wkl_2", "wkl_3"],
        ["wkl_4"],
    ]


def test_behind_thousands_that_cannot_start_one_that_can_starts_in_one_pass() -> None:
    world = World.of(node("n", gpus=1))
    world.declare(
        *(work(f"dead_{place}", gpus=2, queue_time=START - 9) for place in range(10_000)),
        *(work(f"quota_{place}", project="other", queue_time=START - 9) for place in range(1000)),
        work("cpu", queue_time=START),
    )
    world.limit({"projects/OTHER": {"workloads/instance": 3}})
    assert sorted(world.admitted()) == ["cpu", "quota_0", "quota_1", "quota_10"]


def test_where_one_model_is_full_those_for_another_start() -> None:
    world = World.of(node("a", gpus=1, model="A"), node("b", gpus=1, model="B"))
    world.declare(
        work("first", gpus=1, model="A", queue_time=START - 3),
        work("waits", gpus=1, model="A", queue_time=START - 2),
        work("starts", gpus=1, model="B", queue_time=START - 1),
    )
    assert sorted(world.admitted()) == ["first", "starts"]


# Groups.


def test_replicas_are_admitted_all_together_or_not_at_all() -> None:
    world = World.of(node("a", gpus=2), node("b", gpus=2))
    world.declare(work("gang", gpus=1, replicas=5))
    assert world.admitted() == []
    world.state.nodes("c").put(node("d", gpus=1))
    assert world.admitted() == ["gang"]
    assert Counter(world.nodes_of("gang")) == {"a": 2, "b": 2, "d": 1}


def test_groups_are_placed_over_all_groups_at_once() -> None:
    world = World.of(node("a", gpus=2, cpu=4))
    groups = (
        Group("trainer", Size("A", 1000, 1000, GB), 2, 2),
        Group("reader", Size("", 0, 3000, GB), 1, 1),
    )
    world.declare(work("both", groups=groups))
    assert world.admitted() == []
    world.state.nodes("c").put(node("b", gpus=0, cpu=4))
    assert world.admitted() == ["both"]
    assert world.nodes_of("both") == ["a", "a", "b"]


def test_what_is_elastic_has_its_least_and_then_what_fits() -> None:
    world = World.of(node("n", gpus=3))
    world.declare(work("elastic", gpus=1, replicas=5, least=2, klass=SERVING, kind="inference"))
    assert world.admitted() == ["elastic"]
    assert len(world.nodes_of("elastic")) == 3
    world.state.nodes("c").put(node("more", gpus=1))
    assert world.admitted() == ["elastic"]
    assert len(world.nodes_of("elastic")) == 4


def test_the_rest_of_what_is_elastic_waits_as_batch_does() -> None:
    world = World.of(node("n", gpus=2))
    world.declare(
        work("elastic", gpus=1, replicas=2, least=1, klass=SERVING, kind="inference"),
        work("instance", gpus=1, queue_time=START + 1),
    )
    assert world.admitted() == ["elastic", "instance"]
    assert len(world.nodes_of("elastic")) == 1


def test_more_replicas_come_as_far_as_the_quota_goes() -> None:
    world = World.of(node("n"))
    world.limit({"projects/-": {"gpu_milli/*": 3000}})
    world.declare(work("service", gpus=1, replicas=1, klass=SERVING, kind="inference"))
    world.turn()
    (group,) = world.works["service"].groups
    world.change("service", groups=(replace(group, wanted=5),))
    assert world.admitted() == ["service"]
    assert len(world.nodes_of("service")) == 3


def test_at_no_replicas_wanted_a_workload_is_admitted_and_holds_its_place_in_the_count() -> None:
    world = World.of(node("n"))
    world.limit({"projects/-": {"workloads/inference": 1}})
    world.declare(work("none", replicas=0, kind="inference", klass=SERVING))
    assert world.admitted() == ["none"]
    world.declare(work("second", kind="inference", klass=SERVING))
    assert world.admitted() == []


# GPUs.


def test_whichever_model_will_do_the_first_that_fits_and_is_allowed_is_taken() -> None:
    world = World.of(node("a", gpus=1, model="A"), node("b", gpus=2, model="B"))
    world.limit({"projects/-": {"gpu_milli/A": 0, "gpu_milli/*": 2000}})
    world.declare(work("any", gpus=1, model=ANY))
    assert world.admitted() == ["any"]
    held = world.works["any"].held
    assert held is not None
    assert (held.gpu_type, world.nodes_of("any")) == ("B", ["b"])
    assert world.state.quotas.held("projects/acme")["gpu_milli/B"] == 1000


def test_shares_of_gpus_go_to_a_device_that_is_shared_already() -> None:
    world = World.of(node("a", gpus=1), node("b", gpus=2))
    world.declare(work("first", gpus=0.5))
    world.turn()
    world.declare(work("second", gpus=0.5), work("whole", gpus=2))
    assert sorted(world.admitted()) == ["second", "whole"]
    assert world.nodes_of("first") == world.nodes_of("second") == ["a"]


# Quotas.


def test_limits_of_ones_own_go_before_those_for_each() -> None:
    world = World.of(node("n"))
    world.limit({"projects/-": {"gpu_milli/*": 1000}, "projects/OTHER": {"gpu_milli/*": 3000}})
    world.declare(
        *(work(f"acme_{place}", gpus=1) for place in range(3)),
        *(work(f"other_{place}", gpus=1, project="other") for place in range(4)),
    )
    assert Counter(uid[:4] for uid in world.admitted()) == {"acme": 1, "othe": 3}


def test_a_user_is_held_to_his_limit_over_all_projects() -> None:
    world = World.of(node("n"))
    world.limit({"users/-": {"cpu_milli": 3000}})
    world.declare(
        work("one", cpu=2, project="acme"),
        work("two", cpu=2, project="other"),
        work("of-bob", cpu=2, project="other", user="bob"),
    )
    assert sorted(world.admitted()) == ["of-bob", "one"]


def test_a_project_whose_quota_has_not_been_read_is_neither_let_in_nor_refused() -> None:
    world = World.of(node("n"), projects=())
    world.declare(work("early"))
    assert world.turn() == []
    world.limit({}, ("acme",))
    assert world.admitted() == ["early"]


def test_a_limit_that_is_lowered_ends_nothing_and_lets_nothing_new_in() -> None:
    world = World.of(node("n"))
    world.declare(work("runs", gpus=4))
    world.turn()
    world.limit({"projects/-": {"gpu_milli/*": 1000}})
    world.declare(work("waits", gpus=1))
    assert world.turn() == []
    world.end("runs")
    assert world.admitted() == ["waits"]


# Reservations.


def test_the_longest_waiting_keeps_what_frees_and_others_pass_only_beside_it() -> None:
    world = World.of(node("n", gpus=4))
    world.declare(work("runs", gpus=2, lasts=100))
    world.turn()
    world.declare(work("gang", gpus=4, queue_time=START - 9))
    assert world.turn() == [Reserve("gang")]
    world.declare(
        work("long", gpus=1, lasts=101),
        work("endless", gpus=1),
        work("short", gpus=1, lasts=100),
        work("cpu", cpu=1),
    )
    # A GPU that is free until the gang starts may be used until then, and no longer.
    assert sorted(world.admitted()) == ["cpu", "short"]
    world.end("runs", "short")
    assert world.admitted(later=100) == ["gang"]


def test_who_has_the_reservation_keeps_it_before_one_that_comes_with_an_older_age() -> None:
    world = World.of(node("n", gpus=4))
    world.declare(work("runs", gpus=4, lasts=100))
    world.turn()
    world.declare(work("first", gpus=2, queue_time=START))
    assert world.turn() == [Reserve("first")]
    world.declare(work("older", gpus=2, queue_time=START - 50))
    assert world.turn() == []
    assert [uid for _, _, uid in world.state.lines.claimants("A")] == ["first"]


def test_an_earlier_class_passes_a_reservation_and_takes_it() -> None:
    world = World.of(node("n", gpus=4))
    world.declare(work("runs", gpus=2, lasts=100))
    world.turn()
    world.declare(work("gang", gpus=4, klass=BATCH, kind="training"))
    assert world.turn() == [Reserve("gang")]
    world.declare(work("instance", gpus=2), work("next", gpus=2))
    decided = world.turn()
    assert [one.uid for one in decided if isinstance(one, Admit)] == ["instance"]
    assert Reserve("next") in decided


def test_a_reservation_ends_when_a_quota_stops_who_has_it() -> None:
    world = World.of(node("n", gpus=4))
    world.declare(work("runs", gpus=2, lasts=100))
    world.turn()
    world.declare(work("gang", gpus=4))
    assert world.turn() == [Reserve("gang")]
    world.declare(work("endless", gpus=2, project="other"))
    assert world.admitted() == []
    world.limit({"projects/ACME": {"gpu_milli/*": 2000}})
    assert world.admitted() == ["endless"]


def test_what_could_never_fit_keeps_nothing() -> None:
    world = World.of(node("n", gpus=4))
    world.declare(work("huge", gpus=8, queue_time=START - 9), work("fits", gpus=4))
    assert [type(one) for one in world.turn()] == [Admit]
    assert world.works["huge"].held is None


# Holds.


def test_a_hold_is_free_when_its_replica_is_gone_and_not_when_it_is_told_to_go() -> None:
    world = World.of(node("n", gpus=1))
    world.declare(work("runs", gpus=1))
    world.turn()
    held = world.works["runs"].held
    assert held is not None
    world.change("runs", replicas=(Replica("rep", "", "n"),), held=replace(held, revoked=True))
    world.declare(work("waits", gpus=1))
    assert world.admitted() == []
    world.change("runs", replicas=())
    # It is not said yet that none will come.
    assert world.admitted() == []
    world.end("runs")
    assert [type(one) for one in world.turn()] == [Release, Admit]


def test_a_replica_counts_where_it_was_bound_and_not_where_it_was_meant_to_be() -> None:
    world = World.of(node("a", gpus=1), node("b", gpus=1))
    world.declare(work("runs", gpus=1))
    world.turn()
    assert world.nodes_of("runs") == ["a"]
    world.change("runs", replicas=(Replica("rep", "", "b"),))
    world.declare(work("next", gpus=1))
    world.turn()
    assert world.nodes_of("next") == ["a"]


def test_fewer_replicas_free_nothing_before_those_that_go_are_gone() -> None:
    world = World.of(node("n", gpus=2))
    world.declare(work("service", gpus=1, replicas=2, kind="inference"))
    world.turn()
    (group,), held = world.works["service"].groups, world.works["service"].held
    assert held is not None
    both = (Replica("rep_0", "", "n"), Replica("rep_1", "", "n"))
    fewer = replace(held, replicas={"": 1}, nodes={"": ("n",)})
    world.change("service", groups=(replace(group, wanted=1),), held=fewer, replicas=both)
    world.declare(work("waits", gpus=1))
    assert world.admitted() == []
    world.change("service", replicas=both[1:])
    assert world.admitted() == ["waits"]


def test_what_was_given_up_with_its_node_counts_beside_what_replaces_it() -> None:
    world = World.of(node("a", gpus=1), node("b", gpus=4))
    world.limit({"projects/-": {"gpu_milli/*": 3000}})
    world.declare(work("service", gpus=1, kind="inference"))
    world.turn()
    given_up = Replica("rep_0", "", "a", proven=False)
    world.change("service", replicas=(given_up, Replica("rep_1", "", "b")))
    assert world.state.quotas.held("projects/acme")["gpu_milli/*"] == 2000
    world.declare(work("one", gpus=1), work("two", gpus=1))
    assert len(world.admitted()) == 1
    world.change("service", replicas=(Replica("rep_1", "", "b"),))
    assert len(world.admitted()) == 1


def test_what_has_ended_and_lives_perhaps_is_not_released() -> None:
    world = World.of(node("a", gpus=1))
    world.declare(work("lost", gpus=1))
    world.turn()
    world.change("lost", ended=True, replicas=(Replica("rep", "", "a", proven=False),))
    assert world.turn() == []
    world.end("lost")
    assert world.turn() == [Release("lost")]


# Volumes.


def stored(uid: str, size: int = 10, **more: object) -> Volume:
    return Volume(uid, "acme", "ada", size * GB, **more)  # type: ignore[arg-type]


def mounting(uid: str, *volumes: str, **more: object) -> Work:
    group = Group("", Size("", 0, 1000, GB), 1, 1, volumes)
    return work(uid, groups=(group,), **more)


def test_a_volume_is_admitted_with_the_first_workload_that_mounts_it_and_stays_held() -> None:
    world = World.of(node("n"))
    world.limit({"projects/-": {"storage_bytes": 15 * GB}})
    world.store(stored("vol_1"), stored("vol_2"))
    world.declare(mounting("first", "vol_1"))
    (admission,) = world.turn()
    assert isinstance(admission, Admit)
    assert admission.volumes == ("vol_1",)
    world.store(replace(world.volumes["vol_1"], bound=True, node="n"))
    world.end("first")
    world.turn()
    assert world.state.quotas.held("projects/acme")["storage_bytes"] == 10 * GB
    world.declare(mounting("second", "vol_1"), mounting("beyond", "vol_2"))
    assert world.admitted() == ["second"]
    world.end("second")
    world.store(replace(world.volumes["vol_1"], gone=True))
    assert Release("vol_1") in world.turn()
    assert world.state.quotas.held("projects/acme").get("storage_bytes") == 10 * GB
    assert world.nodes_of("beyond") == ["n"]


def test_a_workload_goes_where_its_volume_is() -> None:
    world = World.of(node("a"), node("b"))
    world.state.nodes("d").put(node("a"))
    world.store(stored("vol_1", cluster="d", bound=True, node="a"))
    world.declare(mounting("there", "vol_1", clusters=("c", "d")))
    world.turn()
    held = world.works["there"].held
    assert held is not None
    assert (held.cluster, world.nodes_of("there")) == ("d", ["a"])
    world.store(stored("vol_2", cluster="c", bound=True, node="b"))
    world.declare(mounting("beside", "vol_2"))
    world.turn()
    assert world.nodes_of("beside") == ["b"]


def test_a_volume_takes_room_on_its_node_also_while_nothing_mounts_it() -> None:
    world = World.of(node("n"))
    world.store(stored("vol_1", 600), stored("vol_2", 600))
    world.declare(mounting("first", "vol_1"), mounting("second", "vol_2", queue_time=START + 1))
    assert world.admitted() == ["first"]
    world.store(replace(world.volumes["vol_1"], bound=True, node="n"))
    world.end("first")
    assert world.admitted() == []
    world.store(replace(world.volumes["vol_1"], gone=True))
    assert world.admitted() == ["second"]


def test_a_workload_waits_for_a_volume_that_nobody_has_declared() -> None:
    world = World.of(node("n"))
    world.declare(mounting("early", "vol_1"))
    assert world.turn() == []
    world.store(stored("vol_1"))
    assert world.admitted() == ["early"]


def test_a_workload_that_waits_for_a_volume_that_goes_is_refused() -> None:
    world = World.of(node("n", cpu=1))
    world.declare(work("full"))
    world.turn()
    world.store(stored("vol_1"))
    world.declare(mounting("waits", "vol_1"))
    world.turn()
    world.store(stored("vol_1", withdrawn=True))
    assert world.turn() == [Refuse("waits", VOLUME_GONE)]


def test_a_mount_of_another_size_than_the_volume_was_declared_with_is_refused() -> None:
    world = World.of(node("n"))
    size = stored("vol_1").size_bytes
    same, other = (("vol_1", size),), (("vol_1", size), ("vol_1", size + 1))
    world.declare(mounting("same", "vol_1", sizes=same), mounting("other", "vol_1", sizes=other))
    assert world.turn() == []
    world.store(stored("vol_1"))
    told = world.turn()
    assert Refuse("other", VOLUME_SIZE) in told
    assert "same" in {decision.uid for decision in told if isinstance(decision, Admit)}


# What will never run, and what may not run there.


def test_what_no_cluster_honours_is_refused_and_without_a_cluster_it_waits() -> None:
    world = World.of(node("n"))
    reason = workload.Reason(code="FIELD_NOT_HONOURED")
    world.declare(work("never", clusters=(), refusal=reason), work("no-cluster", clusters=()))
    assert world.turn() == [Refuse("never", UNHONOURED)]
    assert "no-cluster" in world.works


def test_what_has_waited_as_long_as_it_may_is_refused() -> None:
    world = World.of(node("n", gpus=0))
    world.declare(work("waits", gpus=1, expire_time=START + 100))
    assert world.turn() == []
    assert world.state.next_time(world.now) == START + 100
    assert world.turn(later=99) == []
    assert world.turn(later=1) == [Refuse("waits", EXPIRED)]


def test_what_was_admitted_does_not_wait_any_more() -> None:
    world = World.of(node("n"))
    world.declare(work("runs", expire_time=START + 100))
    world.turn()
    assert world.turn(later=1000) == []


def test_nodes_are_avoided_until_it_is_over() -> None:
    world = World.of(node("n"))
    world.declare(work("shy", avoid=(("n", START + 100),)))
    assert world.turn() == [Reserve("shy")]
    assert world.turn() == []
    assert world.state.next_time(world.now) == START + 100
    assert world.admitted(later=99) == []
    assert world.admitted(later=1) == ["shy"]


def test_a_node_has_to_be_of_the_kind_that_is_asked_for() -> None:
    world = World.of(
        node("a", architecture="arm64"),
        node("b", architecture="amd64", driver="550.90"),
        node("d", architecture="amd64", driver="550.100"),
    )
    world.declare(
        work("new", architecture="amd64", driver="550.95"),
        work("arm", architecture="arm64"),
        work("none", driver="600"),
    )
    assert sorted(world.admitted()) == ["arm", "new"]
    assert (world.nodes_of("new"), world.nodes_of("arm")) == (["d"], ["a"])


def test_a_node_that_is_cordoned_takes_nothing_new_and_keeps_what_it_has() -> None:
    world = World.of(node("n"))
    world.declare(work("runs", gpus=1))
    world.turn()
    world.state.nodes("c").put(node("n", cordoned=True))
    world.declare(work("waits", gpus=1))
    assert world.turn() == []
    world.state.nodes("c").put(node("n"))
    assert world.admitted() == ["waits"]


def test_what_runs_on_a_node_that_is_gone_is_still_held() -> None:
    world = World.of(node("n", gpus=4))
    world.limit({"projects/-": {"gpu_milli/*": 4000}})
    world.declare(work("runs", gpus=4))
    world.turn()
    world.state.nodes("c").remove("n")
    world.state.nodes("c").put(node("other", gpus=4))
    world.declare(work("waits", gpus=1))
    assert world.admitted() == []
    world.end("runs")
    assert world.admitted() == ["waits"]


def test_work_without_an_end_is_waited_for_last() -> None:
    world = World.of(node("a", gpus=1), node("b", gpus=1))
    world.declare(work("endless", gpus=1))
    world.turn()
    world.declare(work("ends", gpus=1, lasts=500))
    world.turn()
    world.declare(work("next", gpus=1, queue_time=START - 1))
    world.turn()
    (reserved,) = reservations(world.state, CLASSES - 1, world.now).values()
    assert (reserved.plan.nodes, reserved.plan.start) == ((("b",),), START + 500)
    assert world.works["endless"].end == FOREVER
