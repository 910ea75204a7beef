"""Readers that do not read: what waits for them is bounded, and nobody else notices."""

import asyncio
import json
import socket
import ssl
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from mcpgw.client import trusting
from mcpgw.wire.events import Position
from tests.conftest import LiveGateway, StartGateway
from tests.support.certificates import Authority
from tests.support.gateway_process import GatewayProcess
from tests.support.raw_socket import PONG, TEXT, RawSocket
from tests.support.socket_client import tool_call
from tests.support.waiting import until

COUNTING_SERVER = Path(__file__).parent.parent / "servers" / "slow_server.py"
MEBIBYTE = 1024 * 1024
SMALL_BUFFER = 4096


async def connect(url: str, tls: ssl.SSLContext | None = None) -> RawSocket:
    """A connection with a small receive buffer, so that who does not read is soon felt at the other end."""
    raw = socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER)
    raw.setblocking(False)
    parts = urlsplit(url)
    await asyncio.get_running_loop().sock_connect(raw, (parts.hostname, parts.port))
    name = None if tls is None else parts.hostname
    return RawSocket(*await asyncio.open_connection(sock=raw, limit=2**24, ssl=tls, server_hostname=name))


def stop_reading(reader: RawSocket) -> None:
    """Take nothing more from the kernel."""
    reader.writer.transport.pause_reading()  # type: ignore[attr-defined]


def read_again(reader: RawSocket) -> None:
    """Take what comes again."""
    reader.writer.transport.resume_reading()  # type: ignore[attr-defined]


async def send(reader: RawSocket, frame: object) -> None:
    """Send a frame as a text message."""
    await reader.send_frame(TEXT, json.dumps(frame).encode())


async def subscriber(
    url: str, token: str, channel: str = "servers", *, tls: ssl.SSLContext | None = None
) -> tuple[RawSocket, str]:
    """A WebSocket that has subscribed, and the id of its session."""
    reader = await connect(url, tls)
    assert (await reader.upgrade(token=token)).status == 101
    session = (await reader.read_json())["data"]["session"]
    await send(reader, {"type": "subscribe", "id": "s", "data": {"channel": channel}})
    while (await reader.read_json())["type"] != "subscribed":
        pass
    return reader, session


async def stream(url: str, token: str) -> RawSocket:
    """An event stream of the channel ``servers`` whose head was read."""
    reader = await connect(url)
    await reader.request("GET", "/api/v1/sse?channels=servers", {"Authorization": f"Bearer {token}"})
    assert (await reader.read_head()).status == 200
    return reader


async def slow_gateway(start_gateway: StartGateway, tmp_path: Path, **settings: object) -> LiveGateway:
    """A gateway with the counting server."""
    configuration = (
        f'[servers.counting]\ncommand = "{sys.executable}"\n'
        f'args = ["{COUNTING_SERVER}", "{tmp_path / "runs.txt"}"]\n'
    )
    names: dict[str, object] = {"websocket.compression": False}
    names |= {name.replace("__", "."): value for name, value in settings.items()}
    return await start_gateway(configuration, settings=names)


async def flood(gateway: LiveGateway, count: int, *, first: int = 0, size: int = 2000) -> None:
    """Publish log lines with numbers, with a breath after every fifty."""
    for number in range(first, first + count):
        line = f"line {number} ".ljust(size, ".")
        gateway.services.bus.publish("server.log", {"serverId": "flood", "level": "info", "line": line})
        if number % 50 == 0:
            await asyncio.sleep(0)


def number_of(frame: dict[str, Any]) -> int:
    """The number of a log line."""
    return int(frame["data"]["line"].split()[1])


