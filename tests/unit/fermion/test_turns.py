"""Of several processes the next one answers where one is gone, or is there and says nothing."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

import fermion
from fermion.aio.client import AsyncClient
from fermion.api.instances import v1 as api
from tests.unit.fermion.platform import Platform

LAB = "projects/acme/instances/lab"
# Two silences of five seconds at most, and what a busy machine adds.
SECONDS_MAX = 20.0


class Pipe:
    """The way to one process, which may fall silent as a stopped process does: nothing is closed."""

    def __init__(self, to: str) -> None:
        self.silent = threading.Event()
        self._host, _, port = to.rpartition(":")
        self._port = int(port)
        self._server = socket.create_server(("127.0.0.1", 0))
        self._open = [self._server]
        self.address = f"127.0.0.1:{self._server.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                caller, _ = self._server.accept()
                other = socket.create_connection((self._host, self._port))
                self._open += [caller, other]
                for ends in ((caller, other), (other, caller)):
                    threading.Thread(target=self._carry, args=ends, daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if not self.silent.is_set():
                    target.sendall(data)

    def close(self) -> None:
        """End everything, as a process that is killed does."""
        for one in self._open:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()


@pytest.fixture
def pipe(platform: Platform) -> Iterator[Pipe]:
    platform.instances[LAB] = api.Instance(name=LAB)
    found = Pipe(platform.address)
    yield found
    found.close()


def client(platform: Platform, pipe: Pipe) -> fermion.Client:
    return fermion.Client(address=f"{pipe.address},{platform.address}", timeout=SECONDS_MAX)


def test_one_that_is_gone_is_passed_over(platform: Platform, pipe: Pipe) -> None:
    with client(platform, pipe) as it:
        assert it.instances.get(LAB).name == LAB
        pipe.close()
        assert it.instances.get(LAB).name == LAB
    with client(platform, pipe) as it:
        assert it.instances.get(LAB).name == LAB


def test_one_that_never_said_anything_is_passed_over_at_once(
    platform: Platform, pipe: Pipe
) -> None:
    pipe.silent.set()
    began = time.monotonic()
    with client(platform, pipe) as it:
        assert it.instances.get(LAB).name == LAB
    assert time.monotonic() - began < 5


def test_one_that_falls_silent_is_given_up_within_the_deadline_of_a_call(
    platform: Platform, pipe: Pipe
) -> None:
    with client(platform, pipe) as it:
        it.instances.get(LAB)
        pipe.silent.set()
        assert it.instances.create("acme", "new", api.Instance()).instance.uid == "inst_1"


async def test_a_watch_on_one_that_falls_silent_goes_on_at_the_next(
    platform: Platform, pipe: Pipe
) -> None:
    first, second = (
        api.WatchInstancesResponse(
            change=api.WatchInstancesResponse.CHANGE_UPDATED,
            instance=api.Instance(name=LAB),
            resume_token=token,
        )
        for token in ("first", "second")
    )
    platform.watches.append([first])
    address = f"{pipe.address},{platform.address}"
    async with AsyncClient(address=address, timeout=SECONDS_MAX) as it:
        changes = it.instances.watch("acme")
        assert (await anext(changes)).resume_token == "first"
        platform.watches.append([second])
        pipe.silent.set()
        async with asyncio.timeout(SECONDS_MAX):
            assert (await anext(changes)).resume_token == "second"
    resumed = [call.request.resume_token for call in platform.sent("WatchInstances")]  # type: ignore[attr-defined]
    assert resumed == ["", "first"]
