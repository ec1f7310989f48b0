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
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Final

from google.protobuf.message import Message

from chassis.clock import Clock
from chassis.envelope import Meta, Recorded
from chassis.journal import Command, Fenced, Journal, Stale, Stated
from chassis.lease import Lease
from chassis.postgres import Database
from chassis.queries import Queries
from chassis.refusals import Exhausted, OutcomeUnknown, Unavailable
from fermion.api.workload import v1 as workload
from services.scheduler import admission, aggregate, books, explain
from services.scheduler.admission import Admit, Refuse, Release, Reserve
from services.scheduler.ledger import Books
from services.scheduler.placement import FOREVER

ADMITTED_MAX: Final = 500
# So many of those that wait are looked at a pass, whether they still wait for the reason that was told.
EXPLAINED_MAX: Final = 200
REST_SECONDS_MAX: Final = 1.0
AGAIN_SECONDS: Final = 0.2
# What others said is told a moment before its rows are there.
TOLD_SECONDS: Final = 0.005
TOLD_SECONDS_MAX: Final = 0.05
# A reason is stated again at most so often; place and amounts are readings.
EXPLAIN_MILLISECONDS: Final = 60_000
META: Final = Meta(actor=f"service:{aggregate.SERVICE}")

_log = logging.getLogger(__name__)


