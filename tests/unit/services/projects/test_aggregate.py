"""The rules of projects and their people."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import cast

from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

from chassis.refusals import Refused
from chassis.testing.scenario import Scenario
from fermion.api.projects import v1 as api
from services.projects import aggregate
from services.projects.aggregate import Keys, Project, ProjectFact, Token, TokenFact, User, UserFact
from tests.unit.services.history import NOON
from tests.unit.services.projects.life import (
    CLUSTERS,
    LIVES,
    PEOPLE,
    PROJECT,
    SCOPES,
    STEPS,
    Life,
    Step,
    lived,
)

ADA = User("user_ada", "ada")
BOB = User("user_bob", "bob")

users = Scenario(
    User(), lambda user, fact, at: aggregate.evolve_user(user, cast(UserFact, fact), at)
)
projects = Scenario(
    Project(),
    lambda project, fact, at: aggregate.evolve_project(project, cast(ProjectFact, fact), at),
)
tokens = Scenario(
    Token(), lambda token, fact, at: aggregate.evolve_token(token, cast(TokenFact, fact))
)
keys = Scenario(
    Keys(), lambda state, fact, at: aggregate.evolve_keys(state, cast(aggregate.KeyFact, fact), at)
)

registered = api.UserRegistered(uid="user_ada", user="ada")
admin_now = api.PlatformRoleSet(uid="user_ada", platform_role=api.PLATFORM_ROLE_ADMIN)
created = api.ProjectCreated(uid=PROJECT, project="one", creator_uid="user_ada")
ada_admin = api.MemberSet(
    project_uid=PROJECT, project="one", user_uid="user_ada", role=api.ROLE_ADMIN
)
bob_editor = api.MemberSet(
    project_uid=PROJECT, project="one", user_uid="user_bob", role=api.ROLE_EDITOR
)
archived = api.ProjectArchived(uid=PROJECT, project="one")
left = api.ProjectVacatedBy(uid=PROJECT, project="one", service="instances")
key = api.SigningKeyAdded(kid="k1", public_key=b"1" * 32)
other_key = api.SigningKeyAdded(kid="k2", public_key=b"2" * 32)


def test_the_creator_of_a_project_is_its_admin() -> None:
    projects.given().when(
        aggregate.create,
        uid=PROJECT,
        project="one",
        asked=api.Project(),
        creator_uid="user_ada",
    ).then(
        api.ProjectCreated(uid=PROJECT, project="one", spec=api.Project(), creator_uid="user_ada"),
        ada_admin,
    )


def test_an_admin_is_registered_with_the_platform_role() -> None:
    users.given().when(
        aggregate.register, uid="user_ada", user="ada", platform_role=api.PLATFORM_ROLE_ADMIN
    ).says("UserRegistered", "PlatformRoleSet")


def test_nobody_deletes_himself() -> None:
    users.given(registered, admin_now).when(
        lambda ada: aggregate.delete_user((ada, ada), etag="")
    ).refused("USER_IS_CALLER")


def test_nobody_changes_his_own_platform_role() -> None:
    def change(role: api.PlatformRole.ValueType) -> Callable[[User], Sequence[Message]]:
        return lambda ada: aggregate.change_user(
            (ada, ada), profile=False, platform_role=role, etag=""
        )

    before = users.given(registered, admin_now)
    before.when(change(api.PLATFORM_ROLE_USER)).refused("USER_IS_CALLER")
    before.when(change(api.PLATFORM_ROLE_ADMIN)).nothing()


def test_of_two_admins_who_take_each_others_role_the_later_one_is_refused() -> None:
    bob = replace(BOB, platform_role=api.PLATFORM_ROLE_ADMIN)

    def demote(actor: User) -> Callable[[User], Sequence[Message]]:
        return lambda ada: aggregate.change_user(
            (ada, actor), profile=False, platform_role=api.PLATFORM_ROLE_USER, etag=""
        )

    before = users.given(registered, admin_now)
    demoted = before.when(demote(bob)).says("UserProfileChanged", "PlatformRoleSet")
    users.given(registered, admin_now).when(demote(BOB)).refused("PLATFORM_ROLE_MISSING")
    users.given(registered, admin_now).when(
        lambda ada: aggregate.delete_user((ada, demoted.state), etag="")
    ).refused("USER_IS_CALLER")


def test_a_start_without_any_admin_makes_one_of_the_user_whom_the_settings_name() -> None:
    named = partial(aggregate.first_admin, uid="user_ada", user="admin")
    users.given().when(named).says("UserRegistered", "PlatformRoleSet")
    after = users.given(registered).when(named).says("UserProfileChanged", "PlatformRoleSet")
    after.when(named).nothing()
    users.given(registered, api.UserDeleted(uid="user_ada")).when(named).refused("USER_NOT_FOUND")


def test_a_project_in_use_is_not_deleted() -> None:
    projects.given(created, ada_admin).when(
        aggregate.delete, etag="", needed=("instances",)
    ).refused("PROJECT_NOT_ARCHIVED")


def test_an_archived_project_is_deleted_only_when_every_service_has_left() -> None:
    before = projects.given(created, ada_admin, archived)
    refusal = before.when(aggregate.delete, etag="", needed=("instances", "training")).refused(
        "PROJECT_NOT_VACATED"
    )
    assert refusal.arguments["services"] == "instances, training"
    half = before.and_then(left)
    half.when(aggregate.delete, etag="", needed=("instances", "training")).refused(
        "PROJECT_NOT_VACATED"
    )
    half.when(aggregate.delete, etag="", needed=("instances",)).says("ProjectDeleted")


def test_a_departure_from_a_project_in_use_says_nothing() -> None:
    projects.given(created, ada_admin).when(aggregate.vacate, service="instances").nothing()


def test_a_departure_is_heard_once() -> None:
    after = projects.given(created, archived).when(aggregate.vacate, service="instances").then(left)
    after.when(aggregate.vacate, service="instances").nothing()


def test_the_last_admin_is_neither_removed_nor_demoted() -> None:
    before = projects.given(created, ada_admin, bob_editor)
    before.when(aggregate.remove_member, user_uid="user_ada", user="ada").refused("LAST_ADMIN")

    def demote(project: Project) -> Sequence[Message]:
        return aggregate.set_member((project, ADA), role=api.ROLE_VIEWER, user="ada")

    before.when(demote).refused("LAST_ADMIN")
    bob_admin = api.MemberSet(
        project_uid=PROJECT, project="one", user_uid="user_bob", role=api.ROLE_ADMIN
    )
    before.and_then(bob_admin).when(demote).says("MemberSet")


def test_a_role_given_again_says_nothing() -> None:
    projects.given(created, ada_admin, bob_editor).when(
        lambda project: aggregate.set_member((project, BOB), role=api.ROLE_EDITOR, user="bob")
    ).nothing()


def test_somebody_who_is_no_user_gets_no_role() -> None:
    projects.given(created, ada_admin).when(
        lambda project: aggregate.set_member((project, User()), role=api.ROLE_EDITOR, user="eve")
    ).refused("USER_NOT_FOUND")


def test_somebody_without_a_role_cannot_lose_it() -> None:
    projects.given(created, ada_admin).when(
        aggregate.remove_member, user_uid="user_bob", user="bob"
    ).refused("MEMBER_NOT_FOUND")


def test_an_archived_project_is_not_changed() -> None:
    projects.given(created, ada_admin, archived).when(
        aggregate.change, spec=api.Project(display_name="New"), etag=""
    ).refused("PROJECT_ARCHIVED")


def test_what_was_changed_meanwhile_is_not_overwritten() -> None:
    projects.given(created, ada_admin).when(
        aggregate.change, spec=api.Project(display_name="New"), etag="7"
    ).refused("ETAG_MISMATCH")


def test_a_change_that_changes_nothing_says_nothing() -> None:
    projects.given(created, ada_admin).when(
        aggregate.change, spec=api.Project(), etag="1"
    ).nothing()


def test_a_token_is_issued_only_for_a_user_who_is_there() -> None:
    def issue(owner: User, token: Token) -> Sequence[Message]:
        return aggregate.issue(
            (token, owner),
            uid="tok_1",
            user="ada",
            description="",
            kid="k1",
            issue_time=NOON,
            expire_time=NOON + timedelta(days=1),
        )

    tokens.given().when(lambda token: issue(User(), token)).refused("USER_NOT_FOUND")
    gone = User("user_ada", "ada", deleted=True)
    tokens.given().when(lambda token: issue(gone, token)).refused("USER_NOT_FOUND")
    after = tokens.given().when(lambda token: issue(ADA, token)).says("TokenIssued")
    after.when(aggregate.revoke, user_uid="user_bob", name="x").refused("TOKEN_NOT_FOUND")
    revoked = after.when(aggregate.revoke, user_uid="user_ada", name="x").says("TokenRevoked")
    revoked.when(aggregate.revoke, user_uid="user_ada", name="x").nothing()


def test_the_last_key_is_not_removed() -> None:
    keys.given(key).when(aggregate.remove_key, kid="k1").refused("LAST_KEY")
    keys.given(key, other_key).when(aggregate.remove_key, kid="k1").says("SigningKeyRemoved")
    keys.given(key).when(aggregate.remove_key, kid="k9").refused("KEY_NOT_FOUND")


def test_one_key_id_never_stands_for_two_keys() -> None:
    keys.given(key).when(aggregate.add_key, kid="k1", public_key=b"1" * 32).nothing()
    keys.given(key).when(aggregate.add_key, kid="k1", public_key=b"2" * 32).refused("KEY_ID_TAKEN")


def test_names_are_claimed_and_never_released() -> None:
    assert [c.name for c in aggregate.place(registered).claims] == ["ada"]
    assert [c.name for c in aggregate.place(created).claims] == ["one"]
    gone = aggregate.place(api.ProjectDeleted(uid=PROJECT, project="one"))
    assert (gone.claims, gone.releases) == ((), ())


@given(life=LIVES)
def test_a_living_project_always_has_an_admin(life: Life) -> None:
    project = life.project
    assert project.deleted or api.ROLE_ADMIN in project.members.values()


@given(life=LIVES)
def test_a_platform_that_had_an_admin_always_has_one(life: Life) -> None:
    alive = [user for user in map(life.user, PEOPLE) if user.uid and not user.deleted]
    assert api.PLATFORM_ROLE_ADMIN in [user.platform_role for user in alive]


@given(life=LIVES, step=STEPS)
def test_a_decision_repeated_adds_nothing_or_is_refused(life: Life, step: Step) -> None:
    try:
        said = step(life)
    except Refused:
        return
    life.history.say(said)
    try:
        again = step(life)
    except Refused:
        # What is gone cannot go again.
        return
    kinds = {type(fact) for fact in again}
    # A profile may change any number of times: what it holds is no fact.
    assert kinds <= {api.UserProfileChanged}


@given(facts=st.permutations([created, ada_admin, bob_editor, archived, left, created]))
def test_any_order_of_a_projects_facts_can_be_folded(facts: list[ProjectFact]) -> None:
    project = Project()
    for fact in facts:
        project = aggregate.evolve_project(project, fact, NOON)
    assert isinstance(aggregate.view(project), api.Project)


def test_random_lives_reach_every_state() -> None:
    reached: set[str] = set()

    @given(life=LIVES)
    def look(life: Life) -> None:
        project = life.project
        reached.add("deleted" if project.deleted else api.Project.State.Name(project.state))
        if project.vacated_by:
            reached.add("vacated")
        for bounds in map(life.bounds, SCOPES):
            if bounds.own.version:
                reached.add("cleared" if bounds.own.limits is None else "bounded")
                if bounds.owner is not None and bounds.owner.deleted:
                    reached.add("gone with limits")
        for cluster in map(life.cluster, CLUSTERS):
            if cluster.uid:
                reached.add("enrolled" if cluster.retire_time is None else "retired")

    look()
    assert {"STATE_ACTIVE", "STATE_ARCHIVED", "vacated", "deleted"} <= reached
    assert {"bounded", "cleared", "gone with limits", "enrolled", "retired"} <= reached


def test_a_life_without_steps_is_a_project_with_one_admin() -> None:
    assert dict(lived([]).project.members) == {"user_ada": api.ROLE_ADMIN}
