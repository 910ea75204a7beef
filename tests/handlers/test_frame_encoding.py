"""Texts as WebSocket messages that any number of connections can be sent."""

import struct
import zlib
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpgw.wire.events import EVENT_TYPES, Event, Position

if TYPE_CHECKING:
    from handlers.frame_encoding import FrameEncoding, frame_encoding, text_frame
    from handlers.stream_writer import StreamEncoding
else:
    from mcpgw.handlers.frame_encoding import FrameEncoding, frame_encoding, text_frame
    from mcpgw.handlers.stream_writer import StreamEncoding


def event(offset: int = 1) -> Event:
    data = {"serverId": "a", "level": "info", "line": "x" * 300}
    return Event(EVENT_TYPES["server.log"], "servers", data, 0, Position("0" * 16, offset))


def parsed(frame: bytes) -> tuple[int, bytes]:
    """First byte and payload of a server's frame, which is all of it."""
    size, start = frame[1], 2
    assert not size & 0x80, "a server's frames have no mask"
    if size == 126:
        (size,), start = struct.unpack_from("!H", frame, 2), 4
        assert size > 125, "the shortest form (RFC 6455 section 5.2)"
    elif size == 127:
        (size,), start = struct.unpack_from("!Q", frame, 2), 10
        assert size > 65535
    assert len(frame) == start + size
    return frame[0], frame[start:]


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65535, 65536, 70000])
def test_every_length_has_its_form(size: int) -> None:
    data = b"x" * size
    assert parsed(text_frame(data)) == (0x81, data)
    assert parsed(text_frame(data, compressed=True)) == (0xC1, data)


@given(st.text(max_size=3000), st.integers(9, 15), st.integers(0, 2000))
def test_a_message_is_compressed_from_its_minimum_on_and_stands_for_itself(
    text: str, bits: int, minimum: int
) -> None:
    encoding = FrameEncoding(bits, minimum)
    for _ in range(2):  # nothing of the first is needed for the second
        first, payload = parsed(encoding.frame(text))
        if len(text.encode()) < minimum:
            assert (first, payload) == (0x81, text.encode())
        else:
            assert first == 0xC1
            inflater = zlib.decompressobj(-bits)
            assert inflater.decompress(payload + b"\x00\x00\xff\xff") == text.encode()


def test_an_event_is_encoded_once_for_all_connections_that_agreed_on_the_same() -> None:
    one = event()
    assert frame_encoding(12, 256) is frame_encoding(12, 256)
    assert frame_encoding(12, 256) is not frame_encoding(15, 256)
    assert frame_encoding(None, 256) is not frame_encoding(12, 256)
    for bits in (None, 12):
        encoding = frame_encoding(bits, 256)
        assert encoding.encode(one, one.text()) is encoding.encode(one, one.text())
        assert encoding.encode(event(2), event(2).text()) != encoding.encode(one, one.text())


def test_an_event_of_a_stream_is_one_chunk_with_its_id_and_bare_for_http_1_0() -> None:
    one = event()
    bare = StreamEncoding(chunked=False).encode(one, one.text())
    assert bare == f"id: {'0' * 16}-1\ndata: {one.text()}\n\n".encode()
    chunk = StreamEncoding(chunked=True).encode(one, one.text())
    size, _, rest = chunk.partition(b"\r\n")
    assert rest == bare + b"\r\n"
    assert int(size, 16) == len(bare)
