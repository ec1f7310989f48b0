"""The command line's parser: runs one command, and writes what went wrong for people."""

from __future__ import annotations

import difflib
import sys
import traceback
from collections.abc import Sequence

from cyclopts import App, CycloptsError, Parameter, UnusedCliTokensError

import fermion
from fermion import errors
from fermion.cli import COMMANDS, SUMMARY, text
from fermion.cli.fields import OPTION_OF
from fermion.cli.pages import Page

# The first class that fits says the code; 1 where none does.
CODES: tuple[tuple[type[errors.Error], int], ...] = (
    (errors.InvalidArgument, 2),
    (errors.NotFound, 3),
    (errors.Denied, 4),
    (errors.Unauthenticated, 4),
    (errors.AlreadyExists, 5),
    (errors.Conflict, 5),
    (errors.FailedPrecondition, 5),
    (errors.Timeout, 6),
    (errors.Unavailable, 6),
    (errors.WorkloadFailed, 7),
)

EPILOGUE = "Exit codes, and what else holds everywhere: fermion --help"

app = App(
    name="fermion",
    help=SUMMARY,
    help_epilogue=EPILOGUE,
    help_format="plaintext",
    help_formatter=Page(),
    version=fermion.__version__,
    default_parameter=Parameter(negative="", show_default=False),
)

for _name, _home, _help in COMMANDS:
    app.command(_home, name=_name, help=_help)


def run(words: Sequence[str]) -> int:
    """Run one command and answer its exit code; nothing but `--debug` shows a traceback."""
    debug, asked = prepared(words)
    try:
        _must_be_text(words)
        found = app(asked, exit_on_error=False, print_error=False, result_action="return_value")
        sys.stdout.flush()
    except CycloptsError as error:
        return _usage(error, asked)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        raise
    except Exception as error:
        if debug:
            told = "".join(traceback.format_exception(error))
            print(text.lines(told), end="", file=sys.stderr)
        return say(error)
    return found if isinstance(found, int) else 0


def prepared(words: Sequence[str]) -> tuple[bool, list[str]]:
    """
    Take `--debug` out, and give the words behind `--` their name.

    They are the start command of an instance, word by word as they stand; nothing in them is an
    option of ours.
    """
    place = words.index("--") if "--" in words else len(words)
    own = [word for word in words[:place] if word != "--debug"]
    behind = list(words[place:])
    if own[:2] in (["instances", "create"], ["instances", "update"]):
        behind = [f"--command={word}" for word in behind[1:]]
    return "--debug" in words[:place], own + behind


def _must_be_text(words: Sequence[str]) -> None:
    """Refuse words of bytes that are no text: Python passes them on, and no message can hold them."""
    for word in words:
        try:
            word.encode()
        except UnicodeEncodeError as error:
            raise errors.InvalidArgument(
                f"{word!r} is no text.",
                reason="OPTION_INVALID",
                violations=((word, "must be valid UTF-8"),),
                next_step="Write it in UTF-8; a file of such a name goes in through stdin, as -.",
            ) from error


def exit_code(error: Exception) -> int:
    """What the shell is told."""
    return next((code for kind, code in CODES if isinstance(error, kind)), 1)


def say(error: Exception) -> int:
    """Write what went wrong for people: message, fields, next step, request id; answer the exit code."""
    if not isinstance(error, errors.Error):
        print(text.lines(f"error: {type(error).__name__}: {error}"), file=sys.stderr)
        print("  what to do: --debug shows where; please report it.", file=sys.stderr)
        return 1
    lines = [f"error: {error.message}"]
    for field, rule in error.violations:
        option = OPTION_OF.get(field.split("[")[0])
        lines.append(f"  {field or 'request'}{f' ({option})' if option else ''}: {rule}")
    if error.next_step:
        lines.append(f"  what to do: {error.next_step}")
    tail = f"reason: {error.reason}" if error.reason else ""
    if error.request_id:
        tail += f"{'   ' if tail else ''}request id: {error.request_id}"
    if tail:
        lines.append(f"  {tail}")
    print(text.lines("\n".join(lines)), file=sys.stderr)
    return exit_code(error)


def _usage(error: CycloptsError, words: Sequence[str]) -> int:
    message = str(error).strip() or type(error).__name__
    chain = " ".join(("fermion", *(error.command_chain or ())))
    if isinstance(error, UnusedCliTokensError):
        unused = " ".join(error.unused_tokens or ())
        message = f"{chain} does not know what {unused!r} is for."
    lines = [f"error: {message}"]
    if words and not error.command_chain and not words[0].startswith("-"):
        near = difflib.get_close_matches(words[0], [name for name, _, _ in COMMANDS], 1)
        if near and near[0] not in message:
            lines.append(f"  did you mean: fermion {near[0]}?")
    if isinstance(error, UnusedCliTokensError) and chain == "fermion instances create":
        lines.append(f"  did you mean a start command? It stands behind --: -- {unused}")
    lines.append(f"  what to do: see {chain} --help")
    print(text.lines("\n".join(lines)), file=sys.stderr)
    return 2
