"""The rules of one workload, and of one volume, in the scheduler's books."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial

import pytest
from google.protobuf.duration_pb2 import Duration
from hypothesis import given
from hypothesis import strategies as st

from fermion.api.workload import v1 as workload
from services.scheduler import aggregate
from services.scheduler.aggregate import Entry, Fact, Volume
from tests.unit.services.history import NOON, History, names

Decide = Callable[[Entry], Sequence[Fact]]
DecideVolume = Callable[[Volume], Sequence[Fact]]

DECLARED = workload.Workload(
    uid="wkl_1",
    owner="projects/acme/instances/dev-1",
    owner_uid="inst_1",
    attempt=1,
    project="acme",
    user="user_ada",
    kind=workload.KIND_INSTANCE,
    labels={"team": "vision"},
    groups=[
        workload.Group(
            replicas=3,
            min_replicas=1,
            resources=workload.Resources(gpu_milli=1000, cpu_milli=4000, memory_bytes=2**30),
        )
    ],
    grace=Duration(seconds=30),
)
VOLUME = workload.Volume(
    uid="vol_1", owner_uid="inst_1", project="acme", user="user_ada", size_bytes=10
)


def relabelled(team: str) -> Decide:
    return partial(aggregate.relabel, labels={"team": team})


def scaled(replicas: int) -> Decide:
    return partial(aggregate.scale, role="", replicas=replicas)


def admitted(replicas: int = 3) -> Decide:
    nodes = [f"node-{rank}" for rank in range(replicas)]
    return partial(
        aggregate.admit, cluster="c", replicas={"": replicas}, nodes=nodes, gpu_type="A100"
    )


def explained(code: str, short_of: str = "") -> Decide:
    arguments = {"short_of": short_of} if short_of else {}
    return partial(
        aggregate.explain, reason=workload.Reason(code=code, arguments=arguments, message="Why.")
    )


def refused(code: str = "QUEUE_TIME_EXCEEDED") -> Decide:
    return partial(aggregate.refuse, reason=workload.Reason(code=code))


enqueue: Decide = partial(aggregate.enqueue, declared=DECLARED)
withdraw: Decide = partial(aggregate.withdraw, cause=workload.CAUSE_USER_STOP)
release: Decide = aggregate.release

DECISIONS = st.one_of(
    st.sampled_from([enqueue, withdraw, aggregate.exhaust, release, refused()]),
    st.sampled_from(["vision", "speech"]).map(relabelled),
    st.integers(0, 4).map(scaled),
    st.integers(0, 3).map(admitted),
    st.sampled_from([("QUOTA", "room"), ("QUOTA", "limit"), ("CAPACITY", "")]).map(
        lambda said: explained(*said)
    ),
)

declare_volume: DecideVolume = partial(aggregate.enqueue_volume, declared=VOLUME)
admit_volume: DecideVolume = partial(aggregate.admit_volume, cluster="c")
withdraw_volume: DecideVolume = partial(aggregate.withdraw_volume, cause=workload.CAUSE_DELETE)
release_volume: DecideVolume = aggregate.release_volume

VOLUME_DECISIONS = st.sampled_from([declare_volume, admit_volume, withdraw_volume, release_volume])


def told(*decisions: Decide) -> History:
    """Take decisions one after another; what they say is recorded."""
    history = History("scheduler/0", aggregate.place)
    for decide in decisions:
        history.say(decide(aggregate.fold(history.records)))
    return history


def told_of_volume(*decisions: DecideVolume) -> History:
    """Take decisions about a volume one after another."""
    history = History("scheduler/0", aggregate.place)
    for decide in decisions:
        history.say(decide(aggregate.fold_volume(history.records)))
    return history


def said(history: History) -> list[str]:
    return names([record.message for record in history.records if record.message is not None])


def admission(history: History) -> workload.WorkloadAdmitted:
    """The last fact, which has to be an admission."""
    last = history.records[-1].message
    assert isinstance(last, workload.WorkloadAdmitted)
    return last


def test_what_is_declared_waits_until_a_pass_has_looked_at_it() -> None:
    (queued,) = told(enqueue).records
    assert isinstance(queued.message, workload.WorkloadQueued)
    assert queued.message.reason.code == "ARRIVED"
    assert queued.message.reason.message
    assert queued.message.workload == DECLARED
    assert (queued.project, queued.stream) == ("acme", "workload/wkl_1")


def test_what_is_withdrawn_while_it_waits_is_let_go_of() -> None:
    refusal = told(enqueue, withdraw).records[-1].message
    assert isinstance(refusal, workload.WorkloadRefused)
    assert (refusal.owner_uid, refusal.attempt) == ("inst_1", 1)
    assert refusal.reason.code == "WITHDRAWN"
    assert refusal.reason.arguments["cause"] == "USER_STOP"


def test_what_is_withdrawn_once_it_is_admitted_is_taken_down_with_its_own_grace() -> None:
    revoked = told(enqueue, admitted(), withdraw).records[-1].message
    assert isinstance(revoked, workload.WorkloadRevoked)
    assert (revoked.cause, revoked.grace.seconds) == (workload.CAUSE_USER_STOP, 30)


def test_what_has_cost_what_it_may_is_taken_down_with_its_own_grace() -> None:
    revoked = told(enqueue, admitted(), aggregate.exhaust).records[-1].message
    assert isinstance(revoked, workload.WorkloadRevoked)
    assert (revoked.cause, revoked.grace.seconds) == (workload.CAUSE_BUDGET, 30)
    assert (revoked.uid, revoked.project) == ("wkl_1", "acme")


def test_what_wants_more_than_it_has_is_taken_down_by_its_cost_as_well() -> None:
    assert said(told(enqueue, admitted(2), aggregate.exhaust))[-1] == "WorkloadRevoked"


@pytest.mark.parametrize(
    "before",
    [
        (),
        (enqueue,),
        (enqueue, refused()),
        (enqueue, admitted(), withdraw),
        (enqueue, admitted(), aggregate.exhaust),
        (enqueue, admitted(), release),
    ],
)
def test_a_cost_that_is_told_of_what_does_not_run_or_again_adds_nothing(
    before: Sequence[Decide],
) -> None:
    assert aggregate.exhaust(aggregate.fold(told(*before).records)) == []


def test_the_grace_of_a_withdrawal_goes_before_that_of_the_workload() -> None:
    sooner = partial(aggregate.withdraw, cause=workload.CAUSE_USER_STOP, grace=Duration(seconds=1))
    revoked = told(enqueue, admitted(), sooner).records[-1].message
    assert isinstance(revoked, workload.WorkloadRevoked)
    assert revoked.grace.seconds == 1


def test_a_cause_of_a_later_release_raises_nothing() -> None:
    entry = aggregate.fold(told(enqueue).records)
    later = workload.WorkloadWithdrawn(cause=99)  # type: ignore[arg-type]
    (refusal,) = aggregate.withdraw(entry, cause=later.cause)
    assert isinstance(refusal, workload.WorkloadRefused)
    assert refusal.reason.arguments["cause"] == "99"


def test_a_withdrawal_of_what_was_never_declared_adds_nothing() -> None:
    assert withdraw(Entry()) == []


def test_what_was_let_go_of_is_not_queued_again() -> None:
    assert enqueue(aggregate.fold(told(enqueue, withdraw).records)) == []


def test_new_labels_are_shown_and_keep_the_place_in_the_queue() -> None:
    before = aggregate.fold(told(enqueue).records)
    after = aggregate.fold(told(enqueue, relabelled("speech")).records)
    assert dict(aggregate.view(after).labels) == {"team": "speech"}
    assert after.queue_time == before.queue_time == NOON


def test_new_labels_of_what_is_admitted_state_the_admission_again_as_it_is() -> None:
    first = admission(told(enqueue, admitted()))
    again = admission(told(enqueue, admitted(), relabelled("speech")))
    assert dict(again.workload.labels) == {"team": "speech"}
    again.workload.labels["team"] = "vision"
    assert again == first


def test_new_labels_of_what_was_taken_down_add_nothing() -> None:
    assert said(told(enqueue, admitted(), withdraw, relabelled("speech")))[-1] == "WorkloadRevoked"


def test_an_age_that_a_workload_brings_along_is_kept_and_its_own_arrival_known() -> None:
    older = workload.Workload()
    older.CopyFrom(DECLARED)
    older.queued_from_time.FromDatetime(NOON - timedelta(hours=1))
    entry = aggregate.fold(told(partial(aggregate.enqueue, declared=older)).records)
    assert entry.queue_time == NOON - timedelta(hours=1)
    assert entry.arrive_time == NOON


def test_an_admission_carries_the_whole_of_it_with_what_is_held() -> None:
    fact = admission(told(enqueue, admitted(2)))
    assert fact.workload.groups[0].resources.gpu_type == "A100"
    assert (fact.cluster, list(fact.nodes), dict(fact.replicas)) == (
        "c",
        ["node-0", "node-1"],
        {"": 2},
    )
    assert (fact.hold.gpu_milli, fact.hold.cpu_milli, fact.hold.gpu_type) == (2000, 8000, "A100")


def test_what_has_fewer_replicas_than_it_wants_waits_for_the_rest() -> None:
    history = told(enqueue, admitted(2))
    assert aggregate.fold(history.records).waits
    assert not aggregate.fold(told(enqueue, admitted(2), admitted(3)).records).waits
    history.say(explained("CAPACITY", "free")(aggregate.fold(history.records)))
    assert aggregate.view(aggregate.fold(history.records)).reason.code == "CAPACITY"


def test_fewer_replicas_are_held_at_once_and_more_are_only_wanted() -> None:
    fewer = admission(told(enqueue, admitted(), scaled(1)))
    assert (dict(fewer.replicas), list(fewer.nodes)) == ({"": 1}, ["node-0"])
    more = admission(told(enqueue, admitted(), scaled(5)))
    assert (dict(more.replicas), len(more.nodes)) == ({"": 3}, 3)
    assert more.workload.groups[0].replicas == 5
    assert aggregate.fold(told(enqueue, admitted(), scaled(5)).records).waits


def test_at_no_replicas_it_stays_admitted() -> None:
    entry = aggregate.fold(told(enqueue, admitted(), scaled(0)).records)
    assert entry.held
    assert not entry.waits


def test_another_number_that_is_wanted_while_it_waits_is_said_again() -> None:
    history = told(enqueue, explained("QUOTA", "room"), scaled(2))
    assert said(history) == ["WorkloadQueued"] * 3
    entry = aggregate.fold(history.records)
    assert entry.declared is not None
    assert entry.declared.groups[0].replicas == 2
    assert aggregate.said(entry.reason) == ("QUOTA", "room")


def test_a_reason_is_said_again_only_when_its_kind_changes() -> None:
    history = told(
        *(enqueue, explained("QUOTA", "room"), explained("QUOTA", "room")),
        *(explained("QUOTA", "limit"), explained("CAPACITY")),
    )
    assert said(history) == ["WorkloadQueued"] * 4


def test_what_is_admitted_cannot_be_refused_any_more() -> None:
    assert said(told(enqueue, admitted(2), refused())) == ["WorkloadQueued", "WorkloadAdmitted"]


def test_a_hold_is_released_once_and_never_of_what_holds_nothing() -> None:
    assert said(told(enqueue, release)) == ["WorkloadQueued"]
    history = told(enqueue, admitted(), withdraw, release, release)
    assert said(history)[-2:] == ["WorkloadRevoked", "HoldReleased"]
    assert history.records[-1].stream == "workload/wkl_1"


def test_what_ended_by_itself_is_released_without_having_been_revoked() -> None:
    history = told(enqueue, admitted(), release, withdraw, scaled(1), relabelled("speech"))
    assert said(history) == ["WorkloadQueued", "WorkloadAdmitted", "HoldReleased"]


def test_a_volume_waits_for_the_first_workload_that_mounts_it() -> None:
    history = told_of_volume(declare_volume, admit_volume, withdraw_volume, release_volume)
    assert said(history) == ["VolumeQueued", "VolumeAdmitted", "VolumeRevoked", "HoldReleased"]
    assert {record.stream for record in history.records} == {"volume/vol_1"}


def test_a_volume_that_was_never_admitted_is_refused_when_it_is_withdrawn() -> None:
    history = told_of_volume(declare_volume, withdraw_volume, admit_volume, release_volume)
    assert said(history) == ["VolumeQueued", "VolumeRefused"]


def test_a_volume_that_its_cluster_cannot_give_is_released_without_having_been_withdrawn() -> None:
    history = told_of_volume(declare_volume, admit_volume, release_volume, withdraw_volume)
    assert said(history) == ["VolumeQueued", "VolumeAdmitted", "HoldReleased"]


@given(st.lists(DECISIONS), DECISIONS)
def test_a_decision_repeated_adds_nothing(before: list[Decide], decide: Decide) -> None:
    history = told(*before, decide)
    assert decide(aggregate.fold(history.records)) == []


@given(st.lists(VOLUME_DECISIONS), VOLUME_DECISIONS)
def test_a_decision_about_a_volume_repeated_adds_nothing(
    before: list[DecideVolume], decide: DecideVolume
) -> None:
    history = told_of_volume(*before, decide)
    assert decide(aggregate.fold_volume(history.records)) == []


@given(st.lists(DECISIONS))
def test_whatever_happens_a_workload_has_one_end(decisions: list[Decide]) -> None:
    facts = said(told(*decisions))
    # Refused and never admitted, or admitted and released; after either nothing is said.
    ends = [name for name in facts if name in ("WorkloadRefused", "HoldReleased")]
    assert len(ends) <= 1
    assert not ends or facts[-1] == ends[0]
    assert facts.count("WorkloadRevoked") <= 1
    assert "WorkloadRefused" not in facts or "WorkloadAdmitted" not in facts
    if "WorkloadRevoked" in facts:
        assert facts[facts.index("WorkloadRevoked") + 1 :] in ([], ["HoldReleased"])


@given(st.lists(DECISIONS))
def test_no_more_is_ever_held_than_was_admitted_nor_than_is_wanted(
    decisions: list[Decide],
) -> None:
    for record in told(*decisions).records:
        if isinstance(record.message, workload.WorkloadAdmitted):
            fact = record.message
            assert len(fact.nodes) == sum(fact.replicas.values())


@given(st.lists(DECISIONS), st.randoms())
def test_evolve_takes_any_facts_in_any_order(decisions: list[Decide], random: object) -> None:
    records = told(*decisions).records
    random.shuffle(records)  # type: ignore[attr-defined]
    aggregate.view(aggregate.fold(records))
