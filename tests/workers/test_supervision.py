"""A gateway of several processes from outside: what ends, what goes on, and what is started again."""

import asyncio
import json
import os
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mcpgw.workers.peers import Peers
from tests.support.gateway_process import GatewayProcess, wait_until
from tests.support.socket_client import Frame, SocketClient, tool_call
from tests.support.waiting import until

SERVERS = Path(__file__).parent.parent / "servers"
ARGUMENTS = ("--workers", "2", "--memory-enabled", "false")
SCOPES = ("tools:call", "events:read", "rooms:join", "servers:read")
HOMES = {
    number: next(f"u{n}" for n in range(99) if Peers(1, 2).home_of(f"u{n}") == number) for number in (1, 2)
}
"""A user who is at home in each worker."""


def slow_server(record: Path) -> str:
    return (
        f'[servers.slow]\ncommand = "{sys.executable}"\nargs = ["{SERVERS / "slow_server.py"}", "{record}"]\n'
    )


def started(folder: Path, configuration: str = "", *arguments: str) -> GatewayProcess:
    return GatewayProcess(
        folder, configuration=configuration, arguments=(*ARGUMENTS, *arguments), forked=False
    )


def pids(gateway: GatewayProcess) -> dict[int, list[int]]:
    """The processes that were started as each worker, the newest at the end."""
    found: dict[int, list[int]] = {}
    for number, pid in re.findall(r'"worker started" worker=(\d+) pid=(\d+)', gateway.log()):
        found.setdefault(int(number), []).append(int(pid))
    return found


def runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def children(pid: int) -> list[int]:
    listed = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in listed.read_text().split()] if listed.exists() else []


