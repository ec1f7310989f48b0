"""Settings come typed from the environment, and a wrong one is told by name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from chassis import config
from chassis.config import Common, setting
from chassis.refusals import Invalid


@dataclass(frozen=True, slots=True)
class Sample:
    """Settings of every kind."""

    words: tuple[str, ...] = setting("FERMION_SAMPLE_WORDS", ("a", "b"), "Some words.")
    number: int = setting("FERMION_SAMPLE_NUMBER", 3, "A number.", least=1)
    share: float = setting("FERMION_SAMPLE_SHARE", 0.5, "A share.", least=0)
    seconds: float = setting("FERMION_SAMPLE_SECONDS", 1.0, "A time.", least=0, most=60)
    name: str = setting("FERMION_SAMPLE_NAME", "", "A name.")
    flag: bool = setting("FERMION_SAMPLE_FLAG", False, "Yes or no.")
    folder: Path = setting("FERMION_SAMPLE_FOLDER", Path(), "A folder.")


def test_what_is_not_said_has_its_default() -> None:
    assert config.load(Sample, {}) == Sample()
    assert config.load(Sample, {"FERMION_SAMPLE_NUMBER": ""}) == Sample()


def test_every_kind_is_read() -> None:
    found = config.load(
        Sample,
        {
            "FERMION_SAMPLE_WORDS": "x, y z",
            "FERMION_SAMPLE_NUMBER": "7",
            "FERMION_SAMPLE_SHARE": "0.25",
            "FERMION_SAMPLE_FLAG": "yes",
            "FERMION_SAMPLE_FOLDER": "/srv/fermion",
        },
    )
    assert found == Sample(("x", "y", "z"), 7, 0.25, 1.0, "", True, Path("/srv/fermion"))


@pytest.mark.parametrize(
    ("variable", "text", "rule"),
    [
        ("FERMION_SAMPLE_NUMBER", "many", "must be a whole number of at least 1"),
        ("FERMION_SAMPLE_NUMBER", "0", "must be a whole number of at least 1"),
        ("FERMION_SAMPLE_SHARE", "nan", "must be a number of at least 0"),
        ("FERMION_SAMPLE_NUMBER", "9" * 19, "must be a whole number of at least 1"),
        ("FERMION_SAMPLE_SHARE", "inf", "must be a number of at least 0"),
        ("FERMION_SAMPLE_SECONDS", "61", "must be a number from 0 to 60"),
        ("FERMION_SAMPLE_SECONDS", "-1", "must be a number from 0 to 60"),
        ("FERMION_SAMPLE_FLAG", "perhaps", "must be true or false"),
        ("FERMION_SAMPLE_NAME", "a\nb", "must be text of one line without control characters"),
        ("FERMION_SAMPLE_NAME", "\udcff", "must be text of one line without control characters"),
    ],
)
def test_a_wrong_value_names_variable_value_and_rule(variable: str, text: str, rule: str) -> None:
    with pytest.raises(Invalid) as error:
        config.load(Sample, {variable: text})
    assert error.value.reason == "SETTING_INVALID"
    assert error.value.arguments == {"variable": variable, "value": text}
    assert [(found.field, found.description) for found in error.value.violations] == [
        (variable, rule)
    ]
    assert "python -m services config" in error.value.next_step


def test_the_table_explains_every_setting() -> None:
    table = config.table({"every process": Common, "sample": Sample})
    for variable in ("FERMION_POSTGRES_DSN", "FERMION_TRACES", "FERMION_SAMPLE_WORDS"):
        assert variable in table
    assert "default: a b" in table
    assert "default: (empty)" in table
