"""What a guest of a room may do now: what the room is for, as long as it is open, and no more than its host.

A guest's token names the room and the guest by their ids. It has no scopes of its own: all is asked of the
room each time, so that it ends, freezes and mutes at once.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from mcpgw.access.permissions import bounded
from mcpgw.access.tokens import Principal
from mcpgw.errors import AuthFailed
from mcpgw.roles import NO_RULES, Role
from mcpgw.store import OpenRoom

MUTED: Final = "the host has muted you: you may read, and nothing more"
FROZEN: Final = "the room is frozen: nobody in it may call or publish until the host goes on"


def guest_claim(room_id: str, guest_id: str) -> str:
    """What a guest's token says of the guest."""
    return f"{room_id}.{guest_id}"


def open_room(rooms: Mapping[str, OpenRoom], guest: str, *, moment: float) -> OpenRoom:
    """The room of a guest's claim.

    `moment` is now, in seconds since the epoch.

    Raises:
        AuthFailed: the room has ended, or its host has removed the guest.
    """
    room_id, _, guest_id = guest.partition(".")
    found = rooms.get(room_id)
    if found is None or moment * 1000 >= found.room.ends_at:
        raise AuthFailed("the room has ended")
    if guest_id in found.removed:
        raise AuthFailed("the host has removed you from the room")
    return found


def as_guest(principal: Principal, found: OpenRoom, host_role: Role | None, *, is_bounded: bool) -> Principal:
    """What `principal`, a guest of the room `found`, may do.

    `host_role` is the present role of the room's host; it bounds the guests where `is_bounded`, and where it
    is None allows nothing then.
    """
    room = found.room
    _, _, guest_id = principal.guest.partition(".")
    granted = frozenset(room.scopes)
    limit = None
    if is_bounded:
        limit = frozenset[str]() if host_role is None else host_role.scopes
    return replace(
        principal,
        scopes=(granted if limit is None else bounded(granted, limit)) | {f"rooms:join:{room.name}"},
        rules=NO_RULES if host_role is None else host_role.rules,
        granted=granted,
        limit=limit,
        held=FROZEN if room.frozen else MUTED if guest_id in found.muted else "",
    )
