"""What executors say, folded into one slot a fact; and which executors there are."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from google.protobuf.message import Message

from chassis.envelope import Recorded
from chassis.journal import Write
from fermion.api.projects import v1 as projects
from fermion.api.workload import v1 as workload
from services.billing.metering import milliseconds

METERED: Final = "billing/executor"
# A moment that a fact tells: milliseconds since 1970, the fact's position, its class of evidence.
Seen = tuple[int, int, int]
NOT_SEEN: Final = (None,) * 3
NO_SUBJECT: Final = (None,) * 17
NOT_BOUND: Final = (None,) * 10
FORGET: Final = (
    *("forget_runs", "forget_gaps", "forget_changes", "forget_corrections", "forget_missed"),
    *("forget_replicas", "forget_volumes", "forget_finished", "forget_unproven", "forget_proof"),
)


class Enrolments:
    """Folds which clusters count: what is settled waits for the slowest of them."""

    name = "billing/projects"
    source = "projects"
    handles = frozenset(
        {
            projects.ClusterEnrolled.DESCRIPTOR.full_name,
            projects.ClusterRetired.DESCRIPTOR.full_name,
        }
    )

    def write(self, facts: Sequence[Recorded]) -> Sequence[Write]:
        """Choose a write a fact."""
        writes = []
        for fact in facts:
            match fact.message:
                case projects.ClusterEnrolled() as said:
                    writes.append(Write("enrol", said.cluster, (said.cluster, False)))
                case projects.ClusterRetired() as said:
                    writes.append(Write("enrol", said.cluster, (said.cluster, True)))
        return writes

    def written(self) -> None:
        """Nobody waits for it."""

    def clear(self, journal: str) -> Sequence[Write]:
        """Forget everything, before it is folded anew."""
        return [Write("unenrol", "unenrol", ())]


@dataclass(slots=True)
class _Replica:
    """Slots of one row of `replica`; of two facts that fill the same, the first is kept."""

    cluster: str
    project: str
    subject: tuple[object, ...] | None = None
    scheduled: Seen | None = None
    drain: tuple[object, ...] | None = None
    released: Seen | None = None


@dataclass(slots=True)
class _Volume:
    cluster: str
    project: str
    bound: tuple[object, ...] | None = None
    deleted: Seen | None = None


@dataclass(slots=True)
class _Pair:
    """The two ends of a run, or of a gap."""

    begin: Seen | None = None
    end: Seen | None = None

    def begins(self, seen: Seen) -> None:
        """Fill the first end, once."""
        self.begin = self.begin or seen

    def ends(self, seen: Seen) -> None:
        """Fill the second end, once."""
        self.end = self.end or seen


@dataclass(slots=True)
class Page:
    """The slots that some facts of executors' journals fill, gathered by row; `Meter` writes them."""

    replicas: dict[str, _Replica] = field(default_factory=dict)
    runs: dict[tuple[str, int], _Pair] = field(default_factory=dict)
    gaps: dict[tuple[str, int], _Pair] = field(default_factory=dict)
    volumes: dict[str, _Volume] = field(default_factory=dict)
    changes: list[tuple[object, ...]] = field(default_factory=list)
    corrections: list[tuple[object, ...]] = field(default_factory=list)
    missed: list[tuple[object, ...]] = field(default_factory=list)
    finished: list[tuple[object, ...]] = field(default_factory=list)
    # What is said of whole clusters; its order counts.
    proofs: list[Write] = field(default_factory=list)

    def fill(self, fact: Recorded) -> None:
        """Take one fact in."""
        said = fact.message
        if said is not None and (take := TAKES.get(type(said))) is not None:
            take(self, said, fact)

    def writes(self) -> Sequence[Write]:
        """Choose the writes of all that was taken in."""
        replicas = [
            (
                *(uid, one.cluster, one.project),
                *(one.subject or NO_SUBJECT),
                *(one.scheduled or NOT_SEEN),
                *(one.drain or (None,) * 4),
                *(one.released or NOT_SEEN),
            )
            for uid, one in self.replicas.items()
        ]
        volumes = [
            (uid, one.cluster, one.project, *(one.bound or NOT_BOUND), *(one.deleted or NOT_SEEN))
            for uid, one in self.volumes.items()
        ]
        tables: Mapping[str, Sequence[tuple[object, ...]]] = {
            "keep_replicas": replicas,
            "keep_runs": _pairs(self.runs),
            "keep_gaps": _pairs(self.gaps),
            "keep_volumes": volumes,
            "keep_changes": self.changes,
            "keep_corrections": self.corrections,
            "keep_missed": self.missed,
            "keep_finished": self.finished,
        }
        # A statement takes its rows column by column.
        return [
            *(
                Write(name, name, tuple(zip(*rows, strict=True)))
                for name, rows in tables.items()
                if rows
            ),
            *self.proofs,
        ]

    # What becomes of each type; the most frequent ones first.

    def _started(self, said: workload.ReplicaStarted, fact: Recorded) -> None:
        self._subject(said.uid, said.subject, fact)
        self._run(said.uid, said.run).begins(_seen(said.witness, fact))

    def _ended(self, said: workload.ReplicaEnded, fact: Recorded) -> None:
        self._run(said.uid, said.run).ends(_seen(said.witness, fact))

    def _scheduled(self, said: workload.ReplicaScheduled, fact: Recorded) -> None:
        found = self._subject(said.uid, said.subject, fact)
        found.scheduled = found.scheduled or _seen(said.witness, fact)

    def _released(self, said: workload.ReplicaReleased, fact: Recorded) -> None:
        found = self._replica(said.uid, said.project, fact)
        found.released = found.released or _seen(said.witness, fact)

    def _draining(self, said: workload.ReplicaDraining, fact: Recorded) -> None:
        found = self._replica(said.uid, said.project, fact)
        when, position, evidence = _seen(said.witness, fact)
        found.drain = found.drain or (when, said.cause, position, evidence)

    def _finished(self, said: workload.WorkloadFinished, fact: Recorded) -> None:
        when = milliseconds(said.witness.occurred_time)
        self.finished.append((said.uid, _cluster(fact), said.project, when, fact.position))

    def _lost(self, said: workload.ReplicaLost, fact: Recorded) -> None:
        self._gap(said.uid, said.n).begins(_seen(said.witness, fact))

    def _found(self, said: workload.ReplicaFound, fact: Recorded) -> None:
        self._gap(said.uid, said.n).ends(_seen(said.witness, fact))

    def _proved(self, said: workload.ProofOfLife, fact: Recorded) -> None:
        cluster, until = _cluster(fact), milliseconds(said.until_time)
        alive = (cluster, until, fact.position, sorted(said.except_replicas))
        self.proofs.append(Write("prove", cluster, alive))

    def _passed(self, said: workload.Watermark, fact: Recorded) -> None:
        through = (_cluster(fact), milliseconds(said.through_time))
        self.proofs.append(Write("pass", _cluster(fact), through))

    def _bound(self, said: workload.VolumeBound, fact: Recorded) -> None:
        volume = self._volume(said.uid, said.subject.project, fact)
        volume.bound = volume.bound or _stored(said, fact)

    def _deleted(self, said: workload.VolumeDeleted, fact: Recorded) -> None:
        volume = self._volume(said.uid, said.project, fact)
        volume.deleted = volume.deleted or _seen(said.witness, fact)

    def _resized(self, said: workload.ReplicaResized, fact: Recorded) -> None:
        sku = said.sku
        self.changes.append(
            (
                *(said.uid, True, said.n, *_seen(said.witness, fact), None),
                *(sku.gpu_type, sku.gpu_milli, sku.cpu_milli, sku.memory_bytes),
            )
        )

    def _relabelled(self, said: workload.ReplicaRelabelled, fact: Recorded) -> None:
        seen, labels = _seen(said.witness, fact), _labels(said.labels)
        self.changes.append((said.uid, False, said.n, *seen, labels, None, None, None, None))

    def _corrected(self, said: workload.ReplicaRunCorrected, fact: Recorded) -> None:
        start = milliseconds(said.start_time) if said.HasField("start_time") else None
        end = milliseconds(said.end_time) if said.HasField("end_time") else None
        seen = _seen(said.witness, fact)
        self.corrections.append((said.uid, said.n, said.run, start, end, *seen))

    def _missed(self, said: workload.ReplicaRunMissed, fact: Recorded) -> None:
        window = milliseconds(said.window_start_time), milliseconds(said.window_end_time)
        evidence = said.witness.evidence
        self.missed.append((said.uid, said.from_run, said.to_run, *window, fact.position, evidence))

    # Rows.

    def _replica(self, uid: str, project: str, fact: Recorded) -> _Replica:
        found = self.replicas.get(uid)
        if found is None:
            found = self.replicas[uid] = _Replica(_cluster(fact), project)
        return found

    def _subject(self, uid: str, subject: workload.Subject, fact: Recorded) -> _Replica:
        found = self._replica(uid, subject.project, fact)
        if found.subject is None:
            found.subject = _whose(subject, fact.position)
        return found

    def _volume(self, uid: str, project: str, fact: Recorded) -> _Volume:
        return self.volumes.setdefault(uid, _Volume(_cluster(fact), project))

    def _run(self, uid: str, run: int) -> _Pair:
        found = self.runs.get((uid, run))
        if found is None:
            found = self.runs[uid, run] = _Pair()
        return found

    def _gap(self, uid: str, n: int) -> _Pair:
        return self.gaps.setdefault((uid, n), _Pair())


