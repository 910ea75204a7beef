"""Everything at once: servers are killed and frozen at random while many users call."""

import asyncio
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress

import pytest

from tests.support.administered import toml
from tests.support.backends import alive
from tests.support.chaos import (
    ALONE,
    SOON,
    all_ready,
    code_of,
    connected,
    descendants,
    ends_of,
    running_with,
)
from tests.support.gateway_process import GatewayProcess
from tests.support.socket_client import tool_call

StartProcess = Callable[..., GatewayProcess]
SECONDS = 4.0
SERVERS = [f"server-{number}" for number in range(4)]
USERS = [f"user-{number}" for number in range(6)]
EXPECTED = {"answered", "outcome_unknown", "server_unavailable", "timeout"}


async def calling(gateway: GatewayProcess, user: str, until: float, seen: Counter[str]) -> None:
    """Call every server at once, again and again; each answer must be to its own call."""
    async with connected(gateway, user) as client:
        number = 0
        while time.monotonic() < until:
            number += 1
            began = time.monotonic()
            calls = {f"{user}-{number}-{server}": server for server in SERVERS}
            for call_id, server in calls.items():
                await client.send(
                    tool_call(server, "echo", {"mine": call_id}, call_id=call_id, timeoutMs=1000)
                )
            ends = await ends_of(client, *calls, seconds=4)
            # A call may wait 1.5 s for the next session, and then has its own second.
            assert time.monotonic() - began < 3.5
            for call_id, end in ends.items():
                seen[code_of(end)] += 1
                if end["type"] == "tool_response":
                    assert end["data"]["result"] == {"mine": call_id}


async def havoc(mark: str, until: float, dice: random.Random) -> int:
    """Kill, freeze and ask to end whatever server there is; answers how often."""
    count = 0
    while time.monotonic() < until:
        for pid in sorted(running_with(mark)):
            number = dice.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP, signal.SIGCONT, None])
            if number is not None:
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
                    count += 1
        await asyncio.sleep(dice.uniform(0.05, 0.4))
    for pid in running_with(mark):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
    return count


@pytest.mark.xdist_group("load")
@pytest.mark.gen_test(timeout=60)
async def test_every_call_has_one_end_in_time_whatever_happens_and_all_is_well_afterwards(
    gateway_process: StartProcess,
) -> None:
    mark, seed = f"havoc-{os.getpid()}", random.randrange(10**6)
    gateway = gateway_process(
        configuration=ALONE + "".join(toml(name, "--name", mark) for name in SERVERS) + toml("spared"),
        arguments=["--backends-retry-initial", "0.05", "--backends-retry-maximum", "0.3"],
    )
    until, seen = time.monotonic() + SECONDS, Counter[str]()
    async with connected(gateway, "neighbour") as neighbour:
        callers = [asyncio.create_task(calling(gateway, user, until, seen)) for user in USERS]
        wreaking = asyncio.create_task(havoc(mark, until, random.Random(seed)))
        slowest, number = 0.0, 0
        while time.monotonic() < until:
            number, began = number + 1, time.monotonic()
            spared = await neighbour.call("spared", "echo", call_id=f"spared-{number}")
            assert code_of(spared) == "answered"
            slowest = max(slowest, time.monotonic() - began)
            await asyncio.sleep(0.02)
        await asyncio.gather(*callers)
        assert await wreaking > 10, f"seed {seed}"
        assert seen.keys() <= EXPECTED, f"seed {seed}: {seen}"
        assert seen["answered"] > 20, f"seed {seed}: {seen}"
        assert slowest < SOON, f"seed {seed}"
        # Nobody does anything: they are all back.
        await all_ready(gateway, seconds=10)
        assert len(running_with(mark)) == len(SERVERS)
        family = descendants(gateway.process.pid)
    assert "Traceback" not in gateway.log()
    assert gateway.terminate() == 0
    assert not any(map(alive, family))
