"""Help is there at once: what it needs loads neither gRPC nor the parser."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fermion.cli import COMMANDS, help
from tests.unit.fermion.manual import written

HEAVY = ("grpc", "google.protobuf", "cyclopts", "rich", "yaml")


def loaded_by(program: str) -> set[str]:
    """The heavy modules that a fresh interpreter has after running a program."""
    shown = f"import sys; {program}; print(' '.join(m for m in {HEAVY!r} if m in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", shown], capture_output=True, text=True, check=True, timeout=60
    )
    return set(done.stdout.splitlines()[-1].split())


def test_importing_the_client_loads_nothing_heavy() -> None:
    assert loaded_by("import fermion, fermion.cli") == set()


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["--version"],
        ["instances", "--help"],
        ["instances", "create", "--help"],
        ["journal", "skip", "a/b", "-h"],
        ["help", "events", "list"],
        ["up", "--help"],
    ],
    ids=" ".join,
)
def test_help_and_version_load_nothing_heavy(words: list[str]) -> None:
    assert loaded_by(f"from fermion.cli import run; run({words!r})") == set()


@pytest.mark.parametrize("words", [["--help"], ["instances", "create", "--help"], ["--version"]])
def test_help_and_version_take_less_than_150_ms(words: list[str]) -> None:
    took = []
    for _ in range(5):
        process = subprocess.Popen(
            [str(Path(sys.executable).with_name("fermion")), *words], stdout=subprocess.DEVNULL
        )
        # Of the processor, so that what else the machine does is not counted.
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0
        took.append(used.ru_utime + used.ru_stime)
    assert min(took) < 0.15


@pytest.mark.parametrize("words", ["--help", "instances create --help", "version"])
def test_a_reader_that_has_seen_enough_is_no_fault(words: str) -> None:
    program = Path(sys.executable).with_name("fermion")
    # It begins to write when nobody is there to read any more.
    done = subprocess.run(
        ["bash", "-c", f"(sleep 0.3; exec {program} {words}) | exit; exit ${{PIPESTATUS[0]}}"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_help_that_is_kept_is_what_the_parser_says() -> None:
    assert Path(help.KEPT).read_text(encoding="utf-8") == written(), "make generate"


def test_every_command_has_a_page() -> None:
    pages = help.kept()
    assert {name for name, _, _ in COMMANDS} <= set(pages)
    for name, page in pages.items():
        assert help.find([*name.split(), "--help"], pages) == page
        assert f"Usage: fermion {name}" in page
        assert max(map(len, page.splitlines())) <= 80, name


def test_a_command_is_helped_also_behind_its_arguments_and_a_wrong_one_is_left_to_the_parser() -> (
    None
):
    pages = {"a": "group", "a b": "command", "c": "alone"}
    assert help.find(["a", "b", "name", "--wait", "x", "-h"], pages) == "command"
    assert help.find(["c", "name", "--help"], pages) == "alone"
    assert help.find(["a", "bb", "--help"], pages) is None
    assert help.find(["d", "--help"], pages) is None
    assert help.find(["a", "b", "--", "program", "--help"], pages) is None
    assert help.find(["a", "b"], pages) is None
    assert help.find(["a"], pages) == "group"
    assert help.find(["--debug", "a"], pages) is None


def test_examples_stand_line_by_line() -> None:
    page = help.kept()["instances create"].splitlines()
    assert sum(line.startswith("    fermion instances create ") for line in page) == 2


def test_the_client_is_there_when_it_is_asked_for() -> None:
    program = "import fermion; fermion.Client; fermion.AsyncClient; fermion.errors.NotFound"
    assert "grpc" in loaded_by(program)


def test_what_is_not_there_is_said_to_be_missing() -> None:
    program = "import fermion; assert not hasattr(fermion, 'Klient')"
    assert loaded_by(program) == set()


def test_what_is_refused_before_a_call_loads_no_grpc() -> None:
    program = "from fermion.cli import run; run(['instances', 'create', 'lab', '--cpu', 'many'])"
    assert "grpc" not in loaded_by(program)
    assert "grpc" not in loaded_by("from fermion.cli import run; run(['contexts', 'list'])")
