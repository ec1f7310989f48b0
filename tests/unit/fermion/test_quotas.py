"""Commands about quotas and clusters, against a platform of a few lines."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from google.rpc import code_pb2
from hypothesis import given
from hypothesis import strategies as st

from fermion.api.projects import v1 as api
from fermion.cli import run, show
from fermion.cli.quotas import KINDS, Wish
from fermion.context import Contexts
from fermion.errors import InvalidArgument
from tests.unit.fermion.platform import Platform, refuse

GIB = 2**30
UID = "01jd3k5v7m2r8q4w6x9y0z1a2b"
ACME = "projects/acme/quota"
EIGHT = api.Limits(gpu_milli={"*": 8000, "A100": 4000}, cpu_milli=64000, workloads={"instance": 10})


@pytest.fixture
def acme(platform: Platform, tmp_path: Path) -> Platform:
    """A platform that the current context is about, in project acme."""
    token = tmp_path / "jwt"
    token.write_text("jwt")
    Contexts().set("local", address=platform.address, token_file=str(token), project="acme")
    return platform


def told(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().out


def sent(platform: Platform) -> api.SetQuotaRequest:
    request = platform.sent("SetQuota")[-1].request
    assert isinstance(request, api.SetQuotaRequest)
    return request


def test_limits_are_set_as_people_write_them(acme: Platform) -> None:
    words = ["--gpu", "A100=8", "--gpu", "*=16", "--cpu", "64", "--memory", "256GiB"]
    more = ["--storage", "1TiB", "--instances", "10", "--workloads", "training=4"]
    assert run(["quotas", "set", "-p", "other", *words, *more]) == 0
    request = sent(acme)
    assert request.quota.name == "projects/other/quota"
    assert request.quota.limits == api.Limits(
        gpu_milli={"A100": 8000, "*": 16000},
        cpu_milli=64000,
        memory_bytes=256 * GIB,
        storage_bytes=1024 * GIB,
        workloads={"instance": 10, "training": 4},
    )


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ([], ACME),
        (["-p", "other"], "projects/other/quota"),
        (["--user", "ada"], "users/ada/quota"),
        (["--user", "users/ada"], "users/ada/quota"),
        (["--default-project"], "projects/-/quota"),
        (["--default-user"], "users/-/quota"),
    ],
)
def test_limits_are_those_of_whom_one_says(
    acme: Platform, words: list[str], name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["quotas", "set", *words, "--cpu", "1"]) == 0
    assert sent(acme).quota.name == name
    assert run(["quotas", "get", *words, "-o", "name"]) == 0
    assert told(capsys).splitlines()[-1] == name


def test_two_scopes_at_once_are_refused(acme: Platform, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["quotas", "set", "-p", "other", "--user", "ada", "--cpu", "1"]) == 2
    printed = capsys.readouterr().err
    assert "--project" in printed
    assert "--user" in printed
    assert not acme.sent("SetQuota")


def test_what_is_not_said_stays_as_it_was_seen(acme: Platform) -> None:
    acme.quotas[ACME] = api.Quota(name=ACME, limits=EIGHT, etag="7")
    assert run(["quotas", "set", "--gpu", "A100=none", "--cpu", "none", "--memory", "1GiB"]) == 0
    request = sent(acme)
    assert request.etag == "7"
    assert request.quota.limits == api.Limits(
        gpu_milli={"*": 8000}, memory_bytes=GIB, workloads={"instance": 10}
    )


def test_who_had_inherited_limits_begins_with_those(acme: Platform) -> None:
    name = "projects/-/quota"
    acme.quotas[name] = api.Quota(name=name, limits=EIGHT, etag="3")
    assert run(["quotas", "set", "--instances", "2"]) == 0
    request = sent(acme)
    assert request.etag == "0"
    assert request.quota.limits.gpu_milli == {"*": 8000, "A100": 4000}
    assert request.quota.limits.workloads == {"instance": 2}


def test_setting_nothing_is_refused(acme: Platform, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["quotas", "set"]) == 2
    assert "--cpu 64" in capsys.readouterr().err
    assert not acme.calls


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["--gpu", "8"], "--gpu A100=8"),
        (["--gpu", "A100=many"], "0.5 or 250m"),
        (["--memory", "much"], "16GiB"),
        (["--storage", "999999999999999TiB"], "more than can be counted"),
        (["--instances", "1.5"], "--instances 10"),
        (["--workloads", "trainning=4"], "Did you mean training?"),
        (["--workloads", "dance=4"], "There are instance"),
    ],
)
def test_what_is_no_limit_is_refused_with_what_to_write(
    acme: Platform, words: list[str], hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["quotas", "set", *words]) == 2
    assert hint in capsys.readouterr().err
    assert not acme.calls


def test_a_dry_run_asks_and_changes_nothing(
    acme: Platform, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["quotas", "set", "--cpu", "8", "--dry-run"]) == 0
    printed = capsys.readouterr()
    assert "Nothing was changed" in printed.err
    assert "CPU           8" in printed.out
    assert sent(acme).validate_only


def test_limits_are_shown_with_whose_they_are(
    acme: Platform, capsys: pytest.CaptureFixture[str]
) -> None:
    acme.quotas[ACME] = api.Quota(name=ACME, limits=EIGHT, etag="7")
    assert run(["quotas", "get"]) == 0
    assert told(capsys).splitlines() == [
        "projects/acme  its own",
        "  GPU           8",
        "  GPU A100      4",
        "  CPU           64",
        "  instances     10",
        "  etag          7",
    ]
    name = "users/-/quota"
    acme.quotas[name] = api.Quota(name=name, limits=api.Limits(memory_bytes=GIB), etag="1")
    assert run(["quotas", "get", "--user", "ada"]) == 0
    inherited = told(capsys)
    assert "users/ada  those of each user without his own" in inherited
    assert "memory        1 GiB" in inherited
    assert run(["quotas", "get", "-p", "free"]) == 0
    assert told(capsys) == (
        "projects/free  those of each project without its own: nothing is bounded\n"
    )


def test_limits_are_listed_on_a_line_each(
    acme: Platform, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["quotas", "list"]) == 0
    assert "No limits are set" in capsys.readouterr().err
    acme.quotas[ACME] = api.Quota(name=ACME, limits=EIGHT, etag="7")
    assert run(["quotas", "list"]) == 0
    head, row = told(capsys).splitlines()
    assert head.split() == ["WHOSE", "GPU", "CPU", "MEMORY", "STORAGE", "WORKLOADS"]
    assert row.split() == ["projects/acme", "*=8,A100=4", "64", "-", "-", "instance=10"]
    assert run(["quotas", "list", "-o", "json"]) == 0
    assert [one["name"] for one in json.loads(told(capsys))] == [ACME]


def test_cleared_limits_show_what_counts_now(
    acme: Platform, capsys: pytest.CaptureFixture[str]
) -> None:
    acme.quotas[ACME] = api.Quota(name=ACME, limits=EIGHT, etag="7")
    assert run(["quotas", "clear", "--etag", "7"]) == 0
    assert "nothing is bounded" in told(capsys)
    request = acme.sent("ClearQuota")[0].request
    assert isinstance(request, api.ClearQuotaRequest)
    assert (request.name, request.etag) == (ACME, "7")


def test_a_field_that_the_platform_refuses_is_told_with_its_option(
    acme: Platform, capsys: pytest.CaptureFixture[str]
) -> None:
    field = "quota.limits.gpu_milli['A 100']"
    rule = "must match the pattern"
    acme.turns.append(lambda _: None)
    acme.turns.append(
        refuse(code_pb2.INVALID_ARGUMENT, "FIELD_INVALID", violations=((field, rule),))
    )
    assert run(["quotas", "set", "--gpu", "A 100=1"]) == 2
    assert f"{field} (--gpu): {rule}" in capsys.readouterr().err


@given(
    st.builds(
        api.Limits,
        gpu_milli=st.dictionaries(st.sampled_from(["*", "A100"]), st.integers(0, 10**6)),
        cpu_milli=st.none() | st.integers(0, 10**6),
        memory_bytes=st.none() | st.integers(0, 2**60),
        workloads=st.dictionaries(st.sampled_from(KINDS), st.integers(0, 10**6)),
    )
)
def test_limits_that_are_set_to_none_are_all_gone(limits: api.Limits) -> None:
    said = Wish(
        gpu=tuple(f"{model}=none" for model in limits.gpu_milli),
        cpu="none",
        memory="none",
        storage="none",
        workloads=tuple(f"{kind}=none" for kind in limits.workloads),
    )
    assert said.on(limits) == api.Limits()
    assert Wish().on(limits) == limits
    assert set(show.amounts(limits)) == {
        *(f"gpu_milli/{model}" for model in limits.gpu_milli),
        *(name for name in show.DIMENSIONS if limits.HasField(name)),
        *(f"workloads/{kind}" for kind in limits.workloads),
    }


def test_every_kind_of_workload_that_the_api_bounds_can_be_said() -> None:
    for kind in KINDS:
        assert Wish(workloads=(f"{kind}=1",)).on(api.Limits()).workloads == {kind: 1}
    with pytest.raises(InvalidArgument):
        Wish(workloads=("dance=1",)).on(api.Limits())


def test_clusters_are_enrolled_listed_and_retired(
    acme: Platform, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["clusters", "list"]) == 0
    assert "nothing can run" in capsys.readouterr().err
    assert run(["clusters", "enrol", UID]) == 0
    assert told(capsys) == f"Work may run on cluster {UID}.\n"
    assert run(["clusters", "list"]) == 0
    head, row = told(capsys).splitlines()
    assert head.split() == ["CLUSTER", "STATE", "ENROLLED", "RETIRED"]
    assert (row.split()[:2], row.split()[-1]) == ([UID, "enrolled"], "-")
    assert run(["clusters", "retire", f"clusters/{UID}"]) == 0
    capsys.readouterr()
    assert run(["clusters", "list", "-o", "json"]) == 0
    assert [one["retired"] for one in json.loads(told(capsys))] == [True]


def test_a_cluster_that_is_nearly_right_is_recognised(
    acme: Platform, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["clusters", "enrol", UID]) == 0
    assert run(["clusters", "retire", f"{UID[:-1]}c"]) == 3
    assert f"Did you mean {UID}?" in capsys.readouterr().err
