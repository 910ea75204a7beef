"""How long to wait before the next try to connect."""

import random
from typing import Final

_MOST_DOUBLINGS: Final = 32


class Backoff:
    """Pauses that grow, with full jitter: each is a random share of a bound that doubles with each failure.

    `first` and `longest` are bounds in seconds. Full jitter spreads the clients of a gateway that comes back
    (the name and the comparison are Marc Brooker's, "Exponential Backoff and Jitter", 2015).
    """

    def __init__(self, first: float, longest: float) -> None:
        if not 0 < first <= longest:
            raise ValueError("the first pause is above 0 and at most the longest")
        self._first = first
        self._longest = longest
        self._failures = 0

    def pause(self, at_least: float | None = None) -> float:
        """The next pause in seconds; not below `at_least`, which is what the gateway has asked for."""
        bound = min(self._longest, self._first * 2.0 ** min(self._failures, _MOST_DOUBLINGS))
        self._failures += 1
        return (at_least or 0.0) + random.uniform(0, bound)  # noqa: S311 - spreads load, keeps no secret

    def reset(self) -> None:
        """The connection has proved useful: begin with short pauses again."""
        self._failures = 0
