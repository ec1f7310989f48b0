"""Stories that a user would tell, through the command line and plain gRPC."""

from __future__ import annotations

import json
import signal
import subprocess
import uuid
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from fermion.api.instances import v1 as instances
from fermion.api.instances.v1 import service_pb2_grpc as instances_grpc
from fermion.api.projects import v1 as projects
from fermion.api.projects.v1 import service_pb2_grpc as projects_grpc
from tests.stage import FERMION, Stage, staged, until

# More GPUs than a machine of ours has: it stays in the queue, whatever the cluster does.
WAITING = ("--kind", "notebook", "--gpu", "8")


def comes_to(stage: Stage, name: str, project: str, state: str) -> None:
    """Wait until an instance is in a state."""
    until(
        15,
        lambda: stage.state(name, project) == state,
        lambda: f"{stage.state(name, project)!r}\n{stage.log()}",
    )


def waits(stage: Stage, name: str, project: str) -> bool:
    """Whether the scheduler has looked at an instance, and told why it waits."""
    found = stage.instance(name, project)["status"].get("reason", {})  # type: ignore[attr-defined]
    return bool(found.get("code") == "CAPACITY")


def test_an_instance_is_created_stopped_started_restarted_and_deleted(
    stage: Stage, project: str
) -> None:
    stage.ok("instances", "create", "lab", *WAITING, "-p", project)
    comes_to(stage, "lab", project, "STATE_PENDING PHASE_QUEUED")
    until(15, lambda: waits(stage, "lab", project), stage.log)

    stage.ok("instances", "stop", "lab", "-p", project)
    comes_to(stage, "lab", project, "STATE_STOPPED")
    stage.ok("instances", "start", "lab", "-p", project)
    comes_to(stage, "lab", project, "STATE_PENDING PHASE_QUEUED")
    assert stage.instance("lab", project)["status"]["attempt"] == 2  # type: ignore[index]
    stage.ok("instances", "restart", "lab", "-p", project)
    until(
        15,
        lambda: stage.instance("lab", project)["status"]["attempt"] == 3,  # type: ignore[index]
        stage.log,
    )

    stage.ok("instances", "delete", "lab", "-p", project)
    comes_to(stage, "lab", project, "")
    stage.ok("instances", "create", "lab", *WAITING, "-p", project)


def test_a_project_is_used_the_moment_after_it_was_created(stage: Stage) -> None:
    for _ in range(5):
        name = f"p{uuid.uuid4().hex[:10]}"
        stage.ok("projects", "create", name)
        stage.ok("instances", "create", "at-once", *WAITING, "-p", name)


def test_an_archived_project_stops_what_lives_and_can_then_be_deleted(
    stage: Stage, project: str
) -> None:
    stage.ok("instances", "create", "one", *WAITING, "-p", project)
    stage.ok("instances", "create", "two", *WAITING, "-p", project)
    refused = stage.cli("projects", "delete", project)
    assert (refused.code, "PROJECT_NOT_ARCHIVED" in refused.err) == (5, True)

    stage.ok("projects", "archive", project)
    comes_to(stage, "one", project, "STATE_STOPPED")
    late = stage.cli("instances", "create", "late", *WAITING, "-p", project)
    assert late.code == 5, late
    until(15, lambda: stage.cli("projects", "delete", project).code == 0, stage.log)
    gone = stage.cli("projects", "get", project)
    assert gone.code == 3
    again = stage.cli("projects", "create", project)
    assert (again.code, "PROJECT_EXISTS" in again.err) == (5, True)


def test_an_admin_sets_limits_and_their_holders_see_them(stage: Stage, project: str) -> None:
    user = f"u{uuid.uuid4().hex[:8]}"
    stage.ok("users", "create", user)
    issued = stage.ok("tokens", "create", user, "-o", "json").json()
    assert isinstance(issued, dict)
    as_user = {"FERMION_ADDRESS": stage.address, "FERMION_TOKEN": str(issued["signed_token"])}

    def limits(*words: str) -> object:
        found = stage.cli("quotas", "get", *words, "-o", "json", environment=as_user)
        return (found.json() if found.code == 0 else {}).get("limits")  # type: ignore[attr-defined]

    stage.ok("quotas", "set", "-p", project, "--gpu", "*=8", "--cpu", "64", "--instances", "3")
    stage.ok("quotas", "set", "-p", project, "--gpu", "A100=4", "--cpu", "none")
    bounds = {"gpu_milli": {"*": "8000", "A100": "4000"}, "workloads": {"instance": "3"}}
    stage.ok("quotas", "set", "--user", user, "--memory", "64GiB")
    until(10, lambda: limits("--user", user) == {"memory_bytes": str(64 * 2**30)}, stage.log)
    assert limits("-p", project) is None
    stage.ok("members", "set", user, "viewer", "-p", project)
    until(10, lambda: limits("-p", project) == bounds, stage.log)
    denied = stage.cli("quotas", "set", "-p", project, "--gpu", "*=9", environment=as_user)
    assert (denied.code, "PLATFORM_ROLE_MISSING" in denied.err) == (4, True)

    stage.ok("quotas", "clear", "-p", project)
    until(10, lambda: limits("-p", project) == {}, stage.log)


