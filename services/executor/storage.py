"""Volumes of the local cluster: folders that outlive what mounts them."""

from __future__ import annotations

import os
import secrets
import shutil
import time
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Final

from chassis import ids
from chassis.clock import Clock, milliseconds
from fermion.api.workload import v1 as api
from services.executor import shim
from services.executor.cluster import Unhonoured
from services.executor.logs import moment

# So long nobody takes over a step of what is made beside its place and then moved there.
HALF_SECONDS: Final = 10.0


class Volumes:
    """Each is a folder with its data and the time when it was there first; links hold the times."""

    def __init__(self, root: Path, clock: Clock) -> None:
        self._there = root / "volumes"
        self._deleted = root / "deleted"
        self._trash = root / "trash"
        self._clock = clock
        for folder in (self._there, self._deleted, self._trash):
            folder.mkdir(parents=True, exist_ok=True)

    def data(self, uid: str) -> Path:
        """Where a volume's files are, or will be."""
        ids.parse(uid)
        return self._there / uid / "data"

    def bind(self, volume: api.Volume) -> datetime:
        """Have a volume; since when it is there. What was deleted never comes back."""
        uid = volume.uid
        path = self.data(uid).parent
        room = shutil.disk_usage(self._there).total
        if volume.size_bytes > room:
            raise Unhonoured(
                "size_bytes",
                api.Reason(
                    code="VOLUME_TOO_LARGE",
                    arguments={"size_bytes": str(volume.size_bytes), "room_bytes": str(room)},
                    message=f"{volume.size_bytes} bytes are asked for, and the disk has {room}.",
                ),
            )
        if not path.exists():
            new = self._there / f".{uid}.{secrets.token_hex(8)}"
            try:
                (new / "data").mkdir(parents=True)
                (new / "since").symlink_to(str(milliseconds(self._clock.now())))
                # Somebody else may have been faster; his is the volume then.
                with suppress(OSError):
                    new.rename(path)
            finally:
                shutil.rmtree(new, ignore_errors=True)
            shim.sync(str(self._there))
        if os.path.lexists(self._deleted / uid):
            self._remove(uid)
            raise Unhonoured(
                "uid",
                api.Reason(
                    code="VOLUME_DELETED",
                    arguments={"volume": uid},
                    message=f"The volume {uid} was deleted.",
                ),
            )
        return moment(int(os.readlink(path / "since")))

    def delete(self, uid: str) -> datetime:
        """Have no such volume; when that was said first."""
        ids.parse(uid)
        mark = self._deleted / uid
        with suppress(FileExistsError):
            mark.symlink_to(str(milliseconds(self._clock.now())))
            shim.sync(str(self._deleted))
        self._remove(uid)
        return moment(int(os.readlink(mark)))

    def sweep(self) -> None:
        """Take away what a process that died left half made, or half deleted."""
        sweep_halves(self._there)
        for mark in self._deleted.iterdir():
            self._remove(mark.name)
        for left in self._trash.iterdir():
            shutil.rmtree(left, ignore_errors=True)

    def _remove(self, uid: str) -> None:
        # Out of the way at once; taking the files away may last.
        gone = self._trash / f"{uid}.{secrets.token_hex(8)}"
        with suppress(FileNotFoundError):
            (self._there / uid).rename(gone)
            shim.sync(str(self._there))
            shutil.rmtree(gone, ignore_errors=True)


def sweep_halves(there: Path) -> None:
    """
    Take away what somebody began to make in a folder and died; its name begins with a dot.

    Who was only stopped meanwhile finds it gone, and makes it again.
    """
    for half in there.glob(".*"):
        with suppress(FileNotFoundError):
            if half.stat().st_mtime < time.time() - HALF_SECONDS:
                # At one step: who goes on just now must not move what is left of it to its place.
                gone = half.rename(half.with_name(f"{half.name}.gone"))
                shutil.rmtree(gone, ignore_errors=True)
