"""The gateway as an OAuth resource server: tokens of a real provider, at every door."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx2
import pytest
from mcp.client import Client
from mcp.client.auth import OAuthClientProvider
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.auth import (
    AuthorizationCodeResult,
    OAuthClientInformationFull,
    OAuthClientMetadata,
    OAuthToken,
)
from pydantic import AnyUrl

from mcpgw.audit import Actor
from tests.conftest import LiveGateway, StartGateway
from tests.support.logins import BY, add_user, audited, send
from tests.support.mcp_door import Door
from tests.support.openid_provider import OpenIdProvider
from tests.support.raw_socket import RawSocket
from tests.support.socket_client import SocketClient
from tests.support.waiting import until

METADATA = "/.well-known/oauth-protected-resource"
CALLBACK = "http://127.0.0.1:1/callback"
ADMIN = Actor("127.0.0.1", "root", scopes=frozenset({"admin"}))


@pytest.fixture(scope="module")
def provider() -> Iterator[OpenIdProvider]:
    with OpenIdProvider() as started:
        started.add_account("ann")
        yield started


@asynccontextmanager
async def at_work(
    start_gateway: StartGateway, provider: OpenIdProvider, **options: Any
) -> AsyncIterator[LiveGateway]:
    """A gateway that takes the access tokens of `provider` for its own address."""
    configuration = f"""
        [auth.issuers.company]
        issuer = "{provider.url}"
        client_id = "gateway"
        login = true
        [auth.issuers.company.scopes]
        "tools:call" = "tools:call"
        "reports" = "tools:call:reports"
        "events:read" = ["events:read"]
    """
    gateway = await start_gateway(configuration, **options)
    await gateway.services.configuration.change({"server.public_url": gateway.url}, ADMIN)
    yield gateway


def minted(gateway: LiveGateway, provider: OpenIdProvider, **changes: Any) -> str:
    """An access token of `provider` for the gateway."""
    now = int(time.time())
    claims = {
        "iss": provider.url,
        "aud": f"{gateway.url}/mcp",
        "sub": "subject-of-ann",
        "iat": now,
        "exp": now + 300,
        "scope": "tools:call",
    }
    return provider.mint({**claims, **changes}, type="at+jwt")


class Kept:
    """What the SDK's client keeps of a server: in memory."""

    def __init__(self, known: OAuthClientInformationFull | None = None) -> None:
        self.tokens: OAuthToken | None = None
        self.client = known

    async def get_tokens(self) -> OAuthToken | None:
        return self.tokens

    async def set_tokens(self, tokens: OAuthToken) -> None:
        self.tokens = tokens

    async def get_client_info(self) -> OAuthClientInformationFull | None:
        return self.client

    async def set_client_info(self, client_info: OAuthClientInformationFull) -> None:
        self.client = client_info


@asynccontextmanager
async def oauth_client(
    url: str, provider: OpenIdProvider, kept: Kept, asked: list[dict[str, list[str]]]
) -> AsyncIterator[Client]:
    """The SDK's client, which finds the provider and logs `ann` in there; `asked` is what it asks for."""
    back: list[str] = []

    async def go(address: str) -> None:
        asked.append(parse_qs(urlsplit(address).query))
        back.append(await provider.log_in(address))

    async def come() -> AuthorizationCodeResult:
        told = parse_qs(urlsplit(back.pop()).query)
        return AuthorizationCodeResult(code=told["code"][0], state=told["state"][0], iss=told["iss"][0])

    metadata = OAuthClientMetadata(
        redirect_uris=[AnyUrl(CALLBACK)],
        grant_types=["authorization_code"],
        response_types=["code"],
        token_endpoint_auth_method="none",
        application_type="web",
    )
    auth = OAuthClientProvider(url, metadata, kept, redirect_handler=go, callback_handler=come)
    async with (
        httpx2.AsyncClient(auth=auth, timeout=20) as http,
        Client(streamable_http_client(url, http_client=http), cache=None) as client,
    ):
        yield client


