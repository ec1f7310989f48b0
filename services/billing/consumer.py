"""What executors say, folded into one slot a fact; and which executors there are."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from chassis.envelope import Recorded
from chassis.journal import Write
from fermion.api.projects import v1 as projects
from fermion.api.workload import v1 as workload

METERED: Final = "billing/executor"
# A moment that a fact tells: milliseconds since 1970, the fact's position, its class of evidence.
Seen = tuple[int, int, int]
NOT_SEEN: Final = (None,) * 3
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


class Meter:
    """Folds the facts that time is metered by; each fills a slot of its own, whatever came before."""

    name = METERED
    source = "executor"
    handles = frozenset(
        {
            workload.ReplicaScheduled.DESCRIPTOR.full_name,
            workload.ReplicaStarted.DESCRIPTOR.full_name,
            workload.ReplicaEnded.DESCRIPTOR.full_name,
            workload.ReplicaDraining.DESCRIPTOR.full_name,
            workload.ReplicaLost.DESCRIPTOR.full_name,
            workload.ReplicaFound.DESCRIPTOR.full_name,
            workload.ReplicaRunMissed.DESCRIPTOR.full_name,
            workload.ReplicaRunCorrected.DESCRIPTOR.full_name,
            workload.ReplicaResized.DESCRIPTOR.full_name,
            workload.ReplicaRelabelled.DESCRIPTOR.full_name,
            workload.ReplicaReleased.DESCRIPTOR.full_name,
            workload.VolumeBound.DESCRIPTOR.full_name,
            workload.VolumeDeleted.DESCRIPTOR.full_name,
            workload.WorkloadFinished.DESCRIPTOR.full_name,
            workload.ProofOfLife.DESCRIPTOR.full_name,
            workload.Watermark.DESCRIPTOR.full_name,
        }
    )

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
    """The slots that some facts of executors' journals fill, gathered by row."""

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
        cluster, at = fact.journal.partition("/")[2], fact.position
        # The most frequent ones first.
        match fact.message:
            case workload.ReplicaStarted() as said:
                self._subject(said.uid, cluster, said.subject, at)
                self._run(said.uid, said.run).begins(_seen(said.witness, at))
            case workload.ReplicaEnded() as said:
                self._run(said.uid, said.run).ends(_seen(said.witness, at))
            case workload.ReplicaScheduled() as said:
                found = self._subject(said.uid, cluster, said.subject, at)
                found.scheduled = found.scheduled or _seen(said.witness, at)
            case workload.ReplicaReleased() as said:
                found = self._replica(said.uid, cluster, said.project)
                found.released = found.released or _seen(said.witness, at)
            case workload.ReplicaDraining() as said:
                found = self._replica(said.uid, cluster, said.project)
                when, position, evidence = _seen(said.witness, at)
                found.drain = found.drain or (when, said.cause, position, evidence)
            case workload.WorkloadFinished() as said:
                when = milliseconds(said.witness.occurred_time)
                self.finished.append((said.uid, cluster, said.project, when, at))
            case workload.ReplicaLost() as said:
                self._gap(said.uid, said.n).begins(_seen(said.witness, at))
            case workload.ReplicaFound() as said:
                self._gap(said.uid, said.n).ends(_seen(said.witness, at))
            case workload.ProofOfLife() as said:
                alive = (cluster, milliseconds(said.until_time), at, sorted(said.except_replicas))
                self.proofs.append(Write("prove", cluster, alive))
            case workload.Watermark() as said:
                through = (cluster, milliseconds(said.through_time))
                self.proofs.append(Write("pass", cluster, through))
            case workload.VolumeBound() as said:
                volume = self._volume(said.uid, cluster, said.subject.project)
                volume.bound = volume.bound or _bound(said, at)
            case workload.VolumeDeleted() as said:
                volume = self._volume(said.uid, cluster, said.project)
                volume.deleted = volume.deleted or _seen(said.witness, at)
            case other:
                self._rare(other, at)

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

    def _rare(self, message: Message | None, at: int) -> None:
        match message:
            case workload.ReplicaResized(uid=uid, sku=sku) as said:
                self.changes.append(
                    (
                        *(uid, True, said.n, *_seen(said.witness, at), None),
                        *(sku.gpu_type, sku.gpu_milli, sku.cpu_milli, sku.memory_bytes),
                    )
                )
            case workload.ReplicaRelabelled(uid=uid) as said:
                seen = _seen(said.witness, at)
                labels = _labels(said.labels)
                self.changes.append((uid, False, said.n, *seen, labels, None, None, None, None))
            case workload.ReplicaRunCorrected(uid=uid) as said:
                start = milliseconds(said.start_time) if said.HasField("start_time") else None
                end = milliseconds(said.end_time) if said.HasField("end_time") else None
                seen = _seen(said.witness, at)
                self.corrections.append((uid, said.n, said.run, start, end, *seen))
            case workload.ReplicaRunMissed(uid=uid) as said:
                window = milliseconds(said.window_start_time), milliseconds(said.window_end_time)
                evidence = said.witness.evidence
                self.missed.append((uid, said.from_run, said.to_run, *window, at, evidence))

    def _replica(self, uid: str, cluster: str, project: str) -> _Replica:
        found = self.replicas.get(uid)
        if found is None:
            found = self.replicas[uid] = _Replica(cluster, project)
        return found

    def _subject(
        self, uid: str, cluster: str, subject: workload.Subject, position: int
    ) -> _Replica:
        found = self._replica(uid, cluster, subject.project)
        if found.subject is None:
            found.subject = _whose(subject, position)
        return found

    def _volume(self, uid: str, cluster: str, project: str) -> _Volume:
        return self.volumes.setdefault(uid, _Volume(cluster, project))

    def _run(self, uid: str, run: int) -> _Pair:
        found = self.runs.get((uid, run))
        if found is None:
            found = self.runs[uid, run] = _Pair()
        return found

    def _gap(self, uid: str, n: int) -> _Pair:
        return self.gaps.setdefault((uid, n), _Pair())


NO_SUBJECT: Final = (None,) * 17
NOT_BOUND: Final = (None,) * 10


def milliseconds(time: Timestamp) -> int:
    """Whole milliseconds since 1970."""
    return time.seconds * 1000 + time.nanos // 1_000_000


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


def _bound(said: workload.VolumeBound, position: int) -> tuple[object, ...]:
    subject = said.subject
    return (
        *(subject.owner, subject.owner_uid, subject.kind, subject.user, subject.purchase),
        *(_labels(subject.labels), subject.sku.storage_bytes),
        *_seen(said.witness, position),
    )


def _pairs(pairs: Mapping[tuple[str, int], _Pair]) -> list[tuple[object, ...]]:
    return [
        (uid, number, *(one.begin or NOT_SEEN), *(one.end or NOT_SEEN))
        for (uid, number), one in pairs.items()
    ]


def _seen(witness: workload.Witness, position: int) -> Seen:
    return milliseconds(witness.occurred_time), position, witness.evidence


def _labels(labels: Mapping[str, str]) -> str:
    return json.dumps(dict(labels))
