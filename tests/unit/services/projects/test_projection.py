"""The writes that facts of projects become."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given

from chassis.queries import Queries
from services.projects import projection
from tests.unit.services.projects.life import LIVES, Life
from tests.unit.services.statements import misfits

QUERIES = Queries.load(Path(projection.__file__).with_name("queries.sql"))


@given(life=LIVES)
def test_every_write_fits_its_statement(life: Life) -> None:
    writes = [write for record in life.history.records for write in projection.project(record)]
    assert misfits(QUERIES, writes) == []


@given(life=LIVES)
def test_writes_to_members_share_one_key_so_that_their_order_is_kept(life: Life) -> None:
    for record in life.history.records:
        for write in projection.project(record):
            if "member" in write.statement:
                assert write.key == projection.MEMBERS
