"""What needs more than a bad token: tickets, roles, pages of other sites, other names of the gateway."""

import json
import sys
from collections.abc import Awaitable, Callable
from typing import Any, Final

import pytest

from tests.attacks.conftest import Besieged, Knock, let_in, refused, watching
from tests.attacks.doors import DOORS, Headers
from tests.support.raw_socket import fetch

pytestmark = pytest.mark.xdist_group("attacks")

TICKETS: Final = {door.name: door for door in DOORS if door.takes_tickets}
PURPOSES: Final = {"socket ticket": "websocket", "stream ticket": "events"}
CALLS: Final = [door for door in DOORS if door.done == "call"]
XSRF: Final = f"{'0' * 32}.{'A' * 22}.{'0' * 64}"
"""The shape of a token against forged requests, and nothing more."""
STDIO: Final = {"command": sys.executable, "args": ["-c", "print(1)"]}


async def send(gateway: Besieged, method: str, path: str, body: object, token: str) -> Any:
    """One request with JSON."""
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}
    return await fetch(gateway.url, path, method=method, headers=headers, body=json.dumps(body).encode())


async def ticket_of(gateway: Besieged, who: str, purpose: str) -> str:
    """A fresh ticket for whoever has the credential of that name."""
    token = gateway.secrets[who]
    answer = await send(gateway, "POST", "/api/v1/auth/ticket", {"purpose": purpose}, token)
    ticket: str = answer.json()["ticket"]
    gateway.shown.add(ticket)
    return ticket


@pytest.mark.gen_test
@pytest.mark.parametrize("name", TICKETS)
async def test_a_ticket_opens_its_own_door_once(besieged: Besieged, name: str) -> None:
    ticket = await ticket_of(besieged, "token of root", PURPOSES[name])
    await let_in(besieged, TICKETS[name], ticket)
    await refused(besieged, [Knock(door, ticket, "auth_failed") for door in DOORS])


@pytest.mark.gen_test
@pytest.mark.parametrize("name", TICKETS)
async def test_a_ticket_for_another_purpose_opens_nothing_and_is_used_up(
    besieged: Besieged, name: str
) -> None:
    (other,) = set(TICKETS) - {name}
    ticket = await ticket_of(besieged, "token of root", PURPOSES[other])
    doors = (TICKETS[name], TICKETS[other])
    await refused(besieged, [Knock(door, ticket, "auth_failed") for door in doors])


@pytest.mark.gen_test
@pytest.mark.parametrize("purpose", PURPOSES.values())
async def test_a_ticket_is_no_token(besieged: Besieged, purpose: str) -> None:
    ticket = await ticket_of(besieged, "token of root", purpose)
    doors = [door for door in DOORS if not door.takes_tickets]
    await refused(besieged, [Knock(door, ticket, "auth_failed") for door in doors])


@pytest.mark.gen_test
@pytest.mark.parametrize("who", ["token of eve", "guest Gus of open"])
async def test_a_viewer_and_a_guest_call_no_tool_that_is_not_theirs(besieged: Besieged, who: str) -> None:
    user = besieged.users[who]
    for door in CALLS:
        credential = besieged.secrets[who]
        if door.takes_tickets:
            credential = await ticket_of(besieged, who, PURPOSES[door.name])
        async with watching(besieged) as watch:
            outcome = await door.knock(besieged.url, credential, {})
            await watch.mark()
            (lines,) = await watch.parts()
        # Where all servers are one, the tool is hidden: it is answered as any name that is none.
        assert outcome.code == (-32602 if door.name == "mcp" else "permission_denied"), str(door)
        refusals = [line for line in lines if line["outcome"] == "permission_denied"]
        assert {line["who"]["user"] for line in refusals} == {user}, str(door)
        assert 1 <= len(refusals) <= 2, "the request, and the call where there is one"
        assert not [line for line in lines if line["event"] == "call" and line["outcome"] == "ok"], str(door)
        assert credential not in watch.text()


WAYS: Final[dict[str, Callable[[Besieged, str], Awaitable[Any]]]] = {
    "add": lambda g, token: send(g, "POST", "/api/v1/servers", {"id": "evil", "definition": STDIO}, token),
    "change": lambda g, token: send(
        g, "PATCH", "/api/v1/servers/memory", {"definition": {"command": "/bin/sh"}}, token
    ),
    "import": lambda g, token: send(
        g, "POST", "/api/v1/catalogs", {"id": "evil", "content": {"mcpServers": {"evil": STDIO}}}, token
    ),
    "install": lambda g, token: send(g, "POST", "/api/v1/catalogs/evil/entries/evil/install", {}, token),
    "configure": lambda g, token: send(g, "PATCH", "/api/v1/config", {"servers.stdio": True}, token),
    "make a key": lambda g, token: send(
        g, "POST", "/api/v1/keys", {"name": "evil", "scopes": ["servers:write"]}, token
    ),
}


