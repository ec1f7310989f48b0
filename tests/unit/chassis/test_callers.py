"""Who calls is known from facts alone, and nobody is let in on half a history."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.descriptor import MethodDescriptor

from chassis.callers import JOURNAL, NOBODY, Caller, Callers, rule_of, rules
from chassis.clock import SystemClock
from chassis.feed import Feed
from chassis.journal import Page
from chassis.keys import SigningKey
from chassis.refusals import Denied, Missing, Refused, Unauthenticated, Unavailable
from fermion.api.journal import v1 as journal
from fermion.api.projects import v1 as api
from tests.people import (
    REGISTRY,
    SECONDS_MAX,
    People,
    RestoredLog,
    created,
    followed,
    member,
    registered,
    uid,
)

VIEW = api.Access(role=api.ROLE_VIEWER, resource="name")
ACME = api.GetProjectRequest(name="projects/acme")


@pytest.fixture
async def people() -> People:
    people = People()
    await people.say(
        *registered("root", admin=True),
        *registered("ada"),
        created("acme"),
        created("other"),
        member("acme", "ada", api.ROLE_VIEWER),
    )
    return people


@pytest.fixture
async def callers(people: People) -> AsyncIterator[Callers]:
    callers = people.callers()
    async with followed(callers):
        yield callers


def who(callers: Callers, header: str) -> Caller:
    return callers.recognise(callers.authenticate(header))


def refused(callers: Callers, header: str) -> str:
    with pytest.raises(Unauthenticated) as error:
        who(callers, header)
    return error.value.reason


async def test_a_token_speaks_for_its_user(people: People, callers: Callers) -> None:
    found = who(callers, people.token(uid("ada"), token_uid="tok_1"))
    assert found == Caller(uid("ada"), "user", "ada", api.PLATFORM_ROLE_USER, "tok_1")
    assert who(callers, people.token(uid("root"))).platform_role == api.PLATFORM_ROLE_ADMIN


async def test_a_service_token_speaks_for_its_service(people: People, callers: Callers) -> None:
    found = who(callers, people.token("service:instances", "service"))
    assert (found.uid, found.kind) == ("service:instances", "service")
    assert found.platform_role == api.PLATFORM_ROLE_SERVICE


async def test_no_token_is_nobody(callers: Callers) -> None:
    assert callers.authenticate(None) == callers.authenticate("") == NOBODY


async def test_what_is_no_valid_token_is_refused(people: People, callers: Callers) -> None:
    ada = people.token(uid("ada"))
    head, claims, signature = ada.split(".")
    assert refused(callers, "Basic YWRh") == "TOKEN_INVALID"
    assert refused(callers, "Bearer ") == "TOKEN_INVALID"
    assert refused(callers, "Bearer x.y.z") == "TOKEN_INVALID"
    assert refused(callers, f"{head}.{claims}.{signature[:-4]}AAAA") == "TOKEN_INVALID"
    assert refused(callers, people.token(uid("ada"), key=SigningKey.create())) == "TOKEN_INVALID"
    over = people.token(uid("ada"), lasts=timedelta(seconds=-1))
    assert refused(callers, over) == "TOKEN_EXPIRED"
    assert refused(callers, people.token("user_unheard")) == "USER_UNKNOWN"


async def test_a_revoked_token_ends_with_its_fact(people: People, callers: Callers) -> None:
    header = people.token(uid("ada"), token_uid="tok_1")
    who(callers, header)
    position = await people.say(api.TokenRevoked(uid="tok_1", user_uid=uid("ada")))
    assert await callers.reached(position, SECONDS_MAX)
    assert refused(callers, header) == "TOKEN_REVOKED"
    who(callers, people.token(uid("ada"), token_uid="tok_2"))


async def test_keys_come_and_go_by_facts(people: People, callers: Callers) -> None:
    second = SigningKey.create()
    header = people.token(uid("ada"), key=second)
    assert refused(callers, header) == "TOKEN_INVALID"
    public = second.public
    position = await people.say(
        api.SigningKeyAdded(kid=public.kid, public_key=public.raw),
        api.SigningKeyRemoved(kid=people.key.kid),
    )
    assert await callers.reached(position, SECONDS_MAX)
    assert who(callers, header).user == "ada"
    # Also tokens that were checked before are not remembered beyond their key.
    assert refused(callers, people.token(uid("ada"))) == "TOKEN_INVALID"


async def test_a_deleted_user_is_nobody_any_more(people: People, callers: Callers) -> None:
    header = people.token(uid("ada"))
    ada = who(callers, header)
    callers.authorise(ada, VIEW, ACME)
    position = await people.say(api.UserDeleted(uid=uid("ada")))
    assert await callers.reached(position, SECONDS_MAX)
    assert refused(callers, header) == "USER_UNKNOWN"
    # A user who takes the name later is another one.
    later = api.UserRegistered(uid="user_later", user="ada")
    assert await callers.reached(await people.say(later), SECONDS_MAX)
    with pytest.raises(Denied):
        callers.authorise(who(callers, people.token("user_later")), VIEW, ACME)


async def test_a_role_ends_with_its_fact(people: People, callers: Callers) -> None:
    ada = who(callers, people.token(uid("ada")))
    callers.authorise(ada, VIEW, ACME)
    gone = api.MemberRemoved(project="acme", user_uid=uid("ada"))
    assert await callers.reached(await people.say(gone), SECONDS_MAX)
    with pytest.raises(Denied):
        callers.authorise(ada, VIEW, ACME)


async def test_a_foreign_an_unknown_and_a_deleted_project_are_told_alike(
    people: People, callers: Callers
) -> None:
    ada = who(callers, people.token(uid("ada")))
    told = set()
    deleted = api.ProjectDeleted(project="acme", uid="proj")
    assert await callers.reached(await people.say(deleted), SECONDS_MAX)
    for project in ("other", "never", "acme"):
        with pytest.raises(Denied) as error:
            callers.authorise(ada, VIEW, api.GetProjectRequest(name=f"projects/{project}"))
        refusal = error.value
        assert refusal.reason == "PROJECT_ROLE_MISSING"
        told.add(f"{refusal} {refusal.next_step} {refusal.arguments}".replace(project, "X"))
    assert len(told) == 1


async def test_an_admin_hears_what_is_not_there_and_reads_what_is_left_of_the_deleted(
    people: People, callers: Callers
) -> None:
    root = who(callers, people.token(uid("root")))
    service = who(callers, people.token("service:billing", "service"))
    ada = who(callers, people.token(uid("ada")))
    callers.authorise(root, VIEW, ACME)
    deleted = api.ProjectDeleted(project="acme", uid="proj")
    assert await callers.reached(await people.say(deleted), SECONDS_MAX)
    for caller in (root, service):
        with pytest.raises(Missing) as error:
            callers.authorise(caller, VIEW, ACME)
        assert error.value.reason == "PROJECT_NOT_FOUND"
    for gone, those in {
        api.PLATFORM_ROLE_USER: (root, service, ada),
        api.PLATFORM_ROLE_SERVICE: (root, service),
        api.PLATFORM_ROLE_ADMIN: (root,),
    }.items():
        rule = api.Access(role=api.ROLE_VIEWER, resource="name", gone=gone)
        for caller in (root, service, ada):
            if caller in those:
                callers.authorise(caller, rule, ACME)
                continue
            with pytest.raises(Refused):
                callers.authorise(caller, rule, ACME)
        with pytest.raises(Missing):
            callers.authorise(root, rule, api.GetProjectRequest(name="projects/never"))


async def test_every_project_at_once_is_asked_for_by_those_who_see_all(
    people: People, callers: Callers
) -> None:
    everything = api.GetProjectRequest(name="projects/-/quota")
    callers.authorise(who(callers, people.token(uid("root"))), VIEW, everything)
    with pytest.raises(Denied):
        callers.authorise(who(callers, people.token(uid("ada"))), VIEW, everything)


async def test_members_still_read_an_archived_project(people: People, callers: Callers) -> None:
    archived = api.ProjectArchived(project="acme", uid="proj")
    assert await callers.reached(await people.say(archived), SECONDS_MAX)
    callers.authorise(who(callers, people.token(uid("ada"))), VIEW, ACME)


async def test_bills_are_seen_by_every_role_and_nothing_else_by_their_viewer(
    people: People, callers: Callers
) -> None:
    bills = api.Access(role=api.ROLE_BILLING_VIEWER, resource="name")
    ada = who(callers, people.token(uid("ada")))
    for role in (api.ROLE_VIEWER, api.ROLE_EDITOR, api.ROLE_ADMIN, api.ROLE_BILLING_VIEWER):
        assert await callers.reached(await people.say(member("acme", "ada", role)), SECONDS_MAX)
        callers.authorise(ada, bills, ACME)
    with pytest.raises(Denied):
        callers.authorise(ada, VIEW, ACME)


async def test_services_read_anywhere_and_write_nowhere(people: People, callers: Callers) -> None:
    service = who(callers, people.token("service:billing", "service"))
    for role in (api.ROLE_BILLING_VIEWER, api.ROLE_VIEWER):
        callers.authorise(service, api.Access(role=role, resource="name"), ACME)
    for role in (api.ROLE_EDITOR, api.ROLE_ADMIN):
        with pytest.raises(Denied):
            callers.authorise(service, api.Access(role=role, resource="name"), ACME)


async def test_one_call_may_be_about_a_project_oneself_or_all(
    people: People, callers: Callers
) -> None:
    rule = api.Access(
        role=api.ROLE_VIEWER, resource="name", self="name", bare=api.PLATFORM_ROLE_USER
    )
    await callers.reached(await people.say(*registered("bob")), SECONDS_MAX)
    ada = who(callers, people.token(uid("ada")))
    for mine in ("projects/acme/quota", "users/ada/quota", "projects/-/quota", "users/-/quota"):
        callers.authorise(ada, rule, api.GetProjectRequest(name=mine))
    for name, reason in (
        ("projects/other/quota", "PROJECT_ROLE_MISSING"),
        ("users/bob/quota", "PLATFORM_ROLE_MISSING"),
        ("users/", "PLATFORM_ROLE_MISSING"),
    ):
        with pytest.raises(Denied) as error:
            callers.authorise(ada, rule, api.GetProjectRequest(name=name))
        assert error.value.reason == reason
        assert error.value.arguments["needed"] in ("VIEWER", "ADMIN")


async def test_what_is_about_another_user_lets_a_service_read_and_not_write(
    people: People, callers: Callers
) -> None:
    service = who(callers, people.token("service:billing", "service"))
    about_ada = api.GetProjectRequest(name="users/ada/quota")
    rule = api.Access(role=api.ROLE_VIEWER, resource="name", self="name")
    callers.authorise(service, rule, about_ada)
    rule.role = api.ROLE_EDITOR
    with pytest.raises(Denied):
        callers.authorise(service, rule, about_ada)


async def test_about_all_projects_is_nothing_special_where_no_rule_says_so(
    people: People, callers: Callers
) -> None:
    with pytest.raises(Denied):
        callers.authorise(
            who(callers, people.token(uid("ada"))), VIEW, api.GetProjectRequest(name="projects/-")
        )


async def test_before_it_has_caught_up_nobody_with_a_token_is_let_in(people: People) -> None:
    callers = people.callers()
    # The role that is still in the first half of the history may end in the second.
    callers.directory.take(people.journal.log[0])
    second = SigningKey.create()
    for header in (
        people.token(uid("root")),
        people.token("service:instances", "service"),
        people.token(uid("ada"), key=second),
    ):
        with pytest.raises(Unavailable) as error:
            who(callers, header)
        assert error.value.reason == "CALLERS_BEHIND"
    assert who(callers, "") == NOBODY


class HalfLog:
    """A log whose owner goes away after the first page, until it is let come back."""

    def __init__(self, people: People) -> None:
        self._journal = people.journal
        self.asked = asyncio.Event()
        self.back = asyncio.Event()

    async def read(self, after: int, limit: int) -> Page:
        if after and not self.back.is_set():
            self.asked.set()
            raise Unavailable("LOG_UNAVAILABLE", "The owner is away.")
        return await self._journal.read(after, 3)

    async def grown(self, past: int, seconds: float) -> None:
        await asyncio.sleep(0)


async def test_an_owner_who_goes_away_halfway_leaves_the_follower_behind(people: People) -> None:
    log = HalfLog(people)
    callers = Callers(Feed(JOURNAL, log, None, REGISTRY), SystemClock(), [people.key.public])
    task = asyncio.create_task(callers.run())
    async with asyncio.timeout(SECONDS_MAX):
        await log.asked.wait()
        assert not await callers.reached(len(people.journal.log), 0.05)
        assert not callers.ready.is_set()
        log.back.set()
        await callers.ready.wait()
    assert callers.position == len(people.journal.log)
    task.cancel()


async def test_a_restored_journal_is_read_anew(people: People) -> None:
    log = RestoredLog(people)
    callers = Callers(Feed(JOURNAL, log, None, REGISTRY), SystemClock(), [people.key.public])
    async with followed(callers):
        header = people.token(uid("ada"))
        who(callers, header)
        async with asyncio.timeout(SECONDS_MAX):
            await log.restore(2)
            log.back.set()
            await callers.ready.wait()
        assert refused(callers, header) == "USER_UNKNOWN"
        assert who(callers, people.token(uid("root"))).user == "root"


async def test_a_fact_about_nobody_lets_nobody_in(people: People, callers: Callers) -> None:
    position = await people.say(
        member("never", "ada", api.ROLE_ADMIN),
        api.PlatformRoleSet(uid="user_never", platform_role=api.PLATFORM_ROLE_ADMIN),
        api.UserDeleted(uid="user_never"),
        api.MemberRemoved(project="never", user_uid=uid("ada")),
    )
    assert await callers.reached(position, SECONDS_MAX)
    assert refused(callers, people.token("user_never")) == "USER_UNKNOWN"
    never = api.GetProjectRequest(name="projects/never")
    with pytest.raises(Denied):
        callers.authorise(who(callers, people.token(uid("ada"))), VIEW, never)


async def test_a_position_that_does_not_come_is_told_in_time(callers: Callers) -> None:
    assert await callers.reached(callers.position, 0)
    assert not await callers.reached(callers.position + 1, 0.01)


def method(
    rule: api.Access | None, *, streams: bool = False, name: str = "Sample"
) -> MethodDescriptor:
    """An RPC of GetProjectRequest with such a rule."""
    file = descriptor_pb2.FileDescriptorProto(
        name=f"{name}.proto", package=f"test.{name.lower()}", syntax="proto3"
    )
    file.dependency.append(api.GetProjectRequest.DESCRIPTOR.file.name)
    file.service.add(name="S").method.add(
        name="M",
        input_type=f".{api.GetProjectRequest.DESCRIPTOR.full_name}",
        output_type=f".{api.GetProjectResponse.DESCRIPTOR.full_name}",
        client_streaming=streams,
    )
    if rule is not None:
        file.service[0].method[0].options.Extensions[api.access].CopyFrom(rule)
    pool = descriptor_pool.Default()
    pool.AddSerializedFile(file.SerializeToString())
    return pool.FindServiceByName(f"test.{name.lower()}.S").methods_by_name["M"]


def test_a_call_without_a_rule_is_refused_at_start() -> None:
    with pytest.raises(Refused) as error:
        rule_of(method(None, name="Missing"))
    assert error.value.reason == "ACCESS_RULE_MISSING"
    assert error.value.arguments == {"method": "test.missing.S.M"}


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("Empty", api.Access()),
        (
            "Both",
            api.Access(
                role=api.ROLE_BILLING_VIEWER, resource="name", platform=api.PLATFORM_ROLE_USER
            ),
        ),
        ("Projectless", api.Access(role=api.ROLE_BILLING_VIEWER)),
        ("Roleless", api.Access(platform=api.PLATFORM_ROLE_USER, resource="name")),
        ("Bareless", api.Access(platform=api.PLATFORM_ROLE_USER, bare=api.PLATFORM_ROLE_SERVICE)),
        ("Elsewhere", api.Access(role=api.ROLE_BILLING_VIEWER, resource="parent")),
        ("Deeper", api.Access(role=api.ROLE_BILLING_VIEWER, resource="name.more")),
        ("Goneless", api.Access(platform=api.PLATFORM_ROLE_USER, gone=api.PLATFORM_ROLE_ADMIN)),
        ("Selfless", api.Access(platform=api.PLATFORM_ROLE_ADMIN, self="user")),
    ],
)
def test_a_rule_that_cannot_be_checked_is_refused_at_start(name: str, rule: api.Access) -> None:
    with pytest.raises(Refused) as error:
        rule_of(method(rule, name=name))
    assert error.value.reason == "ACCESS_RULE_WRONG"


def test_a_stream_of_requests_is_refused_at_start() -> None:
    method(api.Access(platform=api.PLATFORM_ROLE_USER), streams=True, name="Streaming")
    with pytest.raises(Refused) as error:
        rules(["test.streaming.S"])
    assert error.value.reason == "STREAM_OF_REQUESTS"


def test_every_rule_of_the_platform_is_found() -> None:
    found = rules(["fermion.api.journal.v1.JournalService"])
    assert set(found) == {
        f"/fermion.api.journal.v1.JournalService/{call.name}"
        for call in journal.ReadLogRequest.DESCRIPTOR.file.pool.FindServiceByName(
            "fermion.api.journal.v1.JournalService"
        ).methods
    }
