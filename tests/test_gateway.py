"""Tool calls: who may call what, with which arguments, for how long. On real backends."""

import sys
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest

from mcpgw.access.tokens import Principal
from mcpgw.backends.tools import ToolResult
from mcpgw.errors import (
    CallTimeout,
    Draining,
    InvalidParams,
    PermissionDenied,
    ServerNotFound,
    ServerUnavailable,
    ToolNotFound,
)
from mcpgw.gateway import Gateway
from tests.conftest import StartGateway

ODD = f"""
[servers.odd]
command = {str(sys.executable)!r}
args = [{str(Path(__file__).parent / "servers" / "odd_schemas_server.py")!r}]
[servers.off]
command = "true"
enabled = false
"""


def who(*scopes: str) -> Principal:
    """A caller with these scopes."""
    return Principal("ann", frozenset(scopes), time.time() + 600, "t")


async def call(
    gateway: Gateway, tool: str, arguments: dict[str, Any], *, server: str = "odd", **options: Any
) -> ToolResult:
    """Call a tool with every scope, unless `principal` says otherwise."""
    return await gateway.call_tool(
        options.pop("principal", who("tools:call")),
        server,
        tool,
        arguments,
        on_started=lambda: None,
        on_queued=lambda _position, _wait: None,
        on_progress=lambda *_: None,
        on_log=lambda *_: None,
        **options,
    )


@pytest.mark.gen_test
async def test_arguments_are_checked_against_the_tools_own_schema(start_gateway: StartGateway) -> None:
    gateway = (await start_gateway(ODD)).services.gateway
    assert (await call(gateway, "plain", {"count": 1})).content == [{"type": "text", "text": '{"count": 1}'}]
    with pytest.raises(InvalidParams) as caught:
        await call(gateway, "plain", {"cuont": "secret", "name": "longer than that"})
    assert sorted(caught.value.details, key=lambda fault: fault["path"]) == [
        {"path": "/data/params/count", "reason": "is required"},
        {"path": "/data/params/cuont", "reason": "is not known; did you mean 'count'?"},
        {"path": "/data/params/name", "reason": "must have at most 5 characters"},
    ]
    assert "secret" not in str(caught.value.to_data())


@pytest.mark.gen_test
async def test_a_schema_of_another_draft_means_what_it_meant_there(start_gateway: StartGateway) -> None:
    gateway = (await start_gateway(ODD)).services.gateway
    await call(gateway, "draft_7", {"pair": ["a", 1]})
    with pytest.raises(InvalidParams) as caught:
        await call(gateway, "draft_7", {"pair": ["a", "b"]})
    assert caught.value.details == [{"path": "/data/params/pair/1", "reason": "must be of type integer"}]


@pytest.mark.gen_test
@pytest.mark.parametrize(
    "tool", ["no_schema_at_all", "remote_reference", "endless_reference", "broken_pattern"]
)
async def test_a_schema_that_cannot_be_used_leaves_the_checking_to_its_backend(
    start_gateway: StartGateway, tool: str
) -> None:
    gateway = (await start_gateway(ODD)).services.gateway
    for _ in range(2):
        assert (await call(gateway, tool, {"a": "b"})).content == [{"type": "text", "text": '{"a": "b"}'}]


@pytest.mark.gen_test
@pytest.mark.parametrize(
    ("tool", "arguments"),
    [
        ("slow_pattern", {"a": "a" * 60 + "!"}),
        ("slow_names", {"a" * 60 + "!": 1}),
        ("fan_out", {}),
        ("huge", {"n": 1}),
    ],
)
async def test_a_check_that_takes_too_long_is_left_to_the_backend_and_holds_up_nobody(
    start_gateway: StartGateway, tool: str, arguments: dict[str, Any]
) -> None:
    gateway = (await start_gateway(ODD)).services.gateway
    await call(gateway, "plain", {"count": 1})
    began = time.monotonic()
    # Where the time was enough after all, the answer must be the right one.
    refused: AbstractContextManager[object] = (
        pytest.raises(InvalidParams) if tool in ("slow_pattern", "slow_names") else nullcontext()
    )
    with refused:
        assert (await call(gateway, tool, arguments)).is_error is False
    assert time.monotonic() - began < 2


