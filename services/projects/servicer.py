"""Answers callers: finds the streams, lets the aggregate decide, shows what came of it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final, TypeVar

from google.protobuf.message import Message

from chassis import ids
from chassis.clock import milliseconds
from chassis.command import rehearse, transact
from chassis.editing import must_be_changeable
from chassis.envelope import Recorded
from chassis.keys import PublicKey, SigningKey, format_jwks
from chassis.listing import Filter, Order, PageToken
from chassis.refusals import Missing, Refused
from chassis.rpc import Context, answer_position, caller, meta_of, request_of
from chassis.service import Kernel
from chassis.watch import Kind, Watching
from fermion.api.projects import v1 as api
from fermion.api.projects.v1 import service_pb2_grpc
from services.projects import aggregate, enrolment, projection, quota
from services.projects.aggregate import Bounds, Fact, Project, User
from services.projects.config import Settings
from services.projects.enrolment import Cluster
from services.projects.quota import Quota

PAGE_SIZE: Final = 100
TOKEN_TTL: Final = timedelta(days=30)

STATES: Final = {
    name.removeprefix("STATE_"): number for name, number in api.Project.State.items() if number
}
CHANGES: Final = {
    Kind.INITIAL: api.WatchProjectsResponse.CHANGE_INITIAL,
    Kind.UPDATED: api.WatchProjectsResponse.CHANGE_UPDATED,
    Kind.DELETED: api.WatchProjectsResponse.CHANGE_DELETED,
    Kind.BOOKMARK: api.WatchProjectsResponse.CHANGE_BOOKMARK,
}
USER_PATHS: Final = ("display_name", "email", "platform_role")
PROJECT_PATHS: Final = ("display_name", "description", "labels")
# Whose members see what a project may hold; who sees bills alone does not.
SEES_QUOTAS: Final = (api.ROLE_VIEWER, api.ROLE_EDITOR, api.ROLE_ADMIN)
# Whose quota it may be: how the row is found, and what is said where there is none.
OWNERS: Final[Mapping[str, tuple[str, Callable[[str], Missing]]]] = {
    "projects": ("find_project", aggregate.project_missing),
    "users": ("find_user", aggregate.user_missing),
}

State = TypeVar("State")


class _Servicer:
    """What the three services of this file share: how a mutation is decided and answered."""

    def __init__(self, kernel: Kernel[Settings]) -> None:
        self._kernel = kernel
        self._journal = kernel.journal
        self._database = kernel.database
        self._queries = kernel.queries
        self._clock = kernel.clock

    async def _decide(
        self,
        request: Message,
        context: Context,
        streams: str | Sequence[str],
        fold: Callable[..., State],
        decide: Callable[[State], Sequence[Fact]],
        preview: Callable[[State, Sequence[Message]], State],
    ) -> State:
        if getattr(request, "validate_only", False):
            return await rehearse(
                self._journal, streams, fold, decide, place=aggregate.place, preview=preview
            )
        decided = await transact(
            self._journal,
            streams,
            fold,
            decide,
            meta=meta_of(context, request),
            request=request_of(context, request),
        )
        answer_position(context, self._journal.name, decided.position)
        return decided.state

    async def _user_uid(self, name: str) -> str:
        """The uid of `users/{user}/…`; a name that nobody ever had is `Missing`."""
        user = name.split("/")[1]
        uid = await self._journal.holder("users", user)
        if uid is None:
            raise aggregate.user_missing(user)
        return uid

    async def _project_uid(self, name: str) -> str:
        """The uid of `projects/{project}/…`; a name that none ever had is `Missing`."""
        project = name.split("/")[1]
        uid = await self._journal.holder("projects", project)
        if uid is None:
            raise aggregate.project_missing(project)
        return uid


class UserServicer(_Servicer, service_pb2_grpc.UserServiceServicer):
    """Every RPC of `UserService`; who may call has been checked before."""

    async def CreateUser(
        self, request: api.CreateUserRequest, context: Context
    ) -> api.CreateUserResponse:
        """
        Register a user. The profile is written first: a crash between leaves a profile without a
        user, which is forgotten at a later start, and never a user without a name.
        """
        uid = ids.fresh("user", milliseconds(self._clock.now()))
        asked = request.user
        decide = partial(
            aggregate.register, uid=uid, user=request.user_id, platform_role=asked.platform_role
        )
        if not request.validate_only:
            await self._write_profile(uid, asked.display_name, asked.email)
        try:
            user = await self._decide(
                request, context, f"user/{uid}", aggregate.fold_user, decide, self._preview
            )
        except Refused:
            await self._database.execute(self._queries["forget_profile"], uid)
            raise
        if user.uid != uid:
            # A retry: the first call's user is the one.
            await self._database.execute(self._queries["forget_profile"], uid)
        shown = aggregate.view_user(user, asked.display_name, asked.email)
        return api.CreateUserResponse(user=shown)

    async def GetUser(self, request: api.GetUserRequest, context: Context) -> api.GetUserResponse:
        """Read one user."""
        return api.GetUserResponse(user=await self._find(request.name))

    async def ListUsers(
        self, request: api.ListUsersRequest, context: Context
    ) -> api.ListUsersResponse:
        """Read a page of users."""
        wanted = Filter.parse(request.filter, states={})
        order = Order.parse(request.order_by)
        scope = json.dumps(["users", request.filter, request.order_by])
        after = PageToken.decode(request.page_token, scope)[0] if request.page_token else None
        size = request.page_size or PAGE_SIZE
        rows = await self._database.fetch(
            self._queries[f"list_users_by_{order.column}"],
            wanted.name,
            wanted.name_prefix or "",
            wanted.created_after,
            wanted.created_before,
            after,
            size + 1,
            order.descending,
        )
        response = api.ListUsersResponse(users=[projection.user(row) for row in rows[:size]])
        if len(rows) > size:
            last = rows[size - 1]
            key = last["name"] if order.column == "name" else last["uid"]
            response.next_page_token = PageToken.encode(key, last["uid"], scope)
        return response

    async def UpdateUser(
        self, request: api.UpdateUserRequest, context: Context
    ) -> api.UpdateUserResponse:
        """Change a profile, which is no fact but is counted by one, or the platform role."""
        paths = _paths(request, request.user, USER_PATHS)
        before = await self._find(request.user.name)
        role = request.user.platform_role if "platform_role" in paths else None
        display_name = request.user.display_name if "display_name" in paths else before.display_name
        email = request.user.email if "email" in paths else before.email
        profile = (display_name, email) != (before.display_name, before.email)
        decide = partial(
            aggregate.change_user,
            profile=profile,
            platform_role=role or None,
            etag=request.etag,
        )
        user = await self._as_another(request, context, before.uid, decide)
        if profile and not request.validate_only:
            await self._write_profile(user.uid, display_name, email)
        return api.UpdateUserResponse(user=aggregate.view_user(user, display_name, email))

    async def DeleteUser(
        self, request: api.DeleteUserRequest, context: Context
    ) -> api.DeleteUserResponse:
        """Take a user out for good, then forget the person; a start forgets what a crash left."""
        uid = await self._user_uid(request.name)
        decide = partial(aggregate.delete_user, etag=request.etag)
        await self._as_another(request, context, uid, decide)
        if not request.validate_only:
            await self._database.execute(self._queries["forget_profile"], uid)
        return api.DeleteUserResponse()

    async def WhoAmI(self, request: api.WhoAmIRequest, context: Context) -> api.WhoAmIResponse:
        """Tell who calls, with every role."""
        who = caller(context)
        if who.kind == "service":
            return api.WhoAmIResponse(
                service=who.uid.removeprefix("service:"), token_uid=who.token_uid
            )
        rows = await self._database.fetch(self._queries["list_memberships"], who.uid)
        return api.WhoAmIResponse(
            user=await self._find(f"users/{who.user}"),
            memberships=[projection.member(row) for row in rows],
            token_uid=who.token_uid,
        )

    async def CreateToken(
        self, request: api.CreateTokenRequest, context: Context
    ) -> api.CreateTokenResponse:
        """Issue a token. It is signed from the fact, so a retry is answered with the same one."""
        signing = self._signing_key()
        user_uid = await self._user_uid(request.parent)
        user = request.parent.removeprefix("users/")
        now = self._clock.now().replace(microsecond=0)
        ttl = request.ttl.ToTimedelta() if request.HasField("ttl") else TOKEN_TTL
        uid = ids.fresh("tok", milliseconds(now))
        token, _ = await self._decide(
            request,
            context,
            (f"token/{uid}", f"user/{user_uid}"),
            lambda tokens, users: (aggregate.fold_token(tokens), aggregate.fold_user(users)),
            partial(
                aggregate.issue,
                uid=uid,
                user=user,
                description=request.description,
                kid=signing.kid,
                issue_time=now,
                expire_time=now + ttl,
            ),
            lambda before, facts: (
                _fold_on(before[0], facts, lambda t, f, _: aggregate.evolve_token(t, f), now),
                before[1],
            ),
        )
        response = api.CreateTokenResponse(token=aggregate.view_token(token, user))
        if not request.validate_only:
            assert token.issue_time is not None
            assert token.expire_time is not None
            response.signed_token = signing.sign(
                subject=token.user_uid,
                kind="user",
                uid=token.uid,
                issued_time=token.issue_time,
                expire_time=token.expire_time,
            )
        return response

    async def ListTokens(
        self, request: api.ListTokensRequest, context: Context
    ) -> api.ListTokensResponse:
        """Read a page of a user's tokens, newest first."""
        user_uid = await self._user_uid(request.parent)
        after = (
            PageToken.decode(request.page_token, request.parent)[1] if request.page_token else ""
        )
        size = request.page_size or PAGE_SIZE
        rows = await self._database.fetch(self._queries["list_tokens"], user_uid, after, size + 1)
        user = request.parent.removeprefix("users/")
        response = api.ListTokensResponse(
            tokens=[projection.token(row, user) for row in rows[:size]]
        )
        if len(rows) > size:
            uid = rows[size - 1]["uid"]
            response.next_page_token = PageToken.encode(uid, uid, request.parent)
        return response

    async def RevokeToken(
        self, request: api.RevokeTokenRequest, context: Context
    ) -> api.RevokeTokenResponse:
        """End a token now."""
        _, user, _, uid = request.name.split("/")
        decide = partial(
            aggregate.revoke, user_uid=await self._user_uid(request.name), name=request.name
        )
        token = await self._decide(
            request,
            context,
            f"token/{uid}",
            aggregate.fold_token,
            decide,
            lambda before, facts: _fold_on(
                before, facts, lambda t, f, _: aggregate.evolve_token(t, f), self._clock.now()
            ),
        )
        return api.RevokeTokenResponse(token=aggregate.view_token(token, user))

    async def _as_another(
        self,
        request: Message,
        context: Context,
        uid: str,
        decide: Callable[[tuple[User, User]], Sequence[Fact]],
    ) -> User:
        """Decide on a user together with the one who asks."""
        user, _ = await self._decide(
            request,
            context,
            (f"user/{uid}", f"user/{caller(context).uid}"),
            lambda users, actors: (aggregate.fold_user(users), aggregate.fold_user(actors)),
            decide,
            lambda before, facts: (self._preview(before[0], facts), before[1]),
        )
        return user

    async def _find(self, name: str) -> api.User:
        user = name.removeprefix("users/")
        row = await self._database.fetchrow(self._queries["find_user"], user)
        if row is None:
            raise aggregate.user_missing(user)
        return projection.user(row)

    async def _write_profile(self, uid: str, display_name: str, email: str) -> None:
        await self._database.execute(self._queries["write_profile"], uid, display_name, email)

    def _preview(self, user: User, facts: Sequence[Message]) -> User:
        return _fold_on(user, facts, aggregate.evolve_user, self._clock.now())

    def _signing_key(self) -> SigningKey:
        if self._kernel.signing_key is None:
            raise Refused(
                "SIGNING_KEY_MISSING",
                "This process has no signing key, so it can issue no tokens.",
                next_step="Name the key's file in FERMION_SIGNING_KEY and start it again.",
            )
        return self._kernel.signing_key


