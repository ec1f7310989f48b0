"""Facts, and what an operator does about those who read them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING

from fermion.api.executor import v1 as executor
from fermion.api.executor.v1 import service_pb2_grpc as executor_stubs
from fermion.api.journal import v1 as api
from fermion.api.journal.v1 import service_pb2_grpc as stubs
from fermion.errors import Denied, Error

if TYPE_CHECKING:
    from fermion.aio.client import AsyncLine

# Services that have a journal, in the order of the walk of a call.
SERVICES = ("projects", "instances", "scheduler", "executor", "billing")


class Journals:
    """The journals of the platform; each is asked for where its service answers."""

    def __init__(self, lines: Callable[[str], AsyncLine]) -> None:
        self._lines = {service: lines(service) for service in SERVICES}
        self._stubs = {
            service: stubs.JournalServiceStub(line.channel) for service, line in self._lines.items()
        }
        self._runtime = executor_stubs.RuntimeServiceStub(self._lines["executor"].channel)
        # One process answers for all of its journals, so each address is asked once.
        places = {line.place.address: service for service, line in self._lines.items()}
        self._owners = sorted(places.values(), key=SERVICES.index)

    async def names(self) -> Sequence[str]:
        """
        Every journal there is, in the order of the walk of a call.

        Who may not ask the services for their journals is told the first one of each, and the one
        of the cluster that answers.
        """
        try:
            found = {one.journal for one in await self.status()}
        except Denied:
            found = {f"{service}/0" for service in SERVICES if service != "executor"}
            found |= await self._of_cluster()
        return sorted(found, key=lambda name: (SERVICES.index(_service(name)), name))

    async def _of_cluster(self) -> set[str]:
        """The journal of an executor bears its cluster's uid; none where no executor is."""
        ask, request = self._lines["executor"].ask, executor.GetClusterRequest()
        try:
            answer = await ask(self._runtime.GetCluster, request)
        except Error as error:
            if error.reason != "UNIMPLEMENTED":
                raise
            return set()
        return {f"executor/{answer.cluster.name.removeprefix('clusters/')}"}

    async def read(
        self, journal: str, project: str = "", after: int = 0
    ) -> AsyncIterator[api.Record]:
        """Facts of a journal up to its head; of one project, after its own count, where given."""
        request = api.ReadLogRequest(
            journal=journal, project=f"projects/{project}" if project else "", after=after
        )
        service = _service(journal)
        follow = self._lines[service].follow
        async for page in follow(self._stubs[service].ReadLog, request, _go_on):
            for record in page.records:
                yield record

    async def head(self, journal: str, project: str = "") -> int:
        """The last position of a journal, or of one project in it."""
        request = api.ReadLogRequest(
            journal=journal, project=f"projects/{project}" if project else "", limit=1
        )
        service = _service(journal)
        found = 0
        follow = self._lines[service].follow
        async for page in follow(self._stubs[service].ReadLog, request, _stay):
            found = page.head
        return found

    async def facts(self, journal: str, project: str, stream: str) -> Sequence[api.Record]:
        """All facts of one stream."""
        service = _service(journal)
        request = api.ListFactsRequest(
            journal=journal, project=f"projects/{project}", stream=stream
        )
        found: list[api.Record] = []
        while True:
            page = await self._lines[service].ask(self._stubs[service].ListFacts, request)
            if not page.records:
                return found
            found += page.records
            request.after_version = found[-1].version

    async def status(self) -> Sequence[api.JournalStatus]:
        """Heads, relays and readers."""
        return (await self.standing()).journals

    async def standing(self) -> api.GetJournalResponse:
        """The same, and all figures that operators watch; of several processes alike, one tells."""
        found = api.GetJournalResponse()
        for service in self._owners:
            found.MergeFrom(
                await self._lines[service].ask(
                    self._stubs[service].GetJournal, api.GetJournalRequest()
                )
            )
        return found

    async def audit(self, journal: str = "") -> Sequence[api.AuditCheck]:
        """Every equality, counted anew; of one journal, where one is named."""
        found: list[api.AuditCheck] = []
        for service in [_service(journal)] if journal else self._owners:
            answer = await self._lines[service].ask(
                self._stubs[service].AuditJournal, api.AuditJournalRequest(journal=journal)
            )
            found += answer.checks
        return found

    async def parked(self) -> Sequence[api.ParkedFact]:
        """What readers could not use."""
        found: list[api.ParkedFact] = []
        for service in self._owners:
            answer = await self._lines[service].ask(
                self._stubs[service].ListParkedFacts, api.ListParkedFactsRequest()
            )
            found += answer.facts
        return found

    async def rebuild(
        self, journal: str, *, validate_only: bool = False
    ) -> api.RebuildProjectionResponse:
        """Fold a read model from zero, compare it, and swap it in unless it is only looked at."""
        service = _service(journal)
        request = api.RebuildProjectionRequest(journal=journal, validate_only=validate_only)
        return await self._lines[service].ask(self._stubs[service].RebuildProjection, request)

    async def retry(self, reader: str, stream: str) -> api.RetryParkedFactsResponse:
        """Handle a parked stream again."""
        service = _service(reader)
        request = api.RetryParkedFactsRequest(reader=reader, stream=stream)
        return await self._lines[service].ask(self._stubs[service].RetryParkedFacts, request)

    async def skip(
        self, reader: str, journal: str, position: int, reason: str, *, validate_only: bool = False
    ) -> None:
        """Give one parked fact up for good."""
        service = _service(reader)
        request = api.SkipParkedFactRequest(
            reader=reader,
            journal=journal,
            position=position,
            reason=reason,
            validate_only=validate_only,
        )
        await self._lines[service].ask(self._stubs[service].SkipParkedFact, request)

    async def resume(self, reader: str, journal: str, *, validate_only: bool = False) -> None:
        """Let a halted reader go on."""
        service = _service(reader)
        request = api.ResumeReaderRequest(
            reader=reader, journal=journal, validate_only=validate_only
        )
        await self._lines[service].ask(self._stubs[service].ResumeReader, request)

    async def begin_epoch(
        self,
        journal: str,
        lost_from: int = 0,
        lost_through: int = 0,
        *,
        validate_only: bool = False,
    ) -> api.BeginEpochResponse:
        """Let a journal that has lost its tail go on in a new lineage."""
        service = _service(journal)
        request = api.BeginEpochRequest(
            journal=journal,
            lost_from=lost_from,
            lost_through=lost_through,
            validate_only=validate_only,
        )
        return await self._lines[service].ask(self._stubs[service].BeginEpoch, request)

    async def accept_restore(
        self, reader: str, journal: str, *, validate_only: bool = False
    ) -> None:
        """Let a reader go on that had decided on what its journal lost."""
        service = _service(reader)
        request = api.AcceptRestoreRequest(
            reader=reader, journal=journal, validate_only=validate_only
        )
        await self._lines[service].ask(self._stubs[service].AcceptRestore, request)


def _service(name: str) -> str:
    """The service that a journal or a reader belongs to; the first one where there is none such."""
    service = name.split("/", 1)[0]
    return service if service in SERVICES else SERVICES[0]


def _go_on(request: api.ReadLogRequest, page: api.ReadLogResponse) -> None:
    if page.records:
        last = page.records[-1]
        request.after = last.project_position if request.project else last.position


def _stay(request: api.ReadLogRequest, page: api.ReadLogResponse) -> None:
    del request, page
