"""Lists and events show what their reader's role lets them use, at every door, live and from the log."""

import asyncio
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from mcpgw.subscriptions import View
from tests.conftest import LiveGateway, StartGateway
from tests.support.administered import ADMIN
from tests.support.logins import BY, add_user, log_in, send
from tests.support.mcp_door import Door, mcp_client, result_of
from tests.support.raw_socket import EventReader
from tests.support.socket_client import Frame, SocketClient
from tests.support.waiting import until

SCRIPTED = Path(__file__).parent.parent / "servers" / "scripted.py"
SERVERS = "".join(
    f'[servers.{name}]\ncommand = "{sys.executable}"\nargs = ["-S", "{SCRIPTED}"]\n'
    for name in ("one", "two")
)
ROLES = (
    '[roles.half]\nscopes = ["servers:read", "servers:write", "events:read", "calls:read", "calls:approve"]\n'
    'allow = ["one"]\ndeny = ["*/hold"]\n'
)


async def half(start_gateway: StartGateway) -> tuple[LiveGateway, str]:
    """A gateway with two servers, and the token of a login that is for one of them alone."""
    gateway = await start_gateway(ROLES + SERVERS, settings={"auth.watch_interval": 60})
    await add_user(gateway, role="half")
    return gateway, (await log_in(gateway))["accessToken"]


def servers_in(frames: Iterable[Frame]) -> set[str]:
    """The servers that events are of."""
    return {frame["data"]["serverId"] for frame in frames if "serverId" in frame.get("data", {})}


@pytest.mark.gen_test(timeout=40)
async def test_every_list_has_the_servers_of_the_role_alone(start_gateway: StartGateway) -> None:
    gateway, token = await half(start_gateway)

    async def get(path: str) -> tuple[int, Any]:
        answer = await send(gateway, "GET", path, token=token)
        return answer.status, answer.json()

    _, listed = await get("/api/v1/servers")
    assert [server["id"] for server in listed["servers"]] == ["one"]
    assert (await get("/api/v1/gateway"))[1]["servers"] == {"ready": 1, "all": 1}
    for path in ("", "/tools", "/resources", "/prompts", "/logs"):
        assert (await get(f"/api/v1/servers/one{path}"))[0] == 200, path
        status, refused = await get(f"/api/v1/servers/two{path}")
        assert (status, refused["error"]["code"]) == (403, "permission_denied"), path
    for method, path in (("POST", "/stop"), ("PATCH", ""), ("DELETE", "")):
        body = {"definition": {"timeout": 1}} if method == "PATCH" else None
        refused = await send(gateway, method, f"/api/v1/servers/two{path}", body, token=token)
        assert refused.status == 403, method
    _, document = await get("/api/v1/openapi.json")
    assert any("/servers/one/tools/echo" in path for path in document["paths"])
    assert not any("/servers/two/" in path or "/tools/hold" in path for path in document["paths"])
    tools = result_of(await Door(gateway, token=token).modern("tools/list"))["result"]["tools"]
    names = {tool["name"] for tool in tools}
    assert "one__echo" in names
    assert "one__hold" not in names
    assert all(name.startswith("one__") for name in names)
    assert (await Door(gateway, "/mcp/two", token).modern("tools/list")).status_code == 403
    client = await SocketClient.connect(gateway.socket_url, token=token)
    await client.receive()
    on_socket = await client.request({"type": "list_tools", "id": "l"})
    assert {f"one__{tool['name']}" for tool in on_socket["data"]["tools"]} == names
    refused = await client.request({"type": "list_tools", "id": "t", "data": {"serverId": "two"}})
    assert refused["data"]["code"] == "permission_denied"
    await client.leave()


