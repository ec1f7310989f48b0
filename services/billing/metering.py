"""
The meter: from what executors say happened to time that is paid for; pure, the reference of the fold in SQL.

Each fact fills a slot of its own, and every slot keeps the fact's position, so folding comes to the
same in any order, however often each is told, and a history can be looked at as of a position.
`segments` reads a history's timeline: it is half-open throughout, and within one segment everything
that money depends on is constant.

- A run lasts from its start to its end, each as it was corrected last; an end before the start is the
  start. Runs are in the order of their starts, and none lasts longer than to the start of the next.
- Within a run: RUNNING; DRAINING from when it was told to end; UNREACHABLE within a gap, which wins.
  A gap ends when it was found, or where another run starts, whichever is first: a start proves life too.
- HELD from being scheduled to the first start, BACKOFF from an end to the next start; neither lasts
  beyond the release. A run that never was said to start is none; missed runs are only noted.
- Labels and resources are those of the change with the greatest number that was made by then.
- What is not over lasts for ever; the cap, and the period that is asked for, clip it.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Final, NamedTuple, Protocol, TypeAlias, TypeVar, assert_never

from google.protobuf.timestamp_pb2 import Timestamp

from fermion.api.billing import v1 as billing
from fermion.api.workload import v1 as api
from services.billing.book import Book, Rule, State, in_force

HOUR_MS: Final = 3_600_000
# The end of what is not over.
FOREVER_MS: Final = 2**63 - 1
# Where no run is open.
NO_RUN: Final = -1

Labels: TypeAlias = tuple[tuple[str, str], ...]


class Placed(Protocol):
    """What one fact fills, with the position of that fact."""

    @property
    def position(self) -> int:
        """Where the fact stands."""
        ...


Slot = TypeVar("Slot", bound=Placed)
Item = TypeVar("Item")
Key = TypeVar("Key", int, tuple[bool, int])

ReplicaFact: TypeAlias = (
    api.ReplicaScheduled
    | api.ReplicaStarted
    | api.ReplicaEnded
    | api.ReplicaDraining
    | api.ReplicaLost
    | api.ReplicaFound
    | api.ReplicaRunMissed
    | api.ReplicaRunCorrected
    | api.ReplicaResized
    | api.ReplicaRelabelled
    | api.ReplicaReleased
)
VolumeFact: TypeAlias = api.VolumeBound | api.VolumeDeleted


class Why(enum.StrEnum):
    """Why time costs, or costs nothing: codes of the API, with their sentences in proto/reasons.md."""

    PLATFORM_WORK = "PLATFORM_WORK"
    NOT_BILLED = "NOT_BILLED"
    FREE_AT_FIRST = "FREE_AT_FIRST"
    DRAINING_FREE = "DRAINING_FREE"
    RUNNING = "RUNNING"
    DRAINING = "DRAINING"
    HELD_NOT_STARTED = "HELD_NOT_STARTED"
    BACKOFF = "BACKOFF"
    UNREACHABLE = "UNREACHABLE"
    STORAGE = "STORAGE"


# What tells of time in a state, unless something tells more.
WHYS: Final[Mapping[State, Why]] = {
    billing.BILLABLE_STATE_RUNNING: Why.RUNNING,
    billing.BILLABLE_STATE_DRAINING_BY_USER: Why.DRAINING,
    billing.BILLABLE_STATE_DRAINING_BY_PLATFORM: Why.DRAINING,
    billing.BILLABLE_STATE_HELD: Why.HELD_NOT_STARTED,
    billing.BILLABLE_STATE_BACKOFF: Why.BACKOFF,
    billing.BILLABLE_STATE_UNREACHABLE: Why.UNREACHABLE,
    billing.BILLABLE_STATE_STORAGE: Why.STORAGE,
}
DRAININGS: Final = frozenset(
    {billing.BILLABLE_STATE_DRAINING_BY_USER, billing.BILLABLE_STATE_DRAINING_BY_PLATFORM}
)
# States that tell by themselves why they cost nothing.
IDLE: Final = frozenset(
    {
        billing.BILLABLE_STATE_HELD,
        billing.BILLABLE_STATE_BACKOFF,
        billing.BILLABLE_STATE_UNREACHABLE,
    }
)


# What facts fill is made anew by each of them: as frozen dataclasses it would take several times as long.


class Moment(NamedTuple):
    """When something happened, and the fact that says so."""

    at_ms: int
    position: int
    evidence: api.EvidenceClass.ValueType
    # Short name of the fact's type.
    type: str


class Sku(NamedTuple):
    """What was allocated; storage only of a volume, all else only of a replica."""

    gpu_type: str = ""
    gpu_milli: int = 0
    cpu_milli: int = 0
    memory_bytes: int = 0
    storage_bytes: int = 0


class Subject(NamedTuple):
    """Whose time it is, as the first fact that tells has it."""

    position: int
    project: str
    owner: str
    owner_uid: str
    kind: api.Kind.ValueType
    workload: str
    attempt: int
    user: str
    labels: Labels
    purchase: api.Purchase.ValueType
    sku: Sku


class Run(NamedTuple):
    """One life of a replica's main, as it was said first."""

    run: int
    start: Moment | None = None
    end: Moment | None = None


