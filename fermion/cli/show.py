"""How answers are printed: as the API's messages for programs, as tables for people."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import TYPE_CHECKING, Generic, TypeVar, cast

import yaml
from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from fermion.cli import table as tables
from fermion.cli import text
from fermion.cli.table import Title

if TYPE_CHECKING:
    from fermion.api.projects import v1 as projects
    from fermion.api.workload import v1 as workload

Item = TypeVar("Item")
Shown = TypeVar("Shown", bound=Message)

# What an answer without a `name` is called by.
_NAMES = ("name", "uid", "kid", "journal", "workload_uid", "service", "version", "price_version")
# Reasons as people say them, where no number belongs to them; see `sentence` for the others.
_SENTENCES = {
    "NO_CLUSTER": "no cluster is enrolled",
    "ARRIVED": "it has just arrived; the next pass looks at it",
    "BEHIND": "it would fit; others that have waited longer, or hold less, go first",
    "RESERVED": "nodes are kept for it; it starts when what runs on them has ended",
}
# Of a quota: the arguments that are amounts.
_HOLDING = ("used", "need", "limit")
# What can be bounded beside GPUs, and workloads by kind, as people call them.
DIMENSIONS = {"cpu_milli": "CPU", "memory_bytes": "memory", "storage_bytes": "storage"}
KINDS = {
    "instance": "instances",
    "training": "training jobs",
    "inference": "services",
    "build": "builds",
    "tool": "tools",
}


@dataclass(frozen=True, slots=True)
class Column(Generic[Item]):
    """
    One column of a table; a wide one is shown with `-o wide` alone.

    Where a terminal is too narrow, cells of a `crop` one are cut short, and `spare` ones are left
    out, the highest first.
    """

    title: str
    cell: Callable[[Item], str]
    wide: bool = False
    crop: bool = False
    spare: int = 0

    @property
    def head(self) -> Title:
        """Its title in a table."""
        return Title(self.title, self.crop, self.spare)


def plain(message: Message) -> dict[str, object]:
    """A message as JSON has it, with the proto's own field names; the same one is always the same."""
    found: dict[str, object] = json_format.MessageToDict(message, preserving_proto_field_name=True)
    return _ordered(cast(Descriptor, message.DESCRIPTOR), found)


def _ordered(kind: Descriptor, found: dict[str, object]) -> dict[str, object]:
    """Sort the keys of maps, which come in any order; fields keep the proto's."""
    for name, value in found.items():
        field = kind.fields_by_name.get(name)
        below = field.message_type if field is not None else None
        if below is None:
            continue
        if below.GetOptions().map_entry and isinstance(value, dict):
            found[name] = dict(sorted(value.items()))
        elif isinstance(value, dict):
            found[name] = _ordered(below, value)
        elif isinstance(value, list):
            found[name] = [_ordered(below, one) if isinstance(one, dict) else one for one in value]
    return found


def name_of(message: Message) -> str:
    """What a program calls it by."""
    for field in _NAMES:
        if field in message.DESCRIPTOR.fields_by_name and getattr(message, field):
            return str(getattr(message, field))
    within = (getattr(message, field, None) for field in ("user", "workload"))
    return next((name_of(one) for one in within if isinstance(one, Message)), "")


def to_json(found: object) -> str:
    """JSON as every command prints it."""
    return text.json(json.dumps(found, indent=2, ensure_ascii=False))


def to_line(found: object) -> str:
    """JSON on one line, as what follows changes prints it."""
    return text.json(json.dumps(found, ensure_ascii=False))


def to_yaml(found: object) -> str:
    """YAML as every command prints it."""
    # The writer of YAML takes marks of direction for letters; without them it keeps all letters.
    letters = text.harmless(json.dumps(found, ensure_ascii=False))
    said: str = yaml.safe_dump(found, sort_keys=False, allow_unicode=letters)
    return said.rstrip("\n")


def one(message: Message, output: str, told: Callable[[], str]) -> None:
    """Print one thing."""
    match output:
        case "json":
            print(to_json(plain(message)))
        case "yaml":
            print(to_yaml(plain(message)))
        case "name":
            print(text.line(name_of(message)))
        case _:
            print(text.lines(told()))


