"""What runs, as people and programs look into it."""

from __future__ import annotations

import base64
import json
import signal
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import psutil
import pytest
from google.rpc import code_pb2

from fermion.api.executor import v1 as api
from fermion.api.instances import v1 as instances
from fermion.api.workload import v1 as workload
from fermion.cli import run, top
from fermion.context import Contexts
from tests.unit.fermion.keyboard import FERMION, Typed, resize
from tests.unit.fermion.platform import Platform, refuse

LAB = "projects/acme/instances/lab"
FIRST, SECOND = "rep_first" + "a" * 21, "rep_second" + "b" * 20
NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)
CTRL_C = b"\x03"
OUT, ERR = api.LogChunk.STREAM_STDOUT, api.LogChunk.STREAM_STDERR


@pytest.fixture
def lab(platform: Platform, tmp_path: Path) -> Platform:
    """A platform with an instance that runs for the second time; the first attempt was killed."""
    token = tmp_path / "jwt"
    token.write_text("jwt")
    Contexts().set("local", address=platform.address, token_file=str(token), project="acme")
    running = instances.Status(state=instances.STATE_RUNNING)
    platform.instances[LAB] = instances.Instance(name=LAB, uid="inst_1", status=running)
    sku = workload.Sku(cpu_milli=4000, memory_bytes=16 * 2**30, gpu_milli=1000, gpu_type="A100")
    platform.running.replicas[LAB] = [
        api.Replica(
            uid=SECOND,
            owner=LAB,
            attempt=2,
            state=api.REPLICA_STATE_RUNNING,
            ready=True,
            node="here",
            run=1,
            exit_code=3,
            addresses={"web": "127.0.0.1:20001"},
            sku=sku,
        ),
        api.Replica(
            uid=FIRST,
            owner=LAB,
            attempt=1,
            state=api.REPLICA_STATE_ENDED,
            reason=workload.Reason(code="OOM", message="It used more memory than it has."),
            node="here",
            exit_code=0,
            signal=signal.SIGKILL,
            sku=sku,
        ),
    ]
    return platform


def answer(
    token: str, *chunks: tuple[bytes, api.LogChunk.Stream.ValueType]
) -> api.StreamLogsResponse:
    found = api.StreamLogsResponse(resume_token=token)
    for data, stream in chunks:
        chunk = found.chunks.add(data=data, stream=stream, replica_uid=SECOND)
        chunk.time.FromDatetime(NOON)
    return found


def asked(platform: Platform) -> api.StreamLogsRequest:
    """What was asked of the logs last."""
    request = platform.sent("StreamLogs")[-1].request
    assert isinstance(request, api.StreamLogsRequest)
    return request


