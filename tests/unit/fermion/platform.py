"""A platform of a few lines behind a real gRPC server: it keeps what it was sent, and answers as told."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Event

import grpc
import pytest
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from fermion.api.billing.v1 import service_pb2_grpc as billing_grpc
from fermion.api.executor.v1 import service_pb2_grpc as executor_grpc
from fermion.api.instances import v1 as api
from fermion.api.instances.v1 import service_pb2_grpc as instances_grpc
from fermion.api.journal import v1 as journal
from fermion.api.journal.v1 import service_pb2_grpc as journal_grpc
from fermion.api.projects import v1 as projects
from fermion.api.projects.v1 import service_pb2_grpc as projects_grpc
from fermion.api.scheduler.v1 import service_pb2_grpc as scheduler_grpc
from tests.unit.fermion.billing import Billed, Costs, Prices
from tests.unit.fermion.queue import Queue, Waiting
from tests.unit.fermion.runtime import Running, Runtime

Turn = Callable[[grpc.ServicerContext], None]


@dataclass(frozen=True)
class Call:
    """What one call brought."""

    method: str
    request: Message
    metadata: dict[str, str]


@dataclass
class Platform:
    """What it knows, what it was asked, and what comes before its next answers."""

    address: str = ""
    calls: list[Call] = field(default_factory=list)
    turns: deque[Turn] = field(default_factory=deque)
    instances: dict[str, api.Instance] = field(default_factory=dict)
    # What it answers to who asks what a creation would mean.
    plan: api.Plan = field(default_factory=api.Plan)
    # Those that do not stop, whatever is asked of them.
    lasting: set[str] = field(default_factory=set)
    # Streams of WatchInstances, in order; a stream that is followed by another one breaks.
    watches: deque[list[api.WatchInstancesResponse]] = field(default_factory=deque)
    # By `projects/acme`: what was set, with etags that count.
    quotas: dict[str, projects.Quota] = field(default_factory=dict)
    clusters: dict[str, projects.Cluster] = field(default_factory=dict)
    position: int = 0
    running: Running = field(default_factory=Running)
    # Those that it holds beside one, b/0, that has a reader.
    journals: Sequence[str] = (
        "billing/0",
        "executor/" + "k" * 26,
        "scheduler/0",
        "instances/0",
        "projects/0",
    )
    figures: list[journal.Figure] = field(default_factory=list)
    waiting: Waiting = field(default_factory=Waiting)
    billed: Billed = field(default_factory=Billed)
    # Of all journals, in the order in which they were recorded.
    facts: list[journal.Record] = field(default_factory=list)

    def state(
        self, name: str, stream: str, fact: Message, at: int, project: str = "acme"
    ) -> journal.Record:
        """Add a fact to a journal, recorded at a second of the epoch."""
        own = [one for one in self.facts if one.journal == name]
        record = journal.Record(
            journal=name,
            position=len(own) + 1,
            project=project,
            project_position=sum(one.project == project for one in own) + 1,
            stream=stream,
            version=sum(one.stream == stream for one in own) + 1,
            type=fact.DESCRIPTOR.full_name,
            data=fact.SerializeToString(),
            meta=journal.Meta(actor="user_1"),
        )
        record.record_time.FromSeconds(at)
        self.facts.append(record)
        return record

    def take(self, method: str, request: Message, context: grpc.ServicerContext) -> None:
        """Keep a call, and do what comes before its answer."""
        kept = type(request)()
        kept.CopyFrom(request)
        metadata = {key: str(value) for key, value in context.invocation_metadata()}
        self.calls.append(Call(method, kept, metadata))
        if self.turns:
            self.turns.popleft()(context)

    def sent(self, method: str) -> list[Call]:
        """The calls of one method."""
        return [call for call in self.calls if call.method == method]


def refuse(
    code: int,
    reason: str,
    message: str = "No.",
    *,
    violations: tuple[tuple[str, str], ...] = (),
    retry_seconds: float = 0.0,
    **arguments: str,
) -> Turn:
    """Answer a refusal as the platform writes it."""
    details: list[Message] = [
        error_details_pb2.ErrorInfo(reason=reason, domain="fermion", metadata=arguments),
        error_details_pb2.RequestInfo(request_id="req-1"),
    ]
    if retry_seconds:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMilliseconds(int(retry_seconds * 1000))
        details.append(retry)
    if violations:
        bad = error_details_pb2.BadRequest()
        for path, rule in violations:
            bad.field_violations.add(field=path, description=rule)
        details.append(bad)
    status = status_pb2.Status(code=code, message=message)
    for detail in details:
        status.details.add().Pack(detail)

    def turn(context: grpc.ServicerContext) -> None:
        context.abort_with_status(rpc_status.to_status(status))

    return turn


def busy(context: grpc.ServicerContext) -> None:
    """Break off as a connection does, without a word of the platform's."""
    context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")


