"""What was read of logs and not sent yet: in order, and no more of it than fits."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from fermion.api.executor import v1 as api
from services.executor.servicer import CHUNK_BYTES_MAX, CHUNKS_MAX, Outbox

GREAT = 64 * 1024


def chunk(size: int) -> api.LogChunk:
    return api.LogChunk(data=b"x" * size)


async def idle() -> None:
    """Let everybody go on who can."""
    for _ in range(20):
        await asyncio.sleep(0)


@given(st.lists(st.sampled_from((1, GREAT)), max_size=2 * CHUNKS_MAX))
def test_all_of_it_is_taken_in_order_and_no_more_waits_than_fits(sizes: list[int]) -> None:
    async def play() -> None:
        outbox, taken, most = Outbox(), list[int](), 0

        async def read() -> None:
            for place, size in enumerate(sizes):
                await outbox.put(chunk(size), place)
            outbox.close()

        async with asyncio.TaskGroup() as group:
            group.create_task(read())
            await idle()
            while ready := await outbox.take():
                assert len(ready) <= CHUNKS_MAX
                most = max(most, sum(len(one.data) for one, _ in ready))
                taken += [place for _, place in ready]
                await idle()
        assert taken == list(range(len(sizes)))
        assert most < CHUNK_BYTES_MAX + GREAT

    asyncio.run(play())


async def test_who_reads_on_waits_until_what_was_read_is_taken() -> None:
    outbox = Outbox()
    fits = CHUNK_BYTES_MAX // GREAT
    readers = [asyncio.create_task(outbox.put(chunk(GREAT), place)) for place in range(fits + 2)]
    await idle()
    assert [one.done() for one in readers] == [True] * fits + [False] * 2
    assert len(await outbox.take()) == fits
    await idle()
    assert all(one.done() for one in readers)
    outbox.close()
    assert len(await outbox.take()) == 2
    assert await outbox.take() == []
