"""What a cluster promises, held against the one in memory and the one of this machine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from google.protobuf.duration_pb2 import Duration

from chassis import ids
from fermion.api.workload import v1 as api
from services.executor.cluster import Gone, LogEntry, Session, Unhonoured
from services.executor.observation import Phase, ReplicaObservation
from tests.conformance.cluster_stand import (
    Stand,
    end_all,
    in_memory,
    later,
    on_this_machine,
    replica_of,
)

MIB = 2**20


@pytest.fixture(params=["memory", "local"])
async def stand(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Stand]:
    """Both clusters, one after the other."""
    if request.param == "memory":
        async with in_memory() as there:
            yield there
    else:
        async with on_this_machine(tmp_path) as here:
            yield here


def group(command: Sequence[str], role: str = "", replicas: int = 1, **rest: object) -> api.Group:
    usual = {
        "image": api.Image(repository="host"),
        "resources": api.Resources(cpu_milli=500, memory_bytes=256 * MIB),
    }
    return api.Group(  # type: ignore[misc]
        role=role,
        replicas=replicas,
        min_replicas=replicas,
        command=command,
        **{**usual, **rest},
    )


def work(*groups: api.Group, name: str = "lab", **rest: object) -> api.Workload:
    return api.Workload(  # type: ignore[misc]
        uid=ids.workload(f"inst_{name}", "", 1),
        owner=f"projects/acme/instances/{name}",
        owner_uid=f"inst_{name}",
        attempt=1,
        project="acme",
        user="user_ada",
        kind=api.KIND_INSTANCE,
        groups=groups,
        grace=Duration(seconds=30),
        **rest,
    )


def again(mode: str, most: int = 0, backoff_ms: int = 100) -> api.RestartPolicy:
    return api.RestartPolicy(
        mode=api.RestartPolicy.Mode.Value(f"MODE_{mode}"),
        restarts_max=most,
        backoff=timedelta(milliseconds=backoff_ms),
    )


def check(failures: int = 2, **what: object) -> api.Probe:
    return api.Probe(  # type: ignore[misc]
        period=timedelta(milliseconds=50),
        timeout=Duration(seconds=5),
        failure_threshold=failures,
        success_threshold=1,
        **what,
    )


async def apply(stand: Stand, wanted: api.Workload) -> None:
    replicas = {group.role: group.replicas for group in wanted.groups}
    await stand.cluster.apply(wanted, replicas)


async def ran(
    stand: Stand, wanted: api.Workload, role: str = "", rank: int = 0
) -> ReplicaObservation:
    """Wait for a replica's end."""

    async def ended() -> ReplicaObservation | None:
        found = await replica_of(stand, wanted.uid, role, rank)
        return found if found.phase is Phase.ENDED else None

    return await stand.until(ended)


async def runs(
    stand: Stand, wanted: api.Workload, role: str = "", rank: int = 0
) -> ReplicaObservation:
    """Wait until a replica's main runs."""

    async def running() -> ReplicaObservation | None:
        found = await replica_of(stand, wanted.uid, role, rank)
        return found if found.phase is Phase.RUNNING and found.runs[-1].end is None else None

    return await stand.until(running)


async def waits(stand: Stand, wanted: api.Workload, code: str, role: str = "") -> None:
    """Wait until a replica does not run for a reason."""

    async def waiting() -> bool:
        found = await replica_of(stand, wanted.uid, role)
        return found.reason is not None and found.reason.code == code

    await stand.until(waiting)


async def printed(stand: Stand, uid: str, line: str) -> None:
    """Wait until a replica has printed a line."""

    async def there() -> bool:
        return line in (await text(stand, uid)).splitlines()

    await stand.until(there)


async def entries(stand: Stand, uid: str, **how: object) -> list[LogEntry]:
    return [entry async for entry in stand.cluster.logs(uid, **how)]  # type: ignore[arg-type]


async def text(stand: Stand, uid: str, **how: object) -> str:
    return b"".join(entry.data for entry in await entries(stand, uid, **how)).decode()


async def run_once(stand: Stand, *steps: str, **rest: object) -> ReplicaObservation:
    wanted = work(group(stand.command(*steps), **rest))
    await apply(stand, wanted)
    return await ran(stand, wanted)


async def heard(session: Session, stream: int = 1) -> str:
    return b"".join([data async for of, data in session.output() if of == stream]).decode()


# What is made, and what is not.


