"""Turns each fact of billing into the named writes of its rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import assert_never, cast

from chassis.envelope import Recorded
from chassis.journal import Write
from fermion.api.billing import v1 as api
from services.billing.aggregate import Fact


def project(record: Recorded) -> Sequence[Write]:
    """Choose the writes of one fact."""
    fact = cast(Fact, record.message)
    match fact:
        case api.PricesPublished(price_book=said):
            number = said.number
            return [
                Write(
                    "add_price_book",
                    f"book {number}",
                    (
                        number,
                        said.version,
                        said.effective_time.ToMilliseconds(),
                        said.SerializeToString(deterministic=True),
                    ),
                ),
                *(
                    Write(
                        "add_rule",
                        f"rule {number} {rule.state}",
                        (number, rule.state, rule.billed, rule.free.ToMilliseconds()),
                    )
                    for rule in said.states
                ),
                *(
                    Write("add_platform_cause", f"cause {number} {cause}", (number, cause))
                    for cause in said.platform_causes
                ),
            ]
        case api.CostLimitReached():
            return [Write("limit_workload", fact.uid, (fact.uid, fact.project))]
        case api.WorkloadSettled():
            return [Write("settle_workload", fact.uid, (fact.uid, fact.project, fact.amount.nanos))]
        case _:
            assert_never(fact)
