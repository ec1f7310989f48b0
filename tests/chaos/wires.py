"""
The network between the processes of a platform: every connection goes through here and can be held.

    python -m tests.chaos.wires FILE

FILE is JSON: `links`, whether there may be network namespaces, and `wires`, a list of `{name, to,
frames}`, where a name is `source target` and `to` a port. The first line of the output is JSON: for
each name, where to connect. Orders come as lines of JSON on the standard input:
`{"wire": name, "order": …, "way": "out" | "in"}`, where `out` goes from who connects:

    hold, free              nothing passes one way; what was sent arrives when it is free again
    cut                     every connection is reset
    duplicate, delay,       what a wire of `frames` (NATS) does with messages until it is `plain`
    reorder, plain

A wire that is held either way does not connect, for a handshake takes both. With links it is the
packets that are lost (see `tests.chaos.nets`); without, this process keeps what was sent. It ends
with its input.
"""

from __future__ import annotations

import asyncio
import json
import random
import socket
import struct
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.chaos.nets import Link

CHUNK_BYTES = 65536
DELAY_SECONDS_MAX = 0.3
# So long messages are gathered before they are put into another order.
GATHER_SECONDS = 0.03
WITH_PAYLOAD = (b"MSG", b"HMSG", b"PUB", b"HPUB")
WAYS = ("out", "in")


def frames(data: bytes) -> tuple[list[bytes], bytes]:
    """Cut a piece of the NATS protocol into whole frames; what is not whole yet comes second."""
    found, place = [], 0
    while (end := data.find(b"\r\n", place)) >= 0:
        words = data[place:end].split()
        stop = end + 2
        if words and words[0].upper() in WITH_PAYLOAD:
            stop += int(words[-1]) + 2
        if stop > len(data):
            break
        found.append(data[place:stop])
        place = stop
    return found, data[place:]


def message(frame: bytes) -> bool:
    """Whether a frame carries something, and is not about the connection itself."""
    return frame.split(None, 1)[0].upper() in WITH_PAYLOAD


def duplicated(found: Iterable[bytes], dice: random.Random) -> list[bytes]:
    """Some messages twice, at once or behind the next."""
    out: list[bytes] = []
    for frame in found:
        out.append(frame)
        if message(frame) and dice.random() < 0.5:
            out.append(frame)
    return out


def reordered(found: list[bytes], dice: random.Random) -> list[bytes]:
    """Messages in any order; everything else keeps its place."""
    places = [place for place, frame in enumerate(found) if message(frame)]
    mixed = dice.sample(places, len(places))
    out = list(found)
    for place, source in zip(places, mixed, strict=True):
        out[place] = found[source]
    return out


@dataclass
class Wire:
    """From one process to one port."""

    name: str
    to: int
    frames: bool
    dice: random.Random
    listener: socket.socket
    link: Link | None = None
    gates: dict[str, asyncio.Event] = field(default_factory=dict)
    tricks: dict[str, str] = field(default_factory=lambda: dict.fromkeys(WAYS, "plain"))
    ends: set[asyncio.StreamWriter] = field(default_factory=set)

    async def open(self) -> None:
        """Listen from now on."""
        for way in WAYS:
            self.gates[way] = asyncio.Event()
            self.gates[way].set()
        await asyncio.start_server(self._carry, sock=self.listener, limit=CHUNK_BYTES)

    @property
    def address(self) -> str:
        """Where to connect."""
        host, port = self.listener.getsockname()
        return f"{host}:{port}"

    def obey(self, order: str, way: str) -> None:
        """Do what an order says."""
        target = self.name.split()[1]
        match order:
            case "hold" if self.link is not None:
                self.link.lose(target, way)
            case "free" if self.link is not None:
                self.link.carry(target, way)
            case "hold":
                self.gates[way].clear()
            case "free":
                self.gates[way].set()
            case "cut":
                for end in self.ends:
                    raw = end.get_extra_info("socket")
                    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    end.transport.abort()
            case _:
                self.tricks[way] = order

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ends = [writer]
        try:
            for way in WAYS:
                await self.gates[way].wait()
            far_reader, far_writer = await asyncio.open_connection(
                "127.0.0.1", self.to, limit=CHUNK_BYTES
            )
            ends.append(far_writer)
            self.ends.update(ends)
            pumps = (
                asyncio.create_task(self._pump("out", reader, far_writer)),
                asyncio.create_task(self._pump("in", far_reader, writer)),
            )
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            for pump in pumps:
                pump.cancel()
            await asyncio.wait(pumps)
        except OSError:
            pass
        finally:
            self.ends.difference_update(ends)
            for end in ends:
                end.close()

    async def _pump(
        self, way: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        rest = b""
        try:
            while True:
                trick = self.tricks[way]
                if trick == "reorder":
                    await asyncio.sleep(GATHER_SECONDS)
                data = await reader.read(CHUNK_BYTES)
                if not data:
                    # Half closed is closed, and the word of it gets lost like any other.
                    await self.gates[way].wait()
                    return
                if self.frames:
                    found, rest = frames(rest + data)
                    if trick == "delay":
                        await asyncio.sleep(self.dice.uniform(0, DELAY_SECONDS_MAX))
                    elif trick == "duplicate":
                        found = duplicated(found, self.dice)
                    elif trick == "reorder":
                        found = reordered(found, self.dice)
                    data = b"".join(found)
                await self.gates[way].wait()
                writer.write(data)
                await writer.drain()
        except OSError:
            return


def laid(plan: Sequence[Mapping[str, object]], links: bool) -> dict[str, Wire]:
    """Every wire of a plan, with links or without; none carries anything yet."""
    reached: dict[str, list[str]] = {}
    for each in plan:
        source, target = str(each["name"]).split()
        reached.setdefault(source, []).append(target)
    of = {
        source: Link(number, targets)
        for number, (source, targets) in enumerate(reached.items(), 1)
        if links
    }
    taken = {each["to"] for each in plan}
    wires = {}
    for each in plan:
        name, to = str(each["name"]), int(str(each["to"]))
        source, target = name.split()
        link = of.get(source)
        listener = link.listening(target, to) if link else somewhere(taken)
        dice = random.Random(name)
        wires[name] = Wire(name, to, bool(each["frames"]), dice, listener, link)
    return wires


def somewhere(taken: Iterable[object]) -> socket.socket:
    """A socket on the loopback, at a port that nobody else is going to have."""
    while True:
        listener = socket.create_server(("127.0.0.1", 0))
        if listener.getsockname()[1] not in taken:
            return listener
        listener.close()


async def serve(path: Path) -> None:
    """Carry until the input ends."""
    asked = json.loads(path.read_text())
    wires = laid(asked["wires"], asked["links"])
    for wire in wires.values():
        await wire.open()
    print(json.dumps({name: wire.address for name, wire in wires.items()}), flush=True)
    loop = asyncio.get_running_loop()
    orders = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    while line := await orders.readline():
        order = json.loads(line)
        wires[order["wire"]].obey(order["order"], order["way"])


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1])))
