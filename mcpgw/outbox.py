"""What waits for one reader: bounded in frames and bytes, whatever the reader does.

Source: the wire contract, sections 4 (``lagged``) and 6. Results are never dropped, of states only the newest
of each key waits, and streams lose their oldest. No socket, no loop, no clock: who owns the box writes what
`take` gives, and closes a reader whose box stays full.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

Dropped: TypeAlias = Literal["state", "stream"]
"""What may be dropped for a slow reader."""


@dataclass(slots=True)
class _Item:
    """A frame that waits. `source` is None for a result, `key` for all but a state."""

    text: bytes
    source: str | None
    key: str | None


@dataclass(slots=True)
class _Gap:
    """Stands where the earliest of the dropped texts of `source` stood."""

    source: str
    dropped: int


class Outbox:
    """The texts that wait for one reader, encoded, in the order in which they were put.

    ==========  ===================================================================================
    results     answers, errors, replies: never dropped, and may pass the limits by themselves
    states      only the newest of each key waits, at the end; dropped only when no stream is left
    streams     logs, progress, stream events: the oldest of the box is dropped first
    ==========  ===================================================================================

    Where texts of a source were dropped, one frame made by `lagged` stands in their place, before whatever
    follows of that source. Until it is taken, all further drops of that source are added to it: it then
    stands where the earliest of them stood, so that a reader who asks again from there misses nothing. A
    state that gave way to a newer one of its key is not missing and is not counted.

    Every operation costs the same on average, however much waits. Memory: the results, at most `max_frames`
    states and streams, and one small note for each source of which something is missing.
    """

    __slots__ = (
        "_dropped",
        "_gaps",
        "_lagged",
        "_max_bytes",
        "_max_frames",
        "_next_position",
        "_on_drop",
        "_size",
        "_states",
        "_streams",
        "_waiting",
    )

    def __init__(
        self,
        max_frames: int,
        max_bytes: int,
        lagged: Callable[[str, int], bytes],
        *,
        on_drop: Callable[[Dropped], None] | None = None,
    ) -> None:
        """Make an empty box.

        Args:
            max_frames: most texts that wait, the frames of `lagged` not counted; at least 1.
            max_bytes: most bytes that wait, the frames of `lagged` not counted; at least 1.
            lagged: makes the text of a frame from a source and the number of texts dropped of it. It is asked
                when the frame is about to be taken, perhaps more than once, and must not raise.
            on_drop: told of each text that is dropped, what it was, to count them.

        Raises:
            ValueError: a limit is below 1.
        """
        if max_frames < 1 or max_bytes < 1:
            raise ValueError(f"an outbox holds at least 1 frame and 1 byte, not {max_frames} and {max_bytes}")
        self._max_frames = max_frames
        self._max_bytes = max_bytes
        self._lagged: Callable[[str, int], bytes] = lagged
        self._on_drop = on_drop
        # By position, which only grows. An OrderedDict gives its first entry at once; a dict, from which the
        # front is taken again and again, has to step over everything that stood there.
        self._waiting: OrderedDict[int, _Item | _Gap] = OrderedDict()
        self._streams: OrderedDict[int, None] = OrderedDict()
        self._states: OrderedDict[str, int] = OrderedDict()
        self._gaps: dict[str, int] = {}
        self._next_position = 0
        self._size = 0
        self._dropped = 0

    def __len__(self) -> int:
        """How many texts `take` would give in all, frames of `lagged` included."""
        return len(self._waiting)

    @property
    def size(self) -> int:
        """Bytes that wait; frames of `lagged` have no size before they are taken."""
        return self._size

    @property
    def dropped(self) -> int:
        """How many texts were dropped since the box was made."""
        return self._dropped

    @property
    def is_full(self) -> bool:
        """Whether more waits than the limits allow, though all was dropped that may be.

        Then nothing but results and gaps waits, and only reading helps.
        """
        return len(self._waiting) - len(self._gaps) > self._max_frames or self._size > self._max_bytes

    def put_result(self, text: bytes) -> None:
        """Add a text that is never dropped: a result, an error, a status, a reply."""
        self._put(_Item(text, None, None))

    def put_state(self, key: str, text: bytes, *, source: str | None = None) -> None:
        """Add the present state of `key`; an older one that still waits gives way.

        `source` is what the reader is told where this text has to be dropped, by default `key`.
        """
        if (older := self._states.pop(key, None)) is not None:
            self._forget(older)
        self._states[key] = self._next_position
        self._put(_Item(text, key if source is None else source, key))

    def put_stream(self, source: str, text: bytes) -> None:
        """Add a text of a stream; `source` is the name of its channel, or ``call:`` and the id of a call."""
        self._streams[self._next_position] = None
        self._put(_Item(text, source, None))

    def take(self, max_bytes: int) -> list[bytes]:
        """Take out the texts that are to be written next, oldest first.

        Together they have at most `max_bytes` bytes, or it is one text that alone is longer. The list
        is empty only where nothing waits.
        """
        texts: list[bytes] = []
        left = max_bytes
        while self._waiting:
            position, item = next(iter(self._waiting.items()))
            text = self._lagged(item.source, item.dropped) if isinstance(item, _Gap) else item.text
            if texts and len(text) > left:
                break
            left -= len(text)
            texts.append(text)
            if isinstance(item, _Gap):
                del self._gaps[item.source], self._waiting[position]
                continue
            if item.key is not None:
                del self._states[item.key]
            elif item.source is not None:
                del self._streams[position]
            self._forget(position)
        return texts

    def _put(self, item: _Item) -> None:
        self._waiting[self._next_position] = item
        self._next_position += 1
        self._size += len(item.text)
        while self.is_full:
            if self._streams:
                self._drop(self._streams.popitem(last=False)[0])
            elif self._states:
                self._drop(self._states.popitem(last=False)[1])
            else:
                return

    def _forget(self, position: int) -> None:
        item = self._waiting.pop(position)
        assert isinstance(item, _Item), "a gap is forgotten only with its source"  # noqa: S101
        self._size -= len(item.text)

    def _drop(self, position: int) -> None:
        """Put a gap in the place of a text, or add the text to the gap of its source."""
        item = self._waiting[position]
        assert isinstance(item, _Item), "a gap is never dropped"  # noqa: S101
        assert item.source is not None, "a result is never dropped"  # noqa: S101
        self._size -= len(item.text)
        self._dropped += 1
        if self._on_drop is not None:
            self._on_drop("stream" if item.key is None else "state")
        known = self._gaps.get(item.source)
        if known is None:
            gap = _Gap(item.source, 1)
        else:
            gap = self._gap_at(known)
            gap.dropped += 1
            # Streams go before states, so that an older state may be dropped after a newer text.
            del self._waiting[max(known, position)]
            position = min(known, position)
        self._waiting[position] = gap
        self._gaps[item.source] = position

    def _gap_at(self, position: int) -> _Gap:
        gap = self._waiting[position]
        assert isinstance(gap, _Gap), "what _gaps points at is a gap"  # noqa: S101
        return gap
