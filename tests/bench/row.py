"""What one measurement came to, beside what it is compared with."""

from __future__ import annotations

import statistics
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

# A ratio below this share of its goal fails the run: machines are noisy, faults are not.
FAILS_BELOW = 0.7


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

    @property
    def holds(self) -> bool:
        """Whether it is not far below its goal."""
        return self.goal is None or (self.ratio or 0.0) >= self.goal * FAILS_BELOW


Measure = Callable[[], Awaitable[float]]


async def interleaved(measures: Mapping[str, Measure], rounds: int) -> dict[str, list[float]]:
    """Take every measure once a round, so that what slows the machine slows all of them."""
    found: dict[str, list[float]] = {name: [] for name in measures}
    for _ in range(rounds):
        for name, measure in measures.items():
            found[name].append(await measure())
    return found


def ratio(values: Sequence[float], against: Sequence[float]) -> float:
    """Median of the rounds' own ratios."""
    return statistics.median(one / other for one, other in zip(values, against, strict=True))
