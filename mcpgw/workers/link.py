"""What the supervisor and a worker say to each other: messages in order, with an open file where one has it.

One Unix stream socket leads from the supervisor to each worker. A message is a head (length of the body,
kind, number of a worker, how many descriptors come with it) and a body whose meaning is its kind's.
Descriptors go beside the bytes (SCM_RIGHTS) in the order of the messages that they belong to.
"""

import asyncio
import errno
import logging
import os
import socket
import struct
from collections import deque
from collections.abc import Callable
from enum import IntEnum
from typing import Final

from mcpgw.logs import log_event

_LOGGER = logging.getLogger("mcpgw.workers")
_HEAD: Final = struct.Struct("!IBBB")
_READ_BYTES: Final = 256 * 1024
_MOST_DESCRIPTORS: Final = 64
MOST_WAITING: Final = 64 * 1024 * 1024
"""Most bytes that wait for a process that does not read; one that is so far behind is not well."""
LONGEST_BODY: Final = 128 * 1024 * 1024


class Kind(IntEnum):
    """What a message is. `worker` in its head is whom it is for on the way to the supervisor, and whom it is
    from on the way back; 0 is all others, or the supervisor itself.
    """

    WELCOME = 1
    """To a worker, first: how the log of events stands, and who else there is."""
    READY = 2
    """From a worker: everything is built."""
    GO = 3
    """To a worker: take clients."""
    SETTLED = 4
    """From a worker: the first start of its servers is over; to the first worker: so it is of all."""
    PUBLISH = 5
    """Events, from a worker; and to all, in the order that holds for all."""
    NOTE = 6
    """What one worker has to say to another, or to all others."""
    HAND_OVER = 7
    """A client's connection, for the worker that its user is at home with."""
    CAME = 8
    """To workers: another one is there (again)."""
    GONE = 9
    """To workers: another one has ended."""
    SNAPSHOT_WANTED = 10
    """To a worker: tell a newcomer what has happened so far."""
    SNAPSHOT = 11
    """From a worker to a newcomer; empty where nobody could tell."""
    END = 12
    """To a worker: end, without waiting where the body says so."""
    SPEAKER = 13
    """To workers: who tells what is to be told once, from now on."""


_KINDS: Final = frozenset(int(kind) for kind in Kind)

OnMessage = Callable[[Kind, int, bytes, int | None], None]
"""Takes kind, worker, body, and the descriptor that came with it, which is then the taker's to close."""


