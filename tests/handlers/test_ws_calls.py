"""Calls over the WebSocket: side by side, cancelled, late, too many, and left behind by their client."""

import asyncio
import gc
import json
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.conftest import LiveGateway, StartGateway
from tests.support.backends import SERVERS, connected
from tests.support.raw_socket import RawSocket
from tests.support.socket_client import SocketClient, tool_call
from tests.support.waiting import until

SLOW_SERVER = Path(__file__).parent.parent / "servers" / "slow_server.py"


async def assert_open(client: SocketClient) -> None:
    """The socket still answers, and nothing else had been said before."""
    pong = await client.request({"type": "ping", "id": "still-open"})
    assert (pong["type"], pong["id"]) == ("pong", "still-open")


class SlowGateway:
    """A gateway with the slow server, and what that server has written down."""

    def __init__(self, gateway: LiveGateway, record: Path) -> None:
        self.gateway = gateway
        self.record = record

    async def noted(self, line: str, seconds: float = 5.0) -> float:
        """Wait until the server has written `line`; answers how long that took."""
        started = time.monotonic()
        async with asyncio.timeout(seconds):
            while not self.record.exists() or line not in self.record.read_text().splitlines():
                await asyncio.sleep(0.01)
        return time.monotonic() - started


async def slow_gateway(start_gateway: StartGateway, tmp_path: Path, **settings: object) -> SlowGateway:
    """Start one."""
    record = tmp_path / "record.txt"
    configuration = f'[servers.slow]\ncommand = "{sys.executable}"\nargs = ["{SLOW_SERVER}", "{record}"]\n'
    names = {name.replace("__", "."): value for name, value in settings.items()}
    return SlowGateway(await start_gateway(configuration, settings=names), record)


