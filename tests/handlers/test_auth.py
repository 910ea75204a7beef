"""``/api/v1/auth``: in, on, out; and what is open meanwhile."""

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import LiveGateway, StartGateway
from tests.support.logins import BY, GOOD, add_user, audited, log_in, send
from tests.support.pages import Browser
from tests.support.raw_socket import RawSocket
from tests.support.socket_client import SocketClient
from tests.support.waiting import until

LOGIN, REFRESH, LOGOUT = (f"/api/v1/auth/{name}" for name in ("login", "refresh", "logout"))


def has_audited(gateway: LiveGateway, event: str, outcome: str, **what: Any) -> bool:
    """Whether a line of the audit log has these members."""
    return any(
        line["event"] == event
        and line["outcome"] == outcome
        and what.items() <= {**line["what"], **line.get("who", {})}.items()
        for line in audited(gateway)
    )


@pytest.mark.gen_test
async def test_a_password_gives_a_token_that_may_do_what_the_role_says(start_gateway: StartGateway) -> None:
    gateway = await start_gateway()
    await add_user(gateway, role="viewer")
    granted = await log_in(gateway)
    assert (granted["tokenType"], granted["expiresIn"], granted["user"]) == ("Bearer", 600, "ann")
    me = (await send(gateway, "GET", "/api/v1/auth/me", token=granted["accessToken"])).json()
    assert me["role"] == "viewer"
    assert me["scopes"] == ["events:read", "servers:read"]
    assert me["credentials"] == "login"
    assert (await send(gateway, "GET", "/api/v1/servers", token=granted["accessToken"])).status == 200
    denied = await send(gateway, "GET", "/api/v1/config", token=granted["accessToken"])
    assert denied.status == 403
    await until(lambda: has_audited(gateway, "auth", "ok", credentials="password", user="ann"))
    await until(lambda: has_audited(gateway, "refused", "permission_denied", user="ann"))
    written = Path(gateway.services.config.audit.file).read_text(encoding="utf-8")
    for secret in (GOOD, granted["accessToken"], granted["refreshToken"]):
        assert secret not in written


@pytest.mark.gen_test
async def test_a_browser_has_its_refresh_token_in_a_cookie_that_no_script_and_no_other_site_gets(
    start_gateway: StartGateway,
) -> None:
    gateway = await start_gateway()
    await add_user(gateway)
    browser = Browser(gateway)
    await browser.open_login()
    answer = await browser.log_in()
    assert answer.status == 200
    assert "refreshToken" not in answer.json()
    cookie = browser.attributes["mcpgw_refresh"]
    assert {"HttpOnly", "SameSite=Strict", "Path=/api/v1/auth"} <= cookie
    assert "Secure" not in cookie, "without TLS a browser would not send it back"
    before = browser.cookies["mcpgw_refresh"]
    renewed = await browser.send("POST", REFRESH)
    assert renewed.status == 200
    assert browser.cookies["mcpgw_refresh"] not in ("", before)
    asked = await browser.send("POST", LOGIN, {"user": "ann", "password": GOOD, "refresh": "body"})
    assert (asked.status, asked.json()["error"]["code"]) == (403, "permission_denied")
    foreign = {"Sec-Fetch-Site": "cross-site"}
    assert (await browser.send("POST", REFRESH, headers=foreign)).status == 403
    elsewhere = {"Origin": "http://evil.example"}
    assert (await browser.send("POST", REFRESH, headers=elsewhere)).status == 403


