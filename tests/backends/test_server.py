"""One server as callers know it: who shares an instance, when one is there, and what is sent again."""

import asyncio
import json
import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import mcp_types as types
import pytest
from tornado.ioloop import IOLoop

from mcpgw.backends import mcp_requests
from mcpgw.backends.requests import Asker
from mcpgw.backends.server import Server
from mcpgw.errors import OutcomeUnknown, QueueFull, ServerUnavailable, ToolExecutionError
from mcpgw.server_definitions import ServerDefinition
from mcpgw.settings import CallSettings
from tests.servers.scripted_http import scripted_http
from tests.support.backends import (
    Announced,
    Heard,
    alive,
    children,
    recorded,
    scripted,
    serving,
    text_of,
    use,
)
from tests.support.waiting import until


def isolated(isolation: Any, *options: object, **changes: Any) -> ServerDefinition:
    """A scripted server with an instance for each."""
    return replace(scripted(*options), isolation=isolation, **changes)


async def recall(server: Server, user: str = "ann", connection: str = "") -> tuple[int, Any]:
    """The process of a caller's instance, and what it remembers."""
    pid, value = json.loads(text_of(await use(server, "recall", user=user, connection=connection)))
    return pid, value


@pytest.mark.gen_test(timeout=20)
async def test_what_a_caller_says_of_a_request_is_not_said_for_the_next(
    io_loop: IOLoop, tmp_path: Path
) -> None:
    record, meta = tmp_path / "record", {types.LOG_LEVEL_META_KEY: "debug", "example.org/mine": 1}
    async with serving(scripted("--record", record)) as server:
        with pytest.raises(ToolExecutionError):
            await server.request(
                Asker("ann", "a"), mcp_requests.read_resource("note:one", meta), observer=Heard()
            )
        await server.call_tool(Asker("ann", "a"), server.tools["echo"], {}, observer=Heard(), meta=meta)
        await use(server, "echo", user="bob")
    said = [message["params"]["_meta"] for message in recorded(record) if message["method"] == "tools/call"]
    assert [one.keys() - {"progressToken"} for one in said] == [meta.keys(), set()]


# --- what is sent again ---


@pytest.mark.parametrize("tool", ["die_once_reading", "die_once_idempotent"])
@pytest.mark.gen_test(timeout=20)
async def test_a_call_that_can_do_no_harm_is_sent_once_more(
    io_loop: IOLoop, tmp_path: Path, tool: str
) -> None:
    deaths = tmp_path / "deaths"
    async with serving(scripted("--deaths", deaths)) as server:
        heard = Heard()
        assert text_of(await use(server, tool, {"key": "a"}, heard=heard)) == "lives"
        assert deaths.read_text() == "a\na\n"
        began = time.monotonic()
        with pytest.raises(OutcomeUnknown):
            await use(server, tool, {"key": "b", "always": True})
        assert deaths.read_text() == "a\na\nb\nb\n"
        assert time.monotonic() - began < 4


@pytest.mark.gen_test(timeout=20)
async def test_a_call_that_may_have_run_is_not_sent_again(io_loop: IOLoop, tmp_path: Path) -> None:
    deaths = tmp_path / "deaths"
    async with serving(scripted("--deaths", deaths)) as server:
        with pytest.raises(OutcomeUnknown):
            await use(server, "die_once", {"key": "a"})
        await until(lambda: server.state.takes_calls)
        assert deaths.read_text() == "a\n"


@pytest.mark.gen_test(timeout=20)
async def test_a_killed_servers_calls_end_in_two_seconds_where_it_does_not_come_back(
    io_loop: IOLoop, tmp_path: Path
) -> None:
    note = tmp_path / "may-start"
    note.touch()
    definition = scripted("--at-start", "die-unless", "--unless", note, "--deaths", tmp_path / "deaths")
    async with serving(definition) as server:
        note.unlink()
        began = time.monotonic()
        with pytest.raises(OutcomeUnknown):
            await use(server, "die_once_reading", {"key": "a"})
        assert time.monotonic() - began < 2


