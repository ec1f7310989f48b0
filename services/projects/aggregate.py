"""
All rules of projects and their people: who there is, who may do what where, how a project ends.

Four nouns: a user, a project with its members, a token, and the platform's keys. A project ends in
three steps, so that nobody's work is cut: it is archived, every service with resources says that
nothing of it lives there any more, and only then may it be deleted. Its name is never used again.
Two more have rooms of their own: what a scope may hold (`quota`), and the clusters (`enrolment`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Final, TypeAlias, assert_never, cast

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from chassis import envelope
from chassis.editing import must_be_seen
from chassis.envelope import NO_PROJECT, Recorded
from chassis.journal import Claim, Place
from chassis.refusals import Denied, Exists, Missing, Refused
from fermion.api.projects import v1 as api
from services.projects import enrolment, quota
from services.projects.quota import Quota

SERVICE: Final = "projects"
KEYS: Final = "key/platform"

UserFact: TypeAlias = (
    api.UserRegistered | api.UserProfileChanged | api.PlatformRoleSet | api.UserDeleted
)
ProjectFact: TypeAlias = (
    api.ProjectCreated
    | api.ProjectChanged
    | api.MemberSet
    | api.MemberRemoved
    | api.ProjectArchived
    | api.ProjectVacatedBy
    | api.ProjectDeleted
)
TokenFact: TypeAlias = api.TokenIssued | api.TokenRevoked
KeyFact: TypeAlias = api.SigningKeyAdded | api.SigningKeyRemoved
Fact: TypeAlias = UserFact | ProjectFact | TokenFact | KeyFact | quota.Fact | enrolment.Fact


@dataclass(frozen=True, slots=True)
class User:
    """A person who uses the platform; without a uid there was never any."""

    uid: str = ""
    user: str = ""
    platform_role: api.PlatformRole.ValueType = api.PLATFORM_ROLE_USER
    generation: int = 0
    deleted: bool = False
    create_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class Project:
    """A project and its members; without a uid there was never any."""

    uid: str = ""
    project: str = ""
    display_name: str = ""
    description: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    state: api.Project.State.ValueType = api.Project.STATE_UNSPECIFIED
    members: Mapping[str, api.Role.ValueType] = field(default_factory=dict)
    vacated_by: frozenset[str] = frozenset()
    generation: int = 0
    deleted: bool = False
    create_time: datetime | None = None
    update_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class Token:
    """An API token; without a uid there was never any."""

    uid: str = ""
    user_uid: str = ""
    description: str = ""
    kid: str = ""
    issue_time: datetime | None = None
    expire_time: datetime | None = None
    revoked: bool = False


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys that tokens are accepted of, with the time each was added."""

    keys: Mapping[str, bytes] = field(default_factory=dict)
    added: Mapping[str, datetime] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Bounds:
    """What decides about one scope's quota: its own, that of all, and whose it is."""

    own: Quota = Quota()
    of_all: Quota = Quota()
    # None where the scope is all projects, or all users.
    owner: Project | User | None = None


# Users


def fold_user(records: Iterable[Recorded]) -> User:
    """Fold a `user/` stream."""
    return envelope.fold(
        lambda user, fact, at: evolve_user(user, cast(UserFact, fact), at), User(), records
    )


def evolve_user(user: User, fact: UserFact, at: datetime) -> User:
    """Take one fact in."""
    match fact:
        case api.UserRegistered():
            return User(fact.uid, fact.user, generation=1, create_time=at)
        case api.UserProfileChanged():
            return replace(user, generation=fact.generation)
        case api.PlatformRoleSet():
            return replace(user, platform_role=fact.platform_role)
        case api.UserDeleted():
            return replace(user, deleted=True)
        case _:
            assert_never(fact)


def register(
    now: User, *, uid: str, user: str, platform_role: api.PlatformRole.ValueType
) -> list[Fact]:
    """Register a user under a name that is free."""
    if now.uid:
        return []
    facts: list[Fact] = [api.UserRegistered(uid=uid, user=user)]
    if platform_role == api.PLATFORM_ROLE_ADMIN:
        facts.append(api.PlatformRoleSet(uid=uid, platform_role=platform_role))
    return facts


