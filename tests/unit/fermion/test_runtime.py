"""What runs, as the client sees it: logs without a gap over breaks, and commands that begin once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator
from contextlib import closing
from datetime import UTC, datetime
from queue import SimpleQueue
from types import SimpleNamespace

import grpc
import pytest
from google.rpc import code_pb2

import fermion
from fermion import errors
from fermion.api.executor import v1 as api
from fermion.call import Attempts, Place
from fermion.context import Positions, resolve
from tests.unit.fermion.platform import Platform, busy, later, refuse

LAB = "projects/acme/instances/lab"
NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)
OUT, ERR = api.LogChunk.STREAM_STDOUT, api.LogChunk.STREAM_STDERR


def client(platform: Platform, timeout: float = 10.0) -> fermion.Client:
    return fermion.Client(address=platform.address, token="jwt", timeout=timeout)


def chunk(data: bytes, stream: api.LogChunk.Stream.ValueType = OUT, run: int = 0) -> api.LogChunk:
    return api.LogChunk(data=data, stream=stream, replica_uid="rep_1", run=run)


def answer(token: str, *chunks: api.LogChunk) -> api.StreamLogsResponse:
    return api.StreamLogsResponse(chunks=chunks, resume_token=token)


def output(answers: Iterator[api.ExecResponse]) -> tuple[bytes, bytes, int]:
    """All that a command printed, and its exit code."""
    found = list(answers)
    code = found[-1]
    assert code.HasField("exit_code")
    return (
        b"".join(one.stdout for one in found),
        b"".join(one.stderr for one in found),
        code.exit_code,
    )


def test_logs_are_lines_whatever_the_chunks_are(platform: Platform) -> None:
    platform.running.logs.append(
        [
            answer("a", chunk(b"one\ntw"), chunk(b"oops\n", ERR)),
            answer("b", chunk(b"o\r\n\nthr\xff")),
            answer("c", chunk(b"new\n", run=1)),
        ]
    )
    with client(platform) as it:
        lines = list(it.runtime.logs(LAB, tail=7))
    assert lines == ["one", "oops", "two", "", "new", "thr\N{REPLACEMENT CHARACTER}"]
    sent = platform.sent("StreamLogs")[0].request
    assert isinstance(sent, api.StreamLogsRequest)
    assert (sent.tail_lines, sent.follow, sent.HasField("replica")) == (7, False, False)


def test_logs_that_break_go_on_behind_what_was_read(platform: Platform) -> None:
    platform.running.logs.append([answer("a", chunk(b"one\nt")), answer("b", chunk(b"w"))])
    platform.running.logs.append([answer("c", chunk(b"o\n"))])
    with client(platform) as it:
        assert list(it.runtime.logs(LAB, follow=True)) == ["one", "two"]
    tokens = [getattr(call.request, "resume_token", "") for call in platform.sent("StreamLogs")]
    assert tokens == ["", "b"]


def test_a_log_that_is_left_ends_its_call(platform: Platform) -> None:
    platform.running.logs.append([answer("a", chunk(b"one\ntwo\n"))])
    with client(platform) as it:
        answers = it.runtime.stream_logs(LAB)
        assert isinstance(answers, Generator)
        with closing(answers):
            next(answers)
    assert not list(answers)


class Broken(grpc.RpcError):
    """A connection that broke."""

    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.UNAVAILABLE

    def details(self) -> str:
        return "Socket closed"

    def trailing_metadata(self) -> tuple[()]:
        return ()


def test_a_stream_may_have_been_silent_for_longer_than_a_call_may_take(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = SimpleNamespace(now=0.0)
    clock.monotonic = lambda: clock.now
    monkeypatch.setattr("fermion.call.time", clock)
    place = Place("executor", resolve(address="127.0.0.1:7443"), Positions(), timeout=30)
    let_in = (("x-request-id", "req-1"),)
    attempts = Attempts(place, api.StreamLogsRequest(owner=LAB))
    clock.now = 3600.0
    attempts.stood(0.0, let_in)
    assert attempts.failed(Broken()) > 0
    clock.now = 3700.0
    # What was never let in, or not for long, has not stood.
    attempts.stood(3600.0, ())
    attempts.stood(3699.0, let_in)
    with pytest.raises(errors.Unavailable):
        attempts.failed(Broken())


def test_a_command_is_given_its_input_and_answers_output_errors_and_exit_code(
    platform: Platform,
) -> None:
    given = iter([api.ExecRequest(stdin=b"one\n"), api.ExecRequest(stdin=b"two\n")])
    with client(platform) as it:
        script = "cat; echo oops >&2; exit 7"
        assert output(it.runtime.exec(LAB, ["sh", "-c", script], requests=given)) == (
            b"one\ntwo\n",
            b"oops\n",
            7,
        )
    (call,) = platform.sent("Exec")
    assert isinstance(call.request, api.ExecRequest)
    assert call.request.start.owner == LAB
    assert call.metadata["authorization"] == "Bearer jwt"


def test_a_command_without_input_reads_its_end(platform: Platform) -> None:
    with client(platform) as it:
        assert output(it.runtime.exec(LAB, ["cat"])) == (b"", b"", 0)


def test_a_command_that_a_signal_ended_says_so_as_shells_do(platform: Platform) -> None:
    with client(platform) as it:
        assert output(it.runtime.exec(LAB, ["sh", "-c", "kill -9 $$"]))[2] == 137


def test_a_command_with_a_terminal_sees_its_size_also_when_it_changes(platform: Platform) -> None:
    seen = SimpleQueue[None]()

    def requests() -> Iterator[api.ExecRequest]:
        seen.get()
        yield api.ExecRequest(resize=api.ExecRequest.Size(rows=50, columns=100))
        yield api.ExecRequest(stdin=b"\n")

    script = "stty size; read line; stty size"
    with client(platform) as it:
        printed = b""
        size = api.ExecRequest.Size(rows=30, columns=90)
        command = ["sh", "-c", script]
        for one in it.runtime.exec(LAB, command, requests=requests(), tty=True, size=size):
            printed += one.stdout
            if printed.count(b"\n") == 1:
                seen.put(None)
    assert printed.split() == [b"30", b"90", b"50", b"100"]


def test_a_command_is_ended_when_its_caller_leaves(platform: Platform) -> None:
    with client(platform) as it:
        answers = it.runtime.exec(LAB, ["sh", "-c", "echo here; sleep 600"])
        assert next(answers).stdout == b"here\n"
        assert isinstance(answers, Generator)
        answers.close()
        assert platform.running.killed.wait(10)


def test_a_command_that_was_not_let_in_yet_is_asked_for_again_with_all_of_its_input(
    platform: Platform,
) -> None:
    platform.turns.extend([later("READ_BEHIND"), later("READ_BEHIND")])
    given = iter([api.ExecRequest(stdin=b"all of it")])
    with client(platform) as it:
        assert output(it.runtime.exec(LAB, ["cat"], requests=given))[0] == b"all of it"
    assert len(platform.sent("Exec")) == 3


def test_a_command_that_may_have_begun_is_not_begun_again(platform: Platform) -> None:
    platform.turns.append(busy)
    with client(platform) as it, pytest.raises(errors.Unavailable):
        list(it.runtime.exec(LAB, ["true"]))
    assert len(platform.sent("Exec")) == 1


def test_a_command_whose_connection_breaks_is_an_error_and_not_begun_again(
    platform: Platform,
) -> None:
    platform.running.exec_breaks = True
    with client(platform) as it, pytest.raises(errors.Unavailable) as caught:
        list(it.runtime.exec(LAB, ["echo", "here"]))
    assert caught.value.reason == "SHUTTING_DOWN"
    assert len(platform.sent("Exec")) == 1


def test_where_nothing_runs_it_says_what_the_platform_said(platform: Platform) -> None:
    platform.turns.append(refuse(code_pb2.FAILED_PRECONDITION, "REPLICA_NOT_RUNNING"))
    with client(platform) as it, pytest.raises(errors.FailedPrecondition) as caught:
        list(it.runtime.exec(LAB, ["true"]))
    assert caught.value.reason == "REPLICA_NOT_RUNNING"


def test_replicas_use_and_cluster_are_read(platform: Platform) -> None:
    replica = api.Replica(uid="rep_1", owner=LAB, attempt=2)
    platform.running.replicas[LAB] = [replica, api.Replica(uid="rep_0", owner=LAB, attempt=1)]
    series = api.ListUsageResponse.Series(replica_uid="rep_1")
    platform.running.usage[LAB] = [series]
    change = api.WatchReplicasResponse(
        change=api.WatchReplicasResponse.CHANGE_INITIAL, replica=replica, resume_token="t"
    )
    platform.running.watches.extend([[change], [change]])
    with client(platform) as it:
        assert [one.uid for one in it.runtime.list_replicas(LAB)] == ["rep_1"]
        everyone = it.runtime.list_replicas(LAB, all_attempts=True)
        assert [one.uid for one in everyone] == ["rep_1", "rep_0"]
        assert list(it.runtime.list_usage(LAB, since=NOON)) == [series]
        assert it.runtime.get_cluster() == platform.running.cluster
        assert list(it.runtime.watch_replicas(LAB)) == [change, change]
    (used,) = platform.sent("ListUsage")
    assert isinstance(used.request, api.ListUsageRequest)
    assert used.request.since_time.ToDatetime(tzinfo=UTC) == NOON
    tokens = [getattr(call.request, "resume_token", "") for call in platform.sent("WatchReplicas")]
    assert tokens == ["", "t"]


def test_how_ports_are_opened_is_answered_by_their_names(platform: Platform) -> None:
    platform.running.access[LAB] = {"web": "http://127.0.0.1:20001/?token=t"}
    with client(platform) as it:
        assert it.runtime.access(LAB) == {"web": "http://127.0.0.1:20001/?token=t"}
        assert it.runtime.access("projects/acme/instances/other") == {}


async def test_the_client_of_asyncio_does_the_same(platform: Platform) -> None:
    platform.running.logs.append([answer("a", chunk(b"one\nt"))])
    platform.running.logs.append([answer("b", chunk(b"wo\n"))])
    platform.turns.extend([lambda _: None, lambda _: None, later("READ_BEHIND")])

    async def given() -> AsyncIterator[api.ExecRequest]:
        yield api.ExecRequest(stdin=b"input")

    async with fermion.AsyncClient(address=platform.address, token="jwt") as it:
        assert [line async for line in it.runtime.logs(LAB)] == ["one", "two"]
        command = ["sh", "-c", "cat; exit 3"]
        found = [one async for one in it.runtime.exec(LAB, command, requests=given())]
        assert b"".join(one.stdout for one in found) == b"input"
        assert found[-1].exit_code == 3
        answers = it.runtime.exec(LAB, ["sh", "-c", "echo here; sleep 600"])
        assert isinstance(answers, AsyncGenerator)
        assert (await anext(answers)).stdout == b"here\n"
        await answers.aclose()
        assert await asyncio.to_thread(platform.running.killed.wait, 10)
        platform.running.exec_breaks = True
        with pytest.raises(errors.Unavailable):
            [one async for one in it.runtime.exec(LAB, ["true"])]
    assert len(platform.sent("Exec")) == 4
