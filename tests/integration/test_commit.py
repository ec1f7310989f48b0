"""The group committer on a real PostgreSQL: batches, other processes, lost connections, bad commands."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import asyncpg
import pytest

from chassis import commit
from chassis.commit import Unwritable
from chassis.journal import Advance, Command, Committed, Overtaken, Remembered, Stale
from chassis.postgres import Database
from chassis.refusals import Exhausted, OutcomeUnknown, Unavailable
from chassis.store import PostgresJournal
from tests import diary
from tests.diary import META, MISCOUNTED, RAISES, UNWRITABLE, entry, request, texts
from tests.wire import Cut, wire


@dataclass(slots=True)
class Counted:
    """What was committed, as an observer hears it."""

    batches: list[tuple[int, int]] = field(default_factory=list)

    def committed(self, commands: int, facts: int, waiting: int) -> None:
        """One batch is durable."""
        del waiting
        self.batches.append((commands, facts))


@asynccontextmanager
async def running(journal: PostgresJournal) -> AsyncIterator[PostgresJournal]:
    """Commit while the block runs."""
    committing = asyncio.create_task(journal.run(), name="committer")
    try:
        yield journal
    finally:
        committing.cancel()
        await asyncio.gather(committing, return_exceptions=True)


@pytest.fixture
async def sample(database: str) -> AsyncIterator[Database]:
    """The diary's database."""
    opened = await diary.migrated(database)
    await diary.journal_in(opened).open()
    yield opened
    await opened.close()


def say(*facts: object, **rest: object) -> Command:
    return Command(facts, META, **rest)  # type: ignore[arg-type]


async def rows(database: Database, table: str) -> list[tuple[object, ...]]:
    return [tuple(row) for row in await database.fetch(f"SELECT * FROM {table} ORDER BY 1, 2")]


async def assert_dense(database: Database, facts: int) -> None:
    """Positions, project positions and versions are 1..N, and the heads say so."""
    for counted in (
        "SELECT count(*), max(position), min(position), (SELECT position FROM head) FROM event",
        "SELECT sum(n), sum(m), $1::bigint, sum(h) FROM (SELECT count(*) AS n, max(version) AS m, "
        "(SELECT version FROM stream_head AS s WHERE s.stream = e.stream) AS h "
        "FROM event AS e GROUP BY stream) AS counted",
        "SELECT sum(n), sum(m), $1::bigint, sum(h) FROM (SELECT count(*) AS n, "
        "max(project_position) AS m, "
        "(SELECT position FROM project_head AS s WHERE s.project = e.project) AS h "
        "FROM event AS e GROUP BY project) AS counted",
    ):
        arguments = (facts,) if "$1" in counted else ()
        row = await database.fetchrow(counted, *arguments)
        assert row is not None
        assert [row[0], row[1], row[3]] == [facts] * 3


async def test_commands_of_one_moment_share_a_transaction(sample: Database) -> None:
    counted = Counted()
    async with running(diary.journal_in(sample, counted)) as journal:
        race = (journal.append(say(entry(f"s{n}"), entry(f"s{n}"))) for n in range(50))
        outcomes = await asyncio.gather(*race)
    assert counted.batches == [(50, 100)]
    assert {outcome.position for outcome in outcomes} == {100}
    assert await sample.fetchval("SELECT count(DISTINCT batch) FROM event") == 1
    assert len(await rows(sample, "entry")) == 100


async def test_processes_that_append_at_once_leave_no_hole(sample: Database) -> None:
    journals = [diary.journal_in(sample) for _ in range(3)]
    numbers = itertools.count()

    async def write(journal: PostgresJournal) -> None:
        for _ in range(25):
            stream = f"s{next(numbers) % 7}"
            await journal.append(say(entry(stream), entry("shared", project="other")))

    async with running(journals[0]), running(journals[1]), running(journals[2]):
        await asyncio.gather(*(write(journals[place % 3]) for place in range(12)))
    await assert_dense(sample, 12 * 25 * 2)
    assert len(await rows(sample, "entry")) == 12 * 25 * 2


async def test_a_version_is_won_by_one_of_several_processes(sample: Database) -> None:
    journals = [diary.journal_in(sample) for _ in range(2)]
    async with running(journals[0]), running(journals[1]):
        for version in range(20):
            race = (
                journal.append(say(entry("a"), expected={"a": version})) for journal in journals
            )
            outcomes = await asyncio.gather(*race, return_exceptions=True)
            assert sorted(type(outcome).__name__ for outcome in outcomes) == ["Committed", "Stale"]
    await assert_dense(sample, 20)