def end(gateway: GatewayProcess) -> None:
    workers = [pid for each in pids(gateway).values() for pid in each]
    if gateway.process.poll() is None:
        gateway.kill()
    for pid in workers:
        if runs(pid):
            os.kill(pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    made = started(tmp_path_factory.mktemp("gateway"))
    made.wait_listening(60)
    yield made
    try:
        assert made.terminate(60) == 0
    finally:
        end(made)


@pytest.fixture
def another(tmp_path: Path) -> Iterator[list[GatewayProcess]]:
    """Whatever is put here is ended after the test."""
    made: list[GatewayProcess] = []
    yield made
    for each in made:
        end(each)


async def client(gateway: GatewayProcess, home: int) -> SocketClient:
    token = gateway.token(HOMES[home], SCOPES)
    made = await SocketClient.connect(gateway.socket_url, token=token)
    assert (await made.receive())["data"]["user"] == HOMES[home]
    return made


async def enter(client: SocketClient, since: str | None = None) -> Frame:
    data = {"channel": "room:ops"} | ({} if since is None else {"since": since})
    await client.send({"type": "subscribe", "id": "s", "data": data})
    while True:
        frame = await client.receive()
        if frame.get("id") == "s":
            assert frame["type"] == "subscribed", frame
            return frame


async def say(client: SocketClient, words: str) -> None:
    data = {"channel": "room:ops", "payload": words}
    await client.send({"type": "publish", "id": words, "data": data})


async def hear(client: SocketClient, type_name: str, seconds: float = 20) -> Frame:
    """The next event of that type."""
    async with asyncio.timeout(seconds):
        while True:
            frame = await client.receive(seconds)
            if frame["type"] == type_name:
                return frame


async def back(gateway: GatewayProcess, number: int, before: int) -> int:
    """Wait until a worker was started again and serves; answers its process."""
    await until(lambda: len(pids(gateway)[number]) > before, seconds=20)
    pid = pids(gateway)[number][-1]
    async with asyncio.timeout(40):
        (await client(gateway, number)).close()
    return pid


@pytest.mark.gen_test(timeout=90)
async def test_when_a_worker_is_killed_the_others_go_on_its_members_leave_and_it_comes_back_with_the_past(
    gateway: GatewayProcess,
) -> None:
    one, two = await client(gateway, 1), await client(gateway, 2)
    await enter(one)
    await hear(one, "room.joined")  # its own: by then all workers know of it
    present = (await enter(two))["data"]["present"]
    assert {member["user"] for member in present} == set(HOMES.values())
    await say(one, "first")
    seen = (await hear(two, "room.message"))["id"]
    await hear(one, "room.message")
    before = len(pids(gateway)[2])
    os.kill(pids(gateway)[2][-1], signal.SIGKILL)
    left = await hear(one, "room.left")
    assert left["data"]["user"] == HOMES[2]
    await say(one, "second")
    assert (await hear(one, "room.message"))["data"]["payload"] == "second"
    assert await two.closed() is None
    await back(gateway, 2, before)
    again = await client(gateway, 2)
    answer = await enter(again, since=seen)
    assert answer["data"]["recovered"] is False, "what was said before one came in is not for one"
    assert {member["user"] for member in answer["data"]["present"]} == set(HOMES.values())
    await say(again, "third")
    third = await hear(one, "room.message")
    assert third["data"]["payload"] == "third"
    assert third["id"].partition("-")[0] == seen.partition("-")[0], "the log is the same"
    assert re.search(r'"worker ended" worker=2 code=-9 again_in=', gateway.log())
    for each in (one, again):
        await each.leave()


@pytest.mark.gen_test(timeout=90)
async def test_a_worker_that_is_ended_alone_ends_gracefully_and_is_started_again(
    gateway: GatewayProcess,
) -> None:
    one, two = await client(gateway, 1), await client(gateway, 2)
    before = len(pids(gateway)[1])
    pid = pids(gateway)[1][-1]
    os.kill(pid, signal.SIGTERM)
    assert (await hear(one, "disconnect"))["data"]["code"] == 3001
    await one.closed()
    await two.send({"type": "ping", "id": "p"})
    assert (await two.receive())["type"] == "pong"
    await back(gateway, 1, before)
    assert re.search(r'"worker ended" worker=1 code=0 ', gateway.log())
    await two.leave()


@pytest.mark.gen_test(timeout=60)
async def test_a_worker_that_hangs_keeps_the_others_from_nothing(gateway: GatewayProcess) -> None:
    pid = pids(gateway)[2][-1]
    one, two = await client(gateway, 1), await client(gateway, 2)
    await enter(one)
    await enter(two)
    os.kill(pid, signal.SIGSTOP)
    try:
        for number in range(50):
            await say(one, f"line {number}")
            assert (await hear(one, "room.message"))["data"]["payload"] == f"line {number}"
    finally:
        os.kill(pid, signal.SIGCONT)
    for number in range(50):
        assert (await hear(two, "room.message"))["data"]["payload"] == f"line {number}"
    for each in (one, two):
        await each.leave()


@pytest.mark.gen_test(timeout=90)
async def test_a_signal_to_all_processes_at_once_lets_open_calls_end(
    tmp_path: Path, another: list[GatewayProcess]
) -> None:
    gateway = started(tmp_path, slow_server(tmp_path / "record"))
    another.append(gateway)
    gateway.wait_listening(60)
    clients = [await client(gateway, number) for number in (1, 2)]
    for number, each in enumerate(clients):
        wait = {"seconds": 1.5, "mark": f"m{number}"}
        await each.send(tool_call("slow", "wait", wait, call_id="slow"))
    await until(lambda: (tmp_path / "record").exists() and (tmp_path / "record").read_text().count("m") >= 2)
    supervisor = gateway.process.pid
    for which in (signal.SIGINT, signal.SIGTERM):  # of a terminal, and of a service manager; one sign of each
        for pid in [each[-1] for each in pids(gateway).values()]:
            os.kill(pid, which)
        if which == signal.SIGINT:
            os.kill(supervisor, which)
    for each in clients:
        assert (await each.end_of("slow"))["type"] == "tool_response"
        await each.closed()
    assert gateway.process.wait(30) == 0
    assert gateway.log().count("http ended") == 2
    assert "Aborted" not in gateway.printed()
    assert "Traceback" not in gateway.printed()


@pytest.mark.gen_test(timeout=90)
async def test_without_its_supervisor_every_worker_ends_with_its_servers(
    tmp_path: Path, another: list[GatewayProcess]
) -> None:
    gateway = started(tmp_path, slow_server(tmp_path / "record"))
    another.append(gateway)
    gateway.wait_listening(60)
    workers = [each[-1] for each in pids(gateway).values()]
    servers = [child for worker in workers for child in children(worker)]
    assert len(servers) >= 2
    gateway.kill()
    await until(lambda: not any(map(runs, [*workers, *servers])), seconds=30)
    assert gateway.log().count("supervisor gone") == 2


@pytest.mark.gen_test(timeout=90)
async def test_a_second_signal_cuts_the_grace_of_all_workers_short(
    tmp_path: Path, another: list[GatewayProcess]
) -> None:
    gateway = started(tmp_path, slow_server(tmp_path / "record"), "--server-drain-timeout", "600")
    another.append(gateway)
    gateway.wait_listening(60)
    one = await client(gateway, 1)
    await one.send(tool_call("slow", "wait", {"seconds": 600, "mark": "m"}, call_id="slow"))
    await until(lambda: (tmp_path / "record").exists() and "m" in (tmp_path / "record").read_text())
    gateway.process.send_signal(signal.SIGTERM)
    await until(lambda: gateway.log().count("draining") == 2)
    gateway.process.send_signal(signal.SIGTERM)
    await one.closed()
    assert await asyncio.to_thread(gateway.process.wait, 30) == 0


def test_a_fault_of_the_configuration_is_told_once_and_ends_all(
    tmp_path: Path, another: list[GatewayProcess]
) -> None:
    gateway = started(tmp_path, '[roles.odd]\nscopes = ["no:such:scope"]\n')
    another.append(gateway)
    code, words = gateway.process.wait(60), gateway.printed()
    alone = GatewayProcess(
        tmp_path, configuration='[roles.odd]\nscopes = ["no:such:scope"]\n', arguments=(), forked=False
    )
    another.append(alone)
    assert code == alone.process.wait(60) != 0
    assert words.count("no:such:scope") == 1
    assert words == alone.printed()


@pytest.mark.parametrize("moment", ["at once", "while the second starts"])
def test_a_signal_while_starting_ends_all_soon(
    tmp_path: Path, another: list[GatewayProcess], moment: str
) -> None:
    gateway = started(tmp_path)
    another.append(gateway)
    if moment == "at once":
        wait_until(gateway.log_file.exists, seconds=30)
    else:
        wait_until(lambda: 2 in pids(gateway), seconds=30)
    assert gateway.terminate(30) in (0, -signal.SIGTERM)
    assert not any(runs(each[-1]) for each in pids(gateway).values())
    assert "Traceback" not in gateway.printed()


def test_a_worker_that_is_killed_while_it_starts_is_started_again_later_and_later(
    tmp_path: Path, another: list[GatewayProcess]
) -> None:
    gateway = started(tmp_path)
    another.append(gateway)
    for times in (1, 2):
        wait_until(lambda times=times: len(pids(gateway).get(1, ())) == times, seconds=30)
        os.kill(pids(gateway)[1][-1], signal.SIGKILL)
    gateway.wait_listening(60)
    pauses = re.findall(r'"worker ended" worker=1 code=-9 again_in=([\d.]+)', gateway.log())
    assert [float(pause) for pause in pauses] == [0.5, 1.0]
    note = json.loads((gateway.data_dir / "gateway.json").read_text())
    assert note["pid"] == gateway.process.pid
    assert gateway.terminate(30) == 0
