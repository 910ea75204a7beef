"""One session with a backend, from its handshake to its end.

Requests go out; what comes back unasked is given to the request that has caused it. Over HTTP the SDK runs
what a backend sends in the context of the request that it belongs to. Over stdio, and on a stream of its own,
a message names no request: a log is then passed on only where one request is open, a question (elicitation,
sampling, roots) only where all that are open are one caller's; for it could be another user's.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from contextvars import ContextVar
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

import mcp_types as types
from mcp.client import Client, ClientRequestContext, IncomingMessage
from mcp.shared.exceptions import MCPError
from pydantic import TypeAdapter, ValidationError

from mcpgw import __version__
from mcpgw.backends import sdk_seam
from mcpgw.backends.direct_dispatcher import DirectCall, DirectDispatcher
from mcpgw.backends.direct_http import DirectHttp
from mcpgw.backends.direct_stdio import DirectStdio
from mcpgw.backends.failures import in_words
from mcpgw.backends.http import HttpTransport
from mcpgw.backends.inputs import answer_input, refusal
from mcpgw.backends.requests import Asker, Observer
from mcpgw.backends.rounds import run_rounds
from mcpgw.backends.stdio import StdioTransport
from mcpgw.backends.tap import CALLERS_CAPABILITIES, Tap
from mcpgw.backends.tool_answers import checked
from mcpgw.backends.tools import Tool

T = TypeVar("T")

# The SDK types its result adapters for models alone and works with any.
RAW_RESULT: TypeAdapter[Any] = TypeAdapter(dict[str, Any])
_MOST_PAGES = 100
_ABANDONED = 5.0
"""Seconds in which a server may still send what a request that nobody waits for any more has caused."""
_MANAGED_META = ("progressToken",)
_RESERVED_META = "io.modelcontextprotocol/"
NO_ANSWER = types.ErrorData(code=types.INTERNAL_ERROR, message="")
_HANDED_ON = ("elicitation", "roots", "sampling")
"""What a backend may ask a caller for through the gateway."""

Change = str
"""What of a server has changed: ``tools``, ``resources`` or ``prompts``."""


OnCallEnd = Callable[[dict[str, Any] | None, Exception | None], None]
"""Takes the raw result of a call, or an `MCPError` or `ValidationError`. Must not wait or raise."""


class Listener(Protocol):
    """Who is told what a backend does beside its answers. Nothing here may wait or raise."""

    def on_change(self, change: Change) -> None:
        """A list of the server's is not what it was: ``tools``, ``resources`` or ``prompts``."""

    def on_resource_updated(self, uri: str) -> None:
        """A resource that was subscribed has changed."""

    def on_fault(self, fault: str) -> None:
        """A sentence about what the server did that is not as the protocol has it."""


@dataclass(slots=True, eq=False)
class _OpenRequest:
    """A request that waits for its answer."""

    asker: Asker
    observer: Observer
    questions: set[asyncio.Task[Any]] | None = None


_current: ContextVar[_OpenRequest | None] = ContextVar("mcpgw_current_request", default=None)


