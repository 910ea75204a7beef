"""Rooms for workshops, as those who host them see them: opened, frozen, ended; and their guests.

Commands and the gateway use this alike; what is done is in the store's journal, which the gateways read.
"""

import hmac
import math
import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from mcpgw.access.guest_names import Quota, folded, guest_user, new_code, plain_code
from mcpgw.access.permissions import ADMIN, CALL_TOOLS, HOST_ROOMS, covers, scope_faults
from mcpgw.access.tokens import Tokens
from mcpgw.errors import ConfigError, Conflict, RoomNotFound, suggest
from mcpgw.roles import Role, ToolRules
from mcpgw.server_definitions import NAME_RULE, SERVER_NAME
from mcpgw.store import By, Store, StoredGuest, StoredRoom
from mcpgw.store.runner import now

MOST_SCOPES: Final = 50
MOST_GUESTS: Final = 1000
DEFAULT_GUESTS: Final = 100
DEFAULT_QUOTA: Final = "60/min"
DEFAULT_SECONDS: Final = 4 * 3600
LONGEST_SECONDS: Final = 31 * 86_400

_NO_NAMES: Final = ("join",)
"""What stands where names of rooms do in the routes."""


@dataclass(frozen=True, slots=True)
class Opened:
    """A room that was opened, and its join `code`, which is shown this once."""

    room: StoredRoom
    code: str = field(repr=False)


class Codes:
    """Hashes join codes with a key that is not in the database: 40 bits are soon tried out without."""

    def __init__(self, tokens: Tokens) -> None:
        self._key = tokens.derived_key("join codes")

    def digest(self, code: str) -> str:
        """What is kept of a code."""
        return hmac.digest(self._key, code.encode(), "sha256").hex()


class Workshops:
    """Opens and administers the rooms of a store, of which at most `most` are open.

    `roles` gives the roles in force.
    """

    def __init__(
        self, store: Store, tokens: Tokens, roles: Callable[[], Mapping[str, Role]], *, most: int
    ) -> None:
        self._store = store
        self._tokens = tokens
        self._roles = roles
        self._codes = Codes(tokens)
        self._most = most

    async def create(
        self,
        name: str,
        scopes: Collection[str],
        *,
        host: str = "",
        quota: str = DEFAULT_QUOTA,
        seconds: float = DEFAULT_SECONDS,
        guests: int = DEFAULT_GUESTS,
        by: By,
    ) -> Opened:
        """Open a room for `guests` for so many `seconds`, in which each may do what `scopes` allow.

        `host` is the user who may administer it; without one admins and commands alone do. What the host may
        not do, no guest may, now and later.

        Raises:
            ConfigError: something of it cannot be, or there is an open room of that name.
            StoreError: it cannot be kept.
        """
        faults = [*_scope_faults(scopes), *self._place_faults(name, seconds, guests)]
        try:
            limit = Quota.parse(quota)
        except ConfigError as error:
            faults.extend(error.faults)
        if not faults and host:
            faults.extend(await self._host_faults(host, scopes))
        if faults:
            raise ConfigError(faults)
        code, moment = new_code(), now()
        room = StoredRoom(
            id=secrets.token_hex(4),
            name=name,
            host=host,
            scopes=tuple(sorted(set(scopes))),
            quota_calls=limit.calls,
            quota_ms=round(limit.seconds * 1000),
            max_guests=guests,
            code_hash=self._digest(code),
            created_by=by.user,
            created_at=moment,
            ends_at=moment + round(seconds * 1000),
        )
        match await self._store.rooms.add(room, most=self._most, by=by):
            case "taken":
                raise ConfigError([f"there is a room {name!r} already: end it first"])
            case "full":
                raise ConfigError([f"{self._most} rooms are open (rooms.max_open): end one first"])
        return Opened(room, code)

    async def all(self, host: str | None = None) -> Sequence[StoredRoom]:
        """The open rooms, of one host or of all, by name."""
        return await self._store.rooms.list(host)

    async def find(self, name: str, host: str | None = None) -> StoredRoom:
        """The open room of that name, where `host` is its host or None.

        Raises:
            RoomNotFound: there is none, or it is another's.
        """
        rooms = {room.name: room for room in await self.all(host)}
        if name not in rooms:
            raise RoomNotFound(f"there is no open room {name[:64]!r}{suggest(name, rooms)}")
        return rooms[name]

    async def guests(self, room: StoredRoom) -> Sequence[StoredGuest]:
        """Who has joined, the first at the beginning, those who were removed too."""
        return await self._store.rooms.guests(room)

    async def find_guest(self, room: StoredRoom, name: str) -> StoredGuest:
        """A guest who is in a room, by name or id.

        Raises:
            RoomNotFound: there is none.
            Conflict: it is the id of one, and the name that another has chosen.
        """
        here = [guest for guest in await self.guests(room) if not guest.removed_at]
        alike = folded(name[:256])
        found = [guest for guest in here if name == guest.id or alike == guest.folded]
        if len(found) > 1:
            raise Conflict("this is the id of one guest and the name of another: say it the other way")
        if found:
            return found[0]
        known = [guest.name for guest in here]
        raise RoomNotFound(f"no guest {name[:64]!r} is in the room {room.name!r}{suggest(name, known)}")

    async def set_frozen(self, room: StoredRoom, frozen: bool, *, by: By) -> None:
        """Let no guest call, or all again.

        Raises:
            RoomNotFound: the room has ended.
        """
        _require(await self._store.rooms.set_frozen(room, frozen, by=by), room)

    async def set_muted(self, room: StoredRoom, guest: StoredGuest, muted: bool, *, by: By) -> None:
        """Let a guest read and nothing more, or all again.

        Raises:
            RoomNotFound: the guest is not there any more.
        """
        _require(await self._store.rooms.set_muted(room, guest, muted, by=by), room, guest)

    async def kick(self, room: StoredRoom, guest: StoredGuest, *, by: By) -> None:
        """Put a guest out: neither the token nor the name is good any more.

        Raises:
            RoomNotFound: the guest is not there any more.
        """
        _require(await self._store.rooms.remove(room, guest, by=by), room, guest)

    async def renew_code(self, room: StoredRoom, *, by: By) -> str:
        """A new code of a room, which is shown this once; the one before is dead, its guests stay.

        Raises:
            RoomNotFound: the room has ended.
        """
        code = new_code()
        _require(await self._store.rooms.set_code(room, self._digest(code), by=by), room)
        return code

    async def end(self, room: StoredRoom, *, by: By) -> None:
        """End a room, with its code and its guests' tokens.

        Raises:
            RoomNotFound: it has ended already.
        """
        _require(await self._store.rooms.end(room, by=by), room)

    def _digest(self, code: str) -> str:
        return self._codes.digest(plain_code(code) or "")

    def _place_faults(self, name: str, seconds: float, guests: int) -> list[str]:
        faults: list[str] = []
        if not self._tokens.can_issue:
            faults.append("rooms for guests need tokens of the gateway's own: auth.algorithm HS256")
        if not SERVER_NAME.fullmatch(name) or name in _NO_NAMES:
            faults.append(f"{name[:64]!r} cannot be the name of a room: {NAME_RULE}, and not 'join'")
        if not (math.isfinite(seconds) and 0 < seconds <= LONGEST_SECONDS):
            faults.append("a room is open for more than no time, and at most 31 days")
        if not 0 < guests <= MOST_GUESTS:
            faults.append(f"a room has 1 to {MOST_GUESTS} guests")
        return faults

    async def _host_faults(self, host: str, scopes: Collection[str]) -> list[str]:
        user = await self._store.users.get(host[:256])
        if user is None:
            return [f"there is no user {host[:64]!r} who could be the host"]
        role = self._roles().get(user.role)
        if user.disabled or role is None:
            return [f"the user {host!r} is disabled, or has no role"]
        if not role.scopes & {ADMIN, HOST_ROOMS}:
            return [f"the role {role.name!r} of {host!r} lacks the scope {HOST_ROOMS!r}"]
        return [
            f"{host!r}, with the role {role.name!r}, may not give {scope!r}"
            for scope in scopes
            if not may_give(role.scopes, role.rules, scope)
        ]


