"""Servers that are frozen for ten seconds (SIGSTOP)."""

import asyncio
import os
import signal
import time
from collections.abc import Callable

import pytest

from tests.support.administered import toml
from tests.support.backends import alive
from tests.support.chaos import (
    ALONE,
    SOON,
    code_of,
    connected,
    ends_of,
    pid_of,
    slowest_while,
    text_of,
    watching,
)
from tests.support.gateway_process import GatewayProcess
from tests.support.socket_client import tool_call
from tests.support.waiting import until

StartProcess = Callable[..., GatewayProcess]
FROZEN_SECONDS = 10.0


@pytest.mark.gen_test(timeout=40)
async def test_servers_that_are_frozen_for_ten_seconds_hold_up_nobody_and_need_nobody(
    gateway_process: StartProcess,
) -> None:
    gateway = gateway_process(
        configuration=ALONE + toml("busy") + toml("idle") + toml("other"),
        arguments=["--backends-health-interval", "1", "--backends-health-timeout", "1"],
    )
    async with (
        watching(gateway) as watch,
        connected(gateway) as client,
        connected(gateway, "bob") as neighbour,
    ):
        busy, idle = await pid_of(client, "busy"), await pid_of(client, "idle")
        for pid in (busy, idle):
            os.kill(pid, signal.SIGSTOP)
        frozen_at = time.monotonic()
        try:
            await client.send(tool_call("busy", "pid", call_id="short", timeoutMs=2000))
            await client.send(tool_call("busy", "pid", call_id="long", timeoutMs=30_000))
            assert code_of(await client.end_of("short", seconds=4)) == "timeout"
            assert time.monotonic() - frozen_at < 3
            thawing = asyncio.create_task(asyncio.sleep(FROZEN_SECONDS - (time.monotonic() - frozen_at)))
            # Nobody waits for the one: it is replaced. The other may be at work: it is waited for.
            await watch.until("restarted", "idle", seconds=FROZEN_SECONDS)
            assert not alive(idle)
            assert await pid_of(client, "idle") != idle
            slowest = await slowest_while(
                lambda: not thawing.done(),
                lambda: text_of(neighbour, "other", "echo", call_id="neighbour"),
            )
            assert slowest < SOON
            assert watch.names("busy") == ["status_update"]
            assert watch.of("busy")[-1]["data"]["state"] == "degraded"
        finally:
            os.kill(busy, signal.SIGCONT)
        [long] = (await ends_of(client, "long", seconds=5)).values()
        assert long["data"]["content"][0]["text"] == str(busy)
        await until(lambda: len(watch.names("busy")) == 2)
        assert watch.of("busy")[-1]["data"]["state"] == "ready"
        assert await pid_of(client, "busy") == busy
        assert watch.names("other") == []
