"""
From what a cluster tells of a replica to facts: the meter's only source, pure and in one file.

A cluster tells states, never edges: twice, late, or with something left out in between. `derive`
compares one such state with what was stated of the replica before, and says what is new. Whatever
is dropped, told again or told in another order, the facts come to the same, once each:

- each run has one start and one end. The first end that was stated stands; a better witness
  corrects it with a fact of its own;
- runs do not overlap, and no time is earlier than the one before it or later than it was seen; what
  would be is clamped, and its evidence says so;
- runs that came and went unseen are stated as missed, with the window that they lie in;
- what is gone without a word ended at its last proof of life;
- nothing is said of a replica that was released, but for corrections.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Final, TypeAlias, assert_never, cast

from google.protobuf.timestamp_pb2 import Timestamp

from chassis import envelope
from chassis.envelope import Recorded
from fermion.api.workload import v1 as api

# So far ahead of who looked a cluster's clock is believed.
SKEW_MAX: Final = timedelta(minutes=5)
# Exit of a run that ended without a word.
UNKNOWN_EXIT: Final = -1

ReplicaFact: TypeAlias = (
    api.ReplicaScheduled
    | api.ReplicaPending
    | api.ReplicaStarted
    | api.ReplicaReady
    | api.ReplicaUnready
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


@dataclass(frozen=True, slots=True)
class Instant:
    """A moment of the cluster's clock, floored to whole milliseconds once, and how well it is known."""

    at: datetime
    evidence: api.EvidenceClass.ValueType = api.EVIDENCE_CLASS_RECORDED


@dataclass(frozen=True, slots=True)
class Run:
    """One life of a replica's main; `exit` means nothing where a signal ended it."""

    ordinal: int
    start: Instant
    end: Instant | None = None
    exit: int = 0
    signal: int = 0
    # OOM_KILLED, LIVENESS_FAILED, START_FAILED, …; None where the code says all.
    reason: api.Reason | None = None
    # What the program wrote into its exit file; a reason, never evidence of time.
    exit_report: str = ""


@dataclass(frozen=True, slots=True)
class Gap:
    """A time within the open run of which the cluster cannot say that it was alive."""

    lost: Instant
    found: Instant | None = None


class Phase(enum.Enum):
    """Where a replica stands in its cluster."""

    PREPARING = "preparing"
    """Bound; main has never run: its image is made, other ranks are missing, …."""

    RUNNING = "running"
    BACKOFF = "backoff"
    """Main ended and will be run again."""

    ENDED = "ended"
    """No process of it is left, and none will come."""


@dataclass(frozen=True, slots=True)
class ReplicaObservation:
    """One replica as its cluster tells of it: a state and never an edge, so it may be told twice."""

    # `rep_` over uuid5(cluster uid | the cluster's own uid of the object | main).
    uid: str
    # `wkl_…`.
    workload: str
    role: str
    rank: int
    node: str
    scheduled: Instant
    phase: Phase
    # Those that the cluster still tells of, oldest first; ordinals grow, and may begin above 0.
    runs: tuple[Run, ...] = ()
    gaps: tuple[Gap, ...] = ()
    # Why it does not run (PREPARING, BACKOFF), or why it is not ready.
    reason: api.Reason | None = None
    # Whether its readiness check passes; None where it has none.
    ready: bool | None = None
    # The open run was proved alive then; None where no run is open.
    proof: datetime | None = None
    addresses: Mapping[str, str] = field(default_factory=dict)
    image: api.Image = field(default_factory=api.Image)
    # What was allocated, e.g. the model of the GPU.
    sku: api.Sku = field(default_factory=api.Sku)


@dataclass(frozen=True, slots=True)
class Replica:
    """What was stated of one replica so far; without a uid nothing was."""

    uid: str = ""
    subject: api.Subject = field(default_factory=api.Subject)
    node: str = ""
    scheduled: datetime | None = None
    # The last run that was stated; -1 for none.
    run: int = -1
    first_start: datetime | None = None
    start: datetime | None = None
    # Of the last run; None while it is open.
    end: datetime | None = None
    end_evidence: api.EvidenceClass.ValueType = api.EVIDENCE_CLASS_UNSPECIFIED
    exit: int = 0
    signal: int = 0
    reason: api.Reason | None = None
    image: api.Image = field(default_factory=api.Image)
    addresses: Mapping[str, str] = field(default_factory=dict)
    ready: bool = False
    # Why it does not run, as it was stated since its last start.
    pending: api.Reason | None = None
    cause: api.Cause.ValueType = api.CAUSE_UNSPECIFIED
    deadline: datetime | None = None
    # Whether nobody knows of its run.
    lost: bool = False
    released: bool = False
    # How often each was stated.
    pendings: int = 0
    readies: int = 0
    unreadies: int = 0
    losses: int = 0
    founds: int = 0
    corrections: int = 0
    resizes: int = 0
    relabels: int = 0

    @property
    def open(self) -> bool:
        """Whether a run of it has begun and is not known to have ended."""
        return self.run >= 0 and self.end is None

    @property
    def draining(self) -> bool:
        """Whether it was told to end."""
        return self.deadline is not None

    @property
    def scaled_in(self) -> bool:
        """Whether it is gone because fewer were wanted: its rank may be wanted again."""
        return self.released and self.cause == api.CAUSE_SCALE_IN

    @property
    def succeeded(self) -> bool:
        """Whether its last run ended with 0 and by no signal."""
        return self.end is not None and self.exit == 0 and self.signal == 0


