"""A journal in memory that behaves as PostgreSQL's does; one conformance suite holds both to it."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import accumulate

from chassis.batch import Placed, place_facts
from chassis.clock import Clock, SystemClock
from chassis.envelope import Recorded, Registry
from chassis.journal import (
    PAGE_BYTES_MAX,
    Advance,
    Book,
    Command,
    Committed,
    Fenced,
    Head,
    Outcome,
    Overtaken,
    Page,
    Remembered,
    Request,
    Stale,
    Stated,
    Unpark,
    Write,
)


@dataclass(slots=True)
class Checkpoint:
    """How far one reader got in one journal."""

    epoch: int = 1
    position: int = 0
    folded: int = 0
    passed_over: int = 0
    skipped: int = 0
    halted: str | None = None


class MemoryJournal:
    """
    See `chassis.journal.Journal`. Appends are decided one after another, in the order of the calls.

    A test opens a reader's checkpoint by putting one into `checkpoints`, parks a fact by adding
    its (reader, journal, position) to `parked`, and gives a lease by its writer epoch in `writers`.
    `writes` are the rows' writes so far, in order.
    """

    def __init__(
        self,
        name: str,
        *,
        registry: Registry,
        book: Book,
        clock: Clock | None = None,
        epoch: int = 1,
    ) -> None:
        self._name = name
        self._registry = registry
        self._book = book
        self._clock = clock or SystemClock()
        self._epoch = epoch
        self._grown = asyncio.Event()
        self._streams: dict[str, list[Recorded]] = defaultdict(list)
        self._projects: dict[str, list[Recorded]] = defaultdict(list)
        self.log: list[Recorded] = []
        self.writes: list[Write] = []
        self.claims: dict[tuple[str, str], str] = {}
        self.requests: dict[tuple[str, str, str], Remembered] = {}
        self.statements: set[str] = set()
        self.checkpoints: dict[tuple[str, str], Checkpoint] = {}
        self.parked: set[tuple[str, str, int]] = set()
        self.writers: dict[str, int] = {}

    @property
    def name(self) -> str:
        """`<service>/<shard>`."""
        return self._name

    async def load(self, streams: Sequence[str]) -> Mapping[str, tuple[Recorded, ...]]:
        """Read whole streams."""
        return {name: self._stream(name) for name in streams}

    async def append(self, command: Command) -> Committed:
        """Commit one command, or raise as `Journal.append` says."""
        facts = place_facts(command, self._book.place)
        self._refuse_answered(command.request)
        self._refuse_overtaken(command.advance, command.unpark)
        if command.writer is not None and self.writers.get(command.writer[0]) != command.writer[1]:
            raise Fenced(command.writer[0])
        for stream, version in command.expected.items():
            if self._version(stream) != version:
                raise Stale(stream)
        said = [str(fact.place.statement) in self.statements for fact in facts]
        if facts and all(said):
            facts = ()
        elif any(said):
            raise Stated(self._name)
        self._refuse_claimed(facts)
        records = self._record(facts)
        # A projection that raises refuses the whole command, before anything has moved.
        writes = [write for record in records for write in self._book.project(record)]
        self._apply(command, facts, records, writes)
        return Committed(records, len(self.log))

    async def remembered(self, request: Request) -> Remembered | None:
        """Look a request up."""
        return self.requests.get((request.scope, request.method, request.request_id))

    async def holder(self, scope: str, name: str) -> str | None:
        """Tell the uid that holds a name."""
        return self.claims.get((scope, name))

    async def read(self, after: int, limit: int, project: str | None = None) -> Page:
        """Read facts after a position, or after a project position."""
        facts = self.log if project is None else self._projects.get(project, [])
        return Page(_fitting(facts[after : after + limit]), len(facts), self._epoch)

    async def read_stream(
        self, stream: str, after_version: int, limit: int, until: datetime | None = None
    ) -> tuple[Recorded, ...]:
        """Read part of one stream."""
        found = [
            record
            for record in self._stream(stream)
            if record.version > after_version and (until is None or record.record_time <= until)
        ]
        return _fitting(found[:limit])

    async def head(self) -> Head:
        """Lineage and last position."""
        return Head(self._epoch, len(self.log))

    async def grown(self, past: int, seconds: float) -> None:
        """Return when the head is past a position, or after so many seconds."""
        deadline = self._clock.monotonic() + seconds
        while len(self.log) <= past:
            left = deadline - self._clock.monotonic()
            if left <= 0:
                return
            try:
                async with asyncio.timeout(left):
                    await self._grown.wait()
            except TimeoutError:
                return

    def _stream(self, name: str) -> tuple[Recorded, ...]:
        return tuple(self._streams.get(name, ()))

    def _version(self, stream: str) -> int:
        return len(self._streams.get(stream, ()))

    def _refuse_answered(self, request: Request | None) -> None:
        if request is None:
            return
        answered = self.requests.get((request.scope, request.method, request.request_id))
        if answered is not None:
            raise Remembered(answered.outcome, answered.digest)

    def _refuse_overtaken(self, advance: Advance | None, unpark: Unpark | None) -> None:
        if advance is not None:
            found = self.checkpoints.get((advance.reader, advance.journal))
            if (
                found is None
                or found.halted is not None
                or found.position != advance.after
                or (found.position > 0 and found.epoch != advance.epoch)
            ):
                raise Overtaken(advance.reader)
        if unpark is not None:
            if (unpark.reader, unpark.journal, unpark.position) not in self.parked:
                raise Overtaken(unpark.reader)

    def _refuse_claimed(self, facts: Sequence[Placed]) -> None:
        freed = {(one.scope, one.name) for fact in facts for one in fact.place.releases}
        for fact in facts:
            for claim in fact.place.claims:
                key = (claim.scope, claim.name)
                if key not in freed and self.claims.get(key, claim.uid) != claim.uid:
                    raise claim.taken

    def _record(self, facts: Sequence[Placed]) -> tuple[Recorded, ...]:
        now = self._clock.now()
        projects: dict[str, int] = {}
        versions: dict[str, int] = {}
        records: list[Recorded] = []
        for fact in facts:
            project, stream = fact.place.project, fact.place.stream
            projects[project] = projects.get(project, len(self._projects.get(project, ()))) + 1
            versions[stream] = versions.get(stream, self._version(stream)) + 1
            statement = fact.place.statement
            records.append(
                Recorded(
                    journal=self._name,
                    epoch=self._epoch,
                    position=len(self.log) + len(records) + 1,
                    project=project,
                    project_position=projects[project],
                    stream=stream,
                    version=versions[stream],
                    type=fact.type,
                    statement="" if statement is None else str(statement),
                    data=fact.data,
                    meta=fact.meta,
                    record_time=now,
                    message=self._registry.decode(fact.type, fact.data) or fact.message,
                )
            )
        return tuple(records)

    def _apply(
        self,
        command: Command,
        facts: Sequence[Placed],
        records: Sequence[Recorded],
        writes: Sequence[Write],
    ) -> None:
        for record in records:
            self.log.append(record)
            self._streams[record.stream].append(record)
            self._projects[record.project].append(record)
            if record.statement:
                self.statements.add(record.statement)
        self.writes.extend(writes)
        for fact in facts:
            for release in fact.place.releases:
                self.claims.pop((release.scope, release.name), None)
        for fact in facts:
            for claim in fact.place.claims:
                self.claims[claim.scope, claim.name] = claim.uid
        request, advance, unpark = command.request, command.advance, command.unpark
        if request is not None:
            outcome = Outcome(command.subject, self._version(command.subject))
            self.requests[request.scope, request.method, request.request_id] = Remembered(
                outcome, request.digest
            )
        if advance is not None:
            moved = self.checkpoints[advance.reader, advance.journal]
            moved.epoch, moved.position = advance.epoch, advance.position
            moved.folded += advance.folded
            moved.passed_over += advance.passed_over
        if unpark is not None:
            self._unpark(unpark)
        if command.resume is not None and command.resume in self.checkpoints:
            self.checkpoints[command.resume].halted = None
        self._grown.set()
        self._grown = asyncio.Event()

    def _unpark(self, unpark: Unpark) -> None:
        self.parked.discard((unpark.reader, unpark.journal, unpark.position))
        counted = self.checkpoints.get((unpark.reader, unpark.journal))
        if counted is not None:
            counted.folded += not unpark.skipped
            counted.skipped += unpark.skipped


def _fitting(facts: Sequence[Recorded]) -> tuple[Recorded, ...]:
    """As many as a page holds, and one at least."""
    before = accumulate((len(fact.data) for fact in facts), initial=0)
    return tuple(fact for fact, size in zip(facts, before, strict=False) if size < PAGE_BYTES_MAX)