def test_a_role_decides_what_its_holder_may_do(stage: Stage, project: str) -> None:
    user = f"u{uuid.uuid4().hex[:8]}"
    stage.ok("users", "create", user, "--display-name", "Grace")
    issued = stage.ok("tokens", "create", user, "-o", "json").json()
    assert isinstance(issued, dict)
    as_user = {"FERMION_ADDRESS": stage.address, "FERMION_TOKEN": str(issued["signed_token"])}

    foreign = stage.cli("instances", "list", "-p", project, environment=as_user)
    assert (foreign.code, "PROJECT_ROLE_MISSING" in foreign.err) == (4, True)
    stage.ok("members", "set", user, "viewer", "-p", project)

    def may(*words: str) -> bool:
        return stage.cli(*words, "-p", project, environment=as_user).code == 0

    until(10, lambda: may("instances", "list"), stage.log)
    assert not may("instances", "create", "x", *WAITING)
    stage.ok("members", "set", user, "editor", "-p", project)
    until(10, lambda: may("instances", "create", "x", *WAITING), stage.log)
    denied = stage.cli("members", "set", user, "admin", "-p", project, environment=as_user)
    assert denied.code == 4

    stage.ok("tokens", "revoke", str(issued["token"]["uid"]), user)
    until(
        10,
        lambda: (
            "TOKEN_REVOKED"
            in stage.cli("instances", "list", "-p", project, environment=as_user).err
        ),
        stage.log,
    )


def test_the_last_admin_of_a_project_stays(stage: Stage, project: str) -> None:
    refused = stage.cli("members", "remove", "admin", "-p", project)
    assert (refused.code, "LAST_ADMIN" in refused.err) == (5, True)
    refused = stage.cli("members", "set", "admin", "viewer", "-p", project)
    assert (refused.code, "LAST_ADMIN" in refused.err) == (5, True)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("instances", "create", "x", "--kind", "notebook", "--gpu", "9"), 2, "gpu_milli"),
        (("instances", "create", "x", "--kind", "notebook", "--cpu", "many"), 2, "--cpu"),
        (("instances", "create", "x", "--kind", "notebook", "--memory", "5 apples"), 2, "16GiB"),
        (("instances", "create", "Not_A_Label", "--kind", "notebook"), 2, "instance_id"),
        (("instances", "create", "x", "--kind", "laptop"), 2, "notebook"),
        (("instances", "create", "x"), 2, "--kind"),
        (("instances", "create", "x", "--kind", "custom", "--env", "API_TOKEN=1"), 2, "plain-env"),
        (("instances", "get", "nobody"), 3, "nobody"),
        (("instances", "list", "--filter", "colour=red"), 2, "filter"),
        (("instances", "lst"), 2, "list"),
        (
            ("instances", "create", "x", "--kind", "notebook", "--template", "notebok"),
            2,
            "notebook?",
        ),
        (("instances", "list", "--timeout", "-1"), 2, "--timeout"),
        (("events", "list", "--journal", "foo/0"), 3, "JOURNAL_NOT_HERE"),
        (("users", "get", "users/nobody"), 3, "no user 'nobody'"),
        (("instnces", "list"), 2, "instances"),
    ],
)
def test_a_wrong_input_is_answered_with_what_is_wrong_and_never_a_traceback(
    stage: Stage, project: str, words: tuple[str, ...], code: int, said: str
) -> None:
    answer = stage.cli(*words, "-p", project)
    assert answer.code == code, answer
    assert said in answer.err
    assert "Traceback" not in answer.err + answer.out


def test_a_server_that_is_not_there_is_named_with_what_to_do(stage: Stage) -> None:
    away = {"FERMION_ADDRESS": "127.0.0.1:1", "FERMION_TOKEN": "none"}
    answer = stage.cli("instances", "list", "-p", "x", "--timeout", "2", environment=away)
    assert answer.code == 6
    assert "127.0.0.1:1" in answer.err
    assert "fermion up" in answer.err


def test_output_is_for_people_and_for_programs(stage: Stage, project: str) -> None:
    stage.ok("instances", "create", "out", *WAITING, "-p", project)
    asked = ("instances", "list", "-p", project, "-o")
    assert stage.ok(*asked, "name").out == f"projects/{project}/instances/out\n"
    listed = stage.ok(*asked, "json").json()
    assert isinstance(listed, list)
    assert listed[0]["name"] == f"projects/{project}/instances/out"
    assert "name: projects/" in stage.ok(*asked, "yaml").out
    assert "NAME" in stage.ok(*asked, "table").out