def fold(records: Iterable[Recorded]) -> Replica:
    """Fold a `replica/` stream."""
    return envelope.fold(
        lambda replica, fact, _: evolve(replica, cast(ReplicaFact, fact)), Replica(), records
    )


def evolve(replica: Replica, fact: ReplicaFact) -> Replica:
    """Follow one fact; nothing is refused here."""
    match fact:
        case api.ReplicaScheduled():
            return replace(
                replica,
                uid=fact.uid,
                subject=fact.subject,
                node=fact.node,
                scheduled=_time(fact.witness.occurred_time),
            )
        case api.ReplicaPending():
            return replace(replica, pending=fact.reason, pendings=replica.pendings + 1)
        case api.ReplicaStarted():
            start = _time(fact.witness.occurred_time)
            return replace(
                replica,
                subject=fact.subject,
                run=fact.run,
                first_start=replica.first_start or start,
                start=start,
                end=None,
                end_evidence=api.EVIDENCE_CLASS_UNSPECIFIED,
                exit=0,
                signal=0,
                reason=None,
                image=fact.image,
                addresses=dict(fact.addresses),
                ready=False,
                pending=None,
                lost=False,
            )
        case api.ReplicaReady():
            return replace(replica, ready=True, readies=replica.readies + 1)
        case api.ReplicaUnready():
            return replace(replica, ready=False, unreadies=replica.unreadies + 1)
        case api.ReplicaEnded():
            return replace(
                replica,
                end=_time(fact.witness.occurred_time),
                end_evidence=fact.witness.evidence,
                exit=fact.exit,
                signal=fact.signal,
                reason=fact.reason if fact.HasField("reason") else None,
                ready=False,
                lost=False,
            )
        case api.ReplicaDraining():
            return replace(replica, cause=fact.cause, deadline=_time(fact.deadline_time))
        case api.ReplicaLost():
            return replace(replica, losses=max(replica.losses, fact.n), lost=True)
        case api.ReplicaFound():
            return replace(replica, founds=max(replica.founds, fact.n), lost=False)
        case api.ReplicaRunMissed():
            return replace(replica, run=max(replica.run, fact.to_run))
        case api.ReplicaRunCorrected():
            ended = fact.run == replica.run and fact.HasField("end_time")
            return replace(
                replica,
                corrections=replica.corrections + 1,
                end=_time(fact.end_time) if ended else replica.end,
                end_evidence=fact.witness.evidence if ended else replica.end_evidence,
            )
        case api.ReplicaResized():
            subject = _copy(replica.subject)
            subject.sku.CopyFrom(fact.sku)
            return replace(replica, subject=subject, resizes=replica.resizes + 1)
        case api.ReplicaRelabelled():
            subject = _copy(replica.subject)
            subject.labels.clear()
            subject.labels.update(fact.labels)
            return replace(replica, subject=subject, relabels=replica.relabels + 1)
        case api.ReplicaReleased():
            return replace(replica, released=True, lost=False)
        case _:
            assert_never(fact)


def derive(
    replica: Replica, seen: ReplicaObservation, subject: api.Subject, now: datetime
) -> list[ReplicaFact]:
    """
    Say what an observation tells that was not stated before.

    `subject` is whose time it is, `now` when the cluster was looked at. Told again: nothing.
    """
    say = _Saying(replica, seen.uid, subject, now)
    if replica.released:
        say.correct(seen)
        return say.facts
    if not replica.uid:
        say.scheduled(seen)
    if seen.ready is False and replica.ready and replica.open:
        # A run may end unready; what comes after it is of another one.
        say.unready(seen)
    say.correct(seen)
    for run in seen.runs:
        say.run(run, seen)
    say.gaps(seen)
    if seen.phase is Phase.RUNNING and seen.ready is not False and say.now.open:
        # What has no check is ready while it runs.
        say.ready()
    waits = Phase.PREPARING if say.now.run < 0 else Phase.BACKOFF
    if seen.phase is waits and not say.now.open:
        say.pending(seen.reason)
    if seen.phase is Phase.ENDED:
        say.vanished(seen.proof)
        say.released(seen.reason)
    return say.facts


