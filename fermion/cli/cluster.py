"""What a cluster has and can honour, in words that claim no more than it does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Final

from fermion.api.executor import v1 as api
from fermion.api.workload import v1 as workload
from fermion.cli import show
from fermion.cli.show import Column

# It states how far it is each ten seconds; further behind, something stands still.
BEHIND_MAX: Final = timedelta(seconds=60)
LIMITS: Final = {
    workload.Capabilities.LIMITS_UNSPECIFIED: "not said yet",
    workload.Capabilities.LIMITS_NONE: "none: replicas take what they like",
    workload.Capabilities.LIMITS_RLIMITS: "of each process alone (rlimits); beyond, use is watched",
    workload.Capabilities.LIMITS_CGROUP1: "control groups, version 1",
    workload.Capabilities.LIMITS_CGROUP2: "control groups, version 2",
}


def name(cluster: api.Cluster) -> str:
    """Its kind and uid."""
    kind = cluster.capabilities.cluster_kind or "of a kind not said yet"
    return f"{show.short(cluster.name)} ({kind})"


def limits(cluster: api.Cluster) -> str:
    """How resources are held down."""
    return LIMITS.get(cluster.capabilities.limits, "of a kind that this client does not know")


def gpus(cluster: api.Cluster) -> str:
    """Its GPUs by model, and whether they are there at all."""
    found: Counter[str] = Counter()
    for one in cluster.nodes:
        found.update({gpu.gpu_type: gpu.count for gpu in one.gpus})
    simulated = "; simulated, nothing is computed on them"
    there = simulated if cluster.capabilities.simulated_gpus else ""
    return f"{_models(found)}{there}" if found else "none"


def images(cluster: api.Cluster) -> str:
    """What it runs."""
    if cluster.capabilities.any_image:
        return "any"
    return ", ".join(one.repository for one in cluster.capabilities.images) or "none"


def capacity(node: workload.Node) -> str:
    """What workloads may use of a node, in all."""
    parts = [
        f"{show.cores(node.cpu_milli)} CPU",
        f"{show.size(node.memory_bytes)} memory",
        f"{show.size(node.storage_bytes)} disk",
    ]
    if node.gpus:
        parts.append(_gpus(node))
    if node.cordoned:
        parts.append("takes nothing new")
    return ", ".join(parts)


def behind(cluster: api.Cluster, now: datetime) -> timedelta | None:
    """Since when nothing was said to be complete; None where it never was."""
    if not cluster.watermark_time.seconds:
        return None
    return max(timedelta(), now - cluster.watermark_time.ToDatetime(tzinfo=UTC))


def told(cluster: api.Cluster, now: datetime) -> Iterator[tuple[str, str]]:
    """What it is, a title and a sentence each."""
    late = behind(cluster, now)
    yield "cluster", name(cluster)
    yield "limits", limits(cluster)
    yield "GPUs", gpus(cluster)
    yield "images", images(cluster)
    yield (
        "stated",
        "nothing yet" if late is None else f"all up to {int(late.total_seconds())} s ago",
    )


NODES: tuple[Column[workload.Node], ...] = (
    Column("NODE", lambda one: one.node),
    Column("CPU", lambda one: show.cores(one.cpu_milli)),
    Column("MEMORY", lambda one: show.size(one.memory_bytes)),
    Column("DISK", lambda one: show.size(one.storage_bytes)),
    Column("GPUS", lambda one: _gpus(one) or "-"),
    Column("STATE", lambda one: "takes nothing new" if one.cordoned else "ok"),
    Column("ARCHITECTURE", lambda one: one.architecture or "-", wide=True),
    Column("DRIVER", lambda one: one.driver or "-", wide=True),
    Column("DOMAINS", lambda one: show.pairs(dict(one.domains)), wide=True),
)


def _gpus(node: workload.Node) -> str:
    return _models(Counter({gpu.gpu_type: gpu.count for gpu in node.gpus}))


def _models(found: Counter[str]) -> str:
    return ", ".join(f"{count} x {model or 'GPU'}" for model, count in sorted(found.items()))
