"""What every command takes: which platform, which project, how to print."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from cyclopts import Parameter

from fermion.client import TIMEOUT_SECONDS, Client
from fermion.errors import InvalidArgument

Format = Literal["table", "wide", "json", "yaml", "name"]


@Parameter(name="*")
@dataclass(frozen=True)
class Options:
    """Where to call, and how to print."""

    context: Annotated[str, Parameter(help="Context to use instead of the current one.")] = ""
    project: Annotated[
        str, Parameter(name=["--project", "-p"], help="Project, instead of the context's.")
    ] = ""
    output: Annotated[
        Format, Parameter(name=["--output", "-o"], help="How to print; json is the API's message.")
    ] = "table"
    timeout: Annotated[float, Parameter(help="Seconds that one call may take.")] = TIMEOUT_SECONDS

    def client(self) -> Client:
        """Open a client."""
        return Client(context=self.context, timeout=self.timeout)

    def project_of(self, client: Client) -> str:
        """The project that was said, else the context's; else what to say is asked for."""
        found = (self.project or client.context.project).removeprefix("projects/")
        if not found:
            raise InvalidArgument(
                "No project was said, and the context has none.",
                reason="PROJECT_MISSING",
                arguments={
                    "next_step": "Say one with -p PROJECT, or once and for all: "
                    "fermion projects use PROJECT"
                },
            )
        return found
