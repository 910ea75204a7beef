"""Calls of tools that come one by one, each in a request of its own.

What a socket's call is to others, such a call is too: its rate, its events, its line in the audit log. Who
asks is told by frames, or waits for the end alone. Nobody can be asked anything, since there is no way to
answer inside a request: what a server wants to know is declined.
"""

import asyncio
import logging
import secrets
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, Protocol

from mcpgw.access.callers import Caller
from mcpgw.access.revocation import Judge, denial
from mcpgw.access.tokens import Principal
from mcpgw.audit import Actor
from mcpgw.backends.requests import InputAnswer, InputRequest, SilentObserver
from mcpgw.backends.tools import ToolResult
from mcpgw.call_record import CallRecord, CallRecords, outcome_of
from mcpgw.errors import (
    GatewayError,
    InvalidParams,
    OutcomeUnknown,
    QueueFull,
    RateLimited,
    ToolExecutionError,
)
from mcpgw.gateway import Gateway
from mcpgw.rate_limit import UserLimits, retry_after_ms
from mcpgw.tracing import CallerTrace
from mcpgw.wire import frames
from mcpgw.wire.frames import ReplyTo, ServerFrame, ToolResponse

_LOGGER = logging.getLogger("mcpgw.rest")
_FRAME_ROOT: Final = "/data"
"""Where a frame has what is the body of a request here."""


class Listener(Protocol):
    """Who is told of a call before its end. Must not wait."""

    def begun(self) -> None:
        """It waits for its turn, or is sent: it was not refused."""

    def say(self, text: str) -> None:
        """The text of a frame."""


class RestCalls:
    """Begins calls. Of one user at most `max_open` are open: all requests of a user are as one socket."""

    def __init__(self, gateway: Gateway, records: CallRecords, limits: UserLimits, *, max_open: int) -> None:
        self.gateway = gateway
        self.records = records
        self._limits = limits
        self._max_open = max_open
        self._open: Counter[str] = Counter()

    def begin(
        self,
        principal: Principal,
        actor: Actor,
        *,
        trace: CallerTrace | None = None,
        listener: Listener | None = None,
    ) -> "RestCall":
        """A call of `principal`, which has to be run."""
        return RestCall(self, principal, actor, trace, listener)

    @contextmanager
    def admitted(self, user: str) -> Iterator[None]:
        """Count one more open call of a user inside the block.

        Raises:
            RateLimited, QueueFull: the user calls too often, or has too many calls open.
        """
        wait = self._limits.try_call(user)
        if wait:
            raise RateLimited("too many calls in too short a time", retry_after_ms=retry_after_ms(wait))
        if self._open[user] >= self._max_open:
            raise QueueFull(
                f"{self._max_open} calls of this user are open over REST: wait for one to end",
                retry_after_ms=1000,
            )
        self._open[user] += 1
        try:
            yield
        finally:
            self._open[user] -= 1
            if not self._open[user]:
                del self._open[user]


class RestCall:
    """One call, run once. `reply` has its id, which its events and frames have too.

    `is_recorded` tells whether it came so far that others are told of it, its error among the rest.
    """

    def __init__(
        self,
        calls: RestCalls,
        principal: Principal,
        actor: Actor,
        trace: CallerTrace | None,
        listener: Listener | None,
    ) -> None:
        self.reply = ReplyTo(f"rest-{secrets.token_hex(6)}")
        self._calls = calls
        self._caller = Caller(principal, f"request {secrets.token_hex(8)}", trace)
        self._actor = actor
        self._listener = listener
        self._target = ("", "")
        self._reason: GatewayError | None = None
        self.is_recorded = False

    async def run(
        self,
        server_id: str,
        tool_name: str,
        arguments: Mapping[str, Any],
        *,
        timeout_ms: int | None = None,
        write: Callable[[ToolResponse], str],
    ) -> str:
        """Call a tool and answer its answer as `write` has it; cancelling this tells its server to stop.

        Paths in the details of a fault begin at the body of the request.

        Raises:
            GatewayError: with the code of what went wrong.
        """
        user, gateway = self._caller.principal.user, self._calls.gateway
        self._target = (server_id, tool_name)
        with self._calls.admitted(user):
            self.is_recorded = True
            record = self._calls.records.begin(
                self._actor,
                call_id=self.reply.id,
                server=server_id,
                tool=tool_name,
                arguments=arguments,
                logger=_LOGGER,
            )
            observer = _Observer(record, self.reply, server_id, tool_name, self._listener)
            try:
                result = await gateway.call_tool(
                    self._caller, server_id, tool_name, arguments, timeout_ms=timeout_ms, observer=observer
                )
                response = _response(server_id, tool_name, result, record.duration_ms)
                text = _written(response, write)
            except BaseException as error:
                shown = self._shown(error)
                record.failed(outcome_of(shown))
                if shown is error:
                    raise
                raise shown from error
            finally:
                gateway.connection_ended(self._caller.connection)
        record.answered(is_error=response.is_error, result=response.result())
        return text

    def has_to_end(self) -> None:
        """The gateway ends: what stops the call from now on is that."""
        self._reason = OutcomeUnknown(
            "the gateway is ending and has stopped the call; it may have run in part"
        )

    def is_denied(self, judge: Judge) -> bool:
        """Whether its caller may not make it any more; what stops it from now on is that."""
        error = denial(self._caller.principal, judge, *self._target)
        self._reason = error or self._reason
        return error is not None

    def _shown(self, error: BaseException) -> BaseException:
        """What is told of a fault to the one who asks."""
        if isinstance(error, asyncio.CancelledError) and self._reason is not None:
            return self._reason
        return _of_a_body(error) if isinstance(error, InvalidParams) else error


