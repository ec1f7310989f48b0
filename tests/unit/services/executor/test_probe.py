"""Checks: what counts, and what an answer is."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import timedelta

import pytest

from fermion.api.workload import v1 as api
from services.executor import probe
from services.executor.probe import Rule, Tally

RULE = Rule(delay=0, period=1, timeout=1, failures=3, successes=2)


def after(*answers: str) -> Tally:
    tally = Tally()
    for answer in answers:
        tally = tally.after(answer, RULE)
    return tally


def test_nothing_is_known_before_enough_answers() -> None:
    assert after("").passes is None
    assert after("no", "no").passes is None


def test_it_passes_after_successes_in_a_row() -> None:
    assert after("", "").passes is True
    assert after("", "no", "").passes is None


def test_it_fails_after_failures_in_a_row_and_says_what_was_found() -> None:
    found = after("", "", "no", "no", "exit code 1")
    assert (found.passes, found.found) == (False, "exit code 1")


def test_a_failure_alone_changes_nothing() -> None:
    assert after("", "", "no", "no").passes is True
    assert after("no", "no", "no", "").passes is False


def test_what_a_probe_leaves_open_is_filled_in() -> None:
    assert probe.rule(api.Probe()) == Rule(delay=0, period=10, timeout=1, failures=3, successes=1)
    said = api.Probe(initial_delay=timedelta(seconds=5), period=timedelta(seconds=2))
    assert probe.rule(said) == Rule(delay=5, period=2, timeout=1, failures=3, successes=1)


async def nobody(command: Sequence[str]) -> int:
    raise AssertionError(f"{command} was not to be run")


async def answering(answer: bytes) -> tuple[asyncio.Server, str]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(answer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    return server, f"127.0.0.1:{server.sockets[0].getsockname()[1]}"


@pytest.mark.parametrize(("answer", "trouble"), [
    (b"HTTP/1.1 200 OK\r\n\r\n", ""),
    (b"HTTP/1.0 302 Found\r\n\r\n", ""),
    (b"HTTP/1.1 404 Not Found\r\n\r\n", "HTTP status 404"),
    (b"HTTP/1.1 500 No\r\n\r\n", "HTTP status 500"),
    (b"\x00\x01 gibberish\r\n", "no HTTP"),
    (b"", "no HTTP"),
])  # fmt: skip
async def test_an_http_check_passes_by_its_status(answer: bytes, trouble: str) -> None:
    server, address = await answering(answer)
    async with server:
        asked = api.Probe(http_path="/", port="web")
        assert await probe.ask(asked, {"web": address}, nobody, 5) == trouble


async def test_a_port_where_nobody_listens_fails() -> None:
    server, address = await answering(b"")
    server.close()
    await server.wait_closed()
    for path in ("", "/"):
        asked = api.Probe(http_path=path, port="web")
        assert "failed" in await probe.ask(asked, {"web": address}, nobody, 5)


async def test_a_connection_is_enough_where_no_path_is_named() -> None:
    server, address = await answering(b"")
    async with server:
        assert await probe.ask(api.Probe(port="web"), {"web": address}, nobody, 5) == ""


async def test_no_answer_in_time_fails() -> None:
    async def late(command: Sequence[str]) -> int:
        await asyncio.Event().wait()
        return 0

    found = await probe.ask(api.Probe(command=["late"]), {}, late, 0.01)
    assert found == "no answer within 0.01 s"


@pytest.mark.parametrize(("code", "trouble"), [(0, ""), (3, "exit code 3")])
async def test_a_command_passes_by_its_code(code: int, trouble: str) -> None:
    async def run(command: Sequence[str]) -> int:
        return code

    assert await probe.ask(api.Probe(command=["ask"]), {}, run, 5) == trouble