class ProjectServicer(_Servicer, service_pb2_grpc.ProjectServiceServicer):
    """Every RPC of `ProjectService`; who may call has been checked before."""

    def __init__(self, kernel: Kernel[Settings]) -> None:
        super().__init__(kernel)
        self.watching: Watching[api.Project] = Watching(kernel.journal, kernel.clock)

    async def CreateProject(
        self, request: api.CreateProjectRequest, context: Context
    ) -> api.CreateProjectResponse:
        """Create a project under a name that was never used."""
        uid = ids.fresh("proj", milliseconds(self._clock.now()))
        decide = partial(
            aggregate.create,
            uid=uid,
            project=request.project_id,
            asked=request.project,
            creator_uid=caller(context).uid,
        )
        project = await self._on(request, context, uid, decide)
        return api.CreateProjectResponse(project=aggregate.view(project))

    async def GetProject(
        self, request: api.GetProjectRequest, context: Context
    ) -> api.GetProjectResponse:
        """Read one project."""
        name = request.name.removeprefix("projects/")
        row = await self._database.fetchrow(self._queries["find_project"], name)
        if row is None:
            raise aggregate.project_missing(name)
        return api.GetProjectResponse(project=projection.resource(row))

    async def ListProjects(
        self, request: api.ListProjectsRequest, context: Context
    ) -> api.ListProjectsResponse:
        """Read a page of the projects that the caller may see."""
        wanted = Filter.parse(request.filter, states=STATES)
        order = Order.parse(request.order_by)
        scope = json.dumps([caller(context).uid, request.filter, request.order_by])
        after = PageToken.decode(request.page_token, scope)[0] if request.page_token else None
        size = request.page_size or PAGE_SIZE
        by_name = order.column == "name"
        rows = await self._database.fetch(
            self._queries["list_projects"],
            _sees(context),
            wanted.name,
            wanted.name_prefix or "",
            json.dumps(wanted.labels),
            list(wanted.states),
            wanted.created_after,
            wanted.created_before,
            after,
            by_name,
            order.descending,
            size + 1,
        )
        response = api.ListProjectsResponse(
            projects=[projection.resource(row) for row in rows[:size]]
        )
        if len(rows) > size:
            last = rows[size - 1]
            key = last["name"] if by_name else last["uid"]
            response.next_page_token = PageToken.encode(key, last["uid"], scope)
        return response

    async def WatchProjects(
        self, request: api.WatchProjectsRequest, context: Context
    ) -> AsyncIterator[api.WatchProjectsResponse]:
        """Send each project that the caller may see once a change."""
        sees = _sees(context)
        shown: dict[str, str] = {row.uid: row.name for row in await self._visible(sees)}

        async def current(uids: Sequence[str]) -> Mapping[str, api.Project]:
            rows = await self._database.fetch(self._queries["find_projects"], list(uids), sees)
            return {row["uid"]: projection.resource(row) for row in rows}

        async def initial() -> list[tuple[str, api.Project]]:
            return [(project.uid, project) for project in await self._visible(sees)]

        changes = self.watching.follow(
            token=request.resume_token,
            send_initial=request.send_initial,
            project=None,
            touched=_touched,
            current=current,
            initial=initial,
            whose=sees or "",
        )
        async for change in changes:
            if change.resource is not None:
                shown[change.uid] = change.resource.name
            if change.kind is Kind.DELETED and change.uid not in shown:
                # Somebody else's project: not even that it is gone may be known.
                continue
            response = api.WatchProjectsResponse(
                change=CHANGES[change.kind], project=change.resource, resume_token=change.token
            )
            if change.kind is Kind.DELETED:
                response.project.CopyFrom(api.Project(uid=change.uid, name=shown.pop(change.uid)))
            yield response

    async def UpdateProject(
        self, request: api.UpdateProjectRequest, context: Context
    ) -> api.UpdateProjectResponse:
        """Change what a caller set, as far as `update_mask` names it."""
        paths = _paths(request, request.project, PROJECT_PATHS)
        uid = await self._project_uid(request.project.name)

        def decide(now: Project) -> list[Fact]:
            spec = aggregate.view(now)
            for path in paths:
                if path == "labels":
                    spec.labels.clear()
                    spec.labels.update(request.project.labels)
                else:
                    setattr(spec, path, getattr(request.project, path))
            return aggregate.change(now, spec=spec, etag=request.etag)

        project = await self._on(request, context, uid, decide)
        return api.UpdateProjectResponse(project=aggregate.view(project))

    async def ArchiveProject(
        self, request: api.ArchiveProjectRequest, context: Context
    ) -> api.ArchiveProjectResponse:
        """Refuse new work, and let the services stop what lives."""
        uid = await self._project_uid(request.name)
        decide = partial(aggregate.archive, etag=request.etag)
        project = await self._on(request, context, uid, decide)
        return api.ArchiveProjectResponse(project=aggregate.view(project))

    async def DeleteProject(
        self, request: api.DeleteProjectRequest, context: Context
    ) -> api.DeleteProjectResponse:
        """Delete an archived project that every service has left."""
        uid = await self._project_uid(request.name)
        needed = self._kernel.settings.vacated_by
        await self._on(
            request, context, uid, partial(aggregate.delete, etag=request.etag, needed=needed)
        )
        return api.DeleteProjectResponse()

    async def SetMember(
        self, request: api.SetMemberRequest, context: Context
    ) -> api.SetMemberResponse:
        """Give a user a role."""
        uid = await self._project_uid(request.parent)
        user_uid = await self._user_uid(request.user)
        user = request.user.removeprefix("users/")
        project, member = await self._decide(
            request,
            context,
            (f"project/{uid}", f"user/{user_uid}"),
            lambda projects, users: (
                aggregate.fold_project(projects),
                aggregate.fold_user(users),
            ),
            partial(aggregate.set_member, role=request.role, user=user),
            lambda before, facts: (
                aggregate.preview_project(before[0], facts, self._clock.now()),
                before[1],
            ),
        )
        shown = api.Member(
            name=f"projects/{project.project}/members/{user}",
            user=request.user,
            user_uid=member.uid,
            role=project.members[user_uid],
        )
        row = await self._database.fetchrow(self._queries["find_member"], uid, user_uid)
        if row is not None:
            shown.update_time.FromDatetime(row["update_time"])
        return api.SetMemberResponse(member=shown)

    async def ListMembers(
        self, request: api.ListMembersRequest, context: Context
    ) -> api.ListMembersResponse:
        """Read a page of a project's members, by user name."""
        after = (
            PageToken.decode(request.page_token, request.parent)[0] if request.page_token else ""
        )
        size = request.page_size or PAGE_SIZE
        project = request.parent.removeprefix("projects/")
        rows = await self._database.fetch(self._queries["list_members"], project, after, size + 1)
        response = api.ListMembersResponse(members=[projection.member(row) for row in rows[:size]])
        if len(rows) > size:
            name = rows[size - 1]["user_name"]
            response.next_page_token = PageToken.encode(name, "", request.parent)
        return response

    async def RemoveMember(
        self, request: api.RemoveMemberRequest, context: Context
    ) -> api.RemoveMemberResponse:
        """Take a user's role away."""
        user = request.name.split("/")[3]
        uid = await self._project_uid(request.name)
        user_uid = await self._user_uid(f"users/{user}")
        decide = partial(aggregate.remove_member, user_uid=user_uid, user=user)
        await self._on(request, context, uid, decide)
        return api.RemoveMemberResponse()

    async def _on(
        self,
        request: Message,
        context: Context,
        uid: str,
        decide: Callable[[Project], Sequence[Fact]],
    ) -> Project:
        return await self._decide(
            request,
            context,
            f"project/{uid}",
            aggregate.fold_project,
            decide,
            partial(_preview_now, at=self._clock.now()),
        )

    async def _visible(self, sees: str | None) -> list[api.Project]:
        rows = await self._database.fetch(self._queries["list_all_projects"], sees)
        return [projection.resource(row) for row in rows]


