"""One client's conversation: texts in, texts out, and no socket.

A transport hands every message to `Conversation.receive` and takes what the conversation says through a
`Sink`. `receive` never waits: calls run in tasks of their session, so that a slow one never holds up a fast
one. Every request is answered. Source: the wire contract, sections 1 to 5.
"""

import asyncio
import logging
import random
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any

from mcpgw.access.permissions import may_do_anything
from mcpgw.access.tokens import Principal
from mcpgw.audit import Actor
from mcpgw.awaited_keys import AwaitedKeys
from mcpgw.conversation_parts import ClientInfo, ConversationParts, ConversationSettings, Sink
from mcpgw.errors import (
    AuthFailed,
    CloseCode,
    GatewayError,
    InternalError,
    InvalidParams,
    ParseError,
    PermissionDenied,
    RateLimited,
)
from mcpgw.identity import Identity
from mcpgw.logs import log_event
from mcpgw.rate_limit import FloodGuard, RateLimit, retry_after_ms
from mcpgw.session import Session, encode_result
from mcpgw.wire import frames
from mcpgw.wire.deliveries import LiveReader
from mcpgw.wire.frames import Envelope, ReplyTo, ServerFrame

_LOGGER = logging.getLogger("mcpgw.websocket")
_COMING_BACK_MS = 5000
_AUDITED = ("auth_required", "permission_denied", "token_expired", "rate_limited")
"""Refused frames that the audit log has; faults of form are for the client alone."""
_REFUSALS_LOGGED = 10
"""Refused frames of one connection that the log has in a second."""

FEATURES = (
    "tools",
    "progress",
    "logs",
    "cancel",
    "batch",
    "events",
    "rooms",
    "resume",
    "resources",
    "prompts",
    "completion",
    "input",
    "approval",
)
"""What a client may find in ``status.data.features``: the parts of the contract that this gateway has."""

_RESPONDING: set[asyncio.Task[None]] = set()


