"""Facts as a journal would have recorded them, for tests of pure rooms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta

from google.protobuf.message import Message

from chassis.envelope import Meta, Recorded
from chassis.journal import Place

NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)


class History:
    """What was said so far, a second apart, placed by the service's own rule."""

    def __init__(self, journal: str, place: Callable[[Message], Place]) -> None:
        self._journal = journal
        self._place = place
        self.records: list[Recorded] = []

    def say(self, facts: Sequence[Message]) -> None:
        """Record one decision; its facts have one time, as in a journal."""
        at = NOON + timedelta(seconds=len(self.records))
        for fact in facts:
            place = self._place(fact)
            versions = len(self.stream(place.stream))
            self.records.append(
                Recorded(
                    journal=self._journal,
                    epoch=1,
                    position=len(self.records) + 1,
                    project=place.project,
                    project_position=1 + sum(r.project == place.project for r in self.records),
                    stream=place.stream,
                    version=versions + 1,
                    type=fact.DESCRIPTOR.full_name,
                    statement="" if place.statement is None else str(place.statement),
                    data=fact.SerializeToString(),
                    meta=Meta("user_test"),
                    record_time=at,
                    message=fact,
                )
            )

    def stream(self, name: str) -> tuple[Recorded, ...]:
        """Read one stream."""
        return tuple(record for record in self.records if record.stream == name)

    def last(self, count: int = 1) -> list[Recorded]:
        """Read the newest records."""
        return self.records[-count:]


def names(facts: Sequence[Message]) -> list[str]:
    """Tell the kinds of facts, in order."""
    return [fact.DESCRIPTOR.name for fact in facts]
