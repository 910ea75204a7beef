"""Whether somebody still takes what a connection is sent, as the kernel knows it."""

import fcntl
import socket
import struct
import termios

from tornado.iostream import IOStream

_TCP_INFO_BYTES = 128
_ACKNOWLEDGED_AT = 120


class Taking:
    """What the peer of `stream` takes, in bytes that its machine has acknowledged, from now on.

    A machine that is gone acknowledges nothing. One that is there does so for its processes, even where they
    hang; and a proxy between acknowledges for itself.
    """

    __slots__ = ("_acknowledged", "_stream", "was_under_way")

    def __init__(self, stream: IOStream) -> None:
        self._stream = stream
        self.was_under_way = stream.writing() or _unacknowledged(stream) > 0
        """Whether something had not been acknowledged when this was made."""
        self._acknowledged = _acknowledged(stream)

    @property
    def has_progress(self) -> bool:
        """Whether the peer has taken something since."""
        return not self._stream.closed() and _acknowledged(self._stream) > self._acknowledged


def _acknowledged(stream: IOStream) -> int:
    """Bytes that the peer's machine has acknowledged: ``tcpi_bytes_acked`` of Linux's ``struct tcp_info``."""
    if stream.closed():
        return 0
    information = stream.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
    (acknowledged,) = struct.unpack_from("Q", information, _ACKNOWLEDGED_AT)
    return int(acknowledged)


def _unacknowledged(stream: IOStream) -> int:
    """Bytes in the socket's send queue: not sent, or sent and not acknowledged (tcp(7), SIOCOUTQ)."""
    if stream.closed():
        return 0
    (waiting,) = struct.unpack("i", fcntl.ioctl(stream.socket, termios.TIOCOUTQ, bytes(4)))
    return int(waiting)
