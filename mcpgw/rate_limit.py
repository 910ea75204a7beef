"""Token buckets: how much of something is let through, how much was not, and when it would be.

A bucket holds at most a burst of tokens and fills at a steady rate (RFC 2697 and RFC 3290 section 5.1.3 name
its two numbers the same). Only a monotonic clock is looked at, so that a clock that jumps refuses nobody.
"""

import math
import time
from collections import OrderedDict, deque
from collections.abc import Callable

Clock = Callable[[], float]
"""Seconds since any fixed moment, never going back."""

_MOST_USERS = 10_000
# What is missing from a token only by rounding is not missing.
_ROUNDING = 1e-6


class TokenBucket:
    """Holds `burst` tokens, is full at first, and fills with `rate` tokens a second."""

    __slots__ = ("_burst", "_clock", "_filled", "_rate", "_tokens")

    def __init__(self, rate: float, burst: int, *, clock: Clock = time.monotonic) -> None:
        self._rate = float(rate)
        self._burst = float(burst)
        self._clock = clock
        self._tokens = self._burst
        self._filled = clock()

    def try_take(self, n: int = 1) -> float:
        """Take `n` tokens and return 0.0, or take none and return the seconds until there will be `n`.

        The wait is infinite where `n` tokens can never be there at once.
        """
        # As `_fill`: two of them are asked for each call.
        now = self._clock()
        tokens = self._tokens + (now - self._filled) * self._rate
        self._filled = now
        self._tokens = tokens = min(tokens, self._burst)
        missing = n - tokens
        if missing <= _ROUNDING:
            self._tokens = tokens - n
            return 0.0
        if n > self._burst or not self._rate:
            return math.inf
        return missing / self._rate

    def put_back(self, n: int = 1) -> None:
        """Give back `n` tokens that were taken for what did not count."""
        self._tokens = min(self._burst, self._fill() + n)

    @property
    def is_full(self) -> bool:
        """Whether it is as it was at first."""
        return self._fill() >= self._burst

    def _fill(self) -> float:
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._filled) * self._rate)
        self._filled = now
        return self._tokens


class Window:
    """Lets `most` through in any `seconds`, however they are spread: a bucket would let twice as many through
    in the first of them. Remembers a moment for each.
    """

    __slots__ = ("_clock", "_moments", "_most", "_seconds")

    def __init__(self, most: int, seconds: float, *, clock: Clock = time.monotonic) -> None:
        self._most = most
        self._seconds = seconds
        self._clock = clock
        self._moments: deque[float] = deque()

    def try_take(self) -> float:
        """Take one and return 0.0, or take none and return the seconds until there is one."""
        now = self._forget()
        if len(self._moments) >= self._most:
            return max(self._moments[0] + self._seconds - now, _ROUNDING)
        self._moments.append(now)
        return 0.0

    def put_back(self) -> None:
        """Give back the last one that was taken."""
        if self._moments:
            self._moments.pop()

    @property
    def is_full(self) -> bool:
        """Whether it is as it was at first."""
        self._forget()
        return not self._moments

    def _forget(self) -> float:
        now = self._clock()
        while self._moments and self._moments[0] + self._seconds <= now:
            self._moments.popleft()
        return now


class RateLimit:
    """Lets `rate` a second through, in bursts of one second's worth, and counts what it refuses."""

    def __init__(self, rate: int) -> None:
        self._bucket = TokenBucket(rate, rate)
        self._refused = 0

    def admit(self) -> bool:
        """Take one token; false where none is left."""
        if self._bucket.try_take():
            self._refused += 1
            return False
        return True

    def take_refused(self) -> int:
        """How many were refused since this was last asked."""
        refused, self._refused = self._refused, 0
        return refused


