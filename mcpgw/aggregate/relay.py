"""What a client is told while its request is open, and what it is asked.

Progress and logs never wait for the client: they stand in a short queue that a task of the request writes
from, and the oldest give way. All that still waits is written before the answer.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Final, Self, TypeAlias, cast

import mcp_types as types
from mcp.server.context import ServerRequestContext
from mcp.shared.exceptions import MCPError
from mcp.shared.message import ServerMessageMetadata
from pydantic import BaseModel, RootModel, ValidationError

from mcpgw.backends.requests import InputAnswer, InputKind, InputRequest
from mcpgw.logs import log_event

_LOGGER = logging.getLogger("mcpgw.mcp")
_MOST_WAITING = 256
WAITS_FOR_APPROVAL: Final = "the call waits until somebody approves it"
_LAST_WORDS_SECONDS = 5.0

Context: TypeAlias = ServerRequestContext[Any, Any]
"""What the SDK hands to a handler with each request."""

METHODS: Final[Mapping[InputKind, str]] = {
    "elicitation": "elicitation/create",
    "sampling": "sampling/createMessage",
    "roots": "roots/list",
}
"""The MCP request that each kind of input is."""


class _Request(BaseModel):
    method: str
    params: dict[str, Any]


class _Result(RootModel[dict[str, Any]]):
    pass


class Relay:
    """Tells one client what happens to its request; a context manager around it.

    `levels` are the levels of log messages that the client wants.
    """

    def __init__(self, context: Context, levels: frozenset[str]) -> None:
        self._context = context
        self._levels = levels
        self._waiting: deque[types.LoggingMessageNotification | tuple[float, float | None, str | None]]
        self._waiting = deque(maxlen=_MOST_WAITING)
        self._wake = asyncio.Event()
        self._ending = False
        self._writer: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._writer = asyncio.create_task(self._write(), name="mcp relay")
        return self

    async def __aexit__(
        self, typ: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._writer is not None, "entered"  # noqa: S101
        self._ending = True
        self._wake.set()
        try:
            if typ is None:
                await asyncio.wait({self._writer}, timeout=_LAST_WORDS_SECONDS)
        finally:
            self._writer.cancel()

    def progress(self, progress: float, total: float | None, message: str | None) -> None:
        """How far it is; the client hears of it where it gave a ``progressToken``."""
        self._put((progress, total, message))

    def log(self, level: str, logger: str | None, data: Any) -> None:
        """A log message that was sent for it."""
        if level in self._levels:
            params = types.LoggingMessageNotificationParams(
                level=cast("types.LoggingLevel", level), logger=logger, data=data
            )
            self._put(types.LoggingMessageNotification(params=params))

    def can_answer(self, request: InputRequest) -> bool:
        """Whether the client has said that it can answer such a request."""
        has = self._context.session.client_capabilities
        if has is None:
            return False
        match request.kind:
            case "sampling":
                return has.sampling is not None
            case "roots":
                return has.roots is not None
        if request.params.get("mode") == "url":
            return has.elicitation is not None and has.elicitation.url is not None
        return has.elicitation is not None

    async def ask(self, request: InputRequest) -> InputAnswer:
        """Ask the client by a request on the stream of its own request (the handshake revisions)."""
        asked: Any = _Request(method=METHODS[request.kind], params=dict(request.params))
        related = ServerMessageMetadata(related_request_id=self._context.request_id)
        try:
            result = await self._context.session.send_request(asked, _Result, metadata=related)
        except (MCPError, ValidationError) as error:
            code = error.code if isinstance(error, MCPError) else "no answer of this kind"
            log_event(_LOGGER, logging.INFO, "input refused", kind=request.kind, code=code)
            return InputAnswer("decline")
        return as_answer(request.kind, result.root)

    def _put(self, item: Any) -> None:
        self._waiting.append(item)
        self._wake.set()

    async def _write(self) -> None:
        session = self._context.session
        while self._waiting or not self._ending:
            if not self._waiting:
                self._wake.clear()
                await self._wake.wait()
                continue
            item = self._waiting.popleft()
            if isinstance(item, tuple):
                await session.report_progress(*item)
            else:
                await session.send_notification(item, related_request_id=self._context.request_id)


def as_answer(kind: InputKind, result: Mapping[str, Any]) -> InputAnswer:
    """The answer that the JSON of an ``ElicitResult``, ``CreateMessageResult`` or ``ListRootsResult`` is."""
    if kind != "elicitation":
        return InputAnswer("accept", result)
    action = result.get("action")
    if action == "accept":
        return InputAnswer("accept", result.get("content") or {})
    return InputAnswer("cancel" if action == "cancel" else "decline")