class _Observer(SilentObserver):
    """Records what happens to a call, and says it in frames where somebody listens."""

    def __init__(
        self, record: CallRecord, reply: ReplyTo, server_id: str, tool_name: str, listener: Listener | None
    ) -> None:
        self._record = record
        self._reply = reply
        self._server_id = server_id
        self._tool_name = tool_name
        self._listener = listener

    def started(self) -> None:
        """It is sent."""
        self._begin()
        self._record.started()

    def queued(self, position: int, retry_after_ms: int | None) -> None:
        """It waits."""
        self._begin()
        self._tell(frames.Queued(position, retry_after_ms))

    def approval_asked(self, request_id: str, expires_at: int) -> None:
        """It waits until somebody approves it."""
        self._begin()
        self._tell(frames.Queued(1, approval=request_id, expires_at=expires_at))

    def progress(self, progress: float, total: float | None, message: str | None) -> None:
        """How far it is."""
        if self._tell(frames.ToolProgress(self._server_id, self._tool_name, progress, total, message)):
            self._record.progress(progress, total, message)

    def log(self, level: str, logger: str | None, data: Any) -> None:
        """What its server says meanwhile."""
        self._tell(frames.ToolLog(level, data, logger))

    async def input_required(self, request: InputRequest) -> InputAnswer:
        """Decline, and say so."""
        words = f"the server asked for {request.kind}, which a request over REST cannot answer: declined"
        self._tell(frames.ToolLog("warning", words, "mcpgw"))
        return InputAnswer("decline")

    def _begin(self) -> None:
        if self._listener is not None:
            self._listener.begun()

    def _tell(self, frame: ServerFrame) -> bool:
        """Say a frame; false where it is no JSON, and so can be told to nobody."""
        try:
            text = frames.encode(frame, self._reply)
        except ValueError:
            return False
        if self._listener is not None:
            self._listener.say(text)
        return True


def _response(server_id: str, tool_name: str, result: ToolResult, duration_ms: int) -> ToolResponse:
    return ToolResponse(
        server_id=server_id,
        tool_name=tool_name,
        content=result.content,
        duration_ms=duration_ms,
        structured_content=result.structured_content,
        has_structured_content=result.has_structured_content,
        is_error=result.is_error,
        meta=result.meta,
    )


def _written(response: ToolResponse, write: Callable[[ToolResponse], str]) -> str:
    try:
        text = write(response)
        text.encode()  # half of a surrogate pair must fail here, where it can still be told
    except ValueError:
        # Only a backend's own data can hold what JSON has not.
        raise ToolExecutionError("the server's answer holds what is no JSON") from None
    return text


def _of_a_body(error: InvalidParams) -> InvalidParams:
    """The same fault, its paths as the body of a request has them."""
    details = error.details
    if not isinstance(details, list):
        return error
    shorter = [{**fault, "path": str(fault["path"]).removeprefix(_FRAME_ROOT)} for fault in details]
    return InvalidParams(error.message.replace(f"{_FRAME_ROOT}/", "/"), details=shorter)
