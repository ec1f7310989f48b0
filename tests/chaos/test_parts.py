"""What a round is made of, by itself: the plan of a seed, the wires, and an oracle that sees."""

from __future__ import annotations

import random
from collections import Counter
from fractions import Fraction
from pathlib import Path

from fermion.api.instances import v1 as instances
from services.executor import shim
from tests.chaos import faults, oracle, wires
from tests.chaos.load import MS, Acknowledged, Ledger
from tests.chaos.oracle import Fact
from tests.chaos.recorder import FIRST, SHARING
from tests.chaos.report import Report
from tests.chaos.stand import DISKS, SERVICES

SAID = b"INFO {}\r\nMSG a 1 5\r\nfirst\r\nPING\r\nHMSG a 1 b 3 9\r\nx\r\nsecond\r\nMSG a 1 5\r\nth"
MESSAGES = (b"MSG a 1 5\r\nfirst\r\n", b"HMSG a 1 b 3 9\r\nx\r\nsecond\r\n")


def told(plan: list[faults.Fault]) -> list[tuple[str, str, float, float]]:
    return [(one.kind, one.target, one.seconds, one.draw) for one in plan]


def test_a_seed_names_one_plan_and_another_seed_another_one() -> None:
    plans = [faults.plan(random.Random(seed), 60, tuple(DISKS)) for seed in (1, 1, 2)]
    assert told(plans[0]) == told(plans[1]) != told(plans[2])


def test_ten_minutes_hold_six_hundred_faults_two_hundred_kills_and_everything_five_times() -> None:
    counted = Counter(
        (one.kind, one.target) for one in faults.plan(random.Random(1), 600, tuple(DISKS))
    )
    assert counted.total() >= 600
    assert sum(count for (kind, _), count in counted.items() if kind == "kill") >= 200
    assert min(counted.values()) >= 5
    assert {target for kind, target in counted if kind == "kill"} == {
        *SERVICES,
        *("postgres", "nats", "shim"),
    }


def test_a_minute_kills_everything() -> None:
    plan = faults.plan(random.Random(1), 60, ())
    assert {one.target for one in plan if one.kind == "kill"} == set(faults.KILLS)


def test_a_piece_of_the_protocol_is_cut_into_whole_frames() -> None:
    found, rest = wires.frames(SAID)
    assert found == [b"INFO {}\r\n", MESSAGES[0], b"PING\r\n", MESSAGES[1]]
    assert rest == b"MSG a 1 5\r\nth"


def test_messages_change_places_and_come_twice_and_nothing_else_does() -> None:
    found, _ = wires.frames(SAID)
    dice = random.Random(1)
    seen = {tuple(wires.reordered(found, dice)) for _ in range(50)}
    assert seen == {tuple(found), (found[0], found[3], found[2], found[1])}
    twice = Counter(frame for _ in range(50) for frame in wires.duplicated(found, dice))
    assert twice[b"PING\r\n"] == twice[b"INFO {}\r\n"] == 50
    assert all(50 < twice[each] < 100 for each in MESSAGES)


def judged(facts: list[Fact], remembered: list[str]) -> list[str]:
    """What is broken where one create was acknowledged, `r`, of the instance `one`."""
    ledger = Ledger(acknowledged=[Acknowledged("CreateInstance", "r", "one")], created={"one"})
    ledger.retries = 1
    report = Report(60, 1)
    oracle.judge_ledger(report, ledger, facts, Counter(remembered))
    return [sentence.split(":")[0] for sentence in report.broken]


def created(name: str, request_id: str = "r") -> Fact:
    return Fact("C", f"instance/{name}", request_id, instances.InstanceCreated(instance=name))


def test_the_oracle_sees_what_is_lost_doubled_and_made_up() -> None:
    assert judged([created("one")], ["r"]) == []
    assert judged([], ["r"]) == ["nothing acknowledged is lost"]
    assert judged([created("one")], []) == ["nothing acknowledged is lost"]
    assert judged([created("one"), created("one", "other")], ["r"]) == ["nothing happened twice"]
    assert judged([created("one"), created("two", "")], ["r"]) == [
        "nothing was created that nobody asked for"
    ]


def outside_of(
    tmp_path: Path,
    *late: int,
    duration: float = 600,
    turn: str = FIRST,
    proved: tuple[int, ...] = (),
) -> list[str]:
    """
    What is broken where ends were told so many milliseconds after a recorder outside saw them.

    Those `proved` are dated at a last proof of life, and say so.
    """
    told = [oracle.Told(0, 1000 + one, shim.RECORDED) for one in late]
    told += [oracle.Told(0, 1000 + one, shim.LAST_PROOF) for one in proved]
    seen = (f"instance-1 rep {ordinal} {1000 * MS}" for ordinal in range(len(told)))
    outside = tmp_path / "outside"
    outside.write_text("\n".join((turn, *seen)))
    scene = faults.Scene(None, Ledger())  # type: ignore[arg-type]  # nothing is struck
    report = Report(duration, 1)
    oracle.judge_outside(report, scene, {"rep": dict(enumerate(told))}, outside)
    return [sentence.split(":")[0] for sentence in report.broken]


def test_the_oracle_holds_each_end_of_a_full_round_to_a_recorder_that_runs_first(
    tmp_path: Path,
) -> None:
    each = ["each end is within 50 ms of a recorder outside"]
    assert outside_of(tmp_path, *[3] * 199, 50) == []
    assert outside_of(tmp_path, *[3] * 199, 51) == each
    assert outside_of(tmp_path, *[3] * 199, -51) == each
    # A shorter one allows one in a hundred, and who shares the machine five.
    assert outside_of(tmp_path, *[3] * 199, 51, duration=60) == []
    assert outside_of(tmp_path, *[3] * 197, *[51] * 3, duration=60) == [
        "99 of 100 ends are within 50 ms of a recorder outside"
    ]
    assert outside_of(tmp_path, *[3] * 193, *[51] * 7, turn=SHARING) == []
    assert outside_of(tmp_path) != []


def test_the_oracle_lets_an_end_be_early_where_it_says_so_and_never_late(tmp_path: Path) -> None:
    assert outside_of(tmp_path, *[3] * 9, proved=(-900, -2500)) == []
    assert outside_of(tmp_path, *[3] * 9, proved=(51,)) == [
        "where a shim was hurt the bill is short by a tick and says so"
    ]


def test_the_oracle_prices_a_run_as_the_book_does() -> None:
    hour = 3_600_000
    # 20 thousandths of a core at 0.04, and a sixteenth of a GiB at 0.005.
    rate = Fraction(800_000) + Fraction(5_000_000, 16)
    assert oracle.cost(0, hour, None) == rate
    # The last ten seconds of one that its user ended are free, and no more than these.
    assert oracle.cost(0, hour, hour - 10_000) == rate * (hour - 10_000) / hour
    assert oracle.cost(0, hour, hour - 20_000) == rate * (hour - 10_000) / hour
