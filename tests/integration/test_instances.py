"""Instances from call to call, over gRPC, PostgreSQL and NATS, with all services running."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NoReturn

import grpc.aio
import pytest

from chassis.listing import PageToken
from chassis.rpc import Context
from chassis.service import Mount
from fermion.api.billing import v1 as costs
from fermion.api.billing.v1.service_pb2_grpc import (
    CostServiceServicer,
    add_CostServiceServicer_to_server,
)
from fermion.api.instances import v1 as api
from fermion.api.instances.v1.service_pb2_grpc import InstanceServiceStub
from fermion.api.journal import v1 as journal
from fermion.api.journal.v1.service_pb2_grpc import JournalServiceStub
from fermion.api.projects import v1 as projects
from fermion.api.projects.v1.service_pb2_grpc import ProjectServiceStub
from fermion.api.scheduler import v1 as scheduler
from fermion.api.scheduler.v1.service_pb2_grpc import QueueServiceStub
from fermion.api.workload import v1 as workload
from services.serve import TARGETS
from tests.integration.platform import Platform, running, told, until
from tests.integration.voices import Voice, enrol
from tests.servers import CLUSTER, NatsServer

PARENT = "projects/acme"
NAME = f"{PARENT}/instances/dev-1"


class Acme:
    """One project on a running platform, and the calls that these tests make in it."""

    def __init__(self, platform: Platform) -> None:
        self.platform = platform
        self.call = platform.call
        self.refusal = platform.refusal
        self.instances = InstanceServiceStub(platform.channel)
        self.projects = ProjectServiceStub(platform.channel)
        self.queue = QueueServiceStub(platform.channel)

    async def create(
        self, name: str = "dev-1", request_id: str = "", **spec: object
    ) -> api.Instance:
        wanted = api.Spec(kind=api.KIND_NOTEBOOK, **spec)  # type: ignore[arg-type]
        request = api.CreateInstanceRequest(
            parent=PARENT,
            instance_id=name,
            instance=api.Instance(spec=wanted, labels={"team": "vision"}),
            request_id=request_id,
        )
        return (await self.call(self.instances.CreateInstance, request)).instance

    async def get(self, name: str = NAME) -> api.Instance:
        request = api.GetInstanceRequest(name=name)
        return (await self.call(self.instances.GetInstance, request)).instance

    async def becomes(
        self, state: api.State.ValueType, phase: api.Phase.ValueType = api.PHASE_UNSPECIFIED
    ) -> api.Instance:
        return await until(
            self.get,
            lambda found: (found.status.state, found.status.phase) == (state, phase),
            f"did not become {api.State.Name(state)}/{api.Phase.Name(phase)}",
        )

    async def queued(self) -> api.Instance:
        """It waits, and the scheduler has looked at why."""
        return await until(
            self.get,
            lambda one: one.status.reason.code not in ("", "ARRIVED"),
            "the scheduler's word",
        )

    async def is_gone(self, name: str = NAME) -> bool:
        try:
            await self.get(name)
        except grpc.aio.AioRpcError as error:
            return told(error).reason == "INSTANCE_NOT_FOUND"
        return False

    async def names(self, **question: object) -> list[str]:
        request = api.ListInstancesRequest(parent=PARENT, **question)  # type: ignore[arg-type]
        answer = await self.call(self.instances.ListInstances, request)
        return [found.name.rsplit("/", 1)[1] for found in answer.instances]

    async def said(self) -> list[str]:
        """Kinds of the project's facts, in order."""
        log = JournalServiceStub(self.platform.channel)
        request = journal.ReadLogRequest(journal="instances/0", project=PARENT)
        pages = log.ReadLog(request, metadata=self.platform.metadata, timeout=20)
        return [fact.type.rsplit(".", 1)[1] async for page in pages for fact in page.records]

    async def waiting(self) -> list[scheduler.QueuedWorkload]:
        request = scheduler.ListQueuedWorkloadsRequest(parent=PARENT)
        return list((await self.call(self.queue.ListQueuedWorkloads, request)).workloads)


