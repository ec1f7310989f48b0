"""A watch tells each change once, in order, and can be resumed wherever it was left."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chassis import tail, watch
from chassis.clock import SystemClock
from chassis.envelope import Meta, Recorded
from chassis.journal import Book, Command, Page, Place
from chassis.refusals import Expired, Invalid, Unavailable
from chassis.tasks import end
from chassis.testing.memory import MemoryJournal
from chassis.watch import Change, Kind, Watching, encode
from fermion.api.projects import v1 as api
from tests.people import REGISTRY

SECONDS_MAX = 10.0
NAME = "sample/0"


@dataclass(slots=True)
class Hand:
    """A clock that is set by hand."""

    seconds: float = 0.0

    def now(self) -> datetime:
        return datetime.fromtimestamp(self.seconds, UTC)

    def monotonic(self) -> float:
        return self.seconds


def place(fact: object) -> Place:
    assert isinstance(fact, api.ProjectChanged | api.ProjectDeleted)
    return Place(f"project/{fact.uid}", fact.project)


class Log(MemoryJournal):
    """A journal that counts how often it is read, may be away, and may be restored."""

    reads = 0
    away: Unavailable | None = None

    async def read(self, after: int, limit: int, project: str | None = None) -> Page:
        self.reads += 1
        if self.away is not None:
            raise self.away
        return await super().read(after, limit, project)

    def restore(self) -> None:
        self._epoch += 1


@dataclass(slots=True)
class World:
    """A journal, and the rows that stand beside it: uid to how often it was changed."""

    clock: Hand | SystemClock = field(default_factory=Hand)
    rows: dict[str, int] = field(default_factory=dict)
    epoch: int = 1
    # How often rows were looked up; a lookup waits for this where there is one.
    asked: int = 0
    held: asyncio.Event | None = None
    lost: Unavailable | None = None
    journal: Log = field(init=False)
    watching: Watching[int] = field(init=False)

    def __post_init__(self) -> None:
        book = Book(place, lambda record: ())
        self.journal = Log(NAME, registry=REGISTRY, book=book, clock=self.clock, epoch=self.epoch)
        self.watching = Watching(self.journal, self.clock)

    async def change(self, uid: str, project: str = "acme") -> int:
        self.rows[uid] = self.rows.get(uid, 0) + 1
        fact = api.ProjectChanged(uid=uid, project=project)
        return (await self.journal.append(Command((fact,), Meta("test")))).position

    async def delete(self, uid: str, project: str = "acme") -> int:
        del self.rows[uid]
        fact = api.ProjectDeleted(uid=uid, project=project)
        return (await self.journal.append(Command((fact,), Meta("test")))).position

    def watch(
        self, token: str = "", *, send_initial: bool = False, project: str | None = "acme"
    ) -> AsyncIterator[Change[int]]:
        return self.watching.follow(
            token=token,
            send_initial=send_initial,
            project=project,
            touched=touched,
            current=self.current,
            initial=self.initial,
        )

    async def current(self, uids: Sequence[str]) -> Mapping[str, int]:
        self.asked += 1
        if self.held is not None:
            await self.held.wait()
        if self.lost is not None:
            raise self.lost
        return {uid: self.rows[uid] for uid in uids if uid in self.rows}

    async def initial(self) -> Sequence[tuple[str, int]]:
        return sorted(self.rows.items())


@asynccontextmanager
async def followed(world: World) -> AsyncIterator[None]:
    """Let the loop run that reads for all who watch."""
    reading = asyncio.create_task(world.watching.run())
    try:
        yield
    finally:
        await end(reading)


@pytest.fixture
async def world() -> AsyncIterator[World]:
    world = World()
    async with followed(world):
        yield world


async def settled() -> None:
    """Let everything come to where it waits."""
    for _ in range(50):
        await asyncio.sleep(0)


def touched(fact: Recorded) -> str | None:
    return fact.stream.split("/")[1]


async def take(changes: AsyncIterator[Change[int]], count: int) -> list[Change[int]]:
    found: list[Change[int]] = []
    async with asyncio.timeout(SECONDS_MAX):
        while len(found) < count:
            found.append(await anext(changes))
    return found


def shown(changes: Sequence[Change[int]]) -> list[tuple[Kind, str, int | None]]:
    return [(change.kind, change.uid, change.resource) for change in changes]


async def test_a_watch_without_a_token_begins_now(world: World) -> None:
    await world.change("a")
    changes = world.watch()
    waiting = asyncio.create_task(take(changes, 1))
    await asyncio.sleep(0)
    await world.change("b")
    assert shown(await waiting) == [(Kind.UPDATED, "b", 1)]


async def test_what_is_there_comes_first_and_ends_with_a_bookmark(world: World) -> None:
    await world.change("a")
    position = await world.change("b")
    changes = await take(world.watch(send_initial=True), 3)
    assert shown(changes) == [
        (Kind.INITIAL, "a", 1),
        (Kind.INITIAL, "b", 1),
        (Kind.BOOKMARK, "", None),
    ]
    # Who loses the watch among the initial rows has to ask for all of them again.
    assert [change.token for change in changes] == ["", "", encode(NAME, 1, position)]


async def test_a_resource_that_changed_often_is_sent_once_as_it_is(world: World) -> None:
    start = encode(NAME, 1, 0)
    for uid in ("a", "b", "a"):
        await world.change(uid)
    await world.delete("b")
    last = await world.change("a")
    changes = await take(world.watch(start), 2)
    assert shown(changes) == [(Kind.DELETED, "b", None), (Kind.UPDATED, "a", 3)]
    assert changes[-1].token == encode(NAME, 1, last)


async def test_other_projects_are_not_seen(world: World) -> None:
    await world.change("theirs", "other")
    await world.change("ours")
    assert shown(await take(world.watch(encode(NAME, 1, 0)), 1)) == [(Kind.UPDATED, "ours", 1)]


async def test_silence_ends_with_a_bookmark_that_moves_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(watch, "BOOKMARK_SECONDS", 0.1)
    world = World(clock=SystemClock())
    async with followed(world):
        changes = world.watch()
        waiting = asyncio.create_task(take(changes, 1))
        await asyncio.sleep(0)
        # Another project's fact does not even wake it, and moves the place.
        position = await world.change("theirs", "other")
        (bookmark,) = await waiting
        assert bookmark == Change(Kind.BOOKMARK, "", None, encode(NAME, 1, position))


async def test_many_watches_read_what_is_new_once(world: World) -> None:
    watches = [asyncio.create_task(take(world.watch(), 2)) for _ in range(100)]
    await settled()
    world.journal.reads = world.asked = 0
    await world.change("a")
    await settled()
    await world.change("b")
    for one in watches:
        assert shown(await one) == [(Kind.UPDATED, "a", 1), (Kind.UPDATED, "b", 1)]
    assert world.asked == 2
    assert world.journal.reads <= 4


async def test_who_watches_something_small_does_not_wait_until_thousands_have_heard(
    world: World,
) -> None:
    told: list[str] = []

    async def hears(project: str) -> None:
        await take(world.watch(project=project), 1)
        told.append(project)

    async with asyncio.TaskGroup() as group:
        for _ in range(20 * tail.TOLD_AT_ONCE):
            group.create_task(hears("big"))
        group.create_task(hears("small"))
        await settled()
        await world.change("a", "big")
        await world.change("b", "small")
    assert told.index("small") < len(told) // 2


async def test_a_watch_whose_reading_of_rows_is_broken_off_takes_none_with_it(
    world: World,
) -> None:
    world.held = asyncio.Event()
    first, second = (asyncio.create_task(take(world.watch(), 1)) for _ in range(2))
    await settled()
    await world.change("a")
    await settled()
    first.cancel()
    await settled()
    world.held.set()
    assert shown(await second) == [(Kind.UPDATED, "a", 1)]


async def test_rows_that_cannot_be_read_are_asked_for_once_and_all_hear_why(world: World) -> None:
    world.held = asyncio.Event()
    world.lost = Unavailable("DATABASE_UNAVAILABLE", "gone")
    watches = [asyncio.create_task(take(world.watch(), 1)) for _ in range(3)]
    await settled()
    await world.change("a")
    await settled()
    world.held.set()
    for one in watches:
        with pytest.raises(Unavailable):
            await one
    assert world.asked == 1


async def test_a_watch_that_is_not_taken_from_holds_little_and_misses_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tail, "HELD_BYTES_MAX", 5 * (tail.FACT_BYTES + 100))
    slow, quick = world.watch(), world.watch()
    taking = asyncio.create_task(take(slow, 1)), asyncio.create_task(take(quick, 1))
    await settled()
    await world.change("first")
    assert [shown(await one) for one in taking] == [[(Kind.UPDATED, "first", 1)]] * 2
    for number in range(20):
        await world.change(f"i{number}")
        assert shown(await take(quick, 1)) == [(Kind.UPDATED, f"i{number}", 1)]
    assert [change.uid for change in await take(slow, 20)] == [f"i{number}" for number in range(20)]
    await world.change("last")
    assert shown(await take(slow, 1)) == shown(await take(quick, 1)) == [(Kind.UPDATED, "last", 1)]


async def test_where_the_journal_cannot_be_read_every_watch_hears_why(world: World) -> None:
    watches = [asyncio.create_task(take(world.watch(), 1)) for _ in range(3)]
    await settled()
    world.journal.away = Unavailable("DATABASE_UNAVAILABLE", "gone")
    await world.change("a")
    for one in watches:
        with pytest.raises(Unavailable):
            await one
    world.journal.away = None
    waiting = asyncio.create_task(take(world.watch(), 1))
    await settled()
    await world.change("b")
    assert shown(await waiting) == [(Kind.UPDATED, "b", 1)]


async def test_a_journal_that_is_restored_under_them_ends_every_watch(world: World) -> None:
    watches = [asyncio.create_task(take(world.watch(), 1)) for _ in range(3)]
    await settled()
    world.journal.restore()
    await world.change("a")
    for one in watches:
        with pytest.raises(Expired):
            await one


async def test_a_token_of_another_lineage_has_expired() -> None:
    world = World(epoch=2)
    await world.change("a")
    with pytest.raises(Expired) as error:
        await take(world.watch(encode(NAME, 1, 1)), 1)
    assert error.value.reason == "RESUME_TOKEN_EXPIRED"


@pytest.mark.parametrize("position", [-1, 7])
async def test_a_token_of_a_place_that_never_was_is_no_restore(position: int) -> None:
    world = World(epoch=2)
    await world.change("a")
    with pytest.raises(Invalid) as error:
        await take(world.watch(encode(NAME, 2, position)), 1)
    assert error.value.reason == "RESUME_TOKEN_INVALID"
    assert str(error.value) == f"resume_token names position {position} of {NAME}, which ends at 1."


@pytest.mark.parametrize(
    "token",
    [
        "no token",
        encode("other/0", 1, 0),
        base64.urlsafe_b64encode(b'["sample/0","1",0]').decode(),
        base64.urlsafe_b64encode(b"[" * 100).decode(),
    ],
)
async def test_what_is_no_token_of_this_journal_is_refused(token: str) -> None:
    with pytest.raises(Invalid) as error:
        await take(World().watch(token), 1)
    assert error.value.reason == "RESUME_TOKEN_INVALID"
    assert error.value.arguments == {"field": "resume_token", "value": token}


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), min_size=1, max_size=12),
    st.lists(st.integers(1, 3), max_size=6),
)
def test_whoever_is_cut_off_anywhere_ends_with_the_present_rows(
    steps: list[tuple[str, bool]], cuts: list[int]
) -> None:
    world = World()

    async def live() -> None:
        seen, token = dict[str, int](), encode(NAME, 1, 0)
        moves = iter(steps)
        for cut in [*cuts, 0]:
            for uid, goes in islice(moves, 2) if cut else moves:
                if goes and uid in world.rows:
                    await world.delete(uid)
                else:
                    await world.change(uid)
            head = (await world.journal.head()).position
            told = 0
            async with aclosing(world.watch(token)) as changes:  # type: ignore[type-var]
                while token != encode(NAME, 1, head) and not (cut and told == cut):
                    change = await anext(changes)
                    token, told = change.token, told + 1
                    if change.kind is Kind.DELETED:
                        seen.pop(change.uid, None)
                    elif change.resource is not None:
                        seen[change.uid] = change.resource
        assert seen == world.rows

    async def follow() -> None:
        async with followed(world):
            await live()

    asyncio.run(follow())