async def test_a_replica_is_made_once_however_often_it_is_asked_for(stand: Stand) -> None:
    wanted = work(group(stand.command("stay")))
    await asyncio.gather(*(apply(stand, wanted) for _ in range(3)))
    first = await runs(stand, wanted)
    await apply(stand, wanted)
    listing = await stand.cluster.list()
    assert [one.uid for one in listing.replicas] == [first.uid]
    assert (first.workload, first.role, first.rank) == (wanted.uid, "", 0)
    assert first.uid.startswith("rep_")
    assert first.scheduled.at <= first.runs[0].start.at


async def test_a_listing_tells_up_to_when_it_has_all(stand: Stand) -> None:
    wanted = work(group(stand.command("stay")))
    await apply(stand, wanted)
    found = await runs(stand, wanted)
    before = stand.now()
    listing = await stand.cluster.list()
    assert before <= listing.began
    assert listing.told is None or listing.told <= listing.began
    assert found.proof is not None
    assert found.runs[0].start.at <= found.proof


async def test_replicas_of_a_group_have_ranks_and_names_that_do_not_move(stand: Stand) -> None:
    wanted = work(group(stand.command("stay"), replicas=1))
    await apply(stand, wanted)
    first = await runs(stand, wanted)
    wanted.groups[0].replicas = 3
    await apply(stand, wanted)
    await runs(stand, wanted, rank=2)
    found = (await stand.cluster.list()).replicas
    assert sorted(one.rank for one in found) == [0, 1, 2]
    assert first.uid in {one.uid for one in found}


async def test_fewer_replicas_end_nobody(stand: Stand) -> None:
    wanted = work(group(stand.command("stay"), replicas=2))
    await apply(stand, wanted)
    await runs(stand, wanted, rank=1)
    await stand.cluster.apply(wanted, {"": 1})
    assert (await runs(stand, wanted, rank=1)).phase is Phase.RUNNING


async def test_a_workload_that_was_closed_gets_nothing(stand: Stand) -> None:
    wanted = work(group(stand.command("stay")))
    await stand.cluster.close(wanted.uid)
    await stand.cluster.close(wanted.uid)
    await apply(stand, wanted)
    assert (await stand.cluster.list()).replicas == ()


async def test_what_ran_is_not_made_again_until_it_is_forgotten(stand: Stand) -> None:
    wanted = work(group(stand.command("exit:0")))
    await apply(stand, wanted)
    first = await ran(stand, wanted)
    await apply(stand, wanted)
    assert (await ran(stand, wanted)).uid == first.uid
    await stand.cluster.forget(first.uid)
    assert (await stand.cluster.list()).replicas == ()
    await apply(stand, wanted)
    assert (await ran(stand, wanted)).uid != first.uid


async def test_what_runs_is_not_forgotten(stand: Stand) -> None:
    wanted = work(group(stand.command("stay")))
    await apply(stand, wanted)
    found = await runs(stand, wanted)
    await stand.cluster.forget(found.uid)
    await stand.cluster.forget("rep_00000000000000000000000000")
    assert (await runs(stand, wanted)).uid == found.uid


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("groups[0].image", {"image": api.Image(repository="nobody/knows")}),
        ("groups[0].identity", {"identity": api.Identity(role="viewer")}),
        ("groups[0].secret_refs", {"secret_refs": [api.SecretRef(env="A", secret="b")]}),
        ("groups[0].companions", {"companions": [api.Companion(name="c")]}),
        ("groups[0].preemptible", {"preemptible": True}),
        ("groups[0].purchase", {"purchase": api.PURCHASE_RESERVED_ONLY}),
        ("groups[0].ports[0].public", {"ports": [api.Port(name="web", number=80, public=True)]}),
        ("groups[0].resources.gpu_milli", {"resources": api.Resources(gpu_milli=500)}),
    ],
)
async def test_what_cannot_be_honoured_is_refused_by_name(
    stand: Stand, field: str, change: dict[str, object]
) -> None:
    with pytest.raises(Unhonoured) as refused:
        await apply(stand, work(group(stand.command("stay"), **change)))
    assert refused.value.field == field
    assert refused.value.reason.code in ("IMAGE_NOT_HONOURED", "FIELD_NOT_HONOURED")
    assert (await stand.cluster.list()).replicas == ()


async def test_it_says_what_it_can_and_what_it_has(stand: Stand) -> None:
    can = await stand.cluster.capabilities()
    assert {"probes", "ranks", "volumes"} == set(can.features)
    assert "host" in {image.repository for image in can.images}
    assert can.simulated_gpus
    (node,) = await stand.cluster.nodes()
    assert node.cpu_milli >= 1000
    assert node.memory_bytes > 0
    assert [(gpu.gpu_type, gpu.count) for gpu in node.gpus] == [("SIM-GPU", 2)]
    assert len(stand.cluster.uid) == 26