def may_give(
    scopes: frozenset[str], rules: ToolRules, scope: str, granted: frozenset[str] | None = None
) -> bool:
    """Whether who has `scopes` and `rules` may do all that `scope`, one for tools, allows.

    `granted` are the scopes of a token, which bound what the rules allow; None where nothing does. What the
    rules deny is denied to the guests of a host too, so that it needs no look here.
    """
    if covers(scopes, scope):
        return True
    if granted is not None and not covers(granted, scope):
        return False
    server, slash, tool = scope.removeprefix(f"{CALL_TOOLS}:").partition("/")
    if scope == CALL_TOOLS or not server:
        return False
    return any(pattern.matches(server, tool) if slash else pattern.covers(server) for pattern in rules.allow)


def described_room(room: StoredRoom) -> dict[str, Any]:
    """A room as JSON, without its code; times are in milliseconds since the epoch."""
    members: dict[str, Any] = {
        "name": room.name,
        "scopes": list(room.scopes),
        "quota": str(Quota(room.quota_calls, room.quota_ms / 1000)),
        "guests": room.guests,
        "maxGuests": room.max_guests,
        "frozen": room.frozen,
        "createdBy": room.created_by,
        "createdAt": room.created_at,
        "endsAt": room.ends_at,
    }
    return members | ({"host": room.host} if room.host else {})


def described_guest(room: StoredRoom, guest: StoredGuest) -> dict[str, Any]:
    """A guest as JSON; `user` is their name in events and in the logs."""
    return {
        "id": guest.id,
        "name": guest.name,
        "user": guest_user(room.name, guest.name, guest.id),
        "remote": guest.remote,
        "joinedAt": guest.joined_at,
        "muted": guest.muted,
        "kicked": bool(guest.removed_at),
    }


def _scope_faults(scopes: Collection[str]) -> list[str]:
    if not 0 < len(set(scopes)) <= MOST_SCOPES:
        return [f"a room has 1 to {MOST_SCOPES} scopes"]
    faults: list[str] = []
    for scope in scopes:
        if wrong := scope_faults([scope]):
            faults += wrong
        elif scope.partition(":")[0] != "tools":
            faults.append(f"{scope!r} is not for guests, who may call tools alone: {CALL_TOOLS}:SERVER")
    return faults


def _require(done: bool, room: StoredRoom, guest: StoredGuest | None = None) -> None:
    if not done:  # ended, or gone, in this moment
        what = f"room {room.name!r}" if guest is None else f"guest {guest.name!r}"
        raise RoomNotFound(f"the {what} is not there any more")