@pytest.mark.gen_test(timeout=20)
async def test_a_call_that_an_http_server_never_took_is_sent_on_the_new_session(io_loop: IOLoop) -> None:
    async with scripted_http() as web:
        definition = ServerDefinition(name="web", transport="http", url=web.url)
        async with serving(definition) as server:
            for _ in range(3):
                web.sessions.clear()
                heard = Heard()
                assert text_of(await use(server, "echo", {"a": 1}, heard=heard)) == '{"a": 1}'


@pytest.mark.gen_test(timeout=20)
async def test_a_call_in_the_gap_between_two_sessions_waits_for_the_next(io_loop: IOLoop) -> None:
    async with serving(scripted(), retry_initial=0.3) as server:
        pid, _ = await recall(server)
        os.kill(pid, signal.SIGKILL)
        await until(lambda: not server.state.takes_calls)
        assert (await recall(server))[0] != pid


@pytest.mark.gen_test(timeout=20)
async def test_nobody_waits_for_a_server_that_fails_again_and_again(io_loop: IOLoop, tmp_path: Path) -> None:
    note = tmp_path / "may-start"
    note.touch()
    definition = scripted("--at-start", "die-unless", "--unless", note)
    async with serving(definition, retry_initial=0.3, retry_maximum=60) as server:
        pid, _ = await recall(server)
        note.unlink()
        os.kill(pid, signal.SIGKILL)
        await until(lambda: server.status.failures >= 2)
        began = time.monotonic()
        with pytest.raises(ServerUnavailable) as refused:
            await use(server, "recall")
        assert time.monotonic() - began < 0.2
        assert refused.value.retry_after_ms is not None


# --- isolation ---


@pytest.mark.gen_test(timeout=20)
async def test_two_users_of_a_user_server_never_share_a_process(io_loop: IOLoop) -> None:
    async with serving(isolated("user")) as server:
        users = [f"user-{number}" for number in range(6)]
        await asyncio.gather(*(use(server, "remember", {"value": user}, user=user) for user in users))
        found = {
            user: await recall(server, user, connection) for user in users for connection in ("one", "two")
        }
        assert {user: value for user, (_, value) in found.items()} == {user: user for user in users}
        assert len({pid for pid, _ in found.values()}) == len(users)
        assert {one.user for one in server.status.instances} == set(users)


@pytest.mark.gen_test(timeout=20)
async def test_two_connections_of_one_user_have_an_instance_each_until_they_end(io_loop: IOLoop) -> None:
    async with serving(isolated("connection", max_instances_per_user=2)) as server:
        await use(server, "remember", {"value": 1}, connection="one")
        await use(server, "remember", {"value": 2}, connection="two")
        (first, value), second = (
            await recall(server, connection="one"),
            await recall(server, connection="two"),
        )
        assert (value, second[1]) == (1, 2)
        assert first != second[0]
        with pytest.raises(QueueFull, match="2 instances of the server 'scripted' are yours"):
            await recall(server, connection="three")
        server.connection_ended("one")
        await until(lambda: not alive(first), seconds=3)
        assert (await recall(server, connection="three"))[1] is None
        assert await recall(server, connection="two") == second


@pytest.mark.gen_test(timeout=20)
async def test_there_are_never_more_instances_than_may_be(io_loop: IOLoop) -> None:
    async with serving(isolated("user", max_instances=2)) as server:
        await recall(server, "ann")
        await recall(server, "bob")
        with pytest.raises(QueueFull) as refused:
            await recall(server, "cat")
        assert refused.value.retry_after_ms is not None
        await recall(server, "ann")


