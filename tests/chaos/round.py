"""One round: a platform under load and faults, what it comes to when both are over, and the verdict."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from chassis.tasks import end
from tests.chaos import faults, load, oracle, recovery
from tests.chaos.faults import Fault, Kill, Missed, Scene
from tests.chaos.load import Ledger
from tests.chaos.report import Report, Struck
from tests.chaos.stand import standing
from tests.stage import ROOT

# The load begins before the faults do.
CALM_SECONDS: Final = 3.0
AGAIN_MAX: Final = 3


def play(folder: Path, duration: float, seed: int, only: Sequence[str] = ()) -> Report:
    """Play one round in an empty folder; what it found is in the report, also what is broken."""
    report = Report(duration, seed, tuple(only))
    with standing(folder / "home") as stand:
        if missing := [name for name in ("postgres", "nats", "cluster") if name not in stand.disks]:
            report.skipped = [f"disk full {name}: this process may not mount" for name in missing]
        report.figures["partitions"] = "network namespaces" if stand.links else "a proxy"
        if not stand.links:
            report.skipped.append("lost packets: no network namespace; a proxy held what was sent")
        stand.stage.ok("projects", "create", load.PROJECT)
        words, outside = folder / "words", folder / "outside"
        words.mkdir()
        outside.touch()
        recorder = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.recorder", str(stand.replicas), str(outside)],
            stdin=subprocess.PIPE,
            cwd=ROOT,
            start_new_session=True,
        )
        try:
            ledger = Ledger()
            scene = Scene(stand, ledger)
            asyncio.run(storm(scene, report, words))
            report.note("the storm is over; it settles by itself")
            oracle.settle(stand, report)
            oracle.judge_rest(stand, report)
            report.note("each part is killed by itself, beside a bare start")
            recovery.measure(stand, report)
            report.note("what runs is stopped, and counted")
            oracle.finish(stand, ledger)
            oracle.settle(stand, report)
        finally:
            # Its input ends.
            recorder.communicate()
        oracle.judge(scene, report, outside, words)
    return report


async def storm(scene: Scene, report: Report, words: Path) -> None:
    """Let callers call and faults strike; return when the last caller has his answer."""
    seed, duration = report.seed, report.duration
    wanted = faults.plan(random.Random(f"{seed} faults"), duration, scene.stand.disks)
    if report.only:
        # As many of them, drawn the same way.
        wanted = faults.narrowed(
            wanted, random.Random(f"{seed} only"), report.only, scene.stand.disks
        )
    async with load.reached(scene.stand) as (stub, metadata):
        calling = asyncio.create_task(
            load.load(stub, metadata, scene.ledger, random.Random(f"{seed} load"), words),
            name="load",
        )
        striking = asyncio.create_task(conduct(scene, report, wanted, duration), name="faults")
        try:
            await asyncio.wait({calling, striking}, return_when=asyncio.FIRST_COMPLETED)
            if calling.done():
                calling.result()
            await striking
            scene.ledger.over = True
            report.stormed = time.monotonic() - report.began
            await calling
        finally:
            await end(calling, striking)


async def conduct(scene: Scene, report: Report, wanted: Sequence[Fault], duration: float) -> None:
    """
    Strike one fault after the other, spread over the round; what needs the same thing waits.

    What misses (a stream may be empty at the moment) is struck again at the end.
    """
    locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
    pace = max(0.05, (duration - CALM_SECONDS) / len(wanted))
    report.began = time.monotonic()
    tasks = []
    async with asyncio.TaskGroup() as group:
        for place, fault in enumerate(wanted):
            due = report.began + CALM_SECONDS + place * pace
            await asyncio.sleep(due - time.monotonic())
            name = f"{fault.kind} {fault.target}"
            tasks.append(group.create_task(one(scene, report, fault, locks), name=name))
    for fault, task in zip(wanted, tasks, strict=True):
        if (miss := task.result()) and (miss := await one(scene, report, fault, locks)):
            report.missed.append(f"{fault.kind} {fault.target}: {miss}")


async def one(
    scene: Scene, report: Report, fault: Fault, locks: defaultdict[str, asyncio.Lock]
) -> str:
    """Strike with one fault and heal it, alone with what it needs; why it missed, or nothing."""
    needs = sorted(fault.needs())
    for need in needs:
        await locks[need].acquire()
    try:
        for again in reversed(range(AGAIN_MAX)):
            try:
                await fault.strike(scene)
                break
            except Missed as missed:
                if not again:
                    report.say(fault, f"missed: {missed}")
                    return str(missed)
                await asyncio.sleep(1.0)
        at = report.say(fault, f"{fault.flying} calls in flight" if fault.flying else "")
        await asyncio.sleep(fault.seconds)
        await fault.heal(scene)
        if isinstance(fault, Kill) and fault.recovery is not None:
            report.say(fault, f"back after {fault.recovery:.2f} s")
        report.struck.append(
            Struck(fault.kind, fault.target, at, fault.flying, fault.unpublished, fault.recovery)
        )
        return ""
    finally:
        for need in needs:
            locks[need].release()