def many(
    items: Iterable[Shown], output: str, columns: Sequence[Column[Shown]], nothing: str
) -> None:
    """Print a list; a table where somebody reads it, the messages where a program does."""
    found = list(items)
    match output:
        case "json":
            print(to_json([plain(item) for item in found]))
        case "yaml":
            print(to_yaml([plain(item) for item in found]))
        case "name":
            for item in found:
                print(text.line(name_of(item)))
        case _ if not found:
            print(nothing, file=sys.stderr)
        case _:
            chosen = chosen_of(columns, output)
            tables.show(
                [column.head for column in chosen],
                [[column.cell(item) for column in chosen] for item in found],
                whole=output == "wide",
            )


def chosen_of(columns: Sequence[Column[Item]], output: str) -> list[Column[Item]]:
    """The columns that this output shows."""
    return [column for column in columns if output == "wide" or not column.wide]


def table(
    titles: Sequence[str | Title], rows: Sequence[Sequence[str]], output: str = "table"
) -> None:
    """Print a table that is no list of messages."""
    heads = [Title(title) if isinstance(title, str) else title for title in titles]
    tables.show(heads, rows, whole=output == "wide")


class Board(Generic[Shown]):
    """
    Follows things that change: a table that redraws on a terminal, one row a change in a pipe.

    In JSON each change is a line, in YAML a document, as `name` a name.
    """

    def __init__(self, columns: Sequence[Column[Shown]], output: str) -> None:
        self._columns = chosen_of(columns, output)
        self._output = output
        self._rows: dict[str, Sequence[str]] = {}
        live = output in ("table", "wide") and sys.stdout.isatty()
        self._screen = tables.Screen() if live else None

    def __enter__(self) -> Board[Shown]:
        if self._screen is not None:
            self._screen.begin()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._screen is not None:
            self._screen.end()

    def put(self, change: str, item: Shown, gone: bool) -> None:
        """Show a change of one thing."""
        match self._output:
            case "json":
                print(to_line(plain(item)), flush=True)
            case "yaml":
                print(f"---\n{to_yaml(plain(item))}", flush=True)
            case "name":
                print(text.line(name_of(item)), flush=True)
            case _ if self._screen is None:
                shown = self._columns[:1] if gone else self._columns
                cells = [column.cell(item) for column in shown]
                row = "  ".join(map(text.line, cells))
                print(f"{change.lower():<8}  {row}", flush=True)
            case _:
                if gone:
                    self._rows.pop(name_of(item), None)
                else:
                    self._rows[name_of(item)] = [column.cell(item) for column in self._columns]
                heads = [column.head for column in self._columns]
                self._screen.draw(heads, list(self._rows.values()), self._output == "wide")


def details(pairs_: Iterable[tuple[str, str]]) -> str:
    """One fact a line, where there is one to tell."""
    return "\n".join(
        text.line(f"  {title:<14}{value}") for title, value in pairs_ if value and value != "-"
    )


def short(name: str) -> str:
    """The last part of a resource name."""
    return name.rsplit("/", 1)[-1]


def enum(name: str) -> str:
    """STATE_RUNNING as RUNNING."""
    return name.split("_", 1)[-1]


def sentence(reason: workload.Reason) -> str:
    """
    A reason as people say it, on one line; empty where there is none.

    One that this client does not know, or that lacks arguments, is told as the platform tells it.
    """
    if not reason.code:
        return ""
    if reason.code in _SENTENCES:
        return _SENTENCES[reason.code]
    if reason.code in _COUNTED:
        with suppress(LookupError, ValueError, OverflowError):
            return text.line(_COUNTED[reason.code](dict(reason.arguments)))
    said = text.line(reason.message.rstrip(".") or reason.code)
    return said[:1].lower() + said[1:]


def _quota(said: Mapping[str, str]) -> str:
    name, used, need, limit = said["dimension"], *(int(said[key]) for key in _HOLDING)
    whose = said["scope"].partition("/")[0].removesuffix("s")
    if need > limit:
        most = counted(name, limit)
        return f"the {whose} may hold {most} in all; this one alone needs {amount(name, need)}"
    held = f"{amount(name, used)} of {counted(name, limit)}"
    return f"the {whose} holds {held}; this one needs {amount(name, need)} more"


def _capacity(said: Mapping[str, str]) -> str:
    need = counted(said["dimension"], int(said["need"]))
    return f"needs {need}; the cluster has {_there(said)}"


def _there(said: Mapping[str, str]) -> str:
    """What a cluster has in all, where that is what was counted, else what is free of it."""
    if "total" in said:
        return f"{amount(said['dimension'], int(said['total']))} in all"
    return f"{amount(said['dimension'], int(said['free']))} free"


