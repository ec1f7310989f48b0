"""
The local cluster: each replica is a group of processes of this machine, run and witnessed by its shim.

All that it knows lies in folders, so it may be several times at once, or not at all for a while:
`replicas/<name>` for each replica, `closed/<workload>` for each workload that is over,
`volumes/<uid>`, `images/<recipe>`, and `kept/<replica>` for logs of what was forgotten.
"""

from __future__ import annotations

import asyncio
import logging
import os
import py_compile
import select
import shutil
import subprocess
import sys
import time
from binascii import crc32
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import IO, Final, ParamSpec, TypeVar
from urllib.parse import quote

import psutil

from chassis.clock import Clock, SystemClock, milliseconds
from fermion.api.workload import v1 as api
from services.executor import acceptance, folder, gpus, logs, recipe, shim
from services.executor.checks import Checks, OpenRun
from services.executor.cluster import Away, Bound, Gone, Listing, LogEntry, Unhonoured, Usage
from services.executor.folder import Folder, instant
from services.executor.ground import Ground
from services.executor.observation import Instant, ReplicaObservation
from services.executor.session import LocalSession, inside
from services.executor.storage import Volumes, sweep_halves

SPAWN_SECONDS_MAX: Final = 30.0
DAY_SECONDS: Final = 86_400
# What a shim is given of the platform's environment: enough to build an image with.
PASSED_ON: Final = ("PATH", "HOME", "LANG", "TMPDIR", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")
PASSED_ON_PREFIXES: Final = ("PIP_", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Spent:
    """CPU time of processes that come and go, where no control group counts it."""

    seen: dict[tuple[int, float], float] = field(default_factory=dict)

    def add(self, processes: Sequence[psutil.Process]) -> tuple[float, int]:
        """Seconds of all that were ever seen, and bytes of those that are there."""
        memory = 0
        for process in processes:
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                times = process.cpu_times()
                self.seen[process.pid, process.create_time()] = times.user + times.system
                memory += process.memory_info().rss
        return sum(self.seen.values()), memory


class LocalCluster:
    """
    See `cluster.Cluster`.

    `token_of` gives the token of a replica to those images that ask for one; it is not kept here.
    """

    def __init__(
        self, ground: Ground, token_of: Callable[[str], str], clock: Clock | None = None
    ) -> None:
        self._ground = ground
        self._token_of = token_of
        self._clock = clock or SystemClock()
        for path in (ground.replicas, ground.kept, ground.closed, ground.images):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        ground.changes.touch()
        self._volumes = Volumes(ground.root, self._clock)
        self._shim = compiled_shim(ground.root)
        self._boot = shim.boot_id()
        # Folders as they were made, each by the number of its spec.
        self._folders: dict[str, tuple[int, Folder]] = {}
        self._succeeded: dict[str, float] = {}
        self._names: dict[str, str] = {}
        self._checks = Checks(ground, self._clock)
        self._spent: dict[str, Spent] = {}
        self._looked = 0

    @property
    def uid(self) -> str:
        """26 lower-case base32 characters."""
        return self._ground.uid

    async def capabilities(self) -> api.Capabilities:
        """What it can honour now."""
        return self._ground.capabilities()

    async def nodes(self) -> Sequence[api.Node]:
        """This machine."""
        return [self._ground.machine()]

    # Replicas.

    async def apply(self, wanted: api.Workload, replicas: Mapping[str, int]) -> None:
        """Have ranks 0..n-1 of each role, each with its shim."""
        refused = acceptance.refusal(self._ground, wanted)
        if refused is not None:
            raise Unhonoured(*refused)
        names = await _away(self._make, wanted, replicas)
        async with asyncio.TaskGroup() as group:
            for name in names:
                group.create_task(self._have_shim(name), name=f"shim of {name}")

    def _make(self, wanted: api.Workload, replicas: Mapping[str, int]) -> list[str]:
        """Make the folders; names of those that need a shim."""
        if os.path.lexists(self._ground.tombstone(wanted.uid)):
            return []
        names = []
        for group in wanted.groups:
            volumes = {
                mount.volume.volume_uid: self._volumes.data(mount.volume.volume_uid)
                for mount in group.mounts
            }
            for rank in range(replicas.get(group.role, 0)):
                folder.make(self._ground, wanted, group, rank, replicas, volumes)
                names.append(folder.name_of(wanted, group.role, rank))
        return [name for name in names if self._unwatched(name)]

    def _unwatched(self, name: str) -> bool:
        found = self._folder(name)
        record = found.record() if found else None
        return record is None or (
            record.head.phase != shim.ENDED and not record.watched_in(self._boot)
        )

    async def _have_shim(self, name: str) -> None:
        """Have a shim for a folder; Away where none begins. One that lives is left alone."""
        self._succeeded[name] = time.monotonic()
        await _away(self._spawn, name)

    def _spawn(self, name: str) -> None:
        found = self._folder(name)
        if found is None:
            return
        variable = found.spec.one("token_variable")
        given = [("env", f"{variable}={self._token_of(found.uid)}")] if variable else []
        log = found.path / "shim.log"
        with suppress(FileNotFoundError), log.open("ab") as output:
            code = self._begin(found.path, shim.words(given) + shim.WHOLE, output)
            if code != 0 and found.path.exists():
                raise OSError(f"no shim for {name}: {log} tells why")

    def _begin(self, path: Path, given: bytes, output: IO[bytes]) -> int:
        """Run the shim until it has left us; 0 where the replica has a witness then."""
        begun = subprocess.Popen(
            [sys.executable, "-I", "-S", str(self._shim), str(path)],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd="/",
            env=passed_on(os.environ),
            start_new_session=True,
        )
        # Not by a wait with a timeout, which looks again and again and comes late.
        pidfd = os.pidfd_open(begun.pid)
        try:
            assert begun.stdin is not None
            with suppress(BrokenPipeError), begun.stdin:
                begun.stdin.write(given)
            ended = select.poll()
            ended.register(pidfd, select.POLLIN)
            if not ended.poll(SPAWN_SECONDS_MAX * 1000):
                begun.kill()
            return begun.wait()
        finally:
            os.close(pidfd)

    async def drain(self, replica: str, cause: api.Cause.ValueType, deadline: datetime) -> None:
        """Order its end; its shim does the rest."""
        found = await _away(self._find, replica)
        if found is not None:
            word = api.Cause.Name(cause).removeprefix("CAUSE_")
            await _away(found.order, "stop", word, milliseconds(deadline))

    async def close(self, workload_uid: str) -> None:
        """Leave a tombstone; a shim that begins looks for it."""
        await _away(self._close, workload_uid)

    def _close(self, workload_uid: str) -> None:
        self._ground.tombstone(workload_uid).touch()
        shim.sync(str(self._ground.closed))

    async def forget(self, replica: str) -> None:
        """Let the record of an ended replica go; what has not ended is kept."""
        await _away(self._forget, replica)

    def _forget(self, replica: str) -> None:
        found = self._find(replica)
        record = found.record() if found else None
        if found is None or record is None or record.head.phase != shim.ENDED:
            return
        kept = self._ground.kept / replica
        # One step: before it everything is there, after it nothing but the logs counts.
        with suppress(FileNotFoundError):
            found.path.rename(kept)
            os.utime(kept)
        shim.sync(str(self._ground.replicas))
        for known in (self._names, self._spent):
            known.pop(replica, None)
        self._folders.pop(found.name, None)
        shutil.rmtree(kept / "scratch", ignore_errors=True)

    # Looking.

    async def list(self) -> Listing:
        """Look at everything, and give a shim to what has lost its own."""
        self._looked = self._changes()
        listing, orphans = await _away(self._look)
        for name in orphans:
            try:
                await self._have_shim(name)
            except Away as error:
                # It is tried again; what is told of the others is true all the same.
                _log.warning("%s", error)
        return listing

    def _look(self) -> tuple[Listing, Sequence[str]]:
        began = self._clock.now()
        told = began
        found: list[ReplicaObservation] = []
        orphans: list[str] = []
        for one, record in self._records():
            if record is None:
                # It is bound when its shim says so, which is after its folder was there.
                with suppress(FileNotFoundError):
                    told = min(told, instant(one.path.stat().st_ctime_ns))
            else:
                found.append(
                    one.observe(record, self._checks.trouble(one.uid, record.head.runs - 1))
                )
                if record.head.phase == shim.ENDED:
                    continue
                told = min(told, instant(record.head.proof))
            if (record is None or not record.watched_in(self._boot)) and self._may_succeed(
                one.name
            ):
                orphans.append(one.name)
        return Listing(began, tuple(found), told), orphans

    def _may_succeed(self, name: str) -> bool:
        last = self._succeeded.get(name, float("-inf"))
        return time.monotonic() >= last + self._ground.pace.succeed_seconds

    async def changed(self, seconds: float) -> None:
        """Return when a shim has written something down, or after so many seconds."""
        deadline = self._clock.monotonic() + seconds
        while self._changes() == self._looked:
            left = deadline - self._clock.monotonic()
            if left <= 0:
                return
            await asyncio.sleep(min(left, self._ground.pace.look_seconds))

    def _changes(self) -> int:
        return self._ground.changes.stat().st_mtime_ns

    def _records(self) -> Iterator[tuple[Folder, shim.Record | None]]:
        """Every replica's folder with its record; OSError where one cannot be read."""
        for found in self._all():
            record = found.record()
            # It may have been forgotten between the two.
            if record is not None or found.path.exists():
                yield found, record

    def _all(self) -> Iterator[Folder]:
        for name in sorted(os.listdir(self._ground.replicas)):
            found = None if name.startswith(".") else self._folder(name)
            if found is not None:
                self._names[found.uid] = name
                yield found

    def _folder(self, name: str) -> Folder | None:
        path = self._ground.replicas / name
        try:
            number = (path / "spec").stat().st_ino
        except FileNotFoundError:
            self._folders.pop(name, None)
            return None
        known = self._folders.get(name)
        if known is None or known[0] != number:
            read = folder.read(self._ground, path)
            if read is None:
                return None
            known = self._folders[name] = number, read
        return known[1]

    def _find(self, replica: str) -> Folder | None:
        known = self._folder(self._names.get(replica, "-"))
        if known is not None and known.uid == replica:
            return known
        return next((one for one in self._all() if one.uid == replica), None)

    # Volumes.

    async def bind(self, volume: api.Volume) -> Bound:
        """Have a volume, on this machine."""
        since = await _away(self._volumes.bind, volume)
        return Bound(Instant(since), self._ground.node)

    async def delete(self, volume_uid: str) -> Instant:
        """Have no such volume."""
        return Instant(await _away(self._volumes.delete, volume_uid))

    # Logs.

    async def logs(
        self, replica: str, *, after: int = 0, run: int | None = None, follow: bool = False
    ) -> AsyncIterator[LogEntry]:
        """What a replica printed."""
        await _away(self._log_of, replica)
        reader = logs.Reader(lambda: self._log_of(replica), after)
        try:
            while True:
                # Asked before the last look at the log, so that nothing is left behind.
                printed = await _away(self._printed, replica)
                while found := await _away(reader.read):
                    for entry in found:
                        if run in (None, entry.run):
                            yield entry
                if printed is not None and (lost := reader.lost(printed)):
                    last = 0 if run is None else run
                    yield LogEntry(self._clock.now(), 1, b"", last, printed, lost)
                if printed is not None or not follow:
                    return
                await asyncio.sleep(self._ground.pace.look_seconds)
        finally:
            reader.close()

    async def log_tail(self, replica: str, lines: int, run: int | None = None) -> int:
        """The place in its log behind which there are so many last lines."""
        return await _away(lambda: logs.tail(self._log_of(replica), lines, run))

    def _log_of(self, replica: str) -> Path:
        kept = self._ground.kept / replica / "logs"
        if kept.exists():
            return kept
        found = self._find(replica)
        if found is not None:
            return found.path / "logs"
        if kept.exists():
            return kept
        raise Gone(replica)

    def _printed(self, replica: str) -> int | None:
        """All that it printed, once that is known."""
        record = shim.read_record(str(self._log_of(replica).parent))
        ended = record is not None and record.head.phase == shim.ENDED
        return record.head.printed if record is not None and ended else None

    # Inside.

    @asynccontextmanager
    async def execute(
        self,
        replica: str,
        command: Sequence[str],
        *,
        tty: bool,
        rows: int = 24,
        columns: int = 80,
    ) -> AsyncIterator[LocalSession]:
        """Run a command with the replica's environment, in its folder and under its limits."""
        found, start = await self._running(replica)
        async with inside(found, start, command, tty=tty, rows=rows, columns=columns) as session:
            yield session

    async def access(self, replica: str) -> Mapping[str, str]:
        """How the ports of a replica that runs are opened."""
        found, _ = await self._running(replica)
        asks = found.spec.one("token_variable")
        token = f"?token={quote(self._token_of(replica))}" if asks else ""
        addresses = found.addresses()
        return {
            port.name: f"http://{addresses[port.name]}/{token}"
            if port.protocol == api.Port.PROTOCOL_HTTP
            else addresses[port.name]
            for port in found.group.ports
        }

    async def _running(self, replica: str) -> OpenRun:
        """The folder and the open run of a replica; Gone where none is open."""
        found = await _away(self._find, replica)
        record = await _away(found.record) if found else None
        if found is None or record is None or not record.runs or record.runs[-1][1] is not None:
            raise Gone(replica)
        return found, record.runs[-1][0]

    async def usage(self) -> Mapping[str, Usage]:
        """What each running replica has used."""
        return await _away(self._used)

    def _used(self) -> Mapping[str, Usage]:
        found = {}
        devices = (
            gpus.used() if self._ground.gpus.models and not self._ground.gpus.simulated else {}
        )
        for one, record in self._records():
            if record is None or record.head.phase != shim.RUNNING:
                continue
            now = self._clock.now()
            used = self._ground.limits.used(one.name)
            if used is None:
                pids = shim.descendants_of(record.head.pid)
                used = self._spent.setdefault(one.uid, Spent()).add(list(_processes(pids)))
            held = [devices[index] for index in one.gpus() if index in devices]
            found[one.uid] = Usage(
                now,
                *used,
                gpu_milli=sum(use.milli for use in held) // len(held) if held else None,
                gpu_memory_bytes=sum(use.memory_bytes for use in held) if held else None,
            )
        return found

    # What has to be done all the time.

    async def run(self) -> None:
        """Ask the checks, and take away what was left behind."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._check_all(), name="checks")
            group.create_task(self._sweep_all(), name="janitor")

    async def _check_all(self) -> None:
        """Have the checks of every open run asked, and no others."""
        looked = -1
        async with self._checks.asked() as ask:
            while True:
                with suppress(Away):
                    now = self._changes()
                    if now != looked:
                        ask(await _away(self._open_runs))
                        looked = now
                await asyncio.sleep(self._ground.pace.look_seconds)

    def _open_runs(self) -> Sequence[OpenRun]:
        return [
            (one, record.runs[-1][0])
            for one, record in self._records()
            if record and record.runs and record.runs[-1][1] is None
        ]

    async def _sweep_all(self) -> None:
        while True:
            with suppress(Away):
                await _away(self._sweep)
            await asyncio.sleep(self._ground.pace.sweep_seconds)

    def _sweep(self) -> None:
        """Kill what belongs to no replica that is there; remove what is kept no longer."""
        # In this order: what has a group or a process now had its folder before.
        groups = self._ground.limits.names()
        strays = list(self._strays())
        there = {one.name: one for one, _ in self._records()}
        records = {one.uid: record for one, record in self._records()}
        alive = {
            uid for uid, record in records.items() if not record or record.head.phase != shim.ENDED
        }
        for name in groups:
            if name not in there or there[name].uid not in alive:
                self._ground.limits.remove(name)
        for pid, uid in strays:
            if uid not in alive:
                _log.warning("process %d was left behind by %s, and is killed", pid, uid)
                shim.kill(pid, shim.SIGKILL)
        self._volumes.sweep()
        oldest = time.time() - self._ground.pace.log_days * DAY_SECONDS
        for kept in self._ground.kept.iterdir():
            if kept.stat().st_mtime < oldest:
                shutil.rmtree(kept, ignore_errors=True)
        offered = {recipe.place(self._ground.images, one) for one in self._ground.recipes.values()}
        used = {Path(one.spec.one("image")) for one in there.values() if one.spec.one("image")}
        for image in set(self._ground.images.iterdir()) - offered - used:
            shutil.rmtree(image, ignore_errors=True)
        sweep_halves(self._ground.replicas)

    def _strays(self) -> Iterator[tuple[int, str]]:
        """Every process that carries the mark of a replica of this cluster."""
        root = f"FERMION_ROOT={self._ground.replicas}/".encode()
        mark = f"{shim.MARKER}=".encode()
        for name in os.listdir("/proc"):
            if not name.isdigit():
                continue
            try:
                entries = shim.read_file(f"/proc/{name}/environ").split(b"\0")
            except OSError:
                continue
            if any(entry.startswith(root) for entry in entries):
                for entry in entries:
                    if entry.startswith(mark):
                        yield int(name), os.fsdecode(entry[len(mark) :])


async def _away(
    do: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs
) -> Result:
    """Do something with files in a thread; Away where the disk or the kernel does not let us."""
    try:
        return await asyncio.to_thread(do, *args, **kwargs)
    except (OSError, subprocess.SubprocessError) as error:
        raise Away(str(error)) from error


def compiled_shim(root: Path) -> Path:
    """
    Have the shim compiled in the cluster's folder: half the memory of one that compiles itself.

    Its name is that of its source and its interpreter, so that what runs is what was meant.
    """
    source = Path(shim.__file__)
    mark = f"{sys.implementation.cache_tag}-{crc32(source.read_bytes()):08x}"
    path = root / f"shim-{mark}.pyc"
    if not path.exists():
        new = root / f".shim-{mark}.{os.getpid()}"
        py_compile.compile(str(source), str(new), doraise=True, optimize=2)
        new.rename(path)
    return path


def passed_on(environment: Mapping[str, str]) -> dict[str, str]:
    """What a shim may know of the platform's environment; no replica sees even that."""
    return {
        name: value
        for name, value in environment.items()
        if name in PASSED_ON or name.upper().startswith(PASSED_ON_PREFIXES)
    }


def _processes(pids: set[int]) -> Iterator[psutil.Process]:
    for pid in pids:
        with suppress(psutil.NoSuchProcess):
            yield psutil.Process(pid)
