"""What is known of a stored fact beside its message, and how types are found by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import NamedTuple, TypeVar

from google.protobuf.descriptor import FileDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.timestamp_pb2 import Timestamp

from fermion.api.journal import v1 as api

# Project of facts that belong to none.
NO_PROJECT = "_"
# A fact may be as large as this once serialized; the broker's limit is far above.
FACT_BYTES_MAX = 256 * 1024
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

State = TypeVar("State")


@dataclass(frozen=True, slots=True)
class Meta:
    """Who or what a fact follows from."""

    actor: str
    request_id: str = ""
    cause_journal: str = ""
    cause_position: int = 0
    traceparent: str = ""


class Recorded(NamedTuple):
    """
    One stored fact. `message` is None where this process does not know its type.

    A tuple, since every fact that is read becomes one: a frozen dataclass takes five times as long.
    """

    journal: str
    epoch: int
    position: int
    project: str
    project_position: int
    stream: str
    version: int
    type: str
    statement: str
    data: bytes
    meta: Meta
    record_time: datetime
    message: Message | None


Upcast = Callable[[Message], Message]


@dataclass(frozen=True, slots=True)
class Registry:
    """Full names of fact types and their classes; old types are lifted to present ones on read."""

    classes: dict[str, type[Message]] = field(default_factory=dict)
    upcasts: dict[str, Upcast] = field(default_factory=dict)

    @classmethod
    def of(
        cls, files: Iterable[FileDescriptor], upcasts: dict[str, Upcast] | None = None
    ) -> Registry:
        """Register every top-level message of these `events.proto` files."""
        classes = {
            message.full_name: GetMessageClass(message)
            for file in files
            for message in file.message_types_by_name.values()
        }
        return cls(classes, upcasts or {})

    def decode(self, type_name: str, data: bytes) -> Message | None:
        """Parse a fact; None where the type is not known; raises ValueError where the bytes are not one."""
        known = self.classes.get(type_name)
        if known is None:
            return None
        try:
            message = known.FromString(data)
        except DecodeError as error:
            raise ValueError(f"{len(data)} bytes are not a {type_name}: {error}") from error
        upcast = self.upcasts.get(type_name)
        return message if upcast is None else upcast(message)


def fold(
    evolve: Callable[[State, Message, datetime], State], start: State, records: Iterable[Recorded]
) -> State:
    """Fold stored facts, each with the time it was recorded; one of unknown type is a ValueError."""
    state = start
    for record in records:
        if record.message is None:
            raise ValueError(
                f"{record.type} at {record.journal}:{record.position} is not known here"
            )
        state = evolve(state, record.message, record.record_time)
    return state


def to_record(fact: Recorded) -> api.Record:
    """Write a stored fact as ReadLog answers it and NATS carries it."""
    record = api.Record(
        journal=fact.journal,
        epoch=fact.epoch,
        position=fact.position,
        project=fact.project,
        project_position=fact.project_position,
        stream=fact.stream,
        version=fact.version,
        type=fact.type,
        statement=fact.statement,
        data=fact.data,
        meta=to_meta(fact.meta),
    )
    record.record_time.FromDatetime(fact.record_time)
    return record


def from_record(record: api.Record, registry: Registry) -> Recorded:
    """Read what ReadLog or NATS brought; bytes that are no such message leave `message` None."""
    try:
        message = registry.decode(record.type, record.data)
    except ValueError:
        message = None
    return Recorded(
        journal=record.journal,
        epoch=record.epoch,
        position=record.position,
        project=record.project,
        project_position=record.project_position,
        stream=record.stream,
        version=record.version,
        type=record.type,
        statement=record.statement,
        data=record.data,
        meta=read_meta(record.meta.SerializeToString()),
        record_time=_moment(record.record_time),
        message=message,
    )


def _moment(stamp: Timestamp) -> datetime:
    # Each fact that is read has one, and the library's way takes several times as long.
    return _EPOCH + timedelta(0, stamp.seconds, stamp.nanos // 1000)


def to_meta(meta: Meta) -> api.Meta:
    """Write who or what a fact follows from."""
    return api.Meta(
        actor=meta.actor,
        request_id=meta.request_id,
        cause_journal=meta.cause_journal,
        cause_position=meta.cause_position,
        traceparent=meta.traceparent,
    )


@lru_cache(maxsize=1024)
def read_meta(data: bytes) -> Meta:
    """Read who or what a fact follows from; the facts of one moment mostly have the same bytes."""
    meta = api.Meta.FromString(data)
    return Meta(
        meta.actor, meta.request_id, meta.cause_journal, meta.cause_position, meta.traceparent
    )
