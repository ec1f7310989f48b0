"""The chapter of the bill: live cost, a price that changes, a limit, and every line checked by hand."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime
from fractions import Fraction
from pathlib import Path

from story import Answer, Platform, Story, until

from services.executor import shim

PROJECT = "bill"
MS = 10**6
HOUR_MS = 3_600_000
GIB = 2**30
CPU_MILLI, MEMORY = 200, 256 * 2**20
SMALL = (
    "--kind",
    "custom",
    "--image",
    "host",
    "-p",
    PROJECT,
    "--cpu",
    "200m",
    "--memory",
    "256MiB",
)
# As prices.yaml has it, and as the demo publishes it: nanos for a core, and for a GiB, and hour.
BEFORE = {"cpu": 40_000_000, "memory": 5_000_000}
AFTER = {"cpu": 80_000_000, "memory": 5_000_000}
FREE_MS = 10_000


def bill(story: Story, platform: Platform, folder: Path) -> None:
    """What runs costs, and what it has cost can be told line by line."""
    platform.cli("projects", "create", PROJECT)
    platform.cli("prices", "list")
    plan = platform.cli(
        *("instances", "create", "short", *SMALL, "--max-duration", "1h", "--dry-run"),
        *("--", "sleep", "1"),
    )
    story.check(
        "a dry run tells the price per hour and the most that it can cost", "USD" in plan.out, plan
    )

    for name, seconds, code in (("short", 4, 0), ("crash", 2, 3)):
        platform.cli(
            *("instances", "create", name, *SMALL, "--restart", "on-failure"),
            *("--restarts-max", "1", "--", "bash", "-c", words_of(folder, name, seconds, code)),
            show=False,
        )
    platform.cli("instances", "create", "long", *SMALL, "--wait", "running", "--", "sleep", "600")
    story.check(
        "what runs costs from its first millisecond on, as it goes",
        until(20, lambda: nanos(now(platform), "accruing_nanos", "settled_nanos") > 0),
        now(platform),
    )
    platform.cli("cost", "now", "-p", PROJECT)

    path = folder / "dearer.yaml"
    file = platform.cli("prices", "show", "--as-file", show=False).out
    path.write_text(file.replace("2026-01", "dearer").replace('cpu: "0.04"', 'cpu: "0.08"'))
    platform.cli("prices", "diff", str(path))
    platform.cli("prices", "publish", str(path))

    platform.cli(
        *("instances", "create", "capped", *SMALL, "--max-cost", "0.00001", "--", "sleep", "600")
    )
    story.check(
        "what has reached its limit is ended, and says why",
        until(40, lambda: "BUDGET" in get(platform, "capped")),
        get(platform, "capped"),
    )
    stopped = platform.cli("instances", "stop", "long", "-p", PROJECT, "--wait", "stopped")
    story.check(
        "a stop prints what it has cost in all", "USD" in stopped.out + stopped.err, stopped
    )

    over = until(60, lambda: settled(platform))
    story.check("and all of it is settled some seconds later", over, now(platform))
    platform.cli("cost", "now", "-p", PROJECT)
    platform.cli("cost", "statement", "-p", PROJECT)
    platform.cli("cost", "explain", "long", "-p", PROJECT)

    statement = json.loads(
        platform.cli("cost", "statement", "-p", PROJECT, "-o", "json", show=False).out
    )
    check_statement(story, platform, statement, folder)


def check_statement(
    story: Story, platform: Platform, statement: dict[str, object], folder: Path
) -> None:
    """Compute the bill again from what the shims and the programs themselves wrote down."""
    exact, apart = Fraction(0), []
    changed = published(platform)
    for name in ("short", "crash", "long", "capped"):
        drained = draining(platform, name)
        runs = list(records(platform, name))
        story.check(f"{name}: its shim has witnessed every run of it", bool(runs), runs)
        for start, end in runs:
            exact += cost(start, end, drained, changed)
        own = folder / f"{name}.words"
        if own.exists():
            said = [int(word) // MS for word in own.read_text().split()]
            times = [time for run in runs for time in run]
            apart += [abs(one - other) for one, other in zip(said, times, strict=True)]
    print(f"  the programs' own words and the records differ by {max(apart)} ms at the most")
    story.check(
        "the programs themselves wrote the same times, within 50 ms", max(apart) <= 50, apart
    )
    lines = statement["lines"]
    assert isinstance(lines, list)
    total = int(str(statement.get("total_nanos", 0)))
    story.check(
        "the bill is what the shims' records come to, to the billionth",
        total == half_even(exact),
        (total, half_even(exact)),
    )
    story.check(
        "and it is the sum of its lines",
        total == sum(int(line.get("amount_nanos", 0)) for line in lines),
        total,
    )
    explained = json.loads(
        platform.cli("cost", "explain", "crash", "-p", PROJECT, "-o", "json", show=False).out
    )
    bound = [
        fact["type"]
        for line in explained["lines"]
        for segment in line["segments"]
        for fact in segment["evidence"]
    ]
    free = {
        line["line"]["state"] for line in explained["lines"] if "amount_nanos" not in line["line"]
    }
    story.check(
        "each piece of a line names the facts behind it, and free time says why it is free",
        {"ReplicaStarted", "ReplicaEnded"} <= set(bound) and "BILLABLE_STATE_BACKOFF" in free,
        (set(bound), free),
    )
    kept = folder / "statement.json"
    kept.write_text(json.dumps(statement))
    again = json.loads(
        platform.cli(
            "cost", "statement", "-p", PROJECT, "--cut", str(kept), "-o", "json", show=False
        ).out
    )
    story.check(
        "computed again from its cut it is the same, to the byte",
        again["digest"] == statement["digest"],
        (again["digest"], statement["digest"]),
    )


def cost(start: int, end: int, drained: int | None, changed: int) -> Fraction:
    """What one run costs, in nanos: free for ten seconds from when its user had it end."""
    free = (end, end) if drained is None else (max(start, drained), max(start, drained) + FREE_MS)
    paid = Fraction(0)
    for first, last in ((start, min(end, free[0])), (min(end, free[1]), end)):
        for low, high, prices in ((0, changed, BEFORE), (changed, 2**62, AFTER)):
            ms = max(0, min(last, high) - max(first, low))
            paid += Fraction(ms * CPU_MILLI * prices["cpu"], HOUR_MS * 1000)
            paid += Fraction(ms * MEMORY * prices["memory"], HOUR_MS * GIB)
    return paid


def half_even(value: Fraction) -> int:
    """To the nearest whole, in the middle to the even one: as `round` does for fractions."""
    return round(value)


def words_of(folder: Path, name: str, seconds: int, code: int) -> str:
    """A program of bash that writes down when it begins and when it ends, in nanoseconds."""
    say = f"echo ${{EPOCHREALTIME//[.,]/}}000 >> {folder / name}.words"
    return f"{say}; sleep {seconds}; {say}; exit {code}"


def records(platform: Platform, name: str) -> Iterator[tuple[int, int]]:
    """Runs of an instance in milliseconds, as its shim wrote them down."""
    answer = platform.cli("replicas", name, "-p", PROJECT, "-o", "json", show=False)
    found = json.loads(answer.out or "[]")
    uids = [row["uid"] for row in (found if isinstance(found, list) else found["replicas"])]
    for folder in (platform.home / "cluster" / "kept").iterdir():
        if folder.name in uids:
            record = shim.read_record(str(folder))
            for start, end in record.runs if record else ():
                if end is not None:
                    yield start.at // MS, max(start.at, end.at) // MS


def draining(platform: Platform, name: str) -> int | None:
    """When an instance was told to end, as the facts behind its bill have it."""
    answer = platform.cli("cost", "explain", name, "-p", PROJECT, "-o", "json", show=False)
    for line in json.loads(answer.out)["lines"]:
        for segment in line["segments"]:
            for fact in segment["evidence"]:
                if fact["type"] == "ReplicaDraining":
                    return milliseconds(fact["occurred_time"])
    return None


def published(platform: Platform) -> int:
    """Since when the new prices are in force."""
    answer = platform.cli("prices", "show", "dearer", "-o", "json", show=False)
    return milliseconds(json.loads(answer.out)["effective_time"])


def now(platform: Platform) -> Answer:
    """What the project costs now, as the API has it."""
    return platform.cli("cost", "now", "-p", PROJECT, "-o", "json", show=False)


def nanos(answer: Answer, *columns: str) -> int:
    """Columns of the total, added."""
    if answer.code != 0:
        return 0
    total = json.loads(answer.out).get("total", {})
    return sum(int(total.get(column, 0)) for column in columns)


def settled(platform: Platform) -> bool:
    """Whether nothing accrues any more."""
    answer = now(platform)
    running = nanos(answer, "accruing_nanos", "rate_nanos")
    return answer.code == 0 and running == 0 and nanos(answer, "settled_nanos") > 0


def get(platform: Platform, name: str) -> str:
    """An instance as the API has it."""
    return platform.cli("instances", "get", name, "-p", PROJECT, "-o", "json", show=False).out


def milliseconds(text: object) -> int:
    """Whole milliseconds since 1970."""
    moment = datetime.fromisoformat(str(text).replace("Z", "+00:00"))
    return round(moment.timestamp() * 1000)