class Gap(NamedTuple):
    """A time in which nobody knew whether it lived."""

    n: int
    lost: Moment | None = None
    found: Moment | None = None


class Change(NamedTuple):
    """From then on it has these labels, or these resources; the other one is None."""

    n: int
    moment: Moment
    labels: Labels | None = None
    sku: Sku | None = None

    @property
    def position(self) -> int:
        """Where the fact stands."""
        return self.moment.position


class Correction(NamedTuple):
    """What was said of a run was wrong; None stays as it was."""

    n: int
    run: int
    start_ms: int | None
    end_ms: int | None
    moment: Moment

    @property
    def position(self) -> int:
        """Where the fact stands."""
        return self.moment.position


class Missed(NamedTuple):
    """Runs that came and went unseen within a window; they cost nothing."""

    from_run: int
    to_run: int
    start_ms: int
    end_ms: int
    moment: Moment

    @property
    def position(self) -> int:
        """Where the fact stands."""
        return self.moment.position


class Drain(NamedTuple):
    """It was told to end, and why."""

    moment: Moment
    cause: api.Cause.ValueType

    @property
    def position(self) -> int:
        """Where the fact stands."""
        return self.moment.position


class Replica(NamedTuple):
    """All that was said of one replica, each in its slot."""

    uid: str
    cluster: str
    subject: Subject | None = None
    scheduled: Moment | None = None
    drain: Drain | None = None
    released: Moment | None = None
    runs: tuple[Run, ...] = ()
    gaps: tuple[Gap, ...] = ()
    changes: tuple[Change, ...] = ()
    corrections: tuple[Correction, ...] = ()
    missed: tuple[Missed, ...] = ()


class Volume(NamedTuple):
    """All that was said of one volume."""

    uid: str
    cluster: str
    subject: Subject | None = None
    bound: Moment | None = None
    deleted: Moment | None = None


History: TypeAlias = Replica | Volume


class Said(NamedTuple):
    """A fact where it stands: in the journal of a cluster's executor, at a position."""

    message: ReplicaFact | VolumeFact
    cluster: str
    position: int


@dataclass(frozen=True, slots=True)
class Segment:
    """A half-open piece of a timeline in which nothing changes; only a run of no length has none."""

    uid: str
    # NO_RUN where none is open.
    run: int
    state: State
    billed: bool
    start_ms: int
    end_ms: int
    # Number of the price book that rules it.
    book: int
    sku: Sku
    labels: Labels
    # From when on the free part of its state is counted.
    begin_of_state_ms: int
    why: Why
    # Facts that say when its state began and ended, and what it was by then; oldest first.
    moments: tuple[Moment, ...]


def fold(facts: Iterable[Said]) -> dict[str, History]:
    """Take facts in, of any replicas and volumes and in any order; histories by uid."""
    found: dict[str, History] = {}
    for said in facts:
        uid = said.message.uid
        found[uid] = evolve(found.get(uid), said)
    return found


