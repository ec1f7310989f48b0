"""Projects and the people in them, what they may hold, and the clusters on which work may run."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING

from fermion.api.projects import v1 as api
from fermion.api.projects.v1 import service_pb2_grpc as stubs

if TYPE_CHECKING:
    from fermion.aio.client import AsyncLine

PAGE_SIZE = 1000


class Projects:
    """Where resources, members and bills are kept together."""

    def __init__(self, line: AsyncLine) -> None:
        self._line = line
        self._stub = stubs.ProjectServiceStub(line.channel)

    async def create(self, project_id: str, project: api.Project) -> api.Project:
        """Create a project; you become its admin."""
        request = api.CreateProjectRequest(project_id=project_id, project=project)
        return (await self._line.ask(self._stub.CreateProject, request)).project

    async def get(self, project: str) -> api.Project:
        """Read one."""
        request = api.GetProjectRequest(name=f"projects/{project}")
        return (await self._line.ask(self._stub.GetProject, request)).project

    async def list(self, filter: str = "", order_by: str = "") -> AsyncIterator[api.Project]:
        """Every project that you may see, page by page."""
        request = api.ListProjectsRequest(filter=filter, order_by=order_by, page_size=PAGE_SIZE)
        while True:
            page = await self._line.ask(self._stub.ListProjects, request)
            for project in page.projects:
                yield project
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    def watch(self, resume_token: str = "") -> AsyncIterator[api.WatchProjectsResponse]:
        """
        Follow changes, also over restarts of the platform; ends only by an error or by its caller.

        Where the journal was restored meanwhile (RESUME_TOKEN_EXPIRED), begin anew.
        """
        request = api.WatchProjectsRequest(resume_token=resume_token, send_initial=True)
        return self._line.follow(self._stub.WatchProjects, request, _go_on)

    async def update(
        self, project: api.Project, paths: Sequence[str], etag: str = ""
    ) -> api.Project:
        """Change what `paths` name."""
        request = api.UpdateProjectRequest(project=project, etag=etag)
        request.update_mask.paths.extend(paths)
        return (await self._line.ask(self._stub.UpdateProject, request)).project

    async def archive(self, project: str, etag: str = "") -> api.Project:
        """Refuse new work, and stop what lives."""
        request = api.ArchiveProjectRequest(name=f"projects/{project}", etag=etag)
        return (await self._line.ask(self._stub.ArchiveProject, request)).project

    async def delete(self, project: str, etag: str = "") -> None:
        """Delete an archived project that every service has left."""
        request = api.DeleteProjectRequest(name=f"projects/{project}", etag=etag)
        await self._line.ask(self._stub.DeleteProject, request)


class Members:
    """Users' roles in one project."""

    def __init__(self, line: AsyncLine) -> None:
        self._line = line
        self._stub = stubs.ProjectServiceStub(line.channel)

    async def set(self, project: str, user: str, role: api.Role.ValueType) -> api.Member:
        """Give a user a role."""
        request = api.SetMemberRequest(
            parent=f"projects/{project}", user=f"users/{user}", role=role
        )
        return (await self._line.ask(self._stub.SetMember, request)).member

    async def list(self, project: str) -> AsyncIterator[api.Member]:
        """Every member of a project."""
        request = api.ListMembersRequest(parent=f"projects/{project}", page_size=PAGE_SIZE)
        while True:
            page = await self._line.ask(self._stub.ListMembers, request)
            for member in page.members:
                yield member
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def remove(self, project: str, user: str) -> None:
        """Take a user's role away."""
        request = api.RemoveMemberRequest(name=f"projects/{project}/members/{user}")
        await self._line.ask(self._stub.RemoveMember, request)


class Users:
    """People who use the platform."""

    def __init__(self, line: AsyncLine) -> None:
        self._line = line
        self._stub = stubs.UserServiceStub(line.channel)

    async def who_am_i(self) -> api.WhoAmIResponse:
        """Who calls, with every role."""
        return await self._line.ask(self._stub.WhoAmI, api.WhoAmIRequest())

    async def create(self, user_id: str, user: api.User) -> api.User:
        """Register a user."""
        request = api.CreateUserRequest(user_id=user_id, user=user)
        return (await self._line.ask(self._stub.CreateUser, request)).user

    async def get(self, user: str) -> api.User:
        """Read one."""
        request = api.GetUserRequest(name=f"users/{user}")
        return (await self._line.ask(self._stub.GetUser, request)).user

    async def list(self, filter: str = "", order_by: str = "") -> AsyncIterator[api.User]:
        """Every user, page by page."""
        request = api.ListUsersRequest(filter=filter, order_by=order_by, page_size=PAGE_SIZE)
        while True:
            page = await self._line.ask(self._stub.ListUsers, request)
            for user in page.users:
                yield user
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def update(self, user: api.User, paths: Sequence[str], etag: str = "") -> api.User:
        """Change display_name, email or platform_role."""
        request = api.UpdateUserRequest(user=user, etag=etag)
        request.update_mask.paths.extend(paths)
        return (await self._line.ask(self._stub.UpdateUser, request)).user

    async def delete(self, user: str, etag: str = "") -> None:
        """Take a user out for good."""
        request = api.DeleteUserRequest(name=f"users/{user}", etag=etag)
        await self._line.ask(self._stub.DeleteUser, request)


