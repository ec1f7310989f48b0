"""Numbered plain SQL, applied once each and in order, by one process at a time."""

from __future__ import annotations

import hashlib
import re
from itertools import pairwise
from pathlib import Path

from chassis.postgres import LOST, Connection, Database, unavailable
from chassis.refusals import Refused

_NUMBERED = re.compile(r"^(\d{4})_[a-z0-9_]+\.sql$")
# One lock for all services of a database: starts are rare, and CREATE SCHEMA races are ugly.
_LOCK = 5_050_077_001


async def migrate(database: Database, folder: Path, schema: str) -> int:
    """
    Apply what is new in a folder of `0001_name.sql` files to one schema; return how many were new.

    Each file runs in a transaction of its own with its checksum. A file that was edited after it
    was applied is refused (MIGRATION_EDITED): add a new one instead. `Unavailable` where the
    database goes away; what was applied stays, and the next start goes on from there.
    """
    files = sorted(path for path in folder.iterdir() if path.suffix == ".sql")
    for path in files:
        if _NUMBERED.match(path.name) is None:
            raise Refused(
                "MIGRATION_MISNAMED",
                f"{path.name} is not named like 0001_what_it_does.sql.",
                file=path.name,
            )
    for before, path in pairwise(files):
        if before.name[:4] == path.name[:4]:
            raise Refused(
                "MIGRATION_MISNAMED",
                f"{before.name} and {path.name} have one number; which of them comes first?",
                file=path.name,
            )
    connection = await database.pinned("migrations")
    try:
        await connection.execute("SELECT pg_advisory_lock($1)", _LOCK)
        await connection.execute(f'CREATE SCHEMA IF NOT EXISTS "{schema}"')
        return await apply(connection, files, schema)
    except LOST as error:
        raise unavailable(error) from error
    finally:
        # Cut, not closed: a closing handshake with a server that is gone would hide the error.
        connection.terminate()


async def apply(connection: Connection, files: list[Path], schema: str) -> int:
    """Apply numbered files on a connection that holds the lock, or in a schema that nobody else sees."""
    await connection.execute(
        f'CREATE TABLE IF NOT EXISTS "{schema}".schema_migrations '
        "(version text PRIMARY KEY, checksum text NOT NULL, applied_at timestamptz NOT NULL DEFAULT now())"
    )
    applied = {
        row["version"]: row["checksum"]
        for row in await connection.fetch(
            f'SELECT version, checksum FROM "{schema}".schema_migrations'
        )
    }
    before: str = await connection.fetchval("SHOW search_path")
    done = 0
    for path in files:
        text = path.read_text(encoding="utf-8")
        checksum = hashlib.sha256(text.encode()).hexdigest()
        known = applied.get(path.stem)
        if known == checksum:
            continue
        if known is not None:
            raise Refused(
                "MIGRATION_EDITED",
                f"{path.name} was changed after it had been applied to schema {schema}.",
                next_step="Put the file back as it was, and write the change as a new file.",
                file=path.name,
                schema=schema,
            )
        async with connection.transaction():
            await connection.execute(f'SET LOCAL search_path = "{schema}"')
            await connection.execute(text)
            await connection.execute(
                f'INSERT INTO "{schema}".schema_migrations (version, checksum) VALUES ($1, $2)',
                path.stem,
                checksum,
            )
        done += 1
    await connection.execute("SELECT set_config('search_path', $1, false)", before)
    return done
