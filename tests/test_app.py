"""The end of a gateway, seen from outside: every process here is a real one."""

import asyncio
import functools
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mcpgw.access.signing_key import load_or_create_signing_key
from mcpgw.running import RunningGateway, find_running, forget_running, remember_running
from tests.support.gateway_process import GatewayProcess
from tests.support.raw_socket import EventReader, RawSocket, fetch
from tests.support.socket_client import SocketClient, tool_call
from tests.support.waiting import until

StartProcess = Callable[..., GatewayProcess]
SLOW_SERVER = Path(__file__).parent / "servers" / "slow_server.py"


def slow_configuration(record: Path, drain_timeout: float = 10) -> str:
    """A gateway with the slow server."""
    return (
        f"[server]\ndrain_timeout = {drain_timeout}\n[memory]\nenabled = false\n"
        f'[servers.slow]\ncommand = "{sys.executable}"\nargs = ["{SLOW_SERVER}", "{record}"]\n'
    )


def of_ps(column: str, *chosen: str) -> str:
    """One column of what ``ps`` prints of the processes that `chosen` names; empty where there is none."""
    command = ["ps", "-o", f"{column}=", *chosen]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=10).stdout.strip()


def children_of(pid: int) -> list[int]:
    """The process ids of the children that `pid` has now."""
    return [int(line) for line in of_ps("pid", "--ppid", str(pid)).split()]


def is_alive(pid: int) -> bool:
    """Whether a process with this id runs (one that has ended and waits for its parent does not)."""
    state = of_ps("stat", "-p", str(pid))
    return bool(state) and not state.startswith("Z")


@pytest.fixture
def gateway_process(gateway_process: StartProcess) -> StartProcess:
    """Gateways that are processes from their start: this is about starts and ends."""
    return functools.partial(gateway_process, forked=False)


async def connected(gateway: GatewayProcess) -> SocketClient:
    """A client that has proved who it is."""
    client = await SocketClient.connect(gateway.socket_url, token=gateway.token())
    assert (await client.receive())["data"]["authenticated"] is True
    return client


async def exit_code(gateway: GatewayProcess, seconds: float = 10) -> int:
    """Wait for the end of the process without holding up the loop."""
    await until(lambda: gateway.process.poll() is not None, seconds=seconds, what="the end of the gateway")
    assert gateway.process.returncode is not None
    return gateway.process.returncode


