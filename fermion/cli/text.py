"""What others wrote, as it may be shown: nothing in it that a terminal obeys, or that turns a line round."""

from __future__ import annotations

import re
from typing import Final

# Control characters, marks that change the direction of writing, line ends of Unicode, halves of pairs.
_CLASSES: Final = "\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff"
_ON_A_LINE: Final = re.compile(f"[\x00-\x1f{_CLASSES}]")
_ON_LINES: Final = re.compile(f"[\x00-\x09\x0b-\x1f{_CLASSES}]")
_IN_DOCUMENTS: Final = re.compile(f"[{_CLASSES}]")


def line(text: str) -> str:
    """The text on one line, with `\\n` for a new one and `\\x1b` for what a terminal would obey."""
    return _ON_A_LINE.sub(_escaped, text)


def lines(text: str) -> str:
    """The same of a text that consists of lines."""
    return _ON_LINES.sub(_escaped, text)


def json(text: str) -> str:
    """A document of JSON that says the same; the writer of JSON has escaped the rest."""
    return _IN_DOCUMENTS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def harmless(text: str) -> bool:
    """Whether a document may be shown as it stands."""
    return _IN_DOCUMENTS.search(text) is None


def _escaped(found: re.Match[str]) -> str:
    """As Python writes it in a string."""
    return found[0].encode("unicode_escape").decode("ascii")