@pytest.mark.gen_test
async def test_a_refresh_token_is_good_once_and_one_that_comes_again_ends_the_login(
    start_gateway: StartGateway,
) -> None:
    gateway = await start_gateway()
    await add_user(gateway)
    first = await log_in(gateway)
    second = (await send(gateway, "POST", REFRESH, {"refreshToken": first["refreshToken"]})).json()
    assert second["accessToken"] != first["accessToken"]
    assert second["refreshToken"] != first["refreshToken"]
    client = await SocketClient.connect(gateway.socket_url, token=second["accessToken"])
    await client.receive()
    stolen = await send(gateway, "POST", REFRESH, {"refreshToken": first["refreshToken"]})
    assert (stolen.status, stolen.json()["error"]["code"]) == (401, "auth_failed")
    assert await client.closed(2) == 3503
    for token in (first["accessToken"], second["accessToken"]):
        assert (await send(gateway, "GET", "/api/v1/auth/me", token=token)).status == 401
    honest = await send(gateway, "POST", REFRESH, {"refreshToken": second["refreshToken"]})
    assert honest.status == 401
    await until(lambda: has_audited(gateway, "access", "auth_failed", action="login.reused", user="ann"))


@pytest.mark.gen_test
async def test_of_many_who_use_one_refresh_token_at_once_one_is_served_and_the_login_ends(
    start_gateway: StartGateway,
) -> None:
    gateway = await start_gateway()
    await add_user(gateway)
    granted = await log_in(gateway)
    body = {"refreshToken": granted["refreshToken"]}
    answers = await asyncio.gather(*(send(gateway, "POST", REFRESH, body) for _ in range(6)))
    assert sorted(answer.status for answer in answers) == [200, 401, 401, 401, 401, 401]
    (served,) = (answer.json() for answer in answers if answer.status == 200)
    assert (await send(gateway, "GET", "/api/v1/auth/me", token=served["accessToken"])).status == 401


@pytest.mark.gen_test
async def test_a_logout_ends_the_sockets_and_streams_of_that_login_and_of_no_other(
    start_gateway: StartGateway,
) -> None:
    gateway = await start_gateway()
    await add_user(gateway)
    mine, other = await log_in(gateway), await log_in(gateway)
    socket = await SocketClient.connect(gateway.socket_url, token=mine["accessToken"])
    late = await SocketClient.connect(gateway.socket_url)
    await late.receive()
    await late.request({"type": "auth", "id": "a", "data": {"token": mine["accessToken"]}})
    stays = await SocketClient.connect(gateway.socket_url, token=other["accessToken"])
    await socket.receive()
    await stays.receive()
    async with await RawSocket.connect(gateway.url) as stream:
        await stream.request(
            "GET", "/api/v1/sse?channels=servers", {"Authorization": f"Bearer {mine['accessToken']}"}
        )
        assert (await stream.read_head()).status == 200
        await stream.read_chunk()
        out = await send(gateway, "POST", LOGOUT, token=mine["accessToken"])
        assert out.status == 204
        assert await socket.closed(1) == 3503
        assert await late.closed(1) == 3503
        rest = ""
        while chunk := await stream.read_chunk(1):
            rest += chunk.decode()
    last = json.loads(re.findall(r"data: (.*)", rest)[-1])
    assert (last["type"], last["data"]["code"], last["data"]["reconnect"]) == ("disconnect", 3503, False)
    assert (await stays.request({"type": "ping", "id": "p"}))["type"] == "pong"
    await stays.leave()
    assert (await send(gateway, "GET", "/api/v1/auth/me", token=mine["accessToken"])).status == 401
    gone = await send(gateway, "POST", REFRESH, {"refreshToken": mine["refreshToken"]})
    assert gone.status == 401
    assert (await send(gateway, "POST", LOGOUT, {"refreshToken": mine["refreshToken"]})).status == 204
    assert (await send(gateway, "POST", LOGOUT, {"refreshToken": other["refreshToken"]})).status == 204
    assert (await send(gateway, "GET", "/api/v1/auth/me", token=other["accessToken"])).status == 401
    await until(lambda: has_audited(gateway, "access", "ok", action="login.logout", user="ann"))