def maps(gateway: GatewayProcess) -> str:
    """The files that the process has in its memory, compiled modules among them."""
    return Path(f"/proc/{gateway.process.pid}/maps").read_text()


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="Linux tells what a process has loaded")
@pytest.mark.gen_test(timeout=40)
async def test_what_speaks_mcp_is_loaded_when_it_is_needed(gateway_process: StartProcess) -> None:
    gateway = gateway_process(configuration="[memory]\nenabled = false\n")
    assert (await fetch(gateway.url, "/readyz")).status in (200, 503)
    assert "_pydantic_core" not in maps(gateway), "the MCP SDK came with the start"
    token = gateway.token()
    body = b'{"jsonrpc":"2.0","id":1,"method":"ping"}'
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json", "Accept": "*/*"}
    answers = await asyncio.gather(
        *(fetch(gateway.url, "/mcp", method="POST", headers=headers, body=body) for _ in range(4))
    )
    assert {answer.status for answer in answers} <= {200, 400}
    assert "_pydantic_core" in maps(gateway)
    gateway.process.send_signal(signal.SIGTERM)
    assert await exit_code(gateway) == 0


@pytest.mark.gen_test(timeout=40)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_everything_whole(
    gateway_process: StartProcess, tmp_path: Path, number: signal.Signals
) -> None:
    record = tmp_path / "record.txt"
    gateway = gateway_process(configuration=slow_configuration(record))
    idle, busy, silent = await connected(gateway), await connected(gateway), await connected(gateway)
    stream = await EventReader.open(gateway.url)
    await stream.next_event()
    kept = await RawSocket.connect(gateway.url)
    await kept.request("GET", "/readyz")
    assert (await kept.read_answer()).status == 200
    await busy.send(tool_call("slow", "wait", {"seconds": 1, "mark": "a"}, call_id="a"))
    await until(record.exists)
    children = children_of(gateway.process.pid)
    assert children
    note = gateway.data_dir / "gateway.json"
    assert json.loads(note.read_text())["pid"] == gateway.process.pid

    gateway.process.send_signal(number)

    disconnect = await idle.receive()
    assert (disconnect["type"], disconnect["data"]["code"], disconnect["data"]["reconnect"]) == (
        "disconnect",
        3001,
        True,
    )
    assert await idle.closed() == 3001
    await kept.request("GET", "/readyz")
    assert (await kept.read_answer()).json() == {"status": "draining"}
    with pytest.raises(ConnectionRefusedError):
        await RawSocket.connect(gateway.url)
    assert await stream.next_event() is None
    refused = await busy.call("slow", "other", {"mark": "b"}, call_id="b")
    assert (refused["data"]["code"], refused["data"]["temporary"]) == ("draining", True)
    assert (await busy.end_of("a"))["data"]["result"] == {"result": "a"}
    assert (await busy.receive())["type"] == "disconnect"
    assert await busy.closed() == 3001
    assert await silent.closed() == 3001
    assert await exit_code(gateway) == 0
    assert not any(map(is_alive, children))
    assert not note.exists()
    for opened in (stream.connection, kept):
        opened.writer.close()
    log = gateway.log()
    assert "draining connections=4" in log
    assert log.splitlines()[-1].endswith("mcpgw.http ended")
    assert "ERROR" not in log
    assert "Traceback" not in gateway.printed()


@pytest.mark.gen_test(timeout=40)
async def test_a_hung_call_is_ended_with_an_error_when_the_grace_is_over(
    gateway_process: StartProcess, tmp_path: Path
) -> None:
    record = tmp_path / "record.txt"
    gateway = gateway_process(configuration=slow_configuration(record, drain_timeout=0.5))
    client = await connected(gateway)
    await client.send(tool_call("slow", "wait", {"seconds": 600, "mark": "a"}, call_id="a"))
    await until(record.exists)
    started = time.monotonic()
    gateway.process.send_signal(signal.SIGTERM)
    error = await client.end_of("a")
    assert 0.4 < time.monotonic() - started < 3
    assert error["data"]["code"] == "outcome_unknown"
    assert await client.closed() == 3001
    assert await exit_code(gateway) == 0


@pytest.mark.gen_test(timeout=40)
async def test_a_second_signal_cuts_the_grace_short(gateway_process: StartProcess, tmp_path: Path) -> None:
    record = tmp_path / "record.txt"
    gateway = gateway_process(configuration=slow_configuration(record, drain_timeout=60))
    client = await connected(gateway)
    await client.send(tool_call("slow", "wait", {"seconds": 600, "mark": "a"}, call_id="a"))
    await until(record.exists)
    gateway.process.send_signal(signal.SIGINT)
    await until(lambda: "draining" in gateway.log())
    gateway.process.send_signal(signal.SIGINT)
    assert (await client.end_of("a", seconds=5))["type"] == "error"
    assert await client.closed() == 3001
    assert await exit_code(gateway) == 0


@pytest.mark.gen_test(timeout=40)
async def test_clients_that_do_not_answer_the_goodbye_hold_up_nobody(gateway_process: StartProcess) -> None:
    gateway = gateway_process(configuration="[memory]\nenabled = false\n")
    deaf = await RawSocket.connect(gateway.url)
    await deaf.upgrade(token=gateway.token())
    started = time.monotonic()
    gateway.process.send_signal(signal.SIGTERM)
    assert (await deaf.read_close())[0] == 3001
    assert await exit_code(gateway) == 0
    assert time.monotonic() - started < 6
    deaf.writer.close()


@pytest.mark.gen_test(timeout=40)
async def test_a_signal_during_the_start_of_a_backend_is_not_waited_for(tmp_path: Path) -> None:
    hung = (
        "[memory]\nenabled = false\n"
        f'[servers.hung]\ncommand = "{sys.executable}"\nargs = ["-c", "import time; time.sleep(60)"]\n'
    )
    gateway = GatewayProcess(tmp_path, configuration=hung)
    await until((gateway.data_dir / "gateway.json").exists, seconds=15, what="the start")
    started = time.monotonic()
    gateway.process.send_signal(signal.SIGTERM)
    assert await exit_code(gateway) == 0
    assert time.monotonic() - started < 6
    assert "is ready" not in gateway.printed()


def test_a_port_in_use_is_said_in_a_sentence_with_exit_code_2(
    gateway_process: StartProcess, tmp_path: Path
) -> None:
    first = gateway_process(configuration="[memory]\nenabled = false\n")
    port = first.url.rpartition(":")[2]
    (tmp_path / "second").mkdir()
    second = GatewayProcess(tmp_path / "second", arguments=["--port", port])
    assert second.process.wait(15) == 2
    assert f"cannot listen on 127.0.0.1:{port}" in second.printed()
    assert "--port" in second.printed()
    assert "Traceback" not in second.printed()
    assert "starting server=" not in second.log()
    assert not (second.data_dir / "gateway.json").exists()


@pytest.mark.gen_test(timeout=40)
async def test_two_gateways_share_one_data_folder(gateway_process: StartProcess, tmp_path: Path) -> None:
    first = gateway_process()
    (tmp_path / "second").mkdir()
    second = GatewayProcess(tmp_path / "second", arguments=["--data-dir", str(first.data_dir)])
    second.data_dir = first.data_dir
    await until(lambda: "is ready" in second.printed(), what="the second start")
    second.url = json.loads((first.data_dir / "gateway.json").read_text())["url"]
    assert second.url != first.url
    token = first.token()
    for index, gateway in enumerate((first, second)):
        client = await SocketClient.connect(gateway.socket_url, token=token)
        await client.receive()
        saved = await client.call("memory", "memory_save", {"project": "p", "content": f"from {index}"})
        assert saved["data"]["success"] is True
        found = await client.call("memory", "memory_list", {"project": "p"}, call_id="list")
        assert len(found["data"]["result"]["memories"]) == index + 1
        await client.leave()
    assert second.terminate() == 0
    running = find_running(first.data_dir)
    assert running is not None
    assert running.url == first.url
    assert (await fetch(first.url, "/healthz")).status == 200
    assert first.terminate() == 0
    assert find_running(first.data_dir) is None


def test_the_note_of_a_gateway_that_was_killed_is_not_believed(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait(10)
    remember_running(tmp_path, RunningGateway("http://127.0.0.1:1", ended.pid))
    assert find_running(tmp_path) is None


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "5", '{"url": "x"}', '{"url": "x", "pid": "y"}', '{"url":"x","pid":-1}']
)
def test_a_note_that_is_none_names_nobody(tmp_path: Path, text: str) -> None:
    (tmp_path / "gateway.json").write_text(text)
    assert find_running(tmp_path) is None


def test_a_note_is_only_taken_away_by_its_own_gateway(tmp_path: Path) -> None:
    here = RunningGateway.here("http://127.0.0.1:1")
    other = RunningGateway.here("http://127.0.0.1:2")
    remember_running(tmp_path, here)
    forget_running(tmp_path, other)
    assert find_running(tmp_path) == here
    forget_running(tmp_path, here)
    assert find_running(tmp_path) is None
    forget_running(tmp_path, here)


def test_a_data_folder_that_cannot_be_written_is_said_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file")
    gateway = GatewayProcess(tmp_path, configuration="[memory]\nenabled = false\n")
    assert gateway.process.wait(15) == 2
    assert "Traceback" not in gateway.printed()
    assert str(gateway.data_dir) in gateway.printed()


# --- the log -------------------------------------------------------------------------------------------


@pytest.mark.gen_test(timeout=40)
@pytest.mark.parametrize("form", ["text", "json"])
async def test_the_log_tells_of_every_connection_and_call_and_holds_nothing_secret(
    gateway_process: StartProcess, form: str
) -> None:
    gateway = gateway_process(arguments=["--log-level", "debug", "--log-format", form])
    good, argument = gateway.token("ann"), "an-argument-of-a-tool-4711"
    other = gateway.token("bob")
    headers = {"Authorization": f"Bearer {good}", "User-Agent": "test-agent/1.0"}
    client = await SocketClient.connect(f"{gateway.socket_url}?token={other}", headers=headers)
    client_id = (await client.receive())["data"]["clientId"]
    await client.call("memory", "memory_save", {"project": "p", "content": argument, "tags": [argument]})
    await client.call("memory", "memory_save", {"project": argument, "contentt": argument})
    await client.call(argument, argument, {"a": argument}, call_id=argument)
    await client.request({"type": "auth", "data": {"token": other}})
    await client.request("{" + argument)
    await client.leave()
    by_protocol = await SocketClient.connect(gateway.socket_url, subprotocols=["mcpgw.v1", f"bearer.{other}"])
    await by_protocol.receive()
    await by_protocol.leave()
    refused = await SocketClient.connect(gateway.socket_url, token=argument)
    await refused.receive()
    await refused.leave()
    async with await EventReader.open(gateway.url, headers) as stream:
        await stream.next_event()
    for path in ("/api/v1/servers", f"/nothing?token={good}"):
        await fetch(gateway.url, path, headers={**headers, "Origin": "https://evil.example"})
    assert gateway.terminate() == 0
    log = gateway.log()
    lines = [line for line in log.splitlines() if "websocket" in line or "sse" in line]

    def has(*parts: str) -> bool:
        wanted = [part if form == "text" else _as_json(part) for part in parts]
        return any(all(part in line for part in wanted) for line in lines)

    assert has(
        "connected",
        f"client={client_id}",
        "user=ann",
        "agent=test-agent/1.0",
        "remote=127.0.0.1",
        "credentials=header",
    )
    assert has("disconnected", f"client={client_id}", "code=1000", "frames_in=4", "seconds=")
    assert has("call", f"client={client_id}", "server=memory", "tool=memory_save", "outcome=ok", "ms=")
    assert has("call", f"client={client_id}", "outcome=invalid_params")
    assert has("connected", "user=bob", "credentials=subprotocol")
    assert has("refused credentials", "code=auth_failed")
    assert has("mcpgw.sse", "connected", "user=ann", "agent=test-agent/1.0", "credentials=header")
    assert has("mcpgw.sse", "disconnected", "events=")
    key = load_or_create_signing_key(gateway.data_dir)
    for secret in (good, other, good.split(".")[2], other.split(".")[2], key):
        assert secret not in log
        assert secret not in gateway.printed()
    told = [line for line in log.splitlines() if argument in line]
    assert all("server" in line and "tool" in line for line in told), told
    assert len(told) <= 1, "the names of server and tool are logged, arguments never"


def _as_json(part: str) -> str:
    name, equals, value = part.partition("=")
    if not equals:
        return part
    return (
        f'"{name}": ' if not value else f'"{name}": {value}' if value.isdecimal() else f'"{name}": "{value}"'
    )


@pytest.mark.gen_test
async def test_a_flood_of_connections_leaves_the_gateway_as_it_was(shared_gateway: GatewayProcess) -> None:
    async def visit() -> None:
        async with await RawSocket.connect(shared_gateway.url) as socket:
            await socket.upgrade()
            await socket.read_json()
            socket.reset()

    for _ in range(4):
        await asyncio.gather(*(visit() for _ in range(50)))
    assert (await fetch(shared_gateway.url, "/healthz")).status == 200


@pytest.mark.xdist_group("load")
@pytest.mark.gen_test(timeout=30)
async def test_without_file_descriptors_it_serves_on_and_does_not_spin(
    gateway_process: Callable[..., GatewayProcess],
) -> None:
    gateway = gateway_process(configuration="[memory]\nenabled = false\n")
    resource.prlimit(gateway.process.pid, resource.RLIMIT_NOFILE, (96, 96))
    early = await SocketClient.connect(gateway.socket_url, token=gateway.token())
    await early.receive()
    idle = [socket.create_connection(("127.0.0.1", port_of(gateway))) for _ in range(120)]
    before, began = processor_seconds(gateway.process.pid), time.monotonic()
    while time.monotonic() - began < 1.0:
        assert (await early.request({"type": "ping", "id": "p"}))["type"] == "pong"
        await asyncio.sleep(0.05)
    assert processor_seconds(gateway.process.pid) - before < 0.7
    assert "no file descriptors left" in gateway.log()
    for connection in idle:
        connection.close()
    late = await SocketClient.connect(gateway.socket_url, token=gateway.token())
    await late.receive()
    await late.leave()
    await early.leave()


def port_of(gateway: GatewayProcess) -> int:
    """The port that a gateway listens on."""
    return int(gateway.url.rpartition(":")[2])


def processor_seconds(pid: int) -> float:
    """Processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
