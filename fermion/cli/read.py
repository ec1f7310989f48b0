"""How people write sizes, durations, ports and pairs, and what they hear when they write them wrong."""

from __future__ import annotations

import re
import sys
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import TypeVar

import yaml
from google.protobuf import json_format
from google.protobuf.message import Message

from fermion.api.workload import v1 as workload
from fermion.errors import InvalidArgument

Read = TypeVar("Read", bound=Message)

_SIZES = {
    "": 1,
    "k": 10**3,
    "m": 10**6,
    "g": 10**9,
    "t": 10**12,
    "ki": 2**10,
    "mi": 2**20,
    "gi": 2**30,
    "ti": 2**40,
}
_SECONDS = {
    "ms": Decimal("0.001"),
    "s": Decimal(1),
    "m": Decimal(60),
    "h": Decimal(3600),
    "d": Decimal(86400),
}
_NUMBER = r"\d{1,15}(?:\.\d{1,9})?"
_SIZE = re.compile(rf"({_NUMBER})\s*([kmgt]i?)?b?", re.ASCII)
_COUNT = re.compile(r"\d{1,15}", re.ASCII)
# What a field of the API can hold.
_MOST = 2**63 - 1
_MILLI = re.compile(rf"({_NUMBER})(m?)", re.ASCII)
_DURATION = re.compile(rf"({_NUMBER})(ms|s|m|h|d)", re.ASCII)
_MONTH = re.compile(r"(\d{4})-(\d{2})", re.ASCII)
_MONEY = re.compile(rf"({_NUMBER})\s*([A-Z]{{3}})?", re.ASCII)
_PORTS = {
    "": workload.Port.PROTOCOL_HTTP,
    "http": workload.Port.PROTOCOL_HTTP,
    "grpc": workload.Port.PROTOCOL_GRPC,
    "tcp": workload.Port.PROTOCOL_TCP,
}
# As a word of its own: TOKENIZERS_PARALLELISM and MAX_TOKENS are no secrets.
_SECRET = re.compile(
    r"SECRET|PASSWORD|PASSWD|CREDENTIAL|(^|_)TOKEN(_|$)|(^|_)KEYS?(_|$)|(TOKEN|KEY)$", re.IGNORECASE
)


def wrong(option: str, value: str, rule: str, next_step: str) -> InvalidArgument:
    """Say which option has which value, which rule it breaks, and what to write."""
    return InvalidArgument(
        f"{option} is {value!r}: it {rule}.",
        reason="OPTION_INVALID",
        violations=((option, rule),),
        next_step=next_step,
    )


def unfit(option: str, rule: str, next_step: str) -> InvalidArgument:
    """Say which option does not go with what else was said, and what to say instead."""
    return InvalidArgument(
        f"{option} {rule}.",
        reason="OPTION_INVALID",
        violations=((option, rule),),
        next_step=next_step,
    )


def size(option: str, text: str) -> int:
    """`16GiB`, `500M`, `1.5Ti` as bytes."""
    found = _SIZE.fullmatch(text.strip().lower())
    if found is None:
        raise wrong(option, text, "is no size", "Write it like 16GiB, 500M or 1.5Ti.")
    number = int(Decimal(found[1]) * _SIZES[found[2] or ""])
    if number > _MOST:
        raise wrong(option, text, "is more than can be counted", "Write it like 16GiB or 1.5Ti.")
    return number


def count(option: str, text: str) -> int:
    """`10` as a whole number."""
    if not _COUNT.fullmatch(text):
        raise wrong(option, text, "is no whole number", f"Write it like {option} 10.")
    return int(text)


def milli(option: str, text: str) -> int:
    """`4`, `0.5`, `250m` as thousandths."""
    found = _MILLI.fullmatch(text.strip())
    number = Decimal(found[1]) * (1 if found[2] else 1000) if found else Decimal("0.5")
    if number != int(number):
        rule = "is no number of thousandths" if found else "is no number"
        raise wrong(option, text, rule, "Write it like 4, 0.5 or 250m.")
    return int(number)


