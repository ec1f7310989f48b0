"""Everything that the API has, as its generated modules describe it."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path

from google.protobuf.descriptor import Descriptor, FileDescriptor

import fermion

ROOT = Path(str(fermion.__file__)).parent.parent


def every_file() -> Iterator[FileDescriptor]:
    """Each proto of ours, whoever else imports it."""
    for path in sorted((ROOT / "fermion" / "api").rglob("*_pb2.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        yield importlib.import_module(name).DESCRIPTOR


def every_message() -> Iterator[Descriptor]:
    """Each message of ours, those within others too."""
    for file in every_file():
        for message in file.message_types_by_name.values():
            yield from _with_nested(message)


def _with_nested(message: Descriptor) -> Iterator[Descriptor]:
    yield message
    for nested in message.nested_types:
        yield from _with_nested(nested)
