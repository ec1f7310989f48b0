"""What operators ask: is it well, is it true, and what stands still."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from cyclopts import App

from fermion.api.journal import v1 as api
from fermion.cli import show
from fermion.cli.options import Options
from fermion.client import Client
from fermion.context import home
from fermion.errors import Error
from fermion.journals import SERVICES

journal = App(name="journal", help="Journals: rebuild, parked facts, readers.")
queue = App(name="queue", help="What waits for admission, and why.")


@queue.command(name="list")
def list_queue(*, options: Options = Options()) -> None:
    """List the project's workloads that wait, longest first."""
    with options.client() as client:
        show.many(
            client.queue.list(options.project_of(client)),
            options.output,
            ("OWNER", "ATTEMPT", "WHY", "WAITS"),
            lambda waiting: (
                waiting.owner,
                str(waiting.attempt),
                waiting.reason.code,
                show.age(waiting.queue_time),
            ),
            "Nothing waits.",
        )


def status(*, options: Options = Options()) -> int:
    """Show journals, relays and readers; 1 where something stands still."""
    with options.client() as client:
        found = client.journals.status()
        if options.output in ("json", "yaml"):
            show.many(found, options.output, (), lambda _: (), "")
            return 0
        print(f"Fermion at {client.context.address}, context {client.context.name}\n")
        rows: list[tuple[str, ...]] = []
        bad = 0
        for one in found:
            state = f"halted: {one.relay_halted}" if one.relay_halted else "ok"
            behind = one.head - one.published if one.published >= 0 else -1
            lag = "NATS is away" if behind < 0 else f"{behind} behind"
            rows.append((one.journal, str(one.head), lag, state))
            bad += bool(one.relay_halted)
        show.table(("JOURNAL", "HEAD", "STREAM", "RELAY"), rows)
        print()
        heads = {one.journal: one.head for one in found}
        rows = []
        for one in found:
            for reader in one.readers:
                lag_of = heads.get(reader.journal, reader.position) - reader.position
                state = f"halted: {reader.halted}" if reader.halted else "ok"
                rows.append(
                    (reader.reader, reader.journal, str(max(0, lag_of)), str(reader.parked), state)
                )
                bad += bool(reader.halted)
        show.table(("READER", "OF", "BEHIND", "PARKED", "STATE"), rows)
        return 1 if bad else 0


@dataclass(frozen=True)
class Finding:
    """One thing that doctor looked at."""

    what: str
    well: bool
    found: str
    mend: str = ""


def doctor(*, options: Options = Options()) -> int:
    """Check everything that the platform needs, and say how to mend what is not well."""
    with options.client() as client:
        findings = list(_look(client))
    if options.output == "json":
        print(json.dumps([vars(finding) for finding in findings], indent=2))
    else:
        for finding in findings:
            print(f"{'ok ' if finding.well else 'BAD'}  {finding.what}: {finding.found}")
            if not finding.well and finding.mend:
                print(f"       mend: {finding.mend}")
    return 0 if all(finding.well for finding in findings) else 1


