"""Who calls, and whether that one may: the one place where callers, projects and roles are checked."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import reduce
from typing import Final

from google.protobuf import descriptor_pool
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message

from chassis.clock import Clock
from chassis.envelope import Recorded
from chassis.feed import Feed, NewLineage
from chassis.keys import PublicKey, Verifier
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
    roles: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class Directory:
    """
    Users, projects, roles, revoked tokens, keys and clusters, folded from the projects journal.

    An archived project is still read by its members, and what may still be changed in it is decided
    by the service that owns it; a deleted one is as one that never was.
    """

    verifier: Verifier = field(default_factory=Verifier)
    users: dict[str, KnownUser] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    projects: dict[str, KnownProject] = field(default_factory=dict)
    revoked: set[str] = field(default_factory=set)
    # Journals of executors, also of those whose clusters are retired: they are read to their ends.
    journals: dict[str, None] = field(default_factory=dict)

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
            case api.ClusterEnrolled() as said:
                self.journals.setdefault(said.journal)
            case _:
                return


class Callers:
    """
    Follows the projects journal in memory, in every process, so that no call on the way in is made.

    A revocation reaches a process with its lag behind the journal. Before the process has caught
    up for the first time, and while it reads a restored journal anew, everybody with a token is
    answered CALLERS_BEHIND: half a history may hold a role that was taken away later. The process
    that owns the journal reads it where it stands, so that this ends whatever else is away.
    """

    def __init__(self, feed: Feed, clock: Clock, first_keys: list[PublicKey]) -> None:
        self.position = 0
        self.ready = asyncio.Event()
        self._feed = feed
        self._clock = clock
        self._first_keys = first_keys
        self._moved = asyncio.Event()
        self._begin()

    def _begin(self) -> None:
        self.ready.clear()
        self.directory = Directory()
        self.position = 0
        for key in self._first_keys:
            self.directory.verifier.add(key)

    async def run(self) -> None:
        """Follow until cancelled; another lineage of the journal is folded anew."""
        while True:
            try:
                async with aclosing(self._feed.pages(self.position, 0)) as pages:
                    async for page in pages:
                        self._take(page)
            except NewLineage as new:
                _log.warning("the projects journal is of epoch %d now; reading it anew", new.epoch)
                self._begin()

    def _take(self, page: Sequence[Recorded]) -> None:
        for fact in page:
            try:
                self.directory.take(fact)
            except KeyError as error:
                # Every such fact leaves less allowed than it says, and never more.
                _log.error("projects/0:%d tells of %s, who was never there", fact.position, error)
            self.position = fact.position
        # Before the owner has answered once, the head is not known.
        if self._feed.heard and self.position >= self._feed.head:
            self.ready.set()
        self._moved.set()
        self._moved = asyncio.Event()

    async def moved(self) -> None:
        """Return when more of the journal has been folded."""
        await self._moved.wait()

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
        try:
            claims = self.directory.verifier.verify(token.strip(), self._clock.now())
        except Unauthenticated:
            if not self.ready.is_set():
                # The key may be one that was added by a fact.
                raise _behind() from None
            raise
        if claims.uid in self.directory.revoked:
            raise Unauthenticated(
                "TOKEN_REVOKED",
                "The token was revoked.",
                next_step="Ask a platform admin for another one: fermion tokens create.",
                token=claims.uid,
            )
        if claims.kind == "service":
            return Caller(
                claims.subject, "service", "", api.PLATFORM_ROLE_SERVICE, token_uid=claims.uid
            )
        return Caller(claims.subject, "user", token_uid=claims.uid)

    def recognise(self, caller: Caller) -> Caller:
        """
        Fill in what is known of a user; one who is not known is `Unauthenticated`.

        Raises `Unavailable` (CALLERS_BEHIND) before it is known who may do what.
        """
        if caller.kind == ANONYMOUS:
            return caller
        if not self.ready.is_set():
            raise _behind()
        if caller.kind != "user":
            return caller
        known = self.directory.users.get(caller.uid)
        if known is not None:
            return Caller(caller.uid, "user", known.name, known.platform_role, caller.token_uid)
        raise Unauthenticated(
            "USER_UNKNOWN",
            f"The token speaks for {caller.uid}, who is not a user of this platform (any more).",
            next_step="Ask a platform admin to register you: fermion users create.",
            user=caller.uid,
        )

    def project_uid(self, project: str) -> str | None:
        """The uid of a project that is there; None where there is none, or none any more."""
        known = self.directory.projects.get(project)
        return None if known is None else known.uid

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
                next_step="Send one as `authorization: Bearer …`. `fermion up` leaves its admin's in "
                "keys/admin.token of the state folder; any other is issued by a platform admin.",
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
    found: dict[str, api.Access] = {}
    for name in service_names:
        for method in pool.FindServiceByName(name).methods:
            if method.client_streaming and not method.server_streaming:
                raise Refused(
                    "STREAM_OF_REQUESTS",
                    f"{method.full_name} takes a stream of requests and gives one answer.",
                    next_step="Let it take one request, or answer with a stream.",
                    method=method.full_name,
                )
            found[f"/{name}/{method.name}"] = rule_of(method)
    return found


def rule_of(method: MethodDescriptor) -> api.Access:
    """
    The access rule of one RPC, refused at start where it cannot be checked.

    ACCESS_RULE_MISSING: there is none. ACCESS_RULE_WRONG: it asks for no role, for two, or for one
    in a project or of a user that no field of the request names.
    """
    options = method.GetOptions()
    if not options.HasExtension(api.access):
        raise Refused(
            "ACCESS_RULE_MISSING",
            f"{method.full_name} does not say who may call it.",
            next_step="Give it the option (fermion.api.projects.v1.access).",
            method=method.full_name,
        )
    rule = options.Extensions[api.access]
    if bool(rule.role) == bool(rule.platform):
        raise _wrong(method, "asks for neither or both of a project's and a platform's role")
    if bool(rule.role) != bool(rule.resource) or (rule.bare and not rule.role):
        raise _wrong(method, "asks for a project's role and names no project, or the other way")
    for path in (rule.resource, rule.self):
        if path and not _is_text(method.input_type, path):
            raise _wrong(method, f"names {path!r}, which is no text field of the request")
    return rule


def _wrong(method: MethodDescriptor, why: str) -> Refused:
    return Refused(
        "ACCESS_RULE_WRONG",
        f"The access rule of {method.full_name} {why}.",
        next_step="Correct its option (fermion.api.projects.v1.access).",
        method=method.full_name,
    )


def _is_text(message: Descriptor, path: str) -> bool:
    name, _, rest = path.partition(".")
    found = message.fields_by_name.get(name)
    if found is None or found.is_repeated:
        return False
    if not rest:
        return bool(found.type == FieldDescriptor.TYPE_STRING)
    return found.message_type is not None and _is_text(found.message_type, rest)


def _behind() -> Unavailable:
    return Unavailable(
        "CALLERS_BEHIND",
        "This process has not yet read who may do what.",
        next_step="Send the same request again in a moment.",
    )


def _field(message: Message, path: str) -> str:
    return str(reduce(lambda found, name: getattr(found, name), path.split("."), message))


def _last(name: str, collection: str) -> str:
    parts = name.split("/")
    return parts[1] if len(parts) >= 2 and parts[0] == collection else ""


def _short(name: str) -> str:
    return name.removeprefix("PLATFORM_").removeprefix("ROLE_")
