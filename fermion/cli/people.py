"""Users, their roles in projects, and their tokens."""

from __future__ import annotations

from typing import Annotated, Literal

from cyclopts import App, Parameter

from fermion.api.projects import v1 as api
from fermion.cli import read, show
from fermion.cli.near import with_near
from fermion.cli.options import Options

users = App(name="users", help="People who use the platform.")
members = App(name="members", help="Roles of users in a project.")
tokens = App(name="tokens", help="API tokens.")
keys = App(name="keys", help="Public keys that tokens are checked with.")

RoleName = Literal["viewer", "editor", "admin", "billing-viewer"]
PlatformRoleName = Literal["user", "admin"]
ROLES: dict[str, api.Role.ValueType] = {
    "viewer": api.ROLE_VIEWER,
    "editor": api.ROLE_EDITOR,
    "admin": api.ROLE_ADMIN,
    "billing-viewer": api.ROLE_BILLING_VIEWER,
}
PLATFORM_ROLES: dict[str, api.PlatformRole.ValueType] = {
    "user": api.PLATFORM_ROLE_USER,
    "admin": api.PLATFORM_ROLE_ADMIN,
}


def _role(role: api.Role.ValueType) -> str:
    return show.enum(api.Role.Name(role)).lower().replace("_", "-")


def _platform_role(role: api.PlatformRole.ValueType) -> str:
    return api.PlatformRole.Name(role).removeprefix("PLATFORM_ROLE_").lower()


def whoami(*, options: Options = Options()) -> None:
    """Show who you are and what you may do."""
    with options.client() as client:
        found = client.users.who_am_i()

        def text() -> str:
            if found.service:
                return f"service {found.service} at {client.context.address}"
            lines = [
                f"{show.short(found.user.name)} ({_platform_role(found.user.platform_role)}) "
                f"at {client.context.address}, context {client.context.name}"
            ]
            lines += [
                f"  {member.name.split('/')[1]}: {_role(member.role)}"
                for member in found.memberships
            ]
            return "\n".join(lines)

        show.one(found, options.output, text)


@users.command(name="create")
def create_user(
    user: str,
    /,
    *,
    display_name: str = "",
    email: str = "",
    platform_role: PlatformRoleName = "user",
    options: Options = Options(),
) -> None:
    """Register a user."""
    with options.client() as client:
        asked = api.User(
            display_name=display_name, email=email, platform_role=PLATFORM_ROLES[platform_role]
        )
        made = client.users.create(user, asked)
        show.one(made, options.output, lambda: f"User {user} is registered.")


@users.command(name="get")
def get_user(user: str, /, *, options: Options = Options()) -> None:
    """Show one user."""
    with options.client() as client:
        found = with_near(lambda: client.users.get(user), user, lambda: client.users.list())
        show.one(found, options.output, lambda: "  ".join(_user_cells(found)))


@users.command(name="list")
def list_users(*, filter: str = "", order_by: str = "", options: Options = Options()) -> None:
    """List users."""
    with options.client() as client:
        show.many(
            client.users.list(filter, order_by),
            options.output,
            ("NAME", "PLATFORM ROLE", "DISPLAY NAME", "MAIL", "AGE"),
            _user_cells,
            "No users.",
        )


@users.command(name="update")
def update_user(
    user: str,
    /,
    *,
    display_name: str | None = None,
    email: str | None = None,
    platform_role: PlatformRoleName | None = None,
    options: Options = Options(),
) -> None:
    """Change a user."""
    asked, paths = api.User(name=f"users/{user}"), []
    if display_name is not None:
        asked.display_name = display_name
        paths.append("display_name")
    if email is not None:
        asked.email = email
        paths.append("email")
    if platform_role is not None:
        asked.platform_role = PLATFORM_ROLES[platform_role]
        paths.append("platform_role")
    if not paths:
        raise read.wrong(
            "update", user, "names nothing to change", "Say --display-name or --email."
        )
    with options.client() as client:
        made = client.users.update(asked, paths)
        show.one(made, options.output, lambda: "  ".join(_user_cells(made)))


@users.command(name="delete")
def delete_user(user: str, /, *, options: Options = Options()) -> None:
    """Take a user out for good."""
    with options.client() as client:
        client.users.delete(user)
        print(f"User {user} is deleted, and forgotten.")


def _user_cells(user: api.User) -> tuple[str, ...]:
    return (
        show.short(user.name),
        _platform_role(user.platform_role),
        user.display_name or "-",
        user.email or "-",
        show.age(user.create_time),
    )


@members.command(name="set")
def set_member(user: str, role: RoleName, /, *, options: Options = Options()) -> None:
    """Give a user a role in the project, or another one."""
    with options.client() as client:
        project = options.project_of(client)
        made = with_near(
            lambda: client.members.set(project, user, ROLES[role]),
            user,
            lambda: client.users.list(),
        )
        show.one(made, options.output, lambda: f"{user} is {role} of {project}.")


@members.command(name="list")
def list_members(*, options: Options = Options()) -> None:
    """List the project's members."""
    with options.client() as client:
        show.many(
            client.members.list(options.project_of(client)),
            options.output,
            ("USER", "ROLE", "SINCE"),
            lambda member: (
                show.short(member.user),
                _role(member.role),
                show.age(member.update_time),
            ),
            "No members.",
        )


@members.command(name="remove")
def remove_member(user: str, /, *, options: Options = Options()) -> None:
    """Take a user's role in the project away."""
    with options.client() as client:
        project = options.project_of(client)
        client.members.remove(project, user)
        print(f"{user} has no role in {project} any more.")


@tokens.command(name="create")
def create_token(
    user: str = "",
    /,
    *,
    description: str = "",
    ttl: Annotated[str, Parameter(help="e.g. 30d, 12h")] = "30d",
    options: Options = Options(),
) -> None:
    """Issue a token, for yourself unless another user is named; it is printed once."""
    lasts = read.duration("--ttl", ttl)
    with options.client() as client:
        whose = user or show.short(client.users.who_am_i().user.name)
        made = client.tokens.create(whose, description, lasts)
        show.one(made, options.output, lambda: made.signed_token)


@tokens.command(name="list")
def list_tokens(user: str = "", /, *, options: Options = Options()) -> None:
    """List tokens, yours unless another user is named."""
    with options.client() as client:
        whose = user or show.short(client.users.who_am_i().user.name)
        show.many(
            client.tokens.list(whose),
            options.output,
            ("UID", "DESCRIPTION", "ISSUED", "ENDS", "STATE"),
            lambda token: (
                token.uid,
                token.description or "-",
                show.moment(token.create_time),
                show.moment(token.expire_time),
                "revoked" if token.revoked else "valid",
            ),
            "No tokens.",
        )


@tokens.command(name="revoke")
def revoke_token(token: str, user: str = "", /, *, options: Options = Options()) -> None:
    """End a token now."""
    with options.client() as client:
        whose = user or show.short(client.users.who_am_i().user.name)
        made = client.tokens.revoke(whose, token)
        show.one(made, options.output, lambda: f"Token {token} is refused from now on.")


@keys.command(name="list")
def list_keys(*, options: Options = Options()) -> None:
    """List the public keys that tokens are checked with."""
    with options.client() as client:
        show.many(
            client.keys.get().keys,
            options.output,
            ("KID", "PUBLIC KEY", "SINCE"),
            lambda key: (key.kid, key.public_key.hex(), show.age(key.create_time)),
            "No keys.",
        )
