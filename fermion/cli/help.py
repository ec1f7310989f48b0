"""Help that was written before, by `make generate`, so that it is there at once."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from itertools import takewhile

KEPT = os.path.join(os.path.dirname(__file__), "help.txt")
# Stands before each page, followed by the words that lead to it.
MARK = "=== "
FLAGS = frozenset({"--help", "-h"})


def kept(path: str = KEPT) -> Mapping[str, str]:
    """Every page that is kept, by the words that lead to it; none where the file is not there."""
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except OSError:
        return {}
    parts = (part.partition("\n") for part in f"\n{text}".split(f"\n{MARK}")[1:])
    return {words: page.strip("\n") for words, _, page in parts}


def find(words: Sequence[str], pages: Mapping[str, str]) -> str | None:
    """
    The page that a command line asks for; None where it asks for none, or the parser has to look.

    A group alone asks for its page, too.
    """
    own = list(takewhile(lambda word: word != "--", words))
    path = list(takewhile(lambda word: not word.startswith("-"), own))
    length = len(path)
    while path and " ".join(path) not in pages:
        path.pop()
    name = " ".join(path)
    group = any(other.startswith(f"{name} ") for other in pages)
    # Words behind a command are its arguments; behind a group they are a command that is not there.
    wrong = group and len(path) < length
    asked = bool(FLAGS & set(own)) or (group and len(own) == len(path))
    return pages.get(name) if asked and not wrong else None
