"""Servers on the Python SDK, of both eras and over both transports, through the gateway's WebSocket."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from tornado.ioloop import IOLoop

from tests.conftest import StartGateway
from tests.servers.offering_server import PIXEL, RICH
from tests.support.backends import SERVERS, connected
from tests.support.chaos import servers_of, web_server
from tests.support.forked import server_table
from tests.support.socket_client import Frame, SocketClient, tool_call

WAYS = pytest.mark.parametrize("transport", ["stdio", "http"])
ERAS = pytest.mark.parametrize("era", ["handshake", "2026-07-28"])
ANSWERS: dict[str, tuple[str, dict[str, Any]]] = {
    "elicit": ("elicitation", {"name": "Ann"}),
    "sample": (
        "sampling",
        {"role": "assistant", "content": {"type": "text", "text": "a poem"}, "model": "m"},
    ),
    "roots": ("roots", {"roots": [{"uri": "file:///home/ann", "name": "home"}]}),
}


@asynccontextmanager
async def configuration(transport: str, era: str) -> AsyncIterator[str]:
    """The table of the server, which runs meanwhile where it is to be reached over HTTP."""
    options = ["--handshake"] if era == "handshake" else []
    if transport == "http":
        async with web_server(*options) as web:
            yield f"[servers.sdk]\nurl = {web.url!r}\n"
    else:
        yield server_table("sdk", SERVERS / "offering_server.py", *options)


def asking(client: SocketClient) -> Callable[..., Any]:
    """Sends a frame to the server and answers the data of what comes back."""

    async def ask(frame_type: str, **data: Any) -> dict[str, Any]:
        body = {"serverId": "sdk", **data}
        frame = await client.request({"type": frame_type, "id": "ask", "data": body})
        assert frame["type"] != "error", frame
        answer: dict[str, Any] = frame["data"]
        return answer

    return ask


async def frames_of(client: SocketClient, tool: str, **params: Any) -> list[Frame]:
    """All frames of a call, in which questions are answered."""
    await client.send(tool_call("sdk", tool, params))
    frames: list[Frame] = []
    while not frames or frames[-1]["type"] not in ("tool_response", "error"):
        frames.append(await client.receive())
        if frames[-1]["type"] == "input_request":
            kind, content = ANSWERS[tool]
            asked = frames[-1]["data"]
            assert asked["kind"] == kind
            response = {"requestId": asked["requestId"], "action": "accept", "content": content}
            await client.send({"type": "input_response", "id": "call-1", "data": response})
    return frames


@WAYS
@ERAS
@pytest.mark.gen_test(timeout=40)
async def test_all_that_a_server_of_the_sdk_offers_comes_through(
    io_loop: IOLoop, start_gateway: StartGateway, transport: str, era: str
) -> None:
    async with configuration(transport, era) as table:
        gateway = await start_gateway(table)
        status = (await servers_of(gateway))["sdk"]
        assert (status["protocolVersion"] == "2026-07-28") == (era != "handshake")
        async with connected(gateway) as client:
            ask = asking(client)
            listed = {tool["name"] for tool in (await ask("list_tools"))["tools"]}
            assert {"rich", "count", "elicit", "sample", "roots"} <= listed
            [rich] = await frames_of(client, "rich")
            assert rich["data"]["content"] == RICH["content"]
            assert rich["data"]["structuredContent"] == RICH["structuredContent"]
            *steps, end = await frames_of(client, "count")
            assert [step["type"] for step in steps] == ["tool_progress"] * 3
            assert [step["data"]["progress"] for step in steps] == [1, 2, 3]
            assert end["data"]["result"] == "counted"
            listed_resources = await ask("list_resources")
            assert [one["uri"] for one in listed_resources["resources"]] == ["note:one", "note:two"]
            assert [one["uriTemplate"] for one in listed_resources["resourceTemplates"]] == ["note:{name}"]
            text, image = (await ask("read_resource", uri="note:one"))["contents"]
            assert (text["text"], image["blob"]) == ("first", PIXEL)
            [prompt] = (await ask("list_prompts"))["prompts"]
            assert prompt["name"] == "greet"
            got = await ask("get_prompt", name="greet", arguments={"who": "Ann"})
            assert got["messages"][0]["content"]["text"] == "Hello Ann"
            completion = await ask(
                "complete",
                ref={"type": "ref/prompt", "name": "greet"},
                argument={"name": "who", "value": "An"},
            )
            assert completion["values"] == ["Ana", "Anb"]
            for tool, words in {"elicit": "Ann", "sample": "a poem", "roots": "file:///home/ann"}.items():
                *questions, end = await frames_of(client, tool)
                assert [frame["type"] for frame in questions] == ["input_request"]
                assert end["data"]["success"] is True
                assert words in end["data"]["content"][0]["text"]
