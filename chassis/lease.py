"""Leases choose who works; they save work and never keep anything safe by themselves."""

from __future__ import annotations

import asyncio
import logging
from datetime import timedelta
from pathlib import Path

from chassis.clock import Clock
from chassis.postgres import Database
from chassis.queries import Queries
from chassis.refusals import Unavailable

LASTS = timedelta(seconds=1.5)
RENEW_SECONDS = 0.5

_log = logging.getLogger(__name__)
_queries = Queries.load(Path(__file__).with_name("queries.sql"))


class Lease:
    """
    A named lease on the database's clock.

    A holder that was paused may believe for a moment that it still holds: versions, fences and
    checkpoints refuse what it then tries. `held()` is already false when the own clock says so.
    """

    def __init__(self, database: Database, name: str, holder: str, clock: Clock) -> None:
        self.name = name
        self._database = database
        self._holder = holder
        self._clock = clock
        self._epoch: int | None = None
        self._until = 0.0
        self._changed = asyncio.Event()

    def held(self) -> int | None:
        """The writer epoch while it is held, else None."""
        return self._epoch if self._clock.monotonic() < self._until else None

    async def wait_held(self) -> int:
        """Return the writer epoch as soon as it is held."""
        while True:
            epoch = self.held()
            if epoch is not None:
                return epoch
            self._changed.clear()
            await self._changed.wait()

    async def run(self) -> None:
        """Take and renew until cancelled, then let go."""
        try:
            while True:
                await self.renew()
                await asyncio.sleep(RENEW_SECONDS)
        finally:
            await asyncio.shield(self._leave())

    async def renew(self) -> None:
        """Try once to take or renew."""
        asked = self._clock.monotonic()
        try:
            epoch = await self._database.fetchval(
                _queries["take_lease"], self.name, self._holder, LASTS
            )
        except Unavailable:
            return
        before = self.held()
        if not isinstance(epoch, int):
            self._epoch, self._until = None, 0.0
        else:
            # Counted from before the question, so that ours ends before the database's does.
            self._epoch, self._until = epoch, asked + LASTS.total_seconds()
            self._changed.set()
        if before != self._epoch:
            _log.debug("lease %s: writer epoch %s", self.name, self._epoch)

    async def _leave(self) -> None:
        held, self._epoch, self._until = self._epoch, None, 0.0
        if held is None:
            return
        try:
            await self._database.execute(_queries["leave_lease"], self.name, self._holder)
        except Unavailable:
            return
