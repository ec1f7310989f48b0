"""The role matrix: every call, by every kind of caller, in one's own and in a foreign project."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Final

import grpc
import grpc.aio
import pytest
from google.protobuf import descriptor_pool
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from protovalidate import Validator

from chassis.callers import NOBODY, Callers, rules
from chassis.fields import faults
from chassis.refusals import Refused
from fermion.api.billing import v1 as billing
from fermion.api.billing.v1 import service_pb2_grpc as billing_stubs
from fermion.api.executor import v1 as executor
from fermion.api.executor.v1 import service_pb2_grpc as executor_stubs
from fermion.api.instances import v1 as instances
from fermion.api.instances.v1 import service_pb2_grpc as instances_stubs
from fermion.api.journal.v1 import service_pb2_grpc as journal_stubs
from fermion.api.projects import v1 as projects
from fermion.api.projects.v1 import service_pb2_grpc as projects_stubs
from fermion.api.scheduler.v1 import service_pb2_grpc as scheduler_stubs
from fermion.api.workload import v1 as workload
from tests.integration.platform import SECONDS_MAX, Platform, running, told
from tests.people import People, created, followed, member, registered, uid
from tests.servers import NatsServer

# Who calls, a letter each: Anonymous, a Service, a User without a role, Billing viewer, Viewer,
# Editor, the project's Admin, and the platform's admin (Root).
WHO: Final = "ASUBVEPR"
ANYBODY: Final = "ASUBVEPR"
USERS: Final = "SUBVEPR"
READERS: Final = "SVEPR"
# Of bills; who sees nothing else sees these.
BILL_READERS: Final = "SBVEPR"
EDITORS: Final = "EPR"
ADMINS: Final = "PR"
SERVICES: Final = "SR"
ROOT: Final = "R"
# In a project where none of the users has a role.
STRANGERS_READ: Final = "SR"

ROLES: Final = {
    "B": projects.ROLE_BILLING_VIEWER,
    "V": projects.ROLE_VIEWER,
    "E": projects.ROLE_EDITOR,
    "P": projects.ROLE_ADMIN,
}


@dataclass(frozen=True, slots=True)
class Row:
    """Who may call: about one's own project, and about a foreign one that `field` names by `name`."""

    own: str
    foreign: str
    field: str = ""
    name: str = ""


def everywhere(who: str) -> Row:
    return Row(who, who)


def reads(field: str, name: str = "projects/{}") -> Row:
    return Row(READERS, STRANGERS_READ, field, name)


def bills(field: str, name: str = "projects/{}") -> Row:
    return Row(BILL_READERS, STRANGERS_READ, field, name)


def edits(field: str, name: str = "projects/{}/instances/dev-1") -> Row:
    return Row(EDITORS, ROOT, field, name)


def rules_over(field: str, name: str = "projects/{}") -> Row:
    return Row(ADMINS, ROOT, field, name)


