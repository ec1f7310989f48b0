"""The executor with a real local cluster: what the scheduler says becomes processes, and facts of them."""

from __future__ import annotations

import asyncio
import secrets
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc.aio
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from chassis import figures, ids
from chassis.embedded import Home, Keys
from chassis.envelope import Meta, Recorded, Registry
from chassis.journal import Book, Command, Place
from chassis.postgres import Database
from chassis.queries import Queries
from chassis.store import PostgresJournal
from fermion.api.executor import v1 as api
from fermion.api.executor.v1.service_pb2_grpc import RuntimeServiceStub
from fermion.api.projects import v1 as projects
from fermion.api.projects.v1.service_pb2_grpc import ProjectServiceStub
from fermion.api.workload import v1 as workload
from fermion.api.workload.v1 import events_pb2
from services.executor import folder, keeping, limits, shim
from services.executor.cluster_local import LocalCluster
from services.executor.ground import Ground
from tests.clusters import end
from tests.integration.platform import Platform, running, until
from tests.servers import CLUSTER, NatsServer

OWNER = "projects/acme/instances/lab"
SERVICES = ("projects", "scheduler", "executor")


class Stage:
    """An executor at work, what the scheduler tells it, and what it stated."""

    def __init__(
        self, platform: Platform, scheduler: PostgresJournal, own: PostgresJournal
    ) -> None:
        self.platform = platform
        self.runtime = RuntimeServiceStub(platform.channel)
        self._scheduler = scheduler
        self._own = own

    async def say(self, *facts: Message) -> None:
        """Let the scheduler state facts."""
        await self._scheduler.append(Command(facts, Meta("service:scheduler")))

    async def facts(self) -> Sequence[Recorded]:
        """Everything that the executor stated, but what it says all the time."""
        page = await self._own.read(0, 10_000)
        quiet = (workload.ProofOfLife, workload.Watermark)
        return [record for record in page.records if not isinstance(record.message, quiet)]

    async def names(self) -> list[str]:
        """Types of what it stated of workloads and replicas."""
        found = [record.type.rsplit(".", 1)[-1] for record in await self.facts()]
        return [name for name in found if name.startswith(("Replica", "Workload", "Volume"))]

    async def stated(self, kind: str, count: int = 1) -> list[Recorded]:
        """Wait until facts of a type are stated so often."""

        async def read() -> list[Recorded]:
            return [one for one in await self.facts() if one.type.endswith(f".{kind}")]

        return await until(read, lambda found: len(found) >= count, f"{count} {kind}")

    async def unwanted(self, uid: str) -> None:
        """Wait until the executor has heard that nothing more is asked of a workload."""
        sql = "SELECT count(*) FROM wanted_workload WHERE uid = $1"

        async def count() -> object:
            return await self._own.database.fetchval(sql, uid)

        await until(count, lambda found: found == 0, "is wanted")

    async def replicas(self) -> Sequence[api.Replica]:
        """What RuntimeService shows."""
        answer = await self.platform.call(
            self.runtime.ListReplicas, api.ListReplicasRequest(owner=OWNER)
        )
        return answer.replicas

    async def printed(self, **more: object) -> list[api.LogChunk]:
        """What StreamLogs sends."""
        request = api.StreamLogsRequest(owner=OWNER, **more)  # type: ignore[arg-type]
        chunks: list[api.LogChunk] = []
        async for response in self.runtime.StreamLogs(request, metadata=self.platform.metadata):
            chunks += response.chunks
        return chunks


def place(fact: Message) -> Place:
    """Where a scheduler's fact stands; enough of its rule for what these tests say."""
    match fact:
        case workload.WorkloadAdmitted():
            return Place(f"workload/{fact.workload.uid}", fact.workload.project)
        case workload.VolumeAdmitted():
            return Place(f"volume/{fact.volume.uid}", fact.volume.project)
        case workload.WorkloadRevoked() | workload.HoldReleased():
            return Place(f"workload/{fact.uid}", fact.project)
        case workload.VolumeRevoked():
            return Place(f"volume/{fact.uid}", fact.project)
        case _:
            raise TypeError(fact.DESCRIPTOR.full_name)


