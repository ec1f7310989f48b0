"""Users, their roles in projects, and their tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import App, Parameter

from fermion.api.projects import v1 as api
from fermion.cli import read, show
from fermion.cli.options import Etag, Options
from fermion.cli.show import Column
from fermion.errors import InvalidArgument

if TYPE_CHECKING:
    from fermion.client import Client

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
DisplayName = Annotated[str, Parameter(help="The person's name as shown.")]
Email = Annotated[str, Parameter(help="Mail address.")]
PlatformRole = Annotated[PlatformRoleName, Parameter(help="What one may do on the platform.")]

USERS: tuple[Column[api.User], ...] = (
    Column("NAME", lambda one: show.short(one.name)),
    Column("PLATFORM ROLE", lambda one: _platform_role(one.platform_role)),
    Column("DISPLAY NAME", lambda one: one.display_name or "-", crop=True, spare=1),
    Column("MAIL", lambda one: one.email or "-", crop=True, spare=2),
    Column("AGE", lambda one: show.age(one.create_time)),
    Column("UID", lambda one: one.uid, wide=True),
    Column("ETAG", lambda one: one.etag, wide=True),
)
MEMBERS: tuple[Column[api.Member], ...] = (
    Column("USER", lambda one: show.short(one.user)),
    Column("ROLE", lambda one: _role(one.role)),
    Column("SINCE", lambda one: show.age(one.update_time)),
    Column("USER UID", lambda one: one.user_uid, wide=True),
)
TOKENS: tuple[Column[api.Token], ...] = (
    Column("UID", lambda one: one.uid),
    Column("DESCRIPTION", lambda one: one.description or "-", crop=True),
    Column("ISSUED", lambda one: show.when(one.create_time), spare=1),
    Column("ENDS", lambda one: show.when(one.expire_time)),
    Column("STATE", lambda one: "revoked" if one.revoked else "valid"),
)
KEYS: tuple[Column[api.SigningKey], ...] = (
    Column("KID", lambda one: one.kid),
    Column("PUBLIC KEY", lambda one: one.public_key.hex(), crop=True),
    Column("SINCE", lambda one: show.age(one.create_time)),
)


def _id(user: str) -> str:
    """`ana` of `ana` or `users/ana`."""
    return user.removeprefix("users/")


def _token(token: str, user: str) -> tuple[str, str]:
    """Uid and owner of a token, by its uid or its name; no owner where none is said."""
    if "/" not in token:
        return token, user
    parts = token.split("/")
    if len(parts) != 4 or (parts[0], parts[2]) != ("users", "tokens"):
        raise read.wrong(
            "TOKEN",
            token,
            "is no name of a token",
            "Write it like tok_… or users/ana/tokens/tok_….",
        )
    if user and _id(user) != parts[1]:
        raise read.wrong("USER", user, f"is not whose token it is, {parts[1]}", "Leave it out.")
    return parts[3], parts[1]


def _whose(client: Client, user: str) -> str:
    """The named user, else the caller; a service has no tokens of its own."""
    found = _id(user) or show.short(client.users.who_am_i().user.name)
    if not found:
        raise InvalidArgument(
            "The caller is a service, and services have no tokens here.",
            reason="OPTION_MISSING",
            violations=(("USER", "must be said"),),
        )
    return found


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
    display_name: DisplayName = "",
    email: Email = "",
    platform_role: PlatformRole = "user",
    options: Options = Options(),
) -> None:
    """Register a user."""
    with options.client() as client:
        asked = api.User(
            display_name=display_name, email=email, platform_role=PLATFORM_ROLES[platform_role]
        )
        made = client.users.create(_id(user), asked)
        show.one(made, options.output, lambda: f"User {_id(user)} is registered.")


@users.command(name="get")
def get_user(user: str, /, *, options: Options = Options()) -> None:
    """Show one user."""
    with options.client() as client:
        found = client.users.get(_id(user))
        show.one(found, options.output, lambda: _details(found))


@users.command(name="list")
def list_users(
    *,
    filter: Annotated[str, Parameter(help="e.g. name:ada*")] = "",
    order_by: Annotated[str, Parameter(help="name or create_time, with ' desc' or not.")] = "",
    options: Options = Options(),
) -> None:
    """List users."""
    with options.client() as client:
        show.many(
            client.users.list(filter, order_by),
            options.output,
            USERS,
            "No user is like that.",
        )


@users.command(name="update")
def update_user(
    user: str,
    /,
    *,
    display_name: DisplayName | None = None,
    email: Email | None = None,
    platform_role: PlatformRole | None = None,
    etag: Etag = "",
    options: Options = Options(),
) -> None:
    """Change a user."""
    asked, paths = api.User(name=f"users/{_id(user)}"), []
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
        made = client.users.update(asked, paths, etag)
        show.one(made, options.output, lambda: _details(made))


@users.command(name="delete")
def delete_user(user: str, /, *, etag: Etag = "", options: Options = Options()) -> None:
    """Take a user out for good."""
    with options.client() as client:
        client.users.delete(_id(user), etag)
        show.one(
            api.User(name=f"users/{_id(user)}"),
            options.output,
            lambda: f"User {_id(user)} is deleted, and forgotten.",
        )


def _details(user: api.User) -> str:
    return show.details((one.title.lower(), one.cell(user)) for one in USERS)


@members.command(name="set")
def set_member(user: str, role: RoleName, /, *, options: Options = Options()) -> None:
    """Give a user a role in the project, or another one."""
    with options.client() as client:
        project = options.project_of(client)
        made = client.members.set(project, _id(user), ROLES[role])
        show.one(made, options.output, lambda: f"{_id(user)} is {role} of {project}.")


@members.command(name="list")
def list_members(*, options: Options = Options()) -> None:
    """List the project's members."""
    with options.client() as client:
        show.many(
            client.members.list(options.project_of(client)),
            options.output,
            MEMBERS,
            "No members.",
        )


