"""Servers that run in one worker alone, and are used in another one."""

import asyncio
import json
import os
import signal
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tornado.ioloop import IOLoop

from mcpgw.backends import mcp_requests
from mcpgw.backends.requests import Asker, InputAnswer, InputRequest
from mcpgw.backends.status import BackendState
from mcpgw.backends.tools import ToolResult
from mcpgw.errors import (
    OutcomeUnknown,
    QueueFull,
    ServerUnavailable,
    TooLarge,
    ToolExecutionError,
)
from mcpgw.settings import CallSettings
from tests.support.backends import Heard, recorded, scripted, text_of
from tests.support.joined import Pair, paired
from tests.support.waiting import until

PATIENT = CallSettings(retry_wait=10)


def single(*options: object, **changes: Any) -> Any:
    """A scripted server that runs in one worker."""
    return replace(scripted(*options), single=True, **changes)


async def use(  # noqa: PLR0917 - as the one for local servers
    pair: Pair,
    tool: str,
    arguments: Mapping[str, Any] | None = None,
    heard: Heard | None = None,
    user: str = "ann",
    connection: str = "a",
    meta: Mapping[str, Any] | None = None,
) -> ToolResult:
    """Call a tool where the server does not run."""
    remote = pair.remote
    async with asyncio.timeout(15):
        return await remote.call_tool(
            Asker(user, connection), remote.tools[tool], arguments or {}, observer=heard or Heard(), meta=meta
        )


@pytest.mark.gen_test(timeout=30)
async def test_a_single_server_is_used_in_all_workers_and_runs_in_one(io_loop: IOLoop) -> None:
    async with paired(single()) as pair:
        here = await pair.local.call_tool(Asker("bob"), pair.local.tools["pid"], {}, observer=Heard())
        assert text_of(await use(pair, "pid")) == text_of(here)
        assert pair.remote.tools.keys() == pair.local.tools.keys()
        assert pair.remote.tools["echo"].raw == pair.local.tools["echo"].raw
        assert pair.remote.offer == pair.local.offer
        assert pair.remote.status == pair.local.status
        heard, arguments = Heard(), {"a": [1, None, "ü", 2**70, 0.1]}
        result = await use(pair, "echo", arguments, heard)
        assert (result.structured_content, heard.starts) == (arguments, 1)
        assert (await use(pair, "raw", {"result": {"content": [], "isError": True}})).is_error


@pytest.mark.gen_test(timeout=30)
async def test_what_is_said_while_a_call_runs_comes_in_order_before_its_end(io_loop: IOLoop) -> None:
    async with paired(single()) as pair:
        heard = Heard()
        await use(pair, "progress", {"steps": 50}, heard)
        assert heard.steps == [(step, 50, str(step)) for step in range(1, 51)]
        heard = Heard()
        await use(pair, "log", {}, heard)
        assert heard.logs == [("warning", "scripted", {"line": 1, "none": None})]


@pytest.mark.gen_test(timeout=30)
async def test_a_servers_question_goes_to_the_caller_in_the_other_worker(io_loop: IOLoop) -> None:
    async def give(request: InputRequest) -> InputAnswer:
        assert request.message == "Who?"
        return InputAnswer("accept", {"name": "Ann"})

    async with paired(single()) as pair:
        calling = asyncio.create_task(use(pair, "elicit", {}, Heard(answer=give)))
        await until(lambda: not calling.done())

        async def answered() -> Any:
            return json.loads(text_of(await use(pair, "asked")))

        while (answer := await answered()) is None:
            await asyncio.sleep(0.01)
        assert answer == {"action": "accept", "content": {"name": "Ann"}}
        calling.cancel()
        await asyncio.wait({calling})


@pytest.mark.gen_test(timeout=30)
async def test_a_question_that_is_open_ends_with_its_call(io_loop: IOLoop) -> None:
    ended = asyncio.Event()

    async def wait(_: InputRequest) -> InputAnswer:
        try:
            await asyncio.sleep(1000)
        finally:
            ended.set()
        raise AssertionError

    async with paired(single()) as pair:
        heard = Heard(answer=wait)
        calling = asyncio.create_task(use(pair, "elicit", {}, heard))
        await until(lambda: heard.asked)
        calling.cancel()
        async with asyncio.timeout(5):
            await ended.wait()