def evolve(history: History | None, said: Said) -> History:
    """Take one fact in; None is what nothing was said of yet."""
    fact = said.message
    if isinstance(fact, api.VolumeBound | api.VolumeDeleted):
        volume = history or Volume(fact.uid, said.cluster)
        assert isinstance(volume, Volume), f"{fact.uid} is no volume"
        return _volume(volume, fact, said.position)
    replica = history or Replica(fact.uid, said.cluster)
    assert isinstance(replica, Replica), f"{fact.uid} is no replica"
    return _replica(replica, fact, said.position)


def _replica(replica: Replica, fact: ReplicaFact, position: int) -> Replica:
    at = _moment(fact, position)
    match fact:
        case api.ReplicaScheduled():
            return replica._replace(
                subject=_first(replica.subject, _subject(fact.subject, position)),
                scheduled=_first(replica.scheduled, at),
            )
        case api.ReplicaStarted():
            return replica._replace(
                subject=_first(replica.subject, _subject(fact.subject, position)),
                runs=_with_run(replica.runs, Run(fact.run, start=at)),
            )
        case api.ReplicaEnded():
            return replica._replace(runs=_with_run(replica.runs, Run(fact.run, end=at)))
        case api.ReplicaDraining():
            return replica._replace(drain=_first(replica.drain, Drain(at, fact.cause)))
        case api.ReplicaLost():
            return replica._replace(gaps=_with_gap(replica.gaps, Gap(fact.n, lost=at)))
        case api.ReplicaFound():
            return replica._replace(gaps=_with_gap(replica.gaps, Gap(fact.n, found=at)))
        case api.ReplicaRunMissed():
            missed = Missed(
                fact.from_run,
                fact.to_run,
                milliseconds(fact.window_start_time),
                milliseconds(fact.window_end_time),
                at,
            )
            return replica._replace(
                missed=_with(replica.missed, missed, lambda one: one.from_run, _first)
            )
        case api.ReplicaRunCorrected():
            correction = Correction(
                fact.n,
                fact.run,
                milliseconds(fact.start_time) if fact.HasField("start_time") else None,
                milliseconds(fact.end_time) if fact.HasField("end_time") else None,
                at,
            )
            return replica._replace(
                corrections=_with(replica.corrections, correction, lambda one: one.n, _first),
            )
        case api.ReplicaResized():
            return replica._replace(
                changes=_with_change(replica.changes, Change(fact.n, at, sku=_sku(fact.sku))),
            )
        case api.ReplicaRelabelled():
            labels = _labels(fact.labels)
            return replica._replace(
                changes=_with_change(replica.changes, Change(fact.n, at, labels=labels))
            )
        case api.ReplicaReleased():
            return replica._replace(released=_first(replica.released, at))
        case _:
            assert_never(fact)


def _volume(volume: Volume, fact: VolumeFact, position: int) -> Volume:
    at = _moment(fact, position)
    match fact:
        case api.VolumeBound():
            subject = _subject(fact.subject, position)
            storage = Sku(storage_bytes=fact.subject.sku.storage_bytes)
            return volume._replace(
                subject=_first(volume.subject, subject._replace(sku=storage)),
                bound=_first(volume.bound, at),
            )
        case api.VolumeDeleted():
            return volume._replace(deleted=_first(volume.deleted, at))
        case _:
            assert_never(fact)


def asof(history: History, position: int) -> History:
    """What was known when the journal had come to a position."""

    def known(slot: Slot | None) -> Slot | None:
        return None if slot is None or slot.position > position else slot

    def all_known(slots: Iterable[Slot]) -> tuple[Slot, ...]:
        return tuple(slot for slot in slots if slot.position <= position)

    if isinstance(history, Volume):
        return history._replace(
            subject=known(history.subject),
            bound=known(history.bound),
            deleted=known(history.deleted),
        )
    runs = (Run(run.run, known(run.start), known(run.end)) for run in history.runs)
    gaps = (Gap(gap.n, known(gap.lost), known(gap.found)) for gap in history.gaps)
    return history._replace(
        subject=known(history.subject),
        scheduled=known(history.scheduled),
        drain=known(history.drain),
        released=known(history.released),
        runs=tuple(run for run in runs if run.start or run.end),
        gaps=tuple(gap for gap in gaps if gap.lost or gap.found),
        changes=all_known(history.changes),
        corrections=all_known(history.corrections),
        missed=all_known(history.missed),
    )


