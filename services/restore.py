"""`fermion restore`: a platform's state out of a backup, in an empty folder of any machine."""

from __future__ import annotations

import argparse
import asyncio
import os
import shlex
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from chassis import lineage
from chassis.embedded import Home, Postgres, default_home
from chassis.embedded.bundle import (
    DATABASE,
    FILES,
    Manifest,
    damaged,
    newer,
    sync_folder,
    unknown,
    unpack,
)
from chassis.embedded.home import LOCK, RESTORING
from chassis.embedded.postgres import find_binaries
from chassis.keys import write_private
from chassis.postgres import create_database
from chassis.refusals import Refused
from services.backup import CLUSTER, run, unwritable
from services.executor import keeping
from services.executor.keeping import Settled
from services.supervisor import say, tell
from services.versions import known_migrations


def restore(arguments: Sequence[str]) -> int:
    """Make an empty folder the state of a platform, as a backup has it; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m services restore", description=restore.__doc__)
    parser.add_argument("backup", type=Path, help="a folder that `fermion backup` has made")
    parser.add_argument("--home", type=Path, default=None, help="the folder [FERMION_HOME]")
    asked = parser.parse_args(arguments)
    folder = asked.backup.absolute()
    home = Home(asked.home or default_home())
    try:
        manifest = Manifest.read(folder)
        missing = unknown(manifest.migrations, known_migrations())
        if missing:
            raise newer(folder, f"its database has {missing[0]}, which this one does not know")
        say(f"Checking {folder}, of {manifest.made} …")
        manifest.check(folder)
        with taken(home, folder):
            settled = put_back(home, folder, manifest)
    except Refused as refusal:
        tell(refusal)
        return 1
    say(f"{home.root} holds {manifest.facts} facts of {len(manifest.journals)} journals.")
    if settled.ended:
        say(
            f"Replicas that were there then, and ended at their last proof of life: {settled.ended}. "
            "Start again what is to run."
        )
    if settled.empty:
        say(f"Volumes that are empty, for their files are not in the backup: {settled.empty}.")
    say("Settings by environment (FERMION_…) and options of `fermion up` are not in a backup.")
    say(f"Start it: FERMION_HOME={shlex.quote(str(home.root))} fermion up")
    return 0


@contextmanager
def taken(home: Home, backup: Path) -> Iterator[None]:
    """
    Hold a folder that is empty, or that a restore has left half, while it is filled.

    As long as it is not whole a file in it says so, and no platform starts on it.
    """
    try:
        home.own()
        _empty(home)
        home.hold("")
        try:
            _empty(home)
            write_private(home.path(RESTORING), f"{backup}\n")
            sync_folder(home.root)
            Postgres(home.path("postgres")).clear()
            for left in os.listdir(home.root):
                if left not in (LOCK, RESTORING):
                    _remove(home.path(left))
            home.prepare()
            yield
            # What initdb wrote is not known to be on the disk.
            os.sync()
            home.path(RESTORING).unlink()
            sync_folder(home.root)
        finally:
            home.release()
    except OSError as error:
        raise unwritable(home.root, error) from error


def _empty(home: Home) -> None:
    there = set(os.listdir(home.root)) - {LOCK}
    if there and RESTORING not in there:
        raise Refused(
            "HOME_NOT_EMPTY",
            f"{home.root} is not empty: it holds {sorted(there)[0]}. A restore replaces nothing.",
            next_step="Name an empty folder with --home, or move this one away.",
            folder=str(home.root),
        )


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def put_back(home: Home, backup: Path, manifest: Manifest) -> Settled:
    """Fill a folder that is held: files, then the database in one transaction, then the cluster."""
    unpack(backup / FILES, home.root)
    postgres = Postgres(home.path("postgres"))
    postgres.start()
    try:
        postgres.wait_ready()
        asyncio.run(create_database(postgres.dsn_of("postgres"), "fermion"))
        run(
            [
                *(str(find_binaries() / "pg_restore"), f"--dbname={postgres.dsn}"),
                *("--single-transaction", "--exit-on-error", "--no-owner", "--no-privileges"),
                str(backup / DATABASE),
            ],
            _failed,
        )
        volumes = asyncio.run(_begin_epochs(postgres.dsn, backup, manifest))
    finally:
        postgres.stop()
    return keeping.settle(home.path(CLUSTER), volumes)


async def _begin_epochs(dsn: str, backup: Path, manifest: Manifest) -> list[str]:
    """
    Begin a new lineage of every journal behind its head; the volumes that there are.

    Whoever has read past it, a subscriber, a service elsewhere, can tell by that. Each journal says
    so itself at its first start.
    """
    # No number that a lineage has had: this backup may have been restored before, and lived on.
    epoch = int(time.time())
    async with lineage.alone(dsn, "restore", _failed) as connection, connection.transaction():
        for service in sorted({one.journal.split("/")[0] for one in manifest.journals}):
            found = await lineage.journals_of(connection, service)
            told = [one for one in manifest.journals if one.journal.split("/")[0] == service]
            if found != told:
                raise damaged(backup, f"its database has {found} where it says {told}")
            await lineage.begin_restored(connection, service, epoch, manifest.uid)
        return await keeping.wanted(connection)


def _failed(why: str) -> Refused:
    return Refused(
        "RESTORE_FAILED",
        f"The backup was not put back: {why}.",
        next_step="Mend that, and begin it again: what is half there is taken away then.",
    )
