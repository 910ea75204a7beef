"""Backends over HTTP: what a bad network and a bad server do to calls."""

import asyncio
import json
import logging
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from tornado.ioloop import IOLoop

from mcpgw.backends.backend import Backend
from mcpgw.errors import GatewayError, OutcomeUnknown, ServerUnavailable, TooLarge, ToolExecutionError
from mcpgw.server_definitions import ServerDefinition
from tests.servers.scripted_http import ScriptedHttpServer, scripted_http
from tests.support.backends import Announced, Heard, call, open_files, ready, running, serving, text_of, use
from tests.support.waiting import until

MEBIBYTE = 1024 * 1024
ERAS = pytest.mark.parametrize("modern", [False, True], ids=["handshake", "2026-07-28"])


@asynccontextmanager
async def both(
    settings: dict[str, Any] | None = None, **options: Any
) -> AsyncIterator[tuple[Backend, ScriptedHttpServer]]:
    """A scripted server and the backend that reaches it."""
    async with scripted_http(**options) as server:
        definition = ServerDefinition(name="web", transport="http", url=server.url)
        async with running(definition, **(settings or {})) as [backend]:
            yield backend, server


@ERAS
@pytest.mark.gen_test(timeout=20)
async def test_a_tool_is_listed_and_called(io_loop: IOLoop, modern: bool) -> None:
    async with both(modern=modern) as (backend, _):
        assert "echo" in backend.tools
        assert backend.status.protocol_version == ("2026-07-28" if modern else "2025-11-25")
        result = await call(backend, "echo", {"none": None})
        assert json.loads(text_of(result)) == {"none": None}


FAULTS: dict[str, tuple[str, dict[str, Any], type[GatewayError]]] = {
    "a reset in mid-answer": ("reset", {}, OutcomeUnknown),
    "a reset before the answer": ("reset_at_once", {}, OutcomeUnknown),
    "status 500": ("status", {"status": 500}, ToolExecutionError),
    "status 401": ("status", {"status": 401}, ToolExecutionError),
    "an HTML page": ("status", {"status": 200}, ToolExecutionError),
    "an answer over the limit": ("big", {"size": 2 * MEBIBYTE}, TooLarge),
    "an event over the limit": ("big", {"size": 2 * MEBIBYTE, "stream": True}, TooLarge),
    "a compressed answer that nobody asked for": ("bomb", {}, ToolExecutionError),
    "a stream that ends without a response": ("end_stream", {}, OutcomeUnknown),
    "a body that is no JSON": ("raw", {"body": "{"}, ToolExecutionError),
    "a body that is no answer": ("raw", {"body": '{"jsonrpc":"2.0","method":"x"}'}, ToolExecutionError),
    "an empty body": ("raw", {"body": ""}, ToolExecutionError),
}


@ERAS
@pytest.mark.parametrize(("tool", "arguments", "error"), FAULTS.values(), ids=FAULTS.keys())
@pytest.mark.gen_test(timeout=20)
async def test_a_fault_ends_its_own_call_and_no_other(
    io_loop: IOLoop, modern: bool, tool: str, arguments: dict[str, Any], error: type[GatewayError]
) -> None:
    async with both({"max_message_size": MEBIBYTE}, modern=modern) as (backend, server):
        held = asyncio.create_task(call(backend, "hang"))
        await until(lambda: server.methods().count("tools/call") == 1)
        with pytest.raises(error):
            await call(backend, tool, arguments, seconds=5)
        assert not held.done()
        assert server.methods().count("tools/call") == 2  # it may have run, and was not sent again
        await call(backend, "echo", seconds=2)
        held.cancel()
        await asyncio.wait({held})


@pytest.mark.gen_test(timeout=20)
async def test_a_stream_that_breaks_off_behind_an_id_is_resumed_and_the_call_not_sent_again(
    io_loop: IOLoop,
) -> None:
    async with both() as (backend, server):
        assert text_of(await call(backend, "break_off", seconds=5)) == "resumed"
        assert server.methods().count("tools/call") == 1


