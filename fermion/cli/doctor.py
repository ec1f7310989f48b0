"""Looks at everything that stands between a user and the platform, and says how to mend it."""

from __future__ import annotations

import base64
import json
import os
import shutil
import socket
import stat
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from fermion.answer import from_call
from fermion.api.executor import v1 as executor
from fermion.api.journal import v1 as api
from fermion.cli import cluster, show, text
from fermion.cli.figures import BOUNDS, Figures, amount, whose
from fermion.cli.operate import readings
from fermion.cli.options import Options
from fermion.context import home
from fermion.errors import Denied, Error, Unauthenticated
from fermion.journals import SERVICES

if TYPE_CHECKING:
    from fermion.client import Client

# What each service answers to in the health service.
HEALTH: Final = {
    "projects": "fermion.api.projects.v1.ProjectService",
    "instances": "fermion.api.instances.v1.InstanceService",
    "scheduler": "fermion.api.scheduler.v1.QueueService",
    "executor": "fermion.api.executor.v1.RuntimeService",
    "billing": "fermion.api.billing.v1.CostService",
}
DISK_BYTES_MIN: Final = 2**30
SKEW_SECONDS_MAX: Final = 2.0
LAG_MAX: Final = 1000
PROBE_SECONDS: Final = 2.0
CALL_SECONDS_MAX: Final = 5.0
ACCEPT: Final = "fermion restore --accept"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    what: str
    well: bool
    found: str
    mend: str = ""


def doctor(*, options: Options = Options()) -> int:
    """Check everything that the platform needs, and say how to mend what is not well."""
    asked = replace(options, timeout=min(options.timeout, CALL_SECONDS_MAX))
    with asked.client(ill=True) as client:
        findings = list(_look(client))
    as_data = [asdict(finding) for finding in findings]
    match options.output:
        case "json":
            print(show.to_json(as_data))
        case "yaml":
            print(show.to_yaml(as_data))
        case "name":
            print("\n".join(text.line(one.what) for one in findings if not one.well))
        case _:
            for finding in findings:
                told = text.line(f"{finding.what}: {finding.found}")
                print(f"{'ok ' if finding.well else 'BAD'}  {told}")
                if not finding.well and finding.mend:
                    print(f"       mend: {text.line(finding.mend)}")
    return 0 if all(finding.well for finding in findings) else 1


