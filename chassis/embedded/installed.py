"""Files of other distributions, found without importing or running their Python."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path


def installed(distribution: str, ending: str) -> Path | None:
    """A file of an installed distribution by the end of its path; None where there is none."""
    try:
        files = metadata.files(distribution) or []
    except metadata.PackageNotFoundError:
        return None
    for file in files:
        if str(file).endswith(ending):
            path = Path(str(file.locate())).resolve()
            return path if path.exists() else None
    return None
