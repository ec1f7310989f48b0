"""Stops everything that runs on the platform of this machine, before the platform stops."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from fermion.api.instances import v1 as api
from fermion.cli import show
from fermion.cli.options import Options, note
from fermion.context import Context, home, resolve
from fermion.errors import FailedPrecondition, NotFound, Timeout, WorkloadFailed

if TYPE_CHECKING:
    from fermion.client import Client

# `fermion up` writes it anew with each start.
CONTEXT: Final = "local"
STOP_SECONDS_MAX: Final = 60.0
NAMED_MAX: Final = 5


def stop_all(seconds: float = STOP_SECONDS_MAX) -> None:
    """
    Stop all instances of all projects of this machine's platform, and wait until they have.

    Raises `Timeout` where some have not after `seconds`, and `FailedPrecondition` where the context
    `local` is somebody else's platform: nothing of that is stopped.
    """
    _must_be_here(resolve(CONTEXT))
    deadline = time.monotonic() + seconds
    with Options(context=CONTEXT).client() as client:
        # Somebody may start one while others stop, so they are looked for until there is none.
        while living := _living(client):
            if time.monotonic() > deadline:
                raise _late(living, seconds)
            several = "1 instance" if len(living) == 1 else f"{len(living)} instances"
            note(f"Stopping {several}: {_names(living)}")
            for name in living:
                # One that goes already, or with its project, takes no order; its end is waited for.
                with suppress(NotFound, FailedPrecondition):
                    client.instances.stop(name)
            for name in living:
                _wait(client, name, deadline, seconds)


def _must_be_here(context: Context) -> None:
    """Refuse to stop what may run elsewhere: only this platform takes the token of this folder."""
    own = home() / "keys" / "admin.token"
    if context.token_file != str(own):
        raise FailedPrecondition(
            f"The context {CONTEXT} is not of the platform in {home()}, so nothing was stopped.",
            reason="CONTEXT_ELSEWHERE",
            arguments={"context": CONTEXT, "token_file": context.token_file},
            next_step="Start the platform once more, which mends the context, or say "
            "fermion instances stop NAME for each.",
        )


def _living(client: Client) -> Sequence[str]:
    """Full names of all instances that run, or are about to."""
    return [
        instance.name
        for project in client.projects.list()
        for instance in client.instances.list(show.short(project.name))
        if not _over(instance.status)
    ]


def _over(status: api.Status) -> bool:
    again = status.desired_state == api.STATE_RUNNING
    return status.state == api.STATE_FAILED or (status.state == api.STATE_STOPPED and not again)


def _wait(client: Client, name: str, deadline: float, seconds: float) -> None:
    left = max(0.0, deadline - time.monotonic())
    try:
        # One that is gone or has failed runs no more, either.
        with suppress(NotFound, WorkloadFailed):
            client.instances.wait(name, api.STATE_STOPPED, left)
    except Timeout as error:
        # What stopped in the last moment is not late.
        if living := _living(client):
            raise _late(living, seconds) from error


def _late(living: Sequence[str], seconds: float) -> Timeout:
    return Timeout(
        f"Not stopped after {seconds:g} s: {_names(living)}. The platform has not been stopped.",
        reason="WAIT_TIMEOUT",
        arguments={"instances": ",".join(living)},
        next_step="Say it again to wait longer; or fermion down alone, and they run on.",
    )


def _names(living: Sequence[str]) -> str:
    """The first of them, as people tell them apart."""
    named = [name.removeprefix("projects/") for name in living[:NAMED_MAX]]
    rest = len(living) - len(named)
    return ", ".join(named) + (f" and {rest} more" if rest else "")
