"""What a failure of an MCP session means for the call that met it, and for the people who read of it."""

import os
import secrets
import socket
from enum import IntEnum
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import httpx2
import mcp_types as types
from mcp.shared.exceptions import MCPError

from mcpgw.errors import GatewayError, OutcomeUnknown, TooLarge, ToolExecutionError
from mcpgw.server_definitions import ServerDefinition

SESSION_ENDED: Final = "its session was ended by the server"
"""The reason of a session that an HTTP server has forgotten: it was not the server that failed."""

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


def too_many() -> types.ErrorData:
    """The answer to a backend that sends more requests than it may."""
    return types.ErrorData(code=types.INTERNAL_ERROR, message="too many requests: try again later")


def _local_fault(error: MCPError) -> LocalFault | None:
    return LocalFault(error.code) if error.data == _MARK else None


def is_never_sent(error: MCPError) -> bool:
    """Whether the request did not reach the backend or was refused unread, so that it cannot have run."""
    return _local_fault(error) in (LocalFault.NOT_SENT, LocalFault.SESSION_LOST)


def is_unanswered(error: MCPError) -> bool:
    """Whether the request may have reached the backend and no answer came."""
    return _local_fault(error) is LocalFault.MAYBE_SENT


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


def unreachable_in_words(error: httpx2.TransportError) -> str:
    """Why no answer came over HTTP."""
    root: BaseException = error
    while (deeper := root.__cause__ or root.__context__) is not None:
        root = deeper
    if isinstance(root, ConnectionRefusedError):
        return "its connection was refused"
    if isinstance(root, socket.gaierror):
        return f"its host name is not known: {root.strerror}"
    return f"{type(error).__name__}: {str(error)[:_LONGEST]}".rstrip(": ")


def origin_of(url: str) -> str:
    """Scheme, host and port alone: a key may stand in what is left out (user, path, query)."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def _unstartable(error: OSError, command: str, cwd: Path | None) -> str | None:
    """Which of command and folder the operating system does not take; None where it is neither."""
    if error.filename is None:
        return None
    name = os.fsdecode(error.filename)
    if cwd is not None and name == str(cwd):
        return f"its folder (cwd) {name!r} cannot be entered: {error.strerror}"
    if name != command:
        return None
    first, space, _ = command.partition(" ")
    exists = Path(command).exists()
    if space and not exists:
        return f"its command {f'{first} …'!r} does not exist: put what follows {first!r} into args"
    if not isinstance(error, FileNotFoundError):
        return f"its command {command!r} cannot be run: {error.strerror}"
    if exists:
        return f"its command {command!r} cannot be run: its first line names a program that does not exist"
    return f"its command {command!r} " + ("does not exist" if "/" in command else "is not found on PATH")


def in_words(error: BaseException, definition: ServerDefinition | None = None) -> str:
    """Why a backend could not be started, or ended, in words for an operator.

    With `definition` it is said what of it cannot be started; of a command that holds arguments only the
    first word, since the rest may be a secret.
    """
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if definition is not None and definition.command is not None and isinstance(error, OSError):
        words = _unstartable(error, definition.command, definition.cwd)
        if words is not None:
            return words
    if isinstance(error, FileNotFoundError) and error.filename is not None:
        return f"the command or folder {os.fsdecode(error.filename)!r} does not exist"
    if isinstance(error, TimeoutError):
        return "it was not ready within backends.connect_timeout"
    if isinstance(error, httpx2.HTTPStatusError):  # its own text holds the whole address, key and all
        return f"it answered with HTTP status {error.response.status_code}"
    if isinstance(error, httpx2.TransportError):
        return unreachable_in_words(error)
    return (str(error) or type(error).__name__)[:_LONGEST]
