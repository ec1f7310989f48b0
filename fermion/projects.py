"""Projects and the people in them: users, members, tokens, keys."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

from google.protobuf.message import Message

from fermion.api.projects import v1 as api
from fermion.api.projects.v1 import service_pb2_grpc as stubs

if TYPE_CHECKING:
    from fermion.client import Client

SERVICE = "projects"
Answer = TypeVar("Answer", bound=Message)


class Projects:
    """Where resources, members and bills are kept together."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def create(self, project_id: str, project: api.Project) -> api.Project:
        """Create a project; you become its admin."""
        request = api.CreateProjectRequest(project_id=project_id, project=project)
        return self._call("CreateProject", request, api.CreateProjectResponse).project

    def get(self, project: str) -> api.Project:
        """Read one."""
        request = api.GetProjectRequest(name=f"projects/{project}")
        return self._call("GetProject", request, api.GetProjectResponse).project

    def list(self, filter: str = "", order_by: str = "") -> Iterator[api.Project]:
        """Every project that you may see, page by page."""
        request = api.ListProjectsRequest(filter=filter, order_by=order_by, page_size=1000)
        while True:
            page = self._call("ListProjects", request, api.ListProjectsResponse)
            yield from page.projects
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    def watch(self, resume_token: str = "") -> Iterator[api.WatchProjectsResponse]:
        """Follow changes of the projects that you may see."""
        request = api.WatchProjectsRequest(resume_token=resume_token, send_initial=True)
        return self._client.stream(
            SERVICE, stubs.ProjectServiceStub, "WatchProjects", request, api.WatchProjectsResponse
        )

    def update(self, project: api.Project, paths: Sequence[str], etag: str = "") -> api.Project:
        """Change what `paths` name."""
        request = api.UpdateProjectRequest(project=project, etag=etag)
        request.update_mask.paths.extend(paths)
        return self._call("UpdateProject", request, api.UpdateProjectResponse).project

    def archive(self, project: str) -> api.Project:
        """Refuse new work, and stop what lives."""
        request = api.ArchiveProjectRequest(name=f"projects/{project}")
        return self._call("ArchiveProject", request, api.ArchiveProjectResponse).project

    def delete(self, project: str) -> None:
        """Delete an archived project that every service has left."""
        request = api.DeleteProjectRequest(name=f"projects/{project}")
        self._call("DeleteProject", request, api.DeleteProjectResponse)

    def _call(self, method: str, request: Message, answer: type[Answer]) -> Answer:
        return self._client.call(SERVICE, stubs.ProjectServiceStub, method, request, answer)


class Members:
    """Users' roles in one project."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def set(self, project: str, user: str, role: api.Role.ValueType) -> api.Member:
        """Give a user a role."""
        request = api.SetMemberRequest(
            parent=f"projects/{project}", user=f"users/{user}", role=role
        )
        return self._call("SetMember", request, api.SetMemberResponse).member

    def list(self, project: str) -> Iterator[api.Member]:
        """Every member of a project."""
        request = api.ListMembersRequest(parent=f"projects/{project}", page_size=1000)
        while True:
            page = self._call("ListMembers", request, api.ListMembersResponse)
            yield from page.members
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    def remove(self, project: str, user: str) -> None:
        """Take a user's role away."""
        request = api.RemoveMemberRequest(name=f"projects/{project}/members/{user}")
        self._call("RemoveMember", request, api.RemoveMemberResponse)

    def _call(self, method: str, request: Message, answer: type[Answer]) -> Answer:
        return self._client.call(SERVICE, stubs.ProjectServiceStub, method, request, answer)


class Users:
    """People who use the platform."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def who_am_i(self) -> api.WhoAmIResponse:
        """Who calls, with every role."""
        return self._call("WhoAmI", api.WhoAmIRequest(), api.WhoAmIResponse)

    def create(self, user_id: str, user: api.User) -> api.User:
        """Register a user."""
        request = api.CreateUserRequest(user_id=user_id, user=user)
        return self._call("CreateUser", request, api.CreateUserResponse).user

    def get(self, user: str) -> api.User:
        """Read one."""
        request = api.GetUserRequest(name=f"users/{user}")
        return self._call("GetUser", request, api.GetUserResponse).user

    def list(self, filter: str = "", order_by: str = "") -> Iterator[api.User]:
        """Every user, page by page."""
        request = api.ListUsersRequest(filter=filter, order_by=order_by, page_size=1000)
        while True:
            page = self._call("ListUsers", request, api.ListUsersResponse)
            yield from page.users
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    def update(self, user: api.User, paths: Sequence[str]) -> api.User:
        """Change display_name, email or platform_role."""
        request = api.UpdateUserRequest(user=user)
        request.update_mask.paths.extend(paths)
        return self._call("UpdateUser", request, api.UpdateUserResponse).user

    def delete(self, user: str) -> None:
        """Take a user out for good."""
        request = api.DeleteUserRequest(name=f"users/{user}")
        self._call("DeleteUser", request, api.DeleteUserResponse)

    def _call(self, method: str, request: Message, answer: type[Answer]) -> Answer:
        return self._client.call(SERVICE, stubs.UserServiceStub, method, request, answer)


class Tokens:
    """API tokens of a user."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def create(
        self, user: str, description: str = "", ttl: timedelta | None = None
    ) -> api.CreateTokenResponse:
        """Issue a token; the signed one is answered once."""
        request = api.CreateTokenRequest(parent=f"users/{user}", description=description)
        if ttl is not None:
            request.ttl.FromTimedelta(ttl)
        return self._call("CreateToken", request, api.CreateTokenResponse)

    def list(self, user: str) -> Iterator[api.Token]:
        """Every token of a user, newest first."""
        request = api.ListTokensRequest(parent=f"users/{user}", page_size=1000)
        while True:
            page = self._call("ListTokens", request, api.ListTokensResponse)
            yield from page.tokens
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    def revoke(self, user: str, token_uid: str) -> api.Token:
        """End a token now."""
        request = api.RevokeTokenRequest(name=f"users/{user}/tokens/{token_uid}")
        return self._call("RevokeToken", request, api.RevokeTokenResponse).token

    def _call(self, method: str, request: Message, answer: type[Answer]) -> Answer:
        return self._client.call(SERVICE, stubs.UserServiceStub, method, request, answer)


class Keys:
    """Public keys that tokens are checked with."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def get(self) -> api.GetKeysResponse:
        """The keys, also as a JSON Web Key Set."""
        return self._client.call(
            SERVICE, stubs.KeyServiceStub, "GetKeys", api.GetKeysRequest(), api.GetKeysResponse
        )
