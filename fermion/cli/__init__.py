"""The command line `fermion`. Commands are loaded when they are used, so that help is there at once."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence

from cyclopts import App, CycloptsError

import fermion

EXIT_CODES = """
Exit codes: 0 ok, 1 failed, 2 wrong usage or input, 3 not found, 4 not allowed, 5 conflict or wrong
state, 6 timeout or unreachable, 7 workload failed, 130 detached by Ctrl-C.
"""

app = App(
    name="fermion",
    help="Dev instances, training jobs and inference services, billed by what really ran.",
    help_epilogue=EXIT_CODES,
    version=fermion.__version__,
)

# Group, where it lives, what it does.
COMMANDS = (
    ("up", "fermion.cli.local:up", "Start the platform on this machine, in the foreground."),
    ("down", "fermion.cli.local:down", "Stop the platform on this machine."),
    ("status", "fermion.cli.operate:status", "Show journals, relays and readers."),
    ("doctor", "fermion.cli.operate:doctor", "Check everything, and say how to mend it."),
    ("whoami", "fermion.cli.people:whoami", "Show who you are and what you may do."),
    ("contexts", "fermion.cli.contexts:app", "Where to call, and as whom."),
    ("instances", "fermion.cli.instances:app", "Development environments."),
    ("templates", "fermion.cli.templates:app", "Pre-configured kinds of instances."),
    ("projects", "fermion.cli.projects:app", "Projects."),
    ("members", "fermion.cli.people:members", "Roles of users in a project."),
    ("users", "fermion.cli.people:users", "People who use the platform."),
    ("tokens", "fermion.cli.people:tokens", "API tokens."),
    ("keys", "fermion.cli.people:keys", "Public keys that tokens are checked with."),
    ("queue", "fermion.cli.operate:queue", "What waits for admission, and why."),
    ("events", "fermion.cli.events:app", "What happened, who caused it, and why."),
    ("audit", "fermion.cli.operate:audit", "Count log, stream and readers against each other."),
    ("journal", "fermion.cli.operate:journal", "Journals: rebuild, parked facts, readers."),
)

for _name, _home, _help in COMMANDS:
    app.command(_home, name=_name, help=_help)


def main() -> None:
    """Run one command; the exit code says how it went."""
    sys.exit(run(sys.argv[1:]))


def run(words: Sequence[str]) -> int:
    """Run one command and answer its exit code; nothing but `--debug` shows a traceback."""
    debug = "--debug" in words
    try:
        found = app(
            [word for word in words if word != "--debug"],
            exit_on_error=False,
            print_error=False,
            result_action="return_value",
        )
    except CycloptsError as error:
        return _usage(error, words)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever read our output has seen enough.
        sys.stderr.close()
        return 0
    except Exception as error:
        if debug:
            raise
        return _say(error)
    return found if isinstance(found, int) else 0


def _usage(error: CycloptsError, words: Sequence[str]) -> int:
    message = str(error).strip() or type(error).__name__
    print(f"error: {message}", file=sys.stderr)
    if words and not words[0].startswith("-"):
        names = [name for name, _, _ in COMMANDS]
        if words[0] not in names:
            near = difflib.get_close_matches(words[0], names, 1)
            if near and near[0] not in message:
                print(f"Did you mean: fermion {near[0]}?", file=sys.stderr)
    print(f"Try: fermion {_known(words)}--help", file=sys.stderr)
    return 2


def _known(words: Sequence[str]) -> str:
    names = {name for name, _, _ in COMMANDS}
    return f"{words[0]} " if words and words[0] in names else ""


def _say(error: Exception) -> int:
    """Write what went wrong for people: message, fields, next step, request id."""
    message = getattr(error, "message", "") or f"{type(error).__name__}: {error}"
    print(f"error: {message}", file=sys.stderr)
    for field, description in getattr(error, "violations", ()):
        print(f"  {field or 'request'}: {description}", file=sys.stderr)
    next_step = getattr(error, "next_step", "")
    if next_step:
        print(f"  what to do: {next_step}", file=sys.stderr)
    reason, request_id = getattr(error, "reason", ""), getattr(error, "request_id", "")
    if reason:
        tail = f"  request id: {request_id}" if request_id else ""
        print(f"  reason: {reason}{tail}", file=sys.stderr)
    code = getattr(error, "exit_code", 1)
    return code if isinstance(code, int) else 1
