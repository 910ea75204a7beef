"""Backends over stdio: real processes that behave well, badly, and end."""

import asyncio
import json
import logging
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tornado.ioloop import IOLoop

from mcpgw.backends.reaper import ProcessReaper
from mcpgw.backends.requests import Asker
from mcpgw.backends.stdio import StdioTransport
from mcpgw.errors import OutcomeUnknown, ServerUnavailable, TooLarge, ToolExecutionError
from mcpgw.server_definitions import ServerDefinition
from tests.support.backends import (
    SERVERS,
    Heard,
    alive,
    call,
    children,
    open_files,
    pid_of,
    ready,
    recorded,
    running,
    scripted,
    text_of,
)
from tests.support.waiting import until

MEBIBYTE = 1024 * 1024


@pytest.mark.gen_test(timeout=20)
async def test_arguments_reach_the_server_whole_and_nulls_stay_nulls(io_loop: IOLoop) -> None:
    arguments = {"none": None, "nested": {"none": None, "list": [None, 1.5, "é", "\u0000"]}, "big": 2**60}
    async with running(scripted()) as [backend]:
        result = await call(backend, "echo", arguments)
        assert json.loads(text_of(result)) == arguments
        assert result.structured_content == arguments


@pytest.mark.gen_test(timeout=20)
async def test_results_are_handed_on_as_they_were_sent(io_loop: IOLoop) -> None:
    block = {
        "type": "text",
        "text": "x",
        "annotations": {"priority": 1},
        "_meta": {"a": None},
        "unknown": [1],
    }
    link = {"type": "resource_link", "uri": "demo://1", "name": "one", "mimeType": "text/plain", "extra": {}}
    sent = {"content": [block, link], "structuredContent": None, "isError": True, "_meta": {"trace": "1"}}
    async with running(scripted()) as [backend]:
        result = await call(backend, "raw", {"result": sent})
        assert result.content == [block, link]
        assert result.has_structured_content
        assert result.structured_content is None
        assert result.is_error
        assert result.meta == {"trace": "1"}


@pytest.mark.gen_test(timeout=20)
async def test_what_is_no_tool_result_is_the_servers_error(io_loop: IOLoop) -> None:
    async with running(scripted()) as [backend]:
        wrongs: list[Any] = [{"content": "text"}, {"content": [{"type": "text"}]}, []]
        for wrong in wrongs:
            with pytest.raises(ToolExecutionError):
                await call(backend, "raw", {"result": wrong}, seconds=3)
        await call(backend, "echo")


@pytest.mark.parametrize("code", [-32098, -32097, -32096, -32095, -32000, -32600])
@pytest.mark.gen_test(timeout=20)
async def test_a_servers_own_error_is_never_taken_for_a_fault_of_the_connection(
    io_loop: IOLoop, code: int
) -> None:
    error = {"code": code, "message": "Session terminated", "data": {"why": None}}
    async with running(scripted()) as [backend]:
        with pytest.raises(ToolExecutionError) as refused:
            await call(backend, "refuse", {"error": error})
        assert refused.value.details == error
        await call(backend, "echo")


@pytest.mark.gen_test(timeout=20)
async def test_progress_comes_in_order_and_before_the_response(io_loop: IOLoop) -> None:
    heard = Heard()
    async with running(scripted()) as [backend]:
        await call(backend, "progress", {"steps": 300}, heard=heard)
        assert heard.steps == [(step, 300, f"{step}") for step in range(1, 301)]


@pytest.mark.gen_test(timeout=20)
async def test_logs_go_to_the_call_that_is_open_and_to_none_where_two_are(io_loop: IOLoop) -> None:
    alone, first, second = Heard(), Heard(), Heard()
    async with running(scripted()) as [backend]:
        await call(backend, "log", heard=alone)
        assert alone.logs == [("warning", "scripted", {"line": 1, "none": None})]
        other = asyncio.create_task(call(backend, "hold", heard=first))
        await call(backend, "echo")
        await call(backend, "log", heard=second)
        await call(backend, "release")
        await other
        assert first.logs == second.logs == []


