"""Logins at an identity provider: there and back, against a real one, which can be told to go wrong."""

import base64
import json
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlencode, urlsplit

import httpx2
import pytest

from mcpgw.access.oidc_pending import local_path
from tests.conftest import LiveGateway, StartGateway
from tests.support.browser import browsing
from tests.support.logins import BY, GOOD, add_user, audited, send
from tests.support.openid_provider import PASSWORD, OpenIdProvider
from tests.support.ports import free_port
from tests.support.socket_client import SocketClient
from tests.support.waiting import until

LOGIN, CALLBACK, LOGOUT, REFRESH = (
    f"/api/v1/auth/{name}" for name in ("login", "callback", "logout", "refresh")
)
HERE = f"{LOGIN}?issuer=company"
SECRET = "between gateway & provider: 1+1=2%"
LINK = {"Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document", "Sec-Fetch-Site": "cross-site"}
PAGE = {"Accept": "text/html", **LINK}


@pytest.fixture(scope="module")
def provider() -> Iterator[OpenIdProvider]:
    with OpenIdProvider() as started:
        started.add_account("ann", groups=["staff"])
        started.add_account("bob", groups=["staff", "platform"])
        started.add_account("eve", groups=["visitors"])
        yield started


class Browser:
    """One browser of somebody at a gateway that trusts `provider`. It follows no redirect by itself."""

    def __init__(self, gateway: LiveGateway, provider: OpenIdProvider, client: httpx2.AsyncClient) -> None:
        self.gateway = gateway
        self.provider = provider
        self.client = client

    async def get(self, path: str, **headers: str) -> httpx2.Response:
        """Follow a link."""
        return await self.client.get(self.gateway.url + path, headers={**PAGE, **headers})

    async def post(self, path: str) -> httpx2.Response:
        """Have a page of the gateway send a request."""
        headers = {
            "Origin": self.gateway.url,
            "Sec-Fetch-Site": "same-origin",
            "Sec-Fetch-Mode": "cors",
            "X-XSRFToken": self.client.cookies.get("mcpgw_xsrf") or "",
        }
        return await self.client.post(self.gateway.url + path, headers=headers)

    async def leave(self, path: str = HERE) -> str:
        """Go to the provider; answers its address."""
        answer = await self.get(path)
        assert answer.status_code == 302, answer.text
        return answer.headers["Location"]

    async def return_path(self, name: str = "ann", *, path: str = HERE) -> str:
        """Log in at the provider; answers the path of the gateway that it leads back to."""
        url = await self.provider.log_in(await self.leave(path), name, browser=self.client)
        assert url.startswith(f"{self.gateway.url}{CALLBACK}?"), url
        return url.removeprefix(self.gateway.url)

    async def log_in(self, name: str = "ann", *, path: str = HERE) -> dict[str, Any]:
        """Log in, and get an access token as a page does; answers what a page is told."""
        back = await self.get(await self.return_path(name, path=path))
        assert (back.status_code, back.headers["Location"]) == (303, f"{LOGIN}?done"), back.text
        told = await self.post(REFRESH)
        assert told.status_code == 200, told.text
        granted: dict[str, Any] = told.json()
        return granted

    async def refused(self, path: str, code: str = "auth_failed") -> str:
        """Come back and be let in by nobody; answers the reason."""
        answer = await self.client.get(self.gateway.url + path, headers=LINK)
        assert answer.json()["error"]["code"] == code, answer.text
        assert "mcpgw_refresh" not in answer.headers.get("Set-Cookie", "")
        return str(answer.json()["error"]["message"])


CONFIGURATION = """
[auth.issuers.company]
issuer = "{provider.url}"
login = true
client_id = "mcpgw"
client_secret = {secret}
user_claim = "preferred_username"
create_users = true
role_claim = "groups"
roles = {{ platform = "admin", staff = "operator" }}
{more}
"""


