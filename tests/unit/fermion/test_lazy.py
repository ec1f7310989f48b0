"""Help is there at once: what it needs loads neither gRPC nor protobuf."""

from __future__ import annotations

import subprocess
import sys

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


def test_the_help_loads_nothing_heavy() -> None:
    assert loaded_by("from fermion.cli import run; run(['--help'])") == set()


def test_the_client_is_there_when_it_is_asked_for() -> None:
    program = "import fermion; fermion.Client; fermion.AsyncClient; fermion.errors.NotFound"
    assert "grpc" in loaded_by(program)


def test_what_is_not_there_is_said_to_be_missing() -> None:
    program = "import fermion; assert not hasattr(fermion, 'Klient')"
    assert loaded_by(program) == set()
