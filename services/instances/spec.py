"""What a spec says once a template filled it in, what it may ask for, and how it is changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from google.protobuf.field_mask_pb2 import FieldMask

from chassis.editing import must_be_changeable
from chassis.refusals import Invalid, Violation
from fermion.api.instances import v1 as api
from fermion.api.workload import v1 as workload
from services.instances.config import Settings

PREFIX: Final = "templates/"

# Templates that pre-configure a kind where the user names none; a custom instance has none.
OF_KIND: Final = {
    api.KIND_TRAINING: "training",
    api.KIND_INFERENCE: "inference",
    api.KIND_NOTEBOOK: "notebook",
}

# What `update_mask` may name.
CHANGEABLE: Final = (
    "display_name",
    "description",
    "labels",
    "spec",
    "spec.image",
    "spec.resources",
    *(f"spec.resources.{name}" for name in api.Resources.DESCRIPTOR.fields_by_name),
    "spec.ports",
    "spec.env",
    "spec.command",
    "spec.args",
    "spec.restart_policy",
    "spec.max_duration",
    "spec.max_cost",
)
# What an update may name only in order to say what it is already.
FIXED: Final = ("kind", "template")


def named(spec: api.Spec) -> str:
    """Tell the template that a spec is filled from: the one it names, its kind's own, or none."""
    return spec.template.removeprefix(PREFIX) or OF_KIND.get(spec.kind, "")


def fill(spec: api.Spec, template: api.TemplateSpec) -> api.Spec:
    """
    Answer the spec with the template's word wherever it says nothing itself.

    Ports and environment are added up, and the spec wins over the template where both have one of
    the same name. Arguments of the template go with its command only.
    """
    filled = api.Spec(kind=spec.kind, image=spec.image or template.image)
    name = named(spec)
    if name:
        filled.template = PREFIX + name
    filled.resources.CopyFrom(_resources(spec.resources, template.resources))
    filled.ports.extend({port.name: port for port in (*template.ports, *spec.ports)}.values())
    filled.env.extend({entry.name: entry for entry in (*template.env, *spec.env)}.values())
    filled.command.extend(spec.command or template.command)
    filled.args.extend(spec.args if spec.args or spec.command else template.args)
    for source in (spec, template):
        if source.HasField("restart_policy"):
            filled.restart_policy.CopyFrom(source.restart_policy)
            break
    else:
        filled.restart_policy.mode = workload.RestartPolicy.MODE_NEVER
    for source in (spec, template):
        if source.HasField("max_duration"):
            filled.max_duration.CopyFrom(source.max_duration)
            break
    for source in (spec, template):
        if source.HasField("max_cost"):
            filled.max_cost.CopyFrom(source.max_cost)
            break
    return filled


def faults(asked: api.Spec, template: api.TemplateSpec, policy: Settings) -> list[Violation]:
    """Name every field by which a spec, filled from its template, may not be an instance's."""
    path = "instance.spec"
    spec = fill(asked, template)
    if spec.kind == api.KIND_UNSPECIFIED:
        kinds = ", ".join(name for name, number in api.Kind.items() if number)
        return [Violation(f"{path}.kind", f"is not said, and must be one of {kinds}", "spec.kind")]
    found = out_of_bounds(spec.resources, policy, f"{path}.resources")
    found += _contradictions(spec.resources, f"{path}.resources")
    names = {port.name for port in asked.ports}
    kept = [port.number for port in template.ports if port.name not in names]
    found += repeated(asked.ports, asked.env, path, taken=kept)
    found += unpayable(spec, policy, path)
    if spec.kind == api.KIND_CUSTOM and not spec.image and not spec.command:
        found.append(
            Violation(
                f"{path}.image",
                "is empty, and so is command; a custom instance needs at least one of them",
                "spec.custom",
            )
        )
    return found


def out_of_bounds(
    asked: api.Resources, policy: Settings, path: str, *, open_ended: bool = False
) -> list[Violation]:
    """Name what is outside the policy; with `open_ended` a zero is only left open."""
    bounds = (
        ("gpu_milli", asked.gpu_milli, policy.gpu_milli_min, policy.gpu_milli_max),
        ("cpu_milli", asked.cpu_milli, policy.cpu_milli_min, policy.cpu_milli_max),
        ("memory_bytes", asked.memory_bytes, policy.memory_bytes_min, policy.memory_bytes_max),
        ("storage_bytes", asked.storage_bytes, policy.storage_bytes_min, policy.storage_bytes_max),
    )
    return [
        Violation(
            f"{path}.{name}",
            f"is {value}, and this platform allows {least} to {most}",
            f"limits.{name}",
        )
        for name, value, least, most in bounds
        if not least <= value <= most and not (open_ended and value == 0)
    ]


def unpayable(spec: api.Spec | api.TemplateSpec, policy: Settings, path: str) -> list[Violation]:
    """Name what is wrong with the bound of the cost; none is no bound."""
    if not spec.HasField("max_cost"):
        return []
    found, bound = [], spec.max_cost
    if bound.nanos <= 0:
        found.append(
            Violation(
                f"{path}.max_cost.nanos",
                f"is {bound.nanos}, and has to be more than 0; leave max_cost out for no bound",
                "max_cost.nanos",
            )
        )
    if bound.currency not in ("", policy.currency):
        found.append(
            Violation(
                f"{path}.max_cost.currency",
                f"is {bound.currency}, and this platform's prices are in {policy.currency}",
                "max_cost.currency",
            )
        )
    return found


