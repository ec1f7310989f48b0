"""Who calls, and whether that one may: the one place where callers, projects and roles are checked."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import reduce
from typing import Final

from google.protobuf import descriptor_pool
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message

from chassis.clock import Clock
from chassis.envelope import Recorded
from chassis.keys import PublicKey, Verifier
from chassis.readers import Feed, NewLineage
from chassis.refusals import Denied, Refused, Unauthenticated, Unavailable
from fermion.api.projects import v1 as api

JOURNAL: Final = "projects/0"
ANONYMOUS: Final = "anonymous"

_log = logging.getLogger(__name__)

_INCLUDES: Final[Mapping[int, frozenset[int]]] = {
    api.ROLE_BILLING_VIEWER: frozenset({api.ROLE_BILLING_VIEWER}),
    api.ROLE_VIEWER: frozenset({api.ROLE_BILLING_VIEWER, api.ROLE_VIEWER}),
    api.ROLE_EDITOR: frozenset({api.ROLE_BILLING_VIEWER, api.ROLE_VIEWER, api.ROLE_EDITOR}),
    api.ROLE_ADMIN: frozenset(
        {api.ROLE_BILLING_VIEWER, api.ROLE_VIEWER, api.ROLE_EDITOR, api.ROLE_ADMIN}
    ),
}


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls: a user, a service, or nobody known."""

    uid: str
    kind: str
    user: str = ""
    platform_role: int = api.PLATFORM_ROLE_UNSPECIFIED
    token_uid: str = ""


NOBODY: Final = Caller(ANONYMOUS, ANONYMOUS)


@dataclass(slots=True)
class KnownUser:
    """What a process knows of a user."""

    uid: str
    name: str
    platform_role: int = api.PLATFORM_ROLE_USER


@dataclass(slots=True)
class KnownProject:
    """What a process knows of a project."""

    uid: str
    archived: bool = False
    roles: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class Directory:
    """Users, projects, roles, revoked tokens and keys, folded from the projects journal."""

    verifier: Verifier = field(default_factory=Verifier)
    users: dict[str, KnownUser] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    projects: dict[str, KnownProject] = field(default_factory=dict)
    revoked: set[str] = field(default_factory=set)

    def take(self, fact: Recorded) -> None:
        """Take one fact of the projects journal in; others' kinds change nothing."""
        match fact.message:
            case api.UserRegistered() as said:
                self.users[said.uid] = KnownUser(said.uid, said.user)
                self.names[said.user] = said.uid
            case api.PlatformRoleSet() as said:
                self.users[said.uid].platform_role = said.platform_role
            case api.UserDeleted() as said:
                gone = self.users.pop(said.uid)
                self.names.pop(gone.name, None)
                for project in self.projects.values():
                    project.roles.pop(said.uid, None)
            case api.ProjectCreated() as said:
                self.projects[said.project] = KnownProject(said.uid)
            case api.ProjectArchived() as said:
                self.projects[said.project].archived = True
            case api.ProjectDeleted() as said:
                self.projects.pop(said.project, None)
            case api.MemberSet() as said:
                self.projects[said.project].roles[said.user_uid] = said.role
            case api.MemberRemoved() as said:
                self.projects[said.project].roles.pop(said.user_uid, None)
            case api.TokenRevoked() as said:
                self.revoked.add(said.uid)
            case api.SigningKeyAdded() as said:
                self.verifier.add(PublicKey(said.kid, said.public_key))
            case api.SigningKeyRemoved() as said:
                self.verifier.remove(said.kid)
            case _:
                return


