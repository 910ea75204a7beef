"""``mcpgw room``: rooms for guests, and what a gateway does about them that runs, or starts again."""

import asyncio
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.browser import browsing
from tests.support.command_line import on, run
from tests.support.gateway_process import GatewayProcess
from tests.support.raw_socket import fetch
from tests.support.socket_client import SocketClient

SCOPE = ("--scope", "tools:call:memory")


async def join(gateway: GatewayProcess, code: str, name: str) -> dict[str, Any]:
    """What a guest is given."""
    body = json.dumps({"code": code, "name": name}).encode()
    async with asyncio.timeout(5):
        # The gateway looks every half second (`auth.watch_interval`) for what commands have made.
        while (
            answer := await fetch(gateway.url, "/api/v1/rooms/join", method="POST", body=body)
        ).status == 401:
            await asyncio.sleep(0.1)
    assert answer.status == 201, answer.body
    joined: dict[str, Any] = answer.json()
    return joined


async def enter(gateway: GatewayProcess, token: str) -> SocketClient:
    """A socket in the room."""
    client = await SocketClient.connect(gateway.socket_url, token=token)
    await client.receive()
    subscribe = {"type": "subscribe", "id": "s", "data": {"channel": "room:demo"}}
    assert (await client.request(subscribe))["type"] == "subscribed"
    return client


@pytest.mark.gen_test(timeout=60)
async def test_a_room_is_ruled_from_the_command_line_and_outlives_the_gateway(
    gateway_process: Callable[..., GatewayProcess],
) -> None:
    first = gateway_process()
    data = ("--data-dir", str(first.data_dir))
    made = run("room", "create", "demo", *SCOPE, "--quota", "60/min", "--ttl", "4h", *data)
    assert made.returncode == 0, made.stderr
    code, link = made.stdout.splitlines()
    assert link == f"{first.url}/join#{code}"
    (shown,) = json.loads(run("room", "list", "--json", *data).stdout)["rooms"]
    assert (shown["name"], shown["quota"], shown["scopes"]) == ("demo", "60/min", ["tools:call:memory"])
    assert shown["endsAt"] - shown["createdAt"] == 4 * 3600 * 1000
    ann, bob = await join(first, code, "Ann"), await join(first, code, "Bob")
    before = await enter(first, ann["accessToken"])
    assert first.terminate() == 0
    assert await before.closed() == 3001

    second = GatewayProcess(first.folder)
    try:
        second.wait_listening()
        at_ann, at_bob = [await enter(second, one["accessToken"]) for one in (ann, bob)]
        assert (await at_ann.call("memory", "memory_projects"))["type"] == "tool_response"
        assert run("room", "freeze", "demo", *data).returncode == 0
        await heard(at_bob, "room.frozen")
        assert (await at_bob.call("memory", "memory_projects"))["type"] == "error"
        assert run("room", "mute", "demo", "bob", *data).returncode == 0
        await heard(at_bob, "room.muted")
        assert run("room", "kick", "demo", "ANN", *data).returncode == 0
        assert await at_ann.closed(1) == 3503, "within a second"
        table = run("room", "guests", "demo", *data).stdout.splitlines()
        assert [line.split("\t")[1:3] for line in table[1:]] == [["Ann", "kicked"], ["Bob", "muted"]]
        gone = run("room", "end", "dem0", *data)
        assert (gone.returncode, "did you mean 'demo'?" in gone.stderr) == (2, True)
        assert run("room", "end", "demo", *data).returncode == 0
        assert await at_bob.closed(1) == 3503
        everything = first.log() + "".join(path.read_text() for path in first.folder.rglob("*.jsonl"))
        assert code not in everything
        assert code.replace("-", "") not in everything
        assert code not in second.printed()
    finally:
        second.process.send_signal(signal.SIGTERM)
        second.process.wait(20)


async def heard(client: SocketClient, type_name: str) -> None:
    """Read on to the first frame of a type, at most a second."""
    while (await client.receive(1))["type"] != type_name:
        pass


def test_what_cannot_be_a_room_is_refused_with_the_reason(
    shared_gateway: GatewayProcess, tmp_path: Path
) -> None:
    early = run("room", "create", "demo", *SCOPE, "--data-dir", tmp_path / "data")
    assert (early.returncode, "start the gateway there once" in early.stderr) == (2, True)
    wrong = ("a b", "--scope", "tools:cal", "--scope", "admin", "--quota", "many", "--guests", "0")
    refused = run("room", "create", *wrong, *on(shared_gateway))
    assert refused.returncode == 2
    for reason in (
        "cannot be the name of a room",
        "is not known",
        "not for guests",
        "is no quota",
        "1 to 1000 guests",
    ):
        assert reason in refused.stderr


@pytest.mark.gen_test(timeout=60)
async def test_the_link_leads_to_a_page_on_which_one_joins(shared_gateway: GatewayProcess) -> None:
    made = json.loads(run("room", "create", "page", *SCOPE, "--json", *on(shared_gateway)).stdout)
    async with browsing() as page:
        await page.goto(made["link"])
        assert await page.input_value("#code") == made["code"]
        assert made["code"] not in page.url, "nor in the browser's history"
        await page.fill("#name", "  Ann  ")
        await page.click("#joining button")
        await page.wait_for_selector("#joined", state="visible")
        assert await page.text_content("#room") == "You are in the room page."
        assert await page.text_content("#shown-name") == "Ann"
        token = await page.input_value("#token")
    me = (
        await fetch(shared_gateway.url, "/api/v1/auth/me", headers={"Authorization": f"Bearer {token}"})
    ).json()
    assert (me["credentials"], me["room"]) == ("guest", "page")
    assert run("room", "end", "page", *on(shared_gateway)).returncode == 0
    assert made["code"] not in shared_gateway.log()