@asynccontextmanager
async def at_work(
    start_gateway: StartGateway,
    provider: OpenIdProvider,
    *,
    more: str = "",
    public: bool = False,
    settings: dict[str, object] | None = None,
    changes: Mapping[str, str] | None = None,
) -> AsyncIterator[Browser]:
    """A gateway, known to the provider, and a browser. `changes` of the configuration: texts for others."""
    configuration = CONFIGURATION.format(provider=provider, secret=json.dumps(SECRET), more=more)
    for old, new in (changes or {}).items():
        assert old in configuration
        configuration = configuration.replace(old, new)
    if public:
        configuration = "\n".join(line for line in configuration.splitlines() if "client_secret" not in line)
    gateway = await start_gateway(configuration, settings=settings)
    provider.add_client(
        "mcpgw",
        secret="" if public else SECRET,
        redirect_uris=[gateway.url + CALLBACK],
        post_logout_redirect_uris=[gateway.url + LOGOUT],
    )
    async with httpx2.AsyncClient(timeout=10, verify=False) as client:
        yield Browser(gateway, provider, client)


@pytest.mark.gen_test
async def test_who_logs_in_for_the_first_time_is_made_a_user_with_the_role_that_the_claims_say(
    start_gateway: StartGateway, provider: OpenIdProvider
) -> None:
    async with at_work(start_gateway, provider) as browser:
        query = dict(parse_qsl(urlsplit(await browser.leave()).query))
        assert (query["response_type"], query["code_challenge_method"]) == ("code", "S256")
        assert query["redirect_uri"] == browser.gateway.url + CALLBACK
        assert min(len(query[name]) for name in ("state", "nonce", "code_challenge")) >= 43
        granted = await browser.log_in()
        assert (granted["user"], granted["role"], granted["credentials"]) == ("ann", "operator", "login")
        me = await send(browser.gateway, "GET", "/api/v1/auth/me", token=granted["accessToken"])
        assert me.json()["loginId"] == granted["loginId"]
        await until(lambda: lines(browser, "auth", credentials="openid", user="ann", outcome="ok"))
        await until(lambda: lines(browser, "access", action="users.add", target="ann"))
        written = browser.gateway.services.config.audit.file.read_text(encoding="utf-8")
        for secret in (SECRET, query["state"], query["nonce"], granted["accessToken"]):
            assert secret not in written


def lines(browser: Browser, event: str, **what: Any) -> list[dict[str, Any]]:
    """The lines of the audit log that have these members."""
    return [
        line
        for line in audited(browser.gateway)
        if line["event"] == event
        and what.items() <= {**line["what"], **line.get("who", {}), "outcome": line["outcome"]}.items()
    ]


@pytest.mark.gen_test
async def test_the_role_is_taken_over_again_at_each_login_and_reaches_what_is_open(
    start_gateway: StartGateway, provider: OpenIdProvider
) -> None:
    provider.add_account("cat", groups=["staff"])
    async with at_work(start_gateway, provider) as browser:
        first = await browser.log_in("cat")
        assert first["role"] == "operator"
        provider.add_account("cat", groups=["platform", "staff"])
        assert (await browser.log_in("cat"))["role"] == "admin"
        token = first["accessToken"]
        assert (await send(browser.gateway, "GET", "/api/v1/auth/me", token=token)).json()["role"] == "admin"
        await until(lambda: lines(browser, "access", action="users.role", target="cat"))
        provider.add_account("cat", groups=["visitors"])
        assert "no role" in await browser.refused(await browser.return_path("cat"))


@pytest.mark.gen_test
async def test_who_has_no_role_here_is_let_in_by_nobody_and_made_no_user(
    start_gateway: StartGateway, provider: OpenIdProvider
) -> None:
    async with at_work(start_gateway, provider) as browser:
        assert "no role" in await browser.refused(await browser.return_path("eve"))
        assert await browser.gateway.services.store.users.get("eve") is None
        await until(lambda: lines(browser, "auth", credentials="openid", outcome="auth_failed"))
        await browser.gateway.services.access.accounts.set_role("admin", "viewer", by=BY)
        await until(lambda: lines(browser, "access", action="users.role"))
        assert not lines(browser, "refused"), "one line for one decision"
    more = 'default_role = "viewer"'
    async with at_work(start_gateway, provider, more=more) as browser:
        assert (await browser.log_in("eve"))["role"] == "viewer"


@pytest.mark.gen_test
async def test_a_user_of_the_same_name_is_somebody_else_until_an_admin_says_otherwise(
    start_gateway: StartGateway, provider: OpenIdProvider
) -> None:
    async with at_work(start_gateway, provider) as browser:
        await add_user(browser.gateway, "ann", "admin")
        assert "'ann' of this gateway is somebody else" in await browser.refused(await browser.return_path())
        accounts = browser.gateway.services.access.accounts
        await accounts.link("ann", provider.url, "subject-of-ann", by=BY)
        granted = await browser.log_in()
        assert (granted["user"], granted["role"]) == ("ann", "operator")
        await accounts.set_disabled("ann", True, by=BY)
        assert "disabled" in await browser.refused(await browser.return_path())


