"""A backup on the disk: what it says of itself, its sealed files, and how files that change are packed."""

from __future__ import annotations

import hashlib
import io
import json
import os
import stat
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Final

from chassis.refusals import Refused

FORMAT: Final = 1
MANIFEST: Final = "manifest.json"
DATABASE: Final = "database.dump"
FILES: Final = "files.tar"
# What is so small is read in one go, so that it is of one moment.
SMALL_BYTES_MAX: Final = 1024 * 1024
CHUNK_BYTES: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class JournalKept:
    """A journal as it stood at the backup's moment."""

    journal: str
    epoch: int
    head: int


@dataclass(frozen=True, slots=True)
class Seal:
    """How long a file is, and its SHA-256."""

    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a backup says of itself."""

    # `backup_…`.
    uid: str
    made: str
    # Of Fermion, and of the PostgreSQL that it was taken from.
    version: str
    postgres: int
    cluster: str
    journals: tuple[JournalKept, ...]
    # Which migrations were applied, by schema.
    migrations: Mapping[str, Sequence[str]]
    # Whether what instances wrote is in it: files of volumes, and logs.
    with_files: bool
    seals: Mapping[str, Seal]

    @property
    def facts(self) -> int:
        """How many there are in all."""
        return sum(one.head for one in self.journals)

    def write(self, folder: Path) -> None:
        """Write it, readable by its owner alone."""
        text = json.dumps({"format": FORMAT, **asdict(self)}, indent=2)
        descriptor = os.open(folder / MANIFEST, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read that of a backup; BACKUP_UNREADABLE where it is none, BACKUP_NEWER where we cannot."""
        path = folder / MANIFEST
        try:
            found = json.loads(path.read_text())
            if found["format"] > FORMAT:
                raise newer(folder, f"it is of format {found['format']}, and this reads {FORMAT}")
            return cls(
                uid=str(found["uid"]),
                made=str(found["made"]),
                version=str(found["version"]),
                postgres=int(found["postgres"]),
                cluster=str(found["cluster"]),
                journals=tuple(
                    JournalKept(str(one["journal"]), int(one["epoch"]), int(one["head"]))
                    for one in found["journals"]
                ),
                migrations={
                    str(schema): tuple(map(str, names))
                    for schema, names in found["migrations"].items()
                },
                with_files=bool(found["with_files"]),
                seals={
                    str(name): Seal(int(one["bytes"]), str(one["sha256"]))
                    for name, one in found["seals"].items()
                },
            )
        except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
            why = (
                error.strerror if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
            )
            raise Refused(
                "BACKUP_UNREADABLE",
                f"{folder} is no backup: its {MANIFEST} cannot be read ({why}).",
                next_step="Name a folder that `fermion backup` has made.",
                folder=str(folder),
            ) from error

    def check(self, folder: Path) -> None:
        """Read every file of a backup once; BACKUP_DAMAGED where one is not what was written."""
        for name in (DATABASE, FILES):
            told = self.seals.get(name)
            try:
                found = seal(folder / name)
            except OSError as error:
                raise damaged(folder, f"{name} cannot be read ({error.strerror})") from error
            if found != told:
                raise damaged(folder, f"{name} is not what was written")


def newer(folder: Path, why: str) -> Refused:
    """Say that a backup is of a later release."""
    return Refused(
        "BACKUP_NEWER",
        f"{folder} was made by a newer Fermion: {why}.",
        next_step="Restore it with that version, or a later one.",
        folder=str(folder),
    )


def damaged(folder: Path, why: str) -> Refused:
    """Say that a backup is not what was written."""
    return Refused(
        "BACKUP_DAMAGED",
        f"The backup {folder} is damaged: {why}.",
        next_step="Take another copy of it, or another backup.",
        folder=str(folder),
    )


