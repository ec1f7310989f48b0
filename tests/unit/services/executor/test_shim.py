"""The shim's pure parts: its time, its record, its log, its words."""

from __future__ import annotations

import os
import select
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.executor import shim
from services.executor.shim import (
    MS,
    SECOND,
    End,
    Gap,
    Head,
    Log,
    Start,
    Timeline,
    Turns,
    Words,
    nothing_but,
)

NOON = 1_795_521_600 * SECOND


class Hands(shim.Clock):
    """Clocks that a test moves."""

    def __init__(self) -> None:
        self.wall_now, self.boottime_now, self.monotonic_now = NOON, 5 * SECOND, 3 * SECOND

    def wall(self) -> int:
        return self.wall_now

    def boottime(self) -> int:
        return self.boottime_now

    def monotonic(self) -> int:
        return self.monotonic_now

    def work(self, nanoseconds: int) -> None:
        self.wall_now += nanoseconds
        self.boottime_now += nanoseconds
        self.monotonic_now += nanoseconds

    def sleep(self, nanoseconds: int) -> None:
        self.wall_now += nanoseconds
        self.boottime_now += nanoseconds


def test_a_shims_time_is_one_reading_of_the_wall_and_what_has_passed_since() -> None:
    hands = Hands()
    timeline = Timeline(hands)
    hands.work(7 * SECOND)
    assert timeline.now() == NOON + 7 * SECOND


def test_a_wall_that_is_set_moves_no_time() -> None:
    hands = Hands()
    timeline = Timeline(hands)
    hands.work(SECOND)
    hands.wall_now -= 3600 * SECOND
    assert timeline.now() == NOON + SECOND


def test_a_successor_of_the_same_boot_goes_on_in_the_same_time() -> None:
    hands = Hands()
    first = Timeline(hands)
    hands.work(SECOND)
    hands.wall_now += 100 * SECOND
    second = Timeline(hands, first.wall, first.boottime)
    assert second.now() == first.now()


def test_a_new_time_never_begins_before_what_is_written_down() -> None:
    hands = Hands()
    timeline = Timeline(hands, not_before=NOON + 9 * SECOND)
    assert timeline.now() == NOON + 9 * SECOND
    hands.work(SECOND)
    assert timeline.now() == NOON + 10 * SECOND


def test_a_sleep_of_the_machine_is_told_once_with_its_length() -> None:
    hands = Hands()
    timeline = Timeline(hands)
    hands.work(2 * SECOND)
    assert timeline.slept() is None
    hands.sleep(60 * SECOND)
    hands.work(30 * MS)
    now = NOON + 62 * SECOND + 30 * MS
    assert timeline.slept() == (now - 60 * SECOND, now)
    assert timeline.slept() is None


def test_two_readings_that_are_apart_are_no_sleep() -> None:
    hands = Hands()
    timeline = Timeline(hands)
    hands.sleep(shim.GAP_LEAST - 1)
    assert timeline.slept() is None


@pytest.mark.parametrize(
    ("before", "after", "woken"),
    [
        ((5 * MS, 7, 2), (65 * MS, 8, 2), 60 * MS),
        # Sent off while it ran: some of the time it waited before it slept, or after it woke.
        ((5 * MS, 7, 2), (65 * MS, 8, 3), 0),
        # What it waited for was there before it could sleep.
        ((5 * MS, 7, 2), (65 * MS, 7, 3), 0),
        # Woken twice, and by what the first time?
        ((5 * MS, 7, 2), (65 * MS, 9, 2), 0),
        # The kernel does not say, or only now.
        ((0, -1, -1), (0, -1, -1), 0),
        ((0, -1, -1), (65 * MS, 0, 0), 0),
    ],
)
def test_how_long_it_waited_for_its_turn_is_known_where_it_slept_once_and_was_never_sent_off(
    before: tuple[int, int, int], after: tuple[int, int, int], woken: int
) -> None:
    assert Turns(*after).woken_since(Turns(*before)) == woken


