"""What things have cost, as the client asks for it and people read it."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml
from google.protobuf import json_format
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import code_pb2

import fermion
from fermion.api.billing import v1 as api
from fermion.api.instances import v1 as instances
from fermion.api.workload import v1 as workload
from fermion.cli import bill, run, show
from fermion.context import Contexts
from fermion.errors import NotFound
from tests.unit.fermion.keyboard import terminal_text
from tests.unit.fermion.platform import Platform, busy, refuse

LAB = "projects/acme/instances/lab"
NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
GPU_HOUR = 3_600_000 * 1000
EXECUTOR = "executor/" + "k" * 26


def stamp(at: datetime) -> Timestamp:
    found = Timestamp()
    found.FromDatetime(at)
    return found


def book() -> api.PriceBook:
    free = {api.BILLABLE_STATE_DRAINING_BY_USER: 10}
    found = api.PriceBook(version="2026-01", currency="USD", number=1)
    for state in bill.STATES:
        held = state in (api.BILLABLE_STATE_HELD, api.BILLABLE_STATE_BACKOFF)
        rule = found.states.add(state=api.BillableState.Name(state), billed=not held)
        if state in free:
            rule.free.FromSeconds(free[state])
    return found


def lines() -> list[api.Line]:
    """An hour and a half of a GPU, and a minute that it was held."""
    paid = api.Line(
        id="lin_1",
        owner=LAB,
        owner_uid="inst_1",
        attempt=1,
        kind=workload.KIND_INSTANCE,
        user="user_1",
        state=api.BILLABLE_STATE_RUNNING,
        dimension=api.DIMENSION_GPU,
        gpu_type="A100-80GB",
        price_version="2026-01",
        price_nanos=1_800_000_000,
        replica_milliseconds=5_400_500,
        quantity=str(5_400_500 * 1000),
        amount_nanos=2_700_250_000,
        start_time=stamp(NOON),
        end_time=stamp(NOON + 1.5 * HOUR + timedelta(milliseconds=500)),
    )
    free = api.Line(
        id="lin_2",
        owner=LAB,
        attempt=1,
        state=api.BILLABLE_STATE_HELD,
        price_version="2026-01",
        replica_milliseconds=60_000,
    )
    return [paid, free]


def statement(**more: object) -> api.Statement:
    source = api.Cut.Source(journal=EXECUTOR, position=17, through_time=stamp(NOON + 2 * HOUR))
    found = api.Statement(
        project="projects/acme",
        start_time=stamp(datetime(2026, 11, 1, tzinfo=UTC)),
        end_time=stamp(datetime(2026, 12, 1, tzinfo=UTC)),
        cut=api.Cut(sources=[source], price_book=1, algorithm=1),
        currency="USD",
        lines=lines(),
        total_nanos=2_700_250_000,
        digest="d" * 64,
    )
    return json_format.ParseDict(more, found)


@pytest.fixture
def lab(platform: Platform, tmp_path: Path) -> Platform:
    """A platform on which an instance has run for an hour and a half."""
    token = tmp_path / "jwt"
    token.write_text("jwt")
    Contexts().set("local", address=platform.address, token_file=str(token), project="acme")
    status = instances.Status(state=instances.STATE_RUNNING)
    platform.instances[LAB] = instances.Instance(
        name=LAB, uid="inst_1", status=status, create_time=stamp(NOON)
    )
    platform.billed.cost = api.GetCostResponse(
        costs=[
            cost(2_700_250_000, 5_000, 1_800_000_000, LAB),
            cost(12_000_000_000, 0, 0, "projects/acme/instances/another"),
        ],
        total=cost(14_700_250_000, 5_000, 1_800_000_000),
        currency="USD",
        through_time=stamp(NOON + 2 * HOUR),
    )
    platform.billed.statement = statement()
    return platform


def cost(settled: int, accruing: int, rate: int, *keys: str) -> api.Cost:
    return api.Cost(settled_nanos=settled, accruing_nanos=accruing, rate_nanos=rate, keys=keys)


def asked(platform: Platform, method: str) -> dict[str, object]:
    """The last request of a method, as JSON has it."""
    request = platform.sent(method)[-1].request
    return json_format.MessageToDict(request, preserving_proto_field_name=True)


def test_what_has_been_cost_is_shown_by_owner_with_settled_apart_from_accruing(
    lab: Platform, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["cost", "now"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "OWNER                   SETTLED   ACCRUING  PER HOUR",
        "acme/instances/lab       2.70025  0.000005  1.80",
        "acme/instances/another  12.00     0.00      0.00",
        "total                   14.70025  0.000005  1.80",
        f"USD, settled up to {show.moment(stamp(NOON + 2 * HOUR))}",
    ]
    assert asked(lab, "GetCost") == {"parent": "projects/acme", "group_by": ["GROUP_BY_OWNER"]}


def test_costs_are_grouped_by_up_to_three_things(
    lab: Platform, capsys: pytest.CaptureFixture[str]
) -> None:
    lab.billed.cost.costs[0].keys[:] = ["", "KIND_INSTANCE", "2026-11-24"]
    lab.billed.cost.costs[1].keys[:] = ["vision", "KIND_BUILD", "2026-11-25"]
    words = ["--by", "label=team", "--by", "kind", "--by", "day", "--all-projects"]
    assert run(["cost", "now", *words]) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split()[:3] == ["team", "KIND", "DAY"]
    assert rows[0].split()[:3] == ["-", "instance", "2026-11-24"]
    assert rows[1].split()[:3] == ["vision", "build", "2026-11-25"]
    found = asked(lab, "GetCost")
    assert found["parent"] == "projects/-"
    assert found["label"] == "team"
    assert run(["cost", "now", "--all-projects", "-p", "acme"]) == 2
    assert found["group_by"] == ["GROUP_BY_LABEL", "GROUP_BY_KIND", "GROUP_BY_DAY"]


@pytest.mark.parametrize(
    ("by", "said"),
    [
        (["ownr"], "Did you mean owner?"),
        (["label"], "label=team"),
        (["owner=x"], "label=team"),
        (["owner", "owner"], "second owner"),
        (["label=a", "label=b"], "second label"),
        (["owner", "user", "day", "kind"], "at most three"),
    ],
)
def test_what_nothing_can_be_summed_by_is_refused(
    lab: Platform, capsys: pytest.CaptureFixture[str], by: list[str], said: str
) -> None:
    assert run(["cost", "now", *(word for one in by for word in ("--by", one))]) == 2
    assert said in capsys.readouterr().err
    assert not lab.sent("GetCost")


@pytest.mark.parametrize(
    ("words", "start", "end"),
    [
        (["--month", "2026-12"], "2026-12-01T00:00:00Z", "2027-01-01T00:00:00Z"),
        (["--from", "2026-11-24T12:00:00Z"], "2026-11-24T12:00:00Z", None),
        (["--to", "2026-11-24T13:00:00+01:00"], None, "2026-11-24T12:00:00Z"),
        ([], None, None),
    ],
)
def test_a_period_is_what_was_said_of_it(
    lab: Platform, words: list[str], start: str | None, end: str | None
) -> None:
    for command, method in (("now", "GetCost"), ("statement", "GetStatement")):
        assert run(["cost", command, *words]) == 0
        found = asked(lab, method)
        assert (found.get("start_time"), found.get("end_time")) == (start, end)


@pytest.mark.parametrize(
    "words",
    [
        ["--month", "2026-13"],
        ["--month", "november"],
        ["--month", "2026-11", "--to", "1h"],
        ["--from", "soon"],
        ["--from", "2026-11-24T12:00:00Z", "--to", "2026-11-24T12:00:00Z"],
    ],
)
def test_a_period_that_is_none_is_refused(lab: Platform, words: list[str]) -> None:
    assert run(["cost", "now", *words]) == 2
    assert not lab.calls


def test_programs_read_the_message_and_nothing_else(
    lab: Platform, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["cost", "now", "-o", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["costs"][0]["settled_nanos"] == "2700250000"
    assert run(["cost", "now", "-o", "yaml"]) == 0
    assert yaml.safe_load(capsys.readouterr().out) == found
    assert run(["cost", "now", "-o", "name"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == LAB


def test_where_nothing_was_metered_stdout_is_left_to_programs(
    lab: Platform, capsys: pytest.CaptureFixture[str]
) -> None:
    lab.billed.cost = api.GetCostResponse()
    assert run(["cost", "now"]) == 0
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("Nothing has been metered in acme. Nothing is settled yet")


def test_what_is_disputed_is_named(lab: Platform, capsys: pytest.CaptureFixture[str]) -> None:
    lab.billed.cost.disputed[:] = ["rep_1", "vol_2"]
    assert run(["cost", "now"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "disputed, so perhaps wrong: rep_1, vol_2"


def answer(seconds: int, settled: int, rate: int) -> api.WatchCostResponse:
    return api.WatchCostResponse(
        total=cost(settled, 1_000_000, rate),
        currency="USD",
        through_time=stamp(NOON),
        compute_time=stamp(NOON + timedelta(seconds=seconds)),
    )


def test_costs_are_followed_over_breaks_a_row_each(
    lab: Platform, capsys: pytest.CaptureFixture[str]
) -> None:
    def streams() -> list[list[api.WatchCostResponse]]:
        return [[answer(3, 1_000_000_000, 1_800_000_000)], [answer(65, 1_100_000_000, 0)]]

    lab.billed.watches.extend(streams())
    assert run(["cost", "watch", "--from", "2026-11-24T12:00:00Z"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    at = show.moment(stamp(NOON + timedelta(seconds=3)))
    assert first == f"{at}  1.001 USD  settled 1.00  accruing 0.001  per hour 1.80  3s behind"
    assert second.endswith("  1.101 USD  settled 1.10  accruing 0.001  per hour 0.00  1m5s behind")
    assert asked(lab, "WatchCost")["start_time"] == "2026-11-24T12:00:00Z"
    lab.billed.watches.extend(streams())
    assert run(["cost", "watch", "-o", "json"]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["total"].get("rate_nanos") for one in found] == ["1800000000", None]
    assert run(["cost", "watch", "-o", "name"]) == 2


def on_a_terminal(*words: str, columns: int = 80) -> list[str]:
    """The lines that a command prints on a terminal."""
    text = terminal_text(columns, *words)
    return text.replace("\x1b[?25l", "").replace("\x1b[?25h", "").splitlines()


def test_on_a_terminal_rates_are_a_line_of_bars_and_owners_have_theirs(lab: Platform) -> None:
    lab.billed.watches.append([answer(at, at, at * 450_000_000) for at in (1, 2, 4)])
    *_, drawn = "\n".join(on_a_terminal("cost", "watch")).split("\x1b[J")
    head, *rows, rates, foot = drawn.splitlines()
    assert head.split() == ["OWNER", "SETTLED", "ACCRUING", "PER", "HOUR"]
    # The dearest first, and the others by their part of it.
    assert rows[0].split()[0] == "acme/instances/another"
    assert rows[0].endswith("█" * 20)
    assert rows[1].split()[0] == "acme/instances/lab"
    assert rows[1].endswith("████▌")
    assert rows[2].split()[0] == "total"
    assert rates == "▃▅█  1.80 USD an hour"
    assert foot.startswith("USD, settled up to ")
    assert foot.endswith("  4s behind")
    assert max(map(len, (head, *rows, rates, foot))) <= 80
    # Owners are asked for every other second, not with each answer.
    assert len(lab.sent("GetCost")) == 2


def test_a_statement_is_a_table_with_its_sum_and_what_it_rests_on(
    lab: Platform, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["cost", "statement"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[:4] == [
        "OWNER          ATTEMPT  STATE    WHAT           TIME       QUANTITY        PRICE  AMOUNT",
        "instances/lab  1        running  GPU A100-80GB  1h30m0.5s  1.500139 GPU-h  1.80   2.70025",
        "instances/lab  1        held     free           1m         -               -      0.00",
        "total                                                                             2.70025",
    ]
    assert out[4:] == [
        "  project       acme",
        f"  period        {show.moment(statement().start_time)} to "
        f"{show.moment(statement().end_time)}",
        "  currency      USD",
        "  standing      provisional: not every cluster has said all up to its end",
        f"  cut           {EXECUTOR}:17 up to {show.moment(stamp(NOON + 2 * HOUR))}",
        "  computed by   price book 1, arithmetic 1",
        f"  digest        {'d' * 64}",
    ]
    lab.billed.statement.complete = True
    assert run(["cost", "statement"]) == 0
    assert "  standing      complete\n" in capsys.readouterr().out
    assert run(["cost", "statement", "-o", "name"]) == 0
    assert capsys.readouterr().out == "lin_1\nlin_2\n"
    assert run(["cost", "statement", "-o", "wide"]) == 0
    assert "lin_1" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["now", "statement"])
def test_tables_of_money_fit_a_terminal_of_80_columns(lab: Platform, command: str) -> None:
    long = "projects/acme/instances/an-instance-whose-name-is-rather-long"
    for line in lab.billed.statement.lines:
        line.owner = long
        line.state = api.BILLABLE_STATE_DRAINING_BY_PLATFORM
    lab.billed.cost.costs[0].keys[:] = [long]
    found = on_a_terminal("cost", command)
    table = [line for line in found if not line.startswith("  period")]
    assert max(map(len, table)) <= 80, table
    assert "2.70025" in "\n".join(found)


def test_a_statement_is_computed_again_from_the_cut_of_the_one_that_was_kept(
    lab: Platform, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["cost", "statement", "-o", "json"]) == 0
    kept = tmp_path / "november.json"
    kept.write_text(capsys.readouterr().out)
    assert run(["cost", "statement", "--cut", str(kept)]) == 0
    assert "to the byte" in capsys.readouterr().err
    found = asked(lab, "GetStatement")
    assert found["start_time"] == "2026-11-01T00:00:00Z"
    assert found["end_time"] == "2026-12-01T00:00:00Z"
    assert found["cut"] == json.loads(kept.read_text())["cut"]
    lab.billed.statement.digest = "e" * 64
    assert run(["cost", "statement", "--cut", str(kept)]) == 1
    assert f"digest is {'d' * 64}" in capsys.readouterr().err
    # Of another period it is another one, and compared with nothing.
    lab.billed.statement.start_time.FromDatetime(NOON)
    assert run(["cost", "statement", "--cut", str(kept), "--from", "2026-11-24T12:00:00Z"]) == 0
    assert capsys.readouterr().err == ""


def test_a_statement_of_another_project_is_computed_again_for_that_one(
    lab: Platform, tmp_path: Path
) -> None:
    kept = tmp_path / "kept.json"
    kept.write_text(show.to_json(show.plain(statement(project="projects/other"))))
    assert run(["cost", "statement", "--cut", str(kept)]) == 0
    assert asked(lab, "GetStatement")["parent"] == "projects/other"
    assert run(["cost", "statement", "--cut", str(kept), "-p", "mine"]) == 0
    assert asked(lab, "GetStatement")["parent"] == "projects/mine"


@pytest.mark.parametrize("content", ["{}", "[", '{"lines": 3}', None])
def test_a_file_without_a_cut_is_refused(
    lab: Platform, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None
) -> None:
    file = tmp_path / "kept.json"
    if content is not None:
        file.write_text(content)
    assert run(["cost", "statement", "--cut", str(file)]) == 2
    assert "--cut is" in capsys.readouterr().err
    assert not lab.calls


def explanation() -> api.ExplainChargeResponse:
    paid, free = lines()
    core = api.Line(
        id="lin_3",
        attempt=1,
        state=api.BILLABLE_STATE_RUNNING,
        dimension=api.DIMENSION_CPU,
        price_version="2026-01",
        price_nanos=40_000_000,
        quantity=str(3_600_000 * 1000),
        amount_nanos=40_000_000,
    )
    source = {"journal": EXECUTOR, "evidence": workload.EVIDENCE_CLASS_RECORDED}
    started = api.Evidence(type="ReplicaStarted", position=16, occurred_time=stamp(NOON), **source)
    lost = api.Evidence(
        type="ReplicaLost",
        journal=EXECUTOR,
        position=17,
        occurred_time=stamp(NOON + HOUR),
        evidence=workload.EVIDENCE_CLASS_LAST_PROOF,
    )
    ran = api.Segment(
        uid="rep_1",
        run=0,
        state=api.BILLABLE_STATE_RUNNING,
        billed=True,
        start_time=stamp(NOON),
        end_time=stamp(NOON + HOUR),
        price_book=1,
        why="RUNNING",
        evidence=[started, lost],
    )
    held = api.Segment(
        uid="rep_1",
        run=-1,
        state=api.BILLABLE_STATE_HELD,
        start_time=stamp(NOON - timedelta(minutes=1)),
        end_time=stamp(NOON),
        price_book=1,
    )
    drained = api.Segment(
        uid="rep_1",
        run=0,
        state=api.BILLABLE_STATE_DRAINING_BY_USER,
        start_time=stamp(NOON + HOUR),
        end_time=stamp(NOON + HOUR),
        price_book=1,
        why="DRAINING_FREE",
    )
    explained = api.ExplainChargeResponse.Explained
    return api.ExplainChargeResponse(
        lines=[
            explained(line=paid, segments=[ran]),
            explained(line=core, segments=[ran]),
            explained(line=free, segments=[held, drained]),
        ],
        cut=statement().cut,
        price_books=[book()],
    )


def test_a_charge_is_explained_down_to_the_facts_and_why_other_time_is_free(
    lab: Platform, capsys: pytest.CaptureFixture[str]
) -> None:
    lab.billed.explanation = explanation()
    assert run(["cost", "explain", "lab"]) == 0
    at = {minutes: show.moment(stamp(NOON + timedelta(minutes=minutes))) for minutes in (-1, 0, 60)}
    assert capsys.readouterr().out.splitlines() == [
        "GPU A100-80GB  running  attempt 1  1.500139 GPU-h at 1.80 = 2.70025 USD",
        "CPU  running  attempt 1  1.00 core-h at 0.04 = 0.04 USD",
        "  line          lin_1",
        "  line          lin_3",
        "  prices        2026-01",
        f"  {at[0]} to {at[60]}  1h  rep_1 run 0",
        f"    ReplicaStarted  {at[0]}  {EXECUTOR}:16  recorded by the cluster",
        f"    ReplicaLost  {at[60]}  {EXECUTOR}:17  its last proof of life",
        "",
        "free  held  attempt 1  1m",
        "  line          lin_2",
        "  prices        2026-01",
        f"  {at[-1]} to {at[0]}  1m  rep_1",
        "    free: it was bound to a node and had not started, which costs nothing by prices 2026-01",
        f"  {at[60]} to {at[60]}  0s  rep_1 run 0",
        "    free: it ended as its user wished; the first 10s are free by prices 2026-01",
        "",
        f"  cut           {EXECUTOR}:17 up to {show.moment(stamp(NOON + 2 * HOUR))}",
        "  computed by   price book 1, arithmetic 1",
    ]
    assert asked(lab, "ExplainCharge") == {"owner": LAB}


@pytest.mark.parametrize(
    ("segment", "sentence"),
    [
        (
            api.Segment(state=api.BILLABLE_STATE_RUNNING, why="PLATFORM_WORK", price_book=1),
            "it is the platform's own work",
        ),
        (
            api.Segment(state=api.BILLABLE_STATE_BACKOFF, why="BACKOFF", price_book=1),
            "one run had ended and the next had not begun, which costs nothing by prices 2026-01",
        ),
        (
            api.Segment(state=api.BILLABLE_STATE_UNREACHABLE, why="OF_A_NEWER_ONE", price_book=2),
            "nobody knew whether it lived (of a newer one)",
        ),
    ],
)
def test_time_that_is_free_is_told_by_what_happened_then(
    segment: api.Segment, sentence: str
) -> None:
    assert bill.why(segment, [book()]) == sentence


def test_one_line_of_a_statement_is_explained_as_of_its_cut(
    lab: Platform, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lab.billed.explanation = explanation()
    kept = tmp_path / "kept.json"
    kept.write_text(show.to_json(show.plain(statement())))
    words = ["--line", "lin_1", "--cut", str(kept), "-o", "name"]
    assert run(["cost", "explain", LAB, *words]) == 0
    assert capsys.readouterr().out == "lin_1\nlin_3\nlin_2\n"
    found = asked(lab, "ExplainCharge")
    assert (found["line"], found["start_time"]) == ("lin_1", "2026-11-01T00:00:00Z")
    assert "sources" in str(found["cut"])


def test_what_was_never_metered_is_told_apart_from_what_never_was(
    lab: Platform, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["cost", "explain", "lab"]) == 0
    printed = capsys.readouterr()
    assert (printed.out, "has been metered" in printed.err) == ("", True)
    assert run(["cost", "explain", "lap"]) == 3
    assert "Did you mean lab?" in capsys.readouterr().err


def test_what_nobody_has_created_is_estimated(
    lab: Platform, capsys: pytest.CaptureFixture[str]
) -> None:
    lab.billed.estimate = api.EstimateCostResponse(
        currency="USD",
        rate_nanos=2_120_000_000,
        stopped_rate_nanos=0,
        worst_nanos=16_960_000_000,
        price_version="2026-01",
    )
    words = ["--gpu", "1", "--gpu-type", "A100-80GB", "--cpu", "4", "--memory", "32GiB"]
    bounds = ["--max-duration", "8h", "--max-cost", "20"]
    assert run(["cost", "estimate", *words, "--storage", "1GiB", *bounds]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "  running       2.12 USD an hour",
        "  stopped       0.00 USD an hour",
        "  at the most   16.96 USD an attempt",
        "  prices        2026-01",
    ]
    request = lab.sent("EstimateCost")[-1].request
    assert isinstance(request, api.EstimateCostRequest)
    (group,) = request.workload.groups
    assert (group.replicas, request.storage_bytes) == (1, 2**30)
    assert request.workload.max_duration.seconds == 8 * 3600
    assert request.workload.max_cost.nanos == 20 * 10**9
    assert group.resources == workload.Resources(
        gpu_type="A100-80GB", gpu_milli=1000, cpu_milli=4000, memory_bytes=2**35
    )
    assert run(["cost", "estimate"]) == 2


def test_a_stop_that_is_waited_for_ends_with_the_bill(
    lab: Platform, capsys: pytest.CaptureFixture[str]
) -> None:
    stopped = instances.Instance(
        name=LAB, status=instances.Status(state=instances.STATE_STOPPED), create_time=stamp(NOON)
    )
    change = instances.WatchInstancesResponse(change=1, instance=stopped)
    lab.watches.append([change])
    assert run(["instances", "stop", "lab", "--wait", "stopped"]) == 0
    *_, last = capsys.readouterr().out.splitlines()
    assert last == "lab  cost 14.70025 USD, and 0.000005 USD not settled yet"
    found = asked(lab, "GetCost")
    assert (found["owner"], found["start_time"]) == (LAB, "2026-11-24T12:00:00Z")
    lab.watches.append([change])
    assert run(["instances", "stop", "lab", "--wait", "stopped", "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["name"] == LAB
    assert run(["instances", "stop", "lab"]) == 0
    assert len(lab.sent("GetCost")) == 1


def test_a_deletion_tells_what_it_has_cost(
    lab: Platform, capsys: pytest.CaptureFixture[str]
) -> None:
    lab.billed.cost.total.accruing_nanos = 0
    assert run(["instances", "delete", "lab"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "lab  cost 14.70025 USD"


def test_a_deletion_is_done_also_where_billing_does_not_answer(
    lab: Platform, capsys: pytest.CaptureFixture[str]
) -> None:
    lab.turns.extend([lambda _: None, refuse(code_pb2.INTERNAL, "INTERNAL", "It broke.")])
    assert run(["instances", "delete", "lab"]) == 0
    printed = capsys.readouterr()
    assert printed.out == "lab  RUNNING\n"
    assert "What it has cost is not told: It broke." in printed.err


def client(platform: Platform) -> fermion.Client:
    return fermion.Client(address=platform.address, token="jwt", timeout=10.0)


def test_what_only_asks_is_asked_again(lab: Platform) -> None:
    lab.turns.extend([busy, lambda _: None, busy, lambda _: None, busy])
    with client(lab) as it:
        assert it.costs.get("acme").currency == "USD"
        assert it.costs.estimate("acme", workload.Workload()) == api.EstimateCostResponse()
        assert it.costs.explain(LAB) == api.ExplainChargeResponse()
    assert len(lab.sent("EstimateCost")) == 2


async def test_the_client_of_asyncio_does_the_same(lab: Platform) -> None:
    lab.billed.watches.append([answer(1, 1, 1)])
    lab.billed.books = [book()]
    lab.billed.usage.usages.add(replica_milliseconds=5)
    by = [api.GROUP_BY_LABEL]
    async with fermion.AsyncClient(address=lab.address, token="jwt") as it:
        assert (await it.costs.get("acme", by, label="team", owner=LAB)).currency == "USD"
        assert (await it.costs.usage("acme", by, label="team", end=NOON)).usages
        assert [one async for one in it.costs.watch("acme", NOON)] == [answer(1, 1, 1)]
        assert await it.costs.statement("acme", cut=api.Cut(algorithm=1)) == statement()
        assert await it.costs.explain(LAB, line="lin_1") == api.ExplainChargeResponse()
        assert (await it.prices.list()).price_books == [book()]
        assert (await it.prices.publish(book())).number == 2
    assert asked(lab, "GetUsage") == {
        "parent": "projects/acme",
        "group_by": ["GROUP_BY_LABEL"],
        "label": "team",
        "end_time": "2026-11-24T12:00:00Z",
    }


@pytest.mark.parametrize("project", ["nothing"])
def test_a_refusal_of_the_platform_is_the_clients(lab: Platform, project: str) -> None:
    lab.turns.append(refuse(code_pb2.NOT_FOUND, "PROJECT_NOT_FOUND", project=project))
    with client(lab) as it, pytest.raises(NotFound):
        it.costs.get(project)
