"""What becomes of all that is open when somebody may do less than before: at once, at every door."""

import asyncio
import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx2
import pytest

from mcpgw.access.authority import KnownUser
from tests.conftest import LiveGateway, StartGateway
from tests.support.logins import BY, GOOD, add_user, audited, log_in, send
from tests.support.mcp_door import Door, result_of
from tests.support.raw_socket import EventReader, fetch
from tests.support.socket_client import SocketClient, tool_call
from tests.support.waiting import until

SCRIPTED = Path(__file__).parent.parent / "servers" / "scripted.py"
NEVER = {"name": "one__never", "arguments": {}}


@dataclass
class Here:
    """A gateway in front of a server `one`, and of `two`, whose calls need an approval."""

    gateway: LiveGateway
    record: Path

    @property
    def told(self) -> list[str]:
        """The methods that the server `one` has been sent."""
        lines = self.record.read_text(encoding="utf-8").splitlines() if self.record.exists() else []
        return [json.loads(line).get("method", "") for line in lines]

    async def running(self, calls: int) -> None:
        """Wait until so many calls are at the server."""
        await until(lambda: self.told.count("tools/call") == calls, what=f"{calls} calls")

    async def cancelled(self, calls: int) -> None:
        """Wait until the server was told of the end of so many."""
        await until(lambda: self.told.count("notifications/cancelled") == calls, what=f"{calls} ends")
        await until(lambda: self.gateway.services.gateway.counts.open == 0, what="no call open")

    async def change(self, *, role: str | None = None, disabled: bool = False) -> None:
        """Change the user ann, as a command does."""
        access = self.gateway.services.access
        if role is not None:
            await access.accounts.set_role("ann", role, by=BY)
        if disabled:
            await access.accounts.set_disabled("ann", True, by=BY)
        await access.read_changes()


async def start(start_gateway: StartGateway, tmp_path: Path, more: str = "", **settings: object) -> Here:
    """Start it, with the user ann."""
    record = tmp_path / "record.jsonl"
    one = f'["-S", "{SCRIPTED}", "--record", "{record}"]'
    configuration = (
        f'{more}[servers.one]\ncommand = "{sys.executable}"\nargs = {one}\n'
        f'[servers.two]\ncommand = "{sys.executable}"\nargs = ["-S", "{SCRIPTED}"]\napproval = "required"\n'
    )
    named = {name.replace("__", "."): value for name, value in settings.items()}
    gateway = await start_gateway(configuration, settings={"auth.watch_interval": 60, **named})
    await add_user(gateway)
    return Here(gateway, record)


async def socket(gateway: LiveGateway, token: str) -> SocketClient:
    """A socket that was greeted."""
    client = await SocketClient.connect(gateway.socket_url, token=token)
    await client.receive()
    return client


def modern_call(gateway: LiveGateway, token: str) -> "asyncio.Task[Any]":
    """A call at /mcp without a session."""
    return asyncio.create_task(Door(gateway, token=token).modern("tools/call", NEVER))


async def session_call(gateway: LiveGateway, token: str) -> tuple[str, "asyncio.Task[Any]"]:
    """A call at /mcp in a session; the session's id."""
    door = Door(gateway, token=token)
    session = await door.begin()
    request = {"jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": NEVER}
    return session, asyncio.create_task(door.in_session(session, request))


