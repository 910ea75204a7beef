"""The way past the SDK's streams: that it is taken, and where it gives way to the SDK's own."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from typing import Any

import mcp_types as types
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mcp.client import Client
from mcp.client.session import _later_revision_fields
from mcp.shared.exceptions import MCPError
from mcp_types.methods import validate_server_result
from mcp_types.version import KNOWN_PROTOCOL_VERSIONS, MODERN_PROTOCOL_VERSIONS
from pydantic import ValidationError
from tornado.ioloop import IOLoop

from mcpgw.backends import sdk_seam, tool_answers
from mcpgw.backends.connection import Connection
from mcpgw.backends.direct_dispatcher import DirectDispatcher
from mcpgw.backends.direct_stdio import GatheredWriter
from mcpgw.backends.stdio import MessageWriter
from mcpgw.backends.tap import Tap
from mcpgw.turns import MOST_PUT_OFF, in_batch
from tests.support.backends import Heard, call, running, scripted, text_of


@pytest.mark.gen_test(timeout=20)
async def test_a_child_is_spoken_to_past_the_sdks_streams(io_loop: IOLoop) -> None:
    async with running(scripted()) as [backend]:
        connection = await backend.connection(0)
        assert connection.is_direct
        assert text_of(await call(backend, "echo", {"a": 1}))


def test_the_sdk_still_has_the_seam_that_direct_pipes_need() -> None:
    # Where this fails, an upgrade has moved it: calls go through the SDK's streams until `sdk_seam` knows it.
    assert sdk_seam.takes_dispatcher(Client("http://127.0.0.1:1/mcp"))


@pytest.mark.gen_test(timeout=20)
async def test_without_the_seam_calls_go_through_the_sdks_streams(
    io_loop: IOLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sdk_seam, "_PARAMETERS", ["something", "else"])
    async with running(scripted()) as [backend]:
        connection: Connection = await backend.connection(0)
        assert not connection.is_direct
        assert text_of(await call(backend, "echo", {"a": 1}))


@pytest.mark.gen_test(timeout=20)
async def test_a_log_before_an_answer_in_one_piece_is_never_another_calls(io_loop: IOLoop) -> None:
    held, logged = Heard(), Heard()
    async with running(scripted()) as [backend]:
        waiting = asyncio.create_task(call(backend, "hold", heard=held))
        await call(backend, "echo")
        for _ in range(50):
            await call(backend, "log", heard=logged)
        await call(backend, "release")
        await waiting
    assert held.logs == []


@pytest.mark.parametrize("version", KNOWN_PROTOCOL_VERSIONS)
def test_members_of_later_revisions_are_those_that_the_sdk_drops(version: str) -> None:
    dropped = frozenset() if version in MODERN_PROTOCOL_VERSIONS else frozenset(tool_answers.LATER_MEMBERS)
    assert _later_revision_fields("tools/call", version) == dropped


ANY = st.none() | st.booleans() | st.integers(0, 2) | st.sampled_from(["", "text", "complete"])
BLOCKS = st.dictionaries(st.sampled_from(["type", "text", "_meta", "annotations"]), ANY, max_size=4)
TEXTS = st.fixed_dictionaries({"type": st.just("text"), "text": st.text(max_size=2)})
RESULTS = st.fixed_dictionaries(
    {},
    optional={
        "content": st.lists(TEXTS | BLOCKS, max_size=2) | ANY,
        "isError": ANY,
        "structuredContent": ANY | st.dictionaries(st.text(max_size=1), ANY, max_size=1),
        "_meta": ANY | st.dictionaries(st.text(max_size=1), ANY, max_size=1),
        "resultType": ANY,
        "other": ANY,
        "ttlMs": ANY,
        "cacheScope": ANY,
    },
)


@settings(max_examples=300, deadline=None)
@given(RESULTS, st.sampled_from(KNOWN_PROTOCOL_VERSIONS))
def test_a_result_is_taken_exactly_where_the_sdk_takes_it(raw: dict[str, Any], version: str) -> None:
    is_modern = version in MODERN_PROTOCOL_VERSIONS
    try:
        validate_server_result("tools/call", version, raw)
    except ValidationError:
        with pytest.raises(ValidationError):
            tool_answers.checked(raw, version, is_modern=is_modern)
    else:
        taken = tool_answers.checked(raw, version, is_modern=is_modern)
        assert taken == {name: raw[name] for name in raw if is_modern or name != "resultType"}


class Dispatcher(DirectDispatcher):
    """Notes in `unsent` the ids of requests that were not sent."""

    def __init__(self, unsent: list[object]) -> None:
        super().__init__(Tap(nullcontext(), unsent.append), lambda: None)
        self._unsent = unsent

    def not_sent(self, request_id: types.RequestId, error: types.ErrorData) -> None:
        """See `DirectDispatcher.not_sent`."""
        self._unsent.append(request_id)


class Pipe:
    """A pipe to nobody: what is written, and which requests end because they were not."""

    def __init__(self, reading: int, transport: asyncio.WriteTransport) -> None:
        self.reading = reading
        self.unsent: list[object] = []
        writer = MessageWriter(transport, 1 << 20, self.unsent.append)
        self.writer = GatheredWriter(writer, self.unsent.append, Dispatcher(self.unsent))

    def read(self) -> list[str]:
        """The lines that have come."""
        try:
            return os.read(self.reading, 1 << 16).decode().splitlines()
        except BlockingIOError:
            return []


@asynccontextmanager
async def pipe() -> AsyncIterator[Pipe]:
    """A pipe, and the writer on it."""
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    loop = asyncio.get_running_loop()
    transport, _ = await loop.connect_write_pipe(asyncio.Protocol, os.fdopen(writing, "wb"))
    made = Pipe(reading, transport)
    try:
        yield made
    finally:
        if made.reading >= 0:
            os.close(made.reading)
        transport.abort()
        await asyncio.sleep(0)


@pytest.mark.gen_test
async def test_lines_of_a_batch_are_written_with_its_end_and_in_parts_before_that(io_loop: IOLoop) -> None:
    async with pipe() as one:
        lines = [f"line {number}" for number in range(2 * MOST_PUT_OFF + 3)]
        seen: list[str] = []

        def work() -> None:
            for number, line in enumerate(lines):
                one.writer.write(f"{line}\n".encode(), number)
                seen.extend(one.read())
                assert len(seen) == number // MOST_PUT_OFF * MOST_PUT_OFF

        in_batch(work)
        assert seen + one.read() == lines
        assert one.unsent == []


@pytest.mark.gen_test
async def test_requests_that_a_closed_pipe_does_not_take_amid_a_batch_end_each_once(io_loop: IOLoop) -> None:
    async with pipe() as one:
        os.close(one.reading)
        one.reading = -1
        refused: list[int] = []

        def work() -> None:
            for number in range(MOST_PUT_OFF + 3):
                try:
                    one.writer.write(b"line\n", number)
                except MCPError:
                    refused.append(number)

        in_batch(work)
        assert one.unsent == list(range(MOST_PUT_OFF))
        assert refused == list(range(MOST_PUT_OFF, MOST_PUT_OFF + 3))
