"""Commands that run inside a replica: with a terminal or with pipes, and never longer than their caller."""

from __future__ import annotations

import asyncio
import fcntl
import os
import struct
import subprocess
import sys
import termios
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final

from chassis.tasks import end
from services.executor import enter, shim
from services.executor.cluster import Away, Gone
from services.executor.folder import Folder

READ_BYTES: Final = 65536
END_OF_INPUT: Final = b"\x04"
TERMINAL: Final = "xterm-256color"
# A run is written down a moment before its main is executed.
EXECUTED_LOOK_SECONDS: Final = 0.01
EXECUTED_LOOKS_MAX: Final = 200


class LocalSession:
    """See `cluster.Session`."""

    def __init__(
        self, process: subprocess.Popen[bytes], given: int, printed: Mapping[int, int]
    ) -> None:
        """`given` takes its input, `printed` tells the stream of each file that it prints to."""
        self._process = process
        self._tty = given in printed
        self._input = given
        self._outputs = dict(printed)
        self._ended = asyncio.Event()
        self._pidfd = os.pidfd_open(process.pid)
        for file in {given, *printed}:
            os.set_blocking(file, False)
        asyncio.get_running_loop().add_reader(self._pidfd, self._end)

    async def output(self) -> AsyncIterator[tuple[int, bytes]]:
        """What it prints, until it ends."""
        while self._outputs:
            # Read once more after its end: what it printed before is there then.
            last, found = self._ended.is_set(), False
            for file, stream in list(self._outputs.items()):
                data = self._read(file)
                if data:
                    found = True
                    yield stream, data
                elif data is not None:
                    self._close(file)
            if not found and last:
                return
            if not found and self._outputs:
                await self._ready(self._outputs, writable=False)

    async def write(self, data: bytes) -> None:
        """Give it input."""
        rest = memoryview(data)
        while rest and self._input >= 0:
            try:
                rest = rest[os.write(self._input, rest) :]
            except BlockingIOError:
                if self._ended.is_set():
                    return
                await self._ready([self._input], writable=True)
            except OSError:
                # Nobody reads it any more.
                return

    async def close_input(self) -> None:
        """Let its input end."""
        if self._tty:
            await self.write(END_OF_INPUT)
        elif self._input >= 0:
            self._close(self._input)

    async def resize(self, rows: int, columns: int) -> None:
        """Give its terminal another size."""
        if self._tty and self._input >= 0:
            set_size(self._input, rows, columns)

    async def wait(self) -> int:
        """Its exit code."""
        await self._ended.wait()
        code = self._process.wait()
        return code if code >= 0 else 128 - code

    async def end(self) -> None:
        """Kill all of it, and let its files go."""
        for pid in _of_session(self._process.pid):
            shim.kill(pid, shim.SIGKILL)
        await self.wait()
        for file in {*self._outputs, self._input} - {-1}:
            self._close(file)
        os.close(self._pidfd)

    def _end(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        self._ended.set()

    def _read(self, file: int) -> bytes | None:
        """What is there now; None for nothing yet, empty for the end."""
        try:
            return os.read(file, READ_BYTES)
        except BlockingIOError:
            return None
        except OSError:
            # A terminal whose other side is closed.
            return b""

    def _close(self, file: int) -> None:
        self._outputs.pop(file, None)
        if file == self._input:
            self._input = -1
        os.close(file)

    async def _ready(self, files: Iterable[int], *, writable: bool) -> None:
        """Return when one of them is ready, or when it ended."""
        loop = asyncio.get_running_loop()
        news = asyncio.Event()
        ended = asyncio.create_task(self._ended.wait(), name="session ended")
        ready = asyncio.create_task(news.wait(), name="session ready")
        watched = list(files)
        for file in watched:
            if writable:
                loop.add_writer(file, news.set)
            else:
                loop.add_reader(file, news.set)
        try:
            await asyncio.wait((ended, ready), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for file in watched:
                if writable:
                    loop.remove_writer(file)
                else:
                    loop.remove_reader(file)
            await end(ended, ready)


@asynccontextmanager
async def entered(
    command: Sequence[str],
    environment: Mapping[str, str],
    cwd: str,
    groups: Sequence[str],
    *,
    tty: bool = False,
    rows: int = 24,
    columns: int = 80,
) -> AsyncIterator[LocalSession]:
    """Run a command in these control groups; left, all of it is killed. Away where it cannot begin."""
    words = [
        *(sys.executable, "-I", "-S", str(Path(enter.__file__)), str(os.getpid())),
        *("tty" if tty else "-", *groups, "--", *command),
    ]
    variables = dict(environment)
    if tty:
        variables.setdefault("TERM", TERMINAL)
        near, far = os.openpty()
        set_size(near, rows, columns)
        given, streams, other = near, {near: 1}, (far, far, far)
    else:
        (far_in, near_in), (near_out, far_out), (near_err, far_err) = (os.pipe() for _ in range(3))
        given, streams, other = near_in, {near_out: 1, near_err: 2}, (far_in, far_out, far_err)
    try:
        process = _begin(words, variables, cwd, other)
    except OSError as error:
        for file in {given, *streams}:
            os.close(file)
        raise Away(str(error)) from error
    finally:
        for file in set(other):
            os.close(file)
    session = LocalSession(process, given, streams)
    try:
        yield session
    finally:
        await asyncio.shield(session.end())


@asynccontextmanager
async def inside(
    found: Folder,
    start: shim.Start,
    command: Sequence[str],
    *,
    tty: bool = False,
    rows: int = 24,
    columns: int = 80,
) -> AsyncIterator[LocalSession]:
    """
    Run a command in a replica: with the environment of its main, in its folder, under its limits.

    Gone where that run is over.
    """
    variables = await _environment(found.uid, start)
    groups, cwd = found.spec.all("cgroup"), found.spec.one("cwd")
    async with entered(
        command, variables, cwd, groups, tty=tty, rows=rows, columns=columns
    ) as session:
        yield session


async def _environment(replica: str, start: shim.Start) -> Mapping[str, str]:
    """The environment that main began with; it is the shim's until main is what it shall be."""
    mark = f"{shim.MARKER}={replica}".encode()
    for _ in range(EXECUTED_LOOKS_MAX):
        if shim.started(start.pid) != start.ticks:
            break
        try:
            entries = shim.read_file(f"/proc/{start.pid}/environ").split(b"\0")
        except OSError:
            break
        if mark in entries:
            pairs = (os.fsdecode(entry).partition("=") for entry in entries if entry)
            return {name: value for name, _, value in pairs}
        await asyncio.sleep(EXECUTED_LOOK_SECONDS)
    raise Gone(replica)


def _begin(
    words: Sequence[str], environment: Mapping[str, str], cwd: str, files: tuple[int, int, int]
) -> subprocess.Popen[bytes]:
    """Start it from this thread, the loop's: the kernel ends it with the thread that began it."""
    given, out, error = files
    return subprocess.Popen(
        words,
        stdin=given,
        stdout=out,
        stderr=error,
        cwd=cwd,
        env=environment,
        start_new_session=True,
    )


def set_size(terminal: int, rows: int, columns: int) -> None:
    """Give a terminal a size; who runs in it is told by the kernel."""
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


def _of_session(leader: int) -> list[int]:
    """Processes of a session; those that began one of their own are left to the replica's end."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            with suppress(OSError):
                if os.getsid(int(name)) == leader:
                    found.append(int(name))
    return found
