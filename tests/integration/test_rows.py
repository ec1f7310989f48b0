"""The rows that PostgreSQL holds after any history show what the folded facts show."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from google.protobuf.message import Message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chassis.commit import execute_writes
from chassis.embedded import Postgres
from chassis.envelope import Recorded
from chassis.journal import Write
from chassis.migrations import apply, migrate
from chassis.postgres import Database, Record
from chassis.queries import Queries
from fermion.api.executor import v1 as shown
from fermion.api.instances import v1 as instance_api
from fermion.api.workload import v1 as workload
from services.executor import observation
from services.executor import projection as replica_rows
from services.instances import aggregate as instances
from services.instances import projection as instance_rows
from services.projects import aggregate as projects
from services.projects import enrolment
from services.projects import projection as project_rows
from services.scheduler import aggregate as scheduler
from services.scheduler import projection as queue_rows
from services.scheduler.consumer import ClusterReports
from tests.unit.services.instances.life import (
    HISTORIES,
    UID,
    Life,
    change,
    create,
    queued,
    refused,
    restart,
    stop,
)
from tests.unit.services.instances.life import Decide as InstanceDecide
from tests.unit.services.projects.life import CLUSTERS, LIVES, PEOPLE, PROJECT, SCOPES
from tests.unit.services.projects.life import Life as ProjectLife
from tests.unit.services.scheduler.test_aggregate import (
    DECISIONS,
    VOLUME_DECISIONS,
    Decide,
    DecideVolume,
    told,
    told_of_volume,
)
from tests.unit.services.scheduler.test_consumer import record


class Rows:
    """Read models of one service in a database of its own; each look begins with empty tables."""

    def __init__(self, server: Postgres, room: Path) -> None:
        self._runner = asyncio.Runner()
        service = room.parent.name
        self._database = Database(server.dsn_of("postgres"), f"rows_of_{service}")
        self._queries = Queries.load(room.with_name("queries.sql"))
        self._folder = room.with_name("migrations") / "rows"
        self._runner.run(self._open(self._folder))

    async def _open(self, folder: Path) -> None:
        await self._database.open(pool_size=1)
        if (folder.parent / "state").is_dir():
            await migrate(self._database, folder.parent / "state", self._database.schema)
        await migrate(self._database, folder, self._database.rows_schema)

    def after(self, writes: Sequence[Write], read: str, *arguments: object) -> list[Record]:
        """Run writes, read what they left by a named statement, and undo them."""
        return self._runner.run(self._after(writes, read, arguments))

    async def _after(
        self, writes: Sequence[Write], read: str, arguments: tuple[object, ...]
    ) -> list[Record]:
        async with self._database.connection() as connection:
            transaction = connection.transaction()
            await transaction.start()
            try:
                await execute_writes(connection, self._queries, writes)
                return list(await connection.fetch(self._queries[read], *arguments))
            finally:
                await transaction.rollback()

    def upgraded(self, table: str, writes: Sequence[Write]) -> tuple[list[str], list[str]]:
        """
        The rows of a table after writes, and as they would be had the first migration alone been
        there when they were written and the others come later.
        """
        return self._runner.run(self._upgraded(table, writes))

    async def _upgraded(self, table: str, writes: Sequence[Write]) -> tuple[list[str], list[str]]:
        files = sorted(self._folder.iterdir())
        async with self._database.connection() as connection:
            transaction = connection.transaction()
            await transaction.start()
            try:
                await connection.execute("CREATE SCHEMA before")
                await apply(connection, files[:1], "before")
                known = await connection.fetch(
                    "SELECT column_name FROM information_schema.columns"
                    " WHERE table_schema = 'before' AND table_name = $1 ORDER BY ordinal_position",
                    table,
                )
                columns = ", ".join(row["column_name"] for row in known)
                await execute_writes(connection, self._queries, writes)
                await connection.execute(
                    f"INSERT INTO before.{table} ({columns}) SELECT {columns} FROM {table}"
                )
                await apply(connection, files, "before")
                read = "SELECT t::text AS line FROM {} AS t ORDER BY 1"
                now = await connection.fetch(read.format(table))
                later = await connection.fetch(read.format(f"before.{table}"))
                return [row["line"] for row in now], [row["line"] for row in later]
            finally:
                await transaction.rollback()

    def close(self) -> None:
        """Let the database go."""
        self._runner.run(self._database.close())
        self._runner.close()


@pytest.fixture(scope="module")
def instance_table(postgres_server: Postgres) -> Iterator[Rows]:
    rows = Rows(postgres_server, Path(instance_rows.__file__))
    yield rows
    rows.close()


@pytest.fixture(scope="module")
def queue_table(postgres_server: Postgres) -> Iterator[Rows]:
    rows = Rows(postgres_server, Path(queue_rows.__file__))
    yield rows
    rows.close()


@pytest.fixture(scope="module")
def project_table(postgres_server: Postgres) -> Iterator[Rows]:
    rows = Rows(postgres_server, Path(project_rows.__file__))
    yield rows
    rows.close()


@pytest.fixture(scope="module")
def replica_table(postgres_server: Postgres) -> Iterator[Rows]:
    rows = Rows(postgres_server, Path(replica_rows.__file__))
    yield rows
    rows.close()


def writes_of(
    project: Callable[[Recorded], Sequence[Write]], records: Sequence[Recorded]
) -> list[Write]:
    return [write for record in records for write in project(record)]


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(life=HISTORIES)
def test_an_instances_row_shows_what_its_facts_show(instance_table: Rows, life: Life) -> None:
    writes = writes_of(instance_rows.project, life.history.records)
    rows = instance_table.after(writes, "find_instances", [UID])
    instance = life.now.instance
    there = bool(instance.uid) and not instance.deleted
    expected = [instances.view(instance)] if there else []
    assert [instance_rows.resource(row) for row in rows] == expected


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(life=HISTORIES)
def test_the_rows_tell_whether_anything_lives(instance_table: Rows, life: Life) -> None:
    writes = writes_of(instance_rows.project, life.history.records)
    rows = instance_table.after(writes, "any_lives", "acme", sorted(instances.LIVING))
    project = life.now.project
    asked = project.closed and not project.vacated
    expected = [life.now.instance.lives] if asked else []
    assert [row["lives"] for row in rows] == expected


@pytest.mark.parametrize(
    "said", [(), (queued(1),), (queued(1), restart), (stop, refused(1)), (refused(1, "NO"),)]
)
def test_rows_from_before_there_were_runs_need_no_rebuild(
    instance_table: Rows, said: tuple[InstanceDecide, ...]
) -> None:
    life = Life().do(create(), *said, change(instance_api.Instance(labels={"a": "b"}), "labels"))
    folded, upgraded = instance_table.upgraded(
        "instance", writes_of(instance_rows.project, life.history.records)
    )
    assert upgraded == folded
    assert len(folded) == 1


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(decisions=st.lists(DECISIONS))
def test_the_queues_row_shows_what_its_facts_show(
    queue_table: Rows, decisions: list[Decide]
) -> None:
    records = told(*decisions).records
    rows = queue_table.after(
        writes_of(queue_rows.project, records), "list_queue", "acme", None, "", 10
    )
    entry = scheduler.fold(records)
    expected = [scheduler.view(entry)] if entry.waits else []
    assert [queue_rows.resource(row) for row in rows] == expected


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(decisions=st.lists(DECISIONS))
def test_a_row_of_the_books_is_what_its_facts_fold_to(
    queue_table: Rows, decisions: list[Decide]
) -> None:
    records = told(*decisions).records
    rows = queue_table.after(writes_of(queue_rows.project, records), "all_entries")
    entry = scheduler.fold(records)
    there = entry.declared is not None and not entry.refused and not entry.released
    assert [queue_rows.entry(row) for row in rows] == ([entry] if there else [])
    assert [(row["version"], row["waits"]) for row in rows] == (
        [(len(records), entry.waits)] if there else []
    )


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(decisions=st.lists(VOLUME_DECISIONS))
def test_a_volumes_row_of_the_books_is_what_its_facts_fold_to(
    queue_table: Rows, decisions: list[DecideVolume]
) -> None:
    records = told_of_volume(*decisions).records
    rows = queue_table.after(writes_of(queue_rows.project, records), "all_volumes")
    volume = scheduler.fold_volume(records)
    there = volume.declared is not None and not volume.refused and not volume.released
    assert [queue_rows.volume(row) for row in rows] == ([volume] if there else [])
    assert [row["version"] for row in rows] == ([len(records)] if there else [])


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(life=LIVES)
def test_a_projects_row_shows_what_its_facts_show(project_table: Rows, life: ProjectLife) -> None:
    writes = writes_of(project_rows.project, life.history.records)
    rows = project_table.after(writes, "find_projects", [PROJECT], None)
    project = life.project
    expected = [] if project.deleted else [projects.view(project)]
    assert [project_rows.resource(row) for row in rows] == expected


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(life=LIVES)
def test_the_members_rows_show_the_roles_of_those_who_are_there(
    project_table: Rows, life: ProjectLife
) -> None:
    writes = writes_of(project_rows.project, life.history.records)
    rows = project_table.after(writes, "list_members", "one", "", 100)
    project = life.project
    there = {uid for uid in PEOPLE if life.user(uid).uid and not life.user(uid).deleted}
    # A role outlives its user in the project's facts, and is not shown.
    expected = {} if project.deleted else {u: r for u, r in project.members.items() if u in there}
    assert {row["user_uid"]: row["role"] for row in rows} == expected


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(life=LIVES)
def test_the_rows_show_the_limits_of_those_who_are_there(
    project_table: Rows, life: ProjectLife
) -> None:
    writes = writes_of(project_rows.project, life.history.records)
    rows = project_table.after(writes, "find_quotas", list(SCOPES))
    expected = {}
    for scope in SCOPES:
        now = life.bounds(scope)
        gone = now.owner is not None and now.owner.deleted
        if now.own.version and not gone:
            expected[scope] = now.own
    assert {row["scope"]: project_rows.quota(row) for row in rows} == expected


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(life=LIVES)
def test_quotas_are_listed_by_the_names_of_those_who_have_them(
    project_table: Rows, life: ProjectLife
) -> None:
    writes = writes_of(project_rows.project, life.history.records)
    rows = project_table.after(writes, "list_quotas", None, [], "", 100)
    expected = set()
    for scope in SCOPES:
        now = life.bounds(scope)
        match now.owner:
            case projects.Project() as owner:
                name, gone = f"projects/{owner.project}/quota", owner.deleted
            case projects.User() as owner:
                name, gone = f"users/{owner.user}/quota", owner.deleted
            case None:
                name, gone = f"{scope}/quota", False
        if now.own.limits is not None and not gone:
            expected.add((name, now.own.version))
    assert {(row["name"], row["version"]) for row in rows} == expected


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(life=LIVES)
def test_the_rows_show_every_cluster_that_was_ever_enrolled(
    project_table: Rows, life: ProjectLife
) -> None:
    writes = writes_of(project_rows.project, life.history.records)
    rows = project_table.after(writes, "list_clusters", "", 100)
    known = [life.cluster(uid) for uid in CLUSTERS]
    expected = [enrolment.view(cluster) for cluster in known if cluster.uid]
    assert [project_rows.cluster(row) for row in rows] == expected


BACK_OFF = workload.Reason(code="CRASH_LOOP_BACKOFF")
REPLICA_FACTS = st.sampled_from(
    [
        workload.ReplicaPending(uid="rep_1", reason=workload.Reason(code="IMAGE_PULL")),
        workload.ReplicaPending(uid="rep_1", reason=BACK_OFF),
        workload.ReplicaStarted(uid="rep_1"),
        workload.ReplicaReady(uid="rep_1"),
        workload.ReplicaUnready(uid="rep_1"),
        workload.ReplicaEnded(uid="rep_1", exit=1),
        workload.ReplicaDraining(uid="rep_1"),
        workload.ReplicaLost(uid="rep_1"),
        workload.ReplicaFound(uid="rep_1"),
        workload.ReplicaReleased(uid="rep_1"),
    ]
)


def shows(replica: observation.Replica) -> shown.ReplicaState.ValueType:
    """Where a replica stands, by all that was stated of it."""
    if replica.released:
        return shown.REPLICA_STATE_ENDED
    if replica.lost:
        return shown.REPLICA_STATE_LOST
    if replica.draining:
        return shown.REPLICA_STATE_DRAINING
    if replica.pending is None and replica.run >= 0:
        return shown.REPLICA_STATE_RUNNING
    backs_off = replica.pending is not None and replica.pending.code == BACK_OFF.code
    return shown.REPLICA_STATE_BACKOFF if backs_off else shown.REPLICA_STATE_PENDING


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(facts=st.lists(REPLICA_FACTS))
def test_a_replicas_row_shows_where_its_facts_say_that_it_stands(
    replica_table: Rows, facts: list[Message]
) -> None:
    subject = workload.Subject(workload="wkl_1", project="acme")
    said = [workload.ReplicaScheduled(uid="rep_1", subject=subject), *facts]
    # What is gone for good is told nothing more of.
    gone = next((n for n, fact in enumerate(said, 1) if "Released" in type(fact).__name__), None)
    records = [record("executor/here", fact) for fact in said[:gone]]
    replica = observation.fold(records)
    writes = writes_of(replica_rows.project, records)
    (row,) = replica_table.after(writes, "find_replicas", ["rep_1"])
    assert replica_rows.replica(row).state == shows(replica)
    assert replica_rows.replica(row).ready == replica.ready
    counted = replica_table.after(writes, "live_replicas", shown.REPLICA_STATE_LOST)
    there = [] if replica.released else [(shows(replica), 1)]
    assert [tuple(row) for row in counted] == there


def test_before_a_cluster_is_folded_anew_what_it_alone_had_said_is_forgotten(
    queue_table: Rows,
) -> None:
    reports, said = ClusterReports(asyncio.Event()), []
    for cluster in ("here", "there"):
        subject = workload.Subject(workload=f"wkl_{cluster}")
        facts: list[Message] = [
            workload.ClusterRegistered(uid=cluster),
            workload.NodeReported(cluster=cluster, node=workload.Node(node="n1")),
            workload.ReplicaScheduled(uid=f"rep_{cluster}", subject=subject, node="n1"),
            workload.VolumeBound(uid=f"vol_{cluster}", node="n1"),
        ]
        said += reports.write([record(f"executor/{cluster}", one) for one in facts])
    forgotten = [*said, *reports.clear("executor/here")]
    for statement, column in (("nodes", "node"), ("progressed", "uid")):
        assert queue_table.after(said, statement, "here", 0)
        assert queue_table.after(forgotten, statement, "here", 0) == []
        kept = [row[column] for row in queue_table.after(forgotten, statement, "there", 0)]
        assert kept == [row[column] for row in queue_table.after(said, statement, "there", 0)]
    assert [row["uid"] for row in queue_table.after(forgotten, "all_replicas")] == ["rep_there"]
