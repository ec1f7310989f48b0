"""The cluster in memory as tests of the executor lead it by hand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from fermion.api.workload import v1 as api
from services.executor.observation import Phase, ReplicaObservation
from tests.memory_cluster import MemoryCluster, VirtualClock, World

TURNS = 20


@pytest.fixture
async def world() -> AsyncIterator[World]:
    """Mains begin when they are let, and mind when they are told to end."""
    there = World(VirtualClock(), starts=False, obedient=False)
    yield there
    await there.end()


def work(**group: object) -> api.Workload:
    usual = {"image": api.Image(repository="host"), "command": ["anything"], "replicas": 1}
    return api.Workload(uid="wkl_1", groups=[api.Group(**{**usual, **group})])  # type: ignore[arg-type]


async def seen(world: World) -> ReplicaObservation:
    """Let everything happen that needs no time, and look."""
    for _ in range(TURNS):
        await asyncio.sleep(0)
    (found,) = (await MemoryCluster(world).list()).replicas
    return found


async def test_a_main_begins_when_it_is_let_and_ends_when_it_is_said(world: World) -> None:
    await MemoryCluster(world).apply(work(), {"": 1})
    first = await seen(world)
    assert (first.phase, first.runs) == (Phase.PREPARING, ())
    world.start(first.uid)
    assert (await seen(world)).phase is Phase.RUNNING
    world.clock.advance(5)
    world.exit(first.uid, 3, "out of ideas")
    found = await seen(world)
    (run,) = found.runs
    assert found.phase is Phase.ENDED
    assert (run.exit, run.exit_report) == (3, "out of ideas")
    assert run.end is not None
    assert run.end.at - run.start.at == timedelta(seconds=5)


async def test_a_kill_and_the_end_of_memory_are_told_apart(world: World) -> None:
    restart = api.RestartPolicy(mode=api.RestartPolicy.MODE_ALWAYS, backoff=timedelta(seconds=10))
    await MemoryCluster(world).apply(work(restart=restart), {"": 1})
    uid = (await seen(world)).uid
    world.start(uid)
    await seen(world)
    world.kill(uid)
    assert (await seen(world)).phase is Phase.BACKOFF
    world.clock.advance(10)
    assert (await seen(world)).phase is Phase.RUNNING
    world.oom(uid)
    first, second = (await seen(world)).runs
    assert (first.signal, first.reason) == (9, None)
    assert second.reason is not None
    assert second.reason.code == "OOM_KILLED"


async def test_what_is_lost_proves_nothing_until_it_is_found(world: World) -> None:
    await MemoryCluster(world).apply(work(), {"": 1})
    uid = (await seen(world)).uid
    world.start(uid)
    await seen(world)
    world.clock.advance(5)
    world.lose(uid)
    lost = world.now()
    world.clock.advance(60)
    found = await seen(world)
    assert found.proof == lost
    assert found.gaps[0].found is None
    world.find(uid)
    found = await seen(world)
    assert found.proof == world.now()
    assert found.gaps[0].found is not None
    assert found.gaps[0].found.at - found.gaps[0].lost.at == timedelta(seconds=60)


async def test_what_minds_is_killed_at_the_deadline(world: World) -> None:
    cluster = MemoryCluster(world)
    await cluster.apply(work(), {"": 1})
    uid = (await seen(world)).uid
    world.start(uid)
    await seen(world)
    deadline = world.now() + timedelta(seconds=30)
    await cluster.drain(uid, api.CAUSE_USER_STOP, deadline)
    world.clock.advance(29)
    assert (await seen(world)).phase is Phase.RUNNING
    world.clock.advance(1)
    (run,) = (await seen(world)).runs
    assert run.signal == 9
    assert run.end is not None
    assert run.end.at == deadline


async def test_readiness_is_what_a_test_says(world: World) -> None:
    checks = api.Probes(readiness=api.Probe(command=["ask"]))
    await MemoryCluster(world).apply(work(probes=checks), {"": 1})
    uid = (await seen(world)).uid
    world.start(uid)
    assert (await seen(world)).ready is False
    world.make_ready(uid)
    assert (await seen(world)).ready is True


async def test_what_vanished_is_not_told_of(world: World) -> None:
    await MemoryCluster(world).apply(work(), {"": 1})
    uid = (await seen(world)).uid
    world.vanish(uid)
    assert (await MemoryCluster(world).list()).replicas == ()
