"""What an instance becomes when the scheduler and the executor tell what became of its attempt."""

from __future__ import annotations

from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fermion.api.instances import v1 as api
from fermion.api.workload import v1 as workload
from services.instances import aggregate
from services.instances.runs import Runs, because, failure
from tests.unit.services.history import names
from tests.unit.services.instances.life import (
    HISTORIES,
    OTHER_REPLICA,
    PROJECT,
    UID,
    Decide,
    Life,
    admitted,
    bare,
    create,
    delete,
    draining,
    ended,
    finished,
    pending,
    queued,
    ready,
    refused,
    rejected,
    restart,
    start,
    started,
    stop,
    unready,
    volume_gone,
)
from tests.unit.services.instances.test_aggregate import STATUS, status

MAX_DURATION = workload.CAUSE_MAX_DURATION


def running(*reports: Decide) -> Life:
    """A notebook whose check of readiness has passed, and what was told then."""
    return Life().do(create(), admitted(), started(), ready(), *reports)


def why(life: Life) -> str:
    """The code of the reason that callers see."""
    return life.shown.status.reason.code


# Admitted, preparing, started but not ready: STARTING.


def test_an_admitted_instance_starts() -> None:
    life = Life().do(create(), queued(1), admitted())
    assert status(life) == ("STARTING", "UNSPECIFIED", "RUNNING")
    assert why(life) == ""


def test_an_admission_that_is_said_again_with_other_labels_adds_nothing() -> None:
    assert admitted()(Life().do(create(), admitted()).now) == []


def test_what_is_done_before_the_first_run_is_shown() -> None:
    life = Life().do(create(), admitted(), pending("IMAGE_BUILDING"))
    assert status(life) == ("STARTING", "PREPARING", "RUNNING")
    assert why(life) == "IMAGE_BUILDING"


def test_progress_of_the_same_kind_is_not_said_again() -> None:
    life = Life().do(create(), admitted(), pending("IMAGE_BUILDING"))
    assert pending("IMAGE_BUILDING", 2)(life.now) == []
    assert names(pending("VOLUME_BINDING", 2)(life.now)) == ["InstancePreparing"]


def test_what_has_started_and_is_not_ready_is_starting() -> None:
    life = Life().do(create(), admitted(), pending(), started())
    assert status(life) == ("STARTING", "UNSPECIFIED", "RUNNING")
    assert dict(life.shown.status.addresses) == {"jupyter": "127.0.0.1:20000"}
    assert life.shown.status.restarts == 0


# Ready, or started where there is no probe: RUNNING.


def test_what_is_ready_runs() -> None:
    assert status(running()) == ("RUNNING", "UNSPECIFIED", "RUNNING")


def test_what_has_no_check_runs_when_it_has_started() -> None:
    life = Life().do(bare(), admitted(), started())
    assert status(life) == ("RUNNING", "UNSPECIFIED", "RUNNING")
    assert ready()(life.now) == []


# A run ended, and a restart is left: STARTING, phase BACKOFF.


def test_a_run_that_ended_is_told_and_changes_no_state() -> None:
    life = running(ended(exit_code=3))
    assert status(life) == ("RUNNING", "UNSPECIFIED", "RUNNING")
    assert (life.shown.status.exit_code, dict(life.shown.status.addresses)) == (3, {})


def test_what_waits_before_it_is_run_again_is_starting() -> None:
    life = running(ended(), pending("CRASH_LOOP_BACKOFF"))
    assert status(life) == ("STARTING", "BACKOFF", "RUNNING")
    assert why(life) == "CRASH_LOOP_BACKOFF"


def test_a_crash_loop_counts_its_restarts() -> None:
    life = running(
        ended(0),
        pending("CRASH_LOOP_BACKOFF", 1),
        started(1),
        ended(1),
        pending("CRASH_LOOP_BACKOFF", 2),
    )
    assert status(life) == ("STARTING", "BACKOFF", "RUNNING")
    life.do(started(2))
    assert life.shown.status.restarts == 2
    assert status(life) == ("STARTING", "UNSPECIFIED", "RUNNING")
    assert status(life.do(ready(2))) == ("RUNNING", "UNSPECIFIED", "RUNNING")


def test_runs_that_nobody_saw_are_restarts_too() -> None:
    life = running(ended(0), started(4))
    assert life.shown.status.restarts == 4


def test_a_signal_is_shown_as_shells_do() -> None:
    assert running(ended(exit_code=0, signal=9)).shown.status.exit_code == 137


