"""Why a workload waits: a code with what is short, where, and by how much. Pure."""

from __future__ import annotations

from typing import Final

from fermion.api.workload import v1 as workload
from services.scheduler import quota
from services.scheduler.admission import holders
from services.scheduler.demand import CLASSES, Line, Work
from services.scheduler.placement import ANY, FOREVER, typed
from services.scheduler.state import Fit, State

_UNITS: Final = {"cpu_milli": "CPU", "memory_bytes": "memory", "storage_bytes": "storage"}


def reason(state: State, work: Work, now: int) -> workload.Reason:
    """The first thing that is in a waiting workload's way."""
    if not state.clusters or not work.clusters:
        return workload.Reason(
            code="NO_CLUSTER",
            message="No cluster is enrolled that it could run on; it is admitted when there is one.",
        )
    if work.uid in state.lacking:
        return workload.Reason(
            code="VOLUME_UNKNOWN",
            arguments={"volume": state.lacking[work.uid]},
            message="A volume that it mounts has not been declared yet.",
        )
    if not state.quotas.knows(work.project):
        return workload.Reason(
            code="QUOTA_UNKNOWN",
            arguments={"project": work.project},
            message="The project's limits have not been read yet.",
        )
    rows = state.lines.of(work.uid)
    if not rows:
        return workload.Reason(code="ARRIVED", message="It has just arrived.")
    line = rows[0].line
    if not state.could(line.request):
        return capacity(state, line, ever=False)
    for _, _, gpu_type in state.options(line.request):
        short = state.short(line, typed(line.request.parts, gpu_type))
        if short is not None:
            return short_of(short)
    for uid, _ in holders(state, CLASSES - 1):
        if uid == work.uid:
            return workload.Reason(
                code="RESERVED",
                message="Nodes are kept for it: it starts when what runs on them has ended.",
            )
    found = state.fit(line, now, {})
    if isinstance(found, Fit):
        return workload.Reason(
            code="BEHIND",
            message="It would fit, and others that have waited longer, or have less, go first.",
        )
    return capacity(state, line, ever=True)


def short_of(short: quota.Short) -> workload.Reason:
    """A quota is in the way."""
    scope = short.scope.partition("/")[0].removesuffix("s")
    what = words(short.dimension)
    return workload.Reason(
        code="QUOTA",
        arguments={
            "scope": short.scope,
            "dimension": short.dimension,
            "need": str(short.need),
            "used": str(short.used),
            "limit": str(short.limit),
            "short": str(short.used + short.need - short.limit),
        },
        message=(
            f"The {scope} may hold {short.limit} {what} and holds {short.used}; "
            f"this one needs {short.need}."
        ),
    )


def capacity(state: State, line: Line, *, ever: bool) -> workload.Reason:
    """The clusters are full, or too small for ever; what is short most is told."""
    need: dict[str, int] = {}
    for part in line.request.parts:
        for dimension, amount in quota.amounts(part.size, part.number).items():
            if not dimension.startswith("gpu_milli/") or _told(dimension, part.size.gpu_type):
                need[dimension] = need.get(dimension, 0) + amount
        if part.size.storage_bytes:
            stored = part.number * part.size.storage_bytes
            need["storage_bytes"] = need.get("storage_bytes", 0) + stored
    best: tuple[int, str, int, int] | None = None
    for dimension, amount in sorted(need.items()):
        there = max(
            (
                (nodes.left(dimension) if ever else nodes.total(dimension))
                for uid, nodes in state.clusters.items()
                if uid in line.request.clusters
            ),
            default=0,
        )
        lack = (amount - there) * 1000 // max(1, amount)
        if best is None or lack > best[0]:
            best = (lack, dimension, amount, there)
    if best is None:
        return workload.Reason(code="CAPACITY", message="No node can take it now.")
    lack, dimension, amount, there = best
    # What is free tells what to wait for; what is there in all, that waiting does not help.
    counted, has = ("free", "has free") if ever else ("total", "has in all")
    arguments = {"dimension": dimension, "need": str(amount), counted: str(max(0, there))}
    what = words(dimension)
    if lack <= 0:
        return workload.Reason(
            code="FRAGMENTED",
            arguments=arguments,
            message=f"There is as much {what} in all as it needs, and on no one node.",
        )
    return workload.Reason(
        code="CAPACITY",
        arguments=arguments,
        message=f"It needs {amount} {what}, and the cluster {has} {max(0, there)}.",
    )


def place(state: State, work: Work) -> tuple[int, int]:
    """Its place among all that wait, by class and age, and how many those are; from 1."""
    own = (work.klass, work.queue_time, work.uid)
    waiting = [one for one in state.works.values() if one.waits and one.held is None]
    before = sum((one.klass, one.queue_time, one.uid) < own for one in waiting)
    return before + 1, len(waiting)


def latest_start(state: State, work: Work, now: int) -> int | None:
    """
    When it starts at the latest if nothing else comes; None where nobody can tell.

    What runs ends at its latest, and what has no end never does.
    """
    rows = state.lines.of(work.uid)
    if not rows or not state.quotas.knows(work.project):
        return None
    planned = state.plan(rows[0].line, now, {})
    if planned is None or planned[1].start >= FOREVER:
        return None
    return max(now, planned[1].start)


def words(dimension: str) -> str:
    """A dimension as people say it, with its unit."""
    name, _, key = dimension.partition("/")
    match name:
        case "gpu_milli":
            return "thousandths of a GPU" if key == ANY else f"thousandths of a {key} GPU"
        case "cpu_milli":
            return "thousandths of a CPU"
        case "workloads":
            return f"{key}s at a time"
        case _:
            return f"bytes of {_UNITS.get(name, name)}"


def _told(dimension: str, gpu_type: str) -> bool:
    return dimension == f"gpu_milli/{gpu_type or ANY}"
