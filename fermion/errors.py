"""What a call may raise: one class per kind of answer, each with reason, fields and what to do next."""

from __future__ import annotations

from collections.abc import Mapping


class Error(Exception):
    """
    The platform said no, or nothing.

    `reason` is a stable code and `arguments` what its sentence needs; `violations` are pairs of a
    field's path and the rule that it breaks; `request_id` is what an operator finds it by.
    """

    def __init__(
        self,
        message: str,
        *,
        reason: str = "",
        arguments: Mapping[str, str] | None = None,
        violations: tuple[tuple[str, str], ...] = (),
        next_step: str = "",
        request_id: str = "",
        retry_seconds: float = 0.0,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason
        self.arguments = dict(arguments or {})
        self.violations = violations
        self.next_step = next_step
        self.request_id = request_id
        # How long the platform asks its callers to wait before they send it again; 0 where it does not.
        self.retry_seconds = retry_seconds


class InvalidArgument(Error):
    """The request itself is wrong; `violations` say which fields."""


class NotFound(Error):
    """There is no such thing."""


class Denied(Error):
    """You are known and may not do this."""


class Unauthenticated(Error):
    """It is not known who you are."""


class AlreadyExists(Error):
    """There is one of that name already."""


class Conflict(Error):
    """Somebody else was faster; read again, decide again."""


class FailedPrecondition(Error):
    """Its present state does not allow it."""


class Timeout(Error):
    """It took too long; a mutation may have happened."""


class Unavailable(Error):
    """It cannot be reached, or not now; a mutation with reason OUTCOME_UNKNOWN may have happened."""


class WorkloadFailed(Error):
    """What was waited for failed by itself."""
