"""What the embedded start prints."""

from __future__ import annotations

import pytest

from chassis.refusals import Refused
from services.supervisor import tell


def test_a_refusal_tells_what_to_do_and_the_terminal_obeys_nothing_that_it_quotes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    tell(Refused("TAKEN", "\x1b[2Jé\udcff\n is taken.", next_step="Name another one."))
    assert capsys.readouterr().out == (
        "error: \\x1b[2Jé\\udcff\\n is taken.\n  what to do: Name another one.\n  reason: TAKEN\n"
    )
    tell(Refused("GONE", "It is gone."))
    assert capsys.readouterr().out == "error: It is gone.\n  reason: GONE\n"
