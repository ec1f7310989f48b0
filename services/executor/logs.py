"""Reads what replicas printed, from the segments that their shims wrote."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from services.executor import shim
from services.executor.cluster import LogEntry

READ_BYTES: Final = 256 * 1024
EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def moment(milliseconds: int) -> datetime:
    """Read milliseconds since 1970."""
    return EPOCH + timedelta(milliseconds=milliseconds)


class Reader:
    """
    Goes through a log from a place on, as far as it is written.

    `where` tells the log's folder each time anew, for it is moved when its replica is forgotten.
    """

    def __init__(self, where: Callable[[], Path], after: int = 0) -> None:
        self._where = where
        self._first = -1
        self._file = -1
        self._at = 0
        self.place = after

    def read(self) -> list[LogEntry]:
        """The next entries; none where nothing more is written now."""
        while True:
            if self._file < 0 and not self._open(self._segment()):
                return []
            found = list(self._entries())
            if found:
                return found
            following = self._following()
            if following is None:
                return []
            # Something may have been written between the look at this one and at the next.
            found = list(self._entries())
            self._close()
            self._open(following)
            if found:
                return found

    def lost(self, printed: int) -> int:
        """Bytes between here and all that was printed: dropped at the end, and followed by nothing."""
        return max(0, printed - self.place)

    def close(self) -> None:
        """Let the file go."""
        self._close()

    def _segment(self) -> int | None:
        """The segment that holds the place: the last that begins before it, else the first."""
        known = shim.segments(str(self._where()))
        before = [first for first in known if first <= self.place]
        return before[-1] if before else known[0] if known else None

    def _following(self) -> int | None:
        known = shim.segments(str(self._where()))
        return next((first for first in known if first > self._first), None)

    def _open(self, first: int | None) -> bool:
        if first is None:
            return False
        with suppress(FileNotFoundError):
            self._file = os.open(self._where() / f"{first:020d}", os.O_RDONLY | os.O_CLOEXEC)
            self._first, self._at = first, 0
        return self._file >= 0

    def _close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
        self._file = -1

    def _entries(self) -> Iterator[LogEntry]:
        """What is written behind the place in the segment."""
        data = os.pread(self._file, READ_BYTES, self._at)
        read = 0
        for behind, entry in frames(data):
            read = behind
            begin = entry.offset - len(entry.data)
            if entry.offset > self.place:
                body = entry.data[max(0, self.place - begin) :]
                yield replace(entry, data=body, lost=max(0, begin - self.place))
                self.place = entry.offset
        self._at += read


def frames(data: bytes) -> Iterator[tuple[int, LogEntry]]:
    """Whole frames of a piece of a segment, each with the place in the piece behind it."""
    at = 0
    while len(data) >= at + shim.FRAME.size:
        magic, length, place, milliseconds, run, stream = shim.FRAME.unpack_from(data, at)
        begin, at = at + shim.FRAME.size, at + shim.FRAME.size + length
        if magic != shim.FRAME_MAGIC or len(data) < at:
            return
        yield at, LogEntry(moment(milliseconds), stream, data[begin:at], run, place + length)


def tail(folder: Path, lines: int, run: int | None) -> int:
    """The place behind which there are so many last lines, of one run or of all."""
    left = -1
    for first in reversed(shim.segments(str(folder))):
        data = (folder / f"{first:020d}").read_bytes()
        for _, entry in reversed([*frames(data)]):
            if run not in (None, entry.run):
                continue
            if left < 0:
                if lines <= 0:
                    return entry.offset
                # The end of the last line begins no other one.
                left = lines + entry.data.endswith(b"\n")
            at = len(entry.data)
            while (at := entry.data.rfind(b"\n", 0, at)) >= 0:
                left -= 1
                if left == 0:
                    return entry.offset - len(entry.data) + at + 1
    return 0
