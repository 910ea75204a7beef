"""What is written to one stream of Server-Sent Events (WHATWG HTML, section 9.2)."""

from tornado.iostream import IOStream

from mcpgw.hub import Place
from mcpgw.services import WriterParts
from mcpgw.wire.events import Event
from mcpgw.wire.frames import Lagged, encode

from .direct_writer import DirectWriter, Writing


class StreamEncoding:
    """How texts become events of a stream: in chunks (RFC 9112 section 7.1), or bare for HTTP/1.0."""

    __slots__ = ("_chunked", "_frame", "_text")

    def __init__(self, *, chunked: bool) -> None:
        self._chunked = chunked
        self._text = ""
        self._frame = b""

    def encode(self, event: Event, text: str) -> bytes:
        """An event with its id, which is made once where it is asked for again and again."""
        if text is not self._text:
            self._text, self._frame = text, self.frame(text, str(event.position))
        return self._frame

    def frame(self, text: str, identifier: str | None = None) -> bytes:
        """One event without a name, so that ``onmessage`` sees it."""
        head = "" if identifier is None else f"id: {identifier}\n"
        data = f"{head}data: {text}\n\n".encode()
        return b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data


_CHUNKED = StreamEncoding(chunked=True)
_BARE = StreamEncoding(chunked=False)


class StreamWriter(DirectWriter):
    """Sends events on a stream whose head was written; `encoding` is how they become bytes."""

    __slots__ = ("encoding",)

    def __init__(
        self, stream: IOStream, owner: Writing, place: Place, parts: WriterParts, *, chunked: bool
    ) -> None:
        self.encoding = _CHUNKED if chunked else _BARE
        super().__init__(stream, owner, place, parts)

    def send_text(self, text: str, identifier: str | None = None) -> None:
        """Send an event that must not be lost."""
        self.send(self.encoding.frame(text, identifier))

    def lagged(self, source: str, dropped: int) -> bytes:
        """The event that tells of a gap."""
        return self.encoding.frame(encode(Lagged(source, dropped)))