def change_user(
    now: tuple[User, User],
    *,
    profile: bool,
    platform_role: api.PlatformRole.ValueType | None,
    etag: str,
) -> list[Fact]:
    """Count a change of the profile, which lives elsewhere, and set the platform role."""
    user, actor = now
    _there_user(user)
    must_be_seen(etag, user.generation)
    facts: list[Fact] = []
    role = user.platform_role if platform_role is None else platform_role
    if role != user.platform_role:
        _another_admin(user, actor, "You cannot change your own platform role.")
    if profile or role != user.platform_role:
        facts.append(api.UserProfileChanged(uid=user.uid, generation=user.generation + 1))
    if role != user.platform_role:
        facts.append(api.PlatformRoleSet(uid=user.uid, platform_role=role))
    return facts


def delete_user(now: tuple[User, User], *, etag: str) -> list[Fact]:
    """Take a user out for good."""
    user, actor = now
    _there_user(user)
    must_be_seen(etag, user.generation)
    _another_admin(user, actor, "You cannot delete yourself.")
    return [api.UserDeleted(uid=user.uid)]


def first_admin(now: User, *, uid: str, user: str) -> list[Fact]:
    """Make an admin of the one whom the settings name; asked only where there is none at all."""
    if not now.uid:
        return register(now, uid=uid, user=user, platform_role=api.PLATFORM_ROLE_ADMIN)
    _there_user(now)
    if now.platform_role == api.PLATFORM_ROLE_ADMIN:
        return []
    return [
        api.UserProfileChanged(uid=now.uid, generation=now.generation + 1),
        api.PlatformRoleSet(uid=now.uid, platform_role=api.PLATFORM_ROLE_ADMIN),
    ]


def view_user(user: User, display_name: str, email: str) -> api.User:
    """Show a user as callers see one."""
    shown = api.User(
        name=f"users/{user.user}",
        uid=user.uid,
        display_name=display_name,
        email=email,
        platform_role=user.platform_role,
        etag=str(user.generation),
        generation=user.generation,
    )
    if user.create_time is not None:
        shown.create_time.FromDatetime(user.create_time)
    return shown


# Projects


def fold_project(records: Iterable[Recorded]) -> Project:
    """Fold a `project/` stream."""
    return envelope.fold(
        lambda project, fact, at: evolve_project(project, cast(ProjectFact, fact), at),
        Project(),
        records,
    )


def evolve_project(project: Project, fact: ProjectFact, at: datetime) -> Project:
    """Take one fact in."""
    match fact:
        case api.ProjectCreated():
            return Project(
                uid=fact.uid,
                project=fact.project,
                display_name=fact.spec.display_name,
                description=fact.spec.description,
                labels=dict(fact.spec.labels),
                state=api.Project.STATE_ACTIVE,
                generation=1,
                create_time=at,
                update_time=at,
            )
        case api.ProjectChanged():
            return replace(
                project,
                display_name=fact.spec.display_name,
                description=fact.spec.description,
                labels=dict(fact.spec.labels),
                generation=fact.generation,
                update_time=at,
            )
        case api.MemberSet():
            return replace(project, members={**project.members, fact.user_uid: fact.role})
        case api.MemberRemoved():
            left = {uid: role for uid, role in project.members.items() if uid != fact.user_uid}
            return replace(project, members=left)
        case api.ProjectArchived():
            return replace(project, state=api.Project.STATE_ARCHIVED, update_time=at)
        case api.ProjectVacatedBy():
            return replace(project, vacated_by=project.vacated_by | {fact.service}, update_time=at)
        case api.ProjectDeleted():
            return replace(project, deleted=True)
        case _:
            assert_never(fact)


def create(
    now: Project, *, uid: str, project: str, asked: api.Project, creator_uid: str
) -> list[Fact]:
    """Create a project; whoever asked is its first admin."""
    if now.uid:
        return []
    spec = api.Project(
        display_name=asked.display_name, description=asked.description, labels=asked.labels
    )
    return [
        api.ProjectCreated(uid=uid, project=project, spec=spec, creator_uid=creator_uid),
        api.MemberSet(project_uid=uid, project=project, user_uid=creator_uid, role=api.ROLE_ADMIN),
    ]


