"""Splitting a byte stream into lines whose length is bounded."""

from collections.abc import Iterator
from dataclasses import dataclass

_KEPT_OF_OVERSIZED = 4096


@dataclass(frozen=True, slots=True)
class OversizedLine:
    """What is kept of a line over the limit: its first and last 4 KiB, and its length in bytes."""

    head: bytes
    tail: bytes
    size: int


class LineSplitter:
    """Cuts chunks of bytes into lines without their line feed; never holds more than `max_size` bytes.

    Each byte is looked at once, however the chunks fall, so that a long line costs linear time.
    """

    def __init__(self, max_size: int) -> None:
        self._max_size = max_size
        self._pieces: list[bytes] = []
        self._size = 0
        self._head: bytes | None = None

    def feed(self, chunk: bytes) -> Iterator[bytes | OversizedLine]:
        """Take one chunk and yield every line that it completes, in order."""
        start = 0
        while (end := chunk.find(b"\n", start)) >= 0:
            self._append(chunk[start:end])
            yield self._finish()
            start = end + 1
        if start < len(chunk):
            self._append(chunk[start:] if start else chunk)

    def flush(self) -> bytes | None:
        """What stands after the last line feed, cut to the limit; nothing where there is nothing."""
        if not self._size:
            return None
        rest = self._finish()
        return rest.head if isinstance(rest, OversizedLine) else rest

    def _append(self, piece: bytes) -> None:
        self._size += len(piece)
        self._pieces.append(piece)
        if self._size > self._max_size:
            joined = b"".join(self._pieces)
            if self._head is None:
                self._head = joined[:_KEPT_OF_OVERSIZED]
            self._pieces = [joined[-_KEPT_OF_OVERSIZED:]]

    def _finish(self) -> bytes | OversizedLine:
        joined = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        head, size = self._head, self._size
        self._pieces, self._size, self._head = [], 0, None
        return joined if head is None else OversizedLine(head, joined, size)
