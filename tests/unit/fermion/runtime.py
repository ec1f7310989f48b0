"""What runs on the platform of a few lines: replicas that are told, and commands that really run."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from queue import SimpleQueue
from threading import Event, Thread

import grpc
from google.protobuf.message import Message

from fermion.api.executor import v1 as api
from fermion.api.executor.v1 import service_pb2_grpc as executor_grpc
from fermion.api.workload import v1 as workload
from tests.unit.fermion.keyboard import login, resize


@dataclass
class Running:
    """What runs, and what it printed and used."""

    # By owner, newest attempt first.
    replicas: dict[str, list[api.Replica]] = field(default_factory=dict)
    # By owner: how its ports are opened.
    access: dict[str, dict[str, str]] = field(default_factory=dict)
    usage: dict[str, list[api.ListUsageResponse.Series]] = field(default_factory=dict)
    # Streams of WatchReplicas and StreamLogs, in order; one that is followed by another one breaks.
    watches: deque[list[api.WatchReplicasResponse]] = field(default_factory=deque)
    logs: deque[list[api.StreamLogsResponse]] = field(default_factory=deque)
    cluster: api.Cluster = field(
        default_factory=lambda: api.Cluster(
            name="clusters/" + "k" * 26,
            capabilities=workload.Capabilities(
                cluster_kind="local",
                limits=workload.Capabilities.LIMITS_CGROUP2,
                images=[workload.Capabilities.Runnable(repository="host")],
            ),
            nodes=[workload.Node(node="here", cpu_milli=8000, memory_bytes=32 * 2**30)],
        )
    )
    # Set when a command was ended because its caller had gone.
    killed: Event = field(default_factory=Event)
    # Whether the last stream of logs goes on, as one that is followed does, until its caller is gone.
    stays: bool = False
    # Whether commands are left as a platform does that ends.
    exec_breaks: bool = False


class Runtime(executor_grpc.RuntimeServiceServicer):
    """Answers what it was told, and runs commands on this machine."""

    def __init__(
        self,
        take: Callable[[str, Message, grpc.ServicerContext], None],
        end: Callable[[grpc.ServicerContext], None],
        running: Running,
    ) -> None:
        self._take = take
        self._end = end
        self._running = running

    def ListReplicas(
        self, request: api.ListReplicasRequest, context: grpc.ServicerContext
    ) -> api.ListReplicasResponse:
        self._take("ListReplicas", request, context)
        found = self._running.replicas.get(request.owner, [])
        newest = max((one.attempt for one in found), default=0)
        return api.ListReplicasResponse(
            replicas=[one for one in found if request.all_attempts or one.attempt == newest]
        )

    def WatchReplicas(
        self, request: api.WatchReplicasRequest, context: grpc.ServicerContext
    ) -> Iterator[api.WatchReplicasResponse]:
        self._take("WatchReplicas", request, context)
        _let_in(context)
        yield from self._running.watches.popleft()
        if self._running.watches:
            _break(context)

    def StreamLogs(
        self, request: api.StreamLogsRequest, context: grpc.ServicerContext
    ) -> Iterator[api.StreamLogsResponse]:
        self._take("StreamLogs", request, context)
        _let_in(context)
        yield from self._running.logs.popleft()
        if self._running.logs:
            _break(context)
        if self._running.stays:
            gone = Event()
            context.add_callback(gone.set)
            gone.wait()

    def Exec(
        self, requests: Iterator[api.ExecRequest], context: grpc.ServicerContext
    ) -> Iterator[api.ExecResponse]:
        first = next(requests)
        self._take("Exec", first, context)
        _let_in(context)
        if self._running.exec_breaks:
            self._end(context)
        yield from _run(first.start, requests, context, self._running.killed)

    def GetAccess(
        self, request: api.GetAccessRequest, context: grpc.ServicerContext
    ) -> api.GetAccessResponse:
        self._take("GetAccess", request, context)
        return api.GetAccessResponse(urls=self._running.access.get(request.owner, {}))

    def ListUsage(
        self, request: api.ListUsageRequest, context: grpc.ServicerContext
    ) -> api.ListUsageResponse:
        self._take("ListUsage", request, context)
        return api.ListUsageResponse(series=self._running.usage.get(request.owner, []))

    def GetCluster(
        self, request: api.GetClusterRequest, context: grpc.ServicerContext
    ) -> api.GetClusterResponse:
        self._take("GetCluster", request, context)
        return api.GetClusterResponse(cluster=self._running.cluster)


def _let_in(context: grpc.ServicerContext) -> None:
    """Say that the call was let in, as the door does before anything else."""
    context.send_initial_metadata((("x-request-id", "req-1"),))


def _break(context: grpc.ServicerContext) -> None:
    context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")


def _run(
    start: api.ExecRequest.Start,
    requests: Iterator[api.ExecRequest],
    context: grpc.ServicerContext,
    killed: Event,
) -> Iterator[api.ExecResponse]:
    """Run a command with pipes or a terminal of its own, until it ends or its caller goes."""
    if start.tty:
        ours, theirs = pty.openpty()
        _resize(ours, start.size)
        program = subprocess.Popen(
            login(start.command), stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
        )
        os.close(theirs)
        feed, sources = ours, {1: ours}
    else:
        pipes = subprocess.PIPE
        program = subprocess.Popen(
            start.command, stdin=pipes, stdout=pipes, stderr=pipes, start_new_session=True
        )
        assert program.stdin
        assert program.stdout
        assert program.stderr
        feed = program.stdin.fileno()
        sources = {1: program.stdout.fileno(), 2: program.stderr.fileno()}

    def end() -> None:
        if program.poll() is None:
            # All of its session: what it has started holds its output open.
            os.killpg(program.pid, signal.SIGKILL)
            killed.set()

    context.add_callback(end)
    printed: SimpleQueue[tuple[int, bytes]] = SimpleQueue()
    Thread(target=_feed, args=(requests, program, feed, start.tty), daemon=True).start()
    for stream, source in sources.items():
        Thread(target=_read, args=(source, stream, printed), daemon=True).start()
    left = len(sources)
    while left:
        stream, data = printed.get()
        left -= not data
        if data:
            yield api.ExecResponse(stdout=data) if stream == 1 else api.ExecResponse(stderr=data)
    code = program.wait()
    yield api.ExecResponse(exit_code=code if code >= 0 else 128 - code)


def _feed(
    requests: Iterator[api.ExecRequest],
    program: subprocess.Popen[bytes],
    descriptor: int,
    tty: bool,
) -> None:
    try:
        for request in requests:
            if request.HasField("resize"):
                _resize(descriptor, request.resize)
            if request.stdin:
                os.write(descriptor, request.stdin)
            if request.stdin_closed and not tty and program.stdin:
                program.stdin.close()
    except (grpc.RpcError, OSError):
        # Its caller is gone, or it has ended.
        return


def _read(source: int, stream: int, printed: SimpleQueue[tuple[int, bytes]]) -> None:
    data = b"begin"
    while data:
        try:
            data = os.read(source, 65536)
        except OSError:
            # The end of a terminal that nobody has open any more.
            data = b""
        printed.put((stream, data))


def _resize(descriptor: int, size: api.ExecRequest.Size) -> None:
    if size.rows:
        resize(descriptor, size.rows, size.columns)
