"""The echo route: the wire as conformance suites see it, under the limits of every socket."""

import asyncio
import struct
import time
import zlib

import pytest

from tests.conftest import LiveGateway, StartGateway
from tests.support.raw_socket import (
    BINARY,
    CLOSE,
    COMPRESSED,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    RawSocket,
    frame_bytes,
)
from tests.support.socket_client import SocketClient
from tests.support.waiting import until

PATH = "/ws/echo"
DEFLATE = {"Sec-WebSocket-Extensions": "permessage-deflate"}


async def echo_gateway(start_gateway: StartGateway, **settings: object) -> LiveGateway:
    """A gateway whose echo route is there."""
    names = {name.replace("__", "."): value for name, value in settings.items()}
    return await start_gateway(settings={"websocket.echo": True, **names})


async def opened(gateway: LiveGateway, headers: dict[str, str] | None = None) -> RawSocket:
    """An echo socket; nobody is greeted on it."""
    socket = await RawSocket.connect(gateway.url)
    assert (await socket.upgrade(path=PATH, headers=headers)).status == 101
    return socket


def deflated(data: bytes) -> bytes:
    """`data` as one message of permessage-deflate has it (RFC 7692 section 7.2.1)."""
    compressor = zlib.compressobj(wbits=-15)
    return (compressor.compress(data) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]


async def read_message(socket: RawSocket) -> tuple[int, bool, bytes]:
    """Opcode of the next frame, whether it is compressed, and its payload; it must be a whole message."""
    first, length = await socket.reader.readexactly(2)
    assert first & 0x80, "the gateway sends no fragments"
    assert not length & 0x80, "a server masks nothing (RFC 6455 section 5.1)"
    if length == 126:
        (length,) = struct.unpack("!H", await socket.reader.readexactly(2))
    elif length == 127:
        (length,) = struct.unpack("!Q", await socket.reader.readexactly(8))
    payload = await socket.reader.readexactly(length)
    if first & COMPRESSED:
        payload = zlib.decompressobj(-15).decompress(payload + b"\x00\x00\xff\xff")
    return first & 0x0F, bool(first & COMPRESSED), payload


@pytest.mark.gen_test
async def test_there_is_no_echo_unless_it_is_switched_on(start_gateway: StartGateway) -> None:
    gateway = await start_gateway()
    async with await RawSocket.connect(gateway.url) as socket:
        answer = await socket.upgrade(path=PATH, token=gateway.token())
        assert (answer.status, answer.json()["error"]["code"]) == (404, "not_found")


@pytest.mark.gen_test
async def test_a_foreign_page_is_refused_here_too(start_gateway: StartGateway) -> None:
    gateway = await echo_gateway(start_gateway)
    async with await RawSocket.connect(gateway.url) as socket:
        answer = await socket.upgrade(path=PATH, headers={"Origin": "https://evil.example"})
        assert answer.status == 403


