"""RFC 6455 and RFC 7692 at the level of frames, over raw TCP."""

import json
import zlib

import pytest

from tests.support.gateway_process import GatewayProcess
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

MEBIBYTE = 1024 * 1024
PING_TEXT = b'{"type":"ping","id":"p"}'
DEFLATE = {
    "Sec-WebSocket-Extensions": "permessage-deflate; client_no_context_takeover; server_no_context_takeover"
}


def deflated(data: bytes) -> bytes:
    """`data` as one message of permessage-deflate has it (RFC 7692 section 7.2.1)."""
    compressor = zlib.compressobj(wbits=-15)
    return (compressor.compress(data) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]


def inflated(data: bytes) -> bytes:
    """The other way round; what is small comes as it is."""
    if data.startswith(b"{"):
        return data
    return zlib.decompressobj(-15).decompress(data + b"\x00\x00\xff\xff")


async def opened(gateway: GatewayProcess, headers: dict[str, str] | None = None) -> RawSocket:
    """A socket that has read its first status."""
    socket = await RawSocket.connect(gateway.url)
    answer = await socket.upgrade(headers=headers)
    assert answer.status == 101
    opcode, payload = await socket.read_frame()
    assert opcode == TEXT
    if headers == DEFLATE:
        payload = inflated(payload)
    assert json.loads(payload)["type"] == "status"
    return socket


@pytest.mark.gen_test
async def test_large_messages_are_compressed_small_ones_are_not_and_nothing_is_kept_between(
    shared_gateway: GatewayProcess,
) -> None:
    socket = await RawSocket.connect(shared_gateway.url)
    offer = {
        "Sec-WebSocket-Extensions": "permessage-deflate",
        "Authorization": f"Bearer {shared_gateway.token()}",
    }
    answer = await socket.upgrade(headers=offer)
    agreed = answer.headers["sec-websocket-extensions"]
    assert {part.strip() for part in agreed.split(";")} == {
        "permessage-deflate",
        "server_no_context_takeover",
        "client_no_context_takeover",
    }
    async with socket:
        assert (await socket.read_frame())[1].startswith(b'{"type":"status"')
        await socket.send_frame(TEXT, b'{"type":"list_tools","id":"l"}')
        for _ in range(2):
            payload = (await socket.read_frame())[1]
            assert not payload.startswith(b"{")
            assert json.loads(inflated(payload))["type"] == "tools"
            await socket.send_frame(TEXT, b'{"type":"list_tools","id":"l"}')
        await socket.read_frame()


@pytest.mark.gen_test
async def test_a_message_of_exactly_one_mebibyte_is_taken(shared_gateway: GatewayProcess) -> None:
    async with await opened(shared_gateway) as socket:
        await socket.send_frame(TEXT, PING_TEXT + b" " * (MEBIBYTE - len(PING_TEXT)))
        assert (await socket.read_json())["type"] == "pong"


@pytest.mark.gen_test
async def test_a_message_over_one_mebibyte_is_closed_with_1009_that_arrives_before_the_end(
    shared_gateway: GatewayProcess,
) -> None:
    async with await opened(shared_gateway) as socket:
        await socket.send_frame(TEXT, b'"' + b"x" * (3 * MEBIBYTE) + b'"')
        await socket.send_frame(TEXT, PING_TEXT)
        assert await socket.read_close() == (1009, "message too big")
        assert await socket.read_to_end(seconds=1) == b""


