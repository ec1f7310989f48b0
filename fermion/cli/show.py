"""How answers are printed: as the API's messages for programs, as tables for people."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import TypeVar

import yaml
from google.protobuf import json_format
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

Item = TypeVar("Item", bound=Message)


def plain(message: Message) -> dict[str, object]:
    """A message as JSON has it, with the proto's own field names."""
    found: dict[str, object] = json_format.MessageToDict(message, preserving_proto_field_name=True)
    return found


def one(message: Message, output: str, text: Callable[[], str]) -> None:
    """Print one thing."""
    match output:
        case "json":
            print(json.dumps(plain(message), indent=2, ensure_ascii=False))
        case "yaml":
            print(yaml.safe_dump(plain(message), sort_keys=False, allow_unicode=True), end="")
        case "name":
            print(getattr(message, "name", ""))
        case _:
            print(text())


def many(
    items: Iterable[Item],
    output: str,
    columns: Sequence[str],
    cells: Callable[[Item], Sequence[str]],
    nothing: str,
) -> None:
    """Print a list; a table where somebody reads it, the messages where a program does."""
    found = list(items)
    match output:
        case "json":
            print(json.dumps([plain(item) for item in found], indent=2, ensure_ascii=False))
        case "yaml":
            text = yaml.safe_dump(
                [plain(item) for item in found], sort_keys=False, allow_unicode=True
            )
            print(text, end="")
        case "name":
            for item in found:
                print(getattr(item, "name", ""))
        case _:
            if not found:
                print(nothing, file=sys.stderr)
                return
            table(columns, [cells(item) for item in found])


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table; plain columns in a pipe."""
    made = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="bold")
    for column in columns:
        made.add_column(column, overflow="fold")
    for row in rows:
        made.add_row(*row)
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console = Console(highlight=False, markup=False, width=200)
    console.print(made)


def line(message: Message, output: str, text: str) -> None:
    """Print one row of something that goes on, at once."""
    if output in ("json", "yaml"):
        text = json.dumps(plain(message), ensure_ascii=False)
    elif output == "name":
        text = str(getattr(message, "name", ""))
    print(text, flush=True)


def short(name: str) -> str:
    """The last part of a resource name, or of an enum's value."""
    return name.rsplit("/", 1)[-1]


def enum(name: str) -> str:
    """STATE_RUNNING as RUNNING."""
    return name.split("_", 1)[-1]


def age(stamp: Timestamp) -> str:
    """How long ago, in one unit."""
    if not stamp.seconds:
        return "-"
    seconds = int((datetime.now(UTC) - stamp.ToDatetime(tzinfo=UTC)).total_seconds())
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length}{unit}"
    return f"{max(0, seconds)}s"


def moment(stamp: Timestamp) -> str:
    """A time of day, with milliseconds."""
    at = stamp.ToDatetime(tzinfo=UTC).astimezone()
    return at.isoformat(sep=" ", timespec="milliseconds")


def pairs(values: dict[str, str]) -> str:
    """Labels and arguments on one line."""
    return ",".join(f"{key}={value}" for key, value in sorted(values.items())) or "-"
