"""How much projects and users may hold at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import App, Parameter

from fermion.api.projects import v1 as api
from fermion.cli import near, read, show
from fermion.cli.options import Options, note, user_names
from fermion.cli.show import Column
from fermion.errors import Error, InvalidArgument

if TYPE_CHECKING:
    from fermion.client import Client

app = App(name="quotas", help="How much projects and users may hold at a time.")

SingleName = Literal["cpu_milli", "memory_bytes", "storage_bytes"]
KINDS = tuple(show.KINDS)
# The limits do not wait longer for what is held of them.
HELD_SECONDS = 3.0
# What is written instead of an amount where there shall be no bound.
NONE = "none"
SCOPES: Mapping[str, str] = {
    "projects/-": "each project without its own",
    "users/-": "each user without his own",
}


@Parameter(name="*")
@dataclass(frozen=True)
class Scope:
    """Whose limits; the project of -p, or of the context, unless another one is said."""

    user: Annotated[str, Parameter(help="A user, instead of a project.", completer=user_names)] = ""
    default_project: Annotated[
        bool, Parameter(help="Each project that has no limits of its own.")
    ] = False
    default_user: Annotated[bool, Parameter(help="Each user who has no limits of his own.")] = False

    def of(self, client: Client, options: Options) -> str:
        """`projects/acme`, `users/ada`, `projects/-` or `users/-`; one of them at a time."""
        user = self.user.removeprefix("users/")
        said = {
            "--project": options.project,
            "--user": user,
            "--default-project": self.default_project,
            "--default-user": self.default_user,
        }
        several = [option for option, value in said.items() if value]
        if len(several) > 1:
            raise InvalidArgument(
                f"{' and '.join(several)} are about different limits.",
                reason="OPTION_INVALID",
                violations=tuple((option, "must stand alone") for option in several),
                next_step="Say one of them.",
            )
        if self.default_project:
            return "projects/-"
        if self.default_user:
            return "users/-"
        return f"users/{user}" if user else f"projects/{options.project_of(client)}"


@Parameter(name="*")
@dataclass(frozen=True)
class Wish:
    """What was said of limits; None where nothing was."""

    gpu: Annotated[
        tuple[str, ...] | None,
        Parameter(help="MODEL=N, more than once; '*=N' bounds all models together."),
    ] = None
    cpu: Annotated[str | None, Parameter(help="CPU cores, e.g. 64 or 500m")] = None
    memory: Annotated[str | None, Parameter(help="Memory, e.g. 256GiB")] = None
    storage: Annotated[str | None, Parameter(help="Volumes, e.g. 1TiB")] = None
    instances: Annotated[str | None, Parameter(help="Instances at a time, e.g. 10")] = None
    workloads: Annotated[
        tuple[str, ...] | None,
        Parameter(help=f"KIND=N, more than once; a kind is one of {', '.join(KINDS)}."),
    ] = None

    def on(self, before: api.Limits) -> api.Limits:
        """The limits that were there, with what was said; `none` takes a bound away."""
        limits = api.Limits()
        limits.CopyFrom(before)
        for text in self.gpu or ():
            model, said = read.pair("--gpu", text, "A100=8")
            _put(limits.gpu_milli, model, _amount(read.milli, "--gpu", said))
        if self.cpu is not None:
            _set(limits, "cpu_milli", _amount(read.milli, "--cpu", self.cpu))
        if self.memory is not None:
            _set(limits, "memory_bytes", _amount(read.size, "--memory", self.memory))
        if self.storage is not None:
            _set(limits, "storage_bytes", _amount(read.size, "--storage", self.storage))
        if self.instances is not None:
            number = _amount(read.count, "--instances", self.instances)
            _put(limits.workloads, "instance", number)
        for text in self.workloads or ():
            kind, said = read.pair("--workloads", text, "training=4")
            _put(limits.workloads, _kind(kind, text), _amount(read.count, "--workloads", said))
        return limits


COLUMNS: tuple[Column[api.Quota], ...] = (
    Column("WHOSE", lambda one: _scope(one)),
    Column("GPU", lambda one: _several(one, "gpu_milli/"), crop=True),
    Column("CPU", lambda one: _several(one, "cpu_milli")),
    Column("MEMORY", lambda one: _several(one, "memory_bytes")),
    Column("STORAGE", lambda one: _several(one, "storage_bytes")),
    Column("WORKLOADS", lambda one: _several(one, "workloads/"), crop=True),
    Column("ETAG", lambda one: one.etag, wide=True),
)


@app.command
def get(*, scope: Scope = Scope(), options: Options = Options()) -> None:
    """Show the limits in force, its own, else those that are inherited, and what is held of them."""
    with options.client() as client:
        whose = scope.of(client, options)
        found = client.quotas.get(whose)
        held = _held(client, options, whose) if options.output in ("table", "wide") else None
        show.one(found, options.output, lambda: _text(found, held))


@app.command(name="list")
def list_(*, options: Options = Options()) -> None:
    """List the limits that were set and that you may see."""
    with options.client() as client:
        hint = "No limits are set. Set some: fermion quotas set --default-project --gpu '*=8'"
        show.many(client.quotas.list(), options.output, COLUMNS, hint)


@app.command(name="set")
def set_(
    *,
    scope: Scope = Scope(),
    wish: Wish = Wish(),
    etag: Annotated[str, Parameter(help="Only if it is still this one.")] = "",
    dry_run: Annotated[bool, Parameter(help="Show what would be set; change nothing.")] = False,
    options: Options = Options(),
) -> None:
    """
    Set limits; what is not said stays as it is, and `none` takes a bound away.

    Nothing that runs is ended by it. Who had inherited limits begins with those. For example:

        fermion quotas set -p acme --gpu A100=8 --gpu '*=16' --memory 256GiB
        fermion quotas set --default-user --instances 2 --storage none
    """
    if wish == Wish():
        raise InvalidArgument(
            "No limit was said.",
            reason="OPTION_MISSING",
            violations=(("--gpu", "or another limit must be said"),),
            next_step="e.g. fermion quotas set --gpu '*=8' --cpu 64",
        )
    # What is written wrong is told before anybody is asked.
    wish.on(api.Limits())
    with options.client() as client:
        whose = scope.of(client, options)
        before = client.quotas.get(whose)
        limits = wish.on(before.limits)
        # The limits that were read are those that are replaced, or nothing is.
        made = client.quotas.set(whose, limits, etag or before.etag, validate_only=dry_run)
        if dry_run and options.output in ("table", "wide"):
            note("Nothing was changed; it would be:")
        show.one(made, options.output, lambda: _text(made))


@app.command
def clear(
    *,
    scope: Scope = Scope(),
    etag: Annotated[str, Parameter(help="Only if it is still this one.")] = "",
    options: Options = Options(),
) -> None:
    """Take limits of one's own away; the inherited ones count from then on."""
    with options.client() as client:
        made = client.quotas.clear(scope.of(client, options), etag)
        show.one(made, options.output, lambda: _text(made))


