"""How long one has to wait after failed logins: growing pauses for who guesses, and softer ones for accounts.

A stranger who guesses at an account is to be stopped, and must not lock its owner out by that. So failures
count for an account from one address, and for an address whatever account it tries. All failures of an
account together count too, since one stranger may have many addresses; that makes those alone wait who come
from where the account has never logged in.

An attempt counts as failed from its beginning until it has succeeded, so that many at once are no way around.
An account's name counts whether there is such an account or not: the answers tell nothing.
"""

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from typing import Final

Clock = Callable[[], float]

PAIR_FREE: Final = 5
"""Failures of one account from one address before there is a pause."""
ACCOUNT_FREE: Final = 50
"""Failures of one account, wherever they come from, before strangers have a pause there."""
ADDRESS_FREE: Final = 20
"""Failures from one address before there is a pause: many people may come from one."""

_FIRST_PAUSE = 1.0
_LONGEST_PAUSE = 300.0
ACCOUNT_PAUSE: Final = 60.0
"""Longest pause of strangers at an account, in seconds."""
_FORGIVEN_AFTER = 900.0
_MOST = 10_000
_IPV6_PREFIX = 64


@dataclass(slots=True)
class _Failures:
    count: int
    last: float
    until: float


class Lockout:
    """Counts failures of one kind of thing; at most `maximum` things, of which the oldest are forgotten.

    Beyond `free` failures there is a pause of a second, which doubles with each further one up to `longest`
    seconds. A quarter of an hour without a failure makes all forgotten. `clock` is monotonic, in seconds.
    """

    def __init__(
        self,
        free: int,
        *,
        longest: float = _LONGEST_PAUSE,
        maximum: int = _MOST,
        clock: Clock = time.monotonic,
    ) -> None:
        self._free = free
        self._longest = longest
        self._maximum = maximum
        self._clock = clock
        self._known: OrderedDict[str, _Failures] = OrderedDict()

    def __len__(self) -> int:
        """How many are remembered."""
        return len(self._known)

    def wait(self, name: str) -> float:
        """Seconds until the next attempt is looked at; 0.0 where it is looked at now."""
        found = self._of(name)
        return 0.0 if found is None else max(0.0, found.until - self._clock())

    def attempt(self, name: str) -> None:
        """An attempt begins: it has failed as long as nobody says that it has not."""
        now = self._clock()
        found = self._of(name)
        if found is None:
            while len(self._known) >= self._maximum:
                self._known.popitem(last=False)
            found = self._known[name] = _Failures(0, now, now)
        found.count += 1
        found.last = now
        beyond = found.count - self._free
        if beyond >= 0:
            found.until = now + min(self._longest, _FIRST_PAUSE * 2.0 ** min(beyond, 20))
        self._known.move_to_end(name)

    def take_back(self, name: str) -> None:
        """The last attempt has not failed; those before it still count."""
        found = self._known.get(name)
        if found is not None:
            found.count -= 1
            found.until = min(found.until, self._clock())
            if found.count <= 0:
                del self._known[name]

    def forget(self, name: str) -> None:
        """All is well: nothing has failed."""
        self._known.pop(name, None)

    def sweep(self) -> int:
        """Forget what is long ago; returns how many."""
        limit = self._clock() - _FORGIVEN_AFTER
        old = [name for name, found in self._known.items() if found.last < limit]
        for name in old:
            del self._known[name]
        return len(old)

    def _of(self, name: str) -> _Failures | None:
        found = self._known.get(name)
        if found is not None and self._clock() - found.last > _FORGIVEN_AFTER:
            del self._known[name]
            return None
        return found


def network_of(remote: str) -> str:
    """What counts as one address: an IPv4 address, or an IPv6 network of 64 bits, which one user has."""
    try:
        address = ip_address(remote.partition("%")[0])
    except ValueError:
        return remote[:64]
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return f"{IPv6Address(int(address) >> _IPV6_PREFIX << _IPV6_PREFIX)}/{_IPV6_PREFIX}"
    return str(address)
