"""What operators watch of the bill: what is open, how old it is, what waits, and what nobody pays for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final

from chassis.clock import Clock, milliseconds
from chassis.postgres import Database
from chassis.queries import Queries
from chassis.telemetry import Figure, Kind, Sample
from fermion.pricebook import STATES
from services.billing.accounts import Accounts, Look, Question, Source

# What is settled is counted in pieces of so much at least.
PIECE_MS: Final = 30_000
# States of time that may be open; why a run drains or is lost is not told apart here.
RUNNING: Final = "running"
OPEN: Final = (RUNNING, "held", "backoff", "storage")
# Runs that came and went unseen: nobody pays for them, and they have no state.
MISSED: Final = "missed"
WORDS: Final = {number: word for word, number in STATES.items()}

_CLUSTER: Final = ("cluster",)
OPEN_INTERVALS: Final = Figure(
    "fermion_billing_open_intervals",
    "Times that have begun and not ended: runs, waits of bound replicas, and volumes.",
    ("cluster", "state"),
)
THROUGH: Final = Figure(
    "fermion_billing_settled_age_seconds",
    "Age of the moment up to which costs are settled; those of retired clusters are not shown.",
    _CLUSTER,
)
PROVED: Final = Figure(
    "fermion_billing_proof_age_seconds",
    "Age of the last proof that what runs is alive; twice the interval behind it nothing accrues.",
    _CLUSTER,
)
UNSETTLED: Final = Figure(
    "fermion_billing_unsettled_workloads", "Workloads that are over and not settled yet.", _CLUSTER
)
SETTLE_LAG: Final = Figure(
    "fermion_billing_settle_lag_seconds", "Since when the first of these is over.", _CLUSTER
)
DISPUTED: Final = Figure(
    "fermion_billing_disputed_streams",
    "Replicas and volumes with a fact that could not be used; their projects are not settled.",
)
BILLED: Final = Figure(
    "fermion_billing_billed_seconds_total",
    "Time of replicas that costs, as it was settled.",
    _CLUSTER,
    Kind.COUNTER,
)
UNBILLED: Final = Figure(
    "fermion_billing_unbilled_seconds_total",
    "Time of replicas that costs nothing, as it was settled, by the state that it was in.",
    ("cluster", "reason"),
    Kind.COUNTER,
)
FIGURES: Final = (
    *(OPEN_INTERVALS, THROUGH, PROVED, UNSETTLED, SETTLE_LAG, DISPUTED, BILLED, UNBILLED),
)


class BillFigures:
    """
    Reads them from the slots; nothing that is read grows with all that ever was.

    What is paid for is counted from the first reading of a process on. Corrections of what was
    counted already are not taken back: this is for alarms, and the statement has the truth.
    """

    def __init__(self, books: Accounts, database: Database, queries: Queries, clock: Clock) -> None:
        self._accounts = books
        self._database = database
        self._queries = queries
        self._clock = clock
        # By cluster and lineage: how far it was counted, and up to where all is settled.
        self._counted: dict[tuple[str, int], Source] = {}
        self._behind: dict[tuple[str, int], int] = {}
        self._billed: Counter[str] = Counter()
        self._unbilled: Counter[tuple[str, str]] = Counter()

    async def measure(self) -> Iterable[Sample]:
        """Read all of them once."""
        now = milliseconds(self._clock.now())
        look = await self._accounts.look(None)
        found = [Sample(DISPUTED, (), len(look.disputed))]
        for source in look.sources:
            found += await self._open(source.cluster)
            found += await self._unsettled(source, now)
            found += _ages(source, now)
            if look.books:
                await self._count(source, look)
            found.append(Sample(BILLED, (source.cluster,), self._billed[source.cluster] / 1000))
            found += [
                Sample(UNBILLED, (source.cluster, why), self._unbilled[source.cluster, why] / 1000)
                for why in (*STATES, MISSED)
            ]
        return found

    async def _open(self, cluster: str) -> Sequence[Sample]:
        rows = await self._database.fetch(self._queries["open_intervals"], cluster)
        found = {row["state"]: row["intervals"] for row in rows}
        return [Sample(OPEN_INTERVALS, (cluster, state), found.get(state, 0)) for state in OPEN]

    async def _unsettled(self, source: Source, now: int) -> Sequence[Sample]:
        key = (source.cluster, source.epoch)
        row = await self._database.fetchrow(
            self._queries["count_unsettled"], source.cluster, self._behind.get(key, 0)
        )
        assert row is not None
        first: int | None = row["position"]
        self._behind[key] = source.position if first is None else first - 1
        lag = 0 if first is None else max(0, now - row["at_ms"])
        labels = (source.cluster,)
        return [
            Sample(UNSETTLED, labels, row["workloads"]),
            Sample(SETTLE_LAG, labels, lag / 1000),
        ]

    async def _count(self, source: Source, look: Look) -> None:
        """Count what was settled since it was counted last."""
        key, through = (source.cluster, source.epoch), source.through_ms
        if through is None:
            return
        last = self._counted.setdefault(key, source)
        assert last.through_ms is not None
        if through < last.through_ms + PIECE_MS:
            return
        lived = await self._database.fetch(self._queries["lived"], source.cluster, last.through_ms)
        asked = Question(
            last.through_ms, through, workloads=tuple(row["workload"] for row in lived)
        )
        rows = await self._accounts.usage(asked, look, {source.cluster: through})
        missed = await self._database.fetchrow(
            self._queries["missed_ms"], source.cluster, last.position, source.position
        )
        for row in rows:
            if row["billed"]:
                self._billed[source.cluster] += row["ms"]
            else:
                self._unbilled[source.cluster, WORDS[row["state"]]] += row["ms"]
        self._unbilled[source.cluster, MISSED] += 0 if missed is None else missed["ms"]
        self._counted[key] = source


def _ages(source: Source, now: int) -> Sequence[Sample]:
    if source.retired:
        return []
    return [
        Sample(figure, (source.cluster,), max(0, now - at) / 1000)
        for figure, at in ((THROUGH, source.through_ms), (PROVED, source.proved_ms))
        if at is not None
    ]