@pytest.mark.gen_test(timeout=40)
async def test_events_of_servers_and_calls_go_to_those_alone_who_may_use_them(
    start_gateway: StartGateway,
) -> None:
    gateway, token = await half(start_gateway)
    bus = gateway.services.bus
    client = await SocketClient.connect(gateway.socket_url, token=token)
    session = (await client.receive())["data"]["session"]
    bearer = {"Authorization": f"Bearer {token}"}
    path = "/api/v1/sse?channels=servers,calls,config"
    for channel in ("servers", "calls", "config"):
        await client.send({"type": "subscribe", "id": channel, "data": {"channel": channel}})

    def happen() -> None:
        for server in ("two", "one"):
            bus.publish("server.error", {"serverId": server, "reason": "x"})
            for tool in ("hold", "echo"):
                call = {"callId": tool, "user": "bob", "serverId": server, "toolName": tool}
                bus.publish("call.cancelled", {**call, "durationMs": 1}, owner="bob")
        mine = {"callId": "mine", "user": "ann", "serverId": "two", "toolName": "echo", "durationMs": 1}
        bus.publish("call.cancelled", mine, owner="ann")
        bus.publish("config.updated", {"source": "rest", "servers": {"added": ["one", "two"]}})
        bus.publish("config.error", {"faults": ["[servers.two] is broken"]})

    def wanted(frames: list[Frame]) -> None:
        assert servers_in(frame for frame in frames if not frame["type"].startswith("call.")) == {"one"}
        seen = [frame for frame in frames if frame["type"] in ("server.error", "call.cancelled")]
        told = [(frame["data"]["serverId"], frame["data"].get("callId")) for frame in seen]
        assert told == [("one", None), ("one", "echo"), ("two", "mine")]
        (updated,) = (frame["data"] for frame in frames if frame["type"] == "config.updated")
        assert updated["servers"] == {"added": ["one"]}
        assert "two" not in json.dumps(frames[-1]["data"])

    async with await EventReader.open(gateway.url, bearer, path=path) as stream:
        while (await stream.next_frame())["type"] != "server.started":
            pass
        await client.send({"type": "ping", "id": "all subscribed"})
        present = [await client.receive()]
        while present[-1]["type"] != "pong":
            present.append(await client.receive())
        assert servers_in(present) == {"one"}
        happen()
        wanted(await _until_error(client.receive))
        wanted(await _until_error(stream.next_frame))
    client.drop()
    assert await client.closed() is None
    await until(lambda: gateway.services.sessions.parked == 1)
    seen = str(bus.position)
    happen()
    again = await SocketClient.connect(gateway.socket_url, token=token)
    await again.receive()
    await again.send(
        {"type": "resume", "id": "r", "data": {"session": session, "pending": [], "since": seen}}
    )
    wanted(await _until_error(again.receive))
    async with await EventReader.open(gateway.url, {**bearer, "Last-Event-ID": seen}, path=path) as stream:
        wanted(await _until_error(stream.next_frame))
    # Another role counts for what is in the log already.
    await gateway.services.access.accounts.set_role("ann", "operator", by=BY)
    await gateway.services.access.read_changes()
    async with await EventReader.open(gateway.url, {**bearer, "Last-Event-ID": seen}, path=path) as stream:
        assert servers_in(await _until_error(stream.next_frame)) == {"one", "two"}
    await again.leave()


async def _until_error(receive: Any) -> list[Frame]:
    frames: list[Frame] = []
    while not frames or frames[-1]["type"] != "config.error":
        frames.append(await receive())
    return frames


@pytest.mark.gen_test(timeout=40)
async def test_only_those_who_may_use_a_tool_are_asked_to_approve_it(start_gateway: StartGateway) -> None:
    guarded = SERVERS.replace("args", 'approval = "required"\nargs')
    gateway = await start_gateway(ROLES + guarded, settings={"auth.watch_interval": 60})
    await add_user(gateway, role="half")
    token = (await log_in(gateway))["accessToken"]
    bob = await gateway.connect("bob")
    for server in ("two", "one"):
        await bob.request(
            {
                "type": "tool_call",
                "id": server,
                "data": {"serverId": server, "toolName": "echo", "params": {}},
            }
        )
    pending = (await send(gateway, "GET", "/api/v1/approvals", token=token)).json()["approvals"]
    assert [one["serverId"] for one in pending] == ["one"]
    admin = gateway.token("root", ["admin"])
    everything = (await send(gateway, "GET", "/api/v1/approvals", token=admin)).json()["approvals"]
    (hidden,) = (one["requestId"] for one in everything if one["serverId"] == "two")
    refused = await send(gateway, "POST", f"/api/v1/approvals/{hidden}", {"action": "accept"}, token=token)
    assert (refused.status, refused.json()["error"]["code"]) == (403, "permission_denied")
    await bob.leave()