def cluster_in(folder: Path) -> Path:
    """The folder of a cluster with control groups of its own: other tests have clusters of its uid."""
    root = folder / "cluster"
    root.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError), (root / keeping.GROUPS).open("x") as groups:
        groups.write(secrets.token_hex(4))
    return root


@asynccontextmanager
async def executing(
    dsn: str, nats: NatsServer, folder: Path, *, stays: bool = False
) -> AsyncIterator[Stage]:
    """A platform of projects, a scheduler without declarations, and an executor; what runs may stay."""
    home = Home(folder)
    home.prepare()
    cluster_in(folder)
    Keys.prepare(home, SERVICES)
    settings = {
        "FERMION_PROJECTS_CLUSTERS": CLUSTER,
        "FERMION_EXECUTOR_CLUSTER": CLUSTER,
        "FERMION_EXECUTOR_ROOT": str(folder / "cluster"),
        "FERMION_EXECUTOR_KEY": str(home.path("keys", "replicas.key")),
        "FERMION_EXECUTOR_PROOF_SECONDS": "0.2",
        "FERMION_EXECUTOR_USAGE_SECONDS": "0.2",
    }
    async with running(dsn, nats, folder, services=SERVICES, **settings) as platform:
        registry = Registry.of((events_pb2.DESCRIPTOR,))
        book = Book(place, lambda _: ())
        databases = [Database(dsn, name) for name in ("scheduler", "executor")]
        for database in databases:
            await database.open(pool_size=2)
        none = Queries({})
        scheduler = PostgresJournal(databases[0], registry=registry, book=book, queries=none)
        own = PostgresJournal(
            databases[1], registry=registry, book=book, queries=none, shard=CLUSTER
        )
        committing = asyncio.create_task(scheduler.run(), name="the scheduler's committer")
        try:
            yield Stage(platform, scheduler, own)
        finally:
            committing.cancel()
            await asyncio.wait({committing})
            for database in databases:
                await database.close()
            if not stays:
                end(folder / "cluster")


def work(
    *command: str, attempt: int = 1, restart: workload.RestartPolicy | None = None, **more: object
) -> workload.Workload:
    """A workload of one replica that runs a command of this machine."""
    group = workload.Group(
        replicas=1,
        min_replicas=1,
        resources=workload.Resources(cpu_milli=100, memory_bytes=256 * 2**20),
        image=workload.Image(repository="host"),
        command=command,
        restart=restart,
        ports=[workload.Port(name="web", number=8000)],
    )
    return workload.Workload(
        uid=ids.workload("inst_1", "", attempt),
        owner=OWNER,
        owner_uid="inst_1",
        attempt=attempt,
        project="acme",
        user="user_1",
        kind=workload.KIND_INSTANCE,
        groups=[group],
        ends=workload.Ends(rule=workload.Ends.RULE_NEVER),
        success=workload.Success(rule=workload.Success.RULE_ALL),
        grace=Duration(seconds=1),
        **more,  # type: ignore[arg-type]
    )


def admitted(said: workload.Workload, replicas: int = 1) -> workload.WorkloadAdmitted:
    return workload.WorkloadAdmitted(workload=said, cluster=CLUSTER, replicas={"": replicas})


def python(script: str) -> tuple[str, ...]:
    return (sys.executable, "-S", "-c", script)


@pytest.fixture
async def stage(database: str, nats_server: NatsServer, tmp_path: Path) -> AsyncIterator[Stage]:
    async with executing(database, nats_server, tmp_path / "home") as stage:
        await stage.platform.call(
            ProjectServiceStub(stage.platform.channel).CreateProject,
            projects.CreateProjectRequest(project_id="acme"),
        )
        yield stage