def later(reason: str) -> Turn:
    """Answer that it did nothing, and may do it in a moment."""
    return refuse(code_pb2.UNAVAILABLE, reason, retry_seconds=0.01)


class Instances(instances_grpc.InstanceServiceServicer):
    """Instances that are what they were made as."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform

    def CreateInstance(
        self, request: api.CreateInstanceRequest, context: grpc.ServicerContext
    ) -> api.CreateInstanceResponse:
        platform = self._platform
        platform.take("CreateInstance", request, context)
        made = api.Instance()
        made.CopyFrom(request.instance)
        if request.instance.spec.template == "templates/notebok":
            path = "instance.spec.template"
            refuse(code_pb2.INVALID_ARGUMENT, "FIELD_INVALID", violations=((path, "no"),))(context)
        made.name = f"{request.parent}/instances/{request.instance_id}"
        made.uid = "inst_1"
        made.status.state = api.STATE_PENDING
        if not request.validate_only:
            platform.instances[made.name] = made
            platform.position += 3
            at = ("fermion-position", f"instances/0={platform.position}")
            context.set_trailing_metadata((at,))
        return api.CreateInstanceResponse(
            instance=made, plan=platform.plan if request.validate_only else None
        )

    def GetInstance(
        self, request: api.GetInstanceRequest, context: grpc.ServicerContext
    ) -> api.GetInstanceResponse:
        self._platform.take("GetInstance", request, context)
        found = self._platform.instances.get(request.name)
        if request.HasField("as_of_time") and found is not None:
            made = found.create_time.ToNanoseconds()
            found = found if made <= request.as_of_time.ToNanoseconds() else None
        if found is None:
            missing = f"There is no {request.name}."
            refuse(code_pb2.NOT_FOUND, "INSTANCE_NOT_FOUND", missing, instance=request.name)(
                context
            )
        return api.GetInstanceResponse(instance=found)

    def DeleteInstance(
        self, request: api.DeleteInstanceRequest, context: grpc.ServicerContext
    ) -> api.DeleteInstanceResponse:
        self._platform.take("DeleteInstance", request, context)
        return api.DeleteInstanceResponse(instance=self._platform.instances.pop(request.name))

    def ListTemplates(
        self, request: api.ListTemplatesRequest, context: grpc.ServicerContext
    ) -> api.ListTemplatesResponse:
        self._platform.take("ListTemplates", request, context)
        found = [api.Template(name=f"templates/{name}") for name in ("inference", "notebook")]
        return api.ListTemplatesResponse(templates=found)

    def ListInstances(
        self, request: api.ListInstancesRequest, context: grpc.ServicerContext
    ) -> api.ListInstancesResponse:
        self._platform.take("ListInstances", request, context)
        known = self._platform.instances
        names = sorted(name for name in known if name.startswith(f"{request.parent}/"))
        place = int(request.page_token or 0)
        # Two a page, so that a list has more than one.
        page = [self._platform.instances[name] for name in names[place : place + 2]]
        token = str(place + 2) if place + 2 < len(names) else ""
        return api.ListInstancesResponse(instances=page, next_page_token=token)

    def StopInstance(
        self, request: api.StopInstanceRequest, context: grpc.ServicerContext
    ) -> api.StopInstanceResponse:
        self._platform.take("StopInstance", request, context)
        found = self._platform.instances[request.name]
        found.status.desired_state = api.STATE_STOPPED
        if request.name not in self._platform.lasting:
            found.status.state = api.STATE_STOPPED
        return api.StopInstanceResponse(instance=found)

    def WatchInstances(
        self, request: api.WatchInstancesRequest, context: grpc.ServicerContext
    ) -> Iterator[api.WatchInstancesResponse]:
        self._platform.take("WatchInstances", request, context)
        yield from self._platform.watches.popleft()
        if self._platform.watches:
            busy(context)
        # The last one stays open, as a watch does, until its caller is gone.
        gone = Event()
        context.add_callback(gone.set)
        gone.wait()


class Users(projects_grpc.UserServiceServicer):
    """One user."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform

    def WhoAmI(
        self, request: projects.WhoAmIRequest, context: grpc.ServicerContext
    ) -> projects.WhoAmIResponse:
        self._platform.take("WhoAmI", request, context)
        return projects.WhoAmIResponse(user=projects.User(name="users/ada", uid="user_1"))

    def GetUser(
        self, request: projects.GetUserRequest, context: grpc.ServicerContext
    ) -> projects.GetUserResponse:
        self._platform.take("GetUser", request, context)
        return projects.GetUserResponse(user=projects.User(name=request.name, uid="user_1"))

    def UpdateUser(
        self, request: projects.UpdateUserRequest, context: grpc.ServicerContext
    ) -> projects.UpdateUserResponse:
        self._platform.take("UpdateUser", request, context)
        return projects.UpdateUserResponse(user=request.user)

    def RevokeToken(
        self, request: projects.RevokeTokenRequest, context: grpc.ServicerContext
    ) -> projects.RevokeTokenResponse:
        self._platform.take("RevokeToken", request, context)
        return projects.RevokeTokenResponse(token=projects.Token(name=request.name))