def _crashed(said: Mapping[str, str]) -> str:
    again = datetime.fromisoformat(said["until"]).astimezone()
    return f"run {said['run']} ended with {said['end']}; it runs again at {again:%H:%M:%S}"


def _building(said: Mapping[str, str]) -> str:
    progress = f": {said['progress'].rstrip('.')}" if said.get("progress") else ""
    return f"the image {said['image']} is being built, once for all{progress}"


# The rest of the sentences that are written here, each from the arguments of its reason.
_COUNTED: Mapping[str, Callable[[Mapping[str, str]], str]] = {
    "QUOTA": _quota,
    "CAPACITY": _capacity,
    "FRAGMENTED": lambda said: f"{_capacity(said)}, but not on one node",
    "QUOTA_UNKNOWN": lambda said: f"the limits of {said['project']} have not been read yet",
    "CRASH_LOOP_BACKOFF": _crashed,
    "IMAGE_BUILDING": _building,
}


def cores(milli: int) -> str:
    """Thousandths as a number."""
    return f"{milli / 1000:g}"


def size(number: int) -> str:
    """Bytes, in the largest unit that they fill."""
    for unit, length in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if number >= length:
            return f"{number / length:.4g} {unit}"
    return str(number)


def amounts(limits: projects.Limits) -> dict[str, int]:
    """Amounts by dimension, as the scheduler names them; what is not said is not there."""
    found = {f"gpu_milli/{model}": limits.gpu_milli[model] for model in sorted(limits.gpu_milli)}
    for field, number in limits.ListFields():
        if field.name in DIMENSIONS:
            found[field.name] = number
    return found | {
        f"workloads/{kind}": limits.workloads[kind] for kind in KINDS if kind in limits.workloads
    }


def dimension(name: str) -> str:
    """What is bounded, held or short, as people call it: `gpu_milli/A100` is GPU A100."""
    kind, _, key = name.partition("/")
    match kind, key:
        case "gpu_milli", "*":
            return "GPU"
        case "gpu_milli", _:
            return f"GPU {key}"
        case "workloads", _:
            return KINDS.get(key, key)
        case _:
            return DIMENSIONS.get(kind, kind)


def amount(name: str, number: int) -> str:
    """An amount of a dimension, in the unit that people count it in."""
    if name.partition("/")[0].endswith("_milli"):
        return cores(number)
    return size(number) if name.endswith("_bytes") else str(number)


def counted(name: str, number: int) -> str:
    """An amount with what it is of: `2 GPUs`, `1 A100 GPU`, `4 cores`, `16 GiB memory`."""
    kind, _, key = name.partition("/")
    match kind, key:
        case "gpu_milli", "*":
            noun = "GPUs"
        case "gpu_milli", _:
            noun = f"{key} GPUs"
        case "cpu_milli", _:
            noun = "cores"
        case _:
            noun = dimension(name)
    said = amount(name, number)
    return f"{said} {noun.removesuffix('s') if said == '1' else noun}"


def age(stamp: Timestamp) -> str:
    """How long ago, in one unit."""
    if not stamp.seconds:
        return "-"
    seconds = int((datetime.now(UTC) - stamp.ToDatetime(tzinfo=UTC)).total_seconds())
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length}{unit}"
    return f"{max(0, seconds)}s"


def span(duration: Duration) -> str:
    """A time span as `read.duration` reads it."""
    left, found = duration.ToSeconds(), ""
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        if left >= length:
            found += f"{left // length}{unit}"
            left %= length
    return found or "0s"


def moment(stamp: Timestamp) -> str:
    """A time of this machine's zone, to the millisecond."""
    if not stamp.seconds:
        return "-"
    at = stamp.ToDatetime(tzinfo=UTC).astimezone()
    return at.isoformat(sep=" ", timespec="milliseconds")


def when(stamp: Timestamp) -> str:
    """A time in a table: short on a terminal, whole in a pipe."""
    if not stamp.seconds or not sys.stdout.isatty():
        return moment(stamp)
    at, now = stamp.ToDatetime(tzinfo=UTC).astimezone(), datetime.now(UTC).astimezone()
    if at.date() == now.date():
        return f"{at:%H:%M:%S}"
    return f"{at:%m-%d %H:%M:%S}" if at.year == now.year else f"{at:%Y-%m-%d %H:%M:%S}"


def pairs(values: dict[str, str]) -> str:
    """Labels and arguments on one line."""
    return ",".join(f"{key}={value}" for key, value in sorted(values.items())) or "-"
