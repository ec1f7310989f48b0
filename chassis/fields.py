"""What is wrong with the fields of a request, in words that follow `it`: the rule, not its notation."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Final

import protovalidate
from google.protobuf.descriptor import Descriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from protovalidate import Validator

from chassis.refusals import Violation

VALUE_LENGTH_MAX: Final = 200
NANOS: Final = 10**9
# Of one request, messages and entries of maps: a large workload has some thousands.
PARTS_MAX: Final = 10_000
FIELDS_MAX: Final = 50_000
VARINT_BITS_MAX: Final = 70
LARGE_BYTES: Final = 256 * 1024
FAULTS_MAX: Final = 20

# How patterns write a name (an RFC 1123 label), with its greatest length less two or one, or as it is.
_NAME: Final = re.compile(
    r"\[a-z\]\(\[a-z0-9-\]\{0,(?P<inner>\d+)\}\[a-z0-9\]\)\?"
    r"|\[a-z\]\[a-z0-9-\]\{0,(?P<behind>\d+)\}"
    r"|\[a-z0-9-\]\{1,(?P<all>\d+)\}"
)
_COLLECTION: Final = "[a-zA-Z]+"
_OPTIONAL: Final = re.compile(r"\^\((?P<whole>.*)\)\?\$")
# Of a pattern whose names are put into words, what is left has to be plain text and choices.
_PLAIN: Final = re.compile(r"[a-z0-9/(){}|-]*")
# Patterns that are no names of resources.
_WORDS: Final = {
    "[a-z][a-z0-9_./-]{0,62}": "must be lower-case letters, digits and `_./-`, beginning with a "
    "letter, at most 63",
    "[A-Za-z0-9_.-]{0,63}": "must be letters, digits and `_.-`, at most 63",
    "[A-Za-z_][A-Za-z0-9_]{0,127}": "must be letters, digits and `_`, not beginning with a digit, "
    "at most 128",
    "[A-Za-z0-9][A-Za-z0-9._-]{0,62}": "must be letters, digits and `._-`, beginning with a letter "
    "or a digit, at most 63",
    "([*]|[A-Za-z0-9][A-Za-z0-9._-]{0,62})": "must be `*`, or letters, digits and `._-`, beginning "
    "with a letter or a digit, at most 63",
    "[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?": "must be lower-case letters, digits and `._-`, beginning "
    "and ending with a letter or a digit, at most 63",
    "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}": "must be a UUID",
    "[A-Z][A-Z0-9_]{0,62}": "must be upper-case letters, digits and `_`, beginning with a letter, "
    "at most 63",
    "[A-Z]{3}": "must be three upper-case letters",
    "[0-7][0-9a-hjkmnp-tv-z]{25}": "must be 26 lower-case base32 characters",
    "clusters/[0-7][0-9a-hjkmnp-tv-z]{25}": "must be clusters/ and 26 lower-case base32 characters",
    "[a-z]+/[a-z0-9]{1,26}": "must be {service}/{shard}",
    "[a-z]+/[a-z]+": "must be {service}/{service}",
    "[a-z]+/[a-z0-9_-]{1,80}": "must be {kind}/{uid}",
    "users/{user}/tokens/tok_[0-9a-z]{26}": "must be users/{user}/tokens/{token}, the last part the "
    "token's uid",
    r"[^\p{Cc}\p{Zl}\p{Zp}]*": "must hold no control characters and no line breaks",
    r"([^\p{Cc}]|[\t\n\r])*": "must hold no control characters but line breaks and tabs",
    r"/[^\x00]*": "must begin with `/`",
    "sha256:[0-9a-f]{64}": "must be `sha256:` and 64 hexadecimal digits",
}


def faults(request: Message, validator: Validator) -> list[Violation]:
    """
    Every field that breaks a rule, text that holds U+0000, and time that is none, each once.

    Of very many only the first `FAULTS_MAX`, and of a request that is large only the first: whoever
    sends thousands of them shall not keep everybody else waiting while they are put into words.
    """
    data = request.SerializeToString()
    nul = nul_fields(request) if b"\0" in data else ()
    first = list(islice(chain(nul, no_times(request)), FAULTS_MAX))
    told = {one.field for one in first}
    found = validator.collect_violations(request, fail_fast=len(data) > LARGE_BYTES)
    broken = ((_path(one), one) for one in islice(found, FAULTS_MAX))
    return first + [
        Violation(path, _words(one, request), one.proto.rule_id)
        for path, one in broken
        if path not in told
    ]


def is_bounded(kind: Descriptor, data: bytes) -> bool:
    """
    Whether bytes have few enough parts to be read as a message of this kind, and looked at.

    Asked before they are read: a message within a message is hundreds of bytes in memory, and may be
    two bytes of a request. Bytes that are no message at all are left to their reading.
    """
    parts, left = PARTS_MAX, FIELDS_MAX
    waiting = [(kind, 0, len(data))]
    try:
        while waiting:
            inside, at, end = waiting.pop()
            known = inside.fields_by_number
            while at < end:
                tag, at = _varint(data, at)
                left -= 1
                match tag & 7:
                    case 0:
                        _, at = _varint(data, at)
                    case 1:
                        at += 8
                    case 2:
                        size, at = _varint(data, at)
                        field = known.get(tag >> 3)
                        if field is not None and field.message_type is not None:
                            parts -= 1
                            waiting.append((field.message_type, at, min(at + size, end)))
                        at += size
                    case 5:
                        at += 4
                    case 3 | 4:
                        # A group holds fields like any others.
                        pass
                    case _:
                        return True
                if parts < 0 or left < 0:
                    return False
    except IndexError:
        pass
    return True


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number of the wire, and the place behind it; IndexError where the bytes end before."""
    byte = data[at]
    value, shift = byte & 0x7F, 7
    while byte > 0x7F and shift < VARINT_BITS_MAX:
        at += 1
        byte = data[at]
        value |= (byte & 0x7F) << shift
        shift += 7
    return value, at + 1


