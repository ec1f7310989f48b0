"""Facts of instances become writes of their rows."""

from __future__ import annotations

from pathlib import Path

from google.protobuf.message_factory import GetMessageClass
from hypothesis import given

from chassis.queries import Queries
from fermion.api.instances.v1 import events_pb2
from services.instances import aggregate, projection
from tests.unit.services.history import History
from tests.unit.services.instances.life import HISTORIES, Life, create, queued
from tests.unit.services.statements import misfits

QUERIES = Queries.load(Path(projection.__file__).with_name("queries.sql"))


def test_every_fact_of_the_area_has_its_writes() -> None:
    history = History("instances/0", aggregate.place)
    for descriptor in events_pb2.DESCRIPTOR.message_types_by_name.values():
        history.say([GetMessageClass(descriptor)()])
    writes = [write for record in history.records for write in projection.project(record)]
    assert len(writes) > len(history.records)
    assert misfits(QUERIES, writes) == []


def test_facts_about_workloads_have_no_row_here() -> None:
    declared = Life().do(create()).history.last()
    assert declared[0].type.endswith("WorkloadDeclared")
    assert projection.project(declared[0]) == []


def test_a_reason_is_written_as_the_scheduler_said_it() -> None:
    life = Life().do(create(), queued(1))
    write = projection.project(life.history.last()[0])[0]
    assert write.statement == "queue_instance"
    assert life.shown.status.reason.SerializeToString(deterministic=True) in write.arguments


@given(HISTORIES)
def test_every_history_fits_its_statements(life: Life) -> None:
    writes = [write for record in life.history.records for write in projection.project(record)]
    assert misfits(QUERIES, writes) == []
