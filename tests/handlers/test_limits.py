"""Every limit and every close code, reached over real sockets with small settings."""

import ast
import asyncio
import json
import time
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from mcpgw.errors import CloseCode
from tests.conftest import LiveGateway, StartGateway
from tests.handlers.test_ws_calls import slow_gateway
from tests.support.raw_socket import CLOSE, PING, PONG, TEXT, EventReader, RawSocket, fetch
from tests.support.socket_client import SocketClient, tool_call
from tests.support.waiting import until

TESTS = Path(__file__).parent.parent
Frame = dict[str, Any]
SOON: dict[str, object] = {"server__place_timeout": 0.2, "server__probe_timeout": 0.2}
"""For those who wait above their user's limit."""


async def limited(start_gateway: StartGateway, **settings: object) -> LiveGateway:
    """A gateway without backends; ``websocket__max_calls=2`` is the setting ``websocket.max_calls``."""
    return await start_gateway(settings={name.replace("__", "."): value for name, value in settings.items()})


async def opened(gateway: LiveGateway, token: str | None = None) -> RawSocket:
    """A raw socket that has been upgraded, and read nothing yet."""
    socket = await RawSocket.connect(gateway.url)
    assert (await socket.upgrade(token=token)).status == 101
    return socket


async def assert_told_and_closed(client: SocketClient, code: CloseCode) -> Frame:
    """The next frame is a goodbye with `code`, and so is the close; answers the goodbye's data."""
    goodbye = await client.receive()
    assert goodbye["type"] == "disconnect", goodbye
    data: Frame = goodbye["data"]
    assert (data["code"], data["reconnect"]) == (code, code.reconnect)
    assert await client.closed() == code
    return data


def is_empty(gateway: LiveGateway) -> bool:
    """Whether every place has been given back."""
    return gateway.services.hub.statistics().connections == 0


# --- connections -------------------------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_one_connection_too_many_of_all_is_told_after_the_upgrade_and_the_place_comes_back(
    start_gateway: StartGateway,
) -> None:
    gateway = await limited(start_gateway, server__max_connections=2)
    first, second = await gateway.connect("ann"), await gateway.connect("bob")
    third = await gateway.connect("cid")
    told = await assert_told_and_closed(third, CloseCode.CONNECTION_LIMIT)
    assert told["reason"] == "the gateway has its 2 connections"
    await first.leave()
    await until(lambda: gateway.services.hub.statistics().connections == 1)
    fourth = await gateway.connect("cid")
    assert (await fourth.request({"type": "ping"}))["type"] == "pong"
    for client in (second, fourth):
        await client.leave()


@pytest.mark.gen_test
async def test_one_connection_too_many_of_a_user_is_told_and_another_user_still_comes_in(
    start_gateway: StartGateway,
) -> None:
    gateway = await limited(start_gateway, server__max_connections_per_user=1, **SOON)
    first = await gateway.connect("ann")
    told = await assert_told_and_closed(await gateway.connect("ann"), CloseCode.CONNECTION_LIMIT)
    assert told["reason"] == "this user has 1 connection: close one first"
    other = await gateway.connect("bob")
    first.drop()
    assert await first.closed() is None
    await until(lambda: gateway.services.hub.statistics().by_user == {"bob": 1})
    again = await gateway.connect("ann")
    for client in (other, again):
        assert (await client.request({"type": "ping"}))["type"] == "pong"
        await client.leave()


@pytest.mark.gen_test
async def test_a_socket_that_proves_to_be_one_too_many_is_told_and_gives_its_place_back(
    start_gateway: StartGateway,
) -> None:
    gateway = await limited(start_gateway, server__max_connections_per_user=1, **SOON)
    first = await gateway.connect("ann")
    second = await SocketClient.connect(gateway.socket_url)
    assert (await second.receive())["data"]["requiresAuth"] is True
    answer = await second.request({"type": "auth", "data": {"token": gateway.token("ann")}})
    assert answer["data"]["authenticated"] is True
    await assert_told_and_closed(second, CloseCode.CONNECTION_LIMIT)
    await until(lambda: gateway.services.hub.statistics().connections == 1)
    await first.leave()
    await until(lambda: is_empty(gateway))


@pytest.mark.gen_test(timeout=20)
async def test_beyond_what_can_be_told_a_connection_is_503_before_the_upgrade(
    start_gateway: StartGateway,
) -> None:
    gateway = await limited(start_gateway, server__max_connections=1)
    first = await gateway.connect("ann")
    # These never answer the close, so that each is still being told when the next one comes.
    told = [await opened(gateway) for _ in range(100)]
    async with await RawSocket.connect(gateway.url) as socket:
        answer = await socket.upgrade()
    assert (answer.status, answer.json()["error"]["code"]) == (503, "queue_full")
    assert answer.json()["error"]["temporary"] is True
    for refused in told:
        assert (await refused.read_close())[0] == 3504
        await refused.send_frame(CLOSE, b"\x0d\xb0")
        refused.writer.close()
    assert (await first.request({"type": "ping"}))["type"] == "pong"
    await first.leave()
    await until(lambda: is_empty(gateway))
    await (await gateway.connect("ann")).leave()


