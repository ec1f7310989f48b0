"""A link of network namespaces: what it loses is lost to the one side alone, and TCP brings it later."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from typing import Final

import pytest

from tests.chaos.nets import UNSHARE, Link, allowed
from tests.stage import ROOT

# What arrives does so long before; TCP sends again what was lost, ever more seldom.
ARRIVE_SECONDS: Final = 10.0
LOST_SECONDS: Final = 0.5


@pytest.mark.skipif(not allowed(), reason="this process may not make network namespaces")
def test_a_link_loses_one_way_of_one_pair_and_tcp_brings_what_was_lost_when_it_carries_again() -> (
    None
):
    done = subprocess.run(
        [*UNSHARE, sys.executable, "-m", "tests.chaos.test_links"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [
        *(["out", "arrives"], ["in", "arrives"]),
        "out is lost",
        *(["out", "is lost"], ["in", "arrives"]),
        "out is carried",
        *(["out", "arrives"], ["in", "arrives"]),
        "in is lost",
        *(["out", "arrives"], ["in", "is lost"], "nobody connects"),
        *("of the other pair", ["out", "arrives"], ["in", "arrives"]),
        "in is carried",
        *(["out", "arrives"], ["in", "arrives"]),
    ]


class Pair:
    """A connection from a process to one target."""

    def __init__(self, link: Link, target: str) -> None:
        self.listener = link.listening(target, 5000)
        near = socket.create_connection(self.listener.getsockname(), ARRIVE_SECONDS)
        far, _ = self.listener.accept()
        self.ends = {"out": (near, far), "in": (far, near)}
        # What was sent each way and has not arrived.
        self.flying = dict.fromkeys(self.ends, b"")
        self.count = 0

    def passes(self, *, lost: str = "") -> list[list[str]]:
        """Send something each way; whether it arrives, with all that was lost before."""
        return [[way, self._sent(way, lost == way)] for way in self.ends]

    def _sent(self, way: str, lost: bool) -> str:
        source, target = self.ends[way]
        self.count += 1
        self.flying[way] += str(self.count).encode()
        source.sendall(str(self.count).encode())
        target.settimeout(LOST_SECONDS if lost else ARRIVE_SECONDS)
        try:
            while self.flying[way]:
                found = target.recv(1024)
                assert found
                assert self.flying[way].startswith(found), (found, self.flying)
                self.flying[way] = self.flying[way][len(found) :]
        except TimeoutError:
            return "is lost"
        return "arrives"


def main() -> None:
    """Lay a link in this namespace, and tell what passes."""
    link = Link(1, ("one", "two"))
    pair = Pair(link, "one")
    told: list[object] = [*pair.passes()]
    link.lose("one", "out")
    told += ["out is lost", *pair.passes(lost="out")]
    link.carry("one", "out")
    told += ["out is carried", *pair.passes()]
    link.lose("one", "in")
    told += ["in is lost", *pair.passes(lost="in")]
    try:
        socket.create_connection(pair.listener.getsockname(), LOST_SECONDS).close()
    except TimeoutError:
        told.append("nobody connects")
    told += ["of the other pair", *Pair(link, "two").passes()]
    link.carry("one", "in")
    told += ["in is carried", *pair.passes()]
    print(json.dumps(told))


if __name__ == "__main__":
    main()
