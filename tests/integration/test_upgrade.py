"""The state that a release has left opens in this one, and says what it said."""

from __future__ import annotations

import gzip
import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import asyncpg
import pytest
from google.protobuf import json_format

from chassis.embedded.postgres import find_binaries
from chassis.envelope import Registry
from chassis.keys import write_private
from chassis.migrations import migrate
from chassis.postgres import Database
from chassis.process import KERNEL_MIGRATIONS, with_operations
from chassis.queries import Queries
from chassis.rebuild import rebuild
from chassis.store import PostgresJournal
from fermion.api.billing import v1 as billing
from fermion.api.billing.v1.service_pb2_grpc import CostServiceStub
from fermion.api.instances import v1 as instances
from fermion.api.instances.v1.service_pb2_grpc import InstanceServiceStub
from fermion.api.journal.v1 import events_pb2
from services.serve import TARGETS
from tests.contract.state import PROJECT, STATES, tables
from tests.integration.platform import running
from tests.servers import NatsServer

RELEASES = sorted(path.name.removesuffix(".sql.gz") for path in STATES.glob("*.sql.gz"))


def test_there_is_a_release() -> None:
    assert "0.1.0" in RELEASES


@pytest.fixture(params=RELEASES)
def said(request: pytest.FixtureRequest, database: str) -> Mapping[str, object]:
    """What a release said of its state, which is in the database now."""
    release = str(request.param)
    dump = gzip.decompress((STATES / f"{release}.sql.gz").read_bytes())
    subprocess.run(
        [find_binaries() / "psql", database, "-qX", "--set=ON_ERROR_STOP=1", "--output=/dev/null"],
        input=dump,
        check=True,
    )
    found: Mapping[str, object] = json.loads((STATES / f"{release}.json").read_text())
    return found


async def test_every_row_folded_from_stored_facts_is_what_the_release_had(
    said: Mapping[str, object], database: str
) -> None:
    heads, rows = cast(Mapping[str, int], said["heads"]), cast(Mapping[str, object], said["rows"])
    assert sum(heads.values()) > 50
    for name, target in TARGETS.items():
        folder = target.folder / "migrations"
        own = Database(database, name)
        await migrate(own, KERNEL_MIGRATIONS, own.schema)
        if (folder / "state").is_dir():
            await migrate(own, folder / "state", own.schema)
        await migrate(own, folder / "rows", own.rows_schema)
        await own.open(pool_size=2)
        try:
            await check(own, name, heads, cast(Mapping[str, Mapping[str, object]], rows[name]))
        finally:
            await own.close()


async def check(
    own: Database, name: str, heads: Mapping[str, int], rows: Mapping[str, Mapping[str, object]]
) -> None:
    """Compare one service's rows as they came with those that its facts make now."""
    target = TARGETS[name]
    queries = Queries.load(target.folder / "queries.sql")
    book = with_operations(target.book)
    registry = Registry.of((*target.events, events_pb2.DESCRIPTOR))
    ((journal, head),) = ((one, at) for one, at in heads.items() if one.startswith(f"{name}/"))
    shard = journal.partition("/")[2]
    kept = PostgresJournal(own, registry=registry, book=book, queries=queries, shard=shard)
    columns = {table: cast(Sequence[str], one["columns"]) for table, one in rows.items()}
    connection = await asyncpg.connect(own.dsn, server_settings={"timezone": "UTC"})
    try:
        assert await tables(connection, own.rows_schema, columns) == rows
        done = await rebuild(own, kept, book, queries, target.folder / "migrations" / "rows")
        assert done.folded == head
        assert done.live_hash == done.rebuilt_hash, name
        assert await tables(connection, own.rows_schema, columns) == rows
    finally:
        await connection.close()


async def test_a_bill_of_the_release_is_computed_again_to_the_byte(
    said: Mapping[str, object], database: str, nats_server: NatsServer, tmp_path: Path
) -> None:
    (tmp_path / "keys").mkdir(mode=0o700)
    write_private(tmp_path / "keys" / "admin.uid", f"{said['admin']}\n")
    stored = json_format.ParseDict(said["statement"], billing.Statement())
    assert stored.total_nanos > 0
    async with running(database, nats_server, tmp_path) as platform:
        request = billing.GetStatementRequest(
            parent=stored.project,
            start_time=stored.start_time,
            end_time=stored.end_time,
            cut=stored.cut,
        )
        answer = await platform.call(CostServiceStub(platform.channel).GetStatement, request)
        assert answer.statement == stored
        listed = await platform.call(
            InstanceServiceStub(platform.channel).ListInstances,
            instances.ListInstancesRequest(parent=f"projects/{PROJECT}"),
        )
        assert {one.name.rpartition("/")[2] for one in listed.instances} == {
            "bills",
            "waits",
            "fails",
        }
