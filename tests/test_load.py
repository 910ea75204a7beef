"""Five hundred calls at once: none is lost, none is crossed, and nothing stays behind."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.gateway_process import GatewayProcess
from tests.support.socket_client import SocketClient, tool_call

SOCKETS = 50
CALLS = 10
MARGIN = 8 * 1024 * 1024


def memory_of(pid: int) -> int:
    """Resident memory of a process in bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("the process is gone")


async def calls_of_one_socket(gateway: GatewayProcess, number: int) -> None:
    """Ten calls at once on a socket of its own; each answer must speak of its own call."""
    client = await SocketClient.connect(gateway.socket_url, token=gateway.token(f"user-{number}"))
    await client.receive()
    names = {f"{number}-{call}" for call in range(CALLS)}
    await client.send(
        json.dumps(
            [tool_call("memory", "memory_search", {"project": name}, call_id=name) for name in sorted(names)]
        )
    )
    waiting = set(names)
    while waiting:
        answer = await client.receive(seconds=30)
        assert answer["type"] == "tool_response", answer
        assert answer["data"]["success"] is True
        assert [memory["content"] for memory in answer["data"]["result"]["memories"]] == [
            f"of {answer['id']}"
        ]
        waiting.remove(answer["id"])
    status = await client.request({"type": "status"})
    assert status["data"]["openCalls"] == []
    await client.leave()


@pytest.mark.gen_test(timeout=90)
async def test_five_hundred_calls_over_fifty_sockets_are_answered_each_with_its_own(
    gateway_process: Callable[..., GatewayProcess],
) -> None:
    gateway = gateway_process()
    client = await SocketClient.connect(gateway.socket_url, token=gateway.token())
    await client.receive()
    for number in range(SOCKETS):
        names = [f"{number}-{call}" for call in range(CALLS)]
        await client.send(
            json.dumps(
                [
                    tool_call(
                        "memory", "memory_save", {"project": name, "content": f"of {name}"}, call_id=name
                    )
                    for name in names
                ]
            )
        )
        for _ in names:
            assert (await client.receive())["data"]["success"] is True
    await client.leave()
    used: list[int] = []
    for _ in range(3):
        await asyncio.gather(*(calls_of_one_socket(gateway, number) for number in range(SOCKETS)))
        used.append(memory_of(gateway.process.pid))
    assert used[2] - used[0] < MARGIN, used
    assert gateway.terminate() == 0
    assert "draining connections=0" in gateway.log()
    assert "ERROR" not in gateway.log()
