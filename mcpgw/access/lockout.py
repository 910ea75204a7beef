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
from typing import Any, Final

from mcpgw.workers.peers import Peers

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
        self._peers = Peers()
        self._topic = ""

    def share(self, peers: Peers, topic: str) -> None:
        """Count what comes to the other workers too: they tell each other of every attempt by `topic`."""
        if not peers.is_alone:
            self._peers, self._topic = peers, topic
            peers.listen(topic, self._hear)
            peers.on_came(self._tell_all)

    def __len__(self) -> int:
        """How many are remembered."""
        return len(self._known)

    def wait(self, name: str) -> float:
        """Seconds until the next attempt is looked at; 0.0 where it is looked at now."""
        found = self._of(name)
        return 0.0 if found is None else max(0.0, found.until - self._clock())

    def attempt(self, name: str) -> None:
        """An attempt begins: it has failed as long as nobody says that it has not."""
        self._attempt(name)
        self._peers.tell(self._topic, ["attempt", name])

    def take_back(self, name: str) -> None:
        """The last attempt has not failed; those before it still count."""
        self._take_back(name)
        self._peers.tell(self._topic, ["take_back", name])

    def forget(self, name: str) -> None:
        """All is well: nothing has failed."""
        self._forget(name)
        self._peers.tell(self._topic, ["forget", name])

    def sweep(self) -> int:
        """Forget what is long ago; returns how many."""
        limit = self._clock() - _FORGIVEN_AFTER
        old = [name for name, found in self._known.items() if found.last < limit]
        for name in old:
            del self._known[name]
        return len(old)

    # --- several workers -----------------------------------------------------------------------------------

    def _hear(self, _: int, told: list[Any]) -> None:
        match told:
            case ["attempt", str(name)]:
                self._attempt(name)
            case ["take_back", str(name)]:
                self._take_back(name)
            case ["forget", str(name)]:
                self._forget(name)
            case ["known", list(known)]:
                now = self._clock()
                for name, count, last, until in known:
                    if name not in self._known and len(self._known) < self._maximum:
                        self._known[name] = _Failures(count, now - last, now + until)

    def _tell_all(self, newcomer: int) -> None:
        """Tell a worker that knows nothing yet, as seconds from now; one of the others is enough."""
        if self._known and self._peers.number == min(self._peers.present - {newcomer} | {self._peers.number}):
            now = self._clock()
            known = [[name, one.count, now - one.last, one.until - now] for name, one in self._known.items()]
            self._peers.tell(self._topic, ["known", known], to=newcomer)

    # --- counting ------------------------------------------------------------------------------------------

    def _attempt(self, name: str) -> None:
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

    def _take_back(self, name: str) -> None:
        found = self._known.get(name)
        if found is not None:
            found.count -= 1
            found.until = min(found.until, self._clock())
            if found.count <= 0:
                del self._known[name]

    def _forget(self, name: str) -> None:
        self._known.pop(name, None)

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