def repeated(
    ports: Sequence[workload.Port],
    env: Sequence[workload.EnvVar],
    path: str,
    taken: Sequence[int] = (),
) -> list[Violation]:
    """Name every port and variable that is there twice; `taken` are numbers used already."""
    # (field, its values in order, values that are not free from the start)
    lists: tuple[tuple[str, list[str], list[str]], ...] = (
        ("ports[{}].name", [port.name for port in ports], []),
        ("ports[{}].number", [str(port.number) for port in ports], [str(n) for n in taken]),
        ("env[{}].name", [entry.name for entry in env], []),
    )
    return [
        Violation(f"{path}.{field.format(place)}", f"is {value} a second time", "spec.unique")
        for field, values, seen in lists
        for place, value in enumerate(values)
        if value in seen or value in values[:place]
    ]


def changed(
    present: api.Instance,
    asked: api.Instance,
    paths: Sequence[str],
    template: api.TemplateSpec,
    policy: Settings,
) -> api.Instance:
    """
    Answer what a caller set once the named paths say what `asked` says; no path names all it sets.

    What is named and left empty is filled from the template again; what is not named stays, also
    where the template or the bounds have changed since. `Invalid` where a path or a value is wrong.
    """
    named_paths = tuple(paths) or _set_paths(asked)
    _must_be_changeable(present.spec, asked.spec, named_paths)
    mask = FieldMask(paths=[path for path in named_paths if path in CHANGEABLE])
    source = api.Instance()
    source.CopyFrom(asked)
    # Present, so that a path below it clears what the caller left out.
    source.spec.resources.SetInParent()
    merged = api.Instance()
    merged.CopyFrom(present)
    mask.MergeMessage(source, merged, True, True)
    if not any(path.startswith("spec") for path in mask.paths):
        return merged
    merged.spec.kind = present.spec.kind
    merged.spec.template = present.spec.template
    again = repeated(merged.spec.ports, merged.spec.env, "instance.spec")
    merged.spec.CopyFrom(fill(merged.spec, template))
    following = api.Instance()
    following.CopyFrom(present)
    mask.MergeMessage(merged, following, True, True)
    found = again or faults(following.spec, api.TemplateSpec(), policy)
    if found:
        raise invalid("instance", found)
    return following


def keep_storage(present: api.Spec, asked: api.Spec, wanted: api.Spec) -> None:
    """
    Hold a changed spec to the volume that is there; `Invalid` where another size is asked for.

    Where none is asked for and the template's would be filled in, the present one stays.
    """
    there = present.resources.storage_bytes
    if wanted.resources.storage_bytes == there:
        return
    size = asked.resources.storage_bytes
    if size:
        raise invalid(
            "instance",
            [
                Violation(
                    "instance.spec.resources.storage_bytes",
                    f"is {size}, and its files lie in a volume of {there} bytes, whose size never changes",
                    "resources.storage_bytes.fixed",
                )
            ],
        )
    wanted.resources.storage_bytes = there


def invalid(subject: str, violations: Sequence[Violation]) -> Invalid:
    """Make the refusal of a request whose fields break rules of this service."""
    first = violations[0]
    more = f", and {len(violations) - 1} more" if len(violations) > 1 else ""
    return Invalid(
        "FIELD_INVALID",
        f"The {subject} cannot be like that: {first.field} {first.description}{more}.",
        violations=tuple(violations),
        next_step="Change the named fields and send it again.",
        field=first.field,
        rule=first.rule,
    )


def _resources(asked: api.Resources, template: api.Resources) -> api.Resources:
    gpu_milli = asked.gpu_milli if asked.HasField("gpu_milli") else template.gpu_milli
    return api.Resources(
        # Who asks for no GPU has no use for the template's model of one.
        gpu_type=asked.gpu_type or (template.gpu_type if gpu_milli else ""),
        gpu_milli=gpu_milli,
        cpu_milli=asked.cpu_milli or template.cpu_milli,
        memory_bytes=asked.memory_bytes or template.memory_bytes,
        storage_bytes=asked.storage_bytes or template.storage_bytes,
        shm_bytes=asked.shm_bytes or template.shm_bytes,
    )


def _contradictions(asked: api.Resources, path: str) -> list[Violation]:
    found = []
    if asked.shm_bytes > asked.memory_bytes:
        found.append(
            Violation(
                f"{path}.shm_bytes",
                f"is {asked.shm_bytes}, and it is part of memory_bytes, {asked.memory_bytes}",
                "resources.shm_bytes",
            )
        )
    if asked.gpu_type and not asked.gpu_milli:
        found.append(
            Violation(
                f"{path}.gpu_type",
                f"is {asked.gpu_type}, and no GPU is asked for",
                "resources.gpu_type",
            )
        )
    return found


def _set_paths(asked: api.Instance) -> tuple[str, ...]:
    paths = [name for name in ("display_name", "description", "labels") if getattr(asked, name)]
    for named, _ in asked.spec.ListFields():
        if named.name == "resources":
            below = (known.name for known, _ in asked.spec.resources.ListFields())
            paths += [f"spec.resources.{name}" for name in below]
        elif named.name not in FIXED:
            paths.append(f"spec.{named.name}")
    return tuple(paths)


def _must_be_changeable(present: api.Spec, asked: api.Spec, paths: Sequence[str]) -> None:
    fixed = tuple(f"spec.{name}" for name in FIXED)
    must_be_changeable([path for path in paths if path not in fixed], CHANGEABLE)
    differing = [
        name
        for name in FIXED
        if (getattr(asked, name) or f"spec.{name}" in paths)
        and getattr(asked, name) != getattr(present, name)
    ]
    if differing:
        raise invalid(
            "instance",
            [
                Violation(f"instance.spec.{name}", "never changes", f"spec.{name}.fixed")
                for name in differing
            ],
        )
