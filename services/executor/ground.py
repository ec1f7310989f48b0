"""What the local cluster stands on: its folder, its machine, and what it offers."""

from __future__ import annotations

import hashlib
import os
import platform
import secrets
import shutil
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import psutil

from chassis import ids
from chassis.workloads import PROBES, RANKS, VOLUMES
from fermion.api.workload import v1 as api
from services.executor import shim
from services.executor.gpus import Gpus
from services.executor.limits import Limits
from services.executor.recipe import RECIPES, Recipe

KIND: Final = "local"
HOST: Final = "host"
ARCHITECTURES: Final = {"x86_64": "amd64", "aarch64": "arm64"}
# Below the ports that the kernel gives to whoever asks for any.
PORTS: Final = 12_000
EPHEMERAL: Final = Path("/proc/sys/net/ipv4/ip_local_port_range")
PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
MIB: Final = 2**20


@dataclass(frozen=True, slots=True)
class Pace:
    """How often, how long and how much; a test takes less."""

    tick_ms: int = 1000
    look_seconds: float = 0.05
    # A shim that is gone gets a successor, at most so often.
    succeed_seconds: float = 1.0
    sweep_seconds: float = 10.0
    segment_bytes: int = 4 * MIB
    log_bytes_max: int = 64 * MIB
    log_days: float = 7.0


@dataclass(frozen=True, slots=True)
class Ground:
    """One cluster on one machine; nothing of it changes while its process lives."""

    root: Path
    uid: str
    node: str
    limits: Limits
    gpus: Gpus = field(default_factory=Gpus)
    recipes: Mapping[str, Recipe] = field(default_factory=lambda: RECIPES)
    pace: Pace = field(default_factory=Pace)

    @property
    def replicas(self) -> Path:
        """A folder a replica."""
        return self.root / "replicas"

    @property
    def kept(self) -> Path:
        """What is kept of replicas that were forgotten."""
        return self.root / "kept"

    @property
    def closed(self) -> Path:
        """A tombstone for each workload that nothing may be made of any more."""
        return self.root / "closed"

    @property
    def images(self) -> Path:
        """A folder for each recipe that was asked for."""
        return self.root / "images"

    @property
    def changes(self) -> Path:
        """A file whose time a shim changes when it has written something down."""
        return self.root / "changes"

    def tombstone(self, workload_uid: str) -> Path:
        """Where it says that a workload is closed."""
        ids.parse(workload_uid)
        return self.closed / workload_uid.rpartition("_")[2]

    def image(self, name: str) -> api.Image | None:
        """What really runs under the name of an image; None where nothing does."""
        if name == HOST:
            return api.Image(repository=HOST, digest=host_digest())
        recipe = self.recipes.get(name)
        return None if recipe is None else api.Image(repository=name, digest=recipe.digest)

    def capabilities(self) -> api.Capabilities:
        """What it honours."""
        host = api.Capabilities.Runnable(
            repository=HOST, description="the programs of this machine"
        )
        recipes = (
            api.Capabilities.Runnable(repository=name, description=recipe.description)
            for name, recipe in self.recipes.items()
        )
        return api.Capabilities(
            cluster_kind=KIND,
            images=[host, *recipes],
            limits=self.limits.kind,
            simulated_gpus=self.gpus.simulated,
            features=sorted((PROBES, RANKS, VOLUMES)),
        )

    def machine(self) -> api.Node:
        """Its one node."""
        return api.Node(
            node=self.node,
            cpu_milli=1000 * len(os.sched_getaffinity(0)),
            memory_bytes=psutil.virtual_memory().total,
            storage_bytes=shutil.disk_usage(self.root).total,
            gpus=[
                api.Node.Gpu(gpu_type=model, count=count)
                for model, count in sorted(self.gpus.counted().items())
            ],
            architecture=architecture(),
            driver=self.gpus.driver,
        )


def cluster_uid(root: Path) -> str:
    """The uid of the cluster in a folder, made with the first question; 26 base32 characters."""
    path = root / "uid"
    if not path.exists():
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        new = root / f".uid.{secrets.token_hex(8)}"
        made = ids.fresh("cluster", time.time_ns() // 1_000_000)
        with new.open("w") as file:
            file.write(made.partition("_")[2])
            file.flush()
            os.fsync(file.fileno())
        try:
            # Who was first has said it.
            os.link(new, path)
            shim.sync(str(root))
        except FileExistsError:
            pass
        finally:
            new.unlink()
    return path.read_text()


def living(root: Path) -> int:
    """How many replicas of the cluster in a folder live, with a platform or without one."""
    found, boot = 0, shim.boot_id()
    with suppress(FileNotFoundError):
        for path in (root / "replicas").iterdir():
            # One that is damaged tells nothing, and is told of where the platform meets it.
            with suppress(OSError, ValueError):
                record = shim.read_record(str(path))
                if record is not None and record.watched_in(boot):
                    found += record.head.phase != shim.ENDED
    return found


def architecture() -> str:
    """This machine's, as images name it."""
    return ARCHITECTURES.get(platform.machine(), platform.machine())


def host_digest() -> str:
    """A measure of what `host` is: system, kernel and search path of this machine."""
    release = Path("/etc/os-release")
    parts = [
        release.read_text() if release.exists() else "",
        *(platform.release(), platform.machine(), search_path()),
    ]
    return f"sha256:{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()}"


def search_path() -> str:
    """Where this machine's programs are; the platform's own environment is none of them."""
    own = str(Path(sys.prefix) / "bin")
    parts = os.environ.get("PATH", PATH).split(":")
    kept = [part for part in parts if part and (part != own or sys.prefix == sys.base_prefix)]
    return ":".join(kept) or PATH


def ports() -> tuple[int, int]:
    """First port that replicas may be given, and how many."""
    try:
        lowest = int(EPHEMERAL.read_text().split()[0])
    except OSError:
        lowest = 32_768
    return (lowest - PORTS, PORTS) if lowest >= PORTS + 1024 else (20_000, PORTS)