async def test_what_its_executor_died_before_it_could_forget_is_forgotten_later(
    stage: Stage, tmp_path: Path
) -> None:
    said = work(*python("pass"))
    await stage.say(admitted(said))
    ((replica,), cluster) = await stage.stated("ReplicaReleased"), tmp_path / "home" / "cluster"
    kept = cluster / "kept" / replica.message.uid  # type: ignore[union-attr]
    there = cluster / "replicas" / f"instance-{said.uid.partition('_')[2]}"

    async def found() -> tuple[bool, bool]:
        return kept.exists(), there.exists()

    await until(found, lambda each: each == (True, False), "was not forgotten")
    # The scheduler's books are even, and the folder is where a kill in that moment leaves it.
    await stage.say(workload.HoldReleased(uid=said.uid, project=said.project))
    await stage.unwanted(said.uid)
    kept.rename(there)
    (cluster / "changes").touch()
    await until(found, lambda each: each == (True, False), "was not forgotten later")


@pytest.mark.parametrize("held", [True, False])
async def test_what_an_overtaken_executor_makes_of_a_workload_that_is_over_is_taken_away(
    stage: Stage, tmp_path: Path, held: bool
) -> None:
    said = work(*python("pass"))
    await stage.say(admitted(said))
    await stage.stated("WorkloadFinished")
    if not held:
        await stage.say(workload.HoldReleased(uid=said.uid, project=said.project))
        await stage.unwanted(said.uid)
    there = tmp_path / "home" / "cluster" / "replicas" / folder.name_of(said, "", 0)

    async def gone() -> bool:
        return not there.exists()

    await until(gone, bool, "was not forgotten")
    # He had looked for a tombstone before there was one, was stopped there, and goes on now.
    root = tmp_path / "home" / "cluster"
    groups = limits.probe(keeping.group_name(root, CLUSTER))
    ground = Ground(root, CLUSTER, "here", groups)
    folder.make(ground, said, said.groups[0], 0, {"": 1}, {})
    assert there.exists()
    await until(gone, bool, "was not taken away")
    (stated,) = await stage.stated("ReplicaScheduled")
    assert isinstance(stated.message, workload.ReplicaScheduled)
    # It is kept as all that ended, and there is nothing in it to state or to bill.
    kept = {path.name: shim.read_record(str(path)) for path in (root / "kept").iterdir()}
    assert len(kept) == 2
    ran = kept.pop(stated.message.uid)
    assert ran is not None
    assert len(ran.runs) == 1
    (never,) = kept.values()
    assert never is not None
    assert list(never.runs) == []


async def test_a_program_that_ends_is_stated_from_its_start_to_its_end(stage: Stage) -> None:
    began = datetime.now(UTC)
    await stage.say(admitted(work(*python("print('hello'); raise SystemExit(3)"))))
    await stage.stated("WorkloadFinished")
    assert [
        name for name in await stage.names() if name not in ("ReplicaPending", "ReplicaReady")
    ] == [
        *("WorkloadAccepted", "ReplicaScheduled", "ReplicaStarted", "ReplicaEnded"),
        *("ReplicaReleased", "WorkloadFinished"),
    ]
    started = (await stage.stated("ReplicaStarted"))[0].message
    ended = (await stage.stated("ReplicaEnded"))[0].message
    finished = (await stage.stated("WorkloadFinished"))[0].message
    assert isinstance(started, workload.ReplicaStarted)
    assert isinstance(ended, workload.ReplicaEnded)
    assert isinstance(finished, workload.WorkloadFinished)
    assert ended.exit == 3
    assert finished.outcome == workload.OUTCOME_FAILED
    start, end = (one.witness.occurred_time.ToDatetime(tzinfo=UTC) for one in (started, ended))
    assert began - timedelta(seconds=1) <= start <= end <= datetime.now(UTC)
    assert started.subject.owner == OWNER
    assert [chunk.data for chunk in await stage.printed()] == [b"hello\n"]


async def test_what_an_executor_made_and_could_not_accept_any_more_is_accepted_before_it_runs(
    database: str, nats_server: NatsServer, tmp_path: Path
) -> None:
    home, said = tmp_path / "home", work(*python("pass"))
    root = cluster_in(home)
    held = limits.probe(keeping.group_name(root, CLUSTER))
    # As a kill -9 behind it leaves it.
    await LocalCluster(Ground(root, CLUSTER, "here", held), str).apply(said, {"": 1})
    async with executing(database, nats_server, home) as stage:
        await stage.say(admitted(said))
        await stage.stated("WorkloadFinished")
        names = await stage.names()
        assert names.index("WorkloadAccepted") < names.index("ReplicaScheduled")


