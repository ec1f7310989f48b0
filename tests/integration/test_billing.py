"""Billing at work: an executor says what a test tells it to, PostgreSQL and NATS are real."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import asyncpg
import grpc.aio
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from chassis import figures as kept
from chassis.embedded import free_port
from chassis.listing import PageToken
from chassis.process import Process
from fermion.api.billing import v1 as api
from fermion.api.billing.v1.service_pb2_grpc import CostServiceStub, PriceServiceStub
from fermion.api.journal import v1 as journal
from fermion.api.journal.v1.service_pb2_grpc import JournalServiceStub
from fermion.api.projects import v1 as projects
from fermion.api.projects.v1.service_pb2_grpc import (
    ClusterServiceStub,
    ProjectServiceStub,
    UserServiceStub,
)
from fermion.api.workload import v1 as workload
from services.billing.wiring import TARGET as BILLING
from services.executor import aggregate as executor
from services.projects.wiring import TARGET as PROJECTS
from tests.integration.platform import Platform, running, told, until
from tests.integration.voices import Voice, enrol
from tests.lives import GIB, HOUR_MS, MINUTE_MS, begun, over, replica, subject
from tests.servers import CLUSTER, NatsServer
from tests.unit.services.billing.life import stamp, witness

PARENT: Final = "projects/acme"
JOURNAL: Final = f"executor/{CLUSTER}"
# Of what `subject` has: one H100, four cores and 8 GiB, by the prices a platform begins with.
RATE: Final = 3_150_000_000
SETTINGS: Final = {"FERMION_BILLING_LOOK_SECONDS": "0.05"}


def hour() -> int:
    """A whole hour, long enough ago that some more lie between it and now."""
    return (int(datetime.now(UTC).timestamp() * 1000) // HOUR_MS - 12) * HOUR_MS


class Stage:
    """Billing, and the executor that it believes."""

    def __init__(self, platform: Platform, teller: Voice) -> None:
        self.platform = platform
        self.costs = CostServiceStub(platform.channel)
        self.prices = PriceServiceStub(platform.channel)
        self.log = JournalServiceStub(platform.channel)
        self.executor = teller
        self.start = hour()

    async def say(self, *facts: Message) -> None:
        """Let the executor say something, for billing to have read before the next call."""
        self.platform.seen[JOURNAL] = str(await self.executor.say(*facts))

    async def through(self, at: int) -> None:
        """Let it say that everything up to then is said."""
        await self.say(workload.Watermark(cluster=CLUSTER, through_time=stamp(at)))

    def at(self, minutes: int) -> int:
        """So many minutes behind the stage's first."""
        return self.start + minutes * MINUTE_MS

    async def cost(
        self, parent: str = PARENT, end: int | None = None, **more: object
    ) -> api.GetCostResponse:
        request = api.GetCostRequest(
            parent=parent,
            start_time=stamp(self.start),
            end_time=stamp(self.at(600) if end is None else end),
            **more,  # type: ignore[arg-type]
        )
        return await self.platform.call(self.costs.GetCost, request)

    async def statement(
        self, cut: api.Cut | None = None, parent: str = PARENT, end: int | None = None
    ) -> api.Statement:
        request = api.GetStatementRequest(
            parent=parent,
            start_time=stamp(self.start),
            end_time=stamp(self.at(600) if end is None else end),
            cut=cut,
        )
        return (await self.platform.call(self.costs.GetStatement, request)).statement

    async def assert_again(self, before: api.Statement) -> None:
        """Compute a statement from its cut, to the byte."""
        parent, end = before.project, before.end_time.ToMilliseconds()
        assert raw(await self.statement(before.cut, parent, end)) == raw(before)

    async def explain(
        self, name: str, end: int | None = None, **more: object
    ) -> api.ExplainChargeResponse:
        request = api.ExplainChargeRequest(
            owner=f"{PARENT}/instances/{name}",
            start_time=stamp(self.start),
            end_time=stamp(self.at(600) if end is None else end),
            **more,  # type: ignore[arg-type]
        )
        return await self.platform.call(self.costs.ExplainCharge, request)

    async def stated(self, kind: type[Message]) -> list[Message]:
        """What billing has stated of a kind."""
        (part,) = [one for one in self.platform.process._parts if one.target.name == "billing"]
        page = await part.journal.read(0, 100_000)
        return [one.message for one in page.records if isinstance(one.message, kind)]

    async def states(self, kind: type[Message], count: int) -> list[Message]:
        """Wait until it has stated so many of a kind."""
        return await until(
            lambda: self.stated(kind),
            lambda found: len(found) >= count,
            f"{count} {kind.DESCRIPTOR.name}",
        )


