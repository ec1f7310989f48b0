"""What a round has found: printed as it goes, and written as `build/chaos.json` when it is over."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tests.chaos.faults import Fault


@dataclass(frozen=True, slots=True)
class Struck:
    """One fault that struck."""

    kind: str
    target: str
    # Seconds since the round began.
    at: float
    # Calls that were in flight, and facts that were committed and not published.
    flying: int
    unpublished: int
    # Seconds until what was killed was in service again, in the midst of all the rest.
    recovery: float | None


@dataclass(frozen=True, slots=True)
class Recovery:
    """How long parts take to be in service again when nothing else happens, and to start bare."""

    part: str
    seconds: Sequence[float]
    bare: Sequence[float]


@dataclass
class Report:
    """All of it."""

    duration: float
    seed: int
    # Kinds of faults, where not all.
    only: Sequence[str] = ()
    began: float = 0.0
    # How long faults really struck.
    stormed: float = 0.0
    struck: list[Struck] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    recoveries: list[Recovery] = field(default_factory=list)
    figures: dict[str, object] = field(default_factory=dict)
    # What does not hold.
    broken: list[str] = field(default_factory=list)

    def say(self, fault: Fault, words: str) -> float:
        """Print a line of what happens; seconds since the round began."""
        at = time.monotonic() - self.began
        print(f"{at:8.2f} s  {fault.kind:<17} {fault.target:<24} {words}".rstrip(), flush=True)
        return at

    def note(self, words: str) -> None:
        """Print what happens apart from faults."""
        print(f"{time.monotonic() - self.began:8.2f} s  {words}", flush=True)

    def check(self, holds: bool, sentence: str, detail: object = "") -> None:
        """Note what does not hold."""
        if not holds:
            found = f"{sentence}: {detail!r}"[:2000]
            print(f"BROKEN   {found}", flush=True)
            self.broken.append(found)

    def counted(self) -> dict[str, dict[str, int]]:
        """How often each kind struck each target."""
        found: dict[str, dict[str, int]] = {}
        for (kind, target), count in sorted(
            Counter((s.kind, s.target) for s in self.struck).items()
        ):
            found.setdefault(kind, {})[target] = count
        return found

    def summary(self) -> str:
        """All of it in a few lines."""
        figures = self.figures
        return "\n".join(
            (
                f"{len(self.struck)} faults in {self.stormed:.0f} s, "
                f"{sum(one.kind == 'kill' for one in self.struck)} of them kills",
                f"{figures.get('acknowledged')} calls acknowledged, {figures.get('lost')} lost, "
                f"{figures.get('doubled')} doubled, {figures.get('retries')} sent again",
                f"{figures.get('runs')} runs; metering error in ms {figures.get('metering_error_ms')}",
                *(
                    f"{one.part}: back after {quantiles(one.seconds)}, over bare {quantiles(over(one))}"
                    for one in self.recoveries
                ),
                *(f"not drawn: {each}" for each in self.skipped),
                *(f"missed: {each}" for each in self.missed),
                f"{len(self.broken)} broken" if self.broken else "all of it holds",
            )
        )

    def write(self, path: Path) -> None:
        """Write it for programs."""
        path.parent.mkdir(parents=True, exist_ok=True)
        found = {
            "seed": self.seed,
            "duration_seconds": self.duration,
            "storm_seconds": round(self.stormed, 1),
            "faults": len(self.struck),
            "kills": sum(one.kind == "kill" for one in self.struck),
            "faults_by_kind": self.counted(),
            "missed": self.missed,
            "skipped": self.skipped,
            **self.figures,
            "recovery_seconds": {
                one.part: {
                    **quantiles(one.seconds),
                    "bare": quantiles(one.bare),
                    "over_bare": quantiles(over(one)),
                }
                for one in self.recoveries
            },
            "recovery_seconds_in_the_storm": {
                part: quantiles(
                    [
                        one.recovery
                        for one in self.struck
                        if one.recovery is not None and one.target == part
                    ]
                )
                for part in sorted({one.target for one in self.struck if one.recovery is not None})
            },
            "broken": self.broken,
            "timeline": [asdict(one) for one in self.struck],
        }
        path.write_text(json.dumps(found, indent=1) + "\n")


def over(recovery: Recovery) -> list[float]:
    """How much longer each took than the bare start beside it."""
    return [one - bare for one, bare in zip(recovery.seconds, recovery.bare, strict=True)]


def quantiles(values: Sequence[float]) -> dict[str, float]:
    """Some figures of many; empty of none."""
    if not values:
        return {}
    ordered = sorted(values)
    last = len(ordered) - 1
    return {
        name: round(ordered[min(last, int(len(ordered) * share))], 3)
        for name, share in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99), ("max", 1.0))
    } | {"n": len(ordered)}