class Conversation:
    """What one client and the gateway say to each other.

    The transport calls `start` once, `receive` for each message, and `lost` once when the socket is gone.
    `principal` is who the connection's credentials prove; None asks for an ``auth`` frame. `refused` is why
    credentials that were given do not hold. While there are `awaited_keys`, no more is to be received.

    A connection above its user's limit waits for a place: it is greeted, may say who it is, and may resume a
    session whose old connection then makes room for it. Whatever else it asks for is held until `admitted`.
    """

    def __init__(
        self,
        parts: ConversationParts,
        settings: ConversationSettings,
        sink: Sink,
        client: ClientInfo,
        *,
        principal: Principal | None = None,
        refused: AuthFailed | None = None,
    ) -> None:
        self.client = client
        self._parts = parts
        self._settings = settings
        self._sink = sink
        self._identity = Identity(
            parts.tokens,
            settings.auth,
            parts.deadlines,
            principal,
            on_expiring=self._expiring,
            on_expired=self._expired,
            on_no_auth=self._no_auth_in_time,
        )
        self._refused = refused
        self._credentials = client.credentials
        self._session = Session(
            parts.gateway,
            parts.bus,
            parts.rooms,
            settings=settings.sessions,
            max_calls=settings.websocket.max_calls,
            client_id=client.client_id,
            metrics=parts.metrics,
            records=parts.records,
        )
        self._session.trace = client.trace
        self._session.outlet = self
        self._has_begun = False
        self._held: list[frames.ClientFrame] | None = None
        self.awaited_keys: AwaitedKeys | None = None
        self._for_home: list[object] | None = None
        self._anonymous = None if principal is not None else parts.limits.frames_bucket()
        self._flood = FloodGuard(settings.websocket.max_refusals)
        self._errors_in_a_row = 0
        self._refusals: RateLimit | None = None
        self._started = time.monotonic()
        self.frames_in = 0
        self._over = False
        self.closed_with: CloseCode | None = None

    @property
    def user(self) -> str | None:
        """Who is asking, where that is known."""
        return self._identity.user

    @property
    def has_left(self) -> bool:
        """Whether the connection was handed over to another worker, and goes on there."""
        return self._for_home is not None and self._over

    @property
    def is_holding(self) -> bool:
        """Whether something waits until the connection has a place: no more is to be received before."""
        return self._held is not None

    def start(self) -> None:
        """Greet the client with its status."""
        self._log(
            logging.INFO,
            "connected",
            remote=self.client.remote,
            agent=self.client.user_agent,
            credentials=self._credentials,
        )
        self._parts.audit.connect(
            self._actor(),
            kind="websocket",
            path=self.client.path,
            credentials=self._credentials,
            agent=self.client.user_agent,
        )
        self._identity.start()
        if self._identity.principal is not None:
            self._belongs_to(self._identity.principal)
        if not self.client.is_greeted:
            self._emit(self._status("Connected to MCP Gateway WebSocket"))
        if self._refused is not None:
            self._log(logging.WARNING, "refused credentials", code=self._refused.code)
            self._parts.audit.auth(self._actor(), credentials=self._credentials, outcome=self._refused.code)
            self._emit(frames.Error(self._refused))

    def admitted(self) -> None:
        """The connection has a place now: what it has asked for meanwhile is answered."""
        if self._over or self._identity.principal is None:
            return
        self._begin()
        held, self._held = self._held, None
        for frame in held or ():
            if not self._over:
                self._guard(frame.reply, partial(self._dispatch, frame))

    def receive(self, message: str | bytes) -> None:
        """Take one message of the client; answers go to the sink, at once or when they are there."""
        if self._over:
            return
        if isinstance(message, bytes):
            if self._admit(None):
                self._refuse(ParseError("a binary message: frames are JSON in text messages"), None)
            return
        if self._has_begun and self.awaited_keys is None:
            call = frames.quick_call(message, max_depth=self._settings.websocket.max_depth)
            if call is not None:
                self.frames_in += 1
                if self._admit(call.reply):
                    self._guard(call.reply, partial(self._take_call, call))
                return
        try:
            values = frames.split_message(message, max_batch=self._settings.websocket.max_batch)
        except GatewayError as error:
            if self._admit(None):
                self._refuse(error, None)
            return
        for value in values:
            if self._over:
                break
            self.frames_in += 1
            if self.awaited_keys is None:
                self._receive_frame(value)
            else:
                self.awaited_keys.hold(value)

    def lost(self, code: int | None) -> None:
        """The socket is gone. `code` is the close code that the client sent, where it did.

        Where the gateway has closed it, its own code is what is recorded: a client may answer with another.
        """
        self._identity.close()
        # What a client answers to a close of the gateway's is not the client's own wish to leave.
        left = not self._over and code in (CloseCode.NORMAL, CloseCode.GOING_AWAY)
        self._over = True
        code = self.closed_with or code
        if self._session.outlet is self:
            self._session.detach(clean=left)
            if self._has_begun:
                self._parts.sessions.park(self._session)
            else:
                self._session.end()
        self._parts.audit.disconnect(
            self._actor(), kind="websocket", code=code, seconds=time.monotonic() - self._started
        )
        self._tell_user("user.disconnected")
        self._log(
            logging.INFO,
            "disconnected",
            code=code,
            seconds=round(time.monotonic() - self._started, 3),
            frames_in=self.frames_in,
            frames_out=self._sink.frames_out,
        )

    def review(self, judge: Callable[[Principal], Principal]) -> None:
        """Go on with what the client may do by now, or say goodbye where its credentials hold no more."""
        principal = self._identity.principal
        if self._over or principal is None:
            return
        try:
            present = judge(principal)
            self._session.review(judge)
        except AuthFailed as refused:
            self._log(logging.INFO, "access ended", reason=refused.message)
            self.disconnect(CloseCode.DISCONNECTED, refused.message)
            return
        self._identity.principal = present
        if not may_do_anything(present) and may_do_anything(principal):
            self._log(logging.INFO, "access ended", reason="nothing is allowed any more")
            self.disconnect(CloseCode.PERMISSION_DENIED, "nothing is allowed to this user any more")

    async def drain(self, deadline: float) -> None:
        """Let open calls come to their end until `deadline` (of the loop's clock), then say goodbye."""
        if not self._over:
            await self._session.finish_calls(deadline)
        self.disconnect(CloseCode.SHUTDOWN, "the gateway is ending")

    def probe(self, seconds: float) -> None:
        """Ask the client for a sign of life; the connection ends where none comes in time."""
        if not self._over:
            self._sink.probe(seconds)

    async def wait_settled(self) -> None:
        """Wait until no task of this conversation runs any more (their backends have been told)."""
        await self._session.wait_settled()

    def disconnect(self, code: CloseCode, reason: str) -> None:
        """Say why, then close. Where the client is not to come back, its calls end first."""
        if not self._over:
            if not code.reconnect and self._session.outlet is self and code != CloseCode.RESUMED_ELSEWHERE:
                self._session.cancel_all("the connection was closed by the gateway")
            # All come back at once else, to a gateway that has just begun.
            jitter = random.randrange(_COMING_BACK_MS) if code == CloseCode.SHUTDOWN else None  # noqa: S311
            self._emit(frames.Disconnect(code.value, reason, code.reconnect, jitter))
            self._over = True
            self.closed_with = code
            if self._session.outlet is self:
                self._session.events.silence()
            self._sink.close(code, reason)

    # --- frames --------------------------------------------------------------------------------------------

    def _receive_frame(self, value: object) -> None:
        if self._for_home is not None:
            self._for_home.append(value)
            return
        reply = ReplyTo.of(value)
        if isinstance(value, dict) and value.get("type") == "input_response":
            reply = None  # its id is that of a call, which an error with that id would end
        if self._admit(reply):
            self._guard(reply, partial(self._take, value))

    def _take(self, value: object) -> None:
        envelope = Envelope.open(value, max_depth=self._settings.websocket.max_depth)
        self._parts.metrics.frame_received(envelope.type)
        if envelope.type not in frames.OPEN_TYPES:
            # Its own call may be stopped by a client whose token has just run out.
            self._identity.require(unexpired=envelope.type != "cancel")
        frame = frames.decode(envelope)
        if self._has_to_wait(frame):
            self._held = [*(self._held or ()), frame]
        else:
            self._dispatch(frame)

    def _take_call(self, call: frames.ToolCall) -> None:
        """As `_take`, of what was read in one step."""
        self._parts.metrics.frame_received("tool_call")
        self._call(call, self._identity.require())

    def _guard(self, reply: ReplyTo | None, act: Callable[[], None]) -> None:
        """Do what a frame asks for; whatever goes wrong is answered."""
        try:
            act()
            self._errors_in_a_row = 0
        except GatewayError as error:
            self._refuse(error, reply)
        except Exception:
            # The one boundary where a fault of the gateway becomes an answer; the log has all of it.
            fault = secrets.token_hex(4)
            _LOGGER.exception("internal error %s", fault)
            internal = InternalError(f"a fault of the gateway; its log has it under the id {fault}")
            self._emit(frames.Error(internal), reply)

    def _admit(self, reply: ReplyTo | None) -> bool:
        """Whether one more frame is within the rate of its user; refused and told otherwise."""
        limits = self._parts.limits
        wait = (
            self._anonymous.try_take() if self._anonymous is not None else limits.try_frame(self.user or "")
        )
        if not wait:
            self._flood.admitted()
            return True
        self._refuse(RateLimited("too many frames", retry_after_ms=retry_after_ms(wait)), reply)
        if self._flood.refused():
            self.disconnect(CloseCode.TOO_MANY_REQUESTS, "too many frames")
        return False

    def _has_to_wait(self, frame: frames.ClientFrame) -> bool:
        """Whether a frame is held until the connection has a place; a `resume` may get it one."""
        if self._has_begun or isinstance(frame, frames.Ping | frames.StatusRequest | frames.Auth):
            return False
        if self._held is None and isinstance(frame, frames.Resume):
            user = self._identity.require().user
            outlet = self._parts.sessions.outlet_of(frame.session, user)
            if outlet is not None:
                self._sink.come_first()
                outlet.replaced()
        return not self._has_begun

    def _respond(self, frame: frames.InputResponse) -> None:
        try:
            later = self._session.respond(frame)
        except GatewayError as error:
            self._refuse(error, None, request_id=frame.request_id)
            return
        if later is not None:
            task = asyncio.create_task(self._respond_later(later, frame.request_id), name="response")
            _RESPONDING.add(task)
            task.add_done_callback(_RESPONDING.discard)

    async def _respond_later(self, later: Awaitable[None], request_id: str) -> None:
        try:
            await later
        except GatewayError as error:
            if not self._over:
                self._refuse(error, None, request_id=request_id)

    def _call(self, frame: frames.ServerRequest, principal: Principal) -> None:
        wait = self._parts.limits.try_call(principal.user)
        if wait:
            raise RateLimited("too many calls", retry_after_ms=retry_after_ms(wait))
        self._session.call(frame, principal)

    def _dispatch(self, frame: frames.ClientFrame) -> None:
        match frame:
            case frames.Ping():
                self._emit(frames.Pong(), frame.reply)
            case frames.StatusRequest():
                self._emit(self._status("Status of this connection", asked=True), frame.reply)
            case frames.Auth():
                self._authenticate_in_time(frame)
            case frames.ListTools():
                self._list_tools(frame)
            case frames.InputResponse():
                self._respond(frame)
            case frames.Cancel():
                self._session.cancel(frame.reply)
            case frames.Subscribe():
                self._session.subscribe(frame, self._identity.require())
            case frames.Unsubscribe():
                self._session.unsubscribe(frame)
            case frames.Publish():
                self._session.events.publish(frame, self._identity.require())
            case frames.Resume():
                self._resume(frame, self._identity.require())
            case _:  # what is asked of servers
                self._call(frame, self._identity.require())

    def _authenticate_in_time(self, frame: frames.Auth) -> None:
        """As `_authenticate`, as soon as the key that has signed the token is known."""
        fetched = self._parts.tokens.fetching_keys(frame.token)
        if fetched is None:
            self._authenticate(frame)
            return

        def act() -> None:
            self.awaited_keys = None
            if not self._over:
                self._guard(frame.reply, partial(self._authenticate, frame))

        def take(value: object) -> None:
            if self.awaited_keys is not None:  # for the key of another `auth` frame behind the first
                self.awaited_keys.hold(value)
            elif not self._over:
                self._receive_frame(value)

        self.awaited_keys = AwaitedKeys(fetched, act, take)

    def _authenticate(self, frame: frames.Auth) -> None:
        try:
            principal = self._identity.prove(frame.token)
        except (AuthFailed, PermissionDenied) as error:
            self._log(logging.WARNING, "refused credentials", code=error.code, credentials="frame")
            self._parts.audit.auth(self._actor(), credentials="frame", outcome=error.code)
            self._emit(frames.Error(error), frame.reply)
            if self._identity.has_failed_too_often:
                self.disconnect(CloseCode.INVALID_TOKEN, "too many failed authentications")
            return
        home = self._parts.peers.home_of(principal.user)
        if (
            home != self._parts.peers.number
            and self._identity.principal is None
            and not self.client.is_greeted
        ):
            self._go_home(home, frame)
            return
        one_too_many = self._sink.identify(principal.user)
        if one_too_many is not None:
            self.disconnect(CloseCode.CONNECTION_LIMIT, one_too_many)
            return
        self._identity.accept(principal)
        self._belongs_to(principal)
        self._credentials = "frame"
        self._log(logging.INFO, "authenticated", credentials="frame")
        self._parts.audit.auth(self._actor(), credentials="frame")
        self._emit(self._status("Authenticated", asked=True), frame.reply)

    def _go_home(self, home: int, frame: frames.Auth) -> None:
        """Hand the connection over to the worker of its user, with all that has come and is unanswered."""
        value: dict[str, object] = {"type": "auth", "data": {"token": frame.token}}
        if frame.reply is not None:
            value["request_id" if frame.reply.alternative else "id"] = frame.reply.id
        self._for_home = [value]
        # What stands behind it in the same message comes first to be known.
        asyncio.get_running_loop().call_soon(self._leave, home)

    def _leave(self, home: int) -> None:
        if not self._over and self._for_home is not None:
            self._log(logging.INFO, "handed over", worker=home)
            self._over = True
            self._sink.leave(home, self._for_home)

    def _list_tools(self, frame: frames.ListTools) -> None:
        listed = self._parts.gateway.list_tools(
            self._identity.require(), frame.server_id, connection=self._session.id
        )
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

    def _belongs_to(self, principal: Principal) -> None:
        self._anonymous = None
        self._session.principal = principal
        self._session.actor = self._actor()
        if not self._has_begun and self._sink.has_place:
            self._begin()

    def _begin(self) -> None:
        """The connection is a user's, and may stay: now others hear of it, and its session can be resumed."""
        self._has_begun = True
        self._parts.sessions.add(self._session)
        self._tell_user("user.connected")

    def _expiring(self) -> None:
        self._emit(self._status("The token expires soon: send an auth frame with a new one"))

    def _expired(self) -> None:
        self.disconnect(CloseCode.TOKEN_EXPIRED, "the token has expired")

    def _resume(self, frame: frames.Resume, principal: Principal) -> None:
        if not self._session.is_fresh:
            raise InvalidParams(
                "resume comes before any call or subscription of its connection",
                details=[{"path": "/type", "reason": "must be the first request of a connection"}],
            )
        session = self._parts.sessions.take(frame.session, principal.user)
        if session is not None and session is not self._session:
            self._parts.sessions.remove(self._session)
            if session.outlet is not None:
                session.outlet.replaced()
            session.attach(self, self.client.client_id, principal)
            session.actor = self._actor()
            session.trace = self.client.trace
            self._session = session
        if session is None:
            self._session.forget_past()
        self._log(logging.INFO, "resumed", found=session is not None, pending=len(frame.pending))
        self._emit(self._status("Resumed", asked=True, resumed=session is not None), frame.reply)
        self._session.answer_pending(frame.pending)
        if session is not None:
            session.ask_again()
            session.replay(frame.since)

    # --- the outlet of a session ---------------------------------------------------------------------------

    def say_result(self, text: str) -> None:
        """Send what must not be lost."""
        if not self._over:
            self._parts.metrics.frame_sent(frames.type_of(text))
            self._sink.send_result(text)

    def say_stream(self, source: str, text: str) -> None:
        """Send what may be dropped."""
        if not self._over:
            self._parts.metrics.frame_sent(frames.type_of(text))
            self._sink.send_stream(source, text)

    @property
    def live_reader(self) -> LiveReader:
        """What takes events as they happen, without a word of the conversation for each."""
        return self._sink.live_reader

    @property
    def has_room(self) -> bool:
        """Whether nothing waits for the client."""
        return not self._over and self._sink.has_room

    def fell_behind(self) -> None:
        """The log no longer holds what the client has still to be given."""
        self.disconnect(CloseCode.SLOW_READER, "the log moved on before it was read")

    def catch_up(self) -> None:
        """The sink has room again: go on with what the client has missed."""
        if not self._over:
            self._session.events.catch_up()

    def replaced(self) -> None:
        """The session goes on through another connection."""
        self.disconnect(CloseCode.RESUMED_ELSEWHERE, "the session was resumed on another connection")

    # --- saying things -------------------------------------------------------------------------------------

    def _status(self, message: str, *, asked: bool = False, resumed: bool | None = None) -> frames.Status:
        websocket = self._settings.websocket
        return frames.Status(
            message=message,
            client_id=self.client.client_id,
            session=self._session.id,
            authenticated=self._identity.principal is not None,
            user=self.user,
            ping_interval=round(websocket.ping_interval * 1000),
            pong_timeout=round(websocket.pong_timeout * 1000),
            max_message_size=websocket.max_message_size,
            features=FEATURES,
            open_calls=self._session.open_calls if asked else None,
            channels=self._session.channels if asked else None,
            resumed=resumed,
            expires_at=self._identity.expires_at_ms,
        )

    def _refuse(self, error: GatewayError, reply: ReplyTo | None, *, request_id: str | None = None) -> None:
        self._refusals = self._refusals or RateLimit(_REFUSALS_LOGGED)
        if self._refusals.admit():
            if error.code in _AUDITED:
                self._parts.audit.refused(self._actor(), action="frame", code=error.code)
            self._log(
                logging.INFO, "refused", code=error.code, unlogged=self._refusals.take_refused() or None
            )
        self._parts.metrics.error_sent(error.code)
        self._emit(frames.Error(error, request_id), reply)
        # What may succeed later is no fault of the client, who may have sent many such frames at once.
        if not error.temporary:
            self._errors_in_a_row += 1
            if self._errors_in_a_row >= self._settings.websocket.max_errors:
                self.disconnect(CloseCode.TOO_MANY_ERRORS, "too many errors")

    def _emit(self, frame: ServerFrame, reply: ReplyTo | None = None) -> None:
        if not self._over:
            self.say_result(encode_result(frame, reply))

    def _actor(self) -> Actor:
        principal = self._identity.principal
        token_id = None if principal is None else principal.token_id
        return Actor(self.client.remote, self.user, token_id, self.client.client_id)

    def _tell_user(self, type_name: str) -> None:
        if self._has_begun:
            data = {"clientId": self.client.client_id, "kind": "websocket"}
            self._parts.bus.publish(type_name, data, channel=f"user:{self.user}")

    def _no_auth_in_time(self) -> None:
        self._log(logging.WARNING, "no auth in time")
        self.disconnect(CloseCode.NO_AUTH_IN_TIME, "no auth frame in time")

    def _log(self, level: int, event: str, **fields: Any) -> None:
        log_event(_LOGGER, level, event, client=self.client.client_id, user=self.user, **fields)
