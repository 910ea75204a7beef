"""The Python client against a real gateway, and against servers that misbehave."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, asynccontextmanager, suppress
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application
from tornado.websocket import WebSocketHandler

from mcpgw.client import (
    ConnectionLost,
    Gateway,
    GatewayAddress,
    LogLine,
    NotAGateway,
    NotReachable,
    Progress,
    Refused,
    RequestFailed,
    events,
    list_servers,
)
from mcpgw.client.events import EventParser, Message
from mcpgw.wire.events import Position
from tests.support.forked import server_table
from tests.support.gateway_process import GatewayProcess, wait_until

PROGRESS_SERVER = Path(__file__).parent / "servers" / "progress_server.py"
TOKEN = "header.claims.signature"


@pytest.fixture(scope="module")
def progress_gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """A gateway with the memory server and the server whose tools report progress."""
    folder = tmp_path_factory.mktemp("client-gateway")
    limits = "[websocket]\nmax_calls = 64\n[events]\nheartbeat = 0.2\n"
    configuration = limits + server_table("progress", PROGRESS_SERVER, folder)
    process = GatewayProcess(folder, configuration=configuration).wait_listening()
    yield process
    assert process.terminate() == 0


# --- calls ------------------------------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_a_call_has_its_result_progress_and_log_lines(progress_gateway: GatewayProcess) -> None:
    progress: list[Progress] = []
    lines: list[LogLine] = []
    async with Gateway(progress_gateway.url, progress_gateway.token()) as gateway:
        answer = await gateway.call(
            "progress", "count", {"steps": 2}, on_progress=progress.append, on_log=lines.append, timeout=10
        )
    assert (answer.success, answer.result) == (True, {"result": "counted to 2"})
    assert answer.structured_content == {"result": "counted to 2"}
    assert answer.content[0]["text"] == "counted to 2"
    assert answer.duration_ms >= 0
    assert [(step.progress, step.total) for step in progress] == [(1, 2), (2, 2)]
    assert lines[0] == LogLine("info", "counter", "counted 1")


@pytest.mark.gen_test
async def test_many_calls_run_side_by_side_and_each_gets_its_own_answer(
    progress_gateway: GatewayProcess,
) -> None:
    async with Gateway(progress_gateway.socket_url, progress_gateway.token()) as gateway:
        slow = asyncio.create_task(gateway.call("progress", "count", {"steps": 1, "pause": 0.5}))
        answers = await asyncio.gather(*(gateway.call("progress", "echo", {"value": n}) for n in range(50)))
        assert not slow.done()
        assert [answer.result for answer in answers] == [f"int {n}" for n in range(50)]
        assert (await slow).success


@pytest.mark.gen_test
async def test_the_gateway_tells_its_tools_status_servers_and_how_far_it_is(
    progress_gateway: GatewayProcess,
) -> None:
    token = progress_gateway.token("bea")
    async with Gateway(progress_gateway.url, token) as gateway:
        assert {tool["serverId"] for tool in await gateway.list_tools()} == {"memory", "progress"}
        assert "memory_search" in [tool["name"] for tool in await gateway.list_tools("memory")]
        status = await gateway.status()
        assert (status["authenticated"], status["user"]) == (True, "bea")
        assert 0 < await gateway.ping() < 5
    servers = await list_servers(progress_gateway.url, token)
    assert [(server["id"], server["state"]) for server in servers] == [
        ("memory", "ready"),
        ("progress", "ready"),
    ]


@pytest.mark.gen_test
async def test_a_tool_that_fails_is_an_answer_and_an_error_frame_is_an_exception(
    progress_gateway: GatewayProcess,
) -> None:
    async with Gateway(progress_gateway.url, progress_gateway.token()) as gateway:
        assert (await gateway.call("progress", "fail")).success is False
        with pytest.raises(RequestFailed, match="did you mean 'memory'") as failed:
            await gateway.call("memry", "memory_search")
        assert (failed.value.code, failed.value.temporary) == ("server_not_found", False)
        with pytest.raises(RequestFailed) as late:
            await gateway.call("progress", "wait", timeout=0.2)
        assert (late.value.code, late.value.temporary) == ("timeout", True)
        with pytest.raises(ValueError, match="above 0"):
            await gateway.call("progress", "wait", timeout=0)


@pytest.mark.gen_test
async def test_cancelling_the_task_cancels_the_call_at_its_server(progress_gateway: GatewayProcess) -> None:
    started, cancelled = (progress_gateway.folder / name for name in ("started", "cancelled"))
    async with Gateway(progress_gateway.url, progress_gateway.token()) as gateway:
        task = asyncio.create_task(gateway.call("progress", "wait"))
        await asyncio.to_thread(wait_until, started.exists)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.to_thread(wait_until, cancelled.exists, seconds=1.5)
        assert (await gateway.status())["openCalls"] == []


@pytest.mark.gen_test
async def test_an_exception_of_a_callback_is_raised_by_its_call_and_cancels_it(
    progress_gateway: GatewayProcess,
) -> None:
    def refuse(progress: Progress) -> None:
        raise TimeoutError("enough")

    async with Gateway(progress_gateway.url, progress_gateway.token()) as gateway:
        with pytest.raises(TimeoutError, match="enough"):
            await gateway.call("progress", "count", {"steps": 1, "pause": 30}, on_progress=refuse, timeout=60)
        assert (await gateway.status())["openCalls"] == []


# --- credentials and connections ----------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_without_a_token_only_status_and_ping_are_answered(progress_gateway: GatewayProcess) -> None:
    async with Gateway(progress_gateway.url, None) as gateway:
        assert (await gateway.status())["requiresAuth"] is True
        assert await gateway.ping() > 0
        with pytest.raises(Refused) as refused:
            await gateway.list_tools()
        assert refused.value.code == "auth_required"


@pytest.mark.gen_test
async def test_a_token_that_does_not_hold_or_allow_it_is_refused(progress_gateway: GatewayProcess) -> None:
    with pytest.raises(Refused) as refused:
        async with Gateway(progress_gateway.url, TOKEN):
            pytest.fail("it was let in")
    assert refused.value.code == "auth_failed"
    assert TOKEN not in str(refused.value)
    with pytest.raises(Refused):
        await list_servers(progress_gateway.url, TOKEN)
    async with Gateway(progress_gateway.url, progress_gateway.token(scopes=["servers:read"])) as gateway:
        with pytest.raises(Refused) as denied:
            await gateway.call("memory", "memory_projects")
    assert denied.value.code == "permission_denied"
    assert denied.value.details == {"missingScope": "tools:call:memory/memory_projects"}


def test_the_token_is_in_no_repr_and_in_no_message() -> None:
    assert TOKEN not in repr(Gateway("http://127.0.0.1:1", TOKEN))
    for bad in (f"{TOKEN}\r\nX: y", f"{TOKEN} x", "", "tök"):
        with pytest.raises(ValueError, match="the token is none") as fault:
            Gateway("http://127.0.0.1:1", bad)
        assert TOKEN not in str(fault.value)


@pytest.mark.parametrize(
    ("url", "base", "socket"),
    [
        ("http://a:1", "http://a:1", "ws://a:1/ws"),
        ("ws://a:1/ws", "http://a:1", "ws://a:1/ws"),
        ("wss://a/ws/", "https://a", "wss://a/ws"),
        ("https://a/gate/", "https://a/gate", "wss://a/gate/ws"),
        ("ws://[::1]:3000/api/v1/ws", "http://[::1]:3000", "ws://[::1]:3000/ws"),
        ("http://http.example/", "http://http.example", "ws://http.example/ws"),
    ],
)
def test_an_address_may_be_written_in_many_ways(url: str, base: str, socket: str) -> None:
    address = GatewayAddress.parse(url)
    assert (address.base, address.socket) == (base, socket)


@pytest.mark.parametrize(
    "url",
    [
        *("", "127.0.0.1:3000", "ftp://a", "http://", "http://a:99999", "http://a b", "http://[::1"),
        *("http://a\n", "http://hidden@a", "http://a?token=hidden", "http://a#hidden", "http://a?"),
    ],
)
def test_an_address_that_is_none_is_refused_and_what_may_be_secret_is_not_repeated(url: str) -> None:
    with pytest.raises(ValueError, match="URL") as fault:
        GatewayAddress.parse(url)
    assert "hidden" not in str(fault.value)


@pytest.mark.gen_test
async def test_a_gateway_that_ends_gives_every_open_call_its_end(
    gateway_process: Callable[..., GatewayProcess],
) -> None:
    process = gateway_process()
    async with Gateway(process.url, process.token(), give_up_after=0) as gateway:
        process.kill()
        with pytest.raises(ConnectionLost) as lost:
            await gateway.call("memory", "memory_projects")
        assert lost.value.temporary
        with pytest.raises(ConnectionLost):
            await gateway.ping()


@asynccontextmanager
async def answering(data: bytes, *, stay: bool = True) -> AsyncIterator[str]:
    """A TCP server that answers every connection with `data`, and then stays silent or closes."""
    done = asyncio.Event()
    tasks: set[asyncio.Task[None]] = set()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            await reader.read(1)
            writer.write(data)
            if stay:
                await done.wait()
            writer.close()
            await writer.wait_closed()

    def begin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.create_task(answer(reader, writer)))

    server = await asyncio.start_server(begin, "127.0.0.1", 0)
    async with server:
        try:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        finally:
            done.set()
            await asyncio.gather(*tasks)


@pytest.mark.parametrize(
    ("data", "stay", "expected"),
    [
        (b"", True, NotReachable),
        (b"", False, NotReachable),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", True, NotAGateway),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", True, NotAGateway),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", False, NotReachable),
    ],
    ids=["silent", "closing", "plain-http", "not-found", "another-protocol"],
)
@pytest.mark.gen_test
async def test_what_is_no_gateway_is_told_within_the_time(
    data: bytes, stay: bool, expected: type[NotReachable]
) -> None:
    async def connect(url: str) -> None:
        async with Gateway(url, TOKEN, connect_timeout=0.3):
            pytest.fail("it connected")

    async def list_them(url: str) -> None:
        await list_servers(url, TOKEN, timeout=0.3)

    async def follow(url: str) -> None:
        async with aclosing(events(url, TOKEN, connect_timeout=0.3)) as stream:
            await anext(stream)

    ways: tuple[Callable[[str], Awaitable[None]], ...] = (connect, list_them, follow)
    async with answering(data, stay=stay) as url:
        for way in ways:
            started = time.monotonic()
            with pytest.raises(expected):
                await way(url)
            assert time.monotonic() - started < 3


@pytest.mark.gen_test
async def test_a_gateway_that_is_not_there_is_not_reachable() -> None:
    async with answering(b"") as url:
        pass
    with pytest.raises(NotReachable) as gone:
        async with Gateway(url, TOKEN):
            pytest.fail("it connected")
    assert (gone.value.url, gone.value.reason) == (url, "Connection refused")
    with pytest.raises(NotReachable):
        await list_servers(url, TOKEN)
    with pytest.raises(NotReachable):
        await anext(events(url, TOKEN))


class Misbehaving(WebSocketHandler):
    """Greets as a gateway does and answers every frame with the text that it was made with."""

    def initialize(self, answer: str) -> None:
        self.answer = answer

    def open(self, *_args: str, **_kwargs: str) -> None:
        self.write_message('{"type": "status", "data": {"authenticated": true}}')

    def on_message(self, message: str | bytes) -> None:
        if not self.answer:
            self.write_message('{"type": "disconnect", "data": {"reason": "going home", "reconnect": true}}')
            self.close(3001)
            return
        self.write_message(self.answer.replace("ID", json.loads(message)["id"]))


@asynccontextmanager
async def misbehaving(answer: str) -> AsyncIterator[str]:
    server = HTTPServer(Application([(r"/ws", Misbehaving, {"answer": answer})]))
    sockets = bind_sockets(0, "127.0.0.1")
    server.add_sockets(sockets)
    try:
        yield f"http://127.0.0.1:{sockets[0].getsockname()[1]}"
    finally:
        server.stop()
        await server.close_all_connections()


@pytest.mark.gen_test
async def test_a_connection_that_is_closed_ends_every_open_call_and_says_why() -> None:
    async with misbehaving("") as url, Gateway(url, TOKEN, give_up_after=0) as gateway, asyncio.timeout(5):
        ends = await asyncio.gather(
            *(gateway.call("s", "t") for _ in range(3)), gateway.ping(), return_exceptions=True
        )
        for end in ends:
            assert isinstance(end, ConnectionLost)
            assert (end.close_code, end.temporary) == (3001, True)
            assert "going home" in str(end)
        assert len({id(end) for end in ends}) == 4


@pytest.mark.parametrize(
    "answer",
    [
        "no JSON",
        "[]",
        '{"type": 1}',
        '{"type": "tool_response", "id": "ID", "data": []}',
        '{"type": "tool_response", "id": "ID", "data": {"success": true}}',
        '{"type": "tool_progress", "id": "ID", "data": {}}',
        '{"type": "tool_response", "id": 7, "data": {}}',
    ],
)
@pytest.mark.gen_test
async def test_frames_that_are_none_end_the_call_and_never_hang_it(answer: str) -> None:
    async with misbehaving(answer) as url, Gateway(url, TOKEN) as gateway, asyncio.timeout(5):
        with pytest.raises((ConnectionLost, NotAGateway)):
            await gateway.call("s", "t", on_progress=lambda _: None)


# --- events -------------------------------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_events_come_as_long_as_they_are_taken(progress_gateway: GatewayProcess) -> None:
    async with aclosing(events(progress_gateway.url, progress_gateway.token())) as stream:
        first = await anext(stream)
        assert first.type == "connected"
        assert Position.parse(first.id) is not None
        assert first.retry == 3
        async with asyncio.timeout(5):
            events_between = [first]
            while (event := await anext(stream)).type != "heartbeat":
                events_between.append(event)
        assert event.id == events_between[-1].id


@pytest.mark.gen_test
async def test_a_stream_that_ends_says_so_and_one_that_is_no_stream_is_refused() -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
    async with answering(head + b'data: {"type": "a"}\n\ndata: {"type": "cut"}\n', stay=False) as url:
        stream = events(url, TOKEN)
        assert (await anext(stream)).type == "a"
        with pytest.raises(ConnectionLost):
            await anext(stream)
    async with answering(head + b"data: no JSON\n\n") as url:
        with pytest.raises(NotAGateway):
            await anext(events(url, TOKEN))
    body = b'{"error": {"code": "auth_failed", "message": "no", "temporary": false}}'
    refusal = b"HTTP/1.1 401 Unauthorized\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    async with answering(refusal) as url:
        with pytest.raises(Refused, match="no"):
            await anext(events(url, TOKEN))


STREAM = (
    "\ufeff: a comment\r\nretry: 1500\rid: 1\ndata: first\ndata\ndata:  line ü🎉\r\n\r\n"
    "event: named\ndata:x\n\nid: with\0nul\nretry: 1s\ndata: y\r\rid\nunknown: z\ndata: last\n\n"
    "event: empty\n\ndata: never ended"
).encode()
MESSAGES = [
    Message("message", "first\n\n line ü🎉", "1"),
    Message("named", "x", "1"),
    Message("message", "y", "1"),
    Message("message", "last", ""),
]


@given(st.lists(st.integers(0, len(STREAM)), max_size=40))
def test_a_stream_means_the_same_wherever_it_is_cut(cuts: list[int]) -> None:
    parser = EventParser()
    messages: list[Message] = []
    places = sorted({0, *cuts, len(STREAM)})
    for start, end in pairwise(places):
        messages += parser.feed(STREAM[start:end])
    assert messages == MESSAGES
    assert parser.retry == 1.5


def test_a_stream_means_the_same_byte_by_byte() -> None:
    parser = EventParser()
    assert [
        message for place in range(len(STREAM)) for message in parser.feed(STREAM[place : place + 1])
    ] == MESSAGES


def test_an_event_without_an_end_is_bounded_and_comments_without_end_are_not_counted() -> None:
    for line in (b"data: 12345678\n", b"x" * 15):
        parser = EventParser(limit=100)
        for _ in range(6):
            parser.feed(line)
        with pytest.raises(ValueError, match="larger than 100"):
            parser.feed(line * 6)
    parser = EventParser(limit=100)
    for _ in range(100):
        assert parser.feed(b": keep") == []
        assert parser.feed(b"-alive\n\n") == []
