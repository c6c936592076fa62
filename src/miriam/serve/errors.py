"""What a client is told when a request cannot be served, whatever the protocol."""

from __future__ import annotations

from enum import StrEnum

from miriam.errors import ClosedError, InputError, MiriamError, QueueFullError, RequestTimeoutError

__all__ = ["ServiceError", "Status", "as_service_error"]


class Status(StrEnum):
    """Kinds of failure; each protocol has its own codes for them."""

    INVALID = "invalid"
    UNAUTHENTICATED = "unauthenticated"
    FORBIDDEN = "forbidden"
    NOT_FOUND = "not_found"
    TOO_LARGE = "too_large"
    EXHAUSTED = "exhausted"
    DEADLINE = "deadline"
    UNAVAILABLE = "unavailable"
    UNSUPPORTED = "unsupported"
    INTERNAL = "internal"


class ServiceError(MiriamError):
    """A request cannot be served.

    Attributes
    ----------
    status
        What kind of failure it is: who could do something about it, and what.
    """

    def __init__(self, status: Status | str, message: str) -> None:
        super().__init__(message)
        self.status = Status(status)

    def __reduce__(self) -> tuple[type[ServiceError], tuple[Status, str]]:
        return ServiceError, (self.status, str(self))


_STATUSES: tuple[tuple[type[MiriamError], Status], ...] = (
    (InputError, Status.INVALID),
    (QueueFullError, Status.EXHAUSTED),
    (RequestTimeoutError, Status.DEADLINE),
    (ClosedError, Status.UNAVAILABLE),
)


def as_service_error(error: BaseException) -> ServiceError:
    """The error of a runtime as a client is told it."""
    if isinstance(error, ServiceError):
        return error
    status = next((status for kind, status in _STATUSES if isinstance(error, kind)), Status.INTERNAL)
    return ServiceError(status, str(error) or type(error).__name__)
