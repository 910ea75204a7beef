"""Eight servers of which one never starts."""

import re
import socket
import time
from collections.abc import Callable
from datetime import datetime

import pytest

from tests.support.administered import toml
from tests.support.chaos import ALONE, code_of, connected, servers_of, text_of
from tests.support.gateway_process import GatewayProcess
from tests.support.waiting import until

StartProcess = Callable[..., GatewayProcess]
HEALTHY = [f"well-{number}" for number in range(7)]
STATE = re.compile(r"^(\S+) INFO +mcpgw.backend (starting|ready) server=(\S+)", re.MULTILINE)
NEVER = {
    "says nothing": toml("never", "--at-start", "no-answers"),
    "dies again and again": toml("never", "--at-start", "die"),
    "takes connections and says nothing": "[servers.never]\nurl = 'http://127.0.0.1:{port}/mcp'\n",
}


async def seconds_until_ready(gateway: GatewayProcess) -> float:
    """From the start of the first server to the moment when the seventh takes calls, as the log has it."""

    def times(state: str) -> list[datetime]:
        found = STATE.findall(gateway.log())
        return [
            datetime.fromisoformat(at) for at, what, server in found if what == state and server in HEALTHY
        ]

    await until(lambda: len(times("ready")) == len(HEALTHY), seconds=20)
    return (max(times("ready")) - min(times("starting"))).total_seconds()


@pytest.mark.xdist_group("load")
@pytest.mark.gen_test(timeout=60)
async def test_seven_servers_are_ready_as_fast_as_without_the_eighth_that_never_is(
    gateway_process: StartProcess,
) -> None:
    seven = ALONE + "".join(map(toml, HEALTHY))
    first = gateway_process(configuration=seven)
    without = await seconds_until_ready(first)
    first.kill()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        for what, table in NEVER.items():
            gateway = gateway_process(
                configuration=seven + table.replace("{port}", str(port)), wait_for_servers=False
            )
            took = await seconds_until_ready(gateway)
            assert took < 2 * without + 2, f"{took:.2f} s where it {what}, {without:.2f} s without it"
            async with connected(gateway) as client:
                for name in HEALTHY:
                    assert await text_of(client, name, "echo", call_id=name) == "{}"
                began = time.monotonic()
                refused = await client.call("never", "echo", call_id="never")
                assert code_of(refused) == "server_unavailable"
                assert time.monotonic() - began < 0.5
            assert (await servers_of(gateway))["never"]["state"] in ("starting", "retrying", "failed")
            gateway.kill()
