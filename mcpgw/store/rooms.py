"""Rooms for workshops, and the guests that have joined them.

A room that has ended is kept for a while without its code, for whoever asks what became of it.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias

from sqlalchemy import Connection, Row, delete, func, insert, select, update

from mcpgw.store.changes import By, note_change
from mcpgw.store.runner import Runner, now
from mcpgw.store.tables import GUESTS, ROOMS

_GATEWAY: Final = "gateway"
_KEPT_MS: Final = 7 * 86_400_000

Added: TypeAlias = Literal["added", "taken", "full"]
Joined: TypeAlias = Literal["joined", "taken", "full", "ended"]


@dataclass(frozen=True, slots=True)
class StoredRoom:
    """One room. Times are in ms since the epoch; `ended_at` is 0 as long as it is open.

    `host` is the user who may administer it beside admins, empty where nobody else may. Each guest may make
    `quota_calls` calls in any `quota_ms` milliseconds. `guests` is how many have joined and were not removed.
    """

    id: str
    name: str
    host: str
    scopes: tuple[str, ...]
    quota_calls: int
    quota_ms: int
    max_guests: int
    code_hash: str = field(repr=False)
    created_by: str
    created_at: int
    ends_at: int
    frozen: bool = False
    ended_at: int = 0
    guests: int = 0


@dataclass(frozen=True, slots=True)
class StoredGuest:
    """One guest; `folded` is what no two names of a room may have in common, `removed_at` 0 until then."""

    id: str
    room_id: str
    name: str
    folded: str
    remote: str
    joined_at: int
    muted: bool = False
    removed_at: int = 0


@dataclass(frozen=True, slots=True)
class OpenRoom:
    """An open room, with the names of the guests who are `muted` and of those who were `removed`, by id."""

    room: StoredRoom
    muted: Mapping[str, str] = field(default_factory=dict)
    removed: Mapping[str, str] = field(default_factory=dict)


class RoomTable:
    """The stored rooms; each method is a transaction, and raises StoreError where that fails."""

    def __init__(self, run: Runner) -> None:
        self._run = run

    async def list(self, host: str | None = None) -> Sequence[StoredRoom]:
        """The open ones, of one host or of all, by name."""
        return await self._run(
            lambda c: [room for room in _open_rooms(c) if host in (None, room.host)], reads=True
        )

    async def add(self, room: StoredRoom, *, most: int, by: By) -> Added:
        """Keep a new one; ``taken`` where an open one has its name, ``full`` where there are `most` rooms."""

        def write(connection: Connection) -> Added:
            _end_what_is_over(connection, By(_GATEWAY, is_told=False))
            live = _open_rooms(connection)
            if any(other.name == room.name for other in live):
                return "taken"
            if len(live) >= most:
                return "full"
            row = {name: getattr(room, name) for name in _COLUMNS} | {"scopes": json.dumps(room.scopes)}
            connection.execute(insert(ROOMS).values(**row))
            note_change(connection, by, "room.create", room.name)
            return "added"

        return await self._run(write)

    async def set_frozen(self, room: StoredRoom, frozen: bool, *, by: By) -> bool:
        """Let nobody call, or all again; whether it is open."""
        return await self._change(room, {"frozen": frozen}, by, "room.freeze" if frozen else "room.thaw")

    async def set_code(self, room: StoredRoom, code_hash: str, *, by: By) -> bool:
        """Give another code, with which the one before is dead; whether the room is open."""
        return await self._change(room, {"code_hash": code_hash}, by, "room.code")

    async def end(self, room: StoredRoom, *, by: By) -> bool:
        """End one; whether it was open until now."""
        return await self._change(room, {"ended_at": now(), "code_hash": ""}, by, "room.end")

    async def end_over(self) -> Sequence[StoredRoom]:
        """End those whose time is over; answers those that were open until now."""
        return await self._run(lambda c: _end_what_is_over(c, By(_GATEWAY, is_told=True)))

    async def guests(self, room: StoredRoom) -> Sequence[StoredGuest]:
        """Who has joined, the first at the beginning, those who were removed too."""
        query = select(GUESTS).where(GUESTS.c.room_id == room.id).order_by(GUESTS.c.joined_at, GUESTS.c.id)
        return await self._run(lambda c: [_guest(row) for row in c.execute(query)], reads=True)

    async def join(self, guest: StoredGuest) -> Joined:
        """Keep a new guest; or say why there is no place: the name, the number, or the room has ended."""
        mine = GUESTS.c.room_id == guest.room_id

        def write(connection: Connection) -> Joined:
            room = connection.execute(
                # Where two may write at once, the second waits until the first is done.
                select(ROOMS).where(ROOMS.c.id == guest.room_id).with_for_update()
            ).first()
            if room is None or room.ended_at or room.ends_at <= now():
                return "ended"
            alike = select(GUESTS.c.id).where(mine, GUESTS.c.folded == guest.folded)
            if connection.execute(alike).first() is not None:
                return "taken"
            here = select(func.count()).where(mine, GUESTS.c.removed_at == 0)
            if connection.execute(here).scalar_one() >= room.max_guests:
                return "full"
            row = {name: getattr(guest, name) for name in GUESTS.c.keys()}  # noqa: SIM118 - columns, no mapping
            connection.execute(insert(GUESTS).values(**row))
            return "joined"

        return await self._run(write)

    async def set_muted(self, room: StoredRoom, guest: StoredGuest, muted: bool, *, by: By) -> bool:
        """Let a guest read and nothing more, or all again; whether the guest is there."""
        action = "room.mute" if muted else "room.unmute"
        return await self._change_guest(room, guest, {"muted": muted}, by, action)

    async def remove(self, room: StoredRoom, guest: StoredGuest, *, by: By) -> bool:
        """Put a guest out for good; whether the guest was there."""
        return await self._change_guest(room, guest, {"removed_at": now()}, by, "room.kick")

    async def prune(self) -> None:
        """Forget what ended more than a week ago."""
        old = (ROOMS.c.ended_at > 0) & (ROOMS.c.ended_at < now() - _KEPT_MS)

        def write(connection: Connection) -> None:
            ids = select(ROOMS.c.id).where(old)
            connection.execute(delete(GUESTS).where(GUESTS.c.room_id.in_(ids)))
            connection.execute(delete(ROOMS).where(old))

        await self._run(write)

    async def _change(self, room: StoredRoom, values: dict[str, Any], by: By, action: str) -> bool:
        query = update(ROOMS).where(ROOMS.c.id == room.id, ROOMS.c.ended_at == 0)

        def write(connection: Connection) -> bool:
            if connection.execute(query.values(**values)).rowcount == 0:
                return False
            note_change(connection, by, action, room.name)
            return True

        return await self._run(write)

    async def _change_guest(
        self, room: StoredRoom, guest: StoredGuest, values: dict[str, Any], by: By, action: str
    ) -> bool:
        query = update(GUESTS).where(GUESTS.c.id == guest.id, GUESTS.c.removed_at == 0)

        def write(connection: Connection) -> bool:
            if connection.execute(query.values(**values)).rowcount == 0:
                return False
            note_change(connection, by, action, f"{room.name}/{guest.name}")
            return True

        return await self._run(write)


def open_rooms(connection: Connection) -> list[OpenRoom]:
    """The rooms that were not ended, also those whose time is over, with what is known of their guests."""
    rooms = _open_rooms(connection, is_timely=False)
    marked = select(GUESTS.c.id, GUESTS.c.room_id, GUESTS.c.name, GUESTS.c.removed_at).where(
        GUESTS.c.room_id.in_([room.id for room in rooms]),
        GUESTS.c.muted.is_(True) | (GUESTS.c.removed_at > 0),
    )
    muted: dict[str, dict[str, str]] = {}
    removed: dict[str, dict[str, str]] = {}
    for row in connection.execute(marked) if rooms else ():
        (removed if row.removed_at else muted).setdefault(row.room_id, {})[row.id] = row.name
    return [OpenRoom(room, muted.get(room.id, {}), removed.get(room.id, {})) for room in rooms]


_COLUMNS: Final = (
    "id",
    "name",
    "host",
    "scopes",
    "quota_calls",
    "quota_ms",
    "max_guests",
    "code_hash",
    "frozen",
    "created_by",
    "created_at",
    "ends_at",
    "ended_at",
)


def _open_rooms(connection: Connection, *, is_timely: bool = True) -> list[StoredRoom]:
    counting = (
        select(func.count())
        .where(GUESTS.c.room_id == ROOMS.c.id, GUESTS.c.removed_at == 0)
        .correlate(ROOMS)
        .scalar_subquery()
    )
    query = select(ROOMS, counting.label("guests")).where(ROOMS.c.ended_at == 0)
    if is_timely:
        query = query.where(ROOMS.c.ends_at > now())
    return _rooms(connection.execute(query.order_by(ROOMS.c.name)))


def _end_what_is_over(connection: Connection, by: By) -> list[StoredRoom]:
    over = (ROOMS.c.ended_at == 0, ROOMS.c.ends_at <= now())
    ended: list[StoredRoom] = []
    for room in _rooms(connection.execute(select(ROOMS).where(*over))):
        mine = update(ROOMS).where(ROOMS.c.id == room.id, ROOMS.c.ended_at == 0)
        if connection.execute(mine.values(ended_at=room.ends_at, code_hash="")).rowcount:
            ended.append(room)
            note_change(connection, by, "room.end", room.name)
    return ended


def _rooms(rows: Iterable[Row[Any]]) -> list[StoredRoom]:
    return [
        StoredRoom(
            **{name: getattr(row, name) for name in _COLUMNS if name not in ("scopes", "frozen")},
            scopes=tuple(json.loads(row.scopes)),
            frozen=bool(row.frozen),
            guests=getattr(row, "guests", 0),
        )
        for row in rows
    ]


def _guest(row: Row[Any]) -> StoredGuest:
    return StoredGuest(
        row.id,
        row.room_id,
        row.name,
        row.folded,
        row.remote,
        row.joined_at,
        bool(row.muted),
        row.removed_at,
    )
