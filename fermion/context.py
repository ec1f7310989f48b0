"""Where to call and as whom: named contexts in a file that only its owner can read."""

from __future__ import annotations

import fcntl
import ipaddress
import json
import os
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from fermion.errors import FailedPrecondition, InvalidArgument, NotFound, Unauthenticated

LOCAL: Final = "127.0.0.1:7443"
# What one call may take, with every time that it is sent again.
TIMEOUT_SECONDS: Final = 30.0
TIMEOUT_SECONDS_MIN: Final = 0.1
TIMEOUT_SECONDS_MAX: Final = 24 * 3600.0
_ADDRESS = re.compile(r"(\[[0-9a-fA-F:]+\]|[^\s:/]+):(\d{1,5})")


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
    token: str = field(default="", repr=False)
    project: str = ""
    # Services that answer elsewhere than at `address`.
    addresses: Mapping[str, str] = field(default_factory=dict)
    # Where the same is answered beside an address: further processes, tried in turn.
    others: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    # Whether an entry of the file stands behind it, so that it can be changed there.
    stored: bool = False

    def bearer(self) -> str:
        """The token; empty where there is none. A file that has none is `Unauthenticated`, by its name."""
        if self.token or not self.token_file:
            return self.token
        try:
            return token_of(Path(self.token_file))
        except ValueError as error:
            raise Unauthenticated(
                f"The token of context {self.name}, {self.token_file}, {error}.",
                reason="TOKEN_FILE_UNREADABLE",
                arguments={"file": self.token_file, "context": self.name},
                next_step=f"fermion contexts set {self.name} --token-file FILE",
            ) from error

    def address_of(self, service: str) -> str:
        """Where a service answers; its first process, where it has several."""
        return self.addresses.get(service, self.address)

    def target_of(self, service: str) -> str:
        """Where gRPC finds a service: one address as it is, several as those to try in turn."""
        first = self.address_of(service)
        others = self.others.get(first, ())
        if not others:
            return first
        family = "ipv6" if first.startswith("[") else "ipv4"
        return f"{family}:{','.join((first, *others))}"


