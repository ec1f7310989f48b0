"""
The loop that admits: one process at a time, with everything that admission rests on in memory.

It follows this service's own facts and the tables that others' facts were folded into, lets
`admission` decide, and states what was decided, each with the version of what it rests on and under
the lease's epoch: a holder that slept and wakes is refused, and a decision that somebody else was
faster than is void. What is in memory is then put as the rows have it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias, assert_never

from google.protobuf.message import Message

from chassis.clock import Clock
from chassis.envelope import Meta
from chassis.journal import Command, Fenced, Journal, Stale, Stated
from chassis.lease import Lease
from chassis.postgres import Database, Record
from chassis.queries import Queries
from chassis.refusals import Exhausted, OutcomeUnknown, Unavailable
from chassis.tasks import aside, end
from fermion.api.workload import v1 as workload
from services.scheduler import admission, aggregate, books, explain, ledger, projection
from services.scheduler.admission import Admit, Refuse, Release, Reserve
from services.scheduler.demand import RESERVED
from services.scheduler.figures import HELD_SECONDS, Capacity, capacity
from services.scheduler.ledger import Books
from services.scheduler.placement import FOREVER
from services.scheduler.state import State

ADMITTED_MAX: Final = 500
# So many are told another kind of reason a pass; with more that wait than these, once a second.
TOLD_MAX: Final = 500
TELL_MILLISECONDS: Final = 1000
REST_SECONDS_MAX: Final = 0.5
AGAIN_SECONDS: Final = 0.2
META: Final = Meta(actor=f"service:{aggregate.SERVICE}")

_log = logging.getLogger(__name__)


class Admitter:
    """Admits while this process holds the lease; `told` is set when others' facts are being folded."""

    def __init__(
        self,
        journal: Journal,
        database: Database,
        queries: Queries,
        lease: Lease,
        clock: Clock,
        told: asyncio.Event,
    ) -> None:
        self._journal = journal
        self._database = database
        self._queries = queries
        self._lease = lease
        self._clock = clock
        self._told = told
        # What was held a moment ago; nothing where another process admits.
        self.capacity: Sequence[Capacity] = ()

    async def run(self) -> None:
        """Admit until cancelled; another holder of the lease ends a reign, and nothing else."""
        while True:
            epoch = await self._lease.wait_held()
            try:
                await self._reign(epoch)
            except* Fenced:
                _log.info("another scheduler admits now")
                await asyncio.sleep(AGAIN_SECONDS)
            except* (Unavailable, Exhausted, OutcomeUnknown) as error:
                _log.debug("the scheduler waits: %r", error)
                await asyncio.sleep(AGAIN_SECONDS)
            finally:
                self.capacity = ()

    async def _reign(self, epoch: int) -> None:
        # What a holder before this one was committing is there after this, or refused.
        shard = self._journal.name.partition("/")[2]
        await self._database.execute(self._queries["settle_head"], shard)
        kept = Books(self._journal, self._database, self._queries)
        await kept.load()
        reign = Reign(kept, (self._lease.name, epoch), self._journal)
        void: Collection[str] = ()
        sum_up = float("-inf")
        while self._lease.held() == epoch:
            await kept.follow(void)
            if self._clock.monotonic() >= sum_up:
                self.capacity = capacity(kept.state.clusters)
                sum_up = self._clock.monotonic() + HELD_SECONDS
            turn = await reign.turn(books.milliseconds(self._clock.now()))
            void = turn.void
            if not turn.goes_on:
                await self._rest(kept, turn.due)

    async def _rest(self, kept: Books, due: int) -> None:
        """Wait until something may have changed, or is due."""
        seconds = (due - books.milliseconds(self._clock.now())) / 1000
        seconds = min(REST_SECONDS_MAX, max(0.01, seconds))
        told = asyncio.create_task(self._told.wait(), name="told")
        grown = asyncio.create_task(self._journal.grown(kept.position, seconds), name="grown")
        try:
            await asyncio.wait((told, grown), return_when=asyncio.FIRST_COMPLETED)
        finally:
            await end(told, grown)
        self._told.clear()
        if not grown.cancelled():
            grown.result()


@dataclass(frozen=True, slots=True)
class Tell:
    """Another kind of reason is in its way than was stated."""

    uid: str
    why: workload.Reason


Order: TypeAlias = Admit | Refuse | Release | Reserve | Tell


@dataclass(frozen=True, slots=True)
class Turn:
    """What a turn left: uids whose decision was void, and when to decide again."""

    void: Collection[str]
    goes_on: bool
    due: int


