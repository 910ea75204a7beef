"""Users by where they are at home, for tests of a gateway with two workers."""

from itertools import count

from mcpgw.workers.peers import Peers

WORKERS = 2


def user_of(worker: int, *, prefix: str = "user") -> str:
    """A user who is at home in that worker of two."""
    peers = Peers(1, WORKERS)
    return next(name for number in count() if peers.home_of(name := f"{prefix}{number}") == worker)
