"""The scheduler at work: modules and executors say what a test tells them, PostgreSQL and NATS are real."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import asyncpg
import grpc.aio
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from chassis import figures as kept
from chassis.embedded import free_port
from chassis.process import Process
from chassis.rebuild import rebuild
from chassis.service import Target
from chassis.watch import encode
from fermion.api.billing import v1 as billing
from fermion.api.projects import v1 as projects
from fermion.api.projects.v1.service_pb2_grpc import ProjectServiceStub, QuotaServiceStub
from fermion.api.scheduler import v1 as api
from fermion.api.scheduler.v1.service_pb2_grpc import QueueServiceStub
from fermion.api.workload import v1 as workload
from services.projects.wiring import TARGET as PROJECTS
from services.scheduler import admitter
from services.scheduler.wiring import TARGET as SCHEDULER
from tests.integration.platform import Platform, running, told, until
from tests.integration.voices import Voice, enrol
from tests.servers import CLUSTER, NatsServer

GIB = 2**30
PARENT = "projects/acme"


def node(name: str = "n1", gpus: int = 4, cpu: int = 16) -> workload.NodeReported:
    """What an executor says of a node."""
    models = [workload.Node.Gpu(gpu_type="A100", count=gpus)] if gpus else []
    body = workload.Node(
        node=name,
        cpu_milli=cpu * 1000,
        memory_bytes=64 * GIB,
        storage_bytes=100 * GIB,
        gpus=models,
        architecture="amd64",
    )
    return workload.NodeReported(cluster=CLUSTER, node=body)


def declared(
    name: str,
    *,
    gpus: int = 0,
    replicas: int = 1,
    least: int | None = None,
    volume: str = "",
    project: str = "acme",
    **more: object,
) -> workload.Workload:
    """What a module declares."""
    group = workload.Group(
        replicas=replicas,
        min_replicas=replicas if least is None else least,
        resources=workload.Resources(gpu_milli=gpus * 1000, cpu_milli=1000, memory_bytes=GIB),
        image=workload.Image(repository="host"),
    )
    if volume:
        group.mounts.add(path="/data").volume.volume_uid = volume
    return workload.Workload(
        uid=f"wkl_{name}",
        owner=f"projects/{project}/instances/{name}",
        owner_uid=f"inst_{name}",
        attempt=1,
        project=project,
        user="user_ada",
        kind=workload.KIND_INSTANCE,
        groups=[group],
        grace=Duration(seconds=1),
        **more,  # type: ignore[arg-type]
    )


class Stage:
    """A scheduler between a module and an executor."""

    def __init__(
        self, platform: Platform, dsn: str, module: Voice, biller: Voice, executor: Voice
    ) -> None:
        self.platform = platform
        self.module = module
        self.biller = biller
        self.executor = executor
        self.queue = QueueServiceStub(platform.channel)
        self.quotas = QuotaServiceStub(platform.channel)
        self._dsn = dsn
        self._billed = 0

    async def cluster(self, *nodes: workload.NodeReported) -> None:
        """Have a cluster with these nodes."""
        await enrol(self._dsn)
        can = workload.Capabilities(
            cluster_kind="local",
            features=["volumes"],
            images=[workload.Capabilities.Runnable(repository="host")],
        )
        await self.executor.say(workload.ClusterRegistered(uid=CLUSTER, capabilities=can), *nodes)
        await self.room(1)

    async def room(self, cpu: int, gpus: int = 0) -> None:
        """Wait until the scheduler knows of so much room."""
        asked = declared("asked", gpus=gpus, project="other")
        asked.groups[0].resources.cpu_milli = 1000 * cpu
        request = api.OutlookWorkloadRequest(parent="projects/other", workload=asked)

        async def starts() -> bool:
            found = await self.platform.call(self.queue.OutlookWorkload, request)
            return found.explanation.HasField("latest_start_time")

        await until(starts, bool, "there is no room")

    async def declare(self, *works: workload.Workload) -> None:
        """Let a module declare workloads."""
        await self.module.say(*(workload.WorkloadDeclared(workload=one) for one in works))

    async def bill(self, *facts: Message) -> None:
        """Let billing say something, and wait until the scheduler has done what it does about it."""
        await self.biller.say(*facts)
        self._billed += len(facts)
        self.platform.seen["billing/0"] = str(self._billed)
        await self.listed()

    async def facts(self) -> list[Message]:
        """Everything that the scheduler has stated."""
        return await facts_of(self.platform.process)

    async def said(self, name: str) -> list[str]:
        """What it has stated about one, in order; of reasons, their codes."""
        return [kind(fact) for fact in await self.facts() if uid_of(fact).endswith(f"_{name}")]

    async def becomes(self, name: str, last: str) -> list[str]:
        """Wait until this is what it has stated last about one."""
        return await until(
            lambda: self.said(name), lambda found: found[-1:] == [last], f"{name} is not {last}"
        )

    async def admission(self, name: str) -> workload.WorkloadAdmitted:
        """Wait until one is admitted, and tell how."""
        await until(lambda: self.said(name), lambda found: "Admitted" in found, name)
        (*_, fact) = [
            fact
            for fact in await self.facts()
            if isinstance(fact, workload.WorkloadAdmitted) and uid_of(fact) == f"wkl_{name}"
        ]
        return fact

    async def bound(self, name: str, place: str = "n1", rank: int = 0) -> str:
        """Let the executor bind a replica; its uid."""
        replica = f"rep_{name}_{rank}"
        subject = workload.Subject(workload=f"wkl_{name}", rank=rank, project="acme")
        await self.executor.say(workload.ReplicaScheduled(uid=replica, subject=subject, node=place))
        return replica

    async def finish(self, name: str, *replicas: str) -> None:
        """Let the executor say that all of a workload is gone."""
        uid = f"wkl_{name}"
        for replica in replicas:
            gone = workload.ReplicaReleased(uid=replica, workload=uid, project="acme")
            await self.executor.say(gone)
        await self.executor.say(
            workload.WorkloadFinished(uid=uid, outcome=workload.OUTCOME_STOPPED, project="acme")
        )

    async def explain(self, name: str) -> api.Explanation:
        request = api.ExplainWorkloadRequest(owner=f"{PARENT}/instances/{name}")
        return (await self.platform.call(self.queue.ExplainWorkload, request)).explanation

    async def listed(self) -> Sequence[api.QueuedWorkload]:
        request = api.ListQueuedWorkloadsRequest(parent=PARENT)
        return (await self.platform.call(self.queue.ListQueuedWorkloads, request)).workloads

    async def holdings(self) -> dict[str, api.Holding]:
        request = api.ListHoldingsRequest(parent=PARENT)
        answer = await self.platform.call(self.queue.ListHoldings, request)
        return {one.scope: one for one in answer.holdings}

    async def limit(self, name: str, **limits: object) -> None:
        """Let an admin set limits."""
        wanted = projects.Limits(**limits)  # type: ignore[arg-type]
        await self.platform.call(
            self.quotas.SetQuota,
            projects.SetQuotaRequest(quota=projects.Quota(name=name, limits=wanted)),
        )


async def facts_of(process: Process) -> list[Message]:
    """Everything that the scheduler of a process has stated."""
    (part,) = [one for one in process._parts if one.target.name == "scheduler"]
    page = await part.journal.read(0, 100_000)
    return [fact.message for fact in page.records if fact.message is not None]


def uid_of(fact: Message) -> str:
    """The workload or the volume that a fact is about."""
    for holder in ("workload", "volume"):
        found = getattr(fact, holder, None)
        if isinstance(found, Message) and found.ByteSize():
            return str(getattr(found, "uid", ""))
    return str(getattr(fact, "uid", ""))


def kind(fact: Message) -> str:
    match fact:
        case workload.WorkloadQueued() | workload.WorkloadRefused():
            return fact.reason.code
        case _:
            return fact.DESCRIPTOR.name.removeprefix("Workload")


@asynccontextmanager
async def staged(dsn: str, nats: NatsServer, folder: Path, **settings: str) -> AsyncIterator[Stage]:
    """A platform whose module, billing and executor are voices."""
    module, biller, executor = Voice("instances"), Voice("billing"), Voice("executor", CLUSTER)
    targets = {
        "projects": PROJECTS,
        "instances": module.target,
        "scheduler": SCHEDULER,
        "billing": biller.target,
        "executor": executor.target,
    }
    async with running(dsn, nats, folder, targets=targets, **settings) as platform:
        for name in ("acme", "other"):
            await platform.call(
                ProjectServiceStub(platform.channel).CreateProject,
                projects.CreateProjectRequest(project_id=name),
            )
        yield Stage(platform, dsn, module, biller, executor)


@pytest.fixture
async def stage(database: str, nats_server: NatsServer, tmp_path: Path) -> AsyncIterator[Stage]:
    async with staged(database, nats_server, tmp_path) as found:
        yield found


async def test_a_workload_from_its_declaration_to_the_end_of_its_hold(stage: Stage) -> None:
    await stage.cluster(node())
    await stage.declare(declared("one", gpus=2))
    fact = await stage.admission("one")
    assert (fact.cluster, list(fact.nodes), dict(fact.replicas)) == (CLUSTER, ["n1"], {"": 1})
    assert fact.workload.groups[0].resources.gpu_type == "A100"
    assert (fact.hold.gpu_type, fact.hold.gpu_milli) == ("A100", 2000)
    replica = await stage.bound("one")
    await stage.module.say(
        workload.WorkloadWithdrawn(uid="wkl_one", cause=workload.CAUSE_USER_STOP, project="acme")
    )
    await stage.becomes("one", "Revoked")
    held = (await stage.holdings())[PARENT].held
    assert (held.gpu_milli["A100"], held.workloads["instance"]) == (2000, 1)
    await stage.finish("one", replica)
    assert await stage.becomes("one", "HoldReleased") == [
        *("ARRIVED", "Admitted", "Revoked", "HoldReleased"),
    ]
    assert not (await stage.holdings())[PARENT].held.gpu_milli


async def test_without_a_cluster_it_waits_and_is_admitted_when_there_is_one(stage: Stage) -> None:
    await stage.declare(declared("one"))
    await stage.becomes("one", "NO_CLUSTER")
    await stage.cluster(node())
    await stage.admission("one")
    assert await stage.said("one") == ["ARRIVED", "NO_CLUSTER", "Admitted"]


async def test_beyond_its_quota_it_waits_with_reason_and_place_until_something_stops(
    stage: Stage,
) -> None:
    await stage.limit("projects/-/quota", gpu_milli={"*": 2000})
    await stage.cluster(node())
    await stage.declare(declared("one", gpus=2))
    await stage.admission("one")
    replica = await stage.bound("one")
    for name in ("two", "three", "four"):
        await stage.declare(declared(name, gpus=1))
        await stage.becomes(name, "QUOTA")
    told = await stage.explain("three")
    assert (told.place, told.waiting, told.workload.reason.code) == (2, 3, "QUOTA")
    (short,) = told.shortages
    assert (short.where, short.dimension) == (PARENT, "gpu_milli/*")
    assert (short.need, short.free, short.limit, short.short) == (1000, 0, 2000, 1000)
    assert not told.HasField("latest_start_time")
    assert [one.place for one in await stage.listed()] == [1, 2, 3]

    await stage.module.say(workload.WorkloadWithdrawn(uid="wkl_one", project="acme"))
    await stage.finish("one", replica)
    await stage.admission("two")
    await stage.admission("three")
    assert await stage.said("four") == ["ARRIVED", "QUOTA"]
    assert (await stage.explain("four")).place == 1
    holdings = await stage.holdings()
    assert list(holdings) == [PARENT, "users/user_ada"]
    assert holdings[PARENT].limits.gpu_milli["*"] == 2000
    assert holdings[PARENT].inherited


async def test_a_quota_that_is_raised_lets_in_what_waited_for_it(stage: Stage) -> None:
    await stage.cluster(node())
    await stage.limit(f"{PARENT}/quota", workloads={"instance": 0})
    await stage.declare(declared("one"))
    assert (await stage.becomes("one", "QUOTA"))[-1] == "QUOTA"
    await stage.limit(f"{PARENT}/quota", workloads={"instance": 1})
    await stage.admission("one")


async def test_more_than_the_cluster_has_waits_with_what_is_short(stage: Stage) -> None:
    await stage.cluster(node(gpus=4))
    await stage.declare(declared("huge", gpus=9))
    await stage.becomes("huge", "CAPACITY")
    told = await stage.explain("huge")
    (short,) = told.shortages
    assert (short.where, short.need, short.limit) == (f"clusters/{CLUSTER}", 9000, 4000)
    assert told.workload.reason.arguments["short_of"] == "total"
    await stage.executor.say(node("n2", gpus=16))
    assert list((await stage.admission("huge")).nodes) == ["n2"]


async def test_what_no_cluster_can_honour_is_refused_with_the_field(stage: Stage) -> None:
    await stage.cluster(node())
    strange = declared("strange")
    strange.groups[0].image.repository = "registry/none"
    shy = declared("shy")
    shy.placement.same_rack = True
    probed = declared("probed")
    probed.groups[0].probes.readiness.port = "http"
    await stage.declare(strange, shy, probed)
    fields = {}
    for name in ("strange", "shy", "probed"):
        await until(
            lambda name=name: stage.said(name),  # type: ignore[misc]
            lambda found: any(one.endswith("NOT_HONOURED") for one in found),
            name,
        )
        (fact,) = [
            fact
            for fact in await stage.facts()
            if isinstance(fact, workload.WorkloadRefused) and fact.uid == f"wkl_{name}"
        ]
        fields[name] = (fact.reason.code, fact.reason.arguments["field"].partition(".")[0])
    assert fields == {
        "strange": ("IMAGE_NOT_HONOURED", "groups[0]"),
        "shy": ("FIELD_NOT_HONOURED", "placement"),
        "probed": ("FIELD_NOT_HONOURED", "groups[0]"),
    }


async def test_withdrawals_come_to_the_same_end_whenever_they_come(stage: Stage) -> None:
    gone = workload.WorkloadWithdrawn(uid="wkl_early", project="acme")
    await stage.module.say(workload.WorkloadDeclared(workload=declared("early")), gone)
    assert await stage.becomes("early", "WITHDRAWN") == ["ARRIVED", "WITHDRAWN"]
    await stage.cluster(node())
    for number in range(5):
        name = f"race-{number}"
        await stage.module.say(
            workload.WorkloadDeclared(workload=declared(name)),
            workload.WorkloadWithdrawn(uid=f"wkl_{name}", project="acme"),
        )
        said = await until(
            lambda name=name: stage.said(name),  # type: ignore[misc]
            lambda found: {"WITHDRAWN", "Revoked"} & set(found),
            name,
        )
        if said[-1] == "Revoked":
            await stage.finish(name)
            said = await stage.becomes(name, "HoldReleased")
        assert said in (
            ["ARRIVED", "WITHDRAWN"],
            ["ARRIVED", "Admitted", "Revoked", "HoldReleased"],
        )


async def test_what_has_cost_what_it_may_is_taken_down_once_with_its_own_grace(
    stage: Stage,
) -> None:
    limit = workload.Money(nanos=10**9)
    await stage.declare(declared("waits", max_cost=limit))
    await stage.becomes("waits", "NO_CLUSTER")
    reached = {
        name: billing.CostLimitReached(uid=f"wkl_{name}", amount=limit, limit=limit, project="acme")
        for name in ("waits", "runs", "unknown")
    }
    # Of what waits, and of what never came, nothing follows, and nothing is held against it later.
    await stage.bill(reached["waits"], reached["unknown"])
    await stage.declare(declared("runs", max_cost=limit))
    await stage.cluster(node())
    assert (await stage.admission("runs")).workload.max_cost == limit
    await stage.admission("waits")
    await stage.bill(reached["runs"], reached["runs"])
    (revoked,) = [one for one in await stage.facts() if isinstance(one, workload.WorkloadRevoked)]
    assert (revoked.uid, revoked.cause) == ("wkl_runs", workload.CAUSE_BUDGET)
    assert revoked.grace == Duration(seconds=1)
    await stage.finish("runs")
    await stage.becomes("runs", "HoldReleased")
    await stage.bill(reached["runs"], reached["waits"])
    assert (await stage.said("runs"))[-3:] == ["Admitted", "Revoked", "HoldReleased"]
    assert (await stage.said("waits"))[-2:] == ["Admitted", "Revoked"]
    assert await stage.said("unknown") == []


async def test_a_platform_without_billing_admits_as_any_other(
    database: str, nats_server: NatsServer, tmp_path: Path
) -> None:
    module, biller, executor = Voice("instances"), Voice("billing"), Voice("executor", CLUSTER)
    targets = {
        "projects": PROJECTS,
        "instances": module.target,
        "scheduler": SCHEDULER,
        "executor": executor.target,
    }
    async with running(database, nats_server, tmp_path, targets=targets) as platform:
        for name in ("acme", "other"):
            await platform.call(
                ProjectServiceStub(platform.channel).CreateProject,
                projects.CreateProjectRequest(project_id=name),
            )
        stage = Stage(platform, database, module, biller, executor)
        await stage.cluster(node())
        await stage.declare(declared("one", max_cost=workload.Money(nanos=1)))
        await stage.admission("one")


async def test_a_mount_of_another_size_than_its_volume_is_refused(stage: Stage) -> None:
    await stage.cluster(node())
    volume = workload.Volume(uid="vol_data", owner_uid="inst_one", project="acme", size_bytes=GIB)
    await stage.module.say(workload.VolumeDeclared(volume=volume))
    wrong = declared("wrong", volume="vol_data")
    wrong.groups[0].mounts[0].volume.size_bytes = 2 * GIB
    await stage.declare(wrong)
    await stage.becomes("wrong", "VOLUME_SIZE_DIFFERS")


async def test_a_volume_goes_with_its_first_workload_and_stays_held_until_it_is_deleted(
    stage: Stage,
) -> None:
    await stage.cluster(node(), node("n2"))
    volume = workload.Volume(
        uid="vol_data", owner_uid="inst_one", project="acme", user="user_ada", size_bytes=GIB
    )
    await stage.module.say(workload.VolumeDeclared(volume=volume))
    await stage.declare(declared("one", volume="vol_data"))
    await stage.admission("one")
    assert [kind(fact) for fact in await stage.facts() if uid_of(fact) == "vol_data"] == [
        *("VolumeQueued", "VolumeAdmitted"),
    ]
    subject = workload.Subject(project="acme")
    await stage.executor.say(workload.VolumeBound(uid="vol_data", node="n2", subject=subject))
    await stage.module.say(workload.WorkloadWithdrawn(uid="wkl_one", project="acme"))
    await stage.finish("one")
    await stage.becomes("one", "HoldReleased")
    assert (await stage.holdings())[PARENT].held.storage_bytes == GIB

    await stage.declare(declared("again", volume="vol_data"))
    assert list((await stage.admission("again")).nodes) == ["n2"]
    await stage.module.say(
        workload.WorkloadWithdrawn(uid="wkl_again", project="acme"),
        workload.VolumeWithdrawn(uid="vol_data", project="acme"),
    )
    await stage.finish("again")
    await stage.becomes("data", "VolumeRevoked")
    assert (await stage.holdings())[PARENT].held.storage_bytes == GIB
    await stage.executor.say(workload.VolumeDeleted(uid="vol_data", project="acme"))
    await stage.becomes("data", "HoldReleased")
    assert not (await stage.holdings())[PARENT].held.storage_bytes


async def test_replicas_come_as_there_is_room_and_go_at_once(stage: Stage) -> None:
    await stage.cluster(node(gpus=3))
    await stage.declare(declared("service", gpus=1, replicas=2))
    await stage.admission("service")
    scale = workload.WorkloadScaled(uid="wkl_service", project="acme", replicas=5)
    await stage.module.say(scale)

    async def replicas() -> int:
        return (await stage.admission("service")).replicas[""]

    await until(replicas, lambda found: found == 3, "did not grow")
    await stage.becomes("service", "RESERVED")
    assert [one.owner for one in await stage.listed()] == [f"{PARENT}/instances/service"]
    scale.replicas = 1
    await stage.module.say(scale)
    await until(replicas, lambda found: found == 1, "did not shrink")
    assert await stage.listed() == []


async def test_what_has_waited_as_long_as_it_may_is_refused(stage: Stage) -> None:
    await stage.declare(declared("brief", max_queue_time=Duration(nanos=300_000_000)))
    said = await stage.becomes("brief", "QUEUE_TIME_EXCEEDED")
    assert said == ["ARRIVED", "NO_CLUSTER", "QUEUE_TIME_EXCEEDED"]


async def test_what_was_given_up_with_its_node_is_held_until_the_node_is_gone(
    stage: Stage,
) -> None:
    await stage.cluster(node(gpus=1), node("n2", gpus=0))
    await stage.declare(declared("lost", gpus=1))
    await stage.admission("lost")
    replica = await stage.bound("lost")
    given_up = workload.ReplicaReleased(uid=replica, workload="wkl_lost", project="acme")
    given_up.witness.evidence = workload.EVIDENCE_CLASS_NODE_LEASE
    await stage.executor.say(
        given_up,
        workload.WorkloadFinished(uid="wkl_lost", outcome=workload.OUTCOME_LOST, project="acme"),
    )
    await stage.declare(declared("after"))
    await stage.admission("after")
    assert await stage.said("lost") == ["ARRIVED", "Admitted"]
    assert (await stage.holdings())[PARENT].held.gpu_milli["A100"] == 1000
    await stage.executor.say(workload.NodeRemoved(cluster=CLUSTER, node="n1"))
    await stage.becomes("lost", "HoldReleased")


async def test_the_longest_waiting_is_told_what_is_kept_for_it_and_others_whom_they_are_behind(
    stage: Stage,
) -> None:
    await stage.cluster(node(gpus=4))
    await stage.declare(declared("runs", gpus=2, max_duration=Duration(seconds=3600)))
    await stage.admission("runs")
    await stage.declare(declared("gang", gpus=4))
    await stage.becomes("gang", "RESERVED")
    await stage.declare(declared("small", gpus=1), declared("foreign", gpus=1, project="other"))
    await stage.becomes("small", "BEHIND")
    await stage.becomes("foreign", "BEHIND")
    kept = await stage.explain("gang")
    assert list(kept.reservation.nodes) == ["n1"]
    assert kept.reservation.start_time == kept.latest_start_time
    behind = (await stage.explain("small")).reservation
    assert (behind.workload_uid, behind.owner) == ("wkl_gang", f"{PARENT}/instances/gang")
    request = api.ExplainWorkloadRequest(owner="projects/other/instances/foreign")
    other = await stage.platform.call(stage.queue.ExplainWorkload, request)
    assert (other.explanation.reservation.workload_uid, other.explanation.place) == ("", 2)
    assert list(other.explanation.reservation.nodes) == ["n1"]


async def test_an_outlook_tells_of_what_is_not_declared_and_changes_nothing(stage: Stage) -> None:
    await stage.cluster(node(gpus=4))
    await stage.declare(declared("runs", gpus=3, max_duration=Duration(seconds=3600)))
    await stage.admission("runs")

    async def outlook(one: workload.Workload) -> api.Explanation:
        request = api.OutlookWorkloadRequest(parent=PARENT, workload=one)
        return (await stage.platform.call(stage.queue.OutlookWorkload, request)).explanation

    at_once = await outlook(declared("fits", gpus=1))
    assert (at_once.place, at_once.workload.reason.code) == (0, "")
    assert at_once.HasField("latest_start_time")
    later = await outlook(declared("waits", gpus=2))
    assert (later.place, later.waiting, later.workload.reason.code) == (1, 1, "CAPACITY")
    an_hour = later.latest_start_time.seconds - at_once.latest_start_time.seconds
    assert 3500 < an_hour <= 3601
    strange = declared("strange")
    strange.groups[0].image.repository = "registry/none"
    assert (await outlook(strange)).workload.reason.code == "IMAGE_NOT_HONOURED"
    assert {uid_of(fact) for fact in await stage.facts()} == {"wkl_runs"}


async def test_a_watch_shows_who_waits_why_and_when_it_is_over(stage: Stage) -> None:
    await stage.declare(declared("one"))
    await stage.becomes("one", "NO_CLUSTER")
    request = api.WatchQueueRequest(parent=PARENT, send_initial=True)
    watching = stage.queue.WatchQueue(request, metadata=stage.platform.metadata, timeout=20)
    seen: list[tuple[str, str, str]] = []
    async for change in watching:
        name = api.WatchQueueResponse.Change.Name(change.change).removeprefix("CHANGE_")
        seen.append((name, change.workload.workload_uid, change.workload.reason.code))
        if name == "BOOKMARK":
            await stage.cluster(node())
        if name == "LEFT":
            break
    assert seen == [
        ("INITIAL", "wkl_one", "NO_CLUSTER"),
        ("BOOKMARK", "", ""),
        ("LEFT", "wkl_one", ""),
    ]


async def test_nothing_is_told_of_what_does_not_wait(stage: Stage) -> None:
    request = api.ExplainWorkloadRequest(owner=f"{PARENT}/instances/none")
    refusal = await stage.platform.refusal(stage.queue.ExplainWorkload, request)
    assert (refusal.code, refusal.reason) == ("NOT_FOUND", "NOT_QUEUED")
    token = encode("scheduler/0", 7, 1)
    watching = stage.queue.WatchQueue(
        api.WatchQueueRequest(parent=PARENT, resume_token=token),
        metadata=stage.platform.metadata,
        timeout=20,
    )
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await watching.read()
    assert told(error.value).reason == "RESUME_TOKEN_EXPIRED"


# Crashes, and others beside it.


async def test_another_scheduler_goes_on_where_one_has_stopped(
    database: str, nats_server: NatsServer, tmp_path: Path
) -> None:
    async with staged(database, nats_server, tmp_path) as stage:
        await stage.limit("projects/-/quota", gpu_milli={"*": 2000})
        await stage.cluster(node())
        await stage.declare(declared("one", gpus=2), declared("two", gpus=1))
        await stage.admission("one")
        await stage.becomes("two", "QUOTA")
    async with AsyncExitStack() as stack:
        again = await stack.enter_async_context(_again(database, nats_server, tmp_path))
        await again.module.say(workload.WorkloadWithdrawn(uid="wkl_one", project="acme"))
        await again.finish("one")
        await again.admission("two")
        assert await again.said("two") == ["ARRIVED", "QUOTA", "Admitted"]


@asynccontextmanager
async def _again(dsn: str, nats: NatsServer, folder: Path) -> AsyncIterator[Stage]:
    module, biller, executor = Voice("instances"), Voice("billing"), Voice("executor", CLUSTER)
    targets = {
        "projects": PROJECTS,
        "instances": module.target,
        "scheduler": SCHEDULER,
        "billing": biller.target,
        "executor": executor.target,
    }
    async with running(dsn, nats, folder, targets=targets) as platform:
        yield Stage(platform, dsn, module, biller, executor)


async def test_two_schedulers_at_once_admit_each_once_and_no_more_than_there_is(
    database: str, nats_server: NatsServer, tmp_path: Path
) -> None:
    async with staged(database, nats_server, tmp_path / "one") as stage:
        targets = {
            "projects": PROJECTS,
            "instances": stage.module.target,
            "scheduler": SCHEDULER,
            "billing": stage.biller.target,
            "executor": stage.executor.target,
        }
        await stage.cluster(node(gpus=4))
        async with _beside(stage, database, nats_server, targets):
            names = [f"wkl-{number}" for number in range(12)]
            running_now: set[str] = set()
            done: set[str] = set()
            await stage.declare(*(declared(name, gpus=1) for name in names))
            while len(done) < len(names):
                admitted = await _admitted(stage, names)
                running_now = admitted - done
                assert len(running_now) <= 4
                for name in sorted(running_now):
                    await stage.module.say(
                        workload.WorkloadWithdrawn(uid=f"wkl_{name}", project="acme")
                    )
                    await stage.finish(name)
                    done.add(name)
        for name in names:
            await stage.becomes(name, "HoldReleased")
            said = await stage.said(name)
            assert [said.count(one) for one in ("Admitted", "HoldReleased")] == [1, 1]


@asynccontextmanager
async def _beside(
    stage: Stage, dsn: str, nats: NatsServer, targets: Mapping[str, Target]
) -> AsyncIterator[Process]:
    """Another process with a scheduler alone, of the same platform."""
    home = stage.platform.home
    environment = {
        "FERMION_POSTGRES_DSN": dsn,
        "FERMION_NATS_URL": nats.url,
        "FERMION_NATS_KEYS": str(nats.keys),
        "FERMION_LISTEN": f"127.0.0.1:{free_port()}",
        "FERMION_ADDRESS": f"127.0.0.1:{stage.platform.process.port}",
        "FERMION_PUBLIC_KEYS": str(home.path("keys", "jwks.json")),
        "FERMION_SERVICE_TOKENS": str(home.path("keys", "tokens")),
    }
    process = Process(targets, ("scheduler",), environment)
    task = asyncio.create_task(process.run(), name="another scheduler")
    try:
        await until(lambda: _ready(process, task), bool, "the other scheduler did not start")
        yield process
    finally:
        process.stopping.set()
        await task


async def _ready(process: Process, task: asyncio.Task[None]) -> bool:
    assert not task.done()
    return process.ready.is_set()


async def _admitted(stage: Stage, names: Sequence[str]) -> set[str]:
    said: dict[str, list[str]] = {}
    for fact in await stage.facts():
        said.setdefault(uid_of(fact), []).append(kind(fact))
    return {name for name in names if "Admitted" in said.get(f"wkl_{name}", [])}


async def test_a_holder_that_has_lost_its_lease_states_nothing(
    database: str, nats_server: NatsServer, tmp_path: Path
) -> None:
    async with staged(database, nats_server, tmp_path) as stage:
        await stage.cluster(node())
        await stage.declare(declared("one"))
        await stage.admission("one")
        operator = await asyncpg.connect(database)
        # As if another one had taken it while this one slept.
        await operator.execute(
            "UPDATE scheduler.lease SET writer_epoch = writer_epoch + 1, holder = 'another',"
            " expires_at = clock_timestamp() + interval '1 s' WHERE name LIKE '%admission%'"
        )
        await stage.declare(declared("two"))
        await stage.becomes("two", "ARRIVED")
        await operator.close()
        # It takes the lease again when that one's time is over, and reads everything anew.
        await stage.admission("two")
        assert await stage.said("two") == ["ARRIVED", "Admitted"]


async def test_what_waited_before_there_were_books_is_admitted(
    database: str, nats_server: NatsServer, tmp_path: Path
) -> None:
    async with staged(database, nats_server, tmp_path) as stage:
        await stage.declare(declared("old"))
        await stage.becomes("old", "NO_CLUSTER")
    operator = await asyncpg.connect(database)
    await operator.execute(
        "INSERT INTO scheduler_rows.queue_before (workload_uid, project, owner, kind, attempt,"
        " user_uid, reason, labels, queue_time) SELECT uid, project, owner, 1, 1, '', reason, '{}',"
        " queue_time FROM scheduler_rows.entry"
    )
    await operator.execute("DELETE FROM scheduler_rows.entry")
    await operator.close()
    async with _again(database, nats_server, tmp_path) as stage:
        assert [one.workload_uid for one in await stage.listed()] == ["wkl_old"]
        await stage.cluster(node())
        await stage.admission("old")


async def test_its_rows_are_rebuilt_as_they_are(stage: Stage) -> None:
    await stage.cluster(node())
    volume = workload.Volume(uid="vol_data", project="acme", user="user_ada", size_bytes=GIB)
    await stage.module.say(workload.VolumeDeclared(volume=volume))
    await stage.declare(
        declared("one", gpus=2, volume="vol_data"), declared("two", gpus=9), declared("three")
    )
    for name in ("one", "three"):
        await stage.admission(name)
    await stage.becomes("two", "CAPACITY")
    await stage.module.say(workload.WorkloadWithdrawn(uid="wkl_three", project="acme"))
    await stage.becomes("three", "Revoked")

    (part,) = [one for one in stage.platform.process._parts if one.target.name == "scheduler"]
    rebuilt = await rebuild(
        part.database,
        part.journal,
        part.book,
        part.queries,
        SCHEDULER.folder / "migrations" / "rows",
    )
    assert rebuilt.live_hash == rebuilt.rebuilt_hash
    assert rebuilt.folded > 8


async def test_operators_see_what_waits_for_what_and_what_is_held(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept, "FIGURES_SECONDS", 0.05)
    monkeypatch.setattr(admitter, "HELD_SECONDS", 0.05)
    shown, model = stage.platform.figure_is, {"cluster": CLUSTER, "gpu_type": "A100"}
    waiting, waits = "fermion_scheduler_queued_workloads", "fermion_scheduler_queued_seconds"
    await stage.cluster(node(gpus=4))
    await shown(lambda found: found == 4, "fermion_scheduler_capacity_gpus", **model)
    await shown(lambda found: found == 0, waiting, reason="CAPACITY")
    await stage.declare(declared("big", gpus=4))
    await shown(lambda found: found == 4, "fermion_scheduler_held_gpus", **model)
    await shown(lambda found: found == 1, "fermion_scheduler_held_cores", cluster=CLUSTER)
    await shown(lambda found: found == GIB, "fermion_scheduler_held_memory_bytes", cluster=CLUSTER)
    await stage.declare(declared("second", gpus=1), declared("third", gpus=2))
    await shown(lambda found: found >= 1, waiting, reason="CAPACITY")
    first = await shown(lambda found: found > 0, waits, reason="CAPACITY")
    assert first is not None
    await shown(lambda found: found > first, waits, reason="CAPACITY")
    assert await stage.platform.figure(waiting, reason="QUOTA") == 0
