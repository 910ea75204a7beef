"""A gateway with two workers, from outside: whichever accepts a connection, its user is served as by one."""

import asyncio
import json
import os
import signal
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.certificates import Authority
from tests.support.gateway_process import GatewayProcess, wait_until
from tests.support.raw_socket import TEXT, RawSocket, frame_bytes
from tests.support.socket_client import SocketClient, tool_call
from tests.workers.homes import user_of

FIRST, SECOND = user_of(1), user_of(2)
SEARCH = {"project": "p"}


def bearer(gateway: GatewayProcess, user: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {gateway.token(user)}"}


def started(folder: Path, configuration: str = "", arguments: tuple[str, ...] = ()) -> GatewayProcess:
    gateway = GatewayProcess(
        folder, configuration=configuration, arguments=("--workers", "2", *arguments), forked=False
    )
    return gateway.wait_listening(30)


def worker_pids(gateway: GatewayProcess) -> dict[int, int]:
    """The process ids of the workers that were started last, by their numbers."""
    pids: dict[int, int] = {}
    for line in gateway.log().splitlines():
        if '"worker started"' in line:
            fields = dict(part.split("=") for part in line.split() if "=" in part)
            pids[int(fields["worker"])] = int(fields["pid"])
    return pids


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    process = started(tmp_path_factory.mktemp("two"), "[websocket]\ncompression = true\n")
    yield process
    assert process.terminate() == 0
    assert " ERROR " not in process.log()


@pytest.mark.gen_test(timeout=30)
async def test_one_connection_of_a_proxy_serves_users_of_both_workers(gateway: GatewayProcess) -> None:
    async with await RawSocket.connect(gateway.url) as proxy:
        for user in (FIRST, SECOND, FIRST, FIRST, SECOND):
            await proxy.request("GET", "/api/v1/auth/me", bearer(gateway, user))
            answer = await proxy.read_answer()
            assert answer.status == 200
            assert answer.json()["user"] == user


@pytest.mark.gen_test(timeout=30)
async def test_requests_that_come_at_once_on_one_connection_are_answered_in_order(
    gateway: GatewayProcess,
) -> None:
    async with await RawSocket.connect(gateway.url) as proxy:
        host = gateway.url.removeprefix("http://")
        users = [FIRST, SECOND, SECOND, FIRST, SECOND]
        line = "GET /api/v1/auth/me HTTP/1.1"
        pieces = [
            f"{line}\r\nHost: {host}\r\nAuthorization: Bearer {gateway.token(user)}\r\n\r\n" for user in users
        ]
        await proxy.send("".join(pieces).encode())
        assert [(await proxy.read_answer()).json()["user"] for _ in users] == users


@pytest.mark.parametrize("user", [FIRST, SECOND])
@pytest.mark.gen_test(timeout=30)
async def test_a_large_body_that_is_still_on_its_way_goes_to_the_home_of_its_user(
    gateway: GatewayProcess, user: str
) -> None:
    text = "x" * 700_000
    body = json.dumps({"params": {"project": "p", "content": text}}).encode()
    path = "/api/v1/servers/memory/tools/memory_save"
    async with await RawSocket.connect(gateway.url) as client:
        fields = {
            **bearer(gateway, user),
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
        }
        await client.request("POST", path, fields)
        for start in range(0, len(body), 50_000):
            await client.send(body[start : start + 50_000])
        answer = await client.read_answer(15)
        # All of it was read, where the tool's own schema refuses so much.
        assert answer.json()["error"]["details"][0]["path"] == "/params/content"


@pytest.mark.parametrize("user", [FIRST, SECOND])
@pytest.mark.gen_test(timeout=30)
async def test_a_client_that_proves_late_who_it_is_keeps_its_id_and_loses_no_frame(
    gateway: GatewayProcess, user: str
) -> None:
    async with await RawSocket.connect(gateway.url) as client:
        assert (await client.upgrade()).status == 101
        greeting = await client.read_json()
        assert not greeting["data"]["authenticated"]
        auth = {"type": "auth", "id": "a", "data": {"token": gateway.token(user)}}
        first = [{"type": "ping", "id": "p1"}, auth, {"type": "ping", "id": "p2"}]
        call = tool_call("memory", "memory_search", SEARCH, call_id="c")
        half, rest = frame_bytes(TEXT, json.dumps(call).encode()), b""
        half, rest = half[:20], half[20:]
        await client.send(
            frame_bytes(TEXT, json.dumps(first).encode())
            + frame_bytes(TEXT, json.dumps({"type": "ping", "id": "p3"}).encode())
            + frame_bytes(TEXT, b'{"type": "ping", ', final=False)
            + frame_bytes(0, b'"id": "p4"}')
            + half
        )
        answers = [await client.read_json() for _ in range(5)]
        assert [(one["type"], one["id"]) for one in answers] == [
            ("pong", "p1"),
            ("status", "a"),
            ("pong", "p2"),
            ("pong", "p3"),
            ("pong", "p4"),
        ]
        status = answers[1]["data"]
        assert status["authenticated"]
        assert status["user"] == user
        assert status["clientId"] == greeting["data"]["clientId"]
        await client.send(rest)
        assert (await client.read_json())["type"] == "tool_response"


@pytest.mark.gen_test(timeout=30)
async def test_credentials_that_do_not_hold_leave_the_connection_where_it_is(gateway: GatewayProcess) -> None:
    client = await SocketClient.connect(gateway.socket_url)
    await client.receive()
    refused = await client.request({"type": "auth", "id": "a", "data": {"token": "x.y.z"}})
    assert refused["data"]["code"] == "auth_failed"
    for user in (FIRST, SECOND):
        accepted = await client.request({"type": "auth", "id": "b", "data": {"token": gateway.token(user)}})
        if accepted["type"] == "error":  # it belongs to the first by then
            assert accepted["data"]["code"] == "permission_denied"
        else:
            assert accepted["data"]["user"] == user == FIRST
    await client.leave()


@pytest.mark.gen_test(timeout=40)
async def test_a_user_has_no_more_connections_than_the_limit_whoever_accepts_them(
    gateway: GatewayProcess,
) -> None:
    user = user_of(2, prefix="many")
    token = gateway.token(user)
    clients = [await SocketClient.connect(gateway.socket_url, token=token) for _ in range(10)]
    for client in clients:
        assert (await client.receive())["data"]["user"] == user
    one_more = await SocketClient.connect(gateway.socket_url)
    await one_more.receive()
    await one_more.send({"type": "auth", "data": {"token": token}})
    assert await one_more.closed() == 3504
    for client in clients:
        await client.leave()


@pytest.mark.gen_test(timeout=30)
async def test_a_session_is_resumed_whichever_worker_accepts_its_client(gateway: GatewayProcess) -> None:
    user = user_of(1, prefix="resuming")
    token = gateway.token(user)
    first = await SocketClient.connect(gateway.socket_url, token=token)
    session = (await first.receive())["data"]["session"]
    await first.send(tool_call("memory", "memory_search", SEARCH, call_id="before"))
    await first.end_of("before")
    first.drop()
    first.close()
    for number in range(4):
        client = await SocketClient.connect(gateway.socket_url, token=token)
        await client.receive()
        data = {"session": session, "pending": []}
        answer = await client.request({"type": "resume", "id": str(number), "data": data})
        assert answer["data"]["resumed"] is True, answer
        client.drop()
        client.close()


@pytest.mark.gen_test(timeout=30)
async def test_a_ticket_is_good_once_whichever_worker_is_shown_it(gateway: GatewayProcess) -> None:
    for user in (FIRST, SECOND):
        async with await RawSocket.connect(gateway.url) as page:
            fields = {**bearer(gateway, user), "Content-Type": "application/json"}
            await page.request("POST", "/api/v1/auth/ticket", fields, b'{"purpose": "websocket"}')
            answer = await page.read_answer()
            assert answer.status == 200, answer.body
            ticket = answer.json()["ticket"]
        statuses = []
        for _ in range(3):
            async with await RawSocket.connect(gateway.url) as client:
                head = await client.upgrade(path=f"/ws?ticket={ticket}")
                assert head.status == 101
                statuses.append((await client.read_json())["data"]["authenticated"])
        assert statuses == [True, False, False]


@pytest.mark.gen_test(timeout=30)
async def test_an_event_is_read_by_users_of_both_workers_at_the_same_place(gateway: GatewayProcess) -> None:
    scopes = ("events:read", "rooms:join")
    clients = {
        user: await SocketClient.connect(gateway.socket_url, token=gateway.token(user, scopes))
        for user in (FIRST, SECOND)
    }
    for client in clients.values():
        await client.receive()
        answer = await client.request({"type": "subscribe", "id": "s", "data": {"channel": "room:hall"}})
        assert answer["type"] == "subscribed", answer
    await clients[FIRST].send(
        {"type": "publish", "id": "p", "data": {"channel": "room:hall", "payload": "hello"}}
    )
    heard: dict[str, Any] = {}
    for user, client in clients.items():
        while (frame := await client.receive())["type"] != "room.message":
            pass
        heard[user] = frame["id"]
    assert heard[FIRST] == heard[SECOND]
    for client in clients.values():
        await client.leave()


@pytest.mark.gen_test(timeout=60)
async def test_a_worker_that_is_killed_takes_nobody_else_with_it_and_comes_back(tmp_path: Path) -> None:
    gateway = started(tmp_path)
    try:
        stays = await SocketClient.connect(gateway.socket_url, token=gateway.token(FIRST))
        goes = await SocketClient.connect(gateway.socket_url, token=gateway.token(SECOND))
        await stays.receive()
        await goes.receive()
        before = worker_pids(gateway)
        os.kill(before[2], signal.SIGKILL)
        assert await goes.closed() in (None, 1006)
        assert (await stays.call("memory", "memory_search", SEARCH))["type"] == "tool_response"
        # Whoever comes while there is no worker for them waits until there is.
        again = await asyncio.wait_for(
            SocketClient.connect(gateway.socket_url, token=gateway.token(SECOND)), 20
        )
        assert (await again.receive())["data"]["user"] == SECOND
        assert worker_pids(gateway)[2] != before[2]
        assert worker_pids(gateway)[1] == before[1]
        await stays.leave()
        await again.leave()
    finally:
        assert gateway.terminate() == 0


@pytest.mark.gen_test(timeout=60)
async def test_an_encrypted_connection_is_encrypted_where_it_was_accepted_and_served_at_home(
    tmp_path: Path,
) -> None:
    authority = Authority(tmp_path)
    certificate, key = tmp_path / "gateway.pem", tmp_path / "gateway.key"
    authority.issue(certificate, key)
    gateway = started(tmp_path, f'[server]\ntls_certificate = "{certificate}"\ntls_key = "{key}"\n')
    trusted = ssl.create_default_context(cafile=str(authority.file))
    trusted.check_hostname = False
    try:
        port = int(gateway.url.rpartition(":")[2])
        for user in (FIRST, SECOND):
            for is_late in (False, True):
                reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trusted)
                client = RawSocket(reader, writer)
                token = gateway.token(user)
                assert (await client.upgrade(token=None if is_late else token)).status == 101
                status = await client.read_json()
                if is_late:
                    auth = {"type": "auth", "id": "a", "data": {"token": token}}
                    await client.send_frame(TEXT, json.dumps(auth).encode())
                    status = await client.read_json()
                assert status["data"]["user"] == user
                call = tool_call("memory", "memory_search", SEARCH, call_id="c")
                await client.send_frame(TEXT, json.dumps(call).encode())
                assert (await client.read_json())["type"] == "tool_response"
                writer.close()
                await writer.wait_closed()
    finally:
        assert gateway.terminate() == 0
    assert " ERROR " not in gateway.log()


def test_without_its_supervisor_every_worker_ends(tmp_path: Path) -> None:
    gateway = started(tmp_path, "[memory]\nenabled = false\n")
    pids = worker_pids(gateway).values()
    gateway.kill()

    def all_gone() -> bool:
        return not any(Path(f"/proc/{pid}").exists() for pid in pids)

    wait_until(all_gone, seconds=20, what="the end of the workers")
