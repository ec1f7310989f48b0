"""What a failed call came to, read from gRPC's status; apart from the errors, which need no gRPC."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import cast

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from fermion.errors import (
    AlreadyExists,
    Conflict,
    Denied,
    Error,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Timeout,
    Unauthenticated,
    Unavailable,
)

_DETAILS = "grpc-status-details-bin"
# How gRPC says that it did not even read what was sent.
_TOO_LARGE = re.compile(r"SERVER: Received message larger than max \((\d+) vs\. (\d+)\)")

_CLASSES: Mapping[grpc.StatusCode, type[Error]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidArgument,
    grpc.StatusCode.OUT_OF_RANGE: FailedPrecondition,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.PERMISSION_DENIED: Denied,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.ALREADY_EXISTS: AlreadyExists,
    grpc.StatusCode.ABORTED: Conflict,
    grpc.StatusCode.FAILED_PRECONDITION: FailedPrecondition,
    grpc.StatusCode.DEADLINE_EXCEEDED: Timeout,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Unavailable,
}


def from_call(error: grpc.RpcError, address: str, request_id: str = "") -> Error:
    """
    Read the status of a failed call.

    `address` is where it went, and `request_id` what it was sent with: both for answers that
    do not come from the platform and so name neither.
    """
    code, text = error.code(), error.details() or ""
    status = _status(error)
    if status is None:
        return _wordless(code, text, address, request_id)
    info = error_details_pb2.ErrorInfo()
    bad = error_details_pb2.BadRequest()
    retry = error_details_pb2.RetryInfo()
    asked = error_details_pb2.RequestInfo(request_id=request_id)
    for detail in status.details:
        for known in (info, bad, retry, asked):
            detail.Unpack(known)
    arguments = dict(info.metadata)
    return _class(code, info.reason)(
        status.message or text,
        reason=info.reason,
        next_step=arguments.pop("next_step", ""),
        arguments=arguments,
        violations=tuple((found.field, found.description) for found in bad.field_violations),
        request_id=asked.request_id,
        retry_seconds=retry.retry_delay.ToMicroseconds() / 1e6,
    )


def _status(error: grpc.RpcError) -> status_pb2.Status | None:
    trailing = cast(Iterable[tuple[str, str | bytes]], error.trailing_metadata() or ())
    for key, value in trailing:
        if key == _DETAILS and isinstance(value, bytes):
            try:
                return status_pb2.Status.FromString(value)
            except DecodeError:
                return None
    return None


def _class(code: grpc.StatusCode, reason: str) -> type[Error]:
    if reason == "OUTCOME_UNKNOWN":
        return Unavailable
    return _CLASSES.get(code, Error)


def _wordless(code: grpc.StatusCode, text: str, address: str, request_id: str) -> Error:
    """Make sense of an answer that is gRPC's own, not the platform's."""
    if code is grpc.StatusCode.UNAVAILABLE:
        return Unavailable(
            f"Nothing answers at {address}.",
            reason="SERVER_NOT_THERE",
            arguments={"address": address},
            next_step="Start it with `fermion up`, or choose another one with "
            "`fermion contexts use`.",
            request_id=request_id,
        )
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return Timeout(
            f"{address} did not answer in time.",
            reason="DEADLINE_EXCEEDED",
            next_step="Ask again with a longer timeout; `fermion doctor` looks for the cause.",
            request_id=request_id,
        )
    too_large = _TOO_LARGE.search(text)
    if too_large is not None:
        return InvalidArgument(
            f"The request is {too_large[1]} bytes, and the platform takes fewer.",
            reason="MESSAGE_TOO_LARGE",
            arguments={"bytes": too_large[1]},
            next_step="Send less at once, or name what is large instead of sending it.",
            request_id=request_id,
        )
    elsewhere = (
        "Does the service answer elsewhere? `fermion contexts set NAME --service-address "
        "SERVICE=HOST:PORT` says where; or client and platform are of different versions."
    )
    return _class(code, "")(
        f"{address} answers {code.name}: {text}" if text else f"{address} answers {code.name}.",
        reason=code.name,
        next_step=elsewhere if code is grpc.StatusCode.UNIMPLEMENTED else "",
        request_id=request_id,
    )
