"""
Writes the help that the command line keeps.

    python -m tests.unit.fermion.manual        write fermion/cli/help.txt anew
"""

from __future__ import annotations

from pathlib import Path

from fermion.cli import help
from fermion.cli.app import app
from fermion.cli.pages import pages


def written() -> str:
    """Every page as the parser writes it now."""
    return "\n\n".join(f"{help.MARK}{words}\n{page}" for words, page in pages(app)) + "\n"


if __name__ == "__main__":
    Path(help.KEPT).write_text(written(), encoding="utf-8")
