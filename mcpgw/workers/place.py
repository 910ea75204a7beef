"""A worker's place among the others, as the supervisor tells it to the process that it starts."""

import os
import socket
from dataclasses import dataclass
from typing import Final

_VARIABLE: Final = "_MCPGW_WORKER"


@dataclass(frozen=True, slots=True)
class Place:
    """The `number` of a worker (from 1) of `count`, the descriptor of its link, and those it listens on."""

    number: int
    count: int
    link: int
    listening: tuple[int, ...]

    def to_environment(self) -> dict[str, str]:
        """What the process finds in its environment."""
        numbers = (self.number, self.count, self.link, *self.listening)
        return {_VARIABLE: " ".join(map(str, numbers))}

    def sockets(self) -> list[socket.socket]:
        """The sockets to listen on."""
        return [socket.socket(fileno=descriptor) for descriptor in self.listening]

    def link_socket(self) -> socket.socket:
        """The socket that leads to the supervisor."""
        return socket.socket(fileno=self.link)


def take_place() -> Place | None:
    """The place that the environment names; None where this process is no worker.

    It is taken out of the environment: what a worker starts is none. What it was given open is inherited by
    nobody.
    """
    text = os.environ.pop(_VARIABLE, None)
    if text is None:
        return None
    number, count, link, *listening = map(int, text.split())
    for descriptor in (link, *listening):
        os.set_inheritable(descriptor, False)
    return Place(number, count, link, tuple(listening))
