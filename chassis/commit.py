"""Group commit: the decisions of one moment go into one transaction, and each hears its own outcome."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

import asyncpg
from google.protobuf.message import Message

from chassis.envelope import FACT_BYTES_MAX, Meta, Recorded, to_meta
from chassis.journal import (
    Book,
    Command,
    Committed,
    Fenced,
    Outcome,
    Overtaken,
    Place,
    Remembered,
    Stale,
    Stated,
    Write,
)
from chassis.postgres import LOST, Connection, Database, unavailable
from chassis.queries import Queries
from chassis.refusals import Exhausted, Invalid, OutcomeUnknown, Refused, Unavailable, Violation

QUEUE_MAX = 4096
BATCH_MAX = 512
# So long a batch is tried again on new connections before its callers are told.
AWAY_SECONDS_MAX = 10.0
# Heads that are remembered between batches; beyond it they are looked up again.
REMEMBERED_MAX = 50_000

_log = logging.getLogger(__name__)
_queries = Queries.load(Path(__file__).with_name("queries.sql"))


@dataclass(frozen=True, slots=True)
class Placed:
    """One fact, ready to be numbered."""

    message: Message
    place: Place
    type: str
    data: bytes


class Observer(Protocol):
    """Hears what was committed; for metrics."""

    def committed(self, commands: int, facts: int, waiting: int) -> None:
        """One batch is durable."""
        ...


@dataclass(slots=True)
class Pending:
    """One command on its way, with the keys on which it may collide with others."""

    command: Command
    facts: tuple[Placed, ...]
    done: asyncio.Future[Committed]
    writes: frozenset[str]
    reads: frozenset[str]
    keys: frozenset[tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Numbered:
    """A batch with its numbers: the arguments of `append`, and the facts as they will be stored."""

    arguments: tuple[object, ...]
    records: tuple[tuple[Recorded, ...], ...]
    after: int
    projects: dict[str, int]
    streams: dict[str, int]


def place_facts(command: Command, place: Callable[[Message], Place]) -> tuple[Placed, ...]:
    """Serialize and place a command's facts; one that is too large is `Invalid` (FACT_TOO_LARGE)."""
    placed = []
    for message in command.facts:
        data = message.SerializeToString(deterministic=True)
        name = message.DESCRIPTOR.full_name
        if len(data) > FACT_BYTES_MAX:
            raise Invalid(
                "FACT_TOO_LARGE",
                f"{message.DESCRIPTOR.name} would take {len(data)} bytes; "
                f"a fact has at most {FACT_BYTES_MAX}.",
                violations=(
                    Violation("", f"is {len(data)} bytes as a fact, at most {FACT_BYTES_MAX}"),
                ),
                next_step="Send less: fewer or shorter environment variables, arguments or labels.",
                bytes=str(len(data)),
                bytes_max=str(FACT_BYTES_MAX),
            )
        placed.append(Placed(message, place(message), name, data))
    return tuple(placed)


def collision_keys(command: Command, facts: Iterable[Placed]) -> frozenset[tuple[str, ...]]:
    """Everything but streams on which two commands of one batch must not meet."""
    keys: set[tuple[str, ...]] = set()
    for fact in facts:
        keys.update(("claim", claim.scope, claim.name) for claim in fact.place.claims)
        keys.update(("claim", release.scope, release.name) for release in fact.place.releases)
        if fact.place.statement is not None:
            keys.add(("statement", str(fact.place.statement)))
    request = command.request
    if request is not None:
        keys.add(("request", request.scope, request.method, request.request_id))
    if command.advance is not None:
        keys.add(("checkpoint", command.advance.reader, command.advance.journal))
    if command.unpark is not None:
        keys.add(("checkpoint", command.unpark.reader, command.unpark.journal))
    if command.resume is not None:
        keys.add(("checkpoint", *command.resume))
    return frozenset(keys)


