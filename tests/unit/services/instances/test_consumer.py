"""What instances do because of what others said."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from google.protobuf.message import Message

from chassis import ids
from chassis.journal import Place
from chassis.postgres import Database
from chassis.queries import Queries
from chassis.readers import Consumer, Reaction
from fermion.api.workload import v1 as workload
from services.instances.consumer import ExecutorReports, SchedulerReports
from tests.unit.services.history import History, names
from tests.unit.services.instances.life import (
    PROJECT,
    UID,
    VOLUME,
    Life,
    admitted,
    create,
    delete,
    finished,
    restart,
    stop,
)
from tests.unit.services.instances.life import queued as life_queued

# Never reached: what names its owner is found without looking.
NOWHERE = Database("postgresql://nobody@127.0.0.1:1/nothing", "instances")


def anywhere(fact: Message) -> Place:
    """Where a fact of others stands does not matter to who hears it."""
    return Place(f"workload/{fact.DESCRIPTOR.name}", PROJECT)


async def heard(said: Sequence[Message], by: Consumer | None = None) -> Sequence[Reaction]:
    """Let a consumer hear facts of another journal, the scheduler's unless it is said whose."""
    history = History("other/0", anywhere)
    history.say(said)
    consumer = by or SchedulerReports()
    return [reaction for fact in history.records for reaction in await consumer.react(fact)]


async def told(said: Message) -> Sequence[Reaction]:
    """Let the consumer hear a fact of an executor's journal."""
    return await heard([said], ExecutorReports(NOWHERE, Queries({})))


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


async def test_an_admitted_workload_starts_its_instance() -> None:
    work = workload.Workload(owner_uid=UID, attempt=1, project=PROJECT)
    reactions = await heard([workload.WorkloadAdmitted(workload=work, cluster="one")])
    assert followed(Life().do(create()), reactions) == ["InstanceAdmitted"]
    work.owner_uid = "job_1"
    assert await heard([workload.WorkloadAdmitted(workload=work)]) == []


async def test_a_refused_volume_is_not_waited_for() -> None:
    said = workload.VolumeRefused(uid=VOLUME, owner_uid=UID, project=PROJECT)
    life = Life().do(create(), delete, finished())
    assert followed(life, await heard([said])) == ["InstanceDeleted"]


@pytest.mark.parametrize("kind", [workload.VolumeDeleted, workload.VolumeRejected])
async def test_a_volume_that_a_cluster_has_not_any_more_is_not_waited_for(
    kind: type[workload.VolumeDeleted] | type[workload.VolumeRejected],
) -> None:
    life = Life().do(create(), delete, finished())
    reactions = await told(kind(uid=VOLUME, owner_uid=UID, project=PROJECT))
    assert followed(life, reactions) == ["InstanceDeleted"]
    assert await told(kind(uid=VOLUME, owner_uid="job_1", project=PROJECT)) == []


async def test_a_start_is_about_the_instance_that_it_names() -> None:
    subject = workload.Subject(
        owner_uid=UID, project=PROJECT, workload=ids.workload(UID, "", 1), attempt=1
    )
    said = workload.ReplicaStarted(uid="rep_1", subject=subject)
    assert followed(Life().do(create(), admitted()), await told(said)) == ["InstanceStarted"]
    subject.owner_uid = "job_1"
    assert await told(workload.ReplicaStarted(uid="rep_1", subject=subject)) == []


async def test_a_finished_workload_ends_its_instance() -> None:
    said = workload.WorkloadFinished(
        owner_uid=UID, attempt=1, project=PROJECT, outcome=workload.OUTCOME_SUCCEEDED
    )
    assert followed(Life().do(create(), admitted()), await told(said)) == ["InstanceStopped"]
    said.owner_uid = "job_1"
    assert await told(said) == []