class Connection:
    """One session with a backend over `transport`; enter it to shake hands, leave it to end it.

    One task must enter and leave it (anyio's rule for cancel scopes); any task may call through it.
    """

    def __init__(self, transport: AbstractAsyncContextManager[Any], listener: Listener) -> None:
        self._listener = listener
        self._tap = Tap(transport, listener.on_fault)
        self._direct: DirectDispatcher | None = None
        self._open: dict[_OpenRequest, float] = {}
        self._abandoned: OrderedDict[Asker, float] = OrderedDict()
        self._listing = asyncio.Lock()
        self._revision: tuple[str, bool] | None = None
        self.client = Client(
            self._tap,
            mode="auto",
            client_info=types.Implementation(name="mcpgw", version=__version__),
            logging_callback=self._on_log,
            log_level="info",
            message_handler=self._on_message,
            elicitation_callback=self._on_elicitation,
            sampling_callback=self._on_sampling,
            list_roots_callback=self._on_roots,
            cache=None,
        )
        if not sdk_seam.takes_dispatcher(self.client):
            return
        pipes: DirectStdio | DirectHttp
        if isinstance(transport, StdioTransport):
            pipes = DirectStdio(transport, self._tap)
        elif isinstance(transport, HttpTransport) and not transport.is_legacy:
            pipes = DirectHttp(transport, self._tap)
        else:
            return
        self._direct = pipes.dispatcher
        sdk_seam.give_dispatcher(self.client, pipes)

    async def __aenter__(self) -> Self:
        await self.client.__aenter__()
        self._tap.version = lambda: self.client.session.protocol_version
        try:
            await self._ask_for_logs()
        except BaseException as error:
            await self.client.__aexit__(type(error), error, error.__traceback__)
            raise
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.client.__aexit__(exc_type, exc_value, traceback)

    @property
    def is_modern(self) -> bool:
        """Whether it speaks a revision without a handshake (2026-07-28 and later)."""
        return self.client.session.discover_result is not None

    @property
    def revision(self) -> tuple[str, bool]:
        """The protocol version of answers, and whether it is a modern one; the handshake decides for good."""
        if self._revision is None:
            version = self.client.session.protocol_version
            self._revision = version or types.LATEST_PROTOCOL_VERSION, self.is_modern
        return self._revision

    @property
    def capabilities(self) -> types.ServerCapabilities:
        """What the server says that it can do."""
        return self.client.server_capabilities

    @property
    def heard_at(self) -> float:
        """When the last message came, by the monotonic clock."""
        return self._tap.heard_at

    def is_waiting_since(self, moment: float) -> bool:
        """Whether a request is open that was sent before `moment` (monotonic clock)."""
        return any(began <= moment for began in self._open.values())

    # --- requests ------------------------------------------------------------------------------------------

    async def request(
        self,
        request: types.ClientRequest,
        *,
        asker: Asker,
        observer: Observer,
        list_again: Callable[[], Awaitable[None]] | None = None,
        first: dict[str, Any] | MCPError | None = None,
    ) -> dict[str, Any]:
        """Send one request and answer its result, as it was sent. Cancelling tells the backend to stop.

        Where the backend asks for input first, `observer` is asked, and the request sent again with what it
        says (MCP 2026-07-28). Where it says that headers do not fit the arguments, the schema that says which
        arguments are headers was an old one: `list_again` is to list the tools anew, and it is sent again.
        `first` is the first answer, where the request was sent already.

        Raises:
            MCPError: the backend answered with an error, or the request did not come through.
            ValidationError: the answer is not as the protocol has it.
            ToolExecutionError: it asked for input again and again.
        """
        opened = _OpenRequest(asker, observer)

        async def send(responses: types.InputResponses | None, state: str | None) -> dict[str, Any]:
            nonlocal first
            params = request.params
            if isinstance(params, types.InputResponseRequestParams):
                params.input_responses, params.request_state = responses, state
            known, first = first, None
            try:
                if isinstance(known, MCPError):
                    raise known
                return await send_once() if known is None else known
            except MCPError as error:
                if list_again is None or not self.has_old_list(error):
                    raise
            await list_again()
            return await send_once()

        async def send_once() -> dict[str, Any]:
            raw: dict[str, Any] = await self.client.session.send_request(
                request, RAW_RESULT, progress_callback=report
            )
            return raw

        async def report(progress: float, total: float | None, message: str | None) -> None:
            observer.progress(progress, total, message)

        async def answer(key: str, asked: types.InputRequest) -> types.InputResponse | types.ErrorData:
            return await answer_input(observer, asked, key)

        self._open[opened] = time.monotonic()
        token = _current.set(opened)
        try:
            raw = await run_rounds(send, answer)
        except BaseException as error:
            self._close_request(opened, abandoned=isinstance(error, asyncio.CancelledError))
            raise
        finally:
            _current.reset(token)
        self._close_request(opened, abandoned=False)
        return raw

    async def call_tool(
        self,
        name: str,
        arguments: Mapping[str, Any],
        meta: Any,
        *,
        asker: Asker,
        observer: Observer,
        list_again: Callable[[], Awaitable[None]],
        first: dict[str, Any] | MCPError | None = None,
    ) -> dict[str, Any]:
        """Call a tool, as `request` does; past the SDK's session where the transport allows it.

        `first` is the first answer, where the call was sent already.
        """
        if self.is_direct and first is None:
            first = await self._call_directly(name, arguments, meta, asker=asker, observer=observer)
            if not isinstance(first, MCPError) and first.get("resultType") != "input_required":
                return first
        params = types.CallToolRequestParams(name=name, arguments=dict(arguments), _meta=meta)
        request = types.CallToolRequest(params=params)
        return await self.request(request, asker=asker, observer=observer, list_again=list_again, first=first)

    async def _call_directly(
        self, name: str, arguments: Mapping[str, Any], meta: Any, *, asker: Asker, observer: Observer
    ) -> dict[str, Any] | MCPError:
        answered: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()

        def on_end(raw: dict[str, Any] | None, error: Exception | None) -> None:
            if answered.done():
                return
            if error is not None:
                answered.set_exception(error)
            else:
                answered.set_result(raw or {})

        call = self.begin_call(
            name, arguments, meta, asker=asker, observer=observer, on_end=on_end, is_traced=True
        )
        try:
            return await answered
        except asyncio.CancelledError:
            call.cancel()
            raise
        except MCPError as error:
            if not self.has_old_list(error):
                raise
            return error

    def has_old_list(self, error: Exception) -> bool:
        """Whether an error says that headers do not fit the arguments, as the tools were listed."""
        return isinstance(error, MCPError) and error.code == types.HEADER_MISMATCH and self.is_modern

    def begin_call(
        self,
        name: str,
        arguments: Mapping[str, Any],
        meta: Any,
        *,
        asker: Asker,
        observer: Observer,
        on_end: "OnCallEnd",
        is_traced: bool = False,
    ) -> "OpenToolCall":
        """Send a call; `on_end` is called once with the raw result or why there is none, unless cancelled.

        With the present trace where it `is_traced`.

        Raises:
            MCPError: it was not sent.
        """
        assert self._direct is not None, "asked of direct connections alone"  # noqa: S101
        call = OpenToolCall(self, self._direct, _OpenRequest(asker, observer), on_end)
        params: dict[str, Any] = {"name": name, "arguments": arguments}
        if meta:
            params["_meta"] = meta
        self._open[call.opened] = time.monotonic()
        token = _current.set(call.opened)
        try:
            call.call = self._direct.begin_call(params, call.end, observer.progress, is_traced=is_traced)
        except BaseException:
            del self._open[call.opened]
            raise
        finally:
            _current.reset(token)
        return call

    @property
    def is_direct(self) -> bool:
        """Whether `begin_call` can be used."""
        return self._direct is not None and self._direct.takes_calls

    def _close_request(self, opened: _OpenRequest, *, abandoned: bool) -> None:
        if abandoned:
            now = time.monotonic()
            self._forget_abandoned(now)  # most servers never send what would be looked up here
            self._abandoned[opened.asker] = now + _ABANDONED
            self._abandoned.move_to_end(opened.asker)
        del self._open[opened]
        for question in opened.questions or ():
            question.cancel()

    async def list_tools(self) -> dict[str, Tool]:
        """Every tool, page by page; 100 pages at most, so that none pages for ever."""
        tools: dict[str, Tool] = {}
        if self.capabilities.tools is None:
            return tools
        async with self._listing:  # the tap collects for one at a time
            self._tap.listed_tools = {}
            cursor: str | None = None
            for _ in range(_MOST_PAGES):
                # Not as a raw result: the SDK keeps what the schemas say of HTTP headers (MCP 2026-07-28).
                page = await self.client.list_tools(cursor=cursor)
                if self._direct is not None:
                    self._direct.tools_listed(page.tools)
                for tool in page.tools:
                    tools[tool.name] = Tool.from_json(self._tap.listed_tools[tool.name])
                cursor = page.next_cursor
                if cursor is None:
                    break
        return tools

    async def list_all(
        self, member: str, page: Callable[[types.PaginatedRequestParams], types.ClientRequest]
    ) -> list[dict[str, Any]]:
        """Every entry of a list, page by page, as it was sent; `member` is where a page holds them."""
        entries: list[dict[str, Any]] = []
        cursor: str | None = None
        for _ in range(_MOST_PAGES):
            request = page(types.PaginatedRequestParams(cursor=cursor))
            raw: dict[str, Any] = await self.client.session.send_request(request, RAW_RESULT)
            entries += raw.get(member, [])
            cursor = raw.get("nextCursor")
            if cursor is None:
                break
        return entries

    async def probe(self) -> None:
        """Have the server show that it lives: ``ping``, or ``server/discover`` where there is no ping.

        Raises:
            MCPError: it has answered with an error, or could not be reached.
        """
        session = self.client.session
        if self.is_modern:
            await session.send_discover(self.client.protocol_version)
        else:
            await session.send_ping()

    async def _ask_for_logs(self) -> None:
        """Servers of the handshake revisions log from a level on; later ones are asked with each call."""
        result = self.client.session.initialize_result
        if result is not None and result.capabilities.logging is not None:
            request = types.SetLevelRequest(params=types.SetLevelRequestParams(level="info"))
            try:
                await self.client.session.send_request(request, types.EmptyResult)
            except (MCPError, ValidationError) as error:  # a server without logs is still a server
                self._listener.on_fault(f"it does not take the level of its logs: {in_words(error)}")

    # --- what comes unasked --------------------------------------------------------------------------------

    async def _on_log(self, params: types.LoggingMessageNotificationParams) -> None:
        opened = _current.get()
        if opened is None and len(self._open) == 1 and not self._abandoned_lately(None):
            (opened,) = self._open
        if opened is not None and opened in self._open:
            opened.observer.log(params.level, params.logger, params.data)

    async def _on_message(self, message: IncomingMessage) -> None:
        match message:
            case types.ToolListChangedNotification():
                self._listener.on_change("tools")
            case types.ResourceListChangedNotification():
                self._listener.on_change("resources")
            case types.PromptListChangedNotification():
                self._listener.on_change("prompts")
            case types.ResourceUpdatedNotification(params=params):
                self._listener.on_resource_updated(str(params.uri))

    async def _on_elicitation(
        self,
        context: ClientRequestContext,  # noqa: ARG002 - the SDK's name
        params: types.ElicitRequestParams,
    ) -> types.ElicitResult | types.ErrorData:
        answer: types.ElicitResult | types.ErrorData = await self._ask(
            types.ElicitRequest(params=params), types.ElicitResult(action="decline")
        )
        return answer

    async def _on_sampling(
        self,
        context: ClientRequestContext,  # noqa: ARG002 - the SDK's name
        params: types.CreateMessageRequestParams,
    ) -> types.CreateMessageResult | types.CreateMessageResultWithTools | types.ErrorData:
        answer: types.CreateMessageResult | types.CreateMessageResultWithTools | types.ErrorData
        answer = await self._ask(types.CreateMessageRequest(params=params), refusal(_NOBODY_TO_ASK))
        return answer

    async def _on_roots(
        self,
        context: ClientRequestContext,  # noqa: ARG002 - the SDK's name
    ) -> types.ListRootsResult | types.ErrorData:
        answer: types.ListRootsResult | types.ErrorData
        answer = await self._ask(types.ListRootsRequest(), refusal(_NOBODY_TO_ASK))
        return answer

    async def _ask(self, request: types.InputRequest, refused: T) -> Any:
        """Have the caller answer who has caused the question; `refused` where that is nobody or not known."""
        opened = self._causing()
        if opened is None:
            self._listener.on_fault(
                f"it sent {request.method}, and it is not known for which caller: it was declined"
            )
            return refused
        # A task of its own: it ends with its call, whatever the server still waits for.
        question: asyncio.Task[Any] = asyncio.create_task(answer_input(opened.observer, request))
        opened.questions = opened.questions or set()
        opened.questions.add(question)
        try:
            await asyncio.wait({question})
        finally:
            question.cancel()
            opened.questions.discard(question)
        return refusal("the call that asked is over") if question.cancelled() else question.result()

    def _causing(self) -> _OpenRequest | None:
        """The open request that has caused what has just come; None where it cannot be told."""
        opened = _current.get()
        if opened is not None:
            return opened if opened in self._open else None
        askers = {open_request.asker for open_request in self._open}
        if len(askers) != 1 or self._abandoned_lately(*askers):
            return None
        return next(reversed(self._open))

    def _abandoned_lately(self, but_by: Asker | None) -> bool:
        """Whether somebody gave up a request a moment ago, that what comes now may belong to."""
        self._forget_abandoned(time.monotonic())
        return len(self._abandoned) > (but_by in self._abandoned)

    def _forget_abandoned(self, now: float) -> None:
        """Forget who gave up a request long ago; they stand in the order of that."""
        abandoned = self._abandoned
        while abandoned and next(iter(abandoned.values())) <= now:
            abandoned.popitem(last=False)


