"""Refusals become statuses that speak and fit."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncGenerator

import grpc
import pytest
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from chassis import refusals
from chassis.refusals import Exhausted, Invalid, Missing, Refused, Unavailable, Violation
from chassis.rpc import Gatekeeper, door, to_status
from chassis.telemetry import Metrics
from tests.people import People

# Clients refuse trailing metadata beyond it; base64 and what else is in there take their part.
METADATA_BYTES_MAX = 8192


def unpacked(status: status_pb2.Status) -> dict[str, Message]:
    found: dict[str, Message] = {}
    for detail in status.details:
        name = detail.type_url.rsplit(".", 1)[-1]
        message = getattr(error_details_pb2, name)()
        assert detail.Unpack(message)
        found[name] = message
    return found


def test_every_refusal_has_a_code_of_grpc() -> None:
    kinds = [
        kind
        for kind in vars(refusals).values()
        if isinstance(kind, type) and issubclass(kind, Refused)
    ]
    assert len(kinds) == 11
    for kind in kinds:
        status = to_status(kind("REASON", "Why."))
        assert status.code == grpc.StatusCode[kind.code].value[0]
        assert unpacked(status)["ErrorInfo"] == error_details_pb2.ErrorInfo(
            reason="REASON", domain="fermion"
        )


def test_a_refusal_tells_reason_arguments_and_what_to_do_next() -> None:
    refusal = Invalid(
        "FIELD_INVALID",
        "x is wrong.",
        violations=(Violation("x", "must be y", "string.in"),),
        next_step="Say y.",
        field="x",
    )
    found = unpacked(to_status(refusal))
    info, bad = found["ErrorInfo"], found["BadRequest"]
    assert isinstance(info, error_details_pb2.ErrorInfo)
    assert dict(info.metadata) == {"field": "x", "next_step": "Say y."}
    assert isinstance(bad, error_details_pb2.BadRequest)
    assert [(one.field, one.description, one.reason) for one in bad.field_violations] == [
        ("x", "must be y", "string.in")
    ]


@pytest.mark.parametrize("kind", [Unavailable, Exhausted])
def test_what_may_go_through_later_tells_when(kind: type[Refused]) -> None:
    found = unpacked(to_status(kind("REASON", "Not now.")))
    retry = found["RetryInfo"]
    assert isinstance(retry, error_details_pb2.RetryInfo)
    assert retry.retry_delay.ToMilliseconds() == 500


def test_what_is_missing_is_named_as_a_resource() -> None:
    found = unpacked(to_status(Missing("NOT_THERE", "None.", instance="projects/a/instances/b")))
    assert found["ResourceInfo"] == error_details_pb2.ResourceInfo(
        resource_type="instance", resource_name="projects/a/instances/b"
    )


@pytest.mark.parametrize("letter", ["x", "ж", "云", "\U0001f600", "\0"])
@pytest.mark.parametrize("count", [1, 20, 500])
@pytest.mark.parametrize("length", [10, 399, 5000])
def test_a_status_fits_into_what_clients_take(letter: str, count: int, length: int) -> None:
    text = letter * length
    violations = tuple(Violation(text, text, "string.max_len") for _ in range(count))
    arguments = {f"a{place}": text for place in range(count)}
    refusal = Missing("REASON", text, violations=violations, next_step=text, **arguments)
    status = to_status(refusal)
    # In the trailing metadata the details are base64 and the message is percent-encoded.
    size = len(status.SerializeToString()) * 4 / 3
    size += sum(1 if 32 <= byte < 127 else 3 for byte in status.message.encode())
    assert size < METADATA_BYTES_MAX
    assert "BadRequest" in unpacked(status)


@pytest.mark.parametrize("turns", range(5))
async def test_a_refusal_of_which_nobody_hears_because_he_went_is_no_fault(turns: int) -> None:
    """The caller goes at each of the moments at which the stream is just refused."""

    async def refused() -> AsyncGenerator[Message, None]:
        raise Refused("STATE_WRONG", "Not now.")
        yield

    told: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: told.append(context))
    keeper = Gatekeeper(door(People().callers(), (), {}, Metrics()))
    passed = keeper._until_closed(refused())
    reading = asyncio.ensure_future(anext(passed))
    for _ in range(turns):
        await asyncio.sleep(0)
    reading.cancel()
    await asyncio.wait((reading,))
    if not reading.cancelled():
        assert isinstance(reading.exception(), Refused)
    await passed.aclose()
    # A task warns when it is let go of.
    del reading, passed
    gc.collect()
    await asyncio.sleep(0)
    assert told == []
