"""Backends over HTTP with SSE (MCP 2024-11-05), where every answer comes on one stream."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from tornado.ioloop import IOLoop

from mcpgw.backends.backend import Backend
from mcpgw.errors import OutcomeUnknown, ServerUnavailable, TooLarge, ToolExecutionError
from mcpgw.server_definitions import ServerDefinition
from tests.servers.scripted_http import ScriptedHttpServer, scripted_http
from tests.support.backends import call, ready, running, text_of
from tests.support.waiting import until

MEBIBYTE = 1024 * 1024


@asynccontextmanager
async def both() -> AsyncIterator[tuple[Backend, ScriptedHttpServer]]:
    """A scripted server and the backend that reaches it."""
    async with scripted_http() as server:
        definition = ServerDefinition(name="web", transport="sse", url=server.url.replace("/mcp", "/sse"))
        async with running(definition) as [backend]:
            yield backend, server


@pytest.mark.gen_test(timeout=20)
async def test_a_tool_is_listed_and_called(io_loop: IOLoop) -> None:
    async with both() as (backend, _):
        assert set(backend.tools) == {"echo"}
        assert json.loads(text_of(await call(backend, "echo", {"none": None}))) == {"none": None}


@pytest.mark.gen_test(timeout=20)
async def test_a_message_that_is_refused_ends_its_own_call_and_no_other(io_loop: IOLoop) -> None:
    async with both() as (backend, server):
        held = asyncio.create_task(call(backend, "never"))
        await until(lambda: server.methods().count("tools/call") == 1)
        with pytest.raises(ToolExecutionError, match="it answered with HTTP status 500"):
            await call(backend, "status", {"status": 500}, seconds=2)
        await call(backend, "echo", seconds=2)
        assert not held.done()
        held.cancel()
        await asyncio.wait({held})


@pytest.mark.gen_test(timeout=20)
async def test_a_message_that_is_never_taken_holds_up_no_other(io_loop: IOLoop) -> None:
    async with both() as (backend, server):
        hung = [asyncio.create_task(call(backend, "hang_post", seconds=0.5)) for _ in range(8)]
        began = time.monotonic()
        await call(backend, "echo", seconds=1)
        outcomes = await asyncio.gather(*hung, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {TimeoutError}
        assert time.monotonic() - began < 1
        await call(backend, "echo", seconds=1)
        await until(lambda: len(server.let_go) == 8, seconds=2, what="letting the messages go")


@pytest.mark.gen_test(timeout=20)
async def test_an_answer_over_the_limit_ends_its_call_alone(io_loop: IOLoop) -> None:
    async with both() as (backend, server):
        held = asyncio.create_task(call(backend, "never"))
        await until(lambda: server.methods().count("tools/call") == 1)
        with pytest.raises(TooLarge):
            await call(backend, "big", {"size": 12 * MEBIBYTE})
        assert len(text_of(await call(backend, "big", {"size": MEBIBYTE // 2}))) == MEBIBYTE // 2
        assert not held.done()
        held.cancel()
        await asyncio.wait({held})


@pytest.mark.gen_test(timeout=20)
async def test_the_end_of_the_stream_ends_its_calls_and_a_new_one_is_opened(io_loop: IOLoop) -> None:
    async with both() as (backend, _):
        with pytest.raises(OutcomeUnknown):
            await call(backend, "end", seconds=3)
        with pytest.raises(ServerUnavailable):
            await call(backend, "echo")
        await ready(backend)
        await call(backend, "echo")


@pytest.mark.gen_test(timeout=20)
async def test_a_session_that_is_lost_is_begun_anew(io_loop: IOLoop) -> None:
    async with both() as (backend, _):
        with pytest.raises(ServerUnavailable):  # it was refused, and so cannot have run
            await call(backend, "status", {"status": 404}, seconds=3)
        await ready(backend)
        await call(backend, "echo")