TABLE: Final[Mapping[str, Row]] = {
    "projects.v1.UserService/CreateUser": everywhere(ROOT),
    "projects.v1.UserService/GetUser": everywhere(ROOT),
    "projects.v1.UserService/ListUsers": everywhere(ROOT),
    "projects.v1.UserService/UpdateUser": everywhere(ROOT),
    "projects.v1.UserService/DeleteUser": everywhere(ROOT),
    "projects.v1.UserService/WhoAmI": everywhere(USERS),
    "projects.v1.UserService/CreateToken": everywhere(ROOT),
    "projects.v1.UserService/ListTokens": everywhere(ROOT),
    "projects.v1.UserService/RevokeToken": everywhere(ROOT),
    "projects.v1.ProjectService/CreateProject": everywhere(USERS),
    "projects.v1.ProjectService/GetProject": reads("name"),
    "projects.v1.ProjectService/ListProjects": everywhere(USERS),
    "projects.v1.ProjectService/WatchProjects": everywhere(USERS),
    "projects.v1.ProjectService/UpdateProject": rules_over("project.name"),
    "projects.v1.ProjectService/ArchiveProject": rules_over("name"),
    "projects.v1.ProjectService/DeleteProject": rules_over("name"),
    "projects.v1.ProjectService/SetMember": rules_over("parent"),
    "projects.v1.ProjectService/ListMembers": reads("parent"),
    "projects.v1.ProjectService/RemoveMember": rules_over("name", "projects/{}/members/ada"),
    "projects.v1.KeyService/GetKeys": everywhere(ANYBODY),
    "projects.v1.KeyService/AddSigningKey": everywhere(ROOT),
    "projects.v1.KeyService/RemoveSigningKey": everywhere(ROOT),
    "projects.v1.QuotaService/GetQuota": reads("name", "projects/{}/quota"),
    "projects.v1.QuotaService/ListQuotas": everywhere(USERS),
    "projects.v1.QuotaService/SetQuota": everywhere(ROOT),
    "projects.v1.QuotaService/ClearQuota": everywhere(ROOT),
    "projects.v1.ClusterService/EnrolCluster": everywhere(ROOT),
    "projects.v1.ClusterService/RetireCluster": everywhere(ROOT),
    "projects.v1.ClusterService/ListClusters": everywhere(USERS),
    "journal.v1.JournalService/ReadLog": reads("project"),
    "journal.v1.JournalService/ListFacts": reads("project"),
    "journal.v1.JournalService/GetJournal": everywhere(SERVICES),
    "journal.v1.JournalService/AuditJournal": everywhere(ROOT),
    "journal.v1.JournalService/RebuildProjection": everywhere(ROOT),
    "journal.v1.JournalService/ListParkedFacts": everywhere(ROOT),
    "journal.v1.JournalService/RetryParkedFacts": everywhere(ROOT),
    "journal.v1.JournalService/SkipParkedFact": everywhere(ROOT),
    "journal.v1.JournalService/ResumeReader": everywhere(ROOT),
    "journal.v1.JournalService/BeginEpoch": everywhere(ROOT),
    "journal.v1.JournalService/AcceptRestore": everywhere(ROOT),
    "instances.v1.InstanceService/CreateInstance": edits("parent", "projects/{}"),
    "instances.v1.InstanceService/GetInstance": reads("name", "projects/{}/instances/dev-1"),
    "instances.v1.InstanceService/ListInstances": reads("parent"),
    "instances.v1.InstanceService/WatchInstances": reads("parent"),
    "instances.v1.InstanceService/UpdateInstance": edits("instance.name"),
    "instances.v1.InstanceService/DeleteInstance": edits("name"),
    "instances.v1.InstanceService/StartInstance": edits("name"),
    "instances.v1.InstanceService/StopInstance": edits("name"),
    "instances.v1.InstanceService/RestartInstance": edits("name"),
    "instances.v1.InstanceService/GetTemplate": everywhere(USERS),
    "instances.v1.InstanceService/ListTemplates": everywhere(USERS),
    "instances.v1.InstanceService/UpdateTemplate": everywhere(ROOT),
    "scheduler.v1.QueueService/ListQueuedWorkloads": reads("parent"),
    "scheduler.v1.QueueService/ExplainWorkload": reads("owner", "projects/{}/instances/dev-1"),
    "scheduler.v1.QueueService/OutlookWorkload": reads("parent"),
    "scheduler.v1.QueueService/WatchQueue": reads("parent"),
    "scheduler.v1.QueueService/ListHoldings": reads("parent"),
    "executor.v1.RuntimeService/ListReplicas": reads("owner", "projects/{}/instances/dev-1"),
    "executor.v1.RuntimeService/WatchReplicas": reads("owner", "projects/{}/instances/dev-1"),
    "executor.v1.RuntimeService/StreamLogs": reads("owner", "projects/{}/instances/dev-1"),
    "executor.v1.RuntimeService/Exec": edits("start.owner"),
    "executor.v1.RuntimeService/GetAccess": edits("owner"),
    "executor.v1.RuntimeService/ListUsage": reads("owner", "projects/{}/instances/dev-1"),
    "executor.v1.RuntimeService/GetCluster": everywhere(USERS),
    "billing.v1.PriceService/ListPriceBooks": everywhere(USERS),
    "billing.v1.PriceService/PublishPriceBook": everywhere(ROOT),
    "billing.v1.CostService/GetUsage": bills("parent"),
    "billing.v1.CostService/GetCost": bills("parent"),
    "billing.v1.CostService/WatchCost": bills("parent"),
    "billing.v1.CostService/GetStatement": bills("parent"),
    "billing.v1.CostService/ExplainCharge": bills("owner", "projects/{}/instances/dev-1"),
    "billing.v1.CostService/EstimateCost": reads("parent"),
}

