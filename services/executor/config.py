"""What an operator may set about the executor: its cluster, and how often it says what."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Final

from chassis.config import setting
from chassis.refusals import Invalid, Violation

# So long the use of replicas is kept.
USAGE_KEPT: Final = timedelta(hours=1)
# More than one machine has.
GPUS_MAX: Final = 64

_UID: Final = re.compile(r"[0-7][0-9a-hjkmnp-tv-z]{25}")


@dataclass(frozen=True, slots=True)
class Settings:
    """The cluster of this executor."""

    cluster: str = setting(
        "FERMION_EXECUTOR_CLUSTER", "", "Uid of the cluster: 26 characters; `fermion up` makes one."
    )
    root: Path = setting(
        "FERMION_EXECUTOR_ROOT", Path(), "Folder of the local cluster: replicas, volumes, images."
    )
    key: Path = setting(
        "FERMION_EXECUTOR_KEY",
        Path(),
        "File with the secret that the tokens of replicas, e.g. of notebooks, are made from.",
    )
    simulate_gpus: int = setting(
        "FERMION_EXECUTOR_SIMULATE_GPUS",
        0,
        "GPUs that the local cluster pretends to have; it says so wherever it matters.",
        least=0,
        most=GPUS_MAX,
    )
    proof_seconds: float = setting(
        "FERMION_EXECUTOR_PROOF_SECONDS",
        10.0,
        "How often it states that what runs is alive, and up to when all has been said.",
        least=0.1,
        most=3600,
    )
    usage_seconds: float = setting(
        "FERMION_EXECUTOR_USAGE_SECONDS",
        10.0,
        "How often the use of replicas is measured.",
        least=0.1,
        most=3600,
    )
    log_days: float = setting(
        "FERMION_EXECUTOR_LOG_DAYS",
        7.0,
        "So long the logs of what ended are kept.",
        least=0,
        most=36_500,
    )

    def __post_init__(self) -> None:
        if self.cluster and not _UID.fullmatch(self.cluster):
            raise Invalid(
                "SETTING_INVALID",
                f"FERMION_EXECUTOR_CLUSTER is {self.cluster!r}, which is no uid of a cluster.",
                violations=(
                    Violation(
                        "FERMION_EXECUTOR_CLUSTER", "must be 26 lower-case base32 characters"
                    ),
                ),
                next_step="Take the one in the cluster's folder, or let `fermion up` make one.",
                variable="FERMION_EXECUTOR_CLUSTER",
                value=self.cluster,
            )