@pytest.mark.gen_test
async def test_without_create_users_those_alone_come_in_whom_an_admin_has_linked(
    start_gateway: StartGateway, provider: OpenIdProvider
) -> None:
    async with at_work(start_gateway, provider, changes={"create_users = true": ""}) as browser:
        assert "nobody here" in await browser.refused(await browser.return_path())
    changes = {"create_users = true": "", 'role_claim = "groups"': "", "roles = {": "scopes = {"}
    changes |= {'"admin"': '["admin"]', '"operator"': '["tools:call"]'}
    async with at_work(start_gateway, provider, changes=changes) as browser:
        assert "nobody here" in await browser.refused(await browser.return_path())
        await add_user(browser.gateway, "anna", "viewer")
        accounts = browser.gateway.services.access.accounts
        await accounts.link("anna", provider.url, "subject-of-ann", by=BY)
        granted = await browser.log_in()
        assert (granted["user"], granted["role"]) == ("anna", "viewer"), "where no role is said, it stays"
        await accounts.unlink(provider.url, "subject-of-ann", by=BY)
        assert "nobody here" in await browser.refused(await browser.return_path())


@pytest.mark.gen_test
async def test_an_answer_is_good_once_in_the_browser_that_asked_and_for_its_own_state(
    start_gateway: StartGateway, provider: OpenIdProvider
) -> None:
    async with at_work(start_gateway, provider) as browser:
        path = await browser.return_path()
        query = parse_qs(urlsplit(path).query)
        pending = browser.client.cookies["mcpgw_openid"]
        other = urlsplit(path)._replace(query=urlencode({**query, "state": "A" * 43}, doseq=True)).geturl()
        assert "not to the login" in await browser.refused(other)
        browser.client.cookies.set("mcpgw_openid", pending, domain="127.0.0.1", path=CALLBACK)
        stranger = await send(browser.gateway, "GET", path, headers=LINK)
        assert stranger.status == 401, "a link with a code of somebody else logs nobody in"
        assert (await browser.get(path)).status_code == 303
        browser.client.cookies.set("mcpgw_openid", pending, domain="127.0.0.1", path=CALLBACK)
        assert "used before" in await browser.refused(path)
        query |= parse_qs(urlsplit(await browser.leave()).query)
        state = {"state": query["state"], "code": query["code"], "iss": query["iss"]}
        replayed = f"{CALLBACK}?{urlencode(state, doseq=True)}"
        assert "refuses the login: invalid_grant" in await browser.refused(replayed)


@pytest.mark.gen_test
async def test_what_the_browser_keeps_meanwhile_is_sealed_short_lived_and_for_the_callback_alone(
    start_gateway: StartGateway, provider: OpenIdProvider
) -> None:
    settings: dict[str, object] = {"auth.issuer_login_time": 3600.0}
    async with at_work(start_gateway, provider, settings=settings) as browser:
        answer = await browser.get(HERE)
        name, *rest = answer.headers["Set-Cookie"].split("; ")
        assert {"HttpOnly", "SameSite=Lax", f"Path={CALLBACK}", "Max-Age=600"} <= set(rest)
        query = parse_qs(urlsplit(answer.headers["Location"]).query)
        sealed = base64.urlsafe_b64decode(name.partition("=")[2].strip('"') + "==")
        for secret in (query["state"][0], query["nonce"][0], "company"):
            assert secret.encode() not in sealed
        path = await browser.return_path()
        kept = browser.client.cookies["mcpgw_openid"]
        changed = kept[:-9] + ("A" if kept[-9] != "A" else "B") + kept[-8:]
        browser.client.cookies.set("mcpgw_openid", changed, domain="127.0.0.1", path=CALLBACK)
        assert "not begun in this browser" in await browser.refused(path)
        back = await browser.get(await browser.return_path())
        given = {cookie.partition("=")[0]: cookie for cookie in back.headers.get_list("Set-Cookie")}
        for name in ("mcpgw_refresh", "mcpgw_issuer"):
            assert {"HttpOnly", "SameSite=Strict", "Path=/api/v1/auth"} <= set(given[name].split("; "))
        assert "mcpgw_openid" not in browser.client.cookies
        seconds = int(given["mcpgw_refresh"].partition("Max-Age=")[2].partition(";")[0])
        assert 3590 < seconds <= 3600, "the provider is asked again after that time"