class OpenToolCall:
    """A call that was sent past the SDK's session, and waits for its answer."""

    __slots__ = ("_connection", "_direct", "_on_end", "call", "opened")

    def __init__(
        self, connection: Connection, direct: DirectDispatcher, opened: _OpenRequest, on_end: OnCallEnd
    ) -> None:
        self._connection = connection
        self._direct = direct
        self.opened = opened
        self._on_end: OnCallEnd | None = on_end
        self.call: DirectCall | None = None

    def cancel(self) -> None:
        """Tell the server to stop; nothing happens where the call has ended."""
        if self._on_end is not None:
            self._on_end = None
            self._connection._close_request(self.opened, abandoned=True)  # noqa: SLF001 - the two are one
            call, self.call = self.call, None  # the two would keep each other
            if call is not None:
                self._direct.cancel(call)

    def end(self, raw: dict[str, Any] | None, error: types.ErrorData | None) -> None:
        """Its answer has come, or never will."""
        on_end, self._on_end = self._on_end, None
        self.call = None  # as in `cancel`
        if on_end is None:
            return
        connection = self._connection
        connection._close_request(self.opened, abandoned=False)  # noqa: SLF001
        if raw is None:
            on_end(None, MCPError.from_error_data(error or NO_ANSWER))
            return
        version, is_modern = connection.revision
        try:
            raw = checked(raw, version, is_modern=is_modern)
        except ValidationError as fault:
            on_end(None, fault)
        else:
            on_end(raw, None)


_NOBODY_TO_ASK = "no caller can be asked for this"


def forwarded_meta(meta: Mapping[str, Any] | None) -> Any:
    """What of a caller's ``_meta`` is handed on: all but what belongs to each connection alone.

    What the caller says that it can do (``clientCapabilities``) goes under a name that the SDK does not
    replace by what this gateway can: see `Tap.sent`.
    """
    if not meta:
        return None
    kept = {
        name: value
        for name, value in meta.items()
        if name not in _MANAGED_META
        and (not name.startswith(_RESERVED_META) or name == types.LOG_LEVEL_META_KEY)
    }
    if isinstance(can := meta.get(types.CLIENT_CAPABILITIES_META_KEY), Mapping):
        kept[CALLERS_CAPABILITIES] = {name: can[name] for name in _HANDED_ON if can.get(name) is not None}
    return kept or None