def duration(option: str, text: str) -> timedelta:
    """`8h`, `90m`, `1h30m` as a time span."""
    parts = _DURATION.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise wrong(option, text, "is no duration", "Write it like 8h, 90m or 1h30m.")
    seconds = sum((Decimal(number) * _SECONDS[unit] for number, unit in parts), Decimal(0))
    try:
        return timedelta(seconds=float(seconds))
    except OverflowError as error:
        raise wrong(option, text, "is longer than time is", "Write it like 8h.") from error


def money(option: str, text: str) -> workload.Money:
    """`2.50`, in the platform's currency, or `2.50 EUR`; to the billionth, exactly."""
    found = _MONEY.fullmatch(text.strip())
    if found is None:
        raise wrong(option, text, "is no amount of money", "Write it like 2.50 or 2.50 EUR.")
    nanos = int(Decimal(found[1]).scaleb(9))
    if nanos > _MOST:
        raise wrong(option, text, "is more than can be counted", "Write it like 2.50.")
    return workload.Money(currency=found[2] or "", nanos=nanos)


def pair(option: str, text: str, example: str = "team=vision") -> tuple[str, str]:
    """`key=value`."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise wrong(option, text, "is no KEY=VALUE", f"Write it like {option} {example}.")
    return key, value


def env(text: str) -> workload.EnvVar:
    """`NAME=value`."""
    name, value = pair("--env", text)
    return workload.EnvVar(name=name, value=value)


def must_be_plain(option: str, name: str) -> None:
    """Refuse the name of an environment variable that sounds like a secret."""
    if _SECRET.search(name):
        raise wrong(
            option,
            f"{name}=…",
            "sounds like a secret, and values are readable by every member and kept for ever",
            "If it is none, add --plain-env.",
        )


def port(text: str) -> workload.Port:
    """`name:number`, with `/http`, `/grpc` or `/tcp`."""
    body, _, protocol = text.partition("/")
    name, colon, number = body.partition(":")
    good = name and colon and re.fullmatch(r"[0-9]{1,5}", number) and protocol in _PORTS
    if not good:
        raise wrong(
            "--port", text, "is no NAME:NUMBER[/http|grpc|tcp]", "Write it like jupyter:8888/http."
        )
    return workload.Port(name=name, number=int(number), protocol=_PORTS[protocol])


def moment(option: str, text: str) -> datetime:
    """A time as ISO 8601 has it, or a time span ago like `10m`."""
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError):
        if not _DURATION.match(text):
            raise wrong(
                option, text, "is no time", "Write it like 2026-11-24T08:00:00Z, or 10m for ago."
            ) from None
    try:
        return datetime.now(UTC) - duration(option, text)
    except OverflowError as error:
        raise wrong(option, text, "is before all time", "Write it like 10m.") from error


def message(file: Path, empty: Read, example: str, option: str = "--file") -> Read:
    """A message from YAML or JSON; `-` is stdin. `example` is a command that prints one."""
    kind = empty.DESCRIPTOR.name
    text = content(file, example, option)
    try:
        return json_format.ParseDict(yaml.safe_load(text) or {}, empty)
    except (
        *(ValueError, AttributeError, TypeError, RecursionError),
        *(yaml.YAMLError, json_format.ParseError),
    ) as error:
        said = " ".join(str(error).split())
        raise wrong(option, str(file), f"is no {kind} ({said})", example) from error


def content(file: Path, example: str, option: str = "--file") -> str:
    """The text of a file; `-` is stdin. `example` is a command that prints one."""
    try:
        return sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8")
    except OSError as error:
        raise wrong(option, str(file), f"cannot be read ({error.strerror})", example) from error
    except UnicodeDecodeError as error:
        raise wrong(option, str(file), "is no text", example) from error


def month(option: str, text: str) -> tuple[datetime, datetime]:
    """`2026-11` as its beginning and its end, as UTC has them."""
    found = _MONTH.fullmatch(text)
    if found is None or not 1 <= int(found[2]) <= 12 or not 1970 <= int(found[1]) < 9999:
        raise wrong(option, text, "is no month", f"Write it like {option} 2026-11.")
    year, number = int(found[1]), int(found[2])
    following = (year, number + 1) if number < 12 else (year + 1, 1)
    return datetime(year, number, 1, tzinfo=UTC), datetime(*following, 1, tzinfo=UTC)