@ERAS
@pytest.mark.parametrize("size", [1, 7, 1_000_000])
@pytest.mark.gen_test(timeout=20)
async def test_an_answer_in_a_stream_is_read_however_its_pieces_fall(
    io_loop: IOLoop, modern: bool, size: int
) -> None:
    async with both(modern=modern) as (backend, _):
        result = await call(backend, "stream", {"text": "änd so", "size": size})
        assert text_of(result) == "änd so"


@ERAS
@pytest.mark.gen_test(timeout=20)
async def test_a_redirect_on_the_same_origin_is_followed(io_loop: IOLoop, modern: bool) -> None:
    async with both(modern=modern) as (backend, server):
        server.redirects = True
        for number in range(3):
            assert json.loads(text_of(await call(backend, "echo", {"a": number}))) == {"a": number}
        assert server.methods().count("tools/call") == 3


@ERAS
@pytest.mark.gen_test(timeout=20)
async def test_a_connection_that_was_closed_behind_an_answer_costs_no_call(
    io_loop: IOLoop, modern: bool
) -> None:
    async with both(modern=modern) as (backend, server):
        for _ in range(5):
            assert text_of(await call(backend, "close_behind")) == "closed"
            await asyncio.sleep(0.01)  # it has heard of that
            await call(backend, "echo")
        assert server.methods().count("tools/call") == 10


@ERAS
@pytest.mark.gen_test(timeout=20)
async def test_what_comes_when_nothing_was_asked_is_no_answer_to_the_next_call(
    io_loop: IOLoop, modern: bool
) -> None:
    async with both(modern=modern) as (backend, server):
        assert text_of(await call(backend, "twice", {"text": "ann's"})) == "ann's"
        await until(lambda: server.answered_twice == 1)
        await asyncio.sleep(0.02)  # it has come
        assert json.loads(text_of(await call(backend, "echo", {"of": "bob"}))) == {"of": "bob"}
        assert server.methods().count("tools/call") == 2


@ERAS
@pytest.mark.gen_test(timeout=20)
async def test_streams_that_stay_open_behind_their_answers_hold_up_no_call(
    io_loop: IOLoop, modern: bool
) -> None:
    async with both({"http_connections": 2}, modern=modern) as (backend, _):
        began = time.monotonic()
        await asyncio.gather(*(call(backend, "stay") for _ in range(8)))
        for _ in range(4):
            await call(backend, "stay")
        assert time.monotonic() - began < 0.9


@pytest.mark.gen_test(timeout=20)
async def test_cookies_that_a_server_sets_are_sent_to_it_from_then_on(io_loop: IOLoop) -> None:
    async with both() as (backend, server):
        sent = []
        for cookie in ("sticky=1; Path=/", "sticky=2; Path=/", "sticky=2; Path=/; Max-Age=0"):
            await call(backend, "cookie", {"cookie": cookie})
            await call(backend, "echo")
            sent.append(server.request_headers[-1].get("cookie"))
        assert sent == ["sticky=1", "sticky=2", None]


@pytest.mark.parametrize(
    ("modern", "method"),
    [(False, "initialize"), (True, "server/discover"), (False, "tools/list"), (True, "tools/list")],
)
@pytest.mark.gen_test(timeout=20)
async def test_a_cookie_that_was_set_before_the_first_call_is_sent_with_each(
    io_loop: IOLoop, modern: bool, method: str
) -> None:
    async with scripted_http(modern=modern) as server:
        server.cookies[method] = "node=3; Path=/"
        definition = ServerDefinition(name="web", transport="http", url=server.url)
        async with running(definition) as [backend]:
            for _ in range(2):
                await call(backend, "echo")
                assert server.request_headers[-1].get("cookie") == "node=3"