def segments(
    history: History, books: Sequence[Book], cap_ms: int, start_ms: int, end_ms: int
) -> tuple[Segment, ...]:
    """
    The timeline of a history up to a cap and within a period, in the order of time.

    There has to be a price book. What belongs to nobody yet, as no fact has told whose it is, has no
    segments.
    """
    if history.subject is None:
        return ()
    whole = _of_volume(history) if isinstance(history, Volume) else _of_replica(history)
    end_ms = min(end_ms, cap_ms)
    return tuple(
        segment
        for stretch in whole
        for piece in _clipped(stretch, start_ms, end_ms)
        for segment in _cut(history, history.subject, piece, books)
    )


@dataclass(frozen=True, slots=True)
class _Stretch:
    """A time in one state; whose doing a draining is, its price book has to say."""

    run: int
    state: State
    start_ms: int
    end_ms: int
    begin_ms: int
    moments: tuple[Moment, ...]


@dataclass(frozen=True, slots=True)
class _Life:
    """A run as it counts: corrected, and not into the next one; with what says when it began and ended."""

    run: int
    start_ms: int
    end_ms: int
    began: tuple[Moment, ...]
    ended: tuple[Moment, ...]


@dataclass(frozen=True, slots=True)
class _Gap:
    """A gap as it counts: until it was found, or another run started."""

    start_ms: int
    end_ms: int
    moments: tuple[Moment, ...]


def _of_volume(volume: Volume) -> Iterator[_Stretch]:
    if volume.bound is None:
        return
    start, end = volume.bound.at_ms, _at(volume.deleted)
    if start < end:
        moments = _known(volume.bound, volume.deleted)
        yield _Stretch(NO_RUN, billing.BILLABLE_STATE_STORAGE, start, end, start, moments)


def _of_replica(replica: Replica) -> Iterator[_Stretch]:
    lives = _lives(replica)
    starts = [life.start_ms for life in lives]
    if replica.scheduled is not None:
        following = lives[0] if lives else None
        state = billing.BILLABLE_STATE_HELD
        began = (replica.scheduled,)
        yield from _idle(replica, state, replica.scheduled.at_ms, began, following)
    for place, life in enumerate(lives):
        following = lives[place + 1] if place + 1 < len(lives) else None
        state = billing.BILLABLE_STATE_BACKOFF
        yield from _of_life(replica, life, starts)
        yield from _idle(replica, state, life.end_ms, life.ended, following)


def _idle(
    replica: Replica, state: State, start: int, began: tuple[Moment, ...], following: _Life | None
) -> Iterator[_Stretch]:
    """From a moment to the next start, or the release, whichever is first."""
    end = _at(replica.released)
    ended = _known(replica.released)
    if following is not None and following.start_ms <= end:
        end, ended = following.start_ms, following.began
    if start < end:
        yield _Stretch(NO_RUN, state, start, end, start, began + ended)


def _of_life(replica: Replica, life: _Life, starts: Sequence[int]) -> Iterator[_Stretch]:
    """A run, cut where it is told to end, lost and found."""
    gaps = list(_gaps(replica, starts))
    told = None if replica.drain is None else replica.drain.moment
    drained = _at(told)
    inner = {drained, *(bound for gap in gaps for bound in (gap.start_ms, gap.end_ms))}
    bounds = [life.start_ms, *sorted(b for b in inner if life.start_ms < b < life.end_ms)]
    for start, end in zip(bounds, [*bounds[1:], life.end_ms], strict=True):
        state, begin = billing.BILLABLE_STATE_RUNNING, life.start_ms
        if drained <= start:
            state, begin = billing.BILLABLE_STATE_DRAINING_BY_USER, max(drained, life.start_ms)
        covering = [gap.start_ms for gap in gaps if gap.start_ms <= start < gap.end_ms]
        if covering:
            state, begin = billing.BILLABLE_STATE_UNREACHABLE, min(covering)
        touching = (gap for gap in gaps if gap.start_ms <= end and start <= gap.end_ms)
        moments = (
            *life.began,
            *(_known(told) if drained <= end else ()),
            *(moment for gap in touching for moment in gap.moments),
            *(life.ended if end == life.end_ms else ()),
        )
        yield _Stretch(life.run, state, start, end, begin, moments)