class Projects(projects_grpc.ProjectServiceServicer):
    """The projects of the instances."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform

    def ListProjects(
        self, request: projects.ListProjectsRequest, context: grpc.ServicerContext
    ) -> projects.ListProjectsResponse:
        self._platform.take("ListProjects", request, context)
        names = sorted({name.partition("/instances/")[0] for name in self._platform.instances})
        found = [projects.Project(name=name) for name in names]
        return projects.ListProjectsResponse(projects=found)


class Quotas(projects_grpc.QuotaServiceServicer):
    """Limits that are as they were set; those of `-` are inherited."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform

    def GetQuota(
        self, request: projects.GetQuotaRequest, context: grpc.ServicerContext
    ) -> projects.GetQuotaResponse:
        self._platform.take("GetQuota", request, context)
        return projects.GetQuotaResponse(quota=self._in_force(request.name))

    def ListQuotas(
        self, request: projects.ListQuotasRequest, context: grpc.ServicerContext
    ) -> projects.ListQuotasResponse:
        self._platform.take("ListQuotas", request, context)
        known = self._platform.quotas
        return projects.ListQuotasResponse(quotas=[known[name] for name in sorted(known)])

    def SetQuota(
        self, request: projects.SetQuotaRequest, context: grpc.ServicerContext
    ) -> projects.SetQuotaResponse:
        self._platform.take("SetQuota", request, context)
        made = projects.Quota()
        made.CopyFrom(request.quota)
        made.etag = str(int(self._in_force(made.name).etag) + 1)
        if not request.validate_only:
            self._platform.quotas[made.name] = made
        return projects.SetQuotaResponse(quota=made)

    def ClearQuota(
        self, request: projects.ClearQuotaRequest, context: grpc.ServicerContext
    ) -> projects.ClearQuotaResponse:
        self._platform.take("ClearQuota", request, context)
        self._platform.quotas.pop(request.name, None)
        return projects.ClearQuotaResponse(quota=self._in_force(request.name))

    def _in_force(self, name: str) -> projects.Quota:
        if name in self._platform.quotas:
            return self._platform.quotas[name]
        all_of = self._platform.quotas.get(f"{name.split('/')[0]}/-/quota", projects.Quota())
        return projects.Quota(name=name, limits=all_of.limits, inherited=True, etag="0")


