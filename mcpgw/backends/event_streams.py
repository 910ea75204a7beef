"""Events out of the bytes of an event stream, as they come.

Source: WHATWG HTML, "Server-sent events", parsing an event stream.
"""

from dataclasses import dataclass

_COLON = 0x3A


class EventTooLargeError(Exception):
    """An event is longer than the limit."""


@dataclass(slots=True)
class Event:
    """One event: its type and its data, which is UTF-8 as a rule."""

    type: bytes
    data: bytes


class EventReader:
    """Reads one stream; an event of more than `max_size` bytes is refused before it is whole.

    `last_id` is the id that the stream can be resumed from, empty where it has named none; `retry` how long
    to wait before that, in milliseconds.
    """

    def __init__(self, max_size: int) -> None:
        self._max_size = max_size
        self._begun: list[bytes] = []
        self._begun_size = 0
        self._after_return = False
        self._type = b""
        self._data: list[bytes] = []
        self._size = 0
        self._id = ""
        self._retry: int | None = None
        self._is_pending = False
        self.last_id = ""
        self.retry: int | None = None

    def feed(self, chunk: bytes) -> list[Event]:
        """Take one chunk; the events that it completes, in order.

        Raises:
            EventTooLargeError: an event is over the limit.
        """
        if self._after_return and chunk.startswith(b"\n"):
            chunk = chunk[1:]
            self._after_return = False
        if not chunk:
            return []
        self._after_return = chunk.endswith(b"\r")
        lines = chunk.splitlines()  # of bytes: at \n, \r and \r\n alone
        rest = b"" if self._after_return or chunk.endswith(b"\n") else lines.pop()
        if self._begun and lines:
            lines[0] = b"".join([*self._begun, lines[0]])
            self._begun, self._begun_size = [], 0
        events = [event for line in lines if (event := self._take_line(line)) is not None]
        if rest:
            self._begun.append(rest)
            self._begun_size += len(rest)
        self._check(self._begun_size)
        return events

    def _take_line(self, line: bytes) -> Event | None:
        if not line:
            return self._end_event()
        if line[0] == _COLON:
            return None
        self._size += len(line)
        self._check(0)
        name, _, value = line.partition(b":")
        if value.startswith(b" "):
            value = value[1:]
        if name == b"data":
            self._data.append(value)
        elif name == b"event":
            self._type = value
        elif name == b"id" and b"\0" not in value:
            self._id = value.decode(errors="replace")
        elif name == b"retry":
            try:
                self._retry = int(value)
            except ValueError:
                return None
        else:
            return None
        self._is_pending = True
        return None

    def _end_event(self) -> Event | None:
        event = None
        if self._is_pending:
            event = Event(self._type or b"message", b"\n".join(self._data))
            self.last_id = self._id or self.last_id  # an empty one takes nothing back, as in the SDK
            if self._retry is not None:
                self.retry = self._retry
        self._clear()
        return event

    def _clear(self) -> None:
        self._type, self._data, self._size = b"", [], 0
        self._retry, self._is_pending = None, False

    def _check(self, begun: int) -> None:
        if self._size + begun > self._max_size:
            raise EventTooLargeError
