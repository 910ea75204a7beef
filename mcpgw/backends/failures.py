"""What a failure of an MCP session means for the call that met it, and for the people who read of it."""

import os
import secrets
from enum import IntEnum

import httpx2
import mcp_types as types
from mcp.shared.exceptions import MCPError

from mcpgw.errors import GatewayError, OutcomeUnknown, TooLarge, ToolExecutionError

_LONGEST = 300
# A backend may use any code for errors of its own. Only an error that carries this mark was made here.
_MARK = secrets.token_hex(16)
# The SDK's sentences about a connection that ended under a request.
_CLOSED = "Connection closed"
_STREAM_ENDED = "SSE stream "
_EVENT_TOO_LARGE = "SSE stream failed: Server-sent event exceeded"


class LocalFault(IntEnum):
    """The JSON-RPC error codes with which the transports themselves end a request.

    too_large      the answer is over the limit of one message
    not_sent       the request never reached the backend
    maybe_sent     the request may have reached the backend, its answer did not come
    session_lost   the backend no longer knows the session, and so has refused the request
    """

    TOO_LARGE = -32098
    NOT_SENT = -32097
    MAYBE_SENT = -32096
    SESSION_LOST = -32095


def local_error(fault: LocalFault, message: str) -> types.ErrorData:
    """The JSON-RPC error of a fault that a transport saw; no backend can forge it."""
    return types.ErrorData(code=fault.value, message=message, data=_MARK)


def _local_fault(error: MCPError) -> LocalFault | None:
    return LocalFault(error.code) if error.data == _MARK else None


def is_never_sent(error: MCPError) -> bool:
    """Whether the request did not reach the backend or was refused unread, so that it cannot have run."""
    return _local_fault(error) in (LocalFault.NOT_SENT, LocalFault.SESSION_LOST)


def translate(error: MCPError, *, server: str, ended: bool, reason: str | None) -> GatewayError:
    """The error that a call ends with, once it was sent.

    `ended` says that the session with the server is over, `reason` why.
    """
    message = error.message[:_LONGEST]
    fault = _local_fault(error)
    closed = error.code == types.CONNECTION_CLOSED
    if fault is LocalFault.TOO_LARGE or (closed and message.startswith(_EVENT_TOO_LARGE)):
        return TooLarge(f"the server {server!r}: the answer is over the limit of one message")
    if fault is not None or (closed and (ended or message == _CLOSED or message.startswith(_STREAM_ENDED))):
        why = reason or (message if fault is not None else None)
        because = f" ({why})" if why else ""
        return OutcomeUnknown(
            f"the server {server!r} ended before it answered{because}; "
            "the call may have run, it is not run again"
        )
    return ToolExecutionError(
        message or "the backend answered with an error that says nothing",
        details={"code": error.code, "message": message, "data": error.data},
    )


def in_words(error: BaseException) -> str:
    """Why a backend could not be started, or ended, in words for an operator; never its address."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, FileNotFoundError) and error.filename is not None:
        return f"the command or folder {os.fsdecode(error.filename)!r} does not exist"
    if isinstance(error, TimeoutError):
        return "it was not ready within backends.connect_timeout"
    if isinstance(error, httpx2.HTTPStatusError):  # its own text holds the whole address, key and all
        return f"it answered with HTTP status {error.response.status_code}"
    return (str(error) or type(error).__name__)[:_LONGEST]
