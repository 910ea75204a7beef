"""How texts become WebSocket messages, as bytes that any number of connections can be sent."""

import struct
import zlib
from functools import cache
from typing import Final

from mcpgw.wire.events import Event

COMPRESSION_LEVEL: Final = 1
MEMORY_LEVEL: Final = 4
"""Of zlib: small buffers, since every message is compressed by itself."""

_FINAL_TEXT = 0x81
_COMPRESSED = 0x40
_LONGEST_SHORT = 125
_TAIL = b"\x00\x00\xff\xff"


class FrameEncoding:
    """The encoding of all connections that have agreed on the same compression.

    `window_bits` is the size of its window; None where there is none. Texts below `minimum` bytes are sent as
    they are (RFC 7692 section 6 leaves that to each message). Nothing is kept from one message to the next,
    which is why a message that was made once can be sent to many.
    """

    __slots__ = ("_frame", "_minimum", "_text", "_window_bits")

    def __init__(self, window_bits: int | None, minimum: int) -> None:
        self._window_bits = window_bits
        self._minimum = minimum
        self._text = ""
        self._frame = text_frame(b"")

    def encode(self, event: Event, text: str) -> bytes:  # noqa: ARG002 - all of the event is in its text
        """The message of an event, which is made once where it is asked for again and again."""
        if text is not self._text:
            self._text, self._frame = text, self.frame(text)
        return self._frame

    def frame(self, text: str) -> bytes:
        """The whole message."""
        data = text.encode()
        if self._window_bits is None or len(data) < self._minimum:
            return text_frame(data)
        deflater = zlib.compressobj(COMPRESSION_LEVEL, zlib.DEFLATED, -self._window_bits, MEMORY_LEVEL)
        compressed = deflater.compress(data) + deflater.flush(zlib.Z_SYNC_FLUSH)
        return text_frame(compressed.removesuffix(_TAIL), compressed=True)


@cache
def frame_encoding(window_bits: int | None, minimum: int) -> FrameEncoding:
    """The one encoding of its kind; there are as many as sizes of a window."""
    return FrameEncoding(window_bits, minimum)


def text_frame(data: bytes, *, compressed: bool = False) -> bytes:
    """A whole server frame with one text message (RFC 6455 section 5.2): final and without a mask."""
    first = _FINAL_TEXT | (_COMPRESSED if compressed else 0)
    size = len(data)
    if size <= _LONGEST_SHORT:
        return bytes((first, size)) + data
    if size < 65536:  # noqa: PLR2004 - RFC 6455 section 5.2
        return struct.pack("!BBH", first, 126, size) + data
    return struct.pack("!BBQ", first, 127, size) + data