@pytest.mark.gen_test(timeout=40)
async def test_the_sdk_s_client_finds_the_provider_registers_logs_in_and_calls_a_tool(
    start_gateway: StartGateway, provider: OpenIdProvider
) -> None:
    async with at_work(start_gateway, provider, memory=True) as gateway:
        kept, asked = Kept(), list[dict[str, list[str]]]()
        async with oauth_client(f"{gateway.url}/mcp", provider, kept, asked) as client:
            tools = [tool.name for tool in (await client.list_tools()).tools]
            assert "memory__memory_projects" in tools
            assert not (await client.call_tool("memory__memory_projects", {})).is_error
        assert kept.client is not None, "dynamic client registration"
        assert asked[0]["resource"] == [f"{gateway.url}/mcp"]
        assert set(asked[0]["scope"][0].split()) >= {"tools:call", "reports", "events:read"}

        def callers() -> list[str]:
            return [line["who"]["user"] for line in audited(gateway) if line["event"] == "call"]

        await until(lambda: callers() == ["company:subject-of-ann"])


@pytest.mark.gen_test(timeout=40)
async def test_a_token_for_one_server_opens_no_other(
    start_gateway: StartGateway, provider: OpenIdProvider
) -> None:
    async with at_work(start_gateway, provider, memory=True) as gateway:
        known = OAuthClientInformationFull(
            client_id="configured", redirect_uris=[AnyUrl(CALLBACK)], token_endpoint_auth_method="none"
        )
        provider.add_client("configured", redirect_uris=[CALLBACK], application_type="web")
        kept, asked = Kept(known), list[dict[str, list[str]]]()
        async with oauth_client(f"{gateway.url}/mcp/memory", provider, kept, asked) as client:
            assert "memory_projects" in [tool.name for tool in (await client.list_tools()).tools]
        assert asked[0]["resource"] == [f"{gateway.url}/mcp/memory"]
        assert kept.tokens is not None
        told = await send(gateway, "GET", "/api/v1/auth/me", token=kept.tokens.access_token)
        assert told.json()["scopes"] == ["tools:call:memory"]


@pytest.mark.gen_test
async def test_who_brings_no_token_that_holds_is_told_where_they_are_given(
    start_gateway: StartGateway, provider: OpenIdProvider
) -> None:
    async with at_work(start_gateway, provider, memory=True) as gateway:
        for path, token, error in (
            ("/mcp", "", ""),
            ("/mcp/memory", "", ""),
            ("/mcp/nothing", "", ""),
            ("/mcp", "garbage", 'error="invalid_token", '),
        ):
            answer = await Door(gateway, path, token=token).modern("tools/list")
            where = f"{gateway.url}{METADATA}{path}"
            assert answer.status_code == 401
            assert answer.headers["WWW-Authenticate"] == f'Bearer {error}resource_metadata="{where}"'
            told = httpx2.Response(200, content=(await send(gateway, "GET", urlsplit(where).path)).body)
            assert told.json()["resource"] == f"{gateway.url}{path}"
            assert told.json()["authorization_servers"] == [provider.url]
            assert told.json()["bearer_methods_supported"] == ["header"]
            assert told.json()["scopes_supported"] == ["tools:call", "reports", "events:read"]
        root = await send(gateway, "GET", METADATA)
        assert root.json()["resource"] == f"{gateway.url}/mcp"
        elsewhere = await send(gateway, "GET", "/api/v1/servers")
        assert elsewhere.headers["www-authenticate"] == "Bearer"


