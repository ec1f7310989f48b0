"""Development environments."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import App, Parameter

from fermion.api.instances import v1 as api
from fermion.cli import cost, money, near, read, runtime, show, text, top
from fermion.cli.options import Etag, InstanceName, Options, note, template_names
from fermion.cli.show import Column
from fermion.cli.spec import Wish, build
from fermion.errors import Error, InvalidArgument

if TYPE_CHECKING:
    from fermion.client import Client

app = App(name="instances", help="Development environments.")
for _look in (runtime.logs, runtime.exec_, runtime.shell, runtime.open_, top.top):
    app.command(_look, name=_look.__name__.rstrip("_"))

# What was asked for is done; what it has cost is not waited for any longer.
COST_SECONDS = 3.0
KindName = Literal["notebook", "training", "inference", "custom"]
StateName = Literal["pending", "starting", "running", "stopping", "stopped", "failed"]
KINDS: dict[str, api.Kind.ValueType] = {
    "notebook": api.KIND_NOTEBOOK,
    "training": api.KIND_TRAINING,
    "inference": api.KIND_INFERENCE,
    "custom": api.KIND_CUSTOM,
}
Wait = Annotated[
    StateName | None,
    Parameter(help="Wait until it is in this state; 7 where it failed or ended instead."),
]
WaitTimeout = Annotated[str, Parameter(help="So long, e.g. 90s [10m].")]


def _state(instance: api.Instance) -> str:
    return show.enum(api.State.Name(instance.status.state)) if instance.status.state else "GONE"


def _why(instance: api.Instance) -> str:
    """Why it is in its state, not only in which."""
    status = instance.status
    phase = show.enum(api.Phase.Name(status.phase)).lower() if status.phase else ""
    said = ": ".join(part for part in (phase, show.sentence(status.reason)) if part)
    waiting = "a change waits for a restart" if status.pending_restart else ""
    return "; ".join(part for part in (said, waiting) if part) or "-"


def _kind(instance: api.Instance) -> str:
    return show.enum(api.Kind.Name(instance.spec.kind)).lower() if instance.spec.kind else "-"


def _gpu(resources: api.Resources) -> str:
    count = show.cores(resources.gpu_milli)
    return f"{count} {resources.gpu_type}" if resources.gpu_type else count


COLUMNS: tuple[Column[api.Instance], ...] = (
    Column("NAME", lambda one: show.short(one.name)),
    Column("KIND", _kind, spare=2),
    Column("STATE", _state),
    Column("WHY", _why, crop=True),
    Column("GPU", lambda one: _gpu(one.spec.resources), spare=1),
    Column("CPU", lambda one: show.cores(one.spec.resources.cpu_milli), spare=3),
    Column("MEMORY", lambda one: show.size(one.spec.resources.memory_bytes), spare=4),
    Column("STORAGE", lambda one: show.size(one.spec.resources.storage_bytes), wide=True),
    Column("AGE", lambda one: show.age(one.create_time)),
    Column("ATTEMPT", lambda one: str(one.status.attempt), wide=True),
    Column("IMAGE", lambda one: one.spec.image or "-", wide=True),
    Column("LABELS", lambda one: show.pairs(dict(one.labels)), wide=True),
    Column("OWNER", lambda one: one.owner, wide=True),
    Column("UID", lambda one: one.uid, wide=True),
)


@app.command
def create(
    name: str = "",
    /,
    *,
    kind: Annotated[KindName | None, Parameter(help="What it is for.")] = None,
    template: Annotated[
        str,
        Parameter(help="Template, instead of the kind's own.", completer=template_names),
    ] = "",
    wish: Wish = Wish(),
    dry_run: Annotated[bool, Parameter(help="Show the plan; change nothing.")] = False,
    wait: Wait = None,
    wait_timeout: WaitTimeout = "10m",
    options: Options = Options(),
) -> None:
    """
    Create an instance and ask for its start.

    For example:

        fermion instances create lab --kind notebook --gpu 1 --memory 32GiB
        fermion instances create own --kind training -- sleep 1h
    """
    asked, _ = build(wish)
    name = name or show.short(asked.name)
    if not name:
        raise InvalidArgument(
            "The instance was given no name.",
            reason="OPTION_MISSING",
            violations=(("NAME", "must be said, or stand as `name` in the file"),),
            next_step="e.g. fermion instances create lab --kind notebook",
        )
    if kind is not None:
        asked.spec.kind = KINDS[kind]
    if not asked.spec.kind:
        raise InvalidArgument(
            "What the instance is for was not said.",
            reason="OPTION_MISSING",
            violations=(("--kind", f"must be one of {', '.join(KINDS)}"),),
            next_step=f"e.g. fermion instances create {name} --kind notebook",
        )
    if template:
        asked.spec.template = f"templates/{template.removeprefix('templates/')}"
    with options.client() as client:
        project, short, full = options.instance_of(client, name)
        try:
            made = client.instances.create(project, short, asked, validate_only=dry_run)
        except InvalidArgument as error:
            if any(field == "instance.spec.template" for field, _ in error.violations):
                near.template(client, error, asked.spec.template)
            raise
        if dry_run:
            show.one(made, options.output, lambda: _plan(made.instance, made.plan, "created"))
            return
        _answer(client, made.instance, full, wait, wait_timeout, options)


@app.command
def get(
    name: InstanceName,
    /,
    *,
    as_of: Annotated[str, Parameter(help="As it was then: a time, or 10m for ago.")] = "",
    options: Options = Options(),
) -> None:
    """Show one instance."""
    at = read.moment("--as-of", as_of) if as_of else None
    with options.client() as client:
        found = client.instances.get(options.instance_of(client, name)[2], at)
        show.one(found, options.output, lambda: f"{_text(found)}\n{_details(found)}")


@app.command(name="list")
def list_(
    *,
    filter: Annotated[str, Parameter(help="e.g. state=RUNNING AND labels.team=vision")] = "",
    order_by: Annotated[str, Parameter(help="name or create_time, with ' desc' or not.")] = "",
    options: Options = Options(),
) -> None:
    """List the project's instances."""
    with options.client() as client:
        project = options.project_of(client)
        found = client.instances.list(project, filter, order_by)
        hint = (
            f"None of {project}'s instances is like that."
            if filter
            else f"No instances in {project}. Make one: fermion instances create NAME --kind notebook"
        )
        show.many(found, options.output, COLUMNS, hint)


