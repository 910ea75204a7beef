"""The way past the SDK's streams: that it is taken, and where it gives way to the SDK's own."""

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mcp.client import Client
from mcp.client.session import _later_revision_fields
from mcp_types.methods import validate_server_result
from mcp_types.version import KNOWN_PROTOCOL_VERSIONS, MODERN_PROTOCOL_VERSIONS
from pydantic import ValidationError
from tornado.ioloop import IOLoop

from mcpgw.backends import sdk_seam, tool_answers
from mcpgw.backends.connection import Connection
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
