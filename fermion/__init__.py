"""Fermion's Python client: `import fermion; fermion.Client().instances.list("my-project")`."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fermion import errors
    from fermion.aio.client import AsyncClient
    from fermion.client import Client
    from fermion.errors import Error

__all__ = ["AsyncClient", "Client", "Error", "__version__", "errors"]
__version__ = "0.1.0"

# Loaded when they are asked for, so that `fermion --help` need not load gRPC.
_HOMES = {
    "AsyncClient": "fermion.aio.client",
    "Client": "fermion.client",
    "Error": "fermion.errors",
}


def __getattr__(name: str) -> object:
    if name == "errors":
        return importlib.import_module("fermion.errors")
    if name in _HOMES:
        found: object = getattr(importlib.import_module(_HOMES[name]), name)
        return found
    raise AttributeError(f"module 'fermion' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
