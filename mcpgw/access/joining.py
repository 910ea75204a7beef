"""The door of a workshop's room: a code and a name for a guest's token. Every decision is in the audit log.

A code has 40 random bits. One address may guess wrong 30 times, and then once every two seconds; all
together 200 times, and then twice a second. So in the four hours of a room there are at most 29,000 guesses
among 2**40 codes: it is found with a chance of one in 38 million.
"""

import hmac
import secrets
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, NoReturn

from mcpgw.access.authority import Authority
from mcpgw.access.guest_names import display_name, folded, guest_user, plain_code
from mcpgw.access.guests import guest_claim
from mcpgw.access.lockout import network_of
from mcpgw.access.logins import Visitor
from mcpgw.access.tokens import Principal, Tokens
from mcpgw.access.workshops import Codes
from mcpgw.audit import Actor, Audit
from mcpgw.errors import AuthFailed, Conflict, QueueFull, RateLimited
from mcpgw.rate_limit import TokenBucket, retry_after_ms
from mcpgw.store import OpenRoom, Store, StoredGuest, StoredRoom
from mcpgw.store.runner import now
from mcpgw.workers.peers import Peers

GUESSES_OF_ADDRESS: Final = 30
GUESSES_OF_ALL: Final = 200
_RATE_OF_ADDRESS = 0.5
_RATE_OF_ALL = 2.0
_MOST_ADDRESSES = 10_000
_CREDENTIALS = "room code"
_TOPIC = "room codes"
_NO_ROOM = "no room has this code now: look at it again, or ask the host for a new one"


@dataclass(frozen=True, slots=True)
class Joined:
    """A guest who has joined: `access_token` is good until the room ends."""

    room: StoredRoom
    name: str
    principal: Principal
    access_token: str = field(repr=False)
    expires_in: int


class Guesses:
    """Bounds how many codes are tried, from one address and from all; `clock` is monotonic, in seconds.

    Those that are tried at other workers, which are told as `peers`, count too.
    """

    def __init__(self, *, clock: Callable[[], float] | None = None, peers: Peers | None = None) -> None:
        self._clock = {} if clock is None else {"clock": clock}
        self._all = TokenBucket(_RATE_OF_ALL, GUESSES_OF_ALL, **self._clock)
        self._by_network: OrderedDict[str, TokenBucket] = OrderedDict()
        self._peers = peers or Peers()
        self._peers.listen(_TOPIC, self._hear)

    def __len__(self) -> int:
        """How many addresses are remembered."""
        return len(self._by_network)

    def take(self, network: str) -> None:
        """A code is about to be looked at: it is a wrong guess until `was_right`.

        Raises:
            RateLimited: there were too many; says when to come again.
        """
        if wait := self._take(network):
            raise RateLimited("too many wrong codes: wait", retry_after_ms=retry_after_ms(wait))
        self._peers.tell(_TOPIC, [network, True])

    def was_right(self, network: str) -> None:
        """The code that was looked at last was a room's."""
        self._put_back(network)
        self._peers.tell(_TOPIC, [network, False])

    def sweep(self) -> int:
        """Forget addresses that may guess as often as at first; returns how many."""
        idle = [network for network, bucket in self._by_network.items() if bucket.is_full]
        for network in idle:
            del self._by_network[network]
        return len(idle)

    def _hear(self, _: int, told: tuple[str, bool]) -> None:
        network, is_guess = told
        if is_guess:
            self._take(network)
        else:
            self._put_back(network)

    def _take(self, network: str) -> float:
        bucket = self._by_network.get(network)
        if bucket is None:
            while len(self._by_network) >= _MOST_ADDRESSES:
                self._by_network.popitem(last=False)
            bucket = self._by_network[network] = TokenBucket(
                _RATE_OF_ADDRESS, GUESSES_OF_ADDRESS, **self._clock
            )
        self._by_network.move_to_end(network)
        wait = bucket.try_take()
        if not wait and (wait := self._all.try_take()):
            bucket.put_back()
        return wait

    def _put_back(self, network: str) -> None:
        self._all.put_back()
        if (bucket := self._by_network.get(network)) is not None:
            bucket.put_back()


class Joining:
    """Lets guests in; `authority` knows the rooms that are open."""

    def __init__(
        self, store: Store, tokens: Tokens, *, authority: Authority, audit: Audit, peers: Peers
    ) -> None:
        self._store = store
        self._tokens = tokens
        self._codes = Codes(tokens)
        self._authority = authority
        self._audit = audit
        self.guesses = Guesses(peers=peers)

    async def join(self, code: str, name: str, visitor: Visitor) -> Joined:
        """Let somebody in who knows the code of a room.

        Raises:
            AuthFailed: no open room has this code.
            InvalidParams: it can be no name.
            Conflict: the name is taken in this room, or is too like one that is.
            QueueFull: the room has as many guests as it may.
            RateLimited: there were too many wrong codes.
            StoreError: the store cannot be used.
        """
        shown = display_name(name)
        found = self._open_room(code, visitor)
        room, moment = found.room, now()
        alike = folded(shown)
        guest = StoredGuest(secrets.token_hex(4), room.id, shown, alike, visitor.remote, moment)
        is_host = bool(room.host) and alike == folded(room.host)
        outcome = "taken" if is_host else await self._store.rooms.join(guest)
        user = guest_user(room.name, shown, guest.id)
        match outcome:
            case "taken":
                self._refuse(visitor, Conflict("this name is taken in the room, or too like one that is"))
            case "full":
                self._refuse(visitor, QueueFull(f"the room has its {room.max_guests} guests"))
            case "ended":
                self._refuse(visitor, AuthFailed(_NO_ROOM))
        seconds = max(0.001, (room.ends_at - moment) / 1000)
        claim = guest_claim(room.id, guest.id)
        token = self._tokens.issue(user=user, scopes=(), ttl=seconds, guest=claim)
        principal = self._authority.verify(token)
        actor = Actor(visitor.remote, user, principal.token_id)
        self._audit.access(actor, action="room.join", target=room.name)
        return Joined(room, shown, principal, token, int(seconds))

    def sweep(self) -> None:
        """Forget guesses of long ago."""
        self.guesses.sweep()

    def _open_room(self, code: str, visitor: Visitor) -> OpenRoom:
        network = network_of(visitor.remote)
        try:
            self.guesses.take(network)
        except RateLimited as error:
            self._refuse(visitor, error)
        plain = plain_code(code)
        # Compared with all, whichever it is: the time tells nothing.
        digest = self._codes.digest(plain or "")
        found = None
        for one in self._authority.known.rooms.values():
            if hmac.compare_digest(one.room.code_hash, digest) and one.room.ends_at > now():
                found = one
        if found is None or plain is None:
            self._refuse(visitor, AuthFailed(_NO_ROOM))
        self.guesses.was_right(network)
        return found

    def _refuse(self, visitor: Visitor, error: AuthFailed | Conflict | QueueFull | RateLimited) -> NoReturn:
        self._audit.auth(Actor(visitor.remote), credentials=_CREDENTIALS, outcome=error.code)
        error.is_audited = True  # one line for one decision
        raise error