@pytest.mark.gen_test(timeout=40)
async def test_a_smaller_role_stops_the_calls_that_it_does_not_allow_at_every_door_and_nothing_else(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    here = await start(start_gateway, tmp_path)
    gateway = here.gateway
    token = (await log_in(gateway))["accessToken"]
    client = await socket(gateway, token)
    await client.send(tool_call("one", "never", {}, call_id="runs"))
    await client.send(tool_call("two", "echo", {"text": "x"}, call_id="waits"))
    queued = await client.receive()
    assert (queued["id"], queued["data"]["reason"]) == ("waits", "approval")
    path = "/api/v1/servers/one/tools/never"
    rest = asyncio.create_task(send(gateway, "POST", path, {}, token=token))
    stream = asyncio.create_task(_whole_stream(gateway, path, token))
    _, in_session = await session_call(gateway, token)
    modern = modern_call(gateway, token)
    await here.running(5)
    await here.change(role="viewer")
    ends = {frame["id"]: frame for frame in (await client.receive(), await client.receive())}
    assert {name: frame["data"]["code"] for name, frame in ends.items()} == {
        "runs": "permission_denied",
        "waits": "permission_denied",
    }
    answer = await asyncio.wait_for(rest, 5)
    assert (answer.status, answer.json()["error"]["code"]) == (403, "permission_denied")
    assert '"permission_denied"' in await asyncio.wait_for(stream, 5)
    for open_call in (in_session, modern):
        error = result_of(await asyncio.wait_for(open_call, 5))["error"]
        assert error["data"]["code"] == "permission_denied"
    await here.cancelled(5)
    assert gateway.services.approvals is not None
    assert (await client.call("one", "echo", {"text": "x"}))["data"]["code"] == "permission_denied"
    status = await client.request({"type": "status", "id": "s"})
    assert status["data"]["openCalls"] == []
    # Five that ran, one that waited, and one that came later.
    await until(lambda: _outcomes(gateway).count("permission_denied") == 7, what="seven lines")
    await client.leave()


async def _whole_stream(gateway: LiveGateway, path: str, token: str) -> str:
    headers = {"Authorization": f"Bearer {token}", "Accept": "text/event-stream"}
    async with httpx2.AsyncClient(timeout=20) as http:
        return (await http.post(gateway.url + path, json={}, headers=headers)).text


def _outcomes(gateway: LiveGateway) -> list[str]:
    return [line["outcome"] for line in audited(gateway) if line["event"] == "call"]


@pytest.mark.gen_test(timeout=40)
async def test_a_call_that_waits_for_its_turn_is_never_sent_when_it_is_not_allowed_any_more(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    here = await start(start_gateway, tmp_path, backends__max_calls=1)
    token = (await log_in(here.gateway))["accessToken"]
    client = await socket(here.gateway, token)
    await client.send(tool_call("one", "never", {}, call_id="runs"))
    await here.running(1)
    queued = await client.request(tool_call("one", "echo", {"text": "x"}, call_id="waits"))
    assert queued["type"] == "queued"
    await here.change(role="viewer")
    ends = [await client.receive() for _ in range(2)]
    assert {end["id"]: end["data"]["code"] for end in ends} == dict.fromkeys(
        ("runs", "waits"), "permission_denied"
    )
    await here.cancelled(1)
    assert here.told.count("tools/call") == 1
    await client.leave()


@pytest.mark.gen_test(timeout=40)
async def test_a_disabled_user_has_nothing_open_any_more(start_gateway: StartGateway, tmp_path: Path) -> None:
    here = await start(start_gateway, tmp_path)
    gateway = here.gateway
    token = (await log_in(gateway))["accessToken"]
    client = await socket(gateway, token)
    await client.send(tool_call("one", "never", {}, call_id="runs"))
    rest = asyncio.create_task(send(gateway, "POST", "/api/v1/servers/one/tools/never", {}, token=token))
    session, in_session = await session_call(gateway, token)
    modern = modern_call(gateway, token)
    door = Door(gateway, token=token)
    follows = asyncio.create_task(door.in_session(session, None, "GET"))
    listens = asyncio.create_task(door.modern("subscriptions/listen", {"notifications": {}}))
    await here.running(4)
    await until(lambda: len(gateway.services.hub) == 6, what="all open")
    assert gateway.services.mcp.sessions == 1
    bearer = {"Authorization": f"Bearer {token}"}
    async with await EventReader.open(gateway.url, bearer, path="/api/v1/sse?channels=gateway") as stream:
        assert (await stream.next_frame())["type"] == "connected"
        await stream.next_frame()
        await here.change(disabled=True)
        said = [frame async for frame in _frames(stream)]
    assert (said[-1]["type"], said[-1]["data"]["code"]) == ("disconnect", 3503)
    assert await client.closed(1) == 3503
    assert (await asyncio.wait_for(rest, 5)).status == 403
    for task in (in_session, modern, follows, listens):
        await asyncio.wait_for(task, 5)
    await here.cancelled(4)
    await until(lambda: gateway.services.mcp.sessions == 0, what="no MCP session")
    assert (await door.in_session(session, {"jsonrpc": "2.0", "id": 1, "method": "ping"})).status_code == 401
    await until(lambda: len(gateway.services.sessions) == 0, what="nothing to resume")


async def _frames(stream: EventReader) -> Any:
    while (event := await stream.next_event()) is not None:
        yield json.loads(event["data"])


@pytest.mark.gen_test(timeout=40)
async def test_a_logout_ends_the_session_that_waits_for_its_client_and_the_calls_it_keeps(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    here = await start(start_gateway, tmp_path)
    gateway = here.gateway
    login, other = await log_in(gateway), await log_in(gateway)
    client = await SocketClient.connect(gateway.socket_url, token=login["accessToken"])
    session = (await client.receive())["data"]["session"]
    await client.send(tool_call("one", "never", {}, call_id="kept"))
    await here.running(1)
    client.drop()
    assert await client.closed() is None
    await until(lambda: gateway.services.sessions.parked == 1)
    await send(gateway, "POST", "/api/v1/auth/logout", token=login["accessToken"])
    await here.cancelled(1)
    assert gateway.services.sessions.parked == 0
    again = await socket(gateway, other["accessToken"])
    resumed = await again.request(
        {"type": "resume", "id": "r", "data": {"session": session, "pending": ["kept"]}}
    )
    assert resumed["data"]["resumed"] is False
    assert (await again.receive())["data"]["code"] == "outcome_unknown"
    await again.leave()


@pytest.mark.gen_test(timeout=40)
async def test_a_session_goes_on_with_what_the_role_says_by_now_while_its_client_is_away(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    here = await start(start_gateway, tmp_path)
    gateway = here.gateway
    token = (await log_in(gateway))["accessToken"]
    client = await SocketClient.connect(gateway.socket_url, token=token)
    session = (await client.receive())["data"]["session"]
    await client.request({"type": "subscribe", "id": "s", "data": {"channel": "room:den"}})
    await client.send(tool_call("one", "never", {}, call_id="kept"))
    await here.running(1)
    client.drop()
    assert await client.closed() is None
    await until(lambda: gateway.services.sessions.parked == 1)
    await here.change(role="viewer")
    await here.cancelled(1)
    again = await socket(gateway, token)
    status = await again.request(
        {"type": "resume", "id": "r", "data": {"session": session, "pending": ["kept"]}}
    )
    assert (status["data"]["resumed"], status["data"]["channels"]) == (True, [])
    end = await again.receive()
    assert (end["id"], end["data"]["code"]) == ("kept", "permission_denied")
    await again.leave()


@pytest.mark.gen_test(timeout=40)
async def test_a_call_is_held_to_the_credential_that_began_it_whatever_holds_beside_it(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    here = await start(start_gateway, tmp_path)
    gateway = here.gateway
    first, second = await log_in(gateway), await log_in(gateway)
    client = await socket(gateway, first["accessToken"])
    await client.send(tool_call("one", "never", {}, call_id="first"))
    await here.running(1)
    await client.request({"type": "auth", "id": "a", "data": {"token": second["accessToken"]}})
    await client.send(tool_call("one", "never", {}, call_id="second"))
    await here.running(2)
    await send(gateway, "POST", "/api/v1/auth/logout", token=first["accessToken"])
    end = await client.receive()
    assert (end["id"], end["data"]["code"]) == ("first", "permission_denied")
    status = await client.request({"type": "status", "id": "s"})
    assert status["data"]["openCalls"] == ["second"]
    await client.leave()


@pytest.mark.gen_test(timeout=40)
async def test_a_socket_to_which_nothing_is_allowed_any_more_is_closed_with_3507(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    here = await start(start_gateway, tmp_path, more="[roles.nothing]\nscopes = []\n")
    token = (await log_in(here.gateway))["accessToken"]
    client = await socket(here.gateway, token)
    await here.change(role="nothing")
    goodbye = await client.receive()
    assert (goodbye["type"], goodbye["data"]["code"], goodbye["data"]["reconnect"]) == (
        "disconnect",
        3507,
        False,
    )
    assert await client.closed(1) == 3507


@pytest.mark.gen_test(timeout=40)
async def test_a_stream_that_is_behind_gets_nothing_more_once_its_credentials_hold_no_more(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    here = await start(start_gateway, tmp_path)
    gateway = here.gateway
    token = (await log_in(gateway))["accessToken"]
    bearer = {"Authorization": f"Bearer {token}"}
    async with await EventReader.open(gateway.url, bearer, path="/api/v1/sse?channels=system") as stream:
        await stream.next_frame()
        gateway.services.bus.publish("system.alert", {"level": "info", "message": "before"})
        assert (await stream.next_frame())["data"]["message"] == "before"
        authority = gateway.services.access.authority
        authority.learn(replace(authority.known, users={"ann": KnownUser("operator", True)}))
        gateway.services.hub.review(authority.review)
        # In the very same turn of the loop, before the stream itself is told anything.
        gateway.services.bus.publish("system.alert", {"level": "info", "message": "after"})
        assert [frame["type"] async for frame in _frames(stream)] == ["disconnect"]


@pytest.mark.gen_test(timeout=40)
async def test_a_change_of_role_tells_open_mcp_sessions_that_their_lists_are_others(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    here = await start(start_gateway, tmp_path, more='[roles.half]\nscopes = ["tools:call:one"]\n')
    gateway = here.gateway
    token = (await log_in(gateway))["accessToken"]
    door = Door(gateway, token=token)
    session = await door.begin()
    headers = {
        "Authorization": f"Bearer {token}",
        "Mcp-Session-Id": session,
        "Mcp-Protocol-Version": "2025-11-25",
        "Accept": "text/event-stream",
    }
    async with (
        httpx2.AsyncClient(timeout=10) as http,
        http.stream("GET", f"{gateway.url}/mcp", headers=headers) as stream,
    ):
        await here.change(role="half")
        lines = stream.aiter_lines()
        while "notifications/tools/list_changed" not in await anext(lines):
            pass
    listed = result_of(await door.in_session(session, {"jsonrpc": "2.0", "id": 2, "method": "tools/list"}))
    names = {tool["name"] for tool in listed["result"]["tools"]}
    assert names
    assert all(name.startswith("one__") for name in names)


@pytest.mark.gen_test(timeout=40)
async def test_a_login_with_the_same_password_is_refused_at_the_socket_of_another_user(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    here = await start(start_gateway, tmp_path)
    await add_user(here.gateway, "bob", "admin")
    client = await socket(here.gateway, (await log_in(here.gateway))["accessToken"])
    bob = (await log_in(here.gateway, "bob", GOOD))["accessToken"]
    refused = await client.request({"type": "auth", "id": "a", "data": {"token": bob}})
    assert refused["data"]["code"] == "permission_denied"
    assert (await client.request({"type": "status", "id": "s"}))["data"]["user"] == "ann"
    await client.leave()


@pytest.mark.gen_test(timeout=40)
async def test_a_stream_that_waits_for_a_place_does_not_begin_with_credentials_that_were_revoked(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    here = await start(start_gateway, tmp_path, server__max_connections_per_user=1)
    gateway = here.gateway
    bearer = {"Authorization": f"Bearer {(await log_in(gateway))['accessToken']}"}
    path = "/api/v1/events?channels=gateway"
    async with await EventReader.open(gateway.url, bearer, path=path) as first:
        await first.next_frame()
        waits = asyncio.create_task(fetch(gateway.url, path, headers=bearer))
        await until(lambda: gateway.services.hub.statistics().waiting == 1, what="one that waits")
        await here.change(disabled=True)
        assert [frame["type"] async for frame in _frames(first)][-1] == "disconnect"
    assert (await asyncio.wait_for(waits, 5)).status == 401
