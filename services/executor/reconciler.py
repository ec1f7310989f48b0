"""
The loop that makes a cluster be what is wanted of it, and states what it was.

Level-triggered: each pass looks at all that is wanted, at all that the cluster has and at all that
was stated, and does and says what is missing. So a pass that dies anywhere is only repeated. What
has to outlive the cluster's own memory is durable before the cluster is told: a replica is told to
end when `ReplicaDraining` is stated, and forgotten when its workload is finished.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import defaultdict
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final, Generic, TypeVar

from google.protobuf.message import Message

from chassis.clock import Clock
from chassis.envelope import Meta, Recorded
from chassis.journal import Command, Fenced, Journal, Stale, Stated
from chassis.lease import Lease
from chassis.postgres import Database
from chassis.queries import Queries
from chassis.refusals import Exhausted, OutcomeUnknown, Unavailable
from chassis.tasks import end
from chassis.workloads import volumes
from fermion.api.workload import v1 as api
from services.executor import aggregate, figures, observation
from services.executor.aggregate import Known, Volume, Wanted, Work
from services.executor.cluster import Away, Cluster, Listing, Unhonoured
from services.executor.config import USAGE_KEPT, Settings
from services.executor.observation import Phase, Replica, ReplicaObservation

# So long nothing may happen before everything is looked at again.
LOOK_SECONDS_MAX: Final = 1.0
AGAIN_SECONDS: Final = 0.2
# Older proofs are named as such; a shim proves its replica each second.
PROOF_SLACK: Final = timedelta(seconds=3)
META: Final = Meta(actor=f"service:{aggregate.SERVICE}")

State = TypeVar("State")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class WantedVolume:
    """What the scheduler said last of a volume of this cluster."""

    volume: api.Volume
    revoked: bool
    position: int


@dataclass(slots=True)
class Streams(Generic[State]):
    """States folded from streams of one kind, each with its version, as far as they were needed."""

    kind: str
    journal: Journal
    fold: Callable[[Iterable[Recorded]], State]
    known: dict[str, tuple[State, int]] = field(default_factory=dict)

    async def load(self, uids: Iterable[str]) -> None:
        """Have the states of these."""
        missing = [uid for uid in uids if uid not in self.known]
        if not missing:
            return
        loaded = await self.journal.load([f"{self.kind}/{uid}" for uid in missing])
        for uid in missing:
            records = loaded[f"{self.kind}/{uid}"]
            self.known[uid] = (self.fold(records), records[-1].version if records else 0)

    def __getitem__(self, uid: str) -> State:
        return self.known[uid][0]

    async def say(
        self, uid: str, facts: Sequence[Message], meta: Meta, writer: tuple[str, int]
    ) -> bool:
        """
        State facts about one of them; False where somebody was faster: decide again.

        `Fenced` where another executor has taken over.
        """
        if not facts:
            return True
        stream = f"{self.kind}/{uid}"
        command = Command(tuple(facts), meta, expected={stream: self.known[uid][1]}, writer=writer)
        said = False
        with suppress(Stale, Stated):
            said = bool((await self.journal.append(command)).records)
        # Read back, and not folded on: what is known is then what is durable, whoever said it.
        del self.known[uid]
        await self.load([uid])
        return said


@dataclass(slots=True)
class Reign:
    """What one holder of the lease knows; the next one begins from what is durable."""

    writer: tuple[str, int]
    replicas: Streams[Replica]
    works: Streams[Work]
    volumes: Streams[Volume]
    known: Known
    # Replicas by workload, as far as they were stated or seen.
    of: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    # Workloads that the cluster was told to make nothing of any more, and when.
    closed: dict[str, datetime] = field(default_factory=dict)
    # What the cluster was told of each workload: number of replicas and the spec's position.
    applied: dict[str, int] = field(default_factory=dict)
    drained: set[str] = field(default_factory=set)
    # When each open run was proved alive last.
    proofs: dict[str, datetime] = field(default_factory=dict)
    strangers: set[str] = field(default_factory=set)
    attested: float = float("-inf")
    measured: float = float("-inf")


class Reconciler:
    """Works for one cluster while this process holds its lease."""

    def __init__(
        self,
        cluster: Cluster,
        journal: Journal,
        database: Database,
        queries: Queries,
        lease: Lease,
        clock: Clock,
        settings: Settings,
        told: asyncio.Event,
    ) -> None:
        self._cluster = cluster
        self._journal = journal
        self._database = database
        self._queries = queries
        self._lease = lease
        self._clock = clock
        self._settings = settings
        self._told = told
        # What the last pass found; None where another process works.
        self.seen: figures.Seen | None = None

    async def run(self) -> None:
        """Work until cancelled; another holder of the lease ends a reign, and nothing else."""
        while True:
            epoch = await self._lease.wait_held()
            try:
                async with asyncio.TaskGroup() as group:
                    tending = group.create_task(self._cluster.run(), name="cluster")
                    await self._reign(epoch)
                    await end(tending)
            except* Fenced:
                _log.info("another executor of %s works now", self._cluster.uid)
                await asyncio.sleep(AGAIN_SECONDS)
            except* (Unavailable, Exhausted, OutcomeUnknown) as error:
                _log.debug("the executor waits: %r", error)
                await asyncio.sleep(AGAIN_SECONDS)
            finally:
                self.seen = None

    async def _reign(self, epoch: int) -> None:
        reign = Reign(
            (self._lease.name, epoch),
            Streams("replica", self._journal, observation.fold),
            Streams("workload", self._journal, aggregate.fold_work),
            Streams("volume", self._journal, aggregate.fold_volume),
            await self._known(),
        )
        trouble = ""
        while self._lease.held() == epoch:
            try:
                await self.reconcile(reign)
                trouble = ""
            except* Away as error:
                if str(error.exceptions) != trouble:
                    _log.warning("the cluster does not answer: %s", error.exceptions)
                trouble = str(error.exceptions)
                await asyncio.sleep(AGAIN_SECONDS)
            await self._rest()

    async def _rest(self) -> None:
        """Wait until something may have changed."""
        told = asyncio.create_task(self._told.wait(), name="told")
        changed = asyncio.create_task(self._cluster.changed(LOOK_SECONDS_MAX), name="changed")
        try:
            await asyncio.wait((told, changed), return_when=asyncio.FIRST_COMPLETED)
        finally:
            await end(told, changed)
        self._told.clear()

    async def reconcile(self, reign: Reign) -> None:
        """One pass: look, state what was seen, then do and state what is wanted."""
        wanted = await self._wanted()
        wanted_volumes = await self._wanted_volumes()
        await self._register(reign)
        listing = await self._cluster.list()
        now = self._clock.now()
        await self._load(reign, wanted, wanted_volumes, listing)
        settled = await self._observe(reign, wanted, listing, now)
        await self._have_volumes(reign, wanted_volumes, now)
        pursuing = [self._pursue(reign, work, listing, now) for work in wanted.values()]
        settled &= all(await together(pursuing))
        await self._forget_finished(reign, wanted, listing)
        await self._drop_volumes(reign, wanted, wanted_volumes, now)
        if settled:
            await self._attest(reign, listing)
        await self._measure(reign)
        there = [one.uid for one in listing.replicas]
        known = [reign.replicas[uid] for uid in there]
        strangers = len(reign.strangers.intersection(there))
        self.seen = figures.seen(self.seen, known, strangers, now)

    async def _load(
        self,
        reign: Reign,
        wanted: Mapping[str, Wanted],
        wanted_volumes: Mapping[str, WantedVolume],
        listing: Listing,
    ) -> None:
        """Know what was stated of everything that this pass is about."""
        new = [uid for uid in wanted if uid not in reign.works.known]
        if new:
            rows = await self._database.fetch(self._queries["replicas_of_workloads"], new)
            await reign.replicas.load(row["uid"] for row in rows)
            for row in rows:
                reign.of[reign.replicas[row["uid"]].subject.workload].add(row["uid"])
        await reign.replicas.load(seen.uid for seen in listing.replicas)
        for seen in listing.replicas:
            reign.of[seen.workload].add(seen.uid)
        await reign.works.load({*wanted, *(seen.workload for seen in listing.replicas)})
        await reign.volumes.load(wanted_volumes)
        for uid in [uid for uid in reign.works.known if uid not in wanted]:
            # The scheduler's books are even: nothing more will be asked of it.
            if not any(seen.workload == uid for seen in listing.replicas):
                del reign.works.known[uid]
                for replica in reign.of.pop(uid, ()):
                    reign.replicas.known.pop(replica, None)
                    reign.drained.discard(replica)
                    reign.proofs.pop(replica, None)
                reign.closed.pop(uid, None)
                reign.applied.pop(uid, None)

    # What was seen.

    async def _observe(
        self, reign: Reign, wanted: Mapping[str, Wanted], listing: Listing, now: datetime
    ) -> bool:
        """State everything that the cluster tells; False where some of it could not be stated yet."""
        there = {seen.uid for seen in listing.replicas}
        saying = [self._see(reign, wanted, seen, now) for seen in listing.replicas]
        for uid in [uid for uids in reign.of.values() for uid in uids if uid not in there]:
            replica = reign.replicas[uid]
            facts = observation.vanish(replica, self._proof(reign, replica), now)
            if facts:
                _log.error("replica %s is not in its cluster any more, and was not released", uid)
                saying.append(reign.replicas.say(uid, facts, META, reign.writer))
        settled = all(await together(saying))
        for seen in listing.replicas:
            if seen.proof is not None:
                reign.proofs[seen.uid] = seen.proof
        return settled

    def _proof(self, reign: Reign, replica: Replica) -> datetime | None:
        """When an open run was proved alive last, as seen by this reign or as stated before it."""
        proof, start, through = reign.proofs.get(replica.uid), replica.start, reign.known.through
        if proof is not None or start is None or through is None:
            return proof
        return max(start, through)

    async def _see(
        self, reign: Reign, wanted: Mapping[str, Wanted], seen: ReplicaObservation, now: datetime
    ) -> bool:
        replica = reign.replicas[seen.uid]
        work = wanted.get(seen.workload)
        if not replica.uid and not seen.runs and reign.works[seen.workload].finished:
            # Whoever made it was overtaken meanwhile; it never ran, and is taken away below.
            return True
        if work is None and not replica.uid:
            if seen.uid not in reign.strangers:
                reign.strangers.add(seen.uid)
                _log.error(
                    "the cluster has replica %s of %s, which nobody has admitted; it is left alone",
                    seen.uid,
                    seen.workload,
                )
            return True
        if work is not None and not replica.uid and not work.revoked:
            said = reign.works[seen.workload]
            if not said.accepted and not said.rejected:
                # Its maker could not say so any more. That it is accepted is told before it runs.
                return False
        whose = replica.subject if work is None else aggregate.subject(work, seen)
        if replica.uid:
            # Labels change by a fact of their own, and what was allocated stays pinned.
            whose = replica.subject
        facts = observation.derive(replica, seen, whose, now)
        meta = META if work is None else _meta(work)
        return await reign.replicas.say(seen.uid, facts, meta, reign.writer)

    # What is wanted.

    async def _pursue(self, reign: Reign, wanted: Wanted, listing: Listing, now: datetime) -> bool:
        uid = wanted.workload.uid
        work = reign.works[uid]
        if work.finished:
            await self._forget(reign, uid, listing)
            return True
        replicas = [reign.replicas[one] for one in sorted(reign.of[uid])]
        replicas = [replica for replica in replicas if replica.uid]
        ending = aggregate.ending(work, wanted, replicas, now)
        if ending is not None:
            if uid not in reign.closed:
                await self._cluster.close(uid)
                # After it: what was made before is in every look that begins now.
                reign.closed[uid] = self._clock.now()
            await self._drain(reign, replicas, ending.cause, ending.grace, now)
        elif not await self._apply(reign, wanted, work, now):
            return False
        else:
            await self._clear(reign, wanted, replicas, listing)
            await self._drain(
                reign,
                aggregate.surplus(wanted, replicas),
                api.CAUSE_SCALE_IN,
                wanted.workload.grace.ToTimedelta(),
                now,
            )
            await self._relabel(reign, wanted, replicas, now)
        closed = uid in reign.closed and listing.began >= reign.closed[uid]
        if any(not reign.replicas[one].uid for one in reign.of[uid]):
            return False
        facts = aggregate.finish(reign.works[uid], wanted, replicas, now, closed=closed)
        if facts and not await reign.works.say(uid, facts, _meta(wanted), reign.writer):
            return False
        if facts:
            await self._forget(reign, uid, listing)
        return True

    async def _apply(self, reign: Reign, wanted: Wanted, work: Work, now: datetime) -> bool:
        """Have the cluster make what is admitted; False where its volumes are not there yet."""
        uid = wanted.workload.uid
        if reign.applied.get(uid) == wanted.position:
            return True
        try:
            for volume in volumes(wanted.workload):
                await reign.volumes.load([volume])
                known = reign.volumes[volume]
                if known.rejected is not None:
                    raise Unhonoured("groups.mounts", known.rejected)
                if not known.bound:
                    return False
            await self._cluster.apply(wanted.workload, wanted.replicas)
            facts = aggregate.accept(work, wanted, now)
        except Unhonoured as error:
            facts = aggregate.reject(work, wanted, error.field, error.reason, now)
            if not facts and not work.rejected:
                _log.error("%s cannot be changed to what is admitted: %s", uid, error)
        if not await reign.works.say(uid, facts, _meta(wanted), reign.writer):
            return False
        reign.applied[uid] = wanted.position
        return True

    async def _drain(
        self,
        reign: Reign,
        replicas: Iterable[Replica],
        cause: api.Cause.ValueType,
        grace: timedelta,
        now: datetime,
    ) -> None:
        """Tell replicas to end, once that they were told is durable."""
        for replica in replicas:
            if replica.released or replica.uid in reign.drained:
                continue
            facts = observation.drain(replica, cause, now + grace, now)
            if not await reign.replicas.say(replica.uid, facts, META, reign.writer):
                continue
            said = reign.replicas[replica.uid]
            if said.deadline is not None and not said.released:
                await self._cluster.drain(replica.uid, said.cause, said.deadline)
                reign.drained.add(replica.uid)

    async def _clear(
        self, reign: Reign, wanted: Wanted, replicas: Iterable[Replica], listing: Listing
    ) -> None:
        """Let go of what went because fewer were wanted: its rank is free for another replica."""
        there = {seen.uid for seen in listing.replicas}
        for replica in replicas:
            if replica.scaled_in and replica.uid in there:
                await self._cluster.forget(replica.uid)
                if replica.subject.rank < wanted.replicas.get(replica.subject.role, 0):
                    # It is wanted again, and nothing was made in its place as long as it was there.
                    reign.applied.pop(wanted.workload.uid, None)
                    self._told.set()

    async def _relabel(
        self, reign: Reign, wanted: Wanted, replicas: Iterable[Replica], now: datetime
    ) -> None:
        for replica in replicas:
            facts = observation.relabel(replica, wanted.workload.labels, now)
            await reign.replicas.say(replica.uid, facts, _meta(wanted), reign.writer)

    async def _forget(self, reign: Reign, uid: str, listing: Listing) -> None:
        """
        Let the cluster's records of a finished workload go: all that they told is durable, or there
        is nothing that they could tell, as it had ended before they were made.
        """
        if uid not in reign.closed:
            await self._cluster.close(uid)
            reign.closed[uid] = self._clock.now()
        for seen in listing.replicas:
            known = reign.replicas[seen.uid]
            never_ran = not known.uid and not seen.runs and seen.phase is Phase.ENDED
            if seen.workload == uid and (known.released or never_ran):
                await self._cluster.forget(seen.uid)

    async def _forget_finished(
        self, reign: Reign, wanted: Mapping[str, Wanted], listing: Listing
    ) -> None:
        """
        Let go what is finished and wanted no more: whoever finished it died before it was forgotten,
        or could not, and the scheduler's books were even meanwhile.
        """
        for uid in {seen.workload for seen in listing.replicas if seen.workload not in wanted}:
            if reign.works[uid].finished:
                await self._forget(reign, uid, listing)

    # Volumes.

    async def _have_volumes(
        self,
        reign: Reign,
        wanted_volumes: Mapping[str, WantedVolume],
        now: datetime,
    ) -> None:
        for uid, asked in wanted_volumes.items():
            known = reign.volumes[uid]
            if asked.revoked or known.bound or known.rejected is not None or known.deleted:
                continue
            try:
                bound = await self._cluster.bind(asked.volume)
                facts = aggregate.bind(known, asked.volume, bound.since, bound.node, now)
            except Unhonoured as error:
                facts = aggregate.reject_volume(known, asked.volume, error.reason, now)
            await reign.volumes.say(uid, facts, _meta_of(asked.position), reign.writer)

    async def _drop_volumes(
        self,
        reign: Reign,
        wanted: Mapping[str, Wanted],
        wanted_volumes: Mapping[str, WantedVolume],
        now: datetime,
    ) -> None:
        mounted = {
            volume
            for uid, work in wanted.items()
            if not reign.works[uid].finished
            for volume in volumes(work.workload)
        }
        for uid, asked in wanted_volumes.items():
            if not asked.revoked or uid in mounted:
                continue
            if not reign.volumes[uid].deleted:
                gone = await self._cluster.delete(uid)
                facts = aggregate.delete_volume(reign.volumes[uid], asked.volume, gone, now)
                if not await reign.volumes.say(uid, facts, _meta_of(asked.position), reign.writer):
                    continue
            await self._database.execute(self._queries["drop_wanted_volume"], uid)

    # The cluster itself.

    async def _register(self, reign: Reign) -> None:
        can, nodes = await self._cluster.capabilities(), await self._cluster.nodes()
        facts = aggregate.register(reign.known, self._cluster.uid, can, nodes, self._clock.now())
        if facts:
            await self._journal.append(Command(tuple(facts), META, writer=reign.writer))
            reign.known = await self._known()

    async def _attest(self, reign: Reign, listing: Listing) -> None:
        """State proof of life and watermark; all that this look told is durable."""
        if self._clock.monotonic() < reign.attested + self._settings.proof_seconds:
            return
        # What does not run may begin to, and its witness may be slow to write it down.
        told = listing.told or listing.began
        proofs = {
            seen.uid: seen.proof or told
            for seen in listing.replicas
            if reign.replicas[seen.uid].open
        }
        facts = aggregate.attest(reign.known, self._cluster.uid, told, proofs, PROOF_SLACK)
        await self._journal.append(Command(tuple(facts), META, writer=reign.writer))
        reign.known = await self._known()
        reign.attested = self._clock.monotonic()

    async def _measure(self, reign: Reign) -> None:
        """Keep what replicas use, for an hour."""
        if self._clock.monotonic() < reign.measured + self._settings.usage_seconds:
            return
        reign.measured = self._clock.monotonic()
        for uid, used in (await self._cluster.usage()).items():
            await self._database.execute(
                self._queries["add_usage"],
                uid,
                used.at,
                round(used.cpu_seconds * 1000),
                used.memory_bytes,
                used.gpu_milli,
                used.gpu_memory_bytes,
            )
        await self._database.execute(self._queries["forget_usage"], self._clock.now() - USAGE_KEPT)

    async def _known(self) -> Known:
        uid = self._cluster.uid
        row = await self._database.fetchrow(self._queries["known_cluster"], uid)
        nodes = await self._database.fetch(self._queries["known_nodes"], uid)
        can = None if row is None else row["capabilities"]
        return Known(
            None if can is None else api.Capabilities.FromString(can),
            {found["node"]: api.Node.FromString(found["body"]) for found in nodes},
            None if row is None else row["through"],
        )

    async def _wanted(self) -> dict[str, Wanted]:
        rows = await self._database.fetch(self._queries["wanted_workloads"])
        return {
            row["uid"]: Wanted(
                api.Workload.FromString(row["workload"]),
                json.loads(row["replicas"]),
                row["cause"],
                timedelta(milliseconds=row["grace_ms"]),
                row["position"],
            )
            for row in rows
        }

    async def _wanted_volumes(self) -> dict[str, WantedVolume]:
        rows = await self._database.fetch(self._queries["wanted_volumes"])
        return {
            row["uid"]: WantedVolume(
                api.Volume.FromString(row["volume"]), row["revoked"], row["position"]
            )
            for row in rows
        }


async def together(tasks: Iterable[Coroutine[Any, Any, bool]]) -> list[bool]:
    """Await all of them at once; the first that fails ends the others, and is raised in a group."""
    async with asyncio.TaskGroup() as group:
        running = [group.create_task(task, name="reconcile") for task in tasks]
    return [task.result() for task in running]


def _meta(wanted: Wanted) -> Meta:
    return _meta_of(wanted.position)


def _meta_of(position: int) -> Meta:
    return Meta(META.actor, cause_journal="scheduler/0", cause_position=position)
