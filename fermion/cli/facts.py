"""Facts as programs and people read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from google.protobuf import descriptor_pool, message_factory
from google.protobuf.message import DecodeError, Message

from fermion.api.instances.v1 import events_pb2 as instance_events
from fermion.api.journal import v1 as api
from fermion.api.projects.v1 import events_pb2 as project_events
from fermion.api.workload.v1 import events_pb2 as workload_events
from fermion.api.workload.v1 import resources_pb2 as workload
from fermion.cli import show
from fermion.cli.table import Title

# Importing them makes their facts known to the descriptor pool.
KNOWN = (instance_events, project_events, workload_events)
TITLES = (
    Title("TIME"),
    Title("FACT"),
    Title("WHERE", spare=2),
    Title("BY", spare=1),
    Title("BECAUSE OF", spare=3),
    Title("WHAT", crop=True),
)
# What the cells of a fact mostly take, where they are printed one by one.
ROOMS = (8, 23, 14, 17, 14, 0)


def decode(fact: api.Record) -> Message | None:
    """The fact's message; None where this client does not know its type, or it cannot be read."""
    try:
        kind = descriptor_pool.Default().FindMessageTypeByName(fact.type)
        found: Message = message_factory.GetMessageClass(kind).FromString(fact.data)
    except (KeyError, DecodeError):
        return None
    return found


def plain(fact: api.Record) -> dict[str, object]:
    """A fact as the API has it, its data in the open where its type is known."""
    found = show.plain(fact)
    message = decode(fact)
    if message is not None:
        found["data"] = show.plain(message)
    return found


def place(fact: api.Record) -> str:
    """Where it stands, as other facts name it as their cause."""
    return f"{fact.journal}:{fact.position}"


def in_time(fact: api.Record) -> tuple[int, str, int]:
    """What a list of several journals is sorted by."""
    return fact.record_time.ToNanoseconds(), fact.journal, fact.position


def cells(fact: api.Record, names: Mapping[str, str], wide: bool) -> Sequence[str]:
    """One row of a table; `names` are those of users by uid."""
    meta = fact.meta
    cause = f"{meta.cause_journal}:{meta.cause_position}" if meta.cause_journal else "a request"
    if wide and meta.request_id:
        cause = f"request {meta.request_id}"
    return (
        show.moment(fact.record_time) if wide else show.when(fact.record_time),
        fact.type.rsplit(".", 1)[-1],
        place(fact),
        names.get(meta.actor, meta.actor),
        cause,
        what(fact, names, wide),
    )


def what(fact: api.Record, names: Mapping[str, str], wide: bool) -> str:
    """The plain fields that a reader wants to see, on one line; uids that are no names if `wide`."""
    message = decode(fact)
    if message is None:
        return ""
    parts = []
    for field, value in message.ListFields():
        if field.name in ("uid", "project"):
            continue
        if isinstance(value, workload.Reason):
            parts.append(show.sentence(value))
        elif field.enum_type is not None and not field.is_repeated:
            parts.append(show.enum(field.enum_type.values_by_number[value].name))
        elif isinstance(value, str) and value in names:
            parts.append(f"{field.name.removesuffix('_uid')}={names[value]}")
        elif isinstance(value, str | int | bool) and (wide or not field.name.endswith("_uid")):
            parts.append(f"{field.name}={value}")
    return " ".join(parts)
