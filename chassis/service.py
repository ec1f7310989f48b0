"""What a service hands to the chassis, and what it gets from it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from google.protobuf.descriptor import FileDescriptor

from chassis.callers import Callers
from chassis.clock import Clock
from chassis.journal import Book, Journal
from chassis.keys import SigningKey
from chassis.lease import Lease
from chassis.postgres import Database
from chassis.queries import Queries
from chassis.readers import Consumer, Folder
from chassis.remote import Peer
from chassis.telemetry import Figure, Sample

Settings = TypeVar("Settings")


@dataclass(frozen=True, slots=True)
class Kernel(Generic[Settings]):
    """Everything that a service stands on; handed to its `wire`."""

    service: str
    journal: Journal
    database: Database
    queries: Queries
    clock: Clock
    callers: Callers
    settings: Settings
    book: Book
    # Makes a lease of this service by its name, and keeps it from when the loops begin.
    lease: Callable[[str], Lease]
    # Another service by its name, to read what it tells.
    peer: Callable[[str], Peer]
    # The platform's private key; only where the settings name its file.
    signing_key: SigningKey | None = None


@dataclass(frozen=True, slots=True)
class Mount:
    """One gRPC service: its full name, how it is added to a server, and what answers it."""

    service_name: str
    add: Callable[[Any, Any], None]
    servicer: object


@dataclass(frozen=True, slots=True)
class Loop:
    """Something that a service does all the time; it ends only when it is cancelled."""

    name: str
    run: Callable[[], Coroutine[Any, Any, None]]


@dataclass(frozen=True, slots=True)
class Wired:
    """What a service is made of."""

    servicers: tuple[Mount, ...]
    consumers: tuple[Consumer | Folder, ...] = ()
    # Runs once the journal is open and before anybody is served; again at every start.
    begin: Callable[[], Awaitable[None]] | None = None
    loops: tuple[Loop, ...] = ()
    # Reads the figures that the target names; every process that runs the service does.
    measure: Callable[[], Awaitable[Iterable[Sample]]] | None = None


@dataclass(frozen=True, slots=True)
class Target:
    """One service as the TARGETS table has it."""

    name: str
    # Holds queries.sql, migrations/rows (the read model) and, where there is one, migrations/state.
    folder: Path
    # Files whose messages its journal stores.
    events: tuple[FileDescriptor, ...]
    # Services whose journals it reads.
    reads: tuple[str, ...]
    settings: type[Any]
    book: Book
    wire: Callable[[Kernel[Any]], Wired]
    # Of the journal that this process holds. Where it hangs on the settings there are several, each
    # enrolled as a cluster, and whoever reads this service reads them all.
    shard: Callable[[Any], str] | None = None
    # What it shows to operators beside what every service shows.
    figures: tuple[Figure, ...] = ()
