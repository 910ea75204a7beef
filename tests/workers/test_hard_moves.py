"""A gateway with two workers, from outside: connections that move in a bad moment, or with too much."""

import asyncio
import json
import os
import signal
import socket
import ssl
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tornado.iostream import IOStream

from tests.support.certificates import Authority
from tests.support.gateway_process import GatewayProcess
from tests.support.raw_socket import TEXT, RawSocket, frame_bytes
from tests.support.socket_client import SocketClient, tool_call
from tests.support.waiting import until
from tests.workers.homes import user_of
from tests.workers.test_handing_over import bearer, started, worker_pids

if TYPE_CHECKING:
    from handlers.handing_over import pass_on
else:
    from mcpgw.handlers.handing_over import pass_on

FIRST, SECOND = user_of(1), user_of(2)
CLOSE = 8
SLOW_SERVER = Path(__file__).parent.parent / "servers" / "slow_server.py"


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    process = started(tmp_path_factory.mktemp("hard"))
    yield process
    assert process.terminate() == 0
    assert " ERROR " not in process.log()


async def leave(clients: list[RawSocket]) -> None:
    for client in clients:
        client.writer.close()
        with suppress(OSError):  # the gateway may have cut it
            await client.writer.wait_closed()


def auth_frame(token: str) -> bytes:
    return frame_bytes(TEXT, json.dumps({"type": "auth", "id": "a", "data": {"token": token}}).encode())


@pytest.mark.gen_test(timeout=30)
async def test_every_ticket_is_good_in_the_worker_that_gave_it_out(gateway: GatewayProcess) -> None:
    for user in (FIRST, SECOND) * 8:  # whichever worker accepts the connection
        async with await RawSocket.connect(gateway.url) as page:
            fields = {**bearer(gateway, user), "Content-Type": "application/json"}
            await page.request("POST", "/api/v1/auth/ticket", fields, b'{"purpose": "websocket"}')
            ticket = (await page.read_answer()).json()["ticket"]
        async with await RawSocket.connect(gateway.url) as client:
            assert (await client.upgrade(path=f"/ws?ticket={ticket}")).status == 101
            assert (await client.read_json())["data"].get("user") == user


