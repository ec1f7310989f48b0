"""What really runs: replicas, what they print and use, a way into them, and the cluster they run on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from datetime import datetime
from typing import TYPE_CHECKING

from fermion.api.executor import v1 as api
from fermion.api.executor.v1 import service_pb2_grpc as stubs

if TYPE_CHECKING:
    from fermion.client import Line


class Runtime:
    """
    What runs for an owner, whoever declared it; `owner` is e.g. `projects/acme/instances/lab`.

    Without a `ReplicaSelector` it is about all replicas of the newest attempt. Raises `NotFound`
    (REPLICA_NOT_FOUND) where nothing like that has run, and `Unavailable` (CLUSTER_AWAY) where the
    cluster does not answer.
    """

    def __init__(self, line: Line) -> None:
        self._line = line
        self._stub = stubs.RuntimeServiceStub(line.channel)

    def list_replicas(self, owner: str, *, all_attempts: bool = False) -> Sequence[api.Replica]:
        """What runs, or ran last: newest attempt first, then by role and rank; empty where nothing did."""
        request = api.ListReplicasRequest(owner=owner, all_attempts=all_attempts)
        return self._line.ask(self._stub.ListReplicas, request).replicas

    def watch_replicas(
        self, owner: str, resume_token: str = "", send_initial: bool = True
    ) -> Iterator[api.WatchReplicasResponse]:
        """
        Follow changes, also over restarts of the platform; ends only by an error or by its caller.

        Where the journal was restored meanwhile (RESUME_TOKEN_EXPIRED), begin anew.
        """
        request = api.WatchReplicasRequest(
            owner=owner, resume_token=resume_token, send_initial=send_initial
        )
        return self._line.follow(self._stub.WatchReplicas, request, _go_on)

    def stream_logs(
        self,
        owner: str,
        *,
        follow: bool = False,
        since: datetime | None = None,
        tail: int | None = None,
        previous: bool = False,
        replica: api.ReplicaSelector | None = None,
        resume_token: str = "",
    ) -> Iterator[api.StreamLogsResponse]:
        """
        What was printed, oldest first, as chunks of bytes with their time, stream, replica and run.

        `follow` goes on until the replicas have ended, and first waits until there are some. `tail`
        is a number of last lines to begin with, `previous` the run before the present one. It goes on
        over restarts of the platform without a gap; `resume_token` of an answer goes on behind it.
        Raises `NotFound` (LOGS_GONE) where it is not kept any more.
        """
        request = _logs(owner, follow, since, tail, previous, replica, resume_token)
        return self._line.follow(self._stub.StreamLogs, request, _further)

    def logs(
        self,
        owner: str,
        *,
        follow: bool = False,
        since: datetime | None = None,
        tail: int | None = None,
        previous: bool = False,
        replica: api.ReplicaSelector | None = None,
    ) -> Iterator[str]:
        """What `stream_logs` answers, line by line, without where each comes from."""
        request = _logs(owner, follow, since, tail, previous, replica, "")
        lines = _Lines()
        with closing(self._line.follow(self._stub.StreamLogs, request, _further)) as answers:
            for answer in answers:
                found = lines.of(answer.chunks)
                yield from found
        found = lines.rest()
        yield from found

    def exec(
        self,
        owner: str,
        command: Sequence[str],
        *,
        requests: Iterator[api.ExecRequest] | None = None,
        tty: bool = False,
        size: api.ExecRequest.Size | None = None,
        replica: api.ReplicaSelector | None = None,
    ) -> Iterator[api.ExecResponse]:
        """
        Run a command beside what runs, of rank 0 unless said; its last answer has the exit code.

        `requests` bring its input, at most 64 KiB each, and new sizes of its terminal; when they end,
        and where there are none, its input ends. It is killed where its caller goes away: nothing is
        asked for again once it has begun. Raises `FailedPrecondition` (REPLICA_NOT_RUNNING).
        """
        start = api.ExecRequest.Start(
            owner=owner, command=command, tty=tty, size=size, replica=replica
        )
        return self._line.exchange(
            self._stub.Exec, api.ExecRequest(start=start), _with_end(requests)
        )

    def access(self, owner: str, *, replica: api.ReplicaSelector | None = None) -> dict[str, str]:
        """
        How the ports of what runs are opened, by name: URLs with their tokens, else `host:port`.

        Of rank 0 unless said. It is empty where it has no port, and whoever has it may use what runs:
        keep it from others. Raises `FailedPrecondition` (REPLICA_NOT_RUNNING).
        """
        request = api.GetAccessRequest(owner=owner, replica=replica)
        return dict(self._line.ask(self._stub.GetAccess, request).urls)

    def list_usage(
        self, owner: str, since: datetime | None = None
    ) -> Sequence[api.ListUsageResponse.Series]:
        """What each replica that ran within the last hour used, oldest sample first."""
        request = api.ListUsageRequest(owner=owner)
        if since is not None:
            request.since_time.FromDatetime(since)
        return self._line.ask(self._stub.ListUsage, request).series

    def get_cluster(self) -> api.Cluster:
        """What the cluster has and can honour, and up to when all that happened has been stated."""
        return self._line.ask(self._stub.GetCluster, api.GetClusterRequest()).cluster


class _Lines:
    """Puts lines together from chunks, which may end within one."""

    def __init__(self) -> None:
        self._open: dict[tuple[str, int, int], bytes] = {}

    def of(self, chunks: Sequence[api.LogChunk]) -> Sequence[str]:
        """Every line that is whole now."""
        found: list[str] = []
        for chunk in chunks:
            source = (chunk.replica_uid, chunk.run, chunk.stream)
            *whole, rest = (self._open.pop(source, b"") + chunk.data).split(b"\n")
            if rest:
                self._open[source] = rest
            found += map(_text, whole)
        return found

    def rest(self) -> Sequence[str]:
        """What no line's end came for."""
        return [_text(line) for line in self._open.values()]


def _text(line: bytes) -> str:
    return line.removesuffix(b"\r").decode(errors="replace")


def _logs(
    owner: str,
    follow: bool,
    since: datetime | None,
    tail: int | None,
    previous: bool,
    replica: api.ReplicaSelector | None,
    resume_token: str,
) -> api.StreamLogsRequest:
    request = api.StreamLogsRequest(
        owner=owner,
        follow=follow,
        tail_lines=tail,
        previous=previous,
        replica=replica,
        resume_token=resume_token,
    )
    if since is not None:
        request.since_time.FromDatetime(since)
    return request


def _with_end(
    requests: Iterator[api.ExecRequest] | None,
) -> Iterator[api.ExecRequest]:
    """Say that the input ends, when it does."""
    if requests is not None:
        yield from requests
    yield api.ExecRequest(stdin_closed=True)


def _go_on(request: api.WatchReplicasRequest, change: api.WatchReplicasResponse) -> None:
    if change.resume_token:
        request.resume_token = change.resume_token


def _further(request: api.StreamLogsRequest, answer: api.StreamLogsResponse) -> None:
    if answer.resume_token:
        request.resume_token = answer.resume_token
