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
FIRST_MARGIN = 12 * 1024 * 1024


def memory_of(pid: int) -> int:
    """Resident memory of a process in bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("the process is gone")


async def memory_when_warm(gateway: GatewayProcess) -> int:
    """What the gateway holds while fifty idle sockets are open that have each made one call."""
    clients = [
        await SocketClient.connect(gateway.socket_url, token=gateway.token(f"user-{number}"))
        for number in range(SOCKETS)
    ]
    for number, client in enumerate(clients):
        await client.receive()
        answer = await client.call("memory", "memory_search", {"project": f"{number}-0"}, call_id="warm")
        assert answer["type"] == "tool_response", answer
    used = memory_of(gateway.process.pid)
    for client in clients:
        await client.leave()
    return used


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
        if answer["type"] == "queued":  # more calls at once than the server takes
            continue
        assert answer["type"] == "tool_response", answer
        assert answer["data"]["success"] is True
        assert [memory["content"] for memory in answer["data"]["result"]["memories"]] == [
            f"of {answer['id']}"
        ]
        waiting.remove(answer["id"])
    status = await client.request({"type": "status"})
    assert status["data"]["openCalls"] == []
    await client.leave()


@pytest.mark.xdist_group("load")
@pytest.mark.gen_test(timeout=90)
async def test_five_hundred_calls_over_fifty_sockets_are_answered_each_with_its_own(
    gateway_process: Callable[..., GatewayProcess],
) -> None:
    # What is kept on purpose, for readers and clients who come back, is kept small and short.
    gateway = gateway_process(arguments=["--events-log-size", "100", "--sessions-resume-time", "0.2"])
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
            answer = await client.receive()
            while answer["type"] == "queued":
                answer = await client.receive()
            assert answer["data"]["success"] is True
    await client.leave()
    used = [await memory_when_warm(gateway)]
    for _ in range(3):
        await asyncio.gather(*(calls_of_one_socket(gateway, number) for number in range(SOCKETS)))
        used.append(memory_of(gateway.process.pid))
    assert used[1] - used[0] < FIRST_MARGIN, used
    assert used[3] - used[1] < MARGIN, used
    assert gateway.terminate() == 0
    assert "draining connections=0" in gateway.log()
    assert "ERROR" not in gateway.log()
