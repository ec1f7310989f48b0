"""What happened, who caused it, and why."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated

from cyclopts import App, Parameter
from google.protobuf import descriptor_pool, message_factory
from google.protobuf.message import DecodeError, Message

from fermion.api.instances.v1 import events_pb2 as instance_events
from fermion.api.journal import v1 as api
from fermion.api.projects import v1 as projects
from fermion.api.projects.v1 import events_pb2 as project_events
from fermion.api.workload.v1 import events_pb2 as workload_events
from fermion.api.workload.v1 import resources_pb2 as workload
from fermion.cli import read, show
from fermion.cli.options import InstanceName, Options
from fermion.client import Client
from fermion.errors import Error, NotFound
from fermion.journals import SERVICES

app = App(name="events", help="What happened, who caused it, and why.")

# Importing them makes their facts known to the descriptor pool.
KNOWN = (instance_events, project_events, workload_events)
FOLLOW_SECONDS = 1.0
WHAT_MAX = 120
TITLES = ("TIME", "FACT", "WHERE", "BY", "BECAUSE OF", "WHAT")

Journal = Annotated[str, Parameter(help="Only of this journal, e.g. instances/0")]


@app.command(name="list")
def list_(
    name: InstanceName = "",
    /,
    *,
    as_of: Annotated[
        str, Parameter(help="Only until then (a time, or 10m for ago); shows the state then, too.")
    ] = "",
    journal: Journal = "",
    options: Options = Options(),
) -> None:
    """List an instance's history, or the project's facts of all journals, oldest first."""
    until = read.moment("--as-of", as_of) if as_of else None
    with options.client() as client:
        project, full = _about(client, options, name)
        if name:
            found = _history(client, project, full)
            found = [fact for fact in found if journal in ("", fact.journal)]
        else:
            found = [
                fact for one in _journals(journal) for fact in client.journals.read(one, project)
            ]
        records = sorted(
            _until(found, until),
            key=lambda fact: (fact.record_time.ToNanoseconds(), fact.journal, fact.position),
        )
        match options.output:
            case "json":
                print(show.to_json([_plain(fact) for fact in records]))
            case "yaml":
                print(show.to_yaml([_plain(fact) for fact in records]))
            case "name":
                print("\n".join(f"{fact.journal}:{fact.position}" for fact in records))
            case _:
                names = _people(client, project)
                wide = options.output == "wide"
                show.table(TITLES, [_cells(fact, names, wide) for fact in records])
                if until is not None and name:
                    _print_state(client, full, until)


@app.command
def watch(
    name: InstanceName = "",
    /,
    *,
    journal: Journal = "",
    after: Annotated[
        int | None, Parameter(help="After this position of the project; only new ones unless said.")
    ] = None,
    options: Options = Options(),
) -> None:
    """Follow the project's facts, or an instance's, as they happen; Ctrl-C detaches. None is left out."""
    with options.client() as client:
        project, full = _about(client, options, name)
        mine = _Streams(client.instances.get(full).uid) if name else None
        if mine is not None:
            for fact in _history(client, project, full):
                mine.holds(fact)
        places = {
            one: client.journals.head(one, project) if after is None else max(0, after)
            for one in _journals(journal)
        }
        names = _people(client, project)
        while True:
            for one in places:
                for fact in client.journals.read(one, project, places[one]):
                    places[one] = fact.project_position
                    if mine is None or mine.holds(fact):
                        _print(fact, options.output, names)
            time.sleep(FOLLOW_SECONDS)


class _Streams:
    """The streams that an instance's history consists of; a new attempt adds one."""

    def __init__(self, uid: str) -> None:
        self._streams = {f"instance/{uid}"}

    def holds(self, fact: api.Record) -> bool:
        """Whether a fact is of this history."""
        if fact.stream not in self._streams:
            return False
        message = decode(fact)
        if isinstance(message, instance_events.InstanceAttemptDeclared):
            self._streams.add(f"workload/{message.workload_uid}")
        return True


def _about(client: Client, options: Options, name: str) -> tuple[str, str]:
    """The project, and the full name of the instance where one was said."""
    if not name:
        return options.project_of(client), ""
    project, _, full = options.instance_of(client, name)
    return project, full