async def test_growth_by_another_process_is_seen(sample: Database) -> None:
    waiting, other = diary.journal_in(sample), diary.journal_in(sample)
    async with running(other), asyncio.timeout(5):
        grown = asyncio.create_task(waiting.grown(0, 60))
        await other.append(say(entry("a")))
        await grown
        grown = asyncio.create_task(waiting.grown(1, 60))
        await other.append(say(entry("a")))
        waiting.wake()
        await grown


@pytest.mark.parametrize(
    ("bad", "raised"), [(RAISES, ValueError), (UNWRITABLE, Unwritable), (MISCOUNTED, Unwritable)]
)
async def test_a_command_that_cannot_be_written_fails_alone(
    sample: Database, bad: str, raised: type[Exception]
) -> None:
    async with running(diary.journal_in(sample)) as journal:
        race = (journal.append(say(entry(f"s{n}", bad if n == 3 else "said"))) for n in range(8))
        outcomes = await asyncio.gather(*race, return_exceptions=True)
        assert isinstance(outcomes[3], raised)
        assert sum(isinstance(outcome, Committed) for outcome in outcomes) == 7
        await journal.append(say(entry("after")))
    await assert_dense(sample, 8)
    assert len(await rows(sample, "entry")) == 8


async def test_writes_of_one_row_keep_their_order_in_a_batch(sample: Database) -> None:
    async with running(diary.journal_in(sample)) as journal:
        race = (
            journal.append(
                say(
                    entry(f"s{n}", "open"),
                    entry(f"s{n}", "1"),
                    entry(f"s{n}", "2"),
                    *((entry(f"s{n}", "close"), entry(f"s{n}", "open")) if n % 2 else ()),
                )
            )
            for n in range(4)
        )
        await asyncio.gather(*race)
    assert await rows(sample, "page") == [
        ("s0", "2", 2),
        ("s1", "open", 0),
        ("s2", "2", 2),
        ("s3", "open", 0),
    ]


async def test_a_queue_that_is_full_refuses_at_once(sample: Database) -> None:
    journal = diary.journal_in(sample, queue_max=3)
    waiting = [asyncio.create_task(journal.append(say(entry(f"s{n}")))) for n in range(3)]
    await until(lambda: journal.waiting == 3)
    with pytest.raises(Exhausted) as refused:
        await journal.append(say(entry("one too many")))
    assert refused.value.reason == "COMMIT_QUEUE_FULL"
    async with running(journal):
        await asyncio.gather(*waiting)
    await assert_dense(sample, 3)


async def test_a_batch_is_bounded_in_commands_and_in_bytes(
    sample: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commit, "BATCH_MAX", 4)
    monkeypatch.setattr(commit, "BATCH_BYTES_MAX", 5000)
    counted = Counted()
    journal = diary.journal_in(sample, counted)
    small = [journal.append(say(entry(f"s{n}"))) for n in range(10)]
    large = [journal.append(say(entry(f"l{n}", "x" * 4000))) for n in range(4)]
    waiting = [asyncio.create_task(one) for one in (*small, *large)]
    await until(lambda: journal.waiting == 14)
    async with running(journal):
        await asyncio.gather(*waiting)
    assert [commands for commands, _ in counted.batches] == [4, 4, 4, 2]


async def test_a_caller_who_left_before_the_batch_leaves_nothing(sample: Database) -> None:
    journal = diary.journal_in(sample)
    left = asyncio.create_task(journal.append(say(entry("left"))))
    stayed = asyncio.create_task(journal.append(say(entry("stayed"))))
    await until(lambda: journal.waiting == 2)
    left.cancel()
    await asyncio.gather(left, return_exceptions=True)
    async with running(journal):
        await stayed
    await assert_dense(sample, 1)


async def test_who_still_waits_when_the_service_stops_is_told(sample: Database) -> None:
    journal = diary.journal_in(sample)
    waiting = asyncio.create_task(journal.append(say(entry("a"))))
    async with sample.connection() as connection, connection.transaction():
        await connection.execute("SELECT * FROM head FOR UPDATE")
        async with running(journal):
            await until(lambda: journal.waiting == 0)
            late = asyncio.create_task(journal.append(say(entry("b"))))
            await until(lambda: journal.waiting == 1)
    for told in await asyncio.gather(waiting, late, return_exceptions=True):
        assert isinstance(told, Unavailable)
        assert told.reason == "SHUTTING_DOWN"
    await assert_nothing(sample)


