"""What a client has with the gateway beyond one connection: its calls, their ends, its subscriptions.

A session begins with a connection and outlives it for a while, so that a client that lost its network can go
on where it was: calls that ran meanwhile, ends that it never read. A call never runs twice because of that,
and each has one end. Source: the wire contract, sections 3 (`resume`) and 8.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from mcpgw.access.permissions import may_call
from mcpgw.access.tokens import Principal
from mcpgw.audit import Actor, Audit
from mcpgw.bus import Bus
from mcpgw.errors import (
    Cancelled,
    DuplicateId,
    GatewayError,
    InternalError,
    OutcomeUnknown,
    PermissionDenied,
    QueueFull,
    ToolExecutionError,
    UnknownCall,
    suggest,
)
from mcpgw.gateway import Gateway
from mcpgw.kept_ends import EndedCalls, KeptEnd, KeptEnds
from mcpgw.logs import log_event
from mcpgw.metrics import Metrics
from mcpgw.rooms import Rooms
from mcpgw.session_events import Outlet, SessionEvents
from mcpgw.settings import SessionSettings
from mcpgw.tracing import CallerTrace
from mcpgw.wire import frames
from mcpgw.wire.events import Position
from mcpgw.wire.frames import ReplyTo, ServerFrame

_LOGGER = logging.getLogger("mcpgw.websocket")
_LONGEST_SHOWN = 2048
_PROGRESS_PAUSE = 0.2
"""Seconds between two events of a call's progress; its caller gets each one, as frames."""
CALL_SOURCE = "call:"
"""What the source of a call's progress begins with, before the call's id."""


@dataclass(slots=True, eq=False)
class _OpenCall:
    """A call that has not had its end yet."""

    reply: ReplyTo
    server_id: str
    tool_name: str
    on_disconnect: Literal["keep", "cancel"] | None
    started: float
    arguments: Mapping[str, Any]
    scopes: frozenset[str]
    told_at: float = 0.0
    task: asyncio.Task[None] | None = None
    ended: bool = False
    hidden: bool = False
    """Whether the token that the session goes on with may not know of it; it goes on all the same."""


