"""What a process says of itself: logs with request and trace ids, spans, and metrics on a port."""

from __future__ import annotations

import enum
import json
import logging
import re
import secrets
import sys
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import grpc.aio
from opentelemetry import propagate, trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.instrumentation.asyncpg import AsyncPGInstrumentor
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SpanExporter
from prometheus_client import CollectorRegistry, Counter, Histogram, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from chassis import listening
from chassis.config import Common, wrong

METRICS: Final = "FERMION_METRICS_LISTEN"
_TRACEPARENT: Final = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")

_log = logging.getLogger(__name__)

# The request that is being answered; logs carry it, nothing decides on it.
REQUEST_ID: ContextVar[str] = ContextVar("request_id", default="")


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """Write a record with time, place, request and trace."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        request, span = REQUEST_ID.get(), trace.get_current_span().get_span_context()
        if request:
            line["request_id"] = request
        if span.is_valid:
            line["trace_id"] = f"{span.trace_id:032x}"
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


class ConsoleFormatter(logging.Formatter):
    """A line for people."""

    def format(self, record: logging.LogRecord) -> str:
        """Write a record with time, place and request."""
        moment = datetime.fromtimestamp(record.created).strftime("%H:%M:%S.%f")[:-3]
        request = REQUEST_ID.get()
        tail = f"  [{request}]" if request else ""
        text = f"{moment} {record.levelname:<7} {record.name}: {record.getMessage()}{tail}"
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


def concerns_us(record: logging.LogRecord) -> bool:
    """
    Leave out what gRPC logs, with its traceback, where a caller goes away before he has taken all that
    was sent: a watch that is broken off is no fault of ours.
    """
    raised = record.exc_info[1] if record.exc_info else None
    return not (record.name.startswith("grpc.") and isinstance(raised, grpc.aio.InternalError))


def start_logs(settings: Common) -> None:
    """Send logs to standard error in the format that was asked for."""
    if settings.log_format not in ("json", "console"):
        raise wrong("FERMION_LOG_FORMAT", settings.log_format, "must be json or console")
    if settings.log_level.upper() not in ("DEBUG", "INFO", "WARNING", "ERROR"):
        rule = "must be DEBUG, INFO, WARNING or ERROR"
        raise wrong("FERMION_LOG_LEVEL", settings.log_level, rule)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if settings.log_format == "json" else ConsoleFormatter())
    handler.addFilter(concerns_us)
    logging.basicConfig(level=settings.log_level.upper(), handlers=[handler], force=True)
    logging.getLogger("grpc").setLevel(logging.WARNING)


def start_traces(settings: Common, name: str, exporter: SpanExporter | None = None) -> None:
    """Send spans where the settings say, or to an exporter given by a test."""
    match settings.traces:
        case "none":
            if exporter is None:
                return
        case "console":
            exporter = exporter or ConsoleSpanExporter()
        case "otlp":
            exporter = exporter or OTLPSpanExporter(settings.otlp_endpoint, insecure=True)
        case other:
            raise wrong("FERMION_TRACES", other, "must be none, console or otlp")
    assert exporter is not None
    provider = TracerProvider(resource=Resource.create({"service.name": f"fermion-{name}"}))
    provider.add_span_processor(BatchSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    AsyncPGInstrumentor().instrument()  # type: ignore[no-untyped-call]  # its own fault


def current_traceparent(metadata: Mapping[str, str]) -> str:
    """
    The W3C trace context of this call: its span's, else the caller's, else a new one.

    It stands in facts for ever, so what a caller sends is taken only where it is one.
    """
    carrier: dict[str, str] = {}
    if recording():
        propagate.inject(carrier)
    found = carrier.get("traceparent") or metadata.get("traceparent", "")
    if _TRACEPARENT.fullmatch(found):
        return found
    return f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-00"


def recording() -> bool:
    """Whether spans go anywhere; what begins one per fact asks first."""
    return isinstance(trace.get_tracer_provider(), TracerProvider)


def linked_span(name: str, traceparent: str, attributes: Mapping[str, str]) -> trace.Span:
    """Begin a span below the one that a fact was said in."""
    context = propagate.extract({"traceparent": traceparent})
    return trace.get_tracer("fermion").start_span(name, context, attributes=dict(attributes))


class Kind(enum.Enum):
    """How a figure behaves over time."""

    GAUGE = "gauge"
    """It goes up and down."""

    COUNTER = "counter"
    """It only grows, from the start of its process; its name ends in `_total`."""

    HISTOGRAM = "histogram"
    """How often it was how much."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One thing that is measured; its name ends in its unit, and no label is a user's or a workload's."""

    name: str
    help: str
    labels: tuple[str, ...] = ()
    kind: Kind = Kind.GAUGE