# What a user may call about himself, whatever else he may.
ABOUT_ONESELF: Final[Mapping[str, tuple[str, str]]] = {
    "projects.v1.UserService/GetUser": ("name", "users/{}"),
    "projects.v1.UserService/CreateToken": ("parent", "users/{}"),
    "projects.v1.UserService/ListTokens": ("parent", "users/{}"),
    "projects.v1.UserService/RevokeToken": ("name", "users/{}/tokens/tok_1"),
    "projects.v1.QuotaService/GetQuota": ("name", "users/{}/quota"),
}

# What may be called without naming a project, or about all of them, and by whom.
WITHOUT_A_PROJECT: Final[Mapping[str, str]] = {
    "journal.v1.JournalService/ReadLog": SERVICES,
    "projects.v1.QuotaService/GetQuota": USERS,
    "billing.v1.CostService/GetUsage": ROOT,
    "billing.v1.CostService/GetCost": ROOT,
}

# Calls about something in one project.
IN_PROJECTS: Final = [method for method, row in TABLE.items() if row.field]

# What is also answered about a project that was deleted, and to whom.
KEEP_THE_DELETED: Final[Mapping[str, str]] = {
    "journal.v1.JournalService/ReadLog": SERVICES,
    "journal.v1.JournalService/ListFacts": SERVICES,
    "projects.v1.ProjectService/DeleteProject": ADMINS,
    "billing.v1.CostService/GetUsage": BILL_READERS,
    "billing.v1.CostService/GetCost": BILL_READERS,
    "billing.v1.CostService/WatchCost": BILL_READERS,
    "billing.v1.CostService/GetStatement": BILL_READERS,
    "billing.v1.CostService/ExplainCharge": BILL_READERS,
}

# How somebody is turned away at the door.
AWAY: Final = ("TOKEN_MISSING", "PROJECT_ROLE_MISSING", "PLATFORM_ROLE_MISSING")

# Codes of answers that no service meant.
FAULTS: Final = ("UNKNOWN", "INTERNAL", "UNIMPLEMENTED")

SERVICE_FILES: Final = (
    *(projects_stubs, journal_stubs, instances_stubs),
    *(scheduler_stubs, executor_stubs, billing_stubs),
)


def every_service() -> Iterator[str]:
    """Full names of all gRPC services that the API has, by the registration each file generates."""
    for stubs in SERVICE_FILES:
        package = stubs.__name__.removesuffix(".service_pb2_grpc")
        for name in vars(stubs):
            if name.startswith("add_") and name.endswith("Servicer_to_server"):
                yield f"{package}.{name[4 : -len('Servicer_to_server')]}"


RULES: Final = {
    method.removeprefix("/fermion.api."): rule for method, rule in rules(every_service()).items()
}


def request_to(method: str, field: str = "", value: str = "") -> Message:
    """A request of this RPC that names `value` in `field`."""
    service, _, name = method.partition("/")
    found = descriptor_pool.Default().FindServiceByName(f"fermion.api.{service}")
    request = GetMessageClass(found.methods_by_name[name].input_type)()
    if field:
        *parents, last = field.split(".")
        setattr(reduce(getattr, parents, request), last, value)
    return request


class Everybody:
    """One caller of each kind, as this process knows them."""

    def __init__(self, people: People, callers: Callers) -> None:
        self._callers = callers
        self.callers = {
            letter: callers.recognise(callers.authenticate(people.token(uid(f"user-{letter}"))))
            for letter in "UBVEPR"
        }
        service = callers.authenticate(people.token("service:instances", "service"))
        self.callers |= {"A": NOBODY, "S": callers.recognise(service)}

    def let_in(self, method: str, request: Message) -> str:
        """Letters of those who may make this call."""
        return "".join(letter for letter in WHO if self.may(letter, method, request))

    def may(self, letter: str, method: str, request: Message) -> bool:
        """Whether the door lets this one in, be it to hear that there is no such thing."""
        return self.told(letter, method, request) not in AWAY

    def told(self, letter: str, method: str, request: Message) -> str:
        """The reason of the refusal at the door; empty where there is none."""
        try:
            self._callers.authorise(self.callers[letter], RULES[method], request)
        except Refused as refusal:
            return refusal.reason
        return ""


@pytest.fixture
async def everybody() -> AsyncIterator[Everybody]:
    people = People()
    await people.say(
        *(
            fact
            for letter in "UBVEPR"
            for fact in registered(f"user-{letter}", admin=letter == "R")
        ),
        created("own"),
        created("foreign"),
        created("deleted"),
        *(
            member(project, f"user-{letter}", role)
            for project in ("own", "deleted")
            for letter, role in ROLES.items()
        ),
        projects.ProjectDeleted(project="deleted"),
    )
    callers = people.callers()
    async with followed(callers):
        yield Everybody(people, callers)


