"""What executors witnessed stands in histories, beside what was asked for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import code_pb2

import fermion
from fermion.api.instances import v1 as api
from fermion.api.workload import v1 as workload
from fermion.cli import facts, history, run
from fermion.context import Contexts
from tests.unit.fermion.platform import Platform, refuse

LAB = "inst_" + "a" * 26
EXECUTOR = "executor/" + "k" * 26


def witness(
    at: int, evidence: workload.EvidenceClass.ValueType = workload.EVIDENCE_CLASS_RECORDED
) -> workload.Witness:
    return workload.Witness(occurred_time=Timestamp(seconds=at), evidence=evidence)


def subject(owner: str, wkl: str) -> workload.Subject:
    return workload.Subject(
        project="acme", owner=f"projects/acme/instances/{owner}", workload=wkl, rank=1
    )


@pytest.fixture
def ran(platform: Platform, tmp_path: Path) -> Platform:
    """A platform on which lab ran once, with a volume, beside somebody else's replica."""
    token = tmp_path / "jwt"
    token.write_text("jwt")
    Contexts().set("local", address=platform.address, token_file=str(token), project="acme")
    name = "projects/acme/instances/lab"
    platform.instances[name] = api.Instance(name=name, uid=LAB)
    own, work, volume = f"instance/{LAB}", "workload/wkl_1", "volume/vol_1"
    created = api.InstanceCreated(uid=LAB, project="acme", instance="lab")
    platform.state("instances/0", own, created, 100)
    attempt = api.InstanceAttemptDeclared(uid=LAB, attempt=1, workload_uid="wkl_1")
    attempt.volume_uid = "vol_1"
    platform.state("instances/0", own, attempt, 101)
    platform.state("instances/0", work, workload.WorkloadDeclared(), 102)
    platform.state("instances/0", volume, workload.VolumeDeclared(), 103)
    platform.state("scheduler/0", volume, workload.VolumeAdmitted(), 104)
    platform.state("scheduler/0", work, workload.WorkloadAdmitted(), 105)
    said: list[tuple[str, Message]] = [
        (work, workload.WorkloadAccepted(uid="wkl_1", witness=witness(106))),
        (volume, workload.VolumeBound(uid="vol_1", witness=witness(107))),
        (
            "replica/rep_2",
            workload.ReplicaScheduled(uid="rep_2", subject=subject("other", "wkl_2")),
        ),
        ("replica/rep_1", workload.ReplicaScheduled(uid="rep_1", subject=subject("lab", "wkl_1"))),
        ("replica/rep_2", workload.ReplicaStarted(uid="rep_2", witness=witness(110))),
        ("replica/rep_1", workload.ReplicaStarted(uid="rep_1", addresses={"web": "here:1"})),
        (
            "replica/rep_1",
            workload.ReplicaEnded(uid="rep_1", workload="wkl_1", witness=witness(50)),
        ),
    ]
    for after, (stream, fact) in enumerate(said):
        platform.state(EXECUTOR, stream, fact, 106 + after)
    proof = workload.ProofOfLife(cluster="k" * 26)
    platform.state(EXECUTOR, "cluster/" + "k" * 26, proof, 120, project="_")
    return platform


