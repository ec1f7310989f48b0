"""Where to call and as whom: named contexts, kept in a file that only its owner can read."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

LOCAL = "127.0.0.1:7443"


def home() -> Path:
    """`$FERMION_HOME`, else `~/.local/share/fermion`."""
    given = os.environ.get("FERMION_HOME")
    return Path(given) if given else Path.home() / ".local" / "share" / "fermion"


@dataclass(frozen=True, slots=True)
class Context:
    """One place to call."""

    name: str
    address: str
    token_file: str = ""
    token: str = ""
    project: str = ""
    # Services that answer elsewhere than at `address`.
    addresses: Mapping[str, str] = field(default_factory=dict)

    def bearer(self) -> str:
        """The token; empty where there is none."""
        if self.token:
            return self.token
        try:
            return Path(self.token_file).read_text().strip() if self.token_file else ""
        except OSError:
            return ""

    def address_of(self, service: str) -> str:
        """Where a service answers."""
        return self.addresses.get(service, self.address)


class Contexts:
    """The file of contexts."""

    def __init__(self, folder: Path | None = None) -> None:
        self.path = (folder or home() / "cli") / "contexts.json"
        self.current = "local"
        self.known: dict[str, dict[str, object]] = {}
        try:
            found = json.loads(self.path.read_text())
            self.current = str(found.get("current") or "local")
            self.known = dict(found.get("contexts") or {})
        except (OSError, ValueError, AttributeError):
            # No file yet, or none that can be read: the local one is where `fermion up` answers.
            self.known = {}

    def find(self, name: str = "") -> Context | None:
        """A context by name; the current one where none is given; None where there is none."""
        wanted = name or self.current
        entry = self.known.get(wanted)
        if entry is None:
            return Context(wanted, LOCAL) if wanted == "local" else None
        addresses = entry.get("addresses")
        return Context(
            wanted,
            str(entry.get("address") or LOCAL),
            str(entry.get("token_file") or ""),
            str(entry.get("token") or ""),
            str(entry.get("project") or ""),
            {str(k): str(v) for k, v in addresses.items()} if isinstance(addresses, dict) else {},
        )

    def set(self, name: str, **values: str) -> None:
        """Change what is given of one context, or add it."""
        entry = self.known.setdefault(name, {"address": LOCAL})
        entry.update({key: value for key, value in values.items() if value})
        self.save()

    def save(self) -> None:
        """Write the file, whole or not at all."""
        text = json.dumps({"current": self.current, "contexts": self.known}, indent=2)
        _write(self.path, text + "\n")


class Positions:
    """
    The newest position that was answered, by context and journal.

    Each command is a new process; sent back with the next call, they let it read its own writes.
    """

    def __init__(self, context: str, path: Path | None = None) -> None:
        self._context = context
        self._path = path or home() / "cli" / "positions.json"
        self._address = ""

    def newest(self) -> dict[str, int]:
        """By journal."""
        found = self._read().get(self._context, {})
        return {str(name): int(position) for name, position in found.items()}

    def remember(self, answered: Mapping[str, int]) -> None:
        """Keep what is newer than what is kept."""
        if not answered:
            return
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with (self._path.parent / ".positions.lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                known = self._read()
                mine = known.setdefault(self._context, {})
                for name, position in answered.items():
                    mine[name] = max(position, mine.get(name, 0))
                _write(self._path, json.dumps(known) + "\n")
        except OSError:
            # Where nothing can be kept, the next command may read a moment behind; no more.
            return

    def forget(self) -> None:
        """Let go of this context's; its platform is another one now."""
        known = self._read()
        if known.pop(self._context, None) is not None:
            _write(self._path, json.dumps(known) + "\n")

    def _read(self) -> dict[str, dict[str, int]]:
        try:
            found: dict[str, dict[str, int]] = json.loads(self._path.read_text())
        except (OSError, ValueError):
            return {}
        return found


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    scratch.replace(path)
