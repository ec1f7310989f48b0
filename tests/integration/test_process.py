"""A process starts whatever is away, says so, drains when told, and ends when a loop of it fails."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import urllib.request
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import asyncpg
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client.parser import text_string_to_metric_families

from chassis import process as chassis_process
from chassis.embedded import Home, Keys, free_port
from chassis.refusals import Invalid
from chassis.service import Kernel, Loop, Wired
from fermion.api.instances import v1 as instances
from fermion.api.instances.v1.service_pb2_grpc import InstanceServiceStub
from fermion.api.journal import v1 as journal
from fermion.api.journal.v1.service_pb2_grpc import JournalServiceStub
from fermion.api.projects import v1 as projects
from fermion.api.projects.v1.service_pb2_grpc import ProjectServiceStub, UserServiceStub
from services.projects.config import Settings
from services.projects.wiring import TARGET as PROJECTS
from services.serve import TARGETS
from tests.contract import watching
from tests.integration.platform import Platform, running, told, until
from tests.servers import CLUSTER, NatsServer

SECONDS_MAX = 30.0


@dataclass(frozen=True, slots=True)
class Started:
    """A process of the platform as an operator starts it."""

    process: Process
    channel: grpc.aio.Channel
    metrics: str

    async def ready(self) -> bool:
        """Whether it says that it serves."""
        stub = health_pb2_grpc.HealthStub(self.channel)
        try:
            answer = await stub.Check(health_pb2.HealthCheckRequest())
        except grpc.aio.AioRpcError:
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    async def ended(self) -> tuple[int, str]:
        """Wait for its end; the exit code and what it logged."""
        async with asyncio.timeout(SECONDS_MAX):
            _, logged = await self.process.communicate()
        assert self.process.returncode is not None
        return self.process.returncode, logged.decode()


# What runs without a cluster.
DECIDING = ("projects", "instances", "scheduler")


@asynccontextmanager
async def started(
    folder: Path, *targets: str, dsn: str, nats_url: str, port: int | str = 0, **settings: str
) -> AsyncIterator[Started]:
    home = Home(folder)
    home.prepare()
    keys = Keys.prepare(home, tuple(TARGETS))
    port, metrics = port or free_port(), free_port()
    environment = {
        **os.environ,
        "FERMION_POSTGRES_DSN": dsn,
        "FERMION_NATS_URL": nats_url,
        "FERMION_LISTEN": f"127.0.0.1:{port}",
        "FERMION_ADDRESS": f"127.0.0.1:{port}",
        "FERMION_PUBLIC_KEYS": str(home.path("keys", "jwks.json")),
        "FERMION_SIGNING_KEY": str(home.path("keys", "signing.jwk")),
        "FERMION_SERVICE_TOKENS": str(home.path("keys", "tokens")),
        "FERMION_ADMIN": keys.admin_uid,
        "FERMION_METRICS_LISTEN": f"127.0.0.1:{metrics}",
        **settings,
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services", *targets, env=environment, stderr=PIPE
    )
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield Started(process, channel, f"http://127.0.0.1:{metrics}/metrics")
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_told_to_end_it_drains_and_answers_its_watchers(
    database: str, nats_server: NatsServer, tmp_path: Path
) -> None:
    settings = {"FERMION_NATS_KEYS": str(nats_server.keys)}
    async with started(
        tmp_path, *DECIDING, dsn=database, nats_url=nats_server.url, **settings
    ) as platform:
        await until(platform.ready, bool, "was not ready")
        token = (tmp_path / "keys" / "admin.token").read_text().strip()
        metadata = (("authorization", f"Bearer {token}"),)
        stub = ProjectServiceStub(platform.channel)
        watch = stub.WatchProjects(
            projects.WatchProjectsRequest(send_initial=True), metadata=metadata
        )
        await watch.read()
        platform.process.send_signal(signal.SIGTERM)
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await watch.read()
        assert told(error.value).reason == "SHUTTING_DOWN"
        code, logged = await platform.ended()
    assert code == 0, logged
    assert "draining" in logged
    assert "Traceback" not in logged


async def test_services_in_processes_of_their_own_find_each_other(
    database: str, nats_server: NatsServer, tmp_path: Path
) -> None:
    ports = {name: free_port() for name in DECIDING}
    settings = {
        "FERMION_NATS_KEYS": str(nats_server.keys),
        **{f"FERMION_ADDRESS_{name.upper()}": f"127.0.0.1:{at}" for name, at in ports.items()},
    }
    async with AsyncExitStack() as stack:
        parts = {
            name: await stack.enter_async_context(
                started(
                    tmp_path, name, dsn=database, nats_url=nats_server.url, port=port, **settings
                )
            )
            # The one that all others ask who may do what comes last.
            for name, port in reversed(ports.items())
        }
        for part in parts.values():
            await until(part.ready, bool, "was not ready")
        signed = (tmp_path / "keys" / "admin.token").read_text().strip()
        token = ("authorization", f"Bearer {signed}")
        make = ProjectServiceStub(parts["projects"].channel).CreateProject

        call = make(projects.CreateProjectRequest(project_id="acme"), metadata=(token,))
        await call
        made = str(dict(await call.trailing_metadata())["fermion-position"])
        metadata = (token, ("fermion-after", made))
        stub = InstanceServiceStub(parts["instances"].channel)
        request = instances.CreateInstanceRequest(parent="projects/acme", instance_id="dev-1")
        request.instance.spec.kind = instances.KIND_NOTEBOOK

        async def create() -> str:
            try:
                await stub.CreateInstance(request, metadata=metadata)
            except grpc.aio.AioRpcError as error:
                return told(error).reason
            return "OK"

        # An early one may be told that the process has not read so far yet, and nothing else.
        async with asyncio.timeout(SECONDS_MAX):
            while (answer := await create()) != "OK":
                assert answer == "READ_BEHIND"

        async def phase() -> int:
            asked = instances.GetInstanceRequest(name="projects/acme/instances/dev-1")
            return (await stub.GetInstance(asked, metadata=metadata)).instance.status.phase

        await until(phase, lambda found: found == instances.PHASE_QUEUED, "was not queued")


async def test_a_loop_that_fails_takes_its_process_down(
    database: str, nats_server: NatsServer, tmp_path: Path
) -> None:
    settings = {"FERMION_NATS_KEYS": str(nats_server.keys)}
    async with started(
        tmp_path, "projects", dsn=database, nats_url=nats_server.url, **settings
    ) as platform:
        await until(platform.ready, bool, "was not ready")
        operator = await asyncpg.connect(database)
        await operator.execute("DROP SCHEMA projects CASCADE")
        await operator.close()
        code, logged = await platform.ended()
    assert code == 1
    assert "a loop failed; the process ends" in logged


async def test_a_loop_that_fails_ends_also_one_that_misses_the_first_cancellation(
    database: str, nats_server: NatsServer, tmp_path: Path
) -> None:
    fails, heard = asyncio.Event(), []

    async def failing() -> None:
        await fails.wait()
        raise OSError("the disk is gone")

    async def deaf() -> None:
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                heard.append("cancelled")
                if len(heard) > 1:
                    raise

    async def was_heard() -> bool:
        return bool(heard)

    def wire(kernel: Kernel[Settings]) -> Wired:
        loops = (Loop("deaf", deaf), Loop("failing", failing))
        return replace(PROJECTS.wire(kernel), loops=loops)

    targets = {"projects": replace(PROJECTS, wire=wire)}

    async def run() -> None:
        async with asyncio.timeout(SECONDS_MAX):
            async with running(database, nats_server, tmp_path, targets=targets):
                fails.set()
                await until(was_heard, bool, "the other loop was not told")

    with pytest.raises(ExceptionGroup) as raised:
        await run()
    assert raised.group_contains(OSError, match="the disk is gone")
    assert heard == ["cancelled", "cancelled"]


async def test_a_loop_that_a_library_cancels_takes_its_process_down(
    database: str, nats_server: NatsServer, tmp_path: Path
) -> None:
    lost = asyncio.Event()

    async def cancelled() -> None:
        await lost.wait()
        raise asyncio.CancelledError

    def wire(kernel: Kernel[Settings]) -> Wired:
        return replace(PROJECTS.wire(kernel), loops=(Loop("cancelled", cancelled),))

    targets = {"projects": replace(PROJECTS, wire=wire)}

    async def run() -> None:
        async with asyncio.timeout(SECONDS_MAX):
            async with running(database, nats_server, tmp_path, targets=targets) as platform:
                lost.set()
                stub = UserServiceStub(platform.channel)

                async def away() -> bool:
                    try:
                        await platform.call(stub.WhoAmI, projects.WhoAmIRequest())
                    except grpc.aio.AioRpcError as error:
                        return error.code() is grpc.StatusCode.UNAVAILABLE
                    return False

                await until(away, bool, "it serves on")

    with pytest.raises(ExceptionGroup) as raised:
        await run()
    assert raised.group_contains(RuntimeError, match="projects cancelled was cancelled by nobody")


async def test_told_to_end_while_it_waits_for_its_database_it_ends(tmp_path: Path) -> None:
    dsn = f"postgresql://fermion@/fermion?host={tmp_path}/nowhere"
    async with started(tmp_path, "scheduler", dsn=dsn, nats_url="nats://127.0.0.1:1") as platform:
        assert platform.process.stderr is not None
        async with asyncio.timeout(SECONDS_MAX):
            while b"waits for its database" not in await platform.process.stderr.readline():
                assert platform.process.returncode is None
        assert not await platform.ready()
        platform.process.send_signal(signal.SIGTERM)
        code, logged = await platform.ended()
    assert code == 0, logged


async def test_a_database_that_does_not_come_is_told(tmp_path: Path) -> None:
    dsn = f"postgresql://fermion@/fermion?host={tmp_path}/nowhere"
    settings = {"FERMION_START_SECONDS_MAX": "0"}
    async with started(
        tmp_path, "scheduler", dsn=dsn, nats_url="nats://127.0.0.1:1", **settings
    ) as platform:
        code, logged = await platform.ended()
    assert code == 1
    assert "The database cannot be reached" in logged
    assert "Traceback" not in logged


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("FERMION_METRICS_LISTEN", "bad"),
        ("FERMION_LOG_LEVEL", "LOUD"),
        ("FERMION_POSTGRES_DSN", "bogus"),
        ("FERMION_POSTGRES_DSN", "postgresql://there:port/db"),
        ("FERMION_PUBLIC_KEYS", "/nowhere"),
    ],
)
async def test_a_start_that_no_other_start_would_mend_has_a_code_of_its_own(
    tmp_path: Path, variable: str, value: str
) -> None:
    settings = {variable: value}
    dsn = settings.pop("FERMION_POSTGRES_DSN", "postgresql://x/y")
    async with started(
        tmp_path, "scheduler", dsn=dsn, nats_url="nats://127.0.0.1:1", **settings
    ) as platform:
        code, logged = await platform.ended()
    assert code == chassis_process.EXIT_REFUSED == 78
    assert variable in logged
    assert "Traceback" not in logged
    assert "waits for its database" not in logged


async def test_a_wait_is_told_once_for_each_cause(tmp_path: Path) -> None:
    dsn = f"postgresql://fermion@/fermion?host={tmp_path}/nowhere"
    settings = {"FERMION_START_SECONDS_MAX": "1"}
    async with started(
        tmp_path, "scheduler", dsn=dsn, nats_url="nats://127.0.0.1:1", **settings
    ) as platform:
        code, logged = await platform.ended()
    assert code == 1
    assert logged.count("waits for its database") == 1


async def test_a_metrics_port_that_is_taken_is_told(tmp_path: Path) -> None:
    async with await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0) as taken:
        port = taken.sockets[0].getsockname()[1]
        settings = {"FERMION_METRICS_LISTEN": f"127.0.0.1:{port}"}
        async with started(
            tmp_path, "scheduler", dsn="postgresql://x/y", nats_url="nats://127.0.0.1:1", **settings
        ) as platform:
            code, logged = await platform.ended()
    assert code == 1
    assert "FERMION_METRICS_LISTEN" in logged
    assert "Traceback" not in logged


async def test_without_nats_it_starts_serves_and_hears_from_the_log(
    database: str, tmp_path: Path
) -> None:
    away = NatsServer("nats://127.0.0.1:1", Path())
    async with running(database, away, tmp_path) as platform:
        await platform.call(
            ProjectServiceStub(platform.channel).CreateProject,
            projects.CreateProjectRequest(project_id="acme"),
        )
        stub = InstanceServiceStub(platform.channel)
        request = instances.CreateInstanceRequest(parent="projects/acme", instance_id="dev-1")
        request.instance.spec.kind = instances.KIND_NOTEBOOK
        await platform.call(stub.CreateInstance, request)

        async def phase() -> int:
            asked = instances.GetInstanceRequest(name="projects/acme/instances/dev-1")
            found = await platform.call(stub.GetInstance, asked)
            return found.instance.status.phase

        await until(phase, lambda found: found == instances.PHASE_QUEUED, "was not queued")
        log = JournalServiceStub(platform.channel)
        answer = await platform.call(log.GetJournal, journal.GetJournalRequest())
        assert {status.journal: status.published for status in answer.journals} == {
            "projects/0": -1,
            "instances/0": -1,
            "scheduler/0": -1,
            "billing/0": -1,
        }


async def test_a_write_is_read_at_once_by_every_service(
    database: str, nats_server: NatsServer, tmp_path: Path
) -> None:
    async with running(database, nats_server, tmp_path) as platform:
        make = ProjectServiceStub(platform.channel).CreateProject
        users = UserServiceStub(platform.channel)
        await platform.call(users.CreateUser, projects.CreateUserRequest(user_id="ada"))
        issue = projects.CreateTokenRequest(parent="users/ada")
        platform.token = (await platform.call(users.CreateToken, issue)).signed_token
        clock = asyncio.get_running_loop().time
        for number in range(5):
            began = clock()
            name = f"lab-{number}"
            await platform.call(make, projects.CreateProjectRequest(project_id=name))
            listing = instances.ListInstancesRequest(parent=f"projects/{name}")
            await platform.call(InstanceServiceStub(platform.channel).ListInstances, listing)
            # The process is told that its own journal has grown; it does not come round to it.
            assert clock() - began < 1.0


async def test_the_journal_service_tells_what_is_not_here(
    database: str, nats_server: NatsServer, tmp_path: Path
) -> None:
    async with running(database, nats_server, tmp_path) as platform:
        log = JournalServiceStub(platform.channel)
        request = journal.GetJournalRequest(journal="training/0")
        refusal = await platform.refusal(log.GetJournal, request)
        assert (refusal.code, refusal.reason) == ("NOT_FOUND", "JOURNAL_NOT_HERE")
        assert refusal.arguments["held"] == "billing/0, instances/0, projects/0, scheduler/0"
        resume = journal.ResumeReaderRequest(reader="training/instances", journal="instances/0")
        assert (await platform.refusal(log.ResumeReader, resume)).reason == "READER_NOT_HERE"


async def test_facts_are_read_by_project_and_by_stream(
    database: str, nats_server: NatsServer, tmp_path: Path
) -> None:
    async with running(database, nats_server, tmp_path) as platform:
        make = ProjectServiceStub(platform.channel).CreateProject
        for project in ("acme", "other", "empty"):
            await platform.call(make, projects.CreateProjectRequest(project_id=project))
        ours = await read(platform, "projects/acme")
        assert ours
        assert {record.project for record in ours} == {"acme"}
        assert [record.project_position for record in ours] == list(range(1, len(ours) + 1))
        assert await read(platform, "projects/acme", after=1) == ours[1:]
        assert await read(platform, "projects/acme", limit=1) == ours[:1]
        everything = await read(platform, "")
        assert [record.position for record in everything] == list(range(1, len(everything) + 1))

        log = JournalServiceStub(platform.channel)
        request = journal.ListFactsRequest(
            journal="projects/0", project="projects/acme", stream=ours[0].stream
        )
        assert list((await platform.call(log.ListFacts, request)).records) == ours
        # A stream of another project is as one that is not there.
        request.project = "projects/other"
        assert not (await platform.call(log.ListFacts, request)).records


async def read(
    platform: Platform, project: str, after: int = 0, limit: int = 0
) -> list[journal.Record]:
    request = journal.ReadLogRequest(
        journal="projects/0", project=project, after=after, limit=limit
    )
    call = JournalServiceStub(platform.channel).ReadLog(request, metadata=platform.metadata)
    return [record async for page in call for record in page.records]


async def test_what_is_declared_is_exported_with_its_labels_and_nothing_else(
    database: str, nats_server: NatsServer, tmp_path: Path
) -> None:
    settings = {
        "FERMION_NATS_KEYS": str(nats_server.keys),
        "FERMION_PROJECTS_CLUSTERS": CLUSTER,
        "FERMION_EXECUTOR_CLUSTER": CLUSTER,
        "FERMION_EXECUTOR_ROOT": str(tmp_path / "cluster"),
        "FERMION_EXECUTOR_KEY": str(tmp_path / "keys" / "replicas.key"),
        "FERMION_EXECUTOR_SIMULATE_GPUS": "2",
        "FERMION_EXECUTOR_PROOF_SECONDS": "0.5",
    }
    declared = {name: set(figure.labels) for name, figure in watching.declared().items()}
    async with started(
        tmp_path, "all", dsn=database, nats_url=nats_server.url, **settings
    ) as platform:
        await until(platform.ready, bool, "was not ready")

        async def exported() -> dict[str, set[str]]:
            text = await asyncio.to_thread(fetch, platform.metrics)
            return {
                # As it is asked for: what the library calls a counter's family has no `_total`.
                family.name + "_total" * (family.type == "counter"): set(family.samples[0].labels)
                - {"le"}
                for family in text_string_to_metric_families(text)
                if family.samples and not family.name.endswith("_created")
            }

        def all_there(found: dict[str, set[str]]) -> bool:
            return found.keys() >= declared.keys()

        assert await until(exported, all_there, "not all are there") == declared


def fetch(address: str) -> str:
    with urllib.request.urlopen(address, timeout=SECONDS_MAX) as answer:
        return bytes(answer.read()).decode()


def test_a_process_without_a_database_is_told_which_setting_is_missing() -> None:
    with pytest.raises(Invalid) as error:
        chassis_process.Process(TARGETS, ("scheduler",), {})
    assert error.value.reason == "SETTING_MISSING"
    assert error.value.arguments == {"variable": "FERMION_POSTGRES_DSN"}
