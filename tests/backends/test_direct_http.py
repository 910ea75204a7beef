"""The way past the SDK's HTTP transport: that it is taken, what it sends, and how it shares connections."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tornado.ioloop import IOLoop

from mcpgw.backends import sdk_seam
from mcpgw.backends.backend import Backend
from mcpgw.backends.event_streams import EventReader, EventTooLargeError
from mcpgw.server_definitions import ServerDefinition
from tests.servers.scripted_http import ScriptedHttpServer, scripted_http
from tests.support.backends import call, running, text_of
from tests.support.waiting import until

ERAS = pytest.mark.parametrize("modern", [False, True], ids=["handshake", "2026-07-28"])
HEADERS = {"Authorization": "Bearer s3cret", "X-Team": "blue"}
PARAMETERS = {
    "type": "object",
    "properties": {
        "region": {"type": "string", "x-mcp-header": "Region"},
        "deep": {"type": "object", "properties": {"n": {"type": "integer", "x-mcp-header": "N"}}},
    },
}


@asynccontextmanager
async def both(
    server: ScriptedHttpServer, *, headers: Mapping[str, str] | None = None, **changes: Any
) -> AsyncIterator[Backend]:
    """The backend that reaches a scripted server."""
    definition = ServerDefinition(name="web", transport="http", url=server.url, headers=headers or {})
    async with running(definition, **changes) as [backend]:
        yield backend


@ERAS
@pytest.mark.gen_test(timeout=20)
async def test_a_server_is_spoken_to_past_the_sdks_transport(io_loop: IOLoop, modern: bool) -> None:
    async with scripted_http(modern=modern) as server, both(server) as backend:
        assert (await backend.connection(0)).is_direct


@pytest.mark.gen_test(timeout=20)
async def test_without_the_seam_calls_go_through_the_sdks_transport(
    io_loop: IOLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sdk_seam, "_PARAMETERS", ["something", "else"])
    async with scripted_http() as server, both(server) as backend:
        assert not (await backend.connection(0)).is_direct
        assert json.loads(text_of(await call(backend, "echo", {"a": 1}))) == {"a": 1}


@ERAS
@pytest.mark.gen_test(timeout=20)
async def test_a_call_says_in_headers_and_body_what_the_sdk_would(
    io_loop: IOLoop, monkeypatch: pytest.MonkeyPatch, modern: bool
) -> None:
    arguments = {"region": "ö ber", "deep": {"n": 7}, "other": [None, "x"]}
    sent = []
    for direct in (True, False):
        monkeypatch.setattr(sdk_seam, "uses_direct_pipes", direct)
        async with scripted_http(modern=modern) as server:
            server.schemas["echo"] = PARAMETERS
            async with both(server, headers=HEADERS) as backend:
                assert (await backend.connection(0)).is_direct == direct
                await call(backend, "echo", arguments)
            headers = dict(server.request_headers[server.methods().index("tools/call")])
            assert headers["authorization"] == "Bearer s3cret"
            assert headers.pop("host") == f"127.0.0.1:{server.port}"
            assert int(headers.pop("content-length")) > 0
            assert (headers.pop("mcp-session-id", None) is None) == modern
            assert ("mcp-param-region" in headers) == modern
            message = server.received[server.methods().index("tools/call")]
            assert message.pop("id") == message["params"]["_meta"].pop("progressToken")
            sent.append((headers, message))
    assert sent[0] == sent[1]


@pytest.mark.gen_test(timeout=20)
async def test_each_of_several_calls_has_the_headers_of_its_own_tool_and_arguments(io_loop: IOLoop) -> None:
    async with scripted_http(modern=True) as server:
        server.schemas["echo"] = PARAMETERS
        async with both(server) as backend:
            assert (await backend.connection(0)).is_direct
            for region in ("north", "south"):
                await call(backend, "echo", {"region": region})
                await call(backend, "stream", {"text": region})
                await call(backend, "echo", {"other": region})
        sent = [
            (headers["mcp-name"], headers.get("mcp-param-region"))
            for headers in server.request_headers
            if headers.get("mcp-method") == "tools/call"
        ]
        rest = [("stream", None), ("echo", None)]
        assert sent == [("echo", "north"), *rest, ("echo", "south"), *rest]


@ERAS
@pytest.mark.parametrize("tool", ["echo", "stream"])
@pytest.mark.gen_test(timeout=20)
async def test_calls_share_connections(io_loop: IOLoop, modern: bool, tool: str) -> None:
    async with scripted_http(modern=modern) as server, both(server) as backend:
        before = server.connections
        for number in range(20):
            await call(backend, tool, {"text": str(number)})
        assert server.connections == before + 1
        for _ in range(5):
            await asyncio.gather(*(call(backend, tool, {"text": "x"}) for _ in range(8)))
        assert server.connections <= before + 8


@pytest.mark.gen_test(timeout=20)
async def test_calls_beyond_the_limit_wait_for_a_connection_in_order(io_loop: IOLoop) -> None:
    async with scripted_http() as server, both(server, http_connections=2) as backend:
        held = [asyncio.create_task(call(backend, "hang")) for _ in range(2)]
        await until(lambda: server.methods().count("tools/call") == 2)
        waiting = [asyncio.create_task(call(backend, "echo", {"n": number})) for number in range(3)]
        with pytest.raises(TimeoutError):
            await call(backend, "echo", {"n": "given up"}, seconds=0.2)
        assert server.methods().count("tools/call") == 2
        held[0].cancel()
        await asyncio.wait(waiting, timeout=5)
        arguments = [message["params"]["arguments"] for message in server.received[-3:]]
        assert arguments == [{"n": 0}, {"n": 1}, {"n": 2}]  # what was given up was never sent
        cancels = [message for message in server.received if message["method"] == "notifications/cancelled"]
        assert len(cancels) == 1
        held[1].cancel()
        await asyncio.wait(held)


@pytest.mark.gen_test(timeout=20)
async def test_a_call_that_is_longer_than_a_mebibyte_goes_out_whole(io_loop: IOLoop) -> None:
    async with scripted_http() as server, both(server) as backend:
        long = "x" * 1_200_000
        assert json.loads(text_of(await call(backend, "echo", {"text": long}))) == {"text": long}


FIELDS = [
    "data: ",
    "data:",
    "data",
    "event: ",
    "event: other",
    "id: ",
    "id: 7",
    "id:\0",
    "retry: 12",
    "retry: x",
]
OTHERS = [": comment", "\n", "\r", "\r\n", "\n\n", "{}", "ü", " ", "x" * 30]
PIECES = st.lists(st.sampled_from([*FIELDS, *OTHERS]), max_size=30)


@settings(max_examples=300, deadline=None)
@given(PIECES, st.integers(1, 9))
def test_events_are_those_that_the_sdks_client_reads(pieces: list[str], size: int) -> None:
    # Of a stream that ends with a return alone, httpx2 gives an event that has no end.
    text = "".join([*pieces, "\n"]).encode()
    request = httpx2.Request("GET", "http://127.0.0.1/")
    headers = {"content-type": "text/event-stream"}
    answer = httpx2.Response(200, headers=headers, content=text, request=request)
    expected, last_id, retry = [], "", None
    for event in httpx2.EventSource(answer, 10_000):
        expected.append((event.event, event.data))
        last_id = event.id or last_id
        retry = event.retry if event.retry is not None else retry
    reader = EventReader(10_000)
    found = [
        event for start in range(0, len(text), size) for event in reader.feed(text[start : start + size])
    ]
    assert [(event.type.decode(), event.data.decode()) for event in found] == expected
    assert (reader.last_id, reader.retry) == (last_id, retry)


@pytest.mark.parametrize(
    "text", [b"data: " + b"x" * 95, b"data: x\n" * 20, b"x" * 101], ids=["1", "many", "begun"]
)
def test_an_event_over_the_limit_is_refused_before_it_ends(text: bytes) -> None:
    reader = EventReader(100)

    def feed() -> None:
        for start in range(0, len(text), 10):
            reader.feed(text[start : start + 10])

    with pytest.raises(EventTooLargeError):
        feed()
