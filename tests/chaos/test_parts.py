"""What a round is made of, by itself: the plan of a seed, the wires, and an oracle that sees."""

from __future__ import annotations

import random
from collections import Counter
from fractions import Fraction

from fermion.api.instances import v1 as instances
from tests.chaos import faults, oracle, wires
from tests.chaos.load import Acknowledged, Ledger
from tests.chaos.oracle import Fact
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


def test_the_oracle_prices_a_run_as_the_book_does() -> None:
    hour = 3_600_000
    # 20 thousandths of a core at 0.04, and a sixteenth of a GiB at 0.005.
    rate = Fraction(800_000) + Fraction(5_000_000, 16)
    assert oracle.cost(0, hour, None) == rate
    # The last ten seconds of one that its user ended are free, and no more than these.
    assert oracle.cost(0, hour, hour - 10_000) == rate * (hour - 10_000) / hour
    assert oracle.cost(0, hour, hour - 20_000) == rate * (hour - 10_000) / hour
