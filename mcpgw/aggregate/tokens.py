"""What one client's requests have in common where there are no sessions (2026-07-28): its token."""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from mcpgw.access.callers import Caller

_LEAST_SECONDS = 1.0
"""A token holds longer than it says (`auth.leeway`): not every request of then begins anew."""
_MOST_SECONDS = 30 * 86400.0


@dataclass(slots=True)
class _Token:
    caller: Caller
    open: int = 0
    timer: asyncio.TimerHandle | None = field(default=None, repr=False)


class Tokens:
    """Tells `end` that a token's time is over, and that none of its requests is open any more."""

    def __init__(self, end: Callable[[Caller], None]) -> None:
        self._end = end
        self._known: dict[str, _Token] = {}

    @contextmanager
    def open(self, caller: Caller) -> Iterator[None]:
        """A request of the caller's token is open inside the block."""
        token = self._known.get(caller.connection)
        if token is None:
            token = self._known[caller.connection] = _Token(caller)
            self._wait(token)
        token.open += 1
        try:
            yield
        finally:
            token.open -= 1
            if not token.open and token.timer is None:
                self._forget(token)

    def close(self) -> None:
        """Wait for none any more."""
        for token in self._known.values():
            if token.timer is not None:
                token.timer.cancel()
        self._known.clear()

    def _wait(self, token: _Token) -> None:
        seconds = token.caller.principal.expires_at - time.time()
        seconds = min(max(seconds, _LEAST_SECONDS), _MOST_SECONDS)
        token.timer = asyncio.get_running_loop().call_later(seconds, self._expire, token)

    def _expire(self, token: _Token) -> None:
        token.timer = None
        if token.caller.principal.expires_at > time.time():  # it is good for longer than a timer is set for
            self._wait(token)
        elif not token.open:
            self._forget(token)

    def _forget(self, token: _Token) -> None:
        if self._known.get(token.caller.connection) is token:
            del self._known[token.caller.connection]
            self._end(token.caller)
