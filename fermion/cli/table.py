"""Tables: drawn to the width of a terminal, and in a pipe whole rows of plain text."""

from __future__ import annotations

import os
import shutil
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from fermion.cli import text

GAP: Final = "  "
CUT: Final = "…"
# What is left of a cell that is cut short, at least.
CROPPED_MIN: Final = 20

Rows = Sequence[Sequence[str]]


@dataclass(frozen=True, slots=True)
class Title:
    """A column's title, and what becomes of the column where a terminal is too narrow."""

    text: str
    # Its cells are cut short.
    crop: bool = False
    # It is left out: the highest first; 0 is never.
    spare: int = 0
    # What its cells mostly take, where rows are printed one by one.
    room: int = 0


def show(titles: Sequence[Title], rows: Rows, whole: bool = False) -> None:
    """Print a table; what does not fit on a terminal is cut, unless the whole is wanted."""
    if not sys.stdout.isatty():
        print("\n".join(drawn(titles, rows)))
        return
    width = None if whole else shutil.get_terminal_size().columns
    head, *body = drawn(titles, rows, width)
    print("\n".join((_bold(head), *body)))


def line(titles: Sequence[Title], cells: Sequence[str]) -> str:
    """A row whose next ones are not there yet: cut to the width of a terminal, whole in a pipe."""
    if not sys.stdout.isatty():
        return GAP.join(map(text.line, cells))
    wide = [padded(cell, title.room) for cell, title in zip(cells, titles, strict=True)]
    return drawn(titles, [wide], shutil.get_terminal_size().columns)[1]


def drawn(titles: Sequence[Title], rows: Rows, width: int | None = None) -> list[str]:
    """The lines of a table, its titles first; none is longer than `width` where one is given."""
    shown_rows = ([text.line(cell) for cell in row] for row in rows)
    cells = [[title.text for title in titles], *shown_rows]
    natural = [max(map(width_of, column)) for column in zip(*cells, strict=True)]
    layout = list(enumerate(natural)) if width is None else _layout(titles, natural, width)
    lines = []
    for row in cells:
        shown = (padded(cropped(row[place], room), room) for place, room in layout)
        line = GAP.join(shown).rstrip()
        lines.append(line if width is None else cropped(line, width))
    return lines


def _layout(titles: Sequence[Title], natural: Sequence[int], width: int) -> list[tuple[int, int]]:
    """Which columns are shown, by place, and how wide."""
    kept = list(range(len(titles)))
    cut = {place for place in kept if titles[place].crop}
    while _least(natural, kept, cut) > width:
        spare = [place for place in kept if titles[place].spare]
        if spare:
            kept.remove(max(spare, key=lambda place: titles[place].spare))
        elif len(cut) + 1 < len(kept):
            # Nothing but the first column, which says what a row is about, is worth more than a line.
            cut = set(kept[1:])
        else:
            break
    left = width - len(GAP) * (len(kept) - 1)
    left -= sum(natural[place] for place in kept if place not in cut)
    rooms = dict(enumerate(natural))
    waiting = sorted((place for place in kept if place in cut), key=lambda place: natural[place])
    while waiting:
        # The narrow ones first: what they leave over is for the wide ones.
        share = max(left // len(waiting), 1)
        place = waiting.pop(0)
        rooms[place] = min(natural[place], share)
        left -= rooms[place]
    return [(place, rooms[place]) for place in kept]


def _least(natural: Sequence[int], kept: Sequence[int], cut: Iterable[int]) -> int:
    """How wide these columns are with some cut as short as may be."""
    cells = (min(natural[one], CROPPED_MIN) if one in cut else natural[one] for one in kept)
    return sum(cells) + len(GAP) * (len(kept) - 1)


def width_of(cell: str) -> int:
    """How many columns of a terminal a text takes."""
    return len(cell) if cell.isascii() else sum(map(_columns, cell))


def cropped(cell: str, width: int) -> str:
    """The text, cut short where it takes more than `width` columns."""
    if width_of(cell) <= width:
        return cell
    found, left = "", width - width_of(CUT)
    for character in cell:
        left -= _columns(character)
        if left < 0:
            break
        found += character
    return found.rstrip() + CUT


def padded(cell: str, width: int) -> str:
    """The text, with blanks up to `width` columns."""
    return cell + " " * (width - width_of(cell))


def _columns(character: str) -> int:
    if unicodedata.combining(character) or unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _bold(head: str) -> str:
    coloured = "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
    return f"\x1b[1m{head}\x1b[0m" if coloured else head


class Screen:
    """A part of the terminal that is drawn again where it stands."""

    def __init__(self) -> None:
        self._lines = 0

    def begin(self) -> None:
        """Take the cursor away."""
        print("\x1b[?25l", end="", flush=True)

    def end(self) -> None:
        """Give the cursor back, below what was drawn last."""
        print("\x1b[?25h", end="", flush=True)

    def draw(
        self, titles: Sequence[Title], rows: Rows, whole: bool = False, below: Sequence[str] = ()
    ) -> None:
        """
        Draw a table in the place of the last one, and lines below it.

        Rows below the screen's end are counted.
        """
        size = shutil.get_terminal_size()
        head, *body = drawn(titles, rows, None if whole else size.columns)
        room = max(1, size.lines - 3 - len(below))
        if len(body) > room:
            body = [*body[: room - 1], f"{CUT} and {len(body) - room + 1} more"]
        # A line that is longer than the screen is wide would be two, and not be counted so.
        lines = [cropped(line, size.columns) for line in (head, *body, *map(text.line, below))]
        back = f"\x1b[{self._lines}F" if self._lines else ""
        print(f"{back}\x1b[J" + "\n".join((_bold(lines[0]), *lines[1:])), flush=True)
        self._lines = len(lines)
