"""One process of the platform: starts its services in order, keeps their loops, and drains."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import grpc.aio
from google.protobuf.message import Message

import chassis
from chassis import config, telemetry
from chassis.bus import Bus
from chassis.callers import JOURNAL as CALLERS_JOURNAL
from chassis.callers import Callers
from chassis.clock import Clock, SystemClock
from chassis.config import Common
from chassis.envelope import Meta, Recorded, Registry
from chassis.feed import Feed, LogSource
from chassis.figures import FIGURES, Watch
from chassis.journal import Book, Place, Write
from chassis.keys import PublicKey, SigningKey, parse_jwks
from chassis.lease import Lease
from chassis.lineage import announce
from chassis.log_service import Hosted, JournalServicer
from chassis.migrations import migrate
from chassis.parking import place_operation
from chassis.postgres import Database
from chassis.queries import Queries
from chassis.readers import Consumer, Folder, Reader
from chassis.refusals import (
    Conflict,
    Exhausted,
    Invalid,
    OutcomeUnknown,
    Refused,
    Unavailable,
    Violation,
)
from chassis.relay import Relay
from chassis.remote import LocalLog, Peer, RemoteLog, channel_to
from chassis.rpc import Reached, Server, door
from chassis.service import Kernel, Mount, Target, Wired
from chassis.store import PostgresJournal
from chassis.tasks import astray, end
from chassis.telemetry import Metrics
from fermion.api.journal.v1 import events_pb2, service_pb2_grpc

DRAIN_SECONDS: Final = 5.0
HOUSEKEEPING_SECONDS: Final = 60.0
# EX_CONFIG of sysexits.h; whoever supervises need not start such a process again and again.
EXIT_REFUSED: Final = 78
# What the same start may find otherwise a moment later.
PASSING: Final = (Conflict, Exhausted, OutcomeUnknown, Unavailable)
KERNEL_MIGRATIONS: Final = Path(chassis.__file__).parent / "migrations"

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Part:
    """One service of this process while it is being put together."""

    target: Target
    settings: object
    database: Database
    journal: PostgresJournal
    bus: Bus
    queries: Queries
    book: Book
    relay: Relay
    relay_lease: Lease
    readers: list[Reader]
    # What its own loops have asked for.
    leases: list[Lease]
    # Positions that a caller may have seen elsewhere, by journal, and how to wait for each.
    waits: dict[str, list[Reached]]
    wired: Wired | None = None


class Process:
    """The services of one process, from their databases to the open port."""

    def __init__(
        self,
        targets: Mapping[str, Target],
        chosen: Sequence[str],
        environment: Mapping[str, str],
        clock: Clock | None = None,
    ) -> None:
        self.common = config.load(Common, environment)
        self.metrics = Metrics()
        self.ready = asyncio.Event()
        self.stopping = asyncio.Event()
        self.server: Server | None = None
        self._environment = environment
        self._clock = clock or SystemClock()
        self._holder = f"{socket.gethostname()}/{os.getpid()}/{id(self):x}"
        self._targets = targets
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._loops: list[asyncio.Task[None]] = []
        self._parts = [self._part(targets[name]) for name in chosen]
        self._callers = self._make_callers()

    @property
    def port(self) -> int:
        """Where the server listens."""
        assert self.server is not None
        return self.server.port

    async def run(self) -> None:
        """
        Start, serve until `stopping` is set, drain. A loop that ends by itself raises here.
        Told to stop while it still starts, it ends without having served.

        The order of the start: databases, migrations, journals, what a service begins with, bus,
        relays, callers, readers, and the port last: it is open when all behind it is there.
        """
        try:
            async with asyncio.TaskGroup() as group:
                try:
                    starting = group.create_task(self._start(group), name="start")
                    if await self._unless_stopped(starting):
                        self.ready.set()
                        await self.stopping.wait()
                    await self._drain()
                except asyncio.CancelledError:
                    # A loop has failed. The group tells the others once, and one may miss it.
                    await end(*self._loops)
                    raise
        finally:
            if self.server is not None:
                # Where a loop has failed, nobody is served by what is left.
                await self.server.stop(0)
            for channel in self._channels.values():
                await channel.close()
            for part in self._parts:
                await part.database.close()

    def begin(self, loop: Coroutine[Any, Any, None], name: str, group: asyncio.TaskGroup) -> None:
        """Run a loop that only ends when it is cancelled."""

        async def guarded() -> None:
            try:
                await loop
            except asyncio.CancelledError as error:
                if astray():
                    raise RuntimeError(f"{name} was cancelled by nobody") from error
                raise
            raise RuntimeError(f"{name} ended by itself")

        self._loops.append(group.create_task(guarded(), name=name))

    async def _unless_stopped(self, starting: asyncio.Task[None]) -> bool:
        """Wait for the start; False where it was told to stop before it came to its end."""
        stopped = asyncio.create_task(self.stopping.wait(), name="stopping")
        try:
            await asyncio.wait((starting, stopped), return_when=asyncio.FIRST_COMPLETED)
        finally:
            await end(stopped)
        if starting.done():
            # What it raised ends the group, and is raised there.
            return not starting.cancelled() and starting.exception() is None
        await end(starting)
        return False

    async def _start(self, group: asyncio.TaskGroup) -> None:
        for part in self._parts:
            await _patiently(self._open_database, part, self.common.start_seconds_max)
            await part.journal.open()
            self.begin(part.journal.run(), f"{part.target.name} committer", group)
            # Where it was restored meanwhile, before anything else is said.
            await announce(part.journal, Meta(f"service:{part.target.name}"))
            part.wired = part.target.wire(self._kernel(part))
            if part.wired.begin is not None:
                await part.wired.begin()
        for part in self._parts:
            name = part.target.name
            self.begin(part.bus.run(), f"{name} bus", group)
            self.begin(part.relay_lease.run(), f"{name} relay lease", group)
            self.begin(part.relay.run(), f"{name} relay", group)
        self.begin(self._callers.run(), "callers", group)
        for part in self._parts:
            assert part.wired is not None
            for consumer in self._heard(part):
                if self._targets[consumer.source].shard is None:
                    self._read(part, consumer, f"{consumer.source}/0", group)
        self.begin(self._read_enrolled(group), "enrolled journals", group)
        for part in self._parts:
            assert part.wired is not None
            for lease in part.leases:
                self.begin(lease.run(), f"{lease.name} lease", group)
            for loop in part.wired.loops:
                self.begin(loop.run(), f"{part.target.name} {loop.name}", group)
        self.begin(self._keep_house(), "housekeeping", group)
        for part in self._parts:
            self._show(part, group)
        self.server = self._make_server()
        await self.server.start()
        self.begin(self.server.tell_health(), "health", group)
        names = ", ".join(part.target.name for part in self._parts)
        _log.info("%s ready on port %d", names, self.server.port)

    async def _drain(self) -> None:
        """Readiness first, then calls, then what reads, copies and commits, then connections."""
        _log.info("draining")
        if self.server is not None:
            await self.server.stop(DRAIN_SECONDS)
        for task in reversed(self._loops):
            await end(task)

    async def _open_database(self, part: Part) -> None:
        database, folder = part.database, part.target.folder / "migrations"
        await migrate(database, KERNEL_MIGRATIONS, database.schema)
        if (folder / "state").is_dir():
            await migrate(database, folder / "state", database.schema)
        await migrate(database, folder / "rows", database.rows_schema)
        await database.open(pool_size=self.common.pool_size)

    def _part(self, target: Target) -> Part:
        common, name = self.common, target.name
        if not common.postgres_dsn:
            raise Invalid(
                "SETTING_MISSING",
                "FERMION_POSTGRES_DSN is not set.",
                violations=(Violation("FERMION_POSTGRES_DSN", "must name a PostgreSQL database"),),
                next_step="Set it, or run `fermion up`, which brings its own PostgreSQL.",
                variable="FERMION_POSTGRES_DSN",
            )
        settings = config.load(target.settings, self._environment)
        shard = "0" if target.shard is None else target.shard(settings)
        database = Database(common.postgres_dsn, name)
        queries = Queries.load(target.folder / "queries.sql")
        book = with_operations(target.book)
        journal = PostgresJournal(
            database,
            registry=Registry.of((*target.events, events_pb2.DESCRIPTOR)),
            book=book,
            queries=queries,
            shard=shard,
            observer=self.metrics.journal(f"{name}/{shard}"),
            queue_max=common.commit_queue,
        )
        seed = common.nats_keys / f"{name}.nk" if common.nats_keys != Path() else None
        bus = Bus(common.nats_url, name, seed)
        lease = Lease(database, f"relay {journal.name}", self._holder, self._clock)
        return Part(
            target,
            settings,
            database,
            journal,
            bus,
            queries,
            book,
            Relay(journal, bus, lease),
            lease,
            [],
            [],
            {},
        )

    def _kernel(self, part: Part) -> Kernel[Any]:
        path = self.common.signing_key

        def lease(name: str) -> Lease:
            made = Lease(part.database, name, self._holder, self._clock)
            part.leases.append(made)
            return made

        return Kernel(
            service=part.target.name,
            journal=part.journal,
            database=part.database,
            queries=part.queries,
            clock=self._clock,
            callers=self._callers,
            settings=part.settings,
            book=part.book,
            lease=lease,
            peer=partial(self._peer, part),
            signing_key=SigningKey.load(path) if path != Path() else None,
        )

    def _make_callers(self) -> Callers:
        keys: list[PublicKey] = []
        path = self.common.public_keys
        if path != Path():
            try:
                keys = parse_jwks(path.read_text())
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise Invalid(
                    "PUBLIC_KEYS_UNREADABLE",
                    f"FERMION_PUBLIC_KEYS is {str(path)!r}, which holds no JWKS ({error}).",
                    violations=(Violation("FERMION_PUBLIC_KEYS", "must name a JWKS file"),),
                    next_step="Name the file with the platform's public keys.",
                    path=str(path),
                ) from error
        service = CALLERS_JOURNAL.split("/")[0]
        own = next((part for part in self._parts if part.target.name == service), None)
        registry = Registry.of(self._targets[service].events)
        log, bus = self._log_of(CALLERS_JOURNAL, registry, own or self._parts[0])
        return Callers(
            Feed(CALLERS_JOURNAL, log, None if own else bus, registry), self._clock, keys
        )

    def _heard(self, part: Part) -> Iterator[Consumer | Folder]:
        """
        What of a service reads a journal that there is here.

        A platform may do without a service that another one reads by its target, and what that one
        would do because of it is not done then. A source that no target names is a mistake.
        """
        assert part.wired is not None
        for consumer in part.wired.consumers:
            if consumer.source in self._targets or consumer.source not in part.target.reads:
                yield consumer
            else:
                _log.info("%s reads nobody: no %s here", consumer.name, consumer.source)

    def _read(
        self, part: Part, consumer: Consumer | Folder, journal: str, group: asyncio.TaskGroup
    ) -> None:
        """Let a consumer of a service read a journal from now on."""
        source = self._targets[consumer.source]
        own = journal == part.journal.name
        registry = Registry.of((*source.events, events_pb2.DESCRIPTOR))
        log, _ = self._log_of(journal, registry, part)
        feed = Feed(journal, log, None if own else part.bus, registry)
        lease = Lease(part.database, f"reader {consumer.name} {journal}", self._holder, self._clock)
        reader = Reader(consumer, feed, part.journal, part.database, part.queries, lease, registry)
        part.readers.append(reader)
        if not own:
            part.waits.setdefault(journal, []).append(reader.reached)
        self.begin(lease.run(), f"{lease.name} lease", group)
        self.begin(reader.run(), f"{reader.name} reader of {journal}", group)

    async def _read_enrolled(self, group: asyncio.TaskGroup) -> None:
        """Read the journal of each cluster from when it is enrolled, wherever its service is read."""
        known: set[str] = set()
        while True:
            for journal in [name for name in self._callers.directory.journals if name not in known]:
                known.add(journal)
                service = journal.split("/")[0]
                for part in self._parts:
                    assert part.wired is not None
                    for consumer in part.wired.consumers:
                        if consumer.source == service:
                            self._read(part, consumer, journal, group)
            await self._callers.moved()

    def _log_of(self, journal: str, registry: Registry, reader: Part) -> tuple[LogSource, Bus]:
        """Where a journal's old facts come from: this process's own, or its owner's call."""
        if journal == reader.journal.name:
            return LocalLog(reader.journal), reader.bus
        peer = self._peer(reader, journal.split("/")[0])
        return RemoteLog(peer.channel, journal, peer.token, registry), reader.bus

    def _peer(self, asking: Part, service: str) -> Peer:
        """Another service, at the address that the settings give for it, asked as this one."""
        own = f"FERMION_ADDRESS_{service.upper()}"
        variable = own if self._environment.get(own) else "FERMION_ADDRESS"
        addresses = self._environment.get(own) or self.common.address
        channel = self._channels.get(addresses)
        if channel is None:
            channel = self._channels[addresses] = channel_to(variable, addresses)
        token = self.common.service_tokens / f"{asking.target.name}.token"

        def read_token() -> str:
            try:
                return token.read_text().strip()
            except OSError as error:
                raise Unavailable(
                    "SERVICE_TOKEN_MISSING",
                    f"{token} cannot be read ({error.strerror}).",
                    next_step="Name the folder of the services' tokens in FERMION_SERVICE_TOKENS.",
                ) from error

        return Peer(service, channel, read_token)

    def _make_server(self) -> Server:
        hosted = {
            part.journal.name: Hosted(
                part.journal,
                part.database,
                part.book,
                part.queries,
                part.target.folder / "migrations" / "rows",
                part.bus,
                part.readers,
            )
            for part in self._parts
        }
        mounts = [
            Mount(
                "fermion.api.journal.v1.JournalService",
                service_pb2_grpc.add_JournalServiceServicer_to_server,
                JournalServicer(hosted, self.metrics),
            )
        ]
        reads: dict[str, dict[str, list[Reached]]] = {
            mounts[0].service_name: {CALLERS_JOURNAL: [self._callers.reached]}
        }
        for part in self._parts:
            assert part.wired is not None
            part.waits.setdefault(CALLERS_JOURNAL, []).append(self._callers.reached)
            for mount in part.wired.servicers:
                mounts.append(mount)
                reads[mount.service_name] = part.waits
        return Server(
            door(self._callers, mounts, reads, self.metrics),
            mounts,
            self.common.listen,
            telemetry.recording(),
        )

    def _show(self, part: Part, group: asyncio.TaskGroup) -> None:
        """Let operators see what a service does, from now on."""
        assert part.wired is not None
        watch = Watch(
            part.journal,
            part.database,
            part.bus,
            part.readers,
            self._clock,
            part.wired.measure,
        )
        self.metrics.show((*FIGURES, *part.target.figures), watch.samples)
        self.begin(watch.run(), f"{part.target.name} figures", group)

    async def _keep_house(self) -> None:
        """Let go of what is kept for a time only."""
        while True:
            await asyncio.sleep(HOUSEKEEPING_SECONDS)
            for part in self._parts:
                with suppress(Unavailable):
                    await part.journal.forget_requests()


