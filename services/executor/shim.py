"""
Runs one replica and is the witness of its runs: one file on the standard library, outlives the platform.

    python -I -S shim.py FOLDER < SECRETS

It imports little, for there is one a replica, and knows nothing of the platform but the folder:

    spec       what to run, in words that WHOLE ends; made with the folder and never changed
    lock       held by the shim that lives; a second one leaves at once
    record     who ran when: see `Record`; the shim alone writes it, and nothing else is evidence
    gaps       when the machine slept meanwhile; the record's, too
    wake       a FIFO; a byte in it lets the shim look at its orders at once
    stop       a symbolic link to `CAUSE DEADLINE_MS`: end it; the first one wins
    restart-N  a symbolic link to `REASON GRACE_MS`: end run N, which counts as a failure
    bound      ports and GPUs that it holds
    notice     {cause, deadline}, there before the first process is told to end
    exit       what the program says of its end; afterwards exits/N
    logs/      segments of what it printed: see `Log`

Orders are links because a link is there whole or not at all, cannot be made twice, and needs no
block of a full disk. SECRETS are words of environment that must not lie on a disk, ended by WHOLE; a
successor gets them anew.

Main cannot outlive its shim (the kernel kills it), so no run goes on unwitnessed. A shim that finds
a record with an open run is a successor: it ends that run at its last proof of life, kills what the
run left, and goes on by the workload's rule.

Times are the shim's own: one reading of the wall, then what CLOCK_BOOTTIME has counted since.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import resource
import select
import struct
import sys
import time

# `socket`, `signal` and `json` would drag in enum and re: half as much memory again, a replica.
from _socket import AF_INET, AF_UNIX, SO_REUSEADDR, SOCK_DGRAM, SOCK_STREAM, SOL_SOCKET, socket
from binascii import crc32

# What a type checker takes for typing's, which costs memory as well.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import NoReturn

MS = 10**6
SECOND = 10**9

# Where a replica stands.
PREPARING, RUNNING, BACKOFF, ENDED = range(4)
# Numbers of `fermion.api.workload.v1.EvidenceClass`.
RECORDED, LAST_PROOF = 1, 2

SIGTERM, SIGKILL, SIGNALS_MAX = 15, 9, 31
# Of a terminal or a machine that goes down: main gets its own, and the shim has to see its end.
IGNORED = (1, 2, 3, 15)
PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
SIG_BLOCK, SIG_SETMASK = 0, 2
# Held back, so that it tells that this process was stopped and goes on.
SIGCONT = 18
# A set of signals, as the C library has it: a bit each, from 1.
CONTINUED = (1 << (SIGCONT - 1)).to_bytes(128, "little")
SIG_DFL, SIG_IGN = ctypes.c_void_p(0), ctypes.c_void_p(1)

BACKOFF_MAX = 300 * SECOND
REBUILD_FIRST = 10 * SECOND
# How long it waits before it looks again at what it cannot be told of.
LOOK = 50 * MS
AGAIN = 10 * MS
GROUP_TRIES = 50
# An end that is seen later than so many ticks after the last is dated at the last.
TICKS_LATE = 2
# What BOOTTIME grew over MONOTONIC by less is the time between two readings.
GAP_LEAST = 100 * MS
PAIR_MAX = MS
PAIR_TRIES = 5
PIPE_BYTES = 65536
EXIT_REPORT_BYTES = 4096
MARKER = "FERMION_REPLICA"
# Ends words that must not be taken for all when they are half.
WHOLE = b"whole=\0"
# Name of the port that each rank of a rendezvous has; no port of a workload can be called so.
RANK_PORT = "_rank"


# ---- time


class Clock:
    """The kernel's clocks, in nanoseconds."""

    # Of the process that asks first: a shim asks once that it stands by itself.
    _waits = -1

    def wall(self) -> int:
        """Since 1970; may be set."""
        return time.time_ns()

    def boottime(self) -> int:
        """Since the machine started, sleep included."""
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME)

    def monotonic(self) -> int:
        """Since the machine started, without its sleep."""
        return time.monotonic_ns()

    def turns(self) -> Turns:
        """How this process got to its turns so far, from readings that nothing came between."""
        for _ in range(PAIR_TRIES):
            before = switches()
            try:
                if self._waits < 0:
                    self._waits = os.open("/proc/self/schedstat", os.O_RDONLY | os.O_CLOEXEC)
                _, waited, _ = os.pread(self._waits, 64, 0).split()
            except (OSError, ValueError):
                break
            if switches() == before:
                return Turns(int(waited), *before)
        return Turns(0, -1, -1)


class Turns:
    """
    How a process got to its turns: nanoseconds that it could have run and others did, how often it
    went to sleep, and how often it was sent off while it ran; the last two -1 where it is not known.
    """

    def __init__(self, waited: int, slept: int, sent_off: int) -> None:
        self.waited, self.slept, self.sent_off = waited, slept, sent_off

    def woken_since(self, before: Turns) -> int:
        """Nanoseconds from when it was woken until it ran; 0 where not all that it waited was that."""
        once = self.slept == before.slept + 1 and self.sent_off == before.sent_off
        return self.waited - before.waited if once else 0


class Timeline:
    """A shim's own time: one reading of the wall, then what CLOCK_BOOTTIME has counted since."""

    def __init__(self, clock: Clock, wall: int = 0, boottime: int = 0, not_before: int = 0) -> None:
        """Take a predecessor's reading where there is one; a new one is never before `not_before`."""
        self.clock = clock
        self.wall, self.boottime = wall, boottime
        if not wall:
            self.wall, self.boottime = clock.wall(), clock.boottime()
        self.wall += max(0, not_before - self.now())
        self._awake = self._difference()

    def now(self) -> int:
        """Nanoseconds since 1970."""
        return self.wall + self.clock.boottime() - self.boottime

    def slept(self) -> tuple[int, int] | None:
        """Tell from when to when the machine slept since this was asked last."""
        found = self._difference()
        grown = found - self._awake
        if grown < GAP_LEAST:
            return None
        self._awake = found
        now = self.now()
        return now - grown, now

    def _difference(self) -> int:
        """Sleep of the machine so far, from readings that nothing came between."""
        for _ in range(PAIR_TRIES):
            before, boottime = self.clock.monotonic(), self.clock.boottime()
            if self.clock.monotonic() - before < PAIR_MAX:
                break
        return boottime - before


