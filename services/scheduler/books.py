"""Rows as admission knows them: what is wanted, what is held, what there is, how much may be had."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Final

from chassis.workloads import KIND_WORDS, unhonoured
from fermion.api.projects import v1 as projects
from fermion.api.workload import v1 as workload
from services.scheduler.demand import (
    BATCH,
    INTERACTIVE,
    SERVING,
    SPOT,
    Group,
    Held,
    Replica,
    Said,
    Volume,
    Work,
)
from services.scheduler.placement import ANY, FOREVER, Gpus, Room, Shape, Size

# Serving first, then who waits in front of a screen, then what can wait.
_CLASSES: Final[Mapping[int, int]] = {
    workload.KIND_INFERENCE: SERVING,
    workload.KIND_INSTANCE: INTERACTIVE,
    workload.KIND_TOOL: INTERACTIVE,
    workload.KIND_TRAINING: BATCH,
    workload.KIND_BUILD: BATCH,
}

Clusters = Mapping[str, workload.Capabilities]


def work_of(
    declared: workload.Workload,
    *,
    clusters: Clusters,
    queue_time: datetime,
    said: str = "ARRIVED",
    held: Held | None = None,
    replicas: Iterable[Replica] = (),
    began: datetime | None = None,
    ended: bool = False,
) -> Work:
    """Write a workload as admission takes it; `clusters` are those that work may go to."""
    at = milliseconds(queue_time)
    found = {uid: unhonoured(declared, can) for uid, can in clusters.items()}
    wanted = declared.placement.cluster
    able = tuple(uid for uid in sorted(clusters) if found[uid] is None and wanted in ("", uid))
    refusal = None
    if clusters and not able:
        faults = [fault for _, fault in sorted(found.items()) if fault is not None]
        refusal = faults[0][1] if faults else _no_such_cluster(wanted)
    spot = any(group.purchase == workload.PURCHASE_SPOT for group in declared.groups)
    lasts = FOREVER
    if declared.HasField("max_duration"):
        lasts = declared.max_duration.ToMilliseconds() + declared.grace.ToMilliseconds()
    expires = FOREVER
    if declared.HasField("max_queue_time"):
        expires = at + declared.max_queue_time.ToMilliseconds()
    return Work(
        uid=declared.uid,
        project=declared.project,
        user=declared.user,
        owner=declared.owner,
        kind=KIND_WORDS.get(declared.kind, ""),
        klass=SPOT if spot else _CLASSES.get(declared.kind, BATCH),
        priority=max((group.priority for group in declared.groups), default=0),
        groups=tuple(_group(group) for group in declared.groups),
        lasts=lasts,
        queue_time=at,
        expire_time=expires,
        clusters=able,
        refusal=refusal,
        avoid=tuple(
            (one.node, milliseconds(one.until_time.ToDatetime(tzinfo=UTC)))
            if one.HasField("until_time")
            else (one.node, FOREVER)
            for one in declared.placement.avoid
        ),
        architecture=declared.requires.architecture,
        driver=declared.requires.driver,
        held=held,
        replicas=tuple(replicas),
        began=None if began is None else milliseconds(began),
        ended=ended,
        said=Said(said),
    )


def held_of(
    cluster: str, replicas: str, nodes: str, gpu_type: str, since: datetime | None, revoked: bool
) -> Held | None:
    """Write what was admitted, as its row has it; None where nothing was."""
    if not cluster:
        return None
    placed: Mapping[str, Sequence[str]] = json.loads(nodes)
    return Held(
        cluster,
        json.loads(replicas),
        {role: tuple(names) for role, names in placed.items()},
        gpu_type,
        0 if since is None else milliseconds(since),
        revoked,
    )


def volume_of(
    declared: workload.Volume,
    *,
    cluster: str,
    withdrawn: bool,
    node: str = "",
    bound: bool = False,
    gone: bool = False,
) -> Volume:
    """Write a volume as admission takes it."""
    return Volume(
        declared.uid,
        declared.project,
        declared.user,
        declared.size_bytes,
        cluster,
        bound,
        node,
        withdrawn,
        gone,
    )


def shape_of(node: workload.Node) -> Shape:
    """Write a node as admission takes it."""
    gpus = tuple(Gpus(one.gpu_type, one.count) for one in node.gpus)
    room = Room(node.cpu_milli, node.memory_bytes, node.storage_bytes, gpus)
    return Shape(node.node, room, node.architecture, node.driver, node.cordoned)


def amounts_of(limits: projects.Limits) -> dict[str, int]:
    """Write limits by dimension; what is not bounded is not there."""
    found = {f"gpu_milli/{model}": milli for model, milli in limits.gpu_milli.items()}
    found |= {f"workloads/{kind}": count for kind, count in limits.workloads.items()}
    for name in ("cpu_milli", "memory_bytes", "storage_bytes"):
        if limits.HasField(name):
            found[name] = getattr(limits, name)
    return found


def limits_of(amounts: Mapping[str, int]) -> projects.Limits:
    """Write amounts by dimension as callers know them."""
    found = projects.Limits()
    for dimension, amount in amounts.items():
        name, _, key = dimension.partition("/")
        if key:
            getattr(found, name)[key] = amount
        else:
            setattr(found, name, amount)
    return found


def milliseconds(at: datetime) -> int:
    """Since 1970, floored."""
    return int(at.timestamp() * 1000) if at.microsecond == 0 else _floor(at)


def _floor(at: datetime) -> int:
    whole = at.replace(microsecond=0)
    return int(whole.timestamp()) * 1000 + at.microsecond // 1000


def _group(group: workload.Group) -> Group:
    asked = group.resources
    gpu_type = (asked.gpu_type or ANY) if asked.gpu_milli else ""
    size = Size(gpu_type, asked.gpu_milli, asked.cpu_milli, asked.memory_bytes, asked.scratch_bytes)
    mounted = dict.fromkeys(
        mount.volume.volume_uid for mount in group.mounts if mount.WhichOneof("source") == "volume"
    )
    return Group(group.role, size, group.replicas, group.min_replicas, tuple(mounted))


def _no_such_cluster(name: str) -> workload.Reason:
    return workload.Reason(
        code="FIELD_NOT_HONOURED",
        arguments={"field": "placement.cluster", "cluster": name},
        message=f"No cluster {name!r} is enrolled that it could run on.",
    )
