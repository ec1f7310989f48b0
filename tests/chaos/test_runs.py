"""
Kill and stop everything while programs start, crash, end and are stopped; then compare the witnesses.

The shims' own records, a recorder outside, the programs' own words and the facts have to tell the
same. Two processes of each service run at once all the time. `FERMION_CHAOS_SEED` replays a run.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import asyncpg
import grpc
import grpc.aio
import psutil
import pytest
from google.protobuf import duration_pb2

from chassis.embedded import Postgres
from chassis.envelope import Registry
from fermion.api.instances import v1 as instances
from fermion.api.instances.v1 import service_pb2_grpc
from fermion.api.workload import v1 as workload
from fermion.api.workload.v1 import events_pb2
from services.executor import shim
from tests.chaos.test_kills import Metadata, find, insist, settle
from tests.stage import ROOT, TINY, Stage, staged, until

CALLERS = 6
FAULTS_OF_EACH = 3
PROJECT = "storm"
TARGETS = ("instances", "scheduler", "executor", "postgres", "nats", "shim")
MS = 10**6
# Two witnesses of one exit, on a machine that is busy with nothing but faults.
APART_MS = 50
TICK_MS = 1000


@dataclass
class Ledger:
    """What was asked, what was done to the platform, and what callers were told."""

    created: set[str] = field(default_factory=set)
    in_flight: int = 0
    retries: int = 0
    faults: list[tuple[str, str, int]] = field(default_factory=list)
    # Folders of replicas whose shims were killed or stopped.
    hurt: set[str] = field(default_factory=set)
    over: bool = False


@dataclass(frozen=True)
class Told:
    """One run as the facts have it: milliseconds since 1970."""

    start: int
    end: int
    evidence: int
    exit: int


@pytest.mark.timeout(1200)
def test_every_run_has_one_start_and_one_end_whatever_dies(tmp_path: Path) -> None:
    seed = int(os.environ.get("FERMION_CHAOS_SEED", str(random.SystemRandom().randrange(10**6))))
    print(f"FERMION_CHAOS_SEED={seed}")
    home = tmp_path / "home"
    with staged(home, "--split", "--replicas", "2", settings=TINY) as stage:
        stage.ok("projects", "create", PROJECT)
        outside = tmp_path / "outside"
        recorder = subprocess.Popen(
            [
                *(sys.executable, "-m", "tests.chaos.recorder"),
                *(str(home / "cluster" / "replicas"), str(outside)),
            ],
            cwd=ROOT,
        )
        try:
            ledger = asyncio.run(storm(stage, random.Random(seed), tmp_path))
            finish(stage)
        finally:
            recorder.kill()
            recorder.wait()
        settle(stage)
        check(stage, ledger, outside, tmp_path / "words")
        stage.audit()
        for journal in journals(stage):
            stage.ok("journal", "rebuild", journal)


def check(stage: Stage, ledger: Ledger, outside: Path, words: Path) -> None:
    """Compare every witness with the facts."""
    struck = Counter((what, how) for what, how, _ in ledger.faults)
    assert set(struck) == {(what, how) for what in TARGETS for how in ("kill", "stop")}
    assert min(struck.values()) >= FAULTS_OF_EACH, struck
    assert all(flying > 0 for _, _, flying in ledger.faults), ledger.faults

    facts = asyncio.run(stated(stage))
    runs, workloads = lives(facts)
    finished = Counter(fact.uid for fact in facts if isinstance(fact, workload.WorkloadFinished))
    assert set(finished.values()) == {1}
    # Every attempt that was admitted is finished, and its replicas are released once each.
    assert set(workloads.values()) <= set(finished)

    records = dict(kept(stage))
    assert set(records) == set(runs)
    for uid, record in records.items():
        told = runs[uid]
        assert {start.ordinal for start, _ in record.runs} == set(told), uid
        for start, end in record.runs:
            assert end is not None
            one = told[start.ordinal]
            assert (one.start, one.end, one.evidence) == (
                start.at // MS,
                max(end.at // MS, start.at // MS),
                end.evidence,
            ), (uid, start.ordinal)
        spans = [told[ordinal] for ordinal in sorted(told)]
        for before, after in itertools.pairwise(spans):
            assert before.end <= after.start, uid

    apart = []
    for line in outside.read_text().splitlines():
        name, uid, ordinal, at = line.split()
        if name in ledger.hurt or int(ordinal) not in runs.get(uid, {}):
            continue
        apart.append(abs(runs[uid][int(ordinal)].end - int(at) // MS))
    assert len(apart) > len(runs) / 4, "the recorder outside saw too little"
    own = own_words(words, runs, facts)
    late = sorted(apart)[int(len(apart) * 0.95)]
    assert late <= APART_MS, sorted(apart)[-20:]
    print(
        f"{len(ledger.created)} instances, {sum(map(len, runs.values()))} runs of {len(runs)} "
        f"replicas, {ledger.retries} retries, {len(ledger.faults)} faults; a recorder outside saw "
        f"{len(apart)} ends apart by p50 {statistics.median(apart)} ms, p95 {late} ms, "
        f"max {max(apart)} ms; the programs' own words by p50 {statistics.median(own)} ms"
    )

    left = list(remains(stage))
    assert left == [], left
    assert asyncio.run(holds(stage)) == 0


def own_words(
    words: Path, runs: Mapping[str, Mapping[int, Told]], facts: Sequence[object]
) -> list[float]:
    """How far the programs' own ends lie before the stated ones: never after, but for a tick."""
    # An instance that was restarted has a workload for each attempt, and one page of words.
    of: defaultdict[str, list[Told]] = defaultdict(list)
    for fact in facts:
        if isinstance(fact, workload.ReplicaScheduled):
            of[fact.subject.owner.rsplit("/", 1)[-1]] += runs[fact.uid].values()
    apart = []
    for owner, told in of.items():
        path = words / owner
        if not path.exists():
            continue
        said = [line.split() for line in path.read_text().splitlines()]
        for end in [int(at) // MS for what, at in said if what == "end"]:
            # The program has said that it ends while a run of it was open.
            inside = [one for one in told if one.start <= end <= one.end + TICK_MS]
            assert inside, (owner, end, told)
            apart.append(float(min(abs(one.end - end) for one in inside)))
    assert apart
    return apart


def lives(
    facts: Iterable[object],
) -> tuple[dict[str, dict[int, Told]], dict[str, str]]:
    """Runs by replica and ordinal; the workload of each replica. Each edge is there once."""
    starts: dict[tuple[str, int], int] = {}
    runs: dict[str, dict[int, Told]] = {}
    workloads: dict[str, str] = {}
    released: Counter[str] = Counter()
    for fact in facts:
        match fact:
            case workload.ReplicaScheduled():
                assert fact.uid not in workloads
                workloads[fact.uid] = fact.subject.workload
                runs[fact.uid] = {}
            case workload.ReplicaStarted():
                assert (fact.uid, fact.run) not in starts
                starts[fact.uid, fact.run] = milliseconds(fact.witness)
            case workload.ReplicaEnded():
                assert fact.run not in runs[fact.uid]
                runs[fact.uid][fact.run] = Told(
                    starts.pop((fact.uid, fact.run)),
                    milliseconds(fact.witness),
                    fact.witness.evidence,
                    fact.exit,
                )
            case workload.ReplicaReleased():
                released[fact.uid] += 1
            case workload.ReplicaRunMissed():
                raise AssertionError(f"a run was missed: {fact}")
            case _:
                pass
    assert starts == {}, "runs without an end"
    assert set(released) == set(runs)
    assert set(released.values()) <= {1}
    return runs, workloads


def milliseconds(witness: workload.Witness) -> int:
    """When it happened, since 1970."""
    return witness.occurred_time.ToNanoseconds() // MS


async def stated(stage: Stage) -> list[object]:
    """Every fact of the executor's journal, asked of PostgreSQL itself."""
    registry = Registry.of((events_pb2.DESCRIPTOR,))
    connection = await asyncpg.connect(Postgres(stage.home / "postgres").dsn, timeout=10)
    try:
        rows = await connection.fetch("SELECT type, data FROM executor.event ORDER BY position")
    finally:
        await connection.close()
    return [registry.decode(row["type"], row["data"]) for row in rows]


async def holds(stage: Stage) -> int:
    """How much the scheduler still holds for anybody."""
    connection = await asyncpg.connect(Postgres(stage.home / "postgres").dsn, timeout=10)
    try:
        found: int = await connection.fetchval(
            "SELECT count(*) FROM scheduler_rows.entry WHERE cluster <> ''"
        )
        return found
    finally:
        await connection.close()


def kept(stage: Stage) -> Iterable[tuple[str, shim.Record]]:
    """The shims' records by replica uid, also of what was forgotten."""
    for folder in (stage.home / "cluster" / "kept").iterdir():
        record = shim.read_record(str(folder))
        assert record is not None, folder
        yield folder.name, record


def remains(stage: Stage) -> Iterable[str]:
    """Processes of replicas that are still there."""
    for process in psutil.process_iter(["cmdline"]):
        with suppress(psutil.Error):
            words = " ".join(process.info["cmdline"] or [])
            if str(stage.home / "cluster") in words or (
                str(stage.home) in process.environ().get("FERMION_ROOT", "")
            ):
                yield words


def journals(stage: Stage) -> list[str]:
    """Names of all journals."""
    told = stage.ok("status", "-o", "json").json()
    assert isinstance(told, dict)
    return [str(one["journal"]) for one in told["journals"]]


async def storm(stage: Stage, dice: random.Random, folder: Path) -> Ledger:
    """Let programs live from many callers until everything was struck often enough."""
    ledger, metadata = Ledger(), stage.metadata
    (folder / "words").mkdir()
    options = [("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 500)]
    address = stage.address_of("instances").split(",")[0]
    async with grpc.aio.insecure_channel(address, options=options) as channel:
        stub = service_pb2_grpc.InstanceServiceStub(channel)
        async with asyncio.TaskGroup() as group:
            for number in range(CALLERS):
                own = random.Random(dice.random())
                group.create_task(
                    live(stub, metadata, ledger, number, own, folder / "words"),
                    name=f"caller {number}",
                )
            group.create_task(strike(stage, ledger, dice), name="striker")
    return ledger


async def live(
    stub: service_pb2_grpc.InstanceServiceAsyncStub,
    metadata: Metadata,
    ledger: Ledger,
    number: int,
    dice: random.Random,
    words: Path,
) -> None:
    """Create program after program: some end, some crash, some are stopped, restarted or deleted."""
    count = 0
    while not ledger.over:
        count += 1
        name = f"p{number}-{count}"
        full = f"projects/{PROJECT}/instances/{name}"
        fate = dice.choice(("ends", "crashes", "stopped", "restarted", "deleted"))
        seconds = dice.uniform(0.2, 1.5) if fate in ("ends", "crashes") else 600.0
        create = instances.CreateInstanceRequest(
            parent=f"projects/{PROJECT}",
            instance_id=name,
            request_id=str(uuid.uuid4()),
            instance=program(words / name, seconds, 3 if fate == "crashes" else 0),
        )
        await insist(lambda r=create: stub.CreateInstance(r, metadata=metadata, timeout=10), ledger)
        ledger.created.add(name)
        await asyncio.sleep(dice.uniform(0.2, 1.5))
        if fate == "restarted":
            again = instances.RestartInstanceRequest(name=full, request_id=str(uuid.uuid4()))
            await insist(
                lambda r=again: stub.RestartInstance(r, metadata=metadata, timeout=10), ledger
            )
            await asyncio.sleep(dice.uniform(0.2, 1.5))
        if fate in ("stopped", "restarted"):
            stop = instances.StopInstanceRequest(name=full, request_id=str(uuid.uuid4()))
            await insist(lambda r=stop: stub.StopInstance(r, metadata=metadata, timeout=10), ledger)
        if fate == "deleted":
            gone = instances.DeleteInstanceRequest(name=full, request_id=str(uuid.uuid4()))
            await insist(
                lambda r=gone: stub.DeleteInstance(r, metadata=metadata, timeout=10), ledger
            )


def program(words: Path, seconds: float, code: int) -> instances.Instance:
    """A program that writes down when it begins and ends, also when it is told to."""
    script = (
        f'say() {{ echo "$1 $(date +%s%N)" >> {words}; }}\n'
        "trap 'say end; exit 0' TERM\n"
        f"say start\nsleep {seconds:.2f} & wait $!\nsay end\nexit {code}\n"
    )
    return instances.Instance(
        spec=instances.Spec(
            kind=instances.KIND_CUSTOM,
            image="host",
            command=["sh", "-c", script],
            resources=instances.Resources(cpu_milli=20, memory_bytes=64 * 2**20),
            restart_policy=workload.RestartPolicy(
                mode=workload.RestartPolicy.MODE_ON_FAILURE,
                restarts_max=2,
                backoff=duration_pb2.Duration(nanos=200 * MS),
            ),
        )
    )


async def strike(stage: Stage, ledger: Ledger, dice: random.Random) -> None:
    """Kill and stop each thing often enough, in an order and at moments that the dice say."""
    wanted = [(what, how) for what in TARGETS for how in ("kill", "stop")] * FAULTS_OF_EACH
    dice.shuffle(wanted)
    try:
        for what, how in wanted:
            await asyncio.sleep(dice.uniform(0.2, 0.8))
            deadline = time.monotonic() + 40
            while (victim := pick(stage, ledger, what, dice)) is None or not ledger.in_flight:
                assert time.monotonic() < deadline, f"{what} does not come back\n{stage.log()}"
                await asyncio.sleep(0.02)
            ledger.faults.append((what, how, ledger.in_flight))
            with suppress(psutil.NoSuchProcess):
                if how == "kill":
                    victim.kill()
                else:
                    victim.send_signal(signal.SIGSTOP)
                    await asyncio.sleep(dice.uniform(0.5, 2.5))
                    victim.send_signal(signal.SIGCONT)
    finally:
        ledger.over = True


def pick(stage: Stage, ledger: Ledger, what: str, dice: random.Random) -> psutil.Process | None:
    """A process to strike."""
    if what != "shim":
        return find(stage, what)
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        folder = words[-1] if words else ""
        if folder.startswith(str(stage.home / "cluster" / "replicas")):
            found.append((process, Path(folder).name))
    if not found:
        return None
    process, name = dice.choice(found)
    ledger.hurt.add(name)
    return process


def finish(stage: Stage) -> None:
    """Stop everything, and wait until nothing lives any more."""

    def states() -> Counter[str]:
        answer = stage.cli("instances", "list", "-p", PROJECT, "-o", "json")
        if answer.code != 0:
            return Counter({"unknown": 1})
        return Counter(one["status"]["state"] for one in json.loads(answer.out))

    listed = stage.ok("instances", "list", "-p", PROJECT, "-o", "json").json()
    assert isinstance(listed, list)
    for one in listed:
        if one["status"]["state"] not in ("STATE_STOPPED", "STATE_FAILED"):
            stage.ok("instances", "stop", str(one["name"]).rsplit("/", 1)[-1], "-p", PROJECT)
    until(
        120,
        lambda: set(states()) <= {"STATE_STOPPED", "STATE_FAILED"},
        lambda: f"{states()}\n{stage.log()}",
    )
