"""What the scheduler does about what modules, projects and executors say."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path

from google.protobuf.message import Message

from chassis.envelope import Meta, Recorded
from chassis.queries import Queries
from fermion.api.projects import v1 as projects
from fermion.api.workload import v1 as workload
from services.instances import aggregate as instances
from services.scheduler import projection
from services.scheduler.consumer import ClusterReports, Declarations, Limits
from tests.unit.services.history import NOON, History, names
from tests.unit.services.scheduler.test_aggregate import (
    DECLARED,
    VOLUME,
    admit_volume,
    admitted,
    declare_volume,
    enqueue,
    told,
    told_of_volume,
)
from tests.unit.services.statements import misfits

QUERIES = Queries.load(Path(projection.__file__).with_name("queries.sql"))
CLUSTER = "0" * 26


async def heard(said: Message, so_far: History) -> list[str]:
    """Let the scheduler hear one fact of a module, and tell what it says."""
    module = History("instances/0", instances.place)
    module.records.append(record("instances/0", said))
    found: list[Message] = []
    for reaction in await Declarations("instances").react(module.records[0]):
        (stream,) = reaction.streams
        found += reaction.decide(reaction.fold(so_far.stream(stream)))
    return names(found)


def record(journal: str, message: Message, position: int = 7) -> Recorded:
    """A fact as its reader gets it."""
    return Recorded(
        journal=journal,
        epoch=1,
        position=position,
        project="_",
        project_position=position,
        stream="any/one",
        version=1,
        type=message.DESCRIPTOR.full_name,
        statement="",
        data=message.SerializeToString(),
        meta=Meta("test"),
        record_time=NOON,
        message=message,
    )


def folded(message: Message) -> list[tuple[str, tuple[object, ...]]]:
    """What an executor's fact writes."""
    reports = ClusterReports(asyncio.Event())
    assert message.DESCRIPTOR.full_name in reports.handles
    writes = reports.write([record(f"executor/{CLUSTER}", message)])
    assert misfits(QUERIES, writes) == []
    return [(write.statement, write.arguments) for write in writes]


def test_the_reader_is_named_after_what_it_reads() -> None:
    reader = Declarations("training")
    assert (reader.name, reader.source) == ("scheduler/training", "training")


async def test_a_declaration_queues() -> None:
    said = workload.WorkloadDeclared(workload=DECLARED)
    assert await heard(said, told()) == ["WorkloadQueued"]


async def test_a_declaration_heard_twice_queues_once() -> None:
    said = workload.WorkloadDeclared(workload=DECLARED)
    assert await heard(said, told(enqueue)) == []


async def test_a_withdrawal_lets_go_of_what_waits_and_takes_down_what_is_admitted() -> None:
    said = workload.WorkloadWithdrawn(uid="wkl_1", project="acme")
    assert await heard(said, told(enqueue)) == ["WorkloadRefused"]
    assert await heard(said, told(enqueue, admitted())) == ["WorkloadRevoked"]


async def test_new_labels_restate_what_waits_and_what_is_admitted() -> None:
    said = workload.WorkloadRelabelled(uid="wkl_1", project="acme", labels={"team": "x"})
    assert await heard(said, told(enqueue)) == ["WorkloadQueued"]
    assert await heard(said, told(enqueue, admitted())) == ["WorkloadAdmitted"]


async def test_another_number_of_replicas_is_heard() -> None:
    said = workload.WorkloadScaled(uid="wkl_1", project="acme", replicas=1)
    assert await heard(said, told(enqueue, admitted())) == ["WorkloadAdmitted"]


async def test_volumes_are_heard() -> None:
    declared = workload.VolumeDeclared(volume=VOLUME)
    assert await heard(declared, told_of_volume()) == ["VolumeQueued"]
    gone = workload.VolumeWithdrawn(uid="vol_1", project="acme")
    assert await heard(gone, told_of_volume(declare_volume)) == ["VolumeRefused"]
    assert await heard(gone, told_of_volume(declare_volume, admit_volume)) == ["VolumeRevoked"]


