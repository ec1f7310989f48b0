"""Development environments."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated, Literal

import yaml
from cyclopts import App, Parameter
from google.protobuf import json_format

from fermion.api.instances import v1 as api
from fermion.api.workload import v1 as workload
from fermion.cli import read, show
from fermion.cli.near import with_near
from fermion.cli.options import Options
from fermion.client import Client
from fermion.errors import Error, InvalidArgument, Timeout

app = App(name="instances", help="Development environments.")

KindName = Literal["notebook", "training", "inference", "custom"]
RestartName = Literal["never", "on-failure", "always"]
StateName = Literal["pending", "starting", "running", "stopping", "stopped", "failed"]
KINDS: dict[str, api.Kind.ValueType] = {
    "notebook": api.KIND_NOTEBOOK,
    "training": api.KIND_TRAINING,
    "inference": api.KIND_INFERENCE,
    "custom": api.KIND_CUSTOM,
}
RESTARTS: dict[str, workload.RestartPolicy.Mode.ValueType] = {
    "never": workload.RestartPolicy.MODE_NEVER,
    "on-failure": workload.RestartPolicy.MODE_ON_FAILURE,
    "always": workload.RestartPolicy.MODE_ALWAYS,
}
COLUMNS = ("NAME", "KIND", "STATE", "WHY", "ATTEMPT", "GPU", "CPU", "MEMORY", "AGE")


@app.command
def create(
    name: str,
    /,
    *command: Annotated[str, Parameter(help="Start command, after --.", allow_leading_hyphen=True)],
    kind: Annotated[KindName | None, Parameter(help="What it is for.")] = None,
    image: Annotated[str, Parameter(help="Image, instead of the template's.")] = "",
    template: Annotated[str, Parameter(help="Template, instead of the kind's own.")] = "",
    gpu: Annotated[str, Parameter(help="GPUs, e.g. 1 or 0.5")] = "",
    gpu_type: Annotated[str, Parameter(help="Model of the GPU, e.g. A100-80GB")] = "",
    cpu: Annotated[str, Parameter(help="CPU cores, e.g. 4 or 500m")] = "",
    memory: Annotated[str, Parameter(help="Memory, e.g. 16GiB")] = "",
    storage: Annotated[str, Parameter(help="Disk that outlives a stop, e.g. 50GiB")] = "",
    port: Annotated[tuple[str, ...], Parameter(help="NAME:NUMBER[/http|grpc|tcp]")] = (),
    env: Annotated[tuple[str, ...], Parameter(help="NAME=VALUE, more than once.")] = (),
    plain_env: Annotated[
        bool, Parameter(help="Allow names that sound like secrets.", negative="")
    ] = False,
    label: Annotated[tuple[str, ...], Parameter(help="KEY=VALUE, more than once.")] = (),
    restart: Annotated[RestartName | None, Parameter(help="When main is run again.")] = None,
    restarts_max: Annotated[int, Parameter(help="At most so often; 0 for no bound.")] = 0,
    max_duration: Annotated[str, Parameter(help="Stop after, e.g. 8h")] = "",
    display_name: Annotated[str, Parameter(help="As shown.")] = "",
    file: Annotated[
        Path | None, Parameter(name=["--file", "-f"], help="YAML of an Instance; flags win.")
    ] = None,
    dry_run: Annotated[bool, Parameter(help="Show the plan; change nothing.", negative="")] = False,
    wait: Annotated[StateName | None, Parameter(help="Wait until it is in this state.")] = None,
    wait_timeout: Annotated[str, Parameter(help="So long, e.g. 10m")] = "10m",
    options: Options = Options(),
) -> None:
    """Create an instance and ask for its start."""
    asked = _read(file) if file is not None else api.Instance()
    spec = asked.spec
    if kind is not None:
        spec.kind = KINDS[kind]
    elif not spec.kind:
        raise InvalidArgument(
            "What the instance is for was not said.",
            reason="OPTION_MISSING",
            violations=(("--kind", f"must be one of {', '.join(KINDS)}"),),
            arguments={"next_step": f"e.g. fermion instances create {name} --kind notebook"},
        )
    if image:
        spec.image = image
    if template:
        spec.template = f"templates/{template.removeprefix('templates/')}"
    resources = spec.resources
    if gpu:
        resources.gpu_milli = read.milli("--gpu", gpu)
    if gpu_type:
        resources.gpu_type = gpu_type
    if cpu:
        resources.cpu_milli = read.milli("--cpu", cpu)
    if memory:
        resources.memory_bytes = read.size("--memory", memory)
    if storage:
        resources.storage_bytes = read.size("--storage", storage)
    spec.ports.extend(read.port(text) for text in port)
    spec.env.extend(read.env(text, plain_env) for text in env)
    if command:
        spec.command[:] = command
    if restart is not None:
        spec.restart_policy.mode = RESTARTS[restart]
        spec.restart_policy.restarts_max = restarts_max
    if max_duration:
        spec.max_duration.FromTimedelta(read.duration("--max-duration", max_duration))
    asked.labels.update(dict(read.pair("--label", text) for text in label))
    if display_name:
        asked.display_name = display_name
    with options.client() as client:
        project = options.project_of(client)
        made = client.instances.create(project, name, asked, validate_only=dry_run)
        if dry_run:
            show.one(made, options.output, lambda: _plan(made))
            return
        if wait is not None:
            _await(client, project, name, wait, wait_timeout)
            found = client.instances.get(f"projects/{project}/instances/{name}")
            show.one(found, options.output, lambda: _text(found))
            return
        show.one(made.instance, options.output, lambda: _text(made.instance))


@app.command
def get(
    name: str,
    /,
    *,
    as_of: Annotated[str, Parameter(help="As it was then: a time, or 10m for ago.")] = "",
    options: Options = Options(),
) -> None:
    """Show one instance."""
    with options.client() as client:
        project, full = _name(name, options, client)
        at = read.moment("--as-of", as_of) if as_of else None
        found = with_near(
            lambda: client.instances.get(full, at), name, lambda: client.instances.list(project)
        )
        show.one(found, options.output, lambda: _text(found))


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
        show.many(
            client.instances.list(project, filter, order_by),
            options.output,
            COLUMNS,
            _cells,
            f"No instances in {project}. Make one: fermion instances create NAME --kind notebook",
        )


@app.command
def watch(name: str = "", /, *, options: Options = Options()) -> None:
    """Follow changes of the project's instances, or of one; Ctrl-C detaches."""
    with options.client() as client:
        project = options.project_of(client)
        token = ""
        failures = 0
        while True:
            try:
                for change in client.instances.watch(project, show.short(name), token):
                    token, failures = change.resume_token, 0
                    if change.change == api.WatchInstancesResponse.CHANGE_BOOKMARK:
                        continue
                    kind = show.enum(api.WatchInstancesResponse.Change.Name(change.change))
                    show.line(
                        change.instance, options.output, f"{kind:<8} {_text(change.instance)}"
                    )
            except Error as error:
                # The token goes on where the watch broke, whichever process answers then.
                failures += 1
                if error.exit_code != 6 or failures > 30:
                    raise
                time.sleep(min(0.1 * 2**failures, 2.0))


