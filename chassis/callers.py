"""Who calls, and whether that one may: the one place where callers, projects and roles are checked."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from functools import reduce
from typing import Final

from google.protobuf import descriptor_pool
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message

from chassis.clock import Clock
from chassis.envelope import Recorded
from chassis.feed import Feed, LostTail, NewLineage
from chassis.keys import PublicKey, Verifier
from chassis.refusals import (
    Denied,
    Invalid,
    Missing,
    Refused,
    Unauthenticated,
    Unavailable,
    Violation,
)
from fermion.api.projects import v1 as api

# So often a journal that ends before what was read of it is looked at again.
LOST_TAIL_SECONDS = 2.0
JOURNAL: Final = "projects/0"
ANONYMOUS: Final = "anonymous"
# Stands for every project, where a call's own rule allows it (AIP-159).
ALL: Final = "-"

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
    by the service that owns it. A deleted one is as one that never was, but for the calls whose
    rule says who may still make them.
    """

    verifier: Verifier = field(default_factory=Verifier)
    users: dict[str, KnownUser] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    projects: dict[str, KnownProject] = field(default_factory=dict)
    # Deleted ones, with the roles of their ends.
    gone: dict[str, KnownProject] = field(default_factory=dict)
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
                for project in (*self.projects.values(), *self.gone.values()):
                    project.roles.pop(said.uid, None)
            case api.ProjectCreated() as said:
                self.projects[said.project] = KnownProject(said.uid)
            case api.ProjectDeleted() as said:
                self.gone[said.project] = self.projects.pop(said.project)
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
                self._tell()
            except LostTail:
                await asyncio.sleep(LOST_TAIL_SECONDS)

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
        self._tell()

    def _tell(self) -> None:
        self._moved.set()
        self._moved = asyncio.Event()

    async def moved(self) -> None:
        """Return when more of the journal has been folded, or it is read anew."""
        await self._moved.wait()

    async def reached(self, position: int, seconds: float) -> bool:
        """Wait until a position is folded; False where it was not in time."""
        deadline = self._clock.monotonic() + seconds
        while self.position < position:
            left = deadline - self._clock.monotonic()
            if left <= 0:
                return False
            with suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._moved.wait()
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

    def authorise(self, caller: Caller, rule: api.Access, request: Message) -> None:
        """
        Let an RPC through, or raise `Denied` or `Unauthenticated`.

        Who is let in anywhere is told what is not there: `Missing` (PROJECT_NOT_FOUND). Whoever is
        no member hears of a foreign project what he would hear of one that never was.
        """
        if rule.platform == api.PLATFORM_ROLE_ANONYMOUS:
            return
        if caller.kind == ANONYMOUS:
            raise Unauthenticated(
                "TOKEN_MISSING",
                "This call needs a token.",
                next_step="Send one as `authorization: Bearer …`. `fermion up` leaves its admin's in "
                "keys/admin.token of the state folder; any other is issued by a platform admin.",
            )
        if rule.self and _last(_field(request, rule.self), "users") == caller.user != "":
            return
        if not rule.role:
            self._platform(caller, rule.platform)
            return
        resource = _field(request, rule.resource)
        if rule.bare and (not resource or _about_all(resource)):
            self._platform(caller, rule.bare)
            return
        if rule.self and not _last(resource, "projects"):
            # It is about another user, and no project's role helps with that.
            if not _may(caller, rule.role, None):
                self._platform(caller, api.PLATFORM_ROLE_ADMIN)
            return
        self._project(caller, rule, resource)

    def _platform(self, caller: Caller, least: int) -> None:
        if not _has(caller, least):
            raise Denied(
                "PLATFORM_ROLE_MISSING",
                f"This call needs the platform role {_short(api.PlatformRole.Name(least))}.",  # type: ignore[arg-type]
                next_step="Ask a platform admin.",
                needed=_short(api.PlatformRole.Name(least)),  # type: ignore[arg-type]
            )

    def _project(self, caller: Caller, rule: api.Access, resource: str) -> None:
        project = _last(resource, "projects")
        if not project:
            wanted = "must be the name of something in a project: projects/{project}…"
            raise Invalid(
                "FIELD_INVALID",
                f"{rule.resource} is {resource!r}; it {wanted}.",
                violations=(Violation(rule.resource, wanted, "access.resource"),),
                next_step="Change the named fields and send it again.",
                field=rule.resource,
                value=resource,
                rule="access.resource",
            )
        known = self.directory.projects.get(project)
        past = self.directory.gone.get(project) if known is None and rule.gone else None
        if past is not None and _has(caller, rule.gone) and _may(caller, rule.role, past):
            return
        if not _may(caller, rule.role, known):
            raise _no_role(rule.role, project)
        if known is None and project != ALL:
            raise Missing(
                "PROJECT_NOT_FOUND",
                f"There is no project {project!r}.",
                next_step="`fermion projects list` shows those that are there; "
                f"`fermion projects create {project}` makes one.",
                project=project,
            )


def _may(caller: Caller, least: int, project: KnownProject | None) -> bool:
    """Whether a caller may do in a project what needs a role there; None for one that is not there."""
    if caller.platform_role == api.PLATFORM_ROLE_ADMIN:
        return True
    if caller.kind == "service":
        # Services read anywhere and write nowhere: what they decide, they decide on facts.
        return least <= api.ROLE_VIEWER
    role = api.ROLE_UNSPECIFIED if project is None else project.roles.get(caller.uid, 0)
    return least in _INCLUDES.get(role, frozenset())


def _has(caller: Caller, least: int) -> bool:
    """Whether a caller has a role on the platform."""
    match least:
        case api.PLATFORM_ROLE_USER:
            return True
        case api.PLATFORM_ROLE_SERVICE:
            return caller.kind == "service" or caller.platform_role == api.PLATFORM_ROLE_ADMIN
        case _:
            return caller.platform_role == api.PLATFORM_ROLE_ADMIN


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
    if bool(rule.role) != bool(rule.resource) or ((rule.bare or rule.gone) and not rule.role):
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


def _no_role(least: int, project: str) -> Denied:
    needed = _short(api.Role.Name(least))  # type: ignore[arg-type]
    return Denied(
        "PROJECT_ROLE_MISSING",
        f"This call needs the role {needed} in project {project!r}, or there is no such project.",
        next_step=f"Ask an admin of the project: fermion members set USER {needed.lower()} "
        f"-p {project}",
        project=project,
        needed=needed,
    )


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


def _about_all(name: str) -> bool:
    """Whether a name is about all of a collection, as `projects/-/quota` is."""
    return name.split("/")[1:2] == ["-"]


def _short(name: str) -> str:
    return name.removeprefix("PLATFORM_").removeprefix("ROLE_")
