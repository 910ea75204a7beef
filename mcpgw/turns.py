"""Turns of the event loop: what comes more than once in one of them can be done once, at its end.

Whoever works on many things that came together (all frames of one read) does so `in_batch`: what these put
off is done when the last of them was dealt with, without another turn of the loop.
"""

import asyncio
import logging
import threading
from collections.abc import Callable, Iterable
from typing import Final, ParamSpec, TypeVar

MOST_PUT_OFF: Final = 16
"""Most that is put off together in a batch: who waits for it begins while the rest is worked on."""

_LOGGER = logging.getLogger("mcpgw.turns")

T = TypeVar("T")
P = ParamSpec("P")


class _Batch(threading.local):
    """What is to be done at the end of what is being worked on; None where nothing is."""

    callbacks: list[Callable[[], None]] | None = None


_batch = _Batch()


def in_batch(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Do `work`, which does not wait, and then what it has put off; inside another batch, when that ends."""
    if _batch.callbacks is not None:
        return work(*args, **kwargs)
    callbacks: list[Callable[[], None]] = []
    _batch.callbacks = callbacks
    try:
        return work(*args, **kwargs)
    finally:
        _batch.callbacks = None  # what the callbacks put off has to wait for the end of the turn
        _call_all(callbacks)


def put_off(callback: Callable[[], None]) -> bool:
    """Call back at the end of the present batch; false, and nothing done, where there is none."""
    callbacks = _batch.callbacks
    if callbacks is None:
        return False
    callbacks.append(callback)
    return True


def is_in_batch() -> bool:
    """Whether a batch is being worked on."""
    return _batch.callbacks is not None


class Turns:
    """Counts the turns of one event loop in which something was begun.

    `number` stays the same from `begin` until all that the loop had to do at that time is done. Whoever
    remembers it knows later whether it is still the same turn.
    """

    __slots__ = ("_at_end", "is_running", "number")

    def __init__(self) -> None:
        self.number = 0
        self.is_running = False
        """Whether the end of this turn is waited for; as long as it is not, `begin` has to be called."""
        self._at_end: list[Callable[[], None]] = []

    def begin(self) -> None:
        """Something was done in this turn: see to its end."""
        if not self.is_running:
            asyncio.get_running_loop().call_soon(self._end)
            self.is_running = True

    def at_end(self, callback: Callable[[], None]) -> None:
        """Call back at the end of this turn, in the order in which this was asked for."""
        self.begin()
        self._at_end.append(callback)

    def _end(self) -> None:
        self.number += 1
        self.is_running = False
        callbacks, self._at_end = self._at_end, []
        _call_all(callbacks)


def _call_all(callbacks: Iterable[Callable[[], None]]) -> None:
    for callback in callbacks:
        try:
            callback()
        except Exception:
            # A fault in what one has put off must keep nothing from the others.
            _LOGGER.exception("what was put off to the end of a turn failed")
