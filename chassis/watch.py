"""Watch: each resource that changes is sent once a change, from a place that any process can resume."""

from __future__ import annotations

import base64
import enum
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from chassis.clock import Clock
from chassis.envelope import Recorded
from chassis.journal import Head, Journal
from chassis.refusals import Expired, Invalid, Violation

PAGE_MAX: Final = 500
BOOKMARK_SECONDS: Final = 15.0

Resource = TypeVar("Resource")


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


async def watch(
    journal: Journal,
    *,
    token: str,
    send_initial: bool,
    project: str | None,
    touched: Callable[[Recorded], str | None],
    current: Callable[[Sequence[str]], Awaitable[Mapping[str, Resource]]],
    initial: Callable[[], Awaitable[Sequence[tuple[str, Resource]]]],
    clock: Clock,
) -> AsyncIterator[Change[Resource]]:
    """
    Follow a journal for ever, mapping facts to the uids they touch and uids to their present rows.

    The token names journal, epoch and position, and no read model, so it survives rebuilds. An
    initial row has none: who loses the watch before the bookmark behind the last row asks for all
    of them again.
    Another epoch is `Expired` (RESUME_TOKEN_EXPIRED). Rows are written with their facts, so a row
    is never older than the fact that touched it.
    """
    head = await journal.head()
    position = _position(journal.name, token, head) if token else head.position
    if send_initial and not token:
        for uid, resource in await initial():
            yield Change(Kind.INITIAL, uid, resource, "")
        yield Change(Kind.BOOKMARK, "", None, encode(journal.name, head.epoch, position))
    silent_since = clock.monotonic()
    while True:
        page = await journal.read(position, PAGE_MAX)
        if page.epoch != head.epoch:
            raise _expired(journal.name)
        last: dict[str, int] = {}
        for fact in page.records:
            position = fact.position
            if project is not None and fact.project != project:
                continue
            about = touched(fact)
            if about is not None:
                last.pop(about, None)
                last[about] = fact.position
        rows = await current(list(last)) if last else {}
        for uid, at in last.items():
            found = rows.get(uid)
            kind = Kind.DELETED if found is None else Kind.UPDATED
            yield Change(kind, uid, found, encode(journal.name, head.epoch, at))
        if last:
            silent_since = clock.monotonic()
        elif clock.monotonic() - silent_since >= BOOKMARK_SECONDS:
            silent_since = clock.monotonic()
            yield Change(Kind.BOOKMARK, "", None, encode(journal.name, head.epoch, position))
        if len(page.records) < PAGE_MAX:
            left = BOOKMARK_SECONDS - (clock.monotonic() - silent_since)
            await journal.grown(position, max(0.05, left))


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
