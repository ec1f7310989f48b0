"""How people write sizes, durations, ports and pairs, and what they hear when they write them wrong."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from fermion.api.workload import v1 as workload
from fermion.errors import InvalidArgument

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
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_SECRET = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|(^|_)KEY($|_)", re.IGNORECASE)


def wrong(option: str, value: str, rule: str, next_step: str) -> InvalidArgument:
    """Say which option has which value, which rule it breaks, and what to write."""
    return InvalidArgument(
        f"{option} is {value!r}: it {rule}.",
        reason="OPTION_INVALID",
        violations=((option, rule),),
        arguments={"next_step": next_step},
    )


def size(option: str, text: str) -> int:
    """`16GiB`, `500M`, `1.5Ti` as bytes."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]i?)?b?\s*", text.lower())
    if found is None:
        raise wrong(option, text, "is no size", "Write it like 16GiB, 500M or 1.5Ti.")
    return int(float(found[1]) * _SIZES[found[2] or ""])


def milli(option: str, text: str) -> int:
    """`4`, `0.5`, `250m` as thousandths."""
    try:
        return int(text[:-1]) if text.endswith("m") else round(float(text) * 1000)
    except ValueError as error:
        raise wrong(option, text, "is no number", "Write it like 4, 0.5 or 250m.") from error


def duration(option: str, text: str) -> timedelta:
    """`8h`, `90m`, `1h30m` as a time span."""
    parts = _DURATION.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise wrong(option, text, "is no duration", "Write it like 8h, 90m or 1h30m.")
    units = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}
    return timedelta(seconds=sum(float(number) * units[unit] for number, unit in parts))


def pair(option: str, text: str) -> tuple[str, str]:
    """`key=value`."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise wrong(option, text, "is no KEY=VALUE", f"Write it like {option} team=vision.")
    return key, value


def env(text: str, plain: bool) -> workload.EnvVar:
    """`NAME=value`; a name that sounds like a secret is refused unless `plain`."""
    name, value = pair("--env", text)
    if _SECRET.search(name) and not plain:
        raise wrong(
            "--env",
            f"{name}=…",
            "sounds like a secret, and values are readable by every member and kept for ever",
            "If it is none, say so with --plain-env.",
        )
    return workload.EnvVar(name=name, value=value)


def port(text: str) -> workload.Port:
    """`name:number`, with `/http`, `/grpc` or `/tcp`."""
    body, _, protocol = text.partition("/")
    name, colon, number = body.partition(":")
    kinds = {
        "": workload.Port.PROTOCOL_HTTP,
        "http": workload.Port.PROTOCOL_HTTP,
        "grpc": workload.Port.PROTOCOL_GRPC,
        "tcp": workload.Port.PROTOCOL_TCP,
    }
    if not colon or not number.isdigit() or protocol not in kinds:
        raise wrong(
            "--port", text, "is no NAME:NUMBER[/http|grpc|tcp]", "Write it like jupyter:8888/http."
        )
    return workload.Port(name=name, number=int(number), protocol=kinds[protocol])


def moment(option: str, text: str) -> datetime:
    """A time as ISO 8601 has it, or a time span ago like `10m`."""
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        if _DURATION.fullmatch(text):
            return datetime.now(UTC) - duration(option, text)
        raise wrong(
            option, text, "is no time", "Write it like 2026-11-24T08:00:00Z, or 10m for ago."
        ) from None
    return at.astimezone(UTC)