@pytest.mark.gen_test(timeout=60)
async def test_failed_logins_answer_alike_and_lock_the_account_that_is_there_and_the_one_that_is_not(
    start_gateway: StartGateway,
) -> None:
    gateway = await start_gateway()
    await add_user(gateway)
    await add_user(gateway, "off")
    await gateway.services.access.accounts.set_disabled("off", True, by=BY)
    said = {}
    for name in ("nobody", "off", "ann"):
        password = GOOD if name == "off" else "a wrong password"
        answers = [await send(gateway, "POST", LOGIN, {"user": name, "password": password}) for _ in range(6)]
        said[name] = [(a.status, a.json()["error"]["code"], a.json()["error"]["message"]) for a in answers]
        assert [status for status, _, _ in said[name]] == [401] * 5 + [429]
        assert 0 < answers[-1].json()["error"]["retryAfterMs"] <= 2000
    assert said["ann"] == said["nobody"] == said["off"]
    right = await send(gateway, "POST", LOGIN, {"user": "ann", "password": GOOD})
    assert right.status == 429, "a locked account is not looked at, with the right password either"
    await until(lambda: has_audited(gateway, "auth", "auth_failed", credentials="password", user="ann"))
    await until(lambda: has_audited(gateway, "auth", "rate_limited", credentials="password"))
    await asyncio.sleep(1.1)  # the pause itself
    await log_in(gateway)


