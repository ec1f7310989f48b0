"""From what a cluster tells to facts: once each, whatever is dropped, repeated or out of order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fermion.api.workload import v1 as api
from services.executor import aggregate, observation
from services.executor.observation import (
    Gap,
    Instant,
    Phase,
    Replica,
    ReplicaFact,
    ReplicaObservation,
    Run,
)

NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)
SUBJECT = api.Subject(project="acme", owner="projects/acme/instances/lab", workload="wkl_1")
SEEN = ReplicaObservation(
    uid="rep_1",
    workload="wkl_1",
    role="",
    rank=0,
    node="here",
    scheduled=Instant(NOON),
    phase=Phase.PREPARING,
)


def at(seconds: float) -> datetime:
    """A moment after noon."""
    return NOON + timedelta(seconds=seconds)


def told(replica: Replica, facts: Sequence[ReplicaFact]) -> Replica:
    """Follow facts."""
    for fact in facts:
        replica = observation.evolve(replica, fact)
    return replica


def say(
    replica: Replica, seen: ReplicaObservation, now: datetime | None = None
) -> list[ReplicaFact]:
    """What an observation tells that is new."""
    return observation.derive(replica, seen, SUBJECT, now or at(1000))


def names(facts: Sequence[ReplicaFact]) -> list[str]:
    """Their types."""
    return [fact.DESCRIPTOR.name.removeprefix("Replica") for fact in facts]


def running(*, start: float = 1, ordinal: int = 0, proof: float = 2) -> ReplicaObservation:
    """A replica whose run is open."""
    run = Run(ordinal, Instant(at(start)))
    return replace(SEEN, phase=Phase.RUNNING, runs=(run,), proof=at(proof))


def test_a_replica_is_scheduled_starts_is_ready_ends_and_is_released_once_each() -> None:
    first = say(Replica(), SEEN)
    assert names(first) == ["Scheduled"]
    replica = told(Replica(), first)
    second = say(replica, running())
    assert names(second) == ["Started", "Ready"]
    replica = told(replica, second)
    ended = replace(SEEN, phase=Phase.ENDED, runs=(Run(0, Instant(at(1)), Instant(at(9)), exit=3),))
    third = say(replica, ended)
    assert names(third) == ["Ended", "Released"]
    assert isinstance(third[0], api.ReplicaEnded)
    assert third[0].exit == 3
    assert third[0].witness.occurred_time.ToDatetime(tzinfo=UTC) == at(9)
    replica = told(replica, third)
    for seen in (SEEN, running(), ended):
        assert say(replica, seen) == []


def test_a_whole_life_seen_only_at_its_end_is_told_in_full() -> None:
    ended = replace(
        SEEN,
        phase=Phase.ENDED,
        runs=(
            Run(0, Instant(at(1)), Instant(at(2)), exit=1),
            Run(1, Instant(at(4)), Instant(at(9)), signal=9),
        ),
    )
    assert names(say(Replica(), ended)) == [
        *("Scheduled", "Started", "Ended", "Started", "Ended", "Released")
    ]


def test_what_never_ran_is_released_with_the_reason() -> None:
    why = api.Reason(code="START_FAILED")
    facts = say(Replica(), replace(SEEN, phase=Phase.ENDED, reason=why))
    assert names(facts) == ["Scheduled", "Released"]
    assert isinstance(facts[1], api.ReplicaReleased)
    assert facts[1].reason == why


def test_runs_that_nobody_saw_are_missed_with_their_window() -> None:
    replica = told(Replica(), say(Replica(), running(start=1)))
    facts = say(replica, running(start=60, ordinal=3, proof=61))
    assert names(facts) == ["Ended", "RunMissed", "Started", "Ready"]
    ended, missed = facts[0], facts[1]
    assert isinstance(ended, api.ReplicaEnded)
    assert ended.witness.evidence == api.EVIDENCE_CLASS_VANISHED
    assert isinstance(missed, api.ReplicaRunMissed)
    assert (missed.from_run, missed.to_run) == (1, 2)
    assert missed.window_start_time == ended.witness.occurred_time
    assert missed.window_end_time.ToDatetime(tzinfo=UTC) == at(60)


def test_a_run_that_begins_before_the_one_before_has_ended_is_clamped() -> None:
    seen = replace(
        SEEN,
        phase=Phase.RUNNING,
        runs=(Run(0, Instant(at(1)), Instant(at(10))), Run(1, Instant(at(5)))),
        proof=at(11),
    )
    started = [fact for fact in say(Replica(), seen) if isinstance(fact, api.ReplicaStarted)]
    assert started[1].witness.occurred_time.ToDatetime(tzinfo=UTC) == at(10)
    assert started[1].witness.evidence == api.EVIDENCE_CLASS_CLAMPED


def test_a_clock_far_ahead_is_not_believed() -> None:
    facts = say(Replica(), running(start=3600), now=at(10))
    started = next(fact for fact in facts if isinstance(fact, api.ReplicaStarted))
    assert started.witness.occurred_time.ToDatetime(tzinfo=UTC) == at(10)
    assert started.witness.evidence == api.EVIDENCE_CLASS_CLAMPED


def test_the_first_end_stands_and_a_better_witness_corrects_it() -> None:
    replica = told(Replica(), say(Replica(), running()))
    replica = told(replica, observation.vanish(replica, at(5), at(20)))
    assert replica.released
    assert replica.end == at(5)
    late = replace(SEEN, phase=Phase.ENDED, runs=(Run(0, Instant(at(1)), Instant(at(7))),))
    facts = say(replica, late)
    assert names(facts) == ["RunCorrected"]
    assert isinstance(facts[0], api.ReplicaRunCorrected)
    assert facts[0].end_time.ToDatetime(tzinfo=UTC) == at(7)
    replica = told(replica, facts)
    assert say(replica, late) == []


def test_a_worse_witness_corrects_nothing() -> None:
    ended = replace(SEEN, phase=Phase.ENDED, runs=(Run(0, Instant(at(1)), Instant(at(9))),))
    replica = told(Replica(), say(Replica(), ended))
    weak = Instant(at(5), api.EVIDENCE_CLASS_LAST_PROOF)
    again = replace(ended, runs=(Run(0, Instant(at(1)), weak),))
    assert say(replica, again) == []


def test_what_is_gone_without_a_word_ended_at_its_last_proof() -> None:
    replica = told(Replica(), say(Replica(), running()))
    facts = observation.vanish(replica, at(5), at(20))
    assert names(facts) == ["Ended", "Released"]
    assert isinstance(facts[0], api.ReplicaEnded)
    assert facts[0].witness.occurred_time.ToDatetime(tzinfo=UTC) == at(5)
    assert observation.vanish(told(replica, facts), at(5), at(20)) == []


def test_a_readiness_check_that_fails_and_passes_again_is_told_each_time() -> None:
    waiting = replace(running(), ready=False)
    first = say(Replica(), waiting)
    assert names(first) == ["Scheduled", "Started"]
    replica = told(Replica(), first)
    passing = replace(running(), ready=True)
    for _ in range(2):
        facts = say(replica, passing)
        assert names(facts) == ["Ready"]
        replica = told(replica, facts)
        facts = say(replica, waiting)
        assert names(facts) == ["Unready"]
        replica = told(replica, facts)
    assert (replica.readies, replica.unreadies) == (2, 2)


def test_back_off_is_told_once_for_each_run_that_ended() -> None:
    why = api.Reason(code="CRASH_LOOP_BACKOFF")
    replica = Replica()
    seen: list[str] = []
    runs: tuple[Run, ...] = ()
    for ordinal in range(3):
        runs = (*runs, Run(ordinal, Instant(at(10 * ordinal + 1)), Instant(at(10 * ordinal + 2))))
        waits = replace(SEEN, phase=Phase.BACKOFF, runs=runs, reason=why)
        for _ in range(2):
            facts = say(replica, waits)
            seen += names(facts)
            replica = told(replica, facts)
    assert seen == ["Scheduled", *("Started", "Ended", "Pending") * 3]


def test_a_time_in_which_the_machine_slept_is_lost_and_found() -> None:
    asleep = replace(running(), gaps=(Gap(Instant(at(3))),))
    facts = say(Replica(), asleep)
    assert names(facts) == ["Scheduled", "Started", "Lost", "Ready"]
    replica = told(Replica(), facts)
    assert replica.lost
    awake = replace(running(), gaps=(Gap(Instant(at(3)), Instant(at(8))),))
    facts = say(replica, awake)
    assert names(facts) == ["Found"]
    replica = told(replica, facts)
    assert not replica.lost
    twice = replace(awake, gaps=(*awake.gaps, Gap(Instant(at(9)), Instant(at(11)))))
    assert names(say(replica, twice)) == ["Lost", "Found"]


def test_the_first_order_to_end_stands() -> None:
    replica = told(Replica(), say(Replica(), running()))
    facts = observation.drain(replica, api.CAUSE_USER_STOP, at(30), at(5))
    assert names(facts) == ["Draining"]
    replica = told(replica, facts)
    assert observation.drain(replica, api.CAUSE_DELETE, at(10), at(6)) == []
    assert (replica.cause, replica.deadline) == (api.CAUSE_USER_STOP, at(30))


def test_labels_are_told_only_when_they_change() -> None:
    replica = told(Replica(), say(Replica(), running()))
    facts = observation.relabel(replica, {"team": "vision"}, at(5))
    assert names(facts) == ["Relabelled"]
    replica = told(replica, facts)
    assert observation.relabel(replica, {"team": "vision"}, at(6)) == []
    assert dict(replica.subject.labels) == {"team": "vision"}


# Random lives, told by states that are dropped, repeated and put out of order.


@st.composite
def lives(draw: st.DrawFn) -> list[ReplicaObservation]:
    """All states that a cluster goes through in one life, in their order."""
    states = [SEEN]
    clock = 1
    runs: tuple[Run, ...] = ()
    for ordinal in range(draw(st.integers(0, 4))):
        start = clock = clock + draw(st.integers(0, 5))
        opened = Run(ordinal, Instant(at(start)))
        for _ in range(draw(st.integers(1, 3))):
            clock += draw(st.integers(0, 5))
            states.append(
                replace(
                    SEEN,
                    phase=Phase.RUNNING,
                    runs=(*runs, opened),
                    proof=at(clock),
                    ready=draw(st.sampled_from([None, True, False])),
                )
            )
        clock += draw(st.integers(0, 5))
        closed = replace(opened, end=Instant(at(clock)), exit=draw(st.integers(0, 2)))
        runs = (*runs, closed)
        why = api.Reason(code="CRASH_LOOP_BACKOFF")
        states.append(replace(SEEN, phase=Phase.BACKOFF, runs=runs, reason=why))
    states.append(replace(SEEN, phase=Phase.ENDED, runs=runs))
    return states


def intervals(facts: Sequence[ReplicaFact]) -> list[tuple[int, datetime, datetime]]:
    """What a meter would read: each run with its start and end."""
    starts = {
        fact.run: fact.witness.occurred_time.ToDatetime(tzinfo=UTC)
        for fact in facts
        if isinstance(fact, api.ReplicaStarted)
    }
    return [
        (fact.run, starts[fact.run], fact.witness.occurred_time.ToDatetime(tzinfo=UTC))
        for fact in facts
        if isinstance(fact, api.ReplicaEnded)
    ]


def tell(states: Sequence[ReplicaObservation], replica: Replica = Replica()) -> list[ReplicaFact]:
    """All facts that states told one after the other come to."""
    facts: list[ReplicaFact] = []
    for seen in states:
        new = say(replica, seen)
        replica = told(replica, new)
        facts += new
    return facts


def truth(life: Sequence[ReplicaObservation]) -> list[tuple[int, datetime, datetime]]:
    """What really ran, from the record itself."""
    return [(run.ordinal, run.start.at, run.end.at) for run in life[-1].runs if run.end is not None]


@given(lives(), st.data())
def test_whatever_is_dropped_repeated_or_late_the_intervals_are_the_record(
    life: list[ReplicaObservation], data: st.DataObject
) -> None:
    told_states = data.draw(st.lists(st.sampled_from(life), max_size=20))
    facts = tell([*told_states, life[-1]])
    assert intervals(facts) == truth(life)
    assert names(facts).count("Scheduled") == 1
    assert names(facts)[-1] == "Released"
    assert names(facts).count("Released") == 1


@given(lives(), st.data())
def test_a_kill_between_any_two_facts_loses_none_and_says_none_twice(
    life: list[ReplicaObservation], data: st.DataObject
) -> None:
    replica, said = Replica(), []
    for seen in life:
        new = say(replica, seen)
        kept = new[: data.draw(st.integers(0, len(new)))]
        # One command commits all or nothing; this is harder: any first part of it.
        replica = told(replica, kept)
        said += kept
    rest = say(replica, life[-1])
    facts = [*said, *rest]
    assert intervals(facts) == truth(life)
    statements = [aggregate.place(fact).statement for fact in facts]
    assert len(set(statements)) == len(statements)


@given(lives())
def test_a_record_that_keeps_only_its_last_runs_gives_the_same_but_what_was_missed(
    life: list[ReplicaObservation],
) -> None:
    last = replace(life[-1], runs=life[-1].runs[-2:])
    facts = tell([life[0], last])
    assert intervals(facts) == truth(life)[-2:]
    missed = [fact for fact in facts if isinstance(fact, api.ReplicaRunMissed)]
    assert sum(fact.to_run - fact.from_run + 1 for fact in missed) == max(0, len(truth(life)) - 2)


@given(lives(), st.data())
def test_every_statement_of_two_executors_is_the_same_one(
    life: list[ReplicaObservation], data: st.DataObject
) -> None:
    some = data.draw(st.lists(st.sampled_from(life), max_size=10))
    statements = [
        {aggregate.place(fact).statement for fact in tell(states) if _is_of_a_run(fact)}
        for states in (life, [*some, life[-1]])
    ]
    assert statements[0] == statements[1]


def _is_of_a_run(fact: ReplicaFact) -> bool:
    return isinstance(
        fact,
        api.ReplicaScheduled | api.ReplicaStarted | api.ReplicaEnded | api.ReplicaReleased,
    )


@pytest.mark.parametrize("microseconds", [0, 1, 999, 1000, 999_999])
def test_times_are_floored_to_whole_milliseconds(microseconds: int) -> None:
    found = observation.floor(NOON + timedelta(microseconds=microseconds))
    assert found.microsecond % 1000 == 0
    assert found <= NOON + timedelta(microseconds=microseconds)
