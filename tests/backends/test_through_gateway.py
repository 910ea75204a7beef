"""What a WebSocket client sees of a backend that fails: each promise, with its code of the wire contract."""

import asyncio
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tornado.ioloop import IOLoop

from tests.conftest import StartGateway
from tests.support.backends import SERVERS, alive, connected, methods, recorded
from tests.support.socket_client import Frame, SocketClient, tool_call
from tests.support.waiting import until


def server(name: str, *options: object) -> str:
    """The table of a scripted server in ``mcpgw.toml``."""
    arguments = ["-S", str(SERVERS / "scripted.py"), "--name", name, *map(str, options)]
    return f"[servers.{name}]\ncommand = {sys.executable!r}\nargs = {arguments!r}\n"


async def frames_until_ended(client: SocketClient, *ids: str) -> dict[str, list[Frame]]:
    """Every frame of each call, until all have their end."""
    found: dict[str, list[Frame]] = {call_id: [] for call_id in ids}
    while not all(frames and frames[-1]["type"] in ("tool_response", "error") for frames in found.values()):
        frame = await client.receive()
        found[frame["id"]].append(frame)
    return found


@pytest.mark.gen_test(timeout=30)
async def test_kill_9_in_mid_call_is_outcome_unknown_and_others_notice_nothing(
    io_loop: IOLoop, start_gateway: StartGateway
) -> None:
    gateway = await start_gateway(server("doomed") + server("other"))  # with the default pauses
    async with connected(gateway, "ann") as client, connected(gateway, "bob") as neighbour:
        pid = int((await client.call("doomed", "pid"))["data"]["content"][0]["text"])
        ids = [f"call-{number}" for number in range(8)]
        for call_id in ids:
            await client.send(tool_call("doomed", "never", call_id=call_id))
        await client.send(tool_call("other", "hold", call_id="held"))
        await client.call("doomed", "echo", call_id="all of them have arrived")
        os.kill(pid, signal.SIGKILL)
        died = time.monotonic()
        ends = await frames_until_ended(client, *ids)
        assert time.monotonic() - died < 1
        assert {(len(frames), frames[0]["data"]["code"]) for frames in ends.values()} == {
            (1, "outcome_unknown")
        }
        assert (await neighbour.call("other", "echo"))["data"]["success"]
        refused = await neighbour.call("doomed", "echo", call_id="early")
        if refused["type"] == "error":  # it may already be back
            assert refused["data"]["code"] == "server_unavailable"
            assert refused["data"]["temporary"] is True
            assert refused["data"]["details"]["state"] in ("retrying", "starting")
        attempts = 0
        while refused["type"] == "error":
            assert time.monotonic() - died < 10, refused
            attempts += 1
            await asyncio.sleep(0.02)
            refused = await neighbour.call("doomed", "echo", call_id=f"again-{attempts}")
        await neighbour.call("other", "release")
        assert (await client.end_of("held"))["data"]["success"]


ENDS: dict[str, tuple[str, dict[str, Any], str]] = {
    "no answer": ("never", {}, "timeout"),
    "a line of 32 MB": ("huge", {"size": 32_000_000, "id": "last"}, "too_large"),
    "a protocol error": ("refuse", {"error": {"code": -32000, "message": "no"}}, "tool_execution_error"),
    "no tool result": ("raw", {"result": {"content": 1}}, "tool_execution_error"),
    "a value JSON has not": (
        "bytes",
        {
            "lines": ['{"jsonrpc":"2.0","id":%ID,"result":{"content":[],"structuredContent":{"x":NaN}}}\n'],
            "silent": True,
        },
        "tool_execution_error",
    ),
    "death": ("exit", {"code": 1}, "outcome_unknown"),
}