def change(now: Project, *, spec: api.Project, etag: str) -> list[Fact]:
    """Set display name, description and labels; no change says nothing."""
    _active(now)
    must_be_seen(etag, now.generation)
    same = (spec.display_name, spec.description, dict(spec.labels)) == (
        now.display_name,
        now.description,
        dict(now.labels),
    )
    if same:
        return []
    return [
        api.ProjectChanged(
            uid=now.uid,
            project=now.project,
            spec=api.Project(
                display_name=spec.display_name, description=spec.description, labels=spec.labels
            ),
            generation=now.generation + 1,
        )
    ]


def archive(now: Project, *, etag: str) -> list[Fact]:
    """Refuse new work from now on; services stop what lives."""
    _there(now)
    must_be_seen(etag, now.generation)
    if now.state == api.Project.STATE_ARCHIVED:
        return []
    return [api.ProjectArchived(uid=now.uid, project=now.project)]


def vacate(now: Project, *, service: str) -> list[Fact]:
    """Hear from a service that nothing lives there any more; a report never raises."""
    if now.state != api.Project.STATE_ARCHIVED or now.deleted or service in now.vacated_by:
        return []
    return [api.ProjectVacatedBy(uid=now.uid, project=now.project, service=service)]


def delete(now: Project, *, etag: str, needed: Collection[str]) -> list[Fact]:
    """Delete an archived project that every service has left."""
    _there(now)
    must_be_seen(etag, now.generation)
    if now.state != api.Project.STATE_ARCHIVED:
        raise Refused(
            "PROJECT_NOT_ARCHIVED",
            f"Project {now.project!r} is in use.",
            next_step=f"Archive it first: fermion projects archive {now.project}",
            project=now.project,
        )
    left = sorted(set(needed) - now.vacated_by)
    if left:
        raise Refused(
            "PROJECT_NOT_VACATED",
            f"Something of project {now.project!r} still lives in: {', '.join(left)}.",
            next_step="Wait until it has stopped; `fermion projects get` shows who has left.",
            project=now.project,
            services=", ".join(left),
        )
    return [api.ProjectDeleted(uid=now.uid, project=now.project)]


def set_member(now: tuple[Project, User], *, role: api.Role.ValueType, user: str) -> list[Fact]:
    """Give a user a role; a project always keeps an admin."""
    project, member = now
    _active(project)
    if not member.uid or member.deleted:
        raise user_missing(user)
    if project.members.get(member.uid) == role:
        return []
    if role != api.ROLE_ADMIN:
        _keeps_admin(project, member.uid)
    return [
        api.MemberSet(
            project_uid=project.uid, project=project.project, user_uid=member.uid, role=role
        )
    ]


def remove_member(now: Project, *, user_uid: str, user: str) -> list[Fact]:
    """Take a user's role away; a project always keeps an admin."""
    _there(now)
    if user_uid not in now.members:
        raise Missing(
            "MEMBER_NOT_FOUND",
            f"User {user!r} has no role in project {now.project!r}.",
            next_step=f"See who has: fermion members list -p {now.project}",
            project=now.project,
            user=user,
        )
    _keeps_admin(now, user_uid)
    return [api.MemberRemoved(project_uid=now.uid, project=now.project, user_uid=user_uid)]


def view(project: Project) -> api.Project:
    """Show a project as callers see it."""
    shown = api.Project(
        name=f"projects/{project.project}",
        uid=project.uid,
        display_name=project.display_name,
        description=project.description,
        labels=project.labels,
        state=project.state,
        vacated_by=sorted(project.vacated_by),
        etag=str(project.generation),
        generation=project.generation,
    )
    if project.create_time is not None:
        shown.create_time.FromDatetime(project.create_time)
    if project.update_time is not None:
        shown.update_time.FromDatetime(project.update_time)
    return shown


# Tokens


def fold_token(records: Iterable[Recorded]) -> Token:
    """Fold a `token/` stream."""
    return envelope.fold(
        lambda token, fact, _: evolve_token(token, cast(TokenFact, fact)), Token(), records
    )


def evolve_token(token: Token, fact: TokenFact) -> Token:
    """Take one fact in."""
    match fact:
        case api.TokenIssued():
            return Token(
                uid=fact.uid,
                user_uid=fact.user_uid,
                description=fact.description,
                kid=fact.kid,
                issue_time=_time(fact.issue_time),
                expire_time=_time(fact.expire_time),
            )
        case api.TokenRevoked():
            return replace(token, revoked=True)
        case _:
            assert_never(fact)