@pytest.mark.gen_test(timeout=20)
async def test_a_cookie_of_the_configuration_is_the_only_one_that_is_sent(io_loop: IOLoop) -> None:
    async with scripted_http() as server:
        headers = {"Cookie": "mine=1"}
        definition = ServerDefinition(name="web", transport="http", url=server.url, headers=headers)
        async with running(definition) as [backend]:
            await call(backend, "cookie", {"cookie": "theirs=1; Path=/"})
            await call(backend, "echo")
        assert {each.get("cookie") for each in server.request_headers} == {"mine=1"}


@pytest.mark.gen_test(timeout=20)
async def test_a_status_is_named_and_no_address_is(io_loop: IOLoop) -> None:
    async with both() as (backend, _):
        with pytest.raises(ToolExecutionError, match="it answered with HTTP status 503"):
            await call(backend, "status", {"status": 503})


@ERAS
@pytest.mark.parametrize(
    ("tool", "arguments"),
    [("hang", {}), ("drip", {}), ("hang_in_stream", {}), ("hang_in_stream", {"ids": True})],
    ids=["nothing", "a byte a second", "an open stream", "an open stream with ids"],
)
@pytest.mark.gen_test(timeout=20)
async def test_an_answer_that_does_not_come_ends_at_the_deadline_and_is_let_go(
    io_loop: IOLoop, modern: bool, tool: str, arguments: dict[str, Any]
) -> None:
    async with both(modern=modern) as (backend, server):
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            await call(backend, tool, arguments, seconds=0.5)
        assert time.monotonic() - began < 1
        await call(backend, "echo", seconds=2)
        if not modern:
            await until(lambda: "notifications/cancelled" in server.methods(), seconds=2)
        if tool != "drip":  # a server that only writes learns of it later
            await until(lambda: len(server.let_go) == 1, seconds=2, what="letting the request go")


@pytest.mark.gen_test(timeout=20)
async def test_a_server_that_does_not_answer_notifications_delays_nobody(io_loop: IOLoop) -> None:
    async with both(deaf_to_notifications=True) as (backend, server):
        for _ in range(3):
            began = time.monotonic()
            with pytest.raises(TimeoutError):
                await call(backend, "hang", seconds=0.2)
            assert time.monotonic() - began < 1
            await call(backend, "echo", seconds=1)
        await until(lambda: server.methods().count("notifications/cancelled") == 3, seconds=2)


@pytest.mark.gen_test(timeout=20)
async def test_many_hung_calls_do_not_use_up_the_connections(io_loop: IOLoop) -> None:
    async with both() as (backend, server):
        hung = [asyncio.create_task(call(backend, "hang")) for _ in range(120)]
        await until(lambda: server.methods().count("tools/call") == 120)
        await call(backend, "echo", seconds=2)
        for task in hung:
            task.cancel()
        await asyncio.wait(hung)
        await until(lambda: len(server.let_go) == 120, seconds=5, what="letting every request go")


@pytest.mark.gen_test(timeout=20)
async def test_an_answer_under_another_id_goes_to_its_own_caller(io_loop: IOLoop) -> None:
    async with both() as (backend, server):
        held = asyncio.create_task(call(backend, "hang"))
        await until(lambda: server.methods().count("tools/call") == 1)
        other = server.received[-1]["id"]
        body = {"jsonrpc": "2.0", "id": other, "result": {"content": [{"type": "text", "text": "mine"}]}}
        result = await call(backend, "raw", {"body": json.dumps(body)}, seconds=2)
        assert text_of(result) == "mine"
        await call(backend, "echo")
        assert not held.done()
        held.cancel()
        await asyncio.wait({held})


@ERAS
@pytest.mark.gen_test(timeout=20)
async def test_structured_content_that_is_null_is_not_taken_for_absent(io_loop: IOLoop, modern: bool) -> None:
    answer = (
        '{"jsonrpc":"2.0","id":0,"result":{"content":[],"structuredContent":null,"resultType":"complete"}}'
    )
    async with both(modern=modern) as (backend, _):
        result = await call(backend, "raw", {"body": answer})
        assert result.has_structured_content
        assert result.structured_content is None


