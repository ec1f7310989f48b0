"""Projects and their people through the real door, on real PostgreSQL and NATS."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import grpc.aio
import pytest
from google.protobuf.message import Message

from chassis.envelope import Meta, Registry
from chassis.journal import Command
from chassis.postgres import Database
from chassis.queries import Queries
from chassis.store import PostgresJournal
from fermion.api.projects import v1 as api
from fermion.api.projects.v1 import service_pb2_grpc as stubs
from services.projects.wiring import TARGET
from tests.integration.platform import Platform, running, told, until
from tests.servers import NatsServer


@pytest.fixture
async def platform(
    database: str, nats_server: NatsServer, tmp_path: Path
) -> AsyncIterator[Platform]:
    async with running(database, nats_server, tmp_path / "home") as found:
        yield found


def users(platform: Platform) -> stubs.UserServiceAsyncStub:
    return stubs.UserServiceStub(platform.channel)


def projects(platform: Platform) -> stubs.ProjectServiceAsyncStub:
    return stubs.ProjectServiceStub(platform.channel)


async def say(dsn: str, fact: Message) -> None:
    """Append to the journal of projects while no process does."""
    database = Database(dsn, "projects")
    await database.open(pool_size=2)
    journal = PostgresJournal(
        database,
        registry=Registry.of(TARGET.events),
        book=TARGET.book,
        queries=Queries.load(TARGET.folder / "queries.sql"),
    )
    await journal.open()
    committing = asyncio.create_task(journal.run(), name="committer")
    try:
        await journal.append(Command((fact,), Meta("test")))
    finally:
        committing.cancel()
        await asyncio.wait((committing,))
        await database.close()


async def ada(platform: Platform) -> str:
    """Register a user, and issue a token for her."""
    await platform.call(
        users(platform).CreateUser,
        api.CreateUserRequest(
            user_id="ada", user=api.User(display_name="Ada", email="ada@example.org")
        ),
    )
    issued = await platform.call(
        users(platform).CreateToken, api.CreateTokenRequest(parent="users/ada")
    )
    return issued.signed_token


async def test_a_user_is_registered_renamed_and_forgotten(platform: Platform) -> None:
    await ada(platform)
    stub = users(platform)
    found = (await platform.call(stub.GetUser, api.GetUserRequest(name="users/ada"))).user
    assert (found.display_name, found.email) == ("Ada", "ada@example.org")
    asked = api.UpdateUserRequest(user=api.User(name="users/ada", display_name="Ada L."))
    asked.update_mask.paths.append("display_name")
    changed = (await platform.call(stub.UpdateUser, asked)).user
    assert (changed.display_name, changed.email) == ("Ada L.", "ada@example.org")
    assert changed.generation == found.generation + 1

    await platform.call(stub.DeleteUser, api.DeleteUserRequest(name="users/ada"))
    gone = await platform.refusal(stub.GetUser, api.GetUserRequest(name="users/ada"))
    assert (gone.code, gone.reason) == ("NOT_FOUND", "USER_NOT_FOUND")
    again = await platform.refusal(stub.CreateUser, api.CreateUserRequest(user_id="ada"))
    assert again.reason == "USER_EXISTS"


async def test_the_last_platform_admin_stays_one(platform: Platform) -> None:
    stub = users(platform)
    demoted = api.UpdateUserRequest(
        user=api.User(name="users/admin", platform_role=api.PLATFORM_ROLE_USER)
    )
    refusal = await platform.refusal(stub.UpdateUser, demoted)
    assert (refusal.code, refusal.reason) == ("FAILED_PRECONDITION", "USER_IS_CALLER")
    demoted.validate_only = True
    assert (await platform.refusal(stub.UpdateUser, demoted)).reason == "USER_IS_CALLER"
    renamed = api.UpdateUserRequest(user=api.User(name="users/admin", display_name="Root"))
    assert (await platform.call(stub.UpdateUser, renamed)).user.display_name == "Root"


async def test_two_admins_who_take_each_others_role_at_once_leave_one(platform: Platform) -> None:
    token = await ada(platform)
    stub = users(platform)
    role = api.UpdateUserRequest(
        user=api.User(name="users/ada", platform_role=api.PLATFORM_ROLE_ADMIN)
    )
    await platform.call(stub.UpdateUser, role)
    position = ("fermion-after", f"projects/0={platform.seen['projects/0']}")

    async def demote(token: str, user: str) -> str:
        asked = api.UpdateUserRequest(
            user=api.User(name=f"users/{user}", platform_role=api.PLATFORM_ROLE_USER)
        )
        try:
            await stub.UpdateUser(
                asked, metadata=(("authorization", f"Bearer {token}"), position), timeout=10
            )
        except grpc.aio.AioRpcError as error:
            return told(error).reason
        return "done"

    said = await asyncio.gather(demote(platform.token, "ada"), demote(token, "admin"))
    assert sorted(said) == ["PLATFORM_ROLE_MISSING", "done"]


async def test_a_platform_left_without_an_admin_gets_the_named_one_back_at_its_next_start(
    database: str, nats_server: NatsServer, tmp_path: Path
) -> None:
    async with running(database, nats_server, tmp_path / "home") as platform:
        admin = platform.admin_uid
    # As could be said before it was refused.
    await say(
        database,
        api.PlatformRoleSet(uid=admin, platform_role=api.PLATFORM_ROLE_USER),
    )
    async with running(database, nats_server, tmp_path / "home") as platform:
        found = await platform.call(users(platform).ListUsers, api.ListUsersRequest())
        assert [(one.uid, one.platform_role) for one in found.users] == [
            (admin, api.PLATFORM_ROLE_ADMIN)
        ]


async def test_a_start_makes_no_second_admin_where_there_is_one(
    database: str, nats_server: NatsServer, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    async with running(database, nats_server, home) as platform:
        token = await ada(platform)
        found = await platform.call(users(platform).GetUser, api.GetUserRequest(name="users/ada"))
        uid = found.user.uid
    async with running(database, nats_server, home, FERMION_ADMIN=uid) as platform:
        metadata = (("authorization", f"Bearer {token}"),)
        who = await users(platform).WhoAmI(api.WhoAmIRequest(), metadata=metadata, timeout=10)
        assert who.user.platform_role == api.PLATFORM_ROLE_USER


async def test_a_request_sent_again_is_one_user_and_one_profile(platform: Platform) -> None:
    asked = api.CreateUserRequest(
        user_id="bob", user=api.User(display_name="Bob"), request_id=str(uuid.uuid4())
    )
    first = await platform.call(users(platform).CreateUser, asked)
    again = await platform.call(users(platform).CreateUser, asked)
    assert first.user.uid == again.user.uid
    found = await platform.call(users(platform).GetUser, api.GetUserRequest(name="users/bob"))
    assert found.user.display_name == "Bob"
    asked.user.display_name = "Robert"
    refusal = await platform.refusal(users(platform).CreateUser, asked)
    assert refusal.reason == "REQUEST_ID_REUSED"


async def test_a_token_works_until_it_is_revoked(platform: Platform) -> None:
    token = await ada(platform)
    metadata = (("authorization", f"Bearer {token}"),)
    stub = users(platform)

    async def answer() -> str:
        try:
            found = await stub.WhoAmI(api.WhoAmIRequest(), metadata=metadata, timeout=10)
        except grpc.aio.AioRpcError as error:
            return told(error).reason
        return found.user.name

    await until(answer, lambda said: said == "users/ada", "the token is not accepted")
    listed = await platform.call(stub.ListTokens, api.ListTokensRequest(parent="users/ada"))
    await platform.call(stub.RevokeToken, api.RevokeTokenRequest(name=listed.tokens[0].name))
    await until(answer, lambda said: said == "TOKEN_REVOKED", "the token is still accepted")


async def test_a_token_asked_for_again_is_the_same_token(platform: Platform) -> None:
    await ada(platform)
    asked = api.CreateTokenRequest(parent="users/ada", request_id=str(uuid.uuid4()))
    first = await platform.call(users(platform).CreateToken, asked)
    again = await platform.call(users(platform).CreateToken, asked)
    assert first.signed_token == again.signed_token != ""
    asked.request_id, asked.validate_only = "", True
    rehearsed = await platform.call(users(platform).CreateToken, asked)
    assert rehearsed.signed_token == ""


async def test_a_project_is_found_by_its_members_and_by_nobody_else(platform: Platform) -> None:
    token = await ada(platform)
    for name in ("one", "two"):
        await platform.call(
            projects(platform).CreateProject,
            api.CreateProjectRequest(project_id=name, project=api.Project(labels={"n": name})),
        )
    await platform.call(
        projects(platform).SetMember,
        api.SetMemberRequest(parent="projects/one", user="users/ada", role=api.ROLE_VIEWER),
    )
    metadata = (("authorization", f"Bearer {token}"),)

    async def seen() -> list[str]:
        try:
            page = await projects(platform).ListProjects(
                api.ListProjectsRequest(), metadata=metadata, timeout=10
            )
        except grpc.aio.AioRpcError:
            return []
        return [project.name for project in page.projects]

    await until(seen, lambda names: names == ["projects/one"], "ada sees")
    everything = await platform.call(projects(platform).ListProjects, api.ListProjectsRequest())
    assert [p.name for p in everything.projects] == ["projects/one", "projects/two"]
    filtered = await platform.call(
        projects(platform).ListProjects, api.ListProjectsRequest(filter="labels.n=two")
    )
    assert [p.name for p in filtered.projects] == ["projects/two"]


async def test_lists_are_paged_in_every_order(platform: Platform) -> None:
    for name in ("b", "c", "a"):
        await platform.call(
            projects(platform).CreateProject, api.CreateProjectRequest(project_id=name)
        )
    for order, expected in {
        "name": "abc",
        "name desc": "cba",
        "create_time": "bca",
        "create_time desc": "acb",
    }.items():
        asked = api.ListProjectsRequest(order_by=order, page_size=1)
        found = ""
        while True:
            page = await platform.call(projects(platform).ListProjects, asked)
            found += "".join(p.name.removeprefix("projects/") for p in page.projects)
            if not page.next_page_token:
                break
            asked.page_token = page.next_page_token
        assert found == expected, order
    asked.order_by = "name"
    mismatch = await platform.refusal(projects(platform).ListProjects, asked)
    assert mismatch.reason == "PAGE_TOKEN_MISMATCH"


async def test_a_watch_shows_changes_and_the_end(platform: Platform) -> None:
    watching = projects(platform).WatchProjects(
        api.WatchProjectsRequest(send_initial=True), metadata=platform.metadata
    )
    bookmark = await watching.read()
    assert bookmark.change == api.WatchProjectsResponse.CHANGE_BOOKMARK
    await platform.call(
        projects(platform).CreateProject, api.CreateProjectRequest(project_id="seen")
    )
    first = await watching.read()
    assert first.project.name == "projects/seen"
    watching.cancel()

    await platform.call(
        projects(platform).ArchiveProject, api.ArchiveProjectRequest(name="projects/seen")
    )
    again = projects(platform).WatchProjects(
        api.WatchProjectsRequest(resume_token=first.resume_token), metadata=platform.metadata
    )
    while (change := await again.read()).project.vacated_by != ["instances"]:
        assert change.project.state == api.Project.STATE_ARCHIVED
    await platform.call(
        projects(platform).DeleteProject, api.DeleteProjectRequest(name="projects/seen")
    )
    end = await again.read()
    assert end.change == api.WatchProjectsResponse.CHANGE_DELETED
    assert end.project.name == "projects/seen"
    again.cancel()


async def test_the_last_signing_key_stays_and_another_can_be_added(platform: Platform) -> None:
    stub = stubs.KeyServiceStub(platform.channel)
    kid = (await stub.GetKeys(api.GetKeysRequest(), timeout=10)).keys[0].kid
    refusal = await platform.refusal(stub.RemoveSigningKey, api.RemoveSigningKeyRequest(kid=kid))
    assert refusal.reason == "LAST_KEY"
    await platform.call(
        stub.AddSigningKey,
        api.AddSigningKeyRequest(key=api.SigningKey(kid="second", public_key=b"2" * 32)),
    )
    await platform.call(stub.RemoveSigningKey, api.RemoveSigningKeyRequest(kid="second"))
    assert [found.kid for found in (await stub.GetKeys(api.GetKeysRequest())).keys] == [kid]
