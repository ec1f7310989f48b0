"""A PostgreSQL connection that can be cut where it hurts: a proxy between client and server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import parse_qs, urlencode, urlsplit, urlunsplit

PORT = ".s.PGSQL.5432"
COMMIT = b"COMMIT;"


class Cut(Enum):
    """Where the connection ends when a COMMIT is on its way."""

    BEFORE = "the server never hears it"
    AFTER = "the client never hears the answer"


@dataclass(slots=True)
class Wire:
    """The way to one server; `dsn` leads through it."""

    dsn: str
    server: str
    # Cut the next COMMIT so; None: let it pass.
    cut: Cut | None = None
    # Whether anybody gets through at all.
    up: bool = True
    cuts: int = 0
    # Called when the connection was cut, before the client can come back.
    on_cut: Callable[[], None] | None = None
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)

    def sever(self) -> None:
        """Cut every connection at once."""
        for writer in self._writers:
            writer.transport.abort()

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry one connection until either end leaves or it is cut."""
        if not self.up:
            writer.transport.abort()
            return
        back, forth = await asyncio.open_unix_connection(self.server)
        self._writers |= {writer, forth}
        try:
            async with asyncio.TaskGroup() as group:
                answers = group.create_task(self._answers(back, writer))
                await self._questions(reader, forth, back, answers)
                answers.cancel()
        except* OSError:
            pass
        finally:
            self._writers -= {writer, forth}
            writer.transport.abort()
            forth.transport.abort()

    async def _questions(
        self,
        reader: asyncio.StreamReader,
        forth: asyncio.StreamWriter,
        back: asyncio.StreamReader,
        answers: asyncio.Task[None],
    ) -> None:
        while data := await reader.read(65536):
            if self.cut is not None and COMMIT in data:
                cut, self.cut = self.cut, None
                self.cuts += 1
                if cut is Cut.AFTER:
                    answers.cancel()
                    await asyncio.wait([answers])
                    forth.write(data)
                    await back.read(65536)
                if self.on_cut is not None:
                    self.on_cut()
                return
            forth.write(data)
            await forth.drain()

    async def _answers(self, back: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await back.read(65536):
            writer.write(data)
            await writer.drain()
        writer.close()


@asynccontextmanager
async def wire(dsn: str) -> AsyncIterator[Wire]:
    """Lay a wire to the server of a DSN that names a socket's folder."""
    parts = urlsplit(dsn)
    options = {name: values[0] for name, values in parse_qs(parts.query).items()}
    with TemporaryDirectory(prefix="wire") as folder:
        through = urlencode({**options, "host": folder}, safe="/")
        laid = Wire(urlunsplit(parts._replace(query=through)), str(Path(options["host"]) / PORT))
        server = await asyncio.start_unix_server(laid.carry, str(Path(folder) / PORT))
        try:
            yield laid
        finally:
            server.close()
            laid.sever()