# What a fact does is looked up: asking it for each type in turn would cost more than all the rest.
TAKES: Final[Mapping[type[Message], Callable[..., None]]] = {
    workload.ReplicaStarted: Page._started,
    workload.ReplicaEnded: Page._ended,
    workload.ReplicaScheduled: Page._scheduled,
    workload.ReplicaReleased: Page._released,
    workload.ReplicaDraining: Page._draining,
    workload.WorkloadFinished: Page._finished,
    workload.ReplicaLost: Page._lost,
    workload.ReplicaFound: Page._found,
    workload.ProofOfLife: Page._proved,
    workload.Watermark: Page._passed,
    workload.VolumeBound: Page._bound,
    workload.VolumeDeleted: Page._deleted,
    workload.ReplicaResized: Page._resized,
    workload.ReplicaRelabelled: Page._relabelled,
    workload.ReplicaRunCorrected: Page._corrected,
    workload.ReplicaRunMissed: Page._missed,
}


class Meter:
    """Folds the facts that time is metered by; each fills a slot of its own, whatever came before."""

    name = METERED
    source = "executor"
    handles = frozenset(kind.DESCRIPTOR.full_name for kind in TAKES)

    def write(self, facts: Sequence[Recorded]) -> Sequence[Write]:
        """Choose the writes of a page of facts: one a table, and each row in it once."""
        page = Page()
        for fact in facts:
            page.fill(fact)
        return page.writes()

    def written(self) -> None:
        """Nobody waits for it."""

    def clear(self, journal: str) -> Sequence[Write]:
        """Forget what one cluster said, before it is folded anew."""
        cluster = journal.partition("/")[2]
        return [Write(name, "clear", (cluster,)) for name in FORGET]


