"""Who a credential proves, from memory: nothing here waits for the database.

What the store has of users and logins is read as a whole when it has changed, and put in the place of what
was there. So a frame, a request and an upgrade cost no more than a look into a dictionary, and what is
revoked holds no more from the moment in which it was read.
"""

import math
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Final

from mcpgw.access.accounts import canonical_name, digest
from mcpgw.access.foreign import Foreign
from mcpgw.access.guest_names import room_of
from mcpgw.access.guests import as_guest, open_room
from mcpgw.access.issuers import Issuers
from mcpgw.access.keys import KEY_PREFIX
from mcpgw.access.permissions import CALL_TOOLS, bounded
from mcpgw.access.tokens import Principal, Tokens
from mcpgw.errors import AuthFailed, TokenExpired
from mcpgw.roles import NO_RULES, Role
from mcpgw.store import OpenRoom, StoredKey

Clock = Callable[[], float]

_LONGEST_KEY: Final = 256


@dataclass(frozen=True, slots=True)
class KnownUser:
    """What is known of a user at any time; `created_at` is in milliseconds since the epoch."""

    role: str
    disabled: bool
    created_at: int = 0


@dataclass(frozen=True)
class Known:
    """What the store has of those who may come in.

    `revoked` are the logins that were ended while an access token of theirs may still be around; `keys` those
    that hold, by the SHA-256 of the whole key; `identities` the users by the issuers that know them, and
    their ``sub`` there; `rooms` those that are open to guests, by their ids.
    """

    users: Mapping[str, KnownUser] = field(default_factory=dict)
    revoked: frozenset[str] = frozenset()
    keys: Mapping[str, StoredKey] = field(default_factory=dict)
    identities: Mapping[tuple[str, str], str] = field(default_factory=dict)
    rooms: Mapping[str, OpenRoom] = field(default_factory=dict)

    @cached_property
    def key_ids(self) -> frozenset[str]:
        """The ids of the keys that hold."""
        return frozenset(key.id for key in self.keys.values())


class Authority:
    """Verifies credentials, and looks at those again that were verified before.

    `roles` gives the roles in force, `issuers` those whose tokens are good here beside the gateway's own;
    `clock` the time in seconds since the epoch.
    """

    def __init__(
        self,
        tokens: Tokens,
        roles: Callable[[], Mapping[str, Role]],
        *,
        issuers: Issuers | None = None,
        clock: Clock = time.time,
    ) -> None:
        self._tokens = tokens
        self._roles = roles
        self._issuers = issuers
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
        issuer = None if self._issuers is None else self._issuers.of_token(token)
        if issuer is not None:
            return self._as_known(self._with_user(issuer.verify_access_token(token)))
        return self._as_known(self._tokens.verify(token))

    def fetching_keys(self, token: str, /) -> Awaitable[None] | None:
        """What to wait for before `token` can be verified; None, nearly always, where there is nothing."""
        return None if self._issuers is None else self._issuers.fetching_keys(token)

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
            issued_at=key.created_at / 1000,
        )

    def _with_user(self, principal: Principal) -> Principal:
        """One whom another issuer knows, as the user that they are here, where they are one."""
        foreign = principal.foreign
        if foreign is None:
            return principal
        return replace(principal, user=self._known.identities.get(foreign.identity, foreign.user))

    def _as_foreign(self, principal: Principal, foreign: Foreign) -> Principal:
        """What somebody may do whom another issuer knows: what its words are worth, within the role.

        The role is that of the user of the store, or else the one that the token's own words stand for.
        """
        settings = None if self._issuers is None else self._issuers.settings.get(foreign.name)
        if settings is None or settings.issuer != foreign.issuer:
            raise AuthFailed("tokens of this issuer are not taken any more")
        linked = self._known.identities.get(foreign.identity)
        if (linked or foreign.user) != principal.user:
            raise AuthFailed("this identity is another user's by now: connect again")
        told = settings.role_of(foreign.roles)
        granted = settings.scopes_of(foreign.scopes) if settings.scopes or not told else None
        if foreign.server:
            one = frozenset({f"{CALL_TOOLS}:{foreign.server}"})
            granted = one if granted is None else bounded(granted, one)
        name = told
        if linked is not None:
            user = self._known.users.get(linked)
            if user is None or user.disabled:
                raise AuthFailed("this user is disabled")
            name = user.role
        role = self._roles().get(name)
        if not name:
            return replace(principal, scopes=granted or frozenset())
        limit = frozenset[str]() if role is None else role.scopes
        return replace(
            principal,
            scopes=limit if granted is None else bounded(granted, limit),
            role=name,
            rules=NO_RULES if role is None else role.rules,
            granted=granted,
            limit=limit,
        )

    def _as_known(self, principal: Principal) -> Principal:
        known = self._known
        if principal.guest:
            return self._as_guest(principal)
        if room_of(principal.user) is not None:
            raise AuthFailed("the name of this credential is a guest's, and it is none")
        if principal.foreign is not None:
            return self._as_foreign(principal, principal.foreign)
        if self._issuers is not None and _issuer_in(principal.user) in self._issuers.settings:
            raise AuthFailed("the name of this credential is one of another issuer's")
        if principal.login and principal.login in known.revoked:
            raise AuthFailed("this login has ended: log in again")
        if principal.key and principal.key not in known.key_ids:
            raise AuthFailed("the key was revoked")
        user = known.users.get(principal.user)
        if user is None:
            if principal.login:
                raise AuthFailed("the user of this login is not there any more")
            if canonical_name(principal.user) in known.users:
                raise AuthFailed("the name of this credential is too like that of a user who is another")
            return principal
        if user.disabled:
            raise AuthFailed("this user is disabled")
        if principal.issued_at < user.created_at // 1000:
            # Of somebody of the same name, who was here before or was never a user: whoever has it is not
            # to read what is this user's, nor to go on with their sessions.
            raise AuthFailed("the credential is older than the user of this name: get a new one")
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
            limit=limit,
        )

    def _as_guest(self, principal: Principal) -> Principal:
        found = open_room(self._known.rooms, principal.guest, moment=self._clock())
        host = self._known.users.get(found.room.host)
        if found.room.host and (host is None or host.disabled):
            raise AuthFailed("the host of this room is disabled, or not there any more")
        role = None if host is None else self._roles().get(host.role)
        return as_guest(principal, found, role, is_bounded=host is not None)

    def require_time(self, principal: Principal) -> None:
        """Raise `TokenExpired` where the time of what was verified before is over."""
        if self._clock() >= principal.expires_at:
            raise TokenExpired("the token has expired; get a new one")


def _issuer_in(user: str) -> str:
    name, colon, _ = user.partition(":")
    return name if colon else ""


def as_role(user: str, role: Role) -> Principal:
    """What a login of a user with that role may do."""
    return Principal(
        user=user, scopes=role.scopes, expires_at=math.inf, token_id="", role=role.name, rules=role.rules
    )