def test_the_kernel_counts_that_this_process_slept() -> None:
    clock = shim.Clock()
    before = clock.turns()
    assert select.poll().poll(20) == []
    after = clock.turns()
    assert after.slept > before.slept > 0
    assert after.waited >= before.waited > 0


def test_only_an_end_has_woken_whom_nothing_else_could() -> None:
    main, pipe, orders = 5, 6, 7
    assert nothing_but(main, [(main, select.POLLIN)])
    assert nothing_but(main, [(main, select.POLLIN), (pipe, select.POLLHUP)])
    assert not nothing_but(main, [(main, select.POLLIN), (pipe, select.POLLIN | select.POLLHUP)])
    assert not nothing_but(main, [(orders, select.POLLIN), (main, select.POLLIN)])


def head(**other: int | str) -> Head:
    fields = dict.fromkeys(Head.__slots__, 1) | {"boot": "b", "reason": "", "detail": ""} | other
    return Head(*(fields[name] for name in Head.__slots__))


def start(ordinal: int) -> Start:
    return Start(ordinal, 7, 8, "b", NOON + ordinal, 1, 1)


def end(ordinal: int) -> End:
    return End(ordinal, NOON + ordinal + 1, shim.RECORDED, 3, 0, "", "")


SLOTS = (
    (head(reason="IMAGE_BUILDING", detail="über"), shim.HEAD_BYTES),
    (start(4), shim.START_BYTES),
    (end(4), shim.RUN_BYTES - shim.START_BYTES),
    (Gap(1, NOON, NOON + 1), shim.GAP_BYTES),
)


@pytest.mark.parametrize(("slot", "size"), SLOTS)
def test_a_slot_is_read_as_it_was_written(slot: shim.Slot, size: int) -> None:
    data = slot.pack(size)
    assert len(data) == size
    again = type(slot)(*(type(slot).fields(data) or ()))
    assert [getattr(again, name) for name in slot.__slots__] == [
        getattr(slot, name) for name in slot.__slots__
    ]


@pytest.mark.parametrize(("slot", "size"), SLOTS)
@given(cut=st.integers(0, 400), byte=st.integers(1, 255))
def test_half_of_a_slot_is_never_taken_for_all(
    slot: shim.Slot, size: int, cut: int, byte: int
) -> None:
    data = bytearray(slot.pack(size))
    place = cut % (shim.SEAL.size + slot.FORMAT.size)
    assert type(slot).fields(bytes(data[:place])) is None
    data[place] ^= byte
    assert type(slot).fields(bytes(data)) is None


def test_what_is_too_long_for_its_slot_is_cut_at_a_whole_character() -> None:
    found = Head.fields(head(detail="ä" * 500).pack(shim.HEAD_BYTES))
    assert found is not None
    assert dict(zip(Head.__slots__, found, strict=True))["detail"] == "ä" * 128


def write_record(folder: Path, runs: int, *, ended: int) -> None:
    with (folder / "record").open("wb") as file:
        file.write(head(runs=runs).pack(shim.HEAD_BYTES))
        for ordinal in range(runs):
            file.seek(shim.run_place(ordinal))
            file.write(start(ordinal).pack(shim.START_BYTES))
            blank = bytes(shim.RUN_BYTES - shim.START_BYTES)
            file.write(end(ordinal).pack(len(blank)) if ordinal < ended else blank)


def test_a_record_tells_its_last_runs(tmp_path: Path) -> None:
    write_record(tmp_path, shim.RUNS_KEPT + 40, ended=shim.RUNS_KEPT + 39)
    record = shim.read_record(str(tmp_path))
    assert record is not None
    assert [begun.ordinal for begun, _ in record.runs] == list(range(40, shim.RUNS_KEPT + 40))
    assert [over is None for _, over in record.runs].count(True) == 1
    assert record.runs[-1][1] is None