def test_an_end_that_nobody_knows_has_no_exit_code() -> None:
    life = running(ended(exit_code=-1, why="VANISHED"))
    assert not life.shown.status.HasField("exit_code")
    life.do(finished(workload.OUTCOME_LOST))
    assert (status(life)[0], why(life)) == ("FAILED", "VANISHED")


# Unready later: RUNNING, phase UNREADY.


def test_what_is_not_ready_any_more_still_runs() -> None:
    life = running(unready())
    assert status(life) == ("RUNNING", "UNREADY", "RUNNING")
    assert why(life) == "PROBE_FAILED"
    assert status(life.do(ready(2))) == ("RUNNING", "UNSPECIFIED", "RUNNING")


def test_what_was_never_ready_is_not_unready() -> None:
    assert unready()(Life().do(create(), admitted(), started()).now) == []


# No replica lives and none will come: exit 0 STOPPED, else FAILED.


@pytest.mark.parametrize(
    ("outcome", "cause", "state", "code"),
    [
        (workload.OUTCOME_SUCCEEDED, workload.CAUSE_UNSPECIFIED, "STOPPED", ""),
        (workload.OUTCOME_FAILED, workload.CAUSE_UNSPECIFIED, "FAILED", "EXITED"),
        (workload.OUTCOME_STOPPED, workload.CAUSE_USER_STOP, "STOPPED", ""),
        (workload.OUTCOME_STOPPED, MAX_DURATION, "STOPPED", "MAX_DURATION"),
        (workload.OUTCOME_STOPPED, workload.CAUSE_BUDGET, "STOPPED", "BUDGET"),
        (workload.OUTCOME_STOPPED, workload.CAUSE_NODE_DRAIN, "STOPPED", "NODE_DRAIN"),
        (workload.OUTCOME_STOPPED, workload.CAUSE_PLATFORM, "STOPPED", "ENDED_BY_PLATFORM"),
        (workload.OUTCOME_PREEMPTED, workload.CAUSE_PREEMPTION, "STOPPED", "PREEMPTED"),
        (workload.OUTCOME_LOST, workload.CAUSE_NODE_LOST, "FAILED", "NODE_LOST"),
        (workload.OUTCOME_REJECTED, workload.CAUSE_UNSPECIFIED, "FAILED", "REJECTED"),
        (workload.OUTCOME_NEVER_STARTED, workload.CAUSE_UNSPECIFIED, "FAILED", "NEVER_STARTED"),
        (workload.OUTCOME_NEVER_STARTED, workload.CAUSE_BUDGET, "STOPPED", "BUDGET"),
    ],
)
def test_how_it_ended_decides_what_it_is_then(
    outcome: workload.Outcome.ValueType,
    cause: workload.Cause.ValueType,
    state: str,
    code: str,
) -> None:
    life = running(ended(exit_code=3), finished(outcome, cause))
    assert status(life) == (state, "UNSPECIFIED", "STOPPED")
    assert why(life) == code
    assert names(start(life.now)) == [
        "InstanceStartRequested",
        "InstanceAttemptDeclared",
        "WorkloadDeclared",
    ]


def test_a_failure_tells_the_exit_code_and_the_restarts() -> None:
    life = running(
        ended(0),
        pending("CRASH_LOOP_BACKOFF"),
        started(1),
        ended(1, 7),
        finished(workload.OUTCOME_FAILED),
    )
    reason = life.shown.status.reason
    assert dict(reason.arguments) == {"exit_code": "7", "restarts": "1"}
    assert reason.message == "It exited with 7, after 1 restart."
    assert (life.shown.status.exit_code, life.shown.status.restarts) == (7, 1)


def test_a_failure_has_the_executors_word_for_it_where_there_is_one() -> None:
    life = running(ended(signal=9, why="OOM_KILLED"), finished(workload.OUTCOME_FAILED))
    reason = life.shown.status.reason
    assert (reason.code, dict(reason.arguments)) == ("OOM_KILLED", {"signal": "9", "restarts": "0"})
    assert life.shown.status.exit_code == 137


def test_a_failure_whose_runs_were_not_told_says_so() -> None:
    life = Life().do(create(), admitted(), finished(workload.OUTCOME_FAILED))
    assert (status(life)[0], why(life)) == ("FAILED", "END_UNKNOWN")


