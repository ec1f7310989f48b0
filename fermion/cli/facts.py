"""Facts as programs and people read them."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

from google.protobuf import descriptor_pool, message_factory
from google.protobuf.message import DecodeError, Message
from google.protobuf.timestamp_pb2 import Timestamp

from fermion.api.billing.v1 import events_pb2 as billing_events
from fermion.api.billing.v1 import resources_pb2 as billing
from fermion.api.instances.v1 import events_pb2 as instance_events
from fermion.api.journal import v1 as api
from fermion.api.journal.v1 import events_pb2 as journal_events
from fermion.api.projects import v1 as projects
from fermion.api.projects.v1 import events_pb2 as project_events
from fermion.api.workload.v1 import events_pb2 as workload_events
from fermion.api.workload.v1 import resources_pb2 as workload
from fermion.cli import money, show
from fermion.cli.table import Title

# Importing them makes their facts known to the descriptor pool.
KNOWN = (billing_events, instance_events, journal_events, project_events, workload_events)
# Numbers that say something also where they are 0; an exit code none where a signal ended it.
_EXITS = frozenset({"exit", "exit_code"})
_ZEROS = _EXITS | {"run"}
FIRST_HAND = (workload.EVIDENCE_CLASS_UNSPECIFIED, workload.EVIDENCE_CLASS_RECORDED)
SHARD_MAX = 6
# So much later than it happened a fact is recorded ordinarily.
LATE_NANOS = 1_000_000_000
# The project of facts that belong to none.
NO_PROJECT = "_"


def titles(about: bool) -> Sequence[Title]:
    """The columns of facts; `about` where they are not all of one thing."""
    return (
        Title("TIME", room=8),
        Title("FACT", room=23),
        *((Title("ABOUT", crop=True, room=12),) if about else ()),
        Title("WHERE", spare=2, room=14),
        Title("BY", spare=1, room=17),
        Title("BECAUSE OF", spare=3, room=14),
        Title("WHAT", crop=True),
    )


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


def learn(names: dict[str, str], fact: api.Record) -> None:
    """Add the name that a fact gives to a uid."""
    message = decode(fact)
    match message:
        case instance_events.InstanceCreated():
            names[message.uid] = message.instance
        case instance_events.InstanceAttemptDeclared():
            name = names.get(message.uid, message.uid)
            names |= {message.workload_uid: name, message.volume_uid: name}
            names.pop("", None)
        case workload_events.ReplicaScheduled():
            names[message.uid] = show.short(message.subject.owner)
        case project_events.UserRegistered():
            names[message.uid] = message.user
        case project_events.ProjectCreated():
            names[message.uid] = message.project


def cells(fact: api.Record, names: Mapping[str, str], wide: bool, about: bool) -> Sequence[str]:
    """One row of a table; `names` are those of users, instances and their workloads by uid."""
    meta = fact.meta
    uid = fact.stream.split("/", 1)[-1]
    subject = names.get(uid, uid)
    journal = fact.journal if wide else short(fact.journal)
    of = meta.cause_journal if wide else short(meta.cause_journal)
    # What a service does by itself has neither.
    asked = f"request {meta.request_id}" if wide else "a request"
    cause = f"{of}:{meta.cause_position}" if of else asked if meta.request_id else "-"
    return (
        show.moment(fact.record_time) if wide else show.when(fact.record_time),
        fact.type.rsplit(".", 1)[-1],
        *((fact.stream if wide else subject,) if about else ()),
        f"{journal}:{fact.position}",
        names.get(meta.actor, meta.actor),
        cause,
        _what(fact, names, "" if wide else subject),
    )


def short(journal: str) -> str:
    """A journal's name; on a terminal the uid of a cluster in it is cut short."""
    if not sys.stdout.isatty():
        return journal
    service, slash, shard = journal.partition("/")
    return f"{service}{slash}{shard if len(shard) <= SHARD_MAX else f'{shard[:SHARD_MAX]}…'}"


def _what(fact: api.Record, names: Mapping[str, str], subject: str) -> str:
    """
    The plain fields that a reader wants to see, on one line.

    Uids stand there as names; those that have none, and that of the subject, only where none is said.
    """
    message = decode(fact)
    if message is None:
        return ""
    parts = []
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        said = bool(value) or field.name in _ZEROS
        if field.has_presence:
            said = message.HasField(field.name)
        meaningless = field.name in _EXITS and bool(getattr(message, "signal", 0))
        if field.name in ("uid", "project") or meaningless or not said:
            continue
        if isinstance(value, Timestamp):
            parts.append(f"{field.name}={show.when(value)}")
        elif isinstance(value, workload.Witness):
            parts += _witnessed(fact, value)
        elif isinstance(value, workload.Reason):
            parts.append(show.sentence(value))
        elif isinstance(value, workload.Money):
            parts.append(f"{field.name}={money.exact(value.nanos, value.currency)}")
        elif isinstance(value, billing.PriceBook):
            parts.append(value.version)
        elif isinstance(value, projects.Limits):
            bounds = show.amounts(value).items()
            parts += [f"{show.dimension(name)} {show.amount(name, n)}" for name, n in bounds]
        elif field.enum_type is not None and not field.is_repeated:
            parts.append(show.enum(field.enum_type.values_by_number[value].name))
        elif field.name == "addresses":
            parts.append(show.pairs(dict(value)))
        elif isinstance(value, str) and value in names:
            if names[value] != subject:
                parts.append(f"{field.name.removesuffix('_uid')}={names[value]}")
        elif isinstance(value, str | int | bool):
            # What counts facts of a kind, and a uid without a name, tells people nothing.
            if not subject or not (field.name == "n" or field.name.endswith("_uid")):
                parts.append(f"{field.name}={value}")
    return " ".join(parts)


def _witnessed(fact: api.Record, witness: workload.Witness) -> Sequence[str]:
    """When it happened, where it was recorded later; and how that is known, where not at first hand."""
    parts = []
    happened = witness.occurred_time
    late = fact.record_time.ToNanoseconds() - happened.ToNanoseconds() >= LATE_NANOS
    if late and happened.seconds:
        parts.append(f"at {show.when(happened)}")
    if witness.evidence not in FIRST_HAND:
        name = workload.EvidenceClass.Name(witness.evidence).removeprefix("EVIDENCE_CLASS_")
        parts.append(f"by {name}")
    return parts