class Cast(Acme):
    """The project, and a scheduler and an executor that say what a test tells them to."""

    def __init__(self, platform: Platform, scheduler: Voice, executor: Voice) -> None:
        super().__init__(platform)
        self.scheduler = scheduler
        self.executor = executor

    async def declared(self, name: str = NAME) -> workload.Workload:
        """The workload of the present attempt, as the instance has declared it."""
        uid = (await self.get(name)).status.workload_uid
        (first, *_) = await self.facts(f"workload/{uid}")
        return workload.WorkloadDeclared.FromString(first.data).workload

    async def facts(self, stream: str) -> list[journal.Record]:
        """What instances said in a stream."""
        request = journal.ListFactsRequest(journal="instances/0", project=PARENT, stream=stream)
        listed = JournalServiceStub(self.platform.channel).ListFacts
        return list((await self.call(listed, request)).records)

    async def withdrawn(self, work: workload.Workload) -> str:
        """Wait until the volume of a workload is withdrawn, and tell its uid."""
        uid = work.groups[0].mounts[0].volume.volume_uid
        await until(
            lambda: self.facts(f"volume/{uid}"),
            lambda found: found[-1].type.endswith(".VolumeWithdrawn"),
            "the volume was not withdrawn",
        )
        return uid


@pytest.fixture
async def acme(database: str, nats_server: NatsServer, tmp_path: Path) -> AsyncIterator[Acme]:
    targets = {**TARGETS, "executor": Voice("executor", CLUSTER).target}
    async with running(database, nats_server, tmp_path, targets=targets) as platform:
        acme = Acme(platform)
        await acme.call(
            acme.projects.CreateProject, projects.CreateProjectRequest(project_id="acme")
        )
        yield acme


@pytest.fixture
async def cast(database: str, nats_server: NatsServer, tmp_path: Path) -> AsyncIterator[Cast]:
    voices = Voice("scheduler"), Voice("executor", CLUSTER)
    targets = {**TARGETS, **{voice.name: voice.target for voice in voices}}
    async with running(database, nats_server, tmp_path, targets=targets) as platform:
        cast = Cast(platform, *voices)
        await enrol(database)
        await cast.call(
            cast.projects.CreateProject, projects.CreateProjectRequest(project_id="acme")
        )
        yield cast


async def test_a_life_from_creation_to_deletion(acme: Acme) -> None:
    created = await acme.create()
    assert created.status.state == api.STATE_PENDING
    queued = await acme.queued()
    assert queued.status.reason.code == "NO_CLUSTER"
    assert [found.owner for found in await acme.waiting()] == [NAME]

    await acme.call(acme.instances.StopInstance, api.StopInstanceRequest(name=NAME))
    await acme.becomes(api.STATE_STOPPED)
    assert await acme.waiting() == []

    await acme.call(acme.instances.RestartInstance, api.RestartInstanceRequest(name=NAME))
    assert (await acme.queued()).status.attempt == 2
    await acme.call(acme.instances.RestartInstance, api.RestartInstanceRequest(name=NAME))
    third = await until(acme.queued, lambda found: found.status.attempt == 3, "no third attempt")
    assert [found.workload_uid for found in await acme.waiting()] == [third.status.workload_uid]

    await acme.call(acme.instances.DeleteInstance, api.DeleteInstanceRequest(name=NAME))
    await until(acme.is_gone, bool, "was not deleted")
    again = await acme.create()
    assert again.uid != created.uid


async def test_a_repeated_request_is_answered_as_the_first(acme: Acme) -> None:
    request_id = str(uuid.uuid4())
    first = await acme.create(request_id=request_id)
    await acme.queued()
    assert await acme.create(request_id=request_id) == first
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await acme.create("other", request_id=request_id)
    assert told(error.value).reason == "REQUEST_ID_REUSED"


async def test_a_deletion_asked_for_again_finds_its_answer(acme: Acme) -> None:
    await acme.create()
    request = api.DeleteInstanceRequest(name=NAME, request_id=str(uuid.uuid4()))
    first = await acme.call(acme.instances.DeleteInstance, request)
    await until(acme.is_gone, bool, "was not deleted")
    assert await acme.call(acme.instances.DeleteInstance, request) == first