# Runs and their ends.


@pytest.mark.parametrize(("steps", "code", "signal"), [
    (("exit:0",), 0, 0),
    (("exit:3",), 3, 0),
    (("kill:9",), 0, 9),
    (("kill:15",), 0, 15),
])  # fmt: skip
async def test_an_end_tells_code_or_signal(
    stand: Stand, steps: Sequence[str], code: int, signal: int
) -> None:
    found = await run_once(stand, *steps)
    (run,) = found.runs
    assert (run.ordinal, run.exit, run.signal, run.reason) == (0, code, signal, None)
    assert run.end is not None
    assert run.end.evidence == api.EVIDENCE_CLASS_RECORDED
    assert run.start.at <= run.end.at
    assert found.proof is None


async def test_times_are_whole_milliseconds(stand: Stand) -> None:
    found = await run_once(stand, "exit:0")
    assert found.runs[0].end is not None
    times = (found.scheduled.at, found.runs[0].start.at, found.runs[0].end.at)
    assert [at.microsecond % 1000 for at in times] == [0, 0, 0]


async def test_what_cannot_be_started_says_so(stand: Stand) -> None:
    wanted = work(group(["no-such-program"]))
    await apply(stand, wanted)
    (run,) = (await ran(stand, wanted)).runs
    assert run.exit == 127
    assert run.reason is not None
    assert run.reason.code == "START_FAILED"


async def test_a_program_says_a_word_about_its_end(stand: Stand) -> None:
    found = await run_once(stand, "report:out of ideas", "exit:4")
    assert found.runs[0].exit_report == "out of ideas"


async def test_a_failure_is_run_again_after_a_wait_that_doubles(stand: Stand) -> None:
    found = await run_once(stand, "exit:1", restart=again("ON_FAILURE", most=2, backoff_ms=200))
    assert [run.ordinal for run in found.runs] == [0, 1, 2]
    waited = []
    for before, after in zip(found.runs, found.runs[1:], strict=False):
        assert before.end is not None
        waited.append((after.start.at - before.end.at).total_seconds())
    assert waited[0] >= 0.199
    assert waited[1] >= 0.399


async def test_while_it_waits_it_says_that_it_crashed(stand: Stand) -> None:
    wanted = work(group(stand.command("exit:1"), restart=again("ALWAYS", backoff_ms=60_000)))
    await apply(stand, wanted)
    await waits(stand, wanted, "CRASH_LOOP_BACKOFF")
    found = await replica_of(stand, wanted.uid)
    assert found.phase is Phase.BACKOFF
    assert found.proof is None


@pytest.mark.parametrize(("mode", "steps", "count"), [
    ("NEVER", ("exit:1",), 1),
    ("ON_FAILURE", ("exit:0",), 1),
    ("ON_FAILURE", ("kill:9",), 2),
    ("ALWAYS", ("exit:0",), 2),
])  # fmt: skip
async def test_it_is_run_again_by_the_rule(
    stand: Stand, mode: str, steps: Sequence[str], count: int
) -> None:
    found = await run_once(stand, *steps, restart=again(mode, most=1, backoff_ms=10))
    assert len(found.runs) == count


async def test_too_much_memory_is_told_from_a_kill(stand: Stand) -> None:
    if not stand.limited:
        pytest.skip("memory is not held down here")
    small = api.Resources(memory_bytes=48 * MIB)
    found = await run_once(stand, f"grow:{160 * MIB}", "exit:0", resources=small)
    (run,) = found.runs
    assert run.signal == 9
    assert run.reason is not None
    assert run.reason.code == "OOM_KILLED"


# Told to end.


async def test_a_stop_says_why_and_then_tells_the_first_process(stand: Stand) -> None:
    wanted = work(group(stand.command("obedient:7", "print:up", "stay"), restart=again("ALWAYS")))
    await apply(stand, wanted)
    found = await runs(stand, wanted)
    await printed(stand, found.uid, "up")
    await stand.cluster.drain(found.uid, api.CAUSE_BUDGET, later(stand, 60))
    (run,) = (await ran(stand, wanted)).runs
    assert (run.exit, run.signal) == (7, 0)
    assert '"cause": "BUDGET"' in await text(stand, found.uid)