async def test_a_revocation_drains_and_nothing_is_left_of_it(stage: Stage) -> None:
    said = work(*python("import time; print('up', flush=True); time.sleep(600)"))
    await stage.say(admitted(said))
    await stage.stated("ReplicaStarted")
    revoked = workload.WorkloadRevoked(
        uid=said.uid, cause=workload.CAUSE_USER_STOP, grace=Duration(seconds=5), project="acme"
    )
    await stage.say(revoked)
    finished = (await stage.stated("WorkloadFinished"))[0].message
    assert isinstance(finished, workload.WorkloadFinished)
    assert finished.outcome == workload.OUTCOME_STOPPED
    names = await stage.names()
    assert names.index("ReplicaDraining") < names.index("ReplicaEnded")
    assert [one.state for one in await stage.replicas()] == [api.REPLICA_STATE_ENDED]


async def test_a_rank_that_went_with_fewer_comes_again_with_more(stage: Stage) -> None:
    said = work("sleep", "600")
    said.groups[0].replicas = 2
    await stage.say(admitted(said, 2))
    await stage.stated("ReplicaStarted", 2)
    await stage.say(admitted(said, 1))
    (gone,) = await stage.stated("ReplicaReleased")
    await stage.say(admitted(said, 2))
    *_, again = await stage.stated("ReplicaStarted", 3)
    assert again.stream != gone.stream
    # Nothing is left of those that ran in the place of each other, and both are told of.
    await stage.say(admitted(said, 0))
    await stage.stated("ReplicaReleased", 3)
    await stage.say(admitted(said, 1))
    await stage.stated("ReplicaStarted", 4)
    assert "WorkloadFinished" not in await stage.names()
    await stage.say(
        workload.WorkloadRevoked(
            uid=said.uid, cause=workload.CAUSE_USER_STOP, grace=Duration(seconds=5), project="acme"
        )
    )
    finished = (await stage.stated("WorkloadFinished"))[0].message
    assert isinstance(finished, workload.WorkloadFinished)
    assert finished.outcome == workload.OUTCOME_STOPPED
    causes = [one.message.cause for one in await stage.stated("ReplicaDraining", 4)]  # type: ignore[union-attr]
    assert causes == [*[workload.CAUSE_SCALE_IN] * 3, workload.CAUSE_USER_STOP]


async def test_an_admission_and_its_revocation_that_arrive_together_start_nothing(
    stage: Stage,
) -> None:
    said = work("sleep", "600")
    revoked = workload.WorkloadRevoked(
        uid=said.uid, cause=workload.CAUSE_DELETE, grace=Duration(seconds=5), project="acme"
    )
    await stage.say(admitted(said), revoked)
    finished = (await stage.stated("WorkloadFinished"))[0].message
    assert isinstance(finished, workload.WorkloadFinished)
    assert finished.outcome == workload.OUTCOME_NEVER_STARTED
    assert await stage.names() == ["WorkloadFinished"]


async def test_what_the_cluster_cannot_honour_is_rejected_by_field(stage: Stage) -> None:
    said = work("sleep", "600")
    said.groups[0].image.repository = "nvcr.io/nvidia/pytorch:24.01"
    await stage.say(admitted(said))
    rejected = (await stage.stated("WorkloadRejected"))[0].message
    finished = (await stage.stated("WorkloadFinished"))[0].message
    assert isinstance(rejected, workload.WorkloadRejected)
    assert isinstance(finished, workload.WorkloadFinished)
    assert (rejected.field, rejected.reason.code) == ("groups[0].image", "IMAGE_NOT_HONOURED")
    assert finished.outcome == workload.OUTCOME_REJECTED