@pytest.mark.gen_test(timeout=20)
async def test_what_is_logged_soon_after_a_call_was_cancelled_goes_to_no_other_call(io_loop: IOLoop) -> None:
    heard = Heard()
    async with running(scripted()) as [backend]:
        abandoned = asyncio.create_task(call(backend, "never"))
        await asyncio.sleep(0)
        abandoned.cancel()
        with pytest.raises(asyncio.CancelledError):
            await abandoned
        await call(backend, "log", heard=heard)
        assert heard.logs == []


@pytest.mark.gen_test(timeout=20)
async def test_who_cancelled_a_call_is_not_remembered_for_longer_than_it_matters(
    io_loop: IOLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mcpgw.backends.connection._ABANDONED", 0.0)
    async with running(scripted()) as [backend]:
        for number in range(20):
            asker = Asker("ann", f"connection {number}")
            calling = backend.call_tool("never", {}, observer=Heard(), asker=asker)
            abandoned = asyncio.create_task(calling)
            await asyncio.sleep(0)
            abandoned.cancel()
            with pytest.raises(asyncio.CancelledError):
                await abandoned
        connection = backend._connection
        assert connection is not None
        assert len(connection._abandoned) == 1


@pytest.mark.gen_test(timeout=20)
async def test_a_server_that_refuses_the_level_of_its_logs_is_ready_all_the_same(io_loop: IOLoop) -> None:
    async with running(scripted()) as [backend]:  # it declares `logging` and refuses logging/setLevel
        assert backend.status.protocol_version == "2025-11-25"
        assert backend.status.server_name == "scripted"


@pytest.mark.gen_test(timeout=20)
async def test_the_server_is_told_of_a_cancelled_call(io_loop: IOLoop, tmp_path: Path) -> None:
    record = tmp_path / "record"
    async with running(scripted("--record", record)) as [backend]:
        task = asyncio.create_task(call(backend, "never"))
        await until(lambda: any(m.get("method") == "tools/call" for m in recorded(record)))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: any(m["method"] == "notifications/cancelled" for m in recorded(record)))
        [sent] = [m for m in recorded(record) if m["method"] == "tools/call"]
        [told] = [m for m in recorded(record) if m["method"] == "notifications/cancelled"]
        assert told["params"]["requestId"] == sent["id"]
        await call(backend, "echo")


@pytest.mark.gen_test(timeout=20)
async def test_a_call_that_is_never_answered_holds_up_no_other(io_loop: IOLoop) -> None:
    async with running(scripted()) as [backend]:
        hung = [asyncio.create_task(call(backend, "never", seconds=1)) for _ in range(16)]
        began = time.monotonic()
        for _ in range(20):
            await call(backend, "echo", seconds=1)
        assert time.monotonic() - began < 1
        for task in hung:
            with pytest.raises(TimeoutError):
                await task
        assert time.monotonic() - began < 2


@pytest.mark.parametrize("kill", ["kill", "exit"])
@pytest.mark.gen_test(timeout=20)
async def test_death_in_mid_call_ends_it_at_once_and_the_server_is_back(io_loop: IOLoop, kill: str) -> None:
    async with running(scripted(), scripted(name="other")) as [backend, other]:
        calls = [asyncio.create_task(call(backend, "never")) for _ in range(5)]
        pid = await pid_of(backend)
        kept = asyncio.create_task(call(other, "hold"))
        await call(other, "echo")
        died = time.monotonic()
        if kill == "kill":
            os.kill(pid, signal.SIGKILL)
        else:
            calls.append(asyncio.create_task(call(backend, "exit", {"code": 7})))
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert time.monotonic() - died < 1
        assert {type(outcome) for outcome in outcomes} == {OutcomeUnknown}
        words = (
            "its process was ended by signal 9" if kill == "kill" else "its process ended with exit code 7"
        )
        assert words in str(outcomes[0])
        with pytest.raises(ServerUnavailable) as refused:
            await call(backend, "echo")
        assert refused.value.details["state"] == "retrying"
        assert refused.value.details["nextTryAt"] > 0
        await ready(backend, seconds=5)
        assert await pid_of(backend) != pid
        await call(other, "release")
        await kept


@pytest.mark.gen_test(timeout=20)
async def test_death_while_idle_is_noticed_without_a_call(io_loop: IOLoop) -> None:
    async with running(scripted()) as [backend]:
        pid = await pid_of(backend)
        os.kill(pid, signal.SIGKILL)
        await until(lambda: backend.status.state != "ready", seconds=2)
        assert backend.status.reason == "its process was ended by signal 9"
        await ready(backend)


