"""Lets go on what stands still because a journal has lost its tail, and says so."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fermion.api.journal import v1 as api
from fermion.cli.options import Options
from fermion.errors import NotFound

AGAIN = (
    "Readers that had decided on what is lost stand still in a moment: `fermion status` names them. "
    "Look at what they decided, then run this again."
)


@dataclass(frozen=True, slots=True)
class Behind:
    """A journal that has lost its tail, and what its readers know of that; 0 where they know nothing."""

    journal: str
    lost_from: int
    lost_through: int


def accept_all(options: Options) -> None:
    """Begin a new epoch of each journal that needs one; let readers go on whose journal has one."""
    with options.client(ill=True) as client:
        journals = client.journals.status()
        lost = list(behind(journals))
        for one in lost:
            try:
                done = client.journals.begin_epoch(one.journal, one.lost_from, one.lost_through)
            except NotFound as error:
                # Somebody else has begun it since it was looked at, and said so.
                if error.reason != "JOURNAL_NOT_BEHIND":
                    raise
                continue
            print(f"{one.journal} goes on as epoch {done.epoch} from {done.first_position}.")
        waiting = list(readers(journals, {one.journal for one in lost}))
        for reader in waiting:
            client.journals.accept_restore(reader.reader, reader.journal)
            print(
                f"{reader.reader} reads {reader.journal} on behind {reader.position}; what it decided on "
                f"facts up to {reader.lost_through} stands."
            )
    if lost:
        print(AGAIN)
    elif not waiting:
        print("Nothing waits for that.")


def behind(journals: Sequence[api.JournalStatus]) -> Iterator[Behind]:
    """Journals that need a new epoch: their relay or one of their readers says that they lost something."""
    told = list(_told(journals))
    for one in journals:
        ahead = [
            reader for reader in told if reader.journal == one.journal and reader.epoch == one.epoch
        ]
        # One that waits in the present epoch, which began behind it, has heard of the loss already.
        ahead = [reader for reader in ahead if not _has_heard(reader, one)]
        if one.parted or ahead:
            yield Behind(
                one.journal,
                min((reader.position + 1 for reader in ahead), default=0),
                max((reader.lost_through for reader in ahead), default=0),
            )


def readers(
    journals: Sequence[api.JournalStatus], without: set[str]
) -> Iterator[api.ReaderProgress]:
    """Readers that wait, and whose journal has told them where it goes on."""
    by_name = {one.journal: one for one in journals}
    for reader in _told(journals):
        journal = by_name.get(reader.journal)
        if reader.journal not in without and (journal is None or _has_heard(reader, journal)):
            yield reader


def _told(journals: Sequence[api.JournalStatus]) -> Iterator[api.ReaderProgress]:
    """Every reader that stands still for what its journal lost, once."""
    seen = set()
    for one in journals:
        for reader in one.readers:
            if reader.lost_through and (reader.reader, reader.journal) not in seen:
                seen.add((reader.reader, reader.journal))
                yield reader


def _has_heard(reader: api.ReaderProgress, journal: api.JournalStatus) -> bool:
    return (
        journal.epoch > 1
        and reader.epoch == journal.epoch
        and reader.position < journal.epoch_first_position
    )
