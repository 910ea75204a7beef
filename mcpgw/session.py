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
from typing import Any, Literal, Protocol

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
    TooLarge,
    ToolExecutionError,
    UnknownCall,
    UnknownChannel,
    suggest,
)
from mcpgw.event_reader import CatchUp, LogMovedOnError
from mcpgw.gateway import Gateway
from mcpgw.kept_ends import EndedCalls, KeptEnds
from mcpgw.logs import log_event
from mcpgw.metrics import Metrics
from mcpgw.rooms import Rooms
from mcpgw.settings import SessionSettings
from mcpgw.subscriptions import ROOM, Subscription, may_read_channel, require_channel
from mcpgw.tracing import CallerTrace
from mcpgw.wire import frames
from mcpgw.wire.events import Event, Position
from mcpgw.wire.frames import ReplyTo, ServerFrame

_LOGGER = logging.getLogger("mcpgw.websocket")
_LONGEST_SHOWN = 2048
_STEP = 16
_LONGEST_PAYLOAD = 65536
_PROGRESS_PAUSE = 0.2
"""Seconds between two events of a call's progress; its caller gets each one, as frames."""
_MOST_CHANNELS = 100
CALL_SOURCE = "call:"
"""What the source of a call's progress begins with, before the call's id."""


class Outlet(Protocol):
    """The connection that a session speaks through at the moment."""

    def say_result(self, text: str) -> None:
        """Send what must not be lost."""

    def say_stream(self, source: str, text: str) -> None:
        """Send what may be dropped where the reader is too slow; `source` is told how much was."""

    def say_event(self, event: Event, text: str) -> None:
        """Send an event."""

    @property
    def has_room(self) -> bool:
        """Whether nothing waits: more of what was missed can be sent."""

    def fell_behind(self) -> None:
        """What was missed is no longer in the log: end this connection."""

    def replaced(self) -> None:
        """The session goes on through another connection: end this one."""


@dataclass(slots=True, eq=False)
class _OpenCall:
    """A call that has not had its end yet."""

    reply: ReplyTo
    server_id: str
    tool_name: str
    on_disconnect: Literal["keep", "cancel"] | None
    started: float
    arguments: Mapping[str, Any]
    told_at: float = 0.0
    task: asyncio.Task[None] | None = None
    ended: bool = False


