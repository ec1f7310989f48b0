"""When replicas are told to end, and when a workload is finished: once, and never too early."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fermion.api.workload import v1 as api
from services.executor import aggregate
from services.executor.aggregate import Known, Volume, Work
from services.executor.observation import Instant
from tests.unit.services.executor.life import (
    NOON,
    alive,
    at,
    drained,
    ended,
    names,
    seen,
    wanted,
    work,
)

ACCEPTED = Work("wkl_1", accepted=True)
PAIR = (api.Group(replicas=2, min_replicas=2),)
ROLES = (
    api.Group(role="head", replicas=1, min_replicas=1),
    api.Group(role="worker", replicas=2, min_replicas=2),
)


def finished(
    one: aggregate.Wanted, *replicas: aggregate.Replica, work: Work = ACCEPTED, closed: bool = False
) -> api.WorkloadFinished | None:
    """The end that is stated, if any is."""
    facts = aggregate.finish(work, one, replicas, at(60), closed=closed)
    if not facts:
        return None
    assert isinstance(facts[0], api.WorkloadFinished)
    return facts[0]


# The end.


def test_a_replica_that_lives_leaves_its_workload_unfinished() -> None:
    assert finished(wanted(work()), alive()) is None
    assert finished(wanted(work()), alive(), closed=True) is None


def test_an_end_by_itself_is_success_or_failure_by_the_exit_code() -> None:
    for code, outcome in ((0, api.OUTCOME_SUCCEEDED), (3, api.OUTCOME_FAILED)):
        said = finished(wanted(work()), ended(exit=code))
        assert said is not None
        assert said.outcome == outcome
        assert list(said.failed_ranks) == ([0] if code else [])


def test_an_end_is_not_stated_before_every_admitted_replica_was_seen() -> None:
    assert finished(wanted(work(*PAIR)), ended(0)) is None
    assert finished(wanted(work(*PAIR)), ended(0), ended(1)) is not None


def test_nothing_is_finished_before_its_objects_exist_or_the_cluster_is_closed_to_it() -> None:
    assert finished(wanted(work()), work=Work()) is None
    revoked = replace(wanted(work()), cause=api.CAUSE_USER_STOP)
    assert finished(revoked, work=Work()) is None
    said = finished(revoked, work=Work(), closed=True)
    assert said is not None
    assert (said.outcome, said.cause) == (api.OUTCOME_NEVER_STARTED, api.CAUSE_USER_STOP)


@pytest.mark.parametrize(
    ("cause", "outcome"),
    [
        (api.CAUSE_USER_STOP, api.OUTCOME_STOPPED),
        (api.CAUSE_MAX_DURATION, api.OUTCOME_STOPPED),
        (api.CAUSE_BUDGET, api.OUTCOME_STOPPED),
        (api.CAUSE_PREEMPTION, api.OUTCOME_PREEMPTED),
        (api.CAUSE_NODE_LOST, api.OUTCOME_LOST),
    ],
)
def test_what_was_told_to_end_ended_for_that_cause(
    cause: api.Cause.ValueType, outcome: api.Outcome.ValueType
) -> None:
    revoked = replace(wanted(work()), cause=cause)
    said = finished(revoked, drained(alive(), cause), closed=True)
    assert said is not None
    assert (said.outcome, said.cause) == (outcome, cause)
    assert list(said.failed_ranks) == []


def test_what_had_ended_by_itself_before_it_was_told_to_is_judged_by_its_exit() -> None:
    revoked = replace(wanted(work()), cause=api.CAUSE_USER_STOP)
    said = finished(revoked, ended(exit=0), closed=True)
    assert said is not None
    assert (said.outcome, said.cause) == (api.OUTCOME_SUCCEEDED, api.CAUSE_UNSPECIFIED)


def test_a_rejected_workload_is_finished_as_rejected() -> None:
    said = finished(wanted(work()), work=Work("wkl_1", rejected=True), closed=True)
    assert said is not None
    assert said.outcome == api.OUTCOME_REJECTED


def test_the_first_rank_that_failed_is_named_first() -> None:
    group = api.Group(replicas=3, min_replicas=1)
    said = finished(wanted(work(group)), ended(0, exit=1, end=9), ended(1, exit=1, end=5), ended(2))
    assert said is not None
    assert list(said.failed_ranks) == [1, 0]


def test_success_may_hang_on_one_rank_alone() -> None:
    said = work(*ROLES)
    said.success.CopyFrom(api.Success(rule=api.Success.RULE_ROLE, role="head"))
    result = finished(
        wanted(said),
        ended(0, "head"),
        drained(alive(0, "worker"), api.CAUSE_PEER_LOST),
        drained(alive(1, "worker"), api.CAUSE_PEER_LOST),
    )
    assert result is not None
    assert result.outcome == api.OUTCOME_SUCCEEDED


def test_a_finished_workload_is_not_finished_again() -> None:
    done = Work("wkl_1", accepted=True, finished=True)
    assert finished(wanted(work()), ended(), work=done) is None


def test_a_service_without_replicas_stays_admitted() -> None:
    none = replace(wanted(work()), replicas={"": 0})
    assert finished(none, drained(alive(), api.CAUSE_SCALE_IN)) is None


def test_a_rank_that_went_because_fewer_were_wanted_says_nothing_about_the_others() -> None:
    gone = drained(alive(), api.CAUSE_SCALE_IN)
    one = wanted(work(api.Group(replicas=1, min_replicas=1)))
    # It is wanted again, and the replica in its place is not there yet.
    assert finished(one, gone) is None
    said = finished(one, gone, ended(exit=0))
    assert said is not None
    assert (said.outcome, said.cause) == (api.OUTCOME_SUCCEEDED, api.CAUSE_UNSPECIFIED)
    both = wanted(work(*PAIR))
    assert (
        aggregate.ending(ACCEPTED, both, [drained(alive(1), api.CAUSE_SCALE_IN), alive()], NOON)
        is None
    )


def test_what_was_scaled_to_nothing_has_stopped_when_it_is_told_to_end() -> None:
    none = replace(wanted(work()), replicas={"": 0}, cause=api.CAUSE_USER_STOP)
    said = finished(none, drained(alive(), api.CAUSE_SCALE_IN), closed=True)
    assert said is not None
    assert (said.outcome, said.cause) == (api.OUTCOME_STOPPED, api.CAUSE_USER_STOP)


# Who is told to end, and why.


def test_the_schedulers_word_comes_first() -> None:
    revoked = replace(
        wanted(work(max_duration=1)), cause=api.CAUSE_USER_STOP, grace=timedelta(seconds=5)
    )
    ending = aggregate.ending(ACCEPTED, revoked, [alive()], at(100))
    assert ending == aggregate.Ending(api.CAUSE_USER_STOP, timedelta(seconds=5))


def test_the_longest_time_counts_from_the_first_start() -> None:
    limited = wanted(work(max_duration=60))
    assert aggregate.ending(ACCEPTED, limited, [], at(1000)) is None
    assert aggregate.ending(ACCEPTED, limited, [alive(start=10)], at(69)) is None
    ending = aggregate.ending(ACCEPTED, limited, [alive(start=10)], at(70))
    assert ending is not None
    assert ending.cause == api.CAUSE_MAX_DURATION


def test_one_rank_that_fails_ends_a_group_that_is_whole() -> None:
    for exit, cause in ((1, api.CAUSE_PEER_LOST), (0, None)):
        ending = aggregate.ending(
            ACCEPTED, wanted(work(*PAIR)), [ended(0, exit=exit), alive(1)], NOON
        )
        assert (ending and ending.cause) == cause


def test_one_rank_that_fails_ends_nobody_of_a_group_that_may_be_smaller() -> None:
    elastic = wanted(work(api.Group(replicas=2, min_replicas=1)))
    assert aggregate.ending(ACCEPTED, elastic, [ended(0, exit=1), alive(1)], NOON) is None


def test_a_role_that_is_waited_for_ends_the_others_when_all_of_it_has_ended() -> None:
    said = wanted(work(*ROLES, ends=api.Ends.RULE_ROLE, role="worker"))
    some = [alive(0, "head"), ended(0, "worker"), alive(1, "worker")]
    assert aggregate.ending(ACCEPTED, said, some, NOON) is None
    all_of_it = [alive(0, "head"), ended(0, "worker"), ended(1, "worker")]
    assert aggregate.ending(ACCEPTED, said, all_of_it, NOON) is not None


def test_ranks_beyond_what_is_admitted_are_surplus() -> None:
    fewer = replace(wanted(work(api.Group(replicas=3, min_replicas=1))), replicas={"": 1})
    found = aggregate.surplus(fewer, [alive(0), alive(1), ended(2)])
    assert [one.uid for one in found] == ["rep_1"]


# Said once.


def test_a_workload_is_accepted_or_rejected_once() -> None:
    one, why = wanted(work()), api.Reason(code="IMAGE_NOT_HONOURED")
    assert names(aggregate.accept(Work(), one, NOON)) == ["WorkloadAccepted"]
    assert names(aggregate.reject(Work(), one, "groups[0].image", why, NOON)) == [
        "WorkloadRejected"
    ]
    for after in (ACCEPTED, Work(rejected=True), Work(finished=True)):
        assert aggregate.accept(after, one, NOON) == []
        assert aggregate.reject(after, one, "groups[0].image", why, NOON) == []


def test_a_volume_is_bound_once_and_deleted_once() -> None:
    said = api.Volume(uid="vol_1", project="acme", owner_uid="inst_1", size_bytes=7)
    bound = aggregate.bind(Volume(), said, Instant(at(1)), "here", at(2))
    assert names(bound) == ["VolumeBound"]
    state = Volume()
    for fact in bound:
        state = aggregate.evolve_volume(state, fact)  # type: ignore[arg-type]
    assert aggregate.bind(state, said, Instant(at(1)), "here", at(2)) == []
    gone = aggregate.delete_volume(state, said, Instant(at(3)), at(4))
    assert names(gone) == ["VolumeDeleted"]
    for fact in gone:
        state = aggregate.evolve_volume(state, fact)  # type: ignore[arg-type]
    assert aggregate.delete_volume(state, said, Instant(at(5)), at(6)) == []


def test_whose_time_it_is_tells_what_was_allocated() -> None:
    said = wanted(work(api.Group(replicas=1, purchase=api.PURCHASE_SPOT)))
    said.workload.labels["team"] = "vision"
    sku = api.Sku(gpu_type="A100", gpu_milli=1000)
    subject = aggregate.subject(said, seen(0, sku=sku))
    assert subject.sku == sku
    assert subject.purchase == api.PURCHASE_SPOT
    assert dict(subject.labels) == {"team": "vision"}
    assert (subject.owner_uid, subject.attempt) == ("inst_1", 1)


# The cluster.


def test_what_the_cluster_has_is_stated_when_it_changes() -> None:
    can = api.Capabilities(cluster_kind="local")
    here, there = api.Node(node="here", cpu_milli=1), api.Node(node="there")
    facts = aggregate.register(Known(), "c", can, [here, there], NOON)
    assert names(facts) == ["ClusterRegistered", "NodeReported", "NodeReported"]
    known = Known(can, {"here": here, "there": there})
    assert aggregate.register(known, "c", can, [here, there], NOON) == []
    grown = api.Node(node="here", cpu_milli=2)
    facts = aggregate.register(known, "c", can, [grown], NOON)
    assert names(facts) == ["NodeReported", "NodeRemoved"]


def test_the_watermark_waits_for_the_oldest_proof_and_names_who_gave_none() -> None:
    proofs = {"rep_0": at(99), "rep_1": at(40)}
    facts = aggregate.attest(Known(), "c", at(100), proofs, timedelta(seconds=3))
    life, mark = facts
    assert isinstance(life, api.ProofOfLife)
    assert isinstance(mark, api.Watermark)
    assert list(life.except_replicas) == ["rep_1"]
    assert life.until_time.ToSeconds() == int(at(99).timestamp())
    assert mark.through_time.ToSeconds() == int(at(40).timestamp())


@given(st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 1000)), min_size=1, max_size=20))
def test_the_watermark_never_goes_back(looks: list[tuple[int, int]]) -> None:
    known, last = Known(), NOON
    for began, proof in looks:
        facts = aggregate.attest(known, "c", at(began), {"rep_0": at(proof)}, timedelta(seconds=3))
        for fact in facts:
            if isinstance(fact, api.Watermark):
                through = fact.through_time.ToDatetime(tzinfo=NOON.tzinfo)
                assert through > last or known.through is None
                known = replace(known, through=through)
                last = through
                assert through <= min(at(began), at(proof))