@pytest.mark.gen_test(timeout=30)
async def test_a_call_that_is_cancelled_is_cancelled_at_the_server(io_loop: IOLoop, tmp_path: Path) -> None:
    record = tmp_path / "record"
    async with paired(single("--record", record)) as pair:
        heard = Heard()
        calling = asyncio.create_task(use(pair, "never", {}, heard))
        await until(lambda: heard.starts)
        calling.cancel()
        await until(
            lambda: any(one.get("method") == "notifications/cancelled" for one in recorded(record)),
        )
        assert not pair.servers[pair.owner]._singles.host._open


@pytest.mark.gen_test(timeout=30)
async def test_errors_of_a_server_are_the_same_in_all_workers(io_loop: IOLoop) -> None:
    async with paired(single(), max_message_size=100_000) as pair:
        with pytest.raises(ToolExecutionError) as refused:
            await use(pair, "refuse", {"error": {"code": -7, "message": "no", "data": {"a": 1}}})
        assert refused.value.details == {"code": -7, "message": "no", "data": {"a": 1}}
        with pytest.raises(TooLarge):
            await use(pair, "huge", {"size": 200_000, "id": "first"})
        with pytest.raises(ToolExecutionError):
            await pair.remote.request(
                Asker("ann"), mcp_requests.read_resource("note:one", None), observer=Heard()
            )


@pytest.mark.gen_test(timeout=30)
async def test_large_results_come_whole_and_small_ones_beside_them(io_loop: IOLoop) -> None:
    async with paired(single()) as pair:
        large = [use(pair, "huge", {"size": 5_000_000, "id": "first"}) for _ in range(6)]
        small = [use(pair, "echo", {"n": n}) for n in range(50)]
        results = await asyncio.gather(*large, *small)
        assert [len(text_of(one)) for one in results[:6]] == [5_000_000] * 6
        assert [one.structured_content["n"] for one in results[6:]] == list(range(50))
        echoed = await use(pair, "echo", {"text": "ß" * 300_000})
        assert echoed.structured_content == {"text": "ß" * 300_000}


@pytest.mark.gen_test(timeout=30)
async def test_users_of_all_workers_take_turns_in_one_line(io_loop: IOLoop) -> None:
    async with paired(single(), max_calls=1, max_waiting=2) as pair:
        heard = [Heard() for _ in range(3)]
        first = asyncio.create_task(use(pair, "hold", {}, heard[0]))
        await until(lambda: heard[0].starts)
        local = asyncio.create_task(
            pair.local.call_tool(Asker("bob"), pair.local.tools["echo"], {}, observer=heard[1])
        )
        await until(lambda: heard[1].positions)
        second = asyncio.create_task(use(pair, "echo", {}, heard[2]))
        await until(lambda: heard[2].positions)
        assert (heard[1].positions[0], heard[2].positions[0]) == (1, 2)
        with pytest.raises(QueueFull):
            await use(pair, "echo")
        first.cancel()
        await asyncio.gather(local, second)


@pytest.mark.gen_test(timeout=30)
async def test_what_a_caller_says_beside_a_call_reaches_the_server(io_loop: IOLoop, tmp_path: Path) -> None:
    record = tmp_path / "record"
    async with paired(single("--record", record)) as pair:
        await use(pair, "echo", {"a": 1}, meta={"example.org/mine": 1})
        [call] = [one for one in recorded(record) if one["method"] == "tools/call"]
        assert call["params"]["_meta"]["example.org/mine"] == 1


@pytest.mark.gen_test(timeout=30)
async def test_lists_are_told_and_the_last_of_them_is_kept(io_loop: IOLoop) -> None:
    async with paired(single()) as pair:
        assert await pair.remote.list(Asker("ann"), "resources") == []
        assert await pair.remote.list(Asker("ann"), "prompts") == []
        assert pair.remote.last_listed(Asker("ann"), "resources") == []


# --- how it is ---------------------------------------------------------------------------------------------


@pytest.mark.gen_test(timeout=30)
async def test_a_change_of_the_tools_is_known_in_all_workers(io_loop: IOLoop) -> None:
    async with paired(single()) as pair:
        told: list[str] = []
        pair.servers[pair.user].listen(lambda _id, name, _data, _user: told.append(name))
        own: list[str] = []
        pair.servers[pair.user].listen(lambda _id, name, _data, _user: own.append(name), elsewhere=False)
        await use(pair, "grow", {"name": "another"})
        await until(lambda: "tools_changed" in told)
        assert "another" in pair.remote.tools
        assert not own