class KeyServicer(_Servicer, service_pb2_grpc.KeyServiceServicer):
    """Every RPC of `KeyService`; who may call has been checked before."""

    async def GetKeys(self, request: api.GetKeysRequest, context: Context) -> api.GetKeysResponse:
        """Answer the keys, also to those who are not known."""
        rows = await self._database.fetch(self._queries["list_keys"])
        keys = {row["kid"]: PublicKey(row["kid"], row["public_key"]) for row in rows}
        return api.GetKeysResponse(
            jwks=format_jwks(keys), keys=[projection.key(row) for row in rows]
        )

    async def AddSigningKey(
        self, request: api.AddSigningKeyRequest, context: Context
    ) -> api.AddSigningKeyResponse:
        """Accept tokens of one more key."""
        asked = request.key
        decide = partial(aggregate.add_key, kid=asked.kid, public_key=asked.public_key)
        keys = await self._on_keys(request, context, decide)
        shown = api.SigningKey(kid=asked.kid, public_key=keys.keys[asked.kid])
        shown.create_time.FromDatetime(keys.added[asked.kid])
        return api.AddSigningKeyResponse(key=shown)

    async def RemoveSigningKey(
        self, request: api.RemoveSigningKeyRequest, context: Context
    ) -> api.RemoveSigningKeyResponse:
        """Refuse tokens of a key from now on."""
        await self._on_keys(request, context, partial(aggregate.remove_key, kid=request.kid))
        return api.RemoveSigningKeyResponse()

    async def _on_keys(
        self,
        request: Message,
        context: Context,
        decide: Callable[[aggregate.Keys], Sequence[Fact]],
    ) -> aggregate.Keys:
        now = self._clock.now()
        return await self._decide(
            request,
            context,
            aggregate.KEYS,
            aggregate.fold_keys,
            decide,
            lambda keys, facts: _fold_on(keys, facts, aggregate.evolve_keys, now),
        )