@pytest.mark.gen_test(timeout=60)
async def test_an_id_token_that_is_not_the_answer_to_this_login_lets_nobody_in(
    start_gateway: StartGateway, provider: OpenIdProvider
) -> None:
    now = int(time.time())
    forged: list[tuple[str, dict[str, Any]]] = [
        ("'nonce'", {"claims": {"nonce": "of another login"}}),
        ("'nonce'", {"without": ["nonce"]}),
        ("expired", {"claims": {"exp": now - 60}}),
        ("'exp'", {"without": ["exp"]}),
        ("in the future", {"claims": {"iat": now + 3600}}),
        ("'iat'", {"without": ["iat"]}),
        ("'iss'", {"claims": {"iss": "https://login.example.org"}}),
        ("'aud'", {"claims": {"aud": "another-client"}}),
        ("'azp'", {"claims": {"azp": "another-client"}}),
        ("'azp'", {"claims": {"aud": ["mcpgw", "another-client"]}}),
        ("'at_hash'", {"claims": {"at_hash": "AAAAAAAAAAAAAAAAAAAAAA"}}),
        ("signature", {"key": "foreign"}),
        ("not signed with", {"algorithm": "none"}),
        ("no key", {"header": {"kid": "../../etc/passwd"}}),
        ("no id token", {"answer": {"id_token": None}}),
    ]
    settings: dict[str, object] = {"auth.burst": 1000}
    async with at_work(start_gateway, provider, settings=settings) as browser:
        for reason, how in forged:
            path = await browser.return_path()
            with provider.forging(**how):
                assert reason in await browser.refused(
                    path, "token_expired" if reason == "expired" else "auth_failed"
                )
        assert await browser.gateway.services.store.users.get("ann") is None
        await until(lambda: len(lines(browser, "auth", credentials="openid")) == len(forged))
        assert (await browser.log_in())["user"] == "ann"


@pytest.mark.gen_test
async def test_keys_that_turn_between_the_way_there_and_the_way_back_harm_nobody(
    start_gateway: StartGateway, provider: OpenIdProvider
) -> None:
    async with at_work(start_gateway, provider) as browser:
        await browser.log_in()
        url = await browser.leave()
        provider.rotate()
        before = provider.count("/jwks")
        back = await provider.log_in(url, browser=browser.client)
        answer = await browser.get(back.removeprefix(browser.gateway.url))
        assert answer.status_code == 303, answer.text
        assert provider.count("/jwks") == before + 1
        await browser.log_in()
        assert provider.count("/jwks") == before + 1


@pytest.mark.gen_test
async def test_an_answer_of_another_provider_is_not_taken_for_one_of_this(
    start_gateway: StartGateway, provider: OpenIdProvider
) -> None:
    async with at_work(start_gateway, provider) as browser:
        for issuer in (["https://evil.example.org"], []):
            path = await browser.return_path()
            query = parse_qs(urlsplit(path).query)
            assert query.pop("iss") == [provider.url]
            before = provider.count("/token")
            mixed = {**query, "iss": issuer}
            assert "'iss'" in await browser.refused(f"{CALLBACK}?{urlencode(mixed, doseq=True)}")
            assert provider.count("/token") == before, "a code goes to nobody but who has given it out"


@pytest.mark.gen_test
async def test_a_person_sees_why_a_login_was_refused_and_nothing_that_was_sent_becomes_a_page(
    start_gateway: StartGateway, provider: OpenIdProvider
) -> None:
    async with at_work(start_gateway, provider) as browser:
        for error, shown in (("access_denied", "access_denied"), ("<script>", "it does not say why")):
            query = parse_qs(urlsplit(await browser.leave()).query)
            said = {"state": query["state"][0], "error": error, "iss": provider.url}
            answer = await browser.get(f"{CALLBACK}?{urlencode(said)}")
            assert (answer.status_code, answer.headers["Content-Type"]) == (401, "text/html; charset=utf-8")
            assert f"has let nobody in: {shown}" in answer.text
            assert "<script>" not in answer.text
            assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        nobody = await browser.get(f"{LOGIN}?issuer=%3Cb%3E")
        assert (nobody.status_code, "<b>" in nobody.text) == (404, False)