def test_limits_and_clusters_are_folded_and_who_admits_is_told() -> None:
    told = asyncio.Event()
    limits = Limits(told)
    facts: list[Message] = [
        projects.ProjectCreated(uid="proj_1", project="acme"),
        projects.QuotaSet(scope="projects/proj_1", limits=projects.Limits(cpu_milli=1)),
        projects.QuotaCleared(scope="projects/proj_1"),
        projects.ClusterEnrolled(cluster=CLUSTER),
        projects.ClusterRetired(cluster=CLUSTER),
    ]
    assert {fact.DESCRIPTOR.full_name for fact in facts} == limits.handles
    writes = limits.write([record("projects/0", fact) for fact in facts])
    assert [write.statement for write in writes] == [
        *("know_project", "set_quota", "clear_quota", "enrol", "enrol"),
    ]
    assert misfits(QUERIES, writes) == []
    # Before its rows are there nobody has to look.
    assert not told.is_set()
    limits.written()
    assert told.is_set()


def test_a_node_that_is_reported_or_gone_frees_what_was_given_up_with_it() -> None:
    there = workload.NodeReported(cluster=CLUSTER, node=workload.Node(node="n1", cpu_milli=1))
    assert [name for name, _ in folded(there)] == ["report_node", "prove"]
    assert folded(workload.NodeRemoved(cluster=CLUSTER, node="n1")) == [
        ("report_node", (CLUSTER, "n1", None, 7)),
        ("prove", (CLUSTER, "n1", 7)),
    ]


def test_a_replica_is_known_from_its_binding_to_its_release() -> None:
    subject = workload.Subject(workload="wkl_1", role="worker")
    scheduled = workload.ReplicaScheduled(uid="rep_1", subject=subject, node="n1")
    assert folded(scheduled)[0] == ("bind_replica", ("rep_1", "wkl_1", "worker", CLUSTER, "n1"))
    gone = workload.ReplicaReleased(uid="rep_1", workload="wkl_1")
    assert folded(gone)[0] == ("release_replica", ("rep_1", False))


def test_a_replica_that_was_given_up_with_its_node_is_not_free_yet() -> None:
    given_up = workload.ReplicaReleased(uid="rep_1", workload="wkl_1")
    given_up.witness.evidence = workload.EVIDENCE_CLASS_NODE_LEASE
    assert folded(given_up)[0] == ("release_replica", ("rep_1", True))


def test_starts_and_ends_are_what_happened_to_a_workload() -> None:
    started = workload.ReplicaStarted(uid="rep_1", subject=workload.Subject(workload="wkl_1"))
    started.witness.occurred_time.FromDatetime(NOON + timedelta(seconds=1))
    assert folded(started) == [
        ("note_progress", ("wkl_1", CLUSTER, NOON + timedelta(seconds=1), False, 7))
    ]
    assert folded(workload.WorkloadFinished(uid="wkl_1")) == [
        ("forget_replicas", ("wkl_1",)),
        ("note_progress", ("wkl_1", CLUSTER, None, True, 7)),
    ]


def test_a_volume_is_known_where_it_is_and_when_it_is_gone() -> None:
    bound = workload.VolumeBound(uid="vol_1", node="n1")
    assert folded(bound) == [("store", ("vol_1", CLUSTER, "n1", True, False, 7))]
    for gone in (workload.VolumeRejected(uid="vol_1"), workload.VolumeDeleted(uid="vol_1")):
        assert folded(gone) == [("store", ("vol_1", CLUSTER, "", False, True, 7))]


def test_what_a_cluster_honours_is_kept_as_it_said_it() -> None:
    can = workload.Capabilities(cluster_kind="local", features=["volumes"])
    assert folded(workload.ClusterRegistered(uid=CLUSTER, capabilities=can)) == [
        ("register", (CLUSTER, can.SerializeToString(deterministic=True)))
    ]