# ---- words: what is asked of a shim, and what it holds


def words(pairs: Iterable[tuple[str, str]]) -> bytes:
    """Write `name=value`, each ended by NUL; raises ValueError where one is in a value."""
    found = []
    for name, value in pairs:
        if "\0" in value:
            raise ValueError(f"a NUL in {name}")
        found.append(os.fsencode(f"{name}={value}") + b"\0")
    return b"".join(found)


class Words:
    """Named values in order; a name may have several."""

    def __init__(self, data: bytes) -> None:
        self._values: dict[str, list[str]] = {}
        for entry in data.split(b"\0")[:-1]:
            name, _, value = os.fsdecode(entry).partition("=")
            self._values.setdefault(name, []).append(value)

    def all(self, name: str) -> list[str]:
        """Every value of a name."""
        return self._values.get(name, [])

    def one(self, name: str) -> str:
        """The first value of a name; empty where it has none."""
        return self.all(name)[0] if self.all(name) else ""

    def number(self, name: str) -> int:
        """The first value of a name as a number; 0 where it has none."""
        return int(self.one(name) or 0)

    def pairs(self, name: str) -> list[tuple[str, str]]:
        """Values of a name that are `key=value` themselves."""
        return [(key, rest) for key, _, rest in (one.partition("=") for one in self.all(name))]


def whole(data: bytes) -> bytes:
    """Words that are all there; ValueError where their end is missing."""
    if not data.endswith(WHOLE):
        raise ValueError("words without their end")
    return data


def held(folder: str) -> Words | None:
    """Tell which ports (`port=NAME=NUMBER`) and GPUs (`gpu=INDEX`) a replica holds; None before it does."""
    try:
        return Words(read_file(f"{folder}/bound"))
    except FileNotFoundError:
        return None


def order(folder: str, name: str) -> tuple[str, int] | None:
    """Read an order: its word and its milliseconds."""
    try:
        word, _, milliseconds = os.readlink(f"{folder}/{name}").partition(" ")
    except OSError:
        return None
    return word, int(milliseconds)


# ---- the record


class Slot:
    """Fields at a fixed place of the record, sealed so that half of them is never taken for all."""

    FORMAT = struct.Struct("<")
    __slots__: tuple[str, ...] = ()

    def __init__(self, *values: int | str) -> None:
        for name, value in zip(self.__slots__, values, strict=True):
            setattr(self, name, value)

    def pack(self, size: int) -> bytes:
        """Write the fields, sealed, in so many bytes."""
        values = (getattr(self, name) for name in self.__slots__)
        body = self.FORMAT.pack(*(v.encode() if isinstance(v, str) else v for v in values))
        return (SEAL.pack(len(body), crc32(body)) + body).ljust(size, b"\0")

    @classmethod
    def fields(cls, data: bytes) -> tuple[int | str, ...] | None:
        """Read the fields; None where they were never written whole."""
        if len(data) < SEAL.size + cls.FORMAT.size:
            return None
        length, check = SEAL.unpack_from(data)
        body = data[SEAL.size : SEAL.size + length]
        if length != cls.FORMAT.size or crc32(body) != check:
            return None
        return tuple(
            v.rstrip(b"\0").decode(errors="ignore") if isinstance(v, bytes) else v
            for v in cls.FORMAT.unpack(body)
        )


class Head(Slot):
    """Who witnesses, by which reading of the wall, and where the replica stands."""

    FORMAT = struct.Struct("<36sIQqqqqBIq32s256sQ")
    __slots__ = (
        *("boot", "pid", "ticks", "wall", "boottime", "scheduled", "proof"),
        *("phase", "runs", "until", "reason", "detail", "printed"),
    )
    # Boot of the machine, the shim's number in it, and when that began: together they never come again.
    boot: str
    pid: int
    ticks: int
    # The reading of the wall, and what CLOCK_BOOTTIME said then.
    wall: int
    boottime: int
    # When it was bound.
    scheduled: int
    # All that happened until then stands in the record, and the open run was alive then.
    proof: int
    phase: int
    # How many have begun.
    runs: int
    # When the next begins, in BACKOFF.
    until: int
    # Why main does not run.
    reason: str
    detail: str
    # Bytes printed, lost ones included; said at the end.
    printed: int


class Start(Slot):
    """The begin of a run; written before main is anything but a fork of the shim."""

    FORMAT = struct.Struct("<IIQ36sqqq")
    __slots__ = (*("ordinal", "pid", "ticks", "boot"), *("at", "boottime", "monotonic"))
    ordinal: int
    pid: int
    ticks: int
    boot: str
    at: int
    boottime: int
    monotonic: int


class End(Slot):
    """The end of a run; its place is there before the run begins."""

    FORMAT = struct.Struct("<IqBiB32s256s")
    __slots__ = (*("ordinal", "at", "evidence"), *("exit", "signal", "reason", "detail"))
    ordinal: int
    at: int
    evidence: int
    exit: int
    signal: int
    reason: str
    detail: str


class Gap(Slot):
    """A time in a run when the machine slept."""

    FORMAT = struct.Struct("<Iqq")
    __slots__ = (*("ordinal",), *("lost", "found"))
    ordinal: int
    lost: int
    found: int


SEAL = struct.Struct("<II")
HEAD_BYTES = 512
RUNS_AT, RUN_BYTES, START_BYTES, RUNS_KEPT = 512, 512, 128, 256
GAP_BYTES, GAPS_ROOM = 32, 4096
READ_TRIES = 20


