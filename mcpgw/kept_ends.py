"""What a session remembers of calls that are over, all of it bounded: for a client that comes back."""

import sys
import time
from array import array
from collections import OrderedDict

import msgspec

from mcpgw.settings import SessionSettings

_UNNOTICED_SECONDS = 120.0
"""A connection may be dead for so long before the gateway notices: well above the default of any timeout."""
_MOST_REMEMBERED = 4096
_REMEMBERED_SECONDS = 600.0


class KeptEnd(msgspec.Struct, frozen=True, gc=False):
    """The end of a call, as text; which tool was called, and what its caller was allowed (`scopes`)."""

    text: str
    server_id: str
    tool_name: str
    scopes: frozenset[str]


class SharedLimit:
    """Bounds what all sessions together keep; where it is passed, the session that keeps most gives way."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._holders: dict[KeptEnds, None] = {}
        self.size = 0

    def add(self, holder: "KeptEnds") -> None:
        """Count what `holder` keeps, now and from now on."""
        if holder not in self._holders:
            self._holders[holder] = None
            self.changed(holder.size)

    def remove(self, holder: "KeptEnds") -> None:
        """Count it no longer."""
        if holder in self._holders:
            del self._holders[holder]
            self.size -= holder.size

    def changed(self, by: int) -> None:
        """One of the holders keeps `by` bytes more, or less."""
        self.size += by
        while self.size > self._max_bytes:
            max(self._holders, key=lambda holder: holder.size).drop_oldest()


class KeptEnds:
    """The ends of one session's calls, the newest of them: bounded in number and in bytes of memory."""

    __slots__ = ("_kept", "_limit", "_settings", "size")

    def __init__(self, settings: SessionSettings) -> None:
        self._settings = settings
        # Made with the first end: most sessions have none.
        self._kept: OrderedDict[str, tuple[float, KeptEnd, int]] | None = None
        self._limit: SharedLimit | None = None
        self.size = 0

    def __len__(self) -> int:
        return len(self._kept or ())

    def __bool__(self) -> bool:
        return True

    def share(self, limit: SharedLimit) -> None:
        """Keep a limit that other sessions share."""
        self._limit = limit
        limit.add(self)

    def keep(self, call_id: str, end: KeptEnd) -> None:
        """Keep the end of a call, in the place of an older one of the same id."""
        kept = self._kept
        if kept is None:
            kept = self._kept = OrderedDict()
        if call_id in kept:
            self._drop(call_id)
        size = sys.getsizeof(end.text)
        kept[call_id] = (time.monotonic(), end, size)
        self._count(size)
        settings = self._settings
        while len(kept) > settings.max_results or self.size > settings.max_result_bytes:
            self.drop_oldest()

    def get(self, call_id: str) -> KeptEnd | None:
        """The end of a call, where it is still kept."""
        kept = None if self._kept is None else self._kept.get(call_id)
        return None if kept is None else kept[1]

    def drop_oldest(self) -> None:
        """Forget the end that is kept for the longest time."""
        if self._kept:
            self._drop(next(iter(self._kept)))

    def drop_read(self) -> None:
        """Forget what a client whose connection lives must have read by now."""
        oldest = time.monotonic() - self._settings.resume_time - _UNNOTICED_SECONDS
        while self._kept and next(iter(self._kept.values()))[0] < oldest:
            self.drop_oldest()

    def clear(self) -> None:
        """Forget everything."""
        if self._limit is not None:
            self._limit.remove(self)
            self._limit = None
        self._kept = None
        self.size = 0

    def _drop(self, call_id: str) -> None:
        dropped = None if self._kept is None else self._kept.pop(call_id, None)
        if dropped is not None:
            self._count(-dropped[2])

    def _count(self, by: int) -> None:
        self.size += by
        if self._limit is not None:
            self._limit.changed(by)


class EndedCalls:
    """Tells whether a call with some id has been here: sixteen bytes for each, and no id itself.

    Two ids with one hash make a call that was never here look like one that was. That is the safe way to be
    wrong: its client is told that the outcome is unknown, and sends nothing twice.
    """

    __slots__ = ("_forgot_at", "_hashes", "_most", "_next", "_seconds", "_times")

    def __init__(self, most: int = _MOST_REMEMBERED, seconds: float = _REMEMBERED_SECONDS) -> None:
        self._most = most
        self._seconds = seconds
        # Made with the first call.
        self._hashes: array[int] | None = None
        self._times: array[float] | None = None
        self._next = 0
        self._forgot_at: float | None = None

    def add(self, call_id: str) -> None:
        """A call with this id has ended."""
        now = time.monotonic()
        if self._hashes is None or self._times is None:
            self._hashes, self._times = array("q"), array("d")
        if len(self._hashes) < self._most:
            self._hashes.append(hash(call_id))
            self._times.append(now)
            return
        self._forgot_at = self._times[self._next]
        self._hashes[self._next], self._times[self._next] = hash(call_id), now
        self._next = (self._next + 1) % self._most

    def forget(self) -> None:
        """Something may have been here of which nothing is known."""
        self._forgot_at = time.monotonic()

    def may_hold(self, call_id: str) -> bool:
        """Whether a call with this id may have ended here.

        What ended long ago is not in question: a client that did not read for that long was closed.
        """
        if self._hashes is not None and hash(call_id) in self._hashes:
            return True
        return self._forgot_at is not None and time.monotonic() - self._forgot_at < self._seconds
