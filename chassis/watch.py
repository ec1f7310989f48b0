"""Watch: each resource that changes is sent once a change, from a place that any process can resume."""

from __future__ import annotations

import asyncio
import base64
import enum
import json
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeAlias, TypeVar

from chassis.clock import Clock
from chassis.envelope import Recorded
from chassis.journal import Head, Journal, Page
from chassis.refusals import Expired, Invalid, Violation
from chassis.tail import Tail

BOOKMARK_SECONDS: Final = 15.0
# Readings of rows that those who come a moment later may share.
READINGS_KEPT: Final = 16

Resource = TypeVar("Resource")
Rows: TypeAlias = Callable[[Sequence[str]], Awaitable[Mapping[str, Resource]]]


class Kind(enum.Enum):
    """What happened to a resource."""

    INITIAL = "initial"
    UPDATED = "updated"
    DELETED = "deleted"
    BOOKMARK = "bookmark"


@dataclass(frozen=True, slots=True)
class Change(Generic[Resource]):
    """One message of a watch; the token is the place behind it, empty for an initial row."""

    kind: Kind
    uid: str
    resource: Resource | None
    token: str


@dataclass(frozen=True, slots=True)
class Asked:
    """A reading of rows: of which ones, as of which place at the earliest, and as whom."""

    whose: str
    position: int
    uids: tuple[str, ...]


class Watching(Generic[Resource]):
    """
    The watches over one journal: what is new is read once for all of them, and so are rows that changed.
    """

    def __init__(self, journal: Journal, clock: Clock) -> None:
        self._journal = journal
        self._clock = clock
        self._tail = Tail(journal)
        self._rows: OrderedDict[Asked, asyncio.Future[Mapping[str, Resource]]] = OrderedDict()

    async def run(self) -> None:
        """Read for all who watch, until cancelled."""
        await self._tail.run()

    async def follow(
        self,
        *,
        token: str,
        send_initial: bool,
        project: str | None,
        touched: Callable[[Recorded], str | None],
        current: Rows[Resource],
        initial: Callable[[], Awaitable[Sequence[tuple[str, Resource]]]],
        gone: Rows[Resource] | None = None,
        whose: str = "",
    ) -> AsyncIterator[Change[Resource]]:
        """
        Follow the journal for ever, mapping facts to the uids they touch and uids to their present rows.

        The token names journal, epoch and position, and no read model, so it survives rebuilds. An
        initial row has none: who loses the watch before the bookmark behind the last row asks for all
        of them again. `gone` says what is told of those that have no row any more. All that give the
        same `whose` see the same rows.
        Another epoch is `Expired` (RESUME_TOKEN_EXPIRED). Rows are written with their facts, so a row
        is never older than the fact that touched it.
        """
        name = self._journal.name
        head = await self._journal.head()
        position = _position(name, token, head) if token else head.position
        if send_initial and not token:
            for uid, resource in await initial():
                yield Change(Kind.INITIAL, uid, resource, "")
            yield Change(Kind.BOOKMARK, "", None, encode(name, head.epoch, position))
        silent_since = self._clock.monotonic()
        with self._tail.following(project, head.epoch) as follower:
            while True:
                left = BOOKMARK_SECONDS - (self._clock.monotonic() - silent_since)
                # No page is kept while its rows are told: who takes them may be slow.
                news = _news(
                    await follower.next(position, max(0.05, left)), position, project, touched
                )
                if news.epoch != head.epoch:
                    raise _expired(name)
                last, position = news.last, news.position
                rows = await self._look_up(Asked(whose, position, tuple(last)), current)
                missing = tuple(uid for uid in last if uid not in rows)
                left_of: Mapping[str, Resource] = {}
                if gone is not None:
                    left_of = await self._look_up(Asked(f"gone {whose}", position, missing), gone)
                for uid, at in last.items():
                    kind = Kind.UPDATED if uid in rows else Kind.DELETED
                    found = rows.get(uid, left_of.get(uid))
                    yield Change(kind, uid, found, encode(name, head.epoch, at))
                if last:
                    silent_since = self._clock.monotonic()
                elif self._clock.monotonic() - silent_since >= BOOKMARK_SECONDS:
                    silent_since = self._clock.monotonic()
                    yield Change(Kind.BOOKMARK, "", None, encode(name, head.epoch, position))

    async def _look_up(self, asked: Asked, how: Rows[Resource]) -> Mapping[str, Resource]:
        """Read the present rows, or take what another watch of the same ones has read since then."""
        if not asked.uids:
            return {}
        while (reading := self._rows.get(asked)) is not None:
            await asyncio.wait((reading,))
            # Who reads may be cancelled, as its caller goes; not those beside it.
            if not reading.cancelled():
                return reading.result()
        reading = self._rows[asked] = asyncio.get_running_loop().create_future()
        try:
            reading.set_result(await how(asked.uids))
        except BaseException as error:
            if self._rows.get(asked) is reading:
                del self._rows[asked]
            if isinstance(error, Exception):
                # What cannot be read now is not asked for by each of them again.
                reading.set_exception(error)
                reading.exception()
            else:
                reading.cancel()
            raise
        while len(self._rows) > READINGS_KEPT:
            self._rows.popitem(last=False)
        return reading.result()


@dataclass(frozen=True, slots=True)
class News:
    """What a page says to a watch: uids with the place of their last fact, and how far it reaches."""

    last: dict[str, int]
    position: int
    epoch: int


def _news(
    page: Page, after: int, project: str | None, touched: Callable[[Recorded], str | None]
) -> News:
    last: dict[str, int] = {}
    for fact in page.records:
        if fact.position <= after or project not in (None, fact.project):
            continue
        about = touched(fact)
        if about is not None:
            last.pop(about, None)
            last[about] = fact.position
    return News(last, max(after, page.head), page.epoch)


def encode(journal: str, epoch: int, position: int) -> str:
    """Write a resume token."""
    body = json.dumps([journal, epoch, position], separators=(",", ":"))
    return base64.urlsafe_b64encode(body.encode()).decode()


def _position(journal: str, token: str, head: Head) -> int:
    try:
        name, epoch, position = json.loads(base64.urlsafe_b64decode(token.encode()))
    except (ValueError, TypeError, RecursionError) as error:
        raise _invalid(token, "is not a resume token") from error
    if name != journal or not isinstance(epoch, int) or not isinstance(position, int):
        raise _invalid(token, f"is not one of {journal}")
    if epoch != head.epoch:
        raise _expired(journal)
    if not 0 <= position <= head.position:
        raise _invalid(
            token, f"names position {position} of {journal}, which ends at {head.position}"
        )
    return position


def _invalid(token: str, why: str) -> Invalid:
    return Invalid(
        "RESUME_TOKEN_INVALID",
        f"resume_token {why}.",
        violations=(Violation("resume_token", why),),
        next_step="Send a resume_token that this call gave, or none with send_initial.",
        field="resume_token",
        value=token,
    )


def _expired(journal: str) -> Expired:
    return Expired(
        "RESUME_TOKEN_EXPIRED",
        f"{journal} was restored since this token was given, so it names no place any more.",
        next_step="Begin again without a resume_token and with send_initial.",
        journal=journal,
    )
