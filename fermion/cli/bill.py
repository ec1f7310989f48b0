"""How a bill is written: its lines, what they are made of, and why other time is free."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Final

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from fermion.api.billing import v1 as api
from fermion.api.workload import v1 as workload
from fermion.cli import facts, money, show
from fermion.cli.show import Column

STATES: Final[Mapping[int, str]] = {
    api.BILLABLE_STATE_RUNNING: "running",
    api.BILLABLE_STATE_DRAINING_BY_USER: "draining (user)",
    api.BILLABLE_STATE_DRAINING_BY_PLATFORM: "draining (platform)",
    api.BILLABLE_STATE_HELD: "held",
    api.BILLABLE_STATE_BACKOFF: "back-off",
    api.BILLABLE_STATE_UNREACHABLE: "unreachable",
    api.BILLABLE_STATE_STORAGE: "storage",
}
# What happened in time that costs nothing, in any state that may.
FREE: Final[Mapping[int, str]] = {
    api.BILLABLE_STATE_RUNNING: "it ran",
    api.BILLABLE_STATE_DRAINING_BY_USER: "it ended as its user wished",
    api.BILLABLE_STATE_DRAINING_BY_PLATFORM: "it was ended by the platform's doing",
    api.BILLABLE_STATE_HELD: "it was bound to a node and had not started",
    api.BILLABLE_STATE_BACKOFF: "one run had ended and the next had not begun",
    api.BILLABLE_STATE_UNREACHABLE: "nobody knew whether it lived",
    api.BILLABLE_STATE_STORAGE: "its volume was there",
}
# A segment's code where prices have no part in it.
PLATFORM_WORK: Final = "PLATFORM_WORK"
# Of each dimension: how it is called, the hour of its unit, and how many of what is counted are one.
DIMENSIONS: Final[Mapping[int, tuple[str, str, int]]] = {
    api.DIMENSION_GPU: ("GPU", "GPU-h", money.MILLI),
    api.DIMENSION_CPU: ("CPU", "core-h", money.MILLI),
    api.DIMENSION_MEMORY: ("memory", "GiB-h", money.GIB),
    api.DIMENSION_STORAGE: ("storage", "GiB-h", money.GIB),
}
EVIDENCE: Final[Mapping[int, str]] = {
    workload.EVIDENCE_CLASS_RECORDED: "recorded by the cluster",
    workload.EVIDENCE_CLASS_LAST_PROOF: "its last proof of life",
    workload.EVIDENCE_CLASS_CLAMPED: "out of bounds, and clamped",
    workload.EVIDENCE_CLASS_NODE_LEASE: "its node's lease ran out",
    workload.EVIDENCE_CLASS_VANISHED: "gone without a record",
}


def state(number: int) -> str:
    """A state as people call it."""
    return STATES.get(number, f"state {number}")


def what(line: api.Line) -> str:
    """What is paid for."""
    name, _, _ = DIMENSIONS.get(line.dimension, ("free", "", 1))
    return f"{name} {line.gpu_type}".rstrip() if line.dimension == api.DIMENSION_GPU else name


def quantity(line: api.Line) -> str:
    """How much of it, in hours of its unit; `-` where it costs nothing."""
    if line.dimension not in DIMENSIONS or not line.quantity.isdecimal():
        return "-"
    _, unit, one = DIMENSIONS[line.dimension]
    return f"{money.hours(int(line.quantity), one)} {unit}"


def price(line: api.Line) -> str:
    """For one unit and hour."""
    return money.shown(line.price_nanos) if line.dimension else "-"


def kind(number: workload.Kind.ValueType) -> str:
    """A kind of work as people call it."""
    return show.enum(workload.Kind.Name(number)).lower() if number else "-"


COLUMNS: tuple[Column[api.Line], ...] = (
    Column("OWNER", lambda one: owner(one.owner), crop=True),
    Column("ATTEMPT", lambda one: str(one.attempt or "-"), spare=4),
    Column("STATE", lambda one: state(one.state), spare=1),
    Column("WHAT", what),
    Column("TIME", lambda one: money.lasted(one.replica_milliseconds), spare=2),
    Column("QUANTITY", quantity, spare=3),
    Column("PRICE", price),
    Column("AMOUNT", lambda one: money.shown(one.amount_nanos)),
    Column("PRICES", lambda one: one.price_version, wide=True),
    Column("KIND", lambda one: kind(one.kind), wide=True),
    Column("USER", lambda one: one.user or "-", wide=True),
    Column("LABELS", lambda one: show.pairs(dict(one.labels)), wide=True),
    Column("FROM", lambda one: show.moment(one.start_time), wide=True),
    Column("TO", lambda one: show.moment(one.end_time), wide=True),
    Column("LINE", lambda one: one.id, wide=True),
)
# Their cells are numbers, and stand below each other as such.
NUMBERS: Final = frozenset({"PRICE", "AMOUNT"})


def owner(name: str) -> str:
    """An owner within its project: `instances/lab`."""
    return name.split("/", 2)[-1]


def table(statement: api.Statement, output: str) -> None:
    """Print the lines of a statement, and their sum."""
    columns = show.chosen_of(COLUMNS, output)
    rows = [[column.cell(line) for column in columns] for line in statement.lines]
    last = {"OWNER": "total", "AMOUNT": money.shown(statement.total_nanos)}
    rows.append([last.get(column.title, "") for column in columns])
    for place, column in enumerate(columns):
        if column.title in NUMBERS:
            cells = money.aligned([row[place] for row in rows])
            rows = [
                [*row[:place], cell, *row[place + 1 :]]
                for row, cell in zip(rows, cells, strict=True)
            ]
    show.table([column.head for column in columns], rows, output)


def foot(statement: api.Statement) -> str:
    """What a statement is of, what it rests on, and whether anything is still to come."""
    standing = "complete"
    if not statement.complete:
        standing = "provisional: not every cluster has said all up to its end"
    return show.details(
        (
            ("project", show.short(statement.project)),
            ("period", _period(statement)),
            ("currency", statement.currency),
            ("standing", standing),
            ("disputed", ", ".join(statement.disputed)),
            *cut(statement.cut),
            ("digest", statement.digest),
        )
    )


def cut(found: api.Cut) -> Iterator[tuple[str, str]]:
    """How far each journal was read, and by which prices and arithmetic it was computed."""
    for source in found.sources:
        through = ""
        if source.HasField("through_time"):
            through = f" up to {show.when(source.through_time)}"
        yield "cut", f"{source.journal}:{source.position}{through}"
    if found.algorithm or found.price_book:
        yield "computed by", f"price book {found.price_book}, arithmetic {found.algorithm}"


def _period(statement: api.Statement) -> str:
    start, end = (show.moment(at) for at in (statement.start_time, statement.end_time))
    return f"{start} to {end}"


def explained(found: api.ExplainChargeResponse) -> Iterator[str]:
    """Lines with each segment that they sum, and the facts that bound those; those of one time at once."""
    books = found.price_books
    currency = next((book.currency for book in books), "")
    for _, several in groupby(found.lines, key=_time):
        group = list(several)
        first = group[0].line
        rows = show.details(
            (
                *(("line", one.line.id) for one in group),
                ("labels", show.pairs(dict(first.labels))),
                ("prices", _version(first.price_version, books)),
            )
        )
        segments = (text for one in group[0].segments for text in _segment(one, books))
        heads = (_head(one.line, currency) for one in group)
        yield "\n".join((*heads, *filter(None, (rows,)), *segments))


def _time(found: api.ExplainChargeResponse.Explained) -> Sequence[bytes]:
    """What time a line sums; the dimensions of a replica are paid for over the same."""
    return [one.SerializeToString(deterministic=True) for one in found.segments]


def _head(line: api.Line, currency: str) -> str:
    """What a line is of, and what it comes to."""
    attempt = f"  attempt {line.attempt}" if line.attempt else ""
    about = f"{what(line)}  {state(line.state)}{attempt}"
    if not line.dimension:
        return f"{about}  {money.lasted(line.replica_milliseconds)}"
    costs = money.amount(line.amount_nanos, currency)
    return f"{about}  {quantity(line)} at {price(line)} = {costs}"


def _segment(one: api.Segment, books: Sequence[api.PriceBook]) -> Iterator[str]:
    length = one.end_time.ToMilliseconds() - one.start_time.ToMilliseconds()
    run = f" run {one.run}" if one.run >= 0 else ""
    yield (
        f"  {show.when(one.start_time)} to {show.when(one.end_time)}  "
        f"{money.lasted(length)}  {one.uid}{run}"
    )
    if not one.billed:
        yield f"    free: {why(one, books)}"
    for fact in one.evidence:
        known = EVIDENCE.get(fact.evidence)
        yield (
            f"    {fact.type}  {show.when(fact.occurred_time)}  "
            f"{facts.short(fact.journal)}:{fact.position}" + (f"  {known}" if known else "")
        )


def why(segment: api.Segment, books: Iterable[api.PriceBook]) -> str:
    """Why a segment costs nothing, by the table of the prices that were in force."""
    if segment.why == PLATFORM_WORK:
        return "it is the platform's own work"
    happened = FREE.get(segment.state, state(segment.state))
    for book in books:
        rule = next((one for one in book.states if one.state == segment.state), None)
        if book.number != segment.price_book or rule is None:
            continue
        if not rule.billed:
            return f"{happened}, which costs nothing by prices {book.version}"
        if rule.free.ToMilliseconds():
            return f"{happened}; the first {_free(rule.free)} are free by prices {book.version}"
    return f"{happened} ({segment.why.replace('_', ' ').lower() or 'no reason is given'})"


def rule(found: api.StateRule) -> str:
    """Whether time in a state costs money, and since when."""
    if not found.billed:
        return "free"
    if found.free.ToMilliseconds():
        return f"billed, but for the first {_free(found.free)}"
    return "billed"


def _free(span: Duration) -> str:
    return money.lasted(span.ToMilliseconds())


def _version(version: str, books: Sequence[api.PriceBook]) -> str:
    found = next((one for one in books if one.version == version), None)
    if found is None or not found.effective_time.seconds:
        return version
    return f"{version}, in force from {show.moment(found.effective_time)}"


def settled(through: Timestamp) -> str:
    """Up to when amounts are settled."""
    if not through.seconds:
        return "nothing is settled yet: no cluster has said how far it is"
    return f"settled up to {show.when(through)}"