def test_a_slot_that_waits_for_its_run_tells_no_old_one(tmp_path: Path) -> None:
    write_record(tmp_path, shim.RUNS_KEPT, ended=shim.RUNS_KEPT)
    with (tmp_path / "record").open("r+b") as file:
        file.seek(shim.run_place(shim.RUNS_KEPT))
        file.write(bytes(shim.RUN_BYTES))
    record = shim.read_record(str(tmp_path))
    assert record is not None
    assert [begun.ordinal for begun, _ in record.runs] == list(range(1, shim.RUNS_KEPT))


def test_a_record_that_nobody_has_begun_is_none(tmp_path: Path) -> None:
    assert shim.read_record(str(tmp_path)) is None
    (tmp_path / "record").write_bytes(bytes(shim.HEAD_BYTES))
    assert shim.read_record(str(tmp_path)) is None


def test_a_damaged_record_is_not_taken_for_none(tmp_path: Path) -> None:
    (tmp_path / "record").write_bytes(b"x" * shim.HEAD_BYTES)
    with pytest.raises(OSError, match="damaged"):
        shim.read_record(str(tmp_path))


@given(
    st.lists(
        st.tuples(
            st.text(st.characters(codec="utf-8", exclude_characters="=\0"), min_size=1),
            st.text(st.characters(codec="utf-8", exclude_characters="\0")),
        )
    )
)
def test_words_are_read_as_they_were_written(pairs: list[tuple[str, str]]) -> None:
    found = Words(shim.words(pairs))
    for name in {name for name, _ in pairs}:
        assert found.all(name) == [value for other, value in pairs if other == name]


def test_a_word_with_a_nul_is_refused() -> None:
    with pytest.raises(ValueError, match="NUL"):
        shim.words([("env", "A=\0")])


@pytest.mark.parametrize(("text", "expected"), [
    ("$(FERMION_RANK)", "3"),
    ("a-$(FERMION_RANK)-$(FERMION_ROLE)-b", "a-3-worker-b"),
    ("$(FERMION_NOBODY) $(FERMION_RANK)", "$(FERMION_NOBODY) 3"),
    ("$(HOME) $FERMION_RANK $(FERMION_RANK", "$(HOME) $FERMION_RANK $(FERMION_RANK"),
    ("$(FERMION_$(FERMION_RANK))", "$(FERMION_3)"),
])  # fmt: skip
def test_what_is_promised_is_put_into_words(text: str, expected: str) -> None:
    values = {"FERMION_RANK": "3", "FERMION_ROLE": "worker", "HOME": "/"}
    assert shim.substituted(text, values) == expected


def test_a_log_goes_on_behind_the_last_whole_frame(tmp_path: Path) -> None:
    first = Log(str(tmp_path), 1000, 10_000)
    first.write(1, 1, 0, b"whole")
    path = tmp_path / f"{0:020d}"
    whole = path.read_bytes()
    path.write_bytes(whole + shim.FRAME.pack(shim.FRAME_MAGIC, 50, 5, 2, 0, 1) + b"torn")
    second = Log(str(tmp_path), 1000, 10_000)
    assert second.place == 5
    assert path.read_bytes() == whole


def test_a_log_keeps_its_last_segments(tmp_path: Path) -> None:
    log = Log(str(tmp_path), 100, 300)
    for _ in range(50):
        log.write(1, 1, 0, b"x" * 40)
    kept = shim.segments(str(tmp_path))
    assert len(kept) == 3
    assert kept[0] > 0
    assert log.place == 2000


def test_an_order_stands_whole_and_once(tmp_path: Path) -> None:
    assert shim.order(str(tmp_path), "stop") is None
    os.symlink("USER_STOP 1795521600123", tmp_path / "stop")
    assert shim.order(str(tmp_path), "stop") == ("USER_STOP", 1795521600123)
    with pytest.raises(FileExistsError):
        os.symlink("DELETE 1", tmp_path / "stop")


def test_a_name_is_held_by_one_at_a_time() -> None:
    name = f"fermion-test-{os.getpid()}"
    first = shim.hold(name)
    assert first is not None
    assert shim.hold(name) is None
    first.close()
    second = shim.hold(name)
    assert second is not None
    second.close()
