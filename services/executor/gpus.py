"""The GPUs of this machine, or those that it pretends to have."""

from __future__ import annotations

import shutil
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

SIMULATED_MODEL: Final = "SIM-GPU"
ASK_SECONDS_MAX: Final = 10.0
MIB: Final = 2**20


@dataclass(frozen=True, slots=True)
class Gpus:
    """Models by index; replicas are given whole devices."""

    models: Sequence[str] = ()
    driver: str = ""
    simulated: bool = False

    def of(self, model: str) -> Sequence[str]:
        """Indices of a model's devices; of the first model where none is named."""
        wanted = model or (self.models[0] if self.models else "")
        return [str(index) for index, found in enumerate(self.models) if found == wanted]

    def counted(self) -> Mapping[str, int]:
        """How many there are of each model."""
        return Counter(self.models)


@dataclass(frozen=True, slots=True)
class GpuUse:
    """What is used of one device."""

    milli: int
    memory_bytes: int


def simulated(count: int) -> Gpus:
    """Devices that are not there."""
    return Gpus((SIMULATED_MODEL,) * count, simulated=True)


def found(program: str = "nvidia-smi") -> Gpus:
    """What the driver tells; none where there is no driver."""
    rows = _ask(program, "--query-gpu=name,driver_version")
    models = [model_of(row[0]) for row in rows]
    return Gpus(tuple(models), rows[0][1] if rows else "")


def used(program: str = "nvidia-smi") -> Mapping[str, GpuUse]:
    """Use of each device by its index; nothing where nobody measures it."""
    rows = _ask(program, "--query-gpu=index,utilization.gpu,memory.used")
    return {
        index: GpuUse(int(share) * 10, int(memory) * MIB)
        for index, share, memory in rows
        if share.isdigit() and memory.isdigit()
    }


def model_of(name: str) -> str:
    """Write a product's name as a model: `NVIDIA A100-SXM4-80GB` is `A100-SXM4-80GB`."""
    return "-".join(name.removeprefix("NVIDIA ").split())


def _ask(program: str, query: str) -> list[list[str]]:
    path = shutil.which(program)
    if path is None:
        return []
    try:
        answer = subprocess.run(
            [path, query, "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=ASK_SECONDS_MAX,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        # A driver that does not answer has no device to give.
        return []
    return [[part.strip() for part in line.split(",")] for line in answer.stdout.splitlines()]