def raw(statement: api.Statement) -> bytes:
    return statement.SerializeToString(deterministic=True)


@asynccontextmanager
async def staged(
    dsn: str, nats: NatsServer, folder: Path, *, again: bool = False
) -> AsyncIterator[Stage]:
    teller = Voice("executor", CLUSTER, placed=executor.place)
    targets = {"projects": PROJECTS, "billing": BILLING, "executor": teller.target}
    async with running(dsn, nats, folder, targets=targets, **SETTINGS) as platform:
        stage = Stage(platform, teller)
        if not again:
            for name in ("acme", "other"):
                await platform.call(
                    ProjectServiceStub(platform.channel).CreateProject,
                    projects.CreateProjectRequest(project_id=name),
                )
            await enrol(dsn)
            await teller.say(workload.Watermark(cluster=CLUSTER, through_time=stamp(stage.start)))
        await until(stage.cost, lambda found: found.HasField("through_time"), "no executor is read")
        yield stage


@pytest.fixture
async def stage(database: str, nats_server: NatsServer, tmp_path: Path) -> AsyncIterator[Stage]:
    async with staged(database, nats_server, tmp_path) as stage:
        yield stage


async def test_what_is_said_whole_is_settled_and_what_is_known_to_live_behind_it_accrues(
    stage: Stage,
) -> None:
    lab = subject("lab")
    await stage.say(*begun(lab, stage.at(-1), stage.at(0)))
    await stage.through(stage.at(60))
    await stage.say(workload.ProofOfLife(cluster=CLUSTER, until_time=stamp(stage.at(120))))
    found = await stage.cost()
    assert found.currency == "USD"
    assert found.through_time.ToMilliseconds() == stage.at(60)
    assert found.total.settled_nanos == RATE
    # Twice the period of its proofs of life behind the last one.
    assert found.total.accruing_nanos == RATE * 3620 // 3600
    assert found.total.rate_nanos == RATE

    await stage.say(*over(lab, stage.at(90)))
    provisional = (await stage.cost()).total
    assert (provisional.settled_nanos, provisional.accruing_nanos) == (RATE, RATE // 2)
    assert provisional.rate_nanos == 0
    await stage.through(stage.at(120))
    final = (await stage.cost()).total
    assert (final.settled_nanos, final.accruing_nanos) == (RATE * 3 // 2, 0)


async def test_a_statement_is_computed_again_to_the_same_bytes_whatever_came_later(
    database: str, nats_server: NatsServer, tmp_path: Path
) -> None:
    lab, gone = subject("lab"), subject("gone")
    async with staged(database, nats_server, tmp_path) as stage:
        start = stage.start
        await stage.say(*begun(gone, stage.at(0), stage.at(2)), *over(gone, stage.at(30)))
        await stage.say(*begun(lab, stage.at(0), stage.at(5)))
        await stage.through(stage.at(65))
        first = await stage.statement()
        assert first.total_nanos == RATE + (RATE * 28 + 30) // 60
        assert not first.complete
        assert sum(line.amount_nanos for line in first.lines) == first.total_nanos

        corrected = workload.ReplicaRunCorrected(
            uid="rep_gone", workload="wkl_gone", project="acme", n=1, witness=witness(stage.at(70))
        )
        corrected.end_time.CopyFrom(stamp(stage.at(20)))
        await stage.say(*over(lab, stage.at(125)), corrected)
        await stage.through(stage.at(600))
        second = await stage.statement()
        # Both of them later: the end of what ran, and a shorter run of what had ended.
        assert second.total_nanos == RATE * 2 + RATE * 18 // 60
        assert second.complete
        await stage.assert_again(first)

        rebuild = journal.RebuildProjectionRequest(journal="billing/0")
        done = await stage.platform.call(stage.log.RebuildProjection, rebuild)
        assert done.live_hash == done.rebuilt_hash
        for before in (first, second):
            await stage.assert_again(before)
    async with staged(database, nats_server, tmp_path, again=True) as stage:
        stage.start = start
        for before in (first, second):
            await stage.assert_again(before)
        assert (await stage.statement()).total_nanos == second.total_nanos


async def test_a_cluster_that_was_retired_is_waited_for_no_more_also_by_its_cut(
    stage: Stage,
) -> None:
    whose = subject("lab")
    await stage.say(*begun(whose, stage.at(0), stage.at(1)), *over(whose, stage.at(9)))
    await stage.through(stage.at(10))
    awaited = await stage.statement(end=stage.at(10))
    clusters = ClusterServiceStub(stage.platform.channel)
    retire = projects.RetireClusterRequest(name=f"clusters/{CLUSTER}")
    await stage.platform.call(clusters.RetireCluster, retire)

    async def retired() -> api.Statement:
        return await stage.statement(end=stage.at(10))

    now = await until(
        retired, lambda found: found.cut.sources[0].retired, "the cluster is not retired"
    )
    await stage.assert_again(now)
    await stage.assert_again(awaited)


async def test_a_cut_that_nobody_can_have_had_is_refused(stage: Stage) -> None:
    await stage.through(stage.at(60))
    cut = (await stage.statement()).cut
    for change, code, reason in (
        (api.Cut(sources=[api.Cut.Source(position=99)]), "UNAVAILABLE", "CUT_AHEAD"),
        (api.Cut(price_book=7), "INVALID_ARGUMENT", "CUT_UNKNOWN"),
        (api.Cut(algorithm=7), "INVALID_ARGUMENT", "CUT_UNKNOWN"),
    ):
        wrong = api.Cut()
        wrong.CopyFrom(cut)
        if change.sources:
            wrong.sources[0].position = 99
        wrong.price_book = change.price_book or cut.price_book
        wrong.algorithm = change.algorithm or cut.algorithm
        refusal = await stage.platform.refusal(
            stage.costs.GetStatement, api.GetStatementRequest(parent=PARENT, cut=wrong)
        )
        assert (refusal.code, refusal.reason) == (code, reason)


async def test_new_prices_cut_what_runs_at_the_instant_they_come_into_force(stage: Stage) -> None:
    lab = subject("lab")
    await stage.say(*begun(lab, stage.at(0), stage.at(0)))
    (first,) = (
        await stage.platform.call(stage.prices.ListPriceBooks, api.ListPriceBooksRequest())
    ).price_books
    wanted = api.PriceBook()
    wanted.CopyFrom(first)
    wanted.version = "dearer"
    wanted.ClearField("effective_time")
    for price in wanted.prices:
        price.price_nanos *= 2

    async def publish(book: api.PriceBook, validate_only: bool = False) -> api.PriceBook:
        request = api.PublishPriceBookRequest(price_book=book, validate_only=validate_only)
        return (await stage.platform.call(stage.prices.PublishPriceBook, request)).price_book

    assert (await publish(wanted, validate_only=True)).number == 2
    published = await publish(wanted)
    # All of them learn of it at once, and none twice.
    for one in await asyncio.gather(*(stage.statement() for _ in range(8))):
        assert one.cut.price_book == 2
    at = published.effective_time.ToMilliseconds()
    assert (published.number, await publish(wanted)) == (2, published)
    assert await publish(published) == published
    other = api.PriceBook()
    other.CopyFrom(wanted)
    other.prices[0].price_nanos += 1
    refusal = await stage.platform.refusal(
        stage.prices.PublishPriceBook, api.PublishPriceBookRequest(price_book=other)
    )
    assert (refusal.code, refusal.reason) == ("ALREADY_EXISTS", "PRICE_VERSION_EXISTS")
    listed = await stage.platform.call(stage.prices.ListPriceBooks, api.ListPriceBooksRequest())
    assert [one.version for one in listed.price_books] == ["dearer", first.version]
    assert listed.in_force == 2

    await stage.say(*over(lab, at + HOUR_MS))
    await stage.through(at + 2 * HOUR_MS)
    bill = await stage.statement(end=at + 2 * HOUR_MS)
    ran = at - stage.start
    exact = RATE * ran + 2 * RATE * HOUR_MS
    assert abs(bill.total_nanos * HOUR_MS - exact) * 2 <= HOUR_MS
    bounds = {
        (line.price_version, line.start_time.ToMilliseconds(), line.end_time.ToMilliseconds())
        for line in bill.lines
    }
    assert bounds == {(first.version, stage.start, at), ("dearer", at, at + HOUR_MS)}
    third = api.PriceBook()
    third.CopyFrom(wanted)
    third.version = "dearest"
    await publish(third)
    assert (await stage.statement()).cut.price_book == 3
    told_of = await stage.explain("lab", cut=bill.cut, end=at + 2 * HOUR_MS)
    assert {book.version for book in told_of.price_books} == {first.version, "dearer"}
    assert {segment.price_book for one in told_of.lines for segment in one.segments} == {1, 2}


async def test_what_cannot_be_used_disputes_its_replica_alone_until_it_is_retried(
    stage: Stage, database: str
) -> None:
    good, bad, other = subject("good"), subject("bad"), subject("far", project="other")
    operator = await asyncpg.connect(database)
    await operator.execute("ALTER TABLE billing.run ADD CHECK (replica <> 'rep_bad')")
    for whose in (good, bad, other):
        await stage.say(*begun(whose, stage.at(0), stage.at(1)), *over(whose, stage.at(61)))
    await stage.through(stage.at(600))
    disputed = await stage.statement()
    assert list(disputed.disputed) == ["rep_bad"]
    assert [one.uid for one in disputed.cut.disputed] == ["rep_bad"]
    assert (disputed.total_nanos, disputed.complete) == (RATE, False)
    assert list((await stage.cost()).disputed) == ["rep_bad"]
    foreign = await stage.statement(parent="projects/other")
    assert (list(foreign.disputed), foreign.total_nanos, foreign.complete) == ([], RATE, True)
    # Nobody else's bill waits.
    far = await stage.states(api.WorkloadSettled, 1)
    assert [one.uid for one in far] == ["wkl_far"]  # type: ignore[attr-defined]

    await operator.execute("ALTER TABLE billing.run DROP CONSTRAINT run_replica_check")
    await operator.close()
    request = journal.RetryParkedFactsRequest(
        reader="billing/executor", stream="replica/rep_bad", journal=JOURNAL
    )
    done = await stage.platform.call(stage.log.RetryParkedFacts, request)
    assert (done.handled, done.left) == (3, 0)
    right = await stage.statement()
    assert (list(right.disputed), right.total_nanos, right.complete) == ([], 2 * RATE, True)
    settled = await stage.states(api.WorkloadSettled, 3)
    assert {one.amount.nanos for one in settled} == {RATE}  # type: ignore[attr-defined]
    for before in (disputed, foreign, right):
        await stage.assert_again(before)
    explained = await stage.explain("bad", cut=disputed.cut)
    assert list(explained.disputed) == ["rep_bad"]
    assert sum(one.line.amount_nanos for one in explained.lines) == 0


async def test_two_processes_state_each_limit_and_each_settlement_once(
    stage: Stage, database: str, nats_server: NatsServer
) -> None:
    operator = await asyncpg.connect(database)
    async with beside(stage, database, nats_server):
        works: list[workload.Subject] = []
        for wave in range(3):
            more = [subject(f"w{wave}-{number}", limit=10**9) for number in range(4)]
            free = [subject(f"f{wave}-{number}", limit=10**13) for number in range(2)]
            works += [*more, *free]
            for whose in (*more, *free):
                await stage.say(*begun(whose, stage.at(0), stage.at(0)))
            await stage.through(stage.at(30 + wave))
            await stage.states(api.CostLimitReached, 4 * (wave + 1))
            for whose in (*more, *free):
                await stage.say(*over(whose, stage.at(60)))
            await stage.through(stage.at(61 + wave))
            await stage.states(api.WorkloadSettled, len(works))
            # As if the holder had slept: the other process goes on.
            await operator.execute(
                "UPDATE billing.lease SET writer_epoch = writer_epoch + 1, holder = 'another',"
                " expires_at = clock_timestamp() WHERE name = 'settlement'"
            )
    await operator.close()
    limits = await stage.stated(api.CostLimitReached)
    settled = await stage.stated(api.WorkloadSettled)
    assert Counter(one.uid for one in limits) == Counter(  # type: ignore[attr-defined]
        one.workload for one in works if one.max_cost.nanos == 10**9
    )
    assert all(one.amount.nanos >= 10**9 for one in limits)  # type: ignore[attr-defined]
    assert Counter(one.uid for one in settled) == Counter(one.workload for one in works)  # type: ignore[attr-defined]
    assert {one.amount.nanos for one in settled} == {RATE}  # type: ignore[attr-defined]


@asynccontextmanager
async def beside(stage: Stage, dsn: str, nats: NatsServer) -> AsyncIterator[Process]:
    """Another process with billing alone, of the same platform."""
    home = stage.platform.home
    environment = {
        "FERMION_POSTGRES_DSN": dsn,
        "FERMION_NATS_URL": nats.url,
        "FERMION_NATS_KEYS": str(nats.keys),
        "FERMION_LISTEN": f"127.0.0.1:{free_port()}",
        "FERMION_ADDRESS": f"127.0.0.1:{stage.platform.process.port}",
        "FERMION_PUBLIC_KEYS": str(home.path("keys", "jwks.json")),
        "FERMION_SERVICE_TOKENS": str(home.path("keys", "tokens")),
        **SETTINGS,
    }
    targets = {"projects": PROJECTS, "billing": BILLING, "executor": stage.executor.target}
    process = Process(targets, ("billing",), environment)
    task = asyncio.create_task(process.run(), name="another billing")

    async def ready() -> bool:
        assert not task.done()
        return process.ready.is_set()

    try:
        await until(ready, bool, "the other billing did not start")
        yield process
    finally:
        process.stopping.set()
        await task


async def test_what_is_not_declared_yet_is_estimated_by_the_prices_in_force(stage: Stage) -> None:
    wanted = workload.Workload(project="acme", grace=Duration(seconds=40))
    wanted.max_duration.FromSeconds(7200)
    wanted.groups.add(
        replicas=2,
        resources=workload.Resources(
            gpu_type="H100-80GB", gpu_milli=1000, cpu_milli=4000, memory_bytes=8 * GIB
        ),
    )

    async def estimate() -> api.EstimateCostResponse:
        request = api.EstimateCostRequest(parent=PARENT, workload=wanted, storage_bytes=100 * GIB)
        return await stage.platform.call(stage.costs.EstimateCost, request)

    found = await estimate()
    assert (found.currency, found.rate_nanos, found.stopped_rate_nanos) == ("USD", 2 * RATE, 0)
    # Its grace beyond what is free of it may be taken too.
    assert found.worst_nanos == 2 * RATE * (7200 + 30) // 3600
    wanted.max_cost.CopyFrom(workload.Money(currency="USD", nanos=RATE))
    assert (await estimate()).worst_nanos == RATE
    # Whatever model it gets: the dearest.
    wanted.groups[0].resources.gpu_type = ""
    assert (await estimate()).rate_nanos == 2 * RATE


async def test_a_charge_is_explained_by_the_statements_lines_down_to_facts_that_were_stated(
    stage: Stage,
) -> None:
    lab = subject("lab", labels={"team": "a"})
    uid, work = replica(lab), lab.workload
    relabelled = workload.ReplicaRelabelled(
        uid=uid, workload=work, project="acme", n=1, labels={"team": "b"}
    )
    relabelled.witness.CopyFrom(witness(stage.at(20)))
    lost = workload.ReplicaLost(uid=uid, workload=work, project="acme", n=1)
    lost.witness.CopyFrom(witness(stage.at(30), workload.EVIDENCE_CLASS_LAST_PROOF))
    found = workload.ReplicaFound(uid=uid, workload=work, project="acme", n=1)
    found.witness.CopyFrom(witness(stage.at(35)))
    draining = workload.ReplicaDraining(
        uid=uid, workload=work, project="acme", cause=workload.CAUSE_USER_STOP
    )
    draining.witness.CopyFrom(witness(stage.at(70)))
    await stage.say(*begun(lab, stage.at(0), stage.at(5)), relabelled, lost, found, draining)
    await stage.say(*over(lab, stage.at(71)))
    volume = workload.Subject()
    volume.CopyFrom(lab)
    volume.sku.CopyFrom(workload.Sku(storage_bytes=GIB))
    await stage.say(
        workload.VolumeBound(uid="vol_lab", subject=volume, witness=witness(stage.at(0)))
    )
    await stage.through(stage.at(120))

    bill = await stage.statement()
    told_of = await stage.explain("lab", cut=bill.cut)
    assert [one.line for one in told_of.lines] == list(bill.lines)
    assert told_of.cut == bill.cut
    page = await stage.executor.journal.read(0, 1000)
    stated = {one.position: one for one in page.records}
    states = set()
    for one in told_of.lines:
        line = one.line
        assert one.segments
        lengths = [
            segment.end_time.ToMilliseconds() - segment.start_time.ToMilliseconds()
            for segment in one.segments
        ]
        assert sum(lengths) == line.replica_milliseconds
        for segment in one.segments:
            states.add((segment.state, segment.billed, segment.why))
            assert segment.evidence
            for fact in segment.evidence:
                assert fact.journal == JOURNAL
                said = stated[fact.position]
                assert said.type.rsplit(".", 1)[-1] == fact.type
                assert said.stream.partition("/")[2] == segment.uid
                assert said.message is not None
                seen = said.message.witness  # type: ignore[attr-defined]
                assert (seen.occurred_time, seen.evidence) == (fact.occurred_time, fact.evidence)
    running, draining_user = api.BILLABLE_STATE_RUNNING, api.BILLABLE_STATE_DRAINING_BY_USER
    assert states == {
        (api.BILLABLE_STATE_HELD, False, "HELD_NOT_STARTED"),
        (running, True, "RUNNING"),
        (api.BILLABLE_STATE_UNREACHABLE, False, "UNREACHABLE"),
        (draining_user, False, "DRAINING_FREE"),
        (draining_user, True, "DRAINING"),
        (api.BILLABLE_STATE_STORAGE, True, "STORAGE"),
    }
    # From its start to its drain but for what was lost, and all but ten seconds of the drain.
    assert bill.total_nanos == (RATE * (60 * 60 + 50) + 1800) // 3600
    paid = max(bill.lines, key=lambda line: line.amount_nanos)
    alone = await stage.explain("lab", cut=bill.cut, line=paid.id)
    assert [one.line.id for one in alone.lines] == [paid.id]
    refusal = await stage.platform.refusal(
        stage.costs.ExplainCharge,
        api.ExplainChargeRequest(owner=f"{PARENT}/instances/lab", line="lin_none"),
    )
    assert refusal.reason == "LINE_UNKNOWN"


async def test_however_costs_are_grouped_they_sum_to_the_same(stage: Stage) -> None:
    works = [
        subject("one", labels={"team": "a"}),
        subject("two", user="user_bob", labels={"team": "b"}, kind=workload.KIND_TRAINING),
        subject("three", user="user_bob"),
        subject("four", project="other", labels={"team": "a"}),
    ]
    for place, whose in enumerate(works):
        # Lengths that no price divides evenly, and some over midnight.
        await stage.say(*begun(whose, stage.at(0), stage.at(1) + place))
        if place % 2:
            await stage.say(*over(whose, stage.at(500) + 7 * place + 1))
    await stage.through(stage.at(550))
    await stage.say(workload.ProofOfLife(cluster=CLUSTER, until_time=stamp(stage.at(560))))

    alone = [(await stage.cost(parent=f"projects/{name}")).total for name in ("acme", "other")]
    for parent, whole in (
        (PARENT, alone[0]),
        ("projects/other", alone[1]),
        ("projects/-", (await stage.cost(parent="projects/-")).total),
    ):
        assert whole.settled_nanos > 0
        for by, label in (
            ([api.GROUP_BY_PROJECT], ""),
            ([api.GROUP_BY_USER], ""),
            ([api.GROUP_BY_OWNER], ""),
            ([api.GROUP_BY_KIND], ""),
            ([api.GROUP_BY_LABEL], "team"),
            ([api.GROUP_BY_DAY], ""),
            ([api.GROUP_BY_OWNER, api.GROUP_BY_DAY, api.GROUP_BY_LABEL], "team"),
        ):
            found = await stage.cost(parent=parent, group_by=by, label=label)
            assert summed(found.costs) == figures(found.total) == figures(whole)
            assert all(len(one.keys) == len(by) for one in found.costs)
    together = (await stage.cost(parent="projects/-", group_by=[api.GROUP_BY_PROJECT])).costs
    assert [tuple(one.keys) for one in together] == [("acme",), ("other",)]
    assert [one.rate_nanos for one in together] == [2 * RATE, 0]
    # Each is the bill of its project but for the nano that its rounding may have given away.
    for one, own in zip(together, alone, strict=True):
        assert abs(one.settled_nanos - own.settled_nanos) <= 1
    bills = [await stage.statement(parent=f"projects/{name}") for name in ("acme", "other")]
    assert [bill.total_nanos for bill in bills] == [one.settled_nanos for one in alone]
    labels = (await stage.cost(group_by=[api.GROUP_BY_LABEL], label="team")).costs
    assert {one.keys[0] for one in labels} == {"", "a", "b"}
    kinds = (await stage.cost(group_by=[api.GROUP_BY_KIND])).costs
    assert {one.keys[0] for one in kinds} == {"KIND_INSTANCE", "KIND_TRAINING"}


def figures(cost: api.Cost) -> tuple[int, int, int]:
    return cost.settled_nanos, cost.accruing_nanos, cost.rate_nanos


def summed(costs: Iterable[api.Cost]) -> tuple[int, ...]:
    return tuple(sum(column) for column in zip(*map(figures, costs), strict=True))


async def test_a_watch_tells_the_cost_as_it_grows(stage: Stage) -> None:
    lab = subject("lab")
    request = api.WatchCostRequest(parent=PARENT, start_time=stamp(stage.start))
    watching = stage.costs.WatchCost(request, metadata=stage.platform.metadata, timeout=20)
    seen: list[int] = []
    async for told_of in watching:
        assert told_of.HasField("compute_time")
        seen.append(told_of.total.settled_nanos)
        match len(seen):
            case 1:
                await stage.say(*begun(lab, stage.at(0), stage.at(0)))
                await stage.through(stage.at(60))
            case _ if seen[-1] == RATE:
                await stage.through(stage.at(120))
            case _ if seen[-1] == 2 * RATE:
                break
    assert seen[0] == 0
    assert seen == sorted(seen)


async def test_who_may_see_the_bill_of_a_project_and_nobody_else_does(stage: Stage) -> None:
    call = stage.platform.call
    users, membership = (
        UserServiceStub(stage.platform.channel),
        ProjectServiceStub(stage.platform.channel),
    )
    tokens: dict[str, str] = {}
    for name in ("payer", "stranger"):
        await call(users.CreateUser, projects.CreateUserRequest(user_id=name))
        issue = projects.CreateTokenRequest(parent=f"users/{name}")
        tokens[name] = (await call(users.CreateToken, issue)).signed_token
    await call(
        membership.SetMember,
        projects.SetMemberRequest(
            parent=PARENT, user="users/payer", role=projects.ROLE_BILLING_VIEWER
        ),
    )
    listed = await call(stage.prices.ListPriceBooks, api.ListPriceBooksRequest())
    owner = f"{PARENT}/instances/lab"
    asked: Sequence[tuple[grpc.aio.UnaryUnaryMultiCallable[Message, Message], Message]] = [
        (stage.costs.GetUsage, api.GetUsageRequest(parent=PARENT)),  # type: ignore[list-item]
        (stage.costs.GetCost, api.GetCostRequest(parent=PARENT)),  # type: ignore[list-item]
        (stage.costs.GetStatement, api.GetStatementRequest(parent=PARENT)),  # type: ignore[list-item]
        (stage.costs.ExplainCharge, api.ExplainChargeRequest(owner=owner)),  # type: ignore[list-item]
    ]
    after = stage.platform.metadata[1:]
    for method, request in asked:
        payer = (("authorization", f"Bearer {tokens['payer']}"), *after)
        await method(request, metadata=payer, timeout=20)
        stranger = (("authorization", f"Bearer {tokens['stranger']}"), *after)
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await method(request, metadata=stranger, timeout=20)
        assert told(error.value).code in ("PERMISSION_DENIED", "NOT_FOUND")
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await stage.costs.GetCost(
            api.GetCostRequest(parent="projects/-"), metadata=payer, timeout=20
        )
    assert told(error.value).code == "PERMISSION_DENIED"
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await stage.prices.PublishPriceBook(
            api.PublishPriceBookRequest(price_book=listed.price_books[0]),
            metadata=payer,
            timeout=20,
        )
    assert told(error.value).code == "PERMISSION_DENIED"


@pytest.mark.parametrize(
    "wrong",
    [
        api.GetCostRequest(parent=PARENT, start_time=Timestamp(seconds=10**17)),
        api.GetUsageRequest(parent=PARENT, end_time=Timestamp(seconds=-(10**15))),
        api.GetStatementRequest(parent=PARENT, start_time=Timestamp(seconds=1, nanos=-5)),
        api.GetStatementRequest(
            parent=PARENT, cut=api.Cut(sources=[api.Cut.Source(position=-(2**63))])
        ),
        api.ExplainChargeRequest(
            owner=f"{PARENT}/instances/lab", start_time=Timestamp(seconds=2**62)
        ),
        api.EstimateCostRequest(
            parent=PARENT,
            workload=workload.Workload(
                groups=[
                    workload.Group(replicas=10_000, resources=workload.Resources(gpu_milli=64_000))
                ],
                max_duration=Duration(seconds=10**11),
            ),
        ),
        api.ListPriceBooksRequest(page_token=PageToken.encode("first", "", "prices")),
        api.ListPriceBooksRequest(page_token=PageToken.encode("9" * 30, "", "prices")),
    ],
    ids=lambda wrong: type(wrong).__name__,
)
async def test_what_cannot_be_a_time_a_place_or_an_amount_is_refused_by_name(
    stage: Stage, wrong: Message
) -> None:
    call = type(wrong).__name__.removesuffix("Request")
    stub = stage.prices if call == "ListPriceBooks" else stage.costs
    refusal = await stage.platform.refusal(getattr(stub, call), wrong)
    assert refusal.code in ("INVALID_ARGUMENT", "FAILED_PRECONDITION")
    assert refusal.reason in ("FIELD_INVALID", "PAGE_TOKEN_MISMATCH", "AMOUNT_TOO_LARGE")


async def test_operators_see_what_is_open_how_old_it_is_and_what_nobody_pays_for(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept, "FIGURES_SECONDS", 0.05)
    shown, here = stage.platform.figure_is, {"cluster": CLUSTER}
    intervals, unbilled = "fermion_billing_open_intervals", "fermion_billing_unbilled_seconds_total"
    # It counts from where it has looked first.
    await shown(lambda found: found == 0, unbilled, **here, reason="held")
    held, gone = subject("held"), subject("gone")
    await stage.say(begun(held, stage.at(0), stage.at(2))[0])
    await stage.say(*begun(gone, stage.at(0), stage.at(5)))
    await shown(lambda found: found == 1, intervals, **here, state="held")
    await shown(lambda found: found == 1, intervals, **here, state="running")
    await stage.through(stage.at(10))
    # Ten minutes of one, and five of the other before it ran.
    await shown(lambda found: found == 15 * 60, unbilled, **here, reason="held")
    await shown(lambda found: found == 5 * 60, "fermion_billing_billed_seconds_total", **here)
    await stage.say(*over(gone, stage.at(20)))
    await shown(lambda found: found == 0, intervals, **here, state="running")
    await shown(lambda found: found == 1, "fermion_billing_unsettled_workloads", **here)
    hours = (datetime.now(UTC).timestamp() * 1000 - stage.at(20)) / 1000
    await shown(
        lambda found: hours <= found < hours + 60, "fermion_billing_settle_lag_seconds", **here
    )
    await shown(
        lambda found: hours + 600 <= found < hours + 660,
        "fermion_billing_settled_age_seconds",
        **here,
    )
    await stage.through(stage.at(21))
    await shown(lambda found: found == 0, "fermion_billing_unsettled_workloads", **here)
    await shown(lambda found: found == 0, "fermion_billing_settle_lag_seconds", **here)
    await shown(lambda found: found == 15 * 60, "fermion_billing_billed_seconds_total", **here)
    assert await stage.platform.figure("fermion_billing_disputed_streams") == 0
