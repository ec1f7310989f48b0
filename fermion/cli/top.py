"""What replicas use now, and what they used just before."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fermion.api.executor import v1 as api
from fermion.api.instances import v1 as instances
from fermion.cli import replicas, show, text
from fermion.cli.options import InstanceName, Options, note
from fermion.cli.show import Column
from fermion.cli.table import Screen

if TYPE_CHECKING:
    from fermion.client import Client

REFRESH_SECONDS = 2.0
BARS = "▁▂▃▄▅▆▇█"
# So many of the last samples are drawn.
SPARKS = 12
# Nothing runs for the others, so they are not asked about.
LIVE = frozenset({instances.STATE_STARTING, instances.STATE_RUNNING, instances.STATE_STOPPING})


@dataclass(frozen=True, slots=True)
class Used:
    """What one replica used of what it has, oldest sample first."""

    replica: api.Replica
    samples: Sequence[api.UsageSample]

    @property
    def last(self) -> api.UsageSample | None:
        """The newest sample; None where there is none yet."""
        return self.samples[-1] if self.samples else None

    def cpu(self) -> str:
        """Cores, of those that it has."""
        used = "-" if self.last is None else f"{self.last.cpu_milli / 1000:.2f}"
        return _of(used, show.cores(self.replica.sku.cpu_milli), self.replica.sku.cpu_milli)

    def memory(self) -> str:
        """Bytes, of those that it has."""
        used = "-" if self.last is None else show.size(self.last.memory_bytes)
        sku = self.replica.sku
        return _of(used, show.size(sku.memory_bytes), sku.memory_bytes)

    def gpu(self) -> str:
        """Devices, of those that it has; `-` where nothing measures them."""
        measured = self.last is not None and self.last.HasField("gpu_milli")
        used = f"{self.last.gpu_milli / 1000:.2f}" if self.last is not None and measured else "-"
        return _of(used, show.cores(self.replica.sku.gpu_milli), self.replica.sku.gpu_milli)

    def gpu_memory(self) -> str:
        """Bytes; `-` where nothing measures them."""
        measured = self.last is not None and self.last.HasField("gpu_memory_bytes")
        return show.size(self.last.gpu_memory_bytes) if self.last is not None and measured else "-"

    def history(self) -> str:
        """CPU over the last samples, as bars of what it has."""
        values = [sample.cpu_milli for sample in self.samples[-SPARKS:]]
        return sparks(values, self.replica.sku.cpu_milli)


COLUMNS: tuple[Column[Used], ...] = (
    Column("OWNER", lambda one: show.short(one.replica.owner), crop=True),
    Column("REPLICA", lambda one: replicas.short(one.replica.uid), spare=3),
    Column("CPU", Used.cpu),
    Column("MEMORY", Used.memory),
    Column("GPU", Used.gpu),
    Column("GPU MEMORY", Used.gpu_memory, spare=1),
    Column("STATE", lambda one: replicas.state(one.replica), wide=True),
    Column("NODE", lambda one: one.replica.node, wide=True),
    Column("MEASURED", lambda one: show.moment(one.last.time) if one.last else "-", wide=True),
    Column("UID", lambda one: one.replica.uid, wide=True),
)
# Only where it is drawn anew; in a pipe the samples are to be had with -o json.
HISTORY = Column("CPU BEFORE", Used.history, spare=2)


def top(name: InstanceName = "", /, *, options: Options = Options()) -> None:
    """
    Show what runs uses of CPU, memory and GPU: of an instance, or of all of the project's.

    On a terminal the table is drawn anew until Ctrl-C; elsewhere it is printed once. -o json has
    the samples of the last hour.
    """
    with options.client() as client:
        owner = options.instance_of(client, name)[2] if name else ""
        project = "" if name else options.project_of(client)
        if owner:
            client.instances.get(owner)
        if options.output not in ("table", "wide"):
            _tell(client, project, owner, options.output)
            return
        chosen = show.chosen_of(COLUMNS, options.output)
        if sys.stdout.isatty():
            chosen.insert(3, HISTORY)
            _draw(client, project, owner, chosen, options.output == "wide")
            return
        found = list(_used(client, project, owner))
        if not found:
            note(f"Nothing runs for {owner or project}.")
            return
        rows = [[column.cell(one) for column in chosen] for one in found]
        show.table([column.head for column in chosen], rows, options.output)


def sparks(values: Sequence[int], most: int) -> str:
    """Values as bars, a full one for `most` and more, or for the largest where no most is known."""
    top_ = most or max(values, default=0) or 1
    return "".join(BARS[min(len(BARS) - 1, value * len(BARS) // top_)] for value in values)


def _tell(client: Client, project: str, owner: str, output: str) -> None:
    """Print the samples for a program, or as names whose they are."""
    found = [
        series
        for name in _owners(client, project, owner)
        for series in client.runtime.list_usage(name)
    ]
    if output == "name":
        for series in found:
            print(text.line(series.replica_uid))
        return
    show.many(found, output, (), "")


def _draw(
    client: Client, project: str, owner: str, columns: Sequence[Column[Used]], whole: bool
) -> None:
    """Draw the table anew and anew, until somebody presses Ctrl-C."""
    heads = [column.head for column in columns]
    screen = Screen()
    screen.begin()
    try:
        while True:
            found = _used(client, project, owner)
            screen.draw(heads, [[column.cell(one) for column in columns] for one in found], whole)
            time.sleep(REFRESH_SECONDS)
    finally:
        screen.end()


def _used(client: Client, project: str, owner: str) -> Iterator[Used]:
    """Each replica that lives, with its samples."""
    for name in _owners(client, project, owner):
        samples = {one.replica_uid: one.samples for one in client.runtime.list_usage(name)}
        for replica in client.runtime.list_replicas(name):
            if replica.state in replicas.ALIVE:
                yield Used(replica, samples.get(replica.uid, ()))


def _owners(client: Client, project: str, owner: str) -> Iterator[str]:
    """One owner, or each instance of a project that something may run for."""
    if owner:
        yield owner
        return
    for instance in client.instances.list(project):
        if instance.status.state in LIVE:
            yield instance.name


def _of(used: str, all_: str, number: int) -> str:
    """How much of how much; what it has none of is not used."""
    return f"{used} of {all_}" if number else used