@pytest.mark.gen_test
async def test_a_stream_too_many_is_503_and_streams_and_sockets_count_together(
    start_gateway: StartGateway,
) -> None:
    gateway = await limited(
        start_gateway, server__max_connections=3, server__max_connections_per_user=1, **SOON
    )
    ann = {"Authorization": f"Bearer {gateway.token('ann')}"}
    async with await EventReader.open(gateway.url, ann) as stream:
        assert stream.head.status == 200
        await assert_told_and_closed(await gateway.connect("ann"), CloseCode.CONNECTION_LIMIT)
        for path in ("/api/v1/events", "/api/v1/sse"):
            refused = await fetch(gateway.url, path, headers=ann)
            assert (refused.status, refused.json()["error"]["code"]) == (503, "queue_full")
        async with await EventReader.open(gateway.url), await EventReader.open(gateway.url):
            refused = await fetch(gateway.url, "/api/v1/events")
            assert refused.status == 503
            assert "has its 3 connections" in refused.json()["error"]["message"]
    await until(lambda: is_empty(gateway))
    async with await EventReader.open(gateway.url, ann) as stream:
        assert stream.head.status == 200


# --- rates -------------------------------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_frames_above_the_rate_are_refused_with_the_time_at_which_they_are_not(
    start_gateway: StartGateway,
) -> None:
    gateway = await limited(start_gateway, websocket__frames_rate=5, websocket__frames_burst=3)
    client = await gateway.connect()
    for n in range(3):
        assert (await client.request({"type": "ping", "id": str(n)}))["type"] == "pong"
    refused = await client.request({"type": "ping", "id": "late"})
    assert (refused["id"], refused["data"]["code"]) == ("late", "rate_limited")
    assert refused["data"]["temporary"] is True
    wait = refused["data"]["retryAfterMs"]
    assert 0 < wait <= 200
    # The limit is the user's, not the socket's.
    beside = await gateway.connect()
    assert (await beside.request({"type": "ping"}))["data"]["code"] == "rate_limited"
    stranger = await gateway.connect("bob")
    assert (await stranger.request({"type": "ping"}))["type"] == "pong"
    await asyncio.sleep(wait / 1000)
    assert (await client.request({"type": "ping"}))["type"] == "pong"
    for one in (client, beside, stranger):
        await one.leave()


@pytest.mark.gen_test
@pytest.mark.parametrize("user", ["ann", None])
@pytest.mark.parametrize("message", ['{"type":"ping"}', "[", b"\x00"])
async def test_a_flood_is_closed_with_3013(
    start_gateway: StartGateway, user: str | None, message: str | bytes
) -> None:
    gateway = await limited(
        start_gateway,
        websocket__frames_rate=0.1,
        websocket__frames_burst=2,
        websocket__max_refusals=5,
    )
    client = await SocketClient.connect(
        gateway.socket_url, token=None if user is None else gateway.token(user)
    )
    await client.receive()
    for _ in range(7):
        await client.connection.write_message(message, binary=isinstance(message, bytes))
    for _ in range(2):
        answer = await client.receive()
        assert answer["type"] == "pong" or answer["data"]["code"] == "parse_error"
    for _ in range(5):
        assert (await client.receive())["data"]["code"] == "rate_limited"
    await assert_told_and_closed(client, CloseCode.TOO_MANY_REQUESTS)


