"""Group commit: the decisions of one moment go into one transaction, and each hears its own outcome."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections import deque
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Protocol

import asyncpg

from chassis.batch import (
    Heads,
    Key,
    Numbered,
    Pending,
    Placed,
    collision_keys,
    layers,
    place_facts,
)
from chassis.journal import (
    Book,
    Command,
    Committed,
    Fenced,
    Outcome,
    Overtaken,
    Remembered,
    Stale,
    Stated,
    Write,
)
from chassis.postgres import LOST, Connection, Database, Record, is_lost, unavailable
from chassis.queries import Queries
from chassis.refusals import Exhausted, OutcomeUnknown, Refused, Unavailable

BATCH_MAX = 512
# A batch takes no further command once its facts have as many bytes.
BATCH_BYTES_MAX = 8 * 1024 * 1024
# So long a batch is tried again on new connections before its callers are told.
AWAY_SECONDS_MAX = 10.0

# What is decided first on one command is what its caller hears.
_ORDER = ("remembered", "overtaken", "fenced", "stale", "stated", "said", "claimed")

_log = logging.getLogger(__name__)
_queries = Queries.load(Path(__file__).with_name("queries.sql"))


class Unwritable(Exception):
    """The database refused what a command would write: a fault of the service, not of the call."""


class Observer(Protocol):
    """Hears what was committed; for metrics."""

    def committed(self, commands: int, facts: int, waiting: int) -> None:
        """One batch is durable."""
        ...


async def execute_writes(connection: Connection, queries: Queries, writes: Iterable[Write]) -> None:
    """Run named writes in batches on a connection that is in a transaction."""
    for statement, arguments in layers(writes):
        await connection.executemany(queries[statement], arguments)


class Committer:
    """
    Commits commands in groups under the journal's head row.

    It numbers each batch from the heads that it remembers of its own last one; where another
    process appended meanwhile, `append` says so and the batch is numbered again.
    """

    def __init__(
        self,
        database: Database,
        shard: str,
        book: Book,
        queries: Queries,
        observer: Observer | None,
        queue_max: int,
    ) -> None:
        self._database = database
        self._shard = shard
        self._journal = f"{database.service}/{shard}"
        self._book = book
        self._queries = queries
        self._observer = observer
        self._queue_max = queue_max
        self._waiting: deque[Pending] = deque()
        self._wake = asyncio.Event()
        self._connection: asyncpg.Connection[Record] | None = None
        self._heads = Heads()
        self._committing = False
        # Position of the last own commit; `grown` is set, and replaced, when there may be more.
        self.committed = 0
        self.grown = asyncio.Event()

    @property
    def waiting(self) -> int:
        """Commands that wait for a batch."""
        return len(self._waiting)

    async def submit(self, command: Command) -> Committed:
        """Queue a command and wait for its outcome; see `Journal.append`."""
        if len(self._waiting) >= self._queue_max:
            raise Exhausted(
                "COMMIT_QUEUE_FULL",
                f"{self._queue_max} commands wait to be committed in {self._journal}.",
                next_step="Send the same request again in a moment.",
                journal=self._journal,
            )
        facts = place_facts(command, self._book.place)
        writes = frozenset([fact.place.stream for fact in facts])
        pending = Pending(
            command,
            facts,
            asyncio.get_running_loop().create_future(),
            writes,
            frozenset(command.expected) - writes,
            collision_keys(command, facts),
            sum([len(fact.data) for fact in facts]),
        )
        self._waiting.append(pending)
        self._wake.set()
        return await pending.done

    def wake_readers(self) -> None:
        """Let everybody who waits for the journal to grow look again."""
        self.grown.set()
        self.grown = asyncio.Event()

    async def run(self) -> None:
        """Commit batches until cancelled."""
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                while batch := self._take():
                    await self._commit(batch, self._now() + AWAY_SECONDS_MAX)
        finally:
            for pending in self._waiting:
                _fail(pending, _shutting_down())
            self._waiting.clear()
            self._disconnect()

    def _take(self) -> list[Pending]:
        """Take what may commit together; what collides with something before it stays, in order."""
        batch: list[Pending] = []
        later: list[Pending] = []
        writes: set[str] = set()
        reads: set[str] = set()
        keys: set[Key] = set()
        size = 0
        # So many that collide are looked past at most: a hot stream must not cost a walk through the
        # whole queue for each batch.
        while (
            self._waiting
            and len(batch) < BATCH_MAX
            and len(later) < BATCH_MAX
            and size < BATCH_BYTES_MAX
        ):
            pending = self._waiting.popleft()
            if pending.done.cancelled():
                continue
            collides = (
                not pending.writes.isdisjoint(writes)
                or not pending.writes.isdisjoint(reads)
                or not pending.reads.isdisjoint(writes)
                or not pending.keys.isdisjoint(keys)
            )
            writes |= pending.writes
            reads |= pending.reads
            keys |= pending.keys
            if collides:
                later.append(pending)
            else:
                batch.append(pending)
                size += pending.size
        self._waiting.extendleft(reversed(later))
        return batch

    async def _commit(self, batch: list[Pending], deadline: float) -> None:
        """Commit a batch, whatever it takes; every command in it hears an outcome."""
        delay = 0.05
        while left := [pending for pending in batch if not pending.done.done()]:
            try:
                await self._try(left)
                return
            except Unavailable as error:
                if self._now() >= deadline:
                    _fail_all(left, error)
                    return
                await self._pause(left, delay)
                delay = min(delay * 2, 1.0)
            except asyncio.CancelledError:
                _fail_all(left, _stopped_in_commit() if self._committing else _shutting_down())
                raise
            except Exception as error:
                self._disconnect()
                if len(left) == 1:
                    _log.exception("a command of %s could not be committed", self._journal)
                    _fail(left[0], _own(error))
                    return
                _log.warning("a batch of %d failed (%r); trying one by one", len(left), error)
                for place, pending in enumerate(left):
                    await self._commit([pending], deadline)
                    if self._connection is None and self._now() >= deadline:
                        _fail_all(left[place + 1 :], unavailable(error))
                        return
                return

    async def _pause(self, left: Sequence[Pending], seconds: float) -> None:
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            _fail_all(left, _shutting_down())
            raise

    async def _try(self, batch: list[Pending]) -> None:
        """Commit a batch in one transaction; Unavailable where it surely was not, and may be later."""
        self._committing = False
        connection = await self._connect()
        token = uuid.uuid4()
        try:
            transaction = connection.transaction()
            await transaction.start()
            found = await self._append(connection, token, batch)
            if found is None:
                await transaction.rollback()
                return
            left, numbered, moment = found
            stored = numbered.stored(self._journal, left, moment)
            project = self._book.project
            writes = [write for facts in stored for fact in facts for write in project(fact)]
            await execute_writes(connection, self._queries, writes)
            self._committing = True
            await transaction.commit()
        except asyncpg.TransactionRollbackError as error:
            self._disconnect()
            raise unavailable(error) from error
        except Exception as error:
            if not is_lost(error, connection):
                raise
            self._disconnect()
            if not self._committing:
                raise unavailable(error) from error
            settled = await self._settled(token, numbered, left)
            if settled is None:
                _fail_all(left, _outcome_unknown())
                return
            if not settled:
                raise unavailable(error) from error
        if self._heads.position == numbered.before:
            self._heads.learn(numbered)
        for pending, facts in zip(left, stored, strict=True):
            if not pending.done.done():
                pending.done.set_result(Committed(facts, numbered.after))
        self.committed = numbered.after
        self.wake_readers()
        if self._observer is not None:
            self._observer.committed(len(left), len(numbered.versions), len(self._waiting))

    async def _append(
        self, connection: Connection, token: uuid.UUID, batch: list[Pending]
    ) -> tuple[list[Pending], Numbered, datetime] | None:
        """Number and append until all that is left was accepted; None where nothing is left."""
        left = batch
        while left := [pending for pending in left if not pending.done.done()]:
            numbered = await self._number(connection, token, left)
            answer = await connection.fetch(_queries["append"], *numbered.arguments)
            match answer[0]["kind"]:
                case "done":
                    return left, numbered, answer[0]["moment"]
                case "head":
                    self._heads.begin(answer[1]["number"], answer[0]["number"])
                case _:
                    self._refuse(left, answer)
        return None

    async def _number(
        self, connection: Connection, token: uuid.UUID, batch: Sequence[Pending]
    ) -> Numbered:
        heads = self._heads
        if heads.position < 0:
            row = await connection.fetchrow(_queries["read_head"], self._shard)
            if row is None:
                raise Refused("JOURNAL_NOT_OPENED", f"{self._journal} has no head row.")
            heads.begin(row["epoch"], row["position"])
        projects, streams = heads.unknown(batch)
        if projects:
            for row in await connection.fetch(_queries["project_heads"], self._shard, projects):
                heads.projects[row["project"]] = row["position"] or 0
        if streams:
            for row in await connection.fetch(_queries["stream_heads"], self._shard, streams):
                heads.streams[row["stream"]] = row["version"] or 0
        return heads.number(self._shard, token, batch)

    def _refuse(self, left: Sequence[Pending], answer: Sequence[Record]) -> None:
        """Tell refused commands why; one whose facts are all said already goes on without them."""
        refusals: dict[int, Record] = {}
        for row in sorted(answer, key=lambda row: _ORDER.index(row["kind"])):
            refusals.setdefault(row["command"], row)
        for place, row in refusals.items():
            pending, detail = left[place], row["detail"]
            match row["kind"]:
                case "remembered":
                    _fail(pending, Remembered(Outcome(detail, row["number"]), row["blob"]))
                case "overtaken":
                    _fail(pending, Overtaken(detail))
                case "fenced":
                    _fail(pending, Fenced(detail))
                case "stale":
                    _fail(pending, Stale(detail))
                case "stated":
                    _fail(pending, Stated(self._journal))
                case "said":
                    pending.facts = ()
                    pending.writes = frozenset()
                case "claimed":
                    _fail(pending, _taken(pending.facts, detail))

    async def _settled(
        self, token: uuid.UUID, numbered: Numbered, batch: Sequence[Pending]
    ) -> bool | None:
        """
        Find out what became of a COMMIT whose answer was lost; None where PostgreSQL stays away.

        Taking the head row waits until the old transaction has ended.
        """
        deadline = self._now() + AWAY_SECONDS_MAX
        while True:
            try:
                connection = await self._connect()
                async with connection.transaction():
                    await connection.fetchrow(_queries["lock_head"], self._shard)
                    if numbered.after > numbered.before:
                        row = await connection.fetchrow(
                            _queries["batch_at"], self._shard, numbered.before + 1
                        )
                        return row is not None and row["batch"] == token
                    return await self._left_a_trace(connection, batch)
            except (Unavailable, *LOST):
                self._disconnect()
                if self._now() >= deadline:
                    return None
                await asyncio.sleep(0.1)

    async def _left_a_trace(self, connection: Connection, batch: Sequence[Pending]) -> bool:
        """
        Look for what a batch without facts would have left: all of it is there, or nothing.

        A resumed reader alone leaves none; it is resumed once more, which is no harm.
        """
        for pending in batch:
            command = pending.command
            if command.request is not None:
                asked = command.request
                key = (self._shard, asked.scope, asked.method, asked.request_id)
                return await connection.fetchrow(_queries["remembered"], *key) is not None
            if command.advance is not None:
                moved = command.advance
                row = await connection.fetchrow(
                    _queries["read_checkpoint"], moved.reader, moved.journal
                )
                return row is not None and row["position"] == moved.position
            if command.unpark is not None:
                taken = command.unpark
                key_parked = (taken.reader, taken.journal, taken.position)
                return await connection.fetchrow(_queries["parked_fact"], *key_parked) is None
        return False

    async def _connect(self) -> asyncpg.Connection[Record]:
        if self._connection is None or self._connection.is_closed():
            self._heads.forget()
            self._connection = await self._database.pinned(
                f"committer {self._shard}", statement_seconds=AWAY_SECONDS_MAX
            )
        return self._connection

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        self._heads.forget()
        if connection is not None:
            connection.terminate()

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()


def _fail(pending: Pending, error: BaseException) -> None:
    if not pending.done.done():
        pending.done.set_exception(error)


def _fail_all(batch: Iterable[Pending], error: BaseException) -> None:
    for pending in batch:
        _fail(pending, error)


def _own(error: Exception) -> Exception:
    """asyncpg's errors stop here; what a projection raised is told as it is."""
    if isinstance(error, asyncpg.PostgresError | asyncpg.InterfaceError):
        own = Unwritable(f"{type(error).__name__}: {error}")
        own.__cause__ = error
        return own
    return error


def _taken(facts: Iterable[Placed], key: str) -> Refused:
    for fact in facts:
        for claim in fact.place.claims:
            if f"{claim.scope}\n{claim.name}" == key:
                return claim.taken
    raise AssertionError(f"nobody claimed {key!r}")


def _shutting_down() -> Unavailable:
    return Unavailable(
        "SHUTTING_DOWN",
        "The service is being stopped; nothing was committed.",
        next_step="Send the same request again.",
    )


def _stopped_in_commit() -> OutcomeUnknown:
    return OutcomeUnknown(
        "OUTCOME_UNKNOWN",
        "The service was stopped while this was being committed.",
        next_step="Send the same request again with the same request_id.",
    )


def _outcome_unknown() -> OutcomeUnknown:
    return OutcomeUnknown(
        "OUTCOME_UNKNOWN",
        "The database went away while this was being committed.",
        next_step="Send the same request again with the same request_id.",
    )
