"""Host and Origin: which pages and names may reach the gateway."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from mcpgw.settings import ServerSettings
from tests.conftest import StartGateway
from tests.support.gateway_process import GatewayProcess
from tests.support.raw_socket import RawSocket, fetch

if TYPE_CHECKING:
    from handlers.hosts import host_is_allowed, origin_is_allowed, origin_is_listed
else:
    from mcpgw.handlers.hosts import host_is_allowed, origin_is_allowed, origin_is_listed

PATHS = ["/ws", "/api/v1/events", "/api/v1/servers", "/healthz", "/readyz", "/nothing"]
LISTED = ServerSettings(
    allowed_hosts=("gateway.example",), allowed_origins=("https://app.example", "http://localhost:5173")
)


@pytest.mark.parametrize(
    "host",
    [
        *("localhost", "localhost:3000", "LOCALHOST:1", "127.0.0.1", "127.0.0.1:3000", "[::1]:3000", "[::1]"),
        *("192.168.1.5:80", "0.0.0.0:3000", "gateway.example", "Gateway.Example:443"),
    ],
)
def test_own_names_addresses_and_listed_names_are_hosts(host: str) -> None:
    assert host_is_allowed(host, LISTED)


@pytest.mark.parametrize(
    "host",
    [
        *(
            "",
            "evil.example",
            "evil.example:3000",
            "localhost.evil.example",
            "127.0.0.1.nip.io",
            "localhost.",
            "127.1",
        ),
        *(
            "user@localhost",
            "evil.example@localhost",
            "localhost/evil",
            "localhost?x",
            "localhost#x",
            "local\thost",
        ),
        *(
            "localhost,evil.example",
            "localhost evil",
            "[::1",
            "::1",
            "[localhost]",
            "localhost:",
            "localhost:x",
        ),
        *("2130706433", "0x7f000001", "sub.gateway.example", "localhost:3000:3000"),
    ],
)
def test_every_other_host_is_refused(host: str) -> None:
    assert not host_is_allowed(host, LISTED)


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("http://localhost:3000", "localhost:3000"),
        ("https://localhost:3000", "localhost:3000"),
        ("http://LOCALHOST:3000", "localhost:3000"),
        ("https://gateway.example", "gateway.example"),
        ("https://gateway.example", "gateway.example:443"),
        ("http://[::1]:3000", "[::1]:3000"),
        ("https://app.example", "localhost:3000"),
        ("HTTPS://APP.example", "localhost:3000"),
        ("http://localhost:5173", "localhost:3000"),
        ("http://127.0.0.1:3000", "localhost:3000"),
        ("http://[::1]:3000", "localhost:3000"),
        ("http://localhost:3000", "127.0.0.1:3000"),
        ("http://LOCALHOST:3000", "[::1]:3000"),
        ("http://localhost", "127.0.0.1"),
        ("http://localhost", "127.0.0.1:80"),
        ("https://localhost:443", "[::1]"),
    ],
)
def test_own_pages_and_listed_pages_are_origins(origin: str, host: str) -> None:
    assert origin_is_allowed(origin, host, LISTED)


@pytest.mark.parametrize(
    "origin",
    [
        *(
            "null",
            "",
            "http://evil.example",
            "http://localhost",
            "http://localhost:3001",
            "http://localhost:30000",
        ),
        *(
            "http://app.example",
            "https://app.example.evil",
            "https://app.example:8443",
            "https://sub.app.example",
        ),
        *(
            "http://user@localhost:3000",
            "localhost:3000",
            "file://",
            "file://localhost:3000",
            "http://[",
            "*",
        ),
    ],
)
def test_every_other_origin_is_refused(origin: str) -> None:
    assert not origin_is_allowed(origin, "localhost:3000", LISTED)
    assert not origin_is_listed(origin, LISTED)


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("http://127.0.0.1:3001", "localhost:3000"),
        ("http://127.0.0.1", "localhost:3000"),
        ("http://127.0.0.2:3000", "localhost:3000"),
        ("http://localhost:3000", "192.168.1.5:3000"),
        ("http://192.168.1.5:3000", "localhost:3000"),
        ("http://localhost.evil.example:3000", "127.0.0.1:3000"),
        ("http://localhost:3000", "gateway.example:3000"),
        ("http://user@127.0.0.1:3000", "localhost:3000"),
        ("http://127.0.0.1:3000", ""),
        ("null", "127.0.0.1:3000"),
    ],
)
def test_only_names_of_this_machine_with_the_gateways_port_are_one_origin(origin: str, host: str) -> None:
    assert not origin_is_allowed(origin, host, LISTED)


PATTERNS = ServerSettings(
    allowed_hosts=("*.gateway.example",),
    allowed_origins=("https://*.app.example", "http://*.dev.example:5173"),
)


@pytest.mark.parametrize(
    "origin",
    [
        *(
            "https://a.app.example",
            "https://a.b.c.app.example",
            "https://A.App.Example",
            "https://x_1-y.app.example",
        ),
        "http://a.dev.example:5173",
    ],
)
def test_a_star_stands_for_one_label_of_an_origin_or_more(origin: str) -> None:
    assert origin_is_listed(origin, PATTERNS)
    assert origin_is_allowed(origin, "localhost:3000", PATTERNS)


@pytest.mark.parametrize(
    "origin",
    [
        *("https://app.example", "https://.app.example", "https://a..app.example", "https://evilapp.example"),
        *("https://a.app.example.evil", "https://a.app.example:8443", "https://a.app.example:443"),
        *("http://a.app.example", "wss://a.app.example", "a.app.example", "https://a.app.example/"),
        *("https://evil.example/.app.example", "https://evil.example#.app.example", "https://*.app.example"),
        *("https://u@a.app.example", "https://evil.example:1.app.example", "https://a.app.example."),
        *("http://a.dev.example", "http://a.dev.example:51730", "http://a.dev.example:80", "null", ""),
    ],
)
def test_a_star_stands_for_nothing_else(origin: str) -> None:
    assert not origin_is_listed(origin, PATTERNS)
    assert not origin_is_allowed(origin, "localhost:3000", PATTERNS)


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        *(("a.gateway.example", True), ("A.b.Gateway.example:443", True)),
        *(("gateway.example", False), ("evilgateway.example", False), (".gateway.example", False)),
        *(("a..gateway.example", False), ("a.gateway.example.evil", False), ("a.gateway.example.", False)),
    ],
)
def test_a_star_stands_for_one_label_of_a_host_or_more(host: str, allowed: bool) -> None:
    assert host_is_allowed(host, PATTERNS) is allowed


@pytest.mark.gen_test
async def test_a_page_of_a_pattern_may_read_answers_and_a_neighbour_is_refused_by_name(
    start_gateway: StartGateway,
) -> None:
    gateway = await start_gateway('[server]\nallowed_origins = ["https://*.app.example"]\n')
    page = "https://a.b.app.example"
    answer = await fetch(gateway.url, "/healthz", headers={"Origin": page})
    assert (answer.status, answer.headers["access-control-allow-origin"]) == (200, page)
    refused = await fetch(gateway.url, "/healthz", headers={"Origin": "https://app.example"})
    assert refused.status == 403
    assert (
        refused.json()["error"]["message"]
        == "the origin 'https://app.example' is not allowed: see server.allowed_origins"
    )


@pytest.mark.gen_test
@pytest.mark.parametrize("name", ["localhost", "[::1]"])
async def test_a_page_of_this_machine_may_connect_under_any_name_of_it(
    shared_gateway: GatewayProcess, name: str
) -> None:
    origin = shared_gateway.url.replace("127.0.0.1", name)
    async with await RawSocket.connect(shared_gateway.url) as socket:
        assert (await socket.upgrade(headers={"Origin": origin})).status == 101


@pytest.mark.gen_test
async def test_a_refused_page_is_a_warning_in_the_log_with_the_setting_that_allows_it(
    gateway_process: Callable[..., GatewayProcess],
) -> None:
    gateway = gateway_process(arguments=["--memory-enabled", "false"])
    origin = "http://localhost:5173"
    answer = await fetch(gateway.url, "/healthz", headers={"Origin": origin})
    assert answer.status == 403
    assert gateway.terminate() == 0
    (line,) = (line for line in gateway.log().splitlines() if origin in line)
    assert " WARNING mcpgw.http refused " in line
    assert "server.allowed_origins" in line


@pytest.mark.gen_test
async def test_the_root_says_what_is_where(shared_gateway: GatewayProcess) -> None:
    answer = await fetch(shared_gateway.url, "/")
    assert answer.status == 404
    for place in ("/ws", "/api/v1/events", "/healthz", "docs/protocol.md"):
        assert place in answer.json()["error"]["message"]


@pytest.mark.gen_test
@pytest.mark.parametrize("path", PATHS)
async def test_a_foreign_host_is_refused_everywhere_with_the_setting_that_allows_it(
    shared_gateway: GatewayProcess, path: str
) -> None:
    headers = {"Host": "evil.example", "Authorization": f"Bearer {shared_gateway.token()}"}
    async with await RawSocket.connect(shared_gateway.url) as socket:
        if path == "/ws":
            answer = await socket.upgrade(headers=headers)
        else:
            await socket.request("GET", path, headers)
            answer = await socket.read_answer()
    assert answer.status == 403
    assert answer.json()["error"]["code"] == "permission_denied"
    assert (
        answer.json()["error"]["message"]
        == "the host 'evil.example' is not allowed: see server.allowed_hosts"
    )


@pytest.mark.gen_test
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("origin", ["https://evil.example", "null"])
async def test_a_foreign_origin_is_refused_everywhere_with_the_setting_that_allows_it(
    shared_gateway: GatewayProcess, path: str, origin: str
) -> None:
    headers = {"Origin": origin, "Authorization": f"Bearer {shared_gateway.token()}"}
    async with await RawSocket.connect(shared_gateway.url) as socket:
        if path == "/ws":
            answer = await socket.upgrade(headers=headers)
        else:
            await socket.request("GET", path, headers)
            answer = await socket.read_answer()
    assert answer.status == 403
    assert answer.json()["error"]["code"] == "permission_denied"
    assert (
        answer.json()["error"]["message"]
        == f"the origin {origin!r} is not allowed: see server.allowed_origins"
    )
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.gen_test
async def test_two_host_headers_are_refused(shared_gateway: GatewayProcess) -> None:
    async with await RawSocket.connect(shared_gateway.url) as socket:
        await socket.send(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n")
        assert (await socket.read_head()).status in (400, 403)


@pytest.mark.gen_test
async def test_the_own_page_may_connect(shared_gateway: GatewayProcess) -> None:
    async with await RawSocket.connect(shared_gateway.url) as socket:
        assert (await socket.upgrade(headers={"Origin": shared_gateway.url})).status == 101
    answer = await fetch(shared_gateway.url, "/healthz", headers={"Origin": shared_gateway.url})
    assert answer.status == 200
    assert "access-control-allow-origin" not in answer.headers
    assert answer.headers["vary"] == "Origin"


@pytest.mark.gen_test
async def test_a_listed_page_may_connect_and_read_answers_and_refusals(start_gateway: StartGateway) -> None:
    gateway = await start_gateway('[server]\nallowed_origins = ["https://app.example"]\n')
    origin = {"Origin": "https://app.example"}
    async with await RawSocket.connect(gateway.url) as socket:
        assert (await socket.upgrade(headers=origin)).status == 101
        await socket.read_json()
        await socket.send_frame(0x8, b"\x03\xe8")
        await socket.read_to_end()
    bearer = {"Authorization": f"Bearer {gateway.token()}"}
    for path, headers, status in (
        ("/api/v1/servers", {**origin, **bearer}, 200),
        ("/api/v1/servers", origin, 401),
        ("/nothing", origin, 404),
    ):
        answer = await fetch(gateway.url, path, headers=headers)
        assert answer.status == status
        assert answer.headers["access-control-allow-origin"] == "https://app.example"
        assert answer.headers["vary"] == "Origin"
        assert "access-control-allow-credentials" not in answer.headers


@pytest.mark.gen_test
async def test_a_browser_is_told_before_it_sends_credentials_what_a_listed_page_may(
    start_gateway: StartGateway,
) -> None:
    gateway = await start_gateway('[server]\nallowed_origins = ["https://app.example"]\n')
    asked = {"Access-Control-Request-Method": "GET", "Access-Control-Request-Headers": "authorization"}
    answer = await fetch(
        gateway.url, "/api/v1/servers", method="OPTIONS", headers={"Origin": "https://app.example", **asked}
    )
    assert answer.status == 204
    assert answer.headers["access-control-allow-origin"] == "https://app.example"
    assert "GET" in answer.headers["access-control-allow-methods"]
    assert "Authorization" in answer.headers["access-control-allow-headers"]
    refused = await fetch(
        gateway.url, "/api/v1/servers", method="OPTIONS", headers={"Origin": "https://evil.example", **asked}
    )
    assert refused.status == 403
    assert "access-control-allow-origin" not in refused.headers


PUBLIC = ServerSettings(public_url="https://gw.example/behind")
PUBLIC_PORT = ServerSettings(public_url="https://gw.example:8443")


def test_the_public_address_is_the_gateways_own_name_and_origin_and_no_other_is() -> None:
    for host in ("gw.example", "GW.example", "gw.example:443"):
        assert host_is_allowed(host, PUBLIC)
    for host in ("evil.gw.example", "gw.example.evil", "example"):
        assert not host_is_allowed(host, PUBLIC)
    # The proxy has told the gateway another host than the browser knows.
    inner = "127.0.0.1:3000"
    assert origin_is_allowed("https://gw.example", inner, PUBLIC)
    assert origin_is_allowed("https://gw.example:8443", inner, PUBLIC_PORT)
    for origin in (
        "http://gw.example",
        "https://gw.example:8443",
        "https://gw.example.evil",
        "https://",
        "null",
    ):
        assert not origin_is_allowed(origin, inner, PUBLIC)
    assert not origin_is_allowed("https://gw.example", inner, PUBLIC_PORT)
    for origin in ("://", "", "https://"):
        assert not origin_is_allowed(origin, inner, ServerSettings())
