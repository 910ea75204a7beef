"""What is written to one reader: at once where nothing waits, else through its outbox."""

import asyncio
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from tornado.iostream import IOStream, SSLIOStream, StreamClosedError

from mcpgw.hub import Place
from mcpgw.outbox import Outbox
from mcpgw.services import WriterParts
from mcpgw.turns import MOST_PUT_OFF, is_in_batch, put_off
from mcpgw.wire.deliveries import Delivery

_CHUNK = 65536
_MOST_TOGETHER = 64


class Writing(Protocol):
    """Who is told how the writing goes."""

    def on_room(self) -> None:
        """Nothing waits any more, or less than the limits allow; or nothing can be written any more."""

    def on_slow_reader(self) -> None:
        """The reader has taken nothing for the write timeout."""


class DirectWriter:
    """Sends whole frames to one reader, in order, and never waits for it.

    Past Tornado's stream: as long as nothing waits, an event costs one call and one system call. What comes
    more than once in one turn of the event loop goes out together at its end, and what comes in a batch
    at the end of that. What the reader does not take waits in an outbox, as long as one is needed.
    """

    __slots__ = (
        "_is_awaited",
        "_is_closed",
        "_is_idle",
        "_last_write",
        "_outbox",
        "_owner",
        "_parts",
        "_place",
        "_send",
        "_slow",
        "_stream",
        "_together",
        "_together_size",
        "_turn",
        "_turns",
    )

    def __init__(self, stream: IOStream, owner: Writing, place: Place, parts: WriterParts) -> None:
        """Write to `stream`, on which nobody else writes without telling `wait_for`.

        Frames are counted in `place`; `owner` is told how it goes. Where the stream is closed already, all
        that is sent goes nowhere.
        """
        self._stream = stream
        self._owner = owner
        self._place = place
        self._parts = parts
        self._turns = parts.turns
        self._turn = -1
        self._together: list[tuple[bytes, str | None, str | None]] | None = None
        self._together_size = 0
        self._is_awaited = False
        self._outbox: Outbox | None = None
        self._slow: asyncio.TimerHandle | None = None
        self._last_write: asyncio.Future[None] | None = None
        self._is_closed = stream.closed()
        # Nothing waits and nothing is being written. One flag, since every delivery of an event looks at it.
        self._is_idle = not self._is_closed
        self._send: Callable[[bytes], int] = len if self._is_closed else _send_of(stream)
        if stream.writing():
            self.wait_for(stream.write(b""))  # the head of the answer is still on its way

    @property
    def is_idle(self) -> bool:
        """Whether what is sent goes out at once."""
        return self._is_idle

    @property
    def is_full(self) -> bool:
        """Whether more waits than the limits allow, though all was dropped that may be."""
        return self._outbox is not None and self._outbox.is_full

    def lagged(self, source: str, dropped: int) -> bytes:
        """The frame that says how much of a source was dropped."""
        raise NotImplementedError

    # --- what is sent --------------------------------------------------------------------------------------

    def send_event(self, delivery: Delivery) -> None:
        """Send an event that was encoded for this kind of reader."""
        turns = self._turns
        if self._is_idle and self._turn != turns.number:
            self._turn = turns.number
            if not turns.is_running:
                turns.begin()
            frame = delivery.frame
            try:
                sent = self._send(frame)
            except OSError:
                sent = 0  # full, or broken: the stream finds out which
            self._place.frames_out += 1
            if sent != len(frame):
                self._write_rest(frame[sent:])
        elif not self._is_closed:
            event = delivery.event
            self._keep(delivery.frame, event.channel, event.key or None)

    def send(self, frame: bytes, source: str | None = None) -> None:
        """Send a frame that must not be lost; with a `source`, one that may be dropped for a slow reader."""
        if self._is_idle and self._turn != self._turns.number and not is_in_batch():
            self._turns.begin()
            self._turn = self._turns.number
            self._write(frame, 1)
        elif not self._is_closed:
            self._keep(frame, source, None)

    def _keep(self, frame: bytes, source: str | None, key: str | None) -> None:
        if self._is_idle:
            # Amid a batch, or not the first in this turn of the loop: all that comes goes out together.
            self._is_idle = False
            self._together = []
            self._together_size = 0
            if not self._is_awaited:
                self._is_awaited = True
                if not put_off(self._end_turn):
                    self._turns.at_end(self._end_turn)
        if self._together is None:
            self._put(frame, source, key)
            return
        self._together.append((frame, source, key))
        self._together_size += len(frame)
        most = MOST_PUT_OFF if is_in_batch() else _MOST_TOGETHER
        if len(self._together) >= most or self._together_size >= _CHUNK:
            self._write_together()

    def _write_together(self) -> None:
        frames, self._together = self._together, None
        if frames is not None:
            self._is_idle = True
            self._write(b"".join(frame for frame, _, _ in frames), len(frames))

    def _end_turn(self) -> None:
        self._is_awaited = False
        self._write_together()
        # Here alone, and never amid the sending: who is told of room sends more, and may be doing so already.
        if self._is_idle:
            self._owner.on_room()

    def _put(self, frame: bytes, source: str | None, key: str | None) -> None:
        if self._outbox is None:
            parts = self._parts
            self._outbox = Outbox(
                parts.max_waiting, parts.max_waiting_size, self.lagged, on_drop=parts.metrics.dropped
            )
        if source is None:
            self._outbox.put_result(frame)
        elif key is None:
            self._outbox.put_stream(source, frame)
        else:
            self._outbox.put_state(key, frame, source=source)

    def _write(self, frames: bytes, count: int) -> None:
        """Write whole frames; a reader who has gone is noticed by whoever reads from there."""
        self._place.frames_out += count
        sent = 0
        if self._is_idle:
            with suppress(OSError):  # as above
                sent = self._send(frames)
        if sent != len(frames):
            self._write_rest(frames[sent:])

    def _write_rest(self, data: bytes) -> None:
        with suppress(StreamClosedError):
            self.wait_for(self._stream.write(data))

    # --- who does not take it at once ----------------------------------------------------------------------

    def wait_for(self, written: "asyncio.Future[None]") -> None:
        """Something was written on the stream: where the reader has not taken it yet, go on when it has."""
        if self._is_closed or written.done():
            return
        self._is_idle = False
        self._last_write = written
        frames, self._together = self._together, None
        for frame, source, key in frames or ():
            self._put(frame, source, key)
        written.add_done_callback(self._on_written)
        if self._slow is None:
            self._watch()

    def _on_written(self, written: "asyncio.Future[None]") -> None:
        if self._is_closed or written is not self._last_write:
            return
        self._last_write = None
        if self._stream.closed():
            self.closing()
            return
        self._is_idle = True
        while self._is_idle and self._outbox:
            frames = self._outbox.take(_CHUNK)
            self._write(b"".join(frames), len(frames))
        if not self._outbox:
            self._outbox = None
        self._owner.on_room()

    def say_goodbye(self, *, the_last_alone: bool) -> None:
        """Write what waits, or only the last of it, and nothing more."""
        if self._outbox is not None and not self._is_closed:
            frames = self._outbox.take(sys.maxsize)
            if the_last_alone:
                frames = frames[-1:]
            self._write(b"".join(frames), len(frames))
        self.closing()

    def closing(self) -> None:
        """No more may be written: the end of the stream is being written, or the connection is gone."""
        if self._is_closed:
            return
        frames, self._together = self._together, None
        if frames:
            self._write(b"".join(frame for frame, _, _ in frames), len(frames))
        self._is_idle = False
        self._is_closed = True
        self._outbox = None
        self._last_write = None
        self._send = len  # the socket is let go
        if self._slow is not None:
            self._slow.cancel()
            self._slow = None
        self._owner.on_room()  # whoever waits for room waits in vain

    def _watch(self) -> None:
        """See to it that a reader who takes nothing comes to an end."""
        # Tornado counts what the kernel took, and tells nobody. While something waits, all goes by its count.
        taken = self._stream._total_write_done_index  # noqa: SLF001
        loop = asyncio.get_running_loop()
        self._slow = loop.call_later(self._parts.write_timeout, self._look_again, taken)

    def _look_again(self, taken: int) -> None:
        self._slow = None
        if self._is_closed or self._last_write is None:
            return
        if self._stream._total_write_done_index == taken:  # noqa: SLF001
            self._owner.on_slow_reader()
        else:
            self._watch()


def _send_of(stream: IOStream) -> Callable[[bytes], int]:
    """What takes as much of some bytes as the kernel does at once.

    Encrypted, all goes through the stream: what OpenSSL could not write whole it wants again as it was.
    """
    return _nothing if isinstance(stream, SSLIOStream) else stream.socket.send


def _nothing(data: bytes) -> int:  # noqa: ARG001 - the shape of a socket's send
    return 0
