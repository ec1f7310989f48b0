"""
Writes the help that the command line keeps.

    python -m tests.unit.fermion.manual        write fermion/cli/help.txt anew
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path

from cyclopts import App
from rich.console import Console

from fermion.cli import help
from fermion.cli.app import app
from fermion.cli.pages import COLUMNS


def written() -> str:
    """Every page as the parser writes it now."""
    return "\n\n".join(f"{help.MARK}{words}\n{page}" for words, page in pages(app)) + "\n"


def pages(root: App) -> Iterator[tuple[str, str]]:
    """Every page below the root: the words that lead to it, and its text."""
    # All of them first: a command that is loaded when it is used says nothing of itself before.
    for words in list(_commands(root, ())):
        out = io.StringIO()
        root.help_print(list(words), console=Console(file=out, width=COLUMNS, color_system=None))
        lines = (line.rstrip() for line in out.getvalue().splitlines())
        yield " ".join(words), "\n".join(lines).strip("\n")


def _commands(app: App, above: Sequence[str]) -> Iterator[Sequence[str]]:
    for name in app:
        if not name.startswith("-"):
            words = (*above, name)
            yield words
            yield from _commands(app[name], words)


if __name__ == "__main__":
    Path(help.KEPT).write_text(written(), encoding="utf-8")