async def test_what_does_not_end_is_killed_at_the_first_deadline(stand: Stand) -> None:
    wanted = work(group(stand.command("stubborn", "child", "print:up", "stay")))
    await apply(stand, wanted)
    found = await runs(stand, wanted)
    await printed(stand, found.uid, "up")
    deadline = later(stand, 0.5)
    await stand.cluster.drain(found.uid, api.CAUSE_USER_STOP, deadline)
    await stand.cluster.drain(found.uid, api.CAUSE_DELETE, later(stand, 600))
    (run,) = (await ran(stand, wanted)).runs
    assert run.signal == 9
    assert run.end is not None
    assert (run.end.at - deadline).total_seconds() > -0.02
    assert await stand.processes(found.uid) == 0


async def test_a_deadline_that_has_passed_kills_at_once(stand: Stand) -> None:
    wanted = work(group(stand.command("stubborn", "print:up", "stay")))
    await apply(stand, wanted)
    found = await runs(stand, wanted)
    await printed(stand, found.uid, "up")
    await stand.cluster.drain(found.uid, api.CAUSE_USER_STOP, later(stand, -5))
    assert (await ran(stand, wanted)).runs[0].signal == 9


async def test_a_stop_ends_the_wait_for_the_next_run(stand: Stand) -> None:
    wanted = work(group(stand.command("exit:1"), restart=again("ALWAYS", backoff_ms=60_000)))
    await apply(stand, wanted)
    await waits(stand, wanted, "CRASH_LOOP_BACKOFF")
    found = await replica_of(stand, wanted.uid)
    await stand.cluster.drain(found.uid, api.CAUSE_USER_STOP, later(stand, 60))
    assert len((await ran(stand, wanted)).runs) == 1


async def test_what_was_told_to_end_before_it_began_never_begins(stand: Stand) -> None:
    wanted = work(group(stand.command("stay"), mounts=[mount()]))
    await apply(stand, wanted)
    await waits(stand, wanted, "VOLUME_NOT_BOUND")
    found = await replica_of(stand, wanted.uid)
    await stand.cluster.drain(found.uid, api.CAUSE_USER_STOP, later(stand, 60))
    ended = await ran(stand, wanted)
    assert ended.runs == ()
    assert ended.reason is not None


async def test_a_stop_of_what_is_not_there_is_no_error(stand: Stand) -> None:
    found = await run_once(stand, "exit:0")
    await stand.cluster.drain(found.uid, api.CAUSE_USER_STOP, later(stand, 1))
    await stand.cluster.forget(found.uid)
    await stand.cluster.drain(found.uid, api.CAUSE_USER_STOP, later(stand, 1))


async def test_nothing_is_left_of_what_ended_by_itself(stand: Stand) -> None:
    found = await run_once(stand, "child", "child", "exit:0")
    assert await stand.processes(found.uid) == 0


# Groups.


async def test_ranks_begin_when_all_of_them_are_bound(stand: Stand) -> None:
    wanted = work(
        group(stand.command("stay"), "leader"),
        group(stand.command("stay"), "worker", 2, mounts=[mount()]),
        rendezvous=api.RENDEZVOUS_RANKS,
    )
    await apply(stand, wanted)
    await waits(stand, wanted, "RANKS_MISSING", "leader")
    assert (await replica_of(stand, wanted.uid, "leader")).runs == ()
    await stand.cluster.bind(volume())
    for role, rank in (("leader", 0), ("worker", 0), ("worker", 1)):
        await runs(stand, wanted, role, rank)


async def test_ranks_find_each_other_at_one_place(stand: Stand) -> None:
    steps = ("env:FERMION_RENDEZVOUS", "env:FERMION_RANKS_LEADER", "env:FERMION_RANKS_WORKER")
    wanted = work(
        group(stand.command(*steps, "env:FERMION_RANK"), "leader"),
        group(stand.command(*steps, "env:FERMION_RANK"), "worker", 2),
        rendezvous=api.RENDEZVOUS_RANKS,
    )
    await apply(stand, wanted)
    said = []
    for role, rank in (("leader", 0), ("worker", 0), ("worker", 1)):
        found = await ran(stand, wanted, role, rank)
        *places, own = (await text(stand, found.uid)).splitlines()
        assert own == f"FERMION_RANK={rank}"
        said.append(places)
    assert said[0] == said[1] == said[2]
    rendezvous, leader, worker = (line.partition("=")[2] for line in said[0])
    assert rendezvous == leader
    assert len({leader, *worker.split(",")}) == 3


# What a replica finds.