async def test_a_name_is_taken_once(acme: Acme) -> None:
    await acme.create()
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await acme.create()
    assert told(error.value).reason == "INSTANCE_EXISTS"


async def test_a_limit_of_the_guide_is_refused_with_its_path(acme: Acme) -> None:
    request = api.CreateInstanceRequest(parent=PARENT, instance_id="dev-1")
    request.instance.spec.kind = api.KIND_NOTEBOOK
    request.instance.spec.resources.gpu_milli = 9000
    refusal = await acme.refusal(acme.instances.CreateInstance, request)
    assert (refusal.code, refusal.reason) == ("INVALID_ARGUMENT", "FIELD_INVALID")
    assert refusal.fields == ("instance.spec.resources.gpu_milli",)
    # What the proto bounds is refused in the same way, before the service sees it.
    request.instance.spec.resources.gpu_milli = 64_001
    refusal = await acme.refusal(acme.instances.CreateInstance, request)
    assert (refusal.code, refusal.reason) == ("INVALID_ARGUMENT", "FIELD_INVALID")
    assert refusal.fields == ("instance.spec.resources.gpu_milli",)


async def test_an_operator_lowers_the_limits_by_settings(
    database: str, nats_server: NatsServer, tmp_path: Path
) -> None:
    settings = {"FERMION_INSTANCES_CPU_MIN": "100", "FERMION_INSTANCES_MEMORY_MIN": "1000000"}
    targets = {**TARGETS, "executor": Voice("executor", CLUSTER).target}
    async with running(database, nats_server, tmp_path, targets=targets, **settings) as platform:
        acme = Acme(platform)
        await acme.call(
            acme.projects.CreateProject, projects.CreateProjectRequest(project_id="acme")
        )
        small = api.Resources(cpu_milli=100, memory_bytes=1_000_000)
        assert (await acme.create(resources=small)).spec.resources.cpu_milli == 100


async def test_a_validation_tells_the_plan_and_changes_nothing(acme: Acme) -> None:
    request = api.CreateInstanceRequest(
        parent=PARENT,
        instance_id="dev-1",
        instance=api.Instance(spec=api.Spec(kind=api.KIND_NOTEBOOK)),
        validate_only=True,
    )
    answer = await acme.call(acme.instances.CreateInstance, request)
    assert answer.plan.workload.owner == NAME
    # No cluster is enrolled, which the scheduler tells.
    assert answer.plan.queue.workload.reason.code == "NO_CLUSTER"
    assert "queue" not in answer.plan.absent
    assert await acme.names() == []
    await acme.create()
    refusal = await acme.refusal(acme.instances.CreateInstance, request)
    assert refusal.reason == "INSTANCE_EXISTS"


class Prices(CostServiceServicer):
    """Billing as far as a plan asks it: a price for what it is asked about, and only for that."""

    def __init__(self) -> None:
        self.asked: list[costs.EstimateCostRequest] = []

    async def EstimateCost(
        self, request: costs.EstimateCostRequest, context: Context
    ) -> costs.EstimateCostResponse:
        self.asked.append(request)
        return costs.EstimateCostResponse(
            currency="USD", rate_nanos=5, worst_nanos=40, price_version="2026-01"
        )

    async def _none(self, request: object, context: Context) -> NoReturn:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "no plan asks this")
        raise AssertionError

    GetUsage = GetCost = WatchCost = GetStatement = ExplainCharge = _none


