"""What the doctor finds, and how to mend it."""

from __future__ import annotations

import base64
import json
import os
import socket
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from fermion.api.executor import v1 as executor
from fermion.api.journal import v1 as api
from fermion.api.workload import v1 as workload
from fermion.cli import doctor
from fermion.cli.figures import BOUNDS, Bound, Figures

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)


def jwt(**claims: object) -> str:
    body = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
    return f"e30.{body}.signature"


def test_a_token_holds_until_it_ends() -> None:
    bearer = jwt(exp=(NOW + timedelta(hours=1)).timestamp())
    assert doctor.token(bearer, "", "local", NOW).well
    late = doctor.token(bearer, "", "local", NOW + timedelta(hours=2))
    assert not late.well
    assert "2026-11-24 13:00:00" in late.found
    assert "fermion tokens create" in late.mend


@pytest.mark.parametrize("bearer", ["x", "a.b.c", jwt(), jwt(exp="never"), jwt(exp=1e300)])
def test_what_is_no_token_is_said_to_be_none(bearer: str) -> None:
    assert doctor.token(bearer, "", "local", NOW).found == "it is no signed token"


def test_a_token_that_others_may_read_is_found(tmp_path: Path) -> None:
    file = tmp_path / "jwt"
    file.touch(0o644)
    found = doctor.token(jwt(exp=NOW.timestamp() + 60), str(file), "local", NOW)
    assert not found.well
    assert found.mend == f"chmod 600 {file}"


def test_a_missing_token_names_its_file() -> None:
    missing = doctor.token("", "/none", "local", NOW)
    assert missing.found == "/none cannot be read, or holds none"
    assert "tokens create" not in missing.mend