def _look(client: Client) -> Iterator[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    yield Finding("python", sys.version_info >= (3, 11), version, "Use Python 3.11 or newer.")
    folder = home()
    if folder.exists():
        usable = os.access(folder, os.W_OK)
        yield Finding("state folder", usable, str(folder), "Make it yours, or set FERMION_HOME.")
        free = shutil.disk_usage(folder).free
        yield Finding(
            "free disk", free > 2**30, f"{free / 2**30:.1f} GiB", "Make room: PostgreSQL needs it."
        )
    bearer = client.context.bearer()
    yield Finding(
        "token",
        bool(bearer),
        "there is one" if bearer else "none",
        f"fermion contexts set {client.context.name} --token-file FILE",
    )
    for service in SERVICES:
        health = client.healthy(service)
        yield Finding(
            f"{service} at {client.context.address_of(service)}",
            health == "serving",
            health,
            "Start it with `fermion up`, or look at its log in the state folder.",
        )
        if health != "serving":
            return
    try:
        who = client.users.who_am_i()
    except Error as error:
        yield Finding("who am I", False, error.message, error.next_step)
        return
    yield Finding("who am I", True, show.short(who.user.name) or who.service)
    try:
        journals = client.journals.status()
    except Error as error:
        yield Finding("journals", False, error.message, error.next_step)
        return
    heads = {one.journal: one.head for one in journals}
    for one in journals:
        well = not one.relay_halted and one.published >= 0
        state = one.relay_halted or f"head {one.head}, stream {one.published}"
        mend = "Is NATS there? See logs/ and nats/nats.log in the state folder."
        yield Finding(f"journal {one.journal}", well, state, mend)
        for reader in one.readers:
            lag = max(0, heads.get(reader.journal, reader.position) - reader.position)
            well = not reader.halted and not reader.parked
            state = reader.halted or f"{lag} behind, {reader.parked} parked"
            yield Finding(
                f"reader {reader.reader} of {reader.journal}",
                well,
                state,
                "fermion journal parked, then `journal retry`, `skip` or `resume`.",
            )
    yield from _clock(journals)


def _clock(journals: list[api.JournalStatus]) -> Iterator[Finding]:
    del journals
    now = datetime.now(UTC)
    sane = now.year >= 2026
    yield Finding("clock", sane, now.isoformat(timespec="seconds"), "Set this machine's clock.")


def audit(*, options: Options = Options()) -> int:
    """Count log, stream and readers against each other; 1 where an equality does not hold."""
    with options.client() as client:
        checks = client.journals.audit()
    broken = [check for check in checks if not check.holds]
    if options.output in ("json", "yaml"):
        show.many(checks, options.output, (), lambda _: (), "")
    else:
        for check in broken if options.output == "table" else checks:
            mark = "holds" if check.holds else "BROKEN"
            print(f"{mark:<7} {check.name}: {check.left} and {check.right}")
        print(f"{len(checks) - len(broken)} of {len(checks)} equalities hold.")
    return 1 if broken else 0


@journal.command(name="list")
def list_journals(*, options: Options = Options()) -> None:
    """List journals with heads and readers."""
    with options.client() as client:
        show.many(
            client.journals.status(),
            options.output,
            ("JOURNAL", "EPOCH", "HEAD", "PUBLISHED"),
            lambda one: (one.journal, str(one.epoch), str(one.head), str(one.published)),
            "No journals.",
        )


@journal.command
def rebuild(name: str, /, *, options: Options = Options()) -> int:
    """Fold a journal's read model from zero, compare it with the live one, and swap it in."""
    with options.client() as client:
        done = client.journals.rebuild(name)
    same = done.live_hash == done.rebuilt_hash
    verdict = "the same as before" if same else "NOT the same as before; the new one is in place"
    show.one(done, options.output, lambda: f"{name}: {done.folded} facts folded, {verdict}")
    return 0 if same else 1


@journal.command
def parked(*, options: Options = Options()) -> None:
    """List facts that readers could not use."""
    with options.client() as client:
        show.many(
            client.journals.parked(),
            options.output,
            ("READER", "JOURNAL", "POSITION", "STREAM", "TYPE", "WHY"),
            lambda fact: (
                fact.reader,
                fact.journal,
                str(fact.position),
                fact.stream,
                show.short(fact.type.replace(".", "/")),
                fact.reason,
            ),
            "Nothing is parked.",
        )


@journal.command
def retry(reader: str, stream: str, /, *, options: Options = Options()) -> int:
    """Handle the parked facts of one stream again, in order."""
    with options.client() as client:
        done = client.journals.retry(reader, stream)
        show.one(done, options.output, lambda: f"{done.handled} handled, {done.left} left")
        return 1 if done.left else 0


@journal.command
def skip(
    reader: str, name: str, position: int, /, *, reason: str, options: Options = Options()
) -> None:
    """Give one parked fact up for good; that is kept as a fact."""
    with options.client() as client:
        client.journals.skip(reader, name, position, reason)
        print(f"{reader} goes on without {name}:{position}.")


@journal.command
def resume(reader: str, name: str, /, *, options: Options = Options()) -> None:
    """Let a halted reader go on."""
    with options.client() as client:
        client.journals.resume(reader, name)
        print(f"{reader} reads {name} again.")
