"""The wall around PostgreSQL: connections with the service's search path, and errors by our names."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TypeAlias

import asyncpg
from asyncpg.pool import PoolConnectionProxy

from chassis.refusals import Invalid, Unavailable, Violation

Record: TypeAlias = asyncpg.Record
Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record] | PoolConnectionProxy[asyncpg.Record]"

# A statement of a request that takes longer is a fault, and its caller has gone.
STATEMENT_SECONDS_MAX = 30.0
CONNECT_SECONDS_MAX = 5.0
# The server asks a client that is silent for so long whether it still is there, and gives it up so
# many milliseconds after its last sign of life (on Linux that takes the place of a count; tcp(7)).
# A process that dies behind a partition cannot say so, and what its session has locked would stay so.
KEEPALIVE = {
    "tcp_keepalives_idle": "5",
    "tcp_keepalives_interval": "5",
    "tcp_user_timeout": "15000",
}

# What a lost, refused or half-open connection looks like, asyncpg's own state errors included; and
# a server that cannot work just now: shutting down, out of room, a standby by now, or without us.
LOST = (
    OSError,
    EOFError,
    asyncio.TimeoutError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    # Of a database that is being set up beside us.
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
)


class Misfit(Exception):
    """A statement and its arguments do not fit each other: a fault of the program, not of the network."""


def is_lost(error: BaseException, connection: Connection) -> bool:
    """
    Tell a lost connection from a fault of the program.

    asyncpg has one class for both: a wrong number of arguments leaves the connection open.
    """
    if isinstance(error, asyncpg.InterfaceError):
        return connection.is_closed()
    return isinstance(error, LOST)


def unavailable(error: BaseException) -> Unavailable:
    """Say that the database cannot be reached, and why."""
    return Unavailable(
        "DATABASE_UNAVAILABLE",
        f"The database cannot be reached ({type(error).__name__}: {error}).",
        next_step="Send the same request again in a moment.",
    )


class Database:
    """
    One service's part of the database: schema `<service>`, read models in `<service>_rows`.

    Every lost connection becomes `Unavailable` (DATABASE_UNAVAILABLE), the body of `connection()`
    included. A wrong number of arguments is `Misfit`.
    """

    def __init__(self, dsn: str, service: str, *, rows_schema: str | None = None) -> None:
        self.dsn = dsn
        self.service = service
        self.schema = service
        self.rows_schema = rows_schema or f"{service}_rows"
        self._pool: asyncpg.Pool[asyncpg.Record] | None = None

    @property
    def search_path(self) -> str:
        """Where unqualified names are looked up: kernel tables first, then the read model."""
        return f"{self.schema}, {self.rows_schema}"

    async def open(self, *, pool_size: int = 8) -> None:
        """Open the pool; `Unavailable` where there is no database, `Invalid` where the DSN is none."""
        with _reaching():
            self._pool = await asyncpg.create_pool(
                self.dsn,
                min_size=1,
                max_size=pool_size,
                timeout=CONNECT_SECONDS_MAX,
                command_timeout=STATEMENT_SECONDS_MAX,
                reset=_keep,
                server_settings=self._settings("pool"),
            )

    async def close(self) -> None:
        """Close the pool; connections in use are cut after five seconds."""
        pool, self._pool = self._pool, None
        if pool is None:
            return
        try:
            async with asyncio.timeout(5):
                await pool.close()
        except (TimeoutError, *LOST):
            pool.terminate()

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """Lend a connection of the pool."""
        if self._pool is None:
            raise unavailable(RuntimeError("the pool is not open"))
        try:
            async with self._pool.acquire(timeout=CONNECT_SECONDS_MAX) as connection:
                try:
                    yield connection
                except asyncpg.InterfaceError as error:
                    if not is_lost(error, connection):
                        raise Misfit(str(error)) from error
                    raise
        except LOST as error:
            raise unavailable(error) from error

    async def pinned(
        self, purpose: str, *, statement_seconds: float | None = None
    ) -> asyncpg.Connection[asyncpg.Record]:
        """
        Open a connection of one's own; the caller closes it.

        A statement that takes longer than `statement_seconds` is a TimeoutError; None: no limit.
        """
        with _reaching():
            return await asyncpg.connect(
                self.dsn,
                timeout=CONNECT_SECONDS_MAX,
                command_timeout=statement_seconds,
                server_settings=self._settings(purpose),
            )

    async def fetch(self, sql: str, *arguments: object) -> list[Record]:
        """Run a statement, return its rows."""
        async with self.connection() as connection:
            return await connection.fetch(sql, *arguments)

    async def fetchrow(self, sql: str, *arguments: object) -> Record | None:
        """Run a statement, return its first row."""
        async with self.connection() as connection:
            return await connection.fetchrow(sql, *arguments)

    async def fetchval(self, sql: str, *arguments: object) -> object:
        """Run a statement, return the first value of its first row."""
        async with self.connection() as connection:
            return await connection.fetchval(sql, *arguments)

    async def execute(self, sql: str, *arguments: object) -> None:
        """Run a statement in a transaction of its own."""
        async with self.connection() as connection:
            await connection.execute(sql, *arguments)

    async def ready(self) -> bool:
        """Tell whether the database answers."""
        try:
            return await self.fetchval("SELECT 1") == 1
        except Unavailable:
            return False

    def _settings(self, purpose: str) -> dict[str, str]:
        return {
            "search_path": self.search_path,
            "application_name": f"fermion {self.service} {purpose}",
            "timezone": "UTC",
            **KEEPALIVE,
        }


async def _keep(connection: Connection) -> None:
    """Spare the round trip that clears a session: nobody changes the session of a lent connection."""
    del connection


async def create_database(dsn: str, name: str) -> None:
    """Make a database where there is none of that name; two at once do no harm."""
    with _reaching():
        connection = await asyncpg.connect(dsn, timeout=CONNECT_SECONDS_MAX)
        try:
            await connection.execute(f'CREATE DATABASE "{name}"')
        except (asyncpg.DuplicateDatabaseError, asyncpg.UniqueViolationError):
            return
        finally:
            await connection.close()


@contextmanager
def _reaching() -> Iterator[None]:
    """Tell a DSN that names no database from a database that is away."""
    try:
        yield
    # An IndexError is how it says that a host is empty.
    except (asyncpg.ClientConfigurationError, ValueError, OverflowError, IndexError) as error:
        # The DSN itself is not shown: it may hold a password, though it should not.
        raise Invalid(
            "SETTING_INVALID",
            f"FERMION_POSTGRES_DSN names no database ({error}).",
            violations=(Violation("FERMION_POSTGRES_DSN", "must be postgresql://…"),),
            next_step="Correct it, e.g. postgresql://fermion@db.example/fermion?passfile=/run/pgpass",
            variable="FERMION_POSTGRES_DSN",
        ) from error
    except LOST as error:
        raise unavailable(error) from error