async def test_a_plan_has_the_price_that_billing_tells_and_names_what_nobody_tells(
    database: str, nats_server: NatsServer, tmp_path: Path
) -> None:
    prices = Prices()
    mount = Mount("fermion.api.billing.v1.CostService", add_CostServiceServicer_to_server, prices)
    voices = (
        Voice("billing", servicers=(mount,)),
        Voice("scheduler"),
        Voice("executor", CLUSTER),
    )
    targets = {**TARGETS, **{voice.name: voice.target for voice in voices}}
    async with running(database, nats_server, tmp_path, targets=targets) as platform:
        acme = Acme(platform)
        await acme.call(
            acme.projects.CreateProject, projects.CreateProjectRequest(project_id="acme")
        )
        limit = workload.Money(nanos=40)
        spec = api.Spec(kind=api.KIND_NOTEBOOK, max_cost=limit)
        create = api.CreateInstanceRequest(
            parent=PARENT,
            instance_id="dev-1",
            instance=api.Instance(spec=spec),
            validate_only=True,
        )
        plan = (await acme.call(acme.instances.CreateInstance, create)).plan
        assert plan.price == api.Plan.Price(
            currency="USD", rate_nanos=5, worst_nanos=40, price_version="2026-01"
        )
        assert list(plan.absent) == ["queue"]
        (asked,) = prices.asked
        assert (asked.parent, asked.workload.max_cost) == (PARENT, limit)
        assert asked.storage_bytes == asked.workload.groups[0].mounts[0].volume.size_bytes > 0


async def test_an_update_changes_what_the_mask_names(acme: Acme) -> None:
    before = await acme.create()
    await acme.queued()
    request = api.UpdateInstanceRequest(
        instance=api.Instance(name=NAME, labels={"team": "speech"}, description="not named"),
        etag=before.etag,
    )
    request.update_mask.paths.append("labels")
    after = (await acme.call(acme.instances.UpdateInstance, request)).instance
    assert (dict(after.labels), after.description) == ({"team": "speech"}, "")
    assert (after.etag, after.status.pending_restart) == ("2", False)
    await until(
        acme.waiting,
        lambda found: dict(found[0].labels) == {"team": "speech"},
        "the queue kept the old labels",
    )
    request.update_mask.paths[:] = ["spec.image"]
    request.instance.spec.image = "another"
    assert (await acme.refusal(acme.instances.UpdateInstance, request)).code == "ABORTED"
    request.etag = "2"
    after = (await acme.call(acme.instances.UpdateInstance, request)).instance
    assert (after.spec.image, after.status.pending_restart) == ("another", True)
    request.update_mask.paths[:] = ["status.state"]
    request.etag = ""
    refusal = await acme.refusal(acme.instances.UpdateInstance, request)
    assert refusal.fields == ("update_mask",)


async def test_the_past_is_folded_up_to_its_moment(acme: Acme) -> None:
    await acme.create()
    queued = await acme.queued()
    await acme.call(acme.instances.DeleteInstance, api.DeleteInstanceRequest(name=NAME))
    await until(acme.is_gone, bool, "was not deleted")
    then = api.GetInstanceRequest(name=NAME, as_of_time=queued.update_time)
    assert (await acme.call(acme.instances.GetInstance, then)).instance == queued
    before = api.GetInstanceRequest(name=NAME)
    before.as_of_time.FromSeconds(queued.create_time.seconds - 1)
    refusal = await acme.refusal(acme.instances.GetInstance, before)
    assert refusal.reason == "INSTANCE_NOT_FOUND"


async def test_a_list_is_filtered_ordered_and_paged(acme: Acme) -> None:
    for name in ("exp-1", "exp-2", "exp-3", "other"):
        await acme.create(name)
    assert await acme.names(filter="name:exp-*", order_by="name desc") == [
        "exp-3",
        "exp-2",
        "exp-1",
    ]
    assert await acme.names(filter="state=RUNNING") == []
    assert await acme.names(filter="labels.team=vision AND name=other") == ["other"]
    for order in ("", "name desc", "create_time", "create_time desc"):
        request = api.ListInstancesRequest(parent=PARENT, order_by=order, page_size=3)
        page = await acme.call(acme.instances.ListInstances, request)
        request.page_token = page.next_page_token
        rest = await acme.call(acme.instances.ListInstances, request)
        seen = [found.name for found in (*page.instances, *rest.instances)]
        assert (len(seen), len(set(seen)), rest.next_page_token) == (4, 4, "")
    forged = PageToken.encode("yesterday", "", json.dumps([PARENT, "", "create_time desc"]))
    for request.page_token in (forged, "forged"):
        refusal = await acme.refusal(acme.instances.ListInstances, request)
        assert refusal.reason == "PAGE_TOKEN_MISMATCH"
    request.page_token = page.next_page_token
    request.filter = "state=PENDING"
    refusal = await acme.refusal(acme.instances.ListInstances, request)
    assert refusal.reason == "PAGE_TOKEN_MISMATCH"