@app.command
def watch(
    name: InstanceName = "",
    /,
    *,
    options: Options = Options(),
) -> None:
    """Follow changes of the project's instances, or of one; Ctrl-C detaches."""
    with options.client() as client, show.Board(COLUMNS, options.output) as board:
        project, instance = "", ""
        if name:
            project, instance, _ = options.instance_of(client, name)
        else:
            project = options.project_of(client)
        for change in client.instances.watch(project, instance):
            if change.change != api.WatchInstancesResponse.CHANGE_BOOKMARK:
                kind = api.WatchInstancesResponse.Change.Name(change.change)
                gone = change.change == api.WatchInstancesResponse.CHANGE_DELETED
                board.put(show.enum(kind), change.instance, gone)


@app.command
def update(
    name: InstanceName,
    /,
    *,
    wish: Wish = Wish(),
    etag: Etag = "",
    dry_run: Annotated[bool, Parameter(help="Show the plan; change nothing.")] = False,
    options: Options = Options(),
) -> None:
    """
    Change an instance; labels at once, what runs at its next start.

    What is said more than once (--label, --env, --port, --arg) replaces all that was said before.
    """
    asked, paths = build(wish)
    if not paths and wish.file is None:
        raise read.wrong("update", name, "names nothing to change", "Say e.g. --label or --cpu.")
    with options.client() as client:
        asked.name = options.instance_of(client, name)[2]
        # A file stands for all that it sets.
        made = client.instances.update(
            asked, () if wish.file is not None else paths, etag, validate_only=dry_run
        )
        if dry_run:
            show.one(made, options.output, lambda: _plan(made.instance, made.plan, "changed"))
        else:
            show.one(made.instance, options.output, lambda: _text(made.instance))


@app.command
def start(
    name: InstanceName,
    /,
    *,
    etag: Etag = "",
    wait: Wait = None,
    wait_timeout: WaitTimeout = "10m",
    options: Options = Options(),
) -> None:
    """Ask for a start."""
    _verb(
        lambda client, full: client.instances.start(full, etag), name, wait, wait_timeout, options
    )


@app.command
def stop(
    name: InstanceName,
    /,
    *,
    etag: Etag = "",
    wait: Wait = None,
    wait_timeout: WaitTimeout = "10m",
    options: Options = Options(),
) -> None:
    """
    Ask for a stop; name and files are kept, and it costs nothing.

    With --wait stopped it ends with what the instance has cost since it was created.
    """
    made = _verb(
        lambda client, full: client.instances.stop(full, etag), name, wait, wait_timeout, options
    )
    if wait == "stopped":
        _tell_cost(made, options)


@app.command
def restart(
    name: InstanceName,
    /,
    *,
    etag: Etag = "",
    wait: Wait = None,
    wait_timeout: WaitTimeout = "10m",
    options: Options = Options(),
) -> None:
    """Ask for a stop, and a start after it."""
    _verb(
        lambda client, full: client.instances.restart(full, etag), name, wait, wait_timeout, options
    )


@app.command
def delete(name: InstanceName, /, *, etag: Etag = "", options: Options = Options()) -> None:
    """Ask for its deletion, files and all; one that lives is stopped first. Tells what it has cost."""
    with options.client() as client:
        made = client.instances.delete(options.instance_of(client, name)[2], etag)
        show.one(made, options.output, lambda: _text(made))
    _tell_cost(made, options)


def _verb(
    act: Callable[[Client, str], api.Instance],
    name: str,
    wait: StateName | None,
    wait_timeout: str,
    options: Options,
) -> api.Instance:
    with options.client() as client:
        full = options.instance_of(client, name)[2]
        return _answer(client, act(client, full), full, wait, wait_timeout, options)


