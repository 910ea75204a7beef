"""Health and readiness, and the bounds of every HTTP request: time and size."""

import time
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from tornado.netutil import bind_sockets

from mcpgw.app import make_application, make_server
from tests.conftest import StartGateway
from tests.support.gateway_process import GatewayProcess
from tests.support.raw_socket import RawSocket, fetch

if TYPE_CHECKING:
    from handlers.base import BaseHandler
else:
    from mcpgw.handlers.base import BaseHandler

MEBIBYTE = 1024 * 1024


@pytest.mark.gen_test
@pytest.mark.parametrize(("path", "status"), [("/healthz", "ok"), ("/readyz", "ready")])
async def test_health_and_readiness_are_told_to_anybody(
    shared_gateway: GatewayProcess, path: str, status: str
) -> None:
    answer = await fetch(shared_gateway.url, path)
    assert (answer.status, answer.json()) == (200, {"status": status})
    async with await RawSocket.connect(shared_gateway.url) as socket:
        await socket.request("HEAD", path, {"Connection": "close"})
        head = await socket.read_to_end()
    assert head.startswith(b"HTTP/1.1 200 ")
    assert head.endswith(b"\r\n\r\n")


@pytest.mark.gen_test
async def test_a_gateway_that_is_ending_is_healthy_and_not_ready(start_gateway: StartGateway) -> None:
    gateway = await start_gateway()
    gateway.services.gateway.draining = True
    answer = await fetch(gateway.url, "/readyz")
    assert (answer.status, answer.json()) == (503, {"status": "draining"})
    assert (await fetch(gateway.url, "/healthz")).status == 200


@pytest.mark.gen_test
@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"GET /ws HT",
        b"GET /ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: webso",
        b"POST /api/v1/servers HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\nhalf",
        b"POST /api/v1/servers HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
    ],
    ids=["nothing", "half a line", "half a header", "half a body", "half a chunk"],
)
async def test_a_slow_handshake_is_cut(start_gateway: StartGateway, sent: bytes) -> None:
    gateway = await start_gateway(settings={"server.handshake_timeout": 0.3})
    async with await RawSocket.connect(gateway.url) as socket:
        started = time.monotonic()
        await socket.send(sent)
        assert await socket.read_to_end(seconds=3) == b""
        assert time.monotonic() - started < 2


@pytest.mark.gen_test
async def test_a_header_that_drips_does_not_move_the_deadline(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(settings={"server.handshake_timeout": 0.4})
    async with await RawSocket.connect(gateway.url) as socket:
        started = time.monotonic()
        await socket.send(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Slow: ")
        while not socket.reader.at_eof() and time.monotonic() - started < 3:
            await socket.send(b"x")
            try:
                await socket.read_to_end(seconds=0.05)
            except TimeoutError:
                continue
            except ConnectionResetError:
                break
        assert time.monotonic() - started < 2


@pytest.mark.gen_test
async def test_a_socket_that_is_open_is_not_cut_by_the_time_of_the_handshake(
    start_gateway: StartGateway,
) -> None:
    gateway = await start_gateway(settings={"server.handshake_timeout": 0.2})
    async with await RawSocket.connect(gateway.url) as socket:
        await socket.upgrade(token=gateway.token())
        await socket.read_json()
        with pytest.raises(TimeoutError):
            await socket.read_frame(seconds=0.6)
        await socket.send_frame(0x8, b"\x03\xe8")
        assert (await socket.read_close())[0] == 1000
        await socket.read_to_end()


@pytest.mark.gen_test
@pytest.mark.parametrize("size", [MEBIBYTE + 1, 3 * MEBIBYTE])
async def test_a_body_over_the_limit_is_413_although_more_is_sent(
    shared_gateway: GatewayProcess, size: int
) -> None:
    async with await RawSocket.connect(shared_gateway.url) as socket:
        await socket.request("POST", "/api/v1/servers", {"Content-Length": str(size)})
        answer = await socket.read_answer()
        assert answer.status == 413
        assert answer.json()["error"]["code"] == "too_large"
        assert "server.max_body_size" in answer.json()["error"]["message"]
        await socket.send(b"x" * size)
        await socket.request("GET", "/healthz")
        assert (await socket.read_answer()).status == 200


@pytest.mark.gen_test
async def test_a_chunked_body_over_the_limit_is_413(shared_gateway: GatewayProcess) -> None:
    async with await RawSocket.connect(shared_gateway.url) as socket:
        await socket.request("POST", "/api/v1/servers", {"Transfer-Encoding": "chunked"})
        for _ in range(20):
            await socket.send(b"10000\r\n" + b"x" * 65536 + b"\r\n")
        await socket.send(b"0\r\n\r\n")
        answer = await socket.read_answer()
        assert answer.status == 413
        assert answer.json()["error"]["code"] == "too_large"
        await socket.request("GET", "/healthz")
        assert (await socket.read_answer()).status == 200


@pytest.mark.gen_test
async def test_a_client_that_asks_first_is_refused_before_it_sends(shared_gateway: GatewayProcess) -> None:
    async with await RawSocket.connect(shared_gateway.url) as socket:
        headers = {"Content-Length": str(10**15), "Expect": "100-continue"}
        await socket.request("POST", "/api/v1/servers", headers)
        assert (await socket.read_answer()).status == 413
        assert await socket.read_to_end(seconds=2) == b""


@pytest.mark.gen_test
async def test_a_body_of_exactly_the_limit_is_read(shared_gateway: GatewayProcess) -> None:
    answer = await fetch(shared_gateway.url, "/healthz", method="POST", body=b"x" * MEBIBYTE)
    assert answer.status == 405


@pytest.mark.gen_test
async def test_headers_over_64_kib_are_refused(shared_gateway: GatewayProcess) -> None:
    async with await RawSocket.connect(shared_gateway.url) as socket:
        await socket.request("GET", "/healthz", {"X-Large": "x" * 70_000})
        with suppress(ConnectionResetError):
            assert not (await socket.read_to_end()).startswith(b"HTTP/1.1 200")
    assert (await fetch(shared_gateway.url, "/healthz")).status == 200


class BrokenHandler(BaseHandler):
    """A handler with a fault."""

    def get(self) -> None:
        """Fail."""
        raise RuntimeError("the fault itself")


@pytest.mark.gen_test
async def test_a_fault_of_the_gateway_is_500_with_an_id_that_stands_in_the_log(
    start_gateway: StartGateway, caplog: pytest.LogCaptureFixture
) -> None:
    services = (await start_gateway()).services
    application = make_application(services)
    application.add_handlers(r".*", [(r"/broken", BrokenHandler)])
    server = make_server(application, services.config)
    sockets = bind_sockets(0, "127.0.0.1")
    server.add_sockets(sockets)
    answer = await fetch(f"http://127.0.0.1:{sockets[0].getsockname()[1]}", "/broken?token=hunter2")
    server.stop()
    await server.close_all_connections()
    assert answer.status == 500
    error = answer.json()["error"]
    assert (error["code"], error["temporary"]) == ("internal_error", True)
    assert "the fault itself" not in answer.body.decode()
    fault = error["message"].rpartition(" ")[2]
    assert f"internal error {fault}" in caplog.text
    assert "RuntimeError: the fault itself" in caplog.text
    assert "hunter2" not in caplog.text
