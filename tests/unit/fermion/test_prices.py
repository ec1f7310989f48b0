"""Commands about prices, against a platform of a few lines."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from google.rpc import code_pb2

from fermion import pricebook
from fermion.api.billing import v1 as api
from fermion.cli import run, show
from fermion.context import Contexts
from tests.unit.fermion.platform import Platform, refuse
from tests.unit.fermion.test_pricebook import FIRST, GOOD


@pytest.fixture
def acme(platform: Platform, tmp_path: Path) -> Platform:
    """A platform with the prices that it began with, and others for later."""
    token = tmp_path / "jwt"
    token.write_text("jwt")
    Contexts().set("local", address=platform.address, token_file=str(token), project="acme")
    first = pricebook.parse(FIRST.read_text(), FIRST.name)
    first.number = 1
    later = pricebook.parse(GOOD, "later.yaml")
    later.number = 2
    platform.billed.books = [later, first]
    platform.billed.in_force = 1
    return platform


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The file of the prices in force."""
    found = tmp_path / "prices.yaml"
    found.write_text(FIRST.read_text())
    return found


def test_versions_are_listed_with_the_one_in_force(
    acme: Platform, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["prices", "list"]) == 0
    head, later, first = capsys.readouterr().out.splitlines()
    assert head.split() == ["VERSION", "STANDING", "EFFECTIVE", "CURRENCY", "NUMBER"]
    at = show.moment(acme.billed.books[0].effective_time)
    assert later == f"2026-02  later     {at}  USD       2"
    assert first == f"2026-01  in force  -{' ' * len(at)} USD       1"
    assert run(["prices", "list", "-o", "name"]) == 0
    assert capsys.readouterr().out == "2026-02\n2026-01\n"
    assert run(["prices", "list", "-o", "json"]) == 0
    assert [one["number"] for one in json.loads(capsys.readouterr().out)] == [2, 1]


def test_prices_are_shown_with_what_of_its_time_costs_money(
    acme: Platform, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["prices", "show"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "2026-01  in force",
        "  currency             USD",
        "  GPU                  2.00 a GPU and hour",
        "  GPU A100-80GB        1.80 a GPU and hour",
        "  GPU H100-80GB        2.95 a GPU and hour",
        "  GPU L4               0.80 a GPU and hour",
        "  GPU SIM-GPU          2.40 a GPU and hour",
        "  CPU                  0.04 a core and hour",
        "  memory               0.005 a GiB and hour",
        "  storage              0.00 a GiB and hour",
        "  running              billed",
        "  draining (user)      billed, but for the first 10s",
        "  draining (platform)  billed, but for the first 2m",
        "  held                 free",
        "  back-off             free",
        "  unreachable          free",
        "  storage              billed",
        "  platform's doing     preemption, placement, node_drain, node_lost, peer_lost, platform",
    ]
    assert run(["prices", "show", "2026-02", "-o", "name"]) == 0
    assert capsys.readouterr().out == "2026-02\n"


def test_prices_that_are_not_there_are_said_to_be_missing(
    acme: Platform, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["prices", "show", "2026-03"]) == 3
    assert "Did you mean" in capsys.readouterr().err
    acme.billed.in_force = 0
    assert run(["prices", "show"]) == 3
    assert "fermion prices publish" in capsys.readouterr().err


def test_what_is_shown_as_a_file_is_a_file(
    acme: Platform, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["prices", "show", "2026-02", "--as-file"]) == 0
    found = pricebook.parse(capsys.readouterr().out, "x")
    said = pricebook.parse(GOOD, "x")
    # What it was in force from is over, so it is left open.
    said.ClearField("effective_time")
    assert found == said


def test_a_file_that_says_the_same_does_not_differ(
    acme: Platform, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # The service has said since when; the file leaves it open.
    acme.billed.books[1].effective_time.FromSeconds(1)
    assert run(["prices", "diff", str(file)]) == 0
    assert capsys.readouterr().out == ""


def test_a_file_that_says_something_else_differs_by_that_alone(
    acme: Platform,
    file: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = file.read_text().replace('L4: "0.80"', 'L4: "0.850"')
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    assert run(["prices", "diff", "-"]) == 1
    changed = [
        line
        for line in capsys.readouterr().out.splitlines()
        if line[:1] in "+-" and line[:3] not in ("+++", "---")
    ]
    assert changed == ['-    L4: "0.80"', '+    L4: "0.85"']


@pytest.mark.parametrize("broken", ["file", "nothing", "platform"])
def test_where_nobody_can_tell_whether_it_differs_the_code_is_neither(
    acme: Platform, file: Path, broken: str
) -> None:
    match broken:
        case "file":
            file.write_text("prices: 3")
        case "nothing":
            file.unlink()
        case _:
            acme.turns.append(refuse(code_pb2.INTERNAL, "INTERNAL", "It broke."))
    assert run(["prices", "diff", str(file)]) > 1


def test_prices_are_published_from_a_moment_on(acme: Platform, file: Path) -> None:
    file.write_text(file.read_text().replace("2026-01", "2026-04"))
    words = ["--effective", "2026-12-24T00:00:00.0005Z"]
    assert run(["prices", "publish", str(file), *words]) == 0
    request = acme.sent("PublishPriceBook")[-1].request
    assert isinstance(request, api.PublishPriceBookRequest)
    assert request.price_book.version == "2026-04"
    assert request.price_book.effective_time.ToJsonString() == "2026-12-24T00:00:00Z"
    assert request.request_id
    assert acme.billed.books[0].version == "2026-04"


def test_a_dry_run_publishes_nothing(
    acme: Platform, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["prices", "publish", str(file), "--dry-run"]) == 0
    printed = capsys.readouterr()
    assert "Nothing was published" in printed.err
    assert printed.out.startswith("2026-01\n")
    assert len(acme.billed.books) == 2


def test_a_wrong_file_is_refused_before_anybody_is_asked(
    acme: Platform, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_text(file.read_text().replace('"0.04"', '"cheap"'))
    assert run(["prices", "publish", str(file)]) == 2
    printed = capsys.readouterr().err
    assert f"{file}: prices.cpu is 'cheap': it must be a price" in printed
    assert 'what to do: Write it like "2.40".' in printed
    assert not acme.calls


def test_the_shell_is_offered_the_versions_that_there_are(
    acme: Platform, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["__complete", "prices", "show", ""]) == 0
    assert {"2026-01", "2026-02"} <= set(capsys.readouterr().out.split())
