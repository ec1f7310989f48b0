"""The command line's parser: runs one command, and writes what went wrong for people."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence

from cyclopts import App, CycloptsError

import fermion
from fermion.cli import COMMANDS, EXIT_CODES, SUMMARY

app = App(
    name="fermion",
    help=SUMMARY,
    help_epilogue=EXIT_CODES,
    version=fermion.__version__,
)

for _name, _home, _help in COMMANDS:
    app.command(_home, name=_name, help=_help)


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
