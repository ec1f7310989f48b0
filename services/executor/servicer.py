"""Answers callers who ask what really runs, what it prints and uses, or who want to look inside."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import UTC, timedelta
from functools import partial
from itertools import pairwise
from typing import Final

from chassis.clock import Clock
from chassis.envelope import Recorded
from chassis.journal import Journal
from chassis.postgres import Database
from chassis.queries import Queries
from chassis.refusals import Invalid, Missing, Refused, Unavailable, Violation
from chassis.rpc import Context
from chassis.tasks import end
from chassis.watch import Kind, Watching
from fermion.api.executor import v1 as api
from fermion.api.executor.v1 import service_pb2_grpc
from fermion.api.workload import v1 as workload
from services.executor import projection
from services.executor.cluster import Away, Cluster, Gone, LogEntry, Session, Unhonoured
from services.executor.config import USAGE_KEPT

# Chunks that are sent as one message, where they are there already.
CHUNKS_MAX: Final = 200
CHUNK_BYTES_MAX: Final = 256 * 1024
# So often it is looked whether what is followed runs by now.
FOLLOW_SECONDS: Final = 2.0

CHANGES: Final = {
    Kind.INITIAL: api.WatchReplicasResponse.CHANGE_INITIAL,
    Kind.UPDATED: api.WatchReplicasResponse.CHANGE_UPDATED,
    # Replicas are never taken away; a deleted row would be one of another journal.
    Kind.DELETED: api.WatchReplicasResponse.CHANGE_UPDATED,
    Kind.BOOKMARK: api.WatchReplicasResponse.CHANGE_BOOKMARK,
}


class Outbox:
    """
    Chunks of a log that were read and not sent, each with the place behind it.

    So many, and so many bytes, and no more: whoever reads on waits until they are taken.
    """

    def __init__(self) -> None:
        self._ready: list[tuple[api.LogChunk, int]] = []
        self._bytes = 0
        self._closed = False
        self._some, self._room = asyncio.Event(), asyncio.Event()

    async def put(self, chunk: api.LogChunk, place: int) -> None:
        """Add one, once there is room."""
        while len(self._ready) >= CHUNKS_MAX or self._bytes >= CHUNK_BYTES_MAX:
            self._room.clear()
            await self._room.wait()
        self._ready.append((chunk, place))
        self._bytes += len(chunk.data)
        self._some.set()

    def close(self) -> None:
        """Nothing more comes."""
        self._closed = True
        self._some.set()

    async def take(self) -> list[tuple[api.LogChunk, int]]:
        """All that waits, or what comes next; nothing where nothing more comes."""
        while not self._ready and not self._closed:
            self._some.clear()
            await self._some.wait()
        ready, self._ready, self._bytes = self._ready, [], 0
        self._room.set()
        return ready


class RuntimeServicer(service_pb2_grpc.RuntimeServiceServicer):
    """Every RPC of `RuntimeService`; who may call has been checked before."""

    def __init__(
        self,
        cluster: Cluster,
        journal: Journal,
        database: Database,
        queries: Queries,
        clock: Clock,
    ) -> None:
        self._cluster = cluster
        self._journal = journal
        self._database = database
        self._queries = queries
        self._clock = clock
        self.watching: Watching[api.Replica] = Watching(journal, clock)

    async def ListReplicas(
        self, request: api.ListReplicasRequest, context: Context
    ) -> api.ListReplicasResponse:
        """Read the replicas of who bears the name now, or bore it last."""
        everyone = api.ReplicaSelector()
        found = await self._replicas(request.owner, everyone, every=request.all_attempts)
        return api.ListReplicasResponse(replicas=found)

    async def WatchReplicas(
        self, request: api.WatchReplicasRequest, context: Context
    ) -> AsyncIterator[api.WatchReplicasResponse]:
        """Send each replica of the name that changes once a change."""
        rows = await self._database.fetch(self._queries["owned_replicas"], request.owner)
        owned = {row["uid"] for row in rows}

        def touched(fact: Recorded) -> str | None:
            kind, _, uid = fact.stream.partition("/")
            if kind != "replica":
                return None
            said = fact.message
            if isinstance(said, workload.ReplicaScheduled) and said.subject.owner == request.owner:
                owned.add(uid)
            return uid if uid in owned else None

        changes = self.watching.follow(
            token=request.resume_token,
            send_initial=request.send_initial,
            project=request.owner.split("/")[1],
            touched=touched,
            current=self._current,
            initial=partial(self._initial, request.owner),
        )
        async for change in changes:
            yield api.WatchReplicasResponse(
                change=CHANGES[change.kind], replica=change.resource, resume_token=change.token
            )

    async def StreamLogs(
        self, request: api.StreamLogsRequest, context: Context
    ) -> AsyncIterator[api.StreamLogsResponse]:
        """Send what was printed, each replica's in order, and with `follow` what is printed from now on."""
        places = _places(request.resume_token)
        replicas = await self._printing(request)
        since = (
            request.since_time.ToDatetime(tzinfo=UTC) if request.HasField("since_time") else None
        )
        # What waits here has not been sent, so no token counts it yet.
        outbox = Outbox()

        async def read(replica: api.Replica) -> None:
            run = replica.run - 1 if request.previous else None
            after = places.get(replica.uid)
            if after is None and request.HasField("tail_lines"):
                after = await self._cluster.log_tail(replica.uid, request.tail_lines, run)
            entries = self._cluster.logs(
                replica.uid, after=after or 0, run=run, follow=request.follow
            )
            async for entry in entries:
                if since is None or entry.at >= since:
                    await outbox.put(_chunk(replica.uid, entry), entry.offset)

        async def read_all() -> None:
            try:
                async with asyncio.TaskGroup() as group:
                    for replica in replicas:
                        group.create_task(read(replica), name=f"logs of {replica.uid}")
            finally:
                outbox.close()

        reading = asyncio.create_task(read_all(), name="logs")
        try:
            while ready := await outbox.take():
                places.update((chunk.replica_uid, place) for chunk, place in ready)
                chunks = [chunk for chunk, _ in ready]
                yield api.StreamLogsResponse(chunks=chunks, resume_token=_token(places))
            await _raised(reading)
        finally:
            await end(reading)

    async def Exec(
        self, requests: AsyncIterator[api.ExecRequest], context: Context
    ) -> AsyncIterator[api.ExecResponse]:
        """Run a command beside what runs, and end it with the call."""
        first = await anext(requests)
        start = first.start
        if not first.HasField("start"):
            raise Invalid(
                "FIELD_INVALID",
                "start is not set in the first request.",
                violations=(Violation("start", "must be set in the first request", "exec.start"),),
                next_step="Say in the first request what to run, and where.",
                field="start",
            )
        replica = await self._running(start.owner, start.replica)
        size = start.size if start.HasField("size") else api.ExecRequest.Size(rows=24, columns=80)
        try:
            async with self._cluster.execute(
                replica.uid, start.command, tty=start.tty, rows=size.rows, columns=size.columns
            ) as session:
                feeding = asyncio.create_task(_feed(session, first, requests), name="exec input")
                try:
                    async for stream, data in session.output():
                        if stream == 1:
                            yield api.ExecResponse(stdout=data)
                        else:
                            yield api.ExecResponse(stderr=data)
                    yield api.ExecResponse(exit_code=await session.wait())
                finally:
                    await end(feeding)
        except Gone as error:
            raise _not_running(start.owner) from error
        except Away as error:
            raise _away(error) from error
        except Unhonoured as error:
            raise Refused(
                "EXEC_NOT_HONOURED",
                f"This cluster cannot run that inside a replica: {error.reason.message}",
                next_step="Leave out what it cannot honour.",
                field=error.field,
                why=error.reason.code,
            ) from error

    async def GetAccess(
        self, request: api.GetAccessRequest, context: Context
    ) -> api.GetAccessResponse:
        """Tell how the ports of a replica are opened; the token is made for the answer, and kept nowhere."""
        replica = await self._running(request.owner, request.replica)
        try:
            return api.GetAccessResponse(urls=await self._cluster.access(replica.uid))
        except Gone as error:
            raise _not_running(request.owner) from error
        except Away as error:
            raise _away(error) from error

    async def ListUsage(
        self, request: api.ListUsageRequest, context: Context
    ) -> api.ListUsageResponse:
        """Read what replicas used; the last hour is kept."""
        since = self._clock.now() - USAGE_KEPT
        if request.HasField("since_time"):
            since = max(since, request.since_time.ToDatetime(tzinfo=UTC))
        replicas = await self._replicas(request.owner, api.ReplicaSelector(), every=True)
        rows = await self._database.fetch(
            self._queries["list_usage"], [replica.uid for replica in replicas], since
        )
        response = api.ListUsageResponse()
        for replica in replicas:
            own = [row for row in rows if row["replica"] == replica.uid]
            if len(own) < 2:
                continue
            series = response.series.add(replica_uid=replica.uid)
            for before, row in pairwise(own):
                span = max(1, (row["at"] - before["at"]) // timedelta(milliseconds=1))
                sample = series.samples.add(
                    # A counter that fell belongs to a new run.
                    cpu_milli=max(0, row["cpu_ms"] - before["cpu_ms"]) * 1000 // span,
                    memory_bytes=row["memory_bytes"],
                    gpu_milli=row["gpu_milli"],
                    gpu_memory_bytes=row["gpu_memory_bytes"],
                )
                sample.time.FromDatetime(row["at"])
        return response

    async def GetCluster(
        self, request: api.GetClusterRequest, context: Context
    ) -> api.GetClusterResponse:
        """Tell what was stated of the cluster."""
        uid = self._cluster.uid
        row = await self._database.fetchrow(self._queries["known_cluster"], uid)
        nodes = await self._database.fetch(self._queries["known_nodes"], uid)
        found = api.Cluster(
            name=f"clusters/{uid}",
            nodes=[workload.Node.FromString(node["body"]) for node in nodes],
        )
        if row is not None and row["capabilities"] is not None:
            found.capabilities.CopyFrom(workload.Capabilities.FromString(row["capabilities"]))
        if row is not None and row["through"] is not None:
            found.watermark_time.FromDatetime(row["through"])
        return api.GetClusterResponse(cluster=found)

    async def _replicas(
        self, owner: str, which: api.ReplicaSelector, *, every: bool = False
    ) -> list[api.Replica]:
        """The chosen replicas of who bears a name now, or bore it last; none where nothing ever ran."""
        newest = await self._database.fetchrow(self._queries["newest_owner"], owner)
        if newest is None:
            return []
        attempt = 0 if every or which.replica_uid else which.attempt or newest["attempt"]
        rows = await self._database.fetch(
            self._queries["list_replicas"], owner, newest["owner_uid"], attempt
        )
        return [
            projection.replica(row)
            for row in rows
            if which.replica_uid in ("", row["uid"])
            and which.role in ("", row["role"])
            and (not which.HasField("rank") or which.rank == row["rank"])
        ]

    async def _printing(self, request: api.StreamLogsRequest) -> list[api.Replica]:
        """The replicas whose logs are asked for; with `follow` it waits until there are some."""
        while True:
            head = await self._journal.head()
            found = await self._replicas(request.owner, request.replica)
            if request.previous:
                found = [replica for replica in found if replica.run > 0]
            if found:
                return found
            if not request.follow or request.previous or request.replica.replica_uid:
                raise _not_found(request.owner)
            await self._journal.grown(head.position, FOLLOW_SECONDS)

    async def _running(self, owner: str, which: api.ReplicaSelector) -> api.Replica:
        found = await self._replicas(owner, which)
        if not found:
            raise _not_found(owner)
        alive = [
            replica
            for replica in found
            if replica.state in (api.REPLICA_STATE_RUNNING, api.REPLICA_STATE_DRAINING)
        ]
        if not alive:
            raise _not_running(owner)
        return min(alive, key=lambda replica: (replica.role, replica.rank))

    async def _current(self, uids: Sequence[str]) -> Mapping[str, api.Replica]:
        rows = await self._database.fetch(self._queries["find_replicas"], list(uids))
        return {row["uid"]: projection.replica(row) for row in rows}

    async def _initial(self, owner: str) -> Sequence[tuple[str, api.Replica]]:
        found = await self._replicas(owner, api.ReplicaSelector())
        return [(replica.uid, replica) for replica in found]


async def _feed(
    session: Session, first: api.ExecRequest, requests: AsyncIterator[api.ExecRequest]
) -> None:
    """Hand on what the caller sends, until he sends no more."""
    await _give(session, first)
    async for request in requests:
        await _give(session, request)


async def _give(session: Session, request: api.ExecRequest) -> None:
    if request.HasField("resize"):
        await session.resize(request.resize.rows, request.resize.columns)
    if request.stdin:
        await session.write(request.stdin)
    if request.stdin_closed:
        await session.close_input()


async def _raised(reading: asyncio.Task[None]) -> None:
    """Raise what ended the reading, as callers know it."""
    try:
        await reading
    except ExceptionGroup as group:
        if group.subgroup(Gone) is not None:
            raise Missing(
                "LOGS_GONE",
                "What it printed is not kept any more.",
                next_step="Logs are kept for some days after a replica has ended.",
            ) from group
        if (away := group.subgroup(Away)) is not None:
            raise _away(away.exceptions[0]) from group
        raise


def _chunk(replica: str, entry: LogEntry) -> api.LogChunk:
    chunk = api.LogChunk(
        stream=api.LogChunk.STREAM_STDERR if entry.stream == 2 else api.LogChunk.STREAM_STDOUT,
        data=entry.data,
        replica_uid=replica,
        run=entry.run,
        lost_bytes=entry.lost,
    )
    chunk.time.FromDatetime(entry.at)
    return chunk


def _token(places: Mapping[str, int]) -> str:
    body = json.dumps(places, sort_keys=True, separators=(",", ":"))
    return base64.urlsafe_b64encode(body.encode()).decode()


def _places(token: str) -> dict[str, int]:
    """Where a resumed call goes on, by replica."""
    if not token:
        return {}
    try:
        found = json.loads(base64.urlsafe_b64decode(token.encode()))
        return {str(replica): int(place) for replica, place in found.items()}
    # JSON has numbers without end, of which no whole one can be made.
    except (ValueError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise Invalid(
            "RESUME_TOKEN_INVALID",
            "resume_token is not one that this call gave.",
            violations=(Violation("resume_token", "must be one that this call gave"),),
            next_step="Send a resume_token that this call gave, or none.",
            field="resume_token",
            value=token,
        ) from error


def _not_found(owner: str) -> Missing:
    return Missing(
        "REPLICA_NOT_FOUND",
        f"Nothing has run for {owner} that is like this.",
        next_step=f"See what did: fermion replicas {owner.rsplit('/', 1)[-1]} --all",
        owner=owner,
    )


def _not_running(owner: str) -> Refused:
    return Refused(
        "REPLICA_NOT_RUNNING",
        f"Nothing runs for {owner} now.",
        next_step="Wait until it runs: fermion instances get shows its state and why.",
        owner=owner,
    )


def _away(error: BaseException) -> Unavailable:
    return Unavailable(
        "CLUSTER_AWAY",
        f"The cluster does not answer: {error}",
        next_step="Send the same request again in a moment.",
    )