def shown(request: Message, path: str) -> tuple[str, str]:
    """
    The value of a field as text, and how a sentence shows it: texts quoted, enums by name.

    Both are empty where it is no plain one.
    """
    found: object = request
    for name in path.split("."):
        field = found.DESCRIPTOR.fields_by_name.get(name) if isinstance(found, Message) else None
        if field is None or field.is_repeated:
            return "", ""
        enum, found = field.enum_type, getattr(found, name)
    if isinstance(found, str):
        text = found[:VALUE_LENGTH_MAX]
        return text, repr(text)
    if isinstance(found, Message | bytes):
        return "", ""
    if enum is not None and isinstance(found, int) and found in enum.values_by_number:
        found = enum.values_by_number[found].name
    return str(found), str(found)


def pattern_words(pattern: str) -> str | None:
    """Say what a pattern asks for; None where there are no words for it."""
    optional = _OPTIONAL.fullmatch(pattern)
    if optional is not None and _is_balanced(optional["whole"]):
        words = _pattern_words(optional["whole"])
        return words and words.replace("must be ", "must be empty or ", 1)
    return _pattern_words(pattern.removeprefix("^").removesuffix("$"))


def _pattern_words(pattern: str) -> str | None:
    limits: list[str] = []

    def name(match: re.Match[str]) -> str:
        inner, behind, whole = match.group("inner", "behind", "all")
        limits.append(str(int(inner) + 2 if inner else int(behind) + 1 if behind else int(whole)))
        return "{" + _singular(pattern[: match.start()]) + "}"

    template = _NAME.sub(name, pattern).replace(_COLLECTION, "{collection}")
    if template in _WORDS:
        return _WORDS[template]
    if not limits or not _PLAIN.fullmatch(template):
        return None
    kinds = "lower-case letters, digits and '-', beginning with a letter and not ending with '-'"
    most = " and ".join(dict.fromkeys(limits))
    if template == "{name}":
        return f"must be {kinds}, at most {most}"
    return f"must be {template}: names of {kinds}, at most {most}"


def _singular(before: str) -> str:
    """What a name behind `…/projects/` is called; choices and groups in between are passed over."""
    collection = re.search(r"([a-z]+)s/\(?$", before)
    return "name" if collection is None else collection[1]


def _is_balanced(text: str) -> bool:
    depth = 0
    for letter in text:
        depth += (letter == "(") - (letter == ")")
        if depth < 0:
            return False
    return depth == 0


