"""Requests that a browser sends with its cookies, for pages that could not have read them."""

import pytest

from mcpgw.access.xsrf import XsrfTokens
from tests.conftest import StartGateway
from tests.support.logins import GOOD, add_user, audited, log_in, send
from tests.support.pages import Browser
from tests.support.waiting import until

LOGIN, REFRESH, LOGOUT = (f"/api/v1/auth/{name}" for name in ("login", "refresh", "logout"))


def test_a_token_is_good_for_its_own_login_and_with_its_own_key_alone() -> None:
    tokens = XsrfTokens(b"k" * 32)
    token = tokens.make("0a1b")
    assert tokens.is_good(token)
    assert tokens.is_good(token, "0a1b")
    assert not tokens.is_good(token, "0a1c")
    assert not tokens.is_good(token, "")
    assert not XsrfTokens(b"l" * 32).is_good(token)
    login, _, rest = token.partition(".")
    for forged in (
        "",
        "..",
        f"0a1c.{rest}",
        f"{login}{rest}",
        token[:-1],
        f"{token}0",
        token.upper(),
        "é" * 90,
    ):
        assert not tokens.is_good(forged), forged
    assert tokens.make("0a1b") != token
    assert "k" * 8 not in repr(tokens)


@pytest.mark.gen_test
@pytest.mark.parametrize("path", [REFRESH, LOGOUT])
async def test_what_the_cookie_of_a_login_does_needs_the_token_in_a_header(
    start_gateway: StartGateway, path: str
) -> None:
    gateway = await start_gateway()
    await add_user(gateway)
    browser, other = Browser(gateway), Browser(gateway)
    for one in (browser, other):
        await one.open_login()
        assert (await one.log_in()).status == 200
    readable = browser.attributes["mcpgw_xsrf"]
    assert {"Path=/", "SameSite=Strict"} <= readable
    assert "HttpOnly" not in readable, "a page has to read it"
    foreign = other.cookies["mcpgw_xsrf"]
    made_up = f"{foreign[:-64]}{'0' * 64}"
    for shown in ({}, {"X-XSRFToken": ""}, {"X-XSRFToken": foreign}, {"X-XSRFToken": made_up}):
        answer = await browser.send("POST", path, xsrf=None, headers=shown)
        assert (answer.status, answer.json()["error"]["code"]) == (403, "permission_denied")
    # Planted by another program on this host, or from below the same domain: cookie and header are the same.
    for planted in (foreign, made_up, browser.cookies["mcpgw_login_xsrf"], ""):
        kept = dict(browser.cookies)
        browser.cookies["mcpgw_xsrf"] = planted
        assert (await browser.send("POST", path)).status == 403
        browser.cookies = kept
    # An answer that was refused has used nothing up.
    assert (await browser.send("POST", path)).status in (200, 204)
    # Without a word of a browser, too: the cookie alone proves nothing.
    bare = f"mcpgw_refresh={other.cookies['mcpgw_refresh']}"
    assert (await send(gateway, "POST", path, headers={"Cookie": bare})).status == 403
    await until(
        lambda: any(
            line["event"] == "refused" and line["what"]["action"] == f"POST {path}"
            for line in audited(gateway)
        )
    )


@pytest.mark.gen_test
async def test_a_token_goes_on_with_its_login_and_ends_with_it(start_gateway: StartGateway) -> None:
    gateway = await start_gateway()
    await add_user(gateway)
    browser = Browser(gateway)
    await browser.open_login()
    await browser.log_in()
    first = browser.cookies["mcpgw_xsrf"]
    assert (await browser.send("POST", REFRESH)).status == 200
    browser.cookies["mcpgw_xsrf"], newest = first, browser.cookies["mcpgw_xsrf"]
    assert (await browser.send("POST", REFRESH)).status == 200, "another tab may have read it a moment ago"
    browser.cookies["mcpgw_xsrf"] = newest
    assert (await browser.send("POST", LOGOUT)).status == 204
    assert {"mcpgw_refresh", "mcpgw_xsrf"}.isdisjoint(browser.cookies)


@pytest.mark.gen_test
async def test_a_page_logs_in_with_what_the_page_of_the_gateway_was_given(
    start_gateway: StartGateway,
) -> None:
    gateway = await start_gateway(settings={"server.allowed_origins": "https://app.example"})
    await add_user(gateway)
    body = {"user": "ann", "password": GOOD}
    browser = Browser(gateway)
    assert (await browser.log_in()).status == 403, "no page was opened"
    await browser.open_login()
    offered = browser.cookies["mcpgw_login_xsrf"]
    assert (await browser.send("POST", LOGIN, body, xsrf=None)).status == 403
    assert (await browser.send("POST", LOGIN, body, xsrf=None, headers={"X-XSRFToken": "x"})).status == 403
    await browser.open_login()
    assert browser.cookies["mcpgw_login_xsrf"] == offered, "two pages of one browser have the same"
    # Login CSRF: a form of another site, whose answer logs the victim in as somebody else.
    form = {"Content-Type": "text/plain", "Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"}
    assert (await browser.send("POST", LOGIN, body, headers=form)).status == 403
    assert (await send(gateway, "POST", LOGIN, body, headers={"Sec-Fetch-Site": "same-site"})).status == 403
    assert "mcpgw_refresh" not in browser.cookies
    assert (await browser.log_in()).status == 200
    # Programs bring no cookies of others; pages of a listed origin cannot read ours, and are believed.
    assert (await send(gateway, "POST", LOGIN, body)).status == 200
    assert (await send(gateway, "POST", LOGIN, body, headers={"Sec-Fetch-Mode": "cors"})).status == 200
    listed = {"Origin": "https://app.example", "Sec-Fetch-Site": "cross-site"}
    assert (await send(gateway, "POST", LOGIN, body, headers=listed)).status == 200


@pytest.mark.gen_test
async def test_who_shows_a_token_of_another_kind_needs_none(start_gateway: StartGateway) -> None:
    gateway = await start_gateway()
    await add_user(gateway)
    browser = Browser(gateway)
    await browser.open_login()
    token = (await browser.log_in()).json()["accessToken"]
    bearer = {"Authorization": f"Bearer {token}"}
    made = await browser.send("POST", "/api/v1/auth/ticket", {"purpose": "events"}, xsrf=None, headers=bearer)
    assert made.status == 200
    granted = await log_in(gateway)
    in_body = {"refreshToken": granted["refreshToken"]}
    assert (await browser.send("POST", REFRESH, in_body, xsrf=None)).status == 200
    assert (await browser.send("POST", LOGOUT, xsrf=None, headers=bearer)).status == 204
    # A key is no login: what would end is the cookie's, and that needs the token.
    await browser.open_login()
    await browser.log_in()
    key = {"Authorization": f"Bearer {gateway.token()}"}
    assert (await browser.send("POST", LOGOUT, xsrf=None, headers=key)).status == 403
    assert (await browser.send("POST", LOGOUT, headers=key)).status == 204