GARBAGE = {
    "lines of text": ["Listening on stdio...\n", "\x1b[31mred\x1b[0m\n"],
    "bytes that are not UTF-8": ["\xff\xfe\xfa\n"],
    "an empty line": ["\n", "  \r\n", "\n"],
    "JSON that is no JSON-RPC": [
        "[]\n",
        "{}\n",
        "null\n",
        '{"jsonrpc":"1.0","id":%ID,"result":{}}\n',
        "17\n",
    ],
    "an unknown id": [
        '{"jsonrpc":"2.0","id":999999,"result":{}}\n',
        '{"jsonrpc":"2.0","id":"x","result":{}}\n',
    ],
    "an answer without an id": ['{"jsonrpc":"2.0","id":null,"error":{"code":1,"message":"x"}}\n'],
    "deep nesting": ["[" * 100_000 + "\n"],
    "half a line, ended later": ['{"jsonrpc":"2.0","method":"notifications/', 'message"}\n'],
    "an unknown notification": ['{"jsonrpc":"2.0","method":"notifications/unheard","params":{"a":1}}\n'],
    "a malformed notification": [
        '{"jsonrpc":"2.0","method":"notifications/progress","params":{"progress":"x"}}\n'
    ],
    "NUL bytes": ["\0" * 1000 + "\n"],
    "progress beyond every number": [
        '{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":%ID,"progress":1'
        + "0" * 400
        + "}}\n"
    ],
}


@pytest.mark.parametrize("lines", GARBAGE.values(), ids=GARBAGE.keys())
@pytest.mark.gen_test(timeout=20)
async def test_garbage_on_stdout_costs_no_call(io_loop: IOLoop, lines: list[str]) -> None:
    async with running(scripted()) as [backend]:
        pid = await pid_of(backend)
        held = asyncio.create_task(call(backend, "hold"))
        assert text_of(await call(backend, "bytes", {"lines": lines}, seconds=5)) == "done"
        await call(backend, "release")
        await held
        assert await pid_of(backend) == pid


@pytest.mark.gen_test(timeout=20)
async def test_bytes_that_are_not_utf_8_inside_a_string_cost_only_themselves(io_loop: IOLoop) -> None:
    line = '{"jsonrpc":"2.0","id":%ID,"result":{"content":[{"type":"text","text":"a\xffb"}]}}\n'
    async with running(scripted()) as [backend]:
        assert (
            text_of(await call(backend, "bytes", {"lines": [line], "silent": True}, seconds=3)) == "a\ufffdb"
        )


@pytest.mark.gen_test(timeout=20)
async def test_a_question_that_cannot_be_read_is_answered_with_an_error(io_loop: IOLoop) -> None:
    line = '{"jsonrpc":"2.0","id":"q%ID","method":"elicitation/create","params":{"message":"a\\ud800b"}}\n'
    async with running(scripted()) as [backend]:
        await call(backend, "bytes", {"lines": [line]}, seconds=5)
        answered = json.loads(text_of(await call(backend, "asked", seconds=5)))
        assert answered == {"code": -32600, "message": "the request is no JSON-RPC message"}


@pytest.mark.parametrize(
    "line",
    [
        '{"jsonrpc":"2.0","id":%ID,"result":{"content":[{"type":"text","te\n',
        '{"jsonrpc":"2.0","id":%ID,"result":{"content":[{"type":"text","text":"\\ud800"}]}}\n',
        '{"result":{"content":[{"type":"text","text":"\\ud800"}]},"jsonrpc":"2.0","id":%ID}\n',
    ],
)
@pytest.mark.gen_test(timeout=20)
async def test_a_broken_answer_ends_its_call_at_once(io_loop: IOLoop, line: str) -> None:
    async with running(scripted()) as [backend]:
        with pytest.raises(ToolExecutionError):
            await call(backend, "bytes", {"lines": [line], "silent": True}, seconds=3)
        await call(backend, "echo")


