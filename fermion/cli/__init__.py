"""The command line `fermion`. Commands are loaded when they are used, so that help is there at once."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

from fermion import __version__
from fermion.cli import help

SUMMARY = "Dev instances, training jobs and inference services, billed by what really ran."

EXIT_CODES = """
Exit codes: 0 ok, 1 failed, 2 wrong usage or input, 3 not found, 4 not allowed, 5 conflict or wrong
state, 6 timeout or unreachable, 7 workload failed, 130 detached by Ctrl-C.
Everywhere: --debug shows the traceback of an error.
"""

# Name, where it lives, what it does.
COMMANDS = (
    ("up", "fermion.cli.local:up", "Start the platform on this machine, in the foreground."),
    ("down", "fermion.cli.local:down", "Stop the platform on this machine."),
    (
        "backup",
        "fermion.cli.local:backup",
        "Write the platform's state into a folder, while it runs.",
    ),
    ("restore", "fermion.cli.local:restore", "Put a backup back, or accept what a restore lost."),
    ("status", "fermion.cli.operate:status", "Show whether it runs: cluster, journals, readers."),
    ("doctor", "fermion.cli.doctor:doctor", "Check everything, and say how to mend it."),
    ("whoami", "fermion.cli.people:whoami", "Show who you are and what you may do."),
    ("contexts", "fermion.cli.contexts:app", "Where to call, and as whom."),
    ("instances", "fermion.cli.instances:app", "Development environments."),
    ("replicas", "fermion.cli.replicas:replicas", "What runs, or ran last, and where."),
    ("templates", "fermion.cli.templates:app", "Pre-configured kinds of instances."),
    ("projects", "fermion.cli.projects:app", "Projects."),
    ("members", "fermion.cli.people:members", "Roles of users in a project."),
    ("users", "fermion.cli.people:users", "People who use the platform."),
    ("tokens", "fermion.cli.people:tokens", "API tokens."),
    ("keys", "fermion.cli.people:keys", "Public keys that tokens are checked with."),
    ("quotas", "fermion.cli.quotas:app", "How much projects and users may hold at a time."),
    ("clusters", "fermion.cli.clusters:app", "Clusters on which work may run."),
    ("queue", "fermion.cli.queue:app", "What waits for admission, and why."),
    ("cost", "fermion.cli.cost:app", "What things have cost, and why."),
    ("prices", "fermion.cli.prices:app", "Prices, and what costs money."),
    ("events", "fermion.cli.events:app", "What happened, who caused it, and why."),
    ("audit", "fermion.cli.operate:audit", "Count log, stream and readers against each other."),
    ("journal", "fermion.cli.operate:journal", "Journals: rebuild, parked facts, readers."),
    ("completion", "fermion.cli.completion:app", "Completion of commands and names by the shell."),
    ("version", "fermion.cli.local:version", "Show versions."),
)


def main() -> None:
    """Run one command; the exit code says how it went."""
    try:
        code = run(sys.argv[1:])
        sys.stdout.flush()
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:
        # Whoever read our output has seen enough; what is left goes nowhere, also at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    sys.exit(code)


def run(words: Sequence[str]) -> int:
    """Print help and version at once, or load the parser and run one command."""
    asked = [*words[1:], "--help"] if words[:1] == ["help"] else list(words)
    if asked in ([], ["--help"], ["-h"]):
        print(overview())
        return 0
    if asked == ["--version"]:
        print(__version__)
        return 0
    page = help.find(asked, help.kept())
    if page is not None:
        print(page)
        return 0
    found: int = importlib.import_module("fermion.cli.app").run(asked)
    return found


def overview() -> str:
    """Every command with what it does."""
    width = max(len(name) for name, _, _ in COMMANDS)
    lines = [f"Usage: fermion COMMAND\n\n{SUMMARY}\n\nCommands:"]
    lines += [f"  {name:<{width}}  {doc}" for name, _, doc in COMMANDS]
    lines.append("\n`fermion COMMAND --help` tells more; `fermion --version` the version.")
    return "\n".join(lines) + "\n" + EXIT_CODES.rstrip()
