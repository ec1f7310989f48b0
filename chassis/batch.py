"""A batch on its way into the journal: what its commands say, what may not meet in it, and its numbers."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from chassis.envelope import FACT_BYTES_MAX, Meta, Recorded, to_meta
from chassis.journal import Command, Committed, Place, Write
from chassis.refusals import Invalid, Violation

# Heads that are remembered between batches; beyond it they are looked up again.
REMEMBERED_MAX = 50_000

Key = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Placed:
    """One fact, ready to be numbered."""

    message: Message
    place: Place
    type: str
    data: bytes
    meta: Meta
    meta_data: bytes


@dataclass(slots=True)
class Pending:
    """One command on its way, with the keys on which it may collide with others."""

    command: Command
    facts: tuple[Placed, ...]
    done: asyncio.Future[Committed]
    writes: frozenset[str]
    # Streams that it decided on and does not write.
    reads: frozenset[str]
    keys: frozenset[Key]
    size: int


def place_facts(command: Command, place: Callable[[Message], Place]) -> tuple[Placed, ...]:
    """
    Serialize and place a command's facts.

    `Invalid` where one is too large (FACT_TOO_LARGE) or has a NUL in a text (TEXT_HAS_NUL); a
    claim's own refusal where two facts claim one name for different uids; ValueError where two
    state the same, or `metas` are not as many as the facts.
    """
    if command.metas and len(command.metas) != len(command.facts):
        raise ValueError(f"{len(command.facts)} facts have {len(command.metas)} metas")
    metas = command.metas or (command.meta,) * len(command.facts)
    written: dict[int, bytes] = {}
    statements: set[UUID] = set()
    claimed: dict[tuple[str, str], str] = {}
    placed = []
    for message, meta in zip(command.facts, metas, strict=True):
        data = message.SerializeToString(deterministic=True)
        name = message.DESCRIPTOR.full_name
        _refuse_unstorable(message, data)
        where = place(message)
        if where.statement is not None:
            if where.statement in statements:
                raise ValueError(f"{name} states {where.statement} twice in one command")
            statements.add(where.statement)
        for claim in where.claims:
            if claimed.setdefault((claim.scope, claim.name), claim.uid) != claim.uid:
                raise claim.taken
        meta_data = written.get(id(meta))
        if meta_data is None:
            meta_data = to_meta(meta).SerializeToString(deterministic=True)
            written[id(meta)] = meta_data
        placed.append(Placed(message, where, name, data, meta, meta_data))
    return tuple(placed)


def _refuse_unstorable(message: Message, data: bytes) -> None:
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
    # PostgreSQL's text has no NUL, and one would refuse the rows of a whole batch.
    if b"\0" in data and (path := nul_path(message)):
        raise Invalid(
            "TEXT_HAS_NUL",
            f"{path} of {message.DESCRIPTOR.name} has the character U+0000.",
            violations=(Violation(path, "must not have the character U+0000", "string.no_nul"),),
            next_step="Send the text without it.",
            field=path,
        )


def nul_path(message: Message) -> str:
    """Find the first text that has the character U+0000; empty where none has."""
    for descriptor, value in message.ListFields():
        if descriptor.type == FieldDescriptor.TYPE_STRING:
            texts = value if descriptor.is_repeated else (value,)
            if any("\0" in text for text in texts):
                return descriptor.name
        elif descriptor.type == FieldDescriptor.TYPE_MESSAGE:
            if found := _nul_within(value):
                return f"{descriptor.name}.{found}"
    return ""


def _nul_within(value: object) -> str:
    if isinstance(value, Message):
        return nul_path(value)
    if isinstance(value, Mapping):
        for key, entry in value.items():
            if "\0" in str(key):
                return "key"
            if isinstance(entry, str) and "\0" in entry:
                return str(key)
            if isinstance(entry, Message) and (found := nul_path(entry)):
                return f"{key}.{found}"
        return ""
    assert isinstance(value, Iterable)
    for message in value:
        if isinstance(message, Message) and (found := nul_path(message)):
            return found
    return ""


def collision_keys(command: Command, facts: Iterable[Placed]) -> frozenset[Key]:
    """Everything but streams on which two commands of one batch must not meet."""
    keys: set[Key] = set()
    for fact in facts:
        for claim in fact.place.claims:
            keys.add(("claim", claim.scope, claim.name))
        for release in fact.place.releases:
            keys.add(("claim", release.scope, release.name))
        if fact.place.statement is not None:
            keys.add(("statement", fact.place.statement.hex))
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


@dataclass(frozen=True, slots=True)
class Numbered:
    """A batch with its numbers: the arguments of `append`, and the heads after it."""

    arguments: tuple[object, ...]
    # Before and after the batch; equal where it says nothing.
    before: int
    after: int
    epoch: int
    projects: dict[str, int]
    streams: dict[str, int]
    # Of each fact, in the order of the batch.
    project_places: list[int]
    versions: list[int]

    def stored(
        self, journal: str, batch: Sequence[Pending], moment: datetime
    ) -> list[tuple[Recorded, ...]]:
        """The facts of each command as `append` has stored them."""
        stored: list[tuple[Recorded, ...]] = []
        place = 0
        for pending in batch:
            records = []
            for fact in pending.facts:
                where = fact.place
                records.append(
                    Recorded(
                        journal,
                        self.epoch,
                        self.before + place + 1,
                        where.project,
                        self.project_places[place],
                        where.stream,
                        self.versions[place],
                        fact.type,
                        "" if where.statement is None else str(where.statement),
                        fact.data,
                        fact.meta,
                        moment,
                        fact.message,
                    )
                )
                place += 1
            stored.append(tuple(records))
        return stored


@dataclass(slots=True)
class Heads:
    """What a committer remembers of its own last commit, so that it can number the next batch."""

    epoch: int = 0
    # -1: not known.
    position: int = -1
    projects: dict[str, int] = field(default_factory=dict)
    streams: dict[str, int] = field(default_factory=dict)

    def begin(self, epoch: int, position: int) -> None:
        """Begin again from a head that another process moved."""
        self.epoch, self.position = epoch, position
        self.projects.clear()
        self.streams.clear()

    def forget(self) -> None:
        """Know nothing any more: the connection is gone."""
        self.position = -1

    def unknown(self, batch: Sequence[Pending]) -> tuple[list[str], list[str]]:
        """Projects and streams whose heads this batch needs and nobody remembers."""
        projects = {
            fact.place.project
            for pending in batch
            for fact in pending.facts
            if fact.place.project not in self.projects
        }
        streams: set[str] = set()
        for pending in batch:
            expected = pending.command.expected
            for stream in pending.writes:
                if stream not in expected and stream not in self.streams:
                    streams.add(stream)
            if pending.command.request is not None:
                subject = pending.command.subject
                if subject and subject not in expected and subject not in self.streams:
                    streams.add(subject)
        return list(projects), list(streams)

    def learn(self, numbered: Numbered) -> None:
        """Remember what was committed."""
        self.position = numbered.after
        self.projects.update(numbered.projects)
        self.streams.update(numbered.streams)
        for heads in (self.projects, self.streams):
            if len(heads) > REMEMBERED_MAX:
                heads.clear()

    def number(self, shard: str, token: UUID, batch: Sequence[Pending]) -> Numbered:
        """Give every fact its position, project position and version, and fill `append`'s columns."""
        projects: dict[str, int] = {}
        streams: dict[str, int] = {}
        commands: list[int] = []
        project_names: list[str] = []
        project_places: list[int] = []
        stream_names: list[str] = []
        versions: list[int] = []
        placed: list[Placed] = []
        claims, releases, expected = _table(5), _table(2), _table(3)
        requests, advances, unparks = _table(7), _table(8), _table(5)
        writers, resumed = _table(3), _table(2)
        for place, pending in enumerate(batch):
            command = pending.command
            for fact in pending.facts:
                where = fact.place
                project, stream = where.project, where.stream
                at = projects[project] = projects.get(project, self.projects.get(project, 0)) + 1
                version = streams.get(stream)
                if version is None:
                    version = self._base(command, stream)
                version = streams[stream] = version + 1
                commands.append(place)
                project_names.append(project)
                project_places.append(at)
                stream_names.append(stream)
                versions.append(version)
                placed.append(fact)
            _move_names(claims, releases, place, pending.facts)
            for stream, version in command.expected.items():
                _add(expected, place, stream, version)
            request, advance, unpark = command.request, command.advance, command.unpark
            if request is not None:
                found = streams.get(command.subject)
                version = self._base(command, command.subject) if found is None else found
                _add(
                    requests,
                    place,
                    request.scope,
                    request.method,
                    request.request_id,
                    request.digest,
                    command.subject,
                    version,
                )
            if advance is not None:
                _add(
                    advances,
                    place,
                    advance.reader,
                    advance.journal,
                    advance.epoch,
                    advance.after,
                    advance.position,
                    advance.folded,
                    advance.passed_over,
                )
            if unpark is not None:
                _add(unparks, place, unpark.reader, unpark.journal, unpark.position, unpark.skipped)
            if command.writer is not None:
                _add(writers, place, *command.writer)
            if command.resume is not None:
                _add(resumed, *command.resume)
        after = self.position + len(placed)
        facts = (
            *(commands, project_names, project_places, stream_names, versions),
            [fact.type for fact in placed],
            [fact.place.statement for fact in placed],
            [fact.data for fact in placed],
            [fact.meta_data for fact in placed],
        )
        arguments: tuple[object, ...] = (
            *(shard, self.epoch, self.position, after, token),
            *(*requests, *advances, *unparks, *writers, *resumed, *expected),
            *(*facts, *claims, *releases),
            *(list(projects), list(projects.values()), list(streams), list(streams.values())),
        )
        return Numbered(
            arguments,
            self.position,
            after,
            self.epoch,
            projects,
            streams,
            project_places,
            versions,
        )

    def _base(self, command: Command, stream: str) -> int:
        """The version that a stream has before this batch."""
        expected = command.expected.get(stream)
        if expected is not None:
            return expected
        return self.streams[stream] if stream else 0


Table = list[list[object]]


def _table(width: int) -> Table:
    return [[] for _ in range(width)]


def _add(table: Table, *values: object) -> None:
    for column, value in zip(table, values, strict=True):
        column.append(value)


def _move_names(claims: Table, releases: Table, place: int, facts: Sequence[Placed]) -> None:
    """A command's releases come before its claims, in whichever order its facts are."""
    freed = {(release.scope, release.name) for fact in facts for release in fact.place.releases}
    for scope, name in freed:
        _add(releases, scope, name)
    for fact in facts:
        for claim in fact.place.claims:
            free = (claim.scope, claim.name) in freed
            _add(claims, place, claim.scope, claim.name, claim.uid, free)