class Record:
    """
    What a shim wrote down: its head, its last runs with their ends, and all gaps in any of them.

    Every slot has a place of its own that is on the disk before it is needed; runs go round in a ring.
    """

    def __init__(self, head: Head, runs: list[tuple[Start, End | None]], gaps: list[Gap]) -> None:
        self.head = head
        self.runs = runs
        self.gaps = gaps

    @property
    def watched(self) -> bool:
        """Whether the shim that wrote it lives."""
        return self.watched_in(boot_id())

    def watched_in(self, boot: str) -> bool:
        """The same, for who knows which boot of the machine this is."""
        return self.head.boot == boot and self.head.ticks == started(self.head.pid)


def read_record(folder: str) -> Record | None:
    """Read a replica's record; None where no shim has begun it; OSError where it is damaged."""
    try:
        file = os.open(f"{folder}/record", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        for _ in range(READ_TRIES):
            data = os.pread(file, HEAD_BYTES, 0)
            if not data.strip(b"\0"):
                return None
            head = Head.fields(data)
            if head is not None:
                known = Head(*head)
                return Record(known, _read_runs(file, known.runs), _read_gaps(folder))
            # It is just being written.
            time.sleep(0.001)
    finally:
        os.close(file)
    raise OSError(errno.EIO, "the record is damaged", f"{folder}/record")


def _read_runs(file: int, count: int) -> list[tuple[Start, End | None]]:
    data = os.pread(file, RUN_BYTES * min(count, RUNS_KEPT), RUNS_AT)
    runs: list[tuple[Start, End | None]] = []
    for ordinal in range(max(0, count - RUNS_KEPT), count):
        at = run_place(ordinal) - RUNS_AT
        start = Start.fields(data[at : at + START_BYTES])
        end = End.fields(data[at + START_BYTES : at + RUN_BYTES])
        # Another's slot is that of a run which has not begun yet.
        if start is not None and start[0] == ordinal:
            runs.append((Start(*start), End(*end) if end and end[0] == ordinal else None))
    return runs


def _read_gaps(folder: str) -> list[Gap]:
    try:
        data = read_file(f"{folder}/gaps")
    except FileNotFoundError:
        return []
    found: list[Gap] = []
    # Behind the last one there is only room.
    while gap := Gap.fields(data[GAP_BYTES * len(found) :][:GAP_BYTES]):
        found.append(Gap(*gap))
    return found


def run_place(ordinal: int) -> int:
    """Where the slot of a run begins."""
    return RUNS_AT + RUN_BYTES * (ordinal % RUNS_KEPT)


# ---- the log

# Magic, bytes, place of the first one, milliseconds, run, stream.
FRAME = struct.Struct("<4sIQQIB3x")
FRAME_MAGIC = b"FLOG"


def segments(folder: str) -> list[int]:
    """Places where the segments of a log begin, in order; each is the name of its file."""
    try:
        return sorted(int(name) for name in os.listdir(folder) if name.isdigit())
    except FileNotFoundError:
        return []


class Log:
    """
    What a replica printed, in frames {place, ms, stream, run, bytes}, in files of bounded size.

    Places count what was printed, over all runs and with what was lost: where a frame does not begin
    at the end of the one before, the bytes between were dropped, for the disk was full.
    """

    def __init__(self, folder: str, segment_bytes: int, bytes_max: int) -> None:
        self._folder = folder
        self._segment_bytes, self._bytes_max = segment_bytes, bytes_max
        self._file = -1
        self._size = 0
        self.place = 0
        os.makedirs(folder, exist_ok=True)
        known = segments(folder)
        if known:
            self._go_on(known[-1])

    def write(self, milliseconds: int, stream: int, run: int, data: bytes) -> None:
        """Keep what was printed; drop it where there is no room. Never waits, never raises."""
        place, self.place = self.place, self.place + len(data)
        try:
            if self._file < 0 or self._size >= self._segment_bytes:
                self._begin(place)
            frame = FRAME.pack(FRAME_MAGIC, len(data), place, milliseconds, run, stream)
            written = os.writev(self._file, (frame, data))
        except OSError:
            written = 0
        if written == FRAME.size + len(data):
            self._size += written
        elif written:
            # A full disk took a part; it must not be read.
            os.ftruncate(self._file, self._size)
            os.lseek(self._file, self._size, os.SEEK_SET)

    def close(self) -> None:
        """Let the file go."""
        if self._file >= 0:
            os.close(self._file)

    def _begin(self, place: int) -> None:
        file = os.open(
            f"{self._folder}/{place:020d}",
            os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC,
            0o600,
        )
        if self._file >= 0:
            os.close(self._file)
        self._file, self._size = file, 0
        known = segments(self._folder)
        for first in known[: -max(2, self._bytes_max // self._segment_bytes)]:
            os.unlink(f"{self._folder}/{first:020d}")

    def _go_on(self, first: int) -> None:
        """Go on behind the last whole frame of a predecessor."""
        path = f"{self._folder}/{first:020d}"
        data = read_file(path)
        at, self.place = 0, first
        while len(data) >= at + FRAME.size:
            magic, length, place, *_ = FRAME.unpack_from(data, at)
            if magic != FRAME_MAGIC or len(data) < at + FRAME.size + length:
                break
            at += FRAME.size + length
            self.place = place + length
        self._file = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        os.ftruncate(self._file, at)
        os.lseek(self._file, at, os.SEEK_SET)
        self._size = at


# ---- the kernel

_libc = ctypes.CDLL(None, use_errno=True)


def prctl(option: int, value: int) -> None:
    """Ask something for this process."""
    if _libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")


def was_stopped() -> bool:
    """Whether this process was stopped by a signal and went on since this was asked last."""
    pending = ctypes.create_string_buffer(128)
    _libc.sigpending(pending)
    if not pending.raw[(SIGCONT - 1) // 8] & CONTINUED[(SIGCONT - 1) // 8]:
        return False
    _libc.sigtimedwait(CONTINUED, None, bytes(16))
    return True


def read_file(path: str) -> bytes:
    """All of a file."""
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        found = []
        while part := os.read(file, PIPE_BYTES):
            found.append(part)
        return b"".join(found)
    finally:
        os.close(file)


def write_file(path: str, text: str) -> None:
    """Overwrite a file of the kernel's."""
    file = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(file, text.encode())
    finally:
        os.close(file)


def replace_file(path: str, data: bytes, mode: int) -> None:
    """Have a file with these bytes, seen whole or not at all."""
    file = os.open(f"{path}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    try:
        if os.write(file, data) < len(data):
            raise OSError(errno.ENOSPC, "no room", path)
    finally:
        os.close(file)
    os.rename(f"{path}.new", path)


def boot_id() -> str:
    """This boot of the machine."""
    return read_file("/proc/sys/kernel/random/boot_id").decode().strip()


def switches() -> tuple[int, int]:
    """How often this process went to sleep, and was sent off while it ran."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_nvcsw, used.ru_nivcsw


def stat_of(pid: int) -> list[str]:
    """The fields of a process from its state on; empty where there is none."""
    try:
        text = read_file(f"/proc/{pid}/stat").decode(errors="replace")
    except OSError:
        return []
    # The name of a program may hold spaces and brackets.
    return text[text.rindex(")") + 2 :].split()


def started(pid: int) -> int:
    """When a process began, in the kernel's ticks; -1 where none of that number runs."""
    fields = stat_of(pid)
    return int(fields[19]) if fields and fields[0] not in "ZX" else -1


def children_of(pid: int) -> list[int]:
    """Numbers of the processes that a process has begun, or has adopted."""
    found: list[int] = []
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            found += map(int, read_file(f"/proc/{pid}/task/{thread}/children").split())
    except OSError:
        pass
    return found


def descendants_of(pid: int) -> set[int]:
    """All that came from a process, without itself."""
    found: set[int] = set()
    waiting = [pid]
    while waiting:
        for child in children_of(waiting.pop()):
            if child not in found:
                found.add(child)
                waiting.append(child)
    return found


def marked(uid: str) -> Iterator[int]:
    """Processes that carry a replica's uid in the environment that they began with."""
    mark = f"\0{MARKER}={uid}\0".encode()
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                found = read_file(f"/proc/{name}/environ")
            except OSError:
                continue
            if mark in b"\0" + found + b"\0":
                yield int(name)


def members(group: str) -> set[int]:
    """Processes of a control group."""
    try:
        return set(map(int, read_file(f"{group}/cgroup.procs").split()))
    except OSError:
        return set()


def resident_bytes(pid: int) -> int:
    """Memory that a process has in use; 0 where there is none."""
    try:
        return int(read_file(f"/proc/{pid}/statm").split()[1]) * resource.getpagesize()
    except OSError:
        return 0


def kill(pid: int, number: int) -> None:
    """Send a signal, if there is anybody to get it."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


def hold(name: str) -> socket | None:
    """
    Take a name that one process of this machine can have at a time; None where another has it.

    It is a socket's name in the kernel alone: free again when its holder is gone, however it went.
    """
    lock = socket(AF_UNIX, SOCK_DGRAM)
    try:
        lock.bind(f"\0{name}")
    except OSError:
        lock.close()
        return None
    return lock


def listens(port: int) -> bool:
    """Tell whether anybody listens on a port."""
    probe = socket(AF_INET, SOCK_STREAM)
    probe.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
    try:
        probe.bind(("0.0.0.0", port))
    except OSError:
        return True
    finally:
        probe.close()
    return False


def variable(name: str) -> str:
    """Write the name of a port or a role as a part of a variable's."""
    return name.replace("-", "_").upper()


def substituted(text: str, values: dict[str, str]) -> str:
    """Put in the value of each `$(FERMION_…)`; what has none stays as it stands."""
    found, rest = "", text
    while "$(FERMION_" in rest:
        before, _, rest = rest.partition("$(FERMION_")
        name, end, after = rest.partition(")")
        value = values.get(f"FERMION_{name}") if end else None
        if value is None:
            found += f"{before}$(FERMION_"
        else:
            found, rest = found + before + value, after
    return found + rest


# ---- the shim


class Shim:
    """One replica, from its folder to its end."""

    def __init__(self, folder: str, secrets: bytes, clock: Clock, tell: Callable[[], None]) -> None:
        """Begin the record, or go on with a predecessor's; then `tell` that somebody witnesses."""
        self.folder = folder
        self.clock = clock
        self.spec = Words(whole(read_file(f"{folder}/spec")))
        self.secrets = Words(secrets).pairs("env")
        self.tick = self.spec.number("tick_ms") * MS
        self.groups = self.spec.all("cgroup")
        self.log = Log(
            f"{folder}/logs", self.spec.number("segment_bytes"), self.spec.number("log_bytes_max")
        )
        self.stop: tuple[str, int] | None = None
        self.restart = ""
        self.main = 0
        self.run = 0
        # Main's end as the kernel told it, and the shim's times of seeing it.
        self.status: int | None = None
        self.seen = self.seen_monotonic = 0
        # Whether main may have ended while this process was stopped.
        self.stopped = False
        self.builder = self.built_at = self.builds = 0
        self.told = self.restarted = False
        self.kill_at, self.start_at = sys.maxsize, 0
        # What it holds, and the locks of that.
        self.ports: dict[str, str] = {}
        self.gpus: list[str] = []
        self.locks: list[socket] = []
        # Pipes of main to the numbers of their streams.
        self.pipes: dict[int, int] = {}
        self.errors = self.pidfd = -1
        self.poller = select.poll()
        self.wake = os.open(f"{folder}/wake", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self.poller.register(self.wake, select.POLLIN)

        known = read_record(folder)
        self.file = os.open(f"{folder}/record", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self.timeline, self.head = self._introduce(known)
        self.gaps = len(known.gaps) if known else 0
        self.gap_file = os.open(f"{folder}/gaps", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self.last: End | None = None
        self.last_tick = clock.monotonic()
        if known is not None:
            self._take_over(known)
        self._write_head()
        tell()

    def live(self) -> None:
        """Run main by the rule of the workload; return when nothing of the replica is left."""
        if self.head.phase == ENDED:
            return
        self._read_orders()
        if self.head.runs == 0 and os.path.lexists(self.spec.one("closed")):
            # Whoever made the folder did not know yet that the workload was finished.
            self.stop = ("PLATFORM", 0)
        while self.last is None or self._again(self.last):
            if not (self._rest() and self._make_ready()):
                break
            self.last = self._run()
        self._leave()

    # -- the record

    def _introduce(self, known: Record | None) -> tuple[Timeline, Head]:
        """Stand as the witness; times go on where a predecessor's ended."""
        boot, pid = boot_id(), os.getpid()
        if known is None:
            timeline = Timeline(self.clock)
            now = timeline.now()
            head = Head(
                *(boot, pid, started(pid), timeline.wall, timeline.boottime),
                *(now, now, PREPARING, 0, 0, "", "", 0),
            )
            return timeline, head
        head = known.head
        if head.boot == boot:
            timeline = Timeline(self.clock, head.wall, head.boottime)
        else:
            latest = max([head.proof, *(end.at for _, end in known.runs if end)])
            timeline = Timeline(self.clock, not_before=latest)
        self.restarted = head.boot != boot
        head.boot, head.pid, head.ticks = boot, pid, started(pid)
        head.wall, head.boottime = timeline.wall, timeline.boottime
        return timeline, head

    def _take_over(self, known: Record) -> None:
        """End the run that a predecessor left open, and what is left of it."""
        if not known.runs:
            return
        start, self.last = known.runs[-1]
        self.run = start.ordinal
        if self.last is None:
            self._keep_exit_report(start.ordinal)
            reason = "MACHINE_RESTARTED" if self.restarted else "WITNESS_LOST"
            at = max(start.at, known.head.proof)
            self._write_end(End(start.ordinal, at, LAST_PROOF, 0, SIGKILL, reason, ""))
        if self.head.phase != ENDED:
            self._take_away()
            self.head.proof = self.timeline.now()

    def _write_head(self) -> None:
        os.pwrite(self.file, self.head.pack(HEAD_BYTES), 0)

    def _write_end(self, end: End) -> None:
        data = end.pack(RUN_BYTES - START_BYTES)
        os.pwrite(self.file, data, run_place(end.ordinal) + START_BYTES)
        os.fdatasync(self.file)
        self.last = end
        self._tell()

    def _stand(self, phase: int, reason: str = "", detail: str = "", until: int = 0) -> None:
        """Write down where the replica stands, if that is news."""
        head = self.head
        if (head.phase, head.reason, head.detail, head.until) != (phase, reason, detail, until):
            self._move(phase, reason, detail, until)

    def _move(self, phase: int, reason: str = "", detail: str = "", until: int = 0) -> None:
        """Write down where the replica stands, and let it be known."""
        head = self.head
        head.phase, head.reason, head.detail, head.until = phase, reason, detail, until
        self._write_head()
        os.fdatasync(self.file)
        self._tell()

    def _tell(self) -> None:
        """Let everybody who watches the cluster look."""
        now = time.time_ns()
        try:
            os.utime(self.spec.one("changes"), ns=(now, now))
        except OSError:
            pass

    # -- one turn

    def _turn(self, until: int) -> None:
        """Wait for news, at most to a monotonic time: witness, pump, read orders."""
        due = min(until, self.last_tick + self.tick)
        left = due - self.clock.monotonic()
        before = self.clock.turns()
        ready = self.poller.poll(max(0, left) / MS)
        self._witness(self._told_at(due, before, ready))
        for file, _ in ready:
            if file == self.wake:
                os.read(self.wake, PIPE_BYTES)
                self._read_orders()
            elif file in self.pipes:
                self._pump(file)

    def _told_at(self, due: int, before: Turns, ready: list[tuple[int, int]]) -> int:
        """
        When the kernel told of main's end; 0 where it told of something else.

        On a busy machine it takes a while until this process has its turn, and that is no time of main's.
        Where something else may have woken it, or it was time, main may have run in that while.
        """
        now, monotonic = self.timeline.now(), self.clock.monotonic()
        if not any(file == self.pidfd for file, _ in ready):
            return 0
        waited = self.clock.turns().woken_since(before)
        if monotonic - waited >= due or not nothing_but(self.pidfd, ready):
            return now
        return now - waited

    def _witness(self, told_at: int = 0) -> None:
        """See main's end, or write down that it lives; never the second before the first."""
        now, monotonic = self.timeline.now(), self.clock.monotonic()
        self._reap()
        stopped = was_stopped()
        if stopped:
            # Main may have ended in a stop that came behind the first look.
            self._reap()
        gap = self.timeline.slept()
        if self.main and not self.seen:
            if gap is not None:
                self._write_gap(*gap)
            if self.status is not None:
                # No end lies in a time when the machine slept.
                self.seen = told_at if told_at and gap is None else self.timeline.now()
                self.seen_monotonic = self.clock.monotonic()
                self.stopped = stopped
        if self.seen or monotonic < self.last_tick + self.tick:
            return
        self.last_tick = monotonic
        self.head.proof = now
        self._write_head()
        self._read_orders()
        self._hold_memory()

    def _reap(self) -> None:
        try:
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return
                if pid == self.main:
                    self.status = status
                elif pid == self.builder:
                    self.builder = 0
        except ChildProcessError:
            pass

    def _write_gap(self, lost: int, found: int) -> None:
        gap = Gap(self.run, max(lost, self.start_at), found)
        os.pwrite(self.gap_file, gap.pack(GAP_BYTES), GAP_BYTES * self.gaps)
        self.gaps += 1
        self._tell()

    def _read_orders(self) -> None:
        if self.stop is None:
            self.stop = order(self.folder, "stop")
        if self.main and not self.restart:
            found = order(self.folder, f"restart-{self.run}")
            if found is not None:
                self.restart = found[0]
                self.kill_at = min(self.kill_at, self.clock.monotonic() + found[1] * MS)
                kill(self.main, SIGTERM)

    def _hold_memory(self) -> None:
        """Where no control group does it: kill what has grown over its limit."""
        limit = self.spec.number("memory_watched")
        if limit and self.main and sum(map(resident_bytes, descendants_of(os.getpid()))) > limit:
            self.restart = "OOM_KILLED"
            self._kill_all()

    def _pump(self, file: int) -> bool:
        """Move what was printed into the log; False at its end."""
        try:
            data = os.read(file, PIPE_BYTES)
        except BlockingIOError:
            return False
        if data:
            self.log.write(self.timeline.now() // MS, self.pipes[file], self.run, data)
            return True
        self._close_pipe(file)
        return False

    def _close_pipe(self, file: int) -> None:
        self.poller.unregister(file)
        del self.pipes[file]
        os.close(file)

    # -- what main needs

    def _make_ready(self) -> bool:
        """Wait for all that main needs; False once told to stop."""
        needs: tuple[Callable[[], tuple[str, str] | None], ...] = (
            *(self._volumes, self._image, self._limits, self._ports, self._gpus),
            *(self._ranks, self._place),
        )
        for need in needs:
            while not self.stop and (missing := need()) is not None:
                self._stand(BACKOFF if self.head.runs else PREPARING, *missing)
                self._turn(self.clock.monotonic() + LOOK)
        return self.stop is None

    def _volumes(self) -> tuple[str, str] | None:
        for path in self.spec.all("volume"):
            if not os.path.isdir(path):
                return "VOLUME_NOT_BOUND", os.path.basename(os.path.dirname(path))
        return None

    def _image(self) -> tuple[str, str] | None:
        """Have the image made by the command that the spec names for it."""
        image, now = self.spec.one("image"), self.clock.monotonic()
        if not image or os.path.exists(f"{image}/ready"):
            return None
        if self.builder:
            return "IMAGE_BUILDING", ""
        if self.builds and now < self.built_at + min(
            REBUILD_FIRST << (self.builds - 1), BACKOFF_MAX
        ):
            return "IMAGE_BUILD_FAILED", ""
        self.built_at, self.builds = now, self.builds + 1
        log = os.open(
            f"{image}/build.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600
        )
        gate, opener = os.pipe()
        self.builder = os.fork()
        if self.builder == 0:
            command = self.spec.all("prepare")
            self._become(command, dict(os.environ), "/", log, log, gate, opener, -1)
        for file in (log, gate):
            os.close(file)
        os.write(opener, b"\0")
        os.close(opener)
        return "IMAGE_BUILDING", ""

    def _limits(self) -> tuple[str, str] | None:
        """Make the control groups that main is put into."""
        try:
            for group in self.groups:
                os.makedirs(group, exist_ok=True)
            for path, value in self.spec.pairs("limit"):
                write_file(path, value)
        except OSError as error:
            return "LIMITS_NOT_SET", str(error)
        return None

    def _ports(self) -> tuple[str, str] | None:
        """Hold a port for each name: those of before, else free ones."""
        before = held(self.folder)
        known = dict(before.pairs("port")) if before else {}
        first, count = self.spec.number("ports_first"), self.spec.number("ports")
        for name in self.spec.all("port"):
            if name in self.ports:
                continue
            # Not all replicas begin to look at the same place.
            shift = crc32(f"{self.folder} {name}".encode())
            tried = (first + (shift + place) % count for place in range(count))
            for port in (int(known.get(name, 0)), *tried):
                lock = hold(f"fermion-port-{port}") if port and not listens(port) else None
                if lock is not None:
                    self.locks.append(lock)
                    self.ports[name] = str(port)
                    break
            else:
                return "PORTS_TAKEN", f"{first}-{first + count - 1}"
        return None

    def _gpus(self) -> tuple[str, str] | None:
        """Hold as many GPUs as are asked for, or none."""
        wanted = self.spec.number("gpus")
        if len(self.gpus) == wanted:
            return None
        found: dict[str, socket] = {}
        for index in self.spec.all("gpu"):
            lock = hold(f"{self.spec.one('gpu_lock')}-{index}") if len(found) < wanted else None
            if lock is not None:
                found[index] = lock
        if len(found) < wanted:
            for lock in found.values():
                lock.close()
            return "GPUS_TAKEN", str(wanted)
        self.locks += found.values()
        self.gpus += found
        return None

    def _ranks(self) -> tuple[str, str] | None:
        """Say what is held, and wait until every rank of the group has said so."""
        ports = (("port", f"{name}={port}") for name, port in self.ports.items())
        said = words([*ports, *(("gpu", index) for index in self.gpus)])
        path = f"{self.folder}/bound"
        try:
            if not os.path.exists(path) or read_file(path) != said:
                replace_file(path, said, 0o600)
        except OSError as error:
            return "DISK_FULL", str(error)
        missing = sum(held(self._beside(peer)) is None for peer in self.spec.all("peer"))
        return ("RANKS_MISSING", str(missing)) if missing else None

    def _place(self) -> tuple[str, str] | None:
        """Have room on the disk for the next run, so that neither its end nor a gap wants for it."""
        try:
            os.pwrite(self.gap_file, bytes(GAPS_ROOM), GAP_BYTES * self.gaps)
            os.pwrite(self.file, bytes(RUN_BYTES), run_place(self.head.runs))
            if self.head.runs == 0:
                # All that whoever made the folder has left to us: one after the other it is one wait.
                for name in ("spec", "workload", "."):
                    sync(f"{self.folder}/{name}")
                sync(os.path.dirname(self.folder))
        except OSError as error:
            return "DISK_FULL", str(error)
        return None

    def _beside(self, peer: str) -> str:
        """Folder of a peer, `ROLE/NAME`."""
        return f"{os.path.dirname(self.folder)}/{peer.partition('/')[2]}"

    def _environment(self) -> dict[str, str]:
        """What main finds: the workload's own, under what the platform promises."""
        promised = dict(self.spec.pairs("promise"))
        gpus = ",".join(self.gpus)
        promised |= {"FERMION_GPUS": gpus, "CUDA_VISIBLE_DEVICES": gpus}
        for name, port in self.ports.items():
            if name != RANK_PORT:
                promised[f"FERMION_PORT_{variable(name)}"] = port
        ranks: dict[str, list[str]] = {}
        for peer in self.spec.all("peer"):
            other = held(self._beside(peer)) or Words(b"")
            port = dict(other.pairs("port")).get(RANK_PORT, "")
            ranks.setdefault(peer.partition("/")[0], []).append(f"127.0.0.1:{port}")
        for role, addresses in ranks.items():
            promised[f"FERMION_RANKS_{variable(role)}".rstrip("_")] = ",".join(addresses)
            promised.setdefault("FERMION_RENDEZVOUS", addresses[0])
        own = {name: substituted(value, promised) for name, value in self.spec.pairs("env")}
        return {**dict(self.spec.pairs("default")), **own, **dict(self.secrets), **promised}

    # -- a run

    def _run(self) -> End:
        """Run main once; return its end when it is written and nothing of it is left."""
        environment = self._environment()
        command = [substituted(word, environment) for word in self.spec.all("command")]
        remove(f"{self.folder}/exit")
        kills = self._oom_kills()
        self._start(command, environment)
        while not self.seen:
            self._order_end()
            if self.clock.monotonic() >= self.kill_at:
                self._kill_all()
                self.kill_at = self.clock.monotonic() + AGAIN
            self._turn(self.kill_at)
        end = self._judge(self._oom_kills() > kills)
        self._keep_exit_report(self.run)
        self._write_end(end)
        self.main = self.seen = 0
        self._take_away()
        for file in list(self.pipes):
            while self._pump(file):
                pass
            if file in self.pipes:
                self._close_pipe(file)
        return end

    def _start(self, command: list[str], environment: dict[str, str]) -> None:
        """Fork; write down who begins when; only then let it be main."""
        out, out_end = os.pipe()
        error, error_end = os.pipe()
        gate, opener = os.pipe()
        self.errors, report = os.pipe()
        self.run = self.head.runs
        self.status, self.restart, self.told = None, "", False
        self.kill_at = sys.maxsize
        self.main = os.fork()
        if self.main == 0:
            cwd = self.spec.one("cwd")
            self._become(command, environment, cwd, out_end, error_end, gate, opener, report)
        for file in (out_end, error_end, gate, report):
            os.close(file)
        for file, stream in ((out, 1), (error, 2)):
            os.set_blocking(file, False)
            self.pipes[file] = stream
            self.poller.register(file, select.POLLIN)
        for group in self.groups:
            write_file(f"{group}/cgroup.procs", str(self.main))
        self.pidfd = os.pidfd_open(self.main)
        self.poller.register(self.pidfd, select.POLLIN)
        self.start_at = max(self.timeline.now(), self.last.at if self.last else 0)
        start = Start(
            *(self.run, self.main, started(self.main), self.head.boot, self.start_at),
            *(self.clock.boottime(), self.clock.monotonic()),
        )
        os.pwrite(self.file, start.pack(START_BYTES), run_place(self.run))
        self.head.runs += 1
        self.head.proof = max(self.head.proof, self.start_at)
        self.last_tick = self.clock.monotonic()
        # Also where the run before has just ended: it is durable before main is anything.
        self._move(RUNNING)
        os.write(opener, b"\0")
        os.close(opener)

    def _become(
        self,
        command: list[str],
        environment: dict[str, str],
        cwd: str,
        out: int,
        error: int,
        gate: int,
        opener: int,
        report: int,
    ) -> NoReturn:
        """Be a command, once the gate opens; in the child, and never back."""
        what = cwd
        try:
            shim = os.getppid()
            prctl(PR_SET_PDEATHSIG, SIGKILL)
            os.setsid()
            for number in range(1, SIGNALS_MAX + 1):
                _libc.signal(number, SIG_DFL)
            _libc.sigprocmask(SIG_SETMASK, bytes(128), None)
            os.umask(0o022)
            # Else the gate would stay open for as long as its reader has the other end.
            os.close(opener)
            if os.read(gate, 1) != b"\0" or os.getppid() != shim:
                os._exit(0)
            read_nothing()
            os.dup2(out, 1)
            os.dup2(error, 2)
            data = self.spec.number("data_bytes")
            if data and report >= 0:
                resource.setrlimit(resource.RLIMIT_DATA, (data, data))
            os.chdir(cwd)
            what = command[0]
            os.execvpe(what, command, environment)
        except OSError as problem:
            if report >= 0:
                os.write(report, f"{what}: {problem.strerror}".encode())
        finally:
            os._exit(127)

    def _order_end(self) -> None:
        """Told to stop: say so in the notice, tell the first process, and set the time of the kill."""
        if self.stop is None or self.told:
            return
        self.told = True
        cause, deadline = self.stop
        left = max(0, deadline * MS - self.clock.wall())
        self.kill_at = min(self.kill_at, self.clock.monotonic() + left)
        when = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(deadline // 1000))
        text = f'{{"cause": "{cause}", "deadline": "{when}.{deadline % 1000:03d}Z"}}\n'
        try:
            replace_file(f"{self.folder}/notice", text.encode(), 0o644)
        except OSError:
            # The disk is full; the signal comes all the same.
            pass
        kill(self.main, SIGTERM)

    def _judge(self, out_of_memory: bool) -> End:
        """Say how main ended, when, and how well that is known."""
        status = self.status or 0
        number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else 0
        at, evidence = self.seen, RECORDED
        if self.stopped or self.seen_monotonic - self.last_tick > TICKS_LATE * self.tick:
            # It was stopped, or starved, and cannot tell when in that time main ended.
            at, evidence = self.head.proof, LAST_PROOF
        reason, detail = self.restart, ""
        report = os.read(self.errors, 256)
        os.close(self.errors)
        self.poller.unregister(self.pidfd)
        os.close(self.pidfd)
        self.pidfd = -1
        if report:
            reason, detail = "START_FAILED", report.decode(errors="replace")
        elif out_of_memory and (number == SIGKILL or code == 128 + SIGKILL):
            reason = "OOM_KILLED"
        return End(self.run, max(at, self.head.proof), evidence, code, number, reason, detail)

    def _again(self, end: End) -> bool:
        """Whether main is run again after such an end."""
        if self.stop is not None:
            return False
        mode, restarts = self.spec.one("restart"), self.spec.number("restarts_max")
        failed = bool(end.exit or end.signal or end.reason)
        wanted = mode == "always" or (mode == "on_failure" and failed)
        return wanted and (restarts == 0 or end.ordinal < restarts)

    def _rest(self) -> bool:
        """Wait as long as the rule says; False once told to stop."""
        if self.last is not None:
            first = self.spec.number("backoff_ms") * MS
            until = self.last.at + min(first << min(self.last.ordinal, 30), BACKOFF_MAX)
            while self.stop is None and (left := until - self.timeline.now()) > 0:
                self._stand(BACKOFF, "CRASH_LOOP_BACKOFF", "", until)
                self._turn(self.clock.monotonic() + left)
        return self.stop is None

    def _oom_kills(self) -> int:
        """How often the kernel killed in this control group because its memory was used up."""
        path = self.spec.one("oom")
        if not path:
            return 0
        try:
            fields = read_file(path).split()
        except OSError:
            # Somebody took the group away: why it was killed is not known then, but that it was is.
            return 0
        return int(fields[fields.index(b"oom_kill") + 1]) if b"oom_kill" in fields else 0

    def _keep_exit_report(self, ordinal: int) -> None:
        try:
            os.makedirs(f"{self.folder}/exits", exist_ok=True)
            os.rename(f"{self.folder}/exit", f"{self.folder}/exits/{ordinal}")
            remove(f"{self.folder}/exits/{ordinal - RUNS_KEPT}")
        except OSError:
            pass

    # -- its end

    def _survivors(self) -> set[int]:
        """Every process of the replica."""
        found = descendants_of(os.getpid())
        for group in self.groups:
            found |= members(group)
        if not self.groups:
            found.update(marked(self.spec.one("uid")))
        return found - {os.getpid()}

    def _kill_all(self) -> None:
        for pid in self._survivors():
            kill(pid, SIGKILL)

    def _take_away(self) -> None:
        """Kill until nothing of the replica is left."""
        self._reap()
        while survivors := self._survivors():
            for pid in survivors:
                kill(pid, SIGKILL)
            self._turn(self.clock.monotonic() + AGAIN)
            self._reap()

    def _leave(self) -> None:
        """Nothing of it is left, and nothing will come."""
        self._take_away()
        for group in self.groups:
            self._remove_group(group)
        self.head.printed = self.log.place
        self.head.proof = self.timeline.now()
        reason = "" if self.head.runs else self.head.reason
        self._move(ENDED, reason, self.head.detail if reason else "")

    def _remove_group(self, group: str) -> None:
        # That of the cluster goes with its last replica.
        for path in (group, os.path.dirname(group)):
            for _ in range(GROUP_TRIES):
                try:
                    os.rmdir(path)
                    break
                except OSError as error:
                    # Who was in it may not be quite gone; ENOTEMPTY is another replica's.
                    if error.errno != errno.EBUSY:
                        break
                time.sleep(AGAIN / SECOND)


def nothing_but(main: int, ready: list[tuple[int, int]]) -> bool:
    """
    Whether all that is ready comes with an end: the pidfd of what ended, and pipes that it closed.

    One that closes its pipes by itself and ends before anybody had a turn is taken to have ended then.
    """
    return all(file == main or events == select.POLLHUP for file, events in ready)


def read_nothing() -> None:
    """Have no input."""
    nothing = os.open("/dev/null", os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)


def remove(path: str) -> None:
    """Have no such file."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


def sync(path: str) -> None:
    """Make sure that a file, or what was made in a folder, is there after a power cut."""
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def main(folder: str, clock: Clock | None = None) -> None:
    """
    Leave whoever called, and run the replica of a folder.

    The caller's process ends with 0 as soon as the replica has a witness, this one or another.
    """
    # Half of them: whoever began this died meanwhile, and another one begins it.
    secrets = whole(b"".join(iter(lambda: os.read(0, PIPE_BYTES), b"")))
    told, tell = os.pipe()
    if os.fork():
        os.close(tell)
        os._exit(0 if os.read(told, 1) else 1)
    os.setsid()
    os.umask(0o077)
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) != tell:
            try:
                os.close(int(name))
            except OSError:
                pass
    read_nothing()
    for number in IGNORED:
        _libc.signal(number, SIG_IGN)
    _libc.sigprocmask(SIG_BLOCK, CONTINUED, None)
    prctl(PR_SET_CHILD_SUBREAPER, 1)

    def witnessed() -> None:
        os.write(tell, b"\0")
        os.close(tell)

    lock = os.open(f"{folder}/lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        witnessed()
        return
    Shim(folder, secrets, clock or Clock(), witnessed).live()


if __name__ == "__main__":
    main(sys.argv[1])