class Reign:
    """What one holder of the lease decides, turn after turn."""

    def __init__(self, kept: Books, writer: tuple[str, int], journal: Journal) -> None:
        self._kept = kept
        self._writer = writer
        self._journal = journal
        self._tell_time = 0

    async def turn(self, now: int) -> Turn:
        """Decide once and state it."""
        state = self._kept.state
        # Who is refused is not in the state any more afterwards.
        refusals = {uid: state.works[uid].refusal for uid in state.refusable}
        orders: defaultdict[str, list[Order]] = defaultdict(list)
        # With many that wait this takes long, and the lease has to be renewed meanwhile.
        decisions = await aside(admission.admit, state, now, ADMITTED_MAX)
        for decision in decisions:
            orders[decision.uid].append(decision)
        admitted = sum(isinstance(decision, Admit) for decision in decisions)
        # Reasons of what a full pass did not get to are not known yet.
        full = admitted >= ADMITTED_MAX
        if not full and now >= self._tell_time:
            self._tell_time = now + (TELL_MILLISECONDS if state.waiting > TOLD_MAX else 0)
            for uid, why in await aside(_told, state, now):
                if uid not in orders:
                    orders[uid].append(Tell(uid, why))
        void = await self._state(orders, refusals) if orders else []
        due = state.next_time(now)
        if state.waiting:
            due = min(due, max(now, self._tell_time) + TELL_MILLISECONDS)
        return Turn(void, bool(void) or full, min(due, FOREVER))

    async def _state(
        self,
        orders: Mapping[str, Sequence[Order]],
        refusals: Mapping[str, workload.Reason | None],
    ) -> list[str]:
        """State what was decided, each by itself; uids of what is void."""
        about = {uid: _about(uid, decided) for uid, decided in orders.items()}
        uids = [one for group in about.values() for one in group]
        rows: dict[str, Record] = {}
        for found in await self._kept.rows(dict.fromkeys(uids)):
            rows |= found
        void: list[str] = []
        async with asyncio.TaskGroup() as group:
            said = {}
            for uid, decided in orders.items():
                if any(ledger.stale(self._kept.versions, rows, one) for one in about[uid]):
                    void += about[uid]
                    continue
                facts = facts_of(uid, decided, rows, refusals.get(uid))
                if not facts:
                    void += about[uid]
                    continue
                expected = {aggregate.stream_of(one): rows[one]["version"] for one in about[uid]}
                command = Command(tuple(facts), META, expected=expected, writer=self._writer)
                said[uid] = group.create_task(self._append(command), name="admit")
        for uid, task in said.items():
            if not task.result():
                void += about[uid]
        return void

    async def _append(self, command: Command) -> bool:
        try:
            await self._journal.append(command)
        except (Stale, Stated):
            return False
        return True


def facts_of(
    uid: str,
    orders: Sequence[Order],
    rows: Mapping[str, Record],
    refusal: workload.Reason | None,
) -> Sequence[Message]:
    """What was decided about one, as the books stand; nothing where it is void."""
    if aggregate.is_volume(uid):
        return aggregate.release_volume(projection.volume(rows[uid]))
    facts: list[Message] = []
    entry = projection.entry(rows[uid])
    for order in orders:
        match order:
            case Admit(held=held):
                for volume in order.volumes:
                    # Its volumes first, so that its cluster knows them before it does.
                    stored = projection.volume(rows[volume])
                    more = aggregate.admit_volume(stored, cluster=held.cluster)
                    if not more:
                        return ()
                    facts += more
                assert entry.declared is not None
                facts += aggregate.admit(
                    entry,
                    cluster=held.cluster,
                    replicas=held.replicas,
                    nodes=[
                        node
                        for group in entry.declared.groups
                        for node in held.nodes.get(group.role, ())
                    ],
                    gpu_type=held.gpu_type,
                )
            case Refuse(why=why):
                facts += aggregate.refuse(entry, reason=_refusal(why, refusal))
            case Release():
                facts += aggregate.release(entry)
            case Reserve():
                reserved = explain.reason(explain.Verdict(RESERVED))
                facts += aggregate.explain(entry, reason=reserved)
            case Tell(why=told):
                facts += aggregate.explain(entry, reason=told)
            case _:
                assert_never(order)
    return facts


def _told(state: State, now: int) -> list[tuple[str, workload.Reason]]:
    return list(explain.told(state, now, TOLD_MAX))


def _about(uid: str, orders: Sequence[Order]) -> list[str]:
    """What a decision rests on: the one that it is about, and volumes that are admitted with it."""
    volumes = [one for order in orders if isinstance(order, Admit) for one in order.volumes]
    return [uid, *volumes]


def _refusal(why: str, refusal: workload.Reason | None) -> workload.Reason:
    match why:
        case admission.EXPIRED:
            return workload.Reason(
                code="QUEUE_TIME_EXCEEDED",
                message="It has waited in the queue as long as it may.",
            )
        case admission.VOLUME_GONE:
            return workload.Reason(
                code="VOLUME_GONE",
                message="A volume that it mounts is gone, or is told to go.",
            )
        case admission.VOLUME_SIZE:
            return workload.Reason(
                code="VOLUME_SIZE_DIFFERS",
                arguments={"field": "groups.mounts.volume.size_bytes"},
                message="size_bytes of a mount is not what its volume was declared with.",
            )
        case _:
            assert refusal is not None
            return refusal