def _scope(quota: api.Quota) -> str:
    return quota.name.removesuffix("/quota")


def _several(quota: api.Quota, prefix: str) -> str:
    """The amounts of one column."""
    found = {}
    for name, number in show.amounts(quota.limits).items():
        if name.startswith(prefix):
            found[name.removeprefix(prefix)] = show.amount(name, number)
    return found[""] if list(found) == [""] else show.pairs(found)


def _held(client: Client, options: Options, whose: str) -> api.Limits | None:
    """
    What a scope holds now; None where that is not told, for the limits are told without it.

    A user's is told in a project in which he holds something.
    """
    _, name = whose.split("/")
    user = whose.startswith("users/")
    project = client.context.project if user else name
    if whose in SCOPES or not project:
        return None
    try:
        if user:
            whose = f"users/{client.users.get(name).uid}"
        with replace(options, timeout=min(options.timeout, HELD_SECONDS)).client() as hurried:
            held = {one.scope: one.held for one in hurried.queue.holdings(project)}
    except Error as error:
        note(f"What is held is not told: {error.message}")
        return None
    return held.get(whose)


def _text(quota: api.Quota, held: api.Limits | None = None) -> str:
    scope = _scope(quota)
    all_of = f"{scope.split('/')[0]}/-"
    whose = f"those of {SCOPES[all_of]}" if quota.inherited else "its own"
    whose = SCOPES.get(scope, whose)
    bounds = show.amounts(quota.limits)
    used = show.amounts(held) if held is not None else {}
    rows = []
    for name, limit in bounds.items():
        part = f"{show.amount(name, used.get(name, 0))} of " if held is not None else ""
        rows.append((show.dimension(name), part + show.amount(name, limit)))
    rows += [
        (show.dimension(name), f"{show.amount(name, number)}, not bounded")
        for name, number in used.items()
        if number and name not in bounds
    ]
    head = f"{scope}  {whose}" + ("" if bounds else ": nothing is bounded")
    etag = quota.etag if bounds else ""
    return "\n".join(filter(None, (head, show.details((*rows, ("etag", etag))))))


def _put(bounds: MutableMapping[str, int], key: str, number: int | None) -> None:
    """Set one bound of a map, or take it away."""
    bounds.pop(key, None)
    if number is not None:
        bounds[key] = number


def _set(limits: api.Limits, name: SingleName, number: int | None) -> None:
    """Set one bound, or take it away."""
    limits.ClearField(name)
    if number is not None:
        setattr(limits, name, number)


def _amount(reader: Callable[[str, str], int], option: str, text: str) -> int | None:
    """An amount as its reader reads it; None for `none`."""
    return None if text == NONE else reader(option, text)


def _kind(kind: str, text: str) -> str:
    """The name of a kind of workload that there is."""
    if kind in KINDS:
        return kind
    meant = near.near(kind, KINDS)
    hint = f"Did you mean {' or '.join(meant)}? " if meant else ""
    raise read.wrong(
        "--workloads",
        text,
        "names no kind of workload",
        f"{hint}There are {', '.join(KINDS)}.",
    )
