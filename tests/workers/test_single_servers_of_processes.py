"""A server that runs once, in a gateway of two processes."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.request import Request, urlopen

import pytest
from tornado.ioloop import IOLoop

from mcpgw.workers.peers import Peers
from tests.support.backends import SERVERS
from tests.support.gateway_process import GatewayProcess
from tests.support.socket_client import SocketClient, tool_call
from tests.support.waiting import until

CONFIGURATION = f"""
[servers.once]
command = "{sys.executable}"
args = ["-S", "{SERVERS / "scripted.py"}", "--record", "%s"]
single = true
"""


def at_home_with(number: int) -> str:
    """A user who is at home in that worker."""
    return next(name for name in map("user{}".format, range(100)) if Peers(1, 2).home_of(name) == number)


OWNER = Peers(1, 2).home_of("server once")
NEAR, FAR = at_home_with(OWNER), at_home_with(3 - OWNER)


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    folder = tmp_path_factory.mktemp("once")
    process = GatewayProcess(
        folder,
        configuration=CONFIGURATION % (folder / "record"),
        arguments=("--workers", "2"),
        forked=False,
    )
    try:
        yield process.wait_listening(60)
        assert process.terminate() == 0
    finally:
        if process.process.poll() is None:
            process.kill()


async def connected(gateway: GatewayProcess, user: str) -> SocketClient:
    client = await SocketClient.connect(gateway.socket_url, token=gateway.token(user))
    assert (await client.receive())["data"]["authenticated"]
    return client


async def pid_for(gateway: GatewayProcess, user: str) -> int:
    """The process that answers a user."""
    client = await connected(gateway, user)
    answer = await client.call("once", "pid")
    await client.leave()
    return int(answer["data"]["result"])


def parent_of(pid: int) -> int:
    """The worker that has started a server."""
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])


@pytest.mark.gen_test(timeout=60)
async def test_users_at_home_in_different_workers_use_one_process(
    io_loop: IOLoop, gateway: GatewayProcess
) -> None:
    assert await pid_for(gateway, NEAR) == await pid_for(gateway, FAR)
    started = (gateway.folder / "record").read_text().count('"initialize"')
    assert started == 1


@pytest.mark.gen_test(timeout=60)
async def test_what_happens_to_it_is_told_once(io_loop: IOLoop, gateway: GatewayProcess) -> None:
    client = await connected(gateway, FAR)
    await client.request({"type": "subscribe", "id": "s", "data": {"channel": "servers"}})
    told: list[int] = []
    for count in (1, 2, 3):
        await client.send(tool_call("once", "grow", {"name": f"grown{count}"}, call_id=f"c{count}"))
        while len(told) < count:
            frame = await client.receive()
            if frame["type"] == "server.tools_changed":
                told.append(frame["data"]["tools"])
    assert told == [told[0], told[0] + 1, told[0] + 2]
    listed = await client.request({"type": "list_tools", "id": "l", "data": {"serverId": "once"}})
    while listed.get("id") != "l":
        listed = await client.receive()
    assert len(listed["data"]["tools"]) == told[-1]
    await client.leave()


@pytest.mark.gen_test(timeout=90)
async def test_a_killed_owner_ends_the_calls_of_others_and_comes_back(
    io_loop: IOLoop, gateway: GatewayProcess
) -> None:
    before = await pid_for(gateway, FAR)
    client = await connected(gateway, FAR)
    await client.send(tool_call("once", "never", {}, call_id="lost"))
    await until(lambda: '"never"' in (gateway.folder / "record").read_text())
    os.kill(parent_of(before), signal.SIGKILL)
    end = await client.end_of("lost")
    assert end["data"]["code"] == "outcome_unknown"

    while True:  # the same connection goes on
        answer = await client.call("once", "pid", call_id="again")
        if answer["type"] == "tool_response":
            break
        assert answer["data"]["code"] == "server_unavailable"
        await asyncio.sleep(0.1)
    assert int(answer["data"]["result"]) != before
    assert not Path(f"/proc/{before}").exists()
    await client.leave()


@pytest.mark.gen_test(timeout=60)
async def test_its_state_is_known_in_both_workers(io_loop: IOLoop, gateway: GatewayProcess) -> None:
    def state(user: str) -> dict[str, object]:
        headers = {"Authorization": f"Bearer {gateway.token(user)}"}
        with urlopen(Request(f"{gateway.url}/api/v1/servers", headers=headers), timeout=10) as answer:
            listed = json.load(answer)["servers"]
        return next(one for one in listed if one["id"] == "once")

    near, far = [await asyncio.to_thread(state, user) for user in (NEAR, FAR)]
    assert near["state"] == far["state"] == "ready"
    assert near["tools"] == far["tools"]
