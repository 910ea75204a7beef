"""A server on the MCP SDK in both protocol eras: the same promises hold."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from tornado.ioloop import IOLoop

from mcpgw.errors import ToolExecutionError
from mcpgw.server_definitions import ServerDefinition
from tests.support.backends import SERVERS, Heard, call, running, text_of
from tests.support.forked import server_command
from tests.support.waiting import until

ERAS = pytest.mark.parametrize("era", ["2025-11-25", "2026-07-28"])
TOOLS = {"wait", "count", "raises", "refuses", "is_error", "scalar", "arguments", "grow"}


def server(era: str, record: Path) -> ServerDefinition:
    """The SDK's server of one era."""
    options = ["--handshake"] if era < "2026" else []
    command, *arguments = server_command(SERVERS / "sdk_server.py", "--record", str(record), *options)
    return ServerDefinition(name="sdk", transport="stdio", command=command, args=tuple(arguments))


@ERAS
@pytest.mark.gen_test(timeout=30)
async def test_a_call_streams_its_progress_and_logs_before_its_answer(
    io_loop: IOLoop, tmp_path: Path, era: str
) -> None:
    heard = Heard()
    async with running(server(era, tmp_path / "record")) as [backend]:
        assert backend.status.protocol_version == era
        assert set(backend.tools) == TOOLS  # three pages of them
        assert text_of(await call(backend, "count", heard=heard)) == "counted"
        assert heard.steps == [(step, 3, f"step {step}") for step in (1, 2, 3)]
        assert heard.logs == [("warning", "counter", {"counted": 3})]


@ERAS
@pytest.mark.gen_test(timeout=30)
async def test_the_server_sees_a_cancel(io_loop: IOLoop, tmp_path: Path, era: str) -> None:
    record, heard = tmp_path / "record", Heard()
    async with running(server(era, record)) as [backend]:
        waiting = asyncio.create_task(call(backend, "wait", heard=heard))
        await until(lambda: len(heard.steps) == 3)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await until(lambda: record.read_text() == "begun\ncancelled\n", seconds=1.5)
        assert text_of(await call(backend, "count")) == "counted"


@ERAS
@pytest.mark.gen_test(timeout=30)
async def test_failures_of_tools_keep_their_kind(io_loop: IOLoop, tmp_path: Path, era: str) -> None:
    async with running(server(era, tmp_path / "record")) as [backend]:
        with pytest.raises(ToolExecutionError):
            await call(backend, "raises")
        with pytest.raises(ToolExecutionError, match="not like this") as refused:
            await call(backend, "refuses")
        assert refused.value.details == {"code": -32042, "message": "not like this", "data": {"why": [1]}}
        result = await call(backend, "is_error")
        assert result.is_error
        assert text_of(result) == "it failed"
        nulls = {"none": None, "list": [None]}
        assert (await call(backend, "arguments", nulls)).structured_content == nulls


@pytest.mark.parametrize("value", [0, "text", [1, None], False])  # for null see tests/backends/test_http.py
@pytest.mark.gen_test(timeout=30)
async def test_structured_content_may_be_any_json_where_the_revision_says_so(
    io_loop: IOLoop, tmp_path: Path, value: Any
) -> None:
    async with running(server("2026-07-28", tmp_path / "record")) as [backend]:
        result = await call(backend, "scalar", {"value": value})
        assert result.has_structured_content
        assert result.structured_content == value
        assert type(result.structured_content) is type(value)


@ERAS
@pytest.mark.gen_test(timeout=30)
async def test_a_tool_that_comes_at_run_time_is_listed(io_loop: IOLoop, tmp_path: Path, era: str) -> None:
    async with running(server(era, tmp_path / "record")) as [backend]:
        await call(backend, "grow", {"name": "late"})
        await until(lambda: "late" in backend.tools, seconds=3)


@ERAS
@pytest.mark.gen_test(timeout=30)
async def test_two_lists_of_tools_at_once_are_both_whole(io_loop: IOLoop, tmp_path: Path, era: str) -> None:
    async with running(server(era, tmp_path / "record")) as [backend]:
        connection = await backend.connection(0)
        listing = []
        for _ in range(20):  # each begins while others wait for a page
            listing.append(asyncio.create_task(connection.list_tools()))
            await asyncio.sleep(0.002)
        assert all(tools.keys() == TOOLS for tools in await asyncio.gather(*listing))