@pytest.mark.parametrize(("tool", "params", "code"), ENDS.values(), ids=ENDS.keys())
@pytest.mark.gen_test(timeout=30)
async def test_a_bad_end_has_its_code_within_the_deadline(
    io_loop: IOLoop, start_gateway: StartGateway, tool: str, params: dict[str, Any], code: str
) -> None:
    gateway = await start_gateway(server("one"))
    async with connected(gateway) as client:
        began = time.monotonic()
        end = await client.call("one", tool, params, timeoutMs=1000)
        assert end["data"]["code"] == code
        assert time.monotonic() - began < 2


@pytest.mark.parametrize("leave", ["cancel", "close", "drop", "timeout"])
@pytest.mark.gen_test(timeout=30)
async def test_a_caller_that_gives_up_is_told_to_the_server(
    io_loop: IOLoop, start_gateway: StartGateway, tmp_path: Path, leave: str
) -> None:
    record = tmp_path / "record"
    # A connection that broke has a time to come back; here it is short.
    gateway = await start_gateway(server("one", "--record", record), settings={"sessions.resume_time": 0.2})
    async with connected(gateway) as client:
        await client.send(tool_call("one", "never", timeoutMs=300 if leave == "timeout" else 20_000))
        await until(lambda: "tools/call" in methods(recorded(record)))
        if leave == "cancel":
            await client.send({"type": "cancel", "id": "call-1", "data": {}})
        elif leave == "close":
            client.close(1000)
        elif leave == "drop":
            client.drop()
        await until(lambda: "notifications/cancelled" in methods(recorded(record)), seconds=1.5)
        if leave in ("cancel", "timeout"):
            assert (await client.end_of("call-1"))["data"]["code"] == (
                "cancelled" if leave == "cancel" else leave
            )


@pytest.mark.gen_test(timeout=30)
async def test_a_server_that_cannot_start_makes_nobody_wait(
    io_loop: IOLoop, start_gateway: StartGateway
) -> None:
    broken = "[servers.missing]\ncommand = '/no/such/program'\n" + server("dies", "--at-start", "die")
    gateway = await start_gateway(broken + server("one"), settings={"backends.retry_initial": 30.0})
    async with connected(gateway) as client:
        for name in ("missing", "dies"):
            end = await client.call(name, "echo", call_id=name)
            assert end["data"]["code"] == "server_unavailable"
            assert end["data"]["details"]["state"] == "retrying"
            assert end["data"]["details"]["nextTryAt"] > time.time() * 1000 - 100
            assert end["data"]["retryAfterMs"] >= 0
        assert (await client.call("one", "echo"))["data"]["success"]


@pytest.mark.gen_test(timeout=30)
async def test_logs_of_a_call_are_frames_before_its_response(
    io_loop: IOLoop, start_gateway: StartGateway
) -> None:
    gateway = await start_gateway(server("one"))
    async with connected(gateway) as client:
        await client.send(tool_call("one", "log"))
        log, end = await client.receive(), await client.receive()
        assert log["type"] == "tool_log"
        assert log["data"] == {"level": "warning", "logger": "scripted", "data": {"line": 1, "none": None}}
        assert (end["type"], end["id"]) == ("tool_response", log["id"])


@pytest.mark.gen_test(timeout=30)
async def test_no_call_of_a_killed_server_is_run_again(
    io_loop: IOLoop, start_gateway: StartGateway, tmp_path: Path
) -> None:
    record = tmp_path / "record"
    gateway = await start_gateway(
        server("one", "--record", record), settings={"backends.retry_initial": 0.05}
    )
    async with connected(gateway) as client:
        pid = int((await client.call("one", "pid"))["data"]["content"][0]["text"])
        await client.send(tool_call("one", "never"))
        await until(lambda: methods(recorded(record)).count("tools/call") == 2)
        os.kill(pid, signal.SIGKILL)
        assert (await client.end_of("call-1"))["data"]["code"] == "outcome_unknown"
        await until(lambda: methods(recorded(record)).count("initialize") == 2)
        assert not alive(pid)
        await until(lambda: gateway.services.gateway._servers["one"].state == "ready")
        assert methods(recorded(record)).count("tools/call") == 2
