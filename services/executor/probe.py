"""The checks of a replica: when they are asked, what counts, and the asking itself."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final

from fermion.api.workload import v1 as api

# What a probe that does not say it is given; the same as on Kubernetes.
PERIOD_SECONDS: Final = 10.0
TIMEOUT_SECONDS: Final = 1.0
FAILURES: Final = 3
HEAD_BYTES_MAX: Final = 4096


@dataclass(frozen=True, slots=True)
class Rule:
    """When a check is asked, and what counts."""

    delay: float
    period: float
    timeout: float
    failures: int
    successes: int


@dataclass(frozen=True, slots=True)
class Tally:
    """What a check has come to; `passes` is None until it is known."""

    passes: bool | None = None
    failures: int = 0
    successes: int = 0
    found: str = ""

    def after(self, trouble: str, rule: Rule) -> Tally:
        """Count one answer; empty `trouble` is a success."""
        if trouble:
            failures = self.failures + 1
            passes = False if failures >= rule.failures else self.passes
            return replace(self, passes=passes, failures=failures, successes=0, found=trouble)
        successes = self.successes + 1
        passes = True if successes >= rule.successes else self.passes
        return replace(self, passes=passes, failures=0, successes=successes, found="")


def rule(probe: api.Probe) -> Rule:
    """Read a probe, with what it leaves open filled in."""
    return Rule(
        delay=probe.initial_delay.ToTimedelta().total_seconds(),
        period=probe.period.ToTimedelta().total_seconds() or PERIOD_SECONDS,
        timeout=probe.timeout.ToTimedelta().total_seconds() or TIMEOUT_SECONDS,
        failures=probe.failure_threshold or FAILURES,
        successes=probe.success_threshold or 1,
    )


async def ask(
    probe: api.Probe,
    addresses: Mapping[str, str],
    run: Callable[[Sequence[str]], Awaitable[int]],
    timeout: float,
) -> str:
    """Ask once; empty where it passes, else what was found. `run` runs a command inside."""
    try:
        async with asyncio.timeout(timeout):
            if probe.command:
                code = await run(probe.command)
                return f"exit code {code}" if code else ""
            host, _, port = addresses[probe.port].rpartition(":")
            return await _connect(host, int(port), probe.http_path)
    except TimeoutError:
        return f"no answer within {timeout:g} s"
    except OSError as error:
        return error.strerror or str(error)


async def _connect(host: str, port: int, path: str) -> str:
    reader, writer = await asyncio.open_connection(host, port)
    try:
        if not path:
            return ""
        head = f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n"
        writer.write(head.encode())
        await writer.drain()
        status = (await reader.readline())[:HEAD_BYTES_MAX].split()
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()
    if len(status) < 2 or not status[1].isdigit():
        return "no HTTP"
    return "" if 200 <= int(status[1]) < 400 else f"HTTP status {int(status[1])}"