class Tokens:
    """API tokens of a user."""

    def __init__(self, line: AsyncLine) -> None:
        self._line = line
        self._stub = stubs.UserServiceStub(line.channel)

    async def create(
        self, user: str, description: str = "", ttl: timedelta | None = None
    ) -> api.CreateTokenResponse:
        """Issue a token; the signed one is answered once."""
        request = api.CreateTokenRequest(parent=f"users/{user}", description=description)
        if ttl is not None:
            request.ttl.FromTimedelta(ttl)
        return await self._line.ask(self._stub.CreateToken, request)

    async def list(self, user: str) -> AsyncIterator[api.Token]:
        """Every token of a user, newest first."""
        request = api.ListTokensRequest(parent=f"users/{user}", page_size=PAGE_SIZE)
        while True:
            page = await self._line.ask(self._stub.ListTokens, request)
            for token in page.tokens:
                yield token
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def revoke(self, user: str, token_uid: str) -> api.Token:
        """End a token now."""
        request = api.RevokeTokenRequest(name=f"users/{user}/tokens/{token_uid}")
        return (await self._line.ask(self._stub.RevokeToken, request)).token


class Keys:
    """Public keys that tokens are checked with."""

    def __init__(self, line: AsyncLine) -> None:
        self._line = line
        self._stub = stubs.KeyServiceStub(line.channel)

    async def get(self) -> api.GetKeysResponse:
        """The keys, also as a JSON Web Key Set."""
        return await self._line.ask(self._stub.GetKeys, api.GetKeysRequest())

    async def add(self, kid: str, public_key: bytes) -> api.SigningKey:
        """Accept tokens of one more Ed25519 key, 32 bytes."""
        request = api.AddSigningKeyRequest(key=api.SigningKey(kid=kid, public_key=public_key))
        return (await self._line.ask(self._stub.AddSigningKey, request)).key

    async def remove(self, kid: str) -> None:
        """Refuse tokens of a key from now on."""
        request = api.RemoveSigningKeyRequest(kid=kid)
        await self._line.ask(self._stub.RemoveSigningKey, request)


class Quotas:
    """
    How much may be held at a time; `scope` is `projects/{project}` or `users/{user}`.

    `projects/-` and `users/-` stand for each that has no limits of its own.
    """

    def __init__(self, line: AsyncLine) -> None:
        self._line = line
        self._stub = stubs.QuotaServiceStub(line.channel)

    async def get(self, scope: str) -> api.Quota:
        """Read the limits in force: its own, else the inherited ones."""
        request = api.GetQuotaRequest(name=f"{scope}/quota")
        return (await self._line.ask(self._stub.GetQuota, request)).quota

    async def list(self) -> AsyncIterator[api.Quota]:
        """Every limit that was set and that you may see, page by page."""
        request = api.ListQuotasRequest(page_size=PAGE_SIZE)
        while True:
            page = await self._line.ask(self._stub.ListQuotas, request)
            for quota in page.quotas:
                yield quota
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def set(
        self, scope: str, limits: api.Limits, etag: str = "", *, validate_only: bool = False
    ) -> api.Quota:
        """Set the whole of a scope's limits: what is not said is not bounded."""
        request = api.SetQuotaRequest(
            quota=api.Quota(name=f"{scope}/quota", limits=limits),
            etag=etag,
            validate_only=validate_only,
        )
        return (await self._line.ask(self._stub.SetQuota, request)).quota

    async def clear(self, scope: str, etag: str = "") -> api.Quota:
        """Take a scope's own limits away; answers those that count from then on."""
        request = api.ClearQuotaRequest(name=f"{scope}/quota", etag=etag)
        return (await self._line.ask(self._stub.ClearQuota, request)).quota


class Clusters:
    """The clusters on which work may run."""

    def __init__(self, line: AsyncLine) -> None:
        self._line = line
        self._stub = stubs.ClusterServiceStub(line.channel)

    async def list(self) -> AsyncIterator[api.Cluster]:
        """Every cluster, also those that were retired."""
        request = api.ListClustersRequest(page_size=PAGE_SIZE)
        while True:
            page = await self._line.ask(self._stub.ListClusters, request)
            for cluster in page.clusters:
                yield cluster
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def enrol(self, cluster_id: str) -> api.Cluster:
        """Let work run on a cluster, also on one that was retired."""
        request = api.EnrolClusterRequest(cluster_id=cluster_id)
        return (await self._line.ask(self._stub.EnrolCluster, request)).cluster

    async def retire(self, cluster_id: str) -> api.Cluster:
        """Give a cluster no more work."""
        request = api.RetireClusterRequest(name=f"clusters/{cluster_id}")
        return (await self._line.ask(self._stub.RetireCluster, request)).cluster


def _go_on(request: api.WatchProjectsRequest, change: api.WatchProjectsResponse) -> None:
    if change.resume_token:
        request.resume_token = change.resume_token
