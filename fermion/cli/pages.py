"""Writes help: plain text of 80 columns, alike on every terminal, in pipes, and where it is kept."""

from __future__ import annotations

import io
import textwrap
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from cyclopts.help import HelpEntry, HelpPanel
    from rich.console import Console, ConsoleOptions, RenderableType

COLUMNS: Final = 80
TITLES: Final = {"Parameters": "Options"}
# A longer label has a line of its own.
LABEL_MAX: Final = 24


class Page:
    """How the parser's pages look."""

    def render_usage(
        self, console: Console, options: ConsoleOptions, usage: RenderableType | None
    ) -> None:
        """The line that shows where which word stands."""
        if usage is not None:
            _print(console, f"Usage: {_text(console, usage)}")

    def render_description(
        self, console: Console, options: ConsoleOptions, description: RenderableType | None
    ) -> None:
        """What it does; lines that are set in, as examples are, stay as they stand."""
        text = "" if description is None else _text(console, description)
        if text:
            _print(console, "\n" + "\n\n".join(_paragraph(part) for part in text.split("\n\n")))

    def __call__(self, console: Console, options: ConsoleOptions, panel: HelpPanel) -> None:
        """One group of commands, arguments or options."""
        if not panel.entries:
            return
        rows = [(_label(entry), _about(console, entry)) for entry in panel.entries]
        width = min(LABEL_MAX, max(len(label) for label, _ in rows))
        title = _text(console, panel.title)
        lines = [f"\n{TITLES.get(title, title)}:"]
        for label, about in rows:
            gap = " " * (width + 4)
            wrapped = textwrap.wrap(about, COLUMNS - len(gap)) or [""]
            if len(label) > width:
                lines.append(f"  {label}")
            else:
                lines.append(f"  {label:<{width}}  {wrapped.pop(0)}".rstrip())
            lines += [f"{gap}{line}" for line in wrapped]
        _print(console, "\n".join(lines))


def _label(entry: HelpEntry) -> str:
    return ", ".join(entry.display_labels_with_metavar)


def _about(console: Console, entry: HelpEntry) -> str:
    text = "" if entry.description is None else _text(console, entry.description)
    if entry.choices:
        text = f"{text} [{', '.join(entry.choices)}]"
    return text.strip()


def _paragraph(text: str) -> str:
    if text.startswith(" "):
        return text
    return "\n".join(textwrap.wrap(text, COLUMNS))


def _text(console: Console, renderable: RenderableType) -> str:
    """What it says, without colours and on lines as long as they are."""
    out = io.StringIO()
    # Of its own kind, so that nothing is loaded here for commands that show no help.
    type(console)(file=out, width=1000, color_system=None).print(renderable)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()).strip("\n")


def _print(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