@pytest.mark.gen_test
async def test_a_call_ends_at_its_deadline(start_gateway: StartGateway) -> None:
    gateway = (await start_gateway(ODD, settings={"calls.timeout": 0.2})).services.gateway
    for timeout_ms in (None, 100):
        started = time.monotonic()
        with pytest.raises(CallTimeout):
            await call(gateway, "never", {}, timeout_ms=timeout_ms)
        assert time.monotonic() - started < 2
    await call(gateway, "plain", {"count": 1})


@pytest.mark.gen_test
async def test_a_longer_time_than_the_longest_is_refused_by_name(start_gateway: StartGateway) -> None:
    gateway = (await start_gateway(ODD, settings={"calls.max_timeout": 100})).services.gateway
    with pytest.raises(InvalidParams) as caught:
        await call(gateway, "plain", {"count": 1}, timeout_ms=100_001)
    assert caught.value.details == [{"path": "/data/timeoutMs", "reason": "must be at most 100000"}]


@pytest.mark.gen_test
async def test_unknown_names_are_answered_with_the_nearest_that_the_caller_may_use(
    start_gateway: StartGateway,
) -> None:
    gateway = (await start_gateway(ODD)).services.gateway
    with pytest.raises(ServerNotFound, match="did you mean 'odd'"):
        await call(gateway, "plain", {}, server="od")
    with pytest.raises(ToolNotFound, match="did you mean 'plain'"):
        await call(gateway, "plan", {})
    stranger = who("tools:call:elsewhere")
    with pytest.raises(ServerNotFound) as hidden:
        await call(gateway, "plain", {}, server="od", principal=stranger)
    assert "odd" not in hidden.value.message


@pytest.mark.gen_test
async def test_a_scope_for_one_tool_allows_that_tool_alone(start_gateway: StartGateway) -> None:
    gateway = (await start_gateway(ODD)).services.gateway
    principal = who("tools:call:odd/plain")
    await call(gateway, "plain", {"count": 1}, principal=principal)
    with pytest.raises(PermissionDenied):
        await call(gateway, "draft_7", {}, principal=principal)
    assert [tool.name for _, tool in gateway.list_tools(principal)] == ["plain"]
    assert gateway.list_tools(who("servers:read")) == []


@pytest.mark.gen_test
async def test_a_disabled_server_is_unavailable_at_once(start_gateway: StartGateway) -> None:
    gateway = (await start_gateway(ODD)).services.gateway
    with pytest.raises(ServerUnavailable) as caught:
        await call(gateway, "plain", {}, server="off")
    assert caught.value.details == {"state": "disabled"}
    with pytest.raises(ServerUnavailable):
        gateway.list_tools(who("tools:call"), "off")
    with pytest.raises(PermissionDenied):
        gateway.list_tools(who("tools:call:odd"), "off")
    assert {server for server, _ in gateway.list_tools(who("tools:call"))} == {"odd"}


@pytest.mark.gen_test
async def test_servers_are_shown_to_those_who_may_read_them(start_gateway: StartGateway) -> None:
    gateway = (await start_gateway(ODD)).services.gateway
    states = {status.id: status.state for status in gateway.server_statuses(who("servers:read"))}
    assert states == {"odd": "ready", "off": "disabled"}
    with pytest.raises(PermissionDenied):
        gateway.server_statuses(who("tools:call"))


@pytest.mark.gen_test
async def test_a_gateway_that_is_ending_takes_no_new_calls(start_gateway: StartGateway) -> None:
    gateway = (await start_gateway(ODD)).services.gateway
    gateway.begin_draining(5)
    with pytest.raises(Draining) as caught:
        await call(gateway, "plain", {"count": 1})
    assert caught.value.retry_after_ms is not None
    assert caught.value.retry_after_ms > 5000
