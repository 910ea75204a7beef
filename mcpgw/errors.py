"""The one error tree of the gateway, its stable codes, and the WebSocket close codes.

    GatewayError
    ├── ParseError            parse_error            the text is not a frame
    ├── UnknownType           unknown_type           no such frame type
    ├── InvalidParams         invalid_params         a frame or a tool's arguments break their schema
    ├── AuthRequired          auth_required          no credentials were given yet
    ├── AuthFailed            auth_failed            the credentials do not hold
    │   └── TokenExpired      token_expired          … because their time is over
    ├── PermissionDenied      permission_denied      the role or scope does not allow it
    ├── NotFound
    │   ├── ServerNotFound    server_not_found       no such backend server
    │   ├── ToolNotFound      tool_not_found         no such tool on that server
    │   ├── UnknownChannel    unknown_channel        no such channel
    │   ├── CatalogNotFound   not_found              over HTTP: no such catalog, or no such entry of one
    │   └── UnknownCall       unknown_call           no open call has this id
    ├── DuplicateId           duplicate_id           a call with this id is open
    ├── Conflict              conflict               over HTTP: what is to be changed stands elsewhere
    │   └── PreconditionFailed  …                    … or has changed meanwhile (If-Match)
    ├── ServerUnavailable     server_unavailable     backend down, starting or disabled
    ├── RateLimited           rate_limited           too many frames or calls in too short a time
    ├── QueueFull             queue_full             too many calls at once
    ├── Draining              draining               the gateway is ending
    ├── CallTimeout           timeout                the call ran past its time
    ├── Cancelled             cancelled              the client cancelled
    ├── OutcomeUnknown        outcome_unknown        sent to a backend that died: it may have run
    ├── ToolExecutionError    tool_execution_error   the backend answered with a protocol error
    ├── TooLarge              too_large              a frame or a result over its limit
    └── InternalError         internal_error         a fault of the gateway, with an id that stands in the log

Codes and meanings: the wire contract, section 5. ``ConfigError`` stands apart: it is for the person who
starts the gateway, never for a client.
"""

from collections.abc import Iterable, Mapping
from enum import IntEnum
from typing import Any, ClassVar