def main(targets: Mapping[str, Target], chosen: Sequence[str]) -> int:
    """
    Run a process until SIGTERM or SIGINT; the exit code.

    0 where it was told to end, 1 where something failed, EXIT_REFUSED where no other start will
    fare better before somebody has mended what its last lines say.
    """
    # What is loaded by now stays: to look through all of it for garbage, again and again, would hold up
    # every call for as long. What is new is looked at as often as ever: big messages hang in cycles.
    gc.freeze()
    try:
        common = config.load(Common, os.environ)
        telemetry.start_logs(common)
        telemetry.start_traces(common, "-".join(chosen))
        asyncio.run(_main(targets, chosen, common))
    except (Refused, BaseExceptionGroup) as error:
        leaves = _leaves(error)
        for leaf in leaves:
            if isinstance(leaf, Refused):
                _log.error("%s %s", leaf, leaf.next_step)
            else:
                _log.critical("a loop failed; the process ends", exc_info=leaf)
        lasting = all(
            isinstance(leaf, Refused) and not isinstance(leaf, PASSING) for leaf in leaves
        )
        return EXIT_REFUSED if lasting else 1
    return 0


async def _main(targets: Mapping[str, Target], chosen: Sequence[str], common: Common) -> None:
    process = Process(targets, chosen, os.environ)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, process.stopping.set)
    stop = process.metrics.serve(common.metrics_listen) if common.metrics_listen else None
    try:
        await process.run()
    finally:
        if stop is not None:
            stop()


def with_operations(book: Book) -> Book:
    """Let a service's journal also hold what operators did about its readers; that has no rows."""

    def place(fact: Message) -> Place:
        return place_operation(fact) or book.place(fact)

    def project(record: Recorded) -> Sequence[Write]:
        if record.message is not None and place_operation(record.message) is not None:
            return ()
        return book.project(record)

    return replace(book, place=place, project=project)


async def _patiently(step: Callable[[Part], Awaitable[None]], part: Part, seconds: float) -> None:
    """Try a step until its database is there, or so many seconds have passed; say each cause once."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    told = ""
    while True:
        try:
            await step(part)
            return
        except Unavailable as error:
            if loop.time() >= deadline:
                raise
            if str(error) != told:
                _log.info("%s waits for its database: %s", part.target.name, error)
            told = str(error)
            await asyncio.sleep(0.2)


def _leaves(error: BaseException) -> list[BaseException]:
    if not isinstance(error, BaseExceptionGroup):
        return [error]
    return [leaf for one in error.exceptions for leaf in _leaves(one)]
