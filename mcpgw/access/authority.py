"""Who a credential proves, from memory: nothing here waits for the database.

What the store has of users and logins is read as a whole when it has changed, and put in the place of what
was there. So a frame, a request and an upgrade cost no more than a look into a dictionary, and what is
revoked holds no more from the moment in which it was read.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Final

from mcpgw.access.accounts import digest
from mcpgw.access.keys import KEY_PREFIX
from mcpgw.access.permissions import bounded
from mcpgw.access.tokens import Principal, Tokens
from mcpgw.errors import AuthFailed, TokenExpired
from mcpgw.roles import NO_RULES, Role
from mcpgw.store import StoredKey

Clock = Callable[[], float]

_LONGEST_KEY: Final = 256


@dataclass(frozen=True, slots=True)
class KnownUser:
    """What is known of a user at any time."""

    role: str
    disabled: bool


@dataclass(frozen=True)
class Known:
    """What the store has of those who may come in.

    `revoked` are the logins that were ended while an access token of theirs may still be around; `keys` those
    that hold, by the SHA-256 of the whole key.
    """

    users: Mapping[str, KnownUser] = field(default_factory=dict)
    revoked: frozenset[str] = frozenset()
    keys: Mapping[str, StoredKey] = field(default_factory=dict)

    @cached_property
    def key_ids(self) -> frozenset[str]:
        """The ids of the keys that hold."""
        return frozenset(key.id for key in self.keys.values())


class Authority:
    """Verifies credentials, and looks at those again that were verified before.

    `roles` gives the roles in force; `clock` the time in seconds since the epoch.
    """

    def __init__(
        self, tokens: Tokens, roles: Callable[[], Mapping[str, Role]], *, clock: Clock = time.time
    ) -> None:
        self._tokens = tokens
        self._roles = roles
        self._clock = clock
        self._known = Known()
        self._used: dict[str, int] = {}

    @property
    def known(self) -> Known:
        """What the store had when it was read last."""
        return self._known

    def learn(self, known: Known) -> None:
        """Hold everybody to what the store has now."""
        self._known = known

    def verify(self, token: str, /) -> Principal:
        """Who a credential speaks for, and what they may do now.

        Raises:
            AuthFailed: it does not hold, its login has ended, or its user is disabled.
            TokenExpired: its time is over.
        """
        if token.startswith(KEY_PREFIX):
            return self._as_known(self._of_key(token))
        return self._as_known(self._tokens.verify(token))

    def take_used(self) -> dict[str, int]:
        """When keys were used since this was last asked, by id, in ms since the epoch."""
        used, self._used = self._used, {}
        return used

    def review(self, principal: Principal) -> Principal:
        """Who was verified before, with what they may do now.

        Raises:
            AuthFailed: the credential holds no more.
        """
        return self._as_known(principal)

    def _of_key(self, secret: str) -> Principal:
        # Found by the hash of all of it: the time of the search tells nothing of the secret.
        key = self._known.keys.get(digest(secret)) if len(secret) <= _LONGEST_KEY else None
        if key is None:
            raise AuthFailed("the key does not hold: it was revoked, its time is over, or it is none")
        now = self._clock()
        if key.expires_at and now * 1000 >= key.expires_at:
            raise TokenExpired("the key's time is over; make a new one")
        self._used[key.id] = round(now * 1000)
        return Principal(
            user=key.user,
            scopes=frozenset(key.scopes),
            expires_at=key.expires_at / 1000 if key.expires_at else math.inf,
            token_id=key.id,
            key=key.id,
        )

    def _as_known(self, principal: Principal) -> Principal:
        known = self._known
        if principal.login and principal.login in known.revoked:
            raise AuthFailed("this login has ended: log in again")
        if principal.key and principal.key not in known.key_ids:
            raise AuthFailed("the key was revoked")
        user = known.users.get(principal.user)
        if user is None:
            if principal.login:
                raise AuthFailed("the user of this login is not there any more")
            return principal
        if user.disabled:
            raise AuthFailed("this user is disabled")
        role = self._roles().get(user.role)
        # A role that is configured no more allows nothing.
        limit = frozenset[str]() if role is None else role.scopes
        # What a login may do is what its role says; a token or a key says itself what it is for.
        granted = principal.granted if principal.granted is not None or principal.login else principal.scopes
        return replace(
            principal,
            scopes=limit if granted is None else bounded(granted, limit),
            role=user.role,
            rules=NO_RULES if role is None else role.rules,
            granted=granted,
        )

    def require_time(self, principal: Principal) -> None:
        """Raise `TokenExpired` where the time of what was verified before is over."""
        if self._clock() >= principal.expires_at:
            raise TokenExpired("the token has expired; get a new one")


def as_role(user: str, role: Role) -> Principal:
    """What a login of a user with that role may do."""
    return Principal(
        user=user, scopes=role.scopes, expires_at=math.inf, token_id="", role=role.name, rules=role.rules
    )
