"""Every port, told what is none of its protocol: it hangs up or says no, and serves the next."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.conftest import Ground
from tests.fuzz.test_calls import WALK
from tests.stage import until

SECONDS_MAX: Final = 5.0
# What is open at once to a port that says nothing.
SILENT: Final = 200
# What others speak: a browser, TLS, gRPC's and NATS's and PostgreSQL's own, cut off or overdone.
KNOWN: Final = (
    b"",
    b"\0",
    b"GET / HTTP/1.1\r\nHost: here\r\n\r\n",
    b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\n\r\n",
    b"POST /metrics HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 64,
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 4096,
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"
    + b"\x00\x40\x00\x01\x25" * 100,
    b'CONNECT {"verbose":true,"pedantic":true}\r\nPUB fermion.instances.0 5\r\nhello\r\n',
    b"SUB > 1\r\n" * 1000,
    b"PUB x 99999999999\r\n",
    b"\x00\x00\x00\x08\x04\xd2\x16\x2f",
    b"\x7f\xff\xff\xff\x00\x03\x00\x00user\x00fermion\x00\x00",
)


def ports(ground: Ground) -> dict[int, str]:
    """Where the platform listens on this machine, and who does."""
    found = {}
    for process in (*ground.stage.processes(), psutil.Process(ground.service().ppid())):
        with suppress(psutil.NoSuchProcess):
            for one in process.net_connections("tcp"):
                if one.status == psutil.CONN_LISTEN:
                    found[one.laddr.port] = process.name()
    return found


def told(port: int, data: bytes) -> None:
    """Say something to a port and hang up; it may hang up first."""
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), SECONDS_MAX) as there:
        there.sendall(data)
        there.settimeout(0.05)
        there.recv(65536)


def test_what_is_no_protocol_of_a_port_leaves_it_as_it_was(ground: Ground) -> None:
    there = ports(ground)
    assert len(there) >= 2, there

    @WALK
    @given(data=st.one_of(st.binary(max_size=4096), st.sampled_from(KNOWN)))
    def say(data: bytes) -> None:
        for port in there:
            told(port, data)

    say()
    for data in KNOWN:
        for port in there:
            told(port, data)
    assert ports(ground).keys() == there.keys()
    well(ground)


def test_who_connects_and_says_nothing_keeps_nobody_out(ground: Ground) -> None:
    with_all: list[socket.socket] = []
    try:
        for port in ports(ground):
            with_all += opened(port)
        well(ground)
    finally:
        for one in with_all:
            one.close()


def opened(port: int) -> Iterator[socket.socket]:
    """Connections over which nothing is said."""
    for _ in range(SILENT):
        with suppress(OSError):
            yield socket.create_connection(("127.0.0.1", port), SECONDS_MAX)


@pytest.fixture(scope="module", autouse=True)
def before(ground: Ground) -> int:
    """The process that answers, which has to be the same one at the end."""
    return ground.service().pid


def test_the_process_is_the_one_it_was(ground: Ground, before: int) -> None:
    assert ground.service().pid == before
    assert "Traceback" not in (ground.stage.home / "logs" / "all.log").read_text()


def well(ground: Ground) -> None:
    """What was said in between has changed nothing: facts are made, published, read and counted."""
    ground.stage.ok("projects", "create", f"p{len(ports(ground))}-{len(names(ground))}")
    until(30, lambda: ground.stage.cli("status").code == 0, ground.stage.log)
    ground.stage.audit()


def names(ground: Ground) -> list[str]:
    """The projects that there are."""
    return ground.stage.ok("projects", "list", "-o", "name").out.split()