@dataclass(frozen=True, slots=True)
class Sample:
    """A figure as it was found, for one of each of its labels."""

    figure: Figure
    labels: tuple[str, ...]
    value: float


# What reads figures when they are asked for; it waits for nothing.
Read = Callable[[], Iterable[Sample]]

CALLS: Final = Figure(
    "fermion_rpc_seconds", "Time to answer a call.", ("method", "code"), Kind.HISTOGRAM
)
COMMANDS: Final = Figure(
    "fermion_journal_commands_total", "Commands committed.", ("journal",), Kind.COUNTER
)
FACTS: Final = Figure("fermion_journal_facts_total", "Facts committed.", ("journal",), Kind.COUNTER)
BATCHES: Final = Figure(
    "fermion_journal_batch_commands",
    "Commands in one transaction.",
    ("journal",),
    Kind.HISTOGRAM,
)
# What every process counts as it works; all else is read.
COUNTED: Final = (CALLS, COMMANDS, FACTS, BATCHES)


class _Figures(Collector):
    """Gives Prometheus what was registered, read anew."""

    def __init__(self, registered: list[tuple[tuple[Figure, ...], Read]]) -> None:
        self._registered = registered

    def collect(self) -> Iterable[CounterMetricFamily | GaugeMetricFamily]:
        # Several services of a process show the same figure, which is told once.
        registered = list(self._registered)
        families = {figure: _family(figure) for figures, _ in registered for figure in figures}
        for _, read in registered:
            for sample in read():
                families[sample.figure].add_metric(sample.labels, sample.value)
        return families.values()


def _family(figure: Figure) -> CounterMetricFamily | GaugeMetricFamily:
    make = CounterMetricFamily if figure.kind is Kind.COUNTER else GaugeMetricFamily
    return make(figure.name, figure.help, labels=figure.labels)


class Metrics:
    """What a process counts, and the figures that its parts register."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._registered: list[tuple[tuple[Figure, ...], Read]] = []
        self.registry.register(_Figures(self._registered))
        self.calls = Histogram(
            CALLS.name,
            CALLS.help,
            CALLS.labels,
            registry=self.registry,
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 30),
        )
        self.commands = Counter(
            COMMANDS.name, COMMANDS.help, COMMANDS.labels, registry=self.registry
        )
        self.facts = Counter(FACTS.name, FACTS.help, FACTS.labels, registry=self.registry)
        self.batches = Histogram(
            BATCHES.name,
            BATCHES.help,
            BATCHES.labels,
            registry=self.registry,
            buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512),
        )

    def show(self, figures: Iterable[Figure], read: Read) -> None:
        """Show these figures from now on, each time as `read` finds them; no other may it give."""
        self._registered.append((tuple(figures), read))

    def read(self) -> Iterable[Sample]:
        """Everything that is read and not counted, as it is now."""
        for _, read in self._registered:
            yield from read()

    def journal(self, name: str) -> JournalMetrics:
        """What one journal's committer counts into; it shows zeros before the first commit."""
        for figure in (self.commands, self.facts, self.batches):
            figure.labels(name)
        return JournalMetrics(self, name)

    def serve(self, listen: str) -> Callable[[], None]:
        """Serve the figures over HTTP; returns what stops it."""
        host, port = listening.split(METRICS, listen)
        listening.check(METRICS, listen)
        try:
            server, thread = start_http_server(port, host or "127.0.0.1", self.registry)
        except OSError as error:
            raise listening.taken(METRICS, listen) from error
        _log.info("metrics at http://%s:%d/metrics", host or "127.0.0.1", server.server_port)

        def stop() -> None:
            server.shutdown()
            server.server_close()
            thread.join()

        return stop


@dataclass(frozen=True, slots=True)
class JournalMetrics:
    """Counts one journal's commits."""

    metrics: Metrics
    journal: str

    def committed(self, commands: int, facts: int, waiting: int) -> None:
        """One batch is durable."""
        del waiting
        self.metrics.commands.labels(self.journal).inc(commands)
        self.metrics.facts.labels(self.journal).inc(facts)
        self.metrics.batches.labels(self.journal).observe(commands)