@pytest.mark.gen_test(timeout=20)
async def test_what_waits_warm_is_given_to_one_user_and_replaced(io_loop: IOLoop) -> None:
    async with serving(isolated("user", warm=2)) as server:
        await until(lambda: [one.state for one in server.status.instances] == ["ready"] * 2)
        warm = {one.backend for one in server._instances}
        began = time.monotonic()
        await recall(server, "ann")
        assert time.monotonic() - began < 1
        [owned] = [one.backend for one in server._instances if one.user == "ann"]
        assert owned in warm
        await until(lambda: [one.state for one in server.status.instances] == ["ready"] * 3)
        await recall(server, "bob")
        assert len({(await recall(server, user))[0] for user in ("ann", "bob")}) == 2


@pytest.mark.gen_test(timeout=20)
async def test_the_death_of_one_users_instance_is_nothing_to_the_others(io_loop: IOLoop) -> None:
    announced = Announced()
    async with serving(isolated("user"), announced=announced) as server:
        ann, bob = await recall(server, "ann"), await recall(server, "bob")
        os.kill(ann[0], signal.SIGKILL)
        await until(lambda: not alive(ann[0]))
        assert await recall(server, "bob") == bob
        assert server.state == "ready"
        assert (await recall(server, "ann"))[0] != ann[0]
        assert announced.names("error") == ["starting", "started"]


@pytest.mark.gen_test(timeout=20)
async def test_what_an_instance_of_one_user_says_concerns_that_user_alone(io_loop: IOLoop) -> None:
    announced = Announced()
    async with serving(isolated("user"), announced=announced) as server:
        await use(server, "complain", {"text": "hello\n", "times": 1}, user="ann")
        await until(lambda: "log" in announced.names())
        assert [user for name, _, user in announced.entries if name == "log"] == ["ann"]


@pytest.mark.gen_test(timeout=20)
async def test_what_an_instance_lists_after_its_owner_has_used_it_is_seen_by_its_owner_alone(
    io_loop: IOLoop,
) -> None:
    announced, ann, bob = Announced(), Asker("ann", "one"), Asker("bob", "two")
    async with serving(isolated("user"), announced=announced) as server:
        await use(server, "grow", {"name": "anns"}, user="ann")
        await until(lambda: "tools_changed" in announced.names())
        assert [user for name, _, user in announced.entries if name == "tools_changed"] == ["ann"]
        assert "anns" in await server.known_tools(ann)
        assert "anns" not in await server.known_tools(bob)
        assert "anns" not in server.tools
        await recall(server, "bob")
        assert "anns" in await server.known_tools(ann)
        assert "anns" not in await server.known_tools(bob)
        assert server.speaker(bob) is not server.speaker(ann)


@pytest.mark.gen_test(timeout=30)
async def test_those_on_their_way_out_count_and_a_new_one_waits_for_them(io_loop: IOLoop) -> None:
    definition = isolated("connection", "--stubborn", max_instances=1, max_instances_per_user=1)
    pids: list[int] = []
    async with serving(definition, wait=False, stop_timeout=0.4) as server:
        for number in range(3):
            pids.append((await recall(server, connection=f"c{number}"))[0])
            assert [alive(pid) for pid in pids] == [False] * number + [True]
            server.connection_ended(f"c{number}")
        refused = 0
        for number in range(3, 7):
            try:
                calling = asyncio.create_task(recall(server, connection=f"c{number}"))
                await asyncio.sleep(0)
                server.connection_ended(f"c{number}")
                await calling
            except QueueFull:
                refused += 1
            except ServerUnavailable:
                pass
        assert refused, "they do not pile up"


# --- when there is an instance ---


@pytest.mark.gen_test(timeout=20)
async def test_a_lazy_server_whose_tools_were_asked_for_can_be_called_at_once(io_loop: IOLoop) -> None:
    async with serving(replace(scripted(), lazy=True)) as server:
        server.wake()
        await recall(server)


@pytest.mark.gen_test(timeout=20)
async def test_another_idle_time_holds_for_instances_that_run(io_loop: IOLoop) -> None:
    async with serving(scripted()) as server:
        pid, _ = await recall(server)
        assert server.update(replace(server.definition, idle_stop=0.2))
        await until(lambda: not alive(pid), seconds=5)