@pytest.mark.gen_test
async def test_requests_from_one_address_have_a_rate(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(settings={"auth.burst": 3, "auth.rate": 0.01})
    statuses = [(await send(gateway, "POST", LOGOUT)).status for _ in range(5)]
    assert statuses == [204, 204, 204, 429, 429]


@pytest.mark.gen_test
async def test_the_first_admin_comes_in_by_a_link_once_and_chooses_a_password(
    start_gateway: StartGateway,
) -> None:
    gateway = await start_gateway()
    link = gateway.services.access.first_link
    assert link is not None
    short = await send(gateway, "POST", LOGIN, {"link": link, "password": "short"})
    assert (short.status, short.json()["error"]["code"]) == (400, "invalid_params")
    came_in = await send(gateway, "POST", LOGIN, {"link": link, "password": GOOD})
    assert (came_in.status, came_in.json()["scopes"]) == (200, ["admin"])
    assert (await send(gateway, "POST", LOGIN, {"link": link})).status == 401
    assert (await log_in(gateway, "admin"))["role"] == "admin"
    assert await gateway.services.access.accounts.first_link() is None
    for wrong in ({}, {"user": "a"}, {"user": "a", "password": "b", "link": "c"}, {"link": "x", "extra": 1}):
        assert (await send(gateway, "POST", LOGIN, wrong)).status == 400


@pytest.mark.gen_test
async def test_the_page_runs_its_own_script_alone_and_no_page_may_frame_it(
    start_gateway: StartGateway,
) -> None:
    gateway = await start_gateway()
    page = await send(gateway, "GET", LOGIN)
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert page.headers["referrer-policy"] == "no-referrer"
    assert b"<script>" in page.body


@pytest.mark.gen_test
async def test_a_ticket_opens_one_connection_of_its_purpose(start_gateway: StartGateway) -> None:
    gateway = await start_gateway()
    await add_user(gateway)
    token = (await log_in(gateway))["accessToken"]

    async def ticket(purpose: str) -> str:
        answer = await send(gateway, "POST", "/api/v1/auth/ticket", {"purpose": purpose}, token=token)
        assert answer.status == 200
        secret: str = answer.json()["ticket"]
        return secret

    async def status(path: str, secret: str) -> int:
        async with await RawSocket.connect(gateway.url) as client:
            await client.request("GET", f"{path}?ticket={secret}")
            return (await client.read_head()).status

    first = await ticket("websocket")
    url = gateway.socket_url.replace("/ws", "/api/v1/ws")
    client = await SocketClient.connect(f"{url}?ticket={first}")
    assert (await client.receive())["data"]["user"] == "ann"
    async with await RawSocket.connect(gateway.url) as again:
        assert (await again.upgrade(path=f"/api/v1/ws?ticket={first}")).status == 401
    assert await status("/api/v1/sse", await ticket("events")) == 200
    wrong = await ticket("websocket")
    assert await status("/api/v1/sse", wrong) == 401
    async with await RawSocket.connect(gateway.url) as late:
        assert (await late.upgrade(path=f"/api/v1/ws?ticket={wrong}")).status == 401, "it is used up"
    for path in ("/api/v1/servers", "/api/v1/auth/me", "/mcp"):
        assert await status(path, await ticket("events")) == 401
        assert await status(path, await ticket("websocket")) == 401
    old = await ticket("events")
    gateway.services.access.tickets._seconds = 0
    assert await status("/api/v1/sse", await ticket("events")) == 401
    assert await status("/api/v1/sse", old) == 200
    unused = await ticket("websocket")
    assert (await send(gateway, "POST", LOGOUT, token=token)).status == 204
    assert await client.closed(1) == 3503
    async with await RawSocket.connect(gateway.url) as gone:
        assert (await gone.upgrade(path=f"/api/v1/ws?ticket={unused}")).status == 401


@pytest.mark.gen_test
async def test_no_secret_of_a_login_is_a_bearer_token(start_gateway: StartGateway) -> None:
    gateway = await start_gateway()
    await add_user(gateway)
    granted = await log_in(gateway)
    link = await gateway.services.access.accounts.make_link("ann", by=BY)
    ticket = await send(
        gateway, "POST", "/api/v1/auth/ticket", {"purpose": "events"}, token=granted["accessToken"]
    )
    for secret in (granted["refreshToken"], link, ticket.json()["ticket"]):
        assert (await send(gateway, "GET", "/api/v1/auth/me", token=secret)).status == 401
    for secret in (link, ticket.json()["ticket"]):
        assert (await send(gateway, "POST", REFRESH, {"refreshToken": secret})).status == 401
    assert (await send(gateway, "POST", REFRESH)).json()["error"]["code"] == "auth_required"


@pytest.mark.gen_test
async def test_a_change_by_command_reaches_open_sockets_and_the_audit_log(
    start_gateway: StartGateway,
) -> None:
    gateway = await start_gateway(settings={"auth.watch_interval": 0.05})
    await add_user(gateway, role="operator")
    token = (await log_in(gateway))["accessToken"]
    client = await SocketClient.connect(gateway.socket_url, token=token)
    await client.receive()
    subscribed = await client.request({"type": "subscribe", "id": "s", "data": {"channel": "room:one"}})
    assert subscribed["type"] == "subscribed"
    # As another process does it: through the store alone.
    await gateway.services.store.users.set_role("ann", "viewer", by=BY)
    assert (await client.receive())["type"] == "unsubscribed", "a viewer may be in no room"
    denied = await client.request({"type": "subscribe", "id": "s", "data": {"channel": "room:one"}})
    assert denied["data"]["code"] == "permission_denied"
    await gateway.services.store.users.set_disabled("ann", True, by=BY)
    assert await client.closed(2) == 3503
    await until(lambda: has_audited(gateway, "access", "ok", action="users.disable", user="root"))
    await until(lambda: has_audited(gateway, "access", "ok", action="users.role", target="ann"))


@pytest.mark.gen_test
async def test_a_token_made_by_hand_for_a_user_of_the_store_is_held_to_the_role(
    start_gateway: StartGateway,
) -> None:
    gateway = await start_gateway()
    await add_user(gateway, role="viewer")
    scopes = ("admin", "tools:call")
    me = (await send(gateway, "GET", "/api/v1/auth/me", token=gateway.token("ann", scopes))).json()
    assert me["scopes"] == ["events:read", "servers:read"]
    other = (await send(gateway, "GET", "/api/v1/auth/me", token=gateway.token("bob", scopes))).json()
    assert other["scopes"] == ["admin", "tools:call"]
    await gateway.services.access.accounts.set_disabled("ann", True, by=BY)
    await gateway.services.access.read_changes()
    refused = await send(gateway, "GET", "/api/v1/auth/me", token=gateway.token("ann", scopes))
    assert refused.status == 401


@pytest.mark.gen_test
async def test_another_password_ends_every_login(start_gateway: StartGateway) -> None:
    gateway = await start_gateway()
    await add_user(gateway)
    granted = await log_in(gateway)
    await gateway.services.access.accounts.set_password("ann", "another long password", by=BY)
    await gateway.services.access.read_changes()
    assert (await send(gateway, "GET", "/api/v1/auth/me", token=granted["accessToken"])).status == 401
    assert (await send(gateway, "POST", REFRESH, {"refreshToken": granted["refreshToken"]})).status == 401
    await log_in(gateway, password="another long password")


@pytest.mark.gen_test
async def test_a_socket_is_told_before_its_token_ends_and_another_renews_it_in_place(
    start_gateway: StartGateway,
) -> None:
    gateway = await start_gateway(settings={"auth.warning": 1.0, "auth.leeway": 0})
    await add_user(gateway)
    client = await SocketClient.connect(gateway.socket_url, token=gateway.token(ttl=2))
    first = await client.receive()
    told = await client.receive(3)
    assert (told["type"], told["data"]["authenticated"]) == ("status", True)
    assert "id" not in told
    assert "expires soon" in told["data"]["message"]
    assert told["data"]["expiresAt"] == first["data"]["expiresAt"]
    assert 0 < told["data"]["expiresAt"] - told["timestamp"] <= 1000
    other = await client.request(
        {"type": "auth", "id": "a", "data": {"token": gateway.token("bob", ttl=600)}}
    )
    assert other["data"]["code"] == "permission_denied"
    renewed = await client.request(
        {"type": "auth", "id": "b", "data": {"token": (await log_in(gateway))["accessToken"]}}
    )
    assert renewed["data"]["expiresAt"] > told["data"]["expiresAt"] + 500_000
    with pytest.raises(TimeoutError):
        await client.receive(1.5)
    await client.leave()
    ends = await SocketClient.connect(gateway.socket_url, token=gateway.token(ttl=2))
    assert await ends.closed(4) == 3005


@pytest.mark.gen_test
async def test_a_socket_is_told_a_minute_before_its_token_ends_where_nothing_else_is_set(
    start_gateway: StartGateway,
) -> None:
    gateway = await start_gateway()
    client = await SocketClient.connect(gateway.socket_url, token=gateway.token(ttl=61))
    await client.receive()
    told = await client.receive(3)
    assert "expires soon" in told["data"]["message"]
    assert 58_000 < told["data"]["expiresAt"] - told["timestamp"] <= 60_000
    await client.leave()


@pytest.mark.gen_test
async def test_the_tabs_of_a_browser_may_refresh_in_the_same_moment_and_a_program_may_not(
    start_gateway: StartGateway,
) -> None:
    gateway = await start_gateway()
    await add_user(gateway)
    own = {"Origin": gateway.url, "Sec-Fetch-Mode": "cors", "Sec-Fetch-Site": "same-origin"}
    visit = await send(gateway, "GET", LOGIN)
    shown = _cookies(visit.set_cookies)
    entry = {"user": "ann", "password": GOOD}
    answer = await send(gateway, "POST", LOGIN, entry, headers={**own, **_with(shown, "mcpgw_login_xsrf")})
    assert answer.status == 200, answer.body
    jar = _cookies(answer.set_cookies)
    page = {**own, **_with(jar, "mcpgw_xsrf")}
    tabs = await asyncio.gather(*(send(gateway, "POST", REFRESH, headers=page) for _ in range(3)))
    assert [tab.status for tab in tabs] == [200, 200, 200]
    assert len({_cookies(tab.set_cookies)["mcpgw_refresh"] for tab in tabs}) == 1
    body = {"refreshToken": jar["mcpgw_refresh"]}
    assert (await send(gateway, "POST", REFRESH, body)).status == 401
    assert (await send(gateway, "GET", "/api/v1/auth/me", token=tabs[0].json()["accessToken"])).status == 401


def _cookies(lines: tuple[str, ...]) -> dict[str, str]:
    pairs = (line.partition(";")[0].partition("=") for line in lines)
    return {name: value for name, _, value in pairs}


def _with(jar: dict[str, str], xsrf: str) -> dict[str, str]:
    return {
        "Cookie": "; ".join(f"{name}={value}" for name, value in jar.items()),
        "X-XSRFToken": jar[xsrf],
    }
