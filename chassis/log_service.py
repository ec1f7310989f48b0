"""JournalService: the only way to old facts, and what an operator does about readers; one a process."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from chassis.audit import audit
from chassis.bus import Away, Bus
from chassis.envelope import to_record
from chassis.journal import Book
from chassis.lineage import accept, acceptable, begin
from chassis.parking import halted, parked, resume, skip
from chassis.postgres import Database
from chassis.queries import Queries
from chassis.readers import Reader
from chassis.rebuild import rebuild
from chassis.refusals import Missing
from chassis.relay import portions
from chassis.rpc import Context, answer_position, meta_of, request_of
from chassis.store import PostgresJournal
from chassis.telemetry import Metrics, Sample
from fermion.api.journal import v1 as api
from fermion.api.journal.v1 import service_pb2_grpc

PAGE_MAX = 1000
PART_BYTES_MAX = 2 * 1024 * 1024

_queries = Queries.load(Path(__file__).with_name("queries.sql"))


@dataclass(frozen=True, slots=True)
class Hosted:
    """One journal of this process, with everything that hangs on it."""

    journal: PostgresJournal
    database: Database
    book: Book
    queries: Queries
    rows: Path
    bus: Bus
    # Grows where a cluster is enrolled.
    readers: Sequence[Reader]


class JournalServicer(service_pb2_grpc.JournalServiceServicer):
    """Every RPC of `JournalService`, for the journals that this process holds."""

    def __init__(self, hosted: Mapping[str, Hosted], metrics: Metrics) -> None:
        self._hosted = hosted
        self._metrics = metrics

    async def ReadLog(
        self, request: api.ReadLogRequest, context: Context
    ) -> AsyncIterator[api.ReadLogResponse]:
        """Send facts in pages up to the head; an empty page where there is nothing."""
        journal = self._find(request.journal).journal
        project = request.project.removeprefix("projects/") or None
        after, left = request.after, request.limit or None
        while True:
            size = PAGE_MAX if left is None else min(PAGE_MAX, left)
            page = await journal.records(after, size, project)
            # A page of large facts goes in several parts: gRPC takes 4 MiB a message.
            for part in list(portions(page.records, api.Record.ByteSize, PART_BYTES_MAX)) or [[]]:
                yield api.ReadLogResponse(
                    records=part,
                    head=page.head,
                    epoch=page.epoch,
                    epoch_first_position=page.epoch_first,
                )
            if left is not None:
                left -= len(page.records)
            if not page.records or left == 0:
                return
            last = page.records[-1]
            after = last.position if project is None else last.project_position
            if after >= page.head:
                return

    async def ListFacts(
        self, request: api.ListFactsRequest, context: Context
    ) -> api.ListFactsResponse:
        """
        List one stream's facts; a stream of another project is as one that is not there.

        Large facts make fewer of them; only an empty answer is the end.
        """
        journal = self._find(request.journal).journal
        facts = await journal.read_stream(
            request.stream, request.after_version, request.page_size or PAGE_MAX
        )
        project = request.project.removeprefix("projects/")
        own = [to_record(fact) for fact in facts if fact.project == project]
        return api.ListFactsResponse(
            records=next(portions(own, api.Record.ByteSize, PART_BYTES_MAX), [])
        )

    async def GetJournal(
        self, request: api.GetJournalRequest, context: Context
    ) -> api.GetJournalResponse:
        """Tell heads, what is published, how far readers got, and all figures of this process."""
        found = []
        for hosted in self._chosen(request.journal):
            head = await hosted.journal.head()
            relay = await hosted.database.fetchrow(_queries["read_relay"], hosted.journal.shard)
            found.append(
                api.JournalStatus(
                    journal=hosted.journal.name,
                    epoch=head.epoch,
                    head=head.position,
                    epoch_first_position=head.epoch_first,
                    published=await _published(hosted),
                    # Whichever process holds it.
                    relay_halted="" if relay is None else relay["halted"],
                    parted=relay is not None and relay["parted"],
                    readers=await progress(hosted.database),
                )
            )
        return api.GetJournalResponse(journals=found, figures=map(_figure, self._metrics.read()))

    async def AuditJournal(
        self, request: api.AuditJournalRequest, context: Context
    ) -> api.AuditJournalResponse:
        """Check every equality."""
        checks: list[api.AuditCheck] = []
        for hosted in self._chosen(request.journal):
            feeds = [reader.feed for reader in hosted.readers]
            checks += await audit(hosted.journal, hosted.database, hosted.bus, feeds)
        return api.AuditJournalResponse(checks=checks)

    async def RebuildProjection(
        self, request: api.RebuildProjectionRequest, context: Context
    ) -> api.RebuildProjectionResponse:
        """Fold the read model from zero, compare, and swap it in unless it is only looked at."""
        hosted = self._find(request.journal)
        done = await rebuild(
            hosted.database,
            hosted.journal,
            hosted.book,
            hosted.queries,
            hosted.rows,
            swap=not request.validate_only,
        )
        return api.RebuildProjectionResponse(
            live_hash=done.live_hash, rebuilt_hash=done.rebuilt_hash, folded=done.folded
        )

    async def ListParkedFacts(
        self, request: api.ListParkedFactsRequest, context: Context
    ) -> api.ListParkedFactsResponse:
        """List what readers could not use."""
        facts = []
        for hosted in self._chosen(request.journal):
            for row in await hosted.database.fetch(_queries["list_parked"]):
                fact = api.ParkedFact(
                    reader=row["reader"],
                    journal=row["journal"],
                    stream=row["stream"],
                    position=row["position"],
                    project=row["project"],
                    type=row["type"],
                    reason=row["reason"],
                )
                fact.park_time.FromDatetime(row["at"])
                facts.append(fact)
        return api.ListParkedFactsResponse(facts=facts)

    async def RetryParkedFacts(
        self, request: api.RetryParkedFactsRequest, context: Context
    ) -> api.RetryParkedFactsResponse:
        """Handle a parked stream again."""
        _, reader = self._reader(request.reader, request.journal)
        handled, left = await reader.retry(request.stream)
        return api.RetryParkedFactsResponse(handled=handled, left=left)

    async def SkipParkedFact(
        self, request: api.SkipParkedFactRequest, context: Context
    ) -> api.SkipParkedFactResponse:
        """Give one parked fact up; that is a fact."""
        hosted, _ = self._reader(request.reader, request.journal)
        if request.validate_only:
            await parked(
                hosted.database,
                reader=request.reader,
                source=request.journal,
                position=request.position,
            )
            return api.SkipParkedFactResponse()
        position = await skip(
            hosted.journal,
            hosted.database,
            reader=request.reader,
            source=request.journal,
            position=request.position,
            reason=request.reason,
            meta=meta_of(context, request),
            request=request_of(context, request),
        )
        answer_position(context, hosted.journal.name, position)
        return api.SkipParkedFactResponse()

    async def ResumeReader(
        self, request: api.ResumeReaderRequest, context: Context
    ) -> api.ResumeReaderResponse:
        """Let a halted reader go on; that is a fact."""
        hosted, _ = self._reader(request.reader, request.journal)
        if request.validate_only:
            await halted(hosted.database, reader=request.reader, source=request.journal)
            return api.ResumeReaderResponse()
        position = await resume(
            hosted.journal,
            hosted.database,
            reader=request.reader,
            source=request.journal,
            meta=meta_of(context, request),
            request=request_of(context, request),
        )
        answer_position(context, hosted.journal.name, position)
        return api.ResumeReaderResponse()

    async def BeginEpoch(
        self, request: api.BeginEpochRequest, context: Context
    ) -> api.BeginEpochResponse:
        """Let a journal that has lost its tail go on in a new lineage; that is its next fact."""
        hosted = self._find(request.journal)
        head = await begin(
            hosted.journal,
            hosted.bus,
            lost_from=request.lost_from,
            lost_through=request.lost_through,
            meta=meta_of(context, request),
            request=request_of(context, request),
            only_look=request.validate_only,
        )
        if not request.validate_only:
            answer_position(context, hosted.journal.name, head.position)
        return api.BeginEpochResponse(epoch=head.epoch, first_position=head.epoch_first)

    async def AcceptRestore(
        self, request: api.AcceptRestoreRequest, context: Context
    ) -> api.AcceptRestoreResponse:
        """Let a reader go on that had decided on what its journal lost; that is a fact."""
        hosted, reader = self._reader(request.reader, request.journal)
        if request.validate_only:
            await acceptable(hosted.journal, reader.feed, reader=request.reader)
            return api.AcceptRestoreResponse()
        position = await accept(
            hosted.journal,
            reader.feed,
            reader=request.reader,
            meta=meta_of(context, request),
            request=request_of(context, request),
        )
        answer_position(context, hosted.journal.name, position)
        return api.AcceptRestoreResponse()

    def _find(self, journal: str) -> Hosted:
        hosted = self._hosted.get(journal)
        if hosted is None:
            raise Missing(
                "JOURNAL_NOT_HERE",
                f"Journal {journal!r} is not held here; this process holds {self._names()}.",
                next_step="Ask the service that owns it.",
                journal=journal,
                held=self._names(),
            )
        return hosted

    def _chosen(self, journal: str) -> Sequence[Hosted]:
        return [self._find(journal)] if journal else list(self._hosted.values())

    def _reader(self, name: str, journal: str) -> tuple[Hosted, Reader]:
        """The reader of that name, of that journal where one is said; the first where none is."""
        for hosted in self._hosted.values():
            for reader in hosted.readers:
                if reader.name == name and journal in ("", reader.feed.journal):
                    return hosted, reader
        of = f" of {journal}" if journal else ""
        raise Missing(
            "READER_NOT_HERE",
            f"Reader {name!r}{of} does not run here.",
            next_step="`fermion status` lists readers and where they run.",
            reader=name,
            journal=journal,
        )

    def _names(self) -> str:
        return ", ".join(sorted(self._hosted))


def _figure(sample: Sample) -> api.Figure:
    labels = dict(zip(sample.figure.labels, sample.labels, strict=True))
    value = round(sample.value * 1000)
    return api.Figure(name=sample.figure.name, labels=labels, value_milli=value)


async def progress(database: Database) -> list[api.ReaderProgress]:
    """How far a service's readers got, as their checkpoints say."""
    return [
        api.ReaderProgress(
            reader=row["reader"],
            journal=row["journal"],
            epoch=row["epoch"],
            position=row["position"],
            folded=row["folded"],
            passed_over=row["passed_over"],
            parked=row["parked"],
            skipped=row["skipped"],
            halted=row["halted"] or "",
            lost_through=row["lost_through"] if row["halted"] else 0,
        )
        for row in await database.fetch(_queries["list_checkpoints"])
    ]


async def _published(hosted: Hosted) -> int:
    try:
        tail = await hosted.bus.tail(hosted.journal.name)
    except Away:
        return -1
    return 0 if tail is None else tail.last
