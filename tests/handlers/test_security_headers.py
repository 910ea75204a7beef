"""What every answer tells a browser, and whom every route refuses."""

from typing import TYPE_CHECKING

import pytest

from tests.conftest import StartGateway
from tests.support.raw_socket import RawAnswer, RawSocket
from tests.support.routes import routes, upgrade_of

if TYPE_CHECKING:
    from handlers.security_headers import transport_security
else:
    from mcpgw.handlers.security_headers import transport_security

EVERYWHERE = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "x-frame-options": "DENY",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


def assert_safe(answer: RawAnswer, what: str, *, may_be_kept: bool = False) -> None:
    """Hold the headers of an answer against what each has."""
    for name, value in EVERYWHERE.items():
        assert answer.headers.get(name) == value, f"{name} of {what}"
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy, what
    assert "frame-ancestors 'none'" in policy, what
    assert "unsafe" not in policy, what
    assert "camera=()" in answer.headers["permissions-policy"], what
    assert answer.headers["cache-control"] in ("no-store", "no-cache" if may_be_kept else "no-store"), what
    assert "server" not in answer.headers, what
    assert "strict-transport-security" not in answer.headers, f"{what}: this was no TLS"


@pytest.mark.gen_test(timeout=60)
async def test_every_route_refuses_foreign_pages_and_forged_hosts_and_tells_browsers_to_be_careful(
    start_gateway: StartGateway,
) -> None:
    gateway = await start_gateway(settings={"websocket.echo": True, "auth.burst": 1000})
    own = gateway.url.removeprefix("http://")
    refused = (
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": f"http://{own.replace('127.0.0.1', 'localhost')}.evil.example"},
        {"Host": "evil.example"},
        {"Host": f"evil.example:{own.partition(':')[2]}", "Origin": gateway.url},
        {"Host": f"rebound.{own}"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"},
        {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"},
    )
    seen = 0
    for method, path, handler in routes():
        body = b"{}" if method in ("POST", "PUT", "PATCH") else b""
        for headers in ({"Origin": gateway.url}, *refused):
            async with await RawSocket.connect(gateway.url) as client:
                await client.request(method, path, {**upgrade_of(handler), **headers}, body)
                answer = await client.read_head()
                what = f"{method} {path} with {headers}"
                assert (answer.status == 403) is (headers in refused), what
                if answer.status != 101:
                    kept = path.startswith(("/docs", "/join")) and answer.status == 200
                    assert_safe(answer, what, may_be_kept=kept)
                seen += 1
    assert seen > 60 * len(refused)


@pytest.mark.gen_test
async def test_what_was_not_found_not_allowed_or_too_large_is_told_as_carefully(
    start_gateway: StartGateway,
) -> None:
    gateway = await start_gateway(settings={"server.max_body_size": 1024})
    for method, path, body, status in (
        ("GET", "/nothing", b"", 404),
        ("DELETE", "/healthz", b"", 405),
        ("BREW", "/healthz", b"", 405),
        ("POST", "/api/v1/auth/login", b"x" * 2048, 413),
        ("POST", "/api/v1/auth/login", b"{", 400),
        ("GET", "/api/v1/servers", b"", 401),
        ("GET", "/ws", b"", 426),
        ("OPTIONS", "/api/v1/servers", b"", 204),
    ):
        async with await RawSocket.connect(gateway.url) as client:
            await client.request(method, path, body=body)
            answer = await client.read_head()
        assert answer.status == status, path
        assert_safe(answer, path)


@pytest.mark.gen_test
async def test_a_link_from_another_site_may_be_followed_and_nothing_more(start_gateway: StartGateway) -> None:
    gateway = await start_gateway()
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    for path in ("/docs", "/api/v1/auth/login", "/healthz"):
        for headers, status in ((link, 200), ({**link, "Sec-Fetch-Dest": "object"}, 403)):
            async with await RawSocket.connect(gateway.url) as client:
                await client.request("GET", path, headers)
                assert (await client.read_head()).status == status, path
    async with await RawSocket.connect(gateway.url) as client:
        await client.request("POST", "/api/v1/auth/logout", link)
        assert (await client.read_head()).status == 403


@pytest.mark.parametrize(
    ("seconds", "host", "value"),
    [
        (86_400.0, "gateway.example", "max-age=86400"),
        (86_400.5, "gateway.example:8443", "max-age=86400"),
        (60, "[2001:db8::1]", "max-age=60"),
        (0, "gateway.example", ""),
        (60, "localhost:3000", ""),
        (60, "LOCALHOST", ""),
        (60, "app.localhost:3000", ""),
    ],
)
def test_browsers_are_told_to_keep_to_tls_but_never_of_this_machine(
    seconds: float, host: str, value: str
) -> None:
    assert transport_security(seconds, host) == value
