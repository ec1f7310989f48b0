"""
Links between a process and what it reaches, in network namespaces: what is lost on one is really lost.

A process connects to addresses behind a link of its own, a pair of virtual devices whose other end
lies in a namespace of its own. Each target has an address there and is reached from an address of
its own, so that the packets of one pair are lost alone and one way: they are sent to a device that
does not exist. Neither end is told; it is TCP that finds out, as between machines.

The namespaces are of the process that makes them: they are gone when it is.
"""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Final

from chassis.postgres import KEEPALIVE

# Runs what follows in a network of its own, where a link can be laid.
NETWORK: Final = (
    *("--net", "sh", "-c"),
    "printf 'link set lo up\\nlink add link0 type veth peer name inner\\nlink del link0\\n' | ip -batch -"
    ' && exec "$@"',
    "sh",
)
UNSHARE: Final = ("unshare", *NETWORK)
CLONE_NEWNET: Final = 0x40000000
OUTER, INNER, NOBODY = (f"02:00:00:00:00:{number:02d}" for number in (1, 2, 99))
# As a service asks PostgreSQL to find out that it is gone.
ASKED: Final = {
    socket.TCP_KEEPIDLE: "tcp_keepalives_idle",
    socket.TCP_KEEPINTVL: "tcp_keepalives_interval",
    socket.TCP_USER_TIMEOUT: "tcp_user_timeout",
}

_libc = ctypes.CDLL(None, use_errno=True)


def allowed() -> bool:
    """Whether this process may have networks of its own, and links between them."""
    return runs(*UNSHARE, "true")


def runs(*words: str) -> bool:
    """Whether a command is there and succeeds."""
    with suppress(OSError):
        return subprocess.run(words, capture_output=True, check=False).returncode == 0
    return False


@dataclass
class Link:
    """From one process to all that it reaches; `way` is `out` from it and `in` to it."""

    # Of the process, among all; from 1.
    number: int
    targets: Sequence[str]
    _inside: int = field(init=False)
    _orders: dict[str, subprocess.Popen[str]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        """Lay it from the namespace of this process, where it has the right to."""
        places = range(1, len(self.targets) + 1)
        with _kept_namespace():
            _done(_libc.unshare(CLONE_NEWNET))
            self._inside = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            self._orders["in"] = _taking_orders()
        self._orders["out"] = _taking_orders()
        there = f"peer name inner address {INNER} netns {self._orders['in'].pid}"
        _ip(
            f"link add {self._device} address {OUTER} type veth {there}",
            f"link set {self._device} up",
            *(f"addr add {self._near(place)}/16 dev {self._device}" for place in places),
            *(self._neighbour("out", place, INNER)[0] for place in places),
            *(
                f"route add {self._far(place)}/32 dev {self._device} src {self._near(place)}"
                for place in places
            ),
        )
        with self._inside_of():
            _ip(
                "link set inner up",
                *(f"addr add {self._far(place)}/16 dev inner" for place in places),
                *(self._neighbour("in", place, OUTER)[0] for place in places),
            )

    def listening(self, target: str, port: int) -> socket.socket:
        """A socket at the far end, at the address of a target."""
        with self._inside_of():
            listener = socket.create_server((self._far(self._place(target)), port))
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, name in ASKED.items():
            listener.setsockopt(socket.IPPROTO_TCP, option, int(KEEPALIVE[name]))
        return listener

    def lose(self, target: str, way: str) -> None:
        """Let every packet of a pair be lost one way, until they are carried again."""
        self._order(way, target, NOBODY)

    def carry(self, target: str, way: str) -> None:
        """Let packets of a pair arrive again."""
        self._order(way, target, INNER if way == "out" else OUTER)

    @property
    def _device(self) -> str:
        return f"link{self.number}"

    def _place(self, target: str) -> int:
        return self.targets.index(target) + 1

    def _far(self, place: int) -> str:
        return f"10.{self.number}.0.{place}"

    def _near(self, place: int) -> str:
        return f"10.{self.number}.1.{place}"

    def _neighbour(self, way: str, place: int, device: str) -> tuple[str, str]:
        """To which device packets go on, and how to ask."""
        address, by = (
            (self._far(place), self._device) if way == "out" else (self._near(place), "inner")
        )
        return (
            f"neigh replace {address} lladdr {device} dev {by} nud permanent",
            f"neigh show to {address} dev {by}",
        )

    def _order(self, way: str, target: str, device: str) -> None:
        process = self._orders[way]
        assert process.stdin is not None
        assert process.stdout is not None
        order, question = self._neighbour(way, self._place(target), device)
        process.stdin.write(f"{order}\n{question}\n")
        process.stdin.flush()
        # It has been done when it is told.
        told = process.stdout.readline()
        assert device in told, (way, target, told)

    @contextmanager
    def _inside_of(self) -> Iterator[None]:
        """Be at the far end in the body."""
        with _kept_namespace():
            _done(_libc.setns(self._inside, CLONE_NEWNET))
            yield


@contextmanager
def _kept_namespace() -> Iterator[None]:
    """Be back in the namespace of before after the body."""
    own = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield
    finally:
        _done(_libc.setns(own, CLONE_NEWNET))
        os.close(own)


def _done(result: int) -> None:
    if result:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def _ip(*orders: str) -> None:
    subprocess.run(["ip", "-batch", "-"], input="\n".join(orders), text=True, check=True)


def _taking_orders() -> subprocess.Popen[str]:
    """A process of this namespace that changes it as it is told; it ends with this one."""
    return subprocess.Popen(
        ["ip", "-force", "-batch", "-"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
