"""What the platform answers becomes an exception that says all of it, and an exit code."""

from __future__ import annotations

import grpc
import pytest
from google.rpc import code_pb2

import fermion
from fermion import errors
from fermion.cli.app import exit_code, say
from tests.unit.fermion.platform import Platform, Turn, refuse

LAB = "projects/acme/instances/lab"


def caught(platform: Platform, turn: Turn) -> errors.Error:
    """What a client raises when the platform does this."""
    platform.turns.append(turn)
    client = fermion.Client(address=platform.address, timeout=1)
    with client, pytest.raises(errors.Error) as found:
        client.instances.get(LAB)
    return found.value


@pytest.mark.parametrize(
    ("code", "kind", "exit_with"),
    [
        (code_pb2.INVALID_ARGUMENT, errors.InvalidArgument, 2),
        (code_pb2.NOT_FOUND, errors.NotFound, 3),
        (code_pb2.PERMISSION_DENIED, errors.Denied, 4),
        (code_pb2.UNAUTHENTICATED, errors.Unauthenticated, 4),
        (code_pb2.ALREADY_EXISTS, errors.AlreadyExists, 5),
        (code_pb2.ABORTED, errors.Conflict, 5),
        (code_pb2.FAILED_PRECONDITION, errors.FailedPrecondition, 5),
        (code_pb2.OUT_OF_RANGE, errors.FailedPrecondition, 5),
        (code_pb2.DEADLINE_EXCEEDED, errors.Timeout, 6),
        (code_pb2.INTERNAL, errors.Error, 1),
    ],
)
def test_each_code_is_a_class_and_an_exit_code(
    platform: Platform, code: int, kind: type[errors.Error], exit_with: int
) -> None:
    found = caught(platform, refuse(code, "SOME_REASON"))
    assert type(found) is kind
    assert exit_code(found) == exit_with


def test_a_failed_workload_has_its_own_exit_code() -> None:
    assert exit_code(errors.WorkloadFailed("It failed.")) == 7


def test_all_that_a_refusal_says_arrives(platform: Platform) -> None:
    turn = refuse(
        code_pb2.INVALID_ARGUMENT,
        "FIELD_INVALID",
        "gpu is 9.",
        violations=(("instance.spec.resources.gpu_milli", "must be at most 8000"),),
        next_step="Ask for fewer.",
        field="gpu",
    )
    found = caught(platform, turn)
    assert found.message == "gpu is 9."
    assert found.reason == "FIELD_INVALID"
    assert found.arguments == {"field": "gpu"}
    assert found.next_step == "Ask for fewer."
    assert found.violations == (("instance.spec.resources.gpu_milli", "must be at most 8000"),)
    assert found.request_id == "req-1"


def test_an_answer_without_details_still_has_a_request_id(platform: Platform) -> None:
    def turn(context: grpc.ServicerContext) -> None:
        context.abort(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")

    found = caught(platform, turn)
    assert platform.address in found.message
    assert found.request_id == platform.calls[0].metadata["x-request-id"]


def test_a_server_that_is_too_slow_is_a_timeout(platform: Platform) -> None:
    def turn(context: grpc.ServicerContext) -> None:
        context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "")

    found = caught(platform, turn)
    assert isinstance(found, errors.Timeout)
    assert "doctor" in found.next_step


def test_what_the_transport_does_not_even_read_is_told_as_too_large(platform: Platform) -> None:
    client = fermion.Client(address=platform.address, timeout=5)
    with client, pytest.raises(errors.InvalidArgument) as found:
        # What serves here takes gRPC's 4 MiB.
        client.instances.get(f"projects/acme/instances/{'x' * 5_000_000}")
    assert found.value.reason == "MESSAGE_TOO_LARGE"
    assert int(found.value.arguments["bytes"]) > 5_000_000
    assert platform.calls == []


def test_people_read_field_option_rule_next_step_and_request_id(
    capsys: pytest.CaptureFixture[str],
) -> None:
    code = say(
        errors.InvalidArgument(
            "gpu is 9.",
            reason="FIELD_INVALID",
            violations=(("instance.spec.resources.gpu_milli", "must be at most 8000"),),
            next_step="Ask for fewer.",
            request_id="req-1",
        )
    )
    printed = capsys.readouterr()
    assert code == 2
    assert printed.out == ""
    assert printed.err.splitlines() == [
        "error: gpu is 9.",
        "  instance.spec.resources.gpu_milli (--gpu): must be at most 8000",
        "  what to do: Ask for fewer.",
        "  reason: FIELD_INVALID   request id: req-1",
    ]


def test_a_bug_of_ours_is_one_line_and_exits_with_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert say(ZeroDivisionError("division by zero")) == 1
    assert "error: ZeroDivisionError: division by zero" in capsys.readouterr().err
