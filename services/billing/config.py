"""What an operator may set about billing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from chassis.config import setting
from chassis.refusals import Invalid, Violation


@dataclass(frozen=True, slots=True)
class Settings:
    """Where the first prices come from, and how often costs are looked at."""

    prices: Path = setting(
        "FERMION_BILLING_PRICES",
        Path(__file__).with_name("prices.yaml"),
        "File with the price book that a new platform begins with; later ones are published.",
    )
    currency: str = setting(
        "FERMION_CURRENCY",
        "USD",
        "ISO 4217 code of the currency that all prices and limits are in.",
    )
    proof_seconds: float = setting(
        "FERMION_BILLING_PROOF_SECONDS",
        10.0,
        "How often executors state that what runs is alive; twice that is taken for running on.",
    )
    look_seconds: float = setting(
        "FERMION_BILLING_LOOK_SECONDS",
        0.5,
        "How often limits are compared with costs, and live costs are sent to who watches.",
    )

    def __post_init__(self) -> None:
        for variable, value in (
            ("FERMION_BILLING_PROOF_SECONDS", self.proof_seconds),
            ("FERMION_BILLING_LOOK_SECONDS", self.look_seconds),
        ):
            if not 0 < value <= 3600:
                raise Invalid(
                    "SETTING_INVALID",
                    f"{variable} is {value:g}; it has to be above 0 and at most 3600.",
                    violations=(Violation(variable, "must be above 0 and at most 3600"),),
                    next_step=f"Set {variable} to a number of seconds, e.g. 10.",
                    variable=variable,
                    value=f"{value:g}",
                )
