"""Money and time as bills show them: integers all the way, never a float."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from fermion.pricebook import NANOS, decimal

# More are shown of no amount; programs get all of them.
DECIMALS_MAX: Final = 6
HOUR_MS: Final = 3_600_000
MILLI: Final = 1000
GIB: Final = 2**30
_SPANS: Final = (("d", 86_400_000), ("h", HOUR_MS), ("m", 60_000))
# Blocks of an eighth of a column each.
_EIGHTHS: Final = ("", "▏", "▎", "▍", "▌", "▋", "▊", "▉")


def shown(nanos: int) -> str:
    """Billionths as people read them; what is too small to be seen is not said to be nothing."""
    return ratio(nanos, NANOS)


def amount(nanos: int, currency: str) -> str:
    """The same with its currency."""
    return f"{shown(nanos)} {currency}".rstrip()


def exact(nanos: int, currency: str) -> str:
    """All of an amount, with its currency, as `read.money` reads it."""
    return f"{decimal(nanos)} {currency}".rstrip()


def ratio(numerator: int, denominator: int) -> str:
    """A fraction as a decimal number, rounded half to even behind its last place shown."""
    unit = 10**DECIMALS_MAX
    places = _nearest(abs(numerator) * unit, denominator)
    sign = "-" if numerator < 0 else ""
    if numerator and not places:
        return f"{'>-' if sign else '<'}{decimal(NANOS // unit)}"
    return sign + decimal(places * (NANOS // unit))


def hours(quantity: int, unit: int) -> str:
    """Thousandths or bytes x milliseconds, as hours of their unit."""
    return ratio(quantity, unit * HOUR_MS)


def lasted(milliseconds: int) -> str:
    """A time span to the millisecond, as `read.duration` reads it."""
    found, left = "", abs(milliseconds)
    for name, length in _SPANS:
        if left >= length:
            found += f"{left // length}{name}"
            left %= length
    if left or not found:
        seconds, part = divmod(left, 1000)
        found += f"{seconds}.{part:03}".rstrip("0").rstrip(".") + "s"
    return f"-{found}" if milliseconds < 0 else found


def aligned(cells: Sequence[str]) -> list[str]:
    """Numbers below each other, with their points below each other."""
    widest = max((cell.find(".") for cell in cells), default=0)
    return [" " * (widest - cell.find(".")) + cell if "." in cell else cell for cell in cells]


def bar(value: int, most: int, width: int) -> str:
    """A value as a bar, `width` columns wide for the largest; what is anything is seen."""
    if value <= 0 or most <= 0:
        return ""
    eighths = max(1, min(value, most) * width * 8 // most)
    return "█" * (eighths // 8) + _EIGHTHS[eighths % 8]


def _nearest(numerator: int, denominator: int) -> int:
    """The nearest integer; of two, the even one."""
    whole, rest = divmod(numerator, denominator)
    if 2 * rest > denominator or (2 * rest == denominator and whole % 2):
        whole += 1
    return whole
