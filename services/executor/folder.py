"""One replica's folder: how it is named, what its shim is told in it, and what is read from it."""

from __future__ import annotations

import os
import secrets
import shutil
import sys
from binascii import crc32
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Final

from chassis import ids
from chassis.workloads import KIND_WORDS
from fermion.api.workload import v1 as api
from services.executor import recipe, sentences, shim
from services.executor.ground import Ground, ports, search_path
from services.executor.logs import moment
from services.executor.observation import Gap, Instant, Phase, ReplicaObservation, Run

MS: Final = 10**6
# The wait before a first restart where the workload names none: nothing spins.
BACKOFF_MS: Final = 1000
PHASES: Final = {
    shim.PREPARING: Phase.PREPARING,
    shim.RUNNING: Phase.RUNNING,
    shim.BACKOFF: Phase.BACKOFF,
    shim.ENDED: Phase.ENDED,
}
MODES: Final = {
    api.RestartPolicy.MODE_ON_FAILURE: "on_failure",
    api.RestartPolicy.MODE_ALWAYS: "always",
}


def name_of(workload: api.Workload, role: str, rank: int) -> str:
    """
    Name a replica so that whoever makes it again finds it made.

    Rank 0 of a group without a role has the workload's own name, however many there are.
    """
    kind = KIND_WORDS.get(workload.kind, "workload")
    ids.parse(workload.uid)
    parts = [kind, workload.uid.rpartition("_")[2]]
    if role:
        parts += [role, str(rank)]
    elif rank:
        parts.append(str(rank))
    return "-".join(parts)