@pytest.mark.gen_test
async def test_a_provider_that_does_not_answer_as_it_must_is_said_to_be_so(
    start_gateway: StartGateway, provider: OpenIdProvider
) -> None:
    settings: dict[str, object] = {"auth.fetch_timeout": 1.0}
    async with at_work(start_gateway, provider, settings=settings) as browser:
        faults: list[dict[str, Any]] = [
            {"status": 500},
            {"status": 200, "body": {"access_token": 1}},
            {"delayMs": 1300},
            {"status": 307, "headers": {"Location": f"{provider.url}/control/rotate"}},
        ]
        for how in faults:
            path = await browser.return_path()
            with provider.answering("/token", **how):
                assert "'company' does not answer" in await browser.refused(path, "server_unavailable")
        path = await browser.return_path()
        with provider.forging(answer={"padding": "x" * 600_000}):
            assert "'company' does not answer" in await browser.refused(path, "server_unavailable")
    changes = {f'"{provider.url}"': f'"http://127.0.0.1:{free_port()}"'}
    async with at_work(start_gateway, provider, changes=changes, settings=settings) as browser:
        answer = await browser.get(HERE)
        assert answer.status_code == 503
        assert "try again later" in answer.text


@pytest.mark.gen_test
async def test_claims_that_the_id_token_lacks_are_asked_for_and_belong_to_the_same_person(
    start_gateway: StartGateway, provider: OpenIdProvider
) -> None:
    lacking = {"without": ["groups", "preferred_username"]}
    async with at_work(start_gateway, provider) as browser:
        path = await browser.return_path("bob")
        with provider.forging(**lacking), provider.answering("/me", body={"sub": "subject-of-ann"}):
            assert "somebody else ('sub')" in await browser.refused(path)
        with provider.forging(**lacking):
            granted = await browser.log_in("bob")
        assert (granted["user"], granted["role"]) == ("bob", "admin")


@pytest.mark.gen_test
async def test_a_login_leads_on_to_a_path_of_the_gateway_and_nowhere_else(
    start_gateway: StartGateway, provider: OpenIdProvider
) -> None:
    async with at_work(start_gateway, provider) as browser:
        for wanted, reached in (("/docs?a=b#c", "/docs?a=b#c"), ("//evil.example", f"{LOGIN}?done")):
            path = f"{HERE}&{urlencode({'next': wanted})}"
            back = await browser.get(await browser.return_path(path=path))
            assert (back.status_code, back.headers["Location"]) == (303, reached)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "docs",
        "//evil.example",
        "/\\evil.example",
        "\\\\evil.example",
        "/\t/evil.example",
        "/\n//evil.example",
        "https://evil.example/",
        "javascript:alert(1)",
        "/ /evil.example",
        "/" + "a" * 600,
        "/\x7f",
        "/é",
    ],
)
def test_what_a_browser_could_take_for_another_host_is_no_path_of_the_gateway(text: str) -> None:
    assert local_path(text) == ""
    assert local_path("/console?tab=1#/x//y") == "/console?tab=1#/x//y"


@pytest.mark.gen_test
async def test_the_page_offers_the_provider_beside_the_password_and_is_left_out_where_there_is_no_choice(
    start_gateway: StartGateway, provider: OpenIdProvider
) -> None:
    async with at_work(start_gateway, provider) as browser:
        page = await browser.get(f"{LOGIN}?next=/docs")
        assert page.status_code == 200
        assert '<a href="?issuer=company&amp;next=%2Fdocs">Log in with company</a>' in page.text
        assert "<form method" in page.text
    alone: dict[str, object] = {"auth.passwords": False}
    async with at_work(start_gateway, provider, settings=alone) as browser:
        assert (await browser.leave(LOGIN)).startswith(f"{provider.url}/auth?")
        assert "<form hidden" in (await browser.get(f"{LOGIN}?link")).text
        await add_user(browser.gateway, "root", "admin")
        body = {"user": "root", "password": GOOD}
        assert (await send(browser.gateway, "POST", LOGIN, body)).status == 409
        link = await browser.gateway.services.access.accounts.make_link("root", by=BY)
        chosen = await send(browser.gateway, "POST", LOGIN, {"link": link, "password": GOOD})
        assert chosen.status == 409
        assert (await send(browser.gateway, "POST", LOGIN, {"link": link})).status == 200
    more = '[auth.issuers.other]\nissuer = "https://other.example"\nclient_id = "x"\nlogin = true'
    async with at_work(start_gateway, provider, more=more, settings=alone) as browser:
        page = await browser.get(LOGIN)
        assert (page.status_code, page.text.count("Log in with")) == (200, 2)