@pytest.mark.gen_test
async def test_who_lacks_a_scope_is_told_the_issuer_s_own_word_for_it(
    start_gateway: StartGateway, provider: OpenIdProvider
) -> None:
    async with at_work(start_gateway, provider, memory=True) as gateway:
        token = minted(gateway, provider, scope="events:read")
        answer = await Door(gateway, "/mcp/memory", token=token).modern("tools/list")
        assert answer.status_code == 403
        where = f"{gateway.url}{METADATA}/mcp/memory"
        told = f'Bearer error="insufficient_scope", resource_metadata="{where}", scope="tools:call"'
        assert answer.headers["WWW-Authenticate"] == told


@pytest.mark.gen_test
async def test_without_an_issuer_there_is_nothing_to_find(start_gateway: StartGateway) -> None:
    gateway = await start_gateway()
    for path in (METADATA, f"{METADATA}/mcp", f"{METADATA}/mcp/memory"):
        assert (await send(gateway, "GET", path)).status == 404
    answer = await Door(gateway, token="").modern("tools/list")
    assert answer.headers["WWW-Authenticate"] == "Bearer"


# --- every door --------------------------------------------------------------------------------------------


async def through_rest(gateway: LiveGateway, token: str) -> str:
    answer = await send(gateway, "GET", "/api/v1/auth/me", token=token)
    return str(answer.json()["user"]) if answer.status == 200 else ""


async def through_mcp(gateway: LiveGateway, token: str) -> str:
    answer = await Door(gateway, token=token).modern("tools/list")
    return "company:subject-of-ann" if answer.status_code == 200 else ""


async def through_events(gateway: LiveGateway, token: str) -> str:
    async with httpx2.AsyncClient(timeout=10) as http:
        headers = {"Authorization": f"Bearer {token}"}
        async with http.stream("GET", f"{gateway.url}/api/v1/sse", headers=headers) as answer:
            return "company:subject-of-ann" if answer.status_code == 200 else ""


async def through_header(gateway: LiveGateway, token: str) -> str:
    return await greeted(await SocketClient.connect(gateway.socket_url, token=token))


async def through_subprotocol(gateway: LiveGateway, token: str) -> str:
    offered = ["mcpgw.v1", f"bearer.{token}"]
    return await greeted(await SocketClient.connect(gateway.socket_url, subprotocols=offered))


async def through_frame(gateway: LiveGateway, token: str) -> str:
    client = await SocketClient.connect(gateway.socket_url)
    await client.receive()
    # What comes behind it, in the same message and in the next one, is answered as the one whom it proves.
    await client.send(
        [{"type": "auth", "id": "1", "data": {"token": token}}, {"type": "list_tools", "id": "2"}]
    )
    await client.send({"type": "status", "id": "3"})
    frames = [await client.receive() for _ in range(3)]
    client.close()
    await client.closed()
    assert [frame["id"] for frame in frames] == ["1", "2", "3"]
    if frames[0]["type"] == "error":
        assert frames[1]["data"]["code"] == "auth_required"
        return ""
    assert [frame["type"] for frame in frames] == ["status", "tools", "status"]
    return str(frames[2]["data"]["user"])


async def greeted(client: SocketClient) -> str:
    told = await client.receive()
    client.close()
    await client.closed()
    return str(told["data"].get("user", ""))


DOORS = [through_rest, through_mcp, through_events, through_header, through_subprotocol, through_frame]


@pytest.mark.gen_test(timeout=40)
async def test_the_first_token_of_a_new_key_opens_every_door(
    start_gateway: StartGateway, provider: OpenIdProvider
) -> None:
    async with at_work(start_gateway, provider, settings={"auth.keys_wait": 0.1}) as gateway:
        for door in DOORS:
            for _ in range(2):
                opened = await door(gateway, minted(gateway, provider))
                assert opened == "company:subject-of-ann", door.__name__
                provider.rotate()


