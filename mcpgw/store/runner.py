"""What a table needs of the store: somebody who does its work in a transaction."""

import time
from collections.abc import Callable
from typing import Protocol, TypeVar

from sqlalchemy import Connection

T = TypeVar("T")


class Runner(Protocol):
    """`mcpgw.store.store.Store.run`."""

    async def __call__(self, work: Callable[[Connection], T], *, reads: bool = False) -> T:
        """Do `work` in one transaction."""


def now() -> int:
    """Milliseconds since the epoch."""
    return time.time_ns() // 1_000_000
