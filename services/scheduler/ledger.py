"""Everything that admission rests on, read from the rows and kept as they are."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Final

from chassis.journal import Journal
from chassis.postgres import Database, Record
from chassis.queries import Queries
from fermion.api.projects import v1 as projects
from fermion.api.workload import v1 as workload
from services.scheduler import books
from services.scheduler.demand import Replica, Work
from services.scheduler.state import State

PAGE_MAX: Final = 1000


class Books:
    """What admission rests on, read from the rows, and kept as they are."""

    def __init__(self, journal: Journal, database: Database, queries: Queries) -> None:
        self.state = State()
        self._journal = journal
        self._database = database
        self._queries = queries
        self._clusters: dict[str, workload.Capabilities] = {}
        self._nodes: dict[tuple[str, str], bytes | None] = {}
        self._foreign: tuple[object, ...] = ()
        # How far this service's own facts, and those of executors, were followed.
        self._position = 0
        self._seen: defaultdict[str, int] = defaultdict(int)

    @property
    def clusters(self) -> Mapping[str, workload.Capabilities]:
        """Clusters that work may go to, and what they honour."""
        return self._clusters

    @property
    def position(self) -> int:
        """How far this service's own facts were followed."""
        return self._position

    async def load(self) -> None:
        """Read everything."""
        # Before the rows: what comes in between is only put again.
        self._position = (await self._journal.head()).position
        await self._read_foreign()
        await self._put(None)

    async def follow(self, also: Collection[str] = ()) -> bool:
        """Read what has changed, and `also` these uids; whether anything may have."""
        touched = set(also)
        while True:
            page = await self._journal.read(self._position, PAGE_MAX)
            for fact in page.records:
                kind, _, uid = fact.stream.partition("/")
                if kind in ("workload", "volume"):
                    touched.add(uid)
            if page.records:
                self._position = page.records[-1].position
            if len(page.records) < PAGE_MAX:
                break
        for row in await self._fetch("journals"):
            touched |= await self._behind(row["journal"])
        if await self._read_foreign():
            await self._put(None)
            return True
        if touched:
            await self._put(touched)
        return bool(touched)

    async def _behind(self, journal: str) -> set[str]:
        """What happened in a cluster since this was asked last."""
        after, found = self._seen[journal], set()
        for statement, name in (("progressed", "workload"), ("restored", "volume")):
            for row in await self._fetch(statement, journal, after):
                found.add(str(row[name]))
                self._seen[journal] = max(self._seen[journal], row["position"])
        return found

    async def _read_foreign(self) -> bool:
        """Read limits, projects, clusters and nodes where any changed; whether clusters did."""
        row = (await self._fetch("foreign"))[0]
        now = tuple(row.values())
        if now == self._foreign:
            return False
        before, self._foreign = self._foreign, now
        known = {one["name"]: one["uid"] for one in await self._fetch("projects")}
        limits = {
            one["scope"]: books.amounts_of(projects.Limits.FromString(one["limits"]))
            for one in await self._fetch("quotas")
        }
        self.state.limit(known, limits)
        if before[2:] == now[2:]:
            return False
        clusters = {
            one["uid"]: workload.Capabilities.FromString(one["capabilities"])
            for one in await self._fetch("clusters")
        }
        for one in await self._fetch("nodes"):
            key, body = (one["cluster"], one["node"]), one["body"]
            if self._nodes.get(key, b"") == body:
                continue
            self._nodes[key] = body
            if body is None:
                self.state.nodes(key[0]).remove(key[1])
            else:
                self.state.nodes(key[0]).put(books.shape_of(workload.Node.FromString(body)))
        changed = clusters != self._clusters
        self._clusters = clusters
        return changed

    async def _put(self, uids: Collection[str] | None) -> None:
        """Put these workloads and volumes, or all, as the rows have them."""
        chosen = None if uids is None else list(uids)
        rows = {row["uid"]: row for row in await self._fetch("entries", chosen)}
        volumes = {row["uid"]: row for row in await self._fetch("volumes", chosen)}
        stored = {row["volume"]: row for row in await self._fetch("stored_of", chosen)}
        progress = {row["workload"]: row for row in await self._fetch("progress_of", chosen)}
        bound: defaultdict[str, list[Replica]] = defaultdict(list)
        for row in await self._fetch("bound_replicas", chosen):
            bound[row["workload"]].append(Replica(row["uid"], row["role"], row["node"]))
        for uid, row in volumes.items():
            seen = stored.get(uid)
            self.state.put_volume(
                books.volume_of(
                    workload.Volume.FromString(row["volume"]),
                    cluster=row["cluster"],
                    withdrawn=row["withdrawn"],
                    node="" if seen is None else seen["node"],
                    bound=seen is not None and seen["bound"],
                    gone=seen is not None and seen["gone"],
                )
            )
        for uid, row in rows.items():
            self.state.put(self._work(row, progress.get(uid), bound[uid]))
        gone = set(self.state.works) | set(self.state.volumes) if chosen is None else set(chosen)
        for uid in sorted(gone - set(rows) - set(volumes)):
            self.state.drop(uid)
            self.state.drop_volume(uid)

    def _work(self, row: Record, progress: Record | None, replicas: Sequence[Replica]) -> Work:
        return books.work_of(
            workload.Workload.FromString(row["workload"]),
            clusters=self._clusters,
            queue_time=row["queue_time"],
            said=row["code"],
            held=books.held_of(
                row["cluster"],
                row["replicas"],
                row["nodes"],
                row["gpu_type"],
                row["admit_time"],
                row["revoked"],
            ),
            replicas=replicas,
            began=None if progress is None else progress["began"],
            ended=progress is not None and progress["ended"],
        )

    async def _fetch(self, statement: str, *arguments: object) -> Sequence[Record]:
        return await self._database.fetch(self._queries[statement], *arguments)
