"""What a client has with the gateway beyond one connection: its calls, their ends, its subscriptions.

A session begins with a connection and outlives it for a while, so that a client that lost its network can go
on where it was: calls that ran meanwhile, ends that it never read. A call never runs twice because of that,
and each has one end. Source: the wire contract, sections 3 (`resume`) and 8.
"""

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Iterable
from typing import Literal, TypeVar

from mcpgw.access.callers import Caller
from mcpgw.access.permissions import may_call
from mcpgw.access.revocation import Judge, denial
from mcpgw.access.tokens import Principal
from mcpgw.answers import answer, tool_response
from mcpgw.approvals import PREFIX
from mcpgw.audit import Actor
from mcpgw.backends.requests import InputAnswer, InputRequest
from mcpgw.backends.tools import ToolResult
from mcpgw.bus import Bus
from mcpgw.call_record import CallRecords
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
from mcpgw.metrics import Metrics
from mcpgw.open_calls import CallObserver, OpenCall
from mcpgw.rooms import Rooms
from mcpgw.session_approvals import CHANNEL, SessionApprovals
from mcpgw.session_events import Outlet, SessionEvents
from mcpgw.session_inputs import SessionInputs
from mcpgw.session_resources import CHANNEL as RESOURCES_CHANNEL
from mcpgw.session_resources import SessionResources, require_no_other_channel
from mcpgw.settings import SessionSettings
from mcpgw.subscriptions import require_channel
from mcpgw.tracing import CallerTrace
from mcpgw.wire import frames
from mcpgw.wire.events import Position
from mcpgw.wire.frames import ReplyTo, ServerFrame

T = TypeVar("T")

_LOGGER = logging.getLogger("mcpgw.websocket")
CALL_SOURCE = "call:"
"""What the source of a call's progress begins with, before the call's id."""