class Contexts:
    """
    The file of contexts.

    Without a file there is one context, `local`, where `fermion up` answers. A file that is there
    and cannot be read is refused (CONTEXTS_UNREADABLE), for writing it anew would lose what it holds.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.path = (folder or home() / "cli") / "contexts.json"
        self.current = "local"
        self.known: dict[str, dict[str, object]] = {}
        try:
            found = json.loads(self.path.read_text())
            self.current = str(found.get("current") or "local")
            self.known = {str(name): dict(entry) for name, entry in found["contexts"].items()}
        except FileNotFoundError:
            return
        except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
            raise FailedPrecondition(
                f"The file of contexts, {self.path}, cannot be read ({error}).",
                reason="CONTEXTS_UNREADABLE",
                next_step="Mend it, or move it away and make it anew with `fermion contexts set`.",
            ) from error

    def names(self) -> list[str]:
        """Every context; `local` is always there."""
        return sorted({"local", *self.known})

    def find(self, name: str = "") -> Context:
        """A context by name, the current one where none is given; `NotFound` where there is none."""
        wanted = name or self.current
        if wanted not in self.names():
            raise NotFound(
                f"There is no context {wanted!r}; there are: {', '.join(self.names())}.",
                reason="CONTEXT_NOT_FOUND",
                arguments={"context": wanted},
                next_step="`fermion contexts set NAME --address HOST:PORT` makes one.",
            )
        entry = self.known.get(wanted, {})
        listed = entry.get("addresses")
        services = listed if isinstance(listed, dict) else {}
        address, addresses, others = _taken_apart(str(entry.get("address") or LOCAL), services)
        return Context(
            name=wanted,
            address=address,
            token_file=str(entry.get("token_file") or ""),
            token=str(entry.get("token") or ""),
            project=str(entry.get("project") or ""),
            addresses=addresses,
            others=others,
            stored=True,
        )

    def set(self, name: str, **values: object) -> None:
        """Change what is given of one context, or add it; what is empty stays as it was."""
        entry = self.known.setdefault(name, {"address": LOCAL})
        entry.update({key: value for key, value in values.items() if value})
        self.save()

    def save(self) -> None:
        """Write the file, whole or not at all."""
        text = json.dumps({"current": self.current, "contexts": self.known}, indent=2)
        _write(self.path, text + "\n")


def resolve(name: str = "", address: str = "", token: str = "") -> Context:
    """
    Say where to call and as whom.

    What is said in the call wins over `FERMION_CONTEXT`, `FERMION_ADDRESS` (of one service:
    `FERMION_ADDRESS_<SERVICE>`) and `FERMION_TOKEN`, and they over the current context. The token of
    a context is for its own addresses: another address gets it only where it is said.
    """
    # A context that is asked for by name is not overridden by what merely stands around.
    environment = {} if name else os.environ
    found = Contexts().find(name or os.environ.get("FERMION_CONTEXT", ""))
    token = token or environment.get("FERMION_TOKEN", "")
    address = address or environment.get("FERMION_ADDRESS", "")
    services = {
        key.removeprefix("FERMION_ADDRESS_").lower(): value
        for key, value in environment.items()
        if key.startswith("FERMION_ADDRESS_")
    }
    if not address and not services:
        return found if not token else replace(found, token_file="", token=token)
    for variable, where in services.items():
        checked_address(f"FERMION_ADDRESS_{variable.upper()}", where)
    said = checked_address("FERMION_ADDRESS", address) if address else found.address
    address, services, others = _taken_apart(said, services)
    own = _all(address, services, others) <= _all(found.address, found.addresses, found.others)
    if own:
        # What of a context is named is whole again, whichever of its processes were named.
        others = {**found.others, **others}
    return Context(
        name=found.name if own else f"at {address}",
        address=address,
        token_file=found.token_file if own and not token else "",
        token=token or (found.token if own else ""),
        project=found.project,
        addresses=services,
        others=others,
        stored=own,
    )


def checked_address(option: str, text: str) -> str:
    """`host:port`, or several `ip:port` separated by commas; else `InvalidArgument` naming the option."""
    matches = [_ADDRESS.fullmatch(part) for part in text.split(",")]
    well = all(found is not None and 0 < int(found[2]) < 65536 for found in matches)
    # Names are looked up by gRPC, and only one at a time.
    families = {_family(found[1]) for found in matches if found is not None}
    if not well or (len(matches) > 1 and families not in ({4}, {6})):
        rule = "must be HOST:PORT, or several IP:PORT of one family, separated by commas"
        raise InvalidArgument(
            f"{option} is {text!r}: it is no HOST:PORT.",
            reason="OPTION_INVALID",
            violations=((option, rule),),
            next_step="Write it like 127.0.0.1:7443, or like 10.0.0.1:7443,10.0.0.2:7443.",
        )
    return text


def checked_timeout(option: str, seconds: float) -> float:
    """A number of seconds that a call may take, or `InvalidArgument` naming the option."""
    if not TIMEOUT_SECONDS_MIN <= seconds <= TIMEOUT_SECONDS_MAX:
        rule = f"must be {TIMEOUT_SECONDS_MIN:g} to {TIMEOUT_SECONDS_MAX:g} seconds"
        raise InvalidArgument(
            f"{option} is {seconds:g}: it {rule}.",
            reason="OPTION_INVALID",
            violations=((option, rule),),
            next_step="Leave it out for 30 seconds.",
        )
    return seconds


def token_of(file: Path) -> str:
    """The token that a file holds; `ValueError` says why it holds none."""
    try:
        found = file.read_text().strip()
    except OSError as error:
        raise ValueError(f"cannot be read ({error.strerror})") from error
    except ValueError:
        found = ""
    if not found:
        raise ValueError("holds no token")
    return found


def _family(host: str) -> int:
    """4 or 6 for a number, 0 for a name."""
    try:
        return ipaddress.ip_address(host.removeprefix("[").removesuffix("]")).version
    except ValueError:
        return 0


def _taken_apart(
    address: str, addresses: Mapping[str, object]
) -> tuple[str, dict[str, str], dict[str, tuple[str, ...]]]:
    """First addresses of all and of single services, and what stands behind each of them."""
    first, *behind = address.split(",")
    firsts, others = {}, {first: tuple(behind)}
    for service, where in addresses.items():
        one, *more = str(where).split(",")
        firsts[str(service)] = one
        others[one] = tuple(more)
    return first, firsts, {one: more for one, more in others.items() if more}


def _all(
    address: str, addresses: Mapping[str, str], others: Mapping[str, tuple[str, ...]]
) -> set[str]:
    return {address, *addresses.values(), *(one for more in others.values() for one in more)}


class Positions:
    """The newest position that was answered of each journal; sent back, it lets one read one's writes."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._newest: dict[str, int] = {}

    def newest(self) -> dict[str, int]:
        """By journal."""
        with self._lock:
            return dict(self._newest)

    def remember(self, answered: Mapping[str, int]) -> None:
        """Keep what is newer than what is kept."""
        with self._lock:
            _merge(self._newest, answered)

    def forget(self) -> None:
        """Let go of all; the platform is another one now, or an older one."""
        with self._lock:
            self._newest.clear()


