"""The platform on this machine: `up` and `down` hand over to what was installed beside the client."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import sys
from collections.abc import Iterable
from importlib import metadata
from typing import Annotated, Final

from cyclopts import Parameter

import fermion
from fermion.cli import accepting, show, stopping
from fermion.cli.options import Options, OutputOption
from fermion.errors import FailedPrecondition, InvalidArgument

GPUS_MAX: Final = 64

# As a distribution's metadata have them: `psutil; extra == "platform"`.
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_PLATFORM: Final = re.compile(r"""extra\s*==\s*["']platform["']""")


def up(
    *,
    split: Annotated[bool, Parameter(help="A process per service.")] = False,
    replicas: Annotated[int, Parameter(help="Processes of each service [1].")] = 1,
    port: Annotated[int | None, Parameter(help="Port to listen on [7443].")] = None,
    postgres_tcp: Annotated[
        bool, Parameter(help="PostgreSQL also on a TCP port of the loopback.")
    ] = False,
    simulate_gpus: Annotated[
        int, Parameter(help="GPUs that the local cluster pretends to have [0].")
    ] = 0,
) -> None:
    """Start the platform on this machine, in the foreground; Ctrl-C drains and stops it."""
    if port is not None and not 0 < port < 65536:
        raise _wrong("--port", port, "must be 1 to 65535", "Leave it out for 7443.")
    if replicas < 1:
        raise _wrong("--replicas", replicas, "must be 1 or more", "Leave it out for 1.")
    if not 0 <= simulate_gpus <= GPUS_MAX:
        rule = f"must be 0 to {GPUS_MAX}"
        raise _wrong(
            "--simulate-gpus", simulate_gpus, rule, "Leave it out for those that are there."
        )
    words = ["up"]
    if split:
        words.append("--split")
    if replicas != 1:
        words += ["--replicas", str(replicas)]
    if port is not None:
        words += ["--port", str(port)]
    if postgres_tcp:
        words.append("--postgres-tcp")
    if simulate_gpus:
        words += ["--simulate-gpus", str(simulate_gpus)]
    _services(words)


def down(
    *,
    stop_all: Annotated[
        bool, Parameter(help="First stop all instances of all projects; they do not run on then.")
    ] = False,
) -> None:
    """
    Stop the platform on this machine, and wait until it is gone.

    What runs on it runs on, and the next start finds it again. With --stop-all nothing does: where an
    instance has not stopped within a minute, the platform stays, too.
    """
    _must_be_installed()
    if stop_all:
        stopping.stop_all()
    _services(["down"])


def backup(
    folder: Annotated[str, Parameter(help="The folder that becomes the backup.")],
    /,
    *,
    without_files: Annotated[
        bool, Parameter(help="Without files of volumes and logs of instances.")
    ] = False,
) -> None:
    """
    Write the state of the platform on this machine into a new folder, while it runs.

    The folder holds facts, keys, settings and the local cluster as of one moment, and is there whole
    or not at all. It is as secret as the platform's keys.
    """
    _services(["backup", *(["--without-files"] if without_files else []), "--", folder])


def restore(
    folder: Annotated[str, Parameter(help="A folder that `fermion backup` has made.")] = "",
    /,
    *,
    home: Annotated[
        str, Parameter(help="The empty folder that is to hold the state [FERMION_HOME].")
    ] = "",
    accept: Annotated[
        bool, Parameter(help="Let go on what stands still because a journal has lost facts.")
    ] = False,
    options: Options = Options(),
) -> None:
    """
    Put a backup back into an empty folder, also on another machine; or accept what was lost.

    With --accept no folder is named, and the platform runs: each journal that ends before its stream or
    its readers goes on in a new epoch, and each reader that had decided on what is lost goes on behind
    it. Look first at what was lost (`fermion status`); both are kept as facts.
    """
    if accept == bool(folder):
        raise InvalidArgument(
            "A backup is restored, or what a restore lost is accepted: one of both.",
            reason="OPTION_INVALID",
            violations=(("--accept", "must be given where no backup is named, and only there"),),
            next_step="Name a backup, or say --accept.",
        )
    if accept:
        if home:
            raise InvalidArgument(
                "--home names where a backup is put, and --accept asks the platform that runs.",
                reason="OPTION_INVALID",
                violations=(("--home", "must not be given with --accept"),),
                next_step="Leave it out.",
            )
        accepting.accept_all(options)
        return
    _services(["restore", *(["--home", home] if home else []), "--", folder])


def version(*, output: OutputOption = "table") -> None:
    """Show versions of the client, of Python and of gRPC."""
    found = {
        "fermion": fermion.__version__,
        "python": platform.python_version(),
        "grpcio": metadata.version("grpcio"),
        "protobuf": metadata.version("protobuf"),
    }
    match output:
        case "json":
            print(show.to_json(found))
        case "yaml":
            print(show.to_yaml(found))
        case "name":
            print(fermion.__version__)
        case _:
            print("\n".join(f"{name:<10}{value}" for name, value in found.items()))


def _wrong(option: str, value: int, rule: str, next_step: str) -> InvalidArgument:
    return InvalidArgument(
        f"{option} is {value}: it {rule}.",
        reason="OPTION_INVALID",
        violations=((option, rule),),
        next_step=next_step,
    )


def missing(requirements: Iterable[str]) -> list[str]:
    """What the platform requires beyond the client, and is not installed here."""
    names = [_NAME.match(one) for one in requirements if _PLATFORM.search(one)]
    return [found[0] for found in names if found is not None and not _installed(found[0])]


def _declared() -> Iterable[str]:
    """What this distribution requires; nothing where it is run without having been installed."""
    try:
        return metadata.requires("fermion") or ()
    except metadata.PackageNotFoundError:
        return ()


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def _must_be_installed() -> None:
    lacking = missing(_declared())
    if lacking or importlib.util.find_spec("services") is None:
        raise FailedPrecondition(
            f"Only the client is installed here, not the platform; it lacks {lacking[0]} "
            f"and {len(lacking) - 1} more."
            if lacking
            else "Only the client is installed here, not the platform.",
            reason="PLATFORM_NOT_INSTALLED",
            arguments={"missing": ",".join(lacking)},
            next_step="Install the rest, too: pip install 'fermion[platform]'. "
            "In a checkout `make up` does that.",
        )


def _services(words: list[str]) -> None:
    _must_be_installed()
    # The platform takes the place of this process, so signals reach it directly.
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "services", *words])
