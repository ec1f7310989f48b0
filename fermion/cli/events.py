"""What happened, who caused it, and why."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Annotated

from cyclopts import App, Parameter
from google.protobuf import descriptor_pool, json_format, message_factory

from fermion.api.instances.v1 import events_pb2 as instance_events
from fermion.api.journal import v1 as api
from fermion.api.projects.v1 import events_pb2 as project_events
from fermion.api.workload.v1 import events_pb2 as workload_events
from fermion.cli import read, show
from fermion.cli.near import with_near
from fermion.cli.options import Options
from fermion.client import Client
from fermion.journals import SERVICES

app = App(name="events", help="What happened, who caused it, and why.")

# Importing them makes their facts known to the descriptor pool.
KNOWN = (instance_events, project_events, workload_events)
FOLLOW_SECONDS = 1.0


@app.command(name="list")
def list_(
    name: str = "",
    /,
    *,
    as_of: Annotated[str, Parameter(help="Only until then; also shows the state then.")] = "",
    journal: Annotated[str, Parameter(help="Only of this journal, e.g. instances/0")] = "",
    options: Options = Options(),
) -> None:
    """List an instance's history, or the project's facts of all journals, oldest first."""
    until = read.moment("--as-of", as_of) if as_of else None
    with options.client() as client:
        project = options.project_of(client)
        if name:
            records = _history(client, project, name)
        else:
            journals = [journal] if journal else [f"{service}/0" for service in SERVICES]
            records = [fact for one in journals for fact in client.journals.read(one, project)]
        records = sorted(_until(records, until), key=lambda fact: fact.record_time.ToNanoseconds())
        if options.output == "json":
            print(json.dumps([_plain(fact) for fact in records], indent=2, ensure_ascii=False))
        else:
            show.table(
                ("TIME", "FACT", "WHERE", "BY", "BECAUSE OF", "WHAT"),
                [_cells(fact) for fact in records],
            )
        if until is not None and name and options.output != "json":
            found = client.instances.get(_full(project, name), until)
            state = json_format.MessageToDict(found.status, preserving_proto_field_name=True)
            print(f"\nthen: {json.dumps(state, ensure_ascii=False)}")


@app.command
def watch(
    *,
    journal: Annotated[str, Parameter(help="Only of this journal, e.g. instances/0")] = "",
    after: Annotated[int, Parameter(help="After this project position; -1 for from now on.")] = -1,
    options: Options = Options(),
) -> None:
    """Follow the project's facts as they happen; Ctrl-C detaches. No position is ever left out."""
    with options.client() as client:
        project = options.project_of(client)
        journals = [journal] if journal else [f"{service}/0" for service in SERVICES]
        places = dict.fromkeys(journals, after)
        for one in journals:
            if after < 0:
                places[one] = max(
                    (fact.project_position for fact in client.journals.read(one, project)),
                    default=0,
                )
        while True:
            for one in journals:
                for fact in client.journals.read(one, project, places[one]):
                    places[one] = fact.project_position
                    if options.output == "json":
                        print(json.dumps(_plain(fact), ensure_ascii=False), flush=True)
                    else:
                        print("  ".join(_cells(fact)), flush=True)
            time.sleep(FOLLOW_SECONDS)


def _history(client: Client, project: str, name: str) -> list[api.Record]:
    """An instance's own facts, and what modules and scheduler said of its workloads."""
    uid = name
    if not name.startswith("inst_"):
        uid = with_near(
            lambda: client.instances.get(_full(project, name)),
            name,
            lambda: client.instances.list(project),
        ).uid
    own = client.journals.facts("instances/0", project, f"instance/{uid}")
    found = list(own)
    for fact in own:
        message = decode(fact)
        if isinstance(message, instance_events.InstanceAttemptDeclared):
            for journal in ("instances/0", "scheduler/0"):
                stream = f"workload/{message.workload_uid}"
                found += client.journals.facts(journal, project, stream)
    return found


def decode(fact: api.Record) -> object:
    """The fact's message; None where this client does not know its type."""
    try:
        kind = descriptor_pool.Default().FindMessageTypeByName(fact.type)
    except KeyError:
        return None
    return message_factory.GetMessageClass(kind).FromString(fact.data)


def _full(project: str, name: str) -> str:
    return name if name.startswith("projects/") else f"projects/{project}/instances/{name}"


def _until(records: Iterable[api.Record], until: datetime | None) -> Iterator[api.Record]:
    for fact in records:
        if until is None or fact.record_time.ToDatetime(tzinfo=UTC) <= until:
            yield fact


def _plain(fact: api.Record) -> dict[str, object]:
    found = show.plain(fact)
    message = decode(fact)
    if message is not None:
        found["data"] = json_format.MessageToDict(
            message,  # type: ignore[arg-type]  # what decode gives is a message
            preserving_proto_field_name=True,
        )
    return found


def _cells(fact: api.Record) -> tuple[str, ...]:
    meta = fact.meta
    cause = f"{meta.cause_journal}:{meta.cause_position}" if meta.cause_journal else "a request"
    return (
        show.moment(fact.record_time),
        fact.type.rsplit(".", 1)[-1],
        f"{fact.journal}:{fact.position}",
        meta.actor,
        cause,
        _what(fact),
    )


def _what(fact: api.Record) -> str:
    """The plain fields that a reader wants to see, on one line."""
    message = decode(fact)
    if message is None:
        return ""
    parts = []
    for field, value in message.ListFields():  # type: ignore[attr-defined]
        if field.name in ("uid", "project", "spec", "workload", "probes"):
            continue
        if field.name == "reason" and not isinstance(value, str):
            parts.append(value.code)
        elif field.enum_type is not None and not field.is_repeated:
            parts.append(show.enum(field.enum_type.values_by_number[value].name))
        elif isinstance(value, str | int | bool):
            parts.append(f"{field.name}={value}")
    return " ".join(parts)[:120]
