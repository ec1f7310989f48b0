"""`fermion backup`: the state of an embedded platform while it runs, as of one moment, in one folder."""

from __future__ import annotations

import argparse
import asyncio
import errno
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from chassis import ids, lineage
from chassis.embedded import Home, Postgres, default_home, spawn
from chassis.embedded.bundle import (
    DATABASE,
    FILES,
    JournalKept,
    Manifest,
    Pack,
    Seal,
    seal,
    sync_folder,
)
from chassis.embedded.home import FULL
from chassis.embedded.postgres import find_binaries
from chassis.refusals import Refused
from fermion import __version__
from services.executor import keeping
from services.executor.ground import cluster_uid
from services.supervisor import say, tell

PARTIAL: Final = ".{}.partial"
# What cannot be made again, and what people have set. NATS' streams are copies, tokens are signed anew.
KEYS: Final = ("keys/signing.jwk", "keys/admin.uid", "keys/replicas.key", "nats/keys")
SETTINGS: Final = ("ports.json", "cli/contexts.json")
CLUSTER: Final = "cluster"


@dataclass(frozen=True, slots=True)
class Moment:
    """What the database holds as of one snapshot."""

    journals: tuple[JournalKept, ...]
    migrations: dict[str, tuple[str, ...]]


def backup(arguments: Sequence[str]) -> int:
    """Write a backup of the platform that runs on this machine; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m services backup", description=backup.__doc__)
    parser.add_argument("folder", type=Path, help="the folder that becomes the backup")
    parser.add_argument("--without-files", action="store_true", help="without what instances wrote")
    asked = parser.parse_args(arguments)
    try:
        with placed(asked.folder) as place:
            manifest = write(Home(default_home()), place, with_files=not asked.without_files)
    except Refused as refusal:
        tell(refusal)
        return 1
    size = sum(one.bytes for one in manifest.seals.values())
    say(
        f"{asked.folder}: {manifest.facts} facts of {len(manifest.journals)} journals as of "
        f"{manifest.made}, {size / 2**20:.1f} MiB. It holds the platform's keys: keep it as safe as those."
    )
    say(f"Put it back, into an empty folder: fermion restore {asked.folder} --home FOLDER")
    return 0


@contextmanager
def placed(target: Path) -> Iterator[Path]:
    """
    A folder that becomes the target when all went well, and is gone otherwise.

    What one that was killed has left is taken away; two at once are refused.
    """
    target = target.absolute()
    if os.path.lexists(target):
        raise Refused(
            "BACKUP_EXISTS",
            f"{target} is there already, and a backup never replaces anything.",
            next_step="Name another folder, which is made then.",
            folder=str(target),
        )
    place = target.with_name(PARTIAL.format(target.name))
    try:
        place.mkdir(mode=0o700, exist_ok=True)
        held = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise unwritable(target, error) from error
    try:
        _hold(held, place, target)
        try:
            for left in place.iterdir():
                left.unlink()
            yield place
            place.rename(target)
            sync_folder(target.parent)
        except OSError as error:
            raise unwritable(target, error) from error
        finally:
            shutil.rmtree(place, ignore_errors=True)
    finally:
        os.close(held)


def _hold(held: int, place: Path, target: Path) -> None:
    with suppress(BlockingIOError):
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Who had it may have taken it away, or made a backup of it, just before.
        if place.exists() and os.fstat(held).st_ino == place.stat().st_ino:
            return
    raise Refused(
        "BACKUP_RUNS",
        f"Somebody else writes {target} just now.",
        next_step="Wait for it, or name another folder.",
        folder=str(target),
    )


def write(home: Home, place: Path, *, with_files: bool) -> Manifest:
    """
    Write all that a backup holds into an empty folder; what it says of itself comes last.

    The records of the cluster are older than the facts, and the facts than what instances wrote: so
    facts never lack what a record tells to have been stated.
    """
    dsn = Postgres(home.path("postgres")).running_dsn() if home.holder() else None
    if dsn is None:
        raise Refused(
            "PLATFORM_NOT_RUNNING",
            f"No platform runs on {home.root}, so there is nobody to ask for its state.",
            next_step="Start it with `fermion up`, or name its folder in FERMION_HOME.",
            folder=str(home.root),
        )
    cluster = home.path(CLUSTER)
    pack = Pack(place / FILES)
    for name in (*KEYS, *SETTINGS):
        pack.add(home.path(name), name)
    for folder, record in keeping.records(cluster):
        name = str(folder.relative_to(home.root))
        pack.add(folder, name, apart=keeping.NOT_A_RECORD)
        pack.put(f"{name}/record", record)
    for path in keeping.marks(cluster):
        pack.add(path, str(path.relative_to(home.root)))
    made = datetime.now(UTC)
    moment = asyncio.run(_dump(dsn, place / DATABASE))
    for path in keeping.files(cluster) if with_files else ():
        pack.add(path, str(path.relative_to(home.root)))
    pack.close()
    manifest = Manifest(
        uid=ids.fresh("backup", time.time_ns() // 10**6),
        made=made.isoformat(timespec="milliseconds"),
        version=__version__,
        postgres=Postgres(home.path("postgres")).version,
        cluster=cluster_uid(cluster),
        journals=moment.journals,
        migrations=moment.migrations,
        with_files=with_files,
        seals={DATABASE: _sealed(place / DATABASE), FILES: _sealed(place / FILES)},
    )
    manifest.write(place)
    sync_folder(place)
    return manifest


def _sealed(path: Path) -> Seal:
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return seal(path)


async def _dump(dsn: str, path: Path) -> Moment:
    """Dump the database in one snapshot, and tell what stands in it."""
    async with (
        lineage.alone(dsn, "backup", _failed) as connection,
        connection.transaction(isolation="repeatable_read", readonly=True),
    ):
        await connection.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
        snapshot: str = await lineage.snapshot(connection)
        moment = Moment(*await lineage.kept(connection))
        _run_dump(dsn, path, snapshot)
    return moment


def _run_dump(dsn: str, path: Path, snapshot: str) -> None:
    program = find_binaries() / "pg_dump"
    # Readable by its owner alone from its first byte on.
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    run(
        [
            *(str(program), f"--dbname={dsn}", f"--snapshot={snapshot}", f"--file={path}"),
            *("--format=custom", "--no-owner", "--no-privileges"),
            *("--exclude-schema=*_rows_new", "--exclude-schema=*_rows_old"),
        ],
        _failed,
    )


def run(command: Sequence[str], failed: Callable[[str], Refused]) -> None:
    """Run a program of PostgreSQL, which ends with us; where it fails, raise what it said."""
    if not Path(command[0]).is_file():
        raise failed(f"there is no {command[0]}")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    with tempfile.TemporaryFile() as output:
        process = spawn(command, output=output, environment=environment)
        code = process.wait()
        output.seek(0)
        said = " ".join(output.read().decode(errors="replace").split())[-500:]
    if code != 0:
        if os.strerror(errno.ENOSPC) in said:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        raise failed(f"{Path(command[0]).name} ended with {code}: {said}")


def _failed(why: str) -> Refused:
    return Refused(
        "BACKUP_FAILED",
        f"The backup was not made: {why}.",
        next_step="Look at `fermion status`, and begin it again.",
    )


def unwritable(target: Path, error: OSError) -> Refused:
    """Say why a folder cannot be written; that there is no room has a reason of its own."""
    if error.errno in FULL:
        return Refused(
            "NO_ROOM",
            f"There is no room for {target}: {error.strerror}.",
            next_step="Make room, or name a folder on another disk.",
            folder=str(target),
        )
    return Refused(
        "BACKUP_UNWRITABLE",
        f"{target} cannot be written: {error.strerror} ({error.filename}).",
        next_step="Name a folder in one that is there and yours.",
        folder=str(target),
    )
