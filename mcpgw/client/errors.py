"""The one error tree of the client.

ClientError
├── NotReachable        not_reachable      no gateway answers
│   └── NotAGateway     not_a_gateway      something else does
├── ConnectionLost      connection_lost    the connection ended while it was needed
├── TokenUnavailable    token_unavailable  the callable that makes tokens has failed
├── Refused             auth_required, auth_failed, token_expired, permission_denied
└── RequestFailed       every other code of the wire contract, section 5
"""

from collections.abc import Mapping
from typing import Any


class ClientError(Exception):
    """What a request to a gateway can end with.

    `code` is stable; `temporary` says whether the same request may succeed later, and `retry_after` in how
    many seconds, where that is known; `details` is JSON.
    """

    def __init__(
        self,
        message: str,
        *,
        code: str,
        temporary: bool = False,
        retry_after: float | None = None,
        details: Any = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.temporary = temporary
        self.retry_after = retry_after
        self.details = details


class NotReachable(ClientError):
    """No gateway answers at `url`; `reason` is what the operating system says."""

    def __init__(self, url: str, reason: str, *, retry_after: float | None = None) -> None:
        super().__init__(
            f"no gateway answers at {url} ({reason})",
            code="not_reachable",
            temporary=True,
            retry_after=retry_after,
        )
        self.url = url
        self.reason = reason


class NotAGateway(NotReachable):
    """Something answers at `url`, and not as a gateway does."""

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(url, reason)
        self.message = f"what answers at {url} is no gateway ({reason})"
        self.args = (self.message,)
        self.code = "not_a_gateway"
        self.temporary = False


class ConnectionLost(ClientError):
    """The connection ended before the answer was there; what was asked may have been done.

    `close_code` is the WebSocket's, where there was one (RFC 6455 section 7.4).
    """

    def __init__(
        self,
        message: str,
        *,
        close_code: int | None = None,
        temporary: bool = True,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message, code="connection_lost", temporary=temporary, retry_after=retry_after)
        self.close_code = close_code


class TokenUnavailable(ClientError):
    """The callable that makes tokens has raised; that is the cause of this error."""

    def __init__(self, reason: str, *, temporary: bool) -> None:
        super().__init__(f"no token could be made: {reason}", code="token_unavailable", temporary=temporary)


class Refused(ClientError):
    """The credentials are missing, do not hold, or do not allow the request."""


class RequestFailed(ClientError):
    """The gateway answered a request with an error."""


_REFUSALS = frozenset({"auth_required", "auth_failed", "token_expired", "permission_denied"})


def error_from(data: Mapping[str, Any], message: object) -> ClientError:
    """The exception for the members of an ``error`` frame, or of a REST error, with its `message`.

    What is missing or of a wrong type is left out, so that every gateway's answer becomes an exception.
    """
    code = data.get("code")
    retry_after = data.get("retryAfterMs")
    known = code if isinstance(code, str) and code else "internal_error"
    kind = Refused if known in _REFUSALS else RequestFailed
    return kind(
        message if isinstance(message, str) else known,
        code=known,
        temporary=data.get("temporary") is True,
        retry_after=retry_after / 1000 if isinstance(retry_after, int | float) else None,
        details=data.get("details"),
    )


def outcome_unknown(what: str) -> RequestFailed:
    """What was asked may have been done or not, and nobody knows any more."""
    return RequestFailed(f"the connection was lost, and it is not known {what}", code="outcome_unknown")


def renewed(error: Exception) -> Exception:
    """An equal error without a traceback: one object for many tasks would collect the tracebacks of all."""
    if not isinstance(error, ClientError):
        return error
    copy = type(error).__new__(type(error))
    copy.args = error.args
    copy.__dict__.update(error.__dict__)
    copy.__cause__ = error.__cause__
    return copy