def issue(
    now: tuple[Token, User],
    *,
    uid: str,
    user: str,
    description: str,
    kid: str,
    issue_time: datetime,
    expire_time: datetime,
) -> list[Fact]:
    """Issue a token for a user who is there."""
    token, owner = now
    if not owner.uid or owner.deleted:
        raise user_missing(user)
    if token.uid:
        return []
    fact = api.TokenIssued(uid=uid, user_uid=owner.uid, description=description, kid=kid)
    fact.issue_time.FromDatetime(issue_time)
    fact.expire_time.FromDatetime(expire_time)
    return [fact]


def revoke(now: Token, *, user_uid: str, name: str) -> list[Fact]:
    """End a token now; twice is once."""
    if not now.uid or now.user_uid != user_uid:
        raise Missing(
            "TOKEN_NOT_FOUND",
            f"There is no token {name!r}.",
            next_step="`fermion tokens list` shows those that are there.",
            name=name,
        )
    return [] if now.revoked else [api.TokenRevoked(uid=now.uid, user_uid=now.user_uid)]


def view_token(token: Token, user: str) -> api.Token:
    """Show what is kept of a token."""
    shown = api.Token(
        name=f"users/{user}/tokens/{token.uid}",
        uid=token.uid,
        description=token.description,
        revoked=token.revoked,
    )
    if token.issue_time is not None and token.expire_time is not None:
        shown.create_time.FromDatetime(token.issue_time)
        shown.expire_time.FromDatetime(token.expire_time)
    return shown


# Keys


def fold_keys(records: Iterable[Recorded]) -> Keys:
    """Fold the stream of all keys."""
    return envelope.fold(
        lambda keys, fact, at: evolve_keys(keys, cast(KeyFact, fact), at), Keys(), records
    )


def evolve_keys(keys: Keys, fact: KeyFact, at: datetime) -> Keys:
    """Take one fact in."""
    match fact:
        case api.SigningKeyAdded():
            return Keys({**keys.keys, fact.kid: fact.public_key}, {**keys.added, fact.kid: at})
        case api.SigningKeyRemoved():
            left = {kid: raw for kid, raw in keys.keys.items() if kid != fact.kid}
            return Keys(left, {kid: at for kid, at in keys.added.items() if kid in left})
        case _:
            assert_never(fact)


def add_key(now: Keys, *, kid: str, public_key: bytes) -> list[Fact]:
    """Accept tokens of one more key; one kid never stands for two keys."""
    known = now.keys.get(kid)
    if known == public_key:
        return []
    if known is not None:
        raise Exists(
            "KEY_ID_TAKEN",
            f"Key id {kid!r} stands for another key.",
            next_step="Choose another kid.",
            kid=kid,
        )
    return [api.SigningKeyAdded(kid=kid, public_key=public_key)]


def remove_key(now: Keys, *, kid: str) -> list[Fact]:
    """Refuse tokens of a key; the last one stays, or nobody could ever call again."""
    if kid not in now.keys:
        raise Missing(
            "KEY_NOT_FOUND",
            f"There is no key {kid!r}.",
            next_step="`fermion keys list` shows those that are there.",
            kid=kid,
        )
    if len(now.keys) == 1:
        raise Refused(
            "LAST_KEY",
            f"{kid!r} is the only key; without it no token would be accepted.",
            next_step="Add another key first.",
            kid=kid,
        )
    return [api.SigningKeyRemoved(kid=kid)]


# Quotas


def bound(now: Bounds, *, scope: str, limits: api.Limits, etag: str) -> Sequence[Fact]:
    """Set what a scope may hold; the project or the user whose it is must be there."""
    project = _bounded(now)
    return quota.state(now.own, scope=scope, project=project, limits=limits, etag=etag)


def unbound(now: Bounds, *, scope: str, etag: str) -> Sequence[Fact]:
    """Take a scope's own limits away; those of all count from then on."""
    project = _bounded(now)
    return quota.clear(now.own, scope=scope, project=project, etag=etag)


def _bounded(now: Bounds) -> str:
    """Refuse where nobody is there to be bounded; the project, where it is one."""
    match now.owner:
        case Project() as owner:
            _active(owner)
            return owner.project
        case User() as owner:
            _there_user(owner)
    return ""


# All


