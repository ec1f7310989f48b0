"""
The port to a cluster: what the executor asks of it, and what it tells, whichever cluster it is.

`tests/conformance/test_cluster.py` is the suite that every cluster passes. A cluster never
decides what is billed: it makes replicas under fixed names, keeps the record of each until it is
told to forget it, and reports all of it alike as `ReplicaObservation`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from fermion.api.workload import v1 as api
from services.executor.observation import Instant, ReplicaObservation


@dataclass(frozen=True, slots=True)
class Listing:
    """
    Every replica that the cluster has and was not told to forget.

    All that was there before `began` is in it, and all that happened before `told`; a run that is
    open was alive at its `proof`.
    """

    began: datetime
    replicas: tuple[ReplicaObservation, ...]
    # Never after `began`; before it where a witness has not written down for a while. None: `began`.
    told: datetime | None = None


@dataclass(frozen=True, slots=True)
class Bound:
    """A volume that is there: since when, and the node that holds it (empty: any can reach it)."""

    since: Instant
    node: str = ""


@dataclass(frozen=True, slots=True)
class LogEntry:
    """A piece of what a replica printed."""

    at: datetime
    # 1: standard output, 2: standard error.
    stream: int
    data: bytes
    run: int
    # Place behind it in the replica's log, to go on from.
    offset: int
    # Bytes lost just before it: the disk was full, or the log is kept no longer.
    lost: int = 0


@dataclass(frozen=True, slots=True)
class Usage:
    """What a replica has used: counters since its start, and levels now."""

    at: datetime
    cpu_seconds: float
    memory_bytes: int
    # None where nothing measures it.
    gpu_milli: int | None = None
    gpu_memory_bytes: int | None = None


class Unhonoured(Exception):
    """The cluster cannot honour a field of a workload, now or ever."""

    def __init__(self, field: str, reason: api.Reason) -> None:
        super().__init__(f"{field}: {reason.code}")
        self.field = field
        self.reason = reason


class Away(Exception):
    """The cluster does not answer; what was asked may have happened, and is asked again."""


class Gone(Exception):
    """There is no such replica, or it does not run any more."""


class Session(Protocol):
    """A command that runs inside a replica; it ends with the replica."""

    def output(self) -> AsyncIterator[tuple[int, bytes]]:
        """What it prints, as (1 for output or 2 for errors, bytes), until it ends."""
        ...

    async def write(self, data: bytes) -> None:
        """Give it input; waits while it does not take any. Bytes after its end are dropped."""
        ...

    async def close_input(self) -> None:
        """Let its input end."""
        ...

    async def resize(self, rows: int, columns: int) -> None:
        """Give its terminal another size; nothing where it has none."""
        ...

    async def wait(self) -> int:
        """Its exit code, 128 + the signal's number where one ended it."""
        ...


class Cluster(Protocol):
    """One cluster; every method may be called again, also beside another executor's call."""

    @property
    def uid(self) -> str:
        """26 lower-case base32 characters, the same over all restarts."""
        ...

    async def capabilities(self) -> api.Capabilities:
        """What it can honour now."""
        ...

    async def nodes(self) -> Sequence[api.Node]:
        """What it has now."""
        ...

    async def apply(self, wanted: api.Workload, replicas: Mapping[str, int]) -> None:
        """
        Have ranks 0..n-1 of each role, under fixed names; what is there already stays as it is.

        Labels of what is there are brought up to date. Ranks beyond n are left alone: they are
        drained one by one. A workload that was closed gets nothing. Raises Unhonoured.
        """
        ...

    async def drain(self, replica: str, cause: api.Cause.ValueType, deadline: datetime) -> None:
        """
        End a replica: notice file, TERM to its first process, KILL to all of it at the deadline.

        The first cause and deadline win; what is not there any more is no error. It is not
        restarted after this.
        """
        ...

    async def close(self, workload_uid: str) -> None:
        """Leave a tombstone under the workload's name: nothing of it is ever made again."""
        ...

    async def forget(self, replica: str) -> None:
        """Let the record of an ended replica go, its release being durable; its logs stay a while."""
        ...

    async def list(self) -> Listing:
        """Look at everything; `Away` rather than half of it."""
        ...

    async def changed(self, seconds: float) -> None:
        """Return when something may have changed since the last `list`, or after so many seconds."""
        ...

    async def bind(self, volume: api.Volume) -> Bound:
        """Have a volume; Unhonoured where it can never be given."""
        ...

    async def delete(self, volume_uid: str) -> Instant:
        """Have no such volume, and nothing that was on it; the time of that."""
        ...

    def logs(
        self, replica: str, *, after: int = 0, run: int | None = None, follow: bool = False
    ) -> AsyncIterator[LogEntry]:
        """
        What a replica printed from a place in its log on, of one run or of all; Gone where unknown.

        With `follow` it goes on until the replica has ended, else until what was printed so far.
        """
        ...

    async def log_tail(self, replica: str, lines: int, run: int | None = None) -> int:
        """The place in its log behind which there are so many last lines."""
        ...

    def execute(
        self, replica: str, command: Sequence[str], *, tty: bool, rows: int = 24, columns: int = 80
    ) -> AbstractAsyncContextManager[Session]:
        """Run a command inside a replica that runs; left, it is killed. Gone, Unhonoured."""
        ...

    async def access(self, replica: str) -> Mapping[str, str]:
        """
        How the ports of a replica that runs are opened, by name; Gone where it does not run.

        A URL with the token that the program asks for where HTTP is spoken, else host:port.
        """
        ...

    async def usage(self) -> Mapping[str, Usage]:
        """What each running replica has used, by its uid."""
        ...

    async def run(self) -> None:
        """Do what has to be done all the time (probes, what was left behind) until cancelled."""
        ...
