"""The figures that operators watch, in words; and from when on one of them is not well."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from fermion.api.journal import v1 as api
from fermion.cli import show

LAG: Final = "fermion_reader_lag_seconds"
_LOG: Final = "Look at its log in logs/ of the state folder"


@dataclass(frozen=True, slots=True)
class Bound:
    """
    A figure that is well up to a bound, in its own unit.

    `deploy/alerts/fermion.yaml` rings at the same bound, and names the same command.
    """

    figure: str
    most: int
    what: str
    mend: str
    # Only samples with these.
    labels: Mapping[str, str] = field(default_factory=dict)


BOUNDS: Final = (
    Bound(
        "fermion_figures_age_seconds",
        60,
        "figures",
        "Nobody can tell how that service is: PostgreSQL may be away. Ask again: fermion status",
    ),
    Bound(
        "fermion_journal_waiting_commands",
        2048,
        "commit queue",
        "PostgreSQL is slow, or one journal is asked for more than it can. At 4,096 callers are told "
        "to come again. Watch it: fermion status",
    ),
    Bound(
        "fermion_relay_lag_seconds",
        30,
        "relay lag",
        "Is NATS there, and has its disk room? See where it stands: fermion status",
    ),
    Bound(
        "fermion_reader_lag_seconds",
        60,
        "reader lag",
        f"It stands still, or cannot keep up. {_LOG}, then: fermion audit",
    ),
    Bound(
        "fermion_scheduler_queued_seconds",
        60,
        "admission",
        f"Nobody looks at what has arrived. {_LOG}, then: fermion queue list -p PROJECT",
        {"reason": "ARRIVED"},
    ),
    Bound(
        "fermion_executor_replicas",
        0,
        "unreachable",
        "Nobody knows whether they live, and nobody pays for them. See where: fermion replicas -p PROJECT",
        {"state": "lost"},
    ),
    Bound(
        "fermion_executor_overdue_replicas",
        0,
        "overdue",
        "They were killed and are still there. See which: fermion replicas -p PROJECT",
    ),
    Bound(
        "fermion_executor_held_seconds",
        300,
        "held records",
        "Ended replicas are not let go of, for what they told is not durable everywhere. Count it: "
        "fermion audit",
    ),
    Bound(
        "fermion_executor_stranger_replicas",
        0,
        "strangers",
        "Somebody else made them, or another platform has this cluster; they are left alone. The "
        "executor's log names them. See what is ours: fermion replicas -p PROJECT",
    ),
    Bound(
        "fermion_executor_usage_age_seconds",
        120,
        "usage",
        f"What runs is not measured. {_LOG}, then: fermion instances top -p PROJECT",
    ),
    Bound(
        "fermion_billing_settled_age_seconds",
        120,
        "settled costs",
        "A cluster has not said everything up to now, or billing does not read it: fermion status. "
        "One that is gone for good: fermion clusters retire",
    ),
    Bound(
        "fermion_billing_settle_lag_seconds",
        300,
        "settlement",
        "What is over is not settled: its cluster is behind, or its project is in dispute: "
        "fermion journal parked",
    ),
    Bound(
        "fermion_billing_disputed_streams",
        0,
        "disputes",
        "Facts could not be used, and their projects are not settled: fermion journal parked",
    ),
)


class Figures:
    """What the processes have told."""

    def __init__(self, told: Iterable[api.Figure]) -> None:
        self._by_name: dict[str, list[api.Figure]] = {}
        for one in told:
            self._by_name.setdefault(one.name, []).append(one)

    def samples(self, name: str, labels: Mapping[str, str] | None = None) -> Sequence[api.Figure]:
        """All of one name that have these labels, among others."""
        wanted = (labels or {}).items()
        return [
            one
            for one in self._by_name.get(name, ())
            if all(one.labels.get(key) == value for key, value in wanted)
        ]

    def most(self, name: str, labels: Mapping[str, str] | None = None) -> int | None:
        """The greatest of them, in thousandths; None where there is none."""
        return max((one.value_milli for one in self.samples(name, labels)), default=None)


def amount(name: str, milli: int) -> str:
    """A value in the unit that its name ends in."""
    if name.endswith("_seconds"):
        return f"{milli // 1000} s"
    if name.endswith("_bytes"):
        return show.size(milli // 1000)
    return show.cores(milli)


def whose(one: api.Figure, bound: Bound) -> str:
    """What tells a sample apart from the others of its bound."""
    left = [value for key, value in sorted(one.labels.items()) if key not in bound.labels]
    return " of ".join(reversed(left))


def told(figures: Figures) -> Iterator[tuple[str, str]]:
    """How queue, replicas and bill are: a title and a sentence each, where there is one to tell."""
    yield "queue", _queue(figures)
    yield "held", _held(figures)
    yield "replicas", _replicas(figures)
    yield "bill", _bill(figures)


def _queue(figures: Figures) -> str:
    found = figures.samples("fermion_scheduler_queued_workloads")
    if not found:
        return ""
    waits = sorted((one for one in found if one.value_milli), key=lambda one: -one.value_milli)
    parts = []
    for one in waits:
        oldest = figures.most("fermion_scheduler_queued_seconds", one.labels) or 0
        parts.append(f"{show.cores(one.value_milli)} {one.labels['reason']} ({oldest // 1000} s)")
    return f"waiting, and how long the first has: {', '.join(parts)}" if parts else "empty"


def _held(figures: Figures) -> str:
    parts = []
    for unit, word in (
        ("gpus", "GPUs"),
        ("cores", "CPU"),
        ("memory_bytes", "memory"),
        ("storage_bytes", "disk"),
    ):
        held, there = f"fermion_scheduler_held_{unit}", f"fermion_scheduler_capacity_{unit}"
        whole = sum(one.value_milli for one in figures.samples(there))
        if whole:
            taken = sum(one.value_milli for one in figures.samples(held))
            parts.append(f"{amount(held, taken)} of {amount(there, whole)} {word}")
    return ", ".join(parts)


def _replicas(figures: Figures) -> str:
    found = figures.samples("fermion_executor_replicas")
    if not found:
        return ""
    parts = [f"{show.cores(one.value_milli)} {one.labels['state']}" for one in found]
    there = [part for part, one in zip(parts, found, strict=True) if one.value_milli]
    held = sum(one.value_milli for one in figures.samples("fermion_executor_held_records"))
    if held:
        there.append(f"{show.cores(held)} ended and still held")
    return ", ".join(there) or "none"


def _bill(figures: Figures) -> str:
    age = figures.most("fermion_billing_settled_age_seconds")
    if age is None:
        return ""
    parts = [f"settled up to {age // 1000} s ago"]
    opened = sum(one.value_milli for one in figures.samples("fermion_billing_open_intervals"))
    parts.append(f"{show.cores(opened)} intervals open")
    for name, word in (
        ("fermion_billing_unsettled_workloads", "over and not settled"),
        ("fermion_billing_disputed_streams", "disputed"),
    ):
        number = sum(one.value_milli for one in figures.samples(name))
        if number:
            parts.append(f"{show.cores(number)} {word}")
    return ", ".join(parts)
