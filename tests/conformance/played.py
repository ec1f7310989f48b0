"""What the workloads of the cluster suite do, step by step, for a cluster in memory; see `program.py`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from tests.memory_cluster import Killed, Process

STAY_SECONDS = 1e9
TERM = 15


async def play(process: Process) -> int:
    """Do the steps, unless it is told to end and has not said that it minds."""
    told: list[Callable[[], int]] = [_die]
    steps = asyncio.create_task(_play(process, told), name="steps")
    ordered = asyncio.create_task(process.told.wait(), name="told")
    try:
        while True:
            await asyncio.wait((steps, ordered), return_when=asyncio.FIRST_COMPLETED)
            if steps.done():
                return steps.result()
            if told:
                return told[-1]()
            await asyncio.wait((steps,))
    finally:
        steps.cancel()
        ordered.cancel()


def _die() -> int:
    raise Killed(TERM)


async def _play(process: Process, told: list[Callable[[], int]]) -> int:
    for word in process.words[1:]:
        name, _, rest = word.partition(":")
        match name:
            case "print":
                process.print(rest)
            case "raw":
                process.write(1, rest.encode())
            case "error":
                process.print(rest, 2)
            case "env":
                process.print(f"{rest}={process.env.get(rest, '-')}")
            case "names":
                process.print(" ".join(sorted(process.env)))
            case "sleep":
                await process.clock.sleep(float(rest))
            case "exit":
                return int(rest)
            case "kill":
                raise Killed(int(rest))
            case "stubborn":
                told.clear()
            case "obedient":
                told.append(_leaving(process, int(rest)))
            case "report":
                process.report = rest
            case "append":
                path, _, text = rest.partition("=")
                process.files[path] = process.files.get(path, "") + text
            case "show":
                process.print(process.files[rest])
            case "child":
                pass
            case "grow":
                process.grow(int(rest))
            case "serve":
                process.listening.add(rest)
                await process.clock.sleep(STAY_SECONDS)
            case "spin":
                process.cpu_seconds += float(rest)
                await process.clock.sleep(float(rest))
            case "stay":
                await process.clock.sleep(STAY_SECONDS)
            case "echo":
                while (data := await process.input.get()) is not None:
                    process.write(1, data)
            case "size":
                process.print("{}x{}".format(*process.size))
            case "resized":
                process.print("waiting")
                await process.resized.wait()
                process.print("{}x{}".format(*process.size))
            case _:
                raise AssertionError(f"no such step: {word}")
    return 0


def _leaving(process: Process, code: int) -> Callable[[], int]:
    def leave() -> int:
        process.print(f'{{"cause": "{process.notice}"}}')
        return code

    return leave
