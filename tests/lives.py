"""What an executor says of replicas that live and go: by hand for one, or of as many as are asked for."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Final

from google.protobuf.message import Message

from fermion.api.workload import v1 as workload
from tests.servers import CLUSTER
from tests.unit.services.billing.life import stamp, witness

GIB: Final = 2**30
HOUR_MS: Final = 3_600_000
MINUTE_MS: Final = 60_000
# Replicas between two looks at everything, and how much later than the one before each begins.
PASS: Final = 50
APART_MS: Final = 20_000


def subject(
    name: str,
    project: str = "acme",
    user: str = "user_ada",
    labels: Mapping[str, str] | None = None,
    limit: int = 0,
    kind: workload.Kind.ValueType = workload.KIND_INSTANCE,
) -> workload.Subject:
    """Whose time it is: one H100, four cores and 8 GiB."""
    return workload.Subject(
        project=project,
        owner=f"projects/{project}/instances/{name}",
        owner_uid=f"inst_{name}",
        kind=kind,
        workload=f"wkl_{name}",
        attempt=1,
        user=user,
        labels=labels,
        purchase=workload.PURCHASE_ANY,
        sku=workload.Sku(
            gpu_type="H100-80GB", gpu_milli=1000, cpu_milli=4000, memory_bytes=8 * GIB
        ),
        max_cost=workload.Money(currency="USD", nanos=limit) if limit else None,
    )


def replica(whose: workload.Subject) -> str:
    """The uid of the one replica of a workload."""
    return whose.workload.replace("wkl_", "rep_")


def begun(whose: workload.Subject, bound: int, start: int, run: int = 0) -> list[Message]:
    """A replica is bound, and runs from `start` on."""
    uid = replica(whose)
    return [
        workload.ReplicaScheduled(uid=uid, subject=whose, node="n1", witness=witness(bound)),
        workload.ReplicaStarted(uid=uid, subject=whose, run=run, witness=witness(start)),
    ]


def over(whose: workload.Subject, end: int, run: int = 0) -> list[Message]:
    """Its run ended, and with it the replica and the workload."""
    uid, work, project = replica(whose), whose.workload, whose.project
    seen = witness(end)
    return [
        workload.ReplicaEnded(uid=uid, workload=work, run=run, project=project, witness=seen),
        workload.ReplicaReleased(uid=uid, workload=work, project=project, witness=seen),
        workload.WorkloadFinished(uid=work, project=project, witness=seen),
    ]


def lives(count: int, start_ms: int, projects: int = 1) -> Iterator[Message]:
    """
    The lives of so many replicas, each of a workload of its own, as one journal tells them.

    One in three is restarted, one in five lost and found, one in seven relabelled, resized or
    corrected, one in ten has a volume, and the last ones run on.
    """
    for number in range(count):
        whose = subject(
            f"w{number}",
            project=f"p{number % projects}",
            user=f"user_{number % 17}",
            labels={"team": "abc"[number % 3]},
            limit=10**12 if number % 50 == 0 else 0,
        )
        yield from _life(number, whose, start_ms + number * APART_MS, number < count - 5)
        if number % PASS == PASS - 1:
            said_ms = start_ms + number * APART_MS
            yield workload.ProofOfLife(
                cluster=CLUSTER, until_time=stamp(said_ms), except_replicas=[replica(whose)]
            )
            yield workload.Watermark(cluster=CLUSTER, through_time=stamp(said_ms))


def side_by_side(facts: Iterator[Message], at_once: int = 2000) -> Iterator[Message]:
    """The same in the order of time, so that what lives at once is told at once; among so many."""
    ahead = sorted(itertools.islice(facts, at_once), key=_when)
    while ahead:
        yield from ahead[: at_once // 2]
        ahead = sorted([*ahead[at_once // 2 :], *itertools.islice(facts, at_once // 2)], key=_when)


def _when(fact: Message) -> tuple[int, int]:
    match fact:
        case workload.Watermark(through_time=at) | workload.ProofOfLife(until_time=at):
            return at.seconds, at.nanos
    seen: workload.Witness = fact.witness  # type: ignore[attr-defined]
    return seen.occurred_time.seconds, seen.occurred_time.nanos


def _life(number: int, whose: workload.Subject, at: int, ends: bool) -> Iterator[Message]:
    uid, work, project = replica(whose), whose.workload, whose.project
    yield from begun(whose, at, at + 3000)
    yield workload.ReplicaReady(
        uid=uid, workload=work, project=project, n=1, witness=witness(at + 5000)
    )
    run = 0
    if number % 3 == 0:
        yield workload.ReplicaEnded(
            uid=uid, workload=work, project=project, run=0, witness=witness(at + MINUTE_MS)
        )
        run, again = 1, witness(at + MINUTE_MS + 500)
        yield workload.ReplicaStarted(uid=uid, subject=whose, run=run, witness=again)
    if number % 5 == 0:
        lost = witness(at + 2 * MINUTE_MS, workload.EVIDENCE_CLASS_LAST_PROOF)
        found = witness(at + 3 * MINUTE_MS)
        yield workload.ReplicaLost(uid=uid, workload=work, project=project, n=1, witness=lost)
        yield workload.ReplicaFound(uid=uid, workload=work, project=project, n=1, witness=found)
    if number % 7 == 0:
        seen, labels = witness(at + 4 * MINUTE_MS), {"team": "d"}
        yield workload.ReplicaRelabelled(
            uid=uid, workload=work, project=project, n=1, labels=labels, witness=seen
        )
    if number % 7 == 1:
        seen, sku = witness(at + 4 * MINUTE_MS), workload.Sku(cpu_milli=8000)
        yield workload.ReplicaResized(
            uid=uid, workload=work, project=project, n=1, sku=sku, witness=seen
        )
    if number % 10 == 0:
        stored = workload.Subject()
        stored.CopyFrom(whose)
        stored.sku.CopyFrom(workload.Sku(storage_bytes=100 * GIB))
        yield workload.VolumeBound(uid=f"vol_w{number}", subject=stored, witness=witness(at))
    if not ends:
        return
    end = at + 5 * MINUTE_MS + number % 7 * HOUR_MS // 7
    yield workload.ReplicaDraining(
        uid=uid,
        workload=work,
        project=project,
        cause=workload.CAUSE_PREEMPTION if number % 4 == 0 else workload.CAUSE_USER_STOP,
        witness=witness(end - 15_000),
    )
    yield from over(whose, end, run)
    if number % 10 == 0:
        yield workload.VolumeDeleted(
            uid=f"vol_w{number}", project=project, witness=witness(end + 1000)
        )
    if number % 7 == 2:
        corrected = workload.ReplicaRunCorrected(
            uid=uid, workload=work, project=project, run=run, n=1, witness=witness(end + 2000)
        )
        corrected.end_time.CopyFrom(stamp(end - 20_000))
        yield corrected
    if number % 7 == 3:
        yield workload.ReplicaRunMissed(
            uid=uid,
            workload=work,
            project=project,
            from_run=run + 1,
            to_run=run + 2,
            window_start_time=stamp(end),
            window_end_time=stamp(end + 1000),
            witness=witness(end + 2000),
        )