@ERAS
@pytest.mark.gen_test(timeout=20)
async def test_progress_comes_in_order_and_before_the_response(io_loop: IOLoop, modern: bool) -> None:
    heard = Heard()
    async with both(modern=modern) as (backend, _):
        await call(backend, "progress", {"steps": 200}, heard=heard)
        assert heard.steps == [(step, 200, None) for step in range(1, 201)]


@pytest.mark.gen_test(timeout=30)
async def test_a_flood_of_notifications_is_cut_and_others_are_served(io_loop: IOLoop) -> None:
    heard = Heard()
    async with both({"notifications_per_second": 100}) as (backend, _):
        flooding = asyncio.create_task(call(backend, "progress", {"steps": 5_000}, heard=heard))
        slowest = 0.0
        while not flooding.done():
            began = time.process_time()
            await call(backend, "echo")
            slowest = max(slowest, time.process_time() - began)
        await flooding
        assert slowest < 1  # of this process: what others do with the machine is not the point
        assert 100 <= len(heard.steps) < 2_500


@pytest.mark.parametrize("lost", [404, 400])
@pytest.mark.gen_test(timeout=20)
async def test_a_lost_session_is_begun_anew(io_loop: IOLoop, lost: int) -> None:
    async with both(lost=lost) as (backend, server):
        server.sessions.clear()
        with pytest.raises(ServerUnavailable) as refused:  # it was refused, and so cannot have run
            await call(backend, "echo")
        assert refused.value.details["state"] == "retrying"
        await ready(backend)
        await call(backend, "echo")
        assert server.methods().count("initialize") == 2


@pytest.mark.parametrize("message", ["unknown chat session 42", "Bad Request: No valid session ID provided"])
@pytest.mark.parametrize("anonymous", [False, True])
@pytest.mark.gen_test(timeout=20)
async def test_an_error_that_speaks_of_sessions_is_its_own_calls_alone(
    io_loop: IOLoop, message: str, anonymous: bool
) -> None:
    async with scripted_http() as web:
        definition = ServerDefinition(name="web", transport="http", url=web.url)
        async with serving(definition) as server:
            held = asyncio.create_task(use(server, "hang"))
            await until(lambda: web.methods().count("tools/call") == 1)
            with pytest.raises(ToolExecutionError, match=message):
                await use(server, "bad_request", {"message": message, "anonymous": anonymous})
            assert web.methods().count("tools/call") == 2
            assert web.methods().count("initialize") == 1
            assert not held.done()
            held.cancel()
            await asyncio.wait({held})


@pytest.mark.gen_test(timeout=20)
async def test_a_call_is_not_sent_again_where_a_lost_session_cannot_be_confirmed(io_loop: IOLoop) -> None:
    async with both() as (backend, server):
        server.resets_pings = True
        with pytest.raises(OutcomeUnknown):
            await call(
                backend, "bad_request", {"message": "Session not found", "code": -32001, "anonymous": True}
            )
        await call(backend, "echo")
        assert server.methods().count("initialize") == 1


@pytest.mark.gen_test(timeout=20)
async def test_tools_that_were_listed_again_for_a_call_reach_everybody(io_loop: IOLoop) -> None:
    announced = Announced()
    async with scripted_http(modern=True) as web:
        definition = ServerDefinition(name="web", transport="http", url=web.url)
        async with serving(definition, announced=announced) as server:
            assert text_of(await use(server, "mismatch")) == "fits"
            assert "late" in server.tools
            assert announced.names().count("tools_changed") == 1


@ERAS
@pytest.mark.gen_test(timeout=20)
async def test_calls_work_again_when_the_server_is_back(io_loop: IOLoop, modern: bool) -> None:
    async with both(modern=modern) as (backend, server):
        await call(backend, "echo")
        hung = asyncio.create_task(call(backend, "hang"))
        await until(lambda: server.methods().count("tools/call") == 2)
        await server.stop()
        with pytest.raises(OutcomeUnknown):
            await hung
        began = time.monotonic()
        with pytest.raises(ServerUnavailable):
            await call(backend, "echo", seconds=2)
        with pytest.raises(ServerUnavailable) as refused:
            await call(backend, "echo", seconds=2)
        assert time.monotonic() - began < 1
        assert refused.value.details["state"] in ("retrying", "starting")
        await server.start()
        await ready(backend, seconds=5)
        await call(backend, "echo")