def layers(writes: Iterable[Write]) -> list[tuple[str, list[tuple[object, ...]]]]:
    """
    Group writes by statement for batching, with the order of writes to one row kept.

    A write goes into a later layer than an earlier write of the same row by another statement.
    """
    last: dict[str, tuple[int, str]] = {}
    grouped: dict[tuple[int, str], list[tuple[object, ...]]] = defaultdict(list)
    for write in writes:
        depth, statement = last.get(write.key, (0, write.statement))
        if statement != write.statement:
            depth += 1
        last[write.key] = (depth, write.statement)
        grouped[depth, write.statement].append(write.arguments)
    return [(statement, grouped[depth, statement]) for depth, statement in sorted(grouped)]


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
    ) -> None:
        self._database = database
        self._shard = shard
        self._journal = f"{database.service}/{shard}"
        self._book = book
        self._queries = queries
        self._observer = observer
        self._waiting: deque[Pending] = deque()
        self._wake = asyncio.Event()
        self._connection: asyncpg.Connection[asyncpg.Record] | None = None
        self._epoch = 0
        self._head = -1
        self._projects: dict[str, int] = {}
        self._streams: dict[str, int] = {}
        self.grown = asyncio.Event()

    @property
    def waiting(self) -> int:
        """Commands that wait for a batch."""
        return len(self._waiting)

    async def submit(self, command: Command) -> Committed:
        """Queue a command and wait for its outcome; see `Journal.append`."""
        facts = place_facts(command, self._book.place)
        if len(self._waiting) >= QUEUE_MAX:
            raise Exhausted(
                "COMMIT_QUEUE_FULL",
                f"{QUEUE_MAX} commands wait to be committed in {self._journal}.",
                next_step="Send the same request again in a moment.",
                journal=self._journal,
            )
        writes = frozenset(fact.place.stream for fact in facts)
        pending = Pending(
            command,
            facts,
            asyncio.get_running_loop().create_future(),
            writes,
            frozenset(command.expected) - writes,
            collision_keys(command, facts),
        )
        self._waiting.append(pending)
        self._wake.set()
        return await pending.done

    async def run(self) -> None:
        """Commit batches until cancelled."""
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                while batch := self._take():
                    await self._commit(batch)
        finally:
            for pending in self._waiting:
                _fail(
                    pending,
                    Unavailable(
                        "SHUTTING_DOWN",
                        "The service is being stopped.",
                        next_step="Send the same request again.",
                    ),
                )
            self._waiting.clear()
            await self._disconnect()

    def _take(self) -> list[Pending]:
        """Take what may commit together; what collides with something before it stays, in order."""
        batch: list[Pending] = []
        later: list[Pending] = []
        writes: set[str] = set()
        reads: set[str] = set()
        keys: set[tuple[str, ...]] = set()
        while self._waiting and len(batch) < BATCH_MAX:
            pending = self._waiting.popleft()
            if pending.done.cancelled():
                continue
            collides = (
                not pending.writes.isdisjoint(writes)
                or not pending.writes.isdisjoint(reads)
                or not pending.reads.isdisjoint(writes)
                or not pending.keys.isdisjoint(keys)
            )
            (later if collides else batch).append(pending)
            writes |= pending.writes
            reads |= pending.reads
            keys |= pending.keys
        self._waiting.extendleft(reversed(later))
        return batch

    async def _commit(self, batch: list[Pending]) -> None:
        """Commit a batch, whatever it takes; every command in it hears an outcome."""
        deadline = asyncio.get_running_loop().time() + AWAY_SECONDS_MAX
        delay = 0.05
        while batch:
            try:
                await self._try(batch)
                return
            except Unavailable as error:
                if asyncio.get_running_loop().time() >= deadline:
                    for pending in batch:
                        _fail(pending, error)
                    return
                await asyncio.sleep(delay)
                delay = min(delay * 2, 1.0)
            except asyncio.CancelledError:
                for pending in batch:
                    _fail(
                        pending,
                        OutcomeUnknown(
                            "OUTCOME_UNKNOWN",
                            "The service was stopped while this was being committed.",
                            next_step="Send the same request again with the same request_id.",
                        ),
                    )
                raise
            except Exception as error:
                await self._disconnect()
                if len(batch) == 1:
                    _log.exception("a command of %s could not be committed", self._journal)
                    _fail(batch[0], error)
                    return
                _log.warning("a batch of %d failed (%r); trying one by one", len(batch), error)
                for pending in batch:
                    await self._commit([pending])
                return
            batch = [pending for pending in batch if not pending.done.done()]

    async def _try(self, batch: list[Pending]) -> None:
        connection = await self._connect()
        token = uuid.uuid4()
        left = list(batch)
        first = 0
        try:
            transaction = connection.transaction()
            await transaction.start()
            while True:
                left = [pending for pending in left if not pending.done.done()]
                if not left:
                    await transaction.rollback()
                    return
                numbered = await self._number(connection, token, left)
                first = self._head + 1
                answer = await connection.fetch(_queries["append"], *numbered.arguments)
                if answer and answer[-1]["kind"] == "done":
                    moment: datetime = answer[-1]["moment"]
                    break
                if answer and answer[0]["kind"] == "head":
                    self._remember(int(answer[1]["number"]), int(answer[0]["number"]))
                    continue
                self._refuse(left, answer)
            stored = [
                tuple(replace(fact, record_time=moment) for fact in facts)
                for facts in numbered.records
            ]
            writes = [
                write for facts in stored for fact in facts for write in self._book.project(fact)
            ]
            await execute_writes(connection, self._queries, writes)
        except LOST as error:
            await self._disconnect()
            raise unavailable(error) from error
        try:
            await transaction.commit()
        except LOST as error:
            await self._disconnect()
            if not await self._settled(token, first, numbered.after, left):
                raise unavailable(error) from error
        self._head = numbered.after
        self._projects.update(numbered.projects)
        self._streams.update(numbered.streams)
        if len(self._projects) > REMEMBERED_MAX:
            self._projects.clear()
        if len(self._streams) > REMEMBERED_MAX:
            self._streams.clear()
        for pending, facts in zip(left, stored, strict=True):
            if not pending.done.done():
                pending.done.set_result(Committed(facts, numbered.after))
        self.grown.set()
        self.grown = asyncio.Event()
        if self._observer is not None:
            self._observer.committed(len(left), sum(map(len, stored)), len(self._waiting))

    def _refuse(self, left: list[Pending], answer: Sequence[asyncpg.Record]) -> None:
        """Tell refused commands why; one whose facts are all said already goes on without them."""
        order = ("remembered", "overtaken", "fenced", "stale", "stated", "said", "claimed")
        refusals: dict[int, asyncpg.Record] = {}
        for row in sorted(answer, key=lambda row: order.index(row["kind"])):
            refusals.setdefault(row["command"], row)
        for place, row in refusals.items():
            pending = left[place]
            match row["kind"]:
                case "remembered":
                    outcome = Outcome(row["detail"], row["number"])
                    _fail(pending, Remembered(outcome, row["blob"]))
                case "overtaken":
                    _fail(pending, Overtaken(row["detail"]))
                case "fenced":
                    _fail(pending, Fenced(row["detail"]))
                case "stale":
                    self._streams.pop(row["detail"], None)
                    _fail(pending, Stale(row["detail"]))
                case "stated":
                    _fail(pending, Stated(self._journal))
                case "said":
                    pending.facts = ()
                    pending.writes = frozenset()
                case "claimed":
                    scope, name = row["detail"].split("\n")
                    _fail(pending, _taken(pending, scope, name))

    async def _number(
        self, connection: Connection, token: uuid.UUID, batch: Sequence[Pending]
    ) -> Numbered:
        """Give every fact of a batch its position, project position and version."""
        if self._head < 0:
            row = await connection.fetchrow(_queries["read_head"], self._shard)
            if row is None:
                raise Refused("JOURNAL_NOT_OPENED", f"{self._journal} has no head row.")
            self._remember(row["epoch"], row["position"])
        await self._look_up(connection, batch)
        position = self._head
        projects: dict[str, int] = {}
        streams: dict[str, int] = {}
        columns: dict[str, list[object]] = defaultdict(list)
        records: list[tuple[Recorded, ...]] = []
        for place, pending in enumerate(batch):
            command = pending.command
            metas = command.metas or (command.meta,) * len(pending.facts)
            facts: list[Recorded] = []
            for fact, meta in zip(pending.facts, metas, strict=False):
                position += 1
                where = fact.place
                projects[where.project] = (
                    projects.get(where.project, self._projects.get(where.project, 0)) + 1
                )
                streams[where.stream] = (
                    streams.get(where.stream, self._base(command, where.stream)) + 1
                )
                facts.append(
                    _record(
                        self._journal,
                        self._epoch,
                        position,
                        projects[where.project],
                        streams[where.stream],
                        fact,
                        meta,
                    )
                )
                _row(
                    columns,
                    "f",
                    place,
                    where.project,
                    projects[where.project],
                    where.stream,
                    streams[where.stream],
                    fact.type,
                    where.statement,
                    fact.data,
                    to_meta(meta).SerializeToString(deterministic=True),
                )
                for claim in where.claims:
                    _row(columns, "c", place, claim.scope, claim.name, claim.uid)
                for release in where.releases:
                    _row(columns, "r", release.scope, release.name)
            records.append(tuple(facts))
            for stream, version in command.expected.items():
                _row(columns, "e", place, stream, version)
            self._attach(columns, place, command, streams)
        arguments: tuple[object, ...] = (
            self._shard,
            self._epoch,
            self._head,
            position,
            token,
            *_columns(columns, "q", 7),
            *_columns(columns, "a", 8),
            *_columns(columns, "u", 5),
            *_columns(columns, "w", 3),
            *_columns(columns, "s", 2),
            *_columns(columns, "e", 3),
            *_columns(columns, "f", 9),
            *_columns(columns, "c", 4),
            *_columns(columns, "r", 2),
            list(projects),
            list(projects.values()),
            list(streams),
            list(streams.values()),
        )
        return Numbered(arguments, tuple(records), position, projects, streams)

    def _attach(
        self,
        columns: dict[str, list[object]],
        place: int,
        command: Command,
        streams: dict[str, int],
    ) -> None:
        """Put what hangs on a command beside its facts."""
        request = command.request
        if request is not None:
            subject = command.subject
            version = streams.get(subject, self._base(command, subject))
            _row(
                columns,
                "q",
                place,
                request.scope,
                request.method,
                request.request_id,
                request.digest,
                subject,
                version,
            )
        advance = command.advance
        if advance is not None:
            _row(
                columns,
                "a",
                place,
                advance.reader,
                advance.journal,
                advance.epoch,
                advance.after,
                advance.position,
                advance.folded,
                advance.passed_over,
            )
        unpark = command.unpark
        if unpark is not None:
            _row(
                columns, "u", place, unpark.reader, unpark.journal, unpark.position, unpark.skipped
            )
        if command.writer is not None:
            _row(columns, "w", place, *command.writer)
        if command.resume is not None:
            _row(columns, "s", *command.resume)

    async def _look_up(self, connection: Connection, batch: Sequence[Pending]) -> None:
        """Learn the heads that this batch needs and that are not remembered."""
        facts = [fact.place for pending in batch for fact in pending.facts]
        projects = {place.project for place in facts} - self._projects.keys()
        if projects:
            for row in await connection.fetch(
                _queries["project_heads"], self._shard, list(projects)
            ):
                self._projects[row["project"]] = row["position"] or 0
        needed = {
            stream
            for pending in batch
            for stream in (*pending.writes, pending.command.subject)
            if stream and stream not in pending.command.expected
        } - self._streams.keys()
        if needed:
            for row in await connection.fetch(_queries["stream_heads"], self._shard, list(needed)):
                self._streams[row["stream"]] = row["version"] or 0

    def _base(self, command: Command, stream: str) -> int:
        """The version that a stream has before this batch."""
        expected = command.expected.get(stream)
        return self._streams[stream] if expected is None else expected

    def _remember(self, epoch: int, head: int) -> None:
        """Begin again from heads that another process moved."""
        self._epoch, self._head = epoch, head
        self._projects.clear()
        self._streams.clear()

    async def _settled(
        self, token: uuid.UUID, first: int, after: int, batch: Sequence[Pending]
    ) -> bool:
        """
        Find out what became of a COMMIT whose answer was lost.

        Taking the head row waits until the old transaction has ended. True: it committed. False:
        it did not. OutcomeUnknown for every command where PostgreSQL stays away.
        """
        deadline = asyncio.get_running_loop().time() + AWAY_SECONDS_MAX
        while True:
            try:
                connection = await self._connect()
                async with connection.transaction():
                    await connection.fetchrow(_queries["lock_head"], self._shard)
                    if after >= first:
                        row = await connection.fetchrow(_queries["batch_at"], self._shard, first)
                        return row is not None and row["batch"] == token
                    # Without facts only checkpoints, requests and parking moved: deciding such a
                    # batch again is harmless, for each of them is compared before it moves.
                    return False
            except (Unavailable, *LOST):
                await self._disconnect()
                if asyncio.get_running_loop().time() >= deadline:
                    for pending in batch:
                        _fail(
                            pending,
                            OutcomeUnknown(
                                "OUTCOME_UNKNOWN",
                                "The database went away while this was being committed.",
                                next_step="Send the same request again with the same request_id.",
                            ),
                        )
                    raise OutcomeUnknown("OUTCOME_UNKNOWN", "settled as unknown") from None
                await asyncio.sleep(0.1)

    async def _connect(self) -> asyncpg.Connection[asyncpg.Record]:
        if self._connection is None or self._connection.is_closed():
            self._connection = await self._database.pinned(f"committer {self._shard}")
            self._head = -1
        return self._connection

    async def _disconnect(self) -> None:
        connection, self._connection, self._head = self._connection, None, -1
        if connection is not None:
            connection.terminate()


