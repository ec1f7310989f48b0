"""Everything that admission rests on, read from the rows and followed: facts only tell what to read again."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Final

from chassis.commit import execute_writes
from chassis.journal import Journal
from chassis.postgres import Database, Record
from chassis.queries import Queries
from chassis.tasks import aside
from fermion.api.projects import v1 as projects
from fermion.api.workload import v1 as workload
from services.scheduler import aggregate, books, projection
from services.scheduler.demand import Replica, Work
from services.scheduler.state import State

PAGE_MAX: Final = 1000
READERS: Final = (books.LIMITS, books.REPORTS)


class Books:
    """
    The books in memory: `state` is what admission takes, `versions` what each stream was read at.

    One at a time may load or follow them.
    """

    def __init__(self, journal: Journal, database: Database, queries: Queries) -> None:
        self.state = State()
        self.versions: dict[str, int] = {}
        self.position = 0
        self._epoch = 0
        self._journal = journal
        self._database = database
        self._queries = queries
        self._clusters: dict[str, workload.Capabilities] = {}
        # How far each reader had folded each of others' journals: lineage and position.
        self._seen: dict[tuple[str, str], tuple[int, int]] = {}

    @property
    def clusters(self) -> books.Clusters:
        """Clusters that work may go to, and what they honour."""
        return self._clusters

    async def load(self) -> None:
        """Read everything anew."""
        self.state, self.versions = State(), {}
        # Before the rows: of what comes in between, the rows are only read again.
        head = await self._journal.head()
        self._epoch, self.position = head.epoch, head.position
        self._seen = await self._so_far()
        await self._read_limits()
        await self._read_clusters()
        for _, journal in self._seen:
            await self._read_nodes(journal.partition("/")[2], 0)
        await self._put(None)

    async def follow(self, also: Collection[str] = ()) -> None:
        """Read again what something was said of, and `also` these uids; all of it where it was restored."""
        touched = set(also)
        while True:
            page = await self._journal.read(self.position, PAGE_MAX)
            if page.epoch != self._epoch:
                await self.load()
                return
            touched.update(fact.stream.partition("/")[2] for fact in page.records)
            if page.records:
                self.position = page.records[-1].position
            if page.ends:
                break
        before, self._seen = self._seen, await self._so_far()
        changed = False
        for (reader, journal), (epoch, position) in self._seen.items():
            was_epoch, was = before.get((reader, journal), (epoch, 0))
            if (epoch, position) == (was_epoch, was):
                continue
            if epoch != was_epoch or position < was:
                await self.load()
                return
            if reader == books.LIMITS:
                await self._read_limits()
            else:
                cluster = journal.partition("/")[2]
                await self._read_nodes(cluster, was)
                rows = await self._fetch("progressed", cluster, was)
                touched.update(row["uid"] for row in rows)
            changed |= await self._read_clusters()
        if changed:
            # Of everything that waits, another cluster may be the one that can honour it.
            await self._put(None)
        elif touched:
            await self._put(sorted(touched))

    async def rows(self, uids: Collection[str]) -> tuple[dict[str, Record], dict[str, Record]]:
        """The present rows of workloads and of volumes, by uid."""
        chosen = list(uids)
        entries = {row["uid"]: row for row in await self._fetch("entries", chosen)}
        volumes = {row["uid"]: row for row in await self._fetch("volumes", chosen)}
        return entries, volumes

    async def _so_far(self) -> dict[tuple[str, str], tuple[int, int]]:
        rows = await self._fetch("read_so_far", list(READERS))
        return {(row["reader"], row["journal"]): (row["epoch"], row["position"]) for row in rows}

    async def _read_limits(self) -> None:
        known = {row["name"]: row["uid"] for row in await self._fetch("projects")}
        limits = {
            row["scope"]: books.amounts_of(projects.Limits.FromString(row["limits"]))
            for row in await self._fetch("quotas")
        }
        self.state.limit(known, limits)

    async def _read_clusters(self) -> bool:
        """Read which clusters work may go to; whether that is other than before."""
        found = {
            row["uid"]: workload.Capabilities.FromString(row["capabilities"])
            for row in await self._fetch("clusters")
        }
        before, self._clusters = self._clusters, found
        return found != before

    async def _read_nodes(self, cluster: str, after: int) -> None:
        for row in await self._fetch("nodes", cluster, after):
            nodes = self.state.nodes(cluster)
            if row["body"] is None:
                nodes.remove(row["node"])
            else:
                nodes.put(books.shape_of(workload.Node.FromString(row["body"])))

    async def _put(self, uids: Sequence[str] | None) -> None:
        """Put these workloads and volumes, or all, as the rows have them."""
        stored = {row["volume"]: row for row in await self._some("stored", uids)}
        progress = {row["workload"]: row for row in await self._some("progress", uids)}
        bound: defaultdict[str, list[Replica]] = defaultdict(list)
        for row in await self._some("replicas", uids):
            replica = Replica(row["uid"], row["role"], row["node"], not row["unproven"])
            bound[row["workload"]].append(replica)
        volumes = {row["uid"]: row for row in await self._some("volumes", uids)}
        entries = {row["uid"]: row for row in await self._some("entries", uids)}
        # Of many this takes long, and whoever holds a lease has to renew it meanwhile.
        await aside(self._apply, uids, entries, volumes, progress, stored, bound)

    def _apply(
        self,
        uids: Sequence[str] | None,
        entries: Mapping[str, Record],
        volumes: Mapping[str, Record],
        progress: Mapping[str, Record],
        stored: Mapping[str, Record],
        bound: Mapping[str, Sequence[Replica]],
    ) -> None:
        for uid, row in volumes.items():
            seen = stored.get(uid)
            volume = books.volume_of(
                projection.volume(row),
                node="" if seen is None else seen["node"],
                bound=seen is not None and seen["bound"],
                gone=seen is not None and seen["gone"],
            )
            self.versions[uid] = row["version"]
            self.state.put_volume(volume)
        for uid, row in entries.items():
            self.versions[uid] = row["version"]
            self.state.put(self._work(row, progress.get(uid), bound.get(uid, ())))
        gone = {*self.state.works, *self.state.volumes} if uids is None else set(uids)
        for uid in sorted(gone - entries.keys() - volumes.keys()):
            self.versions.pop(uid, None)
            self.state.drop(uid)
            self.state.drop_volume(uid)

    def _work(self, row: Record, seen: Record | None, replicas: Sequence[Replica]) -> Work:
        return books.work_of(
            projection.entry(row),
            clusters=self._clusters,
            replicas=sorted(replicas, key=lambda one: one.uid),
            began=None if seen is None else seen["began"],
            ended=seen is not None and seen["ended"],
        )

    async def _some(self, statement: str, uids: Sequence[str] | None) -> Sequence[Record]:
        if uids is None:
            return await self._fetch(f"all_{statement}")
        return await self._fetch(statement, uids)

    async def _fetch(self, statement: str, *arguments: object) -> Sequence[Record]:
        return await self._database.fetch(self._queries[statement], *arguments)


async def take_over(journal: Journal, database: Database, queries: Queries) -> None:
    """Fold what waited before there were books into them; nothing where there is nothing such."""
    shard = journal.name.partition("/")[2]
    async with database.connection() as connection, connection.transaction():
        # As long as this is held, nobody appends.
        await connection.fetchrow(queries["settle_head"], shard)
        rows = await connection.fetch(queries["waited_before"])
        if not rows:
            return
        loaded = await journal.load([aggregate.stream_of(row["workload_uid"]) for row in rows])
        facts = [fact for records in loaded.values() for fact in records]
        writes = [write for fact in facts for write in projection.project(fact)]
        await execute_writes(connection, queries, writes)
        await connection.execute(queries["forget_before"])


def stale(versions: Mapping[str, int], rows: Mapping[str, Record], uid: str) -> bool:
    """Whether a stream has moved since the books were read."""
    row = rows.get(uid)
    return row is None or row["version"] != versions.get(uid)