class UserLimits:
    """What every user may do in a second, over all of that user's connections and requests together.

    Rates are tokens a second, bursts are tokens. A user's buckets are made when first needed. They are
    forgotten by `sweep` once they are full again, which nobody can tell from keeping them; beyond `max_users`
    the user who was away longest is forgotten sooner. Set `quota_of` where some users have less than others:
    it answers how many calls in how many seconds a user may make, None where the rates alone count.
    """

    def __init__(
        self,
        calls_rate: float,
        calls_burst: int,
        frames_rate: float,
        frames_burst: int,
        *,
        max_users: int = _MOST_USERS,
        clock: Clock = time.monotonic,
    ) -> None:
        self._calls_rate, self._calls_burst = calls_rate, calls_burst
        self._frames_rate, self._frames_burst = frames_rate, frames_burst
        self._max_users = max_users
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[TokenBucket, TokenBucket]] = OrderedDict()
        self._quotas: OrderedDict[str, Window] = OrderedDict()
        self.quota_of: Callable[[str], tuple[int, float] | None] = _no_quota

    def __len__(self) -> int:
        """How many users are remembered."""
        return len(self._buckets)

    def try_call(self, user: str) -> float:
        """Take the token of one tool call: 0.0, or the seconds until `user` may call again."""
        quota = self._quota(user)
        wait = 0.0 if quota is None else quota.try_take()
        if wait:
            return wait
        wait = self._of(user)[0].try_take()
        if wait and quota is not None:
            quota.put_back()
        return wait

    def try_frame(self, user: str) -> float:
        """Take the token of one frame: 0.0, or the seconds until `user` may send the next."""
        return self._of(user)[1].try_take()

    def frames_bucket(self) -> TokenBucket:
        """A bucket for the frames of one connection whose user is not known yet."""
        return TokenBucket(self._frames_rate, self._frames_burst, clock=self._clock)

    def sweep(self) -> int:
        """Forget users whose buckets are full; returns how many."""
        idle = [user for user, (calls, frames) in self._buckets.items() if calls.is_full and frames.is_full]
        for user in idle:
            del self._buckets[user]
        for user in [user for user, quota in self._quotas.items() if quota.is_full]:
            del self._quotas[user]
        return len(idle)

    def _quota(self, user: str) -> Window | None:
        quota = self._quotas.get(user)
        if quota is None:
            limit = self.quota_of(user)
            if limit is None:
                return None
            while len(self._quotas) >= self._max_users:
                self._quotas.popitem(last=False)
            quota = self._quotas[user] = Window(*limit, clock=self._clock)
        else:
            self._quotas.move_to_end(user)
        return quota

    def _of(self, user: str) -> tuple[TokenBucket, TokenBucket]:
        buckets = self._buckets.get(user)
        if buckets is None:
            while len(self._buckets) >= self._max_users:
                self._buckets.popitem(last=False)
            calls = TokenBucket(self._calls_rate, self._calls_burst, clock=self._clock)
            buckets = self._buckets[user] = (calls, self.frames_bucket())
        else:
            self._buckets.move_to_end(user)
        return buckets


def _no_quota(_user: str) -> None:
    """Nobody has less than the others."""


class FloodGuard:
    """Tells a flood from a burst: how many more frames of one connection were refused than let through.

    Refusals in a row alone would tell nothing: a bucket that fills while it is flooded lets a frame through
    now and then. A client that keeps sending more than twice its rate comes to `limit`; one that is a little
    too fast never does.
    """

    __slots__ = ("_limit", "_surplus")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._surplus = 0

    def admitted(self) -> None:
        """A frame was let through."""
        if self._surplus:
            self._surplus -= 1

    def refused(self) -> bool:
        """A frame was refused; true where the connection is to be closed for it (close code 3013)."""
        self._surplus += 1
        return self._surplus >= self._limit


def retry_after_ms(seconds: float) -> int:
    """Seconds of a wait as the whole milliseconds of ``retryAfterMs``: never too early, at least 1."""
    return max(1, math.ceil(seconds * 1000))
