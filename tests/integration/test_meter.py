"""The meter's rows are those of a straight fold, wherever it was stopped and whatever was folded anew."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Generator, Sequence
from contextlib import suppress
from itertools import count, islice
from typing import Any

from chassis.commit import execute_writes
from chassis.envelope import Recorded
from fermion.api.workload import v1 as workload
from services.billing.consumer import Meter
from tests.lives import begun, lives, subject
from tests.meter import QUERIES, Metering, fold_straight, metering, rows_of
from tests.sample import running
from tests.servers import CLUSTER
from tests.unit.services.billing.life import NOON_MS, stamp

AWAY = "01jd3k5v7m2r8q4w6x9y0z1a2c"
SECONDS_MAX = 20.0


class Stopping:
    """Awaits a coroutine, and cancels it where it awaits something for the n-th time."""

    def __init__(self, whole: Coroutine[Any, Any, None], place: int) -> None:
        self._whole = whole
        self._place = place

    def __await__(self) -> Generator[Any, Any, None]:
        task, steps, awaits = asyncio.current_task(), self._whole.__await__(), 0
        assert task is not None
        with suppress(StopIteration):
            waits = steps.send(None)
            while True:
                awaits += 1
                if awaits == self._place:
                    asyncio.get_running_loop().call_soon(task.cancel)
                try:
                    yield waits
                except BaseException as error:
                    waits = steps.throw(error)
                else:
                    waits = steps.send(None)


async def stopped_at(tables: Metering, place: int, head: int) -> bool:
    """Run a reader until it awaits for the n-th time; False where it has read all before that."""
    reader = tables.reader()

    async def run() -> None:
        await Stopping(reader.run(), place)

    async with running(reader._lease.run()):
        reading = asyncio.create_task(run(), name="stopped")
        reached = asyncio.create_task(reader.reached(head, SECONDS_MAX), name="reached")
        await asyncio.wait({reading, reached}, return_when=asyncio.FIRST_COMPLETED)
        stopped = reading.done()
        for task in (reading, reached):
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
    return stopped


async def assert_straight(tables: Metering, facts: Sequence[Recorded]) -> None:
    """The rows are what the facts come to, each folded once and in order."""
    straight = await fold_straight(tables.database, facts)
    assert all(straight.values()), "some table was never folded into"
    assert await rows_of(tables.database) == straight


async def test_a_meter_that_is_stopped_at_any_await_goes_on_where_it_was(database: str) -> None:
    said = lives(10_000, NOON_MS)
    async with metering(database) as tables:
        in_flight, places = 0, set()
        for place in count(1):
            await tables.say(islice(said, 40))
            stopped = await stopped_at(tables, place, await tables.head())
            row = await tables.database.fetchrow("SELECT max(position) AS at FROM checkpoint")
            places.add(row["at"] if row is not None else None)
            if not stopped:
                break
            in_flight += 1
        # Before, inside and behind transactions: what one had left behind was the next one's.
        assert in_flight > 10
        assert len(places) > 2
        await tables.say(islice(said, 2000))
        async with tables.reading() as reader:
            assert await reader.reached(await tables.head(), SECONDS_MAX)
        await assert_straight(tables, await tables.facts())
        counts = await tables.database.fetchrow("SELECT * FROM checkpoint")
        assert counts is not None
        assert counts["folded"] + counts["passed_over"] == counts["position"]
        assert counts["passed_over"] > 0


async def test_a_restored_journal_is_folded_anew_and_no_other_clusters_rows_go(
    database: str,
) -> None:
    async with metering(database) as tables:
        await tables.say(islice(lives(1000, NOON_MS), 3000))
        head = await tables.head()
        async with tables.reading() as reader:
            assert await reader.reached(head, SECONDS_MAX)
        elsewhere = await _say_elsewhere(tables)
        assert len(await rows_of(tables.database)) > 0
        # As from a backup: shorter, of another lineage, and then other facts than there were.
        await _restore(tables, head - 500)
    async with metering(database) as tables:
        await tables.say(islice(lives(2000, NOON_MS + 1), 4000, 4900))
        async with tables.reading() as reader:
            assert await reader.reached(await tables.head(), SECONDS_MAX)
        facts = await tables.facts()
        assert len(facts) == head - 500 + 900
        straight = await fold_straight(tables.database, [*elsewhere, *facts])
        assert await rows_of(tables.database) == straight
        assert [row[0] for row in straight["cluster"]] == sorted((CLUSTER, AWAY))


async def _say_elsewhere(tables: Metering) -> Sequence[Recorded]:
    """Fold what another cluster has said, as its reader would."""
    (pattern,) = (await tables.executor.read(0, 1)).records
    facts = [
        *begun(subject("away"), NOON_MS, NOON_MS + 5),
        workload.ReplicaLost(uid="rep_away", n=1, project="acme"),
        workload.ReplicaRelabelled(uid="rep_away", n=1, project="acme"),
        workload.ReplicaRunCorrected(uid="rep_away", n=1, project="acme"),
        workload.ReplicaRunMissed(uid="rep_away", from_run=1, to_run=2, project="acme"),
        workload.WorkloadFinished(uid="wkl_away", project="acme"),
        workload.VolumeBound(uid="vol_away", subject=subject("away")),
        workload.ProofOfLife(cluster=AWAY, until_time=stamp(NOON_MS), except_replicas=["rep_away"]),
    ]
    said = [
        Recorded(
            journal=f"executor/{AWAY}",
            position=position,
            project_position=position,
            stream="replica/rep_away",
            version=position,
            project="acme",
            type=fact.DESCRIPTOR.full_name,
            statement="",
            data=b"",
            message=fact,
            meta=pattern.meta,
            record_time=pattern.record_time,
            epoch=1,
        )
        for position, fact in enumerate(facts, start=1)
    ]
    async with tables.database.connection() as connection, connection.transaction():
        await execute_writes(connection, QUERIES, Meter().write(said))
    return said


async def _restore(tables: Metering, position: int) -> None:
    """Make the executor's journal what a backup of it holds."""
    async with tables.database.connection() as connection, connection.transaction():
        await connection.execute("SET LOCAL search_path TO executor")
        await connection.execute("DELETE FROM event WHERE position > $1", position)
        await connection.execute("UPDATE head SET position = $1, epoch = 2", position)
        await connection.execute("INSERT INTO epoch VALUES ($1, 2, $2)", CLUSTER, position + 1)
        for table, key, number in (
            ("stream_head", "stream", "version"),
            ("project_head", "project", "position"),
        ):
            await connection.execute(f"DELETE FROM {table}")
            await connection.execute(
                f"INSERT INTO {table} (log, {key}, {number})"
                f" SELECT log, {key}, count(*) FROM event GROUP BY log, {key}"
            )