async def test_a_watch_goes_on_where_it_was_left(acme: Acme) -> None:
    await acme.create()
    await acme.queued()
    first = await _watched(acme, api.WatchInstancesRequest(parent=PARENT, send_initial=True), 2)
    initial, bookmark = first
    assert initial.change == api.WatchInstancesResponse.CHANGE_INITIAL
    assert initial.instance.name == NAME
    assert bookmark.change == api.WatchInstancesResponse.CHANGE_BOOKMARK
    # What happens while nobody watches is sent to whoever goes on with the token.
    await acme.create("other")
    await acme.call(acme.instances.StopInstance, api.StopInstanceRequest(name=NAME))
    await acme.becomes(api.STATE_STOPPED)
    request = api.WatchInstancesRequest(
        parent=PARENT, instance_id="dev-1", resume_token=bookmark.resume_token
    )
    (stopped,) = await _watched(acme, request, 1)
    assert stopped.change == api.WatchInstancesResponse.CHANGE_UPDATED
    assert (stopped.instance.name, stopped.instance.status.state) == (NAME, api.STATE_STOPPED)
    await acme.call(acme.instances.DeleteInstance, api.DeleteInstanceRequest(name=NAME))
    request.resume_token = stopped.resume_token
    *deleting, gone = await _watched(acme, request)
    assert {change.instance.status.phase for change in deleting} <= {api.PHASE_DELETING}
    assert gone.instance == api.Instance(name=NAME, uid=stopped.instance.uid)


async def test_an_archived_project_is_emptied_and_can_be_deleted(acme: Acme) -> None:
    await acme.create()
    await acme.create("other")
    await acme.queued()
    await acme.call(acme.projects.ArchiveProject, projects.ArchiveProjectRequest(name=PARENT))
    await acme.becomes(api.STATE_STOPPED)

    async def project() -> projects.Project:
        request = projects.GetProjectRequest(name=PARENT)
        return (await acme.call(acme.projects.GetProject, request)).project

    await until(project, lambda found: "instances" in found.vacated_by, "was not vacated")
    request = api.StartInstanceRequest(name=NAME)
    refusal = await acme.refusal(acme.instances.StartInstance, request)
    assert refusal.reason == "PROJECT_ARCHIVED"
    deletion = projects.DeleteProjectRequest(name=PARENT, request_id=str(uuid.uuid4()))
    await acme.call(acme.projects.DeleteProject, deletion)
    gone = await acme.refusal(acme.instances.ListInstances, api.ListInstancesRequest(parent=PARENT))
    assert (gone.code, gone.reason) == ("NOT_FOUND", "PROJECT_NOT_FOUND")
    # Facts stay, and an admin of the platform reads them to the end.
    await until(acme.said, lambda said: said.count("InstanceDeleted") == 2, "something was left")
    # Who has lost the answer asks again.
    await acme.call(acme.projects.DeleteProject, deletion)
    deletion.request_id = str(uuid.uuid4())
    refusal = await acme.refusal(acme.projects.DeleteProject, deletion)
    assert refusal.reason == "PROJECT_NOT_FOUND"


async def test_a_project_that_is_not_there_is_no_empty_one(acme: Acme) -> None:
    nope = "projects/nope"
    asked = api.ListInstancesRequest(parent=nope)
    assert (await acme.refusal(acme.instances.ListInstances, asked)).reason == "PROJECT_NOT_FOUND"
    queue = scheduler.ListQueuedWorkloadsRequest(parent=nope)
    refusal = await acme.refusal(acme.queue.ListQueuedWorkloads, queue)
    assert refusal.reason == "PROJECT_NOT_FOUND"
    watching = acme.instances.WatchInstances(
        api.WatchInstancesRequest(parent=nope), metadata=acme.platform.metadata, timeout=20
    )
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await watching.read()
    assert told(error.value).reason == "PROJECT_NOT_FOUND"
    # It is there for whoever has seen it made, in each service at once.
    await acme.call(acme.projects.CreateProject, projects.CreateProjectRequest(project_id="nope"))
    assert not (await acme.call(acme.instances.ListInstances, asked)).instances


