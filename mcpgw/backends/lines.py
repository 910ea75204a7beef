"""Splitting a byte stream into lines whose length is bounded, and what an unreadable line still says."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass

_KEPT_OF_OVERSIZED = 4096
_LONGEST_REQUEST = 256 * 1024
_LONGEST_ID = 128
_ID = rb'"id"\s*:\s*"?(\d{1,18})"?\s*'
_VERSION = rb'"jsonrpc"\s*:\s*"2\.0"\s*'
_OUTCOME = rb'"(?:result|error)"\s*:'
_BEGIN = rb"\s*\{\s*(?:" + _VERSION + rb",\s*)?"
_ANSWER_ID_FIRST = re.compile(_BEGIN + _ID + rb",\s*(?:" + _VERSION + rb",\s*)?" + _OUTCOME)
_ANSWER_WITHOUT_ID_YET = re.compile(_BEGIN + _OUTCOME)
_ID_LAST = re.compile(rb",\s*" + _ID + rb"(?:,\s*" + _VERSION + rb")?\}\s*\Z")


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


def answered_id(head: bytes, tail: bytes) -> int | None:
    """The id of the request that a line answers, told from its first and last bytes alone.

    For lines that are too long to be read, or broken. A line that may be anything but a JSON-RPC response has
    none: a server's own request with the same number must not end a call.
    """
    found = _ANSWER_ID_FIRST.match(head)
    if found is None and _ANSWER_WITHOUT_ID_YET.match(head):
        found = _ID_LAST.search(tail)
    return None if found is None else int(found[1])


def asked_id(line: bytes) -> int | str | None:
    """The id of the request that a broken line is; None where it is none, or is longer than 256 KiB.

    For lines that JSON-RPC's reader refuses: such as one with half of a surrogate pair, or with a member that
    is not as it must be.
    """
    if len(line) > _LONGEST_REQUEST:
        return None
    try:
        message = json.loads(line.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return None
    if not isinstance(message, dict) or not isinstance(message.get("method"), str):
        return None
    request_id = message.get("id")
    if isinstance(request_id, str):
        is_usable = len(request_id) <= _LONGEST_ID and request_id.isprintable()
    else:
        is_usable = isinstance(request_id, int) and not isinstance(request_id, bool)
    return request_id if is_usable else None