@pytest.mark.gen_test(timeout=20)
async def test_doubled_and_crossed_answers_end_each_call_once_with_its_own(io_loop: IOLoop) -> None:
    double = '{"jsonrpc":"2.0","id":%ID,"result":{"content":[{"type":"text","text":"first"}]}}\n'
    async with running(scripted()) as [backend]:
        result = await call(backend, "bytes", {"lines": [double, double]})
        assert text_of(result) == "first"
        held = [asyncio.create_task(call(backend, "hold")) for _ in range(8)]
        await call(backend, "echo")
        waiting = json.loads(text_of(await call(backend, "release", {"order": "crossed"})))
        assert [int(text_of(result)) for result in await asyncio.gather(*held)] == waiting


@pytest.mark.parametrize("place", ["first", "last"])
@pytest.mark.gen_test(timeout=30)
async def test_an_answer_over_the_limit_ends_its_call_alone(io_loop: IOLoop, place: str) -> None:
    async with running(scripted(), scripted(name="other")) as [backend, other]:
        pid = await pid_of(backend)
        held = asyncio.create_task(call(backend, "hold"))
        huge = asyncio.create_task(call(backend, "huge", {"size": 32 * MEBIBYTE, "id": place}))
        slowest = 0.0
        while not huge.done():
            began = time.process_time()
            await call(other, "echo")
            slowest = max(slowest, time.process_time() - began)
        with pytest.raises(TooLarge):
            await huge
        assert slowest < 1
        await call(backend, "release")
        await held
        assert await pid_of(backend) == pid


@pytest.mark.gen_test(timeout=20)
async def test_an_answer_just_below_the_limit_arrives(io_loop: IOLoop) -> None:
    async with running(scripted()) as [backend]:
        result = await call(backend, "huge", {"size": 8 * MEBIBYTE - 200, "id": "first"})
        assert len(text_of(result)) == 8 * MEBIBYTE - 200


@pytest.mark.gen_test(timeout=20)
async def test_an_oversized_request_of_the_server_ends_no_call(io_loop: IOLoop) -> None:
    async with running(scripted(), max_message_size=MEBIBYTE) as [backend]:
        assert text_of(await call(backend, "ask", {"size": 2 * MEBIBYTE})) == "done"


@pytest.mark.parametrize("ask", [False, True], ids=["notifications", "requests"])
@pytest.mark.gen_test(timeout=30)
async def test_a_flood_holds_up_nobody_else(io_loop: IOLoop, ask: bool) -> None:
    params = {"level": "info", "data": "x"}
    flood = {
        "count": 20_000,
        "method": "ping" if ask else "notifications/message",
        "params": params,
        "ask": ask,
    }
    async with running(scripted(), scripted(name="other")) as [backend, other]:
        flooding = asyncio.create_task(call(backend, "flood", flood))
        slowest, calls = 0.0, 0
        while not flooding.done():
            began = time.process_time()
            await call(other, "echo")
            slowest = max(slowest, time.process_time() - began)
            calls += 1
        await flooding
        assert slowest < 1
        await call(backend, "echo", seconds=5)


@pytest.mark.gen_test(timeout=20)
async def test_a_request_over_the_limit_is_answered_and_not_dropped(io_loop: IOLoop, tmp_path: Path) -> None:
    record = tmp_path / "record"
    flood = {"count": 300, "method": "ping", "ask": True}
    async with running(scripted("--record", record), notifications_per_second=10) as [backend]:
        await call(backend, "flood", flood)

        def answers() -> list[Any]:
            return [message for message in recorded(record) if message.get("id") == "asked"]

        await until(lambda: len(answers()) == 300, seconds=5, what="an answer to each")
        refused = [one["error"]["message"] for one in answers() if "error" in one]
        assert set(refused) == {"too many requests: try again later"}
        assert 250 < len(refused) < 300