def test_the_next_attempt_shows_nothing_of_the_one_before() -> None:
    life = running(ended(0, 3), started(1), ended(1, 3), finished(workload.OUTCOME_FAILED), start)
    found = life.shown.status
    assert (found.HasField("exit_code"), found.restarts, dict(found.addresses)) == (False, 0, {})
    life.do(admitted(2), started(0, 2))
    assert life.shown.status.restarts == 0


def test_a_field_that_no_cluster_honours_is_a_failure_that_names_it() -> None:
    life = Life().do(create(), admitted(), rejected())
    assert (status(life)[0], why(life)) == ("FAILED", "IMAGE_NOT_HONOURED")
    assert life.shown.status.reason.arguments["field"] == "groups[0].image"
    assert finished(workload.OUTCOME_REJECTED)(life.now) == []


@pytest.mark.parametrize("outcome", workload.Outcome.values())
def test_where_a_stop_was_asked_for_any_end_is_the_stop(
    outcome: workload.Outcome.ValueType,
) -> None:
    life = running(stop, draining(workload.CAUSE_USER_STOP), ended(), finished(outcome))
    assert status(life) == ("STOPPED", "UNSPECIFIED", "STOPPED")
    assert why(life) == ""


# A start while it stops, and a restart: the next attempt is declared when it has ended.


def test_a_start_while_it_stops_begins_when_it_has_stopped() -> None:
    life = running(stop, start)
    assert status(life) == ("STOPPING", "RESTARTING", "RUNNING")
    facts = finished(cause=workload.CAUSE_USER_STOP)(life.now)
    assert names(facts) == ["InstanceAttemptDeclared", "WorkloadDeclared"]


def test_a_restart_begins_when_it_has_stopped() -> None:
    life = running(restart, ended(), finished(cause=workload.CAUSE_RESTART))
    assert status(life) == ("PENDING", "DECLARED", "RUNNING")
    assert life.shown.status.attempt == 2


def test_a_restart_that_is_rejected_meanwhile_begins_all_the_same() -> None:
    life = Life().do(create(), admitted(), restart, rejected())
    assert (status(life)[0], life.shown.status.attempt) == ("PENDING", 2)


def test_in_a_closed_project_a_restart_ends_stopped() -> None:
    life = running(restart).close()
    assert names(finished()(life.now)) == ["InstanceStopped"]


# Its executor ends it.


def test_what_its_executor_ends_is_stopping_and_tells_why() -> None:
    life = running(draining(MAX_DURATION))
    assert status(life) == ("STOPPING", "UNSPECIFIED", "STOPPED")
    assert why(life) == "MAX_DURATION"
    assert names(stop(life.now)) == []
    life.do(ended(), finished(cause=MAX_DURATION))
    assert (status(life)[0], why(life)) == ("STOPPED", "MAX_DURATION")


def test_what_its_executor_ends_is_told_to_end_by_nobody_else() -> None:
    for ask in (stop, restart, delete, start):
        assert "WorkloadWithdrawn" not in names(ask(running(draining()).now))


def test_a_node_that_is_gone_while_it_is_emptied_is_a_failure() -> None:
    life = running(draining(workload.CAUSE_NODE_DRAIN))
    life.do(finished(workload.OUTCOME_LOST, workload.CAUSE_NODE_LOST))
    assert (status(life)[0], why(life)) == ("FAILED", "NODE_LOST")


def test_a_start_while_its_executor_ends_it_begins_when_it_has_ended() -> None:
    life = running(draining(), start)
    assert status(life) == ("STOPPING", "RESTARTING", "RUNNING")
    assert life.do(finished(cause=MAX_DURATION)).shown.status.attempt == 2


def test_a_deletion_while_its_executor_ends_it_goes_on_when_it_has_ended() -> None:
    life = running(draining(), delete)
    facts = finished(workload.OUTCOME_FAILED)(life.now)
    assert names(facts) == ["InstanceStopped", "VolumeWithdrawn"]


def test_where_a_stop_was_asked_for_a_draining_is_no_news() -> None:
    assert draining(workload.CAUSE_USER_STOP)(running(stop).now) == []


# Deletion: stops it, then its files go, then it is gone.


def test_a_deletion_waits_for_the_end_and_for_the_volume() -> None:
    life = running(delete)
    assert status(life) == ("STOPPING", "DELETING", "STOPPED")
    assert volume_gone(2)(life.now) == []
    life.do(ended(exit_code=0, signal=15), finished(cause=workload.CAUSE_DELETE))
    assert status(life) == ("STOPPED", "DELETING", "STOPPED")
    assert not life.now.instance.deleted
    assert life.do(volume_gone()).now.instance.deleted


