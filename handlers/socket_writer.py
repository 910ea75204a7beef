"""What is written to one WebSocket."""

from mcpgw.hub import Place
from mcpgw.services import WriterParts
from mcpgw.session import CALL_SOURCE
from mcpgw.wire.frames import Lagged, ReplyTo, encode

from .direct_writer import DirectWriter, Writing
from .frame_encoding import FrameEncoding, frame_encoding
from .websocket_protocol import GatewayWebSocketProtocol


class SocketWriter(DirectWriter):
    """Sends texts and events as messages of an open WebSocket; `encoding` is how they become bytes."""

    __slots__ = ("encoding",)

    def __init__(
        self, protocol: GatewayWebSocketProtocol, owner: Writing, place: Place, parts: WriterParts
    ) -> None:
        self.encoding: FrameEncoding = frame_encoding(protocol.window_bits, protocol.compression_minimum)
        super().__init__(protocol.stream, owner, place, parts)
        protocol.writer = self

    def send_text(self, text: str, source: str | None = None) -> None:
        """Send what must not be lost, or what may be dropped where there is a `source`."""
        self.send(self.encoding.frame(text), source)

    def lagged(self, source: str, dropped: int) -> bytes:
        """The frame that tells of a gap: for a call's progress with the call's id, else for a channel."""
        is_call = source.startswith(CALL_SOURCE)
        reply = ReplyTo(source.removeprefix(CALL_SOURCE)) if is_call else None
        return self.encoding.frame(encode(Lagged(source, dropped), reply))