@pytest.mark.gen_test(timeout=20)
async def test_what_of_a_definition_cannot_be_started_is_said_in_words(
    io_loop: IOLoop, tmp_path: Path
) -> None:
    missing = ServerDefinition(name="missing", transport="stdio", command="/no/such/program")
    nowhere = ServerDefinition(
        name="nowhere", transport="stdio", command=sys.executable, cwd=tmp_path / "not here"
    )
    forbidden = ServerDefinition(name="forbidden", transport="stdio", command=str(tmp_path))
    bare = ServerDefinition(name="bare", transport="stdio", command="no-such-program")
    whole = ServerDefinition(name="whole", transport="stdio", command="no-such-program --key s3cret")
    script = tmp_path / "script"
    script.write_text("#!/no/such/interpreter\n")
    script.chmod(0o700)
    orphan = ServerDefinition(name="orphan", transport="stdio", command=str(script))
    async with running(missing, bare, whole, nowhere, forbidden, orphan, wait=False) as backends:
        for backend in backends:
            async with asyncio.timeout(5):
                await backend.wait_started()
        reasons = [backend.status.full_reason for backend in backends]
        folder = str(tmp_path / "not here")
        assert reasons == [
            "its command '/no/such/program' does not exist",
            "its command 'no-such-program' is not found on PATH",
            "its command 'no-such-program …' does not exist: put what follows 'no-such-program' into args",
            f"its folder (cwd) {folder!r} cannot be entered: No such file or directory",
            f"its command {str(tmp_path)!r} cannot be run: Permission denied",
            f"its command {str(script)!r} cannot be run: its first line names a program that does not exist",
        ]
        for backend in backends:
            with pytest.raises(ServerUnavailable):
                await call(backend, "echo")


@pytest.mark.gen_test(timeout=20)
async def test_the_last_words_of_a_process_that_ends_are_its_reason_bounded_and_without_secrets(
    io_loop: IOLoop,
) -> None:
    for stderr, expected in (
        ("'first\\nno such file: a.txt\\n\\n'", "no such file: a.txt"),
        ("'API_KEY=s3cret is wrong'", "API_KEY=[redacted] is wrong"),
        ("'x' * 300", "x" * 200 + "…"),
    ):
        program = f"import sys; sys.stderr.write({stderr}); sys.exit(7)"
        definition = ServerDefinition(
            name="dying", transport="stdio", command=sys.executable, args=("-c", program)
        )
        async with running(definition, wait=False, retry_initial=60, retry_maximum=60) as [backend]:
            await until(lambda: backend.status.failures == 1)
            assert backend.status.full_reason == f"its process ended with exit code 7: {expected}"


@pytest.mark.gen_test(timeout=20)
async def test_a_server_that_dies_before_it_can_be_written_to_has_its_exit_for_a_reason(
    io_loop: IOLoop,
) -> None:
    program = (
        "import json, os, sys, time\n"
        "request = json.loads(sys.stdin.readline())\n"
        "os.close(0)\n"
        "time.sleep(0.05)\n"
        "error = {'code': -32601, 'message': 'no such method'}\n"
        "print(json.dumps({'jsonrpc': '2.0', 'id': request['id'], 'error': error}), flush=True)\n"
        "sys.stderr.write('no licence')\n"
        "sys.exit(7)\n"
    )
    definition = ServerDefinition(
        name="dying", transport="stdio", command=sys.executable, args=("-S", "-c", program)
    )
    async with running(definition, wait=False, retry_initial=60, retry_maximum=60) as [backend]:
        await until(lambda: backend.status.failures == 1)
        assert backend.status.full_reason == "its process ended with exit code 7: no licence"


@pytest.mark.parametrize("fd", [0, 1])
@pytest.mark.gen_test(timeout=20)
async def test_a_server_that_closes_a_pipe_and_lives_is_replaced(io_loop: IOLoop, fd: int) -> None:
    async with running(scripted()) as [backend]:
        pid = await pid_of(backend)
        with pytest.raises(OutcomeUnknown, match="it closed its " + ("stdin" if fd == 0 else "stdout")):
            await call(backend, "close", {"fd": fd}, seconds=3)
        await ready(backend)
        assert not alive(pid)
        await call(backend, "echo")


