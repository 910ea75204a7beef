"""Tickets: what a page shows in the address of a socket or a stream, where it can send no headers.

A ticket is good for one connection of one purpose, for some seconds. It may stand in somebody's log
afterwards, and is worth nothing there.
"""

import secrets
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from mcpgw.access.accounts import digest
from mcpgw.access.tokens import Principal
from mcpgw.errors import AuthFailed, QueueFull
from mcpgw.workers.peers import Peers
from mcpgw.workers.totals import Totals

Purpose: TypeAlias = Literal["websocket", "events"]

TICKET_PREFIX: Final = "mcpgw-ticket-"
"""How every ticket begins, so that searches for lost secrets find it."""

_MOST = 10_000
_MOST_OF_A_USER = 100
_LONGEST_NUMBER = 3


@dataclass(frozen=True, slots=True)
class _Ticket:
    principal: Principal
    purpose: Purpose
    until: float


class Tickets:
    """The tickets that were given out and not used yet, in memory; `seconds` is how long one is good.

    Where there are several processes, a ticket names the one that has it, and `peers` bounds those of all.
    `clock` is monotonic, in seconds.
    """

    def __init__(
        self, seconds: float, *, peers: Peers | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        peers = peers or Peers()
        self._seconds = seconds
        self._prefix = TICKET_PREFIX if peers.is_alone else f"{TICKET_PREFIX}{peers.number}."
        self._clock = clock
        self._given: OrderedDict[str, _Ticket] = OrderedDict()
        self._by_user: Counter[str] = Counter()
        self._totals = Totals(peers, "tickets", lambda: (len(self._given),))

    def __len__(self) -> int:
        """How many could be used."""
        self.sweep()
        return len(self._given)

    def give(self, principal: Principal, purpose: Purpose) -> str:
        """A new ticket.

        Raises:
            QueueFull: too many were given out and not used, to this user or in all.
        """
        self.sweep()
        (elsewhere,) = self._totals.elsewhere()
        if len(self._given) + elsewhere >= _MOST or self._by_user[principal.user] >= _MOST_OF_A_USER:
            raise QueueFull("too many tickets were not used yet", retry_after_ms=round(self._seconds * 1000))
        secret = self._prefix + secrets.token_urlsafe(32)
        self._given[digest(secret)] = _Ticket(principal, purpose, self._clock() + self._seconds)
        self._by_user[principal.user] += 1
        self._totals.changed()
        return secret

    def take(self, secret: str, purpose: Purpose) -> Principal:
        """Who a ticket is for; it is used up, also where its purpose is another.

        Raises:
            AuthFailed: there is no such ticket, or not any more, or not for this.
        """
        self.sweep()
        ticket = self._given.get(digest(secret))
        if ticket is None:
            raise AuthFailed("the ticket does not hold: it was used, is too old, or none")
        self._forget(digest(secret))
        if ticket.until <= self._clock():
            raise AuthFailed("the ticket is too old")
        if ticket.purpose != purpose:
            raise AuthFailed("the ticket is for another purpose")
        return ticket.principal

    def sweep(self) -> None:
        """Forget those that are too old."""
        now = self._clock()
        while self._given:
            oldest = next(iter(self._given))
            if self._given[oldest].until > now:
                break
            self._forget(oldest)

    def _forget(self, name: str) -> None:
        user = self._given.pop(name).principal.user
        self._totals.changed()
        self._by_user[user] -= 1
        if not self._by_user[user]:
            del self._by_user[user]


def worker_of_ticket(secret: str) -> int | None:
    """The number of the worker that a ticket says it is from; None where it names none."""
    number, dot, _ = secret.removeprefix(TICKET_PREFIX).partition(".")
    is_number = dot and number.isascii() and number.isdecimal() and len(number) <= _LONGEST_NUMBER
    return int(number) if is_number else None
