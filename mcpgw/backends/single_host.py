"""The owner's side of servers that run in one worker alone: what the others ask of them is done here.

Each request is made for the user who has made it elsewhere, so that the line in front of the server is fair
over all workers. What the others were allowed is their business.
"""

import asyncio
import logging
import secrets
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, Protocol

import msgspec
from opentelemetry import context as contexts
from opentelemetry.propagate import extract

from mcpgw.backends.requests import Asker, InputAnswer, InputRequest
from mcpgw.backends.single_notes import ACT, Act, Snapshot
from mcpgw.backends.tools import Tool, ToolResult
from mcpgw.errors import GatewayError, InternalError, OutcomeUnknown, ToolExecutionError
from mcpgw.logs import log_event
from mcpgw.workers.freight import Freight
from mcpgw.workers.peers import Peers

if TYPE_CHECKING:  # the MCP SDK is imported with the first server
    from mcpgw.backends.remote_server import RemoteServer
    from mcpgw.backends.server import Server

    AnyServer = Server | RemoteServer

_LOGGER = logging.getLogger("mcpgw.backend")
_ENCODE = msgspec.json.Encoder().encode
_QUIET: Final = frozenset({"log"})
"""What happens to a server, and is nothing to other workers but as the event that it is."""


class Cancellable(Protocol):
    """A call without a task."""

    def cancel(self) -> None:
        """Tell the server to stop."""