@pytest.mark.gen_test
async def test_calls_above_the_rate_are_refused_and_other_frames_are_not(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    slow = await slow_gateway(start_gateway, tmp_path, calls__rate=4, calls__burst=2)
    client = await slow.gateway.connect()
    for n in range(2):
        assert (await client.call("slow", "other", {"mark": "x"}, call_id=str(n)))["data"]["success"] is True
    refused = await client.call("slow", "other", {"mark": "x"}, call_id="late")
    assert (refused["data"]["code"], refused["data"]["temporary"]) == ("rate_limited", True)
    assert 0 < refused["data"]["retryAfterMs"] <= 250
    assert (await client.request({"type": "ping"}))["type"] == "pong"
    stranger = await slow.gateway.connect("bob")
    assert (await stranger.call("slow", "other", {"mark": "x"}))["data"]["success"] is True
    await asyncio.sleep(refused["data"]["retryAfterMs"] / 1000)
    assert (await client.call("slow", "other", {"mark": "x"}, call_id="late"))["data"]["success"] is True
    for one in (client, stranger):
        await one.leave()


# --- errors ------------------------------------------------------------------------------------------------

BAD: dict[str, tuple[str | None, str | bytes]] = {
    "parse_error": ("ann", "{"),
    "binary": ("ann", b"{}"),
    "unknown_type": ("ann", '{"type":"nonsense"}'),
    "invalid_params": ("ann", '{"type":"tool_call","id":"a","data":{}}'),
    "too_large": ("ann", json.dumps([{"type": "ping"}] * 101)),
    "unknown_channel": ("ann", '{"type":"subscribe","id":"a","data":{"channel":"nowhere"}}'),
    "auth_required": (None, '{"type":"list_tools"}'),
}


@pytest.mark.gen_test
@pytest.mark.parametrize(("user", "message"), BAD.values(), ids=BAD.keys())
async def test_too_many_refused_frames_in_a_row_are_closed_with_3509(
    start_gateway: StartGateway, user: str | None, message: str | bytes
) -> None:
    gateway = await limited(start_gateway, websocket__max_errors=3)
    client = await SocketClient.connect(
        gateway.socket_url, token=None if user is None else gateway.token(user)
    )
    await client.receive()
    for _ in range(3):
        await client.connection.write_message(message, binary=isinstance(message, bytes))
    for _ in range(3):
        assert (await client.receive())["type"] == "error"
    await assert_told_and_closed(client, CloseCode.TOO_MANY_ERRORS)


@pytest.mark.gen_test
async def test_a_good_frame_between_forgives_the_errors_before_it(start_gateway: StartGateway) -> None:
    gateway = await limited(start_gateway, websocket__max_errors=3)
    client = await gateway.connect()
    for _ in range(4):
        for _ in range(2):
            assert (await client.request("{"))["data"]["code"] == "parse_error"
        assert (await client.request({"type": "ping"}))["type"] == "pong"
    await client.leave()


@pytest.mark.gen_test
async def test_refusals_that_pass_are_no_errors_of_the_client(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    slow = await slow_gateway(start_gateway, tmp_path, websocket__max_errors=3, websocket__max_calls=1)
    client = await slow.gateway.connect()
    calls = [tool_call("slow", "wait", {"seconds": 9, "mark": "m"}, call_id=str(n)) for n in range(9)]
    await client.send(json.dumps(calls))
    for _ in range(8):
        assert (await client.receive())["data"]["code"] == "queue_full"
    assert (await client.request({"type": "ping"}))["type"] == "pong"
    await client.leave()


# --- calls -------------------------------------------------------------------------------------------------


@pytest.mark.gen_test(timeout=20)
async def test_calls_above_the_cap_of_a_server_wait_in_line_by_turns_and_are_told_their_position(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    slow = await slow_gateway(start_gateway, tmp_path, backends__max_calls=1)
    ann, bob = await slow.gateway.connect("ann"), await slow.gateway.connect("bob")

    def calls(user: str, count: int) -> list[Frame]:
        ids = [f"{user}-{n}" for n in range(count)]
        return [tool_call("slow", "wait", {"seconds": 0.1, "mark": name}, call_id=name) for name in ids]

    await ann.send(json.dumps(calls("ann", 5)))
    for position in (1, 2, 3, 4):
        queued = await ann.receive()
        assert (queued["type"], queued["data"]["position"]) == ("queued", position)
        assert queued["id"] == f"ann-{position}"
    await bob.send(json.dumps(calls("bob", 2)))
    queued = await bob.receive()
    # Bob's first comes before all but one of those that wait already, whichever user's turn is next.
    assert (queued["type"], queued["id"]) == ("queued", "bob-0")
    assert queued["data"]["position"] <= 2
    for client, names in ((ann, [f"ann-{n}" for n in range(5)]), (bob, ["bob-0", "bob-1"])):
        for name in names:
            assert (await client.end_of(name))["data"]["result"] == {"result": name}
    started = [
        line.removeprefix("started ")
        for line in slow.record.read_text().splitlines()
        if line.startswith("started")
    ]
    assert [name for name in started if name.startswith("ann")] == [f"ann-{n}" for n in range(5)]
    assert started.index("bob-0") <= 2
    assert started.index("bob-1") <= 4
    for client in (ann, bob):
        await client.leave()


@pytest.mark.gen_test
async def test_where_the_line_before_a_server_is_full_the_next_is_refused(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    slow = await slow_gateway(start_gateway, tmp_path, backends__max_calls=1, backends__max_waiting=1)
    client = await slow.gateway.connect()
    for name in ("runs", "waits", "full"):
        await client.send(tool_call("slow", "wait", {"seconds": 9, "mark": name}, call_id=name))
    assert (await client.receive())["type"] == "queued"
    refused = await client.end_of("full")
    assert (refused["data"]["code"], refused["data"]["temporary"]) == ("queue_full", True)
    assert refused["data"]["retryAfterMs"] > 0
    await client.leave()


# --- silence -----------------------------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_a_client_that_answers_no_ping_is_told_and_closed_with_3012(
    start_gateway: StartGateway,
) -> None:
    gateway = await limited(start_gateway, websocket__ping_interval=0.2, websocket__pong_timeout=0.2)
    async with await opened(gateway, gateway.token()) as socket:
        await socket.read_json()
        assert await socket.read_frame() == (PING, b"")
        # A frame is a sign of life, and no pong.
        await socket.send_frame(TEXT, b'{"type":"ping"}')
        assert (await socket.read_json())["type"] == "pong"
        goodbye = await socket.read_json()
        assert (goodbye["type"], goodbye["data"]["code"]) == ("disconnect", 3012)
        assert goodbye["data"]["reconnect"] is True
        assert await socket.read_close() == (3012, "no pong in time")
    await until(lambda: is_empty(gateway))


@pytest.mark.gen_test
async def test_a_client_that_answers_pings_stays_although_it_says_nothing(
    start_gateway: StartGateway,
) -> None:
    gateway = await limited(
        start_gateway,
        websocket__ping_interval=0.1,
        websocket__pong_timeout=0.1,
        websocket__read_timeout=0.3,
    )
    async with await opened(gateway, gateway.token()) as socket:
        await socket.read_json()
        began = time.monotonic()
        while time.monotonic() - began < 0.8:
            assert await socket.read_frame() == (PING, b"")
            await socket.send_frame(PONG)


@pytest.mark.gen_test
async def test_silence_without_any_sign_of_life_is_closed_with_3012(start_gateway: StartGateway) -> None:
    gateway = await limited(
        start_gateway,
        websocket__ping_interval=60,
        websocket__pong_timeout=10,
        websocket__read_timeout=0.4,
    )
    async with await opened(gateway, gateway.token()) as socket:
        await socket.read_json()
        await asyncio.sleep(0.25)
        await socket.send_frame(TEXT, b'{"type":"ping"}')
        alive = time.monotonic()
        assert (await socket.read_json())["type"] == "pong"
        goodbye = await socket.read_json()
        assert (goodbye["type"], goodbye["data"]["code"]) == ("disconnect", 3012)
        assert time.monotonic() - alive >= 0.35
        assert (await socket.read_close())[0] == 3012
    await until(lambda: is_empty(gateway))


# --- what stays behind -------------------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_the_sweep_forgets_what_nobody_needs_any_more(start_gateway: StartGateway) -> None:
    gateway = await limited(start_gateway, server__sweep_interval=0.1, websocket__frames_rate=1000)
    client = await gateway.connect()
    await client.request({"type": "ping"})
    # The bucket of this user is full again in a millisecond: nobody can tell it from a new one.
    await until(lambda: len(gateway.services.limits) == 0, seconds=3, what="the sweep")
    await client.request({"type": "ping"})
    assert len(gateway.services.limits) == 1
    await until(lambda: len(gateway.services.limits) == 0, seconds=3, what="the next sweep")
    await client.leave()


# --- every close code ---------------------------------------------------------------------------------------


@cache
def codes_in_tests() -> dict[int, set[str]]:
    """The close codes that tests over real sockets compare with, each with the names of these tests.

    A code counts where it stands in a comparison, in what is given to a check of this file, or in the
    parameters of a test.
    """
    found: dict[int, set[str]] = {}
    by_name = {code.name: code.value for code in CloseCode}
    files = [*sorted(TESTS.glob("handlers/test_*.py")), TESTS / "test_app.py"]
    for file in files:
        for test in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(test, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            if not test.name.startswith("test_"):
                continue
            for node in _where_codes_are_held(test):
                if isinstance(node, ast.Constant) and type(node.value) is int:
                    found.setdefault(node.value, set()).add(test.name)
                elif isinstance(node, ast.Attribute) and node.attr in by_name:
                    found.setdefault(by_name[node.attr], set()).add(test.name)
    return found


def _where_codes_are_held(test: ast.FunctionDef | ast.AsyncFunctionDef) -> list[ast.AST]:
    places: list[ast.AST] = list(test.decorator_list)
    for node in ast.walk(test):
        told = isinstance(node, ast.Call) and getattr(node.func, "id", "") == "assert_told_and_closed"
        if told or isinstance(node, ast.Assert):
            places.append(node)
    return [inner for place in places for inner in ast.walk(place)]


@pytest.mark.parametrize("code", list(CloseCode), ids=lambda code: str(int(code)))
def test_every_close_code_has_a_test(code: CloseCode) -> None:
    assert codes_in_tests().get(code), f"no test over a real socket looks for {code.value} ({code.name})"
