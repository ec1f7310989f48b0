"""What every command takes: which platform, which project, how to print."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter
from cyclopts.completion import CompletionContext

import fermion
from fermion.cli import near, text
from fermion.context import (
    TIMEOUT_SECONDS,
    Contexts,
    Positions,
    StoredPositions,
    checked_timeout,
    resolve,
)
from fermion.errors import Error, InvalidArgument

if TYPE_CHECKING:
    from fermion.client import Client

Format = Literal["table", "wide", "json", "yaml", "name"]
# A list command asks for so many names while somebody presses TAB.
COMPLETION_SECONDS = 2.0


def context_names(_: CompletionContext) -> list[str]:
    """What TAB offers for a context."""
    return Contexts().names()


def project_names(_: CompletionContext) -> list[str]:
    """What TAB offers for a project."""
    with Options(timeout=COMPLETION_SECONDS).client() as client:
        return [text.line(one.name.removeprefix("projects/")) for one in client.projects.list()]


def instance_names(_: CompletionContext) -> list[str]:
    """What TAB offers for an instance."""
    with Options(timeout=COMPLETION_SECONDS).client() as client:
        project = client.context.project
        return [text.line(one.name.rsplit("/", 1)[-1]) for one in client.instances.list(project)]


def user_names(_: CompletionContext) -> list[str]:
    """What TAB offers for a user."""
    with Options(timeout=COMPLETION_SECONDS).client() as client:
        return [text.line(one.name.removeprefix("users/")) for one in client.users.list()]


def cluster_names(_: CompletionContext) -> list[str]:
    """What TAB offers for a cluster."""
    with Options(timeout=COMPLETION_SECONDS).client() as client:
        return [text.line(one.name.removeprefix("clusters/")) for one in client.clusters.list()]


def template_names(_: CompletionContext) -> list[str]:
    """What TAB offers for a template."""
    with Options(timeout=COMPLETION_SECONDS).client() as client:
        found = client.instances.templates()
        return [text.line(one.name.removeprefix("templates/")) for one in found]


ProjectName = Annotated[str, Parameter(completer=project_names)]
InstanceName = Annotated[
    str, Parameter(help="dev-1, or projects/P/instances/dev-1.", completer=instance_names)
]
ClusterName = Annotated[str, Parameter(completer=cluster_names)]
TemplateName = Annotated[str, Parameter(completer=template_names)]
Etag = Annotated[str, Parameter(help="Only if it is still this one.")]
OutputOption = Annotated[
    Format,
    Parameter(name=["--output", "-o"], help="How to print; json is the API's message [table]."),
]


@Parameter(name="*", group="Options of every call")
@dataclass(frozen=True)
class Options:
    """Where to call, and how to print."""

    context: Annotated[
        str,
        Parameter(help="Context to use instead of the current one.", completer=context_names),
    ] = ""
    project: Annotated[
        str,
        Parameter(
            name=["--project", "-p"],
            help="Project, instead of the context's.",
            completer=project_names,
        ),
    ] = ""
    output: OutputOption = "table"
    timeout: Annotated[float, Parameter(help="Seconds that one call may take [30].")] = (
        TIMEOUT_SECONDS
    )

    @contextmanager
    def client(self, *, ill: bool = False) -> Iterator[Client]:
        """
        Open a client; an error over a name says what there is by a name like it.

        One for a platform that may be ill asks for what there is, whatever was seen before: what has
        lost something, or stands still, would be waited for in vain.
        """
        checked_timeout("--timeout", self.timeout)
        context = resolve(self.context)
        positions = Positions() if ill else StoredPositions(context)
        with fermion.Client(
            context=self.context, timeout=self.timeout, positions=positions
        ) as client:
            try:
                yield client
            except Error as error:
                near.suggest(client, error)
                raise

    def project_of(self, client: Client) -> str:
        """The project that was said, else the context's; else what to say is asked for."""
        found = (self.project or client.context.project).removeprefix("projects/")
        if not found:
            raise InvalidArgument(
                "No project was said, and the context has none.",
                reason="PROJECT_MISSING",
                violations=(("--project", "must be said"),),
                next_step="Say one with -p PROJECT, or once and for all: "
                "fermion projects use PROJECT",
            )
        return found

    def instance_of(self, client: Client, name: str) -> tuple[str, str, str]:
        """Project, last part and full name of `dev-1`, or of `projects/p/instances/dev-1`."""
        if "/" not in name:
            project = self.project_of(client)
            return project, name, f"projects/{project}/instances/{name}"
        parts = name.split("/")
        if len(parts) != 4 or (parts[0], parts[2]) != ("projects", "instances"):
            raise InvalidArgument(
                f"{name!r} is no name of an instance.",
                reason="OPTION_INVALID",
                violations=(("NAME", "must be dev-1 or projects/P/instances/dev-1"),),
            )
        return parts[1], parts[3], name


def note(said: str) -> None:
    """Tell people something that is no answer; programs read the answer on stdout."""
    print(text.lines(said), file=sys.stderr, flush=True)
