"""Backends with real servers behind them, and what a caller hears of a call."""

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from mcpgw.backends.backend import Backend
from mcpgw.backends.reaper import ProcessReaper
from mcpgw.backends.requests import Asker, InputAnswer, InputRequest
from mcpgw.backends.server import Server
from mcpgw.backends.status import BackendState
from mcpgw.backends.tools import ToolResult
from mcpgw.server_definitions import ServerDefinition
from mcpgw.settings import BackendSettings, CallSettings
from tests.support.socket_client import SocketClient
from tests.support.waiting import until

SERVERS = Path(__file__).parent.parent / "servers"
STUBBORN_PROGRAM = (
    "import signal, time; [signal.signal(s, signal.SIG_IGN) for s in (1, 2, 15)]; time.sleep(1000)"
)
calls_are_begun = False
"""Whether `use` calls without a task, where that is possible."""
SHORT = BackendSettings(connect_timeout=15, retry_initial=0.05, retry_maximum=0.4, stop_timeout=0.3)


@dataclass
class Heard:
    """What came for one call before its end, in order."""

    steps: list[tuple[float, float | None, str | None]] = field(default_factory=list)
    logs: list[tuple[str, str | None, Any]] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    asked: list[InputRequest] = field(default_factory=list)
    approvals: list[str] = field(default_factory=list)
    starts: int = 0
    answer: Callable[[InputRequest], Awaitable[InputAnswer]] | None = None

    def started(self) -> None:
        self.starts += 1

    def queued(self, position: int, retry_after_ms: int | None) -> None:
        self.positions.append(position)

    def approval_asked(self, request_id: str, expires_at: int) -> None:
        self.approvals.append(request_id)

    def progress(self, progress: float, total: float | None, message: str | None) -> None:
        self.steps.append((progress, total, message))

    def log(self, level: str, logger: str | None, data: Any) -> None:
        self.logs.append((level, logger, data))

    async def input_required(self, request: InputRequest) -> InputAnswer:
        self.asked.append(request)
        return InputAnswer("decline") if self.answer is None else await self.answer(request)


def scripted(*options: object, name: str = "scripted") -> ServerDefinition:
    """The server of ``tests/servers/scripted.py``; -S, for it needs no site packages and starts sooner."""
    script = str(SERVERS / "scripted.py")
    arguments = ("-S", script, "--name", name, *map(str, options))
    return ServerDefinition(name=name, transport="stdio", command=sys.executable, args=arguments)


def settings(**changes: Any) -> BackendSettings:
    """Short times, with `changes`."""
    return replace(SHORT, **changes)


@asynccontextmanager
async def running(
    *definitions: ServerDefinition,
    longest_call: float = 60,
    wait: bool = True,
    reaper: ProcessReaper | None = None,
    **changes: Any,
) -> AsyncIterator[list[Backend]]:
    """Backends that are supervised inside the block, and ended when it is left; ready unless not `wait`.

    `reaper` starts their processes, and is ended with them.
    """
    reaper = reaper or ProcessReaper()
    backends = [
        Backend(definition, settings(**changes), reaper=reaper, longest_call=longest_call)
        for definition in definitions
    ]
    try:
        for backend in backends:
            backend.start()
        if wait:
            await asyncio.gather(*(ready(backend) for backend in backends))
        yield backends
    finally:
        await asyncio.gather(*(backend.stop() for backend in backends))
        reaper.close()


class Announced:
    """What a server has announced: names, and data with the user whom it concerns."""

    def __init__(self) -> None:
        self.entries: list[tuple[str, Mapping[str, Any], str | None]] = []

    def __call__(self, name: str, data: Mapping[str, Any], user: str | None) -> None:
        self.entries.append((name, data, user))

    def names(self, *without: str) -> list[str]:
        """The names, in order, but for `without`; states stand as ``status_update STATE``."""
        return [
            f"{name} {data['state']}" if name == "status_update" else name
            for name, data, _ in self.entries
            if name not in without
        ]


