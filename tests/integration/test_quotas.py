"""Quotas and clusters through the real door, on real PostgreSQL and NATS."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import grpc.aio
import pytest

import chassis
from chassis.migrations import migrate
from chassis.postgres import Database
from fermion.api.journal import v1 as journal
from fermion.api.journal.v1 import service_pb2_grpc as journal_stubs
from fermion.api.projects import v1 as api
from fermion.api.projects.v1 import service_pb2_grpc as stubs
from services.projects.wiring import TARGET
from tests.integration.platform import Platform, running, told, until
from tests.servers import NatsServer

ONLY = ("projects",)
HOME = "01jd3k5v7m2r8q4w6x9y0z1a2b"
AWAY = "01jd3k5v7m2r8q4w6x9y0z1a2c"
EIGHT = api.Limits(gpu_milli={"*": 8000}, cpu_milli=64000)
FOUR = api.Limits(gpu_milli={"A100": 4000}, workloads={"instance": 3})


@pytest.fixture
async def platform(
    database: str, nats_server: NatsServer, tmp_path: Path
) -> AsyncIterator[Platform]:
    async with running(database, nats_server, tmp_path / "home", services=ONLY) as found:
        for project in ("one", "two"):
            await found.call(
                stubs.ProjectServiceStub(found.channel).CreateProject,
                api.CreateProjectRequest(project_id=project),
            )
        yield found


def quotas(platform: Platform) -> stubs.QuotaServiceAsyncStub:
    return stubs.QuotaServiceStub(platform.channel)


def clusters(platform: Platform) -> stubs.ClusterServiceAsyncStub:
    return stubs.ClusterServiceStub(platform.channel)


def log(platform: Platform) -> journal_stubs.JournalServiceAsyncStub:
    return journal_stubs.JournalServiceStub(platform.channel)


async def get(platform: Platform, name: str) -> api.Quota:
    asked = api.GetQuotaRequest(name=name)
    return (await platform.call(quotas(platform).GetQuota, asked)).quota


def setting(name: str, limits: api.Limits, etag: str = "") -> api.SetQuotaRequest:
    return api.SetQuotaRequest(quota=api.Quota(name=name, limits=limits), etag=etag)


async def bound(platform: Platform, name: str, limits: api.Limits, etag: str = "") -> api.Quota:
    asked = setting(name, limits, etag)
    return (await platform.call(quotas(platform).SetQuota, asked)).quota


async def listed(platform: Platform) -> list[str]:
    names, asked = [], api.ListQuotasRequest(page_size=1)
    while True:
        page = await platform.call(quotas(platform).ListQuotas, asked)
        names += [quota.name for quota in page.quotas]
        if not page.next_page_token:
            return names
        asked.page_token = page.next_page_token


async def known(platform: Platform) -> list[tuple[str, bool]]:
    page = await platform.call(clusters(platform).ListClusters, api.ListClustersRequest())
    return [(cluster.name.removeprefix("clusters/"), cluster.retired) for cluster in page.clusters]


async def facts(platform: Platform) -> list[str]:
    """Kinds of the facts about quotas and clusters, oldest first."""
    found = []
    asked = journal.ReadLogRequest(journal="projects/0")
    async for page in log(platform).ReadLog(asked, metadata=platform.metadata, timeout=10):
        found += [
            record.type.rsplit(".", 1)[-1]
            for record in page.records
            if record.stream.startswith(("quota/", "cluster/"))
        ]
    return found


async def rebuilt_the_same(platform: Platform) -> bool:
    asked = journal.RebuildProjectionRequest(journal="projects/0")
    done = await platform.call(log(platform).RebuildProjection, asked)
    return done.live_hash == done.rebuilt_hash


async def test_a_fresh_platform_bounds_nothing_and_says_nothing(platform: Platform) -> None:
    mine = await get(platform, "projects/one/quota")
    assert mine == api.Quota(
        name="projects/one/quota", limits=api.Limits(), inherited=True, etag="0"
    )
    assert await listed(platform) == []
    assert await known(platform) == []
    assert await facts(platform) == []


async def test_limits_of_all_count_where_there_are_none_of_ones_own(platform: Platform) -> None:
    await bound(platform, "projects/-/quota", EIGHT)
    inherited = await get(platform, "projects/one/quota")
    assert (inherited.limits, inherited.inherited) == (EIGHT, True)

    own = await bound(platform, "projects/one/quota", FOUR, etag=inherited.etag)
    assert own == await get(platform, "projects/one/quota")
    assert (own.limits, own.inherited, own.etag) == (FOUR, False, "1")
    assert (await get(platform, "projects/two/quota")).limits == EIGHT
    assert (await get(platform, "users/admin/quota")).limits == api.Limits()
    assert await listed(platform) == ["projects/-/quota", "projects/one/quota"]

    clearing = api.ClearQuotaRequest(name="projects/one/quota", etag="1")
    after = (await platform.call(quotas(platform).ClearQuota, clearing)).quota
    assert after == await get(platform, "projects/one/quota")
    assert (after.limits, after.inherited, after.etag) == (EIGHT, True, "2")
    assert await listed(platform) == ["projects/-/quota"]
    assert await facts(platform) == ["QuotaSet", "QuotaSet", "QuotaCleared"]
    assert await rebuilt_the_same(platform)
    assert after == await get(platform, "projects/one/quota")


async def test_limits_are_set_once_however_often_they_are_sent(platform: Platform) -> None:
    asked = setting("users/admin/quota", FOUR, "0")
    asked.request_id = str(uuid.uuid4())
    first = await platform.call(quotas(platform).SetQuota, asked)
    assert await platform.call(quotas(platform).SetQuota, asked) == first
    await bound(platform, "users/admin/quota", FOUR)
    assert await facts(platform) == ["QuotaSet"]

    asked.request_id, asked.etag, asked.validate_only = "", "", True
    asked.quota.limits.CopyFrom(EIGHT)
    rehearsed = (await platform.call(quotas(platform).SetQuota, asked)).quota
    assert (rehearsed.limits, rehearsed.etag) == (EIGHT, "2")
    assert (await get(platform, "users/admin/quota")).limits == FOUR
    changed = await platform.refusal(
        quotas(platform).SetQuota, setting("users/admin/quota", EIGHT, "0")
    )
    assert (changed.code, changed.reason) == ("ABORTED", "ETAG_MISMATCH")


async def test_nobody_is_bounded_who_is_not_there(platform: Platform) -> None:
    for name, reason in (
        ("projects/none/quota", "PROJECT_NOT_FOUND"),
        ("users/nobody/quota", "USER_NOT_FOUND"),
    ):
        for method, request in (
            (quotas(platform).GetQuota, api.GetQuotaRequest(name=name)),
            (quotas(platform).SetQuota, setting(name, FOUR)),
            (quotas(platform).ClearQuota, api.ClearQuotaRequest(name=name)),
        ):
            assert (await platform.refusal(method, request)).reason == reason


async def test_what_cannot_be_limits_is_refused_by_its_field(platform: Platform) -> None:
    wrong = (
        (api.Limits(cpu_milli=-1), "quota.limits.cpu_milli"),
        (api.Limits(workloads={"dance": 1}), "quota.limits.workloads['dance']"),
        (api.Limits(gpu_milli={"A 100": 1}), "quota.limits.gpu_milli['A 100']"),
    )
    for limits, field in wrong:
        asked = setting("projects/one/quota", limits)
        refusal = await platform.refusal(quotas(platform).SetQuota, asked)
        assert (refusal.reason, refusal.fields) == ("FIELD_INVALID", (field,))
    nameless = await platform.refusal(quotas(platform).SetQuota, setting("quota", FOUR))
    assert nameless.fields == ("quota.name",)


async def test_an_archived_project_keeps_its_limits_and_takes_no_others(platform: Platform) -> None:
    await bound(platform, "projects/one/quota", FOUR)
    projects = stubs.ProjectServiceStub(platform.channel)
    name = "projects/one"
    await platform.call(projects.ArchiveProject, api.ArchiveProjectRequest(name=name))
    archived = await platform.refusal(
        quotas(platform).SetQuota, setting("projects/one/quota", EIGHT)
    )
    assert archived.reason == "PROJECT_ARCHIVED"
    assert (await get(platform, "projects/one/quota")).limits == FOUR


async def test_limits_of_a_user_who_is_deleted_are_gone(platform: Platform) -> None:
    users = stubs.UserServiceStub(platform.channel)
    await platform.call(users.CreateUser, api.CreateUserRequest(user_id="bob"))
    await bound(platform, "users/bob/quota", FOUR)
    await platform.call(users.DeleteUser, api.DeleteUserRequest(name="users/bob"))
    assert await listed(platform) == []
    gone = await platform.refusal(quotas(platform).SetQuota, setting("users/bob/quota", EIGHT))
    assert gone.reason == "USER_NOT_FOUND"
    assert await rebuilt_the_same(platform)


async def test_a_user_sees_the_limits_that_count_for_him_and_no_others(
    platform: Platform,
) -> None:
    users = stubs.UserServiceStub(platform.channel)
    for user in ("ada", "bob"):
        await platform.call(users.CreateUser, api.CreateUserRequest(user_id=user))
    for name in (
        *("projects/-/quota", "projects/one/quota", "projects/two/quota"),
        *("users/-/quota", "users/ada/quota", "users/bob/quota"),
    ):
        await bound(platform, name, FOUR)
    for project, role in (("one", api.ROLE_VIEWER), ("two", api.ROLE_BILLING_VIEWER)):
        await platform.call(
            stubs.ProjectServiceStub(platform.channel).SetMember,
            api.SetMemberRequest(parent=f"projects/{project}", user="users/ada", role=role),
        )
    issued = await platform.call(users.CreateToken, api.CreateTokenRequest(parent="users/ada"))
    ada = (("authorization", f"Bearer {issued.signed_token}"),)

    async def sees() -> list[str]:
        try:
            page = await quotas(platform).ListQuotas(
                api.ListQuotasRequest(), metadata=ada, timeout=10
            )
        except grpc.aio.AioRpcError as error:
            return [told(error).reason]
        return [quota.name for quota in page.quotas]

    seen = ["projects/-/quota", "projects/one/quota", "users/-/quota", "users/ada/quota"]
    await until(sees, lambda names: names == seen, "ada sees")
    for name in seen:
        await quotas(platform).GetQuota(api.GetQuotaRequest(name=name), metadata=ada, timeout=10)
    for name, reason in (
        ("projects/two/quota", "PROJECT_ROLE_MISSING"),
        ("users/bob/quota", "PLATFORM_ROLE_MISSING"),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await quotas(platform).GetQuota(
                api.GetQuotaRequest(name=name), metadata=ada, timeout=10
            )
        assert told(error.value).reason == reason


async def test_a_cluster_is_enrolled_retired_and_enrolled_again(platform: Platform) -> None:
    stub = clusters(platform)
    enrolling = api.EnrolClusterRequest(cluster_id=HOME)
    first = (await platform.call(stub.EnrolCluster, enrolling)).cluster
    assert (first.name, first.retired) == (f"clusters/{HOME}", False)
    assert (await platform.call(stub.EnrolCluster, enrolling)).cluster == first
    retiring = api.RetireClusterRequest(name=first.name)
    ended = (await platform.call(stub.RetireCluster, retiring)).cluster
    assert (ended.retired, ended.enrol_time) == (True, first.enrol_time)
    assert await known(platform) == [(HOME, True)]
    assert await rebuilt_the_same(platform)
    again = (await platform.call(stub.EnrolCluster, enrolling)).cluster
    assert (again.retired, again.HasField("retire_time")) == (False, False)
    assert await facts(platform) == ["ClusterEnrolled", "ClusterRetired", "ClusterEnrolled"]
    assert await rebuilt_the_same(platform)


async def test_what_is_no_cluster_is_neither_enrolled_nor_retired(platform: Platform) -> None:
    stub = clusters(platform)
    for uid in ("", "local", HOME.upper(), f"cluster_{HOME}"):
        refusal = await platform.refusal(stub.EnrolCluster, api.EnrolClusterRequest(cluster_id=uid))
        assert refusal.fields == ("cluster_id",)
    missing = await platform.refusal(
        stub.RetireCluster, api.RetireClusterRequest(name=f"clusters/{AWAY}")
    )
    assert (missing.code, missing.reason) == ("NOT_FOUND", "CLUSTER_NOT_FOUND")


async def test_clusters_of_the_settings_are_enrolled_once_over_all_starts(
    database: str, nats_server: NatsServer, tmp_path: Path
) -> None:
    def started(uids: str) -> AbstractAsyncContextManager[Platform]:
        return running(
            database,
            nats_server,
            tmp_path / "home",
            services=ONLY,
            FERMION_PROJECTS_CLUSTERS=uids,
        )

    async with started(HOME) as platform:
        assert await known(platform) == [(HOME, False)]
    async with started(f"{HOME} {AWAY}") as platform:
        assert await known(platform) == [(HOME, False), (AWAY, False)]
        retiring = api.RetireClusterRequest(name=f"clusters/{HOME}")
        await platform.call(clusters(platform).RetireCluster, retiring)
    async with started(f"{HOME} {AWAY}") as platform:
        assert await known(platform) == [(HOME, True), (AWAY, False)]
        assert await facts(platform) == ["ClusterEnrolled", "ClusterEnrolled", "ClusterRetired"]


async def test_a_state_of_before_there_were_quotas_gets_their_tables(
    database: str, nats_server: NatsServer, tmp_path: Path
) -> None:
    older = tmp_path / "rows"
    older.mkdir()
    rows = TARGET.folder / "migrations" / "rows"
    shutil.copy(rows / "0001_projects.sql", older)
    opened = Database(database, "projects")
    await migrate(opened, Path(chassis.__file__).parent / "migrations", opened.schema)
    await migrate(opened, TARGET.folder / "migrations" / "state", opened.schema)
    assert await migrate(opened, older, opened.rows_schema) == 1
    async with running(database, nats_server, tmp_path / "home", services=ONLY) as platform:
        await bound(platform, "users/-/quota", FOUR)
        assert (await get(platform, "users/admin/quota")).limits == FOUR
        assert await rebuilt_the_same(platform)
