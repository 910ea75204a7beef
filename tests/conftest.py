"""Fixtures that every test may use."""

import asyncio
import gc
import signal
from collections.abc import Awaitable, Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from argon2 import PasswordHasher
from tornado.ioloop import IOLoop
from tornado.netutil import bind_sockets
from tornado.platform.asyncio import AsyncIOLoop

from mcpgw.app import make_application, make_server
from mcpgw.config import load_config
from mcpgw.services import Services, running_services
from mcpgw.tls import load_certificate
from tests.support.forked import memory_command
from tests.support.gateway_process import ALL_SCOPES, GatewayProcess
from tests.support.socket_client import SocketClient

# A shell without job control starts what runs in its background with SIGINT ignored; children inherit
# that (POSIX, "Asynchronous Lists"): no test could press Ctrl-C then.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


# How long an example takes says more of the machine than of the code.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


@dataclass(frozen=True)
class LiveGateway:
    """A gateway inside the test's own event loop, on a real port, with real backends."""

    url: str
    services: Services

    @property
    def socket_url(self) -> str:
        """The address of ``/ws``."""
        return self.url.replace("http", "ws", 1) + "/ws"

    def token(self, user: str = "ann", scopes: Iterable[str] = ALL_SCOPES, ttl: float = 600) -> str:
        """A token of this gateway."""
        return self.services.tokens.issue(user=user, scopes=scopes, ttl=ttl)

    async def connect(self, user: str = "ann", scopes: Iterable[str] = ALL_SCOPES) -> SocketClient:
        """A client that has proved who it is and has read its first status."""
        client = await SocketClient.connect(self.socket_url, token=self.token(user, scopes))
        status = await client.receive()
        assert status["data"]["authenticated"] is True
        return client


StartGateway = Callable[..., Awaitable[LiveGateway]]


def as_utf8(value: Any) -> Any:
    """A report's value (dicts, lists, tuples, texts, numbers), the lone surrogates of its texts escaped."""
    match value:
        case str():
            return value.encode("utf-8", "backslashreplace").decode("utf-8")
        case dict():
            return {as_utf8(key): as_utf8(inner) for key, inner in value.items()}
        case list() | tuple():
            return type(value)(as_utf8(inner) for inner in value)
    return value


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable() -> Generator[None, Any, Any]:
    """Make what a test logged fit for pytest-xdist's pipe, which ends the whole run at a lone surrogate."""
    return as_utf8((yield))


def pytest_addoption(parser: pytest.Parser) -> None:
    """Take `--uvloop`: the tests run on the loop that a gateway has with the extra `fast`."""
    parser.addoption("--uvloop", action="store_true", help="run the tests on uvloop")


def pytest_collection_finish() -> None:
    """Keep the garbage collector from looking through all that is imported, again and again in every test."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def io_loop(request: pytest.FixtureRequest) -> Iterator[IOLoop]:
    """A fresh event loop for each test.

    Takes the place of pytest-tornado's own, which makes its loop the current one in a way that Tornado has
    deprecated and that leaves another loop unclosed.
    """
    loops = import_module("uvloop" if request.config.getoption("--uvloop") else "asyncio")
    loop = AsyncIOLoop(make_current=False, asyncio_loop=loops.new_event_loop())
    asyncio.set_event_loop(loop.asyncio_loop)
    yield loop
    asyncio.set_event_loop(None)
    loop.close(all_fds=True)


@pytest.fixture
def cheap_passwords(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hashes of passwords cost next to nothing in this process; what they cost has tests of its own."""
    cheap = partial(PasswordHasher, time_cost=1, memory_cost=8, parallelism=1)
    monkeypatch.setattr("argon2.PasswordHasher", cheap)


@pytest.fixture
def start_gateway(
    io_loop: IOLoop, tmp_path: Path, cheap_passwords: None, monkeypatch: pytest.MonkeyPatch
) -> Iterator[StartGateway]:
    """Starts gateways: ``await start_gateway(configuration='…', settings={'websocket.max_calls': 2})``.

    `configuration` is the text of an ``mcpgw.toml``; the memory server is off unless ``memory=True``.
    """
    ending = asyncio.Event()
    tasks: list[asyncio.Task[None]] = []

    async def start(
        configuration: str = "",
        *,
        settings: dict[str, object] | None = None,
        memory: bool = False,
        wait_for_backends: float = 20.0,
    ) -> LiveGateway:
        if memory:
            monkeypatch.setattr("mcpgw.roster.MEMORY_PROGRAM", tuple(memory_command()))
        file = tmp_path / f"mcpgw-{len(tasks)}.toml"
        file.write_text(configuration, encoding="utf-8")
        flags: dict[str, object] = {
            "data.dir": tmp_path / f"data-{len(tasks)}",
            "memory.enabled": memory,
            "audit.file": tmp_path / f"audit-{len(tasks)}.jsonl",
            **(settings or {}),
        }
        config = load_config(file=file, environment={}, flags=flags)
        started: asyncio.Future[LiveGateway] = asyncio.get_running_loop().create_future()

        async def run() -> None:
            async with running_services(config) as services:
                certificate = load_certificate(config.server) if config.server.tls_key else None
                server = make_server(make_application(services), config, certificate)
                sockets = bind_sockets(0, "127.0.0.1")
                server.add_sockets(sockets)
                await services.gateway.wait_started(wait_for_backends)
                scheme = "https" if certificate else "http"
                address = f"{scheme}://127.0.0.1:{sockets[0].getsockname()[1]}"
                started.set_result(LiveGateway(address, services))
                await ending.wait()
                server.stop()
                await services.hub.drain(0)
                await server.close_all_connections()

        task = asyncio.create_task(run())
        tasks.append(task)
        awaited: set[asyncio.Future[Any]] = {task, started}
        await asyncio.wait(awaited, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
        return started.result()

    yield start

    async def stop() -> None:
        ending.set()
        await asyncio.gather(*tasks)

    io_loop.run_sync(stop, timeout=30)


@pytest.fixture
def gateway_process(tmp_path: Path) -> Iterator[Callable[..., GatewayProcess]]:
    """Starts gateways as processes: ``gateway_process(configuration='…', arguments=[…])``.

    With ``wait_for_servers=False`` they listen, and their servers may still be starting.
    """
    processes: list[GatewayProcess] = []

    def start(*, wait_for_servers: bool = True, **options: object) -> GatewayProcess:
        folder = tmp_path / f"gateway-{len(processes)}"
        folder.mkdir()
        process = GatewayProcess(folder, **options)  # type: ignore[arg-type]
        processes.append(process)
        return process.wait_listening(for_servers=wait_for_servers)

    yield start
    for process in processes:
        if process.process.poll() is None:
            process.terminate()


@pytest.fixture(scope="session")
def shared_gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """One gateway process with the embedded memory server, for every test that leaves it as it was."""
    process = GatewayProcess(tmp_path_factory.mktemp("shared-gateway")).wait_listening()
    yield process
    assert process.terminate() == 0
