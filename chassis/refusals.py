"""The ways to say no: few classes, many reasons, so that every answer tells what to do next."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class Violation:
    """One field that broke a rule: its path in the request, the rule, and what would be right."""

    field: str
    description: str
    rule: str = ""


class Refused(Exception):
    """The present state does not allow it; asking again will not help."""

    code: ClassVar[str] = "FAILED_PRECONDITION"

    def __init__(
        self,
        reason: str,
        message: str,
        *,
        violations: tuple[Violation, ...] = (),
        next_step: str = "",
        **arguments: str,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.arguments = arguments
        self.violations = violations
        self.next_step = next_step


class Missing(Refused):
    """There is no such thing, or the caller may not know of it."""

    code = "NOT_FOUND"


class Exists(Refused):
    """There is one of that name already."""

    code = "ALREADY_EXISTS"


class Invalid(Refused):
    """The request itself is wrong; `violations` say which fields."""

    code = "INVALID_ARGUMENT"


class Denied(Refused):
    """The caller is known and may not do this."""

    code = "PERMISSION_DENIED"


class Unauthenticated(Refused):
    """It is not known who calls."""

    code = "UNAUTHENTICATED"


class Conflict(Refused):
    """Somebody else was faster; read again and decide again."""

    code = "ABORTED"


class Expired(Refused):
    """The place to go on from is not there any more; begin anew."""

    code = "OUT_OF_RANGE"


class Exhausted(Refused):
    """Too much at once; the same call may go through after `retry_seconds`."""

    code = "RESOURCE_EXHAUSTED"
    retry_seconds: ClassVar[float] = 0.5


class Unavailable(Refused):
    """Something that is needed cannot be reached; the same call may go through after `retry_seconds`."""

    code = "UNAVAILABLE"
    retry_seconds: ClassVar[float] = 0.5


class OutcomeUnknown(Refused):
    """It may have happened; asking again with the same request_id tells."""

    code = "UNKNOWN"