async def test_killed_connections_lose_and_double_nothing(sample: Database) -> None:
    """Each entry states something of its own, so that one committed twice would be seen."""
    kill = (
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
        "WHERE application_name LIKE '%committer%' AND datname = current_database()"
    )
    done: list[Committed] = []

    async def write(journal: PostgresJournal, caller: int) -> None:
        for place in range(40):
            said = entry(f"s{caller}", str(place))
            done.append(await journal.append(say(said, expected={f"s{caller}": place})))

    killed = 0
    async with running(diary.journal_in(sample)) as journal, asyncio.TaskGroup() as group:
        for caller in range(8):
            group.create_task(write(journal, caller))
        while len(done) < 8 * 40 - 8:
            before = len(done)
            found = await sample.fetchval(kill)
            assert isinstance(found, int)
            killed += found
            await until(lambda before=before: len(done) > before + 3)  # type: ignore[misc]
    assert killed >= 5
    await assert_dense(sample, 8 * 40)
    loaded = await journal.load([f"s{caller}" for caller in range(8)])
    for records in loaded.values():
        assert texts(records) == [str(place) for place in range(40)]


@pytest.mark.parametrize("cut", list(Cut))
async def test_a_commit_whose_answer_is_lost_is_settled(sample: Database, cut: Cut) -> None:
    async with wire(sample.dsn) as laid:
        through = Database(laid.dsn, diary.SERVICE)
        await through.open(pool_size=1)
        async with running(diary.journal_in(through)) as journal:
            await journal.append(say(entry("a")))
            laid.cut = cut
            race = (
                journal.append(
                    say(entry(f"s{n}"), expected={f"s{n}": 0}, request=request(str(n)), subject="a")
                )
                for n in range(5)
            )
            outcomes = await asyncio.gather(*race)
            assert laid.cuts == 1
            assert [one.records[0].position for one in outcomes] == [2, 3, 4, 5, 6]
            await journal.append(say(entry("a"), expected={"a": 1}))
        await through.close()
    await assert_dense(sample, 7)
    assert len(await rows(sample, "entry")) == 7


@pytest.mark.parametrize("cut", list(Cut))
async def test_a_commit_without_facts_is_settled_too(sample: Database, cut: Cut) -> None:
    await sample.execute(
        "INSERT INTO checkpoint VALUES ('sample/other', 'other/0', 1, 0, 0, 0, 0, NULL, true)"
    )
    async with wire(sample.dsn) as laid:
        through = Database(laid.dsn, diary.SERVICE)
        await through.open(pool_size=1)
        async with running(diary.journal_in(through)) as journal:
            laid.cut = cut
            moved = Advance("sample/other", "other/0", 1, 0, 3, 0, 3)
            assert await journal.append(say(advance=moved)) == Committed((), 0)
            laid.cut = cut
            assert await journal.append(say(request=request("1"))) == Committed((), 0)
            assert laid.cuts == 2
            with pytest.raises(Overtaken):
                await journal.append(say(advance=moved))
            with pytest.raises(Remembered):
                await journal.append(say(request=request("1")))
        await through.close()
    assert await sample.fetchval("SELECT passed_over FROM checkpoint") == 3


async def test_a_commit_is_unknown_only_where_the_database_stays_away(
    sample: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commit, "AWAY_SECONDS_MAX", 0.3)
    async with wire(sample.dsn) as laid:
        through = Database(laid.dsn, diary.SERVICE)
        await through.open(pool_size=1)

        def down() -> None:
            laid.up = False

        async with running(diary.journal_in(through)) as journal:
            laid.cut, laid.on_cut = Cut.AFTER, down
            with pytest.raises(OutcomeUnknown):
                await journal.append(say(entry("a"), request=request("1"), subject="a"))
            with pytest.raises(Unavailable):
                await journal.append(say(entry("b"), expected={"b": 0}))
            laid.up = True
            with pytest.raises(Remembered):
                await journal.append(say(entry("a"), request=request("1"), subject="a"))
        await through.close()
    await assert_dense(sample, 1)


async def test_a_database_that_is_away_for_a_moment_is_waited_for(sample: Database) -> None:
    async with wire(sample.dsn) as laid:
        through = Database(laid.dsn, diary.SERVICE)
        await through.open(pool_size=1)
        async with running(diary.journal_in(through)) as journal:
            await journal.append(say(entry("a")))
            laid.up = False
            laid.sever()
            waiting = asyncio.create_task(journal.append(say(entry("b"))))
            await until(lambda: journal.waiting == 0)
            assert not waiting.done()
            laid.up = True
            async with asyncio.timeout(10):
                assert (await waiting).position == 2
        await through.close()


