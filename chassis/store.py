"""The journal in PostgreSQL: reads by stream, position and project; writes through the group committer."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

from chassis.commit import Committer, Observer
from chassis.envelope import Recorded, Registry, from_meta
from chassis.journal import (
    Book,
    Command,
    Committed,
    Head,
    Outcome,
    Page,
    Remembered,
    Request,
)
from chassis.postgres import Connection, Database, Record
from chassis.queries import Queries
from chassis.refusals import Unavailable
from fermion.api.journal import v1 as api

# Other processes append, too: this often their facts are looked for without being told.
POLL_SECONDS = 0.5

_queries = Queries.load(Path(__file__).with_name("queries.sql"))


class PostgresJournal:
    """One shard's journal of one service; see `chassis.journal.Journal`."""

    def __init__(
        self,
        database: Database,
        *,
        registry: Registry,
        book: Book,
        queries: Queries,
        shard: str = "0",
        observer: Observer | None = None,
    ) -> None:
        self.database = database
        self.shard = shard
        self.registry = registry
        self._name = f"{database.service}/{shard}"
        self._committer = Committer(database, shard, book, queries, observer)
        self._epoch = 1

    @property
    def name(self) -> str:
        """`<service>/<shard>`."""
        return self._name

    @property
    def waiting(self) -> int:
        """Commands that wait for a batch."""
        return self._committer.waiting

    async def open(self) -> None:
        """Make head and first epoch where there are none."""
        await self.database.execute(_queries["open_head"], self.shard)
        await self.database.execute(_queries["open_epoch"], self.shard)
        await self.head()

    async def run(self) -> None:
        """Commit until cancelled."""
        await self._committer.run()

    async def append(self, command: Command) -> Committed:
        """Commit one command; see `Journal.append`."""
        return await self._committer.submit(command)

    async def load(self, streams: Sequence[str]) -> Mapping[str, tuple[Recorded, ...]]:
        """Read whole streams."""
        rows = await self.database.fetch(_queries["load_streams"], self.shard, list(streams))
        found: dict[str, list[Recorded]] = {stream: [] for stream in streams}
        for row in rows:
            found[row["stream"]].append(self._recorded(row))
        return {stream: tuple(records) for stream, records in found.items()}

    async def remembered(self, request: Request) -> Remembered | None:
        """Look a request up."""
        row = await self.database.fetchrow(
            _queries["remembered"], self.shard, request.scope, request.method, request.request_id
        )
        if row is None:
            return None
        return Remembered(Outcome(row["stream"], row["version"]), row["digest"])

    async def holder(self, scope: str, name: str) -> str | None:
        """Tell the uid that holds a name."""
        uid = await self.database.fetchval(_queries["holder"], scope, name)
        return None if uid is None else str(uid)

    async def read(self, after: int, limit: int, project: str | None = None) -> Page:
        """Read facts after a position, or after a project position."""
        head = await self.head()
        if project is None:
            rows = await self.database.fetch(_queries["read_log"], self.shard, after, limit)
            last = head.position
        else:
            rows = await self.database.fetch(
                _queries["read_project"], self.shard, project, after, limit
            )
            last = await self._project_head(project)
        records = tuple(self._recorded(row) for row in rows)
        return Page(records, last, head.epoch, head.epoch_first)

    async def page_on(self, connection: Connection, after: int, limit: int) -> tuple[Recorded, ...]:
        """Read facts after a position on a given connection, in its transaction."""
        rows = await connection.fetch(_queries["read_log"], self.shard, after, limit)
        return tuple(self._recorded(row) for row in rows)

    async def read_stream(
        self, stream: str, after_version: int, limit: int, until: datetime | None = None
    ) -> tuple[Recorded, ...]:
        """Read part of one stream."""
        rows = await self.database.fetch(
            _queries["read_stream"], self.shard, stream, after_version, until, limit
        )
        return tuple(self._recorded(row) for row in rows)

    async def head(self) -> Head:
        """Lineage and last position."""
        row = await self.database.fetchrow(_queries["read_head"], self.shard)
        if row is None:
            raise Unavailable("JOURNAL_NOT_OPENED", f"{self._name} has no head row yet.")
        self._epoch = row["epoch"]
        return Head(row["epoch"], row["position"], row["epoch_first"] or 1)

    async def grown(self, past: int, seconds: float) -> None:
        """Return when the head is past a position, or after so many seconds."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while True:
            event = self._committer.grown
            if (await self.head()).position > past:
                return
            left = deadline - loop.time()
            if left <= 0:
                return
            try:
                await asyncio.wait_for(event.wait(), min(left, POLL_SECONDS))
            except TimeoutError:
                continue

    async def forget_requests(self) -> None:
        """Let go of requests older than 30 days, some at a time."""
        await self.database.execute(_queries["forget_requests"])

    async def _project_head(self, project: str) -> int:
        found = await self.database.fetchval(_queries["project_head"], self.shard, project)
        return found if isinstance(found, int) else 0

    def _recorded(self, row: Record) -> Recorded:
        statement = row["statement"]
        return Recorded(
            journal=self._name,
            epoch=self._epoch,
            position=row["position"],
            project=row["project"],
            project_position=row["project_position"],
            stream=row["stream"],
            version=row["version"],
            type=row["type"],
            statement="" if statement is None else str(statement),
            data=row["data"],
            meta=from_meta(api.Meta.FromString(row["meta"])),
            record_time=row["at"],
            message=self.registry.decode(row["type"], row["data"]),
        )