# Late, repeated, of another attempt, out of rank: nothing.


@pytest.mark.parametrize(
    "report",
    [
        queued(1, "QUOTA"),
        admitted(),
        pending("PREPARING", 9),
        pending("CRASH_LOOP_BACKOFF", 9),
        started(0),
        ended(1),
    ],
)
def test_what_comes_before_the_run_that_is_open_is_late(report: Decide) -> None:
    assert report(running().now) == []


def test_what_comes_before_the_first_run_is_late_after_it_has_ended() -> None:
    assert pending("PREPARING", 9)(running(ended()).now) == []


@pytest.mark.parametrize("report", [queued(1, "QUOTA"), admitted()])
def test_the_executor_outranks_the_scheduler(report: Decide) -> None:
    for said in (pending(), started()):
        assert report(Life().do(create(), said).now) == []


def test_a_second_word_on_the_same_edge_is_late() -> None:
    life = running(
        unready(1), ready(2), ended(0), pending("CRASH_LOOP_BACKOFF", 1), started(1), ready(3)
    )
    for report in (unready(1), ready(1), ready(2), ready(3), ended(0), started(1), started(0)):
        assert report(life.now) == []


def test_nothing_is_added_to_what_is_over() -> None:
    life = running(ended(), finished(workload.OUTCOME_FAILED))
    for report in (
        *(
            queued(1),
            admitted(),
            refused(1),
            pending("CRASH_LOOP_BACKOFF", 9),
            started(9),
            ready(9),
        ),
        *(unready(9), ended(0), draining(), rejected(), finished(workload.OUTCOME_SUCCEEDED)),
    ):
        assert report(life.now) == []


def test_a_replica_that_takes_the_place_of_another_goes_on_where_that_ended() -> None:
    life = running(ended(0, -1), pending("PREPARING", 1, replica=OTHER_REPLICA))
    assert status(life) == ("STARTING", "PREPARING", "RUNNING")
    life.do(started(0, replica=OTHER_REPLICA), ready(1, replica=OTHER_REPLICA))
    assert (status(life)[0], life.shown.status.restarts) == ("RUNNING", 1)
    for late in (
        started(1),
        ended(0),
        ready(9),
        unready(9),
        draining(),
        pending("CRASH_LOOP_BACKOFF", 9),
    ):
        assert late(life.now) == []


# In any order of the two journals, and told any number of times.


@st.composite
def executor(draw: st.DrawFn) -> list[Decide]:
    """What an executor says of an attempt, in its order."""
    told: list[Decide] = []
    if draw(st.booleans()):
        codes = draw(st.lists(st.sampled_from(["IMAGE_BUILDING", "VOLUME"]), max_size=3))
        told += [pending(code, n) for n, code in enumerate(codes, 1)]
        n, readies, unreadies, missed = len(codes), 0, 0, 0
        crashes = draw(st.integers(0, 3))
        for life in range(crashes + 1):
            missed += draw(st.sampled_from([0, 0, 0, 2]))
            told.append(started(life + missed))
            for _ in range(draw(st.integers(0, 2))):
                readies += 1
                told.append(ready(readies))
                if draw(st.booleans()):
                    unreadies += 1
                    told.append(unready(unreadies))
            if life < crashes:
                n += 1
                told.append(ended(life + missed, draw(st.sampled_from([-1, 0, 1]))))
                told.append(pending("CRASH_LOOP_BACKOFF", n))
        if draw(st.booleans()):
            told.append(draining(draw(st.sampled_from(workload.Cause.values()))))
        if draw(st.booleans()):
            code = draw(st.sampled_from(["", "OOM_KILLED"]))
            told.append(ended(crashes + missed, 1, signal=draw(st.sampled_from([0, 9])), why=code))
            told.append(
                finished(
                    draw(st.sampled_from(workload.Outcome.values())),
                    draw(st.sampled_from(workload.Cause.values())),
                )
            )
    elif draw(st.booleans()):
        told += [rejected(), finished(workload.OUTCOME_REJECTED)]
    return told


