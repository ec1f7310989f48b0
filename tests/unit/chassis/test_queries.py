"""Statements are found in .sql files by the name above them."""

from __future__ import annotations

from pathlib import Path

import pytest

import chassis
import services
from chassis.queries import Queries


def load(folder: Path, text: str) -> Queries:
    path = folder / "queries.sql"
    path.write_text(text)
    return Queries.load(path)


def test_a_statement_reaches_to_the_next_name(tmp_path: Path) -> None:
    found = load(
        tmp_path,
        "-- one: The first.\nSELECT 1\n  -- a comment: in it\n;\n\n-- two: The second.\nSELECT 2;\n",
    )
    assert dict(found) == {"one": "SELECT 1\n  -- a comment: in it", "two": "SELECT 2"}
    assert len(found) == 2


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("-- one: First.\nSELECT 1;\n-- one: Again.\nSELECT 2;", "names one twice"),
        ("-- one: First.\n\n-- two: Second.\nSELECT 2;", "one has no statement"),
    ],
)
def test_a_file_that_misleads_is_refused(tmp_path: Path, text: str, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        load(tmp_path, text)


def test_a_name_that_is_not_there_is_a_fault(tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        load(tmp_path, "-- one: First.\nSELECT 1;")["two"]


def test_every_statement_file_of_the_platform_can_be_read() -> None:
    folders = [Path(package).parent for package in (*chassis.__path__, *services.__path__)]
    files = {path for folder in folders for path in folder.rglob("queries.sql")}
    assert len(files) >= 2
    for path in files:
        assert all(Queries.load(path).values())