class Clusters(projects_grpc.ClusterServiceServicer):
    """Clusters that are enrolled or retired."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform

    def EnrolCluster(
        self, request: projects.EnrolClusterRequest, context: grpc.ServicerContext
    ) -> projects.EnrolClusterResponse:
        self._platform.take("EnrolCluster", request, context)
        made = projects.Cluster(name=f"clusters/{request.cluster_id}")
        made.enrol_time.GetCurrentTime()
        self._platform.clusters[made.name] = made
        return projects.EnrolClusterResponse(cluster=made)

    def RetireCluster(
        self, request: projects.RetireClusterRequest, context: grpc.ServicerContext
    ) -> projects.RetireClusterResponse:
        self._platform.take("RetireCluster", request, context)
        found = self._platform.clusters.get(request.name)
        if found is None:
            uid = request.name.removeprefix("clusters/")
            missing = f"There is no cluster {uid!r}."
            refuse(code_pb2.NOT_FOUND, "CLUSTER_NOT_FOUND", missing, cluster=uid)(context)
            return projects.RetireClusterResponse()
        found.retired = True
        found.retire_time.GetCurrentTime()
        return projects.RetireClusterResponse(cluster=found)

    def ListClusters(
        self, request: projects.ListClustersRequest, context: grpc.ServicerContext
    ) -> projects.ListClustersResponse:
        self._platform.take("ListClusters", request, context)
        return projects.ListClustersResponse(clusters=self._platform.clusters.values())


class Journals(journal_grpc.JournalServiceServicer):
    """Facts as they were stated, and one journal whose reader may be halted."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform

    def ReadLog(
        self, request: journal.ReadLogRequest, context: grpc.ServicerContext
    ) -> Iterator[journal.ReadLogResponse]:
        self._platform.take("ReadLog", request, context)
        project = request.project.removeprefix("projects/")
        found = [
            (one.project_position if project else one.position, one)
            for one in self._platform.facts
            if one.journal == request.journal and project in ("", one.project)
        ]
        newer = [one for position, one in found if position > request.after]
        # One a page, so that a log has more than one.
        for one in newer[: request.limit or None]:
            yield journal.ReadLogResponse(records=[one], head=found[-1][0])
        if not newer:
            yield journal.ReadLogResponse(head=found[-1][0] if found else 0)

    def ListFacts(
        self, request: journal.ListFactsRequest, context: grpc.ServicerContext
    ) -> journal.ListFactsResponse:
        self._platform.take("ListFacts", request, context)
        asked = (request.journal, request.project.removeprefix("projects/"), request.stream)
        return journal.ListFactsResponse(
            records=[
                one
                for one in self._platform.facts
                if (one.journal, one.project, one.stream) == asked
                and one.version > request.after_version
            ]
        )

    def GetJournal(
        self, request: journal.GetJournalRequest, context: grpc.ServicerContext
    ) -> journal.GetJournalResponse:
        self._platform.take("GetJournal", request, context)
        reader = journal.ReaderProgress(reader="a/b", journal="b/0", position=3)
        found = [journal.JournalStatus(journal="b/0", head=5, published=5, readers=[reader])]
        found += [journal.JournalStatus(journal=name) for name in self._platform.journals]
        return journal.GetJournalResponse(journals=found, figures=self._platform.figures)

    def AuditJournal(
        self, request: journal.AuditJournalRequest, context: grpc.ServicerContext
    ) -> journal.AuditJournalResponse:
        self._platform.take("AuditJournal", request, context)
        checks = [
            journal.AuditCheck(name="a/0: dense", left="1", right="1", holds=True),
            journal.AuditCheck(name="a/0: read", left="1", right="2"),
        ]
        return journal.AuditJournalResponse(checks=checks)

    def ResumeReader(
        self, request: journal.ResumeReaderRequest, context: grpc.ServicerContext
    ) -> journal.ResumeReaderResponse:
        self._platform.take("ResumeReader", request, context)
        return journal.ResumeReaderResponse()

    def RetryParkedFacts(
        self, request: journal.RetryParkedFactsRequest, context: grpc.ServicerContext
    ) -> journal.RetryParkedFactsResponse:
        self._platform.take("RetryParkedFacts", request, context)
        return journal.RetryParkedFactsResponse()


@pytest.fixture
def platform(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> Iterator[Platform]:
    """A platform that runs, and an environment that knows nothing but an empty state folder."""
    for name in ("FERMION_CONTEXT", "FERMION_ADDRESS", "FERMION_TOKEN", "TRACEPARENT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FERMION_HOME", str(tmp_path))
    found = Platform()
    server = grpc.server(ThreadPoolExecutor(16))
    instances_grpc.add_InstanceServiceServicer_to_server(Instances(found), server)
    projects_grpc.add_UserServiceServicer_to_server(Users(found), server)
    projects_grpc.add_ProjectServiceServicer_to_server(Projects(found), server)
    projects_grpc.add_QuotaServiceServicer_to_server(Quotas(found), server)
    projects_grpc.add_ClusterServiceServicer_to_server(Clusters(found), server)
    journal_grpc.add_JournalServiceServicer_to_server(Journals(found), server)
    absent = refuse(code_pb2.NOT_FOUND, "NOT_QUEUED", "Nothing of it waits in the queue.")
    queue = Queue(found.take, absent, found.waiting)
    scheduler_grpc.add_QueueServiceServicer_to_server(queue, server)
    billing_grpc.add_CostServiceServicer_to_server(Costs(found.take, found.billed), server)
    billing_grpc.add_PriceServiceServicer_to_server(Prices(found.take, found.billed), server)
    runtime = Runtime(found.take, later("SHUTTING_DOWN"), found.running)
    executor_grpc.add_RuntimeServiceServicer_to_server(runtime, server)
    found.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    yield found
    server.stop(None).wait()