class QuotaServicer(_Servicer, service_pb2_grpc.QuotaServiceServicer):
    """Every RPC of `QuotaService`; who may call has been checked before."""

    async def GetQuota(
        self, request: api.GetQuotaRequest, context: Context
    ) -> api.GetQuotaResponse:
        """Read the limits in force in a scope that is there."""
        kind, name, _ = request.name.split("/")
        uid = name
        if name != quota.ALL:
            finding, missing = OWNERS[kind]
            row = await self._database.fetchrow(self._queries[finding], name)
            if row is None:
                raise missing(name)
            uid = row["uid"]
        scopes = (f"{kind}/{uid}", f"{kind}/{quota.ALL}")
        rows = await self._database.fetch(self._queries["find_quotas"], list(scopes))
        found = {row["scope"]: projection.quota(row) for row in rows}
        own, of_all = (found.get(scope, Quota()) for scope in scopes)
        return api.GetQuotaResponse(quota=quota.view(request.name, own, of_all))

    async def ListQuotas(
        self, request: api.ListQuotasRequest, context: Context
    ) -> api.ListQuotasResponse:
        """Read a page of the limits that were set, of scopes that the caller may see."""
        token_scope = json.dumps(["quotas", caller(context).uid])
        after = PageToken.decode(request.page_token, token_scope)[0] if request.page_token else ""
        size = request.page_size or PAGE_SIZE
        rows = await self._database.fetch(
            self._queries["list_quotas"], _sees(context), list(SEES_QUOTAS), after, size + 1
        )
        response = api.ListQuotasResponse(
            quotas=[quota.view(row["name"], projection.quota(row), Quota()) for row in rows[:size]]
        )
        if len(rows) > size:
            response.next_page_token = PageToken.encode(rows[size - 1]["name"], "", token_scope)
        return response

    async def SetQuota(
        self, request: api.SetQuotaRequest, context: Context
    ) -> api.SetQuotaResponse:
        """Set the whole of a scope's limits."""
        scope = await self._scope(request.quota.name)
        decide = partial(
            aggregate.bound, scope=scope, limits=request.quota.limits, etag=request.etag
        )
        return api.SetQuotaResponse(
            quota=await self._on(request, context, request.quota.name, scope, decide)
        )

    async def ClearQuota(
        self, request: api.ClearQuotaRequest, context: Context
    ) -> api.ClearQuotaResponse:
        """Take a scope's own limits away."""
        scope = await self._scope(request.name)
        decide = partial(aggregate.unbound, scope=scope, etag=request.etag)
        return api.ClearQuotaResponse(
            quota=await self._on(request, context, request.name, scope, decide)
        )

    async def _scope(self, name: str) -> str:
        """The scope of `projects/{project}/quota` or `users/{user}/quota`: it goes by uid."""
        kind, last, _ = name.split("/")
        if last == quota.ALL:
            return f"{kind}/{last}"
        uid = self._project_uid(name) if kind == "projects" else self._user_uid(name)
        return f"{kind}/{await uid}"

    async def _on(
        self,
        request: Message,
        context: Context,
        name: str,
        scope: str,
        decide: Callable[[Bounds], Sequence[Fact]],
    ) -> api.Quota:
        kind, uid = scope.split("/")
        streams: tuple[str, ...] = (f"quota/{scope}",)
        if uid != quota.ALL:
            streams += (f"quota/{kind}/{quota.ALL}", f"{kind.removesuffix('s')}/{uid}")
        now = await self._decide(
            request,
            context,
            streams,
            partial(_fold_bounds, kind),
            decide,
            lambda before, facts: replace(
                before,
                own=_fold_on(
                    before.own, facts, lambda q, f, _: quota.evolve(q, f), self._clock.now()
                ),
            ),
        )
        return quota.view(name, now.own, now.of_all)