@pytest.mark.gen_test(timeout=40)
async def test_an_mcp_client_hears_of_changes_of_its_own_servers_alone(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(SERVERS)
    async with (
        mcp_client(gateway, scopes=["tools:call:one"]) as (client, _),
        mcp_client(gateway, user="bob") as (other, _),
        client.listen(tools_list_changed=True) as mine,
        other.listen(tools_list_changed=True) as all_of_them,
    ):
        change = asyncio.ensure_future(anext(aiter(mine)))
        await other.call_tool("two__grow", {"name": "more"})
        await anext(aiter(all_of_them))
        await asyncio.wait({change}, timeout=0.2)
        assert not change.done(), "a server that this user may not use is none of theirs"
        await other.call_tool("one__grow", {"name": "more"})
        await asyncio.wait_for(change, 5)
        listed = {tool.name for tool in (await client.list_tools()).tools}
    assert "one__more" in listed
    assert not any(name.startswith("two") for name in listed)


@pytest.mark.gen_test(timeout=40)
async def test_how_many_servers_there_are_is_told_to_those_who_are_shown_them_all(
    start_gateway: StartGateway,
) -> None:
    gateway, token = await half(start_gateway)
    everything = await gateway.connect("ops", ("servers:read", "events:read"))
    partly = await SocketClient.connect(gateway.socket_url, token=token)
    await partly.receive()
    subscribe = {"type": "subscribe", "id": "s", "data": {"channel": "gateway"}}
    for client in (everything, partly):
        assert (await client.request(subscribe))["type"] == "subscribed"
    await gateway.services.administration.stop("two", ADMIN)
    gateway.services.bus.publish("gateway.error", {"faultId": "the last"})

    async def told(client: SocketClient) -> list[str]:
        heard: list[str] = []
        while not heard or heard[-1] != "gateway.error":
            heard.append((await client.receive())["type"])
        return heard

    assert "gateway.health_update" in await told(everything)
    assert "gateway.health_update" not in await told(partly), "nor when one that is hidden comes or goes"
    for client in (everything, partly):
        client.close()


@pytest.mark.gen_test(timeout=40)
async def test_no_catalog_leads_to_a_server_that_the_role_of_whoever_installs_it_denies(
    start_gateway: StartGateway,
) -> None:
    roles = '[roles.admin]\nscopes = ["admin"]\ndeny = ["secret*"]\n'
    gateway = await start_gateway(roles, settings={"auth.watch_interval": 60})
    await add_user(gateway, "boss", "admin")
    token = (await log_in(gateway, "boss"))["accessToken"]
    content = {"mcpServers": {"secret-one": {"command": sys.executable, "args": ["-c", "pass"]}}}
    made = await send(gateway, "POST", "/api/v1/catalogs", {"id": "mine", "content": content}, token=token)
    assert made.status == 201, made.body
    install = "/api/v1/catalogs/mine/entries/secret-one/install"
    for body in (None, {"server": "secret-two"}):
        refused = await send(gateway, "POST", install, body, token=token)
        assert (refused.status, refused.json()["error"]["code"]) == (403, "permission_denied"), body
    assert not gateway.services.administration.all()
    shown = await send(gateway, "POST", install, {"server": "shown"}, token=token)
    assert shown.status == 201, shown.body


def test_readers_of_one_role_are_one_audience_and_those_of_another_another() -> None:
    from tests.access.test_authority import rules, who  # noqa: PLC0415 - the one place that makes them

    def view(*allow: str, user: str = "ann") -> View:
        known = who(limit=("events:read",), with_rules=rules(allow=allow))
        return View.of(type(known)(**{**vars(known), "user": user}), "servers")

    assert view("one") == view("one", user="bob")
    assert hash(view("one")) == hash(view("one", user="bob"))
    assert view("one") != view("two")
    assert view() == View.of(who("events:read"), "servers")
