"""Looks into what runs: what it prints, commands beside it, and what it serves."""

from __future__ import annotations

import os
import re
import sys
import webbrowser
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Annotated, BinaryIO

from cyclopts import Parameter

from fermion.api.executor import v1 as api
from fermion.cli import read, show, terminal, text
from fermion.cli.options import InstanceName, Options, note
from fermion.cli.replicas import standing
from fermion.errors import Error, FailedPrecondition, InvalidArgument, Unavailable

if TYPE_CHECKING:
    from fermion.client import Client

# A shell that is there: bash, else what every system has. Its first argument is the kind of terminal.
SHELL = 'TERM="$1"; export TERM; command -v bash >/dev/null 2>&1 && exec bash; exec sh'

HTTP = ("http://", "https://")

_LINES = re.compile(rb"[^\n]*\n|[^\n]+")

Attempt = Annotated[int | None, Parameter(help="Of this attempt, not the newest.")]
ReplicaUid = Annotated[
    str, Parameter(help="Of this replica, rep_… or how it begins; see fermion replicas.")
]


def logs(
    name: InstanceName,
    /,
    *,
    follow: Annotated[
        bool, Parameter(name=["--follow", "-f"], help="Go on until it has ended; Ctrl-C detaches.")
    ] = False,
    since: Annotated[str, Parameter(help="Only from then on: a time, or 10m for ago.")] = "",
    tail: Annotated[int | None, Parameter(help="So many of the last lines to begin with.")] = None,
    timestamps: Annotated[bool, Parameter(help="The time before each line.")] = False,
    previous: Annotated[bool, Parameter(help="Of the run before the present one.")] = False,
    attempt: Attempt = None,
    replica: ReplicaUid = "",
    options: Options = Options(),
) -> None:
    """
    Print what an instance printed, also when it has ended: its output here, its errors as errors.

    -o json prints the chunks as they are kept, one a line.
    """
    at = read.moment("--since", since) if since else None
    if tail is not None and tail < 0:
        raise read.wrong("--tail", str(tail), "is no number of lines", "Write it like 100.")
    with options.client() as client, _about(client, options, name) as owner:
        if follow:
            # One that is not there would be waited for without an end.
            client.instances.get(owner)
        selector = _selector(client, owner, attempt, replica)
        printer = _Printer(options.output, timestamps)
        for answer in client.runtime.stream_logs(
            owner, follow=follow, since=at, tail=tail, previous=previous, replica=selector
        ):
            printer.put(answer.chunks)


def exec_(
    name: InstanceName,
    /,
    *command: Annotated[str, Parameter(help="The command and its arguments, behind --.")],
    stdin: Annotated[bool, Parameter(name=["--stdin", "-i"], help="Give it this input.")] = False,
    tty: Annotated[
        bool, Parameter(name=["--tty", "-t"], help="With a terminal; -it for an interactive one.")
    ] = False,
    attempt: Attempt = None,
    replica: ReplicaUid = "",
    options: Options = Options(),
) -> int:
    """
    Run a command beside an instance that runs; its exit code is this one's.

    For example:

        fermion instances exec lab -- nvidia-smi
        fermion instances exec lab -i -- tar -x < files.tar
        fermion instances exec lab -it -- python
    """
    if not command:
        raise InvalidArgument(
            "What to run was not said.",
            reason="OPTION_MISSING",
            violations=(("COMMAND", "must stand behind --"),),
            next_step=f"e.g. fermion instances exec {name} -- ls -l",
        )
    _must_be_plain(options)
    if tty and stdin and not os.isatty(sys.stdin.fileno()):
        note("The input is no terminal, so the command gets none either.")
        tty = False
    with options.client() as client, _about(client, options, name) as owner:
        return _run(client, owner, command, stdin, tty, _selector(client, owner, attempt, replica))


def shell(
    name: InstanceName,
    /,
    *,
    attempt: Attempt = None,
    replica: ReplicaUid = "",
    options: Options = Options(),
) -> int:
    """Open a shell beside an instance that runs: bash where there is one, else sh."""
    _must_be_plain(options)
    command = ("sh", "-c", SHELL, "sh", os.environ.get("TERM") or "xterm")
    tty = os.isatty(sys.stdin.fileno()) and os.isatty(sys.stdout.fileno())
    with options.client() as client, _about(client, options, name) as owner:
        return _run(client, owner, command, True, tty, _selector(client, owner, attempt, replica))


def open_(
    name: InstanceName,
    /,
    *,
    port: Annotated[str, Parameter(help="The port, where it has several that speak HTTP.")] = "",
    print_: Annotated[bool, Parameter(name="--print", help="Print it alone; no browser.")] = False,
    attempt: Attempt = None,
    replica: ReplicaUid = "",
    options: Options = Options(),
) -> None:
    """
    Open what an instance serves in the browser, and print its address.

    The address has the token that it asks for: whoever has it may use what runs.
    """
    with options.client() as client, _about(client, options, name) as owner:
        urls = client.runtime.access(owner, replica=_selector(client, owner, attempt, replica))
        if options.output in ("json", "yaml"):
            found = {port: _of(urls, name, port)} if port else dict(sorted(urls.items()))
            print(show.to_json(found) if options.output == "json" else show.to_yaml(found))
            return
        url = _of(urls, name, port)
    print(text.line(url), flush=True)
    if not print_ and options.output != "name" and url.startswith(HTTP) and _has_display():
        try:
            opened = webbrowser.open(url)
        except webbrowser.Error:
            opened = False
        if not opened:
            note("No browser could be started; open the address yourself.")


