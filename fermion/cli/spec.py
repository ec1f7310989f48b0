"""What a user says of an instance with options and files, as the API's message."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from fermion.api.instances import v1 as api
from fermion.api.workload import v1 as workload
from fermion.cli import read

RestartName = Literal["never", "on-failure", "always"]
RESTARTS: Mapping[str, workload.RestartPolicy.Mode.ValueType] = {
    "never": workload.RestartPolicy.MODE_NEVER,
    "on-failure": workload.RestartPolicy.MODE_ON_FAILURE,
    "always": workload.RestartPolicy.MODE_ALWAYS,
}


@Parameter(name="*")
@dataclass(frozen=True)
class Wish:
    """What was said of an instance; None where nothing was."""

    image: Annotated[str | None, Parameter(help="Image, instead of the template's.")] = None
    gpu: Annotated[str | None, Parameter(help="GPUs, e.g. 1 or 0.5")] = None
    gpu_type: Annotated[str | None, Parameter(help="Model of the GPU, e.g. A100-80GB")] = None
    cpu: Annotated[str | None, Parameter(help="CPU cores, e.g. 4 or 500m; 0: the template's")] = (
        None
    )
    memory: Annotated[str | None, Parameter(help="Memory, e.g. 16GiB; 0: the template's")] = None
    storage: Annotated[str | None, Parameter(help="Disk that outlives a stop, e.g. 50GiB")] = None
    shm: Annotated[str | None, Parameter(help="Shared memory, a part of --memory.")] = None
    port: Annotated[
        tuple[str, ...] | None, Parameter(help="NAME:NUMBER[/http|grpc|tcp], more than once.")
    ] = None
    env: Annotated[tuple[str, ...] | None, Parameter(help="NAME=VALUE, more than once.")] = None
    plain_env: Annotated[bool, Parameter(help="Allow names that sound like secrets.")] = False
    command: Annotated[
        tuple[str, ...] | None,
        Parameter(help="A word of the start command; easier: -- PROGRAM WORD …"),
    ] = None
    arg: Annotated[
        tuple[str, ...] | None,
        Parameter(help="An argument, instead of the template's; more than once."),
    ] = None
    restart: Annotated[RestartName | None, Parameter(help="When main is run again.")] = None
    restarts_max: Annotated[int | None, Parameter(help="At most so often; 0: no bound.")] = None
    max_duration: Annotated[str | None, Parameter(help="Stop after, e.g. 8h")] = None
    max_cost: Annotated[
        str | None, Parameter(help="Stop once an attempt has cost so much, e.g. 2.50")
    ] = None
    label: Annotated[tuple[str, ...] | None, Parameter(help="KEY=VALUE, more than once.")] = None
    display_name: Annotated[str | None, Parameter(help="As shown.")] = None
    description: Annotated[str | None, Parameter(help="Free text.")] = None
    file: Annotated[
        Path | None,
        Parameter(
            name=["--file", "-f"],
            help="YAML of an Instance, - for stdin; options win.",
            allow_leading_hyphen=True,
        ),
    ] = None


def build(wish: Wish) -> tuple[api.Instance, list[str]]:
    """The instance that was asked for, and the update mask of what options said of it."""
    asked = _from_file(wish.file) if wish.file is not None else api.Instance()
    paths: list[str] = []
    for name in ("display_name", "description"):
        text = getattr(wish, name)
        if text is not None:
            setattr(asked, name, text)
            paths.append(name)
    if wish.label is not None:
        asked.labels.update(dict(read.pair("--label", text) for text in wish.label))
        paths.append("labels")
    paths += _resources(wish, asked.spec)
    paths += _program(wish, asked.spec)
    if not wish.plain_env:
        for entry in asked.spec.env:
            read.must_be_plain("--env", entry.name)
    return asked, paths


def _resources(wish: Wish, spec: api.Spec) -> list[str]:
    said = {
        "gpu_type": wish.gpu_type,
        "gpu_milli": None if wish.gpu is None else read.milli("--gpu", wish.gpu),
        "cpu_milli": None if wish.cpu is None else read.milli("--cpu", wish.cpu),
        "memory_bytes": None if wish.memory is None else read.size("--memory", wish.memory),
        "storage_bytes": None if wish.storage is None else read.size("--storage", wish.storage),
        "shm_bytes": None if wish.shm is None else read.size("--shm", wish.shm),
    }
    found = {name: value for name, value in said.items() if value is not None}
    for name, value in found.items():
        setattr(spec.resources, name, value)
    return [f"spec.resources.{name}" for name in found]


def _program(wish: Wish, spec: api.Spec) -> list[str]:
    paths = []
    if wish.image is not None:
        spec.image = wish.image
        paths.append("spec.image")
    if wish.port is not None:
        said = [read.port(text) for text in wish.port]
        ports = {port.name: port for port in (*spec.ports, *said)}
        spec.ClearField("ports")
        spec.ports.extend(ports.values())
        paths.append("spec.ports")
    if wish.env is not None:
        variables = [read.env(text) for text in wish.env]
        entries = {entry.name: entry for entry in (*spec.env, *variables)}
        spec.ClearField("env")
        spec.env.extend(entries.values())
        paths.append("spec.env")
    if wish.command is not None:
        spec.command[:] = wish.command
        paths.append("spec.command")
    if wish.arg is not None:
        spec.args[:] = wish.arg
        paths.append("spec.args")
    if wish.restart is not None:
        spec.restart_policy.mode = RESTARTS[wish.restart]
    if wish.restarts_max is not None:
        spec.restart_policy.restarts_max = wish.restarts_max
    if wish.restart is not None or wish.restarts_max is not None:
        paths.append("spec.restart_policy")
    if wish.max_duration is not None:
        lasts = read.duration("--max-duration", wish.max_duration)
        spec.max_duration.FromTimedelta(lasts)
        paths.append("spec.max_duration")
    if wish.max_cost is not None:
        spec.max_cost.CopyFrom(read.money("--max-cost", wish.max_cost))
        paths.append("spec.max_cost")
    return paths


def _from_file(file: Path) -> api.Instance:
    """What a caller may set of the instance in a file; what the platform set of it is left out."""
    found = read.message(file, api.Instance(), "fermion instances get NAME -o yaml prints one.")
    return api.Instance(
        name=found.name,
        display_name=found.display_name,
        description=found.description,
        labels=found.labels,
        spec=found.spec if found.HasField("spec") else None,
    )
