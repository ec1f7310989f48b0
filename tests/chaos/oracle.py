"""What has to hold when a round is over, as others than the platform have counted and measured it."""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Final

import psutil
from google.protobuf.message import Message

from chassis.envelope import Registry
from fermion.api.instances import v1 as instances
from fermion.api.instances.v1 import events_pb2 as instance_events
from fermion.api.journal import v1 as journal
from fermion.api.workload import v1 as workload
from fermion.api.workload.v1 import events_pb2 as workload_events
from services.executor import shim
from tests.chaos import load, recorder
from tests.chaos.faults import BUSY, EACH_MIN, FULL_SECONDS, KILLS, Scene, kinds
from tests.chaos.load import CPU_MILLI, MEMORY_BYTES, MS, PROJECT, Ledger
from tests.chaos.report import Report, quantiles
from tests.chaos.stand import Stand
from tests.stage import until

SETTLE_SECONDS_MAX: Final = 120.0
FAULTS_MIN: Final = 600
KILLS_MIN: Final = 200
# Two witnesses of one exit, on a machine that is busy with nothing but faults.
APART_MS: Final = 50
TICK_MS: Final = 1000
# As prices.yaml has it: nanos for a core, and for a GiB, and hour.
CPU_NANOS: Final = 40_000_000
MEMORY_NANOS: Final = 5_000_000
HOUR_MS: Final = 3_600_000
# A program whose user ends it is free for so long.
FREE_MS: Final = 10_000
REGISTRY: Final = Registry.of((workload_events.DESCRIPTOR, instance_events.DESCRIPTOR))


@dataclass(frozen=True, slots=True)
class Fact:
    """One stored fact, asked of PostgreSQL itself."""

    type: str
    stream: str
    request_id: str
    message: Message | None


@dataclass(frozen=True, slots=True)
class Told:
    """One run as the facts have it: milliseconds since 1970."""

    start: int
    end: int
    evidence: int


def settle(stand: Stand, report: Report) -> None:
    """Wait until nobody works any more: every reader has read its journal to the head."""
    began = time.monotonic()
    left: list[str] = []

    def quiet() -> bool:
        left[:] = unsettled(stand)
        return not left

    within(SETTLE_SECONDS_MAX, quiet, lambda: "; ".join(left), report, "settles")
    taken = report.figures.setdefault("settle_seconds", [])
    assert isinstance(taken, list)
    taken.append(round(time.monotonic() - began, 1))


def unsettled(stand: Stand) -> list[str]:
    """What is not done yet, or stands still."""
    answer = stand.stage.cli("status", "-o", "json")
    try:
        found = answer.json()
    except ValueError:
        return [answer.err]
    assert isinstance(found, dict)
    journals = found["journals"]
    left = [f"{one['journal']} is unknown" for one in journals if "head" not in one]
    heads = {one["journal"]: int(one.get("head", 0)) for one in journals}
    for one in journals:
        left += [
            f"{key} of {one['journal']}: {one[key]}"
            for key in ("halted", "relay_halted")
            if one.get(key)
        ]
        for reader in one.get("readers", []):
            if int(reader.get("position", 0)) != heads[reader["journal"]] or reader.get("halted"):
                left.append(f"of {heads[reader['journal']]} {reader}")
    return left or ([answer.err] if answer.code else [])


def within(
    seconds: float,
    holds: Callable[[], bool],
    explain: Callable[[], str],
    report: Report,
    sentence: str,
) -> None:
    """Wait until something holds, and note it where it does not come to."""
    try:
        until(seconds, holds, explain)
    except AssertionError as error:
        report.check(
            False, f"it {sentence} without help within {seconds:.0f} s", str(error)[-1800:]
        )


