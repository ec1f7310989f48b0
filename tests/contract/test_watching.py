"""Dashboard, alarms, doctor and the page about what to watch name only what is exported, and all of it."""

from __future__ import annotations

import re

import pytest

from chassis.telemetry import Figure, Kind
from fermion.cli import help
from fermion.cli.figures import BOUNDS, Bound
from tests.contract import watching
from tests.contract.descriptors import every_file
from tests.contract.watching import Alarm, Panel

ALARMS = watching.alarms()
PANELS = list(watching.panels())
FIGURES = list(watching.declared().values())
PAGES = help.kept()
# Units that a name may end in; one that counts things ends in their name.
UNITS = ("_seconds", "_bytes", "_positions")
THINGS = ("_commands", "_streams", "_workloads", "_intervals", "_replicas", "_records")
OTHERS = ("_gpus", "_cores", "_head", "_position", "_halted")
# What would grow with use.
BOUNDLESS = {"project", "workload", "instance", "user", "owner", "replica", "request_id", "uid"}


@pytest.mark.parametrize("figure", FIGURES, ids=lambda one: one.name)
def test_a_figure_ends_in_its_unit_and_tells_nobody_apart(figure: Figure) -> None:
    base = figure.name.removesuffix("_total")
    assert (figure.kind is Kind.COUNTER) == figure.name.endswith("_total")
    assert base.endswith((*UNITS, *THINGS, *OTHERS, "_facts")), figure.name
    assert not BOUNDLESS & set(figure.labels)
    assert figure.help.endswith(".")


@pytest.mark.parametrize("panel", PANELS, ids=lambda one: one.title)
def test_a_panel_asks_for_what_is_exported_in_its_unit(panel: Panel) -> None:
    for expression in panel.expressions:
        assert list(watching.faults(expression)) == []
        assert panel.unit in watching.unit_of(expression), expression


def test_the_dashboard_has_a_panel_for_every_figure() -> None:
    shown = {
        watching.figure_of(name)
        for panel in PANELS
        for expression in panel.expressions
        for name in watching.named(expression)
    }
    assert set(FIGURES) - shown == set()
    rows = list(dict.fromkeys(panel.row for panel in PANELS))
    assert rows == ["Journal", "Readers", "Queue", "Replicas", "Bill", "RPC"]


def test_the_dashboard_can_be_imported_anywhere() -> None:
    found = watching.dashboard()
    (variable,) = found["templating"]["list"]
    assert (variable["name"], variable["type"], variable["query"]) == (
        "datasource",
        "datasource",
        "prometheus",
    )
    source = {"type": "prometheus", "uid": "${datasource}"}
    panels = [panel for panel in found["panels"] if panel["type"] != "row"]
    targets = [target for panel in panels for target in panel["targets"]]
    assert all(one["datasource"] == source for one in (*panels, *targets))
    # No number of the Grafana that it was made with.
    assert "id" not in found
    numbers = [panel["id"] for panel in found["panels"]]
    assert len(set(numbers)) == len(numbers)


def test_panels_do_not_lie_on_each_other() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in watching.dashboard()["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        cells = {
            (at["x"] + right, at["y"] + down) for right in range(at["w"]) for down in range(at["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells


@pytest.mark.parametrize("alarm", ALARMS, ids=lambda one: one.name)
def test_an_alarm_asks_for_what_is_exported(alarm: Alarm) -> None:
    assert list(watching.faults(alarm.expression)) == []
    assert alarm.bound is not None or alarm.expression.startswith("absent(")
    assert alarm.severity in ("page", "ticket", "info")
    # What it tells of is told apart by what it is grouped by.
    grouped = {
        one.strip()
        for group in re.findall(r"by \(([^)]*)\)", alarm.expression)
        for one in group.split(",")
    }
    assert set(re.findall(r"\$labels\.([a-z_]+)", alarm.summary)) <= grouped


@pytest.mark.parametrize("alarm", ALARMS, ids=lambda one: one.name)
def test_an_alarm_names_a_command_that_there_is(alarm: Alarm) -> None:
    named = re.findall(r"`fermion ([^`]*)`", alarm.runbook)
    assert named
    for words in named:
        assert_is_command(words)


@pytest.mark.parametrize("bound", BOUNDS, ids=lambda one: one.what)
def test_the_doctor_has_the_bounds_of_the_alarms_and_names_a_command(bound: Bound) -> None:
    chosen = ", ".join(f'{key}="{value}"' for key, value in bound.labels.items())
    asked = f"{bound.figure}{{{chosen}}}" if chosen else bound.figure
    rings = [one for one in ALARMS if asked in one.expression and one.bound is not None]
    assert [one.bound for one in rings] == [bound.most], rings
    (words,) = re.findall(r"fermion ([^:;,.]*)$", bound.mend)
    assert_is_command(words)


def test_calls_that_last_are_not_called_slow() -> None:
    lasting = {
        f"/{service.full_name}/{method.name}"
        for file in every_file()
        for service in file.services_by_name.values()
        for method in service.methods
        if method.server_streaming
    }
    every = {
        f"/{service.full_name}/{method.name}"
        for file in every_file()
        for service in file.services_by_name.values()
        for method in service.methods
    }
    asking = [
        expression
        for expression in (
            *(one.expression for one in ALARMS),
            *(one for panel in PANELS for one in panel.expressions),
        )
        if "fermion_rpc_seconds_bucket" in expression
    ]
    assert asking
    for expression in asking:
        (left_out,) = re.findall(r'method!~"([^"]*)"', expression)
        assert {one for one in every if re.fullmatch(left_out, one)} == lasting


def test_the_page_tells_what_is_exported_and_what_rings() -> None:
    assert watching.kept() == watching.table(), "make generate"


def test_what_nothing_exports_is_found() -> None:
    faults = [
        list(watching.faults(expression))
        for expression in (
            "max(fermion_nothing)",
            'max(fermion_journal_head{color="red"})',
            "max by (color) (fermion_journal_head)",
            "fermion_rpc_seconds",
            "sum by (le) (fermion_journal_head)",
        )
    ]
    assert all(faults)
    assert (
        list(watching.faults('sum by (le) (rate(fermion_rpc_seconds_bucket{code="OK"}[5m]))')) == []
    )


def assert_is_command(words: str) -> None:
    """The words, up to what is in capitals, lead to a page of help, which knows their options."""
    named = [word for word in words.split() if word.islower() and not word.startswith("-")]
    page = PAGES[" ".join(named)]
    for option in re.findall(r"(?<!\S)--?[a-z-]+", words):
        assert re.search(rf"{option}\b", page), words