@st.composite
def tellings(draw: st.DrawFn) -> tuple[list[Decide], list[Decide], list[Decide]]:
    """
    Both journals one after the other, and as they may be heard: mixed, and with repetitions.

    A reason to wait may come back, so of those only the newest can be told from news.
    """
    codes = draw(st.lists(st.sampled_from(["QUOTA", "NO_CLUSTER"]), max_size=3))
    theirs = draw(executor())
    waits: list[Decide] = [queued(1, code) for code in codes]
    # Whoever was told of by an executor was admitted.
    ours = [*waits, admitted()] if theirs or draw(st.booleans()) else waits
    left, mixed = [list(ours), list(theirs)], list[Decide]()
    while any(left):
        side = draw(st.sampled_from([place for place, rest in enumerate(left) if rest]))
        mixed.append(left[side].pop(0))
        if draw(st.integers(0, 2)) == 0:
            old = [report for report in waits if report in mixed][:-1]
            mixed.append(draw(st.sampled_from([one for one in mixed if one not in old])))
    return ours, theirs, mixed


def seen(life: Life) -> api.Status:
    """What callers see, but for when."""
    found = api.Status()
    found.CopyFrom(life.shown.status)
    found.ClearField("state_time")
    return found


@given(tellings())
def test_any_order_of_the_journals_and_any_repetition_ends_in_the_same_state(
    told: tuple[list[Decide], list[Decide], list[Decide]],
) -> None:
    ours, theirs, mixed = told
    assert seen(Life().do(create(), *mixed)) == seen(Life().do(create(), *ours, *theirs))


@given(tellings(), st.sampled_from([stop, restart, delete]), st.integers(0, 30))
def test_whenever_something_is_asked_for_the_end_of_the_attempt_brings_it_about(
    told: tuple[list[Decide], list[Decide], list[Decide]], ask: Decide, place: int
) -> None:
    life = Life().do(create())
    for report in told[2][:place]:
        life.do(report)
    if not life.now.instance.lives:
        return
    fresh = ask(life.now) == [] and ask is restart
    life.do(ask, *told[2][place:], finished())
    assert not life.now.instance.lives or life.shown.status.attempt == 2 or fresh
    if ask is delete:
        assert life.do(volume_gone()).now.instance.deleted


# The walks of the contract between modules, scheduler and executor.