def test_a_dry_run_shows_the_plan_and_changes_nothing(stage: Stage, project: str) -> None:
    plan = stage.ok("instances", "create", "dry", *WAITING, "--dry-run", "-p", project)
    assert "jupyterlab" in plan.out
    assert "price" in plan.out
    assert stage.ok("instances", "list", "-p", project, "-o", "json").json() == []


def test_the_past_of_an_instance_can_be_asked_for(stage: Stage, project: str) -> None:
    stage.ok("instances", "create", "past", *WAITING, "-p", project)
    comes_to(stage, "past", project, "STATE_PENDING PHASE_QUEUED")
    before = stage.instance("past", project)["update_time"]
    stage.ok("instances", "stop", "past", "-p", project)
    comes_to(stage, "past", project, "STATE_STOPPED")
    then = stage.ok(
        "instances", "get", "past", "--as-of", str(before), "-p", project, "-o", "json"
    ).json()
    assert isinstance(then, dict)
    assert then["status"]["state"] == "STATE_PENDING"
    history = stage.ok("events", "list", "past", "-p", project).out
    order = ["InstanceCreated", "WorkloadDeclared", "WorkloadQueued", "WorkloadWithdrawn"]
    assert [history.find(word) for word in order] == sorted(history.find(word) for word in order)
    assert "service:scheduler" in history
    nowhere = stage.cli("events", "list", "past", "-p", project, "--journal", "foo/0")
    assert (nowhere.code, "JOURNAL_NOT_HERE" in nowhere.err) == (3, True)


def test_the_past_of_a_deleted_instance_can_be_asked_for_also_when_its_name_is_used_again(
    stage: Stage, project: str
) -> None:
    stage.ok("instances", "create", "ga", *WAITING, "-p", project)
    comes_to(stage, "ga", project, "STATE_PENDING PHASE_QUEUED")
    first = stage.instance("ga", project)
    uid, then = str(first["uid"]), str(first["update_time"])
    stage.ok("instances", "delete", "ga", "-p", project)
    comes_to(stage, "ga", project, "")

    def facts(*words: str) -> list[str]:
        listed = stage.ok("events", "list", *words, "-p", project, "-o", "json").json()
        assert isinstance(listed, list)
        return [str(fact["type"]).rsplit(".", 1)[-1] for fact in listed]

    gone = facts("ga")
    assert (gone[0], gone[-1]) == ("InstanceCreated", "InstanceDeleted")
    assert facts(uid) == gone
    stage.ok("instances", "create", "ga", *WAITING, "-p", project)
    comes_to(stage, "ga", project, "STATE_PENDING PHASE_QUEUED")
    assert "InstanceDeleted" not in facts("ga")
    assert facts("ga", "--all") == gone + facts("ga")
    assert facts(uid) == gone
    before = facts("ga", "--as-of", then)
    assert before == gone[: len(before)]
    assert "WorkloadQueued" in before
    shown = stage.ok("instances", "get", "ga", "--as-of", then, "-p", project, "-o", "json").json()
    assert isinstance(shown, dict)
    assert shown["uid"] == uid


def test_facts_of_no_project_are_shown_to_platform_admins(stage: Stage) -> None:
    user = f"u{uuid.uuid4().hex[:8]}"
    stage.ok("users", "create", user)
    listed = stage.ok("events", "list", "--platform").out
    for fact in ("SigningKeyAdded", "UserRegistered", "PlatformRoleSet", "TemplateSet"):
        assert fact in listed
    assert f"user={user}" in listed
    issued = stage.ok("tokens", "create", user, "-o", "json").json()
    assert isinstance(issued, dict)
    as_user = {"FERMION_ADDRESS": stage.address, "FERMION_TOKEN": str(issued["signed_token"])}
    assert stage.cli("events", "list", "--platform", environment=as_user).code == 4


def test_a_watcher_sees_every_change_once_and_resumes_where_it_ended(
    stage: Stage, project: str
) -> None:
    metadata = (("authorization", f"Bearer {stage.token}"),)
    with grpc.insecure_channel(stage.address) as channel:
        stub = instances_grpc.InstanceServiceStub(channel)
        asked = instances.WatchInstancesRequest(parent=f"projects/{project}", send_initial=True)
        first = stub.WatchInstances(asked, metadata=metadata)
        assert next(first).change == instances.WatchInstancesResponse.CHANGE_BOOKMARK
        stage.ok("instances", "create", "seen", *WAITING, "-p", project)
        change = next(first)
        assert change.instance.name.endswith("/seen")
        token = change.resume_token
        first.cancel()

        stage.ok("instances", "update", "seen", "--label", "team=vision", "-p", project)
        asked.resume_token = token
        again = stub.WatchInstances(asked, metadata=metadata)
        while True:
            change = next(again)
            assert change.resume_token not in ("", token)
            if change.instance.labels.get("team") == "vision":
                break
        again.cancel()