async def test_a_replica_finds_what_is_promised_and_nothing_of_the_platforms(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FERMION_POSTGRES_DSN", "secret")
    monkeypatch.setenv("FERMION_TOKEN", "secret")
    ports = [api.Port(name="web-ui", number=80)]
    env = [api.EnvVar(name="OWN", value="at $(FERMION_PORT_WEB_UI) of $(FERMION_NOBODY)")]
    steps = (
        "names",
        "env:OWN",
        "env:FERMION_WORKLOAD",
        "print:$(FERMION_RANK)",
        "env:FERMION_GPUS",
    )
    found = await run_once(stand, *steps, ports=ports, env=env)
    names, own, workload, rank, gpus = (await text(stand, found.uid)).splitlines()
    assert set(names.split()) - {"LC_CTYPE"} == {
        *("FERMION_PROJECT", "FERMION_OWNER", "FERMION_WORKLOAD", "FERMION_ATTEMPT"),
        *("FERMION_ROLE", "FERMION_RANK", "FERMION_REPLICAS", "FERMION_REPLICA"),
        *("FERMION_NOTICE_FILE", "FERMION_EXIT_FILE", "FERMION_ROOT", "FERMION_GPUS"),
        *("FERMION_PORT_WEB_UI", "CUDA_VISIBLE_DEVICES", "OWN", "PATH", "HOME", "LANG"),
    }
    port = found.addresses["web-ui"].rpartition(":")[2]
    assert own == f"OWN=at {port} of $(FERMION_NOBODY)"
    assert workload == f"FERMION_WORKLOAD={found.workload}"
    assert (rank, gpus) == ("0", "FERMION_GPUS=")


async def test_replicas_that_ask_for_one_port_get_one_each(stand: Stand) -> None:
    ports = [api.Port(name="web", number=8888)]
    wanted = work(group(stand.command("stay"), replicas=3, ports=ports))
    await apply(stand, wanted)
    found = [(await runs(stand, wanted, rank=rank)).addresses["web"] for rank in range(3)]
    assert len(set(found)) == 3


async def test_a_port_is_kept_over_runs(stand: Stand) -> None:
    ports = [api.Port(name="web", number=8888)]
    steps = ("env:FERMION_PORT_WEB", "exit:1")
    found = await run_once(
        stand, *steps, ports=ports, restart=again("ON_FAILURE", most=1, backoff_ms=10)
    )
    said = (await text(stand, found.uid)).splitlines()
    assert len(said) == 2
    assert len(set(said)) == 1


async def test_each_gpu_is_held_by_one(stand: Stand) -> None:
    one = api.Resources(gpu_milli=1000, gpu_type="SIM-GPU")
    wanted = work(group(stand.command("env:FERMION_GPUS", "stay"), replicas=3, resources=one))
    await apply(stand, wanted)

    async def settled() -> Sequence[ReplicaObservation] | None:
        found = (await stand.cluster.list()).replicas
        running = [one for one in found if one.phase is Phase.RUNNING]
        reasons = [one.reason.code for one in found if one.reason]
        return running if len(running) == 2 and reasons == ["GPUS_TAKEN"] else None

    running = await stand.until(settled)
    assert running[0].sku.gpu_type == "SIM-GPU"
    for replica in running:
        await stand.until(lambda uid=replica.uid: text(stand, uid))  # type: ignore[misc]
    said = {(await text(stand, replica.uid)).strip() for replica in running}
    assert said == {"FERMION_GPUS=0", "FERMION_GPUS=1"}
    await stand.cluster.drain(running[0].uid, api.CAUSE_USER_STOP, stand.now())

    async def taken_over() -> bool:
        found = (await stand.cluster.list()).replicas
        return [one.phase for one in found].count(Phase.RUNNING) == 2

    await stand.until(taken_over)


async def test_it_tells_how_ports_are_opened(stand: Stand) -> None:
    ports = [
        api.Port(name="web", number=80, protocol=api.Port.PROTOCOL_HTTP),
        api.Port(name="raw", number=81, protocol=api.Port.PROTOCOL_TCP),
    ]
    wanted = work(group(stand.command("stay"), ports=ports))
    await apply(stand, wanted)
    found = await runs(stand, wanted)
    opened = await stand.cluster.access(found.uid)
    assert opened["web"] == f"http://{found.addresses['web']}/"
    assert opened["raw"] == found.addresses["raw"]
    await end_all(stand)
    with pytest.raises(Gone):
        await stand.cluster.access(found.uid)


# Checks.


async def test_it_is_ready_when_its_check_passes_and_not_before(stand: Stand) -> None:
    ports = [api.Port(name="web", number=80)]
    probes = api.Probes(readiness=check(http_path="/", port="web"))
    steps = ("sleep:0.2", "serve:web")
    wanted = work(group(stand.command(*steps), ports=ports, probes=probes))
    await apply(stand, wanted)
    first = await runs(stand, wanted)
    assert first.ready is False
    assert first.reason is not None
    await until_ready(stand, wanted, True)
    await stand.renew()
    assert (await replica_of(stand, wanted.uid)).ready is True


async def test_it_is_unready_while_its_check_fails(stand: Stand) -> None:
    ports = [api.Port(name="web", number=80)]
    probes = api.Probes(readiness=check(http_path="/", port="web"))
    wanted = work(group(stand.command("serve:web"), ports=ports, probes=probes))
    await apply(stand, wanted)
    await until_ready(stand, wanted, True)
    found = await replica_of(stand, wanted.uid)
    async with stand.cluster.execute(
        found.uid, stand.command("append:sick=x"), tty=False
    ) as session:
        await stand.until(lambda: done(session))
    await until_ready(stand, wanted, False)
    assert (await replica_of(stand, wanted.uid)).phase is Phase.RUNNING


async def test_what_is_not_alive_is_run_again(stand: Stand) -> None:
    ports = [api.Port(name="web", number=80)]
    probes = api.Probes(
        startup=check(100, port="web"), liveness=check(command=stand.command("exit:1"))
    )
    wanted = work(
        group(
            stand.command("serve:web"),
            ports=ports,
            probes=probes,
            restart=again("ON_FAILURE", most=1, backoff_ms=10),
        )
    )
    await apply(stand, wanted)
    found = await ran(stand, wanted)
    codes = [run.reason.code for run in found.runs if run.reason]
    assert codes == ["LIVENESS_FAILED", "LIVENESS_FAILED"]


async def test_what_never_comes_up_is_ended(stand: Stand) -> None:
    ports = [api.Port(name="web", number=80)]
    probes = api.Probes(startup=check(port="web"))
    found = await run_once(stand, "stay", ports=ports, probes=probes)
    (run,) = found.runs
    assert run.reason is not None
    assert run.reason.code == "STARTUP_FAILED"


async def until_ready(stand: Stand, wanted: api.Workload, ready: bool) -> None:
    async def as_wanted() -> bool:
        return (await replica_of(stand, wanted.uid)).ready is ready

    await stand.until(as_wanted)


async def done(session: Session) -> bool:
    waiting = asyncio.ensure_future(session.wait())
    finished, _ = await asyncio.wait((waiting,), timeout=0.05)
    waiting.cancel()
    return bool(finished)


# Logs.


async def test_a_log_is_read_from_any_place_on(stand: Stand) -> None:
    found = await run_once(stand, "print:one", "error:two", "print:three")
    whole = await entries(stand, found.uid)
    everything = b"".join(entry.data for entry in whole)
    assert sorted(everything.splitlines()) == [b"one", b"three", b"two"]
    assert {entry.stream for entry in whole} == {1, 2}
    assert whole[-1].offset == len(everything)
    assert {entry.lost for entry in whole} == {0}
    for place in range(len(everything) + 1):
        assert (await text(stand, found.uid, after=place)).encode() == everything[place:]


async def test_a_log_tells_runs_apart(stand: Stand) -> None:
    restart = again("ON_FAILURE", most=1, backoff_ms=10)
    found = await run_once(stand, "env:FERMION_RANK", "exit:1", restart=restart)
    assert await text(stand, found.uid) == "FERMION_RANK=0\n" * 2
    assert [entry.run for entry in await entries(stand, found.uid)] == [0, 1]
    assert await text(stand, found.uid, run=1) == "FERMION_RANK=0\n"


async def test_the_last_lines_of_a_log_are_found(stand: Stand) -> None:
    found = await run_once(stand, "print:a", "print:b", "print:c", "raw:d")
    for lines, expected in ((0, ""), (1, "d"), (2, "c\nd"), (4, "a\nb\nc\nd"), (9, "a\nb\nc\nd")):
        place = await stand.cluster.log_tail(found.uid, lines)
        assert await text(stand, found.uid, after=place) == expected


async def test_a_log_is_followed_to_the_end_of_its_replica(stand: Stand) -> None:
    wanted = work(group(stand.command("print:up", "stubborn", "stay")))
    await apply(stand, wanted)
    found = await runs(stand, wanted)
    following = asyncio.create_task(text(stand, found.uid, follow=True), name="following")
    await printed(stand, found.uid, "up")
    assert not following.done()
    await stand.cluster.drain(found.uid, api.CAUSE_USER_STOP, stand.now())
    await ran(stand, wanted)

    async def over() -> bool:
        return following.done()

    await stand.until(over)
    assert following.result() == "up\n"


async def test_a_log_outlives_its_replica(stand: Stand) -> None:
    found = await run_once(stand, "print:still here")
    await stand.cluster.forget(found.uid)
    await stand.renew()
    assert await text(stand, found.uid, follow=True) == "still here\n"
    assert await stand.cluster.log_tail(found.uid, 0) == len("still here\n")


async def test_nobody_has_printed_under_a_name_that_is_not_known(stand: Stand) -> None:
    with pytest.raises(Gone):
        await text(stand, "rep_00000000000000000000000000")


# Inside.


async def test_a_command_runs_inside_with_its_code_and_both_streams(stand: Stand) -> None:
    wanted = work(group(stand.command("stay")))
    await apply(stand, wanted)
    found = await runs(stand, wanted)
    command = stand.command("print:out", "error:err", "env:FERMION_REPLICA", "exit:5")
    async with stand.cluster.execute(found.uid, command, tty=False) as session:
        said = [part async for part in session.output()]
        assert await session.wait() == 5
    assert {stream for stream, _ in said} == {1, 2}
    out = b"".join(data for stream, data in said if stream == 1).decode()
    assert out == f"out\nFERMION_REPLICA={found.uid}\n"
    assert await text(stand, found.uid) == ""


async def test_a_command_inside_reads_what_it_is_given(stand: Stand) -> None:
    wanted = work(group(stand.command("stay")))
    await apply(stand, wanted)
    found = await runs(stand, wanted)
    async with stand.cluster.execute(found.uid, stand.command("echo"), tty=False) as session:
        await session.write(b"one\n")
        await session.write(b"two\n")
        await session.close_input()
        assert await heard(session) == "one\ntwo\n"
        assert await session.wait() == 0


async def test_a_command_inside_has_a_terminal_of_the_asked_size(stand: Stand) -> None:
    wanted = work(group(stand.command("stay")))
    await apply(stand, wanted)
    found = await runs(stand, wanted)
    command = stand.command("size", "resized")
    async with stand.cluster.execute(found.uid, command, tty=True, rows=30, columns=99) as session:
        said = ""
        async for _, data in session.output():
            said += data.decode()
            if said.replace("\r", "").endswith("waiting\n"):
                await session.resize(40, 120)
        assert said.split() == ["30x99", "waiting", "40x120"]
        assert await session.wait() == 0


async def test_a_command_that_is_left_is_killed(stand: Stand) -> None:
    wanted = work(group(stand.command("print:up", "stay")))
    await apply(stand, wanted)
    found = await runs(stand, wanted)
    await printed(stand, found.uid, "up")
    before = await stand.processes(found.uid)
    async with stand.cluster.execute(found.uid, stand.command("stubborn", "stay"), tty=True):
        pass
    assert await stand.processes(found.uid) == before


async def test_a_command_inside_ends_with_its_replica(stand: Stand) -> None:
    wanted = work(group(stand.command("stay")))
    await apply(stand, wanted)
    found = await runs(stand, wanted)
    command = stand.command("stubborn", "print:in", "stay")
    async with stand.cluster.execute(found.uid, command, tty=False) as session:
        async for _, data in session.output():
            assert data == b"in\n"
            break
        await stand.cluster.drain(found.uid, api.CAUSE_USER_STOP, stand.now())
        await ran(stand, wanted)
        assert await session.wait() == 128 + 9
    assert await stand.processes(found.uid) == 0


async def test_nothing_runs_inside_of_what_does_not_run(stand: Stand) -> None:
    found = await run_once(stand, "exit:0")
    for uid in (found.uid, "rep_00000000000000000000000000"):
        with pytest.raises(Gone):
            async with stand.cluster.execute(uid, stand.command("exit:0"), tty=False):
                pass


# Volumes.


def volume(name: str = "data") -> api.Volume:
    return api.Volume(uid=ids.derived("vol", name), project="acme", size_bytes=MIB)


def mount(name: str = "data", path: str = "/workspace") -> api.Mount:
    source = api.Mount.Volume(volume_uid=volume(name).uid, size_bytes=MIB)
    return api.Mount(path=path, volume=source)


async def test_a_volume_is_bound_once(stand: Stand) -> None:
    first = await stand.cluster.bind(volume())
    await stand.renew()
    again = await stand.cluster.bind(volume())
    assert again == first
    assert first.since.at <= stand.now()


async def test_what_lies_on_a_volume_outlives_its_replica(stand: Stand) -> None:
    await stand.cluster.bind(volume())
    for attempt in ("one", "two"):
        wanted = work(
            group(stand.command(f"append:log={attempt} ", "show:log"), mounts=[mount()]),
            name=attempt,
        )
        await apply(stand, wanted)
        found = await ran(stand, wanted)
    assert await text(stand, found.uid) == "one two \n"


async def test_a_deleted_volume_is_gone_for_ever(stand: Stand) -> None:
    await stand.cluster.bind(volume())
    gone = await stand.cluster.delete(volume().uid)
    await stand.renew()
    assert await stand.cluster.delete(volume().uid) == gone
    with pytest.raises(Unhonoured) as refused:
        await stand.cluster.bind(volume())
    assert refused.value.reason.code == "VOLUME_DELETED"
    never = await stand.cluster.delete(volume("never").uid)
    assert never.at >= gone.at


# Use.


async def test_it_tells_what_a_replica_uses(stand: Stand) -> None:
    wanted = work(group(stand.command("spin:0.3", "print:done", "stay")))
    await apply(stand, wanted)
    found = await runs(stand, wanted)
    await printed(stand, found.uid, "done")
    used = (await stand.cluster.usage())[found.uid]
    assert used.cpu_seconds >= 0.25
    assert used.memory_bytes > 0
    assert used.gpu_milli is None
    await end_all(stand)
    assert await stand.cluster.usage() == {}


# Who looks, and who watches.


async def test_another_process_sees_the_same_and_goes_on(stand: Stand) -> None:
    wanted = work(group(stand.command("stay")))
    await apply(stand, wanted)
    before = await runs(stand, wanted)
    await stand.renew()
    after = await runs(stand, wanted)
    assert (after.uid, after.scheduled, after.runs) == (before.uid, before.scheduled, before.runs)
    await stand.cluster.drain(after.uid, api.CAUSE_USER_STOP, stand.now())
    assert (await ran(stand, wanted)).runs[0].end is not None


async def test_who_loses_his_witness_ends_at_the_last_proof(stand: Stand) -> None:
    wanted = work(group(stand.command("child", "print:up", "stay")))
    await apply(stand, wanted)
    found = await runs(stand, wanted)
    await printed(stand, found.uid, "up")
    await stand.lose_witness(found.uid)
    killed = stand.now()
    ended = await ran(stand, wanted)
    (run,) = ended.runs
    assert run.end is not None
    assert run.end.evidence == api.EVIDENCE_CLASS_LAST_PROOF
    assert run.start.at <= run.end.at <= killed
    assert run.signal == 9
    assert run.reason is not None
    assert run.reason.code == "WITNESS_LOST"
    assert await stand.processes(found.uid) == 0


async def test_who_loses_his_witness_is_run_again_by_the_rule(stand: Stand) -> None:
    restart = again("ON_FAILURE", most=3, backoff_ms=10)
    wanted = work(group(stand.command("stay"), restart=restart))
    await apply(stand, wanted)
    first = await runs(stand, wanted)
    await stand.lose_witness(first.uid)

    async def second() -> ReplicaObservation | None:
        found = await replica_of(stand, wanted.uid)
        return found if len(found.runs) == 2 else None

    found = await stand.until(second)
    assert found.runs[0].end is not None
    assert found.runs[0].end.at <= found.runs[1].start.at


async def test_who_waits_for_a_change_is_told(stand: Stand) -> None:
    wanted = work(group(stand.command("sleep:0.2", "exit:0")))
    await apply(stand, wanted)
    await runs(stand, wanted)
    waiting = asyncio.create_task(stand.cluster.changed(1e6), name="waiting")

    async def told() -> bool:
        return waiting.done()

    await stand.until(told)
    waiting = asyncio.create_task(stand.cluster.changed(0.01), name="waiting")
    await stand.until(told)


def moments(replica: ReplicaObservation) -> list[datetime]:
    found = [replica.scheduled.at]
    for run in replica.runs:
        assert run.end is not None
        found += [run.start.at, run.end.at]
    return found


async def test_runs_do_not_overlap(stand: Stand) -> None:
    restart = again("ALWAYS", most=4, backoff_ms=1)
    found = await run_once(stand, "exit:0", restart=restart)
    assert len(found.runs) == 5
    assert moments(found) == sorted(moments(found))