class Session:
    """The calls and subscriptions (`events`) of one client.

    `outlet` is where it speaks; None while the client is away. `client_id` names it in the log and in events.
    """

    __slots__ = (
        "_audit",
        "_bus",
        "_calls",
        "_ended",
        "_gateway",
        "_has_called",
        "_max_calls",
        "_metrics",
        "_principal",
        "_tasks",
        "actor",
        "ends",
        "events",
        "id",
        "trace",
    )

    def __init__(
        self,
        gateway: Gateway,
        bus: Bus,
        rooms: Rooms,
        *,
        settings: SessionSettings,
        max_calls: int,
        client_id: str,
        metrics: Metrics,
        audit: Audit,
    ) -> None:
        self.id = secrets.token_urlsafe(18)
        self.events = SessionEvents(bus, rooms, client_id=client_id, metrics=metrics)
        self.actor = Actor("", client=client_id)
        self.trace: CallerTrace | None = None
        self._metrics = metrics
        self._audit = audit
        self._principal: Principal | None = None
        self._gateway = gateway
        self._bus = bus
        self._max_calls = max_calls
        self._calls: dict[str, _OpenCall] = {}
        self.ends = KeptEnds(settings)
        self._ended = EndedCalls()
        self._has_called = False
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def outlet(self) -> Outlet | None:
        """Where it speaks; None while the client is away."""
        return self.events.outlet

    @outlet.setter
    def outlet(self, outlet: Outlet | None) -> None:
        self.events.outlet = outlet

    @property
    def client_id(self) -> str:
        """The client's name in the log and in events; another one after a resume."""
        return self.events.client_id

    @property
    def user(self) -> str | None:
        """Whose session it is; None before that is known."""
        return None if self._principal is None else self._principal.user

    @property
    def principal(self) -> Principal | None:
        """Whose session it is, with what they may do."""
        return self._principal

    @principal.setter
    def principal(self, principal: Principal) -> None:
        self._principal = principal
        self.events.belong_to(principal)
        for call in self._calls.values():
            if not call.hidden and not self._may_know(call):
                call.hidden = True
                if self.outlet is not None:
                    self.outlet.say_result(_denied(call.reply))

    def _may_know(self, call: _OpenCall | KeptEnd) -> bool:
        """Whether the present token may know of a call that an earlier one of this user has begun.

        It may where it allows all that the earlier one did, or could have made the call itself.
        """
        principal = self._principal
        return principal is not None and (
            call.scopes <= principal.scopes or may_call(principal, call.server_id, call.tool_name)
        )

    @property
    def open_calls(self) -> tuple[str, ...]:
        """The ids of the calls that have no end yet, as far as the present token may know of them."""
        return tuple(call_id for call_id, call in self._calls.items() if not call.hidden)

    @property
    def channels(self) -> tuple[str, ...]:
        """The channels that are subscribed."""
        return self.events.channels

    @property
    def is_fresh(self) -> bool:
        """Whether nothing was asked of it yet."""
        return not (self._has_called or self.events.has_subscribed)

    # --- calls ---------------------------------------------------------------------------------------------

    def call(self, frame: frames.ToolCall, principal: Principal) -> None:
        """Begin a call; its frames come through the outlet.

        Raises:
            DuplicateId: a call with this id is open.
            QueueFull: as many calls are open as may be.
        """
        if frame.reply.id in self._calls:
            # The open call keeps its one end: this refusal carries the id and says so by its code.
            raise DuplicateId(f"a call with the id {frame.reply.id!r} is open: choose another")
        if len(self._calls) >= self._max_calls:
            raise QueueFull(
                f"{self._max_calls} calls are open on this connection: wait for one to end",
                retry_after_ms=1000,
            )
        call = _OpenCall(
            frame.reply,
            frame.server_id,
            frame.tool_name,
            frame.on_disconnect,
            time.monotonic(),
            frame.params,
            principal.scopes,
        )
        self._has_called = True
        self._calls[call.reply.id] = call
        call.task = asyncio.create_task(self._run(call, frame, principal), name=f"call {call.reply.id}")
        self._tasks.add(call.task)
        call.task.add_done_callback(self._tasks.discard)

    def cancel(self, reply: ReplyTo) -> None:
        """End a call at the client's word.

        Raises:
            UnknownCall: no open call has this id.
            PermissionDenied: it is a call that the present token may not know of.
        """
        call = self._calls.get(reply.id)
        if call is None:
            raise UnknownCall(f"no open call has the id {reply.id!r}{suggest(reply.id, self.open_calls)}")
        if call.hidden:
            raise PermissionDenied(_HIDDEN_CALL)
        self._end_call(call, frames.Error(Cancelled("the call was cancelled")), outcome=Cancelled.code)

    def cancel_all(self, reason: str) -> None:
        """End every open call, and tell the backends."""
        for call in list(self._calls.values()):
            error = Cancelled(reason)
            self._end_call(call, frames.Error(error), outcome=error.code)

    async def finish_calls(self, deadline: float) -> None:
        """Let open calls come to their end until `deadline` (of the loop's clock), then end what is left."""
        loop = asyncio.get_running_loop()
        while self._calls and loop.time() < deadline:
            waited = [call.task for call in self._calls.values() if call.task is not None]
            await asyncio.wait(waited, timeout=deadline - loop.time(), return_when=asyncio.FIRST_COMPLETED)
        for call in list(self._calls.values()):
            error = OutcomeUnknown("the gateway is ending and has stopped the call; it may have run in part")
            self._end_call(call, frames.Error(error), outcome=error.code)

    async def wait_settled(self) -> None:
        """Wait until no task of this session runs any more (their backends have been told)."""
        if self._tasks:
            await asyncio.wait(set(self._tasks))

    async def _run(self, call: _OpenCall, frame: frames.ToolCall, principal: Principal) -> None:
        source = f"{CALL_SOURCE}{call.reply.id}"

        def on_started() -> None:
            data = self._call_data(call)
            shown = {"arguments": frame.params} if _is_short(frame.params) else {}
            self._publish_call("call.started", data | shown, data)

        def on_queued(position: int, retry_after_ms: int | None) -> None:
            self._stream(source, frames.Queued(position, retry_after_ms), call)

        def on_progress(progress: float, total: float | None, message: str | None) -> None:
            update = frames.ToolProgress(call.server_id, call.tool_name, progress, total, message)
            if self._stream(source, update, call):
                told = {name: value for name, value in update.data().items() if name in _PROGRESS}
                now = time.monotonic()
                if now - call.told_at < _PROGRESS_PAUSE:
                    return
                call.told_at = now
                # The words of a progress may hold parts of the result.
                numbers = {name: value for name, value in told.items() if name != "message"}
                data = self._call_data(call)
                self._publish_call("call.progress", data | told, data | numbers)

        def on_log(level: str, logger: str | None, data: Any) -> None:
            self._stream(source, frames.ToolLog(level, data, logger), call)

        try:
            result = await self._gateway.call_tool(
                principal,
                frame.server_id,
                frame.tool_name,
                frame.params,
                timeout_ms=frame.timeout_ms,
                on_started=on_started,
                on_queued=on_queued,
                on_progress=on_progress,
                on_log=on_log,
                trace=self.trace,
            )
        except GatewayError as error:
            self._end_call(call, frames.Error(error), outcome=error.code)
        except Exception:
            # The one boundary where a fault of the gateway becomes an answer; the log has all of it.
            fault = secrets.token_hex(4)
            _LOGGER.exception("internal error %s", fault)
            self._bus.publish("gateway.error", {"faultId": fault})
            internal = InternalError(f"a fault of the gateway; its log has it under the id {fault}")
            self._end_call(call, frames.Error(internal), outcome=internal.code)
        except asyncio.CancelledError:
            # This session ends a call before it stops its task: whoever else stopped it, the client is told.
            stopped = OutcomeUnknown("the call was stopped inside the gateway; it may have run in part")
            self._end_call(call, frames.Error(stopped), outcome=stopped.code)
            raise
        else:
            response = frames.ToolResponse(
                server_id=call.server_id,
                tool_name=call.tool_name,
                content=result.content,
                duration_ms=self._duration_ms(call),
                structured_content=result.structured_content,
                has_structured_content=result.has_structured_content,
                is_error=result.is_error,
                meta=result.meta,
            )
            self._end_call(call, response, outcome="tool_error" if result.is_error else "ok")

    def _end_call(self, call: _OpenCall, frame: frames.ToolResponse | frames.Error, *, outcome: str) -> None:
        """Give a call its one end; whatever comes later for it is dropped."""
        if call.ended:
            return
        call.ended = True
        del self._calls[call.reply.id]
        try:
            text = frames.encode(frame, call.reply)
        except ValueError:
            frame, outcome = frames.Error(_NO_JSON), _NO_JSON.code
            text = frames.encode(frame, call.reply)
        self._ended.add(call.reply.id)
        self.ends.keep(call.reply.id, KeptEnd(text, call.server_id, call.tool_name, call.scopes))
        if self.outlet is not None:
            self.ends.drop_read()
            if not call.hidden:
                self.outlet.say_result(text)
        if call.task is not None and call.task is not asyncio.current_task():
            call.task.cancel()
        self._tell_end(call, frame, outcome)
        seconds = time.monotonic() - call.started
        if isinstance(frame, frames.Error):
            self._metrics.error_sent(outcome)
        self._audit.call(
            self.actor,
            server=call.server_id,
            tool=call.tool_name,
            call_id=call.reply.id,
            outcome=outcome,
            seconds=seconds,
            arguments=call.arguments,
        )
        log_event(
            _LOGGER,
            logging.INFO,
            "call",
            client=self.client_id,
            user=self.user,
            server=call.server_id,
            tool=call.tool_name,
            outcome=outcome,
            ms=round(seconds * 1000, 1),
        )

    def _tell_end(self, call: _OpenCall, frame: frames.ToolResponse | frames.Error, outcome: str) -> None:
        data = self._call_data(call) | {"durationMs": self._duration_ms(call)}
        if isinstance(frame, frames.ToolResponse):
            data["success"] = not frame.is_error
            result = frame.result()
            shown = {"result": result} if _is_short(result) else {}
            self._publish_call("call.finished", data | shown, data)
        elif outcome == Cancelled.code:
            self._publish_call("call.cancelled", data)
        else:
            self._publish_call("call.failed", data | {"code": outcome})

    def _publish_call(
        self, type_name: str, data: dict[str, Any], masked: dict[str, Any] | None = None
    ) -> None:
        self._bus.publish(type_name, data, owner=self.user, masked=masked)

    def _call_data(self, call: _OpenCall) -> dict[str, Any]:
        return {
            "callId": call.reply.id,
            "user": self.user or "",
            "serverId": call.server_id,
            "toolName": call.tool_name,
        }

    @staticmethod
    def _duration_ms(call: _OpenCall) -> int:
        return round((time.monotonic() - call.started) * 1000)

    def _stream(self, source: str, frame: ServerFrame, call: _OpenCall) -> bool:
        """Say something about a call that is still open; false where it cannot be said."""
        if call.ended:
            return False
        try:
            text = frames.encode(frame, call.reply)
        except ValueError:
            return False  # a backend's data that is no JSON: the call itself has its end later
        if self.outlet is not None and not call.hidden:
            self.outlet.say_stream(source, text)
        return True

    # --- coming and going ----------------------------------------------------------------------------------

    def detach(self, *, clean: bool) -> None:
        """The connection is gone: by the client's word where `clean`, else it broke.

        Calls that are not to be kept are cancelled, and their backends told.
        """
        self.outlet = None
        default: Literal["keep", "cancel"] = "cancel" if clean else "keep"
        for call in list(self._calls.values()):
            # Who may not know of a call does not end it by leaving, either.
            if (call.on_disconnect or ("keep" if call.hidden else default)) == "cancel":
                error = Cancelled("the connection was closed")
                self._end_call(call, frames.Error(error), outcome=error.code)
        self.events.go_away()

    def attach(self, outlet: Outlet, client_id: str, principal: Principal) -> None:
        """Speak through another connection from now on; subscriptions are silent until `replay`.

        The token of that connection decides what of the session it is told.
        """
        self.events.go_away()
        self.events.come_back(outlet, client_id)
        self._principal = principal
        self.events.belong_to(principal)
        for call in self._calls.values():
            call.hidden = not self._may_know(call)

    def replay(self, since: Position | None) -> None:
        """Send every subscribed channel's events behind `since`, in the order of the log."""
        self.events.replay(since, self.user)

    def answer_pending(self, call_ids: Iterable[str]) -> None:
        """Give each of the calls that the client believes open what it misses: nothing while it goes on."""
        for call_id in dict.fromkeys(call_ids):
            text = self._missed(call_id)
            if text is not None and self.outlet is not None:
                self.outlet.say_result(text)

    def _missed(self, call_id: str) -> str | None:
        call = self._calls.get(call_id)
        if call is not None:
            return _denied(call.reply) if call.hidden else None
        kept = self.ends.get(call_id)
        if kept is None:
            return self._unknown(call_id)
        return kept.text if self._may_know(kept) else _denied(ReplyTo(call_id))

    def forget_past(self) -> None:
        """An earlier session of this client is gone: what it has received is not known any more."""
        self._ended.forget()

    def _unknown(self, call_id: str) -> str:
        if self._ended.may_hold(call_id):
            error = OutcomeUnknown("the call's end is no longer kept: it has run, or was stopped")
        else:
            error = OutcomeUnknown(
                "the call never reached the gateway: it has not run and may be sent again",
                details={"received": False},
            )
        return frames.encode(frames.Error(error), ReplyTo(call_id))

    def end(self) -> None:
        """The client will not come back: cancel what runs, leave every channel."""
        self.outlet = None
        self.cancel_all("the client did not come back")
        self.events.end()
        self.ends.clear()


_HIDDEN_CALL = "the token does not allow this call: come back with the one that began it"


def _denied(reply: ReplyTo) -> str:
    return frames.encode(frames.Error(PermissionDenied(_HIDDEN_CALL)), reply)


_PROGRESS = ("progress", "total", "message")
_NO_JSON = ToolExecutionError("the server's answer holds what is no JSON")


def encode_result(frame: ServerFrame, reply: ReplyTo | None) -> str:
    """The frame as text; an error in its place where a backend's data is no JSON."""
    try:
        return frames.encode(frame, reply)
    except ValueError:
        # Only a backend's own data can hold what JSON has not; what the gateway says is plain text.
        return frames.encode(frames.Error(_NO_JSON), reply)


def _is_short(value: Any) -> bool:
    """Whether a value may stand in an event: the log of events must not hold what is large."""
    budget = [_LONGEST_SHOWN]

    def spend(part: Any) -> bool:
        budget[0] -= len(part) + 8 if isinstance(part, str) else 16
        if budget[0] < 0:
            return False
        if isinstance(part, dict):
            return all(spend(name) and spend(inner) for name, inner in part.items())
        return all(map(spend, part)) if isinstance(part, list) else True

    return spend(value)