def judge_rest(stand: Stand, report: Report) -> None:
    """With the storm over and programs still running: what is held is what runs, each once."""
    seen: list[object] = []

    def same() -> bool:
        held = asyncio.run(holds(stand))
        live = alive(stand)
        seen[:] = [sorted(held - set(live)), sorted(set(live) - held), live]
        return held == set(live) and all(count == 1 for count in live.values())

    within(60, same, lambda: repr(seen), report, "holds what runs, each once,")
    report.figures["running_at_rest"] = len(alive(stand))


def alive(stand: Stand) -> dict[str, int]:
    """How many first processes each workload has that lives."""
    found: Counter[str] = Counter()
    for path in stand.replicas.iterdir():
        with suppress(OSError, KeyError, ValueError):
            record = shim.read_record(str(path))
            words = shim.Words(shim.read_file(str(path / "spec")))
            if record is not None and record.head.phase != shim.ENDED:
                found[f"wkl_{Path(words.one('closed')).name}"] += len(mains(path, words.one("uid")))
    return {uid: count for uid, count in found.items() if count}


def mains(folder: Path, uid: str) -> list[int]:
    """Processes of a replica whose parent is its shim."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        with suppress(psutil.Error):
            words = process.info["cmdline"] or []
            if words and words[-1] == str(folder):
                found += [
                    child.pid
                    for child in process.children()
                    if child.status() != psutil.STATUS_ZOMBIE
                ]
    return found


async def holds(stand: Stand) -> set[str]:
    """Workloads that the scheduler holds something for."""
    rows = await stand.ask("SELECT uid FROM scheduler_rows.entry WHERE cluster <> ''")
    return {str(row["uid"]) for row in rows}


def finish(stand: Stand, ledger: Ledger) -> None:
    """Stop everything, and wait until nothing lives any more."""
    over = {instances.STATE_STOPPED, instances.STATE_FAILED}

    async def stop() -> None:
        async with load.reached(stand) as (stub, metadata):
            await load.finish(stub, metadata, ledger)
            deadline = time.monotonic() + SETTLE_SECONDS_MAX
            while not set((found := await load.states(stub, metadata)).values()) <= over:
                assert time.monotonic() < deadline, (Counter(found.values()), stand.stage.log())
                await asyncio.sleep(0.5)

    asyncio.run(stop())


def judge(scene: Scene, report: Report, outside: Path, words: Path) -> None:
    """Compare every witness with the facts."""
    stand, ledger = scene.stand, scene.ledger
    if not report.only:
        judge_density(report, stand)
    facts = asyncio.run(stored(stand))
    judge_ledger(report, ledger, facts["instances"], asyncio.run(commands(stand)))
    judge_queue(report, ledger, facts)
    judge_watch(report, ledger)
    living = stand.replicas
    within(
        30, lambda: not any(living.iterdir()), lambda: repr([*living.iterdir()]), report, "forgets"
    )
    runs = judge_runs(report, stand, facts["executor"])
    judge_outside(report, scene, runs, outside)
    judge_words(report, scene, runs, facts["executor"], words)
    judge_bill(report, stand, facts["executor"])
    left = list(remains(stand))
    report.check(not left, "no process of a replica is left", left)
    held = asyncio.run(holds(stand))
    report.check(not held, "nothing is held any more", held)
    answers: list[str] = []

    def audited() -> bool:
        answer = stand.stage.cli("audit")
        answers[:] = [answer.out + answer.err]
        return answer.code == 0

    within(60, audited, lambda: answers[-1], report, "passes its audit")
    for service in facts:
        answer = stand.stage.cli("journal", "rebuild", stand.journal(service))
        report.check(answer.code == 0, f"{service} equals its rebuild", answer)


def judge_density(report: Report, stand: Stand) -> None:
    """Enough was done, to everything, while calls were in flight and facts on their way."""
    kills = [one for one in report.struck if one.kind == "kill"]
    share = report.duration / FULL_SECONDS
    report.check(
        len(report.struck) >= math.floor(FAULTS_MIN * share), "faults are dense", len(report.struck)
    )
    report.check(len(kills) >= math.floor(KILLS_MIN * share), "kills are dense", len(kills))
    report.check(
        report.stormed <= report.duration * 1.1 + 60, "faults struck in time", report.stormed
    )
    if share >= 1:
        counted = report.counted()
        few = {
            (kind.kind, target): count
            for kind, target, _ in kinds(stand.disks)
            if (count := counted.get(kind.kind, {}).get(target, 0)) < EACH_MIN
        }
        report.check(not few, f"every kind strikes every target {EACH_MIN} times", few)
    else:
        missed = {one for one in KILLS if not any(k.target == one for k in kills)}
        report.check(not missed, "every target is killed", missed)
    report.check(
        all(one.flying > 0 for one in kills), "calls were in flight at each kill", len(kills)
    )
    servers = [one for one in kills if one.target in (*BUSY, "nats")]
    behind = [one for one in servers if one.unpublished > 0]
    report.check(
        len(behind) * 3 >= len(servers),
        "at a third of the kills of who publishes, facts were committed and not published",
        (len(behind), len(servers)),
    )
    report.figures["kills_with_unpublished_facts"] = len(behind)


def judge_ledger(
    report: Report, ledger: Ledger, facts: Sequence[Fact], remembered: Counter[str]
) -> None:
    """What was acknowledged is in the journal, and once."""
    asked = {one.request_id for one in ledger.acknowledged}
    created: Counter[str] = Counter()
    stated: Counter[tuple[str, str, str]] = Counter()
    for fact in facts:
        if fact.request_id in asked:
            stated[fact.request_id, fact.type, fact.stream] += 1
        if isinstance(fact.message, instances.InstanceCreated):
            created[fact.message.instance] += 1
    lost = [one for one in ledger.acknowledged if remembered[one.request_id] != 1]
    lost += [
        one
        for one in ledger.acknowledged
        if one.method == "CreateInstance" and created[one.instance] == 0
    ]
    doubled = [each for each, count in stated.items() if count > 1]
    doubled += [("", "InstanceCreated", name) for name, count in created.items() if count > 1]
    report.check(not lost, "nothing acknowledged is lost", lost[:5])
    report.check(not doubled, "nothing happened twice", doubled[:5])
    strange = set(created) - ledger.created
    report.check(not strange, "nothing was created that nobody asked for", strange)
    report.check(ledger.retries > 0, "callers had to call again", ledger.retries)
    report.figures |= {
        "acknowledged": len(ledger.acknowledged),
        "acknowledged_by_method": dict(Counter(one.method for one in ledger.acknowledged)),
        "retries": ledger.retries,
        "lost": len(lost),
        "doubled": len(doubled),
    }


def judge_queue(report: Report, ledger: Ledger, facts: Mapping[str, Sequence[Fact]]) -> None:
    """What never fits is told once that it has arrived, at most once why it waits, refused once."""
    names: dict[str, str] = {}
    refused: Counter[str] = Counter()
    queued: Counter[str] = Counter()
    declared: Counter[str] = Counter()
    for fact in itertools.chain(facts["instances"], facts["scheduler"]):
        match fact.message:
            case instances.InstanceCreated() as found:
                names[found.uid] = found.instance
            case workload.WorkloadRefused() as found:
                refused[names[found.owner_uid]] += 1
            case workload.WorkloadQueued() as found:
                queued[names[found.owner_uid]] += 1
            case workload.WorkloadDeclared() as found:
                declared[found.workload.uid] += 1
            case _:
                pass
    waiters = {name for name in ledger.created if name.startswith("w")}
    report.check(set(declared.values()) == {1}, "each workload is declared once")
    told = {name: queued[name] for name in waiters if not 1 <= queued[name] <= 2}
    report.check(not told, "what waits is told so once or twice", told)
    ended = {name: refused[name] for name in waiters if refused[name] != (name in ledger.withdrawn)}
    report.check(not ended, "what was withdrawn is refused once, and nothing else", ended)


def judge_watch(report: Report, ledger: Ledger) -> None:
    """Over all its resumptions the watch sent no place twice and left no instance out."""
    report.check(ledger.resumed > 0, "the watch had to resume", ledger.resumed)
    report.check(
        ledger.watched == sorted(set(ledger.watched)), "the watch sends each place once, in order"
    )
    unseen = ledger.created - ledger.seen
    report.check(not unseen, "the watch leaves nothing out", unseen)


def judge_runs(report: Report, stand: Stand, facts: Sequence[Fact]) -> dict[str, dict[int, Told]]:
    """Each run has one start and one end, they are those of the shims' records, and none overlap."""
    runs = lives(report, facts)
    records = dict(stand.kept())
    report.check(not runs.keys() - records, "each replica has its record", runs.keys() - records)
    # An executor that was overtaken made it of a workload that was over: it is taken away, and nobody
    # states it, for there is nothing to state.
    strange = {uid: record.runs for uid, record in records.items() if uid not in runs}
    report.check(not any(strange.values()), "what nobody has stated never ran", strange)
    for uid, record in records.items():
        told = runs.get(uid, {})
        kept = {
            start.ordinal: Told(start.at // MS, max(end.at, start.at) // MS, end.evidence)
            for start, end in record.runs
            if end is not None
        }
        report.check(told == kept, f"the facts of {uid} are its record", (told, kept))
        spans = [told[ordinal] for ordinal in sorted(told)]
        for before, after in itertools.pairwise(spans):
            report.check(before.end <= after.start, f"runs of {uid} follow each other", spans)
    report.figures |= {
        "replicas": len(runs),
        "runs": sum(map(len, runs.values())),
        "never_stated": len(strange),
    }
    return runs


def lives(report: Report, facts: Sequence[Fact]) -> dict[str, dict[int, Told]]:
    """Runs by replica and ordinal; each edge is there once."""
    starts: dict[tuple[str, int], int] = {}
    runs: dict[str, dict[int, Told]] = {}
    workloads: set[str] = set()
    finished: Counter[str] = Counter()
    edges: Counter[tuple[str, str, int]] = Counter()
    for fact in facts:
        match fact.message:
            case workload.ReplicaScheduled() as found:
                edges["scheduled", found.uid, 0] += 1
                workloads.add(found.subject.workload)
                runs[found.uid] = {}
            case workload.ReplicaStarted() as found:
                edges["started", found.uid, found.run] += 1
                starts[found.uid, found.run] = milliseconds(found.witness)
            case workload.ReplicaEnded() as found:
                edges["ended", found.uid, found.run] += 1
                begun = starts.pop((found.uid, found.run), None)
                report.check(begun is not None, "what ends has started", (found.uid, found.run))
                runs[found.uid][found.run] = Told(
                    begun or 0, milliseconds(found.witness), found.witness.evidence
                )
            case workload.ReplicaReleased() as found:
                edges["released", found.uid, 0] += 1
            case workload.WorkloadFinished() as found:
                finished[found.uid] += 1
            case workload.ReplicaRunMissed() as found:
                report.check(False, "no run is missed", found)
            case _:
                pass
    twice = [edge for edge, count in edges.items() if count > 1]
    report.check(not twice, "each edge is stated once", twice)
    report.check(not starts, "what has started has ended", starts)
    released = {uid for what, uid, _ in edges if what == "released"}
    report.check(released == set(runs), "each replica is released", released ^ set(runs))
    report.check(workloads <= set(finished), "each workload is finished", workloads - set(finished))
    report.check(set(finished.values()) <= {1}, "and once", finished.most_common(3))
    return runs


def judge_outside(
    report: Report, scene: Scene, runs: Mapping[str, Mapping[int, Told]], outside: Path
) -> None:
    """A recorder outside saw the same ends; where a shim was struck the bill is never longer."""
    apart: list[int] = []
    worst: list[tuple[object, ...]] = []
    hurt: list[int] = []
    long: list[tuple[object, ...]] = []
    turn, *lines = outside.read_text().splitlines() or [recorder.SHARING]
    if turn == recorder.SHARING:
        report.skipped.append("each end within 50 ms: the recorder outside shared the machine")
    for line in lines:
        name, uid, ordinal, at = line.split()
        told = runs.get(uid, {}).get(int(ordinal))
        if told is None:
            continue
        late = told.end - int(at) // MS
        if name not in scene.hurt and told.evidence == shim.RECORDED:
            apart.append(abs(late))
            if abs(late) > APART_MS:
                worst.append((name, ordinal, late, told.evidence))
            continue
        if name not in scene.hurt:
            # Its machine stood still for ticks: it is dated before that, and says so.
            hurt.append(late)
            if late > APART_MS:
                long.append((name, ordinal, late, told.evidence))
            continue
        stopped = sum(until - since for _, since, until in scene.hurt[name]) // MS
        hurt.append(late)
        if late > APART_MS or -late > TICK_MS + APART_MS + stopped:
            long.append((name, ordinal, late, told.evidence, stopped))
        if -late > APART_MS and told.evidence == shim.RECORDED:
            long.append((name, ordinal, late, "says that it is exact"))
    count = sum(map(len, runs.values()))
    report.check(len(apart) + len(hurt) > count / 4, "the recorder outside saw enough", len(apart))
    found = quantiles([float(one) for one in apart])
    if turn == recorder.SHARING:
        # One that shares the machine is itself late now and then.
        which, most = "95 of 100 ends are", "p95"
    elif report.duration < FULL_SECONDS:
        # As with recoveries: a minute is played on machines whose own host takes turns away.
        which, most = "99 of 100 ends are", "p99"
    else:
        which, most = "each end is", "max"
    report.check(
        bool(apart) and found[most] <= APART_MS,
        f"{which} within {APART_MS} ms of a recorder outside",
        worst,
    )
    report.check(not long, "where a shim was hurt the bill is short by a tick and says so", long)
    report.figures |= {
        "recorder": turn,
        "metering_error_ms": found,
        "metering_error_ms_where_a_shim_was_hurt": quantiles([float(-one) for one in hurt]),
    }


def judge_words(
    report: Report,
    scene: Scene,
    runs: Mapping[str, Mapping[int, Told]],
    facts: Sequence[Fact],
    words: Path,
) -> None:
    """What programs wrote down themselves lies in runs of theirs: no two starts in one of them."""
    # An instance that was restarted has a workload for each attempt, and one page of words.
    of: defaultdict[str, list[Told]] = defaultdict(list)
    # How much later than told each may have ended: its shim was stopped, and nobody saw it.
    late: dict[Told, int] = {}
    for fact in facts:
        if isinstance(fact.message, workload.ReplicaScheduled):
            subject = fact.message.subject
            told = list(runs.get(fact.message.uid, {}).values())
            of[subject.owner.rsplit("/", 1)[-1]] += told
            hurt = scene.hurt.get(f"instance-{subject.workload.partition('_')[2]}", ())
            stopped = sum(until - since for _, since, until in hurt) // MS
            late |= dict.fromkeys(told, TICK_MS + stopped)
    apart: list[float] = []
    for owner, told in of.items():
        path = words / owner
        if not path.exists():
            continue
        begun: Counter[Told] = Counter()
        for what, at in (line.split() for line in path.read_text().splitlines()):
            moment = int(at) // MS
            inside = [one for one in told if one.start <= moment <= one.end + late[one]]
            if what == "end":
                # The program has said that it ends while a run of it was open.
                report.check(bool(inside), f"{owner} ended in a run", (moment, told))
                apart += [float(min(abs(one.end - moment) for one in inside or told))]
            else:
                latest = max(
                    (one for one in told if one.start <= moment), key=lambda one: one.start
                )
                begun[latest] += 1
        report.check(
            not begun or max(begun.values()) == 1, f"{owner} never ran twice at once", begun
        )
    report.check(bool(apart), "programs told of their ends")
    report.figures["programs_own_words_apart_ms"] = quantiles(apart)


def judge_bill(report: Report, stand: Stand, facts: Sequence[Fact]) -> None:
    """The statement is what the shims' records come to, to the nano, and the sum of its lines."""
    drained: dict[str, int] = {}
    for fact in facts:
        if isinstance(fact.message, workload.ReplicaDraining):
            drained[fact.message.uid] = milliseconds(fact.message.witness)
    exact = Fraction(0)
    for uid, record in stand.kept():
        for start, end in record.runs:
            if end is not None:
                exact += cost(start.at // MS, max(start.at, end.at) // MS, drained.get(uid))
    statement: dict[str, object] = {}

    def equal() -> bool:
        answer = stand.stage.cli("cost", "statement", "-p", PROJECT, "-o", "json")
        if answer.code != 0:
            return False
        statement.clear()
        statement.update(json.loads(answer.out))
        return int(str(statement.get("total_nanos", 0))) == round(exact)

    explain = lambda: f"{statement.get('total_nanos')} and not {round(exact)}"  # noqa: E731
    within(60, equal, explain, report, "bills what the shims' records come to, to the nano,")
    lines = statement.get("lines", [])
    assert isinstance(lines, list)
    total = sum(int(line.get("amount_nanos", 0)) for line in lines)
    report.check(
        total == int(str(statement.get("total_nanos", 0))), "the bill is the sum of its lines"
    )
    report.check(not statement.get("disputed"), "nothing is disputed", statement.get("disputed"))
    report.figures["billed_nanos"] = total


def cost(start: int, end: int, drained: int | None) -> Fraction:
    """What one run costs, in nanos: free for ten seconds from when its user had it end."""
    free = (end, end) if drained is None else (max(start, drained), max(start, drained) + FREE_MS)
    paid = Fraction(0)
    for first, last in ((start, min(end, free[0])), (min(end, free[1]), end)):
        ms = max(0, last - first)
        paid += Fraction(ms * CPU_MILLI * CPU_NANOS, HOUR_MS * 1000)
        paid += Fraction(ms * MEMORY_BYTES * MEMORY_NANOS, HOUR_MS * 2**30)
    return paid


def milliseconds(witness: workload.Witness) -> int:
    """When it happened, since 1970."""
    return witness.occurred_time.ToNanoseconds() // MS


async def stored(stand: Stand) -> dict[str, list[Fact]]:
    """Every fact of every service."""
    found: dict[str, list[Fact]] = {}
    for service in ("projects", "instances", "scheduler", "executor", "billing"):
        rows = await stand.ask(
            f"SELECT type, stream, data, meta FROM {service}.event ORDER BY position"
        )
        found[service] = [
            Fact(
                row["type"],
                row["stream"],
                journal.Meta.FromString(row["meta"]).request_id,
                REGISTRY.decode(row["type"], row["data"]),
            )
            for row in rows
        ]
    return found


async def commands(stand: Stand) -> Counter[str]:
    """How often the instances service remembers each request."""
    rows = await stand.ask("SELECT request_id, count(*) FROM instances.command GROUP BY 1")
    return Counter({str(row["request_id"]): int(row["count"]) for row in rows})


def remains(stand: Stand) -> Iterator[str]:
    """Processes of replicas that are still there."""
    root = str(stand.home / "cluster")
    for process in psutil.process_iter(["cmdline"]):
        with suppress(psutil.Error):
            words = " ".join(process.info["cmdline"] or [])
            if root in words or root in process.environ().get("FERMION_ROOT", ""):
                yield words