def _fail(pending: Pending, error: BaseException) -> None:
    if not pending.done.done():
        pending.done.set_exception(error)


def _taken(pending: Pending, scope: str, name: str) -> Refused:
    for fact in pending.facts:
        for claim in fact.place.claims:
            if (claim.scope, claim.name) == (scope, name):
                return claim.taken
    raise AssertionError(f"nobody claimed {name} in {scope}")


def _record(
    journal: str,
    epoch: int,
    position: int,
    project_position: int,
    version: int,
    fact: Placed,
    meta: Meta,
) -> Recorded:
    where = fact.place
    return Recorded(
        journal=journal,
        epoch=epoch,
        position=position,
        project=where.project,
        project_position=project_position,
        stream=where.stream,
        version=version,
        type=fact.type,
        statement="" if where.statement is None else str(where.statement),
        data=fact.data,
        meta=meta,
        record_time=datetime.fromtimestamp(0, UTC),
        message=fact.message,
    )


def _row(columns: dict[str, list[object]], table: str, *values: object) -> None:
    for place, value in enumerate(values):
        columns[f"{table}{place}"].append(value)


def _columns(columns: dict[str, list[object]], table: str, count: int) -> list[list[object]]:
    return [columns.get(f"{table}{place}", []) for place in range(count)]
