"""Every example of the two older documents and of the contract, byte for byte."""

import json
from typing import Any

import pytest

from tests.support.gateway_process import GatewayProcess
from tests.support.schemas import assert_valid_server_frame
from tests.support.socket_client import SocketClient

PING = '{"type":"ping","id":"unique-id","data":{},"timestamp":1640995200000}'
CALL = (
    '{"type":"tool_call","id":"search-1","data":{"serverId":"memory","toolName":"memory_search",'
    '"params":{"project":"my-project"}},"timestamp":1640995200000}'
)
PRETTY_PING = """{
  "type": "ping",
  "id": "unique-id",
  "data": {},
  "timestamp": 1640995200000
}"""
PRETTY_CALL = """{
  "type": "tool_call",
  "id": "unique-id",
  "data": {
    "serverId": "memory",
    "toolName": "memory_search",
    "params": { "project": "my-project" }
  },
  "timestamp": 1640995200000
}"""
# What the older document shows of the gateway's frames: each member must be there, with a value of that type.
STATUS = {
    "type": "status",
    "data": {"message": "Connected to MCP Gateway WebSocket", "clientId": "abc123", "requiresAuth": True},
    "timestamp": 1640995200000,
}
TOOL_RESPONSE = {
    "type": "tool_response",
    "id": "matching-request-id",
    "data": {"success": True, "result": {"memories": []}, "serverId": "memory", "toolName": "memory_search"},
    "timestamp": 1640995200000,
}
ERROR = {
    "type": "error",
    "id": "matching-request-id",
    "data": {"error": "Authentication required", "code": "auth_required"},
    "timestamp": 1640995200000,
}


def assert_shaped_like(frame: dict[str, Any], example: dict[str, Any]) -> None:
    """Every member of the example is in the frame, with a value of the same type."""
    for name, value in example.items():
        assert type(frame[name]) is type(value), name
        if isinstance(value, dict):
            assert_shaped_like(frame[name], value)


async def connected(gateway: GatewayProcess) -> SocketClient:
    """A client that has proved who it is."""
    client = await SocketClient.connect(gateway.socket_url, token=gateway.token())
    assert (await client.receive())["data"]["authenticated"] is True
    return client


@pytest.mark.parametrize("example", [STATUS, TOOL_RESPONSE, ERROR], ids=lambda example: example["type"])
def test_the_older_frames_lack_only_members_that_were_added_since(example: dict[str, Any]) -> None:
    with pytest.raises(AssertionError, match="is required"):
        assert_valid_server_frame(example)


@pytest.mark.gen_test
@pytest.mark.parametrize("text", [PING, PRETTY_PING, PRETTY_PING.replace("\n", "\r\n")])
async def test_the_ping_of_the_documents_is_answered(shared_gateway: GatewayProcess, text: str) -> None:
    client = await SocketClient.connect(shared_gateway.socket_url)
    status = await client.receive()
    assert_shaped_like(status, STATUS)
    assert status["data"]["message"] == STATUS["data"]["message"]  # type: ignore[index]
    assert "id" not in status
    pong = await client.request(text)
    assert (pong["type"], pong["id"]) == ("pong", "unique-id")
    assert isinstance(pong["data"]["timestamp"], int)
    await client.leave()


@pytest.mark.gen_test
@pytest.mark.parametrize("text", [CALL, PRETTY_CALL])
async def test_the_call_of_the_documents_is_answered(shared_gateway: GatewayProcess, text: str) -> None:
    client = await connected(shared_gateway)
    answer = await client.request(text)
    assert answer["id"] == json.loads(text)["id"]
    assert_shaped_like(answer, TOOL_RESPONSE)
    assert answer["data"]["success"] is True
    assert (answer["data"]["serverId"], answer["data"]["toolName"]) == ("memory", "memory_search")
    await client.leave()


@pytest.mark.gen_test
async def test_the_call_of_the_documents_without_credentials_is_the_error_of_the_documents(
    shared_gateway: GatewayProcess,
) -> None:
    client = await SocketClient.connect(shared_gateway.socket_url)
    await client.receive()
    error = await client.request(CALL)
    assert_shaped_like(error, ERROR)
    assert (error["id"], error["data"]["code"]) == ("search-1", "auth_required")
    assert error["data"]["error"].startswith("Authentication required")
    await client.leave()


@pytest.mark.gen_test
async def test_every_request_of_the_contract_is_answered_under_its_id(shared_gateway: GatewayProcess) -> None:
    client = await SocketClient.connect(shared_gateway.socket_url)
    await client.receive()
    requests: list[tuple[dict[str, Any], str]] = [
        ({"type": "ping", "data": {}}, "pong"),
        ({"type": "auth", "data": {"token": shared_gateway.token()}}, "status"),
        ({"type": "status", "data": {}}, "status"),
        ({"type": "list_tools", "data": {}}, "tools"),
        ({"type": "list_tools", "data": {"serverId": "memory"}}, "tools"),
        (json.loads(CALL), "tool_response"),
        ({"type": "cancel", "data": {}}, "error"),
    ]
    for index, (frame, answer) in enumerate(requests):
        for spelling in ("id", "request_id"):
            name = f"{spelling}-{index}"
            sent = {key: value for key, value in frame.items() if key != "id"} | {spelling: name}
            received = await client.request(sent)
            assert (received["type"], received["id"]) == (answer, name)
            assert received.get("request_id") == (name if spelling == "request_id" else None)
    await client.leave()


@pytest.mark.gen_test
async def test_members_that_may_be_left_out_may_be_left_out(shared_gateway: GatewayProcess) -> None:
    client = await connected(shared_gateway)
    assert (await client.request('{"type":"ping"}')).keys() == {"type", "data", "timestamp"}
    assert (await client.request('{"type":"list_tools"}'))["type"] == "tools"
    assert (await client.request('{"type":"status"}'))["data"]["openCalls"] == []
    await client.leave()


@pytest.mark.gen_test
async def test_a_tool_is_listed_with_its_schemas(shared_gateway: GatewayProcess) -> None:
    client = await connected(shared_gateway)
    tools = (await client.request({"type": "list_tools", "data": {"serverId": "memory"}}))["data"]["tools"]
    (search,) = [tool for tool in tools if tool["name"] == "memory_search"]
    assert search["serverId"] == "memory"
    assert "project" in search["inputSchema"]["properties"]
    assert search["description"]
    await client.leave()