@asynccontextmanager
async def serving(
    definition: ServerDefinition,
    *,
    calls: CallSettings | None = None,
    wait: bool = True,
    announced: Announced | None = None,
    **changes: Any,
) -> AsyncIterator[Server]:
    """A server from its start to its end; ready at once unless not `wait` or lazy."""
    reaper = ProcessReaper()
    server = Server(
        definition, settings(**changes), calls or CallSettings(), reaper=reaper, announce=announced
    )
    try:
        server.start()
        if wait:
            # One that stops when it is idle may have been ready, and be gone again, before this looks.
            await until(
                lambda: server.state.takes_calls or server.offer is not None or definition.lazy,
                what="readiness",
            )
        yield server
    finally:
        await server.close()
        reaper.close()


async def use(
    server: Server,
    tool: str,
    arguments: Mapping[str, Any] | None = None,
    *,
    user: str = "ann",
    connection: str = "",
    heard: Heard | None = None,
    seconds: float = 15.0,
) -> ToolResult:
    """Call a tool of a server for a user; TimeoutError after `seconds`."""
    asker = Asker(user, connection or f"connection of {user}")
    async with asyncio.timeout(seconds):
        tools = await server.known_tools(asker)
        observer = heard or Heard()
        if calls_are_begun:
            ended: asyncio.Future[ToolResult] = asyncio.get_running_loop().create_future()

            def on_end(result: ToolResult | None, error: Exception | None) -> None:
                if result is not None:
                    ended.set_result(result)
                else:
                    assert error is not None
                    ended.set_exception(error)

            begun = server.begin_call(asker, tools[tool], arguments or {}, observer=observer, on_end=on_end)
            if begun is not None:
                try:
                    return await ended
                finally:
                    begun.cancel()
        return await server.call_tool(asker, tools[tool], arguments or {}, observer=observer)


async def ready(backend: Backend, seconds: float = 15.0) -> None:
    """Wait until it takes calls."""
    deadline = time.monotonic() + seconds
    while backend.status.state is not BackendState.READY:
        assert time.monotonic() < deadline, f"not ready: {backend.status}"
        await asyncio.sleep(0.01)


async def call(
    backend: Backend,
    tool: str,
    arguments: Mapping[str, Any] | None = None,
    *,
    heard: Heard | None = None,
    seconds: float = 15.0,
) -> ToolResult:
    """Call a tool; TimeoutError after `seconds`."""
    heard = heard or Heard()
    async with asyncio.timeout(seconds):
        return await backend.call_tool(tool, arguments or {}, observer=heard)


def text_of(result: ToolResult) -> str:
    """The text of a result with one text block."""
    [block] = result.content
    text: str = block["text"]
    return text


class Gateway(Protocol):
    """What clients connect to."""

    async def connect(self, user: str = ...) -> SocketClient:
        """A client that has proved who it is."""


@asynccontextmanager
async def connected(gateway: Gateway, user: str = "ann") -> AsyncIterator[SocketClient]:
    """A client that is closed when the block is left, however it is left."""
    client = await gateway.connect(user)
    try:
        yield client
    finally:
        client.close()


async def pid_of(backend: Backend) -> int:
    """The process id of a scripted server."""
    return int(text_of(await call(backend, "pid")))


def alive(pid: int) -> bool:
    """Whether a process runs; one that waits to be reaped does not."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rpartition(")")[2].split()[0] not in ("Z", "X")


def children() -> set[int]:
    """The process ids of this process's children."""
    found: set[int] = set()
    for task in Path("/proc/self/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # a thread that has ended meanwhile
            found.update(map(int, (task / "children").read_text().split()))
    return found


def open_files() -> int:
    """How many file descriptors this process has open."""
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - Path.iterdir would count itself twice


def recorded(record: Path) -> list[dict[str, Any]]:
    """The messages that a scripted server has read."""
    return [json.loads(line) for line in record.read_bytes().splitlines()] if record.exists() else []


def methods(messages: Iterable[Mapping[str, Any]]) -> list[str]:
    """Their methods, in order."""
    return [str(message.get("method")) for message in messages]
