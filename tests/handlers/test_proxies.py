"""What proxies say of clients, and who is believed."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from mcpgw.config import load_config
from mcpgw.errors import ConfigError
from mcpgw.proxies import Origin, client_of, network_fault
from tests.conftest import StartGateway
from tests.support.logins import add_user, audited
from tests.support.pages import Browser
from tests.support.raw_socket import RawSocket, fetch
from tests.support.waiting import until

PROXIES = ("127.0.0.1", "10.0.0.0/8", "2001:db8:1::/48")


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, Origin("127.0.0.1")),
        ({"X-Forwarded-For": "192.0.2.7"}, Origin("192.0.2.7")),
        # The client has made up the first; a proxy has seen the second, and ours the proxy.
        ({"X-Forwarded-For": "203.0.113.9, 192.0.2.7, 10.1.2.3"}, Origin("192.0.2.7")),
        ({"X-Forwarded-For": "10.9.9.9, 192.0.2.7, 10.1.2.3,10.0.0.1"}, Origin("192.0.2.7")),
        ({"X-Forwarded-For": "10.1.2.3"}, Origin("10.1.2.3")),
        ({"X-Forwarded-For": "192.0.2.7:4711"}, Origin("192.0.2.7")),
        ({"X-Forwarded-For": "[2001:db8:2::7]:4711"}, Origin("2001:db8:2::7")),
        ({"X-Forwarded-For": "2001:db8:2::7, 2001:db8:1::1"}, Origin("2001:db8:2::7")),
        ({"X-Forwarded-For": "::ffff:192.0.2.7"}, Origin("192.0.2.7")),
        ({"X-Forwarded-For": "192.0.2.7, unknown"}, Origin("127.0.0.1")),
        ({"X-Forwarded-For": "192.0.2.7, ' OR 1=1, 10.0.0.1"}, Origin("10.0.0.1")),
        ({"X-Forwarded-For": ", ".join(["192.0.2.7"] + ["10.0.0.1"] * 5000)}, Origin("10.0.0.1")),
        (
            {
                "X-Forwarded-For": "192.0.2.7",
                "X-Forwarded-Proto": "http, https",
                "X-Forwarded-Host": "a, b.example",
            },
            Origin("192.0.2.7", "https", "b.example"),
        ),
        ({"X-Forwarded-Proto": "gopher"}, Origin("127.0.0.1")),
        # Another way of saying it, and what other proxies invented, is not looked at.
        ({"Forwarded": "for=192.0.2.7;proto=https", "X-Real-IP": "192.0.2.8"}, Origin("127.0.0.1")),
    ],
)
def test_the_client_is_the_first_from_the_right_that_is_no_proxy(
    headers: Mapping[str, str], expected: Origin
) -> None:
    assert client_of("127.0.0.1", headers, PROXIES, "x-forwarded") == expected
    assert client_of("192.0.2.99", headers, PROXIES, "x-forwarded") == Origin("192.0.2.99"), (
        "no proxy of ours"
    )
    assert client_of("127.0.0.1", headers, (), "x-forwarded") == Origin("127.0.0.1")


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("", Origin("127.0.0.1")),
        ("for=192.0.2.7", Origin("192.0.2.7")),
        ('For="[2001:db8:2::7]:4711";Proto=HTTPS', Origin("2001:db8:2::7", "https")),
        (
            "for=203.0.113.9;host=evil.example, for=192.0.2.7;proto=https;host=gw.example, for=10.0.0.1",
            Origin("192.0.2.7", "https", "gw.example"),
        ),
        ('for="192.0.2.7";by="a,b;\\"c"', Origin("192.0.2.7")),
        ("for=192.0.2.7, for=_hidden", Origin("127.0.0.1")),
        ("for=192.0.2.7, by=10.0.0.1", Origin("127.0.0.1")),
        ("for=192.0.2.7;for=192.0.2.8", Origin("127.0.0.1")),
        ('for="192.0.2.7', Origin("127.0.0.1")),
        ("for=192.0.2.7," + "x" * 9000, Origin("127.0.0.1")),
    ],
)
def test_the_standard_header_is_read_element_by_element(header: str, expected: Origin) -> None:
    headers = {"Forwarded": header, "X-Forwarded-For": "198.51.100.1", "X-Forwarded-Host": "evil.example"}
    assert client_of("127.0.0.1", headers, PROXIES, "forwarded") == expected


def test_a_network_of_proxies_is_one_and_not_everybody() -> None:
    for good in ("127.0.0.1", "10.0.0.0/8", "::1", "2001:db8::/32"):
        assert network_fault(good) == ""
    for bad in ("", "localhost", "10.0.0.1/8", "10.0.0.0/33", "0.0.0.0/0", "::/0", "*"):
        assert network_fault(bad), bad


def test_a_configuration_that_trusts_everybody_is_none(tmp_path: Path) -> None:
    file = tmp_path / "mcpgw.toml"
    file.write_text('[server]\ntrusted_proxies = ["10.0.0.0/8", "0.0.0.0/0", "proxy"]\n', encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_config(file=file, environment={}, flags={})
    assert [fault.partition(": ")[2][:24] for fault in caught.value.faults] == [
        "[server] trusted_proxies",
        "[server] trusted_proxies",
    ]
    assert "'0.0.0.0/0' is everybody" in caught.value.faults[0]
    assert "'proxy' is neither an IP address" in caught.value.faults[1]


@pytest.mark.gen_test
async def test_behind_a_trusted_proxy_the_client_is_who_came_to_it(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(
        settings={"server.trusted_proxies": "127.0.0.0/8", "server.allowed_hosts": "gw.example"}
    )
    await add_user(gateway)
    told = {"X-Forwarded-For": "203.0.113.9, 192.0.2.7", "X-Forwarded-Proto": "https"}
    async with await RawSocket.connect(gateway.url) as proxy:
        # One connection of the proxy carries requests of many clients.
        await proxy.request("GET", "/healthz", {**told, "X-Forwarded-Host": "gw.example"})
        answer = await proxy.read_answer()
        assert answer.status == 200
        assert answer.headers["strict-transport-security"] == "max-age=31536000"
        await proxy.request("GET", "/healthz", {**told, "X-Forwarded-Host": "evil.example"})
        assert (await proxy.read_answer()).status == 403
        await proxy.request("GET", "/healthz", {**told, "X-Forwarded-Host": "a b"})
        assert (await proxy.read_answer()).status == 400
    async with await RawSocket.connect(gateway.url) as proxy:
        await proxy.request("GET", "/api/v1/servers", told)
        assert (await proxy.read_answer()).status == 401
        await proxy.request("GET", "/healthz")
        plain = await proxy.read_answer()
        assert "strict-transport-security" not in plain.headers, "what was said of another request"
        await proxy.request("POST", "/api/v1/auth/logout", {"Origin": "http://evil.example"})
        assert (await proxy.read_answer()).status == 403
    await until(lambda: {"127.0.0.1", "192.0.2.7"} <= {line["where"]["remote"] for line in audited(gateway)})
    assert "203.0.113.9" not in {line["where"]["remote"] for line in audited(gateway)}
    browser = Browser(
        gateway, proxied={**told, "X-Forwarded-Host": "gw.example"}, origin="https://gw.example"
    )
    await browser.open_login()
    assert (await browser.log_in()).status == 200
    for cookie in ("mcpgw_refresh", "mcpgw_xsrf", "mcpgw_login_xsrf"):
        assert "Secure" in browser.attributes[cookie], cookie
    statistics = {"X-Forwarded-For": "127.0.0.1"}
    assert (await fetch(gateway.url, "/metrics", headers=statistics)).status == 401, "it was passed on"


@pytest.mark.gen_test
async def test_of_anybody_else_nothing_is_believed(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(settings={"server.trusted_proxies": "192.0.2.1"})
    made_up = {
        "X-Forwarded-For": "10.0.0.1",
        "X-Real-IP": "10.0.0.1",
        "X-Forwarded-Proto": "https",
        "X-Forwarded-Host": "evil.example",
        "Forwarded": "for=10.0.0.1;proto=https;host=evil.example",
    }
    answer = await fetch(gateway.url, "/healthz", headers=made_up)
    assert answer.status == 200, "its own Host counts"
    assert "strict-transport-security" not in answer.headers
    assert (await fetch(gateway.url, "/api/v1/servers", headers=made_up)).status == 401
    rebound = {**made_up, "Host": "evil.example", "X-Forwarded-Host": "127.0.0.1"}
    assert (await fetch(gateway.url, "/healthz", headers=rebound)).status == 403
    await until(lambda: any(line["event"] == "refused" for line in audited(gateway)))
    refused = [line for line in audited(gateway) if line["event"] == "refused"]
    assert {line["where"]["remote"] for line in refused} == {"127.0.0.1"}
