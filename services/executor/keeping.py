"""The local cluster in a backup: what of its folder is kept, and what a restored one begins with."""

from __future__ import annotations

import os
import secrets
import shutil
import time
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from chassis.postgres import Connection
from chassis.queries import Queries
from services.executor import shim

# Of a replica's folder: what belongs to its shim's life, what is large, and what leads to volumes.
NOT_A_RECORD: Final = frozenset({"lock", "wake", "scratch", "root", "logs", "record"})
GROUPS: Final = "groups"
RESTORED: Final = "RESTORED"

_queries = Queries.load(Path(__file__).with_name("queries.sql"))


@dataclass(frozen=True, slots=True)
class Settled:
    """What a restored cluster begins with."""

    # Replicas that had not ended at the backup's moment, and have now.
    ended: int
    # Volumes without their files.
    empty: int


def marks(root: Path) -> Iterator[Path]:
    """What says that a workload is over or a volume gone: kept before the facts are."""
    yield from (root / "uid", root / "closed", root / "deleted")


def files(root: Path) -> Iterator[Path]:
    """What instances wrote: kept after the facts."""
    yield root / "volumes"
    yield root / "kept"
    for folder in _replicas(root):
        yield folder / "logs"


def records(root: Path) -> Iterator[tuple[Path, bytes]]:
    """Every replica's folder with its shim's record, of one moment each; one without a record never began."""
    for folder in _replicas(root):
        for _ in range(shim.READ_TRIES):
            with suppress(OSError):
                data = (folder / "record").read_bytes()
                if shim.Head.fields(data[: shim.HEAD_BYTES]) is not None:
                    yield folder, data
                    break
            # It is just being written, or made, or taken away.
            time.sleep(0.001)


async def wanted(connection: Connection) -> list[str]:
    """Volumes that there are to be, in a restored database; in a transaction."""
    await connection.execute("SET LOCAL search_path TO executor")
    rows = await connection.fetch(_queries["wanted_volumes"])
    return [row["uid"] for row in rows if not row["revoked"]]


def settle(root: Path, wanted: Collection[str]) -> Settled:
    """
    Make a cluster of what was kept of one: nothing of it runs here, and nothing of it ever will.

    Each replica that had not ended did so at its last proof of life, as far as is known; its folder
    names paths and processes of another place, and no shim may go on with it. `wanted` are the
    volumes that there are. Repeated, it changes nothing.
    """
    for part in ("replicas", "kept", "closed", "deleted", "volumes"):
        (root / part).mkdir(mode=0o700, parents=True, exist_ok=True)
    ended = 0
    for folder in _replicas(root):
        try:
            record = shim.read_record(str(folder))
        except OSError:
            record = None
        if record is None or not (folder / "spec").exists():
            shutil.rmtree(folder)
            continue
        if record.head.phase != shim.ENDED:
            _end(folder, record)
            ended += 1
        # It was forgotten while it was packed: here it is again, and is forgotten again.
        spec = shim.Words((folder / "spec").read_bytes())
        shutil.rmtree(root / "kept" / spec.one("uid"), ignore_errors=True)
    there = set(os.listdir(root / "volumes"))
    for uid in there - set(wanted):
        shutil.rmtree(root / "volumes" / uid)
    for uid in set(wanted) - there:
        (root / "volumes" / uid / "data").mkdir(mode=0o700, parents=True)
        (root / "volumes" / uid / "since").symlink_to(str(time.time_ns() // 10**6))
    if not (root / GROUPS).exists():
        # What still runs where the backup was taken has control groups of the cluster's first name.
        (root / GROUPS).write_text(secrets.token_hex(4))
    return Settled(ended, len(set(wanted) - there))


def group_name(root: Path, uid: str) -> str:
    """What the control groups of the cluster in a folder are called by: its uid, and which restore it is."""
    with suppress(FileNotFoundError):
        return f"{uid}-{(root / GROUPS).read_text().strip()}"
    return uid


def _replicas(root: Path) -> Iterator[Path]:
    with suppress(FileNotFoundError):
        for name in sorted(os.listdir(root / "replicas")):
            if not name.startswith("."):
                yield root / "replicas" / name


def _end(folder: Path, record: shim.Record) -> None:
    head = record.head
    file = os.open(folder / "record", os.O_RDWR | os.O_CLOEXEC)
    try:
        if record.runs and record.runs[-1][1] is None:
            start = record.runs[-1][0]
            at = max(start.at, head.proof)
            end = shim.End(start.ordinal, at, shim.LAST_PROOF, 0, shim.SIGKILL, RESTORED, "")
            place = shim.run_place(start.ordinal) + shim.START_BYTES
            os.pwrite(file, end.pack(shim.RUN_BYTES - shim.START_BYTES), place)
        if (folder / "logs").exists():
            spec = shim.Words((folder / "spec").read_bytes())
            sizes = spec.number("segment_bytes"), spec.number("log_bytes_max")
            log = shim.Log(str(folder / "logs"), *sizes)
            head.printed = log.place
            log.close()
        head.phase, head.reason, head.detail, head.until = shim.ENDED, RESTORED, "", 0
        # The end before the phase: a phase without its end would be one that nobody told.
        os.fsync(file)
        os.pwrite(file, head.pack(shim.HEAD_BYTES), 0)
        os.fsync(file)
    finally:
        os.close(file)