def _words(found: protovalidate.Violation, request: Message) -> str:
    rule, asked = found.proto.rule_id, found.rule_value
    names = _enum(found, request)
    match rule:
        case "string.pattern":
            return pattern_words(str(asked)) or f"must match the pattern `{asked}`"
        case "string.min_len" if asked == 1:
            return "must not be empty"
        case "string.in":
            return _one_of(asked)
        case "enum.defined_only" if names:
            return _one_of(list(names.values()))
        case "enum.in" if names:
            return _one_of([name for number, name in names.items() if number in asked])
        case "enum.not_in" if names:
            return _one_of([name for number, name in names.items() if number not in asked])
        case "map.max_pairs":
            return f"must have at most {asked} entries"
        case _:
            # `value must …` and `must …` both come.
            return f"{found.proto.message}".removeprefix("value ")


def _one_of(choices: Sequence[str]) -> str:
    named = [choice for choice in choices if choice]
    return f"must be {'one of ' if len(named) > 1 else ''}{', '.join(named)}" + (
        ", or empty" if len(named) < len(choices) else ""
    )


def _enum(found: protovalidate.Violation, request: Message) -> Mapping[int, str]:
    """Names by number of the enum of the field that broke a rule; empty where it is none."""
    path, kind = found.proto.field, request.DESCRIPTOR
    names: Mapping[int, str] = {}
    for element in path.elements if path is not None else ():
        field = kind.fields_by_name.get(element.field_name)
        if field is None:
            return {}
        enum, kind = field.enum_type, field.message_type or kind
        names = {} if enum is None else {one.number: one.name for one in enum.values if one.number}
    return names


def nul_fields(message: Message, path: str = "") -> Iterable[Violation]:
    """Find strings that hold U+0000, which PostgreSQL cannot store and would fail a whole batch for."""
    for where, text in texts(message, path):
        if "\0" in text:
            yield Violation(where, "must not hold the character U+0000", "string.no_nul")


def no_times(message: Message, path: str = "") -> Iterator[Violation]:
    """Find times and lengths of time whose nanoseconds no reader of theirs takes."""
    if isinstance(message, Timestamp) and not 0 <= message.nanos < NANOS:
        yield Violation(path, f"must have nanos from 0 to {NANOS - 1}", "timestamp.nanos")
    if isinstance(message, Duration) and (
        abs(message.nanos) >= NANOS or message.seconds * message.nanos < 0
    ):
        rule = f"must have nanos of the sign of its seconds, and at most {NANOS - 1}"
        yield Violation(path, rule, "duration.nanos")
    for one, value in message.ListFields():
        if one.message_type is None:
            continue
        where = f"{path}.{one.name}" if path else one.name
        if one.message_type.GetOptions().map_entry:
            inner = {f"[{key!r}]": entry for key, entry in value.items()}
        elif one.is_repeated:
            inner = {f"[{place}]": entry for place, entry in enumerate(value)}
        else:
            inner = {"": value}
        for key, entry in inner.items():
            if isinstance(entry, Message):
                yield from no_times(entry, f"{where}{key}")


def texts(message: Message, path: str = "") -> Iterator[tuple[str, str]]:
    """Every text of a message with the path of its field; a map's keys and values under the same one."""
    for one, value in message.ListFields():
        where = f"{path}.{one.name}" if path else one.name
        if one.message_type is not None and one.message_type.GetOptions().map_entry:
            for key, entry in value.items():
                named = f"{where}[{key!r}]"
                if isinstance(entry, Message):
                    yield from texts(entry, named)
                    yield named, str(key)
                else:
                    yield named, f"{key}{entry}" if isinstance(entry, str) else str(key)
            continue
        for place, item in enumerate(value if one.is_repeated else (value,)):
            named = f"{where}[{place}]" if one.is_repeated else where
            if isinstance(item, Message):
                yield from texts(item, named)
            elif isinstance(item, str):
                yield named, item


def _path(violation: protovalidate.Violation) -> str:
    """Write the field path of a violation as `instance.spec.ports[0].name`."""
    parts: list[str] = []
    found = violation.proto.field
    for element in found.elements if found is not None else ():
        text = element.field_name
        subscript = element.subscript
        if subscript is not None:
            text += f"[{subscript.value!r}]"
        parts.append(text)
    return ".".join(parts)
