"""
Writes the stored corpus: one fact of every type, with every field set, as this release stores it.

    python -m tests.contract.facts VERSION

A file is written once, at its release, and never again: later code has to read it as it is.
"""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from services.serve import TARGETS

CORPUS = Path(__file__).with_name("corpus")
# Deep enough for a whole workload; what is deeper stays empty.
DEPTH_MAX = 6


def types() -> dict[str, Descriptor]:
    """Every type of fact that a journal stores, by its full name."""
    files = {file.name: file for target in TARGETS.values() for file in target.events}
    return {
        message.full_name: message
        for name in sorted(files)
        for message in files[name].message_types_by_name.values()
    }


def example(descriptor: Descriptor, depth: int = 0) -> Message:
    """A message with every field set; of a choice, the last one."""
    message = GetMessageClass(descriptor)()
    if descriptor.full_name == "google.protobuf.Timestamp":
        json_format.Parse('"2026-11-26T12:34:56.789Z"', message)
        return message
    if descriptor.full_name == "google.protobuf.Duration":
        json_format.Parse('"61.500s"', message)
        return message
    if depth < DEPTH_MAX:
        for field in descriptor.fields:
            fill(message, field, depth)
    return message


def fill(message: Message, field: FieldDescriptor, depth: int) -> None:
    """Set one field."""
    is_map = field.message_type is not None and field.message_type.GetOptions().map_entry
    if is_map:
        key, value = (field.message_type.fields_by_name[name] for name in ("key", "value"))
        entries = getattr(message, field.name)
        if value.type == FieldDescriptor.TYPE_MESSAGE:
            entries[scalar(key)].CopyFrom(example(value.message_type, depth + 1))
        else:
            entries[scalar(key)] = scalar(value)
    elif field.type == FieldDescriptor.TYPE_MESSAGE:
        inner = example(field.message_type, depth + 1)
        if field.is_repeated:
            getattr(message, field.name).append(inner)
        else:
            getattr(message, field.name).CopyFrom(inner)
    elif field.is_repeated:
        getattr(message, field.name).append(scalar(field))
    else:
        setattr(message, field.name, scalar(field))


def scalar(field: FieldDescriptor) -> object:
    """A value that is none of the defaults, and another one for each field."""
    match field.type:
        case FieldDescriptor.TYPE_STRING:
            return f"{field.name}-{field.number}"
        case FieldDescriptor.TYPE_BYTES:
            return f"{field.name}-{field.number}".encode()
        case FieldDescriptor.TYPE_BOOL:
            return True
        case FieldDescriptor.TYPE_ENUM:
            return field.enum_type.values[-1].number
        case FieldDescriptor.TYPE_DOUBLE | FieldDescriptor.TYPE_FLOAT:
            return field.number + 0.5
        case _:
            return 1000 + field.number


def rows() -> Iterator[dict[str, object]]:
    """One row a type: its name, its bytes, and what they say."""
    for name, descriptor in sorted(types().items()):
        message = example(descriptor)
        data = message.SerializeToString(deterministic=True)
        said = json_format.MessageToDict(message, preserving_proto_field_name=True)
        yield {"type": name, "data": base64.b64encode(data).decode(), "says": said}


def main(version: str) -> int:
    """Write the corpus of a release; refused where there is one already."""
    path = CORPUS / f"{version}.jsonl"
    if path.exists():
        print(f"{path.name} is there; what is released stays as it is.")
        return 1
    lines = [json.dumps(row, sort_keys=True) for row in rows()]
    path.write_text("\n".join(lines) + "\n")
    print(f"{path.name}: {len(lines)} facts")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
