"""What the books and the clusters say, as admission takes it: what is wanted, held, there, and allowed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Final

from chassis.workloads import KIND_WORDS, unhonoured
from fermion.api.projects import v1 as projects
from fermion.api.workload import v1 as workload
from services.scheduler import aggregate
from services.scheduler.aggregate import Entry
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

# The readers that fold what projects and executors say.
LIMITS: Final = "scheduler/projects"
REPORTS: Final = "scheduler/executor"

Clusters = Mapping[str, workload.Capabilities]


def work_of(
    entry: Entry,
    *,
    clusters: Clusters,
    replicas: Iterable[Replica] = (),
    began: datetime | None = None,
    ended: bool = False,
) -> Work:
    """Write a workload as admission takes it; `clusters` are those that work may go to."""
    declared, queued, arrived = entry.declared, entry.queue_time, entry.arrive_time
    assert declared is not None
    assert queued is not None
    assert arrived is not None
    able, refusal = able_clusters(declared, clusters)
    spot = any(group.purchase == workload.PURCHASE_SPOT for group in declared.groups)
    lasts = expires = FOREVER
    if declared.HasField("max_duration"):
        lasts = declared.max_duration.ToMilliseconds() + declared.grace.ToMilliseconds()
    if declared.HasField("max_queue_time"):
        # By when it came itself: the age that it keeps over attempts may be long over.
        expires = milliseconds(arrived) + declared.max_queue_time.ToMilliseconds()
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
        queue_time=milliseconds(queued),
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
        sizes=tuple(
            (mount.volume.volume_uid, mount.volume.size_bytes)
            for group in declared.groups
            for mount in group.mounts
            if mount.volume.size_bytes
        ),
        held=_held(entry),
        replicas=tuple(replicas),
        began=None if began is None else milliseconds(began),
        ended=ended,
        said=Said(*aggregate.said(entry.reason)),
        said_time=0 if entry.said_time is None else milliseconds(entry.said_time),
    )


def able_clusters(
    declared: workload.Workload, clusters: Clusters
) -> tuple[tuple[str, ...], workload.Reason | None]:
    """Which clusters can honour a workload, and why none can; no reason while there is none at all."""
    wanted = declared.placement.cluster
    asked = {uid: can for uid, can in clusters.items() if wanted in ("", uid)}
    faults = {uid: _unhonoured(declared, can) for uid, can in sorted(asked.items())}
    able = tuple(uid for uid, fault in faults.items() if fault is None)
    return able, None if able else next(iter(faults.values()), None)


def volume_of(
    volume: aggregate.Volume, *, node: str = "", bound: bool = False, gone: bool = False
) -> Volume:
    """Write a volume as admission takes it."""
    declared = volume.declared
    assert declared is not None
    return Volume(
        declared.uid,
        declared.project,
        declared.user,
        declared.size_bytes,
        volume.cluster,
        bound,
        node,
        volume.revoked,
        gone,
    )


def shape_of(node: workload.Node) -> Shape:
    """Write a node as admission takes it."""
    gpus = tuple(
        sorted(Gpus(one.gpu_type, one.count) for one in node.gpus if one.gpu_type and one.count)
    )
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
    whole = at.replace(microsecond=0)
    return int(whole.timestamp()) * 1000 + at.microsecond // 1000


def _held(entry: Entry) -> Held | None:
    if not entry.cluster or entry.declared is None:
        return None
    return Held(
        entry.cluster,
        dict(entry.replicas),
        aggregate.place_by_role(entry.declared, entry.replicas, entry.nodes),
        entry.gpu_type,
        0 if entry.admit_time is None else milliseconds(entry.admit_time),
        entry.revoked,
    )


def _unhonoured(declared: workload.Workload, can: workload.Capabilities) -> workload.Reason | None:
    """The first field that a cluster, or the scheduler for it, cannot honour; None where all are."""
    fault = unhonoured(declared, can)
    if fault is not None:
        field, reason = fault
        told = workload.Reason()
        told.CopyFrom(reason)
        told.arguments["field"] = field
        return told
    placement = declared.placement
    missing = sorted(set(declared.requires.features) - set(can.features))
    reserved = [
        at
        for at, group in enumerate(declared.groups)
        if group.purchase == workload.PURCHASE_RESERVED_ONLY
    ]
    # What a cluster could do, and admission does not place by yet.
    for name in ("flavour", "same_rack", "beside_workload_uid"):
        if getattr(placement, name):
            return _not_placed(f"placement.{name}")
    if declared.HasField("attach"):
        return _not_placed("attach")
    if reserved:
        return _not_placed(f"groups[{reserved[0]}].purchase")
    if missing:
        return workload.Reason(
            code="FIELD_NOT_HONOURED",
            arguments={"field": "requires.features", "feature": ", ".join(missing)},
            message=f"No cluster has what requires.features asks for: {', '.join(missing)}.",
        )
    return None


def _not_placed(field: str) -> workload.Reason:
    return workload.Reason(
        code="FIELD_NOT_HONOURED",
        arguments={"field": field},
        message=f"Nothing is placed by {field} yet.",
    )


def _group(group: workload.Group) -> Group:
    asked = group.resources
    gpu_type = (asked.gpu_type or ANY) if asked.gpu_milli else ""
    size = Size(gpu_type, asked.gpu_milli, asked.cpu_milli, asked.memory_bytes, asked.scratch_bytes)
    mounted = dict.fromkeys(
        mount.volume.volume_uid for mount in group.mounts if mount.WhichOneof("source") == "volume"
    )
    return Group(group.role, size, group.replicas, group.min_replicas, tuple(mounted))