@pytest.mark.gen_test
async def test_a_slow_call_does_not_hold_up_a_fast_one_on_the_same_socket(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    slow = await slow_gateway(start_gateway, tmp_path)
    client = await slow.gateway.connect()
    await client.send(tool_call("slow", "wait", {"seconds": 5, "mark": "slow"}, call_id="slow"))
    await slow.noted("started slow")
    started = time.monotonic()
    fast = await client.call("slow", "wait", {"seconds": 0.005, "mark": "fast"}, call_id="fast")
    assert time.monotonic() - started < 1
    assert fast["data"]["result"] == {"result": "fast"}
    status = await client.request({"type": "status"})
    assert status["data"]["openCalls"] == ["slow"]
    await client.leave()


@pytest.mark.gen_test
async def test_a_cancelled_call_has_one_end_and_its_backend_is_told(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    slow = await slow_gateway(start_gateway, tmp_path)
    client = await slow.gateway.connect()
    await client.send(tool_call("slow", "wait", {"seconds": 5, "mark": "a"}, call_id="a"))
    await slow.noted("started a")
    await client.send({"type": "cancel", "id": "a"})
    await client.send({"type": "cancel", "id": "a"})
    assert (await client.receive())["data"]["code"] == "cancelled"
    assert (await client.receive())["data"]["code"] == "unknown_call"
    assert await slow.noted("cancelled a") < 1.5
    await assert_open(client)
    assert (await client.call("slow", "other", {"mark": "b"}, call_id="a"))["data"]["success"] is True
    await client.leave()


@pytest.mark.gen_test
async def test_a_call_past_its_time_ends_with_timeout_and_its_backend_is_told(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    slow = await slow_gateway(start_gateway, tmp_path)
    client = await slow.gateway.connect()
    error = await client.call("slow", "wait", {"seconds": 5, "mark": "a"}, timeoutMs=200)
    assert (error["data"]["code"], error["data"]["temporary"]) == ("timeout", True)
    await slow.noted("cancelled a")
    await client.leave()


@pytest.mark.gen_test
async def test_an_id_that_is_open_is_refused_and_the_open_call_goes_on(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    slow = await slow_gateway(start_gateway, tmp_path)
    client = await slow.gateway.connect()
    await client.send(tool_call("slow", "wait", {"seconds": 0.3, "mark": "first"}, call_id="a"))
    error = await client.request(tool_call("slow", "other", {"mark": "second"}, call_id="a"))
    assert (error["id"], error["data"]["code"]) == ("a", "duplicate_id")
    assert (await client.end_of("a"))["data"]["result"] == {"result": "first"}
    await client.leave()


@pytest.mark.gen_test
async def test_the_seventeenth_call_at_once_is_refused_until_one_has_ended(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    slow = await slow_gateway(start_gateway, tmp_path)
    client = await slow.gateway.connect()
    calls = [tool_call("slow", "wait", {"seconds": 9, "mark": str(n)}, call_id=str(n)) for n in range(17)]
    await client.send(json.dumps(calls))
    refused = await client.receive()
    assert (refused["id"], refused["data"]["code"], refused["data"]["temporary"]) == (
        "16",
        "queue_full",
        True,
    )
    assert refused["data"]["retryAfterMs"] > 0
    await slow.noted("started 15")
    await client.send({"type": "cancel", "id": "0"})
    assert (await client.end_of("0"))["data"]["code"] == "cancelled"
    assert (await client.call("slow", "other", {"mark": "x"}, call_id="16"))["data"]["success"] is True
    await client.leave()
    await slow.noted("cancelled 15")


@pytest.mark.gen_test
@pytest.mark.parametrize("way", ["close", "cut", "reset"])
async def test_a_client_that_leaves_has_its_calls_stopped_at_once_and_a_lost_one_after_the_resume_time(
    start_gateway: StartGateway, tmp_path: Path, way: str
) -> None:
    resume_time = 0.5
    slow = await slow_gateway(start_gateway, tmp_path, sessions__resume_time=resume_time)
    socket = await RawSocket.connect(slow.gateway.url)
    assert (await socket.upgrade(token=slow.gateway.token())).status == 101
    for mark, more in (("a", {}), ("b", {}), ("told to end", {"onDisconnect": "cancel"})):
        call = tool_call("slow", "wait", {"seconds": 9, "mark": mark}, call_id=mark, **more)
        await socket.send_frame(0x1, json.dumps(call).encode())
        await slow.noted(f"started {mark}")
    assert len(slow.gateway.services.hub) == 1
    left = time.monotonic()
    if way == "close":
        await socket.send_frame(0x8, b"\x03\xe8")
    elif way == "reset":
        socket.reset()
    if way != "reset":
        socket.writer.close()
    await slow.noted("cancelled told to end")
    assert len(slow.gateway.services.hub) == 0
    if way != "close":
        assert "cancelled a" not in slow.record.read_text(), "a lost connection keeps its calls for a while"
        assert time.monotonic() - left < resume_time
    await slow.noted("cancelled a")
    await slow.noted("cancelled b")
    assert time.monotonic() - left < 1.5 + (0 if way == "close" else resume_time)


@pytest.mark.gen_test
async def test_an_answer_too_deep_to_be_json_is_still_an_answer(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    slow = await slow_gateway(start_gateway, tmp_path)
    client = await slow.gateway.connect()
    for levels in (200, 900, 950, 970, 985):
        answer = await client.call("slow", "deep", {"levels": levels}, call_id=str(levels))
        assert answer["type"] == "tool_response"
    await client.leave()


@pytest.mark.gen_test
async def test_a_silent_peer_is_given_up_after_the_pong_is_late(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    slow = await slow_gateway(
        start_gateway, tmp_path, websocket__ping_interval=0.2, websocket__pong_timeout=0.2
    )
    async with await RawSocket.connect(slow.gateway.url) as socket:
        await socket.upgrade(token=slow.gateway.token())
        await socket.read_json()
        assert await socket.read_frame() == (0x9, b"")
        code, _ = await socket.read_close()
        assert code is not None


@pytest.mark.gen_test(timeout=40)
async def test_nothing_stays_behind_when_clients_have_gone(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    slow = await slow_gateway(start_gateway, tmp_path)
    before = len(asyncio.all_tasks())

    async def visit(user: str) -> None:
        client = await slow.gateway.connect(user)
        calls = [tool_call("slow", "wait", {"seconds": 30, "mark": user}, call_id=str(n)) for n in range(8)]
        await client.send(json.dumps([*calls, tool_call("slow", "other", {"mark": user}, call_id="last")]))
        assert (await client.end_of("last"))["data"]["result"] == {"result": user}
        await client.leave()

    for _ in range(2):
        await asyncio.gather(*(visit(f"user-{n}") for n in range(10)))
    await until(lambda: len(slow.gateway.services.hub) == 0)
    await until(lambda: len(asyncio.all_tasks()) <= before, what="the end of every task")


@pytest.mark.parametrize("end", ["answer", "refusal", "cancel", "timeout"])
@pytest.mark.gen_test(timeout=30)
async def test_what_a_call_was_made_of_is_let_go_with_its_end_and_without_the_collector(
    start_gateway: StartGateway, end: str
) -> None:
    scripted = f'[servers.one]\ncommand = "{sys.executable}"\nargs = ["-S", "{SERVERS / "scripted.py"}"]\n'
    gateway = await start_gateway(scripted)
    tool = {"answer": "echo", "refusal": "refuse"}.get(end, "never")
    params = {"error": {"code": -32000, "message": "no"}} if end == "refusal" else {}
    async with connected(gateway) as client:
        await client.call("one", "echo", call_id="first")
        gc.disable()
        try:
            before = parts_of_calls()
            for number in range(3):
                call_id = f"call-{number}"
                milliseconds = 200 if end == "timeout" else 20_000
                await client.send(tool_call("one", tool, params, call_id=call_id, timeoutMs=milliseconds))
                if end == "cancel":
                    await client.send({"type": "cancel", "id": call_id})
                await client.end_of(call_id)
            await client.request({"type": "ping", "id": "the turn of the last end is over"})
            assert parts_of_calls() == before
        finally:
            gc.enable()


def parts_of_calls() -> Counter[str]:
    """How many objects there are of the kinds that each call is made of."""
    kinds = ("OpenCall", "CallRecord", "CallObserver", "BegunCall", "DirectToolCall", "OpenToolCall")
    return Counter(name for each in gc.get_objects() if (name := type(each).__name__) in kinds)