class Session:
    """The calls and subscriptions of one client.

    `outlet` is where it speaks; None while the client is away. `client_id` names it in the log and in events.
    """

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
        self.client_id = client_id
        self.outlet: Outlet | None = None
        self.actor = Actor("", client=client_id)
        self.trace: CallerTrace | None = None
        self._metrics = metrics
        self._audit = audit
        self._principal: Principal | None = None
        self._gateway = gateway
        self._bus = bus
        self._rooms = rooms
        self._max_calls = max_calls
        self._calls: dict[str, _OpenCall] = {}
        self.ends = KeptEnds(settings)
        self._ended = EndedCalls()
        self._is_fresh = True
        self._tasks: set[asyncio.Task[None]] = set()
        self._subscriptions: dict[str, Subscription] = {}
        self._catching_up: list[CatchUp] = []
        self._is_stepping = False

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
        for channel, subscription in list(self._subscriptions.items()):
            subscription.principal = principal
            if not may_read_channel(principal, channel):
                # A newer token may grant less than the one that subscribed.
                self._leave(channel)
                self._say(frames.Unsubscribed(channel), None)

    @property
    def open_calls(self) -> tuple[str, ...]:
        """The ids of the calls that have no end yet."""
        return tuple(self._calls)

    @property
    def channels(self) -> tuple[str, ...]:
        """The channels that are subscribed."""
        return tuple(self._subscriptions)

    @property
    def is_fresh(self) -> bool:
        """Whether nothing was asked of it yet."""
        return self._is_fresh

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
        )
        self._is_fresh = False
        self._calls[call.reply.id] = call
        call.task = asyncio.create_task(self._run(call, frame, principal), name=f"call {call.reply.id}")
        self._tasks.add(call.task)
        call.task.add_done_callback(self._tasks.discard)

    def cancel(self, reply: ReplyTo) -> None:
        """End a call at the client's word.

        Raises:
            UnknownCall: no open call has this id.
        """
        call = self._calls.get(reply.id)
        if call is None:
            raise UnknownCall(f"no open call has the id {reply.id!r}{suggest(reply.id, self._calls)}")
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

        def on_queued(position: int) -> None:
            self._stream(source, frames.Queued(position), call)

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
        self.ends.keep(call.reply.id, text)
        if self.outlet is not None:
            self.ends.drop_read()
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
        if self.outlet is not None:
            self.outlet.say_stream(source, text)
        return True

    # --- events --------------------------------------------------------------------------------------------

    def subscribe(self, frame: frames.Subscribe, principal: Principal) -> None:
        """Answer, then send what was missed or the present state, then all that comes.

        Raises:
            UnknownChannel: there is no such channel.
            PermissionDenied: the caller may not read it.
        """
        require_channel(principal, frame.channel)
        if frame.channel not in self._subscriptions and len(self._subscriptions) >= _MOST_CHANNELS:
            raise QueueFull(f"{_MOST_CHANNELS} channels are subscribed: unsubscribe from one first")
        if frame.channel.startswith(ROOM):
            self._rooms.join(frame.channel, self.client_id, principal.user)
        old = self._subscriptions.pop(frame.channel, None)
        if old is not None:
            old.stop()
        else:
            self._metrics.subscribed(frame.channel)
        self._is_fresh = False
        subscription = Subscription(principal, frame.channel, frame.filter, self._deliver)
        self._subscriptions[frame.channel] = subscription
        self._catch_up_from({frame.channel: subscription}, frame.since, frame.reply)

    def unsubscribe(self, frame: frames.Unsubscribe) -> None:
        """End a subscription, and answer.

        Raises:
            UnknownChannel: it is not subscribed.
        """
        if frame.channel not in self._subscriptions:
            raise UnknownChannel(
                f"the channel {frame.channel[:64]!r} is not subscribed{suggest(frame.channel, self.channels)}"
            )
        self._leave(frame.channel)
        self._say(frames.Unsubscribed(frame.channel), frame.reply)

    def _leave(self, channel: str) -> None:
        self._subscriptions.pop(channel).stop()
        self._metrics.unsubscribed(channel)
        if channel.startswith(ROOM):
            self._rooms.leave(channel, self.client_id)

    def publish(self, frame: frames.Publish, principal: Principal) -> None:
        """Say something in a room that the client is in, and answer.

        Raises:
            UnknownChannel: there is no such channel, or it is no room.
            PermissionDenied: the client is not in the room.
        """
        require_channel(principal, frame.channel)
        if not frame.channel.startswith(ROOM):
            raise UnknownChannel("only rooms can be published to: room:NAME")
        if frame.channel not in self._subscriptions:
            raise PermissionDenied(
                f"subscribe to {frame.channel!r} first: a room's members alone speak in it"
            )
        if len(frames.dumps(frame.payload)) > _LONGEST_PAYLOAD:
            raise TooLarge(f"a room takes payloads of at most {_LONGEST_PAYLOAD} characters")
        self._bus.publish(
            "room.message",
            {"user": principal.user, "clientId": self.client_id, "payload": frame.payload},
            channel=frame.channel,
        )
        self._say(frames.Published(frame.channel, self._bus.position.offset), frame.reply)

    def _catch_up_from(
        self, subscriptions: Mapping[str, Subscription], since: Position | None, reply: ReplyTo | None
    ) -> None:
        """Answer for each channel, then begin to send what was missed or the present state."""
        catch_up = CatchUp(self._bus, subscriptions, since)
        for channel in subscriptions:
            present = self._rooms.present(channel) if channel.startswith(ROOM) else None
            recovered = catch_up.recovered is not False
            self._say(frames.Subscribed(channel, catch_up.position, recovered, present), reply)
        self._catching_up.append(catch_up)
        self.catch_up()

    def catch_up(self) -> None:
        """Go on with what was missed while the outlet has room for it; it calls again when it has."""
        while self._catching_up and self.outlet is not None and self.outlet.has_room:
            catch_up = self._catching_up[0]
            self._is_stepping = True
            try:
                catch_up.step(_STEP)
            except LogMovedOnError:
                self.outlet.fell_behind()
                return
            finally:
                self._is_stepping = False
            if catch_up.is_live:
                self._catching_up.remove(catch_up)

    def _deliver(self, event: Event, text: str) -> None:
        if self.outlet is None:
            return
        if self._is_stepping:
            self.outlet.say_result(text)  # asked for when there was room: nothing of it may be dropped
        else:
            self.outlet.say_event(event, text)

    def _say(self, frame: ServerFrame, reply: ReplyTo | None) -> None:
        if self.outlet is not None:
            self.outlet.say_result(frames.encode(frame, reply))

    # --- coming and going ----------------------------------------------------------------------------------

    def detach(self, *, clean: bool) -> None:
        """The connection is gone: by the client's word where `clean`, else it broke.

        Calls that are not to be kept are cancelled, and their backends told.
        """
        self.outlet = None
        default: Literal["keep", "cancel"] = "cancel" if clean else "keep"
        for call in list(self._calls.values()):
            if (call.on_disconnect or default) == "cancel":
                error = Cancelled("the connection was closed")
                self._end_call(call, frames.Error(error), outcome=error.code)
        self._fall_silent()

    def _fall_silent(self) -> None:
        self._catching_up.clear()
        for channel, subscription in self._subscriptions.items():
            subscription.stop()
            if channel.startswith(ROOM):
                self._rooms.leave(channel, self.client_id)

    def attach(self, outlet: Outlet, client_id: str) -> None:
        """Speak through another connection from now on; subscriptions are silent until `replay`."""
        self._fall_silent()
        self.client_id = client_id
        self.outlet = outlet

    def replay(self, since: Position | None) -> None:
        """Send every subscribed channel's events behind `since`, in the order of the log."""
        channels = self.channels
        for channel in channels:
            if channel.startswith(ROOM) and self.user is not None:
                self._rooms.join(channel, self.client_id, self.user)
        if channels:
            # Without a position it is not known what was missed: it may be anything.
            self._catch_up_from(dict(self._subscriptions), since or Position("", 0), None)

    def answer_pending(self, call_ids: Iterable[str]) -> None:
        """Give each of the calls that the client believes open what it misses: nothing while it goes on."""
        for call_id in dict.fromkeys(call_ids):
            if call_id not in self._calls and self.outlet is not None:
                self.outlet.say_result(self.ends.get(call_id) or self._unknown(call_id))

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
        self._fall_silent()
        for channel in self._subscriptions:
            self._metrics.unsubscribed(channel)
        self._subscriptions.clear()
        self.ends.clear()


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