@app.command
def update(
    name: str,
    /,
    *,
    label: Annotated[tuple[str, ...] | None, Parameter(help="Replaces all labels.")] = None,
    display_name: str | None = None,
    image: str | None = None,
    gpu: str | None = None,
    cpu: str | None = None,
    memory: str | None = None,
    max_duration: str | None = None,
    options: Options = Options(),
) -> None:
    """Change an instance; labels at once, what runs at its next start."""
    asked, paths = api.Instance(), []
    if label is not None:
        asked.labels.update(dict(read.pair("--label", text) for text in label))
        paths.append("labels")
    if display_name is not None:
        asked.display_name = display_name
        paths.append("display_name")
    if image is not None:
        asked.spec.image = image
        paths.append("spec.image")
    if gpu is not None:
        asked.spec.resources.gpu_milli = read.milli("--gpu", gpu)
        paths.append("spec.resources.gpu_milli")
    if cpu is not None:
        asked.spec.resources.cpu_milli = read.milli("--cpu", cpu)
        paths.append("spec.resources.cpu_milli")
    if memory is not None:
        asked.spec.resources.memory_bytes = read.size("--memory", memory)
        paths.append("spec.resources.memory_bytes")
    if max_duration is not None:
        asked.spec.max_duration.FromTimedelta(read.duration("--max-duration", max_duration))
        paths.append("spec.max_duration")
    if not paths:
        raise read.wrong("update", name, "names nothing to change", "Say e.g. --label or --cpu.")
    with options.client() as client:
        asked.name = _name(name, options, client)[1]
        made = client.instances.update(asked, paths).instance
        show.one(made, options.output, lambda: _text(made))


@app.command
def start(name: str, /, *, options: Options = Options()) -> None:
    """Ask for a start."""
    _verb("start", name, options)


