"""Names that are nearly right: what was probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, TypeAlias

from fermion.errors import Error

if TYPE_CHECKING:
    from fermion.client import Client

# By reason: the argument that holds the name that was not found, and what names there are.
Lister: TypeAlias = "Callable[[Client, str], Iterable[str]]"
_LISTERS: Mapping[str, tuple[str, Lister]] = {
    "INSTANCE_NOT_FOUND": (
        "instance",
        lambda client, name: (one.name for one in client.instances.list(name.split("/")[1])),
    ),
    "TEMPLATE_NOT_FOUND": (
        "template",
        lambda client, _: (one.name for one in client.instances.templates(True)),
    ),
    "PROJECT_NOT_FOUND": (
        "project",
        lambda client, _: (one.name for one in client.projects.list()),
    ),
    "PROJECT_ROLE_MISSING": (
        "project",
        lambda client, _: (one.name for one in client.projects.list()),
    ),
    "USER_NOT_FOUND": (
        "user",
        lambda client, _: (one.name for one in client.users.list()),
    ),
    "CLUSTER_NOT_FOUND": (
        "cluster",
        lambda client, _: (one.name for one in client.clusters.list()),
    ),
}


def suggest(client: Client, error: Error) -> None:
    """Add to an error what is there by a name like the one that was not found."""
    argument, names = _LISTERS.get(error.reason, ("", None))
    missing = error.arguments.get(argument, "")
    if names is None or not missing:
        return
    _add(client, error, missing, names)


def template(client: Client, error: Error, missing: str) -> None:
    """Add to an error what templates are there by a name like the one that is not."""
    _add(client, error, missing, _LISTERS["TEMPLATE_NOT_FOUND"][1])


def _add(client: Client, error: Error, missing: str, names: Lister) -> None:
    try:
        there = {name.rsplit("/", 1)[-1] for name in names(client, missing)}
    except (Error, IndexError):
        # Who may not list them is not told what there is.
        return
    found = near(missing.rsplit("/", 1)[-1], there)
    if found:
        error.next_step = f"Did you mean {' or '.join(found)}? {error.next_step}".strip()


def near(name: str, there: Iterable[str]) -> list[str]:
    """At most three names like this one; never this one itself."""
    return difflib.get_close_matches(name, sorted(set(there) - {name}), 3, 0.5)
