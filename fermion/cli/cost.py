"""What things have cost, what they cost now, and why."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

from cyclopts import App, Parameter

from fermion.api.billing import v1 as api
from fermion.api.workload import v1 as workload
from fermion.cli import bill, money, near, read, show, text
from fermion.cli.options import InstanceName, Options, note
from fermion.cli.replicas import owner_of
from fermion.cli.table import Screen, Title
from fermion.cli.top import sparks

if TYPE_CHECKING:
    from fermion.client import Client

app = App(name="cost", help="What things have cost, and why.")

GROUPS: Final[Mapping[str, api.GroupBy.ValueType]] = {
    "project": api.GROUP_BY_PROJECT,
    "user": api.GROUP_BY_USER,
    "owner": api.GROUP_BY_OWNER,
    "kind": api.GROUP_BY_KIND,
    "day": api.GROUP_BY_DAY,
    "label": api.GROUP_BY_LABEL,
}
GROUPS_MAX: Final = 3
# Stands for every project.
ALL: Final = "-"
# Owners are asked for anew after so long, by the platform's clock; their bars are so wide.
OWNERS_MS: Final = 2000
BAR_COLUMNS: Final = 20
# So many of the last rates are drawn.
SPARKS_MAX: Final = 32
A_STATEMENT: Final = "fermion cost statement -o json prints one."

CutFile = Annotated[
    Path | None,
    Parameter(
        name="--cut",
        help="An earlier statement as JSON, - for stdin: as of what that one rests on.",
        allow_leading_hyphen=True,
    ),
]


@Parameter(name="*")
@dataclass(frozen=True)
class Period:
    """From when to when; this month until now, unless something else is said."""

    month: Annotated[str, Parameter(help="A month, e.g. 2026-11, as UTC has it.")] = ""
    from_: Annotated[
        str, Parameter(name="--from", help="From then on: a time, or 10m for ago [this month].")
    ] = ""
    to: Annotated[str, Parameter(help="Until then: a time, or 10m for ago.")] = ""

    def of(self) -> tuple[datetime | None, datetime | None]:
        """Start and end, as far as they were said."""
        if self.month and (self.from_ or self.to):
            raise read.unfit("--month", "goes with neither --from nor --to", "Say one of them.")
        if self.month:
            return read.month("--month", self.month)
        start = read.moment("--from", self.from_) if self.from_ else None
        end = read.moment("--to", self.to) if self.to else None
        if start is not None and end is not None and end <= start:
            raise read.wrong("--to", self.to, "is not after --from", "Say a later one.")
        return start, end


@app.command
def now(
    *,
    by: Annotated[
        tuple[str, ...],
        Parameter(help="project, user, owner, kind, day or label=KEY; up to three times [owner]."),
    ] = (),
    all_projects: Annotated[
        bool, Parameter(help="Of all projects, which takes an admin of the platform.")
    ] = False,
    period: Period = Period(),
    options: Options = Options(),
) -> None:
    """
    Show what a project has cost: settled, accruing since, and by the hour as it runs now.

    What is settled falls only by a correction; what is accruing is an estimate. For example:

        fermion cost now --by owner --by day
        fermion cost now --by label=team --month 2026-11
    """
    groups, label = _groups(by or (("project",) if all_projects else ("owner",)))
    start, end = period.of()
    if all_projects and options.project:
        raise read.unfit("--all-projects", "does not go with --project", "Say one of them.")
    with options.client() as client:
        project = ALL if all_projects else options.project_of(client)
        found = client.costs.get(
            project, [GROUPS[name] for name in groups], label=label, start=start, end=end
        )
    if options.output == "name":
        for cost in found.costs:
            print(text.line(" ".join(cost.keys)))
        return
    if options.output in ("json", "yaml"):
        show.one(found, options.output, str)
        return
    if not found.costs:
        note(
            f"Nothing has been metered in {project}. {_sentence(bill.settled(found.through_time))}"
        )
        return
    keys = [Title(label if name == "label" else name.upper(), crop=True) for name in groups]
    heads = [*keys, Title("SETTLED"), Title("ACCRUING"), Title("PER HOUR")]
    names = [[_key(*pair) for pair in zip(groups, cost.keys, strict=True)] for cost in found.costs]
    names.append(["total", *("" for _ in groups[1:])])
    show.table(heads, _with_amounts(names, [*found.costs, found.total]), options.output)
    print(text.line(f"{found.currency}, {bill.settled(found.through_time)}"))
    if found.disputed:
        print(text.line(f"disputed, so perhaps wrong: {', '.join(found.disputed)}"))


@app.command
def watch(
    *,
    from_: Annotated[
        str, Parameter(name="--from", help="Count from then on: a time, or 10m for ago.")
    ] = "",
    options: Options = Options(),
) -> None:
    """
    Follow what the project costs; Ctrl-C detaches.

    On a terminal it is drawn anew: the last rates, and each owner's part. Elsewhere each answer is
    a row, and with -o json a line.
    """
    if options.output == "name":
        raise read.wrong("--output", "name", "is not for what has no name", "Leave it out.")
    start = read.moment("--from", from_) if from_ else None
    with options.client() as client:
        project = options.project_of(client)
        answers = client.costs.watch(project, start)
        if options.output in ("table", "wide") and sys.stdout.isatty():
            meter = Meter(client, project, start)
            meter.screen.begin()
            try:
                for answer in answers:
                    meter.put(answer)
            finally:
                meter.screen.end()
            return
        for answer in answers:
            match options.output:
                case "json":
                    print(show.to_line(show.plain(answer)), flush=True)
                case "yaml":
                    print(f"---\n{show.to_yaml(show.plain(answer))}", flush=True)
                case _:
                    print(text.line(_row(answer)), flush=True)


@app.command
def statement(
    *, period: Period = Period(), cut: CutFile = None, options: Options = Options()
) -> int:
    """
    Show the bill of a period, line by line: of this month, unless another one is said.

    It is provisional until every cluster has said all up to the period's end. A statement that was
    kept as JSON is computed again with --cut FILE, and is the same to the byte; the exit code is 1
    where it is not. For example:

        fermion cost statement --month 2026-11 -o json > november.json
        fermion cost statement --cut november.json
    """
    start, end = period.of()
    kept = _kept(cut)
    if kept is not None and start is None and end is None:
        start, end = _span(kept)
    with options.client() as client:
        project = options.project
        if not project and kept is not None:
            project = show.short(kept.project)
        project = project or options.project_of(client)
        found = client.costs.statement(
            project, start=start, end=end, cut=None if kept is None else kept.cut
        )
    _tell(found, options.output)
    same = kept is None or _question(kept) != _question(found) or kept.digest == found.digest
    if not same:
        note(f"It is not the statement of {cut}, whose digest is {kept.digest if kept else ''}.")
    elif kept is not None and kept.digest == found.digest:
        note(f"It is the statement of {cut}, to the byte.")
    return 0 if same else 1


@app.command
def explain(
    name: InstanceName,
    /,
    *,
    line: Annotated[str, Parameter(help="Only this line, lin_…; see cost statement -o wide.")] = "",
    period: Period = Period(),
    cut: CutFile = None,
    options: Options = Options(),
) -> None:
    """
    Tell what an owner's lines are made of, down to the facts, and why other time is free.

    Each line is followed by the spans of time that it sums, each span by the facts that bound it
    and where they stand in their journals, e.g. executor/…:17.
    """
    start, end = period.of()
    kept = _kept(cut)
    if kept is not None and start is None and end is None:
        start, end = _span(kept)
    with options.client() as client:
        owner = owner_of(client, options, name)
        found = client.costs.explain(
            owner, line=line, start=start, end=end, cut=None if kept is None else kept.cut
        )
        if not found.lines and not line and owner.split("/")[2:3] == ["instances"]:
            # One that never was is told apart from one that never ran.
            client.instances.get(owner)
    if options.output == "name":
        for one in found.lines:
            print(text.line(one.line.id))
        return
    if options.output in ("table", "wide") and not found.lines:
        note(f"Nothing of {owner} has been metered in that time.")
        return
    show.one(found, options.output, lambda: _explanation(found))
    if options.output in ("table", "wide") and not line:
        note(
            "Nothing is metered before something is bound to a node: waiting in the queue is free."
        )


@app.command
def estimate(
    *,
    gpu: Annotated[str, Parameter(help="GPUs, e.g. 1 or 0.5")] = "",
    gpu_type: Annotated[str, Parameter(help="Model of the GPU, e.g. A100-80GB")] = "",
    cpu: Annotated[str, Parameter(help="CPU cores, e.g. 4 or 500m")] = "",
    memory: Annotated[str, Parameter(help="Memory, e.g. 16GiB")] = "",
    storage: Annotated[str, Parameter(help="Disk that outlives a stop, e.g. 50GiB")] = "",
    max_duration: Annotated[str, Parameter(help="Stop after, e.g. 8h")] = "",
    max_cost: Annotated[
        str, Parameter(help="Stop once an attempt has cost so much, e.g. 2.50")
    ] = "",
    options: Options = Options(),
) -> None:
    """
    Tell what an instance would cost that nobody has created.

    For example:

        fermion cost estimate --gpu 1 --memory 32GiB --max-duration 8h
    """
    if not (gpu or cpu or memory or storage):
        raise read.unfit(
            "--gpu",
            "or --cpu, --memory or --storage must be said",
            "e.g. fermion cost estimate --gpu 1 --memory 32GiB",
        )
    wanted = workload.Workload(kind=workload.KIND_INSTANCE)
    group = wanted.groups.add(replicas=1, min_replicas=1)
    group.resources.gpu_type = gpu_type
    group.resources.gpu_milli = read.milli("--gpu", gpu) if gpu else 0
    group.resources.cpu_milli = read.milli("--cpu", cpu) if cpu else 0
    group.resources.memory_bytes = read.size("--memory", memory) if memory else 0
    size = read.size("--storage", storage) if storage else 0
    if max_duration:
        wanted.max_duration.FromTimedelta(read.duration("--max-duration", max_duration))
    if max_cost:
        wanted.max_cost.CopyFrom(read.money("--max-cost", max_cost))
    with options.client() as client:
        found = client.costs.estimate(options.project_of(client), wanted, size)
    worst = ""
    if found.worst_nanos:
        worst = f"{money.amount(found.worst_nanos, found.currency)} an attempt"
    rows = (
        ("running", f"{money.amount(found.rate_nanos, found.currency)} an hour"),
        ("stopped", f"{money.amount(found.stopped_rate_nanos, found.currency)} an hour"),
        ("at the most", worst),
        ("prices", found.price_version),
    )
    show.one(found, options.output, lambda: show.details(rows))


def last(client: Client, project: str, owner: str, since: datetime | None) -> str:
    """What one owner has cost since then, on a line: what is settled, and what is still to be."""
    found = client.costs.get(project, owner=owner, start=since)
    total = found.total
    said = f"cost {money.amount(total.settled_nanos, found.currency)}"
    if total.accruing_nanos:
        return f"{said}, and {money.amount(total.accruing_nanos, found.currency)} not settled yet"
    return said


@dataclass
class Meter:
    """What a project costs as it goes, drawn on a terminal."""

    client: Client
    project: str
    start: datetime | None
    screen: Screen = field(default_factory=Screen)
    rates: deque[int] = field(default_factory=lambda: deque(maxlen=SPARKS_MAX))
    owners: Sequence[api.Cost] = ()
    asked_ms: int = -OWNERS_MS

    def put(self, answer: api.WatchCostResponse) -> None:
        """Draw what is known now."""
        self.rates.append(answer.total.rate_nanos)
        at = answer.compute_time.ToMilliseconds()
        if at - self.asked_ms >= OWNERS_MS:
            self.asked_ms = at
            by = (api.GROUP_BY_OWNER,)
            self.owners = self.client.costs.get(self.project, by, start=self.start).costs
        dearest = sorted(self.owners, key=_all, reverse=True)
        most = max(map(_all, dearest), default=0)
        names = [[_key("owner", one.keys[0])] for one in dearest]
        rows = _with_amounts([*names, ["total"]], [*dearest, answer.total])
        bars = [*(money.bar(_all(one), most, BAR_COLUMNS) for one in dearest), ""]
        heads = (
            Title("OWNER", crop=True),
            Title("SETTLED"),
            Title("ACCRUING"),
            Title("PER HOUR"),
            Title("", spare=1),
        )
        rate = money.amount(answer.total.rate_nanos, answer.currency)
        self.screen.draw(
            heads,
            [[*row, bar] for row, bar in zip(rows, bars, strict=True)],
            below=(
                f"{sparks(self.rates, 0)}  {rate} an hour",
                f"{answer.currency}, {bill.settled(answer.through_time)}{_behind(answer)}",
            ),
        )


def _groups(by: Sequence[str]) -> tuple[Sequence[str], str]:
    """By what to sum, and the label where it is by one."""
    names: list[str] = []
    label = ""
    for said in by:
        name, equals, key = said.partition("=")
        if name not in GROUPS:
            meant = near.near(name, GROUPS)
            hint = f"Did you mean {' or '.join(meant)}? " if meant else ""
            known = "project, user, owner, kind, day and label=KEY"
            raise read.wrong("--by", said, "is nothing to sum by", f"{hint}There are {known}.")
        if (name == "label") != bool(equals and key):
            raise read.wrong(
                "--by", said, "must name a key where it is a label", "Write it like label=team."
            )
        if name in names:
            raise read.wrong("--by", said, f"is the second {name}", "Say each once.")
        names.append(name)
        label = key or label
    if len(names) > GROUPS_MAX:
        raise read.wrong("--by", " ".join(by), "is more than three", "Say at most three.")
    return names, label


def _key(group: str, key: str) -> str:
    """A key as people read it; an empty one is none."""
    match group:
        case "owner" | "project":
            key = key.removeprefix("projects/")
        case "kind":
            key = key.removeprefix("KIND_").lower()
    return key or "-"


def _with_amounts(names: Sequence[Sequence[str]], costs: Sequence[api.Cost]) -> list[list[str]]:
    """Rows of names and amounts, with the points of amounts below each other."""
    settled = money.aligned([money.shown(one.settled_nanos) for one in costs])
    accruing = money.aligned([money.shown(one.accruing_nanos) for one in costs])
    rates = money.aligned([money.shown(one.rate_nanos) for one in costs])
    amounts = zip(names, settled, accruing, rates, strict=True)
    return [[*name, one, two, three] for name, one, two, three in amounts]


def _all(cost: api.Cost) -> int:
    return cost.settled_nanos + cost.accruing_nanos


def _row(answer: api.WatchCostResponse) -> str:
    """All that an answer says, on a line."""
    total = answer.total
    return (
        f"{show.when(answer.compute_time)}  {money.amount(_all(total), answer.currency)}  "
        f"settled {money.shown(total.settled_nanos)}  "
        f"accruing {money.shown(total.accruing_nanos)}  "
        f"per hour {money.shown(total.rate_nanos)}{_behind(answer)}"
    )


def _behind(answer: api.WatchCostResponse) -> str:
    """How far what is settled is behind what was computed."""
    if not answer.through_time.seconds:
        return ""
    late = answer.compute_time.ToMilliseconds() - answer.through_time.ToMilliseconds()
    return f"  {money.lasted(max(0, late) // 1000 * 1000)} behind"


def _kept(file: Path | None) -> api.Statement | None:
    """A statement that was kept, whose cut is to be taken."""
    if file is None:
        return None
    found = read.message(file, api.Statement(), A_STATEMENT, "--cut")
    if not found.HasField("cut"):
        raise read.wrong("--cut", str(file), "is no statement with a cut", A_STATEMENT)
    return found


def _span(kept: api.Statement) -> tuple[datetime, datetime]:
    """The period of a statement that was kept."""
    start, end = kept.start_time.ToDatetime(tzinfo=UTC), kept.end_time.ToDatetime(tzinfo=UTC)
    return start, end


def _question(found: api.Statement) -> tuple[str, int, int]:
    """What a statement is of; only those of the same can be the same."""
    return (
        show.short(found.project),
        found.start_time.ToMilliseconds(),
        found.end_time.ToMilliseconds(),
    )


def _tell(found: api.Statement, output: str) -> None:
    match output:
        case "name":
            for line in found.lines:
                print(text.line(line.id))
        case "json" | "yaml":
            show.one(found, output, str)
        case _:
            bill.table(found, output)
            print(text.lines(bill.foot(found)))


def _explanation(found: api.ExplainChargeResponse) -> str:
    rows = (("disputed", ", ".join(found.disputed)), *bill.cut(found.cut))
    return "\n\n".join(filter(None, (*bill.explained(found), show.details(rows))))


def _sentence(said: str) -> str:
    return f"{said[:1].upper()}{said[1:]}."