def _cluster(fact: Recorded) -> str:
    """Whose executor stated it."""
    return fact.journal.partition("/")[2]


def _whose(subject: workload.Subject, position: int) -> tuple[object, ...]:
    limit = subject.max_cost if subject.HasField("max_cost") else None
    sku = subject.sku
    return (
        *(subject.owner, subject.owner_uid, subject.kind, subject.user, subject.workload),
        *(subject.attempt, subject.role, subject.rank, subject.purchase, _labels(subject.labels)),
        *(sku.gpu_type, sku.gpu_milli, sku.cpu_milli, sku.memory_bytes),
        *((limit.nanos, limit.currency) if limit else (None, None)),
        position,
    )


def _stored(said: workload.VolumeBound, fact: Recorded) -> tuple[object, ...]:
    subject = said.subject
    return (
        *(subject.owner, subject.owner_uid, subject.kind, subject.user, subject.purchase),
        *(_labels(subject.labels), subject.sku.storage_bytes),
        *_seen(said.witness, fact),
    )


def _pairs(pairs: Mapping[tuple[str, int], _Pair]) -> list[tuple[object, ...]]:
    return [
        (uid, number, *(one.begin or NOT_SEEN), *(one.end or NOT_SEEN))
        for (uid, number), one in pairs.items()
    ]


def _seen(witness: workload.Witness, fact: Recorded) -> Seen:
    return milliseconds(witness.occurred_time), fact.position, witness.evidence


def _labels(labels: Mapping[str, str]) -> str:
    return json.dumps(dict(labels))
