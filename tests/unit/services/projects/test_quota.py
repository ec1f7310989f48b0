"""The rules of what projects and users may hold."""

from __future__ import annotations

from typing import cast

from hypothesis import given

from chassis.envelope import NO_PROJECT
from chassis.testing.scenario import Scenario, Situation
from fermion.api.projects import v1 as api
from services.projects import aggregate, quota
from services.projects.aggregate import Bounds, Project, User
from services.projects.quota import Quota
from tests.unit.services.projects.life import LIVES, PROJECT, SCOPES, Life

SCOPE = f"projects/{PROJECT}"
EIGHT = api.Limits(gpu_milli={"*": 8000}, cpu_milli=64000)
FOUR = api.Limits(gpu_milli={"*": 4000})
NOTHING = api.Limits()

quotas = Scenario(Quota(), lambda state, fact, _: quota.evolve(state, cast(quota.Fact, fact)))

eight = api.QuotaSet(scope=SCOPE, version=1, limits=EIGHT, project="one")
cleared = api.QuotaCleared(scope=SCOPE, version=2, project="one")
project = Project(PROJECT, "one", state=api.Project.STATE_ACTIVE)


def test_limits_are_stated_as_a_whole() -> None:
    after = quotas.given(eight).when(quota.state, scope=SCOPE, project="one", limits=FOUR, etag="1")
    after.then(api.QuotaSet(scope=SCOPE, version=2, limits=FOUR, project="one"))


def test_the_same_limits_again_say_nothing() -> None:
    quotas.given(eight).when(
        quota.state, scope=SCOPE, project="one", limits=EIGHT, etag=""
    ).nothing()


def test_limits_that_bound_nothing_are_limits_too() -> None:
    after = (
        quotas.given()
        .when(quota.state, scope=SCOPE, project="one", limits=NOTHING, etag="0")
        .says("QuotaSet")
    )
    shown = quota.view("projects/one/quota", after.state, Quota(1, EIGHT))
    assert (shown.limits, shown.inherited) == (NOTHING, False)


def test_the_version_counts_on_when_limits_are_cleared_and_stated_again() -> None:
    after = (
        quotas.given(eight).when(quota.clear, scope=SCOPE, project="one", etag="1").then(cleared)
    )
    after.when(quota.clear, scope=SCOPE, project="one", etag="").nothing()
    again = after.when(quota.state, scope=SCOPE, project="one", limits=EIGHT, etag="2")
    again.then(api.QuotaSet(scope=SCOPE, version=3, limits=EIGHT, project="one"))


def test_what_was_changed_meanwhile_is_neither_overwritten_nor_cleared() -> None:
    before = quotas.given(eight)
    before.when(quota.state, scope=SCOPE, project="one", limits=FOUR, etag="0").refused(
        "ETAG_MISMATCH"
    )
    before.when(quota.clear, scope=SCOPE, project="one", etag="7").refused("ETAG_MISMATCH")


def test_a_scope_without_limits_of_its_own_shows_those_of_all() -> None:
    shown = quota.view("projects/one/quota", quota.fold(()), Quota(5, EIGHT))
    assert shown == api.Quota(name="projects/one/quota", limits=EIGHT, inherited=True, etag="0")
    own = quota.view("projects/one/quota", Quota(3, FOUR), Quota(5, EIGHT))
    assert own == api.Quota(name="projects/one/quota", limits=FOUR, etag="3")


def test_where_nothing_is_stated_nothing_is_bounded() -> None:
    shown = quota.view("projects/one/quota", Quota(), Quota())
    assert shown == api.Quota(name="projects/one/quota", limits=NOTHING, inherited=True, etag="0")
    of_all = quota.view("users/-/quota", Quota(), Quota())
    assert of_all == api.Quota(name="users/-/quota", limits=NOTHING, etag="0")


def test_only_a_projects_own_quota_is_a_fact_of_that_project() -> None:
    place = aggregate.place(eight)
    assert (place.stream, place.project) == (f"quota/{SCOPE}", "one")
    of_all = aggregate.place(api.QuotaSet(scope="users/-", version=1, limits=EIGHT))
    assert (of_all.stream, of_all.project) == ("quota/users/-", NO_PROJECT)


def owned(owner: Project | User) -> Situation[Bounds]:
    """A scope without limits of its own."""
    return Scenario(Bounds(owner=owner), lambda before, fact, at: before).given()


def test_who_is_archived_or_gone_is_not_bounded() -> None:
    for owner, reason in (
        (Project(PROJECT, "one", state=api.Project.STATE_ARCHIVED), "PROJECT_ARCHIVED"),
        (Project(PROJECT, "one", deleted=True), "PROJECT_NOT_FOUND"),
        (User("user_ada", "ada", deleted=True), "USER_NOT_FOUND"),
    ):
        owned(owner).when(aggregate.bound, scope=SCOPE, limits=EIGHT, etag="").refused(reason)
        owned(owner).when(aggregate.unbound, scope=SCOPE, etag="").refused(reason)


def test_the_project_is_named_in_the_fact_about_its_quota() -> None:
    owned(project).when(aggregate.bound, scope=SCOPE, limits=EIGHT, etag="").then(eight)


@given(life=LIVES)
def test_versions_of_a_quota_have_no_gap(life: Life) -> None:
    for scope in SCOPES:
        said = [record.message for record in life.history.stream(f"quota/{scope}")]
        versions = [cast(quota.Fact, fact).version for fact in said]
        assert versions == list(range(1, len(said) + 1))


@given(life=LIVES)
def test_a_scope_shows_its_own_limits_or_those_of_all(life: Life) -> None:
    for scope in SCOPES:
        now = life.bounds(scope)
        shown = quota.view(f"{scope}/quota", now.own, now.of_all)
        wanted = now.of_all.limits if now.own.limits is None else now.own.limits
        assert shown.limits == (wanted or NOTHING)
        assert shown.inherited == (now.own.limits is None and not scope.endswith("/-"))
