"""A user installs the client alone; the platform is an extra, and is named where it is missing."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

from fermion.cli import COMMANDS, local

ROOT = Path(__file__).parents[3]
REQUIREMENTS = ROOT / "requirements"
# Everything that the client and its command line consist of.
ALL = "; ".join(
    [
        "import sys, importlib, fermion",
        "fermion.Client, fermion.AsyncClient, fermion.Error",
        f"[importlib.import_module(home.split(':')[0]) for _, home, _ in {COMMANDS!r}]",
        "print('\\n'.join(str(getattr(one, '__file__', '')) for one in sys.modules.values()))",
    ]
)


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def named(file: str) -> Iterator[str]:
    """The distributions that a requirements file names itself."""
    for line in (REQUIREMENTS / file).read_text().splitlines():
        found = re.match(r"[A-Za-z0-9][A-Za-z0-9._-]*", line)
        if found is not None:
            yield canonical(found[0])


def test_the_client_loads_nothing_but_what_a_user_installs() -> None:
    done = subprocess.run(
        [sys.executable, "-c", ALL], capture_output=True, text=True, check=True, timeout=60
    )
    loaded = set(done.stdout.splitlines())
    # gRPC itself looks for its tools and its reflection, and does without.
    allowed = {"fermion", "setuptools", "grpcio-reflection", "grpcio-tools", *named("client.txt")}
    strangers = {
        found.name: sorted(files)[:3]
        for found in metadata.distributions()
        if canonical(found.name) not in allowed
        and (files := loaded & {str(found.locate_file(file)) for file in found.files or ()})
    }
    assert len(loaded) > 200
    assert strangers == {}


def test_each_requirement_is_the_clients_or_the_platforms() -> None:
    client, platform = set(named("client.in")), set(named("platform.in"))
    assert not client & platform
    assert client <= set(named("client.txt"))
    assert not platform & set(named("client.txt"))
    assert client | platform <= set(named("run.txt"))
    assert set(named("client.txt")) <= set(named("run.txt")) <= set(named("dev.txt"))


def test_locked_versions_are_the_same_in_every_lock() -> None:
    def pins(file: str) -> dict[str, str]:
        text = (REQUIREMENTS / file).read_text()
        return dict(re.findall(r"^([A-Za-z0-9._-]+)==(\S+)", text, re.MULTILINE))

    dev = pins("dev.txt")
    for file in ("run.txt", "client.txt"):
        assert {name: dev[name] for name in pins(file)} == pins(file)


def test_what_the_platform_lacks_is_told_by_name() -> None:
    required = ["rich", 'psutil; extra == "platform"', "no-such-thing==1; extra == 'platform'"]
    assert local.missing(required) == ["no-such-thing"]
    assert local.missing(["no-such-thing"]) == []


@pytest.mark.parametrize("command", ["up", "down"])
def test_a_platform_that_is_not_installed_is_said_to_be_missing_and_how_to_install_it(
    command: str, tmp_path: Path
) -> None:
    # As seen by a user: the distribution asks for more than is there.
    info = tmp_path / "fermion-0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        "Metadata-Version: 2.4\nName: fermion\nVersion: 0\nProvides-Extra: platform\n"
        'Requires-Dist: no-such-thing; extra == "platform"\n'
        'Requires-Dist: nor-this; extra == "platform"\n'
    )
    program = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from fermion.cli import run; "
    done = subprocess.run(
        [sys.executable, "-c", f"{program} sys.exit(run([{command!r}]))"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 5
    assert "no-such-thing and 1 more" in done.stderr
    assert "pip install 'fermion[platform]'" in done.stderr
