"""Rounds of a minute with fixed seeds; `make chaos` plays longer ones, and any other seed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.chaos.nets import allowed
from tests.stage import ROOT

SECONDS = 60
SEEDS = (2, 3)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", SEEDS)
def test_nothing_is_lost_or_doubled_and_time_is_told_exactly_whatever_is_struck(
    seed: int, tmp_path: Path
) -> None:
    output = tmp_path / "chaos.json"
    played = subprocess.run(
        [
            *(sys.executable, "-m", "tests.chaos", "--duration", str(SECONDS)),
            *("--seed", str(seed), "--output", str(output)),
        ],
        cwd=ROOT,
        check=False,
    )
    assert output.exists(), "the round did not come to its end"
    found = json.loads(output.read_text())
    assert found["broken"] == []
    assert played.returncode == 0
    assert (found["lost"], found["doubled"]) == (0, 0)
    assert found["partitions"] == ("network namespaces" if allowed() else "a proxy")
