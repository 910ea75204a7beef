"""When a backend that ended is tried again: after growing, jittered pauses; a failed one now and then.

Source of the pauses: Brooker, "Exponential Backoff And Jitter", 2015 (full jitter); of the rare tries:
Nygard, "Release It!" (circuit breaker, half-open).
"""

import random
import time

from mcpgw.settings import BackendSettings

_MOST_DOUBLINGS = 32


class Retries:
    """The pauses of one backend.

    `failures` counts tries in a row that failed; `next_try_at` is when the next is, in seconds since the
    epoch, None while none is planned.
    """

    def __init__(self, settings: BackendSettings) -> None:
        self._settings = settings
        self._due = 0.0
        self.failures = 0
        self.next_try_at: float | None = None

    def plan(self, *, held: float | None, at_once: bool) -> None:
        """It ended, after it had been ready for `held` seconds, or before it was.

        `at_once` says that it is sure to be there; then the first pause is none.
        """
        # A server that held for longer than its last longest pause has recovered.
        if held is not None and held > self._longest():
            self.failures = 0
        self.failures += 1
        pause = random.uniform(0, self._longest())  # noqa: S311 - jitter, no secret
        if at_once and self.failures == 1:
            pause = 0.0
        if self.has_failed:
            pause = self._settings.retry_maximum
        self._due = time.monotonic() + pause
        self.next_try_at = time.time() + pause

    @property
    def has_failed(self) -> bool:
        """Whether there is little hope: so many tries in a row have failed."""
        return self.failures >= self._settings.failed_after

    @property
    def seconds_left(self) -> float:
        """How long until the next try; negative where it is late."""
        return self._due - time.monotonic()

    def begin(self) -> None:
        """The next try begins."""
        self.next_try_at = None

    def _longest(self) -> float:
        doublings = min(max(self.failures - 1, 0), _MOST_DOUBLINGS)
        return min(self._settings.retry_maximum, self._settings.retry_initial * 2.0**doublings)
