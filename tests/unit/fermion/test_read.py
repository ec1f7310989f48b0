"""How people write sizes, durations, ports and pairs."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from google.protobuf.duration_pb2 import Duration
from hypothesis import given
from hypothesis import strategies as st

from fermion.api.instances import v1 as api
from fermion.api.workload import v1 as workload
from fermion.cli import money, read, show
from fermion.errors import InvalidArgument


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("16GiB", 16 * 2**30),
        ("16Gi", 16 * 2**30),
        ("500M", 500_000_000),
        ("1.5 TiB", 3 * 2**39),
        ("0.1GB", 100_000_000),
        ("4096", 4096),
        ("7b", 7),
    ],
)
def test_sizes_are_read_as_people_write_them(text: str, size: int) -> None:
    assert read.size("--memory", text) == size


@pytest.mark.parametrize("text", ["", "GiB", "-1GiB", "1PiB", "1 2", "1e9", "٣GiB", "16GiBs"])
def test_what_is_no_size_is_refused_by_option_value_and_rule(text: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        read.size("--memory", text)
    assert caught.value.violations == (("--memory", "is no size"),)
    assert repr(text) in caught.value.message
    assert "16GiB" in caught.value.next_step


@pytest.mark.parametrize(
    ("text", "milli"), [("4", 4000), ("0.5", 500), ("250m", 250), ("1.001", 1001), ("0", 0)]
)
def test_cores_are_read_as_thousandths(text: str, milli: int) -> None:
    assert read.milli("--cpu", text) == milli


@pytest.mark.parametrize("text", ["", "m", "-1", "inf", "nan", "1.0001", "0.5m", "1e3", "four"])
def test_what_is_no_number_of_thousandths_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument, match="--cpu"):
        read.milli("--cpu", text)


@pytest.mark.parametrize(
    ("text", "span"),
    [
        ("8h", timedelta(hours=8)),
        ("90m", timedelta(minutes=90)),
        ("1h30m", timedelta(minutes=90)),
        ("1.5h", timedelta(minutes=90)),
        ("250ms", timedelta(milliseconds=250)),
        ("30d", timedelta(days=30)),
    ],
)
def test_durations_are_read_as_people_write_them(text: str, span: timedelta) -> None:
    assert read.duration("--max-duration", text) == span


@pytest.mark.parametrize("text", ["", "8", "h", "8 h", "-8h", "8h30", "999999999999999d"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument, match="--max-duration"):
        read.duration("--max-duration", text)


@given(st.integers(min_value=1, max_value=10**9))
def test_a_duration_that_is_shown_is_read_as_the_same(seconds: int) -> None:
    shown = show.span(Duration(seconds=seconds))
    assert read.duration("--ttl", shown) == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    ("text", "nanos", "currency"),
    [
        ("2.50", 2_500_000_000, ""),
        ("3", 3 * 10**9, ""),
        ("0.1", 100_000_000, ""),
        ("0.000000001", 1, ""),
        # A float would make 9223372036.854775 of it.
        ("9223372036.854775807 EUR", 2**63 - 1, "EUR"),
        ("12USD", 12 * 10**9, "USD"),
    ],
)
def test_money_is_read_to_the_billionth(text: str, nanos: int, currency: str) -> None:
    assert read.money("--max-cost", text) == workload.Money(currency=currency, nanos=nanos)


@pytest.mark.parametrize(
    "text", ["", "$2", "-1", "2,50", "1e3", "0.0000000001", "2 usd", "9223372036.854775808", "nan"]
)
def test_what_is_no_amount_of_money_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument, match="--max-cost"):
        read.money("--max-cost", text)


@given(st.integers(min_value=0, max_value=2**63 - 1), st.sampled_from(["", "USD", "EUR"]))
def test_money_that_is_shown_is_read_as_the_same(nanos: int, currency: str) -> None:
    shown = money.exact(nanos, currency)
    assert read.money("--max-cost", shown) == workload.Money(currency=currency, nanos=nanos)


@pytest.mark.parametrize(
    ("text", "port"),
    [
        ("web:8000", workload.Port(name="web", number=8000, protocol=workload.Port.PROTOCOL_HTTP)),
        ("rpc:50051/grpc", workload.Port(name="rpc", number=50051, protocol=2)),
        ("ssh:22/tcp", workload.Port(name="ssh", number=22, protocol=3)),
    ],
)
def test_ports_are_read_with_their_protocol(text: str, port: workload.Port) -> None:
    assert read.port(text) == port


@pytest.mark.parametrize("text", ["", "web", ":80", "web:", "web:http", "web:80/udp", "web:999999"])
def test_what_is_no_port_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument, match="--port"):
        read.port(text)


def test_a_pair_keeps_equals_signs_in_its_value() -> None:
    assert read.pair("--env", "OPTS=--a=b") == ("OPTS", "--a=b")


@pytest.mark.parametrize("text", ["", "team", "=vision"])
def test_what_is_no_pair_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument, match="--label"):
        read.pair("--label", text)


@pytest.mark.parametrize(
    "name",
    [
        "HF_TOKEN",
        "TOKEN",
        "GITHUBTOKEN",
        "API_KEY",
        "APIKEY",
        "AWS_ACCESS_KEY_ID",
        "SSH_KEYS",
        "CLIENT_SECRET",
        "db_password",
        "PGPASSWD",
        "AZURE_CREDENTIALS",
    ],
)
def test_a_name_that_sounds_like_a_secret_is_refused(name: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        read.must_be_plain("--env", name)
    assert "--plain-env" in caught.value.next_step


@pytest.mark.parametrize(
    "name", ["TOKENIZERS_PARALLELISM", "MAX_TOKENS", "KEYBOARD", "CUDA_VISIBLE_DEVICES", "MODE"]
)
def test_a_name_that_merely_looks_like_one_is_taken(name: str) -> None:
    read.must_be_plain("--env", name)


def test_a_moment_is_a_time_or_a_span_ago() -> None:
    at = datetime(2026, 11, 24, 8, tzinfo=UTC)
    assert read.moment("--as-of", "2026-11-24T08:00:00Z") == at
    assert read.moment("--as-of", "2026-11-24T09:00:00+01:00") == at
    ago = datetime.now(UTC) - read.moment("--as-of", "10m")
    assert timedelta(minutes=9) < ago < timedelta(minutes=11)


@pytest.mark.parametrize("text", ["", "yesterday", "10", "2026-13-01", "99999999d"])
def test_what_is_no_moment_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument, match="--as-of"):
        read.moment("--as-of", text)


@pytest.mark.parametrize(
    "text", ["spec: {kind: KIND_NONE}", "spek: 1", "- a", "a: [", "spec: {image: 7}", "'text'"]
)
def test_a_file_that_is_no_instance_is_refused_by_its_name(tmp_path: Path, text: str) -> None:
    file = tmp_path / "lab.yaml"
    file.write_text(text)
    with pytest.raises(InvalidArgument, match=r"lab\.yaml.* is no Instance"):
        read.message(file, api.Instance(), "example")


def test_a_file_that_is_not_there_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="No such file"):
        read.message(tmp_path / "none.yaml", api.Instance(), "example")