class GatewayError(Exception):
    """Anything that a client is told in an ``error`` frame or a REST error body.

    ``message`` is for people; ``code`` is stable; ``temporary`` says whether the same request may succeed
    later; ``details`` is JSON; ``retry_after_ms`` says when to try again, in milliseconds. ``is_audited`` is
    set where the audit log has the refusal already.
    """

    is_audited = False
    code: ClassVar[str] = "internal_error"
    temporary: ClassVar[bool] = False
    http_status: ClassVar[int] = 500

    def __init__(self, message: str, *, details: Any = None, retry_after_ms: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.details = details
        self.retry_after_ms = retry_after_ms

    def to_data(self) -> dict[str, Any]:
        """The ``data`` of an ``error`` frame."""
        data: dict[str, Any] = {"error": self.message, "code": self.code, "temporary": self.temporary}
        if self.retry_after_ms is not None:
            data["retryAfterMs"] = self.retry_after_ms
        if self.details is not None:
            data["details"] = self.details
        return data


class ParseError(GatewayError):
    """Issued when a message is not JSON, not an object, too deep, or holds a number JSON has not."""

    code = "parse_error"
    http_status = 400


class UnknownType(GatewayError):
    """Issued when no frame type has the name that was sent."""

    code = "unknown_type"
    http_status = 400


class InvalidParams(GatewayError):
    """Issued when a frame or a tool's arguments break their schema; ``details`` lists every fault."""

    code = "invalid_params"
    http_status = 400


class AuthRequired(GatewayError):
    """Issued when a request needs credentials and none were given."""

    code = "auth_required"
    http_status = 401


class AuthFailed(GatewayError):
    """Issued when credentials were given and do not hold."""

    code = "auth_failed"
    http_status = 401


class TokenExpired(AuthFailed):
    """Issued when a token was good once and its time is over."""

    code = "token_expired"


class PermissionDenied(GatewayError):
    """Issued when the caller's scopes do not allow the request."""

    code = "permission_denied"
    http_status = 403


class NotFound(GatewayError):
    """Issued when a name is not known; the message names the nearest one that is."""

    http_status = 404


class ServerNotFound(NotFound):
    """Issued when no backend server has the id that was sent."""

    code = "server_not_found"


class ToolNotFound(NotFound):
    """Issued when the backend server lists no tool of that name."""

    code = "tool_not_found"


class UnknownChannel(NotFound):
    """Issued when no channel has the name that was sent."""

    code = "unknown_channel"


class CatalogNotFound(NotFound):
    """Issued, over HTTP alone, when no catalog has the id that was sent, or no entry or option the name."""

    code = "not_found"


class KeyNotFound(CatalogNotFound):
    """Issued, over HTTP alone, when no API key has the id that was sent."""


class IssuerNotFound(CatalogNotFound):
    """Issued, over HTTP alone, when nobody logs in with the identity provider that was named."""


class RoomNotFound(CatalogNotFound):
    """Issued, over HTTP alone, when no room has the name that was sent, or no guest of it."""


class UnknownCall(NotFound):
    """Issued when a ``cancel`` names an id that no open call has."""

    code = "unknown_call"


class DuplicateId(GatewayError):
    """Issued when a call with the same id is still open on this connection."""

    code = "duplicate_id"
    http_status = 409


class Conflict(GatewayError):
    """Issued, over HTTP alone, when something cannot be changed as it is now; says where it can."""

    code = "conflict"
    http_status = 409


class PreconditionFailed(Conflict):
    """Issued, over HTTP alone, when ``If-Match`` names another state than the present one (RFC 9110)."""

    http_status = 412


class ServerUnavailable(GatewayError):
    """Issued when the backend is down, starting or disabled; ``details`` has its state and the next try."""

    code = "server_unavailable"
    temporary = True
    http_status = 503


class IssuerUnavailable(ServerUnavailable):
    """Issued, over HTTP alone, when an identity provider does not answer as it must; the log says why."""


class RateLimited(GatewayError):
    """Issued when a user sends frames or calls faster than the limit; says when to go on."""

    code = "rate_limited"
    temporary = True
    http_status = 429


class QueueFull(GatewayError):
    """Issued when a connection has as many calls open as it may."""

    code = "queue_full"
    temporary = True
    http_status = 429


class ConnectionLimit(GatewayError):
    """Issued, over HTTP alone, when the gateway or a user has as many connections as may be."""

    code = "queue_full"
    temporary = True
    http_status = 503


class Draining(GatewayError):
    """Issued when the gateway is ending and takes no new calls."""

    code = "draining"
    temporary = True
    http_status = 503


class CallTimeout(GatewayError):
    """Issued when a call ran past its time; the backend was told to stop."""

    code = "timeout"
    temporary = True
    http_status = 504


class Cancelled(GatewayError):
    """Issued when the client cancelled its call."""

    code = "cancelled"
    http_status = 499


class OutcomeUnknown(GatewayError):
    """Issued when a call had been sent to a backend that died: it may have run, it is not run again."""

    code = "outcome_unknown"
    http_status = 502


class ToolExecutionError(GatewayError):
    """Issued when the backend answered with a protocol error; ``details`` has its code and data."""

    code = "tool_execution_error"
    http_status = 502


class TooLarge(GatewayError):
    """Issued when a frame, a batch or a result is over its limit."""

    code = "too_large"
    http_status = 413


class InternalError(GatewayError):
    """Issued when the gateway itself is at fault; the message carries the id that stands in the log."""

    code = "internal_error"
    temporary = True


class ConfigError(Exception):
    """The configuration cannot be used; ``faults`` lists every reason, each with its place."""

    def __init__(self, faults: Iterable[str]) -> None:
        self.faults = tuple(faults)
        super().__init__("\n".join(self.faults))


class CloseCode(IntEnum):
    """WebSocket close codes (RFC 6455 section 7.4; 3000 to 3499 reconnect, 3500 to 3999 do not)."""

    NORMAL = 1000
    GOING_AWAY = 1001
    PROTOCOL_ERROR = 1002
    INVALID_PAYLOAD = 1007
    MESSAGE_TOO_BIG = 1009
    SHUTDOWN = 3001
    TOKEN_EXPIRED = 3005
    SLOW_READER = 3008
    NO_PONG = 3012
    TOO_MANY_REQUESTS = 3013
    INVALID_TOKEN = 3500
    NO_AUTH_IN_TIME = 3502
    DISCONNECTED = 3503
    CONNECTION_LIMIT = 3504
    RESUMED_ELSEWHERE = 3505
    PERMISSION_DENIED = 3507
    TOO_MANY_ERRORS = 3509

    @property
    def reconnect(self) -> bool:
        """Whether a client should come back by itself."""
        return self.value == CloseCode.GOING_AWAY or 3000 <= self.value < 3500  # noqa: PLR2004


def suggest(name: str, known: Iterable[str]) -> str:
    """A half sentence that names the nearest of `known` to `name`, or all of a few, or nothing.

    Made to stand behind a sentence: ``f"no server {name!r}{suggest(name, servers)}"``.
    """
    from difflib import get_close_matches  # noqa: PLC0415 - for who has mistyped something

    names = sorted(known)
    if near := get_close_matches(name[:128], names, n=1, cutoff=0.5):
        return f"; did you mean {near[0]!r}?"
    if 0 < len(names) <= 10:  # noqa: PLR2004 - as many as fit in a line
        return f"; there is {', '.join(map(repr, names))}"
    return ""


def codes() -> Mapping[str, type[GatewayError]]:
    """Every stable error code with the class that carries it, but for those that HTTP alone has."""
    found: dict[str, type[GatewayError]] = {}
    pending: list[type[GatewayError]] = [GatewayError]
    while pending:
        cls = pending.pop()
        pending.extend(cls.__subclasses__())
        if "code" in vars(cls) and cls not in (GatewayError, CatalogNotFound, Conflict):
            found[cls.code] = cls
    return found


def error_of(data: Mapping[str, Any]) -> GatewayError:
    """The error that `GatewayError.to_data` has told of in another process, by its code."""
    known: dict[str, type[GatewayError]] = {
        **codes(),
        CatalogNotFound.code: CatalogNotFound,
        Conflict.code: Conflict,
    }
    kind = known.get(str(data.get("code")), InternalError)
    return kind(
        str(data.get("error", "")), details=data.get("details"), retry_after_ms=data.get("retryAfterMs")
    )
