"""Histories: of what is there, of what is gone, and of names that were used again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import fermion
from fermion.api.billing import v1 as billing
from fermion.api.instances import v1 as api
from fermion.api.journal import v1 as journal
from fermion.api.projects import v1 as projects
from fermion.api.workload import v1 as workload
from fermion.cli import facts, history, run
from fermion.context import Contexts
from tests.unit.fermion.platform import Platform

FIRST = "inst_" + "a" * 26
SECOND = "inst_" + "b" * 26
NAME = "projects/acme/instances/ga"


def live(platform: Platform, uid: str, wkl: str, at: int) -> None:
    """State that an instance named ga was created, and queued a second later."""
    own, work = f"instance/{uid}", f"workload/{wkl}"
    created = api.InstanceCreated(uid=uid, project="acme", instance="ga")
    platform.state("instances/0", own, created, at)
    declared = api.InstanceAttemptDeclared(uid=uid, attempt=1, workload_uid=wkl, project="acme")
    platform.state("instances/0", own, declared, at)
    platform.state("instances/0", work, workload.WorkloadDeclared(), at)
    platform.state("scheduler/0", work, workload.WorkloadQueued(), at + 1)


@pytest.fixture
def twice(platform: Platform, tmp_path: Path) -> Platform:
    """A platform on which two instances were named ga: the first at 100 until 110, the second from 120."""
    token = tmp_path / "jwt"
    token.write_text("jwt")
    Contexts().set("local", address=platform.address, token_file=str(token), project="acme")
    other = api.InstanceCreated(uid="inst_" + "c" * 26, project="acme", instance="gb")
    platform.state("instances/0", f"instance/{other.uid}", other, 90)
    live(platform, FIRST, "wkl_1", 100)
    deleted = api.InstanceDeleted(uid=FIRST, project="acme", instance="ga")
    platform.state("instances/0", f"instance/{FIRST}", deleted, 110)
    live(platform, SECOND, "wkl_2", 120)
    platform.instances[NAME] = api.Instance(name=NAME, uid=SECOND)
    platform.instances[NAME].create_time.FromSeconds(120)
    return platform


def listed(capsys: pytest.CaptureFixture[str], *words: str) -> list[tuple[str, str]]:
    """What `events list` tells a program: time and stream of each fact."""
    capsys.readouterr()
    assert run(["events", "list", *words, "-o", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    return [(one["record_time"][-3:-1], one["stream"].split("/")[1]) for one in found]


ALL_OF_FIRST = [("40", FIRST), ("40", FIRST), ("40", "wkl_1"), ("41", "wkl_1"), ("50", FIRST)]
ALL_OF_SECOND = [("00", SECOND), ("00", SECOND), ("00", "wkl_2"), ("01", "wkl_2")]


def test_a_name_stands_for_the_instance_that_has_it_now(
    twice: Platform, capsys: pytest.CaptureFixture[str]
) -> None:
    assert listed(capsys, "ga") == ALL_OF_SECOND


def test_a_deleted_instance_keeps_its_history(
    twice: Platform, capsys: pytest.CaptureFixture[str]
) -> None:
    twice.instances.clear()
    del twice.facts[-4:]
    assert listed(capsys, "ga") == ALL_OF_FIRST
    assert run(["events", "list", "ga"]) == 0
    assert f"ga is gone; this is {FIRST}" in capsys.readouterr().err


def test_a_name_and_a_time_stand_for_the_instance_that_had_it_then(
    twice: Platform, capsys: pytest.CaptureFixture[str]
) -> None:
    assert listed(capsys, "ga", "--as-of", "1970-01-01T00:01:45Z") == ALL_OF_FIRST[:4]
    assert listed(capsys, "ga", "--as-of", "1970-01-01T00:01:55Z") == ALL_OF_FIRST


def test_a_uid_stands_for_itself_whoever_has_the_name(
    twice: Platform, capsys: pytest.CaptureFixture[str]
) -> None:
    assert listed(capsys, FIRST) == ALL_OF_FIRST
    assert listed(capsys, f"projects/acme/instances/{FIRST}", "-p", "other") == ALL_OF_FIRST


def test_the_history_of_a_name_is_that_of_all_that_had_it(
    twice: Platform, capsys: pytest.CaptureFixture[str]
) -> None:
    assert listed(capsys, "ga", "--all") == ALL_OF_FIRST + ALL_OF_SECOND


def test_a_name_that_nobody_ever_had_is_not_found(
    twice: Platform, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["events", "list", "never"]) == 3
    assert run(["events", "list", "ga", "--as-of", "1970-01-01T00:00:10Z"]) == 3
    assert run(["events", "list", FIRST.replace("a", "z")]) == 3
    assert "never had" in capsys.readouterr().err


def test_the_state_then_is_that_of_the_instance_whose_history_is_shown(
    twice: Platform, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["events", "list", FIRST, "--as-of", "1970-01-01T00:02:05Z"]) == 0
    assert "it was not there" in capsys.readouterr().out
    assert run(["events", "list", "ga", "--as-of", "1970-01-01T00:02:05Z"]) == 0
    assert "it was:" in capsys.readouterr().out


def test_what_billing_says_of_a_workload_is_a_part_of_its_history(
    twice: Platform, capsys: pytest.CaptureFixture[str]
) -> None:
    amount = workload.Money(currency="USD", nanos=1_250_000_001)
    limit = workload.Money(currency="USD", nanos=1_250_000_000)
    reached = billing.CostLimitReached(uid="wkl_2", amount=amount, limit=limit)
    twice.state("billing/0", "workload/wkl_2", reached, 130)
    assert listed(capsys, "ga")[-1] == ("10", "wkl_2")
    assert run(["events", "list", "ga"]) == 0
    assert "amount=1.250000001 USD limit=1.25 USD" in capsys.readouterr().out.splitlines()[-1]


def test_prices_are_a_part_of_the_history_of_the_platform(
    twice: Platform, capsys: pytest.CaptureFixture[str]
) -> None:
    prices = billing.PricesPublished(price_book=billing.PriceBook(version="2026-02"))
    twice.state("billing/0", "prices/book", prices, 130, project="_")
    assert run(["events", "list", "--platform"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith("  2026-02")


@pytest.fixture
def platform_facts(twice: Platform) -> Platform:
    """The same with facts of no project: a user, an operator's word, a template."""
    user = projects.UserRegistered(uid="user_2", user="ana")
    twice.state("projects/0", "user/user_2", user, 200, project="_")
    gone = projects.UserDeleted(uid="user_2")
    twice.state("projects/0", "user/user_2", gone, 201, project="_")
    named = api.TemplateSet(template=api.Template(name="templates/notebook"))
    twice.state("instances/0", "template/notebook", named, 202, project="_")
    resumed = journal.ReaderResumed(reader="instances/scheduler", journal="scheduler/0")
    twice.state("instances/0", "reader/instances-scheduler", resumed, 203, project="_")
    return twice