@members.command(name="remove")
def remove_member(user: str, /, *, options: Options = Options()) -> None:
    """Take a user's role in the project away."""
    with options.client() as client:
        project = options.project_of(client)
        client.members.remove(project, _id(user))
        show.one(
            api.Member(name=f"projects/{project}/members/{_id(user)}"),
            options.output,
            lambda: f"{_id(user)} has no role in {project} any more.",
        )


@tokens.command(name="create")
def create_token(
    user: str = "",
    /,
    *,
    description: Annotated[str, Parameter(help="What it is for.")] = "",
    ttl: Annotated[str, Parameter(help="How long it lasts, e.g. 12h [30d].")] = "30d",
    options: Options = Options(),
) -> None:
    """Issue a token, for yourself unless another user is named; it is printed once."""
    lasts = read.duration("--ttl", ttl)
    with options.client() as client:
        whose = _whose(client, user)
        made = client.tokens.create(whose, description, lasts)
        show.one(made, options.output, lambda: made.signed_token)


@tokens.command(name="list")
def list_tokens(user: str = "", /, *, options: Options = Options()) -> None:
    """List tokens, yours unless another user is named."""
    with options.client() as client:
        whose = _whose(client, user)
        show.many(
            client.tokens.list(whose),
            options.output,
            TOKENS,
            "No tokens.",
        )


@tokens.command(name="revoke")
def revoke_token(token: str, user: str = "", /, *, options: Options = Options()) -> None:
    """End a token now, tok_… or users/ana/tokens/tok_…; yours unless another user is named."""
    uid, owner = _token(token, user)
    with options.client() as client:
        made = client.tokens.revoke(_whose(client, owner), uid)
        show.one(made, options.output, lambda: f"Token {uid} is refused from now on.")


@keys.command(name="list")
def list_keys(*, options: Options = Options()) -> None:
    """List the public keys that tokens are checked with."""
    with options.client() as client:
        show.many(
            client.keys.get().keys,
            options.output,
            KEYS,
            "No keys.",
        )