class ClusterServicer(_Servicer, service_pb2_grpc.ClusterServiceServicer):
    """Every RPC of `ClusterService`; who may call has been checked before."""

    async def EnrolCluster(
        self, request: api.EnrolClusterRequest, context: Context
    ) -> api.EnrolClusterResponse:
        """Let work run on a cluster."""
        uid = request.cluster_id
        cluster = await self._on(request, context, uid, enrolment.enrol)
        return api.EnrolClusterResponse(cluster=enrolment.view(cluster))

    async def RetireCluster(
        self, request: api.RetireClusterRequest, context: Context
    ) -> api.RetireClusterResponse:
        """Give a cluster no more work."""
        uid = request.name.removeprefix("clusters/")
        cluster = await self._on(request, context, uid, enrolment.retire)
        return api.RetireClusterResponse(cluster=enrolment.view(cluster))

    async def ListClusters(
        self, request: api.ListClustersRequest, context: Context
    ) -> api.ListClustersResponse:
        """Read a page of the clusters, by name."""
        after = PageToken.decode(request.page_token, "clusters")[0] if request.page_token else ""
        size = request.page_size or PAGE_SIZE
        rows = await self._database.fetch(self._queries["list_clusters"], after, size + 1)
        response = api.ListClustersResponse(
            clusters=[projection.cluster(row) for row in rows[:size]]
        )
        if len(rows) > size:
            uid = rows[size - 1]["uid"]
            response.next_page_token = PageToken.encode(uid, uid, "clusters")
        return response

    async def _on(
        self,
        request: Message,
        context: Context,
        uid: str,
        decide: Callable[..., Sequence[Fact]],
    ) -> Cluster:
        now = self._clock.now()
        return await self._decide(
            request,
            context,
            f"cluster/{uid}",
            enrolment.fold,
            partial(decide, uid=uid, at=now),
            lambda before, facts: _fold_on(
                before, facts, lambda c, f, _: enrolment.evolve(c, f), now
            ),
        )