@pytest.mark.gen_test
async def test_somebody_elsewhere_with_the_name_of_an_admin_is_not_that_admin(besieged: Besieged) -> None:
    for subject in ("root", "company:root", "mcpgw:root", besieged.users["guest Gus of open"]):
        token = besieged.issuer.token(sub=subject)
        besieged.shown.add(token)
        answer = await send(besieged, "POST", "/api/v1/servers", {"id": "evil", "definition": STDIO}, token)
        assert answer.status in (401, 403), subject
        me = await fetch(besieged.url, "/api/v1/auth/me", headers={"Authorization": f"Bearer {token}"})
        assert me.json().get("user", "") in ("", f"company:{subject}")
    assert besieged.issuer.asked < 20, "a flood of unknown keys is no flood of fetches"


@pytest.mark.gen_test
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("who", ["token of eve", "guest Gus of open"])
async def test_a_viewer_and_a_guest_add_no_program_in_whatever_way(
    besieged: Besieged, way: str, who: str
) -> None:
    token, user = besieged.secrets[who], besieged.users[who]
    before = await servers(besieged)
    async with watching(besieged) as watch:
        answer = await WAYS[way](besieged, token)
        await watch.mark()
        (lines,) = await watch.parts()
    assert (answer.status, answer.json()["error"]["code"]) == (403, "permission_denied")
    mine = [line for line in lines if line["outcome"] == "permission_denied"]
    assert {line["who"]["user"] for line in mine} == {user}
    assert 1 <= len(mine) <= 2, "the request, and the action where it is known"
    assert token not in watch.text()
    assert await servers(besieged) == before


async def servers(gateway: Besieged) -> list[str]:
    """The servers that there are."""
    answer = await fetch(gateway.url, "/api/v1/servers", headers={"Authorization": f"Bearer {gateway.admin}"})
    return [server["id"] for server in answer.json()["servers"]]


FOREIGN: Final[dict[str, Headers]] = {
    "a page of another site": {"Origin": "https://evil.example"},
    "a page without an origin": {"Origin": "null"},
    "a page whose name begins alike": {"Origin": "http://127.0.0.1.evil.example"},
    "another port of this machine": {"Origin": "http://127.0.0.1:1"},
    "a forged Host": {"Host": "evil.example"},
    "a forged Host with a good port": {"Host": "localhost.evil.example:3000"},
}


@pytest.mark.gen_test
@pytest.mark.parametrize("name", FOREIGN)
async def test_a_foreign_page_and_a_foreign_name_come_in_by_no_door_with_the_best_token(
    besieged: Besieged, name: str
) -> None:
    token, knocks = besieged.secrets["token of root"], []
    for door in DOORS:
        ticket = await ticket_of(besieged, "token of root", PURPOSES[door.name]) if door.takes_tickets else ""
        knocks.append(Knock(door, ticket or token, "permission_denied", 403, FOREIGN[name]))
    await refused(besieged, knocks)


@pytest.mark.gen_test
@pytest.mark.parametrize("path", ["/api/v1/auth/refresh", "/api/v1/auth/logout"])
async def test_a_cookie_that_a_browser_adds_by_itself_does_nothing(besieged: Besieged, path: str) -> None:
    cookies = f"mcpgw_refresh={besieged.secrets['refresh of root']}; mcpgw_xsrf={XSRF}"
    own = {"Cookie": cookies, "Origin": besieged.url, "Sec-Fetch-Site": "same-origin"}
    tries: dict[str, Headers] = {
        "without the token of a page": own,
        "with one that is made up": {**own, "X-XSRFToken": XSRF},
        "with an empty one": {**own, "X-XSRFToken": "", "Cookie": cookies.partition(";")[0]},
        "by a program that leaves out where it is from": {"Cookie": cookies},
        "from another site": {**own, "Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"},
        "from a neighbour of the same domain": {**own, "Sec-Fetch-Site": "same-site"},
    }
    async with watching(besieged) as watch:
        for name, headers in tries.items():
            answer = await fetch(besieged.url, path, method="POST", headers=headers)
            assert (answer.status, answer.json()["error"]["code"]) == (403, "permission_denied"), name
            assert answer.set_cookies == ()
            await watch.mark()
        for lines in await watch.parts():
            assert [line["outcome"] for line in lines] == ["permission_denied"]
    await let_in(besieged, CALLS[0], besieged.secrets["token of root"])
