"""Random lives of users and projects, for the tests of their rules and of their rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from google.protobuf.message import Message
from hypothesis import strategies as st

from chassis.refusals import Refused
from fermion.api.projects import v1 as api
from services.projects import aggregate
from services.projects.aggregate import Project, User
from tests.unit.services.history import History

PEOPLE = ("user_ada", "user_bob", "user_cid")
PROJECT = "proj_1"
NEEDED = ("instances",)

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


people = st.sampled_from(PEOPLE)
platform_roles = st.sampled_from([api.PLATFORM_ROLE_USER, api.PLATFORM_ROLE_ADMIN])
roles = st.sampled_from([api.ROLE_BILLING_VIEWER, api.ROLE_VIEWER, api.ROLE_EDITOR, api.ROLE_ADMIN])

STEPS: st.SearchStrategy[Step] = st.one_of(
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


def lived(steps: Sequence[Step]) -> Life:
    """Take steps one after another, after a beginning without which nothing happens."""
    life = Life()
    for step in (register("user_ada", api.PLATFORM_ROLE_ADMIN), create, *steps):
        life.take(step)
    return life


END: tuple[Step, ...] = (archive, vacate, delete)
# Some lives go to their end, which dice alone seldom find.
LIVES = st.builds(
    lambda steps, end, after: lived([*steps, *END[:end], *after]),
    st.lists(STEPS, max_size=25),
    st.integers(0, len(END)),
    st.lists(STEPS, max_size=5),
)
