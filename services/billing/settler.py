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
from services.billing.rating import Quantity

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
        await self._compare(look, writer)
        if self._clock.monotonic() - self._whole >= WHOLE_SECONDS:
            self._behind, self._whole = {}, self._clock.monotonic()
        settled = 0
        for source in look.sources:
            settled += await self._settle(source, look, writer, SETTLED_MAX - settled)
        return settled

    async def _settle(self, source: Source, look: Look, writer: tuple[str, int], most: int) -> int:
        """State what is settled in one cluster, so many at most; how many they were."""
        key = (source.cluster, source.epoch)
        due: list[Record] = []
        behind, waits = source.position, False
        for row in await self._accounts.unsettled(source, self._behind.get(key, 0)):
            late = source.through_ms is None or row["at_ms"] > source.through_ms
            # Nobody knows what a project in dispute has cost.
            if not late and row["project"] not in look.disputing and len(due) < most:
                due.append(row)
            elif not waits:
                behind, waits = row["position"] - 1, True
        costs = await self._costs([row["workload"] for row in due], look, look.settled, None)
        for row in due:
            if costs[row["workload"]] > rating.NANOS_MAX:
                _log.error("%s has cost more than can be told, and is not settled", row["workload"])
        await self._state(
            {
                row["workload"]: partial(
                    aggregate.settle,
                    uid=row["workload"],
                    project=row["project"],
                    amount=_money(look, costs[row["workload"]]),
                )
                for row in due
                if costs[row["workload"]] <= rating.NANOS_MAX
            },
            writer,
        )
        self._behind[key] = behind
        return len(due)

    async def _compare(self, look: Look, writer: tuple[str, int]) -> None:
        """State which workloads have cost what they may."""
        rows, now = await self._accounts.limited(), self._clock.now()
        caps = look.live(milliseconds(now), self._slack)
        costs = await self._costs([row["workload"] for row in rows], look, caps, self._slack)
        reached = {}
        for row in rows:
            uid, limit = str(row["workload"]), row["limit_nanos"]
            currency = str(row["limit_currency"] or look.books[-1].currency)
            foreign = currency != look.books[-1].currency
            if foreign:
                # Nothing has a price in it, so nobody can tell when it is reached: not one unit more.
                _log.error("%s may cost %s, and prices are in another currency", uid, currency)
            if foreign or costs[uid] >= limit:
                reached[uid] = partial(
                    aggregate.reach_limit,
                    uid=uid,
                    project=str(row["project"]),
                    # So much at least, where it is more than can be told.
                    amount=_money(look, min(costs[uid], rating.NANOS_MAX)),
                    limit=workload.Money(currency=currency, nanos=limit),
                    through=now,
                )
        await self._state(reached, writer)

    async def _costs(
        self, uids: Sequence[str], look: Look, caps: Mapping[str, int], slack: int | None
    ) -> Mapping[str, int]:
        """What each workload has cost, rounded once."""
        found: dict[str, list[Quantity]] = {uid: [] for uid in uids}
        if uids:
            asked = Question(*EVER, workloads=tuple(uids))
            by = (accounts.BY_WORKLOAD,)
            for row in await self._accounts.usage(asked, look, caps, by=by, slack=slack):
                found[row["keys"][0]].append(accounts.summed(row))
        return {uid: rating.cost(rows, look.books) for uid, rows in found.items()}

    async def _state(
        self,
        said: Mapping[str, Callable[[Charged], Sequence[Fact]]],
        writer: tuple[str, int],
    ) -> None:
        """State what is decided of each workload; all of it is tried before any failure is told."""
        outcomes = await asyncio.gather(
            *(
                transact(
                    self._journal,
                    f"workload/{uid}",
                    aggregate.fold,
                    decide,
                    meta=META,
                    writer=writer,
                )
                for uid, decide in said.items()
            ),
            return_exceptions=True,
        )
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome


def _money(look: Look, nanos: int) -> workload.Money:
    return workload.Money(currency=look.books[-1].currency, nanos=nanos)
