"""The write side's one walk: load, fold, decide, append; repeated when somebody was faster."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from google.protobuf.message import Message

from chassis.envelope import Meta, Recorded
from chassis.journal import (
    Advance,
    Command,
    Journal,
    Outcome,
    Place,
    Remembered,
    Request,
    Stale,
    Stated,
    Unpark,
)
from chassis.refusals import Conflict, Invalid, Refused, Violation

# A command that lost this many races in a row is told to its caller.
ATTEMPTS_MAX = 5

State = TypeVar("State")


@dataclass(frozen=True, slots=True)
class Decided(Generic[State]):
    """The state after the decision, and the position that holds it."""

    state: State
    position: int
    # Whether an earlier call with the same request_id had done it.
    replayed: bool = False


async def transact(
    journal: Journal,
    streams: str | Sequence[str],
    fold: Callable[..., State],
    decide: Callable[[State], Sequence[Message]],
    *,
    meta: Meta,
    request: Request | None = None,
    advance: Advance | None = None,
    unpark: Unpark | None = None,
    writer: tuple[str, int] | None = None,
) -> Decided[State]:
    """
    Decide on the streams' present state, append the outcome, return the new state.

    `fold` gets the records of each stream as one positional argument; the first stream is the one
    that a remembered request is about. A lost race reads and decides again, at most ATTEMPTS_MAX
    times in all; after that the caller gets `Conflict`. A request answered before is answered with
    the state as it was then; the same id with another body is `Invalid` (REQUEST_ID_REUSED).
    """
    names = (streams,) if isinstance(streams, str) else tuple(streams)
    for _ in range(ATTEMPTS_MAX):
        loaded = await journal.load(names)
        state = fold(*(loaded[name] for name in names))
        try:
            facts = tuple(decide(state))
        except Refused:
            # A retry of what succeeded may find the world changed by its own success.
            answered = None if request is None else await journal.remembered(request)
            if request is None or answered is None:
                raise
            return await _replay(journal, names, fold, request, answered)
        if not facts and request is None and advance is None and unpark is None:
            return Decided(state, (await journal.head()).position)
        command = Command(
            facts=facts,
            meta=meta,
            expected={name: _version(loaded[name]) for name in names},
            request=request,
            subject=names[0],
            advance=advance,
            unpark=unpark,
            writer=writer,
        )
        try:
            committed = await journal.append(command)
        except (Stale, Stated):
            continue
        except Remembered as answered:
            if request is None:
                raise
            return await _replay(journal, names, fold, request, answered)
        grown = (
            (*loaded[name], *(fact for fact in committed.records if fact.stream == name))
            for name in names
        )
        return Decided(fold(*grown), committed.position)
    raise Conflict(
        "TOO_MANY_RACES",
        f"{names[0]} changed {ATTEMPTS_MAX} times while this was being decided.",
        next_step="Send the same request again.",
        stream=names[0],
    )


async def rehearse(
    journal: Journal,
    streams: str | Sequence[str],
    fold: Callable[..., State],
    decide: Callable[[State], Sequence[Message]],
    *,
    place: Callable[[Message], Place],
    preview: Callable[[State, Sequence[Message]], State],
) -> State:
    """
    Decide as `transact` would, for `validate_only`, and change nothing.

    Raises what the decision or a name that is taken would raise; takes no head, claim or request_id.
    `preview` folds the facts that would be said into the state that would follow.
    """
    names = (streams,) if isinstance(streams, str) else tuple(streams)
    loaded = await journal.load(names)
    state = fold(*(loaded[name] for name in names))
    facts = tuple(decide(state))
    for fact in facts:
        for claim in place(fact).claims:
            holder = await journal.holder(claim.scope, claim.name)
            if holder not in (None, claim.uid):
                raise claim.taken
    return preview(state, facts)


def must_be_the_same(request: Request, answered: Remembered) -> None:
    """Raise `Invalid` (REQUEST_ID_REUSED) where a remembered request was another one."""
    if answered.digest != request.digest:
        raise Invalid(
            "REQUEST_ID_REUSED",
            f"request_id {request.request_id} was used before for another {request.method}.",
            violations=(
                Violation("request_id", "was used before with another body", "request_id.unique"),
            ),
            next_step="Send a new request_id, or the first request unchanged.",
            request_id=request.request_id,
        )


def _version(records: Sequence[Recorded]) -> int:
    return records[-1].version if records else 0


async def _replay(
    journal: Journal,
    names: tuple[str, ...],
    fold: Callable[..., State],
    request: Request,
    answered: Remembered,
) -> Decided[State]:
    must_be_the_same(request, answered)
    outcome: Outcome = answered.outcome
    then = (outcome.stream, *names[1:])
    loaded = await journal.load(then)
    subject = tuple(fact for fact in loaded[outcome.stream] if fact.version <= outcome.version)
    state = fold(subject, *(loaded[name] for name in names[1:]))
    return Decided(state, (await journal.head()).position, replayed=True)
