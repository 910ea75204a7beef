"""How many requests for credentials one address may make, and one user."""

import pytest

from mcpgw.access.lockout import network_of
from tests.conftest import StartGateway
from tests.support.logins import add_user, audited, log_in, send
from tests.support.routes import routes
from tests.support.waiting import until

UNCOUNTED = {"/api/v1/auth/me"}
"""Shows who one is, and gives nothing."""


def counted_routes() -> list[tuple[str, str]]:
    """Every route that takes or gives credentials."""
    return [
        (method, path)
        for method, path, _ in routes()
        if path not in UNCOUNTED and ("/auth/" in path or path.endswith("/rooms/join"))
    ]


@pytest.mark.gen_test
async def test_every_route_that_takes_or_gives_credentials_is_counted(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(
        settings={"server.trusted_proxies": "127.0.0.1", "auth.burst": 2, "auth.rate": 0.01}
    )
    found = counted_routes()
    names = {path.rpartition("/")[2] for _, path in found}
    assert names == {"login", "callback", "refresh", "logout", "ticket", "join"}
    for number, (method, path) in enumerate(found, 1):
        client = {"X-Forwarded-For": f"192.0.2.{number}"}
        # Those that are for known users alone are counted by user; nobody else gets so far.
        token = gateway.token() if path.endswith("/ticket") else None
        statuses = []
        for _ in range(3):
            body: dict[str, object] | None = {} if method == "POST" else None
            answer = await send(gateway, method, path, body, token=token, headers=client)
            statuses.append(answer.status)
        assert 429 not in statuses[:2], f"{method} {path}"
        assert statuses[2] == 429, f"{method} {path}"
        assert 0 < int(answer.headers["retry-after"]) <= 100
        error = answer.json()["error"]
        assert (error["code"], error["temporary"]) == ("rate_limited", True)
    await until(lambda: any(line["outcome"] == "rate_limited" for line in audited(gateway)))


@pytest.mark.gen_test
async def test_an_address_is_what_one_user_has(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(
        settings={"server.trusted_proxies": "127.0.0.1", "auth.burst": 1, "auth.rate": 0.01}
    )

    async def status(address: str) -> int:
        headers = {"X-Forwarded-For": address}
        return (await send(gateway, "POST", "/api/v1/auth/refresh", headers=headers)).status

    assert await status("2001:db8::1") == 401
    assert await status("2001:db8::ffff:2") == 429, "the same network of 64 bits"
    assert await status("2001:db8:0:1::1") == 401
    assert await status("192.0.2.1") == 401
    assert await status("::ffff:192.0.2.1") == 429, "the same in other words"
    assert await status("192.0.2.2") == 401
    assert network_of("2001:db8::1%eth0") == network_of("2001:db8::2")


@pytest.mark.gen_test
async def test_who_has_proved_who_they_are_is_counted_wherever_they_are(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(
        settings={"server.trusted_proxies": "127.0.0.1", "auth.burst": 2, "auth.rate": 0.01}
    )
    await add_user(gateway)
    tokens = {"ann": (await log_in(gateway))["accessToken"], "bob": gateway.token("bob")}

    async def status(user: str, address: str) -> int:
        headers = {"X-Forwarded-For": address}
        body = {"purpose": "events"}
        return (
            await send(gateway, "POST", "/api/v1/auth/ticket", body, token=tokens[user], headers=headers)
        ).status

    assert [await status("ann", f"192.0.2.{n}") for n in (1, 2, 3)] == [200, 200, 429]
    assert await status("bob", "192.0.2.1") == 200, "many people may come from one address"
    for _ in range(4):
        unknown = await send(
            gateway,
            "POST",
            "/api/v1/auth/ticket",
            {"purpose": "events"},
            headers={"X-Forwarded-For": "192.0.2.1"},
        )
        assert unknown.status == 401, "whoever proves nothing is told so, however often"
    # Whoever logs in has proved nothing by another token: the address counts.
    body = {"user": "ann", "password": "a wrong password"}
    tries = [
        (
            await send(
                gateway,
                "POST",
                "/api/v1/auth/login",
                body,
                token=tokens[user],
                headers={"X-Forwarded-For": "192.0.2.9"},
            )
        ).status
        for user in ("ann", "bob", "ann")
    ]
    assert tries == [401, 401, 429]
