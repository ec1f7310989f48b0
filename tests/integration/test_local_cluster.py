"""The local cluster where it hurts: stopped and killed shims, full disks, sleep, other boots, strays."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

import psutil
import pytest

from fermion.api.workload import v1 as api
from services.executor import gpus, limits, shim
from services.executor.cluster import Away, LogEntry
from services.executor.cluster_local import DAY_SECONDS, LocalCluster
from services.executor.folder import instant
from services.executor.ground import Ground, Pace, cluster_uid
from services.executor.observation import Instant, Phase, ReplicaObservation
from services.executor.recipe import Recipe
from services.executor.storage import HALF_SECONDS, sweep_halves
from tests.conformance.cluster_stand import (
    OnThisMachine,
    later,
    on_this_machine,
    replica_of,
    standing,
    token_of,
)
from tests.conformance.test_cluster import (
    MIB,
    again,
    apply,
    group,
    printed,
    ran,
    runs,
    text,
    work,
)

QUICK = Pace(tick_ms=50, look_seconds=0.01, succeed_seconds=0.05, sweep_seconds=0.1)
# An environment is made from nothing, on a machine that may have other things to do.
BUILD_SECONDS_MAX = 300.0
ASLEEP = Path(__file__).with_name("asleep.py")


@pytest.fixture
async def stand(tmp_path: Path) -> AsyncIterator[OnThisMachine]:
    """A local cluster whose shims tick twenty times a second."""
    async with on_this_machine(tmp_path, pace=QUICK) as here:
        yield here


@pytest.fixture
async def bare(tmp_path: Path) -> AsyncIterator[OnThisMachine]:
    """A local cluster on a machine that lets nobody make control groups."""
    async with on_this_machine(tmp_path, limits.without_groups, QUICK) as here:
        yield here


def head_of(stand: OnThisMachine, replica: str) -> shim.Head:
    record = stand.folder(replica).record()
    assert record is not None
    return record.head


async def until_proof_is_later(stand: OnThisMachine, replica: str) -> None:
    before = head_of(stand, replica).proof

    async def later_now() -> bool:
        return head_of(stand, replica).proof > before

    await stand.until(later_now)


async def running(stand: OnThisMachine, *steps: str, **rest: object) -> tuple[api.Workload, str]:
    wanted = work(group(stand.command(*steps, "print:up", "stay"), **rest))
    await apply(stand, wanted)
    found = await runs(stand, wanted)
    await printed(stand, found.uid, "up")
    return wanted, found.uid


def main_of(stand: OnThisMachine, replica: str) -> int:
    record = stand.folder(replica).record()
    assert record is not None
    return record.runs[-1][0].pid


# The witness.


async def test_main_cannot_outlive_its_shim(stand: OnThisMachine) -> None:
    _, uid = await running(stand, "stubborn")
    main = psutil.Process(main_of(stand, uid))
    await stand.lose_witness(uid)

    async def dead() -> bool:
        return not main.is_running() or main.status() == psutil.STATUS_ZOMBIE

    await stand.until(dead)


async def test_a_shim_that_was_stopped_goes_on_with_the_same_run(stand: OnThisMachine) -> None:
    wanted, uid = await running(stand)
    witness = head_of(stand, uid).pid
    os.kill(witness, signal.SIGSTOP)
    stopped = await replica_of(stand, wanted.uid)
    assert stopped.proof is not None
    await pass_time(stand, stopped.proof + timedelta(milliseconds=400))
    listing = await stand.cluster.list()
    assert listing.told is not None
    assert listing.told <= stopped.proof + timedelta(milliseconds=100)
    os.kill(witness, signal.SIGCONT)
    await until_proof_is_later(stand, uid)
    found = await replica_of(stand, wanted.uid)
    assert len(found.runs) == 1
    assert found.runs[0].end is None
    assert found.gaps == ()


async def test_an_end_that_a_stopped_shim_missed_is_at_its_last_proof(stand: OnThisMachine) -> None:
    wanted, uid = await running(stand)
    main = main_of(stand, uid)
    await until_proof_is_later(stand, uid)
    witness = head_of(stand, uid).pid
    os.kill(witness, signal.SIGSTOP)
    os.kill(main, signal.SIGKILL)
    killed = stand.now()
    await pass_time(stand, killed + timedelta(milliseconds=300))
    open_run = (await replica_of(stand, wanted.uid)).runs[0]
    assert open_run.end is None, "it is dead, and nobody has witnessed it"
    os.kill(witness, signal.SIGCONT)
    (run,) = (await ran(stand, wanted)).runs
    assert run.end is not None
    assert run.end.evidence == api.EVIDENCE_CLASS_LAST_PROOF
    assert run.start.at <= run.end.at <= killed
    assert killed - run.end.at < timedelta(seconds=1)
    assert run.signal == signal.SIGKILL


async def test_an_end_in_a_short_stop_of_the_shim_is_not_dated_when_it_went_on(
    stand: OnThisMachine,
) -> None:
    wanted, uid = await running(stand)
    main = main_of(stand, uid)
    await until_proof_is_later(stand, uid)
    witness = head_of(stand, uid).pid
    os.kill(witness, signal.SIGSTOP)
    os.kill(main, signal.SIGKILL)
    killed = stand.now()
    # Less than the two ticks after which it knows by its clock that it is late.
    await pass_time(stand, killed + timedelta(milliseconds=QUICK.tick_ms))
    os.kill(witness, signal.SIGCONT)
    (run,) = (await ran(stand, wanted)).runs
    assert run.end is not None
    assert run.end.evidence == api.EVIDENCE_CLASS_LAST_PROOF
    assert run.start.at <= run.end.at <= killed


@dataclass
class Busy:
    """A replica on a machine that is busy, as its shim is told."""

    stand: OnThisMachine
    wanted: api.Workload
    uid: str
    folder: Path

    async def hold(self) -> None:
        """Have its shim stand still before it waits again."""
        (self.folder / "hold").symlink_to("-")
        self.wake()

        async def held() -> bool:
            return (self.folder / "held").is_symlink()

        await self.stand.until(held)
        # It may have stood still before it took the byte.
        left = os.open(self.folder / "wake", os.O_RDWR | os.O_NONBLOCK)
        with suppress(BlockingIOError):
            os.read(left, 1)
        os.close(left)

    def wake(self) -> None:
        """Have its shim look at its orders."""
        (self.folder / "wake").write_bytes(b"\0")

    async def dies(self, seconds: float = 0.0) -> datetime:
        """
        Have what it runs die while its shim stands still, which goes on so long after its last proof.

        Returns when it went on; in whole milliseconds, as ends are.
        """
        proof = instant(head_of(self.stand, self.uid).proof)
        main = psutil.Process(main_of(self.stand, self.uid))
        main.kill()

        async def dead() -> bool:
            return main.status() == psutil.STATUS_ZOMBIE

        await self.stand.until(dead)
        await pass_time(self.stand, proof + timedelta(seconds=seconds))
        now = self.stand.now()
        (self.folder / "hold").unlink()
        return now.replace(microsecond=now.microsecond // 1000 * 1000)

    async def end(self) -> Instant:
        """The end of its one run, as it was witnessed."""
        (run,) = (await ran(self.stand, self.wanted)).runs
        assert run.end is not None
        return run.end


@asynccontextmanager
async def busy(root: Path, seconds: float, tick_ms: int = 5000) -> AsyncIterator[Busy]:
    """A replica that runs; its shim stands still, and is told that each turn came so long after its call."""
    async with on_this_machine(root, pace=replace(QUICK, tick_ms=tick_ms)) as stand:
        stand.cluster._shim = ASLEEP  # type: ignore[attr-defined]
        wanted, uid = await running(stand)
        folder = stand.folder(uid).path
        (folder / "busy").symlink_to(str(seconds))
        one = Busy(stand, wanted, uid, folder)
        await one.hold()
        yield one


async def test_an_end_is_when_the_shim_was_woken_and_not_when_it_had_its_turn(
    tmp_path: Path,
) -> None:
    async with busy(tmp_path, 0.4) as one:
        went_on = await one.dies(0.8)
        end = await one.end()
        assert end.evidence == api.EVIDENCE_CLASS_RECORDED
        assert timedelta(seconds=0.2) < went_on - end.at <= timedelta(seconds=0.4)


async def test_where_something_else_may_have_woken_it_an_end_is_when_it_had_its_turn(
    tmp_path: Path,
) -> None:
    async with busy(tmp_path, 0.4) as one:
        one.wake()
        went_on = await one.dies(0.8)
        end = await one.end()
        assert end.evidence == api.EVIDENCE_CLASS_RECORDED
        assert end.at >= went_on


async def test_where_it_was_time_an_end_is_when_it_had_its_turn(tmp_path: Path) -> None:
    async with busy(tmp_path, 0.3, tick_ms=2000) as one:
        went_on = await one.dies(2.5)
        end = await one.end()
        assert end.evidence == api.EVIDENCE_CLASS_RECORDED
        assert end.at >= went_on


async def test_no_end_is_before_the_last_proof_of_life(tmp_path: Path) -> None:
    async with busy(tmp_path, 60) as one:
        proof = instant(head_of(one.stand, one.uid).proof)
        await one.dies()
        assert (await one.end()).at == proof


async def test_no_end_is_in_a_sleep_of_the_machine(tmp_path: Path) -> None:
    async with busy(tmp_path, 0.4) as one:
        (one.folder / "asleep").symlink_to("3600")
        await one.dies()
        end = await one.end()
        (hole,) = (await replica_of(one.stand, one.wanted.uid)).gaps
        assert hole.found is not None
        assert hole.found.at - hole.lost.at == timedelta(hours=1)
        assert end.at >= hole.found.at


async def pass_time(stand: OnThisMachine, moment: object) -> None:
    async def passed() -> bool:
        return stand.now() >= moment  # type: ignore[operator]

    await stand.until(passed)


async def test_a_second_shim_of_a_replica_leaves_at_once(stand: OnThisMachine) -> None:
    wanted, uid = await running(stand)
    witness = head_of(stand, uid).pid
    for _ in range(3):
        assert begin_shim(stand, uid).returncode == 0
    assert head_of(stand, uid).pid == witness
    assert len((await replica_of(stand, wanted.uid)).runs) == 1


def begin_shim(
    stand: OnThisMachine, replica: str, given: bytes = shim.WHOLE
) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-I", "-S", shim.__file__, str(stand.folder(replica).path)]
    return subprocess.run(command, input=given, capture_output=True, check=False)


async def test_a_shim_that_was_told_half_of_its_secrets_begins_nothing(
    stand: OnThisMachine,
) -> None:
    wanted = work(group(stand.command("exit:0")))
    await apply(stand, wanted)
    found = await ran(stand, wanted)
    assert begin_shim(stand, found.uid, b"env=A=1").returncode != 0


async def test_what_ran_before_the_machine_was_restarted_ended_at_its_last_proof(
    stand: OnThisMachine,
) -> None:
    wanted, uid = await running(stand, restart=again("ON_FAILURE", most=1, backoff_ms=10))
    await stand.close()
    head, path = head_of(stand, uid), stand.folder(uid).path / "record"
    shim.kill(head.pid, shim.SIGKILL)
    head.boot = "another"
    with path.open("r+b") as file:
        file.write(head.pack(shim.HEAD_BYTES))
    await stand.renew()

    async def second() -> ReplicaObservation | None:
        found = await replica_of(stand, wanted.uid)
        return found if len(found.runs) == 2 else None

    first, after = (await stand.until(second)).runs
    assert first.end is not None
    assert first.end.evidence == api.EVIDENCE_CLASS_LAST_PROOF
    assert first.reason is not None
    assert first.reason.code == "MACHINE_RESTARTED"
    assert first.end.at <= after.start.at


async def test_the_sleep_of_the_machine_is_a_gap_in_the_run(tmp_path: Path) -> None:
    async with on_this_machine(tmp_path, pace=QUICK) as stand:
        # Its shim is one with clocks of the test's.
        stand.cluster._shim = ASLEEP  # type: ignore[attr-defined]
        wanted, uid = await running(stand)
        (stand.folder(uid).path / "asleep").symlink_to("3600")

        async def gap() -> ReplicaObservation | None:
            found = await replica_of(stand, wanted.uid)
            return found if found.gaps else None

        found = await stand.until(gap)
        await stand.cluster.drain(uid, api.CAUSE_USER_STOP, stand.now())
        found = await ran(stand, wanted)
        (hole,) = found.gaps
        (run,) = found.runs
        assert hole.found is not None
        assert run.end is not None
        assert hole.found.at - hole.lost.at == timedelta(hours=1)
        assert run.start.at <= hole.lost.at
        assert hole.found.at <= run.end.at


async def test_a_shim_is_small(stand: OnThisMachine) -> None:
    _, uid = await running(stand)
    used = psutil.Process(head_of(stand, uid).pid).memory_full_info().uss
    assert used < 6 * MIB


# The disk.


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of two megabytes."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(place)], capture_output=True
    )
    if mounted.returncode != 0:
        pytest.skip(f"no disk can be mounted here: {mounted.stderr.decode().strip()}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


async def test_a_full_disk_loses_output_and_neither_the_run_nor_its_end(small_disk: Path) -> None:
    async with on_this_machine(small_disk, pace=QUICK) as stand:
        line = "x" * 60_000
        script = f"for i in $(seq 200); do echo {line}; done; touch $HOME/over; sleep 600"
        wanted = work(group(["sh", "-c", script]))
        filler = small_disk / "filler"
        await apply(stand, wanted)
        found = await runs(stand, wanted)
        over = stand.folder(found.uid).path / "scratch" / "over"

        async def gone_on() -> bool:
            # It is not held up: it comes to its end, although 12 MB have no room.
            return over.exists()

        await stand.until(gone_on)
        with suppress(OSError), filler.open("wb") as file:
            while True:
                file.write(bytes(4096))
                file.flush()
        await stand.cluster.drain(found.uid, api.CAUSE_USER_STOP, later(stand, 20))
        (run,) = (await ran(stand, wanted)).runs
        assert run.end is not None
        assert run.signal == signal.SIGTERM
        entries = [entry async for entry in stand.cluster.logs(found.uid)]
        assert sum(entry.lost for entry in entries) > 0
        assert sum(entry.lost + len(entry.data) for entry in entries) == 200 * 60_001
        filler.unlink()


async def test_a_start_that_cannot_be_written_down_waits(small_disk: Path) -> None:
    async with on_this_machine(small_disk, pace=QUICK) as stand:
        wanted = work(group(stand.command("exit:1"), restart=again("ALWAYS", backoff_ms=1)))
        await apply(stand, wanted)
        filler = small_disk / "filler"
        with suppress(OSError), filler.open("wb") as file:
            while True:
                file.write(bytes(4096))
                file.flush()

        async def waiting() -> bool:
            found = await replica_of(stand, wanted.uid)
            return found.reason is not None and found.reason.code == "DISK_FULL"

        await stand.until(waiting)
        before = len((await replica_of(stand, wanted.uid)).runs)
        filler.unlink()

        async def more() -> bool:
            return len((await replica_of(stand, wanted.uid)).runs) > before

        await stand.until(more)


async def test_a_replica_that_a_full_disk_has_no_room_for_leaves_nothing(small_disk: Path) -> None:
    async with on_this_machine(small_disk, pace=QUICK) as stand:
        wanted = work(group(stand.command("stay")))
        filler = small_disk / "filler"
        with suppress(OSError), filler.open("wb") as file:
            while True:
                file.write(bytes(4096))
                file.flush()
        for _ in range(3):
            with pytest.raises(Away):
                await apply(stand, wanted)
        assert list(stand.ground.replicas.iterdir()) == []
        filler.unlink()
        await apply(stand, wanted)
        await runs(stand, wanted)


async def test_a_log_is_kept_within_its_bounds(tmp_path: Path) -> None:
    pace = replace(QUICK, segment_bytes=10_000, log_bytes_max=30_000)
    async with on_this_machine(tmp_path, pace=pace) as stand:
        wanted = work(group(["sh", "-c", "for i in $(seq 20000); do echo $i; done"]))
        await apply(stand, wanted)
        found = await ran(stand, wanted)
        entries: list[LogEntry] = [entry async for entry in stand.cluster.logs(found.uid)]
        printed_bytes = sum(len(f"{number}\n") for number in range(1, 20_001))
        assert entries[0].lost > 0
        assert entries[-1].offset == printed_bytes
        assert b"".join(entry.data for entry in entries).endswith(b"\n19999\n20000\n")


# Without control groups.


async def test_without_groups_memory_is_watched_and_held_down(bare: OnThisMachine) -> None:
    small = api.Resources(memory_bytes=48 * MIB)
    wanted = work(group(bare.command(f"grow:{96 * MIB}", "stay"), resources=small))
    await apply(bare, wanted)
    (run,) = (await ran(bare, wanted)).runs
    assert run.signal == signal.SIGKILL
    assert run.reason is not None
    assert run.reason.code == "OOM_KILLED"


async def test_without_groups_nothing_is_left_either(bare: OnThisMachine) -> None:
    wanted, uid = await running(bare, "child", "stubborn")
    assert await bare.processes(uid) >= 2
    async with bare.cluster.execute(uid, bare.command("stubborn", "stay"), tty=False) as session:
        await bare.cluster.drain(uid, api.CAUSE_USER_STOP, bare.now())
        await ran(bare, wanted)
        assert await session.wait() == 128 + signal.SIGKILL
    assert await bare.processes(uid) == 0


async def test_without_groups_use_is_counted_over_processes(bare: OnThisMachine) -> None:
    _, uid = await running(bare, "spin:0.2")
    used = (await bare.cluster.usage())[uid]
    assert used.cpu_seconds >= 0.15
    assert used.memory_bytes > MIB


async def test_without_groups_a_shim_that_was_killed_leaves_nothing(bare: OnThisMachine) -> None:
    wanted, uid = await running(bare, "child")
    await bare.lose_witness(uid)
    await ran(bare, wanted)
    assert await bare.processes(uid) == 0


# The janitor.


async def test_a_process_of_nobody_is_killed(stand: OnThisMachine) -> None:
    uid = "rep_00000000000000000000000000"
    root = stand.ground.replicas / "nobody" / "root"
    marks = {"FERMION_REPLICA": uid, "FERMION_ROOT": str(root)}
    stray = subprocess.Popen(["sleep", "600"], env={**os.environ, **marks})

    async def dead() -> bool:
        return stray.poll() is not None

    await stand.until(dead)
    assert stray.returncode == -signal.SIGKILL


async def test_a_process_of_another_cluster_is_left_alone(stand: OnThisMachine) -> None:
    marks = {"FERMION_REPLICA": "rep_1", "FERMION_ROOT": "/elsewhere/replicas/x/root"}
    other = subprocess.Popen(["sleep", "600"], env={**os.environ, **marks})
    await asyncio.to_thread(stand.cluster._sweep)  # type: ignore[attr-defined]
    assert other.poll() is None
    other.kill()
    other.wait()


async def test_a_replica_whose_group_was_taken_away_goes_on_and_ends_as_ever(
    stand: OnThisMachine,
) -> None:
    if not stand.ground.limits.bases:
        pytest.skip("there are no control groups here")
    wanted, uid = await running(stand)
    for path in map(Path, stand.ground.limits.groups(stand.folder(uid).path.name)):
        for pid in (path / "cgroup.procs").read_text().split():
            (path.parent.parent / "cgroup.procs").write_text(pid)
        path.rmdir()
    os.kill(main_of(stand, uid), signal.SIGKILL)
    (run,) = (await ran(stand, wanted)).runs
    assert run.end is not None
    # Its shim has seen it, and did not end with it.
    assert run.end.evidence == api.EVIDENCE_CLASS_RECORDED
    assert run.signal == signal.SIGKILL


async def test_a_group_of_nobody_is_taken_away(stand: OnThisMachine) -> None:
    if not stand.ground.limits.bases:
        pytest.skip("there are no control groups here")
    for path in stand.ground.limits.groups("nobody"):
        os.makedirs(path)

    async def gone() -> bool:
        return "nobody" not in stand.ground.limits.names()

    await stand.until(gone)


async def test_logs_of_what_was_forgotten_are_kept_for_days_and_no_longer(
    stand: OnThisMachine,
) -> None:
    wanted = work(group(stand.command("print:still")))
    await apply(stand, wanted)
    found = await ran(stand, wanted)
    await stand.cluster.forget(found.uid)
    kept = stand.ground.kept / found.uid
    await asyncio.to_thread(stand.cluster._sweep)  # type: ignore[attr-defined]
    assert await text(stand, found.uid) == "still\n"
    old = time.time() - (stand.ground.pace.log_days + 1) * DAY_SECONDS
    os.utime(kept, (old, old))

    async def gone() -> bool:
        return not kept.exists()

    await stand.until(gone)


async def test_what_a_process_died_over_is_taken_away_and_what_is_just_made_is_not(
    stand: OnThisMachine,
) -> None:
    halves = [
        root / f".{name}.0123456789abcdef"
        for root in (stand.ground.replicas, stand.ground.root / "volumes")
        for name in ("left", "made")
    ]
    for half in halves:
        (half / "scratch").mkdir(parents=True)
        if "left" in half.name:
            old = time.time() - HALF_SECONDS - 1
            os.utime(half, (old, old))
    await asyncio.to_thread(stand.cluster._sweep)  # type: ignore[attr-defined]
    assert [half.name.split(".")[1] for half in halves if half.exists()] == ["made", "made"]


def test_who_goes_on_while_his_half_is_taken_away_puts_nothing_in_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half, place, remove = tmp_path / ".vol.0123456789abcdef", tmp_path / "vol", shutil.rmtree
    (half / "data").mkdir(parents=True)
    os.utime(half, (0, 0))
    tried = []

    def removing(path: Path, ignore_errors: bool) -> None:
        with pytest.raises(FileNotFoundError):
            half.rename(place)
        tried.append(path)
        remove(path, ignore_errors)

    monkeypatch.setattr("services.executor.storage.shutil.rmtree", removing)
    sweep_halves(tmp_path)
    assert len(tried) == 1
    assert list(tmp_path.iterdir()) == []


# Two of them, and images.


async def test_two_executors_make_nothing_twice(stand: OnThisMachine) -> None:
    other = LocalCluster(stand.ground, token_of)
    wanted = work(group(stand.command("env:FERMION_RANK", "stay"), replicas=4))
    both = (cluster.apply(wanted, {"": 4}) for cluster in (stand.cluster, other) * 3)
    await asyncio.gather(*both)
    for rank in range(4):
        found = await runs(stand, wanted, rank=rank)
        await printed(stand, found.uid, f"FERMION_RANK={rank}")
        assert await text(stand, found.uid) == f"FERMION_RANK={rank}\n"
    mine, others = await stand.cluster.list(), await other.list()
    assert {one.uid for one in mine.replicas} == {one.uid for one in others.replicas}
    assert len(mine.replicas) == 4


@asynccontextmanager
async def with_recipe(folder: Path, requirements: str) -> AsyncIterator[OnThisMachine]:
    """A local cluster that offers `lab`, which is built as it says."""
    path, root = folder / "lab.txt", folder / "cluster"
    path.write_text(requirements)
    made = {"lab": Recipe("lab", "a lab", path, token_variable="LAB_TOKEN")}
    uid = cluster_uid(root)
    there = Ground(root, uid, "here", limits.probe(uid), gpus.Gpus(), made, QUICK)
    async with standing(OnThisMachine(there, BUILD_SECONDS_MAX)) as stand:
        yield stand


@pytest.mark.slow
async def test_an_image_is_built_once_for_all_who_run_it(tmp_path: Path) -> None:
    async with with_recipe(tmp_path, "# nothing but the environment itself\n") as stand:
        script = "command -v python; echo $LAB_TOKEN"
        image = api.Image(repository="lab")
        wanted = work(group(["sh", "-c", script], replicas=2, image=image))
        await apply(stand, wanted)

        async def told() -> ReplicaObservation | None:
            found = await replica_of(stand, wanted.uid)
            # Its shim has a record a moment before it knows what it waits for.
            return found if found.reason else None

        first = await stand.until(told)
        assert first.phase is Phase.PREPARING
        assert first.reason is not None
        assert first.reason.code == "IMAGE_BUILDING"
        assert first.runs == ()
        for rank in range(2):
            found = await ran(stand, wanted, rank=rank)
            python, token = (await text(stand, found.uid)).splitlines()
            assert python.startswith(str(stand.ground.images))
            assert token == token_of(found.uid)
            assert found.image.repository == "lab"
            assert found.image.digest.startswith("sha256:")
            files = (file for file in stand.folder(found.uid).path.iterdir() if file.is_file())
            assert [file for file in files if token.encode() in file.read_bytes()] == []
        assert len(list(stand.ground.images.iterdir())) == 1


@pytest.mark.slow
async def test_an_image_that_cannot_be_built_says_so_and_can_be_given_up(tmp_path: Path) -> None:
    async with with_recipe(tmp_path, "nothing @ file:///nowhere/nothing-1.0.tar.gz\n") as stand:
        wanted = work(group(["true"], image=api.Image(repository="lab")))
        await apply(stand, wanted)

        async def failed() -> ReplicaObservation | None:
            found = await replica_of(stand, wanted.uid)
            return found if found.reason and found.reason.code == "IMAGE_BUILD_FAILED" else None

        found = await stand.until(failed)
        assert found.reason is not None
        assert "hash" in Path(found.reason.arguments["log"]).read_text()
        await stand.cluster.drain(found.uid, api.CAUSE_USER_STOP, stand.now())
        ended = await ran(stand, wanted)
        assert ended.runs == ()
        assert ended.reason is not None
        assert ended.reason.code == "IMAGE_BUILD_FAILED"
