"""Servers that send what nobody can read, or more than anybody wants."""

import asyncio
import random
import sys
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.administered import toml
from tests.support.backends import SERVERS
from tests.support.chaos import (
    ALONE,
    SOON,
    code_of,
    connected,
    ends_of,
    memory_of,
    pid_of,
    slowest_while,
    text_of,
)
from tests.support.gateway_process import GatewayProcess
from tests.support.socket_client import tool_call

StartProcess = Callable[..., GatewayProcess]
MEBIBYTE = 1024 * 1024
SEED = 4


def garbage() -> list[str]:
    """Lines that are no answers: written as Latin-1, %ID is the id of the call that has them written."""
    dice = random.Random(SEED)
    noise = ["".join(chr(dice.randrange(256)) for _ in range(dice.randrange(400))) for _ in range(200)]
    return [
        *(f"{line}\n" for line in noise),
        "\n" * 1000,
        "[" * 100_000 + "\n",
        '{"jsonrpc":"2.0","id":%ID,"result"\n',
        '{"jsonrpc":"2.0","id":999999,"result":{"content":[]}}\n',
        '{"jsonrpc":"2.0","id":"%ID","error":{"code":"no number"}}\n',
        '{"jsonrpc":"2.0","id":null,"error":{"code":-32700,"message":"what?"}}\n',
        '{"jsonrpc":"1.0","method":7}\n',
        '{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":[],"progress":"NaN"}}\n',
        '{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":%ID}}\n',
        "null\n",
        "\x00" * 50_000 + "\n",
    ]


@pytest.mark.gen_test(timeout=30)
async def test_garbage_between_the_answers_costs_no_call_its_own(gateway_process: StartProcess) -> None:
    gateway = gateway_process(configuration=ALONE + toml("noisy"))
    async with connected(gateway) as client, connected(gateway, "bob") as neighbour:
        pid = await pid_of(client, "noisy")
        held = [f"held-{number}" for number in range(8)]
        for call_id in held:
            await client.send(tool_call("noisy", "hold", call_id=call_id))
        await client.call("noisy", "echo", call_id="all of them have arrived")
        # Silent: a line of the garbage may be taken for the end of the call that has it written.
        lines = {"lines": garbage(), "silent": True}
        end = await neighbour.call("noisy", "bytes", lines, call_id="garbage", timeoutMs=1000)
        assert code_of(end) in ("timeout", "tool_execution_error")
        assert await text_of(neighbour, "noisy", "echo", {"a": "ü"}, call_id="b") == '{"a": "\\u00fc"}'
        await neighbour.call("noisy", "release", {"order": "crossed"}, call_id="release")
        ends = await ends_of(client, *held)
        texts = [end["data"]["content"][0]["text"] for end in ends.values()]
        assert len(set(texts)) == len(held)
        assert await pid_of(client, "noisy") == pid


@pytest.mark.gen_test(timeout=30)
async def test_a_server_that_prints_before_its_handshake_starts_all_the_same(
    gateway_process: StartProcess,
) -> None:
    script = (
        f"echo Starting; head -c 300000 /dev/urandom; echo; exec {sys.executable} -S {SERVERS}/scripted.py"
    )
    gateway = gateway_process(
        configuration=ALONE + f"[servers.talker]\ncommand = 'sh'\nargs = ['-c', {script!r}]\n"
    )
    async with connected(gateway) as client:
        assert await text_of(client, "talker", "echo") == "{}"


PROGRESS: dict[str, Any] = {"steps": 20_000}
FLOODS: dict[str, tuple[str, dict[str, Any]]] = {
    "progress": ("progress", PROGRESS),
    "logs": (
        "flood",
        {
            "count": 20_000,
            "method": "notifications/message",
            "params": {"level": "info", "data": "x" * 200},
        },
    ),
    "changed lists": ("flood", {"count": 20_000, "method": "notifications/tools/list_changed"}),
    "questions": ("flood", {"count": 10_000, "method": "roots/list", "ask": True}),
    "stderr": ("complain", {"text": f"{'x' * 200}\n", "times": 40_000}),
}


@pytest.mark.xdist_group("load")
@pytest.mark.gen_test(timeout=60)
async def test_floods_of_every_kind_at_once_hold_up_nobody_and_fill_nothing(
    gateway_process: StartProcess,
) -> None:
    tables = [toml(f"flood-{number}") for number in range(len(FLOODS))]
    gateway = gateway_process(configuration=ALONE + "".join(tables) + toml("other"))
    async with connected(gateway) as client, connected(gateway, "bob") as neighbour:
        before = memory_of(gateway.process.pid)
        for number, (call_id, (tool, params)) in enumerate(FLOODS.items()):
            await client.send(tool_call(f"flood-{number}", tool, params, call_id=call_id))
        flooded = asyncio.create_task(ends_of(client, *FLOODS, seconds=40))
        slowest = await slowest_while(
            lambda: not flooded.done(), lambda: text_of(neighbour, "other", "echo", call_id="neighbour")
        )
        ends = await flooded
        assert {call_id: code_of(end) for call_id, end in ends.items()} == dict.fromkeys(FLOODS, "answered")
        assert slowest < SOON
        assert memory_of(gateway.process.pid) - before < 64 * MEBIBYTE
        assert gateway.log_file.stat().st_size < 4 * MEBIBYTE
        for number in range(len(FLOODS)):
            assert await text_of(client, f"flood-{number}", "echo", call_id=f"after-{number}") == "{}"
