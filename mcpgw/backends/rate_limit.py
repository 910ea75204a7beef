"""A token bucket: how much of something is let through, and how much was not."""

import time


class RateLimit:
    """Lets `rate` a second through, in bursts of one second's worth, and counts what it refuses."""

    def __init__(self, rate: int) -> None:
        self._rate = float(rate)
        self._tokens = float(rate)
        self._filled = time.monotonic()
        self._refused = 0

    def admit(self) -> bool:
        """Take one token; false where none is left."""
        now = time.monotonic()
        self._tokens = min(self._rate, self._tokens + (now - self._filled) * self._rate)
        self._filled = now
        if self._tokens < 1:
            self._refused += 1
            return False
        self._tokens -= 1
        return True

    def take_refused(self) -> int:
        """How many were refused since this was last asked."""
        refused, self._refused = self._refused, 0
        return refused
