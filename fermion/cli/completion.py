"""Completion of commands, options and living names by the shell."""

from __future__ import annotations

import importlib
import sys
from typing import Annotated, Literal

from cyclopts import App, Parameter

app = App(name="completion", help="Completion of commands and names by the shell.")

Shell = Annotated[
    Literal["bash", "zsh", "fish"] | None, Parameter(help="Which one; found out unless said.")
]


def _root() -> App:
    """The parser that this is a command of; it is there when one of its commands runs."""
    found: App = importlib.import_module("fermion.cli.app").app
    return found


@app.command
def install(*, shell: Shell = None) -> None:
    """Write the completion script where the shell finds it, and say where that is."""
    print(f"Written: {_root().install_completion(shell=shell)}. Open a new shell to use it.")


@app.command
def show(*, shell: Shell = None) -> None:
    """Print the completion script."""
    sys.stdout.write(_root().generate_completion(shell=shell))