async def test_templates_are_there_at_once_and_edited_as_data(acme: Acme) -> None:
    listed = await acme.call(acme.instances.ListTemplates, api.ListTemplatesRequest())
    names = [template.name for template in listed.templates]
    assert names == ["templates/inference", "templates/notebook", "templates/training"]
    notebook = listed.templates[1]
    notebook.spec.image = "jupyterlab:next"
    request = api.UpdateTemplateRequest(template=notebook, etag=notebook.etag)
    changed = (await acme.call(acme.instances.UpdateTemplate, request)).template
    assert changed.etag == "2"
    assert (await acme.create()).spec.image == "jupyterlab:next"
    read = api.GetTemplateRequest(name="templates/notebook")
    assert (await acme.call(acme.instances.GetTemplate, read)).template == changed


# What runs: facts in the journals of a scheduler and of an executor, and what callers see of them.


async def test_an_instance_follows_its_attempt_from_admission_to_its_end(cast: Cast) -> None:
    await cast.create()
    work = await cast.declared()
    await cast.scheduler.say(_queued(work))
    await cast.queued()
    await cast.scheduler.say(workload.WorkloadAdmitted(workload=work, cluster=CLUSTER))
    await cast.becomes(api.STATE_STARTING)
    replica = Replica(work)
    await cast.executor.say(replica.pending("IMAGE_BUILDING"))
    building = await cast.becomes(api.STATE_STARTING, api.PHASE_PREPARING)
    assert building.status.reason.code == "IMAGE_BUILDING"
    await cast.executor.say(replica.started(0))
    await cast.becomes(api.STATE_STARTING)
    await cast.executor.say(replica.ready(1))
    ran = await cast.becomes(api.STATE_RUNNING)
    assert dict(ran.status.addresses) == {"jupyter": "127.0.0.1:20000"}
    await cast.executor.say(replica.unready(1))
    await cast.becomes(api.STATE_RUNNING, api.PHASE_UNREADY)
    await cast.executor.say(replica.ended(0, exit=3), replica.pending("CRASH_LOOP_BACKOFF"))
    crashed = await cast.becomes(api.STATE_STARTING, api.PHASE_BACKOFF)
    assert (crashed.status.exit_code, dict(crashed.status.addresses)) == (3, {})
    await cast.executor.say(replica.started(1), replica.ready(2))
    again = await cast.becomes(api.STATE_RUNNING)
    assert (again.status.restarts, again.status.exit_code) == (1, 3)
    await cast.executor.say(replica.draining(workload.CAUSE_MAX_DURATION))
    stopping = await cast.becomes(api.STATE_STOPPING)
    assert stopping.status.reason.code == "MAX_DURATION"
    await cast.executor.say(
        replica.ended(1, signal=15), _finished(work, workload.CAUSE_MAX_DURATION)
    )
    stopped = await cast.becomes(api.STATE_STOPPED)
    assert (stopped.status.reason.code, stopped.status.exit_code) == ("MAX_DURATION", 143)
    # The past is what was seen then, and rows that are folded anew are the same.
    for seen in (building, ran, crashed, again, stopping, stopped):
        then = api.GetInstanceRequest(name=NAME, as_of_time=seen.update_time)
        assert (await cast.call(cast.instances.GetInstance, then)).instance == seen
    rebuilt = await cast.call(
        JournalServiceStub(cast.platform.channel).RebuildProjection,
        journal.RebuildProjectionRequest(journal="instances/0"),
    )
    assert rebuilt.live_hash == rebuilt.rebuilt_hash
    assert await cast.get() == stopped