def seal(path: Path) -> Seal:
    """Measure a file."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
            size += len(chunk)
    return Seal(size, digest.hexdigest())


class Pack:
    """
    Files that may change, come and go while they are packed, into a tar that its owner alone can read.

    Each is as it was when it was come to: what went before that is left out, what grows is taken as
    long as it was, and what shrinks ends with zeros.
    """

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        self._file = os.fdopen(self._descriptor, "wb")
        self._tar = tarfile.TarFile(fileobj=self._file, mode="w", format=tarfile.PAX_FORMAT)

    def add(self, path: Path, name: str, *, apart: frozenset[str] = frozenset()) -> None:
        """Take a file, a link, or a folder with all that is in it but what has a name of `apart`."""
        with suppress(FileNotFoundError, NotADirectoryError):
            found = path.lstat()
            member = tarfile.TarInfo(name)
            member.mode, member.mtime = stat.S_IMODE(found.st_mode) & 0o777, int(found.st_mtime)
            if stat.S_ISLNK(found.st_mode):
                member.type, member.linkname = tarfile.SYMTYPE, os.readlink(path)
                self._tar.addfile(member)
            elif stat.S_ISDIR(found.st_mode):
                inside = sorted(os.listdir(path))
                member.type = tarfile.DIRTYPE
                self._tar.addfile(member)
                for entry in inside:
                    if entry not in apart:
                        self.add(path / entry, f"{name}/{entry}")
            elif stat.S_ISREG(found.st_mode):
                with path.open("rb") as file:
                    self._take(member, file)

    def put(self, name: str, data: bytes) -> None:
        """Take bytes as a file."""
        member = tarfile.TarInfo(name)
        member.mode, member.size = 0o600, len(data)
        self._tar.addfile(member, io.BytesIO(data))

    def close(self) -> None:
        """End it, and have all of it on the disk."""
        self._tar.close()
        self._file.flush()
        os.fsync(self._descriptor)
        self._file.close()

    def _take(self, member: tarfile.TarInfo, file: IO[bytes]) -> None:
        member.size = os.fstat(file.fileno()).st_size
        if member.size <= SMALL_BYTES_MAX:
            data = file.read(SMALL_BYTES_MAX)
            member.size = len(data)
            self._tar.addfile(member, io.BytesIO(data))
        else:
            self._tar.addfile(member, Steady(file))


class Steady(io.RawIOBase):
    """A file that gives as much as is asked for: zeros where it has become shorter."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def read(self, size: int = -1) -> bytes:
        return self._file.read(size).ljust(max(size, 0), b"\0")


def unpack(path: Path, root: Path) -> None:
    """
    Put what was packed into a folder that is empty of it, as one's own.

    A member that would come to lie elsewhere is refused (BACKUP_DAMAGED).
    """
    links: set[PurePosixPath] = set()
    with tarfile.open(path, "r:") as tar:
        # It is ours by its seal; what a name may do is looked at below.
        tar.extraction_filter = _as_it_is
        for member in tar:
            name = PurePosixPath(member.name)
            inside = not name.is_absolute() and ".." not in name.parts
            if not inside or links & set(name.parents) or not _plain(member):
                raise damaged(path.parent, f"{member.name!r} does not belong into it")
            if member.issym():
                links.add(name)
            member.uid, member.gid, member.uname, member.gname = os.getuid(), os.getgid(), "", ""
            if member.isdir():
                # Modes of folders may forbid what is put into them.
                (root / name).mkdir(mode=0o700, parents=True, exist_ok=True)
            else:
                (root / name).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                tar.extract(member, root)


def _as_it_is(member: tarfile.TarInfo, path: str) -> tarfile.TarInfo:
    del path
    return member


def _plain(member: tarfile.TarInfo) -> bool:
    return member.isfile() or member.isdir() or member.issym()


def sync_folder(path: Path) -> None:
    """Have the names in a folder on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def unknown(
    migrations: Mapping[str, Iterable[str]], known: Mapping[str, Iterable[str]]
) -> list[str]:
    """Migrations of a backup that this release does not have."""
    return sorted(
        f"{schema}/{name}"
        for schema, names in migrations.items()
        for name in set(names) - set(known.get(schema, ()))
    )
