"""Every setting, set to nonsense: it is refused by name, with what would be right, or it is taken."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Final, get_type_hints

import pytest

from chassis import config, telemetry
from chassis.config import Common
from chassis.embedded import free_port
from chassis.process import EXIT_REFUSED, Process
from chassis.refusals import Refused
from services.serve import TARGETS

ROOT: Final = Path(__file__).parents[2]
SECONDS_MAX: Final = 60.0
CLASSES: Final[tuple[type[object], ...]] = (
    Common,
    *(target.settings for target in TARGETS.values()),
)
NUMBERS: Final = (
    *("many", "-1", "nan", "inf", "-inf", "1e999", "9" * 30, "9" * 5000, "0x10", "1,5", "1 2"),
    *("\udcff", "\u0663", "{}", " ", "1e3", "0"),
)
TEXTS: Final = (
    *(" ", "-", "\udcff", "\x1b[2J", "\n", "../..", "/dev/null", "/etc", "/no/such/place"),
    *("%s%n", "{}", "'; --", "x" * 20_000, "localhost", "http://", "::1", "a:b:c", ",", ",,,"),
)
DSN: Final = "postgresql://nobody@127.0.0.1:1/none"


def every_setting() -> Iterator[tuple[type[object], str, object]]:
    """Class, variable and type of each setting."""
    for cls in CLASSES:
        hints = get_type_hints(cls)
        for one in fields(cls):  # type: ignore[arg-type]  # each is a dataclass
            yield cls, str(one.metadata["variable"]), hints[one.name]


def begun(cls: type[object], environment: dict[str, str]) -> None:
    """What a start does with its settings before it reaches out to anything."""
    config.load(cls, environment)
    common = config.load(Common, environment)
    telemetry.start_logs(common)
    Process(TARGETS, [name for name in TARGETS if name != "executor"], environment)


def refusal_of(cls: type[object], environment: dict[str, str]) -> Refused | None:
    """Why a start ends before it reaches out to anything; None where it does not."""
    try:
        begun(cls, environment)
    except Refused as refusal:
        return refusal
    return None


@pytest.mark.parametrize(("cls", "variable", "kind"), list(every_setting()))
def test_nonsense_is_refused_by_name_or_is_something_that_can_be_used(
    cls: type[object], variable: str, kind: object
) -> None:
    for text in NUMBERS if kind in (int, float, bool) else TEXTS:
        refusal = refusal_of(cls, {"FERMION_POSTGRES_DSN": DSN, variable: text})
        if refusal is None:
            if kind in (int, float):
                assert abs(float(text)) < 2**63, (variable, text)
            continue
        assert variable in refusal.message, refusal
        assert refusal.next_step, refusal
        assert refusal.violations, refusal
        for violation in refusal.violations:
            # One that bounds another one from above may be told as a fault of that one.
            assert violation.field in (variable, variable.replace("_MAX", "_MIN"))
            assert violation.description
        # As it is written into a log, whatever was in it.
        refusal.message.encode()


BROKEN: Final = {
    "FERMION_POSTGRES_DSN": ("nonsense", "postgresql://x:y:z@/q?host=,"),
    "FERMION_LISTEN": ("127.0.0.1:99999", "256.1.1.1:1"),
    "FERMION_METRICS_LISTEN": ("nonsense",),
    "FERMION_PUBLIC_KEYS": ("/etc",),
    "FERMION_SIGNING_KEY": ("/no/such/\udcff",),
    "FERMION_LOG_LEVEL": ("LOUD",),
    "FERMION_TRACES": ("\udcff",),
    "FERMION_POOL_SIZE": ("9" * 40,),
    "FERMION_COMMIT_QUEUE": ("0", "9" * 40),
}


@pytest.mark.parametrize("variable", BROKEN)
def test_a_process_that_is_told_nonsense_says_so_in_a_line_and_ends(variable: str) -> None:
    for text in BROKEN[variable]:
        told = {
            "FERMION_POSTGRES_DSN": DSN,
            "FERMION_LISTEN": f"127.0.0.1:{free_port()}",
            "FERMION_START_SECONDS_MAX": "0",
            variable: text,
        }
        kept = {name: one for name, one in os.environ.items() if not name.startswith("FERMION_")}
        done = subprocess.run(
            [sys.executable, "-m", "services", "projects"],
            env={**kept, **told},
            cwd=ROOT,
            capture_output=True,
            timeout=SECONDS_MAX,
            check=False,
        )
        said = (done.stdout + done.stderr).decode()
        assert "Traceback" not in said, said
        # What is looked at only when its database is there is not looked at here.
        waited = "database" in said and done.returncode == 1
        assert waited or done.returncode == EXIT_REFUSED, (text, said)
        assert waited or variable in said, (text, said)
