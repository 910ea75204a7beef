"""Restarts, many of them: nothing of the old instances stays, neither in the gateway nor beside it."""

import asyncio
import operator
import os
import signal
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.support.administered import toml
from tests.support.backends import alive
from tests.support.chaos import (
    ALONE,
    Watch,
    connected,
    descendants,
    files_of,
    memory_of,
    pid_of,
    servers_of,
    watching,
)
from tests.support.gateway_process import GatewayProcess
from tests.support.socket_client import SocketClient
from tests.support.waiting import until

StartProcess = Callable[..., GatewayProcess]
SERVERS = [f"doomed-{number}" for number in range(8)]
RESTARTS = 25
"""Of each."""
WARM_UP = 3
MARGIN = 16 * 1024 * 1024
"""The collector runs late: it grows over the first 300 restarts, and then by 2 MiB in 500."""
QUICK = ["--backends-retry-initial", "0.01", "--backends-retry-maximum", "0.01"]


def held(gateway: GatewayProcess) -> tuple[int, int]:
    """How many processes and file descriptors a gateway has."""
    return len(descendants(gateway.process.pid)), files_of(gateway.process.pid)


@pytest.mark.xdist_group("load")
@pytest.mark.gen_test(timeout=60)
async def test_two_hundred_restarts_leak_no_process_no_file_and_no_memory(
    gateway_process: StartProcess, tmp_path: Path
) -> None:
    # Each has a child that ignores every signal: only SIGKILL to the whole group ends it.
    tables = [toml(name, "--grandchild", tmp_path / name) for name in SERVERS]
    gateway = gateway_process(
        configuration=ALONE + "".join(tables),
        arguments=[*QUICK, "--backends-failed-after", "1000", "--events-log-size", "100"],
    )
    seen: set[int] = set()

    async def restart(watch: Watch, client: SocketClient, name: str, rounds: range) -> None:
        for number in rounds:
            seen.update((pid := await pid_of(client, name), int((tmp_path / name).read_text())))
            os.kill(pid, signal.SIGKILL)
            await watch.until("restarted", name, times=number)

    async with AsyncExitStack() as stack:
        watch = await stack.enter_async_context(watching(gateway))
        clients = [await stack.enter_async_context(connected(gateway, name)) for name in SERVERS]
        before, memory = held(gateway), 0
        for rounds in (range(1, WARM_UP + 1), range(WARM_UP + 1, RESTARTS + 1)):
            memory = memory_of(gateway.process.pid)
            await asyncio.gather(
                *(restart(watch, client, name, rounds) for client, name in zip(clients, SERVERS, strict=True))
            )
        assert len(seen) == 2 * RESTARTS * len(SERVERS)
        assert {server["state"] for server in (await servers_of(gateway)).values()} == {"ready"}
        await until(
            lambda: all(map(operator.le, held(gateway), before)), seconds=3, what="letting everything go"
        )
        grown = memory_of(gateway.process.pid) - memory
        assert grown < MARGIN, f"{grown // 1024} KiB more"
        assert not any(map(alive, seen))
        last = descendants(gateway.process.pid) | {int((tmp_path / name).read_text()) for name in SERVERS}
    assert gateway.terminate() == 0
    await until(lambda: not any(map(alive, last)), seconds=3, what="the end of every process")
