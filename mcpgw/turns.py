"""Turns of the event loop: what comes more than once in one of them can be done once, at its end."""

import asyncio
import logging
from collections.abc import Callable

_LOGGER = logging.getLogger("mcpgw.turns")


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
        for callback in callbacks:
            try:
                callback()
            except Exception:
                # A fault in what one has put off must keep nothing from the others.
                _LOGGER.exception("what was put off to the end of a turn failed")
