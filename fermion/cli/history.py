"""Whose history is asked for: who bears a name, who bore it before, and the streams that tell of it."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from fermion.api.instances import v1 as instances
from fermion.api.journal import v1 as api
from fermion.cli.facts import NO_PROJECT, decode
from fermion.errors import NotFound

if TYPE_CHECKING:
    from fermion.client import Client

UID: Final = re.compile(r"inst_[0-9a-z]{26}")
OWN: Final = "instances/0"
# Where facts of an instance's workloads stand.
WORKLOADS: Final = (OWN, "scheduler/0")
_CREATED: Final = instances.InstanceCreated.DESCRIPTOR.full_name


def bearers(client: Client, project: str, instance: str, until: datetime | None) -> Sequence[str]:
    """
    Uids of all that were created by a name (until then), oldest first; also of those that are gone.

    Nothing but the project's facts knows them, so all of these are read.
    """
    return [
        created.uid
        for fact in client.journals.read(OWN, project)
        if fact.type == _CREATED and not_after(fact, until)
        for created in (decode(fact),)
        if isinstance(created, instances.InstanceCreated) and created.instance == instance
    ]


def bearer(client: Client, project: str, instance: str, until: datetime | None) -> tuple[str, bool]:
    """
    Uid of the one that bears a name (or bore it then), else of the last that did; and whether it does.

    Raises `NotFound` where no instance ever had that name.
    """
    try:
        living = client.instances.get(f"projects/{project}/instances/{instance}", until)
    except NotFound:
        gone = bearers(client, project, instance, until)
        if not gone:
            raise
        return gone[-1], False
    return living.uid, True


def not_after(fact: api.Record, until: datetime | None) -> bool:
    """Whether it was recorded by then."""
    return until is None or fact.record_time.ToDatetime(tzinfo=UTC) <= until


def of(client: Client, project: str, uid: str) -> Sequence[api.Record]:
    """
    An instance's own facts, and what modules and scheduler said of its workloads.

    Raises `NotFound` where the project never had it.
    """
    own = client.journals.facts(OWN, project, f"instance/{uid}")
    if not own:
        raise NotFound(
            f"Project {project} never had an instance {uid}.",
            reason="INSTANCE_NOT_FOUND",
            next_step="List what the project had: fermion events list",
        )
    streams = Streams("", {uid})
    found = [fact for fact in own if streams.holds(fact)]
    for journal in WORKLOADS:
        for stream in streams.workloads:
            found += client.journals.facts(journal, project, stream)
    return found


def log(client: Client, journal: str, project: str) -> Iterator[api.Record]:
    """All facts of a project in a journal; without one, those that belong to no project."""
    for fact in client.journals.read(journal, project):
        if project or fact.project == NO_PROJECT:
            yield fact


def newer(client: Client, project: str, places: dict[str, int]) -> Iterator[api.Record]:
    """
    Facts of `log` after these places, which move on; each journal's in its order, and causes first.

    Journals are in the order of a call's walk. Read against it, none holds a fact whose cause the
    ones before it do not hold yet.
    """
    pages = {one: list(client.journals.read(one, project, places[one])) for one in reversed(places)}
    for one in places:
        for fact in pages[one]:
            places[one] = fact.project_position if project else fact.position
            if project or fact.project == NO_PROJECT:
                yield fact


class Streams:
    """The streams that a history consists of; a new attempt adds one, and a new bearer of the name."""

    def __init__(self, instance: str, uids: Collection[str]) -> None:
        self._instance = instance
        self._own = {f"instance/{uid}" for uid in uids}
        self.workloads: list[str] = []

    def holds(self, fact: api.Record) -> bool:
        """Whether a fact is of this history; facts are asked for causes first."""
        message = decode(fact)
        if isinstance(message, instances.InstanceCreated) and message.instance == self._instance:
            self._own.add(fact.stream)
        if fact.stream not in self._own:
            return fact.stream in self.workloads
        if isinstance(message, instances.InstanceAttemptDeclared):
            self.workloads.append(f"workload/{message.workload_uid}")
        return True