@pytest.mark.gen_test
async def test_a_client_without_a_secret_logs_in_by_its_verifier_alone(
    start_gateway: StartGateway, provider: OpenIdProvider
) -> None:
    async with at_work(start_gateway, provider, public=True) as browser:
        assert (await browser.log_in())["user"] == "ann"


@pytest.mark.gen_test
async def test_a_logout_ends_what_is_open_and_leads_to_the_logout_of_the_provider(
    start_gateway: StartGateway, provider: OpenIdProvider
) -> None:
    async with at_work(start_gateway, provider) as browser:
        granted = await browser.log_in()
        socket = await SocketClient.connect(browser.gateway.socket_url, token=granted["accessToken"])
        await socket.receive()
        out = await browser.post(LOGOUT)
        assert out.status_code == 200
        assert await socket.closed(1) == 3503
        url = out.json()["endSessionUrl"]
        query = dict(parse_qsl(urlsplit(url).query))
        assert query == {
            "client_id": "mcpgw",
            "post_logout_redirect_uri": browser.gateway.url + LOGOUT,
        }
        asked = await browser.client.get(url)
        xsrf = asked.text.partition('name="xsrf" value="')[2].partition('"')[0]
        form = {"xsrf": xsrf, "logout": "yes"}
        left = await browser.client.post(f"{provider.url}/session/end/confirm", data=form)
        assert left.headers["Location"] == browser.gateway.url + LOGOUT
        assert "You are logged out" in (await browser.get(LOGOUT)).text
        again = await browser.client.get(await browser.leave(), follow_redirects=True)
        assert "Who are you?" in again.text, "the provider has forgotten them too"
        assert (await browser.post(REFRESH)).status_code == 401
        assert (await browser.post(LOGOUT)).status_code == 204


@pytest.mark.gen_test
async def test_one_address_that_begins_again_and_again_is_told_to_wait(
    start_gateway: StartGateway, provider: OpenIdProvider
) -> None:
    settings: dict[str, object] = {"auth.rate": 1.0, "auth.burst": 5}
    async with at_work(start_gateway, provider, settings=settings) as browser:
        answers = [await browser.get(HERE) for _ in range(7)]
        assert [answer.status_code for answer in answers] == [302] * 5 + [429] * 2


@pytest.mark.gen_test(timeout=60)
async def test_a_person_in_a_browser_logs_in_at_the_provider_and_out_again(
    start_gateway: StartGateway, provider: OpenIdProvider
) -> None:
    async with at_work(start_gateway, provider) as other, browsing() as page:
        gateway = other.gateway
        await page.goto(f"{gateway.url}{LOGIN}")
        await page.get_by_role("link", name="Log in with company").click()
        await page.wait_for_url(f"{provider.url}/interaction/*")
        await page.locator("[name=login]").fill("bob")
        await page.locator("[name=password]").fill(PASSWORD)
        await page.get_by_role("button", name="Enter").click()
        await page.wait_for_url(f"{gateway.url}{LOGIN}?done")
        assert await page.get_by_role("status").text_content() == "You are logged in."
        kept = {cookie["name"]: cookie for cookie in await page.context.cookies(f"{gateway.url}{LOGIN}")}
        refresh = kept["mcpgw_refresh"]
        assert (refresh["httpOnly"], refresh["sameSite"]) == (True, "Strict")
        await until(lambda: lines(other, "auth", credentials="openid", user="bob", outcome="ok"))

        await page.get_by_role("button", name="Log out").click()
        await page.wait_for_url(f"{provider.url}/session/end**")
        await page.get_by_role("button", name="Yes").click()
        await page.wait_for_url(f"{gateway.url}{LOGOUT}")
        assert "You are logged out" in str(await page.text_content("main"))
        assert "mcpgw_refresh" not in {cookie["name"] for cookie in await page.context.cookies()}
        await until(lambda: lines(other, "access", action="login.logout", user="bob"))
        await page.get_by_role("link", name="Log in").click()
        await page.get_by_role("link", name="Log in with company").click()
        await page.wait_for_url(f"{provider.url}/interaction/*")
