"""What PostgreSQL meters of any history is what the pure fold meters, and a planted fault is seen."""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import services.billing
from chassis.commit import execute_writes
from chassis.embedded import Postgres
from chassis.envelope import Meta, Recorded
from chassis.migrations import migrate
from chassis.postgres import Database, Record
from chassis.queries import Queries
from fermion.api.billing import v1 as api
from services.billing import accounts, metering, projection, rating
from services.billing.accounts import Look, Question, Source
from services.billing.consumer import Meter
from services.billing.metering import HOUR_MS, Said, Segment
from tests.unit.services.billing.life import CLUSTERS, LATE_MS, START_MS, Life, histories

ROOM = Path(services.billing.__file__).parent
# What of a piece is compared: who, its run, state, whether it is billed, its book, resources, labels.
Place = tuple[object, ...]

thorough = settings(
    deadline=None,
    max_examples=120,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


class Metered:
    """The tables of billing in a database of their own; each look begins with empty ones."""

    def __init__(self, server: Postgres) -> None:
        self._runner = asyncio.Runner()
        self._database = Database(server.dsn_of("postgres"), "metering_test")
        self._queries = Queries.load(ROOM / "queries.sql")
        self._runner.run(self._open())

    async def _open(self) -> None:
        await self._database.open(pool_size=1)
        for kind, schema in (
            ("state", self._database.schema),
            ("rows", self._database.rows_schema),
        ):
            await migrate(self._database, ROOM / "migrations" / kind, schema)

    def close(self) -> None:
        """Let the database go."""
        self._runner.run(self._database.close())

    def plant(self, correct: str, fault: str) -> None:
        """Put a fault into the function that meters."""
        text = (ROOM / "migrations" / "rows" / "0003_metered_together.sql").read_text()
        assert correct in text
        self._runner.run(self._replace(text.replace(correct, fault)))

    def mend(self) -> None:
        """Have the function as it is written."""
        self._runner.run(
            self._replace((ROOM / "migrations" / "rows" / "0003_metered_together.sql").read_text())
        )

    async def _replace(self, text: str) -> None:
        async with self._database.connection() as connection, connection.transaction():
            # It is there, in the form that the file takes the place of no more.
            text = re.sub("^DROP FUNCTION .*;$", "", text, flags=re.MULTILINE)
            text = text.replace("CREATE FUNCTION", "CREATE OR REPLACE FUNCTION")
            await connection.execute(f'SET LOCAL search_path TO "{self._database.rows_schema}"')
            await connection.execute(text)

    def after(
        self, life: Life, said: Sequence[Said], statement: str, *arguments: object
    ) -> list[Record]:
        """Fold facts in the order given, read what is metered, and undo it."""
        return self._runner.run(self._after(life, said, statement, arguments))

    async def _after(
        self, life: Life, said: Sequence[Said], statement: str, arguments: tuple[object, ...]
    ) -> list[Record]:
        # In pages of one to four, so that rows meet what an earlier page has left of them.
        page = 1 + len(said) % 4
        facts = [recorded(one) for one in said]
        folded = [
            write
            for first in range(0, len(facts), page)
            for write in Meter().write(facts[first : first + page])
        ]
        for number, book in enumerate(life.price_books, 1):
            fact = api.PricesPublished(price_book=book)
            at = Recorded(
                journal="billing/0",
                position=number,
                project_position=number,
                stream="prices/book",
                version=number,
                project="_",
                type=fact.DESCRIPTOR.full_name,
                statement="",
                data=b"",
                message=fact,
                meta=Meta("service:billing"),
                record_time=datetime.now(UTC),
                epoch=1,
            )
            folded += projection.project(at)
        async with self._database.connection() as connection:
            transaction = connection.transaction()
            await transaction.start()
            try:
                await execute_writes(connection, self._queries, folded)
                return list(await connection.fetch(self._queries[statement], *arguments))
            finally:
                await transaction.rollback()


def recorded(said: Said) -> Recorded:
    """A fact as a reader gets it."""
    return Recorded(
        journal=f"executor/{said.cluster}",
        position=said.position,
        project_position=said.position,
        stream=f"replica/{said.message.uid}",
        version=1,
        project="acme",
        type=said.message.DESCRIPTOR.full_name,
        statement="",
        data=b"",
        message=said.message,
        meta=Meta("service:executor"),
        record_time=datetime.now(UTC),
        epoch=1,
    )


@pytest.fixture(scope="module")
def metered(postgres_server: Postgres) -> Iterator[Metered]:
    tables = Metered(postgres_server)
    yield tables
    tables.close()


def by_python(
    life: Life, cap: int, start: int, end: int, cut: int, disputed: Mapping[str, int] = {}
) -> dict[Place, int]:
    """Milliseconds by place and hour, as the pure fold has them; runs of no length count as places."""
    found: Counter[Place] = Counter()
    for history in metering.fold(life.said).values():
        known = metering.asof(history, min(cut, disputed.get(history.uid, cut)))
        if known.subject is None:
            continue
        for one in metering.segments(known, life.books, cap, start, end):
            found[place(one)] += one.end_ms - one.start_ms
    # As a dictionary: a Counter takes what is missing for 0.
    return dict(found)


def place(one: Segment) -> Place:
    sku = one.sku
    return (
        *(one.uid, one.run, one.state, one.billed, one.book, one.start_ms // HOUR_MS),
        *(sku.gpu_type, sku.gpu_milli, sku.cpu_milli, sku.memory_bytes, sku.storage_bytes),
        one.labels,
    )


def by_sql(
    metered: Metered,
    life: Life,
    said: Sequence[Said],
    cap: int,
    start: int,
    end: int,
    cut: int,
    disputed: Mapping[str, int] = {},
) -> dict[Place, int]:
    """The same, as PostgreSQL has it."""
    caps = json.dumps(dict.fromkeys(CLUSTERS, cap))
    cuts = json.dumps({**dict.fromkeys(CLUSTERS, cut), **disputed})
    books = len(life.price_books)
    rows = metered.after(
        *(life, said, "segments", None, None, None),
        *(start, end, caps, cuts, books, HOUR_MS, None),
    )
    found: Counter[Place] = Counter()
    for row in rows:
        key = (
            *(row["uid"], row["run"], row["state"], row["billed"], row["book"]),
            *(row["start_ms"] // HOUR_MS, row["gpu_type"], row["gpu_milli"], row["cpu_milli"]),
            *(row["memory_bytes"], row["storage_bytes"], accounts.labels_of(row["labels"])),
        )
        found[key] += row["end_ms"] - row["start_ms"]
    return dict(found)


WINDOWS = st.tuples(st.integers(START_MS - 50, LATE_MS), st.integers(START_MS - 50, LATE_MS)).map(
    lambda two: (min(two), max(two))
)


@thorough
@given(life=histories(), cap=st.integers(START_MS, LATE_MS), window=WINDOWS)
def test_sql_and_python_meter_the_same(
    metered: Metered, life: Life, cap: int, window: tuple[int, int]
) -> None:
    assert by_sql(metered, life, life.said, cap, *window, 2**62) == by_python(
        life, cap, *window, 2**62
    )


@thorough
@given(life=histories(), window=WINDOWS, cut=st.integers(0, 30), data=st.data())
def test_at_any_cut_they_meter_the_same(
    metered: Metered, life: Life, window: tuple[int, int], cut: int, data: st.DataObject
) -> None:
    # What is disputed is looked at as it was before, whatever the cut of its cluster.
    disputed = data.draw(
        st.dictionaries(st.sampled_from(life.uids), st.integers(0, 30))
        if life.uids
        else st.just({})
    )
    assert by_sql(metered, life, life.said, LATE_MS, *window, cut, disputed) == by_python(
        life, LATE_MS, *window, cut, disputed
    )


@thorough
@given(life=histories(), random=st.randoms(use_true_random=False))
def test_neither_order_nor_repetition_of_facts_matters_to_the_slots(
    metered: Metered, life: Life, random: object
) -> None:
    said = [*life.said, *life.said[: len(life.said) // 2]]
    random.shuffle(said)  # type: ignore[attr-defined]
    ever = (START_MS - 50, LATE_MS, 2**62)
    assert by_sql(metered, life, said, LATE_MS, *ever) == by_python(life, LATE_MS, *ever)


@thorough
@given(life=histories())
def test_lines_of_sums_are_the_lines_of_segments(metered: Metered, life: Life) -> None:
    look = Look(tuple(Source(one, 2**62, LATE_MS) for one in CLUSTERS), {}, life.books)
    asked = Question(START_MS - 50, LATE_MS)
    rows = metered.after(
        *(life, life.said, "lines", None, None, None),
        *(asked.start_ms, asked.end_ms, json.dumps(dict(look.settled)), look.cut),
        *(len(life.books), None, None),
    )
    quantities = [
        quantity
        for history in metering.fold(life.said).values()
        for quantity in rating.quantities(
            history,
            metering.segments(history, life.books, LATE_MS, asked.start_ms, asked.end_ms),
        )
    ]
    summed = rating.lines("acme", [accounts.quantity(row) for row in rows], life.books)
    whole = rating.lines("acme", quantities, life.books)
    assert summed == whole


FAULTS = [
    ("OR k.effective_ms <= p.begin", "OR k.effective_ms < p.begin"),
    ("WHEN r.drain <= p.begin THEN", "WHEN r.drain < p.begin THEN"),
    ("WHERE h.lost <= p.begin", "WHERE h.lost < p.begin"),
    ("p.begin < h.found", "p.begin <= h.found"),
    ("AND s.begin >= f.free_ms", "AND s.begin > f.free_ms"),
    ("AND c.resized AND c.at_ms <= s.begin", "AND c.resized AND c.at_ms < s.begin"),
    ("AND NOT c.resized AND c.at_ms <= s.begin", "AND NOT c.resized AND c.at_ms < s.begin"),
    ("u.end_position <= r.cut", "u.end_position < r.cut"),
]


@pytest.mark.parametrize(("correct", "fault"), FAULTS)
def test_a_planted_fault_is_seen(metered: Metered, correct: str, fault: str) -> None:
    metered.plant(correct, fault)
    try:
        with pytest.raises(AssertionError):
            differ(metered)
    finally:
        metered.mend()


def differ(metered: Metered) -> None:
    """Look for a history on which both do not agree."""

    @settings(thorough, phases=[Phase.generate], max_examples=600, database=None)
    @given(life=histories(), cap=st.integers(START_MS, LATE_MS), cut=st.integers(0, 40))
    def agree(life: Life, cap: int, cut: int) -> None:
        ever = (START_MS - 50, LATE_MS, cut)
        assert by_sql(metered, life, life.said, cap, *ever) == by_python(life, cap, *ever)

    agree()