class Session:
    """The calls and subscriptions (`events`) of one client.

    `outlet` is where it speaks; None while the client is away. `client_id` names it in the log and in events.
    """

    __slots__ = (
        "_actor",
        "_approvals",
        "_bus",
        "_calls",
        "_ended",
        "_gateway",
        "_has_called",
        "_max_calls",
        "_metrics",
        "_principal",
        "_records",
        "_resources",
        "_tasks",
        "ends",
        "events",
        "id",
        "inputs",
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
        records: CallRecords,
    ) -> None:
        self.id = secrets.token_urlsafe(18)
        self.events = SessionEvents(bus, rooms, client_id=client_id, metrics=metrics)
        self.inputs = SessionInputs(self._say_input)
        self._approvals = SessionApprovals(gateway, self._say_approval)
        self._resources = SessionResources(gateway)
        self._actor = Actor("", client=client_id)
        self.trace: CallerTrace | None = None
        self._metrics = metrics
        self._records = records
        self._principal: Principal | None = None
        self._gateway = gateway
        self._bus = bus
        self._max_calls = max_calls
        self._calls: dict[str, OpenCall] = {}
        self.ends = KeptEnds(settings)
        self._ended = EndedCalls()
        self._has_called = False
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def actor(self) -> Actor:
        """Who is behind it, for the audit log; another connection's after a resume."""
        return self._actor

    @actor.setter
    def actor(self, actor: Actor) -> None:
        self._actor = actor
        for call in self._calls.values():
            if call.record is not None:
                call.record.actor = actor

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
        self._follow_approvals()
        for call in self._calls.values():
            if not call.hidden and not self._may_know(call):
                call.hidden = True
                if self.outlet is not None:
                    self.outlet.say_result(_denied(call.reply))

    def review(self, judge: Judge) -> None:
        """Go on with what the user may do by now; calls that they may not make any more are ended.

        Raises:
            AuthFailed: the credentials of the session hold no more.
        """
        for call in list(self._calls.values()):
            error = denial(call.principal, judge, call.server_id, call.tool_name)
            if error is not None:
                self._end_call(call, frames.Error(error))
        if self._principal is None:
            return
        if (present := judge(self._principal)) != self._principal:
            self.principal = present
        else:
            self.events.leave_forbidden(present)

    def _may_know(self, call: OpenCall | KeptEnd) -> bool:
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

    def call(self, frame: frames.ServerRequest, principal: Principal) -> None:
        """Begin a call, or another request to a server; its frames come through the outlet.

        Raises:
            DuplicateId: a call with this id is open.
            QueueFull: as many calls are open as may be.
        """
        reply = frame.reply
        if reply.id in self._calls:
            # The open call keeps its one end: this refusal carries the id and says so by its code.
            raise DuplicateId(f"a call with the id {reply.id!r} is open: choose another")
        if len(self._calls) >= self._max_calls:
            raise QueueFull(
                f"{self._max_calls} calls are open on this connection: wait for one to end",
                retry_after_ms=1000,
            )
        call = OpenCall(reply, frame.server_id or "", "", None, principal)
        if isinstance(frame, frames.ToolCall):
            call.tool_name, call.on_disconnect = frame.tool_name, frame.on_disconnect
            call.record = self._records.begin(
                self._actor,
                call_id=reply.id,
                server=frame.server_id,
                tool=frame.tool_name,
                arguments=frame.params,
                logger=_LOGGER,
            )
        self._has_called = True
        self._calls[reply.id] = call
        if isinstance(frame, frames.ToolCall) and self._begin(call, frame, principal):
            return
        call.task = asyncio.create_task(self._run(call, frame, principal), name=f"call {reply.id}")
        self._tasks.add(call.task)
        call.task.add_done_callback(self._tasks.discard)

    def _begin(self, call: OpenCall, frame: frames.ToolCall, principal: Principal) -> bool:
        """Send a call at once, where nothing has to be waited for; false where it needs a task."""

        def on_end(result: ToolResult | None, error: Exception | None) -> None:
            if result is None:
                self._end_call(call, frames.Error(self._told(error)))
                return
            try:
                self._end_call(call, tool_response(frame, result, call.record))
            except Exception as fault:  # noqa: BLE001 - the boundary where a fault becomes an answer
                self._end_call(call, frames.Error(self._told(fault)))

        try:
            call.begun = self._gateway.begin_call(
                Caller(principal, self.id, self.trace),
                frame.server_id,
                frame.tool_name,
                frame.params,
                timeout_ms=frame.timeout_ms,
                observer=CallObserver(self, call),
                on_end=on_end,
            )
        except Exception as fault:  # noqa: BLE001 - as above
            self._end_call(call, frames.Error(self._told(fault)))
            return True
        return call.begun is not None

    def _told(self, error: Exception | None) -> GatewayError:
        """What the client is told of `error`; of a fault of the gateway the log has all."""
        if isinstance(error, GatewayError):
            return error
        fault = secrets.token_hex(4)
        _LOGGER.error("internal error %s", fault, exc_info=error)
        self._bus.publish("gateway.error", {"faultId": fault})
        return InternalError(f"a fault of the gateway; its log has it under the id {fault}")

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
        self._end_call(call, frames.Error(Cancelled("the call was cancelled")))

    def cancel_all(self, reason: str) -> None:
        """End every open call, and tell the backends."""
        for call in list(self._calls.values()):
            error = Cancelled(reason)
            self._end_call(call, frames.Error(error))

    async def finish_calls(self, deadline: float) -> None:
        """Let open calls come to their end until `deadline` (of the loop's clock), then end what is left."""
        loop = asyncio.get_running_loop()
        while self._calls and loop.time() < deadline:
            waited = [call.until_ended() for call in self._calls.values()]
            await asyncio.wait(waited, timeout=deadline - loop.time(), return_when=asyncio.FIRST_COMPLETED)
        for call in list(self._calls.values()):
            error = OutcomeUnknown("the gateway is ending and has stopped the call; it may have run in part")
            self._end_call(call, frames.Error(error))

    async def wait_settled(self) -> None:
        """Wait until no task of this session runs any more (their backends have been told)."""
        if self._tasks:
            await asyncio.wait(set(self._tasks))

    async def _run(self, call: OpenCall, frame: frames.ServerRequest, principal: Principal) -> None:
        caller = Caller(principal, self.id, self.trace)
        try:
            asking = answer(self._gateway, caller, frame, CallObserver(self, call), call.record)
            response = await self._with_faults_told(asking)
        except GatewayError as error:
            self._end_call(call, frames.Error(error))
        except asyncio.CancelledError:
            # This session ends a call before it stops its task: whoever else stopped it, the client is told.
            stopped = OutcomeUnknown("the call was stopped inside the gateway; it may have run in part")
            self._end_call(call, frames.Error(stopped))
            raise
        else:
            self._end_call(call, response)

    async def _with_faults_told(self, work: Awaitable[T]) -> T:
        """Await `work`; a fault of the gateway becomes an answer here, and the log has all of it."""
        try:
            return await work
        except GatewayError:
            raise
        except Exception as error:  # noqa: BLE001 - the boundary where a fault becomes an answer
            raise self._told(error) from None

    def tell(self, call: OpenCall, frame: ServerFrame) -> bool:
        """Say something about a call that goes on; false where it cannot be said."""
        return self._stream(f"{CALL_SOURCE}{call.reply.id}", frame, call)

    async def ask(self, call: OpenCall, request: InputRequest) -> InputAnswer:
        """Have the client answer what a server asks in mid-call."""
        seconds = self._gateway.call_settings.input_timeout
        return await self.inputs.ask(call.reply, request, call.server_id, call.tool_name, seconds=seconds)

    def subscribe(self, frame: frames.Subscribe, principal: Principal) -> None:
        """As `SessionEvents.subscribe`; who reads calls and may approve some is asked to.

        Where resources are named, their servers are asked first, and the answer comes when they have agreed:
        ``subscribed``, or the error of the first that did not.

        Raises:
            InvalidParams: resources are named, and it is not their channel.
        """
        require_no_other_channel(frame)
        if frame.channel != RESOURCES_CHANNEL:
            self.events.subscribe(frame, principal)
            self._follow_approvals()
            return
        require_channel(principal, frame.channel)
        watching = self._resources.watching(Caller(principal, self.id, self.trace), frame.filter.resources)
        if watching is None:
            self.events.subscribe(frame, principal)
            return
        self.events.has_subscribed = True
        task = asyncio.create_task(self._subscribe_when(watching, frame, principal))
        self._resources.begun(task)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _subscribe_when(
        self, watching: Awaitable[None], frame: frames.Subscribe, principal: Principal
    ) -> None:
        try:
            await self._with_faults_told(watching)
            self.events.subscribe(frame, self._principal or principal)
        except asyncio.CancelledError:
            self._refuse(Cancelled("the channel was left before that"), frame.reply)
            raise
        except GatewayError as error:
            self._refuse(error, frame.reply)

    def _refuse(self, error: GatewayError, reply: ReplyTo | None) -> None:
        self._metrics.error_sent(error.code)
        if self.outlet is not None:
            self.outlet.say_result(frames.encode(frames.Error(error), reply))

    def unsubscribe(self, frame: frames.Unsubscribe) -> None:
        """As `SessionEvents.unsubscribe`."""
        if frame.channel == RESOURCES_CHANNEL:
            self._resources.keep_none()
        self.events.unsubscribe(frame)
        self._follow_approvals()

    def _follow_approvals(self) -> None:
        is_read = self.outlet is not None and CHANNEL in self.events.channels
        self._approvals.follow(self._principal if is_read else None)

    def _say_approval(self, frame: ServerFrame) -> None:
        if self.outlet is not None:
            self.outlet.say_result(encode_result(frame, None))

    def respond(self, frame: frames.InputResponse) -> Awaitable[None] | None:
        """Take the client's answer to what it was asked: by a server in mid-call, or to approve a call.

        None where that is done; else await what is answered, see `Approvals.decide`.

        Raises:
            UnknownCall: nothing of the kind is open any more.
            InvalidParams: it is no answer to what was asked.
            PermissionDenied: it is an approval that the client may not give.
        """
        approvals = self._gateway.approvals
        if approvals is None or self._principal is None or not frame.request_id.startswith(PREFIX):
            call = self._calls.get(self.inputs.call_of(frame.request_id) or "")
            if call is not None and call.hidden:
                raise PermissionDenied(_HIDDEN_CALL)
            self.inputs.respond(frame)
            return None
        return approvals.decide(
            self._principal,
            frame.request_id,
            frame.action,
            actor=self._actor,
            settings=self._gateway.call_settings,
        )

    def _say_input(self, reply: ReplyTo, frame: ServerFrame) -> None:
        # Never an error in its place: that would be taken for the end of the call.
        call = self._calls.get(reply.id)
        if call is not None and not call.hidden and self.outlet is not None:
            self.outlet.say_result(frames.encode(frame, reply))

    def _end_call(self, call: OpenCall, frame: ServerFrame) -> None:
        """Give a call its one end; whatever comes later for it is dropped."""
        if call.ended:
            return
        call.ended = True
        del self._calls[call.reply.id]
        try:
            text = frames.encode(frame, call.reply)
        except ValueError:
            frame = frames.Error(_NO_JSON)
            text = frames.encode(frame, call.reply)
        self._ended.add(call.reply.id)
        self.ends.keep(call.reply.id, KeptEnd(text, call.server_id, call.tool_name, call.scopes))
        if self.outlet is not None:
            self.ends.drop_read()
            if not call.hidden:
                self.outlet.say_result(text)
        # Its parts lead back to it: the collector would have to find each call.
        begun, call.begun = call.begun, None
        if begun is not None:
            begun.cancel()
            if call.on_ended is not None and not call.on_ended.done():
                call.on_ended.set_result(None)
        elif call.task is not None and call.task is not asyncio.current_task():
            call.task.cancel()
        if call.record is None:
            if isinstance(frame, frames.Error):
                self._metrics.error_sent(frame.error.code)
        elif isinstance(frame, frames.Error):
            call.record.failed(frame.error.code)
        elif isinstance(frame, frames.ToolResponse):
            call.record.answered(is_error=frame.is_error, result=frame.result())

    def _stream(self, source: str, frame: ServerFrame, call: OpenCall) -> bool:
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
                self._end_call(call, frames.Error(error))
        self.events.go_away()
        self._approvals.follow(None)

    def attach(self, outlet: Outlet, client_id: str, principal: Principal) -> None:
        """Speak through another connection from now on; subscriptions are silent until `replay`.

        The token of that connection decides what of the session it is told.
        """
        self.events.go_away()
        self._approvals.follow(None)
        self.events.come_back(outlet, client_id)
        self._principal = principal
        self.events.belong_to(principal)
        for call in self._calls.values():
            call.hidden = not self._may_know(call)

    def replay(self, since: Position | None) -> None:
        """Send every subscribed channel's events behind `since`, in the order of the log."""
        self.events.replay(since, self.user)
        self._follow_approvals()

    def ask_again(self) -> None:
        """Say once more what the client was asked and has not answered: the frame may have been lost."""
        self.inputs.say_all()

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
        self._approvals.follow(None)
        self._resources.end()
        self.ends.clear()
        self._gateway.connection_ended(self.id)


_HIDDEN_CALL = "the token does not allow this call: come back with the one that began it"


def _denied(reply: ReplyTo) -> str:
    return frames.encode(frames.Error(PermissionDenied(_HIDDEN_CALL)), reply)


_NO_JSON = ToolExecutionError("the server's answer holds what is no JSON")


def encode_result(frame: ServerFrame, reply: ReplyTo | None) -> str:
    """The frame as text; an error in its place where a backend's data is no JSON."""
    try:
        return frames.encode(frame, reply)
    except ValueError:
        # Only a backend's own data can hold what JSON has not; what the gateway says is plain text.
        return frames.encode(frames.Error(_NO_JSON), reply)