def _fold_bounds(
    kind: str,
    own: Sequence[Recorded],
    of_all: Sequence[Recorded] = (),
    owner: Sequence[Recorded] | None = None,
) -> Bounds:
    """Fold the streams that decide about a quota; that of all has no other beside it."""
    fold = aggregate.fold_project if kind == "projects" else aggregate.fold_user
    return Bounds(quota.fold(own), quota.fold(of_all), None if owner is None else fold(owner))


def _fold_on(
    state: State,
    facts: Sequence[Message],
    evolve: Callable[[State, Any, datetime], State],
    at: datetime,
) -> State:
    """Tell what would follow if these facts were said now."""
    for fact in facts:
        state = evolve(state, fact, at)
    return state


def _preview_now(project: Project, facts: Sequence[Message], at: datetime) -> Project:
    return aggregate.preview_project(project, facts, at)


def _touched(fact: Recorded) -> str | None:
    kind, _, uid = fact.stream.partition("/")
    return uid if kind == "project" else None


def _sees(context: Context) -> str | None:
    """Whose memberships limit what is seen; None for those who see all."""
    who = caller(context)
    sees_all = who.kind == "service" or who.platform_role == api.PLATFORM_ROLE_ADMIN
    return None if sees_all else who.uid


def _paths(
    request: api.UpdateUserRequest | api.UpdateProjectRequest,
    asked: api.User | api.Project,
    known: Sequence[str],
) -> tuple[str, ...]:
    """The fields that an update is about: those of the mask, else those that are set."""
    paths = tuple(request.update_mask.paths)
    must_be_changeable(paths, known)
    if paths:
        return paths
    return tuple(field.name for field, _ in asked.ListFields() if field.name in known)
