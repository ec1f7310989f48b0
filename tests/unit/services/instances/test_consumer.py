"""What instances do because of what others said."""

from __future__ import annotations

from collections.abc import Sequence

from google.protobuf.message import Message

from chassis.readers import Reaction
from fermion.api.workload import v1 as workload
from services.instances.consumer import SchedulerReports
from services.scheduler import aggregate as scheduler
from tests.unit.services.history import History, names
from tests.unit.services.instances.life import PROJECT, UID, Life, create, restart, stop
from tests.unit.services.instances.life import queued as life_queued


async def heard(said: Sequence[Message]) -> Sequence[Reaction]:
    """Let the consumer hear facts of the scheduler's journal."""
    history = History("scheduler/0", scheduler.place)
    history.say(said)
    consumer = SchedulerReports()
    return [reaction for fact in history.records for reaction in await consumer.react(fact)]


def followed(life: Life, reactions: Sequence[Reaction]) -> list[str]:
    """Decide as the reader would, and tell what is said."""
    facts: list[Message] = []
    for reaction in reactions:
        state = reaction.fold(*(life.history.stream(stream) for stream in reaction.streams))
        facts += reaction.decide(state)
    return names(facts)


def queued(owner_uid: str = UID, attempt: int = 1) -> workload.WorkloadQueued:
    reason = workload.Reason(code="NO_CLUSTER")
    return workload.WorkloadQueued(
        uid="wkl_1", owner_uid=owner_uid, attempt=attempt, project=PROJECT, reason=reason
    )


def refused(attempt: int = 1, code: str = "WITHDRAWN") -> workload.WorkloadRefused:
    reason = workload.Reason(code=code)
    return workload.WorkloadRefused(
        uid="wkl_1", owner_uid=UID, attempt=attempt, project=PROJECT, reason=reason
    )


async def test_a_queued_workload_queues_its_instance() -> None:
    life = Life().do(create())
    assert followed(life, await heard([queued()])) == ["InstanceQueued"]


async def test_workloads_of_other_modules_concern_no_instance() -> None:
    assert await heard([queued(owner_uid="job_1")]) == []


async def test_a_decision_reads_the_instance_and_its_project() -> None:
    (reaction,) = await heard([queued()])
    assert reaction.streams == (f"instance/{UID}", f"project/{PROJECT}")


async def test_the_end_of_a_withdrawn_attempt_stops_the_instance() -> None:
    life = Life().do(create(), stop)
    assert followed(life, await heard([refused()])) == ["InstanceStopped"]


async def test_the_end_of_a_restarted_attempt_declares_the_next() -> None:
    life = Life().do(create(), life_queued(1), restart)
    assert followed(life, await heard([refused()])) == [
        "InstanceAttemptDeclared",
        "WorkloadDeclared",
    ]


async def test_a_report_that_overtook_its_instance_adds_nothing() -> None:
    assert followed(Life(), await heard([queued(), refused()])) == []