class Callers:
    """
    Follows the projects journal in memory, in every process, so that no call on the way in is made.

    A revocation reaches a process with its lag behind the journal. Before the process has caught
    up for the first time, users are answered CALLERS_BEHIND.
    """

    def __init__(self, feed: Feed, clock: Clock, first_keys: list[PublicKey]) -> None:
        self.position = 0
        self.ready = asyncio.Event()
        self._feed = feed
        self._clock = clock
        self._first_keys = first_keys
        self._moved = asyncio.Event()
        self.directory = Directory()
        self._begin()

    def _begin(self) -> None:
        self.directory = Directory()
        self.position = 0
        for key in self._first_keys:
            self.directory.verifier.add(key)

    async def run(self) -> None:
        """Follow until cancelled; another lineage of the journal is folded anew."""
        while True:
            try:
                async for page in self._feed.pages(self.position, 0):
                    for fact in page:
                        self.directory.take(fact)
                        self.position = fact.position
                    # An empty page before the owner has answered once tells nothing.
                    if not page and self._feed.heard:
                        self.ready.set()
                    self._moved.set()
                    self._moved = asyncio.Event()
            except NewLineage as new:
                _log.warning("the projects journal is of epoch %d now; reading it anew", new.epoch)
                self._begin()

    async def reached(self, position: int, seconds: float) -> bool:
        """Wait until a position is folded; False where it was not in time."""
        deadline = self._clock.monotonic() + seconds
        while self.position < position:
            left = deadline - self._clock.monotonic()
            if left <= 0:
                return False
            try:
                await asyncio.wait_for(self._moved.wait(), left)
            except TimeoutError:
                continue
        return True

    def authenticate(self, authorization: str | None) -> Caller:
        """Tell who a token speaks for; no token is NOBODY, a bad one is `Unauthenticated`."""
        if not authorization:
            return NOBODY
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise Unauthenticated(
                "TOKEN_INVALID",
                "The authorization header is not `Bearer <token>`.",
                next_step="Send a token of this platform as `authorization: Bearer …`.",
            )
        claims = self.directory.verifier.verify(token.strip(), self._clock.now())
        if claims.uid in self.directory.revoked:
            raise Unauthenticated(
                "TOKEN_REVOKED",
                "The token was revoked.",
                next_step="Issue another one: fermion tokens create.",
                token=claims.uid,
            )
        if claims.kind == "service":
            return Caller(
                claims.subject, "service", "", api.PLATFORM_ROLE_SERVICE, token_uid=claims.uid
            )
        return Caller(claims.subject, "user", token_uid=claims.uid)

    def recognise(self, caller: Caller) -> Caller:
        """Fill in what is known of a user; one who is not known is `Unauthenticated`."""
        if caller.kind != "user":
            return caller
        known = self.directory.users.get(caller.uid)
        if known is not None:
            return Caller(caller.uid, "user", known.name, known.platform_role, caller.token_uid)
        if not self.ready.is_set():
            raise Unavailable(
                "CALLERS_BEHIND",
                "This process has not yet read who may do what.",
                next_step="Send the same request again in a moment.",
            )
        raise Unauthenticated(
            "USER_UNKNOWN",
            f"The token speaks for {caller.uid}, who is not a user of this platform (any more).",
            next_step="Ask a platform admin to register you: fermion users create.",
            user=caller.uid,
        )

    def role(self, user_uid: str, project: str) -> int:
        """The role of a user in a project; unspecified where there is none."""
        known = self.directory.projects.get(project)
        return api.ROLE_UNSPECIFIED if known is None else known.roles.get(user_uid, 0)

    def authorise(self, caller: Caller, rule: api.Access, request: Message) -> None:
        """Let an RPC through, or raise `Denied` or `Unauthenticated`."""
        if rule.platform == api.PLATFORM_ROLE_ANONYMOUS:
            return
        if caller.kind == ANONYMOUS:
            raise Unauthenticated(
                "TOKEN_MISSING",
                "This call needs a token.",
                next_step="Send one as `authorization: Bearer …`; `fermion tokens create` issues one.",
            )
        if caller.platform_role == api.PLATFORM_ROLE_ADMIN:
            return
        if rule.self and _last(_field(request, rule.self), "users") == caller.user != "":
            return
        if rule.role:
            resource = _field(request, rule.resource)
            if not resource and rule.bare:
                self._platform(caller, rule.bare)
                return
            self._member(caller, rule.role, _last(resource, "projects"))
            return
        self._platform(caller, rule.platform)

    def _platform(self, caller: Caller, least: int) -> None:
        if least == api.PLATFORM_ROLE_USER:
            return
        if least == api.PLATFORM_ROLE_SERVICE and caller.kind == "service":
            return
        raise Denied(
            "PLATFORM_ROLE_MISSING",
            f"This call needs the platform role {_short(api.PlatformRole.Name(least))}.",  # type: ignore[arg-type]
            next_step="Ask a platform admin.",
            needed=_short(api.PlatformRole.Name(least)),  # type: ignore[arg-type]
        )

    def _member(self, caller: Caller, least: int, project: str) -> None:
        if caller.kind == "service":
            # Services read anywhere and write nowhere: what they decide, they decide on facts.
            if least <= api.ROLE_VIEWER:
                return
        elif least in _INCLUDES.get(self.role(caller.uid, project), frozenset()):
            return
        needed = _short(api.Role.Name(least))  # type: ignore[arg-type]
        raise Denied(
            "PROJECT_ROLE_MISSING",
            f"This call needs the role {needed} in project {project!r}, or there is no such project.",
            next_step=f"Ask an admin of the project: fermion members set USER {needed.lower()} "
            f"-p {project}",
            project=project,
            needed=needed,
        )


def rules(service_names: Iterable[str]) -> dict[str, api.Access]:
    """The access rule of every RPC of these gRPC services, by `/package.Service/Method`."""
    pool = descriptor_pool.Default()
    return {
        f"/{name}/{method.name}": rule_of(method)
        for name in service_names
        for method in pool.FindServiceByName(name).methods
    }


def rule_of(method: MethodDescriptor) -> api.Access:
    """The access rule of one RPC; one without a rule is refused at start (ACCESS_RULE_MISSING)."""
    options = method.GetOptions()
    if not options.HasExtension(api.access):
        raise Refused(
            "ACCESS_RULE_MISSING",
            f"{method.full_name} does not say who may call it.",
            next_step="Give it the option (fermion.api.projects.v1.access).",
            method=method.full_name,
        )
    return options.Extensions[api.access]


def _field(message: Message, path: str) -> str:
    return str(reduce(lambda found, name: getattr(found, name), path.split("."), message))


def _last(name: str, collection: str) -> str:
    parts = name.split("/")
    return parts[1] if len(parts) >= 2 and parts[0] == collection else ""


def _short(name: str) -> str:
    return name.removeprefix("PLATFORM_").removeprefix("ROLE_")
