"""One client's conversation: texts in, texts out, and no socket.

A transport hands every message to `Conversation.receive` and takes what the conversation says through a
`Sink`. `receive` never waits: a call runs in a task of its own, so that a slow one never holds up a fast one.
Every request is answered; every call has exactly one end. Source: the wire contract, sections 1 to 5.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from mcpgw.access.tokens import Principal, Tokens
from mcpgw.errors import (
    AuthFailed,
    AuthRequired,
    Cancelled,
    CloseCode,
    DuplicateId,
    GatewayError,
    InternalError,
    OutcomeUnknown,
    ParseError,
    PermissionDenied,
    QueueFull,
    TokenExpired,
    ToolExecutionError,
    UnknownCall,
    suggest,
)
from mcpgw.gateway import Gateway
from mcpgw.logs import log_event
from mcpgw.settings import AuthSettings, WebSocketSettings
from mcpgw.wire import frames
from mcpgw.wire.frames import Envelope, ReplyTo, ServerFrame

_LOGGER = logging.getLogger("mcpgw.websocket")

FEATURES = ("tools", "progress", "logs", "cancel", "batch")
"""What a client may find in ``status.data.features``: the parts of the contract that this gateway has."""


class Sink(Protocol):
    """Where a conversation speaks to: a transport that only writes."""

    def send(self, text: str) -> None:
        """Send one frame; never waits and never fails because the client is gone."""

    def close(self, code: CloseCode, reason: str) -> None:
        """End the connection."""


@dataclass(frozen=True, slots=True)
class ClientInfo:
    """What is known of a client from how it connected; `credentials` names the way, never the secret."""

    client_id: str
    remote: str
    user_agent: str
    credentials: str


@dataclass(frozen=True, slots=True)
class ConversationSettings:
    """The limits that a conversation keeps."""

    auth: AuthSettings
    websocket: WebSocketSettings


@dataclass(slots=True, eq=False)
class _OpenCall:
    """A call that has not had its end yet."""

    reply: ReplyTo
    server_id: str
    tool_name: str
    started: float
    task: asyncio.Task[None] | None = None
    ended: bool = False


class Conversation:
    """What one client and the gateway say to each other.

    The transport calls `start` once, `receive` for each message, and `lost` once when the socket is gone.
    `principal` is who the connection's credentials prove; None asks for an ``auth`` frame. `refused` is why
    credentials that were given do not hold.
    """

    def __init__(
        self,
        gateway: Gateway,
        tokens: Tokens,
        settings: ConversationSettings,
        sink: Sink,
        client: ClientInfo,
        *,
        principal: Principal | None = None,
        refused: AuthFailed | None = None,
    ) -> None:
        self.client = client
        self.session = secrets.token_urlsafe(18)
        self._gateway = gateway
        self._tokens = tokens
        self._settings = settings
        self._sink = sink
        self._principal = principal
        self._refused = refused
        self._credentials = client.credentials
        self._calls: dict[str, _OpenCall] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._auth_deadline: asyncio.TimerHandle | None = None
        self._failed_auths = 0
        self._started = time.monotonic()
        self._frames_in = 0
        self._frames_out = 0
        self._over = False

    @property
    def user(self) -> str | None:
        """Who is asking, where that is known."""
        return None if self._principal is None else self._principal.user

    def start(self) -> None:
        """Greet the client with its status."""
        self._log(
            logging.INFO,
            "connected",
            remote=self.client.remote,
            agent=self.client.user_agent,
            credentials=self._credentials,
        )
        self._emit(self._status("Connected to MCP Gateway WebSocket"))
        if self._refused is not None:
            self._log(logging.WARNING, "refused credentials", code=self._refused.code)
            self._emit(frames.Error(self._refused))
        if self._principal is None:
            loop = asyncio.get_running_loop()
            self._auth_deadline = loop.call_later(self._settings.auth.timeout, self._no_auth_in_time)

    def receive(self, message: str | bytes) -> None:
        """Take one message of the client; answers go to the sink, at once or when they are there."""
        if self._over:
            return
        if isinstance(message, bytes):
            self._refuse(ParseError("a binary message: frames are JSON in text messages"), None)
            return
        try:
            values = frames.split_message(message, max_batch=self._settings.websocket.max_batch)
        except GatewayError as error:
            self._refuse(error, None)
            return
        for value in values:
            if self._over:
                break
            self._frames_in += 1
            self._receive_frame(value)

    def lost(self, code: int | None) -> None:
        """The socket is gone: end what runs for it. `code` is the close code where there was one."""
        if self._auth_deadline is not None:
            self._auth_deadline.cancel()
        self._over = True
        for call in list(self._calls.values()):
            self._end(call, None, outcome="cancelled")
        self._log(
            logging.INFO,
            "disconnected",
            code=code,
            seconds=round(time.monotonic() - self._started, 3),
            frames_in=self._frames_in,
            frames_out=self._frames_out,
        )

    async def drain(self, deadline: float) -> None:
        """Let open calls come to their end until `deadline` (of the loop's clock), then say goodbye."""
        loop = asyncio.get_running_loop()
        while self._calls and not self._over and loop.time() < deadline:
            waited = [call.task for call in self._calls.values() if call.task is not None]
            await asyncio.wait(waited, timeout=deadline - loop.time(), return_when=asyncio.FIRST_COMPLETED)
        for call in list(self._calls.values()):
            error = OutcomeUnknown("the gateway is ending and has stopped the call; it may have run in part")
            self._end(call, frames.Error(error), outcome=error.code)
        self.disconnect(CloseCode.SHUTDOWN, "the gateway is ending")

    async def wait_settled(self) -> None:
        """Wait until no task of this conversation runs any more (their backends have been told)."""
        if self._tasks:
            await asyncio.wait(set(self._tasks))

    def disconnect(self, code: CloseCode, reason: str) -> None:
        """Say why, then close."""
        if not self._over:
            self._emit(frames.Disconnect(code.value, reason, code.reconnect))
            self._over = True
            self._sink.close(code, reason)

    # --- frames --------------------------------------------------------------------------------------------

    def _receive_frame(self, value: object) -> None:
        reply = ReplyTo.of(value)
        try:
            envelope = Envelope.open(value, max_depth=self._settings.websocket.max_depth)
            if envelope.type not in frames.OPEN_TYPES:
                # Its own call may be stopped by a client whose token has just run out.
                self._require_principal(unexpired=envelope.type != "cancel")
            self._dispatch(frames.decode(envelope))
        except GatewayError as error:
            self._refuse(error, reply)

    def _dispatch(self, frame: frames.ClientFrame) -> None:
        match frame:
            case frames.Ping():
                self._emit(frames.Pong(), frame.reply)
            case frames.StatusRequest():
                self._emit(self._status("Status of this connection", asked=True), frame.reply)
            case frames.Auth():
                self._authenticate(frame)
            case frames.ListTools():
                self._list_tools(frame)
            case frames.ToolCall():
                self._call(frame)
            case frames.Cancel():
                self._cancel(frame)

    def _require_principal(self, *, unexpired: bool = True) -> Principal:
        if self._principal is None:
            raise AuthRequired("Authentication required: send an auth frame with a token first")
        if unexpired and time.time() > self._principal.expires_at + self._settings.auth.leeway:
            raise TokenExpired("the token has expired: send an auth frame with a new one")
        return self._principal

    def _authenticate(self, frame: frames.Auth) -> None:
        try:
            principal = self._proved_by(frame.token)
        except (AuthFailed, PermissionDenied) as error:
            self._log(logging.WARNING, "refused credentials", code=error.code, credentials="frame")
            self._emit(frames.Error(error), frame.reply)
            self._failed_auths += 1
            if self._failed_auths >= self._settings.auth.max_attempts:
                self.disconnect(CloseCode.INVALID_TOKEN, "too many failed authentications")
            return
        self._principal = principal
        self._credentials = "frame"
        self._failed_auths = 0
        if self._auth_deadline is not None:
            self._auth_deadline.cancel()
            self._auth_deadline = None
        self._log(logging.INFO, "authenticated", credentials="frame")
        self._emit(self._status("Authenticated", asked=True), frame.reply)

    def _proved_by(self, token: str) -> Principal:
        principal = self._tokens.verify(token)
        if self._principal is not None and principal.user != self._principal.user:
            raise PermissionDenied("this connection belongs to another user: open a new one")
        return principal

    def _list_tools(self, frame: frames.ListTools) -> None:
        listed = self._gateway.list_tools(self._require_principal(), frame.server_id)
        tools: list[Mapping[str, Any]] = []
        for server_id, tool in listed:
            entry: dict[str, Any] = {"serverId": server_id, "name": tool.name}
            if tool.title is not None:
                entry["title"] = tool.title
            entry |= {"description": tool.description, "inputSchema": tool.input_schema}
            if tool.output_schema is not None:
                entry["outputSchema"] = tool.output_schema
            if tool.annotations is not None:
                entry["annotations"] = tool.annotations
            tools.append(entry)
        self._emit(frames.Tools(tuple(tools)), frame.reply)

    def _cancel(self, frame: frames.Cancel) -> None:
        call = self._calls.get(frame.reply.id)
        if call is None:
            raise UnknownCall(
                f"no open call has the id {frame.reply.id!r}{suggest(frame.reply.id, self._calls)}"
            )
        self._end(call, frames.Error(Cancelled("the call was cancelled")), outcome=Cancelled.code)

    # --- calls ---------------------------------------------------------------------------------------------

    def _call(self, frame: frames.ToolCall) -> None:
        principal = self._require_principal()
        if frame.reply.id in self._calls:
            # The open call keeps its one end: this refusal carries the id and says so by its code.
            raise DuplicateId(f"a call with the id {frame.reply.id!r} is open: choose another")
        limit = self._settings.websocket.max_calls
        if len(self._calls) >= limit:
            raise QueueFull(
                f"{limit} calls are open on this connection: wait for one to end", retry_after_ms=1000
            )
        call = _OpenCall(frame.reply, frame.server_id, frame.tool_name, time.monotonic())
        self._calls[frame.reply.id] = call
        call.task = asyncio.create_task(self._run(call, frame, principal), name=f"call {frame.reply.id}")
        self._tasks.add(call.task)
        call.task.add_done_callback(self._tasks.discard)

    async def _run(self, call: _OpenCall, frame: frames.ToolCall, principal: Principal) -> None:
        def on_progress(progress: float, total: float | None, message: str | None) -> None:
            if not call.ended:
                update = frames.ToolProgress(call.server_id, call.tool_name, progress, total, message)
                self._emit(update, call.reply)

        def on_log(level: str, logger: str | None, data: Any) -> None:
            if not call.ended:
                self._emit(frames.ToolLog(level, data, logger), call.reply)

        try:
            result = await self._gateway.call_tool(
                principal,
                frame.server_id,
                frame.tool_name,
                frame.params,
                timeout_ms=frame.timeout_ms,
                on_progress=on_progress,
                on_log=on_log,
            )
        except GatewayError as error:
            self._end(call, frames.Error(error), outcome=error.code)
        except Exception:
            # The one boundary where a fault of the gateway becomes an answer; the log has all of it.
            fault = secrets.token_hex(4)
            _LOGGER.exception("internal error %s", fault)
            internal = InternalError(f"a fault of the gateway; its log has it under the id {fault}")
            self._end(call, frames.Error(internal), outcome=internal.code)
        else:
            response = frames.ToolResponse(
                server_id=call.server_id,
                tool_name=call.tool_name,
                content=result.content,
                duration_ms=round((time.monotonic() - call.started) * 1000),
                structured_content=result.structured_content,
                has_structured_content=result.has_structured_content,
                is_error=result.is_error,
                meta=result.meta,
            )
            self._end(call, response, outcome="tool_error" if result.is_error else "ok")

    def _end(self, call: _OpenCall, frame: ServerFrame | None, *, outcome: str) -> None:
        """Give a call its one end; whatever comes later for it is dropped."""
        if call.ended:
            return
        call.ended = True
        del self._calls[call.reply.id]
        if frame is not None:
            self._emit(frame, call.reply)
        if call.task is not None and call.task is not asyncio.current_task():
            call.task.cancel()
        self._log(
            logging.INFO,
            "call",
            server=call.server_id,
            tool=call.tool_name,
            outcome=outcome,
            ms=round((time.monotonic() - call.started) * 1000, 1),
        )

    # --- saying things -------------------------------------------------------------------------------------

    def _status(self, message: str, *, asked: bool = False) -> frames.Status:
        websocket = self._settings.websocket
        return frames.Status(
            message=message,
            client_id=self.client.client_id,
            session=self.session,
            authenticated=self._principal is not None,
            user=self.user,
            ping_interval=round(websocket.ping_interval * 1000),
            pong_timeout=round(websocket.pong_timeout * 1000),
            max_message_size=websocket.max_message_size,
            features=FEATURES,
            open_calls=tuple(self._calls) if asked else None,
        )

    def _refuse(self, error: GatewayError, reply: ReplyTo | None) -> None:
        self._log(logging.INFO, "refused", code=error.code)
        self._emit(frames.Error(error), reply)

    def _emit(self, frame: ServerFrame, reply: ReplyTo | None = None) -> None:
        if self._over:
            return
        try:
            text = frames.encode(frame, reply)
        except ValueError:
            # Only a backend's own data can hold what JSON has not; what the gateway says is plain text.
            if isinstance(frame, frames.ToolProgress | frames.ToolLog):
                return  # the call has its one end later
            error = ToolExecutionError("the server's answer holds what is no JSON")
            text = frames.encode(frames.Error(error), reply)
        self._frames_out += 1
        self._sink.send(text)

    def _no_auth_in_time(self) -> None:
        self._log(logging.WARNING, "no auth in time")
        self.disconnect(CloseCode.NO_AUTH_IN_TIME, "no auth frame in time")

    def _log(self, level: int, event: str, **fields: Any) -> None:
        log_event(_LOGGER, level, event, client=self.client.client_id, user=self.user, **fields)
