"""``/mcp`` and ``/mcp/SERVER``: who comes in, what is found there, and what goes through."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import mcp_types as types
import pytest
from mcp.shared.exceptions import MCPError
from mcp.shared.subscriptions import PromptsListChanged, ResourceUpdated, ToolsListChanged

from mcpgw.access.tokens import Principal
from tests.conftest import LiveGateway, StartGateway
from tests.support.conformance import stdio_table
from tests.support.mcp_door import ERAS, HANDSHAKE, MODERN, Door, Era, mcp_client, result_of, soon
from tests.support.waiting import until

ELICIT = "test_input_required_result_elicitation"
TWO = stdio_table("one") + stdio_table("two")
ALL = Principal("root", frozenset({"admin"}), float("inf"), "test")


def tool_names(listed: types.ListToolsResult) -> set[str]:
    """The names in a list of tools."""
    return {tool.name for tool in listed.tools}


# --- who comes in ------------------------------------------------------------------------------------------


@pytest.mark.gen_test(timeout=30)
async def test_without_credentials_that_hold_nothing_is_served(start_gateway: StartGateway) -> None:
    gateway = await start_gateway()
    for token in ("none", ""):
        door = Door(gateway, token=token)
        for answer in (
            await door.modern("server/discover"),
            await door.send("GET"),
            await door.send("DELETE"),
        ):
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"].startswith("Bearer")
    assert gateway.services.mcp.sessions == 0


@pytest.mark.parametrize("name", ["Host", "Origin"])
@pytest.mark.gen_test(timeout=30)
async def test_a_foreign_host_or_origin_is_refused_before_anything_is_read(
    start_gateway: StartGateway, name: str
) -> None:
    gateway = await start_gateway()
    value = "evil.example.com" if name == "Host" else "http://evil.example.com"
    answer = await Door(gateway).modern("server/discover", None, **{name: value})
    assert answer.status_code == 403
    assert (await Door(gateway).modern("server/discover")).status_code == 200


@pytest.mark.gen_test(timeout=30)
async def test_a_server_that_is_not_there_or_not_for_this_user_has_no_door(
    start_gateway: StartGateway,
) -> None:
    gateway = await start_gateway(TWO)
    missing = await Door(gateway, "/mcp/oen").modern("server/discover")
    assert missing.status_code == 404
    assert "did you mean 'one'?" in missing.json()["error"]["message"]
    token = gateway.token(scopes=["tools:call:one"])
    assert (await Door(gateway, "/mcp/one", token).modern("server/discover")).status_code == 200
    assert (await Door(gateway, "/mcp/two", token).modern("server/discover")).status_code == 403


@pytest.mark.gen_test(timeout=30)
async def test_a_gateway_without_mcp_has_no_such_path(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(settings={"mcp.enabled": False})
    assert (await Door(gateway).modern("server/discover")).status_code == 404


@pytest.mark.gen_test(timeout=30)
async def test_a_session_belongs_to_its_user_and_to_its_path(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(TWO)
    session = await Door(gateway).begin()
    ping = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
    assert (await Door(gateway).in_session(session, ping)).status_code == 200
    stranger = Door(gateway, token=gateway.token("bob"))
    assert (await stranger.in_session(session, ping)).status_code == 404
    assert (await Door(gateway, "/mcp/one").in_session(session, ping)).status_code == 404
    assert (await Door(gateway).in_session(session, None, "DELETE")).status_code == 200
    assert (await Door(gateway).in_session(session, ping)).status_code == 404
    await until(lambda: gateway.services.mcp.sessions == 0, what="the end of the session")


@pytest.mark.gen_test(timeout=30)
async def test_sessions_of_one_user_are_bounded(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(settings={"mcp.max_sessions_per_user": 2})
    sessions = [await Door(gateway).begin() for _ in range(2)]
    request = {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": {}}
    refused = await Door(gateway).send("POST", request)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "queue_full")
    assert "retry-after" in refused.headers
    await Door(gateway, token=gateway.token("bob")).begin()
    await Door(gateway).in_session(sessions[0], None, "DELETE")
    await until(lambda: gateway.services.mcp.sessions == 2, what="the end of the session")
    await Door(gateway).begin()


@pytest.mark.gen_test(timeout=30)
async def test_open_requests_of_one_user_are_bounded(start_gateway: StartGateway, tmp_path: Path) -> None:
    record = tmp_path / "record"
    record.touch()
    table = stdio_table("one", "--record", str(record))
    gateway = await start_gateway(table, settings={"mcp.max_requests_per_user": 1})
    call = {"name": "one__test_wait", "arguments": {}}
    waiting = asyncio.create_task(Door(gateway).modern("tools/call", call))
    await until(lambda: "begun" in record.read_text(), what="the call")
    refused = await Door(gateway).modern("server/discover")
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "queue_full")
    other = Door(gateway, token=gateway.token("bob"))
    assert (await other.modern("server/discover")).status_code == 200
    waiting.cancel()
    await until(lambda: "cancelled" in record.read_text(), what="the cancel")
    assert (await Door(gateway).modern("server/discover")).status_code == 200


@pytest.mark.gen_test(timeout=30)
async def test_a_request_of_a_session_that_calls_itself_a_stream_is_counted_too(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    record = tmp_path / "record"
    record.touch()
    table = stdio_table("one", "--record", str(record))
    gateway = await start_gateway(table, settings={"mcp.max_requests_per_user": 1})
    session = await Door(gateway).begin()
    call = {"jsonrpc": "2.0", "id": 1, "method": "tools/call"} | {
        "params": {"name": "one__test_wait", "arguments": {}}
    }
    waiting = asyncio.create_task(Door(gateway).in_session(session, call))
    await until(lambda: "begun" in record.read_text(), what="the call")
    for headers in (
        {"Mcp-Session-Id": session, "Mcp-Protocol-Version": HANDSHAKE},
        {"Mcp-Session-Id": session, "Mcp-Protocol-Version": MODERN},
        {"Mcp-Session-Id": session},
    ):
        headers["Mcp-Method"] = "subscriptions/listen"
        refused = await asyncio.wait_for(Door(gateway).send("POST", {**call, "id": 2}, headers), 5)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "queue_full")
    waiting.cancel()
    await until(lambda: "cancelled" in record.read_text(), what="the cancel")


@pytest.mark.gen_test(timeout=30)
async def test_a_session_that_begins_again_is_one_session(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(settings={"mcp.max_sessions_per_user": 2})
    session = await Door(gateway).begin()
    params = {"protocolVersion": HANDSHAKE, "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}
    for number in range(3):
        again = {"jsonrpc": "2.0", "id": 10 + number, "method": "initialize", "params": params}
        await Door(gateway).in_session(session, again)
    assert gateway.services.mcp.sessions == 1
    await Door(gateway).begin()
    await Door(gateway).in_session(session, None, "DELETE")
    await until(lambda: gateway.services.mcp.sessions == 1, what="the end of the session")


@pytest.mark.gen_test(timeout=30)
async def test_an_instance_of_a_token_is_its_users_alone_and_ends_with_it(
    start_gateway: StartGateway,
) -> None:
    table = stdio_table("one").replace("[servers.one]", '[servers.one]\nisolation = "connection"')
    gateway = await start_gateway(table, settings={"auth.leeway": 0})

    def users() -> list[str]:
        status = next(iter(gateway.services.gateway.server_statuses(ALL)))
        return sorted(one.user for one in status.instances if one.user is not None)

    call = {"name": "one__test_simple_text", "arguments": {}}
    short = Door(gateway, token=gateway.token("bob", ttl=2.5))
    for door in (Door(gateway), short, short):
        assert "error" not in result_of(await door.modern("tools/call", call))
    assert users() == ["ann", "bob"]
    await until(lambda: users() == ["ann"], what="the end of the token")


@pytest.mark.gen_test(timeout=30)
async def test_a_tool_that_two_servers_could_mean_is_that_of_the_one_that_has_it(
    start_gateway: StartGateway,
) -> None:
    tables = stdio_table("one") + stdio_table("one__two") + stdio_table("one_")
    tables += '[servers.one.tools.test_simple_text]\nrename = "two__test_simple_text"\n'
    tables += '[servers.one.tools.test_image_content]\nrename = "two__mine"\n'
    gateway = await start_gateway(tables)
    async with mcp_client(gateway) as (client, _):
        names = tool_names(await client.list_tools())
        assert "one__two__test_simple_text" not in names
        with pytest.raises(MCPError, match=r"one or one__two.*/mcp/one"):
            await client.call_tool("one__two__test_simple_text", {})
        assert {"one__two__mine", "one__two__test_error_handling"} <= names
        mine = await client.call_tool("one__two__mine", {})
        assert isinstance(mine.content[0], types.ImageContent)
        assert (await client.call_tool("one__two__test_error_handling", {})).is_error
        prompts = {prompt.name for prompt in (await client.list_prompts()).prompts}
        assert "one__two__test_simple_prompt" in prompts
        assert (await client.get_prompt("one__two__test_simple_prompt")).messages


@pytest.mark.gen_test(timeout=30)
async def test_a_stream_ends_with_its_token(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(settings={"auth.leeway": 0})
    session = await Door(gateway).begin()
    short = Door(gateway, token=gateway.token(ttl=1.2))
    answer = await asyncio.wait_for(short.in_session(session, None, "GET"), 10)
    assert answer.status_code == 200
    listen = Door(gateway, token=gateway.token(ttl=1.2))
    told = await asyncio.wait_for(listen.modern("subscriptions/listen", {"notifications": {}}), 10)
    assert result_of(told)["result"]["resultType"] == "complete"


@pytest.mark.gen_test(timeout=30)
async def test_an_idle_session_ends(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(settings={"mcp.session_idle": 0.1})
    await Door(gateway).begin()
    await until(lambda: gateway.services.mcp.sessions == 0, what="the end of the session")


@pytest.mark.gen_test(timeout=30)
async def test_messages_are_bounded_in_size_and_rate(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(settings={"websocket.frames_burst": 3, "websocket.frames_rate": 0.1})
    large = await Door(gateway).send("POST", b'{"a": "' + b"x" * 1_100_000 + b'"}')
    assert large.status_code == 413
    answers = [(await Door(gateway).modern("server/discover")).status_code for _ in range(5)]
    assert answers == [200, 200, 200, 429, 429]


@pytest.mark.gen_test(timeout=30)
async def test_a_page_of_a_listed_origin_may_send_the_headers_of_the_protocol(
    start_gateway: StartGateway,
) -> None:
    origin = "https://pages.example.org"
    gateway = await start_gateway(settings={"server.allowed_origins": (origin,)})
    asked = {
        "Origin": origin,
        "Access-Control-Request-Headers": "authorization,mcp-session-id,mcp-param-x,evil",
    }
    answer = await Door(gateway, token="").send("OPTIONS", None, asked)
    allowed = answer.headers["access-control-allow-headers"].lower()
    assert answer.status_code == 204
    assert all(name in allowed for name in ("authorization", "mcp-session-id", "mcp-param-x", "mcp-method"))
    assert "evil" not in allowed
    exposed = (await Door(gateway).modern("server/discover", Origin=origin)).headers
    assert "Mcp-Session-Id" in exposed["access-control-expose-headers"]


# --- what is found there -----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ERAS)
@pytest.mark.gen_test(timeout=30)
async def test_many_servers_are_one_and_each_is_there_alone(start_gateway: StartGateway, mode: Era) -> None:
    gateway = await start_gateway(TWO)
    async with mcp_client(gateway, mode=mode) as (client, _):
        names = tool_names(await client.list_tools())
        assert {"one__test_simple_text", "two__test_simple_text"} <= names
        result = await client.call_tool("two__test_simple_text", {})
        assert result.content == [
            types.TextContent(type="text", text="This is a simple text response for testing.")
        ]
        prompts = {prompt.name for prompt in (await client.list_prompts()).prompts}
        assert {"one__test_simple_prompt", "two__test_simple_prompt"} <= prompts
        ref = types.PromptReference(type="ref/prompt", name="one__test_prompt_with_arguments")
        completed = await client.complete(ref, {"name": "arg1", "value": "par"})
        assert completed.completion.values == ["paris", "park", "party"]
        assert client.server_info is not None
        assert client.server_info.name == "mcpgw"
    async with mcp_client(gateway, "/mcp/two", mode=mode) as (client, _):
        assert "test_simple_text" in tool_names(await client.list_tools())
        assert client.server_info is not None
        assert client.server_info.name == "conformance"
        assert client.instructions == "Call the tools by the names of the scenarios."
        assert client.server_capabilities.prompts is not None


@pytest.mark.parametrize("mode", ERAS)
@pytest.mark.gen_test(timeout=30)
async def test_a_resource_that_several_servers_have_is_asked_for_by_its_server(
    start_gateway: StartGateway, mode: Era
) -> None:
    gateway = await start_gateway(TWO)
    shared = "test://static-text"
    async with mcp_client(gateway, mode=mode) as (client, _):
        listed = [resource.uri for resource in (await client.list_resources()).resources]
        assert len(listed) == len(set(listed))
        assert {f"mcpgw://one/{shared}", f"mcpgw://two/{shared}"} <= set(listed)
        templates = await client.list_resource_templates()
        found = {template.uri_template for template in templates.resource_templates}
        assert found == {f"mcpgw://{name}/test://template/{{id}}/data" for name in ("one", "two")}
        for address in (f"mcpgw://two/{shared}", "mcpgw://one/test://template/7/data"):
            assert (await client.read_resource(address)).contents[0].uri == address.split("/", 3)[3]
        with pytest.raises(MCPError, match="several servers have this resource"):
            await client.read_resource(shared)
        with pytest.raises(MCPError, match="Resource not found") as missing:
            await client.read_resource("test://nowhere")
        assert missing.value.code == (types.INVALID_PARAMS if mode == "auto" else -32002)
    async with mcp_client(gateway, mode=mode, scopes=["tools:call:two"]) as (client, _):
        # Who may see one server alone has its addresses as they are.
        assert shared in [resource.uri for resource in (await client.list_resources()).resources]
        assert (await client.read_resource("test://template/9/data")).contents


@pytest.mark.parametrize("mode", ERAS)
@pytest.mark.gen_test(timeout=30)
async def test_scopes_decide_what_is_listed_and_what_can_be_called(
    start_gateway: StartGateway, mode: Era
) -> None:
    gateway = await start_gateway(TWO)
    scopes = ["tools:call:one/test_simple_text", "tools:call:two"]
    async with mcp_client(gateway, mode=mode, scopes=scopes) as (client, _):
        names = tool_names(await client.list_tools())
        assert {name for name in names if name.startswith("one__")} == {"one__test_simple_text"}
        assert "two__test_image_content" in names
        with pytest.raises(MCPError, match="tools:call:one/test_image_content") as denied:
            await client.call_tool("one__test_image_content", {})
        assert denied.value.data["code"] == "permission_denied"
        prompts = {prompt.name for prompt in (await client.list_prompts()).prompts}
        assert prompts
        assert all(name.startswith("two__") for name in prompts)
        with pytest.raises(MCPError):
            await client.get_prompt("one__test_simple_prompt")
        with pytest.raises(MCPError, match="there is no tool 'nowhere__x'") as unknown:
            await client.call_tool("nowhere__x", {})
        assert unknown.value.code == types.INVALID_PARAMS


@pytest.mark.gen_test(timeout=30)
async def test_the_separator_of_names_is_a_setting(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(stdio_table("one"), settings={"mcp.separator": "."})
    async with mcp_client(gateway) as (client, _):
        assert "one.test_simple_text" in tool_names(await client.list_tools())
        assert not (await client.call_tool("one.test_simple_text", {})).is_error


# --- what goes through -------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ERAS)
@pytest.mark.gen_test(timeout=30)
async def test_results_go_through_as_the_server_sent_them(start_gateway: StartGateway, mode: Era) -> None:
    gateway = await start_gateway(stdio_table("one"))
    door = Door(gateway, "/mcp/one")
    for tool in ("test_multiple_content_types", "test_audio_content", "test_resource_link"):
        params: dict[str, Any] = {"name": tool, "arguments": {}}
        if mode == "auto":
            answer = await door.modern("tools/call", params)
        else:
            session = await door.begin()
            request = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
            answer = await door.in_session(session, request)
        result = result_of(answer)["result"]
        assert result["content"]
        if tool == "test_resource_link":
            (link,) = result["content"]
            assert link["_meta"] == {"example.org/kept": [1, None]}
            assert link["annotations"] == {"audience": ["user"], "priority": 0.5}
            assert result["structuredContent"] == {"kept": {"null": None}}
            assert result["_meta"]["example.org/trace"] == "kept"
            assert ("resultType" in result) is (mode == "auto")


@pytest.mark.parametrize("mode", ERAS)
@pytest.mark.gen_test(timeout=30)
async def test_errors_keep_what_the_server_said_and_the_gateways_have_their_code(
    start_gateway: StartGateway, mode: Era
) -> None:
    gateway = await start_gateway(stdio_table("one"))
    async with mcp_client(gateway, "/mcp/one", mode=mode) as (client, _):
        with pytest.raises(MCPError, match="Unknown prompt: none") as said:
            await client.get_prompt("none")
        assert said.value.code == types.INVALID_PARAMS
        with pytest.raises(MCPError, match="has no tool 'test_simple_txet'") as unknown:
            await client.call_tool("test_simple_txet", {})
        assert unknown.value.code == types.INVALID_PARAMS
        assert unknown.value.data["code"] == "tool_not_found"
        with pytest.raises(MCPError) as wrong:
            await client.call_tool("test_custom_header", {"region": 5})
        assert wrong.value.data["details"][0]["path"] == "/data/params/region"


@pytest.mark.gen_test(timeout=30)
async def test_a_server_is_asked_for_no_more_than_its_caller_can_do(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(stdio_table("one"))
    door = Door(gateway, "/mcp/one")
    call = {"name": "test_missing_capability", "arguments": {}}
    without = await door.modern("tools/call", call)
    assert without.status_code == 400
    assert without.json()["error"]["data"] == {"requiredCapabilities": {"sampling": {}}}
    assert "result" in (await door.modern("tools/call", call, capabilities={"sampling": {}})).json()


@pytest.mark.gen_test(timeout=30)
async def test_log_messages_go_to_those_who_want_them(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(stdio_table("one"))
    for mode, wanted, expected in (("auto", None, 0), ("auto", "info", 3), ("auto", "error", 0)):
        async with mcp_client(gateway, "/mcp/one", mode=mode, log_level=wanted) as (client, heard):  # type: ignore[arg-type]
            await client.call_tool("test_tool_with_logging", {})
            assert len(heard.logs) == expected, (mode, wanted)
    async with mcp_client(gateway, "/mcp/one", mode="legacy") as (client, heard):
        await client.call_tool("test_tool_with_logging", {})
        assert len(heard.logs) == 3
        request = types.SetLevelRequest(params=types.SetLevelRequestParams(level="error"))
        await client.session.send_request(request, types.EmptyResult)
        await client.call_tool("test_tool_with_logging", {})
        assert len(heard.logs) == 3


@asynccontextmanager
async def recorded(start_gateway: StartGateway, tmp_path: Path) -> AsyncIterator[tuple[LiveGateway, Path]]:
    """A gateway whose server writes down which waiting calls were begun and cancelled."""
    record = tmp_path / "record"
    record.touch()
    yield await start_gateway(stdio_table("one", "--record", str(record))), record


@pytest.mark.parametrize("mode", ERAS)
@pytest.mark.gen_test(timeout=30)
async def test_a_cancelled_call_is_cancelled_at_its_server(
    start_gateway: StartGateway, tmp_path: Path, mode: Era
) -> None:
    async with (
        recorded(start_gateway, tmp_path) as (gateway, record),
        mcp_client(gateway, mode=mode) as (client, _),
    ):
        call = asyncio.create_task(client.call_tool("one__test_wait", {}))
        await until(lambda: "begun" in record.read_text(), what="the call")
        call.cancel()
        await until(lambda: "cancelled" in record.read_text(), what="the cancel")
        # The session goes on.
        assert not (await client.call_tool("one__test_simple_text", {})).is_error


@pytest.mark.parametrize("mode", ERAS)
@pytest.mark.gen_test(timeout=30)
async def test_a_call_whose_client_has_left_is_cancelled_at_its_server(
    start_gateway: StartGateway, tmp_path: Path, mode: Era
) -> None:
    async with recorded(start_gateway, tmp_path) as (gateway, record):
        door = Door(gateway)
        params = {"name": "one__test_wait", "arguments": {}}
        if mode == "auto":
            sending = asyncio.create_task(door.modern("tools/call", params))
        else:
            session = await door.begin()
            request = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
            sending = asyncio.create_task(door.in_session(session, request))
        await until(lambda: "begun" in record.read_text(), what="the call")
        sending.cancel()  # closes the connection
        await until(lambda: "cancelled" in record.read_text(), seconds=3, what="the cancel")


# --- what changes ------------------------------------------------------------------------------------------


@pytest.mark.gen_test(timeout=30)
async def test_a_session_is_told_of_changed_lists_and_resources(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(TWO)
    watched = "mcpgw://one/test://watched-resource"
    async with (
        mcp_client(gateway, mode="legacy") as (client, heard),
        mcp_client(gateway, "/mcp/two", mode="legacy") as (_, elsewhere),
    ):
        follow = types.SubscribeRequest(params=types.SubscribeRequestParams(uri=watched))
        await client.session.send_request(follow, types.EmptyResult)
        before = tool_names(await client.list_tools())
        for kind, tool in (
            (types.ToolListChangedNotification, "one__test_trigger_tool_change"),
            (types.PromptListChangedNotification, "one__test_trigger_prompt_change"),
            (types.ResourceUpdatedNotification, "one__test_trigger_resource_change"),
        ):
            await client.call_tool(tool, {})
            await until(lambda kind=kind: heard.count(kind), what=kind.__name__)  # type: ignore[misc]
        assert tool_names(await client.list_tools()) - before == {"one__test_dynamic_tool"}
        updates = [m for m in heard.messages if isinstance(m, types.ResourceUpdatedNotification)]
        assert [update.params.uri for update in updates] == [watched]
        leave = types.UnsubscribeRequest(params=types.UnsubscribeRequestParams(uri=watched))
        await client.session.send_request(leave, types.EmptyResult)
        assert elsewhere.messages == []


@pytest.mark.gen_test(timeout=30)
async def test_a_listener_is_told_of_what_it_asked_for(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(TWO)
    watched = "mcpgw://one/test://watched-resource"
    async with (
        mcp_client(gateway) as (client, _),
        client.listen(tools_list_changed=True, resource_subscriptions=[watched]) as changes,
        client.listen(prompts_list_changed=True) as others,
    ):
        for tool, event in (
            ("one__test_trigger_resource_change", ResourceUpdated(watched)),
            ("one__test_trigger_tool_change", ToolsListChanged()),
        ):
            await client.call_tool(tool, {})
            assert await soon(anext(aiter(changes))) == event
        await client.call_tool("two__test_trigger_prompt_change", {})
        assert await soon(anext(aiter(others))) == PromptsListChanged()


@pytest.mark.gen_test(timeout=30)
async def test_a_server_that_goes_or_comes_changes_the_lists(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(TWO)
    async with (
        mcp_client(gateway) as (client, _),
        client.listen(tools_list_changed=True) as changes,
    ):
        await gateway.services.gateway.disable_server("two")
        assert await soon(anext(aiter(changes))) == ToolsListChanged()
        names = tool_names(await client.list_tools())
        assert not any(name.startswith("two__") for name in names)
        await gateway.services.gateway.enable_server("two")
        assert await soon(anext(aiter(changes))) == ToolsListChanged()


@pytest.mark.gen_test(timeout=30)
async def test_streams_end_with_a_last_word_when_the_gateway_ends(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(stdio_table("one"))
    services = gateway.services
    async with mcp_client(gateway) as (client, _), client.listen(tools_list_changed=True) as changes:
        await client.list_tools()
        call = asyncio.create_task(client.call_tool("one__test_tool_with_logging", {}))
        await until(lambda: services.gateway.counts.open == 1, what="the call")
        services.gateway.begin_draining(5)
        services.mcp.end_streams()
        draining = asyncio.create_task(services.hub.drain(asyncio.get_running_loop().time() + 5))
        with pytest.raises(StopAsyncIteration):
            await soon(anext(aiter(changes)))
        assert not (await soon(call)).is_error
        await soon(draining)
        with pytest.raises(MCPError) as late:
            await client.call_tool("one__test_simple_text", {})
        assert late.value.data["code"] == "draining"
        for refused in (
            await Door(gateway).modern("subscriptions/listen", {"notifications": {}}),
            await Door(gateway).send(
                "POST", {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": {}}
            ),
        ):
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")


# --- what a server asks ------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ERAS)
@pytest.mark.parametrize("options", [[], ["--handshake"]], ids=["modern", "handshake"])
@pytest.mark.gen_test(timeout=30)
async def test_a_question_of_a_server_reaches_the_caller_of_that_call(
    start_gateway: StartGateway, mode: Era, options: list[str]
) -> None:
    gateway = await start_gateway(stdio_table("one", *options))
    async with mcp_client(gateway, mode=mode, answer={"response": "yes"}) as (client, heard):
        result = await client.call_tool("one__test_elicitation", {"message": "Go on?"})
        assert heard.asked == ["Go on?"]
        assert 'action=accept, content={"response": "yes"}' in str(result.content[0])
    async with mcp_client(gateway, mode=mode) as (client, _):
        result = await client.call_tool("one__test_elicitation", {"message": "Go on?"})
        assert "action=decline" in str(result.content[0])


async def asked(door: Door, tool: str = ELICIT) -> dict[str, Any]:
    """A call whose server asks its caller for something; the answer with the questions."""
    answer = await door.modern(
        "tools/call", {"name": tool, "arguments": {}}, capabilities={"elicitation": {}}
    )
    result: dict[str, Any] = result_of(answer)["result"]
    assert result["resultType"] == "input_required"
    return result


async def retried(door: Door, state: str, name: str = "Ann", tool: str = ELICIT) -> dict[str, Any]:
    """The same call again, with an answer and a state."""
    params = {
        "name": tool,
        "arguments": {},
        "inputResponses": {"user_name": {"action": "accept", "content": {"name": name}}},
        "requestState": state,
    }
    return result_of(await door.modern("tools/call", params, capabilities={"elicitation": {}}))


@pytest.mark.gen_test(timeout=30)
async def test_a_state_holds_once_for_its_own_user_and_its_own_request(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(TWO)
    door = Door(gateway, "/mcp/one")
    state = (await asked(door))["requestState"]
    refusals = [
        await retried(Door(gateway, "/mcp/one", gateway.token("bob")), state),
        await retried(Door(gateway, "/mcp/two"), state),
        await retried(door, state, tool="test_input_required_result_sampling"),
        await retried(door, f"{state}x"),
    ]
    for refused in refusals:
        assert refused["error"]["code"] == types.INVALID_PARAMS
        assert "no request waits under this requestState" in refused["error"]["message"]
    assert (await retried(door, state))["result"]["content"] == [{"type": "text", "text": "Hello, Ann!"}]
    assert "error" in await retried(door, state)


@pytest.mark.gen_test(timeout=30)
async def test_what_is_not_answered_is_asked_again(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(stdio_table("one"))
    door = Door(gateway, "/mcp/one")
    first = await asked(door)
    params = {"name": ELICIT, "arguments": {}, "inputResponses": {"wrong": {"action": "accept"}}}
    again = result_of(
        await door.modern(
            "tools/call", {**params, "requestState": first["requestState"]}, capabilities={"elicitation": {}}
        )
    )["result"]
    assert again["inputRequests"] == first["inputRequests"]
    assert again["requestState"] != first["requestState"]
    assert (await retried(door, again["requestState"]))["result"]["content"]


@pytest.mark.gen_test(timeout=30)
async def test_requests_that_wait_for_their_callers_are_bounded_in_number_and_time(
    start_gateway: StartGateway,
) -> None:
    settings = {"mcp.max_suspended_per_user": 2, "mcp.suspend_time": 1.0}
    gateway = await start_gateway(stdio_table("one"), settings=settings)
    door, counts = Door(gateway, "/mcp/one"), gateway.services.gateway.counts
    states = [(await asked(door))["requestState"] for _ in range(2)]
    assert counts.open == 2
    refused = await door.modern(
        "tools/call", {"name": ELICIT, "arguments": {}}, capabilities={"elicitation": {}}
    )
    assert result_of(refused)["error"]["data"]["code"] == "queue_full"
    await asked(Door(gateway, "/mcp/one", gateway.token("bob")))
    await until(lambda: counts.open == 0, seconds=5, what="the end of what waits")
    assert "error" in await retried(door, states[0])


@pytest.mark.gen_test(timeout=30)
async def test_calls_are_events_and_stand_in_the_audit_log(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    gateway = await start_gateway(stdio_table("one"))
    told: list[str] = []
    gateway.services.bus.listen("calls", lambda event: told.append(event.type.name))
    async with mcp_client(gateway) as (client, _):
        await client.call_tool("one__test_error_handling", {})
        with pytest.raises(MCPError):
            await client.call_tool("one__none", {})
    assert told == ["call.started", "call.finished", "call.failed"]

    def outcomes() -> list[str]:
        lines = (tmp_path / "audit-0.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
        return [json.loads(line)["outcome"] for line in lines if json.loads(line)["event"] == "call"]

    await until(lambda: outcomes() == ["tool_error", "tool_not_found"], what="the audit log")
