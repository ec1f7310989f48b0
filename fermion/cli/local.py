"""The platform on this machine: `up` and `down` hand over to what was installed beside the client."""

from __future__ import annotations

import importlib.util
import os
import sys
from typing import Annotated

from cyclopts import Parameter

from fermion.errors import FailedPrecondition


def up(
    *,
    split: Annotated[bool, Parameter(help="A process per service.", negative="")] = False,
    replicas: Annotated[int, Parameter(help="Processes of each service.")] = 1,
    port: Annotated[int | None, Parameter(help="Port to listen on.")] = None,
) -> int:
    """Start the platform on this machine, in the foreground; Ctrl-C drains and stops it."""
    words = ["up"]
    if split:
        words.append("--split")
    if replicas != 1:
        words += ["--replicas", str(replicas)]
    if port is not None:
        words += ["--port", str(port)]
    return _services(words)


def down() -> int:
    """Stop the platform on this machine, and wait until it is gone."""
    return _services(["down"])


def _services(words: list[str]) -> int:
    if importlib.util.find_spec("services") is None:
        raise FailedPrecondition(
            "Only the client is installed here, not the platform.",
            reason="PLATFORM_NOT_INSTALLED",
            arguments={"next_step": "Run it from a checkout: make up"},
        )
    # The platform takes the place of this process, so signals reach it directly.
    os.execv(sys.executable, [sys.executable, "-m", "services", *words])
