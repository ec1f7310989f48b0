"""Which migrations this release has, and whether a database has others."""

from __future__ import annotations

from pathlib import Path

from chassis import lineage
from chassis.embedded import Home
from chassis.embedded.bundle import unknown
from chassis.process import KERNEL_MIGRATIONS
from chassis.refusals import Refused
from services.serve import TARGETS


def known_migrations() -> dict[str, set[str]]:
    """Every migration that this release has, by schema."""
    kernel = _names(KERNEL_MIGRATIONS)
    found = {}
    for name, target in TARGETS.items():
        folder = target.folder / "migrations"
        found[name] = kernel | _names(folder / "state")
        found[f"{name}_rows"] = _names(folder / "rows")
    return found


async def refuse_newer(home: Home, dsn: str) -> None:
    """Refuse a state that a later release has written (HOME_NEWER), before anything is changed in it."""
    async with (
        lineage.alone(dsn, "versions", _unread) as connection,
        connection.transaction(readonly=True),
    ):
        _, migrations = await lineage.kept(connection)
    missing = unknown(migrations, known_migrations())
    if missing:
        raise Refused(
            "HOME_NEWER",
            f"The state in {home.root} was written by a newer Fermion: its database has "
            f"{missing[0]}, which this one does not know. Nothing of it was changed.",
            next_step="Start it with that version or a later one, or name another folder in "
            "FERMION_HOME.",
            folder=str(home.root),
            migration=missing[0],
        )


def _names(folder: Path) -> set[str]:
    return {path.stem for path in folder.glob("*.sql")}


def _unread(why: str) -> Refused:
    return Refused(
        "HOME_UNREAD",
        f"It cannot be told which version wrote the state: {why}.",
        next_step="Look at the log of PostgreSQL in the folder `logs`, and start again.",
    )