async def read_until(reader: RawSocket, last: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
    """Frames up to the one that is the last."""
    frames: list[dict[str, Any]] = []
    while not frames or not last(frames[-1]):
        frames.append(await reader.read_json())
    return frames


@pytest.mark.gen_test(timeout=30)
async def test_a_slow_reader_loses_lines_that_are_counted_and_never_a_result(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    gateway = await slow_gateway(start_gateway, tmp_path)
    reader, _ = await subscriber(gateway.url, gateway.token())
    stop_reading(reader)
    for number in range(10):
        key = f"call-{number}"
        await send(reader, tool_call("counting", "count", {"key": key, "size": 20_000}, call_id=key))
    await flood(gateway, 4000)
    await until(lambda: gateway.services.gateway.counts.ended["ok"] == 10)
    await flood(gateway, 4000, first=4000)
    read_again(reader)
    frames = await read_until(
        reader, lambda frame: frame["type"] == "server.log" and number_of(frame) == 7999
    )
    lines = [number_of(frame) for frame in frames if frame["type"] == "server.log"]
    dropped = sum(frame["data"]["dropped"] for frame in frames if frame["type"] == "lagged")
    assert lines == sorted(set(lines))
    assert dropped > 0
    assert len(lines) + dropped == 8000
    ends = {frame["id"] for frame in frames if frame["type"] == "tool_response"}
    assert ends == {f"call-{number}" for number in range(10)}
    # A gap is told where it is: behind the frame stands what comes after the lines that are missing.
    last = -1
    for frame in frames:
        if frame["type"] == "lagged":
            assert frame["data"]["channel"] == "servers"
            last += frame["data"]["dropped"]
        elif frame["type"] == "server.log":
            assert number_of(frame) == last + 1
            last += 1
    reader.writer.close()


@pytest.mark.gen_test(timeout=30)
async def test_who_does_not_read_is_closed_with_3008_and_resumes_with_every_line_and_every_end(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    gateway = await slow_gateway(start_gateway, tmp_path, websocket__write_timeout=0.4)
    reader, session = await subscriber(gateway.url, gateway.token())
    since = str(gateway.services.bus.position)
    stop_reading(reader)
    await flood(gateway, 4000)
    await send(reader, tool_call("counting", "count", {"key": "a"}, call_id="a"))
    await until(lambda: gateway.services.gateway.counts.ended["ok"] == 1)
    await until(lambda: reader_is_closed(gateway), what="the end of the slow reader")
    read_again(reader)
    frames: list[dict[str, Any]] = []
    while (frame := await reader.read_frame())[0] == TEXT:
        frames.append(json.loads(frame[1]))
    assert (frame[0], int.from_bytes(frame[1][:2], "big")) == (0x8, 3008)
    assert (frames[-1]["type"], frames[-1]["data"]["code"]) == ("disconnect", 3008)
    assert frames[-1]["data"]["reconnect"] is True
    reader.writer.close()
    seen = [frame["id"] for frame in frames if frame["type"] == "server.log"]
    since = seen[-1] if seen else since

    back = await RawSocket.connect(gateway.url)
    await back.upgrade(token=gateway.token())
    await back.read_json()
    data = {"session": session, "pending": ["a"], "since": since}
    await send(back, {"type": "resume", "id": "r", "data": data})
    frames = await read_until(back, lambda frame: frame["type"] == "server.log" and number_of(frame) == 3999)
    assert frames[0]["data"]["resumed"] is True
    assert "a" in [frame["id"] for frame in frames if frame["type"] == "tool_response"]
    await back.send_frame(0x8, b"\x03\xe8")
    back.writer.close()


def reader_is_closed(gateway: LiveGateway) -> bool:
    """Whether the one connection was told to end."""
    log = [conversation._over for conversation in gateway.services.hub._connections]  # type: ignore[attr-defined]
    return all(log)


@pytest.mark.gen_test(timeout=30)
async def test_one_large_answer_that_nobody_takes_ends_its_connection_too(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    gateway = await slow_gateway(start_gateway, tmp_path, websocket__write_timeout=0.4)
    reader, _ = await subscriber(gateway.url, gateway.token(), "config")
    stop_reading(reader)
    call = tool_call("counting", "count", {"key": "a", "size": 3 * MEBIBYTE}, call_id="a")
    await send(reader, call)
    await until(lambda: gateway.services.gateway.counts.ended["ok"] == 1)
    # Nothing waits in the outbox: the answer itself is what is not taken.
    await until(lambda: reader_is_closed(gateway), what="the end of the slow reader")
    read_again(reader)
    assert (await reader.read_close())[0] == 3008
    reader.writer.close()


@pytest.mark.gen_test(timeout=30)
async def test_behind_tls_what_waits_is_bounded_and_who_takes_nothing_is_closed_too(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    authority = Authority(tmp_path)
    certificate, key = tmp_path / "gateway.pem", tmp_path / "gateway.key"
    authority.issue(certificate, key)
    gateway = await slow_gateway(
        start_gateway,
        tmp_path,
        websocket__write_timeout=1.5,  # the flood has to be over before
        server__tls_certificate=str(certificate),
        server__tls_key=str(key),
    )
    reader, _ = await subscriber(gateway.url, gateway.token(), tls=trusting(authority.file))
    (conversation,) = gateway.services.hub._connections
    stop_reading(reader)
    await flood(gateway, 4000)
    # All of it goes by the stream: what OpenSSL has not written, and what waits behind that.
    writer = conversation._sink._writer  # type: ignore[attr-defined]
    assert len(writer._outbox) <= gateway.services.config.events.max_waiting + 1
    assert len(writer._stream._write_buffer) < 2 * MEBIBYTE
    await until(lambda: reader_is_closed(gateway), what="the end of the slow reader")
    read_again(reader)
    frames = [await reader.read_frame()]
    while frames[-1][0] == TEXT:
        frames.append(await reader.read_frame())
    assert json.loads(frames[-2][1])["data"]["code"] == 3008
    assert (frames[-1][0], int.from_bytes(frames[-1][1][:2], "big")) == (0x8, 3008)
    reader.writer.close()


@pytest.mark.gen_test(timeout=40)
async def test_a_slow_reader_who_does_read_is_not_closed(start_gateway: StartGateway, tmp_path: Path) -> None:
    gateway = await slow_gateway(start_gateway, tmp_path, websocket__write_timeout=0.4)
    reader, _ = await subscriber(gateway.url, gateway.token(), "config")
    stop_reading(reader)
    call = tool_call("counting", "count", {"key": "a", "size": 2 * MEBIBYTE}, call_id="a")
    await send(reader, call)
    await until(lambda: gateway.services.gateway.counts.ended["ok"] == 1)
    # The answer holds its text three times. Reading it takes five write timeouts, some of it all the time.
    raw = reader.writer.get_extra_info("socket")
    started, taken = time.monotonic(), 0
    loop = asyncio.get_running_loop()
    with socket.socket(fileno=socket.dup(raw.fileno())) as copy:
        copy.setblocking(False)
        while taken < 6 * MEBIBYTE:
            taken += len(await asyncio.wait_for(loop.sock_recv(copy, MEBIBYTE), 5))
            await asyncio.sleep(max(0.0, 2.0 * taken / (6 * MEBIBYTE) - (time.monotonic() - started)))
    assert time.monotonic() - started > 1.5
    assert not reader_is_closed(gateway)
    reader.writer.close()


@pytest.mark.gen_test(timeout=30)
async def test_a_client_that_asks_and_does_not_read_is_not_read_from_either(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    gateway = await slow_gateway(
        start_gateway, tmp_path, websocket__frames_rate=1e6, websocket__frames_burst=10**6
    )
    reader, _ = await subscriber(gateway.url, gateway.token(), "config")
    (conversation,) = gateway.services.hub._connections
    stop_reading(reader)
    frame = json.dumps({"type": "list_tools", "id": "x" * 100}).encode()

    async def ask_on_and_on() -> None:
        while True:
            await reader.send_frame(TEXT, frame)

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(ask_on_and_on(), 1.5)
    heard = conversation.frames_in  # type: ignore[attr-defined]
    outbox = conversation._sink._writer._outbox  # type: ignore[attr-defined]
    assert len(outbox) < 300
    await asyncio.sleep(0.1)
    assert conversation.frames_in == heard  # type: ignore[attr-defined]
    read_again(reader)
    await until(lambda: conversation.frames_in > heard)  # type: ignore[attr-defined]
    reader.writer.close()


@pytest.mark.gen_test(timeout=30)
async def test_a_client_that_asks_and_does_not_read_is_a_slow_reader_and_not_one_without_pongs(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    gateway = await slow_gateway(
        start_gateway,
        tmp_path,
        websocket__frames_rate=1e6,
        websocket__frames_burst=10**6,
        websocket__ping_interval=0.7,
        websocket__pong_timeout=0.7,
        websocket__read_timeout=2.0,
        websocket__write_timeout=3.0,
    )
    reader, _ = await subscriber(gateway.url, gateway.token(), "config")
    stop_reading(reader)
    frame = json.dumps({"type": "list_tools", "id": "x" * 100}).encode()
    with suppress(OSError):
        while not reader_is_closed(gateway):
            with suppress(TimeoutError):
                await asyncio.wait_for(reader.send_frame(TEXT, frame), 0.1)
                await asyncio.wait_for(reader.send_frame(PONG, b""), 0.1)  # it is there
    await until(lambda: reader_is_closed(gateway))
    read_again(reader)
    last: dict[str, Any] = {}
    while last.get("type") != "disconnect":
        opcode, payload = await reader.read_frame()
        last = json.loads(payload) if opcode == TEXT else last
    assert last["data"]["code"] == 3008
    reader.reset()
    await until(lambda: not len(gateway.services.hub))


def memory_of(pid: int) -> int:
    """Resident memory of a process, in bytes."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    (line,) = (line for line in status.splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) * 1024


@pytest.mark.xdist_group("load")
@pytest.mark.gen_test(timeout=60)
async def test_memory_stays_flat_with_two_hundred_readers_that_stop_under_a_thousand_events_a_second(
    gateway_process: Callable[..., GatewayProcess], tmp_path: Path
) -> None:
    lines, per_second, size, stopped = 4000, 1000, 1800, 100
    gateway = gateway_process(
        configuration=f"""
[server]
max_connections_per_user = 1000
[websocket]
compression = false
write_timeout = 30.0
[backends]
log_lines_per_second = 100000
[events]
max_waiting = 256
[servers.counting]
command = "{sys.executable}"
args = ["{COUNTING_SERVER}", "{tmp_path / "runs.txt"}"]
"""
    )
    token, pid = gateway.token(), gateway.process.pid
    sockets = [await subscriber(gateway.url, token) for _ in range(stopped)]
    streams = [await stream(gateway.url, token) for _ in range(stopped)]
    slow = [reader for reader, _ in sockets] + streams
    for reader in slow:
        stop_reading(reader)
    good, _ = await subscriber(gateway.url, token)
    speaker = await connect(gateway.url)
    await speaker.upgrade(token=token)
    started = time.monotonic()
    call = {"lines": lines, "per_second": per_second, "size": size}
    await send(speaker, tool_call("counting", "chatter", call, call_id="chatter"))
    samples: list[tuple[float, int]] = []
    delays: list[int] = []
    numbers: list[int] = []
    while not numbers or numbers[-1] < lines - 1:
        _, payload = await good.read_frame()
        frame = json.loads(payload)
        if frame["type"] == "server.log":
            numbers.append(number_of(frame))
            delays.append(round(time.time() * 1000) - frame["timestamp"])
            if len(numbers) % 100 == 0:
                samples.append((time.monotonic() - started, memory_of(pid)))
    took = time.monotonic() - started
    assert numbers == list(range(lines)), "who reads has every line, in order"
    middle = samples[len(samples) // 2][1]
    growth = (samples[-1][1] - middle) / MEBIBYTE
    report = f"{took:.1f} s, worst delay {max(delays)} ms, {middle / MEBIBYTE:.0f} {growth:+.1f} MiB"
    assert growth < 16, report
    assert took < 2 * lines / per_second, report
    assert max(delays) < 2000, report
    for reader in [*slow, good, speaker]:
        reader.reset()


@pytest.mark.gen_test(timeout=30)
async def test_what_waits_behind_a_ping_alone_is_written_when_the_client_reads_again(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    gateway = await slow_gateway(start_gateway, tmp_path)
    reader, _ = await subscriber(gateway.url, gateway.token(), "config")
    (conversation,) = gateway.services.hub._connections
    handler = conversation._sink  # type: ignore[attr-defined]
    stop_reading(reader)
    # Control frames alone fill the kernel's buffers: no text is under way when the event is put aside.
    while handler.has_room:
        handler.ping(b"x" * 125)
    gateway.services.bus.publish("config.updated", {"source": "behind the pings", "servers": {}})
    assert len(handler._writer._outbox) == 1
    read_again(reader)
    while (frame := await reader.read_frame())[0] != TEXT:
        pass
    assert json.loads(frame[1])["data"] == {"source": "behind the pings", "servers": {}}
    reader.writer.close()


def log_line(gateway: LiveGateway, line: str) -> None:
    """A backend says something."""
    gateway.services.bus.publish("server.log", {"serverId": "a", "level": "info", "line": line})


async def slow_stream(gateway: LiveGateway, token: str, since: Position | None = None) -> RawSocket:
    """A stream of the servers' events whose reader takes nothing for now."""
    reader = await RawSocket.connect(gateway.url)
    headers = {"Authorization": f"Bearer {token}"}
    if since is not None:
        headers["Last-Event-ID"] = str(since)
    await reader.request("GET", "/api/v1/sse?channels=servers", headers)
    assert (await reader.read_head()).status == 200
    await reader.read_chunk()
    stop_reading(reader)
    return reader


@pytest.mark.gen_test(timeout=30)
async def test_a_slow_reader_is_given_nothing_of_what_happens_after_their_tokens_time(
    start_gateway: StartGateway,
) -> None:
    gateway = await start_gateway(settings={"auth.leeway": 0})
    bus = gateway.services.bus
    since = bus.position
    for number in range(600):
        log_line(gateway, f"early {number} " + "x" * 50_000)
    token = gateway.token("ann", ("events:read",), ttl=1)
    reader = await slow_stream(gateway, token, since)
    expires = gateway.services.tokens.verify(token).expires_at
    await until(lambda: time.time() > expires + 0.1)
    log_line(gateway, "late")
    read_again(reader)
    read = b""
    while chunk := await reader.read_chunk():  # the stream is whole: it has an end
        read += chunk
    assert b"early 0 " in read
    assert b"late" not in read
    await until(lambda: len(gateway.services.hub) == 0)
    reader.writer.close()


@pytest.mark.gen_test(timeout=30)
async def test_a_slow_reader_outlives_their_token_by_the_write_timeout_at_most(
    start_gateway: StartGateway,
) -> None:
    gateway = await start_gateway(
        settings={"auth.leeway": 0, "websocket.write_timeout": 2, "events.max_waiting_size": 1 << 26}
    )
    expires = time.monotonic() + 1
    reader = await slow_stream(gateway, gateway.token("ann", ("events:read",), ttl=1))
    for number in range(250):
        log_line(gateway, f"{number} " + "x" * 60_000)
    # Something is always taken, so that the write timeout alone never ends it.
    while len(gateway.services.hub):
        assert time.monotonic() < expires + 5, "the stream goes on"
        read_again(reader)
        await reader.reader.read(20_000)
        stop_reading(reader)
        await asyncio.sleep(0.02)
    assert time.monotonic() > expires + 1
    reader.writer.close()
