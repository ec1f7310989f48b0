"""One platform for the tier, with people, projects and something that runs in each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import psutil
import pytest
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message

from fermion import Client
from fermion.api.executor import v1 as executor
from fermion.api.instances import v1 as instances
from fermion.api.journal import v1 as journal
from fermion.api.projects import v1 as projects
from fermion.api.scheduler import v1 as scheduler
from fermion.api.workload import v1 as workload
from tests.fuzz.messages import Names
from tests.fuzz.wire import Metadata, Wire
from tests.stage import TINY, Stage, staged

LAB = "projects/own/instances/lab"
HIDDEN = "projects/foreign/instances/hidden"
# Stands in whatever there is in projects: who is in none may never hear it.
SECRET = "nobody-may-hear-this"


def method(name: str) -> MethodDescriptor:
    """An RPC by `area.v1.Service/Method`."""
    service, _, last = name.partition("/")
    found = descriptor_pool.Default().FindServiceByName(f"fermion.api.{service}")
    return found.methods_by_name[last]


@dataclass(frozen=True, slots=True)
class Question:
    """A request that goes on from where a token says, and the field that holds the token."""

    method: MethodDescriptor
    request: Message
    field: str

    @property
    def token(self) -> str:
        """What a call has given."""
        return str(getattr(self.request, self.field))


@dataclass(slots=True)
class Ground:
    """What the tier stands on."""

    stage: Stage
    wire: Wire
    tokens: dict[str, str]
    names: Names = Names(())
    foreign: Names = Names(())
    questions: tuple[Question, ...] = ()

    def metadata(self, who: str) -> Metadata:
        """How somebody calls."""
        return (("authorization", f"Bearer {self.tokens[who]}"),)

    def service(self) -> psutil.Process:
        """The process that answers."""
        return self.stage.answering(self.stage.address)


@pytest.fixture(scope="session")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    """A platform that is up, and what can be named of it."""
    with staged(tmp_path_factory.mktemp("home"), "--simulate-gpus", "2", settings=TINY) as stage:
        with Client(address=stage.address, token=stage.token) as client:
            tokens = {"admin": stage.token, **_people(client)}
        wire = Wire(stage.address)
        try:
            found = Ground(stage, wire, tokens)
            found.questions = tuple(_questions(found))
            given = tuple(dict.fromkeys(one.token for one in found.questions))
            own, foreign = _names(found)
            found.names, found.foreign = Names(own, given), Names(foreign, given)
            yield found
        finally:
            wire.close()


def _people(client: Client) -> dict[str, str]:
    """Two projects, somebody in the first one, something that runs in each; tokens of the people."""
    tokens = {}
    for user in ("ada", "stranger"):
        client.users.create(user, projects.User())
        tokens[user] = client.tokens.create(user).signed_token
    for project in ("own", "foreign", "spare"):
        client.projects.create(project, projects.Project(description=SECRET))
    client.members.set("own", "ada", projects.ROLE_EDITOR)
    # What is drawn may start something; not more than this of it.
    client.quotas.set("projects/own", projects.Limits(workloads={"instance": 4}))
    for project, name in (("own", "lab"), ("own", "idle"), ("foreign", "hidden")):
        spec = instances.Spec(
            kind=instances.KIND_CUSTOM,
            image="host",
            resources=instances.Resources(
                cpu_milli=50, memory_bytes=64 * 2**20, storage_bytes=2**30
            ),
            env=[workload.EnvVar(name="WORDS", value=SECRET)],
            ports=[workload.Port(name="web", number=8000)],
            command=["sh", "-c", f"echo {SECRET}; echo {SECRET}; exec sleep 600"],
        )
        instance = instances.Instance(spec=spec, labels={"team": SECRET}, description=SECRET)
        client.instances.create(project, name, instance)
    for name in (LAB, HIDDEN):
        client.instances.wait(name, instances.STATE_RUNNING, 60)
    return tokens


def _questions(ground: Ground) -> Iterator[Question]:
    """Pages behind the first, and streams behind their beginnings."""
    pages: tuple[tuple[str, Message], ...] = (
        (
            "instances.v1.InstanceService/ListInstances",
            instances.ListInstancesRequest(parent="projects/own", page_size=1),
        ),
        (
            "instances.v1.InstanceService/ListInstances",
            instances.ListInstancesRequest(
                parent="projects/own", page_size=1, order_by="create_time desc"
            ),
        ),
        ("projects.v1.ProjectService/ListProjects", projects.ListProjectsRequest(page_size=1)),
        ("projects.v1.UserService/ListUsers", projects.ListUsersRequest(page_size=1)),
    )
    streams: tuple[tuple[str, Message], ...] = (
        (
            "instances.v1.InstanceService/WatchInstances",
            instances.WatchInstancesRequest(parent="projects/own", send_initial=True),
        ),
        (
            "projects.v1.ProjectService/WatchProjects",
            projects.WatchProjectsRequest(send_initial=True),
        ),
        (
            "scheduler.v1.QueueService/WatchQueue",
            scheduler.WatchQueueRequest(parent="projects/own", send_initial=True),
        ),
        (
            "executor.v1.RuntimeService/WatchReplicas",
            executor.WatchReplicasRequest(owner=LAB, send_initial=True),
        ),
        ("executor.v1.RuntimeService/StreamLogs", executor.StreamLogsRequest(owner=LAB)),
    )
    for name, request in pages:
        (answer,) = ground.wire.ask(method(name), request, ground.metadata("admin"))
        setattr(request, "page_token", answer.next_page_token)  # type: ignore[attr-defined]  # noqa: B010
        yield Question(method(name), request, "page_token")
    for name, request in streams:
        tokens: list[str] = []
        # It is listened to for a moment only, and may have had nothing to say yet.
        while not tokens:
            answers = ground.wire.ask(method(name), request, ground.metadata("admin"))
            tokens = [token for one in answers if (token := one.resume_token)]  # type: ignore[attr-defined]
        setattr(request, "resume_token", tokens[-1])  # noqa: B010
        yield Question(method(name), request, "resume_token")


def _names(ground: Ground) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What can be named in one's own project, and in the foreign one."""
    admin = ground.metadata("admin")
    get = instances.GetInstanceRequest(name=LAB)
    (found,) = ground.wire.ask(method("instances.v1.InstanceService/GetInstance"), get, admin)
    assert isinstance(found, instances.GetInstanceResponse)
    uid = found.instance.uid
    runs = executor.ListReplicasRequest(owner=LAB)
    (replicas,) = ground.wire.ask(method("executor.v1.RuntimeService/ListReplicas"), runs, admin)
    assert isinstance(replicas, executor.ListReplicasResponse)
    (journals,) = ground.wire.ask(
        method("journal.v1.JournalService/GetJournal"), journal.GetJournalRequest(), admin
    )
    assert isinstance(journals, journal.GetJournalResponse)
    # Neither the admin nor the cluster nor the key is among them: without these, nothing is left to ask.
    own = (
        *("lab", "idle", "new", "own", "ada", "small", "host", "web", "x", "sleep", "true"),
        *("projects/own", LAB, "projects/own/instances/idle", "projects/own/instances/none"),
        *("projects/own/quota", "users/ada", "users/ada/quota", "users/nobody"),
        *("projects/own/members/ada", "templates/notebook", "templates/none", "notebook"),
        *("USD", "EUR", "CPU", "/data", "team", "/", f"instance/{uid}", uid),
        *(found.instance.status.workload_uid, replicas.replicas[0].uid),
        *(f"users/ada/tokens/tok_{'0' * 26}", "0" * 26, f"clusters/{'0' * 26}"),
        *(one.journal for one in journals.journals),
        *(reader.reader for one in journals.journals for reader in one.readers),
    )
    foreign = (
        *("projects/foreign", HIDDEN, "projects/foreign/quota", "projects/foreign/members/ada"),
        *("hidden", "foreign", "users/ada", "users/ada/quota", "projects/never"),
        *(f"instance/{uid}", "lab", "host", "web", "true", "team", "USD", "/", "0" * 26),
        *(f"clusters/{'0' * 26}", f"users/ada/tokens/tok_{'0' * 26}", "templates/notebook"),
        *(one.journal for one in journals.journals),
        *(reader.reader for one in journals.journals for reader in one.readers),
    )
    return tuple(dict.fromkeys(own)), tuple(dict.fromkeys(foreign))