@pytest.mark.gen_test
async def test_fragments_that_grow_over_one_mebibyte_are_closed_with_1009(
    shared_gateway: GatewayProcess,
) -> None:
    async with await opened(shared_gateway) as socket:
        half = b"x" * (MEBIBYTE // 2 + 1)
        await socket.send_frame(TEXT, half, final=False)
        await socket.send_frame(CONTINUATION, half)
        assert (await socket.read_close())[0] == 1009


@pytest.mark.gen_test
async def test_a_length_of_many_exabytes_is_closed_with_1009_and_not_waited_for(
    shared_gateway: GatewayProcess,
) -> None:
    async with await opened(shared_gateway) as socket:
        await socket.send(b"\x81\xff" + b"\xff" * 8)
        assert (await socket.read_close())[0] == 1009


@pytest.mark.gen_test
async def test_a_bomb_is_closed_with_1009_after_decompression(shared_gateway: GatewayProcess) -> None:
    async with await opened(shared_gateway, DEFLATE) as socket:
        bomb = deflated(b" " * (64 * MEBIBYTE))
        assert len(bomb) < MEBIBYTE // 8
        await socket.send_frame(TEXT, bomb, reserved=COMPRESSED)
        assert await socket.read_close() == (1009, "message too big after decompression")


@pytest.mark.gen_test
async def test_exactly_one_mebibyte_after_decompression_is_taken(shared_gateway: GatewayProcess) -> None:
    async with await opened(shared_gateway, DEFLATE) as socket:
        await socket.send_frame(
            TEXT, deflated(PING_TEXT + b" " * (MEBIBYTE - len(PING_TEXT))), reserved=COMPRESSED
        )
        assert json.loads(inflated((await socket.read_frame())[1]))["type"] == "pong"


@pytest.mark.gen_test
@pytest.mark.parametrize(
    "payload", [b"\xff", b'{"type":"\xed\xa0\x80"}', b"\xc0\x80", b"abc\xe2\x82"], ids=repr
)
async def test_invalid_utf_8_is_closed_with_1007(shared_gateway: GatewayProcess, payload: bytes) -> None:
    async with await opened(shared_gateway) as socket:
        await socket.send_frame(TEXT, payload)
        assert await socket.read_close() == (1007, "invalid UTF-8")
        assert await socket.read_to_end(seconds=1) == b""


@pytest.mark.gen_test
async def test_invalid_utf_8_in_a_compressed_message_is_closed_with_1007(
    shared_gateway: GatewayProcess,
) -> None:
    async with await opened(shared_gateway, DEFLATE) as socket:
        await socket.send_frame(TEXT, deflated(b'{"type":"\xff"}'), reserved=COMPRESSED)
        assert (await socket.read_close())[0] == 1007


@pytest.mark.gen_test
async def test_broken_deflate_data_is_closed_with_1007(shared_gateway: GatewayProcess) -> None:
    async with await opened(shared_gateway, DEFLATE) as socket:
        await socket.send_frame(TEXT, b"\xff\xff\xff\xff", reserved=COMPRESSED)
        assert (await socket.read_close())[0] == 1007


@pytest.mark.gen_test
async def test_a_ping_between_the_fragments_of_a_compressed_message_changes_nothing(
    shared_gateway: GatewayProcess,
) -> None:
    async with await opened(shared_gateway, DEFLATE) as socket:
        data = deflated(PING_TEXT)
        await socket.send_frame(TEXT, data[:5], final=False, reserved=COMPRESSED)
        await socket.send_frame(PING, b"still there?")
        await socket.send_frame(CONTINUATION, data[5:])
        assert await socket.read_frame() == (PONG, b"still there?")
        assert json.loads(inflated((await socket.read_frame())[1]))["type"] == "pong"


@pytest.mark.gen_test
async def test_an_uncompressed_message_is_taken_where_compression_is_agreed_on(
    shared_gateway: GatewayProcess,
) -> None:
    async with await opened(shared_gateway, DEFLATE) as socket:
        await socket.send_frame(TEXT, deflated(PING_TEXT), reserved=COMPRESSED)
        await socket.send_frame(TEXT, PING_TEXT)
        for _ in range(2):
            assert json.loads(inflated((await socket.read_frame())[1]))["type"] == "pong"


@pytest.mark.gen_test
async def test_a_ping_inside_a_message_near_the_limit_does_not_count_towards_it(
    shared_gateway: GatewayProcess,
) -> None:
    async with await opened(shared_gateway) as socket:
        await socket.send_frame(TEXT, PING_TEXT + b" " * (MEBIBYTE - len(PING_TEXT) - 1), final=False)
        await socket.send_frame(PING, b"x" * 125)
        await socket.send_frame(CONTINUATION, b" ")
        assert await socket.read_frame() == (PONG, b"x" * 125)
        assert (await socket.read_json())["type"] == "pong"


WRONG_FRAMES = {
    "without a mask": frame_bytes(TEXT, PING_TEXT, masked=False),
    "with RSV1 that was not agreed on": frame_bytes(TEXT, PING_TEXT, reserved=0x40),
    "with RSV2": frame_bytes(TEXT, PING_TEXT, reserved=0x20),
    "of an unknown opcode": frame_bytes(0x3, b""),
    "of an unknown control opcode": frame_bytes(0xB, b""),
    "a fragmented ping": frame_bytes(PING, b"", final=False),
    "a ping too long": frame_bytes(PING, b"x" * 126),
    "a continuation of nothing": frame_bytes(CONTINUATION, b"x"),
    "a message inside a message": frame_bytes(TEXT, b"{", final=False) + frame_bytes(TEXT, b"}"),
    "a close of one byte": frame_bytes(CLOSE, b"\x03"),
    "a close with 1005": frame_bytes(CLOSE, (1005).to_bytes(2, "big")),
    "a close with 999": frame_bytes(CLOSE, (999).to_bytes(2, "big")),
    "a close with 2000": frame_bytes(CLOSE, (2000).to_bytes(2, "big")),
    "a close with 5000": frame_bytes(CLOSE, (5000).to_bytes(2, "big")),
}


@pytest.mark.gen_test
@pytest.mark.parametrize("name", WRONG_FRAMES)
async def test_a_frame_that_breaks_the_protocol_is_closed_with_1002(
    shared_gateway: GatewayProcess, name: str
) -> None:
    async with await opened(shared_gateway) as socket:
        await socket.send(WRONG_FRAMES[name])
        assert (await socket.read_close())[0] == 1002
        assert await socket.read_to_end(seconds=1) == b""


@pytest.mark.gen_test
@pytest.mark.parametrize("opcode", [PING, CONTINUATION])
async def test_a_frame_that_may_not_say_that_it_is_compressed_is_closed_with_1002(
    shared_gateway: GatewayProcess, opcode: int
) -> None:
    async with await opened(shared_gateway, DEFLATE) as socket:
        await socket.send_frame(TEXT, b"", final=False, reserved=COMPRESSED)
        await socket.send_frame(opcode, b"", reserved=COMPRESSED)
        assert (await socket.read_close())[0] == 1002


@pytest.mark.gen_test
async def test_a_close_whose_reason_is_no_utf_8_is_closed_with_1007(shared_gateway: GatewayProcess) -> None:
    async with await opened(shared_gateway) as socket:
        await socket.send_frame(CLOSE, b"\x03\xe8\xff")
        assert (await socket.read_close())[0] == 1007


@pytest.mark.gen_test
@pytest.mark.parametrize(
    ("payload", "code"), [(b"", None), (b"\x03\xe8", 1000), (b"\x03\xe9bye", 1001), (b"\x0f\xa0", 4000)]
)
async def test_a_clean_close_is_echoed(
    shared_gateway: GatewayProcess, payload: bytes, code: int | None
) -> None:
    async with await opened(shared_gateway) as socket:
        await socket.send_frame(CLOSE, payload)
        assert (await socket.read_close())[0] == code
        assert await socket.read_to_end(seconds=1) == b""


@pytest.mark.gen_test
async def test_every_split_of_a_message_into_fragments_is_one_message(shared_gateway: GatewayProcess) -> None:
    async with await opened(shared_gateway) as socket:
        for index in range(1, len(PING_TEXT)):
            await socket.send_frame(TEXT, PING_TEXT[:index], final=False)
            await socket.send_frame(CONTINUATION, b"", final=False)
            await socket.send_frame(CONTINUATION, PING_TEXT[index:])
            assert (await socket.read_json())["id"] == "p"


@pytest.mark.gen_test
async def test_bytes_that_come_one_by_one_are_a_message(shared_gateway: GatewayProcess) -> None:
    async with await opened(shared_gateway) as socket:
        for byte in frame_bytes(TEXT, PING_TEXT):
            await socket.send(bytes([byte]))
        assert (await socket.read_json())["type"] == "pong"


@pytest.mark.gen_test
async def test_a_binary_message_is_refused_and_the_socket_stays_open(shared_gateway: GatewayProcess) -> None:
    async with await opened(shared_gateway) as socket:
        await socket.send_frame(BINARY, PING_TEXT)
        error = await socket.read_json()
        assert error["data"]["code"] == "parse_error"
        assert "binary" in error["data"]["error"]
        await socket.send_frame(TEXT, PING_TEXT)
        assert (await socket.read_json())["type"] == "pong"


@pytest.mark.gen_test
@pytest.mark.parametrize(
    "offer",
    [
        "permessage-deflate; server_max_window_bits=100",
        "permessage-deflate; server_max_window_bits=8",
        "permessage-deflate; client_max_window_bits=x",
        "permessage-deflate; unknown=1",
    ],
)
async def test_an_offer_of_compression_that_cannot_be_taken_is_declined(
    shared_gateway: GatewayProcess, offer: str
) -> None:
    async with await RawSocket.connect(shared_gateway.url) as socket:
        answer = await socket.upgrade(headers={"Sec-WebSocket-Extensions": offer})
        assert answer.status == 101
        assert "sec-websocket-extensions" not in answer.headers
        assert (await socket.read_json())["type"] == "status"


@pytest.mark.gen_test
@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Upgrade": "other"}, 426),
        ({"Connection": "close"}, 426),
        ({"Sec-WebSocket-Version": "8"}, 426),
        ({"Sec-WebSocket-Key": ""}, 400),
    ],
    ids=str,
)
async def test_a_handshake_that_is_none_gets_an_answer_in_the_shape_of_errors(
    shared_gateway: GatewayProcess, headers: dict[str, str], status: int
) -> None:
    async with await RawSocket.connect(shared_gateway.url) as socket:
        answer = await socket.upgrade(headers=headers)
        assert answer.status == status
        assert answer.json()["error"]["temporary"] is False
        if status == 426:
            assert answer.headers["upgrade"] == "websocket"
            assert answer.headers["sec-websocket-version"] == "13"
