"""What the platform's own program answers to words that it does not know."""

from __future__ import annotations

import pytest

from services.__main__ import main


def test_a_word_too_many_is_named_and_not_taken_for_a_service(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["config", "bogus"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == "error: config takes no more words; 'bogus' is one.\n"


def test_a_service_that_is_nearly_right_is_recognised(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["instnces"]) == 2
    assert "Did you mean instances?" in capsys.readouterr().err
