"""What an operator may set about instances: the least and the most of one, and the money."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from chassis.config import setting, wrong
from chassis.refusals import Invalid, Violation

GB = 10**9
TIB = 2**40
CURRENCY: Final = re.compile("[A-Z]{3}")


@dataclass(frozen=True, slots=True)
class Settings:
    """
    Bounds of what one instance may ask for; the defaults are those of the user guide.

    GB and TB are read generously, decimal where they bound from below and binary where they bound
    from above, so that both readings of the guide's numbers are accepted.
    """

    gpu_milli_min: int = setting(
        "FERMION_INSTANCES_GPU_MIN", 0, "Least GPUs of an instance, in thousandths.", least=0
    )
    gpu_milli_max: int = setting(
        "FERMION_INSTANCES_GPU_MAX", 8_000, "Most GPUs of an instance, in thousandths.", least=0
    )
    cpu_milli_min: int = setting(
        "FERMION_INSTANCES_CPU_MIN",
        4_000,
        "Least CPU cores of an instance, in thousandths.",
        least=0,
    )
    cpu_milli_max: int = setting(
        "FERMION_INSTANCES_CPU_MAX",
        128_000,
        "Most CPU cores of an instance, in thousandths.",
        least=0,
    )
    memory_bytes_min: int = setting(
        "FERMION_INSTANCES_MEMORY_MIN", 16 * GB, "Least memory of an instance, in bytes.", least=0
    )
    memory_bytes_max: int = setting(
        "FERMION_INSTANCES_MEMORY_MAX", TIB, "Most memory of an instance, in bytes.", least=0
    )
    storage_bytes_min: int = setting(
        "FERMION_INSTANCES_STORAGE_MIN", 50 * GB, "Least disk of an instance, in bytes.", least=0
    )
    storage_bytes_max: int = setting(
        "FERMION_INSTANCES_STORAGE_MAX", 2 * TIB, "Most disk of an instance, in bytes.", least=0
    )

    currency: str = setting(
        "FERMION_CURRENCY", "USD", "Currency of the prices (ISO 4217); max_cost is in it."
    )

    def __post_init__(self) -> None:
        if not CURRENCY.fullmatch(self.currency):
            raise wrong("FERMION_CURRENCY", self.currency, "must be three upper-case letters")
        for name, least, most in (
            ("GPU", self.gpu_milli_min, self.gpu_milli_max),
            ("CPU", self.cpu_milli_min, self.cpu_milli_max),
            ("MEMORY", self.memory_bytes_min, self.memory_bytes_max),
            ("STORAGE", self.storage_bytes_min, self.storage_bytes_max),
        ):
            if not 0 <= least <= most:
                variable, bound = f"FERMION_INSTANCES_{name}_MIN", f"FERMION_INSTANCES_{name}_MAX"
                raise Invalid(
                    "SETTING_INVALID",
                    f"{variable} is {least} and {bound} is {most}, so nothing could be asked for.",
                    violations=(Violation(variable, f"must be between 0 and {bound}"),),
                    next_step=f"Set {variable} to {most} or less.",
                    variable=variable,
                    value=str(least),
                )