def test_a_platform_that_runs_holds_its_lock(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    assert doctor.lock(lock).mend == "Start it: fermion up"
    lock.write_text(json.dumps({"pid": os.getpid(), "since": "now"}))
    assert doctor.lock(lock).well
    # No process has this number: the kernel's largest is below it.
    lock.write_text(json.dumps({"pid": 2**30}))
    assert not doctor.lock(lock).well
    lock.write_text("")
    assert not doctor.lock(lock).well


def test_a_state_folder_that_others_may_see_is_found(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    assert not next(doctor.folder(tmp_path)).well
    tmp_path.chmod(0o700)
    assert next(doctor.folder(tmp_path)).well


def test_a_port_is_open_or_not() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        assert doctor.port(address).well
    assert not doctor.port(address).well


def test_what_stands_still_is_found_with_the_command_that_mends_it() -> None:
    halted = api.ReaderProgress(reader="a/b", journal="b/0", position=5, halted="HOLE")
    parked = api.ReaderProgress(reader="c/b", journal="b/0", position=5, parked=2)
    journals = [
        api.JournalStatus(journal="b/0", head=5, published=5, readers=[halted, parked]),
        api.JournalStatus(journal="a/0", head=5, published=-1),
        api.JournalStatus(journal="c/0", head=5, published=5, relay_halted="FENCED"),
    ]
    found = {finding.what: finding for finding in doctor.facts(journals)}
    assert found["journal b/0"].well
    assert "NATS is away" in found["journal a/0"].found
    assert found["journal c/0"].found == "FENCED"
    assert found["reader a/b of b/0"].mend == "fermion journal resume a/b b/0"
    assert "2 parked" in found["reader c/b of b/0"].found
    assert not found["reader c/b of b/0"].well


def test_what_a_journal_has_lost_is_found_with_the_command_that_accepts_it() -> None:
    lost = api.ReaderProgress(
        reader="a/b", journal="b/0", position=5, halted="it has lost its tail", lost_through=9
    )
    journals = [
        api.JournalStatus(
            journal="b/0",
            head=5,
            published=9,
            relay_halted="ends at 9",
            parted=True,
            readers=[lost],
        )
    ]
    found = {finding.what: finding for finding in doctor.facts(journals)}
    for one, says in (("journal b/0", "what was lost"), ("reader a/b of b/0", "up to 9")):
        assert not found[one].well
        assert says in found[one].mend
        assert found[one].mend.endswith("fermion restore --accept")


def figure(name: str, value_milli: int, **labels: str) -> api.Figure:
    return api.Figure(name=f"fermion_{name}", labels=labels, value_milli=value_milli)


def test_the_worst_that_is_out_of_bounds_is_found_with_what_to_do() -> None:
    told = [
        figure("reader_lag_seconds", 60_000, reader="a/b", journal="b/0"),
        figure("reader_lag_seconds", 61_500, reader="c/d", journal="d/0"),
        figure("executor_replicas", 1_000, cluster="k", state="lost"),
        figure("executor_replicas", 9_000, cluster="k", state="running"),
        figure("billing_disputed_streams", 0),
    ]
    found = {one.what: one for one in doctor.bounds(Figures(told))}
    assert (found["reader lag"].well, found["reader lag"].found) == (False, "61 s, c/d of d/0")
    assert (found["unreachable"].well, found["unreachable"].found) == (False, "1, k")
    assert "fermion replicas -p PROJECT" in found["unreachable"].mend
    assert (found["disputes"].well, found["disputes"].found) == (True, "0")
    # What nobody tells is not called well.
    assert found.keys() == {"reader lag", "unreachable", "disputes"}


@pytest.mark.parametrize("bound", BOUNDS, ids=lambda one: one.what)
def test_a_figure_is_well_up_to_its_bound(bound: Bound) -> None:
    for milli, well in ((bound.most * 1000, True), (bound.most * 1000 + 1, False)):
        one = api.Figure(name=bound.figure, labels=bound.labels, value_milli=milli)
        (found,) = doctor.bounds(Figures([one]))
        assert found.well is well


def cluster(
    limits: workload.Capabilities.Limits.ValueType = workload.Capabilities.LIMITS_CGROUP2,
) -> executor.Cluster:
    """A cluster of one machine with two GPUs, which has said all up to five seconds ago."""
    host = workload.Capabilities.Runnable(repository="host")
    jupyter = workload.Capabilities.Runnable(repository="jupyterlab")
    able = workload.Capabilities(cluster_kind="local", limits=limits, images=[host, jupyter])
    gpus = [workload.Node.Gpu(gpu_type="A100", count=2)]
    node = workload.Node(node="here", gpus=gpus, cpu_milli=8000)
    node.memory_bytes, node.storage_bytes = 2**35, 2**40
    found = executor.Cluster(name="clusters/" + "k" * 26, capabilities=able, nodes=[node])
    found.watermark_time.FromDatetime(NOW - timedelta(seconds=5))
    return found


def look(
    found: executor.Cluster, enrolled: bool = True, now: datetime = NOW
) -> dict[str, doctor.Finding]:
    return {one.what: one for one in doctor.runs(found, enrolled, now)}


def test_a_cluster_is_told_with_what_it_has_and_can_honour() -> None:
    found = look(cluster())
    assert all(one.well for one in found.values())
    assert found["cluster"].found == "k" * 26 + " (local)"
    assert found["limits"].found == "control groups, version 2"
    assert found["GPUs"].found == "2 x A100"
    assert found["images"].found == "host, jupyterlab"
    assert found["node here"].found == "8 CPU, 32 GiB memory, 1 TiB disk, 2 x A100"
    assert found["watermark"].found == "5 s behind"


def test_gpus_that_are_not_there_are_called_so() -> None:
    simulated = cluster()
    simulated.capabilities.simulated_gpus = True
    assert "2 x A100; simulated" in look(simulated)["GPUs"].found


@pytest.mark.parametrize("limits", [0, workload.Capabilities.LIMITS_NONE])
def test_a_cluster_that_holds_nothing_down_is_not_well(
    limits: workload.Capabilities.Limits.ValueType,
) -> None:
    assert not look(cluster(limits))["limits"].well


def test_a_cluster_that_is_given_no_work_or_says_nothing_is_found() -> None:
    aside = look(cluster(), enrolled=False)["cluster"]
    assert not aside.well
    assert aside.mend == f"fermion clusters enrol {'k' * 26}"
    late = look(cluster(), now=NOW + timedelta(minutes=2))["watermark"]
    assert (late.well, late.found) == (False, "125 s behind")
    silent = look(executor.Cluster(name="clusters/x"))
    assert not any(silent[one].well for one in ("limits", "images", "nodes", "watermark"))


def test_a_node_that_takes_nothing_new_is_called_so() -> None:
    drained = cluster()
    drained.nodes[0].cordoned = True
    assert "takes nothing new" in look(drained)["node here"].found
