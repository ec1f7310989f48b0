"""How much each scope may hold, and holds: limits by dimension, one level of projects and of users."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple, TypeAlias

from services.scheduler.placement import ANY, Size

# An amount of each dimension: `gpu_milli/A100`, `gpu_milli/*`, `cpu_milli`, `memory_bytes`,
# `storage_bytes`, `workloads/instance`.
Amounts: TypeAlias = Mapping[str, int]

PROJECTS: Final = "projects/"
USERS: Final = "users/"
# Stands for each that has no limits of its own.
DEFAULT: Final = "-"
SHARES: Final = 10**9


class Short(NamedTuple):
    """One dimension of which a scope may not hold so much more."""

    scope: str
    dimension: str
    need: int
    used: int
    limit: int

    @property
    def ever(self) -> bool:
        """Whether it could be held if nothing else were."""
        return self.need <= self.limit


class Quotas:
    """
    The limits of all scopes, and what each holds.

    `eased` names scopes that may hold more than before, since it was last emptied.
    """

    def __init__(self) -> None:
        # Uids by name, of projects whose quota has been read.
        self.projects: dict[str, str] = {}
        self.limits: dict[str, dict[str, int]] = {}
        self.used: dict[str, Counter[str]] = {}
        self.eased: set[str] = set()

    def set(self, projects: Mapping[str, str], limits: Mapping[str, Amounts]) -> bool:
        """Have these limits, by scope as `QuotaSet` has it, and know these projects; whether that is new."""
        wanted = {scope: dict(amounts) for scope, amounts in limits.items()}
        if (self.projects, self.limits) == (dict(projects), wanted):
            return False
        self.projects, self.limits = dict(projects), wanted
        return True

    def knows(self, project: str) -> bool:
        """Whether the project's quota has been read."""
        return project in self.projects

    def limits_of(self, scope: str) -> tuple[Amounts, bool]:
        """The limits of `projects/<name>` or `users/<uid>`, and whether they are those of `-`."""
        own = scope
        if scope.startswith(PROJECTS):
            own = PROJECTS + self.projects.get(scope.removeprefix(PROJECTS), "")
        found = self.limits.get(own)
        if found is not None:
            return found, False
        default = (PROJECTS if scope.startswith(PROJECTS) else USERS) + DEFAULT
        return self.limits.get(default, {}), True

    def held(self, scope: str) -> Amounts:
        """What a scope holds."""
        return self.used.get(scope, {})

    def short(self, scope: str, need: Amounts) -> Short | None:
        """The dimension that a scope lacks most for so much more; None where there is room for all."""
        limits, _ = self.limits_of(scope)
        if not limits:
            return None
        used = self.held(scope)
        found = [
            Short(scope, dimension, amount, used.get(dimension, 0), limits[dimension])
            for dimension, amount in need.items()
            if amount > 0
            and dimension in limits
            and used.get(dimension, 0) + amount > limits[dimension]
        ]
        # What can never be held is told before what only has to wait.
        return min(found, key=lambda one: (one.ever, one.dimension), default=None)

    def count(self, scopes: Iterable[str], before: Amounts, after: Amounts) -> None:
        """Have these scopes hold this instead of that."""
        if before == after:
            return
        less = any(after.get(dimension, 0) < amount for dimension, amount in before.items())
        for scope in scopes:
            held = self.used.setdefault(scope, Counter())
            held.subtract(before)
            held.update(after)
            for dimension in [name for name, amount in held.items() if not amount]:
                del held[dimension]
            if not held:
                del self.used[scope]
            if less:
                self.eased.add(scope)

    def share(self, scope: str, totals: Amounts) -> int:
        """A scope's dominant share."""
        return part_of(self.held(scope), totals)


def part_of(held: Amounts, totals: Amounts) -> int:
    """The greatest part that is held of anything, in billionths."""
    parts = (
        held.get(dimension, 0) * SHARES // total for dimension, total in totals.items() if total
    )
    return max(parts, default=0)


def amounts(size: Size, number: int = 1) -> dict[str, int]:
    """What so many of a size count for against limits; scratch is not storage that is kept."""
    found = {
        "cpu_milli": number * size.cpu_milli,
        "memory_bytes": number * size.memory_bytes,
    }
    if size.gpu_milli:
        found[f"gpu_milli/{size.gpu_type}"] = number * size.gpu_milli
        found[f"gpu_milli/{ANY}"] = number * size.gpu_milli
    return {dimension: amount for dimension, amount in found.items() if amount}


def scopes(project: str, user: str) -> tuple[str, str]:
    """Whose limits a workload counts against."""
    return PROJECTS + project, USERS + user


def leaf(project: str, user: str) -> str:
    """What one user holds in one project: no limit stands on it, it only orders."""
    return f"{PROJECTS}{project}/{USERS}{user}"
