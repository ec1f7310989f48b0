"""What the local cluster takes, field by field; what it cannot honour it names. Reads, and makes nothing."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from chassis.workloads import unhonoured
from fermion.api.workload import v1 as api
from services.executor.ground import HOST, KIND, Ground, architecture

SHARED_MEMORY = Path("/dev/shm")


def refusal(ground: Ground, wanted: api.Workload) -> tuple[str, api.Reason] | None:
    """Find the first field of a workload that cannot be honoured here, and why."""
    return unhonoured(wanted, ground.capabilities()) or next(_faults(ground, wanted), None)


def _faults(ground: Ground, wanted: api.Workload) -> Iterator[tuple[str, api.Reason]]:
    asked = wanted.requires
    if asked.architecture not in ("", architecture()):
        yield _not_here("requires.architecture", f"a machine of {asked.architecture}")
    if asked.driver and not ground.gpus.driver:
        yield _not_here("requires.driver", "a GPU driver")
    if asked.features:
        yield _not_here("requires.features", ", ".join(asked.features))
    roles = Counter(group.role for group in wanted.groups)
    if wanted.ends.rule == api.Ends.RULE_ROLE and wanted.ends.role not in roles:
        yield _not_here("ends.role", f"role {wanted.ends.role}")
    if wanted.success.rule == api.Success.RULE_ROLE and wanted.success.role not in roles:
        yield _not_here("success.role", f"role {wanted.success.role}")
    for place, group in enumerate(wanted.groups):
        path = f"groups[{place}]"
        if roles[group.role] > 1:
            yield _not_here(f"{path}.role", "two groups of one role")
        yield from _of_image(ground, group, path)
        yield from _of_resources(ground, group.resources, f"{path}.resources")
        yield from _of_mounts(group.mounts, path)
        ports = {port.name for port in group.ports}
        for field, probe in group.probes.ListFields():
            if not probe.command and probe.port not in ports:
                yield _not_here(f"{path}.probes.{field.name}.port", "a check of no port")


def _of_image(ground: Ground, group: api.Group, path: str) -> Iterator[tuple[str, api.Reason]]:
    asked, found = group.image, ground.image(group.image.repository)
    if found is None:
        return
    if asked.digest not in ("", found.digest) or asked.version_uid:
        yield (
            f"{path}.image",
            api.Reason(
                code="IMAGE_NOT_HONOURED",
                arguments={"image": asked.digest or asked.version_uid, "images": found.digest},
                message=f"{asked.repository} is {found.digest} here, and nothing else.",
            ),
        )
    if not group.command and asked.repository == HOST:
        yield (
            f"{path}.command",
            api.Reason(
                code="COMMAND_MISSING",
                arguments={"image": HOST},
                message=f"The image {HOST} runs nothing of its own; name a command.",
            ),
        )


def _of_resources(
    ground: Ground, asked: api.Resources, path: str
) -> Iterator[tuple[str, api.Reason]]:
    count = asked.gpu_milli // 1000
    if count > len(ground.gpus.of(asked.gpu_type)):
        field = "gpu_type" if asked.gpu_type else "gpu_milli"
        yield _not_here(f"{path}.{field}", f"{count} GPUs {asked.gpu_type}".strip())
    if asked.shm_bytes and asked.shm_bytes > shutil.disk_usage(SHARED_MEMORY).total:
        yield _not_here(f"{path}.shm_bytes", f"{asked.shm_bytes} bytes of shared memory")


def _of_mounts(mounts: Sequence[api.Mount], path: str) -> Iterator[tuple[str, api.Reason]]:
    """A mount is a link below the replica's root, so none can be inside another."""
    seen: list[PurePosixPath] = []
    for place, mount in enumerate(mounts):
        if mount.WhichOneof("source") is None:
            yield _not_here(f"{path}.mounts[{place}]", "a mount of nothing")
        there = PurePosixPath("/", mount.path.strip("/"))
        bad = ".." in there.parts or there == PurePosixPath("/")
        if bad or any(there.is_relative_to(one) or one.is_relative_to(there) for one in seen):
            yield _not_here(f"{path}.mounts[{place}].path", f"a mount at {mount.path}")
        seen.append(there)


def _not_here(field: str, feature: str) -> tuple[str, api.Reason]:
    return field, api.Reason(
        code="FIELD_NOT_HONOURED",
        arguments={"field": field, "feature": feature, "cluster_kind": KIND},
        message=f"This cluster ({KIND}) has no {feature}, which {field} asks for.",
    )
