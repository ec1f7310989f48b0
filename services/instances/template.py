"""Pre-configured kinds that operators edit as data: their rules, and those one begins with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, cast

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from chassis.editing import must_be_seen
from chassis.envelope import Recorded
from chassis.refusals import Missing, Violation
from fermion.api.instances import v1 as api
from fermion.api.workload import v1 as workload
from services.instances import spec as rules
from services.instances.config import Settings
from services.instances.spec import PREFIX

GIB: Final = 2**30


def fold(records: Sequence[Recorded]) -> api.Template | None:
    """Fold a `template/` stream: the last word counts."""
    return cast(api.TemplateSet, records[-1].message).template if records else None


def change(
    present: api.Template | None,
    *,
    asked: api.Template,
    policy: Settings,
    allow_missing: bool,
    etag: str = "",
) -> list[api.TemplateSet]:
    """Replace a template as a whole, or add it where that is allowed."""
    if present is None and not allow_missing:
        raise unknown(asked.name)
    generation = 0 if present is None else present.generation
    must_be_seen(etag, generation)
    found = _faults(asked, policy)
    if found:
        raise rules.invalid("template", found)
    following = api.Template()
    following.CopyFrom(asked)
    following.generation = generation
    following.etag = str(generation)
    if following == present:
        return []
    following.generation = generation + 1
    following.etag = str(generation + 1)
    return [api.TemplateSet(template=following)]


def offer(present: api.Template | None, *, template: api.Template) -> list[api.TemplateSet]:
    """State a template that the platform begins with, unless there is one of that name."""
    if present is not None:
        return []
    offered = api.Template()
    offered.CopyFrom(template)
    offered.generation = 1
    offered.etag = "1"
    return [api.TemplateSet(template=offered)]


def preview(present: api.Template | None, facts: Sequence[Message]) -> api.Template | None:
    """Tell which template there would be if these facts were said."""
    said = [fact.template for fact in facts if isinstance(fact, api.TemplateSet)]
    return said[-1] if said else present


def unknown(name: str) -> Missing:
    """Make the refusal of what is asked about a template that is not there."""
    return Missing(
        "TEMPLATE_NOT_FOUND",
        f"There is no {name}.",
        next_step="`fermion templates list` shows those that are there; an operator adds one with "
        "`fermion templates set --file FILE`.",
        template=name,
    )


def first(policy: Settings) -> list[api.Template]:
    """
    Write the templates that a platform without any begins with.

    They ask for little within the bounds, so that they can be started wherever the bounds let
    anything start; an operator makes them what the cluster is good for.
    """
    resources = api.Resources(
        gpu_milli=policy.gpu_milli_min,
        cpu_milli=min(max(policy.cpu_milli_min, 1_000), policy.cpu_milli_max),
        memory_bytes=min(max(policy.memory_bytes_min, 2 * GIB), policy.memory_bytes_max),
        storage_bytes=min(max(policy.storage_bytes_min, 10 * GIB), policy.storage_bytes_max),
    )
    again = workload.RestartPolicy(
        mode=workload.RestartPolicy.MODE_ON_FAILURE,
        # A program that always fails must not cost for ever.
        restarts_max=5,
        backoff=Duration(seconds=10),
    )
    http = workload.Port.PROTOCOL_HTTP
    return [
        api.Template(
            name=f"{PREFIX}training",
            display_name="Training environment",
            description="A shell that stays, to write and try training code; TensorBoard's port.",
            kind=api.KIND_TRAINING,
            spec=api.TemplateSpec(
                image="host",
                resources=resources,
                ports=[workload.Port(name="tensorboard", number=6006, protocol=http)],
                command=["sleep", "infinity"],
                restart_policy=again,
            ),
        ),
        api.Template(
            name=f"{PREFIX}inference",
            display_name="Inference environment",
            description="A shell that stays, to try a model server; a port for HTTP.",
            kind=api.KIND_INFERENCE,
            spec=api.TemplateSpec(
                image="host",
                resources=resources,
                ports=[workload.Port(name="http", number=8000, protocol=http)],
                command=["sleep", "infinity"],
                restart_policy=again,
            ),
        ),
        api.Template(
            name=f"{PREFIX}notebook",
            display_name="Notebook",
            description="JupyterLab; ready when it answers.",
            kind=api.KIND_NOTEBOOK,
            spec=api.TemplateSpec(
                image="jupyterlab",
                resources=resources,
                ports=[workload.Port(name="jupyter", number=8888, protocol=http)],
                command=["jupyter", "lab"],
                # Its port is taken or it ends: behind another one nobody would look for it. The token
                # comes from the cluster, in JUPYTER_TOKEN.
                args=[
                    "--no-browser",
                    "--allow-root",
                    "--ip=127.0.0.1",
                    "--port=$(FERMION_PORT_JUPYTER)",
                    "--ServerApp.port_retries=0",
                ],
                restart_policy=again,
                probes=workload.Probes(
                    readiness=workload.Probe(
                        http_path="/api",
                        port="jupyter",
                        period=Duration(seconds=2),
                        timeout=Duration(seconds=2),
                        failure_threshold=3,
                        success_threshold=1,
                    )
                ),
            ),
        ),
    ]


def _faults(template: api.Template, policy: Settings) -> list[Violation]:
    spec, path = template.spec, "template.spec"
    found = rules.out_of_bounds(spec.resources, policy, f"{path}.resources", open_ended=True)
    found += rules.repeated(spec.ports, spec.env, path)
    found += rules.unpayable(spec, policy, path)
    ports = {port.name for port in spec.ports}
    for field, probe in spec.probes.ListFields():
        if probe.port and probe.port not in ports:
            found.append(
                Violation(
                    f"{path}.probes.{field.name}.port",
                    f"is {probe.port}, which is none of the template's ports",
                    "spec.probes.port",
                )
            )
    return found
