"""
A price book as a file of YAML: read exactly, written again, and what is wrong in it named.

The command line publishes such files, and billing begins with one; so this is the one module of the
client, beside its messages, that services use. It does no I/O.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Hashable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Final, TypeAlias

import yaml
from google.protobuf.duration_pb2 import Duration

from fermion.api.billing import v1 as api
from fermion.api.workload import v1 as workload
from fermion.errors import InvalidArgument

NANOS: Final = 10**9
PRICE_NANOS_MAX: Final = 10**15
FREE_MS_MAX: Final = 3_600_000
# The model that stands for every model without a price of its own.
DEFAULT: Final = "default"
SINGLE: Final = {
    "cpu": api.DIMENSION_CPU,
    "memory": api.DIMENSION_MEMORY,
    "storage": api.DIMENSION_STORAGE,
}
STATES: Final = {
    name.removeprefix("BILLABLE_STATE_").lower(): number
    for name, number in api.BillableState.items()
    if number
}
CAUSES: Final = {
    name.removeprefix("CAUSE_").lower(): number for name, number in workload.Cause.items() if number
}

_VERSION: Final = re.compile(r"[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?")
_CURRENCY: Final = re.compile(r"[A-Z]{3}")
_MODEL: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_PRICE: Final = re.compile(r"([0-9]{1,7})(?:\.([0-9]{1,9}))?")
_FREE: Final = re.compile(r"([0-9]{1,7})(ms|s|m|h)")
_MS: Final = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000}

_AN_EXAMPLE: Final = "fermion prices show --as-file prints a file that is right."

# YAML as it is written: every scalar is its text, so that no price is ever a float.
Node: TypeAlias = "str | list[Node] | dict[str, Node]"


class _Loader(yaml.BaseLoader):
    """Reads scalars as they stand, and refuses a key that stands twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Node]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"{key!r} stands there twice")
        found: dict[Hashable, Node] = super().construct_mapping(node, deep)
        return found


def parse(text: str, file: str) -> api.PriceBook:
    """
    The price book that a file holds, number and publish time unset; the same book is the same bytes.

    Raises `InvalidArgument` (PRICE_FILE_INVALID) with file, field, value, rule and what to write.
    """
    return _Reader(file).book(text)


def written(book: api.PriceBook) -> str:
    """A book as the file that `parse` reads it from."""
    lines = [f'version: "{book.version}"', f"currency: {book.currency}"]
    if book.HasField("effective_time"):
        at = book.effective_time.ToDatetime(tzinfo=UTC)
        lines.append(f"effective: {at.isoformat().replace('+00:00', 'Z')}")
    lines += ["prices:", "  gpu:"]
    prices = {(one.dimension, one.gpu_type): one.price_nanos for one in book.prices}
    lines += [
        f'    {model or DEFAULT}: "{decimal(nanos)}"'
        for (dimension, model), nanos in sorted(prices.items())
        if dimension == api.DIMENSION_GPU
    ]
    lines += [
        f'  {name}: "{decimal(prices[number, ""])}"'
        for name, number in SINGLE.items()
        if (number, "") in prices
    ]
    lines.append("states:")
    rules = {one.state: one for one in book.states}
    lines += [f"  {name}: {_rule(rules[at])}" for name, at in STATES.items() if at in rules]
    causes = [name for name, number in CAUSES.items() if number in book.platform_causes]
    lines.append(f"platform_causes: [{', '.join(causes)}]")
    return "\n".join(lines) + "\n"


def decimal(nanos: int) -> str:
    """Billionths as an exact decimal number, of two decimals at least."""
    whole, part = divmod(abs(nanos), NANOS)
    decimals = f"{part:09}".rstrip("0").ljust(2, "0")
    return f"{'-' if nanos < 0 else ''}{whole}.{decimals}"


def _rule(rule: api.StateRule) -> str:
    if not rule.HasField("free"):
        return f"{{billed: {str(rule.billed).lower()}}}"
    ms = rule.free.ToMilliseconds()
    free = f"{ms}ms" if ms % 1000 else f"{ms // 1000}s"
    return f"{{billed: {str(rule.billed).lower()}, free: {free}}}"


