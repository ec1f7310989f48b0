"""Names that the platform gives: TypeIDs over time-ordered or derived UUIDs."""

from __future__ import annotations

import os
import re
import uuid
from typing import Final

# Crockford's base32 in lower case, as the TypeID specification has it.
ALPHABET: Final = "0123456789abcdefghjkmnpqrstvwxyz"
# Namespace of everything derived here; a literal, because derived ids live for ever.
NAMESPACE: Final = uuid.UUID("5f0a6a52-6c1e-5b57-9d0f-8f2b1b0c7e41")

_VALUES: Final = {letter: value for value, letter in enumerate(ALPHABET)}
_TYPEID: Final = re.compile(r"([a-z]{1,20})_([0-7][0-9a-hjkmnp-tv-z]{25})")


def typeid(prefix: str, value: uuid.UUID) -> str:
    """Write a UUID as `<prefix>_` and 26 lower-case base32 characters."""
    number = value.int
    letters = [ALPHABET[(number >> (5 * place)) & 31] for place in range(25, -1, -1)]
    return f"{prefix}_{''.join(letters)}"


def parse(text: str) -> tuple[str, uuid.UUID]:
    """Split a TypeID into prefix and UUID; raises ValueError where it is none."""
    found = _TYPEID.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is not a TypeID such as inst_01jd3k5v7m2r8q4w6x9y0z1a2b")
    number = 0
    for letter in found.group(2):
        number = number << 5 | _VALUES[letter]
    return found.group(1), uuid.UUID(int=number)


def uuid7(now_ms: int, random: bytes) -> uuid.UUID:
    """Make a UUIDv7 (RFC 9562) from milliseconds since 1970 and at least ten random bytes."""
    number = (now_ms & (2**48 - 1)) << 80 | int.from_bytes(random[:10], "big")
    number = number & ~(0xF << 76) | 0x7 << 76
    number = number & ~(0x3 << 62) | 0x2 << 62
    return uuid.UUID(int=number)


def fresh(prefix: str, now_ms: int, random: bytes | None = None) -> str:
    """Give a new uid whose order is that of its time; `random` is ten bytes, the system's unless given."""
    return typeid(prefix, uuid7(now_ms, os.urandom(10) if random is None else random))


def derived(prefix: str, *parts: str) -> str:
    """Give the uid that these parts always give: uuid5 over `a|b|c`."""
    return typeid(prefix, uuid.uuid5(NAMESPACE, "|".join(parts)))


def workload(owner_uid: str, purpose: str, attempt: int) -> str:
    """Name a workload so that deciding it again declares the same one."""
    return derived("wkl", owner_uid, purpose, str(attempt))


def statement(subject_uid: str, edge: str, run: int | None = None) -> uuid.UUID:
    """Fixed id of what a report states, so that whoever derives it again collides with the first."""
    return uuid.uuid5(NAMESPACE, f"{subject_uid}|{'-' if run is None else run}|{edge}")
