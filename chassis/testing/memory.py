"""A journal in memory that behaves as PostgreSQL's does; one conformance suite holds both to it."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime

from chassis.clock import Clock, SystemClock
from chassis.commit import Placed, place_facts
from chassis.envelope import Recorded, Registry
from chassis.journal import (
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


class MemoryJournal:
    """See `chassis.journal.Journal`. Appends are decided one after another, in the order of the calls."""

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
        self.log: list[Recorded] = []
        self.writes: list[Write] = []
        self.claims: dict[tuple[str, str], str] = {}
        self.requests: dict[tuple[str, str, str], Remembered] = {}
        self.statements: set[str] = set()
        self.checkpoints: dict[tuple[str, str], int] = {}
        self.halted: dict[tuple[str, str], str] = {}
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
        self._refuse_answered(command)
        self._refuse_overtaken(command.advance, command.unpark)
        if command.writer is not None and self.writers.get(command.writer[0]) != command.writer[1]:
            raise Fenced(command.writer[0])
        for stream, version in command.expected.items():
            if len(self._stream(stream)) != version:
                raise Stale(stream)
        said = [str(fact.place.statement) in self.statements for fact in facts]
        if facts and all(said):
            facts = ()
        elif any(said):
            raise Stated(self._name)
        for fact in facts:
            for claim in fact.place.claims:
                if self.claims.get((claim.scope, claim.name), claim.uid) != claim.uid:
                    raise claim.taken
        records = self._record(command, facts)
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
        if project is None:
            return Page(tuple(self.log[after : after + limit]), len(self.log), self._epoch)
        own = [record for record in self.log if record.project == project]
        return Page(tuple(own[after : after + limit]), len(own), self._epoch)

    async def read_stream(
        self, stream: str, after_version: int, limit: int, until: datetime | None = None
    ) -> tuple[Recorded, ...]:
        """Read part of one stream."""
        found = [
            record
            for record in self._stream(stream)
            if record.version > after_version and (until is None or record.record_time <= until)
        ]
        return tuple(found[:limit])

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
                await asyncio.wait_for(self._grown.wait(), left)
            except TimeoutError:
                return

    def _stream(self, name: str) -> tuple[Recorded, ...]:
        return tuple(record for record in self.log if record.stream == name)

    def _refuse_answered(self, command: Command) -> None:
        request = command.request
        if request is None:
            return
        answered = self.requests.get((request.scope, request.method, request.request_id))
        if answered is not None:
            raise answered

    def _refuse_overtaken(self, advance: Advance | None, unpark: Unpark | None) -> None:
        if advance is not None:
            key = (advance.reader, advance.journal)
            if key in self.halted or self.checkpoints.get(key) != advance.after:
                raise Overtaken(advance.reader)
        if unpark is not None:
            if (unpark.reader, unpark.journal, unpark.position) not in self.parked:
                raise Overtaken(unpark.reader)

    def _record(self, command: Command, facts: tuple[Placed, ...]) -> tuple[Recorded, ...]:
        now = self._clock.now()
        projects: dict[str, int] = defaultdict(int)
        versions: dict[str, int] = defaultdict(int)
        for record in self.log:
            projects[record.project] += 1
            versions[record.stream] += 1
        records: list[Recorded] = []
        metas = command.metas or (command.meta,) * len(facts)
        for fact, meta in zip(facts, metas, strict=False):
            where = fact.place
            projects[where.project] += 1
            versions[where.stream] += 1
            records.append(
                Recorded(
                    journal=self._name,
                    epoch=self._epoch,
                    position=len(self.log) + len(records) + 1,
                    project=where.project,
                    project_position=projects[where.project],
                    stream=where.stream,
                    version=versions[where.stream],
                    type=fact.type,
                    statement="" if where.statement is None else str(where.statement),
                    data=fact.data,
                    meta=meta,
                    record_time=now,
                    message=self._registry.decode(fact.type, fact.data) or fact.message,
                )
            )
        return tuple(records)

    def _apply(
        self,
        command: Command,
        facts: tuple[Placed, ...],
        records: tuple[Recorded, ...],
        writes: Sequence[Write],
    ) -> None:
        self.log.extend(records)
        self.writes.extend(writes)
        for fact in facts:
            if fact.place.statement is not None:
                self.statements.add(str(fact.place.statement))
            for release in fact.place.releases:
                self.claims.pop((release.scope, release.name), None)
            for claim in fact.place.claims:
                self.claims[claim.scope, claim.name] = claim.uid
        request, advance, unpark = command.request, command.advance, command.unpark
        if request is not None:
            outcome = Outcome(command.subject, len(self._stream(command.subject)))
            self.requests[request.scope, request.method, request.request_id] = Remembered(
                outcome, request.digest
            )
        if advance is not None:
            self.checkpoints[advance.reader, advance.journal] = advance.position
        if unpark is not None:
            self.parked.discard((unpark.reader, unpark.journal, unpark.position))
        if command.resume is not None:
            self.halted.pop(command.resume, None)
        self._grown.set()
        self._grown = asyncio.Event()
