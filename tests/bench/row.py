"""What one measurement came to, beside what it is compared with."""

from __future__ import annotations

import statistics
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

# A ratio below this share of its goal fails the run: machines are noisy, faults are not.
FAILS_BELOW = 0.7

# What every measure came to in every round, by name.
Found = Mapping[str, Sequence[float]]
Measure = Callable[[], Awaitable[float]]


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table; `ratio` is the median over rounds of value / `against`."""

    id: str
    what: str
    value: float
    unit: str
    against: str = ""
    ratio: float | None = None
    goal: float | None = None
    # The least and the most of the rounds' own ratios.
    spread: tuple[float, float] | None = None

    @property
    def holds(self) -> bool:
        """Whether it reaches its goal; what has none holds."""
        return self.goal is None or (self.ratio or 0.0) >= self.goal

    @property
    def fails(self) -> bool:
        """Whether it is so far below its goal that no noise explains it."""
        return self.goal is not None and (self.ratio or 0.0) < self.goal * FAILS_BELOW


def beside(
    id: str,
    what: str,
    unit: str,
    found: Found,
    name: str,
    other: str,
    described: str,
    goal: float | None = None,
) -> Row:
    """Put one measure of some rounds beside another one of the same rounds."""
    ratios = [one / bare for one, bare in zip(found[name], found[other], strict=True)]
    return Row(
        id,
        what,
        statistics.median(found[name]),
        unit,
        f"{described}, {statistics.median(found[other]):,.0f}/s",
        statistics.median(ratios),
        goal,
        (min(ratios), max(ratios)),
    )


def within(id: str, what: str, value: float, unit: str, most: float) -> Row:
    """Put a figure beside the most that it may be: the ratio is how often it fits in."""
    return Row(
        id,
        what,
        value,
        unit,
        f"the goal, {most:,g} {unit}, in which it fits so often",
        most / value,
        1.0,
    )


async def interleaved(measures: Mapping[str, Measure], rounds: int) -> dict[str, list[float]]:
    """Take every measure once a round, so that what slows the machine slows all of them."""
    found: dict[str, list[float]] = {name: [] for name in measures}
    for _ in range(rounds):
        for name, measure in measures.items():
            found[name].append(await measure())
    return found
