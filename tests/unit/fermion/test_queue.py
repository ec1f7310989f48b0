"""What waits, why, for how long, and what is held: as the client asks for it and people read it."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from google.rpc import code_pb2
from hypothesis import given
from hypothesis import strategies as st

import fermion
from fermion import errors
from fermion.api.instances import v1 as instances
from fermion.api.projects import v1 as projects
from fermion.api.scheduler import v1 as api
from fermion.api.workload import v1 as workload
from fermion.cli import run, show
from fermion.context import Contexts
from tests.unit.fermion.platform import Platform, busy, refuse

GIB = 2**30
LAB = "projects/acme/instances/lab"
NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)
FULL = {"scope": "projects/acme", "dimension": "workloads/instance"} | {
    "need": "1",
    "used": "2",
    "limit": "2",
    "short": "1",
}
Kind = api.WatchQueueResponse


@pytest.fixture
def lab(platform: Platform, tmp_path: Path) -> Platform:
    """A platform on which an instance waits for its quota, as the second of five."""
    token = tmp_path / "jwt"
    token.write_text("jwt")
    Contexts().set("local", address=platform.address, token_file=str(token), project="acme")
    status = instances.Status(state=instances.STATE_PENDING)
    platform.instances[LAB] = instances.Instance(name=LAB, uid="inst_1", status=status)
    found = api.Explanation(place=2, waiting=5, workload=queued())
    found.latest_start_time.FromDatetime(NOON)
    platform.waiting.explanations[LAB] = found
    return platform


def queued(uid: str = "wkl_1", **arguments: str) -> api.QueuedWorkload:
    reason = workload.Reason(code="QUOTA", arguments={**FULL, **arguments}, message="Too much.")
    return api.QueuedWorkload(workload_uid=uid, owner=LAB, attempt=3, reason=reason)


def client(platform: Platform) -> fermion.Client:
    return fermion.Client(address=platform.address, token="jwt", timeout=10.0)


def said(code: str, **arguments: str) -> str:
    reason = workload.Reason(code=code, arguments=arguments, message="As The platform Says.")
    return show.sentence(reason)


@pytest.mark.parametrize(
    ("code", "arguments", "sentence"),
    [
        ("QUOTA", FULL, "the project holds 2 of 2 instances; this one needs 1 more"),
        (
            "QUOTA",
            {
                "scope": "users/user_1",
                "dimension": "gpu_milli/*",
                **{"need": "2000", "used": "1500", "limit": "3000"},
            },
            "the user holds 1.5 of 3 GPUs; this one needs 2 more",
        ),
        (
            "QUOTA",
            {
                "scope": "projects/acme",
                "dimension": "gpu_milli/A100",
                **{"need": "4000", "used": "0", "limit": "1000"},
            },
            "the project may hold 1 A100 GPU in all; this one alone needs 4",
        ),
        (
            "QUOTA",
            {
                "scope": "projects/acme",
                "dimension": "memory_bytes",
                **{"need": str(4 * GIB), "used": str(30 * GIB), "limit": str(32 * GIB)},
            },
            "the project holds 30 GiB of 32 GiB memory; this one needs 4 GiB more",
        ),
        (
            "CAPACITY",
            {"dimension": "gpu_milli/*", "need": "2000", "total": "0"},
            "needs 2 GPUs; the cluster has 0 in all",
        ),
        (
            "CAPACITY",
            {"dimension": "cpu_milli", "need": "1000", "free": "500"},
            "needs 1 core; the cluster has 0.5 free",
        ),
        (
            "FRAGMENTED",
            {"dimension": "memory_bytes", "need": str(16 * GIB), "free": str(24 * GIB)},
            "needs 16 GiB memory; the cluster has 24 GiB free, but not on one node",
        ),
        (
            "RESERVED",
            {},
            "nodes are kept for it; it starts when what runs on them has ended",
        ),
        ("BEHIND", {}, "it would fit; others that have waited longer, or hold less, go first"),
        ("ARRIVED", {}, "it has just arrived; the next pass looks at it"),
        ("NO_CLUSTER", {}, "no cluster is enrolled"),
        ("QUOTA_UNKNOWN", {"project": "acme"}, "the limits of acme have not been read yet"),
        (
            "CRASH_LOOP_BACKOFF",
            {"run": "3", "end": "exit code 1", "until": NOON.isoformat(timespec="seconds")},
            f"run 3 ended with exit code 1; it runs again at {NOON.astimezone():%H:%M:%S}",
        ),
        (
            "IMAGE_BUILDING",
            {"image": "jupyterlab", "progress": "3 of 90 packages"},
            "the image jupyterlab is being built, once for all: 3 of 90 packages",
        ),
        (
            "IMAGE_BUILDING",
            {"image": "jupyterlab", "progress": ""},
            "the image jupyterlab is being built, once for all",
        ),
    ],
)
def test_a_reason_is_a_sentence_with_amounts_as_people_count_them(
    code: str, arguments: dict[str, str], sentence: str
) -> None:
    assert said(code, **arguments) == sentence


@pytest.mark.parametrize(
    ("code", "arguments"),
    [
        ("OF_A_NEWER_PLATFORM", {}),
        ("QUOTA", {}),
        ("QUOTA", {**FULL, "need": "much"}),
        ("CAPACITY", {"dimension": "cpu_milli", "need": "9" * 400, "free": "0"}),
        ("CRASH_LOOP_BACKOFF", {"run": "1", "end": "signal 9", "until": "soon"}),
    ],
)
def test_a_reason_that_cannot_be_counted_is_told_as_the_platform_tells_it(
    code: str, arguments: dict[str, str]
) -> None:
    assert said(code, **arguments) == "as The platform Says"


@given(st.sampled_from(["QUOTA", "CAPACITY", "FRAGMENTED", "CRASH_LOOP_BACKOFF"]), st.data())
def test_a_sentence_is_one_line_whatever_its_arguments_are(code: str, data: st.DataObject) -> None:
    names = ["scope", "dimension", "need", "used", "limit", "free", "total", "run", "end", "until"]
    values = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
    numbers = st.integers(-(10**12), 10**30).map(str)
    arguments = data.draw(st.dictionaries(st.sampled_from(names), numbers | values))
    found = said(code, **arguments)
    assert found
    assert found.isprintable() or "\n" not in found


def test_an_instance_that_waits_is_explained(
    lab: Platform, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["queue", "explain", "lab"]) == 0
    first, *details = capsys.readouterr().out.splitlines()
    assert first == "lab  the project holds 2 of 2 instances; this one needs 1 more"
    at = NOON.astimezone().isoformat(sep=" ", timespec="milliseconds")
    assert details == [
        "  place         2 of 5 that wait",
        f"  starts        {at} at the latest, if nothing else comes",
        "  attempt       3",
        "  workload      wkl_1",
    ]
    lab.waiting.explanations[LAB].ClearField("latest_start_time")
    assert run(["queue", "explain", LAB]) == 0
    assert "  starts        nobody can tell" in capsys.readouterr().out
    assert run(["queue", "explain", "lab", "-o", "name"]) == 0
    assert capsys.readouterr().out == "wkl_1\n"


def test_what_does_not_wait_is_told_with_where_it_stands(
    lab: Platform, capsys: pytest.CaptureFixture[str]
) -> None:
    lab.waiting.explanations.clear()
    lab.instances[LAB].status.state = instances.STATE_RUNNING
    assert run(["queue", "explain", "lab"]) == 3
    assert "what to do: It is RUNNING." in capsys.readouterr().err
    assert run(["queue", "explain", "lap"]) == 3
    assert "Did you mean lab?" in capsys.readouterr().err


def test_the_queue_says_why_each_waits(lab: Platform, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["queue", "list"]) == 0
    _, row = capsys.readouterr().out.splitlines()
    assert row.split("  ")[0] == "acme/instances/lab"
    assert "the project holds 2 of 2 instances; this one needs 1 more" in row


def test_a_queue_is_followed_over_breaks_and_what_has_left_is_named_by_its_owner(
    lab: Platform, capsys: pytest.CaptureFixture[str]
) -> None:
    left = api.QueuedWorkload(workload_uid="wkl_1")

    def streams() -> list[list[api.WatchQueueResponse]]:
        return [
            [
                Kind(change=Kind.CHANGE_INITIAL, workload=queued()),
                Kind(change=Kind.CHANGE_BOOKMARK, resume_token="t"),
            ],
            [
                Kind(change=Kind.CHANGE_UPDATED, workload=queued(used="1", limit="1")),
                Kind(change=Kind.CHANGE_LEFT, workload=left),
                Kind(change=Kind.CHANGE_LEFT, workload=api.QueuedWorkload(workload_uid="wkl_0")),
            ],
        ]

    lab.waiting.watches.extend(streams())
    assert run(["queue", "watch"]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert rows[0].startswith("initial   acme/instances/lab  3  the project holds 2 of 2 instances")
    assert rows[1].startswith("updated   acme/instances/lab  3  the project holds 1 of 1 instance;")
    assert rows[2:] == ["left      acme/instances/lab", "left      wkl_0"]
    tokens = [getattr(call.request, "resume_token", "") for call in lab.sent("WatchQueue")]
    assert tokens == ["", "t"]
    lab.waiting.watches.extend(streams())
    assert run(["queue", "watch", "-o", "json"]) == 0
    messages = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert messages[2] == {"workload_uid": "wkl_1"}


def test_what_only_asks_is_asked_again(platform: Platform) -> None:
    platform.waiting.explanations[LAB] = api.Explanation(place=1, waiting=1)
    platform.waiting.outlook = api.Explanation(place=4, waiting=3)
    platform.turns.extend([busy, lambda _: None, busy])
    with client(platform) as it:
        assert it.queue.explain(LAB).place == 1
        assert it.queue.outlook("acme", workload.Workload(kind=workload.KIND_TRAINING)).place == 4
    assert len(platform.sent("ExplainWorkload")) == 2
    (_, again) = platform.sent("OutlookWorkload")
    assert isinstance(again.request, api.OutlookWorkloadRequest)
    assert again.request.parent == "projects/acme"
    assert again.request.workload.kind == workload.KIND_TRAINING


def test_where_nothing_waits_the_client_says_so(platform: Platform) -> None:
    with client(platform) as it, pytest.raises(errors.NotFound) as caught:
        it.queue.explain(LAB)
    assert caught.value.reason == "NOT_QUEUED"


async def test_the_client_of_asyncio_does_the_same(platform: Platform) -> None:
    platform.waiting.explanations[LAB] = api.Explanation(place=1, waiting=1, workload=queued())
    platform.waiting.holdings = [api.Holding(scope="projects/acme")]
    change = Kind(change=Kind.CHANGE_INITIAL, workload=queued())
    platform.waiting.watches.append([change])
    async with fermion.AsyncClient(address=platform.address, token="jwt") as it:
        assert (await it.queue.explain(LAB)).place == 1
        assert [one.scope for one in await it.queue.holdings("acme")] == ["projects/acme"]
        assert [one async for one in it.queue.watch("acme")] == [change]
        assert [one.workload_uid async for one in it.queue.list("acme")] == ["wkl_1"]


ACME = "projects/acme/quota"
BOUNDS = projects.Limits(gpu_milli={"*": 8000}, memory_bytes=64 * GIB, workloads={"instance": 2})
HELD = projects.Limits(gpu_milli={"*": 3000, "A100": 3000}, workloads={"instance": 1})


def test_limits_are_shown_with_what_is_held_of_them(
    lab: Platform, capsys: pytest.CaptureFixture[str]
) -> None:
    lab.quotas[ACME] = projects.Quota(name=ACME, limits=BOUNDS, etag="7")
    lab.waiting.holdings = [
        api.Holding(scope="projects/acme", held=HELD),
        api.Holding(scope="users/user_1", held=projects.Limits(cpu_milli=1500)),
    ]
    assert run(["quotas", "get"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "projects/acme  its own",
        "  GPU           3 of 8",
        "  memory        0 of 64 GiB",
        "  instances     1 of 2",
        "  GPU A100      3, not bounded",
        "  etag          7",
    ]
    assert run(["quotas", "get", "--user", "ada"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "users/ada  those of each user without his own: nothing is bounded",
        "  CPU           1.5, not bounded",
    ]


def test_limits_are_told_also_where_the_scheduler_does_not_answer(
    lab: Platform, capsys: pytest.CaptureFixture[str]
) -> None:
    lab.quotas[ACME] = projects.Quota(name=ACME, limits=BOUNDS, etag="7")
    lab.turns.extend([lambda _: None, refuse(code_pb2.INTERNAL, "INTERNAL", "It broke.")])
    assert run(["quotas", "get"]) == 0
    printed = capsys.readouterr()
    assert "  GPU           8\n" in printed.out
    assert "What is held is not told: It broke." in printed.err


def test_programs_read_limits_alone_and_those_of_all_hold_nothing(
    lab: Platform, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["quotas", "get", "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["name"] == ACME
    assert run(["quotas", "get", "--default-project"]) == 0
    assert not lab.sent("ListHoldings")
