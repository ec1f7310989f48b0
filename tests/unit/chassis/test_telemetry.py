"""What a process says of itself: lines with ids, traces that are traces, settings that are checked."""

from __future__ import annotations

import json
import logging
import socket
import sys

import pytest
from grpc._cython.cygrpc import ExecuteBatchError
from prometheus_client import generate_latest

from chassis import config, telemetry
from chassis.config import Common
from chassis.refusals import Invalid, Unavailable
from chassis.telemetry import (
    REQUEST_ID,
    ConsoleFormatter,
    Figure,
    JsonFormatter,
    Kind,
    Metrics,
    Sample,
    concerns_us,
    current_traceparent,
)

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def record(message: str, *, failed: bool = False) -> logging.LogRecord:
    found: object = None
    if failed:
        try:
            raise KeyError(message)
        except KeyError:
            found = sys.exc_info()
    return logging.LogRecord("chassis.test", logging.INFO, "", 1, message, None, found)  # type: ignore[arg-type]


def test_a_line_tells_the_request_it_belongs_to() -> None:
    token = REQUEST_ID.set("req-1")
    line = json.loads(JsonFormatter().format(record("said\nmore")))
    text = ConsoleFormatter().format(record("said"))
    REQUEST_ID.reset(token)
    assert (line["level"], line["logger"], line["message"], line["request_id"]) == (
        "INFO",
        "chassis.test",
        "said\nmore",
        "req-1",
    )
    assert text.endswith("INFO    chassis.test: said  [req-1]")
    assert "request_id" not in json.loads(JsonFormatter().format(record("said")))


def test_a_json_line_is_one_line_also_with_an_exception() -> None:
    text = JsonFormatter().format(record("said", failed=True))
    assert "\n" not in text
    assert "KeyError" in json.loads(text)["exception"]


@pytest.mark.parametrize(
    ("logger", "raised", "told"),
    [
        ("grpc._cython.cygrpc", ExecuteBatchError("Failed"), False),
        ("grpc._cython.cygrpc", KeyError("a"), True),
        ("chassis.rpc", ExecuteBatchError("Failed"), True),
    ],
)
def test_who_goes_away_before_he_took_all_is_no_fault(
    logger: str, raised: Exception, told: bool
) -> None:
    said = logging.LogRecord(
        logger, logging.ERROR, "", 1, "raised", None, (type(raised), raised, None)
    )
    assert concerns_us(said) == told
    assert concerns_us(record("said"))


def test_a_trace_of_the_callers_is_kept() -> None:
    assert current_traceparent({"traceparent": TRACE}) == TRACE


@pytest.mark.parametrize(
    "text",
    [
        "",
        "rubbish",
        TRACE + "-more",
        TRACE.upper(),
        "00-" + "0" * 32 + "-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c-" + "0" * 16 + "-01",
    ],
)
def test_what_is_no_trace_is_replaced_by_one(text: str) -> None:
    found = current_traceparent({"traceparent": text})
    assert found != text
    # Ours, given back, is taken for one.
    assert current_traceparent({"traceparent": found}) == found


@pytest.mark.parametrize(
    ("variable", "value"),
    [("FERMION_LOG_FORMAT", "xml"), ("FERMION_LOG_LEVEL", "LOUD"), ("FERMION_TRACES", "carrier")],
)
def test_a_wrong_setting_is_named(variable: str, value: str) -> None:
    settings = config.load(Common, {variable: value})
    with pytest.raises(Invalid) as error:
        start(settings)
    assert error.value.arguments["variable"] == variable


def start(settings: Common) -> None:
    telemetry.start_traces(settings, "test")
    telemetry.start_logs(settings)


@pytest.mark.parametrize("listen", ["nowhere", "127.0.0.1:", "127.0.0.1:99999", "300.0.0.1:80"])
def test_a_metrics_address_that_is_none_is_named(listen: str) -> None:
    with pytest.raises(Invalid) as error:
        Metrics().serve(listen)
    assert error.value.arguments == {"variable": "FERMION_METRICS_LISTEN", "value": listen}


def test_a_figure_is_read_when_it_is_asked_for() -> None:
    metrics, position = Metrics(), 1.0
    figure = Figure("fermion_test", "A test.", ("of",))
    metrics.show((figure,), lambda: [Sample(figure, ("x",), position)])
    assert metrics.registry.get_sample_value("fermion_test", {"of": "x"}) == 1.0
    position = 2.0
    assert metrics.registry.get_sample_value("fermion_test", {"of": "x"}) == 2.0
    assert [sample.value for sample in metrics.read()] == [2.0]


def test_a_figure_that_several_parts_show_is_told_once() -> None:
    metrics = Metrics()
    figure = Figure("fermion_test_total", "A test.", ("of",), Kind.COUNTER)
    metrics.show((figure,), lambda: [Sample(figure, ("x",), 1)])
    metrics.show((figure,), lambda: [Sample(figure, ("y",), 2)])
    text = generate_latest(metrics.registry).decode()
    assert text.count("# TYPE fermion_test_total counter") == 1
    assert 'fermion_test_total{of="x"} 1.0\nfermion_test_total{of="y"} 2.0\n' in text


def test_a_journal_shows_zeros_before_its_first_commit() -> None:
    metrics = Metrics()
    metrics.journal("sample/0")
    for figure in ("facts_total", "commands_total", "batch_commands_count"):
        found = metrics.registry.get_sample_value(
            f"fermion_journal_{figure}", {"journal": "sample/0"}
        )
        assert found == 0


def test_a_metrics_port_that_is_taken_may_be_free_later() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(Unavailable) as error:
        Metrics().serve(f"127.0.0.1:{other.getsockname()[1]}")
    assert error.value.reason == "LISTEN_FAILED"


def test_commits_are_counted_by_journal() -> None:
    metrics = Metrics()
    metrics.journal("sample/0").committed(3, 5, 0)
    labels = {"journal": "sample/0"}
    value = metrics.registry.get_sample_value
    assert value("fermion_journal_commands_total", labels) == 3
    assert value("fermion_journal_facts_total", labels) == 5
    assert value("fermion_journal_batch_commands_count", labels) == 1