async def test_the_executor_may_be_heard_before_the_scheduler(cast: Cast) -> None:
    await cast.create()
    work = await cast.declared()
    replica = Replica(work)
    await cast.executor.say(replica.started(0), replica.ready(1))
    ran = await cast.becomes(api.STATE_RUNNING)
    await cast.scheduler.say(
        _queued(work), workload.WorkloadAdmitted(workload=work, cluster=CLUSTER)
    )
    # Said after them in the same journal, so once it is heard they are heard, too.
    await cast.create("other")
    await cast.scheduler.say(_queued(await cast.declared(f"{PARENT}/instances/other")))
    await until(
        lambda: cast.get(f"{PARENT}/instances/other"),
        lambda found: found.status.phase == api.PHASE_QUEUED,
        "the scheduler was not heard",
    )
    assert await cast.get() == ran


async def test_what_runs_of_other_modules_concerns_no_instance(cast: Cast) -> None:
    await cast.create()
    work = await cast.declared()
    job = workload.Workload(
        uid="wkl_job", owner="projects/acme/trainingJobs/j", owner_uid="job_1", project="acme"
    )
    theirs = Replica(job)
    await cast.executor.say(
        theirs.pending("IMAGE_BUILDING"),
        theirs.started(0),
        theirs.ready(1),
        theirs.unready(1),
        theirs.ended(0),
        theirs.draining(workload.CAUSE_USER_STOP),
        workload.WorkloadRejected(uid="wkl_job", project="acme"),
        _finished(job),
        Replica(work).started(0),
    )
    await cast.becomes(api.STATE_STARTING)
    assert await _parked(cast) == []


async def test_a_field_that_a_cluster_does_not_honour_is_a_failure(cast: Cast) -> None:
    await cast.create()
    work = await cast.declared()
    reason = workload.Reason(code="IMAGE_NOT_HONOURED", arguments={"image": "jupyterlab"})
    await cast.executor.say(
        workload.WorkloadRejected(
            uid=work.uid, field="groups[0].image", reason=reason, project="acme"
        ),
        _finished(work, outcome=workload.OUTCOME_REJECTED),
    )
    failed = await cast.becomes(api.STATE_FAILED)
    assert failed.status.reason.code == "IMAGE_NOT_HONOURED"
    assert dict(failed.status.reason.arguments) == {
        "image": "jupyterlab",
        "field": "groups[0].image",
    }


async def test_files_outlive_attempts_and_go_with_the_instance(cast: Cast) -> None:
    await cast.create()
    first = await cast.declared()
    await cast.executor.say(Replica(first).started(0), _finished(first))
    await cast.becomes(api.STATE_STOPPED)
    await cast.call(cast.instances.StartInstance, api.StartInstanceRequest(name=NAME))
    second = await cast.declared()
    (mount,) = second.groups[0].mounts
    assert (second.attempt, mount) == (2, first.groups[0].mounts[0])
    await cast.call(cast.instances.DeleteInstance, api.DeleteInstanceRequest(name=NAME))
    await cast.becomes(api.STATE_STOPPING, api.PHASE_DELETING)
    assert len(await cast.facts(f"volume/{mount.volume.volume_uid}")) == 1
    await cast.executor.say(_finished(second, workload.CAUSE_DELETE))
    await cast.becomes(api.STATE_STOPPED, api.PHASE_DELETING)
    gone = await cast.withdrawn(second)
    # Until its files are gone the name is its own.
    refusal = await cast.refusal(cast.instances.CreateInstance, _again())
    assert refusal.reason == "INSTANCE_EXISTS"
    owner_uid = second.owner_uid
    await cast.executor.say(workload.VolumeDeleted(uid=gone, owner_uid=owner_uid, project="acme"))
    await until(cast.is_gone, bool, "was not deleted")
    assert (await cast.create()).uid != owner_uid


async def test_volumes_do_not_keep_an_archived_project_and_go_with_it(cast: Cast) -> None:
    await cast.create()
    work = await cast.declared()
    await cast.call(cast.projects.ArchiveProject, projects.ArchiveProjectRequest(name=PARENT))
    await cast.becomes(api.STATE_STOPPING)
    await cast.executor.say(_finished(work))
    await cast.becomes(api.STATE_STOPPED)

    async def project() -> projects.Project:
        request = projects.GetProjectRequest(name=PARENT)
        return (await cast.call(cast.projects.GetProject, request)).project

    await until(project, lambda found: "instances" in found.vacated_by, "was not vacated")
    assert await cast.names() == ["dev-1"]
    await cast.call(cast.projects.DeleteProject, projects.DeleteProjectRequest(name=PARENT))
    gone = await cast.withdrawn(work)
    await cast.scheduler.say(
        workload.VolumeRefused(uid=gone, owner_uid=work.owner_uid, project="acme")
    )
    await until(cast.said, lambda said: "InstanceDeleted" in said, "something was left")