class SingleHost:
    """Serves other workers with the servers that are added here; tells them how these are."""

    def __init__(self, peers: Peers, freight: Freight, act: Callable[[str, Act], Any]) -> None:
        self._peers = peers
        self._freight = freight
        self._act = act
        # What was meant for the process that was this worker before is not done here.
        self._run = secrets.token_hex(8)
        self._servers: dict[str, Server] = {}
        self._told: dict[str, tuple[bytes, Mapping[str, Tool]]] = {}
        self._open: dict[tuple[int, int], _Served] = {}
        self._connections: dict[int, set[str]] = {}
        self._is_draining = False
        self._nothing_open = asyncio.Event()
        self._nothing_open.set()
        listeners: dict[str, Callable[[int, Any], None]] = {
            "want": self._want,
            "wake": self._wake,
            "begin": self._begin,
            "cancel": self._cancel,
            "answer": self._answer,
            "watched": self._watched,
            "unwatch": self._unwatch,
            "left": self._left,
        }
        for kind, listener in listeners.items():
            freight.listen(kind, listener)
        peers.answer(ACT, lambda _, asked: self._act(*asked))
        peers.on_came(self._came)
        peers.on_gone(self._gone)

    # --- how the servers are -------------------------------------------------------------------------------

    def add(self, server: "Server") -> None:
        """Serve others with this one from now on, in the place of one of the same name."""
        self._servers[server.id] = server
        self.changed(server)

    def remove(self, server: "AnyServer") -> None:
        """Serve nobody else with it any more; what the others have asked it to watch is watched no more.

        Nothing happens where it is another worker's.
        """
        if self._servers.get(server.id) is not server:
            return
        del self._servers[server.id]
        self._told.pop(server.id, None)
        for connections in self._connections.values():
            for connection in connections:
                server.connection_ended(connection)

    def changed(self, server: "Server") -> None:
        """Tell the others how a server is, where that is another way than they know."""
        self._tell(server, None)

    def happened(self, server: "Server", name: str, data: Mapping[str, Any], user: str | None) -> None:
        """Tell the others what has happened to a server, after how it is."""
        if name not in _QUIET:
            self._tell(server, (name, data, user))

    def begin_draining(self) -> None:
        """Begin nothing more for others."""
        self._is_draining = True
        for server in self._servers.values():
            self._tell(server, None)

    async def wait_idle(self, seconds: float) -> None:
        """Wait until nothing is open here for others, at most so long."""
        try:
            async with asyncio.timeout(seconds):
                await self._nothing_open.wait()
        except TimeoutError:
            return

    def _tell(self, server: "Server", event: tuple[str, Mapping[str, Any], str | None] | None) -> None:
        if self._servers.get(server.id) is not server or not self._peers.present:
            return
        body, tools = self._snapshot(server), server.tools
        told_body, told_tools = self._told.get(server.id, (b"", None))
        new_body = msgspec.Raw(body) if body != told_body else None
        new_tools = _listed(tools) if tools is not told_tools else None
        if new_body is None and new_tools is None and event is None:
            return
        self._told[server.id] = body, tools
        note = msgspec.Raw(_ENCODE((server.id, self._run, new_body, new_tools, event)))
        for to in tuple(self._peers.present):
            self._freight.tell(to, "state", note)

    def _tell_all(self, to: int, server: "Server") -> None:
        self._tell(server, None)  # so that what is told to all next goes on from here
        body = msgspec.Raw(self._snapshot(server))
        self._freight.tell(to, "state", (server.id, self._run, body, _listed(server.tools), None))

    def _snapshot(self, server: "Server") -> bytes:
        is_open = server.is_open and not self._is_draining
        why = None if is_open else server.unavailable().to_data()
        return _ENCODE(Snapshot(server.status, is_open, server.is_held, why, server.offer))

    def _came(self, worker: int) -> None:
        for server in tuple(self._servers.values()):
            self._tell_all(worker, server)

    def _want(self, sender: int, server_id: str) -> None:
        if (server := self._servers.get(server_id)) is not None:
            self._tell_all(sender, server)

    def _wake(self, _: int, server_id: str) -> None:
        if (server := self._servers.get(server_id)) is not None:
            server.wake()

    # --- what is asked of them -----------------------------------------------------------------------------

    def _begin(self, sender: int, data: list[Any]) -> None:
        server_id, run, number, asked, user, connection, given, trace = data
        server = self._servers.get(server_id)
        if run != self._run or server is None or self._is_draining:
            self._freight.tell(sender, "end", (number, "refused", None))
            return
        served = _Served(self._freight, sender, number, self._over)
        self._open[sender, number] = served
        self._nothing_open.clear()
        asker = Asker(user, connection)
        if asked == "watch":
            self._connections.setdefault(sender, set()).add(connection)
        try:
            if asked == "call" and given[2] is None and trace is None:
                tool = _tool(server, given[0])
                begun = server.begin_call(asker, tool, given[1], observer=served, on_end=served.answered)
                if begun is not None:
                    served.work = begun
                    return
        except Exception as fault:  # noqa: BLE001 - the boundary where a fault becomes an answer
            served.failed(fault)
            return
        work = asyncio.create_task(_done(server, asker, asked, given, trace, served), name=f"single {number}")
        served.work = work
        work.add_done_callback(served.came_to_its_end)

    def _over(self, sender: int, number: int) -> None:
        self._open.pop((sender, number), None)
        if not self._open:
            self._nothing_open.set()

    def _cancel(self, sender: int, number: int) -> None:
        if (served := self._open.get((sender, number))) is not None:
            served.cancel()

    def _answer(self, sender: int, data: list[Any]) -> None:
        number, question, action, content = data
        if (served := self._open.get((sender, number))) is not None:
            served.take_answer(question, InputAnswer(action, content))

    # --- what is watched -----------------------------------------------------------------------------------

    def _watched(self, sender: int, data: list[Any]) -> None:
        server_id, user, connection, uri = data
        server = self._servers.get(server_id)
        if server is not None:
            asker = Asker(user, connection)
            self._connections.setdefault(sender, set()).add(connection)
            server.watchers.begin(asker, uri)
            server.watchers.fulfilled(asker, uri)

    def _unwatch(self, _: int, data: list[Any]) -> None:
        server_id, user, connection, uri = data
        server = self._servers.get(server_id)
        if server is not None:
            server.watchers.remove(Asker(user, connection), uri)

    def _left(self, sender: int, connection: str) -> None:
        connections = self._connections.get(sender, set())
        connections.discard(connection)
        if not connections:
            self._connections.pop(sender, None)
        self._forget(connection)

    def _forget(self, connection: str) -> None:
        for server in self._servers.values():
            server.connection_ended(connection)

    def _gone(self, worker: int) -> None:
        for (sender, _), served in tuple(self._open.items()):
            if sender == worker:
                served.cancel()
        for connection in self._connections.pop(worker, ()):
            self._forget(connection)