def test_ctrl_c_detaches_a_watch_quietly(stage: Stage, project: str) -> None:
    watching = subprocess.Popen(
        [FERMION, "instances", "watch", "-p", project, "-o", "json"],
        env=stage.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert watching.stdout is not None
    stage.ok("instances", "create", "watched", *WAITING, "-p", project)
    line = json.loads(watching.stdout.readline())
    assert line["name"].endswith("/watched")
    watching.send_signal(signal.SIGINT)
    _, err = watching.communicate(timeout=20)
    assert (watching.returncode, err) == (130, "")


def test_the_same_request_is_answered_alike_and_another_body_is_refused(
    stage: Stage, project: str
) -> None:
    metadata = (("authorization", f"Bearer {stage.token}"),)
    with grpc.insecure_channel(stage.address) as channel:
        stub = projects_grpc.UserServiceStub(channel)
        user = f"u{uuid.uuid4().hex[:8]}"
        stub.CreateUser(projects.CreateUserRequest(user_id=user), metadata=metadata)
        asked = projects.CreateTokenRequest(
            parent=f"users/{user}", description="twice", request_id=str(uuid.uuid4())
        )
        tokens = {stub.CreateToken(asked, metadata=metadata).signed_token for _ in range(2)}
        assert len(tokens) == 1
        asked.description = "thrice"
        with pytest.raises(grpc.RpcError) as refused:
            stub.CreateToken(asked, metadata=metadata)
        assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT  # type: ignore[attr-defined]


def test_every_equality_of_the_audit_holds_after_all_this(stage: Stage) -> None:
    stage.audit()
    for journal in ("projects/0", "instances/0", "scheduler/0"):
        stage.ok("journal", "rebuild", journal)
    stage.audit()
    assert stage.ok("doctor").out.count("ok ") > 10


def test_a_second_start_on_the_same_folder_is_refused_with_who_holds_it(stage: Stage) -> None:
    refused = stage.cli("up")
    assert refused.code == 1
    assert stage.process is not None
    assert str(stage.process.pid) in refused.out
    assert "fermion down" in refused.out


def test_state_survives_a_stop_and_a_start(tmp_path: Path) -> None:
    with staged(tmp_path / "home") as stage:
        stage.ok("projects", "create", "kept")
        stage.ok("instances", "create", "lab", *WAITING, "-p", "kept")
        stage.ok("down")
        stage.down()
        stage.up()
        assert stage.state("lab", "kept").startswith("STATE_PENDING")


def test_two_processes_of_each_service_do_no_work_twice(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    with staged(tmp_path / "home", "--split", "--replicas", "2") as stage:
        stage.ok("projects", "create", "twice")
        for number in range(10):
            stage.ok("instances", "create", f"i{number}", *WAITING, "-p", "twice")
        for number in range(10):
            until(15, lambda name=f"i{number}": waits(stage, name, "twice"), stage.log)
        history = stage.ok("events", "list", "-p", "twice", "-o", "json").json()
        assert isinstance(history, list)
        types = [str(fact["type"]).rsplit(".", 1)[-1] for fact in history]
        record_property("facts", len(types))
        for kind in ("InstanceCreated", "WorkloadDeclared"):
            assert types.count(kind) == 10, kind
        # Once that it has arrived, and once why it waits.
        for kind in ("WorkloadQueued", "InstanceQueued"):
            assert types.count(kind) == 20, kind
        stage.audit()


def test_where_one_process_says_nothing_or_is_killed_the_other_one_answers(
    tmp_path: Path,
) -> None:
    with staged(tmp_path / "home", "--replicas", "2") as stage:
        stage.ok("projects", "create", "either")
        first = stage.answering(stage.address)
        first.suspend()
        try:
            stage.ok("instances", "create", "one", *WAITING, "-p", "either")
            comes_to(stage, "one", "either", "STATE_PENDING PHASE_QUEUED")
            # Figures of all journals come from whoever answers, not from who copies them.
            assert stage.cli("status").code == 0
        finally:
            first.resume()
        first.kill()
        stage.ok("instances", "create", "two", *WAITING, "-p", "either")
        comes_to(stage, "two", "either", "STATE_PENDING PHASE_QUEUED")
        stage.audit()


def test_nothing_is_created_in_a_project_that_is_not_there(stage: Stage) -> None:
    refused = stage.cli("instances", "create", "ghost", *WAITING, "-p", "nosuch")
    assert (refused.code, "PROJECT_NOT_FOUND" in refused.err) == (3, True), refused
