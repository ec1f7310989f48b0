"""What a call may raise: one class per kind of answer, each with reason, fields and what to do next."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, cast

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status


class Error(Exception):
    """The platform said no, or nothing."""

    exit_code: ClassVar[int] = 1

    def __init__(
        self,
        message: str,
        *,
        reason: str = "",
        arguments: Mapping[str, str] | None = None,
        violations: tuple[tuple[str, str], ...] = (),
        request_id: str = "",
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason
        self.arguments = dict(arguments or {})
        # (path of the field, the rule that it broke)
        self.violations = violations
        self.request_id = request_id

    @property
    def next_step(self) -> str:
        """What to do about it, as the platform says."""
        return self.arguments.get("next_step", "")


class InvalidArgument(Error):
    """The request itself is wrong."""

    exit_code = 2


class NotFound(Error):
    """There is no such thing."""

    exit_code = 3


class Denied(Error):
    """You are known and may not do this."""

    exit_code = 4


class Unauthenticated(Error):
    """It is not known who you are."""

    exit_code = 4


class AlreadyExists(Error):
    """There is one of that name already."""

    exit_code = 5


class Conflict(Error):
    """Somebody else was faster; read again, decide again."""

    exit_code = 5


class FailedPrecondition(Error):
    """Its present state does not allow it."""

    exit_code = 5


class Timeout(Error):
    """It took too long."""

    exit_code = 6


class Unavailable(Error):
    """It cannot be reached, or not now."""

    exit_code = 6


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


def from_call(error: grpc.RpcError, address: str) -> Error:
    """Read the status of a failed call."""
    call = cast(grpc.Call, error)
    code, text = call.code(), call.details() or ""
    status = rpc_status.from_call(call)
    if status is None:
        if code == grpc.StatusCode.UNAVAILABLE:
            return Unavailable(
                f"Nothing answers at {address}.",
                reason="SERVER_NOT_THERE",
                arguments={
                    "next_step": "Start it with `fermion up`, or choose another one with "
                    "`fermion contexts use`."
                },
            )
        return _CLASSES.get(code, Error)(text or code.name, reason=code.name)
    reason, request_id = "", ""
    arguments: dict[str, str] = {}
    violations: list[tuple[str, str]] = []
    for detail in status.details:
        info = error_details_pb2.ErrorInfo()
        bad = error_details_pb2.BadRequest()
        request = error_details_pb2.RequestInfo()
        if detail.Unpack(info):
            reason, arguments = info.reason, dict(info.metadata)
        elif detail.Unpack(bad):
            violations += [(found.field, found.description) for found in bad.field_violations]
        elif detail.Unpack(request):
            request_id = request.request_id
    return _CLASSES.get(code, Error)(
        status.message or text,
        reason=reason,
        arguments=arguments,
        violations=tuple(violations),
        request_id=request_id,
    )