def _look(client: Client) -> Iterator[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    yield Finding("python", sys.version_info >= (3, 11), version, "Use Python 3.11 or newer.")
    context = client.context
    loopback = context.address.rsplit(":", 1)[0] in ("127.0.0.1", "localhost", "[::1]")
    yield from folder(home())
    if loopback and context.name == "local":
        yield lock(home() / "lock")
    try:
        bearer = context.bearer()
    except Unauthenticated:
        bearer = ""
    yield token(bearer, context.token_file, context.name, datetime.now(UTC))
    reached = True
    for address in sorted({context.address_of(service) for service in SERVICES}):
        finding = port(address)
        reached &= finding.well
        yield finding
    if not reached:
        return
    for service in SERVICES:
        yield _healthy(client, service)
    try:
        who = client.users.who_am_i()
    except Error as error:
        yield Finding("whoami", False, error.message, error.next_step)
        return
    yield Finding("whoami", True, show.short(show.name_of(who)))
    yield from _cluster(client)
    try:
        standing = client.journals.standing()
    except Denied:
        yield Finding("journals", True, "not looked at; that takes a platform admin")
        return
    except Error as error:
        yield Finding("journals", False, error.message, error.next_step)
        return
    yield from facts(standing.journals)
    yield from bounds(Figures(standing.figures))
    yield _clock(client, standing.journals)


def folder(path: Path) -> Iterator[Finding]:
    """Whether the state folder is usable, and its owner's alone."""
    if not path.exists():
        yield Finding("state folder", True, f"{path}, not there yet")
        return
    mode = stat.S_IMODE(path.stat().st_mode)
    usable = os.access(path, os.R_OK | os.W_OK | os.X_OK)
    yield Finding(
        "state folder",
        usable and not mode & 0o077,
        f"{path}, mode {mode:04o}" + ("" if usable else ", not writable"),
        f"chmod 700 {path}, as its owner; or set FERMION_HOME to another one.",
    )
    free = shutil.disk_usage(path).free
    yield Finding(
        "free disk",
        free >= DISK_BYTES_MIN,
        show.size(free),
        "Make room: the journal and NATS stop taking facts on a full disk.",
    )


def lock(path: Path) -> Finding:
    """Whether a platform runs in the state folder."""
    mend = "Start it: fermion up"
    try:
        held = json.loads(path.read_text())
        pid, since = int(held["pid"]), str(held.get("since", "?"))
        os.kill(pid, 0)
    except FileNotFoundError:
        return Finding("lock", False, "no platform was ever started here", mend)
    except PermissionError:
        return Finding("lock", False, "held by another user", "Set FERMION_HOME to one of yours.")
    except (OSError, ValueError, TypeError, LookupError):
        return Finding("lock", False, "no platform runs here", mend)
    return Finding("lock", True, f"held by process {pid} since {since}")


def token(bearer: str, file: str, context: str, now: datetime) -> Finding:
    """Whether there is a token, and until when it holds."""
    take = f"fermion contexts set {context} --token-file FILE"
    # Who has no token cannot issue one.
    ask = f"Start it with `fermion up`, which leaves one; or ask a platform admin, then: {take}"
    renew = f"Ask a platform admin for another one (fermion tokens create), then: {take}"
    if not bearer:
        where = f"{file} cannot be read, or holds none" if file else "none"
        return Finding("token", False, where, ask)
    try:
        body = bearer.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
        until = datetime.fromtimestamp(float(claims["exp"]), UTC)
    except (ValueError, LookupError, TypeError, OverflowError, OSError):
        return Finding("token", False, "it is no signed token", renew)
    valid = f"valid until {until.isoformat(sep=' ', timespec='seconds')}"
    if until <= now:
        return Finding("token", False, f"it was {valid}", renew)
    try:
        open_to_others = bool(file) and stat.S_IMODE(Path(file).stat().st_mode) & 0o077
    except OSError:
        open_to_others = False
    if open_to_others:
        return Finding("token", False, f"{valid}; others may read {file}", f"chmod 600 {file}")
    return Finding("token", True, valid)


def port(address: str) -> Finding:
    """Whether anything listens."""
    host, _, number = address.rpartition(":")
    mend = "Start it with `fermion up`, or correct it with `fermion contexts set`."
    try:
        with socket.create_connection((host.strip("[]"), int(number)), PROBE_SECONDS):
            return Finding(f"port {address}", True, "open")
    except (OSError, ValueError, OverflowError) as error:
        return Finding(f"port {address}", False, str(error), mend)


def _healthy(client: Client, service: str) -> Finding:
    line = client.line(service)
    what = f"{service} at {line.place.address}"
    mend = "Look at its log in logs/ of the state folder; `fermion up` starts it again."
    request = health_pb2.HealthCheckRequest(service=HEALTH[service])
    try:
        answer = health_pb2_grpc.HealthStub(line.channel).Check(request, timeout=PROBE_SECONDS)
    except grpc.RpcError as error:
        if error.code() is grpc.StatusCode.NOT_FOUND:
            return Finding(what, False, "another process answers there", "Correct the context.")
        return Finding(what, False, from_call(error, line.place.address).message, mend)
    serving = answer.status == health_pb2.HealthCheckResponse.SERVING
    return Finding(what, serving, "serving" if serving else "not serving", mend)


def _cluster(client: Client) -> Iterator[Finding]:
    try:
        found = client.runtime.get_cluster()
        enrolled = {one.name for one in client.clusters.list() if not one.retired}
    except Error as error:
        yield Finding("cluster", False, error.message, error.next_step)
        return
    yield from runs(found, found.name in enrolled, datetime.now(UTC))


def runs(found: executor.Cluster, enrolled: bool, now: datetime) -> Iterator[Finding]:
    """What the cluster can honour, whether work may run on it, and whether it says what happens."""
    log = "Look at the executor's log in logs/ of the state folder."
    yield Finding(
        "cluster",
        enrolled,
        cluster.name(found) + ("" if enrolled else ", not enrolled: it is given no work"),
        f"fermion clusters enrol {show.short(found.name)}",
    )
    able = found.capabilities
    held = (able.LIMITS_UNSPECIFIED, able.LIMITS_NONE)
    yield Finding("limits", able.limits not in held, cluster.limits(found), log)
    yield Finding("GPUs", True, cluster.gpus(found))
    yield Finding("images", able.any_image or bool(able.images), cluster.images(found), log)
    yield Finding("nodes", bool(found.nodes), str(len(found.nodes) or "none"), log)
    for node in found.nodes:
        yield Finding(f"node {node.node}", True, cluster.capacity(node))
    late = cluster.behind(found, now)
    yield Finding(
        "watermark",
        late is not None and late <= cluster.BEHIND_MAX,
        "never" if late is None else f"{int(late.total_seconds())} s behind",
        f"What happens is stated late, and nothing is billed beyond. {log}",
    )


def facts(journals: Sequence[api.JournalStatus]) -> Iterator[Finding]:
    """Whether every journal is published, and every reader reads."""
    for one in journals:
        behind = one.head - one.published
        well = not one.relay_halted and one.published >= 0 and behind <= LAG_MAX
        away = "NATS is away" if one.published < 0 else f"{max(0, behind)} not published yet"
        yield Finding(
            f"journal {one.journal}",
            well,
            one.relay_halted or f"head {one.head}, {away}",
            f"Find out what was lost, then: {ACCEPT}"
            if one.parted
            else "Is NATS there? See logs/ and nats/nats.log in the state folder.",
        )
    for reading in readings(journals):
        progress = reading.progress
        well = not progress.halted and not progress.parked and reading.behind <= LAG_MAX
        mend = f"fermion journal resume {progress.reader} {progress.journal}"
        if progress.lost_through:
            mend = f"Look at what it decided on facts up to {progress.lost_through}, then: {ACCEPT}"
        elif not progress.halted:
            mend = "fermion journal parked, then: fermion journal retry or skip"
        yield Finding(
            f"reader {progress.reader} of {progress.journal}",
            well,
            progress.halted or f"{reading.behind} behind, {progress.parked} parked",
            mend,
        )


def bounds(watched: Figures) -> Iterator[Finding]:
    """Whether what operators watch is within its bounds; what nobody tells is not looked at."""
    for bound in BOUNDS:
        samples = watched.samples(bound.figure, bound.labels)
        if not samples:
            continue
        worst = max(samples, key=lambda one: one.value_milli)
        well = worst.value_milli <= bound.most * 1000
        value, of = amount(bound.figure, worst.value_milli), whose(worst, bound)
        found = f"{value}, {of}" if of and not well else value
        yield Finding(bound.what, well, found, bound.mend)


def _clock(client: Client, journals: Sequence[api.JournalStatus]) -> Finding:
    """Whether this machine's clock is behind what the database wrote last."""
    newest = 0.0
    try:
        for one in journals:
            for fact in client.journals.read(one.journal, after=max(0, one.head - 1)):
                newest = max(newest, fact.record_time.ToNanoseconds() / 1e9)
    except Error as error:
        return Finding("clock", False, error.message, error.next_step)
    now = datetime.now(UTC)
    ahead = newest - now.timestamp()
    return Finding(
        "clock",
        ahead <= SKEW_SECONDS_MAX,
        f"{now.isoformat(sep=' ', timespec='seconds')}"
        + (f", {ahead:.0f} s behind the database's" if ahead > SKEW_SECONDS_MAX else ""),
        "Set the clocks of this machine and of the database's, e.g. by NTP.",
    )