def _of(urls: Mapping[str, str], name: str, port: str) -> str:
    """Where a port is; without one, that which speaks HTTP, or the only one."""
    if port in urls:
        return urls[port]
    there = ", ".join(sorted(urls))
    if not urls:
        raise FailedPrecondition(
            f"{name} has no port that could be opened.",
            reason="PORT_MISSING",
            next_step=f"Give it one, and start it anew: fermion instances update {name} "
            "--port web:8080",
        )
    if port:
        raise read.wrong("--port", port, "is no port of it", f"It has {there}.")
    spoken = [url for url in urls.values() if url.startswith(HTTP)] or list(urls.values())
    if len(spoken) > 1:
        raise InvalidArgument(
            f"{name} has several ports, and which was not said.",
            reason="OPTION_MISSING",
            violations=(("--port", f"must be one of {there}"),),
        )
    return spoken[0]


def _has_display() -> bool:
    """Whether a browser would have a window; one within the terminal is no help."""
    there = (os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))
    return sys.platform == "darwin" or any(there)


def _must_be_plain(options: Options) -> None:
    """Refuse to print what a command prints in another way than it does."""
    if options.output != "table":
        raise read.wrong(
            "--output", options.output, "is not for what a command prints", "Leave it out."
        )


def _run(
    client: Client,
    owner: str,
    command: Sequence[str],
    stdin: bool,
    tty: bool,
    replica: api.ReplicaSelector | None,
) -> int:
    """Run a command with this process's input and output, and answer its exit code."""
    descriptor = sys.stdin.fileno() if stdin else -1
    with ExitStack() as stack:
        requests = None
        if stdin:
            given = terminal.Input(descriptor)
            requests = given.requests()
            stack.enter_context(given.told())
        size = terminal.size_of(descriptor if stdin else sys.stdout.fileno()) if tty else None
        answers = client.runtime.exec(
            owner, command, requests=requests, tty=tty, size=size, replica=replica
        )
        if stdin and tty:
            stack.enter_context(terminal.raw(descriptor))
        code: int | None = None
        for answer in answers:
            _write(sys.stdout.buffer, answer.stdout)
            _write(sys.stderr.buffer, answer.stderr)
            code = answer.exit_code if answer.HasField("exit_code") else code
    if code is None:
        raise Unavailable(
            "The command's session ended before its exit code was told.",
            reason="OUTCOME_UNKNOWN",
            next_step="The command has ended with it; run it again where that does no harm.",
        )
    return code


class _Printer:
    """Prints what was printed where it was printed, or tells programs of it."""

    def __init__(self, output: str, timestamps: bool) -> None:
        self._output = output
        self._timestamps = timestamps
        # Replicas whose names were told, and streams that stand within a line.
        self._named: set[str] = set()
        self._within: set[tuple[str, int]] = set()

    def put(self, chunks: Sequence[api.LogChunk]) -> None:
        """Print some of it."""
        for chunk in chunks:
            match self._output:
                case "json":
                    print(show.to_line(show.plain(chunk)), flush=True)
                case "yaml":
                    print(f"---\n{show.to_yaml(show.plain(chunk))}", flush=True)
                case "name":
                    if chunk.replica_uid not in self._named:
                        print(text.line(chunk.replica_uid), flush=True)
                    self._named.add(chunk.replica_uid)
                case _:
                    self._print(chunk)

    def _print(self, chunk: api.LogChunk) -> None:
        if chunk.lost_bytes:
            lost = f"{chunk.lost_bytes} bytes" if chunk.lost_bytes != 1 else "1 byte"
            note(f"[{lost} lost here: the disk was full, or they are kept no longer]")
        errors = chunk.stream == api.LogChunk.STREAM_STDERR
        _write(sys.stderr.buffer if errors else sys.stdout.buffer, self._stamped(chunk))

    def _stamped(self, chunk: api.LogChunk) -> bytes:
        """What it holds, with its time at the beginning of each line where that is asked for."""
        if not self._timestamps:
            return chunk.data
        source = (chunk.replica_uid, int(chunk.stream))
        stamp = f"{show.moment(chunk.time)}  ".encode()
        lines = _LINES.findall(chunk.data)
        within = source in self._within
        self._within.discard(source)
        if not chunk.data.endswith(b"\n"):
            self._within.add(source)
        return b"".join(
            line if number == 0 and within else stamp + line for number, line in enumerate(lines)
        )


def _write(file: BinaryIO, data: bytes) -> None:
    if data:
        file.write(data)
        file.flush()


def _selector(
    client: Client, owner: str, attempt: int | None, replica: str
) -> api.ReplicaSelector | None:
    """What was said of which replica, None where nothing was; a uid may be cut short."""
    if not replica:
        return None if attempt is None else api.ReplicaSelector(attempt=attempt)
    everyone = client.runtime.list_replicas(owner, all_attempts=True)
    found = [one.uid for one in everyone if one.uid.startswith(replica)]
    if len(found) > 1 and replica not in found:
        raise read.wrong(
            "--replica", replica, f"may be any of {', '.join(found)}", "Say more of its uid."
        )
    uid = found[0] if len(found) == 1 else replica
    return api.ReplicaSelector(attempt=attempt or 0, replica_uid=uid)


@contextmanager
def _about(client: Client, options: Options, name: str) -> Iterator[str]:
    """
    The full name of an instance.

    Where nothing has run for it, say whether it is there at all, and what it waits for.
    """
    owner = options.instance_of(client, name)[2]
    try:
        yield owner
    except Error as error:
        if error.reason not in ("REPLICA_NOT_FOUND", "REPLICA_NOT_RUNNING"):
            raise
        error.next_step = f"{standing(client, owner)} {error.next_step}".rstrip()
        raise