@pytest.mark.gen_test(timeout=40)
async def test_what_is_no_access_token_for_the_gateway_opens_no_door(
    start_gateway: StartGateway, provider: OpenIdProvider
) -> None:
    async with at_work(start_gateway, provider) as gateway:
        wrong = {
            "id token": minted(gateway, provider, aud="gateway", nonce="n"),
            "id token for the resource": minted(gateway, provider, nonce="n"),
            "another gateway's": minted(gateway, provider, aud="http://127.0.0.1:9/mcp"),
            "another issuer's": minted(gateway, provider, iss="http://127.0.0.1:9"),
        }
        for door in DOORS:
            for name, token in wrong.items():
                assert await door(gateway, token) == "", (door.__name__, name)

        def refused() -> int:
            return len([line for line in audited(gateway) if line["outcome"] == "auth_failed"])

        await until(lambda: refused() == len(wrong) * len(DOORS))
        log = gateway.services.config.audit.file.read_text(encoding="utf-8")
        assert not any(token in log or token.split(".")[2] in log for token in wrong.values())


@pytest.mark.gen_test
async def test_a_linked_subject_is_that_user_and_goes_with_them(
    start_gateway: StartGateway, provider: OpenIdProvider
) -> None:
    async with at_work(start_gateway, provider) as gateway:
        access = gateway.services.access
        await add_user(gateway, "ann", "operator")
        token = minted(gateway, provider)
        before = await SocketClient.connect(gateway.socket_url, token=token)
        assert (await before.receive())["data"]["user"] == "company:subject-of-ann"
        identities = gateway.services.store.identities
        assert await identities.link(provider.url, "subject-of-ann", "ann", by=BY)
        assert (await before.receive())["type"] == "disconnect"
        assert await before.closed() == 3503
        after = await SocketClient.connect(gateway.socket_url, token=token)
        assert (await after.receive())["data"]["user"] == "ann"
        await until(
            lambda: any(line["what"].get("action") == "users.linked" for line in audited(gateway)),
            what="the line of the link",
        )
        await access.accounts.set_disabled("ann", True, by=BY)
        assert (await after.receive())["type"] == "disconnect"
        assert await after.closed() == 3503


@pytest.mark.gen_test
async def test_an_issuer_that_does_not_answer_holds_up_nobody_else(
    start_gateway: StartGateway, provider: OpenIdProvider
) -> None:
    async with at_work(start_gateway, provider, settings={"auth.fetch_timeout": 1.0}) as gateway:
        with provider.answering("/.well-known/openid-configuration", delayMs=3000):
            stuck = asyncio.create_task(
                through_rest(gateway, provider.mint({"iss": provider.url}, header={"kid": "unknown"}))
            )
            await until(lambda: provider.count("/.well-known/openid-configuration") > 0)
            begun = time.monotonic()
            own = await send(gateway, "GET", "/api/v1/auth/me", token=gateway.token())
            assert (own.status, time.monotonic() - begun < 0.5) == (200, True)
            assert await stuck == ""


@pytest.mark.gen_test
async def test_who_leaves_while_a_key_is_fetched_leaves_nothing_behind(
    start_gateway: StartGateway, provider: OpenIdProvider, caplog: pytest.LogCaptureFixture
) -> None:
    async with at_work(start_gateway, provider) as gateway:
        assert await through_rest(gateway, minted(gateway, provider))
        before = provider.count("/jwks")
        with provider.answering("/jwks", delayMs=300, status=500):
            token = provider.mint({"iss": provider.url}, header={"kid": "unknown"})
            for path in ("/api/v1/servers", "/ws"):
                client = await RawSocket.connect(gateway.url)
                await client.request("GET", path, {"Authorization": f"Bearer {token}"})
                await until(lambda: provider.count("/jwks") > before)
                client.writer.close()
        own = await send(gateway, "GET", "/api/v1/auth/me", token=gateway.token())
        assert own.status == 200
        issuers = gateway.services.access.issuers
        await until(lambda: not [task for task in asyncio.all_tasks() if task.get_name() == "issuer company"])
        assert issuers.fetching_keys(minted(gateway, provider)) is None
        assert not [record for record in caplog.records if record.levelname == "ERROR"]