@dataclass(frozen=True)
class Folder:
    """A replica's folder as it was made; what is asked of it and what came of it is read each time."""

    ground: Ground
    path: Path
    spec: shim.Words
    workload: api.Workload

    @property
    def name(self) -> str:
        """Its name, which is the replica's."""
        return self.path.name

    @property
    def uid(self) -> str:
        """`rep_…`."""
        return self.spec.one("uid")

    @property
    def rank(self) -> int:
        """Rank in its group."""
        return self.spec.number("rank")

    @cached_property
    def group(self) -> api.Group:
        """What is asked of it."""
        role = self.spec.one("role")
        return next(group for group in self.workload.groups if group.role == role)

    @property
    def checked(self) -> bool:
        """Whether it is ready only when a check says so."""
        probes = self.group.probes
        return probes.HasField("startup") or probes.HasField("readiness")

    def record(self) -> shim.Record | None:
        """What its shim wrote down; None where none has begun to."""
        return shim.read_record(str(self.path))

    def ready(self, run: int) -> bool:
        """Whether a run passed its checks when they were asked last, by this process or another."""
        return os.path.lexists(self.path / f"ready-{run}")

    def set_ready(self, run: int, ready: bool) -> None:
        """Keep that for whoever asks next."""
        mark = self.path / f"ready-{run}"
        if ready:
            with suppress(FileExistsError, FileNotFoundError):
                mark.symlink_to("passed")
        else:
            mark.unlink(missing_ok=True)

    def order(self, name: str, word: str, milliseconds: int) -> None:
        """Leave an order for the shim and wake it; the first one of a name stands."""
        with suppress(FileExistsError, FileNotFoundError):
            (self.path / name).symlink_to(f"{word} {milliseconds}")
            shim.sync(str(self.path))
        with suppress(OSError):
            bell = os.open(self.path / "wake", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                os.write(bell, b"\0")
            finally:
                os.close(bell)

    def addresses(self) -> Mapping[str, str]:
        """Where its named ports are, once it has them."""
        held = shim.held(str(self.path))
        return {
            name: f"127.0.0.1:{port}"
            for name, port in (held.pairs("port") if held else ())
            if name != shim.RANK_PORT
        }

    def gpus(self) -> Sequence[str]:
        """Indices of the GPUs that it holds."""
        held = shim.held(str(self.path))
        return held.all("gpu") if held else ()

    def exit_report(self, run: int) -> str:
        """What the program wrote about the end of a run."""
        try:
            with (self.path / "exits" / str(run)).open("rb") as file:
                return file.read(shim.EXIT_REPORT_BYTES).decode(errors="replace")
        except OSError:
            return ""

    def observe(self, record: shim.Record, trouble: tuple[str, str]) -> ReplicaObservation:
        """Tell of it; `trouble` is the check that it did not pass, and what was found."""
        head = record.head
        runs = tuple(self._run(start, end) for start, end in record.runs)
        started = bool(runs) and runs[-1].end is None
        phase = PHASES[head.phase]
        ready = None
        reason = self._waits(record) if phase in (Phase.PREPARING, Phase.BACKOFF) else None
        if phase is Phase.ENDED and not runs:
            reason = self._waits(record)
        if self.checked:
            ready = phase is Phase.RUNNING and started and self.ready(runs[-1].ordinal)
            if phase is Phase.RUNNING and not ready:
                reason = sentences.of_readiness(*trouble)
        resources = self.group.resources
        return ReplicaObservation(
            uid=self.uid,
            workload=self.workload.uid,
            role=self.group.role,
            rank=self.rank,
            node=self.spec.one("node"),
            scheduled=Instant(instant(head.scheduled)),
            phase=phase,
            runs=runs,
            gaps=tuple(
                Gap(Instant(instant(gap.lost)), Instant(instant(gap.found))) for gap in record.gaps
            ),
            reason=reason,
            ready=ready,
            proof=instant(head.proof) if started else None,
            addresses=self.addresses(),
            image=api.Image(
                repository=self.group.image.repository, digest=self.spec.one("image_digest")
            ),
            sku=api.Sku(
                gpu_type=self.spec.one("gpu_type"),
                gpu_milli=resources.gpu_milli,
                cpu_milli=resources.cpu_milli,
                memory_bytes=resources.memory_bytes,
            ),
        )

    def _run(self, start: shim.Start, end: shim.End | None) -> Run:
        begun = Instant(instant(start.at))
        if end is None:
            return Run(start.ordinal, begun)
        limit = self.group.resources.memory_bytes
        return Run(
            ordinal=start.ordinal,
            start=begun,
            end=Instant(instant(end.at), api.EvidenceClass.ValueType(end.evidence)),
            exit=end.exit,
            signal=end.signal,
            reason=sentences.of_run(end.reason, end.detail, limit),
            exit_report=self.exit_report(start.ordinal),
        )

    def _waits(self, record: shim.Record) -> api.Reason | None:
        """Why main does not run."""
        head, arguments = record.head, {}
        ended = [end for _, end in record.runs if end is not None]
        image = self.spec.one("image")
        if image:
            arguments = {
                "image": self.group.image.repository,
                "progress": recipe.progress(Path(image)),
                "log": f"{image}/build.log",
            }
        if head.reason == "CRASH_LOOP_BACKOFF" and ended:
            last = ended[-1]
            arguments = {
                "run": str(last.ordinal),
                "end": f"signal {last.signal}" if last.signal else f"exit code {last.exit}",
                "until": instant(head.until).isoformat(timespec="seconds"),
            }
        return sentences.of_waiting(head.reason, head.detail, arguments)


def instant(nanoseconds: int) -> datetime:
    """Read a shim's time, floored to whole milliseconds."""
    return moment(nanoseconds // MS)


def read(ground: Ground, path: Path) -> Folder | None:
    """
    Read how a folder was made; None where it is not there (any more).

    Nor where a power cut left half of it: its shim had it all on the disk before anything ran.
    """
    with suppress(FileNotFoundError, ValueError):
        spec = shim.Words(shim.whole((path / "spec").read_bytes()))
        body = (path / "workload").read_bytes()
        if f"{crc32(body):08x}" == spec.one("workload"):
            return Folder(ground, path, spec, api.Workload.FromString(body))
    return None


def make(
    ground: Ground,
    workload: api.Workload,
    group: api.Group,
    rank: int,
    replicas: Mapping[str, int],
    volumes: Mapping[str, Path],
) -> None:
    """Have a replica's folder, whole or not at all; what is there already stays as it is."""
    name = name_of(workload, group.role, rank)
    path = ground.replicas / name
    if path.exists() and read(ground, path) is None:
        with suppress(FileNotFoundError):
            path.rename(_beside(path))
    if not path.exists():
        new = _beside(path)
        try:
            new.mkdir()
            os.mkfifo(new / "wake")
            (new / "scratch").mkdir()
            for mount in group.mounts:
                link = new / "root" / mount.path.strip("/")
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(volumes[mount.volume.volume_uid])
            (new / "root").mkdir(exist_ok=True)
            body = workload.SerializeToString(deterministic=True)
            (new / "workload").write_bytes(body)
            said = [
                ("workload", f"{crc32(body):08x}"),
                *words(ground, workload, group, rank, secrets.token_hex(16), replicas, volumes),
            ]
            (new / "spec").write_bytes(shim.words(said) + shim.WHOLE)
            # Somebody else may have been faster; his is the replica then.
            with suppress(OSError):
                new.rename(path)
        finally:
            # Also where the disk was full: it is tried again soon, and room is what there is not.
            shutil.rmtree(new, ignore_errors=True)
    _label(path, workload.labels)


def _beside(path: Path) -> Path:
    """A name that no replica has; the janitor takes away what stays under it."""
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}")


def words(
    ground: Ground,
    workload: api.Workload,
    group: api.Group,
    rank: int,
    object_uid: str,
    replicas: Mapping[str, int],
    volumes: Mapping[str, Path],
) -> Iterator[tuple[str, str]]:
    """Write what the shim of a replica is told."""
    name = name_of(workload, group.role, rank)
    path, pace = ground.replicas / name, ground.pace
    mounted = [str(volumes[mount.volume.volume_uid]) for mount in group.mounts]
    home = mounted[0] if mounted else str(path / "scratch")
    uid = ids.derived("rep", ground.uid, object_uid, "main")
    first, count = ports()
    yield from (
        *(("uid", uid), ("role", group.role), ("rank", str(rank)), ("node", ground.node)),
        *(("changes", str(ground.changes)), ("closed", str(ground.tombstone(workload.uid)))),
        *(("tick_ms", str(pace.tick_ms)), ("segment_bytes", str(pace.segment_bytes))),
        *(("log_bytes_max", str(pace.log_bytes_max)), ("cwd", home)),
        *(("ports_first", str(first)), ("ports", str(count))),
    )
    yield from (("volume", one) for one in mounted)
    yield from (("port", port.name) for port in group.ports)
    yield from _restarts(group.restart)
    yield from ground.limits.words(name, group.resources)
    yield from _gpus(ground, group.resources)
    if workload.rendezvous == api.RENDEZVOUS_RANKS:
        yield "port", shim.RANK_PORT
        for peer in workload.groups:
            for other in range(replicas.get(peer.role, 0)):
                yield "peer", f"{peer.role}/{name_of(workload, peer.role, other)}"
    yield from _image(ground, group)
    yield from (("env", f"{entry.name}={entry.value}") for entry in group.env)
    promised = {
        "FERMION_PROJECT": workload.project,
        "FERMION_OWNER": workload.owner,
        "FERMION_WORKLOAD": workload.uid,
        "FERMION_ATTEMPT": str(workload.attempt),
        "FERMION_ROLE": group.role,
        "FERMION_RANK": str(rank),
        "FERMION_REPLICAS": str(replicas.get(group.role, 0)),
        shim.MARKER: uid,
        "FERMION_NOTICE_FILE": str(path / "notice"),
        "FERMION_EXIT_FILE": str(path / "exit"),
        "FERMION_ROOT": str(path / "root"),
    }
    yield from (("promise", f"{variable}={value}") for variable, value in promised.items())
    yield "default", f"HOME={home}"
    yield "default", f"LANG={os.environ.get('LANG', 'C.UTF-8')}"


def _restarts(rule: api.RestartPolicy) -> Iterator[tuple[str, str]]:
    backoff = round(rule.backoff.ToTimedelta().total_seconds() * 1000)
    yield "restart", MODES.get(rule.mode, "never")
    yield "restarts_max", str(rule.restarts_max)
    yield "backoff_ms", str(backoff or BACKOFF_MS)


def _gpus(ground: Ground, asked: api.Resources) -> Iterator[tuple[str, str]]:
    count = asked.gpu_milli // 1000
    if count:
        of = ground.gpus.of(asked.gpu_type)
        yield "gpus", str(count)
        yield "gpu_type", ground.gpus.models[int(of[0])]
        yield from (("gpu", index) for index in of)
        # Real devices are the machine's, whoever's cluster asks for them.
        owner = f"-{ground.uid}" if ground.gpus.simulated else ""
        yield "gpu_lock", f"fermion-gpu{owner}"


def _image(ground: Ground, group: api.Group) -> Iterator[tuple[str, str]]:
    name = group.image.repository
    found = ground.image(name)
    assert found is not None, "an image that is not there was refused"
    yield "image_digest", found.digest
    command, path = list(group.command), search_path()
    made = ground.recipes.get(name)
    if made is not None:
        folder = recipe.prepare(ground.images, made)
        yield "image", str(folder)
        yield "token_variable", made.token_variable
        builder = (sys.executable, "-I", str(Path(recipe.__file__)), str(folder))
        yield from (("prepare", word) for word in builder)
        command = command or list(made.command)
        path = f"{recipe.programs(folder)}:{path}"
    yield from (("command", word) for word in (*command, *group.args))
    yield "default", f"PATH={path}"


def _label(path: Path, labels: Mapping[str, str]) -> None:
    """Keep the labels of what a folder is for beside it, for who looks into the cluster by hand."""
    text = "".join(f"{name}={value}\n" for name, value in sorted(labels.items()))
    file = path / "labels"
    with suppress(FileNotFoundError):
        if not file.exists() or file.read_text() != text:
            shim.replace_file(str(file), text.encode(), 0o600)