def _journals(journal: str) -> list[str]:
    return [journal] if journal else [f"{service}/0" for service in SERVICES]


def _history(client: Client, project: str, full: str) -> list[api.Record]:
    """An instance's own facts, and what modules and scheduler said of its workloads."""
    uid = client.instances.get(full).uid
    own = client.journals.facts("instances/0", project, f"instance/{uid}")
    found = list(own)
    for fact in own:
        message = decode(fact)
        if isinstance(message, instance_events.InstanceAttemptDeclared):
            for journal in ("instances/0", "scheduler/0"):
                stream = f"workload/{message.workload_uid}"
                found += client.journals.facts(journal, project, stream)
    return found


def decode(fact: api.Record) -> Message | None:
    """The fact's message; None where this client does not know its type, or it cannot be read."""
    try:
        kind = descriptor_pool.Default().FindMessageTypeByName(fact.type)
        found: Message = message_factory.GetMessageClass(kind).FromString(fact.data)
    except (KeyError, DecodeError):
        return None
    return found


def _people(client: Client, project: str) -> Mapping[str, str]:
    """Names by uid: facts hold uids alone. Empty of whom this caller may not see."""
    found: dict[str, str] = {}
    try:
        user = client.users.who_am_i().user
        found[user.uid] = show.short(user.name)
        found |= {one.user_uid: show.short(one.user) for one in client.members.list(project)}
    except Error:
        return found
    return found


def _print(fact: api.Record, output: str, names: Mapping[str, str]) -> None:
    match output:
        case "json":
            text = json.dumps(_plain(fact), ensure_ascii=False)
        case "yaml":
            text = f"---\n{show.to_yaml(_plain(fact))}"
        case "name":
            text = f"{fact.journal}:{fact.position}"
        case _:
            text = "  ".join(_cells(fact, names, output == "wide"))
    print(text, flush=True)


def _print_state(client: Client, full: str, until: datetime) -> None:
    at = until.isoformat(sep=" ", timespec="seconds")
    try:
        found = client.instances.get(full, until)
    except NotFound:
        print(f"\nAt {at} it was not there.")
        return
    print(f"\nAt {at} it was:\n{show.to_yaml(show.plain(found.status))}")


def _until(records: Iterable[api.Record], until: datetime | None) -> Iterator[api.Record]:
    for fact in records:
        if until is None or fact.record_time.ToDatetime(tzinfo=UTC) <= until:
            yield fact


def _plain(fact: api.Record) -> dict[str, object]:
    """A fact as the API has it, its data in the open where its type is known."""
    found = show.plain(fact)
    message = decode(fact)
    if message is not None:
        found["data"] = show.plain(message)
    return found


def _cells(fact: api.Record, names: Mapping[str, str], wide: bool) -> Sequence[str]:
    meta = fact.meta
    cause = f"{meta.cause_journal}:{meta.cause_position}" if meta.cause_journal else "a request"
    if wide and meta.request_id:
        cause = f"request {meta.request_id}"
    what = _what(fact)
    return (
        show.moment(fact.record_time),
        fact.type.rsplit(".", 1)[-1],
        f"{fact.journal}:{fact.position}",
        names.get(meta.actor, meta.actor),
        cause,
        what if wide or len(what) <= WHAT_MAX else f"{what[: WHAT_MAX - 1]}…",
    )


def _what(fact: api.Record) -> str:
    """The plain fields that a reader wants to see, on one line."""
    message = decode(fact)
    if message is None:
        return ""
    parts = []
    for field, value in message.ListFields():
        if field.name in ("uid", "project"):
            continue
        if isinstance(value, workload.Reason):
            parts.append(show.sentence(value))
        elif isinstance(value, projects.Limits):
            bounds = show.amounts(value).items()
            parts += [f"{show.dimension(name)} {show.amount(name, n)}" for name, n in bounds]
        elif field.enum_type is not None and not field.is_repeated:
            parts.append(show.enum(field.enum_type.values_by_number[value].name))
        elif isinstance(value, str | int | bool):
            parts.append(f"{field.name}={value}")
    return " ".join(parts)