def test_the_table_has_every_call_and_no_other() -> None:
    assert set(TABLE) == set(RULES)
    assert {method for method, rule in RULES.items() if rule.self} == set(ABOUT_ONESELF)
    assert {method for method, rule in RULES.items() if rule.bare} == set(WITHOUT_A_PROJECT)
    assert {method for method, rule in RULES.items() if rule.gone} == set(KEEP_THE_DELETED)
    assert {method for method, rule in RULES.items() if rule.role} == set(IN_PROJECTS)


def test_the_table_knows_every_file_with_services() -> None:
    root = Path(str(projects_stubs.__file__)).parents[2]
    found = {path.parent for path in root.rglob("service_pb2_grpc.py")}
    assert {Path(str(stubs.__file__)).parent for stubs in SERVICE_FILES} == found


@pytest.mark.parametrize("method", TABLE)
async def test_a_call_lets_in_whom_the_table_says(everybody: Everybody, method: str) -> None:
    row = TABLE[method]
    own = request_to(method, row.field, row.name.format("own"))
    foreign = request_to(method, row.field, row.name.format("foreign"))
    unknown = request_to(method, row.field, row.name.format("unknown"))
    assert everybody.let_in(method, own) == row.own
    assert everybody.let_in(method, foreign) == row.foreign
    assert everybody.let_in(method, unknown) == row.foreign


@pytest.mark.parametrize("method", IN_PROJECTS)
async def test_a_project_that_is_not_there_is_told_only_to_those_who_see_all(
    everybody: Everybody, method: str
) -> None:
    row = TABLE[method]
    for gone in ("unknown", "deleted"):
        request = request_to(method, row.field, row.name.format(gone))
        after_all = KEEP_THE_DELETED.get(method, "") if gone == "deleted" else ""
        for letter in WHO:
            told = everybody.told(letter, method, request)
            if letter in after_all:
                assert told == ""
            elif letter in row.foreign:
                assert told == "PROJECT_NOT_FOUND"
            else:
                assert told == ("TOKEN_MISSING" if letter == "A" else "PROJECT_ROLE_MISSING")


@pytest.mark.parametrize("method", WITHOUT_A_PROJECT)
async def test_a_request_about_all_projects_is_as_one_that_names_none(
    everybody: Everybody, method: str
) -> None:
    row = TABLE[method]
    about_all = request_to(method, row.field, row.name.format("-"))
    assert everybody.let_in(method, about_all) == WITHOUT_A_PROJECT[method]


@pytest.mark.parametrize("method", [one for one in IN_PROJECTS if one not in ABOUT_ONESELF])
async def test_a_request_that_names_no_project_lets_in_nobody(
    everybody: Everybody, method: str
) -> None:
    row, bare = TABLE[method], WITHOUT_A_PROJECT.get(method, "")
    for name in ("", "users/ada", "projects", "projects/"):
        request = request_to(method, row.field, name)
        for letter in WHO[1:]:
            told = everybody.told(letter, method, request)
            if name or not bare:
                assert told == "FIELD_INVALID"
            else:
                assert told == ("" if letter in bare else "PLATFORM_ROLE_MISSING")


@pytest.mark.parametrize("method", ABOUT_ONESELF)
async def test_a_user_calls_about_himself_and_nobody_else(
    everybody: Everybody, method: str
) -> None:
    field, name = ABOUT_ONESELF[method]
    others = TABLE[method].foreign
    for letter in "UBVEP":
        about = request_to(method, field, name.format(f"user-{letter}"))
        wanted = "".join(one for one in WHO if one == letter or one in others)
        assert everybody.let_in(method, about) == wanted
    for nobody in ("users/", "projects/user-U", "users/instances", "users/service:instances"):
        assert everybody.let_in(method, request_to(method, field, nobody)) == others
    nameless = WITHOUT_A_PROJECT.get(method, others)
    assert everybody.let_in(method, request_to(method, field)) == nameless