def place(fact: Message) -> Place:
    """Where a fact stands, and which name it takes; names are never given free."""
    match cast(Fact, fact):
        case api.UserRegistered() as said:
            claim = Claim("users", said.user, said.uid, user_exists(said.user))
            return Place(f"user/{said.uid}", NO_PROJECT, claims=(claim,))
        case api.UserProfileChanged() | api.PlatformRoleSet() | api.UserDeleted() as said:
            return Place(f"user/{said.uid}", NO_PROJECT)
        case api.ProjectCreated() as said:
            claim = Claim("projects", said.project, said.uid, project_exists(said.project))
            return Place(f"project/{said.uid}", said.project, claims=(claim,))
        case (
            api.ProjectChanged()
            | api.ProjectArchived()
            | api.ProjectVacatedBy()
            | api.ProjectDeleted() as said
        ):
            return Place(f"project/{said.uid}", said.project)
        case api.MemberSet() | api.MemberRemoved() as said:
            return Place(f"project/{said.project_uid}", said.project)
        case api.TokenIssued() | api.TokenRevoked() as said:
            return Place(f"token/{said.uid}", NO_PROJECT)
        case api.SigningKeyAdded() | api.SigningKeyRemoved():
            return Place(KEYS, NO_PROJECT)
        case api.QuotaSet() | api.QuotaCleared() as said:
            return quota.place(said)
        case api.ClusterEnrolled() | api.ClusterRetired() as said:
            return enrolment.place(said)
        case other:
            assert_never(other)


def user_missing(user: str) -> Missing:
    """There is no such user."""
    return Missing(
        "USER_NOT_FOUND",
        f"There is no user {user!r}.",
        next_step="`fermion users list` shows who there is.",
        user=user,
    )


def user_exists(user: str) -> Exists:
    """The name is taken."""
    return Exists(
        "USER_EXISTS",
        f"There is, or was, a user {user!r}.",
        next_step="Choose another name; names are never used twice.",
        user=user,
    )


def project_missing(project: str) -> Missing:
    """There is no such project."""
    return Missing(
        "PROJECT_NOT_FOUND",
        f"There is no project {project!r}.",
        next_step="`fermion projects list` shows yours.",
        project=project,
    )


def project_exists(project: str) -> Exists:
    """The name is taken."""
    return Exists(
        "PROJECT_EXISTS",
        f"There is, or was, a project {project!r}.",
        next_step="Choose another name; names are never used twice.",
        project=project,
    )


def _there(project: Project) -> None:
    if not project.uid or project.deleted:
        raise project_missing(project.project)


def _active(project: Project) -> None:
    _there(project)
    if project.state == api.Project.STATE_ARCHIVED:
        raise Refused(
            "PROJECT_ARCHIVED",
            f"Project {project.project!r} is archived.",
            next_step="Use another project; an archived one can only be read or deleted.",
            project=project.project,
        )


def _there_user(user: User) -> None:
    if not user.uid or user.deleted:
        raise user_missing(user.user)


def _another_admin(user: User, actor: User, sentence: str) -> None:
    """
    Only another admin takes a user out or changes his role, so one admin is always left.

    The actor is read with the user: of two admins who take each other's role at once, the later
    one is none any more.
    """
    if actor.uid == user.uid:
        raise Refused(
            "USER_IS_CALLER", sentence, next_step="Ask another platform admin.", user=user.user
        )
    if actor.deleted or actor.platform_role != api.PLATFORM_ROLE_ADMIN:
        raise Denied(
            "PLATFORM_ROLE_MISSING",
            "This call needs the platform role ADMIN, and yours was taken away.",
            next_step="Ask a platform admin.",
            needed="ADMIN",
        )


def _keeps_admin(project: Project, user_uid: str) -> None:
    others = [
        uid for uid, role in project.members.items() if role == api.ROLE_ADMIN and uid != user_uid
    ]
    if project.members.get(user_uid) == api.ROLE_ADMIN and not others:
        raise Refused(
            "LAST_ADMIN",
            f"This is the only admin of project {project.project!r}.",
            next_step="Make somebody else an admin first: fermion members set USER admin "
            f"-p {project.project}",
            project=project.project,
        )


def _time(stamp: Timestamp) -> datetime:
    return stamp.ToDatetime(tzinfo=UTC)


def preview_project(now: Project, facts: Sequence[Message], at: datetime) -> Project:
    """Tell what would follow if these facts were said."""
    for fact in facts:
        now = evolve_project(now, cast(ProjectFact, fact), at)
    return now
