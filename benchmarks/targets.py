"""What stands between a caller and the echo server, each started the same way: a process on a free port.

All of them run as their own defaults have it, but say less in their logs where they let one choose; only
mcpgw keeps its log, its audit, its metrics and its events as they are.
"""

import contextlib
import json
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Final

from benchmarks.connections import Endpoint
from benchmarks.installations import (
    FASTMCP,
    HERE,
    MCP_PROXY,
    MCPGW,
    MCPO,
    ROOT,
    SUPERGATEWAY,
    UnavailableError,
    node,
)
from benchmarks.processes import command_line, processor_seconds, settled_tree_memory, tree
from benchmarks.support import UNBOUND, gateway

SDK_CLIENT: Final = "SDK client"
BARE: Final = "no gateway"
GATEWAY: Final = "mcpgw"
WORKERS: Final = "mcpgw, 2 workers"
RELAY: Final = "supergateway ws"

_ECHO_SERVER = HERE / "echo_server.py"
_EMBEDDED = "mcpgw.backends.memory"
_START_SECONDS = 40.0
_STOP_SECONDS = 8.0
_LIMITS = (
    "calls.rate",
    "calls.burst",
    "websocket.frames_rate",
    "websocket.frames_burst",
    "websocket.max_calls",
)


@dataclass(frozen=True)
class Backend:
    """The echo server: `command` over stdio, or `url` over Streamable HTTP.

    `notes` is a folder in which each of its processes leaves a file by its id.
    """

    notes: Path
    command: tuple[str, ...] = ()
    url: str = ""

    def processes(self) -> set[int]:
        """Those that have been started; some may have ended."""
        return {int(note.name) for note in self.notes.iterdir()}


@dataclass(frozen=True)
class Running:
    """A target that runs; `pid` is None where the load generator speaks to the backend itself."""

    endpoint: Endpoint
    backend: Backend
    pid: int | None = None

    def processor_seconds(self) -> float:
        """What the target's processes have used, without the backend's."""
        return sum(map(processor_seconds, self._tree()))

    def backend_seconds(self) -> float:
        """What the backend's processes have used."""
        return sum(map(processor_seconds, self.backend.processes()))

    def memory(self) -> int:
        """Their resident memory in KiB, once it stays the same."""
        return settled_tree_memory(self._tree())

    def embedded_memory(self) -> int:
        """Resident memory in KiB of the servers that mcpgw brings and starts by itself."""
        return settled_tree_memory(self._embedded())

    def _tree(self) -> list[int]:
        return [] if self.pid is None else tree(self.pid, {*self.backend.processes(), *self._embedded()})

    def _embedded(self) -> list[int]:
        every = [] if self.pid is None else tree(self.pid)
        return [pid for pid in every if _EMBEDDED in command_line(pid)]


@dataclass(frozen=True)
class Target:
    """What is measured: `start` runs it before a backend, `versions` are what the report says of it.

    Many calls at once fit on one connection of what is `multiplexed`.
    """

    name: str
    start: Callable[[Backend], AbstractContextManager[Running]]
    multiplexed: bool
    versions: Callable[[], str]


@contextmanager
def stdio_backend() -> Iterator[Backend]:
    """The echo server for pipes. Whoever stands before it starts it."""
    with tempfile.TemporaryDirectory() as folder:
        yield Backend(Path(folder), command=(sys.executable, str(_ECHO_SERVER), folder))


@contextmanager
def http_backend(*, modern: bool) -> Iterator[Backend]:
    """The echo server over Streamable HTTP, running; `modern` speaks revision 2026-07-28."""
    command = [sys.executable, "-m", "benchmarks.echo_http_server", *(["modern"] if modern else [])]
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        try:
            port = int(process.stdout.readline())
            (Path(folder) / str(process.pid)).touch()
            yield Backend(Path(folder), url=f"http://127.0.0.1:{port}/mcp")
        finally:
            _stop(process)
            process.stdout.close()


@contextmanager
def _sdk_client(backend: Backend) -> Iterator[Running]:
    yield Running(Endpoint("sdk", command=backend.command, url=backend.url), backend)


@contextmanager
def _bare(backend: Backend) -> Iterator[Running]:
    if not backend.url:
        yield Running(Endpoint("pipes", command=backend.command), backend)
        return
    port = int(backend.url.rpartition(":")[2].partition("/")[0])
    yield Running(Endpoint("mcp", port, "/mcp"), backend)