class _Served:
    """What one worker has asked for, and the `Observer` of it: tells that worker, and in the end the end."""

    def __init__(
        self, freight: Freight, sender: int, number: int, on_over: Callable[[int, int], None]
    ) -> None:
        self._freight = freight
        self._sender = sender
        self._number = number
        self._on_over = on_over
        self._is_over = False
        self._questions: dict[int, asyncio.Future[InputAnswer]] = {}
        self._last_question = 0
        self.work: Cancellable | asyncio.Task[Any] | None = None

    # --- the observer --------------------------------------------------------------------------------------

    def started(self) -> None:
        """See `Observer`."""
        self._say("heard", self._number, "started", ())

    def queued(self, position: int, retry_after_ms: int | None) -> None:
        """See `Observer`."""
        self._say("heard", self._number, "queued", (position, retry_after_ms))

    def approval_asked(self, request_id: str, expires_at: int) -> None:  # noqa: ARG002 - the protocol's
        """See `Observer`: it was approved where it was asked for."""
        raise AssertionError("the owner of a server asks for no approval")

    def progress(self, progress: float, total: float | None, message: str | None) -> None:
        """See `Observer`."""
        self._say("heard", self._number, "progress", (progress, total, message))

    def log(self, level: str, logger: str | None, data: Any) -> None:
        """See `Observer`."""
        self._say("heard", self._number, "log", (level, logger, data))

    async def input_required(self, request: InputRequest) -> InputAnswer:
        """See `Observer`."""
        self._last_question += 1
        question = self._last_question
        answered: asyncio.Future[InputAnswer] = asyncio.get_running_loop().create_future()
        self._questions[question] = answered
        params = dict(request.params)
        self._say("ask", self._number, question, request.kind, request.message, params, request.key)
        try:
            return await answered
        except asyncio.CancelledError:
            self._say("withdrawn", self._number, question)
            raise
        finally:
            del self._questions[question]

    def take_answer(self, question: int, answer: InputAnswer) -> None:
        """The caller has answered what the server has asked for."""
        answered = self._questions.get(question)
        if answered is not None and not answered.done():
            answered.set_result(answer)

    def _say(self, kind: str, *data: Any) -> None:
        if self._is_over:
            return
        try:
            self._freight.tell(self._sender, kind, data)
        except (ValueError, RecursionError, TypeError) as fault:
            # A log line or progress that is no JSON is lost; what waits for an answer must not wait for ever.
            log_event(_LOGGER, logging.WARNING, "not told", to=self._sender, reason=type(fault).__name__)
            if kind == "ask":
                self.take_answer(data[1], InputAnswer("decline"))

    # --- its end -------------------------------------------------------------------------------------------

    def cancel(self) -> None:
        """It is wanted no more; nobody is told."""
        self._ends()
        if self.work is not None:
            self.work.cancel()

    def answered(self, result: ToolResult | None, error: Exception | None) -> None:
        """A tool has answered, or never will."""
        if result is not None:
            self.succeeded(result.raw)
        else:
            self.failed(error)

    def came_to_its_end(self, task: "asyncio.Task[Any]") -> None:
        """The task of it is done."""
        if task.cancelled():
            if not self._is_over:
                self.failed(
                    OutcomeUnknown("the call was stopped inside the gateway; it may have run in part")
                )
        elif (error := task.exception()) is not None:
            self.failed(error)
        else:
            self.succeeded(task.result())

    def succeeded(self, result: Any) -> None:
        """This is what it asked for."""
        if not self._ends():
            return
        try:
            self._freight.tell(self._sender, "end", (self._number, "result", result))
        except (ValueError, RecursionError):
            fault = ToolExecutionError("the server's answer is not Unicode text, or nested too deeply")
            self._tell_fault(fault)

    def failed(self, error: BaseException | None) -> None:
        """It has no result."""
        if not self._ends():
            return
        if not isinstance(error, GatewayError):
            _LOGGER.error("request of another worker failed", exc_info=error)
            error = InternalError("a fault of another worker; the log has it")
        self._tell_fault(error)

    def _tell_fault(self, error: GatewayError) -> None:
        try:
            self._freight.tell(self._sender, "end", (self._number, "fault", error.to_data()))
        except (ValueError, RecursionError, TypeError):
            plain = type(error)("the server's error is not Unicode text, or nested too deeply")
            self._freight.tell(self._sender, "end", (self._number, "fault", plain.to_data()))

    def _ends(self) -> bool:
        was_over, self._is_over = self._is_over, True
        if not was_over:
            self._on_over(self._sender, self._number)
        return not was_over


async def _done(  # noqa: PLR0917 - called in one place
    server: "Server", asker: Asker, asked: str, given: Any, trace: dict[str, str] | None, served: _Served
) -> Any:
    """Do what is asked of a server; answers the JSON of its result."""
    if trace is not None:
        contexts.attach(extract(trace))  # of this task alone
    match asked:
        case "call":
            name, arguments, meta = given
            tool = _tool(server, name)
            result = await server.call_tool(asker, tool, arguments, observer=served, meta=meta)
            return result.raw
        case "request":
            from mcpgw.backends.mcp_requests import again  # noqa: PLC0415 - imported with the first server

            return await server.request(asker, again(given), observer=served)
        case "list":
            return await server.list(asker, given)
        case "watch":
            await server.watch_resource(asker, given)
        case "known":
            await server.known_tools(asker)
    return None


def _tool(server: "Server", name: str) -> Tool:
    """A tool as the server lists it; one that it does not list any more is for the server to refuse."""
    return server.tools.get(name) or Tool.from_json({"name": name})


def _listed(tools: Mapping[str, Tool]) -> list[Mapping[str, Any]]:
    return [tool.raw for tool in tools.values()]
