"""``/metrics``: for this machine and for administrators, unless it is opened to everybody."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets, bind_unix_socket
from tornado.web import Application

from mcpgw.metrics import Metrics
from tests.conftest import LiveGateway, StartGateway
from tests.support.raw_socket import RawAnswer, RawSocket, fetch

if TYPE_CHECKING:
    from handlers.metrics import MetricsHandler
else:
    from mcpgw.handlers.metrics import MetricsHandler


@dataclass(frozen=True)
class Scraped:
    """The route on its own, over the services of a gateway, on TCP and on a socket of no address."""

    gateway: LiveGateway
    metrics: Metrics
    url: str
    socket: Path

    async def from_nowhere(self, headers: dict[str, str] | None = None) -> RawAnswer:
        """One request whose sender has no address, so that it is not known to come from this machine."""
        async with RawSocket(*await asyncio.open_unix_connection(self.socket)) as connection:
            await connection.request("GET", "/metrics", {"Host": "localhost", **(headers or {})})
            return await connection.read_answer()

    def credentials(self, *scopes: str) -> dict[str, str]:
        """The header of a token."""
        return {"Authorization": f"Bearer {self.gateway.token(scopes=scopes)}"}


@asynccontextmanager
async def scraped(
    start_gateway: StartGateway, folder: Path, *, public: bool = False
) -> AsyncIterator[Scraped]:
    """A gateway whose metrics can be read inside the block."""
    gateway = await start_gateway(settings={"metrics.public": public})
    routes = [(r"/metrics", MetricsHandler)]
    server = HTTPServer(Application(routes, services=gateway.services))
    sockets = bind_sockets(0, "127.0.0.1")
    path = folder / "socket"
    server.add_sockets([*sockets, bind_unix_socket(str(path))])
    try:
        yield Scraped(
            gateway, gateway.services.metrics, f"http://127.0.0.1:{sockets[0].getsockname()[1]}", path
        )
    finally:
        server.stop()
        await server.close_all_connections()


@pytest.mark.gen_test
async def test_a_client_on_this_machine_reads_them_without_credentials(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    async with scraped(start_gateway, tmp_path) as here:
        here.metrics.frame_received("ping")
        answer = await fetch(here.url, "/metrics")
    assert answer.status == 200
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert answer.headers["cache-control"] == "no-store"
    assert b'\nmcpgw_frames_total{direction="in",type="ping"} 1.0\n' in answer.body
    assert b"\nprocess_open_fds " in answer.body


@pytest.mark.gen_test
async def test_openmetrics_is_answered_where_it_is_asked_for(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    async with scraped(start_gateway, tmp_path) as here:
        answer = await fetch(here.url, "/metrics", headers={"Accept": "application/openmetrics-text"})
    assert answer.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    assert answer.body.endswith(b"# EOF\n")


@pytest.mark.gen_test
async def test_head_tells_the_length_and_sends_no_body(start_gateway: StartGateway, tmp_path: Path) -> None:
    async with scraped(start_gateway, tmp_path) as here, await RawSocket.connect(here.url) as connection:
        await connection.request("HEAD", "/metrics", {"Connection": "close"})
        head = await connection.read_to_end()
    assert head.startswith(b"HTTP/1.1 200 ")
    assert head.endswith(b"\r\n\r\n")


@pytest.mark.gen_test
@pytest.mark.parametrize("header", ["X-Forwarded-For", "X-Forwarded-Proto", "Forwarded", "X-Real-IP", "Via"])
async def test_what_a_proxy_on_this_machine_passes_on_is_not_from_this_machine(
    start_gateway: StartGateway, tmp_path: Path, header: str
) -> None:
    async with scraped(start_gateway, tmp_path) as here:
        answer = await fetch(here.url, "/metrics", headers={header: "127.0.0.1"})
    assert answer.status == 401
    assert answer.json()["error"]["code"] == "auth_required"
    assert answer.headers["www-authenticate"] == "Bearer"
    assert b"mcpgw_" not in answer.body


@pytest.mark.gen_test
async def test_from_elsewhere_only_an_administrator_reads_them(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    async with scraped(start_gateway, tmp_path) as here:
        nobody = await here.from_nowhere()
        wrong = await here.from_nowhere({"Authorization": "Bearer no.such.token"})
        user = await here.from_nowhere(here.credentials("servers:read", "events:read", "tools:call"))
        admin = await here.from_nowhere(here.credentials("admin"))
    assert (nobody.status, nobody.json()["error"]["code"]) == (401, "auth_required")
    assert (wrong.status, wrong.json()["error"]["code"]) == (401, "auth_failed")
    assert (user.status, user.json()["error"]["code"]) == (403, "permission_denied")
    assert user.json()["error"]["details"] == {"missingScope": "admin"}
    assert (admin.status, b"\nmcpgw_sessions 0.0\n" in admin.body) == (200, True)


@pytest.mark.gen_test
async def test_public_metrics_are_for_everybody(start_gateway: StartGateway, tmp_path: Path) -> None:
    async with scraped(start_gateway, tmp_path, public=True) as here:
        answer = await here.from_nowhere({"X-Forwarded-For": "203.0.113.9"})
    assert (answer.status, b"\nmcpgw_sessions 0.0\n" in answer.body) == (200, True)


@pytest.mark.gen_test
async def test_a_foreign_page_and_a_foreign_host_name_are_refused_on_this_machine_too(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    async with scraped(start_gateway, tmp_path) as here:
        page = await fetch(here.url, "/metrics", headers={"Origin": "https://evil.example"})
        rebound = await fetch(here.url, "/metrics", headers={"Host": "evil.example"})
    assert [page.status, rebound.status] == [403, 403]