@pytest.mark.gen_test(timeout=20)
async def test_a_server_that_takes_connections_and_says_nothing_is_never_ready(
    io_loop: IOLoop,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/mcp"
        definition = ServerDefinition(name="web", transport="http", url=url)
        async with running(definition, wait=False, connect_timeout=0.3) as [backend]:
            await until(lambda: backend.status.failures >= 1, seconds=3)
            assert str(backend.status.full_reason).startswith(
                "it was not ready within backends.connect_timeout (http:"
            )
            with pytest.raises(ServerUnavailable):
                await call(backend, "echo")
            began = time.monotonic()
            await backend.stop()
            assert time.monotonic() - began < 1


@pytest.mark.gen_test(timeout=20)
async def test_stopping_is_bounded_where_the_server_does_not_end_the_session(io_loop: IOLoop) -> None:
    async with both() as (backend, server):
        server.hang_deletes = True
        hung = asyncio.create_task(call(backend, "hang"))
        await until(lambda: "tools/call" in server.methods())
        began = time.monotonic()
        await backend.stop()
        assert time.monotonic() - began < 3
        assert backend.status.state == "stopped"
        with pytest.raises(OutcomeUnknown):
            await hung


@pytest.mark.parametrize("transport", ["http", "sse"])
@pytest.mark.gen_test(timeout=20)
async def test_a_server_that_is_not_there_is_said_with_its_origin_alone(
    io_loop: IOLoop, transport: Any
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        origin = f"http://127.0.0.1:{listening.getsockname()[1]}"
    url = f"{origin.replace('//', '//ann:s3cret@')}/secret-path/mcp?key=s3cret"
    definition = ServerDefinition(name="web", transport=transport, url=url)
    async with running(definition, wait=False, retry_initial=60, retry_maximum=60) as [backend]:
        await backend.wait_started()
        assert backend.status.full_reason == f"its connection was refused ({origin})"


@pytest.mark.parametrize("transport", ["http", "sse"])
@pytest.mark.gen_test(timeout=20)
async def test_an_address_is_never_logged_or_told(
    io_loop: IOLoop, caplog: pytest.LogCaptureFixture, transport: Any
) -> None:
    caplog.set_level(logging.INFO, logger="mcpgw")
    async with scripted_http() as server:  # it answers GET with 405
        definition = ServerDefinition(name="web", transport=transport, url=server.url)
        async with running(definition, wait=False, connect_timeout=2) as [backend]:
            await backend.wait_started()
            if transport == "sse":
                origin = server.url.partition("/mcp")[0]
                assert backend.status.full_reason == f"it answered with HTTP status 405 ({origin})"
            await server.stop()
            await until(lambda: backend.status.failures >= 1 or transport == "http")
            told = f"{backend.status} {backend.unavailable().to_data()}"
            await server.start()
    assert "very-secret" not in told
    assert not [record for record in caplog.records if "very-secret" in str(record.__dict__)]


@pytest.mark.gen_test(timeout=30)
async def test_reconnecting_leaves_no_socket_and_no_task(io_loop: IOLoop) -> None:
    before = asyncio.all_tasks()
    async with both({"retry_initial": 0.01, "retry_maximum": 0.01}) as (backend, server):
        await call(backend, "echo")
        tasks, files = len(asyncio.all_tasks()), open_files()
        for _ in range(20):
            server.sessions.clear()
            with pytest.raises(ServerUnavailable):
                await call(backend, "echo")
            await ready(backend)
            await call(backend, "echo")
        await until(lambda: len(asyncio.all_tasks()) <= tasks, seconds=2, what="ending the tasks")
        await until(lambda: open_files() <= files, seconds=2, what="closing the sockets")
    assert asyncio.all_tasks() == before
