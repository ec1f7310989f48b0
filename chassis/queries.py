"""SQL lives in .sql files, each statement named and described in a line; this is what reads them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

_NAMED = re.compile(r"^-- ([a-z][a-z0-9_]*): (\S.*)$", re.MULTILINE)


class Queries(Mapping[str, str]):
    """Statements by name."""

    def __init__(self, statements: Mapping[str, str]) -> None:
        self._statements = dict(statements)

    @classmethod
    def load(cls, path: Path) -> Queries:
        """Read `-- name: One sentence.` statements; a name given twice is a ValueError."""
        text = path.read_text(encoding="utf-8")
        heads = list(_NAMED.finditer(text))
        statements: dict[str, str] = {}
        for place, head in enumerate(heads):
            end = heads[place + 1].start() if place + 1 < len(heads) else len(text)
            name, body = head.group(1), text[head.end() : end].strip().rstrip(";").rstrip()
            if name in statements:
                raise ValueError(f"{path.name} names {name} twice")
            if not body:
                raise ValueError(f"{path.name}: {name} has no statement")
            statements[name] = body
        return cls(statements)

    def __getitem__(self, name: str) -> str:
        return self._statements[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._statements)

    def __len__(self) -> int:
        return len(self._statements)