async def test_a_journal_restored_under_the_committer_is_seen(sample: Database) -> None:
    async with running(diary.journal_in(sample)) as journal:
        await journal.append(say(entry("a"), entry("a")))
        await sample.execute("DELETE FROM event WHERE position = 2")
        await sample.execute("DELETE FROM entry WHERE version = 2")
        await sample.execute("UPDATE head SET epoch = 2, position = 1")
        await sample.execute("UPDATE stream_head SET version = 1")
        await sample.execute("UPDATE project_head SET position = 1")
        await sample.execute("INSERT INTO epoch (log, epoch, first_position) VALUES ('0', 2, 2)")
        with pytest.raises(Stale):
            await journal.append(say(entry("a"), expected={"a": 2}))
        after = await journal.append(say(entry("a"), expected={"a": 1}))
        page = await journal.read(0, 10)
    assert [(fact.position, fact.epoch) for fact in after.records] == [(2, 2)]
    assert (page.epoch, page.epoch_first) == (2, 2)


async def test_growth_before_a_restore_is_no_growth_after_it(sample: Database) -> None:
    async with running(diary.journal_in(sample)) as journal:
        await journal.append(say(entry("a"), entry("a")))
        await sample.execute("UPDATE head SET epoch = 2, position = 1")
        assert (await journal.head()).position == 1
        grown = asyncio.create_task(journal.grown(1, 60))
        await asyncio.wait([grown], timeout=0.05)
        assert not grown.done()
        await sample.execute("UPDATE head SET position = 2")
        journal.wake()
        async with asyncio.timeout(5):
            await grown


async def test_append_never_scans_tables_that_grew_in_its_session(sample: Database) -> None:
    """Its plans are made while the tables are empty, and must not be kept to their shape then."""
    await sample.execute(
        "INSERT INTO checkpoint VALUES ('sample/other', 'other/0', 1, 0, 0, 0, 0, NULL, true)"
    )
    await sample.execute("INSERT INTO lease VALUES ('work', 'me', 1, 'infinity')")
    scanned = (
        "SELECT relname, seq_tup_read, idx_tup_fetch FROM pg_stat_user_tables "
        "WHERE schemaname = 'sample'"
    )
    batches, commands = 30, 50
    async with running(diary.journal_in(sample)) as journal:

        async def batch(number: int) -> None:
            race = [
                journal.append(
                    say(
                        entry(
                            f"s{number}-{n}", states=f"{number}-{n}", claims={f"{number}-{n}": "1"}
                        ),
                        entry(f"s{number}-{n}"),
                        expected={f"s{number}-{n}": 0},
                        request=request(f"{number}-{n}"),
                        subject=f"s{number}-{n}",
                        writer=("work", 1),
                        advance=Advance("sample/other", "other/0", 1, number, number + 1, 1, 0)
                        if n == 0
                        else None,
                    )
                )
                for n in range(commands)
            ]
            await asyncio.gather(*race)

        for number in range(batches):
            await batch(number)
    await until_stats(sample, batches * commands * 2)
    for row in await sample.fetch(scanned):
        small = row["relname"] in ("head", "epoch", "lease", "checkpoint", "schema_migrations")
        assert small or row["seq_tup_read"] == 0, dict(row)
        # An index used by its first column alone would fetch every row of the log.
        fetched = row["idx_tup_fetch"] or 0
        assert fetched <= 5 * batches * commands, dict(row)


async def assert_nothing(database: Database) -> None:
    assert await database.fetchval("SELECT count(*) FROM event") == 0
    assert await database.fetchval("SELECT position FROM head") == 0


def more_than(found: list[Committed], count: int) -> bool:
    return len(found) > count


async def until(condition: Callable[[], bool]) -> None:
    """Let others run until it is so."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 -- nobody sets an event when a queue grows
            await asyncio.sleep(0.001)


async def until_stats(database: Database, inserted: int) -> None:
    """Statistics come a moment after the session that caused them has ended."""
    async with asyncio.timeout(10):
        while True:
            row = await database.fetchrow(
                "SELECT n_tup_ins FROM pg_stat_user_tables WHERE relname = 'event'"
            )
            if row is not None and row["n_tup_ins"] >= inserted:
                return
            await asyncio.sleep(0.05)


async def test_connections_of_the_committer_are_named(sample: Database) -> None:
    async with running(diary.journal_in(sample)) as journal:
        await journal.append(say(entry("a")))
        admin = await asyncpg.connect(sample.dsn)
        names = await admin.fetch("SELECT application_name FROM pg_stat_activity")
        await admin.close()
    assert "fermion sample committer 0" in [row["application_name"] for row in names]