def listed(capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    """What `events list` tells a program: the kind of each fact."""
    capsys.readouterr()
    assert run(["events", "list", *words, "-o", "json"]) == 0
    return [one["type"].rsplit(".", 1)[-1] for one in json.loads(capsys.readouterr().out)]


HISTORY = [
    "InstanceCreated",
    "InstanceAttemptDeclared",
    "WorkloadDeclared",
    "VolumeDeclared",
    "VolumeAdmitted",
    "WorkloadAdmitted",
    "WorkloadAccepted",
    "VolumeBound",
    "ReplicaScheduled",
    "ReplicaStarted",
    "ReplicaEnded",
]


def test_a_history_holds_what_became_of_workloads_replicas_and_volumes(
    ran: Platform, capsys: pytest.CaptureFixture[str]
) -> None:
    assert listed(capsys, "lab") == HISTORY
    assert listed(capsys, "lab", "--journal", EXECUTOR) == HISTORY[6:]
    assert listed(capsys, "lab", "--as-of", "1970-01-01T00:01:49Z") == HISTORY[:9]


def test_a_history_of_the_project_is_that_of_all_executors_too(
    ran: Platform, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(listed(capsys)) == len(HISTORY) + 2


def test_who_may_not_ask_for_journals_finds_the_executor_by_its_cluster(
    ran: Platform, capsys: pytest.CaptureFixture[str]
) -> None:
    ran.turns.append(refuse(code_pb2.PERMISSION_DENIED, "PLATFORM_ROLE_MISSING"))
    assert listed(capsys, "lab") == HISTORY
    assert len(ran.sent("GetCluster")) == 1


def test_journals_are_named_in_the_order_of_a_walk_also_by_a_platform_without_executor(
    ran: Platform,
) -> None:
    with fermion.Client(address=ran.address, token="jwt") as client:
        deciding = ["projects/0", "instances/0", "scheduler/0"]
        all_of_them = ["b/0", *deciding, EXECUTOR, "billing/0"]
        assert client.journals.names() == all_of_them
        ran.turns.extend(
            [
                refuse(code_pb2.PERMISSION_DENIED, "PLATFORM_ROLE_MISSING"),
                refuse(code_pb2.UNIMPLEMENTED, "UNIMPLEMENTED"),
            ]
        )
        assert client.journals.names() == [*deciding, "billing/0"]


def test_a_watch_takes_in_the_replicas_of_its_workloads_alone(ran: Platform) -> None:
    streams = history.Streams("lab", [LAB])
    assert [facts.place(fact) for fact in ran.facts if not streams.holds(fact)] == [
        f"{EXECUTOR}:3",
        f"{EXECUTOR}:5",
        f"{EXECUTOR}:8",
    ]


def test_proofs_of_life_are_shown_where_their_journal_is_named(
    ran: Platform, capsys: pytest.CaptureFixture[str]
) -> None:
    assert listed(capsys, "--platform") == []
    assert listed(capsys, "--platform", "--journal", EXECUTOR) == ["ProofOfLife"]


def test_a_table_says_how_it_ended_and_that_it_is_told_late(
    ran: Platform, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["events", "list", "lab"]) == 0
    rows = {line.split()[2]: line for line in capsys.readouterr().out.splitlines()[1:]}
    assert rows["ReplicaStarted"].endswith("run=0 web=here:1")
    assert "run=0 exit=0 at 1970-01-01" in rows["ReplicaEnded"]
    assert "wkl_1" not in rows["ReplicaEnded"]
    # In a pipe it is whole; a terminal would show the first letters of the cluster.
    assert f"  {EXECUTOR}:7  " in rows["ReplicaEnded"]


def test_where_a_signal_ended_it_no_exit_code_is_told(
    ran: Platform, capsys: pytest.CaptureFixture[str]
) -> None:
    killed = workload.ReplicaEnded(uid="rep_1", run=1, signal=9)
    ran.state(EXECUTOR, "replica/rep_1", killed, 130)
    assert run(["events", "list", "lab"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith("  run=1 signal=9")


def test_a_replica_is_called_by_whose_it_is(
    ran: Platform, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["events", "list"]) == 0
    printed = capsys.readouterr().out
    assert "rep_" not in printed
    assert [line.split()[3] for line in printed.splitlines() if "ReplicaStarted" in line] == [
        "other",
        "lab",
    ]


def test_what_is_not_known_at_first_hand_is_said_to_be_so(
    ran: Platform, capsys: pytest.CaptureFixture[str]
) -> None:
    lost = workload.ReplicaReleased(uid="rep_1")
    lost.witness.CopyFrom(witness(130, workload.EVIDENCE_CLASS_NODE_LEASE))
    ran.state(EXECUTOR, "replica/rep_1", lost, 130)
    assert run(["events", "list", "lab"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith("by NODE_LEASE")