async def test_a_crash_is_run_again_after_a_back_off_that_is_told(stage: Stage) -> None:
    # An executor that is held up tells nothing of one that it did not see.
    restart = workload.RestartPolicy(
        mode=workload.RestartPolicy.MODE_ON_FAILURE,
        restarts_max=1,
        backoff=Duration(seconds=3),
    )
    await stage.say(admitted(work(*python("raise SystemExit(5)"), restart=restart)))
    await stage.stated("WorkloadFinished")
    started = [one.message for one in await stage.stated("ReplicaStarted", 2)]
    assert [one.run for one in started if isinstance(one, workload.ReplicaStarted)] == [0, 1]
    pending = [one.message for one in await stage.stated("ReplicaPending")]
    assert "CRASH_LOOP_BACKOFF" in [
        one.reason.code for one in pending if isinstance(one, workload.ReplicaPending)
    ]


async def test_a_workload_ends_when_it_has_run_as_long_as_it_may(stage: Stage) -> None:
    await stage.say(admitted(work("sleep", "600", max_duration=Duration(seconds=1))))
    finished = (await stage.stated("WorkloadFinished"))[0].message
    assert isinstance(finished, workload.WorkloadFinished)
    assert (finished.outcome, finished.cause) == (
        workload.OUTCOME_STOPPED,
        workload.CAUSE_MAX_DURATION,
    )


async def test_files_on_a_volume_outlive_the_workload_until_the_volume_is_revoked(
    stage: Stage, tmp_path: Path
) -> None:
    volume = workload.Volume(
        uid=ids.derived("vol", "inst_1"), owner=OWNER, owner_uid="inst_1", project="acme"
    )
    mount = workload.Mount(path="/workspace", volume=workload.Mount.Volume(volume_uid=volume.uid))
    first = work("sh", "-c", "echo kept > note")
    first.groups[0].mounts.append(mount)
    await stage.say(workload.VolumeAdmitted(volume=volume, cluster=CLUSTER), admitted(first))
    await stage.stated("WorkloadFinished")
    second = work("sh", "-c", "cat note; cat $FERMION_ROOT/workspace/note", attempt=2)
    second.groups[0].mounts.append(mount)
    await stage.say(admitted(second))
    await stage.stated("WorkloadFinished", 2)
    chunks = await stage.printed()
    assert b"".join(chunk.data for chunk in chunks) == b"kept\nkept\n"
    await stage.say(workload.VolumeRevoked(uid=volume.uid, project="acme"))
    await stage.stated("VolumeDeleted")
    assert not list((tmp_path / "home" / "cluster" / "volumes").glob(f"{volume.uid}*"))


async def test_an_executor_that_starts_again_adopts_what_runs_and_dates_what_ended(
    database: str, nats_server: NatsServer, tmp_path: Path
) -> None:
    wrote = tmp_path / "ended"
    home = tmp_path / "home"
    script = f"import time; time.sleep(1.5); open({str(wrote)!r}, 'w').write(str(time.time_ns()))"
    stays = work("sleep", "600", attempt=1)
    ends = work(*python(script), attempt=2)
    async with executing(database, nats_server, home, stays=True) as stage:
        await stage.platform.call(
            ProjectServiceStub(stage.platform.channel).CreateProject,
            projects.CreateProjectRequest(project_id="acme"),
        )
        await stage.say(admitted(stays), admitted(ends))
        before = await stage.stated("ReplicaStarted", 2)
    assert not wrote.exists()

    async def read() -> bool:
        return wrote.exists()

    await until(read, bool, "the program ended while nobody watched")
    async with executing(database, nats_server, home) as stage:
        ended = (await stage.stated("ReplicaEnded"))[0].message
        assert isinstance(ended, workload.ReplicaEnded)
        assert ended.workload == ends.uid
        stated = ended.witness.occurred_time.ToNanoseconds()
        assert abs(stated - int(wrote.read_text())) < 200_000_000
        assert len(await stage.stated("ReplicaStarted")) == len(before)
        revoked = workload.WorkloadRevoked(
            uid=stays.uid, cause=workload.CAUSE_USER_STOP, grace=Duration(seconds=1), project="acme"
        )
        await stage.say(revoked)
        await stage.stated("WorkloadFinished", 2)