WALKS: dict[str, list[tuple[Decide, STATUS]]] = {
    "start, and a stop that was admitted": [
        (create(), ("PENDING", "DECLARED", "RUNNING")),
        (admitted(), ("STARTING", "UNSPECIFIED", "RUNNING")),
        (pending("IMAGE_BUILDING"), ("STARTING", "PREPARING", "RUNNING")),
        (started(), ("STARTING", "UNSPECIFIED", "RUNNING")),
        (ready(), ("RUNNING", "UNSPECIFIED", "RUNNING")),
        (stop, ("STOPPING", "UNSPECIFIED", "STOPPED")),
        (draining(workload.CAUSE_USER_STOP), ("STOPPING", "UNSPECIFIED", "STOPPED")),
        (ended(0, 0, signal=15), ("STOPPING", "UNSPECIFIED", "STOPPED")),
        (finished(cause=workload.CAUSE_USER_STOP), ("STOPPED", "UNSPECIFIED", "STOPPED")),
        (start, ("PENDING", "DECLARED", "RUNNING")),
    ],
    "a stop that finds it queued": [
        (create(), ("PENDING", "DECLARED", "RUNNING")),
        (queued(1), ("PENDING", "QUEUED", "RUNNING")),
        (stop, ("STOPPING", "UNSPECIFIED", "STOPPED")),
        (refused(1), ("STOPPED", "UNSPECIFIED", "STOPPED")),
    ],
    "an admission that was revoked before anything started": [
        (create(), ("PENDING", "DECLARED", "RUNNING")),
        (stop, ("STOPPING", "UNSPECIFIED", "STOPPED")),
        (admitted(), ("STOPPING", "UNSPECIFIED", "STOPPED")),
        (
            finished(workload.OUTCOME_NEVER_STARTED, workload.CAUSE_USER_STOP),
            ("STOPPED", "UNSPECIFIED", "STOPPED"),
        ),
    ],
    "it ends by itself": [
        (create(), ("PENDING", "DECLARED", "RUNNING")),
        (admitted(), ("STARTING", "UNSPECIFIED", "RUNNING")),
        (started(), ("STARTING", "UNSPECIFIED", "RUNNING")),
        (ready(), ("RUNNING", "UNSPECIFIED", "RUNNING")),
        (ended(0, 0), ("RUNNING", "UNSPECIFIED", "RUNNING")),
        (finished(workload.OUTCOME_SUCCEEDED), ("STOPPED", "UNSPECIFIED", "STOPPED")),
    ],
    "a crash loop that is given up": [
        (create(), ("PENDING", "DECLARED", "RUNNING")),
        (admitted(), ("STARTING", "UNSPECIFIED", "RUNNING")),
        (started(0), ("STARTING", "UNSPECIFIED", "RUNNING")),
        (ended(0), ("STARTING", "UNSPECIFIED", "RUNNING")),
        (pending("CRASH_LOOP_BACKOFF", 1), ("STARTING", "BACKOFF", "RUNNING")),
        (started(1), ("STARTING", "UNSPECIFIED", "RUNNING")),
        (ended(1), ("STARTING", "UNSPECIFIED", "RUNNING")),
        (finished(workload.OUTCOME_FAILED), ("FAILED", "UNSPECIFIED", "STOPPED")),
    ],
    "it runs as long as it may": [
        (create(), ("PENDING", "DECLARED", "RUNNING")),
        (started(), ("STARTING", "UNSPECIFIED", "RUNNING")),
        (ready(), ("RUNNING", "UNSPECIFIED", "RUNNING")),
        (draining(MAX_DURATION), ("STOPPING", "UNSPECIFIED", "STOPPED")),
        (ended(0, 0, signal=15), ("STOPPING", "UNSPECIFIED", "STOPPED")),
        (finished(cause=MAX_DURATION), ("STOPPED", "UNSPECIFIED", "STOPPED")),
    ],
    "a restart": [
        (create(), ("PENDING", "DECLARED", "RUNNING")),
        (started(), ("STARTING", "UNSPECIFIED", "RUNNING")),
        (ready(), ("RUNNING", "UNSPECIFIED", "RUNNING")),
        (restart, ("STOPPING", "RESTARTING", "RUNNING")),
        (ended(0, 0), ("STOPPING", "RESTARTING", "RUNNING")),
        (finished(cause=workload.CAUSE_RESTART), ("PENDING", "DECLARED", "RUNNING")),
        (ready(2), ("PENDING", "DECLARED", "RUNNING")),
        (admitted(2), ("STARTING", "UNSPECIFIED", "RUNNING")),
    ],
    "a cluster that does not honour it": [
        (create(), ("PENDING", "DECLARED", "RUNNING")),
        (admitted(), ("STARTING", "UNSPECIFIED", "RUNNING")),
        (rejected(), ("FAILED", "UNSPECIFIED", "STOPPED")),
        (finished(workload.OUTCOME_REJECTED), ("FAILED", "UNSPECIFIED", "STOPPED")),
    ],
}


@pytest.mark.parametrize("walk", WALKS)
def test_a_walk_shows_what_it_should_at_each_step(walk: str) -> None:
    life = Life()
    for place, (step, expected) in enumerate(WALKS[walk]):
        life.do(step)
        assert status(life) == expected, f"{walk}, step {place}"


# Words.


def test_every_cause_is_the_users_own_or_has_its_reason() -> None:
    asked = {cause for cause in workload.Cause.values() if because(cause) is None}
    assert asked == {
        workload.CAUSE_UNSPECIFIED,
        workload.CAUSE_USER_STOP,
        workload.CAUSE_DELETE,
        workload.CAUSE_RESTART,
    }


def test_words_of_a_later_executor_are_understood_as_far_as_they_go() -> None:
    told = because(77)  # type: ignore[arg-type]
    assert told is not None
    assert told.arguments["cause"] == "77"
    reason = failure(Runs(), 77, workload.CAUSE_UNSPECIFIED)  # type: ignore[arg-type]
    assert reason is not None
    assert reason.code == "END_UNKNOWN"


@given(HISTORIES, st.text(max_size=5))
def test_a_report_about_a_workload_that_is_not_its_present_one_adds_nothing(
    life: Life, other: str
) -> None:
    uid = f"wkl_{other}"
    for decide in (
        partial(aggregate.serve, workload_uid=uid, replica="rep_first", n=9),
        partial(aggregate.drain, workload_uid=uid, replica="rep_first", cause=MAX_DURATION),
        partial(aggregate.reject, workload_uid=uid, field="x", reason=workload.Reason(code="X")),
    ):
        assert decide(life.now) == []


def test_facts_of_runs_stand_in_the_instances_stream() -> None:
    life = running(unready(), ended(), pending("CRASH_LOOP_BACKOFF"))
    for record in life.history.records[-6:]:
        assert (record.stream, record.project) == (f"instance/{UID}", PROJECT)
