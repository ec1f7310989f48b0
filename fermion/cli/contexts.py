"""Where to call, and as whom."""

from __future__ import annotations

import json
from typing import Annotated

from cyclopts import App, Parameter

from fermion.cli.options import Format
from fermion.cli.show import table
from fermion.context import Contexts
from fermion.errors import NotFound

app = App(name="contexts", help="Where to call, and as whom.")


@app.command(name="list")
def list_(*, output: Annotated[Format, Parameter(name=["--output", "-o"])] = "table") -> None:
    """List contexts; the current one has a star."""
    contexts = Contexts()
    if output == "json":
        shown = {
            name: {key: value for key, value in entry.items() if key != "token"}
            for name, entry in contexts.known.items()
        }
        print(json.dumps({"current": contexts.current, "contexts": shown}, indent=2))
        return
    rows = []
    for name in sorted(contexts.known):
        found = contexts.find(name)
        if found is not None:
            star = "*" if name == contexts.current else ""
            rows.append((star, name, found.address, found.project or "-", found.token_file or "-"))
    table(("", "NAME", "ADDRESS", "PROJECT", "TOKEN"), rows)


@app.command
def use(name: str) -> None:
    """Make a context the current one."""
    contexts = Contexts()
    if name not in contexts.known:
        raise _missing(name, contexts)
    contexts.current = name
    contexts.save()
    print(f"Using {name}.")


@app.command(name="set")
def set_(
    name: str,
    *,
    address: Annotated[str, Parameter(help="host:port of the platform.")] = "",
    token_file: Annotated[str, Parameter(help="File with your token.")] = "",
    project: Annotated[str, Parameter(name=["--project", "-p"], help="Your project.")] = "",
) -> None:
    """Change a context, or add it."""
    Contexts().set(name, address=address, token_file=token_file, project=project)
    print(f"Context {name} is set.")


@app.command
def delete(name: str) -> None:
    """Take a context away."""
    contexts = Contexts()
    if contexts.known.pop(name, None) is None:
        raise _missing(name, contexts)
    contexts.save()
    print(f"Context {name} is gone.")


def _missing(name: str, contexts: Contexts) -> NotFound:
    return NotFound(
        f"There is no context {name!r}.",
        reason="CONTEXT_NOT_FOUND",
        arguments={"next_step": f"There are: {', '.join(sorted(contexts.known)) or 'none yet'}."},
    )
