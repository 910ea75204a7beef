"""Clients that reset their connection at the worst moment: nothing of them is left, nothing is a fault."""

import logging
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest
from tornado.netutil import bind_sockets
from tornado.web import RequestHandler

from mcpgw.app import make_application, make_server
from tests.conftest import LiveGateway, StartGateway
from tests.support.waiting import until

if TYPE_CHECKING:
    from handlers.echo import EchoSocket
    from handlers.ws import BareSocket, GatewaySocket
else:
    from mcpgw.handlers.echo import EchoSocket
    from mcpgw.handlers.ws import BareSocket, GatewaySocket

SOCKETS: dict[str, type[BareSocket]] = {"/ws": GatewaySocket, "/ws/echo": EchoSocket}
UPGRADE = (
    "Upgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
)
TIMES = 20


class Client:
    """A client that has sent its request before the gateway had its turn."""

    def __init__(self, url: str, path: str, *, token: str | None = None, fields: str = UPGRADE) -> None:
        parts = urlsplit(url)
        self._socket = socket.create_connection((parts.hostname, parts.port), timeout=5)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        credentials = "" if token is None else f"Authorization: Bearer {token}\r\n"
        request = f"GET {path} HTTP/1.1\r\nHost: {parts.netloc}\r\n{fields}{credentials}\r\n"
        self._socket.sendall(request.encode())

    def reset(self) -> None:
        """Cut the connection so that the kernel sends a reset."""
        self._socket.close()


@contextmanager
def also_at(gateway: LiveGateway, path: str, handler: type[RequestHandler]) -> Iterator[str]:
    """The address of a server of the same gateway that has `handler` at `path` too."""
    application = make_application(gateway.services)
    application.add_handlers(r".*", [(path, handler)])
    server = make_server(application, gateway.services.config)
    sockets = bind_sockets(0, "127.0.0.1")
    server.add_sockets(sockets)
    try:
        yield f"http://127.0.0.1:{sockets[0].getsockname()[1]}"
    finally:
        server.stop()


def open_connections(gateway: LiveGateway) -> float:
    """How many connections the metrics know of."""
    lines = gateway.services.metrics.render()[0].decode().splitlines()
    return sum(float(line.split()[1]) for line in lines if line.startswith("mcpgw_connections{"))


async def assert_nothing_is_left(gateway: LiveGateway, accepted: int) -> None:
    """So many connections had a place, and none has one any more."""
    hub = gateway.services.hub
    await until(lambda: hub.statistics().accepted == accepted, what="the last request")
    await until(lambda: hub.statistics().connections == 0 and len(hub) == 0, seconds=3, what="the last place")
    assert (hub.statistics().unidentified, hub.statistics().by_user) == (0, {})
    assert open_connections(gateway) == 0


def faults(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was logged as a fault."""
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


@pytest.mark.gen_test(timeout=20)
@pytest.mark.parametrize("credentials", ["none", "good"])
@pytest.mark.parametrize("path", SOCKETS)
async def test_a_reset_before_the_upgrade_is_answered_gives_the_place_back(
    start_gateway: StartGateway, caplog: pytest.LogCaptureFixture, path: str, credentials: str
) -> None:
    gateway = await start_gateway(settings={"websocket.echo": True})
    for _ in range(TIMES):
        Client(gateway.url, path, token=gateway.token() if credentials == "good" else None).reset()
    await assert_nothing_is_left(gateway, TIMES)
    assert faults(caplog) == []


def cut_at_its_open(base: type[BareSocket], clients: list[Client]) -> type[BareSocket]:
    """A socket whose client, the last of `clients`, resets when the upgrade was answered and no more said."""

    class CutSocket(base):  # type: ignore[misc, valid-type]
        def open(self, *arguments: str, **names: str) -> None:
            clients[-1].reset()
            super().open(*arguments, **names)

    return CutSocket


@pytest.mark.gen_test(timeout=20)
@pytest.mark.parametrize("credentials", ["none", "good"])
@pytest.mark.parametrize("path", SOCKETS)
async def test_a_reset_right_behind_the_upgrade_gives_the_place_back(
    start_gateway: StartGateway, caplog: pytest.LogCaptureFixture, path: str, credentials: str
) -> None:
    gateway = await start_gateway(settings={"websocket.echo": True})
    clients: list[Client] = []
    socket_class = cut_at_its_open(SOCKETS[path], clients)
    token = gateway.token() if credentials == "good" else None
    with also_at(gateway, "/cut", socket_class) as url:
        for number in range(1, 4):
            clients.append(Client(url, "/cut", token=token))
            await assert_nothing_is_left(gateway, number)
    assert faults(caplog) == []


def faulty(base: type[BareSocket], method: str) -> type[BareSocket]:
    """A socket with a fault of the gateway's own in `method`."""

    def fail(*_arguments: object) -> None:
        raise ArithmeticError(method)

    return type("FaultySocket", (base,), {method: fail})


@pytest.mark.gen_test(timeout=20)
@pytest.mark.parametrize(
    ("path", "method"),
    [
        ("/ws", "_look_for_life"),
        ("/ws", "_begin_to_write"),
        ("/ws", "_wait_for_place"),
        ("/ws", "forget_handshake"),
        ("/ws/echo", "_look_for_words"),
        ("/ws/echo", "set_nodelay"),
    ],
)
async def test_a_fault_at_the_begin_of_a_socket_ends_it_whole_and_stands_in_the_log(
    start_gateway: StartGateway, caplog: pytest.LogCaptureFixture, path: str, method: str
) -> None:
    gateway = await start_gateway(settings={"websocket.echo": True})
    with also_at(gateway, "/faulty", faulty(SOCKETS[path], method)) as url:
        client = Client(url, "/faulty", token=gateway.token())
        await assert_nothing_is_left(gateway, 1)
        client.reset()
    assert len(faults(caplog)) == 1
    caplog.clear()


@pytest.mark.gen_test(timeout=20)
@pytest.mark.parametrize("credentials", ["none", "good"])
async def test_a_reader_that_resets_before_its_stream_begins_is_no_fault(
    start_gateway: StartGateway, caplog: pytest.LogCaptureFixture, credentials: str
) -> None:
    gateway = await start_gateway()
    token = gateway.token() if credentials == "good" else None
    for _ in range(TIMES):
        Client(gateway.url, "/api/v1/events", token=token, fields="").reset()
    await assert_nothing_is_left(gateway, TIMES)
    assert faults(caplog) == []