@pytest.mark.gen_test(timeout=20)
async def test_a_lazy_server_is_started_by_its_first_call(io_loop: IOLoop) -> None:
    before, announced = children(), Announced()
    async with serving(replace(scripted(), lazy=True), announced=announced) as server:
        assert server.state == "idle"
        assert children() == before
        first, second = await asyncio.gather(recall(server, "ann"), recall(server, "bob"))
        assert first == second
        assert announced.names("error") == ["status_update idle", "starting", "started"]


@pytest.mark.gen_test(timeout=20)
async def test_a_call_that_starts_a_server_that_cannot_start_ends_with_its_first_try(io_loop: IOLoop) -> None:
    definition = replace(scripted("--at-start", "die"), lazy=True)
    async with serving(definition, retry_initial=60, retry_maximum=60) as server:
        with pytest.raises(ServerUnavailable) as refused:
            await recall(server)
        assert refused.value.details["state"] == "retrying"


@pytest.mark.parametrize("isolation", ["shared", "user"])
@pytest.mark.gen_test(timeout=20)
async def test_an_instance_that_nobody_uses_is_stopped_and_comes_back_with_the_next_call(
    io_loop: IOLoop, isolation: Any
) -> None:
    announced = Announced()
    async with serving(isolated(isolation, idle_stop=0.3), announced=announced) as server:
        first, _ = await recall(server)
        held = asyncio.create_task(use(server, "hold"))
        began = time.monotonic()
        await until(lambda: time.monotonic() - began > 0.8)
        assert alive(first), "it is in use"
        await use(server, "release")
        await held
        await until(lambda: not alive(first), seconds=3)
        assert server.state == "idle"
        assert server.is_open
        assert "recall" in server.tools
        assert (await recall(server))[0] != first
        assert announced.names("error") == [
            "starting",
            "started",
            "status_update idle",
            "starting",
            "started",
        ]


@pytest.mark.gen_test(timeout=20)
async def test_a_start_that_takes_long_is_not_an_idle_time(io_loop: IOLoop) -> None:
    definition = replace(scripted("--at-start", "no-answers"), idle_stop=0.1)
    async with serving(definition, wait=False) as server:
        began = time.monotonic()
        await until(lambda: time.monotonic() - began > 0.4)
        assert server.state == "starting"


@pytest.mark.gen_test(timeout=20)
async def test_an_operator_stops_starts_and_restarts(io_loop: IOLoop) -> None:
    announced = Announced()
    async with serving(scripted(), announced=announced) as server:
        first, _ = await recall(server)
        await server.stop()
        assert not alive(first)
        assert server.state == "idle"
        assert not server.is_open
        with pytest.raises(ServerUnavailable, match="is idle"):
            await recall(server)
        server.start()
        await until(lambda: server.state.takes_calls)
        second, _ = await recall(server)
        await server.restart()
        await until(lambda: server.state.takes_calls)
        assert not alive(second)
        await server.disable()
        assert server.state == "disabled"
        with pytest.raises(ServerUnavailable, match="is disabled"):
            await recall(server)
        await server.enable()
        await until(lambda: server.state.takes_calls)
    begun = ["starting", "started"]
    restarted = ["starting", "restarted"]
    assert announced.names("error") == [
        *begun,
        "stopped",
        *begun,
        *restarted,
        "disabled",
        "enabled",
        *begun,
        "stopped",
    ]


@pytest.mark.gen_test(timeout=20)
async def test_a_definition_that_needs_no_other_process_is_taken_over_in_place(io_loop: IOLoop) -> None:
    async with serving(scripted()) as server:
        pid, _ = await recall(server)
        assert server.update(replace(server.definition, timeout=5.0, approval="required"))
        assert server.definition.timeout == 5.0
        assert not server.update(replace(server.definition, args=("other",)))
        assert (await recall(server))[0] == pid