async def test_what_was_wanted_again_while_the_executor_was_away_comes_when_it_starts(
    database: str, nats_server: NatsServer, tmp_path: Path
) -> None:
    said = work("sleep", "600")
    said.groups[0].replicas = 2
    async with executing(database, nats_server, tmp_path / "home", stays=True) as stage:
        await stage.say(admitted(said, 2))
        await stage.stated("ReplicaStarted", 2)
        # It may have told the replica to end, or not: it is away from here on.
        await stage.say(admitted(said, 1))
        await stage.stated("ReplicaDraining")
    async with executing(database, nats_server, tmp_path / "home") as stage:
        await stage.say(admitted(said, 2))
        (gone,) = await stage.stated("ReplicaReleased")
        *_, again = await stage.stated("ReplicaStarted", 3)
        assert again.stream != gone.stream
        assert [one.stream for one in await stage.stated("ReplicaDraining")] == [gone.stream]
        assert "WorkloadFinished" not in await stage.names()


async def test_a_command_runs_inside_and_passes_its_exit_code_on(stage: Stage) -> None:
    await stage.say(admitted(work("sleep", "600")))
    await stage.stated("ReplicaStarted")

    async def requests() -> AsyncIterator[api.ExecRequest]:
        start = api.ExecRequest.Start(
            owner=OWNER, command=["sh", "-c", "read line; echo got $line; echo no >&2; exit 7"]
        )
        yield api.ExecRequest(start=start)
        yield api.ExecRequest(stdin=b"this\n", stdin_closed=True)

    answers = [
        answer async for answer in stage.runtime.Exec(requests(), metadata=stage.platform.metadata)
    ]
    assert b"".join(one.stdout for one in answers) == b"got this\n"
    assert b"".join(one.stderr for one in answers) == b"no\n"
    assert answers[-1].exit_code == 7


async def test_logs_are_followed_and_resumed_without_a_gap_or_a_repetition(stage: Stage) -> None:
    lines = 60
    script = f"import time\nfor n in range({lines}):\n print(n, flush=True); time.sleep(0.02)"
    following = asyncio.create_task(follow(stage, lines), name="follow")
    await stage.say(admitted(work(*python(script))))
    assert await following == "".join(f"{number}\n" for number in range(lines))


async def test_who_leaves_a_long_log_after_each_answer_reads_all_of_it_once(stage: Stage) -> None:
    lines = 1000
    # Each a piece of its own, and many more than are held ready for one caller.
    script = f"import time\nfor n in range({lines}):\n print(n, flush=True); time.sleep(0.002)"
    await stage.say(admitted(work(*python(script))))
    await stage.stated("ReplicaEnded")
    request = api.StreamLogsRequest(owner=OWNER)
    pieces: list[list[int]] = []
    while not pieces or pieces[-1]:
        pieces.append([])
        call = stage.runtime.StreamLogs(request, metadata=stage.platform.metadata)
        async for response in call:
            request.resume_token = response.resume_token
            text = b"".join(chunk.data for chunk in response.chunks)
            pieces[-1] = [int(line) for line in text.split()]
            break
        call.cancel()
    assert [number for piece in pieces for number in piece] == list(range(lines))
    assert len(pieces) > 3
    # The calls that were left are over: nobody waits to hand on what nobody reads.
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("logs")]


async def follow(stage: Stage, lines: int) -> str:
    """Follow the logs, leaving and coming back all the time."""
    request = api.StreamLogsRequest(owner=OWNER, follow=True)
    text = ""
    while text.count("\n") < lines:
        call = stage.runtime.StreamLogs(request, metadata=stage.platform.metadata)
        try:
            async for response in call:
                text += "".join(chunk.data.decode() for chunk in response.chunks)
                request.resume_token = response.resume_token
                if len(text) % 3 == 0:
                    break
        finally:
            call.cancel()
    return text