def _gaps(replica: Replica, starts: Sequence[int]) -> Iterator[_Gap]:
    for gap in replica.gaps:
        if gap.lost is not None:
            again = min((start for start in starts if start > gap.lost.at_ms), default=FOREVER_MS)
            end = min(again, _at(gap.found))
            yield _Gap(gap.lost.at_ms, end, _known(gap.lost, gap.found))


def _lives(replica: Replica) -> list[_Life]:
    """Runs as they count, in the order of their starts."""
    lives = []
    for run in replica.runs:
        if run.start is None:
            continue
        of_run = [one for one in replica.corrections if one.run == run.run]
        start = max((c for c in of_run if c.start_ms is not None), key=_n, default=None)
        end = max((c for c in of_run if c.end_ms is not None), key=_n, default=None)
        start_ms, end_ms = run.start.at_ms, _at(run.end)
        if start is not None and start.start_ms is not None:
            start_ms = start.start_ms
        if end is not None and end.end_ms is not None:
            end_ms = end.end_ms
        began = _known(run.start, _told(start))
        ended = _known(run.end, _told(end))
        lives.append(_Life(run.run, start_ms, max(start_ms, end_ms), began, ended))
    lives.sort(key=lambda life: (life.start_ms, life.run))
    for place, (life, following) in enumerate(pairwise(lives)):
        if life.end_ms > following.start_ms:
            lives[place] = replace(life, end_ms=following.start_ms, ended=following.began)
    return lives


def _clipped(stretch: _Stretch, start_ms: int, end_ms: int) -> Iterator[_Stretch]:
    """What of a stretch lies in a period; one of no length does where its moment does."""
    start, end = max(stretch.start_ms, start_ms), min(stretch.end_ms, end_ms)
    empty = stretch.start_ms == stretch.end_ms and start_ms <= stretch.start_ms < end_ms
    if start < end or empty:
        yield replace(stretch, start_ms=start, end_ms=end)


