"""The journal in PostgreSQL: reads by stream, position and project; writes through the group committer."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from chassis.commit import Committer, Observer
from chassis.envelope import Recorded, Registry, read_meta
from chassis.journal import (
    PAGE_BYTES_MAX,
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
from chassis.telemetry import linked_span, recording
from fermion.api.journal import v1 as api

# Other processes append, too: this often their facts are looked for without being told.
POLL_SECONDS = 0.5
EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

_queries = Queries.load(Path(__file__).with_name("queries.sql"))


@dataclass(frozen=True, slots=True)
class Records:
    """A page as ReadLog answers it and NATS carries it; see `chassis.journal.Page`."""

    records: Sequence[api.Record]
    head: int
    epoch: int
    epoch_first: int


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
        queue_max: int = 4096,
    ) -> None:
        self.database = database
        self.shard = shard
        self.registry = registry
        self._name = f"{database.service}/{shard}"
        self._committer = Committer(database, shard, book, queries, observer, queue_max)
        self._epoch = 1
        # The head as it was last seen, and when: whoever waits for it to grow asks once for all.
        self._seen = 0
        self._looked = float("-inf")

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
        if not recording() or not command.meta.traceparent:
            return await self._committer.submit(command)
        attributes = {"journal": self._name, "facts": str(len(command.facts))}
        span = linked_span("commit", command.meta.traceparent, attributes)
        try:
            return await self._committer.submit(command)
        finally:
            span.end()

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
        rows, last, head = await self._rows(after, limit, project)
        records = tuple(self._recorded(row) for row in rows)
        return Page(records, last, head.epoch, head.epoch_first)

    async def records(self, after: int, limit: int, project: str | None = None) -> Records:
        """Read as `read` does, for who passes facts on and looks into none."""
        rows, last, head = await self._rows(after, limit, project)
        return Records([self._record(row) for row in rows], last, head.epoch, head.epoch_first)

    async def page_on(self, connection: Connection, after: int, limit: int) -> tuple[Recorded, ...]:
        """Read facts after a position on a given connection, in its transaction."""
        rows = await connection.fetch(
            _queries["read_log"], self.shard, after, limit, PAGE_BYTES_MAX
        )
        return tuple(self._recorded(row) for row in rows)

    async def read_stream(
        self, stream: str, after_version: int, limit: int, until: datetime | None = None
    ) -> tuple[Recorded, ...]:
        """Read part of one stream."""
        rows = await self.database.fetch(
            _queries["read_stream"],
            *(self.shard, stream, after_version, until, limit, PAGE_BYTES_MAX),
        )
        return tuple(self._recorded(row) for row in rows)

    async def head(self) -> Head:
        """Lineage and last position."""
        row = await self.database.fetchrow(_queries["read_head"], self.shard)
        if row is None:
            raise Unavailable("JOURNAL_NOT_OPENED", f"{self._name} has no head row yet.")
        if row["epoch"] != self._epoch:
            # Restored: what was committed beyond this head is not there any more.
            self._committer.committed = row["position"]
        self._epoch, self._seen = row["epoch"], row["position"]
        self._looked = asyncio.get_running_loop().time()
        return Head(row["epoch"], row["position"], row["epoch_first"] or 1)

    async def grown(self, past: int, seconds: float) -> None:
        """Return when the head is past a position, or after so many seconds."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while True:
            event = self._committer.grown
            if max(self._seen, self._committer.committed) > past:
                return
            now = loop.time()
            if self._looked + POLL_SECONDS <= now:
                self._looked = now
                await self.head()
                continue
            if deadline <= now:
                return
            wait = min(deadline, self._looked + POLL_SECONDS) - now
            with suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await event.wait()

    def wake(self) -> None:
        """Look at the head now: somebody says that another process has appended."""
        self._looked = float("-inf")
        self._committer.wake_readers()

    async def forget_requests(self) -> None:
        """Let go of requests older than 30 days, some at a time."""
        await self.database.execute(_queries["forget_requests"])

    async def _rows(
        self, after: int, limit: int, project: str | None
    ) -> tuple[list[Record], int, Head]:
        head = await self.head()
        if project is None:
            rows = await self.database.fetch(
                _queries["read_log"], self.shard, after, limit, PAGE_BYTES_MAX
            )
            return rows, head.position, head
        rows = await self.database.fetch(
            _queries["read_project"], self.shard, project, after, limit, PAGE_BYTES_MAX
        )
        return rows, await self._project_head(project), head

    async def _project_head(self, project: str) -> int:
        found = await self.database.fetchval(_queries["project_head"], self.shard, project)
        return found if isinstance(found, int) else 0

    def _record(self, row: Record) -> api.Record:
        position, project, place, stream, version, name, statement, data, meta, at = row
        record = api.Record(
            journal=self._name,
            epoch=self._epoch,
            position=position,
            project=project,
            project_position=place,
            stream=stream,
            version=version,
            type=name,
            statement=statement,
            data=data,
        )
        # Written in place: to make these by themselves and copy them takes as long as all the rest.
        record.meta.MergeFromString(meta)
        since, when = at - EPOCH, record.record_time
        when.seconds = since.days * 86400 + since.seconds
        when.nanos = since.microseconds * 1000
        return record

    def _recorded(self, row: Record) -> Recorded:
        # In the order of the columns: finding each by name would cost as much as the rest.
        position, project, place, stream, version, name, statement, data, meta, at = row
        return Recorded(
            self._name,
            self._epoch,
            position,
            project,
            place,
            stream,
            version,
            name,
            statement,
            data,
            read_meta(meta),
            at,
            self.registry.decode(name, data),
        )