def vanish(replica: Replica, proof: datetime | None, now: datetime) -> list[ReplicaFact]:
    """Say that a replica is not in its cluster any more; it ended at its last proof of life."""
    if not replica.uid or replica.released:
        return []
    say = _Saying(replica, replica.uid, replica.subject, now)
    say.vanished(proof)
    say.released(
        api.Reason(
            code="VANISHED", message="It is not in its cluster any more, and nobody said why."
        )
    )
    return say.facts


def drain(
    replica: Replica, cause: api.Cause.ValueType, deadline: datetime, now: datetime
) -> list[ReplicaFact]:
    """Say that a replica is told to end; the first cause and deadline stand."""
    if not replica.uid or replica.released or replica.draining:
        return []
    return [
        api.ReplicaDraining(
            uid=replica.uid,
            workload=replica.subject.workload,
            cause=cause,
            deadline_time=stamp(deadline),
            witness=witness(Instant(floor(now)), now),
            project=replica.subject.project,
        )
    ]


def relabel(replica: Replica, labels: Mapping[str, str], now: datetime) -> list[ReplicaFact]:
    """Say that a replica's cost belongs to other labels from now on."""
    if not replica.uid or replica.released or dict(replica.subject.labels) == dict(labels):
        return []
    return [
        api.ReplicaRelabelled(
            uid=replica.uid,
            workload=replica.subject.workload,
            n=replica.relabels + 1,
            labels=labels,
            witness=witness(Instant(floor(now)), now),
            project=replica.subject.project,
        )
    ]


