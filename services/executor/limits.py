"""What holds the resources of replicas down on this machine: control groups 2, else 1, else each process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from fermion.api.workload import v1 as api
from services.executor import shim

PERIOD_US: Final = 100_000
# The kernel counts what is reserved, used or not; what is used is watched apart.
DATA_FACTOR: Final = 4
MEMORY, CPU, ACCOUNT = "memory", "cpu", "cpuacct"


@dataclass(frozen=True, slots=True)
class Limits:
    """How resources are held down, in groups below `fermion-<cluster uid>`."""

    kind: api.Capabilities.Limits.ValueType
    cluster: str
    # Where each controller's groups are; version 2 has all of them in one place.
    bases: Mapping[str, Path] = field(default_factory=dict)

    def groups(self, replica: str) -> Sequence[str]:
        """Control groups of a replica, that of memory first."""
        bases = dict.fromkeys(self.bases.values())
        return [str(base / self._folder / replica) for base in bases]

    def words(self, replica: str, asked: api.Resources) -> Iterator[tuple[str, str]]:
        """What the shim of a replica is told of its limits."""
        memory, quota = asked.memory_bytes, max(1000, asked.cpu_milli * PERIOD_US // 1000)
        groups = self.groups(replica)
        if not groups:
            if memory:
                yield "memory_watched", str(memory)
                yield "data_bytes", str(memory * DATA_FACTOR)
            return
        yield from (("cgroup", group) for group in groups)
        of_memory, of_cpu = self._of(MEMORY, replica), self._of(CPU, replica)
        if self.kind == api.Capabilities.LIMITS_CGROUP2:
            yield "oom", f"{of_memory}/memory.events"
            yield "limit", f"{of_memory.parent}/cgroup.subtree_control=+{MEMORY} +{CPU}"
            if memory:
                yield "limit", f"{of_memory}/memory.max={memory}"
                yield "limit", f"{of_memory}/memory.swap.max=0"
            if asked.cpu_milli:
                yield "limit", f"{of_cpu}/cpu.max={quota} {PERIOD_US}"
            return
        yield "oom", f"{of_memory}/memory.oom_control"
        if memory:
            yield "limit", f"{of_memory}/memory.limit_in_bytes={memory}"
            # Memory and swap together; only there where the kernel counts swap.
            if (self.bases[MEMORY] / "memory.memsw.limit_in_bytes").exists():
                yield "limit", f"{of_memory}/memory.memsw.limit_in_bytes={memory}"
        if asked.cpu_milli:
            yield "limit", f"{of_cpu}/cpu.cfs_period_us={PERIOD_US}"
            yield "limit", f"{of_cpu}/cpu.cfs_quota_us={quota}"

    def used(self, replica: str) -> tuple[float, int] | None:
        """CPU seconds and bytes of memory that a replica has used; None where no group tells."""
        with suppress(OSError, KeyError, ValueError):
            memory = self._of(MEMORY, replica)
            if self.kind == api.Capabilities.LIMITS_CGROUP2:
                seconds = _table(memory / "cpu.stat")["usage_usec"] / 1e6
                level, idle = "memory.current", "inactive_file"
            elif self.kind == api.Capabilities.LIMITS_CGROUP1:
                seconds = int((self._of(ACCOUNT, replica) / "cpuacct.usage").read_text()) / 1e9
                level, idle = "memory.usage_in_bytes", "total_inactive_file"
            else:
                return None
            # What the kernel keeps of files only as long as nobody needs the room.
            cached = _table(memory / "memory.stat").get(idle, 0)
            return seconds, max(0, int((memory / level).read_text()) - cached)
        return None

    def names(self) -> set[str]:
        """Replicas that have a group, as far as their shims have not taken it away."""
        found: set[str] = set()
        for base in self.bases.values():
            with suppress(FileNotFoundError):
                found |= {one.name for one in (base / self._folder).iterdir() if one.is_dir()}
        return found

    def remove(self, replica: str) -> bool:
        """Kill what is in the groups of a replica, and take them away; False while something is left."""
        left = False
        for group in self.groups(replica):
            for pid in shim.members(group):
                shim.kill(pid, shim.SIGKILL)
            try:
                os.rmdir(group)
            except FileNotFoundError:
                continue
            except OSError:
                left = True
                continue
            # That of the cluster goes with its last replica.
            with suppress(OSError):
                os.rmdir(os.path.dirname(group))
        return not left

    @property
    def _folder(self) -> str:
        return f"fermion-{self.cluster}"

    def _of(self, controller: str, replica: str) -> Path:
        return self.bases[controller] / self._folder / replica


def probe(cluster: str) -> Limits:
    """Find out by trying what this machine lets us hold down."""
    mounts = list(_mounts(Path("/proc/self/mountinfo").read_text()))
    for kind, point, _ in mounts:
        if kind == "cgroup2" and (base := _usable(point, "memory.max", "cpu.max")) is not None:
            bases = {MEMORY: base, CPU: base}
            return Limits(api.Capabilities.LIMITS_CGROUP2, cluster, bases)
    found: dict[str, Path] = {}
    needs = {MEMORY: "memory.limit_in_bytes", CPU: "cpu.cfs_quota_us", ACCOUNT: "cpuacct.usage"}
    for controller, file in needs.items():
        for kind, point, options in mounts:
            if kind == "cgroup" and controller in options and controller not in found:
                base = _usable(point, file)
                if base is not None:
                    found[controller] = base
    if found.keys() == needs.keys():
        return Limits(api.Capabilities.LIMITS_CGROUP1, cluster, found)
    return without_groups(cluster)


def without_groups(cluster: str) -> Limits:
    """What every machine lets us do: limits of each process, and use that is watched."""
    return Limits(api.Capabilities.LIMITS_RLIMITS, cluster)


def _mounts(text: str) -> Iterator[tuple[str, Path, Sequence[str]]]:
    """Each mount of control groups: version, place, controllers."""
    for line in text.splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        if kind in ("cgroup", "cgroup2"):
            yield kind, Path(before.split()[4]), options.split(",")


def _usable(mount: Path, *files: str) -> Path | None:
    """The highest place of a hierarchy where we may make groups and put processes into them."""
    for base in _ways(mount):
        group = base / f"fermion-probe-{os.getpid()}"
        with suppress(OSError):
            if (base / "cgroup.subtree_control").exists():
                (base / "cgroup.subtree_control").write_text(f"+{MEMORY} +{CPU}")
            group.mkdir()
            try:
                if all((group / file).exists() for file in files) and _takes(group):
                    return base
            finally:
                group.rmdir()
    return None


def _ways(mount: Path) -> Iterator[Path]:
    """From the top of a hierarchy down to where this process is."""
    yield mount
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, own = line.split(":", 2)
        # Version 2 names no controllers; a hierarchy of version 1 is mounted under their names.
        if controllers == "" or set(controllers.split(",")) & set(mount.name.split(",")):
            place = mount
            for part in Path(own).parts[1:]:
                place = place / part
                if place.is_dir():
                    yield place


def _takes(group: Path) -> bool:
    """Whether a process can be put into a group."""
    guest = subprocess.Popen([sys.executable, "-I", "-S", "-c", "input()"], stdin=subprocess.PIPE)
    try:
        (group / "cgroup.procs").write_text(str(guest.pid))
        return True
    except OSError:
        return False
    finally:
        guest.kill()
        guest.communicate()


def _table(path: Path) -> dict[str, int]:
    rows = (line.split() for line in path.read_text().splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) == 2}
