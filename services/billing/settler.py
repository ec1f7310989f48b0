"""Compares what workloads cost with what they may, and says what each has cost once it is over."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Final

from chassis.clock import Clock, milliseconds
from chassis.command import transact
from chassis.envelope import Meta
from chassis.journal import Fenced, Journal
from chassis.lease import Lease
from chassis.postgres import Record
from chassis.refusals import Exhausted, OutcomeUnknown, Unavailable
from fermion.api.workload import v1 as workload
from services.billing import accounts, aggregate, rating
from services.billing.accounts import Accounts, Look, Question, Source
from services.billing.aggregate import Charged, Fact
from services.billing.config import Settings

META: Final = Meta(f"service:{aggregate.SERVICE}")
AGAIN_SECONDS: Final = 0.2
# So many workloads are settled in one go.
SETTLED_MAX: Final = 200
# So often everything that is over is looked at, for what a retry took out of the parking only now.
WHOLE_SECONDS: Final = 60.0
# Before everything that runs, and behind it.
EVER: Final = (0, 2**62)

_log = logging.getLogger(__name__)


class Settler:
    """Works while this process holds the lease; what it states is stated once, whoever states it."""

    def __init__(
        self,
        books: Accounts,
        journal: Journal,
        lease: Lease,
        clock: Clock,
        settings: Settings,
    ) -> None:
        self._accounts = books
        self._journal = journal
        self._lease = lease
        self._clock = clock
        self._settings = settings
        self._slack = round(2000 * settings.proof_seconds)
        # By cluster and lineage: up to there, all that is over is settled.
        self._behind: dict[tuple[str, int], int] = {}
        self._whole = float("-inf")

    async def run(self) -> None:
        """Look again and again until cancelled."""
        while True:
            epoch = await self._lease.wait_held()
            try:
                while self._lease.held() == epoch:
                    settled = await self.look(epoch)
                    if settled < SETTLED_MAX:
                        await asyncio.sleep(self._settings.look_seconds)
            except Fenced:
                _log.info("another process settles now")
                await asyncio.sleep(AGAIN_SECONDS)
            except (Unavailable, Exhausted, OutcomeUnknown) as error:
                _log.debug("the settler waits: %r", error)
                await asyncio.sleep(AGAIN_SECONDS)

    async def look(self, epoch: int) -> int:
        """State which limits are reached, and what is settled; how many were settled."""
        look = await self._accounts.look(None)
        if not look.books:
            return 0
        writer = (self._lease.name, epoch)
        for row in await self._accounts.limited():
            await self._compare(row, look, writer)
        if self._clock.monotonic() - self._whole >= WHOLE_SECONDS:
            self._behind, self._whole = {}, self._clock.monotonic()
        settled = 0
        for source in look.sources:
            settled += await self._settle(source, look, writer, SETTLED_MAX - settled)
        return settled

    async def _settle(self, source: Source, look: Look, writer: tuple[str, int], most: int) -> int:
        """State what is settled in one cluster, so many at most; how many they were."""
        key = (source.cluster, source.epoch)
        settled, waits = 0, False
        for row in await self._accounts.unsettled(source, self._behind.get(key, 0)):
            late = source.through_ms is None or row["at_ms"] > source.through_ms
            # Nobody knows what a project in dispute has cost.
            if late or row["project"] in look.disputing or settled == most:
                waits = True
                continue
            nanos = await self._cost(row["workload"], look, look.settled, None)
            await self._state(
                row["workload"],
                partial(
                    aggregate.settle,
                    uid=row["workload"],
                    project=row["project"],
                    amount=_money(look, nanos),
                ),
                writer,
            )
            settled += 1
            if not waits:
                self._behind[key] = row["position"]
        if not waits:
            self._behind[key] = source.position
        return settled

    async def _compare(self, row: Record, look: Look, writer: tuple[str, int]) -> None:
        uid, limit = str(row["workload"]), row["limit_nanos"]
        assert isinstance(limit, int)
        now = self._clock.now()
        nanos = await self._cost(uid, look, look.live(milliseconds(now), self._slack), self._slack)
        currency = row["limit_currency"] or look.books[-1].currency
        if nanos < limit and currency == look.books[-1].currency:
            return
        if currency != look.books[-1].currency:
            # Nothing has a price in it, so nobody can tell when it is reached: not one unit more.
            _log.error("%s may cost %s, and prices are in another currency", uid, currency)
        await self._state(
            uid,
            partial(
                aggregate.reach_limit,
                uid=uid,
                project=str(row["project"]),
                amount=_money(look, nanos),
                limit=workload.Money(currency=str(currency), nanos=limit),
                through=now,
            ),
            writer,
        )

    async def _cost(self, uid: str, look: Look, caps: Mapping[str, int], slack: int | None) -> int:
        asked = Question(*EVER, workload=uid)
        rows = await self._accounts.usage(asked, look, caps, slack=slack)
        return rating.cost([accounts.summed(row) for row in rows], look.books)

    async def _state(
        self,
        uid: str,
        decide: Callable[[Charged], Sequence[Fact]],
        writer: tuple[str, int],
    ) -> None:
        stream = f"workload/{uid}"
        await transact(self._journal, stream, aggregate.fold, decide, meta=META, writer=writer)


def _money(look: Look, nanos: int) -> workload.Money:
    return workload.Money(currency=look.books[-1].currency, nanos=nanos)