def test_output_is_printed_as_output_and_errors_as_errors_byte_by_byte(
    lab: Platform, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    lab.running.logs.append([answer("a", (b"one\n\xff", OUT), (b"oops\n", ERR))])
    lab.running.logs.append([answer("b", (b"two", OUT))])
    assert run(["instances", "logs", "lab"]) == 0
    printed = capfdbinary.readouterr()
    assert printed.out == b"one\n\xfftwo"
    assert printed.err == b"oops\n"
    assert [getattr(call.request, "resume_token", "") for call in lab.sent("StreamLogs")] == [
        "",
        "a",
    ]


def test_what_is_asked_of_the_logs_is_said_to_the_platform(lab: Platform) -> None:
    lab.running.logs.append([])
    words = ["--since", "2026-11-24T12:00:00Z", "--tail", "5", "--previous", "--attempt", "1"]
    assert run(["instances", "logs", "lab", "-f", *words]) == 0
    request = asked(lab)
    assert (request.owner, request.follow, request.previous) == (LAB, True, True)
    assert request.since_time.ToDatetime(tzinfo=UTC) == NOON
    assert (request.tail_lines, request.replica.attempt) == (5, 1)


def test_a_replica_may_be_named_by_how_its_uid_begins(
    lab: Platform, capsys: pytest.CaptureFixture[str]
) -> None:
    lab.running.logs.extend([[], []])
    assert run(["instances", "logs", "lab", "--replica", FIRST[:9]]) == 0
    assert asked(lab).replica.replica_uid == FIRST
    assert run(["instances", "logs", "lab", "--replica", "rep_"]) == 2
    assert SECOND in capsys.readouterr().err


def test_the_time_stands_at_the_beginning_of_lines_not_of_chunks(
    lab: Platform, capfd: pytest.CaptureFixture[str]
) -> None:
    chunks = ((b"one\ntw", OUT), (b"oops", ERR), (b"o\nthree\r3\n", OUT))
    lab.running.logs.append([answer("a", *chunks)])
    assert run(["instances", "logs", "lab", "--timestamps"]) == 0
    stamp = NOON.astimezone().isoformat(sep=" ", timespec="milliseconds")
    printed = capfd.readouterr()
    assert printed.out == f"{stamp}  one\n{stamp}  two\n{stamp}  three\r3\n"
    assert printed.err == f"{stamp}  oops"


def test_programs_read_chunks_a_line_each(lab: Platform, capfd: pytest.CaptureFixture[str]) -> None:
    lab.running.logs.append([answer("a", (b"one\n", OUT), (b"oops\n", ERR))])
    assert run(["instances", "logs", "lab", "-o", "json"]) == 0
    found = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert [base64.b64decode(one["data"]) for one in found] == [b"one\n", b"oops\n"]
    assert {one["replica_uid"] for one in found} == {SECOND}
    lab.running.logs.append([answer("a", (b"one\n", OUT), (b"two\n", OUT))])
    assert run(["instances", "logs", "lab", "-o", "name"]) == 0
    assert capfd.readouterr().out == f"{SECOND}\n"


def test_bytes_that_were_lost_are_told_beside_the_output(
    lab: Platform, capfd: pytest.CaptureFixture[str]
) -> None:
    lost = answer("a", (b"two\n", OUT))
    lost.chunks[0].lost_bytes = 4096
    lab.running.logs.append([answer("a", (b"one\n", OUT)), lost])
    assert run(["instances", "logs", "lab"]) == 0
    printed = capfd.readouterr()
    assert printed.out == "one\ntwo\n"
    assert "4096 bytes lost" in printed.err


def test_where_nothing_has_run_it_says_what_the_instance_waits_for(
    lab: Platform, capsys: pytest.CaptureFixture[str]
) -> None:
    status = lab.instances[LAB].status
    status.state = instances.STATE_PENDING
    status.reason.code, status.reason.message = "QUOTA", "2 GPUs over the quota."
    lab.turns.append(refuse(code_pb2.NOT_FOUND, "REPLICA_NOT_FOUND", next_step="See what did."))
    assert run(["instances", "logs", "lab"]) == 3
    assert "It is PENDING: 2 GPUs over the quota. See what did." in capsys.readouterr().err


def test_what_is_followed_or_looked_into_must_be_there(
    lab: Platform, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["instances", "logs", "-f", "lap"]) == 3
    assert "Did you mean lab?" in capsys.readouterr().err
    lab.turns.append(refuse(code_pb2.NOT_FOUND, "REPLICA_NOT_FOUND"))
    assert run(["instances", "exec", "lap", "--", "ls"]) == 3
    assert "Did you mean lab?" in capsys.readouterr().err
    assert run(["replicas", "lap", "--watch"]) == 3
    assert run(["replicas", "lap"]) == 3
    assert capsys.readouterr().err.count("Did you mean lab?") == 2
    assert run(["instances", "top", "lap"]) == 3
    assert not lab.sent("StreamLogs")


def test_the_exit_code_of_a_command_is_passed_on_with_what_it_prints(
    lab: Platform, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    words = ["sh", "-c", "echo out; echo err >&2; exit 42", "--debug"]
    assert run(["instances", "exec", "lab", "--", *words]) == 42
    printed = capfdbinary.readouterr()
    assert (printed.out, printed.err) == (b"out\n", b"err\n")
    (call,) = lab.sent("Exec")
    assert isinstance(call.request, api.ExecRequest)
    assert list(call.request.start.command) == words
    assert (call.request.start.owner, call.request.start.tty) == (LAB, False)


def test_a_command_must_be_said_and_prints_as_it_does(
    lab: Platform, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["instances", "exec", "lab"]) == 2
    assert "fermion instances exec lab -- ls" in capsys.readouterr().err
    assert run(["instances", "exec", "lab", "-o", "json", "--", "ls"]) == 2
    assert not lab.calls


Terminal = Callable[..., Typed]


@pytest.fixture
def terminal(lab: Platform) -> Iterator[Terminal]:
    """Runs a command in a terminal of its own; what still runs at the end of a test is ended."""
    opened: list[Typed] = []

    def run_there(*command: str, folder: Path | None = None) -> Typed:
        opened.append(Typed(command, folder=folder, environment={"PYTHON": sys.executable}))
        return opened[-1]

    yield run_there
    for one in opened:
        one.close()


def test_a_shell_in_a_terminal_is_typed_into_resized_and_left_with_its_exit_code(
    terminal: Terminal,
) -> None:
    it = terminal(*FERMION, "instances", "shell", "lab")
    it.types("PS1='ready> '; stty size")
    it.shows("30 90")
    it.shows("ready> ")
    resize(it.ours, 40, 100)
    # The size and what is typed travel side by side, so the shell there waits for it.
    it.types("""until [ "$(stty size)" = '40 100' ]; do :; done; echo res""ized""")
    it.shows("resized")
    it.shows("ready> ")
    # Ctrl-C is for what runs there, and ends nothing here.
    it.types("""sh -c 'echo run""ning; exec cat'""")
    it.shows("running")
    it.types("mirror")
    it.shows("mirror")
    it.shows("mirror")
    it.presses(CTRL_C)
    it.shows("ready> ")
    it.types("exit 17")
    assert it.ends() == 17


def test_a_terminal_is_given_back_as_it_was_also_after_an_error(
    lab: Platform, terminal: Terminal, tmp_path: Path
) -> None:
    script = (
        "stty -a > before; $PYTHON -m fermion.cli instances exec lab -it -- sh -c 'exit 5'; "
        "echo code $?; stty -a > after; read go; "
        "$PYTHON -m fermion.cli instances exec lab -it -- ls; echo code $?; stty -a > later"
    )
    it = terminal("sh", "-c", script, folder=tmp_path)
    it.shows("code 5")
    lab.running.exec_breaks = True
    it.types("")
    it.shows("error: No.\r\n")
    it.shows("code 6")
    assert it.ends() == 0
    before = (tmp_path / "before").read_text()
    assert " icanon" in before
    assert (tmp_path / "after").read_text() == before
    assert (tmp_path / "later").read_text() == before


def test_a_terminal_is_given_back_when_the_command_line_is_ended(
    lab: Platform, terminal: Terminal
) -> None:
    command = "$PYTHON -m fermion.cli instances exec lab -it -- sh -c 'echo here; sleep 600'"
    it = terminal("sh", "-c", f"{command}; echo code $?; stty -a")
    it.shows("here\r\n")
    (command_line,) = psutil.Process(it.process.pid).children()
    command_line.terminate()
    it.shows("code 143")
    it.shows(" icanon")
    assert it.ends() == 0
    assert lab.running.killed.wait(10)


def test_a_pipe_is_the_input_of_a_command_with_i(terminal: Terminal) -> None:
    command = "printf 12345 | $PYTHON -m fermion.cli instances exec lab -it -- wc -c"
    it = terminal("sh", "-c", command)
    it.shows("no terminal")
    it.shows("5\r\n")
    assert it.ends() == 0


def test_ctrl_c_detaches_from_logs(lab: Platform, terminal: Terminal) -> None:
    lab.running.logs.append([answer("a", (b"one\n", OUT))])
    lab.running.stays = True
    it = terminal(*FERMION, "instances", "logs", "-f", "lab")
    it.shows("one")
    it.presses(CTRL_C)
    assert it.ends() == 130


def test_replicas_are_shown_with_state_reason_run_and_end(
    lab: Platform, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["replicas", "lab", "--all"]) == 0
    head, second, first = capsys.readouterr().out.splitlines()
    assert head.split() == ["REPLICA", "STATE", "WHY", "RUN", "EXIT", "NODE", "ADDRESSES", "SINCE"]
    assert second.split() == f"{SECOND[:12]} RUNNING - 1 3 here web=127.0.0.1:20001 -".split()
    assert first.startswith(f"{FIRST[:12]}  ENDED    it used more memory than it has  0    SIGKILL")
    assert run(["replicas", "lab", "-o", "name"]) == 0
    assert capsys.readouterr().out == f"{SECOND}\n"


def test_replicas_of_a_project_name_their_owners(
    lab: Platform, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["replicas"]) == 0
    head, row = capsys.readouterr().out.splitlines()
    assert head.startswith("OWNER")
    assert row.startswith("lab")
    assert run(["replicas", "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["uid"] == SECOND
    assert run(["replicas", "--watch"]) == 2


def test_replicas_are_followed_over_breaks(
    lab: Platform, capsys: pytest.CaptureFixture[str]
) -> None:
    replica = lab.running.replicas[LAB][0]
    kinds = api.WatchReplicasResponse
    lab.running.watches.append(
        [
            kinds(change=kinds.CHANGE_INITIAL, replica=replica),
            kinds(change=kinds.CHANGE_BOOKMARK, resume_token="t"),
        ]
    )
    ended = api.Replica(uid=SECOND, state=api.REPLICA_STATE_ENDED)
    lab.running.watches.append([kinds(change=kinds.CHANGE_UPDATED, replica=ended)])
    assert run(["replicas", "lab", "--watch"]) == 0
    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith(f"initial   {SECOND[:12]}  RUNNING")
    assert last.startswith(f"updated   {SECOND[:12]}  ENDED")
    assert [getattr(call.request, "resume_token", "") for call in lab.sent("WatchReplicas")] == [
        "",
        "t",
    ]


def series(*cpu_milli: int, gpu_milli: int | None = None) -> api.ListUsageResponse.Series:
    return api.ListUsageResponse.Series(
        replica_uid=SECOND,
        samples=[
            api.UsageSample(cpu_milli=cpu, memory_bytes=2**30, gpu_milli=gpu_milli)
            for cpu in cpu_milli
        ],
    )


def test_use_is_told_of_what_there_is(lab: Platform, capsys: pytest.CaptureFixture[str]) -> None:
    lab.running.usage[LAB] = [series(100, 520, gpu_milli=750)]
    assert run(["instances", "top"]) == 0
    head, row = capsys.readouterr().out.splitlines()
    assert head.split("  ")[0] == "OWNER"
    assert row.split("  ")[0] == "lab"
    assert [cell for cell in row.split("  ") if cell][1:] == [
        SECOND[:12],
        "0.52 of 4",
        "1 GiB of 16 GiB",
        "0.75 of 1",
        "-",
    ]
    assert run(["instances", "top", "lab", "-o", "json"]) == 0
    (told,) = json.loads(capsys.readouterr().out)
    assert [one["cpu_milli"] for one in told["samples"]] == ["100", "520"]
    assert run(["instances", "top", "lab", "-o", "name"]) == 0
    assert capsys.readouterr().out == f"{SECOND}\n"


def test_what_was_not_measured_yet_is_not_made_up(
    lab: Platform, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["instances", "top", "lab"]) == 0
    row = capsys.readouterr().out.splitlines()[1]
    assert "- of 4" in row
    assert "- of 1" in row


def test_bars_are_parts_of_what_there_is_and_never_more_than_all() -> None:
    assert top.sparks([0, 500, 999, 1000, 4000], 1000) == "▁▅███"
    assert top.sparks([0, 5, 10], 0) == "▁▅█"
    assert top.sparks([], 1000) == ""


def test_on_a_terminal_use_is_drawn_with_its_history_until_ctrl_c(
    lab: Platform, terminal: Terminal
) -> None:
    lab.running.usage[LAB] = [series(0, 1000, 2000, 4000)]
    it = terminal(*FERMION, "instances", "top")
    it.shows("CPU BEFORE")
    it.shows("▁▃▅█")
    it.presses(CTRL_C)
    assert it.ends() == 130


def test_status_tells_the_truth_of_the_cluster(
    lab: Platform, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster = lab.running.cluster
    cluster.capabilities.simulated_gpus = True
    cluster.nodes[0].gpus.add(gpu_type="A100", count=4)
    assert run(["status"]) == 0
    printed = capsys.readouterr().out
    assert "control groups, version 2" in printed
    assert "4 x A100; simulated" in printed
    row = next(line for line in printed.splitlines() if line.startswith("here"))
    assert row.split() == ["here", "8", "32", "GiB", "0", "4", "x", "A100", "ok"]
    assert run(["status", "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["cluster"]["name"] == cluster.name


def test_a_cluster_that_does_not_answer_stands_still(
    lab: Platform, capsys: pytest.CaptureFixture[str]
) -> None:
    away = refuse(code_pb2.PERMISSION_DENIED, "PLATFORM_ROLE_MISSING", "Not you.")
    lab.turns.extend([lambda _: None, lambda _: None, away])
    assert run(["status"]) == 1
    assert "The cluster is not known: Not you." in capsys.readouterr().err
