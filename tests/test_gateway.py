"""Tool calls: who may call what, with which arguments, for how long. On real backends."""

import asyncio
import json
import os
import signal
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mcpgw.access.callers import Caller
from mcpgw.access.tokens import Principal
from mcpgw.backends.requests import InputAnswer, InputRequest, SilentObserver
from mcpgw.backends.server import Server
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
from tests.support.backends import children
from tests.support.forked import server_table
from tests.support.waiting import until

SERVERS = Path(__file__).parent / "servers"
SCRIPTED = f"""
[servers.scripted]
command = {str(sys.executable)!r}
args = ["-S", {str(SERVERS / "scripted.py")!r}]
"""
ODD = f"""
[servers.odd]
command = {str(sys.executable)!r}
args = [{str(Path(__file__).parent / "servers" / "odd_schemas_server.py")!r}]
[servers.off]
command = "true"
enabled = false
"""


def offering(name: str = "offering") -> str:
    """The table of the server that offers everything."""
    return server_table(name, SERVERS / "offering_server.py")


def who(*scopes: str) -> Principal:
    """A caller with these scopes."""
    return Principal("ann", frozenset(scopes), time.time() + 600, "t")


async def call(
    gateway: Gateway, tool: str, arguments: dict[str, Any], *, server: str = "odd", **options: Any
) -> ToolResult:
    """Call a tool with every scope, unless `principal` says otherwise."""
    caller = Caller(options.pop("principal", who("tools:call")), "test")
    return await gateway.call_tool(caller, server, tool, arguments, observer=SilentObserver(), **options)


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


@pytest.mark.gen_test
async def test_progress_renews_the_idle_limit_and_never_the_absolute_one(start_gateway: StartGateway) -> None:
    limits = {"calls.timeout": 0.5, "calls.max_timeout": 1.5}
    gateway = (await start_gateway(SCRIPTED, settings=limits)).services.gateway
    ticking = {"times": 5, "pause": 0.2}
    await call(gateway, "tick", ticking, server="scripted")
    with pytest.raises(CallTimeout, match=r"was silent for 0\.5 s"):
        await call(gateway, "never", {}, server="scripted")
    with pytest.raises(CallTimeout, match=r"took longer than 1\.5 s"):
        await call(gateway, "tick", {"times": 20, "pause": 0.2}, server="scripted")


@pytest.mark.gen_test
async def test_the_time_that_a_caller_names_is_the_whole_of_it(start_gateway: StartGateway) -> None:
    gateway = (await start_gateway(SCRIPTED)).services.gateway
    began = time.monotonic()
    with pytest.raises(CallTimeout, match=r"took longer than 0\.4 s"):
        await call(gateway, "tick", {"times": 20, "pause": 0.1}, server="scripted", timeout_ms=400)
    assert time.monotonic() - began < 2


