"""What operators ask: does it run, is it true, and what stands still."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

import fermion
from fermion.api.executor import v1 as executor
from fermion.api.journal import v1 as api
from fermion.cli import cluster, show, text
from fermion.cli.figures import LAG, Figures, told
from fermion.cli.options import Options, note
from fermion.cli.show import Column
from fermion.cli.table import Title
from fermion.errors import Denied, Error

if TYPE_CHECKING:
    from fermion.client import Client

journal = App(name="journal", help="Journals: rebuild, parked facts, readers.")

JOURNALS: tuple[Column[api.JournalStatus], ...] = (
    Column("JOURNAL", lambda one: one.journal),
    Column("HEAD", lambda one: str(one.head)),
    Column("STREAM", lambda one: _stream(one)),
    Column(
        "RELAY",
        lambda one: f"halted: {one.relay_halted}" if one.relay_halted else "ok",
        crop=True,
    ),
    Column("EPOCH", lambda one: str(one.epoch), wide=True),
)
PARKED: tuple[Column[api.ParkedFact], ...] = (
    Column("READER", lambda one: one.reader),
    Column("JOURNAL", lambda one: one.journal),
    Column("POSITION", lambda one: str(one.position)),
    Column("STREAM", lambda one: one.stream),
    Column("TYPE", lambda one: one.type.rsplit(".", 1)[-1], spare=1),
    Column("WHY", lambda one: one.reason, crop=True),
    Column("PARKED", lambda one: show.age(one.park_time), wide=True),
)


def _stream(status: api.JournalStatus) -> str:
    if status.published < 0:
        return "NATS is away"
    return f"{max(0, status.head - status.published)} behind"


@dataclass(frozen=True, slots=True)
class Reading:
    """How far one reader is behind the journal that it reads."""

    progress: api.ReaderProgress
    behind: int

    @property
    def state(self) -> str:
        """Whether it runs, and what waits in its parking."""
        if self.progress.halted:
            return f"halted: {self.progress.halted}"
        return f"{self.progress.parked} parked" if self.progress.parked else "ok"


def readings(journals: Sequence[api.JournalStatus]) -> Iterator[Reading]:
    """Every reader of every journal's service, once."""
    heads = {one.journal: one.head for one in journals}
    seen = set()
    for one in journals:
        for progress in one.readers:
            if (progress.reader, progress.journal) not in seen:
                seen.add((progress.reader, progress.journal))
                head = heads.get(progress.journal, progress.position)
                yield Reading(progress, max(0, head - progress.position))


def status(*, options: Options = Options()) -> int:
    """
    Show whether the platform runs: cluster, journals, readers, queue, replicas and bill.

    The exit code is 1 where something stands still, or the cluster does not answer.
    """
    with options.client(ill=True) as client:
        who = client.users.who_am_i()
        context = client.context
        try:
            standing = client.journals.standing()
        except Denied:
            # Only operators may look further; that it answers is all that others can be told.
            standing = api.GetJournalResponse()
            note("Journals and readers are shown to platform admins.")
        runs, answers = _cluster(client)
    journals, watched = standing.journals, Figures(standing.figures)
    found = list(readings(journals))
    halted = [one for one in journals if one.relay_halted]
    stuck = [one for one in found if one.progress.halted or one.progress.parked]
    match options.output:
        case "json" | "yaml":
            answer = {
                "address": context.address,
                "context": context.name,
                "client_version": fermion.__version__,
                "caller": show.name_of(who),
                "cluster": None if runs is None else show.plain(runs),
                "journals": [show.plain(one) for one in journals],
                "figures": [show.plain(one) for one in standing.figures],
            }
            print(show.to_json(answer) if options.output == "json" else show.to_yaml(answer))
        case "name":
            print("\n".join(text.line(one.journal) for one in journals))
        case _:
            print(f"Fermion answers at {context.address} (context {context.name}).\n")
            if runs is not None:
                print(show.details(cluster.told(runs, datetime.now(UTC))), end="\n\n")
                if runs.nodes:
                    show.many(runs.nodes, options.output, cluster.NODES, "")
                    print()
            if journals:
                show.many(journals, options.output, JOURNALS, "")
                print()
                show.table(
                    (
                        *("READER", "OF", "BEHIND", Title("LAG", spare=2)),
                        *(Title("PARKED", spare=1), Title("STATE", crop=True)),
                    ),
                    [
                        (
                            one.progress.reader,
                            one.progress.journal,
                            str(one.behind),
                            _lag(watched, one.progress),
                            str(one.progress.parked),
                            one.state,
                        )
                        for one in found
                    ],
                )
            rest = show.details(told(watched))
            if rest:
                print(f"\n{rest}")
    return 1 if halted or stuck or not answers else 0


