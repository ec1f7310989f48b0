"""Names that are nearly right: what was probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from typing import Protocol, TypeVar

from fermion.errors import Denied, Error, NotFound

Found = TypeVar("Found")


class Named(Protocol):
    """Has a resource name."""

    @property
    def name(self) -> str:
        """The resource name."""
        ...


def with_near(ask: Callable[[], Found], name: str, there: Callable[[], Iterable[Named]]) -> Found:
    """Ask for something; where it is not there, add what is there by a name like it."""
    try:
        return ask()
    except (NotFound, Denied) as error:
        try:
            names = [item.name.rsplit("/", 1)[-1] for item in there()]
        except Error:
            raise error from None
        near = difflib.get_close_matches(name.rsplit("/", 1)[-1], names, 3, 0.5)
        if near:
            error.arguments["next_step"] = f"Did you mean {' or '.join(near)}?"
        raise
