"""Random lives of users and projects, for the tests of their rules and of their rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from google.protobuf.message import Message
from hypothesis import strategies as st

from chassis.refusals import Refused
from fermion.api.projects import v1 as api
from services.projects import aggregate, enrolment, quota
from services.projects.aggregate import Bounds, Project, User
from services.projects.enrolment import Cluster
from tests.unit.services.history import NOON, History

PEOPLE = ("user_ada", "user_bob", "user_cid")
PROJECT = "proj_1"
NEEDED = ("instances",)
SCOPES = ("projects/-", "users/-", f"projects/{PROJECT}", *(f"users/{uid}" for uid in PEOPLE))
CLUSTERS = ("01jd3k5v7m2r8q4w6x9y0z1a2b", "01jd3k5v7m2r8q4w6x9y0z1a2c")

Step = Callable[["Life"], Sequence[Message]]


@dataclass
class Life:
    """One project and three users, with everything that was said about them."""

    history: History = field(default_factory=lambda: History("projects/0", aggregate.place))

    def user(self, uid: str) -> User:
        """A user as the facts tell."""
        return aggregate.fold_user(self.history.stream(f"user/{uid}"))

    @property
    def project(self) -> Project:
        """The project as the facts tell."""
        return aggregate.fold_project(self.history.stream(f"project/{PROJECT}"))

    def bounds(self, scope: str) -> Bounds:
        """What decides about a scope's quota, as the facts tell."""
        kind, uid = scope.split("/")
        own = quota.fold(self.history.stream(f"quota/{scope}"))
        if uid == quota.ALL:
            return Bounds(own)
        of_all = quota.fold(self.history.stream(f"quota/{kind}/{quota.ALL}"))
        return Bounds(own, of_all, self.project if kind == "projects" else self.user(uid))

    def cluster(self, uid: str) -> Cluster:
        """A cluster as the facts tell."""
        return enrolment.fold(self.history.stream(f"cluster/{uid}"))

    @property
    def now(self) -> datetime:
        """When the next thing is said."""
        return NOON + timedelta(seconds=len(self.history.records))

    def take(self, step: Step) -> None:
        """Decide, and record what is said; a refusal says nothing."""
        try:
            self.history.say(step(self))
        except Refused:
            return


def register(uid: str, role: api.PlatformRole.ValueType) -> Step:
    name = uid.removeprefix("user_")
    return lambda life: aggregate.register(life.user(uid), uid=uid, user=name, platform_role=role)


def change_user(uid: str, role: api.PlatformRole.ValueType, actor: str) -> Step:
    return lambda life: aggregate.change_user(
        (life.user(uid), life.user(actor)), profile=True, platform_role=role, etag=""
    )


def delete_user(uid: str, actor: str) -> Step:
    return lambda life: aggregate.delete_user((life.user(uid), life.user(actor)), etag="")


def create(life: Life) -> Sequence[Message]:
    asked = api.Project(display_name="One", labels={"team": "vision"})
    return aggregate.create(
        life.project, uid=PROJECT, project="one", asked=asked, creator_uid="user_ada"
    )


def change(title: str) -> Step:
    return lambda life: aggregate.change(
        life.project, spec=api.Project(display_name=title), etag=""
    )


def set_member(uid: str, role: api.Role.ValueType) -> Step:
    return lambda life: aggregate.set_member((life.project, life.user(uid)), role=role, user=uid)


def remove_member(uid: str) -> Step:
    return lambda life: aggregate.remove_member(life.project, user_uid=uid, user=uid)


def archive(life: Life) -> Sequence[Message]:
    return aggregate.archive(life.project, etag="")


def vacate(life: Life) -> Sequence[Message]:
    return aggregate.vacate(life.project, service="instances")


def delete(life: Life) -> Sequence[Message]:
    return aggregate.delete(life.project, etag="", needed=NEEDED)


