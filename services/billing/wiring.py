"""Tells the chassis what billing is made of."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from chassis.command import transact
from chassis.envelope import Meta
from chassis.journal import Book
from chassis.refusals import Invalid, Violation
from chassis.service import Kernel, Loop, Mount, Target, Wired
from fermion import pricebook
from fermion.api.billing import v1 as api
from fermion.api.billing.v1 import events_pb2, service_pb2_grpc
from fermion.errors import InvalidArgument
from services.billing import aggregate, projection
from services.billing.accounts import Accounts
from services.billing.config import Settings
from services.billing.consumer import Enrolments, Meter
from services.billing.figures import FIGURES, BillFigures
from services.billing.servicer import CostServicer, PriceServicer
from services.billing.settler import Settler


def wire(kernel: Kernel[Settings]) -> Wired:
    """Put the rooms together."""
    accounts = Accounts(kernel.database, kernel.queries)
    settler = Settler(
        accounts, kernel.journal, kernel.lease("settlement"), kernel.clock, kernel.settings
    )
    first = _first(kernel.settings)

    async def begin() -> None:
        await transact(
            kernel.journal,
            aggregate.PRICES,
            aggregate.fold_prices,
            partial(aggregate.begin, first=first, now=kernel.clock.now()),
            meta=Meta(actor=f"service:{aggregate.SERVICE}"),
        )

    return Wired(
        servicers=(
            Mount(
                "fermion.api.billing.v1.PriceService",
                service_pb2_grpc.add_PriceServiceServicer_to_server,
                PriceServicer(kernel),
            ),
            Mount(
                "fermion.api.billing.v1.CostService",
                service_pb2_grpc.add_CostServiceServicer_to_server,
                CostServicer(kernel, accounts),
            ),
        ),
        consumers=(Enrolments(), Meter()),
        begin=begin,
        loops=(Loop("settlement", settler.run),),
        measure=BillFigures(accounts, kernel.database, kernel.queries, kernel.clock).measure,
    )


def _first(settings: Settings) -> api.PriceBook:
    """Read the prices that a new platform begins with; `Invalid` where they cannot be read or used."""
    path = settings.prices
    try:
        found = pricebook.parse(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError, InvalidArgument) as error:
        raise _unusable(path, str(error)) from error
    if found.currency != settings.currency:
        raise _unusable(
            path, f"its currency is {found.currency}, and FERMION_CURRENCY is {settings.currency}."
        )
    return found


def _unusable(path: Path, why: str) -> Invalid:
    return Invalid(
        "SETTING_INVALID",
        f"FERMION_BILLING_PRICES names {path}, which cannot be used: {why}",
        violations=(Violation("FERMION_BILLING_PRICES", "must name a file with a price book"),),
        next_step="Name a file like services/billing/prices.yaml.",
        variable="FERMION_BILLING_PRICES",
        value=str(path),
    )


TARGET = Target(
    name=aggregate.SERVICE,
    folder=Path(__file__).parent,
    events=(events_pb2.DESCRIPTOR,),
    reads=("projects", "executor"),
    settings=Settings,
    book=Book(aggregate.place, projection.project),
    wire=wire,
    figures=FIGURES,
)