@pytest.mark.gen_test(timeout=30)
async def test_an_operator_acts_on_it_in_any_worker(io_loop: IOLoop) -> None:
    async with paired(single()) as pair:
        elsewhere, name = pair.servers[pair.user], pair.definition.name
        before = text_of(await use(pair, "pid"))
        await elsewhere.restart_server(name)
        await until(lambda: pair.remote.is_open)
        assert text_of(await use(pair, "pid")) != before
        await elsewhere.stop_server(name)
        await until(lambda: pair.remote.is_held)
        assert (pair.local.state, pair.remote.state) == (BackendState.IDLE, BackendState.IDLE)
        with pytest.raises(ServerUnavailable, match="idle"):
            await use(pair, "echo")
        await elsewhere.start_server(name)
        await until(lambda: pair.remote.is_open)
        await use(pair, "echo")


@pytest.mark.gen_test(timeout=30)
async def test_a_lazy_one_is_started_by_a_call_in_another_worker(io_loop: IOLoop) -> None:
    async with paired(single(lazy=True), wait=False) as pair:
        await until(lambda: pair.remote.is_open)
        assert pair.remote.state is BackendState.IDLE
        tools = await pair.remote.known_tools(Asker("ann"))
        assert "echo" in tools
        await use(pair, "echo")


@pytest.mark.gen_test(timeout=30)
async def test_it_is_switched_off_and_on_and_redefined_in_each_worker(io_loop: IOLoop) -> None:
    async with paired(single()) as pair:
        name = pair.definition.name
        for servers in pair.servers.values():
            await servers.disable_server(name)
        assert pair.remote.state is BackendState.DISABLED
        with pytest.raises(ServerUnavailable):
            await pair.remote.call_tool(Asker("ann"), pair.remote.tools["echo"], {}, observer=Heard())
        for servers in pair.servers.values():
            await servers.enable_server(name)
        await until(lambda: pair.remote.is_open)
        first = text_of(await use(pair, "pid"))
        pair.definition = replace(pair.definition, env={"A": "1"})
        for servers in pair.servers.values():
            await servers.replace_server(pair.definition)
        await until(lambda: pair.remote.is_open and pair.local.state.takes_calls)
        assert text_of(await use(pair, "pid")) != first
        everywhere = replace(pair.definition, single=False)
        for servers in pair.servers.values():
            await servers.replace_server(everywhere)
        both = [servers._servers[name] for servers in pair.servers.values()]
        await until(lambda: all(one.state.takes_calls for one in both))
        pids = {
            text_of(await one.call_tool(Asker("ann"), one.tools["pid"], {}, observer=Heard())) for one in both
        }
        assert len(pids) == 2
        for servers in pair.servers.values():
            await servers.replace_server(pair.definition)
        await until(lambda: pair.remote.is_open)
        await use(pair, "echo")


# --- resources ---------------------------------------------------------------------------------------------


@pytest.mark.gen_test(timeout=30)
async def test_what_is_watched_in_another_worker_is_told_there_until_nobody_watches(
    io_loop: IOLoop, tmp_path: Path
) -> None:
    record = tmp_path / "record"
    async with paired(single("--record", record)) as pair:
        told: list[Any] = []
        pair.servers[pair.user].listen(lambda _id, name, data, _user: told.append((name, data.get("uri"))))
        ann = Asker("ann", "a")
        with pytest.raises(ToolExecutionError):
            await pair.remote.watch_resource(ann, "no:one")
        await pair.remote.watch_resource(ann, "note:one")
        await use(pair, "touch", {"uri": "note:one"})
        await until(lambda: ("resource_updated", "note:one") in told)
        await pair.remote.unwatch_resource(ann, "note:one")
        await until(lambda: not pair.local.watchers)
        await pair.remote.watch_resource(ann, "note:two")
        pair.servers[pair.user].connection_ended("a")
        await until(lambda: not pair.local.watchers)
        assert not pair.servers[pair.owner]._singles.host._connections


@pytest.mark.gen_test(timeout=60)
async def test_watching_goes_on_where_the_owner_was_started_again_and_ends_with_the_watchers_worker(
    io_loop: IOLoop,
) -> None:
    async with paired(single()) as pair:
        await pair.remote.watch_resource(Asker("ann", "a"), "note:one")
        await pair.kill(pair.owner)
        assert pair.remote.state is BackendState.RETRYING
        await pair.come(pair.owner)
        await until(lambda: pair.remote.is_open)
        await until(lambda: bool(pair.local.watchers))
        [instance] = pair.local._instances
        await until(lambda: instance.backend.resources.uris == ("note:one",))
        await pair.kill(pair.user)
        assert not pair.local.watchers
        assert not instance.backend.resources.uris