@pytest.mark.gen_test(timeout=20)
async def test_a_server_that_dies_tells_of_its_tries(io_loop: IOLoop) -> None:
    announced = Announced()
    async with serving(scripted(), announced=announced, failed_after=2) as server:
        pid, _ = await recall(server)
        os.kill(pid, signal.SIGKILL)
        await until(lambda: "restarted" in announced.names())
        assert announced.names("error") == ["starting", "started", "retrying", "starting", "restarted"]
        [data] = [data for name, data, _ in announced.entries if name == "retrying"]
        assert data["reason"] == "its process was ended by signal 9"
        assert data["failures"] == 1
        assert abs(data["nextTryAt"] - time.time() * 1000) < 2000


@pytest.mark.gen_test(timeout=20)
async def test_a_tool_with_a_schema_that_cannot_be_used_costs_no_other_tool(io_loop: IOLoop) -> None:
    announced = Announced()
    async with serving(scripted("--odd-tools"), announced=announced) as server:
        assert {"echo", "odd", "none"} <= server.tools.keys()
        assert server.tools["odd"].input_schema == {"type": "object"}
        assert server.tools["odd"].raw == {"name": "odd", "inputSchema": {"type": "object"}, "x-kept": 1}
        assert None not in server.tools
        faults = [data["reason"] for name, data, _ in announced.entries if name == "error"]
        assert "its tool 'odd' has a schema that cannot be used; nothing is checked by it" in faults
        assert "tools/list held '', which is not as the protocol has it; it is left out" in faults
        await use(server, "echo")


@pytest.mark.gen_test(timeout=20)
async def test_calls_wait_in_line_where_all_slots_are_taken(io_loop: IOLoop) -> None:
    async with serving(scripted(), max_calls=1) as server:
        held = asyncio.create_task(use(server, "tick", {"times": 2, "pause": 0.2}))
        heard = Heard()
        await until(lambda: any(one.calls for one in server.status.instances))
        await use(server, "echo", heard=heard)
        assert heard.positions == [1]
        assert heard.starts == 1
        await held


@pytest.mark.gen_test(timeout=20)
async def test_a_question_over_stdio_goes_to_the_one_caller_it_can_be_for(io_loop: IOLoop) -> None:
    async with serving(scripted()) as server:
        first, second = Heard(), Heard()
        asked = asyncio.create_task(use(server, "elicit", heard=first))
        await until(lambda: first.asked)
        assert (first.asked[0].kind, first.asked[0].message) == ("elicitation", "Who?")
        assert json.loads(text_of(await use(server, "asked"))) == {"action": "decline"}
        # Two callers are open: it could be either's, and goes to none.
        other = asyncio.create_task(use(server, "elicit", heard=second, user="bob"))
        await until(lambda: first.starts and second.starts)
        await use(server, "echo")
        await use(server, "echo")
        assert len(first.asked) == 1
        assert second.asked == []
        for task in (asked, other):
            task.cancel()
        await asyncio.wait({asked, other})
        # What they have caused may still come: nobody else is asked.
        third = Heard()
        late = asyncio.create_task(use(server, "elicit", heard=third, user="cat"))
        await until(lambda: third.starts)
        await use(server, "echo", user="cat")
        assert third.asked == []
        late.cancel()
        await asyncio.wait({late})


@pytest.mark.gen_test(timeout=20)
async def test_the_gateway_ends_every_instance_of_a_server(io_loop: IOLoop) -> None:
    tasks, before = asyncio.all_tasks(), children()
    async with serving(isolated("user", warm=1), calls=CallSettings()) as server:
        await asyncio.gather(*(recall(server, user) for user in "abc"))
        assert len(server.status.instances) == 4
    assert server.state == "stopped"
    await until(lambda: children() == before, seconds=3)
    await until(lambda: asyncio.all_tasks() == tasks, seconds=3)
    with pytest.raises(ServerUnavailable):
        await recall(server)
