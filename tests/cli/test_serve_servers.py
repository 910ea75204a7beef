"""What ``serve`` says of each server when it is ready, and how many the gateway counts as ready."""

import json
import os
import signal
from collections.abc import Callable

import pytest
from tornado.httpclient import AsyncHTTPClient

from tests.support.administered import toml
from tests.support.chaos import ALONE, connected, pid_of, state_of
from tests.support.gateway_process import GatewayProcess

StartProcess = Callable[..., GatewayProcess]


@pytest.mark.gen_test(timeout=30)
async def test_each_state_of_a_server_is_said_for_what_it_is(gateway_process: StartProcess) -> None:
    gateway = gateway_process(
        configuration=ALONE
        + toml("well")
        + toml("lazy", more="lazy = true")
        + toml("off", more="enabled = false")
        + toml("broken", "--at-start", "die"),
        arguments=["--backends-retry-initial", "1000", "--backends-retry-maximum", "1000"],
    )
    printed = gateway.printed()
    assert "  well: ready, " in printed
    assert "  lazy: idle, its first call starts it\n" in printed
    assert "  off: disabled\n" in printed
    assert (
        "  broken: not ready, retrying: its process ended with exit code 3: scripted cannot start\n"
        in printed
    )


@pytest.mark.gen_test(timeout=30)
async def test_a_degraded_server_takes_calls_and_is_counted(gateway_process: StartProcess) -> None:
    gateway = gateway_process(
        configuration=ALONE + toml("frozen") + toml("lazy", more="lazy = true"),
        arguments=[
            *("--backends-health-interval", "0.2"),
            *("--backends-health-timeout", "0.2"),
            *("--backends-health-failures", "1000"),
        ],
    )
    async with connected(gateway) as client:
        pid = await pid_of(client, "frozen")
    os.kill(pid, signal.SIGSTOP)
    try:
        await state_of(gateway, "frozen", "degraded")
        headers = {"Authorization": f"Bearer {gateway.token('ann')}"}
        answer = await AsyncHTTPClient().fetch(f"{gateway.url}/api/v1/gateway", headers=headers)
        assert json.loads(answer.body)["servers"] == {"ready": 1, "all": 2}
    finally:
        os.kill(pid, signal.SIGCONT)
