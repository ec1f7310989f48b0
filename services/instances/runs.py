"""
The runs of one attempt as its replica tells of them: what is news and what is late, and how it went.

Facts of a replica come in its order; beside the scheduler's they come in any. So each is taken by
its rank: another replica after this one, a later run after an earlier one, its end after its start.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from fermion.api.workload import v1 as workload

# What a shell shows of a program that a signal ended.
SIGNALLED: Final = 128

# What a user asks for himself, and needs no explanation of.
_ASKED: Final = frozenset(
    {
        workload.CAUSE_UNSPECIFIED,
        workload.CAUSE_USER_STOP,
        workload.CAUSE_DELETE,
        workload.CAUSE_RESTART,
    }
)


@dataclass(frozen=True, slots=True)
class Runs:
    """What one attempt's replica has said and run so far; nothing, at first."""

    # The one that spoke last; those before it have made place for it.
    replica: str = ""
    past: tuple[str, ...] = ()
    # The last run of the replica; -1 before the first.
    run: int = -1
    # Whether it has begun and not ended.
    open: bool = False
    # How many runs those before it have had.
    before: int = 0
    restarts: int = 0
    addresses: Mapping[str, str] = field(default_factory=dict)
    # Of the run that ended last; no code where nobody knows it.
    exit_code: int | None = None
    signal: int = 0
    reason: workload.Reason | None = None
    # How much of each the replica has said.
    pendings: int = 0
    readies: int = 0
    unreadies: int = 0

    def waits(self, replica: str, n: int, again: bool) -> bool:
        """
        Whether it is news that a replica does not run: not yet, or not `again` yet.

        While a run is open it is late, and so is what comes before a first run that has been.
        """
        if self.open or replica in self.past:
            return False
        if replica != self.replica:
            return True
        return n > self.pendings and (again or self.run < 0)

    def begins(self, replica: str, run: int) -> bool:
        """Whether the start of a run is news."""
        return replica not in self.past and (replica != self.replica or run > self.run)

    def ends(self, replica: str, run: int) -> bool:
        """Whether the end of a run is news."""
        return self.open and (replica, run) == (self.replica, self.run)

    def restarts_with(self, replica: str, run: int) -> int:
        """How often it was begun again once this run has begun; runs that nobody saw count, too."""
        return self._of(replica).before + run

    def waiting(self, replica: str, n: int) -> Runs:
        """A replica does not run."""
        return replace(self._of(replica), pendings=n)

    def began(self, replica: str, run: int, restarts: int, addresses: Mapping[str, str]) -> Runs:
        """A run began."""
        return replace(
            self._of(replica), run=run, open=True, restarts=restarts, addresses=addresses
        )

    def ended(self, exit_code: int, signal: int, reason: workload.Reason | None) -> Runs:
        """The run ended."""
        return replace(
            self,
            open=False,
            addresses={},
            exit_code=shown(exit_code, signal),
            signal=signal,
            reason=reason,
        )

    def closed(self) -> Runs:
        """Nothing runs any more, whether or not the end of a run was heard of."""
        return replace(self, open=False, addresses={})

    def _of(self, replica: str) -> Runs:
        if replica == self.replica:
            return self
        if not self.replica:
            return replace(self, replica=replica)
        return replace(
            self,
            replica=replica,
            past=(*self.past, self.replica),
            run=-1,
            open=False,
            before=self.before + self.run + 1,
            addresses={},
            pendings=0,
            readies=0,
            unreadies=0,
        )


def shown(exit_code: int, signal: int) -> int | None:
    """An exit code as a shell shows it; None where nobody knows it."""
    if signal:
        return SIGNALLED + signal
    return exit_code if exit_code >= 0 else None


def because(cause: workload.Cause.ValueType) -> workload.Reason | None:
    """Tell a cause in words; None where the user asked for it himself."""
    match cause:
        case workload.CAUSE_MAX_DURATION:
            return workload.Reason(code="MAX_DURATION", message="It ran as long as it may.")
        case workload.CAUSE_BUDGET:
            return workload.Reason(code="BUDGET", message="The money for it is used up.")
        case workload.CAUSE_PREEMPTION:
            return workload.Reason(
                code="PREEMPTED", message="It made place for more important work."
            )
        case workload.CAUSE_NODE_DRAIN:
            return workload.Reason(code="NODE_DRAIN", message="Its node was emptied.")
        case workload.CAUSE_NODE_LOST:
            return workload.Reason(code="NODE_LOST", message="Its node is gone.")
        case _ if cause in _ASKED:
            return None
        case _:
            known = workload.Cause.DESCRIPTOR.values_by_number.get(cause)
            # The executor of a later release may give a cause that is not known here.
            word = str(cause) if known is None else known.name.removeprefix("CAUSE_")
            return workload.Reason(
                code="ENDED_BY_PLATFORM",
                arguments={"cause": word},
                message=f"The platform ended it ({word}).",
            )


def failure(
    runs: Runs, outcome: workload.Outcome.ValueType, cause: workload.Cause.ValueType
) -> workload.Reason | None:
    """Tell why an attempt that nobody asked to stop has failed; None where it has not."""
    match outcome:
        case workload.OUTCOME_SUCCEEDED | workload.OUTCOME_STOPPED | workload.OUTCOME_PREEMPTED:
            return None
        case workload.OUTCOME_NEVER_STARTED if because(cause) is not None:
            return None
        case workload.OUTCOME_NEVER_STARTED:
            return workload.Reason(
                code="NEVER_STARTED", message="It ended before anything of it had started."
            )
        case workload.OUTCOME_REJECTED:
            return workload.Reason(code="REJECTED", message="No cluster can honour it.")
        case workload.OUTCOME_LOST if because(cause) is not None:
            return because(cause)
        case _:
            return _last(runs)


def _last(runs: Runs) -> workload.Reason:
    """Tell how the last run ended: in the executor's word where it has one, else by code or signal."""
    again = ""
    if runs.restarts:
        again = f", after {runs.restarts} restart{'s' if runs.restarts > 1 else ''}"
    if runs.open or runs.exit_code is None:
        found = workload.Reason(
            code="END_UNKNOWN", message=f"It failed, and how it ended is not known{again}."
        )
    elif runs.signal:
        found = workload.Reason(
            code="SIGNALLED",
            arguments={"signal": str(runs.signal)},
            message=f"Signal {runs.signal} ended it{again}.",
        )
    else:
        found = workload.Reason(
            code="EXITED",
            arguments={"exit_code": str(runs.exit_code)},
            message=f"It exited with {runs.exit_code}{again}.",
        )
    if runs.reason is not None and not runs.open:
        found.MergeFrom(runs.reason)
    found.arguments["restarts"] = str(runs.restarts)
    return found