def bound(scope: str, limits: api.Limits) -> Step:
    return lambda life: aggregate.bound(life.bounds(scope), scope=scope, limits=limits, etag="")


def unbound(scope: str) -> Step:
    return lambda life: aggregate.unbound(life.bounds(scope), scope=scope, etag="")


def enrol(uid: str) -> Step:
    return lambda life: enrolment.enrol(life.cluster(uid), uid=uid, at=life.now)


def introduce(uid: str) -> Step:
    return lambda life: enrolment.introduce(life.cluster(uid), uid=uid, at=life.now)


def retire(uid: str) -> Step:
    return lambda life: enrolment.retire(life.cluster(uid), uid=uid, at=life.now)


people = st.sampled_from(PEOPLE)
platform_roles = st.sampled_from([api.PLATFORM_ROLE_USER, api.PLATFORM_ROLE_ADMIN])
roles = st.sampled_from([api.ROLE_BILLING_VIEWER, api.ROLE_VIEWER, api.ROLE_EDITOR, api.ROLE_ADMIN])
scopes = st.sampled_from(SCOPES)
clusters = st.sampled_from(CLUSTERS)
limits = st.builds(
    api.Limits,
    gpu_milli=st.dictionaries(st.sampled_from(["*", "A100"]), st.integers(0, 8000)),
    cpu_milli=st.none() | st.integers(0, 64000),
    workloads=st.dictionaries(st.sampled_from(["instance", "training"]), st.integers(0, 9)),
)

PEOPLES_STEPS: st.SearchStrategy[Step] = st.one_of(
    st.builds(register, people, platform_roles),
    st.builds(change_user, people, platform_roles, people),
    st.builds(delete_user, people, people),
    st.just(create),
    st.builds(change, st.sampled_from(["One", "Two"])),
    st.builds(set_member, people, roles),
    st.builds(set_member, people, roles),
    st.builds(remove_member, people),
    st.sampled_from([archive, vacate, delete]),
)

LIMITS_STEPS: st.SearchStrategy[Step] = st.one_of(
    st.builds(bound, scopes, limits), st.builds(bound, scopes, limits), st.builds(unbound, scopes)
)
CLUSTERS_STEPS: st.SearchStrategy[Step] = st.one_of(
    st.builds(enrol, clusters), st.builds(introduce, clusters), st.builds(retire, clusters)
)
STEPS = st.one_of(PEOPLES_STEPS, LIMITS_STEPS, CLUSTERS_STEPS)


def lived(steps: Sequence[Step]) -> Life:
    """Take steps one after another, after a beginning without which nothing happens."""
    life = Life()
    for step in (register("user_ada", api.PLATFORM_ROLE_ADMIN), create, *steps):
        life.take(step)
    return life


END: tuple[Step, ...] = (archive, vacate, delete)
# Turns that dice alone seldom take: who had limits is gone, limits are cleared, a cluster is retired.
TURNS: tuple[tuple[Step, ...], ...] = (
    (
        register("user_bob", api.PLATFORM_ROLE_USER),
        bound("users/user_bob", api.Limits(cpu_milli=4000)),
        delete_user("user_bob", "user_ada"),
    ),
    (bound("projects/-", api.Limits(cpu_milli=8000)), unbound("projects/-")),
    (enrol(CLUSTERS[0]), retire(CLUSTERS[0])),
)
# Some lives go to their end, which dice alone seldom find, too; what is chosen first is found most.
LIVES = st.builds(
    lambda end, turn, steps, limits, clusters, after: lived(
        [*steps, *turn, *limits, *clusters, *END[:end], *after]
    ),
    st.integers(0, len(END)),
    st.sampled_from(((), *TURNS)),
    st.lists(PEOPLES_STEPS, max_size=25),
    st.lists(LIMITS_STEPS, max_size=8),
    st.lists(CLUSTERS_STEPS, max_size=5),
    st.lists(STEPS, max_size=5),
)