def test_facts_of_no_project_are_listed_for_who_asks_for_the_platform(
    platform_facts: Platform, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["events", "list", "--platform"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert [(row[2], row[3]) for row in rows] == [
        ("UserRegistered", "ana"),
        ("UserDeleted", "ana"),
        ("TemplateSet", "notebook"),
        ("ReaderResumed", "instances-scheduler"),
    ]
    assert "reader=instances/scheduler" in rows[-1]
    asked = [call.request for call in platform_facts.sent("ReadLog")]
    assert {getattr(request, "project", None) for request in asked} == {""}


def test_facts_of_no_project_are_followed_past_those_of_projects(platform_facts: Platform) -> None:
    places = {"projects/0": 1, "instances/0": 0}
    with fermion.Client(address=platform_facts.address, token="jwt") as client:
        found = [facts.place(one) for one in history.newer(client, "", places)]
        assert list(history.newer(client, "", places)) == []
    assert found == ["projects/0:2", "instances/0:9", "instances/0:10"]
    assert places == {"projects/0": 2, "instances/0": 10}


def test_a_list_of_many_says_which_instance_each_fact_is_of(
    twice: Platform, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["events", "list"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows[0][:3] == ["TIME", "FACT", "ABOUT"]
    assert [row[3] for row in rows[1:]] == ["gb", *["ga"] * 9]
    assert run(["events", "list", "ga"]) == 0
    assert "ABOUT" not in capsys.readouterr().out.splitlines()[0].split()


@pytest.mark.parametrize(
    "words",
    [
        ["list", "ga", "--platform"],
        ["list", "--platform", "-p", "acme"],
        ["list", "--all"],
        ["watch", "--after", "-1"],
        ["watch", "--after", "7"],
    ],
    ids=" ".join,
)
def test_options_that_do_not_go_together_are_refused(
    twice: Platform, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    assert run(["events", *words]) == 2
    assert "what to do:" in capsys.readouterr().err
    assert not twice.calls


def test_a_watch_takes_in_new_attempts_and_new_instances_of_the_name(twice: Platform) -> None:
    streams = history.Streams("ga", [FIRST])
    assert [streams.holds(fact) for fact in twice.facts] == [False, *[True] * 9]
    alone = history.Streams(FIRST, [FIRST])
    assert [alone.holds(fact) for fact in twice.facts] == [False, *[True] * 5, *[False] * 4]


def test_a_watch_hears_of_a_cause_before_its_effect(twice: Platform) -> None:
    def between(_: object) -> None:
        declared = api.InstanceAttemptDeclared(uid=SECOND, attempt=2, workload_uid="wkl_3")
        twice.state("instances/0", f"instance/{SECOND}", declared, 130)
        twice.state("scheduler/0", "workload/wkl_3", workload.WorkloadQueued(), 131)

    places = {"instances/0": 8, "scheduler/0": 2}
    # Both facts are stated while one journal has been read, and the other one has not.
    twice.turns.extend([lambda _: None, between])
    with fermion.Client(address=twice.address, token="jwt") as client:
        rounds = [
            [facts.place(one) for one in history.newer(client, "acme", places)] for _ in range(2)
        ]
    assert rounds == [["instances/0:9"], ["scheduler/0:3"]]