@pytest.mark.gen_test(timeout=30)
async def test_a_server_that_does_not_read_holds_up_only_its_own_calls(io_loop: IOLoop) -> None:
    payload = {"text": "x" * MEBIBYTE}
    async with running(scripted(), scripted(name="other")) as [backend, other]:
        pid = await pid_of(backend)
        await call(backend, "deaf")
        hung = [asyncio.create_task(call(backend, "echo", payload)) for _ in range(16)]
        await call(other, "echo", payload)
        assert not any(task.done() for task in hung)
        for task in hung:
            task.cancel()
        outcomes = await asyncio.gather(*hung, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {asyncio.CancelledError}
        # What it leaves unread is bounded: a server that reads nothing at all is hung, and is replaced.
        more = [asyncio.create_task(call(backend, "echo", payload, seconds=5)) for _ in range(2)]
        kinds = {type(outcome) for outcome in await asyncio.gather(*more, return_exceptions=True)}
        assert kinds <= {OutcomeUnknown, ServerUnavailable}
        assert ServerUnavailable in kinds  # that one was never written
        await ready(backend)
        assert not alive(pid)
        await call(backend, "echo", payload)


@pytest.mark.gen_test(timeout=20)
async def test_a_grandchild_that_holds_the_pipes_hides_no_death(io_loop: IOLoop, tmp_path: Path) -> None:
    note = tmp_path / "grandchild"
    async with running(scripted("--grandchild", note)) as [backend]:
        first = int(note.read_text())
        pid = await pid_of(backend)
        began = time.monotonic()
        with pytest.raises(OutcomeUnknown, match="exit code 1"):
            await call(backend, "exit", {"code": 1}, seconds=3)
        assert time.monotonic() - began < 1
        await ready(backend)
        assert not alive(pid)
        await until(lambda: not alive(first), what="the end of the grandchild")
    await until(lambda: not alive(int(note.read_text())), seconds=1)


@pytest.mark.gen_test(timeout=20)
async def test_a_stubborn_server_and_its_grandchild_are_gone_when_stop_returns(
    io_loop: IOLoop, tmp_path: Path
) -> None:
    note = tmp_path / "grandchild"
    async with running(scripted("--stubborn", "--grandchild", note)) as [backend]:
        pid = await pid_of(backend)
        began = time.monotonic()
        await backend.stop()
        assert time.monotonic() - began < 2
        assert not alive(pid)
        await until(lambda: not alive(int(note.read_text())), seconds=1)


async def files_of_an_idle_loop() -> int:
    """How many files are open once the loop has opened what it keeps: uvloop does so with its first pipe."""
    async with running(scripted()):
        pass
    return open_files()


@pytest.mark.gen_test(timeout=20)
async def test_unread_input_is_let_go_with_what_has_left_the_group(io_loop: IOLoop, tmp_path: Path) -> None:
    note = tmp_path / "grandchild"  # in a session of its own: it holds the pipes
    before = await files_of_an_idle_loop()
    async with running(scripted("--grandchild", note, "--own-session")) as [backend]:
        await call(backend, "deaf")
        with pytest.raises(TimeoutError):
            await call(backend, "echo", {"text": "x" * MEBIBYTE}, seconds=0.2)
    assert not alive(int(note.read_text()))
    await until(lambda: open_files() <= before, seconds=2, what="closing every pipe")


@pytest.mark.parametrize("option", ["--grandchild", "--daemon"])
@pytest.mark.parametrize("end", ["stop", "exit"])
@pytest.mark.gen_test(timeout=20)
async def test_what_has_left_the_process_group_ends_with_its_server(
    io_loop: IOLoop, tmp_path: Path, option: str, end: str
) -> None:
    note = tmp_path / "detached"
    other = tmp_path / "other"
    async with (
        running(scripted("--daemon", other, name="other")),
        running(scripted(option, note, "--own-session")) as [backend],
    ):
        detached = int(note.read_text())
        assert alive(detached)
        if end == "stop":
            await backend.stop()
        else:
            with pytest.raises(OutcomeUnknown):
                await call(backend, "exit", {"code": 1})
        await until(lambda: not alive(detached), seconds=3, what="the end of what was detached")
        assert alive(int(other.read_text()))
        note.write_text(str(detached))
    assert not alive(int(other.read_text()))


@pytest.mark.gen_test(timeout=30)
async def test_restarts_leave_no_process_no_pipe_and_no_task(io_loop: IOLoop) -> None:
    tasks_before, files_before = asyncio.all_tasks(), await files_of_an_idle_loop()
    children_before = children()
    async with running(scripted(), retry_initial=0.01, retry_maximum=0.01) as [backend]:
        tasks_ready, files_ready, children_ready = len(asyncio.all_tasks()), open_files(), len(children())
        for _ in range(20):
            with pytest.raises(OutcomeUnknown):
                await call(backend, "exit", {"code": 1})
            await until(lambda: backend.status.state == "ready", what="the restart")
        await until(lambda: len(asyncio.all_tasks()) <= tasks_ready, seconds=2, what="ending the tasks")
        await until(lambda: open_files() <= files_ready, seconds=2, what="closing the pipes")
        assert len(children()) == children_ready
    assert asyncio.all_tasks() == tasks_before
    await until(lambda: children() == children_before, seconds=2, what="the end of every child")
    await until(lambda: open_files() <= files_before, seconds=2, what="closing every pipe")


@pytest.mark.gen_test(timeout=20)
async def test_a_server_that_nobody_would_reap_is_not_left_running(
    io_loop: IOLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    definition, before = scripted(), children()
    monkeypatch.setattr(sys, "executable", "/no/such/python")  # what the reaper is started with
    async with running(definition, wait=False, retry_initial=60, retry_maximum=60) as [backend]:
        await until(lambda: backend.status.failures == 1)
        assert backend.status.reason == "the command or folder '/no/such/python' does not exist"
        assert children() == before


@pytest.mark.gen_test(timeout=20)
async def test_lines_of_stderr_bear_their_server_and_never_mix(
    io_loop: IOLoop, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="mcpgw.backend")
    async with running(scripted(name="a"), scripted(name="b"), log_lines_per_second=1000) as [a, b]:
        await asyncio.gather(*(call(s, "complain", {"text": f"from {s.id}\n", "times": 400}) for s in (a, b)))
        await until(lambda: len(_stderr(caplog)) >= 800)
    lines = _stderr(caplog)
    assert lines.count({"server": "a", "line": "from a"}) == 400
    assert lines.count({"server": "b", "line": "from b"}) == 400
    assert len(lines) == 800


@pytest.mark.parametrize(
    "complaint",
    [
        {"text": "x" * 4 * MEBIBYTE, "times": 1},
        {"text": "line\n", "times": 800_000},
        {"text": "\n", "times": 2_000_000},
    ],
    ids=["one line", "short lines", "empty lines"],
)
@pytest.mark.gen_test(timeout=30)
async def test_a_flood_on_stderr_is_bounded_in_the_log_and_holds_up_nobody(
    io_loop: IOLoop, caplog: pytest.LogCaptureFixture, complaint: dict[str, Any]
) -> None:
    caplog.set_level(logging.INFO, logger="mcpgw.backend")
    async with running(scripted(), scripted(name="other"), log_lines_per_second=50) as [backend, other]:
        complaining = asyncio.create_task(call(backend, "complain", complaint))
        slowest = 0.0
        began_all = time.monotonic()
        while not complaining.done():
            began = time.process_time()
            await call(other, "echo")
            slowest = max(slowest, time.process_time() - began)
        await complaining
        seconds = time.monotonic() - began_all
        assert slowest < 1
    lines = _stderr(caplog)
    assert len(lines) <= 50 * (seconds + 3)
    assert all(len(line["line"]) <= 4096 for line in lines)


def _stderr(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    fields = [vars(record)["mcpgw_fields"] for record in caplog.records if record.getMessage() == "stderr"]
    return [dict(each) for each in fields]


@pytest.mark.gen_test
async def test_a_stop_that_is_cut_short_leaves_neither_the_child_nor_its_pipes(io_loop: IOLoop) -> None:
    reaper = ProcessReaper()
    transport = StdioTransport(
        sys.executable,
        (str(SERVERS / "scripted.py"), "--stubborn"),
        env={},
        cwd=None,
        max_message_size=2**20,
        notification_rate=1000,
        stop_timeout=30,
        reaper=reaper,
        on_stderr=lambda _line: None,
        on_fault=lambda _fault: None,
        on_end=lambda _reason: None,
    )
    try:
        await transport.__aenter__()
        child = transport._child
        assert child is not None
        stop = asyncio.create_task(transport.__aexit__(None, None, None))
        stdin = child.stdin
        assert stdin is not None
        await until(stdin.is_closing)
        stop.cancel()
        with pytest.raises(asyncio.CancelledError):
            await stop
        assert child.is_closed
        await until(lambda: child.returncode is not None)
    finally:
        reaper.close()
