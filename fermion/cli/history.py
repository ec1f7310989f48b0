"""Whose history is asked for: who bears a name, who bore it before, and the streams that tell of it."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from fermion.api.instances import v1 as instances
from fermion.api.journal import v1 as api
from fermion.api.workload import v1 as workload
from fermion.cli.facts import NO_PROJECT, decode
from fermion.errors import NotFound

if TYPE_CHECKING:
    from fermion.client import Client

UID: Final = re.compile(r"inst_[0-9a-z]{26}")
# Stated all the time, by each executor, and of no project.
PROOFS: Final = frozenset(
    kind.DESCRIPTOR.full_name for kind in (workload.ProofOfLife, workload.Watermark)
)
_CREATED: Final = instances.InstanceCreated.DESCRIPTOR.full_name


def bearers(
    client: Client, journals: Sequence[str], project: str, instance: str, until: datetime | None
) -> Sequence[str]:
    """
    Uids of all that were created by a name (until then), oldest first; also of those that are gone.

    Nothing but the project's facts knows them, so all of these are read.
    """
    return [
        created.uid
        for journal in _of("instances", journals)
        for fact in client.journals.read(journal, project)
        if fact.type == _CREATED and not_after(fact, until)
        for created in (decode(fact),)
        if isinstance(created, instances.InstanceCreated) and created.instance == instance
    ]


def bearer(
    client: Client, journals: Sequence[str], project: str, instance: str, until: datetime | None
) -> tuple[str, bool]:
    """
    Uid of the one that bears a name (or bore it then), else of the last that did; and whether it does.

    Raises `NotFound` where no instance ever had that name.
    """
    try:
        living = client.instances.get(f"projects/{project}/instances/{instance}", until)
    except NotFound:
        gone = bearers(client, journals, project, instance, until)
        if not gone:
            raise
        return gone[-1], False
    return living.uid, True


def not_after(fact: api.Record, until: datetime | None) -> bool:
    """Whether it was recorded by then."""
    return until is None or fact.record_time.ToDatetime(tzinfo=UTC) <= until


def of(client: Client, journals: Sequence[str], project: str, uid: str) -> Sequence[api.Record]:
    """
    An instance's own facts, and what was said of its workloads, replicas and volumes.

    Which replicas are its own only the project's facts of the executors know, so all of these are
    read. Raises `NotFound` where the project never had it.
    """
    streams = Streams("", {uid})
    found: list[api.Record] = []
    for journal in _of("instances", journals):
        found += client.journals.facts(journal, project, f"instance/{uid}")
    if not found:
        raise NotFound(
            f"Project {project} never had an instance {uid}.",
            reason="INSTANCE_NOT_FOUND",
            next_step="List what the project had: fermion events list",
        )
    for fact in found:
        streams.holds(fact)
    deciding = [one for of in ("instances", "scheduler", "billing") for one in _of(of, journals)]
    for journal in deciding:
        for stream in streams.declared:
            found += client.journals.facts(journal, project, stream)
    for journal in _of("executor", journals):
        found += filter(streams.holds, client.journals.read(journal, project))
    return found


def _of(service: str, journals: Sequence[str]) -> Sequence[str]:
    """The journals of one service."""
    return [journal for journal in journals if journal.startswith(f"{service}/")]


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
    """
    The streams that a history consists of.

    A new attempt adds those of its workload and volume, the workload those of its replicas, and a
    new bearer of the name its own.
    """

    def __init__(self, instance: str, uids: Collection[str]) -> None:
        self._instance = instance
        self._known = {f"instance/{uid}" for uid in uids}
        # Of workloads and volumes: facts of the modules and of the scheduler.
        self.declared: list[str] = []

    def holds(self, fact: api.Record) -> bool:
        """Whether a fact is of this history; facts are asked for causes first."""
        message = decode(fact)
        match message:
            case instances.InstanceCreated():
                if message.instance == self._instance:
                    self._known.add(fact.stream)
            case instances.InstanceAttemptDeclared():
                if fact.stream in self._known:
                    self._declare("workload", message.workload_uid)
                    self._declare("volume", message.volume_uid)
            case workload.ReplicaScheduled():
                if f"workload/{message.subject.workload}" in self._known:
                    self._known.add(fact.stream)
        return fact.stream in self._known

    def _declare(self, kind: str, uid: str) -> None:
        stream = f"{kind}/{uid}"
        if uid and stream not in self._known:
            self._known.add(stream)
            self.declared.append(stream)
