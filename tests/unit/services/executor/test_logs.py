"""Reading logs: places, losses, what is half written, and the last lines."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from services.executor import shim
from services.executor.cluster import LogEntry
from services.executor.logs import Reader, tail
from services.executor.shim import Log


def read(folder: Path, after: int = 0) -> list[LogEntry]:
    reader = Reader(lambda: folder, after)
    found: list[LogEntry] = []
    while more := reader.read():
        found += more
    reader.close()
    return found


def segment(folder: Path, *frames: tuple[int, bytes]) -> None:
    """A segment of frames, each at its place."""
    data = b"".join(
        shim.FRAME.pack(shim.FRAME_MAGIC, len(body), place, 0, 0, 1) + body
        for place, body in frames
    )
    (folder / f"{frames[0][0]:020d}").write_bytes(data)


def test_what_was_dropped_is_told_where_the_log_goes_on(tmp_path: Path) -> None:
    segment(tmp_path, (0, b"abc"), (10, b"def"))
    first, second = read(tmp_path)
    assert (first.data, first.lost, first.offset) == (b"abc", 0, 3)
    assert (second.data, second.lost, second.offset) == (b"def", 7, 13)


def test_what_is_kept_no_longer_is_told_as_lost(tmp_path: Path) -> None:
    segment(tmp_path, (100, b"abc"))
    (entry,) = read(tmp_path, after=40)
    assert (entry.data, entry.lost) == (b"abc", 60)


def test_a_place_in_the_middle_of_a_frame_is_a_place(tmp_path: Path) -> None:
    segment(tmp_path, (0, b"abcdef"))
    (entry,) = read(tmp_path, after=4)
    assert (entry.data, entry.lost, entry.offset) == (b"ef", 0, 6)


def test_half_a_frame_is_waited_for(tmp_path: Path) -> None:
    segment(tmp_path, (0, b"abc"), (3, b"def"))
    path = tmp_path / f"{0:020d}"
    whole = path.read_bytes()
    path.write_bytes(whole[:-2])
    reader = Reader(lambda: tmp_path)
    assert [entry.data for entry in reader.read()] == [b"abc"]
    assert reader.read() == []
    path.write_bytes(whole)
    assert [entry.data for entry in reader.read()] == [b"def"]
    reader.close()


def test_half_a_frame_before_another_segment_was_never_written(tmp_path: Path) -> None:
    segment(tmp_path, (0, b"abc"), (3, b"def"))
    path = tmp_path / f"{0:020d}"
    path.write_bytes(path.read_bytes()[:-2])
    segment(tmp_path, (6, b"ghi"))
    found = read(tmp_path)
    assert [(entry.data, entry.lost) for entry in found] == [(b"abc", 0), (b"ghi", 3)]


def test_a_log_that_is_moved_is_read_on(tmp_path: Path) -> None:
    place = [tmp_path / "here"]
    place[0].mkdir()
    segment(place[0], (0, b"abc"))
    segment(place[0], (3, b"def"))
    reader = Reader(lambda: place[0])
    assert [entry.data for entry in reader.read()] == [b"abc"]
    place[0] = place[0].rename(tmp_path / "there")
    assert [entry.data for entry in reader.read()] == [b"def"]
    reader.close()


pieces = st.lists(st.text("ab\n", min_size=1, max_size=6).map(str.encode), min_size=1, max_size=12)


@given(pieces, st.integers(0, 15), st.integers(20, 90))
def test_the_last_lines_are_those_of_the_text(
    tmp_path_factory: object, parts: list[bytes], lines: int, segment_bytes: int
) -> None:
    folder = Path(tmp_path_factory.mktemp("log"))  # type: ignore[attr-defined]
    log = Log(str(folder), segment_bytes, 10**6)
    for part in parts:
        log.write(0, 1, 0, part)
    text = b"".join(parts)
    last = b"".join(text.splitlines(keepends=True)[-lines:]) if lines else b""
    place = tail(folder, lines, None)
    assert b"".join(entry.data for entry in read(folder, place)) == last


@given(pieces, st.integers(20, 90), st.data())
def test_parts_of_a_log_make_the_whole_from_any_place_on(
    tmp_path_factory: object, parts: list[bytes], segment_bytes: int, data: st.DataObject
) -> None:
    folder = Path(tmp_path_factory.mktemp("log"))  # type: ignore[attr-defined]
    log = Log(str(folder), segment_bytes, 10**6)
    for part in parts:
        log.write(0, 1, 0, part)
    text = b"".join(parts)
    place = data.draw(st.integers(0, len(text)))
    assert b"".join(entry.data for entry in read(folder, place)) == text[place:]
