"""The state folder of the embedded start: who holds it, and where everything in it lies."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shlex
import sys
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Final

from chassis.refusals import Refused

# A parent stands before its children, so that it gets its mode, too.
FOLDERS: Final = (
    *("postgres", "nats", "nats/store", "nats/keys"),
    *("keys", "keys/tokens", "logs", "cli"),
)
# Who reads the lock holds it for an instant; a start that meets one tries again.
HOLD_TRIES_MAX: Final = 5
HOLD_PAUSE_SECONDS: Final = 0.02
# There as long as a restore into the folder has not come to its end; names the backup.
RESTORING: Final = "restoring"
LOCK: Final = "lock"
# What the system says where there is no room.
FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def default_home() -> Path:
    """`$FERMION_HOME`, else `~/.local/share/fermion`."""
    given = os.environ.get("FERMION_HOME")
    return Path(given) if given else Path.home() / ".local" / "share" / "fermion"


class Home:
    """A folder for its owner alone, and for one start at a time."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self._lock: IO[str] | None = None
        self._since = ""

    def path(self, *parts: str) -> Path:
        """A path below the folder."""
        return self.root.joinpath(*parts)

    def prepare(self) -> None:
        """Make the folder, open to its owner alone; refuse a machine or a folder that will not do."""
        if sys.platform != "linux":
            raise Refused(
                "NOT_LINUX",
                f"The embedded start runs on Linux, and this is {sys.platform}.",
                next_step="Start it in a Linux container or virtual machine.",
            )
        self.own()
        try:
            for part in FOLDERS:
                self.path(part).mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise self.unusable(error) from error

    def own(self) -> None:
        """Have the folder, open to its owner alone, and nothing in it; refuse that of another."""
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            owner = self.root.stat().st_uid
            if owner != os.getuid():
                raise Refused(
                    "HOME_OF_ANOTHER",
                    f"The state folder {self.root} belongs to user id {owner}, "
                    f"and this is {os.getuid()}.",
                    next_step="Start as that user, or name another folder in FERMION_HOME.",
                    folder=str(self.root),
                )
            self.root.chmod(0o700)
        except OSError as error:
            raise self.unusable(error) from error

    def restored_from(self) -> str:
        """The backup of a restore that has not come to its end here; empty where there is none."""
        try:
            return self.path(RESTORING).read_text().strip()
        except FileNotFoundError:
            return ""
        except OSError as error:
            raise self.unusable(error) from error

    def whole(self) -> None:
        """Refuse a folder that a restore has left half (RESTORE_UNFINISHED)."""
        backup = self.restored_from()
        if backup:
            raise Refused(
                "RESTORE_UNFINISHED",
                f"A restore of {backup} into {self.root} has not come to its end.",
                next_step=f"Begin it again: fermion restore {shlex.quote(backup)} --home "
                f"{shlex.quote(str(self.root))}.",
                folder=str(self.root),
                backup=backup,
            )

    def hold(self, address: str) -> None:
        """Take the folder; a second start is refused with who holds it (HOME_HELD)."""
        try:
            file = self.path(LOCK).open("a+")
        except OSError as error:
            raise self.unusable(error) from error
        for left in reversed(range(HOLD_TRIES_MAX)):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if left > 0:
                    time.sleep(HOLD_PAUSE_SECONDS)
                    continue
                file.close()
                raise self._held() from None
        self._lock = file
        self._since = datetime.now(UTC).isoformat(timespec="seconds")
        self.describe(address)

    def describe(self, address: str) -> None:
        """Write into the lock who holds it and where it answers; an empty address: not yet."""
        assert self._lock is not None
        text = json.dumps({"pid": os.getpid(), "since": self._since, "address": address})
        # Opened for appending, so only an empty file is written from its beginning.
        self._lock.truncate(0)
        self._lock.write(text)
        self._lock.flush()

    def holder(self) -> dict[str, str]:
        """Who holds the folder, as it said itself (pid, since, address); empty where nobody does."""
        try:
            file = self.path(LOCK).open()
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise self.unusable(error) from error
        with file:
            with suppress(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                return {}
            for _ in range(HOLD_TRIES_MAX):
                file.seek(0)
                with suppress(ValueError):
                    found: dict[str, object] = json.load(file)
                    return {name: str(value) for name, value in found.items()}
                time.sleep(HOLD_PAUSE_SECONDS)
        return {"pid": "?"}

    def release(self) -> None:
        """Let go of the folder."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _held(self) -> Refused:
        holder = self.holder()
        where = f"answers at {holder['address']}" if holder.get("address") else "is starting"
        return Refused(
            "HOME_HELD",
            f"Process {holder.get('pid', '?')} has held {self.root} since "
            f"{holder.get('since', '?')} and {where}.",
            next_step="Use that one, stop it with `fermion down`, or name another folder in "
            "FERMION_HOME.",
            folder=str(self.root),
            pid=holder.get("pid", ""),
        )

    def lacks(self, error: OSError) -> bool:
        """Whether an error is of this folder: a file in it, or the room that there is."""
        named = isinstance(error.filename, str | Path)
        return error.errno in FULL or (named and Path(error.filename).is_relative_to(self.root))

    def unusable(self, error: OSError) -> Refused:
        """What to say where the folder cannot be read or written."""
        return Refused(
            "HOME_UNUSABLE",
            f"The state folder {self.root} cannot be used: {error.strerror}"
            f"{f' ({error.filename})' if error.filename else ''}.",
            next_step="Name another folder in FERMION_HOME, or make this one yours.",
            folder=str(self.root),
        )