class Admitter:
    """Admits while this process holds the lease."""

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
        self._doubtful = False

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

    async def _reign(self, epoch: int) -> None:
        kept = Books(self._journal, self._database, self._queries)
        await kept.load()
        reign = Reign(kept, (self._lease.name, epoch), self._journal)
        void: Collection[str] = ()
        while self._lease.held() == epoch:
            await kept.follow(void)
            void = await reign.turn(books.milliseconds(self._clock.now()))
            if void:
                # Somebody was faster; its rows are there when its append is.
                await asyncio.sleep(TOLD_SECONDS)
            else:
                await self._rest(kept)

    async def _rest(self, kept: Books) -> None:
        """Wait until something may have changed, or is due."""
        now = books.milliseconds(self._clock.now())
        due = min(kept.state.next_time(now), FOREVER)
        seconds = min(REST_SECONDS_MAX, max(0.01, (due - now) / 1000))
        if self._doubtful:
            seconds = min(seconds, TOLD_SECONDS_MAX)
        told = asyncio.create_task(self._told.wait(), name="told")
        grown = asyncio.create_task(self._journal.grown(kept.position, seconds), name="grown")
        try:
            await asyncio.wait((told, grown), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (told, grown):
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
        self._doubtful = self._told.is_set()
        if self._doubtful:
            self._told.clear()
            await asyncio.sleep(TOLD_SECONDS)


class Reign:
    """What one holder of the lease decides, pass after pass."""

    def __init__(self, kept: Books, writer: tuple[str, int], journal: Journal) -> None:
        self._kept = kept
        self._writer = writer
        self._journal = journal
        self._explained: dict[str, int] = {}

    async def turn(self, now: int) -> Collection[str]:
        """Decide once and state it; uids whose decision was void, to be read anew."""
        state = self._kept.state
        # What is refused is not in the state any more afterwards.
        refusals = {uid: state.works[uid].refusal for uid in state.refusable}
        orders: dict[str, Decision] = {
            decision.uid: decision for decision in admission.admit(state, now, ADMITTED_MAX)
        }
        orders |= dict(self._whys(now, set(orders)))
        if not orders:
            return ()
        streams = [aggregate.stream_of(uid) for uid in orders]
        for decision in orders.values():
            if isinstance(decision, Admit):
                streams += [aggregate.stream_of(uid) for uid in decision.volumes]
        loaded = await self._journal.load(list(dict.fromkeys(streams)))
        async with asyncio.TaskGroup() as group:
            said = {
                uid: group.create_task(self._say(decision, loaded, refusals.get(uid)), name="admit")
                for uid, decision in orders.items()
            }
        void = [uid for uid, task in said.items() if not task.result()]
        for uid in list(void):
            decision = orders[uid]
            void += decision.volumes if isinstance(decision, Admit) else ()
        return void

    def _whys(self, now: int, but: set[str]) -> Iterable[tuple[str, Explain]]:
        """Those that wait for another kind of reason than was told, some a pass."""
        state, left = self._kept.state, EXPLAINED_MAX
        for uid, work in state.works.items():
            if left <= 0:
                return
            if uid in but or not work.waits or work.held is not None:
                continue
            fresh = work.said.code == aggregate.ARRIVED
            if not fresh and now < self._explained.get(uid, 0) + EXPLAIN_MILLISECONDS:
                continue
            left -= 1
            self._explained[uid] = now
            why = explain.reason(state, work, now)
            if why.code != work.said.code:
                yield uid, Explain(uid, why)

    async def _say(
        self,
        decision: Decision,
        loaded: Mapping[str, Sequence[Recorded]],
        refusal: workload.Reason | None,
    ) -> bool:
        """State one decision; False where it is void."""
        streams = [aggregate.stream_of(decision.uid)]
        if isinstance(decision, Admit):
            streams += [aggregate.stream_of(uid) for uid in decision.volumes]
        facts = _facts(decision, loaded, refusal)
        if not facts:
            return False
        last = loaded[streams[0]][-1]
        command = Command(
            tuple(facts),
            replace(META, cause_journal=last.journal, cause_position=last.position),
            expected={name: _version(loaded[name]) for name in streams},
            writer=self._writer,
        )
        try:
            await self._journal.append(command)
        except (Stale, Stated):
            return False
        return True


class Explain:
    """Another kind of reason than was told."""

    __match_args__ = ("uid", "why")

    def __init__(self, uid: str, why: workload.Reason) -> None:
        self.uid = uid
        self.why = why


Decision = Admit | Refuse | Release | Reserve | Explain


def _version(records: Sequence[Recorded]) -> int:
    return records[-1].version if records else 0


def _facts(
    decision: Decision,
    loaded: Mapping[str, Sequence[Recorded]],
    refusal: workload.Reason | None,
) -> Sequence[Message]:
    """What a decision comes to, as the books stand; nothing where it is void."""
    records = loaded[aggregate.stream_of(decision.uid)]
    if decision.uid.startswith("vol_"):
        return aggregate.release_volume(aggregate.fold_volume(records))
    entry = aggregate.fold(records)
    match decision:
        case Admit(held=held):
            assert entry.declared is not None
            facts: list[Message] = []
            for uid in decision.volumes:
                volume = aggregate.fold_volume(loaded[aggregate.stream_of(uid)])
                more = aggregate.admit_volume(volume, cluster=held.cluster)
                if not more:
                    return ()
                facts += more
            nodes = [
                node for group in entry.declared.groups for node in held.nodes.get(group.role, ())
            ]
            admitted = aggregate.admit(
                entry,
                cluster=held.cluster,
                replicas=held.replicas,
                nodes=nodes,
                gpu_type=held.gpu_type,
            )
            # Its volumes first, so that its cluster knows them before it does.
            return [*facts, *admitted] if admitted else ()
        case Refuse():
            return aggregate.refuse(entry, reason=refusal or _refusal(decision))
        case Release():
            return aggregate.release(entry)
        case Reserve():
            reserved = workload.Reason(
                code="RESERVED",
                message="Nodes are kept for it: it starts when what runs on them has ended.",
            )
            return aggregate.explain(entry, reason=reserved)
        case Explain(why=why):
            return aggregate.explain(entry, reason=why)


def _refusal(decision: Refuse) -> workload.Reason:
    match decision.why:
        case admission.EXPIRED:
            return workload.Reason(
                code="QUEUE_TIME_EXCEEDED",
                message="It has waited as long as it may.",
            )
        case admission.VOLUME_GONE:
            return workload.Reason(
                code="VOLUME_GONE",
                message="A volume that it mounts is gone, or is told to go.",
            )
        case _:
            return workload.Reason(
                code="FIELD_NOT_HONOURED", message="No cluster can honour all of it."
            )