@contextmanager
def _mcpgw(backend: Backend, workers: int = 1) -> Iterator[Running]:
    MCPGW.require()
    server: Sequence[str] | str = backend.url or backend.command
    settings: dict[str, float | str] = dict.fromkeys(_LIMITS, UNBOUND)
    settings["websocket.max_calls"] = 64
    settings["server.workers"] = workers
    with gateway(settings, {"echo": server}) as running:
        tokens = (running.token(f"user-{number}", "tools:call") for number in range(64))
        headers = tuple({"Authorization": f"Bearer {token}"} for token in tokens)
        yield Running(Endpoint("gateway", running.port, running.path, headers), backend, running.pid)


def _two_workers(backend: Backend) -> AbstractContextManager[Running]:
    return _mcpgw(backend, 2)


@contextmanager
def _supergateway(backend: Backend) -> Iterator[Running]:
    if backend.url:
        raise UnavailableError("supergateway leads from Streamable HTTP to stdio alone")
    port, program = _free_port(), SUPERGATEWAY.program("supergateway")
    stdio = " ".join(backend.command)
    options = ["--stdio", stdio, "--outputTransport", "ws", "--port", str(port), "--logLevel", "none"]
    with _listening([node(), program, *options], port) as pid:
        yield Running(Endpoint("relay", port, "/message"), backend, pid)


@contextmanager
def _mcp_proxy(backend: Backend) -> Iterator[Running]:
    if backend.url:
        raise UnavailableError("mcp-proxy leads from Streamable HTTP to stdio alone")
    port, program = _free_port(), MCP_PROXY.program("mcp-proxy")
    command = [program, "--port", str(port), "--log-level", "ERROR", "--", *backend.command]
    with _listening(command, port) as pid:
        yield Running(Endpoint("mcp", port, "/mcp"), backend, pid)


@contextmanager
def _fastmcp(backend: Backend) -> Iterator[Running]:
    port, program = _free_port(), FASTMCP.program("fastmcp")
    server = {"url": backend.url} if backend.url else _command_entry(backend)
    with tempfile.TemporaryDirectory() as folder:
        configuration = Path(folder) / "mcp.json"
        configuration.write_text(json.dumps({"mcpServers": {"echo": server}}))
        options = ["--transport", "http", "--port", str(port), "--log-level", "ERROR", "--no-banner"]
        with _listening([program, "run", str(configuration), *options], port) as pid:
            yield Running(Endpoint("mcp", port, "/mcp"), backend, pid)


@contextmanager
def _mcpo(backend: Backend) -> Iterator[Running]:
    port, program = _free_port(), MCPO.program("mcpo")
    server = (
        ["--server-type", "streamable-http", "--", backend.url] if backend.url else ["--", *backend.command]
    )
    options = ["--host", "127.0.0.1", "--port", str(port), "--log-level", "ERROR"]
    with _listening([program, *options, *server], port) as pid:
        yield Running(Endpoint("operation", port, "/echo"), backend, pid)


def _own_versions() -> str:
    return MCPGW.versions() + ", default installation"


def _sdk_versions() -> str:
    return f"mcp {version('mcp')}, in the process of the caller"


TARGETS = (
    Target(SDK_CLIENT, _sdk_client, multiplexed=True, versions=_sdk_versions),
    Target(BARE, _bare, multiplexed=True, versions=lambda: "the load generator on the backend itself"),
    Target(GATEWAY, _mcpgw, multiplexed=True, versions=_own_versions),
    Target(WORKERS, _two_workers, multiplexed=True, versions=lambda: "each with a server of its own"),
    Target(RELAY, _supergateway, multiplexed=True, versions=SUPERGATEWAY.versions),
    Target("mcp-proxy", _mcp_proxy, multiplexed=False, versions=MCP_PROXY.versions),
    Target("fastmcp proxy", _fastmcp, multiplexed=False, versions=FASTMCP.versions),
    Target("mcpo", _mcpo, multiplexed=False, versions=MCPO.versions),
)


def _command_entry(backend: Backend) -> dict[str, object]:
    command, *arguments = backend.command
    return {"command": command, "args": arguments}


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as chosen:
        port: int = chosen.getsockname()[1]
        return port


@contextmanager
def _listening(command: Sequence[str], port: int) -> Iterator[int]:
    """`command` as a process that listens on `port`; its id.

    Raises:
        UnavailableError: it ends, or does not listen in time; the message has the end of what it said.
    """
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            command, cwd=folder, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, text=True
        )
        try:
            end = time.monotonic() + _START_SECONDS
            while not _accepts(port):
                if process.poll() is not None or time.monotonic() > end:
                    output.seek(0)
                    said = " ".join(output.read()[-400:].split())
                    raise UnavailableError(f"{Path(command[0]).name} does not listen: {said}")
                time.sleep(0.05)
            yield process.pid
        finally:
            _stop(process)


def _accepts(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def _stop(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