@pytest.mark.gen_test(timeout=30)
@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 128, 65535, 65536, 65537, 1_048_576])
async def test_text_and_binary_come_back_as_they_were(start_gateway: StartGateway, size: int) -> None:
    gateway = await echo_gateway(start_gateway)
    async with await opened(gateway) as socket:
        text = ("κόσμε \x00 𝄞 " * (size // 10 + 1)).encode()[:size].decode(errors="ignore").encode()
        binary = (bytes(range(256)) * (size // 256 + 1))[:size]
        await socket.send_frame(TEXT, text)
        assert await socket.read_frame() == (TEXT, text)
        await socket.send_frame(BINARY, binary)
        assert await socket.read_frame() == (BINARY, binary)


@pytest.mark.gen_test
@pytest.mark.parametrize("opcode", [TEXT, BINARY])
async def test_fragments_with_pings_between_come_back_as_one_message(
    start_gateway: StartGateway, opcode: int
) -> None:
    gateway = await echo_gateway(start_gateway)
    message = "Grüße 𝄞".encode()
    async with await opened(gateway) as socket:
        # A character may be cut in two, and a fragment may be empty (RFC 6455 section 5.4).
        await socket.send_frame(opcode, message[:3], final=False)
        await socket.send_frame(PING, b"between")
        await socket.send_frame(CONTINUATION, b"", final=False)
        for byte in message[3:]:
            await socket.send_frame(CONTINUATION, bytes([byte]), final=False)
        await socket.send_frame(CONTINUATION, b"", final=True)
        assert await socket.read_frame() == (PONG, b"between")
        assert await socket.read_frame() == (opcode, message)


@pytest.mark.gen_test
@pytest.mark.parametrize("opcode", [TEXT, BINARY])
async def test_compressed_messages_come_back_compressed_whole_and_in_fragments(
    start_gateway: StartGateway, opcode: int
) -> None:
    gateway = await echo_gateway(start_gateway, websocket__compression_minimum=64)
    message, small = b"all work and no play " * 500, b"small"
    async with await opened(gateway, DEFLATE) as socket:
        await socket.send_frame(opcode, deflated(message), reserved=COMPRESSED)
        assert await read_message(socket) == (opcode, True, message)
        data = deflated(message)
        await socket.send_frame(opcode, data[:7], final=False, reserved=COMPRESSED)
        await socket.send_frame(CONTINUATION, data[7:])
        assert await read_message(socket) == (opcode, True, message)
        await socket.send_frame(opcode, deflated(small), reserved=COMPRESSED)
        assert await read_message(socket) == (opcode, False, small)


@pytest.mark.gen_test
async def test_every_message_of_many_sent_at_once_comes_back_in_order(start_gateway: StartGateway) -> None:
    gateway = await echo_gateway(start_gateway)
    async with await opened(gateway) as socket:
        await socket.send(b"".join(frame_bytes(TEXT, str(n).encode()) for n in range(500)))
        assert [(await socket.read_frame())[1] for _ in range(500)] == [str(n).encode() for n in range(500)]


@pytest.mark.gen_test
@pytest.mark.parametrize("payload", [b"", b"\x00\xff\xfe\xfd", b"x" * 125])
async def test_a_ping_has_its_pong_and_an_unasked_pong_has_none(
    start_gateway: StartGateway, payload: bytes
) -> None:
    gateway = await echo_gateway(start_gateway)
    async with await opened(gateway) as socket:
        await socket.send_frame(PONG, b"unasked")
        await socket.send_frame(PING, payload)
        assert await socket.read_frame() == (PONG, payload)


@pytest.mark.gen_test
@pytest.mark.parametrize("payload", [b"", b"\x03\xe8", b"\x03\xe8bye", b"\x0b\xb8", b"\x13\x87"])
async def test_a_close_is_answered_with_its_code_and_nothing_follows(
    start_gateway: StartGateway, payload: bytes
) -> None:
    gateway = await echo_gateway(start_gateway)
    async with await opened(gateway) as socket:
        await socket.send_frame(CLOSE, payload)
        await socket.send_frame(TEXT, b"after the close")
        opcode, answer = await socket.read_frame()
        assert (opcode, answer[:2]) == (CLOSE, payload[:2])
        assert await socket.read_to_end() == b""
    await until(lambda: not len(gateway.services.hub))


@pytest.mark.gen_test
async def test_the_limits_of_messages_hold(start_gateway: StartGateway) -> None:
    gateway = await echo_gateway(start_gateway, websocket__max_message_size=1024)
    for payload, code in ((b"x" * 1025, 1009), (deflated(b"x" * 100_000), 1009), (b"\xff", 1007)):
        compressed = code == 1009 and len(payload) < 1025
        async with await opened(gateway, DEFLATE) as socket:
            await socket.send_frame(TEXT, payload, reserved=COMPRESSED if compressed else 0)
            assert (await socket.read_close())[0] == code


@pytest.mark.gen_test
async def test_the_limit_of_connections_holds_and_a_place_is_given_back(start_gateway: StartGateway) -> None:
    gateway = await echo_gateway(start_gateway, server__max_connections=1)
    async with await opened(gateway) as first:
        async with await RawSocket.connect(gateway.url) as second:
            refused = await second.upgrade(path=PATH)
            assert (refused.status, refused.json()["error"]["code"]) == (503, "queue_full")
        await first.send_frame(CLOSE, b"\x03\xe8")
        await first.read_to_end()
    await until(lambda: gateway.services.hub.statistics().connections == 0)
    async with await opened(gateway) as third:
        await third.send_frame(TEXT, b"there is room")
        assert await third.read_frame() == (TEXT, b"there is room")


@pytest.mark.gen_test
async def test_echoes_take_few_places_and_leave_the_others_to_clients(start_gateway: StartGateway) -> None:
    gateway = await echo_gateway(start_gateway, server__max_echo=2)
    async with await opened(gateway), await opened(gateway):
        async with await RawSocket.connect(gateway.url) as third:
            refused = await third.upgrade(path=PATH)
            assert (refused.status, refused.json()["error"]["code"]) == (503, "queue_full")
            assert "2 connections of echo" in refused.json()["error"]["message"]
        stranger = await SocketClient.connect(gateway.socket_url)
        assert (await stranger.receive())["data"]["requiresAuth"] is True
        await stranger.leave()
    await until(lambda: gateway.services.hub.statistics().connections == 0)
    async with await opened(gateway):
        pass


@pytest.mark.gen_test
async def test_an_echo_that_says_nothing_is_closed_although_it_answers_pings(
    start_gateway: StartGateway,
) -> None:
    gateway = await echo_gateway(
        start_gateway,
        websocket__read_timeout=0.6,
        websocket__ping_interval=0.2,
        websocket__pong_timeout=0.2,
    )
    async with await opened(gateway) as socket:
        await asyncio.sleep(0.3)
        await socket.send_frame(TEXT, b"still here")
        said = time.monotonic()
        while (frame := await socket.read_frame())[0] != CLOSE:
            if frame[0] == PING:
                await socket.send_frame(PONG, frame[1])
        assert frame == (CLOSE, (3012).to_bytes(2, "big") + b"nothing was said")
        assert time.monotonic() - said > 0.5
    await until(lambda: gateway.services.hub.statistics().connections == 0)


@pytest.mark.gen_test
async def test_a_request_that_is_no_upgrade_takes_no_place(start_gateway: StartGateway) -> None:
    gateway = await echo_gateway(start_gateway)
    async with await RawSocket.connect(gateway.url) as socket:
        await socket.request("GET", PATH)
        assert (await socket.read_answer()).status == 426
    assert gateway.services.hub.statistics().connections == 0


@pytest.mark.gen_test
async def test_a_peer_that_answers_no_ping_is_given_up_with_3012(start_gateway: StartGateway) -> None:
    gateway = await echo_gateway(start_gateway, websocket__ping_interval=0.2, websocket__pong_timeout=0.2)
    async with await opened(gateway) as socket:
        assert await socket.read_frame() == (PING, b"")
        assert (await socket.read_close())[0] == 3012


@pytest.mark.gen_test
async def test_the_end_of_the_gateway_closes_with_1001(start_gateway: StartGateway) -> None:
    gateway = await echo_gateway(start_gateway)
    async with await opened(gateway) as socket:
        await socket.send_frame(TEXT, b"here")
        await socket.read_frame()
        await gateway.services.hub.drain(0)
        assert await socket.read_close() == (1001, "the gateway is ending")
        await socket.send_frame(CLOSE, b"\x03\xe9")
        await socket.read_to_end()
    await until(lambda: not len(gateway.services.hub))