def _answer(
    client: Client,
    made: api.Instance,
    full: str,
    wait: StateName | None,
    wait_timeout: str,
    options: Options,
) -> api.Instance:
    """Print what came of a call, once it is in the state that is waited for, and answer it."""
    if wait is not None:
        seconds = read.duration("--wait-timeout", wait_timeout).total_seconds()
        if options.output in ("table", "wide"):
            note(f"{_text(made)}; waiting until it is {wait}")
        made = client.instances.wait(full, api.State.Value(f"STATE_{wait.upper()}"), seconds)
    show.one(made, options.output, lambda: _text(made))
    return made


def _tell_cost(instance: api.Instance, options: Options) -> None:
    """Tell people what an instance has cost since it was created; where nobody can, that."""
    if options.output not in ("table", "wide"):
        return
    born = instance.create_time
    since = born.ToDatetime(tzinfo=UTC) if instance.HasField("create_time") else None
    project = instance.name.split("/")[1]
    try:
        with replace(options, timeout=min(options.timeout, COST_SECONDS)).client() as hurried:
            said = cost.last(hurried, project, instance.name, since)
    except Error as error:
        note(f"What it has cost is not told: {error.message}")
        return
    print(text.line(f"{show.short(instance.name)}  {said}"))


def _text(instance: api.Instance) -> str:
    why = _why(instance)
    text = f"{show.short(instance.name)}  {_state(instance)}"
    return text if why == "-" else f"{text}  {why}"


def _details(instance: api.Instance) -> str:
    spec, status = instance.spec, instance.status
    resources = spec.resources
    exit_code = str(status.exit_code) if status.HasField("exit_code") else ""
    lasts = show.span(spec.max_duration) if spec.HasField("max_duration") else ""
    costs = ""
    if spec.HasField("max_cost"):
        costs = money.exact(spec.max_cost.nanos, spec.max_cost.currency)
    return show.details(
        (
            ("name", instance.name),
            ("uid", instance.uid),
            ("display name", instance.display_name),
            ("description", instance.description),
            ("labels", show.pairs(dict(instance.labels))),
            ("kind", _kind(instance)),
            ("template", spec.template.removeprefix("templates/")),
            ("image", spec.image),
            (
                "resources",
                f"{_gpu(resources)} GPU, {show.cores(resources.cpu_milli)} CPU, "
                f"{show.size(resources.memory_bytes)} memory, "
                f"{show.size(resources.storage_bytes)} storage",
            ),
            ("ports", ", ".join(f"{port.name}:{port.number}" for port in spec.ports)),
            ("env", ", ".join(f"{entry.name}={entry.value}" for entry in spec.env)),
            ("command", " ".join(spec.command)),
            ("args", " ".join(spec.args)),
            ("max duration", lasts),
            ("max cost", costs),
            ("since", show.moment(status.state_time)),
            ("wanted", show.enum(api.State.Name(status.desired_state)).lower()),
            ("attempt", str(status.attempt or "")),
            ("workload", status.workload_uid),
            ("restarts", str(status.restarts or "")),
            ("exit code", exit_code),
            *((f"at {port}", address) for port, address in sorted(status.addresses.items())),
            ("owner", instance.owner),
            ("created", show.moment(instance.create_time)),
            ("changed", show.moment(instance.update_time)),
            ("etag", instance.etag),
        )
    )


def _plan(instance: api.Instance, plan: api.Plan, verb: str) -> str:
    """What would be declared, and what cannot be told yet."""
    lines = [f"{show.short(instance.name)} would be {verb}, and declared as:"]
    for group in plan.workload.groups:
        resources = group.resources
        lines.append(
            f"  {group.replicas} x {group.image.repository or 'no image'}: "
            f"{show.cores(resources.gpu_milli)} GPU, {show.cores(resources.cpu_milli)} CPU, "
            f"{show.size(resources.memory_bytes)}"
        )
        if group.command:
            lines.append(f"  command: {' '.join(group.command)}")
    lines += [f"  note: {show.sentence(warning)}" for warning in plan.warnings]
    if plan.HasField("price"):
        lines.append(f"  {_price(plan)}")
    if plan.HasField("queue"):
        lines.append(f"  {_outlook(plan)}")
    if plan.absent:
        lines.append(f"  cannot be told yet: {', '.join(plan.absent)}")
    return "\n".join(lines)


def _price(plan: api.Plan) -> str:
    """What it would cost by the hour, and at the most where something bounds it."""
    price = plan.price
    said = [
        f"{money.amount(price.rate_nanos, price.currency)} an hour",
        f"{money.amount(price.stopped_rate_nanos, price.currency)} an hour while stopped",
    ]
    if price.worst_nanos:
        said.append(f"at most {money.amount(price.worst_nanos, price.currency)} an attempt")
    return f"{', '.join(said)} (prices {price.price_version})"


def _outlook(plan: api.Plan) -> str:
    """Whether it would start at once, and what would be in its way."""
    found = plan.queue
    if not found.HasField("workload"):
        return "would start at once"
    why = show.sentence(found.workload.reason)
    if not found.place:
        return f"would not run: {why}"
    return f"would wait, at place {found.place} of {found.waiting}: {why}"