# What a call needs beside the name of a project, so that its shape is right; else that would be
# refused before it is asked who calls. Names are those of nothing, and what can be is rehearsed.
NOBODY_NAMED: Final = "users/nobody"
KEY: Final = projects.SigningKey(kid="new", public_key=bytes(32))
SPEC: Final = instances.Spec(kind=instances.KIND_NOTEBOOK)
SHAPES: Final[Mapping[str, Mapping[str, object]]] = {
    "projects.v1.UserService/CreateUser": {"user_id": "new"},
    "projects.v1.UserService/GetUser": {"name": NOBODY_NAMED},
    "projects.v1.UserService/UpdateUser": {"user": projects.User(name=NOBODY_NAMED)},
    "projects.v1.UserService/DeleteUser": {"name": NOBODY_NAMED},
    "projects.v1.UserService/CreateToken": {"parent": NOBODY_NAMED},
    "projects.v1.UserService/ListTokens": {"parent": NOBODY_NAMED},
    "projects.v1.UserService/RevokeToken": {"name": f"{NOBODY_NAMED}/tokens/tok_{'0' * 26}"},
    "projects.v1.ProjectService/CreateProject": {"project_id": "new"},
    "projects.v1.ProjectService/WatchProjects": {"send_initial": True},
    "projects.v1.ProjectService/SetMember": {"user": NOBODY_NAMED, "role": projects.ROLE_VIEWER},
    "projects.v1.KeyService/AddSigningKey": {"key": KEY},
    "projects.v1.KeyService/RemoveSigningKey": {"kid": "none"},
    "projects.v1.QuotaService/SetQuota": {"quota": projects.Quota(name=f"{NOBODY_NAMED}/quota")},
    "projects.v1.QuotaService/ClearQuota": {"name": f"{NOBODY_NAMED}/quota"},
    "projects.v1.ClusterService/EnrolCluster": {"cluster_id": "0" * 26},
    "projects.v1.ClusterService/RetireCluster": {"name": f"clusters/{'0' * 26}"},
    "journal.v1.JournalService/ReadLog": {"journal": "projects/0"},
    "journal.v1.JournalService/ListFacts": {"journal": "projects/0", "stream": "project/none"},
    "journal.v1.JournalService/RebuildProjection": {"journal": "none/0"},
    "journal.v1.JournalService/RetryParkedFacts": {"reader": "none/none", "stream": "none"},
    "journal.v1.JournalService/SkipParkedFact": {
        "reader": "none/none",
        "journal": "none/0",
        "position": 1,
        "reason": "none",
    },
    "journal.v1.JournalService/ResumeReader": {"reader": "none/none", "journal": "none/0"},
    "journal.v1.JournalService/BeginEpoch": {"journal": "none/0"},
    "journal.v1.JournalService/AcceptRestore": {"reader": "none/none", "journal": "none/0"},
    "instances.v1.InstanceService/CreateInstance": {
        "instance_id": "new",
        "instance": instances.Instance(spec=SPEC),
    },
    "instances.v1.InstanceService/WatchInstances": {"send_initial": True},
    "instances.v1.InstanceService/GetTemplate": {"name": "templates/none"},
    "instances.v1.InstanceService/UpdateTemplate": {
        "template": instances.Template(name="templates/none", kind=instances.KIND_NOTEBOOK)
    },
    "scheduler.v1.QueueService/OutlookWorkload": {"workload": workload.Workload()},
    "scheduler.v1.QueueService/WatchQueue": {"send_initial": True},
    "billing.v1.CostService/EstimateCost": {"workload": workload.Workload()},
    "billing.v1.PriceService/PublishPriceBook": {
        "price_book": billing.PriceBook(
            version="next",
            currency="USD",
            prices=[billing.Price(dimension=billing.DIMENSION_CPU)],
        )
    },
    "executor.v1.RuntimeService/WatchReplicas": {"send_initial": True},
    "executor.v1.RuntimeService/Exec": {"start": executor.ExecRequest.Start(command=["true"])},
}

# A process without a cluster does not serve these.
WITH_A_CLUSTER: Final = "executor.v1.RuntimeService"


def shaped(method: str, field: str = "", value: str = "") -> Message:
    """A request that the door has nothing against but, perhaps, who sends it."""
    request = request_to(method)
    request.MergeFrom(type(request)(**SHAPES.get(method, {})))
    if "validate_only" in request.DESCRIPTOR.fields_by_name:
        setattr(request, "validate_only", True)  # noqa: B010  # not every request has it
    if field:
        *parents, last = field.split(".")
        setattr(reduce(getattr, parents, request), last, value)
    return request


