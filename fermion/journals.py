"""Facts, and what an operator does about those who read them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

from google.protobuf.message import Message

from fermion.api.journal import v1 as api
from fermion.api.journal.v1 import service_pb2_grpc as stubs

if TYPE_CHECKING:
    from fermion.client import Client

# Services that have a journal, in the order of the walk of a call.
SERVICES = ("projects", "instances", "scheduler")
Answer = TypeVar("Answer", bound=Message)


class Journals:
    """The journals of the platform; each is asked for where its service answers."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def read(self, journal: str, project: str = "", after: int = 0) -> Iterator[api.Record]:
        """Facts of a journal up to its head; of one project, after its own count, where given."""
        request = api.ReadLogRequest(
            journal=journal, project=f"projects/{project}" if project else "", after=after
        )
        pages = self._client.stream(
            journal.split("/")[0],
            stubs.JournalServiceStub,
            "ReadLog",
            request,
            api.ReadLogResponse,
        )
        for page in pages:
            yield from page.records

    def facts(self, journal: str, project: str, stream: str) -> Sequence[api.Record]:
        """All facts of one stream."""
        found: list[api.Record] = []
        while True:
            request = api.ListFactsRequest(
                journal=journal,
                project=f"projects/{project}",
                stream=stream,
                after_version=found[-1].version if found else 0,
            )
            page = self._call(journal, "ListFacts", request, api.ListFactsResponse).records
            if not page:
                return found
            found += page

    def status(self) -> list[api.JournalStatus]:
        """Heads, relays and readers."""
        found: list[api.JournalStatus] = []
        for service in SERVICES:
            request = api.GetJournalRequest(journal=f"{service}/0")
            found += self._call(service, "GetJournal", request, api.GetJournalResponse).journals
        return found

    def audit(self) -> list[api.AuditCheck]:
        """Every equality, counted anew."""
        found: list[api.AuditCheck] = []
        for service in SERVICES:
            request = api.AuditJournalRequest(journal=f"{service}/0")
            found += self._call(service, "AuditJournal", request, api.AuditJournalResponse).checks
        return found

    def rebuild(self, journal: str) -> api.RebuildProjectionResponse:
        """Fold a read model from zero, compare it, and swap it in."""
        request = api.RebuildProjectionRequest(journal=journal)
        return self._call(journal, "RebuildProjection", request, api.RebuildProjectionResponse)

    def parked(self) -> list[api.ParkedFact]:
        """What readers could not use."""
        found: list[api.ParkedFact] = []
        for service in SERVICES:
            request = api.ListParkedFactsRequest(journal=f"{service}/0")
            answer = self._call(service, "ListParkedFacts", request, api.ListParkedFactsResponse)
            found += answer.facts
        return found

    def retry(self, reader: str, stream: str) -> api.RetryParkedFactsResponse:
        """Handle a parked stream again."""
        request = api.RetryParkedFactsRequest(reader=reader, stream=stream)
        return self._call(reader, "RetryParkedFacts", request, api.RetryParkedFactsResponse)

    def skip(self, reader: str, journal: str, position: int, reason: str) -> None:
        """Give one parked fact up for good."""
        request = api.SkipParkedFactRequest(
            reader=reader, journal=journal, position=position, reason=reason
        )
        self._call(reader, "SkipParkedFact", request, api.SkipParkedFactResponse)

    def resume(self, reader: str, journal: str) -> None:
        """Let a halted reader go on."""
        request = api.ResumeReaderRequest(reader=reader, journal=journal)
        self._call(reader, "ResumeReader", request, api.ResumeReaderResponse)

    def _call(self, owner: str, method: str, request: Message, answer: type[Answer]) -> Answer:
        service = owner.split("/")[0]
        return self._client.call(service, stubs.JournalServiceStub, method, request, answer)
