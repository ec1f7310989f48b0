"""Where to call, and as whom."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from fermion.cli import show
from fermion.cli.options import OutputOption, context_names
from fermion.cli.table import Title
from fermion.context import Contexts, checked_address, token_of
from fermion.errors import InvalidArgument

app = App(name="contexts", help="Where to call, and as whom.")

ContextName = Annotated[str, Parameter(completer=context_names)]


@app.command(name="list")
def list_(*, output: OutputOption = "table") -> None:
    """List contexts; the current one has a star. Tokens are never shown."""
    contexts = Contexts()
    shown = []
    for name in contexts.names():
        found = contexts.find(name)
        shown.append(
            {
                "name": name,
                "current": name == contexts.current,
                "address": found.address,
                "addresses": dict(found.addresses),
                "project": found.project,
                "token_file": found.token_file,
            }
        )
    match output:
        case "json":
            print(show.to_json(shown))
        case "yaml":
            print(show.to_yaml(shown))
        case "name":
            print("\n".join(contexts.names()))
        case _:
            show.table(
                ("", "NAME", "ADDRESS", "PROJECT", Title("TOKEN", crop=True)),
                [
                    (
                        "*" if one["current"] else "",
                        str(one["name"]),
                        str(one["address"]),
                        str(one["project"] or "-"),
                        str(one["token_file"] or "-"),
                    )
                    for one in shown
                ],
                output,
            )


@app.command
def use(name: ContextName, /) -> None:
    """Make a context the current one."""
    contexts = Contexts()
    contexts.find(name)
    contexts.current = name
    contexts.save()
    print(f"Using {name}.")


@app.command(name="set")
def set_(
    name: ContextName,
    /,
    *,
    address: Annotated[str, Parameter(help="HOST:PORT of the platform.")] = "",
    service_address: Annotated[
        tuple[str, ...],
        Parameter(help="SERVICE=HOST:PORT of a service that answers elsewhere, more than once."),
    ] = (),
    token_file: Annotated[Path | None, Parameter(help="File with your token.")] = None,
    project: Annotated[str, Parameter(name=["--project", "-p"], help="Your project.")] = "",
) -> None:
    """Change a context, or add it."""
    contexts = Contexts()
    if name not in contexts.names() and not address:
        raise InvalidArgument(
            f"Context {name!r} is new, and where it is was not said.",
            reason="OPTION_MISSING",
            violations=(("--address", "must be HOST:PORT"),),
            next_step=f"fermion contexts set {name} --address HOST:PORT --token-file FILE",
        )
    if token_file is not None:
        _check(token_file.absolute())
    services = dict(part.partition("=")[::2] for part in service_address)
    contexts.set(
        name,
        address=checked_address("--address", address) if address else "",
        addresses={
            service: checked_address("--service-address", where)
            for service, where in services.items()
        },
        token_file=str(token_file.absolute()) if token_file else "",
        project=project.removeprefix("projects/"),
    )
    print(f"Context {name} is set.")


def _check(token_file: Path) -> None:
    try:
        token_of(token_file)
    except ValueError as error:
        raise InvalidArgument(
            f"--token-file is {str(token_file)!r}: it {error}.",
            reason="OPTION_INVALID",
            violations=(("--token-file", "must be a file with a token"),),
            next_step="Write the token into it first, readable by you alone.",
        ) from error


@app.command
def delete(name: ContextName, /) -> None:
    """Take a context away."""
    contexts = Contexts()
    contexts.find(name)
    contexts.known.pop(name, None)
    if contexts.current == name:
        contexts.current = "local"
    contexts.save()
    print(f"Context {name} is gone.")
