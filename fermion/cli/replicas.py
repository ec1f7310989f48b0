"""What runs, or ran last."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from google.protobuf.timestamp_pb2 import Timestamp

from fermion.api.executor import v1 as api
from fermion.api.instances import v1 as instances
from fermion.cli import show
from fermion.cli.options import InstanceName, Options
from fermion.cli.show import Column
from fermion.errors import InvalidArgument

if TYPE_CHECKING:
    from fermion.client import Client

# Of a uid: what people tell replicas apart by; `--replica` takes it, too.
SHORT = len("rep_") + 8
# Those that something can still come of.
ALIVE = frozenset(api.ReplicaState.values()) - {api.REPLICA_STATE_ENDED}


def short(uid: str) -> str:
    """The beginning of a replica's uid."""
    return uid[:SHORT]


def state(replica: api.Replica) -> str:
    """Where it stands."""
    name = api.ReplicaState.Name(replica.state).removeprefix("REPLICA_STATE_")
    unready = replica.state == api.REPLICA_STATE_RUNNING and not replica.ready
    return f"{name}, UNREADY" if unready else name


def ended(replica: api.Replica) -> str:
    """How its last run that ended did so; a signal by its name."""
    if replica.signal:
        try:
            return signal.Signals(replica.signal).name
        except ValueError:
            return f"signal {replica.signal}"
    return str(replica.exit_code) if replica.HasField("exit_code") else "-"


def since(replica: api.Replica) -> Timestamp:
    """When it was bound, or its run began, or ended: what made it what it is."""
    over = replica.state in (api.REPLICA_STATE_ENDED, api.REPLICA_STATE_BACKOFF)
    begun = replica.state != api.REPLICA_STATE_PENDING
    if over and replica.end_time.seconds:
        return replica.end_time
    return replica.start_time if begun and replica.start_time.seconds else replica.schedule_time


COLUMNS: tuple[Column[api.Replica], ...] = (
    Column("REPLICA", lambda one: short(one.uid)),
    Column("STATE", state),
    Column("WHY", lambda one: show.sentence(one.reason) or "-", crop=True),
    Column("RUN", lambda one: str(one.run), spare=2),
    Column("EXIT", ended),
    Column("NODE", lambda one: one.node or "-", spare=1),
    Column("ADDRESSES", lambda one: show.pairs(dict(one.addresses)), crop=True),
    Column("SINCE", lambda one: show.age(since(one))),
    Column("ATTEMPT", lambda one: str(one.attempt), wide=True),
    Column("ROLE", lambda one: one.role or "-", wide=True),
    Column("RANK", lambda one: str(one.rank), wide=True),
    Column(
        "GPU", lambda one: f"{show.cores(one.sku.gpu_milli)} {one.sku.gpu_type}".rstrip(), wide=True
    ),
    Column("CPU", lambda one: show.cores(one.sku.cpu_milli), wide=True),
    Column("MEMORY", lambda one: show.size(one.sku.memory_bytes), wide=True),
    Column("STARTED", lambda one: show.moment(one.start_time), wide=True),
    Column("ENDED", lambda one: show.moment(one.end_time), wide=True),
    Column("WORKLOAD", lambda one: one.workload_uid, wide=True),
    Column("UID", lambda one: one.uid, wide=True),
)
OWNED: tuple[Column[api.Replica], ...] = (
    Column("OWNER", lambda one: show.short(one.owner)),
    *COLUMNS,
)


def replicas(
    name: InstanceName = "",
    /,
    *,
    all_: Annotated[bool, Parameter(name="--all", help="Also those of former attempts.")] = False,
    watch: Annotated[bool, Parameter(name=["--watch", "-w"], help="Follow changes.")] = False,
    options: Options = Options(),
) -> None:
    """
    Show what runs, or ran last, of an instance, or of all of the project's.

    It is what a cluster made for them, with the states and times that it witnessed itself.
    """
    if watch and not name:
        raise InvalidArgument(
            "Whose replicas to watch was not said.",
            reason="OPTION_MISSING",
            violations=(("NAME", "must be said with --watch"),),
            next_step="e.g. fermion replicas dev-1 --watch",
        )
    with options.client() as client:
        if watch:
            _follow(client, owner_of(client, options, name), options)
        elif name:
            owner = owner_of(client, options, name)
            found = client.runtime.list_replicas(owner, all_attempts=all_)
            if not found:
                _must_be_there(client, owner)
            show.many(found, options.output, COLUMNS, f"Nothing has run for {show.short(owner)}.")
        else:
            project = options.project_of(client)
            show.many(
                _of_all(client, project, all_), options.output, OWNED, f"Nothing runs in {project}."
            )


def owner_of(client: Client, options: Options, name: str) -> str:
    """The full name of what runs for: an instance by its name, anything by its full one."""
    return name if "/" in name else options.instance_of(client, name)[2]


def standing(client: Client, owner: str) -> str:
    """Where an instance stands and why, as a sentence; `NotFound` where there is none."""
    status = client.instances.get(owner).status
    why = show.sentence(status.reason)
    state = show.enum(instances.State.Name(status.state))
    return f"It is {state}{f': {why}' if why else ''}."


def _of_all(client: Client, project: str, every: bool) -> Iterator[api.Replica]:
    for instance in client.instances.list(project):
        yield from client.runtime.list_replicas(instance.name, all_attempts=every)


def _must_be_there(client: Client, owner: str) -> None:
    """Raise `NotFound`, with names like it, where there is no such instance."""
    if owner.split("/")[2:3] == ["instances"]:
        client.instances.get(owner)


def _follow(client: Client, owner: str, options: Options) -> None:
    # One that is not there would be waited for without an end.
    _must_be_there(client, owner)
    with show.Board(COLUMNS, options.output) as board:
        for change in client.runtime.watch_replicas(owner):
            if change.change != api.WatchReplicasResponse.CHANGE_BOOKMARK:
                kind = api.WatchReplicasResponse.Change.Name(change.change)
                board.put(show.enum(kind), change.replica, False)