class Replica:
    """A replica of a workload, and what an executor says of it."""

    def __init__(self, work: workload.Workload) -> None:
        self._work = work
        self._uid = f"rep_of_{work.uid}"
        self._pendings = 0

    def pending(self, code: str) -> workload.ReplicaPending:
        self._pendings += 1
        return workload.ReplicaPending(
            uid=self._uid,
            workload=self._work.uid,
            reason=workload.Reason(code=code),
            project=self._work.project,
            n=self._pendings,
        )

    def started(self, run: int) -> workload.ReplicaStarted:
        subject = workload.Subject(
            project=self._work.project,
            owner=self._work.owner,
            owner_uid=self._work.owner_uid,
            workload=self._work.uid,
            attempt=self._work.attempt,
        )
        addresses = {"jupyter": f"127.0.0.1:{20000 + run}"}
        return workload.ReplicaStarted(uid=self._uid, subject=subject, run=run, addresses=addresses)

    def ready(self, n: int) -> workload.ReplicaReady:
        return workload.ReplicaReady(
            uid=self._uid, workload=self._work.uid, project=self._work.project, n=n
        )

    def unready(self, n: int) -> workload.ReplicaUnready:
        return workload.ReplicaUnready(
            uid=self._uid, workload=self._work.uid, project=self._work.project, n=n
        )

    def ended(self, run: int, exit: int = 0, signal: int = 0) -> workload.ReplicaEnded:
        return workload.ReplicaEnded(
            uid=self._uid,
            workload=self._work.uid,
            run=run,
            exit=exit,
            signal=signal,
            project=self._work.project,
        )

    def draining(self, cause: workload.Cause.ValueType) -> workload.ReplicaDraining:
        return workload.ReplicaDraining(
            uid=self._uid, workload=self._work.uid, cause=cause, project=self._work.project
        )


def _queued(work: workload.Workload) -> workload.WorkloadQueued:
    return workload.WorkloadQueued(
        uid=work.uid,
        reason=workload.Reason(code="NO_CLUSTER"),
        owner_uid=work.owner_uid,
        attempt=work.attempt,
        workload=work,
        project=work.project,
    )


def _finished(
    work: workload.Workload,
    cause: workload.Cause.ValueType = workload.CAUSE_USER_STOP,
    outcome: workload.Outcome.ValueType = workload.OUTCOME_STOPPED,
) -> workload.WorkloadFinished:
    return workload.WorkloadFinished(
        uid=work.uid,
        owner_uid=work.owner_uid,
        attempt=work.attempt,
        outcome=outcome,
        cause=cause,
        project=work.project,
    )


def _again() -> api.CreateInstanceRequest:
    return api.CreateInstanceRequest(
        parent=PARENT,
        instance_id="dev-1",
        instance=api.Instance(spec=api.Spec(kind=api.KIND_NOTEBOOK)),
    )


async def _parked(cast: Cast) -> list[journal.ParkedFact]:
    request = journal.ListParkedFactsRequest(journal="instances/0")
    listed = JournalServiceStub(cast.platform.channel).ListParkedFacts
    return list((await cast.call(listed, request)).facts)


async def _watched(
    acme: Acme, request: api.WatchInstancesRequest, count: int | None = None
) -> list[api.WatchInstancesResponse]:
    """Watch for so many answers; without a number, until something is gone."""
    found: list[api.WatchInstancesResponse] = []
    call = acme.instances.WatchInstances(request, metadata=acme.platform.metadata)
    async with asyncio.timeout(20):
        async for answer in call:
            found.append(answer)
            gone = answer.change == api.WatchInstancesResponse.CHANGE_DELETED
            if len(found) == count or (count is None and gone):
                break
    call.cancel()
    return found