class Door:
    """A running platform with two projects, and a token of each kind of caller."""

    def __init__(self, platform: Platform) -> None:
        self.platform = platform
        self.tokens = {"R": platform.token}
        token = platform.home.path("keys", "tokens", "scheduler.token")
        self.tokens["S"] = token.read_text().strip()

    async def prepare(self) -> None:
        call = self.platform.call
        users = projects_stubs.UserServiceStub(self.platform.channel)
        membership = projects_stubs.ProjectServiceStub(self.platform.channel)
        for project in ("own", "foreign"):
            request = projects.CreateProjectRequest(project_id=project)
            await call(membership.CreateProject, request)
        for letter in "UBVEP":
            name = f"user-{letter.lower()}"
            await call(users.CreateUser, projects.CreateUserRequest(user_id=name))
            issue = projects.CreateTokenRequest(parent=f"users/{name}")
            self.tokens[letter] = (await call(users.CreateToken, issue)).signed_token
            if letter in ROLES:
                setting = projects.SetMemberRequest(
                    parent="projects/own", user=f"users/{name}", role=ROLES[letter]
                )
                await call(membership.SetMember, setting)

    async def let_in(self, method: str, request: Message) -> str:
        """Letters of those who are not turned away, whatever they are told then."""
        return "".join(
            [letter for letter in WHO if await self.told(letter, method, request) not in AWAY]
        )

    async def told(self, letter: str, method: str, request: Message) -> str:
        """The reason of the refusal that this caller hears; empty where there is none."""
        metadata = [pair for pair in self.platform.metadata if pair[0] != "authorization"]
        if letter in self.tokens:
            metadata.append(("authorization", f"Bearer {self.tokens[letter]}"))
        service, _, name = method.partition("/")
        found = descriptor_pool.Default().FindServiceByName(f"fermion.api.{service}")
        rpc = found.methods_by_name[name]
        answer: type[Message] = GetMessageClass(rpc.output_type)
        path, reads = f"/fermion.api.{method}", answer.FromString
        write = type(request).SerializeToString
        try:
            if rpc.client_streaming:
                both = self.platform.channel.stream_stream(path, write, reads)
                exchange = both(iter([request]), metadata=tuple(metadata), timeout=SECONDS_MAX)
                await exchange.read()
                exchange.cancel()
            elif rpc.server_streaming:
                stream = self.platform.channel.unary_stream(path, write, reads)
                call = stream(request, metadata=tuple(metadata), timeout=SECONDS_MAX)
                await call.read()
                call.cancel()
            else:
                unary = self.platform.channel.unary_unary(path, write, reads)
                await unary(request, metadata=tuple(metadata), timeout=SECONDS_MAX)
        except grpc.aio.AioRpcError as error:
            if error.code().name in FAULTS:
                raise
            return told(error).reason
        return ""


@pytest.mark.parametrize("method", TABLE)
def test_nothing_but_the_caller_is_wrong_with_what_the_platform_is_asked(method: str) -> None:
    row = TABLE[method]
    assert faults(shaped(method, row.field, row.name.format("own")), Validator()) == []


async def test_the_running_platform_lets_in_whom_the_table_says(
    database: str, nats_server: NatsServer, tmp_path: Path
) -> None:
    async with running(database, nats_server, tmp_path) as platform:
        door = Door(platform)
        await door.prepare()
        assert platform.process.server is not None
        served = {name.removeprefix("fermion.api.") for name in platform.process.server.names}
        assert {method.split("/")[0] for method in TABLE} - served <= {WITH_A_CLUSTER}
        found: dict[str, Row] = {}
        for method, row in TABLE.items():
            if method.split("/")[0] not in served:
                continue
            own, foreign = [
                await door.let_in(method, shaped(method, row.field, row.name.format(project)))
                for project in ("own", "foreign")
            ]
            found[method] = Row(own, foreign, row.field, row.name)
        assert found == {method: TABLE[method] for method in found}
        for method, who in WITHOUT_A_PROJECT.items():
            row = TABLE[method]
            # About all of them where the call takes that, else about none.
            about_all = shaped(method, row.field, row.name.format("-"))
            bare = shaped(method) if faults(about_all, Validator()) else about_all
            assert await door.let_in(method, bare) == who, method


async def test_on_the_running_platform_a_user_calls_about_himself(
    database: str, nats_server: NatsServer, tmp_path: Path
) -> None:
    async with running(database, nats_server, tmp_path) as platform:
        door = Door(platform)
        await door.prepare()
        for method, (field, name) in ABOUT_ONESELF.items():
            about = name.format("user-v").replace("tok_1", f"tok_{'0' * 26}")
            wanted = "".join(one for one in WHO if one == "V" or one in TABLE[method].foreign)
            assert await door.let_in(method, shaped(method, field, about)) == wanted, method
