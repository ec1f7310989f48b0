"""This process's terminal, given to a command elsewhere: raw, and its size told as it changes."""

from __future__ import annotations

import os
import select
import signal
import socket
import termios
import tty
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from types import FrameType
from typing import Final

from fermion.api.executor import v1 as api

INPUT_BYTES_MAX: Final = 32 * 1024
# What ends this process; the terminal is given back before.
ENDS: Final = (signal.SIGTERM, signal.SIGHUP)


def size_of(descriptor: int) -> api.ExecRequest.Size | None:
    """The size of a terminal; None where it is none, or has none."""
    try:
        found = os.get_terminal_size(descriptor)
    except OSError:
        return None
    if not found.lines or not found.columns:
        return None
    return api.ExecRequest.Size(rows=found.lines, columns=found.columns)


@contextmanager
def raw(descriptor: int) -> Iterator[None]:
    """Hand every key on as it is, also Ctrl-C; the terminal is as it was when the block ends."""
    before = termios.tcgetattr(descriptor)
    with ExitStack() as stack:
        for number in ENDS:
            stack.callback(signal.signal, number, signal.signal(number, _end))
        stack.callback(termios.tcsetattr, descriptor, termios.TCSADRAIN, before)
        tty.setraw(descriptor, termios.TCSANOW)
        yield


class Input:
    """
    What somebody types, or a pipe brings, as requests for a command elsewhere.

    They are drawn from another thread. With a terminal a new size is one of them; the signal that
    tells of it wakes the thread by itself, whatever the main thread waits for.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._woken, self._wake = socket.socketpair()
        self._over = False

    def requests(self) -> Iterator[api.ExecRequest]:
        """Until the input ends, or the command."""
        while True:
            woken = self._woken.fileno()
            ready, _, _ = select.select([self._descriptor, woken], [], [])
            if woken in ready:
                self._woken.recv(4096)
                if self._over:
                    return
                size = size_of(self._descriptor)
                if size is not None:
                    yield api.ExecRequest(resize=size)
            if self._descriptor in ready:
                data = self._read()
                if not data:
                    return
                yield api.ExecRequest(stdin=data)

    @contextmanager
    def told(self) -> Iterator[None]:
        """Hear of new sizes while the block runs; nothing is read any more when it ends."""
        self._wake.setblocking(False)
        with ExitStack() as stack:
            stack.callback(self._end)
            if os.isatty(self._descriptor):
                number = signal.SIGWINCH
                stack.callback(signal.signal, number, signal.signal(number, _heard))
                earlier = signal.set_wakeup_fd(self._wake.fileno(), warn_on_full_buffer=False)
                stack.callback(signal.set_wakeup_fd, earlier)
            yield

    def _end(self) -> None:
        self._over = True
        # Where it is full, the thread is woken already.
        with suppress(BlockingIOError):
            self._wake.send(b"\0")

    def _read(self) -> bytes:
        try:
            return os.read(self._descriptor, INPUT_BYTES_MAX)
        except OSError:
            # The terminal was hung up.
            return b""


def _heard(number: int, frame: FrameType | None) -> None:
    """Do nothing: the wakeup descriptor has told already."""
    del number, frame


def _end(number: int, frame: FrameType | None) -> None:
    del frame
    raise SystemExit(128 + number)
