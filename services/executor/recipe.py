"""
Recipes: images of the local cluster, each a name and a locked virtual environment, built once.

    python -I recipe.py FOLDER

builds the one whose requirements lie in FOLDER as `requirements.txt`, unless FOLDER has it already,
which the file `ready` says. Shims run that, so it is on the standard library alone; who comes second
waits for the first. The line in `progress` tells how far it is.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final


@dataclass(frozen=True, slots=True)
class Recipe:
    """What an operator's table says of one name."""

    name: str
    description: str
    # Locked, with hashes.
    requirements: Path
    # What runs where a workload names no command.
    command: tuple[str, ...] = ()
    # Environment variable that gets the replica's token; empty where the program knows none.
    token_variable: str = ""
    # Further files of the environment, by path.
    files: Mapping[str, str] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """`sha256:…` over all that goes into it, the interpreter included."""
        parts = [
            *(platform.python_version(), platform.machine(), sys.base_prefix),
            *(f"{path}\0{text}" for path, text in sorted(self.files.items())),
        ]
        body = self.requirements.read_bytes() + "\0".join(parts).encode()
        return f"sha256:{hashlib.sha256(body).hexdigest()}"


RECIPES: Final = {
    "jupyterlab": Recipe(
        name="jupyterlab",
        description="JupyterLab with a Python kernel; further packages by pip, into the volume",
        requirements=Path(__file__).parent / "recipes" / "jupyterlab.txt",
        command=("jupyter", "lab", "--no-browser", "--port=$(FERMION_PORT_JUPYTER)"),
        token_variable="JUPYTER_TOKEN",
        files={
            # Who started the platform as root has replicas that are root, and knows it.
            "etc/jupyter/jupyter_server_config.json": '{"ServerApp": {"allow_root": true}}\n',
        },
    ),
}


def place(root: Path, recipe: Recipe) -> Path:
    """The folder that a recipe's environment is built in."""
    return root / f"{recipe.name}-{recipe.digest.removeprefix('sha256:')[:16]}"


def prepare(root: Path, recipe: Recipe) -> Path:
    """Have that folder, with all that is built from; idempotent."""
    folder = place(root, recipe)
    folder.mkdir(parents=True, exist_ok=True)
    texts = {f"files/{path}": text.encode() for path, text in recipe.files.items()}
    for name, data in {**texts, "requirements.txt": recipe.requirements.read_bytes()}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            new = path.with_name(f"{path.name}.{os.getpid()}")
            new.write_bytes(data)
            new.rename(path)
    return folder


def programs(folder: Path) -> Path:
    """Where the programs of a built environment are."""
    return folder / "venv" / "bin"


def progress(folder: Path) -> str:
    """How far the building is."""
    try:
        return (folder / "progress").read_text().strip()
    except OSError:
        return ""


def build(folder: Path) -> None:
    """Build what is not there yet; raises CalledProcessError, and the next try begins anew."""
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (folder / "ready").exists():
            return
        environment = folder / "venv"
        # Programs of an environment name its path, so it is made where it stays.
        shutil.rmtree(environment, ignore_errors=True)
        _say(folder, "making the environment")
        subprocess.run([sys.executable, "-I", "-m", "venv", str(environment)], check=True)
        _install(folder, environment / "bin" / "python")
        files = folder / "files"
        if files.exists():
            shutil.copytree(files, environment, dirs_exist_ok=True)
        # After a power cut it is whole, or it is not ready.
        os.sync()
        (folder / "ready").touch()
        _say(folder, "ready")


def _install(folder: Path, python: Path) -> None:
    requirements = folder / "requirements.txt"
    total = sum("==" in line for line in requirements.read_text().splitlines())
    command = [
        *(str(python), "-I", "-m", "pip", "install", "--require-hashes", "--no-input"),
        *("--disable-pip-version-check", "--progress-bar=off", "-r", str(requirements)),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as pip:
        assert pip.stdout is not None
        for line in _told(pip.stdout, total):
            _say(folder, line)
    if pip.returncode != 0:
        raise subprocess.CalledProcessError(pip.returncode, command)


def _told(lines: Iterator[str], total: int) -> Iterator[str]:
    """What is worth telling of what pip says."""
    collected = 0
    for line in lines:
        print(line, end="", flush=True)
        if line.startswith("Collecting "):
            collected += 1
            yield f"fetching package {collected} of at most {total}"
        elif line.startswith("Installing "):
            yield f"installing {collected} packages"


def _say(folder: Path, line: str) -> None:
    new = folder / "progress.new"
    new.write_text(f"{line}\n")
    new.rename(folder / "progress")


if __name__ == "__main__":
    build(Path(sys.argv[1]))