async def test_what_nobody_has_is_said_so(stage: Stage) -> None:
    request = api.StreamLogsRequest(owner=OWNER)
    with pytest.raises(grpc.aio.AioRpcError) as error:
        async for _ in stage.runtime.StreamLogs(request, metadata=stage.platform.metadata):
            pass
    assert error.value.code() is grpc.StatusCode.NOT_FOUND


async def test_a_call_with_a_stream_of_requests_is_let_in_by_its_first_one(stage: Stage) -> None:
    async def foreign() -> AsyncIterator[api.ExecRequest]:
        start = api.ExecRequest.Start(owner="projects/other/instances/lab", command=["id"])
        yield api.ExecRequest(start=start)

    async def malformed() -> AsyncIterator[api.ExecRequest]:
        yield api.ExecRequest(start=api.ExecRequest.Start(owner=OWNER))

    async def nothing() -> AsyncIterator[api.ExecRequest]:
        for _ in ():
            yield api.ExecRequest()

    for requests, code in (
        (foreign, grpc.StatusCode.NOT_FOUND),
        (malformed, grpc.StatusCode.INVALID_ARGUMENT),
        (nothing, grpc.StatusCode.INVALID_ARGUMENT),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as error:
            async for _ in stage.runtime.Exec(requests(), metadata=stage.platform.metadata):
                pass
        assert error.value.code() is code
    with pytest.raises(grpc.aio.AioRpcError) as error:
        async for _ in stage.runtime.Exec(foreign()):
            pass
    assert error.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_the_cluster_is_registered_and_its_watermark_moves(stage: Stage) -> None:
    async def cluster() -> api.Cluster:
        answer = await stage.platform.call(stage.runtime.GetCluster, api.GetClusterRequest())
        return answer.cluster

    found = await until(cluster, lambda one: one.HasField("watermark_time"), "the watermark")
    assert found.name == f"clusters/{CLUSTER}"
    assert "host" in [image.repository for image in found.capabilities.images]
    assert found.nodes[0].cpu_milli > 0
    then = found.watermark_time.ToNanoseconds()
    await until(cluster, lambda one: one.watermark_time.ToNanoseconds() > then, "a later one")


async def test_what_runs_is_measured(stage: Stage) -> None:
    await stage.say(admitted(work(*python("while True: pass"))))

    async def usage() -> api.ListUsageResponse:
        return await stage.platform.call(stage.runtime.ListUsage, api.ListUsageRequest(owner=OWNER))

    def busy(found: api.ListUsageResponse) -> bool:
        return any(sample.cpu_milli > 20 for one in found.series for sample in one.samples)

    await until(usage, busy, "use of CPU")


async def test_operators_see_replicas_by_state_and_what_is_not_over_in_time(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figures, "FIGURES_SECONDS", 0.05)
    shown, here = stage.platform.figure_is, {"cluster": CLUSTER}
    replicas = "fermion_executor_replicas"
    await shown(lambda found: found == 0, replicas, **here, state="running")
    assert await stage.platform.figure("fermion_executor_usage_age_seconds", **here) == 0
    # It takes no notice of being told to end.
    ignore = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True)"
    said = work(*python(f"{ignore}; time.sleep(600)"))
    await stage.say(admitted(said))
    await shown(lambda found: found == 1, replicas, **here, state="running")
    await shown(lambda found: 0 < found < 10, "fermion_executor_usage_age_seconds", **here)
    await shown(lambda found: found < 10, "fermion_executor_watermark_age_seconds", **here)
    revoked = workload.WorkloadRevoked(
        uid=said.uid, cause=workload.CAUSE_USER_STOP, grace=Duration(seconds=2), project="acme"
    )
    await until(stage.printed, lambda found: any(b"up" in one.data for one in found), "it is up")
    await stage.say(revoked)
    await shown(lambda found: found == 1, replicas, **here, state="draining")
    await shown(lambda found: found == 0, replicas, **here, state="running")
    await stage.stated("WorkloadFinished")
    await shown(lambda found: found == 0, replicas, **here, state="draining")
    # Its record is let go of when all that it told is durable.
    await shown(lambda found: found == 0, "fermion_executor_held_records", **here)
    assert await stage.platform.figure("fermion_executor_stranger_replicas", **here) == 0
