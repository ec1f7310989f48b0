"""What the local cluster reads of its machine: GPUs, limits, paths, ports."""

from __future__ import annotations

from pathlib import Path

import pytest

from fermion.api.workload import v1 as api
from services.executor import gpus, ground, limits
from services.executor.cluster_local import passed_on
from services.executor.limits import Limits

ASKED = api.Resources(cpu_milli=1500, memory_bytes=2**20)


def driver(folder: Path, answer: str) -> str:
    """A program that answers as a driver's does."""
    path = folder / "smi"
    path.write_text(f"#!/bin/sh\ncat <<'END'\n{answer}\nEND\n")
    path.chmod(0o755)
    return str(path)


def test_gpus_are_what_the_driver_tells(tmp_path: Path) -> None:
    program = driver(
        tmp_path, "NVIDIA A100-SXM4-80GB, 570.1\nNVIDIA A100-SXM4-80GB, 570.1\nTesla T4, 570.1"
    )
    found = gpus.found(program)
    assert found.models == ("A100-SXM4-80GB", "A100-SXM4-80GB", "Tesla-T4")
    assert found.driver == "570.1"
    assert found.counted() == {"A100-SXM4-80GB": 2, "Tesla-T4": 1}
    assert not found.simulated
    assert found.of("Tesla-T4") == ["2"]
    assert found.of("") == ["0", "1"]
    assert found.of("H100") == []


def test_a_machine_without_a_driver_has_no_gpu(tmp_path: Path) -> None:
    assert gpus.found(str(tmp_path / "nothing")).models == ()


def test_a_driver_that_fails_has_no_gpu(tmp_path: Path) -> None:
    path = Path(driver(tmp_path, "x"))
    path.write_text("#!/bin/sh\nexit 9\n")
    assert gpus.found(str(path)).models == ()


def test_use_of_a_gpu_is_told_where_it_is_measured(tmp_path: Path) -> None:
    program = driver(tmp_path, "0, 37, 1024\n1, [N/A], [N/A]")
    assert gpus.used(program) == {"0": gpus.GpuUse(370, 2**30)}


def test_simulated_gpus_say_so() -> None:
    found = gpus.simulated(3)
    assert found.simulated
    assert found.of("SIM-GPU") == ["0", "1", "2"]


def test_limits_by_version_2_are_one_group() -> None:
    bases = {"memory": Path("/g"), "cpu": Path("/g")}
    held = Limits(api.Capabilities.LIMITS_CGROUP2, "uid", bases)
    assert list(held.words("r", ASKED)) == [
        ("cgroup", "/g/fermion-uid/r"),
        ("oom", "/g/fermion-uid/r/memory.events"),
        ("limit", "/g/fermion-uid/cgroup.subtree_control=+memory +cpu"),
        ("limit", "/g/fermion-uid/r/memory.max=1048576"),
        ("limit", "/g/fermion-uid/r/memory.swap.max=0"),
        ("limit", "/g/fermion-uid/r/cpu.max=150000 100000"),
    ]


def test_limits_by_version_1_are_a_group_of_each_kind() -> None:
    bases = {"memory": Path("/m"), "cpu": Path("/c"), "cpuacct": Path("/c")}
    held = Limits(api.Capabilities.LIMITS_CGROUP1, "uid", bases)
    assert list(held.words("r", ASKED)) == [
        ("cgroup", "/m/fermion-uid/r"),
        ("cgroup", "/c/fermion-uid/r"),
        ("oom", "/m/fermion-uid/r/memory.oom_control"),
        ("limit", "/m/fermion-uid/r/memory.limit_in_bytes=1048576"),
        ("limit", "/c/fermion-uid/r/cpu.cfs_period_us=100000"),
        ("limit", "/c/fermion-uid/r/cpu.cfs_quota_us=150000"),
    ]


def test_without_groups_memory_is_watched() -> None:
    held = limits.without_groups("uid")
    assert held.groups("r") == []
    assert dict(held.words("r", ASKED)) == {
        "memory_watched": "1048576",
        "data_bytes": str(4 * 1048576),
    }


def test_what_is_not_asked_for_is_not_limited() -> None:
    assert list(limits.without_groups("uid").words("r", api.Resources())) == []
    held = Limits(api.Capabilities.LIMITS_CGROUP2, "uid", {"memory": Path("/g"), "cpu": Path("/g")})
    said = [value for name, value in held.words("r", api.Resources()) if name == "limit"]
    assert said == ["/g/fermion-uid/cgroup.subtree_control=+memory +cpu"]


def test_the_probe_finds_something_and_leaves_nothing() -> None:
    held = limits.probe("uid-of-a-test")
    assert held.kind in (
        api.Capabilities.LIMITS_RLIMITS,
        api.Capabilities.LIMITS_CGROUP1,
        api.Capabilities.LIMITS_CGROUP2,
    )
    assert held.names() == set()
    assert [base for base in held.bases.values() if list(base.glob("fermion-probe-*"))] == []


def test_a_cluster_has_one_uid_for_ever(tmp_path: Path) -> None:
    root = tmp_path / "cluster"
    first = ground.cluster_uid(root)
    assert len(first) == 26
    assert ground.cluster_uid(root) == first
    assert [path.name for path in root.iterdir()] == ["uid"]


def test_a_uid_that_somebody_else_made_first_stands(tmp_path: Path) -> None:
    (tmp_path / "uid").write_text("01kb0000000000000000000000")
    assert ground.cluster_uid(tmp_path) == "01kb0000000000000000000000"


def test_ports_are_below_those_that_the_kernel_gives() -> None:
    first, count = ground.ports()
    lowest = int(ground.EPHEMERAL.read_text().split()[0])
    assert first > 1024
    assert first + count <= max(lowest, 32_000)


def test_the_platforms_own_programs_are_not_the_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.prefix", "/venv")
    monkeypatch.setenv("PATH", "/venv/bin:/usr/bin::/bin")
    assert ground.search_path() == "/usr/bin:/bin"


def test_a_shim_is_given_what_building_needs_and_no_secret() -> None:
    environment = {
        "PATH": "/bin",
        "PIP_CERT": "c",
        "https_proxy": "p",
        "FERMION_POSTGRES_DSN": "secret",
        "AWS_SECRET_ACCESS_KEY": "secret",
    }
    assert passed_on(environment) == {"PATH": "/bin", "PIP_CERT": "c", "https_proxy": "p"}
