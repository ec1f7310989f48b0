"""Asks the checks of the local cluster's replicas, run by run, and keeps what they came to."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

from chassis.clock import Clock
from fermion.api.workload import v1 as api
from services.executor import probe, shim
from services.executor.cluster import Away, Gone
from services.executor.folder import Folder, instant
from services.executor.ground import Ground
from services.executor.probe import Tally
from services.executor.session import inside

OpenRun: TypeAlias = tuple[Folder, shim.Start]


@dataclass(slots=True)
class Watch:
    """The checks of one run while they are asked, and the last trouble that they told."""

    task: asyncio.Task[None]
    trouble: tuple[str, str]


class Checks:
    """
    Readiness is kept as a link in the replica's folder, so that a new process does not begin with
    what ran all the time being unready; a failed liveness is an order for the shim.
    """

    def __init__(self, ground: Ground, clock: Clock) -> None:
        self._ground = ground
        self._clock = clock
        self._watches: dict[tuple[str, int], Watch] = {}

    def trouble(self, replica: str, run: int) -> tuple[str, str]:
        """Which check of a run did not pass, and what was found; of readiness where none was asked."""
        watch = self._watches.get((replica, run))
        return watch.trouble if watch else ("readiness", "")

    @asynccontextmanager
    async def asked(self) -> AsyncIterator[Callable[[Sequence[OpenRun]], None]]:
        """Give the function that takes the runs which are open now; asking ends with the context."""
        async with asyncio.TaskGroup() as group:
            try:
                yield partial(self._ask_those, group)
            finally:
                for watch in self._watches.values():
                    watch.task.cancel()
                self._watches.clear()

    def _ask_those(self, group: asyncio.TaskGroup, runs: Sequence[OpenRun]) -> None:
        open_now = {
            (found.uid, start.ordinal): (found, start)
            for found, start in runs
            if found.group.probes.ListFields()
        }
        for key in [key for key in self._watches if key not in open_now]:
            self._watches.pop(key).task.cancel()
        for key, (found, start) in open_now.items():
            if key not in self._watches:
                first = "startup" if found.group.probes.HasField("startup") else "readiness"
                task = group.create_task(self._check(found, start), name=f"checks of {found.uid}")
                self._watches[key] = Watch(task, (first, ""))

    async def _check(self, found: Folder, start: shim.Start) -> None:
        """Ask the checks of one run: startup until it is known, then the others for ever."""
        probes = found.group.probes
        if probes.HasField("startup"):
            passes = None
            async for tally in self._tallies(found, start, "startup", probes.startup):
                passes = tally.passes
                if passes is not None:
                    break
            if not passes:
                if passes is False:
                    self._end(found, start, "STARTUP_FAILED")
                return
            if not probes.HasField("readiness"):
                self._set_ready(found, start, True)
        async with asyncio.TaskGroup() as group:
            if probes.HasField("readiness"):
                group.create_task(self._readiness(found, start), name=f"readiness of {found.uid}")
            if probes.HasField("liveness"):
                group.create_task(self._liveness(found, start), name=f"liveness of {found.uid}")

    async def _readiness(self, found: Folder, start: shim.Start) -> None:
        async for tally in self._tallies(found, start, "readiness", found.group.probes.readiness):
            if tally.passes is not None and found.ready(start.ordinal) != tally.passes:
                self._set_ready(found, start, tally.passes)

    async def _liveness(self, found: Folder, start: shim.Start) -> None:
        async for tally in self._tallies(found, start, "liveness", found.group.probes.liveness):
            if tally.passes is False:
                self._end(found, start, "LIVENESS_FAILED")
                return

    async def _tallies(
        self, found: Folder, start: shim.Start, check: str, asked: api.Probe
    ) -> AsyncIterator[Tally]:
        """Ask one check again and again; what it has come to after each answer."""
        rule, tally = probe.rule(asked), Tally()
        since = (self._clock.now() - instant(start.at)).total_seconds()
        await asyncio.sleep(max(0.0, rule.delay - since))

        async def run(command: Sequence[str]) -> int:
            async with inside(found, start, command) as session:
                async for _ in session.output():
                    pass
                return await session.wait()

        while True:
            try:
                trouble = await probe.ask(asked, found.addresses(), run, rule.timeout)
            except Gone:
                # The run has just ended; its shim says so in a moment.
                return
            except Away as error:
                trouble = str(error)
            tally = tally.after(trouble, rule)
            watch = self._watches.get((found.uid, start.ordinal))
            if watch is not None and check != "liveness":
                watch.trouble = check, tally.found
            yield tally
            await asyncio.sleep(rule.period)

    def _set_ready(self, found: Folder, start: shim.Start, ready: bool) -> None:
        found.set_ready(start.ordinal, ready)
        now = time.time_ns()
        os.utime(self._ground.changes, ns=(now, now))

    def _end(self, found: Folder, start: shim.Start, why: str) -> None:
        """Have a run ended; its shim begins the next one by the workload's rule."""
        grace = round(found.workload.grace.ToTimedelta().total_seconds() * 1000)
        found.order(f"restart-{start.ordinal}", why, grace)
