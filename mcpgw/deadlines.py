"""Deadlines by the ten thousand, with one timer of the event loop for all of them.

Every connection has several deadlines, of which hardly one is ever reached: the next ping, the pong, the end
of its token. A timer of asyncio takes some 350 bytes with its context and its place in the heap, and stays
there after it was cancelled. Here deadlines are sorted into slices of time (the hashed timing wheels of
Varghese and Lauck, 1987), so that setting and cancelling one costs the same however many there are.
"""

import asyncio
import heapq
import math
import time
from collections.abc import Callable

SLICE_SECONDS = 0.05
"""A deadline may come so much late, and never early."""
_HORIZON_SECONDS = 60.0
# What is farther away is looked at again at the horizon, which bounds how many slices there are.


class Deadline:
    """Calls back once, unless it is cancelled before; made by `Deadlines.call_later`."""

    __slots__ = ("_callback", "_due", "_when")

    def __init__(self, callback: Callable[[], None], when: float) -> None:
        self._callback: Callable[[], None] | None = callback
        self._when = when
        self._due: set[Deadline] | None = None

    def cancel(self) -> None:
        """Do not call back; nothing happens where that is over."""
        self._callback = None
        if self._due is not None:
            self._due.discard(self)
            self._due = None

    def _run(self) -> None:
        callback, self._callback = self._callback, None
        if callback is not None:
            callback()


class Deadlines:
    """The deadlines of one event loop, which has to run when one is set."""

    def __init__(self) -> None:
        self._slices: dict[int, set[Deadline]] = {}
        self._order: list[int] = []  # a heap of the keys of _slices
        self._timer: asyncio.TimerHandle | None = None
        self._timer_slice = 0

    def call_later(self, seconds: float, callback: Callable[[], None]) -> Deadline:
        """Call back in `seconds`, or up to `SLICE_SECONDS` later; in a turn of the loop of its own."""
        now = time.monotonic()
        deadline = Deadline(callback, now + seconds if seconds > 0 else now)
        self._sort_in(deadline, now)
        return deadline

    def _sort_in(self, deadline: Deadline, now: float) -> None:
        when, horizon = deadline._when, now + _HORIZON_SECONDS  # noqa: SLF001
        number = math.ceil(min(horizon, when) / SLICE_SECONDS)
        due = self._slices.get(number)
        if due is None:
            due = self._slices[number] = set()
            heapq.heappush(self._order, number)
            if self._timer is None or number < self._timer_slice:
                self._set_timer(now)
        due.add(deadline)
        deadline._due = due  # noqa: SLF001 - the two are one

    def _set_timer(self, now: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._order:
            self._timer_slice = self._order[0]
            left = self._timer_slice * SLICE_SECONDS - now
            self._timer = asyncio.get_running_loop().call_later(max(0.0, left), self._come_due)

    def _come_due(self) -> None:
        self._timer = None
        loop = asyncio.get_running_loop()
        now = time.monotonic()
        # The loop calls up to its clock's resolution early, and must not be asked for the same slice again.
        last = max(self._timer_slice, math.floor(now / SLICE_SECONDS))
        later: list[Deadline] = []
        while self._order and self._order[0] <= last:
            for deadline in self._slices.pop(heapq.heappop(self._order)):
                deadline._due = None  # noqa: SLF001
                if deadline._when <= max(now, last * SLICE_SECONDS):  # noqa: SLF001
                    # On its own, so that a fault of one is logged and harms no other.
                    loop.call_soon(deadline._run)  # noqa: SLF001
                else:
                    later.append(deadline)
        for deadline in later:
            self._sort_in(deadline, now)
        self._set_timer(now)