def _cut(
    history: History, subject: Subject, stretch: _Stretch, books: Sequence[Book]
) -> Iterator[Segment]:
    """Cut where prices, hours, labels or resources change, and where a state is not free any more."""
    inner = {
        *range((stretch.start_ms // HOUR_MS + 1) * HOUR_MS, stretch.end_ms, HOUR_MS),
        *(book.effective_ms for book in books),
        *(change.moment.at_ms for change in _changes(history)),
    }
    bounds = [
        stretch.start_ms,
        *sorted(bound for bound in inner if stretch.start_ms < bound < stretch.end_ms),
    ]
    for start, end in zip(bounds, [*bounds[1:], stretch.end_ms], strict=True):
        book = in_force(books, start)
        state = _state(history, stretch, book)
        free_until = stretch.begin_ms + book.rule(state).free_ms
        middle = free_until if start < free_until < end and book.rule(state).billed else end
        yield _segment(history, subject, stretch, book, start, middle)
        if middle < end:
            yield _segment(history, subject, stretch, book, middle, end)


def _segment(
    history: History,
    subject: Subject,
    stretch: _Stretch,
    book: Book,
    start_ms: int,
    end_ms: int,
) -> Segment:
    state = _state(history, stretch, book)
    rule = book.rule(state)
    free = start_ms < stretch.begin_ms + rule.free_ms
    of_platform = subject.purchase == api.PURCHASE_PLATFORM
    made = [one for one in _changes(history) if one.moment.at_ms <= start_ms]
    relabelled = max((one for one in made if one.labels is not None), key=_n, default=None)
    resized = max((one for one in made if one.sku is not None), key=_n, default=None)
    moments = {
        *stretch.moments,
        *_known(_told(relabelled), _told(resized)),
    }
    return Segment(
        uid=history.uid,
        run=stretch.run,
        state=state,
        billed=rule.billed and not free and not of_platform,
        start_ms=start_ms,
        end_ms=end_ms,
        book=book.number,
        sku=subject.sku if resized is None or resized.sku is None else resized.sku,
        labels=(
            subject.labels if relabelled is None or relabelled.labels is None else relabelled.labels
        ),
        begin_of_state_ms=stretch.begin_ms,
        why=Why.PLATFORM_WORK if of_platform else _why(state, rule, free),
        moments=tuple(sorted(moments, key=_position)),
    )


def _state(history: History, stretch: _Stretch, book: Book) -> State:
    """The state, with whose doing a draining is by a price book."""
    drain = None if isinstance(history, Volume) else history.drain
    by_user = stretch.state == billing.BILLABLE_STATE_DRAINING_BY_USER
    if by_user and drain is not None and drain.cause in book.platform_causes:
        return billing.BILLABLE_STATE_DRAINING_BY_PLATFORM
    return stretch.state


def _why(state: State, rule: Rule, free: bool) -> Why:
    if rule.billed and free:
        return Why.DRAINING_FREE if state in DRAININGS else Why.FREE_AT_FIRST
    if not rule.billed and state not in IDLE:
        return Why.NOT_BILLED
    return WHYS[state]


def _changes(history: History) -> tuple[Change, ...]:
    return () if isinstance(history, Volume) else history.changes


def _first(slot: Slot | None, filled: Slot) -> Slot:
    """What a slot holds: of two facts that could fill it, the one that was said first."""
    return filled if slot is None or filled.position < slot.position else slot


def _either(slot: Slot | None, filled: Slot | None) -> Slot | None:
    return slot if filled is None else _first(slot, filled)


def _with(
    slots: tuple[Item, ...],
    filled: Item,
    key: Callable[[Item], Key],
    meet: Callable[[Item, Item], Item],
) -> tuple[Item, ...]:
    """Slots in the order of their keys, with one more; of a key that is there already, both meet."""
    by_key = {key(slot): slot for slot in slots}
    there = by_key.get(key(filled))
    by_key[key(filled)] = filled if there is None else meet(there, filled)
    return tuple(by_key[one] for one in sorted(by_key))


def _with_run(runs: tuple[Run, ...], filled: Run) -> tuple[Run, ...]:
    def meet(there: Run, more: Run) -> Run:
        return Run(more.run, _either(there.start, more.start), _either(there.end, more.end))

    return _with(runs, filled, lambda run: run.run, meet)


def _with_gap(gaps: tuple[Gap, ...], filled: Gap) -> tuple[Gap, ...]:
    def meet(there: Gap, more: Gap) -> Gap:
        return Gap(more.n, _either(there.lost, more.lost), _either(there.found, more.found))

    return _with(gaps, filled, lambda gap: gap.n, meet)


def _with_change(changes: tuple[Change, ...], filled: Change) -> tuple[Change, ...]:
    return _with(changes, filled, lambda one: (one.sku is not None, one.n), _first)


def milliseconds(time: Timestamp) -> int:
    """Whole milliseconds since 1970; the library's own way takes several times as long."""
    return time.seconds * 1000 + time.nanos // 1_000_000


def _moment(fact: ReplicaFact | VolumeFact, position: int) -> Moment:
    return Moment(
        milliseconds(fact.witness.occurred_time),
        position,
        fact.witness.evidence,
        fact.DESCRIPTOR.name,
    )


def _subject(said: api.Subject, position: int) -> Subject:
    return Subject(
        position=position,
        project=said.project,
        owner=said.owner,
        owner_uid=said.owner_uid,
        kind=said.kind,
        workload=said.workload,
        attempt=said.attempt,
        user=said.user,
        labels=_labels(said.labels),
        purchase=said.purchase,
        sku=_sku(said.sku),
    )


def _sku(said: api.Sku) -> Sku:
    """Resources of a replica; what storage it uses is paid for with the volume."""
    return Sku(said.gpu_type, said.gpu_milli, said.cpu_milli, said.memory_bytes)


def _labels(said: Mapping[str, str]) -> Labels:
    return tuple(sorted(said.items()))


def _known(*moments: Moment | None) -> tuple[Moment, ...]:
    return tuple(moment for moment in moments if moment is not None)


def _at(moment: Moment | None) -> int:
    """When something happened; never, as long as nobody said so."""
    return FOREVER_MS if moment is None else moment.at_ms


def _told(by: Change | Correction | None) -> Moment | None:
    return None if by is None else by.moment


def _n(counted: Change | Correction) -> int:
    return counted.n


def _position(moment: Moment) -> int:
    return moment.position