class _Saying:
    """Facts about one replica as they are said one after the other, and where it stands then."""

    def __init__(self, replica: Replica, uid: str, subject: api.Subject, at: datetime) -> None:
        self.now = replica
        self.facts: list[ReplicaFact] = []
        self._uid = uid
        self._subject = subject
        self._at = at

    def _say(self, fact: ReplicaFact) -> None:
        self.facts.append(fact)
        self.now = evolve(self.now, fact)

    def scheduled(self, seen: ReplicaObservation) -> None:
        """It is bound to a node."""
        self._say(
            api.ReplicaScheduled(
                uid=self._uid,
                subject=self._subject,
                node=seen.node,
                witness=self._witness(seen.scheduled, None),
            )
        )

    def run(self, run: Run, seen: ReplicaObservation) -> None:
        """A run began, and maybe ended; one that was stated before only ends."""
        if run.ordinal < self.now.run or (run.ordinal == self.now.run and not self.now.open):
            return
        if run.ordinal > self.now.run:
            self._begin(run, seen)
        if run.end is not None:
            self._end(run.end, run.exit, run.signal, run.reason, run.exit_report)

    def _begin(self, run: Run, seen: ReplicaObservation) -> None:
        if self.now.open:
            # Its end was not told: the latest that can be is where the next one began.
            latest = min(run.start.at, seen.proof or run.start.at)
            self._end(Instant(latest, api.EVIDENCE_CLASS_VANISHED), UNKNOWN_EXIT, 0, None, "")
        if run.ordinal > self.now.run + 1:
            self._say(
                api.ReplicaRunMissed(
                    uid=self._uid,
                    workload=self._subject.workload,
                    from_run=self.now.run + 1,
                    to_run=run.ordinal - 1,
                    window_start_time=stamp(self._last()),
                    window_end_time=stamp(max(run.start.at, self._last())),
                    witness=witness(Instant(floor(self._at)), self._at),
                    project=self._subject.project,
                )
            )
        self._say(
            api.ReplicaStarted(
                uid=self._uid,
                subject=self._subject,
                run=run.ordinal,
                image=seen.image,
                addresses=seen.addresses,
                witness=self._witness(run.start, self._last()),
            )
        )

    def _end(
        self, at: Instant, exit: int, signal: int, reason: api.Reason | None, report: str
    ) -> None:
        self._say(
            api.ReplicaEnded(
                uid=self._uid,
                workload=self._subject.workload,
                run=self.now.run,
                exit=exit,
                signal=signal,
                reason=reason,
                exit_report=report,
                witness=self._witness(at, self.now.start),
                project=self._subject.project,
            )
        )

    def correct(self, seen: ReplicaObservation) -> None:
        """A better witness of the end that was stated last dates it otherwise."""
        if self.now.end is None:
            return
        for run in seen.runs:
            end = run.end
            if run.ordinal != self.now.run or end is None:
                continue
            told = self._witness(end, self.now.start)
            if told.evidence < self.now.end_evidence and _time(told.occurred_time) != self.now.end:
                self._say(
                    api.ReplicaRunCorrected(
                        uid=self._uid,
                        workload=self._subject.workload,
                        run=run.ordinal,
                        n=self.now.corrections + 1,
                        end_time=told.occurred_time,
                        reason=api.Reason(code="BETTER_WITNESS"),
                        witness=told,
                        project=self._subject.project,
                    )
                )

    def gaps(self, seen: ReplicaObservation) -> None:
        """It was lost, or found again."""
        for n, gap in enumerate(seen.gaps, 1):
            if n > self.now.losses:
                self._say(
                    api.ReplicaLost(
                        uid=self._uid,
                        workload=self._subject.workload,
                        n=n,
                        witness=self._witness(gap.lost, None),
                        project=self._subject.project,
                    )
                )
            if gap.found is not None and n > self.now.founds:
                self._say(
                    api.ReplicaFound(
                        uid=self._uid,
                        workload=self._subject.workload,
                        n=n,
                        witness=self._witness(gap.found, gap.lost.at),
                        project=self._subject.project,
                    )
                )

    def ready(self) -> None:
        """Its readiness check passes."""
        if self.now.ready:
            return
        self._say(
            api.ReplicaReady(
                uid=self._uid,
                workload=self._subject.workload,
                n=self.now.readies + 1,
                witness=witness(Instant(floor(self._at)), self._at),
                project=self._subject.project,
            )
        )

    def unready(self, seen: ReplicaObservation) -> None:
        """Its readiness check does not pass any more."""
        self._say(
            api.ReplicaUnready(
                uid=self._uid,
                workload=self._subject.workload,
                n=self.now.unreadies + 1,
                reason=seen.reason,
                witness=witness(Instant(floor(self._at)), self._at),
                project=self._subject.project,
            )
        )

    def pending(self, reason: api.Reason | None) -> None:
        """It does not run, and why; said again only where the kind of reason is another one."""
        if reason is None or (
            self.now.pending is not None and self.now.pending.code == reason.code
        ):
            return
        self._say(
            api.ReplicaPending(
                uid=self._uid,
                workload=self._subject.workload,
                n=self.now.pendings + 1,
                reason=reason,
                witness=witness(Instant(floor(self._at)), self._at),
                project=self._subject.project,
            )
        )

    def vanished(self, proof: datetime | None) -> None:
        """An open run whose end nobody told ended at its last proof of life."""
        if self.now.open:
            assert self.now.start is not None
            at = Instant(proof or self.now.start, api.EVIDENCE_CLASS_VANISHED)
            self._end(at, UNKNOWN_EXIT, 0, api.Reason(code="VANISHED"), "")

    def released(self, reason: api.Reason | None) -> None:
        """It is gone for good; why, where it never ran or nobody knows."""
        told = reason if self.now.run < 0 or (reason and reason.code == "VANISHED") else None
        self._say(
            api.ReplicaReleased(
                uid=self._uid,
                workload=self._subject.workload,
                reason=told,
                witness=witness(Instant(self._last()), self._at),
                project=self._subject.project,
            )
        )

    def _last(self) -> datetime:
        """The latest time that was stated."""
        found = self.now.end or self.now.start or self.now.scheduled
        assert found is not None, "nothing is said of a replica before it is scheduled"
        return found

    def _witness(self, told: Instant, least: datetime | None) -> api.Witness:
        """Between what was before and what may be now; what is not is clamped, and says so."""
        at, evidence = told.at, told.evidence
        latest = floor(self._at + SKEW_MAX)
        if at > latest:
            at, evidence = floor(self._at), _weaker(evidence, api.EVIDENCE_CLASS_CLAMPED)
        if least is not None and at < least:
            at, evidence = least, _weaker(evidence, api.EVIDENCE_CLASS_CLAMPED)
        return witness(Instant(at, evidence), self._at)


def witness(told: Instant, now: datetime) -> api.Witness:
    """Write when something happened, and when it was seen."""
    return api.Witness(
        occurred_time=stamp(told.at), observed_time=stamp(floor(now)), evidence=told.evidence
    )


def stamp(at: datetime) -> Timestamp:
    """Write a moment."""
    found = Timestamp()
    found.FromDatetime(at)
    return found


def floor(at: datetime) -> datetime:
    """Whole milliseconds."""
    return at.replace(microsecond=at.microsecond // 1000 * 1000)


def _time(at: Timestamp) -> datetime:
    return at.ToDatetime(tzinfo=UTC)


def _weaker(
    one: api.EvidenceClass.ValueType, other: api.EvidenceClass.ValueType
) -> api.EvidenceClass.ValueType:
    return max(one, other)


def _copy(subject: api.Subject) -> api.Subject:
    found = api.Subject()
    found.CopyFrom(subject)
    return found