def send_without_end(port: int, token: str, megabytes: int) -> None:
    """One request, and behind it much more than it says; until that is refused."""
    head = (
        f"POST /api/v1/servers/memory/tools/memory_save HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
        f"Authorization: Bearer {token}\r\nContent-Type: application/json\r\nContent-Length: 1000000\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        try:
            connection.sendall(head.encode() + b"x" * megabytes * 1_000_000)
        except OSError:
            return


@pytest.mark.gen_test(timeout=60)
async def test_what_a_client_sends_without_end_does_not_move_with_its_connection(
    gateway: GatewayProcess,
) -> None:
    before, port = worker_pids(gateway), int(gateway.url.rpartition(":")[2])
    for _ in range(4):
        await asyncio.gather(
            *(asyncio.to_thread(send_without_end, port, gateway.token(user), 64) for user in (FIRST, SECOND))
        )
    for pid in before.values():
        status = Path(f"/proc/{pid}/status").read_text()
        (peak,) = (int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
        assert peak < 200 * 1024, "KiB of memory"
    assert worker_pids(gateway) == before


def slow_server(folder: Path) -> str:
    record = folder / "record"
    return f'[servers.slow]\ncommand = "{sys.executable}"\nargs = ["{SLOW_SERVER}", "{record}"]\n'


@pytest.mark.gen_test(timeout=40)
async def test_a_socket_that_its_home_takes_no_more_is_closed_as_a_socket(tmp_path: Path) -> None:
    gateway = started(tmp_path, slow_server(tmp_path))
    try:
        stays = await SocketClient.connect(gateway.socket_url, token=gateway.token(SECOND))
        await stays.receive()
        clients = [await RawSocket.connect(gateway.url) for _ in range(6)]
        for client in clients:
            assert (await client.upgrade()).status == 101
            await client.read_json()
        call = tool_call("slow", "wait", {"seconds": 3, "mark": "m"}, call_id="c")
        await stays.send(call)  # so that its worker is not at its end at once
        await until((tmp_path / "record").exists, what="the call")
        before = gateway.log().count("draining")
        os.kill(worker_pids(gateway)[2], signal.SIGTERM)
        await until(lambda: gateway.log().count("draining") > before, what="the end of its home")
        for client in clients:
            await client.send(auth_frame(gateway.token(SECOND)))
        for client in clients:
            opcode, payload = await client.read_frame(20)
            if opcode == TEXT:  # it was that worker's own, which has said so
                assert json.loads(payload)["type"] == "disconnect"
                opcode, payload = await client.read_frame(20)
            assert (opcode, payload[:2]) == (CLOSE, (3001).to_bytes(2, "big"))
        await leave(clients)
        stays.close()
    finally:
        assert gateway.terminate() == 0


# --- encrypted ---------------------------------------------------------------------------------------------


@dataclass
class Encrypted:
    gateway: GatewayProcess
    trusted: ssl.SSLContext
    folder: Path

    async def connect(self) -> RawSocket:
        port = int(self.gateway.url.rpartition(":")[2])
        return RawSocket(*await asyncio.open_connection("127.0.0.1", port, ssl=self.trusted))


@pytest.fixture
def encrypted(tmp_path: Path) -> Iterator[Encrypted]:
    authority = Authority(tmp_path)
    certificate, key = tmp_path / "gateway.pem", tmp_path / "gateway.key"
    authority.issue(certificate, key)
    gateway = started(
        tmp_path,
        f'[server]\ntls_certificate = "{certificate}"\ntls_key = "{key}"\n' + slow_server(tmp_path),
    )
    trusted = ssl.create_default_context(cafile=str(authority.file))
    trusted.check_hostname = False
    yield Encrypted(gateway, trusted, tmp_path)
    assert gateway.terminate() == 0
    assert " ERROR " not in gateway.log()


@pytest.mark.gen_test(timeout=60)
async def test_an_encrypted_connection_that_moves_late_is_counted_once_and_left_alone(
    encrypted: Encrypted,
) -> None:
    pings = [frame_bytes(TEXT, json.dumps({"type": "ping", "id": f"p{n}"}).encode()) for n in range(31)]
    clients = []
    for user in (FIRST, SECOND) * 3:
        client = await encrypted.connect()
        assert (await client.upgrade()).status == 101
        await client.send(b"".join(pings) + auth_frame(encrypted.gateway.token(user)))
        while (frame := await client.read_json())["type"] != "status" or frame.get("id") != "a":
            pass
        assert frame["data"]["user"] == user
        clients.append(client)

    async def counts() -> tuple[int, int]:
        asking = await encrypted.connect()
        admin = encrypted.gateway.token("root", ("admin",))
        await asking.request("GET", "/api/v1/gateway/stats", {"Authorization": f"Bearer {admin}"})
        connections = (await asking.read_answer()).json()["connections"]
        await leave([asking])
        return connections["all"], connections["unidentified"]

    assert await counts() == (len(clients), 0)
    await leave(clients)


@pytest.mark.gen_test(timeout=60)
async def test_at_the_end_an_encrypted_connection_is_kept_until_its_home_has_said_goodbye(
    encrypted: Encrypted,
) -> None:
    clients = []
    for number in range(6):  # so that each worker accepts some
        client = await encrypted.connect()
        assert (await client.upgrade(token=encrypted.gateway.token(SECOND))).status == 101
        await client.read_json()
        arguments = {"seconds": 1.5, "mark": f"m{number}"}
        await client.send_frame(TEXT, json.dumps(tool_call("slow", "wait", arguments, call_id="c")).encode())
        clients.append(client)
    record = encrypted.folder / "record"
    await until(lambda: record.exists() and record.read_text().count("started") == len(clients))
    encrypted.gateway.process.send_signal(signal.SIGTERM)
    for client in clients:
        assert (await client.read_json())["type"] == "tool_response"
        assert (await client.read_json())["type"] == "disconnect"
        opcode, payload = await client.read_frame()
        assert (opcode, payload[:2]) == (CLOSE, (3001).to_bytes(2, "big"))
    await leave(clients)


@pytest.mark.gen_test(timeout=20)
async def test_a_client_who_reads_nothing_is_let_go_when_its_home_has_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mcpgw.handlers.handing_over._STALLED_SECONDS", 0.1)
    (here, home), (mine, client) = socket.socketpair(), socket.socketpair()
    source, target = IOStream(here), IOStream(mine)
    with home, client:
        passing = asyncio.create_task(pass_on(source, target))
        home.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                home.send(b"x" * 65536)
                await asyncio.sleep(0)
        home.close()
        await asyncio.wait_for(passing, 10)
        assert source.closed()
        assert target.closed()