class Person(SilentObserver):
    """A caller that answers after `seconds`."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.was_cancelled = False

    async def input_required(self, request: InputRequest) -> InputAnswer:
        """Take some time to answer."""
        try:
            await asyncio.sleep(self.seconds)
        except asyncio.CancelledError:
            self.was_cancelled = True
            raise
        return InputAnswer("accept", {"name": "Ann"})


@pytest.mark.gen_test
async def test_a_caller_that_is_asked_has_its_own_time_to_answer(start_gateway: StartGateway) -> None:
    limits = {"calls.timeout": 2, "calls.input_timeout": 4}
    gateway = (await start_gateway(offering(), settings=limits)).services.gateway
    caller = Caller(who("tools:call"), "test")
    slow, never = Person(2.5), Person(600)
    answered, unanswered = await asyncio.gather(
        gateway.call_tool(caller, "offering", "elicit", {}, observer=slow),
        gateway.call_tool(caller, "offering", "elicit", {}, observer=never),
    )
    assert json.loads(answered.content[0]["text"])["content"] == {"name": "Ann"}
    assert json.loads(unanswered.content[0]["text"])["action"] == "cancel"
    assert never.was_cancelled


@pytest.mark.gen_test
async def test_resources_and_prompts_are_for_those_who_may_use_the_whole_server(
    start_gateway: StartGateway,
) -> None:
    gateway = (await start_gateway(offering() + ODD)).services.gateway
    for scope in ("tools:call", "tools:call:offering", "admin"):
        caller = Caller(who(scope), "test")
        assert [server for server, _ in await gateway.list_resources(caller)] == ["offering"] * 2
        assert [prompt["name"] for _, prompt in await gateway.list_prompts(caller, "offering")] == ["greet"]
        templates = await gateway.list_resource_templates(caller, "offering")
        assert templates[0][1]["uriTemplate"] == "note:{name}"
        assert (await gateway.read_resource(caller, "offering", "note:two"))["contents"][0][
            "text"
        ] == "second"
        got = await gateway.get_prompt(caller, "offering", "greet", {"who": "you"})
        assert got["messages"][0]["content"]["text"] == "Hello you"
        completed = await gateway.complete(
            caller, "offering", {"type": "ref/prompt", "name": "greet"}, {"name": "who", "value": "x"}
        )
        assert completed["completion"]["values"] == ["xa", "xb"]
    one_tool = Caller(who("tools:call:offering/rich", "servers:read"), "test")
    assert await gateway.list_resources(one_tool) == []
    with pytest.raises(PermissionDenied):
        await gateway.list_resources(one_tool, "offering")
    with pytest.raises(PermissionDenied):
        await gateway.read_resource(one_tool, "offering", "note:two")
    with pytest.raises(PermissionDenied):
        await gateway.subscribe_resource(one_tool, "offering", "note:two")
    with pytest.raises(ServerNotFound):
        await gateway.read_resource(one_tool, "ofering", "note:two")


@pytest.mark.gen_test(timeout=60)
async def test_a_server_that_never_starts_holds_up_no_other(start_gateway: StartGateway) -> None:
    servers = "".join(SCRIPTED.replace("servers.scripted", f"servers.s{number}") for number in range(7))
    hanging = SCRIPTED.replace("servers.scripted", "servers.hanging").replace(
        ".py'", '.py\', "--at-start", "hang"'
    )
    assert "hang" in hanging
    gateway = (await start_gateway(servers + hanging, wait_for_backends=0)).services.gateway
    reader = who("servers:read")

    def states() -> dict[str, str]:
        return {status.id: status.state.value for status in gateway.server_statuses(reader)}

    await until(lambda: list(states().values()).count("ready") == 7)
    assert states()["hanging"] == "starting"
    with pytest.raises(ServerUnavailable):
        await call(gateway, "echo", {}, server="hanging")
    assert {server for server, _ in gateway.list_tools(who("tools:call"))} == {f"s{n}" for n in range(7)}


@pytest.mark.gen_test
async def test_servers_come_change_and_go_while_others_run(start_gateway: StartGateway) -> None:
    gateway = (await start_gateway(SCRIPTED)).services.gateway
    pid = (await call(gateway, "pid", {}, server="scripted")).content
    told: list[tuple[str, str]] = []
    stop = gateway.listen(lambda server, name, _data, _user: told.append((server, name)))
    definition = replace(gateway.definition("scripted"), name="second")
    await gateway.add_server(definition)
    with pytest.raises(InvalidParams):
        await gateway.add_server(definition)
    await until(lambda: ("second", "started") in told)
    second = (await call(gateway, "pid", {}, server="second")).content
    await gateway.replace_server(replace(definition, timeout=3))
    assert (await call(gateway, "pid", {}, server="second")).content == second
    await gateway.replace_server(replace(definition, args=(*definition.args, "--name", "other")))
    await until(lambda: told.count(("second", "started")) == 2)
    assert (await call(gateway, "pid", {}, server="second")).content != second
    await gateway.disable_server("second")
    with pytest.raises(ServerUnavailable):
        await gateway.start_server("second")
    await gateway.remove_server("second")
    with pytest.raises(ServerNotFound):
        await call(gateway, "pid", {}, server="second")
    assert (await call(gateway, "pid", {}, server="scripted")).content == pid
    stop()
    assert {server for server, name in told if name != "error"} == {"second"}


@pytest.mark.gen_test(timeout=30)
async def test_a_server_that_hangs_does_not_keep_the_lists_of_others(
    start_gateway: StartGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mcpgw.gateway._LISTING_SECONDS", 0.5, raising=False)
    gateway = (await start_gateway(offering() + offering("hung"))).services.gateway
    caller = Caller(who("tools:call"), "test")
    known = await gateway.list_resources(caller)
    assert len(known) == 4
    pid = next(one for one in children() if b"offering" in Path(f"/proc/{one}/cmdline").read_bytes())
    os.kill(pid, signal.SIGSTOP)
    try:
        for server in gateway._servers.values():  # as if both had changed
            assert isinstance(server, Server)
            for one in server._instances:
                server._lists.drop(one.backend)
        async with asyncio.timeout(5):
            assert await gateway.list_resources(caller) == known
            assert await gateway.list_prompts(caller)
    finally:
        os.kill(pid, signal.SIGCONT)


@pytest.mark.gen_test(timeout=30)
async def test_the_tools_of_an_instance_are_shown_to_its_owner_alone(start_gateway: StartGateway) -> None:
    gateway = (await start_gateway(SCRIPTED + 'isolation = "connection"\n')).services.gateway
    await until(lambda: gateway._servers["scripted"].state.takes_calls)

    def names(connection: str) -> set[str]:
        return {tool.name for _, tool in gateway.list_tools(who("tools:call"), connection=connection)}

    mine, other = (Caller(who("tools:call"), name) for name in ("mine", "other"))
    silent = SilentObserver()
    await gateway.call_tool(mine, "scripted", "grow", {"name": "pid_of_mine"}, observer=silent)
    await until(lambda: "pid_of_mine" in names("mine"))
    assert "pid_of_mine" not in names("other") | names("")
    with pytest.raises(ToolNotFound):
        await gateway.call_tool(other, "scripted", "pid_of_mine", {}, observer=silent)


@pytest.mark.gen_test(timeout=30)
async def test_what_is_watched_goes_on_under_another_definition(start_gateway: StartGateway) -> None:
    gateway = (await start_gateway(SCRIPTED)).services.gateway
    caller = Caller(who("tools:call"), "test")
    await gateway.subscribe_resource(caller, "scripted", "note:one")
    await gateway.replace_server(replace(gateway.definition("scripted"), env={"A": "1"}))
    server = gateway._servers["scripted"]
    assert isinstance(server, Server)
    await until(lambda: server.state.takes_calls)
    [instance] = server._instances
    assert instance.backend.resources.uris == ("note:one",)
    gateway.connection_ended("test")
    assert not instance.backend.resources.uris
