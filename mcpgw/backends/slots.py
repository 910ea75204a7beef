"""The line in front of one backend: at most so many calls at once, and fair turns for those that wait.

Users take turns, and a user's own calls go in the order in which they came (round robin over flows, Nagle,
RFC 970), so that one user's five hundred calls do not hold up another's first. Where the line is full, the
user who waits with most gives way (longest queue drop, McKenney, "Stochastic Fairness Queueing", 1990): one
user alone can never shut the others out of the line.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from mcpgw.errors import QueueFull

_TELL_SECONDS = 1.0
_NOTABLE_PART = 10
# How much the last call counts in the mean duration, and what is assumed before the first one has ended.
_WEIGHT = 0.1
_FIRST_GUESS_SECONDS = 1.0
_ENOUGH_CALLS = 5
"""Calls that have ended before their mean duration says something about the next."""
_SHORTEST_WAIT_MS = 100
_LONGEST_WAIT_MS = 60_000

QueuedCallback = Callable[[int, int | None], None]
"""Takes the position in the line, 1 goes next, and how long that may take in milliseconds: None where it
cannot be told. Must not wait and must not raise.
"""


@dataclass(slots=True, eq=False)
class _Waiter:
    """One call in the line; `turn` becomes true with its slot, false where it must give way."""

    user: str
    on_queued: QueuedCallback
    turn: asyncio.Future[bool] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    told: int = 0
    told_at: float = 0.0

    def tell(self, position: int, wait_ms: int | None, now: float) -> None:
        """Say the position, and for how long it may be."""
        self.told, self.told_at = position, now
        self.on_queued(position, wait_ms)


class Slots:
    """At most `limit` holders at once, at most `max_waiting` in the line behind them.

    A slot that comes free is handed to the next in line at once, so that nobody who comes later is faster.
    Belongs to one event loop.
    """

    def __init__(self, limit: int, max_waiting: int) -> None:
        self._free = limit
        self._limit = limit
        self._max_waiting = max_waiting
        # The users in the order of their turns, each with its calls in the order in which they came.
        self._lines: OrderedDict[str, OrderedDict[_Waiter, None]] = OrderedDict()
        self._waiting = 0
        self._mean_seconds = _FIRST_GUESS_SECONDS
        self._measured = 0
        self._teller: asyncio.TimerHandle | None = None

    @property
    def held(self) -> int:
        """How many hold a slot."""
        return self._limit - self._free

    @property
    def waiting(self) -> int:
        """How many wait in the line."""
        return self._waiting

    @asynccontextmanager
    async def hold(self, user: str, on_queued: QueuedCallback) -> AsyncIterator[None]:
        """Hold a slot inside the block; waits in line for one where none is free.

        `on_queued` hears the position when the wait begins, and again when it has changed by a tenth or
        more, at most once a second; once a few calls have ended, also how long that may take. Cancelling the
        wait leaves the line.

        Raises:
            QueueFull: the line is full, and no other user waits with more calls; or it became full, and this
                user had the most. ``retry_after_ms`` is a guess from how long calls took lately.
        """
        if not self.try_take():
            await self._wait(user, on_queued)
        started = time.monotonic()
        try:
            yield
        finally:
            self.give_back(started)

    def try_take(self) -> bool:
        """Take a slot where one is free; `give_back` has to follow."""
        if not self._free:
            return False
        self._free -= 1
        return True

    def give_back(self, started: float) -> None:
        """Hand on a slot that was held since `started` (monotonic clock)."""
        self._measure(time.monotonic() - started)
        self._hand_on()

    def _measure(self, seconds: float) -> None:
        self._measured += 1
        # The first calls count alike, so that the guess before them is soon forgotten.
        weight = max(_WEIGHT, 1 / self._measured)
        self._mean_seconds += (seconds - self._mean_seconds) * weight

    async def _wait(self, user: str, on_queued: QueuedCallback) -> None:
        if self._waiting >= self._max_waiting:
            self._make_room_for(user)
        waiter = _Waiter(user, on_queued)
        self._lines.setdefault(user, OrderedDict())[waiter] = None
        self._waiting += 1
        try:
            position = self._last_position(user)
            waiter.tell(position, self._told_wait(position), time.monotonic())
            self._tell_later()
            has_slot = await waiter.turn
        except BaseException:
            if waiter.turn.done() and not waiter.turn.cancelled():
                if waiter.turn.result():  # the slot came in the same moment as the cancellation
                    self._hand_on()
            else:
                self._leave(waiter)
            raise
        if not has_slot:
            raise self._full()

    def _hand_on(self) -> None:
        """Give a slot that was held to the next in line, or keep it for whoever comes."""
        while self._lines:
            user, line = next(iter(self._lines.items()))
            waiter, _ = line.popitem(last=False)
            self._waiting -= 1
            # A cancelled task that has not run since is still in the line; it costs its user no turn.
            present = not waiter.turn.done()
            if not line:
                del self._lines[user]
            elif present:
                self._lines.move_to_end(user)
            if present:
                waiter.turn.set_result(True)
                return
        self._free += 1

    def _leave(self, waiter: _Waiter) -> None:
        line = self._lines.get(waiter.user)
        if line is not None and waiter in line:
            del line[waiter]
            self._waiting -= 1
            if not line:
                del self._lines[waiter.user]

    def _make_room_for(self, user: str) -> None:
        """Send away the last call of the user with most, where that is not `user`."""
        own = len(self._lines.get(user, ()))
        longest = max(self._lines.values(), key=len, default=None)
        if longest is None or len(longest) <= own + 1:
            raise self._full()
        waiter = next(reversed(longest))
        self._leave(waiter)
        if not waiter.turn.done():
            waiter.turn.set_result(False)

    def _full(self) -> QueueFull:
        return QueueFull(
            f"{self._limit} calls run on this server and {self._waiting} wait: try again later",
            retry_after_ms=self._wait_ms(self._waiting + 1),
        )

    def _wait_ms(self, position: int) -> int:
        """How long it takes until the call at `position` has its turn, from how long calls took lately."""
        guess = self._mean_seconds * position / self._limit
        return min(_LONGEST_WAIT_MS, max(_SHORTEST_WAIT_MS, round(guess * 1000)))

    def _told_wait(self, position: int) -> int | None:
        return self._wait_ms(position) if self._measured >= _ENOUGH_CALLS else None

    # --- positions -----------------------------------------------------------------------------------------

    def _last_position(self, user: str) -> int:
        """The position of the last call in the line of `user`, counted without walking through the lines."""
        rounds = len(self._lines[user]) - 1
        position, turn = rounds + 1, 1
        for other, line in self._lines.items():
            if other == user:
                turn = 0  # users after this one have had a turn less by then
            else:
                position += min(len(line), rounds + turn)
        return position

    def _in_order(self) -> Iterator[_Waiter]:
        """Everyone in the line, in the order in which they would have their turns if nobody came or left."""
        lines = [iter(line) for line in self._lines.values()]
        while lines:
            remaining = []
            for line in lines:
                waiter = next(line, None)
                if waiter is not None:
                    yield waiter
                    remaining.append(line)
            lines = remaining

    def _tell_later(self) -> None:
        if self._teller is None:
            self._teller = asyncio.get_running_loop().call_later(_TELL_SECONDS, self._tell)

    def _tell(self) -> None:
        """Tell those whose position has changed; go on as long as anyone waits."""
        self._teller = None
        if not self._lines:
            return
        self._tell_later()
        now = time.monotonic()
        for position, waiter in enumerate(tuple(self._in_order()), 1):
            notable = abs(position - waiter.told) >= max(1, waiter.told / _NOTABLE_PART)
            if notable and now - waiter.told_at >= _TELL_SECONDS and not waiter.turn.done():
                waiter.tell(position, self._told_wait(position), now)