class Link:
    """One end of the socket between the supervisor and a worker, on the running event loop.

    `on_message` takes every message, `on_end` is called once when the other side is gone, or has read nothing
    while more than `MOST_WAITING` bytes waited for it. Neither is called after `close`.
    """

    def __init__(self, sock: socket.socket, on_message: OnMessage, on_end: Callable[[], None]) -> None:
        sock.setblocking(False)
        self._socket = sock
        self._loop = asyncio.get_running_loop()
        self._on_message = on_message
        self._on_end = on_end
        self._input = bytearray()
        # None stands for one that did not arrive: the others must stay with their messages.
        self._descriptors: deque[int | None] = deque()
        # What waits to be written; a descriptor goes with the first byte of its own message.
        self._output: deque[tuple[bytes | memoryview, int | None]] = deque()
        self._waiting = 0
        self._waiting_descriptors = 0
        self._is_flushing = False
        self._is_closed = False
        self._loop.add_reader(sock.fileno(), self._read)

    @property
    def waiting_descriptors(self) -> int:
        """How many descriptors wait to be sent, which this process has open until then."""
        return self._waiting_descriptors

    def send(self, kind: Kind, worker: int = 0, body: bytes = b"", descriptor: int | None = None) -> None:
        """Send a message; a `descriptor` is copied, and stays the caller's. Never waits.

        What is sent in one turn of the event loop goes out together.

        Raises:
            OSError: there is no descriptor left for the copy; nothing is sent.
        """
        if self._is_closed:
            return
        head = _HEAD.pack(len(body), kind, worker, 0 if descriptor is None else 1)
        copy = None if descriptor is None else os.dup(descriptor)
        self._output.append((head + body, copy))
        self._waiting_descriptors += copy is not None
        self._waiting += len(head) + len(body)
        if self._waiting > MOST_WAITING:
            self._end()
        elif not self._is_flushing:
            self._is_flushing = True
            self._loop.call_soon(self._flush)

    def read_rest(self) -> None:
        """Take what the other side has sent before it ended."""
        while not self._is_closed and self._read_once():
            pass

    def close(self) -> None:
        """Say and hear no more. What was sent before goes out as far as the socket takes it at once."""
        if self._is_closed:
            return
        self._write()
        self._is_closed = True
        self._loop.remove_reader(self._socket.fileno())
        self._loop.remove_writer(self._socket.fileno())
        self._socket.close()
        for descriptor in (*self._descriptors, *(one for _, one in self._output)):
            if descriptor is not None:
                os.close(descriptor)
        self._descriptors.clear()
        self._output.clear()

    def _end(self) -> None:
        if not self._is_closed:
            self.close()
            self._loop.call_soon(self._on_end)  # whoever sends must not be surprised by it in mid-way

    # --- reading -------------------------------------------------------------------------------------------

    def _read(self) -> None:
        self._read_once()

    def _read_once(self) -> bool:
        """Take what is there; false where that is nothing."""
        try:
            data, descriptors, flags, _ = socket.recv_fds(self._socket, _READ_BYTES, _MOST_DESCRIPTORS)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:
            self._end()
            return False
        for descriptor in descriptors:
            os.set_inheritable(descriptor, False)
        self._descriptors.extend(descriptors)
        if flags & socket.MSG_CTRUNC:
            # This process can open no more (one read is given the descriptors of one message at most).
            self._descriptors.append(None)
        if not data:
            self._end()
            return False
        self._input += data
        self._take_messages()
        return True

    def _take_messages(self) -> None:
        for kind, worker, body, descriptor in self._whole_messages():
            if self._is_closed:
                if descriptor is not None:
                    os.close(descriptor)
                continue
            try:
                self._on_message(kind, worker, body, descriptor)
            except Exception:
                # What could not be done with one message must keep none of the others from their takers.
                _LOGGER.exception("a message of kind %s could not be taken", kind.name)

    def _whole_messages(self) -> list[tuple[Kind, int, bytes, int | None]]:
        """Take the messages out of the input that are there as a whole."""
        data, position = self._input, 0
        messages: list[tuple[Kind, int, bytes, int | None]] = []
        while len(data) - position >= _HEAD.size:
            length, kind, worker, descriptors = _HEAD.unpack_from(data, position)
            if length > LONGEST_BODY or kind not in _KINDS:
                log_event(_LOGGER, logging.ERROR, "message unknown", kind=kind, bytes=length)
                self._end()
                break
            end = position + _HEAD.size + length
            if end > len(data):
                break
            body = bytes(data[position + _HEAD.size : end])
            position = end
            descriptor = self._descriptors.popleft() if descriptors else None
            if descriptors and descriptor is None:
                log_event(_LOGGER, logging.ERROR, "no file descriptors left: connection lost")
                continue
            messages.append((Kind(kind), worker, body, descriptor))
        del data[:position]
        return messages

    # --- writing -------------------------------------------------------------------------------------------

    def _flush(self) -> None:
        self._is_flushing = False
        if self._is_closed:
            return
        if not self._write():
            self._end()
        elif self._output:
            self._is_flushing = True
            self._loop.add_writer(self._socket.fileno(), self._on_writable)

    def _on_writable(self) -> None:
        self._loop.remove_writer(self._socket.fileno())
        self._flush()

    def _write(self) -> bool:
        """Write what waits, as far as the socket takes it; false where nobody is there any more."""
        try:
            while self._output:
                self._write_first()
        except (BlockingIOError, InterruptedError):
            return True
        except OSError:
            return False
        return True

    def _write_first(self) -> None:
        data, descriptor = self._output[0]
        if descriptor is not None:
            written = self._write_with(data, descriptor)
            os.close(descriptor)
            self._waiting_descriptors -= 1
        else:
            if len(self._output) > 1 and len(data) < _READ_BYTES:
                data = self._gathered()
            written = self._socket.send(data)
        self._waiting -= written
        if written < len(data):
            self._output[0] = (memoryview(data)[written:], None)
        else:
            self._output.popleft()

    def _write_with(self, data: bytes | memoryview, descriptor: int) -> int:
        """Write the beginning of a message with its descriptor; answers how many bytes count as written."""
        try:
            return socket.send_fds(self._socket, [data], [descriptor])
        except OSError as error:
            if error.errno != errno.ETOOMANYREFS:
                raise
            # More are on their way than this user may have open: one is lost, and not the link with all.
            log_event(_LOGGER, logging.ERROR, "too many file descriptors on their way: connection lost")
            return len(data)

    def _gathered(self) -> bytes:
        """The first messages as one piece, up to one that has a descriptor."""
        pieces: list[bytes | memoryview] = []
        size = 0
        while self._output and self._output[0][1] is None and size < _READ_BYTES:
            piece, _ = self._output.popleft()
            pieces.append(piece)
            size += len(piece)
        joined = b"".join(pieces)
        self._output.appendleft((joined, None))
        return joined