class _Reader:
    """Reads one file, whose name stands in what it says of it."""

    def __init__(self, file: str) -> None:
        self._file = file

    def book(self, text: str) -> api.PriceBook:
        try:
            found: Node = yaml.load(text, Loader=_Loader)
        except (yaml.YAMLError, RecursionError) as error:
            said = " ".join(str(error).split())
            raise InvalidArgument(
                f"{self._file} is no YAML: {said}.",
                reason="PRICE_FILE_INVALID",
                violations=((self._file, "must be YAML, each key once"),),
                next_step="fermion prices show --as-file prints one that is.",
            ) from error
        needed = ("version", "currency", "prices", "states", "platform_causes")
        top = self._mapping("", found, needed, ("effective",))
        book = api.PriceBook(
            version=self._matching(
                "version",
                top["version"],
                _VERSION,
                "must be small letters, digits, ., _ and -, at most 63",
                'Write it like "2026-01".',
            ),
            currency=self._matching(
                "currency",
                top["currency"],
                _CURRENCY,
                "must be three capital letters, as ISO 4217 has them",
                "Write it like USD.",
            ),
        )
        if "effective" in top:
            book.effective_time.FromDatetime(self._moment("effective", top["effective"]))
        book.prices.extend(self._prices(top["prices"]))
        book.states.extend(self._states(top["states"]))
        book.platform_causes.extend(self._causes(top["platform_causes"]))
        return book

    def _prices(self, node: Node) -> Iterable[api.Price]:
        prices = self._mapping("prices", node, ("gpu", *SINGLE))
        models = self._mapping("prices.gpu", prices["gpu"], (DEFAULT,), None)
        # That of all others first, as its model is the empty one.
        for model in sorted(models, key=lambda name: "" if name == DEFAULT else name):
            field = f"prices.gpu.{model}"
            if not _MODEL.fullmatch(model):
                raise self._wrong(
                    field,
                    model,
                    "must be a model of GPUs: letters, digits, ., _ and -, at most 63",
                    "Write it like A100-80GB.",
                )
            yield api.Price(
                dimension=api.DIMENSION_GPU,
                gpu_type="" if model == DEFAULT else model,
                price_nanos=self._price(field, models[model]),
            )
        for name, dimension in SINGLE.items():
            nanos = self._price(f"prices.{name}", prices[name])
            yield api.Price(dimension=dimension, price_nanos=nanos)

    def _price(self, field: str, node: Node) -> int:
        text = self._text(field, node)
        found = _PRICE.fullmatch(text)
        nanos = -1
        if found is not None:
            nanos = int(found[1]) * NANOS + int((found[2] or "").ljust(9, "0"))
        if not 0 <= nanos <= PRICE_NANOS_MAX:
            raise self._wrong(
                field,
                text,
                "must be a price by the hour: a decimal number from 0 to 1000000, of at most 9 decimals",
                'Write it like "2.40".',
            )
        return nanos

    def _states(self, node: Node) -> Iterable[api.StateRule]:
        states = self._mapping("states", node, tuple(STATES))
        for name, number in STATES.items():
            field = f"states.{name}"
            said = self._mapping(field, states[name], ("billed",), ("free",))
            billed = self._text(f"{field}.billed", said["billed"])
            if billed not in ("true", "false"):
                raise self._wrong(
                    f"{field}.billed",
                    billed,
                    "must be true or false",
                    "Write it like {billed: true}.",
                )
            free = self._span(f"{field}.free", said["free"]) if "free" in said else None
            yield api.StateRule(state=number, billed=billed == "true", free=free)

    def _span(self, field: str, node: Node) -> Duration:
        text = self._text(field, node)
        found = _FREE.fullmatch(text)
        ms = int(found[1]) * _MS[found[2]] if found is not None else -1
        if not 0 <= ms <= FREE_MS_MAX:
            raise self._wrong(
                field, text, "must be a time span of at most an hour", "Write it like 10s or 2m."
            )
        span = Duration()
        span.FromMilliseconds(ms)
        return span

    def _causes(self, node: Node) -> Iterable[workload.Cause.ValueType]:
        field = "platform_causes"
        if not isinstance(node, list):
            raise self._wrong(
                field, _told(node), "must be a list", "Write it like [preemption, node_drain]."
            )
        names = [self._text(field, one) for one in node]
        for name in names:
            if name not in CAUSES:
                raise self._wrong(
                    field, name, f"must be one of {', '.join(CAUSES)}", _meant(name, CAUSES)
                )
            if names.count(name) > 1:
                raise self._wrong(field, name, "must stand there once", "Take one away.")
        return sorted(CAUSES[name] for name in names)

    def _moment(self, field: str, node: Node) -> datetime:
        text = self._text(field, node)
        step = "Write it like 2026-12-01T00:00:00Z."
        try:
            at = datetime.fromisoformat(text)
        except ValueError as error:
            raise self._wrong(field, text, "must be a time", step) from error
        if at.tzinfo is None or at.microsecond % 1000:
            raise self._wrong(field, text, "must say its zone, and whole milliseconds", step)
        try:
            return at.astimezone(UTC)
        except OverflowError as error:
            raise self._wrong(field, text, "must be a time of the years 1 to 9999", step) from error

    def _mapping(
        self,
        field: str,
        node: Node,
        needed: tuple[str, ...],
        more: tuple[str, ...] | None = (),
    ) -> Mapping[str, Node]:
        """What stands below a field: all that is needed, and nothing unknown unless `more` is None."""
        keys = ", ".join(needed)
        if not isinstance(node, dict):
            where = field or "the file"
            raise self._wrong(where, _told(node), f"must be a mapping with {keys}", _AN_EXAMPLE)
        for key, value in node.items():
            place = f"{field}.{key}" if field else str(key)
            if not isinstance(key, str):
                raise self._wrong(place, _told(value), "must have a name", _AN_EXAMPLE)
            if more is not None and key not in (*needed, *more):
                known = (*needed, *more)
                rule = f"is not known; there are {', '.join(known)}"
                raise self._wrong(place, _told(value), rule, _meant(key, known))
        for key in needed:
            if key not in node:
                place = f"{field}.{key}" if field else key
                raise self._wrong(place, "", "must be said", _AN_EXAMPLE)
        return node

    def _matching(
        self, field: str, node: Node, pattern: re.Pattern[str], rule: str, next_step: str
    ) -> str:
        text = self._text(field, node)
        if not pattern.fullmatch(text):
            raise self._wrong(field, text, rule, next_step)
        return text

    def _text(self, field: str, node: Node) -> str:
        if not isinstance(node, str):
            raise self._wrong(field, _told(node), "must be a single value", _AN_EXAMPLE)
        return node

    def _wrong(self, field: str, value: str, rule: str, next_step: str) -> InvalidArgument:
        return InvalidArgument(
            f"{self._file}: {field} is {value!r}: it {rule}.",
            reason="PRICE_FILE_INVALID",
            arguments={"file": self._file, "field": field, "value": value},
            violations=((field, rule),),
            next_step=next_step,
        )


def _told(node: Node) -> str:
    """A value that is none, as far as a sentence has room for it."""
    if isinstance(node, str):
        return node
    return "a list" if isinstance(node, list) else "a mapping"


def _meant(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), 1)
    return f"Did you mean {near[0]}?" if near else _AN_EXAMPLE
