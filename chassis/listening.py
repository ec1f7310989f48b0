"""Addresses to listen on: one that is none is told from one that is taken just now."""

from __future__ import annotations

import errno
import socket

from chassis.config import wrong
from chassis.refusals import Unavailable

PORT_MAX = 65535


def split(variable: str, listen: str) -> tuple[str, int]:
    """Host and port of `host:port`; `Invalid` (SETTING_INVALID) where it is none."""
    host, _, port = listen.rpartition(":")
    if not (port.isascii() and port.isdigit() and int(port) <= PORT_MAX):
        raise wrong(variable, listen, "must be host:port")
    return host.removeprefix("[").removesuffix("]"), int(port)


def check(variable: str, listen: str) -> None:
    """
    See whether a server could listen there now.

    `Invalid` (SETTING_INVALID) where none ever could, `Unavailable` (LISTEN_FAILED) where another
    program does.
    """
    host, port = split(variable, listen)
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise taken(variable, listen) from error
        rule = f"must be host:port on this machine ({error.strerror})"
        raise wrong(variable, listen, rule) from error


def taken(variable: str, listen: str) -> Unavailable:
    """Another program listens there; it may end."""
    return Unavailable(
        "LISTEN_FAILED",
        f"Nothing can listen on {listen}, which {variable} says: another program does.",
        next_step=f"End that program, or say another address in {variable}.",
        listen=listen,
        variable=variable,
    )
