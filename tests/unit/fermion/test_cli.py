"""Commands as people and programs run them, against a platform of a few lines."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import yaml
from google.rpc import code_pb2

from fermion.api.instances import v1 as api
from fermion.api.journal import v1 as journal
from fermion.api.workload import v1 as workload
from fermion.cli import COMMANDS, overview, run
from fermion.cli.app import app, prepared
from fermion.context import Contexts
from tests.unit.fermion.platform import Platform, refuse

LAB = "projects/acme/instances/lab"


@pytest.fixture
def lab(platform: Platform, tmp_path: Path) -> Platform:
    """A platform that the current context is about, with one instance."""
    token = tmp_path / "jwt"
    token.write_text("jwt")
    Contexts().set("local", address=platform.address, token_file=str(token), project="acme")
    platform.instances[LAB] = api.Instance(
        name=LAB,
        uid="inst_1",
        labels={"team": "vision", "a": "b"},
        spec=api.Spec(
            kind=api.KIND_NOTEBOOK,
            resources=api.Resources(gpu_milli=500, cpu_milli=4000, memory_bytes=16 * 2**30),
        ),
        status=api.Status(
            state=api.STATE_PENDING,
            phase=api.PHASE_QUEUED,
            reason=workload.Reason(code="NO_CLUSTER", message="No cluster is enrolled."),
            attempt=1,
        ),
    )
    return platform


def told(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().out


def test_the_overview_names_every_command_and_every_exit_code() -> None:
    text = overview()
    assert all(f"  {name} " in text for name, _, _ in COMMANDS)
    assert all(f"{code} " in text for code in (*range(8), 130))


@pytest.mark.parametrize("name", [name for name, _, _ in COMMANDS])
def test_every_command_is_there_and_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert app([name, "--help"], exit_on_error=False, result_action="return_value") is None
    assert name in told(capsys)


def test_a_list_is_a_table_that_says_why(lab: Platform, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["instances", "list"]) == 0
    head, row = told(capsys).splitlines()
    assert head.split() == ["NAME", "KIND", "STATE", "WHY", "GPU", "CPU", "MEMORY", "AGE"]
    assert row.startswith(
        "lab   notebook  PENDING  queued: no cluster is enrolled  0.5  4    16 GiB"
    )


def test_wide_shows_more(lab: Platform, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["instances", "list", "-o", "wide"]) == 0
    assert "a=b,team=vision" in told(capsys)


def test_json_is_the_message_and_nothing_else(
    lab: Platform, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["instances", "get", "lab", "-o", "json"]) == 0
    text = told(capsys)
    found = json.loads(text)
    assert found["name"] == LAB
    assert found["status"]["state"] == "STATE_PENDING"
    assert text.index('"a"') < text.index('"team"')
    assert run(["instances", "list", "-o", "json"]) == 0
    assert json.loads(told(capsys)) == [found]


def test_yaml_says_the_same(lab: Platform, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["instances", "get", "lab", "-o", "json"]) == 0
    as_json = json.loads(told(capsys))
    assert run(["instances", "get", "lab", "-o", "yaml"]) == 0
    assert yaml.safe_load(told(capsys)) == as_json


def test_name_prints_names(lab: Platform, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["instances", "list", "-o", "name"]) == 0
    assert told(capsys) == f"{LAB}\n"


def test_an_empty_list_leaves_stdout_to_programs(
    lab: Platform, capsys: pytest.CaptureFixture[str]
) -> None:
    lab.instances.clear()
    assert run(["instances", "list"]) == 0
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "fermion instances create" in printed.err
    assert run(["instances", "list", "-o", "json"]) == 0
    assert json.loads(told(capsys)) == []


def test_a_full_name_needs_no_project(lab: Platform, capsys: pytest.CaptureFixture[str]) -> None:
    other = "projects/other/instances/dev-1"
    lab.instances[other] = api.Instance(name=other)
    assert run(["instances", "get", other, "-o", "name"]) == 0
    assert told(capsys) == f"{other}\n"


def test_what_stands_behind_two_dashes_is_the_start_command(lab: Platform) -> None:
    words = ["instances", "create", "own", "--kind", "custom", "--image", "x"]
    assert run([*words, "--", "python", "-m", "x", "--debug", "-o", "", "--"]) == 0
    sent = lab.sent("CreateInstance")[0].request
    assert isinstance(sent, api.CreateInstanceRequest)
    assert list(sent.instance.spec.command) == ["python", "-m", "x", "--debug", "-o", "", "--"]


def test_debug_is_ours_only_before_two_dashes() -> None:
    assert prepared(["--debug", "whoami"]) == (True, ["whoami"])
    assert prepared(["instances", "create", "a", "--", "b", "--debug"]) == (
        False,
        ["instances", "create", "a", "--command=b", "--command=--debug"],
    )
    assert prepared(["whoami", "--", "b"]) == (False, ["whoami", "--", "b"])


def test_a_word_too_many_is_no_start_command(
    lab: Platform, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["instances", "create", "own", "sleep", "60", "--kind", "custom"]) == 2
    assert "-- sleep 60" in capsys.readouterr().err
    assert not lab.sent("CreateInstance")


@pytest.mark.parametrize(
    "words", [["instances", "get", "\udcff"], ["instances", "create", "own", "--", "\udcff"]]
)
def test_a_word_that_is_no_text_is_refused_before_anything_is_sent(
    lab: Platform, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(words) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: '\\udcff' is no text.\n  \\udcff: must be valid UTF-8\n")
    assert not lab.sent("CreateInstance")


def test_a_dry_run_shows_the_plan_and_says_so_to_the_platform(
    lab: Platform, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["instances", "create", "own", "--kind", "notebook", "--dry-run"]) == 0
    assert "would be created" in told(capsys)
    sent = lab.sent("CreateInstance")[0].request
    assert isinstance(sent, api.CreateInstanceRequest)
    assert sent.validate_only


def test_a_dry_run_tells_the_price_and_the_place_in_the_queue(
    lab: Platform, capsys: pytest.CaptureFixture[str]
) -> None:
    lab.plan.price.CopyFrom(
        api.Plan.Price(
            currency="USD",
            rate_nanos=2_540_000_000,
            worst_nanos=20_320_000_001,
            price_version="2026-01",
        )
    )
    lab.plan.queue.SetInParent()
    dry = ["instances", "create", "own", "--kind", "notebook", "--max-cost", "2.50", "--dry-run"]
    assert run(dry) == 0
    shown = told(capsys)
    assert (
        "2.54 USD an hour, 0.00 USD an hour while stopped, at most 20.32 USD an attempt "
        "(prices 2026-01)"
    ) in shown
    assert "would start at once" in shown
    sent = lab.sent("CreateInstance")[0].request
    assert isinstance(sent, api.CreateInstanceRequest)
    assert sent.instance.spec.max_cost.nanos == 2_500_000_000
    lab.plan.queue.place, lab.plan.queue.waiting = 2, 3
    lab.plan.queue.workload.reason.code = "NO_CLUSTER"
    assert run(dry) == 0
    assert "would wait, at place 2 of 3: no cluster is enrolled" in told(capsys)


def test_a_file_may_come_by_stdin_and_bring_the_name(
    lab: Platform, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "name: projects/acme/instances/own\nspec: {kind: KIND_CUSTOM, image: host}\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    assert run(["instances", "create", "-f", "-", "--image", "other", "-o", "name"]) == 0
    assert told(capsys) == "projects/acme/instances/own\n"
    sent = lab.sent("CreateInstance")[0].request
    assert isinstance(sent, api.CreateInstanceRequest)
    assert (sent.instance.spec.kind, sent.instance.spec.image) == (api.KIND_CUSTOM, "other")


def test_the_next_command_reads_what_this_one_wrote(lab: Platform) -> None:
    assert run(["instances", "create", "own", "--kind", "notebook"]) == 0
    assert run(["instances", "list"]) == 0
    assert lab.sent("ListInstances")[0].metadata["fermion-after"] == "instances/0=3"


def test_a_name_that_is_nearly_right_is_recognised(
    lab: Platform, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["instances", "get", "lap"]) == 3
    assert "Did you mean lab?" in capsys.readouterr().err


def test_a_command_that_is_nearly_right_is_recognised(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["instnces", "list"]) == 2
    assert "instances" in capsys.readouterr().err
    assert run(["instances", "lst"]) == 2
    assert 'Did you mean "list"?' in capsys.readouterr().err


def test_a_missing_project_says_how_to_say_one(
    lab: Platform, capsys: pytest.CaptureFixture[str]
) -> None:
    contexts = Contexts()
    contexts.known["local"].pop("project")
    contexts.save()
    assert run(["instances", "list"]) == 2
    assert "fermion projects use PROJECT" in capsys.readouterr().err


def test_a_server_that_is_not_there_is_named_with_what_to_do(
    platform: Platform, capsys: pytest.CaptureFixture[str]
) -> None:
    Contexts().set("local", address="127.0.0.1:1", project="acme")
    assert run(["instances", "list"]) == 6
    printed = capsys.readouterr().err
    assert "Nothing answers at 127.0.0.1:1." in printed
    assert "fermion up" in printed
    assert "Traceback" not in printed


def test_a_traceback_is_shown_only_when_it_is_asked_for(
    lab: Platform, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["instances", "get", "lap"]) == 3
    assert "Traceback" not in capsys.readouterr().err
    assert run(["instances", "get", "lap", "--debug"]) == 3
    assert "Traceback" in capsys.readouterr().err


def test_waiting_for_a_workload_that_fails_exits_with_seven(
    lab: Platform, capsys: pytest.CaptureFixture[str]
) -> None:
    failed = api.Instance(name=f"{LAB}-2", status=api.Status(state=api.STATE_FAILED))
    lab.watches.append([api.WatchInstancesResponse(change=2, instance=failed)])
    words = ["instances", "create", "lab-2", "--kind", "notebook", "--wait", "running"]
    assert run(words) == 7
    assert "failed" in capsys.readouterr().err


def test_one_that_crashes_shows_why_how_often_and_where_it_was(
    lab: Platform, capsys: pytest.CaptureFixture[str]
) -> None:
    status = lab.instances[LAB].status
    status.state, status.phase = api.STATE_STARTING, api.PHASE_BACKOFF
    status.reason.code = "BACKOFF"
    status.reason.message = "It is run again in 40 s."
    status.exit_code, status.restarts = 0, 3
    status.addresses["jupyter"] = "127.0.0.1:20000"
    assert run(["instances", "get", "lab"]) == 0
    first, *details = told(capsys).splitlines()
    assert first == "lab  STARTING  backoff: it is run again in 40 s"
    shown = dict(line.strip().split(None, 1) for line in details if line.split()[0] != "at")
    assert shown["restarts"] == "3"
    assert shown["exit"] == "code     0"
    assert "  at jupyter    127.0.0.1:20000" in details


def test_a_watch_in_a_pipe_is_a_row_a_change(
    lab: Platform, capsys: pytest.CaptureFixture[str]
) -> None:
    lab.watches.append(
        [
            api.WatchInstancesResponse(change=1, instance=lab.instances[LAB]),
            api.WatchInstancesResponse(change=4, resume_token="t"),
            api.WatchInstancesResponse(change=3, instance=api.Instance(name=LAB)),
        ]
    )
    lab.watches.append([])
    # The stream that goes on is refused, so that the command ends.
    lab.turns.extend([lambda _: None, refuse(code_pb2.OUT_OF_RANGE, "RESUME_TOKEN_EXPIRED")])
    assert run(["instances", "watch"]) == 5
    first, second = told(capsys).splitlines()
    assert first.startswith("initial   lab  notebook  PENDING  queued: no cluster is enrolled")
    assert second == "deleted   lab"


def test_status_shows_how_far_readers_are(
    lab: Platform, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["status"]) == 0
    printed = told(capsys)
    assert f"answers at {lab.address}" in printed
    row = next(line for line in printed.splitlines() if line.startswith("a/b"))
    assert row.split() == ["a/b", "b/0", "2", "-", "0", "ok"]


def test_status_tells_in_words_what_operators_watch(
    lab: Platform, capsys: pytest.CaptureFixture[str]
) -> None:
    def show(name: str, value_milli: int, **labels: str) -> None:
        lab.figures.append(
            journal.Figure(name=f"fermion_{name}", labels=labels, value_milli=value_milli)
        )

    show("reader_lag_seconds", 12_345, reader="a/b", journal="b/0")
    show("scheduler_queued_workloads", 2_000, reason="CAPACITY")
    show("scheduler_queued_seconds", 95_500, reason="CAPACITY")
    show("scheduler_queued_workloads", 0, reason="QUOTA")
    show("scheduler_held_gpus", 1_500, cluster="k", gpu_type="A100")
    show("scheduler_capacity_gpus", 8_000, cluster="k", gpu_type="A100")
    show("scheduler_held_memory_bytes", 2**30 * 1000, cluster="k")
    show("scheduler_capacity_memory_bytes", 2**34 * 1000, cluster="k")
    show("executor_replicas", 3_000, cluster="k", state="running")
    show("executor_replicas", 0, cluster="k", state="lost")
    show("executor_held_records", 1_000, cluster="k")
    show("billing_settled_age_seconds", 4_200, cluster="k")
    show("billing_open_intervals", 3_000, cluster="k", state="running")
    show("billing_disputed_streams", 1_000)
    assert run(["status"]) == 0
    rows = [" ".join(line.split()) for line in told(capsys).splitlines()]
    assert "a/b b/0 2 12s 0 ok" in rows
    assert rows[-4:] == [
        "queue waiting, and how long the first has: 2 CAPACITY (95 s)",
        "held 1.5 of 8 GPUs, 1 GiB of 16 GiB memory",
        "replicas 3 running, 1 ended and still held",
        "bill settled up to 4 s ago, 3 intervals open, 1 disputed",
    ]
    assert run(["status", "-o", "json"]) == 0
    figures = json.loads(told(capsys))["figures"]
    assert figures[0] == {
        "name": "fermion_reader_lag_seconds",
        "labels": {"journal": "b/0", "reader": "a/b"},
        "value_milli": "12345",
    }


def test_contexts_are_set_used_and_deleted(
    platform: Platform, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["contexts", "set", "prod"]) == 2
    assert run(["contexts", "set", "prod", "--address", "nowhere"]) == 2
    assert run(["contexts", "set", "prod", "--address", "prod:1", "-p", "acme"]) == 0
    assert run(["contexts", "use", "prd"]) == 3
    assert run(["contexts", "use", "prod"]) == 0
    capsys.readouterr()
    assert run(["contexts", "list", "-o", "json"]) == 0
    shown = {one["name"]: one["current"] for one in json.loads(told(capsys))}
    assert shown == {"local": False, "prod": True}
    assert run(["contexts", "delete", "prod"]) == 0
    assert Contexts().current == "local"


def sent(platform: Platform, method: str, field: str) -> str:
    """What one field of the only call of a method said."""
    (call,) = platform.sent(method)
    return str(getattr(call.request, field))


@pytest.mark.parametrize("seconds", ["-1", "0", "0.0001", "1e9", "nan", "inf"])
def test_a_timeout_that_is_none_is_refused_before_anything_is_called(
    lab: Platform, capsys: pytest.CaptureFixture[str], seconds: str
) -> None:
    assert run(["instances", "list", "--timeout", seconds]) == 2
    assert "--timeout" in capsys.readouterr().err
    assert not lab.calls


@pytest.mark.parametrize(
    "words", [["tok_1", "ana"], ["users/ana/tokens/tok_1"], ["tok_1", "users/ana"]], ids=" ".join
)
def test_a_token_is_named_by_its_uid_or_in_full(lab: Platform, words: list[str]) -> None:
    assert run(["tokens", "revoke", *words]) == 0
    assert sent(lab, "RevokeToken", "name") == "users/ana/tokens/tok_1"


def test_a_token_that_is_of_somebody_else_or_none_is_refused(
    lab: Platform, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["tokens", "revoke", "users/ana/tokens/tok_1", "bob"]) == 2
    assert run(["tokens", "revoke", "ana/tok_1"]) == 2
    assert "users/ana/tokens/tok_" in capsys.readouterr().err
    assert not lab.calls


def test_what_is_changed_or_deleted_may_be_held_to_what_was_seen(lab: Platform) -> None:
    assert run(["instances", "delete", "lab", "--etag", "7"]) == 0
    assert sent(lab, "DeleteInstance", "etag") == "7"
    assert run(["users", "update", "users/ana", "--email", "a@b.c", "--etag", "3"]) == 0
    assert sent(lab, "UpdateUser", "etag") == "3"
    assert sent(lab, "UpdateUser", "user").startswith('name: "users/ana"')


def test_a_template_that_is_nearly_right_is_recognised(
    lab: Platform, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["instances", "create", "own", "--kind", "notebook", "--template", "notebok"]
    assert run(words) == 2
    assert "Did you mean notebook?" in capsys.readouterr().err


def test_an_audit_by_name_prints_what_does_not_hold_and_nothing_else(
    lab: Platform, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["audit", "instances/0", "-o", "name"]) == 1
    assert told(capsys) == "a/0: read\n"
    assert sent(lab, "AuditJournal", "journal") == "instances/0"
    assert run(["audit"]) == 1
    assert told(capsys).splitlines() == [
        "BROKEN  a/0: read: 1 and 2",
        "1 of 2 equalities hold.",
    ]


@pytest.mark.parametrize(
    "words", [["--port", "99999999"], ["--port", "0"], ["--replicas", "0"]], ids=" ".join
)
def test_a_start_that_cannot_be_is_refused_by_option_and_rule(
    capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    assert run(["up", *words]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"error: {words[0]} is {words[1]}: it must be ")
    assert "what to do:" in printed


def test_a_token_file_is_there_when_it_is_set_and_named_when_it_is_gone(
    lab: Platform, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    away, empty = tmp_path / "away", tmp_path / "empty"
    empty.touch()
    for file, said in ((away, "No such file"), (empty, "holds no token")):
        assert run(["contexts", "set", "local", "--token-file", str(file)]) == 2
        assert said in capsys.readouterr().err
        assert run(["instances", "list"]) == 0
    capsys.readouterr()
    (tmp_path / "jwt").unlink()
    assert run(["instances", "list"]) == 4
    printed = capsys.readouterr().err
    assert str(tmp_path / "jwt") in printed
    assert "fermion contexts set local --token-file FILE" in printed


def test_the_version_is_told_to_programs(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["version", "-o", "json"]) == 0
    assert set(json.loads(told(capsys))) == {"fermion", "python", "grpcio", "protobuf"}


def test_the_shell_is_offered_living_names(
    lab: Platform, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["__complete", "instances", "get", ""]) == 0
    assert "lab" in told(capsys).splitlines()