@app.command
def stop(name: str, /, *, options: Options = Options()) -> None:
    """Ask for a stop; name and files are kept, and it costs nothing."""
    _verb("stop", name, options)


@app.command
def restart(name: str, /, *, options: Options = Options()) -> None:
    """Ask for a stop, and a start after it."""
    _verb("restart", name, options)


@app.command
def delete(name: str, /, *, options: Options = Options()) -> None:
    """Ask for its deletion; one that lives is stopped first."""
    _verb("delete", name, options)


def _verb(verb: str, name: str, options: Options) -> None:
    with options.client() as client:
        project, full = _name(name, options, client)
        verbs = {
            "start": client.instances.start,
            "stop": client.instances.stop,
            "restart": client.instances.restart,
            "delete": client.instances.delete,
        }
        made = with_near(lambda: verbs[verb](full), name, lambda: client.instances.list(project))
        show.one(made, options.output, lambda: _text(made))


def _name(name: str, options: Options, client: Client) -> tuple[str, str]:
    """The project and the full name of `dev-1`, or of `projects/p/instances/dev-1`."""
    if name.startswith("projects/"):
        return name.split("/")[1], name
    project = options.project_of(client)
    return project, f"projects/{project}/instances/{name}"


def _await(client: Client, project: str, name: str, state: str, timeout: str) -> None:
    wanted = api.State.Value(f"STATE_{state.upper()}")
    deadline = time.monotonic() + read.duration("--wait-timeout", timeout).total_seconds()
    full = f"projects/{project}/instances/{name}"
    while True:
        found = client.instances.get(full)
        if found.status.state == wanted:
            return
        if time.monotonic() > deadline:
            raise Timeout(
                f"{name} is not {state} after {timeout}, but {_state(found)}.",
                reason="WAIT_TIMEOUT",
                arguments={"next_step": f"Follow it: fermion instances watch {name}"},
            )
        time.sleep(0.2)


def _read(file: Path) -> api.Instance:
    try:
        text = sys.stdin.read() if str(file) == "-" else file.read_text()
        return json_format.ParseDict(yaml.safe_load(text) or {}, api.Instance())
    except (OSError, yaml.YAMLError, json_format.ParseError, AttributeError) as error:
        raise read.wrong(
            "--file",
            str(file),
            f"is no Instance ({error})",
            "`fermion instances get NAME -o yaml` is.",
        ) from error


def _state(instance: api.Instance) -> str:
    return show.enum(api.State.Name(instance.status.state))


def _why(instance: api.Instance) -> str:
    """Why it is in its state, not only in which."""
    status = instance.status
    phase = show.enum(api.Phase.Name(status.phase)).lower()
    reason = f"{status.reason.code}" if status.reason.code else ""
    if status.phase == api.PHASE_UNSPECIFIED:
        phase = ""
    waiting = "change waits for a restart" if status.pending_restart else ""
    return ", ".join(part for part in (phase, reason, waiting) if part) or "-"


def _cells(instance: api.Instance) -> tuple[str, ...]:
    resources = instance.spec.resources
    return (
        show.short(instance.name),
        show.enum(api.Kind.Name(instance.spec.kind)).lower(),
        _state(instance),
        _why(instance),
        str(instance.status.attempt),
        f"{resources.gpu_milli / 1000:g}",
        f"{resources.cpu_milli / 1000:g}",
        f"{resources.memory_bytes / 2**30:.3g} GiB",
        show.age(instance.create_time),
    )


def _text(instance: api.Instance) -> str:
    status = instance.status
    why = _why(instance)
    text = f"{show.short(instance.name)}  {_state(instance) if status.state else 'gone'}"
    if why != "-":
        text += f"  {why}"
    if status.reason.message:
        text += f": {status.reason.message}"
    return text


def _plan(made: api.CreateInstanceResponse) -> str:
    """What would be declared, and what cannot be told yet."""
    lines = [f"{show.short(made.instance.name)} would be declared as:"]
    for group in made.plan.workload.groups:
        resources = group.resources
        lines.append(
            f"  {group.replicas} replica of {group.image.repository}: "
            f"{resources.gpu_milli / 1000:g} GPU, {resources.cpu_milli / 1000:g} CPU, "
            f"{resources.memory_bytes / 2**30:.3g} GiB"
        )
        if group.command:
            lines.append(f"  command: {' '.join(group.command)}")
    lines += [f"  note: {warning.message}" for warning in made.plan.warnings]
    if made.plan.absent:
        lines.append(f"  cannot be told yet: {', '.join(made.plan.absent)}")
    return "\n".join(lines)
