"""Tables on a terminal: as wide as it is, without a word broken; in a pipe nothing is missing."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fermion.api.instances import v1 as api
from fermion.api.workload import v1 as workload
from fermion.cli import table
from fermion.cli.table import CROPPED_MIN, Screen, Title, drawn, width_of
from fermion.context import Contexts
from tests.unit.fermion.keyboard import terminal_text
from tests.unit.fermion.platform import Platform

TITLES = (Title("NAME"), Title("KIND", spare=1), Title("AGE", spare=2), Title("WHY", crop=True))
ROW = ("a-long-name", "notebook", "12m", "queued: no cluster is enrolled")
UID = "inst_" + "a" * 26


@pytest.fixture
def acme(platform: Platform, tmp_path: Path) -> Platform:
    """A platform with an instance of a long name, and its history."""
    token = tmp_path / "jwt"
    token.write_text("jwt")
    Contexts().set("local", address=platform.address, token_file=str(token), project="acme")
    name = "an-instance-whose-name-is-rather-long"
    full = f"projects/acme/instances/{name}"
    reason = workload.Reason(code="NO_CLUSTER", message="No cluster is enrolled.")
    queued = api.Status(state=api.STATE_PENDING, phase=api.PHASE_QUEUED, reason=reason)
    platform.instances[full] = api.Instance(name=full, uid=UID, status=queued)
    own = f"instance/{UID}"
    created = api.InstanceCreated(uid=UID, project="acme", instance=name, display_name="x" * 200)
    platform.state("instances/0", own, created, 100)
    declared = api.InstanceAttemptDeclared(uid=UID, attempt=1, workload_uid="wkl_1")
    platform.state("instances/0", own, declared, 101)
    platform.state("instances/0", own, api.InstanceQueued(attempt=1, reason=reason), 102)
    return platform


def test_a_history_fits_a_terminal_of_80_columns_with_every_word_whole(acme: Platform) -> None:
    head, created, declared, queued = terminal_text(80, "events", "list", UID).splitlines()
    assert head.split() == ["TIME", "FACT", "BY", "WHAT"]
    assert [line.split()[2] for line in (created, declared, queued)] == [
        "InstanceCreated",
        "InstanceAttemptDeclared",
        "InstanceQueued",
    ]
    assert created.endswith("…")
    assert "ada  attempt=1" in declared
    assert max(map(len, (head, created, declared, queued))) <= 80


def test_a_list_fits_a_terminal_of_80_columns_and_keeps_names_whole(acme: Platform) -> None:
    head, row = terminal_text(80, "instances", "list").splitlines()
    assert row.startswith("an-instance-whose-name-is-rather-long  PENDING  queued:")
    assert max(len(head), len(row)) <= 80
    assert {"NAME", "STATE", "WHY", "AGE"} <= set(head.split())


def test_a_wide_table_is_whole_also_on_a_terminal(acme: Platform) -> None:
    text = "".join(terminal_text(80, "events", "list", UID, "-o", "wide").splitlines())
    assert "x" * 200 in text
    assert "BECAUSE OF" in text


def test_a_row_in_a_pipe_is_whole(acme: Platform, capsys: pytest.CaptureFixture[str]) -> None:
    table.show(TITLES, [ROW])
    assert capsys.readouterr().out.splitlines() == [
        "NAME         KIND      AGE  WHY",
        "a-long-name  notebook  12m  queued: no cluster is enrolled",
    ]


@pytest.mark.parametrize(
    ("width", "row"),
    [
        (58, "a-long-name  notebook  12m  queued: no cluster is enrolled"),
        (50, "a-long-name  notebook  12m  queued: no cluster is…"),
        (47, "a-long-name  notebook  queued: no cluster is e…"),
        (40, "a-long-name  queued: no cluster is enro…"),
        (20, "a-long-name  queued…"),
        (8, "a-long-…"),
    ],
)
def test_a_narrow_terminal_cuts_what_may_be_cut_and_leaves_out_what_is_worth_least(
    width: int, row: str
) -> None:
    assert drawn(TITLES, [ROW], width)[1] == row


def test_what_takes_two_columns_is_counted_as_two() -> None:
    assert width_of("实例") == 4
    assert drawn((Title("A", crop=True),), [("实" * 20,)], 9)[1] == "实实实实…"
    lines = drawn((Title("A"), Title("B")), [("实", "x"), ("ab", "y")])
    assert [line.index(letter) for line, letter in zip(lines[1:], "xy", strict=True)] == [3, 4]


@given(
    st.lists(st.text(st.characters(exclude_categories=["C"]), max_size=60), min_size=4, max_size=4),
    st.integers(min_value=4, max_value=200),
)
def test_no_line_is_longer_than_the_terminal_is_wide(row: list[str], width: int) -> None:
    assert all(width_of(line) <= width for line in drawn(TITLES, [row], width))


def test_a_cell_that_is_cut_keeps_what_can_be_read() -> None:
    lines = drawn((Title("NAME"), Title("WHY", crop=True)), [("a", "x" * 90)], CROPPED_MIN + 3)
    assert len(lines[1]) == CROPPED_MIN + 3


def test_a_board_counts_rows_that_are_below_the_end_of_the_screen(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.setenv("LINES", "6")
    screen = Screen()
    for _ in range(2):
        screen.draw((Title("N"),), [(str(number) * 30,) for number in range(5)])
    first, second = capsys.readouterr().out.split("\x1b[J")[1:]
    assert first.splitlines()[1:-1] == ["0" * 19 + "…", "1" * 19 + "…", "… and 3 more"]
    assert first.endswith("\x1b[4F")
    assert second.splitlines()[-1] == "… and 3 more"
