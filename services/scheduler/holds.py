"""
What is held, where, and for whom: by state and not by counting messages.

Of each role a workload holds all replicas that its cluster has bound and not released, and those
that were admitted and are not bound yet. One that was given up with its node counts beside the one
that replaces it, until the node is gone or heard again.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from services.scheduler import quota
from services.scheduler.demand import Volume, Work, settled
from services.scheduler.placement import ANY, FOREVER, Load, Nodes, Size
from services.scheduler.quota import Quotas


@dataclass(slots=True)
class Hold:
    """What one workload, or one volume, takes: on which nodes of its cluster, and in all."""

    cluster: str = ""
    loads: dict[str, Load] = field(default_factory=dict)
    amounts: dict[str, int] = field(default_factory=dict)
    scopes: tuple[str, ...] = ()
    end: int = FOREVER


class Holds:
    """All holds, on the nodes and in the quotas."""

    def __init__(self) -> None:
        self.clusters: dict[str, Nodes] = {}
        self.quotas = Quotas()
        self._held: dict[str, Hold] = {}
        self._totals: dict[str, int] = {}
        self._totals_of: tuple[tuple[str, int], ...] = ()

    @property
    def version(self) -> tuple[tuple[str, int], ...]:
        """Changes when there are other nodes than before."""
        return tuple((uid, nodes.version) for uid, nodes in sorted(self.clusters.items()))

    def nodes(self, cluster: str) -> Nodes:
        """The nodes of a cluster; none where it is new."""
        return self.clusters.setdefault(cluster, Nodes())

    def of(self, uid: str) -> Hold:
        """What a workload or a volume takes now."""
        return self._held.get(uid, Hold())

    def set(self, uid: str, hold: Hold) -> None:
        """Have it take this from now on; an empty hold takes nothing."""
        before = self._held.pop(uid, Hold())
        if before.cluster:
            stays = hold.loads if hold.cluster == before.cluster else {}
            for node in before.loads.keys() - stays.keys():
                self.clusters[before.cluster].hold(node, uid, (), 0)
        if hold.cluster:
            self._held[uid] = hold
            for node, load in hold.loads.items():
                self.nodes(hold.cluster).hold(node, uid, load, hold.end)
        if before.scopes == hold.scopes:
            self.quotas.count(hold.scopes, before.amounts, hold.amounts)
        else:
            self.quotas.count(before.scopes, before.amounts, {})
            self.quotas.count(hold.scopes, {}, hold.amounts)

    def totals(self) -> quota.Amounts:
        """What there is on all nodes that take something new, for shares."""
        if self._totals_of != self.version:
            self._totals_of = self.version
            found: Counter[str] = Counter()
            for nodes in self.clusters.values():
                for dimension in ("cpu_milli", "memory_bytes", f"gpu_milli/{ANY}"):
                    found[dimension] += nodes.total(dimension)
                for gpu_type in nodes.types:
                    found[f"gpu_milli/{gpu_type}"] += nodes.total(f"gpu_milli/{gpu_type}")
            self._totals = dict(found)
        return self._totals


def of_work(work: Work) -> Hold:
    """What a workload takes."""
    held = work.held
    if held is None or work.done:
        return Hold()
    loads: defaultdict[str, Counter[Size]] = defaultdict(Counter)
    amounts: Counter[str] = Counter({f"workloads/{work.kind}": 1})
    for group in work.groups:
        size = settled(group.size, held.gpu_type)
        there = [replica for replica in work.replicas if replica.role == group.role]
        proven = [replica.node for replica in there if replica.proven]
        coming = 0 if work.ended else max(0, work.admitted(group.role) - len(proven))
        nodes = [replica.node for replica in there]
        nodes += _unbound(held.nodes.get(group.role, ()), proven, coming)
        for node in nodes:
            loads[node][size] += 1
        amounts.update(quota.amounts(size, len(nodes)))
    return Hold(
        held.cluster,
        {node: tuple(sorted(sizes.items())) for node, sizes in loads.items() if node},
        dict(amounts),
        (*quota.scopes(work.project, work.user), quota.leaf(work.project, work.user)),
        work.end,
    )


def of_volume(volume: Volume, mounting: Mapping[str, Work]) -> Hold:
    """What a volume takes: from its admission, also while nothing mounts it, until it is gone."""
    if not volume.cluster or volume.gone:
        return Hold()
    node = volume.node if volume.bound else _chosen(volume.uid, mounting)
    load: Load = ((Size(storage_bytes=volume.size_bytes), 1),)
    return Hold(
        volume.cluster,
        {node: load} if node else {},
        {"storage_bytes": volume.size_bytes} if volume.size_bytes else {},
        quota.scopes(volume.project, volume.user),
    )


def _unbound(chosen: Sequence[str], bound: Sequence[str], coming: int) -> list[str]:
    """Nodes of replicas that are still to be bound: those that were chosen and are not taken up."""
    left, waiting = Counter(bound), []
    for node in chosen:
        if left[node] > 0:
            left[node] -= 1
        else:
            waiting.append(node)
    return [*waiting, *[""] * coming][:coming]


def _chosen(volume: str, mounting: Mapping[str, Work]) -> str:
    """The node that was chosen for the first replica that mounts a volume."""
    for _, work in sorted(mounting.items()):
        if work.held is None or work.done:
            continue
        for group in work.groups:
            chosen = work.held.nodes.get(group.role, ())
            if volume in group.volumes and chosen:
                return chosen[0]
    return ""