class StoredPositions(Positions):
    """
    Positions that outlive the process, by context: each command is a new one.

    Where they cannot be kept, the next command may read a moment behind; no more than that.
    """

    def __init__(self, context: Context, path: Path | None = None) -> None:
        super().__init__()
        self._context = f"{context.name} {context.address}"
        self._path = path or home() / "cli" / "positions.json"

    def newest(self) -> dict[str, int]:
        """By journal."""
        return _parse(self._read().get(self._context, ""))

    def remember(self, answered: Mapping[str, int]) -> None:
        """Keep what is newer than what is kept."""
        if not answered:
            return
        try:
            with self._held() as known:
                mine = _parse(known.get(self._context, ""))
                _merge(mine, answered)
                known[self._context] = ",".join(f"{name}={at}" for name, at in mine.items())
        except OSError:
            return

    def forget(self) -> None:
        """Let go of this context's."""
        try:
            with self._held() as known:
                known.pop(self._context, None)
        except OSError:
            return

    @contextmanager
    def _held(self) -> Iterator[dict[str, str]]:
        """What is kept, while nobody else changes it; written when the block ends."""
        _make_folder(self._path)
        with self._path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            known = self._read()
            yield known
            _write(self._path, json.dumps(known, indent=2) + "\n")

    def _read(self) -> dict[str, str]:
        try:
            found = json.loads(self._path.read_text())
        except (OSError, ValueError):
            return {}
        return (
            {str(name): str(text) for name, text in found.items()}
            if isinstance(found, dict)
            else {}
        )


def _merge(kept: dict[str, int], answered: Mapping[str, int]) -> None:
    for name, position in answered.items():
        kept[name] = max(position, kept.get(name, 0))


def _parse(text: str) -> dict[str, int]:
    """Read `journal=position,…`; what is nothing of the kind is left out."""
    found = {}
    for part in text.split(","):
        name, _, position = part.partition("=")
        if name and position.isdecimal():
            found[name] = int(position)
    return found


def _make_folder(path: Path) -> None:
    """Make the folder of a file, and the state folder above it, for their owner alone."""
    path.parent.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.parent.mkdir(mode=0o700, exist_ok=True)


def _write(path: Path, text: str) -> None:
    _make_folder(path)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    scratch.replace(path)