def _lag(watched: Figures, progress: api.ReaderProgress) -> str:
    """Since when a reader is behind; `-` where nobody has looked yet."""
    milli = watched.most(LAG, {"reader": progress.reader, "journal": progress.journal})
    return "-" if milli is None else f"{milli // 1000}s"


def _cluster(client: Client) -> tuple[executor.Cluster | None, bool]:
    """What the executor knows of its cluster, and whether it answers; a platform may have none."""
    try:
        return client.runtime.get_cluster(), True
    except Error as error:
        note(f"The cluster is not known: {error.message}")
        return None, error.reason == "UNIMPLEMENTED"


def audit(
    name: Annotated[str, Parameter(help="Only of this journal, e.g. instances/0")] = "",
    /,
    *,
    options: Options = Options(),
) -> int:
    """
    Count log, stream and readers against each other; 1 where an equality does not hold.

    A table has those that do not hold, a wide one all of them; `-o name` is their names alone.
    """
    with options.client(ill=True) as client:
        checks = client.journals.audit(name)
    broken = [check for check in checks if not check.holds]
    match options.output:
        case "json" | "yaml":
            show.many(checks, options.output, (), "")
        case "name":
            show.many(broken, options.output, (), "")
        case _:
            for check in broken if options.output == "table" else checks:
                mark = "holds" if check.holds else "BROKEN"
                print(text.line(f"{mark:<7} {check.name}: {check.left} and {check.right}"))
            print(f"{len(checks) - len(broken)} of {len(checks)} equalities hold.")
    return 1 if broken else 0


@journal.command(name="list")
def list_journals(*, options: Options = Options()) -> None:
    """List journals with heads and how far they are published."""
    with options.client(ill=True) as client:
        show.many(client.journals.status(), options.output, JOURNALS, "No journals.")


@journal.command
def rebuild(name: str, /, *, options: Options = Options()) -> int:
    """Fold a journal's read model from zero, compare it with the live one, and swap it in."""
    with options.client() as client:
        done = client.journals.rebuild(name)
    same = done.live_hash == done.rebuilt_hash
    verdict = "the same as before" if same else "NOT the same as before; the new one is in place"
    show.one(done, options.output, lambda: f"{name}: {done.folded} facts folded, {verdict}")
    return 0 if same else 1


@journal.command
def parked(*, options: Options = Options()) -> None:
    """List facts that readers could not use."""
    with options.client(ill=True) as client:
        show.many(client.journals.parked(), options.output, PARKED, "Nothing is parked.")


@journal.command
def retry(
    reader: Annotated[str, Parameter(help="e.g. instances/scheduler")],
    stream: Annotated[str, Parameter(help="e.g. workload/wkl_…")],
    /,
    *,
    options: Options = Options(),
) -> int:
    """Handle the parked facts of one stream again, in order; 1 where some still wait."""
    with options.client() as client:
        done = client.journals.retry(reader, stream)
        show.one(done, options.output, lambda: f"{done.handled} handled, {done.left} left.")
        return 1 if done.left else 0


@journal.command
def skip(
    reader: Annotated[str, Parameter(help="e.g. instances/scheduler")],
    name: Annotated[str, Parameter(help="The journal that the fact is of, e.g. scheduler/0")],
    position: Annotated[int, Parameter(help="Its position there.")],
    /,
    *,
    reason: Annotated[str, Parameter(help="Why; it is kept.")],
    options: Options = Options(),
) -> None:
    """Give one parked fact up for good; that is kept as a fact."""
    with options.client() as client:
        client.journals.skip(reader, name, position, reason)
        print(f"{reader} goes on without {name}:{position}.")


@journal.command
def resume(
    reader: Annotated[str, Parameter(help="e.g. instances/scheduler")],
    name: Annotated[str, Parameter(help="The journal it reads, e.g. scheduler/0")],
    /,
    *,
    options: Options = Options(),
) -> None:
    """Let a halted reader go on."""
    with options.client() as client:
        client.journals.resume(reader, name)
        print(f"{reader} reads {name} again.")
