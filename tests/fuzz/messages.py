"""Requests of every kind as their descriptors say: some as they should be, some with a field that is not."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import strategies as st

from buf.validate import validate_pb2
from tests.contract.descriptors import every_file

HOSTILE_TEXTS: Final = (
    "",
    "\0",
    "lab\0",
    "../../../../etc/passwd",
    "projects/own/../foreign",
    "projects/-",
    "projects/",
    "//",
    "*",
    "'; DROP TABLE instances.head; --",
    "\" OR ''='",
    "\x1b[2J\x1b]0;title\x07",
    "\r\nx-injected: yes",
    "\u202egnp.exe",
    "\u2028",
    "İ",  # longer in lower case
    "ﬃ" * 40,
    "\U0010ffff",
    "%s%n%x",
    "${HOME}`id`",
    "{}",
    "null",
    "NaN",
    "-1",
    "9" * 400,
    "1e999",
    "a" * 64,
    "a" * 301,
    "é" * 2001,
    "x" * 70_000,
    "state=RUNNING AND labels.team=vision AND name:exp-*",
    'create_time>"0001-01-01T00:00:00+23:59"',
    "create_time<9999-12-31T23:59:59-23:59",
    "labels.\U0010ffff=*",
    "spec.resources.cpu_milli",
    "nothing.of.that.name",
)
# What JSON may hold and PostgreSQL, or an int64, may not.
HOSTILE_JSON: Final = (
    '"\\ud800"',
    '"\\u0000"',
    "1e999",
    "-1",
    "NaN",
    "true",
    "null",
    "[]",
    "{}",
    '""',
    "9" * 30,
    "9" * 4000,
    "1.5",
    '"9999-12-31T23:59:59.999999-23:59"',
    '"0001-01-01T00:00:00+23:59"',
)
INTEGERS: Final = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}
# Of one and the same request, so that what is asked again is drawn, too.
REQUEST_IDS: Final = ("11111111-2222-4333-8444-555555555555", "", "none", "A" * 36)
LENGTH_DELIMITED: Final = 2
UNKNOWN_FIELD: Final = 19_000
SHOWN_MAX: Final = 3000
DRAWN_BYTES_MAX: Final = 200_000


@dataclass(frozen=True, slots=True)
class Names:
    """What there is, to be named by requests: resource names, and tokens that calls have given."""

    known: tuple[str, ...]
    tokens: tuple[str, ...] = ()


def every_method() -> Iterator[MethodDescriptor]:
    """Each RPC of ours."""
    for file in every_file():
        for service in file.services_by_name.values():
            yield from service.methods


@dataclass(frozen=True, slots=True)
class Request:
    """A request that was drawn; shown as far as one wants to read."""

    message: Message

    def __repr__(self) -> str:
        return str(self.message)[:SHOWN_MAX]

    @property
    def body(self) -> bytes:
        """As it is sent."""
        return self.message.SerializeToString()


@st.composite
def requests(draw: st.DrawFn, kind: Descriptor, names: Names) -> Request:
    """A request that is mostly as it should be, and a request of which nothing is."""
    wrong = draw(st.sampled_from((0, 1, 1, 10)))
    request: Message = GetMessageClass(kind)()
    fill(draw, request, names, wrong)
    return Request(request)


def fill(draw: st.DrawFn, message: Message, names: Names, wrong: int) -> None:
    """Set fields; of ten of them, `wrong` are what they must not be."""
    for field in message.DESCRIPTOR.fields:
        rules = field.GetOptions().Extensions[validate_pb2.field]
        named = field.name in ("name", "parent", "owner", "project", "start")
        # What a request is about is rarely left out, and half of all else is.
        if draw(st.integers(0, 7)) < (1 if rules.required or named else 4):
            continue
        if field.is_repeated:
            _fill_many(draw, message, field, names, wrong)
        elif field.message_type is not None:
            inner = getattr(message, field.name)
            inner.SetInParent()
            _fill_one(draw, inner, names, wrong)
        else:
            setattr(message, field.name, _value(draw, field, rules, names, wrong))


def _fill_one(draw: st.DrawFn, message: Message, names: Names, wrong: int) -> None:
    kind = message.DESCRIPTOR.full_name
    hostile = draw(st.integers(1, 10)) <= wrong
    if kind in ("google.protobuf.Timestamp", "google.protobuf.Duration"):
        seconds, nanos = (0, 1, 60, 600, 1_790_000_000), (0, 1, 999_999_999)
        if hostile:
            seconds = (-1, 2**63 - 1, -(2**63), 253402300800, -62135596801, 315576000001)  # type: ignore[assignment]
            nanos = (-1, 10**9, 2**31 - 1, -(2**31))  # type: ignore[assignment]
        message.seconds = draw(st.sampled_from(seconds))  # type: ignore[attr-defined]
        message.nanos = draw(st.sampled_from(nanos))  # type: ignore[attr-defined]
    elif kind == "google.protobuf.FieldMask":
        paths = ("display_name", "description", "labels", "spec.image", "spec", "labels.team")
        wanted = st.sampled_from(HOSTILE_TEXTS if hostile else paths)
        message.paths.extend(draw(st.lists(wanted, max_size=3)))  # type: ignore[attr-defined]
    else:
        fill(draw, message, names, wrong)


def _fill_many(
    draw: st.DrawFn, message: Message, field: FieldDescriptor, names: Names, wrong: int
) -> None:
    count = draw(st.sampled_from((1, 2)))
    if draw(st.integers(1, 10)) <= wrong:
        # More than any rule allows; of very many there are other tests.
        count = draw(st.sampled_from((0, 17, 260)))
    entry = field.message_type
    if entry is not None and entry.GetOptions().map_entry:
        key, value = entry.fields_by_name["key"], entry.fields_by_name["value"]
        rules = field.GetOptions().Extensions[validate_pb2.field].map
        for place in range(count):
            name = _value(draw, key, rules.keys, names, wrong)
            name = f"{name}{place}" if isinstance(name, str) and place else name
            found = getattr(message, field.name)
            if value.message_type is None:
                found[name] = _value(draw, value, rules.values, names, wrong)
            else:
                _fill_one(draw, found[name], names, wrong)
        return
    items = getattr(message, field.name)
    if entry is not None:
        for place in range(count):
            # Alike from the third on, since every one that is drawn costs time.
            if place > 2 and items[0].ByteSize() * place > DRAWN_BYTES_MAX:
                break
            if place > 2:
                items.add().CopyFrom(items[0])
            else:
                _fill_one(draw, items.add(), names, wrong)
        return
    rules = field.GetOptions().Extensions[validate_pb2.field].repeated.items
    drawn = [_value(draw, field, rules, names, wrong) for _ in range(min(count, 3))]
    items.extend(drawn[place % len(drawn)] for place in range(count) if drawn)


def _value(
    draw: st.DrawFn,
    field: FieldDescriptor,
    rules: validate_pb2.FieldRules,
    names: Names,
    wrong: int,
) -> object:
    hostile = draw(st.integers(1, 10)) <= wrong
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_STRING if field.type == FieldDescriptor.TYPE_BYTES:
            sizes = (0, 1, 65_537, 300_000) if hostile else (1, 32)
            return b"\xff" * draw(st.sampled_from(sizes))
        case FieldDescriptor.CPPTYPE_STRING:
            return draw(_texts(field, rules, names, hostile))
        case FieldDescriptor.CPPTYPE_BOOL:
            # What is only rehearsed does no harm, and comes as far.
            return field.name == "validate_only" or draw(st.booleans())
        case FieldDescriptor.CPPTYPE_ENUM:
            assert field.enum_type is not None
            numbers = [one.number for one in field.enum_type.values]
            unknown = (99, -1, 2**31 - 1, -(2**31))
            return draw(st.sampled_from(unknown if hostile else numbers))
        case FieldDescriptor.CPPTYPE_DOUBLE | FieldDescriptor.CPPTYPE_FLOAT:
            return draw(st.floats(allow_nan=hostile, allow_infinity=hostile, width=32))
        case kind:
            return draw(_integers(kind, field, rules, hostile))


def _integers(
    kind: int, field: FieldDescriptor, rules: validate_pb2.FieldRules, hostile: bool
) -> st.SearchStrategy[int]:
    least, most = INTEGERS[kind]
    told = getattr(rules, rules.WhichOneof("type") or "int64", None)
    low = told.gte if told is not None and told.HasField("gte") else least
    high = told.lte if told is not None and told.HasField("lte") else most
    if hostile:
        edges = {least, most, low - 1, high + 1, -1, 0}
        return st.sampled_from(sorted(one for one in edges if least <= one <= most))
    few = [one for one in (low, 0, 1, 2, 100, 128 * 2**20, high) if low <= one <= high]
    return st.sampled_from(few)


def _texts(
    field: FieldDescriptor, rules: validate_pb2.FieldRules, names: Names, hostile: bool
) -> st.SearchStrategy[str]:
    if field.name.endswith("_token"):
        return tokens(names, hostile)
    if hostile:
        return st.one_of(st.sampled_from(HOSTILE_TEXTS), st.text(max_size=20))
    if field.name == "request_id":
        return st.sampled_from(REQUEST_IDS[:2])
    text = rules.string
    if text.pattern:
        pattern = text.pattern.replace(r"\p{Cc}", r"\x00-\x1f").replace(r"\p{Zl}\p{Zp}", "")
        fits = [one for one in names.known if re.fullmatch(pattern, one)]
        return st.sampled_from(fits) if fits else st.from_regex(pattern, fullmatch=True)
    if getattr(text, "in"):
        return st.sampled_from(list(getattr(text, "in")))
    return st.sampled_from([one for one in names.known if len(one) <= (text.max_len or 300)])


def tokens(names: Names, hostile: bool) -> st.SearchStrategy[str]:
    """A token that a call gave, or what somebody has made of one."""
    if not hostile:
        return st.sampled_from(("", *names.tokens))
    odd = ("", "e30=", "W10=", "bnVsbA==", "\ud7ff", "=", "A" * 1999)
    return st.sampled_from((*odd, *(one for token in names.tokens for one in forged(token))))


def forged(token: str) -> Iterator[str]:
    """Tokens that are like this one but for one of the values in it."""
    body = json.loads(base64.urlsafe_b64decode(token))
    named = isinstance(body, dict)
    written = [json.dumps(one) for one in (body.values() if named else body)]
    keys = [f"{json.dumps(key)}:" if named else "" for key in body]
    for hole in range(len(written)):
        for put in HOSTILE_JSON:
            # Put together by hand, for what is put in is not what `json` would write.
            parts = (
                key + (put if at == hole else text)
                for at, (key, text) in enumerate(zip(keys, written, strict=True))
            )
            text = ("{%s}" if named else "[%s]") % ",".join(parts)
            yield base64.urlsafe_b64encode(text.encode()).decode()


def varint(number: int) -> bytes:
    """A number as the wire has it."""
    written = bytearray()
    while number > 0x7F:
        written.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes((*written, number))


def delimited(field: int, body: bytes) -> bytes:
    """A field of some bytes as the wire has it."""
    return varint(field << 3 | LENGTH_DELIMITED) + varint(len(body)) + body


def broken(body: bytes) -> Sequence[bytes]:
    """Bytes that are no message, whatever is asked for."""
    return (
        b"\xff" * 9,
        b"\x00",
        varint(1 << 3 | LENGTH_DELIMITED) + varint(2**31) + b"short",
        varint(1 << 3 | 3),  # a group that does not end
        varint(1 << 3 | 4),  # a group that has not begun
        varint(1 << 3 | 7),  # a kind of field that there is not
        body + b"\x0a",
    )


def odd(body: bytes) -> Sequence[bytes]:
    """Bytes behind a message that a reader may pass over: fields that it does not know."""
    nested = b""
    for _ in range(90):
        nested = delimited(UNKNOWN_FIELD, nested)
    groups = varint(UNKNOWN_FIELD << 3 | 3) * 80 + varint(UNKNOWN_FIELD << 3 | 4) * 80
    return (
        body + nested,
        body + groups,
        body + delimited(UNKNOWN_FIELD, b"\xed\xa0\x80"),
        body + varint(UNKNOWN_FIELD << 3) + b"\xff" * 9 + b"\x01",
        body * 3,
    )


def huge(method: MethodDescriptor, size: int) -> Iterator[bytes]:
    """Requests of about so many bytes: one long value, many short ones, and what is not known."""
    yield delimited(UNKNOWN_FIELD, b"x" * size)
    yield from _huge(method.input_type, size, 0)


def _huge(kind: Descriptor, size: int, depth: int) -> Iterator[bytes]:
    for field in kind.fields:
        if field.type in (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES):
            if field.is_repeated:
                yield delimited(field.number, b"a") * (size // 3)
            elif depth == 0:
                yield delimited(field.number, b"a" * size)
        elif field.message_type is not None and field.is_repeated:
            item = delimited(field.number, b"")
            yield item * (size // len(item))
        elif field.message_type is not None and depth < 2:
            for inner in _huge(field.message_type, size, depth + 1):
                yield delimited(field.number, inner)
