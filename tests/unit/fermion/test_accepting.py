"""What waits until somebody accepts what a journal has lost, as `status` tells of it."""

from __future__ import annotations

from collections.abc import Sequence

from fermion.api.journal import v1 as api
from fermion.cli.accepting import Behind, behind, readers


def journal(
    name: str,
    head: int,
    *own: api.ReaderProgress,
    epoch: int = 1,
    first: int = 1,
    parted: bool = False,
) -> api.JournalStatus:
    return api.JournalStatus(
        journal=name,
        head=head,
        epoch=epoch,
        epoch_first_position=first,
        readers=own,
        relay_halted="they have parted" if parted else "",
        parted=parted,
    )


def reader(position: int, lost: int, *, epoch: int = 1, name: str = "b/a") -> api.ReaderProgress:
    return api.ReaderProgress(
        reader=name,
        journal="a/0",
        epoch=epoch,
        position=position,
        halted="it has lost its tail" if lost else "",
        lost_through=lost,
    )


def names(journals: Sequence[api.JournalStatus]) -> list[str]:
    return [one.reader for one in readers(journals, {one.journal for one in behind(journals)})]


def test_a_journal_whose_relay_found_it_to_have_parted_needs_an_epoch() -> None:
    assert list(behind([journal("a/0", 40, parted=True)])) == [Behind("a/0", 0, 0)]


def test_a_journal_that_a_reader_has_more_of_needs_an_epoch_from_the_first_that_it_lost() -> None:
    journals = [
        journal("a/0", 45),
        journal("b/0", 9, reader(40, 60), reader(38, 50, name="b/c")),
        # Asked of two processes, each tells of all readers of its service.
        journal("b/0", 9, reader(40, 60), reader(38, 50, name="b/c")),
    ]
    assert list(behind(journals)) == [Behind("a/0", 39, 60)]
    assert names(journals) == []


def test_readers_wait_for_the_operator_once_they_have_heard_of_the_epoch() -> None:
    not_yet = [journal("a/0", 45, epoch=2, first=41), journal("b/0", 9, reader(40, 60))]
    assert list(behind(not_yet)) == []
    assert names(not_yet) == []
    heard = [journal("a/0", 45, epoch=2, first=41), journal("b/0", 9, reader(40, 60, epoch=2))]
    assert list(behind(heard)) == []
    assert names(heard) == ["b/a"]


def test_a_tail_that_is_lost_in_a_later_epoch_needs_another_one() -> None:
    journals = [journal("a/0", 45, epoch=2, first=41), journal("b/0", 9, reader(45, 60, epoch=2))]
    assert list(behind(journals)) == [Behind("a/0", 46, 60)]
    assert names(journals) == []


def test_who_stands_still_for_another_reason_is_none_of_them() -> None:
    halted = reader(5, 0)
    halted.halted = "PARKED"
    assert list(behind([journal("a/0", 5), journal("b/0", 1, halted)])) == []
    assert names([journal("a/0", 5), journal("b/0", 1, halted)]) == []
