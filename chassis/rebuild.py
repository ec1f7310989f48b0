"""A read model folded from zero beside the live one, compared with it, and swapped in."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from chassis.commit import execute_writes
from chassis.journal import Book
from chassis.migrations import apply
from chassis.postgres import LOST, Connection, Database, unavailable
from chassis.queries import Queries
from chassis.refusals import Conflict
from chassis.store import PostgresJournal

PAGE_MAX = 2000
# One rebuild of a service at a time; the second is refused and not queued.
_LOCK_SPACE = 5_050_078

_queries = Queries.load(Path(__file__).with_name("queries.sql"))


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """Hashes of the live and of the folded rows at the same position, and how many facts it took."""

    live_hash: str
    rebuilt_hash: str
    folded: int


async def rebuild(
    database: Database,
    journal: PostgresJournal,
    book: Book,
    queries: Queries,
    rows: Path,
    *,
    swap: bool = True,
) -> Rebuilt:
    """
    Fold all facts into new tables, the last of them under the head row's lock, and swap if asked to.

    While the lock is held nobody appends, so both models are of the same position and may be
    compared. Readers see the old tables until the swap commits, and the new ones after it.
    """
    fresh, old = f"{database.rows_schema}_new", f"{database.rows_schema}_old"
    try:
        connection = await database.pinned("rebuild")
    except LOST as error:
        raise unavailable(error) from error
    try:
        if not await connection.fetchval(
            "SELECT pg_try_advisory_lock($1, hashtext($2))", _LOCK_SPACE, database.rows_schema
        ):
            raise Conflict(
                "REBUILD_RUNS",
                f"The read model of {journal.name} is being rebuilt already.",
                next_step="Wait for it.",
                journal=journal.name,
            )
        await connection.execute(f'DROP SCHEMA IF EXISTS "{fresh}" CASCADE')
        await connection.execute(f'CREATE SCHEMA "{fresh}"')
        files = sorted(path for path in rows.iterdir() if path.suffix == ".sql")
        await apply(connection, files, fresh)
        path = f'"{database.schema}", "{fresh}"'
        await connection.execute("SELECT set_config('search_path', $1, false)", path)
        position = 0
        while True:
            async with connection.transaction():
                moved = await _fold(connection, journal, book, queries, position)
            if moved == position:
                break
            position = moved
        async with connection.transaction():
            await connection.fetchrow(_queries["lock_head"], journal.shard)
            moved = position
            while (after := await _fold(connection, journal, book, queries, moved)) != moved:
                moved = after
            live = await _hash(connection, database.rows_schema)
            folded = await _hash(connection, fresh)
            if swap:
                live_name = database.rows_schema
                await connection.execute(f'DROP SCHEMA IF EXISTS "{old}" CASCADE')
                await connection.execute(f'ALTER SCHEMA "{live_name}" RENAME TO "{old}"')
                await connection.execute(f'ALTER SCHEMA "{fresh}" RENAME TO "{live_name}"')
        await connection.execute(f'DROP SCHEMA "{old if swap else fresh}" CASCADE')
        return Rebuilt(live, folded, moved)
    except LOST as error:
        raise unavailable(error) from error
    finally:
        await connection.close()


async def _fold(
    connection: Connection, journal: PostgresJournal, book: Book, queries: Queries, after: int
) -> int:
    """Fold a page; the position that it ends at."""
    records = await journal.page_on(connection, after, PAGE_MAX)
    writes = [write for record in records for write in book.project(record)]
    await execute_writes(connection, queries, writes)
    return records[-1].position if records else after


async def _hash(connection: Connection, schema: str) -> str:
    """Hash every row of every table of a schema, in an order that only the rows decide."""
    digest = hashlib.sha256()
    tables = await connection.fetch(_queries["tables_of"], schema)
    for table in tables:
        digest.update(f"\n{table['name']}\n".encode())
        async for row in connection.cursor(
            f'SELECT t::text AS line FROM "{schema}"."{table["name"]}" AS t ORDER BY t::text'
        ):
            digest.update(row["line"].encode())
            digest.update(b"\n")
    return digest.hexdigest()
