"""The rules of the queue."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial

from hypothesis import given
from hypothesis import strategies as st

from fermion.api.workload import v1 as workload
from services.scheduler import aggregate
from services.scheduler.aggregate import Entry, Fact
from tests.unit.services.history import NOON, History, names

Decide = Callable[[Entry], Sequence[Fact]]

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
            replicas=2,
            min_replicas=2,
            resources=workload.Resources(gpu_milli=1000, cpu_milli=4000, memory_bytes=2**30),
        )
    ],
)


def relabelled(team: str) -> Decide:
    return partial(aggregate.relabel, labels={"team": team})


enqueue: Decide = partial(aggregate.enqueue, declared=DECLARED)
withdraw: Decide = partial(aggregate.withdraw, cause=workload.CAUSE_USER_STOP)

DECISIONS = st.one_of(
    st.sampled_from([enqueue, withdraw]),
    st.sampled_from(["vision", "speech"]).map(relabelled),
)


def told(*decisions: Decide) -> History:
    """Take decisions one after another; what they say is recorded."""
    history = History("scheduler/0", aggregate.place)
    for decide in decisions:
        history.say(decide(aggregate.fold(history.records)))
    return history


def test_what_is_declared_waits_until_a_pass_has_looked_at_it() -> None:
    (queued,) = told(enqueue).records
    assert isinstance(queued.message, workload.WorkloadQueued)
    assert queued.message.reason.code == "ARRIVED"
    assert queued.message.reason.message
    assert queued.message.workload == DECLARED
    assert (queued.project, queued.stream) == ("acme", "workload/wkl_1")


def test_what_is_withdrawn_while_it_waits_is_let_go_of() -> None:
    history = told(enqueue, withdraw)
    refused = history.records[-1].message
    assert isinstance(refused, workload.WorkloadRefused)
    assert (refused.owner_uid, refused.attempt) == ("inst_1", 1)
    assert refused.reason.code == "WITHDRAWN"
    assert refused.reason.arguments["cause"] == "USER_STOP"


def test_a_cause_of_a_later_release_raises_nothing() -> None:
    entry = aggregate.fold(told(enqueue).records)
    later = workload.WorkloadWithdrawn(cause=99)  # type: ignore[arg-type]
    (refused,) = aggregate.withdraw(entry, cause=later.cause)
    assert isinstance(refused, workload.WorkloadRefused)
    assert refused.reason.arguments["cause"] == "99"


def test_a_withdrawal_of_what_was_never_declared_adds_nothing() -> None:
    assert withdraw(Entry()) == []


def test_what_was_let_go_of_is_not_queued_again() -> None:
    assert enqueue(aggregate.fold(told(enqueue, withdraw).records)) == []


def test_new_labels_are_shown_and_keep_the_place_in_the_queue() -> None:
    before = aggregate.fold(told(enqueue).records)
    after = aggregate.fold(told(enqueue, relabelled("speech")).records)
    assert dict(aggregate.view(after).labels) == {"team": "speech"}
    assert after.queue_time == before.queue_time == NOON


def test_an_age_that_a_workload_brings_along_is_kept() -> None:
    older = workload.Workload()
    older.CopyFrom(DECLARED)
    older.queued_from_time.FromDatetime(NOON - timedelta(hours=1))
    entry = aggregate.fold(told(partial(aggregate.enqueue, declared=older)).records)
    assert entry.queue_time == NOON - timedelta(hours=1)


@given(st.lists(DECISIONS), DECISIONS)
def test_a_decision_repeated_adds_nothing(before: list[Decide], decide: Decide) -> None:
    history = told(*before, decide)
    assert decide(aggregate.fold(history.records)) == []


@given(st.lists(DECISIONS))
def test_a_workload_is_refused_at_most_once_and_last(decisions: list[Decide]) -> None:
    said = names([r.message for r in told(*decisions).records if r.message is not None])
    assert "WorkloadRefused" not in said[:-1]


@given(st.lists(DECISIONS), st.randoms())
def test_evolve_takes_any_facts_in_any_order(decisions: list[Decide], random: object) -> None:
    records = told(*decisions).records
    random.shuffle(records)  # type: ignore[attr-defined]
    aggregate.view(aggregate.fold(records))
