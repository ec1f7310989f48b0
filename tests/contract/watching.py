"""
What is watched, read from where it is declared, and from who looks at it: dashboard, alarms, doctor.

    python -m tests.contract.watching        write the table of docs/operations.md anew
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from chassis import figures
from chassis.telemetry import COUNTED, Figure, Kind
from services.serve import TARGETS

ROOT: Final = Path(__file__).parents[2]
DASHBOARD: Final = ROOT / "deploy" / "grafana" / "fermion.json"
ALERTS: Final = ROOT / "deploy" / "alerts" / "fermion.yaml"
PAGE: Final = ROOT / "docs" / "operations.md"
BEGIN: Final = "<!-- What follows is written by `make generate`. -->\n"
END: Final = "<!-- What goes before is written by `make generate`. -->\n"
# What Prometheus makes of a histogram.
PARTS: Final = ("_bucket", "_count", "_sum")

_NAME: Final = re.compile(r"fermion_[a-z0-9_]+")
_SELECTOR: Final = re.compile(r"(fermion_[a-z0-9_]+)\{([^}]*)\}")
_LABEL: Final = re.compile(r"\s*([a-z_]+)\s*(?:=~|!~|!=|=)")
_GROUPED: Final = re.compile(r"\b(?:by|ignoring|on)\s*\(([^)]*)\)")
_BOUND: Final = re.compile(r"\s>\s([0-9.]+)$")


@dataclass(frozen=True, slots=True)
class Alarm:
    """One rule of the alarms."""

    name: str
    expression: str
    lasts: str
    severity: str
    summary: str
    runbook: str

    @property
    def bound(self) -> float | None:
        """What is more than this rings; None where it is no matter of more."""
        found = _BOUND.search(self.expression)
        return None if found is None else float(found[1])


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel of the dashboard."""

    row: str
    title: str
    unit: str
    expressions: tuple[str, ...]


def declared() -> Mapping[str, Figure]:
    """Every figure that a platform exports, by its name, in the order of the page."""
    services = (figure for target in TARGETS.values() for figure in target.figures)
    return {one.name: one for one in (*COUNTED, *figures.FIGURES, *services)}


def alarms() -> Sequence[Alarm]:
    """Every rule."""
    found = yaml.safe_load(ALERTS.read_text(encoding="utf-8"))
    return [
        Alarm(
            rule["alert"],
            rule["expr"],
            rule.get("for", ""),
            rule["labels"]["severity"],
            rule["annotations"]["summary"],
            rule["annotations"]["runbook"],
        )
        for group in found["groups"]
        for rule in group["rules"]
    ]


def dashboard() -> Mapping[str, Any]:
    """The dashboard as it is imported."""
    found: Mapping[str, Any] = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    return found


def panels() -> Iterator[Panel]:
    """Every panel, with the row that it stands in."""
    row = ""
    for panel in dashboard()["panels"]:
        if panel["type"] == "row":
            row = panel["title"]
            continue
        unit = panel["fieldConfig"]["defaults"]["unit"]
        expressions = tuple(target["expr"] for target in panel["targets"])
        yield Panel(row, panel["title"], unit, expressions)


def figure_of(name: str) -> Figure:
    """The figure that a name in an expression is of; KeyError where nothing exports it."""
    known = declared()
    for part in PARTS:
        whole = known.get(name.removesuffix(part))
        if name.endswith(part) and whole is not None and whole.kind is Kind.HISTOGRAM:
            return whole
    found = known[name]
    if found.kind is Kind.HISTOGRAM:
        raise KeyError(name)
    return found


def named(expression: str) -> Sequence[str]:
    """Names of figures in an expression; what stands between quotes is none."""
    return list(dict.fromkeys(_NAME.findall(re.sub(r'"[^"]*"', '""', expression))))


def faults(expression: str) -> Iterator[str]:
    """Names and labels in an expression that nothing exports."""
    labels = {"le"} if "_bucket" in expression else set()
    for name in named(expression):
        try:
            labels |= set(figure_of(name).labels)
        except KeyError:
            yield f"nothing exports {name}"
    for name, selected in _SELECTOR.findall(expression):
        with_values = re.sub(r'"[^"]*"', '""', selected)
        chosen = {one for part in with_values.split(",") for one in _LABEL.findall(part)}
        if name in named(expression) and not chosen <= labels:
            yield f"{name} has no {', '.join(sorted(chosen - labels))}"
    for group in _GROUPED.findall(expression):
        grouped = {one.strip() for one in group.split(",") if one.strip()}
        if not grouped <= labels:
            yield f"no {', '.join(sorted(grouped - labels))} in {expression}"


def unit_of(expression: str) -> frozenset[str]:
    """Units of Grafana that fit what an expression comes to."""
    if re.search(r"\)\s*/", expression):
        return frozenset({"percentunit"})
    figure = figure_of(named(expression)[0])
    if "rate(" in expression and "histogram_quantile(" not in expression:
        # Seconds a second are so many at a time.
        timed = figure.name.endswith("_seconds_total")
        return frozenset({"short"} if timed else {"cps", "reqps"})
    if figure.name.endswith("_seconds"):
        return frozenset({"s"})
    return frozenset({"bytes"} if figure.name.endswith("_bytes") else {"short"})


def table() -> str:
    """The table of what to watch, as the page has it."""
    rows = ["| metric | labels | means | alarm | what to do |", "|---|---|---|---|---|"]
    for name, figure in declared().items():
        own = [one for one in alarms() if figure in map(figure_of, named(one.expression))]
        rows.append(
            f"| `{name}` | {', '.join(figure.labels)} | {figure.help} "
            f"| {'; '.join(map(_rings, own))} | {' '.join(one.runbook for one in own)} |"
        )
    return "\n".join(rows) + "\n"


def _rings(alarm: Alarm) -> str:
    lasts = f" for {alarm.lasts}" if alarm.lasts else ""
    if alarm.bound is None:
        return f"not there{lasts}"
    chosen = re.findall(r'\b(?:reason|state|code)=~?"([^"]*)"', alarm.expression)
    of = f" {', '.join(chosen[0].split('|'))}" if chosen else ""
    quantity = (
        f"{alarm.bound:.0%}" if re.search(r"\)\s*/", alarm.expression) else f"{alarm.bound:g}"
    )
    window = re.search(r"increase\(.*?\[([0-9a-z]+)\]", alarm.expression)
    within = f" in {window[1]}" if window else ""
    return f"> {quantity}{of}{within}{lasts}"


def kept() -> str:
    """The table as the page has it now."""
    _, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    return rest.partition(END)[0].strip("\n") + "\n"


if __name__ == "__main__":
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n{table()}\n{END}{after}", encoding="utf-8")
