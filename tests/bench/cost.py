"""How soon after its commit a fact shows in a cost."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from google.protobuf.message import Message

from chassis.clock import milliseconds
from chassis.envelope import Meta
from chassis.journal import Command
from fermion.api.billing import v1 as api
from fermion.api.billing.v1.service_pb2_grpc import CostServiceStub
from fermion.api.projects import v1 as projects
from fermion.api.projects.v1.service_pb2_grpc import ProjectServiceStub
from fermion.api.workload import v1 as workload
from services.billing.wiring import TARGET as BILLING
from services.executor import aggregate as executor
from services.projects.wiring import TARGET as PROJECTS
from tests.bench.row import Row, within
from tests.integration.platform import Platform, running
from tests.integration.voices import Voice, enrol
from tests.lives import HOUR_MS, begun, lives, subject
from tests.servers import CLUSTER, NatsServer
from tests.unit.services.billing.life import stamp

RATE: Final = 400
SECONDS: Final = 15.0
GOAL_SECONDS: Final = 1.0
META: Final = Meta("service:executor")


async def rounds(dsn: str, nats: NatsServer, folder: Path) -> list[Row]:
    """State facts at a steady rate, and see how long after its commit a watermark shows in a cost."""
    teller = Voice("executor", CLUSTER, placed=executor.place)
    targets = {"projects": PROJECTS, "billing": BILLING, "executor": teller.target}
    async with running(dsn, nats, folder, targets=targets) as platform:
        await platform.call(
            ProjectServiceStub(platform.channel).CreateProject,
            projects.CreateProjectRequest(project_id="acme"),
        )
        await enrol(dsn)
        now = milliseconds(datetime.now(UTC))
        start = now - 24 * HOUR_MS
        await teller.say(
            *begun(subject("lab"), start, start),
            workload.Watermark(cluster=CLUSTER, through_time=stamp(start)),
        )
        polled = _polled(platform, start)
        while await anext(polled) < start:
            pass
        committed: dict[int, float] = {}
        seen: dict[str, dict[int, float]] = {"GetCost": {}, "WatchCost": {}}
        asking = [
            asyncio.create_task(_note(how, seen[name]), name=name)
            for name, how in (
                ("GetCost", polled),
                ("WatchCost", _watched(platform, start)),
            )
        ]
        await _state(teller, start, committed)
        await asyncio.sleep(2)
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
    return [_lag_row(name, committed, found) for name, found in seen.items()]


async def _state(teller: Voice, start: int, committed: dict[int, float]) -> None:
    """State so many facts a second, each tenth of a second's with a watermark behind them."""
    quiet, loop = (workload.ProofOfLife, workload.Watermark), asyncio.get_running_loop()
    said = (fact for fact in lives(10**6, start) if not isinstance(fact, quiet))
    began = loop.time()
    for beat in range(round(SECONDS * 10)):
        facts: list[Message] = list(itertools.islice(said, RATE // 10 - 1))
        through = start + (beat + 1) * 1000
        facts.append(workload.Watermark(cluster=CLUSTER, through_time=stamp(through)))
        await asyncio.gather(
            *(teller.journal.append(Command((fact,), META)) for fact in facts[:-1])
        )
        await teller.journal.append(Command((facts[-1],), META))
        committed[through] = loop.time()
        await asyncio.sleep(max(0.0, began + (beat + 1) / 10 - loop.time()))


async def _polled(platform: Platform, start: int) -> AsyncIterator[int]:
    stub, token = CostServiceStub(platform.channel), platform.metadata[:1]
    request = api.GetCostRequest(parent="projects/acme", start_time=stamp(start))
    while True:
        answer = await stub.GetCost(request, metadata=token)
        yield answer.through_time.ToMilliseconds()
        await asyncio.sleep(0.01)


async def _watched(platform: Platform, start: int) -> AsyncIterator[int]:
    request = api.WatchCostRequest(parent="projects/acme", start_time=stamp(start))
    token = platform.metadata[:1]
    async for answer in CostServiceStub(platform.channel).WatchCost(request, metadata=token):
        yield answer.through_time.ToMilliseconds()


async def _note(answers: AsyncIterator[int], seen: dict[int, float]) -> None:
    async for through in answers:
        seen.setdefault(through, asyncio.get_running_loop().time())


def _lag_row(name: str, committed: dict[int, float], seen: dict[int, float]) -> Row:
    lags = []
    for through, at in committed.items():
        shown = [when for there, when in seen.items() if there >= through]
        if shown:
            lags.append(max(0.0, min(shown) - at))
    assert len(lags) > len(committed) * 0.9, f"{len(lags)} of {len(committed)} were seen"
    lags.sort()
    middle, most = lags[len(lags) // 2], lags[min(len(lags) - 1, round(len(lags) * 0.99))]
    what = f"from commit to cost at {RATE} facts/s, 99 in 100 (half: {middle * 1000:.0f})"
    return within(f"P4 {name}", what, most * 1000, "ms", GOAL_SECONDS * 1000)
