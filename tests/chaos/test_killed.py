"""Servers that are killed, at every moment of their lives, and what their users see of it."""

import asyncio
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.administered import toml
from tests.support.backends import alive
from tests.support.chaos import (
    ALONE,
    SOON,
    all_ready,
    code_of,
    connected,
    ends_of,
    pid_of,
    running_with,
    slowest_while,
    text_of,
    watching,
)
from tests.support.gateway_process import GatewayProcess
from tests.support.socket_client import tool_call
from tests.support.waiting import until

StartProcess = Callable[..., GatewayProcess]
PATIENT = ["--calls-retry-wait", "8"]
"""A process takes its time to start where many do."""
BACK = 10.0
"""Seconds, as promised."""


@pytest.mark.gen_test(timeout=30)
async def test_a_server_killed_while_nobody_calls_is_there_for_the_next_call(
    gateway_process: StartProcess,
) -> None:
    gateway = gateway_process(
        configuration=ALONE + toml("doomed") + toml("other"),  # with the default pauses
        arguments=PATIENT,
    )
    async with watching(gateway) as watch, connected(gateway) as client:
        for round_number in range(2):
            pid = await pid_of(client, "doomed")
            os.kill(pid, signal.SIGKILL)
            began = time.monotonic()
            # A call to one that is dying may have been read; the gateway has yet to see that it is dead.
            await until(lambda pid=pid: not alive(pid))  # type: ignore[misc]
            assert await text_of(client, "doomed", "echo", call_id=f"next-{round_number}") == "{}"
            assert time.monotonic() - began < BACK
            assert await pid_of(client, "doomed") != pid
            await watch.until("restarted", "doomed", times=round_number + 1)
        assert watch.names("doomed") == ["retrying", "starting", "restarted"] * 2
        told = watch.of("doomed")[0]["data"]
        assert told["reason"] == "its process was ended by signal 9"
        assert told["nextTryAt"] <= time.time() * 1000
        assert watch.names("other") == []


@pytest.mark.gen_test(timeout=30)
async def test_a_server_killed_in_mid_call_answers_reads_again_and_runs_nothing_else_twice(
    gateway_process: StartProcess, tmp_path: Path
) -> None:
    deaths = tmp_path / "deaths"
    gateway = gateway_process(
        configuration=ALONE + toml("doomed", "--deaths", deaths) + toml("other"),
        arguments=[*PATIENT, "--backends-retry-initial", "0.1"],
    )
    async with connected(gateway) as client, connected(gateway, "bob") as neighbour:
        unsafe = [f"unsafe-{number}" for number in range(6)]
        for call_id in unsafe:
            await client.send(tool_call("doomed", "never", call_id=call_id))
        pid = await pid_of(neighbour, "doomed")
        reads = {"reading": "die_once_reading", "idempotent": "die_once_idempotent"}
        for call_id, tool in reads.items():
            began = time.monotonic()
            await client.send(tool_call("doomed", tool, {"key": call_id}, call_id=call_id))
            waiting = [call_id, *unsafe]
            reading = asyncio.create_task(ends_of(client, *waiting))
            slowest = await slowest_while(
                lambda reading=reading: not reading.done(),  # type: ignore[misc]
                lambda: text_of(neighbour, "other", "echo", call_id="neighbour"),
            )
            ends = await reading
            assert time.monotonic() - began < BACK
            assert slowest < SOON
            assert {name: code_of(frame) for name, frame in ends.items()} == {
                call_id: "answered",
                **dict.fromkeys(unsafe, "outcome_unknown"),
            }
            unsafe = []
        assert deaths.read_text().split() == ["reading"] * 2 + ["idempotent"] * 2
        assert not alive(pid)


@pytest.mark.gen_test(timeout=30)
async def test_a_server_killed_during_its_handshake_makes_nobody_wait_and_is_started_again(
    gateway_process: StartProcess, tmp_path: Path
) -> None:
    note, mark = tmp_path / "may-answer", f"mute-{os.getpid()}"
    mute = toml("mute", "--at-start", "no-answers", "--unless", note, "--name", mark)
    gateway = gateway_process(
        configuration=ALONE + toml("other") + mute,
        arguments=["--backends-retry-initial", "1.5", "--backends-retry-maximum", "1.5"],
        wait_for_servers=False,
    )
    async with watching(gateway) as watch, connected(gateway) as client:
        await all_ready(gateway, "other")
        await until(lambda: running_with(mark))
        [pid] = running_with(mark)
        for call_id in ("while it starts", "once it is dead"):
            began = time.monotonic()
            refused = await client.call("mute", "echo", call_id=call_id)
            assert code_of(refused) == "server_unavailable"
            assert time.monotonic() - began < SOON
            if call_id == "while it starts":
                assert refused["data"]["details"]["state"] == "starting"
                os.kill(pid, signal.SIGKILL)
                told = await watch.until("retrying", "mute")
                assert told["data"]["reason"] == "its process was ended by signal 9"
                note.touch()
        assert await text_of(client, "other", "echo") == "{}"
        await watch.until("started", "mute")
        assert await text_of(client, "mute", "echo") == "{}"
