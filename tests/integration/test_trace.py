"""One trace leads from a call over SQL and the broker to what other services did about it."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from opentelemetry import trace
from opentelemetry.instrumentation.asyncpg import AsyncPGInstrumentor
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from chassis import telemetry
from chassis.config import Common
from fermion.api.instances import v1 as instances
from fermion.api.instances.v1.service_pb2_grpc import InstanceServiceStub
from fermion.api.journal import v1 as journal
from fermion.api.journal.v1.service_pb2_grpc import JournalServiceStub
from fermion.api.projects import v1 as projects
from fermion.api.projects.v1.service_pb2_grpc import ProjectServiceStub
from tests.integration.platform import Platform, running, until
from tests.servers import NatsServer

CALL = "fermion.api.instances.v1.InstanceService/CreateInstance"


@pytest.fixture
async def spans() -> AsyncIterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    telemetry.start_traces(Common(), "test", exporter)
    yield exporter
    AsyncPGInstrumentor().uninstrument()  # type: ignore[no-untyped-call]
    provider().shutdown()


def provider() -> TracerProvider:
    found = trace.get_tracer_provider()
    assert isinstance(found, TracerProvider)
    return found


async def create(platform: Platform, traceparent: str) -> str:
    """Create an instance as one call of a trace, and tell its uid."""
    project = projects.CreateProjectRequest(project_id="acme")
    await platform.call(ProjectServiceStub(platform.channel).CreateProject, project)
    request = instances.CreateInstanceRequest(parent="projects/acme", instance_id="dev-1")
    request.instance.spec.kind = instances.KIND_NOTEBOOK
    answer = await InstanceServiceStub(platform.channel).CreateInstance(
        request, metadata=(*platform.metadata, ("traceparent", traceparent))
    )
    return str(answer.instance.uid)


async def test_a_trace_leads_from_the_call_to_what_follows_in_other_services(
    spans: InMemorySpanExporter, database: str, nats_server: NatsServer, tmp_path: Path
) -> None:
    trace_id, parent_id = secrets.token_hex(16), secrets.token_hex(8)
    async with running(database, nats_server, tmp_path) as platform:
        uid = await create(platform, f"00-{trace_id}-{parent_id}-01")

        async def facts() -> list[journal.Record]:
            request = journal.ListFactsRequest(
                journal="instances/0", project="projects/acme", stream=f"instance/{uid}"
            )
            listed = JournalServiceStub(platform.channel).ListFacts
            return list((await platform.call(listed, request)).records)

        told = await until(
            facts,
            lambda found: any(record.type.endswith(".InstanceQueued") for record in found),
            "the scheduler's answer did not come",
        )

        # Every fact of every service that follows from the call tells the trace, too. What the
        # scheduler's pass says later follows from how things stand, and from no call.
        first = next(at for at, one in enumerate(told) if one.type.endswith(".InstanceQueued"))
        traces = {record.meta.traceparent.split("-")[1] for record in told[: first + 1]}
        assert traces == {trace_id}

        async def seen() -> dict[str, ReadableSpan]:
            provider().force_flush()
            return {
                span.name: span
                for span in spans.get_finished_spans()
                if span.context is not None and f"{span.context.trace_id:032x}" == trace_id
            }

        found = await until(
            seen,
            lambda names: (
                {"publish", "consume scheduler/instances", "consume instances/scheduler"}
                <= set(names)
            ),
            "the trace does not lead there",
        )
    server = next(span for name, span in found.items() if name.strip("/") == CALL)
    assert server.kind is trace.SpanKind.SERVER
    assert server.parent is not None
    assert f"{server.parent.span_id:016x}" == parent_id
    assert server.context is not None
    queries = [span for span in found.values() if "db.statement" in (span.attributes or {})]
    assert queries
    for span in (*queries, found["publish"]):
        assert span.parent is not None
        assert span.parent.span_id == server.context.span_id