# --- what dies ---------------------------------------------------------------------------------------------


@pytest.mark.gen_test(timeout=60)
async def test_calls_that_the_owner_takes_with_it_may_have_run(io_loop: IOLoop) -> None:
    async with paired(single()) as pair:
        heard = Heard()
        calling = asyncio.create_task(use(pair, "never", {}, heard))
        await until(lambda: heard.starts)
        tools = pair.remote.tools
        await pair.kill(pair.owner)
        with pytest.raises(OutcomeUnknown):
            await calling
        with pytest.raises(ServerUnavailable, match="retrying") as refused:
            await pair.remote.call_tool(Asker("ann"), tools["echo"], {}, observer=Heard())
        assert "worker" in refused.value.details["reason"]
        await pair.come(pair.owner)
        await until(lambda: pair.remote.is_open)
        await use(pair, "echo")


@pytest.mark.gen_test(timeout=60)
async def test_a_call_that_may_be_repeated_is_sent_to_the_owner_that_was_started_again(
    io_loop: IOLoop, tmp_path: Path
) -> None:
    note = tmp_path / "may-answer"
    async with paired(
        single("--at-start", "no-answers", "--unless", note, "--deaths", tmp_path / "deaths"),
        wait=False,
        calls=PATIENT,
    ) as pair:
        note.touch()
        await until(lambda: pair.remote.is_open)
        pid = int(text_of(await use(pair, "pid")))
        note.unlink()  # from now on it reads, and does nothing
        (tmp_path / "deaths").write_text("k\n")
        heard = Heard()
        calling = asyncio.create_task(use(pair, "die_once_reading", {"key": "k"}, heard))
        waiting = asyncio.create_task(use(pair, "die_once", {"key": "k"}))
        await until(lambda: heard.starts)
        await pair.kill(pair.owner)
        note.touch()
        later = asyncio.create_task(use(pair, "pid"))
        await pair.come(pair.owner)
        assert text_of(await calling) == "lives"
        with pytest.raises(OutcomeUnknown):
            await waiting
        assert int(text_of(await later)) != pid


@pytest.mark.gen_test(timeout=60)
async def test_calls_of_a_worker_that_dies_are_cancelled_at_the_server(
    io_loop: IOLoop, tmp_path: Path
) -> None:
    record = tmp_path / "record"
    async with paired(single("--record", record)) as pair:
        heard = Heard()
        calling = asyncio.create_task(use(pair, "never", {}, heard))
        await until(lambda: heard.starts)
        await pair.kill(pair.user)
        await until(
            lambda: any(one.get("method") == "notifications/cancelled" for one in recorded(record)),
        )
        assert not pair.servers[pair.owner]._singles.host._open
        calling.cancel()
        await asyncio.wait({calling})


@pytest.mark.gen_test(timeout=30)
async def test_a_server_that_dies_fails_in_all_workers_alike_and_comes_back(
    io_loop: IOLoop, tmp_path: Path
) -> None:
    async with paired(single("--deaths", tmp_path / "deaths")) as pair:
        with pytest.raises(OutcomeUnknown):
            await use(pair, "die_once", {"key": "a"})
        assert text_of(await use(pair, "die_once_reading", {"key": "b"})) == "lives"
        os.kill(int(text_of(await use(pair, "pid"))), signal.SIGKILL)
        await until(lambda: not pair.local.state.takes_calls)
        await until(lambda: pair.remote.is_open)
        await use(pair, "echo")


@pytest.mark.gen_test(timeout=30)
async def test_a_worker_that_is_ending_begins_nothing_for_others_and_lets_what_is_open_end(
    io_loop: IOLoop,
) -> None:
    async with paired(single()) as pair:
        owner, heard = pair.servers[pair.owner], Heard()
        calling = asyncio.create_task(use(pair, "hold", {}, heard))
        await until(lambda: heard.starts)
        owner.begin_to_serve_none()
        await owner.wait_served(0.01)
        assert not calling.done()
        await until(lambda: not pair.remote.is_open)
        with pytest.raises(ServerUnavailable):
            await use(pair, "echo")
        await pair.local.call_tool(Asker("bob"), pair.local.tools["release"], {}, observer=Heard())
        await calling
        async with asyncio.timeout(5):
            await owner.wait_served(5)
