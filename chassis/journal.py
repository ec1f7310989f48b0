"""The journal as everybody else sees it: what a command holds, what may be refused, what is read back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, Protocol
from uuid import UUID

from google.protobuf.message import Message

from chassis.envelope import NO_PROJECT, Meta, Recorded
from chassis.refusals import Refused

# A page holds no more of facts than this, or a single one.
PAGE_BYTES_MAX: Final = 8 * 2**20


@dataclass(frozen=True, slots=True)
class Claim:
    """Takes a name in a scope for a uid; `taken` is what the caller hears where another has it."""

    scope: str
    name: str
    uid: str
    taken: Refused


@dataclass(frozen=True, slots=True)
class Release:
    """Gives a name free; a name that nobody holds is no error."""

    scope: str
    name: str


@dataclass(frozen=True, slots=True)
class Place:
    """Where a fact stands and what it does beside being said; a function of the fact alone."""

    stream: str
    project: str = NO_PROJECT
    statement: UUID | None = None
    claims: tuple[Claim, ...] = ()
    releases: tuple[Release, ...] = ()


@dataclass(frozen=True, slots=True)
class Write:
    """A named statement of the service's queries.sql on the read model; `key` names the row it touches."""

    statement: str
    key: str
    arguments: tuple[object, ...]


@dataclass(frozen=True, slots=True)
class Book:
    """How one service's facts are placed and become rows; both are pure functions of the fact."""

    place: Callable[[Message], Place]
    project: Callable[[Recorded], Sequence[Write]]


@dataclass(frozen=True, slots=True)
class Request:
    """A caller's request_id, remembered with its outcome so that a retry gets the same answer."""

    scope: str
    method: str
    request_id: str
    digest: bytes


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a remembered request led to: the stream it was about, as of this version."""

    stream: str
    version: int


@dataclass(frozen=True, slots=True)
class Advance:
    """Moves a reader's checkpoint from `after` to `position` in the transaction of what it decided."""

    reader: str
    journal: str
    epoch: int
    after: int
    position: int
    folded: int
    passed_over: int


@dataclass(frozen=True, slots=True)
class Unpark:
    """Takes one parked fact out of a reader's parking in the transaction of its effects."""

    reader: str
    journal: str
    position: int
    skipped: bool = False


@dataclass(frozen=True, slots=True)
class Command:
    """One decision on its way into the journal: everything in it commits together, or nothing does."""

    facts: tuple[Message, ...]
    meta: Meta
    # Versions of the streams that were read to decide; a stream that is only written needs none.
    expected: Mapping[str, int] = field(default_factory=dict)
    request: Request | None = None
    # Stream whose version after the append is the request's outcome.
    subject: str = ""
    advance: Advance | None = None
    unpark: Unpark | None = None
    # (lease name, writer epoch): refused as `Fenced` where a later holder has taken the lease.
    writer: tuple[str, int] | None = None
    # Of each fact, where they follow from several causes; else `meta` is all facts'.
    metas: tuple[Meta, ...] = ()
    # Resumes a halted reader in the transaction of its `ReaderResumed`: (reader, journal).
    resume: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Committed:
    """What became of a command: its facts as stored (none where all were said already)."""

    records: tuple[Recorded, ...]
    # Position of the journal's head that holds all of it; send it back to read your own write.
    position: int


@dataclass(frozen=True, slots=True)
class Head:
    """Lineage and last position of a journal, and the first position of that lineage."""

    epoch: int
    position: int
    epoch_first: int = 1


@dataclass(frozen=True, slots=True)
class Page:
    """Facts in order; `head` is the last position (of the project, where one was asked for) at the read."""

    records: tuple[Recorded, ...]
    head: int
    epoch: int
    # What was read below this position is still true in the present lineage.
    epoch_first: int = 1

    @property
    def ends(self) -> bool:
        """Whether nothing of the whole journal is behind it."""
        return not self.records or self.records[-1].position >= self.head


class Stale(Exception):
    """A stream moved since it was read: read and decide again."""


class Stated(Exception):
    """Some, not all, of the statements are said already: read and decide again."""


class Remembered(Exception):
    """This request was answered before."""

    def __init__(self, outcome: Outcome, digest: bytes) -> None:
        super().__init__(f"{outcome.stream} at {outcome.version}")
        self.outcome = outcome
        self.digest = digest


class Overtaken(Exception):
    """The reader's checkpoint is not where it was: another holder of the same reader was faster."""


class Fenced(Exception):
    """A later holder has taken the lease."""


class Journal(Protocol):
    """One service's log: appended under one head, read by position, by project or by stream."""

    @property
    def name(self) -> str:
        """`<service>/<shard>`."""
        ...

    async def load(self, streams: Sequence[str]) -> Mapping[str, tuple[Recorded, ...]]:
        """Read whole streams, oldest fact first; one that was never written is empty."""
        ...

    async def append(self, command: Command) -> Committed:
        """
        Commit one command with others of its moment.

        Decided in this order: Remembered, Overtaken, Fenced, Stale, Stated, a claim's own refusal;
        of names, a command's releases come before its claims. All statements said already:
        committed without facts. Also raises Exhausted where too many wait, Invalid (FACT_TOO_LARGE,
        TEXT_HAS_NUL), Unavailable where the database stays away and nothing was committed,
        OutcomeUnknown where it went away in the commit. ValueError for a command that states one
        thing twice; whatever a projection raises.
        """
        ...

    async def remembered(self, request: Request) -> Remembered | None:
        """Look a request up; None where it was never answered with success."""
        ...

    async def holder(self, scope: str, name: str) -> str | None:
        """Tell the uid that holds a name now; None where nobody does."""
        ...

    async def read(self, after: int, limit: int, project: str | None = None) -> Page:
        """
        Read facts after a position (a project position where a project is given).

        At most so many, and fewer where they are large: the last one may be before the head.
        """
        ...

    async def read_stream(
        self, stream: str, after_version: int, limit: int, until: datetime | None = None
    ) -> tuple[Recorded, ...]:
        """
        Read part of one stream; `until` leaves out what was recorded later.

        At most so many, and fewer where they are large: only nothing at all is the end.
        """
        ...

    async def head(self) -> Head:
        """Lineage and last position."""
        ...

    async def grown(self, past: int, seconds: float) -> None:
        """Return when the head is past a position, or after so many seconds, whichever is first."""
        ...
