"""What the contract of workloads means to everybody behind the modules; pure, and no module's own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from fermion.api.workload import v1 as api

# What a cluster may be able to do or not; `Capabilities.features` names those that it does.
ARTIFACTS: Final = "artifacts"
ATTACH: Final = "attach"
BUILD_ISOLATION: Final = "build-isolation"
CHECKPOINTS: Final = "checkpoints"
COMPANIONS: Final = "companions"
EGRESS: Final = "egress"
IDENTITY: Final = "identity"
OUTPUTS: Final = "outputs"
PLACEMENT: Final = "placement"
PREEMPTION: Final = "preemption"
PROBES: Final = "probes"
PURPOSES: Final = "purposes"
RANKS: Final = "ranks"
RESERVATIONS: Final = "reservations"
ROUTES: Final = "routes"
SECRETS: Final = "secrets"
SHARED_GPUS: Final = "shared-gpus"
VOLUMES: Final = "volumes"
FEATURES: Final = (
    *(ARTIFACTS, ATTACH, BUILD_ISOLATION, CHECKPOINTS, COMPANIONS, EGRESS, IDENTITY, OUTPUTS),
    *(PLACEMENT, PREEMPTION, PROBES, PURPOSES, RANKS, RESERVATIONS, ROUTES, SECRETS, SHARED_GPUS),
    VOLUMES,
)

# Reason of a replica whose main ended and is run again after a wait; `ReplicaPending` says it.
CRASH_LOOP_BACKOFF: Final = "CRASH_LOOP_BACKOFF"

KIND_WORDS: Final[Mapping[int, str]] = {
    number: name.removeprefix("KIND_").lower() for name, number in api.Kind.items() if number
}

_MOUNTS: Final = {
    "artifact": ARTIFACTS,
    "output": OUTPUTS,
    "checkpoint": CHECKPOINTS,
    "volume": VOLUMES,
}


def needs(workload: api.Workload) -> Iterator[tuple[str, str]]:
    """
    Name every feature that a workload asks of its cluster, each with the path of the field.

    A field that asks for nothing special is not named; images and resources are matched apart.
    """
    if workload.purpose:
        # Beside the main workload, for which its owner's module has to do something of its own.
        yield PURPOSES, "purpose"
    if workload.HasField("attach"):
        yield ATTACH, "attach"
    if workload.egress:
        yield EGRESS, "egress"
    if workload.isolation == api.ISOLATION_BUILD:
        yield BUILD_ISOLATION, "isolation"
    if workload.rendezvous == api.RENDEZVOUS_RANKS:
        yield RANKS, "rendezvous"
    if workload.drain.ToNanoseconds():
        # Without routes there is nothing that it could be taken out of.
        yield ROUTES, "drain"
    for name in ("flavour", "same_rack", "beside_workload_uid"):
        if getattr(workload.placement, name):
            yield PLACEMENT, f"placement.{name}"
    for place, group in enumerate(workload.groups):
        path = f"groups[{place}]"
        if group.companions:
            yield COMPANIONS, f"{path}.companions"
        if group.HasField("identity"):
            yield IDENTITY, f"{path}.identity"
        if group.secret_refs:
            yield SECRETS, f"{path}.secret_refs"
        if group.probes.ListFields():
            yield PROBES, f"{path}.probes"
        if group.preemptible:
            yield PREEMPTION, f"{path}.preemptible"
        if group.purchase == api.PURCHASE_RESERVED_ONLY:
            yield RESERVATIONS, f"{path}.purchase"
        for number, port in enumerate(group.ports):
            if port.public:
                yield ROUTES, f"{path}.ports[{number}].public"
        if group.resources.gpu_milli % 1000:
            yield SHARED_GPUS, f"{path}.resources.gpu_milli"
        for number, mount in enumerate(group.mounts):
            source = mount.WhichOneof("source")
            if source is not None:
                yield _MOUNTS[source], f"{path}.mounts[{number}].{source}"


def unhonoured(workload: api.Workload, can: api.Capabilities) -> tuple[str, api.Reason] | None:
    """Find the first field that a cluster cannot honour, and why; None where it honours all."""
    features = frozenset(can.features)
    for feature, field in needs(workload):
        if feature not in features:
            return field, api.Reason(
                code="FIELD_NOT_HONOURED",
                arguments={"field": field, "feature": feature, "cluster_kind": can.cluster_kind},
                message=f"This cluster ({can.cluster_kind}) has no {feature}, which {field} asks for.",
            )
    if can.any_image:
        return None
    known = {image.repository for image in can.images}
    for place, group in enumerate(workload.groups):
        name = group.image.repository
        if name not in known:
            offered = ", ".join(sorted(known))
            return f"groups[{place}].image", api.Reason(
                code="IMAGE_NOT_HONOURED",
                arguments={"image": name, "images": offered},
                message=f"This cluster does not run the image {name!r}; it runs {offered}.",
            )
    return None


def needed(workload: api.Workload, replicas: Mapping[str, int] | None = None) -> api.Resources:
    """Sum what so many replicas of each role take, all of them where no number is given."""
    found = api.Resources()
    for group in workload.groups:
        count = group.replicas if replicas is None else replicas.get(group.role, 0)
        each = group.resources
        found.gpu_milli += count * each.gpu_milli
        found.cpu_milli += count * each.cpu_milli
        found.memory_bytes += count * each.memory_bytes
        found.scratch_bytes += count * each.scratch_bytes
        found.gpu_type = found.gpu_type or each.gpu_type
    return found


def volumes(workload: api.Workload) -> Sequence[str]:
    """Uids of the volumes that a workload mounts, each once."""
    return list(
        dict.fromkeys(
            mount.volume.volume_uid
            for group in workload.groups
            for mount in group.mounts
            if mount.WhichOneof("source") == "volume"
        )
    )
