"""What every List has in common: filters, orders, and tokens of pages."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from chassis.refusals import Invalid, Violation

_CONDITION = re.compile(
    r"""\s*(?P<field>[a-z_]+(?:\.[a-z][a-z0-9_./-]*)?)\s*(?P<operator>!=|<=|>=|=|:|<|>)\s*
        (?:"(?P<quoted>[^"]*)"|(?P<bare>[^\s"]+))\s*""",
    re.VERBOSE,
)
_TICK = timedelta(microseconds=1)
_AND = re.compile(r"AND\s", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Filter:
    """A List's conditions, all of which hold: the subset of AIP-160 that every List understands."""

    name: str | None = None
    name_prefix: str | None = None
    labels: dict[str, str] = field(default_factory=dict)
    states: tuple[int, ...] = ()
    created_after: datetime | None = None
    created_before: datetime | None = None

    @classmethod
    def parse(cls, text: str, *, states: Mapping[str, int]) -> Filter:
        """
        Read `name=lab`, `name:exp-*`, `labels.team=vision`, `state=RUNNING`,
        `create_time>"2026-11-01T00:00:00Z"`, joined by AND; else `Invalid` (FILTER_INVALID).
        """
        found, place = cls(), 0
        while place < len(text.rstrip()):
            match = _CONDITION.match(text, place)
            if match is None:
                raise _wrong(text, f"{text[place:].strip()!r} is not a condition")
            quoted = match["quoted"]
            value = match["bare"] if quoted is None else quoted
            found = found._with(text, match["field"], match["operator"], value, states)
            place = match.end()
            if place < len(text.rstrip()):
                joined = _AND.match(text, place)
                if joined is None:
                    raise _wrong(text, f"before {text[place:].strip()!r} there is no AND")
                place = joined.end()
        return found

    def _with(
        self, text: str, name: str, operator: str, value: str, states: Mapping[str, int]
    ) -> Filter:
        match name, operator:
            case "name", ":" | "=" if value.endswith("*"):
                return self._once(text, name_prefix=value[:-1])
            case "name", ":" | "=":
                return self._once(text, name=value)
            case "state", "=" if value.removeprefix("STATE_") in states:
                return self._once(text, states=(states[value.removeprefix("STATE_")],))
            case "state", "=":
                raise _wrong(text, f"state {value!r} is none of {', '.join(states)}")
            # Times are kept in whole microseconds, so that "from" is "after the one before".
            case "create_time", ">":
                return self._once(text, created_after=_time(text, value))
            case "create_time", ">=":
                return self._once(text, created_after=_time(text, value) - _TICK)
            case "create_time", "<":
                return self._once(text, created_before=_time(text, value))
            case "create_time", "<=":
                return self._once(text, created_before=_time(text, value) + _TICK)
            case _, "=" if name.startswith("labels."):
                label = name.removeprefix("labels.")
                if label in self.labels:
                    raise _wrong(text, f"the label {label} is limited twice")
                return replace(self, labels={**self.labels, label: value})
            case _:
                raise _wrong(text, f"`{name} {operator}` is not understood")

    def _once(self, text: str, **limit: str | datetime | tuple[int, ...]) -> Filter:
        """Limit something; all conditions hold, so a second limit of the same kind is a mistake."""
        for name in limit:
            if getattr(self, name):
                raise _wrong(text, f"{name.replace('_', ' ')} is limited twice")
        return replace(self, **limit)  # type: ignore[arg-type]  # the names are fields


@dataclass(frozen=True, slots=True)
class Order:
    """By which column a List is sorted."""

    column: str = "name"
    descending: bool = False

    @classmethod
    def parse(cls, text: str) -> Order:
        """Read `name`, `create_time`, each with ` desc` or not; empty is by name."""
        column, _, direction = (text or "name").partition(" ")
        if column not in ("name", "create_time") or direction not in ("", "desc"):
            raise Invalid(
                "ORDER_INVALID",
                f"order_by is {text!r}.",
                violations=(
                    Violation("order_by", "must be name or create_time, with ` desc` or not"),
                ),
                next_step="Sort by name or create_time.",
                order_by=text,
            )
        return cls(column, direction == "desc")


class PageToken:
    """A place between two rows, bound to the question that was asked."""

    @staticmethod
    def encode(key: str, uid: str, scope: str) -> str:
        """Write the token of the page behind the row with this key and uid."""
        body = json.dumps([_digest(scope), key, uid], separators=(",", ":"))
        return base64.urlsafe_b64encode(body.encode()).decode()

    @staticmethod
    def decode(token: str, scope: str) -> tuple[str, str]:
        """Read a token; one of another question is `Invalid` (PAGE_TOKEN_MISMATCH)."""
        try:
            digest, key, uid = json.loads(base64.urlsafe_b64decode(token.encode()))
        except (ValueError, TypeError, RecursionError) as error:
            raise _mismatch(token, "is not a page token") from error
        if digest != _digest(scope) or not isinstance(key, str) or not isinstance(uid, str):
            raise _mismatch(token, "belongs to another parent, filter or order")
        if not (_is_text(key) and _is_text(uid)):
            raise _mismatch(token, "is not a page token")
        return key, uid

    @staticmethod
    def decode_time(token: str, scope: str) -> tuple[datetime, str]:
        """Read a token whose key is a moment in the form of `isoformat`."""
        key, uid = PageToken.decode(token, scope)
        try:
            moment = datetime.fromisoformat(key)
        except ValueError as error:
            raise _mismatch(token, "is not a page token") from error
        # Leaves room on both sides for any time zone.
        if moment.tzinfo is None or not 1 < moment.year < 9999:
            raise _mismatch(token, "is not a page token")
        return moment, uid

    @staticmethod
    def decode_number(token: str, scope: str) -> int:
        """Read a token whose key is a whole number from 0 on, as a row counts."""
        key, _ = PageToken.decode(token, scope)
        if not re.fullmatch(r"[0-9]{1,9}", key, re.ASCII):
            raise _mismatch(token, "is not a page token")
        return int(key)


def _digest(scope: str) -> str:
    return hashlib.sha256(scope.encode()).hexdigest()[:16]


def _is_text(key: str) -> bool:
    """Whether PostgreSQL takes it as text; JSON may also hold U+0000, and halves of characters."""
    try:
        return b"\0" not in key.encode()
    except UnicodeEncodeError:
        return False


def _mismatch(token: str, why: str) -> Invalid:
    return Invalid(
        "PAGE_TOKEN_MISMATCH",
        f"page_token {why}.",
        violations=(Violation("page_token", why),),
        next_step="Begin again without a page_token, or ask as for the page before.",
        field="page_token",
        value=token,
    )


def _time(text: str, value: str) -> datetime:
    try:
        moment = datetime.fromisoformat(value)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        # Leaves room on both sides for the tick and for any time zone.
        if not 1 < moment.year < 9999:
            raise ValueError(value)
    except ValueError as error:
        raise _wrong(text, f"{value!r} is not a time such as 2026-11-24T08:00:00Z") from error
    return moment


def _wrong(text: str, why: str) -> Invalid:
    return Invalid(
        "FILTER_INVALID",
        f"filter is {text!r}: {why}.",
        violations=(Violation("filter", why),),
        next_step="Join conditions by AND, e.g. `state=RUNNING AND labels.team=vision AND "
        'name:exp-* AND create_time>"2026-11-01T00:00:00Z"`.',
        filter=text,
    )
