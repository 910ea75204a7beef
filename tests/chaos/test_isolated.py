"""A server with an instance for each user, under everything that could mix them up."""

import asyncio
import json
import os
import signal
from collections.abc import Callable

import pytest

from tests.support.administered import toml
from tests.support.backends import alive
from tests.support.chaos import ALONE, code_of, connected
from tests.support.gateway_process import GatewayProcess
from tests.support.socket_client import SocketClient
from tests.support.waiting import until

StartProcess = Callable[..., GatewayProcess]
USERS = ("ann", "bob", "cid", "dan")


async def recall(client: SocketClient, call_id: str) -> tuple[int, object]:
    """The process that answers, and what was left in it; tried again while it is not there."""
    for attempt in range(100):
        frame = await client.call("own", "recall", call_id=f"{call_id}-{attempt}")
        if code_of(frame) == "answered":
            pid, value = json.loads(frame["data"]["content"][0]["text"])
            return pid, value
        assert code_of(frame) == "server_unavailable", frame
        await asyncio.sleep(0.05)
    raise AssertionError("it did not come back")


async def life_of(gateway: GatewayProcess, user: str, rounds: int) -> set[int]:
    """Leave a secret on one socket and find it, or nothing, on another; killing the process each round."""
    pids: set[int] = set()
    for number in range(rounds):
        async with connected(gateway, user) as one, connected(gateway, user) as other:
            pid, value = await recall(one, f"first-{number}")
            assert value in (None, user), f"{user} found {value}"
            await one.call("own", "remember", {"value": user}, call_id=f"remember-{number}")
            assert await recall(other, f"second-{number}") == (pid, user)
            pids.add(pid)
            os.kill(pid, signal.SIGKILL)
            await until(lambda pid=pid: not alive(pid))  # type: ignore[misc]
            fresh, value = await recall(other, f"third-{number}")
            assert (fresh != pid, value) == (True, None)
            pids.add(fresh)
    return pids


@pytest.mark.gen_test(timeout=40)
async def test_no_two_users_ever_share_a_process_whatever_dies(gateway_process: StartProcess) -> None:
    gateway = gateway_process(
        configuration=ALONE + toml("own", more="isolation = 'user'\nwarm = 1\nidle_stop = 1"),
        arguments=["--backends-retry-initial", "0.05", "--backends-retry-maximum", "0.2"],
    )
    lives = await asyncio.gather(*(life_of(gateway, user, 3) for user in USERS))
    for number, pids in enumerate(lives):
        others = set().union(*(other for at, other in enumerate(lives) if at != number))
        assert len(pids) >= 4
        assert not pids & others
